"""The command line. Only argparse is imported until a command runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.errors import DataEngineError, one_line
from dataengine.flags import parser

if TYPE_CHECKING:
    from dataengine.report import Written
    from dataengine.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the process's exit code: 0 all well, 1 something failed, 2 wrong usage, 130 or 143 interrupted."""
    options = parser().parse_args(arguments)
    code = _exit_code(options)
    devices = sys.modules.get("dataengine.devices")
    if devices and vars(sys.modules["__main__"]).get("main") is main:  # a script's, which ends with the code
        devices.leave_with(code)
    return code


def _exit_code(options: argparse.Namespace) -> int:
    try:
        return int(COMMANDS[options.command](options))
    except DataEngineError as error:
        from dataengine.console import complain

        complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - or Python complains when it flushes at exit
        return 1


def run_command(options: argparse.Namespace) -> int:
    """`dataengine run`."""
    from dataengine.images import list_images
    from dataengine.settings import load_settings

    settings = load_settings(_given(options), options.settings)
    images = list_images(options.input, recursive=settings.recursive)[: settings.max_images]
    if options.explain or options.dry_run:
        return look_first(images, options.output_dir, settings, cost=options.dry_run)
    code = run_engine(images, options.output_dir, settings)
    if code < 128:
        _next(f"dataengine export --runs_root {quoted(options.output_dir)} --out_dir export")
    return code


def look_first(images: Sequence[Path], output_dir: Path, settings: Settings, *, cost: bool) -> int:
    """Print what a run would do (or `cost`), without doing it; the exit code."""
    from dataengine.console import print_forecast, print_plan
    from dataengine.forecast import forecast
    from dataengine.parts import build
    from dataengine.plan import grouped, plan

    parts = build(settings)
    findings = plan(images, output_dir, parts, settings)
    if cost:
        print_forecast(forecast(findings, output_dir, parts, settings), settings)
    else:
        print_plan(grouped(findings))
    return 0


