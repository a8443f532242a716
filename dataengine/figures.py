"""What run folders or an export hold, in numbers, and what of it a user should look at."""

from __future__ import annotations

import itertools
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from dataengine.agreement import JudgedPrompt, agreement, judged_prompts
from dataengine.finished import Entry, Finished, SkipError, read_finished
from dataengine.masks import Mask
from dataengine.records import (
    CONCEPT_FAMILIES,
    CONCEPTS,
    Concern,
    Figures,
    Share,
    Spread,
    StageFigures,
    Usage,
)
from dataengine.run_folder import JOURNAL, path_text
from dataengine.sources import Sources, inside
from dataengine.stages.compose import rule_name
from dataengine.survey import Tally, journal_steps

AREA_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.95)
COUNT_EDGES = tuple(float(n) for n in range(0, 21))
WORD_EDGES = tuple(float(n) for n in range(1, 12))

TINY = 0.001  # share of the photo under which a mask is tiny
WHOLE = 0.95  # share of the photo from which a mask is nearly all of it
ONE_SIDED = 0.6  # share of a concept's prompts from which one family is too many of them
FEW = 10  # prompts of a concept below which its families tell nothing
ALIKE = 0.8  # shared words over all words (Jaccard) from which two prompts of one image are near-duplicates
ORDERED = 0.6  # share of their words in one order that they then have at least: else roles are swapped
COMPARED = 200  # prompts of one image
MANY_WORDINGS = 100_000
OFTEN = 0.05  # share of all prompts from which one wording stands too often
NOT_TOLD = "not told"  # in place of a family or a stage
EXAMPLES = 5  # of each concern
FILLERS = frozenset(
    [
        "segment",
        "identify",
        "find",
        "locate",
        "highlight",
        "select",
        "mark",
        "show",
        "outline",
        "pick",
        "point",
        "out",
        "isolate",
        "mask",
        "the",
        "a",
        "an",
        "all",
        "any",
        "every",
        "that",
        "which",
        "is",
        "are",
        "of",
    ]
)  # words that tell nothing of what is meant


class PromptSeen(BaseModel):
    """A prompt, for counting.

    Attributes:
        area: share of the photo inside its mask; None where there is none.
        why: by what it was rejected; empty where it was not.
    """

    concept: str
    family: str
    negative: bool
    accepted: bool
    text: str
    area: float | None
    why: str = ""


class StageSeen(BaseModel):
    """A stage of an image."""

    steps: int = 0
    seconds: float = 0.0
    usage: Usage = Usage()


class ImageSeen(BaseModel):
    """An image, for counting.

    Attributes:
        name: of its run folder.
        lapsed: decisions of people about prompts that are others now, and damaged ones.
    """

    name: str
    described: int = 0
    regions: int = 0
    prompts: list[PromptSeen] = []
    stages: dict[str, StageSeen] = {}
    judged: list[JudgedPrompt] = []
    lapsed: int = 0
    unreadable: dict[str, int] = {}


def see(folder: Path) -> ImageSeen:
    """A run folder, for counting: the engine's verdicts, and people's apart."""
    return seen(read_finished(Sources(folder)))


def seen(found: Finished) -> ImageSeen:
    """What `see` gives, of a run folder that is read already."""
    try:
        regions = len(found.masks.regions)
    except SkipError as skip:
        regions = 0
        found.skipped[skip.reason] += 1
    return ImageSeen(
        name=path_text(Path(found.folder.name)),
        described=len(found.described),
        regions=regions,
        prompts=[_prompt_seen(found, entry) for entry in found.entries],
        stages=_stages(found),
        judged=judged_prompts(found),
        lapsed=found.noted.total(),
        unreadable=dict(found.skipped),
    )


def _prompt_seen(found: Finished, entry: Entry) -> PromptSeen:
    return PromptSeen(
        concept=entry.concept,
        family=entry.family,
        negative=entry.negative,
        accepted=entry.accepted,
        text=entry.prompt,
        area=_area(found, entry.satisfying) if entry.accepted and entry.satisfying else None,
        why="" if entry.accepted else _why(entry),
    )


