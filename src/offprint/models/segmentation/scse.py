r"""Recalibrating Fully Convolutional Networks with Spatial and Channel "Squeeze & Excitation" Blocks (Guha Roy, Navab, Wachinger;
IEEE TMI 38(2), 2019; arXiv 1808.08127; first form MICCAI 2018, 1803.02579).

Three light blocks stand behind the encoder and decoder blocks of a segmentation network. For a map X (N, C, ...) with channels
:math:`x_c` and pixels :math:`x^{(i)}`:

* cSE, the channels by what the whole map holds: :math:`z_c = \mathrm{mean}(x_c)`,
  :math:`\hat x_c = x_c\,\sigma\big(W_2\,\mathrm{ReLU}(W_1 z)\big)_c` with C // r hidden units, r = 2;
* sSE, the pixels by what each holds: :math:`\hat x^{(i)} = x^{(i)}\,\sigma(w \cdot x^{(i)})`, a 1x1 convolution to one channel;
* scSE, both, joined by the larger of the two (max-out: the journal's choice and the released code's), by their sum (the first paper,
  segmentation_models_pytorch), by their product, or side by side. Weights of one join load into another and give other results.

:func:`recalibrate` puts them into any network. Those of the paper are here: the densely connected FC-DenseNet (in the form of the
authors' QuickNAT), SD-Net (blocks by the authors, their arrangement in three levels is ours) and U-Net (no authors' code: ours, of half
the original's width). Parameter names are the authors'.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError, unknown
from offprint.models.checkpoint import Dialect
from offprint.models.deploy import example_input
from offprint.models.registry import register

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
AGGREGATIONS = ("max", "add", "mul", "concat")


# -- the blocks (Sec. III) ---------------------------------------------------------------------------------------------
def _hidden(channels: int, reduction: int) -> int:
    if channels < 1 or reduction < 1 or channels // reduction < 1:
        raise OffprintError(
            f"{channels} channels at reduction {reduction} leave no hidden unit; give a reduction from 1 to the number of channels"
        )
    return channels // reduction


def _conv(spatial_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    if spatial_dims not in _CONV:
        raise OffprintError(f"spatial_dims={spatial_dims!r}; 2 for images (N, C, H, W), 3 for volumes (N, C, D, H, W)")
    return _CONV[spatial_dims]


def _check(x: Tensor, channels: int, spatial_dims: int) -> None:
    if x.ndim != spatial_dims + 2 or x.shape[1] != channels:
        sides = ", ".join("DHW"[-spatial_dims:])
        raise OffprintError(f"expected a map (N, {channels}, {sides}), got {tuple(x.shape)}")


class CSE(nn.Module):
    """Channel excitation: the map times a gate per channel, computed from the mean of each channel.

    Args:
        channels: C.
        reduction: r; C // r units stand between the two linear layers.
        spatial_dims: 2 or 3.
    """

    native = "authors"
    dialects = (
        Dialect("monai", ((r"^fc\.0\.", "fc1."), (r"^fc\.2\.", "fc2."))),
        Dialect("smp", ((r"^cSE\.1\.", "fc1."), (r"^cSE\.3\.", "fc2.")), reshape=lambda state, model: _linear(state)),
    )

    def __init__(self, channels: int, reduction: int = 2, spatial_dims: int = 2):
        super().__init__()
        _conv(spatial_dims)
        self.channels, self.spatial_dims = channels, spatial_dims
        self.fc1 = nn.Linear(channels, _hidden(channels, reduction))
        self.fc2 = nn.Linear(self.fc1.out_features, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same."""
        _check(x, self.channels, self.spatial_dims)
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.flatten(2).mean(2)))))
        return x * gate.view(*gate.shape, *[1] * self.spatial_dims)


