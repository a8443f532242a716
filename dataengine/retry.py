"""Calls over a network, tried again while the failure may pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import tenacity

from dataengine.errors import DataEngineError
from dataengine.journal import Answer
from dataengine.records import Usage

T = TypeVar("T")

_BACK_OFF = tenacity.wait_random_exponential(multiplier=1, max=30)  # full jitter: 0..1 s, 0..2 s, 0..4 s, …

sleep = asyncio.sleep  # switched off by tests


async def patiently(call: Callable[[], Awaitable[Answer[T]]], patience: float) -> Answer[T]:
    """The call's answer; a failure that is `retryable` is tried again, after the wait its service asks for.

    Args:
        patience: seconds from the first try; no wait is begun that would end after them.

    Returns:
        The answer; its usage has the cost of the failed tries too.

    Raises:
        DataEngineError: the last failure; its usage has the cost of all tries.
    """
    lost = Usage()

    def wait(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.retry_after if isinstance(failure, DataEngineError) else None
        return _BACK_OFF(state) if asked is None else asked

    async def once() -> Answer[T]:
        nonlocal lost
        try:
            return await call()
        except DataEngineError as error:
            lost += error.usage or Usage()
            error.usage = lost
            raise

    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, DataEngineError) and error.retryable),
        wait=wait,
        stop=tenacity.stop_before_delay(patience),
        sleep=lambda seconds: sleep(seconds),
        reraise=True,
    )
    answer: Answer[T] = await attempts(once)
    return replace(answer, usage=lost + answer.usage)
