"""SCNN's message passing against the plain loop over slices, the same weights, at the size of CULane's maps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.compare import SAME, Row, race
from offprint.errors import OffprintError
from offprint.models.segmentation.scnn import PASSES, MessagePassing

SHAPE = (1, 128, 36, 100)


def plain(layer: MessagePassing, x: torch.Tensor) -> torch.Tensor:
    """The passes as they are usually written: a list of slices, a convolution for each, and a concatenation."""
    for name, (axis, reverse) in PASSES.items():
        conv, slices = getattr(layer, name), list(x.split(1, 2 + axis))
        if reverse:
            slices.reverse()
        for i in range(1, len(slices)):
            slices[i] = slices[i] + F.relu(F.conv2d(slices[i - 1], conv.weight, padding=conv.padding))
        x = torch.cat(slices[::-1] if reverse else slices, 2 + axis)
    return x


def rows(shape: tuple[int, int, int, int] = SHAPE, seconds: float = 10.0) -> Iterator[Row]:
    torch.manual_seed(0)
    layer, x = MessagePassing(shape[1]).eval(), torch.randn(shape)
    with torch.no_grad():
        a, b = layer(x), plain(layer, x)
        off = float((a - b).abs().max() / b.abs().max())
        if off > 1e-5:
            raise OffprintError(f"the passes and the plain loop differ by {off:.1e}")
        what, peer = "x".join(map(str, shape[1:])), "loop over slices"
        ours, theirs = race(lambda: layer(x), lambda: plain(layer, x), seconds)
    yield Row("scnn", f"message passing forward, {what}", peer, ours, theirs, required=1.5, form=SAME)

    def step(call):
        def run():
            layer.zero_grad()
            call().square().mean().backward()

        return run

    ours, theirs = race(step(lambda: layer(x)), step(lambda: plain(layer, x)), seconds)
    yield Row("scnn", f"message passing training step, {what}", peer, ours, theirs, required=1.0, form=SAME)
