from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import StageError
from dataengine.images import Photo
from dataengine.journal import Answer, Journal
from dataengine.masks import Mask
from dataengine.parts import Parts
from dataengine.records import DescribedRegion, Detection, RegionCut, Xyxy
from dataengine.stages.segment import segment, take_best
from tests.scenes import Drawing
from tests.scripted import Script, ScriptedAnnotator, ScriptedGrounder, ScriptedSegmenter, filled, region, settings

PHOTO = Drawing.ground(120, 80).photo()
ONE: Xyxy = (10, 10, 40, 40)
TWO: Xyxy = (60, 20, 100, 70)


def cuts_of(script: Script, folder: Path, parts: Parts | None = None, **other: Any) -> list[RegionCut]:
    async def pool() -> list[Mask]:
        return script.pool

    async def work() -> list[RegionCut]:
        journal = Journal(folder / "journal.jsonl")
        proposed = asyncio.create_task(pool())
        return await segment(PHOTO, script.regions, proposed, parts or script.parts(), settings(**other), journal)

    return asyncio.run(work())


def test_every_box_is_cut_and_refined_on_its_own(tmp_path: Path) -> None:
    """The published engine unites a label's boxes first, so that no pool mask of one instance matches."""
    better_one, better_two = filled(80, 120, (10, 10, 42, 40)), filled(80, 120, (60, 20, 100, 72))
    script = Script(regions=[region("two cups", ONE, TWO)], pool=[better_two, better_one])
    (cut,) = cuts_of(script, tmp_path)
    assert [instance.box for instance in cut.instances] == [ONE, TWO]
    assert [Mask.from_rle(instance.initial) for instance in cut.instances] == [
        filled(80, 120, ONE),
        filled(80, 120, TWO),
    ]
    assert [Mask.from_rle(i.refined) if i.refined else None for i in cut.instances] == [better_one, better_two]


@pytest.mark.parametrize(
    ("wide", "threshold", "chosen"),
    [
        ([60], 0.5, 0),  # exactly the threshold: 30 of 60 columns
        ([61], 0.5, None),
        ([60], 0.51, None),
        ([50, 40, 35, 45], 0.5, 2),  # the best of them
        ([35, 35], 0.5, 0),  # a tie goes to the first
        ([], 0.5, None),
    ],
)
def test_the_best_mask_of_the_pool_is_taken_from_the_threshold_up(
    wide: list[int], threshold: float, chosen: int | None
) -> None:
    pool = [filled(80, 120, (0, 10, columns, 40)) for columns in wide]
    taken, left = take_best(filled(80, 120, (0, 10, 30, 40)), (rest := list(pool)), threshold), rest
    assert taken == (None if chosen is None else pool[chosen])
    assert len(left) == len(pool) - (chosen is not None)
    assert chosen is None or left == [*pool[:chosen], *pool[chosen + 1 :]]


@pytest.mark.parametrize("mask", [Mask.empty(80, 120), filled(80, 120, (90, 60, 120, 80))])
def test_a_mask_that_meets_nothing_is_not_refined_even_with_no_threshold(mask: Mask) -> None:
    assert take_best(mask, [filled(80, 120, ONE), Mask.empty(80, 120)], 0.0) is None


def test_a_pool_mask_is_taken_once_and_the_order_of_regions_decides(tmp_path: Path) -> None:
    best, second = filled(80, 120, (10, 10, 41, 40)), filled(80, 120, (10, 10, 50, 40))
    script = Script(regions=[region("a cup", ONE), region("the same cup", ONE), region("again", ONE)])
    script.pool = [second, best]
    refined = [cut.instances[0].refined for cut in cuts_of(script, tmp_path)]
    assert [Mask.from_rle(rle) if rle else None for rle in refined] == [best, second, None]


def test_masks_of_other_sizes_are_brought_to_the_size_of_the_photo(tmp_path: Path) -> None:
    """The published engine leaves masks at 768 px beside a larger photo."""
    script = Script(regions=[region("a cup", ONE)], masks={ONE: filled(40, 60, (5, 5, 20, 20))})
    script.pool = [filled(160, 240, (20, 20, 84, 80))]
    (cut,) = cuts_of(script, tmp_path)
    (instance,) = cut.instances
    assert instance.refined is not None
    assert Mask.from_rle(instance.initial) == filled(80, 120, ONE)
    assert Mask.from_rle(instance.refined) == filled(80, 120, (10, 10, 42, 40))


@pytest.mark.parametrize(
    ("box", "used"),
    [
        (ONE, ONE),
        ((-5, -7, 300, 200), (0, 0, 120, 80)),
        ((100, 60, 130, 90), (100, 60, 120, 80)),
        ((10, 10, 12, 12), (10, 10, 12, 12)),
        ((10, 10, 11.9, 40), None),
        ((10, 10, 40, 11.9), None),
        ((-20, 10, 1.5, 40), None),  # under 2 px once it is clipped
        ((130, 10, 150, 40), None),
        ((40, 10, 10, 40), None),
        ((math.nan, 10, 40, 40), None),
        ((10, 10, math.inf, 40), None),
    ],
)
def test_boxes_are_clipped_and_too_small_ones_dropped(tmp_path: Path, box: Xyxy, used: Xyxy | None) -> None:
    (cut,) = cuts_of(Script(regions=[region("a cup", box)]), tmp_path)
    assert [instance.box for instance in cut.instances] == ([used] if used else [])


