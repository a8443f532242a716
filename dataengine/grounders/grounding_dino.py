"""The grounder `grounding-dino`: Liu et al., "Grounding DINO", 2023, in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataengine.grounders.detector import Detector, Job, detections
from dataengine.images import RgbArray
from dataengine.records import Detection


class GroundingDinoGrounder(Detector):
    """Grounding DINO, or MM Grounding DINO: one label a query.

    The published text threshold (0.25) picks the words that a box is named by where a query has several phrases; with
    one label there is nothing to pick, and the box threshold alone decides.
    """

    name = "grounding-dino"
    default_model = "IDEA-Research/grounding-dino-base"
    kinds = ("grounding-dino", "mm-grounding-dino")
    classes = ("AutoModelForZeroShotObjectDetection", "GroundingDinoProcessor")
    least_score = 0.35  # the box threshold of the authors' demo
    side = 1333  # the longest side the processor leaves

    def _encode(self, model: Any, processor: Any, pictures: Sequence[RgbArray]) -> list[Any]:
        make = processor.image_processor
        return [make(picture, return_tensors="pt", device=model.device).pixel_values[0] for picture in pictures]

    def _find(self, model: Any, processor: Any, jobs: Sequence[Job], features: Sequence[Any]) -> list[list[Detection]]:
        """Pictures of one size go together: padding one to another's size would change what is found in it."""
        found: dict[int, list[Detection]] = {}
        for shape in dict.fromkeys(pixels.shape for pixels in features):
            alike = [i for i, pixels in enumerate(features) if pixels.shape == shape]
            answers = self._find_alike(model, processor, [jobs[i] for i in alike], [features[i] for i in alike])
            found.update(zip(alike, answers, strict=True))
        return [found[i] for i in range(len(jobs))]

    def _find_alike(
        self, model: Any, processor: Any, jobs: Sequence[Job], features: Sequence[Any]
    ) -> list[list[Detection]]:
        import torch

        text = processor.tokenizer(
            [query(label) for _, label in jobs],
            padding=True,
            truncation=True,
            max_length=model.config.max_text_len,
            return_tensors="pt",
        ).to(model.device)
        output = model(pixel_values=torch.stack(list(features)), **text)
        found = processor.post_process_grounded_object_detection(
            output, text.input_ids, self.threshold, target_sizes=[(photo.height, photo.width) for photo, _ in jobs]
        )
        return [detections(job[0], one["scores"], one["boxes"]) for job, one in zip(jobs, found, strict=True)]


def query(label: str) -> str:
    """A label as the model was trained on: in lower case, ended by a full stop.

    Full stops and question marks separate phrases, so those inside the label are taken out.
    """
    return " ".join(label.lower().replace(".", " ").replace("?", " ").split()) + "."
