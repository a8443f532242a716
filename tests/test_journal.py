from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import OutputError, StageError
from dataengine.journal import Answer, Journal, digest, step_key
from dataengine.records import DescribedRegion, Usage


class Work:
    """Work that counts how often it is done and answers with the next of its values."""

    def __init__(self, *values: Any, usage: Usage | None = None) -> None:
        self.values = list(values)
        self.usage = usage or Usage()
        self.done = 0

    async def __call__(self) -> Answer[Any]:
        value = self.values[min(self.done, len(self.values) - 1)]
        self.done += 1
        if isinstance(value, Exception):
            raise value
        return Answer(value, self.usage)


def once(journal: Journal, work: Work, step: str = "describe", kind: Any = int, **inputs: object) -> Any:
    return asyncio.run(journal.once(step, inputs, kind, work))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def test_a_step_is_done_once_and_kept_for_the_next_journal(path: Path) -> None:
    first, work = Journal(path), Work(1, 2)
    assert not path.exists()
    assert [once(first, work, a=1), once(first, work, a=1)] == [1, 1]
    assert once(Journal(path), work, a=1) == 1
    assert work.done == 1
    assert len(path.read_text().splitlines()) == 1


def test_a_result_comes_back_as_its_type(path: Path) -> None:
    region = DescribedRegion(label="rot “é” 😀\n", boxes=[(0.5, 1, 2, 3)])
    for journal in (Journal(path), Journal(path)):
        assert once(journal, Work([region]), kind=list[DescribedRegion]) == [region]


def test_a_lone_surrogate_in_an_answer_is_kept(path: Path) -> None:
    for journal in (Journal(path), Journal(path)):
        assert once(journal, Work("cut \ud83d"), kind=str) == "cut \ud83d"


@pytest.mark.parametrize(
    ("step", "inputs", "expected"),
    [
        ("verify/001", {"a": 1, "b": [1, 2]}, 1),
        ("verify/001", {"b": [1, 2], "a": 1}, 1),
        ("verify/002", {"a": 1, "b": [1, 2]}, 2),
        ("verify/001", {"a": 1, "b": [2, 1]}, 2),
        ("verify/001", {"a": "1", "b": [1, 2]}, 2),
        ("verify/001", {"a": 1}, 2),
    ],
)
def test_only_the_same_step_with_the_same_inputs_is_found(
    path: Path, step: str, inputs: Mapping[str, object], expected: int
) -> None:
    work = Work(1, 2)
    journal = Journal(path)
    once(journal, work, step="verify/001", a=1, b=[1, 2])
    assert once(journal, work, step=step, **inputs) == expected


def test_failing_work_is_raised_and_not_kept(path: Path) -> None:
    work = Work(RuntimeError("busy"), 7)
    journal = Journal(path)
    with pytest.raises(RuntimeError, match="busy"):
        once(journal, work)
    assert not path.exists()
    assert journal.usage == Usage()
    assert once(journal, work) == 7


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_last_line_is_dropped_and_later_lines_stay_readable(path: Path, cut: int) -> None:
    journal, work = Journal(path), Work(1, 2, 3)
    once(journal, work, a=1)
    once(journal, work, a=2)
    os.truncate(path, path.stat().st_size - cut)

    resumed = Journal(path)
    assert [once(resumed, work, a=1), once(resumed, work, a=2)] == [1, 3]
    assert [once(Journal(path), work, a=n) for n in (1, 2)] == [1, 3]
    assert work.done == 3
    assert [json.loads(line)["result"] for line in path.read_text().splitlines()] == [1, 3]


