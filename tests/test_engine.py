from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataengine import engine
from dataengine.engine import Totals, images_at_once, run
from dataengine.errors import DataEngineError, KeyRefusedError, OutputError, StageError, UsageError
from dataengine.output_folder import Failures
from dataengine.parts import Parts
from dataengine.pipeline import Outcome, process
from dataengine.records import Failure, RunRecord, Summary, Usage
from tests.scenes import Drawing, Rgb
from tests.scripted import (
    Script,
    ScriptedAnnotator,
    ScriptedGrounder,
    ScriptedSegmenter,
    prompt,
    settings,
    tree,
    two_things,
)

PER_IMAGE = 17  # calls for an image of `two_things`


@dataclass
class Recorder:
    """A reporter that keeps what it is told."""

    images: int = 0
    done: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def started(self, images: int) -> None:
        self.images = images

    def finished(self, image: Path, outcome: Outcome, seconds: float) -> None:
        assert seconds >= 0
        self.done.append(image.name)

    def skipped(self, images: Sequence[Path]) -> None:
        self.skips += [image.name for image in images]

    def failed(self, image: Path, error: DataEngineError) -> None:
        self.failures.append((image.name, error.reason))


def save(path: Path, colour: Rgb = (90, 90, 90)) -> Path:
    """A photo of one ground colour; equal colours and suffixes make equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(Drawing.ground(120, 80, colour).rgb).save(path)
    return path


@dataclass
class World:
    """A folder of photos and an output folder; one image at a time, so that the order of calls is known."""

    root: Path
    script: Script
    reporter: Recorder = field(default_factory=Recorder)

    @property
    def out(self) -> Path:
        return self.root / "out"

    def go(self, *names: str, version: str = "1", **other: Any) -> Totals:
        self.reporter = Recorder()
        self.out.mkdir(exist_ok=True)
        chosen = settings(**{"concepts": ("entities", "spatial"), "concurrency": 1, **other})
        parts = self.script.parts(version, local=True)
        images = [self.root / name for name in names]
        return asyncio.run(run(images, self.out, parts, chosen, self.reporter))

    @property
    def calls(self) -> int:
        return self.script.made.total()

    def folders(self) -> dict[str, str]:
        """The source of every run folder by the folder's name without its prefix."""
        found = {}
        for path in sorted(self.out.glob("out_region_refine_*/run.json")):
            source = Path(RunRecord.model_validate_json(path.read_bytes()).source.path)
            found[path.parent.name.removeprefix("out_region_refine_")] = str(source.relative_to(self.root))
        return found

    def failures(self) -> list[Failure]:
        return Failures(self.out).listed


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, two_things())


# What is done, skipped and failed.


def test_a_refused_key_stops_the_run_and_keeps_what_is_done(world: World) -> None:
    names = [save(world.root / f"{i}.png", (i, i, i)).name for i in range(4)]
    refusal = KeyRefusedError("google:x refuses the key", hint="Check GOOGLE_API_KEY")
    world.go(names[0])
    world.script.fails = {"compose/spatial": [refusal]}
    with pytest.raises(KeyRefusedError, match="refuses the key"):
        world.go(*names)
    assert world.reporter.skips == names[:1]
    assert len(world.folders()) == 2  # the others were not begun
    assert world.go(*names).done == 3


def test_a_part_that_gives_up_fails_its_image_and_no_other(world: World) -> None:
    """A CancelledError of a part's own is no Ctrl-C."""
    names = [save(world.root / f"{i}.png", (i, i, i)).name for i in range(3)]
    world.script.fails = {"describe": [asyncio.CancelledError()]}  # type: ignore[list-item]
    totals = world.go(*names)
    assert (totals.done, totals.failed) == (2, 1)
    assert "gave up" in world.failures()[0].message
    assert world.go(*names).done == 1


