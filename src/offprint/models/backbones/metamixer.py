r"""MetaMixer Is All You Need (Yun, Lee, Ro; arXiv 2406.02021): FFNet, networks of FFNified attention.

Self-attention and the feed-forward block are the same machine: a query is compared with keys, the result is activated, and with it
values are gathered. MetaMixer keeps that frame and leaves open what the four steps are,

.. math:: y = \mathrm{value}\big(\mathrm{act}(\mathrm{key}(\mathrm{query}(x)))\big).

FFNified attention mixes places: a 1x1 convolution asks, two depth-wise convolutions are keys and values, and a GELU stands where
attention has its softmax. The channel mixer is the same frame with the roles turned: a depth-wise convolution asks, and two 1x1
convolutions are keys and values,

.. math::
    x \leftarrow x + s_1 \odot \mathrm{DW}\,\mathrm{GELU}\,\mathrm{DW}\,\mathrm{BN}\,W x, \qquad
    x \leftarrow x + s_2 \odot W_2\,\mathrm{GELU}\,W_1\,\mathrm{BN}\,\mathrm{DW}\,x,

with scales :math:`s` in the two largest networks only, no norm before the branches and nothing after the sums. Large kernels are
trained as a 7x7 and a 3x3 one, each with a BatchNorm. All of these fold: merged, the network is convolutions, GELUs, sums and the
last BatchNorm (:func:`offprint.deploy`, or ``deploy=True`` for a file in that form). The paper counts that form.

Parameter names are those of the authors' code (github.com/ysj9909/FFNet, Apache-2.0). The forms for enlarging, segmentation and
forecasting are in :mod:`offprint.models.backbones._metamixer_forms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.registry import IMAGENET, Weights, register
from offprint.models.released import top
from offprint.nn import DropPath, reparam
from offprint.nn.drop import drop_path_rates
from offprint.nn.mergeable import ConvNorm, Mergeable, to_one_form

LARGE = 7  # the kernel that is trained with a smaller one beside it
RATIO = 3  # hidden width of the channel mixer over its width


class Merging(nn.Module):
    """What holds mergeable layers: merges them all, and takes files in either form."""

    def merge(self) -> None:
        """Every layer of branches becomes one convolution, in place; merging again changes nothing.

        Raises:
            OffprintError: in training mode.
        """
        for module in list(self.modules()):
            if isinstance(module, Mergeable):
                module.merge()

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state in the model's form; a merged file merges the model."""
        return to_one_form(self, state)


class MetaMixer(Merging):
    """The frame: ``value(act(key(query(x))))``, any four modules; their names are a subclass's own.

    Args:
        query, key, act, value: the steps, in this order.
    """

    steps: ClassVar[tuple[str, str, str, str]] = ("query", "key", "act", "value")

    def __init__(self, query: nn.Module, key: nn.Module, act: nn.Module, value: nn.Module):
        super().__init__()
        for name, module in zip(self.steps, (query, key, act, value), strict=True):
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.steps:
            x = getattr(self, name)(x)
        return x


class RepDW(Mergeable):
    """A 7x7 and a 3x3 convolution side by side, each with its BatchNorm, one input channel to a group.

    Args:
        in_channels, out_channels: ``out_channels`` is a multiple.
        kernel_size: of the larger; the smaller has half of it.
        stride, deploy: as in :class:`~offprint.nn.mergeable.Mergeable`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = LARGE, stride: int = 1, deploy: bool = False
    ):
        if out_channels % in_channels:
            raise OffprintError(
                f"widths {in_channels} and {out_channels}: each input channel has its own kernels, so that the second width must "
                "be a multiple of the first"
            )
        super().__init__(in_channels, out_channels, kernel_size, stride, in_channels, deploy)

    def build(self) -> None:
        rest = (self.stride, self.groups)
        self.conv = ConvNorm(self.in_channels, self.out_channels, self.kernel_size, *rest)
        self.conv1 = ConvNorm(self.in_channels, self.out_channels, self.kernel_size[0] // 2, *rest)

    def apart(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x)

    def kernel(self) -> tuple[Tensor, Tensor]:
        (large, bias), (small, shift) = (reparam.fold(b.c.weight.double(), None, b.bn) for b in (self.conv, self.conv1))
        kind = self.conv.c.weight.dtype
        return (large + reparam.centred(small, self.kernel_size)).to(kind), (bias + shift).to(kind)


class NormFirst(nn.Module):
    """A BatchNorm, then a 1x1 convolution without bias."""

    def __init__(self, dim: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)
        self.c = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.bn(x))


class Skip(Mergeable):
    """The map plus :class:`NormFirst` of it; merged, a 1x1 convolution by :math:`W \\mathrm{diag}(\\gamma/\\sigma) + I`."""

    def build(self) -> None:
        self.conv = NormFirst(self.in_channels)

    def apart(self, x: Tensor) -> Tensor:
        return self.conv(x) + x

    def kernel(self) -> tuple[Tensor, Tensor]:
        weight, bias = reparam.fold_before(self.conv.bn, self.conv.c.weight.double(), None)
        kind, identity = self.conv.c.weight.dtype, torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
        return (weight + identity[:, :, None, None]).to(kind), bias.to(kind)


class Downsampling(Merging):
    """Half the side, another width: :class:`RepDW` of stride 2, then :class:`Skip`.

    Args:
        in_dim, out_dim: widths; the second a multiple of the first.
        deploy: in merged form.
    """

    def __init__(self, in_dim: int, out_dim: int, deploy: bool = False):
        super().__init__()
        self.proj = nn.Sequential(
            RepDW(in_dim, out_dim, stride=2, deploy=deploy), Skip(out_dim, out_dim, deploy=deploy)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, H, W) to (B, out_dim, ceil(H / 2), ceil(W / 2))."""
        return self.proj(x)


