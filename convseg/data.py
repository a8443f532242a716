"""Data: `dataset.jsonl`, `items.json` and Hugging Face datasets as samples, checked before anything is computed.

A photo is brought to the model as published: its long side to the model's side, the rest of the square padded, the
photo in the middle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from dataengine.errors import ImageError, UsageError, one_line
from dataengine.images import RgbArray, read_photo
from dataengine.masks import BoolArray
from dataengine.run_folder import write_whole

FloatArray = npt.NDArray[np.float32]

NO_CONCEPT = "none"
UNSHRUNK = 1 << 30  # the side of a photo's view that is the photo itself
TOLD = 20  # bad lines told one by one; the others are counted
CHECKED_AT_ONCE = 64  # files a worker checks before it reports


@dataclass(frozen=True)
class Sample:
    """A photo, a mask of the same size, and the prompt that means it.

    Attributes:
        where: file and line, or item, for messages.
    """

    id: str
    image: Path
    mask: Path
    prompt: str
    concept: str = NO_CONCEPT
    where: str = ""


@dataclass(frozen=True)
class Loaded:
    """Samples that can be used, and why others cannot: a message for each, `where` first."""

    samples: list[Sample]
    bad: list[str]


def read_jsonl(path: Path, root: Path, limit: int | None = None) -> Loaded:
    """Read the lines of a `dataset.jsonl`: `image`, `mask_merged` and `prompt`, other keys are passed over.

    Args:
        root: what relative paths start from.
        limit: read only the first ones.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("--dataset-jsonl", path, error) from None
    # Not splitlines(), which also splits at characters that may stand in a prompt.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()][:limit]
    return _collect((f"{path.name} line {number}", partial(_of_line, line, root)) for number, line in lines)


