r"""MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision Models (Yang, Qiao, Yu, Yuan, Zhu, Yuille, Adam, Chen; ICLR
2023; arXiv 2210.01820).

A transformer's block is attention and an MLP; a mobile block is an inverted residual, which is an MLP with a depth-wise convolution in
it. MOAT has one block of both (Fig. 1): the inverted residual takes the MLP's place and stands before the attention,

.. math:: y = \mathrm{short}(x) + \mathrm{MBConv}(\mathrm{BN}(x)), \qquad z = y + \mathrm{Attention}(\mathrm{LN}(y)),

so that its strided convolution, and no patch embedding or pooling of queries, halves the map. Four stages follow a convolutional stem: two
of inverted residuals with squeeze-excite, two of MOAT blocks without. Attention has heads of 32 channels and, unless left out, a learnt
bias for each head and offset between key and query; its table has the size of ImageNet maps (14 and 7 a side) and is resized, bilinearly,
to whatever map or window is at hand.

For large images attention may stay inside windows, which need no shifting, since the convolutions between them see across. The
authors' settings: COCO detection has windows of 14 x 14 in stage 3 and global attention in stage 4, ``window_size=(None, None, (14, 14),
None)``; ADE20K has global attention in both, ``None``. Dense heads there have ``pool_size=3``.

All is as in TensorFlow: "same" padding, which at stride 2 begins at the first cell of an even side; BatchNorms of eps 1e-3. Parameter names
are those of the authors' TensorFlow layers in PyTorch's layouts. Their checkpoints are read by the dialect ``tensorflow`` once they are
in a file of tensors, which takes TensorFlow and three lines::

    reader = tf.train.load_checkpoint(path)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items() if v.dtype == np.float32}, "moat.safetensors")

They lie in archives that this library does not open, so that ``pretrained=True`` has nothing to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import IMAGENET, register
from offprint.nn import DropPath, Pointwise
from offprint.nn.precision import wide
from offprint.nn.reparam import fold, fold_before
from offprint.nn.windows import attend, gather_bias, join, split, windows

HEAD_DIM = 32
TABLES = (None, None, 14, 7)  # side of the map that a stage's table of positions is stored for
Window = tuple[int, int] | None


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _pad_as_tensorflow(x: Tensor) -> Tensor:
    """For a 3x3 kernel of stride 2 without padding: one row and column after the last, and before the first of an odd side."""
    return F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1))


class Halving(nn.Conv2d):
    """Depth-wise 3x3 convolution of stride 2 with TensorFlow's padding, which without gradients copies no map where both sides are even or odd.

    On even sides it is the 4x4 kernel with zeros before the first row and column, at a padding of 1; on odd ones TensorFlow's padding is
    PyTorch's. The gradient of the larger kernel costs more than the copy.
    """

    def __init__(self, channels: int, bias: bool = False):
        super().__init__(channels, channels, 3, 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (side % 2 for side in x.shape[-2:])
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if height != width or learns or x.is_meta:  # where only costs are counted, those of the nine taps
            return super().forward(_pad_as_tensorflow(x))
        weight = self.weight if height else F.pad(self.weight, (1, 0, 1, 0))
        return F.conv2d(x, weight, self.bias, 2, 1, groups=self.groups)


def pool_as_tensorflow(x: Tensor, size: int) -> Tensor:
    """Average pooling of stride 2 with "same" padding, whose cells are not counted: (B, C, H, W) to (B, C, ceil(H/2), ceil(W/2))."""
    padding = tuple(side % 2 for side in x.shape[-2:]) if size == 3 else 0
    return F.avg_pool2d(x, size, 2, padding, ceil_mode=True, count_include_pad=False)


class Stem(nn.Module):
    """3x3 convolution of stride 2, BatchNorm, GELU, 3x3 convolution."""

    fold_pairs = (("conv_0", "norm_0"),)

    def __init__(self, in_chans: int, width: int):
        super().__init__()
        self.conv_0 = nn.Conv2d(in_chans, width, 3, 2)
        self.norm_0 = _norm(width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1(F.gelu(self.norm_0(self.conv_0(_pad_as_tensorflow(x)))))


class SqueezeExcite(nn.Module):
    """A gate per channel from the channels' means, with SiLU between its layers; ``hidden`` follows the block's output width."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.reduce_conv2d = nn.Conv2d(channels, hidden, 1)
        self.expand_conv2d = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.reduce_conv2d(x.mean((2, 3), keepdim=True)))
        return x * self.expand_conv2d(gate).sigmoid()


