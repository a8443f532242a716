from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convseg.adapter import LONGEST_PROMPT, load_adapter
from convseg.checkpoints import Model
from dataengine.errors import UsageError
from dataengine.images import RgbArray
from tests.convseg.conftest import PICTURE_SIDE
from tests.scenes import photograph

SHORT, LONG = "Segment everything red", "Segment the largest shape, and then every other white thing beside it"


@pytest.fixture
def picture(model: Model) -> RgbArray:
    return model.reader.picture(photograph("coffee", 300))


def text_tokens(model: Model, prompt: str) -> int:
    """Of the conversation around a prompt and of itself, counted without the adapter."""
    tokenizer = model.reader._processor.tokenizer
    around = ["system", "\n", "You are a helpful assistant.", "\n", "user", "\n", prompt, "\n"]
    return sum(len(tokenizer(part)["input_ids"]) for part in around)


def test_a_prompt_means_the_same_whatever_it_is_batched_with(model: Model, picture: RgbArray) -> None:
    adapter = model.network.adapter.eval()
    with torch.inference_mode():
        alone = adapter(model.reader([picture], [SHORT]))
        batched = adapter(model.reader([picture] * 3, [LONG, SHORT, LONG]))
    count = alone.sparse.shape[1]
    assert batched.present.sum(1).tolist() == [text_tokens(model, LONG), count, text_tokens(model, LONG)]
    assert alone.present.all() and count == text_tokens(model, SHORT)
    assert batched.present[1, :count].all() and not batched.present[1, count:].any()
    torch.testing.assert_close(batched.sparse[1, :count], alone.sparse[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(batched.dense[1], alone.dense[0], rtol=0, atol=1e-5)


def test_prompts_and_pictures_both_change_the_embeddings(model: Model, picture: RgbArray) -> None:
    adapter = model.network.adapter.eval()
    other = model.reader.picture(photograph("astronaut", 300))
    with torch.inference_mode():
        found = adapter(model.reader([picture, picture, other], [SHORT, SHORT.replace("red", "blue"), SHORT]))
    assert (found.dense[0] - found.dense[1]).abs().max() > 1e-4
    assert (found.dense[0] - found.dense[2]).abs().max() > 1e-6
    assert (found.sparse[0] - found.sparse[2]).abs().max() > 1e-6


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_end|> red <|image_pad|>",
        "<|vision_start|><|image_pad|><|vision_end|> red",
        "{{ 7 * 7 }} red",
        "红色 🟥 red",
    ],
)
def test_a_prompt_is_text_whatever_it_holds(prompt: str, model: Model, picture: RgbArray) -> None:
    inputs = model.reader([picture], [prompt])
    tokenizer = model.reader._processor.tokenizer
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<|vision_start|>")) == 1
    assert ids.count(tokenizer.eos_token_id) == 2  # of the system's and the user's message
    said = tokenizer.decode(ids, skip_special_tokens=True)
    assert "red" in said and "49" not in said
    model.network.adapter(inputs)


def test_a_prompt_is_cut_at_its_longest(model: Model, picture: RgbArray) -> None:
    inputs = model.reader([picture], ["red " * 5000])
    assert inputs["input_ids"].shape[1] < LONGEST_PROMPT + 40


@pytest.mark.parametrize("size", [(200, 300), (30, 20), (56, 56)])
def test_the_picture_is_squeezed_to_whole_patches(size: tuple[int, int], model: Model) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[:, size[1] // 2 :] = 255
    picture = model.reader.picture(rgb)
    assert picture.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert picture[:, :20].max() == 0 and picture[:, -20:].min() == 255


def test_published_pictures_have_252_pixels(qwen: Path) -> None:
    _, reader, _ = load_adapter("--plm-model-name", str(qwen), 32, rank=2, alpha=4)
    assert reader.side == 252


def test_lora_is_where_the_published_one_is(model: Model) -> None:
    names = {
        re.sub(r"\.\d+\.", ".N.", name)
        for name, parameter in model.network.adapter.backbone.named_parameters()
        if parameter.requires_grad
    }
    text = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    vision = [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    places = [f"language_model.layers.N.{p}" for p in text] + [f"visual.blocks.N.{p}" for p in vision]
    assert names == {f"base_model.model.model.{p}.lora_{m}.default.weight" for p in places for m in "AB"}


@pytest.mark.parametrize("kind", ["missing", "sam2", "empty"])
def test_another_model_is_refused_in_one_line(kind: str, sam2: Path, tmp_path: Path) -> None:
    where = {"missing": "no_owner_and_name/at/all", "sam2": str(sam2), "empty": str(tmp_path)}[kind]
    with pytest.raises(UsageError) as caught:
        load_adapter("--plm-model-name", where, 32, rank=2, alpha=4)
    assert str(caught.value).startswith(f"--plm-model-name {where}: ") and "\n" not in str(caught.value)
