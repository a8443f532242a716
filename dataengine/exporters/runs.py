"""Reading finished run folders: the prompts to export, with the mask of each and one image of the same size.

Reads the folders DataEngine writes, and those of the published engine, whose masks are at most 768 px and
whose paths may be those of another machine. So files are checked for what an export needs, and no more.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from dataengine.errors import UsageError
from dataengine.exporters.pictures import Picture, Size, SkipError, choose_image, is_file, read_json
from dataengine.masks import BoolArray, Mask
from dataengine.records import CONCEPTS
from dataengine.run_folder import ACCEPTED, ACCEPTED_DIR, NEGATIVES, SUMMARY


@dataclass(frozen=True)
class Sample:
    """One prompt and its mask, at the size of the run's image; the mask of a negative is empty."""

    concept: str
    index: int
    prompt: str
    mask: Mask
    negative: bool


@dataclass(frozen=True)
class Run:
    """What one run folder gives to an export.

    Attributes:
        folder: the run folder.
        image: the image of all samples; None where there is no sample.
        samples: positives in the order of `CONCEPTS`, then negatives in the same order.
        skipped: how many prompts and files were left out, by reason.
    """

    folder: Path
    image: Picture | None
    samples: list[Sample]
    skipped: Counter[str]


@dataclass(frozen=True)
class _Claim:
    """A prompt that passed the filter; its mask at the size it was written in, None for a negative."""

    concept: str
    index: int
    prompt: str
    mask: Mask | None


class _Region(BaseModel):
    index: int
    mask_path: str | None = None
    mask_npz_path: str | None = None


class _Prompt(BaseModel):
    index: Annotated[int, Field(ge=0, lt=1_000_000)] | None = None
    prompt: str
    satisfying: list[int] | None = None
    verdict: str | None = None


class _Summary(BaseModel):
    image_path: str | None = None
    prompt_verifications: list[object] | None = None


def find_runs(runs_root: Path) -> list[Path]:
    """The run folders of a root, absolute, sorted by name: the root itself if it is one, else those in it.

    Raises:
        UsageError: the root is no folder, cannot be read, or holds no run folder.
    """
    root = Path(os.path.abspath(runs_root))  # noqa: PTH100 - keeps symbolic links
    try:
        if not root.exists():
            raise UsageError(f"--runs_root {runs_root}: no such folder", hint="Check the path")
        if not root.is_dir():
            raise UsageError(
                f"--runs_root {runs_root}: not a folder", hint="Give the folder that holds the run folders"
            )
        found = [root] if _is_run(root) else sorted(child for child in root.iterdir() if _is_run(child))
    except OSError as error:
        message = f"--runs_root {runs_root}: cannot be read ({error.strerror})"
        raise UsageError(message, hint="Check its permissions") from None
    if not found:
        hint = "A run folder holds <concept>/summary.json, such as entities/summary.json"
        raise UsageError(f"--runs_root {runs_root}: no run folder in it", hint=hint)
    return found


def read_run(folder: Path, *, negatives: bool = False) -> Run:
    """Read one run folder; whatever cannot be exported is counted by its reason and never raises.

    Args:
        folder: the run folder.
        negatives: read `negatives/<concept>.json` too.
    """
    skipped: Counter[str] = Counter()
    summaries = _summaries(folder, skipped)
    claims = _positives(folder, summaries, skipped) + (_negatives(folder, skipped) if negatives else [])
    named = next((summary.image_path for _, summary in summaries if summary.image_path), None)
    samples: list[Sample] = []
    image = None
    if claims:
        try:
            image = choose_image(folder, named, next((_size(c.mask) for c in claims if c.mask), None))
            samples = list(_fitted(claims, image.size, skipped))
        except SkipError as skip:
            skipped[skip.reason] += len(claims)
    return Run(folder, image if samples else None, samples, skipped)


def _is_run(folder: Path) -> bool:
    return any(is_file(folder / concept / SUMMARY) for concept in CONCEPTS)


def _summaries(folder: Path, skipped: Counter[str]) -> list[tuple[str, _Summary]]:
    found = []
    for concept in CONCEPTS:
        path = folder / concept / SUMMARY
        if not is_file(path):
            continue
        try:
            found.append((concept, read_json(path, _Summary)))
        except (OSError, ValueError):
            skipped["summary_unreadable"] += 1
    return found


# Prompts that pass the filter.


def _positives(folder: Path, summaries: list[tuple[str, _Summary]], skipped: Counter[str]) -> list[_Claim]:
    masks = _Masks(folder)
    claims = []
    for concept, summary in summaries:
        for position, entry in enumerate(summary.prompt_verifications or []):
            try:
                claims.append(_positive(concept, position, entry, masks))
            except SkipError as skip:
                skipped[skip.reason] += 1
    if len(masks.sizes) > 1 and claims:
        skipped["masks_differ_in_size"] += len(claims)
        return []
    return claims


def _positive(concept: str, position: int, entry: object, masks: _Masks) -> _Claim:
    prompt = _accepted(entry, "verdict_not_accept")
    if not prompt.satisfying:
        raise SkipError("satisfying_empty")
    index = position if prompt.index is None else prompt.index
    return _Claim(concept, index, prompt.prompt, masks.union(prompt.satisfying))


