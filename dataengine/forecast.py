"""What a run will cost, before it is begun: calls, tokens and money by stage.

How many calls an image makes and what one costs is taken from the images that are done in the output folder, where
the same parts made them; else from the figures below, which are told as such.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataengine import prompts
from dataengine.basis import UPSTREAM
from dataengine.parts import Parts
from dataengine.plan import Finding, after, stages_asked
from dataengine.prices import usd
from dataengine.records import CONCEPTS, PROMPTS_A_CONCEPT, Usage
from dataengine.settings import MOONDREAM_CLOUD, QUESTIONS, Settings
from dataengine.survey import Head, Surveyed, Tally, journal_steps, surveyed

REGIONS = 7  # of an image, by default
# Calls for an image, of a stage about a concept for each concept, where no run has been measured.
CALLS = {
    "describe": 1.0,
    "ground": float(REGIONS),
    "verify": float(REGIONS),
    "compose": 1.0,
    "align": float(PROMPTS_A_CONCEPT),
    "negatives": 1.0,
    "detect": PROMPTS_A_CONCEPT / 2,  # of absent things, one of the two strategies
    "refute": float(PROMPTS_A_CONCEPT),
}
PER_CONCEPT = ("compose", "align", "negatives", "detect", "refute")
OF_GROUNDER = ("ground", "detect")
STAGES_OF = {"annotator": QUESTIONS, "grounder": OF_GROUNDER, "segmenter": ("propose", "segment")}

CHARACTERS_A_TOKEN = 4  # Google's and OpenAI's rule for English text
SLOTS_AND_SCHEMA = 150  # tokens of labels, descriptions and field names around a template: a guess
PICTURES = {"describe": 1.0, "verify": 2.5, "compose": 2.0, "align": 2.0, "negatives": 2.0, "refute": 1.0}
# Tokens of a picture of 768 x 576 px as the providers document them: Gemini 3 takes 1,120 for any picture unless told
# otherwise; OpenAI 85 and 170 for each of 4 tiles of 512 px; Anthropic a token for 750 pixels.
PICTURE_TOKENS = {"google": 1120, "openai": 765, "anthropic": 590}
ANSWER_TOKENS = {"describe": 420, "verify": 80, "compose": 200, "align": 70, "negatives": 250, "refute": 70}  # a guess
# Tokens thought before an answer, by setting; a guess, but for a number, which is the most that are thought.
THOUGHT_TOKENS = {"off": 0, "minimal": 100, "low": 500, "auto": 1000, "medium": 2000, "high": 8000}


@dataclass(frozen=True)
class Rate:
    """Calls of a stage for an image (of a stage about a concept: for each concept), and the cost of one.

    Attributes:
        usd: of a call; None where it is not known.
    """

    calls: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    usd: float | None = 0.0

    def times(self, calls: float) -> Tally:
        """The cost of so many calls."""
        usd = None if self.usd is None else self.usd * calls
        return Tally(round(self.input_tokens * calls), round(self.output_tokens * calls), usd, round(calls))


@dataclass
class Forecast:
    """What a run is expected to cost.

    Attributes:
        images: for which it would ask anything.
        stages: calls, tokens and money by stage, in the order of work.
        measured: how many images in the output folder the figures were taken from.
        assumed: stages for which there was nothing to take them from.
        spent: what all in the output folder has cost already, which counts for a budget.
        free: parts that compute on this machine.
        unknown: parts of the user's own of which no run has shown yet whether they ask a service.
    """

    images: int = 0
    stages: dict[str, Tally] = field(default_factory=dict)
    measured: int = 0
    assumed: tuple[str, ...] = ()
    spent: Usage = field(default_factory=Usage)
    free: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> Usage:
        """All stages together."""
        tally = Tally()
        for stage in self.stages.values():
            tally.add(stage)
        return tally.usage


def forecast(findings: Iterable[Finding], output_dir: Path, parts: Parts, settings: Settings) -> Forecast:
    """What a run would cost that does what was found for each image."""
    earlier, spent = Earlier(parts, settings), Tally()
    for folder in surveyed(output_dir) if output_dir.is_dir() else ():
        earlier.add(folder)
        for usage in folder.usage.values():
            spent.add(usage)
    questions = dict.fromkeys(stage.partition("/")[0] for stage in UPSTREAM)
    measured = {question: rate for question in questions if (rate := earlier.rate(question))}
    services = {
        question: assumed(question, parts, settings) for question in CALLS if _is_paid(question, parts, settings)
    }
    rates = {q: rate for q in questions if (rate := measured.get(q) or services.get(q)) and rate.calls}
    images, calls = count_calls(findings, stages_asked(parts, settings), rates)
    idle = [kind for kind, stages in STAGES_OF.items() if not rates.keys() & set(stages)]
    own = [kind for kind in idle if ":" in getattr(settings, kind) and not earlier.images]
    return Forecast(
        images,
        {question: rates[question].times(count) for question, count in calls.items()},
        earlier.images,
        tuple(question for question in calls if question not in measured),
        spent.usage,
        tuple(f"{kind} {getattr(parts, kind).name}" for kind in idle if kind not in own),
        tuple(f"{kind} {getattr(parts, kind).name}" for kind in own),
    )


def _is_paid(question: str, parts: Parts, settings: Settings) -> bool:
    """Whether a stage is known to ask a service; of the grounders `moondream` does, of one's own it is not known."""
    return settings.grounder == "moondream" if question in OF_GROUNDER else not parts.annotator.local


