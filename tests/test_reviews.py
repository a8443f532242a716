"""People's decisions: written line by line, and replayed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import DataEngineError, OutputError
from dataengine.finished import Entry, Finished, read_finished
from dataengine.records import Decision, Judged
from dataengine.reviews import Key, Reviews, append, key_of
from dataengine.sources import Sources
from tests.exporters.folders import our_run, picture, prompt, save, write_json, write_negatives, write_summaries

KEY = Key("entities", False, 0, "b")
Said = tuple[str, str] | tuple[str, str, str | None]  # reviewer, id, and what it undoes


def decision(name: str = "1", reviewer: str = "ada", key: Key = KEY, **other: Any) -> Decision:
    """A decision whose word can be told by its text, which is the id."""
    found = Judged(verdict=None, prompt="as made", satisfying=[0])
    return Decision.model_validate(
        {
            "id": name,
            "at": "2026-01-01T00:00:00.000+00:00",
            "reviewer": reviewer,
            "blind": False,
            "concept": key.concept,
            "negative": key.negative,
            "index": key.index,
            "basis": key.basis,
            "engine": "ACCEPT",
            "action": "accept",
            "undoes": None,
            "before": found,
            "after": Judged(verdict="ACCEPT", prompt=name, satisfying=[0]),
        }
        | other
    )


def said(entry: Said, key: Key = KEY) -> Decision:
    reviewer, name, *undoes = entry
    if not undoes:
        return decision(name, reviewer, key)
    return decision(name, reviewer, key, action="undo", undoes=undoes[0])


def lines(*decisions: Decision) -> bytes:
    return b"".join(one.model_dump_json().encode() + b"\n" for one in decisions)


def word_of(reviews: Reviews, key: Key = KEY) -> str | None:
    """The text of the word that counts."""
    word = reviews.word(key)
    return word.prompt if word else None


def words_of(reviews: Reviews, key: Key = KEY) -> dict[str, str]:
    return {reviewer: word.prompt for reviewer, word in reviews.words(key).items()}


# Replaying.


@pytest.mark.parametrize(
    ("history", "counts", "own"),
    [
        ([], None, {}),
        ([("ada", "1")], "1", {"ada": "1"}),
        ([("ada", "1"), ("bo", "2")], "2", {"ada": "1", "bo": "2"}),
        ([("ada", "1"), ("bo", "2"), ("ada", "3")], "3", {"ada": "3", "bo": "2"}),
        ([("ada", "1"), ("bo", "2"), ("bo", "3", "2")], "1", {"ada": "1"}),
        ([("ada", "1"), ("bo", "2"), ("ada", "3", "1")], "2", {"bo": "2"}),
        ([("ada", "1"), ("ada", "2"), ("ada", "3", "2")], "1", {"ada": "1"}),
        ([("ada", "1"), ("ada", "2"), ("ada", "3", "1")], "2", {"ada": "2"}),
        ([("ada", "1"), ("ada", "2", "1")], None, {}),
        ([("ada", "1"), ("ada", "2", "1"), ("ada", "3", "1")], None, {}),
        ([("ada", "1"), ("ada", "2", "1"), ("ada", "3")], "3", {"ada": "3"}),
        ([("ada", "1"), ("bo", "2"), ("ada", "3", "2")], "2", {"ada": "1", "bo": "2"}),
        ([("ada", "1"), ("bo", "2"), ("bo", "3", "1")], "2", {"ada": "1", "bo": "2"}),
        ([("ada", "1"), ("ada", "2", "nowhere")], "1", {"ada": "1"}),
        ([("ada", "1"), ("ada", "2", None)], "1", {"ada": "1"}),
    ],
)
def test_the_last_word_that_was_not_taken_back_counts(
    history: Sequence[Said], counts: str | None, own: dict[str, str]
) -> None:
    reviews = Reviews(lines(*map(said, history)))
    assert word_of(reviews) == counts
    assert words_of(reviews) == own
    assert (len(reviews), reviews.prompts()) == ((1, {KEY}) if own else (0, set()))
    assert all(entry[1] in reviews for entry in history)
    assert reviews.damaged == 0


def test_a_reviewers_decisions_are_their_own_that_stand_oldest_first() -> None:
    history: list[Said] = [("ada", "1"), ("bo", "2"), ("ada", "3"), ("ada", "4"), ("ada", "5", "3"), ("bo", "6", "4")]
    reviews = Reviews(lines(*map(said, history)))
    assert [one.id for one in reviews.decisions(KEY, "ada")] == ["1", "4"]
    assert [one.id for one in reviews.decisions(KEY, "bo")] == ["2"]
    assert reviews.decisions(KEY, "cy") == []


@pytest.mark.parametrize(
    "other",
    [
        Key("spatial", False, 0, "b"),
        Key("entities", True, 0, "b"),
        Key("entities", False, 1, "b"),
        Key("entities", False, 0, "c"),
    ],
)
def test_prompts_are_told_apart_by_all_of_their_key(other: Key) -> None:
    reviews = Reviews(lines(decision("1"), said(("ada", "2", "1"), other)))
    assert (word_of(reviews), word_of(reviews, other), len(reviews)) == ("1", None, 1)
    reviews.add(decision("3", key=other))
    assert (word_of(reviews), word_of(reviews, other), len(reviews)) == ("1", "3", 2)
    assert reviews.prompts() == {KEY, other}


def test_a_decision_that_was_seen_counts_once() -> None:
    first, second, third = said(("ada", "1")), said(("bo", "2")), said(("bo", "3", "2"))
    reviews = Reviews(lines(first, second, first))
    assert word_of(reviews) == "2"
    assert len(reviews.decisions(KEY, "ada")) == 1
    reviews.add(third)
    reviews.add(second)  # taken back already
    assert words_of(reviews) == {"ada": "1"}
    assert "3" in reviews
    assert "4" not in reviews


WHOLE = lines(decision("cut"))[:-1]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"no JSON",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe\x00",
        bytes(20),
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        WHOLE + WHOLE,
        WHOLE.replace(b'"accept"', b'"adore"'),
        WHOLE.replace(b'"index"', b'"more":1,"index"'),
        WHOLE.replace(b'"id":"cut",', b""),
    ],
)
def test_a_damaged_line_is_counted_and_spoils_no_other(line: bytes) -> None:
    one, two = lines(said(("ada", "1"))), lines(said(("bo", "2")))
    reviews = Reviews(one + line + b"\n" + two + line)
    assert reviews.damaged == 2
    assert words_of(reviews) == {"ada": "1", "bo": "2"}
    assert "cut" not in reviews


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n", b"\n  \n"])
def test_lines_with_nothing_on_them_are_not_damaged(end: bytes) -> None:
    reviews = Reviews(lines(said(("ada", "1")), said(("bo", "2"))).replace(b"\n", end))
    assert (reviews.damaged, words_of(reviews)) == (0, {"ada": "1", "bo": "2"})


# Appending.


def test_a_decision_is_one_more_line_of_json(tmp_path: Path) -> None:
    one, two = decision("1"), decision("2", "bo")
    append(tmp_path, one)
    assert_unlocked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]
    first = (tmp_path / "reviews.jsonl").read_bytes()
    assert first.endswith(b"\n")
    assert json.loads(first) == one.model_dump()
    append(tmp_path, two)
    both = (tmp_path / "reviews.jsonl").read_bytes()
    assert both == lines(one, two)
    assert words_of(Reviews(both)) == {"ada": "1", "bo": "2"}


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\u2028b\x85c\x0bd", "été 猫 🐈", '"\\', "\0"])
def test_whatever_a_text_holds_it_stays_one_line(tmp_path: Path, text: str) -> None:
    append(tmp_path, decision("1", "a" + text, after=Judged(verdict="ACCEPT", prompt=text, satisfying=[])))
    append(tmp_path, decision("2", "bo"))
    data = (tmp_path / "reviews.jsonl").read_bytes()
    reviews = Reviews(data)
    assert (data.count(b"\n"), reviews.damaged) == (2, 0)
    assert words_of(reviews) == {"a" + text: text, "bo": "2"}


@pytest.mark.parametrize("torn", [WHOLE[:40], WHOLE, b"\0\0\0", b"x"])
def test_a_line_that_was_cut_off_is_ended_first(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "reviews.jsonl").write_bytes(lines(decision("1")) + torn)
    append(tmp_path, decision("2", "bo"))
    assert (tmp_path / "reviews.jsonl").read_bytes() == lines(decision("1")) + torn + b"\n" + lines(decision("2", "bo"))


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_refused_and_not_followed(tmp_path: Path, exists: bool) -> None:
    folder, target = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    if exists:
        target.write_bytes(b"precious")
    (folder / "reviews.jsonl").symlink_to(target)
    with pytest.raises(DataEngineError, match=r"reviews\.jsonl: a link") as raised:
        append(folder, decision())
    assert not isinstance(raised.value, OutputError)
    assert (target.read_bytes() if target.exists() else None) == (b"precious" if exists else None)
    assert (folder / "reviews.jsonl").is_symlink()


def test_a_folder_that_is_gone_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        append(tmp_path / "gone", decision())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_file_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*reviews\.jsonl"):
        append(tmp_path, decision())


def takes_a_part(handle: int, data: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
    return write(handle, data[: len(data) // 2])


def takes_nothing(handle: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [takes_a_part, takes_nothing])
@pytest.mark.parametrize("before", [b"", lines(decision("1")), lines(decision("1")) + WHOLE[:40]])
def test_of_a_line_that_a_full_disk_does_not_take_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[int, bytes], int], before: bytes
) -> None:
    (tmp_path / "reviews.jsonl").write_bytes(before)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(OutputError, match="disk full") as raised:
            append(tmp_path, decision("2"))
    assert raised.value.reason == "disk_full"
    assert (tmp_path / "reviews.jsonl").read_bytes() == before
    assert_unlocked(tmp_path)
    append(tmp_path, decision("2"))
    assert "2" in Reviews((tmp_path / "reviews.jsonl").read_bytes())


def test_a_decision_is_on_the_disk_before_it_is_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    write, fsync = os.write, os.fsync

    def noted_write(handle: int, data: bytes) -> int:
        done.append("written")
        return write(handle, data)

    def noted_fsync(handle: int) -> None:
        done.append("folder kept" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file kept")
        fsync(handle)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    append(tmp_path, decision())
    assert done == ["written", "file kept", "folder kept"]


def assert_unlocked(folder: Path) -> None:
    fcntl: Any = pytest.importorskip("fcntl")
    with (folder / "reviews.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_decision_waits_until_another_is_written(tmp_path: Path) -> None:
    fcntl: Any = pytest.importorskip("fcntl")
    writer = threading.Thread(target=append, args=(tmp_path, decision()), daemon=True)
    with (tmp_path / "reviews.jsonl").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        assert (tmp_path / "reviews.jsonl").stat().st_size == 0
    writer.join(10)
    assert (tmp_path / "reviews.jsonl").read_bytes() == lines(decision())
    assert_unlocked(tmp_path)


def test_where_the_system_has_no_locks_decisions_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    append(tmp_path, decision("1"))
    append(tmp_path, decision("2"))
    assert (tmp_path / "reviews.jsonl").read_bytes() == lines(decision("1"), decision("2"))


def append_many(folder: Path, reviewer: str, count: int, begin: Any) -> None:
    """What one of several processes does."""
    begin.wait(30)
    for number in range(count):
        append(folder, decision(f"{reviewer}{number}", reviewer, after=Judged.model_validate(LONG)))


LONG = {"verdict": "REJECT", "prompt": "word " * 2000, "satisfying": []}  # more than one page of a file


def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").write_bytes(WHOLE[:40])
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(3)
    writers = [context.Process(target=append_many, args=(tmp_path, name, 30, begin)) for name in ("ada", "bo", "cy")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    reviews = Reviews((tmp_path / "reviews.jsonl").read_bytes())
    assert reviews.damaged == 1
    for name in ("ada", "bo", "cy"):
        assert [one.id for one in reviews.decisions(KEY, name)] == [f"{name}{number}" for number in range(30)]


# What a run folder makes of them.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with two prompts and a negative."""
    source = save(tmp_path / "photos" / "a.png", picture())
    made = our_run(tmp_path / "runs", source, prompts={"entities": [prompt(0), prompt(1, (1,))]})
    write_negatives(made, "entities", "ACCEPT")
    return made


