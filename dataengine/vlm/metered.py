"""A model whose every request keeps the run's limits, is tried again while that may help, and is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic_ai import BinaryContent
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.wrapper import WrapperModel

from dataengine import prices
from dataengine.errors import DataEngineError
from dataengine.journal import Answer
from dataengine.records import VIEW_SIDE, Usage
from dataengine.retry import patiently
from dataengine.settings import Settings
from dataengine.vlm.failures import failure

if TYPE_CHECKING:
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

# The most tokens that a picture of VIEW_SIDE px takes. Gemini cuts it into tiles of 258, six for 3:2 (ai.google.dev,
# "Understand and count tokens"), and takes 1,120 where it takes one figure for all; OpenAI and Anthropic take under
# 1,200. What takes more, as gpt-4o-mini does, is learned from its first answers.
PICTURE_TOKENS = 2600
BYTES_A_TOKEN = 2  # of text and schema: English has four or more


class Metered(WrapperModel):
    """Wraps the model for one question, whose answer may take several requests.

    Attributes:
        usage: what all its requests have cost; `reasked` counts those after the first.
    """

    def __init__(self, model: Model[Any], settings: Settings, learned: Learned) -> None:
        super().__init__(model)
        self._chosen = settings
        self._learned = learned
        self.usage = Usage()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The model's response.

        Raises:
            DataEngineError: what went wrong, in the project's terms.
        """
        guess = input_tokens(messages, model_request_parameters, self._chosen.vlm_side)

        async def once() -> Answer[ModelResponse]:
            try:
                async with asyncio.timeout(self._chosen.vlm_timeout):  # the client's own starts anew with each byte
                    response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            except Exception as error:
                raise failure(error, self._chosen.vlm) from error
            self._learned.note(response, guess)
            return Answer(response, usage_of(response, self._chosen))

        most = self._learned.most(guess, (model_settings or {}).get("max_tokens"), self._chosen)
        try:
            answer = await patiently(once, self._chosen.retry_seconds, service=self._chosen.vlm, most=most)
        except DataEngineError as error:
            self._count(error.usage or Usage())
            raise
        self._count(answer.usage)
        return answer.value

    def _count(self, usage: Usage) -> None:
        again = usage.calls if self.usage.calls else max(0, usage.calls - 1)
        self.usage += usage.model_copy(update={"reasked": again})


class Learned:
    """What a service's answers have told of its prices: the model behind an alias, and how it counts pictures."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._factor = 1.0

    def note(self, response: ModelResponse, guess: int) -> None:
        """Remember an answer to a request whose tokens were guessed."""
        self._model = response.model_name
        self._factor = max(self._factor, 1.1 * response.usage.input_tokens / guess)

    def most(self, guess: int, output_tokens: int | None, settings: Settings) -> Usage:
        """The most that a request can cost; without a bound of its answer, just that it is one call."""
        if output_tokens is None:
            return Usage(calls=1)
        tokens = round(guess * self._factor)
        usd = prices.usd(settings, tokens, output_tokens, self._model)
        return Usage(calls=1, input_tokens=tokens, output_tokens=output_tokens, usd=usd)


def input_tokens(messages: Iterable[ModelMessage], parameters: ModelRequestParameters, side: int) -> int:
    """The most tokens that a request's text, schema and pictures are likely to take."""
    told = [str(getattr(message, "instructions", "") or "") for message in messages]
    pictures = 0
    for part in (part for message in messages for part in message.parts):
        content = getattr(part, "content", "")
        for piece in content if isinstance(content, list | tuple) else [content]:
            if isinstance(piece, BinaryContent):
                pictures += 1
            else:
                told.append(str(piece))
    schema = parameters.output_object.json_schema if parameters.output_object else {}
    text = sum(len(piece.encode("utf-8", "replace")) for piece in (*told, str(schema)))
    return text // BYTES_A_TOKEN + round(pictures * PICTURE_TOKENS * max(1.0, side / VIEW_SIDE) ** 2) + 100


def usage_of(response: ModelResponse, settings: Settings) -> Usage:
    """Tokens and cost of a response; thinking is part of the output tokens; a price that is not known is None."""
    used = response.usage
    usd = prices.usd(settings, used.input_tokens, used.output_tokens) if settings.price else _listed(response)
    return Usage(input_tokens=used.input_tokens, output_tokens=used.output_tokens, usd=usd, calls=1)


def _listed(response: ModelResponse) -> float | None:
    """By genai-prices' list, which knows of cached tokens as well."""
    if response.usage.cost is not None:
        return float(response.usage.cost)
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None
