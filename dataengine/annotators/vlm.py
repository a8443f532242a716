"""The annotator `vlm`: a vision language model looks and judges; one question for each method."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema, create_model

from dataengine import prompts
from dataengine.annotators import Scene
from dataengine.images import Photo, RgbArray
from dataengine.journal import Answer, digest
from dataengine.jpeg import jpeg, jpeg_of
from dataengine.masks import Mask
from dataengine.once import OncePer
from dataengine.overlays import numbered
from dataengine.records import (
    CONCEPT_FAMILIES,
    CONCEPTS,
    PROMPTS_A_CONCEPT,
    Alignment,
    Choice,
    DescribedRegion,
    Negative,
    Prompt,
    RegionVerdict,
    Strategy,
    Xyxy,
)
from dataengine.settings import Settings
from dataengine.vlm import Question, Vlm

MAX_BOXES = 24  # of a label: a model that goes on repeating itself gives hundreds
BOX_SCALE = 1000  # a box's coordinates are 0..1000 of the picture's height and width

# What the model answers, field by field as the templates name them. Numbers and lists that only a careless model gets
# wrong are told to the server but not enforced here: one odd prompt is refused by its rule, the others count. A model
# writes fields in their order, so it reasons before it judges.


_FOUR = {"minItems": 4, "maxItems": 4}


class Box(BaseModel):
    box_2d: Annotated[list[float], Field(json_schema_extra=_FOUR, description="[ymin, xmin, ymax, xmax], 0..1000")]


class Label(BaseModel):
    label: str


class BoxedLabel(Label):
    boxes: list[Box]


class Labels(BaseModel):
    regions: list[Label]


class BoxedLabels(BaseModel):
    regions: list[BoxedLabel]


class Verdict(BaseModel):
    reason: str
    description: str
    choice: Literal["initial", "neither"]


class VerdictOfTwo(BaseModel):
    reason: str
    description: str
    choice: Literal["initial", "refined", "neither"]


class Fit(BaseModel):
    reason: str
    accept: bool


class ExhaustiveFit(BaseModel):
    reason: str
    unmasked_match: bool
    accept: bool


def _families(concept: str) -> object:
    """A family's name: the concept's own are in the schema."""
    return Annotated[str, WithJsonSchema({"type": "string", "enum": list(CONCEPT_FAMILIES[concept])})]


def _list_of(name: str, **fields: object) -> type[BaseModel]:
    entry = create_model(f"{name}Entry", **{field: (kind, ...) for field, kind in fields.items()})  # type: ignore[call-overload]
    most = Field(json_schema_extra={"maxItems": PROMPTS_A_CONCEPT})
    made: type[BaseModel] = create_model(name, prompts=(list[entry], most))  # type: ignore[valid-type]
    return made


_PROMPTS = {
    c: _list_of("Prompts", prompt=str, concept_family=_families(c), candidates=list[int], satisfying=list[int])
    for c in CONCEPTS
}
_NEGATIVES = {
    c: _list_of("Negatives", prompt=str, strategy=Strategy, concept_family=_families(c), target_decoy=str)
    for c in CONCEPTS
}


class VlmAnnotator:
    """Asks a vision language model. Enter it (`async with`) before asking."""

    name = "vlm"
    version = "1"
    local = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._vlm = Vlm(settings)
        self.templates: Mapping[str, str] = prompts.load_templates(
            Path(settings.prompts_dir) if settings.prompts_dir else None
        )
        self.detail: Mapping[str, str] = {
            "model": settings.vlm,
            "server": settings.vlm_base_url or "the provider's",
            "pydantic-ai": importlib.metadata.version("pydantic-ai-slim"),
        }
        self._numbered: OncePer[Scene, bytes] = OncePer(
            lambda scene: jpeg(numbered(scene.photo.view, [region.mask for region in scene.regions]))
        )

    async def __aenter__(self) -> VlmAnnotator:
        await self._vlm.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._vlm.__aexit__(kind, error, trace)

    def basis(self, question: str, concept: str = "") -> Mapping[str, object]:
        """Model, settings and templates behind the answers to a question."""
        settings = self._settings
        return {
            "model": [settings.vlm, settings.vlm_base_url, settings.vlm_output],
            "safety": settings.safety if settings.vlm.startswith("google:") else "",
            "temperature": settings.temperature[question],
            "thinking": settings.thinking[question],
            "templates": digest([self.templates[name] for name in self._templates_of(question, concept)]),
        }

    def _templates_of(self, question: str, concept: str) -> list[str]:
        names = {
            "describe": ["REGION_DENSE_CAPTION_META_PROMPT", "REGION_BOXES_META_PROMPT"],
            "verify": ["REGION_JUDGE_META_PROMPT"],
            "compose": [prompts.concept_template(concept)],
            "negatives": [prompts.negative_template(concept)],
            "align": ["PROMPT_JUDGE_META_PROMPT", *(["EXHAUSTIVE_META_PROMPT"] if self._settings.exhaustive else [])],
            "refute": ["NEGATIVE_JUDGE_META_PROMPT"],
        }
        return names[question]

    def _instruction(self, question: str, concept: str = "", *, names: Sequence[str] = (), **slots: object) -> str:
        """A question's templates, one after another, with their slots filled."""
        chosen = names or self._templates_of(question, concept)
        return prompts.fill("\n\n".join(self.templates[name] for name in chosen), **slots)

    async def describe(self, photo: Photo, max_regions: int, with_boxes: bool) -> Answer[list[DescribedRegion]]:
        """Labels of the regions worth asking about, with their boxes where the grounder takes them."""
        names = self._templates_of("describe", "")[: 2 if with_boxes else 1]
        instruction = self._instruction("describe", names=names, MAX_REGIONS=max_regions)
        shown = await _shown(photo)
        kind: type[Labels | BoxedLabels] = BoxedLabels if with_boxes else Labels
        answer = await self._vlm.ask(Question("describe", instruction, shown, kind))
        return Answer([_region(entry, photo) for entry in answer.value.regions], answer.usage)

    async def verify(
        self, photo: Photo, label: str, masks: Mapping[Choice, Mask], pictures: Mapping[Choice, RgbArray]
    ) -> Answer[RegionVerdict]:
        """Judges and picks in one question, so that the mask that is kept is one that was judged."""
        masked = [(f"The {c} mask, in red with a green box:", partial(jpeg, p)) for c, p in pictures.items()]
        shown = await _shown(photo, *masked)
        choices = " or ".join(f'"{choice}"' for choice in (*masks, "neither"))
        instruction = self._instruction("verify", LABEL=label, CHOICES=choices)
        kind: type[BaseModel] = VerdictOfTwo if "refined" in masks else Verdict
        answer = await self._vlm.ask(Question("verify", instruction, shown, kind))
        said = answer.value.model_dump()
        said["description"] = _one_line(said["description"]) or label  # which the mask was judged to show
        return Answer(RegionVerdict.model_validate(said), answer.usage)

    async def compose(self, scene: Scene, concept: str) -> Answer[list[Prompt]]:
        """Prompts of the concept, about the numbered regions."""
        answer = await self._ask_about(scene, "compose", concept, _PROMPTS[concept])
        return Answer([Prompt.model_validate(entry) for entry in _entries(answer.value)], answer.usage)

    async def compose_negatives(self, scene: Scene, concept: str) -> Answer[list[Negative]]:
        """Prompts of the concept that should fit nothing in the photo."""
        answer = await self._ask_about(scene, "negatives", concept, _NEGATIVES[concept])
        return Answer([Negative.model_validate(entry) for entry in _entries(answer.value)], answer.usage)

    async def _ask_about(self, scene: Scene, question: str, concept: str, kind: type[BaseModel]) -> Answer[BaseModel]:
        instruction = self._instruction(question, concept, DENSE_CAPTION=scene.caption)
        numbers = ("The same photo with its regions numbered:", partial(self._numbered, scene))
        shown = await _shown(scene.photo, numbers)
        return await self._vlm.ask(Question(question, instruction, shown, kind))

    async def align(self, scene: Scene, prompt: Prompt, picture: RgbArray) -> Answer[Alignment]:
        """Whether the prompt means what the picture shows, and, where `exhaustive`, nothing else in the photo."""
        shown = await _shown(scene.photo, ("The masks, in colour, the rest dimmed:", partial(jpeg, picture)))
        instruction = self._instruction("align", PROMPT=prompt.prompt)
        kind: type[BaseModel] = ExhaustiveFit if self._settings.exhaustive else Fit
        answer = await self._vlm.ask(Question("align", instruction, shown, kind))
        return Answer(Alignment.model_validate({"unmasked_match": False, **answer.value.model_dump()}), answer.usage)

    async def align_negative(self, scene: Scene, negative: Negative) -> Answer[Alignment]:
        """Whether there is no pixel of what the prompt asks for; the plain photo is shown."""
        shown = await _shown(scene.photo)
        instruction = self._instruction("refute", PROMPT=negative.prompt, DECOY=negative.target_decoy)
        answer = await self._vlm.ask(Question("refute", instruction, shown, ExhaustiveFit))
        return Answer(Alignment.model_validate(answer.value.model_dump()), answer.usage)


