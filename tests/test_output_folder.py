"""The output folder: which image has which run folder, which images failed, and who may write."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from dataengine.errors import DataEngineError, OutputError, UsageError
from dataengine.images import RUN_FOLDER_PREFIX, Photo
from dataengine.output_folder import Failures, assign_folders, base_name, content_now, prepare_output, source_of
from dataengine.records import Failure
from dataengine.run_folder import path_text, write_whole
from tests.scenes import Drawing

# Names.


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


def test_failures_are_kept_until_their_image_is_done(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    failures.save()
    assert failures.listed == [] and not failures.path.exists()
    for name in ("/a.jpg", "/b.jpg", "/c.jpg", "/a.jpg"):
        failures.add(failure(name))
    assert Failures(tmp_path).listed == [failure("/a.jpg"), failure("/b.jpg"), failure("/c.jpg")]
    for name in ("/b.jpg", "/other.jpg"):
        failures.resolve(Path(name))
    assert len(Failures(tmp_path).listed) == 3  # a run killed now has lost none
    failures.save()
    assert Failures(tmp_path).listed == [failure("/a.jpg"), failure("/c.jpg")]
    for name in ("/a.jpg", "/c.jpg"):
        failures.resolve(Path(name))
    failures.save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"image": "/b.j', b'{"image": "\xc3', b"\x00\x00", b"{}", b"null\n", b"\n\n"])
def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path, torn: bytes) -> None:
    failures = Failures(tmp_path)
    failures.add(failure("/a.jpg"))
    with failures.path.open("ab") as file:
        file.write(torn)
    again = Failures(tmp_path)
    assert again.listed == [failure("/a.jpg")]
    again.add(failure("/c.jpg"))
    assert Failures(tmp_path).listed == [failure("/a.jpg"), failure("/c.jpg")]


def test_a_name_with_a_newline_or_bad_bytes_stays_one_line(tmp_path: Path) -> None:
    failures, odd = Failures(tmp_path), Path(os.fsdecode(b"/a\n\xff\xe2\x80\xa8.jpg"))
    failures.add(failure(path_text(odd)))
    assert len(failures.path.read_bytes().splitlines()) == 1
    assert Failures(tmp_path).listed == [failure(path_text(odd))]
    failures.resolve(odd)
    assert failures.listed == []


def test_failures_on_a_full_disk_are_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="disk full"):
        Failures(tmp_path).add(failure("/a.jpg"))


def test_a_list_of_failures_that_cannot_be_read_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "failures.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"failures\.jsonl"):
        Failures(tmp_path)


# Whose folder it is.


def test_results_of_the_published_engine_are_left_alone(tmp_path: Path) -> None:
    photo, out = tmp_path / "a.jpg", tmp_path / "out"
    photo.write_bytes(b"a")
    theirs = out / f"{RUN_FOLDER_PREFIX}a" / "entities" / "summary.json"
    write_whole(theirs, b"{}")
    [folder] = assign_folders(out, [photo])
    assert folder.path.name == f"{RUN_FOLDER_PREFIX}a__{hashlib.sha256(b'a').hexdigest()[:8]}"


@pytest.mark.parametrize(
    ("left", "ours"),
    [
        ([], True),
        ([".1234.tmp"], True),
        (["journal.jsonl"], True),
        (["run.json", "original_image.png"], True),
        (["original_image.png"], False),
    ],
)
def test_what_a_killed_run_left_is_taken_up_again(tmp_path: Path, left: list[str], ours: bool) -> None:
    photo, out = tmp_path / "a.jpg", tmp_path / "out"
    photo.write_bytes(b"a")
    (out / f"{RUN_FOLDER_PREFIX}a").mkdir(parents=True)
    for name in left:
        (out / f"{RUN_FOLDER_PREFIX}a" / name).write_text("{")
    [folder] = assign_folders(out, [photo])
    assert (folder.path.name == f"{RUN_FOLDER_PREFIX}a") is ours


def test_a_file_of_the_folders_name_is_left_alone(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"a")
    (tmp_path / f"{RUN_FOLDER_PREFIX}a").write_text("mine")
    [folder] = assign_folders(tmp_path, [photo])
    assert folder.path.name.startswith(f"{RUN_FOLDER_PREFIX}a__")


@pytest.mark.parametrize("name", ["new", "new/deeper", "there"])
def test_the_output_folder_is_made_and_left_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    prepare_output(tmp_path / name)
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_way_is_said_before_anything_is_started(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="a file is in the way"):
        prepare_output(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("method", ["mkdir", "write_bytes"])
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EACCES, UsageError, "Permission denied"),
        (errno.EROFS, UsageError, "Read-only file system"),
        (errno.ENOSPC, OutputError, "disk full"),
    ],
)
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, code: int, kind: type[DataEngineError], words: str
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(kind, match=words):
        prepare_output(tmp_path / "out")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))
