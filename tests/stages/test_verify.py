from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataengine.errors import StageError
from dataengine.journal import Journal
from dataengine.masks import Mask
from dataengine.records import Choice, Instance, RegionCut
from dataengine.stages.verify import JudgedRegion, verify
from tests.scenes import Drawing
from tests.scripted import Script, filled

PHOTO = Drawing.ground(120, 80).photo()
INITIAL, REFINED = filled(80, 120, (10, 10, 40, 40)), filled(80, 120, (10, 10, 50, 40))
ALMOST = filled(80, 120, (0, 0, 100, 80)), filled(80, 120, (0, 0, 99, 80))  # IoU 0.99
APART = filled(80, 120, (0, 0, 100, 80)), filled(80, 120, (0, 0, 97, 80))  # IoU 0.97
SAME = filled(80, 120, (0, 0, 50, 80)), filled(80, 120, (0, 0, 49, 80))  # IoU 0.98


def cut(*masks: tuple[Mask, Mask | None], label: str = "a cup") -> RegionCut:
    instances = [
        Instance(box=(0, 0, 9, 9), initial=initial.rle, refined=refined.rle if refined else None, cleaned_pixels=[0])
        for initial, refined in masks
    ]
    return RegionCut(label=label, instances=instances)


def judged(script: Script, folder: Path, *cuts: RegionCut) -> list[JudgedRegion]:
    return asyncio.run(verify(PHOTO, cuts, script.parts(), Journal(folder / "journal.jsonl")))


@pytest.mark.parametrize(
    ("choice", "kept", "description"),
    [("initial", INITIAL, "a cup as seen"), ("refined", REFINED, "a cup as seen"), ("neither", None, "")],
)
def test_the_mask_that_is_kept_is_the_one_that_was_judged(
    tmp_path: Path, choice: Choice, kept: Mask | None, description: str
) -> None:
    """In the published engine "both are bad" selects the refined mask, and that is never verified."""
    script = Script(verdicts={"a cup": choice})
    for _ in range(2):
        (region,) = judged(script, tmp_path, cut((INITIAL, REFINED)))
        assert region.mask == kept
        assert region.instances == ((kept,) if kept else ())
        assert (region.verdict.choice, region.verdict.description) == (choice, description)
        assert region.verdict.reason == f"{choice} for a cup"
    assert script.offered["a cup"] == {"initial": INITIAL, "refined": REFINED}
    assert script.made == {"verify/a cup": 1}


@pytest.mark.parametrize(
    ("masks", "offered"),
    [
        ((INITIAL, None), {"initial"}),
        ((INITIAL, INITIAL), {"initial"}),
        (ALMOST, {"initial"}),
        (SAME, {"initial"}),
        (APART, {"initial", "refined"}),
        ((INITIAL, REFINED), {"initial", "refined"}),
        ((INITIAL, Mask.empty(80, 120)), {"initial"}),
    ],
)
def test_the_refined_mask_is_offered_where_it_differs(
    tmp_path: Path, masks: tuple[Mask, Mask | None], offered: set[str]
) -> None:
    script = Script()
    judged(script, tmp_path, cut(masks))
    assert set(script.offered["a cup"]) == offered


def test_the_instances_are_united_and_kept(tmp_path: Path) -> None:
    other = filled(80, 120, (70, 10, 100, 40))
    script = Script(verdicts={"a cup": "refined"})
    (region,) = judged(script, tmp_path, cut((INITIAL, REFINED), (other, None)))
    assert region.instances == (REFINED, other)
    assert region.mask == Mask.union([REFINED, other])
    assert script.offered["a cup"]["initial"] == Mask.union([INITIAL, other])


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (cut(), "the grounder found no box"),
        (cut((Mask.empty(80, 120), None)), "the segmenter found nothing in its boxes"),
    ],
)
def test_what_was_not_found_is_rejected_without_asking(tmp_path: Path, found: RegionCut, reason: str) -> None:
    script = Script()
    (region,) = judged(script, tmp_path, found)
    assert (region.mask, region.instances, region.verdict.choice) == (None, (), "neither")
    assert region.verdict.reason == reason
    assert not script.made


def test_an_empty_mask_that_was_chosen_is_a_reject_that_says_so(tmp_path: Path) -> None:
    """A thin mask may be lost on its way to the photo's size while that of the pool is not."""
    (region,) = judged(Script(), tmp_path, cut((Mask.empty(80, 120), REFINED)))
    assert (region.mask, region.verdict.choice, region.verdict.description) == (None, "neither", "")
    assert region.verdict.reason == "the initial mask is empty"


@pytest.mark.parametrize("masks", [(INITIAL, None), ALMOST])
def test_a_choice_that_was_not_offered_is_a_failure_and_asked_again(
    tmp_path: Path, masks: tuple[Mask, Mask | None]
) -> None:
    script = Script(verdicts={"a cup": "refined"})
    with pytest.raises(StageError, match="chose a 'refined' mask, but there is none"):
        judged(script, tmp_path, cut(masks))
    script.verdicts["a cup"] = "initial"
    assert judged(script, tmp_path, cut(masks))[0].mask == masks[0]
    assert script.made == {"verify/a cup": 2}


def test_regions_are_judged_side_by_side_and_keep_their_order(tmp_path: Path) -> None:
    labels = [f"cup {i}" for i in range(6)]
    script = Script(seconds=0.02, verdicts={"cup 2": "neither"})
    regions = judged(script, tmp_path, *(cut((INITIAL, None), label=label) for label in labels))
    assert [(region.index, region.label) for region in regions] == list(enumerate(labels))
    assert [region.mask is None for region in regions] == [label == "cup 2" for label in labels]
    assert all(region.verdict.reason for region in regions)
    assert script.most == 6


def test_where_one_judgement_fails_the_others_are_kept(tmp_path: Path) -> None:
    cuts = [cut((INITIAL, None), label=f"cup {i}") for i in range(4)]
    script = Script(seconds=0.02, fails={"verify/cup 1": [RuntimeError("no answer")]})
    with pytest.raises(RuntimeError, match="no answer"):
        judged(script, tmp_path, *cuts)
    assert len(judged(script, tmp_path, *cuts)) == 4
    assert script.made == {"verify/cup 0": 1, "verify/cup 1": 2, "verify/cup 2": 1, "verify/cup 3": 1}
