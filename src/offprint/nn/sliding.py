"""A network that reads pieces of one size, over a volume of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.errors import OffprintError


def _starts(side: int, roi: int, step: int) -> list[int]:
    """Where the windows of an axis begin; the last one ends with the axis."""
    return [min(step * i, side - roi) for i in range(math.ceil((side - roi) / step) + 1)]


def _importance(roi: Sequence[int], sigma: float | None, like: Tensor) -> Tensor:
    """Weight of each voxel of a window: one, or a Gaussian about its centre, nowhere below a thousandth."""
    weight = like.new_ones(tuple(roi))
    if sigma is not None:
        for axis, side in enumerate(roi):
            at = torch.arange(side, device=like.device, dtype=like.dtype) - (side - 1) / 2
            bell = torch.exp(-0.5 * (at / (sigma * side)) ** 2)
            weight = weight * bell.view([-1 if i == axis else 1 for i in range(len(roi))])
        weight = weight.clamp(min=max(float(weight.min()), 1e-3))
    return weight


def sliding_window(
    predict: Callable[[Tensor], Tensor],
    volume: Tensor,
    roi: Sequence[int],
    overlap: float = 0.5,
    *,
    sigma: float | None = None,
) -> Tensor:
    """Predict windows of a volume and average them where they overlap.

    Args:
        predict: (B, C, *roi) to (B, K, *roi).
        volume: (B, C, *sides), two or three sides. An axis shorter than its window is padded with zeros at both ends.
        roi: sides of a window.
        overlap: share of a window that the next one covers again, 0 to below 1.
        sigma: weigh each window by a Gaussian of this deviation, as a share of its side (0.125 is usual); default equal weights.

    Returns:
        (B, K, *sides).
    """
    sides, roi = tuple(volume.shape[2:]), tuple(roi)
    if len(roi) != len(sides) or min(roi) < 1:
        raise OffprintError(f"a window of {roi} does not fit a volume of {sides}; give one length for each side")
    if not 0 <= overlap < 1:
        raise OffprintError(f"overlap={overlap}; windows overlap by a share from 0 to below 1")
    short = [max(r - s, 0) for r, s in zip(roi, sides, strict=True)]
    if any(short):
        volume = F.pad(volume, [n for s in reversed(short) for n in (s // 2, s - s // 2)])
    padded = tuple(volume.shape[2:])
    steps = [r if r == s else max(int(r * (1 - overlap)), 1) for r, s in zip(roi, padded, strict=True)]
    total: Tensor | None = None
    for start in itertools.product(*map(_starts, padded, roi, steps)):
        place = (..., *(slice(a, a + r) for a, r in zip(start, roi, strict=True)))
        found = predict(volume[place])
        if total is None:
            total = found.new_zeros(*found.shape[:2], *padded)
            count, weight = found.new_zeros(padded), _importance(roi, sigma, found)
        total[place] += weight * found
        count[place] += weight
    assert total is not None  # a volume holds one window at least
    total /= count
    return total[(..., *(slice(n // 2, n // 2 + s) for n, s in zip(short, sides, strict=True)))]