def _depthwise(dim: int, kernel_size: int, deploy: bool) -> nn.Module:
    """The depth-wise convolution of FFNified attention: in two branches where it is large, else plain with a bias and no norm."""
    if kernel_size == LARGE:
        return RepDW(dim, dim, kernel_size, deploy=deploy)
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


class FFNifiedAttention(MetaMixer):
    """The token mixer: 1x1 convolution with BatchNorm (query), depth-wise convolution (key), GELU, depth-wise convolution (value).

    Args:
        dim: channels C.
        kernel_size: of keys and values.
        deploy: in merged form.
    """

    steps = ("fc", "conv1", "act", "conv2")

    def __init__(self, dim: int, kernel_size: int = LARGE, deploy: bool = False):
        super().__init__(
            ConvNorm(dim, dim, deploy=deploy),
            _depthwise(dim, kernel_size, deploy),
            nn.GELU(),
            _depthwise(dim, kernel_size, deploy),
        )


class ChannelMixer(MetaMixer):
    """The feed-forward block: depth-wise convolution with BatchNorm (query), 1x1 to ``ratio * dim`` (key), GELU, 1x1 back (value).

    Args:
        dim: channels C.
        kernel_size: of the depth-wise convolution.
        ratio: hidden width over C.
        deploy: in merged form.
    """

    steps = ("conv", "fc1", "act", "fc2")

    def __init__(self, dim: int, kernel_size: int = LARGE, ratio: int = RATIO, deploy: bool = False):
        query = (
            RepDW(dim, dim, kernel_size, deploy=deploy)
            if kernel_size == LARGE
            else ConvNorm(dim, dim, kernel_size, groups=dim, deploy=deploy)
        )
        super().__init__(query, nn.Conv2d(dim, ratio * dim, 1), nn.GELU(), nn.Conv2d(ratio * dim, dim, 1))


