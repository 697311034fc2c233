"""Dynamic functional connectivity: sliding windows of a series, their correlations, and graphs of the strongest ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offprint.errors import OffprintError
from offprint.nn.precision import wide


def window_starts(frames: int, window: int, stride: int, length: int | None = None, start: int = 0) -> list[int]:
    """First frames of the sliding windows: start, start + stride, ... strictly below start + length - window.

    Args:
        frames: T of the series.
        window, stride: in frames.
        length: how much of the series is used; ``None`` for all of it, from frame 0.
        start: where that part begins.

    Raises:
        OffprintError: the part does not end before the series does, or holds no window.
    """
    if window < 2 or stride < 1:
        raise OffprintError(f"window={window}, stride={stride}; a window has at least 2 frames, a stride at least 1")
    if length is None:
        length, start = frames, 0
    elif not 0 <= start < frames - length:
        raise OffprintError(
            f"a part of {length} frames from frame {start} on must end before the last of {frames} frames; "
            "take a smaller length, or the whole series"
        )
    if length <= window:
        raise OffprintError(
            f"{length} frames hold no window of {window}: at least {window + 1} are needed; choose a smaller window "
            "(a series is frames x regions: is it transposed?)"
        )
    return list(range(start, start + length - window, stride))


@torch.no_grad()
def window_correlations(series: Tensor, starts: Tensor, window: int) -> Tensor:
    """Pearson correlations within windows.

    Args:
        series: (B, T, N).
        starts: (B, W), first frames of the windows.
        window: frames per window.

    Returns:
        (B, W, N, N) in [-1, 1], symmetric, in the precision of the series, float32 at least. A region that does not change within
        a window correlates 0 with all, itself included.
    """
    frames = starts[..., None] + torch.arange(window, device=starts.device)
    x = wide(series)[torch.arange(len(series), device=series.device)[:, None, None], frames]  # (B, W, window, N)
    still = (x.amax(2) == x.amin(2))[:, :, None]
    x = x - x.mean(2, keepdim=True)
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    x = x / length.masked_fill(still | (length == 0), torch.inf)
    kind = "cpu" if series.is_meta else series.device.type
    with torch.autocast(kind, enabled=False):  # which edges there are must not hang on the precision of a run
        c = x.mT @ x
    # a product may round its two halves differently; equal entries are edges both or neither
    return c.add(c.mT).mul_(0.5).clamp_(-1.0, 1.0)


def dynamic_fc(series: Tensor, window: int = 50, stride: int = 3, length: int | None = None, start: int = 0) -> Tensor:
    """Dynamic functional connectivity (B, W, N, N) of series (B, T, N); see :func:`window_starts`."""
    starts = torch.tensor(window_starts(series.shape[1], window, stride, length, start), device=series.device)
    return window_correlations(series, starts.expand(len(series), -1), window)


@torch.no_grad()
def threshold(fc: Tensor, sparsity: float = 30) -> Tensor:
    """The (100 - sparsity)-percentile of all N*N entries of each matrix (diagonal included, linear interpolation): (B, W)."""
    flat = fc.flatten(-2)
    position = (100 - sparsity) * (flat.shape[-1] - 1) / 100
    below = int(position)
    if (
        flat.device.type == "cpu" and not torch.compiler.is_compiling()
    ):  # NumPy selects many times faster than torch does
        ranked = np.partition(flat.numpy(), below, -1)
        low = torch.from_numpy(ranked[..., below].copy())
        high = torch.from_numpy(ranked[..., below + 1 :].min(-1))
    else:
        low = flat.kthvalue(below + 1, -1).values
        repeated = (flat <= low[..., None]).sum(-1) > below + 1  # the next in order is then the same value
        high = torch.where(repeated, low, torch.where(flat > low[..., None], flat, torch.inf).amin(-1))
    share = position - below
    return torch.lerp(low, high, share)


def adjacency(fc: Tensor, sparsity: float = 30) -> Tensor:
    """1 where a correlation lies strictly above its window's :func:`threshold`, else 0; the self loops are nearly always in."""
    return (fc > threshold(fc, sparsity)[..., None, None]).to(fc.dtype)
