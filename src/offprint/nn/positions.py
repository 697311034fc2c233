"""Learnt positions that move to another grid: tables of relative ones, and absolute ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.nn.precision import wide


def resample_table(table: Tensor, side: int, geometric: bool = False) -> Tensor:
    """A bias table (offsets, heads) for another window, as the authors move checkpoints.

    Args:
        table: (L², heads), L = 2M - 1.
        side: L of the new window.
        geometric: the rule of the SimMIM fine-tuning code: the old offsets are placed at 1, 1 + q, 1 + q + q², ... so that
            the outermost meet, and a cubic spline is read at whole offsets. Otherwise bicubic interpolation.

    Returns:
        (side², heads).
    """
    old = round(table.shape[0] ** 0.5)
    square = wide(table).t().reshape(1, -1, old, old)
    if geometric:
        line = _spline(old // 2, side // 2).to(square)
        square = line @ square @ line.t()
    else:
        square = F.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return square.flatten(2)[0].t().to(table.dtype)


def _spline(old: int, new: int) -> Tensor:
    """(2 new + 1, 2 old + 1): values of the cubic spline through old geometric offsets, at whole offsets."""
    import numpy as np
    from scipy.interpolate import make_interp_spline

    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**old) / (1 - q) > new else (q, high)
    right = np.cumsum(q ** np.arange(old))
    at = np.concatenate([-right[::-1], [0.0], right])
    inside = np.clip(np.arange(-new, new + 1.0), at[0], at[-1])
    return torch.from_numpy(make_interp_spline(at, np.eye(len(at)), k=min(3, len(at) - 1))(inside))


def log_coordinates(window: int, pretrained_window: int = 0, device=None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-spaced offsets ((2M - 1)², 2) of SwinV2's Eq. 4, rows first; up to ±1.0566 where M is the pre-training window."""
    span = (pretrained_window or window) - 1
    t = torch.arange(1 - window, window, device=device, dtype=dtype) * (8 / max(span, 1))
    t = torch.sign(t) * torch.log2(t.abs() + 1) / 3
    return torch.stack(torch.meshgrid(t, t, indexing="ij"), -1).flatten(0, 1)


def resize_positions(positions: Tensor, sides: tuple[int, int], old: tuple[int, int] | None = None) -> Tensor:
    """Absolute positions (1, h*w, C) on another grid, bicubically; the old grid is a square unless given."""
    h, w = old or (round(positions.shape[1] ** 0.5),) * 2
    grid = positions.reshape(1, h, w, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(wide(grid), sides, mode="bicubic", align_corners=False).to(positions.dtype)
    return grid.flatten(2).transpose(1, 2)