def _why(entry: Entry) -> str:
    """By what a prompt was rejected: a rule's name, or the kind of judgement."""
    rule = rule_name(entry.reason)
    if rule:
        return f"rule {rule}"
    if entry.negative:
        return "negative: something fits it"
    outside = re.match(r"something outside the masks fits|unmasked area ", entry.reason)
    return "something unmasked fits too" if outside else "judged not to fit its mask"


def _area(found: Finished, satisfying: Sequence[int]) -> float | None:
    """Share of the photo inside a prompt's mask, from run lengths where they are told: that is much faster."""
    try:
        known = found.masks.regions
    except SkipError:  # counted once, for all prompts
        return None
    try:
        masks = [found.masks.told(index) for index in satisfying if index in known]
        if len(masks) == len(satisfying) and all(masks):
            whole = Mask.union([mask for mask in masks if mask])
            return whole.area / (whole.height * whole.width)
        union = found.masks.union(satisfying)
        return union.area / (union.height * union.width)
    except SkipError as skip:
        found.skipped[skip.reason] += 1
    except ValueError:
        found.skipped["masks_differ_in_size"] += 1
    return None


def _stages(found: Finished) -> dict[str, StageSeen]:
    """Work and cost by stage, from the journal; where there is none, times from the summaries, and cost from `run.json`
    where that tells it."""
    tallies: dict[str, Tally] = {}
    told: dict[str, tuple[int, float]] = {}
    for step in journal_steps(found.folder) if found.sources.has(inside(JOURNAL)) else ():
        stage = step.name.partition("/")[0]
        tallies.setdefault(stage, Tally()).add(step.usage)
        steps, seconds = told.get(stage, (0, 0.0))
        told[stage] = (steps + step.done, seconds + step.seconds)
    if not told:
        return _stages_without_journal(found)
    return {
        stage: StageSeen(steps=steps, seconds=seconds, usage=tallies[stage].usage)
        for stage, (steps, seconds) in told.items()
    }


def _stages_without_journal(found: Finished) -> dict[str, StageSeen]:
    paid = found.maker.paid if found.maker else None
    stages = {timed.step: StageSeen(steps=timed.count, seconds=timed.total_seconds) for timed in found.timing}
    if paid is None:
        unknown = Usage(usd=None)
        return {name: stage.model_copy(update={"usage": unknown}) for name, stage in stages.items()} or {
            NOT_TOLD: StageSeen(usage=unknown)
        }
    for name, usage in paid.items():
        stages[name] = stages.get(name, StageSeen()).model_copy(update={"usage": usage})
    return stages