def test_a_refused_key_does_not_wait_for_the_pool(world: World) -> None:
    save(world.root / "a.png")
    world.script.slow = {"propose": 30}
    world.script.fails = {"describe": [KeyRefusedError("refused")]}
    started = time.perf_counter()
    with pytest.raises(KeyRefusedError):
        world.go("a.png", concurrency=4)
    assert time.perf_counter() - started < 10


def test_what_failed_steps_cost_is_counted_and_kept(world: World) -> None:
    save(world.root / "a.png")
    world.script.usage = Usage(input_tokens=2, usd=0.25, calls=1)
    failure = StageError("bad", reason="bad_answer")
    failure.usage = Usage(input_tokens=5, usd=0.5, calls=2, reasked=1)
    world.script.fails = {"verify/left thing": [failure]}
    first = world.go("a.png")
    assert (first.failed, first.failures) == (1, {"bad_answer": 1})
    assert (first.spent.calls, first.spent.reasked) == (2 + 6, 1)  # describe, propose, ground, ground, segment, verify
    second = world.go("a.png")
    summary = Summary.model_validate_json(next(world.out.glob("*/spatial/summary.json")).read_bytes())
    assert first.spent.calls + second.spent.calls == PER_IMAGE + 2
    assert summary.gemini_usage.reasked == 1


def test_parts_are_entered_before_the_first_call_and_left_after_the_last(world: World) -> None:
    seen: list[str] = []

    class Connected(ScriptedAnnotator):
        async def __aenter__(self) -> None:
            seen.append("entered")

        async def __aexit__(self, *raised: object) -> None:
            seen.append(f"left after {world.calls}")

    save(world.root / "a.png")
    world.out.mkdir()
    script = world.script
    parts = Parts(Connected(script, local=True), ScriptedGrounder(script), ScriptedSegmenter(script))
    chosen = settings(concepts=("entities", "spatial"))
    asyncio.run(run([world.root / "a.png"], world.out, parts, chosen, world.reporter))
    assert seen == ["entered", f"left after {PER_IMAGE}"]


def test_refusals_by_rule_are_counted(world: World) -> None:
    save(world.root / "a.png")
    world.script.prompts["entities"] = [prompt("The cup"), prompt("Find it now", satisfying=[]), prompt("Find it now")]
    totals = world.go("a.png")
    assert totals.refused == {"verb": 1, "empty": 1}


def test_totals_count_every_image_and_what_it_gave(world: World) -> None:
    names = [save(world.root / f"{i}.png", (i, i, i)).name for i in range(3)]
    world.script.usage = Usage(input_tokens=2, output_tokens=1, usd=0.25, calls=1)
    totals = world.go(*names)
    assert (totals.done, totals.failed, totals.skipped, totals.regions, totals.accepted) == (3, 0, 0, 6, 6)
    assert totals.prompts == {"entities": (6, 3), "spatial": (6, 3)}
    assert totals.negatives == (6, 6)
    assert totals.spent == Usage(input_tokens=102, output_tokens=51, usd=12.75, calls=3 * PER_IMAGE)
    assert totals.seconds > 0
    assert (world.reporter.images, world.reporter.done) == (3, names)
    assert not (world.out / "failures.jsonl").exists()


def test_what_is_complete_is_skipped_and_costs_nothing(world: World) -> None:
    names = [save(world.root / f"{i}.png", (i, i, i)).name for i in range(3)]
    world.script.usage = Usage(calls=1)
    world.go(*names[:2])
    before = tree(world.out)
    totals = world.go(*names)
    assert (totals.done, totals.skipped, totals.failed) == (1, 2, 0)
    assert (world.reporter.images, world.reporter.skips, world.reporter.done) == (3, names[:2], names[2:])
    assert totals.spent.calls == PER_IMAGE
    assert world.calls == 3 * PER_IMAGE
    assert before.items() <= tree(world.out).items()


