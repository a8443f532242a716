"""What people's decisions say of the engine's verdicts, and of one another.

Precision is the share of the engine's accepted prompts that a person accepts as they are; recall is the share of what a
person accepts that the engine had accepted. Intervals are Wilson's (E. B. Wilson, "Probable inference", 1927), kappa is
Cohen's (J. Cohen, "A coefficient of agreement for nominal scales", 1960).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel

from dataengine.errors import one_line
from dataengine.finished import Entry, Finished
from dataengine.prices import money
from dataengine.records import CONCEPTS, Agreement, ConceptAgreement, Judged, Rate, ReviewerPair, Share

NEGATIVES = "negatives"
MOST_REVIEWERS = 50  # of one prompt, by name, of whom every two are compared
MOST_PAIRS = 20


class JudgedPrompt(BaseModel):
    """A prompt that a person has judged.

    Attributes:
        concept: of it; `negatives` for a negative.
        engine: whether the engine accepted it.
        human: whether the last word on it accepts it.
        corrected: whether that word has another text or other regions than the engine's.
        words: each reviewer's verdict: whether it accepts.
    """

    concept: str
    engine: bool
    human: bool
    corrected: bool
    words: dict[str, bool]


def judged_prompts(found: Finished) -> list[JudgedPrompt]:
    """The prompts of a run folder that a person has judged."""
    judged = []
    for entry in found.entries if len(found.reviews) else ():
        key = found.key(entry)
        word = found.reviews.word(key)
        if word is None or word.verdict is None:
            continue
        told = found.reviews.words(key)
        judged.append(
            JudgedPrompt(
                concept=NEGATIVES if entry.negative else entry.concept,
                engine=entry.accepted,
                human=word.verdict == "ACCEPT",
                corrected=is_corrected(entry, word),
                words={name: own.verdict == "ACCEPT" for name, own in told.items() if own.verdict},
            )
        )
    return judged


def is_corrected(entry: Entry, word: Judged) -> bool:
    """Whether a person's word has another text or other regions than the engine's prompt."""
    return word.prompt != entry.prompt or set(word.satisfying) != set(entry.satisfying)


def agreement(
    judged: Sequence[JudgedPrompt], made: Mapping[str, Share], negatives: Mapping[str, Share], usd: float | None
) -> Agreement | None:
    """Compare; None where nothing was judged.

    Args:
        made: the engine's verdicts on all prompts that are no negatives, by concept.
        negatives: likewise on negatives.
        usd: what all of it cost; None where that is not known.
    """
    if not judged:
        return None
    by_concept = {name: [j for j in judged if j.concept == name] for name in (*CONCEPTS, NEGATIVES)}
    positives = [j for j in judged if j.concept != NEGATIVES]
    everything = _compared(positives)
    accepted = sum(share.accepted for share in made.values())
    precision = everything.precision.value
    kept = accepted * precision if precision else 0
    told = made.values()
    return Agreement(
        concepts={name: _compared(those) for name, those in by_concept.items() if those},
        all=everything,
        reviewers=dict(sorted(Counter(name for j in judged for name in j.words).items())),
        pairs=_pairs(judged),
        reviewed_share={
            "accepted": _part(sum(j.engine for j in positives), sum(share.accepted for share in told)),
            "rejected": _part(sum(not j.engine for j in positives), sum(share.rejected for share in told)),
        },
        usd_per_pair=usd / kept if usd is not None and kept else None,
    )


def rate(hits: int, of: int) -> Rate:
    """A share with its 95 % Wilson interval."""
    if not of:
        return Rate(hits=0, of=0, value=None, low=None, high=None)
    from scipy.stats import binomtest  # takes half a second to import

    interval = binomtest(hits, of).proportion_ci(method="wilson")
    return Rate(hits=hits, of=of, value=hits / of, low=float(interval.low), high=float(interval.high))


def kappa(pairs: Iterable[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa of two raters' verdicts; None where both always say the same one thing, or there is none."""
    both = list(pairs)
    if not both:
        return None
    yes = [sum(verdicts) / len(both) for verdicts in zip(*both, strict=True)]
    by_chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    observed = sum(a == b for a, b in both) / len(both)
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def _compared(judged: Sequence[JudgedPrompt]) -> ConceptAgreement:
    fits = [j.human and not j.corrected for j in judged]
    both = sum(fit and j.engine for fit, j in zip(fits, judged, strict=True))
    return ConceptAgreement(
        reviewed=len(judged),
        corrected=sum(j.human and j.corrected for j in judged),
        precision=rate(both, sum(j.engine for j in judged)),
        recall=rate(both, sum(fits)),
    )


def _pairs(judged: Sequence[JudgedPrompt]) -> list[ReviewerPair]:
    """Every two reviewers who have judged a prompt in common; of many, those with most prompts."""
    shared: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for j in judged:
        for first, second in itertools.combinations(sorted(j.words)[:MOST_REVIEWERS], 2):
            shared.setdefault((first, second), []).append((j.words[first], j.words[second]))
    most = sorted(shared.items(), key=lambda entry: (-len(entry[1]), entry[0]))[:MOST_PAIRS]
    return [
        ReviewerPair(
            first=first,
            second=second,
            prompts=len(verdicts),
            agreed=sum(a == b for a, b in verdicts) / len(verdicts),
            kappa=kappa(verdicts),
        )
        for (first, second), verdicts in sorted(most)
    ]


def _part(count: int, of: int) -> float | None:
    return count / of if of else None


# In words.


def rate_text(rate: Rate) -> str:
    """A rate with its interval, in percent; a dash where nothing was counted."""
    if rate.value is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def agreement_lines(found: Agreement) -> Iterator[str]:
    """Who judged how much, how far they agree, how even the sample is, and the cost of a pair, a line each."""
    for name, count in found.reviewers.items():
        yield one_line(f"{name} judged {count:,} prompts")
    for pair in found.pairs:
        kappa = "not defined, all verdicts are the same" if pair.kappa is None else f"{pair.kappa:.2f}"
        both = f"{pair.first} and {pair.second}: {pair.agreed:.0%} equal verdicts on {pair.prompts:,} prompts"
        yield one_line(f"{both}, Cohen's kappa {kappa}")
    yield from _evenness(found)
    if found.usd_per_pair is not None:
        yield f"Cost of a pair that a person would accept: {money(found.usd_per_pair)}"


def _evenness(found: Agreement) -> Iterator[str]:
    """How much of the accepted and of the rejected prompts was judged, and what that does to recall."""
    accepted, rejected = found.reviewed_share["accepted"], found.reviewed_share["rejected"]
    if accepted is None or rejected is None:
        told = "accepted" if rejected is None else "rejected"
        yield f"Judged: {accepted or rejected or 0:.1%} of the prompts, which the engine has all {told}"
        return
    yield f"Judged: {accepted:.1%} of the accepted, {rejected:.1%} of the rejected prompts"
    if found.all.recall.value is not None and max(accepted, rejected) > 1.5 * min(accepted, rejected):
        high = "too high" if accepted > rejected else "too low"
        yield f"These shares differ, so recall is {high}: judge a sample (`dataengine review --sample 200`)"
