"""The reward of a search: how well a small child network does after a short training (NASNet Sec. 3: 20 epochs of CIFAR-10)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.images import open_images
from offprint.data.transforms import evaluation_transform
from offprint.errors import OffprintError
from offprint.models.factory import create_model
from offprint.models.registry import entry


class ProxyAccuracy:
    """Validation accuracy (0 to 1) of a child network built from a genotype, as a callable.

    Training images alone are used: a tenth of them is held out as in the paper (5,000 of 50,000), the test images stay unseen. The
    child trains with SGD, momentum 0.9, Nesterov, one cosine, weight decay 1e-4, gradient norm 5, flips and shifts; its random
    numbers are the global generator's.

    Args:
        data: what :func:`offprint.data.images.open_images` takes.
        model: the network that takes ``genotype=``.
        num_cells, filters: of the child (the paper's: 2 and 32).
        epochs, batch_size, lr: of its training.
        size: side the images are resized to.
        images: how many of them to use at most.
        seed: of the choice of images and of those held out.
    """

    def __init__(
        self,
        data: str = "sample:cifar10",
        model: str = "nasnet_a_cifar",
        num_cells: int = 2,
        filters: int = 8,
        epochs: int = 2,
        batch_size: int = 100,
        lr: float = 0.1,
        size: int = 32,
        images: int = 5000,
        seed: int = 0,
    ):
        for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("images", images, 20)):
            if value < least:
                raise OffprintError(f"{name}={value}; it must be at least {least}")
        self.data, self.model, self.size, self.images, self.seed = data, model, size, images, seed
        self.options = {"num_cells": num_cells, "filters": filters}
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr

    @property
    def about(self) -> dict:
        """All that the reward depends on but the genotype."""
        return {k: v for k, v in vars(self).items() if k != "tensors"}

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, int]:
        """Images (N, C, H, W), labels (N,), number of classes; the last tenth is held out."""
        splits = open_images(self.data, seed=self.seed)
        order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(self.seed))
        chosen = order[: self.images].tolist()
        if len(chosen) < 20:
            raise OffprintError(
                f"{self.data} has {len(chosen)} training images; a tenth is held out, so give at least 20"
            )
        transform = evaluation_transform(self.size, entry(self.model).preprocessing, 3)
        x = torch.stack([transform(splits.train[i][0]) for i in chosen])
        y = torch.tensor([splits.train.targets[i] for i in chosen])
        return x.contiguous(memory_format=torch.channels_last), y, len(splits.classes)

    def __call__(self, genotype: Mapping) -> float:
        # without oneDNN, whose backward pass corrupts the heap on some AMD processors when so small a network trains
        with torch.backends.mkldnn.flags(enabled=False):
            return self._trained(genotype)

    def _trained(self, genotype: Mapping) -> float:
        x, y, classes = self.tensors
        held = len(x) // 10
        train_x, train_y = x[:-held], y[:-held]
        net = create_model(self.model, num_classes=classes, genotype=genotype, **self.options)
        net = net.to(memory_format=torch.channels_last).train()
        batch = min(self.batch_size, len(train_x))
        steps = self.epochs * (len(train_x) // batch)
        optimizer = torch.optim.SGD(net.parameters(), self.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(self.epochs):
            order = torch.randperm(len(train_x))
            for start in range(0, len(train_x) - batch + 1, batch):
                index = order[start : start + batch]
                images = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, train_x[index].flip(-1), train_x[index])
                images = torch.roll(images, torch.randint(-2, 3, (2,)).tolist(), (-2, -1))
                loss = F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), train_y[index])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                optimizer.step()
                schedule.step()
        net.eval()
        with torch.no_grad():
            right = torch.cat([net(b) for b in x[-held:].split(250)]).argmax(1) == y[-held:]
        return float(right.float().mean())
