"""The language adapter: Qwen2.5-VL reads a picture and a prompt, and SAM 2's mask decoder gets prompt embeddings.

As Sahoo & Gkioxari (arXiv 2602.13195): the last hidden states of the text's tokens become sparse embeddings, that of
the end of the sequence a bias for every cell of the image. Names of parameters are those of their checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dataengine.hub import identity_of, load_from_hub, load_model, model_folder
from dataengine.images import RgbArray

QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"
PICTURE_SIDE = 256  # pixels: the picture the language model reads, shrunk to whole patches (252 px)
LONGEST_PROMPT = 256  # tokens

# What LoRA adapts: attention and MLP projections, wherever they have these names; in Qwen2.5-VL also the MLPs of the
# vision tower.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_DROPOUT = 0.05
LEAST_DENSE_SCALE = 0.01


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the mask decoder is prompted with.

    Attributes:
        sparse: (B, N, C) float; prompts with fewer tokens than N are filled up.
        present: (B, N) bool, false where it is filled up.
        dense: (B, C) float, added to each cell of the image.
    """

    sparse: Tensor
    present: Tensor
    dense: Tensor


class PromptReader:
    """Makes the language model's inputs, without the model: in a DataLoader's workers.

    Args:
        processor: Qwen2.5-VL's.
        side: pixels of the square picture, before it is shrunk to whole patches.
    """

    def __init__(self, processor: Any, side: int = PICTURE_SIDE) -> None:
        self._processor = processor
        processor.tokenizer.padding_side = "right"
        images = processor.image_processor
        step = images.patch_size * images.merge_size
        self.side = max(step, round(side / step) * step)

    def picture(self, rgb: RgbArray) -> RgbArray:
        """(H, W, 3) -> (side, side, 3), squeezed to a square as published."""
        how = cv2.INTER_AREA if max(rgb.shape[:2]) > self.side else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(rgb, (self.side, self.side), interpolation=how), np.uint8)

    def __call__(self, pictures: Sequence[RgbArray], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs for pairs of a picture (of `picture`) and a prompt, padded at the right."""
        talk = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self._plain(prompt)}]}]
            for prompt in prompts
        ]
        texts = self._processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=False)
        inputs = self._processor(
            text=texts,
            images=list(pictures),
            padding=True,
            return_tensors="pt",
            do_resize=False,
        )
        return dict(inputs)

    def _plain(self, prompt: str) -> str:
        """The prompt without what the tokenizer takes for a special token, at most `LONGEST_PROMPT` tokens."""
        tokenizer = self._processor.tokenizer
        ids = tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=LONGEST_PROMPT)["input_ids"]
        return str(tokenizer.decode(ids, skip_special_tokens=True))


class LanguageAdapter(nn.Module):
    """Pictures and prompts -> prompt embeddings of SAM 2's mask decoder.

    Args:
        backbone: Qwen2.5-VL with LoRA (a `PeftModel`), frozen but for that.
        width: C, of the mask decoder.
        special: ids of the tokenizer's special tokens, which are no text.
        end: id of the token that ends a message.
    """

    def __init__(self, backbone: Any, width: int, special: Sequence[int], end: int) -> None:
        super().__init__()
        hidden = int(backbone.config.get_text_config().hidden_size)
        self.backbone = backbone
        self.to_sparse = nn.Linear(hidden, width)
        self.to_dense = nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, width))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.temp = nn.Parameter(torch.tensor(1.0))
        self.txt_norm = nn.LayerNorm(hidden)
        for layer in (self.to_sparse, *self.to_dense):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self._end = end
        self._special: Tensor
        self.register_buffer("_special", torch.tensor(sorted(special)), persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> PromptEmbeddings:
        """Prompt embeddings for B prompts; of each, only its own tokens count, whatever it is batched with.

        Args:
            inputs: what `PromptReader` made, on the model's device.
        """
        ids, attended = inputs["input_ids"], inputs["attention_mask"].bool()  # (B, T)
        # The language model alone, without its head: logits of 150,000 words for each token are not needed.
        states = self.backbone.get_base_model().model(**inputs, use_cache=False).last_hidden_state
        states = self.txt_norm(states.to(self.txt_norm.weight.dtype))  # (B, T, D)
        places = torch.arange(ids.shape[1], device=ids.device)
        ends = torch.where((ids == self._end) & attended, places, -1).amax(1)  # (B,)
        ends = torch.where(ends < 0, attended.sum(1) - 1, ends)
        text = attended & ~torch.isin(ids, self._special) & (places != ends[:, None])
        count = max(1, int(text.sum(1).max()))
        order = (~text).to(torch.int8).argsort(dim=1, stable=True)[:, :count]  # the text's places first
        present = text.gather(1, order)
        tokens = states.gather(1, order[..., None].expand(-1, -1, states.shape[2])) * present[..., None]
        sparse = self.to_sparse(tokens) * self.scale
        rows = torch.arange(len(ids), device=ids.device)
        dense = self.to_dense(states[rows, ends]) * self.temp.clamp(min=LEAST_DENSE_SCALE)
        return PromptEmbeddings(sparse, present, dense)


def load_adapter(
    flag: str,
    name: str,
    width: int,
    *,
    rank: int,
    alpha: int,
    side: int = PICTURE_SIDE,
    dtype: torch.dtype = torch.float32,
) -> tuple[LanguageAdapter, PromptReader, str]:
    """An untrained adapter on the language model `name`, on the CPU, and what reads prompts for it.

    Args:
        flag: the flag that names the model, for messages.
        name: hub id or local folder of a Qwen2.5-VL.
        width: C, of the mask decoder.
        rank, alpha: of LoRA.
        side: pixels of the picture it reads.
        dtype: of the frozen weights; what is trained is float32.

    Returns:
        Adapter, reader, and what identifies the language model's weights.

    Raises:
        UsageError: there is no such model, or it is no Qwen2.5-VL.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    folder = model_folder(flag, name)
    backbone = load_model(flag, name, folder, Qwen2_5_VLForConditionalGeneration, ("qwen2_5_vl",), dtype=dtype)
    processors: Any = AutoProcessor
    processor = load_from_hub(flag, lambda: processors.from_pretrained(folder), name)
    backbone.requires_grad_(False)
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=LORA_DROPOUT,
        bias="none",
        target_modules=list(LORA_TARGETS),
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    tokenizer = processor.tokenizer
    special = {*tokenizer.all_special_ids, *(i for word, i in tokenizer.get_added_vocab().items() if _is_mark(word))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft's use
        adapted = get_peft_model(backbone, lora)
    adapter = LanguageAdapter(adapted, width, sorted(special), int(tokenizer.eos_token_id))
    return adapter, PromptReader(processor, side), identity_of(Path(folder))


def _is_mark(word: str) -> bool:
    """Whether an added word of the vocabulary stands for a picture, not for text."""
    return any(part in word.lower() for part in ("image", "vision", "<img", "picture", "video"))
