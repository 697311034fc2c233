"""The plain vision transformer: patches, attention, MLP, pre-norm blocks, positions (Dosovitskiy et al. 2021; Touvron et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.nn.drop import DropPath


class PatchEmbed(nn.Module):
    """An image (B, C, H, W) to a map of embedded patches (B, dim, H / p, W / p).

    Args:
        in_chans: channels of the image.
        dim: width of an embedding.
        patch_size: side of a patch in pixels; images whose sides are no multiple of it are padded with zeros below and to the right.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int = 16):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        below, right = (-x.shape[-2] % self.patch_size, -x.shape[-1] % self.patch_size)
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return self.proj(x)


class Attention(nn.Module):
    """Self-attention over tokens (B, N, dim) with one projection to queries, keys and values, with bias.

    Args:
        dim: width.
        num_heads: heads, each of ``dim / num_heads``.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise OffprintError(
                f"a width of {dim} cannot be divided among {num_heads} heads; choose a divisor of {dim}"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        dim: width.
        hidden: width between the layers.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    r"""A pre-norm block with layer scale,

    .. math:: x \leftarrow x + \gamma_1 \odot \mathrm{Attention}(\mathrm{LN}(x)), \qquad
              x \leftarrow x + \gamma_2 \odot \mathrm{MLP}(\mathrm{LN}(x)).

    Args:
        dim: width.
        num_heads: of the attention.
        mlp_ratio: width inside the MLP, in widths.
        layer_scale: start of both :math:`\gamma`; ``None`` for none.
        drop_path: rate at which a branch is dropped per sample in training.
        eps: of the layer norms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = 1e-4,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        if layer_scale is None:
            self.gamma_1 = self.gamma_2 = None
        else:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of positions (1, h * w, C) of one grid for another, bicubic, in the table's type.

    Args:
        old, new: (h, w) of the grids.
    """
    if old == new:
        return table
    kind = table.dtype if table.dtype == torch.float64 else torch.float32
    grid = table.to(kind).unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, new, mode="bicubic", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)
