"""Reading numbers from logits at once, against every length and digit in Python; the port's network against its layers as they stand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards, race
from offprint.models.detection.multi_digit import SequenceLogits, SVHNPort, read_sequences


def _plain(logits: SequenceLogits) -> list[tuple[list[int], float]]:
    found = []
    for length, digits in zip(logits.length.tolist(), logits.digits.tolist(), strict=True):
        log = lambda row: [v - math.log(sum(math.exp(u) for u in row)) for v in row]  # noqa: E731
        p, rows = log(length), [log(row) for row in digits]
        best, said = -math.inf, []
        for n in range(len(rows) + 1):
            which = [max(range(10), key=lambda d, r=row: r[d]) for row in rows[:n]]
            score = p[n] + sum(rows[i][d] for i, d in enumerate(which))
            if score > best:
                best, said = score, which
        found.append((said, best))
    return found


class Direct(nn.Module):
    """The port's layers, one after the other."""

    def __init__(self, net: SVHNPort):
        super().__init__()
        blocks = [m for i in range(net.blocks) for m in net.get_submodule(f"_hidden{i + 1}")]
        self.body = nn.Sequential(*blocks, nn.Flatten(), *net._hidden9, *net._hidden10)
        self.length = net._digit_length
        self.digits = nn.ModuleList(net.get_submodule(f"_digit{i}") for i in range(1, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x)
        return self.length(h), *(d(h) for d in self.digits)


def rows(batch: int = 16, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    logits = SequenceLogits(torch.randn(2000, 7), torch.randn(2000, 5, 10))
    took = race(partial(read_sequences, logits), partial(_plain, logits), seconds)
    yield Row("multi-digit", "2,000 numbers read from logits", "every length in Python", *took)
    net = offprint.create_model("svhn_port").eval()
    x = torch.randn(batch, 3, 54, 54)
    yield from forwards(
        "multi-digit", f"svhn_port forward, {batch} x 54 px", "its layers", net, Direct(net), x, seconds=seconds
    )
