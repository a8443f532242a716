"""The page of an evaluation: the metrics, and the predictions that fit worst and best, in one file."""

from __future__ import annotations

import base64
import heapq
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2

from convseg.data import Sample
from convseg.evaluation import Prediction, Results, percent
from convseg.metrics import Metrics, Overlap

QUALITY = 82  # of the JPEG pictures

STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1320px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid var(--line); text-align: right; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
h1 { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.quiet { color: var(--quiet); }
.told td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure img { display: block; max-width: 100%; margin: 0 auto; }
figcaption { padding: .5rem .9rem; overflow-wrap: anywhere; }
"""


class Shown(NamedTuple):
    """A prediction on the page, with its panel as a JPEG file's bytes."""

    sample: Sample
    overlap: Overlap
    picture: bytes


@dataclass(order=True)
class _Kept:
    rank: float
    number: int
    shown: Shown = field(compare=False)


class Extremes:
    """The predictions that fit worst and best, of all that are shown to it.

    Args:
        count: of each.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._worst: list[_Kept] = []
        self._best: list[_Kept] = []
        self._seen = 0

    def see(self, prediction: Prediction) -> None:
        """Keep it if it is among them; only then is its picture made."""
        self._seen += 1
        iou = prediction.overlap.iou
        self._offer(self._worst, -iou, prediction)
        self._offer(self._best, iou, prediction)

    def _offer(self, kept: list[_Kept], rank: float, prediction: Prediction) -> None:
        if len(kept) == self._count and (not kept or rank <= kept[0].rank):
            return
        shown = Shown(prediction.sample, prediction.overlap, picture_of(prediction))
        entry = _Kept(rank, -self._seen, shown)  # of equals, the first seen
        if len(kept) < self._count:
            heapq.heappush(kept, entry)
        else:
            heapq.heapreplace(kept, entry)

    @property
    def worst(self) -> list[Shown]:
        """Worst first."""
        return [kept.shown for kept in sorted(self._worst, reverse=True)]

    @property
    def best(self) -> list[Shown]:
        """Best first."""
        return [kept.shown for kept in sorted(self._best, reverse=True)]


def picture_of(prediction: Prediction) -> bytes:
    """A prediction's panel as a JPEG file's bytes."""
    coded = cv2.imencode(".jpg", prediction.panel()[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return coded.tobytes()


def page(title: str, results: Results, extremes: Extremes, made_by: Sequence[tuple[str, str]]) -> str:
    """The page as HTML; it loads nothing.

    Args:
        made_by: what was evaluated and how, a name and a value each.
    """
    worst, best = extremes.worst, extremes.best
    told = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in made_by)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<h1>{_text(title)}</h1>
<div class="scroll">{table(results)}</div>
<p class="quiet">In percent; in brackets 95 % bootstrap intervals over photos. gIoU: mean IoU. cIoU: summed
intersections over summed unions. Left empty: share of the prompts that fit nothing for which nothing was predicted.</p>
<div class="scroll"><table class="told">{told}</table></div>
<h2>Worst {len(worst)}</h2><div class="grid">{"".join(map(_figure, worst))}</div>
<h2>Best {len(best)}</h2><div class="grid">{"".join(map(_figure, best))}</div>
</body></html>
"""


def table(results: Results) -> str:
    """The metrics of all and of each concept, as a table."""
    rows = "".join(_row(concept, found) for concept, found in results.concepts.items())
    head = "".join(f"<th>{name}</th>" for name in ("concept", "prompts", "gIoU", "cIoU", "left empty"))
    return f"<table><tr>{head}</tr>{rows}{_row('all', results.all)}</table>"


def _row(name: str, found: Metrics) -> str:
    cells = (name, f"{found.count:,}", percent(found.giou), percent(found.ciou), percent(found.left_empty))
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _figure(shown: Shown) -> str:
    sample, found, picture = shown
    data = base64.b64encode(picture).decode()
    told = f"IoU {found.iou:.3f} · {sample.concept} · {sample.id}"
    return (
        f'<figure><img alt="{_text(sample.prompt)}" src="data:image/jpeg;base64,{data}">'
        f'<figcaption>{_text(sample.prompt)}<br><span class="quiet">{_text(told)}</span></figcaption></figure>'
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)
