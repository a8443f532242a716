"""The review page in a real browser, by keys, against the real command."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from dataengine.exporters.convseg import export
from tests.browsers import Window, browser, needs_browser, window
from tests.exporters.folders import our_run, picture, prompt, save, write_json
from tests.review.serving import MASKS, decisions, make_runs, serving

pytestmark = needs_browser

HARM = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;</textarea>`${1}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def opened(chromium: Browser, url: str) -> Window:
    new = window(chromium)
    new.page.goto(url)
    new.page.wait_for_selector("#stage[data-number]")
    return new


def press(page: Page, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


def all_saved(page: Page) -> None:
    page.wait_for_selector('#saved:text-is("saved")')


def shown(page: Page) -> str:
    """The prompt on the page, once its picture is there."""
    page.wait_for_selector("#stage[data-number]:not([aria-busy])")
    return page.inner_text("#prompt")


# What is pressed for one prompt and what is written of it: each action, and the verdict after it.
TURNS: tuple[tuple[str, list[tuple[str, str | None]]], ...] = (
    ("a", [("accept", "ACCEPT")]),
    ("r", [("reject", "REJECT")]),
    ("e TYPE Enter a", [("edit", None), ("accept", "ACCEPT")]),
    ("3 a", [("regions", None), ("accept", "ACCEPT")]),
    ("a u r", [("accept", "ACCEPT"), ("undo", None), ("reject", "REJECT")]),
)
OF_NEGATIVE = ("3 m m a", [("accept", "ACCEPT")])  # has no regions


def judge_thirty(page: Page) -> list[tuple[str, str | None]]:
    """Go through thirty prompts, with the page loaded again in the middle; what should be written."""
    expected: list[tuple[str, str | None]] = []
    for number in range(30):
        text = shown(page)
        if number == 14:
            all_saved(page)
            page.reload()
            page.wait_for_selector("#stage[data-number='14']")
            assert shown(page) == text
            assert page.inner_text("#progress").startswith("14 done · 16 left")
        keys, written = OF_NEGATIVE if number % 10 == 8 else TURNS[number % 5]
        for key in keys.split():
            if key == "TYPE":
                page.keyboard.type(f"Segment what I mean, {number}")
            else:
                page.keyboard.press(key)
        expected += written
    all_saved(page)
    assert page.inner_text("#progress").startswith("30 done · 0 left")
    return expected


def test_thirty_prompts_are_judged_by_keys_alone_and_the_files_say_exactly_that(
    chromium: Browser, tmp_path: Path
) -> None:
    runs = make_runs(tmp_path)
    with serving(runs, "--reviewer", "ana") as (url, _):
        expected = judge_thirty(opened(chromium, url).page)
    found = decisions(runs)
    assert [(decision.action, decision.after.verdict) for decision in found] == expected
    assert {decision.reviewer for decision in found} == {"ana"}
    by_id = {decision.id: decision for decision in found}
    for decision in found:
        before, after = decision.before, decision.after
        if decision.action == "edit":
            assert re.fullmatch(r"Segment what I mean, \d+", after.prompt)
            assert after.satisfying == before.satisfying
        elif decision.action == "regions":
            assert set(before.satisfying) ^ set(after.satisfying) == {2}
            assert after.prompt == before.prompt
        elif decision.action == "undo":
            taken_back = by_id[decision.undoes or ""]
            assert (taken_back.before, taken_back.after) == (after, before)
        else:
            assert (after.prompt, after.satisfying) == (before.prompt, before.satisfying)


def test_the_export_follows_what_was_judged(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with serving(runs, "--reviewer", "ana") as (url, _):
        judge_thirty(opened(chromium, url).page)
    manifest = export(runs, tmp_path / "out", include_negatives=True, workers=1)
    rows = [json.loads(line) for line in (tmp_path / "out" / "dataset.jsonl").read_text().splitlines()]
    final = {(d.index, d.concept, d.negative, d.basis): d.after for d in decisions(runs) if d.action != "undo"}
    # Run folders are alike and were judged alike, so each of the ten prompts stands three times.
    wanted = [judged.prompt for judged in final.values() if judged.verdict == "ACCEPT"]
    edited = [row["prompt"] for row in rows if "what I mean" in row["prompt"]]
    assert sorted(edited) == sorted(f"Segment what I mean, {number}" for number in range(30) if number % 5 == 2)
    assert {row["prompt"] for row in rows} >= set(wanted)
    assert len(rows) == manifest.review_counts["accepted"] == 18
    assert manifest.skipped_reason_counts == {"review_not_accept": 12}
    assert manifest.review_counts["regions_changed"] == 3


def test_filters_show_what_passes_and_stay_through_a_reload(chromium: Browser, tmp_path: Path) -> None:
    with serving(make_runs(tmp_path), "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        press(page, "a r f")
        page.keyboard.type("spatial")  # an a or r in it judges nothing
        press(page, "Enter")
        assert shown(page) == "Segment both sides, 0"
        assert page.inner_text("#progress").startswith("0 done · 9 left")
        page.select_option("#concept", "")
        page.select_option("#state", "unreviewed")
        all_saved(page)
        page.reload()
        page.wait_for_selector("#stage[data-number]")
        assert page.inner_text("#progress").startswith("0 done · 28 left")
        page.select_option("#state", "disagreement")  # prompt 1 was accepted by the engine and rejected here
        assert page.inner_text("#progress").startswith("1 done · 0 left")
        page.select_option("#state", "")
        page.select_option("#verdict", "rejected")
        assert page.inner_text("#progress").startswith("0 done · 9 left")
        page.select_option("#kind", "negative")
        assert page.inner_text("#progress").startswith("0 done · 3 left")


def test_a_sample_and_a_blind_desk_show_what_they_should(chromium: Browser, tmp_path: Path) -> None:
    with serving(make_runs(tmp_path), "--sample", "12", "--blind", "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        assert page.inner_text("#progress").startswith("0 done · 12 left")
        press(page, "f")
        assert not page.is_visible("#verdict")
        assert "Engine" not in page.inner_text("aside")
        told = page.evaluate("fetch('/prompts?reviewer=ana').then((answer) => answer.text())")
        seen = page.evaluate(
            "(desk) => fetch(`/view?desk=${desk}&run=out_region_refine_0`).then((answer) => answer.text())",
            json.loads(told)["desk"],
        )
        assert "accept" not in (told + seen).lower()
        assert "it fits" not in seen


def test_what_models_and_files_say_is_shown_as_text_and_nothing_leaves_the_machine(
    chromium: Browser, tmp_path: Path
) -> None:
    name = 'it\'s <b>"quoted"<i> &amp;.png'
    source = save(tmp_path / "photos" / name, picture())
    long = "word " * 1000
    texts = [HARM, long, f"Segment {name}"]
    prompts = {"entities": [prompt(i, (0,), prompt=text, reason=HARM) for i, text in enumerate(texts)]}
    folder = our_run(tmp_path / "runs", source, f"out_region_refine_{name}", masks=MASKS, prompts=prompts)
    path = folder / "accepted_regions" / "accepted.json"
    regions = json.loads(path.read_text())
    write_json(path, [region | {"label": HARM} for region in regions])
    with serving(tmp_path / "runs", "--reviewer", HARM[:60]) as (url, _):
        new = opened(chromium, url)
        page = new.page
        for text in texts:
            assert shown(page) == text
            assert page.locator("#regions .label").first.inner_text() == HARM
            assert HARM in page.inner_text("#said")
            assert name in page.inner_text("#place")
            assert page.locator("aside script, aside img, aside b").count() == 0
            press(page, "e Escape a")
        all_saved(page)
        assert new.said == []
        assert {urlsplit(asked).hostname for asked in new.asked} == {"127.0.0.1"}
    assert [decision.after.prompt for decision in decisions(tmp_path / "runs")] == texts


def test_a_killed_server_loses_nothing_that_was_shown_as_saved_and_gets_the_rest_when_it_is_back(
    chromium: Browser, tmp_path: Path
) -> None:
    runs = make_runs(tmp_path, images=1)
    with serving(runs, "--reviewer", "ana") as (url, process):
        port = urlsplit(url).port or 0
        page = opened(chromium, url).page
        killer = threading.Timer(0.1, process.kill)
        killer.start()
        saved = 0
        for number in range(10):
            press(page, "r" if number % 2 else "a")
            if page.inner_text("#saved") == "saved":
                saved = number + 1
            page.wait_for_timeout(30)
        killer.join()
        process.wait()
        assert saved <= len(decisions(runs)) < 10
        page.wait_for_selector("#saved.failed")
        assert "wait for the server" in page.inner_text("#saved")
    with serving(runs, "--reviewer", "ana", port=port):
        all_saved(page)
    assert [decision.action for decision in decisions(runs)] == ["accept", "reject"] * 5


def test_two_browsers_at_once_lose_no_decision(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with serving(runs, "--reviewer", "ana") as (url, _), serving(runs, "--reviewer", "ben") as (other, _):
        pages = [opened(chromium, url).page, opened(chromium, other).page]
        for _ in range(30):
            for page, key in zip(pages, "ar", strict=True):
                shown(page)
                press(page, key)
        for page in pages:
            all_saved(page)
    found = decisions(runs)
    for reviewer, action in (("ana", "accept"), ("ben", "reject")):
        assert [decision.action for decision in found if decision.reviewer == reviewer] == [action] * 30


def test_a_folder_that_cannot_be_written_to_holds_up_no_other(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path, images=2)
    (runs / "out_region_refine_0" / "reviews.jsonl").symlink_to(tmp_path / "elsewhere")
    with serving(runs, "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        press(page, "a")
        for _ in range(9):
            shown(page)
            press(page, "j")
        shown(page)
        press(page, "a")
        page.wait_for_selector("#saved.failed")
        page.reload()
        page.wait_for_selector("#stage[data-number]")
        assert page.inner_text("#progress").startswith("2 done")
        (runs / "out_region_refine_0" / "reviews.jsonl").unlink()
        all_saved(page)
    assert len(decisions(runs)) == 2


def test_whatever_else_answers_a_decision_is_kept(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path, images=1)
    with serving(runs, "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        page.route("**/decisions", lambda route: route.fulfill(status=404, body="another server"))
        press(page, "a")
        page.wait_for_selector("#saved.failed")
        page.unroute("**/decisions")
        all_saved(page)
    assert len(decisions(runs)) == 1


def test_what_was_refused_is_told_until_it_was_seen(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path, images=1)
    with serving(runs, "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        refusal = json.dumps({"error": "it does not fit"})
        page.route(
            "**/decisions", lambda route: route.fulfill(status=409, content_type="application/json", body=refusal)
        )
        press(page, "a")
        page.wait_for_selector("#saved.failed")
        assert page.inner_text("#saved") == "1 not written: it does not fit"
        page.unroute("**/decisions")
        assert page.inner_text("#progress").startswith("0 done")
        page.click("#saved")
        assert page.inner_text("#saved") == "saved" and page.get_attribute("#stage", "data-number") == "0"
        press(page, "a")
        all_saved(page)
    assert len(decisions(runs)) == 1


def test_a_name_given_on_the_page_is_the_one_that_is_written(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path, images=1)
    with serving(runs, "--reviewer", "ana") as (url, process):
        port = urlsplit(url).port or 0
        page = opened(chromium, url).page
        press(page, "a f")
        page.fill("#reviewer", "constructor")
        press(page, "Escape")
        assert page.input_value("#reviewer") == "ana"
        page.fill("#reviewer", "constructor")
        press(page, "Enter")
        page.wait_for_selector('#progress:has-text("0 done")')
        shown(page)
        press(page, "r")
        all_saved(page)
        page.reload()
        page.wait_for_selector("#stage[data-number]")
        assert page.input_value("#reviewer") == "constructor"
        process.kill()
        process.wait()
        with serving(runs, "--reviewer", "ben", port=port):
            page.reload()
            page.wait_for_selector("#stage[data-number]")
            assert page.input_value("#reviewer") == "ben"  # the one the server was started with now
    assert [(d.reviewer, d.action) for d in decisions(runs)] == [("ana", "accept"), ("constructor", "reject")]


def test_a_key_that_is_held_down_decides_once(chromium: Browser, tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    with serving(runs, "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        for _ in range(5):
            page.keyboard.down("a")  # from the second on the browser tells of a repeat
        page.keyboard.up("a")
        for _ in range(3):
            page.keyboard.down("j")
        page.keyboard.up("j")
        shown(page)
        all_saved(page)
        assert page.get_attribute("#stage", "data-number") == "4"
    assert [decision.action for decision in decisions(runs)] == ["accept"]


def test_decisions_of_another_desk_wait_for_it(chromium: Browser, tmp_path: Path) -> None:
    """The browser knows both by one address."""
    first, second = make_runs(tmp_path / "a", images=1), make_runs(tmp_path / "b", images=1)
    with serving(first, "--reviewer", "ana") as (url, process):
        port = urlsplit(url).port or 0
        new = opened(chromium, url)
        process.kill()
        process.wait()
        press(new.page, "a r")
        new.page.wait_for_selector("#saved.failed")
    with serving(second, "--reviewer", "ana", port=port):
        other = new.page.context.new_page()
        other.goto(url)
        all_saved(other)
        new.page.close()
        assert decisions(second) == []
    with serving(first, "--reviewer", "ana", port=port):
        other.goto(url)
        all_saved(other)
        assert shown(other)
    assert [decision.action for decision in decisions(first)] == ["accept", "reject"]
    assert decisions(second) == []


def test_pictures_of_long_ago_are_let_go_and_come_again(chromium: Browser, tmp_path: Path) -> None:
    with serving(make_runs(tmp_path, images=50), "--reviewer", "ana") as (url, _):
        page = opened(chromium, url).page
        press(page, "f")
        page.select_option("#kind", "negative")
        press(page, "Escape")
        for _ in range(99):
            shown(page)
            press(page, "j")
        assert page.inner_text("#place").startswith("100 of 100")
        for _ in range(99):
            press(page, "k")
        assert shown(page) == "Segment absent thing 0"
        press(page, "a")
        all_saved(page)
