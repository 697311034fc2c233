"""TOPIQ against the authors' package where it is installed, else against its formulas with the products of attention written out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards
from offprint.models.signals.topiq import CFANet


class Direct(nn.Module):
    """One picture and its reference through the backbone one after the other, softmax between two products."""

    def __init__(self, net: CFANet):
        super().__init__()
        self.net = net

    def attend(self, m, query: Tensor, memory: Tensor) -> Tensor:
        d = query.shape[-1]
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (m.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, memory, memory), m.in_proj_weight.split(d), m.in_proj_bias.split(d), strict=True)
        )
        weights = ((q / q.shape[-1] ** 0.5) @ k.transpose(-2, -1)).softmax(-1)
        return m.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def encode(self, m, x: Tensor) -> Tensor:
        y = m.norm1(x)
        x = x + self.attend(m.self_attn, y, y)
        return x + m.linear2(F.gelu(m.linear1(m.norm2(x))))

    def decode(self, m, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attend(m.multihead_attn, m.norm1(x), m.norm2(memory))
        return x + m.linear2(F.gelu(m.linear1(m.norm3(x))))

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        one = net.maps((x - net.mean) / net.std)
        if net.use_ref:
            two = net.maps((x.flip(-1) - net.mean) / net.std)
            gaps = [torch.sqrt((a - b) ** 2 + 1e-12) for a, b in zip(one, two, strict=True)]
            levels = [
                torch.cat([a, b, d], 1) * g(d) for a, b, d, g in zip(one, two, gaps, net.weight_pool, strict=True)
            ]
        else:
            levels = [g(f) for f, g in zip(one, net.weight_pool, strict=True)]
        side, tokens = levels[-1].shape[-2:], []
        for y, reduce, attend in zip(levels, net.dim_reduce, net.sa_attn_blks, strict=True):
            y = F.adaptive_avg_pool2d(y, side)
            table = torch.cat([net.h_emb.repeat(1, 1, 1, 32), net.w_emb.repeat(1, 1, 32, 1)], 1)
            place = F.interpolate(table, side, mode="bicubic", align_corners=False)
            tokens.append(
                self.encode(attend.layers[0], reduce(y).flatten(2).transpose(1, 2) + place.flatten(2).transpose(1, 2))
            )
        query = tokens[-1]
        for m, level in zip(net.attn_blks, tokens[-2::-1], strict=True):
            query = self.decode(m.layers[0], query, level)
        return net.score_linear(self.encode(net.attn_pool, query).mean(1))


class Against(nn.Module):
    """A model of pairs as one of single pictures: the reference is the picture mirrored."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, x.flip(-1))


def _peer(name: str, net: CFANet) -> tuple[str, nn.Module]:
    if importlib.util.find_spec("pyiqa") is None:
        return "its formulas, attention written out", Direct(net)
    from pyiqa.archs.topiq_arch import CFANet as Theirs

    theirs = Theirs("resnet50", use_ref=net.use_ref, pretrained=False, backbone_pretrain=False).eval()
    theirs.load_state_dict(net.state_dict(), strict=False)
    return "pyiqa", Against(theirs) if net.use_ref else theirs


def rows(side: tuple[int, int] = (384, 512), batch: int = 1, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    for name in ("topiq_nr_resnet50", "topiq_fr_resnet50"):
        net, x = offprint.create_model(name).eval(), torch.rand(batch, 3, *side)
        peer, theirs = _peer(name, net)
        theirs.eval()
        ours = (Against(net) if net.use_ref else net).eval()
        yield from forwards(
            "topiq", f"{name} forward, {batch} x {side[0]} x {side[1]} px", peer, ours, theirs, x, seconds=seconds
        )
