"""The output folder: which image has which run folder, which images failed, and what runs were told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from dataengine.errors import UsageError, output_error
from dataengine.images import RUN_FOLDER_PREFIX, Photo
from dataengine.leases import STATE
from dataengine.records import Failure, Source
from dataengine.run_folder import JOURNAL, RUN, RunFolder, path_text, write_whole
from dataengine.settings import Settings

FAILURES = "failures.jsonl"
IMAGES = "images.jsonl"  # in STATE: every image that a run was told of, an absolute path as a JSON string a line
SETTINGS = "settings.json"  # in STATE: those of the last run
LONGEST_NAME = 180  # bytes; file systems allow 255, and an export adds to it


def prepare_output(output_dir: Path) -> None:
    """Make the output folder and try to write in it.

    Raises:
        UsageError: it is a file or cannot be written; OutputError: the disk is full.
    """
    probe = output_dir / ".dataengine.tmp"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--output_dir {output_dir}: a file is in the way", hint="Name a folder") from None
    except OSError as error:
        failure = output_error(error, output_dir)
        if failure.reason == "disk_full":
            probe.unlink(missing_ok=True)
            raise failure from None
        raise UsageError(f"--output_dir {output_dir}: {failure.message}", hint="Choose another folder") from None


class Folders:
    """Which run folder each image has: `out_region_refine_<stem>`, the same one every time.

    A folder belongs to the image that its `run.json` names (or, where that file is gone, to one of the same content).
    Where the name is another image's, it takes `__<8 hex of its content>`.

    Args:
        images: all that will be asked for; ask for them in this order.
    """

    def __init__(self, output_dir: Path, images: Iterable[Path]) -> None:
        self._output_dir = output_dir
        self._made = _existing(output_dir)
        self._inputs = {path_text(image) for image in images}
        self._taken: set[str] = set()

    def of(self, image: Path) -> RunFolder:
        """An image's folder; asked again for the same image, another one than before."""
        base = base_name(image.stem)
        for name in self._made.get(base, ()):
            folder = RunFolder(self._output_dir / name)
            if name not in self._taken and folder.head and folder.head.source.path == path_text(image):
                break
        else:
            free = (n for n in _names(base, image) if n not in self._taken)
            folder = RunFolder(self._output_dir / next(n for n in free if self.is_free(n, image)))
        self._taken.add(folder.path.name)
        return folder

    def give_back(self, names: Iterable[str]) -> None:
        """Let folders that another process took for other images be theirs here too."""
        self._taken.difference_update(names)

    def is_free(self, name: str, image: Path) -> bool:
        """Whether a folder is nobody's, the image's own, or that of the same content under a path it no longer has."""
        head = RunFolder(self._output_dir / name).head
        if head is None:
            return _is_unclaimed(self._output_dir / name)
        if head.source.path == path_text(image):
            return True
        moved = head.source.path not in self._inputs and not Path(head.source.path).exists()
        return moved and sha256_of(image) == head.source.sha256


def assign_folders(output_dir: Path, images: Sequence[Path]) -> list[RunFolder]:
    """A folder for each image, in their order."""
    folders = Folders(output_dir, images)
    return [folders.of(image) for image in images]


def remember(output_dir: Path, images: Iterable[Path], settings: Settings) -> None:
    """Keep what a run was told: its settings, and its images beside those of earlier runs.

    Raises:
        OutputError: it cannot be written.
    """
    state = output_dir / STATE
    write_whole(state / SETTINGS, settings.model_dump_json(indent=2).encode())
    known = images_told(output_dir)
    told = {path_text(image): None for image in images}
    if not told.keys() <= known:
        lines = (json.dumps(image, ensure_ascii=False) + "\n" for image in {**dict.fromkeys(sorted(known)), **told})
        write_whole(state / IMAGES, "".join(lines).encode())


def images_told(output_dir: Path) -> set[str]:
    """The images that runs in this folder were told of."""
    told = set()
    for line in lines_of(output_dir / STATE / IMAGES):
        with contextlib.suppress(ValueError):
            told.add(str(from_json(line)))
    return told


