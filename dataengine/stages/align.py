"""align: prompt, masks -> ACCEPT or REJECT with a reason."""

from __future__ import annotations

from dataengine.annotators import Scene
from dataengine.images import RgbArray
from dataengine.journal import Journal, asked, identity
from dataengine.parts import Parts
from dataengine.records import Alignment, DescribedRegion, Detection, Negative, Prompt
from dataengine.stages.compose import scene_inputs


async def align(scene: Scene, which: str, prompt: Prompt, picture: RgbArray, parts: Parts, steps: Journal) -> Alignment:
    """Judge a prompt against its satisfying masks, which `picture` shows."""
    annotator = parts.annotator
    return await steps.once(
        f"align/{which}",
        {**scene_inputs(scene), "annotator": asked(annotator, "align"), "prompt": prompt.model_dump()},
        Alignment,
        lambda: annotator.align(scene, prompt, picture),
    )


async def align_negative(scene: Scene, which: str, negative: Negative, parts: Parts, steps: Journal) -> Alignment:
    """Judge whether no pixel of the image fits a negative.

    For an absent thing, a grounder that `detects` is asked first, at its own threshold: what it finds is there. Of a
    present thing with a false attribute it would find the thing, so those are the annotator's alone to judge.
    """
    annotator = parts.annotator
    if parts.grounder.detects and negative.strategy == "object_level_neighbor":
        found = await _detected(scene, which, negative.target_decoy, parts, steps)
        if found:
            reason = f"the grounder {parts.grounder.name} found {len(found)} of {negative.target_decoy!r}"
            return Alignment(accept=False, unmasked_match=True, reason=reason)
    return await steps.once(
        f"refute/{which}",
        {**scene_inputs(scene), "annotator": asked(annotator, "refute"), "negative": negative.model_dump()},
        Alignment,
        lambda: annotator.align_negative(scene, negative),
    )


async def _detected(scene: Scene, which: str, decoy: str, parts: Parts, steps: Journal) -> list[Detection]:
    region = DescribedRegion(label=decoy, boxes=[])
    return await steps.once(
        f"detect/{which}",
        {"photo": scene.photo.digest, "grounder": identity(parts.grounder), "label": decoy},
        list[Detection],
        lambda: parts.grounder.ground(scene.photo, region),
    )
