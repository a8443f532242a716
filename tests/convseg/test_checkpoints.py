from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from convseg import checkpoints
from convseg.checkpoints import Build, Model, load_lora, load_plm, new_model, save_weights, trained_model
from dataengine.errors import OutputError, UsageError
from dataengine.segmenters import sam2_checkpoint
from dataengine.segmenters.sam2_checkpoint import VIDEO_ONLY
from tests.convseg.conftest import PICTURE_SIDE, fresh
from tests.convseg.test_network import PROMPTS, pixels_of
from tests.scenes import photograph
from tests.segmenters.test_sam2_checkpoint import recorded, tiny_state
from tests.standins.tiny_sam2 import tiny_config

LAYER = "backbone.base_model.model.model"


def shaken(model: Model) -> Model:
    """With every trained parameter changed, as if trained."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.inference_mode()
def logits_of(model: Model) -> Tensor:
    model.network.train(False)
    picture = model.reader.picture(photograph("astronaut", 128))
    logits: Tensor = model.network(pixels_of(3), torch.arange(3), model.reader([picture] * 3, PROMPTS))
    return logits


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> tuple[Path, Tensor]:
    """A folder with run_final.torch and the others, and what the model says."""
    save_weights(tmp_path, "run", "final", shaken(model), frozen=True)
    return tmp_path, logits_of(model)


def loaded(out: Path, **how: Any) -> Model:
    return trained_model(str(out / "run_final.torch"), str(out / "run_plm_final.torch"), **how)


def test_what_is_loaded_says_what_was_saved(saved: tuple[Path, Tensor]) -> None:
    out, said = saved
    again = loaded(out)
    torch.testing.assert_close(logits_of(again), said, rtol=0, atol=1e-6)
    assert again.build.lora_r == 4 and again.reader.side == PICTURE_SIDE
    assert sorted(again.weights) == ["adapter", "language", "sam2"]
    names = sorted(p.name for p in out.iterdir())
    assert names == ["lora_plm_adapter_final", "run_final.torch", "run_plm_final.torch"]


def test_what_was_only_frozen_may_be_left_out(model: Model, tmp_path: Path) -> None:
    save_weights(tmp_path, "run", "final", shaken(model), frozen=False)
    state = torch.load(tmp_path / "run_plm_final.torch", weights_only=True)["plm"]
    assert all("lora_" in key for key in state if key.startswith("backbone."))
    torch.testing.assert_close(logits_of(loaded(tmp_path)), logits_of(model), rtol=0, atol=1e-6)


def test_lora_alone_is_loaded_and_saved_as_peft_does(model: Model, sam2: Path, qwen: Path, tmp_path: Path) -> None:
    save_weights(tmp_path, "run", "final", shaken(model), frozen=True)
    other = fresh(sam2, qwen, seed=1)
    load_lora(other.network.adapter, str(tmp_path / "lora_plm_adapter_final"), "--lora_ckpt")
    ours, theirs = (m.network.adapter.state_dict() for m in (other, model))
    for key in ours:
        assert torch.equal(ours[key], theirs[key]) == key.startswith("backbone."), key
    told = json.loads((tmp_path / "lora_plm_adapter_final" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["lora_dropout"], told["bias"]) == (4, 8, 0.05, "none")


# The published files.


def published_adapter_keys(layers: int, blocks: int) -> set[str]:
    """The published adapter's `state_dict`, by the names of Qwen2.5-VL's modules under peft."""
    keys = {"scale", "temp", "txt_norm.weight", "txt_norm.bias", "backbone.base_model.model.lm_head.weight"}
    keys |= {f"{name}.{kind}" for name in ("to_sparse", "to_dense.0", "to_dense.2") for kind in ("weight", "bias")}
    keys |= {f"{LAYER}.language_model.embed_tokens.weight", f"{LAYER}.language_model.norm.weight"}
    keys |= {f"{LAYER}.visual.patch_embed.proj.weight", f"{LAYER}.visual.merger.ln_q.weight"}
    keys |= {f"{LAYER}.visual.merger.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    lora = ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    for i in range(layers):
        at = f"{LAYER}.language_model.layers.{i}"
        for name in [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]:
            keys |= {f"{at}.{name}.{part}" for part in lora}
        keys |= {f"{at}.self_attn.{p}_proj.base_layer.bias" for p in "qkv"}
        keys |= {f"{at}.{norm}_layernorm.weight" for norm in ("input", "post_attention")}
    for i in range(blocks):
        at = f"{LAYER}.visual.blocks.{i}"
        keys |= {f"{at}.norm{n}.weight" for n in (1, 2)}
        keys |= {f"{at}.attn.{name}.{kind}" for name in ("qkv", "proj") for kind in ("weight", "bias")}
        for name in ("gate_proj", "up_proj", "down_proj"):
            keys |= {f"{at}.mlp.{name}.{part}" for part in (*lora, "base_layer.bias")}
    return keys


def test_the_adapter_has_the_published_names(saved: tuple[Path, Tensor]) -> None:
    state = torch.load(saved[0] / "run_plm_final.torch", weights_only=True)["plm"]
    assert set(state) == published_adapter_keys(layers=2, blocks=2)


@pytest.fixture
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.pt` file of Meta's kind, whose architecture goes by a config's name."""
    for module in (sam2_checkpoint, checkpoints):
        monkeypatch.setattr(module, "sam2_config", lambda *_: tiny_config())
    torch.save({"model": tiny_state()}, tmp_path / "meta.pt")
    return tmp_path / "meta.pt"


