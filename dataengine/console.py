"""What a person sees in the terminal: progress, the table at the end, and one image's results."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dataengine.engine import Totals
from dataengine.errors import DataEngineError, UsageError, one_line
from dataengine.forecast import Forecast, budgets, sources
from dataengine.journal import BLOCKED
from dataengine.output_folder import FAILURES
from dataengine.pipeline import Outcome
from dataengine.plan import Group, What, named
from dataengine.prices import money
from dataengine.records import CONCEPTS, ExportManifest, NegativeVerification, RunRecord, Summary, Usage
from dataengine.run_folder import NEGATIVES, SUMMARY, read_file, read_record
from dataengine.settings import Settings
from dataengine.survey import Survey

PLANNED: dict[What, str] = {
    "done": "nothing: done",
    "new": "all: new",
    "unfinished": "go on: unfinished",
    "failed": "try again: failed",
    "blocked": "nothing: blocked",
    "redone": "redo",
}


def say(text: str) -> None:
    """Print a line as it is: never marked up, wrapped or coloured."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print one line to standard error."""
    print(one_line(text), file=sys.stderr, flush=True)


class PlainReporter:
    """A line for each image: for logs and pipes."""

    def __init__(self) -> None:
        self._total = self._seen = 0

    def started(self, images: int) -> None:
        """Remember the number."""
        self._total = images

    def finished(self, image: Path, outcome: Outcome, seconds: float) -> None:
        """Print what the image gave."""
        written = sum(counts[0] for counts in outcome.prompts.values())
        accepted = sum(counts[1] for counts in outcome.prompts.values())
        said = (
            outcome.note or f"{outcome.accepted} of {outcome.regions} regions, {accepted} of {written} prompts accepted"
        )
        self._line(image, f"{said} ({seconds:.1f} s)")

    def skipped(self, images: Sequence[Path]) -> None:
        """Print how many were done before."""
        self._seen += len(images)
        say(f"[{self._seen}/{self._total}] {len(images)} done before")

    def failed(self, image: Path, error: DataEngineError) -> None:
        """Count it, and print why to standard error."""
        self._seen += 1
        complain(f"[{self._seen}/{self._total}] failed: {error}")

    def _line(self, image: Path, text: str) -> None:
        self._seen += 1
        say(one_line(f"[{self._seen}/{self._total}] {image.name}: {text}"))


