"""`Mask`: a binary mask as COCO RLE, an array on demand.

RLE is pycocotools' compressed run-length encoding (Lin et al., "Microsoft COCO", 2014): column-major runs.
Area, box, IoU and union are computed on the runs in C; nothing is decoded for them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from dataengine.records import Rle

BoolArray = npt.NDArray[np.bool_]

MOST_PIXELS = 2**31 - 1  # of a mask: its runs are 32-bit numbers in C


@dataclass(frozen=True)
class Mask:
    """A binary mask. What it is resized to is kept with it: one mask is drawn into many pictures of one size.

    Attributes:
        height, width: pixels.
        counts: COCO's compressed run lengths, ASCII.
    """

    height: int
    width: int
    counts: str
    _resized: dict[tuple[int, int, bool], Mask] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"mask must be at least 1x1, but got {self.width}x{self.height}")

    @classmethod
    def from_array(cls, array: npt.NDArray[Any]) -> Mask:
        """From an array (H, W) of bool or numbers; every value other than 0 is inside."""
        if array.ndim != 2:
            raise ValueError(f"mask must have shape (H, W), but got {array.shape}")
        inside = np.ascontiguousarray(array if array.dtype == np.bool_ else array != 0).view(np.uint8)
        if not inside.size:
            raise ValueError(f"mask must be at least 1x1, but got {array.shape[1]}x{array.shape[0]}")
        rle = coco.encode(cv2.transpose(inside).T)  # a quarter of the time of NumPy's column-major copy
        return cls(array.shape[0], array.shape[1], rle["counts"].decode("ascii"))

    @classmethod
    def empty(cls, height: int, width: int) -> Mask:
        """A mask with nothing inside."""
        return cls.from_array(np.zeros((height, width), np.uint8))

    @classmethod
    def union(cls, masks: Sequence[Mask]) -> Mask:
        """What is inside any of the masks, which must be one or more and of one size."""
        if not masks:
            raise ValueError("union needs at least one mask")
        _same_size(masks)
        rle = coco.merge([m._rle for m in masks], intersect=False)
        return cls(masks[0].height, masks[0].width, rle["counts"].decode("ascii"))

    @classmethod
    def from_rle(cls, rle: Rle) -> Mask:
        """From its form in JSON."""
        return cls(rle.size[0], rle.size[1], rle.counts)

    @property
    def is_sound(self) -> bool:
        """Whether the runs fill the size: C code trusts them, so those of a file must be asked before anything else."""
        if self.height * self.width > MOST_PIXELS or not self.counts.isascii():
            return False
        runs = _runs(self.counts)
        return bool(len(runs) and runs[0] >= 0 and (runs[1:] > 0).all() and runs.sum() == self.height * self.width)

    @property
    def rle(self) -> Rle:
        """Its form in JSON."""
        return Rle(size=(self.height, self.width), counts=self.counts)

    @property
    def _rle(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts.encode("ascii")}

    def array(self) -> BoolArray:
        """The mask as (H, W) bool, in rows."""
        decoded: BoolArray = self._part(slice(0, self.width), slice(0, self.height)).view(np.bool_)
        return decoded

    def _part(self, columns: slice, rows: slice) -> npt.NDArray[np.uint8]:
        """A part of the mask, (rows, columns), 1 inside; the runs of other columns are passed over."""
        ends = np.cumsum(_runs(self.counts))
        if not len(ends) or ends[-1] != self.height * self.width:
            raise ValueError(f"mask's runs do not add up to {self.width}x{self.height} pixels")
        first, last = columns.start * self.height, columns.stop * self.height
        ends = np.clip(ends, first, last)
        values = np.arange(len(ends), dtype=np.uint8) & 1  # the first run is outside
        part = np.repeat(values, ends - np.append(first, ends[:-1]))
        return np.asarray(cv2.transpose(part.reshape(-1, self.height)[:, rows]), np.uint8)

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(coco.area(self._rle))

    @property
    def xyxy(self) -> tuple[int, int, int, int] | None:
        """The tight box (x0, y0, x1, y1) as inclusive pixel indices; None where the mask is empty."""
        if self.area == 0:
            return None
        x, y, w, h = (round(float(v)) for v in coco.toBbox(self._rle))
        return x, y, x + w - 1, y + h - 1

    def iou(self, other: Mask) -> float:
        """Intersection over union with a mask of the same size; 0 where both are empty."""
        return float(iou_matrix([self], [other])[0, 0])

    def resized(self, height: int, width: int, *, nearest: bool = False) -> Mask:
        """The mask at another size: area-weighted and cut at one half, or nearest neighbour."""
        if (height, width) == (self.height, self.width):
            return self
        kept = self._resized.get((height, width, nearest))
        if kept is None:
            kept = self._resized[height, width, nearest] = self._at(height, width, nearest)
        return kept

    def _at(self, height: int, width: int, nearest: bool) -> Mask:
        if nearest:
            small = cv2.resize(self.array().view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
            return Mask.from_array(small)
        if height <= self.height and width <= self.width and self.area:
            return self._shrunk(height, width)
        how = cv2.INTER_AREA if height * width < self.height * self.width else cv2.INTER_LINEAR
        return Mask.from_array(cv2.resize(self.array().astype(np.float32), (width, height), interpolation=how) >= 0.5)

    def _shrunk(self, height: int, width: int) -> Mask:
        """Area-weighted; only what is around the mask's box is worked on."""
        assert self.xyxy is not None
        x0, y0, x1, y1 = self.xyxy
        columns, to_columns = _whole_steps(x0, x1, self.width, width)
        rows, to_rows = _whole_steps(y0, y1, self.height, height)
        part = self._part(columns, rows).astype(np.float32)
        size = (to_columns.stop - to_columns.start, to_rows.stop - to_rows.start)
        small = np.zeros((height, width), np.bool_)
        small[to_rows, to_columns] = cv2.resize(part, size, interpolation=cv2.INTER_AREA) >= 0.5
        return Mask.from_array(small)

    def cleaned(self, least: int) -> Mask:
        """The mask without the holes and islands (8-connected) of under `least` pixels; its largest piece stays."""
        if least < 2 or self.xyxy is None:
            return self
        x0, y0, x1, y1 = self.xyxy
        columns, rows = slice(x0, x1 + 1), slice(y0, y1 + 1)
        part = np.pad(self._part(columns, rows), 1)  # the ring joins all that is outside: no hole
        if len(cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]) == 1:
            return self  # one piece without a hole
        clean = 1 - _without_small(1 - _without_small(part, least), least)
        if np.array_equal(clean, part):
            return self
        whole = np.zeros((self.height, self.width), np.uint8)
        whole[rows, columns] = clean[1:-1, 1:-1]
        return Mask.from_array(whole)

    def differing(self, other: Mask) -> int:
        """Pixels inside one of two masks of the same size and not inside the other."""
        return 2 * Mask.union([self, other]).area - self.area - other.area if self != other else 0

    def digest(self) -> str:
        """A short digest of size and content, for the keys of durable steps."""
        return hashlib.sha256(f"{self.height}x{self.width}:{self.counts}".encode()).hexdigest()[:16]


