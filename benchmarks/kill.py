"""A run killed again and again, and what that cost.

    python -m benchmarks.kill
    python -m benchmarks.kill --kills 8 --images 4

A run of 12 images against a stand-in of whose answers a fifth goes wrong (429, 500, hangs, dropped connections, broken
JSON) is ended by SIGKILL at random moments, from its start-up on, and started again each time; then it may end. Another
run of the same photos is left alone. Claimed:

- the folders of both are equal (`benchmarks/trees.py` says what is left out);
- no step stands in a journal twice;
- of the answers that were good, no more were paid for twice than in the run that was left alone, and calls were in
  flight at the kills. In flight is what the stand-in had been asked and not answered when the process, stopped a moment
  before, was killed, and what it had answered within the last tenth of a second, which the journal may not have yet.
  Answers that it broke itself are counted apart: which try of a question meets one is chance;
- another run makes no call.

What runs against it is the published schedule: it begins an image again from nothing, so each kill costs all that was
paid for the images under way; with runs as short as these it would never end. The ratio is of paid calls: this run's to
those of the run that was left alone.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig import Child, Claims, make_photos, run_child, run_flags, run_to_the_end
from benchmarks.standin import StandIn, Stats, standing_in
from benchmarks.trees import differences, done_twice

SIZE = (640, 480)
FAULTS = {"rate_limited": 0.06, "server_error": 0.05, "hang": 0.03, "dropped": 0.03, "broken_json": 0.03, "wait": 0.5}
FLAGS = ("--vlm_timeout", "4", "--retry_seconds", "60")


@dataclass
class Killed:
    """What the kills met: how many processes, calls in flight at them all, and processes that had ended before."""

    kills: int = 0
    in_flight: int = 0
    ended: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="of an answer; default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the faults; default: %(default)s")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), options)


def compare(root: Path, options: argparse.Namespace) -> int:
    photos = make_photos(root / "photos", options.images, SIZE)
    flags = (*FLAGS, "--concurrency", str(options.concurrency))
    plan = {**FAULTS, "seconds": options.seconds, "seed": options.seed}
    with standing_in(**plan) as model:
        began = time.monotonic()
        first, runs = run_to_the_end(run_flags(photos, root / "whole", model.url, *flags))
        whole = model.stats()
        port = model.port
    start_up = whole.began - began
    print(f"left alone: {paid(whole)}; {first.seconds:.0f} s in the first of {runs} runs, start-up {start_up:.1f} s")
    with standing_in(port, **plan) as model:  # the same URL: it is among what answers rest on
        command = run_flags(photos, root / "killed", model.url, *flags)
        met = kill_often(command, model, options, start_up, whole)
        last, runs = run_to_the_end(command)
        killed = model.stats()
        print(
            f"killed {met.kills} times: {paid(killed)}; {met.in_flight} calls in flight at the kills; then {runs} runs"
        )
        print(f"            {met.ended} processes ended before their moment; the last run took {last.seconds:.0f} s")
        again = run_child(command)
        calls = model.stats().questions - killed.questions
    claims = Claims()
    differing = differences(root / "whole", root / "killed")
    for name in differing[:10]:
        print(f"  {name}")
    claims.check(met.kills == options.kills, f"{met.kills} of {options.kills} kills met a running process")
    claims.check(not differing, f"{len(differing)} files differ")
    claims.check(not done_twice(root / "killed"), f"{done_twice(root / 'killed')} steps in a journal twice")
    ratio = killed.paid / whole.paid
    most = whole.again + met.in_flight
    text = (
        f"{killed.again} good answers paid twice (<= {most}, with {met.in_flight} in flight); ratio of paid {ratio:.2f}"
    )
    claims.check(killed.again <= most, text)
    claims.check(calls == 0 and again.code == 0, f"{calls} calls of another run, exit code {again.code}")
    return claims.code


def paid(stats: Stats) -> str:
    broken = stats.paid - stats.good
    return f"{stats.paid} answers paid ({stats.contents} questions, {stats.again} again, {broken} broken)"


def kill_often(
    command: Sequence[str], model: StandIn, options: argparse.Namespace, start_up: float, whole: Stats
) -> Killed:
    """Start and kill, at moments from the middle of start-up to past each kill's share of the work that is left."""
    moments, met = random.Random(options.seed), Killed()
    while met.kills < options.kills:
        stats = model.stats()
        left = (whole.ended - whole.began) * (1 - (stats.good - stats.again) / whole.contents)
        each = left / (options.kills - met.kills + 1)
        with Child(command) as child:
            moment = time.monotonic() + moments.uniform(start_up / 2, start_up + 1.5 * each)
            while child.running and time.monotonic() < moment:
                time.sleep(0.01)
            if not child.running:
                met.ended += 1
                if child.ended().code == 0:
                    break
                continue
            child.signal(signal.SIGSTOP)
            stats = model.stats()
            child.signal(signal.SIGKILL)
            child.ended()
        met.kills += 1
        met.in_flight += stats.in_flight + stats.just_sent
    return met


if __name__ == "__main__":
    raise SystemExit(main())
