"""FcaFormer with and without its cross tokens on CIFAR-10.

A small hybrid of the paper's form (two ConvNeXt stages, two attention stages), trained at 64 pixels so that the third stage has
tokens to merge: maps of 16, 8, 4 and 2 a side, six blocks in the third stage. The plain arm has no cross tokens and no convolution that
merges them; all else is the same, token enhancement included, and so is the cost within 5 %. Layer scales start at 0.1, since the paper's
1e-6 takes longer to leave than these runs last.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from offprint.models.backbones.fcaformer import FcaFormer
from offprint.proofs import Effect, Proof, kit

SIDE = 64
ARMS = {"plain": 0, "cross tokens": 12}  # how many earlier blocks are attended to
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 1, 50, (0, 1), (2e-3,)),
    "full": (1000, 1000, 5, 50, (0, 1, 2, 3, 4), (1e-3, 3e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (5e-4, 1e-3, 3e-3)),
}


class _Enlarged(FcaFormer):
    """The network on pictures enlarged to its size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, (SIDE, SIDE), mode="bilinear"))


def _network(earlier: int) -> FcaFormer:
    net = _Enlarged(SIDE, 3, 10, (16, 32, 48, 64), (1, 1, 6, 2), (3, 4), layer_scale_init_value=0.1, cab_max_d=earlier)
    return kit.fan_in_(net)  # type: ignore[return-value]


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)

    def arm(name: str, earlier: int) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> float:
            return kit.fit(lambda: _network(earlier), data, setting, seed=seed, rate=rate, part=part, device=ctx.device)

        return kit.Arm(name, run, kit.macs(_network(earlier)))

    found = kit.compare(ctx, [arm(*item) for item in ARMS.items()], seeds=seeds, rates=rates)
    return {
        **found.figures("accuracy"),
        "gain_of_cross_attention": found.effect("cross tokens"),
        "data_digest": data.digest,
    }


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="a hybrid without and with cross tokens (multiply-adds below)")


_GAIN = (
    Effect(
        "gain_of_cross_attention",
        unit="points",
        why="the repository's table: DeiT-T 72.2, with forward cross attention 74.3 %",
    ),
)
PROOF = Proof(
    slug="fcaformer",
    question="Does attending to merged tokens of earlier blocks classify better than attending to a block's own tokens alone?",
    data="CIFAR-10 (JPEG copies): 1,000 training, 500 validation and 1,000 test images, bundled, enlarged to 64 pixels",
    baseline="the same hybrid without cross tokens; same data, optimizer, epochs and seeds, the same cost within 5 %",
    bands={"quick": _GAIN, "full": _GAIN},
    run=run,
    plot=plot,
)
