r"""HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions (Rao, Zhao, Tang, Zhou, Lim, Lu;
NeurIPS 2022; arXiv 2207.14284).

Self-attention multiplies places with places twice. The recursive gated convolution :math:`g^n\mathrm{Conv}` reaches any order
:math:`n` with convolutions and products. One projection gives a small gate and a bundle of groups of rising width, one
depth-wise operator :math:`f` mixes places in the bundle, and each step multiplies by the next group (Sec. 3.1, Fig. 2):

.. math:: [p_0, q_0, \dots, q_{n-1}] = \phi_{\mathrm{in}}(x), \qquad
          p_{k+1} = s\, f(q_k) \odot g_k(p_k), \qquad y = \phi_{\mathrm{out}}(p_n),

where group :math:`k` has :math:`C / 2^{n-1-k}` channels, :math:`g_0` is the identity, the other :math:`g_k` are 1x1
convolutions, and :math:`s = 1/3` steadies training. Because the first groups are narrow, any order costs about as much as
one 7x7 depth-wise convolution and two projections. :math:`f` is that convolution, or a global filter (GF): a learnt
weight for each frequency of half of the channels, which sees the whole map.

The blocks of a four-stage pyramid put it where Swin has attention. HorFPN puts it where feature pyramids have a 3x3 fusion
convolution. LayerNorms have eps 1e-6. Parameter names are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbones.convnext import ConvNeXtFrame
from offprint.models.checkpoint import Dialect
from offprint.models.parts import Maps, register_part
from offprint.models.registry import Weights, register
from offprint.models.released import hashed, top
from offprint.nn import DepthwiseConv2d, DropPath, LayerNorm2d, Pointwise, drop_path_rates
from offprint.nn.precision import wide


def resample_filter(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A filter (C, h, w, 2) on another grid of frequencies ``size``: bilinear, the corners aligned."""
    if tuple(weight.shape[1:3]) == tuple(size):
        return weight
    planes = F.interpolate(weight.permute(3, 0, 1, 2), size, mode="bilinear", align_corners=True)
    return planes.permute(1, 2, 3, 0)


class GlobalLocalFilter(nn.Module):
    """Half of the channels by a depth-wise 3x3 convolution, half by a global filter, interleaved (Sec. 3.2).

    Args:
        dim: channels; even.
        h, w: stored grid of frequencies: rows, and columns of the real transform. A map of (h, 2 w - 2) or (h, 2 w - 1)
            uses the filter as it is, others resample it.
    """

    def __init__(self, dim: int, h: int = 14, w: int = 8):
        super().__init__()
        if dim % 2:
            raise OffprintError(f"a global filter halves its channels and cannot take {dim}; choose an even number")
        if min(h, w) < 1:
            raise OffprintError(f"grid {h}x{w}: a global filter needs one frequency and more each way")
        self.pre_norm = LayerNorm2d(dim)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, h, w, 2))
        self.post_norm = LayerNorm2d(dim)
        nn.init.trunc_normal_(self.complex_weight, std=0.02)
        nn.init.trunc_normal_(self.dw.weight, std=0.02)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Map (B, dim, H, W) of any size to the same shape, times ``scale``; the transform runs in float32 at least."""
        height, width = x.shape[-2:]
        local, spread = self.pre_norm(x).chunk(2, 1)
        local = self.dw(local)
        spectrum = torch.fft.rfft2(wide(spread), norm="ortho")
        # contiguous: a model in channels-last memory holds this tensor, which is no image, in that order too
        weight = resample_filter(wide(self.complex_weight), (height, width // 2 + 1)).contiguous()
        spread = torch.fft.irfft2(spectrum * torch.view_as_complex(weight), s=(height, width), norm="ortho")
        pairs = torch.stack([local.permute(0, 2, 3, 1), spread.to(local.dtype).permute(0, 2, 3, 1)], -1)
        norm = self.post_norm
        # the factor goes to the norm's few numbers instead of to the map
        y = F.layer_norm(pairs.flatten(-2), norm.normalized_shape, norm.weight * scale, norm.bias * scale, norm.eps)
        return y.permute(0, 3, 1, 2)


def spatial_operator(kind: str, dim: int, grid: tuple[int, int]) -> nn.Module:
    """The depth-wise operator f of a gnConv.

    Args:
        kind: ``"7x7"`` or ``"gf"``.
        dim: channels.
        grid: stored frequencies (h, w) of a global filter.
    """
    if kind == "7x7":
        return DepthwiseConv2d(dim, 7)
    if kind == "gf":
        return GlobalLocalFilter(dim, *grid)
    raise unknown("kind of gnConv", kind, ("7x7", "gf"))


class GnConv(nn.Module):
    """Recursive gated convolution of order n.

    Args:
        dim: channels of the output; divisible by 2^(order - 1).
        order: n, 1 to as many as the channels can be halved.
        s: factor on the depth-wise operator's output.
        kind: ``"7x7"`` or ``"gf"``.
        grid: frequencies stored by a global filter.
        in_dim: channels of the input; default ``dim``.
    """

    def __init__(
        self,
        dim: int,
        order: int = 5,
        s: float = 1.0,
        kind: str = "7x7",
        grid: tuple[int, int] = (14, 8),
        in_dim: int | None = None,
    ):
        super().__init__()
        if order < 1 or dim % 2 ** (order - 1):
            raise OffprintError(
                f"gnConv of order {order} halves its channels {max(order - 1, 0)} times, which {dim} does not allow; "
                f"choose an order from 1 and a dim divisible by {2 ** max(order - 1, 0)}"
            )
        self.dims = [dim // 2 ** (order - 1 - k) for k in range(order)]
        self.scale = s
        self.proj_in = Pointwise(dim if in_dim is None else in_dim, 2 * dim, bias=True)
        self.dwconv = spatial_operator(kind, sum(self.dims), grid)
        self.pws = nn.ModuleList(Pointwise(a, b, bias=True) for a, b in zip(self.dims[:-1], self.dims[1:], strict=True))
        self.proj_out = Pointwise(dim, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, dim, H, W)."""
        gate, bundle = self.proj_in(x, (self.dims[0], sum(self.dims)))
        groups = self.dwconv(bundle, self.scale).split(self.dims, 1)
        y = gate * groups[0]
        for project, group in zip(self.pws, groups[1:], strict=True):
            y = project(y) * group
        return self.proj_out(y)


