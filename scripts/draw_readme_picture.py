"""Draw docs/example.jpg for the README: real output of the offline engine on scikit-image's photos."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dataengine.cli import main as dataengine  # noqa: E402 - the checkout's own package

SHOWN = {  # photo: the concepts whose first accepted prompt stands under it
    "coffee": ("entities", "affordances"),
    "cat": ("relations", "spatial"),
    "motorcycle": ("entities", "affordances"),
}
COLUMN, GAP = 400, 8


def main() -> None:
    """A column for each photo: its regions, and under them two accepted prompts."""
    with tempfile.TemporaryDirectory() as folder:
        dataengine(["demo", "--output_dir", folder])
        runs = Path(folder) / "runs"
        columns = [_column(runs / f"out_region_refine_{photo}", concepts) for photo, concepts in SHOWN.items()]
    height = max(column.height for column in columns)
    sheet = Image.new("RGB", (len(columns) * (COLUMN + GAP) - GAP, height), "white")
    for position, column in enumerate(columns):
        sheet.paste(column, (position * (COLUMN + GAP), 0))
    target = ROOT / "docs" / "example.jpg"
    target.parent.mkdir(exist_ok=True)
    sheet.save(target, quality=88)


def _column(run: Path, concepts: tuple[str, ...]) -> Image.Image:
    accepted = [
        sorted((run / concept / "generated_prompts_viz" / "ACCEPTED").glob("*.png"))[:1] for concept in concepts
    ]
    pictures = [
        _fitted(path) for path in (run / "all_regions_colored.png", *(path for paths in accepted for path in paths))
    ]
    column = Image.new("RGB", (COLUMN, sum(p.height for p in pictures) + GAP * (len(pictures) - 1)), "white")
    top = 0
    for picture in pictures:
        column.paste(picture, (0, top))
        top += picture.height + GAP
    return column


def _fitted(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        size = (COLUMN, round(picture.height * COLUMN / picture.width))
        return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
