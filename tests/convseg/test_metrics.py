from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from convseg.metrics import Overlap, iou, metrics, overlap
from dataengine.masks import BoolArray

Pixels = set[tuple[int, int]]


def random_pairs(count: int = 50) -> list[tuple[BoolArray, BoolArray]]:
    """Predicted and true masks: most overlap, some are disjoint, empty on one side or on both."""
    random = np.random.default_rng(5)
    pairs = []
    for number in range(count):
        height, width = random.integers(3, 30, 2)
        predicted, truth = (random.random((height, width)) < random.uniform(0, 0.8) for _ in range(2))
        predicted &= number % 5 != 0
        truth &= number % 10 not in (0, 3)
        pairs.append((predicted, truth))
    return pairs


def inside(mask: BoolArray) -> Pixels:
    return {(y, x) for y, row in enumerate(mask.tolist()) for x, value in enumerate(row) if value}


def test_metrics_of_fifty_random_pairs_equal_a_count_of_pixels_by_hand() -> None:
    pairs = random_pairs()
    found = metrics([overlap(str(i), p, t) for i, (p, t) in enumerate(pairs)])
    ious, intersections, unions, left = [], 0, 0, []
    for predicted, truth in pairs:
        p, t = inside(predicted), inside(truth)
        ious.append(len(p & t) / len(p | t) if p | t else 1.0)
        intersections, unions = intersections + len(p & t), unions + len(p | t)
        if not t:
            left.append(not p)
    assert ious.count(1.0) >= 5  # both empty
    assert 0.0 in ious
    assert found.giou.value == pytest.approx(sum(ious) / len(ious), abs=1e-12)
    assert found.ciou.value == pytest.approx(intersections / unions, abs=1e-12)
    assert found.left_empty.value == pytest.approx(sum(left) / len(left), abs=1e-12)
    assert (found.count, found.negatives) == (50, len(left))


def test_intervals_are_those_of_a_bootstrap_over_photos() -> None:
    pairs = random_pairs()
    found = metrics([overlap(str(i), p, t) for i, (p, t) in enumerate(pairs)])
    ious = [overlap("", p, t).iou for p, t in pairs]
    random = np.random.default_rng(1)
    expected = stats.bootstrap((ious,), np.mean, n_resamples=20000, method="percentile", rng=random).confidence_interval
    assert found.giou.low == pytest.approx(expected.low, abs=0.015)
    assert found.giou.high == pytest.approx(expected.high, abs=0.015)


def test_prompts_of_one_photo_are_drawn_together() -> None:
    """Ten photos with nine equal prompts each say no more than ten photos with one."""
    one = [Overlap(str(i), i, 10, 5, False) for i in range(10)]
    nine = [o for o in one for _ in range(9)]
    a, b = metrics(one).giou, metrics(nine).giou
    assert a.value is not None and (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([], [], (1.0, 1.0, 1.0)),
        ([1], [], (0.0, 0.0, 0.0)),
        ([], [1], (0.0, 0.0, None)),
        ([1, 2], [2, 3], (1 / 3, 1 / 3, None)),
    ],
)
def test_a_single_prediction(
    predicted: list[int], truth: list[int], expected: tuple[float, float, float | None]
) -> None:
    masks = [np.isin(np.arange(6), inside).reshape(2, 3) for inside in (predicted, truth)]
    found = metrics([overlap("a", *masks)])
    assert (found.giou.value, found.ciou.value, found.left_empty.value) == pytest.approx(expected)
    assert found.giou.low is None  # a single photo says nothing of others


def test_nothing_was_measured() -> None:
    found = metrics([])
    assert (found.count, found.giou.value, found.ciou.value, found.left_empty.value) == (0, None, None, None)


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        overlap("a", np.zeros((2, 3), bool), np.zeros((3, 2), bool))


def test_iou_of_two_empty_masks_is_one() -> None:
    assert iou(0, 0) == 1.0
