"""What an export remembers of each run folder, so that the next one need not make it again.

`.export_state.jsonl` has a line for each run folder, sorted by name. A line holds digests of all that went in and of
all that came out, and is believed only where every one of them still fits: a line of any age can do no harm. While an
export is under way its lines go to a second file, which takes the first one's place at the end; after a cut-off the
next export reads both.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
from collections.abc import Generator
from pathlib import Path
from typing import IO

import cv2
import PIL
from pydantic import BaseModel

import dataengine
from dataengine.agreement import JudgedPrompt
from dataengine.errors import output_error
from dataengine.records import Share, Usage

STATE_FILE = ".export_state.jsonl"
UNDER_WAY = ".export_state.under_way.jsonl"
VERSION = 2  # must change whenever the same run folder would give other files, names or rows


class StagedSample(BaseModel):
    """A sample of a run folder: a row of the lists, what is counted of it, and the digest of its mask file.

    Attributes:
        area: share of the image inside the mask.
    """

    id: str
    concept: str
    family: str
    prompt: str
    negative: bool
    area: float
    digest: str


class Staged(BaseModel):
    """What came of one run folder.

    Attributes:
        run: the folder's name, as text.
        negatives: whether its negatives were read.
        reviews: how people's decisions were taken.
        sources: digests of all files it was made from, by place; None where one could not be read.
        image: the name of its image file; None where there is no sample.
        image_digest: of that file; empty where there is none.
        samples: in the order of the lists.
        skipped: prompts and files left out, by reason.
        reviewed: prompts by what a person's word did to them.
        judged: the prompts that people have judged, for agreement.
        verdicts: the engine's own, by concept.
        refused: likewise on negatives.
        maker: how the run folder was made, as JSON; empty where it is not told.
        usage: what it cost.
    """

    run: str
    negatives: bool
    reviews: str
    sources: dict[str, str] | None
    image: str | None
    image_digest: str
    samples: list[StagedSample]
    skipped: dict[str, int]
    reviewed: dict[str, int]
    judged: list[JudgedPrompt]
    verdicts: dict[str, Share]
    refused: dict[str, Share]
    maker: str
    usage: Usage


class State:
    """The state of an export that is under way: what the earlier one knew, and what this one adds, both by name.

    Neither is ever in memory as a whole. Use as a context; where that ends before `finish`, the lines added so far
    stay, for the next export.

    Args:
        out: the export's folder, which must be there.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self._path, self._under_way = out / STATE_FILE, out / UNDER_WAY
        try:
            self._join_lines_of_a_cut_off()
            self._file = self._begin(self._under_way)
        except OSError as error:
            raise output_error(error, self._path) from error
        self._earlier = _lines(self._path)
        self._next = next(self._earlier, None)

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self._earlier.close()
        with contextlib.suppress(OSError):  # a full disk was told of already
            self._file.close()

    def earlier(self, run: str) -> str | None:
        """The line of a run folder in the earlier state; must be asked in the order of names."""
        while self._next and self._next[0] < run:
            self._next = next(self._earlier, None)
        return self._next[1] if self._next and self._next[0] == run else None

    def add(self, line: str) -> None:
        """Remember what came of the next run folder."""
        try:
            self._file.write(line + "\n")
            self._file.flush()  # a process that is killed has written it all the same
        except OSError as error:
            raise output_error(error, self._path) from error

    def finish(self) -> None:
        """What was added takes the earlier state's place."""
        try:
            self._file.close()
            replace_if_other(self._under_way, self._path)
        except OSError as error:
            raise output_error(error, self._path) from error

    def _join_lines_of_a_cut_off(self) -> None:
        if not self._under_way.exists():
            return
        joined = self._path.with_name(f"{STATE_FILE}.tmp")
        with self._begin(joined) as file:
            both = heapq.merge(_lines(self._under_way), _lines(self._path), key=lambda entry: entry[0])
            last = None
            for run, line in both:  # of two lines of one run the newer comes first
                if run != last:
                    file.write(line + "\n")
                last = run
        joined.replace(self._path)
        self._under_way.unlink()

    def _begin(self, path: Path) -> IO[str]:
        file = path.open("w", encoding="utf-8", newline="\n")
        file.write(_head() + "\n")
        return file


def replace_if_other(new: Path, old: Path) -> None:
    """Move a file into another's place, or remove it where both hold the same. Raises OSError."""
    if old.is_symlink() or not old.is_file() or _file_digest(new) != _file_digest(old):
        new.replace(old)
    else:
        new.unlink()


def _head() -> str:
    """The first line of a state: whatever made it must be what reads it."""
    made_by = {"DataEngine": dataengine.__version__, "export": str(VERSION)}
    return json.dumps({"made_by": made_by | {"OpenCV": cv2.__version__, "Pillow": PIL.__version__}})


def _lines(path: Path) -> Generator[tuple[str, str], None, None]:
    """Name and line of each run folder, as far as the file can be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), path.open(encoding="utf-8") as file:
        if file.readline().rstrip("\n") != _head():
            return
        for line in file:
            yield str(json.loads(line)["run"]), line.rstrip("\n")


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
