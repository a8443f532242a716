"""What the benchmarks of the engine share: photos, a segmenter that costs next to nothing, and runs as child processes.

A run is the command of a user, in a process of its own: `dataengine run …` against a stand-in for the model. As a
command of its own this file is that run with a sampler of the event loop's lag beside it:

    python -m benchmarks.rig lag.json run --input photos --output_dir runs …
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco
from skimage import data

from dataengine.images import Photo
from dataengine.journal import Answer
from dataengine.masks import Mask
from dataengine.records import Xyxy
from dataengine.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("coffee", "astronaut", "chelsea", "rocket")
TWO_MEGAPIXELS = (1632, 1224)
CORNERS = 72  # of a stub mask's outline
POOL = (7, 5)  # stub masks across and down
MOST_RUNS = 12
LAG_EVERY = 0.01  # seconds between two looks at the event loop


# Photos.


def make_photos(folder: Path, count: int, size: tuple[int, int] = TWO_MEGAPIXELS) -> Path:
    """Write `count` JPEG files of a width and height, no two alike, in a folder that is made.

    They are pictures of scikit-image's, enlarged, turned and shifted, with the grain of a sensor.
    """
    folder.mkdir(parents=True)
    width, height = size
    grown = [cv2.resize(getattr(data, name)(), size, interpolation=cv2.INTER_CUBIC) for name in PICTURES]
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    for number in range(count):
        picture = np.roll(grown[number % len(grown)], 37 * number, axis=1)
        if number // len(grown) % 2:
            picture = picture[:, ::-1]
        pixels = np.clip(picture + np.roll(grain, 11 * number, axis=0), 0, 255).astype(np.uint8)
        cv2.putText(pixels, str(number), (20, height - 20), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 255, 255), 4)
        cv2.imwrite(str(folder / f"photo_{number:05d}.jpg"), pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return folder


# Masks.


class StubSegmenter:
    """`--segmenter benchmarks.rig:StubSegmenter`: an uneven ellipse in each box, and a pool of a grid of them."""

    name = "stub"
    version = "1"
    detail: Mapping[str, str] = {}
    local = True

    def __init__(self, settings: Settings) -> None:
        """It has no settings."""

    async def propose(self, photo: Photo) -> Answer[list[Mask]]:
        """The grid: some of its masks lie over a box's ellipse."""
        w, h = photo.width / POOL[0], photo.height / POOL[1]
        boxes = [(x * w, y * h, (x + 2) * w, (y + 2) * h) for x in range(POOL[0] - 1) for y in range(POOL[1] - 1)]
        return Answer([uneven_ellipse(photo, box) for box in boxes])

    async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
        """An ellipse in each box."""
        return Answer([uneven_ellipse(photo, box) for box in boxes])


def uneven_ellipse(photo: Photo, box: Xyxy) -> Mask:
    """A mask of the photo's size, encoded from its outline in C."""
    x0, y0, x1, y1 = box
    outline = []
    for corner in range(CORNERS):
        turn = 2 * math.pi * corner / CORNERS
        reach = 0.9 + 0.08 * math.sin(5 * turn + x0) + 0.02 * math.sin(23 * turn + y0)
        outline += [(x0 + x1 + (x1 - x0) * reach * math.cos(turn)) / 2]
        outline += [(y0 + y1 + (y1 - y0) * reach * math.sin(turn)) / 2]
    rle = coco.frPyObjects([outline], photo.height, photo.width)[0]
    return Mask(photo.height, photo.width, rle["counts"].decode("ascii"))


# Runs.


def run_flags(photos: Path, out: Path, url: str, *more: str) -> list[str]:
    """`run …`, with the stand-in at `url` for the model and stub masks."""
    where = ["run", "--input", str(photos), "--output_dir", str(out)]
    parts = ["--grounder", "annotator", "--segmenter", "benchmarks.rig:StubSegmenter"]
    return [*where, *parts, "--vlm", "google:gemini-flash-latest", "--vlm_base_url", url, *more]


