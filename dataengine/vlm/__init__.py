"""`ask(question) -> typed answer`: the only place that knows a provider of vision language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from dataengine.errors import DataEngineError
from dataengine.journal import Answer
from dataengine.records import Usage
from dataengine.retry import patiently
from dataengine.settings import Settings
from dataengine.vlm.failures import failure
from dataengine.vlm.providers import Client

if TYPE_CHECKING:
    from pydantic_ai.usage import RunUsage

A = TypeVar("A", bound=BaseModel)

REASKS = 1  # after an answer that breaks its schema; it is told what was wrong, and the pictures are paid for again


@dataclass(frozen=True)
class Question(Generic[A]):
    """What a model is asked.

    Attributes:
        stage: one of `settings.QUESTIONS`; it chooses temperature and thinking.
        instruction: the system instruction.
        parts: text and JPEG files' bytes, in the order shown.
        answer: the shape of the answer, enforced by its JSON schema.
    """

    stage: str
    instruction: str
    parts: Sequence[str | bytes]
    answer: type[A]


class Vlm:
    """A vision language model behind a network. Enter it (`async with`) before asking."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.vlm
        self._settings = settings
        self._client = Client(settings)

    async def __aenter__(self) -> Vlm:
        await self._client.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, question: Question[A]) -> Answer[A]:
        """The model's answer, with the cost of every try.

        Raises:
            StageError: no answer that keeps its schema; its `reason` says why, its `usage` what that cost.
            KeyRefusedError: the key is refused.
        """
        return await patiently(lambda: self._ask_once(question), self._settings.retry_seconds)

    async def _ask_once(self, question: Question[A]) -> Answer[A]:
        import pydantic_ai
        from pydantic_ai import Agent, BinaryContent
        from pydantic_ai.usage import RunUsage

        pydantic_ai.BANNER_ENABLED = False  # an advertisement, in the middle of a user's progress bar
        agent = Agent(output_type=self._client.output(question.answer), retries=REASKS)
        shown = [
            part if isinstance(part, str) else BinaryContent(part, media_type="image/jpeg") for part in question.parts
        ]
        spent = RunUsage()
        try:
            done = await agent.run(
                shown,
                model=self._client.model,
                instructions=question.instruction,
                model_settings=self._client.settings_of(question.stage),
                usage=spent,
            )
        except Exception as error:
            raise self._said(error, question.stage, spent) from error
        answer: Any = done.output
        return Answer(answer, usage_of(spent))

    def _said(self, error: Exception, stage: str, spent: RunUsage) -> DataEngineError:
        told = failure(error, self.name)
        told.usage = usage_of(spent)
        return told


def usage_of(spent: RunUsage) -> Usage:
    """Tokens, cost and answers of a run; thinking is part of the output tokens; a price that is not known is None."""
    price = None if spent.cost is None and spent.requests else float(spent.cost or 0)
    return Usage(
        input_tokens=spent.input_tokens,
        output_tokens=spent.output_tokens,
        usd=price,
        calls=spent.requests,
        reasked=max(0, spent.requests - 1),
    )