def test_an_image_that_was_only_touched_is_skipped(world: World) -> None:
    os.utime(save(world.root / "a.png"), ns=(1, 1))
    world.go("a.png")
    os.utime(world.root / "a.png", ns=(2, 2))
    assert world.go("a.png").skipped == 1


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"version": "2"}, PER_IMAGE),
        ({"iou_threshold": 0.4}, 1),  # the cuts; what follows from the same masks is in the journal
        ({"negatives": False}, None),
        ({"concepts": ("spatial",)}, None),
        ({"concurrency": 8}, None),
        ({"concepts": ("entities", "spatial", "physics")}, 2),
    ],
)
def test_what_changes_results_is_done_again_and_asks_only_what_it_must(
    world: World, change: dict[str, Any], asked: int | None
) -> None:
    save(world.root / "a.png")
    world.go("a.png")
    before = world.calls
    totals = world.go("a.png", **change)
    assert (totals.skipped, totals.done) == ((1, 0) if asked is None else (0, 1))
    assert world.calls - before == (asked or 0)


def test_overwriting_asks_everything_again(world: World) -> None:
    save(world.root / "a.png")
    world.go("a.png")
    (world.out / "out_region_refine_a" / "mine.txt").write_text("kept")
    totals = world.go("a.png", overwrite=True)
    assert (totals.done, totals.skipped, world.calls) == (1, 0, 2 * PER_IMAGE)
    assert (world.out / "out_region_refine_a" / "mine.txt").exists()


def test_overwriting_with_a_photo_that_cannot_be_read_keeps_the_results(world: World) -> None:
    save(world.root / "a.png")
    world.go("a.png")
    before = tree(world.out / "out_region_refine_a")
    (world.root / "a.png").write_bytes(b"")
    assert world.go("a.png", overwrite=True).failed == 1
    assert tree(world.out / "out_region_refine_a") == before


def test_new_content_under_the_same_path_is_done_again(world: World) -> None:
    save(world.root / "a.png", (1, 1, 1))
    world.go("a.png")
    save(world.root / "a.png", (2, 2, 2))
    totals = world.go("a.png")
    assert (totals.done, world.calls, world.folders()) == (1, 2 * PER_IMAGE, {"a": "a.png"})
    with Image.open(world.out / "out_region_refine_a" / "original_image.png") as image:
        assert image.getpixel((0, 0)) == (2, 2, 2)
    assert world.go("a.png").skipped == 1


def test_a_folder_that_lost_a_file_is_completed_from_its_journal(world: World) -> None:
    save(world.root / "a.png")
    world.go("a.png")
    before = tree(world.out)
    (world.out / "out_region_refine_a" / "spatial" / "summary.json").unlink()
    assert world.go("a.png").done == 1
    assert (tree(world.out), world.calls) == (before, PER_IMAGE)


def test_every_failure_is_listed_and_the_others_go_on(world: World) -> None:
    """The published engine ends the whole directory with the first call that fails."""
    save(world.root / "good.png")
    save(world.root / "stopped.png", (1, 2, 3))
    (world.root / "empty.jpg").write_bytes(b"")
    (world.root / "text.jpg").write_text("not an image at all")
    (world.root / "cut.png").write_bytes((world.root / "good.png").read_bytes()[:90])
    save(world.root / "last.png", (3, 2, 1))
    world.script.fails = {"verify/left thing": [StageError("429 after 5 tries", hint="Wait", reason="quota")]}
    names = ["empty.jpg", "text.jpg", "gone.jpg", "cut.png", "stopped.png", "good.png", "last.png"]
    totals = world.go(*names)
    assert (totals.done, totals.failed, totals.skipped) == (2, 5, 0)
    listed = [(Path(f.image).name, f.stage, f.reason) for f in world.failures()]
    assert listed == [
        ("empty.jpg", "read", "empty_file"),
        ("text.jpg", "read", "not_an_image"),
        ("gone.jpg", "read", "missing"),
        ("cut.png", "read", "truncated"),
        ("stopped.png", "verify", "quota"),
    ]
    assert [(name, reason) for name, _, reason in listed] == world.reporter.failures
    assert world.failures()[-1].image == str(world.root / "stopped.png")
    assert world.failures()[-1].message == f"{world.root / 'stopped.png'}: 429 after 5 tries. Wait"
    assert world.reporter.done == ["good.png", "last.png"]


