"""`dataengine stats` and `dataengine agreement`: the numbers, as tables and as JSON, and what is said instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dataengine.agreement import agreement_lines, rate
from dataengine.card import CARD
from dataengine.cli import main
from dataengine.errors import UsageError, one_line
from dataengine.exporters.convseg import export
from dataengine.records import (
    Agreement,
    ConceptAgreement,
    ExportManifest,
    Figures,
    Rate,
    ReviewerPair,
    Share,
    StageFigures,
    Usage,
)
from dataengine.stats import figures_of
from tests.exporters.folders import (
    box,
    decide,
    our_run,
    picture,
    prompt,
    published_run,
    save,
    write_json,
    write_negatives,
)
from tests.exporters.test_exporting_again import edit

MANIFEST = "export_manifest.json"
LEFT_AREA, BOTH_AREA = 250 / 2400, 625 / 2400  # of the masks in `folders`: 10x25 and 15x25 pixels of 40x60


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two run folders of DataEngine's, one with a journal; and one of the published engine's with a damaged file."""
    source = save(tmp_path / "photos" / "a.png", picture())
    first = our_run(tmp_path / "my runs", source, "a", prompts=FIRST)
    tell(first, "entities", results=[{"label": "box"}] * 3, conversational_prompts=FAMILIES)
    write_negatives(first, "physics", "ACCEPT", "REJECT")
    (first / "journal.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in JOURNAL))
    second = our_run(tmp_path / "my runs", source, "b")
    timing = [{"step": "describe", "total_seconds": 1.25, "count": 3}]
    tell(second, "entities", results=[{"label": "box"}] * 4, timing=timing)
    edit(second / "run.json", lambda record: record.update(usage={"describe": {"usd": 0.5, "calls": 2}}))
    third = published_run(tmp_path / "my runs", str(source), "c", rgb=picture())
    (third / "physics").mkdir()
    (third / "physics" / "summary.json").write_text("{")
    return tmp_path / "my runs"


FIRST = {
    "entities": [prompt(0), prompt(1, verdict="REJECT", reason="rule words: too many"), prompt(2, (0, 1))],
    "physics": [prompt(0, (1,), verdict="REJECT", reason="no")],
}
FAMILIES = [{"concept_family": name} for name in ("groups_and_piles", "groups_and_piles", "unusual_entity")]
COST: dict[str, object] = {"input_tokens": 100, "output_tokens": 10, "usd": 0.25, "calls": 1, "reasked": 0}
JOURNAL: list[dict[str, object]] = [
    {"step": "describe", "key": "k1", "seconds": 2.0, "usage": COST, "result": []},
    {"step": "align/000", "key": "k2", "seconds": 0.5, "usage": COST, "result": {}},
    {"step": "align/001", "key": "k3", "seconds": 0.25, "usage": COST, "failed": "timeout", "message": "late"},
]


def tell(folder: Path, concept: str, **fields: object) -> None:
    """Set fields of a summary."""
    edit(folder / concept / "summary.json", lambda summary: summary.update(fields))


# The figures.


def test_the_figures_of_run_folders_are_those_counted_by_hand(runs: Path) -> None:
    found = figures_of(runs)
    assert (found.images, found.described_regions, found.accepted_regions) == (3, 7, 6)
    assert found.prompts == {"entities": Share(accepted=4, rejected=1), "physics": Share(rejected=1)}
    assert found.families == {
        "entities": {
            "groups_and_piles": Share(accepted=1, rejected=1),
            "not told": Share(accepted=2),
            "unusual_entity": Share(accepted=1),
        },
        "physics": {"not told": Share(rejected=1)},
    }
    assert found.negatives == {"physics": Share(accepted=1, rejected=1)}
    assert found.rejected == {
        "rule words": 1,
        "judged not to fit its mask": 1,
        "negative: something fits it": 1,
    }
    assert found.unreadable == {"summary_unreadable": 1}
    assert found.agreement is None


def test_the_spreads_of_run_folders_are_those_counted_by_hand(runs: Path) -> None:
    found = figures_of(runs)
    area, images, words = found.mask_area, found.prompts_per_image, found.prompt_words
    assert (area.count, area.least, area.median, area.greatest) == (4, LEFT_AREA, LEFT_AREA, BOTH_AREA)
    assert area.mean == pytest.approx((3 * LEFT_AREA + BOTH_AREA) / 4)
    assert area.counts[area.edges.index(0.1)] == sum(area.counts) == 4
    assert (images.count, images.least, images.median, images.greatest) == (3, 1, 1, 2)
    assert images.counts[:4] == [0, 2, 1, 0]
    assert (words.count, words.least, words.greatest) == (5, 3, 4)  # with the accepted negative
    assert words.counts[:5] == [0, 0, 4, 1, 0]


def test_time_and_cost_are_those_of_the_journal_and_else_as_far_as_they_are_told(runs: Path) -> None:
    found = figures_of(runs)
    described, aligned = ((100, 10, 0.75, 3), (200, 20, 0.5, 2))  # one failed after it was paid for
    told = {"describe": (4, 3.25, described), "align": (1, 0.75, aligned)}
    for stage, (steps, seconds, (tokens_in, tokens_out, usd, calls)) in told.items():
        usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out, usd=usd, calls=calls)
        assert found.stages[stage] == StageFigures(steps=steps, seconds=seconds, usage=usage)
    assert found.cost.usd is None  # nobody knows what the published engine's run folder cost


