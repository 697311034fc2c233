r"""Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net (Pan, Luo, Shi, Tang; ECCV 2018; arXiv 1807.09441).

Instance normalisation removes what makes two pictures of one thing look different (colour, contrast, style); batch normalisation
keeps what makes two things differ. Appearance is spoken of in the shallow layers, so instance normalisation belongs there only.

* ``a`` (Fig. 3a, for accuracy and transfer): in the first three stages the first norm of each residual branch treats half of its
  channels each way, :math:`y = [\mathrm{IN}(x_{1..C/2}),\ \mathrm{BN}(x_{C/2+1..C})]`; the shortcut is left alone.
* ``b`` (Fig. 3b, for strong shifts of appearance): the stem's norm is an instance normalisation, and the last block of the first two stages
  normalises again after the sum, before the ReLU.

DenseNet has the ``a`` form in every third layer of its first three blocks, batch-normalised channels first, 60 % of them. Neither
form costs parameters (``b``: a few) or multiply-adds. Parameter names are those of the authors' code. The layer, and
:func:`~offprint.nn.instance_batch.ibn`, which converts other networks, live in :mod:`offprint.nn.instance_batch`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import IMAGENET, Weights, register
from offprint.models.released import hashed, top
from offprint.nn.instance_batch import IBN, InstanceNorm2d, ibn

__all__ = ["IBN", "DenseNet", "ResNet", "ibn"]

# which form each stage has, by kind
STAGES = {"": ("", "", "", ""), "a": ("a", "a", "a", ""), "b": ("b", "b", "", "")}


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)


class SE(nn.Module):
    """Squeeze-and-excitation with two linear layers without bias: the map times a gate per channel."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class Block(nn.Module):
    """What both residual blocks share: the branch, the sum, the normalisation after it in form b, the ReLU.

    Args:
        in_channels: of the map.
        planes: width of the stage; the output has ``planes * expansion`` channels.
        stride: of the (first) 3x3 convolution and the shortcut.
        form: ``"a"``: the first norm is :class:`IBN`; ``"b"``: an instance normalisation after the sum; ``""``: neither.
        groups: 1, or 32 for ResNeXt-32x4d.
        se: squeeze-and-excitation at the end of the branch.
    """

    expansion = 1
    fold_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self, in_channels: int, planes: int, stride: int = 1, form: str = "", groups: int = 1, se: bool = False
    ):
        super().__init__()
        width = planes if groups == 1 else groups * (planes * 4 // 64)
        out = planes * self.expansion
        self.build(in_channels, width, out, stride, groups)
        if form == "a":
            self.bn1 = IBN(width)
        self.se = SE(out) if se else None
        self.IN = InstanceNorm2d(out) if form == "b" else None
        self.downsample = None
        if stride > 1 or in_channels != out:
            self.downsample = nn.Sequential(_conv(in_channels, out, 1, stride), nn.BatchNorm2d(out))

    def merge(self) -> None:
        """For deployment: the batch-normalised half of :class:`IBN` goes into the convolution."""
        if isinstance(self.bn1, IBN):
            self.bn1.fold_into(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.se is not None:
            y = self.se(y)
        y = y.add_(x if self.downsample is None else self.downsample(x))
        return F.relu(y if self.IN is None else self.IN(y), inplace=True)


class BasicBlock(Block):
    """Two 3x3 convolutions (ResNet-18 and 34)."""

    def build(self, in_channels: int, width: int, out: int, stride: int, groups: int) -> None:
        self.conv1, self.bn1 = _conv(in_channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, out, 3), nn.BatchNorm2d(out)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))


