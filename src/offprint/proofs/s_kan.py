"""S-KAN against a plain KAN of B-splines and an MLP on seven functions, at equal parameters.

The paper's seven functions could not be seen; these are ours: four of one variable (a Bessel function, a kink, a jump, a chirp), three of
two (the usual example of KANs, a product, a narrow bump). All families but the wavelets have eight numbers for every pair of an input and an
output here, so that S-KAN's network has after pruning as many parameters as the plain one, or fewer where wavelets (three numbers) were
chosen; the MLP has two hidden layers, as wide as the parameters allow. While S-KAN still mixes, it costs several times as much to
train; rows, steps and the choice of the rate are the same for all. The score is -log10 of the test error's root mean square in units of
the function's deviation: digits of accuracy, averaged over the functions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from offprint.models.backbones.s_kan import SKAN, fit_function
from offprint.proofs import Effect, Proof, kit

FUNCTIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # variables, function on rows in [-1, 1]
    "bessel": (1, lambda x: torch.special.bessel_j0(20 * x[:, 0])),
    "kink": (1, lambda x: (x[:, 0] - 0.2).abs()),
    "jump": (1, lambda x: (x[:, 0] > 0.1).to(x)),
    "chirp": (1, lambda x: torch.sin(5 * math.pi * x[:, 0] ** 2)),
    "exponential": (2, lambda x: torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2)),
    "product": (2, lambda x: x[:, 0] * x[:, 1]),
    "bump": (2, lambda x: 1 / (1 + 10 * x.square().sum(1))),
}
OPTIONS = {"bspline": {"grid_size": 4}, "cheby": {"degree": 7}, "rbf": {"num_grids": 8}}
MLP_WIDTH = {1: 7, 2: 9}
SIZES = {  # mode: (training rows, test rows, steps, judged seeds, rates)
    "quick": (64, 500, 12, (0, 1), (1e-2,)),
    "full": (300, 2000, 300, (0, 1, 2, 3, 4), (1e-2, 3e-2)),
    "gpu": (1000, 10000, 2000, (0, 1, 2, 3, 4), (3e-3, 1e-2, 3e-2)),
}


def _mlp(inputs: int) -> nn.Module:
    width = MLP_WIDTH[inputs]
    return nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
    )  # fmt: skip


def _kan(inputs: int) -> nn.Module:
    return SKAN([inputs, 5, 1], ["bspline"], {"bspline": OPTIONS["bspline"]}, chosen=[[0] * inputs, [0] * 5])


def _s_kan(inputs: int) -> nn.Module:
    return SKAN([inputs, 5, 1], options=OPTIONS)


ARMS: dict[str, Callable[[int], nn.Module]] = {"MLP": _mlp, "KAN": _kan, "S-KAN": _s_kan}


def _parameters(name: str) -> int:
    """Of all seven networks; of S-KAN those of its largest choice."""
    build = _kan if name == "S-KAN" else ARMS[name]
    return sum(p.numel() for inputs, _ in FUNCTIONS.values() for p in build(inputs).parameters())


def _rows(seed: int, count: int, inputs: int) -> Tensor:
    return 2 * torch.rand(count, inputs, generator=torch.Generator().manual_seed(seed)) - 1


def run(ctx) -> dict:
    count, test, steps, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))

    def arm(name: str) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> dict[str, float]:
            digits, left = {}, 0
            for place, (function, (inputs, f)) in enumerate(FUNCTIONS.items()):
                torch.manual_seed(100 * seed + place)
                x = _rows(1000 * seed + place, count, inputs)
                found = fit_function(x, f(x), ARMS[name](inputs), steps=steps, lr=rate)
                z = _rows((7 if part == "val" else 11) * 10**6 + place, test, inputs)
                error = (found(z)[:, 0] - f(z)).square().mean().sqrt() / f(z).std()
                digits[function], left = -math.log10(float(error)), left + found.parameters
            return {"mean": statistics.fmean(digits.values()), **digits, "parameters": float(left)}

        return kit.Arm(name, run, _parameters(name))

    found = kit.compare(ctx, [arm(name) for name in ARMS], seeds=seeds, rates=rates)
    table = {
        f"{function}_{kit.slug(name)}": kit.interval(found.metrics[function][name])
        for function in FUNCTIONS
        for name in ARMS
    }
    best = {
        name: statistics.fmean(
            sum(found.metrics[f][name][i] == max(found.metrics[f][a][i] for a in ARMS) for f in FUNCTIONS)
            for i in range(len(seeds))
        )
        for name in ARMS
    }
    return {
        **found.figures("digits"),
        **table,
        **{f"best_of_seven_{kit.slug(name)}": value for name, value in best.items()},
        **{f"parameters_{kit.slug(n)}": kit.interval(v) for n, v in found.metrics["parameters"].items()},
        "gain_over_mlp": found.effect("S-KAN", "MLP"),
        "gain_over_kan": found.effect("S-KAN", "KAN"),
        "data_digest": kit.digest(*(f(_rows(11 * 10**6 + i, test, n)) for i, (n, f) in enumerate(FUNCTIONS.values()))),
    }


def plot(figures: dict, figure) -> None:
    axis = figure.subplots()
    for i, name in enumerate(ARMS):
        values = [figures[f"{function}_{kit.slug(name)}"]["mean"] for function in FUNCTIONS]
        axis.bar([place + (i - 1) * 0.27 for place in range(len(values))], values, 0.25, label=name)
    axis.set_xticks(range(len(FUNCTIONS)), list(FUNCTIONS), rotation=20)
    axis.set_ylabel("digits of accuracy: -log10 of the relative error")
    axis.set_title("Seven functions at equal parameters")
    axis.legend()


_GAINS = (
    Effect("gain_over_mlp", unit="digits", why="clearly better than MLPs of as many parameters (abstract)"),
    Effect("gain_over_kan", unit="digits", why="the best of the baselines on seven functions (abstract)"),
)
PROOF = Proof(
    slug="s-kan",
    question="At equal parameters, does a KAN whose nodes choose their functions fit seven functions better than a plain KAN and an MLP?",
    data="seven functions on 300 random rows in [-1, 1]; 2,000 other rows for the test",
    baseline="a KAN of B-splines of the same widths, and an MLP of as many parameters; same rows, steps, optimizer and seeds",
    bands={"quick": _GAINS, "full": _GAINS},
    run=run,
    plot=plot,
)
