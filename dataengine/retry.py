"""Calls to a service: made within the run's limits, and tried again while the failure may pass."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import tenacity

from dataengine import limits
from dataengine.errors import DataEngineError
from dataengine.journal import Answer
from dataengine.records import Usage

T = TypeVar("T")

_BACK_OFF = tenacity.wait_random_exponential(multiplier=1, max=30)  # full jitter: 0..1 s, 0..2 s, 0..4 s, …


async def sleep(seconds: float) -> None:
    """Wait before the next try; replaced by tests."""
    await limits.current().pause(seconds)


async def patiently(
    call: Callable[[], Awaitable[Answer[T]]], patience: float, *, service: str = "", most: Usage = limits.ONE_CALL
) -> Answer[T]:
    """The call's answer; a failure that is `retryable` is tried again, after the wait its service asks for.

    Args:
        patience: seconds of trying and waiting, in all; no wait is begun that would end after them. The time in which
            the run's limits hold a call back does not count.
        service: whom it goes to, in words of the caller's; what slows one down does not slow another.
        most: the most that one try can cost.

    Returns:
        The answer; its usage has the cost of the failed tries too.

    Raises:
        DataEngineError: the last failure; its usage has the cost of all tries.
    """
    lost, tried = Usage(), 0.0

    def wait(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.retry_after if isinstance(failure, DataEngineError) else None
        return _BACK_OFF(state) if asked is None else asked

    async def one_try() -> Answer[T]:
        nonlocal tried
        async with limits.current().call(service, most) as paid:
            started = time.monotonic()
            try:
                answer = await call()
            finally:
                tried += time.monotonic() - started
            paid.usage = answer.usage
            return answer

    async def once() -> Answer[T]:
        nonlocal lost
        try:
            return await one_try()
        except DataEngineError as error:
            lost += error.usage or Usage()
            error.usage = lost
            raise

    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, DataEngineError) and error.retryable),
        wait=wait,
        stop=lambda state: tried + state.idle_for + state.upcoming_sleep >= patience,
        sleep=lambda seconds: sleep(seconds),
        reraise=True,
    )
    answer: Answer[T] = await attempts(once)
    return replace(answer, usage=lost + answer.usage)
