"""Shape bias and effective receptive field of a large- and a small-kernel network of the same cost, trained alike.

Two RepLKNets of two stages, one with 13x13 kernels (and the 5x5 ones beside them), one with 3x3 kernels and wider maps, so that both take
the same multiply-adds. The pictures are digits 0 to 7 (real handwriting, bright strokes) on patches of eight real photographs, one
photograph for each digit while they train: stroke and patch say the same class. Then the digit is set on the patch of another
class, and the decisions for either are counted, as the paper does with ImageNet's categories. The patches of training and test come
from different parts of the photographs.

The receptive field is that of the trained networks at the pictures' own 64 pixels: the area of the square that holds half of
the contributions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.digits import mnist
from offprint.data.photos import photographs, set5
from offprint.methods.understanding.large_kernel_design import effective_receptive_field, shape_bias
from offprint.models.backbones.replknet import RepLKNet
from offprint.proofs import Effect, Proof, kit

SIDE, STROKE, CLASSES = 64, 2.0, 8
ARMS = {  # kernel, small kernel beside it, channels
    "3x3, wider": (3, None, (22, 38)),
    "13x13": (13, 5, (16, 32)),
}
SIZES = {  # mode: training, test and conflicting pictures, epochs, batch, judged seeds, rates
    "quick": (160, 80, 80, 1, 40, (0, 1), (3e-3,)),
    "full": (800, 400, 400, 6, 40, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (4000, 1200, 1200, 20, 100, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}
HELD = 200  # pictures that rates are chosen by


def _digits(count: int, train: bool, start: int = 0) -> tuple[Tensor, Tensor]:
    """(N, 1, 64, 64) strokes in [0, 1] and their digits, 0 to 7 in turn."""
    images, labels = mnist(train)
    y = torch.from_numpy(labels)
    kept = torch.stack(
        [(y == c).nonzero().flatten()[start // CLASSES :][: -(-count // CLASSES)] for c in range(CLASSES)], 1
    )
    index = kept.flatten()[:count]
    x = torch.from_numpy(images)[index].float()[:, None] / 255
    return F.pad(F.interpolate(x, scale_factor=2, mode="bilinear"), (4,) * 4), y[index].long()


def _patches(classes: Tensor, train: bool, seed: int) -> Tensor:
    """(N, 1, 64, 64) patches of the photograph of each class, brightness and contrast taken out: the left of it, or the right."""
    grey = [p.float().mean(0) for p in list({**photographs(), **set5()}.values())[:CLASSES]]
    draw, out = torch.Generator().manual_seed(seed), []
    for c in classes.tolist():
        height, width = grey[c].shape
        cut = int(0.65 * width)
        low, high = (0, cut - SIDE) if train else (cut, width - SIDE)
        top = int(torch.randint(0, height - SIDE + 1, (), generator=draw))
        left = int(torch.randint(low, high + 1, (), generator=draw))
        patch = grey[c][top : top + SIDE, left : left + SIDE]
        out.append((patch - patch.mean()) / (patch.std() + 1))
    return torch.stack(out)[:, None]


def _pictures(strokes: Tensor, patches: Tensor) -> Tensor:
    """Bright strokes on the patches, (N, 3, 64, 64)."""
    return ((1 - strokes) * patches + STROKE * strokes).expand(-1, 3, -1, -1)


def _data(count: int, test: int, conflicts: int) -> tuple[kit.Images, tuple[Tensor, Tensor, Tensor]]:
    """Pictures whose cues agree, and conflicting ones with the classes of stroke and patch."""
    parts = []
    for k, (n, train, start) in enumerate(((count, True, 0), (HELD, True, count), (test, False, 0))):
        strokes, y = _digits(n, train, start)
        parts.append((_pictures(strokes, _patches(y, train, k)), y))
    strokes, shape = _digits(conflicts, False, test)
    texture = (shape + 1 + torch.arange(conflicts) // CLASSES % (CLASSES - 1)) % CLASSES
    return kit.Images(*parts), (_pictures(strokes, _patches(texture, False, 3)), shape, texture)


def _network(kernel: int, small: int | None, dims: tuple[int, ...]) -> RepLKNet:
    return kit.fan_in_(RepLKNet(3, CLASSES, (kernel,) * 2, (2, 2), dims, small))  # type: ignore[return-value]


@torch.no_grad()
def _bias(net: RepLKNet, pictures: Tensor, shape: Tensor, texture: Tensor) -> float:
    """Shape bias in percent; 50 where no decision is for either."""
    device = next(net.parameters()).device
    given = torch.cat([net(x.to(device)).argmax(1).cpu() for x in pictures.split(100)])
    name = "abcdefgh"
    rows = [(f"{name[s]}1-{name[t]}1.png", name[s], name[g]) for s, t, g in zip(shape, texture, given, strict=True)]
    found = shape_bias(rows).shape_bias
    return 50.0 if found is None else 100 * found


def _area(net: RepLKNet, pictures: Tensor) -> float:
    """Percent of the picture that half of the effective receptive field takes; 100 where no square does."""
    device = next(net.parameters()).device
    half = effective_receptive_field(net, pictures[:16].to(device).split(1), thresholds=(0.5,)).areas[0.5]
    return 100.0 if half is None else 100 * half.ratio


def run(ctx) -> dict:
    count, test, conflicts, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, cues = _data(count, test, conflicts)
    setting = kit.Setting(epochs, batch, flip=False)

    def arm(name: str, form: tuple) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> dict[str, float]:
            found: dict[str, float] = {}

            def measure(net: RepLKNet) -> None:
                found.update(shape_bias=_bias(net, *cues), receptive_field=_area(net, cues[0]))

            accuracy = kit.fit(
                lambda: _network(*form),
                data,
                setting,
                seed=seed,
                rate=rate,
                part=part,
                device=ctx.device,
                after=measure,
            )
            return {"accuracy": accuracy, **found}

        return kit.Arm(name, run, kit.macs(_network(*form), 1, 3, SIDE, SIDE))

    found = kit.compare(ctx, [arm(*item) for item in ARMS.items()], seeds=seeds, rates=rates)
    figures = {
        f"{metric}_{kit.slug(name)}": kit.interval(values)
        for metric, table in found.metrics.items()
        for name, values in table.items()
    }
    return {
        **figures,
        "gain_in_shape_bias": found.effect("13x13", metric="shape_bias"),
        "gain_in_receptive_field": found.effect("13x13", metric="receptive_field"),
        "arms": found.metrics["shape_bias"],
        "fields": found.metrics["receptive_field"],
        "costs": found.costs,
        "rates": found.rates,
        "pilots": found.pilots,
        "data_digest": kit.digest(*data.train, *data.test, cues[0]),
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="decisions for the shape", ylabel="shape bias (%)")
    table = {"arms": figures["fields"], "costs": {}}
    kit.bars(table, right, title="half of the receptive field", ylabel="share of the picture (%)")


_EFFECTS = (
    Effect(
        "gain_in_shape_bias",
        unit="points",
        why="large kernels decide more by shape than small ones (analysis, from memory)",
    ),
    Effect(
        "gain_in_receptive_field", unit="points", why="large kernels have larger effective receptive fields (analysis)"
    ),
)
PROOF = Proof(
    slug="large-kernel-design",
    question="Trained alike at the same cost, does a network with 13x13 kernels decide more by shape, and see further, than one with 3x3?",
    data="800 digits of MNIST (0 to 7) on patches of eight photographs, 200 held out, 400 to test and 400 of conflicting cues, bundled",
    baseline="the same network with 3x3 kernels and wider maps at the same multiply-adds; same data, optimizer, epochs and seeds",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