def read_items(path: Path, limit: int | None = None) -> Loaded:
    """Read an `items.json`: `items`, each with `image`, `mask`, `prompt`, and where it has them `id` and `concept`;
    relative paths start from its folder. An id that stands twice gets a number.

    Raises:
        UsageError: the file cannot be read, or has no `items`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _unreadable("--input_json", path, error) from None
    except ValueError as error:
        raise UsageError(f"--input_json {path}: not JSON ({error})", hint="Export it again") from None
    items = content.get("items") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UsageError(f"--input_json {path}: has no list 'items'", hint="Name an items.json of `dataengine export`")
    return _collect(
        (f"{path.name} item {number}", partial(_of_item, item, path.parent, number))
        for number, item in enumerate(items[:limit], 1)
    )


class _BadError(Exception):
    """What is wrong with one line."""


def _collect(entries: Iterator[tuple[str, Callable[[str], Sample]]]) -> Loaded:
    found = Loaded([], [])
    taken: dict[str, int] = {}
    for where, make in entries:
        try:
            sample = make(where)
            taken[sample.id] = taken.get(sample.id, 0) + 1
            again = taken[sample.id] > 1
            found.samples.append(replace(sample, id=f"{sample.id}_{taken[sample.id]}") if again else sample)
        except _BadError as error:
            found.bad.append(one_line(f"{where}: {error}"))
    return found


def _of_line(line: str, root: Path, where: str) -> Sample:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise _BadError(f"not JSON ({error})") from None
    return _sample(entry, "mask_merged", root, where, where)


def _of_item(item: Any, root: Path, number: int, where: str) -> Sample:
    name = str(item.get("id") or f"item_{number}") if isinstance(item, dict) else ""
    return _sample(item, "mask", root, where, name)


def _sample(entry: Any, mask_key: str, root: Path, where: str, name: str) -> Sample:
    if not isinstance(entry, dict):
        raise _BadError("no JSON object")
    for key in ("image", mask_key, "prompt"):
        if not isinstance(entry.get(key), str):
            raise _BadError(f"has no {key!r}")
        if not entry[key].strip():
            raise _BadError(f"{key!r} is empty")
    concept = entry.get("concept")
    return Sample(
        id=name,
        image=root / entry["image"],
        mask=root / entry[mask_key],
        prompt=entry["prompt"].strip(),
        concept=concept if isinstance(concept, str) and concept else NO_CONCEPT,
        where=where,
    )


def _unreadable(flag: str, path: Path, error: Exception) -> UsageError:
    reason = (error.strerror or "") if isinstance(error, OSError) else "not UTF-8 text"
    return UsageError(f"{flag} {path}: cannot be read ({reason})", hint="Check the path")


# Checking: every file is decoded once, since a cut-off picture is found in no other way.


def checked(loaded: Loaded, workers: int, progress: Callable[[int, int], None] = lambda done, of: None) -> Loaded:
    """Decode each photo and mask once and compare their sizes.

    Args:
        loaded: samples as listed.
        workers: processes; 0 for this one.
        progress: told the files done, and their number.
    """
    images = list(dict.fromkeys(s.image for s in loaded.samples))
    masks = list(dict.fromkeys(s.mask for s in loaded.samples))
    jobs = [(path, is_mask) for paths, is_mask in ((images, False), (masks, True)) for path in paths]
    chunks = [jobs[i : i + CHECKED_AT_ONCE] for i in range(0, len(jobs), CHECKED_AT_ONCE)]
    found: dict[tuple[Path, bool], tuple[int, int] | str] = {}
    for chunk, results in zip(chunks, _each(chunks, workers), strict=True):
        found.update(zip(chunk, results, strict=True))
        progress(len(found), len(jobs))
    good, bad = [], list(loaded.bad)
    for sample in loaded.samples:
        reason = _mismatch(found[sample.image, False], found[sample.mask, True])
        if reason:
            bad.append(one_line(f"{sample.where}: {reason}"))
        else:
            good.append(sample)
    return Loaded(good, bad)


def _each(chunks: Sequence[Sequence[tuple[Path, bool]]], workers: int) -> Iterator[list[tuple[int, int] | str]]:
    if workers < 2 or len(chunks) < 2:
        yield from map(_sizes, chunks)
        return
    import multiprocessing

    # Not forked: this process may have threads of torch's.
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_sizes, chunks)


def _sizes(jobs: Sequence[tuple[Path, bool]]) -> list[tuple[int, int] | str]:
    """Height and width of each file, or what is wrong with it."""
    return [_size(path, is_mask) for path, is_mask in jobs]


def _size(path: Path, is_mask: bool) -> tuple[int, int] | str:
    try:
        height, width = (read_mask(path) if is_mask else read_rgb(path)).shape[:2]
    except ImageError as error:
        return f"{'mask' if is_mask else 'image'} {error.message}"
    return height, width


def _mismatch(image: tuple[int, int] | str, mask: tuple[int, int] | str) -> str:
    for found in (image, mask):
        if isinstance(found, str):
            return found
    if image == mask:
        return ""
    return f"image is {image[1]}x{image[0]} px, its mask {mask[1]}x{mask[0]}"


def usable(loaded: Loaded, source: str, *, skip_bad: bool, say: Callable[[str], None]) -> list[Sample]:
    """The samples, if all are good or bad ones may be passed over; each bad one is told.

    Raises:
        UsageError: something is bad and must not be passed over, or nothing is left.
    """
    for line in loaded.bad[:TOLD]:
        say(line)
    if len(loaded.bad) > TOLD:
        say(f"... and {len(loaded.bad) - TOLD} more")
    total = len(loaded.bad) + len(loaded.samples)
    if loaded.bad and not skip_bad:
        raise UsageError(
            f"{source}: {len(loaded.bad)} of {total} samples cannot be used",
            hint="Mend them, or pass over them: --skip_bad",
        )
    if not loaded.samples:
        raise UsageError(f"{source}: holds no sample that can be used", hint="Export some: dataengine export --help")
    if loaded.bad:
        say(f"{source}: passing over {len(loaded.bad)} of {total} samples")
    return loaded.samples


def data_digest(samples: Sequence[Sample]) -> str:
    """12 hex digits that change with the samples: ids, prompts, and the names and sizes of their files."""
    whole = hashlib.sha256()
    stamps: dict[Path, str] = {}
    for s in samples:
        for path in (s.image, s.mask):
            if path not in stamps:
                stamps[path] = f"{path.name}:{path.stat().st_size}"
        whole.update(f"{s.id}\0{stamps[s.image]}\0{stamps[s.mask]}\0{s.prompt}\n".encode())
    return whole.hexdigest()[:12]


def split_by_image(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and to validate on. Prompts of one photo stay together: the model has seen no photo it is
    validated on. Where there is only one photo, it serves for both.

    Args:
        share: of the photos to validate on; one at least.
    """
    images = list(dict.fromkeys(s.image for s in samples))
    if len(images) < 2:
        return list(samples), list(samples)
    order = np.random.default_rng(seed).permutation(len(images))
    held = {images[i] for i in order[: max(1, round(share * len(images)))]}
    return [s for s in samples if s.image not in held], [s for s in samples if s.image in held]