class SSE(nn.Module):
    """Spatial excitation: the map times a gate per pixel, a 1x1 convolution of its channels.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
    """

    native = "authors"
    dialects = (Dialect("smp", ((r"^sSE\.0\.", "conv."),)),)

    def __init__(self, channels: int, spatial_dims: int = 2):
        super().__init__()
        self.channels, self.spatial_dims = channels, spatial_dims
        self.conv = _conv(spatial_dims)(channels, 1, 1)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """(N, C, ...) to the same.

        Args:
            weights: vectors (K, C) or (C,) of another network, whose mean takes the place of the kernel, without bias (few-shot
                segmentation, where a conditioning arm makes them).
        """
        _check(x, self.channels, self.spatial_dims)
        if weights is None:
            return x * torch.sigmoid(self.conv(x))
        if weights.shape[-1] != self.channels or weights.ndim not in (1, 2):
            raise OffprintError(
                f"weights are (K, {self.channels}) or ({self.channels},) here, got {tuple(weights.shape)}"
            )
        mean = weights if weights.ndim == 1 else weights.mean(0)
        return x * torch.sigmoid(torch.einsum("nc...,c->n...", x, mean))[:, None]

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse a kernel with a row per channel, which would be broadcast in silence."""
        return _one_row(state, "conv.weight")


class SCSE(nn.Module):
    """Both excitations of the same map, joined.

    Args:
        channels, reduction, spatial_dims: as in :class:`CSE`.
        aggregation: ``max``, ``add``, ``mul``, or ``concat`` (twice the channels, the channel-excited first).
    """

    native = "authors"
    dialects = (
        Dialect(
            "smp",
            ((r"^cSE\.1\.", "cSE.fc1."), (r"^cSE\.3\.", "cSE.fc2."), (r"^sSE\.0\.", "sSE.conv.")),
            reshape=lambda state, model: _linear(state),
        ),
    )

    def __init__(self, channels: int, reduction: int = 2, spatial_dims: int = 2, aggregation: str = "max"):
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise unknown(
                "aggregation (max is the journal's and the released code's, add the first paper's and "
                "segmentation_models_pytorch's)",
                aggregation,
                AGGREGATIONS,
            )
        self.aggregation = aggregation
        self.cSE = CSE(channels, reduction, spatial_dims)
        self.sSE = SSE(channels, spatial_dims)

    def extra_repr(self) -> str:
        return f"aggregation={self.aggregation!r}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to the same, or to (N, 2 C, ...) with ``concat``."""
        a, b = self.cSE(x), self.sSE(x)
        match self.aggregation:
            case "max":
                return torch.maximum(a, b)
            case "add":
                return a + b
            case "mul":
                return a * b
        return torch.cat([a, b], 1)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse a spatial kernel with a row per channel."""
        return _one_row(state, "sSE.conv.weight")


class ProjectExcite(nn.Module):
    """Project & excite for volumes (same repository, Rickmann et al. 2019): the map times a gate per channel and voxel.

    The descriptor is no single mean but the sum of the means along pairs of axes, spread back over the volume; two 1x1x1
    convolutions make the gate of it.

    Args:
        channels, reduction: as in :class:`CSE`.
    """

    native = "authors"

    def __init__(self, channels: int, reduction: int = 2):
        super().__init__()
        self.channels = channels
        self.conv_c = nn.Conv3d(channels, _hidden(channels, reduction), 1)
        self.conv_cT = nn.Conv3d(self.conv_c.out_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, D, H, W) to the same."""
        _check(x, self.channels, 3)
        z = sum(
            (x.mean(axes, keepdim=True) for axes in ((2, 3), (2, 4), (3, 4))),
            torch.zeros((), dtype=x.dtype, device=x.device),
        )
        return x * torch.sigmoid(self.conv_cT(F.relu(self.conv_c(z))))


def _linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """1x1 convolutions of the channel gate as linear layers."""
    return {k: v.flatten(1) if k.endswith(("fc1.weight", "fc2.weight")) else v for k, v in state.items()}


