r"""A priori compression of convolutional neural networks for wave simulators (Boukraichi et al.; 2023; arXiv 2304.04964).

A kernel is written from the start, before training, as outer products of one-dimensional ("one-way") filters, and the filters are
what is trained: k x k numbers become k + k, k x k x k become k + k + k. With output o, input i and R terms,

.. math:: W[o, i] = \sum_{r=1}^{R} f_1[o, i, r] \otimes f_2[o, i, r] \;(\otimes f_3[o, i, r]).

Three layouts of the idea:

* ``pair``: the formula, filters of their own for each pair of channels. Computed as one dense convolution with W, which is exact and
  saves parameters, not time; or one axis after the other (``sequential``), which needs out * in * R maps.
* ``chain``: one-way convolutions that mix channels, nothing between them: in to mid, mid to out (to out): fewer multiply-adds too.
* ``cp``: a 1x1 convolution to R channels, a one-way filter along each axis for each of them, a 1x1 convolution to the outputs.

Stride, padding and dilation go to the axis they belong to, so that every layout equals the dense convolution with :meth:`kernel` exactly.
Filters begin such that W has He's variance 2 / (in * prod k): smaller ones learn slowly, and a filter of zeros never learns. A weight decay
on filters is not one on W. No code was released; the layouts follow the paper's abstract and its outline of the method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.waves import PulseLaw as PulseLaw
from offprint.data.waves import WaveSolver as WaveSolver
from offprint.data.waves import read_fields as read_fields
from offprint.data.waves import solve_wave as solve_wave
from offprint.data.waves import wave_fields as wave_fields
from offprint.errors import OffprintError, unknown
from offprint.methods.registry import Method, register_method

LAYOUTS = ("pair", "chain", "cp")
_AXES = "xyz"
_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


# -- layers ----------------------------------------------------------------------------------------------------------
class OneWayConv(nn.Module):
    """A convolution of one-way filters; use :class:`OneWayConv2d` or :class:`OneWayConv3d`.

    Args:
        in_channels, out_channels: channels.
        kernel_size, stride, padding, dilation: one number, or one for each axis.
        rank: R; of ``chain`` it is not used.
        layout: ``pair``, ``chain`` or ``cp``.
        mid: channels between the first two convolutions of ``chain``; default ``out_channels``.
        bias: add one.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``, as of torch's convolutions.
        sequential: compute ``pair`` axis by axis instead of through its dense kernel.

    Filters are ``weight_0``, ``weight_1``, ...: (out, in, R, k) of ``pair``, (to, from, k) of ``chain``, (R, k) of ``cp``, which has
    ``weight_in`` (R, in) and ``weight_out`` (out, R) besides.

    Raises:
        OffprintError: an unknown layout, or a rank that the layer does not allow.
    """

    ndim = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        rank: int = 1,
        layout: str = "pair",
        mid: int | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        sequential: bool = False,
    ):
        super().__init__()
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        if padding_mode not in _MODES:
            raise unknown("padding_mode", padding_mode, _MODES)
        self.in_channels, self.out_channels, self.layout, self.sequential = (
            in_channels,
            out_channels,
            layout,
            sequential,
        )
        self.kernel_size, self.stride, self.dilation = (self._each(v) for v in (kernel_size, stride, dilation))
        self.padding_mode, self.padding = padding_mode, self._padding(padding)
        self.rank, self.mid = rank, out_channels if mid is None else mid
        most = largest_rank(in_channels, out_channels, self.kernel_size, layout)
        if not 1 <= rank <= most:
            raise OffprintError(
                f"rank={rank} of a {layout} layer {in_channels} to {out_channels} with kernel {self.kernel_size}: it must lie between 1 and "
                f"{most}, beyond which the dense kernel has fewer numbers"
            )
        shapes = self._shapes()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        self.reset_parameters()

    def _each(self, value: int | Sequence[int]) -> tuple[int, ...]:
        found = (value,) * self.ndim if isinstance(value, int) else tuple(value)
        if len(found) != self.ndim or min(found) < 1:
            raise OffprintError(f"{value!r}: expected a positive number, or one for each of {self.ndim} axes")
        return found

    def _padding(self, padding: int | str | Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(before, after) of each axis."""
        if padding == "valid":
            padding = 0
        if padding == "same":
            if max(self.stride) > 1:
                raise OffprintError("padding='same' is not defined for strided convolutions")
            total = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            return tuple((t // 2, t - t // 2) for t in total)
        values = (padding,) * self.ndim if isinstance(padding, int) else tuple(padding)
        if isinstance(padding, str) or len(values) != self.ndim or min(values) < 0:
            raise OffprintError(
                f"padding={padding!r}: expected a number, one for each of {self.ndim} axes, 'same' or 'valid'"
            )
        return tuple((p, p) for p in values)  # type: ignore[misc]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        i, o, r, ks = self.in_channels, self.out_channels, self.rank, self.kernel_size
        if self.layout == "pair":
            return {f"weight_{a}": (o, i, r, k) for a, k in enumerate(ks)}
        if self.layout == "chain":
            ends = [i, self.mid, *[o] * (self.ndim - 1)]
            return {f"weight_{a}": (ends[a + 1], ends[a], k) for a, k in enumerate(ks)}
        return {"weight_in": (r, i), **{f"weight_{a}": (r, k) for a, k in enumerate(ks)}, "weight_out": (o, r)}

    def filters(self) -> list[Tensor]:
        """The one-way filters, axis by axis."""
        return [getattr(self, f"weight_{a}") for a in range(self.ndim)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """He's variance of the dense kernel, shared among the factors."""
        i, volume = self.in_channels, math.prod(self.kernel_size)
        if self.layout == "pair":
            std = (2 / (i * volume * self.rank)) ** (1 / (2 * self.ndim))
            for weight in self.filters():
                nn.init.normal_(weight, std=std)
        elif self.layout == "chain":
            for a, weight in enumerate(self.filters()):
                gain = 2 if a == self.ndim - 1 else 1
                nn.init.normal_(weight, std=math.sqrt(gain / (weight.shape[1] * weight.shape[2])))
        else:
            nn.init.normal_(self.weight_in, std=math.sqrt(1 / i))
            for weight in self.filters():
                nn.init.normal_(weight, std=math.sqrt(1 / weight.shape[1]))
            nn.init.normal_(self.weight_out, std=math.sqrt(2 / self.rank))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def kernel(self) -> Tensor:
        """The dense kernel (out, in, k1, k2[, k3]) that the layer equals."""
        axes = _AXES[: self.ndim]
        if self.layout == "pair":
            return torch.einsum(",".join(f"oir{a}" for a in axes) + f"->oi{axes}", *self.filters())
        if self.layout == "cp":
            spec = "or,ri," + ",".join(f"r{a}" for a in axes) + f"->oi{axes}"
            return torch.einsum(spec, self.weight_out, self.weight_in, *self.filters())
        found = self.filters()[0]  # (mid, in, k1)
        for weight in self.filters()[1:]:
            found = torch.einsum("omz,mi...->oi...z", weight, found)
        return found

    def _along(self, x: Tensor, weight: Tensor, axis: int, groups: int = 1, bias: Tensor | None = None) -> Tensor:
        """A convolution along one axis with filters (out, in / groups, k)."""
        only = lambda values, rest: [v if a == axis else rest for a, v in enumerate(values)]  # noqa: E731
        x = self._padded(x, [p if a == axis else (0, 0) for a, p in enumerate(self.padding)])
        shape = (*weight.shape[:2], *only([weight.shape[2]] * self.ndim, 1))
        convolve = F.conv2d if self.ndim == 2 else F.conv3d
        return convolve(x, weight.reshape(shape), bias, only(self.stride, 1), 0, only(self.dilation, 1), groups)

    def _padded(self, x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
        if not any(map(any, padding)):
            return x
        return F.pad(x, [n for pair in reversed(padding) for n in pair], mode=_MODES[self.padding_mode])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, ...) to (B, out, ...)."""
        if not torch.compiler.is_compiling() and (x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels):
            raise OffprintError(
                f"expected (B, {self.in_channels}, {', '.join('XYZ'[: self.ndim])}), got {tuple(x.shape)}"
            )
        if self.layout == "pair":
            return self._by_axes(x) if self.sequential else self._dense(x)
        if self.layout == "chain":
            last = self.ndim - 1
            for axis, weight in enumerate(self.filters()):
                x = self._along(x, weight, axis, bias=self.bias if axis == last else None)
            return x
        ones = (1,) * self.ndim
        convolve = F.conv2d if self.ndim == 2 else F.conv3d
        x = convolve(x, self.weight_in.view(*self.weight_in.shape, *ones))
        for axis, weight in enumerate(self.filters()):
            x = self._along(x, weight[:, None], axis, groups=self.rank)
        return convolve(x, self.weight_out.view(*self.weight_out.shape, *ones), self.bias)

    def _dense(self, x: Tensor) -> Tensor:
        convolve = F.conv2d if self.ndim == 2 else F.conv3d
        if self.padding_mode == "zeros" and all(a == b for a, b in self.padding):
            return convolve(x, self.kernel(), self.bias, self.stride, [a for a, _ in self.padding], self.dilation)
        return convolve(self._padded(x, self.padding), self.kernel(), self.bias, self.stride, 0, self.dilation)

    def _by_axes(self, x: Tensor) -> Tensor:
        """Every input to out * R maps along the first axis, each of them along the next ones, summed over inputs and terms."""
        o, i, r = self.out_channels, self.in_channels, self.rank
        first, *rest = self.filters()
        x = self._along(x, first.permute(1, 0, 2, 3).reshape(i * o * r, 1, -1), 0, groups=i)
        for axis, weight in enumerate(rest, 1):
            x = self._along(x, weight.permute(1, 0, 2, 3).reshape(i * o * r, 1, -1), axis, groups=i * o * r)
        x = x.unflatten(1, (i, o, r)).sum((1, 3))
        return x if self.bias is None else x + self.bias.view(1, -1, *[1] * self.ndim)

    @classmethod
    def from_dense(cls, conv: nn.Module, rank: int = 1, sweeps: int = 50) -> tuple[OneWayConv, float]:
        """The ``pair`` layer nearest to a trained convolution, for comparison, and the relative error of its kernel.

        Two axes: the singular value decomposition of each kernel, exact from rank min(k) on. Three: singular vectors of the
        unfoldings, then alternating least squares for all kernels at once; nothing larger than a kernel is ever decomposed.

        Raises:
            OffprintError: a grouped or transposed convolution.
        """
        if (why := _skip(conv, cls.ndim)) and "1x1" not in why:
            raise OffprintError(f"{conv}: {why}")
        made = cls(**_arguments(conv), rank=rank)
        weight = conv.weight.detach()  # type: ignore[union-attr,operator]
        with torch.no_grad():
            factors = _svd(weight, rank) if cls.ndim == 2 else _als(weight, rank, sweeps)
            for own, found in zip(made.filters(), factors, strict=True):
                own.copy_(found)
            if made.bias is not None:
                made.bias.copy_(conv.bias)  # type: ignore[arg-type]
            error = float((made.kernel() - weight).norm() / weight.norm().clamp_min(1e-30))
        return made.to(weight), error

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, layout={self.layout}, rank={self.rank}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        )


class OneWayConv2d(OneWayConv):
    """:class:`OneWayConv` on maps (B, C, X, Y)."""

    ndim = 2


class OneWayConv3d(OneWayConv):
    """:class:`OneWayConv` on volumes, or maps over time, (B, C, X, Y, Z)."""

    ndim = 3


def largest_rank(in_channels: int, out_channels: int, kernel_size: Sequence[int], layout: str) -> int:
    """The most terms that any dense kernel of this size needs: beyond it the factors only repeat themselves."""
    if layout == "chain":
        return 1
    volume, longest = math.prod(kernel_size), max(kernel_size)
    if layout == "pair":
        return max(1, volume // longest)
    axes = [in_channels, out_channels, *kernel_size]
    return math.prod(axes) // max(axes)


def _svd(weight: Tensor, rank: int) -> list[Tensor]:
    """Filters (out, in, R, k) of kernels (out, in, k1, k2)."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    kept = min(rank, s.shape[-1])
    root = s[..., :kept].sqrt()
    one = (u[..., :kept] * root[..., None, :]).transpose(-1, -2)
    two = vh[..., :kept, :] * root[..., None]
    return [F.pad(f, (0, 0, 0, rank - kept)) for f in (one, two)]


def _als(weight: Tensor, rank: int, sweeps: int) -> list[Tensor]:
    """Filters (out, in, R, k) of kernels (out, in, k1, k2, k3), all kernels at once."""
    sides = weight.shape[2:]
    unfolded = [weight.movedim(2 + a, 2).flatten(3) for a in range(3)]  # (out, in, k, rest)
    draw = torch.Generator().manual_seed(0)
    factors = []
    for matrix, k in zip(unfolded, sides, strict=True):
        u = torch.linalg.svd(matrix, full_matrices=False).U[..., :rank].transpose(-1, -2)
        more = torch.randn(*u.shape[:2], rank - u.shape[2], k, generator=draw).to(u)
        factors.append(torch.cat([u, more], 2))
    for _ in range(sweeps):
        for a in range(3):
            b, c = (factors[n] for n in range(3) if n != a)
            both = torch.einsum("oirx,oiry->oirxy", b, c).flatten(3)  # (out, in, R, rest)
            gram = both @ both.transpose(-1, -2)
            ridge = 1e-10 * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
            gram = gram + ridge[..., None, None] * torch.eye(rank).to(gram)
            factors[a] = torch.linalg.solve(gram, both @ unfolded[a].transpose(-1, -2))
    size = [f.norm(dim=-1, keepdim=True).clamp_min(1e-30) for f in factors]
    scale = (size[0] * size[1] * size[2]) ** (1 / 3)
    return [f / n * scale for f, n in zip(factors, size, strict=True)]


# -- a whole network -------------------------------------------------------------------------------------------------
@dataclass
class Compression:
    """What :func:`compress` did.

    Attributes:
        rows: for each layer that was replaced: ``layer``, ``parameters`` and ``dense_parameters``, and with an example input also
            ``macs`` and ``dense_macs``.
        skipped: layer → why it was left as it is.
        parameters: trained numbers of the network, (before, after).
        seconds: of one forward pass of the example, (before, after).
        notes: what the user should know.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    seconds: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of the parameters in single precision, (before, after)."""
        return 4 * self.parameters[0], 4 * self.parameters[1]

    def __str__(self) -> str:
        before, after = self.parameters
        text = (
            f"{len(self.rows)} convolutions replaced: {before:,} parameters to {after:,} ({after / max(1, before):.0%})"
        )
        if self.rows and "macs" in self.rows[0]:
            ours, dense = (sum(r[k] for r in self.rows) for k in ("macs", "dense_macs"))
            text += f"; multiply-adds of these layers {dense:,} to {ours:,}"
        if self.seconds:
            text += f"; measured {self.seconds[0] * 1e3:.1f} ms to {self.seconds[1] * 1e3:.1f} ms"
        return "\n".join([text, *(f"left as it is: {name}: {why}" for name, why in self.skipped.items()), *self.notes])


def _skip(module: nn.Module, ndim: int | None = None) -> str:
    """Why a convolution is left as it is; ``""`` where it is replaced."""
    kinds = {2: nn.Conv2d, 3: nn.Conv3d}
    if not any(type(module) is k for n, k in kinds.items() if ndim in (None, n)):
        return "no plain convolution on two or three axes"
    if module.groups > 1:  # type: ignore[operator]
        return f"grouped ({module.groups} groups)"
    if math.prod(module.kernel_size) == 1:  # type: ignore[arg-type]
        return "a 1x1 kernel has nothing to take apart"
    return ""


def _arguments(conv: nn.Module) -> dict[str, Any]:
    """What a one-way layer takes over of a convolution."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None}


def _seconds(model: nn.Module, example: Tensor, rounds: int = 3) -> float:
    was, best = model.training, math.inf
    model.eval()
    with torch.no_grad():
        model(example)
        for _ in range(rounds):
            began = time.perf_counter()
            model(example)
            best = min(best, time.perf_counter() - began)
    model.train(was)
    return best


def compress(
    model: nn.Module,
    layout: str = "pair",
    rank: int = 1,
    *,
    mid: int | None = None,
    sequential: bool = False,
    keep: Sequence[str] = (),
    example: Tensor | None = None,
) -> Compression:
    """Replace, in place and before training, every convolution with a kernel above 1 by one-way filters.

    Stride, padding, dilation, bias and padding mode are taken over. Grouped and 1x1 layers are left, and listed; so are those whose
    factors would hold more numbers than the kernel.

    Args:
        model: any network; a single convolution is put into a container first.
        layout, rank, mid, sequential: as of :class:`OneWayConv`; a layer that does not allow the rank is left, and listed.
        keep: names of layers to leave (the first one, say), or beginnings of names.
        example: an input; with it multiply-adds are counted and a forward pass is timed before and after.

    Raises:
        OffprintError: an unknown layout, nothing to replace, or a name in ``keep`` that the network does not have.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    modules = dict(model.named_modules())
    for name in keep:
        if not any(n == name or n.startswith(f"{name}.") for n in modules):
            raise unknown("layer", name, [n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Conv3d)])
    count = lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad)  # noqa: E731
    report, before = Compression(), count(model)
    slow = None if example is None else _seconds(model, example)
    replaced: dict[str, OneWayConv] = {}
    for name, conv in modules.items():
        if not isinstance(conv, nn.modules.conv._ConvNd):
            continue
        why = "kept" if any(name == k or name.startswith(f"{k}.") for k in keep) else _skip(conv)
        if not name:
            why = "the network is this layer; put it into a container"
        if not why:
            made, why = _replacement(conv, layout, rank, mid, sequential)
        if why:
            report.skipped[name] = why
            continue
        replaced[name] = made
        report.rows.append({"layer": name, "parameters": count(made), "dense_parameters": count(conv)})
    if not replaced:
        told = "; ".join(f"{n}: {w}" for n, w in list(report.skipped.items())[:5]) or "it has no convolutions"
        raise OffprintError(f"nothing to compress: {told}")
    for name, made in replaced.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    report.parameters = (before, count(model))
    if example is not None and slow is not None:
        _count(model, replaced, example, report)
        report.seconds = (slow, _seconds(model, example))
        if report.seconds[1] > slow:
            report.notes.append(
                f"one forward pass takes {report.seconds[1] / slow:.2f} times as long here: fewer parameters are not less time"
                + (" (depth-wise convolutions are slow on this machine)" if layout == "cp" else "")
            )
    return report


def _replacement(conv, layout, rank, mid, sequential) -> tuple[Any, str]:
    """(the layer, why there is none)."""
    most = largest_rank(conv.in_channels, conv.out_channels, conv.kernel_size, layout)
    if layout != "chain" and rank > most:
        return None, f"rank {rank} is above the {most} terms that its kernel can use"
    kind = OneWayConv2d if isinstance(conv, nn.Conv2d) else OneWayConv3d
    made = kind(
        **_arguments(conv), rank=1 if layout == "chain" else rank, layout=layout, mid=mid, sequential=sequential
    )
    ours, dense = (sum(p.numel() for n, p in m.named_parameters() if n != "bias") for m in (made, conv))
    if ours >= dense:
        return None, f"its factors would hold {ours:,} numbers, its kernel {dense:,}"
    return made.to(conv.weight).train(conv.training), ""


def _count(model: nn.Module, replaced: dict[str, OneWayConv], example: Tensor, report: Compression) -> None:
    """Multiply-adds of the replaced layers, from the sizes that the example gives."""
    seen: dict[str, tuple[torch.Size, torch.Size]] = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, o, n=name: seen.__setitem__(n, (i[0].shape, o.shape)))
        for name, layer in replaced.items()
    ]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    for row in report.rows:
        if row["layer"] in seen:
            row["macs"], row["dense_macs"] = macs(replaced[row["layer"]], *seen[row["layer"]])