class Block(nn.Module):
    """gnConv, then an MLP, each behind a LayerNorm, with layer scale and stochastic depth (Fig. 3).

    Args:
        dim: channels.
        order: of the gnConv.
        s: its factor.
        kind, grid: of its depth-wise operator.
        drop_path: probability of dropping a branch.
        layer_scale_init_value: initial gamma; 0 or less leaves gamma out.
    """

    def __init__(
        self,
        dim: int,
        order: int,
        s: float = 1 / 3,
        kind: str = "7x7",
        grid: tuple[int, int] = (14, 8),
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.gnconv = GnConv(dim, order, s, kind, grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        scaled = layer_scale_init_value > 0
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if scaled else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if scaled else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map of the same shape."""
        x = self._add(x, self.gnconv(self.norm1(x)), None if self.gamma1 is None else self.gamma1[:, None, None])
        x = x.permute(0, 2, 3, 1)
        x = self._add(x, self.pwconv2(self.act(self.pwconv1(self.norm2(x)))), self.gamma2)
        return x.permute(0, 3, 1, 2)

    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        if gamma is None:
            return x + self.drop_path(branch)
        return torch.addcmul(x, self.drop_path(branch), gamma.to(x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """For :func:`offprint.deploy`: the layer scales into the layers before them."""
        for gamma, layer in ((self.gamma1, self.gnconv.proj_out), (self.gamma2, self.pwconv2)):
            if gamma is not None:
                layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
                layer.bias.mul_(gamma)
        self.gamma1 = self.gamma2 = None


class HorNet(ConvNeXtFrame):
    """Four stages at strides 4, 8, 16 and 32 (Table 1).

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled, normalised features.
        base_dim: channels C of the first stage; each further one has twice as many.
        depths: blocks per stage.
        orders: order n of each stage.
        kinds: depth-wise operator of each stage, ``"7x7"`` or ``"gf"``.
        grids: frequencies that the global filters of each stage store.
        s: factor on the depth-wise operators.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise linearly to it from 0.
        layer_scale_init_value: initial gamma of every branch; 0 for none.
        head_init_scale: factor on the classifier's initial weights.

    Any image of 32 pixels and more works; global filters are resampled to its maps. A file with another grid is resampled.
    """

    dialects = (
        Dialect(
            "mmpretrain",
            (
                (r"^backbone\.", ""),
                (r"\.gnconv\.projs\.", ".gnconv.pws."),
                (r"\.(gamma[12])\.weight$", r".\1"),
                (r"^norm3\.", "norm."),
                (r"^head\.fc\.", "head."),
            ),
        ),
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        base_dim: int = 64,
        depths: tuple[int, ...] = (2, 3, 18, 2),
        orders: tuple[int, ...] = (2, 3, 4, 5),
        kinds: tuple[str, ...] = ("7x7", "7x7", "7x7", "7x7"),
        grids: tuple[tuple[int, int], ...] = ((56, 29), (28, 15), (14, 8), (7, 4)),
        s: float = 1 / 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        head_init_scale: float = 1.0,
    ):
        super().__init__()
        if not len(depths) == len(orders) == len(kinds) == len(grids):
            raise OffprintError(
                f"depths {tuple(depths)}, orders {tuple(orders)}, kinds {tuple(kinds)} and grids {tuple(grids)} must name "
                "the same number of stages"
            )
        dims = [base_dim * 2**i for i in range(len(depths))]
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        made = (
            nn.Sequential(
                *(Block(dim, order, s, kind, grid, next(rates), layer_scale_init_value) for _ in range(depth))
            )
            for dim, depth, order, kind, grid in zip(dims, depths, orders, kinds, grids, strict=True)
        )
        self.frame(in_chans, num_classes, dims, made, head_init_scale)

    blocks_per_layer = 2

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Resample the global filters to the maps of such images, which otherwise happens at every call."""
        height, width = self._sides(img_size)
        grids = tuple((height // stride, width // stride // 2 + 1) for stride in self.pyramid_reductions)
        for stage, grid in zip(self.stages, grids, strict=True):
            for module in stage.modules():
                if isinstance(module, GlobalLocalFilter):
                    old = module.complex_weight.data
                    new = resample_filter(wide(old), grid).to(old.dtype)
                    module.complex_weight = nn.Parameter(new.contiguous())
        self._remember(grids=grids)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample global filters that were stored on another grid (a model for another image size)."""
        own = self.state_dict()
        return {
            name: resample_filter(wide(value), tuple(own[name].shape[1:3]))
            if name.endswith("complex_weight") and name in own and value.shape[0] == own[name].shape[0]
            else value
            for name, value in state.items()
        }


class ConvModule(nn.Module):
    """Convolution, with BatchNorm and ReLU (``norm``) or with a bias alone."""

    fold_pairs = (("conv", "bn"),)

    def __init__(self, cin: int, cout: int, kernel: int = 1, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(cout)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x))) if self.norm else self.conv(x)


def _check_maps(maps: Sequence[Tensor], in_channels: Sequence[int], who: str) -> None:
    got = [m.shape[1] for m in maps]
    if got != list(in_channels):
        raise OffprintError(
            f"{who} was built for maps of {list(in_channels)} channels, fine to coarse, and got {got}; "
            "build it with in_channels=encoder.feature_info.channels()"
        )
    sizes = [tuple(m.shape[-2:]) for m in maps]
    if any(a[0] < b[0] or a[1] < b[1] for a, b in zip(sizes[:-1], sizes[1:], strict=True)):
        raise OffprintError(f"{who} takes maps from fine to coarse, got sizes {sizes}; reverse the list")


GRID = (32, 17)  # frequencies stored by the global filters of both feature pyramids


class HorFPN(nn.Module):
    """A feature pyramid network whose 3x3 output convolutions are gnConvs of order 2, without the factor s (Sec. 3.3).

    Args:
        in_channels: of the maps, fine to coarse: ``encoder.feature_info.channels()`` of any ``features_only`` backbone.
        out_channels: of every output.
        num_outs: outputs; those beyond the inputs halve the last one by taking every second place.
        kind: ``"7x7"`` or ``"gf"``.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, num_outs: int = 5, kind: str = "7x7"):
        super().__init__()
        if num_outs < len(in_channels):
            raise OffprintError(f"num_outs={num_outs} is less than the {len(in_channels)} maps that come in")
        self.in_channels, self.num_outs = list(in_channels), num_outs
        self.out_channels = out_channels
        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, norm=False) for c in in_channels)
        self.fpn_convs = nn.ModuleList(GnConv(out_channels, 2, kind=kind, grid=GRID) for _ in in_channels)

    @classmethod
    def on(cls, before: Maps, **options) -> HorFPN:
        """The neck over these maps; by default with one output more than there are maps."""
        neck = cls(before.channels, **{"num_outs": len(before.channels) + 1, **options})
        beyond = neck.num_outs - len(before.channels)
        strides = (*before.reductions, *(before.reductions[-1] * 2 ** (i + 1) for i in range(beyond)))
        neck.maps = Maps((neck.out_channels,) * neck.num_outs, strides)
        return neck

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[i], H_i, W_i), fine to coarse, to ``num_outs`` maps of ``out_channels``."""
        _check_maps(maps, self.in_channels, "HorFPN")
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            above = F.interpolate(laterals[i], laterals[i - 1].shape[-2:], mode="nearest")
            laterals[i - 1] = laterals[i - 1] + above
        out = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        while len(out) < self.num_outs:
            out.append(F.max_pool2d(out[-1], 1, 2))
        return out


class FusionGnConv(GnConv):
    """The gnConv of order 2, BatchNorm and ReLU that fuse all levels of the segmentation head."""

    fold_pairs = (("proj_out", "bn"),)

    def __init__(self, in_dim: int, dim: int, kind: str):
        super().__init__(dim, 2, kind=kind, grid=GRID, in_dim=in_dim)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(super().forward(x)))


class HorUPerHead(nn.Module):
    """UPerNet's segmentation head with a gnConv as its last fusion (Sec. 3.3).

    Args:
        in_channels: of the maps, fine to coarse: ``encoder.feature_info.channels()`` of any ``features_only`` backbone.
        channels: inner width.
        num_classes: classes.
        kind: ``"7x7"`` or ``"gf"``.
        pool_scales: sides of the pooled maps of the pyramid pooling module.
        drop_rate: dropout before the classifier.
    """

    classifier = "conv_seg"
    prefixes = ("decode_head.",)  # in the authors' segmentation checkpoints

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 512,
        num_classes: int = 150,
        kind: str = "7x7",
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        drop_rate: float = 0.1,
    ):
        super().__init__()
        *finer, last = self.in_channels = list(in_channels)
        self.num_classes = num_classes
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(last, channels)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels) for c in finer)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = FusionGnConv(len(self.in_channels) * channels, channels, kind)
        self.dropout = nn.Dropout2d(drop_rate)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    @classmethod
    def on(cls, before: Maps, **options) -> HorUPerHead:
        """The head over these maps."""
        return cls(before.channels, **options)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Maps, fine to coarse, to logits (B, num_classes, H_0, W_0) at the finest map's size, or enlarged to ``size``."""
        _check_maps(maps, self.in_channels, "HorUPerHead")

        def resize(x: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)

        *finer, last = maps
        pooled = torch.cat([last, *(resize(module(last), last) for module in self.psp_modules)], 1)
        levels = [conv(x) for conv, x in zip(self.lateral_convs, finer, strict=True)] + [self.bottleneck(pooled)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1])
        levels = [*(conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)), levels[-1]]
        fused = torch.cat([levels[0], *(resize(x, levels[0]) for x in levels[1:])], 1)
        logits = self.conv_seg(self.dropout(self.fpn_bottleneck(fused)))
        return logits if size is None else F.interpolate(logits, size, mode="bilinear", align_corners=False)


