"""A run on a disk that fills up, and goes on after room is made.

    python -m benchmarks.disk

The output folder is a tmpfs of a few MiB, mounted for this (as root, or in a user namespace of one's own), so that the
error is the kernel's own. The run must end by itself with exit code 1 and one line that says what to do; then the tmpfs
is mounted larger over the same files, and the same command must do the rest. Claimed besides: what is there in the end
equals the folders of a run with room enough, and no good answer was paid for twice but those in flight when the disk
was full, whose lines had no room. Between the two, one run more without room made must change nothing for the worse.

Nothing published stands against it: the published engine's run ends with a trace, and begins those images anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rig import Claims, Ended, make_photos, run_child, run_flags
from benchmarks.standin import StandIn, standing_in
from benchmarks.trees import differences, done_twice

SIZE = (640, 480)
ROOM = 400  # MiB, when room is made
ALONE = "--in_own_namespace"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=float, nargs="+", default=[0.05, 0.2, 3, 8], help="sizes (%(default)s)")
    parser.add_argument("--images", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.2, help="of an answer; default: %(default)s")
    parser.add_argument(ALONE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if os.geteuid() and not options.in_own_namespace:
        again = [sys.executable, "-m", "benchmarks.disk", ALONE, *(sys.argv[1:] if arguments is None else arguments)]
        return subprocess.run(["unshare", "--user", "--map-root-user", "--mount", *again], check=False).returncode
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photos(root / "photos", options.images, SIZE)
        for mib in options.mib:
            fill(root / f"{mib:g}", root / "photos", mib, options, claims)
    return claims.code


def fill(root: Path, photos: Path, mib: float, options: argparse.Namespace, claims: Claims) -> None:
    """One disk, filled, and room made."""
    (root / "disk").mkdir(parents=True)
    flags = ("--concurrency", str(options.concurrency))
    with standing_in(seconds=options.seconds) as model:
        port = model.port
        roomy = run_child(run_flags(photos, root / "roomy", model.url, *flags))
        if roomy.code:
            raise SystemExit(f"the run with room enough failed:\n{roomy.last_lines}")
    mount(root / "disk", mib)
    try:
        with standing_in(port, seconds=options.seconds) as model:
            out = root / "disk" / "runs"
            command = run_flags(photos, out, model.url, *flags)
            print(f"a disk of {mib:g} MiB:")
            stopped(run_child(command), model, claims)
            stopped(run_child(command), model, claims)
            lost = model.stats().most_in_flight
            mount(root / "disk", ROOM, again=True)
            ended = run_child(command)
            stats = model.stats()
        differing = differences(root / "roomy", out)
        for name in differing[:5]:
            print(f"  {name}")
        text = f"with room: exit code {ended.code}, {len(differing)} files differ, {done_twice(out)} steps twice"
        claims.check(ended.code == 0 and not differing and not done_twice(out), text)
        ratio = stats.paid / stats.contents
        text = f"{stats.again} good answers paid twice (<= {2 * lost}, in flight at two stops); ratio {ratio:.2f}"
        claims.check(stats.again <= 2 * lost, text)
    finally:
        subprocess.run(["umount", root / "disk"], check=True)


def stopped(ended: Ended, model: StandIn, claims: Claims) -> None:
    """A run that met the full disk says so in one line and ends."""
    said = [line for line in ended.output.splitlines() if line.startswith("error:") or "Traceback" in line]
    fine = ended.code == 1 and len(said) == 1 and "full" in said[0]
    claims.check(fine, f"exit code {ended.code}, {model.stats().paid} answers paid so far; it says: {' | '.join(said)}")


def mount(folder: Path, mib: float, *, again: bool = False) -> None:
    """Mount a tmpfs of a size, or give the one that is there another size."""
    options = f"{'remount,' if again else ''}size={int(mib * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


if __name__ == "__main__":
    raise SystemExit(main())
