"""The output folder: which image has which run folder, which images failed, and who may write."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from dataengine.errors import UsageError, output_error
from dataengine.images import RUN_FOLDER_PREFIX, Photo
from dataengine.records import Failure, Source
from dataengine.run_folder import JOURNAL, RUN, RunFolder, path_text, read_record, write_whole

FAILURES = "failures.jsonl"
LOCK = ".dataengine.lock"
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


@contextlib.contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Keep other processes from writing in an output folder; the operating system frees it when this one ends.

    Raises:
        UsageError: another run is writing there.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there two runs in one folder are the user's to avoid
        yield
        return
    with (output_dir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"--output_dir {output_dir}: another run is writing there"
            raise UsageError(message, hint="Wait for it to end, or name another folder") from None
        yield


def assign_folders(output_dir: Path, images: Sequence[Path]) -> list[RunFolder]:
    """A folder for each image: `out_region_refine_<stem>`, the same one every time.

    A folder belongs to the image that its `run.json` names (or, where that file is gone, to one of the same content).
    Where the name is another image's, it takes `__<8 hex of its content>`.
    """
    made = _existing(output_dir)
    inputs = {path_text(image) for image in images}
    taken: set[str] = set()
    folders = []
    for image in images:
        base = base_name(image.stem)
        own = (
            name for name in made.get(base, ()) if name not in taken and _owner(output_dir / name) == path_text(image)
        )
        name = next(own, None) or next(
            n for n in _names(base, image) if n not in taken and _is_free(output_dir / n, image, inputs)
        )
        taken.add(name)
        folders.append(RunFolder(output_dir / name))
    return folders


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


def _owner(folder: Path) -> str | None:
    record = read_record(folder)
    return record.source.path if record else None


def _is_free(folder: Path, image: Path, inputs: set[str]) -> bool:
    """Whether a folder is nobody's, or that of the same content under a path it no longer has."""
    record = read_record(folder)
    if record is None:
        return _is_unclaimed(folder)
    moved = record.source.path not in inputs and not Path(record.source.path).exists()
    return moved and sha256_of(image) == record.source.sha256


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

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / FAILURES
        self._by_image: dict[str, Failure] = {}
        if self._load():
            self.save()  # drops a line that a killed process left half written: the next one must not go on in it

    @property
    def listed(self) -> list[Failure]:
        """All of them, in the order they happened."""
        return list(self._by_image.values())

    def add(self, failure: Failure) -> None:
        """Append one."""
        self._by_image[failure.image] = failure
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(failure.model_dump_json() + "\n")
        except OSError as error:
            raise output_error(error, self.path) from error

    def resolve(self, image: Path) -> None:
        """Forget an image that is done."""
        self._by_image.pop(path_text(image), None)

    def save(self) -> None:
        """Write the file anew, a line for each image; none where there is no failure."""
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
