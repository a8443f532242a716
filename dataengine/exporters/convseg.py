"""The data set of `train.py` and `eval.py`: images, masks, `dataset.jsonl`, `items.json`, a card and a manifest.

An export is cut off or complete, and says which: the manifest is written first with `complete` false and last
with `complete` true. Exporting again replaces what is still exported and removes what no longer is; what has not
changed is not written again (see `state.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from dataengine.agreement import JudgedPrompt, agreement
from dataengine.card import CARD, write_card
from dataengine.errors import UsageError, output_error
from dataengine.exporters.lists import EVAL_FILE, TRAIN_FILE, Lists
from dataengine.exporters.staging import IMAGES, MASKS, image_stems, is_plain_name, mask_path, run_text, stage
from dataengine.exporters.state import STATE_FILE, Staged, StagedSample, State
from dataengine.exporters.workers import PATIENCE, Workers, processors
from dataengine.figures import Counting, ImageSeen, PromptSeen
from dataengine.finished import find_runs
from dataengine.images import EXPORT_MANIFEST
from dataengine.records import (
    CONCEPTS,
    EvalItem,
    ExportCounts,
    ExportedRun,
    ExportManifest,
    ExportMode,
    PathMode,
    ReviewMode,
    Share,
)
from dataengine.run_folder import path_text, write_whole
from dataengine.survey import Tally

TEMPORARY = ".*.tmp"  # what a killed process may leave of the first file it wrote


def export(
    runs_root: Path,
    out_dir: Path,
    *,
    mode: ExportMode = "both",
    path_mode: PathMode = "relative",
    include_negatives: bool = False,
    reviews: ReviewMode = "apply",
    workers: int | None = None,
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
        reviews: a person's word wins over the engine's (`apply`), is not read (`ignore`), or is needed (`only`).
        workers: processes to share the run folders: 1 for this one alone, None for one a processor where there is more
            than a little to do. A script must guard its own work with `if __name__ == "__main__":`, unless it says 1.

    Raises:
        UsageError: there is nothing to export, or `out_dir` holds something else.
        OutputError: the export cannot be written.
        DataEngineError: a worker process was killed.
    """
    folders = find_runs(runs_root, "--runs_root")
    out = _absolute(out_dir)
    earlier = _earlier_export(out, out_dir)
    manifest = ExportManifest(
        complete=False,
        runs_root=path_text(_absolute(runs_root)),
        out_dir=path_text(out),
        mode=mode,
        path_mode=path_mode,
        include_negatives=include_negatives,
        reviews=reviews,
        concepts=list(CONCEPTS),
        discovered_run_dirs=[path_text(folder) for folder in folders],
        counts=ExportCounts(train_rows=0, eval_items=0, copied_images=0, written_masks=0),
        skipped_reason_counts={},
        per_run=[],
        written_files=earlier.written_files if earlier else [],
    )
    pool = Workers(processors(), PATIENCE) if workers is None else Workers(workers, 0)
    return _export(folders, out, manifest, earlier, pool)


def _export(
    folders: list[Path], out: Path, manifest: ExportManifest, earlier: ExportManifest | None, pool: Workers
) -> ExportManifest:
    write_whole(out / EXPORT_MANIFEST, _json(manifest))
    with State(out) as state, Lists(out, manifest.mode) as lists:
        writer = _Writer(out, manifest, lists)
        with pool:
            calls = _calls(folders, out, state, writer.images, manifest)
            for folder, line in zip(folders, pool.results(calls), strict=True):
                writer.add(folder, Staged.model_validate_json(line))
                state.add(line)
        lists.finish()
        state.finish()
    done = writer.manifest()
    write_card(out, done, writer.makers)
    if earlier:
        _remove_stale(out, earlier, set(done.written_files))
    write_whole(out / EXPORT_MANIFEST, _json(done))
    return done


def _calls(
    folders: list[Path], out: Path, state: State, taken: dict[str, str], manifest: ExportManifest
) -> Iterator[tuple[Callable[[], str], bool]]:
    """Staging each run folder, and whether it may be done by a worker.

    Those whose image may have to give way to another run's are done here, when all before them have their names.
    """
    shared = _shared_names(folders)
    for folder in folders:
        call = partial(
            stage,
            folder,
            out,
            negatives=manifest.include_negatives,
            reviews=manifest.reviews,
            earlier=state.earlier(run_text(folder)),
        )
        own_name = is_plain_name(folder.name) and not shared.intersection(_stems(folder))
        yield (call, True) if own_name else (partial(call, taken=taken), False)


