"""A few large kernels against more layers of small ones on CIFAR-10: how far they see, and how well they classify.

Two stages on maps of 16 and 8 of a 32-pixel image. One arm has two blocks a stage with 13x13 Dilated Reparam Blocks; one has the
same with 13x13 kernels alone, which is what the first becomes once merged; the baseline has 3x3 kernels and as many more blocks as
the large kernels cost. Cost is that of the merged networks: branches cost training time and nothing afterwards.

How far a network sees is measured after training: the mean distance, over the pixels of the image, from the centre to what moves
the middle of the last map, weighted by the size of the gradient. Merging is timed on the test images in evaluation mode.

The authors' code on scikit-learn's digits, run for the build sheet of this paper, showed no gain in accuracy for large kernels there
(99.4 % with small, 96.4 % with large ones after fewer epochs). This setting was declared before its own first full run.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from offprint.models.backbones.unireplknet import DilatedReparamBlock, UniRepLKNet, UniRepLKNetBlock
from offprint.models.deploy import deploy
from offprint.proofs import Effect, Proof, kit

WIDTHS, KERNEL = (20, 40), 13
ARMS = {  # name: (blocks a stage, kernel, dilated branches)
    "small, deeper": ((4, 3), 3, False),
    "large alone": ((2, 2), KERNEL, False),
    "large, dilated branches": ((2, 2), KERNEL, True),
}
SIZES = {  # mode: (training images, test images, epochs, judged seeds, rates)
    "quick": (200, 250, 1, (0, 1), (3e-3,)),
    "full": (1000, 1000, 5, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (45000, 10000, 40, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}


def _network(depths: tuple[int, int], kernel: int, branches: bool) -> UniRepLKNet:
    """Layer scale 1, and a stem that halves the sides once: the images are small and the training short."""
    net = UniRepLKNet(3, 10, depths, WIDTHS, (kernel, kernel), layer_scale_init_value=1.0)
    net.minimum = 16
    net.downsample_layers[0][3].stride = (1, 1)
    for block in net.modules():
        if isinstance(block, UniRepLKNetBlock) and kernel == KERNEL and not branches:
            block.dwconv = DilatedReparamBlock(block.dwconv.lk_origin.in_channels, kernel, branches=())
    kit.fan_in_(net)
    return net


def _cost(depths: tuple[int, int], kernel: int, branches: bool) -> int:
    """Multiply-adds of the merged network."""
    return kit.macs(deploy(_network(depths, kernel, branches).eval(), torch.zeros(1, 3, 32, 32)))


def _reach(net: UniRepLKNet, images: Tensor) -> float:
    """Mean distance in pixels from the centre, weighted by the gradient that the middle of the last map sends there."""
    images = images.clone().requires_grad_()
    maps = net.forward_features(images)
    height, width = maps.shape[-2:]
    maps[..., (height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1].sum().backward()
    assert images.grad is not None
    weight = images.grad.abs().sum((0, 1))
    at = torch.arange(weight.shape[0], device=weight.device) - (weight.shape[0] - 1) / 2
    distance = torch.hypot(at[:, None], at[None])
    return float((distance * weight).sum() / weight.sum())


@torch.no_grad()
def _merging(net: nn.Module, images: Tensor) -> tuple[float, float]:
    """Percent of the time saved by merging, the best of seven passes of each in turns; and the largest relative difference."""
    merged, best = deploy(net, images[:2]), {}
    for name, form in (("before", net), ("after", merged)) * 7:
        began = time.perf_counter()
        out = form(images)
        float(out.flatten()[0])  # waits for an accelerator
        best[name] = min(best.get(name, float("inf")), time.perf_counter() - began)
    off = float((merged(images) - net(images)).abs().max() / net(images).abs().max())
    return 100 * (1 - best["after"] / best["before"]), off


def run(ctx) -> dict:
    count, test, epochs, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, 50)
    shown = data.test[0][:100]

    def arm(name: str, form: tuple[tuple[int, int], int, bool]) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> float | dict[str, float]:
            found: dict[str, float] = {}

            def after(net: nn.Module) -> None:
                found["reach"] = _reach(net, shown.to(ctx.device))
                found["saved"], found["merged_difference"] = _merging(net, shown.to(ctx.device))

            score = kit.fit(
                lambda: _network(*form), data, setting, seed=seed, rate=rate, part=part, device=ctx.device, after=after
            )
            return score if part == "val" else {"accuracy": score, **found}

        return kit.Arm(name, run, _cost(*form))

    found = kit.compare(ctx, [arm(*item) for item in ARMS.items()], seeds=seeds, rates=rates)
    large = "large, dilated branches"
    saved = found.metrics["saved"][large]
    return {
        **found.figures("accuracy"),
        **{f"reach_{kit.slug(name)}": kit.interval(values) for name, values in found.metrics["reach"].items()},
        "reach": found.metrics["reach"],
        "receptive_field_of_large_kernels": found.effect(large, metric="reach"),
        "gain_of_large_kernels": found.effect(large),
        "gain_of_dilated_branches": found.effect(large, "large alone"),
        "time_saved_by_merging": kit.paired(saved, [0.0] * len(saved)),
        "merged_difference": max(found.metrics["merged_difference"][large]),
        "data_digest": data.digest,
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="Multiply-adds of the merged networks below")
    for i, (_, values) in enumerate(figures["reach"].items()):
        right.bar(i, sum(values) / len(values), color="#b9c6d6" if i == 0 else "#d9822b")
        right.plot([i] * len(values), values, "k.", markersize=5)
    right.set_xticks(range(len(figures["reach"])), [name.replace(", ", ",\n") for name in figures["reach"]])
    right.set_ylabel("mean distance of what is seen (pixels)")
    right.set_title("Effective receptive field")


_EFFECTS = (
    Effect("receptive_field_of_large_kernels", unit="pixels", why="large kernels see wide without depth (Sec. 1)"),
    Effect("gain_of_large_kernels", unit="points", why="large kernels instead of more small ones (Sec. 3.1)"),
    Effect("gain_of_dilated_branches", unit="points", why="Sec. 3.2: the dilated branches raise the accuracy"),
    Effect("time_saved_by_merging", unit="%", why="Sec. 3.2: branches cost nothing once merged"),
)
PROOF = Proof(
    slug="unireplknet",
    question="At the same cost, do a few large kernels see wider and classify better than more layers of small ones, and do dilated "
    "branches help them?",
    data="CIFAR-10 (JPEG copies): 1,000 training, 500 validation and 1,000 test images, bundled",
    baseline="3x3 kernels and more blocks, at the cost of the merged network; same data, optimizer, epochs and seeds",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
