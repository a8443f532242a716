"""compose: accepted regions, concept -> prompts; what breaks a rule is refused in code, before it is paid for."""

from __future__ import annotations

import re
from collections.abc import Collection

from dataengine.annotators import Scene
from dataengine.journal import Journal, identity
from dataengine.parts import Parts
from dataengine.records import CONCEPT_FAMILIES, MAX_WORDS, PROMPTS_A_CONCEPT, Negative, Prompt

VERBS = frozenset(
    (
        "segment",
        "identify",
        "find",
        "select",
        "mark",
        "highlight",
        "locate",
        "show",
        "pick",
        "outline",
        "mask",
        "isolate",
    )
)
REGION_NUMBER = re.compile(r"\b(region|area|mask|object|index)s? #?\d+\b|#\d+", re.IGNORECASE)


async def compose(scene: Scene, concept: str, parts: Parts, steps: Journal) -> list[Prompt]:
    """Up to 3 prompts of the concept about the scene's regions; none where there is no region."""
    if not scene.regions:
        return []
    annotator = parts.annotator
    prompts = await steps.once(
        f"compose/{concept}",
        _inputs(scene, concept, parts),
        list[Prompt],
        lambda: annotator.compose(scene, concept),
    )
    return prompts[:PROMPTS_A_CONCEPT]


async def compose_negatives(scene: Scene, concept: str, parts: Parts, steps: Journal) -> list[Negative]:
    """Up to 3 prompts of the concept that should match no pixel; none where there is no region."""
    if not scene.regions:
        return []
    annotator = parts.annotator
    negatives = await steps.once(
        f"negatives/{concept}",
        _inputs(scene, concept, parts),
        list[Negative],
        lambda: annotator.compose_negatives(scene, concept),
    )
    return negatives[:PROMPTS_A_CONCEPT]


def scene_inputs(scene: Scene) -> dict[str, object]:
    """What determines an answer about a scene, for a step's inputs."""
    return {
        "photo": scene.photo.view_digest,
        "regions": [[r.index, r.label, r.description, r.mask.digest()] for r in scene.regions],
    }


def _inputs(scene: Scene, concept: str, parts: Parts) -> dict[str, object]:
    return {**scene_inputs(scene), "concept": concept, "annotator": identity(parts.annotator)}


def broken_rule(prompt: Prompt, concept: str, scene: Scene, earlier: Collection[str]) -> str | None:
    """The first rule a prompt breaks, as a reason; None where it keeps them all.

    Args:
        earlier: the texts of this image's prompts before it.
    """
    known = {region.index for region in scene.regions}
    candidates, satisfying = set(prompt.candidates), set(prompt.satisfying)
    if not satisfying <= candidates or not candidates <= known:
        return f"rule: indices must be of regions 0..{len(known) - 1}, and satisfying ones among the candidates"
    if satisfying == candidates:
        return "rule: satisfying must be a strict subset of the candidates"
    return broken_text_rule(prompt.prompt, prompt.concept_family, concept, earlier)


def broken_text_rule(text: str, family: str, concept: str, earlier: Collection[str]) -> str | None:
    """The first rule that a prompt's text or family breaks."""
    words = text.split()
    if not words or words[0].lower() not in VERBS:
        return "rule: a prompt starts with a verb such as Segment or Identify"
    if len(words) > MAX_WORDS:
        return f"rule: a prompt has at most {MAX_WORDS} words, this has {len(words)}"
    if REGION_NUMBER.search(text):
        return "rule: a prompt must not name regions by number"
    if family not in CONCEPT_FAMILIES[concept]:
        return f"rule: {family!r} is no concept family of {concept}"
    if _plain(text) in map(_plain, earlier):
        return "rule: the same prompt was written before for this image"
    return None


def _plain(text: str) -> str:
    """A prompt's words, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
