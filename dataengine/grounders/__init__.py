"""Grounders find the boxes of a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from dataengine.images import Photo
from dataengine.journal import Answer
from dataengine.records import DescribedRegion, Xyxy


class Grounder(Protocol):
    """A part that finds boxes. Build it with `Class(settings)`.

    Attributes:
        name, version, detail: as for an annotator.
        needs_boxes: it uses the boxes that come with the description, so the annotator is asked for them.
    """

    name: str
    version: str
    detail: Mapping[str, str]
    needs_boxes: bool

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Xyxy]]:
        """The region's boxes, xyxy in pixels of the photo; none where it is not found."""
        ...
