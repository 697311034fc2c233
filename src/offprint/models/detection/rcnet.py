r"""RCNet (Zong, Cao, Leng, ACM Multimedia 2021): a feature pyramid built once, upwards, whose nodes see both neighbours.

**RevFP.** A feature pyramid network passes top down what it knows, and its followers add a second pass upwards. Here one pass does both:
the node of level l joins its own lateral map, the lateral map above it, enlarged, and the finished output below it, shrunk,

.. math:: p_l = N(c_l,\ \uparrow c_{l+1},\ \downarrow p_{l-1}).

With global means g(·) a node weighs what it joins, :math:`s = \sigma(w [g(a), g(b)])`, :math:`r = s a + (1 - s) b`, after the map from above was
weighted over its positions by a softmax times their number, so that its mean weight is 1. A deformable 3x3 convolution follows each sum.

**CSN.** All five levels at the size of the second: each borrows a sixteenth of its channels from both neighbours and from those two levels away (round
the ends), :math:`[a, b, c, d, x_l]` goes through two 1x1 convolutions and is added; then one vector for the image, pooled by attention over the
positions, and one pooled over the levels, are added everywhere.

The detectors are RetinaNet, ATSS and GFL (:mod:`offprint.models.detection.one_stage`) over this neck. The authors released no weights.
Source: TempleX98/RCNet@2bff595, ``mmdet/models/necks/rcfpn.py`` and ``configs/rcnet``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from offprint.errors import OffprintError, unknown
from offprint.models.backbones.ibn_net import ResNet
from offprint.models.compose import Detector
from offprint.models.parts import Maps, each_stride, maps_of, part, register_part
from offprint.models.registry import register

LEVELS = ("p3", "p4", "p5", "p6", "p7")
NORMS = ("bn", "gn", "")


class Conv(nn.Module):
    """A convolution and its norm; the bias is the norm's where there is one.

    Args:
        channels_in, channels: of the maps.
        kernel: side of the filter.
        norm: ``"bn"``, ``"gn"`` (32 groups) or ``""``.
        deformable: a modulated deformable convolution of two groups of offsets.
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, norm: str, deformable: bool = False):
        super().__init__()
        if norm not in NORMS:
            raise unknown("norm of RCFPN", norm, NORMS)
        make = DeformConv if deformable else _xavier
        self.conv = make(channels_in, channels, kernel, bias=not norm)
        if norm:
            setattr(self, norm, nn.BatchNorm2d(channels) if norm == "bn" else nn.GroupNorm(32, channels))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return getattr(self, self.norm)(x) if self.norm else x


def _xavier(channels_in: int, channels: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=bias)
    nn.init.xavier_uniform_(conv.weight)
    if bias:
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class DeformConv(nn.Module):
    r"""Deformable convolution (Zhu et al., CVPR 2019): each of the taps is read at an offset of its own, and weighted by :math:`\sigma(m)`.

    Args:
        channels_in, channels: of the maps.
        kernel: side of the filter.
        bias: whether there is one.
        offset_groups: groups of channels with offsets of their own.
        stride, groups: of the convolution.
        modulated: whether taps are weighted.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 3,
        bias: bool = False,
        offset_groups: int = 2,
        stride: int = 1,
        groups: int = 1,
        modulated: bool = True,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels_in // groups, kernel, kernel))
        bound = (channels_in // groups * kernel**2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.stride, self.padding, self.modulated = stride, kernel // 2, modulated
        self.taps = 2 * offset_groups * kernel**2
        outputs = self.taps * 3 // 2 if modulated else self.taps
        self.conv_offset = nn.Conv2d(channels_in, outputs, kernel, stride, self.padding)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        where = self.conv_offset(x)
        mask = where[:, self.taps :].sigmoid() if self.modulated else None
        return deform_conv2d(x, where[:, : self.taps], self.weight, self.bias, self.stride, self.padding, mask=mask)


def even(x: Tensor) -> Tensor:
    """The last row and column once more where their number is odd."""
    right, below = x.shape[-1] % 2, x.shape[-2] % 2
    return F.pad(x, (0, right, 0, below), mode="replicate") if right or below else x


def fit(x: Tensor, size: torch.Size) -> Tensor:
    """A map at another size: enlarged bilinearly, or halved by a max pooling; sizes are compared as the authors' tuples are."""
    if x.shape[-2:] == size:
        return x
    if x.shape[-2:] < size:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
    return F.max_pool2d(even(x), 2, 2)


