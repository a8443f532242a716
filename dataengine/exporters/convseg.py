"""The data set of `train.py` and `eval.py`: images, masks, `dataset.jsonl`, `items.json` and a manifest.

An export is cut off or complete, and says which: the manifest is written first with `complete` false and last
with `complete` true. Exporting again replaces what is still exported and removes what no longer is.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from pydantic import BaseModel

from dataengine.errors import UsageError, output_error
from dataengine.exporters.runs import Run, Sample, find_runs, read_run
from dataengine.images import EXPORT_MANIFEST, RUN_FOLDER_PREFIX
from dataengine.masks import Mask
from dataengine.records import (
    CONCEPTS,
    EvalItem,
    EvalItems,
    ExportCounts,
    ExportedRun,
    ExportManifest,
    ExportMode,
    PathMode,
    TrainRow,
)
from dataengine.run_folder import path_text, write_whole

TRAIN_FILE = "dataset.jsonl"
EVAL_FILE = "items.json"
IMAGES = "images"
MASKS = "masks"
NAME_BYTES = 255  # the longest file name of common file systems
TEMPORARY = ".*.tmp"  # what a killed process may leave of the first file it wrote


def export(
    runs_root: Path,
    out_dir: Path,
    *,
    mode: ExportMode = "both",
    path_mode: PathMode = "relative",
    include_negatives: bool = False,
) -> ExportManifest:
    """Export the accepted prompts of finished run folders, each with an image and a mask of one size.

    A sample's id is `<run name>_<concept>_<prompt index>_<running number>`. The number counts the samples of
    its own run, positives in the order of the concepts and then negatives: another run never changes an id.

    Args:
        runs_root: a folder of run folders, or one run folder.
        out_dir: a new or empty folder, or an earlier export.
        mode: which lists to write: `dataset.jsonl`, `items.json` or both.
        path_mode: paths in these lists relative to `out_dir`, or absolute.
        include_negatives: add accepted prompts of `negatives/<concept>.json`, with all-black masks.

    Raises:
        UsageError: there is nothing to export, or `out_dir` holds something else.
        OutputError: the export cannot be written.
    """
    folders = find_runs(runs_root)
    out = _absolute(out_dir)
    earlier = _earlier_export(out, out_dir)
    manifest = ExportManifest(
        complete=False,
        runs_root=path_text(_absolute(runs_root)),
        out_dir=path_text(out),
        mode=mode,
        path_mode=path_mode,
        include_negatives=include_negatives,
        concepts=list(CONCEPTS),
        discovered_run_dirs=[path_text(folder) for folder in folders],
        counts=ExportCounts(train_rows=0, eval_items=0, copied_images=0, written_masks=0),
        skipped_reason_counts={},
        per_run=[],
        written_files=earlier.written_files if earlier else [],
    )
    return _export(folders, out, manifest, earlier)


def _export(folders: list[Path], out: Path, manifest: ExportManifest, earlier: ExportManifest | None) -> ExportManifest:
    write_whole(out / EXPORT_MANIFEST, _json(manifest))
    writer = _Writer(out, manifest)
    for folder in folders:
        writer.add(read_run(folder, negatives=manifest.include_negatives))
    done = writer.finish()
    if earlier:
        _remove_stale(out, earlier, set(done.written_files))
    write_whole(out / EXPORT_MANIFEST, _json(done))
    return done


class _Writer:
    """An export under way: what has been written, and the rows that are written at its end."""

    def __init__(self, out: Path, manifest: ExportManifest) -> None:
        self._out = out
        self._manifest = manifest
        self._base = f"{out}/" if manifest.path_mode == "absolute" else ""
        self._images: dict[str, str] = {}  # by case-folded name, for file systems that ignore case
        self._masks: list[str] = []
        self._items: list[EvalItem] = []
        self._runs: list[ExportedRun] = []
        self._skipped: Counter[str] = Counter()

    def add(self, run: Run) -> None:
        """Write the image and the masks of one run."""
        self._skipped.update(run.skipped)
        self._runs.append(
            ExportedRun(
                run_dir=path_text(run.folder),
                exported_samples=len(run.samples),
                skipped_in_run=run.skipped.total(),
            )
        )
        if run.image is None:
            return
        image = f"{IMAGES}/{self._image_name(run.folder.name, run.image.suffix)}"
        write_whole(self._out / image, run.image.data)
        for number, sample in enumerate(run.samples):
            self._add_sample(run.folder.name, image, number, sample)

    def _add_sample(self, run_name: str, image: str, number: int, sample: Sample) -> None:
        sample_id = _sample_id(run_name, sample, number)
        mask = f"{MASKS}/{sample_id}.png"
        write_whole(self._out / mask, _mask_png(sample.mask))
        self._masks.append(mask)
        self._items.append(
            EvalItem(
                id=sample_id,
                image=self._base + image,
                mask=self._base + mask,
                prompt=sample.prompt,
                concept=sample.concept,
                negative=True if sample.negative else None,
            )
        )

    def _image_name(self, run_name: str, suffix: str) -> str:
        """A name no other run has: `out_region_refine_a` and `a` must not share one."""
        room = NAME_BYTES - len(suffix)
        digest = hashlib.sha256(os.fsencode(run_name)).hexdigest()[:12]
        for stem in (run_name.removeprefix(RUN_FOLDER_PREFIX) or run_name, run_name, f"{digest}-{run_name}"):
            name = _short(stem, room) + suffix
            if name.casefold() not in self._images:
                break
        self._images[name.casefold()] = name
        return name

    def finish(self) -> ExportManifest:
        """Write the lists that were asked for; returns the complete manifest."""
        lists: dict[str, bytes] = {}
        if self._manifest.mode in ("train", "both"):
            lists[TRAIN_FILE] = b"".join(_train_line(item) for item in self._items)
        if self._manifest.mode in ("eval", "both"):
            items = EvalItems(dataset=self._out.name, count=len(self._items), items=self._items)
            lists[EVAL_FILE] = _json(items)
        for name, data in lists.items():
            write_whole(self._out / name, data)
        images = [f"{IMAGES}/{name}" for name in self._images.values()]
        return self._manifest.model_copy(
            update={
                "complete": True,
                "counts": self._counts(lists),
                "skipped_reason_counts": dict(sorted(self._skipped.items())),
                "per_run": self._runs,
                "written_files": [*images, *self._masks, *lists, EXPORT_MANIFEST],
            }
        )

    def _counts(self, lists: dict[str, bytes]) -> ExportCounts:
        return ExportCounts(
            train_rows=len(self._items) if TRAIN_FILE in lists else 0,
            eval_items=len(self._items) if EVAL_FILE in lists else 0,
            copied_images=len(self._images),
            written_masks=len(self._masks),
        )


# What an earlier export left.


def _earlier_export(out: Path, named: Path) -> ExportManifest | None:
    """The manifest of an earlier export into `out`; None where that is new or empty. Raises UsageError."""
    try:
        str(out).encode()
        if not out.exists():
            return None
        if not out.is_dir():
            raise UsageError(f"--out_dir {named}: not a folder", hint="Choose a new or empty folder")
        if all(fnmatch(entry.name, TEMPORARY) for entry in out.iterdir()):
            return None
        return ExportManifest.model_validate_json((out / EXPORT_MANIFEST).read_bytes())
    except UnicodeEncodeError:
        raise UsageError(f"--out_dir {named}: not a UTF-8 name", hint="Choose another folder") from None
    except PermissionError as error:
        raise UsageError(f"--out_dir {named}: {error.strerror}", hint="Choose another folder") from None
    except (OSError, ValueError):
        message = f"--out_dir {named}: holds files, and no {EXPORT_MANIFEST} of DataEngine"
        raise UsageError(message, hint="Choose a new or empty folder") from None


def _remove_stale(out: Path, earlier: ExportManifest, written: set[str]) -> None:
    """Remove what the earlier export wrote and this one did not.

    One that was cut off has not listed its files, so all else in its two folders goes.
    """
    stale = set(earlier.written_files)
    if not earlier.complete:
        folders = [out / name for name in (IMAGES, MASKS) if (out / name).is_dir()]
        stale.update(f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir())
    for name in sorted(stale - written):
        path = out / name
        if not _is_export_file(name) or (path.parent != out and path.parent.is_symlink()):
            continue
        try:
            if path.is_symlink() or path.is_file():
                path.unlink()
        except OSError as error:
            raise output_error(error, path) from error


def _is_export_file(name: str) -> bool:
    """Whether an export writes files of such a name: a manifest may name anything, also elsewhere."""
    parts = PurePosixPath(name).parts
    return name in (TRAIN_FILE, EVAL_FILE) or (len(parts) == 2 and parts[0] in (IMAGES, MASKS))


# Names and files.


def _sample_id(run_name: str, sample: Sample, number: int) -> str:
    tail = f"_{sample.concept}_{sample.index:03d}_{number:06d}"
    return _short(run_name, NAME_BYTES - len(tail) - len(".png")) + tail


def _short(name: str, room: int) -> str:
    """The name, or its beginning and a digest where it has over `room` bytes or is not UTF-8."""
    raw = os.fsencode(name)
    clean = path_text(Path(name))
    if clean == name and len(raw) <= room:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:12]
    head = clean.encode()[: room - len(digest) - 1].decode("utf-8", "ignore")
    return f"{head}-{digest}"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - keeps symbolic links


def _train_line(item: EvalItem) -> bytes:
    row = TrainRow(image=item.image, mask_merged=item.mask, prompt=item.prompt)
    return row.model_dump_json().encode() + b"\n"


def _json(record: BaseModel) -> bytes:
    return record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def _mask_png(mask: Mask) -> bytes:
    """0 or 255, one 8-bit channel."""
    _, data = cv2.imencode(".png", mask.array().astype(np.uint8) * 255)
    return data.tobytes()