def test_one_run_folder_is_its_own_root(runs: Path) -> None:
    found = figures_of(runs / "b")
    assert (found.images, found.prompts) == (1, {"entities": Share(accepted=1)})


def test_nothing_is_written(runs: Path) -> None:
    before = {path: path.read_bytes() for path in runs.parent.rglob("*") if path.is_file()}
    assert main(["stats", str(runs)]) == 1 and main(["agreement", str(runs)]) == 0
    assert {path: path.read_bytes() for path in runs.parent.rglob("*") if path.is_file()} == before


def test_people_do_not_change_what_the_engine_did(runs: Path) -> None:
    before = figures_of(runs)
    decide(runs / "a", 0, "REJECT", text="Segment another thing", regions=(1,))
    after = figures_of(runs)
    assert after.agreement is not None and after.agreement.all.reviewed == 1
    assert after.model_copy(update={"agreement": None}) == before


@pytest.mark.parametrize("negatives", [False, True])
def test_the_figures_of_an_export_are_those_in_its_manifest(runs: Path, tmp_path: Path, negatives: bool) -> None:
    decide(runs / "a", 0, "ACCEPT")
    manifest = export(runs, tmp_path / "out", include_negatives=negatives)
    found = figures_of(tmp_path / "out")
    assert found == manifest.figures
    assert found.prompts == {"entities": Share(accepted=4)}
    assert found.negatives == ({"physics": Share(accepted=1)} if negatives else {})
    assert found.agreement is not None and found.stages == {}
    assert found.mask_area == figures_of(runs).mask_area  # masks and photos are of one size here


# What is no run folder, and no export with figures.


def earlier(manifest: dict[str, object]) -> None:
    """As a version without figures wrote it."""
    for name in ("figures", "reviews", "review_counts"):
        del manifest[name]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (earlier, "an earlier version made it"),
        (lambda manifest: manifest.update(complete=False), "it was cut off"),
        (lambda manifest: manifest.update(complete=False, figures=None), "it was cut off"),
        (lambda manifest: manifest.update(figures=None), "an earlier version made it"),
    ],
)
def test_an_export_without_figures_is_one_clear_line(
    runs: Path, tmp_path: Path, change: Callable[[dict[str, object]], None], why: str
) -> None:
    out = tmp_path / "out"
    export(runs, out)
    edit(out / MANIFEST, change)
    with pytest.raises(UsageError) as caught:
        figures_of(out)
    assert str(caught.value) == f"{out}: an export without figures ({why}). Export again"
    export(runs, out)
    assert figures_of(out).images == 3