def read(folder: Path) -> Finished:
    return read_finished(Sources(folder))


def decide_all(folder: Path) -> None:
    found = read(folder)
    for number, entry in enumerate(found.entries):
        append(folder, decision(f"word {number}", key=found.key(entry)))


def told(found: Finished) -> list[str | None]:
    """The word on each prompt, by its text."""
    words = map(found.word, found.entries)
    return [word.prompt if word else None for word in words]


def test_words_are_found_again_by_their_prompts(folder: Path) -> None:
    assert told(read(folder)) == [None, None, None]
    decide_all(folder)
    found = read(folder)
    assert told(found) == ["word 0", "word 1", "word 2"]
    assert (found.lapsed, dict(found.skipped)) == (0, {})


def rewrite_prompt(folder: Path) -> None:
    write_summaries(folder, {"entities": [prompt(0, prompt="Segment it"), prompt(1, (1,))]}, "")


def rewrite_negative(folder: Path) -> None:
    path = folder / "negatives" / "entities.json"
    path.write_text(path.read_text().replace("absent", "missing"))


def choose_other_regions(folder: Path) -> None:
    write_summaries(folder, {"entities": [prompt(0, (0, 1)), prompt(1, (1,))]}, "")


def drop_a_prompt(folder: Path) -> None:
    write_summaries(folder, {"entities": [prompt(0)]}, "")


