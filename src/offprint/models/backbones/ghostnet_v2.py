r"""GhostNetV2: Enhance Cheap Operation with Long-Range Attention (Tang, Han, Guo, Xu, Xu, Wang; NeurIPS 2022; arXiv 2211.12905).

A Ghost module computes half of its channels with a 1x1 convolution and the other half from those with a depth-wise 3x3
convolution, which is cheap but sees little. GhostNetV2 multiplies the module that expands a bottleneck by a gate that
sees far, decoupled fully connected (DFC) attention: every place is mixed along its row and along its column,

.. math:: a'_{hw} = \sum_{w'} F^W_{w,w'} \odot z_{hw'}, \qquad a_{hw} = \sum_{h'} F^H_{h,h'} \odot a'_{h'w},

where sharing the weights :math:`F` between places makes them depth-wise convolutions, here 1x5 and then 5x1 (the order of
the authors' code), and any image size works. The gate is computed on a map pooled to half its sides and enlarged again:

.. math:: \mathrm{out}(x) = \mathrm{up}\big(\sigma(\mathrm{DFC}(\mathrm{pool}_{2\times2}(x)))\big) \odot \mathrm{Ghost}(x).

All convolutions but those of squeeze-excite and the head are without bias and followed by a BatchNorm (eps 1e-5). Parameter
names are those of the authors' code, which are also timm's, but for the last layer (``head``, there ``classifier``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register
from offprint.models.released import timm, top
from offprint.nn import SqueezeExcite, make_divisible

HEAD = 1280  # features of the head, at every width
KERNEL = 5  # of the horizontal and the vertical convolution of the gate


def _conv_bn(cin: int, cout: int, kernel=1, stride: int = 1, groups: int = 1, relu: bool = False) -> list[nn.Module]:
    """Convolution that keeps the size (at stride 1), BatchNorm, and a ReLU where wanted."""
    padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else (kernel - 1) // 2
    conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(cout)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


class DFCAttention(nn.Sequential):
    """The gate, at half resolution: 1x1, then depth-wise 1x5 and 5x1 convolutions, each with BatchNorm.

    Args:
        in_channels: channels of the map it reads.
        out_channels: channels of the gate.
    """

    fold_pairs = (("0", "1"), ("2", "3"), ("4", "5"))

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            *_conv_bn(in_channels, out_channels),
            *_conv_bn(out_channels, out_channels, (1, KERNEL), groups=out_channels),
            *_conv_bn(out_channels, out_channels, (KERNEL, 1), groups=out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate in (0, 1), (B, out_channels, H, W), of a map (B, in_channels, H, W) of at least two rows and columns.

        Pooling drops the last row and column of odd sizes; enlarging stretches over them.
        """
        if min(x.shape[-2:]) < 2:
            raise OffprintError(
                f"DFC attention pools 2x2 and cannot take a map of {tuple(x.shape[-2:])}; give it a larger image"
            )
        # the sigmoid before a nearest resize equals the sigmoid after it, on a quarter of the places
        gate = super().forward(F.avg_pool2d(x, 2)).sigmoid()
        return F.interpolate(gate, x.shape[-2:], mode="nearest")


