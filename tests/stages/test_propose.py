from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataengine.journal import Journal
from dataengine.masks import Mask
from dataengine.records import Rle
from dataengine.stages.propose import propose
from tests.scenes import Drawing
from tests.scripted import Script, filled, settings

PHOTO = Drawing.ground().photo()


def test_the_pool_comes_back_as_it_was_also_from_the_journal(tmp_path: Path) -> None:
    pool = [filled(60, 80, (0, 0, 20, 20)), filled(60, 80, (30, 10, 70, 50))]
    script = Script(pool=pool)
    for _ in range(2):
        journal = Journal(tmp_path / "journal.jsonl")
        assert asyncio.run(propose(PHOTO, script.parts(), settings(), journal)) == pool
    assert script.made["propose"] == 1


@pytest.mark.parametrize(
    ("change", "calls"), [({}, 1), ({"max_regions": 2}, 1), ({"iou_threshold": 0.9}, 1), ({"min_pool_pixels": 9}, 2)]
)
def test_only_what_changes_the_pool_proposes_again(tmp_path: Path, change: dict[str, object], calls: int) -> None:
    script, journal = Script(), Journal(tmp_path / "journal.jsonl")
    for chosen in (settings(), settings(**change)):
        asyncio.run(propose(PHOTO, script.parts(), chosen, journal))
    assert script.made["propose"] == calls


def test_a_mask_in_json_has_height_first() -> None:
    mask = filled(3, 5, (1, 0, 4, 2))
    assert mask.rle.size == (3, 5)
    assert Mask.from_rle(Rle.model_validate_json(mask.rle.model_dump_json())) == mask
    assert isinstance(Mask.from_rle(mask.rle), Mask)
