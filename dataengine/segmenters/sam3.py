"""The segmenter `sam3`: points and boxes on SAM 3's encoder, from a local folder or the hub."""

from __future__ import annotations

from dataengine.hub import identity_of, load_model, model_folder
from dataengine.segmenters.promptable import PromptableSegmenter
from dataengine.settings import Settings

PUBLISHED = "facebook/sam3"  # behind a licence: the hub asks for it to be accepted


class Sam3Segmenter(PromptableSegmenter):
    """Masks from `--checkpoint`, a folder or a hub id; `facebook/sam3` where none is named."""

    name = "sam3"
    normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of Sam3ImageProcessor

    def __init__(self, settings: Settings) -> None:
        import torch
        from transformers import Sam3TrackerModel

        source = settings.checkpoint or PUBLISHED
        folder = model_folder("--checkpoint", source)
        kinds = ("sam3_tracker", "sam3_video")  # alone, and within all of SAM 3 as it is published
        model = load_model("--checkpoint", source, folder, Sam3TrackerModel, kinds, dtype=torch.float32)
        super().__init__(settings, model, identity_of(folder), source)
