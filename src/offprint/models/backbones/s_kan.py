r"""S-KAN: Activation Space Selectable Kolmogorov-Arnold Networks (arXiv 2408.08338).

In a Kolmogorov-Arnold network every pair of an input and an output has a learnt function of one variable, and which family of functions
fits is another question for every data set. S-KAN keeps a pool of families :math:`\phi^k` (B-splines, Chebyshev polynomials, radial
bumps, wavelets) and lets each node, that is each input :math:`i` of a layer, choose:

.. math:: y_j = \sum_i \sum_k \mathrm{softmax}(s_i)_k\, \phi^k_{ji}(x_i)
          \quad\longrightarrow\quad y_j = \sum_i \phi^{k^*_i}_{ji}(x_i), \qquad k^*_i = \arg\max_k s_{ik},

in three stages: all members are trained in the soft mix, the chosen ones alone (:meth:`SKANLayer.select`), and at last what was not chosen
is thrown away (:meth:`SKANLayer.prune`) and the rest refined. S-ConvKAN does so over the patches of a map, where a node is one channel of
the input or one entry of the patch. The paper's own code of this selection is not public, and its tables could not be seen: the rule
above is rebuilt from its abstract and from summaries of it, with members without norms of their own, so that functions of pairs are what is
mixed. The families themselves are those of the first author's public code (:mod:`offprint.nn.kan`) and stand here under the same names.

No weights were released. Checkpoints of efficient-kan and fast-kan (:class:`KAN`, or a single layer), of pykan's layer, and of
Convolutional-KANs, which keeps one small layer for every pair of channels, are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.nn.kan import (
    DENSE,
    PATCHES,
    ChebyKANConv2d,
    ChebyKANLayer,
    FasterKANConv2d,
    FasterKANLayer,
    FastKANConv2d,
    FastKANLayer,
    GRAMKANConv2d,
    GRAMLayer,
    JacobiKANConv2d,
    JacobiKANLayer,
    KANConv2d,
    KANLayer,
    KANLinear,
    Layer,
    PatchLayer,
    RBFKANConv2d,
    RBFKANLayer,
    ReLUKANConv2d,
    ReLUKANLayer,
    WavKANConv2d,
    WavKANLayer,
    bsplines,
    chebyshev,
    check_patches,
    gaussians,
    knots,
    wavelet,
)

__all__ = [
    "KAN", "KANCNN", "POOL", "SKAN", "ChebyKANConv2d", "ChebyKANLayer", "FastKANConv2d", "FastKANLayer", "FasterKANConv2d",
    "FasterKANLayer", "Fit", "GRAMKANConv2d", "GRAMLayer", "JacobiKANConv2d", "JacobiKANLayer", "KANConv2d", "KANLayer", "KANLinear",
    "RBFKANConv2d", "RBFKANLayer", "ReLUKANConv2d", "ReLUKANLayer", "SConvKAN", "SKANLayer", "WavKANConv2d", "WavKANLayer",
    "fit_function",
]  # fmt: skip


# -- other conventions ---------------------------------------------------------------------------------------------------
def _from_pykan(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """(in, out, ...) to (out, in, ...); the mask of pruned pairs goes into the scales."""
    if "coef" not in state:
        return state
    state = dict(state)
    mask = state.pop("mask", torch.ones(()))
    base, scale, coef = state.pop("scale_base"), state.pop("scale_sp"), state.pop("coef")
    return {
        **state,
        "base_weight": (mask * base).t(),
        "spline_scaler": (mask * scale).t(),
        "spline_weight": coef.transpose(0, 1),
    }


def _from_pairs(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """One layer of k k inputs for every (output, input) pair of channels, ``convs.OUTPUT * inputs + INPUT``, as a single layer."""
    pairs: dict[str, dict[int, Tensor]] = {}
    rest = {}
    for name, value in state.items():
        found = re.fullmatch(r"convs\.(\d+)\.conv\.(\w+)", name)
        if found:
            pairs.setdefault(found[2], {})[int(found[1])] = value
        else:
            rest[name] = value
    inputs = int(getattr(model, "in_channels", 1))
    for leaf, tensors in pairs.items():
        rows = [tensors[i] for i in range(len(tensors))]
        if leaf == "grid":
            if any(not torch.equal(row, rows[i % inputs]) for i, row in enumerate(rows)):
                raise ValueError("outputs with grids of their own")
            rest["kanlayer.grid"] = torch.cat(rows[:inputs])
        else:
            whole = [torch.cat(rows[i : i + inputs], 1) for i in range(0, len(rows), inputs)]
            rest[f"kanlayer.{leaf}"] = torch.cat(whole)
    return rest


# the layers lie in nn, which knows nothing of checkpoints: what others call their tensors is entered here
KANLinear.dialects = (Dialect("pykan", (), "", _from_pykan),)
KANConv2d.dialects = (Dialect("convolutional_kans", (), "", _from_pairs),)


# -- the pool: edge functions without norms ------------------------------------------------------------------------------
class Member(nn.Module):
    """One family of functions over some of a layer's inputs.

    Args:
        in_features: of those that it serves.
        out_features: outputs.
    """

    inputs_first: tuple[str, ...] = ()  # parameters that lie as (in, ...); the others as (out, in, ...)

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor, gate: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Rows (N, in) to (N, out): the sum over inputs of gate_i phi_ji(x_i).

        Args:
            gate: (in,).
            keep: places of the inputs to sum over, others count for nothing.
        """
        held = {name: self._some(name, p, keep) for name, p in self.named_parameters(recurse=False)}
        return self.sums(x if keep is None else x[:, keep], held, gate)

    def _some(self, name: str, value: Tensor, keep: Tensor | None) -> Tensor:
        return value if keep is None else value.index_select(0 if name in self.inputs_first else 1, keep)

    def sums(self, x: Tensor, held: dict[str, Tensor], gate: Tensor | None) -> Tensor:
        """The sums with these parameters."""
        raise TypeError(f"{type(self).__name__} must define sums")

    @torch.no_grad()
    def cut(self, keep: Tensor) -> None:
        """Keep the parameters of these inputs alone, in place."""
        for name, p in list(self.named_parameters(recurse=False)):
            setattr(self, name, nn.Parameter(self._some(name, p, keep).clone()))
        self.in_features = len(keep)


