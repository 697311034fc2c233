r"""MetaMixer's other networks (arXiv 2406.02021): enlarging pictures, segmentation, forecasting.

:class:`FFNetSR` is a row of FFNified attention and feed-forward blocks on the small picture, whose output is added to the picture
itself before both are spread over the larger one. :class:`FFNetSeg` is a backbone whose large kernels are trained with strips
(1 x k and k x 1) beside them, and :class:`FFNetSegHead` the head that goes with it. :class:`FFNetForecast` mixes series: the first
convolutions of FFNified attention mix the variables, its large ones the time, and the feed-forward block mixes channels within each
variable and then variables within each channel.

Parameter names are those of the authors' code (github.com/ysj9909/FFNet, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbones.metamixer import (
    RELEASE,
    ChannelMixer,
    FFNetFrame,
    Merging,
    MetaMixer,
    MixerBlock,
    Residual,
    init_,
)
from offprint.models.checkpoint import Dialect
from offprint.models.compose import Composed, compose
from offprint.models.parts import Maps, last, register_part
from offprint.models.registry import IMAGENET, Weights, register
from offprint.nn import LayerNorm2d, reparam
from offprint.nn.drop import drop_path_rates
from offprint.nn.mergeable import ConvNorm, Mergeable


# -- enlarging ----------------------------------------------------------------------------------------------------------
def _normed(dim: int, norm: str | None, first: nn.Module, *rest: nn.Module) -> nn.Sequential:
    """Layers with a LayerNorm before the first convolution, or a BatchNorm behind it, or neither."""
    before = [LayerNorm2d(dim)] if norm == "LN" else []
    behind = [nn.BatchNorm2d(dim)] if norm == "BN" else []
    return nn.Sequential(*before, first, *behind, *rest)


class SRBlock(nn.Module):
    """``x + FFNified(x)``, then ``x + ConvFFN(x)``; every convolution with a bias.

    Args:
        dim: channels.
        ratio: hidden width of the feed-forward part over ``dim``.
        norm: ``None``, ``"LN"`` or ``"BN"``.
    """

    def __init__(self, dim: int, ratio: int, norm: str | None):
        super().__init__()
        key, value, query = (nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(3))
        hidden = int(dim * ratio)
        self.token_mixer = _normed(dim, norm, nn.Conv2d(dim, dim, 1), key, nn.GELU(), value)
        self.channel_mixer = _normed(dim, norm, query, nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(x)
        return x + self.channel_mixer(x)


class FFNetSR(nn.Module):
    """Super-resolution network: images (B, C, H, W) in [0, 1] to (B, C, sH, sW), not clamped.

    Args:
        scale: s, the enlargement; the authors released 2.
        in_chans: image channels.
        dim, depth: channels and blocks.
        expansion_ratio: hidden width of the feed-forward parts over ``dim``.
        norm: norm of the blocks: ``None`` as in the released networks, ``"LN"``, ``"BN"``.
    """

    native = "authors"
    input_layers = ("proj",)

    def __init__(
        self,
        scale: int = 2,
        in_chans: int = 3,
        dim: int = 96,
        depth: int = 36,
        expansion_ratio: int = 2,
        norm: str | None = None,
    ):
        super().__init__()
        if scale not in (2, 3, 4):
            raise OffprintError(f"scale={scale!r}; choose 2, 3 or 4")
        if norm not in (None, "LN", "BN"):
            raise OffprintError(f"norm={norm!r}; choose None, 'LN' or 'BN'")
        self.scale, self.in_chans = scale, in_chans
        self.proj = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.body = nn.Sequential(*(SRBlock(dim, expansion_ratio, norm) for _ in range(depth)))
        self.conv_bef_up = nn.Conv2d(dim, in_chans * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (x.ndim != 4 or x.shape[1] != self.in_chans):
            raise OffprintError(f"expected images of shape (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        fine = self.conv_bef_up(self.body(self.proj(x)))
        # each channel of the picture, as often as there are places for it
        same = x[:, :, None].expand(-1, -1, self.scale**2, -1, -1).flatten(1, 2)
        return F.pixel_shuffle(fine + same, self.scale)

    def example_input(self, batch: int = 1) -> Tensor:
        """A random image."""
        return torch.rand(batch, self.in_chans, 48, 40, device=self.proj.weight.device, dtype=self.proj.weight.dtype)


# -- segmentation -------------------------------------------------------------------------------------------------------
class StripDW(Mergeable):
    """A depth-wise k x k convolution with a 1 x k and a k x 1 one beside it, and above 3 one of k - 4; each with its BatchNorm.

    Args:
        dim: channels.
        kernel_size: k.
        deploy: in merged form.
    """

    def __init__(self, dim: int, kernel_size: int, deploy: bool = False):
        super().__init__(dim, dim, kernel_size, groups=dim, deploy=deploy)

    def build(self) -> None:
        k, dim = self.kernel_size[0], self.in_channels
        self.conv1 = ConvNorm(dim, dim, k, groups=dim)
        if k > 3:
            self.conv2 = ConvNorm(dim, dim, k - 4, groups=dim)
        self.strip_conv1 = ConvNorm(dim, dim, (1, k), groups=dim)
        self.strip_conv2 = ConvNorm(dim, dim, (k, 1), groups=dim)

    def apart(self, x: Tensor) -> Tensor:
        first, *rest = self.children()
        y = first(x)
        for branch in rest:
            y = y + branch(x)
        return y

    def kernel(self) -> tuple[Tensor, Tensor]:
        folded = [reparam.fold(b.c.weight.double(), None, b.bn) for b in self.children() if isinstance(b, ConvNorm)]
        weight = torch.stack([reparam.centred(w, self.kernel_size) for w, _ in folded]).sum(0)
        kind = self.conv1.c.weight.dtype
        return weight.to(kind), torch.stack([b for _, b in folded]).sum(0).to(kind)


class StripAttention(MetaMixer):
    """FFNified attention whose keys and values are trained with strips.

    Args:
        dim, kernel_size, deploy: as in :class:`StripDW`.
    """

    steps = ("fc", "conv1", "act", "conv2")

    def __init__(self, dim: int, kernel_size: int, deploy: bool = False):
        key, value = (StripDW(dim, kernel_size, deploy) for _ in range(2))
        super().__init__(ConvNorm(dim, dim, deploy=deploy), key, nn.GELU(), value)


class StripChannelMixer(MetaMixer):
    """The feed-forward block of the head: its depth-wise convolution is trained with strips.

    Args:
        dim, kernel_size, deploy: as in :class:`StripDW`.
        ratio: hidden width over ``dim``.
    """

    steps = ("conv", "fc1", "act", "fc2")

    def __init__(self, dim: int, kernel_size: int, ratio: int, deploy: bool = False):
        query = StripDW(dim, kernel_size, deploy)
        super().__init__(query, nn.Conv2d(dim, ratio * dim, 1), nn.GELU(), nn.Conv2d(ratio * dim, dim, 1))


class ConvDownsampling(Merging):
    """3x3 convolution of stride 2 to twice the new width, GELU, 1x1 convolution; each with BatchNorm."""

    def __init__(self, in_dim: int, out_dim: int, deploy: bool = False):
        super().__init__()
        self.proj = nn.Sequential(
            ConvNorm(in_dim, 2 * out_dim, 3, 2, deploy=deploy),
            nn.GELU(),
            ConvNorm(2 * out_dim, out_dim, deploy=deploy),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class FFNetSeg(FFNetFrame):
    """The backbone of FFNet-seg, with the classifier that it is pre-trained under.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns its 1280 features.
        depths, dims: blocks and width of each stage.
        token_kernel_sizes: kernel of FFNified attention, by stage.
        drop_path_rate: of the last block; it rises linearly from 0.
        drop_rate: dropout before the classifier.
        deploy: build the merged form. A file in either form loads into either.
    """

    native = "offprint"
    dialects = (Dialect("authors", ((r"^head2\.3\.", "head."),)),)
    head_modules = ("head1", "head2", "head")
    prefixes = ("backbone.",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 4, 18, 5),
        dims: Sequence[int] = (96, 192, 384, 768),
        token_kernel_sizes: Sequence[int] = (3, 3, 9, 9),
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        deploy: bool = False,
    ):
        super().__init__(drop_rate)
        if not len(depths) == len(dims) == len(token_kernel_sizes):
            raise OffprintError(
                f"depths={tuple(depths)}, dims={tuple(dims)}, token_kernel_sizes={tuple(token_kernel_sizes)}; give one of each "
                "for every stage"
            )
        self.in_chans, self.num_classes, self.num_features, self.hidden = in_chans, num_classes, dims[-1], 1280
        self.pyramid_channels = list(dims)
        stem = nn.Sequential(
            ConvNorm(in_chans, 64, 3, 2, deploy=deploy), nn.GELU(),
            ConvNorm(64, 64, 3, deploy=deploy), nn.GELU(),
            ConvNorm(64, dims[0], 3, deploy=deploy),
            ConvNorm(dims[0], dims[0], 3, 2, deploy=deploy),
        )  # fmt: skip
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages: list[tuple[nn.Module | None, Sequence[nn.Module]]] = []
        for i, (depth, dim, kernel) in enumerate(zip(depths, dims, token_kernel_sizes, strict=True)):
            blocks = [
                MixerBlock(
                    StripAttention(dim, kernel, deploy), ChannelMixer(dim, 3, 4, deploy), dim, 1e-5, False, next(rates)
                )
                for _ in range(depth)
            ]
            stages.append((ConvDownsampling(dims[i - 1], dim, deploy) if i else None, blocks))
        self.assemble(stem, stages)
        self.head1 = nn.Sequential(ConvNorm(dims[-1], 1024, deploy=deploy), nn.Hardswish())
        self.head2 = nn.Sequential(nn.Linear(1024, self.hidden), nn.LayerNorm(self.hidden, eps=1e-6), nn.Hardswish())
        self.head = nn.Linear(self.hidden, num_classes) if num_classes else nn.Identity()
        init_(self)

    def pooled(self, x: Tensor) -> Tensor:
        """1x1 convolution to 1024, mean over the map, linear layer to 1280, LayerNorm."""
        x = self.head1(x)
        if self.global_pool:
            return self.head2(x.mean((2, 3)))
        return self.head2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FFNetSegHead(Merging):
    """The head of FFNet-seg: maps at strides 8, 16 and 32, enlarged to the first and fused, three blocks, wider, classified.

    Args:
        before: the maps that come in, fine to coarse.
        num_classes: classes.
        width, depth: channels and blocks.
        kernel_size: of all depth-wise convolutions.
        expansion_ratio: hidden width of the blocks over ``width``.
        final_expansion_ratio: channels that are classified over ``width``.
        drop_rate: dropout before the classifier.
        drop_path_rate: of the last block; it rises linearly from 0.
        deploy: in merged form.
    """

    classifier = "conv_seg"
    prefixes = ("decode_head.",)  # in the authors' segmentation checkpoints

    def __init__(
        self,
        before: Maps,
        num_classes: int = 150,
        width: int = 256,
        depth: int = 3,
        kernel_size: int = 9,
        expansion_ratio: int = 4,
        final_expansion_ratio: int = 4,
        drop_rate: float = 0.1,
        drop_path_rate: float = 0.1,
        deploy: bool = False,
    ):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, tuple(before.channels)
        total, wide = sum(before.channels), final_expansion_ratio * width
        self.squeeze = nn.Sequential(
            ConvNorm(total, total, deploy=deploy), nn.GELU(), ConvNorm(total, width, deploy=deploy)
        )
        self.head_blocks = nn.Sequential(
            *(
                HeadBlock(width, kernel_size, expansion_ratio, rate, deploy)
                for rate in drop_path_rates(drop_path_rate, depth)
            )
        )
        self.align = nn.Sequential(ConvNorm(width, wide, deploy=deploy), nn.GELU())
        self.dropout = nn.Dropout2d(drop_rate)
        self.conv_seg = nn.Conv2d(wide, num_classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Logits (B, num_classes, H_0, W_0) at the finest map's size, or enlarged to ``size``."""
        got = tuple(x.shape[1] for x in maps)
        if got != self.in_channels:
            raise OffprintError(
                f"FFNetSegHead was built for maps of {self.in_channels} channels, fine to coarse, got {got}"
            )
        first, *rest = maps
        grown = [F.interpolate(x, first.shape[-2:], mode="bicubic", align_corners=False) for x in rest]
        x = self.align(self.head_blocks(self.squeeze(torch.cat([first, *grown], 1))))
        logits = self.conv_seg(self.dropout(x))
        return logits if size is None else F.interpolate(logits, size, mode="bilinear", align_corners=False)