async def _shown(photo: Photo, *others: tuple[str, Callable[[], bytes]]) -> list[str | bytes]:
    """A question's parts: the photo and other pictures, each after its title, all encoded on one way into a thread."""

    def encoded() -> list[str | bytes]:
        parts: list[str | bytes] = ["The photo:", jpeg_of(photo)]
        for title, make in others:
            parts += [title, make()]
        return parts

    return await asyncio.to_thread(encoded)


def _region(entry: Label, photo: Photo) -> DescribedRegion:
    given = [tuple(box.box_2d) for box in entry.boxes] if isinstance(entry, BoxedLabel) else []
    boxes = [_xyxy(box, photo) for box in dict.fromkeys(given) if len(box) == 4]
    return DescribedRegion(label=_one_line(entry.label), boxes=boxes[:MAX_BOXES])


def _entries(answer: BaseModel) -> list[dict[str, Any]]:
    """The prompts of an answer, each text on one line."""
    entries: list[dict[str, Any]] = answer.model_dump()["prompts"]
    return [{k: _one_line(v) if isinstance(v, str) else v for k, v in entry.items()} for entry in entries]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _xyxy(box_2d: Sequence[float], photo: Photo) -> Xyxy:
    """[ymin, xmin, ymax, xmax] in 0..1000 as xyxy in pixels of the photo; corners in either order."""
    y0, x0, y1, x1 = box_2d
    (left, right), (top, bottom) = sorted((x0, x1)), sorted((y0, y1))
    x, y = photo.width / BOX_SCALE, photo.height / BOX_SCALE
    return left * x, top * y, right * x, bottom * y
