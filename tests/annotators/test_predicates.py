from __future__ import annotations

import numpy as np
import pytest

from dataengine.annotators.look import Look
from dataengine.annotators.predicates import Predicate, decoys, predicates
from dataengine.measures import COLOURS
from dataengine.records import CONCEPT_FAMILIES, CONCEPTS, MAX_WORDS
from tests.scenes import BLUE, BROWN, GREEN, RED, WHITE, YELLOW, Drawing


def kitchen() -> Drawing:
    """A tall bottle and a low box on a long table; a button set into a plate in the air."""
    drawing = Drawing.ground(320, 240, WHITE).box("table", BROWN, 30, 180, 290, 210)
    drawing.box("bottle", GREEN, 60, 90, 84, 180).box("box", BLUE, 180, 140, 250, 180)
    return drawing.disc("plate", YELLOW, 240, 60, 40).disc("button", RED, 240, 60, 14)


NAMES = tuple(kitchen().shapes)
LOOK = Look.at(kitchen().scene())


@pytest.mark.parametrize("kind", [predicates, decoys])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_sentence_keeps_the_form_of_a_prompt(concept: str, kind: type) -> None:
    found: dict[str, Predicate] = kind(LOOK, concept)
    assert len(found) >= 5
    for text, predicate in found.items():
        assert text == predicate.text
        assert text.split()[0] in {"Segment", "Identify"}
        assert len(text.split()) <= MAX_WORDS == 10
        assert "  " not in text
        assert predicate.family in CONCEPT_FAMILIES[concept]
        assert predicate.values.shape == (len(LOOK.regions),)
        assert predicate.margin > 0
        assert predicate.say(0.5)


@pytest.mark.parametrize("kind", [predicates, decoys])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_sentences_are_the_same_every_time(concept: str, kind: type) -> None:
    again = kind(Look.at(kitchen().scene()), concept)
    first: dict[str, Predicate] = kind(LOOK, concept)
    assert list(again) == list(first)
    for text, predicate in first.items():
        np.testing.assert_array_equal(again[text].values, predicate.values)


@pytest.mark.parametrize(
    ("concept", "text", "expected"),
    [
        ("entities", "Segment every red area", {"button"}),
        ("entities", "Segment every purple area", set()),
        ("entities", "Identify the brightest area in the picture", {"plate"}),
        ("entities", "Identify the part set into the yellow area", {"button"}),
        ("spatial", "Segment the area farthest to the left", {"bottle"}),
        ("spatial", "Segment the lowest area in the picture", {"table"}),
        ("spatial", "Identify the largest area in the picture", {"table"}),
        ("spatial", "Segment everything left of the blue area", {"bottle"}),
        ("spatial", "Segment everything above the blue area", {"plate", "button"}),
        ("spatial", "Segment the areas touching the brown area", {"bottle", "box"}),
        ("spatial", "Segment the areas enclosed by the yellow area", {"button"}),
        ("spatial", "Segment the areas cut off by the picture's edge", set()),
        ("relations", "Segment the areas standing tall and narrow", {"bottle"}),
        ("relations", "Segment the areas lying long and level", {"table"}),
        ("relations", "Segment the areas leaning at a slant", set()),
        ("relations", "Identify the area carrying the blue area", {"table"}),
        ("relations", "Identify the area that surrounds the red area", {"plate"}),
        ("affordances", "Segment the areas bright enough for black lettering", {"plate"}),
        ("affordances", "Segment the areas too busy for readable lettering", set()),
        ("physics", "Segment the areas resting on the brown area", {"bottle", "box"}),
        ("physics", "Identify what loses its footing without the brown area", {"bottle", "box"}),
        ("physics", "Segment what the yellow area closes in completely", {"button"}),
        ("physics", "Identify the tall area on the narrowest footing", {"bottle"}),
    ],
)
def test_what_is_said_of_a_drawn_kitchen_is_true(concept: str, text: str, expected: set[str]) -> None:
    assert {NAMES[i] for i in predicates(LOOK, concept)[text].holds(LOOK.known)} == expected