# Pictures.


def read_rgb(path: Path) -> RgbArray:
    """A photo, upright, (H, W, 3) uint8.

    Raises:
        ImageError: as `dataengine.images.read_photo`.
    """
    return read_photo(path, view_side=UNSHRUNK).rgb


def read_mask(path: Path) -> BoolArray:
    """A mask file as (H, W) bool: inside where its grey value, or its alpha where that says something, is above 0.

    Raises:
        ImageError: it is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() != (255, 255):
                return np.asarray(image.getchannel("A")) > 0
            return np.asarray(image if image.mode in ("L", "1") else image.convert("L")) > 0
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file", hint="Check the path", reason="missing") from None
    except Exception as error:  # Pillow's decoders raise many types on broken bytes
        what = str(error).replace(repr(str(path)), "").strip() or type(error).__name__
        raise ImageError(f"{path}: cannot be decoded ({what})", hint="Replace it", reason="truncated") from None


@dataclass(frozen=True)
class Place:
    """Where a photo of `height` x `width` px lies in a square of `side` px: rows `top` on, columns `left` on."""

    side: int
    top: int
    left: int
    rows: int
    columns: int
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, side: int) -> Place:
        """The long side becomes `side`, and the photo lies in the middle."""
        scale = side / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        return cls(side, (side - rows) // 2, (side - columns) // 2, rows, columns, height, width)

    @property
    def part(self) -> tuple[slice, slice]:
        """`square[place.part]` is the photo."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    def photo(self, rgb: RgbArray) -> RgbArray:
        """(H, W, 3) -> (side, side, 3), black around it."""
        square = np.zeros((self.side, self.side, 3), np.uint8)
        how = cv2.INTER_AREA if self.side < max(rgb.shape[:2]) else cv2.INTER_LINEAR
        square[self.part] = cv2.resize(rgb, (self.columns, self.rows), interpolation=how)
        return square

    def mask(self, mask: BoolArray) -> npt.NDArray[np.uint8]:
        """(H, W) bool -> (side, side) of 0 and 1, nearest neighbour."""
        square = np.zeros((self.side, self.side), np.uint8)
        size = (self.columns, self.rows)
        square[self.part] = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        return square

    def inside(self, cells: int) -> BoolArray:
        """(cells, cells) bool: the cells of the square that the photo covers by half or more."""
        square = np.zeros((self.side, self.side), np.float32)
        square[self.part] = 1
        return np.asarray(_by_cells(square, cells) >= 0.5)


