"""What training makes smaller: binary cross-entropy and Dice of a mask's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

DICE_WEIGHT = 0.25  # as published with the model (arXiv 2602.13195)
SMOOTH = 1.0  # pixels; as Meta's SAM 2 trains: an empty target and an empty prediction have no loss


@dataclass(frozen=True)
class MaskLoss:
    """Means over a batch, each a scalar; `total` is what is made smaller."""

    total: Tensor
    bce: Tensor
    dice: Tensor


def mask_loss(logits: Tensor, target: Tensor, inside: Tensor) -> MaskLoss:
    """Binary cross-entropy plus 0.25 Dice; what lies in the padding around a photo does not count.

    Args:
        logits: (B, h, w) float.
        target: (B, h, w) float in 0..1, the share of each cell that the mask covers.
        inside: (B, h, w) bool, the cells of the photo.
    """
    logits, weight = logits.float(), inside.float()
    every = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    area = weight.sum((1, 2)).clamp(min=1)
    bce = ((every * weight).sum((1, 2)) / area).mean()
    share = torch.sigmoid(logits) * weight
    both = (share * target).sum((1, 2))
    either = share.sum((1, 2)) + (target * weight).sum((1, 2))
    dice = (1 - (2 * both + SMOOTH) / (either + SMOOTH)).mean()
    return MaskLoss(bce + DICE_WEIGHT * dice, bce, dice)