def weighed(x: Tensor, scores: Tensor) -> Tensor:
    """A map times the softmax of scores (B, 1, H, W) over the positions times their number."""
    return x * scores.flatten(2).softmax(-1).view_as(scores) * (scores.shape[-2] * scores.shape[-1])


class Node(nn.Module):
    """One level of RevFP: joins its own map, the one from above, and the one from below.

    Args:
        channels: of the maps.
        below: whether there is a level below, that is a third map.
        above_weighted: whether the map from above is weighted over its positions.
        norm, deformable: of the convolutions.
    """

    def __init__(self, channels: int, below: bool, above_weighted: bool, norm: str, deformable: bool):
        super().__init__()
        self.scale = channels**-0.5
        self.weight = nn.ModuleList(nn.Conv2d(2 * channels, 1, 1) for _ in range(1 + below))
        zeros = list(self.weight)
        self.spatial_weight: nn.Conv2d | None = None
        if above_weighted:
            self.spatial_weight = nn.Conv2d(2 * channels, 1, 3, padding=1)
            self.temp = nn.Parameter(torch.ones(1))
            zeros.append(self.spatial_weight)
        for conv in zeros:
            nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        if below:
            self.pre_fusion = Conv(channels, channels, 3, norm, deformable)
        self.post_fusion = Conv(channels, channels, 3, norm, deformable)

    def _join(self, which: int, a: Tensor, b: Tensor, mean_b: Tensor) -> Tensor:
        share = self.weight[which](torch.cat([a.mean((2, 3), True), mean_b], 1)).sigmoid()
        return torch.lerp(b, a, share)

    def forward(self, own: Tensor, other: Tensor, below: Tensor | None = None) -> Tensor:
        """Own map (B, C, H, W), a neighbour at any size, and the output of the level below."""
        size = own.shape[-2:]
        other = fit(other, size)
        mean = other.mean((2, 3), True)  # before the weighting
        if self.spatial_weight is not None:
            scores = self.temp * self.scale * self.spatial_weight(torch.cat([own, other], 1))
            other = weighed(other, scores)
        x = self._join(0, own, other, mean)
        if below is not None:
            x, below = self.pre_fusion(F.relu(x)), fit(below, size)
            x = self._join(1, x, below, below.mean((2, 3), True))
        return self.post_fusion(F.relu(x))


