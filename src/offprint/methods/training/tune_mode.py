r"""Efficient ConvBN Blocks for Transfer Learning and Beyond (You et al., ICLR 2024; arXiv 2305.11624).

Fine-tuning often keeps BatchNorms in evaluation mode. A convolution :math:`w, b` and such a norm :math:`\gamma, \beta, \mu, \sigma^2` are then one
affine map, and tune mode computes it as one convolution whose kernel is folded anew, under autograd, at every step:

.. math:: c = \gamma / \sqrt{\sigma^2 + \epsilon}, \qquad w' = c\,w, \qquad b' = \beta + c\,(b - \mu), \qquad Z = w' * X + b'.

| mode | computes | saves for backward | trains |
|---|---|---|---|
| train | :math:`Y = w * X + b`, normalised by the batch | :math:`X, Y` | :math:`w, b, \gamma, \beta`; moves :math:`\mu, \sigma^2` |
| eval | :math:`Y = w * X + b`, :math:`Z = c\,(Y - \mu) + \beta` | :math:`X, Y` | :math:`w, b, \gamma, \beta` |
| tune | :math:`Z = w' * X + b'` | :math:`X, w'` | :math:`w, b, \gamma, \beta` |
| deploy | the same, folded once | :math:`X` | :math:`w', b'` |

Outputs and gradients of tune are those of eval, for less memory where the map :math:`Y` is larger than the kernel :math:`w'`: at small batches it is not,
and :func:`measure_modes` says so. Deploy is not the same training: :math:`\partial w = c\,\partial w'` and :math:`w' = c\,w`, so that a step
of eval moves the kernel by :math:`c^2` times what it moves in deploy, channel by channel.

What is folded are *calls*: the graph of the network (torch.fx; where that cannot be had, torch.export on an example; else its parts one by one)
says which norms read nothing but convolutions' outputs, and which convolutions are read by norms alone. A convolution then folds the norm after
it, and where it is shared by several norms each of these folds itself into it; everything else stays as it is: names, parameters, control flow, copies, pickles, hooks added later. At run time
``norm.training`` decides: in training mode both do what they did before, so that ``model.train()`` gives plain training back;
:func:`freeze_norms` puts the norms into evaluation mode again.

The authors' code (apple/ml-tune-mode-convbn) is under Apple's sample-code licence; this file was written from the formulas.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from offprint.errors import OffprintError, unknown
from offprint.methods.registry import Method, register_method
from offprint.methods.training._networks import named_network
from offprint.nn import DepthwiseConv2d, Pointwise

MODES = ("tune", "deploy", "eval")
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_OURS = (DepthwiseConv2d, Pointwise)  # forwards of their own, linear in weight and bias
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncBatchNorm)


def _out(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


# -- the formulas ------------------------------------------------------------------------------------------------------
def _coefficient(norm: _BatchNorm) -> Tensor:
    """c (C,), in float32 where the statistics are in half precision: small variances would not survive."""
    assert norm.running_var is not None
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)
    c = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    return c if norm.weight is None else norm.weight.to(wide) * c


class _Scaled(torch.autograd.Function):
    """Rows of a weight times c, whose backward pass makes no product of the weight's size for the gradient of c."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, c: Tensor) -> Tensor:
        return weight * c.view(-1, *[1] * (weight.ndim - 1))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight, c = ctx.saved_tensors
        rows, others = grad.flatten(1), weight.flatten(1)
        return grad * c.view(-1, *[1] * (weight.ndim - 1)), torch.bmm(rows[:, None], others[:, :, None]).flatten()


def _by_channel(layer: nn.Module, weight: Tensor, c: Tensor) -> Tensor:
    """A layer's weight times a factor per output channel."""
    if not isinstance(layer, _ConvTransposeNd):
        return _Scaled.apply(weight, c)
    # (C_in, C_out / groups, ...): input channels of a group go to the output channels of that group
    rows = c.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
    return weight * rows.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))


