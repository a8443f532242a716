"""Looking at run folders and judging them: the report of thousands, and the time from a decision to the next picture.

    python -m benchmarks.looking
    python -m benchmarks.looking --folders 2000 --decisions 200

Photos have 2 megapixels. `dataengine run` makes a few run folders with a stand-in for the model; the others are copies
of these, with hard links for their files, so that each is read and decoded on its own. The browser is Debian's
chromium, headless, driven by Playwright.

report: `dataengine report` made anew and once more, its size, and the time until it is open: its figures drawn, and its
        gallery ready; then jumps to the gallery's begin and end, and a text typed into its filter.
review: from pressing A until the next photo and its masks are drawn, decoded, in the next frame but one. One after
        another as fast as the page can, and with half a second for each, as fast as a person might be.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.rig import ROOT, Claims, make_photos, run_child, run_flags
from benchmarks.standin import standing_in

KINDS = 12
MOST_MS = 50
LIMIT = 30_000  # ms for a page
TEXT = "nothing has this text"

# Presses A and tells after how many ms the next picture is there: its photo decoded, and drawn in a frame.
DECIDE = """
async () => {
  const stage = document.getElementById('stage');
  const before = stage.dataset.number;
  const began = performance.now();
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'a', bubbles: true }));
  while (stage.dataset.number === before || stage.hasAttribute('aria-busy')) {
    await new Promise((done) => requestAnimationFrame(done));
  }
  await stage.querySelector('img').decode();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - began;
}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folders", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--decisions", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, help="a folder to leave run folders and report in")
    options = parser.parse_args(arguments)
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root: Path = options.keep or Path(folder)
        runs = make_runs(root, options.folders)
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        measure_report(runs, root / "report.html", browser)
        measure_review(runs, browser, options.decisions, claims)
        browser.close()
    return claims.code


def make_runs(root: Path, count: int) -> Path:
    """Run folders of the engine's, most of them copies with hard links."""
    photos, made, runs = make_photos(root / "photos", min(KINDS, count)), root / "made", root / "runs"
    with standing_in() as model:
        ended = run_child(run_flags(photos, made, model.url))
    if ended.code:
        raise SystemExit(f"the run ended with {ended.code}:\n{ended.last_lines}")
    kinds = sorted(made.glob("out_region_refine_*"))
    for number in range(count):
        kind = kinds[number % len(kinds)]
        shutil.copytree(kind, runs / f"out_region_refine_{number:05d}", copy_function=os.link)
    return runs


# The report.


def measure_report(runs: Path, out: Path, browser: Browser) -> None:
    """Make it twice, and open it."""
    for again in ("", " again, pictures found"):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dataengine.cli", "report", str(runs), "--out", str(out)], check=True, cwd=ROOT
        )
        print(f"report{again}: {time.perf_counter() - began:.1f} s")
    pictures = sum(path.stat().st_size for path in out.with_name(f"{out.stem}_files").glob("*.jpg"))
    print(f"page {out.stat().st_size / 1e6:.1f} MB, pictures beside it {pictures / 1e6:.1f} MB")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(LIMIT)
    began = time.perf_counter()
    page.goto(out.as_uri(), wait_until="commit")
    page.wait_for_selector("h1")
    seen = time.perf_counter() - began
    page.wait_for_selector("#gallery .image", state="attached")
    print(f"figures seen after {seen:.2f} s, gallery ready after {time.perf_counter() - began:.2f} s")
    print(f"jump to the gallery: {drawn(page, 'document.getElementById(`gallery`).scrollIntoView()'):.0f} ms")
    print(f"jump to the end: {drawn(page, 'window.scrollTo(0, document.body.scrollHeight)'):.0f} ms to its cards")
    print(f"elements on the page: {page.evaluate('document.querySelectorAll(`*`).length'):,}")
    began = time.perf_counter()
    page.fill("#text", TEXT)
    page.wait_for_selector('#shown:text-is("0 prompts of 0 images")')
    print(f"filtered by a text after {time.perf_counter() - began:.2f} s, of which 0.15 s waits for more typing")
    page.close()


def drawn(page: Page, action: str) -> float:
    """ms until a card is in the window after an action."""
    return float(
        page.evaluate(f"""async () => {{
            const began = performance.now();
            {action};
            const inWindow = (card) => {{
                const box = card.getBoundingClientRect();
                return box.top < innerHeight && box.bottom > 0;
            }};
            do {{ await new Promise((done) => requestAnimationFrame(done)); }}
            while (![...document.querySelectorAll('.card, .overview')].some(inWindow));
            return performance.now() - began;
        }}""")
    )


# The review page.


def measure_review(runs: Path, browser: Browser, decisions: int, claims: Claims) -> None:
    """Decide, prompt by prompt of one photo after another, and prompt by prompt of another photo each."""
    for name, flags in (("in order", ()), ("sample, nearly every one of another photo", ("--sample", "400"))):
        for pace in (0, 500):
            with serving(runs, *flags, "--reviewer", f"{name[:2]}{pace}") as url:
                page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
                page.set_default_timeout(LIMIT)
                began = time.perf_counter()
                page.goto(url)
                page.wait_for_selector("#stage[data-number] img")
                opened = time.perf_counter() - began
                times = []
                for _ in range(decisions):
                    times.append(float(page.evaluate(DECIDE)))
                    page.wait_for_timeout(pace)
                page.wait_for_selector('#saved:text-is("saved")')
                page.close()
            median, worst = statistics.median(times), sorted(times)[int(0.95 * len(times))]
            text = (
                f"review {name}, {pace} ms to think: median {median:.0f} ms of {len(times)}, 95 % under {worst:.0f} ms"
            )
            told = f"{text}; opened after {opened:.1f} s"
            claims.check(median < MOST_MS, told) if pace else print(told, flush=True)


@contextmanager
def serving(runs: Path, *flags: str) -> Iterator[str]:
    """The review server as a process of its own; its address."""
    command = [sys.executable, "-m", "dataengine.cli", "review", str(runs), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout
        began = time.perf_counter()
        found = next(re.search(r"http://\S+/", line) for line in process.stdout if "http://" in line)
        print(f"review server ready after {time.perf_counter() - began:.1f} s", flush=True)
        assert found
        yield found[0]
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    sys.exit(main())