class Context(nn.Module):
    """A vector pooled by attention over the positions of a map (B, C, H, W): (B, C, 1, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channel_agg, self.trans = _xavier(channels, 1, 1), _xavier(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.trans(weighed(x, self.channel_agg(x)).mean((2, 3), True))


class Shift(nn.Module):
    """Channels borrowed from levels near and far, and two 1x1 convolutions on each level."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.part = channels // 16
        self.aggregation = nn.ModuleList(
            nn.Sequential(Conv(channels + 4 * self.part, channels, 1, norm), _xavier(channels, channels, 1))
            for _ in LEVELS
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Five maps of one size, each with what its level draws from the others added."""
        n, p, out = len(maps), self.part, []
        for i, (x, (first, second)) in enumerate(zip(maps, self.aggregation, strict=True)):
            borrowed = [maps[(i + step) % n][:, k * p : (k + 1) * p] for k, step in enumerate((1, -1, 2, -2))]
            out.append(x + second(F.relu(first(torch.cat([*borrowed, x], 1)))))
        return out


class CSN(nn.Module):
    """Cross-scale shift network: five maps at one size, and what they give back to each level."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.spatialContext, self.scaleContext = Context(channels), Context(channels)
        self.msm = Shift(channels, norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the pyramid with the levels' exchange added to them, each at its own size."""
        size = maps[1].shape[-2:]
        level = [F.adaptive_max_pool2d(maps[0], size), maps[1]]
        level += [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[2:]]
        level = self.msm(level)
        stack = torch.stack(level, 2)  # (B, C, 5, H, W)
        context = self.spatialContext(stack.mean(2)) + self.scaleContext(stack.mean((3, 4))[..., None])
        level = [x + context for x in level]
        back = [F.interpolate(level[0], maps[0].shape[-2:], mode="bilinear", align_corners=False), level[1]]
        back += [F.adaptive_max_pool2d(x, m.shape[-2:]) for x, m in zip(level[2:], maps[2:], strict=True)]
        return [m + x for m, x in zip(maps, back, strict=True)]


class RCFPN(nn.Module):
    """RCNet's neck: five levels of one width.

    Args:
        in_channels: of the maps, fine to coarse.
        out_channels: of every output, a multiple of 16 (of 32 with group norm).
        num_outs: outputs; the nodes are named for five, and only five work.
        start_level: first of the maps that is used: 1 for levels 3 to 7 over a backbone of four stages. 0 is the two-stage form, levels 2 to
            6, which the authors describe in TempleX98/RCNet#1: one more level by a stride-2 max pooling of the last lateral map, without a convolution.
        norm: ``"bn"``, ``"gn"`` with 32 groups, or ``""``.
        deformable: 3x3 convolutions that are deformable (DCNv2), or plain ones.

    Raises:
        OffprintError: another number of levels than five, or widths that cannot be shared out.
    """

    prefixes = ("neck.",)

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 1,
        norm: str = "bn",
        deformable: bool = True,
    ):
        super().__init__()
        used = list(in_channels)[start_level:]
        beyond = len(LEVELS) - len(used)
        if num_outs != len(LEVELS) or beyond not in (1, 2):
            raise OffprintError(
                f"RCFPN has five levels (its nodes are p3 to p7): three of the backbone and two more, or four and one more; got "
                f"num_outs={num_outs} and {len(used)} of the {len(in_channels)} maps from start_level={start_level} on"
            )
        if out_channels % (32 if norm == "gn" else 16):
            raise OffprintError(
                f"out_channels={out_channels}; RCFPN shares its channels out in sixteenths"
                + (", and its norm in 32 groups" if norm == "gn" else "")
            )
        self.in_channels, self.out_channels, self.start_level = list(in_channels), out_channels, start_level
        self.lateral_convs = nn.ModuleList(Conv(c, out_channels, 1, norm) for c in used)
        self.pooled = beyond == 1  # the two-stage form
        self.extra_downsamples = nn.ModuleList(
            nn.Sequential(Conv(out_channels, out_channels, 1, norm), nn.MaxPool2d(2, 2))
            for _ in range(0 if self.pooled else beyond)
        )
        self.RevFP = nn.ModuleDict(
            {
                name: Node(out_channels, name not in ("p3", "p7"), name != "p7", norm, deformable)
                for name in reversed(LEVELS)
            }
        )
        self.CSN = CSN(out_channels, norm)

    @classmethod
    def on(cls, before: Maps, *, finest: int = 8, **options) -> RCFPN:
        """The neck over these maps, those finer than ``finest`` left out: 8 for heads of one stage, 4 for two stages."""
        start = sum(stride < finest for stride in before.reductions)
        neck = cls(before.channels, start_level=start, **options)
        used = before.reductions[start:]
        strides = (*used, *(used[-1] * 2 ** (i + 1) for i in range(len(LEVELS) - len(used))))
        neck.maps = Maps((neck.out_channels,) * len(LEVELS), strides)
        return neck

    def _check(self, maps: Sequence[Tensor]) -> None:
        got = [m.shape[1] for m in maps]
        if got != self.in_channels:
            raise OffprintError(
                f"RCFPN was built for maps of {self.in_channels} channels, fine to coarse, and got {got}; "
                "build it with in_channels=encoder.feature_info.channels()"
            )
        sizes = [tuple(m.shape[-2:]) for m in maps[self.start_level :]]
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            if any(-(-x // 2) != y for x, y in zip(a, b, strict=True)):
                raise OffprintError(
                    f"RCFPN needs maps each half its finer neighbour, rounded up, and got {sizes}; a backbone of strides 8, 16, 32 gives them"
                )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[i], H_i, W_i), fine to coarse, to five maps of ``out_channels``."""
        self._check(maps)
        lateral = [conv(x) for conv, x in zip(self.lateral_convs, maps[self.start_level :], strict=True)]
        if self.pooled:
            lateral.append(F.max_pool2d(lateral[-1], 1, 2))
        for down in self.extra_downsamples:
            lateral.append(down(even(lateral[-1])))
        out: list[Tensor] = []
        for i, name in enumerate(LEVELS[:-1]):
            below = (out[-1],) if out else ()
            out.append(self.RevFP[name](lateral[i], lateral[i + 1], *below))
        out.append(self.RevFP["p7"](lateral[-1], out[-1]))
        return self.CSN(out)


def _backbone(depths: tuple[int, ...], groups: int = 1, deformable: bool = False, in_chans: int = 3) -> nn.Module:
    """A ResNet or ResNeXt that gives its maps at strides 8 to 32; names of tensors are torchvision's."""
    model: Any = ResNet(in_chans, 0, "bottleneck", depths, kind="", groups=groups)  # type: ignore[arg-type]
    if deformable:
        for block in (*model.layer2, *model.layer3, *model.layer4):
            width, stride = block.conv2.out_channels, block.conv2.stride[0]
            block.conv2 = DeformConv(width, width, offset_groups=1, stride=stride, groups=groups, modulated=False)
    return model.as_features((2, 3, 4))


def detector(
    num_classes: int = 80,
    in_chans: int = 3,
    head: str = "retinanet",
    depths: tuple[int, ...] = (3, 4, 6, 3),
    groups: int = 1,
    deformable_backbone: bool = False,
    norm: str = "bn",
    deformable: bool = True,
    out_channels: int = 256,
) -> Detector:
    """A detector of the paper.

    Args:
        num_classes: classes of objects, without the background.
        in_chans: image channels.
        head: ``retinanet``, ``atss`` or ``gfl``.
        depths, groups, deformable_backbone: of the ResNet: blocks of a stage, 64 groups for ResNeXt, DCN in the last three stages.
        norm, deformable, out_channels: of the neck.
    """
    backbone = _backbone(depths, groups, deformable_backbone, in_chans)
    neck = RCFPN.on(maps_of(backbone), norm=norm, deformable=deformable, out_channels=out_channels)
    model = Detector(backbone, neck, part(head)(neck.maps, num_classes=num_classes))
    model.in_chans = in_chans
    return model


detector.background = False  # type: ignore[attr-defined]
_R101, _GN = (3, 4, 23, 3), {"norm": "gn"}
VARIANTS = {
    "retinanet_r50_rcfpn": {"head": "retinanet"},
    "atss_r50_rcfpn": {"head": "atss"},
    "gfl_r50_rcfpn": {"head": "gfl"},
    "gfl_r101_rcfpn": {"head": "gfl", "depths": _R101, **_GN},
    "gfl_x101_rcfpn": {"head": "gfl", "depths": _R101, "groups": 64, **_GN},
    "gfl_x101_dcn_rcfpn": {"head": "gfl", "depths": _R101, "groups": 64, "deformable_backbone": True, **_GN},
}
RECIPE = {  # 1x
    "optimizer": "sgd", "lr": 0.01, "reference_batch": 16, "momentum": 0.9, "weight_decay": 1e-4, "decay_vectors": True, "batch_size": 16,
    "epochs": 12, "schedule": "step", "decay_rate": 0.1, "milestones": (8, 11), "warmup_steps": 500, "warmup_ratio": 0.001, "short_sides": (800,),
    "longest_side": 1333, "freeze_norms": True, "freeze_stages": 1, "data": "coco",
}  # fmt: skip
_TWO = {"epochs": 24, "milestones": (16, 22), "short_sides": (), "side_range": (480, 960)}
register(
    paper="rcnet",
    kind="detection",
    task="detection",
    build=detector,
    variants=VARIANTS,
    input_size=(3, 800, 1344),
    preprocessing={
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    },
    recipe=RECIPE,
    exceptions={"training": {name: _TWO for name in VARIANTS if "101" in name}},
)
register_part("rcfpn", "neck", RCFPN.on, paper="rcnet", takes=each_stride(4))
