"""A finished run folder as it is read again: prompts, families, regions, masks, who made it; and what is not read."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from dataengine.errors import UsageError
from dataengine.finished import Described, Entry, SkipError, Timed, find_runs, read_finished
from dataengine.masks import BoolArray
from dataengine.records import CONCEPTS, PartRecord, Usage
from dataengine.sources import Sources
from tests.exporters.folders import (
    LEFT,
    RIGHT,
    Prompt,
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
from tests.exporters.test_exporting_again import edit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder of ours with one accepted prompt."""
    return our_run(tmp_path / "runs", save(tmp_path / "photos" / "a.png", picture()))


def summarize(folder: Path, concept: str = "entities", **fields: object) -> None:
    """Write a concept's summary."""
    write_json(folder / concept / "summary.json", fields)


def entries_of(folder: Path) -> list[Entry]:
    return read_finished(Sources(folder)).entries


# Prompts.


def test_a_prompt_is_read_with_all_that_is_told_of_it(folder: Path) -> None:
    verified = [prompt(3, (1, 0), prompt="Segment both", reason="it fits well")]
    families = [{"concept_family": name} for name in ("no", "no", "no", "groups_and_piles")]
    summarize(folder, prompt_verifications=verified, conversational_prompts=families)
    assert entries_of(folder) == [
        Entry("entities", False, 3, "Segment both", "groups_and_piles", (1, 0), True, "it fits well")
    ]


@pytest.mark.parametrize(
    ("verdict", "accepted"),
    [("ACCEPT", True), ("REJECT", False), (None, False), ("accept", False), ("ACCEPTED", False), ("", False)],
)
def test_only_the_word_accept_accepts(folder: Path, verdict: str | None, accepted: bool) -> None:
    summarize(folder, prompt_verifications=[prompt(verdict=verdict)])
    assert [entry.accepted for entry in entries_of(folder)] == [accepted]


def test_a_rejected_prompt_keeps_its_regions_and_its_reason(folder: Path) -> None:
    summarize(folder, prompt_verifications=[prompt(0, (0, 1), verdict="REJECT", reason="rule words: too many")])
    [entry] = entries_of(folder)
    assert (entry.accepted, entry.satisfying, entry.reason) == (False, (0, 1), "rule words: too many")


FIRST, SECOND = {"prompt": "Segment", "concept_family": "hazard"}, {"prompt": "Segment", "concept_family": "unusual"}


@pytest.mark.parametrize(
    ("prompts", "families"),
    [
        ([FIRST, SECOND], ["hazard", "unusual"]),
        ({"prompts": [FIRST, SECOND]}, ["hazard", "unusual"]),
        ({"note": "two", "model": None, "prompts": [FIRST, SECOND], "older": [SECOND]}, ["hazard", "unusual"]),
        ([FIRST], ["hazard", ""]),
        ([{"prompt": "Segment"}, SECOND], ["", "unusual"]),
        (["Segment", SECOND], ["", "unusual"]),
        ([{"concept_family": None}, SECOND], ["", "unusual"]),
        ([{"concept_family": ["hazard"]}, SECOND], ["", "unusual"]),
        ({"prompts": "none"}, ["", ""]),
        ({}, ["", ""]),
        ([], ["", ""]),
        (None, ["", ""]),
        ("hazard", ["", ""]),
        (7, ["", ""]),
    ],
)
def test_families_are_told_by_the_list_of_prompts_however_it_is_kept(
    folder: Path, prompts: object, families: list[str]
) -> None:
    summarize(folder, "physics", prompt_verifications=[prompt(0), prompt(1)], conversational_prompts=prompts)
    found = read_finished(Sources(folder))
    assert [entry.family for entry in found.entries if entry.concept == "physics"] == families
    assert not found.skipped


def test_a_family_goes_by_the_prompts_index_and_not_by_where_it_stands(folder: Path) -> None:
    summarize(
        folder, prompt_verifications=[prompt(1), {**prompt(), "index": None}], conversational_prompts=[FIRST, SECOND]
    )
    assert [(entry.index, entry.family) for entry in entries_of(folder)] == [(1, "unusual"), (1, "unusual")]


