"""What proofs on the bundled CIFAR-10 sample share: the images as tensors, and one short honest training run."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.images import cifar10


@cache
def tensors(train: bool, count: int) -> tuple[Tensor, Tensor]:
    """Normalised images (count, 3, 32, 32) and labels, the same ones every time."""
    images, labels, _ = cifar10(train)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[order].float() / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    return (x - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels)[order]


def accuracy(net: nn.Module, count: int = 1000) -> float:
    """Share of the test images that ``net`` classifies rightly, in percent."""
    x, y = tensors(False, count)
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(b.contiguous(memory_format=torch.channels_last)) for b in x.split(250)]).argmax(1) == y
    return 100 * float(right.float().mean())


def fit(net: nn.Module, *, count: int, epochs: int, lr: float = 3e-3, batch: int = 100, decay: float = 0.05) -> float:
    """Test accuracy (%) after AdamW with a one-cycle rate, flips, shifts and label smoothing.

    The caller seeds torch before it builds ``net``: initial weights, order and augmentation follow from that one seed.
    """
    x, y = tensors(True, count)
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (len(x) // batch))
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            index = order[start : start + batch]
            images = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x[index].flip(-1), x[index])
            images = torch.roll(images, torch.randint(-3, 4, (2,)).tolist(), (-2, -1))
            loss = F.cross_entropy(
                net(images.contiguous(memory_format=torch.channels_last)), y[index], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return accuracy(net)


def macs(net: nn.Module) -> int:
    """Multiply-adds of one 32-pixel image."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2