def _weighed(basis: Tensor, gate: Tensor | None) -> Tensor:
    return basis if gate is None else basis * gate[:, None]


class BSplineMember(Member):
    """SiLU and B-splines."""

    grid: Tensor

    def __init__(self, in_features: int, out_features: int, grid_size: int = 5, spline_order: int = 3):
        super().__init__(in_features, out_features)
        self.spline_order = spline_order
        self.register_buffer("grid", knots(grid_size, spline_order).to(torch.get_default_device()), persistent=False)
        bound = in_features**-0.5
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.coef = nn.Parameter(0.1 * bound * torch.randn(out_features, in_features, grid_size + spline_order))

    def sums(self, x: Tensor, held: dict[str, Tensor], gate: Tensor | None) -> Tensor:
        basis = torch.cat([F.silu(x)[..., None], bsplines(x, self.grid, self.spline_order)], -1)
        weight = torch.cat([held["base_weight"][..., None], held["coef"]], -1)
        return F.linear(_weighed(basis, gate).flatten(1), weight.flatten(1))


class ChebyshevMember(Member):
    """Chebyshev polynomials of the clamped input; coefficients (in, out, degree + 1)."""

    inputs_first = ("coef",)

    def __init__(self, in_features: int, out_features: int, degree: int = 4):
        super().__init__(in_features, out_features)
        self.degree = degree
        std = (in_features * (degree + 1)) ** -0.5
        self.coef = nn.Parameter(std * torch.randn(in_features, out_features, degree + 1))

    def sums(self, x: Tensor, held: dict[str, Tensor], gate: Tensor | None) -> Tensor:
        return _weighed(chebyshev(x, self.degree), gate).flatten(1) @ held["coef"].transpose(1, 2).flatten(0, 1)


