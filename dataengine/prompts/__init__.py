"""The prompt templates: system instructions for a vision language model, by name, with the slots to be filled.

They use the standard library alone, so that `meta_prompts` works wherever Python does. Answers are held to a schema by
the caller; a template says what the fields mean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from dataengine.errors import UsageError
from dataengine.prompts import (
    concept_specific_meta_prompts,
    concept_specific_meta_prompts_for_negatives,
    judging_prompts,
    region_dense_caption_meta_prompt,
)

_MODULES = (
    region_dense_caption_meta_prompt,
    judging_prompts,
    concept_specific_meta_prompts,
    concept_specific_meta_prompts_for_negatives,
)
_SLOT = re.compile(r"\{([A-Z][A-Z_]*)\}")

TEMPLATES: Mapping[str, str] = {name: getattr(module, name) for module in _MODULES for name in module.__all__}
SLOTS: Mapping[str, frozenset[str]] = {name: frozenset(_SLOT.findall(text)) for name, text in TEMPLATES.items()}


def concept_template(concept: str) -> str:
    """The name of the template that asks for a concept's prompts."""
    return f"{concept.upper()}_META_PROMPT"


def negative_template(concept: str) -> str:
    """The name of the template that asks for a concept's hard negatives."""
    return f"{concept.upper()}_NEGATIVE_META_PROMPT"


def fill(template: str, /, **slots: object) -> str:
    """The template with each `{SLOT}` replaced; braces of JSON stay, and so does a slot's name inside inserted text.

    Raises:
        ValueError: the slots given are not those of the template.
    """
    wanted = set(_SLOT.findall(template))
    if wanted != slots.keys():
        raise ValueError(f"the template has the slots {sorted(wanted)}, but was given {sorted(slots)}")
    return _SLOT.sub(lambda match: str(slots[match[1]]), template)


def load_templates(prompts_dir: Path | None) -> dict[str, str]:
    """Every template by name; a file `NAME.txt` in the folder replaces the one of that name.

    Raises:
        UsageError: the folder cannot be read or holds no `NAME.txt`; or a file in it has an unknown name, is empty,
            cannot be read as UTF-8, or has other slots than the template it replaces.
    """
    templates = dict(TEMPLATES)
    if prompts_dir is not None:
        templates.update({file.stem: _replacement(file) for file in _files(prompts_dir)})
    return templates


def _files(folder: Path) -> list[Path]:
    """The folder's `*.txt` files, hidden ones left out."""
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() == ".txt" and not f.name.startswith("."))
    except OSError as error:
        raise UsageError(f"--prompts_dir {folder}: {error.strerror}", hint="Name a folder of NAME.txt files") from None
    if not files:
        raise UsageError(f"--prompts_dir {folder}: no *.txt file in it", hint=f"Names are {', '.join(TEMPLATES)}")
    return files


def _replacement(file: Path) -> str:
    """The text of one file, checked."""
    if file.stem not in TEMPLATES:
        close = difflib.get_close_matches(file.stem.upper(), TEMPLATES, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Names are {', '.join(TEMPLATES)}"
        raise UsageError(f"--prompts_dir: {file} replaces no template", hint=hint)
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts_dir: {file} is not UTF-8 (byte {error.start})", hint="Save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"--prompts_dir: {file} cannot be read: {error.strerror}", hint="Check the file") from None
    if not text:
        raise UsageError(f"--prompts_dir: {file} is empty", hint="Remove it to use the built-in template")
    _check_slots(file, set(_SLOT.findall(text)))
    return text


def _check_slots(file: Path, found: set[str]) -> None:
    wanted = SLOTS[file.stem]
    if lacking := sorted(wanted - found):
        missing = ", ".join(f"{{{slot}}}" for slot in lacking)
        raise UsageError(f"--prompts_dir: {file} lacks {missing}", hint="Write it where its text belongs")
    if extra := sorted(found - wanted):
        known = ", ".join(f"{{{slot}}}" for slot in sorted(wanted)) or "none"
        hint = f"Slots of {file.stem}: {known}"
        raise UsageError(f"--prompts_dir: {file} has {{{extra[0]}}}, which nothing fills", hint=hint)
