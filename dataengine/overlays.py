"""Pictures that show masks: what an annotator is shown and what is written to disk are these very pictures.

Every function takes the view, (h, w, 3) uint8 RGB, and masks of any size with its shape; it returns a new RGB array.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataengine.images import RgbArray
from dataengine.masks import BoolArray, Mask

RED, GREEN = (230, 25, 25), (40, 220, 60)
PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 200, 25), (145, 30, 180), (70, 220, 230),
    (240, 50, 230), (245, 130, 48), (170, 110, 40), (0, 128, 128), (170, 255, 195), (128, 128, 0),
)  # fmt: skip
TEXT_SIZE = 18


def region_overlay(view: RgbArray, mask: Mask) -> RgbArray:
    """One mask in red with a green box."""
    inside = _at(view, mask)
    picture = _tinted(view, inside, RED, 0.45)
    _outline(picture, inside, RED)
    _box(picture, inside, GREEN)
    return picture


def numbered(view: RgbArray, masks: Sequence[Mask]) -> RgbArray:
    """Every mask in its colour with its position in `masks` written where it is widest."""
    picture = view.copy()
    shapes = [_at(view, mask) for mask in masks]
    for index, inside in enumerate(shapes):
        picture = _tinted(picture, inside, PALETTE[index % len(PALETTE)], 0.5)
        _outline(picture, inside, PALETTE[index % len(PALETTE)])
    for index, inside in enumerate(shapes):
        _number(picture, inside, str(index))
    return picture


def prompt_picture(view: RgbArray, masks: Sequence[Mask], text: str) -> RgbArray:
    """The masks in colour and boxed, the rest dimmed, the prompt written above."""
    shapes = [_at(view, mask) for mask in masks]
    anywhere = np.logical_or.reduce([np.zeros(view.shape[:2], bool), *shapes])
    picture = np.where(anywhere[:, :, None], view, (view * 0.35).astype(np.uint8))
    for index, inside in enumerate(shapes):
        colour = PALETTE[index % len(PALETTE)]
        picture = _tinted(picture, inside, colour, 0.35)
        _outline(picture, inside, colour)
        _box(picture, inside, colour)
    return np.concatenate([_caption(text, view.shape[1]), picture])


def _at(view: RgbArray, mask: Mask) -> BoolArray:
    return mask.resized(view.shape[0], view.shape[1]).array()


def _tinted(picture: RgbArray, inside: BoolArray, colour: tuple[int, int, int], strength: float) -> RgbArray:
    flat = np.full_like(picture, colour)
    blended = cv2.addWeighted(flat, strength, picture, 1 - strength, 0)
    return np.asarray(np.where(inside[:, :, None], blended, picture), dtype=np.uint8)


def _outline(picture: RgbArray, inside: BoolArray, colour: tuple[int, int, int]) -> None:
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 2)


def _box(picture: RgbArray, inside: BoolArray, colour: tuple[int, int, int]) -> None:
    x, y, w, h = cv2.boundingRect(inside.astype(np.uint8))
    if w and h:
        cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), colour, 2)


def _number(picture: RgbArray, inside: BoolArray, text: str) -> None:
    if not inside.any():
        return
    depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.7, 2)
    # Kept inside the picture, also where the widest place is at its edge.
    left = min(max(int(x) - width // 2, 3), max(picture.shape[1] - width - 3, 3))
    base = min(max(int(y) + height // 2, height + 3), max(picture.shape[0] - 4, height + 3))
    cv2.rectangle(picture, (left - 3, base - height - 4), (left + width + 3, base + 4), (0, 0, 0), -1)
    cv2.putText(picture, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)


def _caption(text: str, width: int) -> RgbArray:
    """The text in black on white, wrapped to `width`, (h, width, 3)."""
    font = ImageFont.load_default(TEXT_SIZE)
    lines = _wrapped(text, font, width - 12)
    step = TEXT_SIZE + 6
    strip = Image.new("RGB", (width, step * len(lines) + 8), "white")
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        draw.text((6, 4 + row * step), line, fill="black", font=font)
    return np.array(strip)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split()[:60]:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
