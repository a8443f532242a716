"""The registry: every annotator, grounder and segmenter by name, imported when it is built and not before.

A name with a colon, `my_package.my_module:MyClass`, is a part of the user's own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.errors import MissingPartError, UsageError
from dataengine.keys import KEYS, key_name
from dataengine.records import PartRecord
from dataengine.settings import MOONDREAM_CLOUD, Settings

if TYPE_CHECKING:
    from dataengine.annotators import Annotator
    from dataengine.grounders import Grounder
    from dataengine.segmenters import Segmenter

Need = Callable[[Settings], str | None]


def _module(name: str, pip: str) -> Need:
    def check(settings: Settings) -> str | None:
        return None if importlib.util.find_spec(name) else f"{name} (pip install {pip})"

    return check


_SDKS = {"google": "google.genai", "openai": "openai", "anthropic": "anthropic"}


def _vlm_sdk(settings: Settings) -> str | None:
    provider = settings.vlm.partition(":")[0]
    module = _SDKS[provider]
    there = all(importlib.util.find_spec(name) for name in ("pydantic_ai", *_parents(module)))
    return None if there else f"pydantic-ai with {provider} (pip install 'pydantic-ai-slim[{provider}]>=2.68')"


def _parents(module: str) -> list[str]:
    """`google`, `google.genai`: find_spec fails on a module whose parent is missing, so those are looked for first."""
    names = module.split(".")
    return [".".join(names[: i + 1]) for i in range(len(names))]


def _vlm_key(settings: Settings) -> str | None:
    provider = settings.vlm.partition(":")[0]
    if key_name(provider):
        return None
    if settings.vlm_base_url and provider == "openai":
        return None  # a server of one's own asks for no key
    return f"a key (set {KEYS[provider][0]})"


def _checkpoint(settings: Settings) -> str | None:
    return None if settings.checkpoint else "a checkpoint (--checkpoint FILE.pt, a hub id or a folder)"


def _moondream_key(settings: Settings) -> str | None:
    if key_name("moondream") or settings.moondream_url != MOONDREAM_CLOUD:
        return None
    return "a key (set MOONDREAM_API_KEY) or a station of one's own (--moondream_url http://localhost:2020/v1)"


def _trust(settings: Settings) -> str | None:
    return None if settings.trust_remote_code else "--trust_remote_code: its code comes with the model from the hub"


@dataclass(frozen=True)
class Entry:
    """A registered part: where its class is, and what it needs of the machine."""

    where: str
    needs: tuple[Need, ...] = ()


_HTTP = _module("httpx2", "httpx2")
_TENACITY = _module("tenacity", "tenacity")
_TORCH = (_module("torch", "torch"), _module("torchvision", "torchvision"), _module("transformers", "transformers"))

REGISTRY: dict[str, dict[str, Entry]] = {
    "annotator": {
        "vlm": Entry("dataengine.annotators.vlm:VlmAnnotator", (_vlm_sdk, _HTTP, _TENACITY, _vlm_key)),
        "measured": Entry("dataengine.annotators.measured:MeasuredAnnotator"),
    },
    "grounder": {
        "annotator": Entry("dataengine.grounders.annotator:AnnotatorGrounder"),
        "moondream": Entry("dataengine.grounders.moondream:MoondreamGrounder", (_HTTP, _TENACITY, _moondream_key)),
        "moondream-hf": Entry("dataengine.grounders.moondream_hf:MoondreamHfGrounder", (*_TORCH, _trust)),
        "grounding-dino": Entry("dataengine.grounders.grounding_dino:GroundingDinoGrounder", _TORCH),
        "owlv2": Entry("dataengine.grounders.owlv2:Owlv2Grounder", _TORCH),
        "sam3": Entry("dataengine.grounders.sam3:Sam3Grounder", _TORCH),
    },
    "segmenter": {
        "sam2": Entry("dataengine.segmenters.sam2:Sam2Segmenter", (_checkpoint, *_TORCH)),
        "sam3": Entry("dataengine.segmenters.sam3:Sam3Segmenter", _TORCH),
        "classical": Entry("dataengine.segmenters.classical:ClassicalSegmenter"),
    },
}


@dataclass(frozen=True)
class Parts:
    """The three parts of a run; those with connections are opened and closed by `async with`."""

    annotator: Annotator
    grounder: Grounder
    segmenter: Segmenter
    _open: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack, repr=False)

    async def __aenter__(self) -> Parts:
        parts: tuple[Any, ...] = (self.annotator, self.grounder, self.segmenter)
        try:
            for part in parts:
                if hasattr(part, "__aenter__"):
                    await self._open.enter_async_context(part)
        except Exception as error:  # other people's code
            await self.__aexit__()
            raise MissingPartError(f"a part cannot be opened: {type(error).__name__}: {error}") from None
        return self

    async def __aexit__(self, *raised: object) -> None:
        with contextlib.suppress(Exception):  # all is written by now: a connection that does not close loses nothing
            await self._open.aclose()

    def records(self) -> dict[str, PartRecord]:
        """Name, version and detail of each, for `run.json`."""
        parts: dict[str, Annotator | Grounder | Segmenter] = {
            "annotator": self.annotator,
            "grounder": self.grounder,
            "segmenter": self.segmenter,
        }
        return {
            kind: PartRecord(name=part.name, version=part.version, detail=dict(part.detail))
            for kind, part in parts.items()
        }


def build(settings: Settings) -> Parts:
    """Build the three parts that the settings name.

    Raises:
        MissingPartError: names all that is lacking for all three, in one line.
    """
    chosen = {kind: str(getattr(settings, kind)) for kind in REGISTRY}
    lacking = [f"{kind} {name!r} {lack}" for kind, name in chosen.items() if (lack := lacks(kind, name, settings))]
    if lacking:
        raise MissingPartError(
            f"preset {settings.preset!r} cannot run here: {'; '.join(lacking)}",
            hint="" if settings.preset == "offline" else "To try the engine without models: --preset offline",
        )
    return Parts(**{kind: _built(kind, name, settings) for kind, name in chosen.items()})


def lacks(kind: str, name: str, settings: Settings) -> str:
    """What keeps a part from being built here, as the end of a sentence; empty where nothing does."""
    if ":" in name:
        return ""
    entry = REGISTRY[kind].get(name)
    if entry is None:
        return f"does not exist (there are {', '.join(REGISTRY[kind])}, or MODULE:CLASS of your own)"
    missing = [need for check in entry.needs if (need := check(settings))]
    return f"needs {' and '.join(missing)}" if missing else ""


# What the engine reads of a part before it asks it anything.
_ATTRIBUTES = {
    "annotator": ("name", "version", "detail", "local", "templates"),
    "grounder": ("name", "version", "detail", "needs_boxes", "detects"),
    "segmenter": ("name", "version", "detail"),
}


def _built(kind: str, name: str, settings: Settings) -> Any:
    where = name if ":" in name else REGISTRY[kind][name].where
    module, _, attribute = where.partition(":")
    if ":" in name and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own module is most often beside the user
    try:
        part = getattr(importlib.import_module(module), attribute)(settings)
    except UsageError:
        raise  # it says already what is wrong and what to do
    except Exception as error:  # other people's code
        message = f"{kind} {name!r} cannot be built: {type(error).__name__}: {error}"
        raise MissingPartError(message, hint="Check its name and what it needs") from None
    missing = [attribute for attribute in _ATTRIBUTES[kind] if not hasattr(part, attribute)]
    if missing:
        raise MissingPartError(f"{kind} {name!r} has no attribute {', '.join(missing)}", hint="See CONTRIBUTING.md")
    return part
