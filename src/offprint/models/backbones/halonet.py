r"""Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani, Ramachandran, Srinivas, Parmar, Hechtman,
Shlens; CVPR 2021; arXiv 2103.12731).

Every 3x3 convolution of a ResNet becomes local self-attention. So that neighbouring queries share their keys, the map is cut
into blocks of :math:`b \times b` queries, and each block attends to its own pixels and a halo of :math:`h` pixels around it
(Fig. 1, 2): a window of side :math:`w = b + 2h`. For a query at place :math:`(i, j)` of its block and a key at place
:math:`(u, v)` of the window,

.. math:: \mathrm{logit} = \frac{q \cdot k}{\sqrt{d}} + q \cdot r^H_{u - i} + q \cdot r^W_{v - j},
          \qquad \mathrm{out} = \sum_{u,v} \mathrm{softmax}(\mathrm{logit})\, v_{uv},

with one table of relative rows and one of columns, shared by heads and blocks. Beyond the edge of the map keys and values are
zero and take part in the softmax. To downsample, the queries are strided and the keys are not (Sec. 3.2): that is the
attention-downsampling layer. No output projection: the block's next 1x1 convolution is one.

The authors published no code. Parameter names are those of timm's ``halonet`` models, but for ``head`` (``head.fc`` there) and
``se`` (``attn`` there); the hybrids that timm trained are among the variants.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.models.released import timm
from offprint.nn import DropPath, Pointwise, SqueezeExcite, drop_path_rates, make_divisible


class RelativePosition(nn.Module):
    """Tables of the relative terms; row ``w - 1`` is the distance 0, counted from the window's corner.

    Args:
        window_size: w, side of the window.
        dim: width of a head.
    """

    def __init__(self, window_size: int, dim: int):
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * window_size - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * window_size - 1, dim))
        nn.init.trunc_normal_(self.height_rel, std=dim**-0.5)
        nn.init.trunc_normal_(self.width_rel, std=dim**-0.5)

    def forward(self, index: Tensor) -> Tensor:
        """For every query place of a block, the vectors of the w rows and the w columns of its window.

        Args:
            index: (s, w), table row of window place u seen from query place i.

        Returns:
            (s * s, 2 w, dim).
        """
        side, window = index.shape
        rows = self.height_rel[index][:, None].expand(side, side, window, -1)
        columns = self.width_rel[index][None].expand(side, side, window, -1)
        return torch.cat([rows, columns], 2).flatten(0, 1)


def cut_windows(kv: Tensor, window: int, block: int, heads: int) -> Tensor:
    """Overlapping windows of a padded map (B, H, W, C), one row for each image, block and head: (N, window^2, C / heads)."""
    kv = kv.unfold(1, window, block).unfold(2, window, block)  # (B, rows, columns, C, window, window), a view
    kv = kv.unflatten(3, (heads, -1)).permute(0, 1, 2, 3, 5, 6, 4)
    return kv.reshape(-1, window * window, kv.shape[-1])


class _CutWindows(torch.autograd.Function):
    """:func:`cut_windows` with the backward pass written out: whole blocks of gradients are added, not single windows."""

    @staticmethod
    def forward(ctx, kv: Tensor, window: int, block: int, heads: int) -> Tensor:
        ctx.sizes = (kv.shape, window, block, heads)
        return cut_windows(kv, window, block, heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        (images, height, width, _), window, block, heads = ctx.sizes
        rows, columns = (height - window) // block + 1, (width - window) // block + 1
        parts = -(-window // block)  # a window covers so many blocks each way, the last one perhaps in part
        grad = grad.view(images, rows, columns, heads, window, window, -1).permute(0, 1, 4, 2, 5, 3, 6)
        out = grad.new_zeros(images, rows + parts - 1, block, columns + parts - 1, block, heads, grad.shape[-1])
        for i in range(parts):
            for j in range(parts):
                part = grad[:, :, i * block : (i + 1) * block, :, j * block : (j + 1) * block]
                out[:, i : i + rows, : part.shape[2], j : j + columns, : part.shape[4]] += part
        out = out.reshape(images, (rows + parts - 1) * block, (columns + parts - 1) * block, -1)
        return out[:, :height, :width], None, None, None


def _lucidrains(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Linear layers to 1x1 convolutions; keys and values stand head by head; its relative term uses the scaled query."""
    heads = model.num_heads
    key, value = state.pop("to_kv").chunk(2)
    pairs = [x.unflatten(0, (heads, -1)) for x in (key, value)]
    out = {name: x * model.scale for name, x in state.items() if name.startswith("pos_embed.")}
    return {
        **out,
        "q.weight": state["q.weight"][..., None, None],
        "kv.weight": torch.cat(pairs, 1).flatten(0, 1)[..., None, None],
    }


