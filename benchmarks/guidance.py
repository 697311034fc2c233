"""A step with guidance against the same step written down plainly: both feature maps kept, centring by matrices, a second forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, peak_memory, race
from offprint.errors import OffprintError
from offprint.methods.training.guidance import LAYERS, Guidance, kept_pairs


def _plain_cka(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    h = torch.eye(n) - torch.ones(n, n) / n
    k, other = (h @ (v.flatten(1) @ v.flatten(1).T) @ h for v in (x, y))
    return (k * other).sum() / ((k * k).sum().sqrt() * (other * other).sum().sqrt())


def _plain_maps(net: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: found.append(out)) for m in net.modules() if type(m) in LAYERS]
    net(x)
    for hook in hooks:
        hook.remove()
    return found[:-1]


def rows(batch: int = 64, side: int = 64, seconds: float = 10.0) -> Iterator[Row]:
    torch.manual_seed(0)
    target = offprint.create_model("deep_fcn", image_size=side, num_classes=10, width=512, narrow=256, drop=0.0)
    guide, x, y = torchvision.models.resnet18().eval(), torch.randn(batch, 3, side, side), torch.arange(batch) % 10
    plain, guided = copy.deepcopy(target), Guidance(target, guide)

    def ours() -> Tensor:
        target.zero_grad()
        loss = F.cross_entropy(target(x), y) + guided(x)
        loss.backward()
        return loss.detach()

    def theirs() -> Tensor:
        plain.zero_grad()
        task, maps = F.cross_entropy(plain(x), y), _plain_maps(plain, x)
        with torch.no_grad():
            guides = _plain_maps(guide, x)
        loss = task + sum(1 - _plain_cka(maps[t], guides[g]) for t, g in kept_pairs(len(guides), len(maps)).items())
        loss.backward()
        return loss.detach()

    if abs(float(ours() - theirs())) > 1e-2:
        raise OffprintError("the two losses differ; a benchmark of them says nothing")
    memory = peak_memory(ours), peak_memory(theirs)
    yield Row("guidance", f"guided step of deep_fcn by resnet18, {batch} x {side} px", "the plain formulas, a second forward pass",
              *race(ours, theirs, seconds, rounds=3), memory=memory)  # fmt: skip
