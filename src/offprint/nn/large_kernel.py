r"""Depth-wise convolution with a large kernel (13x13 and more), by whichever exact way is quickest.

A depth-wise convolution of a map of :math:`H \times W` with a kernel of :math:`k \times k` takes up to :math:`k^2 HW` products a
channel; as a product of spectra,

.. math:: y = \mathcal{F}^{-1}\big(\mathcal{F}(x) \odot \overline{\mathcal{F}(w)}\big),

on a grid padded by :math:`\lfloor k/2 \rfloor` so that nothing wraps around, the price is that of three transforms, whatever :math:`k`
is; and so are both gradients. Both ways give the same to the rounding of the precision.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from offprint.nn.depthwise import DepthwiseConv2d

LARGE = 13  # from this side on the ways differ; smaller kernels are left to DepthwiseConv2d
PRODUCTS_PER_POINT = 180  # direct products that one point of the padded grid is worth (measured on x86)


def grid_side(least: int) -> int:
    """The smallest even number of at least ``least`` without a prime factor above 5: a quick length to transform."""
    side = least + least % 2
    while True:
        rest = side
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return side
        side += 2


def _taps(side: int, reach: int) -> int:
    """Kernel taps that fall inside a row of ``side`` places, summed over the places; ``reach`` to either side."""
    return side * side if reach >= side else side * (2 * reach + 1) - reach * (reach + 1)


def spectral_pays(height: int, width: int, kernel_size: int) -> bool:
    """Whether the spectral way is the quicker one to compute a map of this size on a processor."""
    reach = kernel_size // 2
    points = grid_side(height + reach) * grid_side(width + reach)
    return _taps(height, reach) * _taps(width, reach) > PRODUCTS_PER_POINT * points


@torch.library.custom_op("offprint::spectral_depthwise", mutates_args=())
def spectral_depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """``conv2d(x, weight, padding=k // 2, groups=channels)`` with an odd side k, as a product of spectra.

    Args:
        x: (B, C, H, W), single or double precision.
        weight: (C, 1, k, k).
    """
    (height, width), weight = x.shape[-2:], _inner(x, weight)
    reach, grid = weight.shape[-1] // 2, _grid(x, weight)
    spectrum = torch.fft.rfft2(weight[:, 0], s=grid).conj_physical()  # a lazy conj() is lost below a dispatch mode
    y = torch.fft.irfft2(torch.fft.rfft2(x, s=grid) * spectrum, s=grid)
    return torch.roll(y, (reach, reach), (-2, -1))[..., :height, :width].contiguous()


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    inner = _inner(x, weight)
    (height, width), size = x.shape[-2:], inner.shape[-1]
    spare, weight = (weight.shape[-1] - size) // 2, inner
    reach, grid = size // 2, _grid(x, weight)
    along, to_x, to_weight = torch.fft.rfft2(grad, s=grid), None, None
    if ctx.needs_input_grad[0]:
        back = torch.fft.irfft2(along * torch.fft.rfft2(weight[:, 0], s=grid), s=grid)
        to_x = torch.roll(back, (-reach, -reach), (-2, -1))[..., :height, :width]
    if ctx.needs_input_grad[1]:
        both = torch.fft.irfft2((torch.fft.rfft2(x, s=grid) * along.conj_physical()).sum(0), s=grid)
        to_weight = torch.roll(both, (reach, reach), (-2, -1))[:, None, :size, :size]
        to_weight = F.pad(to_weight, (spare,) * 4)
    return to_x, to_weight


spectral_depthwise.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.offprint.spectral_depthwise)
def _flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """Those of the convolution that it is: costs are told by the formula of a network, not by the way it is computed."""
    return 2 * math.prod(x_shape) * math.prod(weight_shape[1:])


def _inner(x: Tensor, weight: Tensor) -> Tensor:
    """The middle of a kernel that can meet more than padding."""
    spare = max(0, weight.shape[-1] // 2 + 1 - max(x.shape[-2:]))
    return weight[..., spare : weight.shape[-1] - spare, spare : weight.shape[-1] - spare]


def _grid(x: Tensor, weight: Tensor) -> tuple[int, int]:
    """Sides on which neither the map nor the kernel wraps around."""
    size = weight.shape[-1]
    height, width = (grid_side(max(side + size // 2, size)) for side in x.shape[-2:])
    return height, width


class LargeKernelConv2d(DepthwiseConv2d):
    """Depth-wise convolution of stride 1 and odd side that keeps the size of the map; weights as in :class:`torch.nn.Conv2d`.

    On a processor, in single and double precision, maps whose direct convolution would take longer go through their spectra, all
    do in training, and the direct way is taken in channels-last layout, which is the quicker one for depth-wise kernels. Elsewhere
    (accelerators, autocast, compiled or exported programs) it is one ordinary convolution.
    """

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Map (B, dim, H, W) to the same shape, times ``scale``."""
        size = self.kernel_size[0]
        eager = x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
        if size < LARGE or not eager or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x, scale)
        weight = self.weight if scale == 1 else self.weight * scale
        bias = self.bias if scale == 1 or self.bias is None else self.bias * scale
        learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if not learning and not spectral_pays(x.shape[-2], x.shape[-1], size):
            channels_last = x.contiguous(memory_format=torch.channels_last)
            return F.conv2d(channels_last, weight, bias, padding=self.padding, groups=self.groups)
        y = spectral_depthwise(x, weight)
        if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            y = y.contiguous(memory_format=torch.channels_last)
        return y if bias is None else y + bias[:, None, None]