class Residual(nn.Module):
    """``x + drop(main(x) * layer_scale)``.

    Args:
        main: the branch.
        dim: channels.
        scale: start of the layer scale; ``None`` for none.
        drop_path: rate at which the branch is dropped.
    """

    def __init__(self, main: nn.Module, dim: int, scale: float | None = None, drop_path: float = 0.0):
        super().__init__()
        self.main = main
        self.drop_path = DropPath(drop_path)
        self.layer_scale = None if scale is None else nn.Parameter(torch.full((dim, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        return x + self.drop_path(y if self.layer_scale is None else y * self.layer_scale)


class ChannelGate(nn.Module):
    """Squeeze-excite to a quarter of the channels, in a multiple of 8; no released network has it."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = max(8, int(dim / 4 + 4) // 8 * 8)
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class MixerBlock(Merging):
    """Any token mixer and any channel mixer, each in a residual.

    Args:
        token, channel: the mixers.
        dim: channels.
        scale: start of the scales on both branches; ``None`` for none.
        use_se: squeeze-excite behind the token mixer.
        drop_path: rate at which a branch is dropped.
    """

    def __init__(
        self,
        token: nn.Module,
        channel: nn.Module,
        dim: int,
        scale: float | None = None,
        use_se: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        gate = ChannelGate(dim) if use_se else nn.Identity()
        self.token_mixer = nn.Sequential(Residual(token, dim, scale, drop_path), gate)
        self.channel_mixer = Residual(channel, dim, scale, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_mixer(self.token_mixer(x))


class FFBlock(MixerBlock):
    """FFNified attention and the feed-forward block.

    Args:
        dim: channels.
        token_kernel_size, channel_kernel_size: kernels of the depth-wise convolutions of the two.
        use_se: squeeze-excite behind the token mixer.
        use_layer_scale: a learnt scale on both branches, from 1e-6.
        drop_path: rate at which a branch is dropped.
        deploy: in merged form.
    """

    def __init__(
        self,
        dim: int,
        token_kernel_size: int = LARGE,
        channel_kernel_size: int = LARGE,
        use_se: bool = False,
        use_layer_scale: bool = False,
        drop_path: float = 0.0,
        deploy: bool = False,
    ):
        token = FFNifiedAttention(dim, token_kernel_size, deploy)
        channel = ChannelMixer(dim, channel_kernel_size, deploy=deploy)
        super().__init__(token, channel, dim, 1e-6 if use_layer_scale else None, use_se, drop_path)


def init_(model: nn.Module) -> None:
    """Truncated normals of 0.02, biases at 0, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class FFNetFrame(Backbone, Merging):
    """What all FFNets for pictures share: a stem of stride 4, stages of blocks, each but the first behind a downsampling."""

    input_layers = ("patch_embed.0.c", "patch_embed.0")

    patch_embed: nn.Sequential
    stages: nn.ModuleList

    def assemble(self, stem: nn.Sequential, stages: Sequence[tuple[nn.Module | None, Sequence[nn.Module]]]) -> None:
        """Take the stem, and of each stage its downsampling and its blocks."""
        self.patch_embed = stem
        self.stages = nn.ModuleList(
            nn.Sequential(*([] if down is None else [down]), *blocks) for down, blocks in stages
        )
        self.depths = [len(blocks) for _, blocks in stages]
        self.pyramid_reductions = [4 * 2**i for i in range(len(stages))]
        self.pyramid_modules = [f"stages.{i}" for i in range(len(stages))]

    def merge(self) -> None:
        """Every layer of branches becomes one convolution, in place."""
        super().merge()
        self._remember(deploy=True)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state in the model's form; a merged file merges the model."""
        state = super().adapt_state(state)
        if "patch_embed.0.weight" in state:
            self._remember(deploy=True)
        return state

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block with the downsampling before it."""
        groups = [["patch_embed"]]
        for i, (stage, depth) in enumerate(zip(self.stages, self.depths, strict=False)):
            first = len(stage) - depth
            groups.append([f"stages.{i}.{j}" for j in range(first + 1)])
            groups += [[f"stages.{i}.{j}"] for j in range(first + 1, len(stage))]
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The map of each stage, at strides 4, 8, 16, 32."""
        x = self.patch_embed(x)
        for stage in self.stages:
            x = self.run(stage, x)
            yield x


class FFNet(FFNetFrame):
    """Two strided convolutions, four stages of :class:`FFBlock`, BatchNorm, mean, linear layer.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the normalised, pooled features.
        depths: blocks of each stage.
        dims: width of each stage, each a multiple of the one before.
        token_kernel_sizes: kernel of FFNified attention, by stage.
        channel_kernel_size: kernel of the channel mixers' depth-wise convolutions.
        use_layer_scale, use_se: as in :class:`FFBlock`; squeeze-excite in every other block.
        stem_width: channels between the two convolutions of the stem.
        drop_path_rate: of the last block; it rises linearly from 0.
        drop_rate: dropout before the classifier.
        deploy: build the merged form. A file in either form loads into either.

    Any image size works.
    """

    native = "authors"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (80, 160, 320, 640),
        token_kernel_sizes: Sequence[int] = (3, 3, 7, 7),
        channel_kernel_size: int = 3,
        use_layer_scale: bool = False,
        use_se: bool = False,
        stem_width: int = 64,
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
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.pyramid_channels = list(dims)
        stem = nn.Sequential(
            ConvNorm(in_chans, stem_width, 3, 2, deploy=deploy),
            nn.GELU(),
            ConvNorm(stem_width, dims[0], 3, 2, deploy=deploy),
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages: list[tuple[nn.Module | None, Sequence[nn.Module]]] = []
        for i, (depth, dim, kernel) in enumerate(zip(depths, dims, token_kernel_sizes, strict=True)):
            blocks = [
                FFBlock(dim, kernel, channel_kernel_size, use_se and j % 2 == 0, use_layer_scale, next(rates), deploy)
                for j in range(depth)
            ]
            stages.append((Downsampling(dims[i - 1], dim, deploy) if i else None, blocks))
        self.assemble(stem, stages)
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        init_(self)

    def finish(self, x: Tensor) -> Tensor:
        """The last map, normalised."""
        return self.norm(x)

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        return self.norm(x) if norm and self.whole and index == len(self.pyramid_channels) - 1 else x


VARIANTS = {
    "ffnet_1": {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640), "channel_kernel_size": 3},
    "ffnet_2": {"depths": (3, 3, 15, 3), "dims": (88, 176, 352, 704), "channel_kernel_size": 7},
    "ffnet_3": {
        "depths": (4, 4, 22, 5), "dims": (96, 192, 384, 768), "channel_kernel_size": 7, "use_layer_scale": True,
    },
    "ffnet_4": {
        "depths": (4, 4, 27, 3), "dims": (128, 256, 512, 1024), "channel_kernel_size": 7, "use_layer_scale": True,
    },
}  # fmt: skip
RELEASE = "https://github.com/ysj9909/FFNet/releases/download/v1.0"
_CROP = {"ffnet_1": 0.9, "ffnet_2": 0.9, "ffnet_3": 0.95, "ffnet_4": 0.95}
_RELEASED = {  # model: {tag: (end of the file's name, side, top-1)}
    "ffnet_1": {"in1k": ("", 256, 81.3), "distilled_in1k": ("_distillation", 256, 82.1)},
    "ffnet_2": {"in1k": ("", 256, 82.9), "distilled_in1k": ("_distillation", 256, 83.7)},
    "ffnet_3": {
        "in1k": ("", 256, 83.9), "distilled_in1k": ("_distillation", 256, 84.5), "in1k_384": ("_384", 384, 84.5),
    },
    "ffnet_4": {"in1k_384": ("_384", 384, 85.3)},
}  # fmt: skip
WEIGHTS = {
    name: {
        tag: Weights(
            f"{RELEASE}/{name}{end}.pth.tar", "authors", "authors", "Apache-2.0", input_size=(3, side, side),
            metrics=top(one), metrics_source="ysj9909/FFNet@f3c3e4c README",
        )
        for tag, (end, side, one) in rows.items()
    }
    for name, rows in _RELEASED.items()
}  # fmt: skip
RECIPE = {  # 20 epochs at the last rate follow
    "optimizer": "adamw",
    "lr": 1e-3,
    "reference_batch": 1024,
    "batch_size": 1024,
    "weight_decay": 0.05,
    "epochs": 300,
    "min_lr": 1e-5,
    "warmup_epochs": 5,
    "warmup_lr": 1e-6,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "cutmix": 1.0,
    "mixup": 0.2,
    "label_smoothing": 0.1,
    "random_erasing": 0.25,
    "ema_decay": 0.9995,
    "input_size": 256,
    "interpolation": "bicubic",
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
_TRAINING = {
    "ffnet_1": {"drop_path_rate": 0.1},
    "ffnet_2": {"drop_path_rate": 0.15},
    "ffnet_3": {"drop_path_rate": 0.35, "mixup": 0.8},
    "ffnet_4": {"drop_path_rate": 0.4, "mixup": 0.8},
}
_FINE = {  # at 384 pixels
    **RECIPE, "mixup": 0.8, "lr": 5e-6, "weight_decay": 1e-8, "epochs": 30, "schedule": "constant", "warmup_epochs": 0,
    "input_size": 384, "start": "training",
}  # fmt: skip
for _crop in sorted(set(_CROP.values())):
    _names = [name for name, crop in _CROP.items() if crop == _crop]
    register(
        paper="metamixer",
        kind="backbone",
        build=FFNet,
        variants={name: VARIANTS[name] for name in _names},
        input_size=(3, 256, 256),
        preprocessing={**IMAGENET, "crop_pct": _crop},
        weights={name: WEIGHTS[name] for name in _names},
        recipe=RECIPE,
        exceptions={
            "training": {name: _TRAINING[name] for name in _names},
            "finetuning": {
                name: {**_FINE, "drop_path_rate": rate}
                for name, rate in (("ffnet_3", 0.4), ("ffnet_4", 0.5))
                if name in _names
            },
        },
    )
