"""What is judged and where decisions go, without a server."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataengine.errors import OutputError, UsageError
from dataengine.review.desk import HISTORY, SIDE, Asked, Desk, RefusedError
from dataengine.reviews import append
from tests.exporters.folders import our_run, picture, prompt, save, write_masks
from tests.review.serving import MASKS, decisions, make_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path, images=2)


def asked(desk: Desk, position: int = 0, action: str = "accept", **other: Any) -> Asked:
    """A decision on one of a desk's prompts, as a page would send it that shows it as it is now."""
    item = desk.items[position]
    reviewer = other.get("reviewer", "ana")
    words: Any = desk.listing(reviewer)["words"]
    now = words.get(position, {}).get(reviewer)
    shown = now or {"prompt": item.entry.prompt, "satisfying": list(item.entry.satisfying)}
    told = {
        "desk": desk.name,
        "id": f"{action}-{position}-{len(decisions(desk.root)):06d}",
        "reviewer": "ana",
        "run": item.run,
    }
    about = {"concept": item.key.concept, "negative": item.key.negative, "index": item.key.index}
    sent = {"basis": item.key.basis, "action": action, "prompt": shown["prompt"], "satisfying": shown["satisfying"]}
    return Asked.model_validate({**told, **about, **sent, **other})


def verdicts(desk: Desk, reviewer: str = "ana") -> dict[int, dict[str, str]]:
    words: Any = desk.listing(reviewer)["words"]
    return {number: {name: word["verdict"] for name, word in of.items()} for number, of in words.items()}


def test_prompts_are_listed_by_run_folder_positives_first(runs: Path) -> None:
    desk = Desk(runs)
    assert (len(desk.items), desk.images, desk.left_out) == (20, 2, 0)
    listing: Any = desk.listing("ana")
    told = [(p["run"], p["concept"], p["negative"], p["index"], p["accepted"]) for p in listing["prompts"][:10]]
    run = "out_region_refine_0"
    assert told[:6] == [*((run, "entities", False, i, i < 3) for i in range(5)), (run, "spatial", False, 0, True)]
    assert told[8:] == [(run, "entities", True, 0, True), (run, "entities", True, 1, False)]
    assert (listing["words"], listing["history"], listing["blind"]) == ({}, [], False)


def test_decisions_are_written_with_what_was_before_and_after(runs: Path) -> None:
    desk = Desk(runs, blind=True)
    desk.decide(asked(desk, 1, "regions", satisfying=[2, 0, 2]))
    desk.decide(asked(desk, 1, "edit", prompt="  Segment \n two  "))
    desk.decide(asked(desk, 1, "accept"))
    regions, edit, accept = decisions(runs)
    assert (regions.before.satisfying, regions.after.satisfying, regions.before.verdict) == ([1], [0, 2], None)
    assert (edit.before.prompt, edit.after.prompt) == ("Segment thing 1", "Segment two")
    assert (accept.before, accept.after.verdict) == (edit.after, "ACCEPT")
    assert accept.after == edit.after.model_copy(update={"verdict": "ACCEPT"})
    assert {(d.engine, d.blind, d.reviewer) for d in (regions, edit, accept)} == {("ACCEPT", True, "ana")}
    assert [path.name for path in runs.rglob("*.jsonl")] == ["reviews.jsonl"]


def test_undo_takes_back_the_last_of_ones_own_and_only_that(runs: Path) -> None:
    desk = Desk(runs)
    desk.decide(asked(desk, 0, "edit", prompt="Segment it"))
    desk.decide(asked(desk, 0, "reject"))
    edit, reject = decisions(runs)
    for undoes in (edit.id, "another-id", None):
        with pytest.raises(RefusedError, match="only your last"):
            desk.decide(asked(desk, 0, "undo", undoes=undoes))
    with pytest.raises(RefusedError, match="only your last"):
        desk.decide(asked(desk, 0, "undo", undoes=reject.id, reviewer="ben"))
    desk.decide(asked(desk, 0, "undo", undoes=reject.id))
    words: Any = desk.listing("ana")["words"]
    assert words[0]["ana"] == {"verdict": None, "prompt": "Segment it", "satisfying": [0]}
    desk.decide(asked(desk, 0, "undo", undoes=edit.id))
    assert desk.listing("ana")["words"] == {}
    assert [decision.action for decision in decisions(runs)] == ["edit", "reject", "undo", "undo"]


