"""`dataengine status`, and looking ahead with `run --explain` and `run --dry_run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataengine.cli import main
from tests.photos import coffee
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


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a run of two photos, of which one is done and one cannot be read."""
    monkeypatch.setenv("GOOGLE_API_KEY", "key")
    monkeypatch.setenv("COLUMNS", "200")
    photos = tmp_path / "photos"
    photos.mkdir()
    coffee(120).save(photos / "a [b].png")
    (photos / "bad.jpg").write_text("no photo")
    told = ["run", "-i", str(photos), "-o", str(tmp_path / "runs"), "--preset", "offline", "--max_regions", "3"]
    assert main([*told, "--concepts", "entities", "--no-negatives"]) == 1
    coffee(121).save(photos / "new.png")
    return told


def test_explain(done: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What, how many, why and such as; nothing is written."""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*done, "--explain", "--segmenter", "classical", "--max_regions", "4", "--concepts", "entities"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "What a run would do with 3 images", "all: new", "new.png", "try again: failed", "at read: not_an_image",
        "redo", "describe: max_regions 3 -> 4", "a [b].png", "Nothing was asked or written.",
        "negatives not made yet: entities",
        "then ground, segment, verify, compose/entities, align, refute, where their answers differ",
    ):  # fmt: skip
        assert text in shown
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_explain_the_first_images_only(done: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Those that a run would take."""
    assert main([*done, "--explain", "--max_images", "1"]) == 0
    shown = capsys.readouterr().out
    assert "with 1 image" in shown and "a [b].png" in shown and "new.png" not in shown


@pytest.mark.parametrize(
    ("more", "lines", "total"),
    [
        (
            ["--max_images", "1", "--no-negatives", "--concepts", "entities"],
            ["Expected, for 0 images not done: no call that is paid for."],
            "total: 0 calls, 0 tokens in, 0 out, $0.00",
        ),
        (
            [],
            [
                "Expected, for 2 images not done: no call that is paid for.",
                "Computed on this machine, at no cost: annotator measured, grounder annotator, segmenter classical.",
            ],
            "total: 0 calls, 0 tokens in, 0 out, $0.00",
        ),
        (
            ["--annotator", "vlm", "--price", "0,100", "--concepts", "physics", "--no-negatives", "--budget_usd", "1"],
            [
                "Expected, for 2 images not done",
                "Figures assumed: 7 regions, 3 prompts a concept;",
                "Computed on this machine, at no cost: grounder annotator, segmenter classical.",
                "--budget_usd 1: $0.00 spent so far, $0.",
            ],
            "total: 24 calls, ",
        ),
    ],
)
def test_dry_run(
    done: list[str], capsys: pytest.CaptureFixture[str], more: list[str], lines: list[str], total: str
) -> None:
    """By stage, with the sources of the figures; the last line is the total."""
    assert main([*done, "--dry_run", *more]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(start) for line in shown) for start in lines)
    assert shown[-1].startswith(total)


def test_looking_first_needs_an_input_and_the_parts(
    done: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run does; and one look at a time."""
    monkeypatch.delenv("GOOGLE_API_KEY")
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    assert main([*done, "--explain", "--annotator", "vlm"]) == 2
    assert "needs a key" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*done, "--explain", "--dry_run"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["explain", "dry_run"])
def test_looking_first_is_no_setting(done: list[str], tmp_path: Path, flag: str) -> None:
    """A settings file cannot ask for it."""
    (tmp_path / "s.toml").write_text(f"{flag} = true")
    assert main([*done, "--settings", str(tmp_path / "s.toml")]) == 2


def test_looking_first_makes_no_output_folder(done: list[str], tmp_path: Path) -> None:
    """Where there is none yet, all is new."""
    done[done.index("-o") + 1] = str(tmp_path / "elsewhere")
    assert main([*done, "--explain"]) == 0 and main([*done, "--dry_run"]) == 0
    assert not (tmp_path / "elsewhere").exists()
