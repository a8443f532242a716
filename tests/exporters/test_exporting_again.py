"""An export made again, by several processes, or after a kill is the export a new folder would get; what has not
changed is not written again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dataengine.card import CARD
from dataengine.errors import OutputError
from dataengine.exporters import convseg, runs, staging, state
from dataengine.exporters.convseg import export
from dataengine.exporters.state import STATE_FILE
from dataengine.records import CONCEPTS, ExportManifest
from dataengine.run_folder import write_whole
from tests.exporters.folders import (
    LEFT,
    RIGHT,
    Prompt,
    box,
    our_run,
    picture,
    prompt,
    save,
    write_masks,
    write_negatives,
)

MANIFEST = "export_manifest.json"


def make_run(root: Path, name: str, seed: int) -> Path:
    """A run folder with its own photo, two or three regions, and a few prompts, some accepted."""
    rng = random.Random(seed)
    rgb = np.roll(picture(), seed, axis=1)
    source = save(root / "photos" / f"{name[:40]}.png", rgb)
    masks = [LEFT, RIGHT, box(20, 3, 20 + seed % 9 + 1, 9)]
    prompts = {concept: some_prompts(rng) for concept in CONCEPTS}
    prompts["entities"].append(prompt(9))
    folder = our_run(root / "runs", source, name, rgb=rgb, masks=masks, prompts=prompts)
    write_negatives(folder, "physics", "ACCEPT", "REJECT")
    return folder


def some_prompts(rng: random.Random) -> list[Prompt]:
    verdicts = [rng.choice(["ACCEPT", "ACCEPT", "REJECT"]) for _ in range(rng.randint(0, 3))]
    return [prompt(i, rng.sample(range(3), rng.randint(1, 2)), verdict=v) for i, v in enumerate(verdicts)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Run folders, among them two that want one name for their image."""
    for seed, name in enumerate(["a", "out_region_refine_A", "out_region_refine_b", "out_region_refine_c", "n" * 255]):
        make_run(tmp_path, name, seed)
    return tmp_path