class HaloAttention(nn.Module):
    """Blocked local self-attention with a halo (Sec. 3.1); stands where a 3x3 convolution stands.

    Args:
        dim: channels of the map.
        dim_out: channels of queries and keys, and of the output unless ``value_dim`` says otherwise; default ``dim``.
        num_heads: heads n; divides both.
        block_size: side b of a block of queries.
        halo_size: pixels h around it; 0 is attention within blocks, and with a block as large as the map global attention.
        stride: 2 keeps every second query in each direction (b must be even); the keys stay.
        value_dim: channels of values and of the output; default ``dim_out``.

    A map whose sides are not multiples of b is padded below and to the right with zeros that are treated like the halo
    beyond the edge, and the output is cut. A halo or window larger than the map only meets more of those zeros. A layer of
    lucidrains/halonet-pytorch can be loaded, without its output projection ``to_out``.
    """

    native = "timm"
    dialects = (
        Dialect(
            "lucidrains",
            (
                (r"^rel_pos_emb\.rel_", "pos_embed."),
                (r"^pos_embed\.(height|width)$", r"pos_embed.\1_rel"),
                (r"^to_q\.", "q."),
                (r"^to_kv\.weight", "to_kv"),
            ),
            ignore=r"^to_out\.",
            reshape=_lucidrains,
        ),
    )

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        value_dim: int | None = None,
    ):
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        value_dim = dim_out if value_dim is None else value_dim
        if num_heads < 1 or dim_out % num_heads or value_dim % num_heads:
            raise OffprintError(
                f"{num_heads} heads do not divide {dim_out} query and {value_dim} value channels; "
                "choose a number of heads that divides both"
            )
        if stride not in (1, 2) or block_size < 1 or block_size % stride:
            raise OffprintError(
                f"block_size={block_size} with stride={stride}: the stride is 1 or 2 and must divide the block"
            )
        if halo_size < 0:
            raise OffprintError(f"halo_size={halo_size}; the halo is 0 or more pixels")
        self.num_heads, self.block_size, self.halo_size, self.stride = num_heads, block_size, halo_size, stride
        self.head_dim, self.value_head_dim = dim_out // num_heads, value_dim // num_heads
        self.window_size = block_size + 2 * halo_size
        self.scale = self.head_dim**-0.5
        # In evaluation the order of operations is that of the formula, and of timm, to the last bit: with large logits the
        # softmax is a switch, and many of them turn a rounding into another answer. Training and deployed models are faster.
        self.fused = False
        self.q = Pointwise(dim, dim_out, stride)
        self.kv = Pointwise(dim, dim_out + value_dim)  # per head: its keys, then its values
        self.pos_embed = RelativePosition(self.window_size, self.head_dim)
        nn.init.trunc_normal_(self.q.weight, std=dim**-0.5)
        nn.init.trunc_normal_(self.kv.weight, std=dim**-0.5)
        # with stride the query index counts strided places, as in timm's released weights
        window, side = torch.arange(self.window_size), torch.arange(block_size // stride)
        self.register_buffer("index", window - side[:, None] + self.window_size - 1, persistent=False)
        eye = torch.eye(self.window_size)
        place = torch.cat([eye.repeat_interleave(self.window_size, 0), eye.repeat(self.window_size, 1)], 1)
        self.register_buffer("place", place, persistent=False)  # (w^2, 2 w): row u and column v of each key, one-hot

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to (B, value_dim, ceil(H / stride), ceil(W / stride))."""
        height, width = x.shape[-2:]
        b, h, w, heads = self.block_size, self.halo_size, self.window_size, self.num_heads
        s, d, dv = b // self.stride, self.head_dim, self.value_head_dim
        rows, columns = -(-height // b), -(-width // b)  # blocks
        below, right = rows * b - height, columns * b - width
        q = self.q(x).permute(0, 2, 3, 1)
        out_height, out_width = q.shape[1:3]
        if below or right:
            q = F.pad(q, (0, 0, 0, columns * s - out_width, 0, rows * s - out_height))
        # queries: place in the block, then one row for each image, block and head
        q = q.reshape(-1, rows, s, columns, s, heads, d).permute(2, 4, 0, 1, 3, 5, 6).reshape(s * s, -1, d)
        relative = (q @ self.pos_embed(self.index).transpose(1, 2)).transpose(0, 1)  # (N, s^2, 2 w)
        kv = F.pad(self.kv(x).permute(0, 2, 3, 1), (0, 0, h, h + right, h, h + below))
        kv = (_CutWindows.apply if self.training else cut_windows)(kv, w, b, heads)
        q = q.transpose(0, 1)
        k, v = kv.split((d, dv), -1)
        if self.training or self.fused:
            out = self._fused(q, k, v, relative)
        else:
            logits = (q @ k.transpose(1, 2)).mul_(self.scale)
            logits += (relative[..., :w, None] + relative[..., None, w:]).flatten(2)
            out = logits.softmax(-1) @ v
        out = out.reshape(-1, rows, columns, heads, s, s, dv).permute(0, 1, 4, 2, 5, 3, 6)
        out = out.reshape(-1, rows * s, columns * s, heads * dv).permute(0, 3, 1, 2)
        out = out[..., :out_height, :out_width]
        return out.contiguous() if x.is_contiguous() else out

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, relative: Tensor) -> Tensor:
        """The same, with the relative terms in the product: each key says its row and column, each query what it adds there."""
        d, dv, w = self.head_dim, self.value_head_dim, self.window_size
        q = torch.cat([q * self.scale, relative], 2)
        k = torch.cat([k, self.place.to(k.dtype).expand(k.shape[0], -1, -1)], 2)
        if d < 2 * w and dv <= d + 2 * w:  # narrow heads: widening v lets the kernel run that never stores the logits
            v = F.pad(v, (0, d + 2 * w - dv))
            return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0, ..., :dv]
        return (q @ k.transpose(1, 2)).softmax(-1) @ v

    def merge(self) -> None:
        """For :func:`offprint.deploy`: the form of training, which is faster."""
        self.fused = True

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, block={self.block_size}, halo={self.halo_size}, stride={self.stride}"


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, activation (``None``: none)."""

    fold_pairs = (("conv", "bn"),)

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, act: type[nn.Module] | None = None):
        super().__init__()
        wide = kernel > 1
        self.conv = (
            nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False) if wide else Pointwise(cin, cout, stride)
        )
        self.bn = nn.BatchNorm2d(cout)
        self.act = act(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1, then HaloAttention with BatchNorm or a 3x3 convolution, then 1x1, around a shortcut.

    Args:
        cin, mid, cout: input, inner and output width.
        stride: of the middle layer.
        act: activation class.
        attention: arguments of :class:`HaloAttention`; ``None`` is a 3x3 convolution (the hybrids).
        value_ratio: r_v, width of the values against ``mid``.
        se: squeeze-excite after a convolution.
        drop_path: probability of dropping the branch.
    """

    def __init__(
        self,
        cin: int,
        mid: int,
        cout: int,
        stride: int,
        act: type[nn.Module],
        attention: dict | None,
        value_ratio: float = 1.0,
        se: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.shortcut = ConvNormAct(cin, cout, 1, stride) if cin != cout or stride > 1 else nn.Identity()
        self.conv1_1x1 = ConvNormAct(cin, mid, act=act)
        inner = mid
        if attention is None:
            self.conv2_kxk = ConvNormAct(mid, mid, 3, stride, act)
            self.se = SqueezeExcite(mid, make_divisible(mid / 16)) if se else nn.Identity()
        else:
            inner = round(mid * value_ratio)
            self.self_attn = HaloAttention(mid, stride=stride, value_dim=inner, **attention)
            self.post_attn = nn.BatchNorm2d(inner)
        self.conv3_1x1 = ConvNormAct(inner, cout)
        self.drop_path = DropPath(drop_path)
        self.act = act(inplace=True)
        self.attends = attention is not None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1_1x1(x)
        y = self.act(self.post_attn(self.self_attn(y))) if self.attends else self.se(self.conv2_kxk(y))
        return self.act(self.drop_path(self.conv3_1x1(y)) + self.shortcut(x))


class Stem(nn.Sequential):
    """7x7 convolution of stride 2, or three 3x3 ones (the hybrids' tiered stem); then stride 2 again by ``pool`` or conv."""

    def __init__(self, in_chans: int, width: int, tiered: bool, pool: bool, act: type[nn.Module]):
        super().__init__()
        if tiered:
            self.conv1 = ConvNormAct(in_chans, 3 * width // 8, 3, 2, act)
            self.conv2 = ConvNormAct(3 * width // 8, width // 2, 3, 1, act)
            self.conv3 = ConvNormAct(width // 2, width, 3, 1 if pool else 2, act)
        else:
            self.conv1 = ConvNormAct(in_chans, width, 7, 2, act)
        if pool:
            self.pool = nn.MaxPool2d(3, 2, 1)


def _timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's global attention holds ``qkv`` (all queries, all keys, all values); ours q, and k and v head by head."""
    for name in [n for n in state if n.endswith(".qkv.weight")]:
        parent = name.removesuffix("qkv.weight")
        q, k, v = state.pop(name).chunk(3)
        heads = model.get_submodule(parent.rstrip(".")).num_heads
        pair = torch.cat([k.unflatten(0, (heads, -1)), v.unflatten(0, (heads, -1))], 1)
        state[parent + "q.weight"], state[parent + "kv.weight"] = q, pair.flatten(0, 1)
    return state


class HaloNet(Backbone):
    """Stem, four stages of bottlenecks at strides 4 to 32, an optional last 1x1 convolution, classifier (Table 1, 2).

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        blocks: blocks of each stage, one letter each: ``a`` attention, ``c`` a 3x3 convolution.
        mids: inner width of each stage.
        widths: output width of each stage.
        block_size: b.
        halo_size, num_heads: h and n, one number, or one for each stage.
        value_ratio: r_v.
        final_width: d_f of the 1x1 convolution before pooling; 0 leaves it out.
        stem_width, tiered_stem, stem_pool: the stem (see :class:`Stem`).
        silu: SiLU instead of ReLU.
        se: squeeze-excite in the convolutional blocks.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise linearly to it from 0.

    Any image of 32 pixels and more works: maps that the blocks do not divide are padded (see :class:`HaloAttention`).
    """

    head_modules = ("final_conv", "head")
    native = "offprint"
    dialects = (
        Dialect(
            "timm",
            (
                (r"^head\.fc\.", "head."),
                (r"\.attn\.fc1\.", ".se.conv_reduce."),
                (r"\.attn\.fc2\.", ".se.conv_expand."),
            ),
            reshape=_timm,
        ),
    )
    input_layers = ("stem.conv1.conv",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        blocks: tuple[str, ...] = ("aaa", "aaa", "a" * 10, "aaa"),
        mids: tuple[int, ...] = (64, 128, 256, 512),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        block_size: int = 8,
        halo_size: int | tuple[int, ...] = 3,
        num_heads: int | tuple[int, ...] = 8,
        value_ratio: float = 1.0,
        final_width: int = 0,
        stem_width: int = 64,
        tiered_stem: bool = False,
        stem_pool: bool = True,
        silu: bool = False,
        se: bool = False,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        stages = len(blocks)
        halos = (halo_size,) * stages if isinstance(halo_size, int) else tuple(halo_size)
        heads = (num_heads,) * stages if isinstance(num_heads, int) else tuple(num_heads)
        if not stages == len(mids) == len(widths) == len(halos) == len(heads):
            raise OffprintError(
                f"blocks {tuple(blocks)}, mids {tuple(mids)}, widths {tuple(widths)}, halo_size {halos} and num_heads "
                f"{heads} must name the same number of stages"
            )
        if set("".join(blocks)) - {"a", "c"}:
            raise OffprintError(f"blocks {tuple(blocks)}: each letter is a (attention) or c (convolution)")
        act: type[nn.Module] = nn.SiLU if silu else nn.ReLU
        self.in_chans, self.num_classes = in_chans, num_classes
        self.pyramid_channels = list(widths)
        self.pyramid_reductions = [4 * 2**i for i in range(stages)]
        self.pyramid_modules = [f"stages.{i}" for i in range(stages)]
        self.stem = Stem(in_chans, stem_width, tiered_stem, stem_pool, act)
        rates = iter(drop_path_rates(drop_path_rate, sum(map(len, blocks))))
        made, cin = [], stem_width
        for i, letters in enumerate(blocks):
            attention = {"num_heads": heads[i], "block_size": block_size, "halo_size": halos[i]}
            stage = []
            for j, letter in enumerate(letters):
                stride = 2 if i > 0 and j == 0 else 1
                chosen = attention if letter == "a" else None
                stage.append(Bottleneck(cin, mids[i], widths[i], stride, act, chosen, value_ratio, se, next(rates)))
                cin = widths[i]
            made.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*made)
        self.num_features = final_width or cin
        self.final_conv = ConvNormAct(cin, final_width, act=act) if final_width else nn.Identity()
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and ".self_attn." not in name:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if num_classes:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block."""
        return [["stem"], *([f"stages.{i}.{j}"] for i, stage in enumerate(self.stages) for j in range(len(stage)))]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The map of every stage: strides 4, 8, 16, 32."""
        x = self.stem(x)
        for stage in self.stages:
            x = self.run(stage, x)
            yield x

    def finish(self, x: Tensor) -> Tensor:
        """The last 1x1 convolution, where there is one."""
        return self.final_conv(x)


# name: block b, halo h, value ratio r_v, output ratio r_b, blocks of the third stage, image side, final width d_f
_FAMILY = {
    "halonet_h0": (8, 3, 1.0, 0.5, 7, 256, 0),
    "halonet_h1": (8, 3, 1.0, 1.0, 10, 256, 0),
    "halonet_h2": (8, 3, 1.0, 1.25, 11, 256, 0),
    "halonet_h3": (10, 3, 1.0, 1.5, 12, 320, 1024),
    "halonet_h4": (12, 2, 1.0, 3.0, 12, 384, 1280),
    "halonet_h5": (14, 2, 2.5, 2.0, 23, 448, 1536),
    "halonet_h6": (8, 4, 3.0, 2.75, 24, 512, 1536),
    "halonet_h7": (10, 3, 4.0, 3.5, 26, 600, 2048),
}
VARIANTS = {
    name: {
        "blocks": ("aaa", "aaa", "a" * third, "aaa"),
        "widths": tuple(round(m * rb) for m in (64, 128, 256, 512)),
        "block_size": b,
        "halo_size": h,
        "value_ratio": rv,
        "final_width": df,
    }
    for name, (b, h, rv, rb, third, _, df) in _FAMILY.items()
}
_RESNET = {"widths": (256, 512, 1024, 2048), "tiered_stem": True}
HYBRIDS = {  # timm's own networks around the layer
    "halonet26t": {**_RESNET, "blocks": ("cc", "cc", "ca", "aa"), "halo_size": 2},
    "halonet50ts": {**_RESNET, "blocks": ("ccc", "ccca", "cacaca", "cac"), "num_heads": (8, 4, 8, 8), "silu": True},
    "sehalonet33ts": {
        "widths": (256, 512, 1024, 1536), "tiered_stem": True, "stem_pool": False, "silu": True, "se": True,
        "blocks": ("cc", "cca", "cca", "aa"), "final_width": 1280,
    },
    # its last attention is global on the 8x8 map of a 256-pixel image: one block, no halo
    "halo2botnet50ts_256": {
        **_RESNET, "blocks": ("ccc", "caca", "cacaca", "cac"), "stem_pool": False, "silu": True,
        "halo_size": (3, 3, 3, 0), "num_heads": (8, 8, 8, 4),
    },
}  # fmt: skip
RECIPE = {  # approximate
    "optimizer": "nesterov",
    "lr": 0.1,
    "reference_batch": 256,
    "weight_decay": 8e-5,
    "epochs": 350,
    "warmup_epochs": 10,
    "label_smoothing": 0.1,
    "auto_augment": "rand-m10-n2",
    "drop_path_rate": 0.2,
    "ema_decay": 0.9999,
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
WEIGHTS = {  # nothing was released for the paper's own networks
    "halonet26t": {"timm_a1h_in1k": timm("halonet26t.a1h_in1k", 256, 79.106, 94.306, crop=0.95)},
    "halonet50ts": {"timm_a1h_in1k": timm("halonet50ts.a1h_in1k", 256, 81.660, 95.610, crop=0.94)},
    "sehalonet33ts": {"timm_ra2_in1k": timm("sehalonet33ts.ra2_in1k", 256, 80.956, 95.276, crop=0.94)},
    "halo2botnet50ts_256": {"timm_a1h_in1k": timm("halo2botnet50ts_256.a1h_in1k", 256, 82.062, 95.634, crop=0.95)},
}
register(
    paper="halonet",
    kind="backbone",
    build=HaloNet,
    variants={**VARIANTS, **HYBRIDS},
    weights=WEIGHTS,
    input_size=(3, 256, 256),
    input_sizes={name: (3, row[5], row[5]) for name, row in _FAMILY.items()},
    recipe=RECIPE,
)
