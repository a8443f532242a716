"""Many images: a few at once, what is done skipped, every failure listed, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dataengine import __version__
from dataengine.basis import basis, fingerprint
from dataengine.errors import DataEngineError, ImageError, KeyRefusedError, OutputError, StageError
from dataengine.images import Photo, read_photo
from dataengine.output_folder import Failures, assign_folders, content_now, source_of
from dataengine.parts import Parts
from dataengine.pipeline import Outcome, process
from dataengine.records import CONCEPTS, Failure, RunRecord, Usage
from dataengine.run_folder import RunFolder, path_text
from dataengine.settings import Settings


@dataclass
class Totals:
    """What a run did."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    regions: int = 0
    accepted: int = 0
    prompts: dict[str, tuple[int, int]] = field(default_factory=dict)
    negatives: tuple[int, int] = (0, 0)
    refused: Counter[str] = field(default_factory=Counter)  # by rule
    failures: Counter[str] = field(default_factory=Counter)  # by reason
    spent: Usage = field(default_factory=Usage)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count a finished image."""
        self.done += 1
        self.regions += outcome.regions
        self.accepted += outcome.accepted
        for concept, counts in outcome.prompts.items():
            self.prompts[concept] = _plus(self.prompts.get(concept, (0, 0)), counts)
        self.refused += outcome.refused
        for counts in outcome.negatives.values():
            self.negatives = _plus(self.negatives, counts)


class Reporter(Protocol):
    """Who is told how a run goes on."""

    def started(self, images: int) -> None:
        """The number of images, those done before included."""
        ...

    def finished(self, image: Path, outcome: Outcome, seconds: float) -> None:
        """An image is done."""
        ...

    def skipped(self, image: Path) -> None:
        """An image was done before."""
        ...

    def failed(self, image: Path, error: DataEngineError) -> None:
        """An image failed; the others go on."""
        ...


async def run(images: Sequence[Path], output_dir: Path, parts: Parts, settings: Settings, reporter: Reporter) -> Totals:
    """Make the run folder of every image that has none yet.

    Raises:
        OutputError: results cannot be written; the images under way are given up, what was finished stays.
        KeyRefusedError: a service refuses the key; likewise.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(os.cpu_count() or 1, "dataengine"))
    started = time.perf_counter()
    reporter.started(len(images))
    totals = Totals()
    failures = Failures(output_dir)
    jobs = zip(images, assign_folders(output_dir, images), strict=True)
    slots = asyncio.Semaphore(settings.concurrency)
    worker = _Worker(jobs, failures, parts, settings, reporter, totals, slots, basis(parts, settings))
    try:
        async with parts, asyncio.TaskGroup() as group:
            for _ in range(min(images_at_once(parts, settings), len(images))):
                group.create_task(worker.work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        with contextlib.suppress(OutputError):  # on a full disk the lines written so far must do
            failures.save()
    totals.seconds = time.perf_counter() - started
    return totals


def images_at_once(parts: Parts, settings: Settings) -> int:
    """How many images are under way together: one a core where all is computed here; else enough to keep the calls
    in flight, of which one image makes about seven at a time in stages that wait for each other."""
    if parts.annotator.local:
        return min(settings.concurrency, os.cpu_count() or 1)
    return max(1, settings.concurrency // 4)


@dataclass
class _Worker:
    """Takes image after image; several work on one list."""

    jobs: Iterator[tuple[Path, RunFolder]]
    failures: Failures
    parts: Parts
    settings: Settings
    reporter: Reporter
    totals: Totals
    slots: asyncio.Semaphore
    basis: dict[str, dict[str, object]]

    async def work(self) -> None:
        for image, folder in self.jobs:
            started = time.perf_counter()
            try:
                outcome = await self._one(image, folder)
            except DataEngineError as error:
                if error.reason == "disk_full" or isinstance(error, KeyRefusedError):
                    raise  # the next image would meet the same
                self._fail(image, error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the run is given up
                self._fail(image, StageError(f"{image}: a part gave up its work", hint="Run again to retry"))
            except Exception as error:  # a fault of ours in one image must not cost the others
                self._fail(image, StageError(f"{image}: {type(error).__name__}: {error}", hint="Please report this"))
            else:
                self.failures.resolve(image)
                if outcome is None:
                    self.totals.skipped += 1
                    self.reporter.skipped(image)
                else:
                    self.totals.add(outcome)
                    self.reporter.finished(image, outcome, time.perf_counter() - started)
            finally:
                self.totals.spent += folder.spent
                folder.release()

    async def _one(self, image: Path, folder: RunFolder) -> Outcome | None:
        if not self.settings.overwrite and await asyncio.to_thread(self._is_done, image, folder):
            return None
        photo = await asyncio.to_thread(read_photo, image, self.settings.max_side, self.settings.vlm_side)
        if self.settings.overwrite:  # not before the photo is read: one that cannot be costs no earlier results
            await asyncio.to_thread(folder.clear)
        record = await asyncio.to_thread(self._record, photo, folder)
        folder.journal.slots = self.slots
        return await process(photo, folder, record, self.parts, self.settings)

    def _is_done(self, image: Path, folder: RunFolder) -> bool:
        if folder.record is None or not folder.record.complete:
            return False
        content = content_now(image, folder.record.source)
        if content is None:
            return False
        mark = fingerprint(content, self.basis)
        return folder.is_complete(mark, self.settings.concepts, self.settings.negatives)

    def _record(self, photo: Photo, folder: RunFolder) -> RunRecord:
        mark = fingerprint(photo.sha256, self.basis)
        earlier = folder.record.concepts if folder.record and folder.record.fingerprint == mark else []
        return RunRecord(
            dataengine=__version__,
            complete=False,
            fingerprint=mark,
            source=source_of(photo),
            concepts=[c for c in CONCEPTS if c in {*earlier, *self.settings.concepts}],
            parts=self.parts.records(),
            prompt_digests=prompt_digests(self.parts),
            basis=self.basis,
            settings=self.settings.model_dump(mode="json"),
            note="Unfinished: run the same command again to go on.",
        )

    def _fail(self, image: Path, error: DataEngineError) -> None:
        stage = error.stage or ("read" if isinstance(error, ImageError) else "run")
        self.totals.failed += 1
        self.totals.failures[error.reason] += 1
        self.failures.add(Failure(image=path_text(image), stage=stage, reason=error.reason, message=str(error)))
        self.reporter.failed(image, error)


def prompt_digests(parts: Parts) -> dict[str, str]:
    """SHA-256 of each prompt template that the annotator uses."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.annotator.templates.items()}


def _plus(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
