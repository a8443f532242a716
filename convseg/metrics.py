"""How well predicted masks fit: IoU, gIoU, cIoU, with bootstrap intervals, and how often nothing is found where
nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

DRAWS = 2000
SPAN = 0.95  # of the intervals


@dataclass(frozen=True)
class Overlap:
    """A predicted mask against the true one, in pixels.

    Attributes:
        image: what tells its photo from others.
        intersection, union: of the two masks.
        predicted: area of the predicted one.
        negative: the true mask is empty.
    """

    image: str
    intersection: int
    union: int
    predicted: int
    negative: bool

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        return iou(self.intersection, self.union)


def overlap(image: str, predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Overlap:
    """Compare two masks (H, W) bool of one size.

    Raises:
        ValueError: they have not.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks must have one size, but got {predicted.shape} and {truth.shape}")
    both, either = int((predicted & truth).sum()), int((predicted | truth).sum())
    return Overlap(image, both, either, int(predicted.sum()), not truth.any())


def iou(intersection: float, union: float) -> float:
    """Intersection over union; 1 where the union is empty."""
    return intersection / union if union else 1.0


@dataclass(frozen=True)
class Estimate:
    """A metric and its interval, which is None for a single photo; all None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Metrics:
    """Of a group of predictions.

    Attributes:
        count: predictions.
        negatives: those whose true mask is empty.
        giou: mean IoU.
        ciou: sum of intersections over sum of unions.
        left_empty: share of the negatives where nothing was predicted.
    """

    count: int
    negatives: int
    giou: Estimate
    ciou: Estimate
    left_empty: Estimate


def metrics(found: Sequence[Overlap], *, seed: int = 0) -> Metrics:
    """gIoU, cIoU and the share of negatives left empty, with 95 % percentile bootstrap intervals.

    What is drawn again is photos, with all their prompts, since prompts of one photo are right or wrong together
    (Field & Welsh 2007, the cluster bootstrap).
    """
    images = {image: i for i, image in enumerate(dict.fromkeys(o.image for o in found))}
    sums = np.zeros((len(images), 6))
    for o in found:
        empty = o.negative and o.predicted == 0
        sums[images[o.image]] += (o.iou, 1, o.intersection, o.union, empty, o.negative)
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(images), np.full(len(images), 1 / len(images)), size=DRAWS) if images else None
    again = None if draws is None else draws @ sums
    negatives = sum(o.negative for o in found)
    giou, ciou, left_empty = (_estimate(sums.sum(0), again, column, len(images)) for column in (0, 2, 4))
    if found and ciou.value is None:  # every mask is empty, on both sides
        ciou = Estimate(1.0, 1.0, 1.0)
    return Metrics(len(found), negatives, giou, ciou, left_empty)


def _estimate(sums: FloatArray, again: FloatArray | None, column: int, photos: int) -> Estimate:
    """The ratio of a column and the one after it, and where 95 % of the draws' ratios lie."""
    if again is None or not sums[column + 1]:
        return Estimate(None, None, None)
    value = float(sums[column] / sums[column + 1])
    able = again[again[:, column + 1] > 0]
    if photos < 2:
        return Estimate(value, None, None)
    low, high = np.quantile(able[:, column] / able[:, column + 1], [(1 - SPAN) / 2, (1 + SPAN) / 2])
    return Estimate(value, float(low), float(high))
