"""What a run is expected to cost: held against what the run then costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dataengine.annotators.vlm import VlmAnnotator
from dataengine.errors import StageError
from dataengine.forecast import (
    THOUGHT_TOKENS,
    Earlier,
    Forecast,
    _templates,
    assumed,
    budgets,
    forecast,
    price,
    sources,
    thought,
)
from dataengine.parts import Parts
from dataengine.prices import money
from dataengine.prompts import TEMPLATES
from dataengine.records import CONCEPTS, Usage
from dataengine.settings import QUESTIONS, THINKING_LEVELS, Settings
from dataengine.survey import Head, Surveyed, Tally, survey
from tests.scripted import Script, ScriptedGrounder, ScriptedSegmenter, negative, prompt, settings, two_things
from tests.test_plan import World, save

PAID = Usage(calls=1, input_tokens=1000, output_tokens=50, usd=0.01)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three images done, at the same cost for every call."""
    monkeypatch.setenv("GOOGLE_API_KEY", "key")
    for name in "abc":
        save(tmp_path / f"{name}.png", ord(name))
    made = World(tmp_path, two_things(usage=PAID))
    made.go()
    return made


def expected(world: World, **change: Any) -> Forecast:
    chosen = world.chosen(change)
    return forecast(world.explain(**change), world.out, world.parts(chosen, {}), chosen)


CHANGES: list[tuple[Mapping[str, Any], bool]] = [  # whether all answers differ that may
    ({}, True),
    ({"thinking": "align=128"}, True),
    ({"exhaustive": False, "thinking": "refute=128"}, True),
    ({"temperature": "0.1,align=0.7"}, False),
    ({"clean_pixels": 1}, False),
    ({"overwrite": True}, True),
    ({"negatives": False}, True),
    ({"concepts": ("spatial",)}, True),
    ({"concepts": ("spatial", "entities", "physics"), "thinking": "align=128"}, True),
]


@pytest.mark.parametrize(("change", "differ"), CHANGES, ids=lambda value: str(value)[:50])
def test_what_is_expected_is_what_it_costs(world: World, change: Mapping[str, Any], differ: bool) -> None:
    """Calls by stage and tokens, of new images and of those that are redone; no less, where some answers stay."""
    world.script.prompts["physics"] = [prompt(f"Segment the {w} one", "physics") for w in ("heavy", "light")]
    world.script.negatives["physics"] = [negative("Mark the light absent", "physics")]
    for name in ("new", "newer"):
        save(world.root / f"{name}.png", 200 + len(name))
    told, before = expected(world, **change), survey(world.out).cost
    assert (told.measured, told.assumed, told.spent) == (3, (), before)
    made: Counter[str] = Counter()
    for stage, times in world.go(**change).items():
        made[stage.partition("/")[0]] += times
    calls = {stage: cost.calls for stage, cost in told.stages.items()}
    assert calls == made if differ else made < Counter(calls)
    assert told.total.input_tokens == 1000 * told.total.calls


def test_nothing_is_expected_of_images_that_are_done(world: World) -> None:
    """Or whose files are written anew, or that could not be read before."""
    (world.out / "out_region_refine_a" / "original_image.png").unlink()
    (world.root / "bad.png").write_text("no photo")
    world.go()
    (world.out / "out_region_refine_b" / "original_image.png").unlink()
    told = expected(world)
    assert (told.images, told.stages, told.total) == (0, {}, Usage())


@pytest.mark.parametrize(
    "failing", ["describe", "verify/left thing", "compose/spatial", "align/Segment the spatial one"]
)
def test_what_an_unfinished_image_has_is_not_expected_again(world: World, failing: str) -> None:
    """Its journal says what is still to be asked."""
    save(world.root / "new.png", 200)
    world.script.fails = {failing: [StageError("no")]}
    world.go()
    told = expected(world)
    assert told.total.calls == sum(world.go().values())
    assert told.images == 1


def test_a_changed_stage_of_an_unfinished_image_is_expected_whole(world: World) -> None:
    """Whatever its journal holds of before."""
    save(world.root / "new.png", 200)
    world.script.fails = {"align/Segment the spatial one": [StageError("no")]}
    world.go()
    for name in "abc":
        (world.root / f"{name}.png").unlink()
    told = expected(world, thinking="align=128")
    assert told.stages["align"].calls == 4
    assert told.total.calls == sum(world.go(thinking="align=128").values())