def test_an_export_that_was_cut_off_really_is_told_of_as_such(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dataengine.exporters.convseg.write_card", interrupt)
        export(runs, tmp_path / "out")
    assert not (tmp_path / "out" / CARD).exists()
    with pytest.raises(UsageError, match="cut off"):
        figures_of(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"complete": true}', "\xff"])
def test_a_damaged_manifest_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        figures_of(tmp_path)
    assert str(caught.value) == f"{tmp_path / MANIFEST}: cannot be read. Export again"


@pytest.mark.parametrize("command", ["stats", "agreement"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("name", "said"), [("gone", "no such folder"), ("photos", "no run folder in it"), ("photos/a.png", "not a folder")]
)
def test_what_holds_no_run_folder_is_refused_on_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, flags: list[str], name: str, said: str
) -> None:
    assert main([command, str(tmp_path / name), *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {tmp_path / name}: {said}. ") and shown.err.count("\n") == 1


@pytest.mark.parametrize("command", ["stats", "agreement"])
def test_a_cut_off_export_is_refused_on_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    export(runs, tmp_path / "out")
    edit(tmp_path / "out" / MANIFEST, lambda manifest: manifest.update(complete=False))
    assert main([command, str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'out'}: an export without figures (it was cut off). Export again\n"
    )


# What is printed.


def shown_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    complaints = shown.err.splitlines()
    assert code == bool(complaints) and all(line.startswith("could not be read: ") for line in complaints)
    return shown.out


def rows_of(shown: str) -> list[list[str]]:
    """The cells of all tables, row by row."""
    bars = str.maketrans("┃", "│")
    return [
        [cell.strip() for cell in line.translate(bars)[1:-1].split("│")]
        for line in shown.splitlines()
        if line[:1] in "│┃"
    ]


def test_the_tables_hold_the_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_by(capsys, "stats", runs)
    assert rows_of(shown) == [
        ["images", "3"],
        ["regions", "6 of 7 accepted"],
        ["prompts", "4 of 6 accepted"],
        ["negatives", "1 of 2 accepted"],
        ["calls", "5 paid, 300 tokens in, 30 out, cost unknown"],
        ["concept", "family", "accepted", "rejected", "accepted share"],
        ["entities", "", "4", "1", "80%"],
        ["", "groups_and_piles", "1", "1", "50%"],
        ["", "not told", "2", "0", "100%"],
        ["", "unusual_entity", "1", "0", "100%"],
        ["physics", "", "0", "1", "0%"],
        ["", "not told", "0", "1", "0%"],
        ["negatives", "physics", "1", "1", "50%"],
        ["", "least", "median", "mean", "greatest", "most are"],
        ["accepted prompts of an image", "1", "1", "1.333", "2", "1"],
        ["words of an accepted prompt", "3", "3", "3.2", "4", "3"],
        ["mask, share of the photo", "10.42%", "10.42%", "14.32%", "26.04%", "10 to 30 %"],
        ["stage", "steps", "seconds", "of a step", "calls", "tokens in", "tokens out", "cost"],
        ["describe", "4", "3.2", "0.81", "3", "100", "10", "$0.7500"],
        ["align", "1", "0.8", "0.75", "2", "200", "20", "$0.5000"],
        ["not told", "0", "0.0", "-", "0", "0", "0", "cost unknown"],
        ["rule words", "1"],
        ["judged not to fit its mask", "1"],
        ["negative: something fits it", "1"],
        ["summary_unreadable", "1"],
    ]
    titles = ["Figures", "Prompts", "Spreads", "Stages", "Rejected, by why", "Cannot be read"]
    assert [line.strip() for line in shown.splitlines() if line[:1].isalpha()] == titles


def test_an_export_has_no_regions_stages_or_rejected_prompts(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(runs, tmp_path / "out")
    shown = shown_by(capsys, "stats", tmp_path / "out")
    assert rows_of(shown)[:3] == [["images", "3"], ["prompts", "4 exported"], ["negatives", "0 exported"]]
    titles = [line.strip() for line in shown.splitlines() if line[:1].isalpha()]
    assert titles == ["Figures", "Prompts", "Spreads"]


def test_nothing_to_count_is_shown_as_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "a" / "entities" / "summary.json", {})
    shown = shown_by(capsys, "stats", tmp_path)
    assert ["mask, share of the photo", "-", "-", "-", "-", "-"] in rows_of(shown)
    assert ["prompts", "0 of 0 accepted"] in rows_of(shown)


def test_what_a_user_should_look_at_comes_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [prompt(0, (0,), prompt="Segment the box"), prompt(1, (1,), prompt="Find all of the box")]
    masks = [box(0, 0, 2, 1), box(0, 0, 60, 40)]
    our_run(tmp_path, save(tmp_path / "a.png", picture()), "a", masks=masks, prompts={"entities": entries})
    assert shown_by(capsys, "stats", tmp_path).splitlines()[-6:] == [
        "Look at: 1 pairs of accepted prompts of one image that say nearly the same",
        "  a: Segment the box / Find all of the box",
        "Look at: 1 accepted prompts whose mask is under 0.1% of the photo",
        "  a: Segment the box (0.083% of the photo)",
        "Look at: 1 accepted prompts whose mask is 95% of the photo or more",
        "  a: Find all of the box (100% of the photo)",
    ]


def test_json_has_the_same_numbers_on_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decide(runs / "a", 0, "ACCEPT")
    export(runs, tmp_path / "out")
    for root in (runs, tmp_path / "out"):
        [line] = shown_by(capsys, "stats", root, "--json").splitlines()
        assert json.loads(line) == figures_of(root).model_dump(mode="json")
        assert Figures.model_validate_json(line) == figures_of(root)
    manifest = ExportManifest.model_validate_json((tmp_path / "out" / MANIFEST).read_bytes())
    assert Figures.model_validate_json(line) == manifest.figures


# Text of files is text.

HOSTILE = (
    "[red]x[/red]",
    "[/]",
    "[/bold]x",
    "[bold",
    "[link=http://x]y",
    "back\\[red]",
    "line\nbreak\r",
    "\x1b[31mred\x1b[0m\x07",
    "\u2028\u202e\ud7ff",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_text_of_files_is_shown_as_text_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    entries = [prompt(index, prompt=f"Segment {name}") for index in range(2)]
    run = name.replace("/", "")
    folder = our_run(tmp_path, save(tmp_path / "a.png", picture()), run, prompts={"entities": entries})
    tell(folder, "entities", conversational_prompts=[{"concept_family": name}] * 2)
    decide(folder, 0, by=name)
    decide(folder, 0, by=f"{name} too")
    shown = shown_by(capsys, "stats", tmp_path)
    assert ["", one_line(name), "2", "0", "100%"] in rows_of(shown)
    text = one_line(name)
    assert f"{text} judged 1 prompts" in shown.splitlines()
    assert f"{text} and {text} too: 100% equal verdicts on 1 prompts, " in shown
    assert shown.splitlines()[-1] == f"  {one_line(run)}: Segment {text} / Segment {text}"
    assert all(line.isprintable() for line in shown.split("\n"))


# Agreement.


def test_where_nobody_has_judged_a_prompt_the_next_command_is_told(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "Nobody has judged a prompt, as far as is told here\nNext: dataengine review RUNS --sample 200\n"
    assert shown_by(capsys, "agreement", runs) == told
    decide(runs / "a", 0, None, text="Segment another thing")  # no verdict, so no judgement
    assert shown_by(capsys, "agreement", runs) == told
    assert shown_by(capsys, "agreement", runs, "--json") == "null\n"


def judge(runs: Path) -> None:
    """All of the engine's accepted prompts and of its rejected ones, negatives too; two by two people."""
    folder = runs / "a"
    decide(folder, 0, "ACCEPT", by="bo")
    decide(folder, 3, "ACCEPT", by="bo")
    for number, verdict in enumerate(("ACCEPT", "ACCEPT", "ACCEPT", "REJECT", "REJECT", "REJECT")):
        text = "Segment both of them" if number == 2 else None
        decide(folder, number, "ACCEPT" if verdict == "ACCEPT" else "REJECT", text=text)
    for name in ("b", "c"):
        decide(runs / name, 0, "ACCEPT")


def test_agreement_is_told_in_a_table_and_in_words(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: of four that the engine accepted three fit, and of the four that fit it accepted three."""
    judge(runs)
    shown = shown_by(capsys, "agreement", runs)
    assert rows_of(shown) == [
        ["concept", "judged", "corrected", "precision of ACCEPT", "recall"],
        ["entities", "5", "1", "75% (30% to 95%)", "75% (30% to 95%)"],
        ["physics", "1", "0", "-", "-"],
        ["negatives", "2", "0", "0% (0% to 79%)", "-"],
        ["all but negatives", "6", "1", "75% (30% to 95%)", "75% (30% to 95%)"],
    ]
    assert shown.partition("┘\n")[2].splitlines() == [
        "In brackets 95 % Wilson intervals. What a person corrected counts as not accepted.",
        "ana judged 8 prompts",
        "bo judged 2 prompts",
        "ana and bo: 50% equal verdicts on 2 prompts, Cohen's kappa 0.00",
        "Judged: 100.0% of the accepted, 100.0% of the rejected prompts",
    ]
    assert shown in shown_by(capsys, "stats", runs)


def test_agreement_of_one_run_folder_tells_what_a_pair_costs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 0.75 USD for two accepted prompts, of which one fits."""
    judge(runs)
    assert shown_by(capsys, "agreement", runs / "a").splitlines()[-1] == (
        "Cost of a pair that a person would accept: $0.7500"
    )


def test_agreement_for_scripts_is_one_line_of_json(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(runs)
    export(runs, tmp_path / "out", include_negatives=True)
    for root in (runs, tmp_path / "out"):
        [line] = shown_by(capsys, "agreement", root, "--json").splitlines()
        assert Agreement.model_validate_json(line) == figures_of(root).agreement
        assert json.loads(line)["reviewers"] == {"ana": 8, "bo": 2}


NOTHING = ConceptAgreement(
    reviewed=0,
    corrected=0,
    precision=Rate(hits=0, of=0, value=None, low=None, high=None),
    recall=Rate(hits=0, of=0, value=None, low=None, high=None),
)


def agreed(
    accepted: float, rejected: float, pairs: tuple[ReviewerPair, ...] = (), usd: float | None = None
) -> list[str]:
    """The lines of an agreement with these shares of prompts that were judged."""
    found = Agreement(
        concepts={},
        all=NOTHING.model_copy(update={"recall": rate(1, 2)}),
        reviewers={"ana": 1200, "bo": 3},
        pairs=list(pairs),
        reviewed_share={"accepted": accepted, "rejected": rejected},
        usd_per_pair=usd,
    )
    return list(agreement_lines(found))


@pytest.mark.parametrize(
    ("accepted", "rejected", "high"),
    [
        (0.5, 0.5, ""),
        (0.75, 0.5, ""),
        (0.5, 0.75, ""),
        (0.0, 0.0, ""),
        (1.0, 1.0, ""),
        (0.76, 0.5, "too high"),
        (0.5, 0.76, "too low"),
        (0.0, 0.1, "too low"),
        (0.1, 0.0, "too high"),
    ],
)
def test_an_uneven_sample_is_warned_of(accepted: float, rejected: float, high: str) -> None:
    lines = agreed(accepted, rejected)
    assert lines[:3] == [
        "ana judged 1,200 prompts",
        "bo judged 3 prompts",
        f"Judged: {accepted:.1%} of the accepted, {rejected:.1%} of the rejected prompts",
    ]
    warning = f"These shares differ, so recall is {high}: judge a sample (`dataengine review --sample 200`)"
    assert lines[3:] == ([warning] if high else [])


def test_who_agrees_with_whom_and_what_a_pair_costs() -> None:
    pairs = (
        ReviewerPair(first="ana", second="bo", prompts=1500, agreed=0.925, kappa=0.856),
        ReviewerPair(first="bo", second="cy", prompts=2, agreed=1.0, kappa=None),
    )
    lines = agreed(0.5, 0.5, pairs, 1.25)
    assert lines[2:4] == [
        "ana and bo: 92% equal verdicts on 1,500 prompts, Cohen's kappa 0.86",
        "bo and cy: 100% equal verdicts on 2 prompts, Cohen's kappa not defined, all verdicts are the same",
    ]
    assert lines[-1] == "Cost of a pair that a person would accept: $1.25"
    assert agreed(0.5, 0.5, pairs, 0.0)[-1] == "Cost of a pair that a person would accept: $0.00"
    assert agreed(0.5, 0.5, pairs) == lines[:-1]
