"""AFFNet against its direct form: each part of the complex products by an einsum of its own, the filter's FFT as written."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards, training
from offprint.models.backbones.affnet import AdaptiveFrequencyFilter


class PlainFilter(nn.Module):
    """The filter as the paper writes it, with the weights of ours."""

    def __init__(self, ours: AdaptiveFrequencyFilter):
        super().__init__()
        self.w1, self.b1, self.w2, self.b2, self.threshold = ours.w1, ours.b1, ours.w2, ours.b2, ours.threshold

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")
        y = spectrum.unflatten(1, (self.w1.shape[1], -1))

        def layer(real: Tensor, imaginary: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            def product(part: Tensor, weight: Tensor) -> Tensor:
                return torch.einsum("bgihw,gio->bgohw", part, weight)

            b = b[..., None, None]
            return product(real, w[0]) - product(imaginary, w[1]) + b[0], product(imaginary, w[0]) + product(
                real, w[1]
            ) + b[1]

        hidden = layer(y.real, y.imag, self.w1, self.b1)
        real, imaginary = layer(F.silu(hidden[0]), F.silu(hidden[1]), self.w2, self.b2)
        mask = torch.view_as_complex(F.softshrink(torch.stack([real, imaginary], -1), self.threshold)).flatten(1, 2)
        return torch.fft.irfft2(mask * spectrum, s=x.shape[-2:], norm="ortho").to(x.dtype) + x


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model with every filter in its direct form."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AdaptiveFrequencyFilter):
                setattr(module, name, PlainFilter(child))
    return model


def rows(size: int = 256, batch: int = 4, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    ours = offprint.create_model("affnet_et").eval()
    theirs, x = plain(ours), torch.randn(batch, 3, size, size)
    y, shape = torch.arange(batch), f"{batch} x {size} px"
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
    yield from forwards("affnet", f"affnet_et forward, {shape}", "direct form", ours, theirs, x, seconds=seconds)

    def steps(model: nn.Module, images: Tensor):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step():
            optimizer.zero_grad()
            F.cross_entropy(model(images), y).backward()
            optimizer.step()

        return step

    yield training(
        "affnet", f"affnet_et training step, {shape}", "direct form", steps, ours, theirs, x, seconds=seconds
    )
