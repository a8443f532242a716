"""What people decided of prompts, in an export: `--reviews apply`, `ignore` and `only`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine.cli import main
from dataengine.exporters import runs, staging
from dataengine.exporters.convseg import export
from dataengine.exporters.runs import read_run
from dataengine.finished import read_finished
from dataengine.records import CONCEPTS, ExportManifest, ReviewMode, Verdict
from dataengine.reviews import append
from dataengine.sources import Sources
from tests.exporters.folders import LEFT, RIGHT, decide, our_run, picture, prompt, save, write_negatives
from tests.exporters.test_exporting_again import assert_like_new, edit, files_of, stamps_of

MODES: tuple[ReviewMode, ...] = ("apply", "ignore", "only")
ACCEPTED, REJECTED, ABSENT, PRESENT = range(4)  # the entries of `make_run`: two prompts, then two negatives


def make_run(root: Path, name: str = "out_region_refine_a") -> Path:
    """A run folder of an accepted and a rejected prompt, and an accepted and a rejected negative."""
    source = save(root / "photos" / f"{name}.png", picture())
    entries = [prompt(0), prompt(1, (1,), verdict="REJECT")]
    folder = our_run(root / "runs", source, name, prompts={"entities": entries})
    write_negatives(folder, "physics", "ACCEPT", "REJECT")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def texts_of(run: runs.Run) -> list[str]:
    return [sample.prompt for sample in run.samples]


def read(folder: Path, mode: ReviewMode = "apply") -> runs.Run:
    return read_run(folder, negatives=True, reviews=mode)


ENGINES = ["Segment thing 0", "Segment absent thing 0"]  # what the engine accepted
BY_ENGINE = {"verdict_not_accept": 1, "negative_not_accept": 1}


# A person's verdict.


@pytest.mark.parametrize(
    ("mode", "texts", "skipped"),
    [("apply", ENGINES, BY_ENGINE), ("ignore", ENGINES, BY_ENGINE), ("only", [], {"not_reviewed": 4})],
)
def test_where_nobody_has_decided_anything(
    folder: Path, mode: ReviewMode, texts: list[str], skipped: dict[str, int]
) -> None:
    run = read(folder, mode)
    assert texts_of(run) == texts
    assert dict(run.skipped) == skipped
    assert dict(run.reviewed) == {}


@pytest.mark.parametrize(
    ("number", "verdict", "texts", "skipped", "reviewed"),
    [
        (ACCEPTED, "ACCEPT", ENGINES, BY_ENGINE, {"accepted": 1}),
        (
            REJECTED,
            "ACCEPT",
            ["Segment thing 0", "Segment thing 1", "Segment absent thing 0"],
            {"negative_not_accept": 1},
            {"accepted": 1, "verdict_turned": 1},
        ),
        (
            ACCEPTED,
            "REJECT",
            ["Segment absent thing 0"],
            {**BY_ENGINE, "review_not_accept": 1},
            {"rejected": 1, "verdict_turned": 1},
        ),
        (REJECTED, "REJECT", ENGINES, {"negative_not_accept": 1, "review_not_accept": 1}, {"rejected": 1}),
        (
            ABSENT,
            "REJECT",
            ["Segment thing 0"],
            {**BY_ENGINE, "review_not_accept": 1},
            {"rejected": 1, "verdict_turned": 1},
        ),
        (
            PRESENT,
            "ACCEPT",
            [*ENGINES, "Segment absent thing 1"],
            {"verdict_not_accept": 1},
            {"accepted": 1, "verdict_turned": 1},
        ),
    ],
)
def test_a_persons_verdict_wins_over_the_engines(
    folder: Path, number: int, verdict: Verdict, texts: list[str], skipped: dict[str, int], reviewed: dict[str, int]
) -> None:
    decide(folder, number, verdict)
    run = read(folder)
    assert texts_of(run) == texts
    assert dict(run.skipped) == skipped
    assert dict(run.reviewed) == reviewed


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("verdict", ["ACCEPT", "REJECT"])
def test_only_what_a_person_accepts_is_taken_where_that_is_wanted(folder: Path, number: int, verdict: Verdict) -> None:
    decide(folder, number, verdict)
    run = read(folder, "only")
    text = read_finished(Sources(folder)).entries[number].prompt
    assert texts_of(run) == ([text] if verdict == "ACCEPT" else [])
    assert dict(run.skipped) == {"not_reviewed": 3} | ({} if verdict == "ACCEPT" else {"review_not_accept": 1})
    assert [sample.negative for sample in run.samples] == [number >= ABSENT] * len(run.samples)


def test_what_people_decided_is_not_even_read_where_it_is_ignored(folder: Path) -> None:
    for number in range(4):
        decide(folder, number, "REJECT" if number in (ACCEPTED, ABSENT) else "ACCEPT", text="Segment another")
    with (folder / "reviews.jsonl").open("ab") as file:
        file.write(b"damaged\n")
    run = read(folder, "ignore")
    assert texts_of(run) == ENGINES
    assert dict(run.skipped) == BY_ENGINE
    assert dict(run.reviewed) == {}
    assert run.sources is not None and "run:reviews.jsonl" not in run.sources


@pytest.mark.parametrize(("order", "exported"), [(("ana", "bo"), False), (("bo", "ana"), True)])
def test_the_last_word_of_all_reviewers_counts(folder: Path, order: tuple[str, str], exported: bool) -> None:
    verdicts: dict[str, Verdict] = {"ana": "ACCEPT", "bo": "REJECT"}
    for name in order:
        decide(folder, REJECTED, verdicts[name], by=name)
    run = read(folder)
    assert ("Segment thing 1" in texts_of(run)) == exported
    assert dict(run.reviewed) == ({"accepted": 1, "verdict_turned": 1} if exported else {"rejected": 1})


def test_a_reviewer_who_thinks_again_has_one_word(folder: Path) -> None:
    decide(folder, ACCEPTED, "REJECT")
    decide(folder, ACCEPTED, "ACCEPT")
    run = read(folder)
    assert texts_of(run) == ENGINES
    assert dict(run.reviewed) == {"accepted": 1}


# Another text, other regions.


@pytest.mark.parametrize(
    ("number", "verdict", "reviewed"),
    [
        (ACCEPTED, None, {"text_edited": 1}),
        (ACCEPTED, "ACCEPT", {"accepted": 1, "text_edited": 1}),
        (REJECTED, "ACCEPT", {"accepted": 1, "verdict_turned": 1, "text_edited": 1}),
        (ABSENT, None, {"text_edited": 1}),
    ],
)
def test_an_edited_text_is_the_prompt_that_is_exported(
    folder: Path, number: int, verdict: Verdict | None, reviewed: dict[str, int]
) -> None:
    before = read_finished(Sources(folder)).entries[number]
    decide(folder, number, verdict, text="Segment the „schwere“ Kiste")
    run = read(folder)
    [sample] = [sample for sample in run.samples if sample.prompt == "Segment the „schwere“ Kiste"]
    assert (sample.concept, sample.index, sample.negative) == (before.concept, before.index, before.negative)
    assert before.prompt not in texts_of(run)
    assert dict(run.reviewed) == reviewed


@pytest.mark.parametrize("mode", ["apply", "only"])
def test_an_edit_without_a_verdict_leaves_the_engines(folder: Path, mode: ReviewMode) -> None:
    decide(folder, ACCEPTED, None, text="Segment one")
    decide(folder, REJECTED, None, text="Segment other")
    run = read(folder, mode)
    assert texts_of(run) == (["Segment one", "Segment absent thing 0"] if mode == "apply" else [])
    assert dict(run.skipped) == (BY_ENGINE if mode == "apply" else {"not_reviewed": 4})


@pytest.mark.parametrize("mode", ["apply", "only"])
def test_an_edit_after_a_verdict_of_another_leaves_that_verdict(folder: Path, mode: ReviewMode) -> None:
    for number, verdict in ((ACCEPTED, "REJECT"), (REJECTED, "ACCEPT")):
        decide(folder, number, "ACCEPT" if verdict == "ACCEPT" else "REJECT", by="ana")
        decide(folder, number, None, by="bo", text=f"Segment {number}")
    run = read(folder, mode)
    assert [sample.prompt for sample in run.samples if not sample.negative] == ["Segment 1"]
    assert run.skipped["review_not_accept"] == 1
    assert dict(run.reviewed) == {"accepted": 1, "rejected": 1, "text_edited": 2, "verdict_turned": 2}


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_edit_to_no_words_is_left_out(folder: Path, text: str) -> None:
    decide(folder, ACCEPTED, "ACCEPT", text=text)
    run = read(folder)
    assert texts_of(run) == ["Segment absent thing 0"]
    assert run.skipped["prompt_blank"] == 1


@pytest.mark.parametrize(
    ("regions", "mask"), [((1,), RIGHT), ((0, 1), LEFT | RIGHT), ((1, 0), LEFT | RIGHT), ((0, 0), LEFT)]
)
def test_the_mask_is_the_union_of_the_regions_a_person_chose(
    folder: Path, regions: tuple[int, ...], mask: np.ndarray[Any, Any]
) -> None:
    decide(folder, ACCEPTED, None, regions=regions)
    run = read(folder)
    np.testing.assert_array_equal(run.samples[0].mask.array(), mask)
    assert dict(run.reviewed) == ({} if set(regions) == {0} else {"regions_changed": 1})


@pytest.mark.parametrize(("regions", "reason"), [((), "satisfying_empty"), ((0, 7), "region_missing")])
def test_regions_without_a_mask_are_left_out(folder: Path, regions: tuple[int, ...], reason: str) -> None:
    decide(folder, ACCEPTED, "ACCEPT", regions=regions)
    run = read(folder)
    assert texts_of(run) == ["Segment absent thing 0"]
    assert dict(run.skipped) == {**BY_ENGINE, reason: 1}
    assert dict(run.reviewed) == {"accepted": 1, "regions_changed": 1}


# Decisions that do not count.


def test_what_was_undone_changes_nothing(folder: Path) -> None:
    decided = decide(folder, ACCEPTED, "REJECT", text="Segment another", regions=(1,))
    decide(folder, ACCEPTED, None, undoes=decided)
    run = read(folder)
    assert texts_of(run) == ENGINES
    assert dict(run.skipped) == BY_ENGINE
    assert dict(run.reviewed) == {}
    assert dict(read(folder, "only").skipped) == {"not_reviewed": 4}


@pytest.mark.parametrize(("by", "text"), [("ana", "Segment thing 0"), ("bo", "Segment one")])
def test_only_the_reviewer_takes_a_decision_back(folder: Path, by: str, text: str) -> None:
    decided = decide(folder, ACCEPTED, None, by="ana", text="Segment one")
    decide(folder, ACCEPTED, None, by=by, undoes=decided)
    assert texts_of(read(folder))[0] == text


def test_after_an_undo_the_word_before_counts_again(folder: Path) -> None:
    decide(folder, ACCEPTED, "REJECT", by="ana")
    decided = decide(folder, ACCEPTED, "ACCEPT", by="bo", text="Segment one")
    decide(folder, ACCEPTED, None, by="bo", undoes=decided)
    assert read(folder).skipped["review_not_accept"] == 1


def test_a_decision_that_was_written_twice_counts_once(folder: Path) -> None:
    decided = decide(folder, ACCEPTED, "REJECT")
    decide(folder, ACCEPTED, "ACCEPT")
    append(folder, decided)
    assert texts_of(read(folder)) == ENGINES


def change_prompt(**fields: object) -> Callable[[Path], None]:
    """A change of the engine's accepted prompt."""

    def change(folder: Path) -> None:
        edit(folder / "entities" / "summary.json", lambda summary: summary["prompt_verifications"][0].update(fields))

    return change


