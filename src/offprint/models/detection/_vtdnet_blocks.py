"""VTDNet's interaction blocks: inside a group of tasks (Intra-IB) and between groups (Cross-IB). Sizes are choices of this library."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from offprint.nn.windows import attend, gather_bias, join, split, windows

HEADS = 8


class TaskFeedForward(nn.Module):
    """A residual feed-forward of each task's own channels: (..., T c) to the same."""

    def __init__(self, tasks: int, width: int, ratio: int = 4):
        super().__init__()
        self.each = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
            )
            for _ in range(tasks)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([f(part) for f, part in zip(self.each, x.chunk(len(self.each), -1), strict=True)], -1)


class PixelExchange(nn.Module):
    """Intra-IB of maps (B, H, W, T c): attention in windows over the channels of all tasks together, then each task's feed-forward.

    Args:
        tasks, width: T and c.
        window: side; ``shifted`` displaces the windows by half of it.
    """

    def __init__(self, tasks: int, width: int, window: int = 7, shifted: bool = False):
        super().__init__()
        dim = tasks * width
        self.window, self.shift = (window, window), (window // 2 if shifted else 0,) * 2
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, HEADS))
        self.feed = TaskFeedForward(tasks, width)

    def forward(self, x: Tensor) -> Tensor:
        cut = windows(tuple(x.shape[1:3]), self.window, self.shift, x.device)
        tokens = split(self.norm(x), cut)
        b, n, t, dim = tokens.shape
        q, k, v = self.qkv(tokens.flatten(0, 1)).view(b * n, t, 3, HEADS, dim // HEADS).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, gather_bias(self.bias, self.window), cut.mask)
        return self.feed(x + join(self.proj(mixed).view(b, n, t, dim), cut))


class CrossExchange(nn.Module):
    """Cross-IB: tokens of one group read those of another. The last projection starts at zero, so that a fresh block changes nothing.

    Args:
        width, other: channels of the tokens that read, and of those that are read; a learnt token stands where there are none.
    """

    def __init__(self, width: int, other: int):
        super().__init__()
        self.norm, self.norm_other = nn.LayerNorm(width), nn.LayerNorm(other)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(other, 2 * width), nn.Linear(width, width)
        self.none = nn.Parameter(torch.zeros(1, 1, other))
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, read: Tensor, present: Tensor | None = None) -> Tensor:
        """x (B, N, width), read (B, M, other), present (B, M) bool to (B, N, width)."""
        b = len(read)
        read = torch.cat([self.none.expand(b, -1, -1), self.norm_other(read)], 1)
        q, (k, v) = self._heads(self.q(self.norm(x))), (self._heads(p) for p in self.kv(read).chunk(2, -1))
        mask = None if present is None else F.pad(present, (1, 0), value=True)[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.proj(mixed.transpose(1, 2).flatten(2))

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class InstanceExchange(nn.Module):
    """Intra-IB of the instances of one image, then Cross-IB on a coarse grid of pixel features.

    Args:
        channels: of the pooled windows.
        tasks, width: T and c.
        grid: channels of the pixel features, 0 without them.
    """

    def __init__(self, channels: int, tasks: int, width: int, grid: int = 0):
        super().__init__()
        dim = tasks * width
        self.tasks, self.width = tasks, width
        self.into = nn.Linear(channels, dim)
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = TaskFeedForward(tasks, width)
        self.cross = CrossExchange(dim, grid) if grid else None

    def forward(self, x: Tensor, counts: Sequence[int], grid: Tensor | None = None) -> Tensor:
        """Means of windows (N, channels) of images with so many each, grid (B, h w, C): (N, T, c)."""
        x = self.into(x)
        out = []
        for i, part in enumerate(x.split(list(counts))):
            if len(part):
                q, k, v = self.qkv(self.norm(part)).view(len(part), 3, HEADS, -1).permute(1, 2, 0, 3)
                part = part + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
                part = self.feed(part)
                if self.cross is not None and grid is not None:
                    part = self.cross(part[None], grid[i : i + 1])[0]
            out.append(part)
        return torch.cat(out).unflatten(-1, (self.tasks, self.width))


class InstancePool(nn.Module):
    """Windows of regions, as torchvision's heads ask for them, with what the region's instance learnt of the others.

    The maps may hold ``grid`` besides "0", "1", ...: pixel features for the Cross-IB.

    Args:
        size: of a window.
        channels: of the maps.
        exchange: shared by the pools of all tasks; ``None`` pools alone.
        task: whose part of it is read.
    """

    def __init__(self, size: int, channels: int, exchange: InstanceExchange | None, task: int):
        super().__init__()
        self.align = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
        self.task, self._shared = task, (exchange,)  # in a tuple: its weights are those of who shares it out
        if exchange is not None:
            self.out = nn.Linear(exchange.width, channels)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, maps: OrderedDict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        x = self.align(maps, boxes, sizes)
        (exchange,) = self._shared
        if exchange is None or not len(x):
            return x
        said = exchange(x.mean((2, 3)), [len(b) for b in boxes], maps.get("grid"))[:, self.task]
        return x + self.out(said)[:, :, None, None]