def iou_matrix(first: Sequence[Mask], second: Sequence[Mask]) -> npt.NDArray[np.float64]:
    """IoU of every pair, float64 (len(first), len(second)); all masks must have one size."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    _same_size([*first, *second])
    crowd = [0] * len(second)
    pairs: npt.NDArray[np.float64] = coco.iou([m._rle for m in first], [m._rle for m in second], crowd)
    return pairs


def _runs(counts: str) -> npt.NDArray[np.int64]:
    """The lengths of COCO's compressed runs, outside first: what `rleFrString` reads in a loop."""
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)  # five bits in each character, the sixth says that more follow
    if not len(ends):
        return np.zeros(0, np.int64)
    starts = np.append(0, ends[:-1] + 1)
    digits = ends - starts + 1
    places = np.arange(ends[-1] + 1) - np.repeat(starts, digits)
    runs = np.add.reduceat((codes[: len(places)] & 31) << (5 * places), starts)
    runs -= ((codes[ends] & 16) >> 4) << (5 * digits)  # the sign
    for parity in (1, 2):  # from the third on, a run is told by what it is more than the one before last
        runs[parity::2] = np.cumsum(runs[parity::2])
    return np.asarray(runs, np.int64)


def _whole_steps(first: int, last: int, length: int, to: int) -> tuple[slice, slice]:
    """The least stretch around pixels `first` to `last` of `length` that becomes a whole number of pixels when `length`
    becomes `to`; and that number's stretch."""
    steps = math.gcd(length, to)
    step, to_step = length // steps, to // steps
    start, stop = first // step, last // step + 1
    return slice(start * step, stop * step), slice(start * to_step, stop * to_step)


def _without_small(picture: npt.NDArray[np.uint8], least: int) -> npt.NDArray[np.uint8]:
    """A picture of 0 and 1 without its pieces (8-connected) of under `least` pixels; the one in the corner stays, else
    the largest."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(picture, connectivity=8)
    stays = (stats[:, cv2.CC_STAT_AREA] >= least).astype(np.uint8)
    if stays.all():
        return picture
    always = int(labels[0, 0]) or 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    stays[0], stays[always] = 0, 1
    return np.asarray(stays[labels])


def _same_size(masks: Sequence[Mask]) -> None:
    sizes = {(m.height, m.width) for m in masks}
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h}" for h, w in sorted(sizes))
        raise ValueError(f"masks must have one size, but got {found}")
