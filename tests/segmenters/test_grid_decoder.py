"""The same sums as the decoders of transformers: in double precision nothing but rounding is left between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataengine.segmenters.grid_decoder import GridDecoder, PoolRules
from tests.standins import tiny_sam2, tiny_sam3


def sam2(folder: Path) -> Any:
    from transformers import Sam2Model

    return Sam2Model.from_pretrained(tiny_sam2.save_tiny_sam2(folder))


def sam3(folder: Path) -> Any:
    from transformers import Sam3TrackerModel

    return Sam3TrackerModel.from_pretrained(tiny_sam3.save_tiny_sam3_tracker(folder))


@pytest.fixture(params=[sam2, sam3])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    make: Callable[[Path], Any] = request.param
    return make(tmp_path).double().eval()


@pytest.fixture
def maps(model: Any) -> list[Any]:
    side = model.prompt_encoder.input_image_size
    pixels = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: list[Any] = model.get_image_embeddings(pixels)
    return found


def points(model: Any, count: int) -> Any:
    random = torch.rand((count, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return random * model.prompt_encoder.input_image_size


def published(model: Any, maps: list[Any], where: Any) -> tuple[Any, Any]:
    """Logits (B, 3, h, w) and scores (B, 3) as transformers computes them."""
    labels = torch.ones(1, len(where), 1, dtype=torch.int)
    out = model(image_embeddings=maps, input_points=where[None, :, None], input_labels=labels, multimask_output=True)
    return out.pred_masks[0], out.iou_scores[0]


@torch.no_grad()
def test_logits_are_those_of_the_published_decoder(model: Any, maps: list[Any]) -> None:
    where = points(model, 7)
    ours = GridDecoder(model, maps, torch.float64).logits(where)
    theirs, _ = published(model, maps, where)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert theirs.std(dim=0).mean() > 1e-3  # points matter


@torch.no_grad()
def test_candidates_are_measured_as_published(model: Any, maps: list[Any]) -> None:
    where = points(model, 40)
    logits, scores = (x.numpy() for x in published(model, maps, where))
    rules = PoolRules(score=float(np.median(scores)), stability=0.3)
    found = GridDecoder(model, maps, torch.float64).candidates(where, rules).numpy()
    stays = 0
    for row, one, score in zip(
        found.reshape(-1, 6), logits.reshape(-1, *logits.shape[2:]), scores.ravel(), strict=True
    ):
        area = int((one > 0).sum())
        stable = (one > 1).sum() >= 0.3 * (one > -1).sum()
        if score <= rules.score or not stable or area == 0:
            assert not row.any()
            continue
        stays += 1
        ys, xs = np.nonzero(one > 0)
        expected = [score, xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, area]
        np.testing.assert_allclose(row, expected, rtol=1e-9)
    assert 0 < stays < found[..., 0].size


@torch.no_grad()
def test_the_number_of_points_at_once_changes_nothing(model: Any, maps: list[Any]) -> None:
    where, decoder = points(model, 6), GridDecoder(model, maps, torch.float64)
    alone = torch.cat([decoder.logits(one[None]) for one in where])
    torch.testing.assert_close(decoder.logits(where), alone, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_bfloat16_is_as_near_as_the_published_decoder_under_autocast(model: Any, maps: list[Any]) -> None:
    model, maps = model.float(), [m.float() for m in maps]
    where = points(model, 24).float()
    exact, _ = published(model, maps, where)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = published(model, maps, where)
    ours = GridDecoder(model, maps, torch.bfloat16).logits(where)
    assert (ours - exact).abs().mean() < 1.5 * (rough - exact).abs().mean()
    assert ours.dtype == torch.float32
