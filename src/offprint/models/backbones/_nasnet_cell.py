"""The operations of NASNet's search space (Sec. 3.1), and the cell that a genotype makes of them (Figs. 3, 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from offprint.models.backbones._nasnet_genotype import OPERATIONS, CellTable


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, before and after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded the SAME way for whatever size comes."""

    def __init__(self, in_channels, out_channels, kernel, stride=(1, 1), dilation: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        axes = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        (top, bottom), (left, right) = (_same(n, (k - 1) * d + 1, s) for n, k, s, d in axes)
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)


class Norms(NamedTuple):
    """Settings of every BatchNorm of a network."""

    eps: float
    momentum: float

    def __call__(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, self.eps, self.momentum)


def _fold(owner: nn.Module, conv: str, norm: str) -> None:
    """Put a BatchNorm into the convolution before it (evaluation only)."""
    if not isinstance(getattr(owner, norm), nn.Identity):
        parent, _, leaf = conv.rpartition(".")
        holder = owner.get_submodule(parent) if parent else owner
        setattr(holder, leaf, fuse_conv_bn_eval(getattr(holder, leaf), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm; 1x1 unless a kernel is given."""

    fold_pairs = (("conv", "bn"),)
    rectified = fresh = True  # reads a map after its ReLU; its result is nobody else's and may be overwritten

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norms, stride: int = 1, kernel: int = 1, padding: int = 0
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Separable(nn.Module):
    """Depth-wise kxk and 1x1, BatchNorm, ReLU, and the same again; the input has had its ReLU."""

    rectified = fresh = True

    def __init__(self, in_channels: int, out_channels: int, norm: Norms, kernel: int, stride: int = 1):
        super().__init__()
        for i, (channels, step) in enumerate(((in_channels, stride), (out_channels, 1)), 1):
            pair = nn.Module()
            pair.depthwise_conv2d = SameConv2d(channels, channels, (kernel, kernel), (step, step), groups=channels)
            pair.pointwise_conv2d = nn.Conv2d(channels, out_channels, 1, bias=False)
            setattr(self, f"separable_{i}", pair)
            setattr(self, f"bn_sep_{i}", norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.separable_1, self.separable_2
        x = F.relu(self.bn_sep_1(a.pointwise_conv2d(a.depthwise_conv2d(x))), inplace=True)
        return self.bn_sep_2(b.pointwise_conv2d(b.depthwise_conv2d(x)))

    def merge(self) -> None:
        """Fold both BatchNorms into the 1x1 convolutions before them."""
        for i in (1, 2):
            _fold(self, f"separable_{i}.pointwise_conv2d", f"bn_sep_{i}")


class Convolutions(nn.Module):
    """One or two plain convolutions, each with BatchNorm, a ReLU between; the input has had its ReLU."""

    rectified = fresh = True

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norms, kernels: tuple, dilation: int, stride: int = 1
    ):
        super().__init__()
        self.count = len(kernels)
        for i, kernel in enumerate(kernels, 1):
            along = (stride, stride) if len(kernels) == 1 else tuple(stride if k > 1 else 1 for k in kernel)
            setattr(self, f"conv_{i}", SameConv2d(in_channels, out_channels, kernel, along, dilation))
            setattr(self, f"bn_{i}", norm(out_channels))
            in_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_1(self.conv_1(x))
        return x if self.count == 1 else self.bn_2(self.conv_2(F.relu(x, inplace=True)))

    def merge(self) -> None:
        """Fold the BatchNorms."""
        for i in range(1, self.count + 1):
            _fold(self, f"conv_{i}", f"bn_{i}")


class Pool(nn.Module):
    """Pooling, SAME: padding is minus infinity for a maximum and left out of an average. 1x1 and BatchNorm follow if the width changes."""

    rectified = False

    def __init__(self, in_channels: int, out_channels: int, norm: Norms, kind: str, kernel: int, stride: int):
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride
        self.project = ConvNorm(in_channels, out_channels, norm) if in_channels != out_channels else None
        self.fresh = self.project is not None

    def forward(self, x: Tensor) -> Tensor:
        """The pooled map alone: a cell computes it once for all operands that want it."""
        padding = tuple(_same(n, self.kernel, self.stride)[0] for n in x.shape[2:])
        over = self.stride > 1  # an even side has one more row of padding at its end, which ceil_mode stands for
        if self.kind == "max":
            return F.max_pool2d(x, self.kernel, self.stride, padding, ceil_mode=over)
        return F.avg_pool2d(x, self.kernel, self.stride, padding, ceil_mode=over, count_include_pad=False)


class FactorizedReduction(nn.Module):
    """Half the size without losing pixels: 1x1 convolutions of the pixels at (0, 0), (0, 2), ... and at (1, 1), (1, 3), ...

    Past the last row and column stand zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norms):
        super().__init__()
        half = out_channels // 2
        for name, width in (("path_1", half), ("path_2", out_channels - half)):
            path = nn.Module()
            path.conv = nn.Conv2d(in_channels, width, 1, 2, bias=False)
            setattr(self, name, path)
        self.final_path_bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        second = self.path_2.conv
        # with one pixel of padding the grid is -1, 1, 3, ..., whatever the parity of the side; the first is not wanted
        shifted = F.conv2d(x, second.weight, second.bias, 2, 1)[:, :, 1:, 1:]
        return self.final_path_bn(torch.cat([self.path_1.conv(x), shifted], 1))

    def merge(self) -> None:
        """Divide the BatchNorm between the two convolutions."""
        norm = self.final_path_bn
        if isinstance(norm, nn.Identity):
            return
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift, start = norm.bias - norm.running_mean * scale, 0
        for path in (self.path_1, self.path_2):
            part = slice(start, start + path.conv.out_channels)
            path.conv.weight = nn.Parameter(path.conv.weight * scale[part, None, None, None])
            path.conv.bias = nn.Parameter(shift[part].clone())
            start = part.stop
        self.final_path_bn = nn.Identity()


def _operation(name: str, in_channels: int, filters: int, norm: Norms, stride: int) -> nn.Module:
    kind, *rest = OPERATIONS[name]
    match kind:
        case "sep":
            return Separable(in_channels, filters, norm, rest[0], stride)
        case "conv":
            return Convolutions(in_channels, filters, norm, rest[0], rest[1], stride)
        case "avg" | "max":
            return Pool(in_channels, filters, norm, kind, rest[0], stride)
    return nn.Identity() if stride == 1 and in_channels == filters else ConvNorm(in_channels, filters, norm, stride)


# -- the cell --------------------------------------------------------------------------------------------------------
class Cell(nn.Module):
    """A Normal or Reduction cell.

    Args:
        table: its wiring.
        in_channels, prev_channels: of the two inputs.
        filters: F, the width of its states.
        norm: settings of the BatchNorms.
        reduction: operations on states 0 and 1 have stride 2.
        prev: how state 1 is made: ``"first"`` (there is no previous cell: the input as it is), ``"larger"`` (its map is twice as
            large) or ``"same"``.
        drop: probability of dropping an operation's result at the end of training.
    """

    def __init__(
        self, table: CellTable, in_channels: int, prev_channels: int, filters: int, norm: Norms,
        reduction: bool = False, prev: str = "same", drop: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.blocks, self.concat, self.drop = table.blocks, table.concat, drop
        wanted = {s for b in table.blocks for s in (b.left, b.right)} | set(table.concat)
        self.raw_prev = prev == "first" or (prev == "same" and prev_channels == filters)
        self.conv_1x1 = ConvNorm(in_channels, filters, norm) if 0 in wanted else None
        self.conv_prev_1x1: nn.Module | None = None
        if 1 in wanted and prev == "larger":
            self.conv_prev_1x1 = FactorizedReduction(prev_channels, filters, norm)
        elif 1 in wanted and not self.raw_prev:
            self.conv_prev_1x1 = ConvNorm(prev_channels, filters, norm)
        self.uses_prev = 1 in wanted
        widths = [filters, prev_channels if self.raw_prev else filters]
        for i, b in enumerate(table.blocks):
            for side, state, op in (("left", b.left, b.left_op), ("right", b.right, b.right_op)):
                stride = 2 if reduction and state < 2 else 1
                setattr(self, f"comb_iter_{i}_{side}", _operation(op, widths[state], filters, norm, stride))
            widths.append(filters if b.combine == "add" else 2 * filters)
        self.brought: tuple[int, ...] = ()  # inputs that are part of the output and have not its size or width
        for s in table.concat:
            if s < 2 and (reduction or widths[s] != filters):
                make = FactorizedReduction if reduction else ConvNorm
                setattr(self, f"cell_output_{s}", make(widths[s], filters, norm))
                self.brought += (s,)
                widths[s] = filters
        self.out_channels = sum(widths[s] for s in table.concat)

    def forward(self, x: Tensor, prev: Tensor, progress: Tensor | None = None) -> Tensor:
        """The output (B, C, H, W), before any ReLU.

        Args:
            x: the input, after its ReLU.
            prev: the previous cell's output, after its ReLU unless ``raw_prev``.
            progress: how far training is, 0 to 1, where paths are dropped.
        """
        states: list[Any] = [self.conv_1x1(x) if self.conv_1x1 is not None else None, None]
        if self.uses_prev:
            states[1] = self.conv_prev_1x1(prev) if self.conv_prev_1x1 is not None else prev
        masks = None
        if progress is not None:
            keep = 1 - self.drop * progress
            noise = torch.rand(2 * len(self.blocks), len(x), 1, 1, 1, device=x.device, dtype=progress.dtype)
            masks = torch.floor(noise + keep) / keep
        shared: dict = {}  # ReLUs and poolings, each computed once
        for i, b in enumerate(self.blocks):
            mask = (None, None) if masks is None else masks[2 * i : 2 * i + 2]
            left, own = self._operand(f"comb_iter_{i}_left", b.left, b.left_op, states, shared, mask[0])
            right, also = self._operand(f"comb_iter_{i}_right", b.right, b.right_op, states, shared, mask[1])
            if b.combine == "concat":
                states.append(torch.cat([left, right], 1))
            elif own:
                states.append(left.add_(right))
            else:
                states.append(right.add_(left) if also else left + right)
        for s in self.brought:
            states[s] = getattr(self, f"cell_output_{s}")(states[s])
        return torch.cat([states[s] for s in self.concat], 1)

    def _operand(
        self, name: str, state: int, op: str, states, shared: dict, mask: Tensor | None
    ) -> tuple[Tensor, bool]:
        """An operation's result, and whether it may be overwritten."""
        module = getattr(self, name)
        if isinstance(module, nn.Identity):
            return states[state], False
        if isinstance(module, Pool):
            key: Any = (state, module.kind, module.kernel)
            if key not in shared:
                shared[key] = module(states[state])
            y = shared[key] if module.project is None else module.project(shared[key])
        else:
            if state not in shared:
                shared[state] = F.relu(states[state])
            y = module(shared[state])
        if mask is None or op == "identity":
            return y, module.fresh
        return y * mask.to(y.dtype), True
