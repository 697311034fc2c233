"""MobileNetV2's two ideas in small: linear bottlenecks and shortcuts between them, on CIFAR-10; and why a ReLU in few channels loses.

The network is of half width with strides for 32-pixel images. The alternatives cost the same multiply-adds: a ReLU6 behind each
bottleneck, and no shortcuts. (That shortcuts between bottlenecks also beat those between the expanded layers is not measured here.)
Behind the first idea stands Fig. 1: a plane of real data (the first two principal components of MNIST digits; the paper has a
spiral) goes through a random embedding and a ReLU, and the part of its variance that a linear map finds again is compared between
15 and 2 channels, over paired draws of the embedding.

An earlier version trained three seeds on 5,000 images for six epochs at one rate: +4.6 points for linear bottlenecks, +2.0 for
shortcuts; a plane kept 66 % of its variance in 2 channels and 100 % in 15, which stood in bands. This setting (fan-in start, rate
chosen for each arm on validation images, five seeds, fewer images) was declared after those figures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.digits import mnist
from offprint.models.backbones.mobilenet_v2 import InvertedResidual, MobileNetV2
from offprint.proofs import Effect, Proof, kit

# (t, c, n, s) at width 0.5 for 32-pixel images; the last map has 4x4 places
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 1), (6, 64, 2, 2))
FORMS = ("relu", "no shortcut", "linear")
WIDTHS = (2, 3, 5, 15, 30)
DRAWS = 20  # random embeddings
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 1, 50, (0, 1), (4e-3,)),
    "full": (1250, 1000, 5, 50, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}


def _plane() -> Tensor:
    """The first two principal components of the test digits (N, 2), each of variance 1."""
    x = torch.from_numpy(mnist(train=False)[0]).flatten(1).double() / 255
    x = x - x.mean(0)
    plane = x @ torch.linalg.eigh(x.T @ x)[1][:, -2:]
    return plane / plane.std(0)


def kept_through_relu(plane: Tensor, width: int, seed: int) -> float:
    """Part (%) of the variance of ``plane`` that a linear map finds again behind a random embedding and a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    y = F.relu(plane @ torch.randn(2, width, generator=generator, dtype=plane.dtype))
    y = torch.cat([y, torch.ones(len(y), 1, dtype=y.dtype)], 1)
    left = plane - y @ torch.linalg.lstsq(y, plane, driver="gelsd").solution
    return 100 * float(1 - left.square().sum() / plane.square().sum())


def _network(form: str) -> MobileNetV2:
    net = MobileNetV2(num_classes=10, width=0.5, settings=SETTINGS)
    for block in net.features:
        if isinstance(block, InvertedResidual):
            if form == "relu":
                block.conv.append(nn.ReLU6())
            elif form == "no shortcut":
                block.add = False
    kit.fan_in_(net)
    return net


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(1 + kit.steps(len(FORMS), seeds, rates))
    ctx.step("a ReLU in few channels")
    plane = _plane()
    kept = {width: [kept_through_relu(plane, width, seed) for seed in range(DRAWS)] for width in WIDTHS}
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)

    def arm(form: str) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> float:
            return kit.fit(lambda: _network(form), data, setting, seed=seed, rate=rate, part=part, device=ctx.device)

        return kit.Arm(form, run, kit.macs(_network(form)))

    found = kit.compare(ctx, [arm(form) for form in FORMS], seeds=seeds, rates=rates)
    return {
        **found.figures("accuracy"),
        "gain_linear_over_relu": found.effect("linear", "relu"),
        "gain_shortcut_over_none": found.effect("linear", "no shortcut"),
        "kept_in_15_over_2_channels": kit.paired(kept[15], kept[2]),
        **{f"kept_in_{width}_channels": kit.interval(values) for width, values in kept.items()},
        "widths": list(WIDTHS),
        "data_digest": kit.digest(plane, data.digest),
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    widths = figures["widths"]
    left.plot(widths, [figures[f"kept_in_{w}_channels"]["mean"] for w in widths], "o-", color="#d9822b")
    left.set_xlabel("channels of the ReLU")
    left.set_ylabel("variance found again (%)")
    left.set_title("A plane behind a ReLU")
    kit.bars(figures, right, title="Bottlenecks, CIFAR-10")


_GAINS = (
    Effect("gain_linear_over_relu", unit="points", why="Fig. 6a: about a point on ImageNet"),
    Effect("gain_shortcut_over_none", unit="points", why="Fig. 6b"),
    Effect("kept_in_15_over_2_channels", unit="points", why="Fig. 1: 2 or 3 channels collapse the plane, 15 keep it"),
)
PROOF = Proof(
    slug="mobilenet-v2",
    question="Do bottlenecks without activation, and shortcuts between them, classify better than their alternatives?",
    data="CIFAR-10 (JPEG copies): 1,250 training, 500 validation and 1,000 test images, and 2,000 MNIST digits; both bundled",
    baseline="the same network with a ReLU6 behind its bottlenecks, and without shortcuts; same data, optimizer, epochs and seeds",
    bands={"quick": _GAINS, "full": _GAINS},
    run=run,
    plot=plot,
)
