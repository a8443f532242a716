"""verify: (label, masks) -> accepted or rejected with a reason; the initial or the refined mask.

One question judges and picks, so the mask that is kept is always one that was judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dataengine.errors import StageError
from dataengine.images import Photo
from dataengine.journal import Answer, Journal, asked
from dataengine.masks import Mask
from dataengine.overlays import region_overlay
from dataengine.parts import Parts
from dataengine.records import Choice, RegionCut, RegionVerdict
from dataengine.stages import all_of
from dataengine.stages.describe import LONGEST_LABEL, broken_label

SAME_MASK = 0.98  # IoU from which a refined mask is not worth a second picture


@dataclass(frozen=True)
class JudgedRegion:
    """A described region after its judgement.

    Attributes:
        index: its position in the description.
        mask: what was kept, at the photo's size; None where the region was rejected.
        instances: the parts of `mask`, one for each box.
        cleaned_pixels: of small holes and islands that were mended in `mask`.
    """

    index: int
    label: str
    verdict: RegionVerdict
    mask: Mask | None = None
    instances: tuple[Mask, ...] = ()
    cleaned_pixels: int = 0


async def verify(photo: Photo, cuts: Sequence[RegionCut], parts: Parts, steps: Journal) -> list[JudgedRegion]:
    """Judge every region, side by side; in the order of `cuts`."""
    return await all_of(_verify_one(photo, i, cut, parts, steps) for i, cut in enumerate(cuts))


async def _verify_one(photo: Photo, index: int, cut: RegionCut, parts: Parts, steps: Journal) -> JudgedRegion:
    instances = _instances(cut)
    masks = {choice: Mask.union(of_choice) for choice, of_choice in instances.items()}
    reason = broken_label(cut.label) or ("" if masks else "the grounder found no box")
    if masks and not any(mask.area for mask in masks.values()):
        reason = "the segmenter found nothing in its boxes"
    if reason:
        verdict = RegionVerdict(choice="neither", description="", reason=reason)
        return JudgedRegion(index, cut.label[:LONGEST_LABEL], verdict)

    async def work() -> Answer[RegionVerdict]:
        pictures = await asyncio.to_thread(lambda: {c: region_overlay(photo.view, m) for c, m in masks.items()})
        answer = await parts.annotator.verify(photo, cut.label, masks, pictures)
        if answer.value.choice not in (*masks, "neither"):
            wrong = StageError(f"{photo.path}: verify chose a {answer.value.choice!r} mask, but there is none")
            wrong.usage = answer.usage
            raise wrong
        return answer

    inputs = {
        "photo": photo.view_digest,
        "annotator": asked(parts.annotator, "verify"),
        "label": cut.label,
        "masks": {choice: mask.digest() for choice, mask in masks.items()},
    }
    verdict = await steps.once(f"verify/{index:03d}", inputs, RegionVerdict, work)
    if verdict.choice != "neither" and not masks[verdict.choice].area:
        verdict = RegionVerdict(choice="neither", description="", reason=f"the {verdict.choice} mask is empty")
    if verdict.choice == "neither":
        return JudgedRegion(index, cut.label, verdict)
    cleaned = sum(i.cleaned_pixels[-1 if verdict.choice == "refined" else 0] for i in cut.instances)
    return JudgedRegion(index, cut.label, verdict, masks[verdict.choice], tuple(instances[verdict.choice]), cleaned)


def _instances(cut: RegionCut) -> dict[Choice, list[Mask]]:
    """The masks to choose between: the initial ones, and the refined where the unions differ."""
    if not cut.instances:
        return {}
    initial = [Mask.from_rle(instance.initial) for instance in cut.instances]
    refined = [Mask.from_rle(instance.refined or instance.initial) for instance in cut.instances]
    if Mask.union(initial).iou(Mask.union(refined)) >= SAME_MASK or not Mask.union(refined).area:
        return {"initial": initial}
    return {"initial": initial, "refined": refined}
