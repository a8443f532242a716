"""Limits on calls, in a clock of the test's own: a loop whose time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from dataengine import limits
from dataengine.errors import StageError, StoppedError
from dataengine.limits import Limits
from dataengine.records import Usage
from tests.scripted import settings

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Does not wait: the loop's clock is put forward by the time it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        assert ready or timeout is not None, "nothing is left to wait for: a deadlock"
        return ready


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop whose clock jumps."""
    selector = _Jumping()

    def loop() -> asyncio.AbstractEventLoop:
        made = asyncio.SelectorEventLoop(selector)
        made.time = lambda: selector.now  # type: ignore[method-assign]
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)


def tokens(count: int) -> Usage:
    return Usage(input_tokens=count, calls=1)


class Service:
    """Takes a second for each call, and keeps when each was started and how many were in flight."""

    def __init__(self, bounds: Limits, *, seconds: float = 1.0, most: Usage | None = None, cost: Usage | None = None):
        self.bounds, self.seconds, self.name = bounds, seconds, "service"
        self.most_cost, self.cost = most or tokens(10), cost or tokens(5)
        self.started: list[float] = []
        self.in_flight = self.most = 0
        self.refuses: list[int] = []

    async def call(self) -> None:
        async with self.bounds.call(self.name, self.most_cost) as paid:
            number = len(self.started)
            self.started.append(asyncio.get_running_loop().time())
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            try:
                await asyncio.sleep(self.seconds)
            finally:
                self.in_flight -= 1
            if number in self.refuses:
                raise StageError("slow down", reason="rate_limited", retryable=True)
            paid.usage = self.cost

    async def calls(self, count: int) -> list[BaseException | None]:
        return await asyncio.gather(*(self.call() for _ in range(count)), return_exceptions=True)


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_calls_are_in_flight_than_said(concurrency: int) -> None:
    service = Service(Limits(settings(concurrency=concurrency)))
    at_once(service.calls(24))
    assert service.most == concurrency
    assert max(service.started) == 24 / concurrency - 1  # and no fewer
    assert service.bounds.spent == Usage(input_tokens=24 * 5, calls=24)


@pytest.mark.parametrize(("rpm", "seconds"), [(30, 0.1), (120, 0.1), (120, 40)])
def test_calls_a_minute_are_never_more_than_said(rpm: int, seconds: float) -> None:
    service = Service(Limits(settings(concurrency=64, rpm=rpm)), seconds=seconds)
    at_once(service.calls(3 * rpm))
    starts = service.started
    assert all(late - early >= 60 - 1e-6 for early, late in zip(starts, starts[rpm:], strict=False))
    if seconds < 1:
        assert starts[-1] == pytest.approx(180 - 60 / rpm)  # and no fewer


def test_tokens_a_minute_count_what_calls_took_and_what_those_under_way_may_take() -> None:
    service = Service(Limits(settings(concurrency=64, tpm=100)), most=tokens(40), cost=tokens(10))
    at_once(service.calls(25))
    for start in service.started:
        assert sum(10 for other in service.started if start <= other < start + 60) <= 100
    assert service.most == 2  # 40 and 40; a third might have made it 120
    assert 120 <= max(service.started) < 190


def test_a_call_larger_than_the_tokens_of_a_minute_goes_alone() -> None:
    service = Service(Limits(settings(tpm=100)), most=tokens(400), cost=tokens(300))
    at_once(service.calls(3))
    assert service.started == [0, 60, 120]


@pytest.mark.parametrize(
    ("bound", "most", "cost", "done"),
    [
        ({"budget_tokens": 100}, tokens(10), tokens(10), 10),
        ({"budget_tokens": 99}, tokens(10), tokens(10), 9),
        ({"budget_tokens": 100}, tokens(30), tokens(10), 8),  # at 80 the next could take it to 110
        ({"budget_usd": 1.0}, Usage(usd=0.25, calls=1), Usage(usd=0.125, calls=1), 7),
        ({"budget_tokens": 9}, tokens(10), tokens(10), 0),
    ],
)
def test_the_budget_is_not_passed_and_is_used_as_far_as_is_sure(
    bound: dict[str, Any], most: Usage, cost: Usage, done: int
) -> None:
    service = Service(Limits(settings(concurrency=16, **bound)), most=most, cost=cost)
    ends = at_once(service.calls(20))
    stopped = [end for end in ends if isinstance(end, StoppedError)]
    assert (len(service.started), len(stopped)) == (done, 20 - done)
    assert service.bounds.spent.calls == done
    assert {end.reason for end in stopped} == {"budget"}
    ((name, value),) = bound.items()
    assert str(stopped[0]).startswith(f"--{name} {value:g}: ")


