"""`ask(question) -> typed answer`: the only place that knows a provider of vision language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from dataengine import prices
from dataengine.errors import DataEngineError, UsageError
from dataengine.journal import Answer
from dataengine.settings import Settings
from dataengine.vlm.failures import failure
from dataengine.vlm.metered import Learned, Metered
from dataengine.vlm.providers import Client

if TYPE_CHECKING:
    from pydantic_ai import Agent

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
        if settings.budget_usd is not None and prices.usd(settings, 1, 1) is None:
            message = f"--budget_usd cannot be kept: the price of {settings.vlm} is unknown"
            raise UsageError(
                message, hint="Say it with --price IN,OUT in USD per million tokens, or use --budget_tokens"
            )
        self.name = settings.vlm
        self._settings = settings
        self._client = Client(settings)
        self._learned = Learned()
        self._agents: dict[type[BaseModel], Agent[None, Any]] = {}

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
            StoppedError: the run's limits let no call begin any more.
        """
        from pydantic_ai import BinaryContent

        model = Metered(self._client.model, self._settings, self._learned)
        shown = [
            part if isinstance(part, str) else BinaryContent(part, media_type="image/jpeg") for part in question.parts
        ]
        try:
            done = await self._agent(question.answer).run(
                shown,
                model=model,
                instructions=question.instruction,
                model_settings=self._client.settings_of(question.stage),
            )
        except Exception as error:
            told = error if isinstance(error, DataEngineError) else failure(error, self.name)
            told.usage = model.usage
            raise told from error.__cause__
        answer: Any = done.output
        return Answer(answer, model.usage)

    def _agent(self, answer: type[BaseModel]) -> Agent[None, Any]:
        """pydantic-ai's agent for a shape of answers; making one takes a good part of what a call takes here."""
        import pydantic_ai
        from pydantic_ai import Agent

        pydantic_ai.BANNER_ENABLED = False  # an advertisement, in the middle of a user's progress bar
        if answer not in self._agents:
            self._agents[answer] = Agent(output_type=self._client.output(answer), retries=REASKS)
        return self._agents[answer]
