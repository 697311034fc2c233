r"""FMViT: A multiple-frequency mixing Vision Transformer (arXiv 2311.05707), rebuilt.

The authors released neither code nor weights. What is here follows the abstract, the names of its parts and, where these say
nothing, the nearest relative with code (Next-ViT); it is a network in the paper's spirit, hence every model is called ``_rebuilt``,
and none has a published accuracy.

Convolution blocks (CFB) carry high frequencies, a light self-attention over pooled keys and values (RLMHSA) carries low ones, and a
mixing block (FMB) makes low channels, derives high ones from them, and blends both:

.. math::
    l = e(x) + \mathrm{RLMHSA}(\mathrm{BN}\,e(x)), \qquad h = S l + \mathrm{CFC}(S l), \qquad
    y = [l, h] + \mathrm{gMLP}(\mathrm{BN}[l, h]).

The linear layers (gMLP) and convolutions (CFC) are trained as parallel branches with different kernels and groups, each with a
BatchNorm, and merged: with :math:`t = \gamma/\sqrt{v + \epsilon}` of each branch,

.. math:: W = \sum_b \mathrm{place}(t_b W_b), \qquad \beta = \sum_b (\beta_b - \mu_b t_b),

where *place* centres a small kernel in the largest and writes a group's rows at its input channels; the groups of the sum are the
greatest common divisor. :meth:`FMViT.merge` merges these branches, :func:`offprint.deploy` folds the norms before linear layers too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.deploy import deploy as to_deploy
from offprint.models.registry import register
from offprint.nn import DropPath, reparam
from offprint.nn.drop import drop_path_rates
from offprint.nn.mergeable import Mergeable, to_one_form

GROUP = 32  # channels of a head, and of a group of the convolutions
LINEAR = ((1, 1), (1, 2), (1, 4))  # (kernel, groups) of the branches of a linear layer


def merge_branches(
    branches: Sequence[tuple[Tensor, nn.Module, int]], identity: nn.Module | None = None
) -> tuple[Tensor, Tensor, int]:
    """One convolution of parallel ones, each with its BatchNorm in evaluation mode.

    Args:
        branches: (kernel (out, in / groups, k, k), BatchNorm, groups) of each.
        identity: a BatchNorm of the input itself beside them.

    Returns:
        Kernel, bias and groups, computed in double and given in the type of the first kernel.
    """
    first = branches[0][0]
    size = max((w.shape[-2:] for w, _, _ in branches), key=lambda s: s[0])
    groups = reparam.common_groups(*(g for _, _, g in branches))
    kernels, biases = [], []
    for weight, norm, own in branches:
        kernel, bias = reparam.fold(weight.double(), None, norm)
        kernels.append(reparam.regrouped(reparam.centred(kernel, tuple(size)), own, groups))
        biases.append(bias)
    if identity is not None:
        channels = len(first)
        kernel, bias = reparam.norm_kernel(identity, channels, tuple(size), torch.float64)
        kernels.append(reparam.regrouped(kernel, channels, groups))
        biases.append(bias)
    return torch.stack(kernels).sum(0).to(first.dtype), torch.stack(biases).sum(0).to(first.dtype), groups


class ConvBN(nn.Module):
    """A convolution without bias that keeps the size at stride 1, and a BatchNorm."""

    fold_pairs = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Rep(Mergeable):
    """A sum of convolutions with BatchNorm, and a BatchNorm alone where input and output agree; merged, one convolution.

    Args:
        in_channels, out_channels: of the map.
        branches: (kernel, groups) of each.
        stride: of all.
        deploy: in merged form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branches: Sequence[Sequence[int]] = LINEAR,
        stride: int = 1,
        deploy: bool = False,
    ):
        for kernel, groups in branches:
            if in_channels % groups or out_channels % groups:
                raise OffprintError(
                    f"{in_channels} and {out_channels} channels do not divide into {groups} groups (branch of kernel {kernel})"
                )
        self.layout = tuple((kernel, groups) for kernel, groups in branches)
        groups = reparam.common_groups(*(g for _, g in branches))
        super().__init__(in_channels, out_channels, max(k for k, _ in branches), stride, groups, deploy)

    def build(self) -> None:
        sizes = (self.in_channels, self.out_channels)
        self.branches = nn.ModuleList(ConvBN(*sizes, kernel, self.stride, groups) for kernel, groups in self.layout)
        same = self.in_channels == self.out_channels and self.stride == 1
        self.identity = nn.BatchNorm2d(self.in_channels) if same else None

    def apart(self, x: Tensor) -> Tensor:
        first, *rest = self.branches
        y = first(x)
        for branch in rest:
            y = y + branch(x)
        return y if self.identity is None else y + self.identity(x)

    def kernel(self) -> tuple[Tensor, Tensor]:
        rows = [(b.conv.weight, b.bn, b.conv.groups) for b in self.branches if isinstance(b, ConvBN)]
        weight, bias, _ = merge_branches(rows, self.identity)
        return weight, bias


