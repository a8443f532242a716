"""Masks as SVG paths: a browser draws them over a photo at any size, in any colour, and switches them at once."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dataengine.bits import Bits

SMOOTHED = 0.6  # pixels by which a path may leave the outline: not seen, and a third of the points


def path(inside: npt.NDArray[np.uint8]) -> str:
    """The outline of a mask as the `d` of an SVG path for `fill-rule="evenodd"`, in pixels of the array.

    The path goes through the middles of the outermost pixels; a stroke of 1 px covers what of these is left.

    Args:
        inside: (h, w), 0 outside.
    """
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join(_piece(cv2.approxPolyDP(contour, SMOOTHED, True)) for contour in contours)


def _piece(contour: npt.NDArray[Any]) -> str:
    """One closed line: its first point, then steps; half a pixel on, since a pixel's middle is there."""
    points = contour.reshape(-1, 2)
    steps = np.diff(points, axis=0).ravel().tolist()
    moves = " ".join(map(str, steps)).replace(" -", "-")
    return f"M{points[0][0] + 0.5:g} {points[0][1] + 0.5:g}l{moves}z" if steps else _dot(points[0])


def _dot(point: npt.NDArray[Any]) -> str:
    return f"M{point[0]} {point[1]}h1v1h-1z"


def shrunk_mask(mask: Bits, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A mask at the size of a smaller picture, (height, width) of 0 and 1; what is inside never vanishes."""
    if (height, width) == mask.size:
        return mask.array().view(np.uint8)
    shares = cv2.resize(mask.array().astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    small = shares >= 0.5
    return np.asarray(small if small.any() else shares > 0, np.uint8)


def widest(inside: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Where a mask is widest, (x, y): the place for its number."""
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(column), int(row)
