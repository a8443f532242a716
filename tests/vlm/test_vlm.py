from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from dataengine.errors import DataEngineError, KeyRefusedError, UsageError
from dataengine.journal import Answer
from dataengine.jpeg import jpeg
from dataengine.records import Usage
from dataengine.settings import QUESTIONS, Settings, load_settings
from dataengine.vlm import Question, Vlm
from tests.standins.serving import Sent
from tests.standins.vlm_server import KEY, Reply, VlmServer

MODELS = {"google": "google:gemini-flash-latest", "openai": "openai:gpt-4o", "anthropic": "anthropic:claude-haiku-4-5"}
GOOD = '{"reason": "a cup", "accept": true}'
ONE_CALL = {"input_tokens": 1000, "output_tokens": 70, "calls": 1}


class Fit(BaseModel):
    reason: str
    accept: bool


def picture() -> bytes:
    return jpeg(np.full((60, 90, 3), 200, np.uint8))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)


def settings(server: VlmServer, provider: str = "google", **other: Any) -> Settings:
    url = server.url + ("/v1" if provider == "openai" else "")
    kept = {"vlm": MODELS[provider], "vlm_base_url": url, "retry_seconds": 0, "vlm_timeout": 5}
    return load_settings({**kept, **other})


def ask(chosen: Settings, stage: str = "align") -> Answer[Fit]:
    async def main() -> Answer[Fit]:
        async with Vlm(chosen) as vlm:
            return await vlm.ask(Question(stage, "Judge.", ["The photo:", picture()], Fit))

    return asyncio.run(main())


def answering(*texts: str) -> dict[str, list[Reply]]:
    return {"refute": [Reply(text=text) for text in texts]}


@pytest.mark.parametrize("provider", MODELS)
def test_a_question_arrives_whole_and_its_answer_is_typed_and_paid(provider: str) -> None:
    with VlmServer(replies=answering(GOOD)) as server:
        answer = ask(settings(server, provider))
    (asked,) = server.asked
    assert (asked.instruction, asked.images, asked.temperature) == ("Judge.", [(90, 60)], 0.7)
    assert asked.texts == ["The photo:"]
    assert asked.jpegs == [picture()]
    assert list(asked.schema["properties"]) == ["reason", "accept"]
    assert answer.value == Fit(reason="a cup", accept=True)
    assert answer.usage.model_dump(include=set(ONE_CALL)) == ONE_CALL
    assert answer.usage.usd is not None and answer.usage.usd > 0


def test_thinking_tokens_are_paid_for() -> None:
    """1,000 tokens in at $0.30 a million; 20 out and 50 of thinking at $2.50."""
    with VlmServer(replies=answering(GOOD)) as server:
        answer = ask(settings(server))
    assert answer.usage.usd == pytest.approx(1000 * 0.30e-6 + 70 * 2.50e-6)


def test_a_price_that_is_not_known_is_not_zero() -> None:
    with VlmServer(replies=answering(GOOD)) as server:
        answer = ask(settings(server, "openai", vlm="openai:my-own-llava"))
    assert answer.usage.usd is None
    assert answer.usage.calls == 1


def test_the_schema_is_told_in_words_to_a_server_without() -> None:
    with VlmServer(replies=answering(GOOD)) as server:
        assert ask(settings(server, "openai", vlm_output="prompted")).value.accept
    assert server.asked[0].body["response_format"] == {"type": "json_object"}
    assert '"accept"' in server.asked[0].instruction


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with VlmServer() as server, pytest.raises(KeyRefusedError):  # the stand-in wants one; the call was made
        ask(settings(server, "openai"))
    assert server.refused == ["Incorrect API key provided"]


def test_gemini_api_key_is_the_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_API_KEY")
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with VlmServer(replies=answering(GOOD)) as server:
        assert ask(settings(server)).value.accept


@pytest.mark.parametrize(
    ("given", "stage", "expected"),
    [
        ({}, "align", 0.7),
        ({"temperature": "0.7,align=0"}, "align", 0.0),
        ({"temperature": "0.7,align=0"}, "compose", 0.7),
        ({"temperature": 0.2}, "describe", 0.2),
        ({"temperature": {"describe": 1.5}}, "describe", 1.5),
        ({"temperature": {"describe": 1.5}}, "align", 0.7),
    ],
)
def test_temperature_by_stage(given: dict[str, Any], stage: str, expected: float) -> None:
    with VlmServer(replies=answering(GOOD)) as server:
        ask(settings(server, **given), stage)
    assert server.asked[0].temperature == expected