class HeadBlock(nn.Module):
    """Token mixer and channel mixer of the head; a GELU follows each sum."""

    def __init__(self, dim: int, kernel_size: int, ratio: int, drop_path: float, deploy: bool):
        super().__init__()
        self.token_mixer = Residual(StripAttention(dim, kernel_size, deploy), dim, None, drop_path)
        self.channel_mixer = Residual(StripChannelMixer(dim, kernel_size, ratio, deploy), dim, None, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.channel_mixer(F.gelu(self.token_mixer(x))))


# -- forecasting --------------------------------------------------------------------------------------------------------
class PerGroup(nn.Conv1d):
    """A 1x1 convolution of groups as one product of matrices for each: (B, G, in, T) to (B, G, out, T).

    Args:
        groups: G.
        inputs, outputs: channels of a group.
    """

    def __init__(self, groups: int, inputs: int, outputs: int):
        super().__init__(groups * inputs, groups * outputs, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.groups, -1, self.weight.shape[1])
        bias = torch.zeros(()) if self.bias is None else self.bias.view(self.groups, -1, 1)
        return weight @ x + bias


class RepDW1d(Mergeable):
    """A long and a short depth-wise convolution along time, side by side, each with its BatchNorm.

    Args:
        channels: of the series.
        kernel_size, small: taps of the two.
        deploy: in merged form.
    """

    def __init__(self, channels: int, kernel_size: int, small: int, deploy: bool = False):
        self.small = small
        super().__init__(channels, channels, (kernel_size,), groups=channels, deploy=deploy)

    def build(self) -> None:
        for name, size in (("lkb_origin", self.kernel_size[0]), ("small_conv", self.small)):
            conv = nn.Conv1d(
                self.in_channels, self.in_channels, size, padding=size // 2, groups=self.groups, bias=False
            )
            branch = nn.Sequential()
            branch.add_module("conv", conv)
            branch.add_module("bn", nn.BatchNorm1d(self.in_channels))
            self.add_module(name, branch)

    def apart(self, x: Tensor) -> Tensor:
        return self.lkb_origin(x) + self.small_conv(x)

    def kernel(self) -> tuple[Tensor, Tensor]:
        branches = (self.lkb_origin, self.small_conv)
        (large, bias), (small, shift) = (reparam.fold(b.conv.weight.double(), None, b.bn) for b in branches)
        kind = self.lkb_origin.conv.weight.dtype
        return (large + reparam.centred(small, self.kernel_size)).to(kind), (bias + shift).to(kind)


