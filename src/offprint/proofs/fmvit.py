"""The rebuilt FMViT with and without frequency mixing at the same cost, on CIFAR-10; and its two forms, timed.

Mixing: a small network of CFBs and FMBs, against one of CFBs alone, so that every block carries high frequencies and none attends.
Widths and cost are the same; an FMB costs less than a CFB, so that the network with mixing has one block more. Forms: each trained network with mixing is deployed, and eight pictures are timed
in both forms on this machine (best of several passes); predictions on the test images must agree, or the proof stops.

The setting was declared before the first run. The networks are ours, in the paper's spirit: its own code was never released.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbones.fmvit import FMViT
from offprint.models.deploy import deploy
from offprint.proofs import Effect, Proof, kit

# letters and widths of the stages, whose maps are of 8, 4 and 2 places on a side
ARMS = {
    "convolutions only": (("c", "cc", "cc"), (32, 64, 96)),
    "frequency mixing": (("c", "cf", "cff"), (32, 64, 96)),
}
POOLS = (2, 1, 1)
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 1, 50, (0, 1), (3e-3,)),
    "full": (800, 1000, 5, 50, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}
PASSES = {"quick": 3, "full": 20, "gpu": 50}


def _network(arm: str) -> FMViT:
    blocks, dims = ARMS[arm]
    net = FMViT(3, 10, blocks, dims, POOLS)
    kit.fan_in_(net)
    return net


def _milliseconds(net: nn.Module, images: Tensor, passes: int) -> float:
    best = float("inf")
    for _ in range(passes):
        began = time.perf_counter()
        float(net(images).sum())
        best = min(best, time.perf_counter() - began)
    return 1000 * best


def _forms(net: nn.Module, test: tuple[Tensor, Tensor], passes: int) -> list[float]:
    """Milliseconds of eight pictures as trained and deployed."""
    images = test[0].to(next(net.parameters()).device)
    with torch.inference_mode():
        merged = deploy(net, images[:8])
        if kit.accuracy(net, test) != kit.accuracy(merged, test):
            raise OffprintError(
                "the deployed network predicts otherwise than the trained one; nothing more is measured"
            )
        return [_milliseconds(form, images[:8], passes) for form in (net, merged)]


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)
    part = data.to(ctx.device).test

    def arm(name: str) -> kit.Arm:
        def run(seed: int, rate: float, which: str) -> dict[str, float]:
            times: list[float] = []
            accuracy = kit.fit(
                partial(_network, name), data, setting, seed=seed, rate=rate, part=which, device=ctx.device,
                after=lambda net: times.extend(_forms(net, part, PASSES[ctx.mode])),
            )  # fmt: skip
            return {"accuracy": accuracy, "trained": times[0], "deployed": times[1]}

        return kit.Arm(name, run, kit.macs(_network(name)))

    found = kit.compare(ctx, [arm(name) for name in ARMS], seeds=seeds, rates=rates)
    both = {form: found.metrics[form]["frequency mixing"] for form in ("trained", "deployed")}
    return {
        **found.figures("accuracy"),
        "gain_of_mixing": found.effect("frequency mixing"),
        "time_of_deployed": kit.paired(both["deployed"], both["trained"]),
        "milliseconds": both,
        "data_digest": data.digest,
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="Blocks at equal cost")
    kit.bars({"arms": figures["milliseconds"]}, right, title="Eight pictures", ylabel="milliseconds")


_EFFECTS = (
    Effect("gain_of_mixing", unit="points", why="the title: mixing blocks of several frequencies serve better"),
    Effect("time_of_deployed", side="below", unit="ms", why="the abstract: branches are merged for speed"),
)
PROOF = Proof(
    slug="fmvit",
    question="At the same cost, do mixing blocks classify better than convolution blocks, and is the deployed form faster?",
    data="CIFAR-10 (JPEG copies): 800 training, 500 validation and 1,000 test images, bundled",
    baseline="the same network with convolution blocks only, at the same cost; the deployed network as trained",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