def test_a_summary_without_a_list_of_prompts_has_no_families(folder: Path) -> None:
    assert [entry.family for entry in entries_of(folder)] == [""]


def test_prompts_come_in_the_order_of_the_concepts_and_negatives_after_them(folder: Path) -> None:
    for concept in reversed(CONCEPTS):
        summarize(folder, concept, prompt_verifications=[prompt(1), prompt(0)])
        write_negatives(folder, concept, "ACCEPT")
    assert [(entry.negative, entry.concept, entry.index) for entry in entries_of(folder)] == [
        *((False, concept, index) for concept in CONCEPTS for index in (1, 0)),
        *((True, concept, 0) for concept in CONCEPTS),
    ]


def test_a_negative_has_a_family_of_its_own_its_position_and_no_regions(folder: Path) -> None:
    negatives = [
        {"prompt": "Segment the cat", "verdict": "REJECT", "reason": "it is there", "concept_family": "hazard"}
    ]
    more = {"prompt": "Segment the dog", "verdict": "ACCEPT", "index": 7, "satisfying": [0]}
    write_json(folder / "negatives" / "spatial.json", [*negatives, more])
    assert entries_of(folder)[1:] == [
        Entry("spatial", True, 0, "Segment the cat", "hazard", (), False, "it is there"),
        Entry("spatial", True, 1, "Segment the dog", "", (), True, ""),
    ]


def test_negatives_and_decisions_are_read_where_they_are_wanted(folder: Path) -> None:
    write_negatives(folder, "physics", "ACCEPT")
    (folder / "reviews.jsonl").write_text("damaged\n")
    read = read_finished(Sources(folder))
    assert (len(read.entries), read.reviews.damaged, read.noted) == (2, 1, {"review_line_damaged": 1})
    unread = read_finished(Sources(folder), negatives=False, reviews=False)
    assert (len(unread.entries), unread.reviews.damaged, unread.skipped) == (1, 0, {})
    assert not {place for place in unread.sources.digests if "negatives" in place or "reviews" in place}


@pytest.mark.parametrize(
    "entry",
    [
        "Segment it",
        None,
        [],
        {},
        prompt(prompt=None),
        prompt(prompt=["Segment it"]),
        prompt(index=-1),
        prompt(index=1_000_000),
        prompt() | {"index": "first"},
        prompt() | {"satisfying": ["the left one"]},
        prompt() | {"satisfying": 0},
        prompt(verdict=1),
    ],
)
@pytest.mark.parametrize("negative", [False, True])
def test_a_malformed_prompt_is_counted_and_the_others_keep_their_places(
    folder: Path, entry: object, negative: bool
) -> None:
    entries = [entry, {**prompt(), "index": None, "prompt": "Segment that"}]
    if negative:
        write_json(folder / "negatives" / "entities.json", entries)
    summarize(folder, prompt_verifications=[] if negative else entries)
    found = read_finished(Sources(folder))
    assert [(entry.negative, entry.index, entry.prompt) for entry in found.entries] == [(negative, 1, "Segment that")]
    assert found.skipped == {"prompt_malformed": 1}


def test_the_greatest_index_is_read(folder: Path) -> None:
    summarize(folder, prompt_verifications=[prompt(999_999)])
    assert [entry.index for entry in entries_of(folder)] == [999_999]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("physics/summary.json", "{", "summary_unreadable"),
        ("physics/summary.json", "[]", "summary_unreadable"),
        ("negatives/physics.json", "{}", "negatives_unreadable"),
        ("negatives/physics.json", "\0", "negatives_unreadable"),
    ],
)
def test_a_damaged_file_is_counted_and_the_others_are_read(folder: Path, name: str, text: str, reason: str) -> None:
    (folder / name).parent.mkdir()
    (folder / name).write_text(text)
    write_json(folder / "negatives" / "entities.json", [{"prompt": "Segment the cat", "verdict": "ACCEPT"}])
    found = read_finished(Sources(folder))
    assert len(found.entries) == 2
    assert found.skipped == {reason: 1}


