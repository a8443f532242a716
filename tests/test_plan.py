"""What a run would do and why: held against what the run then does."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataengine.annotators.vlm import VlmAnnotator
from dataengine.basis import UPSTREAM
from dataengine.engine import run
from dataengine.errors import StageError
from dataengine.parts import Parts
from dataengine.plan import Finding, Planner, after, differences, grouped, named, plan
from dataengine.prompts import TEMPLATES
from dataengine.records import CONCEPTS, Source
from dataengine.run_folder import RunFolder
from dataengine.settings import Settings
from tests.scenes import Drawing
from tests.scripted import (
    LEFT,
    RIGHT,
    Script,
    ScriptedAnnotator,
    ScriptedGrounder,
    ScriptedSegmenter,
    settings,
    two_things,
)
from tests.test_engine import Recorder

VIEW_STAGES = {"describe", "verify", "compose", "align", "negatives", "refute"}
ALL = {*VIEW_STAGES, "propose", "ground", "segment", "detect"}


@dataclass
class OfVlm(ScriptedAnnotator):
    """Answers by script; its answers rest on what those of the annotator `vlm` rest on."""

    settings: Settings = field(default_factory=settings)

    def __post_init__(self) -> None:
        self.vlm = VlmAnnotator(self.settings)

    def basis(self, question: str, concept: str = "") -> Mapping[str, object]:
        return self.vlm.basis(question, concept)


@dataclass
class World:
    """A photo of 120x80 px, run with scripted parts whose settings and versions can be changed."""

    root: Path
    script: Script

    def parts(self, chosen: Settings, versions: Mapping[str, str]) -> Parts:
        return Parts(
            OfVlm(self.script, versions.get("annotator", "1"), settings=chosen),
            ScriptedGrounder(self.script, versions.get("grounder", "1")),
            ScriptedSegmenter(self.script, versions.get("segmenter", "1")),
        )

    @property
    def images(self) -> list[Path]:
        return sorted(self.root.glob("*.png"))

    @property
    def out(self) -> Path:
        return self.root / "out"

    def chosen(self, change: Mapping[str, Any]) -> Settings:
        return settings(**{"concepts": ("entities", "spatial"), **change})

    def explain(self, versions: Mapping[str, str] | None = None, **change: Any) -> list[Finding]:
        chosen = self.chosen(change)
        return list(plan(self.images, self.out, self.parts(chosen, versions or {}), chosen))

    def go(self, versions: Mapping[str, str] | None = None, **change: Any) -> Counter[str]:
        """Run; how often each stage was asked."""
        before, chosen = self.script.made.copy(), self.chosen(change)
        self.out.mkdir(exist_ok=True)
        asyncio.run(run(self.images, self.out, self.parts(chosen, versions or {}), chosen, Recorder()))
        stages: Counter[str] = Counter()
        for call, times in (self.script.made - before).items():
            stages[stage_of(call)] += times
        return stages


def stage_of(call: str) -> str:
    """The stage of a scripted call; a grounder that is asked for a decoy detects."""
    if call == "ground/something absent":
        return "detect"
    question = call.partition("/")[0]
    return call if question in ("compose", "negatives") else question


def save(path: Path, shade: int = 90) -> None:
    """A photo of one grey."""
    Image.fromarray(Drawing.ground(120, 80, (shade, shade, shade)).rgb).save(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """One image, done."""
    for name in ("GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "key")
    save(tmp_path / "a.png")
    return World(tmp_path, two_things(detects=True, boxes={"left thing": [LEFT], "right thing": [RIGHT]}))


def by_concept(*stages: str) -> set[str]:
    """The stages of a run for `entities` and `spatial`; a question about all concepts is meant for both."""
    kinds = ("compose", "negatives")
    return {f"{s}/{c}" if s in kinds else s for s in stages for c in (("entities", "spatial") if s in kinds else ("",))}


CHANGES: list[tuple[dict[str, Any], dict[str, str], set[str]]] = [
    ({"max_regions": 7}, {}, {"describe"}),
    ({"iou_threshold": 0.4}, {}, {"segment"}),
    ({"min_pool_pixels": 5}, {}, {"propose", "segment"}),
    ({"clean_pixels": 0}, {}, {"segment"}),
    ({"max_side": 100}, {}, ALL),
    ({"max_side": 120}, {}, set()),  # the photo is no larger
    ({"vlm_side": 100}, {}, VIEW_STAGES),
    ({"vlm_side": 1024}, {}, set()),
    ({"vlm": "google:another"}, {}, VIEW_STAGES),
    ({"vlm": "openai:another"}, {}, VIEW_STAGES),
    ({"vlm_base_url": "http://localhost:1"}, {}, VIEW_STAGES),
    ({"vlm_output": "prompted"}, {}, VIEW_STAGES),
    ({"safety": "none"}, {}, VIEW_STAGES),
    ({"temperature": "verify=0"}, {}, {"verify"}),
    ({"temperature": "0.5,describe=0.7"}, {}, VIEW_STAGES - {"describe"}),
    ({"thinking": "align=low"}, {}, {"align"}),
    ({"thinking": "negatives=off,refute=high"}, {}, {"negatives", "refute"}),
    ({"exhaustive": False}, {}, {"align"}),
    ({"concurrency": 3, "rpm": 100, "retry_seconds": 1, "vlm_timeout": 7}, {}, set()),
    ({}, {"annotator": "2"}, VIEW_STAGES),
    ({}, {"grounder": "2"}, {"ground", "detect"}),
    ({}, {"segmenter": "2"}, {"propose", "segment"}),
    ({"negatives": False, "thinking": "refute=high"}, {}, set()),
    ({"negatives": False}, {"annotator": "2"}, VIEW_STAGES - {"negatives", "refute"}),
]


def _named(value: object) -> str:
    """A test's name, the same in every process: a set has no order of its own."""
    return str(sorted(value) if isinstance(value, set) else value)[:60]