class Bottleneck(Block):
    """1x1, 3x3 (strided), 1x1 to four times the width."""

    expansion = 4

    def build(self, in_channels: int, width: int, out: int, stride: int, groups: int) -> None:
        self.conv1, self.bn1 = _conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, out, 1), nn.BatchNorm2d(out)

    def branch(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return self.bn3(self.conv3(y))


STAGE_NAMES = ("layer1", "layer2", "layer3", "layer4")
BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        nn.init.normal_(module.weight, std=(2.0 / (height * width * module.out_channels)) ** 0.5)


class ResNet(Backbone):
    """ResNet, ResNeXt and SE-ResNet with or without IBN.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        block: ``basic`` or ``bottleneck``.
        depths: blocks per stage.
        kind: ``"a"``, ``"b"``, or ``""`` for the plain network.
        groups: 32 for ResNeXt-32x4d.
        se: squeeze-and-excitation in every block.
        widths: of the stages; the stem has the first.

    Any image of 32 pixels and more works.
    """

    head_modules = ("fc",)
    classifier = "fc"
    input_layers = ("conv1",)
    fold_pairs = (("conv1", "bn1"),)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        block: str = "bottleneck",
        depths: tuple[int, int, int, int] = (3, 4, 6, 3),
        kind: str = "a",
        groups: int = 1,
        se: bool = False,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
    ):
        super().__init__()
        if kind not in STAGES:
            raise unknown("kind of IBN", kind, STAGES)
        if block not in BLOCKS:
            raise unknown("block", block, BLOCKS)
        if len(depths) != 4 or len(widths) != 4:
            raise OffprintError(f"depths {tuple(depths)} and widths {tuple(widths)} must name four stages each")
        if block == "basic" and groups != 1:
            raise OffprintError(f"groups={groups} needs block='bottleneck'")
        build = BLOCKS[block]
        self.in_chans, self.num_classes = in_chans, num_classes
        channels = widths[0]
        self.conv1 = nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False)
        self.bn1 = InstanceNorm2d(channels) if kind == "b" else nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.pyramid_channels, self.pyramid_reductions = [channels], [2, 4, 8, 16, 32]
        for i, (depth, planes, form) in enumerate(zip(depths, widths, STAGES[kind], strict=True)):
            blocks = []
            for j in range(depth):
                own = form if form == "a" or j == depth - 1 else ""  # b: the last block only
                blocks.append(build(channels, planes, 2 if i and not j else 1, own, groups, se))
                channels = planes * build.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            self.pyramid_channels.append(channels)
        self.pyramid_modules = ["bn1", *STAGE_NAMES]
        self.num_features = channels
        self.fc = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.apply(_init)

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block."""
        stages = [(name, getattr(self, name)) for name in STAGE_NAMES if hasattr(self, name)]
        return [["conv1", "bn1"], *([f"{name}.{i}"] for name, stage in stages for i in range(len(stage)))]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The stem's map at stride 2, and that of each stage."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        yield x
        x = self.maxpool(x)
        for name in STAGE_NAMES[: len(self.pyramid_channels) - 1]:
            x = self.run(getattr(self, name), x)
            yield x


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3: ``growth`` new channels beside the old ones.

    Args:
        in_channels: of the map.
        growth: new channels.
        form: ``"a"``: the first norm is :class:`IBN`, batch-normalised channels first.
    """

    fold_pairs = (("conv1", "norm2"),)

    def __init__(self, in_channels: int, growth: int, form: str = ""):
        super().__init__()
        self.norm1 = IBN(in_channels, 0.4, bn_first=True) if form == "a" else nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y), inplace=True))], 1)


class DenseNet(Backbone):
    """DenseNet with IBN in every third layer of the first three blocks.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        depths: layers per block.
        growth: channels that each layer adds; the stem has twice as many.
        kind: ``"a"``, or ``""`` for the plain network.

    Any image of 32 pixels and more works.
    """

    input_layers = ("features.conv0",)
    native = "offprint"
    dialects = (Dialect("authors", ((r"^classifier\.", "head."),)),)
    head_modules = ("head",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: tuple[int, int, int, int] = (6, 12, 24, 16),
        growth: int = 32,
        kind: str = "a",
    ):
        super().__init__()
        if kind not in ("", "a"):
            raise unknown("kind of IBN for DenseNet", kind, ("", "a"))
        if len(depths) != 4:
            raise OffprintError(f"depths {tuple(depths)} must name four blocks")
        self.in_chans, self.num_classes = in_chans, num_classes
        channels = 2 * growth
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        self.pyramid_channels, self.pyramid_reductions = [channels], [2, 4, 8, 16, 32]
        for i, (depth, form) in enumerate(zip(depths, STAGES[kind], strict=True), start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(depth):
                layers[f"denselayer{j + 1}"] = DenseLayer(channels, growth, form if j % 3 == 0 else "")
                channels += growth
            parts[f"denseblock{i}"] = nn.Sequential(layers)
            self.pyramid_channels.append(channels)
            if i < 4:
                parts[f"transition{i}"] = nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(channels),
                        relu=nn.ReLU(inplace=True),
                        conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2, 2),
                    )
                )
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.pyramid_modules = ["features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"]
        self.features = nn.Sequential(parts)
        self.num_features = channels
        self.head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each layer; a transition and the last norm go with the layer before them."""
        groups = [[]]
        for name, part in self.features.named_children():
            if name.startswith("denseblock"):
                groups += [[f"features.{name}.{layer}"] for layer, _ in part.named_children()]
            else:
                groups[-1].append(f"features.{name}")
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The stem's map and those of the four blocks, the last normalised and not yet rectified."""
        for name, part in self.features.named_children():
            x = self.run(part, x) if name.startswith("denseblock") else part(x)
            if f"features.{name}" in self.pyramid_modules:
                yield x

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """A map; the last one rectified."""
        return F.relu(x) if index == 4 else x

    def pooled(self, x: Tensor) -> Tensor:
        """ReLU, mean over the map."""
        return self.pool(F.relu(x))


