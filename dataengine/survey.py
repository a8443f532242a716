"""What an output folder holds: which images are done, failed or waiting, and what they have cost. It reads, and never
writes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from dataengine.errors import UsageError
from dataengine.images import RUN_FOLDER_PREFIX
from dataengine.output_folder import FAILURES, images_told, lines_of
from dataengine.records import Failure, Usage
from dataengine.run_folder import JOURNAL, RUN

NOT_BEGUN = "not begun"
UNFINISHED = "unfinished"
MOST_SECONDS = 1e9  # of a step; more is no measurement


class Named(BaseModel):
    """A part of a run folder, by its name."""

    name: str


class Origin(BaseModel):
    """The image of a run folder."""

    path: str


class Told(BaseModel):
    """The settings of a run that say what its calls cost; taken as they are, since checking them takes its time."""

    vlm: str = ""
    price: object = None
    negatives: bool = True
    thinking: dict[str, object] = {}


class Head(BaseModel):
    """What a survey reads of a `run.json`: of a hundred thousand, checking the rest would take most of the time."""

    complete: bool
    source: Origin
    concepts: list[str] = []
    parts: dict[str, Named] = {}
    settings: Told = Told()
    usage: dict[str, Usage] | None = None  # earlier versions wrote none


@dataclass
class Tally:
    """A sum of costs: as `Usage`, but added to in place."""

    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0
    calls: int = 0
    reasked: int = 0

    def add(self, usage: Usage | Tally) -> None:
        """Add a cost; one that is not known makes the sum unknown."""
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.usd = None if self.usd is None or usage.usd is None else self.usd + usage.usd
        self.calls += usage.calls
        self.reasked += usage.reasked

    @property
    def usage(self) -> Usage:
        """The sum as it is written to files."""
        return Usage.model_validate(vars(self))


class Step(NamedTuple):
    """A line of a journal; a step that is not done failed after it was paid for."""

    name: str
    usage: Usage
    done: bool
    seconds: float


@dataclass(frozen=True)
class Surveyed:
    """A run folder: its head (None where only a journal is left) and its cost by stage."""

    head: Head | None
    usage: Mapping[str, Usage | Tally]


@dataclass
class Survey:
    """The images of an output folder by how far they are, failed and waiting ones by reason; and their cost."""

    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    cost: Usage = field(default_factory=Usage)

    @property
    def images(self) -> int:
        """All that are known."""
        return self.done + self.failed.total() + self.waiting.total()


def survey(output_dir: Path) -> Survey:
    """Count the images of an output folder, and what was paid for them.

    Known are the images of run folders, those in `failures.jsonl`, and those that a run was told of, as far as they
    still exist. A failure of an image whose folder is complete is out of date.

    Raises:
        UsageError: there is no such folder, or nothing of a run in it.
    """
    if not output_dir.is_dir():
        raise UsageError(f"{output_dir}: no such folder", hint="Name the --output_dir of a run")
    failures = {image: failure.reason for image, failure in read_failures(output_dir).items()}
    found, cost, complete = Survey(), Tally(), dict[str, bool]()
    for folder in surveyed(output_dir):
        for usage in folder.usage.values():
            cost.add(usage)
        if folder.head is None:
            found.waiting[UNFINISHED] += 1
        else:
            image = folder.head.source.path
            complete[image] = folder.head.complete or complete.get(image, False)
    found.cost, found.done = cost.usage, sum(complete.values())
    for image, is_complete in complete.items():
        reason = failures.pop(image, None)
        if not is_complete:
            (found.failed if reason else found.waiting)[reason or UNFINISHED] += 1
    found.failed.update(failures.values())
    found.waiting[NOT_BEGUN] += sum(
        image not in complete and image not in failures and os.path.exists(image)  # noqa: PTH110 - takes any text
        for image in images_told(output_dir)
    )
    found.waiting = +found.waiting
    if not found.images:
        raise UsageError(f"{output_dir}: no run has written here", hint="Name the --output_dir of a run")
    return found


def surveyed(output_dir: Path) -> Iterator[Surveyed]:
    """Every run folder of an output folder; what is not ours is passed over."""
    for entry in os.scandir(output_dir):
        if entry.name.startswith(RUN_FOLDER_PREFIX):
            head = _head(entry.path)
            if head is not None and head.complete and head.usage is not None:
                yield Surveyed(head, head.usage)
            elif head is not None or Path(entry.path, JOURNAL).is_file():
                yield Surveyed(head, _by_stage(Path(entry.path)))


def _head(folder: str) -> Head | None:
    try:
        return Head.model_validate_json(_content(f"{folder}/{RUN}"))
    except (OSError, ValidationError):
        return None


def _content(path: str) -> bytes:
    """A small file's bytes, without the objects of Python that take twice as long to make as such a file to read."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(handle, 1 << 16), b""))
    finally:
        os.close(handle)


def _by_stage(folder: Path) -> dict[str, Tally]:
    spent: dict[str, Tally] = {}
    for step in journal_steps(folder):
        spent.setdefault(step.name.partition("/")[0], Tally()).add(step.usage)
    return spent


def journal_steps(folder: Path) -> Iterator[Step]:
    """Every step in a run folder's journal; damaged lines are passed over."""
    try:
        with (folder / JOURNAL).open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):  # cut off, so its step counts as not done
                    return
                try:
                    head, result, _ = line.partition(b',"result":')  # which a journal writes last, and is most of it
                    entry = from_json(head + b"}" if result else line)
                    usage, done = Usage.model_validate(entry["usage"]), "failed" not in entry
                    yield Step(str(entry["step"]), usage, done, _seconds(entry.get("seconds")))
                except (ValueError, KeyError, TypeError):  # pydantic's ValidationError is a ValueError
                    continue
    except OSError:
        return


def _seconds(told: object) -> float:
    """Seconds of a step; 0 where they are told wrongly."""
    return float(told) if isinstance(told, int | float) and 0 <= told < MOST_SECONDS else 0.0


def read_failures(output_dir: Path) -> dict[str, Failure]:
    """The last failure of each image in `failures.jsonl`, by the image's path."""
    failures: dict[str, Failure] = {}
    for line in lines_of(output_dir / FAILURES):
        try:
            failure = Failure.model_validate_json(line)
        except ValidationError:  # a line that is being written, or was cut off
            continue
        failures[failure.image] = failure
    return failures


def failed_images(output_dir: Path, reasons: Collection[str] | None = None) -> list[Path]:
    """The images that failed, or only those that did for one of some reasons, sorted.

    Raises:
        UsageError: none failed for a reason.
    """
    failures = read_failures(output_dir)
    counts = Counter(failure.reason for failure in failures.values())
    for reason in reasons or ():
        if failures and reason not in counts:
            there = ", ".join(f"{name} {count}" for name, count in counts.most_common())
            raise UsageError(f"--reason {reason}: no image failed for it", hint=f"There are {there}")
    return sorted(Path(image) for image, f in failures.items() if not reasons or f.reason in reasons)