def files_of(out: Path) -> dict[str, bytes]:
    """Every file, the manifest without the name of the export's own folder."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    files[MANIFEST] = files[MANIFEST].replace(json.dumps(str(out)).encode(), b"out")
    return files


def stamps_of(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file but the manifest."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name != MANIFEST]
    return {str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def assert_like_new(root: Path, out: Path, **options: Any) -> None:
    """Whether a new export is the same, byte for byte, the state included."""
    fresh = root / "fresh" / out.name
    shutil.rmtree(fresh.parent, ignore_errors=True)
    export(root / "runs", fresh, **options)
    assert files_of(out) == files_of(fresh)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# Only what changed is written.


def test_nothing_is_written_again_where_nothing_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = root / "out"
    export(root / "runs", out)
    before = stamps_of(out)
    monkeypatch.setattr(staging, "read_run", None)  # nor decoded
    export(root / "runs", out)
    assert stamps_of(out) == before


def test_another_list_leaves_images_and_masks_as_they_are(root: Path) -> None:
    out = root / "out"
    export(root / "runs", out)
    before = stamps_of(out)
    export(root / "runs", out, path_mode="absolute", mode="train")
    after = stamps_of(out)
    assert {name for name in after if after[name] != before[name]} == {"dataset.jsonl"}
    export(root / "runs", out)
    assert_like_new(root, out)


def test_only_files_of_a_changed_run_are_written_and_of_these_only_those_that_differ(root: Path) -> None:
    out = root / "out"
    folder = root / "runs" / "out_region_refine_b"
    edit(folder / "entities" / "summary.json", lambda s: s.update(prompt_verifications=[prompt(0), prompt(1, (1,))]))
    export(root / "runs", out)
    before = stamps_of(out)
    edit(folder / "entities" / "summary.json", lambda s: s["prompt_verifications"][1].update(satisfying=[0, 1]))
    export(root / "runs", out)
    after = stamps_of(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"masks/out_region_refine_b_entities_001_000001.png", CARD, STATE_FILE}
    assert_like_new(root, out)


@pytest.mark.parametrize("harm", ["missing", "cut", "other", "link"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_of_the_export_that_was_harmed_is_written_again(root: Path, kind: str, harm: str) -> None:
    out = root / "out"
    export(root / "runs", out)
    path = sorted((out / kind).iterdir())[0]
    data = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(data[:-1])
    if harm == "other":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size
    if harm == "link":
        (root / "elsewhere").write_bytes(data)
        path.symlink_to(root / "elsewhere")
    export(root / "runs", out)
    assert not path.is_symlink()
    assert_like_new(root, out)


def touch_summary(root: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(root.glob("runs/*/*/summary.json")))
    entries = [prompt(i, rng.sample(range(3), 2), verdict=rng.choice(["ACCEPT", "REJECT"])) for i in range(3)]
    edit(path, lambda summary: summary.update(prompt_verifications=entries))


def touch_mask(root: Path, rng: random.Random) -> None:
    """Masks of the same number of bytes, and with the old time: nothing but their content tells."""
    path = rng.choice(sorted(root.glob("runs/*/accepted_regions/masks/*.png")))
    before = path.stat()
    x = rng.randrange(30)
    write_masks(root / "spare", [box(x, 4, x + 9, 20)])
    path.write_bytes((root / "spare" / "accepted_regions" / "masks" / "000_mask.png").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch_photo(root: Path, rng: random.Random) -> None:
    save(rng.choice(sorted(root.glob("photos/*.png"))), np.roll(picture(), rng.randrange(60), axis=1))


def lose_photo(root: Path, rng: random.Random) -> None:
    rng.choice(sorted(root.glob("photos/*.png"))).unlink()


def lose_mask(root: Path, rng: random.Random) -> None:
    rng.choice(sorted(root.glob("runs/*/accepted_regions/masks/*.png"))).unlink()


def touch_negatives(root: Path, rng: random.Random) -> None:
    write_negatives(rng.choice(sorted(root.glob("runs/*"))), rng.choice(CONCEPTS), "ACCEPT", "ACCEPT")


def lose_run(root: Path, rng: random.Random) -> None:
    shutil.rmtree(rng.choice(sorted(root.glob("runs/*"))))


def gain_run(root: Path, rng: random.Random) -> None:
    name = rng.choice(["A", "a", "B", "out_region_refine_a", "z", "n" * 254 + "m", "out_region_refine_b2"])
    shutil.rmtree(root / "runs" / name, ignore_errors=True)
    make_run(root, name, rng.randrange(40))


def harm_export(root: Path, rng: random.Random) -> None:
    rng.choice(sorted((root / "out").rglob("*.png"))).write_bytes(b"harmed")


def harm_state(root: Path, rng: random.Random) -> None:
    path = root / "out" / STATE_FILE
    data = path.read_bytes()
    path.write_bytes(rng.choice([b"", b"{}\n", data[: rng.randrange(len(data))], data.replace(b'"run":', b'"run"')]))


CHANGES = (
    touch_summary, touch_mask, touch_photo, lose_photo, lose_mask, touch_negatives, gain_run, lose_run, harm_export,
    harm_state,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_after_any_changes_an_export_is_like_a_new_one(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    out = root / "out"
    export(root / "runs", out)
    for _ in range(4):
        for change in rng.sample(CHANGES, rng.randint(1, 3)):
            with contextlib.suppress(IndexError):  # nothing is left to lose
                change(root, rng)
        gain_run(root, rng)
        options: dict[str, Any] = {
            "include_negatives": rng.random() < 0.5,
            "mode": rng.choice(["train", "eval", "both"]),
        }
        export(root / "runs", out, **options)
        assert_like_new(root, out, **options)


def test_a_relative_photo_is_looked_for_from_where_the_export_is_made(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "runs" / "out_region_refine_b"
    for path in folder.glob("*/summary.json"):
        edit(path, lambda summary: summary.update(image_path="photos/out_region_refine_b.png"))
    out = root / "out"
    monkeypatch.chdir(root)
    export(root / "runs", out)
    (root / "photos" / "out_region_refine_b.png").rename(root / "photos" / "elsewhere.png")
    (root / "other").mkdir()
    monkeypatch.chdir(root / "other")
    export(root / "runs", out)
    assert_like_new(root, out)


@pytest.mark.parametrize("what", ["VERSION", "cv2"])
def test_another_version_of_what_made_it_makes_it_again(root: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    out = root / "out"
    export(root / "runs", out)
    read: list[Path] = []

    def counted(folder: Path, **how: Any) -> runs.Run:
        read.append(folder)
        return runs.read_run(folder, **how)

    monkeypatch.setattr(staging, "read_run", counted)
    export(root / "runs", out)
    assert not read
    if what == "VERSION":
        monkeypatch.setattr(state, "VERSION", -1)
    else:
        monkeypatch.setattr(cv2, "__version__", "0")
    export(root / "runs", out)
    assert len(read) == 5


# Cut off, and made again.


@pytest.mark.parametrize("after", [1, 2, 4, 6, 9, 14])
def test_a_cut_off_export_goes_on_and_believes_nothing_it_should_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Changed, exported half, and changed back: what the older state says of the files is no longer true."""
    out, rng = root / "out", random.Random(after)
    export(root / "runs", out)
    shutil.copytree(root / "runs", root / "kept")
    for _ in range(3):
        touch_summary(root, rng)
        touch_mask(root, rng)
    left = [after]

    def limited(path: Path, data: bytes, **how: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write_whole(path, data, **how)

    with monkeypatch.context() as patch:
        for module in (convseg, staging):
            patch.setattr(module, "write_whole", limited)
        try:
            export(root / "runs", out)
        except KeyboardInterrupt:
            assert not json.loads((out / MANIFEST).read_text())["complete"]
    shutil.rmtree(root / "runs")
    (root / "kept").rename(root / "runs")
    export(root / "runs", out)
    assert_like_new(root, out)


def test_what_a_cut_off_export_finished_is_not_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = root / "out"
    read: list[str] = []

    def counted(folder: Path, **how: Any) -> runs.Run:
        read.append(folder.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return runs.read_run(folder, **how)

    monkeypatch.setattr(staging, "read_run", counted)
    with pytest.raises(KeyboardInterrupt):
        export(root / "runs", out)
    export(root / "runs", out)
    assert read == [*sorted(read[:3]), *read[2:3], *sorted(read[4:])]
    assert len(read) == 6
    assert_like_new(root, out)


KILLED = """
import sys
from pathlib import Path
from dataengine.exporters.convseg import export
if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_an_export_killed_in_its_workers_can_be_made_again(root: Path, tmp_path: Path) -> None:
    for number in range(40):
        make_run(root, f"out_region_refine_{number:03d}", number)
    script, out = tmp_path / "killed.py", root / "out"
    script.write_text(KILLED)
    for files in (5, 70):
        process = subprocess.Popen([sys.executable, str(script), str(root / "runs"), str(out)], stderr=subprocess.PIPE)
        while process.poll() is None and len(list(out.rglob("*.png"))) < files:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    export(root / "runs", out, workers=2)
    assert_like_new(root, out)


# Several processes.


def test_worker_processes_write_what_one_process_writes(root: Path) -> None:
    make_run(root, "out_region_refine_a", 9)
    manifests = [export(root / "runs", root / str(workers) / "out", workers=workers) for workers in (1, 2)]
    assert files_of(root / "1" / "out") == files_of(root / "2" / "out")
    assert manifests[0].per_run == manifests[1].per_run
    before = stamps_of(root / "2" / "out")
    assert export(root / "runs", root / "2" / "out", workers=2) == manifests[1]
    assert stamps_of(root / "2" / "out") == before


def test_a_disk_that_fills_up_under_a_worker_is_one_clear_line_and_leaves_no_half_export(root: Path) -> None:
    out = root / "out"
    (out / "masks").mkdir(parents=True)
    (out / MANIFEST).write_text(export(root / "runs", root / "other").model_dump_json())
    shutil.rmtree(out / "masks")
    (out / "masks").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*masks/.*\.png"):
        export(root / "runs", out, workers=2)
    assert not ExportManifest.model_validate_json((out / MANIFEST).read_bytes()).complete
    assert not [p.name for p in out.iterdir() if p.name.endswith((".tmp", ".whole"))]
    (out / "masks").unlink()
    export(root / "runs", out, workers=2)
    assert_like_new(root, out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_run_folder_is_counted_and_the_others_are_exported(root: Path, workers: int) -> None:
    folder = make_run(root, "out_region_refine_c", 7)
    (folder / "accepted_regions" / "accepted.json").write_text("{")
    manifest = export(root / "runs", root / "out", workers=workers)
    assert manifest.complete
    assert manifest.skipped_reason_counts["accepted_json_unreadable"] > 0
    assert [run.exported_samples > 0 for run in manifest.per_run] == [
        run.run_dir != str(folder) for run in manifest.per_run
    ]


# Many run folders.


def test_run_folders_are_held_a_few_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is written, listed and forgotten before the next is read."""
    alive, most = [0], [0]

    class Tracked(runs.Run):
        def __init__(self, run: runs.Run) -> None:
            super().__init__(**vars(run))
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    def tracked(folder: Path, **how: Any) -> runs.Run:
        return Tracked(runs.read_run(folder, **how))

    for number in range(20):
        make_run(root, f"out_region_refine_{number:03d}", number)
    monkeypatch.setattr(staging, "read_run", tracked)
    export(root / "runs", root / "out", workers=1)
    assert most[0] == 1
