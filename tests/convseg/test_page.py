from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convseg.data import Sample
from convseg.evaluation import Prediction, results_of
from convseg.metrics import overlap
from convseg.page import Extremes, page
from convseg.panels import panel, stacked
from dataengine.masks import BoolArray
from tests.scenes import photograph

EVIL = "<script>alert(1)</script> \"quoted\" 'and' & more"


def box(share: float) -> BoolArray:
    mask = np.zeros((80, 120), bool)
    mask[:, : round(120 * share)] = True
    return mask


def predicted(share: float, prompt: str = "Segment it", truth: BoolArray | None = None) -> Prediction:
    truth = box(0.5) if truth is None else truth
    sample = Sample(f"id {share}", Path("a.png"), Path("m.png"), prompt, EVIL)
    rgb = np.ascontiguousarray(photograph("coffee", 120)[:80])
    return Prediction(sample, rgb, truth, box(share), overlap("a", box(share), truth))


def test_the_worst_and_the_best_are_kept_in_order() -> None:
    extremes = Extremes(3)
    shares = [0.5, 0.1, 0.3, 0.9, 0.45, 0.2, 0.6, 0.05]
    for share in shares:
        extremes.see(predicted(share))
    told = sorted(shares, key=lambda s: predicted(s).overlap.iou)
    assert [p.sample.id for p in extremes.worst] == [f"id {s}" for s in told[:3]]
    assert [p.sample.id for p in extremes.best] == [f"id {s}" for s in told[::-1][:3]]


def test_of_equal_ones_the_first_are_kept() -> None:
    extremes = Extremes(2)
    for i in range(5):
        extremes.see(predicted(0.5, f"prompt {i}"))
    assert [p.sample.prompt for p in extremes.best] == ["prompt 0", "prompt 1"]
    assert [p.sample.prompt for p in extremes.worst] == ["prompt 0", "prompt 1"]


def test_none_need_be_kept() -> None:
    extremes = Extremes(0)
    extremes.see(predicted(0.5))
    assert extremes.worst == extremes.best == []


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_in_itself_and_shows_text_as_text() -> None:
    extremes = Extremes(2)
    shown = [predicted(0.4, EVIL), predicted(0.9, "x" * 5000), predicted(0.2, truth=box(0))]
    for p in shown:
        extremes.see(p)
    results = results_of([p.sample for p in shown], [p.overlap for p in shown])
    written = page(f"Evaluation of {EVIL}", results, extremes, [("model", EVIL)])
    tags = Tags()
    tags.feed(written)
    assert not [tag for tag, _ in tags.tags if tag == "script"]
    assert tags.text.count(EVIL) >= 5 and "x" * 5000 in tags.text
    images = [str(attributes["src"]) for tag, attributes in tags.tags if tag == "img"]
    assert len(images) == 4
    for source in images:
        picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        assert picture.width > 700
    assert not re.search(r'(src|href)="(?!data:)', written) and "http" not in written.replace("http-equiv", "")
    assert "default-src 'none'" in written


# Panels.


@pytest.mark.parametrize("size", [(30, 30), (80, 120), (300, 900), (2000, 1500)])
def test_a_panel_shows_photo_truth_and_prediction(size: tuple[int, int]) -> None:
    rgb = np.full((*size, 3), 200, np.uint8)
    truth, guess = np.zeros(size, bool), np.zeros(size, bool)
    truth[:, : size[1] // 2] = True
    drawn = panel(rgb, truth, guess, "Segment the left half of it all", "predicted")
    third = (drawn.shape[1] - 12) // 3
    photo, true, predicted_ = (drawn[-20:, i * (third + 6) : i * (third + 6) + third] for i in range(3))
    assert 150 <= third <= 420
    assert (photo == 200).all()
    assert true[:, third - 5 :].max() < 100 < true[:, third // 4].max()
    assert predicted_.max() < 100  # nothing: all is dimmed
    alone = panel(rgb, None, guess, "p", "n")
    assert alone.shape[1] == 2 * third + 6


def test_panels_of_any_width_are_stacked() -> None:
    both = stacked([np.zeros((10, 20, 3), np.uint8), np.zeros((5, 40, 3), np.uint8)])
    assert both.shape == (10 + 5 + 12, 40, 3)
