from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from dataengine.segmenters.classical import ClassicalSegmenter, cut_box
from dataengine.settings import load_settings
from tests.scenes import BLUE, GREEN, GREY, RED, WHITE, YELLOW, Drawing, best_iou, photo_of, photograph


def shapes() -> Drawing:
    drawing = Drawing.ground(320, 240, WHITE).box("box", RED, 30, 30, 100, 110).disc("disc", BLUE, 220, 80, 40)
    drawing.box("bar", GREEN, 120, 180, 300, 200).polygon("triangle", YELLOW, (20, 220), (60, 150), (100, 220))
    return drawing


def segmenter(**flags: Any) -> ClassicalSegmenter:
    return ClassicalSegmenter(load_settings({"preset": "offline", **flags}))


@pytest.mark.parametrize("slack", [0, 6])
@pytest.mark.parametrize("name", ["box", "disc", "bar", "triangle"])
def test_a_box_around_a_shape_cuts_the_shape(name: str, slack: int) -> None:
    drawing = shapes()
    x0, y0, x1, y1 = drawing.xyxy(name)
    cut = cut_box(drawing.rgb, (x0 - slack, y0 - slack, x1 + slack, y1 + slack))
    assert cut.iou(drawing.mask(name)) > 0.9


def test_a_large_photo_is_cut_at_its_own_size() -> None:
    drawing = Drawing.ground(1600, 1200, GREY).disc("disc", RED, 800, 600, 400)
    cut = cut_box(drawing.rgb, drawing.xyxy("disc"))
    assert (cut.height, cut.width) == (1200, 1600)
    assert cut.iou(drawing.mask("disc")) > 0.95


@pytest.mark.parametrize(
    ("name", "box"),
    [("astronaut", (60, 0, 180, 150)), ("coffee", (80, 20, 190, 140)), ("chelsea", (50, 10, 200, 160))],
)
def test_a_photo_is_cut_within_its_box(name: str, box: tuple[int, int, int, int]) -> None:
    rgb = photograph(name, 256)
    cut = cut_box(rgb, box)
    size = (box[2] - box[0]) * (box[3] - box[1])
    assert 0.1 * size < cut.area <= size
    assert cut.xyxy is not None
    x0, y0, x1, y1 = cut.xyxy
    assert box[0] - 2 <= x0 < x1 <= box[2] + 1
    assert box[1] - 2 <= y0 < y1 <= box[3] + 1


@pytest.mark.parametrize(
    "box",
    [
        (400, 300, 500, 400),
        (-60, -60, -1, -1),
        (100, 300, 200, 400),
        (10, 10, 10, 50),
        (10, 10, 50, 11),
        (90, 90, 40, 40),
        (319.6, 0, 400, 240),
    ],
)
def test_a_box_of_nothing_is_empty(box: tuple[float, float, float, float]) -> None:
    cut = cut_box(shapes().rgb, box)
    assert (cut.height, cut.width, cut.area) == (240, 320, 0)


@pytest.mark.parametrize("box", [(10, 10, 60, 40), (0, 0, 80, 60), (-10, -10, 90, 70)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_picture_is_empty(level: int, box: tuple[int, int, int, int]) -> None:
    assert cut_box(np.full((60, 80, 3), level, np.uint8), box).area == 0


def test_a_box_beyond_the_picture_is_cut_to_it() -> None:
    drawing = Drawing.ground(120, 90, WHITE).box("a", RED, 80, 50, 120, 90)
    assert cut_box(drawing.rgb, (80, 50, 200, 200)).iou(drawing.mask("a")) > 0.9


def test_a_box_around_all_of_the_picture_finds_its_middle_colour() -> None:
    drawing = Drawing.ground(120, 90, WHITE).box("a", RED, 10, 10, 110, 80)
    assert cut_box(drawing.rgb, (0, 0, 120, 90)).iou(drawing.mask("a")) > 0.9


@pytest.mark.parametrize(("width", "height"), [(16, 16), (768, 16), (16, 768)])
def test_the_thinnest_pictures(width: int, height: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for box in ((0, 0, width, height), (width * 0.25, height * 0.25, width * 0.75, height * 0.75)):
        cut = cut_box(rgb, box)
        assert (cut.height, cut.width) == (height, width)
    pool = asyncio.run(segmenter(min_pool_pixels=1).propose(photo_of(rgb))).value
    assert pool


def test_the_same_bytes_twice_and_from_many_threads() -> None:
    rgb = photograph("astronaut", 192)
    boxes = [(45, 0, 135, 110), (10, 20, 100, 150), (60, 10, 110, 80)] * 4
    expected = [cut_box(rgb, box) for box in boxes]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda box: cut_box(rgb, box), boxes)) == expected
    assert expected[:3] == expected[3:6]


def test_segment_gives_a_mask_for_each_box_in_order() -> None:
    drawing = shapes()
    names = ["disc", "box", "bar"]
    answer = asyncio.run(segmenter().segment(drawing.photo(), [drawing.xyxy(n) for n in names]))
    assert [mask.iou(drawing.mask(name)) > 0.9 for name, mask in zip(names, answer.value, strict=True)] == [True] * 3
    assert answer.usage.calls == 0
    assert asyncio.run(segmenter().segment(drawing.photo(), [])).value == []


def test_the_pool_holds_the_shapes_each_once() -> None:
    drawing = shapes()
    pool = asyncio.run(segmenter().propose(drawing.photo())).value
    for name in drawing.shapes:
        assert best_iou(drawing.mask(name), pool) > 0.9, name
    assert len(set(pool)) == len(pool)
    assert pool == asyncio.run(segmenter().propose(drawing.photo())).value


@pytest.mark.parametrize(("scale", "least"), [(1, 1), (1, 3000), (1, 6000), (4, 100_000), (1, 10**9)])
def test_the_pool_leaves_out_what_is_small_at_the_photos_size(scale: int, least: int) -> None:
    drawing = shapes()
    rgb = np.ascontiguousarray(drawing.rgb.repeat(scale, axis=0).repeat(scale, axis=1))
    pool = asyncio.run(segmenter(min_pool_pixels=least).propose(photo_of(rgb))).value
    areas = [mask.area * rgb.shape[0] * rgb.shape[1] / (mask.height * mask.width) for mask in pool]
    assert all(area >= least for area in areas)
    kept = {n for n in drawing.shapes if best_iou(drawing.mask(n), pool) > 0.9}
    assert kept == {n for n in drawing.shapes if drawing.mask(n).area * scale**2 >= least * 1.02}
