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
        return Answer([to_rle(mask) for mask in answer.value], answer.usage)

    inputs = {
        "photo": photo.digest,
        "segmenter": identity(segmenter),
        "min_pool_pixels": settings.min_pool_pixels,
    }
    return [to_mask(rle) for rle in await steps.once("propose", inputs, list[Rle], work)]


def to_rle(mask: Mask) -> Rle:
    """A mask as it stands in JSON."""
    return Rle(size=(mask.height, mask.width), counts=mask.counts)


def to_mask(rle: Rle) -> Mask:
    """A mask from JSON."""
    return Mask(rle.size[0], rle.size[1], rle.counts)