@pytest.mark.parametrize(("change", "versions", "stages"), CHANGES, ids=_named)
def test_what_is_told_is_what_is_asked(
    world: World, change: dict[str, Any], versions: dict[str, str], stages: set[str]
) -> None:
    """Where the answers stay the same, the stages named first are asked again, and no other."""
    world.go()
    (found,) = world.explain(versions, **change)
    expected = {s for s in by_concept(*stages) if change.get("negatives", True) or not s.startswith("negatives")}
    assert set(found.first) == expected
    assert set(world.go(versions, **change)) == expected
    (again,) = world.explain(versions, **change)
    assert again.what == "done"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_changed_template_redoes_what_is_asked_with_it(world: World, name: str) -> None:
    """And nothing where its concept is not among those asked for."""
    world.go()
    folder = world.root / "prompts"
    folder.mkdir()
    (folder / f"{name}.txt").write_text(f"{TEMPLATES[name]}\nAnswer well.")
    (found,) = world.explain(prompts_dir=str(folder))
    assert set(found.first) == set(world.go(prompts_dir=str(folder)))
    if found.first:
        assert f"{named(found.first)}: templates changed" in found.why
    else:
        assert any(concept in name.lower() for concept in ("relations", "affordances", "physics"))


def test_stages_after_those_are_asked_where_answers_differ(world: World) -> None:
    """A new wording of one concept's prompts has these judged again, and nothing else."""
    world.go()
    world.script.prompts["spatial"] = [p.model_copy(update={"prompt": f"{p.prompt} now"}) for p in
                                       world.script.prompts["spatial"]]  # fmt: skip
    (found,) = world.explain(thinking="compose=off")
    assert (set(found.first), found.then) == ({"compose/entities", "compose/spatial"}, ("align",))
    assert set(world.go(thinking="compose=off")) == {*found.first, *found.then}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"thinking": "align=low"}, ["align: thinking off -> low"]),
        ({"exhaustive": False}, ["align: templates changed"]),
        ({"temperature": "verify=0,align=0"}, ["verify, align: temperature 0.7 -> 0.0"]),
        (
            {"vlm": "openai:another", "safety": "none"},
            [
                "describe, verify, compose/entities, compose/spatial, negatives/entities, negatives/spatial, align, "
                "refute: model google:gemini-flash-latest -> openai:another; safety high -> none"
            ],
        ),
        (
            {"max_side": 100, "iou_threshold": 0.4},
            [
                "describe, propose, ground, verify, compose/entities, compose/spatial, negatives/entities, "
                "negatives/spatial, align, detect, refute: max_side none -> 100",
                "segment: max_side none -> 100; iou_threshold 0.5 -> 0.4",
            ],
        ),
        ({"max_side": 4000}, ["what is asked for now is as before: answers are kept, files written anew"]),
        (
            {"clean_pixels": 1, "concepts": ("spatial",), "negatives": False},
            ["segment: clean_pixels 100 -> 1", "results not asked for now are removed: entities, negatives"],
        ),
        ({"concepts": CONCEPTS[:3]}, ["prompts not made yet: relations", "negatives not made yet: relations"]),
        ({"concepts": CONCEPTS[:3], "negatives": False}, ["prompts not made yet: relations"]),
        ({"overwrite": True}, ["--overwrite: all of it, paid answers too"]),
    ],
)
def test_reasons_in_words(world: World, change: dict[str, Any], why: list[str]) -> None:
    """Stages, and what has changed field by field."""
    world.go()
    (found,) = world.explain(**change)
    assert (found.what, list(found.why)) == ("redone", why)


