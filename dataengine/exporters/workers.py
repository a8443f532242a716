"""Calls in worker processes, their results in the order of the calls."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import TypeVar

from dataengine.errors import DataEngineError

R = TypeVar("R")

MOST = 32  # each takes some 100 MB
PATIENCE = 2.0  # seconds of work before worker processes, which need about one to start, are worth it
AHEAD = 4  # calls for each worker that are under way or wait for their turn to be returned


def processors() -> int:
    """Processors this process may use, and at most `MOST`."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST)


class Workers:
    """Worker processes; a context, after which none is left, whatever happened in it.

    They are new processes and not copies of this one, whose threads (OpenCV's, torch's) would not survive that.

    Args:
        count: how many; below 2 there is none, and calls are made by this process.
        patience: seconds for which calls are made by this process: short work is done before workers have started.
    """

    def __init__(self, count: int, patience: float) -> None:
        self._count = count
        self._begin_at = time.monotonic() + patience
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def results(self, calls: Iterable[tuple[Callable[[], R], bool]]) -> Iterator[R]:
        """The results of calls, in their order; a few are under way at a time, however many there are.

        Args:
            calls: each a function that can be pickled, and whether a worker may call it. If not, this process calls
                it when its turn has come, after the results of all before it were taken.

        Raises:
            DataEngineError: a worker was killed. What a call raises comes through as it is.
        """
        waiting: deque[Callable[[], R]] = deque()
        for call, elsewhere in calls:
            pool = self._started() if elsewhere else None
            waiting.append(_begin(pool, call) if pool else call)
            if len(waiting) > (self._count * AHEAD if self._pool else 0):
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def _started(self) -> ProcessPoolExecutor | None:
        if self._pool is None and self._count > 1 and time.monotonic() >= self._begin_at:
            self._pool = ProcessPoolExecutor(self._count, get_context("spawn"), initializer=_begin_worker)
        return self._pool


def _begin(pool: ProcessPoolExecutor, call: Callable[[], R]) -> Callable[[], R]:
    with _whole(), _interrupts_held_back():
        future = pool.submit(call)

    def result() -> R:
        with _whole():
            return future.result()

    return result


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """A pool that lost a worker is one clear line."""
    try:
        yield
    except BrokenProcessPool:
        message = "a worker process was ended from outside, or memory is short"
        hint = 'Run the same again; it goes on where it was (a script must have `if __name__ == "__main__":`)'
        raise DataEngineError(message, hint=hint) from None


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """What is started in here never sees Ctrl-C, also while it starts: a terminal sends that to every process."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for its next call forever, also when the process that would send it was killed."""
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