def test_a_failure_is_dropped_once_its_image_is_done(world: World) -> None:
    for name in ("a.png", "b.png"):
        save(world.root / name, (len(name), ord(name[0]), 0))
    world.script.fails = {"align/Segment the entities one": [StageError("no"), StageError("no")]}
    assert world.go("a.png", "b.png").failed == 2
    before = world.calls
    assert [Path(f.image).name for f in world.failures()] == ["a.png", "b.png"]
    assert world.go("b.png").done == 1
    assert [Path(f.image).name for f in world.failures()] == ["a.png"]
    assert world.go("a.png").done == 1
    assert not (world.out / "failures.jsonl").exists()
    assert world.calls - before == 2  # just what failed


def test_what_fails_again_is_listed_once(world: World) -> None:
    for _ in range(2):
        assert world.go("gone.png").failed == 1
    assert len(world.failures()) == 1


def test_an_unexpected_exception_in_a_part_is_a_listed_failure(world: World) -> None:
    names = [save(world.root / f"{i}.png", (i, i, i)).name for i in range(2)]
    world.script.fails = {"segment": [ZeroDivisionError("by\nzero")]}
    assert world.go(*names).done == 1
    (failure,) = world.failures()
    assert (failure.stage, failure.reason) == ("segment", "stage_failed")
    assert "segment failed: ZeroDivisionError: by\\nzero" in failure.message


def test_a_fault_of_ours_in_one_image_is_a_listed_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [save(world.root / f"{i}.png", (i, i, i)).name for i in range(2)]

    async def faulty(photo: Any, *rest: Any) -> Outcome:
        if photo.path.name == "0.png":
            raise AttributeError("oops")
        return await process(photo, *rest)

    monkeypatch.setattr(engine, "process", faulty)
    totals = world.go(*names)
    assert (totals.done, totals.failed) == (1, 1)
    (failure,) = world.failures()
    assert failure.stage == "run"
    assert "AttributeError: oops" in failure.message


def test_no_image_is_no_failure(world: World) -> None:
    assert world.go().done == 0


def test_what_a_failed_image_cost_is_counted(world: World) -> None:
    save(world.root / "a.png")
    world.script.usage = Usage(calls=1)
    world.script.fails = {"align/Segment the entities one": [StageError("no")]}
    assert world.go("a.png").spent.calls == PER_IMAGE - 1
    assert world.go("a.png").spent.calls == 1


# Which image has which folder.


