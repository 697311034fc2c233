"""FFNet merged against the form it trains in, and against its formulas written out; the forecasting network likewise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import SAME, Row, forwards, race
from offprint.models.backbones._metamixer_forms import FFNetForecast
from offprint.models.backbones.metamixer import RepDW, Skip
from offprint.nn.mergeable import ConvNorm

MERGED = 1.3  # what merging must bring
SERIES = {"nvars": 21, "seq_len": 96, "target_window": 96}


class Direct(nn.Module):
    """An FFNet computed as the paper writes it: every branch on its own, from the modules of ours."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def conv(self, m: nn.Module, x: Tensor) -> Tensor:
        if isinstance(m, ConvNorm):
            y = F.conv2d(x, m.c.weight, None, m.stride, m.padding, 1, m.groups)
            return F.batch_norm(y, m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, False, 0.0, m.bn.eps)
        if isinstance(m, RepDW):
            return self.conv(m.conv, x) + self.conv(m.conv1, x)
        if isinstance(m, Skip):
            n = m.conv.bn
            y = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps)
            return F.conv2d(y, m.conv.c.weight) + x
        return m(x)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        for layer in net.patch_embed:
            x = self.conv(layer, x)
        for stage in net.stages:
            for block in stage:
                if hasattr(block, "proj"):
                    x = self.conv(block.proj[1], self.conv(block.proj[0], x))
                    continue
                for residual in (block.token_mixer[0], block.channel_mixer):
                    y = x
                    for name in residual.main.steps:
                        y = self.conv(getattr(residual.main, name), y)
                    x = x + (y if residual.layer_scale is None else y * residual.layer_scale)
        return net.head(net.norm(x).mean((2, 3)))


class DirectForecast(nn.Module):
    """The forecasting network with its grouped 1x1 convolutions as convolutions, as the authors write them."""

    def __init__(self, net: FFNetForecast):
        super().__init__()
        self.net = net

    @staticmethod
    def grouped(m, x: Tensor) -> Tensor:
        """(B, G, in, T) through ``conv1d``."""
        return F.conv1d(x.flatten(1, 2), m.weight, m.bias, groups=m.groups).unflatten(1, (m.groups, -1))

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x, mean, std = net.revin_layer(x)
        rows = torch.cat([x, x[..., -1:].expand(-1, -1, net.patch - net.stride)], -1).reshape(-1, 1, x.shape[-1] + 2)
        y = net.downsample_layers[0](rows)
        y = y.view(len(x), net.nvars, *y.shape[1:])
        b, m, d, t = y.shape
        for block in net.stages[0].blocks:
            one, two = block.token_mixer, block.channel_mixer
            z = F.gelu(self.grouped(one.ffnpw1, y.transpose(1, 2)))
            z = self.grouped(one.ffnpw2, z.transpose(1, 2).reshape(b, m, 2 * d, t))
            z = one.norm(z.reshape(b * m, d, t)).view(b, m * d, t)
            y = y + one.dw2(F.gelu(one.dw1(z))).view(b, m, d, t)
            z = two.dw.lkb_origin(y.reshape(b, m * d, t)) + two.dw.small_conv(y.reshape(b, m * d, t))
            z = F.gelu(self.grouped(two.ffnpw1, two.norm(z.view(b * m, d, t)).view(b, m, d, t)))
            y = y + self.grouped(two.ffnpw2, z.transpose(1, 2).reshape(b, d, -1, t)).transpose(1, 2)
        return net.revin_layer.back(net.head(y.flatten(2)), mean, std)


def rows(side: int = 256, batch: int = 4, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    for name in ("ffnet_1", "ffnet_2"):
        net, x = offprint.create_model(name).eval(), torch.randn(batch, 3, side, side)
        what = f"{name} forward, {batch} x {side} px"
        yield from forwards("metamixer", what, "branch by branch", net, Direct(net), x, seconds=seconds)
        merged, plain = (m.to(memory_format=torch.channels_last) for m in (offprint.deploy(net, x), net))
        image = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            took = race(lambda m=merged, i=image: m(i), lambda m=plain, i=image: m(i), seconds)
        yield Row("metamixer", f"{what}, merged", "the form it trains in", *took, None, MERGED)
    net = offprint.create_model("ffnet_forecast", **SERIES).eval()
    x, direct = torch.randn(32, SERIES["nvars"], SERIES["seq_len"]), DirectForecast(net)
    with torch.inference_mode():
        took = race(lambda: net(x), lambda: direct(x), seconds)
    yield Row(
        "metamixer", "ffnet_forecast forward, 32 x 21 series of 96", "grouped convolutions", *took, None, 1.0, form=SAME
    )