def test_a_rough_and_a_slanted_shape() -> None:
    drawing = Drawing.ground(240, 180, WHITE).box("rough", (120, 120, 120), 10, 10, 90, 90).noisy("rough", 70)
    drawing.polygon("bar", BLUE, (130, 30), (220, 120), (210, 130), (120, 40)).box("square", RED, 20, 120, 70, 170)
    look = Look.at(drawing.scene())
    busy = predicates(look, "entities")["Segment the areas with a rough, busy surface"]
    assert busy.holds(look.known) == [0]
    assert predicates(look, "relations")["Segment the areas leaning at a slant"].holds(look.known) == [1]


@pytest.mark.parametrize(("accepted", "superlatives"), [(("table",), False), (("table", "plate"), True)])
def test_a_superlative_needs_two(accepted: tuple[str, ...], superlatives: bool) -> None:
    found = predicates(Look.at(kitchen().scene(*accepted)), "spatial")
    assert ("Identify the largest area in the picture" in found) is superlatives


@pytest.mark.parametrize("concept", CONCEPTS)
def test_decoys_name_every_colour_and_false_claims(concept: str) -> None:
    found = decoys(LOOK, concept).values()
    absent = {p.decoy for p in found if p.strategy == "object_level_neighbor"}
    assert absent == {f"{colour} area" for colour in COLOURS}
    claims = [p for p in found if p.strategy == "concept_level_neighbor"]
    assert {p.decoy.split()[-2] for p in claims} <= {"brown", "green", "blue", "yellow", "red"}
    assert claims


@pytest.mark.parametrize(
    ("colour", "expected"), [("red", False), ("white", False), ("yellow", False), ("purple", True), ("pink", True)]
)
def test_only_a_colour_that_is_nowhere_is_absent(colour: str, expected: bool) -> None:
    assert decoys(LOOK, "entities")[f"Segment every {colour} area"].absent() is expected


def test_stray_pixels_of_a_colour_keep_it_from_being_absent() -> None:
    drawing = kitchen()
    for x in range(4, 316, 8):
        drawing.rgb[4:16:4, x] = (120, 40, 160)
        drawing.rgb[4:16:4, x + 1] = (120, 40, 160)
    look = Look.at(drawing.scene())
    purple = decoys(look, "entities")["Segment every purple area"]
    assert max(purple.values) < 0.2
    assert not purple.absent()


def made(*values: float, threshold: float = 0.5, margin: float = 0.1, anywhere: float = 0.0) -> Predicate:
    return Predicate("f", "t", np.array(values), threshold, margin, "{:.2f}".format, anywhere=anywhere)


NONE = float("nan")


@pytest.mark.parametrize(
    ("predicate", "known", "holds", "spoken_of", "clearance"),
    [
        (made(0.9, 0.2), 2, [0], [0, 1], 3.0),
        (made(0.5, 0.4), 2, [], [0, 1], 0.0),
        (made(0.9, NONE, 0.1), 3, [0], [0, 2], 4.0),
        (made(0.9, 0.1, 0.3), 2, [0], [0, 1], 2.0),
        (made(0.9, 0.1, 0.7), 2, [0], [0, 1], -2.0),
        (made(0.9, 0.1, NONE), 2, [0], [0, 1], 4.0),
    ],
)
def test_a_predicate(
    predicate: Predicate, known: int, holds: list[int], spoken_of: list[int], clearance: float
) -> None:
    assert predicate.holds(known) == holds
    assert predicate.spoken_of(known) == spoken_of
    assert predicate.clearance(known) == pytest.approx(clearance)


@pytest.mark.parametrize(("value", "expected"), [(0.9, False), (0.5, False), (0.45, False), (0.39, True), (NONE, True)])
def test_surely_not_keeps_the_margin(value: float, expected: bool) -> None:
    assert made(value).surely_not(0) is expected


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        (made(0.1, 0.39), True),
        (made(0.1, 0.45), False),
        (made(0.1, NONE), True),
        (made(NONE), True),
        (made(0.1, anywhere=0.01), False),
    ],
)
def test_absent(predicate: Predicate, expected: bool) -> None:
    assert predicate.absent() is expected
