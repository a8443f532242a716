"""Checkpoints: the published files, loadable there and here, and beside them what training needs to go on.

At a step, or at the end (`final`), training writes into its `--out` folder:

    <name>_<step>.torch         {"model": SAM 2 by Meta's names, "convseg": how the network is built}
    <name>_plm_<step>.torch     {"plm": the language adapter}
    lora_plm_adapter_<step>/    its LoRA, as peft saves it
    <name>_state_<step>.torch   optimiser, position in the data, settings; written last, so where it is the rest is

Each is written whole or not at all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from convseg.adapter import PICTURE_SIDE, QWEN, LanguageAdapter, PromptReader, load_adapter
from convseg.batches import Shaping
from convseg.network import ConvSeg
from dataengine.errors import OutputError, UsageError, output_error
from dataengine.journal import sync
from dataengine.segmenters.sam2_checkpoint import (
    VIDEO_ONLY,
    Flags,
    file_digest,
    load_sam2,
    meta_state,
    model_from_state,
    read_pt,
    read_state,
    sam2_config,
)

TRAINING = Flags("--model-cfg", "--checkpoint")
EVALUATION = Flags("--model_cfg", "--final_ckpt")
BASE = Flags("--model_cfg", "--base_ckpt")
LORA_MARK = ".lora_"
FROZEN_MARK = "backbone."
FINAL = "final"
PUBLISHED_CONFIG = "sam2_hiera_l.yaml"  # of the published eval.py


@dataclass(frozen=True)
class Build:
    """How a network is built, as its checkpoint says; the defaults are those of checkpoints that do not say.

    Attributes:
        sam2: transformers' configuration of SAM 2 as a dict; empty where it is that of `--model_cfg`.
        plm_model_name: the language model, a hub id or a folder.
        lora_r, lora_alpha: of LoRA.
        plm_image_side: pixels of the picture that the language model reads.
        max_dim: pixels of the square that a photo is brought into; 0 for the side that SAM 2 sees.
    """

    sam2: Mapping[str, Any]
    plm_model_name: str = QWEN
    lora_r: int = 16
    lora_alpha: int = 32
    plm_image_side: int = PICTURE_SIDE
    max_dim: int = 0


@dataclass(frozen=True)
class Model:
    """A network on the CPU, and what belongs to it.

    Attributes:
        reader: makes the language model's inputs.
        build: how the network is built.
        video: tensors of SAM 2's checkpoint that only video needs, kept for those who load ours elsewhere.
        weights: what identifies the weights it was made of, by file.
    """

    network: ConvSeg
    reader: PromptReader
    build: Build
    video: Mapping[str, Tensor]
    weights: Mapping[str, str]

    @property
    def square(self) -> int:
        """Pixels of the square that a photo is brought into."""
        return self.build.max_dim or self.network.side

    def shaping(self, erode: int = 0, times: int = 0, *, augment: bool = False) -> Shaping:
        """How samples are brought to the network; masks and photos as they are, where nothing else is asked for."""
        return Shaping(self.square, self.network.side, self.network.cells, erode, times, augment)


def new_model(model_cfg: str, checkpoint: str, build: Build, *, dtype: torch.dtype, train_encoder: bool) -> Model:
    """A network to be trained: SAM 2 from a checkpoint, the adapter untrained.

    Args:
        model_cfg: one of Meta's configs; not read where `checkpoint` is a folder or hub id.
        checkpoint: a `.pt` file of Meta's, a folder or a hub id.
        build: what is chosen of it; `sam2` is filled in.
        dtype: of the frozen language model.
        train_encoder: train SAM 2's image encoder too.

    Raises:
        UsageError: a model is not there, or does not fit.
    """
    sam, weights = load_sam2(model_cfg, checkpoint, TRAINING)
    path = Path(checkpoint).expanduser()
    state = read_state(path, TRAINING) if path.is_file() else {}
    video = {key: value for key, value in state.items() if key.startswith(VIDEO_ONLY)}
    adapter, reader, language = _adapter("--plm-model-name", build, sam, dtype)
    network = ConvSeg(sam, adapter, train_encoder=train_encoder)
    told = replace(build, sam2=sam.config.to_dict())
    return Model(network, reader, told, video, {"sam2": weights, "language": language})


def trained_model(
    final_ckpt: str,
    plm_ckpt: str,
    *,
    lora_ckpt: str | None = None,
    model_cfg: str | None = None,
    base_ckpt: str | None = None,
    plm_model_name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """A trained network: ours or a published one.

    Args:
        final_ckpt: `{"model": …}`, SAM 2.
        plm_ckpt: `{"plm": …}`, the language adapter, with its LoRA.
        lora_ckpt: a folder of peft's with the LoRA; only needed where `plm_ckpt` is without.
        model_cfg: one of Meta's configs; None for what the checkpoint says, else the published one.
        base_ckpt: SAM 2 before training: gives what `final_ckpt` lacks.
        plm_model_name: the language model; None for what the checkpoint says, else the published one.
        dtype: of the language model's frozen weights.

    Raises:
        UsageError: a file is not there, is no checkpoint, or does not fit the others.
    """
    final, plm = _file("--final_ckpt", final_ckpt), _file("--plm_ckpt", plm_ckpt)
    content = read_pt(final, EVALUATION)
    told = content.get("convseg") if isinstance(content, dict) else None
    build = _build_of(told, "--final_ckpt", final_ckpt)
    if plm_model_name:
        build = replace(build, plm_model_name=plm_model_name)
    state = _with_base(read_state(final, EVALUATION), base_ckpt)
    config, named = _sam2_of(build, model_cfg)
    sam = model_from_state(config, state, f"{final_ckpt}{named}", EVALUATION)
    adapter, reader, language = _adapter("--plm_model_name", build, sam, dtype)
    load_plm(adapter, plm, "--plm_ckpt")
    if lora_ckpt:
        load_lora(adapter, lora_ckpt, "--lora_ckpt")
    video = {key: value for key, value in state.items() if key.startswith(VIDEO_ONLY)}
    digests = {"sam2": file_digest(final), "adapter": file_digest(plm), "language": language}
    return Model(ConvSeg(sam, adapter), reader, build, video, digests)


def _build_of(told: Any, flag: str, where: str) -> Build:
    if told is None:
        return Build(sam2={})
    names = {f.name for f in fields(Build)}
    if not isinstance(told, dict) or not {"sam2", "plm_model_name"} <= told.keys():
        raise UsageError(
            f"{flag} {where}: what it says of the network cannot be read", hint="Use a file as it was saved"
        )
    return Build(**{key: value for key, value in told.items() if key in names})


def _sam2_of(build: Build, model_cfg: str | None) -> tuple[Any, str]:
    """SAM 2's architecture, and how an error names where it is from."""
    from transformers import Sam2Config

    if model_cfg or not build.sam2:
        name = model_cfg or PUBLISHED_CONFIG
        return sam2_config(name, EVALUATION), f" with {EVALUATION.config} {name}"
    return Sam2Config.from_dict(dict(build.sam2)), ""


