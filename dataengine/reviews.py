"""`reviews.jsonl`: what people decided of a run folder's prompts, one line a decision; lines are only ever added.

The file is replayed when it is read. A reviewer's word on a prompt is their last decision that was not undone, and the
word that counts is the last of all reviewers'; who only changes a prompt leaves the verdict as it was. A decision is
about one prompt and its masks, which `basis` tells: where the engine has made others since, it lapses.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataengine.errors import DataEngineError, output_error
from dataengine.journal import sync
from dataengine.records import Decision, Judged
from dataengine.run_folder import REVIEWS


@dataclass(frozen=True)
class Key:
    """Which prompt of a run folder; `basis` is the digest of what was judged."""

    concept: str
    negative: bool
    index: int
    basis: str


class Reviews:
    """The decisions of one run folder, replayed.

    Args:
        data: the bytes of `reviews.jsonl`.

    Attributes:
        damaged: lines that cannot be read, such as one that was cut off.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.damaged = 0
        self._ids: set[str] = set()
        self._standing: dict[Key, list[Decision]] = {}
        for line in data.splitlines():
            if line.strip():
                try:
                    self.add(Decision.model_validate_json(line))
                except ValueError:
                    self.damaged += 1

    def add(self, decision: Decision) -> None:
        """Replay one more decision; one that was seen before changes nothing."""
        if decision.id in self._ids:
            return
        self._ids.add(decision.id)
        standing = self._standing.setdefault(key_of(decision), [])
        if decision.action == "undo":
            taken_back = (decision.reviewer, decision.undoes)
            standing[:] = [other for other in standing if (other.reviewer, other.id) != taken_back]
        else:
            standing.append(decision)

    def __contains__(self, decision_id: str) -> bool:
        """Whether a decision of that id was written."""
        return decision_id in self._ids

    def __len__(self) -> int:
        """Prompts that somebody's word stands on."""
        return sum(map(bool, self._standing.values()))

    def prompts(self) -> set[Key]:
        """The prompts that somebody's word stands on."""
        return {key for key, standing in self._standing.items() if standing}

    def word(self, key: Key) -> Judged | None:
        """The word that counts on a prompt: the last of all reviewers', and the last verdict that any has given."""
        standing = self._standing.get(key)
        if not standing:
            return None
        verdicts = [decision.after.verdict for decision in standing if decision.after.verdict]
        return standing[-1].after.model_copy(update={"verdict": verdicts[-1] if verdicts else None})

    def words(self, key: Key) -> dict[str, Judged]:
        """Each reviewer's own word on a prompt."""
        return {decision.reviewer: decision.after for decision in self._standing.get(key, ())}

    def decisions(self, key: Key, reviewer: str) -> list[Decision]:
        """A reviewer's decisions on a prompt that were not undone, oldest first."""
        return [decision for decision in self._standing.get(key, ()) if decision.reviewer == reviewer]


def key_of(decision: Decision) -> Key:
    """The prompt that a decision is about."""
    return Key(decision.concept, decision.negative, decision.index, decision.basis)


def append(folder: Path, decision: Decision) -> None:
    """Add a decision to a run folder's `reviews.jsonl`; when this returns it is on the disk.

    Several processes may do so at once. A line that was cut off is ended first, so that it spoils no other.

    Raises:
        OutputError: it cannot be written, and nothing of it is.
        DataEngineError: the file is a link, which might lead anywhere.
    """
    path = folder / REVIEWS
    data = decision.model_dump_json().encode() + b"\n"
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataEngineError(f"{path}: a link", hint="Decisions are written to plain files only") from None
        raise output_error(error, path) from error
    try:
        with _alone(handle):
            _write(handle, data)
            sync(folder)
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        os.close(handle)


def _write(handle: int, data: bytes) -> None:
    size = os.fstat(handle).st_size
    if size:
        os.lseek(handle, size - 1, os.SEEK_SET)
        data = data if os.read(handle, 1) == b"\n" else b"\n" + data
    try:
        if os.write(handle, data) < len(data):  # a full disk takes a part of the line
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError:
        os.truncate(handle, size)
        raise


@contextlib.contextmanager
def _alone(handle: int) -> Iterator[None]:
    """No other process writes to the file meanwhile, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows; a line is one write all the same
        yield
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield  # closing the file ends it
