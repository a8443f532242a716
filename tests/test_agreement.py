"""What people's decisions say of the engine's verdicts, against numbers worked out by hand and by statsmodels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from dataengine.agreement import JudgedPrompt, agreement, judged_prompts, kappa, rate
from dataengine.finished import Finished, read_finished
from dataengine.records import Agreement, Decision, Share
from dataengine.reviews import append
from dataengine.sources import Sources
from tests.exporters.folders import our_run, picture, prompt, save, write_negatives, write_summaries


def judged(
    concept: str = "entities", engine: bool = True, human: bool = True, corrected: bool = False, **words: bool
) -> JudgedPrompt:
    return JudgedPrompt(concept=concept, engine=engine, human=human, corrected=corrected, words=words)


def compared(
    prompts: list[JudgedPrompt],
    made: dict[str, Share] | None = None,
    negatives: dict[str, Share] | None = None,
    usd: float | None = 0.0,
) -> Agreement:
    found = agreement(prompts, made or {}, negatives or {}, usd)
    assert found
    return found


ENTITIES = [
    judged(),
    judged(),
    judged(corrected=True),
    judged(human=False),
    judged(human=False, corrected=True),
    judged(engine=False),
    judged(engine=False, corrected=True),
    judged(engine=False, human=False),
]
SPATIAL = [judged("spatial"), judged("spatial", engine=False)]
NEGATIVES = [judged("negatives"), judged("negatives", human=False), judged("negatives", engine=False, human=False)]
MADE = {"entities": Share(accepted=20, rejected=5), "spatial": Share(accepted=10, rejected=15)}
MADE_NEGATIVES = {"entities": Share(accepted=5, rejected=4)}


def test_precision_and_recall_by_hand() -> None:
    """A person accepts as they are: two entities that the engine accepted, and one that it rejected."""
    found = compared([*SPATIAL, *ENTITIES], MADE)
    of_entities, of_spatial, of_all = found.concepts["entities"], found.concepts["spatial"], found.all
    assert list(found.concepts) == ["entities", "spatial"]
    assert (of_entities.reviewed, of_spatial.reviewed, of_all.reviewed) == (8, 2, 8 + 2)
    assert (of_entities.corrected, of_spatial.corrected, of_all.corrected) == (2, 0, 2)
    assert (of_entities.precision.hits, of_entities.precision.of) == (2, 5)
    assert (of_entities.recall.hits, of_entities.recall.of) == (2, 2 + 1)
    assert (of_spatial.precision.hits, of_spatial.precision.of) == (1, 1)
    assert (of_spatial.recall.hits, of_spatial.recall.of) == (1, 1 + 1)
    assert (of_all.precision.hits, of_all.precision.of) == (2 + 1, 5 + 1)
    assert (of_all.recall.hits, of_all.recall.of) == (2 + 1, 3 + 2)
    assert of_all.precision.value == 3 / 6
    assert of_all.recall.value == 3 / 5


def test_a_pair_costs_what_all_cost_over_the_accepted_prompts_that_are_right() -> None:
    """30 prompts were accepted, of which 3 of 6 judged ones are right: some 15 pairs for 6 dollars."""
    found = compared([*ENTITIES, *SPATIAL, *NEGATIVES], MADE, MADE_NEGATIVES, usd=6.0)
    assert found.usd_per_pair == pytest.approx(6.0 / ((20 + 10) * 3 / 6))
    assert found.usd_per_pair == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("prompts", "usd", "wanted"),
    [
        ([judged()], None, None),
        ([judged()], 0.0, 0.0),
        ([judged()], 3.0, 3.0 / 30),
        ([judged(human=False)], 3.0, None),  # none is right
        ([judged(engine=False)], 3.0, None),  # none that the engine accepted was judged
        ([judged("negatives")], 3.0, None),
    ],
)
def test_what_a_pair_costs_is_told_only_where_it_is_known(
    prompts: list[JudgedPrompt], usd: float | None, wanted: float | None
) -> None:
    assert compared(prompts, MADE, MADE_NEGATIVES, usd).usd_per_pair == wanted


def test_the_share_that_was_judged_is_of_all_prompts_but_negatives() -> None:
    """Of what the engine accepted, 5 + 1 prompts were judged; of what it rejected, 3 + 1."""
    found = compared([*ENTITIES, *SPATIAL, *NEGATIVES], MADE, MADE_NEGATIVES)
    assert found.reviewed_share == pytest.approx({"accepted": (5 + 1) / (20 + 10), "rejected": (3 + 1) / (5 + 15)})
    assert compared([judged()], {"entities": Share(accepted=1)}).reviewed_share == {"accepted": 1.0, "rejected": None}


def test_negatives_stand_apart() -> None:
    without, found = compared([*ENTITIES, *SPATIAL], MADE), compared([*NEGATIVES, *ENTITIES, *SPATIAL], MADE)
    assert found.all == without.all
    assert {name: found.concepts[name] for name in without.concepts} == without.concepts
    assert list(found.concepts) == ["entities", "spatial", "negatives"]
    of_negatives = found.concepts["negatives"]
    assert (of_negatives.reviewed, of_negatives.corrected) == (3, 0)
    assert (of_negatives.precision.hits, of_negatives.precision.of) == (1, 2)
    assert (of_negatives.recall.hits, of_negatives.recall.of) == (1, 1)


def test_negatives_alone_tell_nothing_of_the_others() -> None:
    found = compared(NEGATIVES, MADE, MADE_NEGATIVES)
    assert (found.all.reviewed, found.all.precision.value, found.all.recall.value) == (0, None, None)
    assert list(found.concepts) == ["negatives"]


def test_where_nothing_was_judged_there_is_nothing_to_tell() -> None:
    assert agreement([], MADE, MADE_NEGATIVES, 1.0) is None


# Intervals.


@pytest.mark.parametrize("of", [1, 2, 3, 10, 37, 1000])
@pytest.mark.parametrize("part", [0.0, 0.1, 1 / 3, 0.5, 0.97, 1.0])
def test_intervals_are_wilsons(of: int, part: float) -> None:
    hits = round(of * part)
    found, (low, high) = rate(hits, of), proportion_confint(hits, of, alpha=0.05, method="wilson")
    assert (found.hits, found.of, found.value) == (hits, of, hits / of)
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)


def test_an_interval_by_hand() -> None:
    """Wilson's formula for 1 of 2, where z is 1.96: the middle is 1/2, and half of the width as below."""
    z, n, p = 1.959963984540054, 2, 0.5
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    found = rate(1, 2)
    assert found.low == pytest.approx(0.5 - half)
    assert found.high == pytest.approx(0.5 + half)