def _negatives(folder: Path, skipped: Counter[str]) -> list[_Claim]:
    claims = []
    for concept in CONCEPTS:
        for position, entry in enumerate(_negative_entries(folder / NEGATIVES / f"{concept}.json", skipped)):
            try:
                claims.append(_Claim(concept, position, _accepted(entry, "negative_not_accept").prompt, None))
            except SkipError as skip:
                skipped[skip.reason] += 1
    return claims


def _negative_entries(path: Path, skipped: Counter[str]) -> list[object]:
    if not is_file(path):
        return []
    try:
        return read_json(path, list[object])
    except (OSError, ValueError):
        skipped["negatives_unreadable"] += 1
        return []


def _accepted(entry: object, rejected: str) -> _Prompt:
    """The entry, if it is well formed, accepted (else `rejected` is the reason) and not blank."""
    try:
        prompt = _Prompt.model_validate(entry)
    except ValueError:
        raise SkipError("prompt_malformed") from None
    if prompt.verdict != "ACCEPT":
        raise SkipError(rejected)
    if not prompt.prompt.strip():
        raise SkipError("prompt_blank")
    return prompt


def _fitted(claims: list[_Claim], size: Size, skipped: Counter[str]) -> Iterator[Sample]:
    """The claims with masks of the given size; those whose mask vanishes at that size are counted."""
    for claim in claims:
        if claim.mask is None:
            yield Sample(claim.concept, claim.index, claim.prompt, Mask.empty(*size), negative=True)
            continue
        mask = claim.mask.resized(*size, nearest=True)
        if mask.area:
            yield Sample(claim.concept, claim.index, claim.prompt, mask, negative=False)
        else:
            skipped["mask_empty"] += 1


# Masks of accepted regions.


class _Masks:
    """The accepted masks of one run folder, each read once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[int, Mask | SkipError] = {}
        self._regions: dict[int, _Region] | SkipError
        try:
            self._regions = _regions(folder / ACCEPTED)
        except SkipError as skip:
            self._regions = skip

    @property
    def sizes(self) -> set[Size]:
        """The sizes of the masks read so far."""
        return {_size(mask) for mask in self._done.values() if isinstance(mask, Mask)}

    def union(self, indices: list[int]) -> Mask:
        """What is inside any of the regions' masks; raises SkipError."""
        masks = [self._mask(index) for index in indices]
        if len({_size(mask) for mask in masks}) > 1:
            raise SkipError("masks_differ_in_size")
        union = Mask.union(masks)
        if not union.area:
            raise SkipError("mask_empty")
        return union

    def _mask(self, index: int) -> Mask:
        if isinstance(self._regions, SkipError):
            raise self._regions
        if index not in self._regions:
            raise SkipError("region_missing")
        if index not in self._done:
            self._done[index] = self._read(self._regions[index])
        mask = self._done[index]
        if isinstance(mask, SkipError):
            raise mask
        return mask

    def _read(self, region: _Region) -> Mask | SkipError:
        reason = "mask_missing"
        for named, read in ((region.mask_path, _png_mask), (region.mask_npz_path, _npz_mask)):
            for path in _mask_places(self._folder, named):
                try:
                    return Mask.from_array(read(path))
                except Exception:  # decoders raise many types on broken bytes
                    reason = "mask_unreadable"
        return SkipError(reason)


def _regions(path: Path) -> dict[int, _Region]:
    """The accepted regions by index; a malformed entry is no region."""
    if not is_file(path):
        raise SkipError("accepted_json_missing")
    try:
        entries = read_json(path, list[object])
    except (OSError, ValueError):
        raise SkipError("accepted_json_unreadable") from None
    found: dict[int, _Region] = {}
    for entry in entries:
        try:
            region = _Region.model_validate(entry)
        except ValueError:
            continue
        found.setdefault(region.index, region)
    return found


def _mask_places(folder: Path, named: str | None) -> list[Path]:
    """Where a mask file is, best first: as named in the run folder, moved with it, or as named anywhere."""
    if not named:
        return []
    inside = [] if Path(named).is_absolute() else [folder / named]
    moved = folder / ACCEPTED_DIR / "masks" / PureWindowsPath(named).name  # knows both kinds of slash
    outside = [Path(named)] if Path(named).is_absolute() else []
    return [path for path in dict.fromkeys([*inside, moved, *outside]) if is_file(path)]


def _png_mask(path: Path) -> BoolArray:
    """(H, W) bool: True where any colour is not 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large files
        with Image.open(path) as image:
            one_band = len(image.getbands()) == 1 and image.mode != "P"
            values = np.asarray(image if one_band else image.convert("RGB"))
    inside: BoolArray = values != 0
    return inside if inside.ndim == 2 else np.asarray(inside.any(axis=2))


def _npz_mask(path: Path) -> BoolArray:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["mask"] != 0)


def _size(mask: Mask) -> Size:
    return mask.height, mask.width
