from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataengine.annotators import Scene
from dataengine.images import RgbArray
from dataengine.journal import Answer, Journal
from dataengine.parts import Parts
from dataengine.records import Alignment, Negative, Prompt
from dataengine.stages.align import align, align_negative
from tests.scenes import RED, Drawing
from tests.scripted import Script, ScriptedAnnotator, ScriptedGrounder, ScriptedSegmenter, negative, prompt

SCENE = Drawing.ground().box("a", RED, 5, 5, 30, 30).box("b", RED, 50, 5, 80, 30).scene()
PICTURE = SCENE.photo.view


def judged(script: Script, folder: Path, asked: Prompt, which: str = "entities/00") -> Alignment:
    steps = Journal(folder / "journal.jsonl")
    return asyncio.run(align(SCENE, which, asked, PICTURE, script.parts(), steps))


def refuted(script: Script, folder: Path, asked: Negative, which: str = "entities/00") -> Alignment:
    steps = Journal(folder / "journal.jsonl")
    return asyncio.run(align_negative(SCENE, which, asked, script.parts(), steps))


@pytest.mark.parametrize("accept", [True, False])
def test_the_judgement_of_a_prompt_is_kept(tmp_path: Path, accept: bool) -> None:
    script = Script(refused=set() if accept else {"Segment it"})
    for _ in range(2):
        verdict = judged(script, tmp_path, prompt("Segment it"))
        assert (verdict.accept, verdict.unmasked_match, bool(verdict.reason)) == (accept, not accept, True)
    assert script.made == {"align/Segment it": 1}


@pytest.mark.parametrize("accept", [True, False])
def test_the_judgement_of_a_negative_is_kept(tmp_path: Path, accept: bool) -> None:
    script = Script(refused=set() if accept else {"Segment it"})
    assert {refuted(script, tmp_path, negative("Segment it")).accept for _ in range(2)} == {accept}
    assert script.made == {"refute/Segment it": 1}


@pytest.mark.parametrize(
    ("other", "which"),
    [
        (prompt("Segment it", satisfying=[1]), "entities/00"),
        (prompt("Segment it", candidates=[0]), "entities/00"),
        (prompt("Segment it"), "spatial/00"),
    ],
)
def test_another_prompt_is_another_question(tmp_path: Path, other: Prompt, which: str) -> None:
    script = Script()
    judged(script, tmp_path, prompt("Segment it"))
    judged(script, tmp_path, other, which)
    assert script.made == {"align/Segment it": 2}


def test_what_is_judged_is_the_picture_that_is_written(tmp_path: Path) -> None:
    shown: list[RgbArray] = []

    class Looking(ScriptedAnnotator):
        async def align(self, scene: Scene, prompt: Prompt, picture: RgbArray) -> Answer[Alignment]:
            shown.append(picture)
            return await super().align(scene, prompt, picture)

    script = Script()
    parts = Parts(Looking(script), ScriptedGrounder(script), ScriptedSegmenter(script))
    asyncio.run(align(SCENE, "entities/00", prompt("Segment it"), PICTURE, parts, Journal(tmp_path / "j.jsonl")))
    assert shown[0] is PICTURE


@pytest.mark.parametrize(
    ("detects", "strategy", "found", "calls"),
    [
        (True, "object_level_neighbor", True, {"ground/a dog": 1}),  # it is there: the annotator is not paid to look
        (True, "object_level_neighbor", False, {"ground/a dog": 1, "refute/Find the dog": 1}),
        (True, "concept_level_neighbor", True, {"refute/Find the dog": 1}),  # the thing is there, its attribute is not
        (False, "object_level_neighbor", True, {"refute/Find the dog": 1}),
    ],
)
def test_a_detector_is_the_second_signal_for_absent_things(
    tmp_path: Path, detects: bool, strategy: str, found: bool, calls: dict[str, int]
) -> None:
    script = Script(detects=detects, boxes={"a dog": [(1, 1, 9, 9), (20, 20, 30, 30)] if found else []})
    asked = negative("Find the dog", strategy=strategy, target_decoy="a dog")
    verdicts = [refuted(script, tmp_path, asked) for _ in range(2)]
    assert script.made == calls
    assert verdicts[0] == verdicts[1]
    refused = calls == {"ground/a dog": 1}
    assert verdicts[0].accept != refused
    assert ("the grounder scripted found 2 of 'a dog'" in verdicts[0].reason) == refused


@pytest.mark.parametrize("accept", [True, False])
def test_what_the_annotator_refuses_stays_refused_where_nothing_is_detected(tmp_path: Path, accept: bool) -> None:
    script = Script(detects=True, refused=set() if accept else {"Find the dog"})
    assert refuted(script, tmp_path, negative("Find the dog")).accept == accept