def change_region(**fields: object) -> Callable[[Path], None]:
    """A change of an accepted region; other prompts may mean it."""

    def change(folder: Path) -> None:
        edit(folder / "accepted_regions" / "accepted.json", lambda regions: regions[1].update(fields))

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_prompt(prompt="Segment what the engine says now"),
        change_prompt(satisfying=[1]),
        change_prompt(index=5),
        change_region(label="box"),
        change_region(bbox=[3, 3, 4, 4]),
        change_region(instances=[{"size": [40, 60], "counts": "0"}]),
    ],
    ids=["text", "satisfying", "index", "label", "box", "instances"],
)
@pytest.mark.parametrize("mode", ["apply", "only"])
def test_a_decision_on_what_is_another_now_lapses_and_is_counted(
    folder: Path, mode: ReviewMode, change: Callable[[Path], None]
) -> None:
    decide(folder, ACCEPTED, "REJECT", text="Segment another")
    change(folder)
    run = read(folder, mode)
    kept = BY_ENGINE if mode == "apply" else {"not_reviewed": 4}
    assert (dict(run.skipped), dict(run.reviewed)) == (kept, {"review_lapsed": 1})
    assert len(run.samples) == (2 if mode == "apply" else 0)


@pytest.mark.parametrize(
    "change", [change_prompt(verdict="REJECT"), change_prompt(reason="other")], ids=["verdict", "reason"]
)
def test_a_decision_stays_where_only_the_engines_judgement_changes(
    folder: Path, change: Callable[[Path], None]
) -> None:
    decide(folder, ACCEPTED, "ACCEPT", text="Segment another")
    change(folder)
    run = read(folder)
    assert texts_of(run) == ["Segment another", "Segment absent thing 0"]
    assert "review_lapsed" not in run.reviewed


