"""Durable steps: whatever costs money or computing time is done once and kept.

A journal is a file of JSON lines, one for each finished step: `{"step", "key", "seconds", "usage", "result"}`. The key
is a digest of the step's name and of all that determines its answer, so a journal is resume, cache, cost ledger and
provenance in one. A step that failed after it was paid for leaves a line with `failed`, its reason, for a result. So
does one that a service blocked, which is an answer too: it is not asked for again until `forget_blocked`.

A line is on the disk before its step counts as done, so that neither a killed process nor a power cut loses an answer.
A line cut off by either is dropped when the journal is opened; its step runs again.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from dataengine import limits
from dataengine.errors import DataEngineError, StageError, output_error
from dataengine.records import StepTiming, Usage

T = TypeVar("T")

BLOCKED = "blocked"
_disk = ThreadPoolExecutor(4, "dataengine journal")  # not the loop's: waiting for a disk must not hold up picture work


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a part answers: the value, and what it cost."""

    value: T
    usage: Usage = field(default_factory=Usage)


_adapter = functools.cache(TypeAdapter)


class Journal:
    """The finished steps of one image.

    Args:
        path: the journal's file; it and its folder are made with the first step.

    Attributes:
        spent: cost of the steps done by this object; what was found in the file costs nothing again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        self._used: dict[str, dict[str, Any]] = {}
        self._lost: list[dict[str, Any]] = []
        self._blocked: dict[str, dict[str, Any]] = {}
        self._writing = threading.Lock()
        self.spent = Usage()
        self._paid: dict[str, Usage] = {}
        if path.exists():
            self._load()

    def _load(self) -> None:
        try:
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(self.path, len(whole))
        except OSError as error:
            raise output_error(error, self.path) from error
        for raw in whole.splitlines():
            try:
                self._take(json.loads(raw))
            except (ValueError, KeyError, TypeError, AttributeError):  # pydantic's ValidationError is a ValueError
                continue  # a damaged line is a step not done

    def _take(self, line: dict[str, Any]) -> None:
        """Count a line: a finished step, or one that failed."""
        if "forgotten" in line:
            self._blocked.clear()
            return
        key, usage = line["key"], Usage(**line["usage"])
        if "failed" not in line:
            self._lines[key] = line
        elif usage.calls:
            self._lost.append(line)
        if line.get("failed") == BLOCKED:
            self._blocked[key] = line
        stage = line["step"].split("/")[0]
        self._paid[stage] = self._paid.get(stage, Usage()) + usage

    async def once(
        self, step: str, inputs: Mapping[str, object], kind: Any, work: Callable[[], Awaitable[Answer[T]]]
    ) -> T:
        """The step's result, from the journal or by doing the work; what the work raises is not kept.

        Args:
            step: its name, `stage` or `stage/which`, such as `verify/002`.
            inputs: all that determines the answer, as JSON values.
            kind: the result's type, such as `list[Prompt]`.
            work: does it.

        Raises:
            StageError: what the work raises; or, without doing it, that a service blocked it before.
            StoppedError: the run begins nothing more.
        """
        adapter: TypeAdapter[T] = _adapter(kind)
        key = step_key(step, inputs)
        line = self._lines.get(key)
        if line is None or not _is_sound(line, adapter):
            line = await self._done(step, key, adapter, work)
        self._used[key] = line
        return adapter.validate_python(line["result"])

    async def _done(
        self, step: str, key: str, adapter: TypeAdapter[T], work: Callable[[], Awaitable[Answer[T]]]
    ) -> dict[str, Any]:
        """Do the work; the line that keeps it."""
        if key in self._blocked:
            raise StageError(self._blocked[key].get("message", "blocked before"), reason=BLOCKED)
        limits.current().check()
        started = time.perf_counter()
        try:
            answer = await work()
        except DataEngineError as error:
            await self._lose(step, key, time.perf_counter() - started, error)
            raise
        line = _line(step, key, time.perf_counter() - started, answer.usage)
        line["result"] = adapter.dump_python(answer.value, mode="json")
        await self._keep(line, answer.usage)
        return line

    async def _lose(self, step: str, key: str, seconds: float, error: DataEngineError) -> None:
        """Keep what a failed step cost, and that it was blocked: it is not done, but it was asked for."""
        usage = error.usage or Usage()
        if usage.calls or error.reason == BLOCKED:
            line = {**_line(step, key, seconds, usage), "failed": error.reason, "message": str(error)}
            await self._keep(line, usage)

    async def _keep(self, line: dict[str, Any], usage: Usage) -> None:
        """Write a line and count it; once begun, it is written even where who waits for it is cancelled."""
        writing = _disk.submit(self._append, line)
        await asyncio.shield(asyncio.wrap_future(writing))
        self._take(line)
        self.spent += usage

    def forget_blocked(self) -> int:
        """Let what was blocked be asked for again; how many answers that were."""
        forgotten = len(self._blocked)
        if forgotten:
            line = {"forgotten": BLOCKED}
            self._append(line)
            self._take(line)
        return forgotten

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = text.encode("utf-8", "surrogatepass")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._writing:
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    before = os.fstat(handle).st_size
                    if os.write(handle, data) < len(data):  # a full disk takes a part of the line
                        os.truncate(handle, before)
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(handle)
                finally:
                    os.close(handle)
                if not before:
                    for folder in (self.path.parent, self.path.parent.parent):  # the names of both
                        sync(folder)
        except OSError as error:
            raise output_error(error, self.path) from error

    @property
    def usage(self) -> Usage:
        """Cost of the steps used so far, also of those found in the journal, and of all that failed."""
        return sum((Usage(**line["usage"]) for line in (*self._used.values(), *self._lost)), Usage())

    def paid_by_stage(self) -> dict[str, Usage]:
        """All that was ever paid, also for answers that no longer count, where it was anything."""
        return {stage: usage for stage, usage in sorted(self._paid.items()) if usage.calls}

    def timing(self) -> list[StepTiming]:
        """Seconds by stage of the steps used so far, in the order they were first used."""
        seconds: dict[str, list[float]] = {}
        for line in self._used.values():
            seconds.setdefault(line["step"].split("/")[0], []).append(line["seconds"])
        return [
            StepTiming(
                step=step,
                total_seconds=round(sum(values), 4),
                count=len(values),
                avg_seconds=round(sum(values) / len(values), 4),
            )
            for step, values in seconds.items()
        ]


def sync(path: Path) -> None:
    """Have a file's content, or the names of a folder's files, on the disk, where the system has a call for it."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _line(step: str, key: str, seconds: float, usage: Usage) -> dict[str, Any]:
    return {"step": step, "key": key, "seconds": round(seconds, 4), "usage": usage.model_dump()}


def _is_sound(line: Mapping[str, Any], adapter: TypeAdapter[Any]) -> bool:
    """Whether a line has its cost and a result of the step's kind; another version may have written it."""
    try:
        Usage(**line["usage"])
        adapter.validate_python(line["result"])
        return isinstance(line["step"], str) and isinstance(line["seconds"], (int, float))
    except (KeyError, TypeError, ValidationError):
        return False


def identity(part: Any) -> list[str]:
    """What tells one part's answers from another's, for a step's inputs: name and version."""
    return [part.name, part.version]


def asked(annotator: Any, question: str, concept: str = "") -> list[object]:
    """What an annotator's answer to a question rests on beside the question's own inputs, for a step's inputs."""
    return [*identity(annotator), dict(annotator.basis(question, concept))]


def step_key(step: str, inputs: Mapping[str, object]) -> str:
    """`step` with a digest of its name and inputs; inputs must be JSON values."""
    return f"{step}:{digest([step, inputs])}"


def digest(value: object) -> str:
    """16 hex digits of the SHA-256 of a JSON value, the same for the same content in any order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
