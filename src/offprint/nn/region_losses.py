"""Losses of a class for every pixel or voxel, with pixels that count for nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.errors import unknown

LOSSES = ("ce", "dice", "ce+dice", "focal", "lovasz", "ce+lovasz")


def _flat(logits: Tensor, target: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and classes (N,) of the pixels that count."""
    logits, target = logits.movedim(1, -1).flatten(0, -2), target.flatten()
    keep = target != ignore
    return logits[keep], target[keep]


def soft_dice(logits: Tensor, target: Tensor, ignore: int = 255) -> Tensor:
    r"""One minus the mean over the classes that occur of :math:`2 \sum p t / (\sum p + \sum t)`, p the softmax (Milletari et al. 2016).

    Args:
        logits: (B, K, ...).
        target: classes (B, ...).
        ignore: value of pixels that count for nothing.
    """
    logits, target = _flat(logits, target, ignore)
    if not len(target):
        return logits.sum() * 0
    p, t = logits.softmax(1), F.one_hot(target, logits.shape[1]).to(logits.dtype)
    there = t.sum(0) > 0
    score = 2 * (p * t).sum(0) / (p.sum(0) + t.sum(0)).clamp_min(1e-8)
    return 1 - score[there].mean()


def focal(
    logits: Tensor, target: Tensor, ignore: int = 255, weight: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    r"""Mean of :math:`-(1 - p)^\gamma \log p` (Lin et al. 2017) over the pixels that count."""
    logits, target = _flat(logits, target, ignore)
    if not len(target):
        return logits.sum() * 0
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p
    return loss.mean() if weight is None else (loss * weight[target]).sum() / weight[target].sum()


def lovasz_softmax(logits: Tensor, target: Tensor, ignore: int = 255) -> Tensor:
    """The Lovász extension of one minus the intersection over union, mean over the classes that occur (Berman et al. 2018)."""
    logits, target = _flat(logits, target, ignore)
    if not len(target):
        return logits.sum() * 0
    p, losses = logits.softmax(1), []
    for c in target.unique().tolist():
        there = (target == c).to(p.dtype)
        errors, order = (there - p[:, c]).abs().sort(descending=True)
        there = there[order]
        total = there.sum()
        jaccard = 1 - (total - there.cumsum(0)) / (total + (1 - there).cumsum(0))
        step = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append(torch.dot(errors, step))
    return torch.stack(losses).mean()


def region_loss(kind: str, logits: Tensor, target: Tensor, ignore: int = 255, weight: Tensor | None = None) -> Tensor:
    """The loss of this name: ``ce``, ``dice``, ``focal``, ``lovasz``, or the sum of two with a ``+`` between them.

    Args:
        kind: one of :data:`LOSSES`.
        logits: (B, K, ...).
        target: classes (B, ...).
        ignore: value of pixels that count for nothing; where all are such, the loss is 0.
        weight: of the classes (K,), for cross-entropy and the focal loss.
    """
    if kind not in LOSSES:
        raise unknown("loss", kind, LOSSES)
    total = logits.new_zeros(())
    for name in kind.split("+"):
        if name == "ce":
            counts = (target != ignore).any()
            total = total + (
                F.cross_entropy(logits, target, weight, ignore_index=ignore) if counts else logits.sum() * 0
            )
        elif name == "focal":
            total = total + focal(logits, target, ignore, weight)
        else:
            total = total + (soft_dice if name == "dice" else lovasz_softmax)(logits, target, ignore)
    return total