def move_to_another_concept(folder: Path) -> None:
    (folder / "entities").rename(folder / "physics")


def rename_a_region(folder: Path) -> None:
    path = folder / "accepted_regions" / "accepted.json"
    entries = json.loads(path.read_bytes())
    entries[1]["label"] = "another"
    write_json(path, entries)


def change_nothing_that_was_judged(folder: Path) -> None:
    write_summaries(folder, {"entities": [prompt(0, verdict="REJECT", reason="no"), prompt(1, (1,))]}, "elsewhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rewrite_prompt, [None, "word 1", "word 2"]),
        (rewrite_negative, ["word 0", "word 1", None]),
        (choose_other_regions, [None, "word 1", "word 2"]),
        (move_to_another_concept, [None, None, "word 2"]),
        (rename_a_region, [None, None, "word 2"]),
        (drop_a_prompt, ["word 0", "word 2"]),
        (change_nothing_that_was_judged, ["word 0", "word 1", "word 2"]),
    ],
)
def test_a_decision_lapses_where_what_was_judged_is_another(
    folder: Path, change: Callable[[Path], None], words: list[str | None]
) -> None:
    decide_all(folder)
    change(folder)
    found = read(folder)
    lapsed = 3 - sum(word is not None for word in words)
    assert told(found) == words
    assert found.lapsed == lapsed
    assert dict(found.noted) == ({"review_lapsed": lapsed} if lapsed else {})
    assert not found.skipped


