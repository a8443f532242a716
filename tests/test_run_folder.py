from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import OutputError
from dataengine.journal import Answer
from dataengine.records import CONCEPTS, Failure, RunRecord, Source
from dataengine.run_folder import RunFolder, make_folder, path_text, read_record, slug, to_json, write_whole

RECORD = RunRecord(
    dataengine="0",
    complete=True,
    fingerprint="f",
    source=Source(path="/photos/a.jpg", sha256="0", bytes=1, mtime_ns=1, width=2, height=2),
    parts={},
    prompt_digests={},
    concepts=[],
    settings={},
    note="",
)


def failing(code: int) -> Any:
    def fail(path: Path, data: bytes = b"") -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(code, os.strerror(code))

    return fail


# Writing whole files.


def test_a_file_is_written_with_its_folders_and_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.txt"
    for data in (b"one", b""):
        write_whole(target, data)
        assert target.read_bytes() == data
        assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (errno.ENOSPC, "disk_full", "disk full while writing"),
        (errno.EDQUOT, "disk_full", "disk full while writing"),
        (errno.EACCES, "output", "cannot write"),
        (errno.EROFS, "output", "cannot write"),
        (errno.EIO, "output", "cannot write"),
    ],
)
@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_where_writing_fails_the_old_file_stays_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, words: str, fails: str
) -> None:
    target = tmp_path / "a.json"
    write_whole(target, b"old and long enough")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, fails, failing(code) if fails == "write_bytes" else refuse)
    with pytest.raises(OutputError, match=words) as caught:
        write_whole(target, b"new and long enough")
    monkeypatch.undo()
    assert caught.value.reason == reason
    assert str(target) in str(caught.value)
    assert target.read_bytes() == b"old and long enough"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["file/a.json", "file/deeper/a.json", "folder"])
def test_what_is_in_the_way_is_an_output_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / name, b"data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("é" * 127), b"data")
    assert (tmp_path / ("é" * 127)).read_bytes() == b"data"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_made_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError):
        make_folder(tmp_path / "a")


# Names.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the Red cup, left", "the_red_cup_left"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\windows\\system32", "c_windows_system32"),
        ("Tasse à café – 2", "tasse_a_cafe_2"),
        ("ﬁne Å", "fine_a"),
        ("茶碗", "unnamed"),
        ("🐈", "unnamed"),
        ("", "unnamed"),
        ("___", "unnamed"),
        (".", "unnamed"),
        ("a\nb\x00c\u202ed", "a_b_cd"),
        ("x" * 5000, "x" * 40),
        ("a " * 5000, ("a_" * 20)[:-1]),
        (f"{'x' * 39} y", "x" * 39),
        ("cut \ud83d", "cut"),
    ],
)
def test_a_slug_is_short_and_safe(text: str, name: str) -> None:
    assert slug(text) == name


def test_a_name_that_is_not_unicode_can_be_written_to_json() -> None:
    bad = Path(os.fsdecode(b"/photos/\xff.jpg"))
    assert path_text(bad) == "/photos/�.jpg"
    assert path_text(Path("/photos/é 写.jpg")) == "/photos/é 写.jpg"


# run.json.


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"complete": true}',
        RECORD.model_dump_json()[:-1].encode(),
    ],
)
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    assert read_record(tmp_path) is None
    assert not RunFolder(tmp_path).is_complete("f", (), False)


def test_a_record_that_is_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    assert read_record(tmp_path) is None


def test_a_record_comes_back(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").finish(RECORD)
    assert read_record(tmp_path / "run") == RECORD


def test_json_ends_with_a_newline_and_keeps_letters() -> None:
    assert to_json(None) == "null\n"
    assert to_json([]) == "[]\n"
    failure = Failure(image="/é/写.jpg", stage="read", reason="r", message="m")
    assert '"/é/写.jpg"' in to_json([failure])
    assert to_json(failure).endswith("}\n")


@pytest.mark.parametrize(
    ("fingerprint", "lost", "negatives", "done"),
    [
        ("f", None, True, True),
        ("other", None, True, False),
        ("f", "spatial/summary.json", True, False),
        ("f", "negatives/entities.json", True, False),
        ("f", "negatives/entities.json", False, True),
        ("f", "physics/summary.json", True, True),  # not asked for
        ("f", "run.json", True, False),
        ("f", "original_image.png", True, False),
        ("f", "all_regions_colored.png", True, False),
        ("f", "accepted_regions/accepted.json", True, False),
    ],
)
def test_complete_is_what_was_made_from_these_inputs_and_is_there(
    tmp_path: Path, fingerprint: str, lost: str | None, negatives: bool, done: bool
) -> None:
    folder = RunFolder(tmp_path)
    for concept in CONCEPTS:
        write_whole(tmp_path / concept / "summary.json", b"{}")
        folder.write_negatives(concept, [])
    for name in ("original_image.png", "all_regions_colored.png", "accepted_regions/accepted.json"):
        write_whole(tmp_path / name, b"[]")
    folder.finish(RECORD)
    if lost:
        (tmp_path / lost).unlink()
    assert folder.is_complete(fingerprint, ("entities", "spatial"), negatives) is done


def test_what_is_not_marked_complete_is_not(tmp_path: Path) -> None:
    RunFolder(tmp_path).finish(RECORD.model_copy(update={"complete": False}))
    assert not RunFolder(tmp_path).is_complete("f", (), False)


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    async def work() -> Answer[int]:
        return Answer(1)

    folder = RunFolder(tmp_path)
    write_whole(tmp_path / "notes.txt", b"mine")
    write_whole(tmp_path / "entities" / "summary.json", b"{}")
    folder.write_negatives("entities", [])
    folder.finish(RECORD)
    assert asyncio.run(folder.journal.once("describe", {}, int, work)) == 1
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert folder.record is None
    folder.clear()  # nothing there is no failure


# Sources.
