"""Models on this machine: a thread for each device, waiting jobs taken together, fewer of them where memory ends.

Torch is imported by the functions that need it, never with this module.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dataengine.errors import StageError, UsageError

J = TypeVar("J")
R = TypeVar("R")

Work = Callable[[str, Sequence[J]], Sequence[R]]  # (device, jobs) -> a result for each job

LAST_WAIT = 3.0  # seconds that the process's end waits for a step of a model; most take less, on a CPU too


def device_names(setting: str) -> tuple[str, ...]:
    """Torch's names of the devices to use: one worker each.

    Args:
        setting: `auto` (every visible GPU, else the CPU), `cuda` (every visible GPU), or names such as `cuda:1` and
            `cpu` with commas between them.

    Raises:
        UsageError: a device is named that is not there.
    """
    import torch

    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if setting == "auto":
        return tuple(there) or ("cpu",)
    names = there if setting == "cuda" else [name.strip() for name in setting.split(",")]
    missing = [name for name in names if name not in ("cpu", *there)]
    if missing or not names:
        found = ", ".join(there) or "no GPU"
        raise UsageError(f"--device {setting}: torch sees {found}", hint="Name one of those, or cpu, or auto")
    return tuple(names)


def in_bfloat16(device: str, precision: str) -> bool:
    """Whether a device computes in bfloat16 where that is enough (autocast): by `auto` on GPUs made for it."""
    import torch

    if precision != "auto":
        return precision == "bfloat16"
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)


class Batch:
    """Runs jobs together, as many at once as memory holds: an out-of-memory error halves the number and it goes on.

    Attributes:
        largest: jobs at once; lower after an out-of-memory error.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest

    def run(self, work: Callable[[Sequence[J]], Sequence[R]], jobs: Sequence[J]) -> list[R]:
        """A result for each job, in their order.

        Raises:
            StageError: memory does not hold a single job; its reason is `out_of_memory`.
            SystemExit: the process ends.
        """
        results: list[R] = []
        while len(results) < len(jobs):
            if _end.begun.is_set():
                raise SystemExit
            chunk = jobs[len(results) : len(results) + self.largest]
            try:
                results += work(chunk)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Not before the error is gone: it holds what was computed, and would as another error's context.
            _free()
            if len(chunk) == 1:
                hint = "Use a smaller model, another --device, or --max_side"
                raise StageError("out of memory on the device", hint=hint, reason="out_of_memory")
            self.largest = max(1, len(chunk) // 2)
        return results


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device is full, or the machine's own."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # on the CPU torch has no class for it (c10/core/impl/alloc_cpu.cpp)
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _free() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(eq=False)
class _Waiting(Generic[J, R]):
    work: Work[J, R]
    job: J
    batch: Batch
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[R]

    def settle(self, result: R | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            self.loop.call_soon_threadsafe(self._set, result)

    def _set(self, result: R | BaseException) -> None:
        if self.answer.done():
            return
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class Devices:
    """A worker thread for each device.

    Args:
        names: torch's names of the devices.
        batch: jobs of one kind that a device takes together at most.
    """

    def __init__(self, names: Sequence[str], batch: int) -> None:
        self.names = tuple(names)
        self._batch = batch
        self._workers = {name: _Worker(name) for name in names}
        self._batches: dict[tuple[str, Any], Batch] = {}

    async def run(self, work: Work[J, R], job: J, *, on: str | None = None) -> R:
        """The result of `work` for a job; jobs that wait for the same work on the same device are done together.

        Where a job of several fails, each is tried on its own, so that it fails alone.

        Args:
            work: called in the device's thread with the device's name and the jobs; a bound method or function, the
                same object's for what may be done together.
            on: the device that must do it; else the one with the least waiting.
        """
        worker = self._workers[on] if on else min(self._workers.values(), key=_Worker.load)
        loop = asyncio.get_running_loop()
        batch = self._batches.setdefault((worker.name, work), Batch(self._batch))
        waiting: _Waiting[J, R] = _Waiting(work, job, batch, loop, loop.create_future())
        worker.put(waiting)
        return await waiting.answer


class _End:
    """The process's end. A thread that is inside torch while Python is taken down aborts the process (SIGABRT).

    Attributes:
        begun: set when no work may begin any more.
        code: the exit code, where it is known: with it the process is left though a thread works on.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.code: int | None = None
        self._workers: list[_Worker] = []

    def await_at_exit(self, worker: _Worker) -> None:
        if not self._workers:
            atexit.register(self._wait)
        self._workers.append(worker)

    def _wait(self) -> None:
        self.begun.set()
        deadline = None if self.code is None else time.monotonic() + LAST_WAIT
        try:
            at_rest = all(worker.ends_by(deadline) for worker in self._workers)
        except KeyboardInterrupt:  # by who does not want to wait
            self.code, at_rest = 130, False
        if not at_rest and self.code is not None:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # closed, or its reader has gone
                    stream.flush()
            os._exit(self.code)


_end = _End()


def leave_with(code: int) -> None:
    """Tell what the process, which is about to end, ends with: then its end waits a few seconds at most for a device.

    Else it waits until each device has finished the step it is at.
    """
    _end.code = code


def _let_go(error: BaseException) -> BaseException:
    """The error without what its finished frames held (photos, tensors), for it may be kept; their lines stay."""
    linked: BaseException | None = error
    while linked is not None:
        traceback.clear_frames(linked.__traceback__)
        linked = linked.__context__
    return error


class _Worker:
    """One device's thread; it starts with the first job and ends with the process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: deque[_Waiting[Any, Any]] = deque()
        self._busy = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def load(self) -> int:
        return len(self._waiting) + self._busy

    def put(self, waiting: _Waiting[Any, Any]) -> None:
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=f"dataengine {self.name}", daemon=True)
                self._thread.start()
                _end.await_at_exit(self)

    def ends_by(self, deadline: float | None) -> bool:
        """Whether the thread, told to end, has ended by then (`time.monotonic`)."""
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._thread is None or not self._thread.is_alive()

    def _serve(self) -> None:
        while not _end.begun.is_set():
            self._serve_next()

    def _serve_next(self) -> None:
        """A function of its own, so that the thread keeps no job and no result while it waits for others."""
        if taken := self._take():
            self._do(taken)
        self._busy = 0

    def _take(self) -> list[_Waiting[Any, Any]]:
        """The job that has waited longest, with those that can be done with it."""
        with self._changed:
            while not (self._waiting or _end.begun.is_set()):
                self._changed.wait()
            for waiting in [w for w in self._waiting if w.answer.cancelled()]:
                self._waiting.remove(waiting)
            if not self._waiting:
                return []
            first = self._waiting[0]
            alike = [w for w in self._waiting if w.work == first.work]
            taken = alike[: first.batch.largest]
            for waiting in taken:
                self._waiting.remove(waiting)
            self._busy = len(taken)
            return taken

    def _do(self, taken: Sequence[_Waiting[Any, Any]]) -> None:
        results = self._tried(taken)
        if not isinstance(results, BaseException):
            for waiting, result in zip(taken, results, strict=True):
                waiting.settle(result)
        elif len(taken) == 1:
            taken[0].settle(results)
        else:
            for waiting in taken:
                self._do([waiting])

    def _tried(self, taken: Sequence[_Waiting[Any, Any]]) -> list[Any] | BaseException:
        """A result for each, or why there is none: an error that keeps nothing of the jobs."""
        first = taken[0]
        try:
            return first.batch.run(lambda jobs: first.work(self.name, jobs), [w.job for w in taken])
        except BaseException as error:
            here = error.__traceback__
            return _let_go(error).with_traceback(here.tb_next if here else None)
