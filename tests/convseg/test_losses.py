from __future__ import annotations

import math

import pytest
import torch

from convseg.losses import mask_loss


def test_the_loss_equals_a_sum_by_hand() -> None:
    logits = [2.0, -1.0, 0.5, -3.0]
    target = [1.0, 0.25, 0.0, 0.0]
    shares = [1 / (1 + math.exp(-x)) for x in logits]
    bce = -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(shares, target, strict=True)) / 4
    both = sum(p * t for p, t in zip(shares, target, strict=True))
    dice = 1 - (2 * both + 1) / (sum(shares) + sum(target) + 1)
    loss = mask_loss(torch.tensor(logits).view(1, 2, 2), torch.tensor(target).view(1, 2, 2), torch.ones(1, 2, 2) > 0)
    assert loss.bce.item() == pytest.approx(bce, rel=1e-5)
    assert loss.dice.item() == pytest.approx(dice, rel=1e-5)
    assert loss.total.item() == pytest.approx(bce + 0.25 * dice, rel=1e-5)


def test_padding_around_a_photo_does_not_count() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 6), (torch.rand(2, 4, 6) > 0.5).float()
    inside = torch.ones(2, 4, 6, dtype=torch.bool)
    inside[:, :, 4:] = False
    whole = mask_loss(logits[:, :, :4], target[:, :, :4], inside[:, :, :4])
    padded = mask_loss(logits, target, inside)
    assert padded.total.item() == pytest.approx(whole.total.item(), rel=1e-6)


def test_a_batch_is_the_mean_of_its_samples() -> None:
    torch.manual_seed(1)
    logits, target = torch.randn(3, 5, 5), torch.rand(3, 5, 5)
    inside = torch.ones(3, 5, 5, dtype=torch.bool)
    inside[0, :2] = False  # of another size than the others
    each = [mask_loss(logits[i : i + 1], target[i : i + 1], inside[i : i + 1]).total.item() for i in range(3)]
    assert mask_loss(logits, target, inside).total.item() == pytest.approx(sum(each) / 3, rel=1e-6)


def test_nothing_predicted_where_nothing_is_costs_nothing() -> None:
    empty = torch.zeros(1, 8, 8)
    loss = mask_loss(torch.full((1, 8, 8), -30.0), empty, empty == 0)
    assert loss.total.item() == pytest.approx(0, abs=1e-6)