def settings_told(output_dir: Path) -> dict[str, Any]:
    """The settings of the last run in this folder.

    Raises:
        UsageError: there was none.
    """
    try:
        found = from_json((output_dir / STATE / SETTINGS).read_bytes())
        return {key: value for key, value in found.items() if key in Settings.model_fields}
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{output_dir}: no run has written here", hint="Name the --output_dir of a run") from None


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file; none where it cannot be read."""
    try:
        return path.read_bytes().splitlines()
    except OSError:
        return []


def base_name(stem: str) -> str:
    """A run folder's name for an image's stem: control characters become underscores, long names are cut."""
    text = os.fsencode(stem).decode("utf-8", "replace")
    safe = "".join(c if c.isprintable() else "_" for c in text)
    if len(safe.encode()) > LONGEST_NAME - len(RUN_FOLDER_PREFIX):
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        safe = safe.encode()[: LONGEST_NAME - len(RUN_FOLDER_PREFIX) - 10].decode("utf-8", "ignore") + f"-{digest}"
    return RUN_FOLDER_PREFIX + safe


def _existing(output_dir: Path) -> dict[str, list[str]]:
    """The run folders there are, by their base name."""
    found: dict[str, list[str]] = {}
    if output_dir.is_dir():
        for name in sorted(entry.name for entry in os.scandir(output_dir) if entry.name.startswith(RUN_FOLDER_PREFIX)):
            for base in {name, re.sub(r"__[0-9a-f]{8}(_\d+)?$", "", name)}:
                found.setdefault(base, []).append(name)
    return found


def _names(base: str, image: Path) -> Iterator[str]:
    yield base
    content = (sha256_of(image) or hashlib.sha256(os.fsencode(image)).hexdigest())[:8]
    yield f"{base}__{content}"
    number = 2
    while True:
        yield f"{base}__{content}_{number}"
        number += 1


def _is_unclaimed(folder: Path) -> bool:
    """Whether there is no folder, or one that holds nothing, or only what a killed run of ours left: results of the
    published engine have no `run.json` and must not be touched."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        return True
    except OSError:  # a file of that name, or a folder that cannot be read
        return False
    return bool(names & {RUN, JOURNAL}) or all(name.startswith(".") for name in names)


def sha256_of(path: Path) -> str | None:
    """The digest of a file's bytes; None where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def source_of(photo: Photo) -> Source:
    """What `run.json` says of the image a folder was made from."""
    stat = photo.path.stat()
    return Source(
        path=path_text(photo.path),
        sha256=photo.sha256,
        bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        width=photo.width,
        height=photo.height,
    )


def content_now(image: Path, source: Source) -> str | None:
    """The digest of the image's bytes, without reading them where size and time are as recorded."""
    try:
        stat = image.stat()
    except OSError:
        return None
    if (stat.st_size, stat.st_mtime_ns) == (source.bytes, source.mtime_ns):
        return source.sha256
    return sha256_of(image)


class Failures:
    """`failures.jsonl`: the images that failed when they were last tried.

    A failure is appended when it happens; lines of images that have succeeded since are dropped by `save`.

    Args:
        lock: keeps other processes from the file while it is entered.

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, output_dir: Path, lock: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.path = output_dir / FAILURES
        self._lock = lock
        self._by_image: dict[str, Failure] = {}
        self._resolved: set[str] = set()
        with self._lock():
            if self._load():
                self._write()  # drops a line that a killed process left half written: the next one must not go on in it

    @property
    def listed(self) -> list[Failure]:
        """All of them, in the order they happened."""
        return list(self._by_image.values())

    def add(self, failure: Failure) -> None:
        """Append one."""
        self._by_image[failure.image] = failure
        self._resolved.discard(failure.image)
        try:
            with self._lock(), self.path.open("a", encoding="utf-8") as file:
                file.write(failure.model_dump_json() + "\n")
        except OSError as error:
            raise output_error(error, self.path) from error

    def resolve(self, image: Path) -> None:
        """Forget an image that is done."""
        if self._by_image.pop(path_text(image), None):
            self._resolved.add(path_text(image))

    def save(self) -> None:
        """Write the file anew, a line for each image, also those that other processes added; none where none failed."""
        with self._lock():
            self._by_image.clear()  # all of ours are in the file; what others have resolved is not
            self._load()
            for image in self._resolved:
                self._by_image.pop(image, None)
            self._write()

    def _write(self) -> None:
        if self._by_image:
            lines = (f"{failure.model_dump_json()}\n" for failure in self._by_image.values())
            write_whole(self.path, "".join(lines).encode())
        else:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise output_error(error, self.path) from error

    def _load(self) -> bool:
        """Read the file; whether any of it was damaged."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise output_error(error, self.path) from error
        damaged = not data.endswith(b"\n")
        for line in data.splitlines():
            try:
                failure = Failure.model_validate_json(line)
                self._by_image[failure.image] = failure
            except ValidationError:
                damaged = True
        return damaged
