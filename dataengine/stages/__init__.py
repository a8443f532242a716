"""The stages of one image, a file each: plain functions over the three parts, every answer a durable step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from dataengine.journal import BLOCKED

T = TypeVar("T")


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await work side by side; the first failure is raised when all have ended, so that every paid answer is kept.

    One that may pass stands before one that was blocked: the image is worth trying again.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            failures.append(result)
        else:
            results.append(result)
    if failures:
        raise min(failures, key=lambda failure: getattr(failure, "reason", "") == BLOCKED)
    return results