def test_concepts_that_are_new(world: World) -> None:
    """Their prompts and negatives are composed and judged; those of others stay."""
    world.script.prompts["physics"] = world.script.prompts["spatial"]
    told = expected(world, concepts=("entities", "spatial", "physics"))
    assert {s: c.calls for s, c in told.stages.items()} == {"compose": 3, "align": 6, "negatives": 3, "refute": 3}


def test_only_images_of_the_same_parts_are_measured(world: World) -> None:
    """Others say nothing; then the figures are assumed."""
    chosen = world.chosen({"concepts": CONCEPTS})
    parts = world.parts(chosen, {})
    parts.annotator.name = "another"
    told = forecast(world.explain(concepts=CONCEPTS), world.out, parts, chosen)
    assert told.measured == 0 and "describe" not in told.stages
    save(world.root / "new.png", 200)
    told = forecast([f for f in world.explain(concepts=CONCEPTS) if f.what == "new"], world.out, parts, chosen)
    assert {stage: cost.calls for stage, cost in told.stages.items()} == {
        "describe": 1, "verify": 7, "compose": 5, "align": 15, "negatives": 5, "refute": 15,
    }  # fmt: skip
    assert set(told.assumed) == set(told.stages) and told.total.usd is None


def vlm_parts(**other: Any) -> tuple[Parts, Settings]:
    """The annotator `vlm`, and scripted parts beside it."""
    chosen = settings(annotator="vlm", **other)
    return Parts(VlmAnnotator(chosen), ScriptedGrounder(Script()), ScriptedSegmenter(Script())), chosen


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "key")


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("exhaustive", [True, False])
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_templates_that_are_counted_are_those_that_are_asked_with(question: str, exhaustive: bool) -> None:
    """For every question, and every concept of those about one."""
    parts, chosen = vlm_parts(exhaustive=exhaustive)
    assert isinstance(parts.annotator, VlmAnnotator)
    concepts = CONCEPTS if question in ("compose", "negatives") else ("",)
    asked_with = [name for c in concepts for name in parts.annotator._templates_of(question, c)]
    assert _templates(question, parts, chosen) == asked_with


@pytest.mark.usefixtures("keys")
def test_assumed_rates() -> None:
    """By templates, pictures and price; of one's own server and prices too."""
    parts, chosen = vlm_parts(price="1,10")
    rate = assumed("refute", parts, chosen)
    assert rate.calls == 3
    assert rate.input_tokens == len(TEMPLATES["NEGATIVE_JUDGE_META_PROMPT"]) / 4 + 150 + 1120
    assert rate.output_tokens == 70
    assert rate.usd == pytest.approx((round(rate.input_tokens) + 10 * 70) / 1e6)
    thinking = assumed("refute", *vlm_parts(thinking="refute=medium"))
    assert thinking.output_tokens == 70 + THOUGHT_TOKENS["medium"]
    assert thinking.usd is not None and thinking.usd > 0  # the list price
    composing = assumed("compose", parts, chosen).input_tokens  # of one concept, not of all five
    assert composing < max(len(TEMPLATES[name]) for name in TEMPLATES) / 4 + 150 + 2 * 1120
    unknown = assumed("describe", *vlm_parts(vlm="openai:no-such-model", vlm_base_url="http://localhost:1/v1"))
    assert unknown.usd is None and unknown.input_tokens > 0


def test_what_a_service_for_boxes_costs() -> None:
    """Of Moondream's cloud it is not known; a station of one's own takes nothing."""
    assert price("ground", 0, 0, settings()) is None
    assert price("detect", 0, 0, settings(moondream_url="http://localhost:2020/v1")) == 0
    parts = two_things().parts(local=True)
    told = forecast([], Path("nowhere"), parts, settings(grounder="moondream"))
    assert told.total == Usage()


def test_every_setting_of_thinking_has_a_length() -> None:
    """More thinking is never expected to be shorter."""
    assert set(THOUGHT_TOKENS) == set(THINKING_LEVELS)
    assert thought(2048) == 2048
    in_order = ["off", "minimal", "low", "medium", "high"]
    assert sorted(in_order, key=thought) == in_order


