"""ConvNeXt's design steps at a small size: from a bottleneck ResNet block to the ConvNeXt block, on CIFAR-10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.images import cifar10
from offprint.models.backbones.convnext import ConvNeXt
from offprint.nn import LayerNorm2d
from offprint.proofs import Band, Proof


class _Bottleneck(nn.Module):
    """The block the paper starts from (Fig. 4 left): 1x1, 3x3, 1x1 with three norms and three activations."""

    def __init__(self, dim: int):
        super().__init__()
        mid = dim // 2
        self.body = nn.Sequential(
            nn.Conv2d(dim, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(),
            nn.Conv2d(mid, mid, 3, padding=1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(),
            nn.Conv2d(mid, dim, 1, bias=False), nn.BatchNorm2d(dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class _Inverted(nn.Module):
    """Steps between: an inverted bottleneck around a depth-wise convolution, norm and activation as given."""

    def __init__(self, dim: int, kernel: int, modern: bool):
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = LayerNorm2d(dim) if modern else nn.BatchNorm2d(dim)
        self.up, self.down = nn.Conv2d(dim, 4 * dim, 1), nn.Conv2d(4 * dim, dim, 1)
        self.modern = modern

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x))
        y = F.gelu(self.up(y)) if self.modern else F.relu(self.up(F.relu(y)))
        return x + self.down(y)


def _network(step: str, width: int, depths: tuple[int, ...]) -> nn.Module:
    if step == "convnext":
        net = ConvNeXt(3, 10, depths, tuple(width * 2**i for i in range(len(depths))), layer_scale_init_value=1.0)
        net.downsample_layers[0][0] = nn.Conv2d(3, width, 2, 2)  # 32-pixel images: a 2x2 patch
        net.minimum = 16
        for (
            module
        ) in net.modules():  # every step starts from torch's initialisation; 0.02 is meant for four times the width
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        return net
    layers: list[nn.Module] = [nn.Conv2d(3, width, 2, 2), nn.BatchNorm2d(width)]
    for i, depth in enumerate(depths):
        dim = width * 2**i
        if i:
            layers += [nn.Conv2d(dim // 2, dim, 2, 2), nn.BatchNorm2d(dim)]
        for _ in range(depth):
            block = {
                "resnet": lambda d: nn.Sequential(_Bottleneck(d), _Bottleneck(d)),  # two: the same multiply-adds
                "inverted 3x3": lambda d: _Inverted(d, 3, False),
                "inverted 7x7": lambda d: _Inverted(d, 7, False),
            }[step]
            layers.append(block(dim))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 2 ** (len(depths) - 1), 10))


STEPS = ("resnet", "inverted 3x3", "inverted 7x7", "convnext")


def _tensors(train: bool, count: int) -> tuple[Tensor, Tensor]:
    images, labels, _ = cifar10(train)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[order].float() / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    return (x - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels)[order]


def _train(step: str, seed: int, width: int, depths: tuple[int, ...], count: int, epochs: int) -> float:
    """Test accuracy (%) after AdamW with a one-cycle rate, flips and shifts."""
    torch.manual_seed(seed)
    x, y = _tensors(True, count)
    net = _network(step, width, depths)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    batch = 100
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * (len(x) // batch))
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            index = order[start : start + batch]
            images = x[index]
            images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
            dy, dx = torch.randint(-3, 4, (2,)).tolist()
            images = torch.roll(images, (dy, dx), (-2, -1))
            loss = F.cross_entropy(net(images), y[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    tx, ty = _tensors(False, 1000)
    with torch.no_grad():
        return 100 * float((torch.cat([net(b) for b in tx.split(250)]).argmax(1) == ty).float().mean())


def run(ctx) -> dict:
    width, depths, count, epochs, seeds, steps = (
        (16, (1, 1, 1), 2000, 6, (0,), ("resnet", "convnext"))
        if ctx.quick
        else (24, (1, 1, 2), 5000, 8, (0, 1, 2), STEPS)
    )
    ctx.total(len(seeds) * len(steps))
    table: dict[str, list[float]] = {}
    for step in steps:
        table[step] = []
        for seed in seeds:
            ctx.step(f"{step}, seed {seed}")
            table[step].append(
                ctx.part(f"{step}-{seed}", lambda s=step, k=seed: _train(s, k, width, depths, count, epochs))
            )
    means = {step: sum(v) / len(v) for step, v in table.items()}
    macs = {step: _macs(step, width, depths) for step in steps}
    return {
        "accuracy_resnet": means["resnet"],
        "accuracy_convnext": means["convnext"],
        "gain_convnext_over_resnet": means["convnext"] - means["resnet"],
        "cost_ratio": macs["convnext"] / macs["resnet"],
        "accuracies": table,
        "macs": macs,
    }


def _macs(step: str, width: int, depths: tuple[int, ...]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    net = _network(step, width, depths).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def plot(figures: dict, figure) -> None:
    axis = figure.subplots()
    table = figures["accuracies"]
    for i, values in enumerate(table.values()):
        axis.bar(i, sum(values) / len(values), color="#b9c6d6" if i < len(table) - 1 else "#d9822b")
        axis.plot([i] * len(values), values, "k.", markersize=5)
    labels = [f"{step}\n{figures['macs'][step] / 1e6:.1f} M" for step in table]
    axis.set_xticks(range(len(table)), labels)
    axis.set_ylabel("test accuracy (%)")
    axis.set_title("From the ResNet block to the ConvNeXt block (multiply-adds below)")


PROOF = Proof(
    slug="convnext",
    question="At about the same cost, does the ConvNeXt design classify better than the ResNet bottleneck it started from?",
    data="CIFAR-10 (JPEG copies): 5,000 training and 1,000 test images, bundled",
    baseline="ResNet bottleneck network, same stages, data, optimizer and epochs",
    bands={
        "quick": (
            Band("accuracy_convnext", 25, 100, "%", "well above the 10 % of chance after six short epochs"),
            Band("cost_ratio", 0.5, 1.5, "", "the two networks cost about the same"),
        ),
        "full": (
            Band(
                "gain_convnext_over_resnet", 0, 100, "points", "the paper gains 3.2 points on ImageNet (78.8 to 82.0)"
            ),
            Band("accuracy_convnext", 40, 100, "%", "far above the 10 % of chance"),
            Band("cost_ratio", 0.5, 1.5, ""),
        ),
    },
    run=run,
    plot=plot,
)
