"""Structural re-parameterisation: parallel convolutions and BatchNorms, trained apart, become one convolution.

Every function takes the kernels of a convolution of any dimension, ``(out, in / groups, *sizes)``, on their own device, computes
in double, and returns the given type: the one rounding is the last. Kernels of parallel branches, once folded with
:func:`fold`, spread with :func:`dilated`, centred with :func:`centred` and brought to common groups with :func:`regrouped`, are
simply added.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError


def _scale_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A BatchNorm in evaluation mode as ``y = scale * x + shift``, in double, each (channels,)."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _along_outputs(vector: Tensor, kernel: Tensor) -> Tensor:
    return vector.reshape(-1, *(1,) * (kernel.ndim - 1))


def fold(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution (or linear layer) followed by a BatchNorm; exact in evaluation mode.

    Args:
        weight: (out, in / groups, ...).
        bias: (out,) or None.
        norm: a BatchNorm of ``out`` channels.

    Returns:
        Kernel and bias in the type of ``weight``.
    """
    scale, shift = _scale_shift(norm)
    if bias is not None:
        shift = shift + bias.double() * scale
    return (weight.double() * _along_outputs(scale, weight)).to(weight.dtype), shift.to(weight.dtype)


def fold_before(norm: nn.Module, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a 1x1 convolution (or linear layer) of one group that a BatchNorm precedes.

    A wider kernel has no such form where it pads: the zeros come after the norm's shift.

    Args:
        norm: a BatchNorm of ``in`` channels.
        weight: (out, in, 1, ...) or (out, in).
        bias: (out,) or None.
    """
    if any(size != 1 for size in weight.shape[2:]):
        raise OffprintError(
            f"a BatchNorm before a kernel of {tuple(weight.shape[2:])} cannot be folded into it: padding comes between; only "
            "kernels of size 1 take it"
        )
    scale, shift = _scale_shift(norm)
    matrix = weight.double()
    moved = matrix.flatten(1) @ shift
    if bias is not None:
        moved = moved + bias.double()
    return (matrix * scale.reshape(1, -1, *(1,) * (weight.ndim - 2))).to(weight.dtype), moved.to(weight.dtype)


def norm_kernel(norm: nn.Module, channels: int, sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A BatchNorm alone as the kernel (channels, 1, *sizes) of a depth-wise convolution, with its bias."""
    scale, shift = _scale_shift(norm)
    kernel = scale.new_zeros(channels, 1, *sizes)
    kernel[(slice(None), 0, *(size // 2 for size in sizes))] = scale
    return kernel.to(dtype), shift.to(dtype)


def centred(kernel: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The kernel in the middle of a larger one of these odd sizes, zeros around it.

    Raises:
        OffprintError: a size is smaller than the kernel's, or leaves no middle.
    """
    have = tuple(kernel.shape[2:])
    if len(have) != len(sizes) or any(w < h or (w - h) % 2 for h, w in zip(have, sizes, strict=True)):
        raise OffprintError(f"a kernel of {have} has no place in the middle of one of {tuple(sizes)}")
    pads = [pad for h, w in zip(reversed(have), reversed(sizes), strict=True) for pad in ((w - h) // 2,) * 2]
    return nn.functional.pad(kernel, pads)


def dilated(kernel: Tensor, dilation: int) -> Tensor:
    """The dense kernel of a dilated one: ``dilation - 1`` zeros between taps, ``dilation * (k - 1) + 1`` on a side."""
    if dilation == 1:
        return kernel
    wide = kernel.new_zeros(*kernel.shape[:2], *(dilation * (k - 1) + 1 for k in kernel.shape[2:]))
    wide[(..., *(slice(None, None, dilation) for _ in kernel.shape[2:]))] = kernel
    return wide


def regrouped(kernel: Tensor, groups: int, fewer: int) -> Tensor:
    """The kernel of a convolution of ``groups`` groups as one of ``fewer``, with zeros where no connection was.

    Args:
        kernel: (out, in / groups, ...).
        groups: that it has.
        fewer: a divisor of ``groups``.
    """
    if groups % fewer:
        raise OffprintError(f"{groups} groups cannot become {fewer}: {fewer} must divide them")
    each, out = groups // fewer, kernel.shape[0] // groups
    if each == 1:
        return kernel
    blocks = kernel.reshape(fewer, each, out, *kernel.shape[1:])
    wide = blocks.new_zeros(fewer, each, out, each, *kernel.shape[1:])
    index = torch.arange(each, device=kernel.device)
    wide[:, index, :, index] = blocks.transpose(0, 1)
    return wide.reshape(kernel.shape[0], each * kernel.shape[1], *kernel.shape[2:])


def common_groups(*groups: int) -> int:
    """The most groups that convolutions of these groups can be merged to."""
    return math.gcd(*groups)
