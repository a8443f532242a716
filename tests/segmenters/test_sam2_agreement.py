"""Our SAM 2 against an independent one: the `sam2` package, a fork of Meta's repository. For development only.

Skipped where it is not installed: `SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2`. What it says is also kept
in `meta_sam2.json.gz` for the tests of every day; `python -m tests.segmenters.test_sam2_agreement` writes that anew.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dataengine.masks import BoolArray
from dataengine.segmenters.sam2_checkpoint import model_from_state, read_state, sam2_config
from dataengine.settings import SAM2_CONFIGS
from tests.photos import photo
from tests.segmenters.test_sam2_checkpoint import (
    BOXES,
    LABELS,
    POINTS,
    RECORDED,
    Answer,
    Shapes,
    answer,
    drawn,
    pixels_of,
    recorded,
)
from tests.standins.tiny_sam2 import SIDE, random_state, tiny_config

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("sam2") is None,
        reason="the sam2 package is not installed: SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2",
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),  # in its SAM2Transforms
]

# tiny_config() in the words of Meta's configs.
TINY = (
    f"model.image_size={SIDE}",
    "model.image_encoder.trunk.embed_dim=8",
    "model.image_encoder.trunk.stages=[1,1,2,1]",
    "model.image_encoder.trunk.global_att_blocks=[3]",
    "model.image_encoder.trunk.window_pos_embed_bkg_spatial_size=[4,4]",
    "+model.image_encoder.trunk.window_spec=[8,4,4,2]",
    "model.image_encoder.neck.d_model=32",
    "model.image_encoder.neck.position_encoding.num_pos_feats=32",
    "model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
    "model.memory_attention.num_layers=1",
)


def meta_model(config: str, overrides: tuple[str, ...] = ()) -> Any:
    folder = config.partition("_")[0]
    build = importlib.import_module("sam2.build_sam").build_sam2
    return build(f"configs/{folder}/{config}", device="cpu", hydra_overrides_extra=list(overrides))


def shapes_of(model: Any) -> Shapes:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def tiny_meta(seed: int = 0) -> Any:
    """Meta's model at tiny size with random weights."""
    model = meta_model("sam2.1_hiera_t.yaml", TINY)
    model.load_state_dict(random_state(shapes_of(model), seed))
    return model


def predictor_of(model: Any) -> Any:
    """Meta's predictor, with the sizes of feature maps that it fixes for an image of 1024 px set for another."""
    predictor = importlib.import_module("sam2.sam2_image_predictor").SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return predictor


def predicted(predictor: Any, **prompts: Any) -> tuple[BoolArray, Answer]:
    """What Meta's predictor says: masks at the photo's size (prompts, masks, H, W), and what they were made from."""
    objects: list[Tensor] = []
    decoder = predictor.model.sam_mask_decoder
    hook = decoder.register_forward_hook(lambda module, inputs, output: objects.append(output[3]))
    masks, ious, logits = predictor.predict(**prompts)
    hook.remove()
    if masks.ndim == 3:  # of one prompt
        masks, ious, logits = masks[None], ious[None], logits[None]
    return masks > 0, Answer(logits, ious, objects[0].detach().numpy())


def record() -> dict[str, Any]:
    """What the package says: names and shapes of all configs, and its answers on a drawn image."""
    predictor = predictor_of(tiny_meta())
    predictor.set_image(drawn())
    _, boxes = predicted(predictor, box=np.array(BOXES), multimask_output=False)
    points = {"point_coords": np.array(POINTS), "point_labels": np.array(LABELS)}
    return {
        "configs": {config: shapes_of(meta_model(config)) for config in SAM2_CONFIGS},
        "tiny": shapes_of(predictor.model),
        "boxes": [value.astype(float).round(3).tolist() for value in boxes],
        "points": [value.astype(float).round(3).tolist() for value in predicted(predictor, **points)[1]],
    }


def mean_iou(ours: Answer, masks: BoolArray, theirs: Answer) -> float:
    """Mean IoU at the photo's size, after logits and predicted IoUs were found equal but for rounding.

    Masks that are empty or full agree by themselves: they are left out, and must be few.
    """
    np.testing.assert_allclose(ours.logits.clip(-32, 32), theirs.logits, rtol=0, atol=0.001)
    np.testing.assert_allclose(ours.ious, theirs.ious, rtol=0, atol=0.0001)
    np.testing.assert_allclose(ours.objects, theirs.objects, rtol=0, atol=0.001)
    size = masks.shape[-2:]
    full = torch.nn.functional.interpolate(torch.from_numpy(ours.logits), size, mode="bilinear").numpy() > 0
    pairs = zip(full.reshape(-1, *size), masks.reshape(-1, *size), strict=True)
    telling = [(one, other) for one, other in pairs if 0.02 < other.mean() < 0.98]
    assert len(telling) >= 0.75 * masks.shape[0] * masks.shape[1]
    return float(np.mean([(one & other).sum() / (one | other).sum() for one, other in telling]))


@pytest.fixture(scope="module", params=[1, 7, 11])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Meta's predictor with random weights, and our model loaded from the file that Meta would have saved."""
    theirs = tiny_meta(request.param)
    path = tmp_path_factory.mktemp("meta") / "tiny.pt"
    torch.save({"model": theirs.state_dict()}, path)
    return predictor_of(theirs), model_from_state(tiny_config(), read_state(path), "tiny")


