"""The grounder `owlv2`: Minderer et al., "Scaling Open-Vocabulary Object Detection", 2023, in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataengine.grounders.detector import Detector, Job, detections
from dataengine.images import RgbArray
from dataengine.records import Detection

OVERLAP = 0.5  # IoU above which the lower of two boxes is the same thing: torchvision's box_nms_thresh


class Owlv2Grounder(Detector):
    """OWLv2: every patch proposes a box, so that a thing has many; what overlaps a better one is dropped.

    The picture's features and boxes are computed once; a label costs its own text only. The text is cut at the
    model's 16 tokens.
    """

    name = "owlv2"
    default_model = "google/owlv2-large-patch14-ensemble"
    kinds = ("owlv2",)
    classes = ("Owlv2ForObjectDetection", "Owlv2Processor")
    # The library's 0.1 is for measures that rank boxes; the model's self-training uses pictures from a score of 0.3.
    least_score = 0.2
    side = 1008

    def _encode(self, model: Any, processor: Any, pictures: Sequence[RgbArray]) -> list[Any]:
        import torch

        pixels = processor.image_processor(list(pictures), return_tensors="pt", device=model.device).pixel_values
        grid, _ = model.image_embedder(pixels)  # (B, rows, columns, D)
        patches = grid.flatten(1, 2)  # (B, P, D)
        with torch.autocast(model.device.type, enabled=False):  # in bfloat16 a side of 1000 px is known to 4 px
            boxes = model.box_predictor(patches.float(), grid.float())  # (B, P, 4) centre and size, 0..1 of the square
        return list(zip(patches, boxes, strict=True))

    def _find(self, model: Any, processor: Any, jobs: Sequence[Job], features: Sequence[Any]) -> list[list[Detection]]:
        import torch
        from transformers.models.owlv2.modeling_owlv2 import Owlv2ObjectDetectionOutput

        limit = model.config.text_config.max_position_embeddings
        text = processor.tokenizer(
            [label for _, label in jobs], padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        ).to(model.device)
        queries = model.owlv2.get_text_features(**text).pooler_output  # (B, D)
        patches, boxes = (torch.stack(of_all) for of_all in zip(*features, strict=True))
        with torch.autocast(model.device.type, enabled=False):
            logits, _ = model.class_predictor(patches.float(), queries[:, None].float())  # (B, P, 1)
        # The picture was padded to a square at its right and bottom: the library scales boxes by the longer side.
        found = processor.image_processor.post_process_object_detection(
            Owlv2ObjectDetectionOutput(logits=logits, pred_boxes=boxes),
            threshold=self.threshold,
            target_sizes=[(photo.height, photo.width) for photo, _ in jobs],
        )
        return [self._apart(job, one) for job, one in zip(jobs, found, strict=True)]

    def _apart(self, job: Job, found: dict[str, Any]) -> list[Detection]:
        from torchvision.ops import nms

        best = nms(found["boxes"], found["scores"], OVERLAP)
        return detections(job[0], found["scores"][best], found["boxes"][best])
