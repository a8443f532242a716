"""The report in a real browser, from a file: what it shows, filters, and asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from dataengine import report
from dataengine.report import write_report
from tests.browsers import Window, browser, needs_browser, window
from tests.exporters.folders import our_run, picture, prompt, save, write_negatives

pytestmark = needs_browser

HARM = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; " + "long " * 999 + "long"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def make_runs(root: Path, count: int) -> Path:
    """Run folders with two accepted prompts, a rejected one and a negative each."""
    for number in range(count):
        source = save(root / "photos" / f"photo {number}.png", picture())
        entities = [prompt(0, prompt=f"Segment number {number}"), prompt(1, verdict="REJECT", reason=HARM)]
        prompts = {"entities": entities, "physics": [prompt(0, (0, 1), prompt=HARM)]}
        folder = our_run(root / "runs", source, f"out_region_refine_{number:03d}", prompts=prompts)
        write_negatives(folder, "spatial", "ACCEPT")
    return root / "runs"


def opened(chromium: Browser, page: Path, width: int = 1280) -> Window:
    new = window(chromium, width)
    new.page.goto(page.as_uri())
    new.page.wait_for_selector("#gallery .image", state="attached")
    return new


@pytest.mark.parametrize("inline", [True, False])
def test_the_gallery_shows_filters_and_asks_for_nothing_from_elsewhere(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    runs = make_runs(tmp_path, 3)
    monkeypatch.setattr(report, "INLINE", 300 if inline else 0)
    new = opened(chromium, write_report(runs, tmp_path / "the report.html").page)
    page = new.page
    page.locator("#gallery").scroll_into_view_if_needed()
    page.wait_for_selector(".card >> nth=11", state="attached")
    assert page.inner_text("#shown") == "12 prompts of 3 images"
    assert page.locator(".card.ok").count() == 9 and page.locator(".card.no").count() == 3
    assert page.locator(".card .text", has_text=HARM.split()[0]).first.inner_text() == HARM
    assert page.evaluate("[...document.images].length") == 0  # no text became one
    sizes = page.evaluate("""() => [...document.querySelectorAll('image')].map(async (shown) => {
        const image = new Image();
        image.src = shown.getAttribute('href');
        await image.decode();
        return image.naturalWidth;
    }).reduce(async (all, one) => [...await all, await one], [])""")
    assert sizes == [60] * len(sizes) and len(sizes) == 3 * 4  # an overview and a picture for each but the negatives
    page.select_option("#concept", "physics")
    page.wait_for_selector('#shown:text-is("3 prompts of 3 images")')
    page.select_option("#concept", "")
    page.select_option("#kind", "negative")
    page.wait_for_selector('#shown:text-is("3 prompts of 3 images")')
    page.select_option("#kind", "")
    page.select_option("#verdict", "rejected")
    page.fill("#text", "PHOTO 1")
    page.wait_for_selector('#shown:text-is("1 prompts of 1 images")')
    assert page.inner_text(".image h3").startswith("photo 1.png")
    assert new.said == []
    assert {asked.partition(":")[0] for asked in new.asked} <= {"file", "blob", "data"}
    assert all("the%20report" in asked for asked in new.asked if asked.startswith("file:"))


def test_of_many_images_only_those_near_the_window_are_built(chromium: Browser, tmp_path: Path) -> None:
    page = opened(chromium, write_report(make_runs(tmp_path, 60), tmp_path / "report.html").page).page
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector("text=Segment number 59")
    assert 0 < page.locator(".card").count() < 60 * 4 / 2
    page.evaluate("() => document.getElementById('gallery').scrollIntoView()")
    page.wait_for_selector("text=Segment number 0")
    assert page.locator("text=Segment number 59").count() == 0


def test_nothing_is_wider_than_a_telephone(chromium: Browser, tmp_path: Path) -> None:
    page = opened(chromium, write_report(make_runs(tmp_path, 1), tmp_path / "report.html").page, width=390).page
    page.locator("#gallery").scroll_into_view_if_needed()
    page.wait_for_selector(".card")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