def _folded(norm: nn.Module, layer: nn.Module) -> None:
    """Fold, in place, a BatchNorm into the linear layer or 1x1 convolution that follows it."""
    with torch.no_grad():
        weight, bias = reparam.fold_before(norm, layer.weight, layer.bias)  # type: ignore[arg-type]
        layer.weight.copy_(weight)  # type: ignore[operator]
        layer.bias.copy_(bias)  # type: ignore[operator]


class GMLP(nn.Module):
    """Two linear layers of several groupings with a ReLU between: C to ``int(ratio * C)`` and back.

    Args:
        channels: C.
        ratio: hidden width over C.
        deploy: in merged form.
    """

    def __init__(self, channels: int, ratio: float, deploy: bool = False):
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = Rep(channels, hidden, deploy=deploy)
        self.fc2 = Rep(hidden, channels, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class CFC(nn.Module):
    """The convolution mixer: a grouped 3x3 and a grouped 1x1 convolution and the map itself, ReLU, 1x1 convolution.

    Args:
        channels: C, a multiple of 32.
        deploy: in merged form.
    """

    def __init__(self, channels: int, deploy: bool = False):
        super().__init__()
        groups = channels // GROUP
        self.mix = Rep(channels, channels, ((3, groups), (1, groups)), deploy=deploy)
        self.proj = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.mix(x)))


class Embed(nn.Module):
    """Another width and perhaps half the side: average of 2x2 where ``stride`` is 2, then :class:`ConvBN`; or the map as it is."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        changes = stride == 2 or in_channels != out_channels
        self.conv = ConvBN(in_channels, out_channels) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_pooled(x, self.stride))


def _pooled(x: Tensor, ratio: int) -> Tensor:
    """Averages of squares; those at the border are of what they hold, the padding not counted."""
    return F.avg_pool2d(x, ratio, ratio, ceil_mode=True, count_include_pad=False) if ratio > 1 else x


def _check(block: str, out_channels: int, stride: int) -> None:
    if out_channels % GROUP:
        raise OffprintError(f"{block} of {out_channels} channels; give a multiple of {GROUP}")
    if stride not in (1, 2):
        raise OffprintError(f"{block} with stride={stride}; give 1 or 2")


class CFB(nn.Module):
    """Convolution block: :class:`CFC` and :class:`GMLP`, each in a residual.

    Args:
        in_channels, out_channels: of the map.
        stride: 1 or 2.
        ratio: hidden width of the linear layers.
        drop_path: rate at which a branch is dropped.
        deploy: in merged form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        ratio: float = 3.0,
        drop_path: float = 0.0,
        deploy: bool = False,
    ):
        super().__init__()
        _check("CFB", out_channels, stride)
        self.embed = Embed(in_channels, out_channels, stride)
        self.mixer = CFC(out_channels, deploy)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.mlp = GMLP(out_channels, ratio, deploy)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        x = self.embed(x)
        x = x + self.drop_path(self.mixer(x))
        return x + self.drop_path(self.mlp(self.norm(x)))

    def merge(self) -> None:
        """The branches of the linear layers become one each, with the norm before them; again: nothing."""
        self.mlp.fc1.merge()
        if isinstance(self.norm, nn.BatchNorm2d):
            _folded(self.norm, self.mlp.fc1)
            self.norm = nn.Identity()


