"""Settings of a run: flags win over the settings file, the file wins over the preset, the preset over the defaults."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dataengine.errors import UsageError
from dataengine.records import CONCEPTS

PRESETS: dict[str, dict[str, str]] = {
    "standard": {"annotator": "vlm", "grounder": "annotator", "segmenter": "sam2"},
    "published": {"annotator": "vlm", "grounder": "moondream-hf", "segmenter": "sam2"},
    "offline": {"annotator": "measured", "grounder": "annotator", "segmenter": "classical"},
}

SAM2_CONFIGS = tuple(f"{family}_hiera_{size}.yaml" for family in ("sam2", "sam2.1") for size in ("t", "s", "b+", "l"))


class Settings(BaseModel):
    """What `dataengine run` is told. Field names are the flags' names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "standard"
    annotator: str
    grounder: str
    segmenter: str
    vlm: str = "google:gemini-flash-latest"
    config: str = "sam2.1_hiera_l.yaml"
    checkpoint: str | None = None
    concepts: tuple[str, ...] = CONCEPTS
    negatives: bool = True
    max_regions: int = Field(default=8, ge=1, le=64)
    max_side: int | None = Field(default=None, ge=64)
    iou_threshold: float = Field(default=0.5, ge=0, le=1)
    min_pool_pixels: int = Field(default=1000, ge=1)
    concurrency: int = Field(default=32, ge=1, le=1024)
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

    @field_validator("vlm")
    @classmethod
    def _vlm(cls, value: str) -> str:
        provider, _, model = value.partition(":")
        if not provider or not model:
            raise ValueError(f"{value!r} is not PROVIDER:MODEL, such as google:gemini-flash-latest")
        return value

    @field_validator("config")
    @classmethod
    def _config(cls, value: str) -> str:
        if PurePosixPath(value).name not in SAM2_CONFIGS:
            raise ValueError(f"there is no config {value!r}; there are {', '.join(SAM2_CONFIGS)}")
        return value

    def of_results(self) -> dict[str, object]:
        """The settings that change what is computed for a region or a prompt, as JSON values."""
        return self.model_dump(include={"max_regions", "max_side", "iou_threshold", "min_pool_pixels"})


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
        raise UsageError(f"--{key}: {message} (got {first['input']!r})") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"--settings {file}: no such file", hint="Check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--settings {file}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--settings {file}: not valid TOML: {error}") from None