def test_what_was_spent_before_counts() -> None:
    service = Service(Limits(settings(budget_tokens=100), tokens(95)), most=tokens(10))
    at_once(service.calls(1))
    assert service.started == []


def test_a_cost_that_is_not_known_ends_a_run_with_a_budget() -> None:
    service = Service(Limits(settings(budget_usd=100)), cost=Usage(calls=1, usd=None))
    (first, second) = at_once(Service.calls(service, 1)), at_once(service.calls(1))
    assert (first, type(second[0])) == ([None], StoppedError)
    assert "--price" in str(second[0])


def test_a_service_that_asks_to_slow_down_gets_half_and_recovers() -> None:
    service = Service(Limits(settings(concurrency=16)))
    service.refuses = list(range(10))  # all of one burst: one jam
    at_once(service.calls(16))
    service.most = 0
    at_once(service.calls(8))
    assert service.most == 8
    at_once(service.calls(200))
    assert service.most == 16


def test_a_service_that_goes_on_asking_is_left_with_one_call_at_a_time() -> None:
    service = Service(Limits(settings(concurrency=16)))
    service.refuses = list(range(1000))
    at_once(service.calls(100))
    service.most = 0
    service.refuses = []
    at_once(service.calls(2))
    assert service.most == 1


def test_one_service_s_jam_does_not_slow_another() -> None:
    bounds = Limits(settings(concurrency=16))
    jammed, other = Service(bounds), Service(bounds)
    other.name = "other"
    jammed.refuses = list(range(1000))
    at_once(jammed.calls(100))
    at_once(other.calls(32))
    assert other.most == 16


def test_calls_to_all_services_together_are_bounded() -> None:
    async def both(bounds: Limits) -> int:
        one, two = Service(bounds), Service(bounds)
        two.name = "two"
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, one.in_flight + two.in_flight)
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        await asyncio.gather(one.calls(20), two.calls(20))
        watching.cancel()
        return most

    assert at_once(both(Limits(settings(concurrency=5)))) == 5


def test_stopping_gives_up_what_waits_and_lets_end_what_is_under_way() -> None:
    service = Service(Limits(settings(concurrency=2)), seconds=10)

    async def stopped() -> list[BaseException | None]:
        calls = asyncio.create_task(service.calls(5))
        await asyncio.sleep(1)
        service.bounds.stop(StoppedError("enough", reason="interrupted", exit_code=130))
        return await calls

    ends = at_once(stopped())
    assert [type(end) for end in ends] == [type(None)] * 2 + [StoppedError] * 3
    assert service.bounds.spent.calls == 2
    assert {end.exit_code for end in ends if isinstance(end, StoppedError)} == {130}


def test_a_pause_ends_when_the_run_is_stopped() -> None:
    async def paused() -> tuple[float, float]:
        bounds, loop = Limits(settings()), asyncio.get_running_loop()
        await bounds.pause(7)
        first = loop.time()
        loop.call_later(3, bounds.stop, StoppedError("enough"))
        await bounds.pause(100)
        return first, loop.time()

    assert at_once(paused()) == (7, 10)


def test_a_call_given_up_leaves_its_place() -> None:
    service = Service(Limits(settings(concurrency=1)), seconds=1000)

    async def given_up() -> float:
        for _ in range(2):  # one under way, one that waits
            first, second = asyncio.create_task(service.call()), asyncio.create_task(service.call())
            await asyncio.sleep(1)
            first.cancel(), second.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
        service.seconds = 1
        await service.call()
        return asyncio.get_running_loop().time()

    assert at_once(given_up()) == 3


def test_outside_of_a_run_nothing_is_bounded() -> None:
    service = Service(limits.current())
    at_once(service.calls(200))
    assert service.most == 200