def test_a_region_without_a_box_has_no_instances_and_the_others_keep_theirs(tmp_path: Path) -> None:
    script = Script(regions=[region("nothing"), region("a cup", ONE), region("none"), region("a plate", TWO)])
    cuts = cuts_of(script, tmp_path)
    assert [(cut.label, [i.box for i in cut.instances]) for cut in cuts] == [
        ("nothing", []),
        ("a cup", [ONE]),
        ("none", []),
        ("a plate", [TWO]),
    ]


def test_a_mask_that_comes_with_its_box_is_not_cut_again(tmp_path: Path) -> None:
    """A grounder that cuts as well hands its masks on; the segmenter is asked for the other boxes alone."""
    own = filled(40, 60, (5, 5, 20, 20))

    class Cutting(ScriptedGrounder):
        async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
            return Answer([Detection(box=ONE, score=0.9, mask=own.rle), Detection(box=TWO)])

    asked: list[Sequence[Xyxy]] = []

    class Noting(ScriptedSegmenter):
        async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
            asked.append(boxes)
            return await super().segment(photo, boxes)

    script = Script(regions=[region("two cups")])
    (cut,) = cuts_of(script, tmp_path, Parts(ScriptedAnnotator(script), Cutting(script), Noting(script)))
    assert asked == [[TWO]]
    assert [Mask.from_rle(i.initial) for i in cut.instances] == [own.resized(80, 120), filled(80, 120, TWO)]


@pytest.mark.parametrize(("least", "area", "changed"), [(0, 904, 0), (5, 900, 4), (1000, 900, 4)])
def test_masks_are_cleaned_and_the_pixels_counted(tmp_path: Path, least: int, area: int, changed: int) -> None:
    speckled = Mask.union([filled(80, 120, ONE), filled(80, 120, (70, 70, 72, 72))])
    script = Script(regions=[region("cup", ONE)], masks={ONE: speckled})
    (cut,) = cuts_of(script, tmp_path, clean_pixels=least)
    assert Mask.from_rle(cut.instances[0].initial).area == area
    assert cut.instances[0].cleaned_pixels == [changed]


def test_with_no_box_at_all_the_segmenter_is_not_asked(tmp_path: Path) -> None:
    script = Script(regions=[region("nothing"), region("none")])
    assert [cut.instances for cut in cuts_of(script, tmp_path)] == [[], []]
    assert script.made["segment"] == 0


def test_the_boxes_are_the_grounder_s(tmp_path: Path) -> None:
    script = Script(regions=[region("a cup", ONE)], boxes={"a cup": [TWO]})
    (cut,) = cuts_of(script, tmp_path)
    assert [instance.box for instance in cut.instances] == [TWO]


@pytest.mark.parametrize("answered", [0, 1, 3])
def test_a_segmenter_that_answers_with_too_few_or_too_many_masks_fails(tmp_path: Path, answered: int) -> None:
    class Miscounting(ScriptedSegmenter):
        async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
            return Answer([filled(80, 120, ONE)] * answered)

    script = Script(regions=[region("two cups", ONE, TWO)])
    parts = Parts(ScriptedAnnotator(script), ScriptedGrounder(script), Miscounting(script))

    with pytest.raises(StageError, match=f"{answered} masks for 2 boxes"):
        cuts_of(script, tmp_path, parts)


def test_regions_are_grounded_side_by_side(tmp_path: Path) -> None:
    script = Script(regions=[region(f"cup {i}", ONE) for i in range(5)], seconds=0.02)
    cuts_of(script, tmp_path)
    assert script.most == 5


def test_where_one_grounding_fails_the_others_are_kept(tmp_path: Path) -> None:
    script = Script(regions=[region(f"cup {i}", ONE) for i in range(5)], seconds=0.02)
    script.fails = {"ground/cup 0": [RuntimeError("no answer")]}
    with pytest.raises(RuntimeError, match="no answer"):
        cuts_of(script, tmp_path)
    assert len(cuts_of(script, tmp_path)) == 5
    assert script.made == {"ground/cup 0": 2, **{f"ground/cup {i}": 1 for i in range(1, 5)}, "segment": 1}


@pytest.mark.parametrize(
    ("change", "calls"),
    [({}, 1), ({"max_regions": 2}, 1), ({"iou_threshold": 0.9}, 2), ({"min_pool_pixels": 9}, 2)],
)
def test_only_what_changes_the_cuts_cuts_again(tmp_path: Path, change: dict[str, Any], calls: int) -> None:
    script = Script(regions=[region("a cup", ONE)])
    cuts_of(script, tmp_path)
    cuts_of(script, tmp_path, **change)
    assert script.made["segment"] == calls
