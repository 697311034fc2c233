"""Bicubic resizing as MATLAB's ``imresize`` does it, which super-resolution papers measure with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5."""
    a = x.abs()
    near = 1.5 * a**3 - 2.5 * a**2 + 1
    far = -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2
    return near * (a <= 1) + far * ((a > 1) & (a <= 2))


def _matrix(size: int, out: int, scale: float) -> Tensor:
    """(out, size) weights: the kernel is widened when shrinking, and borders are mirrored."""
    squeeze = min(scale, 1.0)
    width = 4 / squeeze
    centre = (torch.arange(out, dtype=torch.float64) + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = math.ceil(width) + 2
    index = torch.floor(centre - width / 2)[:, None] + torch.arange(taps, dtype=torch.float64)
    weight = squeeze * _cubic(squeeze * (centre[:, None] - index))
    weight = weight / weight.sum(1, keepdim=True)
    mirror = torch.cat([torch.arange(size), torch.arange(size - 1, -1, -1)])
    index = mirror[(index.long() - 1) % (2 * size)]
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, index, weight)


def bicubic(image: Tensor, scale: float) -> Tensor:
    """Resize images (..., H, W) by ``scale``, antialiased when shrinking; sides are rounded up.

    Args:
        image: any float range.
        scale: above 1 enlarges.
    """
    h, w = image.shape[-2:]
    rows = _matrix(h, math.ceil(h * scale), scale)
    columns = _matrix(w, math.ceil(w * scale), scale)
    return (rows @ image.double() @ columns.T).to(image.dtype)