# How often each stage is asked.


def count_calls(
    findings: Iterable[Finding], asked: Sequence[str], rates: Mapping[str, Rate]
) -> tuple[int, dict[str, float]]:
    """For how many images anything is asked, and how many calls of each stage that makes."""
    images, calls = 0, dict.fromkeys(rates, 0.0)
    units = [unit for unit in _units(asked) if unit.partition("/")[0] in rates]
    for found in findings:
        if found.first or found.goes_on:
            images += 1
            have = _journaled(found.folder) if found.goes_on else Counter[str]()
            for unit in units:
                question = unit.partition("/")[0]
                if _is_asked_again(unit, found):
                    calls[question] += rates[question].calls
                elif found.goes_on and not _is_passed(unit, have):
                    calls[question] += max(0.0, rates[question].calls - have[unit])
    return images, {question: count for question, count in calls.items() if count}


def _units(asked: Sequence[str]) -> list[str]:
    """The stages of a run, those about a concept by concept: `verify`, `compose/spatial`, `align/spatial`."""
    concepts = {
        kind: [s.partition("/")[2] for s in asked if s.startswith(f"{kind}/")] for kind in ("compose", "negatives")
    }
    units: list[str] = []
    for stage in asked:
        about = concepts["compose" if stage == "align" else "negatives"] if stage in PER_CONCEPT else []
        units += [f"{stage}/{concept}" for concept in about] or [stage]
    return units


def _is_asked_again(unit: str, found: Finding) -> bool:
    """Whether a stage's answers (about one concept) are asked for whatever the journal holds."""
    question, _, concept = unit.partition("/")
    again = {*found.first, *found.then}
    if question == "align":
        return "align" in found.first or f"compose/{concept}" in again
    if question in ("detect", "refute"):
        return bool({"detect", question} & set(found.first)) or f"negatives/{concept}" in again
    return unit in again


def _is_passed(unit: str, have: Iterable[str]) -> bool:
    """Whether the journal has answers of a later stage, so that all of this one are there, however many it takes."""
    question, _, concept = unit.partition("/")
    return any(
        later.partition("/")[0] in _later(question) and concept in ("", later.partition("/")[2]) for later in have
    )


@functools.cache
def _later(question: str) -> frozenset[str]:
    """The questions that work, directly or not, on the answers to one."""
    stages = [stage for stage in UPSTREAM if stage.partition("/")[0] == question]
    return frozenset(stage.partition("/")[0] for stage in after(stages, tuple(UPSTREAM)))


def _journaled(folder: Path) -> Counter[str]:
    """How many different answers a journal holds of each unit."""
    steps = {step.name for step in journal_steps(folder) if step.done}
    return Counter("/".join(name.split("/")[: 2 if name.split("/")[0] in PER_CONCEPT else 1]) for name in steps)


# What a call costs.


class Earlier:
    """What the images cost that are done in an output folder, made by the same parts and model.

    Attributes:
        images: how many those are.
    """

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self._parts = {kind: getattr(parts, kind).name for kind in ("annotator", "grounder", "segmenter")}
        self._settings = settings
        self._spent: dict[str, Tally] = {}
        self._thought: Counter[str] = Counter()  # tokens, as far as the settings of then and now differ
        self._concepts = self._decoyed = self.images = 0
        self._listed = settings.price is None

    def add(self, folder: Surveyed) -> None:
        """Count a run folder, if it is one of those."""
        head = folder.head
        if head is None or not head.complete or not self._is_alike(head):
            return
        self.images += 1
        self._concepts += len(head.concepts)
        self._decoyed += len(head.concepts) if "negatives" in folder.usage or head.settings.negatives else 0
        self._listed = self._listed and head.settings.price is None
        for question, usage in folder.usage.items():
            self._spent.setdefault(question, Tally()).add(usage)
            then, now = head.settings.thinking.get(question), self._settings.thinking.get(question)
            if isinstance(then, (str, int)) and now is not None and then != now:
                self._thought[question] += usage.calls * (thought(now) - thought(then))

    def _is_alike(self, head: Head) -> bool:
        alike = {kind: part.name for kind, part in head.parts.items()} == self._parts
        return alike and (self._settings.annotator != "vlm" or head.settings.vlm == self._settings.vlm)

    def rate(self, question: str) -> Rate | None:
        """The measured rate of a stage; None where no image had it."""
        of_concepts = self._concepts if question in ("compose", "align") else self._decoyed
        units = of_concepts if question in PER_CONCEPT else self.images
        spent = self._spent.get(question)
        if not units:
            return None
        if spent is None or not spent.calls:
            return Rate()
        tokens = spent.input_tokens / spent.calls, spent.output_tokens / spent.calls
        longer = tokens[0], max(0.0, spent.output_tokens + self._thought[question]) / spent.calls
        usd = spent.usd / spent.calls if spent.usd is not None and self._listed else None
        if usd is None:
            usd = price(question, *longer, self._settings)
        elif longer != tokens:  # the service's own price of a call, in the proportion of the list's
            listed = [price(question, *told, self._settings) for told in (tokens, longer)]
            usd = usd * listed[1] / listed[0] if listed[0] and listed[1] is not None else None
        return Rate(spent.calls / units, *longer, usd)


