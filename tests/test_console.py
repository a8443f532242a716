"""What a person sees: the bar, the plain lines, the table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dataengine.cli import main
from dataengine.console import PlainReporter, cost_text, print_totals
from dataengine.engine import Totals
from dataengine.errors import ImageError
from dataengine.pipeline import Outcome
from dataengine.records import Usage
from tests.photos import coffee


def test_the_bar_of_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images, verdicts, rate and time left; a failure stands above the bar, brackets in its name included."""
    photos = tmp_path / "photos"
    photos.mkdir()
    coffee(200).save(photos / "good.png")
    (photos / "not [red]a photo[bold].jpg").write_text("junk")
    arguments = ["run", "-i", str(photos), "-o", str(tmp_path / "runs"), "--preset", "offline", "--max_regions", "4"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert "failed:" in shown and "not [red]a photo[bold].jpg: not an image" in shown
    assert "2/2" in shown and " accepted" in shown and " rejected" in shown and "left" in shown
    assert main(arguments) == 1  # what was done before moves the bar too
    assert "2/2" in capsys.readouterr().err


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each image, also where its name has a line break."""
    reporter = PlainReporter()
    reporter.started(6)
    reporter.finished(Path("a\nb.png"), Outcome(5, 4, "", {"entities": (3, 2), "physics": (3, 1)}), 1.25)
    reporter.finished(Path("c.png"), Outcome(0, 0, "No region."), 0.5)
    reporter.skipped([Path("d.png")] * 3)
    reporter.failed(Path("e.png"), ImageError("e\n.png: empty file", hint="Replace it"))
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "[1/6] a\\nb.png: 4 of 5 regions, 3 of 6 prompts accepted (1.2 s)",
        "[2/6] c.png: No region. (0.5 s)",
        "[5/6] 3 done before",
    ]
    assert said.err == "[6/6] failed: e\\n.png: empty file. Replace it\n"


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        (Usage(), "0 paid, 0 tokens in, 0 out, $0.0000"),
        (
            Usage(calls=28, input_tokens=41000, output_tokens=1234, usd=0.0321),
            "28 paid, 41,000 tokens in, 1,234 out, $0.0321",
        ),
        (Usage(calls=1, usd=None), "1 paid, 0 tokens in, 0 out, cost unknown"),
    ],
)
def test_cost_in_words(usage: Usage, said: str) -> None:
    """An unknown price is said as unknown, never as nothing."""
    assert cost_text(usage) == said


def test_the_table_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every count of the run, and where the failures are."""
    totals = Totals(done=3, failed=1, skipped=2, regions=21, accepted=17, seconds=12.0)
    totals.prompts = {"spatial": (9, 7)}
    totals.negatives = (9, 8)
    print_totals(totals, tmp_path)
    shown = capsys.readouterr().out
    for text in (
        "3 done, 1 failed, 2 done before", "17 of 21 accepted", "prompts, spatial", "7 of 9 accepted",
        "8 of 9 accepted", "12.0 s, 15 images a minute", "failures.jsonl",
    ):  # fmt: skip
        assert text in shown
    assert "prompts, physics" not in shown
