"""compose: accepted regions, concept -> prompts; what breaks a rule is refused in code, before it is paid for."""

from __future__ import annotations

import re
from collections.abc import Collection

from dataengine.annotators import Scene
from dataengine.journal import Journal, asked
from dataengine.parts import Parts
from dataengine.records import CONCEPT_FAMILIES, MAX_WORDS, PROMPTS_A_CONCEPT, Negative, Prompt
from dataengine.stages.describe import broken_label

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
LONGEST_TEXT = 200  # characters of a prompt; ten long words have half of that

# What only someone who sees the numbered picture or a mask's overlay would say.
REGION_NUMBER = re.compile(
    r"\b(region|area|mask|object|index)s?\W*((number|no)\W*)?\d+\b|#\d+|\[\d+\]|\d(st|nd|rd|th) (region|mask)\b"
    r"|\b(numbered|masked) (mask|region|area|object)s?\b|\b(red|green|coloured|colored|highlighted) (mask|overlay)s?\b",
    re.IGNORECASE,
)


async def compose(scene: Scene, concept: str, parts: Parts, steps: Journal) -> list[Prompt]:
    """Up to 3 prompts of the concept about the scene's regions; none where there are not two to choose between."""
    if len(scene.regions) < 2:
        return []
    annotator = parts.annotator
    prompts = await steps.once(
        f"compose/{concept}",
        _inputs(scene, "compose", concept, parts),
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
        _inputs(scene, "negatives", concept, parts),
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


def _inputs(scene: Scene, question: str, concept: str, parts: Parts) -> dict[str, object]:
    return {**scene_inputs(scene), "concept": concept, "annotator": asked(parts.annotator, question, concept)}


def rule_name(reason: str) -> str:
    """The rule that a reason such as `rule words: …` names; empty where it names none."""
    named = re.match(r"rule (\w+): ", reason)
    return named[1] if named else ""


def broken_rule(prompt: Prompt, concept: str, scene: Scene, earlier: Collection[str]) -> str | None:
    """The first rule a prompt breaks, as a reason; None where it keeps them all.

    Args:
        earlier: the texts of this image's prompts before it.
    """
    known = {region.index for region in scene.regions}
    candidates, satisfying = set(prompt.candidates), set(prompt.satisfying)
    if not satisfying <= candidates or not candidates <= known:
        return f"rule indices: they must be of regions 0..{len(known) - 1}, and satisfying ones among the candidates"
    if not satisfying:
        return "rule empty: it means none of the regions"
    if satisfying == candidates:
        return "rule subset: satisfying must be a strict subset of the candidates"
    return broken_text_rule(prompt.prompt, prompt.concept_family, concept, earlier)


def broken_negative_rule(negative: Negative, concept: str, earlier: Collection[str]) -> str | None:
    """The first rule a negative breaks, as a reason; None where it keeps them all."""
    broken = broken_label(negative.target_decoy)
    if broken:
        return broken.replace("rule label", "rule decoy")
    return broken_text_rule(negative.prompt, negative.concept_family, concept, earlier)


def broken_text_rule(text: str, family: str, concept: str, earlier: Collection[str]) -> str | None:
    """The first rule that a prompt's text or family breaks."""
    if not text.isprintable():
        return "rule text: it holds characters that cannot be seen"
    if len(text) > LONGEST_TEXT:
        return f"rule text: it has {len(text):,} characters, {LONGEST_TEXT} are the most"
    words = text.split()
    if len(words) < 2 or words[0].lower() not in VERBS:
        return "rule verb: a prompt starts with a verb such as Segment or Identify, and says what"
    if len(words) > MAX_WORDS:
        return f"rule words: a prompt has at most {MAX_WORDS} words, this has {len(words)}"
    if REGION_NUMBER.search(text):
        return "rule numbers: a prompt must not speak of regions by number, or of masks"
    if family not in CONCEPT_FAMILIES[concept]:
        return f"rule family: {family!r} is no concept family of {concept}"
    if _plain(text) in map(_plain, earlier):
        return "rule duplicate: the same prompt was written before for this image"
    return None


def _plain(text: str) -> str:
    """A prompt's words, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
