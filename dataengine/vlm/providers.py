"""Providers: the client, the model and the settings of a call, for each of `google`, `openai` and `anthropic`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from dataengine.errors import UsageError
from dataengine.keys import key
from dataengine.settings import Settings

if TYPE_CHECKING:
    from pydantic_ai.models import Model

SAFETY = {
    "none": "BLOCK_NONE",
    "high": "BLOCK_ONLY_HIGH",
    "medium": "BLOCK_MEDIUM_AND_ABOVE",
    "low": "BLOCK_LOW_AND_ABOVE",
}
HARMS = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
CONNECT_SECONDS = 10.0
ANTHROPIC_TOKENS = 8192  # it must be told; the longest answers here have about 1,000 and thinking comes on top
ANTHROPIC_THINKING = 16384  # pydantic-ai's budget for the level `high`
ANTHROPIC_LEAST = 1024  # tokens of thinking, by its documentation

# Where a budget or a rate of tokens is kept, answers are bounded, so that what a call can cost is known before it is
# made. The longest answers here have about 1,000 tokens; a model that cannot but think gets some more.
ANSWER_TOKENS = 4096
THINKING_TOKENS = {"off": 0, "minimal": 2048, "low": 4096, "auto": 8192, "medium": 16384, "high": 24576}


class Client:
    """One HTTP client and the model behind it.

    Attributes:
        model: pydantic-ai's model; there once `open` was awaited.
    """

    model: Model[Any]

    def __init__(self, settings: Settings) -> None:
        self.provider, _, self.model_name = settings.vlm.partition(":")
        self._settings = settings
        self._key = key(self.provider)
        for stage in settings.thinking:
            self.settings_of(stage)  # what a provider cannot be told is said before anything is started

    async def open(self) -> None:
        """Make the HTTP client in the running event loop."""
        import httpx2

        seconds = httpx2.Timeout(self._settings.vlm_timeout, connect=CONNECT_SECONDS, pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=self._settings.concurrency)
        self._http = httpx2.AsyncClient(timeout=seconds, limits=limits)
        self.model = _MODELS[self.provider](self.model_name, self._settings, self._key, self._http)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def output(self, answer: type[BaseModel]) -> Any:
        """How the answer's shape is asked for: enforced by the server, or told in words."""
        from pydantic_ai import NativeOutput, PromptedOutput

        return NativeOutput(answer) if self._settings.vlm_output == "native" else PromptedOutput(answer)

    def settings_of(self, stage: str) -> Any:
        """pydantic-ai's settings for the calls of a stage."""
        # `request_timeout`, of pydantic-ai, would count the time in which a call is held back or tried again.
        chosen: dict[str, Any] = {
            "temperature": self._settings.temperature[stage],
            "timeout": self._settings.vlm_timeout,
        }
        if self.provider == "google":
            if level := SAFETY.get(self._settings.safety):
                chosen["google_safety_settings"] = [
                    {"category": f"HARM_CATEGORY_{harm}", "threshold": level} for harm in HARMS
                ]
        else:
            chosen["max_retries"] = 0  # these SDKs try again by themselves, uncounted
        thought = self._settings.thinking[stage]
        if self.provider == "anthropic":
            chosen["max_tokens"] = ANTHROPIC_TOKENS
            if thought not in ("auto", "off", 0):
                chosen["max_tokens"] += thought if isinstance(thought, int) else ANTHROPIC_THINKING
                del chosen["temperature"]  # which it refuses where it thinks
        elif self._is_bounded():
            extra = thought if isinstance(thought, int) else THINKING_TOKENS[thought]
            chosen["max_tokens"] = ANSWER_TOKENS + extra
        return {**chosen, **_thinking(self.provider, thought)}

    def _is_bounded(self) -> bool:
        settings = self._settings
        return any(bound is not None for bound in (settings.budget_usd, settings.budget_tokens, settings.tpm))


def _thinking(provider: str, thought: str | int) -> dict[str, Any]:
    if thought == "auto":
        return {}
    if thought in ("off", 0):
        return {"thinking": False}
    if isinstance(thought, str):
        return {"thinking": thought}
    if provider == "google":
        return {"google_thinking_config": {"thinking_budget": thought}}
    if provider == "anthropic" and thought < ANTHROPIC_LEAST:
        raise UsageError(f"--thinking {thought}: anthropic thinks with {ANTHROPIC_LEAST} tokens or more", hint="Or off")
    if provider == "anthropic":
        return {"anthropic_thinking": {"type": "enabled", "budget_tokens": thought}}
    levels = "off, auto, minimal, low, medium or high"
    raise UsageError(f"--thinking {thought}: {provider} takes no number of tokens", hint=f"Say {levels}")


def _google(name: str, settings: Settings, secret: str | None, http: Any) -> Model[Any]:
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    provider = GoogleProvider(api_key=secret or "none", base_url=settings.vlm_base_url, http_client=http)
    return GoogleModel(name, provider=provider)


def _openai(name: str, settings: Settings, secret: str | None, http: Any) -> Model[Any]:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(api_key=secret or "none", base_url=settings.vlm_base_url, http_client=http)
    return OpenAIChatModel(name, provider=provider)


def _anthropic(name: str, settings: Settings, secret: str | None, http: Any) -> Model[Any]:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(api_key=secret or "none", base_url=settings.vlm_base_url, http_client=http)
    return AnthropicModel(name, provider=provider)


_MODELS = {"google": _google, "openai": _openai, "anthropic": _anthropic}