class RBFMember(Member):
    """Gaussians over [-2, 2]; coefficients (in, centres, out)."""

    inputs_first = ("coef",)
    grid: Tensor

    def __init__(self, in_features: int, out_features: int, num_grids: int = 8):
        super().__init__(in_features, out_features)
        self.width = 4 / (num_grids - 1)
        self.register_buffer("grid", torch.linspace(-2, 2, num_grids), persistent=False)
        self.coef = nn.Parameter(in_features**-0.5 * 0.5 * torch.randn(in_features, num_grids, out_features))

    def sums(self, x: Tensor, held: dict[str, Tensor], gate: Tensor | None) -> Tensor:
        return _weighed(gaussians(x, self.grid, self.width), gate).flatten(1) @ held["coef"].flatten(0, 1)


class WaveletMember(Member):
    """A wavelet with a place, a scale and a weight for every pair, (out, in) each."""

    def __init__(self, in_features: int, out_features: int, wavelet_type: str = "mexican_hat"):
        super().__init__(in_features, out_features)
        self.wavelet_type = wavelet_type
        self.weight = nn.Parameter(in_features**-0.5 * torch.randn(out_features, in_features))
        self.translation = nn.Parameter(0.5 * torch.randn(out_features, in_features))
        self.scale = nn.Parameter(torch.ones(out_features, in_features))

    def sums(self, x: Tensor, held: dict[str, Tensor], gate: Tensor | None) -> Tensor:
        z = wavelet((x[:, None] - held["translation"]) / held["scale"], self.wavelet_type)
        weight = held["weight"] if gate is None else held["weight"] * gate
        return (z * weight).sum(-1)


POOL: dict[str, type[Member]] = {
    "bspline": BSplineMember, "cheby": ChebyshevMember, "rbf": RBFMember, "wavelet": WaveletMember
}  # fmt: skip


class SKANLayer(Layer):
    """A layer whose nodes choose their family of functions.

    Args:
        in_features, out_features: sizes.
        pool: names in :data:`POOL`.
        share: so many consecutive inputs are one node: 1, or the k k numbers that a patch has of one channel.
        options: arguments of single members, by name.
        chosen: for each node the place in the pool: the layer is made pruned, as one that was loaded from a pruned file needs.
    """

    chosen: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pool: Sequence[str] = tuple(POOL),
        share: int = 1,
        options: dict[str, dict[str, Any]] | None = None,
        chosen: Sequence[int] | None = None,
    ):
        super().__init__(in_features, out_features)
        for name in (*pool, *(options or {})):
            if name not in POOL:
                raise unknown("member of the pool", name, POOL)
        if not pool or len(set(pool)) != len(pool):
            raise OffprintError(f"pool={tuple(pool)}; name one family or more, each once")
        if share < 1 or in_features % share:
            raise OffprintError(f"share={share} does not divide {in_features} inputs into nodes")
        self.pool, self.share, self.nodes = tuple(pool), share, in_features // share
        self.members = nn.ModuleDict(
            {name: POOL[name](in_features, out_features, **(options or {}).get(name, {})) for name in pool}
        )
        self.selection: nn.Parameter | None = nn.Parameter(torch.zeros(self.nodes, len(pool)))
        self.register_buffer("chosen", torch.full((self.nodes,), -1, device="cpu"), persistent=False)
        self.stage = "mix"
        if chosen is not None:
            self.select(chosen)
            self.prune()

    def weights(self) -> Tensor:
        """(nodes, members): the softmax of the selection, or what was chosen as ones and zeros."""
        if self.selection is None or self.stage != "mix":
            return F.one_hot(self.chosen, len(self.pool)).to(next(self.parameters()))
        return self.selection.softmax(-1)

    def select(self, chosen: Sequence[int] | None = None) -> Tensor:
        """Stage 2: each node keeps the member of its largest weight (or the one given) and forgets the others. Returns the choice."""
        if self.stage == "pruned":
            raise OffprintError("the layer is pruned: what was not chosen is gone; build it anew to choose again")
        assert self.selection is not None
        picked = self.selection.argmax(-1) if chosen is None else torch.as_tensor(list(chosen), dtype=torch.long)
        if picked.shape != (self.nodes,) or not bool(((picked >= 0) & (picked < len(self.pool))).all()):
            raise OffprintError(
                f"chosen has {tuple(picked.shape)} places; give {self.nodes}, each from 0 to {len(self.pool) - 1}"
            )
        self.chosen, self.stage = picked.to("cpu"), "selected"
        self.selection.requires_grad_(False)
        return self.chosen

    def prune(self) -> int:
        """Stage 3: drop the parameters of what was not chosen, and nothing else. Returns how many numbers are left; twice is once."""
        if self.stage == "mix":
            raise OffprintError("the layer still mixes its pool; call select() before prune()")
        if self.stage == "selected":
            for k, name in enumerate(self.pool):
                keep = self._of(k)
                if len(keep):
                    self.members[name].cut(keep.to(next(self.parameters()).device))  # type: ignore[operator]
                else:
                    del self.members[name]
            self.selection, self.stage = None, "pruned"
        return sum(p.numel() for p in self.parameters())

    def _of(self, k: int) -> Tensor:
        """Places of the inputs whose node chose member ``k``."""
        return torch.nonzero(self.chosen.repeat_interleave(self.share) == k)[:, 0]

    def edges(self, x: Tensor) -> Tensor:
        if self.stage == "mix":
            gates = self.weights().repeat_interleave(self.share, 0)
            parts = [member(x, gates[:, k]) for k, member in enumerate(self.members.values())]
        else:
            parts = []
            for k, name in enumerate(self.pool):
                keep = self._of(k).to(x.device)
                if len(keep) and self.stage == "pruned":
                    parts.append(self.members[name](x[:, keep]))
                elif len(keep):
                    parts.append(self.members[name](x, keep=keep))
        return torch.stack(parts).sum(0)


