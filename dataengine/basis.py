"""What the answers of each stage rest on: the one place that says what a changed setting, part or template redoes.

`run.json` keeps it, so that what has changed since can be named without reading a photo or a journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataengine.journal import digest
from dataengine.parts import Parts
from dataengine.records import CONCEPTS
from dataengine.settings import Settings

Basis = Mapping[str, Mapping[str, object]]

# The stages whose answers a stage works on: where theirs differ, its own are asked for again.
UPSTREAM: dict[str, tuple[str, ...]] = {
    "describe": (),
    "propose": (),
    "ground": ("describe",),
    "segment": ("ground", "propose"),
    "verify": ("segment",),
    **{f"compose/{concept}": ("verify",) for concept in CONCEPTS},
    **{f"negatives/{concept}": ("verify",) for concept in CONCEPTS},
    "align": tuple(f"compose/{concept}" for concept in CONCEPTS),
    "detect": tuple(f"negatives/{concept}" for concept in CONCEPTS),
    "refute": ("detect", *(f"negatives/{concept}" for concept in CONCEPTS)),
}


def basis(parts: Parts, settings: Settings) -> dict[str, dict[str, object]]:
    """By stage (of `UPSTREAM`), all that determines its answers beside the image and its upstream stages' answers.

    Values are JSON values; templates are told by their digests.
    """
    chosen = settings.model_dump(mode="json")

    def of(kind: str, *names: str) -> dict[str, object]:
        part: Any = getattr(parts, kind)
        return {kind: part.name, f"{kind} version": part.version, **{n: chosen[n] for n in ("max_side", *names)}}

    def of_annotator(question: str, concept: str = "", *names: str) -> dict[str, object]:
        asked = parts.annotator.basis(question, concept)
        return {**of("annotator", "vlm_side", *names), **asked}

    concepts = {
        f"{question}/{concept}": of_annotator(question, concept)
        for question in ("compose", "negatives")
        for concept in CONCEPTS
    }
    return {
        "describe": {**of_annotator("describe", "", "max_regions"), "with_boxes": parts.grounder.needs_boxes},
        "propose": of("segmenter", "min_pool_pixels"),
        "ground": of("grounder"),
        "segment": of("segmenter", "iou_threshold", "min_pool_pixels", "clean_pixels"),
        "verify": of_annotator("verify"),
        **concepts,
        "align": of_annotator("align"),
        "detect": {**of("grounder"), "detects": parts.grounder.detects},
        "refute": of_annotator("refute"),
    }


def fingerprint(sha256: str, rests_on: Basis | str) -> str:
    """A digest of all that determines an image's results: what differs in it is not done yet.

    Args:
        sha256: of the image file's bytes.
        rests_on: the basis, or, for many images, its digest.
    """
    return digest([sha256, rests_on if isinstance(rests_on, str) else digest(rests_on)])