def seen(predictor: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A photo shown to Meta's predictor: its pixels for our model, its (width, height), and ours divided by that."""
    rgb = np.array(photo(name, 160))
    predictor.set_image(rgb)
    size = torch.tensor([rgb.shape[1], rgb.shape[0]])
    return predictor._transforms(rgb)[None], size, SIDE / size


@pytest.mark.parametrize("name", ["coffee", "astronaut", "chelsea"])
def test_masks_of_boxes_agree(name: str, pair: tuple[Any, Any]) -> None:
    predictor, model = pair
    pixels, size, scale = seen(predictor, name)
    corners = torch.tensor([[[0.1, 0.1], [0.6, 0.7]], [[0.3, 0.2], [0.5, 0.5]], [[0.5, 0.4], [1, 1]], [[0, 0], [1, 1]]])
    boxes = corners * size
    masks, theirs = predicted(predictor, box=boxes.flatten(1).numpy(), multimask_output=False)
    ours = answer(model, pixels, input_boxes=(boxes * scale).flatten(1)[None])
    assert masks.shape[:2] == (4, 1)
    assert mean_iou(ours, masks, theirs) >= 0.99


@pytest.mark.parametrize("name", ["coffee", "astronaut"])
def test_three_masks_of_points_agree(name: str, pair: tuple[Any, Any]) -> None:
    predictor, model = pair
    pixels, size, scale = seen(predictor, name)
    points = (torch.cartesian_prod(torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.25, 0.75])) * size)[:, None]
    masks, theirs = predicted(predictor, point_coords=points.numpy(), point_labels=np.ones((6, 1), np.int32))
    ours = answer(model, pixels, multimask=True, input_points=(points * scale)[None])
    assert masks.shape[:2] == (6, 3)
    assert mean_iou(ours, masks, theirs) >= 0.99


def test_masks_given_back_as_a_prompt_agree(pair: tuple[Any, Any]) -> None:
    predictor, model = pair
    pixels, _, scale = seen(predictor, "coffee")
    points, labels = torch.tensor([[50.0, 40.0], [100.0, 60.0]]), torch.tensor([1, 0])
    prompt = {"point_coords": points.numpy(), "point_labels": labels.numpy(), "multimask_output": False}
    _, before = predicted(predictor, **prompt)
    masks, theirs = predicted(predictor, **prompt, mask_input=before.logits[0])
    assert np.abs(theirs.logits - before.logits).max() > 0.1
    ours = answer(
        model,
        pixels,
        input_points=(points * scale)[None, None],
        input_labels=labels[None, None],
        input_masks=torch.from_numpy(before.logits[0])[None],
    )
    assert mean_iou(ours, masks, theirs) >= 0.99


@pytest.mark.parametrize("config", SAM2_CONFIGS)
def test_blocks_are_as_in_metas_config(config: str) -> None:
    """What names and shapes do not show: windows, global attention, heads, pooling, and the settings of the heads."""
    from transformers import Sam2Model

    theirs = meta_model(config)
    with torch.device("meta"):
        ours: Any = Sam2Model(sam2_config(config))
    blocks = zip(ours.vision_encoder.backbone.blocks, theirs.image_encoder.trunk.blocks, strict=True)
    for i, (one, other) in enumerate(blocks):
        mine = (one.dim, one.dim_out, one.attn.num_attention_heads, one.window_size, one.query_stride)
        pooling = list(other.q_stride) if other.q_stride else None
        assert mine == (other.dim, other.dim_out, other.attn.num_heads, other.window_size, pooling), i
    neck, decoder = theirs.image_encoder.neck, theirs.sam_mask_decoder
    assert (neck.fpn_top_down_levels, neck.fpn_interp_model, neck.fuse_type) == ([2, 3], "nearest", "sum")
    assert theirs.directly_add_no_mem_embed
    assert decoder.iou_prediction_head.sigmoid_output
    assert decoder.pred_obj_scores
    for name in ("via_stability", "stability_delta", "stability_thresh"):
        assert getattr(ours.mask_decoder, f"dynamic_multimask_{name}") == getattr(decoder, f"dynamic_multimask_{name}")
    assert ours.prompt_encoder.image_embedding_size == theirs.sam_prompt_encoder.image_embedding_size
    assert ours.prompt_encoder.input_image_size == theirs.image_size


def test_what_is_kept_for_the_tests_of_every_day_is_what_the_package_says() -> None:
    kept, said = recorded(), record()
    assert kept["configs"] == said["configs"]
    assert kept["tiny"] == said["tiny"]
    for name in ("boxes", "points"):
        for one, other in zip(kept[name], said[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=0.01)


def test_photos_are_normalized_as_the_package_does() -> None:
    np.testing.assert_allclose(pixels_of(drawn()), predictor_of(tiny_meta())._transforms(drawn())[None], atol=1e-5)


if __name__ == "__main__":
    RECORDED.write_bytes(gzip.compress(json.dumps(record(), separators=(",", ":")).encode(), mtime=0))
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes")
