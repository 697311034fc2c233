r"""RotNet: Unsupervised Representation Learning by Predicting Image Rotations (Gidaris, Singh, Komodakis; ICLR 2018; arXiv 1803.07728).

A network is told nothing but by which of 0, 90, 180 and 270 degrees each picture was turned, and learns to say so. It cannot without
knowing what the things in the picture are and how they usually stand, and what it learns on the way serves other tasks:

.. math:: \min_\theta \frac1N \sum_i \frac14 \sum_{y=0}^{3} -\log p_\theta\big(y \mid \mathrm{rot}_{90 y}(x_i)\big).

All four views of a picture are in one batch. They are moves of whole pixels, made after the augmentation: a resampled turn leaves
traces that give the answer away. What the layers have learnt is told by probes, small classifiers on the maps of a frozen network.
(Another project called RotNet sets pictures upright, with 360 classes; this is not that one.)

The networks are those of the authors' code (github.com/gidariss/FeatureLearningRotNet, MIT): the Network-in-Network for 32 pixels, and an
AlexNet with BatchNorm for 224. Their files hold the weights under ``network`` (:func:`read_authors`). The released AlexNet lies at a place
that only a browser opens, so ``pretrained=True`` is not possible; give the file as ``checkpoint_path``. It is not the network of the
paper's tables. ``use_avg_on_conv3`` is no tensor: a file fits with either value, and gives other features with the wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError, unknown
from offprint.methods.registry import Method, register_method
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect, read_file
from offprint.models.registry import register
from offprint.tasks.recipe import Recipe

ANGLES = (0, 90, 180, 270)
FLAT = 9216  # features that a linear probe reads, about


# -- the pretext task --------------------------------------------------------------------------------------------------
def rotate(images: Tensor, angles: Sequence[int] = ANGLES) -> tuple[Tensor, Tensor]:
    """Turned copies of each image, counter-clockwise, one image's copies after the other's.

    Args:
        images: (B, C, S, S).
        angles: in degrees, whole quarter turns.

    Returns:
        (B * len(angles), C, S, S), and the place of each copy's angle among ``angles``.

    Raises:
        OffprintError: images that are not square, for which a quarter turn is another shape.
    """
    if images.ndim != 4 or images.shape[-1] != images.shape[-2]:
        raise OffprintError(f"rotations are of square images (B, C, S, S), got {tuple(images.shape)}; crop them first")
    views = torch.stack([torch.rot90(images, angle // 90, (-2, -1)) for angle in angles], 1)
    labels = torch.arange(len(angles), device=images.device).repeat(len(images))
    return views.flatten(0, 1), labels


def rotate_four(images: Tensor) -> tuple[Tensor, Tensor]:
    """The four views (4B, C, S, S) of images (B, C, S, S) and their labels (4B,): 0, 90, 180, 270 degrees; as :func:`rotate`."""
    return rotate(images)


def check_angles(angles: Sequence[int]) -> tuple[int, ...]:
    """Refuse angles that are no quarter turns, fewer than two, or twice the same."""
    if len(angles) < 2 or len(set(angles)) < len(angles) or not set(angles) <= set(ANGLES):
        raise OffprintError(
            f"angles={','.join(map(str, angles))}; give two or more of 0, 90, 180, 270: other angles need resampled pixels, which give "
            "the answer away"
        )
    return tuple(angles)


# -- networks ----------------------------------------------------------------------------------------------------------
class FeatureNet(Backbone):
    """A backbone whose layers have names, any of which can be asked for."""

    feature_names: tuple[str, ...]

    def steps(self) -> Iterator[tuple[str, Any]]:
        """The layers by name, in the order of the forward pass."""
        raise TypeError(f"{type(self).__name__} must define steps")

    def features(self, x: Tensor, names: str | Sequence[str]) -> Tensor | list[Tensor]:
        """What the layers of these names give, in the order asked for; layers behind the last of them are not run.

        Args:
            x: images (B, C, H, W).
            names: one name gives a tensor, several a list.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in self.feature_names:
                raise unknown(f"layer of {type(self).__name__}", name, self.feature_names)
        last, found = max(map(self.feature_names.index, wanted)), {}
        for name, step in list(self.steps())[: last + 1]:
            x = found[name] = step(x)
        return found[names] if isinstance(names, str) else [found[name] for name in wanted]