class Counting:
    """Adds images up, one by one; what is kept of each is a few numbers, and what people judged of it."""

    def __init__(self) -> None:
        self._images = self._described = self._regions = 0
        self._prompts: dict[str, Counter[bool]] = {}
        self._families: dict[str, dict[str, Counter[bool]]] = {}
        self._negatives: dict[str, Counter[bool]] = {}
        self._rejected: Counter[str] = Counter()
        self._areas, self._per_image, self._words = array("d"), array("d"), array("d")
        self._stages: dict[str, tuple[int, float, Tally]] = {}
        self._unreadable: Counter[str] = Counter()
        self._judged: list[JudgedPrompt] = []
        self._concerns = _Concerns()

    def add(self, image: ImageSeen) -> None:
        """Add an image."""
        self._images += 1
        self._described += image.described
        self._regions += image.regions
        for prompt in image.prompts:
            self._add_prompt(prompt)
        kept = [p for p in image.prompts if p.accepted and not p.negative]
        self._per_image.append(len(kept))
        for stage, of_image in image.stages.items():
            steps, seconds, tally = self._stages.get(stage, (0, 0.0, Tally()))
            tally.add(of_image.usage)
            self._stages[stage] = (steps + of_image.steps, seconds + of_image.seconds, tally)
        self._unreadable.update(image.unreadable)
        self._judged.extend(image.judged)
        self._concerns.add(image.name, kept, image.lapsed)

    def _add_prompt(self, prompt: PromptSeen) -> None:
        groups = self._negatives if prompt.negative else self._prompts
        groups.setdefault(prompt.concept, Counter())[prompt.accepted] += 1
        if not prompt.negative:
            families = self._families.setdefault(prompt.concept, {})
            families.setdefault(prompt.family or NOT_TOLD, Counter())[prompt.accepted] += 1
        if not prompt.accepted:
            self._rejected[prompt.why] += 1
            return
        self._words.append(len(prompt.text.split()))
        if prompt.area is not None:
            self._areas.append(prompt.area)

    def figures(self) -> Figures:
        """The sums so far."""
        prompts, negatives = _shares(self._prompts), _shares(self._negatives)
        families = {concept: _shares(self._families[concept]) for concept in _in_order(self._families)}
        stages = {
            stage: StageFigures(steps=steps, seconds=round(seconds, 3), usage=tally.usage)
            for stage, (steps, seconds, tally) in self._stages.items()
        }
        cost = sum((stage.usage for stage in stages.values()), Usage())
        return Figures(
            images=self._images,
            described_regions=self._described,
            accepted_regions=self._regions,
            prompts=prompts,
            families=families,
            negatives=negatives,
            rejected=dict(self._rejected.most_common()),
            mask_area=spread(self._areas, AREA_EDGES),
            prompts_per_image=spread(self._per_image, COUNT_EDGES),
            prompt_words=spread(self._words, WORD_EDGES),
            stages=stages,
            unreadable=dict(self._unreadable.most_common()),
            concerns=self._concerns.told(families),
            agreement=agreement(self._judged, prompts, negatives, cost.usd),
        )


def spread(values: Sequence[float], edges: Sequence[float]) -> Spread:
    """How values are distributed; what lies below the first edge counts in the first bin."""
    counts = [0] * len(edges)
    for value in values:
        counts[max(bisect_right(edges, value) - 1, 0)] += 1
    if not values:
        return Spread(count=0, least=None, median=None, mean=None, greatest=None, edges=[*edges], counts=counts)
    return Spread(
        count=len(values),
        least=min(values),
        median=float(np.median(values)),
        mean=float(np.mean(values)),
        greatest=max(values),
        edges=[*edges],
        counts=counts,
    )


def bin_names(edges: Sequence[float], *, percent: bool = False) -> list[str]:
    """What the bins of a spread are called; whole numbers where they are steps of one."""
    if all(after - before == 1 for before, after in itertools.pairwise(edges)):
        return [*(f"{edge:.0f}" for edge in edges[:-1]), f"{edges[-1]:.0f}+"]
    told = [f"{edge * 100:g}" if percent else f"{edge:g}" for edge in edges]
    unit = " %" if percent else ""
    return [*(f"{low} to {high}{unit}" for low, high in itertools.pairwise(told)), f"{told[-1]}{unit} and more"]


def _shares(groups: Mapping[str, Counter[bool]]) -> dict[str, Share]:
    return {name: Share(accepted=groups[name][True], rejected=groups[name][False]) for name in _in_order(groups)}


def _in_order(groups: Mapping[str, object]) -> list[str]:
    """Concepts in their order; anything else by name."""
    return sorted(groups, key=lambda name: (CONCEPTS.index(name) if name in CONCEPTS else len(CONCEPTS), name))


