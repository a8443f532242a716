from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from dataengine.masks import BoolArray, Mask, iou_matrix

SHAPES = [(1, 1), (1, 9), (7, 1), (13, 17), (40, 24)]


def random_array(seed: int, shape: tuple[int, int], share: float = 0.5) -> BoolArray:
    return np.random.default_rng(seed).random(shape) < share


def brute_xyxy(array: BoolArray) -> tuple[int, int, int, int] | None:
    ys, xs = np.nonzero(array)
    return (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())) if len(xs) else None


def brute_iou(one: BoolArray, other: BoolArray) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 0.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_area_box_and_round_trip_against_numpy(shape: tuple[int, int], share: float, seed: int) -> None:
    array = random_array(seed, shape, share)
    mask = Mask.from_array(array)
    assert (mask.height, mask.width) == shape
    assert mask.array().dtype == bool
    assert mask.array().flags.c_contiguous
    np.testing.assert_array_equal(mask.array(), array)
    assert mask.area == array.sum()
    assert mask.xyxy == brute_xyxy(array)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_iou_and_union_against_numpy(shape: tuple[int, int], seed: int) -> None:
    arrays = [random_array(100 * seed + i, shape, share) for i, share in enumerate((0.2, 0.5, 0.9))]
    masks = [Mask.from_array(a) for a in arrays]
    assert masks[0].iou(masks[1]) == pytest.approx(brute_iou(arrays[0], arrays[1]))
    expected = [[brute_iou(a, b) for b in arrays[1:]] for a in arrays]
    np.testing.assert_allclose(iou_matrix(masks, masks[1:]), expected)
    np.testing.assert_array_equal(Mask.union(masks).array(), arrays[0] | arrays[1] | arrays[2])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 1], [2, 0]], np.uint8), [[False, True], [True, False]]),
        (np.array([[0, -1], [255, 0]], np.int64), [[False, True], [True, False]]),
        (np.array([[0.0, 0.25], [1.0, 0.0]]), [[False, True], [True, False]]),
        (np.array([[0, 256]], np.int32), [[False, True]]),
        (np.array([[True, False], [False, True]]).T[::-1], [[False, True], [True, False]]),
    ],
)
def test_every_value_but_zero_is_inside(array: npt.NDArray[Any], expected: list[list[bool]]) -> None:
    assert Mask.from_array(array).array().tolist() == expected


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Mask.from_array(np.zeros(5)), r"must have shape \(H, W\), but got \(5,\)"),
        (lambda: Mask.from_array(np.zeros((1, 5, 4))), r"must have shape \(H, W\), but got \(1, 5, 4\)"),
        (lambda: Mask.from_array(np.zeros((0, 4))), "at least 1x1, but got 4x0"),
        (lambda: Mask.empty(3, 0), "at least 1x1, but got 0x3"),
        (lambda: Mask(-1, 4, ""), "at least 1x1, but got 4x-1"),
        (lambda: Mask.empty(2, 3).iou(Mask.empty(3, 2)), "one size, but got 3x2, 2x3"),
        (lambda: Mask.union([Mask.empty(2, 3), Mask.empty(2, 4)]), "one size, but got 3x2, 4x2"),
        (lambda: iou_matrix([Mask.empty(2, 3)], [Mask.empty(2, 3), Mask.empty(1, 1)]), "one size, but got 1x1, 3x2"),
        (lambda: Mask.union([]), "at least one mask"),
    ],
)
def test_bad_shapes_say_expected_against_got(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("counts", ["", "o", "1", "zz", "99999"])
def test_runs_of_another_size_are_no_mask(counts: str) -> None:
    with pytest.raises(ValueError, match="do not add up to 5x4 pixels"):
        Mask(4, 5, counts).array()


def test_runs_of_any_length_come_back() -> None:
    lengths = [0, 1, 15, 16, 17, 500, 511, 512, 513, 3, 16383, 16384, 16385, 1, 70_000, 2, 9]
    column = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)[:, None]
    for array in (column, ~column, column.T):
        np.testing.assert_array_equal(Mask.from_array(array).array(), array)


def test_empty_masks() -> None:
    empty, full = Mask.empty(4, 6), Mask.from_array(np.ones((4, 6)))
    assert (empty.area, empty.xyxy) == (0, None)
    assert (full.area, full.xyxy) == (24, (0, 0, 5, 3))
    assert empty.iou(empty) == empty.iou(full) == full.iou(empty) == 0
    assert full.iou(full) == 1
    assert Mask.union([empty, empty]) == empty
    assert empty.resized(9, 3).area == 0


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 2), (2, 0)])
def test_iou_of_no_masks_keeps_its_shape(first: int, second: int) -> None:
    assert iou_matrix([Mask.empty(2, 2)] * first, [Mask.empty(2, 2)] * second).shape == (first, second)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_shrinking_keeps_what_is_at_least_half_covered(factor: int, seed: int) -> None:
    array = random_array(seed, (8 * factor, 5 * factor))
    blocks = array.reshape(8, factor, 5, factor).mean(axis=(1, 3))
    np.testing.assert_array_equal(Mask.from_array(array).resized(8, 5).array(), blocks >= 0.5)


