"""A SAM 2 of 128 px with random weights, saved as `save_pretrained` saves it: a `--checkpoint` folder for tests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Sam2Config

SIDE = 128  # pixels of the square image that the model sees
STRIDE = 16  # pixels for each cell of the coarsest of the three feature maps


def tiny_config() -> Sam2Config:
    """A model of all the parts of the real one: four stages, windows, pooling, one block of global attention.

    Global attention must not open a stage: such a block pools by windows that it does not have. What Meta's code fixes
    for every size (two decoder layers of width 2048, eight heads, an IoU head of width 256) is left as it is there.
    """
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    width, embed = 32, 8
    channels = [embed, 2 * embed, 4 * embed, 8 * embed]
    backbone = Sam2HieraDetConfig(
        hidden_size=embed,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=channels,
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=[[SIDE // stride, SIDE // stride] for stride in (4, 8, STRIDE)],
        fpn_hidden_size=width,
    )
    return Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=width, image_size=SIDE, patch_size=STRIDE),
        mask_decoder_config=Sam2MaskDecoderConfig(hidden_size=width),
    )


def save_tiny_sam2(folder: Path, seed: int = 0) -> Path:
    """Write config.json and model.safetensors into `folder`, made where it is missing; the same seed, the same bytes.

    Returns:
        The folder.
    """
    from transformers import Sam2Model

    model = Sam2Model(tiny_config())
    state = random_state({name: tuple(value.shape) for name, value in model.state_dict().items()}, seed)
    # one matrix encodes all positions in the real weights; the model holds it twice
    shared = "shared_image_embedding.positional_embedding"
    state["prompt_encoder.shared_embedding.positional_embedding"] = state[shared]
    model.load_state_dict(state)
    model.save_pretrained(folder)
    return folder


# Learnt vectors that are used as they are, in transformers' names and in Meta's.
_TABLES = re.compile(r"(_embed|_embed_window|_mem_embed|_embedding|_matrix|(_embed|_tokens?|_embeddings\.\d)\.weight)$")


def random_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """A tensor for each name, by which signals neither fade nor explode, so that masks are neither empty nor full.

    The decoder's queries and keys are larger, or every token would look at the whole image alike and all prompts cut
    the same masks. NumPy draws the numbers, in the order of the sorted names: they are the same for every torch.
    """
    import torch

    random = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        noise = random.standard_normal(tuple(shapes[name]), dtype=np.float32)
        if name.endswith("bias"):
            noise *= 0.1
        elif noise.ndim == 1:
            noise = 1 + 0.1 * noise  # a layer norm's
        elif not _TABLES.search(name):
            gain = 3 if "q_proj" in name or "k_proj" in name else 1
            noise *= gain * (2 / noise[0].size) ** 0.5
        state[name] = torch.from_numpy(noise)
    return state
