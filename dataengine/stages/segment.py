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
from dataengine.records import DescribedRegion, Detection, Instance, RegionCut, Usage, Xyxy
from dataengine.settings import Settings
from dataengine.stages import all_of
from dataengine.stages.describe import broken_label

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
    found = await all_of(_ground(photo, i, region, parts, steps) for i, region in enumerate(regions))
    masks = await pool

    async def work() -> Answer[list[RegionCut]]:
        flat = [detection for of_region in found for detection in of_region]
        initial, usage = await _initial(photo, flat, parts)
        of_region = _by_region(found, initial)
        cuts = await asyncio.to_thread(_refined, photo, regions, of_region, masks, settings)
        return Answer(cuts, usage)

    inputs = {
        "photo": photo.digest,
        "segmenter": identity(parts.segmenter),
        "found": [
            [region.label, [d.model_dump(mode="json") for d in of_region]]
            for region, of_region in zip(regions, found, strict=True)
        ],
        "iou_threshold": settings.iou_threshold,
        "min_pool_pixels": settings.min_pool_pixels,
        "clean_pixels": settings.clean_pixels,
    }
    return await steps.once("segment", inputs, list[RegionCut], work)


async def _ground(photo: Photo, index: int, region: DescribedRegion, parts: Parts, steps: Journal) -> list[Detection]:
    if broken_label(region.label):
        return []  # not paid for; `verify` says why
    grounder = parts.grounder
    inputs = {"photo": photo.digest, "grounder": identity(grounder), "region": region.model_dump(mode="json")}
    found = await steps.once(f"ground/{index:03d}", inputs, list[Detection], lambda: grounder.ground(photo, region))
    inside = [d.model_copy(update={"box": _clipped(d.box, photo)}) for d in found if all(map(math.isfinite, d.box))]
    return [d for d in inside if d.box[2] - d.box[0] >= SMALLEST_BOX and d.box[3] - d.box[1] >= SMALLEST_BOX]


def _clipped(box: Xyxy, photo: Photo) -> Xyxy:
    x0, y0, x1, y1 = box
    return max(0.0, x0), max(0.0, y0), min(float(photo.width), x1), min(float(photo.height), y1)


async def _initial(photo: Photo, found: Sequence[Detection], parts: Parts) -> tuple[list[Mask], Usage]:
    """The first mask of each detection: the grounder's own, else the segmenter's for its box; and what it cost."""
    boxes = [detection.box for detection in found if detection.mask is None]
    answer = await parts.segmenter.segment(photo, boxes) if boxes else Answer([])
    if len(answer.value) != len(boxes):
        wrong = StageError(f"{photo.path}: the segmenter gave {len(answer.value)} masks for {len(boxes)} boxes")
        wrong.usage = answer.usage
        raise wrong
    cut = iter(answer.value)
    return [next(cut) if d.mask is None else Mask.from_rle(d.mask) for d in found], answer.usage


def _by_region(found: Sequence[Sequence[Detection]], masks: Sequence[Mask]) -> list[list[tuple[Xyxy, Mask]]]:
    left = iter(masks)
    return [[(detection.box, next(left)) for detection in of_region] for of_region in found]


def _refined(
    photo: Photo,
    regions: Sequence[DescribedRegion],
    found: Sequence[Sequence[tuple[Xyxy, Mask]]],
    pool: Sequence[Mask],
    settings: Settings,
) -> list[RegionCut]:
    left = list(pool)
    return [
        RegionCut(label=region.label, instances=[_instance(photo, *one, left, settings) for one in of_region])
        for region, of_region in zip(regions, found, strict=True)
    ]


def _instance(photo: Photo, box: Xyxy, mask: Mask, pool: list[Mask], settings: Settings) -> Instance:
    """A detection's masks at the photo's size; what is taken from the pool leaves it."""
    better = take_best(mask, pool, settings.iou_threshold)
    masks = [m.resized(photo.height, photo.width) for m in (mask, better) if m is not None]
    clean = [m.cleaned(settings.clean_pixels) for m in masks]
    changed = [before.differing(after) for before, after in zip(masks, clean, strict=True)]
    return Instance(
        box=box, initial=clean[0].rle, refined=clean[1].rle if better is not None else None, cleaned_pixels=changed
    )


def take_best(mask: Mask, pool: list[Mask], threshold: float) -> Mask | None:
    """Take from the pool the mask with the highest IoU with `mask`, if that is at least `threshold`."""
    if not pool:
        return None
    ious = iou_matrix([mask.resized(pool[0].height, pool[0].width)], pool)[0]
    best = int(ious.argmax())
    return pool.pop(best) if ious[best] >= threshold and ious[best] > 0 else None
