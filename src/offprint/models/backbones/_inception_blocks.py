"""The blocks of the Inception networks: chains and branches of convolutions, made from tables of units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = int | tuple[int, int]
Unit = tuple  # (channels, kernel), (channels, kernel, stride) without padding, "max" or "avg"


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU.

    Args:
        in_channels, out_channels: of the map.
        kernel: side, or (height, width); padded so as to keep the size ...
        stride: ... unless a stride is given, 1 or 2: then nothing is padded ("V" in the figures).
    """

    fold_pairs = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, kernel: Kernel = 1, stride: int | None = None):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if stride is None else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride or 1, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def pool(kind: str) -> nn.Module:
    """``"max"``: 3x3 of stride 2, unpadded; ``"avg"``: 3x3 that keeps the size."""
    return nn.MaxPool2d(3, 2) if kind == "max" else nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _branch(channels: int, units: tuple) -> tuple[nn.Module, int]:
    """A chain of units and its output width; a single unit stands alone, as in the ports' names."""
    layers: list[nn.Module] = []
    for unit in units:
        if isinstance(unit, str):
            layers.append(pool(unit))
        else:
            layers.append(ConvNorm(channels, *unit))
            channels = unit[0]
    return (layers[0] if len(layers) == 1 else nn.Sequential(*layers)), channels


class Mixed(nn.Module):
    """Branches side by side, concatenated.

    Args:
        in_channels: of the map.
        branches: each a tuple of units.
        names: of the branches; default ``branch0``, ``branch1``, ...
    """

    def __init__(self, in_channels: int, branches: tuple, names: tuple[str, ...] = ()):
        super().__init__()
        self.names = names or tuple(f"branch{i}" for i in range(len(branches)))
        self.out_channels = 0
        for name, units in zip(self.names, branches, strict=True):
            module, width = _branch(in_channels, units)
            setattr(self, name, module)
            self.out_channels += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, name)(x) for name in self.names], 1)


class InceptionC(nn.Module):
    """The 8x8 block of Inception-v4, whose two long branches end in a 1x3 and a 3x1 convolution each (Fig. 6)."""

    out_channels = 1536

    def __init__(self, in_channels: int = 1536):
        super().__init__()
        self.branch0 = ConvNorm(in_channels, 256)
        self.branch1_0 = ConvNorm(in_channels, 384)
        self.branch1_1a = ConvNorm(384, 256, (1, 3))
        self.branch1_1b = ConvNorm(384, 256, (3, 1))
        self.branch2_0 = ConvNorm(in_channels, 384)
        self.branch2_1 = ConvNorm(384, 448, (3, 1))
        self.branch2_2 = ConvNorm(448, 512, (1, 3))
        self.branch2_3a = ConvNorm(512, 256, (1, 3))
        self.branch2_3b = ConvNorm(512, 256, (3, 1))
        self.branch3 = _branch(in_channels, ("avg", (256, 1)))[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch1_0(x)
        z = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        parts = [self.branch0(x), self.branch1_1a(y), self.branch1_1b(y), self.branch2_3a(z), self.branch2_3b(z)]
        return torch.cat([*parts, self.branch3(x)], 1)


class Residual(Mixed):
    """Branches, a 1x1 convolution with bias back to the input's width, scaled and added (Figs. 10 to 19).

    Args:
        channels: of the map.
        branches: as in :class:`Mixed`.
        scale: factor on what is added.
        relu: an activation after the sum (the last block has none).
    """

    def __init__(self, channels: int, branches: tuple, scale: float = 1.0, relu: bool = True):
        super().__init__(channels, branches)
        self.conv2d = nn.Conv2d(self.out_channels, channels, 1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        y = torch.add(x, self.conv2d(super().forward(x)), alpha=self.scale)
        return F.relu(y, inplace=True) if self.relu else y

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, relu={self.relu}"


class Auxiliary(nn.Module):
    """The side classifier that slim trains with, on the 17x17 map: pooling, 1x1 128, a convolution over all places, linear."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv0 = ConvNorm(in_channels, 128)
        self.conv1 = ConvNorm(128, 768, 5, 1)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 5, 3) if min(x.shape[-2:]) >= 5 else x
        x = self.conv0(F.adaptive_avg_pool2d(x, 5))  # 5x5 already for images of 299 pixels
        return self.fc(self.conv1(x).flatten(1))
