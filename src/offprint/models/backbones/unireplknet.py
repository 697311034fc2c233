r"""UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image Recognition
(Ding, Zhang, Ge, Zhao, Song, Yue, Shan; CVPR 2024; arXiv 2311.15599).

A large kernel sees wide without depth, a small one adds depth cheaply. The network therefore has few 13x13 depth-wise
convolutions and, in its larger sizes, two blocks with 3x3 ones behind each (Sec. 3.1). Both kinds of block are

.. math:: x \leftarrow x + \gamma \odot \mathrm{BN}\big(W_2\, \mathrm{GRN}(\mathrm{GELU}(W_1\, \mathrm{SE}(
          \mathrm{BN}(\mathrm{DW}_K(x)))))\big), \qquad W_1 \in \mathbb{R}^{4C \times C},\ W_2 \in \mathbb{R}^{C \times 4C}.

In training a large kernel is a Dilated Reparam Block: beside the :math:`K \times K` kernel :math:`w_0` stand small kernels
:math:`w_j` of size :math:`k_j` and dilation :math:`r_j`, each followed by a BatchNorm of its own,

.. math:: \mathrm{DW}_K(x) = \mathrm{BN}_0(w_0 * x) + \sum_j \mathrm{BN}_j(w_j *_{r_j} x),

and since a dilated kernel is a sparse one of side :math:`r_j (k_j - 1) + 1 \le K`, all of it merges into one convolution
(Sec. 3.2, Fig. 3). So do the norms, the layer scale :math:`\gamma`, and GRN's bias, which :math:`W_2` takes along.

Other data are first made into a map, and then meet the same network: :mod:`offprint.models.backbones._unireplknet_inputs`.

LayerNorms have eps 1e-6, BatchNorms 1e-5. Parameter names are those of the authors' code, in training and merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones._unireplknet_inputs import (
    PointProjection,
    audio_fbank,
    audio_spectrogram,
    audio_to_map,
    point_views,
    video_to_map,
)
from offprint.models.backbones.convnext import ConvNeXtFrame, _init
from offprint.models.registry import Weights, register
from offprint.models.released import SQUASH, top
from offprint.nn import DropPath, LayerNorm2d, drop_path_rates, reparam
from offprint.nn.large_kernel import LargeKernelConv2d
from offprint.nn.parallel_depthwise import by_hand, large_depthwise

__all__ = [
    "DilatedReparamBlock",
    "PointProjection",
    "UniRepLKNet",
    "UniRepLKNetBlock",
    "audio_fbank",
    "audio_spectrogram",
    "audio_to_map",
    "point_views",
    "video_to_map",
]

# kernel: (side, dilation) of the small ones beside it
BRANCHES = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def _check_merge(module: nn.Module) -> None:
    if module.training:
        raise OffprintError(
            f"{type(module).__name__} is in training mode, where every branch has the statistics of its batch and nothing can be "
            "merged; finish training, call .eval(), and merge then"
        )


class DilatedReparamBlock(nn.Module):
    """A large depth-wise kernel with small dilated ones beside it (Fig. 3), or the one kernel that they merge into.

    Args:
        channels: of the map.
        kernel_size: side K of the large kernel.
        deploy: the merged form, one convolution with a bias.
        branches: (side, dilation) of the small kernels; default those of the paper for K.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        deploy: bool = False,
        branches: Sequence[tuple[int, int]] | None = None,
    ):
        super().__init__()
        if branches is None and kernel_size not in BRANCHES:
            raise OffprintError(
                f"kernel_size={kernel_size}; a Dilated Reparam Block has kernels of {', '.join(map(str, sorted(BRANCHES)))}"
            )
        self.branches = tuple((k, r) for k, r in (BRANCHES[kernel_size] if branches is None else branches))
        for k, r in self.branches:
            if not k % 2 or r * (k - 1) + 1 > kernel_size:
                raise OffprintError(
                    f"a {k}x{k} kernel of dilation {r} spans {r * (k - 1) + 1} places and must be odd and fit into {kernel_size}"
                )
        self.lk_origin = LargeKernelConv2d(channels, kernel_size, bias=deploy)
        if deploy:
            self.branches = ()
            return
        self.origin_bn = nn.BatchNorm2d(channels)
        for k, r in self.branches:
            conv = nn.Conv2d(channels, channels, k, padding=r * (k - 1) // 2, dilation=r, groups=channels, bias=False)
            setattr(self, f"dil_conv_k{k}_{r}", conv)
            setattr(self, f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels))

    @property
    def merged(self) -> bool:
        """Whether one convolution is left."""
        return self.lk_origin.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map of the same shape; the kernel may be wider than the map."""
        if self.merged:
            return self.lk_origin(x)
        convs: list[nn.Conv2d] = [self.lk_origin, *(getattr(self, f"dil_conv_k{k}_{r}") for k, r in self.branches)]
        norms = [self.origin_bn, *(getattr(self, f"dil_bn_k{k}_{r}") for k, r in self.branches)]
        if by_hand(x, self.training):  # a dilated kernel with its zeros filled in is many times faster than without
            maps = large_depthwise(x, [reparam.dilated(conv.weight, conv.dilation[0]) for conv in convs])
        else:
            maps = tuple(conv(x) for conv in convs)
        out = norms[0](maps[0])
        for norm, y in zip(norms[1:], maps[1:], strict=True):
            out = out + norm(y)
        return out

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The one kernel (C, 1, K, K) and bias (C,) that compute what all branches do in evaluation mode."""
        if self.merged:
            return self.lk_origin.weight, self.lk_origin.bias
        weight, bias = reparam.fold(self.lk_origin.weight.double(), None, self.origin_bn)
        for k, r in self.branches:
            small, shift = reparam.fold(
                getattr(self, f"dil_conv_k{k}_{r}").weight.double(), None, getattr(self, f"dil_bn_k{k}_{r}")
            )
            weight = weight + reparam.centred(reparam.dilated(small, r), tuple(weight.shape[2:]))
            bias = bias + shift
        dtype = self.lk_origin.weight.dtype
        return weight.to(dtype), bias.to(dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Merge in place; a block that is merged stays as it is.

        Raises:
            OffprintError: the block is in training mode.
        """
        _check_merge(self)
        if self.merged:
            return
        weight, bias = self.kernel()
        self.lk_origin.weight, self.lk_origin.bias = nn.Parameter(weight), nn.Parameter(bias)
        del self.origin_bn
        for k, r in self.branches:
            delattr(self, f"dil_conv_k{k}_{r}")
            delattr(self, f"dil_bn_k{k}_{r}")
        self.branches = ()


class SEBlock(nn.Module):
    """Squeeze-and-excitation: a gate per channel from the mean of each channel, over a quarter of the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.down = nn.Conv2d(dim, dim // 4, 1)
        self.up = nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map of the same shape."""
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class GRN(nn.Module):
    r"""Global response normalisation (Woo et al. 2023): channels compete by their norms over the map.

    .. math:: y_c = \big(\gamma_c\, n_c / (\bar n + \epsilon) + 1\big)\, x_c + \beta_c, \qquad n_c = \lVert x_c \rVert_2.

    Args:
        dim: channels.
        bias: have beta; the merged form has none.
    """

    def __init__(self, dim: int, bias: bool = True):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C), channels last, to the same shape."""
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        scale = (self.gamma * (norm / (norm.mean(-1, keepdim=True) + 1e-6)) + 1).to(x.dtype)
        return x * scale if self.beta is None else torch.addcmul(self.beta.to(x.dtype), x, scale)


class _Permute(nn.Module):
    """Axes in another order: channels last before the linear layers, channels first behind them."""

    def __init__(self, *axes: int):
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class UniRepLKNetBlock(nn.Module):
    """Depth-wise convolution, BatchNorm, squeeze-excite, inverted bottleneck with GRN, BatchNorm, layer scale, residual (Fig. 2).

    Args:
        dim: channels C.
        kernel_size: 7 and more for a Dilated Reparam Block, 3 or 5 for a plain depth-wise convolution, 0 for none.
        drop_path: probability of dropping the branch.
        layer_scale_init_value: initial gamma; 0 or less leaves gamma out.
        deploy: the merged form.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        deploy: bool = False,
    ):
        super().__init__()
        self.dwconv: nn.Module
        if kernel_size == 0:
            self.dwconv = nn.Identity()
        elif kernel_size in (3, 5):
            self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=deploy)
        elif kernel_size in BRANCHES:
            self.dwconv = DilatedReparamBlock(dim, kernel_size, deploy)
        else:
            known = ", ".join(map(str, (0, 3, *sorted(BRANCHES))))
            raise OffprintError(f"kernel_size={kernel_size}; a block of this network has a kernel of {known}")
        self.norm: nn.Module = nn.Identity() if deploy or kernel_size == 0 else nn.BatchNorm2d(dim)
        self.se = SEBlock(dim)
        self.pwconv1 = nn.Sequential(_Permute(0, 2, 3, 1), nn.Linear(dim, 4 * dim))
        self.act = nn.Sequential(nn.GELU(), GRN(4 * dim, bias=not deploy))
        back = [nn.Linear(4 * dim, dim, bias=deploy), _Permute(0, 3, 1, 2)]
        self.pwconv2 = nn.Sequential(*back) if deploy else nn.Sequential(*back, nn.BatchNorm2d(dim))
        scaled = not deploy and layer_scale_init_value > 0
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init_value))) if scaled else None
        self.drop_path = DropPath(drop_path)

    @property
    def merged(self) -> bool:
        """Whether the block is in its form for inference."""
        return len(self.pwconv2) == 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map of the same shape."""
        y = self.pwconv2(self.act(self.pwconv1(self.se(self.norm(self.dwconv(x))))))
        y = self.drop_path(y)
        return x + y if self.gamma is None else torch.addcmul(x, y, self.gamma[:, None, None].to(x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """Merge in place: branches and norms into the depth-wise kernel; GRN's beta, BatchNorm and gamma into the last layer.

        A block that is merged stays as it is. For a whole model use :func:`offprint.deploy`.

        Raises:
            OffprintError: the block is in training mode.
        """
        _check_merge(self)
        if self.merged:
            return
        conv: nn.Module = self.dwconv
        if isinstance(conv, DilatedReparamBlock):
            conv.merge()
            conv = conv.lk_origin
        if isinstance(conv, nn.Conv2d):
            weight, bias = reparam.fold(conv.weight.double(), conv.bias, self.norm)
            dtype = conv.weight.dtype
            conv.weight, conv.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))
            self.norm = nn.Identity()
        linear, permute, norm = self.pwconv2
        grn = self.act[1]
        bias = linear.weight.double() @ grn.beta.flatten().double()
        weight, bias = reparam.fold(linear.weight.double(), bias, norm)
        if self.gamma is not None:
            weight, bias = weight * self.gamma.double()[:, None], bias * self.gamma.double()
        dtype = linear.weight.dtype
        linear.weight, linear.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))
        self.pwconv2 = nn.Sequential(linear, permute)
        self.gamma = grn.beta = None


