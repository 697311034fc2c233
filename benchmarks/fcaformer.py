"""FcaFormer against the direct formulation in eager PyTorch, the same weights: explicit logits and softmax, a table look-up at every call,
queries for the cross tokens too, tokens and maps transposed back and forth (no library has one).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, classifiers


class Folded(nn.Module):
    def __init__(self, cin: int, cout: int, k: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.c, self.bn = nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class PlainConv(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class PlainMLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, side: int, earlier: int, last: bool):
        super().__init__()
        self.heads, self.side = heads, side
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.full((dim,), 1e-6)), nn.Parameter(torch.full((dim,), 1e-6))
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))
        tokens = earlier * (-(-side // 4)) ** 2
        if earlier:
            self.s_token_bias = nn.Parameter(torch.zeros(1, heads, 1, tokens))
            self.s_scale_factors, self.s_norm = nn.Parameter(torch.ones(1, tokens, 1)), nn.LayerNorm(dim)
        if not last:
            self.dw_conv = nn.Conv2d(dim, dim, 7, 4, 3, groups=dim, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.local_conv, self.mlp = Folded(dim, dim, 3, 1, dim), PlainMLP(dim)
        y, x = (v.flatten() for v in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        index = (y[:, None] - y).abs() * side + (x[:, None] - x).abs()
        self.register_buffer("attention_bias_idxs", index, persistent=False)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        b, n, c = x.shape
        own = self.norm1(x)
        if earlier:
            own = torch.cat([own, self.s_norm(torch.cat(earlier, 1) * self.s_scale_factors)], 1)
        q, k, v = self.qkv(own).reshape(b, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q[:, :, :n] * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.attention_biases[:, self.attention_bias_idxs][None]
        if earlier:
            bias = torch.cat([bias, self.s_token_bias.expand(-1, -1, n, -1)], -1)
        y = ((logits + bias).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        x = x + self.gamma_1 * self.proj(y)
        image = x.transpose(1, 2).reshape(b, c, self.side, self.side)
        merged = self.dw_conv(image).flatten(2).transpose(1, 2) if hasattr(self, "dw_conv") else None
        x = self.local_conv(image).flatten(2).transpose(1, 2)
        return x + self.gamma_2 * self.mlp(self.norm2(x)), merged


class PlainReduction(nn.Module):
    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Folded(cin, cout), Folded(cout, cout, 3, 2, cout), Folded(cout, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class PlainFcaFormer(nn.Module):
    def __init__(
        self, dims=(64, 128, 192, 320), depths=(2, 2, 6, 2), heads=(6, 10), size: int = 224, classes: int = 1000
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.seq = nn.Sequential(
            Folded(3, dims[0] // 2, 3, 2), nn.GELU(), Folded(dims[0] // 2, dims[0], 3, 2)
        )
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            stage = nn.Module()
            stage.blocks = nn.ModuleList(
                PlainConv(dim) if i < 2 else PlainBlock(dim, heads[i - 2], size // 4 // 2**i, j, j == depth - 1)
                for j in range(depth)
            )
            if i < 3:
                stage.downsample = PlainReduction(dim, dims[i + 1])
            setattr(self, f"layer_{i}", stage)
        self.norm_head, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.seq(x)
        for i in range(2):
            stage = getattr(self, f"layer_{i}")
            for block in stage.blocks:
                x = block(x)
            x = stage.downsample(x)
        for i in (2, 3):
            stage, (b, c, h, w) = getattr(self, f"layer_{i}"), x.shape
            tokens, earlier = x.flatten(2).transpose(1, 2), []
            for block in stage.blocks:
                tokens, merged = block(tokens, earlier)
                if merged is not None:
                    earlier.append(merged)
            x = tokens.transpose(1, 2).reshape(b, c, h, w)
            if i < 3:
                x = stage.downsample(x)
        return self.head(self.norm_head(x.flatten(2).mean(2)))


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield from classifiers("fcaformer", "fcaformer_l1", "plain eager PyTorch", PlainFcaFormer(), batch=4)
