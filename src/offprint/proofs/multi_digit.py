"""Strings of real digits: a deeper network against a shallower one of the same cost, and what reading exactly is worth.

Strings of one to five digits of MNIST, from the left with jitter and noise, 16 x 48 pixels; those of the test are made of MNIST's test
digits. The paper says that accuracy grows with depth: the arms have three and six convolutions, widths such that a step costs the same. On
the network of six the number is also read in a common wrong way, by the length's own maximum first. The score is the share of strings that are right from end to end; the share that can be
read without a person at 98 % stands beside.

Setting and bands were fixed before the first full run.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from offprint.data.house_numbers import composed
from offprint.models.detection.multi_digit import (
    SequenceHead,
    SequenceLogits,
    coverage_at_accuracy,
    read_sequences,
    sequence_loss,
    targets_of,
)
from offprint.proofs import Effect, Proof, kit

SIDES = (16, 48)
ARMS = {  # name: channels of the convolutions; pooling by two behind those of these indices
    "3 convolutions": ((32, 66, 102), (0, 1)),
    "6 convolutions": ((16, 24, 32, 32, 40, 40), (1, 3)),
}
SIZES = {  # mode: steps, batch, strings to learn from, judged strings, seeds, rates
    "quick": (2, 8, 16, 16, (0,), (2e-3,)),
    "full": (160, 64, 6000, 800, (0, 1, 2, 3, 4), (1e-3, 3e-3)),
    "gpu": (20_000, 128, 200_000, 5_000, (0, 1, 2, 3, 4), (5e-4, 1e-3, 3e-3)),
}


class _Net(nn.Module):
    """Convolutions with norm and ReLU, a dense layer, the sequence head."""

    def __init__(self, channels: tuple[int, ...], pools: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i in pools else []
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((2, 12)), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(channels[-1] * 24, 256), nn.ReLU(), nn.Dropout(0.2))
        self.head = SequenceHead(256)

    def forward(self, x: Tensor) -> SequenceLogits:
        return self.head(self.hidden(self.body(x)))


@cache
def _strings(first: int, count: int, train: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 1, 16, 48), lengths and digits."""
    rows = [composed(first + i, train, spread=False) for i in range(count)]
    size = (SIDES[1], SIDES[0])
    grey = np.stack([np.asarray(r.read().convert("L").resize(size, 4), np.float32) for r in rows])
    return ((torch.from_numpy(grey)[:, None] - 50) / 60, *targets_of([r.digits for r in rows]))


def _parts(mode: str) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    _, _, count, judged, _, _ = SIZES[mode]
    return {
        "train": _strings(0, count, True),
        "val": _strings(1_000_000, judged, True),
        "test": _strings(2_000_000, judged, False),
    }


def _right(said: list[list[int]], lengths: Tensor, digits: Tensor) -> list[bool]:
    return [s == d[:n] for s, n, d in zip(said, lengths.tolist(), digits.tolist(), strict=True)]


def _length_first(logits: SequenceLogits) -> list[list[int]]:
    """The wrong way: the length's own maximum, then its digits."""
    lengths = logits.length[:, :-1].argmax(1).tolist()
    return [d[:n] for n, d in zip(lengths, logits.digits[..., :10].argmax(-1).tolist(), strict=True)]


def _arm(name: str, mode: str, device) -> kit.Arm:
    steps, batch, _, _, _, _ = SIZES[mode]

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        net, parts = _Net(*ARMS[name]).to(device=device, memory_format=torch.channels_last).train(), _parts(mode)  # type: ignore[call-overload]
        (x, lengths, digits), draw = parts["train"], torch.Generator().manual_seed(seed + 1)
        optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            i = torch.randint(len(x), (batch,), generator=draw)
            loss = sequence_loss(net(x[i].to(device)), lengths[i].to(device), digits[i].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        x, lengths, digits = parts[part]
        with torch.no_grad():
            pieces = [net(p.to(device)) for p in x.split(200)]
        logits = SequenceLogits(*(torch.cat([p[k].cpu() for p in pieces]) for k in (0, 1)))
        read = read_sequences(logits)
        right = _right([list(r.digits) for r in read], lengths, digits)
        first = _right(_length_first(logits), lengths, digits)
        return {
            "accuracy": 100 * sum(right) / len(right),
            "accuracy_length_first": 100 * sum(first) / len(first),
            "coverage": 100 * coverage_at_accuracy([r.confidence for r in read], right, 0.98).coverage,
        }

    return kit.Arm(name, run, kit.macs(_Net(*ARMS[name]), 1, 1, *SIDES))


def run(ctx) -> dict:
    _, _, _, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    found = kit.compare(ctx, [_arm(name, ctx.mode, ctx.device) for name in ARMS], seeds=seeds, rates=rates)
    deep = "6 convolutions"
    return {
        **found.figures("accuracy"),
        "gain_of_depth": found.effect(deep),
        "gain_of_exact_reading": kit.paired(
            found.metrics["accuracy"][deep], found.metrics["accuracy_length_first"][deep]
        ),
        "coverage_at_98": kit.interval(found.metrics["coverage"][deep]),
        "data_digest": kit.digest(*(t for part in _parts(ctx.mode).values() for t in part)),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="Strings of one to five digits", ylabel="right from end to end (%)")


_EFFECTS = (Effect("gain_of_depth", unit="points", why="accuracy grows with depth (abstract)"),)
PROOF = Proof(
    slug="multi-digit",
    question="At the same cost, does a deeper network read more numbers right from end to end?",
    data="strings of MNIST's digits, bundled; strings of the test are of its test digits",
    baseline="three convolutions instead of six, widths such that a step costs the same, the rate chosen by the same rule",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