_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
RESNETS = {
    f"resnet{n}_ibn_{kind}": {"block": "basic" if n < 50 else "bottleneck", "depths": d, "kind": kind}
    for n, d in _DEPTHS.items()
    for kind in ("a", "b")
}
for _n in (50, 101, 152):
    RESNETS[f"resnext{_n}_ibn_a"] = {"depths": _DEPTHS[_n], "groups": 32}
    RESNETS[f"se_resnet{_n}_ibn_a"] = {"depths": _DEPTHS[_n], "se": True}
DENSENETS = {
    "densenet121_ibn_a": {},
    "densenet169_ibn_a": {"depths": (6, 12, 32, 32)},
    "densenet201_ibn_a": {"depths": (6, 12, 48, 32)},
    "densenet161_ibn_a": {"depths": (6, 12, 36, 24), "growth": 48},
}
RECIPE = {
    "optimizer": "sgd",
    "lr": 0.1,
    "reference_batch": 256,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_vectors": True,
    "epochs": 100,
    "batch_size": 256,
    "schedule": "step",
    "decay_rate": 0.1,
    "decay_epochs": 30,
    "warmup_epochs": 0,
    "data": "imagenet-1k",
}
# the authors' files, and the errors (top-1, top-5, %) that their table states beside them; none for variant b
_RELEASED: dict[str, tuple[float, ...]] = {
    "resnet18_ibn_a-2f571257": (29.17, 10.24),
    "resnet34_ibn_a-94bc1577": (25.78, 8.19),
    "resnet50_ibn_a-d9d0bb7b": (
        22.54,
        6.32,
    ),  # 22.76, 6.41 in the README of 2018, which gave the above to a slower network
    "resnet101_ibn_a-59ea0ac6": (21.39, 5.59),  # 21.29, 5.61 likewise
    "resnet18_ibn_b-bc2f3c11": (),
    "resnet34_ibn_b-04134c37": (),
    "resnet50_ibn_b-9ca61e85": (),
    "resnet101_ibn_b-c55f6dba": (),
    "resnext101_ibn_a-6ace051d": (20.88, 5.42),
    "se_resnet101_ibn_a-fabed4e2": (21.25, 5.51),
    "densenet121_ibn_a-e4af5cc1": (24.47, 7.25),
    "densenet169_ibn_a-9f32c161": (23.25, 6.51),
}


def _released(file: str, errors: tuple[float, ...]) -> Weights:
    url = f"https://github.com/XingangPan/IBN-Net/releases/download/v1.0/{file}.pth"
    source = "XingangPan/IBN-Net@d167338 README, as errors" if errors else ""
    return Weights(url, "authors", "authors", "MIT", hashed(url), metrics_source=source,
                   metrics=top(*(round(100 - e, 2) for e in errors)) if errors else {})  # fmt: skip


WEIGHTS = {file.split("-")[0]: {"in1k": _released(file, errors)} for file, errors in _RELEASED.items()}
for _build, _variants in ((ResNet, RESNETS), (DenseNet, DENSENETS)):
    register(
        paper="ibn-net",
        kind="backbone",
        build=_build,
        variants=_variants,
        preprocessing={**IMAGENET, "interpolation": "bilinear"},
        weights={name: released for name, released in WEIGHTS.items() if name in _variants},
        recipe=RECIPE,
    )
