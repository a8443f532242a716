from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convseg.adapter import PromptEmbeddings
from convseg.checkpoints import Model
from convseg.losses import mask_loss
from convseg.network import ConvSeg, ImageMaps
from dataengine.segmenters.promptable_model import PromptableModel
from dataengine.segmenters.sam2 import Sam2Segmenter
from tests.convseg.conftest import fresh
from tests.scenes import photograph

PROMPTS = ["Segment everything red", "Identify the largest shape beside it", "Select every square"]


@pytest.fixture
def network(model: Model) -> ConvSeg:
    network = model.network
    network.train(False)
    with torch.no_grad():  # so that masks differ by their prompts
        for name, parameter in network.sam.mask_decoder.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(1.5)
    return network


def pixels_of(count: int) -> torch.Tensor:
    photos = [photograph(name, 128) for name in ("astronaut", "coffee", "chelsea")[:count]]
    square = [np.pad(p, ((0, 128 - p.shape[0]), (0, 128 - p.shape[1]), (0, 0))) for p in photos]
    return torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2).contiguous()


def prompted(model: Model, prompts: list[str]) -> PromptEmbeddings:
    picture = model.reader.picture(photograph("astronaut", 128))
    found: PromptEmbeddings = model.network.adapter(model.reader([picture] * len(prompts), prompts))
    return found


@torch.inference_mode()
def test_the_encoder_is_that_of_the_segmenter(network: ConvSeg) -> None:
    photo = photograph("astronaut", 128)
    theirs = PromptableModel(network.sam, "cpu", torch.float32, Sam2Segmenter.normalization).encode([photo])[0]
    ours = network.encode(torch.from_numpy(photo).permute(2, 0, 1)[None])
    for mine, other in zip((ours.fine, ours.middle, ours.coarse), theirs.maps, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
@torch.inference_mode()
def test_without_padding_the_decoder_is_sam_2s(several: bool, network: ConvSeg, model: Model) -> None:
    maps, prompts = network.encode(pixels_of(1)), prompted(model, PROMPTS[:1])
    network.sam.mask_decoder.dynamic_multimask_via_stability = False
    masks, rated, *_ = network.sam.mask_decoder(
        maps.coarse,
        network.sam.get_image_wide_positional_embeddings(),
        prompts.sparse[:, None],
        prompts.dense[..., None, None],
        several,
        [maps.fine, maps.middle],
    )
    expected = masks[0, 0][rated[0, 0].argsort(descending=True)]
    ours = network.decode(maps, prompts, several=several)[0]
    assert ours.shape == ((3 if several else 1), 32, 32)
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_each_prompt_is_decoded_as_if_alone(network: ConvSeg, model: Model) -> None:
    maps = network.encode(pixels_of(3))
    which = torch.tensor([2, 0, 1])
    together = network.decode(maps[which], prompted(model, PROMPTS))
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    for i, prompt in enumerate(PROMPTS):
        alone = network.decode(maps[which[i : i + 1]], prompted(model, [prompt]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_what_stands_in_filled_up_tokens_is_seen_by_nothing(network: ConvSeg, model: Model) -> None:
    maps, prompts = network.encode(pixels_of(1))[torch.zeros(2, dtype=torch.long)], prompted(model, PROMPTS[:2])
    assert not prompts.present.all()
    noise = torch.where(prompts.present[..., None], prompts.sparse, torch.full_like(prompts.sparse, 1e3))
    changed = PromptEmbeddings(noise, prompts.present, prompts.dense)
    torch.testing.assert_close(network.decode(maps, changed), network.decode(maps, prompts))


@torch.inference_mode()
def test_the_forward_pass_takes_pixels_or_features(network: ConvSeg, model: Model) -> None:
    pixels = pixels_of(2)
    picture = model.reader.picture(photograph("astronaut", 128))
    inputs = model.reader([picture] * 3, PROMPTS)
    which = torch.tensor([1, 0, 1])
    logits = network(pixels, which, inputs)
    assert logits.shape == (3, 32, 32) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, network(network.encode(pixels), which, inputs))


LEARNS = [
    *(f"adapter.{name}" for name in ("scale", "temp", "to_sparse", "to_dense", "txt_norm")),
    "adapter.backbone.*lora_[AB]",
    "sam.mask_decoder.(iou_token|mask_tokens|obj_score_token|transformer|upscale_conv1|upscale_conv2|upscale_layer_norm)",
    "sam.mask_decoder.output_hypernetworks_mlps.0",
]
ENCODER = ["sam.vision_encoder", "sam.no_memory_embedding", "sam.mask_decoder.conv_s[01]"]
NEVER = [
    "adapter.backbone.*(base_layer|embed_tokens|lm_head|norm|visual|proj)",
    "sam.(prompt_encoder|shared_image_embedding)",
    "sam.mask_decoder.(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps.[123])",
]


def one_of(patterns: list[str], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


@pytest.mark.parametrize("train_encoder", [False, True])
def test_the_gradient_reaches_what_should_learn_and_nothing_else(train_encoder: bool, sam2: Path, qwen: Path) -> None:
    model = fresh(sam2, qwen, train_encoder=train_encoder)
    network = model.network
    for name, parameter in network.named_parameters():
        if "lora_B" in name:  # zero at the start, which would keep the gradient from lora_A
            torch.nn.init.normal_(parameter, std=0.05)
    network.train()
    picture = model.reader.picture(photograph("astronaut", 128))
    logits = network(pixels_of(3), torch.arange(3), model.reader([picture] * 3, PROMPTS))
    target = torch.zeros(3, 32, 32)
    target[:, 8:20, 8:20] = 1
    torch.autograd.backward(mask_loss(logits, target, target >= 0).total)
    learns = LEARNS + (ENCODER if train_encoder else [])
    frozen = NEVER + ([] if train_encoder else ENCODER)
    with_gradient: list[str] = []
    without: list[str] = []
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        (with_gradient if parameter.requires_grad else without).append(name)
    assert [name for name in with_gradient if not one_of(learns, name)] == []
    assert [name for name in without if not one_of(frozen, name)] == []
    assert [name for name in without if one_of(learns, name)] == []
    flat = [n for n, p in network.named_parameters() if p.grad is not None and not (p.grad != 0).any()]
    # Keys' biases shift all scores of a query alike: softmax does not see them.
    assert [name for name in flat if not name.endswith("k_proj.bias")] == []


def test_a_frozen_encoder_stays_in_evaluation_mode(sam2: Path, qwen: Path) -> None:
    for train_encoder in (False, True):
        network = fresh(sam2, qwen, train_encoder=train_encoder).network
        network.train()
        assert network.sam.vision_encoder.training == train_encoder
        assert network.adapter.training and network.sam.mask_decoder.training
        assert not network.train(False).sam.vision_encoder.training
        maps = network.train().encode(pixels_of(1))
        assert maps.coarse.requires_grad == train_encoder


def test_features_are_chosen_and_joined() -> None:
    maps = ImageMaps(*(torch.arange(3.0).view(3, 1, 1, 1) + 10 * i for i in range(3)))
    both = maps.joined(maps[torch.tensor([2])])
    assert [m.flatten().tolist() for m in (both.fine, both.middle, both.coarse)] == [
        [0, 1, 2, 2],
        [10, 11, 12, 12],
        [20, 21, 22, 22],
    ]
