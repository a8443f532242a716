from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dataengine.annotators import Scene, SceneRegion
from dataengine.annotators.measured import MeasuredAnnotator
from dataengine.images import Photo
from dataengine.masks import Mask
from dataengine.measures import COLOURS, Picture
from dataengine.records import (
    CONCEPT_FAMILIES,
    CONCEPTS,
    Alignment,
    Choice,
    DescribedRegion,
    Negative,
    Prompt,
    RegionVerdict,
    Usage,
)
from dataengine.segmenters.classical import cut_box
from dataengine.settings import load_settings
from tests.scenes import BLUE, BROWN, GREEN, PURPLE, RED, WHITE, YELLOW, Drawing, photo_of, photograph


def annotator() -> MeasuredAnnotator:
    return MeasuredAnnotator(load_settings({"preset": "offline"}))


SHARED = annotator()  # it keeps what it measured of a photo or scene while that lives


def describe(photo: Photo, most: int = 8, with_boxes: bool = True) -> list[DescribedRegion]:
    return asyncio.run(SHARED.describe(photo, most, with_boxes)).value


def verify(photo: Photo, label: str, masks: Mapping[Choice, Mask]) -> RegionVerdict:
    return asyncio.run(SHARED.verify(photo, label, masks, {})).value


def compose(scene: Scene, concept: str) -> list[Prompt]:
    return asyncio.run(SHARED.compose(scene, concept)).value


def align(scene: Scene, prompt: Prompt) -> Alignment:
    return asyncio.run(SHARED.align(scene, prompt, scene.photo.view)).value


def compose_negatives(scene: Scene, concept: str) -> list[Negative]:
    return asyncio.run(SHARED.compose_negatives(scene, concept)).value


def align_negative(scene: Scene, negative: Negative) -> Alignment:
    return asyncio.run(SHARED.align_negative(scene, negative)).value


def kitchen() -> Drawing:
    drawing = Drawing.ground(320, 240, WHITE).box("table", BROWN, 30, 180, 290, 210)
    drawing.box("bottle", GREEN, 60, 90, 84, 180).box("box", BLUE, 180, 140, 250, 180)
    return drawing.disc("plate", YELLOW, 240, 60, 40).disc("button", RED, 240, 60, 14)


KITCHEN = kitchen()
PHOTO, SCENE = KITCHEN.photo(), KITCHEN.scene()
COLOUR_OF = {"table": "brown", "bottle": "green", "box": "blue", "plate": "yellow", "button": "red"}


def prompt(text: str, satisfying: list[int], family: str = "stuff_surfaces_regions", count: int = 5) -> Prompt:
    return Prompt(prompt=text, concept_family=family, candidates=list(range(count)), satisfying=satisfying)


# Describe


def test_describe_finds_the_shapes_with_their_colours_and_boxes() -> None:
    found = describe(PHOTO)
    assert len(found) == len(KITCHEN.shapes)
    for name, colour in COLOUR_OF.items():
        [region] = [r for r in found if f" {colour} " in r.label]
        [box] = region.boxes
        assert box == pytest.approx(KITCHEN.xyxy(name), abs=3), name


def test_boxes_are_in_the_photos_pixels() -> None:
    drawing = Drawing.ground(1280, 960, WHITE).box("a", RED, 400, 200, 800, 640)
    [region] = describe(drawing.photo())
    assert region.boxes[0] == pytest.approx(drawing.xyxy("a"), abs=8)


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (3, 3), (8, 5)])
def test_at_most_so_many_regions_the_most_striking_first(most: int, expected: int) -> None:
    assert len(describe(PHOTO, most)) == expected
    assert describe(PHOTO, most) == describe(PHOTO)[:expected]


def test_no_boxes_where_none_are_wanted() -> None:
    bare = describe(PHOTO, with_boxes=False)
    assert [r.label for r in bare] == [r.label for r in describe(PHOTO)]
    assert all(r.boxes == [] for r in bare)


def test_alike_shapes_in_a_row_share_a_label() -> None:
    drawing = Drawing.ground(320, 240, WHITE).box("lid", RED, 20, 150, 300, 220)
    for i in range(3):
        drawing.box(f"b{i}", BLUE, 40 + 90 * i, 40, 80 + 90 * i, 80)
    [group] = [r for r in describe(drawing.photo()) if "blue" in r.label]
    assert group.label.startswith("three ")
    np.testing.assert_allclose(sorted(group.boxes), [drawing.xyxy(f"b{i}") for i in range(3)], atol=3)
    union = Mask.union([drawing.mask(f"b{i}") for i in range(3)])
    assert verify(drawing.photo(), group.label, {"initial": union}).choice == "initial"