@dataclass(frozen=True)
class Ended:
    """What a child process left.

    Attributes:
        code: its exit code; minus the signal's number where one ended it.
        seconds: of the clock, start-up included.
        cpu_seconds: user and system, of itself and its children.
        peak_mib: its greatest resident size, as last seen (it is looked at five times a second).
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str

    @property
    def last_lines(self) -> str:
        """The end of what it printed, for a complaint."""
        return "\n".join(self.output.splitlines()[-6:])


class Child:
    """`dataengine …` in a process of its own, killed where it is left (`with`) before it ended.

    Args:
        flags: the command and its flags.
        lag: where its event loop's lag is written, if it is to be measured.
    """

    def __init__(self, flags: Sequence[str], lag: Path | None = None) -> None:
        start = ["-m", "dataengine.cli"] if lag is None else ["-m", "benchmarks.rig", str(lag)]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._began = time.perf_counter()
        self._peak = 0.0
        self._process = subprocess.Popen(
            [sys.executable, *start, *flags],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "GOOGLE_API_KEY": "stand-in"},
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)
            self.ended()

    def signal(self, number: int) -> None:
        """Send a signal; `Popen` would first look whether it ended, and take its exit status away."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        self._look()
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def ended(self, limit: float = 3600) -> Ended:
        """Wait for its end.

        Raises:
            TimeoutError: it did not end within `limit` seconds of its start.
        """
        while self.running:
            if time.perf_counter() - self._began > limit:
                raise TimeoutError(f"not ended after {limit:.0f} s: {self._process.args!r}")
            time.sleep(0.02 if time.perf_counter() - self._began < 2 else 0.2)
        seconds = time.perf_counter() - self._began
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        with self._output as file:
            file.seek(0)
            output = file.read().decode("utf-8", "replace")
        return Ended(self._process.returncode, seconds, used.ru_utime + used.ru_stime, self._peak, output)

    def _look(self) -> None:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return
        peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
        self._peak = max(self._peak, int(peak) / 1024)


def run_child(flags: Sequence[str], lag: Path | None = None, limit: float = 3600) -> Ended:
    """Run `dataengine …` to its end."""
    with Child(flags, lag) as child:
        return child.ended(limit)


def run_to_the_end(flags: Sequence[str]) -> tuple[Ended, int]:
    """Run until all is done, since what fails is tried again by the next run: the first one's end, and their number."""
    first = None
    for run in range(1, MOST_RUNS + 1):
        ended = run_child(flags)
        first = first or ended
        if ended.code == 0:
            return first, run
    raise SystemExit(f"not done after {MOST_RUNS} runs:\n{ended.last_lines}")


class Claims:
    """What a benchmark claims, each printed with its figures and whether it holds.

    Attributes:
        code: the exit code: 1 where one does not hold.
    """

    code = 0

    def check(self, holds: bool, text: str) -> None:
        """Print one."""
        print(f"{'holds' if holds else 'FAILS'}: {text}", flush=True)
        self.code = self.code if holds else 1


# The event loop's lag.


async def _sample(late: list[float]) -> None:
    """How much later than asked a sleep of `LAG_EVERY` ends, again and again."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_EVERY)
        late.append(time.perf_counter() - began - LAG_EVERY)


def main(arguments: Sequence[str]) -> int:
    """`dataengine` with the sampler in its event loop: the lag's file, then the command and its flags."""
    from dataengine import cli

    late: list[float] = []
    run = asyncio.run

    def sampled(work: Coroutine[Any, Any, Any], **options: Any) -> Any:
        async def both() -> Any:
            sampler = asyncio.create_task(_sample(late))
            try:
                return await work
            finally:
                sampler.cancel()

        return run(both(), **options)

    asyncio.run = sampled  # type: ignore[assignment]
    code = cli.main(arguments[1:])
    marks = {f"p{q:g}": float(np.percentile(late, q)) for q in (50, 90, 99, 99.9)} if late else {}
    Path(arguments[0]).write_text(json.dumps({**marks, "max": max(late, default=0.0), "samples": len(late)}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
