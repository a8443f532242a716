"""Every command's flags. Only argparse is imported, so that `--help` is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dataengine import __version__
from dataengine.errors import one_line

DESCRIPTION = "Photos in, verified (image, prompt, mask) pairs for conversational segmentation out."
EXAMPLES = {
    "": "example:\n  dataengine demo\n  dataengine run --input photos/ --output_dir runs --preset offline",
    "run": "example:\n  dataengine run -i photos/ -o runs --preset offline --concepts entities,spatial",
    "export": "example:\n  dataengine export --runs_root runs --out_dir export --mode both --path_mode relative",
    "demo": "example:\n  dataengine demo --output_dir demo",
    "retry": "example:\n  dataengine retry runs\n  dataengine retry runs --reason blocked --safety none",
    "show": "example:\n  dataengine show runs/out_region_refine_truck",
    "status": "example:\n  dataengine status runs\n  dataengine status runs --json",
    "report": "example:\n  dataengine report runs --out report.html",
    "stats": "example:\n  dataengine stats runs\n  dataengine stats export --json",
    "review": "example:\n  dataengine review runs\n  dataengine review runs --sample 200 --blind --reviewer ana",
    "agreement": "example:\n  dataengine agreement runs",
    "doctor": "example:\n  dataengine doctor --checkpoint sam2.1_hiera_large.pt\n  dataengine doctor --preset offline",
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line; its commands' parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with exit code 2."""
        self.exit(2, one_line(f"error: {message}. See: {self.prog} --help") + "\n")


