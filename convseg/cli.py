"""The command line: `convseg train|eval|predict|tiny|scenes`, and train.py and eval.py, which are its first two."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convseg.flags import parser
from dataengine.errors import DataEngineError, UsageError

if TYPE_CHECKING:
    from convseg.checkpoints import Model
    from convseg.data import Loaded, Sample
    from convseg.evaluation import Prediction

EXTRAS = ("torch", "torchvision", "transformers", "peft", "tensorboard", "datasets", "safetensors")
WORKERS = 4
SHOWN = 24
SQUARE_RANGE = (16, 4096)  # pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 all well, 1 something failed, 2 wrong usage, 130 or 143 interrupted."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    from dataengine.console import complain

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not go with worker processes
    try:
        return COMMANDS[options.command](options)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        complain(f"error: {error.name} is not installed. Install it with: pip install -e '.[train]'")
        return 2
    except DataEngineError as error:
        complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        complain("stopped")
        return 130


def train_command(options: argparse.Namespace) -> int:
    """`convseg train`."""
    from convseg.console import training_reporter
    from convseg.settings import TrainSettings
    from convseg.training import train
    from dataengine.console import say

    settings = TrainSettings(**_given(options))
    _check_numbers(vars(settings))
    if Path(settings.name).name != settings.name:
        raise UsageError(f"--name {settings.name}: must be a plain file name", hint="--out names the folder")
    leads = os.environ.get("RANK", "0") == "0"
    with training_reporter(leads=leads) as reporter:
        code = train(settings, reporter)
    items = settings.data_dir / "items.json"
    if code == 0 and leads and items.is_file():
        stem = settings.out / settings.name
        say(
            f"Next: python eval.py --input_json {items} "
            f"--final_ckpt {stem}_final.torch --plm_ckpt {stem}_plm_final.torch"
        )
    return code


AT_LEAST: dict[str, float] = {
    "steps": 1, "batch_size": 1, "acc": 1, "lora_r": 1, "lora_alpha": 1, "log_every": 1, "workers": 0, "keep": 0,
    "save_every": 0, "val_every": 0, "val_count": 0, "er_k": 0, "er_it": 0, "lr": 0, "min_lr": 0, "wd": 0, "seed": 0,
    "plm_image_side": 28, "warmup_updates": -1, "num_samples": 1, "limit": 1, "show": 0, "count": 1,
}  # fmt: skip
MOST_SEED = 2**32 - 1


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Refuse numbers that mean nothing; those that are not given are None or not there."""
    for name, least in AT_LEAST.items():
        value = given.get(name)
        if value is not None and not value >= least:  # so that "nan" is refused too
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value}: must be at least {least}", hint="See --help")
    if (given.get("seed") or 0) > MOST_SEED:
        raise UsageError(f"--seed {given['seed']}: must be at most {MOST_SEED}", hint="Any smaller number does")
    low, high = SQUARE_RANGE
    if given.get("max_dim") and not low <= given["max_dim"] <= high:
        raise UsageError(f"--max-dim {given['max_dim']}: must be {low} to {high}, or left out", hint="1024 is usual")


def eval_command(options: argparse.Namespace) -> int:
    """`convseg eval`."""
    import tempfile

    from convseg.distributed import memory_told
    from dataengine.run_folder import make_folder

    given = _given(options)
    if bool(given.get("input_json")) == bool(given.get("hf_dataset")):
        raise UsageError(
            "name what to evaluate on: either --input_json or --hf_dataset", hint="See: convseg eval --help"
        )
    if given.get("input_json") and (useless := [name for name in given if name.startswith("hf_")]):
        raise UsageError(f"--{useless[0]} says nothing of --input_json", hint="Leave one of them out")
    _check_numbers(given)
    for folder in (given.setdefault("out", Path("convseg_eval")), given.get("save_preds")):
        if folder:
            make_folder(folder)
    with tempfile.TemporaryDirectory(prefix="convseg_") as temporary:
        splits = _splits(given, Path(temporary))
        model, device, dtype = _model(given)
        with memory_told(device, "Use --precision bf16, or another --device"):
            for split, samples in splits.items():
                _evaluate(given, split, samples, model, device, dtype)
    return 0


def _splits(given: dict[str, Any], folder: Path) -> dict[str, list[Sample]]:
    """The samples by split, all checked; the only split of a file has no name."""
    from convseg.console import checking
    from convseg.data import checked, read_hf, read_items, usable
    from dataengine.console import say

    limit = given.get("limit")
    loaded: dict[str, Loaded]
    if given.get("input_json"):
        source = str(given["input_json"])
        loaded = {"": read_items(given["input_json"], limit)}
    else:
        source = given["hf_dataset"]
        names = [name for name in given.get("hf_splits", "").split(",") if name]
        loaded = read_hf(source, given.get("hf_config"), names, given.get("hf_cache_dir"), limit, folder)
    workers = given.get("workers", WORKERS)
    splits = {}
    for split, listed in loaded.items():
        with checking() as progress:
            found = checked(listed, workers, progress)
        named = f"{source} {split}".strip()
        splits[split] = usable(found, named, skip_bad=given.get("skip_bad", False), say=say)
    return splits


def _model(given: dict[str, Any]) -> tuple[Model, str, Any]:
    """The network on its device, in evaluation mode, and what it computes in."""
    import torch

    from convseg.checkpoints import trained_model
    from convseg.distributed import number_type
    from dataengine.devices import device_names

    device = device_names(given.get("device", "auto"))[0]
    dtype = number_type(device, given.get("precision", "auto"))
    model = trained_model(
        given["final_ckpt"],
        given["plm_ckpt"],
        lora_ckpt=given.get("lora_ckpt"),
        model_cfg=given.get("model_cfg"),
        base_ckpt=given.get("base_ckpt"),
        plm_model_name=given.get("plm_model_name"),
        dtype=dtype if device != "cpu" else torch.float32,
    )
    model.network.to(device)
    model.network.train(False)
    return model, device, dtype