@pytest.mark.parametrize("level", [0, 127, 255])
def test_a_flat_photo_has_no_regions(level: int) -> None:
    assert describe(photo_of(np.full((60, 80, 3), level, np.uint8))) == []


# Verify


@pytest.mark.parametrize("name", COLOUR_OF)
def test_the_right_mask_is_kept_and_described(name: str) -> None:
    label = next(r.label for r in describe(PHOTO) if f" {COLOUR_OF[name]} " in r.label)
    verdict = verify(PHOTO, label, {"initial": KITCHEN.mask(name)})
    assert verdict.choice == "initial"
    assert COLOUR_OF[name] in verdict.description
    assert any(c.isdigit() for c in verdict.reason)


def shifted(mask: Mask, dx: int, dy: int) -> Mask:
    return Mask.from_array(np.roll(mask.array(), (dy, dx), axis=(0, 1)))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (shifted(KITCHEN.mask("plate"), 60, 0), "yellow, at least"),
        (shifted(KITCHEN.mask("plate"), 0, 120), "0% yellow"),
        (KITCHEN.mask("bottle"), "0% yellow"),
        (Mask.from_array(np.ones((240, 320))), "yellow, at least"),
        (Mask.empty(240, 320), "nothing left at 320x240"),
        (Drawing.ground(320, 240).box("a", RED, 238, 40, 240, 43).mask("a"), "nothing left"),
    ],
)
def test_a_shifted_or_wrong_mask_is_rejected_with_numbers(mask: Mask, words: str) -> None:
    label = next(r.label for r in describe(PHOTO) if "yellow" in r.label)
    verdict = verify(PHOTO, label, {"initial": mask})
    assert (verdict.choice, verdict.description) == ("neither", "")
    assert words in verdict.reason
    assert any(c.isdigit() for c in verdict.reason)


PLATE = Drawing.ground(320, 240, WHITE).disc("plate", YELLOW, 240, 60, 33)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("medium red region, smooth, top right", "0% red"),
        ("small light yellow region, smooth, top right", None),
        ("large light yellow region, smooth, top right", "is not large"),
        ("medium dark yellow region, smooth, top right", "lightness"),
        ("medium light yellow region, rough, top right", "texture"),
        ("medium light yellow region, smooth, bottom left", "is not bottom left"),
        ("medium light yellow region, smooth, top right", None),
    ],
)
def test_every_word_of_a_label_is_measured(label: str, words: str | None) -> None:
    verdict = verify(PLATE.photo(), label, {"initial": PLATE.mask("plate")})
    assert verdict.choice == ("initial" if words is None else "neither")
    assert words is None or words in verdict.reason


def test_of_two_masks_the_one_with_the_clearer_outline_is_kept() -> None:
    label = next(r.label for r in describe(PHOTO) if "blue" in r.label)
    true, other = KITCHEN.mask("box"), KITCHEN.mask("plate")
    loose = Drawing.ground(320, 240).box("a", RED, 174, 136, 258, 183).mask("a")
    assert verify(PHOTO, label, {"initial": loose, "refined": true}).choice == "refined"
    assert verify(PHOTO, label, {"initial": true, "refined": loose}).choice == "initial"
    assert verify(PHOTO, label, {"initial": other, "refined": true}).choice == "refined"
    assert verify(PHOTO, label, {"initial": true, "refined": other}).choice == "initial"


# Compose and align


@pytest.mark.parametrize("concept", CONCEPTS)
def test_prompts_keep_their_form(concept: str) -> None:
    found = compose(SCENE, concept)
    assert 1 <= len(found) <= 3
    assert len({p.prompt for p in found}) == len(found)
    for made in found:
        assert made.prompt.split()[0] in {"Segment", "Identify"}
        assert len(made.prompt.split()) <= 10
        assert made.concept_family in CONCEPT_FAMILIES[concept]
        assert set() < set(made.satisfying) < set(made.candidates) <= set(range(5))


