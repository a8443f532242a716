"""Many images: a few at once, what is done skipped, every failure listed, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2

from dataengine import __version__, limits
from dataengine.basis import Basis, basis, fingerprint
from dataengine.errors import (
    DataEngineError,
    ImageError,
    KeyRefusedError,
    OutputError,
    StageError,
    StoppedError,
    UsageError,
)
from dataengine.images import Photo, read_photo
from dataengine.leases import Owner
from dataengine.limits import Limits
from dataengine.output_folder import Failures, remember, source_of
from dataengine.parts import Parts
from dataengine.pipeline import Outcome, process
from dataengine.records import CONCEPTS, Failure, RunRecord, Usage
from dataengine.run_folder import SUMMARY, RunFolder, path_text
from dataengine.settings import Settings
from dataengine.survey import Tally, surveyed
from dataengine.todo import Todo

GARBAGE = 10_000  # objects made between two looks for garbage; Python's own is 700
GRACE = 2.5  # seconds that calls under way are given to end in, when the run is interrupted


@dataclass
class Totals:
    """What a run did; `waiting` images were neither done nor failed, since it was `stopped`."""

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
    waiting: int = 0
    stopped: StoppedError | None = None

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

    def skipped(self, images: Sequence[Path]) -> None:
        """Images that were done before, or by another process since."""
        ...

    def failed(self, image: Path, error: DataEngineError) -> None:
        """An image failed; the others go on."""
        ...


async def run(
    images: Sequence[Path],
    output_dir: Path,
    parts: Parts,
    settings: Settings,
    reporter: Reporter,
    *,
    ask_blocked: bool = False,
) -> Totals:
    """Make the run folder of every image that has none yet.

    Other processes may work in the same output folder: each image is one's. A run that is stopped, by its budget or by
    Ctrl-C or SIGTERM, begins nothing more and lets what is under way end; `stopped` of its totals says why.

    Args:
        ask_blocked: ask again for what a service blocked before.

    Raises:
        OutputError: results cannot be written; the images under way are given up, what was finished stays.
        KeyRefusedError: a service refuses the key; likewise.
        UsageError: another process works there and one of the two keeps a budget.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(os.cpu_count() or 1, "dataengine"))
    started = time.perf_counter()
    reporter.started(len(images))
    budget = settings.budget_usd is not None or settings.budget_tokens is not None
    with Owner(output_dir, alone=budget) as owner:
        with owner.locked():
            remember(output_dir, images, settings)
        bounds = Limits(settings, await asyncio.to_thread(spent, output_dir, settings) if budget else None)
        limits.observe(bounds)
        failures = Failures(output_dir, owner.locked)
        rests_on = basis(parts, settings)
        todo = Todo(images, output_dir, owner, settings, rests_on)
        worker = _Worker(todo, rests_on, failures, parts, settings, reporter, Totals(), bounds, ask_blocked)
        try:
            await _work(worker, min(images_at_once(parts, settings), len(images)))
        finally:
            with contextlib.suppress(OutputError):  # on a full disk the lines written so far must do
                failures.save()
    totals = worker.totals
    totals.stopped = bounds.stopped
    totals.waiting = len(images) - totals.done - totals.failed - totals.skipped
    totals.seconds = time.perf_counter() - started
    return totals


async def _work(worker: _Worker, at_once: int) -> None:
    try:
        with _interruptible(worker.limits):
            async with worker.parts:
                with _undisturbed():  # now that all is imported
                    async with asyncio.TaskGroup() as group:
                        for _ in range(at_once):
                            group.create_task(worker.work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if worker.limits.stopped is None or task is None or task.uncancel():
            raise  # not ours


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """While inside, the garbage collector passes over what is there already and looks less often, since a full
    collection holds up the event loop; and OpenCV starts no threads beside ours, which then wait for each other."""
    thresholds, threads = gc.get_threshold(), cv2.getNumThreads()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, *thresholds[1:])
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def spent(output_dir: Path, settings: Settings) -> Usage:
    """What all that is in an output folder has cost.

    Raises:
        UsageError: a budget in USD is to be kept, and what earlier calls cost is unknown, also by `--price`.
    """
    cost = Tally()
    for folder in surveyed(output_dir):
        for usage in folder.usage.values():
            usd = usage.usd
            if usd is None and usage.input_tokens:
                usd = settings.priced(usage.input_tokens, usage.output_tokens)
            cost.add(Usage(**{**vars(usage), "usd": usd}))
    if cost.usd is None and settings.budget_usd is not None:
        message = f"--budget_usd cannot be kept: what earlier calls in {output_dir} cost is unknown"
        raise UsageError(message, hint="Say it with --price, use --budget_tokens, or name another --output_dir")
    return cost.usage


