r"""FcaFormer: Forward Cross Attention in Hybrid Vision Transformer (Zhang, Hu, Wang; ICCV 2023; arXiv 2303.07198).

In a transformer each block attends within its own tokens and knows of earlier ones only what the stream still carries. Here a block
attends forward across blocks as well: block :math:`i` of a stage sees its own tokens :math:`x` and *cross tokens*, a few merged ones of
every earlier block :math:`j < i` of the stage,

.. math:: s = \mathrm{LN}_s\big(\alpha \odot [m_0, \dots, m_{i-1}]\big), \qquad
          y = \mathrm{softmax}\big(Q(x) [K(x), K(s)]^\top / \sqrt d + [B, b]\big)\, [V(x), V(s)],

with learnt factors :math:`\alpha` a token, a bias :math:`B` by absolute offset and :math:`b` a cross token. The same projection gives keys
and values of both. *Token merge and enhancement* (TME) are two depth-wise convolutions on the map :math:`x' = x + \gamma_1 y`: a 7x7 of
stride 4 makes the merged tokens :math:`m_i = \mathrm{DW}_{7,4}(x')`, and a 3x3 with BatchNorm replaces the stream before the MLP,

.. math:: x'' = \mathrm{BN}(\mathrm{DW}_3(x')), \qquad x \leftarrow x'' + \gamma_2\, \mathrm{MLP}(\mathrm{LN}(x'')).

Four stages: two of ConvNeXt blocks, two of these, on the whole map. The dense form runs the attention stages in windows of the map they
were trained on (14 and 7 at 224 pixels), padded before the first row and column in even blocks and after the last in odd ones,
so that the windows of neighbouring blocks are displaced and the merged tokens of one reach over the borders of the other.

The factors :math:`\alpha` stand before a LayerNorm, which takes any positive one out again: what is left of them is their sign.
LayerNorms have eps 1e-5, those of the ConvNeXt blocks and of the dense maps 1e-6. Parameter names are those of the authors' code.
The authors released no file that can be fetched without a login, so ``pretrained=True`` has nothing to load.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone, sides_of
from offprint.models.backbones.convnext import Block as ConvNeXtBlock
from offprint.models.backbones.convnext import normalised
from offprint.models.registry import register
from offprint.nn import DropPath, LayerNorm2d, drop_path_rates
from offprint.nn.precision import wide

MERGE = 4  # stride of the convolution that merges tokens
DENSE_CHANNELS = (96, 192, 384, 768)  # of the maps of the dense form, at every size of the network


@cache
def offset_index(height: int, width: int) -> Tensor:
    """(HW, HW): the place |dy| W + |dx| of each pair of tokens in a table of biases by absolute offset.

    It is kept, and so made where it has numbers, whatever device the model that first asks for it is built on.
    """
    rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    y, x = (v.flatten() for v in torch.meshgrid(rows, columns, indexing="ij"))
    return (y[:, None] - y).abs() * width + (x[:, None] - x).abs()


def merged_sides(height: int, width: int) -> tuple[int, int]:
    """Sides of the map of merged tokens: a quarter, rounded up."""
    return -(-height // MERGE), -(-width // MERGE)


class ConvNorm(nn.Module):
    """Convolution without bias and BatchNorm."""

    fold_pairs = (("c", "bn"),)

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.c = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class Downsample(nn.Module):
    """1x1, depth-wise 3x3 of stride 2, 1x1, each with BatchNorm; GELU between."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = ConvNorm(cin, cout), ConvNorm(cout, cout, 3, 2, cout), ConvNorm(cout, cout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cin, H, W) to (B, cout, ceil(H/2), ceil(W/2))."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class MLP(nn.Module):
    """LayerNorm (a second one: the block has normalised already), linear to 4C, GELU, linear back."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class ForwardCrossBlock(nn.Module):
    """Attention to own and cross tokens, merge, enhance, MLP.

    Args:
        dim, num_heads: channels, and heads of the attention.
        sides: (H, W) of the map.
        earlier: blocks whose merged tokens it reads.
        merges: make merged tokens for the blocks behind.
        drop_path, layer_scale_init_value: of both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sides: tuple[int, int],
        earlier: int,
        merges: bool,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
    ):
        super().__init__()
        self.num_heads, self.earlier = num_heads, earlier
        self.gamma_1: nn.Parameter | None = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
        self.gamma_2: nn.Parameter | None = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
        self.attention_biases: nn.Parameter | None = nn.Parameter(torch.zeros(num_heads, sides[0] * sides[1]))
        if earlier:
            tokens = earlier * merged_sides(*sides)[0] * merged_sides(*sides)[1]
            self.s_token_bias: nn.Parameter | None = nn.Parameter(torch.zeros(1, num_heads, 1, tokens))
            self.s_scale_factors = nn.Parameter(torch.ones(1, tokens, 1))
            self.s_norm = nn.LayerNorm(dim)
        self.dw_conv = nn.Conv2d(dim, dim, 7, MERGE, 3, groups=dim, bias=False) if merges else None
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.local_conv = ConvNorm(dim, dim, 3, 1, dim)
        self.mlp = MLP(dim)
        self.drop_path = DropPath(drop_path)
        self.set_sides(sides)

    def set_sides(self, sides: tuple[int, int]) -> None:
        """Note the map's sides, and which bias each pair of its tokens has."""
        self.sides = sides
        device = None if self.attention_biases is None else self.attention_biases.device
        self.register_buffer("offsets", offset_index(*sides).to(device), persistent=False)

    def bias(self) -> Tensor:
        """(1, heads, HW, HW + cross tokens): what is added to the logits."""
        if self.attention_biases is None:
            return self.fixed_bias  # type: ignore[return-value]
        own = self.attention_biases[:, self.offsets][None]
        return torch.cat([own, self.s_token_bias.expand(-1, -1, own.shape[2], -1)], 3) if self.earlier else own

    def attention(self, x: Tensor, cross: Tensor | None) -> Tensor:
        """(B, HW, C) and merged tokens (B, S, C) to (B, HW, C)."""
        b, n, c = x.shape
        parts = self.qkv(self.norm1(x)).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        if cross is not None:  # of the cross tokens no queries are asked
            s = self.s_norm(cross * self.s_scale_factors)
            both = F.linear(s, self.qkv.weight[c:], self.qkv.bias[c:])
            both = both.view(b, s.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            k, v = torch.cat([k, both[0]], 2), torch.cat([v, both[1]], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias().to(q.dtype))
        return self.proj(y.transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor, cross: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (B, C, H, W) and the merged tokens of earlier blocks (B, S, C) to the map, and the block's own merged tokens."""
        b, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        tokens = self._add(tokens, self.attention(tokens, cross), self.gamma_1)
        x = tokens.view(b, h, w, c).permute(0, 3, 1, 2)
        merged = None if self.dw_conv is None else self.dw_conv(x).flatten(2).transpose(1, 2)
        tokens = self.local_conv(x).permute(0, 2, 3, 1)  # in place of the stream
        tokens = self._add(tokens, self.mlp(self.norm2(tokens)), self.gamma_2)
        return tokens.permute(0, 3, 1, 2), merged

    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        branch = self.drop_path(branch)
        return x + branch if gamma is None else torch.addcmul(x, branch, gamma.to(x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """For :func:`offprint.deploy`: layer scales into the layers before them, and the biases written out once.

        Raises:
            OffprintError: the block is in training mode.
        """
        if self.attention_biases is None:
            return
        if self.training:
            raise OffprintError(
                f"{type(self).__name__} is in training mode, and its biases and layer scales cannot be trained once merged; finish "
                "training, call .eval(), and merge then"
            )
        self.register_buffer("fixed_bias", self.bias().clone())
        self.attention_biases = None
        if self.earlier:
            self.s_token_bias = None
        for gamma, layer in ((self.gamma_1, self.proj), (self.gamma_2, self.mlp.fc2)):
            layer.weight.mul_(gamma[:, None])  # type: ignore[index]
            layer.bias.mul_(gamma)
        self.gamma_1 = self.gamma_2 = None

    def tables(self) -> tuple[str, ...]:
        """Names of the parameters whose size follows from the map's."""
        return ("attention_biases", "s_token_bias", "s_scale_factors") if self.earlier else ("attention_biases",)


def resample(name: str, table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table of a block for a map of other sides.

    The biases are read between old offsets so that no offset and the largest one stay what they are; the biases of merged tokens
    between the places that those stood for; the factors at the nearest of these, since only their signs count, and a mean of
    both signs would have none.

    Args:
        name: ``attention_biases`` (heads, HW), ``s_token_bias`` (1, heads, 1, blocks x S), ``s_scale_factors`` (1, blocks x S, 1).
        old, new: sides of the maps.
    """
    if name == "attention_biases":
        grid = wide(table).view(1, -1, *old)
        return F.interpolate(grid, new, mode="bilinear", align_corners=True).view(table.shape[0], -1).to(table.dtype)
    a, b = merged_sides(*old), merged_sides(*new)
    grid = wide(table).view(1, -1, *a)  # heads and blocks together
    if name == "s_scale_factors":
        return F.interpolate(grid, b, mode="nearest").reshape(1, -1, 1).to(table.dtype)
    moved = F.interpolate(grid, b, mode="bilinear", align_corners=False)
    return moved.reshape(1, table.shape[1], 1, -1).to(table.dtype)


class Stage(nn.Module):
    """Blocks, then the reduction (all stages but the last)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class PatchEmbed(nn.Module):
    """Two 3x3 convolutions of stride 2 with BatchNorm, GELU between."""

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(in_chans, dim // 2, 3, 2), nn.GELU(), ConvNorm(dim // 2, dim, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class FcaFormer(Backbone):
    """Four stages at strides 4, 8, 16 and 32; the last two attend.

    Args:
        img_size: side, or (height, width), of the images in pixels; multiples of 32. The tables of the attention stages are for these;
            :meth:`set_input_size` makes them anew, and those of a file for other images are resampled on loading.
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled, normalised features.
        dims, depths: channels and blocks per stage.
        num_heads: of the two attention stages.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise linearly to it from 0.
        layer_scale_init_value: initial layer scale; default 1e-6, and 1 in the dense form.
        cab_max_d: how many earlier blocks a block attends to at most, the latest; 0 for a plain hybrid without cross tokens.

    With ``features_only`` the model is the dense form: any image of 32 pixels and more, attention in windows, and each map through a 1x1
    convolution to :data:`DENSE_CHANNELS` and a LayerNorm. There every earlier block is attended to, and the zeros that fill up the last
    windows are attended to as well, as in the authors' code.
    """

    head_modules = ("norm_head", "head")
    input_layers = ("patch_embed.seq.0.c",)
    optional_state = r"^(head|norm)\d\."  # of the dense form: no classification checkpoint holds them

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: Sequence[int] = (96, 192, 320, 480),
        depths: Sequence[int] = (2, 2, 7, 2),
        num_heads: Sequence[int] = (10, 15),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        cab_max_d: int = 12,
    ):
        super().__init__()
        if len(dims) != 4 or len(depths) != 4 or len(num_heads) != 2:
            raise OffprintError(
                f"dims {tuple(dims)}, depths {tuple(depths)} and num_heads {tuple(num_heads)}: four stages, of which the last two attend, "
                "need four, four and two numbers"
            )
        for dim, heads in zip(dims[2:], num_heads, strict=True):
            if dim % heads:
                raise OffprintError(f"{dim} channels do not divide into {heads} heads")
        if cab_max_d < 0:
            raise OffprintError(f"cab_max_d={cab_max_d}; give how many earlier blocks are attended to, 0 for none")
        self.img_size = self._check_sides(sides_of(img_size))
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.cab_max_d: int | None = cab_max_d
        self.layer_scale_init_value = layer_scale_init_value
        scale = 1e-6 if layer_scale_init_value is None else layer_scale_init_value
        self.pyramid_channels = list(dims)
        self.pyramid_reductions = [4, 8, 16, 32]
        self.pyramid_modules = [f"layer_{i}.blocks.{depth - 1}" for i, depth in enumerate(depths)]
        self.patch_embed = PatchEmbed(in_chans, dims[0])
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                if i < 2:
                    blocks.append(ConvNeXtBlock(dim, next(rates), scale))
                    continue
                merges = cab_max_d > 0 and j < depth - 1
                earlier = min(j, cab_max_d)
                blocks.append(
                    ForwardCrossBlock(
                        dim, num_heads[i - 2], self._sides_of_stage(i), earlier, merges, next(rates), scale
                    )
                )
            setattr(self, f"layer_{i}", Stage(blocks, Downsample(dim, dims[i + 1]) if i < 3 else None))
        self.norm_head = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.dense = False
        self.apply(_init)

    # -- sizes --------------------------------------------------------------------------------------------------------
    @staticmethod
    def _check_sides(sides: tuple[int, int]) -> tuple[int, int]:
        if any(s % 32 for s in sides):
            raise OffprintError(
                f"img_size={sides[0]}x{sides[1]} pixels; the tables of the attention stages are for maps of a sixteenth and a "
                f"thirty-second of the image, so both sides must be multiples of 32, such as {max(32, round(sides[0] / 32) * 32)}"
                f"x{max(32, round(sides[1] / 32) * 32)}"
            )
        return sides

    def _sides_of_stage(self, i: int) -> tuple[int, int]:
        """Sides of stage ``i``'s map for images of ``img_size``; of its windows in the dense form."""
        stride = self.pyramid_reductions[i] if hasattr(self, "pyramid_reductions") else 4 * 2**i
        return self.img_size[0] // stride, self.img_size[1] // stride

    def _attending(self) -> Iterator[tuple[int, str, ForwardCrossBlock]]:
        """(stage, name, block) of the blocks that attend."""
        for name, module in self.named_modules():
            if isinstance(module, ForwardCrossBlock):
                yield int(name[6]), name, module

    def check_input(self, x: Tensor) -> None:
        """Refuse a batch the architecture cannot take, saying what would work."""
        super().check_input(x)
        sides = (x.shape[-2], x.shape[-1])
        if not self.dense and sides != self.img_size and any(True for _ in self._attending()):
            raise OffprintError(
                f"{type(self).__name__} was built for images of {self.img_size[0]}x{self.img_size[1]} pixels, got {sides[0]}x{sides[1]}; "
                f"build it with img_size=({sides[0]}, {sides[1]}), call model.set_input_size(({sides[0]}, {sides[1]})) (multiples of 32), or "
                "resize the images; features_only=True takes any"
            )

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Make the tables of the attention stages anew for such images (:func:`resample`); the dense form takes any as it is.

        Raises:
            OffprintError: sides that are no multiples of 32, or a model whose tables are merged.
        """
        sides = self._sides(img_size)
        if self.dense:
            return
        self._check_sides(sides)
        if sides == self.img_size:
            return
        self.img_size = sides
        for stage, _, block in self._attending():
            if block.attention_biases is None:
                raise OffprintError(
                    "a deployed model keeps its size; set it on the model that was deployed, and deploy again"
                )
            old, new = block.sides, self._sides_of_stage(stage)
            for name in block.tables():
                setattr(block, name, nn.Parameter(resample(name, getattr(block, name).detach(), old, new)))
            block.set_sides(new)
        self._remember(img_size=sides)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the tables of a file for other images, with a warning; the file's sides are taken to be in our proportion."""
        out, moved = dict(state), ""
        for stage, prefix, block in self._attending():
            file = state.get(f"{prefix}.attention_biases")
            if file is None or block.attention_biases is None or file.shape == block.attention_biases.shape:
                continue
            new = self._sides_of_stage(stage)
            height = round((file.shape[-1] * new[0] / new[1]) ** 0.5)
            old = (height, file.shape[-1] // max(1, height))
            if file.ndim != 2 or old[0] * old[1] != file.shape[-1]:
                continue  # not told by its proportion: the reader says that the sizes differ
            for name in block.tables():
                value = state.get(f"{prefix}.{name}")
                whole = {"attention_biases": file.shape[0] * old[0] * old[1]}.get(name)
                a = merged_sides(*old)
                expected = whole or block.earlier * a[0] * a[1] * (block.num_heads if name == "s_token_bias" else 1)
                if value is not None and value.numel() == expected:
                    out[f"{prefix}.{name}"] = resample(name, value, old, new)
            stride = self.pyramid_reductions[stage]
            moved = f"images of {old[0] * stride}x{old[1] * stride} to {self.img_size[0]}x{self.img_size[1]} pixels"
        if moved:
            warnings.warn(f"the tables of the attention stages were resampled from {moved}", stacklevel=4)
        return out

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the map of :meth:`forward_features` for an image of these."""
        for _ in range(len(self.pyramid_reductions) + 1):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """As of any backbone, with the size of images that the model is built for."""
        cfg = super().pretrained_cfg
        if self.dense:
            return cfg
        sides = {"input_size": (self.in_chans, *self.img_size), "pool_size": self.map_size(*self.img_size)}
        return {**cfg, **sides, "fixed_input_size": True}

    default_cfg = pretrained_cfg

    def example_input(self, batch: int = 1) -> Tensor:
        """Random images of the size that the model is built for."""
        reference = self.patch_embed.seq[0].c.weight
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, self.in_chans, *self.img_size, generator=generator).to(reference)

    # -- dense form ---------------------------------------------------------------------------------------------------
    def as_features(self, out_indices=None) -> FcaFormer:
        """The dense form: windows of the maps of ``img_size``, 1x1 convolutions and norms on the maps, all earlier blocks attended to."""
        dims, self.pyramid_channels = self.pyramid_channels, list(DENSE_CHANNELS)
        try:
            super().as_features(out_indices)
        except OffprintError:
            self.pyramid_channels = dims
            raise
        self.dense, reference = True, self.patch_embed.seq[0].c.weight
        for i in self.out_indices or ():
            head, norm = nn.Conv2d(dims[i], DENSE_CHANNELS[i], 1, bias=False), LayerNorm2d(DENSE_CHANNELS[i])
            _init(head)
            setattr(self, f"head{i}", head.to(reference))
            setattr(self, f"norm{i}", norm.to(reference))
        self._lift_limit()
        if self.layer_scale_init_value is None:
            for name, parameter in self.named_parameters():
                if name.rsplit(".", 1)[-1] in ("gamma", "gamma_1", "gamma_2"):
                    nn.init.ones_(parameter)
        return self

    def _lift_limit(self) -> None:
        """Tables for all earlier blocks, where the classifier reads the last ``cab_max_d`` only."""
        limit, self.cab_max_d = self.cab_max_d, None if self.cab_max_d else 0
        for _, name, block in self._attending():
            position = int(name.rsplit(".", 1)[-1])
            if not limit or position <= limit:
                continue
            more = position - block.earlier
            tokens = block.s_scale_factors.shape[1] // block.earlier * more
            block.s_scale_factors = nn.Parameter(F.pad(block.s_scale_factors.detach(), (0, 0, tokens, 0), value=1.0))
            block.s_token_bias = nn.Parameter(F.pad(block.s_token_bias.detach(), (tokens, 0)))  # type: ignore[union-attr]
            block.earlier = position

    def prune_intermediate_layers(self, indices=1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """As of any backbone; the dense form's convolutions on maps that are gone go too."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        for i in range(len(self.pyramid_channels), 4):
            if hasattr(self, f"head{i}"):
                delattr(self, f"head{i}")
        return taken

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """A map through its convolution and norm where the model is a feature extractor."""
        head = getattr(self, f"head{index}", None)
        return x if head is None else getattr(self, f"norm{index}")(head(x))

    # -- forward ------------------------------------------------------------------------------------------------------
    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block; a reduction goes with what follows it."""
        groups = [["patch_embed.seq.0", "patch_embed.seq.2"]]
        for i in range(len(self.pyramid_channels)):
            for j in range(len(getattr(self, f"layer_{i}").blocks)):
                before = [f"layer_{i - 1}.downsample"] if i and not j else []
                groups.append([*before, f"layer_{i}.blocks.{j}"])
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The map of every stage, before its reduction."""
        x = self.patch_embed(x)
        for i in range(len(self.pyramid_channels)):
            stage = getattr(self, f"layer_{i}")
            if i:
                x = getattr(self, f"layer_{i - 1}").downsample(x)
            x = self.run(stage.blocks, x) if i < 2 else self._attend(stage, x)
            yield x

    def _attend(self, stage: Stage, x: Tensor) -> Tensor:
        """The blocks of an attention stage, each given the merged tokens of those before it."""
        merged: list[Tensor] = []
        size = x.shape[-2:]
        for j, block in enumerate(stage.blocks):
            first = merged if self.cab_max_d is None else merged[max(0, len(merged) - self.cab_max_d) :]
            cross = torch.cat(first, 1) if first else None
            if self.dense:
                x = _cut(x, block.sides, before=j % 2 == 0)
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x, new = recompute(block, x, cross, use_reentrant=False)
            else:
                x, new = block(x, cross)
            if self.dense:
                x = _join(x, tuple(size), block.sides, before=j % 2 == 0)
            if new is not None:
                merged.append(new)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the map, then norm."""
        return normalised(self.norm_head, self.pool(x))


def _cut(x: Tensor, window: tuple[int, int], before: bool) -> Tensor:
    """(B, C, H, W), padded with zeros to whole windows before the first or after the last row and column, to (B windows, C, *window)."""
    (h, w), (a, b) = x.shape[-2:], window
    down, right = -h % a, -w % b
    x = F.pad(x, (right, 0, down, 0) if before else (0, right, 0, down))
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).view(n, h // a, a, w // b, b, c).transpose(2, 3)
    return x.reshape(-1, a, b, c).permute(0, 3, 1, 2)


def _join(x: Tensor, size: tuple[int, int], window: tuple[int, int], before: bool) -> Tensor:
    """The inverse of :func:`_cut`, back to a map of ``size``."""
    (h, w), (a, b) = size, window
    rows, columns, c = -(-h // a), -(-w // b), x.shape[1]
    x = x.permute(0, 2, 3, 1).reshape(-1, rows, columns, a, b, c).transpose(2, 3).reshape(-1, rows * a, columns * b, c)
    top, left = (rows * a - h, columns * b - w) if before else (0, 0)
    return x[:, top : top + h, left : left + w].permute(0, 3, 1, 2)


VARIANTS: dict[str, dict[str, Any]] = {
    "fcaformer_l1": {"dims": (64, 128, 192, 320), "depths": (2, 2, 6, 2), "num_heads": (6, 10)},
    "fcaformer_l2": {"dims": (96, 192, 320, 480), "depths": (2, 2, 7, 2), "num_heads": (10, 15)},
    "fcaformer_l3": {"dims": (96, 192, 320, 512), "depths": (3, 6, 12, 3), "num_heads": (10, 16)},
    "fcaformer_l4": {"dims": (128, 256, 512, 768), "depths": (3, 6, 12, 3), "num_heads": (16, 24)},
}
RECIPE = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "reference_batch": 1024,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
    "min_lr": 1e-6,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "interpolation": "bicubic",
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
register(
    paper="fcaformer",
    kind="backbone",
    build=FcaFormer,
    variants=VARIANTS,
    recipe=RECIPE,
    exceptions={
        "training": {name: {"drop_path_rate": rate} for name, rate in zip(VARIANTS, (0.0, 0.1, 0.2, 0.4), strict=True)}
    },
)