class ConvUnit(nn.Module):
    """Convolution without a bias, BatchNorm, ReLU; the size stays."""

    def __init__(self, inside: int, out: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class NIN(FeatureNet):
    """Network in Network of ``num_stages`` blocks: each a wide convolution and two of 1x1 (features conv1, conv2, ..., classifier).

    Args:
        num_classes: outputs; 4 for rotations.
        in_chans: image channels.
        num_stages: blocks, 3 or more; blocks from the fourth on are as the third.
        use_avg_on_conv3: average pooling behind the third of more than three blocks; the authors' RotNets have none.
        scale: factor on the widths (192, 160 and 96 in the paper).
    """

    head_modules = ("head",)
    input_layers = ("conv1.0.conv",)
    minimum = 4
    native = "offprint"
    dialects = (
        Dialect(
            "authors",
            (
                *(
                    (rf"^_feature_blocks\.{b}\.Block\d+_ConvB{j}\.layers\.", f"conv{b + 1}.{j - 1}.")
                    for b in range(9)
                    for j in (1, 2, 3)
                ),
                (r"^_feature_blocks\.\d+\.Classifier\.", "head."),
                (r"\.Conv\.", ".conv."),
                (r"\.BatchNorm\.", ".norm."),
            ),
        ),
    )

    def __init__(
        self,
        num_classes: int = 4,
        in_chans: int = 3,
        num_stages: int = 4,
        use_avg_on_conv3: bool = True,
        scale: float = 1.0,
    ):
        super().__init__()
        if not 3 <= num_stages <= 9:
            raise OffprintError(f"num_stages={num_stages}; give 3 to 9 blocks")
        wide, middle, narrow = (max(1, round(width * scale)) for width in (192, 160, 96))
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, wide
        pooled = num_stages > 3 and use_avg_on_conv3
        rows = [((wide, middle, narrow), 5, nn.MaxPool2d(3, 2, 1)), ((wide,) * 3, 5, nn.AvgPool2d(3, 2, 1)),
                ((wide,) * 3, 3, nn.AvgPool2d(3, 2, 1) if pooled else None)]  # fmt: skip
        rows += [((wide,) * 3, 3, None)] * (num_stages - 3)
        inside, reduction = in_chans, 1
        self.pyramid_channels, self.pyramid_reductions, self.pyramid_modules = [], [], []
        for i, (widths, kernel, pool) in enumerate(rows, 1):
            units: list[nn.Module] = []
            for width, k in zip(widths, (kernel, 1, 1), strict=True):
                units.append(ConvUnit(inside, width, k))
                inside = width
            setattr(self, f"conv{i}", nn.Sequential(*units, *([pool] if pool else [])))
            reduction *= 2 if pool else 1
            self.pyramid_channels.append(inside)
            self.pyramid_reductions.append(reduction)
            self.pyramid_modules.append(f"conv{i}")
        self.feature_names = (*self.pyramid_modules, "classifier")
        self.head = nn.Linear(wide, num_classes) if num_classes else nn.Identity()

    def steps(self) -> Iterator[tuple[str, Any]]:
        for name in self.pyramid_modules:
            yield name, getattr(self, name)
        yield "classifier", self.forward_head

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        for name in self.pyramid_modules:
            x = self.run((getattr(self, name),), x)
            yield x

    def depth_groups(self) -> list[list[str]]:
        return [[f"{name}.{i}" for i in range(len(getattr(self, name)))] for name in self.pyramid_modules]


class AlexNet(FeatureNet):
    """AlexNet with BatchNorm behind every layer, and without dropout, groups or local response norms.

    Features: conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, fc_block, classifier; a convolution's is taken behind its ReLU.

    Args:
        num_classes: outputs; 4 for rotations.
        in_chans: image channels.
    """

    head_modules = ("fc_block", "head")
    input_layers = ("conv1.0",)
    minimum = 63
    native = "offprint"
    feature_names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc_block", "classifier")
    dialects = (
        Dialect(
            "authors",
            (
                *((rf"^_feature_blocks\.{i}\.", f"{name}.") for i, name in enumerate(feature_names[:-1])),
                (r"^_feature_blocks\.9\.0\.", "head."),
            ),
        ),
    )

    def __init__(self, num_classes: int = 4, in_chans: int = 3):
        super().__init__()
        self.num_classes, self.in_chans, self.num_features, self.hidden = num_classes, in_chans, 256, 4096

        def conv(inside: int, out: int, kernel: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inside, out, kernel, stride, padding), nn.BatchNorm2d(out), nn.ReLU())

        self.conv1, self.pool1 = conv(in_chans, 64, 11, 4, 2), nn.MaxPool2d(3, 2)
        self.conv2, self.pool2 = conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2)
        self.conv3, self.conv4, self.conv5 = conv(192, 384, 3), conv(384, 256, 3), conv(256, 256, 3)
        self.pool5 = nn.MaxPool2d(3, 2)
        self.fc_block = _fully_connected()
        self.head = nn.Linear(4096, num_classes) if num_classes else nn.Identity()
        self.pyramid_channels, self.pyramid_reductions = [64, 192, 256, 256], [4, 8, 16, 32]
        self.pyramid_modules = ["conv1", "conv2", "conv5", "pool5"]

    def steps(self) -> Iterator[tuple[str, Any]]:
        for name in self.feature_names[:8]:
            yield name, getattr(self, name)
        yield "fc_block", self.pooled
        yield "classifier", self._classify

    def _classify(self, x: Tensor) -> Tensor:
        return self.head(x) if self.num_classes else x

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        for name in self.feature_names[:8]:
            x = self.run((getattr(self, name),), x)
            if name in self.pyramid_modules:
                yield x

    def pooled(self, x: Tensor) -> Tensor:
        """The map (B, 256, 6, 6) of pool5 through the two wide layers: (B, 4096)."""
        if tuple(x.shape[-2:]) != (6, 6):
            raise OffprintError(
                f"AlexNet's wide layers read a map of 6 x 6, got {' x '.join(map(str, x.shape[-2:]))}; give images of 223 to 254 pixels a side "
                "(224 as trained), or take maps: features_only=True"
            )
        return self.fc_block(x)

    def depth_groups(self) -> list[list[str]]:
        return [[name] for name in self.feature_names[:8]]


