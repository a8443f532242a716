"""The lists are what their records give when written at once, and appear whole or not at all."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest

from dataengine.errors import OutputError
from dataengine.exporters.lists import Lists
from dataengine.records import EvalItem, EvalItems, TrainRow

ITEMS = [
    EvalItem(id="a_0", image="images/a.jpg", mask="masks/a_0.png", prompt="„das“\n\"ding\" 🦆, {", concept="spatial"),
    EvalItem(id="a_1", image="images/a.jpg", mask="masks/a_1.png", prompt="]", concept="physics", negative=True),
    EvalItem(id="ü_0", image="images/ü.jpg", mask="masks/ü_0.png", prompt="\u2028\x00", concept="entities"),
]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_rows_written_one_by_one_are_the_lists_written_at_once(tmp_path: Path, count: int) -> None:
    with Lists(tmp_path, "both") as lists:
        for item in ITEMS[:count]:
            lists.add(item)
        assert not list(tmp_path.glob("[!.]*"))
        lists.finish()
    whole = EvalItems(dataset=tmp_path.name, count=count, items=ITEMS[:count])
    written = (tmp_path / "items.json").read_text(encoding="utf-8")
    assert written == whole.model_dump_json(indent=2, exclude_none=True) + "\n"
    assert json.loads(written)["count"] == count
    rows = [TrainRow(image=i.image, mask_merged=i.mask, prompt=i.prompt).model_dump_json() for i in ITEMS[:count]]
    assert (tmp_path / "dataset.jsonl").read_text(encoding="utf-8") == "".join(f"{row}\n" for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"items.json", "dataset.jsonl"}


def test_lists_that_end_early_leave_the_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text("earlier")
    (tmp_path / ".dataset.jsonl.tmp").write_text("of a process that was killed")
    with pytest.raises(KeyboardInterrupt), Lists(tmp_path, "eval") as lists:
        lists.add(ITEMS[0])
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"items.json": "earlier"}


def test_a_list_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "items.json").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*items\.json"), Lists(tmp_path, "eval") as lists:
        lists.add(ITEMS[0])
        lists.finish()


def test_a_full_disk_is_one_clear_line_and_leaves_the_earlier_list(tmp_path: Path) -> None:
    (tmp_path / "dataset.jsonl").write_text("earlier")
    with (
        pytest.raises(OutputError, match=r"disk full while writing .*dataset\.jsonl"),
        Lists(tmp_path, "train") as lists,
    ):
        lists._files["dataset.jsonl"] = _Full()
        lists.add(ITEMS[0])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"dataset.jsonl": "earlier"}


class _Full(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")
