"""Output folders at size: `dataengine status`, and `dataengine run` where everything is done.

    python -m benchmarks.status --folders 100000

Makes up an output folder with a run folder for each of so many photos, by linking to the files of one that the offline
preset really made. Each has a `run.json` of its own, as large as one of the preset `standard` with its model, templates
and costs; some are unfinished and have a whole journal instead. Then, each in a child process with the files in the
cache: the status of all; what the run's `--explain` says; and the run itself once all are complete, which has nothing
to do but find that out. The photos are links to one file, so nothing is decoded. Making 100,000 folders takes minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rig import Claims, make_photos, run_child
from dataengine.prompts import TEMPLATES
from dataengine.records import CONCEPTS, Usage
from dataengine.settings import QUESTIONS

MOST_SECONDS = 10.0
LINKED = ("original_image.png", "all_regions_colored.png", "accepted_regions", "negatives", *CONCEPTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folders", type=int, default=100_000)
    parser.add_argument("--unfinished", type=float, default=0.02, help="share of folders with a journal (0.02)")
    parser.add_argument("--folder", type=Path, help="where to make them (default: the system's temporary folder)")
    options = parser.parse_args(arguments)
    claims = Claims()
    root = Path(tempfile.mkdtemp(prefix="status_", dir=options.folder))
    try:
        measure(root, options, claims)
    finally:
        shutil.rmtree(root)
    return claims.code


def measure(root: Path, options: argparse.Namespace, claims: Claims) -> None:
    """Make up the folders and time the commands."""
    count, unfinished = options.folders, round(options.folders * options.unfinished)
    began = time.perf_counter()
    kind = make_kind(root)
    record = full_size(json.loads((kind / "run.json").read_bytes()))
    (root / "photos").mkdir()
    for number in range(count):
        make_folder(root, record, number, complete=number >= unfinished)
    journal = (kind / "journal.jsonl").stat().st_size // 1000
    size = len(json.dumps(record, indent=2)) // 1000
    print(f"{count:,} run folders ({unfinished:,} unfinished), run.json {size} KB, journal {journal} KB: made in "
          f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    out, photos = root / "runs", root / "photos"
    run = ["run", "--input", str(photos), "--output_dir", str(out), "--preset", "offline"]

    for _ in range(2):  # the first fills the cache
        ended = run_child(["status", str(out), "--json"])
    found = json.loads(ended.output)
    whole = (found["done"], found["waiting"]) == (count - unfinished, {"unfinished": unfinished} if unfinished else {})
    text = f"status: {ended.seconds:.1f} s (< {MOST_SECONDS:.0f}), {ended.cpu_seconds:.1f} s CPU"
    claims.check(whole and ended.seconds < MOST_SECONDS, f"{text}, peak {ended.peak_mib:.0f} MiB")

    ended = run_child([*run, "--explain"])
    print(f"run --explain: {ended.seconds:.1f} s, {ended.cpu_seconds:.1f} s CPU, peak {ended.peak_mib:.0f} MiB")
    for number in range(unfinished):
        write_record(root, record, number, complete=True)
    ended = run_child(run)
    text = f"run, all done: {ended.seconds:.1f} s, {ended.cpu_seconds:.1f} s CPU, peak {ended.peak_mib:.0f} MiB"
    claims.check(ended.code == 0 and f"0 done, 0 failed, {count} done before" in ended.output, text)


def make_kind(root: Path) -> Path:
    """A photo, and its run folder as the engine makes it."""
    (photo,) = make_photos(root / "one", 1, (640, 480)).iterdir()
    ended = run_child(["run", "-i", str(photo), "-o", str(root / "one"), "--preset", "offline"])
    if ended.code:
        raise SystemExit(f"the run failed:\n{ended.last_lines}")
    photo.rename(root / "photo.jpg")
    return next((root / "one").glob("*/run.json")).parent.rename(root / "kind")


def full_size(record: dict[str, Any]) -> dict[str, Any]:
    """The record, with what a model, its templates and its calls add to it."""
    asked = {
        "model": ["google:gemini-flash-latest", None, "native"],
        "safety": "high",
        "temperature": 0.7,
        "thinking": "auto",
        "templates": "0" * 16,
    }
    basis = {s: {**fields, **asked} if "annotator" in fields else fields for s, fields in record["basis"].items()}
    spent = Usage(input_tokens=12_345, output_tokens=678, usd=0.0123, calls=7).model_dump()
    digests = dict.fromkeys(TEMPLATES, "0" * 64)
    return {**record, "basis": basis, "usage": dict.fromkeys(QUESTIONS, spent), "prompt_digests": digests}


def make_folder(root: Path, record: dict[str, Any], number: int, *, complete: bool) -> None:
    """A photo and its run folder."""
    folder = folder_of(root, number)
    folder.mkdir(parents=True)
    for name in (*LINKED, *(() if complete else ("journal.jsonl",))):
        (folder / name).symlink_to(f"../../kind/{name}")
    photo_of(root, number).symlink_to("../photo.jpg")
    write_record(root, record, number, complete=complete)


def write_record(root: Path, record: dict[str, Any], number: int, *, complete: bool) -> None:
    """A folder's `run.json`."""
    source = {**record["source"], "path": str(photo_of(root, number))}
    usage = record["usage"] if complete else {}
    text = json.dumps({**record, "complete": complete, "source": source, "usage": usage}, indent=2)
    (folder_of(root, number) / "run.json").write_text(text)


def folder_of(root: Path, number: int) -> Path:
    """The run folder of a photo."""
    return root / "runs" / f"out_region_refine_{number:06d}"


def photo_of(root: Path, number: int) -> Path:
    """A photo."""
    return root / "photos" / f"{number:06d}.jpg"


if __name__ == "__main__":
    raise SystemExit(main())
