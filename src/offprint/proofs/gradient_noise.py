"""Deep perceptrons from poor and good starts on real digits, with and without gradient noise.

All runs of a setting train side by side as one batched network (a leading axis of runs): each has its own weights, batches and
noise, exactly as if it were trained alone.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.digits import mnist
from offprint.methods.training.gradient_noise import DeepMLP, noise_std
from offprint.proofs import Band, Proof


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits shrunk to 14x14 by averaging 2x2 cells, in [0, 1]."""
    out: list[Tensor] = []
    for train in (True, False):
        images, labels = mnist(train)
        small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) / 255
        out += [torch.from_numpy(small).flatten(1), torch.from_numpy(labels)]
    return tuple(out)  # type: ignore[return-value]


def train_side_by_side(
    inits: list[str],
    noisy: list[bool],
    seeds: list[int],
    *,
    depth: int,
    updates: int,
    lr: float,
    clip: float | None,
    eta: float = 0.01,
    batch: int = 32,
    evaluations: int = 10,
    data=None,
    width: int = 50,
) -> list[float]:
    """Best test accuracy (%) of each run; run i starts from ``inits[i]``, gets noise if ``noisy[i]``, and has ``seeds[i]``."""  # fmt: skip
    x, y, tx, ty = data or _digits()
    runs = len(inits)
    nets = []
    for init, seed in zip(inits, seeds, strict=True):
        torch.manual_seed(seed)
        nets.append(DeepMLP(x.shape[1], depth, width, 10, init))
    layers = [[*net.layers, net.head] for net in nets]
    weights = [torch.stack([ls[i].weight.detach().t() for ls in layers]).requires_grad_() for i in range(depth + 1)]
    biases = [torch.stack([ls[i].bias.detach()[None] for ls in layers]).requires_grad_() for i in range(depth + 1)]
    parameters = [*weights, *biases]
    on = torch.tensor(noisy, dtype=torch.float32)[:, None, None]
    draws = [torch.Generator().manual_seed(1000 + s) for s in seeds]
    noise = torch.Generator().manual_seed(2000 + sum(seeds))
    order = [torch.randint(len(x), (updates, batch), generator=g) for g in draws]

    def forward(h: Tensor) -> Tensor:
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.baddbmm(b, h, w).relu_()
        return torch.baddbmm(biases[-1], h, weights[-1])

    best = torch.zeros(runs)
    for t in range(updates):
        index = torch.stack([o[t] for o in order])
        logits = forward(x[index])
        loss = F.cross_entropy(logits.flatten(0, 1), y[index].flatten(), reduction="sum") / batch
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            if clip is not None:
                norm = torch.stack([g.square().sum((1, 2)) for g in grads]).sum(0).sqrt()
                factor = (clip / (norm + 1e-6)).clamp(max=1.0)[:, None, None]
                grads = [g * factor for g in grads]
            std = noise_std(t, eta)
            for p, g in zip(parameters, grads, strict=True):
                z = torch.randn(p.shape, generator=noise)
                p.sub_(g.addcmul_(z, on, value=std) if clip is not None else g + std * on * z, alpha=lr)
            if (t + 1) % (updates // evaluations) == 0:
                hit = (forward(tx.expand(runs, -1, -1)).argmax(-1) == ty).float().mean(1)
                best = torch.maximum(best, hit.nan_to_num())
    return [100 * v for v in best.tolist()]


def _setting(init: str, depth: int, updates: int, lr: float, clip: float | None, seeds: int) -> dict[str, list[float]]:
    noisy = [True] * seeds + [False] * seeds
    found = train_side_by_side(
        [init] * (2 * seeds), noisy, [*range(seeds)] * 2, depth=depth, updates=updates, lr=lr, clip=clip
    )
    return {"with": found[:seeds], "without": found[seeds:]}


QUICK = (("zero, 5 layers", "zero", 5, 2500, 0.1, 10.0, 2), ("he, 5 layers", "he", 5, 2500, 0.1, 10.0, 2))
FULL = (
    ("simple, 20 layers, lr 0.1", "simple", 20, 12_000, 0.1, 10.0, 4),
    ("simple, 20 layers, lr 0.01", "simple", 20, 12_000, 0.01, 10.0, 4),
    ("zero, 5 layers, lr 0.1", "zero", 5, 8_000, 0.1, 10.0, 4),
    ("zero, 5 layers, lr 0.01", "zero", 5, 8_000, 0.01, 10.0, 4),
    ("he, 20 layers, lr 0.1", "he", 20, 6_000, 0.1, 10.0, 4),
)


def run(ctx) -> dict:
    settings = QUICK if ctx.quick else FULL
    ctx.total(len(settings))
    table = {}
    for label, *arguments in settings:
        ctx.step(label)
        table[label] = ctx.part(label, lambda a=arguments: _setting(*a))
    gains = {k: statistics.fmean(v["with"]) - statistics.fmean(v["without"]) for k, v in table.items()}
    first = {name: next((k for k in table if k.startswith(name)), None) for name in ("simple", "zero", "he")}
    figures: dict = {"table": table, "gains": gains}
    for name, label in first.items():
        if label is not None:
            figures[f"gain_{name}_init"] = gains[label]
            figures[f"accuracy_{name}_with"] = statistics.fmean(table[label]["with"])
            figures[f"accuracy_{name}_without"] = statistics.fmean(table[label]["without"])
    return figures


def plot(figures: dict, figure) -> None:
    axis = figure.subplots()
    for i, rows in enumerate(figures["table"].values()):
        for side, key, colour in ((-0.2, "without", "#b9c6d6"), (0.2, "with", "#d9822b")):
            axis.bar(i + side, statistics.fmean(rows[key]), 0.4, color=colour, label=f"{key} noise" if i == 0 else None)
            axis.plot([i + side] * len(rows[key]), rows[key], "k.", markersize=4)
    axis.set_xticks(range(len(figures["table"])), list(figures["table"]), rotation=12, fontsize=8)
    axis.set_ylabel("best test accuracy (%)")
    axis.legend()


PROOF = Proof(
    slug="gradient-noise",
    question="Does gradient noise let deep perceptrons leave a poor start, and does it leave a good start alone?",
    data="MNIST: 6,000 training and 2,000 test digits, bundled, averaged to 14x14",
    baseline="the same network, start, batches and clipping without noise",
    bands={
        "quick": (
            Band("gain_zero_init", 30, 100, "points", "94.5 against 11.4 % in the paper's Table 1, experiment 6"),
            Band("gain_he_init", -3, 3, "points", "97.2 against 97.4 % in experiment 5"),
        ),
        "full": (
            Band("gain_simple_init", 10, 100, "points", "a poor start gains: Table 1, experiments 1 to 3"),
            Band("gain_zero_init", 30, 100, "points", "Table 1, experiment 6"),
            Band("gain_he_init", -3, 3, "points", "a good start gains nothing: Table 1, experiment 5"),
        ),
    },
    run=run,
    plot=plot,
)
