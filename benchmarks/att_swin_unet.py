"""Attention Swin U-Net against the plain formulation: windows by rolls, attention written out, keys and values for every token."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.compare import Row, forwards
from offprint.errors import OffprintError
from offprint.models.backbones.swin import Block
from offprint.models.factory import create_model
from offprint.models.segmentation.att_swin_unet import CrossAttention


class _Cross(nn.Module):
    """CrossViT's attention as published: keys and values of all tokens."""

    def __init__(self, ours: CrossAttention):
        super().__init__()
        self.of = ours

    def forward(self, token: Tensor, context: Tensor) -> Tensor:
        own = self.of.norm(token)
        pair = self.of.to_kv(torch.cat([own, context], 1)).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.of.heads, -1)).transpose(1, 2) for t in (self.of.to_q(own), *pair))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.of.to_out((weights @ v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Swin's block as published: a roll, a partition, softmax written out, and back."""

    def __init__(self, ours: Block):
        super().__init__()
        self.of = ours

    @property
    def mixer(self) -> nn.Module:
        return self.of.mixer

    def forward(self, x: Tensor, cut) -> Tensor:
        of, m = self.of, cut.window[0]
        b, h, w, c = x.shape
        y, shift = of.norm1(x), cut.shift
        if any(shift):
            y = torch.roll(y, (-shift[0], -shift[1]), (1, 2))
        y = y.view(b, h // m, m, w // m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, m * m, c)
        q, k, v = of.attn.qkv(y).reshape(len(y), m * m, 3, of.attn.heads, -1).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + of.attn.bias()
        if cut.mask is not None:
            logits = (logits.unflatten(0, (b, -1)) + cut.mask[:, None]).flatten(0, 1)
        y = of.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(len(y), m * m, c))
        y = y.view(b, h // m, w // m, m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        if any(shift):
            y = torch.roll(y, shift, (1, 2))
        x = x + y
        return x + of.mlp(of.norm2(x))


def plainly(model: nn.Module) -> nn.Module:
    """A copy of a network whose blocks and cross attention are the plain ones, with the same weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        if isinstance(parent, _Cross | _Block):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, CrossAttention):
                setattr(parent, name, _Cross(child))
            elif isinstance(child, Block):
                setattr(parent, name, _Block(child))
    return model


def rows(seconds: float = 12.0, **kwargs) -> Iterator[Row]:
    torch.manual_seed(0)
    ours = create_model("att_swin_unet", **kwargs).eval()
    theirs, x = plainly(ours).eval(), ours.example_input()
    with torch.inference_mode():
        expected = theirs(x)
        off = float((ours(x) - expected).abs().max() / expected.abs().max())
    if off > 2e-4:
        raise OffprintError(f"the network and its plain formulation differ by {off:.1e}")
    what = f"att_swin_unet forward, 1 x {x.shape[-1]} px"
    yield from forwards("att-swin-unet", what, "plain formulation", ours, theirs, x, seconds=seconds)