def test_results_that_are_said_to_be_removed_are(world: World) -> None:
    """Those of concepts that are no longer asked for, where the folder is made from other inputs."""
    world.go()
    folder = world.out / "out_region_refine_a"
    assert (folder / "entities").exists() and (folder / "negatives" / "spatial.json").exists()
    world.go(clean_pixels=1, concepts=("spatial",), negatives=False)
    assert not (folder / "entities").exists() and not (folder / "negatives").exists()


def test_negatives_that_were_not_asked_for_are_not_made_yet(world: World) -> None:
    """Those of all concepts, and those alone."""
    world.go(negatives=False)
    (found,) = world.explain()
    assert (found.first, found.why) == (
        ("negatives/entities", "negatives/spatial"), ("negatives not made yet: entities, spatial",),
    )  # fmt: skip
    assert set(world.go()) == {*found.first, "detect", "refute"}


def test_changes_and_what_is_not_made_yet_add_up(world: World) -> None:
    """A stage that has changed, a concept that is new, and negatives that were not asked for."""
    world.go(concepts=("entities",), negatives=False)
    (found,) = world.explain(thinking="align=low")
    assert found.why == (
        "align: thinking off -> low", "prompts not made yet: spatial", "negatives not made yet: entities, spatial",
    )  # fmt: skip
    assert (set(found.first), found.then) == ({"align", "compose/spatial", *by_concept("negatives")}, ())
    assert set(world.go(thinking="align=low")) == {*found.first, "detect", "refute"}


@pytest.mark.parametrize("lost", ["original_image.png", "spatial/summary.json", "negatives/entities.json"])
def test_a_lost_file_is_written_anew(world: World, lost: str) -> None:
    """From answers that are kept."""
    world.go()
    (world.out / "out_region_refine_a" / lost).unlink()
    (found,) = world.explain()
    assert (found.what, found.first, found.goes_on) == ("redone", (), False)
    assert "written anew" in found.why[0]
    assert not world.go()


