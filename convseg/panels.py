"""Pictures of predictions: the photo, the true mask and the predicted one beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataengine.images import RgbArray, shrunk
from dataengine.masks import BoolArray, Mask
from dataengine.overlays import caption, highlighted

SIDE = 420  # pixels of the long side of each of the three
LEGIBLE = 260  # pixels
GAP = 6


def panel(rgb: RgbArray, truth: BoolArray | None, predicted: BoolArray, prompt: str, note: str = "") -> RgbArray:
    """The photo under its prompt, the true mask, the prediction; (h, w, 3) uint8.

    Args:
        rgb: (H, W, 3).
        truth: (H, W); None where it is not known, then it is left out.
        predicted: (H, W).
        prompt: written above the photo.
        note: written above the prediction.
    """
    view = _view(rgb)
    columns = [(prompt, view)]
    if truth is not None:
        told = "true" if truth.any() else "true: nothing"
        columns.append((told, highlighted(view, [Mask.from_array(truth)])))
    columns.append((note, highlighted(view, [Mask.from_array(predicted)])))
    heads = [caption(text, view.shape[1]) for text, _ in columns]
    height = max(len(head) for head in heads)
    joined: list[RgbArray] = []
    for head, (_, picture) in zip(heads, columns, strict=True):
        above = np.pad(head, ((height - len(head), 0), (0, 0), (0, 0)), constant_values=255)
        joined += [np.concatenate([above, picture]), np.full((height + len(picture), GAP, 3), 255, np.uint8)]
    return np.concatenate(joined[:-1], axis=1)


def _view(rgb: RgbArray) -> RgbArray:
    """At most `SIDE` pixels, and what is tiny a whole number of times as large."""
    times = LEGIBLE // max(rgb.shape[:2])
    return rgb.repeat(times, 0).repeat(times, 1) if times > 1 else shrunk(rgb, SIDE)


def stacked(panels: Sequence[RgbArray]) -> RgbArray:
    """Panels of any sizes under each other, (h, w, 3) uint8."""
    width = max(p.shape[1] for p in panels)
    rows = [np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(rows)