def test_of_nothing_there_is_no_share() -> None:
    assert rate(0, 0).model_dump() == {"hits": 0, "of": 0, "value": None, "low": None, "high": None}


# Reviewers.


def pairs_of(both: int, first: int, second: int, neither: int) -> list[tuple[bool, bool]]:
    """Verdicts of two: accepted by both, by the first alone, by the second alone, by neither."""
    return [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither


def test_kappa_by_hand() -> None:
    """They agree on 35 of 50; by chance they would on 0.5 * 0.6 + 0.5 * 0.4 of all."""
    assert kappa(pairs_of(20, 5, 10, 15)) == pytest.approx((35 / 50 - 0.5) / (1 - 0.5))


@pytest.mark.parametrize("seed", range(20))
def test_kappa_is_cohens(seed: int) -> None:
    chance = np.random.default_rng(seed)
    both, first, second, neither = chance.integers(1, 30, 4).tolist()
    table = [[both, first], [second, neither]]
    assert kappa(pairs_of(both, first, second, neither)) == pytest.approx(cohens_kappa(table).kappa)


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([], None),
        (pairs_of(7, 0, 0, 0), None),
        (pairs_of(0, 0, 0, 3), None),
        (pairs_of(4, 0, 0, 4), 1.0),
        (pairs_of(0, 4, 4, 0), -1.0),
        (pairs_of(0, 7, 0, 0), 0.0),  # one always accepts, the other never
        (pairs_of(3, 2, 0, 0), 0.0),  # one always accepts
    ],
)
def test_kappa_at_its_ends(pairs: list[tuple[bool, bool]], wanted: float | None) -> None:
    found = kappa(pairs)
    assert found is None if wanted is None else found == pytest.approx(wanted)


def test_every_two_reviewers_are_compared_on_what_both_judged() -> None:
    """Ada and Bo share four prompts and agree on three, one of which both reject; Cy shares one with Bo alone."""
    found = compared(
        [
            judged(bo=True, ada=True),
            judged("spatial", bo=True, ada=True),
            judged("negatives", bo=False, ada=False),
            judged(bo=True, ada=False),
            judged(bo=True, cy=True),
            judged(ada=False),
        ]
    )
    assert found.reviewers == {"ada": 5, "bo": 5, "cy": 1}
    assert list(found.reviewers) == ["ada", "bo", "cy"]
    first, second = found.pairs
    assert (first.first, first.second, first.prompts, first.agreed) == ("ada", "bo", 4, 3 / 4)
    by_chance = 2 / 4 * 3 / 4 + 2 / 4 * 1 / 4
    assert first.kappa == pytest.approx((3 / 4 - by_chance) / (1 - by_chance))
    assert (second.first, second.second, second.prompts, second.agreed) == ("bo", "cy", 1, 1.0)
    assert second.kappa is None


# From a run folder.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two accepted prompts, a rejected one and a negative."""
    source = save(tmp_path / "photos" / "a.png", picture())
    prompts = {"entities": [prompt(0), prompt(1, (0, 1))], "physics": [prompt(0, (1,), verdict="REJECT")]}
    made = our_run(tmp_path / "runs", source, prompts=prompts)
    write_negatives(made, "entities", "ACCEPT")
    return made


