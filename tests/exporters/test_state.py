"""What an export remembers: lines by name, in order, from a file that may be of any state of repair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataengine.errors import OutputError
from dataengine.exporters.state import STATE_FILE, UNDER_WAY, State


def line(run: str, text: str = "") -> str:
    return json.dumps({"run": run, "text": text})


def remember(out: Path, *lines: str) -> None:
    with State(out) as state:
        for entry in lines:
            state.add(entry)
        state.finish()


def test_lines_are_found_by_name_in_order(tmp_path: Path) -> None:
    remember(tmp_path, line("a"), line("c"), line("d"))
    with State(tmp_path) as state:
        assert [state.earlier(run) for run in "abcde"] == [line("a"), None, line("c"), line("d"), None]


def test_a_state_is_written_only_where_it_is_another(tmp_path: Path) -> None:
    remember(tmp_path, line("a"))
    before = (tmp_path / STATE_FILE).stat()
    remember(tmp_path, line("a"))
    assert (tmp_path / STATE_FILE).stat() == before
    remember(tmp_path, line("a", "other"))
    assert (tmp_path / STATE_FILE).stat().st_ino != before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_lines_of_a_cut_off_come_before_the_earlier_ones(tmp_path: Path) -> None:
    remember(tmp_path, line("a"), line("b"), line("d"))
    for text in ("first", "second"):
        with State(tmp_path) as state:
            state.add(line("b", text))
    with State(tmp_path) as state:
        assert [state.earlier(run) for run in "abcd"] == [line("a"), line("b", "second"), None, line("d")]
    assert (tmp_path / UNDER_WAY).exists()


@pytest.mark.parametrize("harm", ["cut", "empty", "not JSON", "another version", "no text"])
def test_a_damaged_state_is_believed_as_far_as_it_is_whole(tmp_path: Path, harm: str) -> None:
    remember(tmp_path, line("a"), line("b"))
    path = tmp_path / STATE_FILE
    lines = path.read_text().splitlines(keepends=True)
    harmed = {
        "cut": "".join(lines)[:-5],
        "empty": "",
        "not JSON": f"{lines[0]}{lines[1]}[]\n",
        "another version": f"{lines[0].replace('made_by', 'made_with')}{lines[1]}",
        "no text": f"{lines[0]}{lines[1]}\udcff",
    }
    path.write_text(harmed[harm], errors="surrogateescape")
    with State(tmp_path) as state:
        found = [state.earlier("a"), state.earlier("b")]
    assert found == [None if harm in ("empty", "another version", "no text") else line("a"), None]


def test_a_state_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / UNDER_WAY).mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        State(tmp_path)