def assumed(question: str, parts: Parts, settings: Settings) -> Rate:
    """The rate of a stage that no run has measured."""
    if question in OF_GROUNDER:
        return Rate(CALLS[question], usd=price(question, 0, 0, settings))
    texts = [parts.annotator.templates.get(name, "") for name in _templates(question, parts, settings)]
    text = sum(map(len, texts)) / CHARACTERS_A_TOKEN / (len(texts) if question in ("compose", "negatives") else 1)
    picture = PICTURE_TOKENS.get(settings.vlm.partition(":")[0], max(PICTURE_TOKENS.values()))
    tokens_in = text + SLOTS_AND_SCHEMA + PICTURES[question] * picture
    tokens_out = ANSWER_TOKENS[question] + thought(settings.thinking[question])
    return Rate(CALLS[question], tokens_in, tokens_out, price(question, tokens_in, tokens_out, settings))


def _templates(question: str, parts: Parts, settings: Settings) -> list[str]:
    """The names of the templates a question is asked with; of all concepts, where it is about one."""
    names = {
        "describe": ["REGION_DENSE_CAPTION_META_PROMPT", *["REGION_BOXES_META_PROMPT"] * parts.grounder.needs_boxes],
        "verify": ["REGION_JUDGE_META_PROMPT"],
        "compose": [prompts.concept_template(concept) for concept in CONCEPTS],
        "align": ["PROMPT_JUDGE_META_PROMPT", *["EXHAUSTIVE_META_PROMPT"] * settings.exhaustive],
        "negatives": [prompts.negative_template(concept) for concept in CONCEPTS],
        "refute": ["NEGATIVE_JUDGE_META_PROMPT"],
    }
    return names[question]


def thought(setting: str | int) -> int:
    """Tokens thought before an answer."""
    return setting if isinstance(setting, int) else THOUGHT_TOKENS.get(setting, 0)


def price(question: str, tokens_in: float, tokens_out: float, settings: Settings) -> float | None:
    """USD of a call; None where it is not known."""
    if question in OF_GROUNDER:
        return None if settings.moondream_url == MOONDREAM_CLOUD else 0.0
    if settings.annotator != "vlm":
        return None  # a part of the user's own, whose calls are not the vlm's
    return usd(settings, round(tokens_in), round(tokens_out))


# In words.


def sources(found: Forecast) -> list[str]:
    """Where the figures of a forecast come from, a line each."""
    lines = []
    if found.measured:
        made = f"{found.measured:,} image{'s' * (found.measured > 1)} done here by the same parts and model"
        lines.append(f"Figures: averages of {made}.")
    if found.assumed:
        of = f"of {', '.join(found.assumed)} " if found.measured else ""
        lines.append(f"Figures {of}assumed: {REGIONS} regions, {PROMPTS_A_CONCEPT} prompts a concept;")
        lines.append(f"{CHARACTERS_A_TOKEN} characters of a template a token, pictures as their provider counts them;")
        lines.append("lengths of answers and of thinking are guesses.")
    if found.free:
        lines.append(f"Computed on this machine, at no cost: {', '.join(found.free)}.")
    if found.unknown:
        lines.append(f"Not counted, since no run has shown what they ask: {', '.join(found.unknown)}.")
    return lines


def budgets(found: Forecast, settings: Settings) -> list[str]:
    """Whether the budgets suffice, a line each; what the output folder has cost already counts."""
    cost = found.total
    spent, expected = (usage.input_tokens + usage.output_tokens for usage in (found.spent, cost))
    return [
        *_budget("budget_usd", settings.budget_usd, found.spent.usd, cost.usd, "${:,.2f}"),
        *_budget("budget_tokens", settings.budget_tokens, spent, expected, "{:,} tokens"),
    ]


def _budget(name: str, most: float | None, spent: float | None, expected: float | None, unit: str) -> list[str]:
    if most is None:
        return []
    if spent is None or expected is None:
        return [f"--{name} {most:g}: whether it suffices is not known, as the cost is not."]
    told = f"--{name} {most:g}: {unit.format(spent)} spent so far, {unit.format(expected)} expected"
    if spent + expected <= most:
        return [f"{told}: it suffices."]
    return [f"{told}: it suffices for about {max(0.0, most - spent) / expected:.0%}."]