FIRST, SECOND, REJECTED, NEGATIVE = range(4)  # of the fixture's prompts


def read(folder: Path) -> Finished:
    return read_finished(Sources(folder))


def decide(folder: Path, number: int, verdict: str | None, reviewer: str = "ada", **other: Any) -> str:
    """Append a decision on one of the prompts; `other` replaces fields of the word or names what is undone."""
    found = read(folder)
    entry = found.entries[number]
    key = found.key(entry)
    undoes = other.pop("undoes", None)
    as_made = {"verdict": None, "prompt": entry.prompt, "satisfying": list(entry.satisfying)}
    after = as_made | {"verdict": verdict} | other
    path = folder / "reviews.jsonl"
    name = str(path.read_bytes().count(b"\n")) if path.exists() else "0"
    decision = {
        "id": name,
        "at": "2026-01-01T00:00:00.000+00:00",
        "reviewer": reviewer,
        "blind": False,
        "concept": key.concept,
        "negative": key.negative,
        "index": key.index,
        "basis": key.basis,
        "engine": "ACCEPT" if entry.accepted else "REJECT",
        "action": "undo" if undoes else "accept",
        "undoes": undoes,
        "before": as_made,
        "after": after,
    }
    append(folder, Decision.model_validate(decision))
    return name


def test_the_judged_prompts_of_a_run_folder(folder: Path) -> None:
    decide(folder, FIRST, "REJECT", "bo")
    decide(folder, FIRST, "ACCEPT")
    decide(folder, REJECTED, "ACCEPT", "bo")
    decide(folder, NEGATIVE, "REJECT")
    assert judged_prompts(read(folder)) == [
        judged("entities", ada=True, bo=False),
        judged("physics", engine=False, bo=True),
        judged("negatives", human=False, ada=False),
    ]


def test_nobody_has_judged_anything(folder: Path) -> None:
    assert judged_prompts(read(folder)) == []


@pytest.mark.parametrize(
    ("word", "corrected"),
    [
        ({}, False),
        ({"satisfying": [1, 0]}, False),
        ({"satisfying": [0, 1, 1]}, False),
        ({"satisfying": [0]}, True),
        ({"satisfying": [0, 1, 2]}, True),
        ({"prompt": "Segment thing 1 "}, True),
        ({"prompt": "Segment thing 1", "satisfying": [0, 1]}, False),
    ],
)
def test_another_text_or_other_regions_are_a_correction(folder: Path, word: dict[str, Any], corrected: bool) -> None:
    decide(folder, SECOND, "ACCEPT", **word)
    assert judged_prompts(read(folder)) == [judged("entities", corrected=corrected, ada=True)]


def test_a_word_without_a_verdict_judges_nothing(folder: Path) -> None:
    decide(folder, FIRST, None, prompt="Segment it")
    decide(folder, SECOND, None, "bo", prompt="Segment it")
    decide(folder, SECOND, "ACCEPT")
    assert judged_prompts(read(folder)) == [judged("entities", ada=True)]


def test_what_was_taken_back_judges_nothing(folder: Path) -> None:
    decide(folder, FIRST, "ACCEPT", "bo")
    decide(folder, FIRST, None, undoes=decide(folder, FIRST, "REJECT"))
    decide(folder, SECOND, None, undoes=decide(folder, SECOND, "REJECT"))
    assert judged_prompts(read(folder)) == [judged("entities", bo=True)]


def test_what_has_lapsed_judges_nothing(folder: Path) -> None:
    decide(folder, FIRST, "ACCEPT")
    decide(folder, SECOND, "REJECT")
    write_summaries(folder, {"entities": [prompt(0), prompt(1, (1,))]}, "")
    assert judged_prompts(read(folder)) == [judged("entities", ada=True)]


def test_a_negative_counts_as_one_whatever_its_concept(folder: Path) -> None:
    decide(folder, NEGATIVE, "ACCEPT", prompt="Segment the other absent thing")
    assert judged_prompts(read(folder)) == [judged("negatives", corrected=True, ada=True)]


def test_from_decisions_to_numbers(folder: Path) -> None:
    """Of two judged prompts that the engine accepted one is right; the rejected one a person would have kept."""
    decide(folder, FIRST, "ACCEPT")
    decide(folder, SECOND, "ACCEPT", satisfying=[0])
    decide(folder, REJECTED, "ACCEPT")
    made = {"entities": Share(accepted=2), "physics": Share(rejected=1)}
    found = agreement(judged_prompts(read(folder)), made, {"entities": Share(accepted=1)}, 0.5)
    assert found
    assert (found.all.precision.value, found.all.recall.value) == (1 / 2, 1 / 2)
    assert (found.all.reviewed, found.all.corrected, found.reviewers) == (3, 1, {"ada": 3})
    assert found.usd_per_pair == pytest.approx(0.5 / (2 * 1 / 2))
    assert found.reviewed_share == pytest.approx({"accepted": 1.0, "rejected": 1.0})
