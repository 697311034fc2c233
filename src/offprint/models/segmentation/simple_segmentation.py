r"""Simple and Efficient Architectures for Semantic Segmentation (Mehta et al.; CVPR 2022 workshop; arXiv 2206.08236): FFNets, "fuss-free
networks".

A ResNet of bottleneck blocks sees little of the image: most of its convolutions are 1x1. Of the same cost, a deeper one of basic blocks
(two 3x3 convolutions) sees far more, without dilation, and a small convolutional pyramid over it is enough. With f_s the encoder's
map at stride s, each first through a 1x1 convolution,

.. math:: x_{32} = f_{32},\quad x_s = \mathrm{up}(\mathrm{conv}_{1\times1}(x_{2s})) + f_s,\quad y_s = \mathrm{conv}_{3\times3}(x_s),

and all y, enlarged to the finest of them and set side by side, are classified by two convolutions.

A name is the depth (twice the blocks, and 2), the letter of the backbone (none: a ResNet's widths; S slim; N, NS narrow, three
stages), and three letters for stem, up-head and segmentation head: ``ffnet_seg_78s_dbbb_mobile`` is the authors' ffnet78S_dBBB_mobile.
``d``: the first stage halves the map too, logits come at 1/8 and not 1/4. ``mobile``: nearest enlargement, and not bilinear with aligned
corners. ``pre_down``: the image is blurred and halved first. ``ffnet_cls_`` are the ImageNet classifiers whose backbones the others
start from. (The MetaMixer paper's ffnet_1 to ffnet_4 are another family.)

Weights lie in the release ``models`` of Qualcomm-AI-research/FFNet, zipped by backbone; which file of which zip is a model's stands in
``offprint.entry(NAME).weights`` behind the ``#`` of the address. Without ``pretrained`` and ``checkpoint_path`` none is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError, unknown
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect, load_weights
from offprint.models.compose import Composed
from offprint.models.parts import Maps, each_stride, maps_of, register_part
from offprint.models.registry import IMAGENET, Weights, register

# by letter: channels behind the 1x1 convolutions of the maps, fine to coarse; channels of the pyramid's maps
UP = {
    "A": ((64, 128, 256, 512), (128, 128, 128, 128)),
    "B": ((64, 128, 128, 256), (96, 96, 64, 32)),
    "C": ((128, 128, 128, 128), (128, 16, 16, 16)),
}
HEADS = {"A": (512, 1), "B": (256, 3), "C": (128, 1)}  # channels and kernel of the classifier
STEMS = {
    "A": ((7, 64, 2),),
    "B": ((3, 32, 2), (3, 64, 2)),
    "C": ((3, 64, 2), (3, 64, 2), (3, 64, 1)),
}  # kernel, channels, stride


# -- backbone (Fig. 2) -------------------------------------------------------------------------------------------------
def _conv(cin: int, cout: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=bias)


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int):
        super().__init__(_conv(cin, cout, kernel), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class Block(nn.Module):
    """Convolutions with BatchNorm, ReLU between them; the shortcut, by a 1x1 convolution where shapes differ; ReLU.

    Args:
        cin: channels of the map.
        width: of the stage; the output has ``width * expansion`` channels.
        stride: of the first 3x3 convolution and the shortcut.
    """

    expansion = 1
    kernels: tuple[int, ...] = (3, 3)
    fold_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, cin: int, width: int, stride: int = 1):
        super().__init__()
        out, channels = width * self.expansion, cin
        for i, kernel in enumerate(self.kernels, 1):
            cout = out if i == len(self.kernels) else width
            own = stride if i - 1 == self.kernels.index(3) else 1
            setattr(self, f"conv{i}", _conv(channels, cout, kernel, own))
            setattr(self, f"bn{i}", nn.BatchNorm2d(cout))
            channels = cout
        self.downsample = None
        if stride > 1 or cin != out:
            self.downsample = nn.Sequential(_conv(cin, out, 1, stride), nn.BatchNorm2d(out))

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return F.relu(y.add_(x if self.downsample is None else self.downsample(x)), inplace=True)


class BasicBlock(Block):
    """Two 3x3 convolutions: all of the FFNets but 50 and 101."""


class Bottleneck(Block):
    """1x1, 3x3, 1x1 to four times the width: 50, 101, and the classifiers' heads."""

    expansion = 4
    kernels = (1, 3, 1)

    def branch(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return self.bn3(self.conv3(y))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def _enlarge(x: Tensor, like: Tensor, mode: str) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode=mode, align_corners=True if mode == "bilinear" else None)


