"""Write docs/review.jpg: the review page on a photo of scikit-image's, in Debian's chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dataengine.demo import write_photos  # noqa: E402 - the checkout's own packages

WIDTH, HEIGHT = 1280, 720
SHOWN = "#at=out_region_refine_coffee/spatial/p/1"


def main() -> None:
    """Run the offline engine on a photo and photograph its review page."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        write_photos(root / "photos")
        cli = [sys.executable, "-m", "dataengine.cli"]
        photo = root / "photos" / "coffee.png"
        run = ["run", "-i", str(photo), "-o", str(root / "runs"), "--preset", "offline"]
        subprocess.run([*cli, *run], check=True, cwd=ROOT)
        serve = [*cli, "review", str(root / "runs"), "--port", "0", "--reviewer", "you"]
        server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert server.stdout
            url = server.stdout.readline().split()[-1]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            page.goto(url + SHOWN)
            page.wait_for_selector("#stage[data-number] img")
            page.screenshot(path=ROOT / "docs" / "review.jpg", type="jpeg", quality=85)
            browser.close()
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
