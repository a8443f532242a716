"""Memory that must not grow with the number of images.

    python -m benchmarks.memory
    python -m benchmarks.memory --images 20 100

peak: the greatest resident size of `dataengine run` at 1,000 images against that at 100, in processes of their own (the
      kernel's VmHWM). Photos have 0.3 megapixels, so that a thousand take minutes; the memory of the images under way,
      which the number of calls in flight bounds, is smaller than with large photos, and what grows shows more.
again: the same command over those that are done: its seconds and its size.

Published, one process keeps nothing between images; its peak is that of its models. The ratio is of our two peaks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rig import Claims, Ended, make_photos, run_child, run_flags
from benchmarks.standin import standing_in

SIZE = (640, 480)
MOST_RATIO = 1.15


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs=2, default=[100, 1000], help="few and many; default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=32, help="default: %(default)s")
    options = parser.parse_args(arguments)
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder:
        peaks(Path(folder), options, claims)
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


def succeeded(ended: Ended) -> Ended:
    """The run's end, which must be a good one."""
    if ended.code:
        raise SystemExit(f"the run failed:\n{ended.last_lines}")
    return ended


if __name__ == "__main__":
    raise SystemExit(main())
