"""The run folder: the files of one image. The only module that knows their names, and their only writer.

Every file is written whole or not at all: into a temporary file beside it, which then takes its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from pydantic import ValidationError

from dataengine.errors import DataEngineError, output_error
from dataengine.images import RUN_FOLDER_PREFIX, Photo, RgbArray
from dataengine.journal import Journal
from dataengine.overlays import numbered, region_overlay
from dataengine.records import (
    CONCEPTS,
    AcceptedRegion,
    Failure,
    NegativeVerification,
    Prompt,
    Record,
    RunRecord,
    Source,
    Summary,
    Usage,
)
from dataengine.stages.propose import to_rle
from dataengine.stages.verify import JudgedRegion

ORIGINAL = "original_image.png"
ALL_REGIONS = "all_regions_colored.png"
ACCEPTED_DIR = "accepted_regions"
PROMPTS = "conversational_segmentation_prompts.json"
VIZ = "generated_prompts_viz"
SUMMARY = "summary.json"
NEGATIVES = "negatives"
RUN = "run.json"
JOURNAL = "journal.jsonl"
FAILURES = "failures.jsonl"
LONGEST_NAME = 180  # bytes; file systems allow 255, and an export adds to it
PNG_EFFORT = 3  # zlib level: twice the speed of the default for a few per cent more bytes


class RunFolder:
    """One image's folder. Nothing is made before the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def journal(self) -> Journal:
        """The image's durable steps."""
        return Journal(self.path / JOURNAL)

    @cached_property
    def record(self) -> RunRecord | None:
        """`run.json`; None where there is none that can be read."""
        return read_record(self.path)

    def is_complete(self, fingerprint: str, concepts: Sequence[str], negatives: bool) -> bool:
        """Whether everything asked for was made from these inputs and is still there."""
        if self.record is None or not self.record.complete or self.record.fingerprint != fingerprint:
            return False
        wanted = [f"{concept}/{SUMMARY}" for concept in concepts]
        wanted += [f"{NEGATIVES}/{concept}.json" for concept in concepts] if negatives else []
        return all((self.path / name).exists() for name in wanted)

    def begin(self, record: RunRecord, photo: Photo) -> None:
        """Claim the folder for a run. Results made from other inputs are removed; the journal stays."""
        if self.record is None or self.record.fingerprint != record.fingerprint:
            self._remove_results()
        self._write_json(RUN, record)
        self._write_png(ORIGINAL, photo.rgb)

    def finish(self, record: RunRecord) -> None:
        """Mark the folder complete."""
        self._write_json(RUN, record)

    def clear(self) -> None:
        """Remove results and journal."""
        self._remove_results()
        for name in (RUN, JOURNAL):
            (self.path / name).unlink(missing_ok=True)
        self.release()

    @property
    def spent(self) -> Usage:
        """Cost of the steps done by this process since the journal was opened."""
        return self.journal.spent if "journal" in self.__dict__ else Usage()

    def release(self) -> None:
        """Drop what was read of the files: a long list of images must not keep every journal in memory."""
        self.__dict__.pop("journal", None)
        self.__dict__.pop("record", None)

    def _remove_results(self) -> None:
        for concept in CONCEPTS:  # what makes results readable goes first
            (self.path / concept / SUMMARY).unlink(missing_ok=True)
        for name in (*CONCEPTS, NEGATIVES, ACCEPTED_DIR):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (ORIGINAL, ALL_REGIONS):
            (self.path / name).unlink(missing_ok=True)

    def write_regions(self, photo: Photo, judged: Iterable[JudgedRegion]) -> list[AcceptedRegion]:
        """Write masks, boxes, overlays and `accepted.json` for the regions that have a mask."""
        kept = [(region, region.mask) for region in judged if region.mask is not None]
        accepted = []
        for index, (region, mask) in enumerate(kept):
            stem = f"{ACCEPTED_DIR}/masks/{index:03d}_mask"
            box = mask.xyxy
            assert box is not None  # an empty mask is never accepted
            entry = AcceptedRegion(
                index=index,
                label=region.label,
                path=f"{ACCEPTED_DIR}/{index:03d}_{slug(region.label)}.png",
                bbox=box,
                mask_path=f"{stem}.png",
                mask_npz_path=f"{stem}.npz",
                description=region.verdict.description,
                choice=region.verdict.choice,
                instances=[to_rle(instance) for instance in region.instances],
            )
            array = mask.array().astype(np.uint8)
            self._write_png(entry.mask_path, array * 255)
            self._write(entry.mask_npz_path, _npz(array))
            self._write_png(entry.path, region_overlay(photo.view, mask))
            self._write(f"{ACCEPTED_DIR}/bboxes/{index:03d}_bbox.txt", (" ".join(map(str, box)) + "\n").encode())
            accepted.append(entry)
        self._write_png(ALL_REGIONS, numbered(photo.view, [mask for _, mask in kept]))
        self._write_json(f"{ACCEPTED_DIR}/accepted.json", accepted)
        for folder in ("masks", "bboxes"):
            make_folder(self.path / ACCEPTED_DIR / folder)
        return accepted

    def write_concept(self, summary: Summary, concept: str, pictures: Mapping[str, RgbArray]) -> None:
        """Write a concept's prompts and pictures (by path), and last its `summary.json`."""
        for path, picture in pictures.items():
            self._write_png(path, picture)
        for verdict in ("ACCEPTED", "REJECTED"):
            for stray in make_folder(self.path / concept / VIZ / verdict).iterdir():
                if f"{concept}/{VIZ}/{verdict}/{stray.name}" not in pictures:
                    stray.unlink()
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
    def viz_path(concept: str, index: int, prompt: Prompt, accepted: bool) -> str:
        """Where a prompt's picture is written, relative to the folder."""
        verdict = "ACCEPTED" if accepted else "REJECTED"
        return f"{concept}/{VIZ}/{verdict}/{index:03d}_{slug(prompt.prompt)}.png"

    def _write_json(self, name: str, value: Record | Sequence[Record] | None) -> None:
        # A model may cut an emoji in half, which JSON can hold and UTF-8 cannot.
        self._write(name, to_json(value).encode("utf-8", "replace"))

    def _write_png(self, name: str, picture: RgbArray) -> None:
        ordered = picture[:, :, ::-1] if picture.ndim == 3 else picture
        done, data = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, PNG_EFFORT])
        if not done:
            raise DataEngineError(f"{self.path / name}: OpenCV could not encode a PNG of shape {picture.shape}")
        self._write(name, data.tobytes())

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.path / name, data)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, making its folder.

    Raises:
        OutputError: the disk is full or the folder cannot be written; no half file is left.
    """
    temporary = path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
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
    try:
        return RunRecord.model_validate_json((folder / RUN).read_bytes())
    except (OSError, ValidationError):
        return None


def slug(text: str, longest: int = 40) -> str:
    """Text as a short, safe part of a file name: ASCII letters, digits and underscores."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_").lower()[:longest].rstrip("_") or "unnamed"


