"""The samples of a finished run folder: the prompts to export, with the mask of each and one image of the same size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataengine.bits import Bits
from dataengine.exporters.pictures import Picture, Size, choose_image
from dataengine.finished import Entry, Finished, SkipError, read_finished
from dataengine.records import ReviewMode
from dataengine.sources import Sources


@dataclass(frozen=True)
class Sample:
    """One prompt and its mask, at the size of the run's image; the mask of a negative is empty.

    Attributes:
        family: of its concept; empty where it is not told.
    """

    concept: str
    index: int
    prompt: str
    mask: Bits
    negative: bool
    family: str


@dataclass(frozen=True)
class Run:
    """What one run folder gives to an export.

    Attributes:
        found: the run folder as it was read.
        image: the image of all samples; None where there is no sample.
        samples: positives in the order of `CONCEPTS`, then negatives in the same order.
        skipped: how many prompts and files were left out, by reason.
        reviewed: how many prompts a person's word changed or confirmed, by what it did.
        sources: digests of all files this was made from, by place; None where one could not be read.
    """

    found: Finished
    image: Picture | None
    samples: list[Sample]
    skipped: Counter[str]
    reviewed: Counter[str]
    sources: dict[str, str] | None


@dataclass(frozen=True)
class _Claim:
    """A prompt that passed the filter; its mask at the size it was written in, None for a negative."""

    entry: Entry
    prompt: str
    mask: Bits | None


def read_run(folder: Path, *, negatives: bool = False, reviews: ReviewMode = "apply") -> Run:
    """Read one run folder; whatever cannot be exported is counted by its reason and never raises.

    Args:
        folder: the run folder.
        negatives: read `negatives/<concept>.json` too.
        reviews: a person's word wins over the engine's (`apply`), is not read (`ignore`), or is needed (`only`).
    """
    sources = Sources(folder)
    found = read_finished(sources, negatives=negatives, reviews=reviews != "ignore")
    skipped, reviewed = found.skipped, Counter(found.noted)
    claims = _claims(found, reviews, skipped, reviewed)
    samples: list[Sample] = []
    image = None
    if claims:
        try:
            size = next((claim.mask.size for claim in claims if claim.mask), None)
            image = choose_image(sources, found.image_path, size)
            samples = list(_fitted(claims, image.size, skipped))
        except SkipError as skip:
            skipped[skip.reason] += len(claims)
    _ = found.maker  # noted too: what an export tells of it must be made anew when it changes
    noted = sources.digests if sources.sure else None
    return Run(found, image if samples else None, samples, skipped, reviewed, noted)


def _claims(found: Finished, reviews: ReviewMode, skipped: Counter[str], reviewed: Counter[str]) -> list[_Claim]:
    """The prompts that pass the filter."""
    claims = []
    for entry in found.entries:
        try:
            claims.append(_claim(found, entry, reviews, reviewed))
        except SkipError as skip:
            skipped[skip.reason] += 1
    positives = [claim for claim in claims if claim.mask]
    if positives and len(found.masks.sizes) > 1:
        skipped["masks_differ_in_size"] += len(positives)
        return [claim for claim in claims if not claim.mask]
    return claims


def _claim(found: Finished, entry: Entry, reviews: ReviewMode, reviewed: Counter[str]) -> _Claim:
    """The prompt, if a person accepts it, or the engine does and no person has judged it; raises SkipError."""
    word = None if reviews == "ignore" else found.word(entry)
    prompt, satisfying, accepted = entry.prompt, entry.satisfying, entry.accepted
    if word:
        prompt, satisfying = word.prompt, tuple(word.satisfying)
        accepted = accepted if word.verdict is None else word.verdict == "ACCEPT"
        reviewed.update(_said(entry, prompt, satisfying, word.verdict))
    if reviews == "only" and not (word and word.verdict):
        raise SkipError("not_reviewed")
    if not accepted:
        by_engine = "negative_not_accept" if entry.negative else "verdict_not_accept"
        raise SkipError("review_not_accept" if word and word.verdict else by_engine)
    if not prompt.strip():
        raise SkipError("prompt_blank")
    if entry.negative:
        return _Claim(entry, prompt, None)
    if not satisfying:
        raise SkipError("satisfying_empty")
    return _Claim(entry, prompt, found.masks.union(satisfying))


def _said(entry: Entry, prompt: str, satisfying: tuple[int, ...], verdict: str | None) -> Iterator[str]:
    """What a person's word did to a prompt."""
    if verdict:
        yield "accepted" if verdict == "ACCEPT" else "rejected"
        if (verdict == "ACCEPT") != entry.accepted:
            yield "verdict_turned"
    if prompt != entry.prompt:
        yield "text_edited"
    if set(satisfying) != set(entry.satisfying):
        yield "regions_changed"


def _fitted(claims: list[_Claim], size: Size, skipped: Counter[str]) -> Iterator[Sample]:
    """The claims with masks of the given size; those whose mask vanishes at that size are counted."""
    for claim in claims:
        mask = claim.mask.resized(*size) if claim.mask else Bits.empty(*size)
        if claim.mask and not mask.any:
            skipped["mask_empty"] += 1
            continue
        entry = claim.entry
        yield Sample(entry.concept, entry.index, claim.prompt, mask, entry.negative, entry.family)
