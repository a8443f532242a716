from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch

from dataengine.devices import Batch, Devices, device_names, in_bfloat16, is_out_of_memory
from dataengine.errors import StageError, UsageError


class Machine:
    """Work that doubles numbers, remembers its batches, and runs out of memory above a size."""

    def __init__(self, holds: int = 100) -> None:
        self.holds = holds
        self.batches: list[tuple[str, list[int]]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, device: str, jobs: Sequence[int]) -> list[int]:
        self.go.wait(10)
        self.batches.append((device, list(jobs)))
        if len(jobs) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if 13 in jobs:
            raise ValueError("13 is unlucky")
        return [2 * job for job in jobs]


def sizes(machine: Machine) -> list[int]:
    return [len(jobs) for _, jobs in machine.batches]


def test_a_batch_is_halved_until_memory_holds_it_and_stays_so() -> None:
    machine, batch = Machine(holds=3), Batch(8)
    assert batch.run(lambda jobs: machine("d", jobs), range(10)) == [2 * i for i in range(10)]
    assert sizes(machine) == [8, 4, 2, 2, 2, 2, 2]
    assert batch.largest == 2


def test_a_single_job_that_memory_does_not_hold_is_one_line() -> None:
    with pytest.raises(StageError, match="out of memory") as caught:
        Batch(4).run(lambda jobs: Machine(holds=0)("d", jobs), [1, 2])
    assert caught.value.reason == "out_of_memory"


def test_an_error_keeps_nothing_of_what_memory_did_not_hold() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def work(device: str, jobs: Sequence[torch.Tensor]) -> list[int]:
        activations = jobs[0] + 1
        made.append(weakref.ref(activations))
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise ValueError("a model's own complaint") if jobs[0][0] else MemoryError from None

    async def main(first: int) -> BaseException:
        run = Devices(["d"], batch=4).run(work, torch.full([9], first))
        (failure,) = await asyncio.gather(run, return_exceptions=True)
        assert isinstance(failure, BaseException)
        return failure

    failures = [asyncio.run(main(0)), asyncio.run(main(1))]
    gc.collect()
    assert [type(failure) for failure in failures] == [StageError, ValueError]
    assert failures[0].__context__ is None
    assert [one() for one in made] == [None] * 2


def torch_without_memory() -> None:
    torch.empty(10**15)


def python_without_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("ask", [torch_without_memory, python_without_memory])
def test_the_machines_own_memory_can_end_too(ask: Callable[[], None]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def ended(code: str) -> subprocess.CompletedProcess[str]:
    """A process in which `start(work)` gives a device something to do and returns when it is done or busy."""
    start = """
import asyncio, sys, threading, time
from dataengine.devices import Batch, Devices, leave_with
busy = threading.Event()
def start(work):
    async def main():
        task = asyncio.create_task(Devices(["d"], 1).run(work, 1))
        await asyncio.to_thread(busy.wait)
        task.cancel()
    asyncio.run(main())
"""
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60, check=False)


def test_a_process_ends_with_its_code_though_a_device_is_busy() -> None:
    done = ended("""
def work(device, jobs):
    busy.set()
    time.sleep(1000)
start(work)
leave_with(7)
print("last words", end="")
sys.exit(7)
""")
    assert (done.returncode, done.stdout, done.stderr) == (7, "last words", "")


def test_a_process_that_ends_waits_for_the_step_under_way_and_begins_no_other() -> None:
    done = ended("""
def step(chunk):
    busy.set()
    time.sleep(0.3)
    print("step", flush=True)
    return chunk
start(lambda device, jobs: [Batch(1).run(step, range(100000))])
sys.exit(7)
""")
    assert (done.returncode, done.stderr) == (7, "")
    assert 1 <= done.stdout.count("step") < 100


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(ValueError, match="unlucky"):
        Batch(4).run(lambda jobs: Machine()("d", jobs), [13])