def test_a_decision_on_a_negative_stays_where_regions_change(folder: Path) -> None:
    decide(folder, ABSENT, "REJECT")
    change_region(label="box")(folder)
    run = read(folder)
    assert texts_of(run) == ["Segment thing 0"]
    assert "review_lapsed" not in run.reviewed


def test_prompts_that_are_gone_are_counted_once_each(folder: Path) -> None:
    for number, by in ((ACCEPTED, "ana"), (ACCEPTED, "bo"), (REJECTED, "ana")):
        decide(folder, number, "ACCEPT", by=by)
    edit(folder / "entities" / "summary.json", lambda summary: summary.update(prompt_verifications=[]))
    assert read(folder).reviewed["review_lapsed"] == 2


def test_an_undone_decision_on_what_is_gone_is_not_counted(folder: Path) -> None:
    decide(folder, ACCEPTED, None, undoes=decide(folder, ACCEPTED, "REJECT"))
    decide(folder, REJECTED, "REJECT")
    change_prompt(prompt="Segment what the engine says now")(folder)
    run = read(folder)
    assert "review_lapsed" not in run.reviewed
    assert dict(run.reviewed) == {"rejected": 1}


def test_damaged_lines_are_counted_and_the_others_are_read(folder: Path) -> None:
    decide(folder, ACCEPTED, "REJECT")
    whole = (folder / "reviews.jsonl").read_bytes()
    other = whole.replace(b'"ana"', b"7").rstrip() + b"\n"
    (folder / "reviews.jsonl").write_bytes(b"\xff\n{}\n\n" + other + whole + whole[:40])
    run = read(folder)
    assert dict(run.skipped) == {**BY_ENGINE, "review_not_accept": 1}
    assert run.reviewed["review_line_damaged"] == 4