def _fully_connected() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inside in (256 * 36, 4096):
        layers += [nn.Linear(inside, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()]
    return nn.Sequential(*layers)


def read_authors(file: str | Path) -> dict[str, Tensor]:
    """The weights in a file of the authors, which keeps them under ``network``; for :func:`offprint.load_weights`.

    Raises:
        CheckpointError: no such file, or another kind.
    """
    held = read_file(file)
    if not isinstance(held.get("network"), Mapping):
        raise CheckpointError(
            f"{file} has no 'network' (its keys: {', '.join(map(str, list(held)[:6]))}); it is not of the authors"
        )
    return dict(held["network"])


# -- probes ------------------------------------------------------------------------------------------------------------
def _start(probe: nn.Module) -> None:
    """Weights of a probe as the authors start them."""
    for layer in probe.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)))
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.out_features))
        if getattr(layer, "bias", None) is not None and isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class LinearProbe(nn.Module):
    """Maximum over the cells of a grid, BatchNorm without scale and shift, one linear layer.

    Args:
        in_channels: of the map.
        pool_size: cells a side; 12, 7, 5, 6, 6 for AlexNet's five convolutions, so that about 9,000 features are left.
        num_classes: outputs.
    """

    native = "offprint"
    dialects = (
        Dialect("authors", ((r"^classifier\.BatchNorm\.", "norm."), (r"^classifier\.LiniearClassifier\.", "linear."))),
    )

    def __init__(self, in_channels: int, pool_size: int, num_classes: int):
        super().__init__()
        self.pool = nn.AdaptiveMaxPool2d(pool_size)
        self.norm = nn.BatchNorm2d(in_channels, affine=False)
        self.linear = nn.Linear(in_channels * pool_size**2, num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits."""
        return self.linear(self.norm(self.pool(x)).flatten(1))


class NinConvClassifier(nn.Module):
    """The third block of the NIN, a mean over places, and one linear layer.

    Args:
        in_channels: of the map.
        num_classes: outputs.
    """

    native = "offprint"
    dialects = (
        Dialect(
            "authors",
            (
                *((rf"^classifier\.Block3_ConvB{j}\.layers\.", f"block.{j - 1}.") for j in (1, 2, 3)),
                (r"\.Conv\.", ".conv."),
                (r"\.BatchNorm\.", ".norm."),
                (r"^classifier\.Liniear_F\.", "linear."),
            ),
        ),
    )

    def __init__(self, in_channels: int = 192, num_classes: int = 10):
        super().__init__()
        self.block = nn.Sequential(*(ConvUnit(in_channels if k == 3 else 192, 192, k) for k in (3, 1, 1)))
        self.linear = nn.Linear(192, num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits."""
        return self.linear(self.block(x).mean((2, 3)))


class MlpClassifier(nn.Module):
    """Two hidden layers over all values of a map, each with BatchNorm and ReLU, and one linear layer.

    Args:
        in_features: C * H * W of the map.
        num_classes: outputs; a hidden layer has 20 times as many units, 2048 at most.
    """

    native = "offprint"
    dialects = (
        Dialect(
            "authors",
            (
                (r"^classifier\.Liniear_1\.", "layers.1."),
                (r"^classifier\.BatchNorm_1\.", "layers.2."),
                (r"^classifier\.Liniear_2\.", "layers.4."),
                (r"^classifier\.BatchNorm2d\.", "layers.5."),
                (r"^classifier\.Liniear_F\.", "layers.7."),
            ),
        ),
    )

    def __init__(self, in_features: int, num_classes: int = 10):
        super().__init__()
        hidden = min(20 * num_classes, 2048)
        layers: list[nn.Module] = [nn.Flatten()]
        for inside in (in_features, hidden):
            layers += [nn.Linear(inside, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, num_classes))
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits."""
        return self.layers(x)


class AlexNetRest(nn.Module):
    """What AlexNet has behind conv4 or conv5, learnt anew on the frozen map: the paper's non-linear probe.

    Args:
        layer: ``conv4`` or ``conv5``.
        num_classes: outputs.
    """

    native = "offprint"
    dialects = (
        Dialect(
            "authors",
            (
                (r"^classifier\.ConvB5\.", "conv5."),
                (r"^classifier\.Linear1\.", "fc_block.1."),
                (r"^classifier\.BatchNorm1\.", "fc_block.2."),
                (r"^classifier\.Liniear2\.", "fc_block.4."),
                (r"^classifier\.BatchNorm2\.", "fc_block.5."),
                (r"^classifier\.LinearF\.", "head."),
            ),
        ),
    )

    def __init__(self, layer: str = "conv4", num_classes: int = 1000):
        super().__init__()
        if layer not in ("conv4", "conv5"):
            raise unknown("layer of the non-linear probe", layer, ("conv4", "conv5"))
        if layer == "conv4":
            self.conv5 = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU())
        self.pool5, self.fc_block = nn.MaxPool2d(3, 2), _fully_connected()
        self.head = nn.Linear(4096, num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 256, 13, 13) to logits."""
        if hasattr(self, "conv5"):
            x = self.conv5(x)
        return self.head(self.fc_block(self.pool5(x)))


PROBES = ("linear", "conv", "mlp", "nonlinear")


class Probes(nn.Module):
    """Probes that are trained at once, each on a layer of its own; nothing is shared, so this equals training them one by one.

    Args:
        probes: in the order of the layers.
    """

    native = "offprint"

    def __init__(self, probes: Sequence[nn.Module]):
        super().__init__()
        self.probes = nn.ModuleList(probes)

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The authors' names of several at once: ``classifiers.I.classifier...``."""
        return (Dialect("authors", reshape=_several),)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """A map for each probe to logits of each."""
        return [probe(x) for probe, x in zip(self.probes, maps, strict=True)]


def _several(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for i, probe in enumerate(model.probes):  # type: ignore[arg-type]
        mine = {k.removeprefix(f"classifiers.{i}."): v for k, v in state.items() if k.startswith(f"classifiers.{i}.")}
        out |= {f"probes.{i}.{k}": v for k, v in probe.dialects[0].apply(mine, probe).items()}
    return out


def make_probe(kind: str, layer: str, shape: Sequence[int], num_classes: int) -> nn.Module:
    """A probe for a map.

    Args:
        kind: of :data:`PROBES`.
        layer: name of the layer, which a non-linear probe goes on from.
        shape: of the map, (C, H, W).
        num_classes: outputs.

    Raises:
        OffprintError: no such kind, or a map that this kind cannot read.
    """
    if kind not in PROBES:
        raise unknown("kind of probe", kind, PROBES)
    if kind == "nonlinear":
        if tuple(shape) != (256, 13, 13):
            raise OffprintError(
                f"the nonlinear probe goes on from conv4 or conv5 of rotnet_alexnet at 224 pixels, not from {layer} {tuple(shape)}"
            )
        return AlexNetRest(layer, num_classes)
    if len(shape) != 3:
        raise OffprintError(f"{layer} gives {tuple(shape)}, not a map (C, H, W); probe a layer that does")
    channels, side = shape[0], min(shape[1:])
    if kind == "linear":
        return LinearProbe(channels, max(1, min(side, round(math.sqrt(FLAT / channels)))), num_classes)
    return NinConvClassifier(channels, num_classes) if kind == "conv" else MlpClassifier(math.prod(shape), num_classes)


def layers_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a backbone that can be probed, finest first."""
    if isinstance(model, FeatureNet):
        return model.feature_names[:-1]
    return tuple(row["module"] for row in model.feature_info.full)  # type: ignore[union-attr,attr-defined]


def features(model: nn.Module, x: Tensor, names: str | Sequence[str]) -> Tensor | list[Tensor]:
    """Maps of any backbone by the names of :func:`layers_of`; as :meth:`FeatureNet.features`."""
    if isinstance(model, FeatureNet):
        return model.features(x, names)
    known = layers_of(model)
    for name in [names] if isinstance(names, str) else names:
        if name not in known:
            raise unknown(f"layer of {type(model).__name__}", name, known)
    wanted = [known.index(name) for name in ([names] if isinstance(names, str) else names)]
    maps = model.forward_intermediates(  # type: ignore[operator]
        x, sorted(set(wanted)), stop_early=True, intermediates_only=True
    )
    found = dict(zip(sorted(set(wanted)), maps, strict=True))
    return found[wanted[0]] if isinstance(names, str) else [found[i] for i in wanted]


# -- recipes -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SteppedRecipe(Recipe):
    """A recipe whose rate is multiplied by ``decay_rate`` at each of ``milestones``, shares of the epochs."""

    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)

    def _smooth_rates(self, steps_per_epoch: int, batch: int) -> list[float]:
        if self.schedule != "step":
            return super()._smooth_rates(steps_per_epoch, batch)
        top, ends = self.scaled(batch)[0], [share * self.epochs for share in self.milestones]
        epochs = (step // steps_per_epoch for step in range(max(1, self.epochs * steps_per_epoch)))
        return [top * self.decay_rate ** sum(epoch >= end - 1e-9 for end in ends) for epoch in epochs]


_SGD = {"optimizer": "nesterov", "momentum": 0.9, "weight_decay": 5e-4, "decay_vectors": True, "schedule": "step", "warmup_epochs": 0,
        "lr": 0.1, "decay_rate": 0.2}  # fmt: skip
PRETEXT = {**_SGD, "epochs": 200, "batch_size": 128, "milestones": (0.3, 0.6, 0.8)}  # CIFAR; pictures, each four times
PRETEXT_LARGE = {
    **_SGD,
    "lr": 0.01,
    "decay_rate": 0.1,
    "epochs": 50,
    "batch_size": 192,
    "milestones": (0.3, 0.6, 0.9),
}  # ImageNet
PROBE = {
    "conv": {**_SGD, "epochs": 100, "batch_size": 128, "milestones": (0.35, 0.7, 0.85)},
    "mlp": {**_SGD, "epochs": 100, "batch_size": 128, "milestones": (0.2, 0.4, 0.45)},
    "linear": {**_SGD, "lr": 0.01, "epochs": 35, "batch_size": 192, "milestones": (5 / 35, 15 / 35, 25 / 35)},
    "nonlinear": {**_SGD, "lr": 0.01, "epochs": 40, "batch_size": 192, "milestones": (0.25, 0.5, 0.75)},
}


@register_method
@dataclass(kw_only=True)
class RotNet(Method):
    """Pre-trains a backbone to say by which quarter turn each picture was rotated; labels are not looked at.

    Args:
        angles: the turns, counter-clockwise, of 0, 90, 180 and 270 degrees; all four are best in the paper.
    """

    name = "rotnet"
    paper = "rotnet"
    kind = "task"
    changes = "the task: four turned views of each picture, and the turn as the label"
    replaces = ("labels", "loss", "classifier", "task")
    task = "rotations"

    angles: tuple[int, ...] = ANGLES

    def __post_init__(self):
        check_angles(self.angles)

    def choices(self) -> Mapping[str, Any]:
        return {"angles": self.angles}


CIFAR = {
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
    "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
# the table of rates drops at 60, 120 and 160 of 200 epochs; every 60 is what a classifier's recipe can say
_SUPERVISED = {**_SGD, "epochs": 200, "batch_size": 128, "decay_epochs": 60, "data": "cifar10"}
_COMMON: dict[str, Any] = {"paper": "rotnet", "kind": "training", "task": "classification"}
register(
    **_COMMON,
    build=NIN,
    variants={
        **{f"rotnet_nin{n}": {"num_classes": 4, "num_stages": n, "use_avg_on_conv3": False} for n in (3, 4, 5)},
        "nin3_supervised": {"num_classes": 10, "num_stages": 3},
    },
    input_size=(3, 32, 32),
    preprocessing=CIFAR,
    recipe=_SUPERVISED,
)
register(**_COMMON, build=AlexNet, variants={"rotnet_alexnet": {"num_classes": 4}})
