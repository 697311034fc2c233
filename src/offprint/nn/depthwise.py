"""Depth-wise convolution of stride 1 whose backward pass is fast for large kernels on CPUs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        images, channels, height, width = x.shape
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = F.conv2d(grad, weight.flip(2, 3), padding=ctx.padding, groups=channels)
        if ctx.needs_input_grad[1]:
            # the weight's gradient is the correlation of map and gradient: again a depth-wise convolution, with the gradient
            # as its kernel and one group for each image and channel; the library's own routine takes many times as long
            maps = x.contiguous().view(1, images * channels, height, width)
            kernels = grad.contiguous().view(images * channels, 1, height, width)
            each = F.conv2d(maps, kernels, padding=ctx.padding, groups=images * channels)
            to_weight = each.view(images, *weight.shape[:1], *weight.shape[2:]).sum(0).unsqueeze(1)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None


class DepthwiseConv2d(nn.Conv2d):
    """Depth-wise convolution of stride 1 that keeps the size of the map; weights as in :class:`torch.nn.Conv2d`.

    Args:
        dim: channels.
        kernel_size: odd side of the kernel.
        bias: add a bias.
    """

    def __init__(self, dim: int, kernel_size: int, bias: bool = True):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Map (B, dim, H, W) to the same shape, times ``scale`` (which costs nothing: it goes to the kernel)."""
        weight, bias = self.weight, self.bias
        if scale != 1:
            weight, bias = weight * scale, None if bias is None else bias * scale
        by_hand = self.training and torch.is_grad_enabled() and x.device.type == "cpu" and self.kernel_size[0] >= 7
        if by_hand and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu"):
            return _Depthwise.apply(x, weight, bias, self.padding)
        return F.conv2d(x, weight, bias, padding=self.padding, groups=self.groups)
