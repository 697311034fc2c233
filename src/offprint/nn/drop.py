"""Stochastic depth (Huang et al. 2016): whole residual branches dropped per sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero a residual branch for each sample with probability ``p`` in training; kept ones are scaled by 1/(1-p).

    Args:
        p: drop probability in [0, 1).
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device, dtype=x.dtype) >= self.p
        return x * keep / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates of ``depth`` blocks, rising linearly from 0 to ``last``."""
    return [0.0] * depth if depth < 2 else [last * i / (depth - 1) for i in range(depth)]