@pytest.mark.parametrize("nearest", [False, True])
def test_growing_a_rectangle_grows_its_pixels(nearest: bool) -> None:
    array = np.zeros((8, 10), bool)
    array[2:5, 3:9] = True
    grown = Mask.from_array(array).resized(16, 20, nearest=nearest)
    np.testing.assert_array_equal(grown.array(), np.kron(array, np.ones((2, 2), bool)))


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 3), (24, 32), (1, 1)])
def test_nearest_takes_one_source_pixel_for_each(height: int, width: int) -> None:
    array = random_array(7, (12, 16))
    rows, columns = np.arange(height) * 12 // height, np.arange(width) * 16 // width
    expected = array[np.ix_(rows, columns)]
    np.testing.assert_array_equal(Mask.from_array(array).resized(height, width, nearest=True).array(), expected)


@pytest.mark.parametrize(("shape", "size"), [((120, 180), (48, 72)), ((90, 64), (30, 48)), ((101, 97), (40, 39))])
@pytest.mark.parametrize("seed", range(6))
def test_shrinking_works_on_the_masks_box_alone(seed: int, shape: tuple[int, int], size: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    array = np.zeros(shape, bool)
    (y0, y1), (x0, x1) = (np.sort(random.choice(side, 2, replace=False)) for side in shape)
    array[y0:y1, x0:x1] = cv2.blur(random.random((y1 - y0, x1 - x0)), (5, 5)) > 0.45
    whole = cv2.resize(array.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) >= 0.5
    np.testing.assert_array_equal(Mask.from_array(array).resized(*size).array(), whole)


def test_resizing_again_takes_what_was_made() -> None:
    mask = Mask.from_array(random_array(1, (60, 70)))
    small, nearest = mask.resized(20, 30), mask.resized(20, 30, nearest=True)
    assert mask.resized(20, 30) is small
    assert mask.resized(20, 30, nearest=True) is nearest
    assert small != nearest
    assert mask == Mask(60, 70, mask.counts)
    assert hash(mask) == hash(Mask(60, 70, mask.counts))


def test_resizing_to_the_same_size_is_the_same_mask() -> None:
    mask = Mask.from_array(random_array(1, (6, 7)))
    assert mask.resized(6, 7) is mask


def test_a_large_mask_survives_down_and_up() -> None:
    y, x = np.mgrid[:300, :400]
    disc = Mask.from_array((x - 200) ** 2 + (y - 150) ** 2 < 90**2)
    assert disc.resized(150, 200).resized(300, 400).iou(disc) > 0.98


def test_digest_tells_content_and_size() -> None:
    array = np.zeros((4, 6), bool)
    masks = [Mask.empty(4, 6), Mask.empty(6, 4), Mask.from_array(~array)]
    assert len({m.digest() for m in masks}) == 3
    assert Mask.from_array(array).digest() == masks[0].digest()


@pytest.mark.parametrize(
    ("rows", "least", "expected"),
    [
        (["11110", "10010", "11110", "00000", "00001"], 3, ["11110", "11110", "11110", "00000", "00000"]),
        (["11110", "10010", "11110", "00000", "00001"], 2, ["11110", "10010", "11110", "00000", "00000"]),
        (["11110", "10010", "11110", "00000", "00001"], 1, ["11110", "10010", "11110", "00000", "00001"]),
        (["00000", "01000", "00000"], 9, ["00000", "01000", "00000"]),  # the largest piece stays
        (["01111", "11111", "11111"], 9, ["01111", "11111", "11111"]),  # a corner is no hole
        (["1000", "0100", "0010"], 3, ["1000", "0100", "0010"]),  # corners join
        (["0000", "0000"], 9, ["0000", "0000"]),
        (["111111", "100001", "100001", "111111"], 9, ["111111"] * 4),  # the outside stays, however small
    ],
)
def test_small_holes_and_islands_are_cleaned(rows: list[str], least: int, expected: list[str]) -> None:
    mask, clean = (Mask.from_array(np.array([[int(c) for c in row] for row in rs])) for rs in (rows, expected))
    assert mask.cleaned(least) == clean
    changed = int((mask.array() != clean.array()).sum())
    assert mask.differing(clean) == clean.differing(mask) == changed
