"""Pictures that show masks: what an annotator is shown and what is written to disk are these very pictures.

Every function takes the view, (h, w, 3) uint8 RGB, and masks of any size with its shape; it returns a new RGB array.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataengine.images import RgbArray
from dataengine.masks import Mask

Colour = tuple[int, int, int]

RED, GREEN = (230, 25, 25), (40, 220, 60)
PALETTE: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 200, 25), (145, 30, 180), (70, 220, 230),
    (240, 50, 230), (245, 130, 48), (170, 110, 40), (0, 128, 128), (170, 255, 195), (128, 128, 0),
)  # fmt: skip
HEX_PALETTE = tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE)  # as CSS has it
TEXT_SIZE = 18
EVERY_VALUE = np.arange(256, dtype=np.uint8)
DIMMED = (EVERY_VALUE * 0.35).astype(np.uint8)


@dataclass(frozen=True)
class _Shape:
    """A mask at a view's size, cut to its tight box: all drawing stays near it.

    Attributes:
        inside: (h, w) uint8, 1 inside; 0x0 for a mask with nothing inside.
        x, y: the box's corner in the view.
    """

    inside: RgbArray
    x: int
    y: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Where it is in the view: `view[shape.box]` has the shape of `inside`."""
        height, width = self.inside.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def region_overlay(view: RgbArray, mask: Mask) -> RgbArray:
    """One mask in red with a green box."""
    picture = view.copy()
    shape = _at(view, mask)
    _tint(picture, shape, RED, 0.45)
    _outline(picture, shape, RED)
    _box(picture, shape, GREEN)
    return picture


def numbered(view: RgbArray, masks: Sequence[Mask]) -> RgbArray:
    """Every mask in its colour with its position in `masks` written where it is widest."""
    picture = view.copy()
    shapes = [_at(view, mask) for mask in masks]
    for index, shape in enumerate(shapes):
        _tint(picture, shape, PALETTE[index % len(PALETTE)], 0.5)
        _outline(picture, shape, PALETTE[index % len(PALETTE)])
    for index, shape in enumerate(shapes):
        _number(picture, shape, str(index))
    return picture


def prompt_picture(view: RgbArray, masks: Sequence[Mask], text: str) -> RgbArray:
    """The masks in colour and boxed, the rest dimmed, the prompt written above."""
    return np.concatenate([caption(text, view.shape[1]), highlighted(view, masks)])


def highlighted(view: RgbArray, masks: Sequence[Mask]) -> RgbArray:
    """The masks in colour and boxed, the rest dimmed."""
    shapes = [_at(view, mask) for mask in masks]
    picture = np.asarray(cv2.LUT(view, DIMMED), dtype=np.uint8)
    for shape in shapes:
        _copy(view[shape.box], picture, shape)
    for index, shape in enumerate(shapes):
        colour = PALETTE[index % len(PALETTE)]
        _tint(picture, shape, colour, 0.35)
        _outline(picture, shape, colour)
        _box(picture, shape, colour)
    return picture


def _at(view: RgbArray, mask: Mask) -> _Shape:
    small = mask.resized(view.shape[0], view.shape[1])
    if small.xyxy is None:
        return _Shape(np.zeros((0, 0), np.uint8), 0, 0)
    x0, y0, x1, y1 = small.xyxy
    return _Shape(small.array()[y0 : y1 + 1, x0 : x1 + 1].view(np.uint8), x0, y0)


def _copy(part: RgbArray, picture: RgbArray, shape: _Shape) -> None:
    """Lay what is in a shape's box over the picture, inside the shape."""
    if shape.inside.size:
        cv2.copyTo(part, shape.inside, picture[shape.box])


def _tint(picture: RgbArray, shape: _Shape, colour: Colour, strength: float) -> None:
    if shape.inside.size:
        _copy(np.asarray(cv2.LUT(picture[shape.box], _blended(colour, strength)), np.uint8), picture, shape)


@functools.cache
def _blended(colour: Colour, strength: float) -> RgbArray:
    """What each value of each channel becomes under a colour, (1, 256, 3)."""
    values = np.repeat(EVERY_VALUE[None, :, None], 3, axis=2)
    return np.asarray(cv2.addWeighted(np.full_like(values, colour), strength, values, 1 - strength, 0), np.uint8)


def _outline(picture: RgbArray, shape: _Shape, colour: Colour) -> None:
    if shape.inside.size:
        corner = (shape.x, shape.y)
        contours, _ = cv2.findContours(shape.inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=corner)
        cv2.drawContours(picture, contours, -1, colour, 2)


def _box(picture: RgbArray, shape: _Shape, colour: Colour) -> None:
    if shape.inside.size:
        height, width = shape.inside.shape
        cv2.rectangle(picture, (shape.x, shape.y), (shape.x + width - 1, shape.y + height - 1), colour, 2)


def _number(picture: RgbArray, shape: _Shape, text: str) -> None:
    if not shape.inside.size:
        return
    depth = cv2.distanceTransform(np.pad(shape.inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    x, y = shape.x + int(column), shape.y + int(row)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.7, 2)
    # Kept inside the picture, also where the widest place is at its edge.
    left = min(max(x - width // 2, 3), max(picture.shape[1] - width - 3, 3))
    base = min(max(y + height // 2, height + 3), max(picture.shape[0] - 4, height + 3))
    cv2.rectangle(picture, (left - 3, base - height - 4), (left + width + 3, base + 4), (0, 0, 0), -1)
    cv2.putText(picture, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)


def caption(text: str, width: int) -> RgbArray:
    """The text in black on white, wrapped to `width`, (h, width, 3)."""
    lines = _wrapped(text, width - 12)
    step = TEXT_SIZE + 6
    strip = Image.new("L", (width, step * len(lines) + 8), 255)
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        draw.text((6, 4 + row * step), line, fill=0, font=_font())
    return np.asarray(cv2.cvtColor(np.asarray(strip), cv2.COLOR_GRAY2RGB), dtype=np.uint8)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_SIZE)


def _wrapped(text: str, width: int) -> list[str]:
    words = text.split()[:60]
    whole = " ".join(words)
    if _font().getlength(whole) <= width:
        return [whole]
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
