"""A run whose model fails in every way it can: no image may be lost, and the run must end.

    python -m benchmarks.faults
    python -m benchmarks.faults --images 20

Of what the stand-in is asked, 10 % is answered with 429, 5 % with 500, 3 % never, 3 % by a connection that breaks off
and 5 % with broken JSON; 2 % of the photos are blocked, at one of their questions. Photos are small (0.3 megapixels):
it is not pictures that this is about. Claimed:

- the run ends by itself, within a limit that no fault of the stand-in needs;
- after it each image is either complete or in `failures.jsonl` with its reason, and never both;
- runs after it do the rest, until only blocked photos are left, of which each is listed as blocked and none is asked
  about again.

Published is one pass over the images whose first failed call ends it: it is not run; how many images it would finish at
these rates is told from them, as the ratio's other side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rig import Claims, Ended, make_photos, run_child, run_flags
from benchmarks.standin import StandIn, standing_in
from benchmarks.trees import FAILURES

SIZE = (640, 480)
FAULTS = {"rate_limited": 0.1, "server_error": 0.05, "hang": 0.03, "dropped": 0.03, "broken_json": 0.05}
BLOCKED = 0.02
PUBLISHED_CALLS = 35
RUNS = 12


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.2, help="of an answer; default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=6, help="of a call, in seconds; default: %(default)s")
    parser.add_argument("--limit", type=float, default=10, help="seconds an image that a run may take (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; default: %(default)s")
    parser.add_argument("--negatives", action="store_true", help="write negatives too: 48 calls an image, not 28")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), options)


def run(root: Path, options: argparse.Namespace) -> int:
    photos, out, claims = make_photos(root / "photos", options.images, SIZE), root / "runs", Claims()
    flags = ["--vlm_timeout", str(options.timeout), "--concurrency", str(options.concurrency)]
    flags += [] if options.negatives else ["--no-negatives"]
    limit = 120 + options.limit * options.images
    plan: dict[str, Any] = {**FAULTS, "blocked": BLOCKED, "seconds": options.seconds, "seed": options.seed}
    with standing_in(**plan) as model:
        command = run_flags(photos, out, model.url, *flags)
        first = one_run(command, model, limit)
        done, failed = state(out)
        listed(claims, photos, done, failed, first)
        for _ in range(RUNS):
            if set(failed.values()) <= {"blocked"}:
                break
            one_run(command, model, limit)
            done, failed = state(out)
        before = model.stats()
        last = one_run(command, model, limit)
        asked = model.stats().questions - before.questions
        done, failed = state(out)
    print(f"in the end: {len(done)} done, {len(failed)} failed by reason {dict(Counter(failed.values()))}")
    whole = len(done) + len(failed) == options.images and not done & failed.keys()
    claims.check(whole and set(failed.values()) <= {"blocked"}, "all that is not blocked is done in the end")
    claims.check(asked == 0 and last.code == bool(failed), f"another run asks {asked} questions, exit code {last.code}")
    share = (1 - BLOCKED) * (1 - sum(FAULTS.values())) ** PUBLISHED_CALLS
    finished = share * (1 - share**options.images) / (1 - share)
    print(f"published schedule, told from the rates: {finished:.4f} images before a call fails and ends it")
    return claims.code


def one_run(command: Sequence[str], model: StandIn, limit: float) -> Ended:
    """One run, and a line of what it met."""
    before = model.stats()
    ended = run_child(command, limit=limit)
    stats = model.stats()
    met = {kind: count - before.faults[kind] for kind, count in stats.faults.items()}
    asked, paid = stats.questions - before.questions, stats.paid - before.paid
    print(f"run: exit code {ended.code} after {ended.seconds:.0f} s; {asked} requests, {paid} answers paid; met {met}")
    return ended


def state(out: Path) -> tuple[set[str], dict[str, str]]:
    """The images that are done, and the reasons of those that failed."""
    records = [json.loads(path.read_bytes()) for path in out.glob("*/run.json")]
    done = {record["source"]["path"] for record in records if record["complete"]}
    failures = out / FAILURES
    entries = [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else []
    return done, {entry["image"]: entry["reason"] for entry in entries}


def listed(claims: Claims, photos: Path, done: set[str], failed: dict[str, str], ended: Ended) -> None:
    """Every image is done or listed after the first run."""
    images = {str(path) for path in photos.iterdir()}
    reasons = dict(Counter(failed.values()))
    print(f"after the first run: {len(done)} done, {len(failed)} failed by reason {reasons}")
    lost = images - done - failed.keys()
    if lost:
        print(ended.last_lines)
    claims.check(not lost, f"{len(lost)} of {len(images)} images are neither done nor listed")
    claims.check(not done & failed.keys(), f"{len(done & failed.keys())} images are both")
    claims.check(all(failed.values()), "each that failed has its reason")
    claims.check(ended.code == bool(failed), f"exit code {ended.code}")


if __name__ == "__main__":
    raise SystemExit(main())