def test_a_decision_is_written_after_a_line_that_was_cut_off(folder: Path) -> None:
    (folder / "reviews.jsonl").write_bytes(b'{"id": "cut')
    decide(folder, ACCEPTED, "REJECT")
    assert dict(read(folder).skipped) == {**BY_ENGINE, "review_not_accept": 1}
    assert read(folder).reviewed["review_line_damaged"] == 1


def test_decisions_that_cannot_be_read_are_counted_and_the_engine_is_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(folder, ACCEPTED, "REJECT")
    before = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "reviews.jsonl":
            raise PermissionError(13, "Permission denied")
        return before(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    run = read(folder)
    assert texts_of(run) == ENGINES
    assert dict(run.skipped) == {**BY_ENGINE, "reviews_unreadable": 1}
    assert run.sources is None  # so that the next export looks again


# The whole export.


def decide_all_kinds(folder: Path) -> None:
    """Decisions of every kind, and what is damaged, undone and lapsed."""
    decide(folder, ACCEPTED, "REJECT", by="bo")
    decide(folder, ACCEPTED, "ACCEPT", text="Segment one", regions=(0, 1))
    decide(folder, REJECTED, "ACCEPT")
    decide(folder, ABSENT, "REJECT")
    decide(folder, PRESENT, None, undoes=decide(folder, PRESENT, "ACCEPT"))
    with (folder / "reviews.jsonl").open("ab") as file:
        file.write(b"damaged\n")


DONE = {
    "accepted": 2,
    "regions_changed": 1,
    "rejected": 1,
    "review_line_damaged": 1,
    "text_edited": 1,
    "verdict_turned": 2,
}


@pytest.mark.parametrize(
    ("mode", "texts", "skipped", "reviewed"),
    [
        (
            "apply",
            ["Segment one", "Segment thing 1", *ENGINES],
            {"negative_not_accept": 2, "review_not_accept": 1, "verdict_not_accept": 1},
            {
                "accepted": 2,
                "regions_changed": 1,
                "rejected": 1,
                "review_line_damaged": 1,
                "text_edited": 1,
                "verdict_turned": 2,
            },
        ),
        ("ignore", [*ENGINES, *ENGINES], {"negative_not_accept": 2, "verdict_not_accept": 2}, {}),
        (
            "only",
            ["Segment one", "Segment thing 1"],
            {"not_reviewed": 5, "review_not_accept": 1},
            {
                "accepted": 2,
                "regions_changed": 1,
                "rejected": 1,
                "review_line_damaged": 1,
                "text_edited": 1,
                "verdict_turned": 2,
            },
        ),
    ],
)
def test_the_manifest_tells_what_people_did(
    folder: Path, tmp_path: Path, mode: ReviewMode, texts: list[str], skipped: dict[str, int], reviewed: dict[str, int]
) -> None:
    decide_all_kinds(folder)
    make_run(tmp_path, "out_region_refine_b")
    manifest = export(tmp_path / "runs", tmp_path / "out", include_negatives=True, reviews=mode)
    written = json.loads((tmp_path / "out" / "items.json").read_text())
    assert [item["prompt"] for item in written["items"]] == texts
    assert manifest == ExportManifest.model_validate_json((tmp_path / "out" / "export_manifest.json").read_bytes())
    assert manifest.reviews == mode
    assert manifest.skipped_reason_counts == skipped
    assert manifest.review_counts == reviewed
    assert list(manifest.review_counts) == sorted(reviewed)


def test_counts_are_added_up_over_run_folders(tmp_path: Path) -> None:
    for name, verdict in (("a", "ACCEPT"), ("b", "ACCEPT"), ("c", "REJECT")):
        decide(make_run(tmp_path, name), ACCEPTED, "ACCEPT" if verdict == "ACCEPT" else "REJECT")
    manifest = export(tmp_path / "runs", tmp_path / "out")
    assert manifest.review_counts == {"accepted": 2, "rejected": 1, "verdict_turned": 1}


@pytest.mark.parametrize(("flags", "mode"), [([], "apply"), *((["--reviews", mode], mode) for mode in MODES)])
def test_the_flag_says_how_decisions_are_taken(
    folder: Path, tmp_path: Path, flags: list[str], mode: ReviewMode, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(folder, REJECTED, "ACCEPT")
    out = tmp_path / "out"
    assert main(["export", "--runs_root", str(tmp_path / "runs"), "--out_dir", str(out), *flags]) == 0
    manifest = ExportManifest.model_validate_json((out / "export_manifest.json").read_bytes())
    assert manifest.reviews == mode
    assert manifest.counts.train_rows == {"apply": 2, "ignore": 1, "only": 1}[mode]
    assert f"Exported {manifest.counts.train_rows} " in capsys.readouterr().out


# Exporting again.


def read_folders(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the run folders that are read from now on."""
    names: list[str] = []

    def noted(folder: Path, **how: Any) -> runs.Run:
        names.append(folder.name)
        return read_run(folder, **how)

    patch.setattr(staging, "read_run", noted)
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three run folders; people have judged prompts of the first."""
    folders = [make_run(tmp_path, name) for name in ("a", "b", "c")]
    decide_all_kinds(folders[0])
    return tmp_path


@pytest.mark.parametrize("mode", ["apply", "only"])
def test_a_new_decision_redoes_just_its_run_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch, mode: ReviewMode
) -> None:
    out, how = root / "out", {"include_negatives": True, "reviews": mode}
    export(root / "runs", out, include_negatives=True, reviews=mode)
    read = read_folders(monkeypatch)
    first = decide(root / "runs" / "b", REJECTED, "ACCEPT", text="Segment other", regions=(0, 1))
    export(root / "runs", out, include_negatives=True, reviews=mode)
    assert read == ["b"]
    assert_like_new(root, out, **how)
    read.clear()
    decide(root / "runs" / "b", REJECTED, None, undoes=first)
    manifest = export(root / "runs", out, include_negatives=True, reviews=mode)
    assert read == ["b"]
    assert "text_edited" in manifest.review_counts  # of the first run folder, which was not read
    assert_like_new(root, out, **how)


def test_a_new_decision_redoes_nothing_where_it_is_ignored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = root / "out"
    export(root / "runs", out, reviews="ignore")
    before = stamps_of(out)
    read = read_folders(monkeypatch)
    decide(root / "runs" / "b", REJECTED, "ACCEPT")
    export(root / "runs", out, reviews="ignore")
    assert not read
    assert stamps_of(out) == before


def test_after_switching_how_decisions_are_taken_an_export_is_like_a_new_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = root / "out"
    read = read_folders(monkeypatch)
    for before, mode in zip((None, *MODES, *MODES), (*MODES, *MODES, "only"), strict=True):
        read.clear()
        export(root / "runs", out, reviews=mode)
        assert read == ([] if mode == before else ["a", "b", "c"])
        assert_like_new(root, out, reviews=mode)


def paying(usd: float) -> Callable[[Any], None]:
    """A change of what a run folder cost."""
    return lambda record: record.update(usage={"align": {"usd": usd}})


def test_what_a_run_folder_cost_is_read_again_also_where_nothing_of_it_is_exported(root: Path) -> None:
    out, folder = root / "out", root / "runs" / "b"
    decide(folder, ACCEPTED, "REJECT")
    decide(root / "runs" / "c", ACCEPTED, "ACCEPT")  # the one of three accepted prompts that fits
    for usd in (2.0, 3.0):
        edit(folder / "run.json", paying(usd))
        figures = export(root / "runs", out).figures
        assert figures is not None and figures.agreement is not None
        assert figures.agreement.usd_per_pair == pytest.approx(usd)
    assert_like_new(root, out)


def test_decisions_that_were_lost_are_forgotten(root: Path) -> None:
    out = root / "out"
    export(root / "runs", out)
    (root / "runs" / "a" / "reviews.jsonl").unlink()
    assert export(root / "runs", out).review_counts == {}
    assert_like_new(root, out)


def test_worker_processes_take_decisions_as_one_process_does(root: Path) -> None:
    for number, concept in enumerate(CONCEPTS):
        folder = our_run(root / "runs", root / "photos" / "a.png", f"w{number}", prompts={concept: [prompt(0)]})
        decide(folder, 0, "ACCEPT" if number % 2 else "REJECT", by="bo", text=f"Segment {concept}")
    one, two = (
        export(root / "runs", root / str(workers) / "out", include_negatives=True, workers=workers)
        for workers in (1, 2)
    )
    assert files_of(root / "1" / "out") == files_of(root / "2" / "out")
    assert one.review_counts == two.review_counts
    assert one.review_counts["text_edited"] == 6
    assert one.figures is not None and one.figures.agreement is not None
    assert one.figures == two.figures
