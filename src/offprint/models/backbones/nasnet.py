r"""Learning Transferable Architectures for Scalable Image Recognition (Zoph, Vasudevan, Shlens, Le; CVPR 2018; arXiv 1707.07012).

Not a network is searched but the wiring of two small cells: a Normal cell, which keeps the size of its map, and a Reduction cell,
which halves it. Networks of any depth N and width F stack the found cells. A cell has B = 5 blocks; block b takes two of the hidden
states :math:`s_0, \ldots, s_{b+1}` and applies an operation to each,

.. math:: s_{b+2} = o_b^{l}(s_{i_b}) + o_b^{r}(s_{j_b}), \qquad s_0 = W\,\mathrm{ReLU}(x_t),\quad s_1 = W'\,\mathrm{ReLU}(x_{t-1}),

(or their concatenation), and the cell's output :math:`x_{t+1}` is the concatenation of states that no block used (Sec. 3). A cell
is data here: any :class:`Genotype` of the space builds a network. ScheduledDropPath regularises it: every operation's result but an
identity's is dropped per sample, more in later cells and more as training goes on (:func:`scheduled_keep_probability`).

Paddings are TensorFlow's SAME and averages leave the padding out, as in the authors' code (tensorflow/models,
``research/slim/nets/nasnet``). Names inside a cell are those of Cadene's port. The search is in
:mod:`offprint.methods.search.nasnet_search`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.backbones._nasnet_genotype import COMBINATIONS, GENOTYPES, OPERATIONS, CellTable, Genotype
from offprint.models.backbones._nasnet_names import DIALECTS
from offprint.models.registry import register
from offprint.models.released import cadene, timm
from offprint.nn.precision import wide_dtype

__all__ = [
    "COMBINATIONS",
    "GENOTYPES",
    "OPERATIONS",
    "Cell",
    "Genotype",
    "NASNet",
    "reduction_positions",
    "scheduled_keep_probability",
]


def scheduled_keep_probability(keep: float, cell: int, cells: int, step: int, steps: int) -> float:
    """ScheduledDropPath: the probability that an operation's result is kept.

    Args:
        keep: of the last cell at the end of training.
        cell, cells: number of the cell from 0 (stem and Reduction cells count), and how many there are.
        step, steps: of training so far, and in all.
    """
    of_cell = 1 - (cell + 1) / cells * (1 - keep)
    return 1 - min(1.0, step / steps) * (1 - of_cell)


def reduction_positions(cells: int, reductions: int = 2) -> list[int]:
    """The Normal cells (counted from 0) before which a Reduction cell stands."""
    return [int(p / (reductions + 1) * cells) for p in range(1, reductions + 1)]


# -- operations ------------------------------------------------------------------------------------------------------
def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, before and after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded the SAME way for whatever size comes."""

    def __init__(self, in_channels, out_channels, kernel, stride=(1, 1), dilation: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        axes = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        (top, bottom), (left, right) = (_same(n, (k - 1) * d + 1, s) for n, k, s, d in axes)
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)


class Norms(NamedTuple):
    """Settings of every BatchNorm of a network."""

    eps: float
    momentum: float

    def __call__(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, self.eps, self.momentum)


