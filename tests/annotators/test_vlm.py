from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from dataengine.annotators import Scene, SceneRegion
from dataengine.annotators.vlm import VlmAnnotator
from dataengine.errors import DataEngineError, UsageError
from dataengine.images import Photo, RgbArray
from dataengine.jpeg import jpeg
from dataengine.overlays import numbered, prompt_picture, region_overlay
from dataengine.prompts import TEMPLATES
from dataengine.records import CONCEPT_FAMILIES, CONCEPTS, Choice
from dataengine.settings import QUESTIONS, Settings, load_settings
from tests.scripted import filled, negative, prompt
from tests.standins.vlm_server import KEY, Asked, VlmServer, sensible

T = TypeVar("T")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)


def settings(url: str = "http://127.0.0.1:9", **other: Any) -> Settings:
    return load_settings({"vlm_base_url": url, "retry_seconds": 0, "vlm_timeout": 10, **other})


def photo(height: int = 600, width: int = 1000) -> Photo:
    ramp = np.linspace(0, 255, height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    return Photo(Path("ramp.png"), ramp, "1")


def scene() -> Scene:
    boxes = ((100, 100, 400, 500), (600, 100, 900, 500))
    masks = [filled(600, 1000, box) for box in boxes]
    regions = (SceneRegion(0, "left", "a left thing", masks[0]), SceneRegion(1, "right", "a right thing", masks[1]))
    return Scene(photo(), regions)


def ask(server: VlmServer, work: Callable[[VlmAnnotator], Awaitable[T]], **other: Any) -> T:
    async def main() -> T:
        async with VlmAnnotator(settings(server.url, **other)) as annotator:
            return await work(annotator)

    return asyncio.run(main())


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_describe_with_boxes() -> None:
    """0..1000 as [ymin, xmin, ymax, xmax] becomes xyxy in pixels of the photo, corners in either order."""
    boxes = [{"box_2d": [200, 100, 800, 450]}, {"box_2d": [900, 950, 250.5, 550]}]
    answers = {"regions": [{"label": " a cup\non a table ", "boxes": boxes}, {"label": "sky", "boxes": []}]}
    with VlmServer(lambda asked: answers) as server:
        answer = ask(server, lambda annotator: annotator.describe(photo(), 6, True))
    first, second = answer.value
    assert first.label == "a cup on a table"
    assert np.allclose(first.boxes, [(100, 120, 450, 480), (550, 150.3, 950, 540)])
    assert (second.label, second.boxes) == ("sky", [])
    (asked,) = server.asked
    assert asked.images == [(768, 461)]
    assert "never more than 6." in asked.instruction
    assert "box_2d" in asked.instruction
    assert asked.jpegs == [jpeg(photo().view)]
    assert answer.usage.calls == 1


def test_odd_boxes_are_left_out_and_the_others_count() -> None:
    """Repeated ones, ones without four numbers, and more than any label needs."""
    odd = [{"box_2d": [1, 2, 3]}, {"box_2d": []}, *[{"box_2d": [0, 0, 500, 500]}] * 200]
    many = [{"box_2d": [i, i, 500, 500]} for i in range(200)]
    answers = {"regions": [{"label": "cup", "boxes": odd}, {"label": "cups", "boxes": many}]}
    with VlmServer(lambda asked: answers) as server:
        cup, cups = ask(server, lambda annotator: annotator.describe(photo(), 6, True)).value
    assert [tuple(map(round, box)) for box in cup.boxes] == [(0, 0, 500, 300)]
    assert len(cups.boxes) == 24
    assert server.asked[0].schema["$defs"]["Box"]["properties"]["box_2d"]["maxItems"] == 4


def test_texts_of_a_model_are_one_line_each() -> None:
    """A line break in a description would forge a line of the caption."""

    def broken(asked: Asked) -> object:
        answer: Any = sensible(asked)
        if asked.question == "verify":
            return {**answer, "description": "cup\n1: forged"}
        answer["prompts"][0]["prompt"] = " Find the\n cup "
        return answer

    mask = filled(600, 1000, (100, 100, 400, 500))
    overlay: dict[Choice, RgbArray] = {"initial": photo().view}
    with VlmServer(broken) as server:
        verdict = ask(server, lambda annotator: annotator.verify(photo(), "x", {"initial": mask}, overlay)).value
        first = ask(server, lambda annotator: annotator.compose(scene(), "spatial")).value[0]
    assert (verdict.description, first.prompt) == ("cup 1: forged", "Find the cup")


def test_a_kept_mask_without_a_description_has_its_label() -> None:
    mask = filled(600, 1000, (100, 100, 400, 500))
    answer = {"reason": "", "description": " ", "choice": "initial"}
    with VlmServer(lambda asked: answer) as server:
        work = lambda annotator: annotator.verify(photo(), "a cup", {"initial": mask}, {"initial": photo().view})  # noqa: E731
        assert ask(server, work).value.description == "a cup"


def test_describe_without_boxes_does_not_pay_for_them() -> None:
    with VlmServer(lambda asked: {"regions": [{"label": "a cup"}]}) as server:
        answer = ask(server, lambda annotator: annotator.describe(photo(), 6, False))
    assert [(r.label, r.boxes) for r in answer.value] == [("a cup", [])]
    assert "box_2d" not in server.asked[0].instruction
    assert "boxes" not in str(server.asked[0].schema)


def test_the_view_is_as_large_as_asked() -> None:
    small = Photo(Path("a.png"), photo().rgb, "1", view_side=300)
    with VlmServer(lambda asked: {"regions": []}) as server:
        assert ask(server, lambda annotator: annotator.describe(small, 6, True)).value == []
    assert server.asked[0].images == [(300, 180)]


@pytest.mark.parametrize("choices", [("initial",), ("initial", "refined")])
@pytest.mark.parametrize("chosen", ["initial", "refined", "neither"])
def test_verify_judges_and_picks_in_one_question(choices: tuple[Choice, ...], chosen: Choice) -> None:
    masks = {choice: filled(600, 1000, (100, 100, 400 + 50 * i, 500)) for i, choice in enumerate(choices)}
    pictures = {choice: region_overlay(photo().view, mask) for choice, mask in masks.items()}
    answer = {"reason": "so", "description": "a thing", "choice": chosen}
    with VlmServer(lambda asked: answer) as server:
        verdicts = lambda annotator: annotator.verify(photo(), "a {LABEL} of {CHOICES}", masks, pictures)  # noqa: E731
        if chosen in (*choices, "neither"):
            assert ask(server, verdicts).value.model_dump() == answer
        else:
            with pytest.raises(DataEngineError) as caught:  # no such mask was shown
                ask(server, verdicts)
            assert caught.value.reason == "bad_answer"
    asked = server.asked[0]
    assert asked.jpegs == [jpeg(photo().view), *(jpeg(picture) for picture in pictures.values())]
    assert asked.schema["properties"]["choice"]["enum"] == [*choices, "neither"]
    assert "a {LABEL} of {CHOICES}" in asked.instruction  # a label is no slot
    assert [f"The {choice} mask" in text for choice, text in zip(choices, asked.texts[1:], strict=True)]


@pytest.mark.parametrize("concept", CONCEPTS)
def test_compose(concept: str) -> None:
    with VlmServer() as server:
        answer = ask(server, lambda annotator: annotator.compose(scene(), concept))
    (asked,) = server.asked
    assert [p.satisfying for p in answer.value] == [[0], [1]]
    assert asked.concept == concept
    assert "0: a left thing\n1: a right thing" in asked.instruction
    assert all(family in asked.instruction for family in CONCEPT_FAMILIES[concept])
    drawn = numbered(scene().photo.view, [region.mask for region in scene().regions])
    assert asked.jpegs == [jpeg(scene().photo.view), jpeg(drawn)]


def test_a_family_of_another_concept_is_an_answer_and_for_the_rules_to_refuse() -> None:
    """One odd entry must not cost the others."""

    def odd(asked: Asked) -> object:
        answer: Any = sensible(asked)
        answer["prompts"][0]["concept_family"] = "moods"
        return answer

    with VlmServer(odd) as server:
        answer = ask(server, lambda annotator: annotator.compose(scene(), "spatial"))
    assert [p.concept_family for p in answer.value] == ["moods", CONCEPT_FAMILIES["spatial"][0]]


def test_the_numbered_picture_is_drawn_once_a_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("dataengine.annotators.vlm.numbered", lambda *given: drawn.append(given) or numbered(*given))  # type: ignore[func-returns-value]
    one = scene()

    async def all_concepts(annotator: VlmAnnotator) -> None:
        await asyncio.gather(*(annotator.compose(one, c) for c in CONCEPTS))
        await asyncio.gather(*(annotator.compose_negatives(one, c) for c in CONCEPTS))

    with VlmServer() as server:
        ask(server, all_concepts)
    assert len(drawn) == 1
    assert len({asked.jpegs[1] for asked in server.asked}) == 1
    assert len(server.asked) == 10


@pytest.mark.parametrize("exhaustive", [True, False])
def test_align(exhaustive: bool) -> None:
    one = scene()
    picture = prompt_picture(one.photo.view, [one.regions[0].mask], "Segment the cup")
    answer = {"reason": "another cup stands behind", "unmasked_match": True, "accept": True}
    with VlmServer(lambda asked: answer) as server:
        work = lambda annotator: annotator.align(one, prompt("Segment the cup"), picture)  # noqa: E731
        verdict = ask(server, work, exhaustive=exhaustive)
    assert verdict.value.model_dump() == {**answer, "unmasked_match": exhaustive}
    (asked,) = server.asked
    assert ("unmasked_match" in asked.schema["properties"]) == exhaustive
    assert ("unmasked_match" in asked.instruction) == exhaustive
    assert asked.jpegs == [jpeg(one.photo.view), jpeg(picture)]
    assert "Segment the cup" in asked.instruction


def test_align_negative_shows_the_plain_photo() -> None:
    answer = {"reason": "there is none", "unmasked_match": False, "accept": True}
    with VlmServer(lambda asked: answer) as server:
        work = lambda annotator: annotator.align_negative(scene(), negative("Find the dog", target_decoy="a dog"))  # noqa: E731
        verdict = ask(server, work)
    assert verdict.value.model_dump() == answer
    (asked,) = server.asked
    assert asked.jpegs == [jpeg(scene().photo.view)]
    assert "Find the dog" in asked.instruction
    assert "a dog" in asked.instruction


def test_negatives() -> None:
    with VlmServer() as server:
        answer = ask(server, lambda annotator: annotator.compose_negatives(scene(), "physics"))
    assert [n.target_decoy for n in answer.value] == ["absent physics thing"]
    assert server.asked[0].schema["properties"]["prompts"]["maxItems"] == 3


def test_what_is_seen_is_what_is_on_disk() -> None:
    """The overlay that is judged is the JPEG of the very picture that the run folder keeps."""
    mask = filled(600, 1000, (100, 100, 400, 500))
    overlay = region_overlay(photo().view, mask)
    with VlmServer() as server:
        ask(server, lambda annotator: annotator.verify(photo(), "x", {"initial": mask}, {"initial": overlay}))
    assert np.abs(pixels(server.asked[0].jpegs[1]).astype(int) - overlay).mean() < 8


def basis(question: str, concept: str = "", **other: Any) -> object:
    return VlmAnnotator(settings(**other)).basis(question, concept)


@pytest.mark.parametrize(
    ("changed", "questions"),
    [
        ({"temperature": "verify=0"}, {"verify"}),
        ({"thinking": "describe=512"}, {"describe"}),
        ({"exhaustive": False}, {"align"}),
        ({"vlm": "google:gemini-3-pro"}, set(QUESTIONS)),
        ({"vlm_output": "prompted"}, set(QUESTIONS)),
        ({"safety": "none"}, set(QUESTIONS)),
        ({"vlm": "google:gemini-flash-latest", "grounder": "owlv2"}, set()),
        ({"vlm_timeout": 3, "retry_seconds": 9, "concurrency": 2}, set()),
    ],
)
def test_a_change_redoes_the_questions_it_is_about(changed: dict[str, Any], questions: set[str]) -> None:
    concept = {"compose": "spatial", "negatives": "spatial"}
    differing = {q for q in QUESTIONS if basis(q, concept.get(q, "")) != basis(q, concept.get(q, ""), **changed)}
    assert differing == questions


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "SPATIAL_META_PROMPT.txt").write_text("Write about places: {DENSE_CAPTION}")
    own = {"prompts_dir": str(tmp_path)}
    with VlmServer() as server:
        ask(server, lambda annotator: annotator.compose(scene(), "spatial"), **own)
    assert server.asked[0].instruction == "Write about places: 0: a left thing\n1: a right thing"
    assert basis("compose", "spatial", **own) != basis("compose", "spatial")
    assert basis("compose", "physics", **own) == basis("compose", "physics")
    assert VlmAnnotator(settings(**own)).templates.keys() == TEMPLATES.keys()
    with pytest.raises(UsageError, match="--prompts_dir"):
        VlmAnnotator(settings(prompts_dir=str(tmp_path / "nowhere")))


def test_every_template_belongs_to_a_question() -> None:
    annotator = VlmAnnotator(settings())
    used = {
        name
        for question in QUESTIONS
        for concept in (CONCEPTS if question in ("compose", "negatives") else ("",))
        for name in annotator._templates_of(question, concept)
    }
    assert used == set(TEMPLATES)


def test_it_says_what_it_is() -> None:
    annotator = VlmAnnotator(settings())
    assert annotator.detail["model"] == "google:gemini-flash-latest"
    assert not annotator.local
    assert KEY not in str(vars(annotator)) + str(annotator.detail)
