from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from dataengine import limits
from dataengine.basis import basis, fingerprint
from dataengine.engine import prompt_digests
from dataengine.errors import DataEngineError, OutputError, StageError
from dataengine.images import read_photo
from dataengine.limits import Limits
from dataengine.output_folder import source_of
from dataengine.pipeline import Outcome, process
from dataengine.records import (
    CONCEPTS,
    AcceptedRegion,
    Alignment,
    NegativeVerification,
    Prompt,
    RunRecord,
    Summary,
    Usage,
)
from dataengine.run_folder import RunFolder
from tests.scenes import Drawing
from tests.scripted import (
    LEFT,
    RIGHT,
    Script,
    ScriptedAnnotator,
    filled,
    negative,
    prompt,
    region,
    settings,
    tree,
    two_things,
)

TWO = ("entities", "spatial")


def made_photo(folder: Path, width: int = 120, height: int = 80) -> Path:
    path = folder / "photo.png"
    if not path.exists():
        drawn = Drawing.ground(width, height).box("left", (200, 30, 30), 10, 10, 40, 60)
        Image.fromarray(drawn.box("right", (30, 60, 200), 60, 20, 110, 70).rgb).save(path)
    return path


def go(script: Script, root: Path, name: str = "run", *, version: str = "1", **other: Any) -> Outcome:
    """Process `root`'s photo as the engine does, in the folder of that name."""
    chosen, parts = settings(**{"concepts": TWO, **other}), script.parts(version)
    photo = read_photo(made_photo(root))
    record = RunRecord(
        dataengine="0",
        complete=False,
        fingerprint=fingerprint(photo.sha256, basis(parts, chosen)),
        source=source_of(photo),
        parts=parts.records(),
        prompt_digests=prompt_digests(parts),
        concepts=list(chosen.concepts),
        settings={},
        note="unfinished",
    )
    return asyncio.run(process(photo, RunFolder(root / name), record, parts, chosen))


def record_of(folder: Path) -> RunRecord:
    return RunRecord.model_validate_json((folder / "run.json").read_bytes())


def summary_of(folder: Path, concept: str = "entities") -> Summary:
    return Summary.model_validate_json((folder / concept / "summary.json").read_bytes())


def accepted_of(folder: Path) -> list[AcceptedRegion]:
    data = (folder / "accepted_regions" / "accepted.json").read_bytes()
    return TypeAdapter(list[AcceptedRegion]).validate_json(data)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.array(image)


# The files.


def test_every_file_of_the_contract_is_written_and_nothing_else(tmp_path: Path) -> None:
    outcome = go(two_things(CONCEPTS), tmp_path, concepts=CONCEPTS)
    per_region = ("{i}_{name}_thing.png", "masks/{i}_mask.png", "masks/{i}_mask.npz", "bboxes/{i}_bbox.txt")
    regions = [f.format(i=i, name=n) for i, n in (("000", "left"), ("001", "right")) for f in per_region]
    concept_files = (
        "conversational_segmentation_prompts.json",
        "summary.json",
        "generated_prompts_viz/ACCEPTED/000_segment_the_{c}_one.png",
        "generated_prompts_viz/REJECTED/001_find_the_{c}_other.png",
    )
    wanted = {"original_image.png", "all_regions_colored.png", "run.json", "journal.jsonl"}
    wanted |= {"accepted_regions/accepted.json"} | {f"accepted_regions/{file}" for file in regions}
    wanted |= {f"{c}/{file.format(c=c)}" for c in CONCEPTS for file in concept_files}
    wanted |= {f"negatives/{c}.json" for c in CONCEPTS}
    assert set(tree(tmp_path / "run")) == wanted
    assert outcome == Outcome(2, 2, "", dict.fromkeys(CONCEPTS, (2, 1)), dict.fromkeys(CONCEPTS, (1, 1)))


