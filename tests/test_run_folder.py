from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import OutputError
from dataengine.images import RUN_FOLDER_PREFIX, Photo
from dataengine.journal import Answer
from dataengine.records import CONCEPTS, Failure, RunRecord, Source
from dataengine.run_folder import (
    Failures,
    RunFolder,
    assign_folders,
    base_name,
    content_now,
    make_folder,
    path_text,
    read_record,
    slug,
    source_of,
    to_json,
    write_whole,
)
from tests.scenes import Drawing

RECORD = RunRecord(
    dataengine="0",
    complete=True,
    fingerprint="f",
    source=Source(path="/photos/a.jpg", sha256="0", bytes=1, mtime_ns=1, width=2, height=2),
    parts={},
    prompt_digests={},
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


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("photo", "photo"),
        ("IMG 0001 (copy)", "IMG 0001 (copy)"),
        ("фото-é-写真-🐈", "фото-é-写真-🐈"),
        ("new\nline\ttab\x7f", "new_line_tab_"),
        ("right\u202eleft", "right_left"),
        (os.fsdecode(b"bad\xff"), "bad�"),
    ],
)
def test_a_folder_is_named_for_its_photo(stem: str, name: str) -> None:
    assert base_name(stem) == RUN_FOLDER_PREFIX + name


@pytest.mark.parametrize("letter", ["x", "é", "写", "🐈", os.fsdecode(b"\xff")])
def test_long_names_are_cut_and_stay_apart(tmp_path: Path, letter: str) -> None:
    stems = [letter * 250 + end for end in ("", "1", "2")]
    names = [base_name(stem) for stem in stems]
    assert len(set(names)) == 3
    for name in names:
        assert len(os.fsencode(name)) <= 180
        assert name.startswith(RUN_FOLDER_PREFIX + os.fsencode(letter).decode("utf-8", "replace") * 30)
        write_whole(tmp_path / f"{name}__12345678" / "run.json", b"")
    assert base_name("x" * 162) == RUN_FOLDER_PREFIX + "x" * 162
    assert base_name("x" * 163) != RUN_FOLDER_PREFIX + "x" * 163


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
    ],
)
def test_complete_is_what_was_made_from_these_inputs_and_is_there(
    tmp_path: Path, fingerprint: str, lost: str | None, negatives: bool, done: bool
) -> None:
    folder = RunFolder(tmp_path)
    for concept in CONCEPTS:
        write_whole(tmp_path / concept / "summary.json", b"{}")
        folder.write_negatives(concept, [])
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


def test_a_photo_that_kept_size_and_time_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")
    source = source_of(Photo(path, Drawing.ground(4, 3).rgb, "known"))
    assert (source.path, source.bytes, source.width, source.height) == (str(path), 4, 4, 3)
    assert content_now(path, source) == "known"
    os.utime(path, ns=(1, 1))
    assert content_now(path, source) == hashlib.sha256(b"data").hexdigest()
    path.unlink()
    assert content_now(path, source) is None


def test_photos_of_one_stem_get_a_folder_each(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "b.jpg", "d1/a.jpg", "d2/a.jpg"]
    for name in names:
        write_whole(tmp_path / name, b"same" if "/" in name else name.encode())
    folders = assign_folders(tmp_path / "out", [tmp_path / name for name in names])
    found = [folder.path.name.removeprefix(RUN_FOLDER_PREFIX) for folder in folders]
    of_png, of_same = (hashlib.sha256(data).hexdigest()[:8] for data in (b"a.png", b"same"))
    assert found == ["a", f"a__{of_png}", "b", f"a__{of_same}", f"a__{of_same}_2"]
    assert not (tmp_path / "out").exists()


# failures.jsonl


def failure(image: str) -> Failure:
    return Failure(image=image, stage="read", reason="truncated", message="é broken")


def test_failures_are_kept_until_their_image_is_tried_again(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    assert failures.read() == []
    failures.forget([Path("/a.jpg")])
    assert not failures.path.exists()
    for name in ("/a.jpg", "/b.jpg", "/c.jpg"):
        failures.add(failure(name))
    failures.forget([Path("/b.jpg"), Path("/other.jpg")])
    assert Failures(tmp_path).read() == [failure("/a.jpg"), failure("/c.jpg")]
    failures.forget([Path("/a.jpg"), Path("/c.jpg")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"image": "/b.j', b'{"image": "\xc3', b"\x00\x00", b"{}", b"null\n", b"\n\n"])
def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path, torn: bytes) -> None:
    failures = Failures(tmp_path)
    failures.add(failure("/a.jpg"))
    with failures.path.open("ab") as file:
        file.write(torn)
    assert failures.read() == [failure("/a.jpg")]
    failures.forget([])
    failures.add(failure("/c.jpg"))
    assert Failures(tmp_path).read() == [failure("/a.jpg"), failure("/c.jpg")]


def test_a_name_with_a_newline_or_bad_bytes_stays_one_line(tmp_path: Path) -> None:
    failures, odd = Failures(tmp_path), Path(os.fsdecode(b"/a\n\xff\xe2\x80\xa8.jpg"))
    failures.add(failure(path_text(odd)))
    assert len(failures.path.read_bytes().splitlines()) == 1
    assert failures.read() == [failure(path_text(odd))]
    failures.forget([odd])
    assert failures.read() == []


def test_failures_on_a_full_disk_are_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="disk full"):
        Failures(tmp_path).add(failure("/a.jpg"))
