"""`Detector`: what the grounders share that run an open-vocabulary detector of transformers on this machine."""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dataengine.devices import Devices, device_names, in_bfloat16
from dataengine.hub import identity_of, load_from_hub, load_model, model_folder
from dataengine.images import Photo, RgbArray, shrunk
from dataengine.journal import Answer, digest
from dataengine.masks import Mask
from dataengine.records import DescribedRegion, Detection
from dataengine.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

FLAG = "--grounder_model"

Job = tuple[Photo, str]  # a photo and a label


class Detector(ABC):
    """A detector: it encodes each photo once and then looks for each of its labels; what waits is done together.

    What is computed of a photo stays on its device while the photo lives.

    Class attributes of a detector:
        default_model: hub id of the published weights.
        kinds: the values of `model_type` it takes.
        classes: names in transformers of the model and the processor.
        least_score: scores above it are instances, unless `--box_threshold` says otherwise.
        side: pixels of the long side of what the model sees at most; larger photos are shrunk to it first.
    """

    name: str
    needs_boxes = False
    detects = True

    default_model: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    classes: ClassVar[tuple[str, str]]
    least_score: ClassVar[float]
    side: ClassVar[int]

    def __init__(self, settings: Settings) -> None:
        where = settings.grounder_model or self.default_model
        folder = model_folder(FLAG, where, settings.grounder_revision)
        names = device_names(settings.device)
        self.threshold = settings.box_threshold or self.least_score
        self._halves = {name: in_bfloat16(name, settings.precision) for name in names}
        self._loaded = {name: self._load(where, folder, name) for name in names}
        self._kept: dict[str, weakref.WeakKeyDictionary[Photo, Any]] = {n: weakref.WeakKeyDictionary() for n in names}
        self._homes: weakref.WeakKeyDictionary[Photo, str] = weakref.WeakKeyDictionary()
        self._turns = itertools.cycle(names)
        self._devices = Devices(names, settings.device_batch)
        precision = sorted({"bfloat16" if half else "float32" for half in self._halves.values()})
        identity = identity_of(folder)
        self.version = f"1/{digest([identity, self.threshold, precision])}"
        self.detail: Mapping[str, str] = {
            **libraries("torch", "transformers"),
            "model": where,
            "files": identity,
            "precision": ", ".join(precision),
        }

    def _load(self, where: str, folder: Path, device: str) -> tuple[Any, Any]:
        """Model and processor for a device; each has its own, since a tokenizer cannot be used by two threads."""
        import torch
        import transformers

        model_class, processor_class = (getattr(transformers, name) for name in self.classes)
        model = load_model(FLAG, where, folder, model_class, self.kinds, dtype=torch.float32)

        def load() -> tuple[Any, Any]:
            return model.to(device), processor_class.from_pretrained(folder)

        return load_from_hub(FLAG, load, where)

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
        """The instances that score above the threshold, best first; boxes lie inside the photo.

        Raises:
            StageError: the device's memory does not hold one photo.
        """
        home = self._homes.get(photo) or self._homes.setdefault(photo, next(self._turns))
        job: Job = (photo, plain(region.label))
        return Answer(await self._devices.run(self._detect, job, on=home))

    def _detect(self, device: str, jobs: Sequence[Job]) -> list[list[Detection]]:
        """The instances of each job; called in the device's thread."""
        import torch

        half = self._halves[device]
        kind = torch.device(device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=half):
            model, processor = self._loaded[device]
            features = self._features(device, [photo for photo, _ in jobs])
            return self._find(model, processor, jobs, features)

    def _features(self, device: str, photos: Sequence[Photo]) -> list[Any]:
        kept = self._kept[device]
        new = [photo for photo in dict.fromkeys(photos) if photo not in kept]
        if new:
            pictures = [shrunk(photo.rgb, self.side) for photo in new]
            for photo, encoded in zip(new, self._encode(*self._loaded[device], pictures), strict=True):
                kept[photo] = encoded
        return [kept[photo] for photo in photos]

    @abstractmethod
    def _encode(self, model: Any, processor: Any, pictures: Sequence[RgbArray]) -> list[Any]:
        """What is computed of each picture alone, whatever is looked for in it."""

    @abstractmethod
    def _find(self, model: Any, processor: Any, jobs: Sequence[Job], features: Sequence[Any]) -> list[list[Detection]]:
        """The instances of each job, given the features of its photo."""


def detections(photo: Photo, scores: Tensor, boxes: Tensor, masks: Tensor | None = None) -> list[Detection]:
    """What a model found in a photo, best first.

    Args:
        scores: (N,) 0..1.
        boxes: (N, 4) xyxy in pixels of the photo; cut at its edges, and left out where they lie beside it.
        masks: (N, H, W) numbers other than 0 inside, at any size, if there are.
    """
    sides = boxes.new_tensor([photo.width, photo.height, photo.width, photo.height])
    inside = boxes.float().clamp(min=boxes.new_zeros(4), max=sides).cpu()
    cut = [None] * len(inside) if masks is None else [Mask.from_array(mask).rle for mask in (masks != 0).cpu().numpy()]
    found = [
        Detection(box=(x0, y0, x1, y1), score=score, mask=mask)
        for (x0, y0, x1, y1), score, mask in zip(inside.tolist(), scores.float().cpu().tolist(), cut, strict=True)
        if x0 < x1 and y0 < y1
    ]
    return sorted(found, key=lambda detection: -(detection.score or 0))


def plain(label: str) -> str:
    """A label as a tokenizer takes it: one line, no half surrogate pairs."""
    return " ".join(label.encode("utf-8", "replace").decode("utf-8").split())


def libraries(*names: str) -> dict[str, str]:
    """The versions of installed libraries."""
    from importlib.metadata import version

    return {name: version(name) for name in names}
