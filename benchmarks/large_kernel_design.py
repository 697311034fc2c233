"""RepLKNet against the plain formulation of the same network (large and small convolution side by side, ``nn.Conv2d`` throughout), the
same weights; its large depth-wise kernels one by one against PyTorch's; and the areas of a receptive field against direct sums.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, classifiers, quicker, race
from offprint.errors import OffprintError
from offprint.methods.understanding.large_kernel_design import erf_area_ratio
from offprint.nn.large_kernel import LargeKernelConv2d, spectral_pays

KERNELS = ((31, 56, 128), (29, 28, 256), (27, 14, 512), (13, 7, 1024), (31, 96, 128), (13, 56, 128), (13, 28, 256), (13, 14, 512),
           (21, 28, 128))  # fmt: skip


def _conv(cin: int, cout: int, k: int = 1, stride: int = 1, relu: bool = False) -> nn.Sequential:
    net = nn.Sequential()
    net.add_module(
        "conv", nn.Conv2d(cin, cout, k, stride, k // 2, groups=cin if k > 1 and cin == cout else 1, bias=False)
    )
    net.add_module("bn", nn.BatchNorm2d(cout))
    if relu:
        net.add_module("nonlinear", nn.ReLU())
    return net


class _Large(nn.Module):
    def __init__(self, dim: int, k: int):
        super().__init__()
        self.lkb_origin, self.small_conv = _conv(dim, dim, k), _conv(dim, dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_origin(x) + self.small_conv(x)


class _Block(nn.Module):
    def __init__(self, dim: int, k: int):
        super().__init__()
        self.prelkb_bn, self.pw1 = nn.BatchNorm2d(dim), _conv(dim, dim, relu=True)
        self.large_kernel, self.pw2 = _Large(dim, k), _conv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(F.relu(self.large_kernel(self.pw1(self.prelkb_bn(x)))))


class _Mix(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.preffn_bn, self.pw1, self.pw2 = nn.BatchNorm2d(dim), _conv(dim, 4 * dim), _conv(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(F.gelu(self.pw1(self.preffn_bn(x))))


class PlainRepLKNet(nn.Module):
    """RepLKNet-31B as one writes it down from the paper."""

    def __init__(self, dims=(128, 256, 512, 1024), kernels=(31, 29, 27, 13), depths=(2, 2, 18, 2), classes: int = 1000):
        super().__init__()
        c = dims[0]
        self.stem = nn.ModuleList(
            [_conv(3, c, 3, 2, True), _conv(c, c, 3, 1, True), _conv(c, c, relu=True), _conv(c, c, 3, 2, True)]
        )
        self.stages = nn.ModuleList()
        for dim, k, depth in zip(dims, kernels, depths, strict=True):
            stage = nn.Module()
            stage.blocks = nn.Sequential(*(m for _ in range(depth) for m in (_Block(dim, k), _Mix(dim))))
            self.stages.append(stage)
        self.transitions = nn.ModuleList(
            nn.Sequential(_conv(a, b, relu=True), _conv(b, b, 3, 2, True))
            for a, b in zip(dims[:-1], dims[1:], strict=True)
        )
        self.norm, self.head = nn.BatchNorm2d(dims[-1]), nn.Linear(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x)
        for i, stage in enumerate(self.stages):
            x = stage.blocks(self.transitions[i - 1](x) if i else x)
        return self.head(self.norm(x).mean((2, 3)))


def _in_both(layer: nn.Module, x: Tensor, train: bool):
    """The layer's work in the memory format that is better for it."""
    calls = {}
    for name, kind in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        net = copy.deepcopy(layer).to(memory_format=kind)
        image = x.contiguous(memory_format=kind).requires_grad_(train)

        def call(net=net, image=image):
            if not train:
                with torch.inference_mode():
                    return net(image)
            net.zero_grad()
            image.grad = None
            return net(image).sum().backward()

        calls[name] = call
    return quicker(calls)


def kernels(sizes=KERNELS, seconds: float = 3.0, batch: int = 2) -> Iterator[Row]:
    """One layer, forward and backward, against ``nn.Conv2d``."""
    for k, side, dim in sizes:
        torch.manual_seed(0)
        ours, theirs = LargeKernelConv2d(dim, k), nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(batch, dim, side, side)
        with torch.no_grad():
            off = float((ours(x) - theirs(x)).abs().max() / theirs(x).abs().max())
        if off > 1e-5:
            raise OffprintError(f"the {k}x{k} layers differ by {off:.1e}; a benchmark of them says nothing")
        for train, what in ((False, "forward"), (True, "forward and backward")):
            took = race(
                _in_both(ours.train(train), x, train), _in_both(theirs.train(train), x, train), seconds, rounds=3
            )
            same = not train and not spectral_pays(side, side, k)
            yield Row(
                "large-kernel-design", f"depth-wise {k}x{k} {what}, {batch} x {dim} x {side} x {side}", "nn.Conv2d", *took,
                required=0.0 if same else 1.0, note="both are the library's own convolution" if same else "",
            )  # fmt: skip


def _direct(field: np.ndarray, thresholds: tuple[float, ...]) -> list:
    m = np.log10(field + 1)
    m = m / m.max()
    h, w = m.shape
    total, found = m.sum(), []
    for t in thresholds:
        side = None
        for i in range(1, h // 2):
            if m[h // 2 - i : h // 2 + i + 1, w // 2 - i : w // 2 + i + 1].sum() / total > t:
                side = 2 * i + 1
                break
        found.append(side)
    return found


def areas(side: int = 1024, seconds: float = 3.0) -> Iterator[Row]:
    rows, columns = np.mgrid[:side, :side] - side // 2
    field = 50 * np.exp(-(rows**2 + columns**2) / (side * 20))
    shares = (0.2, 0.3, 0.5, 0.99)
    if [a and a.side for a in erf_area_ratio(field, shares).values()] != _direct(field, shares):
        raise OffprintError("the areas differ; a benchmark of them says nothing")
    took = race(lambda: erf_area_ratio(field, shares), lambda: _direct(field, shares), seconds, rounds=3)
    yield Row("large-kernel-design", f"areas of a receptive field, {side} px", "a sum for every square", *took)


def rows() -> Iterator[Row]:
    yield from kernels()
    yield from areas()
    torch.manual_seed(0)
    yield from classifiers("large-kernel-design", "replknet_31b", "plain eager PyTorch", PlainRepLKNet(), batch=1)
