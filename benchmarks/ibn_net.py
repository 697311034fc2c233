"""IBN-Net's ResNet-50 against torchvision's with the obvious layer in it, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.compare import Row, classifiers


class PlainIBN(nn.Module):
    """Divide the channels, normalise each part with torch's own layer, concatenate."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.half)

    def forward(self, x):
        a, b = torch.split(x, [self.half, x.shape[1] - self.half], 1)
        return torch.cat([self.IN(a.contiguous()), self.BN(b.contiguous())], 1)


def plain() -> nn.Module:
    """torchvision's resnet50, its first norms of the first three stages replaced."""
    import torchvision

    model = torchvision.models.resnet50()
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            block.bn1 = PlainIBN(block.bn1.num_features)
    return model


def rows() -> Iterator[Row]:
    yield from classifiers("ibn-net", "resnet50_ibn_a", "torchvision resnet50 with a plain IBN layer", plain())