NO_SETTINGS = ("command", "input", "output_dir", "settings", "calls", "explain", "dry_run", "reason")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that are settings, as far as they were given."""
    return {k: v for k, v in vars(options).items() if k not in NO_SETTINGS}


def retry_command(options: argparse.Namespace) -> int:
    """`dataengine retry`."""
    from dataengine.console import say
    from dataengine.output_folder import settings_told
    from dataengine.settings import load_settings
    from dataengine.survey import failed_images

    output_dir: Path = options.output_dir
    told = {**settings_told(output_dir), "overwrite": False, "max_images": None, **_given(options)}
    settings = load_settings(told)
    reasons = options.reason.split(",") if options.reason else None
    images = failed_images(output_dir, reasons)
    if not images:
        say("No image has failed; nothing to do")
        return 0
    return run_engine(
        images[: settings.max_images], output_dir, settings, ask_blocked=not reasons or "blocked" in reasons
    )


def run_engine(images: Sequence[Path], output_dir: Path, settings: Settings, *, ask_blocked: bool = False) -> int:
    """Build the parts, run and report; the exit code."""
    import asyncio

    from dataengine.console import BarReporter, PlainReporter, complain, print_totals, progress_bar
    from dataengine.engine import run
    from dataengine.output_folder import prepare_output
    from dataengine.parts import build

    parts = build(settings)
    prepare_output(output_dir)
    if sys.stderr.isatty():
        with progress_bar() as bar:
            totals = asyncio.run(run(images, output_dir, parts, settings, BarReporter(bar), ask_blocked=ask_blocked))
    else:
        totals = asyncio.run(run(images, output_dir, parts, settings, PlainReporter(), ask_blocked=ask_blocked))
    print_totals(totals, output_dir)
    if totals.stopped:
        complain(f"stopped: {totals.stopped}")
        return totals.stopped.exit_code
    return 1 if totals.failed else 0


def export_command(options: argparse.Namespace) -> int:
    """`dataengine export`."""
    from dataengine.console import print_export
    from dataengine.exporters import exporter

    manifest = exporter(options.format)(
        options.runs_root,
        options.out_dir,
        mode=options.mode,
        path_mode=options.path_mode,
        include_negatives=options.include_negatives,
        reviews=options.reviews,
    )
    print_export(manifest)
    return 0


def demo_command(options: argparse.Namespace) -> int:
    """`dataengine demo`."""
    from dataengine.console import print_export, say
    from dataengine.demo import write_photos
    from dataengine.exporters import exporter
    from dataengine.output_folder import prepare_output
    from dataengine.report import write_report
    from dataengine.run_folder import example_pictures
    from dataengine.settings import load_settings

    root: Path = options.output_dir
    prepare_output(root)
    code = run_engine(write_photos((root / "photos").absolute()), root / "runs", load_settings({"preset": "offline"}))
    if code >= 128:
        return code
    print_export(exporter("convseg")(root / "runs", root / "export"))
    _print_report(write_report(root / "runs", root / "report.html"))
    pictures = example_pictures(root / "runs")
    for picture in pictures:
        say(f"Look at {quoted(picture)}")
    for overlay in pictures[:1]:
        _next(f"dataengine show {quoted(overlay.parent)}")
    return code


def show_command(options: argparse.Namespace) -> int:
    """`dataengine show`."""
    from dataengine.console import print_run_folder

    print_run_folder(options.run_folder)
    return 0


def status_command(options: argparse.Namespace) -> int:
    """`dataengine status`."""
    from dataengine.console import print_survey, say, survey_json, what_next
    from dataengine.survey import survey

    found = survey(options.output_dir)
    if options.json:
        say(survey_json(found))
        return 0
    print_survey(found)
    for step in what_next(found, quoted(options.output_dir)):
        _next(step)
    return 0


def stats_command(options: argparse.Namespace) -> int:
    """`dataengine stats`."""
    from dataengine.console import say
    from dataengine.stats import figures_of, print_figures

    found = figures_of(options.runs)
    if options.json:
        say(found.model_dump_json())
    else:
        print_figures(found)
    return _complain_of(found.unreadable)


def agreement_command(options: argparse.Namespace) -> int:
    """`dataengine agreement`."""
    from dataengine.console import say
    from dataengine.stats import figures_of, print_agreement

    found = figures_of(options.runs).agreement
    if options.json:
        say(found.model_dump_json() if found else "null")
    elif found:
        print_agreement(found)
    else:
        say("Nobody has judged a prompt, as far as is told here")
        _next("dataengine review RUNS --sample 200")
    return 0


def report_command(options: argparse.Namespace) -> int:
    """`dataengine report`."""
    from dataengine.report import write_report

    return _print_report(write_report(options.runs, options.out or options.runs / "report.html"))


def _complain_of(unreadable: Mapping[str, int]) -> int:
    """Say what could not be read of run folders, a line for each reason; the exit code."""
    from dataengine.console import complain

    for reason, count in unreadable.items():
        complain(f"could not be read: {count:,} x {reason}")
    return 1 if unreadable else 0


def _print_report(written: Written) -> int:
    from dataengine.console import say

    pictures = f", its pictures in {quoted(written.folder)}" if written.folder else ""
    say(f"Report: {quoted(written.page)} ({written.bytes / 1e6:.1f} MB){pictures}")
    return _complain_of(written.unreadable)


def review_command(options: argparse.Namespace) -> int:
    """`dataengine review`."""
    from dataengine.review import serve

    serve(
        options.runs,
        reviewer=options.reviewer,
        sample=options.sample,
        seed=options.seed,
        blind=options.blind,
        host=options.host,
        port=options.port,
        show=options.open,
    )
    return 0


def doctor_command(options: argparse.Namespace) -> int:
    """`dataengine doctor`."""
    from dataengine.doctor import as_typed, doctor
    from dataengine.settings import load_settings

    flags = _given(options)
    return doctor(load_settings(flags, options.settings), as_typed(flags, options.settings), calls=options.calls)


COMMANDS = {
    "run": run_command,
    "export": export_command,
    "demo": demo_command,
    "show": show_command,
    "status": status_command,
    "report": report_command,
    "stats": stats_command,
    "review": review_command,
    "agreement": agreement_command,
    "retry": retry_command,
    "doctor": doctor_command,
}


def quoted(path: Path) -> str:
    """A path as it can be typed in a shell, on one line."""
    import shlex

    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    escaped = one_line(text.replace("\\", "\\\\").replace("'", "\\'"))
    return f"$'{escaped}'"


def _next(command: str) -> None:
    from dataengine.console import say

    say(f"Next: {command}")


if __name__ == "__main__":
    sys.exit(main())