class RLMHSA(nn.Module):
    """Self-attention whose keys and values are of a pooled map.

    Args:
        channels: C, a multiple of 32, the width of a head.
        pool_ratio: side of the squares that are averaged; above 1 a BatchNorm follows.
    """

    def __init__(self, channels: int, pool_ratio: int = 1):
        super().__init__()
        if channels % GROUP:
            raise OffprintError(f"RLMHSA of {channels} channels; give a multiple of {GROUP}, the width of a head")
        self.heads, self.pool_ratio = channels // GROUP, pool_ratio
        self.q, self.k, self.v, self.proj = (nn.Linear(channels, channels) for _ in range(4))
        self.norm: nn.Module = nn.BatchNorm2d(channels) if pool_ratio > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same."""
        b, c, h, w = x.shape
        rows = x.flatten(2).transpose(1, 2)
        few = rows if self.pool_ratio == 1 else self.norm(_pooled(x, self.pool_ratio)).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(y).view(b, -1, self.heads, GROUP).transpose(1, 2)
            for layer, y in ((self.q, rows), (self.k, few), (self.v, few))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return self.proj(y).transpose(1, 2).reshape(b, c, h, w)

    def merge(self) -> None:
        """The norm of the pooled map is folded into keys and values; again: nothing.

        Raises:
            OffprintError: in training mode.
        """
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        if self.training:
            raise OffprintError("RLMHSA is in training mode; finish training, call eval(), and merge then")
        for layer in (self.k, self.v):
            _folded(self.norm, layer)
        self.norm = nn.Identity()


class FMB(nn.Module):
    """Mixing block: attention on low channels, high ones derived from them by :class:`CFC`, both blended by :class:`GMLP`.

    Args:
        in_channels, out_channels: of the map; ``out_channels`` a multiple of 32, 64 or more.
        stride: 1 or 2.
        pool_ratio: of the keys and values.
        ratio: hidden width of the linear layers.
        share: of the channels that are low, rounded down to a multiple of 32.
        drop_path: rate at which a branch is dropped.
        deploy: in merged form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        pool_ratio: int = 1,
        ratio: float = 2.0,
        share: float = 0.75,
        drop_path: float = 0.0,
        deploy: bool = False,
    ):
        super().__init__()
        _check("FMB", out_channels, stride)
        low = max(GROUP, GROUP * int(share * out_channels / GROUP))
        high = out_channels - low
        if high < GROUP:
            raise OffprintError(
                f"FMB of {out_channels} channels with share={share} leaves no high channels ({low} are low); give 64 channels or "
                "more, and a share below 1"
            )
        self.embed = Embed(in_channels, low, stride)
        self.norm1: nn.Module = nn.BatchNorm2d(low)
        self.attn = RLMHSA(low, pool_ratio)
        self.split = ConvBN(low, high)
        self.high = CFC(high, deploy)
        self.norm2: nn.Module = nn.BatchNorm2d(out_channels)
        self.mlp = GMLP(out_channels, ratio, deploy)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        x = self.embed(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        h = self.split(x)
        x = torch.cat([x, h + self.drop_path(self.high(h))], 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def merge(self) -> None:
        """The branches of the linear layers become one each, and norms fold into what follows; again: nothing."""
        self.mlp.fc1.merge()
        self.attn.merge()
        if isinstance(
            self.norm1, nn.BatchNorm2d
        ):  # an average of what a BatchNorm scales and shifts is scaled and shifted alike
            for layer in (self.attn.q, self.attn.k, self.attn.v):
                _folded(self.norm1, layer)
            _folded(self.norm2, self.mlp.fc1)
            self.norm1, self.norm2 = nn.Identity(), nn.Identity()


class FMViT(Backbone):
    """Four 3x3 convolutions, four stages of CFB and FMB, BatchNorm, mean, linear layer.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the normalised, pooled features.
        blocks: of each stage, ``"c"`` for CFB and ``"f"`` for FMB.
        dims: width of each stage, multiples of 32.
        pool_ratios: of the keys and values, by stage.
        drop_path_rate: of the last block; it rises linearly from 0.
        drop_rate: dropout before the classifier.
        deploy: build the form whose branches are merged. A file in either form loads into either.

    Any image size works.
    """

    native = "sheet"
    input_layers = ("stem.0.conv",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        blocks: Sequence[str] = ("cc", "cf", "cccf", "cf"),
        dims: Sequence[int] = (64, 96, 192, 320),
        pool_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        deploy: bool = False,
    ):
        super().__init__(drop_rate)
        if not len(blocks) == len(dims) == len(pool_ratios) or set("".join(blocks)) - set("cf") or "" in blocks:
            raise OffprintError(
                f"blocks={tuple(blocks)}, dims={tuple(dims)}, pool_ratios={tuple(pool_ratios)}; give one of each for every stage, "
                "blocks as letters, c for CFB and f for FMB"
            )
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        first = dims[0]
        sizes = ((in_chans, first, 2), (first, first // 2, 1), (first // 2, first, 1), (first, first, 2))
        self.stem = nn.Sequential(*(m for a, b, stride in sizes for m in (ConvBN(a, b, 3, stride), nn.ReLU())))
        rates = iter(drop_path_rates(drop_path_rate, sum(map(len, blocks))))
        stages, channels = [], first
        for i, (letters, dim, pool) in enumerate(zip(blocks, dims, pool_ratios, strict=True)):
            stage: list[nn.Module] = []
            for j, letter in enumerate(letters):
                stride = 2 if i and not j else 1
                more = {"drop_path": next(rates), "deploy": deploy}
                stage.append(
                    CFB(channels, dim, stride, **more) if letter == "c" else FMB(channels, dim, stride, pool, **more)  # type: ignore[arg-type]
                )
                channels = dim
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.pyramid_channels = list(dims)
        self.pyramid_reductions = [4 * 2**i for i in range(len(dims))]
        self.pyramid_modules = [f"stages.{i}" for i in range(len(dims))]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def merge(self) -> None:
        """Every layer of branches becomes one convolution, in place; the other norms stay, and the form is saved and rebuilt.

        Raises:
            OffprintError: in training mode.
        """
        for module in list(self.modules()):
            if isinstance(module, Rep):
                module.merge()
        self._remember(deploy=True)

    def switch_to_deploy(self) -> None:
        """The form for inference, in place: :func:`offprint.deploy` by the name that re-parameterised networks know."""
        to_deploy(self, inplace=True)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state in the model's form; a merged file merges the model."""
        if any(name.endswith("mlp.fc1.weight") for name in state):
            self._remember(deploy=True)
        return to_one_form(self, state)

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block."""
        return [["stem"], *([f"stages.{i}.{j}"] for i, stage in enumerate(self.stages) for j in range(len(stage)))]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The map of each stage, at strides 4, 8, 16, 32."""
        x = self.stem(x)
        for stage in self.stages:
            x = self.run(stage, x)
            yield x

    def finish(self, x: Tensor) -> Tensor:
        """The last map, normalised."""
        return self.norm(x)

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        return self.norm(x) if norm and self.whole and index == len(self.pyramid_channels) - 1 else x


VARIANTS = {
    "fmvit_tiny_rebuilt": {"blocks": ("cc", "cf", "cccf", "cf"), "dims": (64, 96, 192, 320)},
    "fmvit_small_rebuilt": {"blocks": ("cc", "ccf", "ccccfccf", "ccf"), "dims": (64, 128, 256, 448)},
}
RECIPE = {  # of the family; the paper's own could not be seen
    "optimizer": "adamw",
    "lr": 2e-3,
    "reference_batch": 2048,
    "batch_size": 2048,
    "weight_decay": 0.1,
    "epochs": 300,
    "warmup_epochs": 20,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "drop_path_rate": 0.1,
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
register(paper="fmvit", kind="backbone", build=FMViT, variants=VARIANTS, recipe=RECIPE)
