"""The run folder: the files of one image. The only module that knows their names, and their only writer.

Every file is written whole or not at all, through a power cut too: into a temporary file beside it, which takes its
name when it is on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from dataengine.errors import DataEngineError, output_error
from dataengine.images import Photo, RgbArray
from dataengine.journal import Journal, sync
from dataengine.masks import Mask
from dataengine.overlays import numbered, region_overlay
from dataengine.packing import npz, png
from dataengine.records import (
    CONCEPTS,
    AcceptedRegion,
    NegativeVerification,
    Prompt,
    Record,
    RunHead,
    RunRecord,
    Summary,
    Usage,
    Verdict,
)

if TYPE_CHECKING:
    from dataengine.stages.verify import JudgedRegion

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)

ORIGINAL = "original_image.png"
ALL_REGIONS = "all_regions_colored.png"
ACCEPTED_DIR = "accepted_regions"
ACCEPTED = f"{ACCEPTED_DIR}/accepted.json"
PROMPTS = "conversational_segmentation_prompts.json"
VIZ = "generated_prompts_viz"
SUMMARY = "summary.json"
NEGATIVES = "negatives"
RUN = "run.json"
JOURNAL = "journal.jsonl"
REVIEWS = "reviews.jsonl"


class RunFolder:
    """One image's folder. Nothing is made before the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def journal(self) -> Journal:
        """The image's durable steps."""
        return Journal(self.path / JOURNAL)

    def open_journal(self) -> None:
        """Read the journal now; it may be long, and whoever asks for it first waits."""
        _ = self.journal

    @cached_property
    def record(self) -> RunRecord | None:
        """`run.json`; None where there is none that can be read."""
        return read_record(self.path)

    @cached_property
    def head(self) -> RunHead | None:
        """What of `run.json` says whether the image is done; None where there is none that can be read."""
        return _read(self.path, RunHead)

    def is_complete(self, fingerprint: str, concepts: Sequence[str], negatives: bool) -> bool:
        """Whether everything asked for was made from these inputs, and no file of a fixed name has gone since."""
        if self.head is None or not self.head.complete or self.head.fingerprint != fingerprint:
            return False
        wanted = [ORIGINAL, ALL_REGIONS, ACCEPTED, *(f"{concept}/{SUMMARY}" for concept in concepts)]
        wanted += [f"{NEGATIVES}/{concept}.json" for concept in concepts] if negatives else []
        root = f"{self.path}/"  # of a hundred thousand folders, making a Path for each file would take most of the time
        return all(os.path.exists(root + name) for name in wanted)  # noqa: PTH110

    def begin(self, record: RunRecord) -> None:
        """Claim the folder for a run. Results made from other inputs are removed; the journal stays."""
        if self.head is None or self.head.fingerprint != record.fingerprint:
            self._remove_results()
        self._write_json(RUN, record)

    def finish(self, record: RunRecord) -> None:
        """Mark the folder complete, once the names of all its files are on the disk."""
        try:
            for folder, _, _ in os.walk(self.path):
                sync(Path(folder))
        except OSError as error:
            raise output_error(error, self.path) from error
        self._write_json(RUN, record)

    def clear(self) -> None:
        """Remove results and journal."""
        self._remove_results()
        for name in (RUN, JOURNAL):
            self._remove(name)
        self.release()

    @property
    def spent(self) -> Usage:
        """Cost of the steps done by this process since the journal was opened."""
        return self.journal.spent if "journal" in self.__dict__ else Usage()

    def release(self) -> None:
        """Drop what was read of the files: a long list of images must not keep every journal in memory."""
        for name in ("journal", "record", "head"):
            self.__dict__.pop(name, None)

    def _remove_results(self) -> None:
        readable = [f"{concept}/{SUMMARY}" for concept in CONCEPTS]  # goes first: nothing half removed is read as whole
        for name in (*readable, *CONCEPTS, NEGATIVES, ACCEPTED_DIR, ORIGINAL, ALL_REGIONS):
            self._remove(name)

    def _remove(self, name: str) -> None:
        path = self.path / name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(error, path) from error

    def write_regions(self, photo: Photo, judged: Iterable[JudgedRegion]) -> list[AcceptedRegion]:
        """Write masks, boxes, overlays and `accepted.json` for the regions that have a mask.

        Where they differ from those there, all results about those are removed first: indices would mean others.
        """
        kept = [(region, region.mask) for region in judged if region.mask is not None]
        accepted = [_accepted_region(index, region, mask) for index, (region, mask) in enumerate(kept)]
        if self._differs(ACCEPTED, to_json(accepted)):
            self._remove_results()
        self._write_png(ORIGINAL, photo.rgb)
        for entry, (_, mask) in zip(accepted, kept, strict=True):
            array = mask.array().view(np.uint8)
            self._write_png(entry.mask_path, array * 255)
            self._write(entry.mask_npz_path, npz(array))
            self._write_png(entry.path, region_overlay(photo.view, mask))
            box = " ".join(map(str, entry.bbox))
            self._write(f"{ACCEPTED_DIR}/bboxes/{entry.index:03d}_bbox.txt", f"{box}\n".encode())
        self._write_png(ALL_REGIONS, numbered(photo.view, [mask for _, mask in kept]))
        for folder in ("masks", "bboxes"):
            make_folder(self.path / ACCEPTED_DIR / folder)
        self._write_json(ACCEPTED, accepted)
        return accepted

    def _differs(self, name: str, text: str) -> bool:
        try:
            return (self.path / name).read_text(encoding="utf-8") != text
        except (OSError, UnicodeDecodeError):
            return True

    def write_concept(self, summary: Summary, concept: str, pictures: Mapping[str, RgbArray]) -> None:
        """Write a concept's prompts and pictures (by path), and last its `summary.json`."""
        for path, picture in pictures.items():
            self._write_png(path, picture)
        for verdict in ("ACCEPTED", "REJECTED"):
            for stray in make_folder(self.path / concept / VIZ / verdict).iterdir():
                if f"{concept}/{VIZ}/{verdict}/{stray.name}" not in pictures:
                    self._remove(f"{concept}/{VIZ}/{verdict}/{stray.name}")
        self._write_json(self.prompts_path(concept), summary.conversational_prompts)
        self._write_json(f"{concept}/{SUMMARY}", summary)

    def write_negatives(self, concept: str, negatives: Sequence[NegativeVerification]) -> None:
        """Write `negatives/<concept>.json`."""
        self._write_json(f"{NEGATIVES}/{concept}.json", negatives)

    @staticmethod
    def prompts_path(concept: str) -> str:
        """Where a concept's prompts are written, relative to the folder."""
        return f"{concept}/{PROMPTS}"

    @staticmethod
    def viz_dir(concept: str) -> str:
        """Where a concept's prompt pictures are, relative to the folder."""
        return f"{concept}/{VIZ}"

    @staticmethod
    def viz_path(concept: str, index: int, prompt: Prompt, verdict: Verdict) -> str:
        """Where a prompt's picture is written, relative to the folder."""
        return f"{concept}/{VIZ}/{verdict}ED/{index:03d}_{slug(prompt.prompt)}.png"

    def _write_json(self, name: str, value: Record | Sequence[Record] | None) -> None:
        # A model may cut an emoji in half, which JSON can hold and UTF-8 cannot.
        self._write(name, to_json(value).encode("utf-8", "replace"))

    def _write_png(self, name: str, picture: RgbArray) -> None:
        self._write(name, png(picture))

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.path / name, data)


