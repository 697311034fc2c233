"""AFF blocks with an adaptive filter, with a static one, and with none, at equal cost on CIFAR-10.

The static filter is a learnt mask for every channel and frequency, the same for all images, as in global filter networks; without a
filter the block is its inverted residual. All three keep the norms and skips of the block; the cheaper two expand more
between the stages, until their multiply-adds (the transforms, which two of them share, not counted) are those of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offprint.models.backbones.affnet import AFFStage, ConvNormAct, InvertedResidual
from offprint.proofs import Effect, Proof, kit

SIDES = (16, 8)  # of the maps of the two stages, for a 32-pixel image
DIMS = (16, 32)
RATIOS = {"none": 3, "static": 3, "adaptive": 2}  # of the inverted residuals between the stages
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 2, 50, (0, 1), (3e-3,)),
    "full": (1500, 1000, 4, 50, (0, 1, 2, 3, 4), (3e-3, 9e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}


class StaticFilter(nn.Module):
    """A learnt mask on the spectrum, the same for every image, plus the map."""

    def __init__(self, dim: int, side: int):
        super().__init__()
        self.mask = nn.Parameter(0.02 * torch.randn(dim, side, side // 2 + 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.view_as_complex(self.mask.contiguous())  # kept in channels-last order with the images
        spectrum = torch.fft.rfft2(x.contiguous(), norm="ortho") * mask
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho") + x


def _network(arm: str) -> nn.Module:
    """Two stages of two blocks; images of 32 pixels."""
    layers: list[nn.Module] = [ConvNormAct(3, 16, 3, 2, activation="silu")]
    for cin, dim, step, side in ((16, DIMS[0], 1, SIDES[0]), (*DIMS, 2, SIDES[1])):
        layers.append(InvertedResidual(cin, dim, step, RATIOS[arm]))
        layers.append(stage := AFFStage(dim, 2, True, "layer_norm_2d", "silu"))
        for block in stage.global_rep[:-1]:
            if arm == "static":
                block.filter = StaticFilter(dim, side)
            elif arm == "none":
                block.filter = nn.Identity()
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIMS[1], 10))
    return kit.fan_in_(net)


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(RATIOS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)

    def arm(name: str) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> float:
            return kit.fit(lambda: _network(name), data, setting, seed=seed, rate=rate, part=part, device=ctx.device)

        return kit.Arm(name, run, kit.macs(_network(name)))

    found = kit.compare(ctx, [arm(name) for name in RATIOS], seeds=seeds, rates=rates)
    return {
        **found.figures("accuracy"),
        "adaptive_over_none": found.effect("adaptive"),
        "adaptive_over_static": found.effect("adaptive", "static"),
        "static_over_none": found.effect("static"),
        "data_digest": data.digest,
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures, figure.subplots(), title="Mask of the spectrum: none, learnt, computed from it (multiply-adds below)"
    )


_GAINS = (
    Effect("adaptive_over_static", unit="points", why="the mask is computed from the image's own spectrum (Sec. 3)"),
    Effect("adaptive_over_none", unit="points", why="the convolutions of the block see three places (Sec. 3)"),
)
PROOF = Proof(
    slug="affnet",
    question="At the same cost, does a block with an adaptive filter of frequencies classify better than with a static one, or none?",
    data="CIFAR-10 (JPEG copies): 1,500 training, 500 validation and 1,000 test images, bundled",
    baseline="the same blocks with a learnt mask, and without a filter, wider between the stages, at the same multiply-adds; same data, optimizer, "
    "epochs and seeds",
    bands={"quick": _GAINS, "full": _GAINS},
    run=run,
    plot=plot,
)
