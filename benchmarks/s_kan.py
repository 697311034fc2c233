"""Patch layers of B-splines against one small layer for every pair of channels, as Convolutional-KANs computes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, race
from offprint.models.backbones.s_kan import KANConv2d
from offprint.models.info import peak_memory


class Pairs(nn.Module):
    """Every pair of an output and an input channel by itself: basis of its patches by the recurrence, products, sum; weights of ours."""

    def __init__(self, ours: KANConv2d):
        super().__init__()
        self.ours, self.layer = ours, ours.kanlayer

    def _basis(self, x: Tensor) -> Tensor:
        grid, x = self.layer.grid, x[..., None]
        basis = ((x >= grid[:-1]) & (x < grid[1:])).to(x)
        for k in range(1, self.layer.spline_order + 1):
            left = (x - grid[: -k - 1]) / (grid[k:-1] - grid[: -k - 1]) * basis[..., :-1]
            basis = left + (grid[k + 1 :] - x) / (grid[k + 1 :] - grid[1:-k]) * basis[..., 1:]
        return basis

    def forward(self, x: Tensor) -> Tensor:
        ours, layer = self.ours, self.layer
        kernel = ours.kernel_size**2
        height, width = (side + 2 * ours.padding - ours.kernel_size + 1 for side in x.shape[-2:])
        maps = []
        for out in range(ours.out_channels):
            total = 0.0
            for i in range(ours.in_channels):
                cut = slice(i * kernel, (i + 1) * kernel)
                patches = F.unfold(x[:, i : i + 1], ours.kernel_size, padding=ours.padding).transpose(1, 2)
                spline = layer.spline_weight[out, cut] * layer.spline_scaler[out, cut, None]
                total = (
                    total
                    + F.silu(patches) @ layer.base_weight[out, cut]
                    + self._basis(patches).flatten(2) @ spline.flatten()
                )
            maps.append(total)
        return torch.stack(maps, 1).view(len(x), -1, height, width)


def rows(channels: int = 8, size: int = 16, batch: int = 8, seconds: float = 6.0) -> Iterator[Row]:
    torch.manual_seed(0)
    ours = KANConv2d(channels, channels, 3, padding=1).eval()
    theirs, x = Pairs(ours), torch.randn(batch, channels, size, size)
    what = f"KANConv2d({channels}, {channels}, 3), {batch} x {size} px"

    def training(model: nn.Module):
        def step() -> None:
            ours.zero_grad()
            model(x).square().mean().backward()

        return step

    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
        calls = (lambda: ours(x)), (lambda: theirs(x))
        took, used = race(*calls, seconds), (peak_memory(calls[0]), peak_memory(calls[1]))
    yield Row("s-kan", f"{what}, forward", "one layer per pair", *took, used)
    yield Row("s-kan", f"{what}, gradients", "one layer per pair", *race(training(ours), training(theirs), seconds))
