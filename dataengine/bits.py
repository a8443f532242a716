"""`Bits`: a binary mask, eight pixels a byte: united, compared and encoded faster than as RLE or as an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dataengine.masks import BoolArray

# Runs of equal bytes are all that a mask has: zlib's own strategy for them, and no filter, which would only break them
# up. OpenCV before 4.11 cannot choose the filter, and there its default, a fixed filter, is the fastest.
_FASTEST = (
    [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
    ]
    if hasattr(cv2, "IMWRITE_PNG_FILTER")
    else []
)
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)  # in each byte


@dataclass(frozen=True)
class Bits:
    """A binary mask; equal masks are equal and have one hash.

    Attributes:
        height, width: pixels.
        packed: `numpy.packbits` of the rows, one after another.
    """

    height: int
    width: int
    packed: bytes

    @classmethod
    def from_array(cls, array: npt.NDArray[Any]) -> Bits:
        """From an array (H, W) of bool or numbers; every value other than 0 is inside."""
        if array.ndim != 2 or not array.size:
            raise ValueError(f"mask must have shape (H, W) of at least 1x1, but got {array.shape}")
        return cls(array.shape[0], array.shape[1], np.packbits(array != 0).tobytes())

    @classmethod
    def empty(cls, height: int, width: int) -> Bits:
        """A mask with nothing inside."""
        return cls(height, width, bytes((height * width + 7) // 8))

    @classmethod
    def union(cls, masks: Sequence[Bits]) -> Bits:
        """What is inside any of the masks, which must be one or more and of one size."""
        if len({mask.size for mask in masks}) != 1:
            raise ValueError("union needs masks of one size")
        packed = np.bitwise_or.reduce([np.frombuffer(mask.packed, np.uint8) for mask in masks])
        return cls(masks[0].height, masks[0].width, packed.tobytes())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def any(self) -> bool:
        """Whether a pixel is inside."""
        return bool(np.frombuffer(self.packed, np.uint8).any())

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(_ONES[np.frombuffer(self.packed, np.uint8)].sum(dtype=np.int64))

    def array(self) -> BoolArray:
        """The mask as (H, W) bool."""
        return self._levels().astype(bool)

    def resized(self, height: int, width: int) -> Bits:
        """The mask at another size, nearest neighbour."""
        if (height, width) == self.size:
            return self
        return Bits.from_array(cv2.resize(self._levels(), (width, height), interpolation=cv2.INTER_NEAREST))

    def png(self) -> bytes:
        """A PNG of one 8-bit channel, 0 or 255."""
        _, data = cv2.imencode(".png", self._levels() * np.uint8(255), _FASTEST)
        return data.tobytes()

    def _levels(self) -> npt.NDArray[np.uint8]:
        """(H, W) of 0 and 1."""
        flat = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=self.height * self.width)
        return flat.reshape(self.height, self.width)