class SeriesTokenMixer(nn.Module):
    """Two 1x1 convolutions that mix the variables of a channel, then the channels of a variable; two long ones along time.

    Args:
        variables, dim: M and D.
        kernel_size: taps of the long convolutions.
    """

    def __init__(self, variables: int, dim: int, kernel_size: int):
        super().__init__()
        rows = variables * dim
        self.ffnpw1 = PerGroup(dim, variables, 2 * variables)
        self.ffnpw2 = PerGroup(variables, 2 * dim, dim)
        self.norm = nn.BatchNorm1d(dim)
        self.dw1, self.dw2 = (
            nn.Conv1d(rows, rows, kernel_size, padding=kernel_size // 2, groups=rows) for _ in range(2)
        )
        self.drop1, self.drop2 = nn.Dropout(0.3), nn.Dropout(0.15)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D, T) to the same."""
        b, m, d, t = x.shape
        y = F.gelu(self.drop1(self.ffnpw1(x.transpose(1, 2))))  # (B, D, 2M, T)
        y = self.drop2(self.ffnpw2(y.transpose(1, 2).reshape(b, m, 2 * d, t)))
        y = self.norm(y.reshape(b * m, d, t)).view(b, m * d, t)
        return x + self.dw2(F.gelu(self.dw1(y))).view(b, m, d, t)


class SeriesChannelMixer(nn.Module):
    """A long convolution along time; two 1x1 ones that mix the channels of a variable, then the variables of a channel.

    Args:
        variables, dim: M and D.
        ratio: hidden width over D.
        kernel_size, small: taps of the long convolution and of the short one beside it.
        drop_rate: dropout between the two mixes.
        deploy: in merged form.
    """

    def __init__(
        self, variables: int, dim: int, ratio: int, kernel_size: int, small: int, drop_rate: float, deploy: bool
    ):
        super().__init__()
        self.dw = RepDW1d(variables * dim, kernel_size, small, deploy)
        self.norm = nn.BatchNorm1d(dim)
        self.ffnpw1 = PerGroup(variables, dim, ratio * dim)
        self.ffnpw2 = PerGroup(dim, ratio * variables, variables)
        self.drop1, self.drop2 = nn.Dropout(drop_rate), nn.Dropout(0.15)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D, T) to the same."""
        b, m, d, t = x.shape
        y = self.norm(self.dw(x.reshape(b, m * d, t)).view(b * m, d, t)).view(b, m, d, t)
        y = F.gelu(self.drop1(self.ffnpw1(y)))  # (B, M, rD, T)
        y = self.drop2(self.ffnpw2(y.transpose(1, 2).reshape(b, d, -1, t)))
        return x + y.transpose(1, 2)