# -- pyramid and heads (Fig. 2 right) ----------------------------------------------------------------------------------
class UpBranch(nn.Module):
    """The pyramid: maps fine to coarse, each added to the enlarged one below it, to maps of the same sizes.

    Args:
        channels: of the maps, which are those behind the 1x1 convolutions.
        widths: channels of the maps that come out.
        mode: of the enlargement, ``bilinear`` (corners aligned) or ``nearest``.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], mode: str):
        super().__init__()
        self.mode, self.count = mode, len(channels)
        self.fam_4 = ConvNormReLU(channels[0], widths[0], 3)
        for i in range(1, len(channels)):
            setattr(self, f"fam_{4 * 2**i}_sm", ConvNormReLU(channels[i], widths[i], 3))
            setattr(self, f"fam_{4 * 2**i}_up", ConvNormReLU(channels[i], channels[i - 1], 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        x, found = maps[-1], []
        for i in range(self.count - 1, 0, -1):
            found.append(getattr(self, f"fam_{4 * 2**i}_sm")(x))
            x = _enlarge(getattr(self, f"fam_{4 * 2**i}_up")(x), maps[i - 1], self.mode) + maps[i - 1]
        return [self.fam_4(x), *reversed(found)]


def _adapter(channels: Sequence[int], widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(ConvNormReLU(a, b, 1) for a, b in zip(channels, widths, strict=False))


def _pyramid_of(letter: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if letter not in UP:
        raise unknown("up-head", letter, UP)
    return UP[letter]


class FFNetHead(nn.Module):
    """The pyramid and the segmentation head over one to four maps of an encoder, fine to coarse.

    Args:
        before: the maps that come in; of more than four the finest four are read.
        num_classes: K.
        up, head: letters of the up-head and the segmentation head.
        mode: of the enlargement, ``bilinear`` or ``nearest``.
        enlarge: give logits of the image's size (bilinear, corners not aligned) and not of the finest map's.
    """

    classifier = "last_layer.3"
    native = "offprint"
    dialects = (
        Dialect(
            "authors",
            (
                (r"^layers\.0\.adapter_conv\.(\d)\.layers\.", r"adapter.\1."),
                (r"^layers\.1\.(fam_\w+)\.layers\.", r"up.\1."),
                (r"^layers\.3\.last_layer\.", "last_layer."),
            ),
        ),
    )
    whole_dialects = (Dialect("authors", ((r"^backbone_model\.", "backbone."),), ignore=r"^smoothing\."),)

    def __init__(
        self,
        before: Maps,
        num_classes: int = 19,
        up: str = "B",
        head: str = "B",
        mode: str = "bilinear",
        enlarge: bool = False,
    ):
        super().__init__()
        if head not in HEADS:
            raise unknown("segmentation head", head, HEADS)
        if mode not in ("bilinear", "nearest"):
            raise unknown("mode of enlargement", mode, ("bilinear", "nearest"))
        between, widths = (row[: len(before.channels)] for row in _pyramid_of(up))
        width, kernel = HEADS[head]
        self.num_classes, self.mode, self.enlarge = num_classes, mode, enlarge
        self.adapter = _adapter(before.channels, between)
        self.up = UpBranch(between, widths, mode)
        self.last_layer = nn.Sequential(
            _conv(sum(widths), width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            _conv(width, num_classes, kernel, bias=True),
        )  # fmt: skip
        self.apply(_init)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Logits (B, K, h, w) at the finest map's size, or with ``enlarge`` at ``size``."""
        first, *others = self.up([conv(x) for conv, x in zip(self.adapter, maps, strict=False)])
        y = self.last_layer(torch.cat([first, *(_enlarge(x, first, self.mode) for x in others)], 1))
        return F.interpolate(y, size, mode="bilinear", align_corners=False) if self.enlarge and size is not None else y

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse a classifier's file: what of its head would fit was trained for another end."""
        if any(name.startswith("layers.2.") for name in state):
            raise CheckpointError(
                "this is an ImageNet classifier's file; a segmentation network takes the backbone alone from it (its head starts "
                "better afresh): build it with backbone={'checkpoint_path': FILE}"
            )
        return state


