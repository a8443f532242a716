"""describe: image -> labelled regions."""

from __future__ import annotations

from dataengine.images import Photo
from dataengine.journal import Journal, identity
from dataengine.parts import Parts
from dataengine.records import DescribedRegion
from dataengine.settings import Settings


async def describe(photo: Photo, parts: Parts, settings: Settings, steps: Journal) -> list[DescribedRegion]:
    """At most `max_regions` labelled regions, with boxes where the grounder needs them."""
    annotator, with_boxes = parts.annotator, parts.grounder.needs_boxes
    inputs = {
        "photo": photo.view_digest,
        "annotator": identity(annotator),
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
