"""1x1 convolutions as matrix products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that, at stride 1, is one matrix product over the channels of each place.

    On a CPU this is as fast as the convolution kernels or faster, and sums over the channels in one order, which theirs does
    not: it depends on the number of threads. Channels-last maps stay channels-last, others give channels-last unless the
    layer has no bias.

    Args:
        cin, cout: channels.
        stride: of the places that are kept.
        bias: add a bias.
    """

    def __init__(self, cin: int, cout: int, stride: int = 1, bias: bool = False):
        super().__init__(cin, cout, 1, stride, bias=bias)

    def forward(self, x: Tensor, sizes: tuple[int, ...] | None = None):
        """Map (B, cin, H, W) to (B, cout, ceil(H / stride), ceil(W / stride)).

        With ``sizes`` (stride 1) a list: the output in parts of so many channels, each a map of its own and not a strided
        slice of one, which the next layer would have to copy.
        """
        if self.stride[0] > 1:
            return super().forward(x)
        weight = self.weight.flatten(1)
        if sizes is not None:
            biases = [None] * len(sizes) if self.bias is None else self.bias.split(sizes)
            x = x.permute(0, 2, 3, 1)
            parts = zip(weight.split(sizes), biases, strict=True)
            return [F.linear(x, w, b).permute(0, 3, 1, 2) for w, b in parts]
        if self.bias is None and x.is_contiguous():
            # a batch of products, each of which one thread computes: the images, or for one image parts of the output
            split = math.gcd(self.out_channels, 8) if x.shape[0] == 1 else 1
            maps = x.flatten(2).expand(split if x.shape[0] == 1 else -1, -1, -1)
            weights = weight.unflatten(0, (split, -1)).expand(maps.shape[0], -1, -1)
            return torch.bmm(weights, maps).reshape(x.shape[0], -1, *x.shape[2:])
        return F.linear(x.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
