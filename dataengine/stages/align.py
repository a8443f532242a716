"""align: prompt, masks -> ACCEPT or REJECT with a reason."""

from __future__ import annotations

from dataengine.annotators import Scene
from dataengine.images import RgbArray
from dataengine.journal import Journal, identity
from dataengine.parts import Parts
from dataengine.records import Alignment, Negative, Prompt
from dataengine.stages.compose import scene_inputs


async def align(scene: Scene, which: str, prompt: Prompt, picture: RgbArray, parts: Parts, steps: Journal) -> Alignment:
    """Judge a prompt against its satisfying masks, which `picture` shows."""
    annotator = parts.annotator
    return await steps.once(
        f"align/{which}",
        {**scene_inputs(scene), "annotator": identity(annotator), "prompt": prompt.model_dump()},
        Alignment,
        lambda: annotator.align(scene, prompt, picture),
    )


async def align_negative(scene: Scene, which: str, negative: Negative, parts: Parts, steps: Journal) -> Alignment:
    """Judge whether no pixel of the image fits a negative."""
    annotator = parts.annotator
    return await steps.once(
        f"refute/{which}",
        {**scene_inputs(scene), "annotator": identity(annotator), "negative": negative.model_dump()},
        Alignment,
        lambda: annotator.align_negative(scene, negative),
    )
