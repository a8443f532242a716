from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataengine.journal import Journal
from dataengine.parts import Parts
from dataengine.stages.describe import describe
from tests.scenes import Drawing
from tests.scripted import Script, ScriptedAnnotator, ScriptedGrounder, ScriptedSegmenter, region, settings

PHOTO = Drawing.ground().photo()
FIVE = [region(f"thing {i}", (i, 0, i + 9, 9)) for i in range(5)]


@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_no_more_regions_than_asked_for_even_where_more_are_answered(tmp_path: Path, most: int) -> None:
    script, journal = Script(regions=FIVE), Journal(tmp_path / "journal.jsonl")
    found = asyncio.run(describe(PHOTO, script.parts(), settings(max_regions=most), journal))
    assert found == FIVE[:most]


@pytest.mark.parametrize("needs_boxes", [True, False])
def test_boxes_are_asked_for_where_the_grounder_needs_them(tmp_path: Path, needs_boxes: bool) -> None:
    asked: list[tuple[int, bool]] = []

    class Asked(ScriptedAnnotator):
        async def describe(self, photo, max_regions, with_boxes):  # type: ignore[no-untyped-def]
            asked.append((max_regions, with_boxes))
            return await super().describe(photo, max_regions, with_boxes)

    script = Script(regions=FIVE)
    grounder = ScriptedGrounder(script, needs_boxes=needs_boxes)
    parts = Parts(Asked(script), grounder, ScriptedSegmenter(script))
    asyncio.run(describe(PHOTO, parts, settings(max_regions=4), Journal(tmp_path / "journal.jsonl")))
    assert asked == [(4, needs_boxes)]


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({}, 1),
        ({"concurrency": 1}, 1),
        ({"concepts": ("spatial",)}, 1),
        ({"iou_threshold": 0.9}, 1),
        ({"max_regions": 2}, 2),
    ],
)
def test_only_what_changes_the_answer_asks_again(tmp_path: Path, change: dict[str, object], calls: int) -> None:
    script, journal = Script(regions=FIVE), Journal(tmp_path / "journal.jsonl")
    for chosen in (settings(), settings(**change)):
        asyncio.run(describe(PHOTO, script.parts(), chosen, journal))
    assert script.made["describe"] == calls


def test_another_version_or_photo_asks_again(tmp_path: Path) -> None:
    script, journal = Script(regions=FIVE), Journal(tmp_path / "journal.jsonl")
    other = Drawing.ground(161, 120).photo()
    for photo, version in ((PHOTO, "1"), (PHOTO, "2"), (other, "2"), (other, "2")):
        asyncio.run(describe(photo, script.parts(version), settings(), journal))
    assert script.made["describe"] == 3