_DIMS = {"tiny": 64, "small": 96, "base": 128, "large": 192}
_GF = {"kinds": ("7x7", "7x7", "gf", "gf")}
_GF384 = {**_GF, "grids": ((96, 49), (48, 25), (24, 13), (12, 7))}
VARIANTS = {
    **{f"hornet_{size}_7x7": {"base_dim": dim} for size, dim in _DIMS.items()},
    **{f"hornet_{size}_gf": {"base_dim": dim, **_GF} for size, dim in _DIMS.items()},
    **{f"hornet_{size}_gf_img384": {"base_dim": _DIMS[size], **_GF384} for size in ("base", "large")},
}
RECIPE = {
    "optimizer": "adamw",
    "lr": 4e-3,
    "reference_batch": 4096,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
    "min_lr": 1e-6,
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "interpolation": "bicubic",
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
_DROP_PATH = {"tiny": 0.2, "small": 0.4, "base": 0.5, "large": 0.2}
# pre-training on ImageNet-22K, the only training that the authors gave the large models
_LARGE = {"epochs": 90, "warmup_epochs": 5, "weight_decay": 0.1, "ema_decay": 0.0, "data": "imagenet-22k"}
_FINE = {  # at 384, from ImageNet-22K
    "epochs": 30, "warmup_epochs": 0, "lr": 5e-5, "reference_batch": 512, "weight_decay": 1e-8, "mixup": 0.0, "cutmix": 0.0,
    "clip_grad": 1.0, "drop_path_rate": 0.4, "layer_decay": 0.7, "input_size": 384, "crop_pct": 1.0, "crop_mode": "squash",
    "start": "pretraining",
}  # fmt: skip
# the authors' shares, their top-1, mmpretrain's copies with its top-1 and top-5
_RELEASED: dict[str, tuple] = {
    "tiny_7x7": ("762f05c3c8cd4743b534", 82.8, "tiny_3rdparty_in1k_20220915-0e8eedff", 82.84, 96.24),
    "tiny_gf": ("395dd6c443ed4a339739", 83.0, "tiny-gf_3rdparty_in1k_20220915-4c35a66b", 82.98, 96.38),
    "small_7x7": ("9d7043023da14e4b8b2e", 84.0, "small_3rdparty_in1k_20220915-5935f60f", 83.79, 96.75),
    "small_gf": ("19eef725b2e64692b8b0", 84.2, "small-gf_3rdparty_in1k_20220915-649ca492", 83.98, 96.77),
    "base_7x7": ("836ab04898c646c389ce", 84.3, "base_3rdparty_in1k_20220915-a06176bb", 84.24, 96.94),
    "base_gf": ("60f706e36f6b4098a1f9", 84.5, "base-gf_3rdparty_in1k_20220915-82c06fa7", 84.32, 96.95),
}
_IN22K = {  # the width of these classifiers is not stated, so that they are left out
    "large_7x7": "4de41e26cb254c28a61a",
    "large_gf": "8679b6acf63c41e285d9",
    "large_gf_img384": "f36957d46eef47da9c25",
}


def _authors(share: str, one: float | None = None, **more: Any) -> Weights:
    return Weights(f"https://cloud.tsinghua.edu.cn/f/{share}/?dl=1", "authors", "authors", "MIT", metrics=top(one),
                   metrics_source="raoyongming/HorNet@05bb97f README" if one else "", **more)  # fmt: skip


def _mmpretrain(file: str, one: float, five: float) -> Weights:
    url = f"https://download.openmmlab.com/mmclassification/v0/hornet/hornet-{file}.pth"
    return Weights(url, "mmpretrain", "mmpretrain", "Apache-2.0", hashed(url), metrics=top(one, five),
                   metrics_source="open-mmlab/mmpretrain@120497c configs/hornet/metafile.yml")  # fmt: skip


WEIGHTS = {
    f"hornet_{kind}": {"in1k": _authors(share, one), "mmpretrain_in1k": _mmpretrain(*copy)}
    for kind, (share, one, *copy) in _RELEASED.items()
} | {f"hornet_{kind}": {"in22k": _authors(share, num_classes=0)} for kind, share in _IN22K.items()}
_AUGMENT = {"small_gf": "rand-m12-mstd0.5-inc1", "base_gf": "rand-m15-mstd0.5-inc1"}
_TRAINING = {
    f"hornet_{size}_{kind}": {
        "drop_path_rate": rate,
        "clip_grad": 1.0 if kind == "gf" else 100.0 if size == "tiny" else 5.0,
        **({"auto_augment": _AUGMENT[f"{size}_{kind}"]} if f"{size}_{kind}" in _AUGMENT else {}),
        **(_LARGE if size == "large" else {}),
    }
    for size, rate in _DROP_PATH.items()
    for kind in ("7x7", "gf")
}
register(
    paper="hornet",
    kind="backbone",
    build=HorNet,
    variants=VARIANTS,
    weights=WEIGHTS,
    input_sizes={name: (3, 384, 384) for name in VARIANTS if name.endswith("img384")},
    recipe=RECIPE,
    exceptions={
        "training": _TRAINING | {f"hornet_{size}_gf_img384": _FINE for size in ("base", "large")},
        "pretraining": {name: {**RECIPE, **_TRAINING[name]} for name in ("hornet_large_7x7", "hornet_large_gf")},
        "finetuning": {name: {**RECIPE, **_FINE} for name in ("hornet_large_7x7", "hornet_large_gf_img384")},
    },
)
register_part("hor_fpn", "neck", HorFPN.on, paper="hornet")
register_part("hor_uper", "head", HorUPerHead.on, paper="hornet", task="segmentation")
