from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dataengine.masks import Mask
from dataengine.measures import COLOURS, SIDE, Picture, Region, colour_indices, even_regions, to_lab
from tests.scenes import BLUE, BROWN, GREEN, RED, WHITE, YELLOW, Drawing, Rgb, best_iou, photograph


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), "black"),
        ((20, 20, 20), "black"),
        ((30, 5, 5), "black"),
        ((64, 64, 64), "grey"),
        ((128, 128, 128), "grey"),
        ((192, 192, 192), "grey"),
        ((255, 255, 255), "white"),
        ((255, 255, 240), "white"),
        ((225, 205, 170), "beige"),
        ((210, 180, 140), "beige"),
        ((110, 70, 30), "brown"),
        ((139, 69, 19), "brown"),
        ((255, 0, 0), "red"),
        ((220, 20, 60), "red"),
        ((128, 0, 0), "red"),
        ((255, 140, 0), "orange"),
        ((255, 165, 0), "orange"),
        ((255, 69, 0), "orange"),
        ((255, 255, 0), "yellow"),
        ((240, 220, 40), "yellow"),
        ((255, 215, 0), "yellow"),
        ((0, 255, 0), "green"),
        ((34, 139, 34), "green"),
        ((0, 100, 0), "green"),
        ((128, 128, 0), "green"),
        ((0, 0, 255), "blue"),
        ((0, 0, 128), "blue"),
        ((65, 105, 225), "blue"),
        ((135, 206, 235), "blue"),
        ((128, 0, 128), "purple"),
        ((75, 0, 130), "purple"),
        ((148, 0, 211), "purple"),
        ((255, 192, 203), "pink"),
        ((255, 105, 180), "pink"),
        ((255, 20, 147), "pink"),
    ],
)
def test_colour_names_of_pure_patches(rgb: Rgb, expected: str) -> None:
    patch = np.full((2, 3, 3), rgb, np.uint8)
    assert {COLOURS[i] for i in colour_indices(to_lab(patch)).ravel()} == {expected}


def table_scene() -> Drawing:
    """A cup on a table, a pea on a plate in the air, and a patch cut off by the corner."""
    drawing = Drawing.ground(160, 120, WHITE).box("table", BROWN, 20, 80, 140, 100).box("cup", BLUE, 50, 50, 75, 80)
    drawing.disc("plate", GREEN, 110, 40, 22).disc("pea", RED, 110, 40, 8)
    return drawing.box("corner", YELLOW, 0, 0, 16, 30)


def measured(drawing: Drawing) -> dict[str, Region]:
    picture = Picture.of(drawing.rgb)
    return {name: Region(picture, inside) for name, inside in drawing.shapes.items()}


TABLE = measured(table_scene())


def test_even_regions_of_a_drawn_scene_are_its_shapes() -> None:
    drawing = table_scene()
    labels = even_regions(drawing.rgb, [10])[0]
    assert sorted(np.unique(labels)) == list(range(6))
    found = [Mask.from_array(labels == i) for i in range(6)]
    for name in drawing.shapes:
        assert best_iou(drawing.mask(name), found) > 0.97, name


def test_merging_takes_close_colours_together_and_leaves_far_ones() -> None:
    drawing = Drawing.ground(90, 60, (100, 100, 100)).box("near", (118, 118, 118), 30, 0, 60, 60)
    drawing.box("far", (200, 200, 200), 60, 0, 90, 60)
    found = [labels.max() + 1 for labels in even_regions(drawing.rgb, [0, 10, 100])]
    assert found[0] >= 3
    assert found[1:] == [2, 1]


def test_even_regions_of_a_photo_partition_it_and_repeat() -> None:
    rgb = photograph("coffee", 160)
    fine, labels, coarse = even_regions(rgb, [0, 10, 40])
    assert labels.shape == rgb.shape[:2]
    assert sorted(np.unique(labels)) == list(range(int(labels.max()) + 1))
    assert 3 <= labels.max() < 120
    np.testing.assert_array_equal(even_regions(rgb.copy(), [10])[0], labels)
    assert fine.max() > labels.max() > coarse.max()


@pytest.mark.parametrize("shape", [(16, 16), (7, 320), (320, 7)])
def test_even_regions_of_flat_and_of_tiny_pictures(shape: tuple[int, int]) -> None:
    assert even_regions(np.full((*shape, 3), 77, np.uint8), [10])[0].max() == 0
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert even_regions(noise, [10])[0].shape == shape


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (240, 320)), ((300, 200), (200, 300)), ((100, 2000), (320, 16))]
)
def test_a_picture_is_reduced(size: tuple[int, int], expected: tuple[int, int]) -> None:
    picture = Picture.of(np.zeros((size[1], size[0], 3), np.uint8))
    assert picture.size == expected
    assert max(picture.size) <= SIDE


@pytest.mark.parametrize(
    ("name", "colour", "area", "box", "at_edge"),
    [
        ("table", "brown", 0.125, (0.125, 2 / 3, 0.875, 5 / 6), 0.0),
        ("cup", "blue", 0.0390625, (0.3125, 5 / 12, 0.46875, 2 / 3), 0.0),
        ("pea", "red", 0.01026, (102 / 160, 32 / 120, 119 / 160, 49 / 120), 0.0),
        ("corner", "yellow", 0.025, (0.0, 0.0, 0.1, 0.25), 0.511),
    ],
)
def test_a_region(name: str, colour: str, area: float, box: tuple[float, ...], at_edge: float) -> None:
    region = TABLE[name]
    assert region.colour == colour
    assert region.shares.sum() == pytest.approx(1)
    assert region.area == pytest.approx(area, rel=1e-3)
    assert region.box == pytest.approx(box)
    assert region.centre == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    assert region.at_edge == pytest.approx(at_edge, abs=1e-3)
    assert region.pieces == 1
    assert region.texture == 0
    assert region.contrast > 40


