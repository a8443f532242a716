"""Calls in worker processes: order, how many wait, and how it ends when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from dataengine.errors import DataEngineError, OutputError
from dataengine.exporters.workers import AHEAD, MOST, Workers, processors


def who(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))  # later calls end before earlier ones
    return number, os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise OutputError("disk full", hint="Free some", reason="disk_full")
    return number


def vanish(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def calls_of(function: Callable[[int], object], count: int = 12) -> Iterator[tuple[Callable[[], object], bool]]:
    return ((partial(function, number), True) for number in range(count))


def test_results_come_in_the_order_of_the_calls_from_other_processes() -> None:
    with Workers(2, 0) as workers:
        results = list(workers.results((partial(who, number), True) for number in range(20)))
    assert [number for number, _ in results] == list(range(20))
    pids = {pid for _, pid in results}
    assert os.getpid() not in pids
    assert all(_is_gone(pid) for pid in pids)


@pytest.mark.parametrize(("count", "patience"), [(1, 0.0), (2, 600.0)])
def test_one_worker_or_short_work_is_this_process(count: int, patience: float) -> None:
    with Workers(count, patience) as workers:
        assert {pid for _, pid in workers.results((partial(who, n), True) for n in range(3))} == {os.getpid()}


def test_few_calls_are_under_way_at_a_time() -> None:
    begun, most = 0, 0

    def calls() -> Iterator[tuple[Callable[[], object], bool]]:
        nonlocal begun
        for call in calls_of(refuse, 3 * 2 * AHEAD):
            begun += 1
            yield partial(int, begun), call[1]

    with Workers(2, 0) as workers:
        for taken, _ in enumerate(workers.results(calls())):
            most = max(most, begun - taken)
    assert most == 2 * AHEAD + 1


def test_a_call_of_this_process_sees_that_all_before_it_were_taken() -> None:
    taken: list[object] = []

    def look() -> int:
        return len(taken)

    calls = [(look, False) if number % 4 == 3 else (partial(int, number), True) for number in range(16)]
    with Workers(2, 0) as workers:
        for result in workers.results(calls):
            taken.append(result)  # noqa: PERF402 - what was taken is looked at meanwhile
    assert taken == list(range(16))


def test_what_a_call_raises_comes_through_whole() -> None:
    with pytest.raises(OutputError, match="disk full") as caught, Workers(2, 0) as workers:
        list(workers.results(calls_of(refuse)))
    assert (caught.value.hint, caught.value.reason) == ("Free some", "disk_full")


def test_a_worker_that_was_killed_is_one_clear_line() -> None:
    with pytest.raises(DataEngineError, match="ended from outside") as caught, Workers(2, 0) as workers:
        list(workers.results(calls_of(vanish)))
    assert "again" in caught.value.hint


def test_there_is_a_limit_to_the_workers() -> None:
    assert 1 <= processors() <= MOST


SLOW = """
import os, sys, time
from functools import partial
from dataengine.exporters.workers import Workers
def slow(number):
    print(os.getpid(), flush=True)
    time.sleep(0.3)
if __name__ == "__main__":
    with Workers(2, 0) as workers:
        list(workers.results((partial(slow, n), True) for n in range(1000)))
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals of POSIX")
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: str) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stderr is not None
    pids = {int(process.stdout.readline()) for _ in range(4)}
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    else:
        process.kill()
    _, said = process.communicate(timeout=30)
    if how == "interrupt":
        assert said.count("Traceback") == 1  # this script's own; none of a worker's
        assert said.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 30
    while not all(_is_gone(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"  # ended; init has not looked yet