class BarReporter:
    """One bar over all images, with rate, time left, and prompts accepted and rejected so far."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("images", total=None, accepted=0, rejected=0)
        self._accepted = self._rejected = 0

    def started(self, images: int) -> None:
        """Set the bar's length."""
        self._progress.update(self._task, total=images)

    def finished(self, image: Path, outcome: Outcome, seconds: float) -> None:
        """Advance the bar."""
        for written, accepted in outcome.prompts.values():
            self._accepted += accepted
            self._rejected += written - accepted
        self._progress.update(self._task, advance=1, accepted=self._accepted, rejected=self._rejected)

    def skipped(self, images: Sequence[Path]) -> None:
        """Advance the bar."""
        self._progress.advance(self._task, len(images))

    def failed(self, image: Path, error: DataEngineError) -> None:
        """Print why above the bar, and advance it."""
        self._progress.console.print(f"[red]failed:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        self._progress.advance(self._task)


class RateColumn(ProgressColumn):
    """Images a minute."""

    def render(self, task: Task) -> Text:
        """The rate of the last half minute; empty before there is one."""
        return Text(f"{task.speed * 60:.0f}/min" if task.speed else "")


def progress_bar() -> Progress:
    """The bar of `dataengine run` in a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[green]{task.fields[accepted]} accepted[/green] [red]{task.fields[rejected]} rejected[/red]"),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def print_totals(totals: Totals, output_dir: Path) -> None:
    """The table at the end of a run."""
    table = Table(title="Run", show_header=False, title_justify="left")
    waiting = f", {totals.waiting} waiting" if totals.waiting else ""
    table.add_row("images", f"{totals.done} done, {totals.failed} failed, {totals.skipped} done before{waiting}")
    table.add_row("regions", f"{totals.accepted} of {totals.regions} accepted")
    for concept in CONCEPTS:
        if concept in totals.prompts:
            written, accepted = totals.prompts[concept]
            table.add_row(f"prompts, {concept}", f"{accepted} of {written} accepted")
    table.add_row("negatives", f"{totals.negatives[1]} of {totals.negatives[0]} accepted")
    for title, counts in (("refused by rule", totals.refused), ("failed by reason", totals.failures)):
        if counts:
            table.add_row(title, ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    table.add_row("calls", cost_text(totals.spent))
    rate = f", {totals.done / totals.seconds * 60:.0f} images a minute" if totals.done and totals.seconds else ""
    table.add_row("time", f"{totals.seconds:.1f} s{rate}")
    Console().print(table)
    if totals.failed:
        say(f"Failed images are listed in {one_line(str(output_dir / FAILURES))}; run again to retry them.")


def cost_text(usage: Usage) -> str:
    """Calls, tokens and cost in words."""
    cost = "cost unknown" if usage.usd is None else f"${usage.usd:.4f}"
    again = f" ({usage.reasked:,} asked again)" if usage.reasked else ""
    return f"{usage.calls:,} paid{again}, {usage.input_tokens:,} tokens in, {usage.output_tokens:,} out, {cost}"


def print_survey(survey: Survey) -> None:
    """The images of an output folder by how far they are, and what they have cost."""
    table = Table(title="Status", show_header=False, title_justify="left")
    table.add_row("images", f"{survey.images:,}")
    table.add_row("done", f"{survey.done:,}")
    for title, counts in (("failed", survey.failed), ("waiting", survey.waiting)):
        reasons = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
        table.add_row(title, f"{counts.total():,}{': ' if reasons else ''}{escape(one_line(reasons))}")
    table.add_row("calls so far", cost_text(survey.cost))
    Console().print(table)


def survey_json(survey: Survey) -> str:
    """The same for scripts, as one line of JSON."""
    counts = {"images": survey.images, "done": survey.done, "failed": survey.failed, "waiting": survey.waiting}
    return json.dumps({**counts, "cost": survey.cost.model_dump()})


def what_next(survey: Survey, output_dir: str) -> list[str]:
    """What to do with an output folder, most useful first.

    Args:
        output_dir: as it can be typed in a shell.
    """
    again = [reason for reason, _ in survey.failed.most_common() if reason != BLOCKED]
    steps = []
    if survey.waiting or again:
        steps.append("run the same command again; what is done costs nothing")
    if again:
        steps.append(f"dataengine retry {output_dir} --reason {again[0]}")
    if survey.done:
        steps.append(f"dataengine export --runs_root {output_dir} --out_dir export")
    return steps


def print_plan(groups: Sequence[Group]) -> None:
    """What a run would do with how many images, and why."""
    total = sum(group.images for group in groups)
    title = f"What a run would do with {total:,} image{'s' * (total != 1)}"
    table = Table("images", "what", "why", "such as", title=title, title_justify="left")
    table.columns[0].justify = "right"
    for group in groups:
        then = (f"then {named(group.then)}, where their answers differ",) if group.then else ()
        more = ("…",) if group.images > len(group.names) else ()
        why = "\n".join(map(_cell, (*group.why, *then)))
        table.add_row(f"{group.images:,}", PLANNED[group.what], why, "\n".join(map(_cell, (*group.names, *more))))
    Console().print(table)
    say("Nothing was asked or written. An answer that an image's journal still holds is not paid for again.")


def print_forecast(found: Forecast, settings: Settings) -> None:
    """What a run is expected to cost, by stage, and where the figures come from; the total is the last line."""
    images = f"{found.images:,} image{'s' * (found.images != 1)} not done"
    if found.stages:
        table = Table("stage", "calls", "tokens in", "tokens out", "cost", title=f"Expected, for {images}")
        table.title_justify = "left"
        for column in table.columns[1:]:
            column.justify = "right"
        for stage, of_stage in found.stages.items():
            told = (_about(of_stage.input_tokens), _about(of_stage.output_tokens), money(of_stage.usd))
            table.add_row(stage, f"{of_stage.calls:,}", *told)
        Console().print(table)
    else:
        say(f"Expected, for {images}: no call that is paid for.")
    for line in (*sources(found), *budgets(found, settings)):
        say(line)
    cost = found.total
    tokens = f"{_about(cost.input_tokens)} tokens in, {_about(cost.output_tokens)} out"
    say(f"total: {cost.calls:,} calls, {tokens}, {money(cost.usd)}")


def _about(number: int) -> str:
    """A number to three digits: more would claim to be known."""
    return f"{int(float(f'{number:.3g}')):,}"


def print_export(manifest: ExportManifest) -> None:
    """What an export wrote and left out."""
    counts = manifest.counts
    runs = len(manifest.discovered_run_dirs)
    say(
        f"Exported {counts.written_masks} (image, mask, prompt) pairs of {counts.copied_images} images "
        f"from {runs} run folders to {one_line(manifest.out_dir)}"
    )
    for reason, count in sorted(manifest.skipped_reason_counts.items(), key=lambda entry: -entry[1]):
        say(f"  left out: {count} x {reason}")


def print_run_folder(folder: Path) -> None:
    """One image's regions, prompts, verdicts and reasons.

    Raises:
        UsageError: it is no run folder.
    """
    record = read_record(folder)
    if record is None:
        raise UsageError(
            f"{folder}: no run folder of DataEngine (no readable run.json)",
            hint="Name a folder out_region_refine_…",
        )
    console = Console()
    _print_head(console, record)
    summaries = {concept: read_file(folder / concept / SUMMARY, Summary) for concept in CONCEPTS}
    made = {concept: summary for concept, summary in summaries.items() if summary is not None}
    for summary in list(made.values())[:1]:
        _print_regions(console, summary)
    for concept, summary in made.items():
        _print_prompts(console, concept, summary)
    _print_negatives(console, folder)


def _print_head(console: Console, record: RunRecord) -> None:
    source, parts = record.source, ", ".join(f"{kind} {part.name}" for kind, part in record.parts.items())
    console.print(f"{escape(one_line(source.path))}, {source.width}x{source.height} px", highlight=False)
    console.print(f"made by dataengine {record.dataengine}: {escape(parts)}", highlight=False)
    if record.note:
        console.print(escape(record.note), highlight=False)


def _print_regions(console: Console, summary: Summary) -> None:
    table = Table("region", "label", "kept", "reason", title="Regions", title_justify="left")
    kept = 0
    for result in summary.results:
        number = str(kept) if result.output else "-"
        kept += result.output is not None
        table.add_row(number, *map(_cell, (result.label, result.output or "rejected", result.reason)))
    console.print(table)


def _print_prompts(console: Console, concept: str, summary: Summary) -> None:
    table = Table("verdict", "prompt", "regions", "reason", title=f"Prompts: {concept}", title_justify="left")
    for entry in summary.prompt_verifications:
        regions = ", ".join(map(str, entry.satisfying))
        table.add_row(_verdict(entry.verdict), *map(_cell, (entry.prompt, regions, entry.reason)))
    console.print(table)


def _print_negatives(console: Console, folder: Path) -> None:
    table = Table("verdict", "prompt", "concept", "reason", title="Negatives: nothing fits", title_justify="left")
    for concept in CONCEPTS:
        for entry in read_file(folder / NEGATIVES / f"{concept}.json", list[NegativeVerification]) or ():
            table.add_row(_verdict(entry.verdict), *map(_cell, (entry.prompt, concept, entry.reason)))
    if table.row_count:
        console.print(table)


def _verdict(verdict: str) -> str:
    return f"[{'green' if verdict == 'ACCEPT' else 'red'}]{verdict}[/]"


def _cell(text: str) -> str:
    return escape(one_line(text))
