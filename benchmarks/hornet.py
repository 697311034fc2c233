"""HorNet against the plain formulation of the same network in eager PyTorch, the same weights (no library has one)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, classifiers


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a channels-first map, by mean and variance."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class PlainFilter(nn.Module):
    def __init__(self, dim: int, h: int, w: int):
        super().__init__()
        self.pre_norm, self.post_norm = ChannelNorm(dim), ChannelNorm(dim)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.complex_weight = nn.Parameter(torch.randn(dim // 2, h, w, 2) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        local, spread = torch.chunk(self.pre_norm(x), 2, dim=1)
        local = self.dw(local)
        b, c, h, w = spread.shape
        spectrum = torch.fft.rfft2(spread.float(), dim=(2, 3), norm="ortho")
        weight = self.complex_weight
        if weight.shape[1:3] != spectrum.shape[2:]:
            planes = F.interpolate(weight.permute(3, 0, 1, 2), spectrum.shape[2:], mode="bilinear", align_corners=True)
            weight = planes.permute(1, 2, 3, 0)
        spectrum = spectrum * torch.view_as_complex(weight.contiguous())
        spread = torch.fft.irfft2(spectrum, s=(h, w), dim=(2, 3), norm="ortho")
        x = torch.cat([local.unsqueeze(2), spread.unsqueeze(2)], dim=2).reshape(b, 2 * c, h, w)
        return self.post_norm(x)


class PlainGnConv(nn.Module):
    def __init__(self, dim: int, order: int, grid: tuple[int, int] | None):
        super().__init__()
        self.dims = [dim // 2**i for i in range(order)][::-1]
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        wide = sum(self.dims)
        self.dwconv = PlainFilter(wide, *grid) if grid else nn.Conv2d(wide, wide, 7, padding=3, groups=wide)
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.dims[:-1], self.dims[1:], strict=True))
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, bundle = torch.split(self.proj_in(x), (self.dims[0], sum(self.dims)), dim=1)
        groups = torch.split(self.dwconv(bundle) * (1 / 3), self.dims, dim=1)
        x = gate * groups[0]
        for i, project in enumerate(self.pws):
            x = project(x) * groups[i + 1]
        return self.proj_out(x)


class PlainBlock(nn.Module):
    def __init__(self, dim: int, order: int, grid: tuple[int, int] | None):
        super().__init__()
        self.norm1, self.gnconv = ChannelNorm(dim), PlainGnConv(dim, order, grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2 = nn.Parameter(torch.full((dim,), 1e-6)), nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1.view(-1, 1, 1) * self.gnconv(self.norm1(x))
        y = self.norm2(x.permute(0, 2, 3, 1))
        y = self.gamma2 * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class PlainHorNet(nn.Module):
    """The tiny network as one writes it down from the paper."""

    def __init__(self, gf: bool, dim: int = 64, classes: int = 1000):
        super().__init__()
        grids = (None, None, (14, 8) if gf else None, (7, 4) if gf else None)
        dims = [dim * 2**i for i in range(4)]
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dim, 4, 4), ChannelNorm(dim))])
        for a, b in zip(dims[:-1], dims[1:], strict=True):
            self.downsample_layers.append(nn.Sequential(ChannelNorm(a), nn.Conv2d(a, b, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(PlainBlock(d, order, grid) for _ in range(depth)))
            for d, order, depth, grid in zip(dims, (2, 3, 4, 5), (2, 3, 18, 2), grids, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((-2, -1))))


def rows() -> Iterator[Row]:
    for name, gf in (("hornet_tiny_7x7", False), ("hornet_tiny_gf", True)):
        torch.manual_seed(0)
        yield from classifiers("hornet", name, "plain eager PyTorch", PlainHorNet(gf), batch=2)