def test_a_decision_that_was_taken_back_does_not_lapse(folder: Path) -> None:
    key = read(folder).key(read(folder).entries[0])
    append(folder, decision("1", key=key))
    append(folder, decision("2", key=key, action="undo", undoes="1"))
    rewrite_prompt(folder)
    found = read(folder)
    assert (found.lapsed, dict(found.skipped)) == (0, {})


def test_two_words_on_one_prompt_lapse_as_one(folder: Path) -> None:
    key = read(folder).key(read(folder).entries[0])
    for name, reviewer in (("1", "ada"), ("2", "bo"), ("3", "ada")):
        append(folder, decision(name, reviewer, key=key))
    rewrite_prompt(folder)
    assert read(folder).lapsed == 1


def test_damaged_lines_of_a_run_folder_are_counted(folder: Path) -> None:
    decide_all(folder)
    with (folder / "reviews.jsonl").open("ab") as file:
        file.write(b"no JSON\n{")
    found = read(folder)
    assert dict(found.noted) == {"review_line_damaged": 2}
    assert told(found) == ["word 0", "word 1", "word 2"]


def test_decisions_are_read_only_where_they_are_asked_for(folder: Path) -> None:
    decide_all(folder)
    rewrite_prompt(folder)
    found = read_finished(Sources(folder), reviews=False)
    assert told(found) == [None, None, None]
    assert (found.lapsed, dict(found.skipped)) == (0, {})


def test_a_decision_names_its_prompt(folder: Path) -> None:
    found = read(folder)
    keys = list(map(found.key, found.entries))
    assert len(set(keys)) == 3
    assert [key_of(decision(key=key)) for key in keys] == keys
    entry = Entry("physics", True, 7, "Segment it", "", (), True, "")
    assert found.key(entry) == Key("physics", True, 7, found.key(entry).basis)