def target_of(mask: BoolArray, place: Place, cells: int, erode: int = 0, times: int = 1) -> FloatArray:
    """The share of each cell that a mask covers, (cells, cells) float32 in 0..1.

    Args:
        mask: (H, W) of the photo.
        erode: side in pixels of the square by which the mask is made thinner first, as published (5, in a square of
            1024 px); a mask that would vanish is left as it is. 0 leaves all.
        times: how often.
    """
    square = place.mask(mask)
    if erode > 1 and times > 0:
        thinner = cv2.erode(square, np.ones((erode, erode), np.uint8), iterations=times)
        square = np.asarray(thinner, np.uint8) if thinner.any() else square
    return _by_cells(square.astype(np.float32), cells)


def _by_cells(square: FloatArray, cells: int) -> FloatArray:
    return np.asarray(cv2.resize(square, (cells, cells), interpolation=cv2.INTER_AREA), np.float32)


def jittered(rgb: RgbArray, random: np.random.Generator) -> RgbArray:
    """The photo a little lighter or darker, with more or less contrast and colour. What a prompt means stays true: it
    is neither turned nor mirrored nor cut."""
    light, contrast, colour = random.uniform((-20, 0.85, 0.85), (20, 1.15, 1.15))
    values = rgb.astype(np.float32)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + (values - grey) * colour
    values = (values - 128) * contrast + 128 + light
    return np.asarray(values.clip(0, 255), np.uint8)


# Hugging Face datasets.

HF_COLUMNS = ("image", "mask", "prompt")


def read_hf(
    name: str, config: str | None, splits: Sequence[str], cache: Path | None, limit: int | None, folder: Path
) -> dict[str, Loaded]:
    """The splits of a Hugging Face dataset with columns id, image, mask, prompt and concept (arXiv 2602.13195's).

    Photos and masks are written to files in `folder`, each once.

    Args:
        name: hub id, or a local folder that `datasets.load_dataset` reads.
        config: of the dataset; None for its only one.
        splits: their names; empty for all.
        cache: where the hub's files are kept; None for the library's own place.
        limit: samples of each split.

    Raises:
        UsageError: it cannot be loaded, or lacks a split or a column.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, name=config, cache_dir=str(cache) if cache else None)
    except Exception as error:  # the library, the hub and the disk raise all kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--hf_dataset {name}: cannot be loaded ({first})", hint="Check name and network") from None
    if missing := [split for split in splits if split not in found]:
        there = ", ".join(found)
        raise UsageError(f"--hf_splits: no split {missing[0]!r} in {name}", hint=f"There are {there}")
    return {split: _of_split(found[split], name, split, limit, folder) for split in splits or found}


def _of_split(rows: Any, name: str, split: str, limit: int | None, folder: Path) -> Loaded:
    import datasets

    lacking = [column for column in HF_COLUMNS if column not in rows.column_names]
    if lacking:
        there = ", ".join(rows.column_names)
        raise UsageError(f"--hf_dataset {name}: split {split} has no column {lacking[0]!r}", hint=f"There are {there}")
    for column in ("image", "mask"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    return _collect(
        (f"{split} row {number}", partial(_of_row, row, f"{split}_{number}", folder)) for number, row in enumerate(rows)
    )


def _of_row(row: Mapping[str, Any], name: str, folder: Path, where: str) -> Sample:
    files = {key: str(_file_of(row[key], key, folder)) for key in ("image", "mask")}
    entry = {**files, "prompt": row["prompt"], "concept": row.get("concept")}
    return _sample(entry, "mask", Path(), where, str(row.get("id") or name))


def _file_of(value: Mapping[str, Any] | None, key: str, folder: Path) -> Path:
    """The file of a picture in a dataset; one that is only in the dataset is written, by its content's digest."""
    data, path = (value or {}).get("bytes"), (value or {}).get("path")
    if data is None and path:
        return Path(path)
    if not data:
        raise _BadError(f"has no {key!r}")
    written = folder / hashlib.sha256(data).hexdigest()[:24]
    if not written.exists():
        write_whole(written, data, durable=False)
    return written