@pytest.mark.parametrize(
    "damage",
    [
        b"not json",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"{}",
        b'{"key": []}',
        b'{"key": "KEY"}',
        b'{"key": "KEY", "step": "describe", "seconds": 1, "usage": {}, "result": "no number"}',
        b'{"key": "KEY", "step": "describe", "seconds": 1, "usage": {"coins": 1}, "result": 2}',
        b'{"key": "KEY", "step": "describe", "seconds": null, "usage": {}, "result": 2}',
    ],
)
def test_a_damaged_line_is_a_step_not_done(path: Path, damage: bytes) -> None:
    journal, work = Journal(path), Work(1, 2, 3, 4)
    for n in (1, 2, 3):
        once(journal, work, a=n)
    lines = path.read_bytes().splitlines()
    lines[1] = damage.replace(b"KEY", step_key("describe", {"a": 2}).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")

    resumed = Journal(path)
    assert [once(resumed, work, a=n) for n in (1, 2, 3)] == [1, 4, 3]
    assert [once(Journal(path), work, a=n) for n in (1, 2, 3)] == [1, 4, 3]
    assert resumed.timing()[0].count == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\n\n"])
def test_a_journal_without_a_whole_line_starts_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    assert once(Journal(path), Work(5)) == 5
    assert once(Journal(path), Work(6)) == 5


def test_usage_counts_the_steps_used_and_spent_only_those_done(path: Path) -> None:
    paid = Usage(input_tokens=10, output_tokens=3, usd=0.25, calls=1)
    first = Journal(path)
    once(first, Work(1, usage=paid), a=1)
    once(first, Work(1, usage=paid), a=2)
    once(first, Work(1, usage=paid), a=2)
    twice = Usage(input_tokens=20, output_tokens=6, usd=0.5, calls=2)
    assert first.usage == first.spent == twice

    resumed = Journal(path)
    assert resumed.usage == Usage()
    once(resumed, Work(1, usage=paid), a=2)
    assert (resumed.usage, resumed.spent) == (paid, Usage())


def test_what_a_failed_step_cost_stays_in_the_ledger(path: Path) -> None:
    failure = StageError("bad", reason="bad_answer")
    failure.usage = Usage(input_tokens=5, usd=0.5, calls=2)
    work = Work(failure, failure, 7, usage=Usage(input_tokens=1, usd=0.25, calls=1))
    journal = Journal(path)
    with pytest.raises(StageError):
        once(journal, work)
    assert journal.spent == journal.usage == failure.usage
    again = Journal(path)
    assert again.usage == failure.usage
    assert again.spent == Usage()
    with pytest.raises(StageError):
        once(again, work)
    assert once(again, work) == 7
    last = Journal(path)
    assert once(last, Work(8)) == 7  # a failed line is no result, and a result stays one
    assert last.usage == Usage(input_tokens=11, usd=1.25, calls=5)
    assert [json.loads(line).get("failed") for line in path.read_text().splitlines()] == ["bad_answer"] * 2 + [None]


def test_a_failure_that_cost_nothing_leaves_no_line(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(StageError):
        once(journal, Work(StageError("no")))
    assert not path.exists()


def test_an_unknown_price_makes_the_sum_unknown(path: Path) -> None:
    journal = Journal(path)
    once(journal, Work(1, usage=Usage(usd=0.25, calls=1)), a=1)
    once(journal, Work(1, usage=Usage(usd=None, calls=1)), a=2)
    assert (journal.usage.usd, journal.usage.calls) == (None, 2)


def test_timing_sums_by_stage_in_order_of_use(path: Path) -> None:
    path.parent.mkdir()
    steps = [("verify/000", 1.0), ("describe", 0.5), ("verify/001", 3.0)]
    with path.open("w") as file:
        for step, seconds in steps:
            line = {"step": step, "key": step_key(step, {}), "seconds": seconds, "usage": {}, "result": 1}
            file.write(json.dumps(line) + "\n")
    journal = Journal(path)
    assert journal.timing() == []
    for step, _ in reversed(steps):
        once(journal, Work(1), step=step)
    found = [(t.step, t.total_seconds, t.count, t.avg_seconds) for t in journal.timing()]
    assert found == [("verify", 4.0, 2, 2.0), ("describe", 0.5, 1, 0.5)]


def full_disk(handle: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


real_write = os.write


def nearly_full_disk(handle: int, data: bytes) -> int:
    return real_write(handle, data[: len(data) // 2])


@pytest.mark.parametrize("write", [full_disk, nearly_full_disk])
def test_a_full_disk_is_said_and_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    journal, work = Journal(path), Work(1, 2, 3)
    once(journal, work, a=1)
    before = path.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OutputError, match="disk full") as caught:
            once(journal, work, a=2)
    assert caught.value.reason == "disk_full"
    assert path.read_bytes() == before
    assert [once(journal, work, a=n) for n in (1, 2)] == [1, 3]


def test_a_folder_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Is a directory"):
        Journal(tmp_path)


def test_a_file_where_the_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        once(Journal(tmp_path / "run" / "journal.jsonl"), Work(1))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1, 2], [2, 1], False),
        (["a", {}], ["a", []], False),
        ("é", "e", False),
        ("\udce9.jpg", "\udce8.jpg", False),
    ],
)
def test_digest(one: object, other: object, same: bool) -> None:
    assert (digest(one) == digest(other)) is same
    assert len(digest(one)) == 16
