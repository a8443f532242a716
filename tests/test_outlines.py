"""Masks as SVG paths, drawn back and compared."""

from __future__ import annotations

import re

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from dataengine.bits import Bits
from dataengine.masks import BoolArray
from dataengine.outlines import path, shrunk_mask, widest
from tests.exporters.folders import box

NUMBER = r"-?\d+(?:\.\d+)?"
LINE = re.compile(rf"M({NUMBER}) ({NUMBER})l((?:[ -]?\d+)+)")
DOT = re.compile(r"M(\d+) (\d+)h1v1h-1")


def drawn(told: str, shape: tuple[int, int]) -> BoolArray:
    """The pixels that a path covers: filled where an odd number of lines is around, and along the lines."""
    dots, lines = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    polygons = []
    for piece in pieces(told):
        dot, line = DOT.fullmatch(piece), LINE.fullmatch(piece)
        if dot:
            dots[int(dot[2]), int(dot[1])] = 1
        else:
            assert line, piece
            polygons.append(corners(line))
    if polygons:
        cv2.fillPoly(lines, polygons, 1)
        cv2.polylines(lines, polygons, True, 1)
    return np.asarray((dots | lines) == 1)


def pieces(told: str) -> list[str]:
    assert told == "" or told.endswith("z")
    return told.split("z")[:-1]


def corners(line: re.Match[str]) -> npt.NDArray[np.int32]:
    """The corners of a piece as pixels, in whose middles they are."""
    start = np.array([float(line[1]), float(line[2])]) - 0.5
    steps = np.array(re.findall(r"-?\d+", line[3]), float).reshape(-1, 2)
    places = np.cumsum(np.vstack([start, steps]), axis=0)
    assert np.array_equal(places, np.round(places))
    return places.astype(np.int32)


def iou(one: BoolArray, other: BoolArray) -> float:
    return float((one & other).sum() / (one | other).sum())


def blobs(seed: int, coarse: float, share: float, shape: tuple[int, int] = (90, 120)) -> BoolArray:
    """Round shapes with holes, islands in holes, and some that the border cuts."""
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), coarse)
    return np.asarray(smooth > np.quantile(smooth, 1 - share))


def disc(x: int, y: int, radius: int, shape: tuple[int, int] = (90, 120)) -> BoolArray:
    rows, columns = np.indices(shape)
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def outline(mask: BoolArray) -> str:
    return path(mask.view(np.uint8))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("coarse", "least"), [(2.0, 0.93), (4.0, 0.96), (8.0, 0.97)])
def test_a_path_drawn_back_is_the_mask(seed: int, share: float, coarse: float, least: float) -> None:
    mask = blobs(seed, coarse, share)
    assert iou(drawn(outline(mask), mask.shape), mask) >= least


@pytest.mark.parametrize("seed", range(8))
def test_no_pixel_away_from_the_edge_is_drawn_otherwise(seed: int) -> None:
    mask = blobs(seed, 3.0, 0.5)
    wrong = drawn(outline(mask), mask.shape) != mask
    near_an_edge = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) == 1
    assert not wrong[np.logical_not(near_an_edge)].any()


@pytest.mark.parametrize(
    "rows",
    [
        ["#"],
        ["##"],
        ["#", "#"],
        ["####", "####", "####"],
        ["#..", "...", "..#"],
        ["#..", ".#.", "..#"],
        ["###", "#.#", "###"],
        ["#####", "#...#", "#.#.#", "#...#", "#####"],
        ["...", ".#.", "..."],
        ["##....", "##....", "....##", "....##"],
        [".....", "....."],
    ],
)
def test_small_masks_and_straight_ones_are_drawn_to_the_pixel(rows: list[str]) -> None:
    mask = np.array([[cell == "#" for cell in row] for row in rows])
    np.testing.assert_array_equal(drawn(outline(mask), mask.shape), mask)


@pytest.mark.parametrize("place", [(0, 0), (39, 0), (0, 29), (39, 29), (7, 21)])
def test_a_single_pixel_is_a_square_of_its_size(place: tuple[int, int]) -> None:
    x, y = place
    assert outline(box(x, y, x + 1, y + 1, 30, 40)) == f"M{x} {y}h1v1h-1z"


def test_a_full_mask_is_one_line_along_the_middles_of_its_outermost_pixels() -> None:
    told = outline(np.ones((30, 40), bool))
    assert len(pieces(told)) == 1
    line = LINE.fullmatch(pieces(told)[0])
    assert line
    assert sorted(map(tuple, corners(line).tolist())) == [(0, 0), (0, 29), (39, 0), (39, 29)]