def looks(text: str, example: str) -> dict[str, Any]:
    """What a parser is built with, so that its help reads well."""
    from rich_argparse import RawDescriptionRichHelpFormatter

    return {
        "description": text,
        "epilog": example,
        "formatter_class": RawDescriptionRichHelpFormatter,
        "allow_abbrev": False,
    }


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; settings that are not given are absent from its result."""

    def command(name: str, text: str, default: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, argument_default=default, **looks(text, EXAMPLES[name]))

    top = Parser("dataengine", **looks(DESCRIPTION, EXAMPLES[""]))
    top.add_argument("--version", action="version", version=f"dataengine {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_flags(command("run", "Make a run folder for every photo.", argparse.SUPPRESS))
    _export_flags(command("export", "Export run folders for train.py and eval.py."))
    demo = command("demo", "Run the whole engine offline on five photos, export the result and write its report.")
    demo.add_argument("--output_dir", "-o", type=Path, default=Path("dataengine_demo"), help="default: %(default)s")
    show = command("show", "Print one image's regions, prompts, verdicts and reasons.")
    show.add_argument("run_folder", type=Path, help="a folder out_region_refine_…")
    status = command("status", "Count an output folder's images: done, failed, waiting; and what they have cost.")
    status.add_argument("output_dir", type=Path, help="the --output_dir of a run")
    status.add_argument("--json", action="store_true", help="one line of JSON, for scripts")
    _looking_commands(command)
    again = "Try images again that failed, blocked ones too, with the settings of the last run."
    _retry_flags(command("retry", again, argparse.SUPPRESS))
    works = "Say what works on this machine, what does not, and how to mend it."
    _doctor_flags(command("doctor", works, argparse.SUPPRESS))
    return top


def _looking_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """The commands that look at run folders and judge them."""
    runs = "a run folder, or a folder of them"
    report = command("report", "Write a page that shows what was made: figures, plots, every image and prompt.")
    report.add_argument("runs", type=Path, help=runs)
    report.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in RUNS")
    stats = command("stats", "Print the figures of run folders or of an export.")
    stats.add_argument("runs", type=Path, help="a run folder, a folder of them, or an export")
    stats.add_argument("--json", action="store_true", help="one line of JSON, for scripts")
    review = command("review", "Serve a page for judging prompts by hand, one by one, by keys.")
    review.add_argument("runs", type=Path, help=runs)
    review.add_argument("--reviewer", metavar="NAME", help="who judges (your user name)")
    review.add_argument("--sample", type=int, metavar="N", help="only N prompts, of all concepts and verdicts")
    review.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample (%(default)s)")
    review.add_argument("--blind", action="store_true", help="hide the engine's verdicts and other reviewers'")
    review.add_argument("--port", type=int, default=8765, metavar="N", help="0 for any free one (%(default)s)")
    review.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to be reached at (%(default)s)")
    review.add_argument("--open", action="store_true", help="open the page in a browser")
    agreement = command("agreement", "Say how far people's verdicts agree with the engine's and with one another.")
    agreement.add_argument("runs", type=Path, help=f"{runs}, or an export")
    agreement.add_argument("--json", action="store_true", help="one line of JSON, for scripts")


def _run_flags(run: argparse.ArgumentParser) -> None:
    where = run.add_argument_group("what and where")
    where.add_argument(
        "--input", "-i", required=True, help="an image, a folder, a glob, or a text file with a path a line"
    )
    where.add_argument("--output_dir", "-o", type=Path, required=True, help="run folders are written here")
    where.add_argument("--recursive", action="store_true", help="read sub-folders too")
    where.add_argument("--overwrite", action="store_true", help="start every image anew, paid answers too")
    _settings_flag(run)
    _how_flags(run)
    _look_flags(run.add_argument_group("look first, and run nothing"))


def _retry_flags(retry: argparse.ArgumentParser) -> None:
    retry.add_argument("output_dir", type=Path, help="the --output_dir of a run")
    retry.add_argument("--reason", default=None, metavar="A,B", help="only images that failed for these reasons (all)")
    _how_flags(retry)


def _how_flags(run: argparse.ArgumentParser) -> None:
    _part_flags(run)
    how = run.add_argument_group("how")
    concepts = "of entities, spatial, relations, affordances, physics (all)"
    how.add_argument("--concepts", metavar="A,B", help=concepts)
    how.add_argument(
        "--negatives",
        action=argparse.BooleanOptionalAction,
        help="write hard negatives too (on)",
    )
    how.add_argument("--max_regions", type=int, metavar="N", help="regions an image (8)")
    how.add_argument("--max_side", type=int, metavar="N", help="shrink photos to N px (own size)")
    how.add_argument(
        "--iou_threshold",
        type=float,
        metavar="X",
        help="IoU from which a pool mask refines (0.5)",
    )
    how.add_argument("--min_pool_pixels", type=int, metavar="N", help="least area of a pool mask (1000)")
    _bound_flags(run.add_argument_group("bounds"))


def _bound_flags(bounds: argparse._ArgumentGroup) -> None:
    bounds.add_argument("--concurrency", type=int, metavar="N", help="calls in flight (32)")
    bounds.add_argument("--rpm", type=int, metavar="N", help="most calls a minute to a service")
    bounds.add_argument("--tpm", type=int, metavar="N", help="most tokens a minute to a service")
    bounds.add_argument(
        "--budget_usd",
        type=float,
        metavar="X",
        help="stop before the output folder has cost more, earlier runs included",
    )
    bounds.add_argument("--budget_tokens", type=int, metavar="N", help="likewise, tokens in and out")
    bounds.add_argument("--price", metavar="IN,OUT", help="USD per million tokens of the vlm (its list price)")
    bounds.add_argument("--max_images", type=int, metavar="N", help="only the first N images")


def _look_flags(look: argparse._ArgumentGroup) -> None:
    one = look.add_mutually_exclusive_group()
    one.add_argument("--explain", action="store_true", default=False, help="list what would be done or redone, and why")
    one.add_argument("--dry_run", action="store_true", default=False, help="expected calls by stage, tokens and cost")


def _part_flags(command: argparse.ArgumentParser) -> None:
    parts = command.add_argument_group("parts")
    parts.add_argument("--preset", metavar="NAME", help="standard (default), published or offline")
    parts.add_argument("--annotator", metavar="NAME", help="override the preset's annotator")
    parts.add_argument("--grounder", metavar="NAME", help="override the preset's grounder")
    parts.add_argument("--segmenter", metavar="NAME", help="override the preset's segmenter")
    parts.add_argument(
        "--vlm",
        metavar="PROVIDER:MODEL",
        help="vision language model (google:gemini-flash-latest)",
    )
    parts.add_argument("--config", "-c", metavar="NAME", help="SAM 2 config (sam2.1_hiera_l.yaml)")
    parts.add_argument("--checkpoint", "-k", metavar="FILE", help="SAM 2 or 3 checkpoint: .pt file, hub id or folder")
    _vlm_flags(command.add_argument_group("vision language model"))
    _model_flags(command.add_argument_group("grounder and segmenter"))


def _settings_flag(command: argparse.ArgumentParser) -> None:
    told = command.add_argument_group("settings")
    told.add_argument(
        "--settings", type=Path, default=None, metavar="FILE.toml", help="all flags below, as keys; flags given win"
    )


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
    vlm.add_argument("--vlm_base_url", metavar="URL", help="another server of the provider's protocol")
    vlm.add_argument(
        "--vlm_output",
        metavar="HOW",
        help="native (default): structured output by the server; prompted: the schema in words, for servers without",
    )
    vlm.add_argument("--vlm_side", type=int, metavar="N", help="long side of what it sees, px (768)")
    vlm.add_argument("--vlm_timeout", type=float, metavar="S", help="seconds for one answer (120)")
    vlm.add_argument("--retry_seconds", type=float, metavar="S", help="how long a failing call is tried again (300)")
    vlm.add_argument("--temperature", metavar="X", help="for every question, or by question: 0.7,verify=0 (0.7)")
    vlm.add_argument(
        "--thinking",
        metavar="X",
        help="off, auto, minimal, low, medium, high or tokens, also by question: 1024,verify=off "
        "(auto; verify, align and refute off)",
    )
    vlm.add_argument(
        "--safety",
        metavar="LEVEL",
        help="what Gemini blocks: none, high (default: only high risk), medium, low, or default (its own)",
    )
    vlm.add_argument("--prompts_dir", metavar="DIR", help="NAME.txt files that replace templates")
    vlm.add_argument(
        "--exhaustive",
        action=argparse.BooleanOptionalAction,
        help="reject a prompt that fits something unmasked as well (on)",
    )


def _model_flags(models: argparse._ArgumentGroup) -> None:
    models.add_argument("--grounder_model", metavar="MODEL", help="hub id or folder (the grounder's)")
    models.add_argument("--grounder_revision", metavar="REV", help="revision of that hub model")
    models.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with moondream-hf")
    models.add_argument("--box_threshold", type=float, metavar="X", help="least score of a box (the grounder's)")
    models.add_argument("--moondream_url", metavar="URL", help="Moondream's endpoint (its cloud)")
    models.add_argument("--device", metavar="NAME", help="auto (every GPU, else CPU), cuda, cuda:1, cpu")
    models.add_argument("--precision", metavar="P", help="auto (bfloat16 on GPUs), bfloat16, float32")
    models.add_argument("--device_batch", type=int, metavar="N", help="images at once on a device (4)")
    models.add_argument("--points_per_side", type=int, metavar="N", help="grid of the pool of masks (64)")
    models.add_argument("--clean_pixels", type=int, metavar="N", help="fill holes and drop islands under N px (100)")


def _export_flags(export: argparse.ArgumentParser) -> None:
    export.add_argument("--runs_root", type=Path, required=True, help="a run folder, or a folder of them")
    export.add_argument("--out_dir", type=Path, required=True, help="new, empty, or an earlier export")
    export.add_argument("--mode", choices=("train", "eval", "both"), default="both", help="default: %(default)s")
    export.add_argument(
        "--path_mode", choices=("relative", "absolute"), default="relative", help="default: %(default)s"
    )
    export.add_argument("--format", default="convseg", metavar="NAME", help="default: %(default)s")
    export.add_argument("--include_negatives", action="store_true", help="add negatives, with an all-black mask")
    reviews = "people's decisions: apply, ignore, or only what people accepted (%(default)s)"
    export.add_argument("--reviews", choices=("apply", "ignore", "only"), default="apply", help=reviews)
