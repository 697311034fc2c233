r"""Several depth-wise convolutions of one map, some of them large, fast in training on CPUs too.

PyTorch's own takes its time in two places. Forward and for the map's gradient it is ten times slower on maps in its default memory
format than on channels-last ones, so that is what maps become here. The kernel's gradient, a correlation of two maps as large as the
image, takes it longer than both; here it is a product of Fourier transforms, whose cost does not depend on the kernel,

.. math:: \partial w[d] = \sum_{n, p} x_n[p + d]\, g_n[p] = F^{-1}\Big(\sum_n F(x_n) \overline{F(g_n)}\Big)[d],

on sides long enough that nothing wraps around. Everywhere else (GPUs, autocast, evaluation, compilation) it is PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.nn.large_kernel import grid_side


class _LargeDepthwise(torch.autograd.Function):
    """Several depth-wise convolutions of one map, which is transformed once for the gradients of all kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, *kernels: Tensor):
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, *kernels)
        return tuple(F.conv2d(x, w, padding=w.shape[-1] // 2, groups=x.shape[1]) for w in kernels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):
        x, *kernels = ctx.saved_tensors
        channels, most = x.shape[1], max(w.shape[-1] for w in kernels) // 2
        sides = [grid_side(n + most) for n in x.shape[2:]]
        to_x = transformed = None
        to_kernels: list[Tensor | None] = []
        for i, (w, g) in enumerate(zip(kernels, grads, strict=True)):
            g = g.contiguous(memory_format=torch.channels_last)
            reach = w.shape[-1] // 2
            if ctx.needs_input_grad[0]:
                part = F.conv2d(g, w.flip(2, 3), padding=reach, groups=channels)
                to_x = part if to_x is None else to_x.add_(part)
            if not ctx.needs_input_grad[1 + i]:
                to_kernels.append(None)
                continue
            if transformed is None:
                transformed = torch.fft.rfft2(x.contiguous(), s=sides)
            spectrum = (transformed * torch.fft.rfft2(g.contiguous(), s=sides).conj_physical()).sum(0)
            everywhere = torch.fft.irfft2(spectrum, s=sides)  # by shifts, negative ones from the end
            shift = torch.arange(-reach, reach + 1, device=x.device)
            rows, columns = shift % sides[0], shift % sides[1]
            to_kernels.append(everywhere[:, rows[:, None], columns][:, None])
        return (to_x, *to_kernels)


def by_hand(x: Tensor, training: bool) -> bool:
    """Whether a depth-wise convolution of this map is better computed here than by PyTorch."""
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return (
        training
        and known
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def large_depthwise(x: Tensor, kernels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Depth-wise convolutions of stride 1 of one map on a CPU, each keeping its size.

    Args:
        x: (B, C, H, W), in float32 or double.
        kernels: (C, 1, K, K) each, K odd; they may be wider than the map.
    """
    return _LargeDepthwise.apply(x, *kernels)