def _one_row(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    if name in state and state[name].shape[0] != 1:
        raise CheckpointError(
            f"{name} has {state[name].shape[0]} rows, one a channel: a file of segmentation_models_pytorch before December 2019, whose "
            "spatial excitation gated every channel by itself; it computes something else than sSE and cannot be converted"
        )
    return state


KINDS = {"cse": CSE, "sse": SSE, "csse": SCSE, "scse": SCSE, "project_excite": ProjectExcite}


def excitation(
    kind: str, channels: int, *, reduction: int = 2, spatial_dims: int = 2, aggregation: str = "max"
) -> nn.Module:
    """The block of this name.

    Args:
        kind: ``cse``, ``sse``, ``csse`` (the authors' word) or ``scse`` (the paper's) for both, ``project_excite`` (volumes).
        channels, reduction, spatial_dims: as in :class:`CSE`.
        aggregation: as in :class:`SCSE`; not ``concat`` where the number of channels must stay.
    """
    if kind not in KINDS:
        raise unknown("kind of excitation", kind, KINDS)
    if kind == "sse":
        return SSE(channels, spatial_dims)
    if kind == "cse":
        return CSE(channels, reduction, spatial_dims)
    if kind == "project_excite":
        if spatial_dims != 3:
            raise OffprintError("project_excite is made for volumes (N, C, D, H, W); for images take cse, sse or csse")
        return ProjectExcite(channels, reduction)
    return SCSE(channels, reduction, spatial_dims, aggregation)


# -- into any network --------------------------------------------------------------------------------------------------
class Recalibration(nn.ModuleDict):
    """The blocks that :func:`recalibrate` adds, by the place they stand at (``.`` written as ``/``); called, it does nothing."""

    def forward(self, x: Any) -> Any:
        return x


class _Excites:
    """Forward hook: what a module gives, excited."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return self.block(output)


def recalibrate(
    model: nn.Module,
    kind: str = "csse",
    *,
    at: Sequence[str] | None = None,
    sample: Tensor | None = None,
    reduction: int = 2,
    aggregation: str = "max",
) -> nn.Module:
    """Add excitation blocks to a network, in place.

    By default a block stands where the paper has it: behind the last layer before each change of the map's size, that is behind
    every encoder block before its pooling and every decoder block before the next enlargement, and before the classifier. Names of
    the network's own parameters stay, so that its weights load before and after (``strict=False`` then, the blocks being new); the
    blocks' own are below ``recalibration.``. It is not saved with a model's name: build, recalibrate, load.

    Args:
        model: any network of images or volumes.
        kind, reduction, aggregation: as in :func:`excitation`.
        at: names of modules (``named_modules``), or patterns such as ``"layer?"``, whose outputs are excited instead.
        sample: an input, by default one of the model's own shape; it is run once, to see the maps.

    Raises:
        OffprintError: recalibrated already, no such places, places that give no map, maps whose channels vary.
    """
    if kind not in KINDS:
        raise unknown("kind of excitation", kind, KINDS)
    if aggregation == "concat":
        raise OffprintError(
            "aggregation='concat' doubles the channels, which the next layer does not expect; take max, add or mul"
        )
    if any(isinstance(m, Recalibration) for m in model.modules()):
        raise OffprintError("this network is recalibrated already; build it anew for other blocks")
    maps, dense = _maps(model, example_input(model, 2) if sample is None else sample)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for call in maps:
        shapes.setdefault(call.name, []).append(call.shape)
    places = _ends(model, maps, dense) if at is None else _chosen(model, at)
    blocks = {}
    for name in places:
        seen = {(s[1], len(s) - 2) for s in shapes.get(name, ())}
        if len(seen) != 1:
            what = f"maps of {sorted(seen)} (channels, axes)" if seen else "no map (N, C, H, W) or (N, C, D, H, W)"
            raise OffprintError(
                f"{name} gives {what}; choose modules that give one map, such as {', '.join(list(shapes)[-4:])}"
            )
        ((channels, axes),) = seen
        block = excitation(kind, channels, reduction=reduction, spatial_dims=axes, aggregation=aggregation)
        reference = next(model.parameters())
        blocks[name.replace(".", "/")] = block.to(reference.device, reference.dtype).train(model.training)
        model.get_submodule(name).register_forward_hook(_Excites(block))
    model.add_module("recalibration", Recalibration(blocks))
    return model


def _chosen(model: nn.Module, at: Sequence[str]) -> list[str]:
    names = [n for n, _ in model.named_modules() if n]
    found: list[str] = []
    for pattern in [at] if isinstance(at, str) else at:
        matched = [n for n in names if fnmatchcase(n, pattern) and n.count(".") == pattern.count(".")]
        if not matched:
            raise unknown(f"module of {type(model).__name__}", pattern, names)
        found += [n for n in matched if n not in found]
    return found


@dataclass(frozen=True)
class _Call:
    """A module that gave a map: when it was entered and left, by one clock, and the map's shape."""

    name: str
    entered: int
    left: int
    shape: tuple[int, ...]


def _maps(model: nn.Module, sample: Tensor) -> tuple[list[_Call], bool]:
    """The calls that give maps, in the order in which they are finished, and whether the network itself gives a map."""
    calls: list[_Call] = []
    clock = itertools.count()
    entered: dict[str, int] = {}

    def enter(name: str):
        return lambda module, inputs: entered.__setitem__(name, next(clock))

    def leave(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim in (4, 5):
                calls.append(_Call(name, entered[name], next(clock), tuple(output.shape)))

        return hook

    handles = [h for n, m in model.named_modules() if n
               for h in (m.register_forward_pre_hook(enter(n)), m.register_forward_hook(leave(n)))]  # fmt: skip
    training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(sample)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    output = output.get("out") if isinstance(output, Mapping) else output
    return calls, isinstance(output, Tensor) and output.ndim in (4, 5)


def _stated(model: nn.Module, calls: Sequence[_Call]) -> tuple[list[str], list[str]]:
    """The layers that end the maps of encoders with a ``feature_info``, and the encoders' prefixes."""
    places, prefixes = [], []
    for name, module in model.named_modules():
        info = getattr(module, "feature_info", None)
        if not hasattr(info, "module_name") or any(name.startswith(p) for p in prefixes):
            continue
        prefixes.append(f"{name}." if name else "")
        for row in info.module_name():
            inside = [c.name for c in calls if f"{c.name}.".startswith(f"{prefixes[-1]}{row}.")]
            places += inside[-1:]
    return places, prefixes


def _ends(model: nn.Module, calls: Sequence[_Call], dense: bool) -> list[str]:
    """The layers that end an encoder's maps as it says itself; elsewhere the module that is finished last before each change of the
    map's size, or before the block whose convolution makes that change. The classifier of a map, and what holds it, are left out."""
    modules = dict(model.named_modules())

    def learns(name: str) -> bool:
        return any(True for _ in modules[name].parameters())

    layers = [c for c in calls if not list(modules[c.name].children())]
    weighted = [c.name for c in layers if learns(c.name)]
    classifier = weighted[-1] if dense and weighted else ""
    places, prefixes = _stated(model, calls)
    rest = [c for c in calls if not any(c.name.startswith(p) for p in prefixes)]
    rest = [c for c in rest if max(c.shape[2:]) > 1 and not f"{classifier}.".startswith(f"{c.name}.")]  # no gates
    for call, later in itertools.pairwise([*rest, None]):
        if later is not None and later.shape[2:] == call.shape[2:]:
            continue
        end = call
        if later is not None and learns(later.name):
            changed = [c for c in rest if c.entered < call.left < c.left and c.shape[2:] != call.shape[2:]]
            inside = [c for c in changed if len({d.shape[2:] for d in layers if c.entered < d.left < c.left}) == 2]
            before = [
                c for c in rest if inside and c.left < min(d.entered for d in inside) and c.shape[2:] == call.shape[2:]
            ]
            if inside:
                end = before[-1] if before else None
        if end is not None:
            places.append(end.name)
    places = list(dict.fromkeys(places))
    if not places:
        raise OffprintError(f"no module of {type(model).__name__} gives a map (N, C, H, W); name places with at=")
    return places


# -- the networks (Sec. IV) --------------------------------------------------------------------------------------------
def _pair(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sides) != 2 or any(k < 1 or k % 2 == 0 for k in sides):
        raise OffprintError(f"kernel_size={kernel_size!r}; give one odd number or two, so that the map keeps its size")
    return sides[0], sides[1]


def _same(cin: int, cout: int, kernel: tuple[int, int]) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


class Block(nn.Module):
    """A block of convolutions, its excitation and its dropout; :meth:`body` is the convolutions alone.

    Args:
        channels: of its output, which the excitation works on.
        kind: ``none``, or as in :func:`excitation`.
        drop_rate: of whole channels.
        aggregation: as in :class:`SCSE`.
    """

    def __init__(self, channels: int, kind: str, drop_rate: float, aggregation: str):
        super().__init__()
        if kind != "none":
            self.SELayer = excitation(kind, channels, aggregation=aggregation)
        self.excites, self.drop = kind != "none", nn.Dropout2d(drop_rate)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, H, W) to (N, channels, H, W)."""
        x = self.body(x)
        return self.drop(self.SELayer(x) if self.excites else x)


class DenseBlock(Block):
    """Three convolutions, each of all maps before it, each after its norm; one PReLU serves the three places."""

    def __init__(self, cin: int, filters: int, kernel: tuple[int, int], *rest: Any):
        super().__init__(filters, *rest)
        for i, size in enumerate((kernel, kernel, (1, 1))):
            setattr(self, f"batchnorm{i + 1}", nn.BatchNorm2d(cin + i * filters))
            setattr(self, f"conv{i + 1}", _same(cin + i * filters, filters, size))
        self.prelu = nn.PReLU()

    def body(self, x: Tensor) -> Tensor:
        a = self.conv1(self.prelu(self.batchnorm1(x)))
        y = torch.cat([x, a], 1)
        b = self.conv2(self.prelu(self.batchnorm2(y)))
        return self.conv3(self.prelu(self.batchnorm3(torch.cat([y, b], 1))))


class GenericBlock(Block):
    """SD-Net's: convolution, PReLU, norm."""

    def __init__(self, cin: int, filters: int, kernel: tuple[int, int], *rest: Any):
        super().__init__(filters, *rest)
        self.conv, self.prelu, self.batchnorm = _same(cin, filters, kernel), nn.PReLU(), nn.BatchNorm2d(filters)

    def body(self, x: Tensor) -> Tensor:
        return self.batchnorm(self.prelu(self.conv(x)))


class DoubleConv(Block):
    """U-Net's: twice a 3x3 convolution, norm and ReLU."""

    def __init__(self, cin: int, filters: int, *rest: Any):
        super().__init__(filters, *rest)
        self.layers = nn.Sequential(
            *_conv_norm(cin, filters), nn.ReLU(inplace=True), *_conv_norm(filters, filters), nn.ReLU(inplace=True)
        )

    def body(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _conv_norm(cin: int, cout: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout)


class SegmentationNet(nn.Module):
    """What the three networks share: encoder blocks with pooling between them, a bottleneck without excitation, decoder blocks that
    each read the enlarged map beside the skip, which is the recalibrated map of the encoder.

    Args:
        in_chans, num_classes: of the input and the logits.
        kind: ``none``, ``cse``, ``sse`` or ``csse``: the blocks of the encoder and the decoder.
        aggregation: of ``csse``, as in :class:`SCSE` without ``concat``.

    Any image of 2 ** levels pixels and more works; odd sides too.
    """

    native = "offprint"
    dialects = (Dialect("authors", ((r"^classifier\.conv\.", "logits."),)),)
    classifier = "logits"
    size_multiple = 1
    order: tuple[str, ...] = ()  # names of the decoder blocks, deepest first

    def __init__(self, in_chans: int, num_classes: int, kind: str, aggregation: str):
        super().__init__()
        if kind not in ("none", "cse", "sse", "csse"):
            raise unknown("kind of excitation", kind, ("none", "cse", "sse", "csse"))
        if aggregation == "concat":
            raise OffprintError(
                "aggregation='concat' doubles the channels, which the next layer does not expect; take max, add or mul"
            )
        self.in_chans, self.num_classes, self.kind = in_chans, num_classes, kind

    def enlarge(self, level: int, x: Tensor, indices: Tensor, skip: Tensor) -> Tensor:
        """The map (N, C, h, w) at the skip's size: every value at the place where the pooling found the largest, zeros elsewhere."""
        places = skip.new_zeros(skip.shape).flatten(2)
        return places.scatter(2, indices.flatten(2), x.flatten(2)).view(skip.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes, H, W)."""
        if not torch.compiler.is_compiling():
            least = 2 ** len(self.order)
            if x.ndim != 4 or x.shape[1] != self.in_chans or min(x.shape[-2:]) < least:
                raise OffprintError(
                    f"expected images (N, {self.in_chans}, H, W) of at least {least} pixels a side, got {tuple(x.shape)}; resize "
                    "them, or build the model with in_chans="
                )
        kept = []
        for i in range(len(self.order)):
            skip = getattr(self, f"encode{i + 1}")(x)
            x, indices = F.max_pool2d(skip, 2, return_indices=True)
            kept.append((skip, indices))
        x = self.bottleneck.body(x)
        for i, name in enumerate(self.order):
            skip, indices = kept.pop()
            x = getattr(self, name)(torch.cat([skip, self.enlarge(i, x, indices, skip)], 1))
        return self.logits(x)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse blocks of another kind, and say which network they are of."""
        both = any(".SELayer.cSE." in name for name in state)
        if both and self.kind != "csse":
            raise CheckpointError(
                f"the file's blocks excite channels and pixels, those of this network are of kind {self.kind!r}; load it into the one of "
                "kind 'csse'. (The authors' SD-Net builds both where 'CSE' is asked for.)"
            )
        return state


class FCDenseNet(SegmentationNet):
    """Four levels of dense blocks, pooling whose indices the enlargement puts values back to (QuickNAT's form).

    The bottleneck owns an excitation that it never calls, as in the authors' code and files. Its decoder blocks are called in the
    order ``decode4``, ``decode1``, ``decode2``, ``decode3``.

    Args:
        num_filters: F, the width of every map.
        kernel_size: of the first two convolutions of a block, odd.
        drop_rate: of whole channels, after each block.
        others: as in :class:`SegmentationNet`.
    """

    order = ("decode4", "decode1", "decode2", "decode3")

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 28,
        kind: str = "csse",
        num_filters: int = 64,
        kernel_size: int | Sequence[int] = 5,
        drop_rate: float = 0.2,
        aggregation: str = "max",
    ):
        super().__init__(in_chans, num_classes, kind, aggregation)
        kernel, rest = _pair(kernel_size), (kind, drop_rate, aggregation)
        for i in range(len(self.order)):
            setattr(self, f"encode{i + 1}", DenseBlock(num_filters if i else in_chans, num_filters, kernel, *rest))
        self.bottleneck = DenseBlock(num_filters, num_filters, kernel, *rest)
        for i in range(len(self.order)):
            setattr(self, f"decode{i + 1}", DenseBlock(2 * num_filters, num_filters, kernel, *rest))
        self.logits = nn.Conv2d(num_filters, num_classes, 1)


class SDNet(SegmentationNet):
    """Skip-DeconvNet: three levels of single 7x7 convolutions, pooling with indices. Blocks by the authors, arrangement ours.

    Args:
        num_filters, kernel_size, drop_rate: as in :class:`FCDenseNet`.
        others: as in :class:`SegmentationNet`.
    """

    order = ("decode1", "decode2", "decode3")

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 28,
        kind: str = "csse",
        num_filters: int = 64,
        kernel_size: int | Sequence[int] = 7,
        drop_rate: float = 0.2,
        aggregation: str = "max",
    ):
        super().__init__(in_chans, num_classes, kind, aggregation)
        kernel, rest = _pair(kernel_size), (kind, drop_rate, aggregation)
        for i in range(len(self.order)):
            setattr(self, f"encode{i + 1}", GenericBlock(num_filters if i else in_chans, num_filters, kernel, *rest))
        self.bottleneck = GenericBlock(num_filters, num_filters, kernel, *rest)
        for i in range(len(self.order)):
            setattr(self, f"decode{i + 1}", GenericBlock(2 * num_filters, num_filters, kernel, *rest))
        self.logits = nn.Conv2d(num_filters, num_classes, 1)


