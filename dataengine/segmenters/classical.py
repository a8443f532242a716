"""The segmenter `classical`: OpenCV's grabCut from a box and a colour-graph pool; no weights.

Its regions follow colour, not objects: enough to try the engine, not to make training data.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from dataengine.images import Photo, RgbArray, shrunk
from dataengine.journal import Answer
from dataengine.masks import BoolArray, Mask
from dataengine.measures import SIDE, even_regions, to_lab
from dataengine.records import Xyxy
from dataengine.settings import Settings

CROP_SIDE = 256  # grabCut takes 0.1-0.5 s at this size and tens of seconds at full size
MARGIN = 0.25  # of the box's size, on each side: what grabCut takes for background
ROUNDS = 3
ISLAND = 0.05  # share of a mask: a smaller piece is noise
POOL_LEVELS = (0.0, 8.0, 13.0)  # from fine to coarse


class ClassicalSegmenter:
    """Masks from colour alone. Deterministic: grabCut's random seed is set for each box."""

    name = "classical"
    version = "1"

    def __init__(self, settings: Settings) -> None:
        skimage_version = importlib.metadata.version("scikit-image")
        self.detail: Mapping[str, str] = {"opencv": cv2.__version__, "scikit-image": skimage_version}
        self._min_pixels = settings.min_pool_pixels

    async def propose(self, photo: Photo) -> Answer[list[Mask]]:
        """Even regions at three levels of merging, of at least `min_pool_pixels` at the photo's size, each once."""
        return Answer(await asyncio.to_thread(self._pool, photo))

    async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
        """grabCut in a reduced crop around each box; a mask of the photo's size."""
        return Answer([await asyncio.to_thread(cut_box, photo.rgb, box) for box in boxes])

    def _pool(self, photo: Photo) -> list[Mask]:
        small = shrunk(photo.rgb, SIDE)
        smallest = self._min_pixels * small.shape[0] * small.shape[1] / (photo.height * photo.width)
        found: dict[str, Mask] = {}
        for labels in even_regions(small, POOL_LEVELS):
            for label, count in enumerate(np.bincount(labels.ravel())):
                if count >= smallest:
                    mask = Mask.from_array(labels == label)
                    found.setdefault(mask.counts, mask)
        return list(found.values())


def cut_box(rgb: RgbArray, box: Xyxy) -> Mask:
    """grabCut (Rother, Kolmogorov & Blake 2004) of what a box holds.

    Args:
        rgb: (H, W, 3) uint8.
        box: xyxy in its pixels; cut to the picture.

    Returns:
        A mask (H, W); empty where the box is empty or holds one flat colour with its surroundings.
    """
    height, width = rgb.shape[:2]
    x0, y0, x1, y1 = _clipped(box, width, height)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return Mask.empty(height, width)
    dx, dy = round((x1 - x0) * MARGIN) + 1, round((y1 - y0) * MARGIN) + 1
    left, top, right, bottom = max(0, x0 - dx), max(0, y0 - dy), min(width, x1 + dx), min(height, y1 + dy)
    crop = np.ascontiguousarray(shrunk(rgb[top:bottom, left:right], CROP_SIDE))
    sx, sy = crop.shape[1] / (right - left), crop.shape[0] / (bottom - top)
    inner = (round((x0 - left) * sx), round((y0 - top) * sy), round((x1 - left) * sx), round((y1 - top) * sy))
    inside = _grab(crop, inner)
    full = np.zeros((height, width), bool)
    size = (right - left, bottom - top)
    full[top:bottom, left:right] = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
    return Mask.from_array(full)


def _clipped(box: Xyxy, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1))


def _grab(crop: RgbArray, inner: tuple[int, int, int, int]) -> BoolArray:
    x0, y0, x1, y1 = inner
    marks: RgbArray = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
    marks[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if (marks == cv2.GC_BGD).mean() < 0.1:
        marks = _marks_by_colour(crop)
    if len(np.unique(marks)) < 2 or crop.std() < 1:
        return np.zeros(crop.shape[:2], bool)
    cv2.setRNGSeed(0)
    bgr = np.asarray(crop[:, :, ::-1]).copy()
    try:
        cv2.grabCut(bgr, marks, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # fewer colours than grabCut's five clusters
        return np.zeros(crop.shape[:2], bool)
    inside = np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    return _without_islands(np.asarray(cv2.morphologyEx(inside, cv2.MORPH_OPEN, kernel), dtype=np.uint8))


def _without_islands(inside: RgbArray) -> BoolArray:
    """Drop the pieces that hold less than ISLAND of what is inside."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside)
    kept = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= ISLAND * inside.sum()]
    return np.isin(labels, kept)


def _marks_by_colour(crop: RgbArray) -> RgbArray:
    """For a box that fills the picture there is no outside: start from the pixels near its middle colour."""
    lab = to_lab(crop)
    near = np.linalg.norm(lab - np.median(lab.reshape(-1, 3), axis=0), axis=2) < 20
    return np.where(near, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
