"""The rebuilt FMViT deployed against the form it trains in, and against its formulas written out: no library has it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards, race
from offprint.models.backbones.fmvit import CFB, FMViT

MERGED = 1.3  # what deploying must bring


class Direct(nn.Module):
    """The network branch by branch, with the products of attention and its softmax one after the other."""

    def __init__(self, net: FMViT):
        super().__init__()
        self.stem, self.stages, self.last, self.head = net.stem, net.stages, net.norm, net.head

    @staticmethod
    def norm(m, x: Tensor) -> Tensor:
        return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)

    def conv(self, m, x: Tensor) -> Tensor:
        c = m.conv
        return self.norm(m.bn, F.conv2d(x, c.weight, None, c.stride, c.padding, 1, c.groups))

    def rep(self, m, x: Tensor) -> Tensor:
        y = torch.stack([self.conv(b, x) for b in m.branches]).sum(0)
        return y if m.identity is None else y + self.norm(m.identity, x)

    def embed(self, m, x: Tensor) -> Tensor:
        if m.stride == 2:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        return x if isinstance(m.conv, nn.Identity) else self.conv(m.conv, x)

    def mixer(self, m, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(self.rep(m.mix, x)), m.proj.weight)

    def mlp(self, m, x: Tensor) -> Tensor:
        return self.rep(m.fc2, F.relu(self.rep(m.fc1, x)))

    def attention(self, m, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        few = x
        if m.pool_ratio > 1:
            few = self.norm(m.norm, F.avg_pool2d(x, m.pool_ratio, ceil_mode=True, count_include_pad=False))
        split = lambda layer, y: layer(y.flatten(2).transpose(1, 2)).view(b, -1, m.heads, c // m.heads).transpose(1, 2)  # noqa: E731
        q, k, v = split(m.q, x), split(m.k, few), split(m.v, few)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return m.proj((weights @ v).transpose(1, 2).reshape(b, h * w, c)).transpose(1, 2).reshape(b, c, h, w)

    def block(self, m, x: Tensor) -> Tensor:
        x = self.embed(m.embed, x)
        if isinstance(m, CFB):
            x = x + self.mixer(m.mixer, x)
            return x + self.mlp(m.mlp, self.norm(m.norm, x))
        x = x + self.attention(m.attn, self.norm(m.norm1, x))
        h = self.conv(m.split, x)
        x = torch.cat([x, h + self.mixer(m.high, h)], 1)
        return x + self.mlp(m.mlp, self.norm(m.norm2, x))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(0, len(self.stem), 2):
            x = F.relu(self.conv(self.stem[i], x))
        for stage in self.stages:
            for block in stage:
                x = self.block(block, x)
        return self.head(self.norm(self.last, x).mean((2, 3)))


def rows(side: int = 224, batch: int = 4, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    for name in ("fmvit_tiny_rebuilt", "fmvit_small_rebuilt"):
        net, x = offprint.create_model(name).eval(), torch.randn(batch, 3, side, side)
        what = f"{name} forward, {batch} x {side} px"
        yield from forwards("fmvit", what, "branch by branch", net, Direct(net), x, seconds=seconds)
        merged, plain = (m.to(memory_format=torch.channels_last) for m in (offprint.deploy(net, x), net))
        image = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            took = race(lambda m=merged, i=image: m(i), lambda m=plain, i=image: m(i), seconds)
        yield Row("fmvit", f"{what}, deployed", "the form it trains in", *took, None, MERGED)