@pytest.mark.parametrize("changed", ["content", "overwrite"])
def test_all_is_asked_again(world: World, changed: str) -> None:
    """Of a photo with other content, and with --overwrite."""
    first = world.go()
    change: dict[str, Any] = {"overwrite": True} if changed == "overwrite" else {}
    if changed == "content":
        save(world.root / "a.png", 150)
    (found,) = world.explain(**change)
    assert (found.what, set(found.first)) == ("redone", set(first))
    assert set(world.go(**change)) == set(first)


def test_images_that_are_not_done(world: World) -> None:
    """New, failed at a stage, not to be read, and blocked; what the run then asks is told of each."""
    for name in ("blocked", "failed"):
        save(world.root / f"{name}.png", 120 + len(name))
    (world.root / "bad.png").write_text("no photo")
    failures: list[Exception] = [StageError("no", reason="blocked"), StageError("slow", reason="timeout")]
    answered = world.script.answer

    async def answer(call: str, value: Any) -> Any:
        if call == "verify/left thing" and failures and world.script.made[call] > 0:
            world.script.made[call] += 1
            raise failures.pop(0)
        return await answered(call, value)

    world.script.answer = answer  # type: ignore[method-assign]
    world.go(concurrency=1)
    save(world.root / "new.png", 200)
    found = {f.image.stem: f for f in world.explain()}
    assert {name: (f.what, f.why) for name, f in found.items()} == {
        "a": ("done", ()),
        "bad": ("failed", ("at read: not_an_image",)),
        "blocked": ("blocked", ("at verify: not asked again",)),
        "failed": ("failed", ("at verify: timeout",)),
        "new": ("new", ()),
    }
    assert [name for name, f in found.items() if f.goes_on] == ["failed"]
    (world.root / "new.png").unlink()
    assert world.go() == {
        "verify": 1, "compose/entities": 1, "compose/spatial": 1, "negatives/entities": 1, "negatives/spatial": 1,
        "align": 4, "detect": 2, "refute": 2,
    }  # fmt: skip


def test_a_blocked_image_is_asked_again_with_another_model(world: World) -> None:
    """Its answer rests on something else then."""
    world.script.fails = {"describe": [StageError("no", reason="blocked")]}
    world.go()
    (found,) = world.explain(vlm="google:another")
    assert (found.what, found.why[0]) == ("failed", "at describe: blocked")
    assert "describe" in found.first and "describe" in world.go(vlm="google:another")


def test_an_unfinished_image(world: World) -> None:
    """It goes on; what has changed meanwhile is told too."""
    world.go()
    record = world.out / "out_region_refine_a" / "run.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    (found,) = world.explain()
    assert (found.what, found.why, found.first, found.goes_on) == ("unfinished", (), (), True)
    (found,) = world.explain(thinking="align=low")
    assert (found.what, found.why, found.first) == ("unfinished", ("align: thinking off -> low",), ("align",))


def test_a_file_that_cannot_be_read_now(world: World) -> None:
    """Its results stay; it would fail."""
    world.go()
    (folder,) = (world.out / "out_region_refine_a").parent.glob("out_*")
    (world.root / "a.png").unlink()
    planner = Planner.of(world.out, world.parts(world.chosen({}), {}), world.chosen({}))
    found = planner.find(world.root / "a.png", RunFolder(folder))
    assert (found.what, found.why, found.first) == ("failed", ("its file cannot be read now",), ())


def test_a_folder_without_a_basis_is_redone(world: World) -> None:
    """An earlier version wrote none."""
    world.go()
    path = world.out / "out_region_refine_a" / "run.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "basis": {}, "fingerprint": "other", "dataengine": "0.1"}))
    (found,) = world.explain()
    assert found.what == "redone" and set(found.first) == by_concept(*ALL)
    assert "made by dataengine 0.1, which did not note what its answers rest on" in found.why[0]


