"""The segmenter `sam2`: SAM 2 or 2.1 (Ravi et al. 2024) from Meta's checkpoints, a local folder or the hub."""

from __future__ import annotations

from dataengine.errors import MissingPartError
from dataengine.segmenters.promptable import PromptableSegmenter
from dataengine.segmenters.sam2_checkpoint import load_sam2
from dataengine.settings import Settings


class Sam2Segmenter(PromptableSegmenter):
    """Masks from `--checkpoint`: a `.pt` file of Meta's with its `--config`, a folder, or a hub id."""

    name = "sam2"
    normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of SAM2Transforms (sam2/utils/transforms.py)

    def __init__(self, settings: Settings) -> None:
        if settings.checkpoint is None:
            raise MissingPartError("segmenter 'sam2' needs a checkpoint", hint="Name one: --checkpoint FILE.pt")
        model, weights = load_sam2(settings.config, settings.checkpoint)
        super().__init__(settings, model, weights, settings.checkpoint)
