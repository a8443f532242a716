"""The report: one page that shows what run folders hold, which loads nothing from elsewhere.

Its pictures stand in the page, or beyond `INLINE` images in a folder beside it, where they are found again when the
report is written again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from dataengine import __version__
from dataengine.agreement import agreement_lines, rate_text
from dataengine.console import cost_text
from dataengine.errors import UsageError, output_error
from dataengine.exporters.workers import PATIENCE, Workers, processors
from dataengine.figures import Counting, bin_names
from dataengine.finished import find_runs
from dataengine.overlays import HEX_PALETTE
from dataengine.prices import money
from dataengine.records import CONCEPT_FAMILIES, Figures, Spread
from dataengine.report.gallery import GalleryImage, look
from dataengine.run_folder import make_folder, path_text, write_whole

INLINE = 300  # images whose pictures stand in the page: some 10 MB
OURS = re.compile(r"dataengine-\w+-[0-9a-f]{12}\.jpg")  # names of pictures


class Written(NamedTuple):
    """A report: its page, the page's size in bytes, the folder of its pictures where it has one, and what could not be
    read, by reason."""

    page: Path
    bytes: int
    folder: Path | None
    unreadable: dict[str, int]


def write_report(runs: Path, out: Path) -> Written:
    """Write the report of a run folder, or of a folder of them.

    Args:
        out: the page; its folder is made where it is not there.

    Raises:
        UsageError: there is no run folder, or `out` is a folder.
        OutputError: the page or its pictures cannot be written.
        DataEngineError: a worker process was killed.
    """
    folders = find_runs(runs)
    _check(out)
    pictures = out.with_name(f"{out.stem}_files") if len(folders) > INLINE else None
    if pictures:
        make_folder(pictures)
    counting, images = Counting(), list[str]()
    with Workers(processors(), PATIENCE) as pool:
        for line in pool.results((partial(look, folder, pictures), True) for folder in folders):
            image = GalleryImage.model_validate_json(line)
            counting.add(image.seen)
            images.append(_entry(image))
    name = path_text(Path(os.path.abspath(runs))).rpartition("/")[2]  # noqa: PTH100 - keeps symbolic links
    figures = counting.figures()
    page = render(name, figures, images, pictures.name if pictures else "").encode()
    write_whole(out, page, durable=False)
    if pictures:
        _remove_others(pictures, images)
    return Written(out, len(page), pictures, figures.unreadable)


def _check(out: Path) -> None:
    try:
        if out.exists() and not out.is_file():
            what = "a folder" if out.is_dir() else "no plain file"
            raise UsageError(f"--out {out}: {what}", hint="Name a file, such as report.html")
    except OSError as error:
        raise output_error(error, out) from error


def _entry(image: GalleryImage) -> str:
    """What the page's script needs of an image, as JSON in which nothing can end the script's element."""
    plain = image.model_dump(mode="json", exclude={"seen"})
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _remove_others(folder: Path, images: Iterable[str]) -> None:
    """Remove pictures of earlier reports that this one does not show, and nothing else: browsers make such folders."""
    shown = {json.loads(image)["picture"] for image in images}
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in shown:
            try:
                path.unlink()
            except OSError as error:
                raise output_error(error, path) from error


def render(name: str, figures: Figures, images: list[str], folder: str) -> str:
    """The page.

    Args:
        images: entries of the gallery, as JSON.
        folder: that of the pictures, relative to the page; empty where they stand in it.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(money=money, rate=rate_text, cost=cost_text, bars=bars, short=short)
    source = files(__package__)
    style, script = (source.joinpath(part).read_text(encoding="utf-8") for part in ("page.css", "page.js"))
    return environment.from_string(source.joinpath("page.html").read_text(encoding="utf-8")).render(
        name=name,
        figures=figures,
        families=CONCEPT_FAMILIES,
        agreement_lines=list(agreement_lines(figures.agreement)) if figures.agreement else [],
        gallery=f"[{','.join(images)}]",
        folder=folder,
        palette=" ".join(HEX_PALETTE),
        version=__version__,
        style=style,
        script=script,
        policy=policy(style, script, pictures="'self' file:" if folder else "data: blob:"),
    )


def policy(style: str, script: str, *, pictures: str) -> str:
    """A Content-Security-Policy for a page with one style and one script of its own, named by their digests."""
    return f"default-src 'none'; img-src {pictures}; style-src {_hash(style)}; script-src {_hash(script)}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class Bar(NamedTuple):
    """A bar of a histogram: the bin's name, the number of what is in it, and that in percent of the highest bar."""

    name: str
    number: int
    height: float


def bars(spread: Spread, percent: bool = False) -> Iterator[Bar]:
    """The bars of a histogram, without empty ones at its ends."""
    filled = [number for number, count in enumerate(spread.counts) if count]
    if not filled:
        return
    names = bin_names(spread.edges, percent=percent)
    for number in range(filled[0], filled[-1] + 1):
        count = spread.counts[number]
        yield Bar(names[number], count, round(100 * count / max(spread.counts), 2))


def short(number: int) -> str:
    """A number in few characters."""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1000:.0f}k" if number < 10_000_000 else f"{number / 1e6:.0f}M"
