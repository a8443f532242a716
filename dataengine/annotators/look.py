"""A scene, measured: the accepted regions and whatever else stands out, with words for what they look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from dataengine.annotators import Scene
from dataengine.masks import BoolArray
from dataengine.measures import COLOURS, RING, FloatArray, Picture, Region

SMOOTH, ROUGH = 2.5, 6.0  # standard deviation of lightness in a 5x5 window
DARK, LIGHT = 35.0, 72.0  # L*
LARGE, MEDIUM = 0.12, 0.03  # share of the picture
LEAST_OTHER = 0.004  # share of the picture: a smaller unmasked region is not held against a prompt
TONELESS = frozenset({"black", "white", "beige"})
PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)


def size_word(region: Region) -> str:
    """large, medium or small."""
    return "large" if region.area >= LARGE else "medium" if region.area >= MEDIUM else "small"


def tone_word(region: Region) -> str:
    """dark, light or nothing."""
    if region.colour in TONELESS:
        return ""
    return "dark" if region.lightness < DARK else "light" if region.lightness > LIGHT else ""


def texture_word(region: Region) -> str:
    """smooth, rough or nothing."""
    return "smooth" if region.texture < SMOOTH else "rough" if region.texture > ROUGH else ""


def place_word(region: Region) -> str:
    """Which ninth of the picture the centroid lies in."""
    x, y = region.centre
    return PLACES[min(2, int(y * 3))][min(2, int(x * 3))]


@dataclass(frozen=True, eq=False)
class Look:
    """A scene, measured.

    Attributes:
        regions: the accepted regions, then what no accepted mask covers, largest first.
        indices: the accepted regions' indices; the first len(indices) of `regions`.
    """

    picture: Picture
    regions: tuple[Region, ...]
    indices: tuple[int, ...]

    @classmethod
    def at(cls, scene: Scene) -> Look:
        """Measure a scene."""
        picture = Picture.of(scene.photo.view)
        height, width = picture.size
        masks = [region.mask.resized(height, width).array() for region in scene.regions]
        known = [(region.index, inside) for region, inside in zip(scene.regions, masks, strict=True) if inside.any()]
        others = sorted(_unmasked(picture, masks), key=lambda inside: -int(inside.sum()))
        regions = [Region(picture, inside) for inside in (*(inside for _, inside in known), *others)]
        return cls(picture, tuple(regions), tuple(index for index, _ in known))

    @property
    def known(self) -> int:
        return len(self.indices)

    @cached_property
    def names(self) -> dict[int, str]:
        """For each accepted region that a few words single out among all regions: those words."""
        ways: Sequence[Callable[[Region], str]] = (
            lambda r: r.colour,
            lambda r: f"{tone_word(r)} {r.colour}",
            lambda r: f"{size_word(r)} {r.colour}",
            lambda r: f"{size_word(r)} {tone_word(r)} {r.colour}",
            lambda r: f"{place_word(r)} {r.colour}",
        )
        found: dict[int, str] = {}
        for way in ways:
            said = [" ".join(way(region).split()) for region in self.regions]
            for i in range(self.known):
                sure = self.regions[i].shares.max() >= 0.6 and self.regions[i].pieces == 1
                if i not in found and sure and said.count(said[i]) == 1:
                    found[i] = said[i]
        return found

    def each(self, value: Callable[[Region], float]) -> FloatArray:
        """A value for every region."""
        return np.array([value(region) for region in self.regions], dtype=np.float64)

    def whole(self, value: Callable[[Region], float]) -> FloatArray:
        """A value for every region in one piece: place and shape mean nothing for several, which have NaN."""
        return self.each(lambda r: value(r) if r.pieces == 1 else np.nan)

    def against(self, anchor: int, value: Callable[[Region, Region], float]) -> FloatArray:
        """A value for every region but the anchor, which has NaN."""
        other = self.regions[anchor]
        return np.array([np.nan if r is other else value(r, other) for r in self.regions], dtype=np.float64)

    def share(self, colour: str) -> FloatArray:
        """The share of each region's pixels that have a colour."""
        return self.each(lambda r: float(r.shares[COLOURS.index(colour)]))

    def anywhere(self, colour: str) -> float:
        """The share of the picture's pixels that have a colour."""
        return float((self.picture.colours == COLOURS.index(colour)).mean())


def _unmasked(picture: Picture, masks: Sequence[BoolArray]) -> Iterator[BoolArray]:
    covered = np.logical_or.reduce([np.zeros(picture.size, bool), *masks])
    for label in range(int(picture.regions.max()) + 1):
        rest = (picture.regions == label) & ~covered
        # Opened, because two outlines of one thing never agree to the pixel.
        rest = cv2.morphologyEx(rest.astype(np.uint8), cv2.MORPH_OPEN, RING).astype(bool)
        if rest.mean() >= LEAST_OTHER:
            yield rest