def fold(layer: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that a convolution (or linear layer) and a norm in evaluation mode are; differentiable."""
    c = _coefficient(norm)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    assert norm.running_mean is not None
    mean = norm.running_mean.to(c.dtype)
    shift = c * (-mean if bias is None else bias.to(c.dtype) - mean)
    if norm.bias is not None:
        shift = norm.bias.to(c.dtype) + shift
    return _by_channel(layer, weight.to(c.dtype), c).to(weight.dtype), shift.to(weight.dtype)


# -- two modules that work together ------------------------------------------------------------------------------------
class _Changed:
    """A module that was changed in place; its class remembers the one it had, copies and pickles keep both."""

    base: type[nn.Module]

    def __reduce_ex__(self, protocol):
        kind = next(c for c in type(self).__mro__ if c in (_Folding, _Folded, _Passing, _Convolving))
        return _blank, (kind, type(self).base), self.__dict__


def _blank(kind: type, base: type[nn.Module]) -> nn.Module:
    return object.__new__(_changed(kind, base))


@cache
def _changed(kind: type, base: type[nn.Module]) -> type:
    # under the module name of the base, tracers take it for the leaf that the base is
    return type(
        base.__name__, (kind, base), {"base": base, "__module__": base.__module__, "__qualname__": base.__qualname__}
    )


class _Folding(_Changed):
    """A convolution that folds the norm after it into its kernel while that norm is in evaluation mode."""

    def forward(self, *args, **kwargs) -> Tensor:
        norm, base = self.__dict__["norm"], type(self).base
        if norm.training or not _folds(self, _given(self, args, kwargs)):  # type: ignore[arg-type]
            return base.forward(self, *args, **kwargs)  # type: ignore[arg-type]
        return _call(self, base, norm, args, kwargs)  # type: ignore[arg-type]


class _Folded(_Changed):
    """A norm whose work its convolution does while it is in evaluation mode."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as the norms name it)
        if self.training or not _folds(self.__dict__["layers"][0], input):  # type: ignore[attr-defined]
            return type(self).base.forward(self, input)  # type: ignore[arg-type]
        return input


class _Passing(_Changed):
    """A convolution that several norms read, each in a call of its own: it hands its input on, and they convolve it."""

    def forward(self, *args, **kwargs) -> Tensor:
        x = _given(self, args, kwargs)  # type: ignore[arg-type]
        if _all_frozen(self) and _folds(self, x):  # type: ignore[arg-type]
            return x
        return type(self).base.forward(self, *args, **kwargs)  # type: ignore[arg-type]


class _Convolving(_Changed):
    """A norm that computes a shared convolution folded with itself, while all norms of that convolution are in evaluation mode."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        layer = self.__dict__["layers"][0]
        if _all_frozen(layer) and _folds(layer, input):
            return _call(layer, type(layer).base, self, (input,), {})  # type: ignore[arg-type]
        return type(self).base.forward(self, input)  # type: ignore[arg-type]


def _all_frozen(layer: nn.Module) -> bool:
    return not any(norm.training for norm in layer.__dict__["norms"])


def _given(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["x" if isinstance(layer, _OURS) else "input"]


def _folds(layer: nn.Module, x: Tensor) -> bool:
    """A norm after a linear layer normalises its features only where there is no other axis."""
    return x.ndim == 2 or not isinstance(layer, nn.Linear)


def _call(layer: nn.Module, base: type[nn.Module], norm: _BatchNorm, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The layer with the norm folded into it."""
    weight, bias = fold(layer, norm)
    x = _given(layer, args, kwargs)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, _ConvTransposeNd):
        return _transposed(layer, x, weight, bias, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
    if base not in _OURS:
        return layer._conv_forward(x, weight, bias)  # type: ignore[operator]
    own = dict(layer._parameters)
    layer._parameters.update(weight=weight, bias=bias)  # type: ignore[arg-type]
    try:
        return base.forward(layer, *args, **kwargs)
    finally:
        layer._parameters.update(own)


def _transposed(layer, x: Tensor, weight: Tensor, bias: Tensor, output_size: list[int] | None = None) -> Tensor:
    n = weight.ndim - 2
    padding = layer._output_padding(
        x, output_size, list(layer.stride), list(layer.padding), list(layer.kernel_size), n, list(layer.dilation)
    )
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    return function(x, weight, bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation)


def _join(layers: Sequence[nn.Module], norms: Sequence[nn.Module]) -> None:
    """Let one norm after each of some layers, or some norms after one layer, work together."""
    # what they know of each other is no submodule: names and parameters stay as they are
    shared = len(norms) > 1
    for layer in layers:
        layer.__dict__["norms" if shared else "norm"] = tuple(norms) if shared else norms[0]
        layer.__class__ = _changed(_Passing if shared else _Folding, type(layer))
    for norm in norms:
        norm.__dict__["layers"] = tuple(layers)
        norm.__class__ = _changed(_Convolving if shared else _Folded, type(norm))


class TuneConvBN(nn.Module):
    """One block, for networks that are written with it: a convolution (or linear layer) and its norm in tune mode.

    Args:
        conv: any convolution, transposed ones too, or a linear layer.
        bn: its norm, put into evaluation mode by whoever trains; in training mode the two are what they always were.
    """

    def __init__(self, conv: nn.Module, bn: nn.Module):
        super().__init__()
        if why := _why_not(conv, bn):
            raise OffprintError(f"{type(conv).__name__} and {type(bn).__name__} cannot be one block: {why}")
        self.conv, self.bn = conv, bn
        _join((conv,), (bn,))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def _hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(module.__dict__.get(kind) for kind in kinds)


def _why_not(layer: nn.Module | None, norm: nn.Module) -> str:
    """Why two modules that follow each other cannot be one; ``""`` where they can."""
    if layer is None or not isinstance(layer, _ConvNd | nn.Linear):
        return "what comes before it is no convolution"
    for module in (layer, norm):
        if parametrize.is_parametrized(module):
            return f"{type(module).__name__} is parametrized"
        if _hooked(module):
            return f"{type(module).__name__} carries hooks, which see what is computed between the two"
    if type(layer) not in _PLAIN and type(layer) not in _OURS:
        return f"{type(layer).__name__} has a forward of its own"
    if type(norm) not in _NORMS:
        return f"{type(norm).__name__} is no plain BatchNorm"
    if any(is_lazy(p) for m in (layer, norm) for p in m.parameters(recurse=False)):
        return "its size is not known before the first batch"
    if getattr(norm, "running_var", None) is None:
        return "it keeps no statistics (track_running_stats=False)"
    if _out(layer) != norm.num_features:
        return f"it normalises another axis: {_out(layer)} outputs, {norm.num_features} features"
    return ""


# -- which calls follow which ------------------------------------------------------------------------------------------
class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _ConvNd | _BatchNorm | nn.Linear) or super().is_leaf_module(m, qualified_name)


