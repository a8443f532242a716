"""The files of a run folder: noted as they are read, kept within a folder if told, and looked at again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dataengine.sources import ABSENT, Sources, digest, inside, is_file, is_within, typed, unchanged

WHOLE, OTHER = b"whole\r\n\xff", b"other"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files, and a file beside it."""
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "a").write_bytes(WHOLE)
    (tmp_path / "run" / "sub" / "b").write_bytes(OTHER)
    (tmp_path / "beside").write_bytes(b"beside")
    return tmp_path / "run"


# Places.


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (inside("a"), "/run/a"),
        (inside("sub/b"), "/run/sub/b"),
        (inside("path:a"), "/run/path:a"),
        (typed("/beside"), "/beside"),
        (typed("beside"), "beside"),
        (typed("run:a"), "run:a"),
    ],
)
def test_a_place_is_in_the_run_folder_or_as_it_is_typed(place: str, path: str) -> None:
    assert Sources(Path("/run")).path(place) == Path(path)


def test_a_typed_path_is_of_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert Sources(folder).read(typed("beside")) == b"beside"
    assert Sources(folder).read(inside("beside")) is None


# Reading.


def test_what_is_read_is_noted_with_its_digest(folder: Path) -> None:
    sources = Sources(folder)
    assert sources.digests == {}
    assert sources.read(inside("a")) == WHOLE
    assert sources.read(inside("gone")) is None
    assert sources.read(typed(str(folder / "sub" / "b"))) == OTHER
    assert sources.digests == {
        "run:a": hashlib.sha256(WHOLE).hexdigest(),
        "run:gone": ABSENT,
        f"path:{folder}/sub/b": hashlib.sha256(OTHER).hexdigest(),
    }
    assert sources.sure


@pytest.mark.parametrize("name", ["gone", "sub", "", "..", "a/b", "nul\0byte", "n" * 300, "loop"])
def test_what_is_no_file_is_absent(folder: Path, name: str) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    for within in (None, folder):
        sources = Sources(folder, within=within)
        assert sources.read(inside(name)) is None
        assert sources.digests == {f"run:{name}": ABSENT}
        assert sources.sure


def test_a_file_that_cannot_be_read_makes_all_unsure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(folder)
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        refuse(patch, "a")
        sources.read(inside("a"))
    assert not sources.sure
    assert "run:a" not in sources.digests
    sources.read(inside("a"))
    assert not sources.sure


def refuse(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let one file be unreadable; root may read all."""
    before = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if self.name == name:
            raise PermissionError(13, "Permission denied")
        return before(self)

    patch.setattr(Path, "read_bytes", read_bytes)


# Within a folder.


def link_to(path: Path) -> Callable[[Path], str]:
    """Makes a link in the run folder; returns where it is."""

    def make(folder: Path) -> str:
        (folder / "link").symlink_to(folder.parent / path)
        return inside("link")

    return make


def link_to_the_folder_above(folder: Path) -> str:
    (folder / "link").symlink_to("..")
    return inside("link/beside")


def absolute(folder: Path) -> str:
    return typed(str(folder.parent / "beside"))


@pytest.mark.parametrize(
    "make",
    [link_to(Path("beside")), link_to_the_folder_above, absolute, lambda folder: inside("../beside")],
    ids=["link to a file", "link to a folder", "absolute", "upwards"],
)
def test_a_file_outside_is_absent(folder: Path, make: Callable[[Path], str]) -> None:
    place = make(folder)
    assert Sources(folder).read(place) == b"beside"
    sources = Sources(folder, within=folder)
    assert sources.read(place) is None
    assert sources.digests == {place: ABSENT}
    assert Sources(folder, within=folder.parent).read(place) == b"beside"


@pytest.mark.parametrize("place", [inside("a"), inside("sub/../a"), inside("../run/a"), inside("link/a")])
def test_a_file_inside_is_read_whichever_way_leads_to_it(folder: Path, place: str) -> None:
    (folder / "link").symlink_to(folder)
    assert Sources(folder, within=folder).read(place) == WHOLE
    assert Sources(folder / "link", within=folder).read(place) == WHOLE
    assert Sources(folder, within=folder / "link").read(place) == WHOLE


def test_a_folder_may_be_named_relative_to_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert Sources(Path("run"), within=Path("run")).read(inside("a")) == WHOLE
    assert Sources(Path("run"), within=Path("run")).read(inside("../beside")) is None


@pytest.mark.parametrize(
    ("path", "root", "is_in"),
    [
        ("run/a", "run", True),
        ("run", "run", True),
        ("run/gone/deep", "run", True),
        ("run/../beside", "run", False),
        ("run and more/a", "run", False),
        ("ru", "run", False),
        ("beside", "run", False),
        (".", "run", False),
        ("run", "beside", False),
        ("nul\0byte", ".", False),
    ],
)
def test_whether_a_path_is_in_a_folder(folder: Path, path: str, root: str, is_in: bool) -> None:
    assert is_within(folder.parent / path, folder.parent / root) == is_in


def test_a_path_is_where_its_links_lead(folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent)
    (folder.parent / "in").symlink_to(folder)
    assert not is_within(folder / "out" / "beside", folder)
    assert is_within(folder.parent / "in" / "a", folder)
    assert is_within(folder / "a", folder.parent / "in")


# Whether anything has changed.


def noted(folder: Path) -> dict[str, str]:
    sources = Sources(folder)
    for place in (inside("a"), inside("gone"), typed(str(folder.parent / "beside"))):
        sources.read(place)
    return sources.digests


def same_bytes_again(folder: Path) -> None:
    (folder / "a").unlink()
    (folder / "a").write_bytes(WHOLE)


@pytest.mark.parametrize(
    ("change", "as_before"),
    [
        (lambda folder: None, True),
        (same_bytes_again, True),
        (lambda folder: (folder / "sub" / "b").write_bytes(b"not asked for"), True),
        (lambda folder: (folder / "a").write_bytes(WHOLE[:-1] + b"\xfe"), False),
        (lambda folder: (folder / "a").unlink(), False),
        (lambda folder: (folder / "a").write_bytes(b""), False),
        (lambda folder: (folder / "gone").write_bytes(b""), False),
        (lambda folder: (folder.parent / "beside").write_bytes(b"other"), False),
    ],
)
def test_all_that_was_noted_tells_whether_anything_changed(
    folder: Path, change: Callable[[Path], object], as_before: bool
) -> None:
    before = noted(folder)
    change(folder)
    assert unchanged(folder, before) == as_before


@pytest.mark.parametrize("name", ["a", "beside"])
def test_a_file_that_cannot_be_read_may_have_changed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = noted(folder)
    refuse(monkeypatch, name)
    assert not unchanged(folder, before)


def test_where_nothing_was_noted_nothing_changed(folder: Path) -> None:
    assert unchanged(folder, {})


# What is a file.


@pytest.mark.parametrize(
    ("name", "file"),
    [("a", True), ("sub/../a", True), ("sub", False), ("gone", False), ("n" * 300, False), ("nul\0byte", False)],
)
def test_what_is_a_file(folder: Path, name: str, file: bool) -> None:
    assert is_file(folder / name) == file


def test_what_may_not_be_looked_at_is_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_permission(*_: object, **__: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", no_permission)
    assert not is_file(folder / "a")
    assert Sources(folder).read(inside("a")) is None


def test_a_digest_is_sha_256_in_hexadecimal() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"") != ABSENT
