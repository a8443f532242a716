"""Grounders find the boxes of a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from dataengine.images import Photo
from dataengine.journal import Answer
from dataengine.records import DescribedRegion, Detection


class Grounder(Protocol):
    """A part that finds boxes. Build it with `Class(settings)`.

    Attributes:
        name, version, detail: as for an annotator.
        needs_boxes: it uses the boxes that come with the description, so the annotator is asked for them.
        detects: it looks for any text by itself, so that finding nothing says that a thing is absent.
    """

    name: str
    version: str
    detail: Mapping[str, str]
    needs_boxes: bool
    detects: bool

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
        """The instances of the region's label: boxes xyxy in pixels of the photo; none where it is not found.

        Where it `detects`, an instance it gives is one it is sure of.
        """
        ...