# By what decisions are known.


def keys_after(folder: Path, **fields: object) -> tuple[object, object]:
    """The key of the first prompt, before and after its fields are changed."""
    before = read_finished(Sources(folder))
    edit(folder / "entities" / "summary.json", lambda summary: summary["prompt_verifications"][0].update(fields))
    after = read_finished(Sources(folder))
    return before.key(before.entries[0]), after.key(after.entries[0])


@pytest.mark.parametrize("fields", [{"prompt": "Segment that"}, {"satisfying": [1]}, {"satisfying": [0, 1]}])
def test_another_text_or_other_regions_are_another_prompt(folder: Path, fields: Prompt) -> None:
    before, after = keys_after(folder, **fields)
    assert before != after


@pytest.mark.parametrize("fields", [{"verdict": "REJECT"}, {"reason": "other"}, {"src_path": "c.png"}])
def test_another_judgement_is_of_the_same_prompt(folder: Path, fields: Prompt) -> None:
    before, after = keys_after(folder, **fields)
    assert before == after


def test_prompts_of_one_text_have_keys_of_their_own(folder: Path) -> None:
    same = prompt(0, (), prompt="Segment it")
    summarize(folder, "physics", prompt_verifications=[same, {**same, "index": 1}])
    summarize(folder, "spatial", prompt_verifications=[same])
    write_json(folder / "negatives" / "spatial.json", [same])
    found = read_finished(Sources(folder))
    assert len({found.key(entry) for entry in found.entries}) == len(found.entries) == 5
    assert len({found.key(entry).basis for entry in found.entries}) == 4  # two of physics differ by their index


def test_a_prompt_without_a_list_of_regions_still_has_a_key(folder: Path) -> None:
    (folder / "accepted_regions" / "accepted.json").write_text("{")
    found = read_finished(Sources(folder))
    assert found.key(found.entries[0]).index == 0


# What else a summary tells.


def test_described_regions_are_those_of_the_first_summary_that_tells_of_any(folder: Path) -> None:
    results = [{"index": 0, "label": "box", "output": "initial", "reason": "good"}, {"label": "cup", "output": None}]
    summarize(folder, "entities", results=[])
    summarize(folder, "spatial", results=[*results, "a box"])
    summarize(folder, "physics", results=[{"label": "other"}])
    assert read_finished(Sources(folder)).described == [
        Described(label="box", output="initial", reason="good"),
        Described(label="cup"),
    ]


def timing(**seconds: float) -> list[dict[str, object]]:
    return [{"step": name, "total_seconds": value, "count": 2, "avg_seconds": 0} for name, value in seconds.items()]


def test_times_are_those_of_the_summary_that_tells_of_most_stages(folder: Path) -> None:
    summarize(folder, "entities", timing=timing(describe=1))
    summarize(folder, "spatial", timing=[*timing(describe=2, ground=3), {"step": "verify"}, "compose", 7])
    summarize(folder, "relations", timing=timing(describe=4, ground=5))  # no more of them: the first stays
    summarize(folder, "affordances", timing=None)
    summarize(folder, "physics", timing=[])
    assert read_finished(Sources(folder)).timing == [
        Timed(step="describe", total_seconds=2, count=2),
        Timed(step="ground", total_seconds=3, count=2),
    ]


def test_the_image_is_the_one_that_a_summary_names_first(folder: Path) -> None:
    summarize(folder, "entities", image_path=None)
    summarize(folder, "relations", image_path="/photos/a.png")
    summarize(folder, "physics", image_path="/photos/b.png")
    assert read_finished(Sources(folder)).image_path == "/photos/a.png"


def test_what_a_summary_does_not_tell_is_empty(folder: Path) -> None:
    summarize(folder)
    found = read_finished(Sources(folder))
    assert (found.described, found.timing, found.entries, found.image_path) == ([], [], [], None)
    assert not found.skipped