@dataclass
class _Calls:
    """Of each norm, by id, what was seen to feed it (a layer, or words); of each layer, by id, the norm that reads it, or ``None``."""

    feeds: dict[int, list[nn.Module | str]] = field(default_factory=dict)
    readers: dict[int, list[nn.Module | None]] = field(default_factory=dict)

    def read(self, graph: fx.Graph, module_of: Callable[[fx.Node], nn.Module | None]) -> None:
        for node in graph.nodes:
            module = module_of(node)
            if isinstance(module, _BatchNorm):
                given = node.args[0] if node.args else node.kwargs.get("input")
                source = module_of(given) if isinstance(given, fx.Node) else None
                found: nn.Module | str = _words(given)
                if isinstance(source, _ConvNd | nn.Linear):
                    found = source if len(given.users) == 1 else "what its convolution gives is read elsewhere too"
                self.feeds.setdefault(id(module), []).append(found)
            elif isinstance(module, _ConvNd | nn.Linear):
                reader = module_of(next(iter(node.users))) if len(node.users) == 1 else None
                self.readers.setdefault(id(module), []).append(reader if isinstance(reader, _BatchNorm) else None)


def _words(node: Any) -> str:
    if not isinstance(node, fx.Node) or node.op == "placeholder":
        return "it reads the input"
    target = getattr(node.target, "__name__", str(node.target)).removesuffix(".default")
    return f"it reads the output of {target}, not of a convolution (as in networks that normalise first)"


@contextlib.contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    flags = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for m, flag in flags.items():
            m.training = flag


def _by_fx(part: nn.Module, calls: _Calls) -> None:
    """Both modes are traced: some networks have branches for training alone."""
    with _flags_kept(part):
        graphs = [_Tracer().trace(part.train(mode)) for mode in (False, True)]
    modules = dict(part.named_modules(remove_duplicate=False))
    for graph in graphs:
        calls.read(graph, lambda node: modules.get(node.target) if node.op == "call_module" else None)


def _by_export(part: nn.Module, calls: _Calls, example: tuple[Any, ...]) -> None:
    with _flags_kept(part), torch.no_grad():
        graph = torch.export.export(part.eval(), example, strict=False).graph
    modules = dict(part.named_modules(remove_duplicate=False))

    def module_of(node: fx.Node) -> nn.Module | None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        name = str(stack[-1][0]).partition("@")[0] if stack and node.op == "call_function" else ""
        return modules.get(name) if name else None

    calls.read(graph, module_of)


