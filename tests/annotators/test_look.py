from __future__ import annotations

import numpy as np
import pytest

from dataengine.annotators import Scene
from dataengine.annotators.look import Look, place_word, size_word, texture_word, tone_word
from dataengine.measures import Picture, Region
from tests.scenes import BLACK, BLUE, GREEN, RED, WHITE, YELLOW, Drawing, Rgb


def region(colour: Rgb = BLUE, box: tuple[int, int, int, int] = (40, 30, 80, 60), noise: int = 0) -> Region:
    drawing = Drawing.ground(120, 90, WHITE).box("a", colour, *box)
    if noise:
        drawing.noisy("a", noise)
    return Region(Picture.of(drawing.rgb), drawing.shapes["a"])


@pytest.mark.parametrize(
    ("box", "expected"),
    [((0, 0, 15, 20), "small"), ((0, 0, 20, 20), "medium"), ((0, 0, 30, 40), "medium"), ((0, 0, 40, 40), "large")],
)
def test_size(box: tuple[int, int, int, int], expected: str) -> None:
    assert size_word(region(box=box)) == expected


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((20, 30, 90), "dark"),
        ((90, 140, 220), ""),
        ((180, 220, 250), "light"),
        (BLACK, ""),
        (WHITE, ""),
        (YELLOW, "light"),
    ],
)
def test_tone(colour: Rgb, expected: str) -> None:
    assert tone_word(region(colour)) == expected


@pytest.mark.parametrize(("noise", "expected"), [(0, "smooth"), (70, "rough")])
def test_texture(noise: int, expected: str) -> None:
    assert texture_word(region((120, 120, 120), noise=noise)) == expected


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, "top left"), (50, 0, "top"), (110, 0, "top right"),
        (0, 40, "left"), (50, 40, "centre"), (110, 40, "right"),
        (0, 80, "bottom left"), (50, 80, "bottom"), (110, 80, "bottom right"),
    ],
)  # fmt: skip
def test_place(x: int, y: int, expected: str) -> None:
    assert place_word(region(box=(x, y, x + 10, y + 10))) == expected


def two_reds() -> Drawing:
    drawing = Drawing.ground(160, 120, WHITE).box("big", RED, 10, 10, 70, 70).box("small", RED, 110, 20, 126, 36)
    return drawing.box("blue", BLUE, 90, 70, 140, 110)


def test_a_look_holds_the_accepted_regions_first_then_what_they_leave_uncovered() -> None:
    drawing = two_reds()
    look = Look.at(drawing.scene("blue", "small"))
    assert (look.known, look.indices) == (2, (0, 1))
    for position, name in enumerate(("blue", "small")):
        np.testing.assert_array_equal(look.regions[position].inside, drawing.shapes[name])
    others = [r.colour for r in look.regions[2:]]
    assert others == ["white", "red"]
    assert look.regions[3].inside[10:70, 10:70].mean() > 0.95
    assert not (look.regions[2].inside & drawing.shapes["blue"]).any()


def test_a_mask_that_vanishes_at_the_views_size_is_left_out_and_indices_hold() -> None:
    drawing = two_reds()
    drawing.shapes["none"] = np.zeros((120, 160), bool)
    look = Look.at(drawing.scene("none", "blue", "big"))
    assert look.indices == (1, 2)


def test_a_scene_without_regions() -> None:
    look = Look.at(Scene(two_reds().photo(), ()))
    assert (look.known, look.indices, look.names) == (0, (), {})
    assert len(look.regions) == 4


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (("big", "small", "blue"), {0: "large red", 1: "small red", 2: "blue"}),
        (("small", "blue"), {0: "small red", 1: "blue"}),
        (("blue",), {0: "blue"}),
    ],
)
def test_names_single_a_region_out_also_from_what_is_unmasked(
    accepted: tuple[str, ...], expected: dict[int, str]
) -> None:
    assert Look.at(two_reds().scene(*accepted)).names == expected


def test_two_of_a_kind_are_not_named_by_their_look_alone() -> None:
    drawing = Drawing.ground(160, 120, WHITE).box("a", RED, 10, 10, 40, 40).box("b", RED, 45, 10, 75, 40)
    names = Look.at(drawing.box("c", GREEN, 100, 80, 140, 110).scene()).names
    assert names[2] == "green"
    assert not {"red", "medium red"} & set(names.values())


def test_values_have_a_number_for_every_region_and_none_for_the_anchor() -> None:
    look = Look.at(two_reds().scene())
    assert look.each(lambda r: r.area).shape == (len(look.regions),)
    assert np.isnan(look.against(1, Region.contact)).tolist() == [i == 1 for i in range(len(look.regions))]
    assert look.share("red").tolist() == pytest.approx([1, 1, 0, 0])
    assert look.anywhere("red") == pytest.approx((60 * 60 + 16 * 16) / (160 * 120))
    assert look.anywhere("purple") == 0
