"""A finished run folder as it is read again: its prompts, regions, masks, and what people decided of them.

Reads the folders DataEngine writes, and those of the published engine, whose masks are at most 768 px and whose paths
may be those of another machine. So files are checked for what is needed of them, and no more.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Annotated, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from dataengine.bits import Bits
from dataengine.errors import UsageError
from dataengine.journal import digest
from dataengine.masks import BoolArray, Mask
from dataengine.records import CONCEPTS, Judged, PartRecord, Rle, Usage
from dataengine.reviews import Key, Reviews
from dataengine.run_folder import ACCEPTED, ACCEPTED_DIR, NEGATIVES, REVIEWS, RUN, SUMMARY, path_text
from dataengine.sources import Sources, inside, is_file, typed

B = TypeVar("B", bound=BaseModel)

Words = Annotated[str, BeforeValidator(lambda text: text if isinstance(text, str) else "")]  # to be shown, no more
ENTRIES = TypeAdapter(list[object])
MANY = 1_000_000  # above any index


class SkipError(Exception):
    """Something cannot be used.

    Args:
        reason: a short stable name to count by.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Entry:
    """A prompt as the engine left it.

    Attributes:
        family: of its concept; empty where it is not told.
        satisfying: indices of the regions it means; empty for a negative.
        reason: of the verdict.
    """

    concept: str
    negative: bool
    index: int
    prompt: str
    family: str
    satisfying: tuple[int, ...]
    accepted: bool
    reason: str


class Region(BaseModel):
    """An entry of `accepted.json`, as far as it is needed."""

    index: int
    label: Words = ""
    description: Words = ""
    bbox: object = None
    mask_path: str | None = None
    mask_npz_path: str | None = None
    instances: list[dict[str, object]] = Field(default=[], repr=False)


class Described(BaseModel):
    """An entry of a summary's `results`, as far as it is needed."""

    label: Words = ""
    output: Words = ""
    reason: Words = ""


class Maker(BaseModel):
    """What `run.json` says of how a folder was made, as far as it is needed."""

    dataengine: str = ""
    complete: bool = False
    parts: dict[str, PartRecord] = {}
    prompt_digests: dict[str, str] = {}
    usage: dict[str, Usage] | None = None  # earlier versions wrote none

    @property
    def paid(self) -> dict[str, Usage] | None:
        """What was paid by stage; None where that is not told, as of an image that is not finished."""
        return self.usage if self.usage or self.complete else None


class Timed(BaseModel):
    """An entry of a summary's `timing`, as far as it is needed."""

    step: str
    total_seconds: Annotated[float, Field(ge=0, lt=1e9)]
    count: Annotated[int, Field(ge=0, lt=1_000_000_000)]


class _Family(BaseModel):
    concept_family: Words = ""


class _Prompt(BaseModel):
    index: Annotated[int, Field(ge=0, lt=MANY)] | None = None
    prompt: str
    satisfying: list[int] | None = None
    verdict: str | None = None
    reason: Words = ""
    concept_family: Words = ""


class _Summary(BaseModel):
    image_path: str | None = None
    results: object = None
    conversational_prompts: object = None
    prompt_verifications: list[object] | None = None
    timing: object = None


@dataclass
class Finished:
    """What a run folder holds. Whatever cannot be read is counted by its reason, and never raises.

    Attributes:
        sources: through which all is read.
        image_path: the image it was made from, as the folder names it; None where it does not.
        described: every described region; empty where it is not told.
        timing: seconds by stage, of the summary that tells of most; empty where none does.
        entries: positives in the order of `CONCEPTS`, then negatives in the same order.
        reviews: what people decided.
        skipped: entries and files that cannot be read, by reason.
        noted: decisions that count for nothing, by reason.
        with_negatives: whether negatives were read too.
    """

    sources: Sources
    image_path: str | None = None
    described: list[Described] = field(default_factory=list)
    timing: list[Timed] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    reviews: Reviews = field(default_factory=Reviews)
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    with_negatives: bool = True

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.sources.folder

    @property
    def photo_name(self) -> str:
        """The file name of the image it was made from, as text; the folder's where it is not told."""
        return path_text(Path(PureWindowsPath(self.image_path or self.folder.name).name))

    @cached_property
    def maker(self) -> Maker | None:
        """How it was made; None where that is not told, as by the published engine."""
        try:
            data = self.sources.read(inside(RUN))
            return None if data is None else Maker.model_validate_json(data)
        except (OSError, ValueError):
            return None

    @cached_property
    def masks(self) -> RegionMasks:
        """The accepted regions and their masks, read when they are asked for."""
        return RegionMasks(self.sources)

    def key(self, entry: Entry) -> Key:
        """By what decisions about a prompt are known."""
        regions = None if entry.negative else self._regions_digest
        basis = digest([entry.concept, entry.negative, entry.prompt, list(entry.satisfying), regions])
        return Key(entry.concept, entry.negative, entry.index, basis)

    @cached_property
    def _regions_digest(self) -> str:
        try:
            regions = self.masks.regions
        except SkipError:
            regions = {}
        return digest([[r.index, r.label, r.bbox, r.instances] for r in regions.values()])

    def word(self, entry: Entry) -> Judged | None:
        """A person's word on a prompt: the last; None where nobody has decided anything of it."""
        return self.reviews.word(self.key(entry)) if len(self.reviews) else None

    @property
    def lapsed(self) -> int:
        """Prompts that people decided of and that are no more, or are others now."""
        if not len(self.reviews):
            return 0
        known = {self.key(entry) for entry in self.entries}
        return sum(key not in known and (self.with_negatives or not key.negative) for key in self.reviews.prompts())


