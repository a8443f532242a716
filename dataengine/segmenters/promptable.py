"""What the segmenters `sam2` and `sam3` share: a photo is encoded once, for its pool and for all its boxes."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib.metadata
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dataengine.devices import Devices, device_names, in_bfloat16
from dataengine.images import Photo, RgbArray
from dataengine.journal import Answer, digest
from dataengine.masks import BoolArray, Mask
from dataengine.records import Xyxy
from dataengine.settings import Settings

if TYPE_CHECKING:
    from dataengine.segmenters.promptable_model import Features, FloatArray, Normalization, PromptableModel

CODE_VERSION = "1"  # of all that makes masks here and in the modules beside it


class PromptableSegmenter:
    """Masks from a model of the SAM 2 kind, with a copy of it on each device.

    What the encoder makes of a photo is kept while the `Photo` lives; photos that wait are encoded together.

    Args:
        settings: those of the run.
        model: `Sam2Model` or `Sam3TrackerModel`, float32, in evaluation mode, on the CPU.
        weights: what identifies its weights.
        source: where it was loaded from, as the user named it.

    Attributes:
        models: the model on each device, by the device's name.
        rules: which masks stay in the pool.
    """

    name: str
    normalization: Normalization

    def __init__(self, settings: Settings, model: Any, weights: str, source: str) -> None:
        from dataengine.segmenters.grid_decoder import PoolRules

        names = device_names(settings.device)
        self.models = self._on_devices(model, names, settings.precision)
        self.rules = PoolRules()
        self._settings = settings
        self._devices = Devices(names, settings.device_batch)
        self._encoded: weakref.WeakKeyDictionary[Photo, asyncio.Future[Features]] = weakref.WeakKeyDictionary()
        precisions = sorted({str(model.dtype).removeprefix("torch.") for model in self.models.values()})
        answers = [weights, precisions, settings.points_per_side, settings.min_pool_pixels]
        self.version = f"{CODE_VERSION}/{digest(answers)}"
        self.detail: Mapping[str, str] = {
            "model": source,
            "weights": weights,
            "device": ", ".join(names),
            "precision": ", ".join(precisions),
            **{package: importlib.metadata.version(package) for package in ("transformers", "torch", "torchvision")},
        }

    def _on_devices(self, model: Any, names: Sequence[str], precision: str) -> dict[str, PromptableModel]:
        import torch

        from dataengine.segmenters.promptable_model import PromptableModel

        models = {}
        for i, name in enumerate(names):
            own = (copy.deepcopy(model) if i + 1 < len(names) else model).to(name)
            dtype = torch.bfloat16 if in_bfloat16(name, precision) else torch.float32
            models[name] = PromptableModel(own, name, dtype, self.normalization)
        return models

    async def propose(self, photo: Photo) -> Answer[list[Mask]]:
        """The pool: `SAM2AutomaticMaskGenerator`'s masks of the whole photo, at the decoder's resolution.

        Raises:
            StageError: the device's memory does not hold one photo or point.
        """
        features = await self._features(photo)
        masks = await self._devices.run(self._pool, (features, (photo.height, photo.width)), on=features.device)
        return Answer(await asyncio.to_thread(lambda: [Mask.from_array(mask) for mask in masks]))

    async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
        """A mask for each box, at the photo's size.

        Raises:
            StageError: as `propose`.
        """
        if not boxes:
            return Answer([])
        features = await self._features(photo)
        size = [photo.width, photo.height, photo.width, photo.height]
        relative = (np.array(boxes, np.float64) / size).astype(np.float32)
        logits = await self._devices.run(self._cut, (features, relative), on=features.device)
        return Answer(await asyncio.to_thread(_grown, logits, photo.height, photo.width))

    async def _features(self, photo: Photo) -> Features:
        """What the encoder makes of a photo; a failed or cancelled attempt is made again by who asks next."""
        encoding = self._encoded.get(photo)
        if encoding is None or _failed(encoding):
            encoding = asyncio.ensure_future(self._devices.run(self._encode, photo.rgb))
            encoding.add_done_callback(functools.partial(self._forget_failed, weakref.ref(photo)))
            self._encoded[photo] = encoding
        return await asyncio.shield(encoding)  # who gives up does not take it from who waits for the same

    def _forget_failed(self, of: weakref.ref[Photo], encoding: asyncio.Future[Features]) -> None:
        """A failure's traceback holds the photo, which would never go while the failure is kept for it."""
        photo = of()
        if photo is not None and _failed(encoding) and self._encoded.get(photo) is encoding:
            del self._encoded[photo]

    def _encode(self, device: str, photos: Sequence[RgbArray]) -> Sequence[Features]:
        return self.models[device].encode(photos)

    def _cut(self, device: str, jobs: Sequence[tuple[Features, FloatArray]]) -> Sequence[FloatArray]:
        return [self.models[device].cut(features, boxes) for features, boxes in jobs]

    def _pool(self, device: str, jobs: Sequence[tuple[Features, tuple[int, int]]]) -> Sequence[BoolArray]:
        points, least = self._settings.points_per_side, self._settings.min_pool_pixels
        return [self.models[device].pool(features, size, points, least, self.rules) for features, size in jobs]


def _failed(encoding: asyncio.Future[Features]) -> bool:
    return encoding.done() and (encoding.cancelled() or encoding.exception() is not None)


def _grown(logits: FloatArray, height: int, width: int) -> list[Mask]:
    """Logits (n, h, w) as masks of the photo's size: bilinear, then cut at 0 (SAM2Transforms.postprocess_masks)."""
    size = (width, height)
    return [Mask.from_array(cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) > 0) for one in logits]