def test_thinking_that_was_changed_is_reckoned_with(world: World) -> None:
    """The measured answers of a stage are longer by what is thought more."""
    told = expected(world, thinking="align=1000")
    assert told.stages["align"].output_tokens == told.stages["align"].calls * (50 + 1000)
    assert told.stages["align"].usd is None  # of scripted calls there is no price to reckon with


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("other", "usd"),
    [
        ({}, 0.5),  # as measured
        ({"price": "1,10"}, (100 + 10 * 50) / 1e6),
        ({"price": "0,10", "thinking": "align=150"}, 10 * 200 / 1e6),
        ({"thinking": "align=150"}, None),  # what the service took, in proportion to the list
    ],
)
def test_the_price_of_a_measured_call(other: dict[str, Any], usd: float | None) -> None:
    """The service's own, which may not be the list's: a name such as `latest` stands for one model today."""
    parts, chosen = vlm_parts(**other)
    paid = Usage(calls=2, input_tokens=200, output_tokens=100, usd=1.0)
    head = Head.model_validate(
        {
            "complete": True,
            "source": {"path": "/a"},
            "concepts": ["spatial", "physics"],
            "parts": {kind: {"name": getattr(parts, kind).name} for kind in ("annotator", "grounder", "segmenter")},
            "settings": {"vlm": chosen.vlm, "thinking": {"align": "off"}},
        }
    )
    earlier = Earlier(parts, chosen)
    earlier.add(Surveyed(head, {"align": paid}))
    rate = earlier.rate("align")
    assert rate is not None and rate.calls == 1 and rate.usd is not None
    if usd is None:
        short, long = (price("align", 100, out, chosen) for out in (50, 200))
        assert short and long and rate.usd == pytest.approx(0.5 * long / short)
    else:
        assert rate.usd == pytest.approx(usd)
    other_model = Earlier(*vlm_parts(vlm="google:another"))
    other_model.add(Surveyed(head, {"align": paid}))
    assert other_model.images == 0


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, []),
        ({"budget_usd": 3}, ["--budget_usd 3: $1.00 spent so far, $2.00 expected: it suffices."]),
        ({"budget_usd": 2}, ["--budget_usd 2: $1.00 spent so far, $2.00 expected: it suffices for about 50%."]),
        ({"budget_usd": 0.5}, ["--budget_usd 0.5: $1.00 spent so far, $2.00 expected: it suffices for about 0%."]),
        (
            {"budget_tokens": 2500},
            ["--budget_tokens 2500: 1,100 tokens spent so far, 2,000 tokens expected: it suffices for about 70%."],
        ),
    ],
)
def test_budgets(budget: dict[str, float], said: list[str]) -> None:
    """What was spent before counts."""
    spent = Usage(calls=9, input_tokens=1000, output_tokens=100, usd=1.0)
    found = Forecast(1, {"verify": Tally(1500, 500, 2.0, 7)}, spent=spent)
    assert budgets(found, settings(**budget)) == said


def test_a_budget_that_nothing_is_known_of() -> None:
    """An unknown price is said as unknown."""
    (line,) = budgets(Forecast(1, {"verify": Tally(1, 1, None, 7)}), settings(budget_usd=1))
    assert "not known" in line


@pytest.mark.parametrize(
    ("usd", "said"), [(None, "cost unknown"), (0.0, "$0.00"), (0.01234, "$0.0123"), (1234.5, "$1,234.50")]
)
def test_money(usd: float | None, said: str) -> None:
    """Small sums to a hundredth of a cent."""
    assert money(usd) == said


def test_sources_in_words() -> None:
    """Where figures were measured and where not."""
    assert sources(Forecast(measured=1)) == ["Figures: averages of 1 image done here by the same parts and model."]
    both = sources(Forecast(measured=1200, assumed=("refute",)))
    assert "1,200 images" in both[0] and both[1] == "Figures of refute assumed: 7 regions, 3 prompts a concept;"


@pytest.mark.parametrize("annotator_is_local", [True, False])
def test_parts_that_cost_nothing_are_named(annotator_is_local: bool) -> None:
    """And those of the user's own, of which it is not known."""
    parts = two_things().parts(local=annotator_is_local)
    chosen = settings(segmenter="mine:Cutter")
    told = forecast([], Path("nowhere"), parts, chosen)
    assert told.free == (("annotator scripted",) if annotator_is_local else ()) + ("grounder scripted",)
    assert told.unknown == ("segmenter scripted",)
    assert f"at no cost: {', '.join(told.free)}." in sources(told)[0]
    assert sources(told)[1] == "Not counted, since no run has shown what they ask: segmenter scripted."