def test_every_json_file_is_as_its_record_says(tmp_path: Path) -> None:
    go(two_things(usage=Usage(input_tokens=3, output_tokens=2, usd=0.5, calls=1)), tmp_path)
    folder = tmp_path / "run"
    record, summary, accepted = record_of(folder), summary_of(folder), accepted_of(folder)
    assert (record.complete, record.note, record.source.width, record.source.height) == (True, "", 120, 80)

    assert [(a.index, a.label, a.choice, a.bbox) for a in accepted] == [
        (0, "left thing", "refined", (8, 10, 39, 61)),
        (1, "right thing", "initial", (60, 20, 109, 69)),
    ]
    assert summary.image_path == str(tmp_path / "photo.png")
    assert summary.dense_caption == "[0: left thing]\n[1: right thing]"
    assert summary.accepted_dense_caption == "0: left thing as seen\n1: right thing as seen"
    assert (summary.accepted_count, summary.accepted_dir) == (2, "accepted_regions")
    assert [(r.output, r.verify_initial, r.desc_init, r.desc_ref) for r in summary.results] == [
        ("refined", True, None, "left thing as seen"),
        ("initial", True, "right thing as seen", None),
    ]
    for path in (
        summary.final_overlay_path,
        summary.conversational_prompts_path,
        summary.generated_prompts_viz_dir,
        *(verification.classified_path for verification in summary.prompt_verifications),
        *(path for a in accepted for path in (a.path, a.mask_path, a.mask_npz_path)),
    ):
        assert (folder / path).exists(), path
    written = (folder / summary.conversational_prompts_path).read_bytes()
    assert TypeAdapter(list[Prompt]).validate_json(written) == summary.conversational_prompts
    assert [(v.index, v.prompt, v.satisfying, v.verdict, v.reason) for v in summary.prompt_verifications] == [
        (0, "Segment the entities one", [0], "ACCEPT", "it fits"),
        (1, "Find the entities other", [1], "REJECT", "another one fits too"),
    ]
    decoys = TypeAdapter(list[NegativeVerification]).validate_json((folder / "negatives/spatial.json").read_bytes())
    assert [(d.prompt, d.verdict, d.reason) for d in decoys] == [("Mark the spatial absent", "ACCEPT", "it fits")]
    assert {"describe", "propose", "ground", "segment", "verify", "compose", "align"} <= {
        t.step for t in summary.timing
    }
    assert summary.gemini_usage.calls >= 10
    assert summary.gemini_usage.usd == pytest.approx(summary.gemini_usage.calls * 0.5)