class ClassificationHead(nn.Module):
    """HRNet's: bottlenecks widen the pyramid's maps, which are added from fine to coarse; 2048 channels at the coarsest.

    Args:
        channels: of the four maps.
    """

    widths = (128, 256, 512, 1024)

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.expansion_layers = nn.ModuleList(
            Bottleneck(cin, width // Bottleneck.expansion) for cin, width in zip(channels, self.widths, strict=True)
        )
        self.downsampling_layers = nn.ModuleList(_biased(a, b, 3, 2) for a, b in pairwise(self.widths))
        self.final_layer = _biased(self.widths[-1], 2048, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        y = self.expansion_layers[0](maps[0])
        for x, widen, halve in zip(maps[1:], self.expansion_layers[1:], self.downsampling_layers, strict=True):
            y = widen(x) + halve(y)
        return self.final_layer(y)


def _biased(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(cin, cout, kernel, stride, True), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.constant_(module.bias, 1e-4)
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


class FFNetClassifier(Backbone):
    """A backbone with its pyramid and the classification head; ``features_only`` gives the backbone's four maps alone.

    Args:
        in_chans, num_classes: of the image and the classifier.
        depths: blocks per stage: four, with stem C three.
        widths: of the stages.
        stem: letter (:data:`STEMS`). A ends in a max-pool; what C gives is the finest map.
        block: ``basic`` or ``bottleneck``.
        down: the first stage halves the map too (``d``).
        up: letter of the up-head.
        mode: ``bilinear`` or ``nearest`` (mobile).

    Any image of 32 pixels and more works.
    """

    head_modules = ("adapter", "up", "classification", "fc")
    classifier = "fc"
    fold_pairs = (("conv0", "bn0"), ("conv1", "bn1"), ("conv2", "bn2"))
    optional_state = ""
    native = "offprint"
    dialects = (
        Dialect(
            "authors",
            (
                (r"^backbone_model\.", ""),
                (r"^head\.layers\.0\.adapter_conv\.(\d)\.layers\.", r"adapter.\1."),
                (r"^head\.layers\.1\.(fam_\w+)\.layers\.", r"up.\1."),
                (r"^head\.layers\.2\.classifier\.", "fc."),
                (r"^head\.layers\.2\.", "classification."),
            ),
        ),
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: tuple[int, ...] = (4, 5, 6, 4),
        widths: tuple[int, ...] = (64, 128, 192, 320),
        stem: str = "B",
        block: str = "basic",
        down: bool = False,
        up: str = "B",
        mode: str = "bilinear",
    ):
        super().__init__()
        for what, given, known in (("stem", stem, STEMS), ("block", block, BLOCKS)):
            if given not in known:
                raise unknown(what, given, known)
        stages = 3 if stem == "C" else 4
        if len(depths) != stages or len(widths) != stages:
            raise OffprintError(
                f"depths {tuple(depths)} and widths {tuple(widths)}: with stem {stem} both name {stages} stages"
            )
        if down and stem == "C":
            raise OffprintError(
                "down=True is of networks with four stages; stem C has three, all of which halve the map"
            )
        self.in_chans, self.num_classes = in_chans, num_classes
        self.stem_names, channels = [], in_chans
        for i, (kernel, width, stride) in enumerate(STEMS[stem], 1 if stem == "A" else 0):
            setattr(self, f"conv{i}", _conv(channels, width, kernel, stride))
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            self.stem_names.append((f"conv{i}", f"bn{i}"))
            channels = width
        self.input_layers = (self.stem_names[0][0],)  # type: ignore[misc]
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "A" else nn.Identity()
        self.stem_is_map, build = stem == "C", BLOCKS[block]
        self.pyramid_channels = [channels] if self.stem_is_map else []
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            first = 2 if i > 1 or down or self.stem_is_map else 1
            blocks = []
            for j in range(depth):
                blocks.append(build(channels, width, 1 if j else first))
                channels = width * build.expansion
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            self.pyramid_channels.append(channels)
        self.pyramid_reductions = [(8 if down else 4) * 2**i for i in range(4)]
        self.pyramid_modules = [self.stem_names[-1][1]] * self.stem_is_map + [f"layer{i + 1}" for i in range(stages)]
        between, outputs = _pyramid_of(up)
        self.adapter = _adapter(self.pyramid_channels, between)
        self.up = UpBranch(between, outputs, mode)
        self.classification = ClassificationHead(outputs)
        self.num_features = 2048
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_init)

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block."""
        stages = [(n, getattr(self, n)) for n in ("layer1", "layer2", "layer3", "layer4") if hasattr(self, n)]
        stem = [n for pair in self.stem_names for n in pair if hasattr(self, n)]
        return [stem, *([f"{name}.{i}"] for name, stage in stages for i in range(len(stage)))]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The backbone's maps."""
        for conv, norm in self.stem_names:
            x = F.relu(getattr(self, norm)(getattr(self, conv)(x)), inplace=True)
        x = self.maxpool(x)
        if self.stem_is_map:
            yield x
        for name in self.pyramid_modules[self.stem_is_map :]:
            x = self.run(getattr(self, name), x)
            yield x

    def join(self, maps: Sequence[Tensor]) -> Tensor:
        """All maps of the backbone to the last one (B, 2048, H', W') before pooling."""
        return self.classification(self.up([conv(x) for conv, x in zip(self.adapter, maps, strict=True)]))

    def _last(self, maps: Iterator[Tensor]) -> Tensor:
        found = list(maps)
        return self.join(found) if self.whole else found[-1]

    def forward_intermediates(self, x: Tensor, indices=None, norm=False, stop_early=False, output_fmt="NCHW",
                              intermediates_only=False):  # fmt: skip
        """As :meth:`Backbone.forward_intermediates`; the features need all maps, and are those of :meth:`forward_features`."""
        taken, last = self._take(indices)
        ends = stop_early and last < len(self.pyramid_channels) - 1
        if not self.whole or ends or intermediates_only or output_fmt != "NCHW":
            return super().forward_intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only)
        self.check_input(x)
        maps = list(self.walk(x))
        return self.join(maps), [maps[i] for i in sorted(set(taken))]


# -- the network -------------------------------------------------------------------------------------------------------
class Halved(nn.Module):
    """Blur by a 5x5 Gaussian (sigma 0.7) and take every second pixel; (B, C, H, W) to (B, C, H / 2 - 1 or so, W / 2 - 1).

    The kernel is what a filter of radius 3 with mirrored borders makes of an impulse in a 5x5 image: its outermost tap falls on the
    one before. Only the height is padded (one mirrored row each side), so that one row and two columns fewer come out than half.
    """

    def __init__(self, sigma: float = 0.7):
        super().__init__()
        taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(4)]
        total = taps[0] + 2 * sum(taps[1:])
        side = (
            torch.tensor([taps[2] + taps[3], taps[1], taps[0], taps[1], taps[2] + taps[3]], dtype=torch.float64) / total
        )
        self.register_buffer("weight", torch.outer(side, side).float()[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[assignment]
        channels = x.shape[1]
        x = F.pad(x, (0, 0, 1, 1), mode="reflect")
        return F.conv2d(x, weight.to(x.dtype).expand(channels, 1, -1, -1), stride=2, groups=channels)


class FFNet(Composed):
    """Images (B, C, H, W) to logits (B, K, h, w) at 1/4 of the image (1/8: ``down`` or ``pre_down``; 1/16: both).

    Args:
        num_classes: K.
        up, head: letters of the up-head and the segmentation head.
        mode: ``bilinear``, or ``nearest`` (mobile).
        pre_down: blur and halve the image first. The same network without takes an image that is halved already.
        enlarge: give logits of the image's size.
        backbone: more arguments of :class:`FFNetClassifier`; with ``checkpoint_path`` a classifier's file, whose backbone is taken.
        others: as in :class:`FFNetClassifier`.
    """

    size_multiple = 1

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 19,
        up: str = "B",
        head: str = "B",
        mode: str = "bilinear",
        pre_down: bool = False,
        enlarge: bool = False,
        backbone: Mapping[str, Any] | None = None,
        **trunk: Any,
    ):
        own = {**trunk, **(backbone or {})}
        file = own.pop("checkpoint_path", None)
        encoder = FFNetClassifier(in_chans, 0, up=up, mode=mode, **own)
        if file is not None:  # no classifier has the shortcut that halving in the first stage needs
            encoder.optional_state = r"^layer1\.0\.downsample\." if encoder.pyramid_reductions[0] == 8 else ""
            load_weights(encoder, file)
            encoder.optional_state = ""
        encoder.as_features()
        super().__init__(encoder, None, FFNetHead(maps_of(encoder), num_classes, up, head, mode, enlarge))
        if pre_down:
            self.smoothing = Halved()
        self.pre_down = pre_down

    def forward(self, x: Tensor) -> Tensor:
        maps = self.pyramid(self.smoothing(x) if self.pre_down else x)
        return self.head(maps, x.shape[-2:])


# -- variants ----------------------------------------------------------------------------------------------------------
_VANILLA, _SLIM, _N, _NS = (64, 128, 256, 512), (64, 128, 192, 320), (96, 160, 320), (64, 128, 256)
BACKBONES: dict[str, dict[str, Any]] = {  # depth and letter of the backbone
    **{n: {"stem": "A", "widths": _VANILLA, "depths": d} for n, d in {
        "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "56": (4, 8, 12, 3), "86": (8, 12, 16, 6), "134": (8, 18, 28, 12),
        "150": (16, 18, 28, 12)}.items()},
    **{n: {"stem": "A", "widths": _VANILLA, "depths": d, "block": "bottleneck"} for n, d in {
        "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}.items()},
    **{n: {"stem": "B", "widths": _SLIM, "depths": d} for n, d in {
        "22S": (2, 3, 3, 2), "30S": (3, 4, 4, 3), "40S": (4, 5, 6, 4), "54S": (5, 8, 8, 5), "78S": (6, 12, 12, 8),
        "86S": (8, 12, 16, 6), "150S": (16, 18, 28, 12)}.items()},
    **{f"{n}{letter}": {"stem": "C", "widths": w, "depths": d} for letter, w in (("N", _N), ("NS", _NS)) for n, d in {
        "46": (6, 8, 8), "74": (8, 12, 16), "122": (16, 24, 20)}.items()},
}  # fmt: skip
MIOU = {  # Cityscapes val, %, as the authors' README states; 22S and 30S are backbones without a network of theirs
    "AAA": {"150": 84.4, "134": 84.1, "86": 83.2, "56": 82.5, "34": 81.4, "101": 82.1, "50": 79.6},
    "ABB": {"150": 83.7, "86": 83.5, "56": 82.1, "34": 80.3},
    "BBB": {"150S": 84.1, "86S": 82.6},
    "CBB": {"122N": 83.7, "74N": 83.0, "46N": 81.9},
    "dAAA": {"150": 82.3, "134": 82.0, "86": 81.4, "56": 80.7, "34": 79.1, "18": 76.5, "101": 80.4, "50": 79.4},
    "dBBB": {"150S": 81.0, "86S": 81.1},
    "dAAC": {"150": 81.9, "86": 81.1, "34": 79.1, "18": 76.4},
    "dBBB_mobile": {"86S": 81.5, "78S": 81.3, "54S": 80.8, "40S": 79.2},
    "BBB_mobile": {"150S": 81.6, "86S": 80.9, "78S": 80.5, "54S": 80.2, "40S": 79.7},
    "BCC_mobile": {"150S": 81.0, "86S": 81.0, "78S": 80.6, "54S": 79.9, "40S": 78.4},
    "CBB_mobile": {"122NS": 79.3, "74NS": 78.3, "46NS": 77.5},
    "CCC_mobile": {"122NS": 79.2, "74NS": 77.8, "46NS": 76.7},
}  # fmt: skip
CLASSIFIERS = {
    "AAX": ("18", "34", "50", "56", "86", "101", "134", "150"),
    "BBX": ("86S", "150S"),
    "BBX_mobile": ("40S", "54S", "78S", "86S", "150S"),
    "CBX": ("46N", "74N", "122N"),
    "CBX_mobile": ("46NS", "74NS", "122NS"),
}
_RELEASE = "https://github.com/Qualcomm-AI-research/FFNet/releases/download/models"
_README, _LICENCE = "Qualcomm-AI-research/FFNet@2291ae7 README.md", "BSD-3-Clause-Clear"
_PICTURES = {**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0}


def _released(depth: str, letters: str, data: str, **more: Any) -> dict[str, Weights]:
    """The file of a network in its backbone's zip; slim networks for GPUs say so in its name."""
    own, _, mobile = letters.partition("_")
    gpu = "_gpu" if depth.endswith("S") and "N" not in depth and not mobile else ""
    file = f"ffnet{depth}/ffnet{depth}_{own}{gpu}_{data}_state_dict_quarts.pth"
    return {data: Weights(f"{_RELEASE}/ffnet{depth}.zip#{file}", "authors", "authors", _LICENCE, **more)}


def _networks() -> Iterator[tuple[str, dict[str, Any], tuple[int, ...], dict[str, Weights]]]:
    """(name, arguments, input size, weights) of every segmentation network."""
    for letters, rows in MIOU.items():
        own, _, mobile = letters.partition("_")
        down, (up, head) = own[0] == "d", own[-2:]
        for depth, miou in rows.items():
            name = f"ffnet_seg_{depth}_{letters}".lower()
            kwargs = {**BACKBONES[depth], "up": up, "head": head, "mode": "nearest" if mobile else "bilinear"}
            kwargs |= {"down": True} if down else {}
            half = bool(mobile) and not down  # its input is the halved image
            stated = {
                "num_classes": 19,
                "metrics": {"cityscapes": {"miou": miou}},
                "metrics_source": _README,
                "class_map": "cityscapes",
            }
            weights = _released(depth, letters, "cityscapes", **stated)
            yield name, kwargs, (3, 512, 1024) if half else (3, 1024, 2048), weights
            if half:
                yield f"{name}_pre_down", {**kwargs, "pre_down": True}, (3, 1024, 2048), weights


_SEGMENTERS = list(_networks())
VARIANTS = {name: kwargs for name, kwargs, _, _ in _SEGMENTERS}
_CLASSIFIERS = {
    f"ffnet_cls_{depth}_{letters}".lower(): (
        {**BACKBONES[depth], "up": letters[1], "mode": "nearest" if "mobile" in letters else "bilinear"},
        _released(depth, letters, "imagenet"),
    )
    for letters, depths in CLASSIFIERS.items()
    for depth in depths
}
_IMAGENET_RECIPE = {  # README; batch 128 on each of 8
    "optimizer": "rmsprop_tf", "eps": 1e-3, "lr": 0.048 / 768 * 1024, "reference_batch": 1024, "weight_decay": 4e-5, "epochs": 150,
    "batch_size": 1024, "schedule": "step", "decay_rate": 0.93, "decay_epochs": 2, "warmup_lr": 1e-6, "drop_rate": 0.2,
    "ema_decay": 0.9999, "auto_augment": "rand-m9-mstd0.5", "random_erasing": 0.3,
    "data": "ImageNet-1K",
}  # fmt: skip
_CITYSCAPES_RECIPE = {  # from memory: SGD with momentum on large crops; the paper's own table was not looked up
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 150, "batch_size": 8, "warmup_epochs": 0,
    "input_size": 1024,
}  # fmt: skip

register_part("ffnet", "head", FFNetHead, paper="simple-segmentation", task="segmentation",
              takes=lambda reductions: each_stride(4)(reductions)[:4])  # fmt: skip
register(
    paper="simple-segmentation",
    kind="segmentation",
    task="segmentation",
    build=FFNet,
    variants=VARIANTS,
    input_size=(3, 1024, 2048),
    input_sizes={name: size for name, _, size, _ in _SEGMENTERS},
    preprocessing=_PICTURES,
    weights={name: weights for name, _, _, weights in _SEGMENTERS},
    recipe=_CITYSCAPES_RECIPE,
    exceptions={"training": {n: {"input_size": 512} for n, _, size, _ in _SEGMENTERS if size[1] == 512}},
)
register(
    paper="simple-segmentation",
    kind="backbone",
    build=FFNetClassifier,
    variants={name: kwargs for name, (kwargs, _) in _CLASSIFIERS.items()},
    weights={name: weights for name, (_, weights) in _CLASSIFIERS.items()},
    recipe=_IMAGENET_RECIPE,
)
