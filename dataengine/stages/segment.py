"""segment: label -> boxes -> masks, each refined against the pool.

Every box of a label is cut and refined on its own, so that an instance can match a mask of the pool that holds just it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence

from dataengine.errors import StageError
from dataengine.images import Photo
from dataengine.journal import Answer, Journal, identity
from dataengine.masks import Mask, iou_matrix
from dataengine.parts import Parts
from dataengine.records import DescribedRegion, Instance, RegionCut, Xyxy
from dataengine.settings import Settings
from dataengine.stages import all_of

SMALLEST_BOX = 2.0  # pixels a side


async def segment(
    photo: Photo,
    regions: Sequence[DescribedRegion],
    pool: Awaitable[list[Mask]],
    parts: Parts,
    settings: Settings,
    steps: Journal,
) -> list[RegionCut]:
    """Each region with a mask, and where the pool has a better one a refined mask, for each of its boxes.

    Masks have the photo's size. A region for which no box is found has no instances.
    """
    boxes = await all_of(_ground(photo, i, region, parts, steps) for i, region in enumerate(regions))
    masks = await pool

    async def work() -> Answer[list[RegionCut]]:
        flat = [box for of_region in boxes for box in of_region]
        answer = await parts.segmenter.segment(photo, flat) if flat else Answer([])
        if len(answer.value) != len(flat):
            raise StageError(f"{photo.path}: the segmenter gave {len(answer.value)} masks for {len(flat)} boxes")
        cuts = await asyncio.to_thread(_refined, photo, regions, boxes, answer.value, masks, settings.iou_threshold)
        return Answer(cuts, answer.usage)

    inputs = {
        "photo": photo.digest,
        "segmenter": identity(parts.segmenter),
        "boxes": [[region.label, of_region] for region, of_region in zip(regions, boxes, strict=True)],
        "iou_threshold": settings.iou_threshold,
        "min_pool_pixels": settings.min_pool_pixels,
    }
    return await steps.once("segment", inputs, list[RegionCut], work)


async def _ground(photo: Photo, index: int, region: DescribedRegion, parts: Parts, steps: Journal) -> list[Xyxy]:
    grounder = parts.grounder
    inputs = {"photo": photo.digest, "grounder": identity(grounder), "region": region.model_dump(mode="json")}
    boxes = await steps.once(f"ground/{index:03d}", inputs, list[Xyxy], lambda: grounder.ground(photo, region))
    inside = [_clipped(box, photo) for box in boxes if all(map(math.isfinite, box))]
    return [b for b in inside if b[2] - b[0] >= SMALLEST_BOX and b[3] - b[1] >= SMALLEST_BOX]


def _clipped(box: Xyxy, photo: Photo) -> Xyxy:
    x0, y0, x1, y1 = box
    return max(0.0, x0), max(0.0, y0), min(float(photo.width), x1), min(float(photo.height), y1)


def _refined(
    photo: Photo,
    regions: Sequence[DescribedRegion],
    boxes: Sequence[Sequence[Xyxy]],
    initial: Sequence[Mask],
    pool: Sequence[Mask],
    threshold: float,
) -> list[RegionCut]:
    left = list(pool)
    masks = iter(initial)
    cuts = []
    for region, of_region in zip(regions, boxes, strict=True):
        instances = []
        for box in of_region:
            mask = next(masks)
            better = take_best(mask, left, threshold)
            full = better.resized(photo.height, photo.width) if better is not None else None
            first = mask.resized(photo.height, photo.width)
            instances.append(Instance(box=box, initial=first.rle, refined=full.rle if full else None))
        cuts.append(RegionCut(label=region.label, instances=instances))
    return cuts


def take_best(mask: Mask, pool: list[Mask], threshold: float) -> Mask | None:
    """Take from the pool the mask with the highest IoU with `mask`, if that is at least `threshold`."""
    if not pool:
        return None
    ious = iou_matrix([mask.resized(pool[0].height, pool[0].width)], pool)[0]
    best = int(ious.argmax())
    return pool.pop(best) if ious[best] >= threshold and ious[best] > 0 else None