class SeriesBlock(nn.Module):
    """The two mixers."""

    def __init__(self, token: nn.Module, channel: nn.Module):
        super().__init__()
        self.token_mixer, self.channel_mixer = token, channel

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.token_mixer(x))


class SeriesStage(nn.Module):
    """Blocks in a row."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class RevIN(nn.Module):
    """Reversible instance normalisation: each series by its own mean and deviation, and a learnt scale and shift per variable.

    Args:
        variables: M.
    """

    eps = 1e-5

    def __init__(self, variables: int):
        super().__init__()
        self.affine_weight = nn.Parameter(torch.ones(variables))
        self.affine_bias = nn.Parameter(torch.zeros(variables))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Series (B, M, T) normalised, and their mean and deviation (B, M, 1)."""
        mean = x.mean(-1, keepdim=True)
        std = (x.var(-1, keepdim=True, unbiased=False) + self.eps).sqrt()
        return (x - mean) / std * self.affine_weight[:, None] + self.affine_bias[:, None], mean, std

    def back(self, y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Normalised series (B, M, T') as they were."""
        return (y - self.affine_bias[:, None]) / (self.affine_weight[:, None] + self.eps**2) * std + mean


class FFNetForecast(Merging):
    """Series (B, M, L) to their next H steps (B, M, H).

    Args:
        nvars: M, variables.
        seq_len: L, steps that are given.
        target_window: H, steps that are forecast.
        ffn_ratio: hidden width of the channel mixer over its width; 2, 8 or 12 by data set.
        dim, depth: channels D and blocks.
        kernel_size, small: taps of the convolutions along time.
        drop_rate, head_drop_rate: dropout in the channel mixer and before the last layer.
        deploy: build the merged form. A file in either form loads into either.
    """

    patch, stride = 4, 2  # of the first convolution
    series_arguments = {"variables": "nvars", "context": "seq_len", "horizon": "target_window"}  # noqa: RUF012
    native = "offprint"
    # parts of the authors' class that their forward pass does not use are in their files all the same
    dialects = (
        Dialect(
            "authors",
            ((r"\.dw\.lkb_reparam\.", ".dw."),),
            ignore=r"^(te_patch|lat_layer|smooth_layer|up_sample_conv|downsample_layers\.[1-9])\b",
        ),
    )

    def __init__(
        self,
        nvars: int = 7,
        seq_len: int = 96,
        target_window: int = 96,
        ffn_ratio: int = 2,
        dim: int = 64,
        depth: int = 1,
        kernel_size: int = 51,
        small: int = 5,
        drop_rate: float = 0.7,
        head_drop_rate: float = 0.0,
        deploy: bool = False,
    ):
        super().__init__()
        for name, value, least in (
            ("nvars", nvars, 1),
            ("seq_len", seq_len, self.stride),
            ("target_window", target_window, 1),
        ):
            if value < least:
                raise OffprintError(f"{name}={value}; give {least} or more")
        self.nvars, self.seq_len, self.target_window = nvars, seq_len, target_window
        self.revin_layer = RevIN(nvars)
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv1d(1, dim, self.patch, self.stride), nn.BatchNorm1d(dim))]
        )
        blocks = [
            SeriesBlock(
                SeriesTokenMixer(nvars, dim, kernel_size),
                SeriesChannelMixer(nvars, dim, ffn_ratio, kernel_size, small, drop_rate, deploy),
            )
            for _ in range(depth)
        ]
        self.stages = nn.ModuleList([SeriesStage(blocks)])
        self.head = nn.Sequential()
        self.head.add_module("linear", nn.Linear(dim * (seq_len // self.stride), target_window))
        self.head.add_module("dropout", nn.Dropout(head_drop_rate))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.shape[1:] != (self.nvars, self.seq_len):
            raise OffprintError(
                f"expected series of shape (B, {self.nvars}, {self.seq_len}), got {tuple(x.shape)}; build the network for the "
                "variables and steps of the data (nvars, seq_len)"
            )
        x, mean, std = self.revin_layer(x)
        batch = x.shape[0]
        rows = F.pad(x.reshape(-1, 1, self.seq_len), (0, self.patch - self.stride), mode="replicate")
        y = self.downsample_layers[0](rows)
        y = self.stages[0](y.view(batch, self.nvars, *y.shape[1:]))
        return self.revin_layer.back(self.head(y.flatten(2)), mean, std)

    def example_input(self, batch: int = 1) -> Tensor:
        """Random series."""
        weight = self.revin_layer.affine_weight
        return torch.randn(batch, self.nvars, self.seq_len, device=weight.device, dtype=weight.dtype)


# -- the registry -------------------------------------------------------------------------------------------------------
_LIGHT, _FULL = {"depth": 36}, {"depth": 48}
_SR = {"ffnet_sr_light": _LIGHT, "ffnet_sr": _FULL}  # the authors' names, and these with the scale that they released
_SR_WEIGHTS = {
    name: {"released": Weights(f"{RELEASE}/{file}.pth", "authors", "authors", "Apache-2.0")}
    for name, file in (("ffnet_sr_light", "FFNetSR_light_DIV2K"), ("ffnet_sr", "FFNetSR_DF2K"))
}
_BOTH = lambda table: {**table, **{f"{name}_x2": row for name, row in table.items()}}  # noqa: E731
register(
    paper="metamixer",
    kind="signal",
    task="restoration",
    build=FFNetSR,
    variants=_BOTH(_SR),
    input_size=None,
    preprocessing={},
    weights=_BOTH(_SR_WEIGHTS),
    recipe={  # the authors add 0.02 of an L1 in the Fourier domain; 500,000 steps of patches of 96 pixels
        "optimizer": "adam", "lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, "min_lr": 1e-5, "warmup_epochs": 0,
        "batch_size": 64,
    },
)  # fmt: skip
register(
    paper="metamixer",
    kind="backbone",
    build=FFNetSeg,
    variants={"ffnet_seg": {}},
    input_size=(3, 256, 256),
    weights={
        "ffnet_seg": {"in1k": Weights(f"{RELEASE}/ffnet_seg.pth.tar", "authors", "authors", "Apache-2.0")},
    },
)


def ffnet_segmenter(num_classes: int = 150, in_chans: int = 3, drop_rate: float = 0.1, **backbone) -> Composed:
    """FFNet-seg: the backbone and the head; (B, C, H, W) to logits (B, num_classes, H, W).

    Args:
        num_classes: classes.
        in_chans: image channels.
        drop_rate: dropout before the classifier.
        **backbone: arguments of :class:`FFNetSeg`.
    """
    head = {"name": "ffnet_seg_head", "drop_rate": drop_rate}
    return compose({"name": "ffnet_seg", **backbone}, head=head, num_classes=num_classes, in_chans=in_chans)


register_part("ffnet_seg_head", "head", FFNetSegHead, paper="metamixer", task="segmentation", takes=last(3))
_CLASSES = {"ade20k": 150, "cityscapes": 19}
_FILES = {data: f"ffnet_seg_sys_{side}_160k_{data}" for data, side in (("ade20k", 512), ("cityscapes", 1024))}
register(
    paper="metamixer",
    kind="segmentation",
    task="segmentation",
    build=ffnet_segmenter,
    variants={f"ffnet_seg_{data}": {"num_classes": classes} for data, classes in _CLASSES.items()},
    input_size=(3, 512, 512),
    input_sizes={"ffnet_seg_cityscapes": (3, 1024, 1024)},
    preprocessing={**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0},
    weights={
        f"ffnet_seg_{data}": {"released": Weights(f"{RELEASE}/{file}.pth", "authors", "authors", "Apache-2.0")}
        for data, file in _FILES.items()
    },
)
register(
    paper="metamixer",
    kind="signal",
    task="forecasting",
    build=FFNetForecast,
    variants={"ffnet_forecast": {}},
    input_size=None,
    preprocessing={},
    recipe={"optimizer": "adam", "lr": 1e-4, "epochs": 100, "batch_size": 512, "patience": 20, "data": "etth1"},
)