def macs(layer: OneWayConv, entering: Sequence[int], leaving: Sequence[int]) -> tuple[int, int]:
    """Multiply-adds of a layer and of the dense convolution, from the shapes of its input and output."""
    batch, places = leaving[0], math.prod(leaving[2:])
    dense = batch * places * layer.in_channels * layer.out_channels * math.prod(layer.kernel_size)
    if layer.layout == "pair" and not layer.sequential:
        return dense, dense
    sides, total = list(entering[2:]), 0
    if layer.layout == "cp":
        total += batch * math.prod(sides) * layer.in_channels * layer.rank
    for axis, weight in enumerate(layer.filters()):
        sides[axis] = leaving[2 + axis]
        total += batch * math.prod(sides) * weight.numel()
    if layer.layout == "cp":
        total += batch * places * layer.rank * layer.out_channels
    return total, dense


# -- the predictor of waves ------------------------------------------------------------------------------------------
class WavePredictor(nn.Module):
    """Frames of a wave to the next ones: convolutions over (x, y, t) with tanh between them.

    Args:
        channels: of the hidden layers.
        depth: layers.
        kernel_size: odd.
        layout: ``""`` for dense convolutions, or one of ``LAYOUTS``; the last layer too.
        rank: of the one-way filters.

    Input (B, 1, X, Y, T), output the same: the T frames that follow. The layers end in what is added to the last frame.
    """

    def __init__(self, channels: int = 8, depth: int = 5, kernel_size: int = 3, layout: str = "", rank: int = 1):
        super().__init__()
        if kernel_size % 2 == 0 or depth < 2:
            raise OffprintError(f"kernel_size={kernel_size}, depth={depth}; give an odd kernel and two layers or more")
        ends = [1, *[channels] * (depth - 1), 1]
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, kernel_size, padding=kernel_size // 2)
            if not layout
            else OneWayConv3d(a, b, kernel_size, rank=rank, layout=layout, padding=kernel_size // 2)
            for a, b in zip(ends[:-1], ends[1:], strict=True)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):  # the same variance in all layouts
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)

    @torch.no_grad()
    def rollout(self, frames: Tensor, windows: int) -> Tensor:
        """``windows`` windows after the given one, each from the one before: (B, 1, X, Y, windows * T)."""
        found = []
        for _ in range(windows):
            frames = self(frames)
            found.append(frames)
        return torch.cat(found, -1)