def path_text(path: Path) -> str:
    """A path as text that any JSON file can hold: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def _npz(array: RgbArray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mask=array)
    return buffer.getvalue()


def assign_folders(output_dir: Path, images: Sequence[Path]) -> list[RunFolder]:
    """A folder for each image: `out_region_refine_<stem>`, the same one every time.

    A folder belongs to the image that its `run.json` names (or, where that file is gone, to one of the same content).
    Where the name is another image's, it takes `__<8 hex of its content>`.
    """
    made = _existing(output_dir)
    inputs = {path_text(image) for image in images}
    taken: set[str] = set()
    folders = []
    for image in images:
        base = base_name(image.stem)
        own = (
            name for name in made.get(base, ()) if name not in taken and _owner(output_dir / name) == path_text(image)
        )
        name = next(own, None) or next(
            n for n in _names(base, image) if n not in taken and _is_free(output_dir / n, image, inputs)
        )
        taken.add(name)
        folders.append(RunFolder(output_dir / name))
    return folders


def base_name(stem: str) -> str:
    """A run folder's name for an image's stem: control characters become underscores, long names are cut."""
    text = os.fsencode(stem).decode("utf-8", "replace")
    safe = "".join(c if c.isprintable() else "_" for c in text)
    if len(safe.encode()) > LONGEST_NAME - len(RUN_FOLDER_PREFIX):
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        safe = safe.encode()[: LONGEST_NAME - len(RUN_FOLDER_PREFIX) - 10].decode("utf-8", "ignore") + f"-{digest}"
    return RUN_FOLDER_PREFIX + safe


def _existing(output_dir: Path) -> dict[str, list[str]]:
    """The run folders there are, by their base name."""
    found: dict[str, list[str]] = {}
    if output_dir.is_dir():
        for name in sorted(entry.name for entry in os.scandir(output_dir) if entry.name.startswith(RUN_FOLDER_PREFIX)):
            for base in {name, re.sub(r"__[0-9a-f]{8}(_\d+)?$", "", name)}:
                found.setdefault(base, []).append(name)
    return found


def _names(base: str, image: Path) -> Iterator[str]:
    yield base
    try:
        content = hashlib.sha256(image.read_bytes()).hexdigest()[:8]
    except OSError:
        content = hashlib.sha256(os.fsencode(image)).hexdigest()[:8]
    yield f"{base}__{content}"
    number = 2
    while True:
        yield f"{base}__{content}_{number}"
        number += 1


def _owner(folder: Path) -> str | None:
    record = read_record(folder)
    return record.source.path if record else None


def _is_free(folder: Path, image: Path, inputs: set[str]) -> bool:
    """Whether a folder is nobody's, or that of the same content under a path it no longer has."""
    record = read_record(folder)
    if record is None:
        return True
    moved = record.source.path not in inputs and not Path(record.source.path).exists()
    return moved and sha256_of(image) == record.source.sha256


def sha256_of(path: Path) -> str | None:
    """The digest of a file's bytes; None where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def source_of(photo: Photo) -> Source:
    """What `run.json` says of the image a folder was made from."""
    stat = photo.path.stat()
    return Source(
        path=path_text(photo.path),
        sha256=photo.sha256,
        bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        width=photo.width,
        height=photo.height,
    )


def content_now(image: Path, source: Source) -> str | None:
    """The digest of the image's bytes, without reading them where size and time are as recorded."""
    try:
        stat = image.stat()
    except OSError:
        return None
    if (stat.st_size, stat.st_mtime_ns) == (source.bytes, source.mtime_ns):
        return source.sha256
    return sha256_of(image)


class Failures:
    """`failures.jsonl`: the images that failed when they were last tried."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / FAILURES

    def forget(self, images: Iterable[Path]) -> None:
        """Drop the lines of images that are about to be tried again."""
        again = {path_text(image) for image in images}
        left = [failure for failure in self.read() if failure.image not in again]
        if left:
            write_whole(self.path, "".join(f"{failure.model_dump_json()}\n" for failure in left).encode())
        else:
            self.path.unlink(missing_ok=True)

    def add(self, failure: Failure) -> None:
        """Append one."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(failure.model_dump_json() + "\n")
        except OSError as error:
            raise output_error(error, self.path) from error

    def read(self) -> list[Failure]:
        """All of them; a line cut off by a killed process is left out."""
        failures = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                failures.append(Failure.model_validate_json(line))
            except ValidationError:
                continue
        return failures