def _fold(owner: nn.Module, conv: str, norm: str) -> None:
    """Put a BatchNorm into the convolution before it (evaluation only)."""
    if not isinstance(getattr(owner, norm), nn.Identity):
        parent, _, leaf = conv.rpartition(".")
        holder = owner.get_submodule(parent) if parent else owner
        setattr(holder, leaf, fuse_conv_bn_eval(getattr(holder, leaf), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm; 1x1 unless a kernel is given."""

    fold_pairs = (("conv", "bn"),)
    rectified = fresh = True  # reads a map after its ReLU; its result is nobody else's and may be overwritten

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norms, stride: int = 1, kernel: int = 1, padding: int = 0
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Separable(nn.Module):
    """Depth-wise kxk and 1x1, BatchNorm, ReLU, and the same again; the input has had its ReLU."""

    rectified = fresh = True

    def __init__(self, in_channels: int, out_channels: int, norm: Norms, kernel: int, stride: int = 1):
        super().__init__()
        for i, (channels, step) in enumerate(((in_channels, stride), (out_channels, 1)), 1):
            pair = nn.Module()
            pair.depthwise_conv2d = SameConv2d(channels, channels, (kernel, kernel), (step, step), groups=channels)
            pair.pointwise_conv2d = nn.Conv2d(channels, out_channels, 1, bias=False)
            setattr(self, f"separable_{i}", pair)
            setattr(self, f"bn_sep_{i}", norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.separable_1, self.separable_2
        x = F.relu(self.bn_sep_1(a.pointwise_conv2d(a.depthwise_conv2d(x))), inplace=True)
        return self.bn_sep_2(b.pointwise_conv2d(b.depthwise_conv2d(x)))

    def merge(self) -> None:
        """Fold both BatchNorms into the 1x1 convolutions before them."""
        for i in (1, 2):
            _fold(self, f"separable_{i}.pointwise_conv2d", f"bn_sep_{i}")


class Convolutions(nn.Module):
    """One or two plain convolutions, each with BatchNorm, a ReLU between; the input has had its ReLU."""

    rectified = fresh = True

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norms, kernels: tuple, dilation: int, stride: int = 1
    ):
        super().__init__()
        self.count = len(kernels)
        for i, kernel in enumerate(kernels, 1):
            along = (stride, stride) if len(kernels) == 1 else tuple(stride if k > 1 else 1 for k in kernel)
            setattr(self, f"conv_{i}", SameConv2d(in_channels, out_channels, kernel, along, dilation))
            setattr(self, f"bn_{i}", norm(out_channels))
            in_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_1(self.conv_1(x))
        return x if self.count == 1 else self.bn_2(self.conv_2(F.relu(x, inplace=True)))

    def merge(self) -> None:
        """Fold the BatchNorms."""
        for i in range(1, self.count + 1):
            _fold(self, f"conv_{i}", f"bn_{i}")


class Pool(nn.Module):
    """Pooling, SAME: padding is minus infinity for a maximum and left out of an average. 1x1 and BatchNorm follow if the width changes."""

    rectified = False

    def __init__(self, in_channels: int, out_channels: int, norm: Norms, kind: str, kernel: int, stride: int):
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride
        self.project = ConvNorm(in_channels, out_channels, norm) if in_channels != out_channels else None
        self.fresh = self.project is not None

    def forward(self, x: Tensor) -> Tensor:
        """The pooled map alone: a cell computes it once for all operands that want it."""
        padding = tuple(_same(n, self.kernel, self.stride)[0] for n in x.shape[2:])
        over = self.stride > 1  # an even side has one more row of padding at its end, which ceil_mode stands for
        if self.kind == "max":
            return F.max_pool2d(x, self.kernel, self.stride, padding, ceil_mode=over)
        return F.avg_pool2d(x, self.kernel, self.stride, padding, ceil_mode=over, count_include_pad=False)


class FactorizedReduction(nn.Module):
    """Half the size without losing pixels: 1x1 convolutions of the pixels at (0, 0), (0, 2), ... and at (1, 1), (1, 3), ...

    Past the last row and column stand zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norms):
        super().__init__()
        half = out_channels // 2
        for name, width in (("path_1", half), ("path_2", out_channels - half)):
            path = nn.Module()
            path.conv = nn.Conv2d(in_channels, width, 1, 2, bias=False)
            setattr(self, name, path)
        self.final_path_bn = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        second = self.path_2.conv
        # with one pixel of padding the grid is -1, 1, 3, ..., whatever the parity of the side; the first is not wanted
        shifted = F.conv2d(x, second.weight, second.bias, 2, 1)[:, :, 1:, 1:]
        return self.final_path_bn(torch.cat([self.path_1.conv(x), shifted], 1))

    def merge(self) -> None:
        """Divide the BatchNorm between the two convolutions."""
        norm = self.final_path_bn
        if isinstance(norm, nn.Identity):
            return
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift, start = norm.bias - norm.running_mean * scale, 0
        for path in (self.path_1, self.path_2):
            part = slice(start, start + path.conv.out_channels)
            path.conv.weight = nn.Parameter(path.conv.weight * scale[part, None, None, None])
            path.conv.bias = nn.Parameter(shift[part].clone())
            start = part.stop
        self.final_path_bn = nn.Identity()


def _operation(name: str, in_channels: int, filters: int, norm: Norms, stride: int) -> nn.Module:
    kind, *rest = OPERATIONS[name]
    match kind:
        case "sep":
            return Separable(in_channels, filters, norm, rest[0], stride)
        case "conv":
            return Convolutions(in_channels, filters, norm, rest[0], rest[1], stride)
        case "avg" | "max":
            return Pool(in_channels, filters, norm, kind, rest[0], stride)
    return nn.Identity() if stride == 1 and in_channels == filters else ConvNorm(in_channels, filters, norm, stride)


# -- the cell --------------------------------------------------------------------------------------------------------
class Cell(nn.Module):
    """A Normal or Reduction cell.

    Args:
        table: its wiring.
        in_channels, prev_channels: of the two inputs.
        filters: F, the width of its states.
        norm: settings of the BatchNorms.
        reduction: operations on states 0 and 1 have stride 2.
        prev: how state 1 is made: ``"first"`` (there is no previous cell: the input as it is), ``"larger"`` (its map is twice as
            large) or ``"same"``.
        drop: probability of dropping an operation's result at the end of training.
    """

    def __init__(
        self, table: CellTable, in_channels: int, prev_channels: int, filters: int, norm: Norms,
        reduction: bool = False, prev: str = "same", drop: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.blocks, self.concat, self.drop = table.blocks, table.concat, drop
        wanted = {s for b in table.blocks for s in (b.left, b.right)} | set(table.concat)
        self.raw_prev = prev == "first" or (prev == "same" and prev_channels == filters)
        self.conv_1x1 = ConvNorm(in_channels, filters, norm) if 0 in wanted else None
        self.conv_prev_1x1: nn.Module | None = None
        if 1 in wanted and prev == "larger":
            self.conv_prev_1x1 = FactorizedReduction(prev_channels, filters, norm)
        elif 1 in wanted and not self.raw_prev:
            self.conv_prev_1x1 = ConvNorm(prev_channels, filters, norm)
        self.uses_prev = 1 in wanted
        widths = [filters, prev_channels if self.raw_prev else filters]
        for i, b in enumerate(table.blocks):
            for side, state, op in (("left", b.left, b.left_op), ("right", b.right, b.right_op)):
                stride = 2 if reduction and state < 2 else 1
                setattr(self, f"comb_iter_{i}_{side}", _operation(op, widths[state], filters, norm, stride))
            widths.append(filters if b.combine == "add" else 2 * filters)
        self.brought: tuple[int, ...] = ()  # inputs that are part of the output and have not its size or width
        for s in table.concat:
            if s < 2 and (reduction or widths[s] != filters):
                make = FactorizedReduction if reduction else ConvNorm
                setattr(self, f"cell_output_{s}", make(widths[s], filters, norm))
                self.brought += (s,)
                widths[s] = filters
        self.out_channels = sum(widths[s] for s in table.concat)

    def forward(self, x: Tensor, prev: Tensor, progress: Tensor | None = None) -> Tensor:
        """The output (B, C, H, W), before any ReLU.

        Args:
            x: the input, after its ReLU.
            prev: the previous cell's output, after its ReLU unless ``raw_prev``.
            progress: how far training is, 0 to 1, where paths are dropped.
        """
        states: list[Any] = [self.conv_1x1(x) if self.conv_1x1 is not None else None, None]
        if self.uses_prev:
            states[1] = self.conv_prev_1x1(prev) if self.conv_prev_1x1 is not None else prev
        masks = None
        if progress is not None:
            keep = 1 - self.drop * progress
            noise = torch.rand(2 * len(self.blocks), len(x), 1, 1, 1, device=x.device, dtype=progress.dtype)
            masks = torch.floor(noise + keep) / keep
        shared: dict = {}  # ReLUs and poolings, each computed once
        for i, b in enumerate(self.blocks):
            mask = (None, None) if masks is None else masks[2 * i : 2 * i + 2]
            left, own = self._operand(f"comb_iter_{i}_left", b.left, b.left_op, states, shared, mask[0])
            right, also = self._operand(f"comb_iter_{i}_right", b.right, b.right_op, states, shared, mask[1])
            if b.combine == "concat":
                states.append(torch.cat([left, right], 1))
            elif own:
                states.append(left.add_(right))
            else:
                states.append(right.add_(left) if also else left + right)
        for s in self.brought:
            states[s] = getattr(self, f"cell_output_{s}")(states[s])
        return torch.cat([states[s] for s in self.concat], 1)

    def _operand(
        self, name: str, state: int, op: str, states, shared: dict, mask: Tensor | None
    ) -> tuple[Tensor, bool]:
        """An operation's result, and whether it may be overwritten."""
        module = getattr(self, name)
        if isinstance(module, nn.Identity):
            return states[state], False
        if isinstance(module, Pool):
            key: Any = (state, module.kind, module.kernel)
            if key not in shared:
                shared[key] = module(states[state])
            y = shared[key] if module.project is None else module.project(shared[key])
        else:
            if state not in shared:
                shared[state] = F.relu(states[state])
            y = module(shared[state])
        if mask is None or op == "identity":
            return y, module.fresh
        return y * mask.to(y.dtype), True


# -- the network -----------------------------------------------------------------------------------------------------
class Auxiliary(nn.Module):
    """The side classifier of training, on the map before the second reduction.

    Args:
        size: side of the pooled map, over all of which the second convolution goes; other sizes are pooled to it.
    """

    fold_pairs = (("proj", "aux_bn0"), ("conv", "aux_bn1"))

    def __init__(self, in_channels: int, num_classes: int, norm: Norms, size: int):
        super().__init__()
        self.size = size
        self.proj = nn.Conv2d(in_channels, 128, 1, bias=False)
        self.aux_bn0 = norm(128)
        self.conv = nn.Conv2d(128, 768, size, bias=False)
        self.aux_bn1 = norm(768)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        x = F.avg_pool2d(x, 5, 3) if min(x.shape[2:]) >= 5 else x
        x = x if tuple(x.shape[2:]) == (self.size, self.size) else F.adaptive_avg_pool2d(x, self.size)
        x = F.relu(self.aux_bn0(self.proj(x)), inplace=True)
        return self.fc(F.relu(self.aux_bn1(self.conv(x)), inplace=True).flatten(1))


class NASNet(Backbone):
    """Stacked cells (Fig. 2).

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        num_cells: N, Normal cells per resolution.
        filters: F, width of the first Normal cells; doubled at each reduction.
        stem_filters: of the first convolution.
        imagenet: the ImageNet form: a strided first convolution and two Reduction cells as stem, BatchNorm eps 1e-3. Otherwise the
            CIFAR form: full resolution, no stem cells, eps 1e-5.
        skip_reduction: the first Normal cell after a reduction sees as previous output what the Reduction cell saw as such (Large);
            otherwise the reduction's own input.
        genotype: the cells; what :meth:`Genotype.of` takes.
        drop_rate: dropout before the classifier.
        drop_path_rate: ScheduledDropPath: 1 - keep probability of the last cell at the end of training.
        drop_path_steps: training batches over which it rises from 0; 0 for full strength from the first (plain DropPath). The
            training task sets it (:meth:`set_training_steps`).
        aux: a side classifier before the second reduction; in training the model then returns (logits, side logits).
        aux_size: side of its map at the variant's own image size.
        bn_momentum: 1 - decay of the running statistics. The authors' 3e-4 on ImageNet suits hundreds of thousands of steps;
            give 0.1 when training from scratch for fewer than ten thousand.

    Images of 32 pixels (CIFAR form: 16) and more work.
    """

    head_modules = ("last_linear", "aux")
    classifier = "last_linear"
    input_layers = ("conv0.conv",)
    native = "offprint"
    dialects = DIALECTS
    optional_state = r"^drop_path_step$|^aux\."
    aux_weight = 0.4  # of the side classifier's loss

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        num_cells: int = 6,
        filters: int = 168,
        stem_filters: int = 96,
        imagenet: bool = True,
        skip_reduction: bool = True,
        genotype: Genotype | Mapping | str = "nasnet_a",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_steps: int = 0,
        aux: bool = False,
        aux_size: int = 6,
        bn_momentum: float = 3e-4,
    ):
        super().__init__(drop_rate)
        self.genotype = Genotype.of(genotype)
        for name, value, least in (("num_cells", num_cells, 1), ("filters", filters, 4 if imagenet else 1)):
            if value < least:
                raise OffprintError(f"{name}={value}; it must be at least {least}")
        if not 0 <= drop_path_rate < 1 or drop_path_steps < 0:
            raise OffprintError(
                f"drop_path_rate={drop_path_rate} must be from 0 to below 1, drop_path_steps={drop_path_steps} not negative"
            )
        if aux and not num_classes:
            raise OffprintError("aux=True adds a side classifier and needs num_classes above 0")
        self.in_chans, self.num_classes, self.num_cells, self.skip_reduction = (
            in_chans,
            num_classes,
            num_cells,
            skip_reduction,
        )
        self.minimum = 32 if imagenet else 16
        self.drop_path_rate, self.drop_path_steps = drop_path_rate, drop_path_steps
        if drop_path_rate:
            self.register_buffer("drop_path_step", torch.zeros((), dtype=torch.long))
        norm = Norms(1e-3 if imagenet else 1e-5, bn_momentum)
        self.conv0 = ConvNorm(in_chans, stem_filters, norm, 2 if imagenet else 1, 3, 0 if imagenet else 1)

        # the order of the cells: (name, is a reduction, width)
        plan = [(f"cell_stem_{i}", True, filters * 2**i // 4) for i in range(2 if imagenet else 0)]
        positions = reduction_positions(3 * num_cells)
        for i in range(3 * num_cells):
            if i in positions:
                stage = positions.index(i)
                plan.append((f"reduction_cell_{stage}", True, filters * 2 ** (stage + 1)))
            plan.append((f"cell_{i}", False, filters * 2 ** sum(i >= p for p in positions)))
        self.steps = tuple(name for name, _, _ in plan)
        self.keeps_raw: set[str] = set()  # outputs that a later cell reads without ReLU
        made = {"conv0": (stem_filters, 2 if imagenet else 1)}  # output → channels, stride
        now = before = "conv0"
        for c, (name, reduction, width) in enumerate(plan):
            (channels, stride), (prev_channels, prev_stride) = made[now], made[before]
            kind = "first" if c == 0 else "larger" if prev_stride < stride else "same"
            table = self.genotype.reduce if reduction else self.genotype.normal
            drop = (c + 1) / len(plan) * drop_path_rate
            cell = Cell(table, channels, prev_channels, width, norm, reduction, kind, drop)
            setattr(self, name, cell)
            if cell.raw_prev:
                self.keeps_raw.add(before)
            made[name] = (cell.out_channels, stride * (2 if reduction else 1))
            before, now = self._previous(name, before, now), name
        taps = [f"cell_{(i + 1) * num_cells - 1}" for i in range(3)]
        self._taps = tuple((["conv0", "cell_stem_0"] if imagenet else []) + taps)
        self._aux_at = f"cell_{positions[1] - 1}"
        self.pyramid_modules = list(self._taps)
        self.pyramid_channels = [made[name][0] for name in self._taps]
        self.pyramid_reductions = [made[name][1] for name in self._taps]
        self.num_features = self.pyramid_channels[-1]
        self.aux = Auxiliary(made[self._aux_at][0], num_classes, norm, aux_size) if aux else None
        self.last_linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    @property
    def spec(self) -> dict:
        """How the model was made by name, its genotype written out (it may have been given as a file)."""
        if "spec" not in self.__dict__:
            raise AttributeError("this model was not made by name")
        kwargs = self.__dict__["spec"]["kwargs"]
        if "genotype" in kwargs:
            kwargs["genotype"] = self.genotype.to_dict()
        return self.__dict__["spec"]

    def _previous(self, name: str, before, now):
        """What the cell after ``name`` sees as the previous cell's output."""
        return before if self.skip_reduction and name.startswith("reduction") else now

    def set_training_steps(self, steps: int) -> None:
        """Say how many training batches there will be: ScheduledDropPath rises linearly over them."""
        self.drop_path_steps = int(steps)

    def _progress(self, dtype: torch.dtype) -> Tensor | None:
        if not (self.training and self.drop_path_rate):
            return None
        step = self.drop_path_step.to(wide_dtype(dtype))
        done = step / self.drop_path_steps if self.drop_path_steps else torch.ones_like(step)
        self.drop_path_step += 1
        return done.clamp(max=1)

    def walk(self, x: Tensor, names: tuple[str, ...] = ()) -> Iterator[Tensor]:
        """The last map of each stride, or the outputs of the named steps (in their order), before any ReLU.

        Each output is rectified once for all who read it.
        """
        progress, names = self._progress(x.dtype), names or tuple(self.pyramid_modules)

        def rectify(name: str, y: Tensor) -> tuple[Tensor | None, Tensor]:
            wanted = name in names or name in self.keeps_raw
            return (y, F.relu(y)) if wanted else (None, F.relu(y, inplace=True))

        y = self.conv0(x)
        if "conv0" in names:
            yield y
        now = before = rectify("conv0", y)
        for name in self.steps:
            cell = getattr(self, name)
            y = self.run((cell,), now[1], before[0] if cell.raw_prev else before[1], progress)
            if name in names:
                yield y
            if name == names[-1]:
                return
            before, now = self._previous(name, before, now), rectify(name, y)

    def _forward(self, x: Tensor):
        """Logits (B, num_classes), or maps; in training with ``aux`` the logits and the side classifier's."""
        if self.aux is None or not self.training:
            return super()._forward(x)
        middle, last = self.walk(x, (self._aux_at, self.steps[-1]))
        return self.forward_head(last), self.aux(middle)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, before its ReLU: (B, C, H/32, W/32), in the CIFAR form (B, C, H/4, W/4)."""
        return next(self.walk(x, tuple(self.pyramid_modules[-1:])))

    def depth_groups(self) -> list[list[str]]:
        """First convolution, and each cell."""
        return [["conv0"], *([name] for name in self.steps)]

    def pooled(self, x: Tensor) -> Tensor:
        """ReLU, mean over the map."""
        return self.pool(F.relu(x))

    def _behead(self) -> None:
        super()._behead()
        self.aux = None
        self.steps = tuple(name for name in self.steps if hasattr(self, name))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the side classifier's last layer with it."""
        super().reset_classifier(num_classes, global_pool)
        if self.aux is not None and num_classes:
            self.aux.fc = nn.Linear(768, num_classes).to(next(self.parameters()))
        elif not num_classes:
            self.aux = None

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the background class, the first of 1001 in the authors' files."""
        for layer in ("last_linear", "aux.fc"):
            for name in (f"{layer}.weight", f"{layer}.bias"):
                if name in state and len(state[name]) == 1001 and self.num_classes == 1000:
                    state = {**state, name: state[name][1:]}
        return state


_CIFAR = {"imagenet": False, "skip_reduction": False, "num_classes": 10, "aux_size": 4, "bn_momentum": 0.1}
VARIANTS = {
    "nasnet_a_mobile": {"num_cells": 4, "filters": 44, "stem_filters": 32, "skip_reduction": False, "aux_size": 4},
    "nasnet_a_large": {"num_cells": 6, "filters": 168},
    "nasnet_a_5_1538": {"num_cells": 5, "filters": 64, "aux_size": 5},
    "nasnet_a_7_1920": {"num_cells": 7, "filters": 80, "aux_size": 5},
}
CIFAR = {
    "nasnet_a_cifar": {**_CIFAR, "num_cells": 6, "filters": 32},
    "nasnet_a_cifar_large": {**_CIFAR, "num_cells": 7, "filters": 96, "stem_filters": 288},
}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
_IMAGENET = {  # the README's training commands; the rate is one replica's
    "optimizer": "rmsprop_tf",
    "lr": 0.015,
    "reference_batch": 16,
    "batch_size": 16,
    "momentum": 0.9,
    "eps": 1.0,
    "weight_decay": 5e-5,
    "epochs": 250,
    "schedule": "step",
    "decay_rate": 0.97,
    "decay_epochs": 2.4,
    "warmup_epochs": 0,
    "label_smoothing": 0.1,
    "clip_grad": 10.0,
    "drop_rate": 0.5,
    "drop_path_rate": 0.3,
    "ema_decay": 0.9999,
    "aux_weight": 0.4,
    "data": "imagenet-1k",
}
WEIGHTS = {  # the authors' own are TensorFlow's
    "nasnet_a_large": {
        "cadene_in1k": cadene("nasnetalarge-a1897284", 331, 354, 82.566, 96.086),
        # tensor names as Cadene's; timm counts the padding in four average pools, TensorFlow and we do not
        "timm_tf_in1k": timm(
            "nasnetalarge.tf_in1k", 331, 82.626, 96.042, crop=0.911, dialect="cadene", preprocessing=_HALF
        ),
    },
    "nasnet_a_mobile": {"cadene_in1k": cadene("nasnetamobile-7e03cead", 224, 256, 74.080, 91.740)},
}
register(
    paper="nasnet",
    kind="backbone",
    build=NASNet,
    variants=VARIANTS,
    weights=WEIGHTS,
    input_size=(3, 299, 299),
    input_sizes={"nasnet_a_mobile": (3, 224, 224), "nasnet_a_large": (3, 331, 331)},
    preprocessing={**_HALF, "crop_pct": 0.875},
    recipe=_IMAGENET,
    exceptions={
        "training": {
            "nasnet_a_mobile": {
                "lr": 0.04,
                "reference_batch": 32,
                "batch_size": 32,
                "weight_decay": 4e-5,
                "drop_path_rate": 0.0,
            }
        }
    },
)
register(
    paper="nasnet",
    kind="backbone",
    build=NASNet,
    variants=CIFAR,
    input_size=(3, 32, 32),
    preprocessing={**_HALF, "crop_pct": 1.0},
    recipe={
        "optimizer": "sgd",
        "lr": 0.025,
        "batch_size": 32,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "epochs": 600,
        "warmup_epochs": 0,
        "min_lr": 0.0,
        "clip_grad": 5.0,
        "drop_path_rate": 0.4,
        "crop_scale": (0.7, 1.0),
        "random_erasing": 0.25,
        "input_size": 32,
        "aux_weight": 0.4,
        "data": "cifar-10",
    },
)  # random erasing stands in for cutout, a random crop for the padded one
