"""A recurrence over the slices of a map: each slice receives a convolution of the one before it, which has already received its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sweep(x: Tensor, weight: Tensor, reverse: bool = False, short: bool = False) -> Tensor:
    r"""Pass messages along the first axis: :math:`y_i = x_i + \mathrm{relu}(w * y_{i-1})`, :math:`y_0 = x_0`.

    Products are taken over unfolded slices in one buffer, which also is the result; the gradient of the kernel is one product per
    tap over all slices, after the sweep back. While a program is traced the loop is written out in plain operations.

    Args:
        x: (slices, B, N, C), N the places along a slice.
        weight: (C, C, taps), an odd number of taps.
        reverse: from the last slice to the first.
        short: stop one before the end: the last slice of the order gets no message.

    Returns:
        (slices, B, N, C).
    """
    weight = weight.to(x.dtype)
    if torch.compiler.is_compiling() or x.is_meta:  # a traced loop, or one that is only counted
        return _written_out(x, weight, reverse, short)
    steps, half = _order(len(x), reverse, short), weight.shape[-1] // 2
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Sweep.apply(x, weight, steps)
    return _run(x, weight, steps, False)[0][:, :, half : half + x.shape[2]]


def _order(count: int, reverse: bool, short: bool) -> list[tuple[int, int]]:
    """(receiver, sender) in the order of the sweep."""
    steps = [(i, i - 1) for i in range(1, count)]
    if reverse:
        steps = [(count - 1 - i, count - 1 - j) for i, j in steps]
    return steps[:-1] if short else steps


def _written_out(x: Tensor, weight: Tensor, reverse: bool, short: bool) -> Tensor:
    slices = [s.transpose(1, 2) for s in x.unbind(0)]
    for i, j in _order(len(slices), reverse, short):
        slices[i] = slices[i] + F.relu(F.conv1d(slices[j], weight, padding=weight.shape[-1] // 2))
    return torch.stack([s.transpose(1, 2) for s in slices])


def _taps(weight: Tensor) -> Tensor:
    """(C_out, C_in, taps) as the (taps * C_in, C_out) that unfolded slices are multiplied with."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def _unfolded(padded: Tensor, taps: int) -> Tensor:
    """A view (B, N, taps * C) of a padded slice (B, N + taps - 1, C)."""
    b, n, c = padded.shape
    return padded.as_strided((b, n - taps + 1, taps * c), (padded.stride(0), c, 1), padded.storage_offset())


def _run(x: Tensor, weight: Tensor, steps: list[tuple[int, int]], keep: bool) -> tuple[Tensor, Tensor | None]:
    """The swept slices with their padding, and where messages came through the relu (kept for the way back)."""
    _, b, n, c = x.shape
    taps, half, kernel = weight.shape[-1], weight.shape[-1] // 2, _taps(weight)
    y = F.pad(x, (0, 0, half, half)).contiguous()
    sent = torch.zeros(x.shape, dtype=torch.bool, device=x.device) if keep else None
    columns, message = x.new_empty(b, n, taps * c), x.new_empty(b * n, c)
    with torch.autocast(x.device.type, enabled=False):
        for i, j in steps:
            columns.copy_(_unfolded(y[j], taps))
            torch.mm(columns.view(b * n, -1), kernel, out=message)
            if sent is not None:
                sent[i] = message.view(b, n, c) > 0
            y[i, :, half : half + n] += message.relu_().view(b, n, c)
    return y, sent


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, steps: list[tuple[int, int]]) -> Tensor:
        y, sent = _run(x, weight, steps, True)
        ctx.save_for_backward(y, sent, weight)
        ctx.steps = steps
        half = weight.shape[-1] // 2
        return y[:, :, half : half + x.shape[2]].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        y, sent, weight = ctx.saved_tensors
        _, b, n, c = grad.shape
        taps, half = weight.shape[-1], weight.shape[-1] // 2
        kernel = _taps(weight.flip(-1).transpose(0, 1))  # of the transposed convolution
        total = grad.to(y.dtype).clone(memory_format=torch.contiguous_format)
        through = torch.zeros_like(y)  # gradients of the messages before their relu, padded
        columns = grad.new_empty(b, n, taps * c, dtype=y.dtype)
        with torch.autocast(grad.device.type, enabled=False):
            for i, j in reversed(ctx.steps):
                torch.mul(total[i], sent[i], out=through[i, :, half : half + n])
                columns.copy_(_unfolded(through[i], taps))
                total[j] += (columns.view(b * n, -1) @ kernel).view(b, n, c)
            to_weight = torch.empty_like(weight)
            receivers, senders = ([step[k] for step in ctx.steps] for k in (0, 1))
            messages = through[receivers, :, half : half + n].reshape(-1, c).t()
            for k in range(taps):
                to_weight[:, :, k] = messages @ y[senders, :, k : k + n].reshape(-1, c)
        return total, to_weight, None
