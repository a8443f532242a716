"""What the engine itself costs beside a stand-in for the model, and how near it comes to waiting only for that.

    python -m benchmarks.speed
    python -m benchmarks.speed --only cpu one --cpu_images 10

Photos of 2 megapixels, 7 regions, 15 prompts, no negatives: 28 calls an image. Masks are stubs that cost next to
nothing. Each run is `dataengine run` in a process of its own; the stand-in runs in another, on the same cores. Against
it stands the published schedule (`benchmarks/published.py`) on one image: one call after another, and its picture work.

cpu: processor seconds, user and system, of a run of many images whose model answers at once, less those of a run of one
     image, by the number of images between: what the process costs before its first image counts in neither. Its HTTP
     client and the writing of all files are in it.
one: one image, from when the engine takes it up until its folder is complete (as the engine prints it).
many: images a minute over a whole run: from the first call to the last file, with the time that it takes to get all
     calls in flight and the end, where ever fewer are; also over the middle of the run, between the first and the last
     tenth of its images. Possible are `concurrency / seconds / calls an image`. The event loop's lag is how much later
     than asked a sleep of 10 ms ends in it, by a sampler in the engine's own process.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.published import Published, Spent
from benchmarks.rig import Claims, Ended, make_photos, run_child, run_flags
from benchmarks.standin import standing_in

REGIONS, PROMPTS, CONCEPTS = 7, 3, 5
CALLS = 1 + REGIONS + CONCEPTS + CONCEPTS * PROMPTS
LONGEST_WAY = 4  # answers that follow each other: describe, verify, compose, align
MOST_CPU_SECONDS = 0.6
MOST_BESIDE_ANSWERS = 1.5  # seconds of one image beside its four answers
ROUNDED = 0.05  # seconds by which the engine's own line may be too small
LEAST_SHARE = 0.85
MOST_LAG = 0.1  # seconds, the 99th percentile


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--cpu_images", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=100, help="of many; default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=64, help="of many; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of an answer, of one and many; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photos(root / "photos", max(options.cpu_images, options.images if "many" in options.only else 1))
        for name in options.only:
            MEASURES[name](root, options, claims)
    return claims.code


def engine(root: Path, name: str, url: str, images: int, *more: str, lag: Path | None = None) -> Ended:
    """A run over the first photos, which must all succeed."""
    chosen = root / f"{name}.txt"
    chosen.write_text("".join(f"{path}\n" for path in sorted((root / "photos").iterdir())[:images]))
    ended = run_child(run_flags(chosen, root / name, url, "--no-negatives", *more), lag)
    if ended.code:
        raise SystemExit(f"the run failed:\n{ended.last_lines}")
    return ended


def published(root: Path, name: str, url: str) -> Spent:
    """The published schedule on the first photo."""
    first = min((root / "photos").iterdir())
    return Published(url, REGIONS, PROMPTS).run(first, root / f"published_{name}")


def cpu(root: Path, options: argparse.Namespace, claims: Claims) -> None:
    """Processor seconds an image."""
    with standing_in(regions=REGIONS, prompts=PROMPTS) as model:
        one = engine(root, "cpu_one", model.url, 1)
        many = engine(root, "cpu_many", model.url, options.cpu_images)
        calls = model.stats().questions / (1 + options.cpu_images)
        other = published(root, "cpu", model.url)
    each = (many.cpu_seconds - one.cpu_seconds) / (options.cpu_images - 1)
    print(f"cpu: {options.cpu_images} images, {calls:.0f} calls each, answered at once: {many.cpu_seconds:.1f} CPU s")
    print(f"     1 image: {one.cpu_seconds:.1f} CPU s; peak {many.peak_mib:.0f} MiB; {many.seconds:.1f} s by the clock")
    print(f"     published schedule: {other.cpu_seconds:.1f} CPU s an image, {other.calls} calls (sample: 1 image)")
    ratio = other.cpu_seconds / each
    claims.check(each <= MOST_CPU_SECONDS, f"{each:.2f} CPU s an image (<= {MOST_CPU_SECONDS}); ratio {ratio:.1f}")


def one(root: Path, options: argparse.Namespace, claims: Claims) -> None:
    """Seconds of one image."""
    with standing_in(seconds=options.seconds, regions=REGIONS, prompts=PROMPTS) as model:
        ended = engine(root, "one", model.url, 1)
        other = published(root, "one", model.url)
    said = re.search(r"accepted \(([\d.]+) s\)", ended.output)
    if said is None:
        raise SystemExit(f"no time in what the run printed:\n{ended.last_lines}")
    seconds, most = float(said[1]) + ROUNDED, LONGEST_WAY * options.seconds + MOST_BESIDE_ANSWERS
    print(f"one: {said[1]} s the image, {ended.seconds:.1f} s the process; answers take {options.seconds} s")
    print(f"     published schedule: {other.seconds:.1f} s, {other.calls} calls (sample: 1 image)")
    claims.check(seconds <= most, f"{seconds:.2f} s at most (<= {most:.1f}); ratio {other.seconds / seconds:.1f}")


def many(root: Path, options: argparse.Namespace, claims: Claims) -> None:
    """Images a minute."""
    with standing_in(seconds=options.seconds, regions=REGIONS, prompts=PROMPTS) as model:
        flags = ("--concurrency", str(options.concurrency))
        began, at = time.monotonic(), time.time()  # the first is the stand-in's clock too: a machine has one
        ended = engine(root, "many", model.url, options.images, *flags, lag=root / "lag.json")
        stats = model.stats()
        other = published(root, "many", model.url)
    done = sorted(file.stat().st_mtime - at for file in (root / "many").glob("*/run.json"))
    start_up = stats.began - began
    whole = 60 * len(done) / (ended.seconds - start_up)
    possible = 60 * options.concurrency / options.seconds / CALLS
    lag = json.loads((root / "lag.json").read_text())
    print(f"many: {len(done)} images in {ended.seconds:.1f} s, {start_up:.1f} s before the first call among them")
    marks = ", ".join(f"{part} after {done[len(done) * part // 100 - 1]:.0f} s" for part in (10, 50, 90, 100))
    print(f"      {whole:.1f} images a minute, {possible:.1f} are possible; per cent of the images complete: {marks}")
    print(f"      {stats.mean_in_flight:.1f} calls in flight on average, {stats.most_in_flight} at most")
    print(f"      {ended.cpu_seconds:.0f} CPU s, peak {ended.peak_mib:.0f} MiB; lag {in_ms(lag)} ms")
    print(f"      published schedule: {60 / other.seconds:.2f} images a minute (sample: 1 image)")
    share, ratio = whole / possible, whole * other.seconds / 60
    text = f"{whole:.1f} images a minute, {share:.0%} of what is possible (>= {LEAST_SHARE:.0%}); ratio {ratio:.0f}"
    claims.check(share >= LEAST_SHARE, text)
    claims.check(lag["p99"] < MOST_LAG, f"event loop's lag p99 {1000 * lag['p99']:.0f} ms (< {1000 * MOST_LAG:.0f})")


def in_ms(lag: dict[str, float]) -> str:
    """Percentiles of the lag in milliseconds."""
    return ", ".join(f"{name} {1000 * lag[name]:.0f}" for name in ("p50", "p90", "p99", "p99.9", "max"))


MEASURES = {"cpu": cpu, "one": one, "many": many}

if __name__ == "__main__":
    raise SystemExit(main())
