"""Counting what an output folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import UsageError
from dataengine.records import Failure, RunRecord, Source, Usage
from dataengine.survey import Tally, journal_steps, read_failures, survey, surveyed

IMAGES = ".dataengine/images.jsonl"
PAID = Usage(calls=1, input_tokens=100, output_tokens=10, usd=0.5)


def write_folder(runs: Path, image: str, complete: bool, name: str = "", **other: Any) -> Path:
    """A run folder with nothing but its `run.json`."""
    folder = runs / f"out_region_refine_{name or Path(image).stem}"
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(
        dataengine="1", complete=complete, fingerprint="f", concepts=[], parts={}, prompt_digests={}, settings={},
        source=Source(path=image, sha256="s", bytes=1, mtime_ns=1, width=8, height=8), note="", **other,
    )  # fmt: skip
    (folder / "run.json").write_text(record.model_dump_json())
    return folder


def write_journal(folder: Path, *lines: tuple[str, Usage, dict[str, Any]]) -> None:
    """A journal with these steps; the dictionary holds `result` or `failed`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"step": s, "key": s, "seconds": 1.0, "usage": u.model_dump(), **more} for s, u, more in lines]
    (folder / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_failures(runs: Path, **reasons: str) -> None:
    """`failures.jsonl` with a failure of each image `/in/NAME`."""
    failures = (Failure(image=f"/in/{n}", stage="verify", reason=r, message="no") for n, r in reasons.items())
    (runs / "failures.jsonl").write_text("".join(f"{failure.model_dump_json()}\n" for failure in failures))


def write_told(runs: Path, *images: object) -> None:
    """The list of images that runs were told of."""
    (runs / IMAGES).parent.mkdir(exist_ok=True)
    (runs / IMAGES).write_text("".join(json.dumps(str(image)) + "\n" for image in images))


def test_every_image_is_counted_once(tmp_path: Path) -> None:
    """By its folder, its failure, or the list that runs were told of."""
    runs, there = tmp_path / "runs", tmp_path / "there.jpg"
    there.write_bytes(b"photo")
    for name in ("a", "b"):
        write_folder(runs, f"/in/{name}", complete=True)
    write_folder(runs, "/in/begun", complete=False)
    write_folder(runs, "/in/broken", complete=False)
    write_failures(runs, a="timeout", broken="blocked", unread="truncated", unread2="truncated")
    write_told(runs, "/in/a", "/in/broken", "/in/unread", "/in/gone", there)
    found = survey(runs)
    assert found.done == 2  # the failure of `a` is older than its folder
    assert found.failed == {"blocked": 1, "truncated": 2}
    assert found.waiting == {"unfinished": 1, "not begun": 1}  # an image that is gone and has no folder counts not
    assert found.images == 7


@pytest.mark.parametrize("missing", ["failures.jsonl", IMAGES])
def test_older_folders_lack_files(tmp_path: Path, missing: str) -> None:
    """Both lists may be missing; run folders are counted all the same."""
    write_folder(tmp_path, "/in/a", complete=True)
    write_failures(tmp_path, lost="timeout")
    write_told(tmp_path, tmp_path)
    whole = survey(tmp_path)
    (tmp_path / missing).unlink()
    assert whole.images - survey(tmp_path).images == 1


def test_an_image_with_two_folders_is_one_image(tmp_path: Path) -> None:
    """It is done where one of them is."""
    write_folder(tmp_path, "/in/a", complete=True)
    write_folder(tmp_path, "/in/a", complete=False, name="a__01234567")
    found = survey(tmp_path)
    assert (found.images, found.done) == (1, 1)


def test_cost_of_done_and_unfinished_images(tmp_path: Path) -> None:
    """From `run.json` where it is complete, else from the journal, with what failed after it was paid for."""
    done = write_folder(tmp_path, "/in/a", complete=True, usage={"verify": PAID, "align": PAID})
    write_journal(done, ("verify/000", PAID, {"result": 1}))  # part of the sum in run.json
    begun = write_folder(tmp_path, "/in/b", complete=False)
    write_journal(begun, ("describe", PAID, {"result": []}), ("verify/000", PAID, {"failed": "cut_off"}))
    left = tmp_path / "out_region_refine_c"  # its run.json is gone
    write_journal(left, ("describe", PAID, {"result": []}))
    found = survey(tmp_path)
    assert found.cost == Usage(calls=5, input_tokens=500, output_tokens=50, usd=2.5)
    assert found.waiting == {"unfinished": 2}
    by_stage = {stage: usage.calls for folder in surveyed(tmp_path) if folder.head is None
                for stage, usage in folder.usage.items()}  # fmt: skip
    assert by_stage == {"describe": 1}


def test_a_complete_folder_without_a_sum_is_read_from_its_journal(tmp_path: Path) -> None:
    """Earlier versions wrote none; an empty one says that nothing was paid for."""
    folder = write_folder(tmp_path, "/in/a", complete=True)
    write_journal(folder, ("verify/000", PAID, {"result": 1}))
    assert survey(tmp_path).cost.calls == 0
    record = json.loads((folder / "run.json").read_bytes())
    del record["usage"]
    (folder / "run.json").write_text(json.dumps(record))
    assert survey(tmp_path).cost.calls == 1


def test_one_unknown_price_makes_the_cost_unknown(tmp_path: Path) -> None:
    """Tokens and calls stay known."""
    write_folder(tmp_path, "/in/a", complete=True, usage={"verify": PAID, "ground": Usage(calls=1, usd=None)})
    assert survey(tmp_path).cost == Usage(calls=2, input_tokens=100, output_tokens=10, usd=None)


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    """Lines that are cut off, or were never ours, cost nothing but themselves; nothing is mended."""
    write_folder(tmp_path, "/in/a", complete=False)
    folder = tmp_path / "out_region_refine_a"
    write_journal(folder, ("describe", PAID, {"result": []}), ("verify/000", PAID, {"result": 1}))
    whole = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(b"[1]\nno\n" + whole + b'{"step":"verify/0')
    (tmp_path / "failures.jsonl").write_text('{"image":')
    write_told(tmp_path, "/in/a")
    with (tmp_path / IMAGES).open("a") as file:
        file.write('7\n"/in/cut')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [step.name for step in journal_steps(folder)] == ["describe", "verify/000"]
    assert read_failures(tmp_path) == {}
    found = survey(tmp_path)
    assert (found.images, found.cost.calls) == (1, 2)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_line_that_is_cut_off_in_its_result_is_not_done(tmp_path: Path) -> None:
    """As the journal writes it: cost first, the result last."""
    folder = write_folder(tmp_path, "/in/a", complete=False)
    line = {"step": "verify/000", "key": "k", "seconds": 1.0, "usage": PAID.model_dump(), "result": {"reason": "it"}}
    text = json.dumps(line, separators=(",", ":"))
    (folder / "journal.jsonl").write_text(f"{text}\n{text[:-5]}")
    assert list(journal_steps(folder)) == [("verify/000", PAID, True, 1.0)]


def test_what_is_not_ours_is_not_counted(tmp_path: Path) -> None:
    """A run folder of the published engine, a file of that name, other folders."""
    (tmp_path / "out_region_refine_theirs").mkdir()
    (tmp_path / "out_region_refine_theirs" / "original_image.png").write_bytes(b"")
    (tmp_path / "out_region_refine_file").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="no run has written here"):
        survey(tmp_path)
    write_folder(tmp_path, "/in/a", complete=True)
    assert survey(tmp_path).images == 1


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_no_folder(tmp_path: Path, name: str) -> None:
    """One line says what is wrong."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=f"{name}: no such folder"):
        survey(tmp_path / name)


def test_a_tally_adds_as_usage_does() -> None:
    """Field by field, so that neither can gain one that the other forgets."""
    sums = [PAID, Usage(calls=2, reasked=1, input_tokens=1, output_tokens=2, usd=0.25), Usage(usd=None), PAID]
    for count in range(len(sums) + 1):
        tally = Tally()
        for usage in sums[:count]:
            tally.add(usage)
        assert tally.usage == sum(sums[:count], Usage())
