"""Parts that answer what a test tells them to, count what they are asked, and fail when they should."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dataengine import limits
from dataengine.annotators import Scene
from dataengine.images import Photo, RgbArray
from dataengine.journal import Answer
from dataengine.leases import STATE
from dataengine.masks import Mask
from dataengine.parts import Parts
from dataengine.records import (
    CONCEPT_FAMILIES,
    Alignment,
    Choice,
    DescribedRegion,
    Detection,
    Negative,
    Prompt,
    RegionVerdict,
    Usage,
    Xyxy,
)
from dataengine.settings import Settings

T = TypeVar("T")


@dataclass
class Script:
    """What the three parts answer. A call is named `describe`, `propose`, `segment`, `ground/<label>`,
    `verify/<label>`, `compose/<concept>`, `negatives/<concept>`, `align/<prompt>` or `refute/<prompt>`.

    Attributes:
        regions: what is described.
        boxes: by label, what the grounder finds; the region's own boxes where it is not named.
        masks: by box, what is cut; the filled box at the photo's size where it is not named.
        pool: what is proposed.
        verdicts: by label, the mask chosen; `initial` where it is not named.
        prompts, negatives: by concept.
        refused: texts of prompts and negatives that are judged wrong.
        detects: the grounder looks by itself, and finds a thing that is not named in `boxes` nowhere.
        fails: by the name of a call, what its next calls raise, one after another (at once, where they are not slow);
            then it answers.
        seconds: how long every call takes; slow: by the name of a call, where it takes another time.
        usage: what every call costs.
        made: how often each call was made, failed ones included.
        most: the greatest number of calls in flight together.
        offered: by label, the masks that were shown for judgement.
    """

    regions: list[DescribedRegion] = field(default_factory=list)
    boxes: dict[str, list[Xyxy]] = field(default_factory=dict)
    masks: dict[Xyxy, Mask] = field(default_factory=dict)
    pool: list[Mask] = field(default_factory=list)
    verdicts: dict[str, Choice] = field(default_factory=dict)
    prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    negatives: dict[str, list[Negative]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    detects: bool = False
    fails: dict[str, list[Exception]] = field(default_factory=dict)
    seconds: float = 0.0
    slow: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    made: Counter[str] = field(default_factory=Counter)
    most: int = 0
    offered: dict[str, dict[Choice, Mask]] = field(default_factory=dict)
    local: bool = False
    _in_flight: int = 0

    async def answer(self, call: str, value: T) -> Answer[T]:
        """A call to a service within the run's limits, unless the parts are local."""
        if self.local:
            return await self._answer(call, value)
        async with limits.current().call("script", self.usage) as paid:
            answer = await self._answer(call, value)
            paid.usage = answer.usage
            return answer

    async def _answer(self, call: str, value: T) -> Answer[T]:
        self.made[call] += 1
        if self.fails.get(call):
            await asyncio.sleep(self.slow.get(call, 0))
            raise self.fails[call].pop(0)
        self._in_flight += 1
        self.most = max(self.most, self._in_flight)
        try:
            await asyncio.sleep(self.slow.get(call, self.seconds))
        finally:
            self._in_flight -= 1
        return Answer(value, self.usage)

    def parts(self, version: str = "1", *, local: bool = False) -> Parts:
        self.local = local
        annotator = ScriptedAnnotator(self, version, local=local)
        return Parts(annotator, ScriptedGrounder(self, version), ScriptedSegmenter(self, version))


@dataclass
class ScriptedAnnotator:
    script: Script
    version: str = "1"
    name: str = "scripted"
    local: bool = False
    detail: Mapping[str, str] = field(default_factory=lambda: {"library": "none"})
    templates: Mapping[str, str] = field(default_factory=lambda: {"DESCRIBE": "What is here?"})

    def basis(self, question: str, concept: str = "") -> Mapping[str, object]:
        return {"templates": dict(self.templates)}

    async def describe(self, photo: Photo, max_regions: int, with_boxes: bool) -> Answer[list[DescribedRegion]]:
        return await self.script.answer("describe", self.script.regions)

    async def verify(
        self, photo: Photo, label: str, masks: Mapping[Choice, Mask], pictures: Mapping[Choice, RgbArray]
    ) -> Answer[RegionVerdict]:
        assert set(pictures) == set(masks)
        self.script.offered[label] = dict(masks)
        choice = self.script.verdicts.get(label, "initial")
        said = "" if choice == "neither" else f"{label} as seen"
        verdict = RegionVerdict(choice=choice, description=said, reason=f"{choice} for {label}")
        return await self.script.answer(f"verify/{label}", verdict)

    async def compose(self, scene: Scene, concept: str) -> Answer[list[Prompt]]:
        return await self.script.answer(f"compose/{concept}", self.script.prompts.get(concept, []))

    async def align(self, scene: Scene, prompt: Prompt, picture: RgbArray) -> Answer[Alignment]:
        return await self.script.answer(f"align/{prompt.prompt}", self._judged(prompt.prompt))

    async def compose_negatives(self, scene: Scene, concept: str) -> Answer[list[Negative]]:
        return await self.script.answer(f"negatives/{concept}", self.script.negatives.get(concept, []))

    async def align_negative(self, scene: Scene, negative: Negative) -> Answer[Alignment]:
        return await self.script.answer(f"refute/{negative.prompt}", self._judged(negative.prompt))

    def _judged(self, text: str) -> Alignment:
        fits = text not in self.script.refused
        return Alignment(accept=fits, unmasked_match=not fits, reason="it fits" if fits else "another one fits too")