def _evaluate(given: dict[str, Any], split: str, samples: list[Sample], model: Model, device: str, dtype: Any) -> None:
    from convseg.console import print_results, progress_of
    from convseg.data import data_digest
    from convseg.evaluation import predictions, results_of, write_results
    from convseg.page import Extremes, page
    from dataengine.console import say
    from dataengine.run_folder import write_whole

    out: Path = given["out"] / split
    extremes = Extremes(given.get("show", SHOWN))
    several = given.get("multimask", False)
    seen, overlaps = [], []
    found = predictions(model, samples, device, dtype, workers=given.get("workers", WORKERS), several=several)
    with progress_of("evaluating", len(samples)) as advance:
        for prediction in found:
            seen.append(prediction.sample)
            overlaps.append(prediction.overlap)
            extremes.see(prediction)
            if given.get("save_preds"):
                save_prediction(given["save_preds"] / split, prediction)
            advance()
    results = results_of(seen, overlaps)
    source = str(given.get("input_json") or given["hf_dataset"])
    told = {
        "dataset": f"{source} {split}".strip(),
        "data_digest": data_digest(samples),
        "model": dict(model.weights),
        "mask": "best of three" if several else "single",
        "precision": str(dtype).removeprefix("torch."),
    }
    write_results(out / "results.json", results, told)
    model_told = ", ".join(f"{name} {digest}" for name, digest in model.weights.items())
    made_by = [("data", f"{told['dataset']} ({told['data_digest']})"), ("model", model_told)]
    write_whole(out / "report.html", page(f"Evaluation of {told['dataset']}", results, extremes, made_by).encode())
    print_results(results, split)
    say(f"Look at {out / 'report.html'}; every prompt's IoU is in {out / 'results.json'}")


def save_prediction(folder: Path, prediction: Prediction) -> None:
    """Write a prediction's mask, true mask, panel and prompt, named by its id."""
    import numpy as np

    from convseg.page import picture_of
    from dataengine.packing import png
    from dataengine.run_folder import write_whole

    stem = file_stem(prediction.sample.id)
    for kind, mask in (("pred", prediction.predicted), ("gt", prediction.truth)):
        write_whole(folder / f"{stem}_{kind}.png", png(mask.astype(np.uint8) * 255), durable=False)
    write_whole(folder / f"{stem}_panel.jpg", picture_of(prediction), durable=False)
    write_whole(folder / f"{stem}_prompt.txt", f"{prediction.sample.prompt}\n".encode(), durable=False)


def file_stem(name: str) -> str:
    """A sample's id as a file name: what may not stand in one becomes `_`, and then a digest tells it from others."""
    import hashlib
    import re

    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:150]
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def predict_command(options: argparse.Namespace) -> int:
    """`convseg predict`."""
    import numpy as np
    import torch

    from convseg.data import Place, read_rgb
    from convseg.distributed import computing_in, memory_told
    from convseg.evaluation import masks_of
    from convseg.panels import panel
    from dataengine.console import say
    from dataengine.packing import png
    from dataengine.run_folder import write_whole

    given = _given(options)
    prompts = [prompt.strip() for prompt in given["prompt"]]
    if not all(prompts):
        raise UsageError("--prompt is empty", hint='Say what to segment: --prompt "Segment the cup"')
    rgb = read_rgb(given["image"])
    model, device, dtype = _model(given)
    place = Place.of(rgb.shape[0], rgb.shape[1], model.square)
    picture = model.reader.picture(rgb)
    inputs = [model.reader([picture], [prompt]) for prompt in prompts]
    pixels: torch.Tensor = model.shaping().pixels(rgb, place).to(device)
    out: Path = given.get("out_dir", Path("predictions"))
    with memory_told(device, "Use --precision bf16, or another --device"), computing_in(device, dtype):
        masks = list(masks_of(model.network, pixels, inputs, place, several=given.get("multimask", False)))
    for number, (prompt, mask) in enumerate(zip(prompts, masks, strict=True)):
        stem = f"{file_stem(given['image'].stem)}_{number}"
        share = f"{100 * mask.mean():.1f} % of the photo"
        write_whole(out / f"{stem}_mask.png", png(mask.astype(np.uint8) * 255))
        write_whole(out / f"{stem}_overlay.png", png(panel(rgb, None, mask, prompt, share)))
        say(f"{prompt}: {share}; {out / f'{stem}_mask.png'}, {out / f'{stem}_overlay.png'}")
    return 0


def tiny_command(options: argparse.Namespace) -> int:
    """`convseg tiny`."""
    from convseg.scenes import every_text
    from convseg.tiny import write_tiny_qwen, write_tiny_sam2
    from dataengine.console import say

    sam, qwen = write_tiny_sam2(options.out / "sam2"), write_tiny_qwen(options.out / "qwen", every_text())
    say(f"Next: python train.py --checkpoint {sam} --plm-model-name {qwen} --data-dir …")
    return 0


def scenes_command(options: argparse.Namespace) -> int:
    """`convseg scenes`."""
    from convseg.scenes import write_scenes
    from dataengine.console import say

    given = _given(options)
    _check_numbers(given)
    out: Path = given.pop("out")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out {out}: is not empty", hint="Choose a new folder")
    write_scenes(out, given.get("count", 200), seed=given.get("seed", 0))
    say(f"Next: python train.py --data-dir {out} …")
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "command"}


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train_command,
    "eval": eval_command,
    "predict": predict_command,
    "tiny": tiny_command,
    "scenes": scenes_command,
}

if __name__ == "__main__":
    sys.exit(main())
