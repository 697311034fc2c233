"""What the halo is for: attention within blocks alone against halos of one and two pixels, and 3x3 convolutions, on CIFAR-10."""

from __future__ import annotations

import torch
from torch import nn

from offprint.models.backbones.halonet import HaloAttention, HaloNet
from offprint.proofs import Band, Proof
from offprint.proofs._cifar import fit, macs, tensors

BLOCK, WIDTH = 4, 16
NETS = {"halo 0": 0, "halo 1": 1, "halo 2": 2, "3x3 convolution": None}


def _network(name: str) -> HaloNet:
    """Three bottlenecks on maps of 16 and 8 of a 32-pixel image; only their middle layer differs."""
    halo = NETS[name]
    blocks = ("cc", "c") if halo is None else ("aa", "a")
    net = HaloNet(
        3,
        10,
        blocks,
        (WIDTH, 2 * WIDTH),
        (2 * WIDTH, 4 * WIDTH),
        BLOCK,
        halo or 0,
        2,
        stem_width=WIDTH,
        stem_pool=False,
    )
    net.stem.conv1.conv = nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False)  # for 32-pixel images, instead of 7x7
    nn.init.kaiming_normal_(net.stem.conv1.conv.weight, mode="fan_out", nonlinearity="relu")
    net.minimum = 16
    return net


def _train(name: str, seed: int, count: int, epochs: int) -> float:
    torch.manual_seed(seed)
    return fit(_network(name), count=count, epochs=epochs)


def _beyond(halo: int) -> float:
    """How many pixels beyond its border one block of queries looks at, on a real image, by the gradient of its output."""
    torch.manual_seed(0)
    layer = HaloAttention(3, 8, num_heads=2, block_size=BLOCK, halo_size=halo).eval()
    x = tensors(False, 1000)[0][:1].clone().requires_grad_()
    layer(x)[..., 12:16, 16:20].sum().backward()
    seen = x.grad.abs().amax((0, 1)) > 0
    return ((int(seen.any(0).sum()) - BLOCK) / 2 + (int(seen.any(1).sum()) - BLOCK) / 2) / 2


def run(ctx) -> dict:
    count, epochs, seeds, names = (
        (500, 5, (0,), ("halo 0", "halo 1")) if ctx.quick else (2500, 6, (0, 1, 2), tuple(NETS))
    )
    ctx.total(len(seeds) * len(names))
    table: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for seed in seeds:
            ctx.step(f"{name}, seed {seed}")
            table[name].append(ctx.part(f"{name}-{seed}", lambda n=name, s=seed: _train(n, s, count, epochs)))
    means = {name: sum(v) / len(v) for name, v in table.items()}
    widest = "halo 1" if ctx.quick else "halo 2"
    return {
        **{f"accuracy_{name.replace(' ', '_')}": value for name, value in means.items()},
        "gain_of_halo": means[widest] - means["halo 0"],
        "pixels_beyond_halo_0": _beyond(0),
        "pixels_beyond_halo_2": _beyond(2),
        "accuracies": table,
        "macs": {name: macs(_network(name)) for name in names},
    }


def plot(figures: dict, figure) -> None:
    axis = figure.subplots()
    table = figures["accuracies"]
    for i, (name, values) in enumerate(table.items()):
        axis.bar(i, sum(values) / len(values), color="#d9822b" if name in ("halo 1", "halo 2") else "#b9c6d6")
        axis.plot([i] * len(values), values, "k.", markersize=5)
    axis.set_xticks(range(len(table)), [f"{n}\n{figures['macs'][n] / 1e6:.1f} M" for n in table])
    axis.set_ylabel("test accuracy (%)")
    axis.set_title("Blocks of 4x4 queries and their halo (multiply-adds below)")


_STRUCTURE = (
    Band("pixels_beyond_halo_0", 0, 0, "pixels", "without a halo a block sees itself"),
    Band("pixels_beyond_halo_2", 2, 2, "pixels", "a halo of two pixels"),
)
PROOF = Proof(
    slug="halonet",
    question="Does a halo around the blocks of local attention help, against attention within the blocks alone?",
    data="CIFAR-10 (JPEG copies): 2,500 training and 1,000 test images, bundled",
    baseline="the same network with halo 0, and with 3x3 convolutions; same data, optimizer and epochs",
    bands={
        "quick": (
            Band("accuracy_halo_1", 15, 100, "%", "above the 10 % of chance after five short epochs"),
            *_STRUCTURE,
        ),
        "full": (
            Band(
                "gain_of_halo", 0, 100, "points", "blocks that cannot look at each other lose what lies across a border"
            ),
            Band("accuracy_halo_2", 30, 100, "%"),
            *_STRUCTURE,
        ),
    },
    run=run,
    plot=plot,
)