def relative_l2(said: Tensor, truth: Tensor) -> Tensor:
    """Relative error in the L2 norm of each sample, (B,)."""
    gap, size = ((v.flatten(1)).norm(dim=1) for v in (said - truth, truth))
    return gap / size.clamp_min(1e-12)


def draw_fields(path: str | Path, truth: Tensor, said: Tensor, frames: Sequence[int] = (0, 3, 7)) -> Path:
    """A picture of true and predicted fields (X, Y, T) and their difference, a column for each of these frames."""
    from offprint.tasks.results import canvas, finish

    figure, axes = canvas(2.6 * len(frames), 7.4, 3, len(frames))
    top = float(truth.abs().max()) or 1.0
    for column, t in enumerate(frames):
        for row, (label, values) in enumerate((("true", truth), ("predicted", said), ("difference", said - truth))):
            place = axes[row][column] if len(frames) > 1 else axes[row]
            place.imshow(values[..., t].T.cpu(), origin="lower", cmap="RdBu_r", vmin=-top, vmax=top)
            place.set_title(f"{label}, frame {t + 1}", fontsize=8)
            place.axis("off")
    return finish(figure, path)


# -- the method ------------------------------------------------------------------------------------------------------
@register_method
@dataclass(kw_only=True)
class APrioriCompression(Method):
    """Trains the network with its convolutions written as one-way filters from the start.

    Args:
        layout: pair, chain or cp.
        rank: terms of each kernel.
        keep: names of layers to leave as they are, or beginnings of names.
    """

    name = "a-priori-compression"
    paper = "a-priori-compression"
    kind = "module"
    changes = "convolutions with kernels above 1: their kernels become outer products of one-way filters"
    reshapes = True

    layout: str = "pair"
    rank: int = 1
    keep: tuple[str, ...] = ()

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise unknown("layout", self.layout, LAYOUTS)
        if self.rank < 1:
            raise OffprintError(f"rank={self.rank}; give 1 or more")

    def reshape(self, model: nn.Module) -> nn.Module:
        compress(model, self.layout, self.rank, keep=self.keep)
        return model

    def network(self, job: Any) -> None:
        layers = [m for m in job.network.modules() if isinstance(m, OneWayConv)]
        ours = sum(p.numel() for m in layers for p in m.parameters())
        dense = sum(m.kernel().numel() + (0 if m.bias is None else m.out_channels) for m in layers)
        job.say(f"{len(layers)} convolutions of one-way filters: {ours:,} parameters in place of {dense:,}")
