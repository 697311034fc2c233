"""MOAT against its direct form: attention of whole matrices, the bias gathered through a table of indices, 1x1 convolutions,
and padded maps before strided convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards, training
from offprint.models.backbones.moat import HEAD_DIM, Attention, Halving
from offprint.nn import Pointwise


class PlainAttention(nn.Module):
    """Softmax of all products plus the bias of every pair, over the whole map, with the weights of ours."""

    def __init__(self, ours: Attention):
        super().__init__()
        self.q, self.k, self.v, self.o, self.heads = ours.q, ours.k, ours.v, ours.o, ours.heads
        self.table = ours.relative_position_embedding

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        q, k, v = (
            f(x).flatten(1, 2).unflatten(2, (self.heads, HEAD_DIM)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        table = F.interpolate(self.table[None], (2 * h - 1, 2 * w - 1), mode="bilinear", align_corners=False)[0]
        i, j = (a.flatten() for a in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
        bias = table[:, i[None] - i[:, None] + h - 1, j[None] - j[:, None] + w - 1]
        logits = (q * HEAD_DIM**-0.5) @ k.transpose(2, 3) + bias
        return self.o((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).unflatten(1, (h, w))


class PlainHalving(nn.Module):
    """Pads the map as TensorFlow does, then convolves."""

    def __init__(self, ours: Halving):
        super().__init__()
        self.weight = ours.weight

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1))
        return F.conv2d(padded, self.weight, None, 2, groups=x.shape[1])


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model in its direct form."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Attention):
                setattr(module, name, PlainAttention(child))
            elif isinstance(child, Halving):
                setattr(module, name, PlainHalving(child))
            elif type(child) is Pointwise:
                conv = nn.Conv2d(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
                conv.load_state_dict(child.state_dict())
                setattr(module, name, conv)
    return model.eval()


def rows(size: int = 256, batch: int = 4, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    name = "tiny_moat_0"
    ours = offprint.create_model(name).eval()
    theirs, x = plain(ours), torch.randn(batch, 3, size, size)
    y, shape = torch.arange(batch), f"{batch} x {size} px"
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
    yield from forwards("moat", f"{name} forward, {shape}", "direct form", ours, theirs, x, seconds=seconds)

    def steps(model: nn.Module, images: Tensor):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step():
            optimizer.zero_grad()
            F.cross_entropy(model(images), y).backward()
            optimizer.step()

        return step

    yield training("moat", f"{name} training step, {shape}", "direct form", steps, ours, theirs, x, seconds=seconds)
