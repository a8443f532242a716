"""`dataengine status`, and looking ahead with `run --explain` and `run --dry_run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataengine.cli import main
from tests.test_survey import PAID, write_failures, write_folder, write_told


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An output folder with two images done, one unfinished, three failed and one not begun."""
    folder = tmp_path / "my runs"
    for name in ("a", "b"):
        write_folder(folder, f"/in/{name}", complete=True, usage={"verify": PAID})
    write_folder(folder, "/in/begun", complete=False)
    write_failures(folder, c="timeout", d="timeout", e="blocked")
    write_told(folder, __file__)
    return folder


def test_status(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts by reason, the cost, and what to do next with the folder as it can be typed."""
    assert main(["status", str(runs)]) == 0
    shown = capsys.readouterr().out
    for text in ("images", "7", "3: timeout 2, blocked 1", "2: ", "unfinished 1", "not begun 1", "2 paid", "$1.0000"):
        assert text in shown
    quoted = f"'{runs}'"
    assert [line for line in shown.splitlines() if line.startswith("Next: ")] == [
        "Next: run the same command again; what is done costs nothing",
        f"Next: dataengine retry {quoted} --reason timeout",
        f"Next: dataengine export --runs_root {quoted} --out_dir export",
    ]


def test_status_for_scripts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of JSON with the same counts."""
    assert main(["status", str(runs), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "images": 7,
        "done": 2,
        "failed": {"timeout": 2, "blocked": 1},
        "waiting": {"unfinished": 1, "not begun": 1},
        "cost": {"calls": 2, "reasked": 0, "input_tokens": 200, "output_tokens": 20, "usd": 1.0},
    }


def test_status_where_all_is_done_or_blocked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said to be done again; a blocked image would not be asked again."""
    write_folder(tmp_path, "/in/a", complete=True)
    write_failures(tmp_path, e="blocked")
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "same command" not in shown and "retry" not in shown and "Next: dataengine export" in shown


@pytest.mark.parametrize("name", ["nowhere", ""])
def test_status_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """One line, exit code 2."""
    assert main(["status", str(tmp_path / name)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
