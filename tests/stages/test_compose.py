from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataengine.annotators import Scene
from dataengine.journal import Journal
from dataengine.records import CONCEPT_FAMILIES
from dataengine.stages.compose import (
    VERBS,
    broken_negative_rule,
    broken_rule,
    broken_text_rule,
    compose,
    compose_negatives,
)
from tests.scenes import RED, Drawing
from tests.scripted import Script, negative, prompt

DRAWING = Drawing.ground().box("a", RED, 5, 5, 30, 30).box("b", RED, 50, 5, 80, 30).box("c", RED, 90, 50, 120, 90)
SCENE = DRAWING.scene()
INDICES, SUBSET = "must be of regions 0..2", "strict subset"


@pytest.mark.parametrize(
    ("candidates", "satisfying", "reason"),
    [
        ([0, 1, 2], [1], None),
        ([0, 1, 2], [2, 0], None),
        ([1], [], "none of the regions"),
        ([0, 1], [0, 0], None),
        ([0, 1], [2], INDICES),
        ([0, 1], [0, 2], INDICES),
        ([0, 3], [0], INDICES),
        ([0, 1, -1], [0], INDICES),
        ([0, -1], [-1], INDICES),
        ([], [0], INDICES),
        ([0, 1], [1, 0], SUBSET),
        ([0], [0, 0], SUBSET),
        ([], [], "none of the regions"),
    ],
)
def test_indices_that_break_a_rule(candidates: list[int], satisfying: list[int], reason: str | None) -> None:
    asked = prompt("Segment the left cup", candidates=candidates, satisfying=satisfying)
    broken = broken_rule(asked, "entities", SCENE, [])
    assert broken is None if reason is None else reason in str(broken)


VERB, WORDS, NUMBER, SAME = "starts with a verb", "at most 10 words", "by number, or of masks", "written before"
TEN = "Segment one two three four five six seven eight nine"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Segment the left cup", None),
        ("identify the left cup", None),
        ("  Find the cup ", None),
        ("Segment", VERB),
        ("", VERB),
        (" ", VERB),
        ("The left cup", VERB),
        ("What holds the tea?", VERB),
        ("Segmenting the cup", VERB),
        (TEN, None),
        (f"{TEN} ten", WORDS),
        ("Segment region 3", NUMBER),
        ("Find the cup left of object #2", NUMBER),
        ("Mark Regions 12", NUMBER),
        ("Select #4", NUMBER),
        ("Mark region number 2", NUMBER),
        ("Mark object(3)", NUMBER),
        ("Find the cup [2]", NUMBER),
        ("Find the 3rd region", NUMBER),
        ("Show the red mask", NUMBER),
        ("Mask the red cup", None),
        ("Find the masked areas", NUMBER),
        ("Segment the 2 cups", None),
        ("Show the 3rd cup", None),
        ("Segment the player wearing number 7", None),
        ("Find the red area rug", None),
        ("Find the highlighted area of the map", None),
        ("Find the cup\x00", "cannot be seen"),
        ("Find the\ncup", "cannot be seen"),
        (f"Find {'a' * 200}", "205 characters, 200 are the most"),
        ("Segment the area", None),
        ("Segment route 66", None),
        ("Segment the cup before", SAME),
        ("segment THE cup Before", SAME),
    ],
)
def test_texts_that_break_a_rule(text: str, reason: str | None) -> None:
    """Prompts and negatives alike."""
    family, earlier = CONCEPT_FAMILIES["spatial"][0], ["Segment the cup before"]
    broken = broken_text_rule(text, family, "spatial", earlier)
    assert broken is None if reason is None else reason in str(broken)
    assert broken_rule(prompt(text, "spatial"), "spatial", SCENE, earlier) == broken


@pytest.mark.parametrize(
    ("decoy", "reason"), [("a dog", None), (" ", "rule decoy: it is empty"), ("a" * 301, "rule decoy: it has 301")]
)
def test_a_decoy_that_cannot_be_looked_for(decoy: str, reason: str | None) -> None:
    broken = broken_negative_rule(negative("Find the dog", target_decoy=decoy), "entities", [])
    assert (broken or "").startswith(reason or "") and bool(broken) == bool(reason)


def test_reasons_say_that_a_rule_was_broken() -> None:
    reasons = [
        broken_rule(prompt("Segment it", candidates=[9]), "entities", SCENE, []),
        broken_rule(prompt("Segment it", candidates=[0]), "entities", SCENE, []),
        broken_text_rule("The cup", "", "entities", []),
        broken_text_rule("Segment it", "", "entities", []),
    ]
    assert all(str(reason).startswith("rule ") for reason in reasons)


@pytest.mark.parametrize("concept", CONCEPT_FAMILIES)
def test_a_family_belongs_to_its_concept(concept: str) -> None:
    for other, families in CONCEPT_FAMILIES.items():
        for family in families:
            broken = broken_text_rule("Segment it", family, concept, [])
            assert (broken is None) == (other == concept)
            assert broken is None or f"{family!r} is no concept family of {concept}" in broken
    assert broken_text_rule("Segment it", concept.upper(), concept, []) is not None


def test_every_verb_may_start_a_prompt() -> None:
    for verb in VERBS:
        assert broken_text_rule(f"{verb.capitalize()} it", CONCEPT_FAMILIES["physics"][0], "physics", []) is None


def test_concepts_are_composed_apart_and_once(tmp_path: Path) -> None:
    script = Script(
        prompts={"entities": [prompt("Segment it")], "spatial": [prompt("Segment that", "spatial")]},
        negatives={"entities": [negative("Segment what is absent")]},
    )

    async def work() -> list[object]:
        steps = Journal(tmp_path / "journal.jsonl")
        return [
            await compose(SCENE, "entities", script.parts(), steps),
            await compose(SCENE, "spatial", script.parts(), steps),
            await compose_negatives(SCENE, "entities", script.parts(), steps),
            await compose_negatives(SCENE, "spatial", script.parts(), steps),
        ]

    wanted = [script.prompts["entities"], script.prompts["spatial"], script.negatives["entities"], []]
    assert [asyncio.run(work()) for _ in range(2)] == [wanted, wanted]
    assert set(script.made) == {"compose/entities", "compose/spatial", "negatives/entities", "negatives/spatial"}
    assert set(script.made.values()) == {1}


@pytest.mark.parametrize("scene", [DRAWING.scene("a", "b"), DRAWING.scene("b", "a", "c")])
def test_other_regions_are_asked_about_again(tmp_path: Path, scene: Scene) -> None:
    script, steps = Script(), Journal(tmp_path / "journal.jsonl")
    for asked in (SCENE, scene, SCENE):
        asyncio.run(compose(asked, "entities", script.parts(), steps))
    assert script.made["compose/entities"] == 2
