"""One-way convolutions against their composed forms: the kernel built by a sum over terms, and axis by axis with layers of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, race
from offprint.methods.training.a_priori_compression import OneWayConv, OneWayConv2d, OneWayConv3d


def _composed(layer: OneWayConv, x: Tensor) -> Tensor:
    """The formula as it stands: every term's outer product, added up, then the dense convolution."""
    parts = layer.filters()
    kernel = torch.zeros(*parts[0].shape[:2], *layer.kernel_size)
    for r in range(layer.rank):
        product = parts[0][:, :, r]
        for other in parts[1:]:
            product = product[..., None] * other[:, :, r].reshape(*other.shape[:2], *[1] * (product.ndim - 2), -1)
        kernel = kernel + product
    convolve = F.conv2d if layer.ndim == 2 else F.conv3d
    return convolve(x, kernel, layer.bias, 1, [p for p, _ in layer.padding])


def _layers(layer: OneWayConv) -> nn.Module:
    """A chain as torch's own layers."""
    made = []
    for axis, weight in enumerate(layer.filters()):
        sides = [weight.shape[2] if a == axis else 1 for a in range(layer.ndim)]
        kind = nn.Conv2d if layer.ndim == 2 else nn.Conv3d
        conv = kind(
            weight.shape[1], weight.shape[0], sides, padding=[k // 2 for k in sides], bias=axis == layer.ndim - 1
        )
        conv.weight.data.copy_(weight.reshape(conv.weight.shape))
        made.append(conv)
    return nn.Sequential(*made)


def _step(layer: OneWayConv, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    layer.zero_grad()
    call(x).square().mean().backward()


def rows(channels: int = 64, side: int = 28, seconds: float = 6.0) -> Iterator[Row]:
    torch.manual_seed(0)
    for kind, shape in ((OneWayConv2d, (8, channels, side, side)), (OneWayConv3d, (2, channels // 2, 16, 16, 16))):
        x = torch.randn(shape)
        for rank in (1, 2):
            layer = kind(shape[1], shape[1], 3, rank, padding=1)

            took = race(partial(_step, layer, layer, x), partial(_step, layer, partial(_composed, layer), x), seconds)
            yield Row(
                "a-priori-compression",
                f"{kind.__name__} pair, {rank} terms, training step, {tuple(shape)}",
                "the sum of its terms",
                *took,
            )
        chain = kind(shape[1], shape[1], 3, layout="chain", padding=1)
        with torch.inference_mode():
            took = race(partial(chain, x), partial(_layers(chain), x), seconds)
        yield Row(
            "a-priori-compression",
            f"{kind.__name__} chain, forward, {tuple(shape)}",
            "layers of torch, one an axis",
            *took,
        )
