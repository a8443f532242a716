"""Keys of services: which environment variables hold them, and texts without them."""

from __future__ import annotations

import os
import re

from dataengine.errors import UsageError

# By service: the environment variables that may hold its key, the first that is set counts.
KEYS: dict[str, tuple[str, ...]] = {
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "moondream": ("MOONDREAM_API_KEY",),
}
VLM_PROVIDERS = ("google", "openai", "anthropic")
SECRETS = (*(name for names in KEYS.values() for name in names), "HF_TOKEN")

HIDDEN = "(hidden)"
_LEAST = 4
_PIECE = 6  # characters of a key in a row that would tell something of it


def key_name(service: str) -> str | None:
    """The variable that holds a service's key; None where none is set."""
    return next((name for name in KEYS[service] if os.environ.get(name, "").strip()), None)


def key(service: str) -> str | None:
    """A service's key, without blanks around it; None where none is set.

    Raises:
        UsageError: it has a character that cannot be sent; which one is not said.
    """
    name = key_name(service)
    if name is None:
        return None
    found = os.environ[name].strip()
    if not re.fullmatch(r"[!-~]+", found):
        raise UsageError(f"{name} has a character that no key has", hint=f"Copy it again: export {name}=…")
    return found


def without_keys(text: str) -> str:
    """The text without the words that hold a key, a piece of one, or one masked by a service (`sk-12****89`)."""
    text = re.sub(r"\S*\*{3}\S*", HIDDEN, text)
    for secret in " ".join(os.environ.get(name, "") for name in SECRETS).split():
        if len(secret) < _LEAST:
            continue  # as good as none, and the letters of many words
        if len(secret) < _PIECE:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
            continue
        pieces = "|".join(re.escape(secret[i : i + _PIECE]) for i in range(len(secret) - _PIECE + 1))
        text = re.sub(rf"\S*(?:{pieces})\S*", HIDDEN, text)
    return text