def _stem(in_chans: int, dim: int) -> nn.Sequential:
    """To a quarter of the sides, in two convolutions."""
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, 2, 1),
        LayerNorm2d(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, 2, 1),
        LayerNorm2d(dim),
    )


def default_kernels(depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Kernels by block (Sec. 3.1): 3 in stage 1, 13 in stages 2 and 4; in stage 3, by its depth, all 13, every second, or every third."""
    every = 1 if depths[2] < 18 else 2 if depths[2] == 18 else 3
    third = tuple(13 if i % every == 0 else 3 for i in range(depths[2]))
    return (3,) * depths[0], (13,) * depths[1], third, (13,) * depths[3]


class UniRepLKNet(ConvNeXtFrame):
    """Four stages at strides 4, 8, 16 and 32; a 3x3 convolution of stride 2 and a LayerNorm before each.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled, normalised features.
        depths: blocks per stage.
        dims: channels per stage.
        kernel_sizes: of the blocks, stage by stage: one number for a stage, or one a block; default :func:`default_kernels`.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise linearly to it from 0.
        layer_scale_init_value: initial gamma of every block; 0 for none.
        head_init_scale: factor on the classifier's initial weights (0.001 when fine-tuning).
        deploy: the merged form, for checkpoints that were written after merging.

    Any image of 32 pixels and more works. Files of the training form are for ``deploy=False``, merged ones for ``deploy=True``;
    :func:`offprint.deploy` makes the second from the first.
    """

    input_layers = ("downsample_layers.0.0",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: tuple[int, ...] = (3, 3, 27, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        head_init_scale: float = 1.0,
        deploy: bool = False,
    ):
        super().__init__()
        if len(depths) != len(dims):
            raise OffprintError(f"depths {tuple(depths)} and dims {tuple(dims)} must name the same number of stages")
        given = default_kernels(depths) if kernel_sizes is None else kernel_sizes
        kernels = [(k,) * depth if isinstance(k, int) else tuple(k) for k, depth in zip(given, depths, strict=False)]
        if [len(k) for k in kernels] != list(depths) or len(given) != len(depths):
            raise OffprintError(
                f"kernel_sizes={kernel_sizes!r} does not give a kernel to each of {tuple(depths)} blocks; "
                "give one number for a stage, or one a block"
            )
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.pyramid_channels = list(dims)
        self.pyramid_reductions = [4 * 2**i for i in range(len(dims))]
        self.pyramid_modules = [f"stages.{i}" for i in range(len(dims))]
        self.downsample_layers = nn.ModuleList([_stem(in_chans, dims[0])])
        for a, b in zip(dims[:-1], dims[1:], strict=True):
            self.downsample_layers.append(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), LayerNorm2d(b)))
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(UniRepLKNetBlock(dim, k, next(rates), layer_scale_init_value, deploy) for k in row))
            for dim, row in zip(dims, kernels, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_init)
        if num_classes:
            self.head.weight.data.mul_(head_init_scale)
            self.head.bias.data.mul_(head_init_scale)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tell files of the other form from damaged ones.

        Raises:
            CheckpointError: the file was merged and the model is not, or the other way round.
        """
        merged, mine = "stages.0.0.pwconv2.0.bias" in state, self.stages[0][0].merged
        if "stages.0.0.pwconv2.0.weight" in state and merged != mine:
            raise CheckpointError(
                "the file holds a merged network, which has one kernel where the training form has branches; build the model "
                "with deploy=True"
                if merged
                else "the file holds the training form, and the model is merged; build it without deploy, load, and call "
                "offprint.deploy(model)"
            )
        return state


_SIZES: dict[str, dict] = {
    size: {"depths": depths, "dims": tuple(width * 2**i for i in range(4))}
    for size, depths, width in (
        ("a", (2, 2, 6, 2), 40),
        ("f", (2, 2, 6, 2), 48),
        ("p", (2, 2, 6, 2), 64),
        ("n", (2, 2, 8, 2), 80),
        ("t", (3, 3, 18, 3), 80),
        ("s", (3, 3, 27, 3), 96),
        ("b", (3, 3, 27, 3), 128),
        ("l", (3, 3, 27, 3), 192),
        ("xl", (3, 3, 27, 3), 256),
    )
}
VARIANTS = {f"unireplknet_{size}": row for size, row in _SIZES.items()}
_CODE = "AILab-CVC/UniRepLKNet@b5677d8 unireplknet.py (names of the files)"
_IN1K = {"a": 77.03, "f": 78.58, "p": 80.23, "n": 81.64, "t": 83.21, "s": 83.91}  # top-1 at 224
_IN22K = {"s": (224, 86.44), "b": (224, 87.40), "l": (192, 87.88), "xl": (192, 87.96)}  # pre-trained at, top-1 at 384


def _authors(file: str, side: int, one: float | None = None, **more: Any) -> Weights:
    return Weights(
        f"hf:DingXiaoH/UniRepLKNet/{file}.pth", "authors", "authors", "Apache-2.0", input_size=(3, side, side),
        preprocessing=SQUASH if side == 384 else None, metrics=top(one), metrics_source=_CODE if one else "", **more,
    )  # fmt: skip


def _released(size: str) -> dict[str, Weights]:
    name, found = f"unireplknet_{size}", {}
    if size in _IN1K:
        found["in1k"] = _authors(f"{name}_in1k_224_acc{_IN1K[size]:.2f}", 224, _IN1K[size])
    if size in _IN22K:
        side, one = _IN22K[size]
        found["in22k_ft_in1k_384"] = _authors(f"{name}_in22k_to_in1k_384_acc{one:.2f}", 384, one)
        found["in22k"] = _authors(f"{name}_in22k_pretrain", side, num_classes=21841, class_map="imagenet-22k")
    return found


RECIPE = {
    "optimizer": "adamw",
    "lr": 4e-3,
    "reference_batch": 4096,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
    "min_lr": 1e-6,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "interpolation": "bicubic",
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
_TRAINING = {  # drop-path, and one number for mixup and cutmix where it is not the recipe's
    "a": (0.0, 0.3), "f": (0.0, 0.3), "p": (0.1, 0.3), "n": (0.1, 0.5), "t": (0.2, None), "s": (0.4, None),
}  # fmt: skip
_PRETRAINING = {**RECIPE, "epochs": 90, "warmup_epochs": 5, "drop_path_rate": 0.1, "data": "imagenet-22k"}
_AT_192 = {**_PRETRAINING, "lr": 1e-3, "input_size": 192}
_FINE = {
    **RECIPE, "lr": 5e-5, "reference_batch": 512, "epochs": 30, "warmup_epochs": 0, "weight_decay": 1e-8, "mixup": 0.0,
    "cutmix": 0.0, "layer_decay": 0.8, "head_init_scale": 0.001, "drop_path_rate": 0.2, "input_size": 384, "crop_pct": 1.0,
    "crop_mode": "squash", "start": "pretraining",
}  # fmt: skip
_FINE_LARGE = {**_FINE, "epochs": 20, "drop_path_rate": 0.3, "label_smoothing": 0.3, "ema_decay": 0.9999}
register(
    paper="unireplknet",
    kind="backbone",
    build=UniRepLKNet,
    variants=VARIANTS,
    weights={f"unireplknet_{size}": _released(size) for size in _SIZES},
    recipe=RECIPE,
    exceptions={
        "training": {
            f"unireplknet_{size}": {"drop_path_rate": rate, **({"mixup": mix, "cutmix": mix} if mix else {})}
            for size, (rate, mix) in _TRAINING.items()
        },
        "pretraining": {
            "unireplknet_s": _PRETRAINING,
            "unireplknet_b": _PRETRAINING,
            "unireplknet_l": _AT_192,
            "unireplknet_xl": {**_AT_192, "drop_path_rate": 0.2},
        },
        "finetuning": {f"unireplknet_{size}": _FINE if size in "sb" else _FINE_LARGE for size in _IN22K},
    },
)