class SConvKAN(PatchLayer):
    """:class:`SKANLayer` over the patches of a map, in the place of a convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as in :class:`~offprint.nn.kan.PatchLayer`.
        per: what a node is: ``"channel"`` of the input, or ``"entry"`` of the patch.
        **options: ``pool``, ``options`` and ``chosen`` of :class:`SKANLayer`.
    """

    kanlayer: SKANLayer

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, per: str = "channel",
        **options: Any,
    ):  # fmt: skip
        size = check_patches(in_channels, kernel_size, stride, padding)
        if per not in ("channel", "entry"):
            raise unknown("node", per, ("channel", "entry"))
        made = SKANLayer(size, out_channels, share=kernel_size**2 if per == "channel" else 1, **options)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, made)


def selectable(model: nn.Module) -> list[SKANLayer]:
    """The layers of a model that choose."""
    return [m for m in model.modules() if isinstance(m, SKANLayer)]


def select(model: nn.Module) -> list[list[int]]:
    """:meth:`SKANLayer.select` of every layer; returns the choices, which the model's ``chosen=`` takes."""
    return [layer.select().tolist() for layer in selectable(model)]


def prune(model: nn.Module) -> int:
    """:meth:`SKANLayer.prune` of every layer; returns how many parameters the model has left."""
    for layer in selectable(model):
        layer.prune()
    return sum(p.numel() for p in model.parameters())


# -- networks ------------------------------------------------------------------------------------------------------------
def _check_widths(widths: Sequence[int]) -> None:
    if len(widths) < 2:
        raise OffprintError(f"widths={list(widths)}; name inputs and outputs at least, e.g. [2, 5, 1]")