class UNet(SegmentationNet):
    """U-Net (Ronneberger et al. 2015) of half the width, with norms, and excitation after each block; "same" padding, odd sides too.

    Args:
        num_filters: channels at full resolution; each level below has twice as many.
        drop_rate: as in :class:`FCDenseNet`.
        others: as in :class:`SegmentationNet`.
    """

    order = ("decode1", "decode2", "decode3", "decode4")

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 28,
        kind: str = "csse",
        num_filters: int = 32,
        drop_rate: float = 0.0,
        aggregation: str = "max",
    ):
        super().__init__(in_chans, num_classes, kind, aggregation)
        rest, cin, count = (kind, drop_rate, aggregation), in_chans, len(self.order)
        widths = [num_filters * 2**i for i in range(count)]
        for i, width in enumerate(widths):
            setattr(self, f"encode{i + 1}", DoubleConv(cin, width, *rest))
            cin = width
        self.bottleneck = DoubleConv(cin, 2 * cin, "none", drop_rate, aggregation)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths))
        for name, width in zip(self.order, reversed(widths), strict=True):
            setattr(self, name, DoubleConv(2 * width, width, *rest))
        self.logits = nn.Conv2d(num_filters, num_classes, 1)

    def enlarge(self, level: int, x: Tensor, indices: Tensor, skip: Tensor) -> Tensor:
        """By a transposed convolution; of an odd side the last row or column repeats the one before it."""
        x = self.up[level](x)
        rows, columns = (a - b for a, b in zip(skip.shape[-2:], x.shape[-2:], strict=True))
        return F.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x