@pytest.mark.parametrize(("width", "height"), [(120, 80), (1600, 900), (900, 1600)])
def test_masks_have_the_size_of_the_photo_and_pictures_that_of_the_view(
    tmp_path: Path, width: int, height: int
) -> None:
    """The published engine makes masks at 768 px: 101 of 101 exported pairs differ from their image in size."""
    photo = pixels(made_photo(tmp_path, width, height))
    script = two_things(pool=[filled(height // 2, width // 2, (4, 5, 20, 31))])
    script.masks = {LEFT: filled(height // 4, width // 4, (2, 2, 10, 15))}
    go(script, tmp_path)
    folder = tmp_path / "run"
    assert np.array_equal(pixels(folder / "original_image.png"), photo)
    for entry in accepted_of(folder):
        mask = pixels(folder / entry.mask_path)
        assert mask.shape == (height, width)
        assert set(np.unique(mask)) == {0, 255}
        with np.load(folder / entry.mask_npz_path) as stored:
            assert list(stored) == ["mask"]
            assert stored["mask"].dtype == np.uint8
            assert np.array_equal(stored["mask"] * 255, mask)
        assert [rle.size for rle in entry.instances] == [(height, width)]
        rows, columns = np.nonzero(mask)
        tight = (columns.min(), rows.min(), columns.max(), rows.max())
        assert entry.bbox == tight
        text = (folder / f"accepted_regions/bboxes/{entry.index:03d}_bbox.txt").read_text()
        assert text == f"{tight[0]} {tight[1]} {tight[2]} {tight[3]}\n"
        assert max(pixels(folder / entry.path).shape) == min(768, max(width, height))
    assert max(pixels(folder / "all_regions_colored.png").shape) == min(768, max(width, height))


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("../../etc/passwd", "000_etc_passwd.png"),
        ("a" * 300, f"000_{'a' * 40}.png"),
        ("🐈 🪑", "000_unnamed.png"),
        ("Tasse à café\n\x00", "000_tasse_a_cafe.png"),
        ("cut off \ud83d", "000_cut_off.png"),
    ],
)
def test_any_label_and_prompt_makes_safe_file_names(tmp_path: Path, label: str, name: str) -> None:
    script = Script(regions=[region(label, LEFT), region("right thing", RIGHT)])
    script.prompts = {"entities": [prompt(f"Segment {label}")]}
    go(script, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "run"]
    overlays = (tmp_path / "run" / "accepted_regions").glob("*.png")
    assert sorted(path.name for path in overlays) == [name, "001_right_thing.png"]
    assert all(len(path.name) < 60 for path in (tmp_path / "run").rglob("*"))
    assert accepted_of(tmp_path / "run")[0].label == label.replace("\ud83d", "?")


@pytest.mark.parametrize(
    ("label", "reason"), [("a" * 5000, "rule label: it has 5,000"), (" ", "rule label: it is empty")]
)
def test_a_label_that_cannot_be_looked_for_is_a_region_rejected_with_its_reason(
    tmp_path: Path, label: str, reason: str
) -> None:
    """It is not paid for, it is counted, and the other regions go on."""
    script = two_things(regions=[region(label, LEFT), region("left thing", LEFT), region("right thing", RIGHT)])
    outcome = go(script, tmp_path)
    first, *others = summary_of(tmp_path / "run", "entities").results
    assert first.reason.startswith(reason)
    assert (first.output, len(first.label) <= 300) == (None, True)
    assert all(result.output for result in others)
    assert script.made[f"ground/{label}"] == script.made[f"verify/{label}"] == 0
    assert outcome.refused["label"] == 1


@pytest.mark.parametrize(
    ("script", "note"),
    [
        (Script(), "No region was described"),
        (Script(regions=[region("left thing", LEFT)], verdicts={"left thing": "neither"}), "None of the 1 described"),
        (Script(regions=[region("left thing"), region("right thing")]), "None of the 2 described"),
    ],
)
def test_an_image_without_an_accepted_region_gives_a_complete_folder_that_says_so(
    tmp_path: Path, script: Script, note: str
) -> None:
    outcome = go(script, tmp_path)
    folder = tmp_path / "run"
    assert (outcome.accepted, outcome.regions) == (0, len(script.regions))
    assert record_of(folder).complete
    assert note in record_of(folder).note
    assert accepted_of(folder) == []
    for concept in TWO:
        summary = summary_of(folder, concept)
        assert (summary.accepted_count, summary.conversational_prompts, summary.prompt_verifications) == (0, None, [])
        assert [result.output for result in summary.results] == [None] * len(script.regions)
        assert all(result.reason and not result.verify_initial for result in summary.results)
        assert json.loads((folder / summary.conversational_prompts_path).read_bytes()) is None
        assert json.loads((folder / "negatives" / f"{concept}.json").read_bytes()) == []
        for verdict in ("ACCEPTED", "REJECTED"):
            assert list((folder / summary.generated_prompts_viz_dir / verdict).iterdir()) == []
    assert {path.name for path in (folder / "accepted_regions").iterdir()} == {"accepted.json", "masks", "bboxes"}
    assert np.array_equal(pixels(folder / "all_regions_colored.png"), pixels(tmp_path / "photo.png"))
    assert not [call for call in script.made if call.startswith(("compose", "negatives", "align", "refute"))]


@pytest.mark.parametrize("negatives", [True, False])
def test_only_what_is_asked_for_is_made(tmp_path: Path, negatives: bool) -> None:
    script = two_things(CONCEPTS)
    outcome = go(script, tmp_path, concepts=("spatial",), negatives=negatives)
    folder = tmp_path / "run"
    assert {path.parent.name for path in folder.glob("*/summary.json")} == {"spatial"}
    assert {path.name for path in folder.glob("negatives/*")} == ({"spatial.json"} if negatives else set())
    assert script.made["negatives/spatial"] == negatives
    assert script.made["compose/entities"] == 0
    assert (set(outcome.prompts), set(outcome.negatives)) == ({"spatial"}, {"spatial"} if negatives else set())


# The rules of prompts.


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (prompt("Segment it", satisfying=[7]), "rule indices: "),
        (prompt("Segment it", satisfying=[-1]), "rule indices: "),
        (prompt("Segment it", candidates=[0, -1], satisfying=[-1]), "rule indices: "),
        (prompt("Segment it", candidates=[0]), "rule subset: satisfying must be a strict subset"),
        (prompt("It"), "rule verb: a prompt starts with a verb"),
        (prompt(""), "rule verb: a prompt starts with a verb"),
        (prompt("Segment region 1"), "rule numbers: a prompt must not speak"),
        (prompt("Segment it", concept_family="hazard"), "rule family: 'hazard' is no concept family of entities"),
    ],
)
def test_a_prompt_that_breaks_a_rule_is_written_with_the_reason_and_never_paid_for(
    tmp_path: Path, bad: Prompt, reason: str
) -> None:
    script = two_things(negatives={})
    script.prompts["entities"].insert(0, bad)
    outcome = go(script, tmp_path)
    summary = summary_of(tmp_path / "run")
    first = summary.prompt_verifications[0]
    assert (first.verdict, first.prompt, first.satisfying) == ("REJECT", bad.prompt, bad.satisfying)
    assert reason in first.reason
    assert first.classified_path.startswith("entities/generated_prompts_viz/REJECTED/000_")
    assert (tmp_path / "run" / first.classified_path).exists()
    assert sum(call.startswith("align/") for call in script.made) == 4
    assert script.made[f"align/{bad.prompt}"] == 0
    assert outcome.prompts["entities"] == (3, 1)


@pytest.mark.parametrize("slow", ["compose/entities", "compose/spatial", "negatives/entities", "negatives/spatial"])
def test_of_equal_prompts_the_first_in_order_counts_whoever_answers_first(tmp_path: Path, slow: str) -> None:
    twin, shouted = "Segment the blue thing", "SEGMENT the blue thing"
    script = two_things(slow={slow: 0.05})
    script.prompts = {"entities": [prompt(twin), prompt(shouted)], "spatial": [prompt(shouted, "spatial")]}
    script.negatives = {"entities": [negative(shouted), negative("Find a cat")], "spatial": []}
    script.negatives["spatial"] = [negative("find a cat", "spatial")]
    go(script, tmp_path)
    same = "rule duplicate: the same prompt was written before for this image"
    folder = tmp_path / "run"
    said = [(v.verdict, v.reason) for c in TWO for v in summary_of(folder, c).prompt_verifications]
    assert said == [("ACCEPT", "it fits"), ("REJECT", same), ("REJECT", same)]
    decoys = [json.loads((folder / "negatives" / f"{c}.json").read_bytes()) for c in TWO]
    assert [[d["verdict"] for d in of_concept] for of_concept in decoys] == [["REJECT", "ACCEPT"], ["REJECT"]]
    judged = sorted(call for call in script.made if call.startswith(("align", "refute")))
    assert judged == [f"align/{twin}", "refute/Find a cat"]


# Side by side.


def test_all_that_does_not_wait_for_another_answer_is_asked_side_by_side(tmp_path: Path) -> None:
    script = two_things(CONCEPTS, seconds=0.2)
    go(script, tmp_path, concepts=CONCEPTS)
    assert script.most == 15  # the judgements of two prompts and a negative for each concept
    assert sum(script.made.values()) == 32


@pytest.mark.parametrize(("first", "second"), [("propose", "describe"), ("describe", "propose")])
def test_the_pool_is_proposed_while_the_image_is_described(tmp_path: Path, first: str, second: str) -> None:
    script = Script(slow={first: 0.05, second: 0.1})
    go(script, tmp_path)
    assert script.most == 2


# Failing, and going on.


ALL_CALLS = {
    "describe": "describe",
    "propose": "propose",
    "ground/right thing": "segment",
    "segment": "segment",
    "verify/left thing": "verify",
    "compose/entities": "compose",
    "compose/spatial": "compose",
    "negatives/entities": "negatives",
    "align/Segment the entities one": "align",
    "align/Find the spatial other": "align",
    "refute/Mark the entities absent": "align",
}


@pytest.mark.parametrize("kind", [StageError, RuntimeError])
@pytest.mark.parametrize(("call", "stage"), ALL_CALLS.items())
def test_running_again_asks_only_what_failed(tmp_path: Path, call: str, stage: str, kind: type[Exception]) -> None:
    go(two_things(), tmp_path, "whole")
    script = two_things(fails={call: [kind("quota is used up")]}, seconds=0.01)
    with pytest.raises(StageError, match="quota is used up") as caught:
        go(script, tmp_path)
    assert caught.value.stage == stage
    assert not record_of(tmp_path / "run").complete
    go(script, tmp_path)
    assert {name for name, times in script.made.items() if times > 1} == {call}
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_a_pool_on_its_way_is_kept_where_the_description_fails(tmp_path: Path) -> None:
    script = two_things(fails={"describe": [StageError("no answer")]}, slow={"describe": 0.02, "propose": 0.06})
    with pytest.raises(StageError):
        go(script, tmp_path)
    go(script, tmp_path)
    assert (script.made["describe"], script.made["propose"]) == (2, 1)


@pytest.mark.parametrize("call", ["compose/entities", "align/Segment the entities one"])
def test_where_one_concept_fails_the_others_are_written(tmp_path: Path, call: str) -> None:
    script = two_things(CONCEPTS, fails={call: [StageError("no answer")]})
    with pytest.raises(StageError):
        go(script, tmp_path, concepts=CONCEPTS)
    written = {path.parent.name for path in (tmp_path / "run").glob("*/summary.json")}
    assert written == set(CONCEPTS) - {"entities"}
    assert {path.stem for path in (tmp_path / "run" / "negatives").iterdir()} == set(CONCEPTS)
    assert not record_of(tmp_path / "run").complete


def test_a_prompt_whose_twin_failed_to_be_composed_is_refused_once_it_is_there(tmp_path: Path) -> None:
    """What the first run wrote for it, picture included, gives way."""
    twins = {"entities": [prompt("Segment the twin")], "spatial": [prompt("Segment the twin", "spatial")]}
    go(two_things(prompts=twins), tmp_path, "whole")
    script = two_things(prompts=twins, fails={"compose/entities": [StageError("no answer")]})
    with pytest.raises(StageError):
        go(script, tmp_path)
    assert summary_of(tmp_path / "run", "spatial").prompt_verifications[0].verdict == "ACCEPT"
    go(script, tmp_path)
    whole, resumed = tree(tmp_path / "whole"), tree(tmp_path / "run")
    assert summary_of(tmp_path / "run", "spatial").prompt_verifications[0].verdict == "REJECT"
    assert {**resumed, "journal.jsonl": 0} == {**whole, "journal.jsonl": 0}


def test_done_again_nothing_is_asked_and_nothing_changes(tmp_path: Path) -> None:
    script = two_things()
    go(script, tmp_path)
    before, calls = tree(tmp_path / "run"), script.made.total()
    go(script, tmp_path)
    assert (tree(tmp_path / "run"), script.made.total()) == (before, calls)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"max_regions": 1}),
        ({"max_regions": 1}, {}),
        ({"iou_threshold": 0.4}, {}),
        ({}, {"version": "2"}),
        ({"concepts": CONCEPTS}, {"concepts": CONCEPTS, "max_regions": 1}),
    ],
)
@pytest.mark.parametrize("record", ["kept", "lost", "torn"])
def test_other_settings_or_parts_leave_no_stale_files(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], record: str
) -> None:
    def other() -> Script:
        return two_things() if "version" not in second else two_things(regions=[region("one new thing", RIGHT)])

    go(other(), tmp_path, "fresh", **second)
    go(two_things(CONCEPTS), tmp_path, **first)
    if record == "lost":
        (tmp_path / "run" / "run.json").unlink()
    if record == "torn":
        (tmp_path / "run" / "run.json").write_bytes((tmp_path / "run" / "run.json").read_bytes()[:99])
    go(other(), tmp_path, **second)
    assert {**tree(tmp_path / "run"), "journal.jsonl": 0} == {**tree(tmp_path / "fresh"), "journal.jsonl": 0}


