"""Squeeze-and-excitation (Hu, Shen, Sun; CVPR 2018): a gate per channel, computed from the mean of each channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Mean over the map, 1x1 convolution to ``hidden``, ReLU, 1x1 convolution back, gate; the map times the gate.

    Args:
        channels: of the map.
        hidden: channels between the two convolutions.
        gate: from any number to [0, 1]: ``torch.sigmoid``, or ``F.hardsigmoid`` as in the mobile networks.
    """

    def __init__(self, channels: int, hidden: int, gate: Callable[[Tensor], Tensor] = torch.sigmoid):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map of the same shape."""
        y = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.conv_expand(y))