@contextlib.contextmanager
def _interruptible(bounds: Limits) -> Iterator[None]:
    """While inside, Ctrl-C and SIGTERM stop the run; after a grace, or the second time, all is given up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt(number: int) -> None:
        name = signal.Signals(number).name
        if timers:
            give_up()
            return
        hint = "Run the same command again to go on where it was"
        bounds.stop(StoppedError(f"interrupted ({name})", hint=hint, reason="interrupted", exit_code=128 + number))
        timers.append(loop.call_later(GRACE, give_up))

    def give_up() -> None:
        if not task.cancelling():  # once: what is cancelled twice is not ours to take back
            task.cancel()

    timers: list[asyncio.TimerHandle] = []
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            loop.add_signal_handler(number, interrupt, number)
            handled.append(number)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number in handled:
            loop.remove_signal_handler(number)


def images_at_once(parts: Parts, settings: Settings) -> int:
    """How many images are under way together: one a core where all is computed here; else enough to keep the calls
    in flight, of which one image makes about three at a time on the average, in stages that wait for each other."""
    if parts.annotator.local:
        return min(settings.concurrency, os.cpu_count() or 1)
    return max(1, settings.concurrency // 2)


@dataclass
class _Worker:
    """Takes image after image; several work on one list."""

    todo: Todo
    basis: Basis
    failures: Failures
    parts: Parts
    settings: Settings
    reporter: Reporter
    totals: Totals
    limits: Limits
    ask_blocked: bool

    async def work(self) -> None:
        while job := await self.todo.take(self._skip):
            image, folder = job
            try:
                await self._tried(image, folder)
            finally:
                self.totals.spent += folder.spent
                folder.release()
                await asyncio.to_thread(self.todo.release, folder)

    async def _tried(self, image: Path, folder: RunFolder) -> None:
        started = time.perf_counter()
        try:
            outcome = await self._one(image, folder)
        except StoppedError:
            return  # it waits for the next run
        except DataEngineError as error:
            if error.reason == "disk_full" or isinstance(error, KeyRefusedError):
                raise  # the next image would meet the same
            await self._fail(image, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the run is given up
            await self._fail(image, StageError(f"{image}: a part gave up its work", hint="Run again to retry"))
        except Exception as error:  # a fault of ours in one image must not cost the others
            await self._fail(image, StageError(f"{image}: {type(error).__name__}: {error}", hint="Please report this"))
        else:
            self.failures.resolve(image)
            self.totals.add(outcome)
            self.reporter.finished(image, outcome, time.perf_counter() - started)

    async def _one(self, image: Path, folder: RunFolder) -> Outcome:
        photo = await asyncio.to_thread(read_photo, image, self.settings.max_side, self.settings.vlm_side)
        if self.settings.overwrite:  # not before the photo is read: one that cannot be costs no earlier results
            self.limits.affords(limits.ONE_CALL)  # nor before it can be made anew
            self.limits.check()
            await asyncio.to_thread(folder.clear)
        record = await asyncio.to_thread(self._record, photo, folder)
        await asyncio.to_thread(folder.open_journal)
        if self.ask_blocked:
            await asyncio.to_thread(folder.journal.forget_blocked)
        return await process(photo, folder, record, self.parts, self.settings)

    def _skip(self, images: Sequence[Path]) -> None:
        for image in images:
            self.failures.resolve(image)
        self.totals.skipped += len(images)
        self.reporter.skipped(images)

    def _record(self, photo: Photo, folder: RunFolder) -> RunRecord:
        mark = fingerprint(photo.sha256, self.basis)
        same = folder.head is not None and folder.head.fingerprint == mark
        earlier = [c for c in CONCEPTS if same and (folder.path / c / SUMMARY).exists()]
        return RunRecord(
            dataengine=__version__,
            complete=False,
            fingerprint=mark,
            source=source_of(photo),
            concepts=[c for c in CONCEPTS if c in {*earlier, *self.settings.concepts}],
            parts=self.parts.records(),
            prompt_digests=prompt_digests(self.parts),
            basis={stage: dict(fields) for stage, fields in self.basis.items()},
            settings=self.settings.model_dump(mode="json"),
            note="Unfinished: run the same command again to go on.",
        )

    async def _fail(self, image: Path, error: DataEngineError) -> None:
        stage = error.stage or ("read" if isinstance(error, ImageError) else "run")
        self.totals.failed += 1
        self.totals.failures[error.reason] += 1
        listed = Failure(image=path_text(image), stage=stage, reason=error.reason, message=str(error))
        await asyncio.to_thread(self.failures.add, listed)
        self.reporter.failed(image, error)


def prompt_digests(parts: Parts) -> dict[str, str]:
    """SHA-256 of each prompt template that the annotator uses."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.annotator.templates.items()}


def _plus(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
