"""GroundingDINO, OWLv2 and SAM 3 at tiny size with random weights, saved with their processors for the real loaders.

Their answers mean nothing; sizes of pictures, token limits and special tokens are laid out as in the published models.
The same seed gives the same weights.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import BertTokenizer, CLIPTokenizer

OWL_SIDE = 96  # pixels of the square that the tiny OWLv2 sees
SAM_SIDE = 112  # and of the tiny SAM 3


def save_tiny_grounding_dino(folder: Path, seed: int = 0) -> Path:
    """A GroundingDINO on a Swin of four blocks: shortest side 64 px, 256 tokens, 20 queries."""
    hf = _transformers()
    config = hf.GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_indices": [2, 3, 4],
        },
        text_config={**_SMALL, "model_type": "bert", "vocab_size": 1100, "max_position_embeddings": 512},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=20,
    )
    pictures = hf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 107})
    processor = hf.GroundingDinoProcessor(pictures, bert_tokenizer())
    return _save(folder, lambda: hf.GroundingDinoForObjectDetection(config), processor, seed)


def save_tiny_owlv2(folder: Path, seed: int = 0) -> Path:
    """An OWLv2 of 6 by 6 patches and 16 tokens."""
    hf = _transformers()
    config = hf.Owlv2Config(
        text_config={**_SMALL, "vocab_size": 514, "max_position_embeddings": 16, **_CLIP_IDS},
        vision_config={**_SMALL, "image_size": OWL_SIDE, "patch_size": 16},
        projection_dim=32,
    )
    pictures = hf.Owlv2ImageProcessor(size={"height": OWL_SIDE, "width": OWL_SIDE})
    processor = hf.Owlv2Processor(pictures, clip_tokenizer(16))
    return _save(folder, lambda: hf.Owlv2ForObjectDetection(config), processor, seed)


def save_tiny_sam3(folder: Path, seed: int = 0) -> Path:
    """A SAM 3 of 8 by 8 patches, masks of 32 by 32, 32 tokens, 20 queries."""
    hf = _transformers()
    width = {"hidden_size": 32, "num_attention_heads": 4}
    layers = {**width, "intermediate_size": 32, "num_layers": 2}
    config = hf.Sam3Config(
        vision_config={
            "backbone_config": {
                **_SMALL,
                "model_type": "sam3_vit_model",
                "num_hidden_layers": 2,
                "image_size": SAM_SIDE,
                "patch_size": 14,
                "pretrain_image_size": SAM_SIDE // 2,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            **_SMALL,
            "model_type": "clip_text_model",
            "vocab_size": 514,
            "projection_dim": 16,
            "max_position_embeddings": 32,
            **_CLIP_IDS,
        },
        geometry_encoder_config={**layers, "num_layers": 1},
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 20},
        mask_decoder_config=width,
    )
    pictures = hf.Sam3ImageProcessor(
        size={"height": SAM_SIDE, "width": SAM_SIDE}, mask_size={"height": 32, "width": 32}
    )
    processor = hf.Sam3Processor(pictures, clip_tokenizer(32))
    return _save(folder, lambda: hf.Sam3Model(config), processor, seed)


_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_CLIP_IDS: dict[str, Any] = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 0}


def _transformers() -> Any:
    import transformers

    return transformers


def _save(folder: Path, make: Callable[[], Any], processor: Any, seed: int) -> Path:
    model = make()
    _spread(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# By a part of a weight's name: how far it spreads, where that is not 1.5 for a layer of unit input.
_SPREADS = {"box": 0.5, "dense0": 2.5, "presence_head.layer3": 0.0}
# By a part of a bias's name: its value. SAM 3 is sure that a thing is there; OWLv2 lets a few of its boxes through.
_BIASES = {"presence_head.layer3": 20.0, "logit_shift": -0.2, "logit_scale": 3.0}


def _spread(model: Any, seed: int) -> None:
    """Larger weights than a fresh model's, so that scores and boxes depend on picture and text, and some are high."""
    import torch

    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                spread = next((value for part, value in _SPREADS.items() if part in name), 1.5)
                values = random.normal(0, spread * parameter[0].numel() ** -0.5, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(values))
            for part, value in _BIASES.items():
                if part in name and parameter.ndim == 1:
                    parameter.fill_(value)


def bert_tokenizer() -> BertTokenizer:
    """Letter by letter, with BERT's own ids for its special tokens, the full stop and the question mark.

    GroundingDINO tells phrases apart by those ids.
    """
    from transformers import BertTokenizer

    fixed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    letters = string.ascii_lowercase + string.digits + "!\"#$%&'()*+,-/:;<=>@[\\]^_`{|}~"
    words = iter([*letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {fixed[i] if i in fixed else next(words, f"[unused{i}]"): i for i in range(1100)}
    return BertTokenizer(vocab=vocabulary, model_max_length=512)


def clip_tokenizer(limit: int) -> CLIPTokenizer:
    """Byte by byte; CLIP takes the text's features where the highest id stands, at its end.

    Args:
        limit: tokens of the longest text.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=letters[0], model_max_length=limit)


def cut_weight(folder: Path) -> str:
    """Take one weight out of a saved model; its name."""
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    weights: dict[str, np.ndarray[Any, Any]] = load_file(file)
    name = sorted(weights)[-1]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    return name
