"""Settings of a run: flags win over the settings file, the file wins over the preset, the preset over the defaults."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dataengine.errors import UsageError
from dataengine.keys import VLM_PROVIDERS
from dataengine.records import CONCEPTS, VIEW_SIDE

PRESETS: dict[str, dict[str, str]] = {
    "standard": {"annotator": "vlm", "grounder": "annotator", "segmenter": "sam2"},
    "published": {"annotator": "vlm", "grounder": "moondream-hf", "segmenter": "sam2"},
    "offline": {"annotator": "measured", "grounder": "annotator", "segmenter": "classical"},
}

# What a vision language model is asked, by stage: temperature and thinking are settable for each.
QUESTIONS = ("describe", "verify", "compose", "align", "negatives", "refute")
TEMPERATURE = 0.7  # as published
THINKING_LEVELS = ("off", "auto", "minimal", "low", "medium", "high")

MOONDREAM_CLOUD = "https://api.moondream.ai/v1"

SAM2_CONFIGS = tuple(f"{family}_hiera_{size}.yaml" for family in ("sam2", "sam2.1") for size in ("t", "s", "b+", "l"))


# Verdicts are short judgements of one picture: thinking is paid for by the token, and off there unless asked for.
THINKING: dict[str, str | int] = {q: "off" if q in ("verify", "align", "refute") else "auto" for q in QUESTIONS}

T = TypeVar("T")


class Settings(BaseModel):
    """What `dataengine run` is told. Field names are the flags' names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "standard"
    annotator: str
    grounder: str
    segmenter: str
    vlm: str = "google:gemini-flash-latest"
    vlm_base_url: str | None = None
    vlm_output: Literal["native", "prompted"] = "native"
    vlm_side: int = Field(default=VIEW_SIDE, ge=64, le=4096)
    vlm_timeout: float = Field(default=120, gt=0)
    retry_seconds: float = Field(default=300, ge=0)  # so that a time-out is asked again
    temperature: dict[str, float] = Field(default_factory=lambda: dict.fromkeys(QUESTIONS, TEMPERATURE))
    thinking: dict[str, str | int] = Field(default_factory=lambda: dict(THINKING))
    safety: Literal["default", "none", "high", "medium", "low"] = "high"
    prompts_dir: str | None = None
    exhaustive: bool = True
    config: str = "sam2.1_hiera_l.yaml"
    checkpoint: str | None = None
    grounder_model: str | None = None
    grounder_revision: str | None = None
    trust_remote_code: bool = False
    box_threshold: float | None = Field(default=None, gt=0, lt=1)
    moondream_url: str = MOONDREAM_CLOUD
    device: str = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    device_batch: int = Field(default=4, ge=1, le=256)
    points_per_side: int = Field(default=64, ge=1, le=256)
    clean_pixels: int = Field(default=100, ge=0)
    concepts: tuple[str, ...] = CONCEPTS
    negatives: bool = True
    max_regions: int = Field(default=8, ge=1, le=64)
    max_side: int | None = Field(default=None, ge=64)
    iou_threshold: float = Field(default=0.5, ge=0, le=1)
    min_pool_pixels: int = Field(default=1000, ge=1)
    concurrency: int = Field(default=32, ge=1, le=1024)
    rpm: int | None = Field(default=None, ge=1)
    tpm: int | None = Field(default=None, ge=1)
    budget_usd: float | None = Field(default=None, ge=0)
    budget_tokens: int | None = Field(default=None, ge=0)
    price: tuple[float, float] | None = None
    max_images: int | None = Field(default=None, ge=0)
    recursive: bool = False
    overwrite: bool = False

    @field_validator("concepts", mode="before")
    @classmethod
    def _concepts(cls, value: object) -> object:
        named = [v.strip() for v in value.split(",")] if isinstance(value, str) else value
        if not isinstance(named, (list, tuple)) or not named:
            raise ValueError("name at least one concept")
        unknown = [str(n) for n in named if n not in CONCEPTS]
        if unknown:
            raise ValueError(f"unknown concept {unknown[0]!r}; there are {', '.join(CONCEPTS)}")
        return tuple(c for c in CONCEPTS if c in named)

    @field_validator("temperature", mode="before")
    @classmethod
    def _temperature(cls, value: object) -> object:
        given = _by_question(value, _number)
        bad = [v for v in given.values() if not 0 <= v <= 2]
        if bad:
            raise ValueError(f"a temperature lies in 0..2, not {bad[0]}")
        return {**dict.fromkeys(QUESTIONS, TEMPERATURE), **given}

    @field_validator("thinking", mode="before")
    @classmethod
    def _thinking(cls, value: object) -> object:
        return {**THINKING, **_by_question(value, _thought)}

    @field_validator("price", mode="before")
    @classmethod
    def _price(cls, value: object) -> object:
        named = value.split(",") if isinstance(value, str) else value
        if named is None:
            return None
        if (
            not isinstance(named, (list, tuple))
            or len(named) != 2
            or any(not 0 <= _number(n) < math.inf for n in named)
        ):
            raise ValueError("two prices in USD per million tokens, of input and output, such as 0.30,2.50")
        return tuple(_number(n) for n in named)

    @field_validator("vlm")
    @classmethod
    def _vlm(cls, value: str) -> str:
        provider, _, model = value.partition(":")
        if provider not in VLM_PROVIDERS or not model:
            known = ", ".join(VLM_PROVIDERS)
            raise ValueError(f"{value!r} is not PROVIDER:MODEL, such as google:gemini-flash-latest, of {known}")
        return value

    @field_validator("vlm_base_url", "moondream_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port that is none
            fine = False
        if not fine:
            raise ValueError("not a URL such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ValueError("a URL with a name or password in it would be written down; give a key by its variable")
        return value.rstrip("/")

    @field_validator("config")
    @classmethod
    def _config(cls, value: str) -> str:
        if PurePosixPath(value).name not in SAM2_CONFIGS:
            raise ValueError(f"there is no config {value!r}; there are {', '.join(SAM2_CONFIGS)}")
        return value

    def priced(self, input_tokens: int, output_tokens: int) -> float | None:
        """USD for tokens by `price`; None where that is not given."""
        if self.price is None:
            return None
        return (self.price[0] * input_tokens + self.price[1] * output_tokens) / 1e6


def _by_question(value: object, parse: Callable[[object], T]) -> dict[str, T]:
    """A value for every question (`0.7`), for some (`verify=0,align=0.2`), or both (`0.7,verify=0`), by question."""
    if isinstance(value, Mapping):
        named = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, str):
        cut = [entry.rpartition("=") for entry in value.split(",")]
        named = [(name.strip(), entry.strip()) for name, _, entry in cut]
    else:
        named = [("", value)]
    unknown = [name for name, _ in named if name and name not in QUESTIONS]
    if unknown:
        raise ValueError(f"there is no question {unknown[0]!r}; there are {', '.join(QUESTIONS)}")
    for_all = {question: parse(entry) for name, entry in named if not name for question in QUESTIONS}
    return {**for_all, **{name: parse(entry) for name, entry in named if name}}


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None


def _thought(value: object) -> str | int:
    if str(value) in THINKING_LEVELS:
        return str(value)
    if str(value).isdecimal():
        return int(str(value))
    raise ValueError(f"{value!r} is not a number of tokens or one of {', '.join(THINKING_LEVELS)}")


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Merge flags, an optional TOML file and the preset they name.

    Raises:
        UsageError: a file that cannot be read, a key that does not exist, a preset or a value that is not allowed.
    """
    from_file = _read_toml(file) if file is not None else {}
    for key in (*from_file, *flags):
        if key not in Settings.model_fields:
            close = difflib.get_close_matches(key, Settings.model_fields, n=1)
            where = f"{file}: " if key in from_file else ""
            hint = f"Did you mean {close[0]!r}?" if close else f"Keys are {', '.join(Settings.model_fields)}"
            raise UsageError(f"{where}unknown setting {key!r}", hint=hint)
    merged = {**from_file, **flags}
    preset = merged.get("preset", "standard")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", hint=f"There are {', '.join(PRESETS)}")
    try:
        return Settings(**{**PRESETS[preset], **merged})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        got = "" if key.endswith("_url") else f" (got {first['input']!r})"  # a URL may hold a password
        raise UsageError(f"--{key}: {message}{got}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"--settings {file}: no such file", hint="Check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--settings {file}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--settings {file}: not valid TOML: {error}") from None
