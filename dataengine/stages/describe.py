"""describe: image -> labelled regions."""

from __future__ import annotations

from dataengine.images import Photo
from dataengine.journal import Journal, asked
from dataengine.parts import Parts
from dataengine.records import DescribedRegion
from dataengine.settings import Settings

LONGEST_LABEL = 300  # characters; 15 words are asked for


def broken_label(label: str) -> str | None:
    """Why a label cannot be looked for, as a reason; None where it can."""
    if not label.strip():
        return "rule label: it is empty"
    if len(label) > LONGEST_LABEL:
        return f"rule label: it has {len(label):,} characters, {LONGEST_LABEL} are the most"
    return None


async def describe(photo: Photo, parts: Parts, settings: Settings, steps: Journal) -> list[DescribedRegion]:
    """At most `max_regions` labelled regions, with boxes where the grounder needs them."""
    annotator, with_boxes = parts.annotator, parts.grounder.needs_boxes
    inputs = {
        "photo": photo.view_digest,
        "annotator": asked(annotator, "describe"),
        "max_regions": settings.max_regions,
        "with_boxes": with_boxes,
    }
    regions = await steps.once(
        "describe",
        inputs,
        list[DescribedRegion],
        lambda: annotator.describe(photo, settings.max_regions, with_boxes),
    )
    return regions[: settings.max_regions]