def _shared_names(folders: list[Path]) -> set[str]:
    """Names of images that more than one run folder may want, case-folded, for file systems that ignore case."""
    wanted = Counter(stem for folder in folders for stem in _stems(folder))
    return {stem for stem, count in wanted.items() if count > 1}


def _stems(folder: Path) -> set[str]:
    return {stem.casefold() for stem in image_stems(folder.name)}


class _Writer:
    """The lists and the manifest of an export under way."""

    def __init__(self, out: Path, manifest: ExportManifest, lists: Lists) -> None:
        self._manifest = manifest
        self._lists = lists
        self._base = f"{out}/" if manifest.path_mode == "absolute" else ""
        self.images: dict[str, str] = {}  # by case-folded name
        self._masks: list[str] = []
        self._runs: list[ExportedRun] = []
        self._skipped: Counter[str] = Counter()
        self._reviewed: Counter[str] = Counter()
        self._counting = Counting()
        self._judged: list[JudgedPrompt] = []
        self._verdicts: dict[str, Share] = {}
        self._refused: dict[str, Share] = {}
        self._spent = Tally()
        self.makers: Counter[str] = Counter()  # run folders with a sample, by how they were made

    def add(self, folder: Path, staged: Staged) -> None:
        """Add what came of a run folder."""
        self._skipped.update(staged.skipped)
        self._reviewed.update(staged.reviewed)
        self._judged.extend(staged.judged)
        for told, more in ((self._verdicts, staged.verdicts), (self._refused, staged.refused)):
            for concept, share in more.items():
                told[concept] = told.get(concept, Share()) + share
        self._spent.add(staged.usage)
        self._runs.append(
            ExportedRun(
                run_dir=path_text(folder),
                exported_samples=len(staged.samples),
                skipped_in_run=sum(staged.skipped.values()),
            )
        )
        if staged.image is None:
            return
        self.images[staged.image.casefold()] = staged.image
        self.makers[staged.maker] += 1
        self._counting.add(ImageSeen(name=staged.run, prompts=list(map(_seen, staged.samples))))
        for sample in staged.samples:
            self._add_sample(f"{IMAGES}/{staged.image}", sample)

    def _add_sample(self, image: str, sample: StagedSample) -> None:
        mask = mask_path(sample)
        self._masks.append(mask)
        self._lists.add(
            EvalItem(
                id=sample.id,
                image=self._base + image,
                mask=self._base + mask,
                prompt=sample.prompt,
                concept=sample.concept,
                negative=True if sample.negative else None,
            )
        )

    def manifest(self) -> ExportManifest:
        """The complete manifest."""
        names = self._lists.names
        images = [f"{IMAGES}/{name}" for name in self.images.values()]
        agreed = agreement(self._judged, self._verdicts, self._refused, self._spent.usd)
        return self._manifest.model_copy(
            update={
                "complete": True,
                "counts": ExportCounts(
                    train_rows=self._lists.count if TRAIN_FILE in names else 0,
                    eval_items=self._lists.count if EVAL_FILE in names else 0,
                    copied_images=len(self.images),
                    written_masks=len(self._masks),
                ),
                "skipped_reason_counts": dict(sorted(self._skipped.items())),
                "review_counts": dict(sorted(self._reviewed.items())),
                "figures": self._counting.figures().model_copy(update={"agreement": agreed}),
                "per_run": self._runs,
                "written_files": [*images, *self._masks, *names, CARD, STATE_FILE, EXPORT_MANIFEST],
            }
        )


def _seen(sample: StagedSample) -> PromptSeen:
    """A sample, for counting."""
    return PromptSeen(
        concept=sample.concept,
        family=sample.family,
        negative=sample.negative,
        accepted=True,
        text=sample.prompt,
        area=None if sample.negative else sample.area,
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


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - keeps symbolic links


def _json(record: BaseModel) -> bytes:
    return record.model_dump_json(indent=2).encode() + b"\n"
