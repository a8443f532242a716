"""Figures of run folders: what is counted, how it is spread, and what a user should look at."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine.agreement import JudgedPrompt
from dataengine.figures import (
    AREA_EDGES,
    COUNT_EDGES,
    WORD_EDGES,
    Counting,
    ImageSeen,
    PromptSeen,
    StageSeen,
    bin_names,
    in_like_order,
    meaning,
    see,
    seen,
    share_words,
    spread,
)
from dataengine.finished import read_finished
from dataengine.masks import BoolArray, Mask
from dataengine.records import CONCEPT_FAMILIES, Concern, Decision, Figures, Share, Usage
from dataengine.reviews import append
from dataengine.sources import Sources
from tests.exporters.folders import (
    LEFT,
    RIGHT,
    box,
    our_run,
    picture,
    prompt,
    published_run,
    save,
    write_json,
    write_masks,
    write_negatives,
)

PAID = Usage(calls=2, reasked=1, input_tokens=100, output_tokens=10, usd=0.5)


def are_alike(first: str, second: str) -> bool:
    one, other = meaning(first), meaning(second)
    return share_words(frozenset(one), frozenset(other)) and in_like_order(one, other)


def a_prompt(text: str = "Segment it", **other: Any) -> PromptSeen:
    fields = {"concept": "entities", "family": "groups_and_piles", "negative": False, "accepted": True, "area": 0.2}
    return PromptSeen.model_validate(fields | {"text": text} | other)


def an_image(*prompts: PromptSeen, name: str = "a", **other: Any) -> ImageSeen:
    return ImageSeen(name=name, prompts=list(prompts), **other)


def counted(*images: ImageSeen) -> Figures:
    counting = Counting()
    for image in images:
        counting.add(image)
    return counting.figures()


def concern(figures: Figures, kind: str) -> Concern | None:
    found = [concern for concern in figures.concerns if concern.kind == kind]
    assert len(found) <= 1
    return found[0] if found else None


# Sums.


def test_prompts_are_counted_by_concept_and_family() -> None:
    found = counted(
        an_image(
            a_prompt(concept="physics", family="hazard"),
            a_prompt(family="groups_and_piles"),
            a_prompt(family="groups_and_piles", accepted=False, why="rule words"),
        ),
        an_image(
            a_prompt(concept="physics", family="unusual", accepted=False, why="rule words"),
            a_prompt(family="stuff_surfaces_regions"),
            a_prompt(family=""),
            a_prompt(negative=True, family="unusual_entity"),
            a_prompt(negative=True, concept="spatial", accepted=False, why="negative: something fits it"),
        ),
    )
    assert found.images == 2
    assert found.prompts == {"entities": Share(accepted=3, rejected=1), "physics": Share(accepted=1, rejected=1)}
    assert list(found.prompts) == ["entities", "physics"]
    assert found.families == {
        "entities": {
            "groups_and_piles": Share(accepted=1, rejected=1),
            "not told": Share(accepted=1),
            "stuff_surfaces_regions": Share(accepted=1),
        },
        "physics": {"hazard": Share(accepted=1), "unusual": Share(rejected=1)},
    }
    assert found.negatives == {"entities": Share(accepted=1), "spatial": Share(rejected=1)}
    assert found.rejected == {"rule words": 2, "negative: something fits it": 1}
    assert list(found.rejected) == ["rule words", "negative: something fits it"]


def test_nothing_has_figures_too() -> None:
    found = counted()
    assert (found.images, found.prompts, found.negatives, found.stages, found.concerns) == (0, {}, {}, {}, [])
    assert (found.mask_area.count, found.cost, found.agreement) == (0, Usage(), None)


def test_regions_and_what_cannot_be_read_are_added_up() -> None:
    found = counted(
        an_image(described=5, regions=3, unreadable={"summary_unreadable": 1}),
        an_image(described=2, regions=1, unreadable={"summary_unreadable": 1, "prompt_malformed": 3}),
    )
    assert (found.described_regions, found.accepted_regions) == (7, 4)
    assert found.unreadable == {"prompt_malformed": 3, "summary_unreadable": 2}
    assert list(found.unreadable) == ["prompt_malformed", "summary_unreadable"]


def test_spreads_are_of_accepted_prompts() -> None:
    found = counted(
        an_image(a_prompt("Segment it", area=0.2), a_prompt("Segment all of it", area=0.002), a_prompt(area=None)),
        an_image(a_prompt("Segment it now", area=0.9, accepted=False, why="no"), a_prompt("Find", area=0.4)),
        an_image(a_prompt("Segment what is not there", negative=True, area=None)),
        an_image(),
    )
    areas, numbers, words = found.mask_area, found.prompts_per_image, found.prompt_words
    assert (areas.count, areas.least, areas.median, areas.greatest) == (3, 0.002, 0.2, 0.4)
    assert areas.mean == pytest.approx((0.2 + 0.002 + 0.4) / 3)
    assert areas.counts == [0, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert (numbers.count, numbers.least, numbers.median, numbers.greatest) == (4, 0, 0.5, 3)  # 3, 1, 0, 0
    assert numbers.counts == [2, 1, 0, 1, *[0] * 17]
    assert (words.count, words.mean) == (5, (2 + 4 + 2 + 1 + 5) / 5)  # negatives too
    assert words.counts == [1, 2, 0, 1, 1, *[0] * 6]
    assert (areas.edges, numbers.edges, words.edges) == ([*AREA_EDGES], [*COUNT_EDGES], [*WORD_EDGES])


def test_stages_are_added_up_over_images() -> None:
    found = counted(
        an_image(stages={"verify": StageSeen(steps=3, seconds=1.25, usage=PAID), "segment": StageSeen(steps=1)}),
        an_image(stages={"verify": StageSeen(steps=2, seconds=0.5, usage=PAID)}),
    )
    assert list(found.stages) == ["verify", "segment"]
    verify = found.stages["verify"]
    assert (verify.steps, verify.seconds) == (5, 1.75)
    assert verify.usage == PAID + PAID
    assert found.stages["segment"].usage == Usage()
    assert found.cost == PAID + PAID


def judged(**other: Any) -> JudgedPrompt:
    fields = {"concept": "entities", "engine": True, "human": True, "corrected": False, "words": {"ada": True}}
    return JudgedPrompt.model_validate(fields | other)


@pytest.mark.parametrize(("usd", "wanted"), [(1.5, 2.0 / (4 * 1 / 2)), (None, None)])
def test_agreement_is_of_all_images_and_all_that_was_paid(usd: float | None, wanted: float | None) -> None:
    """Four accepted prompts, of which one of two judged ones is right; the stages cost two dollars in all."""
    of_four = [a_prompt(f"Segment thing {n}") for n in range(4)]
    rejected, negative = a_prompt(accepted=False, why="no"), a_prompt(negative=True)
    found = counted(
        an_image(*of_four, rejected, stages={"verify": StageSeen(usage=PAID)}, judged=[judged()]),
        an_image(negative, stages={"align": StageSeen(usage=Usage(usd=usd))}, judged=[judged(human=False)]),
    ).agreement
    assert found
    assert found.all.precision.value == 1 / 2
    assert found.reviewed_share == pytest.approx({"accepted": 2 / 4, "rejected": 0.0})
    assert found.usd_per_pair == (None if wanted is None else pytest.approx(wanted))


# Spreads and the names of their bins.


@pytest.mark.parametrize(
    ("value", "at"), [(-5.0, 0), (0.9, 0), (1.0, 0), (1.99, 0), (2.0, 1), (4.9, 1), (5.0, 2), (1e9, 2)]
)
def test_a_value_on_an_edge_is_in_the_bin_that_begins_there(value: float, at: int) -> None:
    found = spread([value], [1.0, 2.0, 5.0])
    assert found.counts == [int(place == at) for place in range(3)]
    assert found.edges == [1.0, 2.0, 5.0]
    assert (found.count, found.least, found.median, found.mean, found.greatest) == (1, value, value, value, value)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [4.0, 1.0, 1.0, 30.0], [0.25] * 5])
def test_a_spread_has_the_usual_numbers(values: list[float]) -> None:
    found = spread(values, [0.0, 2.0])
    assert (found.count, sum(found.counts)) == (len(values), len(values))
    assert (found.least, found.greatest) == (min(values), max(values))
    assert found.median == statistics.median(values)
    assert found.mean == pytest.approx(statistics.fmean(values))


def test_of_nothing_there_is_no_spread() -> None:
    found = spread([], [0.0, 2.0])
    assert (found.count, found.counts) == (0, [0, 0])
    assert {found.least, found.median, found.mean, found.greatest} == {None}


@pytest.mark.parametrize(
    ("edges", "percent", "names"),
    [
        ((0.0, 1.0, 2.0), False, ["0", "1", "2+"]),
        ((1.0, 2.0), False, ["1", "2+"]),
        ((0.0, 0.5, 2.0), False, ["0 to 0.5", "0.5 to 2", "2 and more"]),
        ((0.0, 0.003, 0.07), True, ["0 to 0.3 %", "0.3 to 7 %", "7 % and more"]),
        ((0.0, 2.0, 4.0), False, ["0 to 2", "2 to 4", "4 and more"]),
    ],
)
def test_bins_have_names(edges: Sequence[float], percent: bool, names: list[str]) -> None:
    assert bin_names(edges, percent=percent) == names


@pytest.mark.parametrize("edges", [AREA_EDGES, COUNT_EDGES, WORD_EDGES])
def test_every_bin_has_a_name_of_its_own(edges: Sequence[float]) -> None:
    assert len(set(bin_names(edges, percent=True))) == len(edges) == len(spread([], edges).counts)


# Concerns.


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("Segment the red cup", "Segment the red cup", True),
        ("Segment the red cup", "Find all of a RED cup!", True),
        ("Segment the red cup", "Segment the cup, red", False),
        ("Segment the cup left of the plate", "Segment the plate left of the cup", False),
        ("Segment red cup near plate", "Segment red cup near blue plate", True),  # 4 of 5 words
        ("Segment red cup plate", "Segment red cup blue plate", False),  # 3 of 4
        ("Segment the cup left of the plate", "Segment the cup right of the plate", False),
        (
            "Segment the small red cup left of the blue plate",
            "Segment the small red cup right of the blue plate",
            False,
        ),
        ("Segment the cup", "Segment the cups", False),
        ("Segment the man", "Segment the woman", False),
        ("Segment all", "Find any", False),  # nothing but words that tell nothing
        ("Segment all", "segment all", True),
        ("Segment the été", "Segment the ÉTÉ", True),
    ],
)
def test_prompts_are_alike_where_they_share_most_words(first: str, second: str, alike: bool) -> None:
    assert are_alike(first, second) == are_alike(second, first) == alike


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Segment the red cup", ["red", "cup"]),
        ("Point out every one of them that is left.", ["one", "them", "left"]),
        ("Find all", ["find", "all"]),
        ("the two-handed pot_lid No. 3", ["two", "handed", "pot", "lid", "no", "3"]),
        ("", []),
    ],
)
def test_the_meaning_is_in_the_words_that_are_left(text: str, words: list[str]) -> None:
    assert meaning(text) == words


CUP, SAME = a_prompt("Segment the red cup"), a_prompt("Find a red cup", concept="spatial", family="")


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([an_image(CUP, SAME)], 1),
        ([an_image(CUP, SAME, CUP)], 3),
        ([an_image(CUP, SAME), an_image(a_prompt("Segment the plate")), an_image(SAME, CUP)], 2),
        ([an_image(CUP), an_image(SAME)], 0),
        ([an_image(CUP, a_prompt("Segment the red pan"))], 0),
        ([an_image(CUP, a_prompt("Find a red cup", negative=True))], 0),
        ([an_image(CUP, a_prompt("Find a red cup", accepted=False, why="no"))], 0),
    ],
)
def test_near_duplicates_are_told_within_an_image(images: list[ImageSeen], count: int) -> None:
    found = concern(counted(*images), "near_duplicates")
    assert (found.count if found else 0) == count
    if found:
        assert found.examples[0] == "a: Segment the red cup / Find a red cup"


@pytest.mark.parametrize(
    ("kind", "area", "told"),
    [
        ("tiny_mask", 0.0, "a: Segment it (0.000% of the photo)"),
        ("tiny_mask", 0.00099, "a: Segment it (0.099% of the photo)"),
        ("tiny_mask", 0.001, None),
        ("tiny_mask", 1.0, None),
        ("tiny_mask", None, None),
        ("whole_image_mask", 1.0, "a: Segment it (100% of the photo)"),
        ("whole_image_mask", 0.95, "a: Segment it (95% of the photo)"),
        ("whole_image_mask", 0.9499, None),
        ("whole_image_mask", None, None),
    ],
)
def test_very_small_and_very_large_masks_are_told(kind: str, area: float | None, told: str | None) -> None:
    found = concern(counted(an_image(a_prompt(area=area), a_prompt("Segment that", area=0.3))), kind)
    assert (found.examples if found else None) == ([told] if told else None)
    assert found is None or found.count == 1


def test_of_each_concern_the_first_few_are_shown() -> None:
    images = [an_image(a_prompt(f"Segment thing {n}", area=0.0001), name=f"i{n}") for n in range(8)]
    found = concern(counted(*images), "tiny_mask")
    assert found
    assert found.count == 8
    assert [example.split(":")[0] for example in found.examples] == ["i0", "i1", "i2", "i3", "i4"]


def worded(often: int, total: int) -> list[ImageSeen]:
    """Images of one prompt, of which so many have one wording."""
    texts = [("Segment the cup", "Find a CUP")[n % 2] if n < often else f"Segment thing{n}" for n in range(total)]
    return [an_image(a_prompt(text)) for text in texts]


@pytest.mark.parametrize(
    ("often", "total", "told"),
    [
        (11, 11, True),
        (10, 10, False),  # too few to tell
        (11, 219, True),  # over 5 %
        (11, 220, False),  # 5 %
        (12, 220, True),
    ],
)
def test_a_wording_that_stands_often_is_told(often: int, total: int, told: bool) -> None:
    found = concern(counted(*worded(often, total)), "repeated_wording")
    assert (found is not None) == told
    if found:
        assert (found.count, found.examples) == (often, [f"cup: {often}"])


def test_two_wordings_that_stand_often_are_one_concern() -> None:
    plates = [an_image(a_prompt("Segment the plate"))] * 20
    found = concern(counted(*worded(15, 30), *plates), "repeated_wording")
    assert found
    assert (found.count, found.examples) == (35, ["plate: 20", "cup: 15"])


def test_a_wording_counts_only_where_it_was_accepted() -> None:
    refused = [an_image(a_prompt("Segment the cup", accepted=False, why="no"))] * 20
    negatives = [an_image(a_prompt("Segment the cup", negative=True))] * 20
    assert concern(counted(*worded(10, 20), *refused, *negatives), "repeated_wording") is None


def of_families(concept: str, **counts: int) -> list[ImageSeen]:
    return [
        an_image(a_prompt(f"Segment {family} {n}", concept=concept, family=family))
        for family, count in counts.items()
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"hazard": 6, "unusual": 4}, 6),
        ({"unusual": 3, "hazard": 9, "counterfactuals": 3}, 9),
        ({"hazard": 59, "unusual": 41}, None),
        ({"hazard": 5, "unusual": 5}, None),
        ({"hazard": 9}, None),  # too few to tell
        ({"hazard": 10}, 10),
    ],
)
def test_a_family_that_is_most_of_its_concept_is_told(counts: dict[str, int], told: int | None) -> None:
    found = concern(counted(*of_families("physics", **counts)), "one_sided_family")
    assert (found.count if found else None) == told
    if found:
        assert found.told == f"of {sum(counts.values())} accepted prompts of physics are of one family, hazard"


def test_families_are_compared_by_accepted_prompts() -> None:
    """Of the second family many more were rejected, and are negatives."""
    rejected = [an_image(a_prompt(concept="physics", family="unusual", accepted=False, why="no"))] * 20
    negatives = [an_image(a_prompt(concept="physics", family="unusual", negative=True))] * 20
    found = counted(*of_families("physics", hazard=5, unusual=5), *rejected, *negatives)
    assert concern(found, "one_sided_family") is None
    found = counted(*of_families("physics", hazard=6, unusual=4), *rejected, *negatives)
    told = concern(found, "one_sided_family")
    assert told
    assert (told.count, told.told) == (6, "of 10 accepted prompts of physics are of one family, hazard")


RELATIONS = CONCEPT_FAMILIES["relations"]


@pytest.mark.parametrize(
    ("counts", "missing"),
    [
        (dict.fromkeys(RELATIONS, 3), []),
        (dict.fromkeys(RELATIONS[1:], 4), [RELATIONS[0]]),
        ({RELATIONS[1]: 5, RELATIONS[2]: 5}, [RELATIONS[0], RELATIONS[3]]),
        (dict.fromkeys(RELATIONS[1:], 3), []),  # nine are too few to tell
    ],
)
def test_families_without_a_prompt_are_told(counts: dict[str, int], missing: list[str]) -> None:
    found = concern(counted(*of_families("relations", **counts)), "missing_families")
    assert (found.examples if found else []) == missing
    assert found is None or (found.count == len(missing) and "relations" in found.told)


def test_a_family_with_none_but_rejected_prompts_is_missing() -> None:
    rejected = an_image(a_prompt(concept="relations", family=RELATIONS[0], accepted=False, why="no"))
    found = concern(counted(*of_families("relations", **dict.fromkeys(RELATIONS[1:], 4)), rejected), "missing_families")
    assert found
    assert found.examples == [RELATIONS[0]]


def test_a_sound_data_set_raises_no_concern() -> None:
    assert counted(*of_families("relations", **dict.fromkeys(RELATIONS, 5))).concerns == []


# Run folders.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "photos" / "a.png", picture())


def update_summary(folder: Path, concept: str = "entities", **fields: object) -> None:
    path = folder / concept / "summary.json"
    write_json(path, json.loads(path.read_bytes()) | fields)


def write_instances(folder: Path, *of_regions: Sequence[BoolArray]) -> None:
    """Give the first regions of `accepted.json` their instances."""
    path = folder / "accepted_regions" / "accepted.json"
    entries = json.loads(path.read_bytes())
    for entry, masks in zip(entries, of_regions, strict=False):
        entry["instances"] = [Mask.from_array(mask).rle.model_dump() for mask in masks]
    write_json(path, entries)


def remove_pngs(folder: Path) -> None:
    for path in (folder / "accepted_regions" / "masks").iterdir():
        path.unlink()


def test_a_run_folder_is_seen_as_it_is(tmp_path: Path, source: Path) -> None:
    prompts = {
        "entities": [prompt(0), prompt(1, (1,), verdict="REJECT", reason="rule words: too many")],
        "physics": [prompt(0, (0, 1))],
    }
    folder = our_run(tmp_path / "runs", source, prompts=prompts)
    update_summary(folder, results=[{"label": "thing"}, {"label": "other"}, {"label": "third"}])
    update_summary(folder, conversational_prompts=[{"concept_family": "groups_and_piles"}, {"concept_family": "x"}])
    write_negatives(folder, "spatial", "ACCEPT", "REJECT")
    found = see(folder)
    assert (found.name, found.described, found.regions) == ("out_region_refine_a", 3, 2)
    told = [(p.concept, p.family, p.negative, p.accepted, p.text, p.why) for p in found.prompts]
    assert told == [
        ("entities", "groups_and_piles", False, True, "Segment thing 0", ""),
        ("entities", "x", False, False, "Segment thing 1", "rule words"),
        ("physics", "", False, True, "Segment thing 0", ""),
        ("spatial", "unusual_entity", True, True, "Segment absent thing 0", ""),
        ("spatial", "unusual_entity", True, False, "Segment absent thing 1", "negative: something fits it"),
    ]
    areas = [p.area for p in found.prompts]
    assert areas == [pytest.approx(LEFT.mean()), None, pytest.approx((LEFT | RIGHT).mean()), None, None]
    assert (found.judged, found.unreadable) == ([], {})
    assert found == seen(read_finished(Sources(folder)))


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("rule words: 12 of them", "rule words"),
        ("rule repeated: as before", "rule repeated"),
        ("something outside the masks fits as well: a chair", "something unmasked fits too"),
        ("unmasked area at 10% across, 20% down fits too: red", "something unmasked fits too"),
        ("the mask shows something outside the masks fits", "judged not to fit its mask"),
        ("the rule words: no", "judged not to fit its mask"),
        ("", "judged not to fit its mask"),
    ],
)
def test_why_a_prompt_was_rejected(tmp_path: Path, source: Path, reason: str, why: str) -> None:
    rejected = prompt(0, verdict="REJECT", reason=reason)
    folder = our_run(tmp_path / "runs", source, prompts={"entities": [rejected]})
    negative = {"prompt": "Segment that", "verdict": "REJECT", "reason": reason}
    write_json(folder / "negatives" / "entities.json", [negative])
    of_negative = why if why.startswith("rule") else "negative: something fits it"
    assert [found.why for found in see(folder).prompts] == [why, of_negative]


TOP, BOTTOM = box(2, 5, 12, 20), box(2, 15, 12, 30)  # LEFT, which they overlap in
OVERLAPPING = box(8, 10, 45, 35)


@pytest.mark.parametrize("satisfying", [(0,), (1,), (0, 1), (1, 0, 1)])
def test_areas_from_run_lengths_are_those_of_the_masks(
    tmp_path: Path, source: Path, satisfying: tuple[int, ...]
) -> None:
    prompts = {"entities": [prompt(0, satisfying)]}
    folder = our_run(tmp_path / "runs", source, masks=[LEFT, OVERLAPPING], prompts=prompts)
    wanted = np.any([[LEFT, OVERLAPPING][index] for index in satisfying], axis=0)
    from_pngs = see(folder).prompts[0].area
    write_instances(folder, [TOP, BOTTOM], [OVERLAPPING])
    remove_pngs(folder)
    from_runs = see(folder).prompts[0].area
    assert from_pngs == from_runs == pytest.approx(wanted.mean())


def test_masks_are_read_where_a_region_lacks_run_lengths(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source, prompts={"entities": [prompt(0, (0, 1))]})
    write_instances(folder, [TOP, BOTTOM])
    assert see(folder).prompts[0].area == pytest.approx((LEFT | RIGHT).mean())
    remove_pngs(folder)
    assert see(folder).prompts[0].area is None


@pytest.mark.parametrize(
    "instances",
    [
        [{"size": [40, 60]}],
        [{"size": [0, 60], "counts": "0"}],
        [{"size": [40, 60], "counts": "é"}],
        [{"size": [40, 60], "counts": 7}],
        [Mask.from_array(LEFT).rle.model_dump(), Mask.from_array(box(0, 0, 2, 2, 5, 5)).rle.model_dump()],
        [{}],
    ],
)
def test_broken_run_lengths_have_no_area(tmp_path: Path, source: Path, instances: list[object]) -> None:
    folder = our_run(tmp_path / "runs", source)
    path = folder / "accepted_regions" / "accepted.json"
    entries = json.loads(path.read_bytes())
    entries[0]["instances"] = instances
    write_json(path, entries)
    remove_pngs(folder)
    assert [found.area for found in see(folder).prompts] == [None]


def journal_line(step: str, seconds: float = 1.0, **other: object) -> str:
    entry = {"step": step, "key": step, "seconds": seconds, "usage": PAID.model_dump(), "result": 1} | other
    return json.dumps(entry, separators=(",", ":")) + "\n"


TIMING = [
    {"step": "verify", "total_seconds": 7.5, "count": 3, "avg_seconds": 2.5},
    {"step": "segment", "total_seconds": 2, "count": 1, "avg_seconds": 2.0},
]


def test_stages_are_told_by_the_journal(tmp_path: Path, source: Path) -> None:
    """A step that failed cost its time and its money, and was not done; the summaries' times are not asked for."""
    folder = our_run(tmp_path / "runs", source)
    update_summary(folder, timing=TIMING)
    failed = {"step": "verify/001", "key": "k", "seconds": 0.5, "usage": PAID.model_dump(), "failed": "cut_off"}
    (folder / "journal.jsonl").write_text(
        journal_line("describe", 2.0)
        + journal_line("verify/000", 1.0)
        + "no JSON\n"
        + json.dumps(failed)
        + "\n"
        + journal_line("verify/001", 0.25, usage=Usage().model_dump())
        + journal_line("verify/002")[:-9]
    )
    found = see(folder)
    assert found.stages == {
        "describe": StageSeen(steps=1, seconds=2.0, usage=PAID),
        "verify": StageSeen(steps=2, seconds=1.75, usage=PAID + PAID),
    }
    assert counted(found, found).stages["verify"].steps == 4


