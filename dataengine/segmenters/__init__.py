"""Segmenters cut masks: from boxes, and a pool of masks from the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dataengine.images import Photo
from dataengine.journal import Answer
from dataengine.masks import Mask
from dataengine.records import Xyxy


class Segmenter(Protocol):
    """A part that cuts masks. Build it with `Class(settings)`.

    Attributes:
        name, version, detail: as for an annotator.
    """

    name: str
    version: str
    detail: Mapping[str, str]

    async def propose(self, photo: Photo) -> Answer[list[Mask]]:
        """The pool: masks of all that stands out, of one size with the photo's shape, at any resolution."""
        ...

    async def segment(self, photo: Photo, boxes: Sequence[Xyxy]) -> Answer[list[Mask]]:
        """A mask for each box (xyxy in pixels of the photo), at any resolution; empty where nothing is found."""
        ...
