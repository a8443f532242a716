"""`dataengine export` against the published exporter's schedule, on made-up run folders.

    python -m benchmarks.export --folders 400
    python -m benchmarks.export --folders 400 4000

The published schedule is written here for the comparison, with what the published exporter works with (Pillow and
NumPy): for each accepted prompt each satisfying mask is read from its PNG, the union is made and written as a PNG, one
after another, and the image is copied once for each run folder.

A run folder has a photo, 7 regions and 15 accepted prompts (and 5 rejected ones) in 5 concepts; each prompt means 1 or
2 regions. There are a few kinds of run folders, whose photos and masks differ; all others are copies of these, with
hard links for the masks and a photo of their own. Our side runs in a process of its own, so that its memory can be told
from that of the benchmark: the peak of that process and of the largest worker.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

from dataengine.exporters.workers import processors
from dataengine.records import CONCEPTS

KINDS = 24
PICTURES = ("coffee", "astronaut", "chelsea", "rocket")
REGIONS = 7
PROMPTS = 3  # accepted, in each of five concepts
BYTES_A_FOLDER = 3 << 20  # in the run folder, its photo and two exports
OURS = """
import json, resource, sys, time
from pathlib import Path
from dataengine.exporters import exporter
if __name__ == "__main__":
    began = time.perf_counter()
    counts = exporter("convseg")(Path(sys.argv[1]), Path(sys.argv[2])).counts
    seconds = time.perf_counter() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    print(json.dumps([counts.written_masks, seconds, cpu, int(peak.split()[1]) / 1024, used[1].ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Outcome:
    """One export: samples, seconds of the clock and of all processors together, start-up of ours included in these.

    Attributes:
        main_mib, worker_mib: peak resident size of our main process and of its largest worker.
    """

    samples: int
    seconds: float
    cpu: float
    main_mib: float = 0.0
    worker_mib: float = 0.0

    @property
    def rate(self) -> float:
        return self.samples / self.seconds


# Run folders.


def make_kind(folder: Path, number: int, width: int, height: int) -> None:
    """A photo and the masks of a kind of run folders."""
    rng = np.random.default_rng(number)
    picture = cv2.resize(getattr(data, PICTURES[number % len(PICTURES)])(), (width, height))
    picture = np.roll(picture, int(rng.integers(width)), axis=1)
    masks = folder / "accepted_regions" / "masks"
    masks.mkdir(parents=True)
    Image.fromarray(picture).save(folder / "photo.jpg", quality=92)
    entries = []
    for index in range(REGIONS):
        mask = blob(rng, width, height)
        name = f"accepted_regions/masks/{index:03d}_mask"
        cv2.imwrite(str(folder / f"{name}.png"), mask, [cv2.IMWRITE_PNG_COMPRESSION, 3])
        paths = {"path": "", "mask_path": f"{name}.png", "mask_npz_path": f"{name}.npz"}
        entries.append({"index": index, "label": f"thing {index}", "bbox": [0, 0, 1, 1], **paths})
    (folder / "accepted_regions" / "accepted.json").write_text(json.dumps(entries))


def blob(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.uint8]:
    """An ellipse with an uneven edge (H, W), 0 or 255, of 3 to 30 % of the image."""
    noise = cv2.resize(rng.random((24, 32)), (width, height), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.mgrid[0:height, 0:width]
    (x, y), radius = rng.random(2) * (width, height), rng.uniform(0.2, 0.6)
    away = np.hypot((columns - x) / width, (rows - y) / height)
    inside: npt.NDArray[np.bool_] = away + 0.3 * (noise - 0.5) < radius / 2
    return inside.astype(np.uint8) * np.uint8(255)


def clone(kind: Path, root: Path, number: int) -> None:
    """Another run folder of a kind, with a photo of its own."""
    photo = root / "photos" / f"{number:05d}.jpg"
    shutil.copyfile(kind / "photo.jpg", photo)
    folder = root / "runs" / f"out_region_refine_{number:05d}"
    shutil.copytree(kind / "accepted_regions", folder / "accepted_regions", copy_function=os.link)
    digest = hashlib.sha256(photo.read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps({"source": {"path": str(photo), "sha256": digest}}))
    for position, concept in enumerate(CONCEPTS):
        prompts = [prompt(concept, index, position) for index in range(PROMPTS + 1)]
        (folder / concept).mkdir()
        summary = {"image_path": str(photo), "prompt_verifications": prompts}
        (folder / concept / "summary.json").write_text(json.dumps(summary))


def prompt(concept: str, index: int, position: int) -> dict[str, object]:
    first = (index + 2 * position) % REGIONS
    satisfying = [first, (first + 3) % REGIONS] if index % 2 else [first]
    verdict = "ACCEPT" if index < PROMPTS else "REJECT"
    text = f"Segment what is meant by number {index} of {concept}"
    return {"index": index, "prompt": text, "satisfying": satisfying, "verdict": verdict, "reason": ""}


def make_runs(root: Path, folders: int, width: int, height: int) -> None:
    (root / "photos").mkdir(parents=True)
    for number in range(min(KINDS, folders)):
        make_kind(root / "kinds" / str(number), number, width, height)
    for number in range(folders):
        clone(root / "kinds" / str(number % KINDS), root, number)


# The two sides.


def run_published(runs: Path, out: Path, folders: int) -> Outcome:
    """The published schedule, on the first of the run folders."""
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    (out / "images").mkdir(parents=True)
    (out / "masks").mkdir()
    rows = []
    for folder in sorted(runs.iterdir())[:folders]:
        regions = {r["index"]: r for r in json.loads((folder / "accepted_regions" / "accepted.json").read_text())}
        image = None
        for concept in CONCEPTS:
            summary = json.loads((folder / concept / "summary.json").read_text())
            if image is None:
                image = Path(shutil.copy2(summary["image_path"], out / "images"))
            for entry in summary["prompt_verifications"]:
                if entry["verdict"] != "ACCEPT" or not entry["satisfying"]:
                    continue
                masks = [np.array(Image.open(folder / regions[i]["mask_path"])) > 0 for i in entry["satisfying"]]
                union = np.logical_or.reduce(masks)
                mask = f"masks/{folder.name}_{concept}_{entry['index']:03d}_{samples:06d}.png"
                Image.fromarray(union.astype(np.uint8) * 255).save(out / mask)
                rows.append({"image": f"images/{image.name}", "mask_merged": mask, "prompt": entry["prompt"]})
                samples += 1
    (out / "dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Outcome(samples, time.perf_counter() - began, time.process_time() - cpu)


def run_ours(runs: Path, out: Path) -> Outcome:
    """`dataengine export`, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", OURS, runs, out], capture_output=True, text=True, check=True)
    return Outcome(*json.loads(done.stdout))


# The comparison.


def report(name: str, outcome: Outcome) -> None:
    memory = f", peak {outcome.main_mib:.0f} MiB and {outcome.worker_mib:.0f} MiB a worker" if outcome.main_mib else ""
    cpu = f"{1000 * outcome.cpu / outcome.samples:.2f} CPU ms each"
    print(
        f"  {name:22} {outcome.samples:6d} samples {outcome.seconds:7.1f} s {outcome.rate:7.1f} a second, {cpu}{memory}"
    )


def files_of(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file but the manifest, by name."""
    entries = ((p, p.stat()) for p in sorted(out.rglob("*")) if p.is_file() and p.name != "export_manifest.json")
    return {str(p.relative_to(out)): (s.st_ino, s.st_mtime_ns) for p, s in entries}


def agreement(ours: Path, published: Path) -> int:
    """How many masks of the published schedule are ours too, pixel for pixel; raises where one is not."""
    rows = zip(*((out / "dataset.jsonl").read_text().splitlines() for out in (published, ours)), strict=False)
    count = 0
    for theirs, mine in ((json.loads(a), json.loads(b)) for a, b in rows):
        with Image.open(published / theirs["mask_merged"]) as first, Image.open(ours / mine["mask_merged"]) as second:
            if theirs["prompt"] != mine["prompt"] or not np.array_equal(np.asarray(first), np.asarray(second)):
                raise SystemExit(f"{mine['mask_merged']}: not what the published schedule makes")
        count += 1
    return count


def compare(folders: int, options: argparse.Namespace, root: Path) -> Outcome:
    if shutil.disk_usage(root).free < 2 * folders * BYTES_A_FOLDER:
        raise SystemExit(f"{root}: too little free space for {folders} run folders")
    make_runs(root, folders, options.width, options.height)
    print(f"{folders} run folders, photos of {options.width}x{options.height}, {processors()} processors:")
    published = run_published(root / "runs", root / "published", min(folders, options.published))
    report("published schedule", published)
    fresh = run_ours(root / "runs", root / "ours")
    report("ours", fresh)
    before = files_of(root / "ours")
    again = run_ours(root / "runs", root / "ours")
    report("ours, nothing changed", again)
    rewritten = sum(before[name] != now for name, now in files_of(root / "ours").items())
    same = agreement(root / "ours", root / "published")
    print(
        f"  {fresh.rate / published.rate:.1f} times the samples per second; {rewritten} files written again where "
        f"nothing had changed; {same} masks compared with the published schedule's, all equal"
    )
    return fresh


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folders", type=int, nargs="+", default=[100, 400], help="run folders, 15 samples each")
    parser.add_argument("--published", type=int, default=200, help="run folders for the published schedule, at most")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=960)
    parser.add_argument("--folder", type=Path, help="where to make them (default: the system's temporary folder)")
    options = parser.parse_args(arguments)
    peaks = {}
    for folders in options.folders:
        with tempfile.TemporaryDirectory(dir=options.folder) as root:
            fresh = compare(folders, options, Path(root))
        peaks[folders] = fresh.main_mib + fresh.worker_mib * processors()
    print("Memory, all processes together: " + ", ".join(f"{n} folders {mib:.0f} MiB" for n, mib in peaks.items()))


if __name__ == "__main__":
    main()
