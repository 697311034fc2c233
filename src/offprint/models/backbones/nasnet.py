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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.backbones._nasnet_cell import Cell, ConvNorm, FactorizedReduction, Norms, Pool, SameConv2d
from offprint.models.backbones._nasnet_genotype import COMBINATIONS, GENOTYPES, OPERATIONS, Genotype
from offprint.models.backbones._nasnet_names import DIALECTS
from offprint.models.registry import register
from offprint.models.released import cadene, timm
from offprint.nn.precision import wide_dtype

__all__ = [
    "COMBINATIONS",
    "Cell",
    "FactorizedReduction",
    "GENOTYPES",
    "Genotype",
    "NASNet",
    "Norms",
    "OPERATIONS",
    "Pool",
    "SameConv2d",
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