def eight(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


@pytest.fixture
def twins(world: World) -> World:
    """a.jpg and a.png, done."""
    save(world.root / "a.jpg", (10, 10, 10))
    save(world.root / "a.png", (20, 20, 20))
    world.go("a.jpg", "a.png")
    assert world.folders() == {"a": "a.jpg", f"a__{eight(world.root / 'a.png')}": "a.png"}
    return world


@pytest.mark.parametrize("names", [["a.jpg", "a.png"], ["a.png"], ["a.jpg"], ["a.png", "a.jpg"]])
def test_two_images_of_one_stem_keep_a_folder_each(twins: World, names: list[str]) -> None:
    """In the published engine they share one."""
    before, calls = twins.folders(), twins.calls
    assert twins.go(*names).skipped == len(names)
    assert (twins.folders(), twins.calls) == (before, calls)


@pytest.mark.parametrize("names", [["a.bmp", "a.jpg", "a.png"], ["a.bmp"], ["a.bmp", "a.png"]])
def test_a_new_image_that_sorts_first_takes_no_folder_of_another(twins: World, names: list[str]) -> None:
    before = twins.folders()
    save(twins.root / "a.bmp", (30, 30, 30))
    assert twins.go(*names).skipped == len(names) - 1
    after = before | {f"a__{eight(twins.root / 'a.bmp')}": "a.bmp"}
    assert twins.folders() == after
    assert twins.go("a.bmp", "a.jpg", "a.png").skipped == 3
    assert twins.folders() == after


@pytest.mark.parametrize("names", [["new/a.jpg", "new/a.png"], ["new/a.png"], ["new/a.png", "new/a.jpg"]])
def test_images_that_were_moved_keep_their_folders(twins: World, names: list[str]) -> None:
    before, calls = set(twins.folders()), twins.calls
    (twins.root / "new").mkdir()
    for name in ("a.jpg", "a.png"):
        (twins.root / name).rename(twins.root / "new" / name)
    for _ in range(2):
        assert twins.go(*names).skipped == len(names)
    assert (set(twins.folders()), twins.calls) == (before, calls)


def test_of_two_images_one_that_is_moved_and_one_that_is_not(twins: World) -> None:
    before, calls = set(twins.folders()), twins.calls
    (twins.root / "new").mkdir()
    (twins.root / "a.jpg").rename(twins.root / "new" / "a.jpg")
    assert twins.go("a.png", "new/a.jpg").skipped == 2
    assert (set(twins.folders()), twins.calls) == (before, calls)


def test_a_copy_beside_the_original_gets_its_own_folder(world: World) -> None:
    save(world.root / "one" / "a.png")
    world.go("one/a.png")
    save(world.root / "two" / "a.png")
    assert world.go("two/a.png").done == 1
    wanted = {"a": "one/a.png", f"a__{eight(world.root / 'one/a.png')}": "two/a.png"}
    assert world.folders() == wanted
    assert world.go("one/a.png", "two/a.png").skipped == 2
    assert world.folders() == wanted


@pytest.mark.parametrize("given", [[0], [1], [2], [3], [2, 0], [1, 3], [3, 2, 1, 0], [0, 1, 2, 3]])
def test_identical_files_keep_a_folder_each(world: World, given: list[int]) -> None:
    names = [str(save(world.root / f"{i}" / "a.png").relative_to(world.root)) for i in range(4)]
    world.go(*names)
    digest = eight(world.root / names[0])
    before = {"a": names[0], f"a__{digest}": names[1], f"a__{digest}_2": names[2], f"a__{digest}_3": names[3]}
    assert world.folders() == before
    assert world.go(*(names[i] for i in given)).skipped == len(given)
    assert (world.folders(), world.calls) == (before, 4 * PER_IMAGE)


def test_a_stem_that_looks_like_another_s_second_folder(twins: World) -> None:
    name = f"a__{eight(twins.root / 'a.png')}.png"
    save(twins.root / name, (40, 40, 40))
    before = twins.folders()
    assert twins.go(name).done == 1
    after = before | {f"{Path(name).stem}__{eight(twins.root / name)}": name}
    assert twins.folders() == after
    assert twins.go(name, "a.jpg", "a.png").skipped == 3


def test_new_content_keeps_the_second_folder(twins: World) -> None:
    before = twins.folders()
    save(twins.root / "a.png", (50, 50, 50))
    assert twins.go("a.png").done == 1
    assert twins.folders() == before


def test_the_second_keeps_its_folder_where_the_first_could_not_be_read(world: World) -> None:
    (world.root / "a.jpg").write_bytes(b"")
    save(world.root / "a.png")
    world.go("a.jpg", "a.png")
    save(world.root / "a.jpg", (1, 1, 1))
    assert world.go("a.jpg", "a.png").skipped == 1
    assert world.folders() == {"a": "a.jpg", f"a__{eight(world.root / 'a.png')}": "a.png"}


def test_a_copy_takes_no_folder_of_an_image_that_is_asked_for_but_gone(world: World) -> None:
    (save(world.root / "a.png")).rename(world.root / "kept.png")
    save(world.root / "a.png")
    world.go("a.png")
    (world.root / "a.png").unlink()
    (world.root / "0").mkdir()
    (world.root / "kept.png").rename(world.root / "0" / "a.png")
    totals = world.go("0/a.png", "a.png")
    assert (totals.done, totals.failed) == (1, 1)
    assert world.folders() == {"a": "a.png", f"a__{eight(world.root / '0/a.png')}": "0/a.png"}


@pytest.mark.parametrize("original", ["there", "gone"])
def test_an_image_that_is_not_there_takes_no_folder(world: World, original: str) -> None:
    save(world.root / "a.png")
    world.go("a.png")
    before = tree(world.out / "out_region_refine_a")
    if original == "gone":
        (world.root / "a.png").unlink()
    for name, done in (("other/a.png", False), ("a.png", original == "there")):
        assert (world.go(name).skipped, world.reporter.failures) == (
            (1, []) if done else (0, [(Path(name).name, "missing")])
        )
        assert tree(world.out / "out_region_refine_a") == before


@pytest.mark.parametrize("stem", ["写真 🐈", "new\nline", os.fsdecode(b"bad\xff"), "x" * 240, "-", "a.b..c"])
def test_odd_names_are_done_and_skipped_like_others(world: World, stem: str) -> None:
    save(world.root / f"{stem}.png")
    assert world.go(f"{stem}.png").done == 1
    assert world.go(f"{stem}.png").skipped == 1
    assert world.go("none of this name.png").failed == 1


# Output that cannot be written.


class Disk:
    """A disk that is full from the n-th write on: it takes half of what is written."""

    def __init__(self, patch: pytest.MonkeyPatch, out: Path, after: int) -> None:
        self.left = after
        write_bytes, write = Path.write_bytes, os.write

        def on_path(path: Path, data: Any) -> int:
            if out in path.parents and self._is_full():
                write_bytes(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_bytes(path, data)

        def on_handle(handle: int, data: bytes) -> int:
            return write(handle, data[: len(data) // 2] if self._is_full() else data)

        patch.setattr(Path, "write_bytes", on_path)
        patch.setattr("dataengine.journal.os.write", on_handle)

    def _is_full(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [*range(0, 44, 3), 60])
def test_a_full_disk_stops_the_run_and_with_room_made_it_goes_on(world: World, tmp_path: Path, after: int) -> None:
    names = [save(tmp_path / f"{i}.png", (i, i, i)).name for i in range(3)]
    whole = World(tmp_path / "whole", two_things())
    whole.root.mkdir()
    for name in names:
        (whole.root / name).write_bytes((tmp_path / name).read_bytes())
    whole.go(*names)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, world.out, after)
        with pytest.raises(OutputError, match="disk full") as caught:
            world.go(*names)
    assert caught.value.reason == "disk_full"
    assert not list(world.out.rglob("*.tmp"))
    assert all(path.read_bytes()[-1:] in (b"\n", b"") for path in world.out.glob("*/journal.jsonl"))
    paid = sum(path.read_bytes().count(b"\n") for path in world.out.glob("*/journal.jsonl"))
    before = world.calls
    world.go(*names)
    assert world.calls - before == 3 * PER_IMAGE - paid
    assert _without_paths(tree(world.out)) == _without_paths(tree(whole.out))


def _without_paths(files: dict[str, object]) -> dict[str, object]:
    """What was written from two copies of the same photos, without the places of the copies."""
    named = {name: content for name, content in files.items() if not name.endswith("run.json")}
    return {n: {**c, "image_path": ""} if isinstance(c, dict) else c for n, c in named.items()}


def test_a_failure_that_cannot_be_listed_stops_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(failures: Failures, failure: Failure) -> None:
        raise OutputError("disk full", reason="disk_full")

    monkeypatch.setattr(Failures, "add", full)
    with pytest.raises(OutputError):
        world.go("gone.png")


# How many at once.


@pytest.mark.parametrize(
    ("local", "concurrency", "cores", "images"),
    [
        (True, 32, 4, 4),
        (True, 3, 4, 3),
        (True, 1, 4, 1),
        (True, 32, None, 1),
        (False, 32, 4, 16),
        (False, 1024, 1, 512),
        (False, 8, 4, 4),
        (False, 7, 4, 3),
        (False, 1, 4, 1),
    ],
)
def test_images_at_once(
    monkeypatch: pytest.MonkeyPatch, local: bool, concurrency: int, cores: int | None, images: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert images_at_once(Script().parts(local=local), settings(concurrency=concurrency)) == images


@pytest.mark.parametrize(("concurrency", "most"), [(4, 2), (8, 4), (32, 5)])
def test_images_are_under_way_together(tmp_path: Path, concurrency: int, most: int) -> None:
    names = [save(tmp_path / f"{i}.png", (i, i, i)) for i in range(5)]
    script = Script(seconds=0.15)  # describing and proposing, and no more
    chosen = settings(concurrency=concurrency)
    (tmp_path / "out").mkdir()
    totals = asyncio.run(run(names, tmp_path / "out", script.parts(), chosen, Recorder()))
    assert totals.done == 5
    assert script.most == 2 * most


@pytest.mark.parametrize("turned", [False, True])
def test_who_answers_first_changes_nothing(tmp_path: Path, turned: bool) -> None:
    names = [save(tmp_path / f"{i}.png", (i, i, i)) for i in range(4)]
    at_once, spread = two_things(), two_things()

    def made(script: Script, out: Path) -> dict[str, object]:
        out.mkdir()
        asyncio.run(run(names, out, script.parts(), settings(concepts=("entities", "spatial")), Recorder()))
        return tree(out)

    wanted = made(at_once, tmp_path / "one")
    spread.slow = {call: 0.002 * i for i, call in enumerate(sorted(at_once.made, reverse=turned))}
    assert made(spread, tmp_path / "two") == wanted


# Stopped by its budget, or by somebody.


def stopping(world: World, **other: Any) -> Totals:
    """A run over calls to a service, two images at a time."""
    world.out.mkdir(exist_ok=True)
    chosen = settings(concepts=("entities", "spatial"), **{"concurrency": 4, **other})
    images = [save(world.root / f"{i}.png", (i, i, i)) for i in range(4)]
    return asyncio.run(run(images, world.out, world.script.parts(), chosen, world.reporter))


@pytest.mark.parametrize("budget", [0, 1, 35, 4 * PER_IMAGE - 1])
def test_a_budget_stops_the_run_which_goes_on_with_a_larger_one(world: World, budget: int) -> None:
    world.script.usage = Usage(input_tokens=1, usd=0.5, calls=1)
    first = stopping(world, budget_tokens=budget)
    assert first.stopped is not None and first.stopped.reason == "budget"
    assert first.done + first.waiting == 4 and first.waiting
    assert first.spent.calls == world.calls == budget  # all of it, and no more
    assert world.failures() == []
    assert stopping(world, budget_tokens=budget).spent.calls == 0  # what was spent before counts
    last = stopping(world, budget_usd=0.5 * 4 * PER_IMAGE)
    assert (last.done + last.skipped, last.stopped) == (4, None)
    assert world.calls == 4 * PER_IMAGE  # nothing was paid twice


def interrupted(world: World, *numbers: int) -> None:
    """Have the first calls of the next run interrupt it: by then it can be."""
    left, answer = list(numbers), world.script._answer

    async def interrupting(call: str, value: Any) -> Any:
        if left:
            os.kill(os.getpid(), left.pop(0))
        return await answer(call, value)

    world.script._answer = interrupting  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_lets_end_what_is_under_way_and_begins_nothing(world: World, number: int) -> None:
    world.script.seconds = 0.2
    interrupted(world, number)
    totals = stopping(world)
    assert totals.stopped is not None
    assert (totals.stopped.reason, totals.stopped.exit_code) == ("interrupted", 128 + number)
    assert totals.waiting == 4
    assert "same command again" in str(totals.stopped)
    world.script.seconds = 0
    assert stopping(world).done == 4
    assert world.calls == 4 * PER_IMAGE  # every call under way was kept


def test_what_does_not_end_in_time_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GRACE", 0.1)
    world.script.seconds = 600
    interrupted(world, signal.SIGINT)
    totals = stopping(world)
    assert totals.stopped is not None and (totals.done, totals.waiting) == (0, 4)
    world.script.seconds = 0
    assert stopping(world).done == 4


def test_the_second_ctrl_c_does_not_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GRACE", 600)
    world.script.seconds = 600
    interrupted(world, signal.SIGINT, signal.SIGINT)
    assert stopping(world).waiting == 4


def test_a_blocked_image_is_not_asked_again_until_it_is_wanted(world: World) -> None:
    save(world.root / "a.png")
    world.script.fails = {"verify/left thing": [StageError("blocked the picture", reason="blocked")]}
    assert world.go("a.png").failures == {"blocked": 1}
    made = world.calls
    again = world.go("a.png")
    assert (again.failures, world.calls) == ({"blocked": 1}, made)
    assert [(f.reason, f.stage) for f in world.failures()] == [("blocked", "verify")]
    parts, chosen = world.script.parts(local=True), settings(concepts=("entities", "spatial"))
    images = [world.root / "a.png"]
    assert asyncio.run(run(images, world.out, parts, chosen, Recorder(), ask_blocked=True)).done == 1
    assert (world.calls, world.failures()) == (PER_IMAGE + 1, [])


def test_a_concept_that_failed_is_not_among_those_made(world: World) -> None:
    save(world.root / "a.png")
    world.script.fails = {"compose/entities": [StageError("no answer")]}
    assert world.go("a.png").failed == 1
    assert world.go("a.png", concepts=("spatial",)).done == 1
    (record,) = (RunRecord.model_validate_json(p.read_bytes()) for p in world.out.glob("*/run.json"))
    assert (record.complete, record.concepts) == (True, ["spatial"])


@pytest.mark.parametrize("call", ["compose/spatial", "align/Segment the spatial one", "verify/right thing"])
def test_what_may_pass_is_told_before_what_is_blocked(world: World, call: str) -> None:
    save(world.root / "a.png")
    blocked = "verify/left thing" if call.startswith("verify") else "compose/entities"
    world.script.fails = {
        blocked: [StageError("blocked", reason="blocked")],
        call: [StageError("slow", reason="timeout")],
    }
    assert world.go("a.png").failures == {"timeout": 1}
    assert world.go("a.png").failures == {"blocked": 1}


def test_overwriting_removes_nothing_where_the_budget_is_used_up(world: World) -> None:
    world.script.usage = Usage(input_tokens=1, calls=1)
    stopping(world)
    before = tree(world.out)
    totals = stopping(world, overwrite=True, budget_tokens=3)
    assert totals.stopped is not None and totals.waiting == 4
    assert tree(world.out) == before


def test_a_cost_that_was_unknown_is_told_before_anything_is_started(world: World) -> None:
    world.script.usage = Usage(input_tokens=1_000_000, calls=1, usd=None)
    stopping(world)
    with pytest.raises(UsageError, match=r"what earlier calls in .* cost is unknown"):
        stopping(world, budget_usd=1e6)
    assert stopping(world, budget_usd=1e6, price=(1, 1)).skipped == 4


def test_who_awaits_a_run_is_not_given_up_after_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GRACE", 0.3)
    world.script.seconds = 0.05
    world.out.mkdir()
    images = [save(world.root / "a.png")]

    async def longer() -> Totals:
        interrupted(world, signal.SIGINT)
        totals = await run(images, world.out, world.script.parts(), settings(), world.reporter)
        await asyncio.sleep(0.5)
        return totals

    assert asyncio.run(longer()).waiting == 1