# Who made it.


def test_who_made_a_run_folder_is_told_by_its_record(folder: Path) -> None:
    part = {"name": "vlm", "version": "3", "detail": {"model": "gemini"}}
    more: dict[str, object] = {"parts": {"annotator": part}, "usage": {"describe": {"calls": 2, "usd": 0.5}}}
    edit(folder / "run.json", lambda record: record.update(more, prompt_digests={"align": "ab"}, newer=True))
    maker = read_finished(Sources(folder)).maker
    assert maker is not None
    assert maker.dataengine == "0"
    assert maker.parts == {"annotator": PartRecord(name="vlm", version="3", detail={"model": "gemini"})}
    assert maker.prompt_digests == {"align": "ab"}
    assert maker.usage == {"describe": Usage(calls=2, usd=0.5)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"parts": []}', '{"parts": {"annotator": {"name": "vlm"}}}', '{"dataengine": 1}']
)
def test_a_damaged_record_tells_nothing_and_stops_nothing(folder: Path, text: str) -> None:
    (folder / "run.json").write_text(text)
    found = read_finished(Sources(folder))
    assert found.maker is None
    assert (len(found.entries), found.skipped) == (1, {})


def test_a_folder_of_the_published_engines_does_not_say_who_made_it(tmp_path: Path) -> None:
    found = read_finished(Sources(published_run(tmp_path, "/nowhere/p.jpg")))
    assert found.maker is None
    assert len(found.entries) == 1


# Masks.


def masks_of(folder: Path, *masks: BoolArray) -> Any:
    write_masks(folder, masks)
    return read_finished(Sources(folder)).masks


def test_a_mask_and_a_union_of_masks(folder: Path) -> None:
    masks = masks_of(folder, LEFT, RIGHT)
    np.testing.assert_array_equal(masks.mask(1).array(), RIGHT)
    np.testing.assert_array_equal(masks.union((0, 1)).array(), LEFT | RIGHT)
    assert masks.union((1, 0, 1)) is masks.union((0, 1))  # prompts that mean the same share one
    assert masks.sizes == {(40, 60)}


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        ((0, 9), "region_missing"),
        ((-1,), "region_missing"),
        ((2,), "mask_empty"),
        ((0, 3), "masks_differ_in_size"),
        ((4, 0), "mask_missing"),
        ((5,), "mask_unreadable"),
    ],
)
def test_a_union_that_cannot_be_made_says_why_each_time(folder: Path, indices: tuple[int, ...], reason: str) -> None:
    masks = masks_of(folder, LEFT, RIGHT, np.zeros_like(LEFT), box(0, 0, 5, 5, 20, 30), LEFT, LEFT)
    (folder / "accepted_regions" / "masks" / "004_mask.png").unlink()
    (folder / "accepted_regions" / "masks" / "005_mask.png").write_bytes(b"\x89PNG\r\n")
    for _ in range(2):
        with pytest.raises(SkipError) as caught:
            masks.union(indices)
        assert caught.value.reason == reason
    np.testing.assert_array_equal(masks.union((0, 2)).array(), LEFT)  # an empty one beside it does no harm


def test_of_two_regions_with_one_index_the_first_is_meant(folder: Path) -> None:
    write_masks(folder, [LEFT, RIGHT])
    edit(folder / "accepted_regions" / "accepted.json", lambda regions: regions[1].update(index=0))
    masks = read_finished(Sources(folder)).masks
    assert list(masks.regions) == [0]
    np.testing.assert_array_equal(masks.mask(0).array(), LEFT)


@pytest.mark.parametrize(("text", "reason"), [(None, "accepted_json_missing"), ("{", "accepted_json_unreadable")])
def test_without_a_list_of_regions_there_are_none(folder: Path, text: str | None, reason: str) -> None:
    path = folder / "accepted_regions" / "accepted.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    masks = read_finished(Sources(folder)).masks
    for ask in (lambda: masks.regions, lambda: masks.mask(0), lambda: masks.union((0,))):
        with pytest.raises(SkipError, match=reason):
            ask()


