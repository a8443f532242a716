from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from pydantic_ai import BinaryContent
from pydantic_ai.messages import ModelRequest, ModelResponse, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.usage import RequestUsage

from dataengine import limits
from dataengine.errors import StoppedError
from dataengine.jpeg import jpeg
from dataengine.limits import Limits
from dataengine.records import Usage
from dataengine.settings import load_settings
from dataengine.vlm import Question, Vlm
from dataengine.vlm.metered import PICTURE_TOKENS, Learned, input_tokens, usage_of
from tests.standins.vlm_server import Reply, VlmServer
from tests.vlm.test_vlm import GOOD, Fit, answering, ask, keys, settings

__all__ = ["keys"]  # a fixture

PICTURE = BinaryContent(jpeg(np.zeros((9, 9, 3), np.uint8)), media_type="image/jpeg")


def request(*content: Any, instructions: str = "") -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(content=list(content))], instructions=instructions)


@pytest.mark.parametrize(
    ("message", "side", "least"),
    [
        (request("x" * 900), 768, 900 / 3),
        (request("x", instructions="y" * 900), 768, 900 / 3),
        (request("х" * 900), 768, 900),  # Cyrillic: a token may have few letters
        (request(PICTURE, PICTURE), 768, 2 * PICTURE_TOKENS),
        (request(PICTURE), 1536, 4 * PICTURE_TOKENS),
        (request(PICTURE), 384, PICTURE_TOKENS),
    ],
)
def test_a_request_s_tokens_are_guessed_from_above(message: ModelRequest, side: int, least: float) -> None:
    guess = input_tokens([message], ModelRequestParameters(), side)
    assert least <= guess <= 2 * least + 200


def answer(tokens: int, model: str = "gemini-2.5-flash") -> ModelResponse:
    usage = RequestUsage(input_tokens=tokens, output_tokens=50)
    return ModelResponse(parts=[], usage=usage, model_name=model, provider_name="google")


def test_what_counts_pictures_higher_is_learned() -> None:
    learned, chosen = Learned(), load_settings({})
    assert learned.most(1000, 400, chosen).input_tokens == 1000
    learned.note(answer(5000), 1000)
    learned.note(answer(10), 1000)
    assert learned.most(2000, 400, chosen).input_tokens == 11_000  # five times, and a tenth more


def test_the_price_is_that_of_the_model_that_answers() -> None:
    learned, chosen = Learned(), load_settings({})
    learned.note(answer(10, "gemini-2.5-pro"), 1000)
    assert learned.most(1_000_000, 0, chosen).usd == pytest.approx(2.5)  # over 200,000 tokens
    assert load_settings({"price": "2,3"}).price == (2, 3)
    assert learned.most(1_000_000, 1_000_000, load_settings({"price": "2,3"})).usd == pytest.approx(5)


def test_without_a_bound_of_the_answer_nothing_but_the_call_is_set_aside() -> None:
    assert Learned().most(1000, None, load_settings({})) == Usage(calls=1)


@pytest.mark.parametrize(("model", "usd"), [("gemini-2.5-flash", True), ("nobody-knows", False)])
def test_the_cost_of_a_response(model: str, usd: bool) -> None:
    usage = usage_of(answer(1000, model), load_settings({}))
    assert (usage.input_tokens, usage.output_tokens, usage.calls) == (1000, 50, 1)
    assert (usage.usd is not None) is usd
    assert usage_of(answer(1000, model), load_settings({"price": "1,10"})).usd == pytest.approx(0.0015)


def test_the_bound_of_a_call_is_above_what_it_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[Usage, Usage]] = []
    end = Limits._end

    def noted(self: Limits, one: Any, call: limits.Call) -> None:
        bounds.append((call.most, call.usage))
        end(self, one, call)

    monkeypatch.setattr(Limits, "_end", noted)
    with VlmServer(replies=answering("no JSON", GOOD)) as server:
        ask(settings(server, budget_usd=9))
    assert len(bounds) == 2
    for most, cost in bounds:
        assert most.input_tokens > cost.input_tokens > 0 and most.output_tokens > cost.output_tokens
        assert (most.usd or 0) > (cost.usd or 9)


def test_a_failure_while_asking_again_costs_no_answer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_sleep(seconds: float) -> None:
        return None

    monkeypatch.setattr("dataengine.retry.sleep", no_sleep)
    replies = {"refute": [Reply(text="no JSON"), Reply(500), Reply(429), Reply(text=GOOD)]}
    with VlmServer(replies=replies) as server:
        answer = ask(settings(server, retry_seconds=60))
    assert len(server.asked) == 4
    assert (answer.usage.calls, answer.usage.reasked) == (2, 1)
    assert answer.value.accept


def test_a_run_that_is_stopped_asks_no_more() -> None:
    async def main(chosen: Any) -> None:
        bounds = Limits(chosen)
        limits.observe(bounds)
        bounds.stop(StoppedError("enough"))
        async with Vlm(chosen) as vlm:
            await vlm.ask(Question("align", "Judge.", ["The photo:"], Fit))

    with VlmServer() as server, pytest.raises(StoppedError, match="enough"):
        asyncio.run(main(settings(server)))
    assert server.asked == []


def test_the_time_out_is_of_one_try_and_not_of_its_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang and a 429 whose wait is longer than the time-out are both tried again."""
    replies = {"refute": [Reply(text=GOOD, hang=30), Reply(429, headers={"retry-after": "1.5"}), Reply(text=GOOD)]}
    with VlmServer(replies=replies) as server:
        answer = ask(settings(server, vlm_timeout=1, retry_seconds=60))
    assert (len(server.asked), answer.usage.calls) == (3, 1)


def test_the_time_in_which_a_call_is_held_back_is_no_time_out() -> None:
    async def main(chosen: Any) -> list[Any]:
        limits.observe(Limits(chosen))
        async with Vlm(chosen) as vlm:
            question = Question("align", "Judge.", ["The photo:"], Fit)
            return await asyncio.gather(*(vlm.ask(question) for _ in range(4)))

    replies = {"refute": [Reply(text=GOOD, hang=0.6)] * 4}
    with VlmServer(replies=replies) as server:
        answers = asyncio.run(main(settings(server, vlm_timeout=1, concurrency=1)))
    assert (len(server.asked), [a.usage.calls for a in answers]) == (4, [1] * 4)
