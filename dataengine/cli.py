"""The command line. Only argparse is imported until a command runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dataengine import __version__
from dataengine.errors import DataEngineError, one_line

if TYPE_CHECKING:
    from dataengine.settings import Settings

DESCRIPTION = "Photos in, verified (image, prompt, mask) pairs for conversational segmentation out."
EXAMPLES = {
    "": "example:\n  dataengine demo\n  dataengine run --input photos/ --output_dir runs --preset offline",
    "run": "example:\n  dataengine run -i photos/ -o runs --preset offline --concepts entities,spatial",
    "export": "example:\n  dataengine export --runs_root runs --out_dir export --mode both --path_mode relative",
    "demo": "example:\n  dataengine demo --output_dir demo",
    "retry": "example:\n  dataengine retry runs\n  dataengine retry runs --reason blocked --safety none",
    "show": "example:\n  dataengine show runs/out_region_refine_truck",
    "status": "example:\n  dataengine status runs\n  dataengine status runs --json",
    "doctor": "example:\n  dataengine doctor --checkpoint sam2.1_hiera_large.pt\n  dataengine doctor --preset offline",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the process's exit code: 0 all well, 1 something failed, 2 wrong usage, 130 interrupted."""
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


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line; its commands' parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with exit code 2."""
        self.exit(2, one_line(f"error: {message}. See: {self.prog} --help") + "\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; flags that are not given are absent from the result of `run`."""
    from rich_argparse import RawDescriptionRichHelpFormatter

    def looks(name: str, text: str) -> dict[str, Any]:
        return {
            "description": text,
            "epilog": EXAMPLES[name],
            "formatter_class": RawDescriptionRichHelpFormatter,
            "allow_abbrev": False,
        }

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, **looks(name, text))

    top = Parser("dataengine", **looks("", DESCRIPTION))
    top.add_argument("--version", action="version", version=f"dataengine {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_flags(command("run", "Make a run folder for every photo."))
    _export_flags(command("export", "Export run folders for train.py and eval.py."))
    demo = command("demo", "Run the whole engine offline on five photos and export the result.")
    demo.add_argument("--output_dir", "-o", type=Path, default=Path("dataengine_demo"), help="default: %(default)s")
    show = command("show", "Print one image's regions, prompts, verdicts and reasons.")
    show.add_argument("run_folder", type=Path, help="a folder out_region_refine_…")
    status = command("status", "Count an output folder's images: done, failed, waiting; and what they have cost.")
    status.add_argument("output_dir", type=Path, help="the --output_dir of a run")
    status.add_argument("--json", action="store_true", help="one line of JSON, for scripts")
    _retry_flags(command("retry", "Try images again that failed, blocked ones too, with the settings of the last run."))
    _doctor_flags(command("doctor", "Say what works on this machine, what does not, and how to mend it."))
    return top


def _run_flags(run: argparse.ArgumentParser) -> None:
    absent = argparse.SUPPRESS
    where = run.add_argument_group("what and where")
    where.add_argument(
        "--input", "-i", required=True, help="an image, a folder, a glob, or a text file with a path a line"
    )
    where.add_argument("--output_dir", "-o", type=Path, required=True, help="run folders are written here")
    where.add_argument("--recursive", action="store_true", default=absent, help="read sub-folders too")
    where.add_argument(
        "--overwrite", action="store_true", default=absent, help="start every image anew, paid answers too"
    )
    _settings_flag(run)
    _how_flags(run)
    _look_flags(run.add_argument_group("look first, and run nothing"))


def _retry_flags(retry: argparse.ArgumentParser) -> None:
    retry.add_argument("output_dir", type=Path, help="the --output_dir of a run")
    retry.add_argument("--reason", metavar="A,B", help="only images that failed for these reasons (all)")
    _how_flags(retry)


def _how_flags(run: argparse.ArgumentParser) -> None:
    absent = argparse.SUPPRESS
    _part_flags(run)
    how = run.add_argument_group("how")
    concepts = "of entities, spatial, relations, affordances, physics (all)"
    how.add_argument("--concepts", default=absent, metavar="A,B", help=concepts)
    how.add_argument(
        "--negatives",
        action=argparse.BooleanOptionalAction,
        default=absent,
        help="write hard negatives too (on)",
    )
    how.add_argument("--max_regions", type=int, default=absent, metavar="N", help="regions an image (8)")
    how.add_argument("--max_side", type=int, default=absent, metavar="N", help="shrink photos to N px (own size)")
    how.add_argument(
        "--iou_threshold",
        type=float,
        default=absent,
        metavar="X",
        help="IoU from which a pool mask refines (0.5)",
    )
    how.add_argument(
        "--min_pool_pixels", type=int, default=absent, metavar="N", help="least area of a pool mask (1000)"
    )
    _bound_flags(run.add_argument_group("bounds"))


def _bound_flags(bounds: argparse._ArgumentGroup) -> None:
    absent = argparse.SUPPRESS
    bounds.add_argument("--concurrency", type=int, default=absent, metavar="N", help="calls in flight (32)")
    bounds.add_argument("--rpm", type=int, default=absent, metavar="N", help="most calls a minute to a service")
    bounds.add_argument("--tpm", type=int, default=absent, metavar="N", help="most tokens a minute to a service")
    bounds.add_argument(
        "--budget_usd",
        type=float,
        default=absent,
        metavar="X",
        help="stop before the output folder has cost more, earlier runs included",
    )
    bounds.add_argument("--budget_tokens", type=int, default=absent, metavar="N", help="likewise, tokens in and out")
    bounds.add_argument(
        "--price", default=absent, metavar="IN,OUT", help="USD per million tokens of the vlm (its list price)"
    )
    bounds.add_argument("--max_images", type=int, default=absent, metavar="N", help="only the first N images")


def _look_flags(look: argparse._ArgumentGroup) -> None:
    one = look.add_mutually_exclusive_group()
    one.add_argument("--explain", action="store_true", help="list what would be done or redone, and why")
    one.add_argument("--dry_run", action="store_true", help="expected calls by stage, tokens and cost")


def _part_flags(command: argparse.ArgumentParser) -> None:
    absent = argparse.SUPPRESS
    parts = command.add_argument_group("parts")
    parts.add_argument("--preset", default=absent, metavar="NAME", help="standard (default), published or offline")
    parts.add_argument("--annotator", default=absent, metavar="NAME", help="override the preset's annotator")
    parts.add_argument("--grounder", default=absent, metavar="NAME", help="override the preset's grounder")
    parts.add_argument("--segmenter", default=absent, metavar="NAME", help="override the preset's segmenter")
    parts.add_argument(
        "--vlm",
        default=absent,
        metavar="PROVIDER:MODEL",
        help="vision language model (google:gemini-flash-latest)",
    )
    parts.add_argument("--config", "-c", default=absent, metavar="NAME", help="SAM 2 config (sam2.1_hiera_l.yaml)")
    parts.add_argument(
        "--checkpoint", "-k", default=absent, metavar="FILE", help="SAM 2 or 3 checkpoint: .pt file, hub id or folder"
    )
    _vlm_flags(command.add_argument_group("vision language model"))
    _model_flags(command.add_argument_group("grounder and segmenter"))


def _settings_flag(command: argparse.ArgumentParser) -> None:
    told = command.add_argument_group("settings")
    told.add_argument("--settings", type=Path, metavar="FILE.toml", help="all flags below, as keys; flags given win")


def _doctor_flags(doctor: argparse.ArgumentParser) -> None:
    _settings_flag(doctor)
    _part_flags(doctor)
    how = doctor.add_argument_group("how")
    how.add_argument(
        "--calls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask each chosen part one small question; may cost a cent, or load a model (on)",
    )


def _vlm_flags(vlm: argparse._ArgumentGroup) -> None:
    absent = argparse.SUPPRESS
    vlm.add_argument("--vlm_base_url", default=absent, metavar="URL", help="another server of the provider's protocol")
    vlm.add_argument(
        "--vlm_output",
        default=absent,
        metavar="HOW",
        help="native (default): structured output by the server; prompted: the schema in words, for servers without",
    )
    vlm.add_argument("--vlm_side", type=int, default=absent, metavar="N", help="long side of what it sees, px (768)")
    vlm.add_argument("--vlm_timeout", type=float, default=absent, metavar="S", help="seconds for one answer (120)")
    vlm.add_argument(
        "--retry_seconds", type=float, default=absent, metavar="S", help="how long a failing call is tried again (300)"
    )
    vlm.add_argument(
        "--temperature", default=absent, metavar="X", help="for every question, or by question: 0.7,verify=0 (0.7)"
    )
    vlm.add_argument(
        "--thinking",
        default=absent,
        metavar="X",
        help="off, auto, minimal, low, medium, high or tokens, also by question: 1024,verify=off "
        "(auto; verify, align and refute off)",
    )
    vlm.add_argument(
        "--safety",
        default=absent,
        metavar="LEVEL",
        help="what Gemini blocks: none, high (default: only high risk), medium, low, or default (its own)",
    )
    vlm.add_argument("--prompts_dir", default=absent, metavar="DIR", help="NAME.txt files that replace templates")
    vlm.add_argument(
        "--exhaustive",
        action=argparse.BooleanOptionalAction,
        default=absent,
        help="reject a prompt that fits something unmasked as well (on)",
    )


def _model_flags(models: argparse._ArgumentGroup) -> None:
    absent = argparse.SUPPRESS
    models.add_argument("--grounder_model", default=absent, metavar="MODEL", help="hub id or folder (the grounder's)")
    models.add_argument("--grounder_revision", default=absent, metavar="REV", help="revision of that hub model")
    models.add_argument(
        "--trust_remote_code", action="store_true", default=absent, help="run the code that comes with moondream-hf"
    )
    models.add_argument(
        "--box_threshold", type=float, default=absent, metavar="X", help="least score of a box (the grounder's)"
    )
    models.add_argument("--moondream_url", default=absent, metavar="URL", help="Moondream's endpoint (its cloud)")
    models.add_argument(
        "--device", default=absent, metavar="NAME", help="auto (every GPU, else CPU), cuda, cuda:1, cpu"
    )
    models.add_argument("--precision", default=absent, metavar="P", help="auto (bfloat16 on GPUs), bfloat16, float32")
    models.add_argument("--device_batch", type=int, default=absent, metavar="N", help="images at once on a device (4)")
    models.add_argument(
        "--points_per_side", type=int, default=absent, metavar="N", help="grid of the pool of masks (64)"
    )
    models.add_argument(
        "--clean_pixels", type=int, default=absent, metavar="N", help="fill holes and drop islands under N px (100)"
    )


def _export_flags(export: argparse.ArgumentParser) -> None:
    export.add_argument("--runs_root", type=Path, required=True, help="a run folder, or a folder of them")
    export.add_argument("--out_dir", type=Path, required=True, help="new, empty, or an earlier export")
    export.add_argument("--mode", choices=("train", "eval", "both"), default="both", help="default: %(default)s")
    export.add_argument(
        "--path_mode", choices=("relative", "absolute"), default="relative", help="default: %(default)s"
    )
    export.add_argument("--format", default="convseg", metavar="NAME", help="default: %(default)s")
    export.add_argument("--include_negatives", action="store_true", help="add negatives, with an all-black mask")


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
    told = {**settings_told(output_dir), "overwrite": False, **_given(options)}
    settings = load_settings(told)
    images = failed_images(output_dir, options.reason.split(",") if options.reason else None)
    if not images:
        say("No image has failed; nothing to do")
        return 0
    return run_engine(images[: settings.max_images], output_dir, settings, ask_blocked=True)


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
    )
    print_export(manifest)
    return 0


def demo_command(options: argparse.Namespace) -> int:
    """`dataengine demo`."""
    from dataengine.console import print_export, say
    from dataengine.demo import write_photos
    from dataengine.exporters import exporter
    from dataengine.output_folder import prepare_output
    from dataengine.run_folder import example_pictures
    from dataengine.settings import load_settings

    root: Path = options.output_dir
    prepare_output(root)
    code = run_engine(write_photos(root / "photos"), root / "runs", load_settings({"preset": "offline"}))
    print_export(exporter("convseg")(root / "runs", root / "export"))
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
