"""The grounder `sam3`: Carion et al., "SAM 3: Segment Anything with Concepts", 2025, in transformers.

It cuts the mask of every instance of a label by itself, so that no segmenter is asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataengine.grounders.detector import Detector, Job, detections
from dataengine.images import RgbArray
from dataengine.records import Detection


class Sam3Grounder(Detector):
    """SAM 3 asked by text: a box, a score and a mask, as large as what the model saw, for each instance.

    The picture is encoded once; a label costs the decoder only. The text is cut at the model's 32 tokens.
    """

    name = "sam3"
    default_model = "facebook/sam3"
    kinds = ("sam3", "sam3_video")  # the published files hold the tracker for videos as well
    classes = ("Sam3Model", "Sam3Processor")
    least_score = 0.5  # the confidence threshold of the authors' image processor
    side = 1008

    def _encode(self, model: Any, processor: Any, pictures: Sequence[RgbArray]) -> list[Any]:
        pixels = processor.image_processor(list(pictures), return_tensors="pt", device=model.device).pixel_values
        levels = model.get_vision_features(pixels).fpn_hidden_states  # finest first, each (B, D, h, w)
        sizes = [picture.shape[:2] for picture in pictures]
        return list(zip(zip(*levels, strict=True), sizes, strict=True))

    def _find(self, model: Any, processor: Any, jobs: Sequence[Job], features: Sequence[Any]) -> list[list[Detection]]:
        text = processor.tokenizer(
            [label for _, label in jobs],
            padding="max_length",
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(model.device)
        output = model(vision_embeds=_vision(model, [levels for levels, _ in features]), **text)
        sizes = [size for _, size in features]
        found = processor.post_process_instance_segmentation(output, self.threshold, target_sizes=sizes)
        return [self._enlarged(job, *one) for job, *one in zip(jobs, found, sizes, strict=True)]

    def _enlarged(self, job: Job, found: dict[str, Any], size: tuple[int, int]) -> list[Detection]:
        photo = job[0]
        scale = found["boxes"].new_tensor([photo.width / size[1], photo.height / size[0]] * 2)
        return detections(photo, found["scores"], found["boxes"] * scale, found["masks"])


def _vision(model: Any, features: Sequence[Any]) -> Any:
    """What the decoder takes of the pictures: their features, and the places these stand at, which are always the same.

    Places are not kept with a picture's features: they are as large, and quickly made.
    """
    import torch
    from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

    levels = tuple(torch.stack(level) for level in zip(*features, strict=True))
    place = model.vision_encoder.neck.position_encoding
    return Sam3VisionEncoderOutput(
        fpn_hidden_states=levels,
        fpn_position_encoding=tuple(place(level.shape, level.device, level.dtype) for level in levels),
    )
