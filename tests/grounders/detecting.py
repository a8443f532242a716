"""What the tests of the detectors share: photos, labels, and a detector asked one by one or all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine.grounders.detector import Detector
from dataengine.images import Photo
from dataengine.records import DescribedRegion, Detection
from dataengine.settings import load_settings
from tests.photos import photo as example

LABELS = ["a mug", "spoon", "???", "x" * 5000, 'Ωμέγα / "q"\n.', "half \ud800 pair", "the cup. on the table?"]


def photos() -> list[Photo]:
    """One lying, one standing."""
    lying, standing = example("coffee", 300), example("chelsea", 200).crop((40, 0, 120, 130))
    made = [np.array(image) for image in (lying, standing)]
    return [Photo(Path(f"{i}.png"), rgb, f"{i}" * 64) for i, rgb in enumerate(made)]


def build(kind: type[Detector], folder: Path, **flags: Any) -> Detector:
    kept = {"preset": "offline", "grounder": kind.name, "grounder_model": str(folder), "device": "cpu"}
    return kind(load_settings({**kept, **flags}))


def ask(detector: Detector, *asked: tuple[Photo, str]) -> list[list[Detection]]:
    """The answers to questions asked all at once."""

    async def main() -> list[list[Detection]]:
        questions = (detector.ground(photo, DescribedRegion(label=label, boxes=[])) for photo, label in asked)
        return [answer.value for answer in await asyncio.gather(*questions)]

    return asyncio.run(main())


def check_in_the_photo(photo: Photo, found: Sequence[Detection], threshold: float) -> None:
    """Boxes inside the photo, scores above the threshold, best first."""
    for detection in found:
        x0, y0, x1, y1 = detection.box
        assert 0 <= x0 < x1 <= photo.width
        assert 0 <= y0 < y1 <= photo.height
        assert detection.score is not None
        assert threshold < detection.score <= 1
    assert found == sorted(found, key=lambda detection: -(detection.score or 0))


def check_same(one: Sequence[Detection], other: Sequence[Detection], pixels: float = 0.01) -> None:
    """The same instances, up to the rounding of another order of sums."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.box == pytest.approx(b.box, abs=pixels)
        assert a.score == pytest.approx(b.score, abs=1e-4)


def nearest(one: Detection, others: Sequence[Detection]) -> float:
    """Pixels by which a side of the most similar box is off."""
    return min(max(abs(a - b) for a, b in zip(one.box, other.box, strict=True)) for other in others)


def check_batches(kind: type[Detector], folder: Path) -> None:
    """All photos and labels at once give what each alone gives, and the second time what the first time gave."""
    detector = build(kind, folder, device_batch=5)
    pairs = [(photo, label) for label in LABELS for photo in photos()]
    together = ask(detector, *pairs)
    alone = [ask(build(kind, folder, device_batch=1), (photo, label))[0] for photo, label in pairs[:6]]
    for (photo, _), found in zip(pairs, together, strict=True):
        check_in_the_photo(photo, found, detector.threshold)
    for one, other in zip(together, alone, strict=False):
        check_same(one, other)
    assert sum(map(len, together)) > len(pairs) / 2, "too little is found for the comparison to say much"
    assert len({str(found) for found in together}) > len(LABELS), "answers depend on photo and label"
    for one, other in zip(together, ask(detector, *pairs), strict=True):
        check_same(one, other)
