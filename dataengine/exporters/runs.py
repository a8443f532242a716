"""Reading finished run folders: the prompts to export, with the mask of each and one image of the same size.

Reads the folders DataEngine writes, and those of the published engine, whose masks are at most 768 px and
whose paths may be those of another machine. So files are checked for what an export needs, and no more.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter

from dataengine.errors import UsageError
from dataengine.exporters.bits import Bits
from dataengine.exporters.pictures import Picture, Size, SkipError, choose_image
from dataengine.exporters.sources import Sources, inside, is_file, typed
from dataengine.masks import BoolArray
from dataengine.records import CONCEPTS
from dataengine.run_folder import ACCEPTED, ACCEPTED_DIR, NEGATIVES, SUMMARY

ENTRIES = TypeAdapter(list[object])


@dataclass(frozen=True)
class Sample:
    """One prompt and its mask, at the size of the run's image; the mask of a negative is empty."""

    concept: str
    index: int
    prompt: str
    mask: Bits
    negative: bool


@dataclass(frozen=True)
class Run:
    """What one run folder gives to an export.

    Attributes:
        folder: the run folder.
        image: the image of all samples; None where there is no sample.
        samples: positives in the order of `CONCEPTS`, then negatives in the same order.
        skipped: how many prompts and files were left out, by reason.
        sources: digests of all files this was made from, by place; None where one could not be read.
    """

    folder: Path
    image: Picture | None
    samples: list[Sample]
    skipped: Counter[str]
    sources: dict[str, str] | None


@dataclass(frozen=True)
class _Claim:
    """A prompt that passed the filter; its mask at the size it was written in, None for a negative."""

    concept: str
    index: int
    prompt: str
    mask: Bits | None


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
    sources = Sources(folder)
    skipped: Counter[str] = Counter()
    summaries = _summaries(sources, skipped)
    claims = _positives(sources, summaries, skipped) + (_negatives(sources, skipped) if negatives else [])
    named = next((summary.image_path for _, summary in summaries if summary.image_path), None)
    samples: list[Sample] = []
    image = None
    if claims:
        try:
            image = choose_image(sources, named, next((claim.mask.size for claim in claims if claim.mask), None))
            samples = list(_fitted(claims, image.size, skipped))
        except SkipError as skip:
            skipped[skip.reason] += len(claims)
    return Run(folder, image if samples else None, samples, skipped, sources.digests if sources.sure else None)


def _is_run(folder: Path) -> bool:
    return any(is_file(folder / concept / SUMMARY) for concept in CONCEPTS)


def _summaries(sources: Sources, skipped: Counter[str]) -> list[tuple[str, _Summary]]:
    found = []
    for concept in CONCEPTS:
        try:
            data = sources.read(inside(f"{concept}/{SUMMARY}"))
            if data is not None:
                found.append((concept, _Summary.model_validate_json(data)))
        except (OSError, ValueError):
            skipped["summary_unreadable"] += 1
    return found


# Prompts that pass the filter.


def _positives(sources: Sources, summaries: list[tuple[str, _Summary]], skipped: Counter[str]) -> list[_Claim]:
    masks = _Masks(sources)
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


def _negatives(sources: Sources, skipped: Counter[str]) -> list[_Claim]:
    claims = []
    for concept in CONCEPTS:
        for position, entry in enumerate(_negative_entries(sources, concept, skipped)):
            try:
                claims.append(_Claim(concept, position, _accepted(entry, "negative_not_accept").prompt, None))
            except SkipError as skip:
                skipped[skip.reason] += 1
    return claims


def _negative_entries(sources: Sources, concept: str, skipped: Counter[str]) -> list[object]:
    try:
        data = sources.read(inside(f"{NEGATIVES}/{concept}.json"))
        return [] if data is None else ENTRIES.validate_json(data)
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
        mask = claim.mask.resized(*size) if claim.mask else Bits.empty(*size)
        if claim.mask and not mask.any:
            skipped["mask_empty"] += 1
            continue
        yield Sample(claim.concept, claim.index, claim.prompt, mask, negative=claim.mask is None)


# Masks of accepted regions.


class _Masks:
    """The accepted masks of one run folder, each read once, when it is first asked for, and their unions."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._done: dict[int, Bits | SkipError] = {}
        self._unions: dict[frozenset[int], Bits] = {}  # prompts that mean the same share one
        self._regions: dict[int, _Region] | SkipError
        try:
            self._regions = _regions(sources)
        except SkipError as skip:
            self._regions = skip

    @property
    def sizes(self) -> set[Size]:
        """The sizes of the masks read so far."""
        return {mask.size for mask in self._done.values() if isinstance(mask, Bits)}

    def union(self, indices: list[int]) -> Bits:
        """What is inside any of the regions' masks; raises SkipError."""
        wanted = frozenset(indices)
        if wanted in self._unions:
            return self._unions[wanted]
        masks = [self._mask(index) for index in dict.fromkeys(indices)]
        if len({mask.size for mask in masks}) > 1:
            raise SkipError("masks_differ_in_size")
        union = Bits.union(masks)
        if not union.any:
            raise SkipError("mask_empty")
        self._unions[wanted] = union
        return union

    def _mask(self, index: int) -> Bits:
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

    def _read(self, region: _Region) -> Bits | SkipError:
        reason = "mask_missing"
        for named, decode in ((region.mask_path, _png_mask), (region.mask_npz_path, _npz_mask)):
            for place in _mask_places(named):
                try:
                    data = self._sources.read(place)
                    if data is not None:
                        return Bits.from_array(decode(data))
                except Exception:  # decoders raise many types on broken bytes
                    reason = "mask_unreadable"
        return SkipError(reason)


def _regions(sources: Sources) -> dict[int, _Region]:
    """The accepted regions by index; a malformed entry is no region."""
    try:
        data = sources.read(inside(ACCEPTED))
        if data is None:
            raise SkipError("accepted_json_missing")
        entries = ENTRIES.validate_json(data)
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


def _mask_places(named: str | None) -> list[str]:
    """Where a mask file may be, best first: as named in the run folder, moved with it, or as named anywhere."""
    if not named:
        return []
    moved = inside(f"{ACCEPTED_DIR}/masks/{PureWindowsPath(named).name}")  # knows both kinds of slash
    return [moved, typed(named)] if Path(named).is_absolute() else list(dict.fromkeys([inside(named), moved]))


def _png_mask(data: bytes) -> BoolArray:
    """(H, W) bool: True where any colour is not 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large files
        with Image.open(io.BytesIO(data)) as image:
            one_band = len(image.getbands()) == 1 and image.mode != "P"
            values = np.asarray(image if one_band else image.convert("RGB"))
    inside: BoolArray = values != 0
    return inside if inside.ndim == 2 else np.asarray(inside.any(axis=2))


def _npz_mask(data: bytes) -> BoolArray:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return np.asarray(arrays["mask"] != 0)