@dataclass
class ScriptedGrounder:
    script: Script
    version: str = "1"
    name: str = "scripted"
    needs_boxes: bool = True
    detail: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.detects = self.script.detects

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
        boxes = self.script.boxes.get(region.label, [] if self.detects else region.boxes)
        return await self.script.answer(f"ground/{region.label}", [Detection(box=box) for box in boxes])


@dataclass
class ScriptedSegmenter:
    script: Script
    version: str = "1"
    name: str = "scripted"
    detail: Mapping[str, str] = field(default_factory=dict)

    async def propose(self, photo: Photo) -> Answer[list[Mask]]:
        return await self.script.answer("propose", self.script.pool)

    async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
        cut = [self.script.masks.get(box) or filled(photo.height, photo.width, box) for box in boxes]
        return await self.script.answer("segment", cut)


def filled(height: int, width: int, box: Sequence[float]) -> Mask:
    """A mask of one box."""
    inside = np.zeros((height, width), bool)
    x0, y0, x1, y1 = (round(side) for side in box)
    inside[y0:y1, x0:x1] = True
    return Mask.from_array(inside)


def region(label: str, *boxes: Xyxy) -> DescribedRegion:
    return DescribedRegion(label=label, boxes=list(boxes))


def prompt(text: str, concept: str = "entities", **other: Any) -> Prompt:
    """A prompt that keeps every rule, with other fields replaced."""
    kept = {"concept_family": CONCEPT_FAMILIES[concept][0], "candidates": [0, 1], "satisfying": [0]}
    return Prompt.model_validate({"prompt": text, **kept, **other})


def negative(text: str, concept: str = "entities", **other: Any) -> Negative:
    """A negative that keeps every rule, with other fields replaced."""
    kept = {
        "strategy": "object_level_neighbor",
        "concept_family": CONCEPT_FAMILIES[concept][0],
        "target_decoy": "something absent",
    }
    return Negative.model_validate({"prompt": text, **kept, **other})


def settings(**other: Any) -> Settings:
    """Settings of a small run, with other fields replaced."""
    kept = {"preset": "offline", "annotator": "scripted", "grounder": "scripted", "segmenter": "scripted"}
    return Settings.model_validate({**kept, "min_pool_pixels": 4, **other})


LEFT: Xyxy = (10, 10, 40, 60)
RIGHT: Xyxy = (60, 20, 110, 70)


def two_things(concepts: Sequence[str] = ("entities", "spatial"), **other: Any) -> Script:
    """A script of an image (120x80 px or more) with two regions and, for each concept, two prompts and a negative;
    the second prompt of a concept is judged wrong."""
    prompts = {
        c: [prompt(f"Segment the {c} one", c), prompt(f"Find the {c} other", c, satisfying=[1])] for c in concepts
    }
    script = Script(
        regions=[region("left thing", LEFT), region("right thing", RIGHT)],
        pool=[filled(80, 120, (8, 10, 40, 62))],
        verdicts={"left thing": "refined"},
        prompts=prompts,
        negatives={c: [negative(f"Mark the {c} absent", c)] for c in concepts},
        refused={f"Find the {c} other" for c in concepts},
    )
    for name, value in other.items():
        setattr(script, name, value)
    return script


def tree(folder: Path) -> dict[str, object]:
    """Every file under a folder by its path, what differs from run to run (times, and cost that adds up) left out, and
    what runs keep for themselves."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and STATE not in path.parts)
    return {str(path.relative_to(folder)): _content(path) for path in files}


def _content(path: Path) -> object:
    if path.name == "summary.json":
        summary = json.loads(path.read_bytes())
        return {key: value for key, value in summary.items() if key not in ("timing", "gemini_usage")}
    if path.name == "journal.jsonl":
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        return sorted((line["key"], json.dumps(line["result"])) for line in lines)
    return path.read_bytes()
