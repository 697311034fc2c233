"""What the halo is for: attention within blocks of 4x4 queries, and with a halo of two pixels, at equal cost on CIFAR-10.

Two bottlenecks with local attention on maps of 16 and 8 of a 32-pixel image. The halo makes each block look at 64 instead of 16
keys; the inner width of the network without it is larger, until
its multiply-adds are the same.

An earlier version compared halos of 0, 1 and 2 and 3x3 convolutions at one width (the widest halo cost 1.41 times as much) over
three seeds at one rate: +3.5 points for a halo of two pixels. It also judged which pixels a block sees, which is a test. This
setting (cost matched, a bottleneck less, rate chosen for each arm on validation images, five seeds) was declared after those figures.
"""

from __future__ import annotations

from torch import nn

from offprint.models.backbones.halonet import HaloNet
from offprint.proofs import Effect, Proof, kit

BLOCK = 4
ARMS = {"halo 0": (0, 20), "halo 2": (2, 16)}  # (halo, inner width)
WIDTH = 16
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 1, 50, (0, 1), (3e-3,)),
    "full": (1200, 1000, 5, 50, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}


def _network(halo: int, mid: int) -> HaloNet:
    """Only the middle layer of each bottleneck is attention; the stem is of 3x3 for 32-pixel images."""
    net = HaloNet(
        3, 10, ("a", "a"), (mid, 2 * mid), (2 * WIDTH, 4 * WIDTH), BLOCK, halo, 2, stem_width=WIDTH, stem_pool=False
    )
    net.stem.conv1.conv = nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False)
    net.minimum = 16
    kit.fan_in_(net)
    return net


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)

    def arm(name: str, form: tuple[int, int]) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> float:
            return kit.fit(lambda: _network(*form), data, setting, seed=seed, rate=rate, part=part, device=ctx.device)

        return kit.Arm(name, run, kit.macs(_network(*form)))

    found = kit.compare(ctx, [arm(*item) for item in ARMS.items()], seeds=seeds, rates=rates)
    return {**found.figures("accuracy"), "gain_of_halo": found.effect("halo 2"), "data_digest": data.digest}


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="Blocks of 4x4 queries and their halo (multiply-adds below)")


_GAIN = (
    Effect("gain_of_halo", unit="points", why="blocks that cannot look at each other lose what lies across a border"),
)
PROOF = Proof(
    slug="halonet",
    question="At equal cost, does a halo around the blocks of local attention help, against attention within the blocks alone?",
    data="CIFAR-10 (JPEG copies): 1,200 training, 500 validation and 1,000 test images, bundled",
    baseline="the same network with halo 0, widened to the same multiply-adds; same data, optimizer, epochs and seeds",
    bands={"quick": _GAIN, "full": _GAIN},
    run=run,
    plot=plot,
)