def test_nothing_is_written_or_asked(world: World) -> None:
    """Not even a damaged line is mended; an output folder that is not there is not made."""
    world.explain()
    assert not world.out.exists()
    world.go()
    journal = world.out / "out_region_refine_a" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"step":"verify/0')
    (world.out / "failures.jsonl").write_text('{"image":')
    before, made = tree_of(world.out), world.script.made.copy()
    for change in ({}, {"vlm": "google:another"}, {"overwrite": True}):
        world.explain(**change)
    assert (tree_of(world.out), world.script.made) == (before, made)


def tree_of(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and time of change of every file."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_groups_have_counts_and_a_few_names() -> None:
    """However many images; by what is done, then by size."""
    findings = [Finding(Path(f"/in/{i}.jpg"), Path("out"), "redone", ("align: templates changed",)) for i in range(5)]
    findings += [Finding(Path("/in/x.jpg"), Path("out"), "redone", ("a",)), Finding(Path("y"), Path("o"), "new")]
    groups = grouped(findings)
    assert [(g.what, g.why, g.images, g.names) for g in groups] == [
        ("new", (), 1, ["y"]),
        ("redone", ("align: templates changed",), 5, ["0.jpg", "1.jpg", "2.jpg"]),
        ("redone", ("a",), 1, ["x.jpg"]),
    ]


def test_stages_in_words() -> None:
    """A question about all concepts goes by its own name."""
    assert named([f"compose/{c}" for c in CONCEPTS] + ["align"]) == "compose, align"
    assert named(["compose/spatial", "align"]) == "compose/spatial, align"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"a": 1}, {"a": 1}, ()),
        ({"a": ""}, {"a": None}, ("a none -> none",)),
        ({"with_boxes": True}, {"with_boxes": False}, ("with_boxes yes -> no",)),
        ({"model": ["x", None, "y"]}, {"model": ["x", "u", "z"]}, ("model none -> u, y -> z",)),
        ({"model": ["x"]}, {"model": ["x", "y"]}, ("model changed",)),
        ({"grounder version": "1/0123456789abcdef"}, {"grounder version": "1/1123456789abcdef"},
         ("grounder version changed",)),
        ({"annotator": "a", "annotator version": "1", "safety": "x"}, {"annotator": "b", "annotator version": "2"},
         ("annotator a -> b",)),
        ({"annotator": "a", "vlm_side": 9, "own": 1}, {"annotator": "b", "vlm_side": 8},
         ("annotator a -> b", "vlm_side 9 -> 8")),
        ({"gone": 1}, {}, ("gone 1 -> none",)),
    ],
)  # fmt: skip
def test_differences(old: dict[str, object], new: dict[str, object], told: tuple[str, ...]) -> None:
    """Field by field; of a part that was replaced only its name, and the settings that both know."""
    assert differences(old, new, Source(path="", sha256="", bytes=1, mtime_ns=1, width=30, height=20)) == told


@pytest.mark.parametrize(
    ("name", "was", "now", "differs"),
    [
        ("max_side", None, 300, False), ("max_side", None, 299, True), ("max_side", 300, None, True),
        ("max_side", 301, None, False), ("max_side", 400, 500, False), ("vlm_side", 300, 999, False),
        ("vlm_side", 299, 300, True),
    ],
)  # fmt: skip
def test_sizes_that_leave_a_photo_as_it_was(name: str, was: int | None, now: int | None, differs: bool) -> None:
    """For a photo of 300 x 200 px as it was used: one that fills its limit may have been shrunk to it."""
    source = Source(path="", sha256="", bytes=1, mtime_ns=1, width=300, height=200)
    assert bool(differences({name: was}, {name: now}, source)) == differs


def test_after() -> None:
    """Directly and not; what a run does not ask is passed through."""
    everything = tuple(UPSTREAM)
    assert after(["refute"], everything) == ()
    assert after(["compose/spatial"], everything) == ("align",)
    assert after(["propose"], ("propose", "segment", "verify", "align")) == ("segment", "verify")
    assert set(after(["describe"], everything)) == set(everything) - {"describe", "propose"}