class GhostModule(nn.Module):
    """Half of the channels by a 1x1 convolution, half from those by a depth-wise 3x3 one ; gated with ``attention``.

    Args:
        in_channels, out_channels: of the map.
        relu: a ReLU in both halves.
        attention: multiply by the DFC gate.
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True, attention: bool = False):
        super().__init__()
        half = -(-out_channels // 2)
        self.out_channels = out_channels
        self.primary_conv = nn.Sequential(*_conv_bn(in_channels, half, relu=relu))
        self.cheap_operation = nn.Sequential(*_conv_bn(half, half, 3, groups=half, relu=relu))
        self.short_conv = DFCAttention(in_channels, out_channels) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        first = self.primary_conv(x)
        out = torch.cat([first, self.cheap_operation(first)], 1)[:, : self.out_channels]
        return out if self.short_conv is None else out * self.short_conv(x)


class GhostBottleneck(nn.Module):
    """Expand with a (gated) Ghost module, stride by a depth-wise convolution, project with a plain one, add.

    Args:
        in_channels, mid_channels, out_channels: input, expanded and output width.
        kernel_size: of the strided depth-wise convolution and of the shortcut's.
        stride: 1 or 2.
        se: squeeze-excite on the expanded map.
        attention: DFC attention on the expanding module.
    """

    fold_pairs = (("conv_dw", "bn_dw"),)

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        se: bool = False,
        attention: bool = False,
    ):
        super().__init__()
        self.ghost1 = GhostModule(in_channels, mid_channels, relu=True, attention=attention)
        if stride > 1:
            self.conv_dw, self.bn_dw = _conv_bn(mid_channels, mid_channels, kernel_size, stride, mid_channels)
        else:
            self.conv_dw, self.bn_dw = nn.Identity(), nn.Identity()
        self.se: nn.Module = nn.Identity()
        if se:
            self.se = SqueezeExcite(mid_channels, make_divisible(mid_channels / 4, 4), F.hardsigmoid)
        self.ghost2 = GhostModule(mid_channels, out_channels, relu=False)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels or stride > 1:
            self.shortcut = nn.Sequential(
                *_conv_bn(in_channels, in_channels, kernel_size, stride, in_channels),
                *_conv_bn(in_channels, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.bn_dw(self.conv_dw(self.ghost1(x))))
        return self.ghost2(y) + self.shortcut(x)


class ConvBnAct(nn.Module):
    """1x1 convolution, BatchNorm, ReLU: the last layer before pooling."""

    fold_pairs = (("conv", "bn1"),)

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv, self.bn1, self.act = _conv_bn(in_channels, out_channels, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))


# (kernel, expanded, output, squeeze-excite, stride) of each bottleneck at width 1, by stages
LAYOUT = (
    ((3, 16, 16, False, 1),),
    ((3, 48, 24, False, 2),),
    ((3, 72, 24, False, 1),),
    ((5, 72, 40, True, 2),),
    ((5, 120, 40, True, 1),),
    ((3, 240, 80, False, 2),),
    (
        (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
        (3, 480, 112, True, 1), (3, 672, 112, True, 1),
    ),
    ((5, 672, 160, True, 2),),
    ((5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1)),
)  # fmt: skip


class GhostNetV2(Backbone):
    """Stem, sixteen bottlenecks of :data:`LAYOUT`, a 1x1 convolution, and a head of two layers after pooling.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the 1280 features before it.
        width: factor on every width but the head's 1280; widths are rounded to multiples of 4.
        drop_rate: dropout before the classifier (0.2 in the paper's training).
        attention: DFC attention in all bottlenecks but the first two; without it this is GhostNet (V1), the paper's baseline,
            whose files then load.
        layout: bottlenecks by stage.

    Any image of 33 pixels and more works: at 32 the last map that the gate pools would have a side of one.
    """

    head_modules = ("conv_head", "head")
    native = "offprint"
    dialects = (Dialect("authors", ((r"^classifier\.", "head."),)),)
    input_layers = ("conv_stem",)
    minimum = 33
    fold_pairs = (("conv_stem", "bn1"),)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        width: float = 1.0,
        drop_rate: float = 0.0,
        attention: bool = True,
        layout: tuple[tuple[tuple[int, int, int, bool, int], ...], ...] = LAYOUT,
    ):
        super().__init__(drop_rate)
        if not width > 0:
            raise OffprintError(f"width={width}; the width factor must be above 0 (the paper's: 1.0, 1.3, 1.6)")
        self.in_chans, self.num_classes = in_chans, num_classes
        channels = make_divisible(16 * width, 4)
        self.conv_stem, self.bn1, self.act1 = _conv_bn(in_chans, channels, 3, 2, relu=True)
        self.pyramid_channels, self.pyramid_reductions, self._ends = [channels], [2], [0]
        stages: list[nn.Module] = []
        count = 0
        for rows in layout:
            blocks: list[nn.Module] = []
            for kernel, mid, out, se, stride in rows:
                mid, out = make_divisible(mid * width, 4), make_divisible(out * width, 4)
                blocks.append(GhostBottleneck(channels, mid, out, kernel, stride, se, attention and count > 1))
                if stride > 1:
                    self.pyramid_channels.append(out)
                    self.pyramid_reductions.append(2 * self.pyramid_reductions[-1])
                    self._ends.append(0)
                channels, self.pyramid_channels[-1], self._ends[-1] = out, out, len(stages)
                count += 1
            stages.append(nn.Sequential(*blocks))
        self.pyramid_modules = [f"blocks.{i}" for i in self._ends]
        self.num_features = make_divisible(layout[-1][-1][1] * width, 4)
        self.blocks = nn.Sequential(*stages, nn.Sequential(ConvBnAct(channels, self.num_features)))
        self.hidden = HEAD
        self.conv_head = nn.Conv2d(self.num_features, HEAD, 1)
        self.head = nn.Linear(HEAD, num_classes) if num_classes else nn.Identity()

    def as_features(self, out_indices=None) -> GhostNetV2:
        """Maps at strides 2 to 32; the 1x1 convolution before pooling goes with the classifier."""
        super().as_features(out_indices)
        last = len(self.blocks) - 1
        self.blocks = self.blocks[:last]
        self.optional_state = rf"^blocks\.{last}\."
        return self

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each bottleneck; the last 1x1 convolution goes with the last of them."""
        names = [f"blocks.{i}.{j}" for i, stage in enumerate(self.blocks) for j in range(len(stage))]
        groups = [["conv_stem", "bn1"], *([name] for name in names)]
        return [*groups[:-2], [*groups[-2], *groups[-1]]] if self.whole else groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The last map of each stride: 2, 4, 8, 16, 32."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        for i, stage in enumerate(self.blocks):
            if i > self._ends[-1]:
                break
            x = self.run(stage, x)
            if i in self._ends:
                yield x

    def finish(self, x: Tensor) -> Tensor:
        """The last 1x1 convolution: (B, 960 width, H/32, W/32)."""
        return self.run(self.blocks[-1], x)

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the map, 1x1 convolution to 1280, ReLU."""
        x = F.relu(self.conv_head(x.mean((2, 3), keepdim=True) if self.global_pool else x))
        return x.flatten(1) if self.global_pool else x


VARIANTS = {f"ghostnetv2_{round(100 * width)}": {"width": width} for width in (1.0, 1.3, 1.6)}
RECIPE = {
    "optimizer": "rmsprop_tf",
    "lr": 0.064,
    "reference_batch": 1024,
    "momentum": 0.9,
    "eps": 1e-3,
    "weight_decay": 1e-5,
    "epochs": 450,
    "schedule": "step",
    "decay_rate": 0.973,
    "decay_epochs": 2.4,
    "warmup_epochs": 3,
    "warmup_lr": 1e-6,
    "label_smoothing": 0.1,
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5",
    "random_erasing": 0.2,
    "drop_rate": 0.2,
    "ema_decay": 0.9999,
    "lr_noise": (0.42, 0.9),
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
_RELEASE = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/GhostNetV2"
WEIGHTS = {  # the authors' text states the figure of width 1 only
    f"ghostnetv2_{percent}": {
        "in1k": Weights(
            f"{_RELEASE}/ck_ghostnetv2_{percent // 10}.pth.tar",
            "authors",
            "authors",
            "Apache-2.0",
            metrics=top(one),
            metrics_source="huawei-noah/Efficient-AI-Backbones@67a6b11 ghostnetv2_pytorch/README.md" if one else "",
        ),
        "timm_in1k": timm(f"ghostnetv2_{percent}.in1k", 224, dialect="authors"),  # the authors' tensor names
    }
    for percent, one in ((100, 75.3), (130, None), (160, None))
}
register(paper="ghostnet-v2", kind="backbone", build=GhostNetV2, variants=VARIANTS, weights=WEIGHTS, recipe=RECIPE)