def test_what_can_be_undone_is_told_oldest_first_and_not_without_end(runs: Path) -> None:
    desk = Desk(runs)
    for turn in range(HISTORY + 5):
        desk.decide(asked(desk, turn % 20, "reject" if turn % 2 else "accept", id=f"number-{turn:06d}"))
    history: Any = desk.listing("ana")["history"]
    assert [entry["id"] for entry in history] == [f"number-{turn:06d}" for turn in range(5, HISTORY + 5)]
    assert desk.listing("ben")["history"] == []


@pytest.mark.parametrize(
    ("position", "action", "other", "said"),
    [
        (0, "edit", {"prompt": " \n "}, "needs words"),
        (0, "edit", {"prompt": "a\u202eb"}, "cannot be seen"),
        (0, "edit", {"prompt": "a\x07b"}, "cannot be seen"),
        (0, "edit", {"prompt": "x" * 10_001}, "at most 10,000"),
        (0, "regions", {"satisfying": [4]}, "no such region"),
        (0, "regions", {"satisfying": [-1]}, "no such region"),
        (8, "regions", {"satisfying": [0]}, "no such region"),
        (0, "accept", {"prompt": "Segment thing 0 "}, "changed this prompt elsewhere"),
        (0, "reject", {"satisfying": [0, 1]}, "changed this prompt elsewhere"),
        (0, "accept", {"run": "out_region_refine_9"}, "no such prompt"),
        (0, "accept", {"index": 1}, "no such prompt"),
        (0, "accept", {"negative": True}, "no such prompt"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_written(
    runs: Path, position: int, action: str, other: dict[str, Any], said: str
) -> None:
    desk = Desk(runs)
    with pytest.raises(RefusedError, match=said):
        desk.decide(asked(desk, position, action, **other))
    assert decisions(runs) == []


def test_a_prompt_that_means_nothing_can_be_rejected_and_not_accepted(runs: Path) -> None:
    desk = Desk(runs)
    desk.decide(asked(desk, 0, "regions", satisfying=[]))
    with pytest.raises(RefusedError, match="means no region"):
        desk.decide(asked(desk, 0, "accept"))
    desk.decide(asked(desk, 0, "reject"))
    desk.decide(asked(desk, 8, "accept"))  # a negative means none
    assert verdicts(desk) == {0: {"ana": "REJECT"}, 8: {"ana": "ACCEPT"}}


def test_who_takes_out_the_last_region_takes_back_the_verdict(runs: Path) -> None:
    desk = Desk(runs)
    desk.decide(asked(desk, 0))
    desk.decide(asked(desk, 0, "regions", satisfying=[0, 1]))
    assert verdicts(desk) == {0: {"ana": "ACCEPT"}}
    desk.decide(asked(desk, 0, "regions", satisfying=[]))
    assert verdicts(desk) == {0: {"ana": None}}


def test_any_script_can_be_written(runs: Path) -> None:
    desk = Desk(runs)
    for text in ("می‌خواهم", "Segment 👩‍🚀"):
        desk.decide(asked(desk, 0, "edit", prompt=text))
        assert decisions(runs)[-1].after.prompt == text


def test_a_region_that_is_not_there_can_be_taken_out(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture())
    our_run(tmp_path / "runs", source, masks=MASKS, prompts={"entities": [prompt(0, (0, 99)), prompt(1, (99,))]})
    desk = Desk(tmp_path / "runs")
    desk.decide(asked(desk, 0, "regions", satisfying=[0]))
    with pytest.raises(RefusedError, match="means no region"):
        desk.decide(asked(desk, 1))


def test_decisions_that_cannot_be_read_keep_nobody_from_the_others(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(runs)
    desk.decide(asked(desk, 10))
    (runs / "out_region_refine_0" / "reviews.jsonl").write_text("")
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "reviews.jsonl" and self.parent.name.endswith("0"):
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert verdicts(desk) == {10: {"ana": "ACCEPT"}}
    with pytest.raises(OutputError):
        desk.decide(asked(desk, 0))


def test_another_process_and_another_person_are_seen(runs: Path) -> None:
    desk, other = Desk(runs), Desk(runs)
    desk.decide(asked(desk, 0))
    other.decide(asked(other, 0, "reject", reviewer="ben"))
    assert verdicts(desk) == verdicts(other, "ben") == {0: {"ana": "ACCEPT", "ben": "REJECT"}}
    [first] = [d for d in decisions(runs) if d.reviewer == "ana"]
    append(runs / "out_region_refine_0", first.model_copy(update={"id": "by-hand-1", "reviewer": "eve"}))
    assert set(verdicts(desk)[0]) == {"ana", "ben", "eve"}
    (runs / "out_region_refine_0" / "reviews.jsonl").unlink()
    assert verdicts(desk) == {}


def test_many_threads_at_once_lose_nothing_and_write_nothing_twice(runs: Path) -> None:
    desk = Desk(runs)
    sent = [asked(desk, turn % 20, id=f"number-{turn:06d}", reviewer=f"person {turn // 20}") for turn in range(100)]
    threads = [
        threading.Thread(target=lambda part=sent[n::4] + sent[n::4]: [desk.decide(a) for a in part]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(decision.id for decision in decisions(runs)) == sorted(one.id for one in sent)


def test_a_blind_desk_tells_nothing_of_the_engine_or_of_others(runs: Path) -> None:
    Desk(runs).decide(asked(Desk(runs), 0, reviewer="ben"))
    desk = Desk(runs, blind=True)
    desk.decide(asked(desk, 1))
    told = json.dumps([desk.listing("ana"), desk.view("out_region_refine_0")])
    assert "it fits" not in told and '"accepted"' not in told and "ben" not in told
    assert verdicts(desk) == {0: {}, 1: {"ana": "ACCEPT"}}


def test_a_sample_is_of_all_kinds_and_the_same_again(runs: Path) -> None:
    chosen = [[(item.run, item.key) for item in Desk(runs, sample=8, seed=seed).items] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    kinds = {(item.key.concept, item.key.negative, item.entry.accepted) for item in Desk(runs, sample=8).items}
    assert len(kinds) == 5
    assert len(Desk(runs, sample=1000).items) == 20


# What is shown.


def test_a_view_has_the_regions_outlines_at_the_photos_size(runs: Path) -> None:
    found: Any = Desk(runs).view("out_region_refine_0")
    assert (found["run"], found["file"], found["width"], found["height"]) == (
        "out_region_refine_0", "photo_0.png", 60, 40,
    )  # fmt: skip
    assert [region["index"] for region in found["regions"]] == [0, 1, 2, 3]
    for region, mask in zip(found["regions"], MASKS, strict=True):
        x, y = region["at"]
        assert region["path"].startswith("M") and mask[y, x]
    assert found["prompts"][4]["prompt"] == "Segment thing 4"
    assert Desk(runs).view("out_region_refine_9") is None
    assert Desk(runs).photo("out_region_refine_9") is None


def test_a_large_photo_is_shrunk_with_its_outlines(tmp_path: Path) -> None:
    height, width = 1000, 4000
    source = save(tmp_path / "wide.png", picture(height, width))
    masks = [picture(height, width)[:, :, 0] > 128]
    our_run(tmp_path / "runs", source, rgb=picture(height, width), masks=masks, prompts={"entities": [prompt()]})
    desk = Desk(tmp_path / "runs")
    found: Any = desk.view("out_region_refine_a")
    assert (found["width"], found["height"]) == (SIDE, SIDE // 4)
    (tmp_path / "photo.jpg").write_bytes(desk.photo("out_region_refine_a") or b"")
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert photo.size == (SIDE, SIDE // 4)
    assert found["regions"][0]["at"][1] > SIDE // 8  # in the lower half


def test_without_a_photo_masks_are_shown_all_the_same(runs: Path) -> None:
    (runs / "out_region_refine_0" / "original_image.png").write_bytes(b"no picture")
    found: Any = Desk(runs).view("out_region_refine_0")
    assert (found["width"], found["height"]) == (60, 40)
    assert Desk(runs).photo("out_region_refine_0") is None


def test_where_nothing_of_the_regions_can_be_read_prompts_are_shown(runs: Path) -> None:
    folder = runs / "out_region_refine_0"
    (folder / "original_image.png").unlink()
    (folder / "accepted_regions" / "accepted.json").write_text("{")
    found: Any = Desk(runs).view("out_region_refine_0")
    assert (found["regions"], found["photo"], len(found["prompts"])) == ([], False, 10)


def test_regions_that_were_cut_anew_are_another_prompt(runs: Path) -> None:
    """A page that was open meanwhile is told so."""
    desk = Desk(runs)
    old = asked(desk, 0)
    write_masks(runs / "out_region_refine_0", MASKS[:2])
    for now in (desk, Desk(runs)):
        with pytest.raises(RefusedError, match="no such prompt"):
            now.decide(old)
    assert decisions(runs) == []


def test_nothing_to_judge_is_one_clear_line(tmp_path: Path) -> None:
    our_run(tmp_path / "runs", save(tmp_path / "a.png", picture()), prompts={"entities": []})
    with pytest.raises(UsageError, match="no prompt"):
        Desk(tmp_path / "runs")