def test_an_unknown_price_makes_the_cost_of_its_stage_unknown(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source)
    unknown = Usage(calls=1, usd=None).model_dump()
    lines = [journal_line("verify/0"), journal_line("verify/1", usage=unknown), journal_line("align/0")]
    (folder / "journal.jsonl").write_text("".join(lines))
    stages = see(folder).stages
    assert (stages["verify"].usage.usd, stages["verify"].usage.calls, stages["align"].usage.usd) == (None, 3, 0.5)
    assert counted(see(folder)).cost.usd is None


@pytest.mark.parametrize("journal", [None, "", "no JSON\n"])
def test_without_a_journal_times_are_told_by_the_summaries(tmp_path: Path, source: Path, journal: str | None) -> None:
    folder = our_run(tmp_path / "runs", source, prompts={"entities": [prompt()], "physics": [prompt()]})
    update_summary(folder, timing=TIMING[:1])
    update_summary(folder, "physics", timing=[*TIMING, {"step": 3}, "damaged"])
    if journal is not None:
        (folder / "journal.jsonl").write_text(journal)
    stages = {name: (stage.steps, stage.seconds) for name, stage in see(folder).stages.items()}
    assert stages == {"verify": (3, 7.5), "segment": (1, 2.0)}


def test_a_run_folder_of_the_published_engine_is_seen(tmp_path: Path) -> None:
    folder = published_run(tmp_path, "/nowhere/p.jpg")
    update_summary(folder, conversational_prompts={"prompts": [{"concept_family": "groups_and_piles"}]})
    found = see(folder)
    assert [p.family for p in found.prompts] == ["groups_and_piles"]
    assert [p.area for p in found.prompts] == [pytest.approx(LEFT.mean())]
    assert (found.regions, found.unreadable) == (2, {})