# -- the loss (Sec. IV-B) ----------------------------------------------------------------------------------------------
class DiceLoss(nn.Module):
    r"""One minus the Dice score :math:`2\sum p t / (\sum p + \sum t + 10^{-4})` of each class in each image, mean over both.

    Args:
        double_softmax: apply the softmax twice, as the released code does by mistake; its models were trained so.
        eps: added to the denominator only.
    """

    def __init__(self, double_softmax: bool = False, eps: float = 1e-4):
        super().__init__()
        self.double_softmax, self.eps = double_softmax, eps

    def forward(self, logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """The loss of logits (N, K, ...) and classes (N, ...); of one channel it is that of its sigmoid.

        Args:
            class_weights: (K,), factors of the classes' losses; the mean is still over K.
        """
        _check_target(logits, target)
        if logits.shape[1] == 1:
            p, t = torch.sigmoid(logits), target[:, None].to(logits.dtype)
        else:
            p = logits.softmax(1)
            p = p.softmax(1) if self.double_softmax else p
            t = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        axes = tuple(range(2, logits.ndim))
        loss = 1 - 2 * (p * t).sum(axes) / ((p + t).sum(axes) + self.eps)
        return (loss if class_weights is None else loss * class_weights).mean()


class CombinedLoss(nn.Module):
    """Cross-entropy, weighted per pixel, plus :class:`DiceLoss`.

    Args:
        double_softmax: of the Dice loss.
    """

    def __init__(self, double_softmax: bool = False):
        super().__init__()
        self.dice = DiceLoss(double_softmax)

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, class_weights: Tensor | None = None
    ) -> Tensor:
        """The loss of logits (N, K, ...) and classes (N, ...).

        Args:
            weight: (N, ...), a factor of each pixel's cross-entropy (:func:`pixel_weights`).
            class_weights: of the Dice loss.
        """
        _check_target(logits, target)
        if logits.shape[1] == 1:
            entropy = F.binary_cross_entropy_with_logits(logits[:, 0], target.to(logits.dtype), reduction="none")
        else:
            entropy = F.cross_entropy(logits, target, reduction="none")
        return (entropy if weight is None else entropy * weight).mean() + self.dice(logits, target, class_weights)


