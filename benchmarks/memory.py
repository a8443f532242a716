"""Memory and time that must not grow with the number of images.

    python -m benchmarks.memory
    python -m benchmarks.memory --images 20 100 --folders 10000

peak: the greatest resident size of `dataengine run` at 1,000 images against that at 100, in processes of their own (the
      kernel's VmHWM). Photos have 0.3 megapixels, so that a thousand take minutes; the memory of the images under way,
      which the number of calls in flight bounds, is smaller than with large photos, and what grows shows more.
again: the same command over the 1,000 that are done: its seconds and its size.
status: `dataengine status` of 100,000 run folders, made up by copies of a finished one's `run.json` with an image of
      their own each, half of them unfinished.

Published, one process keeps nothing between images; its peak is that of its models. The ratio is of our two peaks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rig import Claims, Ended, make_photos, run_child, run_flags
from benchmarks.standin import standing_in

SIZE = (640, 480)
MOST_RATIO = 1.15
MOST_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs=2, default=[100, 1000], help="few and many; default: %(default)s")
    parser.add_argument("--folders", type=int, default=100_000, help="of status; default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=32, help="default: %(default)s")
    options = parser.parse_args(arguments)
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder:
        peaks(Path(folder), options, claims)
        status(Path(folder), options.folders, claims)
    return claims.code


def peaks(root: Path, options: argparse.Namespace, claims: Claims) -> None:
    """The peak sizes of two runs."""
    sizes = []
    for images in options.images:
        photos, out = make_photos(root / f"photos_{images}", images, SIZE), root / f"runs_{images}"
        with standing_in() as model:
            command = run_flags(photos, out, model.url, "--no-negatives", "--concurrency", str(options.concurrency))
            ended = succeeded(run_child(command))
            again = succeeded(run_child(command))
        sizes.append(ended.peak_mib)
        print(
            f"{images} images: peak {ended.peak_mib:.0f} MiB, {ended.seconds:.0f} s, {ended.cpu_seconds:.0f} CPU s;",
            end="",
        )
        print(f" again: peak {again.peak_mib:.0f} MiB, {again.seconds:.1f} s")
    few, many = sizes
    text = f"peak at {options.images[1]} images / at {options.images[0]}: {many / few:.3f} (<= {MOST_RATIO})"
    claims.check(many / few <= MOST_RATIO, text)


def status(root: Path, folders: int, claims: Claims) -> None:
    """`dataengine status` of many run folders."""
    out = root / "status"
    began = time.perf_counter()
    make_up(next(root.glob("runs_*/*/run.json")), out, folders)
    print(f"{folders:,} run folders made up in {time.perf_counter() - began:.0f} s")
    ended = run_child(["status", str(out)])
    print("\n".join(f"  {line}" for line in ended.output.splitlines()[:12]))
    text = f"status of {folders:,} run folders: {ended.seconds:.1f} s (< {MOST_SECONDS:.0f}), {ended.peak_mib:.0f} MiB"
    claims.check(ended.code == 0 and ended.seconds < MOST_SECONDS, text)


def make_up(finished: Path, out: Path, folders: int) -> None:
    """Run folders with the `run.json` of a finished one, each of another image, every other one unfinished."""
    record = json.loads(finished.read_bytes())
    for number in range(folders):
        record["source"]["path"] = f"/photos/{number:06d}.jpg"
        record["complete"] = number % 2 == 0
        folder = out / f"out_region_refine_{number:06d}"
        folder.mkdir(parents=True)
        (folder / finished.name).write_text(json.dumps(record, indent=2))


def succeeded(ended: Ended) -> Ended:
    """The run's end, which must be a good one."""
    if ended.code:
        raise SystemExit(f"the run failed:\n{ended.last_lines}")
    return ended


if __name__ == "__main__":
    raise SystemExit(main())
