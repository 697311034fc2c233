"""A fully connected network on digits that lie anywhere, alone and guided by a small convolutional network, trained or not.

MNIST digits of 7 pixels are set at random places of pictures of 13 pixels. The target has four hidden layers of 256 with BatchNorm; the guide
three convolutions of 16 maps and a pool. It is either as it was drawn, or has learnt the task first. A fourth arm is guided for the first fifth
of the steps only. All arms see the same batches for the same number of steps from the same weights, with Adam at a rate chosen for each by
the same rule; the guide's forward pass comes on top, as in the paper, so costs are of the target, which are equal.

The paper reports ImageNet and hours on four GPUs; trials at this scale gave about two points with a trained guide and nothing clear
with an untrained one. After one quick run with guides of 32 maps (two seeds, 10 steps: -1.1 points with a trained guide, -1.6 with an untrained
one, -1.2 with early stop) the guide was narrowed to 16 maps and the full run cut from 300 to 250 steps, for time alone.
"""

from __future__ import annotations

import copy
import statistics
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.methods.training.guidance import Guidance
from offprint.proofs import Effect, Proof, kit

SIDE, DIGIT, BATCH = 13, 7, 128
ARMS = {
    "alone": None,
    "untrained guide": (False, 0),
    "trained guide": (True, 0),
    "trained guide, early": (True, 5),
}  # trained, share of the steps
SIZES = {  # mode: pictures to train on, steps of the guide and of the target, seeds, rates
    "quick": (300, 20, 10, (0, 1), (1e-3,)),
    "full": (800, 250, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3)),
    "gpu": (5000, 2000, 3000, tuple(range(10)), (3e-4, 1e-3, 3e-3)),
}


@cache
def _pictures(count: int) -> kit.Images:
    whole, draw = kit.digits(count, 500, 1000), torch.Generator().manual_seed(0)

    def paste(images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images[:, :, 2:30, 2:30], DIGIT)
        out = torch.full((len(small), 1, SIDE, SIDE), float(small.min()))
        for picture, digit in zip(out, small, strict=True):
            top, left = torch.randint(0, SIDE - DIGIT + 1, (2,), generator=draw).tolist()
            picture[:, top : top + DIGIT, left : left + DIGIT] = digit
        return out

    return kit.Images(*((paste(x), y) for x, y in (whole.train, whole.val, whole.test)))


def _target() -> nn.Sequential:
    widths, layers = [SIDE * SIDE, 256, 256, 256, 256], [nn.Flatten()]
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def _guide() -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (1, 16, 16):
        layers += [nn.Conv2d(a, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def _learn(
    net: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float, seed: int, guided: Guidance | None = None
) -> list[float]:
    """The likeness of the layers at each step, where there is a guide."""
    x, y = data
    draw, likeness = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        index = torch.randint(len(x), (min(BATCH, len(x)),), generator=draw).to(x.device)
        loss = F.cross_entropy(net.train()(x[index]), y[index])
        if guided is not None:
            loss = loss + guided(x[index])
            likeness.append(statistics.fmean(guided.similarity.values()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return likeness


def run(ctx) -> dict:
    count, first, steps, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data = _pictures(count).to(ctx.device)

    @cache
    def guide(seed: int, trained: bool) -> nn.Module:
        torch.manual_seed(1000 + seed)
        net = _guide().to(ctx.device)
        if trained:
            _learn(net, data.train, first, 3e-3, 2000 + seed)
        return net

    def arm(name: str, how: tuple[bool, int] | None) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> dict[str, float]:
            torch.manual_seed(seed)
            net, guided = _target().to(ctx.device), None
            if how is not None:
                guided = Guidance(net, copy.deepcopy(guide(seed, how[0])), until=steps // how[1] if how[1] else 0)
            likeness = _learn(net, data.train, steps, rate, 3000 + seed, guided)
            if guided is not None:
                guided.close()
            score = kit.accuracy(net, data.val if part == "val" else data.test)
            return {"accuracy": score, "likeness_gained": likeness[-1] - likeness[0] if likeness else 0.0}

        return kit.Arm(name, run)

    found = kit.compare(ctx, [arm(*item) for item in ARMS.items()], seeds=seeds, rates=rates)
    gains = {f"gain_{kit.slug(name)}": found.effect(name) for name in list(ARMS)[1:]}
    closer = {
        f"likeness_{kit.slug(n)}": kit.interval(v)
        for n, v in found.metrics["likeness_gained"].items()
        if ARMS[n] and not ARMS[n][1]
    }
    return {**found.figures("accuracy"), **gains, **closer, "data_digest": data.digest}


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="digits anywhere: a fully connected network and its guides")


_EFFECTS = (
    Effect("gain_trained_guide", unit="points", why="a trained guide helps a fully connected network (main table)"),
    Effect("gain_untrained_guide", unit="points", why="an untrained guide helps it too (main table)"),
    Effect("gain_trained_guide_early", unit="points", why="guidance as initialisation keeps the effect (ablation)"),
)
PROOF = Proof(
    slug="guidance",
    question="Does a fully connected network learn digits at random places better with a convolutional guide, trained, untrained, or for a while?",
    data="MNIST shrunk to 7 pixels at random places of 13: 800 to train on, 500 held out, 1,000 to test, bundled",
    baseline="the same network alone: same weights, batches, steps, optimizer and rule for the rate",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