def test_prompts_refer_to_the_regions_own_indices() -> None:
    names = ("button", "table", "bottle")
    regions = (SceneRegion(i, n, n, KITCHEN.mask(n)) for i, n in zip((7, 2, 4), names, strict=True))
    scene = Scene(PHOTO, tuple(regions))
    for concept in CONCEPTS:
        for made in compose(scene, concept):
            assert set(made.satisfying) < set(made.candidates) <= {7, 2, 4}
    by_hand = Prompt(
        prompt="Segment every red area",
        concept_family="stuff_surfaces_regions",
        candidates=[7, 2, 4],
        satisfying=[7],
    )
    assert align(scene, by_hand).accept


@pytest.mark.parametrize(
    ("text", "family", "satisfying", "accept"),
    [
        ("Segment every red area", "stuff_surfaces_regions", [4], True),
        ("Segment every red area", "stuff_surfaces_regions", [3], False),
        ("Segment every red area", "stuff_surfaces_regions", [3, 4], False),
        ("Segment every red area", "stuff_surfaces_regions", [], False),
        ("Segment the lowest area in the picture", "egocentric_viewer", [0], True),
        ("Segment the lowest area in the picture", "egocentric_viewer", [1], False),
        ("Segment the areas resting on the brown area", "support_stability", [1, 2], True),
        ("Segment the areas resting on the brown area", "support_stability", [1], False),
        ("Segment the areas resting on the brown area", "support_stability", [1, 2, 3], False),
        ("Segment what the yellow area closes in completely", "containment_and_flow", [4], True),
        ("Segment what the yellow area closes in completely", "containment_and_flow", [2], False),
        ("Segment the areas standing tall and narrow", "atomic_posture", [1], True),
    ],
)
def test_align_accepts_the_true_regions_and_no_others(
    text: str, family: str, satisfying: list[int], accept: bool
) -> None:
    verdict = align(SCENE, prompt(text, satisfying, family))
    assert (verdict.accept, verdict.unmasked_match) == (accept, False)
    assert any(c.isdigit() for c in verdict.reason)


@pytest.mark.parametrize("concept", ["entities", "spatial", "relations", "physics"])
def test_an_accepted_prompt_is_accepted_for_no_other_set_of_its_candidates(concept: str) -> None:
    made = next(p for p in compose(SCENE, concept) if align(SCENE, p).accept)
    for i in made.candidates:
        flipped = sorted({*made.satisfying} ^ {i})
        assert not align(SCENE, made.model_copy(update={"satisfying": flipped})).accept, flipped


def two_reds() -> Drawing:
    drawing = Drawing.ground(320, 240, WHITE).box("left", RED, 20, 20, 90, 90).box("right", RED, 200, 30, 280, 110)
    return drawing.box("blue", BLUE, 40, 140, 120, 220).box("green", GREEN, 200, 150, 300, 210)


@pytest.mark.parametrize(
    ("accepted", "satisfying", "accept", "unmasked"),
    [
        (("left", "right", "blue", "green"), [0, 1], True, False),
        (("left", "blue", "green"), [0], False, True),
        (("right", "blue"), [0], False, True),
    ],
)
def test_an_unmasked_shape_that_fits_as_well_is_found(
    accepted: tuple[str, ...], satisfying: list[int], accept: bool, unmasked: bool
) -> None:
    made = prompt("Segment every red area", satisfying, count=len(accepted))
    verdict = align(two_reds().scene(*accepted), made)
    assert (verdict.accept, verdict.unmasked_match) == (accept, unmasked)
    assert ("unmasked area at" in verdict.reason) is unmasked


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("Segment the cup a guest would reach for", "stuff_surfaces_regions"),
        ("Segment every red area", "hazard"),
        ("Segment every red area", "no_such_family"),
        ("segment every red area", "stuff_surfaces_regions"),
        ("", "stuff_surfaces_regions"),
    ],
)
def test_a_foreign_sentence_is_not_accepted_and_says_why(text: str, family: str) -> None:
    negative = Negative(prompt=text, strategy="object_level_neighbor", concept_family=family, target_decoy="x")
    for verdict in (align(SCENE, prompt(text, [4], family)), align_negative(SCENE, negative)):
        assert not verdict.accept
        assert "not a sentence that can be measured" in verdict.reason


@pytest.mark.parametrize("accepted", [(), ("plate",)])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_with_less_than_two_regions_nothing_can_be_told_apart(accepted: tuple[str, ...], concept: str) -> None:
    scene = Scene(PHOTO, tuple(SceneRegion(0, n, n, KITCHEN.mask(n)) for n in accepted))
    assert compose(scene, concept) == []
    for negative in compose_negatives(scene, concept):
        assert align_negative(scene, negative).reason