@pytest.mark.parametrize(
    ("provider", "thinking", "stage", "expected"),
    [
        ("google", None, "align", {"thinking_level": "MINIMAL"}),  # off: the least that the model knows
        ("google", None, "describe", None),
        ("google", "512", "align", {"thinking_budget": 512}),
        ("google", "auto,verify=256", "verify", {"thinking_budget": 256}),
        ("google", "high", "align", {"include_thoughts": True, "thinking_level": "HIGH"}),
        ("anthropic", "2048", "align", {"type": "enabled", "budget_tokens": 2048}),
        ("anthropic", "high", "align", {"type": "enabled", "budget_tokens": 16384}),
        ("anthropic", "off", "align", None),
    ],
)
def test_thinking_by_stage(provider: str, thinking: str | None, stage: str, expected: object) -> None:
    given = {} if thinking is None else {"thinking": thinking}
    with VlmServer(replies=answering(GOOD)) as server:
        ask(settings(server, provider, **given), stage)
    body = server.asked[0].body
    assert body.get("generationConfig", {}).get("thinkingConfig", body.get("thinking")) == expected
    if provider == "anthropic" and expected:
        assert server.asked[0].temperature is None  # it refuses one where it thinks


def test_older_gemini_models_are_told_a_budget_of_nothing() -> None:
    with VlmServer(replies=answering(GOOD)) as server:
        ask(settings(server, vlm="google:gemini-2.5-flash"))
    assert server.asked[0].body["generationConfig"]["thinkingConfig"] == {"thinking_budget": 0}


@pytest.mark.parametrize(
    ("provider", "said"),
    [("openai", "openai takes no number of tokens"), ("anthropic", "anthropic thinks with 1024 tokens or more")],
)
def test_what_a_provider_cannot_be_told_is_said_before_anything_starts(provider: str, said: str) -> None:
    with VlmServer() as server, pytest.raises(UsageError, match=f"--thinking 512: {said}"):
        Vlm(settings(server, provider, thinking="512"))


def test_a_key_that_cannot_be_sent_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "schl\u00fcssel")
    with VlmServer() as server, pytest.raises(UsageError, match="GOOGLE_API_KEY has a character"):
        Vlm(settings(server))


class Page(VlmServer):
    """Answers every request with a web page, as a wrong address does."""

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Sent:
        return Sent(200, b"<html>Welcome</html>", {"content-type": "text/html"})


@pytest.mark.parametrize("provider", MODELS)
def test_a_page_instead_of_an_answer_is_a_failure_with_a_reason(provider: str) -> None:
    with Page() as server, pytest.raises(DataEngineError) as caught:
        ask(settings(server, provider))
    assert caught.value.reason in ("bad_answer", "connection"), str(caught.value)
    assert "twice" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("level", "expected"),
    [("high", "BLOCK_ONLY_HIGH"), ("none", "BLOCK_NONE"), ("low", "BLOCK_LOW_AND_ABOVE"), ("default", None)],
)
def test_safety(level: str, expected: str | None) -> None:
    with VlmServer(replies=answering(GOOD)) as server:
        ask(settings(server, safety=level))
    told = server.asked[0].body.get("safetySettings", [])
    assert {entry["threshold"] for entry in told} == ({expected} if expected else set())
    assert len(told) == (4 if expected else 0)


FAULTS: list[tuple[str, Sequence[Reply], str, str, int]] = [
    ("429", [Reply(429, reason="RESOURCE_EXHAUSTED")], "rate_limited", "asks to slow down", 0),
    ("500", [Reply(500, message="Internal")], "server_error", "failed (Internal)", 0),
    ("503", [Reply(503, message="overloaded")], "server_error", "is not available (overloaded)", 0),
    ("hang", [Reply(text=GOOD, hang=20)], "timeout", "did not answer in time", 0),
    ("drop", [Reply(text=GOOD * 50, drop=True)], "connection", "broke off", 0),
    ("404", [Reply(404, message="models/x is not found")], "no_such_model", "is not there (models/x", 0),
    ("400", [Reply(400, message="image too large")], "request_refused", "refuses the request (image too large)", 0),
    ("safety", [Reply(finish="SAFETY")], "blocked", "blocked the picture or its answer", 1),
    ("cut", [Reply(text='{"reason": "a c', finish="MAX_TOKENS")], "cut_off", "at its token limit", 1),
    ("not JSON", [Reply(text="A cup.")] * 2, "bad_answer", "breaks its schema (1 validation error", 2),
    ("wrong schema", [Reply(text='{"fits": 1}')] * 2, "bad_answer", "Field required", 2),
]