def find_runs(root: Path, named: str = "") -> list[Path]:
    """The run folders of a root, absolute, sorted by name: the root itself if it is one, else those in it.

    Args:
        named: the flag that named the root, for messages.

    Raises:
        UsageError: the root is no folder, cannot be read, or holds no run folder.
    """
    told = f"{named} {root}".strip()
    root = Path(os.path.abspath(root))  # noqa: PTH100 - keeps symbolic links
    try:
        if not root.exists():
            raise UsageError(f"{told}: no such folder", hint="Check the path")
        if not root.is_dir():
            raise UsageError(f"{told}: not a folder", hint="Give the folder that holds the run folders")
        found = [root] if _is_run(root) else sorted(child for child in root.iterdir() if _is_run(child))
    except OSError as error:
        raise UsageError(f"{told}: cannot be read ({error.strerror})", hint="Check its permissions") from None
    if not found:
        hint = "A run folder holds <concept>/summary.json, such as entities/summary.json"
        raise UsageError(f"{told}: no run folder in it", hint=hint)
    return found


def _is_run(folder: Path) -> bool:
    return any(is_file(folder / concept / SUMMARY) for concept in CONCEPTS)


def read_finished(sources: Sources, *, negatives: bool = True, reviews: bool = True) -> Finished:
    """Read one run folder.

    Args:
        negatives: read `negatives/<concept>.json` too.
        reviews: read `reviews.jsonl` too.
    """
    found = Finished(sources, with_negatives=negatives)
    for concept in CONCEPTS:
        _read_summary(found, concept)
    for concept in CONCEPTS if negatives else ():
        _read_negatives(found, concept)
    if reviews:
        _read_reviews(found)
    return found


def _read_summary(found: Finished, concept: str) -> None:
    try:
        data = found.sources.read(inside(f"{concept}/{SUMMARY}"))
        if data is None:
            return
        summary = _Summary.model_validate_json(data)
    except (OSError, ValueError):
        found.skipped["summary_unreadable"] += 1
        return
    found.image_path = found.image_path or summary.image_path
    found.described = found.described or list(_each(summary.results, Described))
    found.timing = max(found.timing, list(_each(summary.timing, Timed)), key=len)
    families = _families(summary.conversational_prompts)
    _add_entries(found, concept, summary.prompt_verifications or [], families)


def _each(entries: object, kind: type[B]) -> Iterator[B]:
    """The entries of a list that are of a kind; none where it is no list."""
    for entry in entries if isinstance(entries, list) else ():
        try:
            yield kind.model_validate(entry)
        except ValueError:
            continue


def _families(prompts: object) -> Mapping[int, str]:
    """The family of each prompt, by its position; the published engine writes a list or an object of lists."""
    if isinstance(prompts, dict):
        prompts = next((value for value in prompts.values() if isinstance(value, list)), [])
    found = {}
    for position, prompt in enumerate(prompts if isinstance(prompts, list) else []):
        try:
            found[position] = _Family.model_validate(prompt).concept_family
        except ValueError:
            continue
    return found


def _read_negatives(found: Finished, concept: str) -> None:
    try:
        data = found.sources.read(inside(f"{NEGATIVES}/{concept}.json"))
        entries = [] if data is None else ENTRIES.validate_json(data)
    except (OSError, ValueError):
        found.skipped["negatives_unreadable"] += 1
        return
    _add_entries(found, concept, entries, None)


def _add_entries(found: Finished, concept: str, entries: list[object], families: Mapping[int, str] | None) -> None:
    """Add prompts of a concept; negatives, where families are not told apart from them."""
    negative = families is None
    for position, entry in enumerate(entries):
        try:
            prompt = _Prompt.model_validate(entry)
        except ValueError:
            found.skipped["prompt_malformed"] += 1
            continue
        index = position if prompt.index is None or negative else prompt.index
        family = prompt.concept_family if families is None else families.get(index, "")
        satisfying = () if negative else tuple(prompt.satisfying or ())
        accepted = prompt.verdict == "ACCEPT"
        found.entries.append(
            Entry(concept, negative, index, prompt.prompt, family, satisfying, accepted, prompt.reason)
        )