def test_what_people_judged_is_seen_and_the_engines_verdict_stays(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source)
    found = read_finished(Sources(folder))
    key = found.key(found.entries[0])
    word = {"verdict": "REJECT", "prompt": "Segment thing 0", "satisfying": [0]}
    decision = {"id": "1", "at": "", "reviewer": "ada", "blind": True, "engine": "ACCEPT", "action": "reject"}
    append(folder, Decision.model_validate({**decision, **vars(key), "undoes": None, "before": word, "after": word}))
    image = see(folder)
    assert image.judged == [judged(human=False, words={"ada": False})]
    assert [found.accepted for found in image.prompts] == [True]
    figures = counted(image)
    assert figures.prompts == {"entities": Share(accepted=1)}
    assert figures.agreement
    assert figures.agreement.all.precision.value == 0


# Broken folders.


def overwrite(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def link_to_itself(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / name)

    return change


BROKEN_PROMPT = '{"prompt_verifications": [7, {"prompt": 7}, {"prompt": "Segment it", "index": -1}]}'


@pytest.mark.parametrize(
    ("damage", "unreadable"),
    [
        (overwrite("entities/summary.json", "{"), {"summary_unreadable": 1}),
        (overwrite("entities/summary.json", "[]"), {"summary_unreadable": 1}),
        (overwrite("physics/summary.json", BROKEN_PROMPT), {"prompt_malformed": 3}),
        (overwrite("negatives/entities.json", "{}"), {"negatives_unreadable": 1}),
        (overwrite("negatives/entities.json", "[{}]"), {"prompt_malformed": 1}),
        (overwrite("accepted_regions/accepted.json", "{"), {"accepted_json_unreadable": 1}),
        (remove("accepted_regions/accepted.json"), {"accepted_json_missing": 1}),
        (link_to_itself("accepted_regions/accepted.json"), {"accepted_json_missing": 1}),
        (overwrite("run.json", "{"), {}),
        (overwrite("journal.jsonl", "{}\n[]\n\0\n"), {}),
        (overwrite("entities/summary.json", '{"timing": [7], "results": [7], "conversational_prompts": 7}'), {}),
    ],
)
def test_what_cannot_be_read_of_a_folder_is_counted(
    tmp_path: Path, source: Path, damage: Callable[[Path], None], unreadable: dict[str, int]
) -> None:
    folder = our_run(tmp_path / "runs", source)
    damage(folder)
    found = see(folder)
    assert found.unreadable == unreadable
    assert counted(found).unreadable == unreadable


@pytest.mark.parametrize("name", ["entities/summary.json", "accepted_regions/accepted.json", "negatives/physics.json"])
def test_a_file_that_may_not_be_read_is_counted(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = our_run(tmp_path / "runs", source)
    write_negatives(folder, "physics", "ACCEPT")
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == folder / name:
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert sum(see(folder).unreadable.values()) == 1


def test_an_empty_folder_and_none_are_seen(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        found = see(folder)
        assert (found.prompts, found.regions, found.unreadable) == ([], 0, {"accepted_json_missing": 1})
        assert counted(found).images == 1


@pytest.mark.parametrize("satisfying", [(), (7,), (-1,), (0, 7)])
def test_a_prompt_that_means_no_region_there_is_has_no_area(
    tmp_path: Path, source: Path, satisfying: tuple[int, ...]
) -> None:
    folder = our_run(tmp_path / "runs", source, prompts={"entities": [prompt(0, satisfying)]})
    assert see(folder).prompts[0].area is None
    write_instances(folder, [LEFT], [RIGHT])
    assert see(folder).prompts[0].area is None


def test_masks_of_two_sizes_have_no_area_together(tmp_path: Path, source: Path) -> None:
    folder = our_run(tmp_path / "runs", source, prompts={"entities": [prompt(0, (0, 1)), prompt(1, (0,))]})
    write_masks(folder, [LEFT, box(0, 0, 5, 5, 20, 30)])
    assert [found.area for found in see(folder).prompts] == [None, pytest.approx(LEFT.mean())]


# What a folder does not tell, and what it tells wrongly.


@pytest.mark.parametrize(
    "instances",
    [
        [{"size": [10**30, 1], "counts": "0"}],
        [{"size": [2**33, 1], "counts": "0"}] * 2,
        [{"size": [1, 1], "counts": "10" * 4000}] * 2,
        [{"size": [40, 60], "counts": "zzz"}],
        [{"size": [40, 60], "counts": ""}],
        [{"size": [40, 60], "counts": "é"}],
    ],
)
def test_run_lengths_that_do_not_fill_their_size_are_not_used(
    tmp_path: Path, source: Path, instances: list[object]
) -> None:
    folder = our_run(tmp_path / "runs", source)
    path = folder / "accepted_regions" / "accepted.json"
    regions = [{**region, "instances": instances} for region in json.loads(path.read_text())]
    path.write_text(json.dumps(regions))
    [seen] = see(folder).prompts
    assert seen.area == LEFT.sum() / LEFT.size  # of the PNG
    remove_pngs(folder)
    found = see(folder)
    assert (found.prompts[0].area, found.unreadable) == (None, {"mask_missing": 1})


def test_a_cost_that_is_not_told_is_unknown_and_not_zero(tmp_path: Path, source: Path) -> None:
    assert counted(see(published_run(tmp_path / "p", "/nowhere"))).cost.usd is None
    folder = our_run(tmp_path / "q", source)
    assert counted(see(folder)).cost.usd == 0  # it is complete, and nothing was paid for
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
    assert counted(see(folder)).cost.usd is None
    path.write_text(json.dumps({**json.loads(path.read_text()), "usage": {"verify": PAID.model_dump()}}))
    update_summary(folder, timing=[{"step": "verify", "total_seconds": 2.0, "count": 4}])
    found = counted(see(folder))
    assert (found.cost, found.stages["verify"].seconds, found.stages["verify"].steps) == (PAID, 2.0, 4)
    update_summary(folder, timing=[{"step": "align", "total_seconds": 2.0, "count": 4}])
    assert counted(see(folder)).cost == PAID


def test_all_wordings_that_stand_often_are_counted_and_a_few_shown() -> None:
    images = [an_image(a_prompt(f"Segment thing{number}")) for number in range(6) for _ in range(20)]
    found = concern(counted(*images), "repeated_wording")
    assert found
    assert (found.count, len(found.examples)) == (120, 5)


def test_families_that_are_not_told_raise_no_concern() -> None:
    figures = counted(*(an_image(a_prompt(f"Segment w{number}", family="")) for number in range(12)))
    assert {found.kind for found in figures.concerns} <= {"near_duplicates"}
