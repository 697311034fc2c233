"""A training step of tune mode against one of eval mode, and what autograd keeps of it, on three networks; and a batch too small for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import nn

from benchmarks.compare import Row, race
from offprint.methods.training.tune_mode import in_mode, saved_bytes

# network: at least so many times as fast, and so many times the memory of tune; 0: shown
NETWORKS = {"resnet50": (1.2, 1 / 0.7), "mobilenet_v2": (1.2, 1.0), "resnet18": (0.0, 1.0)}


def _step(net: nn.Module, x: torch.Tensor):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

    def call():
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    return call


def _kept(name: str, batch: int, side: int, required: float, note: str = "") -> Iterator[Row]:
    """Gigabytes stand where seconds do; what is required is their ratio."""
    eval_, tune, x = _pair(name, batch, side)
    ours, theirs = (saved_bytes(net, lambda net=net: net(x)) / 1e9 for net in (tune, eval_))
    yield Row("tune-mode", f"{name}, {batch} x {side} px: gigabytes kept for the backward pass", "eval mode", ours, theirs,
              required=required, note=note, growth=True)  # fmt: skip


def _pair(name: str, batch: int, side: int, mode: str = "tune") -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    plain = torchvision.models.get_model(name, weights=None)
    return in_mode(plain, "eval"), in_mode(plain, mode), torch.randn(batch, 3, side, side)


def _raced(name: str, mode: str, batch: int, side: int, seconds: float, required: float, note: str = "") -> Row:
    eval_, other, x = _pair(name, batch, side, mode)
    took = race(_step(other, x), _step(eval_, x), seconds, rounds=3)
    what = f"{name}, {batch} x {side} px: training step in {mode} mode"
    return Row("tune-mode", what, "eval mode", *took, required=required, note=note)


def rows(batch: int = 8, side: int = 224, seconds: float = 20.0) -> Iterator[Row]:
    for name, (speed, memory) in NETWORKS.items():
        yield from _kept(name, batch, side, memory)
        note = "" if speed else "shown: its maps are small beside its kernels"
        yield _raced(name, "tune", batch, side, seconds, speed, note)
    ceiling = "shown: without any norm left, this is the most that folding could reach"
    yield _raced("resnet50", "deploy", batch, side, seconds, 0.0, ceiling)
    small = "shown: at small batches the folded kernels are larger than the maps they save"
    yield from _kept("resnet18", 4, 4 * side // 7, 0.0, small)
