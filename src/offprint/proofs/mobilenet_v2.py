"""MobileNetV2's two ideas in small: linear bottlenecks and shortcuts between them, on CIFAR-10; and why a ReLU in few channels loses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.digits import mnist
from offprint.data.images import cifar10
from offprint.models.backbones.mobilenet_v2 import InvertedResidual, MobileNetV2
from offprint.proofs import Band, Proof

# (t, c, n, s) at width 0.5 for 32-pixel images; the last map has 4x4 places
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 1), (6, 64, 2, 2))
FORMS = ("linear", "relu", "no shortcut")
WIDTHS = (2, 3, 5, 15, 30)


def kept_through_relu(width: int, trials: int = 20) -> float:
    """Part (%) of the variance of a plane of real data that a linear map finds again behind a random embedding and a ReLU.

    The plane: the first two principal components of MNIST digits. The paper does this with a spiral (Fig. 1).
    """
    x = torch.from_numpy(mnist(train=False)[0]).flatten(1).double() / 255
    x = x - x.mean(0)
    plane = x @ torch.linalg.eigh(x.T @ x)[1][:, -2:]
    plane = plane / plane.std(0)
    kept = 0.0
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        y = F.relu(plane @ torch.randn(2, width, generator=generator, dtype=torch.float64))
        y = torch.cat([y, torch.ones(len(y), 1, dtype=y.dtype)], 1)
        left = plane - y @ torch.linalg.lstsq(y, plane, driver="gelsd").solution
        kept += float(1 - left.square().sum() / plane.square().sum()) / trials
    return 100 * kept


def _network(form: str) -> MobileNetV2:
    net = MobileNetV2(num_classes=10, width=0.5, settings=SETTINGS)
    for block in net.features:
        if isinstance(block, InvertedResidual):
            if form == "relu":
                block.conv.append(nn.ReLU6())
            elif form == "no shortcut":
                block.add = False
    return net


def _tensors(train: bool, count: int) -> tuple[Tensor, Tensor]:
    images, labels, _ = cifar10(train)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[order].float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)[order]


def _train(form: str, seed: int, count: int, epochs: int, batch: int = 50) -> float:
    """Test accuracy (%) after AdamW with a one-cycle rate, flips and shifts."""
    torch.manual_seed(seed)
    x, y = _tensors(True, count)
    net = _network(form).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (len(x) // batch))
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
    count, epochs, seeds, forms = (1200, 4, (0,), FORMS[:2]) if ctx.quick else (5000, 6, (0, 1, 2), FORMS)
    ctx.total(1 + len(seeds) * len(forms))
    ctx.step("a ReLU in few channels")
    kept = ctx.part("kept", lambda: [kept_through_relu(n) for n in WIDTHS])
    table: dict[str, list[float]] = {}
    for form in forms:
        table[form] = []
        for seed in seeds:
            ctx.step(f"{form}, seed {seed}")
            table[form].append(ctx.part(f"{form}-{seed}", lambda f=form, s=seed: _train(f, s, count, epochs)))
    means = {form: sum(v) / len(v) for form, v in table.items()}
    figures = {
        "accuracy_linear": means["linear"],
        "accuracy_relu": means["relu"],
        "gain_linear_over_relu": means["linear"] - means["relu"],
        "kept_in_2_channels": kept[WIDTHS.index(2)],
        "kept_in_15_channels": kept[WIDTHS.index(15)],
        "kept": kept,
        "widths": list(WIDTHS),
        "accuracies": table,
    }
    if "no shortcut" in means:
        figures["gain_shortcut_over_none"] = means["linear"] - means["no shortcut"]
    return figures


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(figures["widths"], figures["kept"], "o-", color="#d9822b")
    left.set_xlabel("channels of the ReLU")
    left.set_ylabel("variance found again (%)")
    left.set_title("A plane behind a ReLU")
    for i, (form, values) in enumerate(figures["accuracies"].items()):
        right.bar(i, sum(values) / len(values), color="#d9822b" if form == "linear" else "#b9c6d6")
        right.plot([i] * len(values), values, "k.", markersize=5)
    right.set_xticks(range(len(figures["accuracies"])), list(figures["accuracies"]))
    right.set_ylabel("test accuracy (%)")
    right.set_title("Bottlenecks, CIFAR-10")


_KEPT = (
    Band("kept_in_2_channels", 0, 85, "%", "Fig. 1: with 2 or 3 channels parts of the manifold collapse"),
    Band("kept_in_15_channels", 95, 100, "%", "Fig. 1: with 15 and more it is largely preserved"),
)
PROOF = Proof(
    slug="mobilenet-v2",
    question="Do bottlenecks without activation, and shortcuts between them, classify better than their alternatives?",
    data="CIFAR-10 (JPEG copies): 5,000 training and 1,000 test images, and MNIST digits; both bundled",
    baseline="the same network with a ReLU6 in its bottlenecks, and without shortcuts; same data, optimizer and epochs",
    bands={
        "quick": (
            *_KEPT,
            Band("accuracy_linear", 20, 100, "%", "well above the 10 % of chance after four short epochs"),
        ),
        "full": (
            *_KEPT,
            Band("gain_linear_over_relu", 0, 100, "points", "Fig. 6a: about a point on ImageNet"),
            Band("gain_shortcut_over_none", 0, 100, "points", "Fig. 6b"),
            Band("accuracy_linear", 40, 100, "%", "four times chance after six epochs"),
        ),
    },
    run=run,
    plot=plot,
)