class _Concerns:
    """What a user should look at, of the accepted prompts that are no negatives."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}
        self._wordings: Counter[str] = Counter()
        self._total = 0

    def add(self, name: str, prompts: Sequence[PromptSeen], lapsed: int) -> None:
        """Look at the prompts of an image, and at the decisions about it that count no more."""
        if lapsed:
            self._note("lapsed_decisions", f"{name}: {lapsed}", lapsed)
        self._forget_rare_wordings()
        meanings = [meaning(prompt.text) for prompt in prompts]
        for prompt, words in zip(prompts, meanings, strict=True):
            self._total += 1
            self._wordings[" ".join(words)] += 1
            if prompt.area is not None and prompt.area < TINY:
                self._note("tiny_mask", f"{name}: {prompt.text} ({prompt.area:.3%} of the photo)")
            if prompt.area is not None and prompt.area >= WHOLE:
                self._note("whole_image_mask", f"{name}: {prompt.text} ({prompt.area:.0%} of the photo)")
        told = [(p, words, frozenset(words)) for p, words in zip(prompts, meanings, strict=True)][:COMPARED]
        for (first, one, these), (second, other, those) in itertools.combinations(told, 2):
            if share_words(these, those) and in_like_order(one, other):
                self._note("near_duplicates", f"{name}: {first.text} / {second.text}")

    def _forget_rare_wordings(self) -> None:
        """What is to be told stands often: of very many wordings the rare ones need no memory."""
        if len(self._wordings) > MANY_WORDINGS:
            self._wordings = Counter(dict(self._wordings.most_common(MANY_WORDINGS // 10)))

    def _note(self, kind: str, example: str, count_of: int = 1) -> None:
        count, examples = self._found.get(kind, (0, []))
        self._found[kind] = (count + count_of, examples if len(examples) >= EXAMPLES else [*examples, example])

    def told(self, families: Mapping[str, Mapping[str, Share]]) -> list[Concern]:
        """All concerns, in words."""
        words = {
            "near_duplicates": "pairs of accepted prompts of one image that say nearly the same",
            "tiny_mask": f"accepted prompts whose mask is under {TINY:.1%} of the photo",
            "lapsed_decisions": "decisions of people about prompts that are others now, or that cannot be read",
            "whole_image_mask": f"accepted prompts whose mask is {WHOLE:.0%} of the photo or more",
        }
        concerns = [
            Concern(kind=kind, count=self._found[kind][0], told=told, examples=self._found[kind][1])
            for kind, told in words.items()
            if kind in self._found
        ]
        return [*concerns, *self._repeated(), *one_sided(families)]

    def _repeated(self) -> Iterator[Concern]:
        often = [(text, n) for text, n in self._wordings.most_common() if n > max(OFTEN * self._total, FEW)]
        if often:
            told = f"accepted prompts whose wording is over {OFTEN:.0%} of all"
            examples = [f"{text}: {count}" for text, count in often[:EXAMPLES]]
            yield Concern(kind="repeated_wording", count=sum(n for _, n in often), told=told, examples=examples)


def one_sided(families: Mapping[str, Mapping[str, Share]]) -> Iterator[Concern]:
    """Concepts of which one family is most of the accepted prompts, and families with none."""
    for concept, told_and_not in families.items():
        found = {name: share for name, share in told_and_not.items() if name != NOT_TOLD}
        total = sum(share.accepted for share in found.values())
        if total < FEW:
            continue
        name, most = max(found.items(), key=lambda entry: entry[1].accepted)
        if most.accepted >= ONE_SIDED * total:
            told = f"of {total} accepted prompts of {concept} are of one family, {name}"
            yield Concern(kind="one_sided_family", count=most.accepted, told=told, examples=[])
        missing = missing_families(concept, found)
        if missing:
            told = f"families of {concept} have no accepted prompt"
            yield Concern(kind="missing_families", count=len(missing), told=told, examples=missing)


def missing_families(concept: str, found: Mapping[str, Share]) -> list[str]:
    """The families of a concept that have no accepted prompt."""
    return [f for f in CONCEPT_FAMILIES.get(concept, ()) if not found.get(f, Share()).accepted]


def meaning(text: str) -> list[str]:
    """The words of a prompt that say what is meant, in lower case."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return [word for word in words if word not in FILLERS] or words


def share_words(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two prompts have nearly the same words: by the Jaccard index."""
    return bool(one | other) and len(one & other) >= ALIKE * len(one | other)


def in_like_order(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether words stand in nearly one order: "cup left of plate" is not "plate left of cup"."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= ORDERED
