"""Drawn scenes: flat shapes on a flat ground, so that every mask, colour and place is known exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from dataengine.annotators import Scene, SceneRegion
from dataengine.images import Photo, RgbArray, shrunk
from dataengine.masks import BoolArray, Mask

Rgb = tuple[int, int, int]

BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (128, 128, 128)
RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 140, 50), (30, 60, 200), (240, 220, 40)
ORANGE, PURPLE, PINK, BROWN, BEIGE = (245, 140, 20), (120, 40, 160), (250, 160, 190), (110, 70, 30), (225, 205, 170)


@dataclass(eq=False)
class Drawing:
    """A picture that keeps the exact mask of every shape drawn on it; a later shape hides an earlier one.

    Attributes:
        rgb: (H, W, 3) uint8.
        shapes: mask by name, in the order drawn, the ground left out.
    """

    rgb: RgbArray
    shapes: dict[str, BoolArray] = field(default_factory=dict)

    @classmethod
    def ground(cls, width: int = 160, height: int = 120, colour: Rgb = GREY) -> Drawing:
        return cls(np.full((height, width, 3), colour, np.uint8))

    def box(self, name: str, colour: Rgb, x0: int, y0: int, x1: int, y1: int) -> Drawing:
        """A rectangle; x1 and y1 are outside."""
        inside = np.zeros(self.rgb.shape[:2], bool)
        inside[y0:y1, x0:x1] = True
        return self._add(name, colour, inside)

    def disc(self, name: str, colour: Rgb, x: int, y: int, radius: int) -> Drawing:
        drawn = cv2.circle(np.zeros(self.rgb.shape[:2], np.uint8), (x, y), radius, 1, -1)
        return self._add(name, colour, drawn.astype(bool))

    def polygon(self, name: str, colour: Rgb, *points: tuple[int, int]) -> Drawing:
        drawn = cv2.fillPoly(np.zeros(self.rgb.shape[:2], np.uint8), [np.array(points, np.int32)], 1)
        return self._add(name, colour, drawn.astype(bool))

    def noisy(self, name: str, spread: int, seed: int = 0) -> Drawing:
        """Gives a shape a rough surface."""
        inside = self.shapes[name]
        noise = np.random.default_rng(seed).integers(-spread, spread + 1, size=(*inside.shape, 1))
        speckled = np.clip(self.rgb.astype(np.int64) + noise, 0, 255).astype(np.uint8)
        self.rgb[inside] = speckled[inside]
        return self

    def _add(self, name: str, colour: Rgb, inside: BoolArray) -> Drawing:
        self.rgb[inside] = colour
        for other in self.shapes.values():
            other &= ~inside
        self.shapes[name] = inside
        return self

    def mask(self, name: str) -> Mask:
        return Mask.from_array(self.shapes[name])

    def xyxy(self, name: str) -> tuple[float, float, float, float]:
        """The tight box with its far sides outside, as segmenters take it."""
        x, y, w, h = cv2.boundingRect(self.shapes[name].astype(np.uint8))
        return float(x), float(y), float(x + w), float(y + h)

    def photo(self) -> Photo:
        return photo_of(self.rgb)

    def scene(self, *names: str) -> Scene:
        """The photo with these shapes (all, where none is named) as accepted regions 0, 1, …"""
        chosen = names or tuple(self.shapes)
        regions = (SceneRegion(i, name, name, self.mask(name)) for i, name in enumerate(chosen))
        return Scene(self.photo(), tuple(regions))


def photo_of(rgb: RgbArray) -> Photo:
    return Photo(Path("drawn.png"), rgb, hashlib.sha256(rgb.tobytes()).hexdigest())


def photograph(name: str, side: int) -> RgbArray:
    """A photo that comes with scikit-image, with a long side of at most `side` pixels."""
    rgb: RgbArray = getattr(data, name)()
    return shrunk(rgb, side)


def best_iou(wanted: Mask, found: Sequence[Mask]) -> float:
    """The IoU of the mask that fits best, whatever the size of the found ones."""
    return max((wanted.iou(mask.resized(wanted.height, wanted.width)) for mask in found), default=0.0)
