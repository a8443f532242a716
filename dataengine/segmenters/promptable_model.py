"""A SAM 2 or SAM 3 on one device: photos encoded once, then masks from boxes and from a grid of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import nms

from dataengine.devices import Batch
from dataengine.images import RgbArray
from dataengine.masks import BoolArray
from dataengine.segmenters.grid_decoder import GridDecoder, PoolRules

FloatArray = npt.NDArray[np.float32]
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and deviation of R, G, B in 0..1

POINTS_AT_ONCE = {"cpu": 2, "cuda": 256}  # a point takes some 30 MB in float32; on a CPU fewer are faster
BOXES_AT_ONCE = 64


@dataclass(frozen=True)
class Features:
    """What the encoder made of one photo.

    Attributes:
        maps: (1, C, h, w) each, finest first, on the device.
        device: torch's name of it.
    """

    maps: tuple[Tensor, ...]
    device: str


class PromptableModel:
    """A model on one device. Its methods are called in one thread.

    Args:
        model: `Sam2Model` or `Sam3TrackerModel`, float32, in evaluation mode, on the device.
        device: torch's name of it.
        dtype: bfloat16 or float32: of the encoder, by autocast as in Meta's examples, and of the decoders.
        normalization: of the pixels.
    """

    def __init__(self, model: Any, device: str, dtype: torch.dtype, normalization: Normalization) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.side = int(model.prompt_encoder.input_image_size)
        self._mean, self._deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in normalization)
        self._points = Batch(POINTS_AT_ONCE["cuda" if device.startswith("cuda") else "cpu"])
        self._boxes = Batch(BOXES_AT_ONCE)

    @torch.inference_mode()
    def encode(self, photos: Sequence[RgbArray]) -> list[Features]:
        """One pass of the encoder over all the photos (H, W, 3), of any sizes."""
        pixels = torch.stack([self.pixels(rgb) for rgb in photos])
        with self._autocast():
            maps = self.model.get_image_features(pixels, return_dict=True).fpn_hidden_states
        sizes = self.model.backbone_feature_sizes
        used = list(maps[: len(sizes)])  # SAM 3 makes a coarser one that its decoder does not see
        used[-1] = used[-1] + self.model.no_memory_embedding  # (h w, n, C)
        shaped = [m.permute(1, 2, 0).unflatten(2, tuple(size)) for m, size in zip(used, sizes, strict=True)]
        return [Features(tuple(m[i : i + 1].clone() for m in shaped), self.device) for i in range(len(photos))]

    def pixels(self, rgb: RgbArray) -> Tensor:
        """(3, side, side): shrunk or grown to a square with antialiasing in float, normalised.

        As `SAM2Transforms` (sam2/utils/transforms.py); transformers' processors round to 8 bits in between.
        """
        image = torch.tensor(rgb, device=self.device).permute(2, 0, 1).float() / 255
        size = (self.side, self.side)
        square = functional.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        return (square - self._mean) / self._deviation

    @torch.inference_mode()
    def cut(self, features: Features, boxes: FloatArray) -> FloatArray:
        """The mask of each box as logits, inside where above 0.

        One mask a box, as `SAM2ImagePredictor.predict(box=…, multimask_output=False)`.

        Args:
            boxes: (n, 4) xyxy in 0..1 of the photo's width and height.

        Returns:
            (n, 4h, 4w), over the whole photo.
        """
        maps = [m.float() for m in features.maps]
        places = self.model.get_image_wide_positional_embeddings()

        def decode(chunk: Sequence[list[float]]) -> Sequence[FloatArray]:
            corners = torch.tensor([chunk], device=self.device) * self.side
            sparse, dense = self.model.prompt_encoder(None, None, corners, None)
            with self._autocast():
                masks = self.model.mask_decoder(maps[-1], places, sparse, dense, False, maps[:-1])[0]
            return list(masks[0, :, 0].float().cpu().numpy())

        return np.stack(self._boxes.run(decode, boxes.tolist()))

    @torch.inference_mode()
    def pool(self, features: Features, size: tuple[int, int], per_side: int, least: int, rules: PoolRules) -> BoolArray:
        """The masks of all that stands out, by a grid of points, as `SAM2AutomaticMaskGenerator` finds them.

        Scores, stability, areas and boxes are taken at the decoder's resolution, at which its square grid spans the
        photo; only masks that stay are drawn in the photo's shape, with about as many pixels. Masks that are too small
        go before overlaps are looked for, so that they displace none.

        Args:
            size: height and width of the photo.
            per_side: points on each side.
            least: pixels of the photo that a mask must hold.

        Returns:
            (n, h', w'), best score first.
        """
        decoder = GridDecoder(self.model, list(features.maps), self.dtype)
        points = _grid(per_side, self.side)

        def measure(chunk: Sequence[list[float]]) -> Sequence[Tensor]:
            return decoder.candidates(torch.tensor(chunk, device=self.device), rules).unbind()

        found = torch.cat(self._points.run(measure, points))  # (points * 3, 6)
        masks_side = 4 * features.maps[-1].shape[-1]
        enough = max(1.0, least * masks_side**2 / (size[0] * size[1]))
        able = found[:, 5].ge(enough).nonzero()[:, 0]
        kept = able[nms(found[able, 1:5], found[able, 0], rules.overlap)]
        shape = _shape_like(size, masks_side)

        def draw(chunk: Sequence[int]) -> Sequence[BoolArray]:
            logits = decoder.logits(torch.tensor([points[i // 3] for i in chunk], device=self.device))
            chosen = logits[torch.arange(len(chunk)), torch.tensor(chunk) % 3]
            drawn = functional.interpolate(chosen[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
            return list((drawn > 0).cpu().numpy())

        masks = self._points.run(draw, kept.tolist())
        return np.stack(masks) if masks else np.zeros((0, *shape), bool)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def _grid(per_side: int, side: int) -> list[list[float]]:
    """Points x, y in pixels, evenly over the square, row by row (`build_point_grid` in sam2/utils/amg.py)."""
    line = ((np.arange(per_side) + 0.5) * side / per_side).tolist()
    return [[x, y] for y in line for x in line]


def _shape_like(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width in the proportion of `size` with about `side` * `side` pixels, no more than `size`."""
    height, width = size
    scale = min(1.0, side / (height * width) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))
