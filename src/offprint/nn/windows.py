"""Windows of tokens, along two axes or three: cutting a map into them, attention inside, relative positions.

What depends on the shape alone (orders, masks, index tables) is made once per shape and device and kept outside the models:
it enters no state dict, no copy and no pickle, and a traced program holds it as a constant expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.nn.precision import wide_dtype

_kept: dict[tuple, object] = {}
_MOST = 256  # shapes kept; the oldest goes first
FAR = 80.0  # a logit so far below the largest of its row weighs nothing, in float64 neither (e^-80 = 2e-35)
_LARGE = 256  # tokens of a window from which logits are made a block at a time (7x7x7 are; measured, 12x12 gain little)
_BLOCK = 1 << 20  # logits of a block: 4 MB, a part of the last cache


def keep(key: tuple, build: Callable[[], object]):
    """``build()``, or what it gave for this key before; nothing is kept while a program is traced."""
    if torch.compiler.is_compiling():
        return build()
    if key in _kept:
        return _kept[key]
    with torch.inference_mode(False):  # a kept tensor may serve in training later
        value = build()
    parts = value if isinstance(value, tuple) else (value,)
    if all(type(p) is Tensor for p in parts if isinstance(p, Tensor)):  # not the stand-ins of a tracer
        while len(_kept) >= _MOST:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = value
    return value


class Windows(NamedTuple):
    """How a map of tokens is cut into windows and put together again.

    Attributes:
        sides: of the map.
        padded: sides rounded up to whole windows; the new rows and columns are zeros at the end of each axis.
        window: tokens of a window per axis.
        shift: tokens by which the windows are displaced per axis.
        order: (padded tokens,) the token that stands at each place of the displaced windows; ``None`` without displacement.
        back: (tokens,) the place at which each token of the map stands.
        mask: (windows, tokens, tokens) -100 between tokens that only the displacement brought together, else 0.
    """

    sides: tuple[int, ...]
    padded: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    order: Tensor | None
    back: Tensor | None
    mask: Tensor | None


def windows(
    sides: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device=None,
    dtype: torch.dtype = torch.float32,
) -> Windows:
    """The cut of a map with these sides into windows displaced by ``shift`` (zeros: plain windows); its mask is float32 at least."""
    sides, window, shift = tuple(sides), tuple(window), tuple(shift)
    padded = tuple(-(-s // w) * w for s, w in zip(sides, window, strict=True))
    if not any(shift):
        return Windows(sides, padded, window, shift, None, None, None)
    dtype = wide_dtype(dtype)
    device = torch.get_default_device() if device is None else device
    key = ("windows", sides, window, shift, device, dtype)
    return keep(key, lambda: _displaced(sides, padded, window, shift, device, dtype))


def _displaced(sides, padded, window, shift, device, dtype) -> Windows:
    axes = tuple(range(len(sides)))
    places = torch.arange(math.prod(padded), device=device).view(padded)
    order = _cut(torch.roll(places, [-s for s in shift], axes)[None, ..., None], window).flatten()
    back = torch.argsort(order).view(padded)[tuple(slice(s) for s in sides)].flatten()
    label = torch.zeros(padded, dtype=torch.long, device=device)
    for axis, (side, w, s) in enumerate(zip(padded, window, shift, strict=True)):
        if s:  # of the rolled map: the body, what is left of the last window, and what came round from the start
            at = torch.arange(side, device=device)
            part = (at >= side - w).long() + (at >= side - s).long()
            label = 3 * label + part.view([-1 if i == axis else 1 for i in axes])
    label = _cut(label[None, ..., None], window)[0, :, :, 0]
    mask = (label[:, :, None] != label[:, None]).to(dtype) * -100.0
    return Windows(sides, padded, window, shift, order, back, mask)


def _cut(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """(B, *sides, C) to (B, windows, tokens, C), both in raster order."""
    b, c, n = x.shape[0], x.shape[-1], len(window)
    shape = chain.from_iterable((s // w, w) for s, w in zip(x.shape[1:-1], window, strict=True))
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.reshape(b, *shape, c).permute(order).reshape(b, -1, math.prod(window), c)


def split(x: Tensor, cut: Windows) -> Tensor:
    """(B, *sides, C) to (B, windows, tokens, C)."""
    if cut.padded != cut.sides:
        pads = ((0, p - s) for s, p in zip(reversed(cut.sides), reversed(cut.padded), strict=True))
        x = F.pad(x, (0, 0, *chain.from_iterable(pads)))
    if cut.order is None:
        return _cut(x, cut.window)
    b, c = x.shape[0], x.shape[-1]  # one gather displaces and cuts
    return x.reshape(b, -1, c).index_select(1, cut.order).view(b, -1, math.prod(cut.window), c)


def join(x: Tensor, cut: Windows) -> Tensor:
    """The inverse of :func:`split`; what was padded is gone."""
    b, c, n = x.shape[0], x.shape[-1], len(cut.window)
    if cut.back is not None:
        return x.reshape(b, -1, c).index_select(1, cut.back).view(b, *cut.sides, c)
    counts = [p // w for p, w in zip(cut.padded, cut.window, strict=True)]
    order = (0, *chain.from_iterable((1 + i, 1 + n + i) for i in range(n)), 2 * n + 1)
    x = x.reshape(b, *counts, *cut.window, c).permute(order).reshape(b, *cut.padded, c)
    return x if cut.padded == cut.sides else x[(slice(None), *(slice(s) for s in cut.sides))]


def relative_position_index(window: tuple[int, ...], device=None) -> Tensor:
    """(tokens, tokens): row of the bias table for each query and key of a window.

    The table lists the offsets query - key from -(M-1) to M-1 along each axis, the last axis fastest.
    """
    window, device = tuple(window), torch.get_default_device() if device is None else device
    return keep(("index", window, device), lambda: _index(window, device))


def _index(window: tuple[int, ...], device) -> Tensor:
    grid = torch.meshgrid(*(torch.arange(m, device=device) for m in window), indexing="ij")
    index = torch.zeros(1, 1, dtype=torch.long, device=device)
    for m, at in zip(window, (g.flatten() for g in grid), strict=True):
        index = index * (2 * m - 1) + (at[:, None] - at[None] + m - 1)
    return index


def gather_bias(table: Tensor, window: tuple[int, ...]) -> Tensor:
    """A table (offsets, heads) as the bias (heads, tokens, tokens) of every pair of a window."""
    index = relative_position_index(window, table.device)
    return table.t().index_select(1, index.flatten()).view(-1, *index.shape)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale q k' + bias + mask) v in each window.

    Args:
        q, k, v: (B * windows, heads, tokens, d), the windows of one image together.
        bias: (heads, tokens, tokens).
        mask: (windows, tokens, tokens).
        scale: default d^-0.5.

    Returns:
        (B * windows, tokens, heads * d).
    """
    n, heads, t, d = q.shape
    scale = d**-0.5 if scale is None else scale
    learns = torch.is_grad_enabled() and bias.requires_grad
    if _in_blocks(q, bias):
        parts = (x.transpose(2, 3).reshape(n * heads, d, t).contiguous() for x in (q * scale, k, v))
        out = _Blocked.apply(*parts, bias, mask) if learns else _Blocked.forward(*parts, bias, mask)
        return out.view(n, heads * d, t).transpose(1, 2).contiguous()
    whole = bias[None] if mask is None else bias + mask[:, None]
    # fused kernels give no gradient to the bias, and what they become in other runtimes differs in memory layout
    if learns or torch.compiler.is_exporting():
        logits = torch.bmm((q * scale).reshape(n * heads, t, d), k.reshape(n * heads, t, d).transpose(1, 2))
        logits = whole + logits.view(-1, *whole.shape)
        if mask is not None:  # weights that are nothing beside the largest: as denormal numbers they cost tenfold
            with torch.no_grad():  # the softmax gives them no gradient anyway
                logits.masked_fill_(logits < logits.amax(-1, keepdim=True) - FAR, -torch.inf)
        weights = logits.softmax(-1).view(n * heads, t, t)
        out = torch.bmm(weights.to(v.dtype), v.reshape(n * heads, t, d)).view(n, heads, t, d)
    else:
        if mask is not None:
            whole = whole.expand(n // mask.shape[0], *whole.shape).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=whole.to(q.dtype), scale=scale)
    return out.transpose(1, 2).reshape(n, t, heads * d)


def _in_blocks(q: Tensor, bias: Tensor) -> bool:
    """Whether windows are so large that their logits would leave a CPU's cache before they are used."""
    exact = q.dtype == bias.dtype and q.dtype in (torch.float32, torch.float64)
    return exact and q.device.type == "cpu" and q.shape[2] >= _LARGE and not torch.compiler.is_compiling()


class _Blocked(torch.autograd.Function):
    """softmax(q' k + bias + mask) v, the logits of a few windows at a time and again in the backward pass, never all in memory.

    q (scaled), k and v are (B * windows * heads, d, tokens): products of so few rows are several times as fast that way round.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(v)
        for rows, weights, _ in _blocks(q, k, bias, mask):
            torch.bmm(v[rows], weights.transpose(1, 2), out=out[rows])
        return out

    @staticmethod
    def setup_context(ctx, inputs, output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v, bias, mask, out = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: that of the formula
            logits = (q.transpose(1, 2) @ k).unflatten(0, (-1, len(bias))) + bias
            if mask is not None:
                logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
            plain = v @ logits.softmax(-1).flatten(0, 1).transpose(1, 2)
            wanted = [x for x, needed in zip((q, k, v, bias), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(plain, wanted, grad, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:4]), None
        grad = grad.contiguous()
        to_q, to_k, to_v = (torch.empty_like(x) for x in (q, k, v))
        mean = (grad * out).sum(1).unsqueeze(2)  # what the softmax takes from the gradient of every logit of a row
        to_bias = torch.zeros_like(bias)
        for rows, weights, logits in _blocks(q, k, bias, mask):
            torch.bmm(grad[rows], weights, out=to_v[rows])
            torch.bmm(grad[rows].transpose(1, 2), v[rows], out=logits).sub_(mean[rows]).mul_(weights)
            to_bias += logits.unflatten(0, (-1, len(bias))).sum(0)
            torch.bmm(k[rows], logits.transpose(1, 2), out=to_q[rows])
            torch.bmm(q[rows], logits, out=to_k[rows])
        return to_q, to_k, to_v, to_bias, None


def _blocks(q: Tensor, k: Tensor, bias: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, their softmax weights, scratch of the same shape) of a few windows; both are overwritten by the next."""
    heads, t, _ = bias.shape
    count = len(q) // heads
    per_image = count if mask is None else len(mask)
    most = min(per_image, max(1, _BLOCK // (heads * t * t)))
    scratch, weights = q.new_empty(2, most * heads, t, t).unbind()
    for image in range(0, count, per_image):
        for first in range(0, per_image, most):
            last = min(first + most, per_image)
            rows, used = slice((image + first) * heads, (image + last) * heads), slice((last - first) * heads)
            logits = torch.bmm(q[rows].transpose(1, 2), k[rows], out=scratch[used])
            by_window = logits.view(-1, heads, t, t)
            by_window += bias
            if mask is not None:
                by_window += mask[first:last, None]
                logits -= logits.amax(-1, keepdim=True)
                F.threshold_(logits, -FAR, -torch.inf)  # as above: no denormal numbers
            yield rows, torch.softmax(logits, -1, out=weights[used]), logits