class KilledError(BaseException):
    """The process ends here."""


class Power:
    """Cuts the power in the middle of the n-th write or rename; nothing is written after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int | None = None) -> None:
        self.count, self.after = itertools.count(), after
        self.used = 0
        write_bytes, replace, write = Path.write_bytes, Path.replace, os.write

        def cut_write_bytes(path: Path, data: Any) -> int:
            return self._cut(lambda: write_bytes(path, data[: len(data) // 2])) or write_bytes(path, data)

        def cut_replace(path: Path, target: Any) -> Path:
            self._cut(lambda: 0)
            return replace(path, target)

        def cut_write(handle: int, data: Any) -> int:
            return self._cut(lambda: write(handle, data[: len(data) // 2])) or write(handle, data)

        monkeypatch.setattr(Path, "write_bytes", cut_write_bytes)
        monkeypatch.setattr(Path, "replace", cut_replace)
        monkeypatch.setattr("dataengine.journal.os.write", cut_write)

    def _cut(self, half: Callable[[], object]) -> int:
        self.used = next(self.count)
        if self.after is not None and self.used == self.after:
            half()
        if self.after is not None and self.used >= self.after:
            raise KilledError
        return 0


def counted_writes(work: Callable[[], object]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        power = Power(patch)
        work()
        return power.used + 1


def killed_at(n: int, work: Callable[[], object]) -> None:
    # A killed process has no thread that writes on: here they end before the power comes back.
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as disk:
        patch.setattr("dataengine.journal._disk", disk)
        Power(patch, n)
        with pytest.raises(KilledError):
            work()


def is_done(folder: Path) -> bool:
    record = RunFolder(folder).record
    return record is not None and record.complete


def test_killed_at_any_write_and_run_again_everything_is_there_once(tmp_path: Path) -> None:
    writes = counted_writes(lambda: go(two_things(), tmp_path, "whole"))
    whole = tree(tmp_path / "whole")
    assert writes > 60
    for n in range(writes):
        script, name = two_things(), f"run{n}"
        killed_at(n, lambda script=script, name=name: go(script, tmp_path, name))  # type: ignore[misc]
        assert not is_done(tmp_path / name), n
        for path in (tmp_path / name).glob("*/summary.json"):
            Summary.model_validate_json(path.read_bytes())
        go(script, tmp_path, name)
        assert tree(tmp_path / name) == whole, n


def test_killed_at_any_write_of_a_run_with_other_settings_nothing_old_is_taken_for_new(tmp_path: Path) -> None:
    go(two_things(), tmp_path, "fresh", max_regions=1)
    fresh = {**tree(tmp_path / "fresh"), "journal.jsonl": 0}
    go(two_things(), tmp_path, "counted")
    writes = counted_writes(lambda: go(two_things(), tmp_path, "counted", max_regions=1))
    assert writes > 30
    for n in {0, 1, *range(2, writes, 2)}:
        name = f"run{n}"
        go(two_things(), tmp_path, name)
        old = record_of(tmp_path / name).fingerprint
        killed_at(n, lambda name=name: go(two_things(), tmp_path, name, max_regions=1))  # type: ignore[misc]
        assert not RunFolder(tmp_path / name).is_complete(old, TWO, True), n
        assert n == 0 or n == 1 or not is_done(tmp_path / name), n  # run.json is the first file that is written
        go(two_things(), tmp_path, name, max_regions=1)
        assert {**tree(tmp_path / name), "journal.jsonl": 0} == fresh, n


def test_killed_while_old_results_are_removed_nothing_reads_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **named: object) -> None:
        raise KilledError

    go(two_things(), tmp_path)
    before, old = tree(tmp_path / "run"), record_of(tmp_path / "run").fingerprint
    monkeypatch.setattr("dataengine.run_folder.shutil.rmtree", killed)
    with pytest.raises(KilledError):
        go(two_things(), tmp_path, max_regions=1)
    monkeypatch.undo()
    for concept in TWO:
        assert not RunFolder(tmp_path / "run").is_complete(old, (concept,), False)
    go(two_things(), tmp_path)
    assert tree(tmp_path / "run") == before


def test_a_folder_that_cannot_be_written_ends_the_run_and_not_just_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: RunFolder, summary: Summary, concept: str, pictures: object) -> None:
        raise OutputError("disk full", reason="disk_full")

    monkeypatch.setattr(RunFolder, "write_concept", refuse)
    with pytest.raises(OutputError, match="disk full"):
        go(two_things(fails={"compose/entities": [StageError("no answer")]}), tmp_path)


def test_what_fails_says_image_stage_and_cause(tmp_path: Path) -> None:
    script = two_things(fails={"verify/left thing": [KeyError("candidates")]})
    with pytest.raises(DataEngineError) as caught:
        go(script, tmp_path)
    assert f"{tmp_path / 'photo.png'}: verify failed: KeyError: 'candidates'" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_prompt_that_fits_something_unmasked_too_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twofold = Alignment(accept=True, unmasked_match=True, reason="a second one, unmasked")
    monkeypatch.setattr(ScriptedAnnotator, "_judged", lambda *_: twofold)
    outcome = go(two_things(), tmp_path)
    assert all(accepted == 0 for _, accepted in outcome.prompts.values())
    for concept in TWO:
        summary = Summary.model_validate_json((tmp_path / "run" / concept / "summary.json").read_bytes())
        for entry in summary.prompt_verifications:
            assert (entry.verdict, "fits as well: a second one" in entry.reason) == ("REJECT", True)
            assert "/REJECTED/" in entry.classified_path


def test_results_about_other_regions_go_when_the_regions_change(tmp_path: Path) -> None:
    go(two_things(), tmp_path, concepts=("entities",))
    (tmp_path / "run" / "journal.jsonl").unlink()
    other = two_things()
    other.regions.reverse()
    go(other, tmp_path, concepts=("spatial",))
    assert not (tmp_path / "run" / "entities").exists()
    overlays = [path.name[:3] for path in (tmp_path / "run" / "accepted_regions").glob("*.png")]
    assert sorted(overlays) == ["000", "001"]


def test_limits_bound_what_is_in_flight(tmp_path: Path) -> None:
    script, photo = two_things(seconds=0.01), read_photo(made_photo(tmp_path))
    chosen, parts = settings(concepts=TWO), script.parts()
    record = RunRecord(
        dataengine="0",
        complete=False,
        fingerprint="f",
        source=source_of(photo),
        parts=parts.records(),
        prompt_digests={},
        concepts=list(TWO),
        settings={},
        note="",
    )

    async def bounded() -> None:
        folder = RunFolder(tmp_path / "run")
        limits.observe(Limits(settings(concurrency=2)))
        await process(photo, folder, record, parts, chosen)

    asyncio.run(bounded())
    assert script.most == 2