def test_waiting_jobs_are_done_together() -> None:
    machine = Machine()

    async def main() -> list[int]:
        devices = Devices(["d"], batch=4)
        machine.go.clear()
        tasks = [asyncio.create_task(devices.run(machine, i)) for i in range(9)]
        await asyncio.sleep(0.05)
        machine.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [2 * i for i in range(9)]
    assert sum(sizes(machine)) == 9
    assert 4 in sizes(machine)
    assert max(sizes(machine)) == 4


def test_a_worker_that_waits_keeps_nothing_of_its_last_jobs() -> None:
    """What a model makes of a photo takes tens of megabytes of its device."""

    class Big:
        pass

    def work(device: str, jobs: Sequence[Big]) -> list[Big]:
        return [Big() for _ in jobs]

    async def main() -> list[weakref.ref[Big]]:
        job = Big()
        result = await Devices(["d"], batch=4).run(work, job)
        return [weakref.ref(job), weakref.ref(result)]

    kept = asyncio.run(main())
    deadline = time.monotonic() + 10
    while any(one() is not None for one in kept) and time.monotonic() < deadline:
        time.sleep(0.01)  # the worker's thread lets go a moment after it has answered
    assert [one() for one in kept] == [None, None]


def test_one_bad_job_fails_alone() -> None:
    machine = Machine()

    async def main() -> list[int | BaseException]:
        devices = Devices(["d"], batch=8)
        machine.go.clear()
        tasks = [asyncio.create_task(devices.run(machine, i)) for i in (1, 13, 3)]
        await asyncio.sleep(0.05)
        machine.go.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    one, bad, three = asyncio.run(main())
    assert (one, three) == (2, 6)
    assert isinstance(bad, ValueError)


def test_every_device_works_and_a_job_can_be_kept_on_one() -> None:
    machine = Machine()

    async def main() -> None:
        devices = Devices(["a", "b"], batch=1)
        machine.go.clear()
        tasks = [asyncio.create_task(devices.run(machine, i)) for i in range(4)]
        await asyncio.sleep(0.05)
        machine.go.set()
        await asyncio.gather(*tasks)
        await devices.run(machine, 7, on="b")

    asyncio.run(main())
    assert {device for device, _ in machine.batches} == {"a", "b"}
    assert machine.batches[-1] == ("b", [7])


def test_work_of_another_kind_is_not_mixed_in() -> None:
    one, other = Machine(), Machine()

    async def main() -> list[int]:
        devices = Devices(["d"], batch=8)
        one.go.clear()
        tasks = [asyncio.create_task(devices.run(m, i)) for i, m in enumerate((one, one, other, one, other))]
        await asyncio.sleep(0.05)
        one.go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]
    assert sorted(job for _, jobs in other.batches for job in jobs) == [2, 4]


def test_a_job_nobody_waits_for_is_not_done() -> None:
    machine = Machine()

    async def main() -> None:
        devices = Devices(["d"], batch=1)
        machine.go.clear()
        first, second = (asyncio.create_task(devices.run(machine, i)) for i in (1, 2))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        machine.go.set()
        await first
        await devices.run(machine, 3)

    asyncio.run(main())
    assert [jobs for _, jobs in machine.batches] == [[1], [3]]


@pytest.mark.parametrize(
    ("setting", "gpus", "expected"),
    [
        ("auto", 0, ("cpu",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:1, cpu", 2, ("cuda:1", "cpu")),
        ("cpu", 2, ("cpu",)),
        ("cuda", 0, None),
        ("cuda:2", 2, None),
        ("", 0, None),
    ],
)
def test_device_names(
    monkeypatch: pytest.MonkeyPatch, setting: str, gpus: int, expected: tuple[str, ...] | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is None:
        with pytest.raises(UsageError, match="--device"):
            device_names(setting)
    else:
        assert device_names(setting) == expected


@pytest.mark.parametrize(
    ("device", "precision", "capability", "expected"),
    [
        ("cpu", "auto", (0, 0), False),
        ("cpu", "bfloat16", (0, 0), True),
        ("cuda:0", "auto", (9, 0), True),
        ("cuda:0", "auto", (7, 5), False),
        ("cuda:0", "float32", (9, 0), False),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
    assert in_bfloat16(device, precision) == expected