def test_any_value_other_than_0_is_inside() -> None:
    mask = disc(40, 40, 20)
    assert path(mask.astype(np.uint8) * 255) == outline(mask)
    assert path(np.zeros((4, 4), np.uint8)) == ""


def test_a_hole_is_a_piece_of_its_own() -> None:
    mask = disc(60, 45, 40) & ~disc(60, 45, 20)
    told = outline(mask)
    assert len(pieces(told)) == 2
    assert not drawn(told, mask.shape)[45, 60]


def test_a_path_has_far_fewer_points_than_the_outline() -> None:
    mask = blobs(0, 25.0, 0.5, (600, 800))
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = [line for piece in pieces(outline(mask)) if (line := LINE.fullmatch(piece))]
    assert sum(len(corners(line)) for line in lines) < sum(map(len, contours)) / 2


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("place", [0, 9_999, 49_999])
def test_places_of_very_large_pictures_are_kept(place: int, tall: bool) -> None:
    mask = np.zeros((3, 50_002), bool)
    mask[:2, place : place + 2] = True
    mask = np.ascontiguousarray(mask.T) if tall else mask
    np.testing.assert_array_equal(drawn(outline(mask), mask.shape), mask)


# Masks at the size of a smaller picture.


@pytest.mark.parametrize("size", [(9, 12), (45, 60), (31, 37), (1, 1), (90, 7), (1, 120)])
@pytest.mark.parametrize("seed", range(6))
def test_a_shrunk_mask_never_vanishes(seed: int, size: tuple[int, int]) -> None:
    chance = np.random.default_rng(seed)
    y, x = int(chance.integers(90)), int(chance.integers(120))
    small = shrunk_mask(Bits.from_array(box(x, y, x + 1, y + 1, 90, 120)), *size)
    assert small.shape == size
    assert small.dtype == np.uint8
    assert small.sum() >= 1
    row, column = np.argwhere(small)[0]
    assert abs((row + 0.5) / size[0] - (y + 0.5) / 90) <= 1 / size[0]
    assert abs((column + 0.5) / size[1] - (x + 0.5) / 120) <= 1 / size[1]


def test_a_shrunk_mask_has_the_pixels_of_which_half_is_inside() -> None:
    mask = np.zeros((4, 6), bool)
    mask[0:2, 0:2] = True  # all of its pixel
    mask[0:2, 2] = True  # half
    mask[0, 4] = True  # a quarter
    mask[2:4, 2:4] = [[True, True], [True, False]]  # three quarters
    np.testing.assert_array_equal(shrunk_mask(Bits.from_array(mask), 2, 3), [[1, 1, 0], [0, 1, 0]])


def test_a_shrunk_mask_covers_the_same_part_of_the_picture() -> None:
    mask = blobs(1, 4.0, 0.5)
    small = shrunk_mask(Bits.from_array(mask), 45, 60)
    again = cv2.resize(small, (120, 90), interpolation=cv2.INTER_NEAREST) == 1
    assert iou(again, mask) > 0.9
    assert set(np.unique(small)) == {0, 1}


def test_a_mask_at_its_own_size_stays_as_it_is_and_an_empty_one_stays_empty() -> None:
    mask = blobs(2, 2.0, 0.3)
    same = shrunk_mask(Bits.from_array(mask), 90, 120)
    assert same.dtype == np.uint8
    np.testing.assert_array_equal(same, mask)
    assert shrunk_mask(Bits.empty(90, 120), 9, 12).tolist() == np.zeros((9, 12)).tolist()


# The place for a mask's number.


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_widest_place_is_inside_and_as_far_from_the_edge_as_any(seed: int, share: float) -> None:
    mask = blobs(seed, 3.0, share)
    x, y = widest(mask.view(np.uint8))
    assert mask[y, x]
    depth = cv2.distanceTransform(np.pad(mask.view(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    assert depth[y, x] >= 0.93 * depth.max()


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (disc(30, 50, 20) | disc(100, 20, 8), (30, 50)),
        (disc(60, 45, 12), (60, 45)),
        (box(119, 0, 120, 1, 90, 120), (119, 0)),
        (box(0, 89, 1, 90, 90, 120), (0, 89)),
        (box(0, 0, 9, 9, 90, 120), (4, 4)),  # what is beyond the picture is outside
        (np.ones((31, 31), bool), (15, 15)),
    ],
)
def test_the_widest_place_of_simple_masks(mask: BoolArray, wanted: tuple[int, int]) -> None:
    x, y = widest(mask.view(np.uint8))
    assert abs(x - wanted[0]) <= 1
    assert abs(y - wanted[1]) <= 1
