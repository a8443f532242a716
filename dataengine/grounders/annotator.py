"""The grounder `annotator`: the boxes that came with the description, at no further cost."""

from __future__ import annotations

from collections.abc import Mapping

from dataengine.images import Photo
from dataengine.journal import Answer
from dataengine.records import DescribedRegion, Detection
from dataengine.settings import Settings


class AnnotatorGrounder:
    """Hands on the annotator's own boxes."""

    name = "annotator"
    version = "1"
    needs_boxes = True
    detects = False

    def __init__(self, settings: Settings) -> None:
        self.detail: Mapping[str, str] = {}

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
        """The boxes that came with the label."""
        return Answer([Detection(box=box) for box in region.boxes])