def _with_base(state: dict[str, Tensor], base_ckpt: str | None) -> dict[str, Tensor]:
    if base_ckpt is None:
        return state
    path = Path(base_ckpt).expanduser()
    if path.is_file():
        return {**read_state(path, BASE), **state}
    return {**meta_state(load_sam2("", base_ckpt, BASE)[0]), **state}


def _adapter(flag: str, build: Build, sam: Any, dtype: torch.dtype) -> tuple[LanguageAdapter, PromptReader, str]:
    return load_adapter(
        flag,
        build.plm_model_name,
        int(sam.config.mask_decoder_config.hidden_size),
        rank=build.lora_r,
        alpha=build.lora_alpha,
        side=build.plm_image_side,
        dtype=dtype,
    )


def load_sam(network: ConvSeg, path: Path, flag: str) -> None:
    """Put the weights of `{"model": …}` into a network's SAM 2.

    Raises:
        UsageError: it is no such file, or does not fit.
    """
    flags = Flags(TRAINING.config, flag)
    loaded = model_from_state(network.sam.config, read_state(_file(flag, str(path)), flags), str(path), flags)
    network.sam.load_state_dict(loaded.state_dict())


def load_plm(adapter: LanguageAdapter, path: Path, flag: str) -> None:
    """Put the weights of `{"plm": …}` into an adapter. What was frozen may be left out of the file.

    Raises:
        UsageError: it is no such file, or does not fit.
    """
    state = read_state(_file(flag, str(path)), Flags("", flag), part="plm")
    ours = adapter.state_dict()
    needed = [key for key in ours if not _is_frozen(key)]
    missing = [key for key in needed if key not in state]
    left_over = [key for key in state if key not in ours]
    unequal = [
        f"{key} is {list(value.shape)}, not {list(ours[key].shape)}"
        for key, value in state.items()
        if key in ours and value.shape != ours[key].shape
    ]
    if missing or left_over or unequal:
        first = [f"missing {key}" for key in missing] + [f"left over {key}" for key in left_over] + unequal
        counts = f"{len(missing)} missing, {len(left_over)} left over, {len(unequal)} of another shape"
        raise UsageError(
            f"{flag} {path}: does not fit the language adapter ({counts}; first: {first[0]})",
            hint="Check the language model, LoRA's rank and SAM 2's size: they must be those it was trained with",
        )
    adapter.load_state_dict(state, strict=False)


