"""H-DenseUNet against the plain formulation: BatchNorm, Scale and ReLU one after the other, slices gathered one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, forwards
from offprint.errors import OffprintError
from offprint.models.factory import create_model
from offprint.models.segmentation.h_denseunet import BSR, HDenseUNet


class _Plain(nn.Module):
    """BatchNorm, then the factor and the summand of each channel, then ReLU."""

    def __init__(self, ours: BSR):
        super().__init__()
        self.norm, self.scale = ours.norm, ours.scale

    def forward(self, x: Tensor) -> Tensor:
        sides = (-1, *(1,) * (x.ndim - 2))
        return F.relu(self.norm(x) * self.scale.weight.view(sides) + self.scale.bias.view(sides))


class _Released(HDenseUNet):
    """The hybrid as the author's graph has it: a triplet for each slice, maps stacked one after the other."""

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = x.shape[-1] - 1
        at = [(max(0, i - 1), i, min(last, i + 1)) for i in range(last + 1)]
        slices = torch.cat([torch.cat([x[..., j] for j in row], 1) for row in at])
        flat = self.plane.features(slices)
        logits = self.plane.out(flat)
        logits, flat = (torch.cat([v[i : i + 1, ..., None] for i in range(last + 1)], -1) for v in (logits, flat))
        return logits, flat, self.volume.features(torch.cat([x, 250 * logits], 1))


def plainly(model: nn.Module) -> nn.Module:
    """A copy with the same weights in the plain formulation."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BSR):
                setattr(parent, name, _Plain(child))
    if isinstance(model, HDenseUNet):
        model.__class__ = _Released
    return model


def rows(seconds: float = 12.0, **kwargs) -> Iterator[Row]:
    for name in ("denseunet161_2d", "h_denseunet_released"):
        torch.manual_seed(0)
        ours = create_model(name, **(kwargs if name.startswith("h_") else {})).eval()
        theirs, x = plainly(ours).eval(), ours.example_input()
        with torch.inference_mode():
            expected = theirs(x)
            off = float((ours(x) - expected).abs().max() / expected.abs().max())
        if off > 2e-4:
            raise OffprintError(f"{name} and its plain formulation differ by {off:.1e}")
        what = f"{name} forward, 1 x {' x '.join(map(str, x.shape[2:]))}"
        yield from forwards("h-denseunet", what, "plain formulation", ours, theirs, x, seconds=seconds)