class KAN(nn.Module):
    """Layers of one family in a row; names are those of efficient-kan's and fast-kan's networks.

    Args:
        widths: inputs, hidden widths, outputs.
        layer: of :data:`offprint.nn.kan.DENSE`.
        **options: of the layers.
    """

    optional_state = Layer.optional_state

    def __init__(self, widths: Sequence[int], layer: str = "bspline", **options: Any):
        super().__init__()
        _check_widths(widths)
        if layer not in DENSE:
            raise unknown("family", layer, DENSE)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(DENSE[layer](in_features=a, out_features=b, **options) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        for layer in self.layers:
            x = layer(x)
        return x


class SKAN(nn.Module):
    """Layers that choose, in a row: ``SKAN([2, 5, 1], pool=["bspline", "cheby"])``.

    Args:
        widths: inputs, hidden widths, outputs.
        pool, options: as in :class:`SKANLayer`.
        chosen: choices of every layer (as :func:`select` returns them): the network is made pruned.
    """

    def __init__(
        self,
        widths: Sequence[int],
        pool: Sequence[str] = tuple(POOL),
        options: dict[str, dict[str, Any]] | None = None,
        chosen: Sequence[Sequence[int]] | None = None,
    ):
        super().__init__()
        _check_widths(widths)
        picked = [None] * (len(widths) - 1) if chosen is None else list(chosen)
        if len(picked) != len(widths) - 1:
            raise OffprintError(f"chosen names {len(picked)} layers, widths {list(widths)} make {len(widths) - 1}")
        pairs = zip(widths[:-1], widths[1:], picked, strict=True)
        self.layers = nn.ModuleList(SKANLayer(a, b, pool, options=options, chosen=c) for a, b, c in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        for layer in self.layers:
            x = layer(x)
        return x


class KANCNN(Backbone):
    """Two layers of 5x5 patches, each followed by 2x2 max-pooling, and two linear ones: the example of the authors' code.

    Args:
        in_chans: image channels.
        num_classes: outputs.
        layer: family of the patch layers (of :data:`offprint.nn.kan.PATCHES`), or ``"select"`` for :class:`SConvKAN`.
        channels: of the two layers.
        img_size: side of the images, which the linear layers depend on.
        drop_rate: dropout before the classifier.
        **options: of the patch layers.
    """

    head_modules = ("fc1", "fc2")
    classifier = "fc2"
    minimum = 16
    optional_state = Layer.optional_state

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 10,
        layer: str = "bspline",
        channels: tuple[int, int] = (10, 20),
        img_size: int = 28,
        drop_rate: float = 0.0,
        **options: Any,
    ):
        super().__init__(drop_rate)
        if layer not in (*PATCHES, "select"):
            raise unknown("family", layer, (*PATCHES, "select"))
        if img_size < self.minimum:
            raise OffprintError(
                f"img_size={img_size}; two layers of 5x5 patches and pooling need {self.minimum} pixels or more"
            )
        self.in_chans, self.num_classes, self.img_size = in_chans, num_classes, img_size
        make: Callable[..., nn.Module] = SConvKAN if layer == "select" else PATCHES[layer]
        self.conv1 = make(in_chans, channels[0], 5, **options)
        self.conv2 = make(channels[0], channels[1], 5, **options)
        side = ((img_size - 4) // 2 - 4) // 2
        self.fc1 = nn.Linear(channels[1] * side**2, 50)
        self.fc2 = nn.Linear(50, num_classes) if num_classes else nn.Identity()
        self.num_features, self.hidden = channels[1], 50
        self.pyramid_channels, self.pyramid_reductions = list(channels), [2, 4]
        self.pyramid_modules = ["conv1", "conv2"]

    def check_input(self, x: Tensor) -> None:
        super().check_input(x)
        if self.whole and x.shape[-2:] != (self.img_size, self.img_size):
            raise OffprintError(
                f"this network's linear layers are for images of {self.img_size}x{self.img_size}, got {tuple(x.shape[-2:])}; build it with "
                "img_size= of yours, or resize them"
            )

    def depth_groups(self) -> list[list[str]]:
        """The two patch layers."""
        return [["conv1"], ["conv2"]]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The two pooled maps."""
        for name in self.pyramid_modules:
            x = F.max_pool2d(self.run((self.get_submodule(name),), x), 2)
            yield x

    def pooled(self, x: Tensor) -> Tensor:
        """The map as a row, through the first linear layer and ReLU."""
        return F.relu(self.fc1(x.flatten(1)))


# -- fitting a function --------------------------------------------------------------------------------------------------
@dataclass
class Fit:
    """A fitted function: ``fit(x)`` gives y in the units of the data.

    Attributes:
        model: the network, on inputs scaled to [-1, 1] and targets of mean 0 and deviation 1.
        choices: per layer the families that its nodes chose; empty where there was nothing to choose.
        parameters: numbers of the network as it is now.
        rmse: root mean square error on the training rows, in the units of y.
        losses: mean square error of every step, in units of the deviation.
    """

    model: nn.Module
    choices: list[list[str]]
    parameters: int
    rmse: float
    losses: list[float]
    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Rows (N, in) to (N, out); inputs beyond those of the training are extrapolated by what the functions are there."""
        return self.model(_scaled(x, self.low, self.high)) * self.std + self.mean


def _scaled(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return 2 * (x - low) / (high - low) - 1


def fit_function(
    x: Tensor,
    y: Tensor,
    model: nn.Module | None = None,
    *,
    hidden: Sequence[int] = (5,),
    pool: Sequence[str] = tuple(POOL),
    steps: int = 1000,
    lr: float = 1e-2,
    split: tuple[float, float, float] = (0.5, 0.4, 0.1),
    watch: Callable[[int, float], Any] | None = None,
) -> Fit:
    """Fit y = f(x), all rows at a time, by Adam; a network that chooses goes through its three stages.

    Args:
        x: (N, in).
        y: (N, out) or (N,).
        model: the network, in place; default ``SKAN([in, *hidden, out], pool)``.
        hidden, pool: of the default network.
        steps: in all.
        lr: falls to a hundredth of itself along a cosine in every stage.
        split: shares of the steps for mixing, for the chosen members, and for refining what is left after pruning.
        watch: called with the number of the step and its loss.

    Raises:
        OffprintError: rows that do not fit together, that are not finite, or an input that has one value only.
    """
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise OffprintError(
            f"x is {tuple(x.shape)} and y {tuple(y.shape)}; give (N, in) and (N, out) or (N,), N two or more"
        )
    for name, value in (("x", x), ("y", y)):
        bad = torch.nonzero(~torch.isfinite(value).all(1))[:, 0]
        if len(bad):
            raise OffprintError(
                f"{name} holds values that are not finite, first in row {int(bad[0])}; leave such rows out"
            )
    low, high = x.amin(0), x.amax(0)
    if bool((low == high).any()):
        column = int(torch.nonzero(low == high)[0])
        raise OffprintError(f"column {column} of x has one value only ({float(low[column]):g}); leave it out")
    if steps < 3 or min(split) < 0 or not math.isclose(sum(split), 1):
        raise OffprintError(f"steps={steps}, split={split}; give three steps or more, and shares that add to 1")
    mean, std = y.mean(0), y.std(0).clamp_min(torch.finfo(y.dtype).tiny ** 0.5)
    net = SKAN([x.shape[1], *hidden, y.shape[1]], pool).to(x) if model is None else model
    inputs, target = _scaled(x, low, high), (y - mean) / std
    losses: list[float] = []
    choosing = [layer for layer in selectable(net) if layer.stage == "mix"]
    ends = [round(steps * split[0]), round(steps * (split[0] + split[1])), steps] if choosing else [steps]
    net.train()
    for stage, end in enumerate(ends):
        if stage == 1:
            select(net)
        elif stage == 2:
            prune(net)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr)
        first = len(losses)
        for step in range(first, end):
            for group in optimizer.param_groups:
                group["lr"] = lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - first) / (end - first))))
            optimizer.zero_grad()
            loss = F.mse_loss(net(inputs), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if watch is not None:
                watch(step, losses[-1])
    net.eval()
    with torch.no_grad():
        rmse = float(((net(inputs) - target) * std).square().mean().sqrt())
    choices = [[layer.pool[k] for k in layer.chosen.tolist()] for layer in selectable(net)]
    return Fit(net, choices, sum(p.numel() for p in net.parameters()), rmse, losses, low, high, mean, std)


RECIPE = {  # the paper's could not be seen
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "epochs": 20,
    "batch_size": 128,
    "warmup_epochs": 0,
    "flip": False,
    "crop_scale": (1.0, 1.0),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "kan_cnn_28": {},
    **{f"kan_cnn_28_{layer}": {"layer": layer} for layer in PATCHES if layer != "bspline"},
    "s_conv_kan_28": {"layer": "select"},
    "s_conv_kan_32": {"layer": "select", "in_chans": 3, "img_size": 32},
}
register(
    paper="s-kan",
    kind="classifier",
    task="classification",
    build=KANCNN,
    variants=VARIANTS,
    input_size=(1, 28, 28),
    input_sizes={"s_conv_kan_32": (3, 32, 32)},
    preprocessing={"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0},
    recipe=RECIPE,
)