def load_lora(adapter: LanguageAdapter, folder: str, flag: str) -> None:
    """Put a LoRA that peft saved into an adapter.

    Raises:
        UsageError: there is none, or it does not fit.
    """
    from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

    path = Path(folder).expanduser()
    files = ("adapter_model.safetensors", "adapter_model.bin")
    if not any((path / file).is_file() for file in files):
        hint = "Name a folder lora_plm_adapter_…"
        raise UsageError(f"{flag} {folder}: no folder with adapter_model.safetensors", hint=hint)
    try:
        told = PeftConfig.from_pretrained(str(path))
        ours = adapter.backbone.peft_config["default"]
        for name in ("r", "lora_alpha"):
            if getattr(told, name, None) != getattr(ours, name):
                what = f"its {name.replace('_', '-')} is {getattr(told, name, None)}, the model's {getattr(ours, name)}"
                raise UsageError(f"{flag} {folder}: {what}", hint="Use a LoRA of the same --lora-r and --lora-alpha")
        weights = load_peft_weights(str(path), device="cpu")
        loaded: Any = set_peft_model_state_dict(adapter.backbone, weights)
    except UsageError:
        raise
    except Exception as error:  # peft, safetensors and torch raise all kinds
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{flag} {folder}: cannot be loaded ({first})", hint="Check its rank and its model") from None
    if loaded.unexpected_keys:
        raise UsageError(f"{flag} {folder}: is of another model", hint="Check the language model's name")


def _is_frozen(key: str) -> bool:
    return key.startswith(FROZEN_MARK) and LORA_MARK not in key


def _file(flag: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise UsageError(f"{flag} {path}: no such file", hint="Check the path")
    return found


# Saving.


def save_weights(out: Path, name: str, tag: str, model: Model, *, frozen: bool) -> None:
    """Write what the published training writes: SAM 2, adapter and LoRA.

    Args:
        tag: the step, or `final`.
        frozen: write the language model's own weights too, as published; else only what was trained.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    network = model.network
    sam = {**meta_state(network.sam), **model.video}
    plm = {k: v for k, v in network.adapter.state_dict().items() if frozen or not _is_frozen(k)}
    lora = out / f"lora_plm_adapter_{tag}"
    _write(out / f"{name}_{tag}.torch", lambda path: torch.save({"model": sam, "convseg": asdict(model.build)}, path))
    _write(out / f"{name}_plm_{tag}.torch", lambda path: torch.save({"plm": plm}, path))
    _write(lora, lambda path: network.adapter.backbone.save_pretrained(path))


def save_state(out: Path, name: str, tag: str, state: Mapping[str, Any]) -> None:
    """Write what training goes on from; after `save_weights`."""
    _write(out / f"{name}_state_{tag}.torch", lambda path: torch.save(dict(state), path))


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Have a file or folder written beside its place, then moved there."""
    new = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(new)
        save(new)
        for file in new.rglob("*") if new.is_dir() else ():
            sync(file)
        sync(new)
        if path.is_dir():
            _remove(path)
        new.replace(path)
        sync(path.parent)
    except OSError as error:
        _remove(new)
        raise output_error(error, path) from error
    except (RuntimeError, SafetensorError) as error:  # the writers' own, when the disk is full
        _remove(new)
        first = str(error).splitlines()[0]
        hint = "Free some space and go on with --resume"
        raise OutputError(f"cannot write {path} ({first})", hint=hint) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def steps_saved(out: Path, name: str) -> list[int]:
    """The steps that training can go on from, in order."""
    pattern = re.compile(rf"{re.escape(name)}_state_(\d+)\.torch")
    return sorted(int(m[1]) for path in out.glob("*.torch") if (m := pattern.fullmatch(path.name)))


def has_checkpoints(out: Path) -> bool:
    """Whether a folder has checkpoints of any name: LoRA's folders do not say whose they are."""
    return any(out.glob("lora_plm_adapter_*"))


def remove_step(out: Path, name: str, step: int) -> None:
    """Remove a step's files, first the one that says they are whole."""
    for file in (f"{name}_state_{step}.torch", f"{name}_{step}.torch", f"{name}_plm_{step}.torch"):
        _remove(out / file)
    _remove(out / f"lora_plm_adapter_{step}")


def read_training_state(out: Path, name: str, step: int) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        UsageError: it cannot be read.
    """
    state: dict[str, Any] = read_pt(out / f"{name}_state_{step}.torch", Flags("", "--resume"))
    return state
