"""The figures of run folders or an export as a person reads them in a terminal, or a script as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataengine.agreement import agreement_lines, rate_text
from dataengine.console import cost_text, say
from dataengine.errors import UsageError, one_line
from dataengine.exporters.workers import PATIENCE, Workers, processors
from dataengine.figures import Counting, bin_names, see
from dataengine.finished import find_runs
from dataengine.images import EXPORT_MANIFEST
from dataengine.prices import money
from dataengine.records import Agreement, ConceptAgreement, ExportManifest, Figures, Share, Spread
from dataengine.sources import is_file


def figures_of(root: Path) -> Figures:
    """The figures of a run folder, a folder of them, or an export.

    Raises:
        UsageError: it is none of these.
        DataEngineError: a worker process was killed.
    """
    if is_file(root / EXPORT_MANIFEST):
        return _of_export(root)
    counting = Counting()
    with Workers(processors(), PATIENCE) as pool:
        for image in pool.results((partial(see, folder), True) for folder in find_runs(root)):
            counting.add(image)
    return counting.figures()


def _of_export(root: Path) -> Figures:
    try:
        manifest = ExportManifest.model_validate_json((root / EXPORT_MANIFEST).read_bytes())
    except (OSError, ValidationError):
        raise UsageError(f"{root / EXPORT_MANIFEST}: cannot be read", hint="Export again") from None
    if not manifest.complete or manifest.figures is None:
        why = "an earlier version made it" if manifest.complete else "it was cut off"
        raise UsageError(f"{root}: an export without figures ({why})", hint="Export again")
    return manifest.figures


def print_figures(figures: Figures) -> None:
    """All figures as tables."""
    console = Console()
    _print_head(console, figures)
    console.print(_prompts_table(figures))
    console.print(_spreads_table(figures))
    if figures.stages:
        console.print(_stages_table(figures))
    for title, counts in (("Rejected, by why", figures.rejected), ("Cannot be read", figures.unreadable)):
        if counts:
            table = Table(title=title, show_header=False, title_justify="left")
            for name, count in counts.items():
                table.add_row(_cell(name), f"{count:,}")
            console.print(table)
    if figures.agreement:
        print_agreement(figures.agreement)
    for concern in figures.concerns:
        say(one_line(f"Look at: {concern.count:,} {concern.told}"))
        for example in concern.examples:
            say(one_line(f"  {example}"))


def _print_head(console: Console, figures: Figures) -> None:
    table = Table(title="Figures", show_header=False, title_justify="left")
    table.add_row("images", f"{figures.images:,}")
    if figures.described_regions or figures.accepted_regions:
        told = f"of {figures.described_regions:,} " if figures.described_regions else ""
        table.add_row("regions", f"{figures.accepted_regions:,} {told}accepted")
    for name, shares in (("prompts", figures.prompts), ("negatives", figures.negatives)):
        accepted = sum(share.accepted for share in shares.values())
        told = f"{accepted:,} of {accepted + sum(s.rejected for s in shares.values()):,} accepted"
        table.add_row(name, told if figures.stages else f"{accepted:,} exported")
    if figures.stages:
        table.add_row("calls", cost_text(figures.cost))
    console.print(table)


def _prompts_table(figures: Figures) -> Table:
    table = Table("concept", "family", "accepted", "rejected", "accepted share", title="Prompts", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for concept, total in figures.prompts.items():
        table.add_row(concept, "", *_share_cells(total), style="bold")
        for family, share in figures.families.get(concept, {}).items():
            table.add_row("", _cell(family), *_share_cells(share))
    for concept, share in figures.negatives.items():
        table.add_row("negatives" if concept == next(iter(figures.negatives)) else "", concept, *_share_cells(share))
    return table


def _share_cells(share: Share) -> tuple[str, str, str]:
    total = share.accepted + share.rejected
    return f"{share.accepted:,}", f"{share.rejected:,}", f"{share.accepted / total:.0%}" if total else "-"


def _spreads_table(figures: Figures) -> Table:
    table = Table("", "least", "median", "mean", "greatest", "most are", title="Spreads", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spread, percent in (
        ("accepted prompts of an image", figures.prompts_per_image, False),
        ("words of an accepted prompt", figures.prompt_words, False),
        ("mask, share of the photo", figures.mask_area, True),
    ):
        table.add_row(name, *_spread_cells(spread, percent=percent))
    return table


def _spread_cells(spread: Spread, *, percent: bool) -> Iterator[str]:
    for value in (spread.least, spread.median, spread.mean, spread.greatest):
        yield "-" if value is None else f"{value:.2%}" if percent else f"{value:.4g}"
    most = max(spread.counts, default=0)
    yield bin_names(spread.edges, percent=percent)[spread.counts.index(most)] if most else "-"


def _stages_table(figures: Figures) -> Table:
    table = Table("stage", "steps", "seconds", "of a step", "calls", "tokens in", "tokens out", "cost", title="Stages")
    table.title_justify = "left"
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, of in figures.stages.items():
        mean = f"{of.seconds / of.steps:.2f}" if of.steps else "-"
        told = (f"{of.usage.calls:,}", f"{of.usage.input_tokens:,}", f"{of.usage.output_tokens:,}", money(of.usage.usd))
        table.add_row(_cell(stage), f"{of.steps:,}", f"{of.seconds:,.1f}", mean, *told)
    return table


def print_agreement(found: Agreement) -> None:
    """What people's verdicts say of the engine's, and of one another."""
    table = Table(
        "concept", "judged", "corrected", "precision of ACCEPT", "recall", title="Agreement", title_justify="left"
    )
    for name, of in found.concepts.items():
        table.add_row(name, *_agreement_cells(of))
    table.add_row("all but negatives", *_agreement_cells(found.all), style="bold")
    Console().print(table)
    say("In brackets 95 % Wilson intervals. What a person corrected counts as not accepted.")
    for line in agreement_lines(found):
        say(line)


def _agreement_cells(of: ConceptAgreement) -> tuple[str, str, str, str]:
    return f"{of.reviewed:,}", f"{of.corrected:,}", rate_text(of.precision), rate_text(of.recall)


def _cell(text: str) -> Text:
    """Any text as it is, on one line: a string would be taken for rich's markup."""
    return Text(one_line(text))