# Negatives


@pytest.mark.parametrize("concept", CONCEPTS)
def test_negatives_name_nothing_present(concept: str) -> None:
    found = compose_negatives(SCENE, concept)
    assert 1 <= len(found) <= 3
    assert {n.strategy for n in found} == {"object_level_neighbor", "concept_level_neighbor"}
    present = {COLOURS[i] for i in np.unique(Picture.of(KITCHEN.rgb).colours)}
    assert present == {*COLOUR_OF.values(), "white"}
    for negative in found:
        assert negative.prompt.split()[0] in {"Segment", "Identify"}
        assert len(negative.prompt.split()) <= 10
        assert negative.concept_family in CONCEPT_FAMILIES[concept]
        assert negative.target_decoy.removesuffix(" area") in negative.prompt
        if negative.strategy == "object_level_neighbor":
            assert not present & set(negative.prompt.split())
            assert align_negative(SCENE, negative).accept


def test_every_concept_has_an_accepted_negative() -> None:
    for concept in CONCEPTS:
        assert any(align_negative(SCENE, n).accept for n in compose_negatives(SCENE, concept)), concept


def absent(colour: str) -> Negative:
    return Negative(
        prompt=f"Segment every {colour} area",
        strategy="object_level_neighbor",
        concept_family="stuff_surfaces_regions",
        target_decoy=f"{colour} area",
    )


@pytest.mark.parametrize(
    ("colour", "extra", "accept"),
    [
        ("purple", None, True),
        ("pink", None, True),
        ("red", None, False),
        ("white", None, False),
        ("purple", (4, 4, 44, 34), False),
        ("purple", (4, 4, 24, 20), False),
    ],
)
def test_a_negative_whose_colour_is_present_is_refused(
    colour: str, extra: tuple[int, int, int, int] | None, accept: bool
) -> None:
    drawing = kitchen()
    names = tuple(drawing.shapes)
    if extra is not None:
        drawing.box("extra", PURPLE, *extra)
    verdict = align_negative(drawing.scene(*names), absent(colour))
    assert (verdict.accept, verdict.unmasked_match) == (accept, not accept)
    assert "%" in verdict.reason


# Always the same, also side by side


async def answers(part: MeasuredAnnotator, scene: Scene, side_by_side: bool) -> list[Any]:
    asked = [part.describe(scene.photo, 8, True)]
    waiting: list[Any] = [*asked, *(m(scene, c) for m in (part.compose, part.compose_negatives) for c in CONCEPTS)]
    if side_by_side:
        return [a.value for a in await asyncio.gather(*waiting)]
    return [(await w).value for w in waiting]


@pytest.mark.parametrize("source", ["drawn", "photo"])
def test_the_same_answers_every_time_and_side_by_side(source: str) -> None:
    def scene() -> Scene:
        if source == "drawn":
            return kitchen().scene()
        rgb = photograph("coffee", 192)
        boxes = [(60, 15, 140, 105), (5, 5, 60, 60)]
        regions = (SceneRegion(i, "x", "x", cut_box(rgb, box)) for i, box in enumerate(boxes))
        return Scene(photo_of(rgb), tuple(regions))

    first = asyncio.run(answers(annotator(), scene(), False))
    assert asyncio.run(answers(annotator(), scene(), True)) == first
    shared = annotator()
    one = scene()
    assert asyncio.run(answers(shared, one, True)) == asyncio.run(answers(shared, one, True)) == first


def test_answers_cost_nothing() -> None:
    assert asyncio.run(SHARED.describe(PHOTO, 8, True)).usage == Usage()


@pytest.mark.parametrize(("width", "height"), [(16, 16), (768, 16), (16, 768)])
def test_the_smallest_and_thinnest_photos(width: int, height: int) -> None:
    photo = photo_of(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    left = np.zeros((height, width), bool)
    left[:, : width // 2] = True
    regions = tuple(SceneRegion(i, "x", "x", Mask.from_array(m)) for i, m in enumerate((left, ~left)))
    for region in describe(photo):
        assert verify(photo, region.label, {"initial": regions[0].mask}).reason
    for concept in CONCEPTS:
        for made in compose(Scene(photo, regions), concept):
            assert align(Scene(photo, regions), made).reason