def pixel_weights(target: Tensor, num_classes: int, boundary: float = 2.0) -> Tensor:
    """The paper's weights of pixels: the median of the classes' frequencies over the own class's, plus a constant on class boundaries.

    Args:
        target: classes (N, H, W) or (N, D, H, W); frequencies are those of this batch.
        num_classes: K.
        boundary: what a pixel beside another class gets more (2 in the authors' preparation of data, from memory).

    Returns:
        (N, ...) float32.
    """
    counts = torch.bincount(target.flatten(), minlength=num_classes).float()
    there = counts > 0
    share = torch.where(there, counts[there].median() / counts.clamp_min(1), 0.0)
    edge = torch.zeros_like(target, dtype=torch.bool)
    for axis in range(1, target.ndim):
        n = target.shape[axis]
        differs = target.narrow(axis, 1, n - 1) != target.narrow(axis, 0, n - 1)
        edge.narrow(axis, 1, n - 1).logical_or_(differs)
        edge.narrow(axis, 0, n - 1).logical_or_(differs)
    return share[target] + boundary * edge.float()


def _check_target(logits: Tensor, target: Tensor) -> None:
    if target.shape != logits.shape[:1] + logits.shape[2:] or target.is_floating_point():
        raise OffprintError(
            f"expected logits (N, K, ...) and whole-numbered classes (N, ...), got {tuple(logits.shape)} and {tuple(target.shape)} "
            f"{target.dtype}"
        )


# -- variants ----------------------------------------------------------------------------------------------------------
_FILLS = ("none", "cse", "sse", "csse")
RECIPE = {  # the released trainer's; batch 5, rate not scaled
    "optimizer": "adam", "lr": 1e-4, "reference_batch": 0, "weight_decay": 1e-5, "epochs": 10, "batch_size": 5, "schedule": "step",
    "decay_epochs": 3, "decay_rate": 0.1, "warmup_epochs": 0,
}  # fmt: skip
for _build, _name in ((FCDenseNet, "fc_densenet"), (SDNet, "sd_net"), (UNet, "unet")):
    register(
        paper="scse",
        kind="segmentation",
        task="segmentation",
        build=_build,
        variants={f"{_name}_{kind}": {"kind": kind} for kind in _FILLS},
        input_size=(1, 256, 256),
        preprocessing={"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "crop_pct": 1.0},
        recipe=RECIPE,
    )
