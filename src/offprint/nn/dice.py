"""Overlap of predicted and true regions: the soft Dice loss, and the Dice score."""

from __future__ import annotations

import torch
from torch import Tensor

from offprint.nn.precision import wide_dtype


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    squared: bool = False,
    smooth_numerator: float = 1e-5,
    smooth_denominator: float = 1e-5,
) -> Tensor:
    r"""Soft Dice loss of overlapping regions, :math:`1 - (2 \sum p t + a) / (\sum p + \sum t + b)` with p = sigmoid(logits).

    Args:
        logits: (B, C, ...), one channel per region.
        target: the same shape, 0 or 1.
        squared: sum the squares of p and t in the denominator (Milletari et al. 2016).
        smooth_numerator, smooth_denominator: a and b; with a = 0 a region that is neither there nor predicted costs 1.

    Returns:
        The mean over batch and channels.
    """
    p, axes = torch.sigmoid(logits), tuple(range(2, logits.ndim))
    target = target.to(p.dtype)
    size = (p.square() + target.square() if squared else p + target).sum(axes)
    return (1 - (2 * (p * target).sum(axes) + smooth_numerator) / (size + smooth_denominator)).mean()


def dice_scores(predicted: Tensor, target: Tensor) -> Tensor:
    """Dice (B, C) of regions (B, C, ...) of zeros and ones; NaN where the target is empty and nothing can be scored."""
    axes, kind = tuple(range(2, predicted.ndim)), wide_dtype(torch.promote_types(predicted.dtype, target.dtype))
    predicted, target = predicted.bool(), target.bool()
    both, size = (predicted & target).sum(axes), predicted.sum(axes) + target.sum(axes)
    return (2 * both.to(kind) / size.clamp(min=1)).masked_fill(target.sum(axes) == 0, torch.nan)


def mean_dice(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel (C,): the mean of :func:`dice_scores` over the samples whose target is not empty, and how many those are."""
    scores = dice_scores(predicted, target)
    return scores.nanmean(0), (~scores.isnan()).sum(0)
