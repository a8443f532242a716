"""The grounder `moondream-hf`: Moondream's model from the hub, run on this machine by the code that comes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from dataengine.devices import Devices, device_names, is_out_of_memory
from dataengine.errors import StageError, UsageError
from dataengine.grounders.detector import FLAG, Job, libraries
from dataengine.grounders.moondream import LONGEST, Reply, in_pixels
from dataengine.hub import identity_of, load_from_hub, model_folder
from dataengine.images import Photo
from dataengine.journal import Answer, digest
from dataengine.records import DescribedRegion, Detection
from dataengine.settings import Settings

MODEL = "vikhyatk/moondream2"
REVISION = "2025-06-21"  # pinned: the model's code is run, and must not change unseen


class MoondreamHfGrounder:
    """Moondream 2 on this machine, one picture and label at a time. It sees the photo's view, and gives no scores.

    Raises:
        UsageError: the model's code is not trusted, or the model cannot be loaded.
    """

    name = "moondream-hf"
    needs_boxes = False
    detects = True

    def __init__(self, settings: Settings) -> None:
        if not settings.trust_remote_code:
            hint = "Read it, then allow it with --trust_remote_code"
            raise UsageError("grounder 'moondream-hf' runs code that comes with its model", hint=hint)
        where = settings.grounder_model or MODEL
        revision = settings.grounder_revision or (None if settings.grounder_model else REVISION)
        folder = model_folder(FLAG, where, revision)
        names = device_names(settings.device)
        self._models = {name: _load(where, folder, name, settings.precision) for name in names}
        self._devices = Devices(names, batch=1)
        identity = identity_of(folder)
        self.version = f"1/{digest([identity, settings.vlm_side, settings.precision])}"
        self.detail: Mapping[str, str] = {
            **libraries("torch", "transformers"),
            "model": where,
            "revision": revision or "",
            "files": identity,
            "precision": settings.precision,
        }

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
        """The boxes that Moondream finds for the label.

        Raises:
            StageError: the model's code fails (`model_failed`), gives something else than boxes (`bad_answer`), or the
                device's memory does not hold it.
        """
        job: Job = (photo, region.label)
        return Answer(await self._devices.run(self._detect, job))

    def _detect(self, device: str, jobs: Sequence[Job]) -> list[list[Detection]]:
        """The instances of each job; called in the device's thread."""
        import torch

        with torch.inference_mode():
            return [_boxes(self._models[device], photo, label) for photo, label in jobs]


def _load(where: str, folder: Path, device: str, precision: str) -> Any:
    """The model on a device.

    Not by `from_pretrained`: the class from the hub calls no `post_init`, which transformers 5 wants, and computes
    buffers that no file holds, which transformers 5 leaves unset.
    """
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    def load() -> Any:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        code = getattr(config, "auto_map", {}).get("AutoModelForCausalLM", "")
        kind: Any = get_class_from_dynamic_module(code, folder) if code else None
        if not hasattr(kind, "detect"):
            raise UsageError(f"{FLAG} {where}: its code has no `detect`", hint=f"Name a Moondream, such as {MODEL}")
        model = kind(config)
        missing = model.load_state_dict(_weights(folder), strict=False).missing_keys
        if missing:
            what = f"{len(missing)} weights are not in its files, such as {missing[0]}"
            raise UsageError(f"{FLAG} {where}: {what}", hint="Download it again")
        _cast(model, config, precision)
        return model.to(device).eval()

    return load_from_hub(FLAG, load, where)


def _weights(folder: Path) -> dict[str, Any]:
    """The tensors of a folder's safetensors files, by name."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError("no *.safetensors in it")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _cast(model: Any, config: Any, precision: str) -> None:
    """Weights in the precision asked for; by `auto` in that of `config.json`. Computed buffers stay as they are."""
    import torch

    dtype = getattr(torch, precision) if precision != "auto" else getattr(config, "dtype", None) or torch.bfloat16
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)


def _boxes(model: Any, photo: Photo, label: str) -> list[Detection]:
    try:
        return in_pixels(Reply.model_validate(model.detect(Image.fromarray(photo.view), label)), photo)
    except ValidationError:
        message = f"moondream-hf: the model's `detect` gave no boxes for {label[:LONGEST]!r}"
        raise StageError(message, hint="Check --grounder_revision", reason="bad_answer") from None
    except Exception as error:  # the model's own code
        if is_out_of_memory(error):
            raise
        message = f"moondream-hf: the model's `detect` failed: {type(error).__name__}: {str(error)[:LONGEST]}"
        raise StageError(message, hint="Check --grounder_revision", reason="model_failed") from None
