"""What can be measured of a photo without any model: even regions, colour names, texture, shape, and how regions meet.

All of it works on a picture of at most 320 px a side; colours are CIE L*a*b* (L 0..100), lengths are shares of the
picture's size, and everything is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from skimage import graph
from skimage.segmentation import felzenszwalb

from dataengine.images import RgbArray, shrunk
from dataengine.masks import BoolArray

FloatArray = npt.NDArray[np.float64]
LabelArray = npt.NDArray[np.int64]

SIDE = 320
COLOURS = (
    "black",
    "white",
    "grey",
    "beige",
    "brown",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
)
SMALLEST_REGION = 0.0025  # share of the picture
RING = np.ones((5, 5), np.uint8)  # reaches 2 px beyond an outline: anti-aliasing is about that wide


def to_lab(rgb: RgbArray) -> npt.NDArray[np.float32]:
    """CIE L*a*b* under D65, float32 (H, W, 3)."""
    return np.asarray(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab), dtype=np.float32)


def even_regions(rgb: RgbArray, levels: Sequence[float]) -> list[LabelArray]:
    """Partition a picture into regions of even colour, once for each level; labels 0.. as (H, W).

    Mean-shift filtering (Comaniciu & Meer 2002), Felzenszwalb & Huttenlocher's graph segmentation (2004), then
    neighbours are merged, closest first, while their mean colours differ by less than the level (in L*a*b*, with
    lightness counted 0.7, because shade changes more within a thing than its hue).
    """
    even = cv2.pyrMeanShiftFiltering(np.ascontiguousarray(rgb), 8, 16)
    smallest = max(4, int(rgb.shape[0] * rgb.shape[1] * SMALLEST_REGION))
    labels = felzenszwalb(even, scale=150, sigma=0.5, min_size=smallest)
    lab = to_lab(np.asarray(even, dtype=np.uint8))
    return [_merged(labels, lab, level) for level in levels]


def _merged(labels: LabelArray, lab: npt.NDArray[np.float32], merge_below: float) -> LabelArray:
    def distance(rag: Any, a: int, b: int) -> float:
        one, other = rag.nodes[a], rag.nodes[b]
        return float(np.linalg.norm(one["total"] / one["count"] - other["total"] / other["count"]))

    def merge(rag: Any, source: int, target: int) -> None:
        for what in ("count", "total"):
            rag.nodes[target][what] = rag.nodes[target][what] + rag.nodes[source][what]

    def weight(rag: Any, source: int, target: int, neighbour: int) -> dict[str, float]:
        return {"weight": distance(rag, target, neighbour)}

    regions = _neighbours(labels, lab)
    if regions.number_of_edges() == 0:
        return np.zeros_like(labels)
    for a, b in regions.edges:
        regions.edges[a, b]["weight"] = distance(regions, a, b)
    merged = graph.merge_hierarchical(  # type: ignore[no-untyped-call]
        labels, regions, merge_below, rag_copy=False, in_place_merge=True, merge_func=merge, weight_func=weight
    )
    return np.asarray(np.unique(merged, return_inverse=True)[1].reshape(labels.shape), dtype=np.int64)


def _neighbours(labels: LabelArray, lab: npt.NDArray[np.float32]) -> Any:
    """The region adjacency graph (4-connected), each node with its pixel count and colour total."""
    flat = labels.ravel()
    counts = np.bincount(flat)
    totals = np.stack([np.bincount(flat, lab[..., c].ravel()) for c in range(3)], axis=1) * (0.7, 1, 1)
    regions: Any = graph.RAG()  # type: ignore[no-untyped-call]
    for node, count in enumerate(counts):
        regions.add_node(node, labels=[node], count=count, total=totals[node])
    across = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()])
    down = np.stack([labels[:-1].ravel(), labels[1:].ravel()])
    pairs = np.sort(np.concatenate([across, down], axis=1), axis=0)
    regions.add_edges_from(np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).T.tolist())
    return regions


def colour_indices(lab: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The position in COLOURS of each pixel's colour name, (H, W): the basic colour terms (Berlin & Kay 1969, with
    beige for pale warm greys) as boxes of lightness, chroma and hue angle, fitted by eye on photos."""
    lightness, a, b = lab[..., 0], lab[..., 1], lab[..., 2]
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360
    grey = chroma < 9
    warm = (hue >= 40) & (hue < 105)
    rules = [
        ((lightness < 14) & (chroma < 60), "black"),
        (grey & (lightness < 25), "black"),
        (grey & (lightness > 85), "white"),
        (warm & (chroma < 14) & (lightness > 88), "white"),
        (grey, "grey"),
        (warm & (chroma < 38) & (lightness > 62), "beige"),
        ((hue >= 15) & (hue < 40) & (chroma < 28) & (lightness > 68), "beige"),
        (((hue < 45) | (hue >= 345)) & (lightness > 66), "pink"),
        ((hue >= 345) & (lightness > 52), "pink"),  # deep and hot pinks
        ((hue >= 15) & (hue < 45) & (chroma < 26), "brown"),
        ((hue < 43) & (chroma > 80), "red"),  # pure red, whose hue angle is 40
        ((hue >= 37) & (hue < 78) & (chroma > 48) & (lightness > 50), "orange"),
        ((hue < 45) | (hue >= 350), "red"),
        (hue < 78, "brown"),
        ((hue < 108) & (lightness > 55), "yellow"),
        (hue < 92, "brown"),
        (hue < 195, "green"),
        ((hue < 302) | ((hue < 308) & (chroma > 75)), "blue"),  # pure blue has hue 306
        (lightness > 75, "pink"),
    ]
    names = np.select([r[0] for r in rules], [COLOURS.index(r[1]) for r in rules], COLOURS.index("purple"))
    return names.astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Picture:
    """A reduced photo with what is measured per pixel.

    Attributes:
        rgb: (h, w, 3) uint8, at most 320 px a side.
    """

    rgb: RgbArray

    @classmethod
    def of(cls, rgb: RgbArray) -> Picture:
        """From a picture of any size."""
        return cls(shrunk(rgb, SIDE))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @cached_property
    def lab(self) -> npt.NDArray[np.float32]:
        return to_lab(self.rgb)

    @cached_property
    def colours(self) -> npt.NDArray[np.uint8]:
        return colour_indices(self.lab)

    @cached_property
    def texture(self) -> npt.NDArray[np.float32]:
        """Standard deviation of lightness in a 5x5 window, (h, w)."""
        lightness = self.lab[..., 0]
        mean = cv2.blur(lightness, (5, 5))
        return np.sqrt(np.maximum(cv2.blur(lightness * lightness, (5, 5)) - mean * mean, 0))

    @cached_property
    def luminance(self) -> npt.NDArray[np.float64]:
        """Relative luminance 0..1 as WCAG 2.2 defines it, (h, w)."""
        s = self.rgb.astype(np.float64) / 255
        linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
        return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))

    @cached_property
    def regions(self) -> LabelArray:
        """The even regions that a person would tell apart, labels (h, w)."""
        return even_regions(self.rgb, [10])[0]