def _look(part: nn.Module, name: str, calls: _Calls, how: dict[str, str], example: tuple[Any, ...] | None) -> None:
    """Fill ``calls`` from one part, and say in ``how`` by what means; ``name`` is ``""`` for the whole."""
    if not any(isinstance(m, _BatchNorm) for m in part.modules()):
        return
    shown = name or "the network"
    try:
        _by_fx(part, calls)
        how[shown] = "torch.fx"
        return
    except Exception as error:  # whatever keeps a forward from being traced, the next means may do
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    if example is not None:
        try:
            _by_export(part, calls, example)
            how[shown] = f"torch.export (torch.fx: {why})"
            return
        except Exception as error:
            why += f"; torch.export: {(str(error).strip().splitlines() or [type(error).__name__])[0][:120]}"
    children = list(part.named_children())
    if type(part).forward is not nn.Module.forward and children:
        how[shown] = f"its parts one by one (torch.fx: {why})"
    for child, module in children:
        _look(module, f"{name}.{child}".lstrip("."), calls, how, None)


@dataclass
class FuseReport:
    """What was done to a network.

    Attributes:
        mode: ``tune``, ``deploy`` or ``eval``.
        fused: names of (convolution, norm) that work together.
        left: name of a norm that was left alone → why.
        how: name of a part → how its calls were found.
    """

    mode: str
    fused: list[tuple[str, str]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.mode} mode: {len(self.fused)} of {len(self.fused) + len(self.left)} BatchNorms folded into the layer before them"
        ]
        reasons: dict[str, list[str]] = {}
        for name, why in self.left.items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            lines.append(
                f"left alone, {why}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            )
        return "\n".join(lines)


_Pair = tuple[list[nn.Module], list[nn.Module]]


def _partners(
    model: nn.Module, parts: Sequence[str], example: tuple[Any, ...] | None, report: FuseReport
) -> list[_Pair]:
    """Layers and norms that can work together; ``report`` takes their names, and why other norms cannot."""
    calls, names = _Calls(), {id(m): name for name, m in model.named_modules()}
    inside: set[int] = set()
    for name in parts or ("",):
        try:
            part = model.get_submodule(name)
        except AttributeError:
            raise unknown("part of the network", name, [n for n, _ in model.named_modules() if n]) from None
        inside |= {id(m) for m in part.modules()}
        _look(part, name, calls, report.how, None if name else example)
    pairs: list[_Pair] = []
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    met: set[int] = set()
    for name, norm in norms:
        if id(norm) in met:
            continue
        why, layers, readers = _meeting(norm, calls)
        if id(norm) not in inside:
            why = "it is in none of the parts that were named"
        why = why or next((w for layer in layers for other in readers if (w := _why_not(layer, other))), "")
        if not why and report.mode == "deploy" and len(layers) + len(readers) > 2:
            why = "it shares its convolution, or its convolutions share it, and can be folded at each step only"
        if why:
            report.left[name] = why
            continue
        met |= {id(other) for other in readers}
        pairs.append((layers, readers))
        report.fused += [(names[id(layer)], names[id(other)]) for layer in layers for other in readers]
    return pairs


def _meeting(norm: nn.Module, calls: _Calls) -> tuple[str, list[nn.Module], list[nn.Module]]:
    """Why a norm meets layers in calls that cannot be folded, or ``""``; the layers that feed it, and the norms that read these."""
    fed = list({id(f) if isinstance(f, nn.Module) else f: f for f in calls.feeds.get(id(norm), ())}.values())
    if not fed:
        return "no forward pass that could be traced calls it", [], []
    layers = [f for f in fed if isinstance(f, nn.Module)]
    if words := next((f for f in fed if isinstance(f, str)), ""):
        return words, [], []
    readers = list({id(r): r for layer in layers for r in calls.readers[id(layer)]}.values())
    others = [r for r in readers if r is not None]
    if len(others) < len(readers):
        return "its convolution is also used without a norm", [], []
    if len(layers) > 1 and len(others) > 1:
        return "several convolutions and several norms meet in its calls", [], []
    if any(f is not layers[0] for other in others for f in calls.feeds[id(other)]) and len(others) > 1:
        return "its convolution has another norm, which other layers feed too", [], []
    return "", layers, others


# -- what users call ---------------------------------------------------------------------------------------------------
def tune_mode(
    model: nn.Module | str, parts: Sequence[str] | str = (), mode: str = "tune", *, example: Any = None
) -> nn.Module:
    """Let every BatchNorm that alone follows a convolution be folded into it, in place; :func:`undo` takes it back.

    Gradients and outputs are those of eval mode once the norms are in it (``model.eval()``, or :func:`freeze_norms` in a training loop).

    Args:
        model: a network, or the name of one: ours, or ``torchvision/NAME``.
        parts: names of submodules that alone are changed (``"backbone"``); each is traced by itself, and one that cannot be does not stop the others.
        mode: ``tune``; ``deploy`` folds once, for good: kernels and biases alone are trained, and the norms are gone from the state dict;
            ``eval`` is the network as it was.
        example: what the network takes, for those that torch.fx cannot trace.

    Returns:
        The network, with :func:`fuse_report`.

    Raises:
        OffprintError: an unknown mode or part, or a network without BatchNorms.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if isinstance(model, str):
        model = named_network(model)
    if not any(isinstance(m, _BatchNorm) or "unfolds" in m.__dict__ for m in model.modules()):
        raise OffprintError(f"{type(model).__name__} has no BatchNorm, so there is nothing that tune mode could fold")
    undo(model)
    given = None if example is None else example if isinstance(example, tuple) else (example,)
    report = FuseReport(mode)
    if mode != "eval":
        for layers, norms in _partners(model, (parts,) if isinstance(parts, str) else parts, given, report):
            _join(layers, norms) if mode == "tune" else _fold_once(model, layers[0], norms[0])
    model.__dict__["fuse_report"] = report
    return model


def fuse_report(model: nn.Module) -> FuseReport:
    """What :func:`tune_mode` did to a network."""
    return model.__dict__.get("fuse_report") or FuseReport("eval")


def undo(model: nn.Module) -> nn.Module:
    """The network as it was, in place, with the weights as they are now.

    From deploy mode the folded kernel is divided by c again, so the network computes the same.

    Raises:
        OffprintError: a folded channel cannot be divided, since its c is 0.
    """
    for module in list(model.modules()):
        if isinstance(module, _Changed):
            module.__class__ = type(module).base
            for name in ("norm", "norms", "layers"):
                module.__dict__.pop(name, None)
        elif "unfolds" in module.__dict__:
            _unfold(model, module)
    model.__dict__.pop("fuse_report", None)
    return model


@contextlib.contextmanager
def tuned(
    model: nn.Module, parts: Sequence[str] | str = (), mode: str = "tune", *, example: Any = None
) -> Iterator[FuseReport]:
    """:func:`tune_mode` for a while."""
    tune_mode(model, parts, mode, example=example)
    try:
        yield fuse_report(model)
    finally:
        undo(model)


def freeze_norms(model: nn.Module) -> nn.Module:
    """Put all BatchNorms into evaluation mode; call it after each ``model.train()``."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(owner, name) for owner in model.modules() for name, child in owner._modules.items() if child is module]


@torch.no_grad()
def _fold_once(model: nn.Module, layer: nn.Module, norm: _BatchNorm) -> None:
    weight, bias = fold(layer, norm)
    layer.__dict__["unfolds"] = (norm, layer.bias is not None, identity := nn.Identity())
    for owner, name in _places(model, norm):
        owner._modules[name] = identity
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)


