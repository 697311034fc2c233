"""What merging is worth, and large depth-wise kernels against PyTorch's own: forward, and forward with backward.

No other library has this network. The peers are its own training form, the same training step with PyTorch's convolutions branch by
branch, and :class:`torch.nn.Conv2d` with the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.compare import SAME, Row, _step, layouts, peak_memory, quicker, race, training
from offprint.models.backbones.unireplknet import DilatedReparamBlock
from offprint.models.deploy import FORMATS, deploy
from offprint.models.factory import create_model
from offprint.nn.large_kernel import LargeKernelConv2d

MERGED = (("unireplknet_a", 4), ("unireplknet_n", 4), ("unireplknet_t", 2))  # and images in a batch
MAPS = ((2, 64, 56), (4, 80, 28), (8, 160, 14), (8, 320, 7))  # images, channels, side
KERNELS = (13, 17, 23, 31)


class Branches(nn.Module):
    """A Dilated Reparam Block as it is written down: PyTorch's convolutions, one after the other."""

    def __init__(self, block: DilatedReparamBlock):
        super().__init__()
        kernels = [block.lk_origin, *(getattr(block, f"dil_conv_k{k}_{r}") for k, r in block.branches)]
        norms = [block.origin_bn, *(getattr(block, f"dil_bn_k{k}_{r}") for k, r in block.branches)]
        self.convs = nn.ModuleList(_plain(conv) for conv in kernels)
        self.norms = nn.ModuleList(copy.deepcopy(norm) for norm in norms)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norms[0](self.convs[0](x))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            out = out + norm(conv(x))
        return out


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution as PyTorch's own class."""
    made = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding, dilation=conv.dilation,
                     groups=conv.groups, bias=conv.bias is not None)  # fmt: skip
    made.load_state_dict(conv.state_dict())
    return made


def _in_formats(model: nn.Module, x: Tensor, call: Callable[[nn.Module, Tensor], Callable[[], object]]) -> Callable:
    """The quicker of a model's two memory formats."""
    made = {}
    for name in layouts(x):
        net, image = (v.to(memory_format=FORMATS[name]) for v in (copy.deepcopy(model), x))
        made[name] = call(net, image)
    return quicker(made)


def _merging() -> Iterator[Row]:
    for name, batch in MERGED:
        torch.manual_seed(0)
        model, x = create_model(name).eval(), torch.randn(batch, 3, 224, 224)
        with torch.inference_mode():
            ours, theirs = (_in_formats(net, x, lambda m, y: lambda: m(y)) for net in (deploy(model, x), model))
            took = race(ours, theirs, seconds=8)
            used = peak_memory(ours), peak_memory(theirs)
        yield Row("unireplknet", f"{name} forward, merged, {batch} x 224 px", "its own training form in evaluation mode", *took,
                  used, note="of the geometric mean over the sizes 1.3 is asked", form=SAME)  # fmt: skip


def _training() -> Iterator[Row]:
    torch.manual_seed(0)
    ours, x = create_model("unireplknet_a", num_classes=10), torch.randn(4, 3, 224, 224)
    theirs = copy.deepcopy(ours)
    for parent in list(theirs.modules()):
        if isinstance(getattr(parent, "dwconv", None), DilatedReparamBlock):
            parent.dwconv = Branches(parent.dwconv)
    y = torch.arange(4)
    yield training("unireplknet", "unireplknet_a training step, 4 x 224 px", "PyTorch's convolutions, branch by branch",
                   lambda net, image: _step(net, image, y), ours, theirs, x, seconds=12)  # fmt: skip


def _backward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.detach().requires_grad_()

    def run() -> None:
        y = layer(x)
        y.backward(y.detach())

    return run


def _kernels() -> Iterator[Row]:
    for batch, channels, side in MAPS:
        for kernel in KERNELS:
            torch.manual_seed(0)
            ours = LargeKernelConv2d(channels, kernel, bias=False)
            theirs, x = _plain(ours), torch.randn(batch, channels, side, side)
            what = f"{kernel}x{kernel} depth-wise, {batch} x {channels} x {side} x {side}"
            with torch.inference_mode():
                took = race(lambda net=ours, x=x: net(x), lambda net=theirs, x=x: net(x), seconds=1)
            yield Row("unireplknet", f"{what}, forward", "torch.nn.Conv2d on a map as PyTorch makes it", *took)
            pair = (_in_formats(layer, x, _backward) for layer in (ours, theirs))
            yield Row("unireplknet", f"{what}, forward and backward", "torch.nn.Conv2d in its better memory format",
                      *race(*pair, seconds=2), form=SAME)  # fmt: skip


def rows() -> Iterator[Row]:
    yield from _merging()
    yield from _training()
    yield from _kernels()
