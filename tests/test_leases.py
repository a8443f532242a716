"""Processes that share an output folder, with other processes really there and really killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataengine import leases
from dataengine.errors import OutputError, UsageError
from dataengine.leases import STATE, Owner

OTHER = """
import sys, time
from pathlib import Path
from dataengine.leases import Owner
with Owner(Path(sys.argv[1]), alone=sys.argv[2] == "alone") as owner:
    for name in sys.argv[3:]:
        owner.claim(name, f"/photos/{name}.png")
    print("there", flush=True)
    sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Start]:
    """Starts another process that holds leases until its input is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(*names: str, alone: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OTHER, str(tmp_path), "alone" if alone else "shared", *names]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "there\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def state(folder: Path) -> dict[str, list[str]]:
    return {kind: sorted(p.name for p in (folder / STATE / kind).iterdir()) for kind in ("owners", "leases")}


def test_an_image_is_one_process_s_until_it_gives_it_back(tmp_path: Path, other: Start) -> None:
    process = other("a")
    with Owner(tmp_path) as owner:
        assert owner.claim("a", "/photos/a.png") == "theirs"
        assert owner.claim("a", "/elsewhere/a.png") == "taken"
        assert owner.claim("b", "/photos/b.png") == "ours"
        assert owner.claim("b", "/photos/b.png") == "ours"
        process.communicate()  # ends
        assert owner.claim("a", "/elsewhere/a.png") == "ours"
        for name in ("a", "b", "never claimed"):
            owner.release(name)
    assert state(tmp_path) == {"owners": [], "leases": []}


def test_a_killed_process_s_image_is_taken_over_at_once(tmp_path: Path, other: Start) -> None:
    with Owner(tmp_path) as owner:
        process = other("a")
        assert owner.claim("a", "/photos/a.png") == "theirs"
        process.kill()
        process.wait()
        assert owner.claim("a", "/photos/a.png") == "ours"


def test_what_the_dead_left_is_removed(tmp_path: Path, other: Start) -> None:
    process = other("a", "b")
    process.kill()
    process.wait()
    (tmp_path / STATE / "leases" / "torn").write_text('{"owner": ')
    assert len(state(tmp_path)["owners"]) == 1
    with Owner(tmp_path) as owner:
        assert state(tmp_path) == {"owners": [owner.id], "leases": []}


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
def test_one_that_must_be_alone_is_alone(tmp_path: Path, other: Start, first: bool, second: bool) -> None:
    process = other(alone=first)
    with pytest.raises(UsageError, match="another run is writing there, and a budget is kept by one alone"):
        Owner(tmp_path, alone=second).__enter__()
    process.communicate()
    with Owner(tmp_path, alone=second):
        pass
    assert state(tmp_path)["owners"] == []


def test_the_lock_keeps_others_out(tmp_path: Path, other: Start) -> None:
    with Owner(tmp_path) as owner, owner.locked():
        command = [sys.executable, "-c", OTHER, str(tmp_path), "shared"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    assert process.communicate(timeout=20)[0] == "there\n"


# A process on another machine, whose lock may not be seen from here: another boot has another machine's name.


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_machine", lambda: "elsewhere")
        owner = Owner(tmp_path)
    with owner:
        owner.claim("a", "/photos/a.png")
        yield owner


def beat(folder: Path, owner: Owner, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(folder / STATE / "owners" / owner.id, (then, then))


@pytest.mark.parametrize(("seconds_ago", "claim"), [(0, "theirs"), (50, "theirs"), (90, "ours"), (9000, "ours")])
def test_a_process_elsewhere_lives_while_its_heart_beats(
    tmp_path: Path, elsewhere: Owner, seconds_ago: float, claim: str
) -> None:
    with Owner(tmp_path) as owner:
        beat(tmp_path, elsewhere, seconds_ago)
        assert owner.claim("a", "/photos/a.png") == claim


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with Owner(tmp_path) as owner:
        beat(tmp_path, owner, 1000)
        until = time.monotonic() + 20
        while (tmp_path / STATE / "owners" / owner.id).stat().st_mtime < time.time() - 500:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_who_was_taken_for_dead_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.01)
    with Owner(tmp_path) as owner:
        (tmp_path / STATE / "owners" / owner.id).unlink()
        until = time.monotonic() + 20
        while not owner._lost and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(OutputError, match="another process took this one for dead"):
            owner.claim("a", "/photos/a.png")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        Owner(tmp_path).__enter__()


def test_one_that_was_away_for_too_long_is_told_and_takes_no_lease_with_it(tmp_path: Path, elsewhere: Owner) -> None:
    with Owner(tmp_path) as owner:
        beat(tmp_path, elsewhere, 90)
        assert owner.claim("a", "/photos/a.png") == "ours"
        assert not (tmp_path / STATE / "owners" / elsewhere.id).exists()
        elsewhere.release("a")
        with Owner(tmp_path) as third:
            assert third.claim("a", "/photos/a.png") == "theirs"


def test_state_that_is_removed_meanwhile_is_an_output_error(tmp_path: Path) -> None:
    with Owner(tmp_path) as owner:
        shutil.rmtree(tmp_path / STATE)
        with pytest.raises(OutputError, match="cannot write"), owner.locked():
            pass
        owner.release("a")
