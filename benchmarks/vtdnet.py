"""VTDNet, rebuilt: one network against ten single-task networks run one after the other, windowed attention and cost volumes against their plain formulas."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import offprint
from benchmarks.compare import Row, race
from offprint.models.detection._vtdnet_blocks import HEADS, PixelExchange
from offprint.models.detection.vtdnet import TASKS, embedding_losses

NAME = "vtdnet_tiny_rebuilt"


def _windows_written_out(block: PixelExchange, x: Tensor) -> Tensor:
    """The attention of :class:`PixelExchange`, window by window, and its feed-forward; plain windows of a map that they divide."""
    out, m = x.clone(), block.window[0]
    rows = torch.arange(m * m) // m
    columns = torch.arange(m * m) % m
    index = (rows[:, None] - rows + m - 1) * (2 * m - 1) + columns[:, None] - columns + m - 1
    bias = block.bias[index].permute(2, 0, 1)
    for b in range(len(x)):
        for i in range(0, x.shape[1], m):
            for j in range(0, x.shape[2], m):
                tokens = block.norm(x[b, i : i + m, j : j + m].reshape(m * m, -1))
                q, k, v = block.qkv(tokens).view(m * m, 3, HEADS, -1).permute(1, 2, 0, 3)
                weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + bias).softmax(-1)
                out[b, i : i + m, j : j + m] += block.proj((weights @ v).transpose(0, 1).flatten(1)).view(m, m, -1)
    return block.feed(out)


def _losses_written_out(keys: Tensor, references: Tensor, positive: Tensor) -> list[Tensor]:
    """QDTrack's first loss, key by key."""
    out = []
    for key, row in zip(keys, positive, strict=True):
        total = keys.new_ones(())
        for p in references[row]:
            for n in references[~row]:
                total = total + torch.exp(key @ n - key @ p)
        out.append(total.log())
    return out


@torch.no_grad()
def rows(batch: int = 2, seconds: float = 8.0, size: tuple[int, int] = (96, 160), keys: int = 32) -> Iterator[Row]:
    torch.manual_seed(0)
    x = torch.rand(batch, 3, *size)
    one = offprint.create_model(NAME).eval()
    ten = [offprint.create_model(NAME, tasks=(t,)).eval() for t in TASKS]
    took = race(lambda: one.detect(x, x), lambda: [net.detect(x, x) for net in ten], seconds)
    yield Row("vtdnet", f"{NAME}, all outputs, {batch} x {size[0]}x{size[1]} px", "ten single-task networks", *took)
    block, maps = PixelExchange(3, 32, 4).eval(), torch.randn(batch, size[0] // 4, size[1] // 4, 96)
    torch.testing.assert_close(block(maps), _windows_written_out(block, maps), rtol=1e-4, atol=1e-4)
    took = race(partial(block, maps), partial(_windows_written_out, block, maps), seconds)
    yield Row("vtdnet", f"Intra-IB of pixels, {batch} x {size[0] // 4}x{size[1] // 4} x 96", "window by window", *took)
    a, b = 0.1 * torch.randn(keys, 64), 0.1 * torch.randn(2 * keys, 64)
    positive = torch.arange(keys)[:, None] % 8 == torch.arange(2 * keys) % 16
    torch.testing.assert_close(
        embedding_losses(a, b, positive)[0], torch.stack(_losses_written_out(a, b, positive)), rtol=1e-4, atol=1e-4
    )
    took = race(partial(embedding_losses, a, b, positive), partial(_losses_written_out, a, b, positive), seconds)
    yield Row("vtdnet", f"embedding loss, {keys} keys", "pair by pair", *took)