@pytest.mark.parametrize(
    ("one", "measure", "other", "low", "high"),
    [
        ("cup", Region.contact, "table", 0.2, 0.3),
        ("table", Region.contact, "cup", 0.05, 0.12),
        ("cup", Region.contact, "plate", 0, 0),
        ("pea", Region.contact, "plate", 1, 1),
        ("pea", Region.enclosure, "plate", 1, 1),
        ("plate", Region.enclosure, "pea", 0.1, 0.35),
        ("cup", Region.enclosure, "table", 0.2, 0.3),
        ("cup", Region.support, "table", 1, 1),
        ("table", Region.support, "cup", 0, 0),
        ("plate", Region.support, "table", 0, 0),
    ],
)
def test_how_regions_meet(
    one: str, measure: Callable[[Region, Region], float], other: str, low: float, high: float
) -> None:
    assert low <= measure(TABLE[one], TABLE[other]) <= high


def test_the_pictures_edge_counts_as_open() -> None:
    drawing = Drawing.ground(80, 60, GREEN).box("bay", BLUE, 0, 20, 20, 40)
    bay = measured(drawing)["bay"]
    ground = Region(bay.picture, ~bay.inside)
    assert bay.contact(ground) == 1
    assert bay.enclosure(ground) == pytest.approx(1 - bay.at_edge)
    assert bay.at_edge > 0.2


@pytest.mark.parametrize(
    ("gap", "overhang", "expected"), [(0, 0, 1.0), (3, 0, 1.0), (4, 0, 0.0), (0, 10, 0.5), (0, 20, 0.0)]
)
def test_support_needs_something_close_below(gap: int, overhang: int, expected: float) -> None:
    drawing = Drawing.ground(100, 60, WHITE).box("shelf", BROWN, 20 + overhang, 40, 100, 50)
    regions = measured(drawing.box("book", BLUE, 20, 20 - gap, 40, 40 - gap))
    assert regions["book"].support(regions["shelf"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("points", "elongation", "lean"),
    [
        (((10, 50), (89, 50), (89, 59), (10, 59)), 8.0, 0),
        (((50, 10), (59, 10), (59, 89), (50, 89)), 8.0, 90),
        (((10, 10), (90, 90), (86, 94), (6, 14)), 17.6, 45),
        (((10, 94), (90, 14), (86, 10), (6, 90)), 17.6, 45),
        (((30, 30), (69, 30), (69, 69), (30, 69)), 1.0, None),
    ],
)
def test_elongation_and_lean_of_bars(
    points: tuple[tuple[int, int], ...], elongation: float, lean: float | None
) -> None:
    found = measured(Drawing.ground(100, 100, WHITE).polygon("bar", BLUE, *points))["bar"].axes
    assert found[0] == pytest.approx(elongation, rel=0.1)
    if lean is not None:
        assert found[1] == pytest.approx(lean, abs=2)


@pytest.mark.parametrize(
    ("points", "low", "high"),
    [
        (((20, 20), (80, 20), (80, 80), (20, 80)), 0.98, 1.0),
        (((20, 20), (80, 20), (80, 30), (30, 30), (30, 80), (20, 80)), 0.4, 0.6),
    ],
)
def test_solidity(points: tuple[tuple[int, int], ...], low: float, high: float) -> None:
    assert low <= measured(Drawing.ground(100, 100, WHITE).polygon("a", BLUE, *points))["a"].solidity <= high


def test_room_is_the_radius_of_the_largest_circle_inside() -> None:
    regions = measured(Drawing.ground(200, 100, WHITE).disc("disc", BLUE, 50, 50, 30).box("bar", RED, 100, 10, 190, 20))
    assert regions["disc"].room == pytest.approx(0.31, abs=0.02)
    assert regions["bar"].room == pytest.approx(0.05, abs=0.01)


def test_pieces_leave_out_specks() -> None:
    drawing = Drawing.ground(100, 60, WHITE).box("a", BLUE, 5, 5, 25, 25)
    drawing.shapes["a"][5:25, 40:60] = True
    drawing.shapes["a"][50:53, 90:93] = True
    assert measured(drawing)["a"].pieces == 2


def test_texture_is_high_on_a_rough_surface_only() -> None:
    drawing = Drawing.ground(160, 120, WHITE).box("plain", BLUE, 10, 10, 70, 110)
    regions = measured(drawing.box("rough", GREEN, 90, 10, 150, 110).noisy("rough", 60))
    assert regions["plain"].texture < 0.5
    assert regions["rough"].texture > 6


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((0, 0, 0), 0.0), ((255, 255, 255), 1.0), ((128, 128, 128), 0.2159), ((10, 10, 10), 0.00304)],
)
def test_luminance_is_that_of_wcag(colour: Rgb, expected: float) -> None:
    region = measured(Drawing.ground(40, 40, WHITE).box("a", colour, 10, 10, 30, 30))["a"]
    assert region.luminance == pytest.approx(expected, abs=1e-3)


def test_a_region_of_one_pixel_and_one_that_is_everything() -> None:
    picture = Picture.of(table_scene().rgb)
    dot, everything = np.zeros(picture.size, bool), np.ones(picture.size, bool)
    dot[60, 80] = True
    one, whole = Region(picture, dot), Region(picture, everything)
    assert one.axes == (1.0, 0.0)
    assert (one.solidity, one.pieces) == (1.0, 1)
    assert (whole.contrast, whole.at_edge, whole.area) == (0.0, 1.0, 1.0)
    assert whole.support(one) == 0