@torch.no_grad()
def _with(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """The layer with these weights, in their precision."""
    layer = layer.to(weight)
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(bias)
    return layer


class MBConv(nn.Module):
    """Inverted residual behind a BatchNorm; the inner width is four times the output's.

    Args:
        in_channels, out_channels: of the map.
        stride: 1 or 2.
        pool_size: 2 or 3: of the average pooling that a strided block's shortcut has.
        se: squeeze-excite on the inner map.
        drop_path: probability of dropping the branch.
    """

    fold_pairs = (("depthwise_conv", "depthwise_norm"),)

    def __init__(self, in_channels: int, out_channels: int, stride: int, pool_size: int, se: bool = True, drop_path: float = 0.0):  # fmt: skip
        super().__init__()
        inner = 4 * out_channels
        self.stride, self.pool_size = stride, pool_size
        self.shortcut_conv = Pointwise(in_channels, out_channels, bias=True) if in_channels != out_channels else None
        self.pre_norm = _norm(in_channels)
        self.expand_conv: nn.Module = Pointwise(in_channels, inner)
        self.expand_norm = _norm(inner)
        self.depthwise_conv: nn.Module = (
            Halving(inner) if stride > 1 else nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        )
        self.depthwise_norm = _norm(inner)
        self.se = SqueezeExcite(inner, max(1, out_channels // 4)) if se else None
        self.shrink_conv = Pointwise(inner, out_channels, bias=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        y = F.gelu(self.expand_norm(self.expand_conv(self.pre_norm(x))))
        y = F.gelu(self.depthwise_norm(self.depthwise_conv(y)))
        y = self.shrink_conv(y if self.se is None else self.se(y))
        if self.stride > 1:
            x = pool_as_tensorflow(x, self.pool_size)
        if self.shortcut_conv is not None:
            x = self.shortcut_conv(x)
        return x + self.drop_path(y)

    @torch.no_grad()
    def merge(self) -> None:
        """For :func:`offprint.deploy`: the norms into the layers beside them; nothing on a second call."""
        if isinstance(self.pre_norm, nn.Identity):
            return
        old = self.expand_conv
        self.expand_conv = _with(
            Pointwise(old.in_channels, old.out_channels, bias=True),
            *fold_before(self.pre_norm, *fold(old.weight, None, self.expand_norm)),
        )
        self.pre_norm, self.expand_norm = nn.Identity(), nn.Identity()
        if isinstance(self.depthwise_conv, Halving):
            kernel = fold(self.depthwise_conv.weight, None, self.depthwise_norm)
            self.depthwise_conv = _with(Halving(old.out_channels, bias=True), *kernel)
            self.depthwise_norm = nn.Identity()


class Attention(nn.Module):
    """Self-attention of a map, in windows or over all of it.

    Args:
        dim: channels, a multiple of 32: a head for every 32.
        table: side P of the map that the table of positions is stored for, (heads, 2 P - 1, 2 P - 1); ``None``: no positions.
    """

    def __init__(self, dim: int, table: int | None):
        super().__init__()
        if dim % HEAD_DIM:
            raise OffprintError(
                f"attention has heads of {HEAD_DIM} channels, and {dim} is no multiple of that; choose another width"
            )
        self.heads = dim // HEAD_DIM
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        side = 2 * table - 1 if table else 0
        self.relative_position_embedding = nn.Parameter(torch.zeros(self.heads, side, side)) if table else None
        self.window: Window = None
        self.place = "a MOAT block"  # for messages

    def bias(self, window: tuple[int, int]) -> Tensor:
        """(heads, tokens, tokens): the entry at the offset key - query of the table, resized to the window's offsets."""
        assert self.relative_position_embedding is not None
        table = wide(self.relative_position_embedding)
        size = tuple(2 * side - 1 for side in window)
        if tuple(table.shape[1:]) != size:
            table = F.interpolate(table[None], size, mode="bilinear", align_corners=False)[0]
        return gather_bias(table.flip((1, 2)).flatten(1).t(), window)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to the same shape.

        Raises:
            OffprintError: a side is not made of whole windows.
        """
        sides = tuple(x.shape[1:3])
        window = sides if self.window is None else self.window
        if sides[0] % window[0] or sides[1] % window[1]:
            raise OffprintError(
                f"{self.place}: its map of {sides[0]}x{sides[1]} is not made of whole windows of {window[0]}x{window[1]}; give an image "
                "whose map is, another window_size=, or none: attention then spans the map"
            )
        cut = windows(sides, window, (0, 0))
        tokens = split(x, cut).flatten(0, 1)  # (B * windows, tokens, dim)
        q, k, v = (
            layer(tokens).unflatten(2, (self.heads, HEAD_DIM)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        if self.relative_position_embedding is None:
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        else:
            y = attend(q, k, v, self.bias(window))
        return join(self.o(y).unflatten(0, (x.shape[0], -1)), cut)


class MOATBlock(MBConv):
    """:class:`MBConv` without squeeze-excite, then attention behind a LayerNorm; both branches are dropped independently.

    Args:
        in_channels, out_channels, stride, pool_size, drop_path: as in :class:`MBConv`.
        table: as in :class:`Attention`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, pool_size: int, table: int | None, drop_path: float = 0.0):  # fmt: skip
        super().__init__(in_channels, out_channels, stride, pool_size, False, drop_path)
        self.attention_norm = nn.LayerNorm(out_channels)
        self.attention = Attention(out_channels, table)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        return x.permute(0, 3, 1, 2)


def _from_tensorflow(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """TensorFlow's layouts: kernels (h, w, in, out), depth-wise (h, w, C, 1), attention (C, heads, 32) and (heads, 32, C)."""
    out = {}
    for name, value in state.items():
        parent, _, leaf = name.rpartition(".")
        if leaf == "depthwise_kernel":
            name, value = f"{parent}.weight", value.permute(2, 3, 0, 1)
        elif leaf == "kernel":
            name, value = f"{parent}.weight", value.permute(3, 2, 0, 1) if value.ndim == 4 else value.t()
            value = value.flatten(1) if parent == "logits_head" else value
        elif parent.endswith((".q", ".k", ".v")) and leaf == "bias":
            value = value.flatten()
        elif parent.endswith((".q", ".k", ".v")) and value.ndim == 3:
            value = value.flatten(1).t()
        elif parent.endswith(".o") and value.ndim == 3:
            value = value.flatten(0, 1).t()
        out[name] = value.contiguous()
    return out


_TENSORFLOW = (
    (r":0$", ""),
    (r"/", "."),
    (r"^moat\.", ""),
    (r"^(conv_[01]|norm_0)\.", r"stem.\1."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.moving_mean$", ".running_mean"),
    (r"\.moving_variance$", ".running_var"),
)


class MOAT(Backbone):
    """Stem at stride 2 and four stages at strides 4 to 32; two of :class:`MBConv`, two of :class:`MOATBlock` (Table 1).

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled, normalised features.
        stem: width of the stem.
        dims: widths of the stages; those of the last two are multiples of 32.
        depths: blocks per stage.
        position_embedding: tables of positions in the attention.
        window_size: for each stage (height, width) of the windows of its attention, or ``None`` for the whole map; one ``None`` for all.
        global_attention_at_end_of_moat_stage: the last block of a stage with windows attends over the whole map.
        pool_size: of the shortcuts' pooling: 2 (classification) or 3 (dense tasks).
        drop_path_rate: stochastic depth: block k of n is dropped with k/n of it.
        drop_rate: dropout before the classifier.

    Any image of 32 pixels and more works without windows. As an encoder the maps have passed a GELU, as the authors' dense heads read
    them; the classifier's have not.
    """

    head_modules = ("final_layer_norm", "logits_head")
    classifier = "logits_head"
    input_layers = ("stem.conv_0",)
    native = "tensorflow_torch"
    dialects = (
        Dialect("tensorflow", _TENSORFLOW, r"(^|[/.])(global_step|save_counter|optimizer)\b", _from_tensorflow),
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        stem: int = 64,
        dims: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (2, 3, 7, 2),
        position_embedding: bool = True,
        window_size: Sequence[Sequence[int] | None] | None = None,
        global_attention_at_end_of_moat_stage: bool = False,
        pool_size: int = 2,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
    ):
        super().__init__(drop_rate)
        if not len(dims) == len(depths) == len(TABLES):
            raise OffprintError(f"dims {tuple(dims)} and depths {tuple(depths)} must name the four stages")
        if pool_size not in (2, 3):
            raise OffprintError(f"pool_size={pool_size}; choose 2 (classification) or 3 (dense tasks)")
        self.in_chans, self.num_classes = in_chans, num_classes
        self.stem = Stem(in_chans, stem)
        self.stages: list[list[str]] = []
        channels, count, total = stem, 0, sum(depths)
        for stage, (dim, depth, table) in enumerate(zip(dims, depths, TABLES, strict=True)):
            names = []
            for block in range(depth):
                options = (channels, dim, 2 if block == 0 else 1, pool_size)
                rate = drop_path_rate * count / total
                made = (
                    MBConv(*options, drop_path=rate)
                    if table is None
                    else MOATBlock(*options, table if position_embedding else None, rate)
                )
                names.append(f"block_{stage:02d}_{block:02d}")
                setattr(self, names[-1], made)
                channels, count = dim, count + 1
            self.stages.append(names)
        self.set_windows(window_size, global_attention_at_end_of_moat_stage)
        self.num_features = channels
        self.pyramid_channels = [stem, *dims]
        self.pyramid_reductions = [2, 4, 8, 16, 32]
        self.pyramid_modules = ["stem", *(names[-1] for names in self.stages)]
        self.final_layer_norm = nn.LayerNorm(channels)
        self.logits_head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.apply(_init)

    def set_windows(
        self, window_size: Sequence[Sequence[int] | None] | None, global_attention_at_end_of_moat_stage: bool = False
    ) -> None:
        """Give the attention other windows, in place (for images of another size); as the arguments of the constructor."""
        given = (None,) * len(self.stages) if window_size is None else tuple(window_size)
        if len(given) != len(self.stages) or any(
            w is not None and not (isinstance(w, Sequence) and len(w) == 2 and min(w) > 0) for w in given
        ):
            raise OffprintError(
                f"window_size={window_size!r}; give (height, width) or None for each of the {len(self.stages)} stages, "
                "e.g. (None, None, (14, 14), None)"
            )
        for stage, (names, window) in enumerate(zip(self.stages, given, strict=True)):
            if window is not None and TABLES[stage] is None:
                raise OffprintError(
                    f"window_size={window_size!r}: stage {stage + 1} has no attention; give None for it"
                )
            for name in names:
                block = getattr(self, name)
                if isinstance(block, MOATBlock):
                    everywhere = window is None or (global_attention_at_end_of_moat_stage and name == names[-1])
                    block.attention.window = None if everywhere else (int(window[0]), int(window[1]))
                    block.attention.place = f"stage {stage + 1}, {name}"
        self._remember(window_size=given, global_attention_at_end_of_moat_stage=global_attention_at_end_of_moat_stage)

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block."""
        return [["stem"], *([name] for names in self.stages for name in names)]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The maps as the stages give them, before the GELU: strides 2 to 32."""
        x = self.stem(x)
        yield x
        for names in self.stages[: len(self.pyramid_channels) - 1]:
            x = self.run([getattr(self, name) for name in names], x)
            yield x

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """A map after GELU."""
        return F.gelu(x)

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the map, LayerNorm."""
        if self.global_pool:
            return self.final_layer_norm(x.mean((2, 3)))
        return self.final_layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention) and module.relative_position_embedding is not None:
        nn.init.normal_(module.relative_position_embedding, std=0.02)


_TINY, _BASE, _DEEP = (2, 3, 7, 2), (2, 6, 14, 2), (2, 12, 28, 2)
# stem, widths, blocks, drop-path rate, side of the images
_TABLE = {
    "tiny_moat_0": (32, (32, 64, 128, 256), _TINY, 0.0, 256),
    "tiny_moat_1": (40, (40, 80, 160, 320), _TINY, 0.0, 256),
    "tiny_moat_2": (56, (56, 112, 224, 448), _TINY, 0.0, 256),
    "tiny_moat_3": (80, (80, 160, 320, 640), _TINY, 0.1, 256),
    "moat_0": (64, (96, 192, 384, 768), _TINY, 0.2, 224),
    "moat_1": (64, (96, 192, 384, 768), _BASE, 0.3, 224),
    "moat_2": (128, (128, 256, 512, 1024), _BASE, 0.3, 384),
    "moat_3": (160, (160, 320, 640, 1280), _DEEP, 0.6, 512),
    "moat_4": (256, (256, 512, 1024, 2048), _DEEP, 0.7, 512),
}
_LARGE = ("moat_2", "moat_3", "moat_4")  # pre-trained on ImageNet-22K, on pictures in [-1, 1]
RECIPE = {  # from memory, but for sizes and drop-path rates
    "optimizer": "adamw",
    "lr": 3e-3,
    "reference_batch": 4096,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 32,  # 10,000 steps of 4096 images
    "min_lr": 1e-5,
    "clip_grad": 1.0,
    "auto_augment": "rand-m15-n2",
    "mixup": 0.8,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
_PRE = {**RECIPE, "epochs": 90, "lr": 1e-3, "data": "imagenet-22k"}
_FINE = {"epochs": 30, "lr": 5e-5, "warmup_epochs": 0, "start": "pretraining"}


def _register(names: Sequence[str], preprocessing: dict) -> None:
    """Enter these models and their forms without positions."""
    variants: dict[str, dict] = {}
    special: dict[str, dict[str, dict]] = {"training": {}, "pretraining": {}}
    sizes = {}
    for base in names:
        stem, dims, depths, rate, side = _TABLE[base]
        for name, more in ((base, {}), (f"{base}_no_pe", {"position_embedding": False})):
            variants[name] = {"stem": stem, "dims": dims, "depths": depths, **more}
            sizes[name] = (3, side, side)
            own = {"drop_path_rate": rate}
            special["training"][name] = {**own, **(_FINE if base in _LARGE else {})}
            if base in _LARGE:
                special["pretraining"][name] = {**_PRE, **own}
    register(
        paper="moat",
        kind="backbone",
        build=MOAT,
        variants=variants,
        input_sizes=sizes,
        preprocessing=preprocessing,
        recipe=RECIPE,
        exceptions={stage: rows for stage, rows in special.items() if rows},
    )


_register([n for n in _TABLE if n not in _LARGE], {**IMAGENET, "interpolation": "bilinear"})
_register(_LARGE, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0})