# Finding run folders.


@pytest.mark.parametrize(
    ("named", "before"), [("", ""), ("--runs_root", "--runs_root ")], ids=["no flag", "with a flag"]
)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "no such folder. Check the path"),
        ("photos/a.png", "not a folder. Give the folder that holds the run folders"),
        ("photos", "no run folder in it. A run folder holds <concept>/summary.json, such as entities/summary.json"),
        ("x" * 300, "cannot be read (File name too long). Check its permissions"),
    ],
)
def test_a_root_without_run_folders_is_refused_by_the_name_it_was_given(
    folder: Path, tmp_path: Path, named: str, before: str, name: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        find_runs(tmp_path / name, named)
    assert str(caught.value) == f"{before}{tmp_path / name}: {said}"


def test_a_root_that_may_not_be_listed_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        find_runs(tmp_path / "runs")


@pytest.mark.parametrize("concept", CONCEPTS)
def test_one_concept_makes_a_run_folder(tmp_path: Path, concept: str) -> None:
    for name in ("b", "a"):
        summarize(tmp_path / "runs" / name, concept)
    summarize(tmp_path / "runs" / "c", "other")
    (tmp_path / "runs" / "notes.txt").write_text("no folder")
    assert find_runs(tmp_path / "runs") == [tmp_path / "runs" / "a", tmp_path / "runs" / "b"]


# Nothing is read through a link out of the folder.


def move_out(path: Path, tmp_path: Path) -> None:
    """Move a file or folder out of the run folders, and link to it."""
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


@pytest.fixture
def full(folder: Path) -> Path:
    """A run folder with every file that is read."""
    write_negatives(folder, "physics", "ACCEPT")
    (folder / "reviews.jsonl").write_text("damaged\n")
    return folder


def told_of(folder: Path, within: Path | None) -> dict[str, object]:
    """What is read of a run folder, by the name of the file that tells of it."""
    found = read_finished(Sources(folder, within=within))
    try:
        regions, mask = len(found.masks.regions), found.masks.mask(0).any
    except SkipError as skip:
        regions, mask = 0 if "json" in skip.reason else 2, False
    return {
        "entities/summary.json": any(not entry.negative for entry in found.entries),
        "negatives/physics.json": any(entry.negative for entry in found.entries),
        "accepted_regions/accepted.json": regions == 2,
        "accepted_regions/masks/000_mask.png": mask,
        "reviews.jsonl": found.reviews.damaged == 1,
        "run.json": found.maker is not None,
    }


FILES = (
    "entities/summary.json",
    "negatives/physics.json",
    "accepted_regions/accepted.json",
    "accepted_regions/masks/000_mask.png",
    "reviews.jsonl",
    "run.json",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("root", ["run folder", "runs"])
def test_a_link_to_a_file_outside_is_no_file(full: Path, tmp_path: Path, root: str, name: str) -> None:
    within = full if root == "run folder" else full.parent
    assert all(told_of(full, within).values())
    move_out(full / name, tmp_path)
    assert all(told_of(full, None).values())
    told = told_of(full, within)
    assert not told.pop(name)
    told.pop("accepted_regions/masks/000_mask.png", None)  # there is no mask without the list of regions
    assert all(told.values())


@pytest.mark.parametrize("name", ["entities", "negatives", "accepted_regions", "accepted_regions/masks"])
def test_a_link_to_a_folder_outside_holds_no_file(full: Path, tmp_path: Path, name: str) -> None:
    move_out(full / name, tmp_path)
    assert all(told_of(full, None).values())
    told = told_of(full, full)
    gone = {file for file in FILES if file.startswith(f"{name}/")}
    assert {file for file in FILES if not told[file]} == gone


def test_a_run_folder_that_is_a_link_to_outside_holds_nothing(full: Path, tmp_path: Path) -> None:
    runs = full.parent
    move_out(full, tmp_path)
    assert all(told_of(full, None).values())
    assert not any(told_of(full, runs).values())


def test_links_that_stay_inside_are_followed(full: Path, tmp_path: Path) -> None:
    for name in FILES:
        kept = full / "kept" / name.replace("/", "_")
        kept.parent.mkdir(exist_ok=True)
        (full / name).rename(kept)
        (full / name).symlink_to(kept)
    assert all(told_of(full, full).values())
    (full.parent / "linked").symlink_to(full)
    assert all(told_of(full.parent / "linked", full.parent).values())
    (tmp_path / "a link to the root").symlink_to(full.parent)
    assert all(told_of(full, tmp_path / "a link to the root").values())


@pytest.mark.parametrize("how", ["absolute", "upwards", "beside"])
@pytest.mark.parametrize("field", ["mask_path", "mask_npz_path"])
def test_a_mask_named_outside_is_not_read(full: Path, tmp_path: Path, how: str, field: str) -> None:
    beside = tmp_path / ("runs, the secret ones" if how == "beside" else "outside")
    write_masks(beside, [LEFT])
    secret = beside / "accepted_regions" / "masks" / "secret.png"
    (beside / "accepted_regions" / "masks" / "000_mask.png").rename(secret)
    if field == "mask_npz_path":
        secret = secret.with_suffix(".npz")
        np.savez_compressed(secret, mask=LEFT)
    named = str(secret) if how != "upwards" else os.path.relpath(secret, full)
    names = {"mask_path": None, "mask_npz_path": None, field: named}
    edit(full / "accepted_regions" / "accepted.json", lambda regions: regions[0].update(names))
    np.testing.assert_array_equal(read_finished(Sources(full)).masks.mask(0).array(), LEFT)
    masks = read_finished(Sources(full, within=full.parent)).masks
    with pytest.raises(SkipError, match="mask_missing"):
        masks.mask(0)
    np.testing.assert_array_equal(masks.mask(1).array(), RIGHT)


def test_a_mask_named_upwards_but_inside_is_read(full: Path) -> None:
    write_masks(full.parent / "other", [RIGHT])
    named = "../other/accepted_regions/masks/000_mask.png"
    (full / "accepted_regions" / "masks" / "000_mask.png").unlink()
    edit(full / "accepted_regions" / "accepted.json", lambda regions: regions[0].update(mask_path=named))
    masks = read_finished(Sources(full, within=full.parent)).masks
    np.testing.assert_array_equal(masks.mask(0).array(), RIGHT)
    with pytest.raises(SkipError, match="mask_missing"):
        read_finished(Sources(full, within=full)).masks.mask(0)


# Whatever stands in a file's place.


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that waits for something ends after some seconds."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("it hangs")

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo") or not hasattr(signal, "setitimer"), reason="FIFOs of POSIX")
@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", FILES)
def test_a_fifo_is_no_file_and_is_not_waited_for(full: Path, name: str) -> None:
    (full / name).unlink()
    os.mkfifo(full / name)
    assert not told_of(full, None)[name]


@pytest.mark.skipif(not hasattr(os, "mkfifo") or not hasattr(signal, "setitimer"), reason="FIFOs of POSIX")
@pytest.mark.usefixtures("in_time")
def test_a_fifo_makes_no_run_folder(full: Path) -> None:
    (full / "entities" / "summary.json").unlink()
    os.mkfifo(full / "entities" / "summary.json")
    with pytest.raises(UsageError, match="no run folder"):
        find_runs(full.parent)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_no_file(full: Path, name: str) -> None:
    (full / name).unlink()
    (full / name).mkdir()
    assert not told_of(full, None)[name]


@pytest.mark.parametrize("named", ["nul\0byte", "n" * 300, "", "..", ".", "/", "accepted_regions/masks"])
def test_a_mask_of_a_name_that_is_none_is_missing(full: Path, named: str) -> None:
    (full / "accepted_regions" / "accepted.json").write_text(json.dumps([{"index": 0, "mask_path": named}]))
    for within in (None, full):
        with pytest.raises(SkipError, match="mask_missing"):
            read_finished(Sources(full, within=within)).masks.mask(0)
