"""What a person sees in the terminal: a line of progress, and the table of results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from convseg.evaluation import Results, percent
from convseg.metrics import Metrics
from convseg.training import Reporter
from dataengine.console import say


class LineReporter:
    """Training in lines: for logs and pipes."""

    def __init__(self) -> None:
        self._steps = 0

    def say(self, text: str) -> None:
        """A line."""
        say(text)

    def checked(self, done: int, of: int) -> None:
        """Nothing."""

    def began(self, first: int, steps: int) -> None:
        """Says where it goes on."""
        self._steps = steps
        if first > 1:
            self.say(f"going on with step {first}")

    def stepped(self, step: int, values: Mapping[str, float] | None) -> None:
        """A line, where there are values."""
        if values:
            self.say(f"step {step}/{self._steps}: {_told(values)}")

    def validated(self, step: int, found: Metrics) -> None:
        """A line."""
        empty = f", left empty {percent(found.left_empty)}" if found.negatives else ""
        self.say(
            f"validation at step {step}: gIoU {percent(found.giou)}, cIoU {percent(found.ciou)}{empty}, in percent; "
            f"{found.count} samples"
        )


class BarReporter(LineReporter):
    """Training as a bar with loss, IoU, rate and time left; other lines above it."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("training", total=None, told="")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def checked(self, done: int, of: int) -> None:
        """The bar is of files first."""
        self._bar.update(self._task, description="checking files", total=of, completed=done)

    def began(self, first: int, steps: int) -> None:
        """The bar becomes one of steps."""
        super().began(first, steps)
        self._bar.reset(self._task, description="training", total=steps, completed=first - 1)

    def stepped(self, step: int, values: Mapping[str, float] | None) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)
        if values:
            self._bar.update(self._task, told=_told(values))


class SilentReporter(LineReporter):
    """Of a process that does not lead."""

    def say(self, text: str) -> None:
        """Nothing."""


def _told(values: Mapping[str, float]) -> str:
    return (
        f"loss {values['loss']:.4f}, IoU {values['iou']:.3f}, lr {values['lr']:.2g}, "
        f"{values['samples_per_second']:.1f} samples/s"
    )


@contextmanager
def training_reporter(*, leads: bool) -> Iterator[Reporter]:
    """Who tells of training: a bar on a terminal, else lines; nobody where this process does not lead."""
    if not leads:
        yield SilentReporter()
    elif not sys.stderr.isatty():
        yield LineReporter()
    else:
        with _bar("{task.fields[told]}") as bar:
            yield BarReporter(bar)


def _bar(*more: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(text) for text in more),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def progress_of(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, and nothing elsewhere; call what it gives for each one done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def checking() -> Iterator[Callable[[int, int], None]]:
    """A bar of files checked, on a terminal; call what it gives with those done and their number."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    with _bar() as bar:
        task = bar.add_task("checking files", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def print_results(results: Results, split: str) -> None:
    """The metrics of all and of each concept."""
    title = f"Results{f' of {split}' if split else ''}, in percent, with 95 % intervals"
    table = Table("concept", "prompts", "gIoU", "cIoU", "left empty", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for concept, found in (*results.concepts.items(), ("all", results.all)):
        cells = (percent(found.giou), percent(found.ciou), percent(found.left_empty))
        table.add_row(concept, f"{found.count:,}", *cells)
    Console().print(table)