def _read_reviews(found: Finished) -> None:
    try:
        found.reviews = Reviews(found.sources.read(inside(REVIEWS)) or b"")
    except OSError:
        found.skipped["reviews_unreadable"] += 1
        return
    for reason, count in (("review_line_damaged", found.reviews.damaged), ("review_lapsed", found.lapsed)):
        if count:
            found.noted[reason] += count


class RegionMasks:
    """The accepted regions of one run folder; each mask is read once, when it is first asked for, and so are unions."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._done: dict[int, Bits | SkipError] = {}
        self._told: dict[int, Mask | None] = {}
        self._unions: dict[frozenset[int], Bits] = {}  # prompts that mean the same share one
        self._regions: dict[int, Region] | SkipError
        try:
            self._regions = _regions(sources)
        except SkipError as skip:
            self._regions = skip

    @property
    def regions(self) -> dict[int, Region]:
        """The regions by index; raises SkipError where they cannot be read."""
        if isinstance(self._regions, SkipError):
            raise self._regions
        return self._regions

    @property
    def indices(self) -> list[int]:
        """Of the regions; none where they cannot be read."""
        return [] if isinstance(self._regions, SkipError) else list(self._regions)

    def size(self) -> tuple[int, int] | None:
        """Height and width of the first mask that can be read; None where none can."""
        for index in self.indices:
            with contextlib.suppress(SkipError):
                return self.mask(index).size
        return None

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Height and width of the masks read so far."""
        return {mask.size for mask in self._done.values() if isinstance(mask, Bits)}

    def union(self, indices: Sequence[int]) -> Bits:
        """What is inside any of the regions' masks; raises SkipError."""
        wanted = frozenset(indices)
        if wanted in self._unions:
            return self._unions[wanted]
        masks = [self.mask(index) for index in dict.fromkeys(indices)]
        if len({mask.size for mask in masks}) > 1:
            raise SkipError("masks_differ_in_size")
        union = Bits.union(masks)
        if not union.any:
            raise SkipError("mask_empty")
        self._unions[wanted] = union
        return union

    def mask(self, index: int) -> Bits:
        """One region's mask; raises SkipError."""
        if index not in self.regions:
            raise SkipError("region_missing")
        if index not in self._done:
            self._done[index] = self._read(self.regions[index])
        mask = self._done[index]
        if isinstance(mask, SkipError):
            raise mask
        return mask

    def told(self, index: int) -> Mask | None:
        """One region's mask as `accepted.json` tells it, without reading a file; None where it does not, or wrongly."""
        if index not in self._told:
            self._told[index] = _told(self.regions[index])
        return self._told[index]

    def _read(self, region: Region) -> Bits | SkipError:
        reason = "mask_missing"
        for named, decode in ((region.mask_path, png_mask), (region.mask_npz_path, _npz_mask)):
            for place in _mask_places(named):
                try:
                    data = self._sources.read(place)
                    if data is not None:
                        return Bits.from_array(decode(data))
                except Exception:  # decoders raise many types on broken bytes
                    reason = "mask_unreadable"
        return SkipError(reason)


def _regions(sources: Sources) -> dict[int, Region]:
    """The accepted regions by index; a malformed entry is no region."""
    try:
        data = sources.read(inside(ACCEPTED))
        if data is None:
            raise SkipError("accepted_json_missing")
        entries = ENTRIES.validate_json(data)
    except (OSError, ValueError):
        raise SkipError("accepted_json_unreadable") from None
    found: dict[int, Region] = {}
    for region in _each(entries, Region):
        found.setdefault(region.index, region)
    return found


def _told(region: Region) -> Mask | None:
    try:
        masks = [Mask.from_rle(Rle.model_validate(instance)) for instance in region.instances]
        return Mask.union(masks) if masks and all(mask.is_sound for mask in masks) else None
    except ValueError:  # no run lengths, or of several sizes
        return None


def _mask_places(named: str | None) -> list[str]:
    """Where a mask file may be, best first: as named in the run folder, moved with it, or as named anywhere."""
    if not named:
        return []
    moved = inside(f"{ACCEPTED_DIR}/masks/{PureWindowsPath(named).name}")  # knows both kinds of slash
    return [moved, typed(named)] if Path(named).is_absolute() else list(dict.fromkeys([inside(named), moved]))


def png_mask(data: bytes) -> BoolArray:
    """A mask file as (H, W) bool: True where any colour is not 0."""
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