def test_sam_2_has_all_of_metas_names_and_values(meta: Path, qwen: Path, tmp_path: Path) -> None:
    build = Build(sam2={}, plm_model_name=str(qwen), lora_r=4, lora_alpha=8, plm_image_side=PICTURE_SIDE)
    model = new_model("sam2_hiera_s.yaml", str(meta), build, dtype=torch.float32, train_encoder=False)
    save_weights(tmp_path, "run", "7", model, frozen=True)
    theirs, ours = tiny_state(), torch.load(tmp_path / "run_7.torch", weights_only=True)["model"]
    assert {key: list(value.shape) for key, value in ours.items()} == recorded()["tiny"]
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    assert any(key.startswith(VIDEO_ONLY) for key in ours)


def test_a_published_checkpoint_says_nothing_of_itself(
    meta: Path, qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`{"model"}` and `{"plm"}` in bfloat16, with a config by its name, LoRA of rank 16 and pictures of 252 px."""
    build = Build(sam2={}, plm_model_name=str(qwen))
    model = shaken(new_model("sam2_hiera_l.yaml", str(meta), build, dtype=torch.float32, train_encoder=False))
    save_weights(tmp_path, "run", "final", model, frozen=True)
    for name, key in (("run_final.torch", "model"), ("run_plm_final.torch", "plm")):
        state = torch.load(tmp_path / name, weights_only=True)[key]
        half = {k: v.bfloat16() if key == "plm" else v for k, v in state.items()}
        torch.save({key: half}, tmp_path / name)
    again = loaded(tmp_path, plm_model_name=str(qwen), model_cfg="sam2_hiera_l.yaml", base_ckpt=str(meta))
    assert again.build.lora_r == 16 and again.reader.side == 252
    assert {p.dtype for p in again.network.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_of(again), logits_of(model), rtol=0.1, atol=0.1)


def test_what_a_checkpoint_lacks_is_filled_from_the_base(meta: Path, qwen: Path, tmp_path: Path) -> None:
    build = Build(sam2={}, plm_model_name=str(qwen), lora_r=4, lora_alpha=8, plm_image_side=PICTURE_SIDE)
    model = shaken(new_model("sam2_hiera_s.yaml", str(meta), build, dtype=torch.float32, train_encoder=False))
    save_weights(tmp_path, "run", "final", model, frozen=True)
    content = torch.load(tmp_path / "run_final.torch", weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if k.startswith("sam_mask_decoder.")}
    torch.save(content, tmp_path / "run_final.torch")
    with pytest.raises(UsageError, match="missing"):
        loaded(tmp_path)
    torch.testing.assert_close(logits_of(loaded(tmp_path, base_ckpt=str(meta))), logits_of(model), rtol=0, atol=1e-6)


# What does not fit.


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("no_final", "--final_ckpt {out}/run_final.torch: no such file"),
        ("no_plm", "--plm_ckpt {out}/run_plm_final.torch: no such file"),
        ("swapped", "--final_ckpt {out}/run_final.torch: holds no weights, by themselves or as 'model', but a dict of"),
        ("plm_is_sam", "--plm_ckpt {out}/run_plm_final.torch: holds no weights, by themselves or as 'plm', but"),
        ("cut", "--final_ckpt {out}/run_final.torch: is cut off or damaged"),
        ("pickle", "--final_ckpt {out}/run_final.torch: "),
        ("config", "--final_ckpt {out}/run_final.torch with --model_cfg sam2_hiera_l.yaml: the "),
        ("no_config", "--model_cfg sam2_hiera_xl.yaml: no such config"),
        ("rank", "--plm_ckpt {out}/run_plm_final.torch: does not fit the language adapter ("),
        ("lora", "--lora_ckpt {out}: no folder with adapter_model.safetensors"),
        ("base", "--base_ckpt {out}/gone.pt: no such file or folder"),
        ("language", "--plm_model_name {out}: "),
        ("told", "--final_ckpt {out}/run_final.torch: what it says of the network cannot be read"),
    ],
)
def test_a_wrong_file_is_one_clear_line(harm: str, told: str, saved: tuple[Path, Tensor]) -> None:
    out = saved[0]
    final, plm = out / "run_final.torch", out / "run_plm_final.torch"
    how: dict[str, Any] = {}
    if harm in ("no_final", "no_plm"):
        (final if harm == "no_final" else plm).unlink()
    elif harm == "swapped":
        shutil.copy(plm, final)
    elif harm == "plm_is_sam":
        shutil.copy(final, plm)
    elif harm == "cut":
        final.write_bytes(final.read_bytes()[: final.stat().st_size // 2])
    elif harm == "pickle":
        torch.save({"model": Path("x")}, final)
    elif harm == "rank":
        content = torch.load(final, weights_only=True)
        content["convseg"]["lora_r"] = 8
        torch.save(content, final)
    elif harm == "told":
        torch.save({**torch.load(final, weights_only=True), "convseg": [1, 2]}, final)
    else:
        how = {
            "config": {"model_cfg": "sam2_hiera_l.yaml"},
            "no_config": {"model_cfg": "sam2_hiera_xl.yaml"},
            "lora": {"lora_ckpt": str(out)},
            "base": {"base_ckpt": str(out / "gone.pt")},
            "language": {"plm_model_name": str(out)},
        }[harm]
    with pytest.raises(UsageError) as caught:
        loaded(out, **how)
    assert str(caught.value).startswith(told.format(out=out)), str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.hint


def test_a_lora_of_another_rank_is_refused(saved: tuple[Path, Tensor], sam2: Path, qwen: Path) -> None:
    torch.manual_seed(0)
    build = Build(sam2={}, plm_model_name=str(qwen), lora_r=2, lora_alpha=8, plm_image_side=PICTURE_SIDE)
    other = new_model("", str(sam2), build, dtype=torch.float32, train_encoder=False)
    with pytest.raises(UsageError, match=r"--resume-lora-path .*: its r is 4, the model's 2"):
        load_lora(other.network.adapter, str(saved[0] / "lora_plm_adapter_final"), "--resume-lora-path")
    with pytest.raises(UsageError, match=r"--resume-plm-path .* does not fit the language adapter \(0 missing"):
        load_plm(other.network.adapter, saved[0] / "run_plm_final.torch", "--resume-plm-path")


def test_a_lora_of_another_alpha_is_refused(saved: tuple[Path, Tensor], model: Model) -> None:
    told = saved[0] / "lora_plm_adapter_final" / "adapter_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "lora_alpha": 64}))
    with pytest.raises(UsageError, match="its lora-alpha is 64, the model's 8"):
        load_lora(model.network.adapter, str(told.parent), "--lora_ckpt")


def test_a_home_folder_is_found(saved: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved[0]))
    again = trained_model("~/run_final.torch", "~/run_plm_final.torch", lora_ckpt="~/lora_plm_adapter_final")
    torch.testing.assert_close(logits_of(again), saved[1], rtol=0, atol=1e-6)


# Whole or not at all.


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos"), SafetensorError("full")]


@pytest.mark.parametrize("error", FAILURES)
def test_a_failed_save_leaves_the_earlier_one(
    error: Exception, saved: tuple[Path, Tensor], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = saved
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def half(_: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OutputError, match=r"disk full|cannot write"):
        save_weights(out, "run", "final", model, frozen=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    monkeypatch.undo()
    torch.testing.assert_close(logits_of(loaded(out)), said, rtol=0, atol=1e-6)


def test_a_save_replaces_the_earlier_one(saved: tuple[Path, Tensor], model: Model) -> None:
    out, said = saved
    save_weights(out, "run", "final", shaken(model), frozen=True)
    assert (logits_of(loaded(out)) - said).abs().max() > 1e-3
    assert [p.name for p in out.iterdir() if "tmp" in p.name] == []
