"""The real command `dataengine review` as a process of its own, and run folders for it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dataengine.records import Decision
from tests.exporters.folders import HEIGHT, LEFT, RIGHT, WIDTH, box, our_run, picture, prompt, save, write_negatives

LOW, HIGH = box(2, 32, 58, 38), box(20, 4, 36, 28)
MASKS = (LEFT, RIGHT, LOW, HIGH)


def make_runs(root: Path, images: int = 3) -> Path:
    """Run folders with ten prompts each: five of entities, of which the last two are rejected, three of spatial, and
    two negatives."""
    for number in range(images):
        source = save(root / "photos" / f"photo_{number}.png", picture(HEIGHT, WIDTH))
        entities = [prompt(i, (i % 4,), verdict="ACCEPT" if i < 3 else "REJECT") for i in range(5)]
        spatial = [prompt(i, (0, 1), prompt=f"Segment both sides, {i}") for i in range(3)]
        prompts = {"entities": entities, "spatial": spatial}
        folder = our_run(root / "runs", source, f"out_region_refine_{number}", masks=MASKS, prompts=prompts)
        write_negatives(folder, "entities", "ACCEPT", "REJECT")
    return root / "runs"


@contextlib.contextmanager
def serving(runs: Path, *flags: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server's address and its process, which is killed in the end."""
    command = [sys.executable, "-m", "dataengine.cli", "review", str(runs), "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment())
    try:
        assert process.stdout
        told = ""
        for line in process.stdout:
            told += line
            if found := re.search(r"http://\S+/", line):
                yield found[0], process
                break
        else:
            raise AssertionError(f"the server did not start: {told}")
    finally:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def decisions(runs: Path) -> list[Decision]:
    """All that was written in all run folders, in the order it was written."""
    lines = [line for path in runs.glob("*/reviews.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(map(Decision.model_validate_json, lines), key=lambda decision: decision.at)
