from __future__ import annotations

import asyncio

import pytest

from dataengine import retry
from dataengine.errors import DataEngineError, StageError
from dataengine.journal import Answer
from dataengine.records import Usage
from dataengine.retry import patiently

PAID = Usage(input_tokens=10, usd=0.5, calls=1)


def passing(after: float | None = None, usage: Usage | None = PAID) -> StageError:
    error = StageError("not now", reason="server_error", retryable=True, retry_after=after)
    error.usage = usage
    return error


class Service:
    """Answers with the next of its outcomes, and remembers how long it was waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: DataEngineError | int) -> None:
        self.outcomes = list(outcomes)
        self.waited: list[float] = []
        monkeypatch.setattr(retry, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)

    async def call(self) -> Answer[int]:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, DataEngineError):
            raise outcome
        return Answer(outcome, PAID)

    def asked(self, patience: float = 60) -> Answer[int]:
        return asyncio.run(patiently(self.call, patience))


def test_an_answer_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, 7)
    assert service.asked() == Answer(7, PAID)
    assert service.waited == []


def test_failed_tries_are_waited_for_and_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, passing(), passing(after=9), passing(usage=None), 7)
    answer = service.asked()
    assert (answer.value, answer.usage.calls, answer.usage.usd) == (7, 3, 1.5)
    assert service.waited[1] == 9
    assert all(0 <= seconds <= 30 for seconds in service.waited)


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, *(passing() for _ in range(40)), 7)
    assert service.asked(patience=1e9).value == 7
    assert max(service.waited[:2]) <= 2
    assert max(service.waited[8:]) > 4
    assert len(set(service.waited)) > 30


def test_what_does_not_pass_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, StageError("blocked", reason="blocked"), 7)
    with pytest.raises(StageError, match="blocked"):
        service.asked()
    assert service.waited == []


@pytest.mark.parametrize("patience", [0, 3])
def test_no_wait_beyond_patience(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    service = Service(monkeypatch, passing(after=10), 7)
    with pytest.raises(StageError, match="not now"):
        service.asked(patience)
    assert service.waited == []


def test_the_last_failure_has_the_cost_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, passing(after=1), passing(after=1), StageError("blocked", reason="blocked"))
    with pytest.raises(StageError, match="blocked") as caught:
        service.asked()
    assert caught.value.usage == PAID + PAID