@pytest.mark.parametrize("provider", ["google", "openai"])
@pytest.mark.parametrize(("replies", "reason", "said", "paid"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_failure_has_its_reason_and_its_cost(
    provider: str, replies: Sequence[Reply], reason: str, said: str, paid: int
) -> None:
    with VlmServer(replies={"refute": list(replies)}) as server, pytest.raises(DataEngineError) as caught:
        ask(settings(server, provider, vlm_timeout=1.0))
    error = caught.value
    assert (error.reason, said in str(error)) == (reason, True), str(error)
    assert error.retryable == (reason in ("rate_limited", "server_error", "timeout", "connection"))
    assert len(str(error).splitlines()) == 1
    assert KEY not in str(error)
    assert error.usage is not None
    assert (error.usage.calls, error.usage.input_tokens) == (paid, 1000 * paid)


def test_a_blocked_prompt_is_paid_for_and_said() -> None:
    replies = {"refute": [Reply(blocked="PROHIBITED_CONTENT")]}
    with VlmServer(replies=replies) as server, pytest.raises(DataEngineError, match="PROHIBITED_CONTENT") as caught:
        ask(settings(server))
    assert caught.value.reason == "blocked"
    assert caught.value.usage is not None and caught.value.usage.input_tokens == 1000


@pytest.mark.parametrize("provider", MODELS)
def test_a_wrong_key(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"google": "GOOGLE_API_KEY", "openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}[provider]
    monkeypatch.setenv(name, "a-wrong-key")
    with VlmServer() as server, pytest.raises(KeyRefusedError, match=name) as caught:
        ask(settings(server, provider))
    assert "a-wrong-key" not in str(caught.value)


def test_the_wait_a_service_asks_for_is_kept_with_the_failure() -> None:
    replies = {"refute": [Reply(429, headers={"retry-after": "7"})]}
    with VlmServer(replies=replies) as server, pytest.raises(DataEngineError) as caught:
        ask(settings(server))
    assert caught.value.retry_after == 7


def test_a_bad_answer_is_asked_again_and_both_are_paid() -> None:
    with VlmServer(replies=answering("A cup.", GOOD)) as server:
        answer = ask(settings(server))
    assert answer.value.accept
    assert answer.usage.model_dump(include={"calls", "reasked", "input_tokens"}) == {
        "calls": 2,
        "reasked": 1,
        "input_tokens": 2000,
    }
    again = server.asked[1].body["contents"]
    assert "Invalid JSON" in json.dumps(again[-1])  # it is told what was wrong


def test_a_passing_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("dataengine.retry.sleep", no_sleep)
    replies = [Reply(429, headers={"retry-after": "7"}), Reply(500), Reply(text="A cup."), Reply(text=GOOD)]
    with VlmServer(replies={"refute": replies}) as server:
        answer = ask(settings(server, retry_seconds=60))
    assert waited[0] == 7
    assert len(waited) == 2
    assert answer.usage == Usage(input_tokens=2000, output_tokens=140, usd=answer.usage.usd, calls=2, reasked=1)
    assert len(server.asked) == 4


def test_no_request_goes_on_when_nobody_listens() -> None:
    """A port that nothing serves is a connection that failed, soon."""
    with VlmServer() as server:
        chosen = settings(server)
    with pytest.raises(DataEngineError) as caught:
        ask(chosen)
    assert caught.value.reason == "connection"


def test_every_question_has_a_temperature_and_thinking() -> None:
    chosen = load_settings({})
    assert set(chosen.temperature) == set(chosen.thinking) == set(QUESTIONS)
    assert {q for q, t in chosen.thinking.items() if t == "off"} == {"verify", "align", "refute"}


def test_the_standin_refuses_what_a_service_would() -> None:
    """The tests above mean something only if the server is strict: a picture too large is refused."""
    big = Question("align", "Judge.", [jpeg(np.zeros((10, 769, 3), np.uint8))], Fit)

    async def main(chosen: Settings) -> None:
        async with Vlm(chosen) as vlm:
            await vlm.ask(big)

    with VlmServer() as server, pytest.raises(DataEngineError) as caught:
        asyncio.run(main(settings(server)))
    assert caught.value.reason == "request_refused"
    assert server.refused == ["a picture of (769, 10)"]