@torch.no_grad()
def _unfold(model: nn.Module, layer: nn.Module) -> None:
    norm, had_bias, identity = layer.__dict__["unfolds"]
    c = _coefficient(norm)
    if not bool((c != 0).all()):
        raise OffprintError(
            f"{int((c == 0).sum())} channels were folded with a factor of 0 and cannot be taken apart; keep a copy of the network"
        )
    kind = layer.weight.dtype  # type: ignore[union-attr]
    shift = layer.bias.to(c.dtype)  # type: ignore[operator,union-attr]
    if had_bias or norm.bias is None:
        beta = 0 if norm.bias is None else norm.bias.to(c.dtype)
        layer.bias = nn.Parameter(((shift - beta) / c + norm.running_mean.to(c.dtype)).to(kind))
    else:
        norm.bias.copy_(shift + c * norm.running_mean.to(c.dtype))
        layer.bias = None  # type: ignore[assignment]
    layer.weight = nn.Parameter(_by_channel(layer, layer.weight.to(c.dtype), 1 / c).to(kind))  # type: ignore[operator,union-attr]
    for owner, name in _places(model, identity):
        owner._modules[name] = norm
    del layer.__dict__["unfolds"]


# -- what it saves -----------------------------------------------------------------------------------------------------
def saved_bytes(model: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of a call, without the model's own parameters and buffers."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes its place

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = call()
    del held
    return sum(storage.nbytes() for storage in kept.values())


def in_mode(model: nn.Module, mode: str, parts: Sequence[str] | str = (), example: Any = None) -> nn.Module:
    """A copy of a network as it is fine-tuned in one of four modes: ``train``, or one of ``MODES`` with frozen norms."""
    import copy

    model = undo(copy.deepcopy(model)).train()
    if mode == "train":
        return model
    return freeze_norms(tune_mode(model, parts, mode, example=example))


def measure_modes(
    model: nn.Module,
    x: Tensor,
    modes: Sequence[str] = ("train", *MODES),
    *,
    rounds: int = 1,
    parts: Sequence[str] | str = (),
) -> dict[str, dict[str, float]]:
    """What a step (forward and backward) of each mode keeps and takes on these inputs.

    Returns:
        mode → ``mebibytes`` saved for the backward pass (parameters excluded) and ``seconds`` (the best of the rounds, taken in turns).
    """
    nets = {mode: in_mode(model, mode, parts, x) for mode in modes}
    found: dict[str, dict[str, float]] = {}
    for mode, net in nets.items():
        found[mode] = {"mebibytes": saved_bytes(net, lambda net=net: net(x)) / 2**20, "seconds": float("inf")}
    for _ in range(rounds):
        for mode, net in nets.items():
            net.zero_grad()
            if x.is_cuda:
                torch.cuda.synchronize()
            begun = time.perf_counter()
            _total(net(x)).backward()
            if x.is_cuda:
                torch.cuda.synchronize()
            found[mode]["seconds"] = min(found[mode]["seconds"], time.perf_counter() - begun)
    return found


def _total(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.float().sum()
    values = output.values() if isinstance(output, Mapping) else output
    return torch.stack([_total(v) for v in values if v is not None]).sum()


def advice(found: Mapping[str, Mapping[str, float]]) -> str:
    """What figures of :func:`measure_modes` say of tune against eval, in words."""
    saved = found["tune"]["mebibytes"] / found["eval"]["mebibytes"] - 1
    took = found["tune"]["seconds"] / found["eval"]["seconds"] - 1
    text = f"tune keeps {saved:+.1%} memory and takes {took:+.1%} time against eval"
    if saved > 0:
        text += "; the folded kernels are larger than the maps they save: use a larger batch or larger pictures, or eval mode"
    return text


# -- in any training ---------------------------------------------------------------------------------------------------
@register_method
@dataclass(kw_only=True)
class TuneMode(Method):
    """Fine-tunes with BatchNorms in evaluation mode, folded into the convolutions before them: the gradients of eval mode, less memory.

    For training that starts from trained weights (``--pretrained``, ``--checkpoint``, the folder of a run): the norms keep the statistics
    that came with them.

    Args:
        parts: names of submodules that alone are changed; default the whole network.
        mode: tune, or eval for frozen norms without folding.
    """

    name = "tune-mode"
    paper = "tune-mode"
    kind = "module"
    changes = "BatchNorms: frozen, and folded into the convolutions before them at every step"

    parts: tuple[str, ...] = ()
    mode: str = "tune"

    def __post_init__(self):
        if self.mode not in ("tune", "eval"):
            raise unknown("mode of training", self.mode, ("tune", "eval"))

    def network(self, job) -> None:
        if not (job.pretrained or job.checkpoint):
            job.say(
                "tune-mode: the weights are random ones, so the norms stay at mean 0 and variance 1; give trained weights to start from"
            )
        tune_mode(job.network, self.parts, self.mode)
        for line in str(fuse_report(job.network)).splitlines():
            job.say(f"tune-mode: {line}")

    def callbacks(self, job):
        from lightning.pytorch.callbacks import Callback

        class Freeze(Callback):
            def on_train_batch_start(self, trainer, module, batch, index) -> None:
                freeze_norms(module)

        return [Freeze()]

    def finish(self, job) -> dict[str, Any]:
        report = fuse_report(job.network)
        undo(job.network)
        return {"fused": len(report.fused), "left": len(report.left)}