@dataclass(frozen=True, eq=False)
class Region:
    """One region of a Picture, measured. Positions and areas are shares of the picture's sides and area."""

    picture: Picture
    inside: BoolArray

    @cached_property
    def area(self) -> float:
        return float(self.inside.mean())

    @cached_property
    def lab(self) -> FloatArray:
        """Mean colour."""
        return np.asarray(self.picture.lab[self.inside].mean(axis=0), dtype=np.float64)

    @cached_property
    def shares(self) -> FloatArray:
        """Share of the region's pixels with each of COLOURS."""
        counts = np.bincount(self.picture.colours[self.inside], minlength=len(COLOURS))
        return np.asarray(counts / max(counts.sum(), 1), dtype=np.float64)

    @cached_property
    def colour(self) -> str:
        return COLOURS[int(self.shares.argmax())]

    @property
    def lightness(self) -> float:
        return float(self.lab[0])

    @cached_property
    def spread(self) -> float:
        """Mean distance of the region's pixels from its mean colour."""
        return float(np.linalg.norm(self.picture.lab[self.inside] - self.lab, axis=1).mean())

    @cached_property
    def luminance(self) -> float:
        return float(self.picture.luminance[self.inside].mean())

    @cached_property
    def texture(self) -> float:
        """Mean texture inside, away from the outline where there is room."""
        core = cv2.erode(self.inside.astype(np.uint8), RING, borderValue=0).astype(bool)
        where = core if core.sum() >= 20 else self.inside
        return float(self.picture.texture[where].mean())

    @cached_property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the centroid, 0..1."""
        height, width = self.picture.size
        ys, xs = np.nonzero(self.inside)
        return (float(xs.mean()) + 0.5) / width, (float(ys.mean()) + 0.5) / height

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """xyxy, 0..1."""
        height, width = self.picture.size
        x, y, w, h = cv2.boundingRect(self.inside.astype(np.uint8))
        return x / width, y / height, (x + w) / width, (y + h) / height

    @cached_property
    def axes(self) -> tuple[float, float]:
        """(elongation, lean): long over short axis of the ellipse of equal moments; the long axis's angle from
        the horizontal, 0..90 degrees."""
        ys, xs = np.nonzero(self.inside)
        if len(xs) < 5:
            return 1.0, 0.0
        values, vectors = np.linalg.eigh(np.cov(np.stack([xs, ys]).astype(np.float64)) + np.eye(2) / 12)
        x, y = vectors[:, 1]
        return float(np.sqrt(values[1] / values[0])), float(np.degrees(np.arctan2(abs(y), abs(x))))

    @cached_property
    def solidity(self) -> float:
        """Area over the area of the convex hull."""
        points = np.stack(np.nonzero(self.inside)[::-1], axis=1).astype(np.int32)
        hull = cv2.contourArea(cv2.convexHull(points)) if len(points) > 2 else 0.0
        return float(min(1.0, len(points) / hull)) if hull else 1.0

    @cached_property
    def room(self) -> float:
        """Radius of the largest circle inside, as a share of the picture's short side."""
        depth = cv2.distanceTransform(np.pad(self.inside, 1).astype(np.uint8), cv2.DIST_L2, 3)
        return float(depth.max()) / min(self.picture.size)

    @cached_property
    def _pieces(self) -> list[BoolArray]:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(self.inside.astype(np.uint8))
        least = 0.1 * self.inside.sum()
        return [labels == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= least]

    @property
    def pieces(self) -> int:
        """Connected pieces that hold at least a tenth of the region."""
        return len(self._pieces)

    @property
    def alike_pieces(self) -> int:
        """The pieces, where they are much alike in size (within a factor 3) and colour (within 15); else 1."""
        areas = [int(piece.sum()) for piece in self._pieces]
        colours = [self.picture.lab[piece].mean(axis=0) for piece in self._pieces]
        apart = max((float(np.linalg.norm(c - colours[0])) for c in colours), default=0.0)
        return len(areas) if areas and max(areas) <= 3 * min(areas) and apart <= 15 else 1

    @cached_property
    def at_edge(self) -> float:
        """Share of the outline that lies on the picture's edge."""
        outline = self.inside & ~cv2.erode(self.inside.astype(np.uint8), np.ones((3, 3)), borderValue=0).astype(bool)
        frame = np.zeros_like(outline)
        frame[[0, -1], :] = frame[:, [0, -1]] = True
        return float((outline & frame).sum() / max(outline.sum(), 1))

    @cached_property
    def ring(self) -> BoolArray:
        """The pixels just outside the outline."""
        return cv2.dilate(self.inside.astype(np.uint8), RING).astype(bool) & ~self.inside

    @cached_property
    def contrast(self) -> float:
        """Distance between the mean colour just outside and inside."""
        if not self.ring.any():
            return 0.0
        return float(np.linalg.norm(self.picture.lab[self.ring].mean(axis=0) - self.lab))

    def contact(self, other: Region) -> float:
        """Share of what lies just outside this region that the other one covers."""
        return float((self.ring & other.inside).sum() / max(self.ring.sum(), 1))

    def enclosure(self, other: Region) -> float:
        """Contact, with the picture's edge counted as open."""
        return self.contact(other) * (1 - self.at_edge)

    def support(self, other: Region) -> float:
        """Share of this region's columns whose lowest pixel stands on the other one (within 4 px); none where the other
        one lies around it rather than under it."""
        if self.enclosure(other) > 0.6:
            return 0.0
        height = self.picture.size[0]
        columns = np.nonzero(self.inside.any(axis=0))[0]
        lowest = height - 1 - self.inside[::-1, columns].argmax(axis=0)
        held = np.zeros(len(columns), bool)
        for step in range(1, 5):
            below = lowest + step
            held |= (below < height) & other.inside[np.minimum(below, height - 1), columns]
        return float(held.mean()) if len(columns) else 0.0