def _accepted_region(index: int, region: JudgedRegion, mask: Mask) -> AcceptedRegion:
    box = mask.xyxy
    assert box is not None  # an empty mask is never accepted
    stem = f"{ACCEPTED_DIR}/masks/{index:03d}_mask"
    return AcceptedRegion(
        index=index,
        label=region.label,
        path=f"{ACCEPTED_DIR}/{index:03d}_{slug(region.label)}.png",
        bbox=box,
        mask_path=f"{stem}.png",
        mask_npz_path=f"{stem}.npz",
        description=region.verdict.description,
        choice=region.verdict.choice,
        instances=[instance.rle for instance in region.instances],
        cleaned_pixels=region.cleaned_pixels,
    )


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all, making its folder.

    Args:
        durable: it is on the disk before it takes its name, so that a power cut leaves no half file either.

    Raises:
        OutputError: the disk is full or the folder cannot be written; no half file is left.
    """
    temporary = path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        if durable:
            sync(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise output_error(error, path) from error


def make_folder(folder: Path) -> Path:
    """Make a folder, with those above it, where it is not there.

    Raises:
        OutputError: the disk is full or something is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, folder) from error
    return folder


def to_json(value: Record | Sequence[Record] | None) -> str:
    """Indented JSON of a record, a list of them or null."""
    if value is None:
        plain: object = None
    elif isinstance(value, Record):
        plain = value.model_dump(mode="json")
    else:
        plain = [record.model_dump(mode="json") for record in value]
    return json.dumps(plain, ensure_ascii=False, indent=2) + "\n"


def read_record(folder: Path) -> RunRecord | None:
    """A folder's `run.json`; None where there is none that can be read."""
    return _read(folder, RunRecord)


def _read(folder: Path, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json((folder / RUN).read_bytes())
    except (OSError, ValidationError):
        return None


def read_file(path: Path, kind: type[T]) -> T | None:
    """A JSON file of a run folder as `kind`; None where there is none.

    Raises:
        DataEngineError: it cannot be read as that.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise DataEngineError(f"{path}: cannot be read ({reason})", hint="Delete it and run its image again") from None


def example_pictures(output_dir: Path) -> list[Path]:
    """The first overlay of numbered regions and the first accepted prompt's picture in an output folder."""
    overlays = sorted(output_dir.glob(f"*/{ALL_REGIONS}"))
    accepted = sorted(output_dir.glob(f"*/*/{VIZ}/ACCEPTED/*.png"))
    return [*overlays[:1], *accepted[:1]]


def slug(text: str, longest: int = 40) -> str:
    """Text as a short, safe part of a file name: ASCII letters, digits and underscores."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_").lower()[:longest].rstrip("_") or "unnamed"


def path_text(path: Path) -> str:
    """A path as text that any JSON file can hold: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")
