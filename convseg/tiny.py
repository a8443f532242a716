"""Tiny models with random weights, in the real models' formats: to try and to test the whole loop without weights.

They are loaded by the code that loads the real ones. `write_tiny_sam2` and `write_tiny_qwen` write folders for
`--checkpoint` and `--plm-model-name`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dataengine.hub import quiet

SIDE = 128  # pixels of the square image that the tiny SAM 2 sees
SPECIAL = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PLACES = 0.3  # deviation of the random frequencies that tell places apart: by them left and right are far apart
WORDS = 20.0  # times the usual size of random word vectors
END, PAD = "<|im_end|>", "<|endoftext|>"
SYSTEM = "You are a helpful assistant."

# What Qwen2.5-VL's template makes of one message with a picture and a text.
CHAT_TEMPLATE = (
    f"<|im_start|>system\n{SYSTEM}{END}\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}" + END + "\n{% endfor %}"
)


def write_tiny_sam2(folder: Path, *, channels: int = 16, width: int = 128, seed: int = 0) -> Path:
    """Write a SAM 2 of 128 px with random weights, as `save_pretrained` does.

    Args:
        channels: of the image encoder's first stage; they double with each of its four.
        width: of the mask decoder.

    Returns:
        The folder.
    """
    import torch
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    stages = [channels * 2**i for i in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=channels,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=stages,
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],  # not the first of a stage, which pools by windows
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=stages[::-1],
        backbone_feature_sizes=[[SIDE // stride, SIDE // stride] for stride in (4, 8, 16)],
        fpn_hidden_size=width,
    )
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=width, image_size=SIDE, patch_size=16),
        mask_decoder_config=Sam2MaskDecoderConfig(hidden_size=width, mlp_dim=4 * width, iou_head_hidden_dim=width),
    )
    torch.manual_seed(seed)
    model: Any = Sam2Model(config)
    for module in model.mask_decoder.modules():  # transformers' own are so small that training hardly begins
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.xavier_uniform_(module.weight)
    # One matrix encodes all positions in the real weights; the model holds it twice.
    places = model.shared_image_embedding.positional_embedding.data.mul_(PLACES)
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(places)
    with quiet():
        model.save_pretrained(folder)
    return folder


def write_tiny_qwen(folder: Path, texts: Iterable[str] = (), *, width: int = 64, seed: int = 0) -> Path:
    """Write a Qwen2.5-VL with random weights, its processor and a tokenizer, as `save_pretrained` does.

    Args:
        texts: the tokenizer learns their words; others it spells by bytes.
        width: of the language model; the vision tower has half of it.

    Returns:
        The folder.
    """
    import torch
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer([SYSTEM, "system user\n", *texts])
    config = _qwen_config(tokenizer, width)
    torch.manual_seed(seed)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    # Trained models tell words apart; in one of random weights, words of usual size drown in what is beside them.
    model.model.language_model.embed_tokens.weight.data.mul_(WORDS)
    with quiet():
        model.save_pretrained(folder)
    processor_class: Any = Qwen2_5_VLProcessor
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


def _qwen_config(tokenizer: Any, width: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    token = tokenizer.convert_tokens_to_ids
    heads = 4
    third = width // heads // 2
    text: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        # what each head's dimensions turn by: time, height, width
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [third - 2 * (third // 3), third // 3, third // 3],
        },
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": token(PAD),
        "eos_token_id": token(END),
        "pad_token_id": token(PAD),
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": width // 2,
        "intermediate_size": width,
        "num_heads": 2,
        "out_hidden_size": width,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _tokenizer(texts: Iterable[str]) -> Any:
    """Qwen's kind of tokenizer (byte-level BPE) with the words of `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(sorted(set(texts)), trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in learnt["merges"]]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=merges,
        additional_special_tokens=list(SPECIAL),
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
    )
