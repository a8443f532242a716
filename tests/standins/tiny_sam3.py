"""The part of SAM 3 that takes points and boxes, at tiny size with random weights, saved for the real loaders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.standins.tiny_sam2 import random_state

if TYPE_CHECKING:
    from transformers import Sam3TrackerConfig

PATCH = 14
CELLS = 8  # of a side of the coarsest of the maps that the decoder sees
SIDE = PATCH * CELLS  # pixels of the square image that the model sees

_VISION: dict[str, Any] = {
    "model_type": "sam3_vision_model",
    "backbone_config": {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "pretrain_image_size": SIDE // 2,
        "window_size": 4,
        "global_attn_indexes": [1],
    },
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[CELLS * times, CELLS * times] for times in (4, 2, 1)],
}
_PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": PATCH}
_DECODER = {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32}


def tiny_config() -> Sam3TrackerConfig:
    """As published: four scales in the neck, of which the decoder sees three."""
    from transformers import Sam3TrackerConfig

    return Sam3TrackerConfig(vision_config=_VISION, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER)


def save_tiny_sam3_tracker(folder: Path, seed: int = 0) -> Path:
    """Write config.json and model.safetensors of a `Sam3TrackerModel`; the same seed, the same bytes."""
    from transformers import Sam3TrackerModel

    model = Sam3TrackerModel(tiny_config())
    model.load_state_dict(_random(model, seed))
    model.save_pretrained(folder)
    return folder


def save_tiny_sam3_video(folder: Path, seed: int = 0) -> Path:
    """The same within a `Sam3VideoModel`, in whose layout `facebook/sam3` is published."""
    from safetensors.torch import save_file
    from transformers import Sam3VideoConfig, Sam3VideoModel

    layers = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32, "num_layers": 1}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    detector = {
        "model_type": "sam3",
        "vision_config": _VISION,
        "text_config": {
            **text, "model_type": "clip_text_model", "vocab_size": 64, "projection_dim": 16,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": {**layers, "num_queries": 4},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4},
    }  # fmt: skip
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": _VISION,
        "prompt_encoder_config": _PROMPTS,
        "mask_decoder_config": _DECODER,
        "image_size": SIDE,
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_encoder_hidden_size": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 32,
        "memory_fuser_num_layers": 1,
        "mask_downsampler_embed_dim": 32,
    }
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=CELLS * 4)
    model = Sam3VideoModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    # by the model's own names, as published: save_pretrained of transformers 5.23 says `tracker_model.` twice
    save_file(_random(model, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _random(model: Any, seed: int) -> dict[str, Any]:
    return random_state({name: tuple(value.shape) for name, value in model.state_dict().items()}, seed)
