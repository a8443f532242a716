"""What went wrong with a call, in the project's own terms: a reason to count by, and whether to try again."""

from __future__ import annotations

from typing import Any

from pydantic_ai import exceptions as ai

from dataengine.errors import DataEngineError, KeyRefusedError, StageError
from dataengine.keys import KEYS, key_name, without_keys

LONGEST = 200  # characters of what a service says
AGAIN = "Run again to retry"

# The first that fits counts: special ones stand before general ones. (exception, reason, what to say, what to do)
_KINDS: tuple[tuple[type[Exception], str, str, str], ...] = (
    (ai.ModelRateLimitError, "rate_limited", "asks to slow down", "Run again later, or with a lower --concurrency"),
    (ai.ModelQuotaExceededError, "quota_exceeded", "has no quota or credit left", "Raise it, then run again"),
    (ai.ModelUnavailableError, "server_error", "is not available", AGAIN),
    (ai.ModelServerError, "server_error", "failed", AGAIN),
    (ai.ModelTimeoutError, "timeout", "did not answer in time", "Run again, or raise --vlm_timeout"),
    (TimeoutError, "timeout", "did not answer in time", "Run again, or raise --vlm_timeout"),
    (
        ai.ModelConnectionError,
        "connection",
        "could not be reached, or broke off",
        "Check the network and --vlm_base_url, then run again",
    ),
    (ai.ModelNotFoundError, "no_such_model", "is not there", "Check --vlm and --vlm_base_url"),
    (ai.ModelRequestRejectedError, "request_refused", "refuses the request", "Check --vlm, or report this"),
    (ai.ContentFilterError, "blocked", "blocked the picture or its answer", "Remove the picture, or see --safety"),
    (
        ai.OutputTokenLimitExceeded,
        "cut_off",
        "broke off its answer at its token limit",
        "Run again, or lower --thinking",
    ),
    (ai.UserError, "request_refused", "cannot be asked like this", "Try --vlm_output prompted, or check --vlm"),
    (ai.UnexpectedModelBehavior, "bad_answer", "gave an answer that breaks its schema", AGAIN),
)
_PASSING = ("rate_limited", "server_error", "timeout", "connection")


def failure(error: Exception, vlm: str) -> DataEngineError:
    """A failed call as an error of ours; `vlm` is PROVIDER:MODEL."""
    provider = vlm.partition(":")[0]
    if isinstance(error, ai.ModelAuthenticationError) or _names_a_bad_key(error):
        name = key_name(provider) or KEYS[provider][0]
        return KeyRefusedError(f"{vlm} refuses the key{_told(error)}", hint=f"Check {name}, then run again")
    for kind, reason, said, hint in _KINDS:
        if isinstance(error, kind):
            return StageError(
                f"{vlm} {said}{_told(error)}",
                hint=hint,
                reason=reason,
                retryable=reason in _PASSING,
                retry_after=getattr(error, "retry_after", None),
            )
    # a body that is no answer at all: each SDK stumbles over it in its own way
    return StageError(f"{vlm} gave no answer: {type(error).__name__}{_told(error)}", hint=AGAIN, reason="bad_answer")


def _names_a_bad_key(error: Exception) -> bool:
    """Gemini says that a key is not valid with HTTP 400."""
    return isinstance(error, ai.ModelRequestRejectedError) and "API_KEY_INVALID" in str(error.body)


def _told(error: Exception) -> str:
    """What the service said of it, or what was wrong with its answer, shortened, in brackets."""
    if isinstance(error, ai.OutputTokenLimitExceeded | ai.ModelTimeoutError | TimeoutError):
        return ""  # there is no more to say
    body: Any = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    text = inner.get("message") if isinstance(inner, dict) else None
    if text is None and isinstance(error, ai.UnexpectedModelBehavior):
        text = str(error.__cause__ or error.message)
    flat = " ".join(without_keys(str(text or error)).split())
    return f" ({flat[:LONGEST]}{'…' if len(flat) > LONGEST else ''})"
