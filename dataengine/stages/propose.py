"""propose: image -> pool of masks."""

from __future__ import annotations

from dataengine.images import Photo
from dataengine.journal import Answer, Journal, identity
from dataengine.masks import Mask
from dataengine.parts import Parts
from dataengine.records import Rle
from dataengine.settings import Settings


async def propose(photo: Photo, parts: Parts, settings: Settings, steps: Journal) -> list[Mask]:
    """The pool of masks of the whole image, at the segmenter's own resolution."""
    segmenter = parts.segmenter

    async def work() -> Answer[list[Rle]]:
        answer = await segmenter.propose(photo)
        return Answer([mask.rle for mask in answer.value], answer.usage)

    inputs = {
        "photo": photo.digest,
        "segmenter": identity(segmenter),
        "min_pool_pixels": settings.min_pool_pixels,
    }
    return [Mask.from_rle(rle) for rle in await steps.once("propose", inputs, list[Rle], work)]
