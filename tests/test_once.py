from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from dataengine.once import OncePer


class Thing:
    """Something to compute about."""


def test_computed_once_also_when_many_ask_together() -> None:
    made: list[Thing] = []
    barrier = Barrier(4)

    def make(thing: Thing) -> int:
        made.append(thing)
        return len(made)

    once = OncePer(make)
    thing = Thing()

    def ask(_: int) -> int:
        barrier.wait()
        return once(thing)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {1}
    assert once(Thing()) == 2


def test_what_failed_is_tried_again() -> None:
    answers: Iterator[ValueError | int] = iter([ValueError("no"), 7])

    def make(thing: Thing) -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    once, thing = OncePer(make), Thing()
    with pytest.raises(ValueError, match="no"):
        once(thing)
    assert once(thing) == 7


def test_it_is_forgotten_with_its_object() -> None:
    once: OncePer[Thing, bytearray] = OncePer(lambda thing: bytearray(10))
    thing = Thing()
    once(thing)
    assert len(once._made) == 1
    del thing
    gc.collect()
    assert len(once._made) == 0
