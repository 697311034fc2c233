r"""Attention Swin U-Net (Aghdam et al.; ISBI 2023; arXiv 2210.16898), and the Swin-Unet it is made from.

Swin-Unet is a U of Swin blocks: four stages with patch merging down to stride 32, the same stages with patch expanding back up, and at
each of three resolutions the encoder's tokens joined to the decoder's by concatenation and a linear layer. Attention Swin U-Net
changes the joints in two ways:

- *cross-contextual attention*: before they are concatenated, decoder tokens x and encoder tokens s exchange a word by CrossViT's cross
  attention. With :math:`\bar x` the mean of x as a token of its own, two rounds of

  .. math:: \bar x \leftarrow \bar x + A_1(\mathrm{LN}(\bar x),\, s), \qquad \bar s \leftarrow \bar s + A_2(\mathrm{LN}(\bar s),\, x),

  A being attention of the one query over itself and the other's tokens. In the released code the mean token then *replaces* token 0,
  so that of every map only the upper left token is changed; this is what its weights are for, and what is built here.
- *spatial attention*: the softmax maps of the encoder's last block of a stage are merged with those of the decoder's blocks,
  :math:`(P_{dec} + P_{enc})\,V` or :math:`(P_{dec} \odot P_{enc})\,V` (:func:`attention_transfer`).

Where the released code and the paper differ. The code computes the merged maps after the values were already summed, and throws
them away: its spatial attention changes nothing where skips are cross attended, and where they are not (mode ``swin``) its only effect
is that each skip is concatenated and projected twice by one layer. ``spatial_attention=True`` is that released behaviour;
``"add"`` and ``"mul"`` are the paper's form, for models trained so. Encoder maps are handed to the decoder's blocks whose windows lie as those of
the encoder's last block do: every second one.

Nothing is downloaded to build it; an ImageNet Swin-T file starts encoder and decoder (dialects ``swin`` and ``timm``: stage k also fills decoder
stage 3 - k, as in Swin-Unet). No trained weights of this paper are released. Names are the authors', less their wrappers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbone import sides_of
from offprint.models.backbones.swin import BUFFERS, TIMM, Block, PatchEmbed, PatchMerging, Stage, WindowAttention
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.nn import drop_path_rates
from offprint.nn.positions import resample_table
from offprint.nn.windows import Windows, join, split

MODES = ("cross_contextual_attention", "swin")
MERGES = ("add", "mul")


# -- attention --------------------------------------------------------------------------------------------------------
def attention_maps(q: Tensor, k: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + bias + mask), (windows, heads, tokens, tokens).

    Args:
        q, k: (windows, heads, tokens, d).
        bias: (heads, tokens, tokens).
        mask: (windows of one image, tokens, tokens).
    """
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return logits.softmax(-1)


def attention_transfer(maps: Tensor, v: Tensor, encoder_maps: Tensor | None = None, merge: str = "add") -> Tensor:
    """The paper's spatial attention: the decoder's maps, merged with the encoder's, times the values.

    Sums are not normalised again: with ``add`` the rows of the merged maps sum to 2, with ``mul`` to less than 1.

    Args:
        maps: of the decoder (windows, heads, tokens, tokens).
        v: values (windows, heads, tokens, d).
        encoder_maps: of the encoder; ``None`` leaves the decoder's alone.
        merge: ``add`` or ``mul``.
    """
    if merge not in MERGES:
        raise unknown("merge of attention maps", merge, MERGES)
    if encoder_maps is not None:
        maps = maps + encoder_maps if merge == "add" else maps * encoder_maps
    return maps @ v


def _qkv(block: Block, x: Tensor, cut: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (windows, heads, tokens, d) of a block for a map (B, H, W, C)."""
    y = split(block.norm1(x), cut).flatten(0, 1)
    n, t, _ = y.shape
    q, k, v = block.attn.qkv(y).view(n, t, 3, block.attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _with_maps(block: Block, x: Tensor, cut: Windows, encoder_maps: Tensor | None, merge: str) -> tuple[Tensor, Tensor]:
    """A Swin block whose maps are merged with the encoder's: (output (B, H, W, C), its own maps)."""
    q, k, v = _qkv(block, x, cut)
    maps = attention_maps(q, k, block.attn.bias(), cut.mask)
    y = block.attn.proj(attention_transfer(maps, v, encoder_maps, merge).transpose(1, 2).flatten(2))
    x = x + block.drop_path(join(y.unflatten(0, (len(x), -1)), cut))
    return x + block.drop_path(block.mlp(block.norm2(x))), maps


class CrossAttention(nn.Module):
    """Attention of one token over itself, normalised, and other tokens, as they are.

    There is one query, so keys and values need not be made for every token: :math:`q^\\top W_k s = (W_k^\\top q)^\\top s` and
    :math:`\\sum a W_v s = W_v \\sum a s`. The products are taken in that order, which gives the same numbers for a small part of the cost.
    """

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, inner, bias=False), nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, token: Tensor, context: Tensor) -> Tensor:
        """(B, 1, C) and (B, N, C) to (B, 1, C)."""
        own = self.norm(token)
        tokens = torch.cat([own, context], 1)
        q = self.to_q(own).unflatten(-1, (self.heads, -1))[:, 0]
        to_k, to_v = self.to_kv.weight.unflatten(0, (2, self.heads, -1)).unbind(0)
        asked = torch.einsum("bhe,hec->bhc", q, to_k) * q.shape[-1] ** -0.5
        mixed = (asked @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        return self.to_out(torch.einsum("bhc,hec->bhe", mixed, to_v).flatten(1))[:, None]


_AUTHORS = ((r"\.fn\.fn\.", "."), (r"\.fn\.norm\.", ".norm."), (r"\.to_out\.0\.", ".to_out."))


class CrossTransformer(nn.Module):
    """CrossViT's exchange between two sets of tokens: (B, N, C) and (B, M, C) to the same; only token 0 of each is changed.

    Args:
        dim: C.
        depth: rounds.
        heads, dim_head: of the attention.
    """

    native = "offprint"
    dialects = (Dialect("authors", _AUTHORS),)

    def __init__(self, dim: int, depth: int = 2, heads: int = 8, dim_head: int = 64):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(CrossAttention(dim, heads, dim_head) for _ in range(2)) for _ in range(depth)
        )

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        means, rest = [v.mean(1, keepdim=True) for v in (x, skip)], [v[:, 1:] for v in (x, skip)]
        for layer in self.layers:
            one, two = layer  # type: ignore[misc]
            means = [means[0] + one(means[0], rest[1]), means[1] + two(means[1], rest[0])]
        return torch.cat([means[0], rest[0]], 1), torch.cat([means[1], rest[1]], 1)


# -- the network ------------------------------------------------------------------------------------------------------
class PatchExpand(nn.Module):
    """A linear layer whose channels become p x p tokens, and a norm: (B, H, W, C) to (B, pH, pW, out)."""

    def __init__(self, dim: int, out: int, side: int = 2):
        super().__init__()
        self.side = side
        self.expand = nn.Linear(dim, side * side * out, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        p = self.side
        x = self.expand(x).view(b, h, w, p, p, -1).permute(0, 1, 3, 2, 4, 5)
        return self.norm(x.reshape(b, p * h, p * w, -1))


class Encoder(nn.Module):
    """Swin's stages; the tokens that enter each, and of the first three the attention maps of the last block where asked for."""

    def __init__(self, in_chans: int, dims: list[int], stages: list[Stage]):
        super().__init__()
        self.patch_embed = PatchEmbed(in_chans, dims[0], 4, True)
        self.layers, self.norm = nn.ModuleList(stages), nn.LayerNorm(dims[-1])

    def forward(self, x: Tensor, merge: str = "") -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        x = self.patch_embed(x)
        skips, kept = [], []
        for stage in self.layers:
            skips.append(x)
            cuts, maps = stage.cuts(x, False), None
            for j, block in enumerate(stage.blocks):
                if merge and j == len(stage.blocks) - 1:
                    x, maps = _with_maps(block, x, cuts[j % 2], None, merge)
                else:
                    x = block(x, cuts[j % 2])
            kept.append(maps)
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)
        return self.norm(x), skips, kept


class Decoder(nn.Module):
    """Expanding, joining the skip, the encoder's stage again; three times, and the last expansion to pixels."""

    def __init__(self, dims: list[int], stages: list[Stage], crossed: int, twice: bool, num_classes: int):
        super().__init__()
        self.crossed, self.twice = crossed, twice
        for i, stage in enumerate(stages[:-1]):
            stage.upsample = PatchExpand(dims[2 - i], dims[1 - i])
        self.layers_up = nn.ModuleList([PatchExpand(dims[3], dims[2]), *stages])
        self.concat_back_dim = nn.ModuleList([nn.Identity(), *(nn.Linear(2 * d, d) for d in dims[2::-1])])
        if crossed:
            self.cross = nn.ModuleList(CrossTransformer(d) for d in dims[:3])
        self.norm_up, self.up = nn.LayerNorm(dims[0]), PatchExpand(dims[0], dims[0], 4)
        self.output = nn.Conv2d(dims[0], num_classes, 1, bias=False)

    def join(self, k: int, x: Tensor, skip: Tensor) -> Tensor:
        """Skip fusion k = 1, 2, 3 (deepest first) of maps (B, H, W, C)."""
        project = self.concat_back_dim[k]
        if k <= self.crossed:
            pair = self.cross[3 - k](x.flatten(1, 2), skip.flatten(1, 2))
            return project(torch.cat(pair, -1)).view_as(x)
        for _ in range(1 + self.twice):
            x = project(torch.cat([x, skip], -1))
        return x

    def forward(self, x: Tensor, skips: list[Tensor], kept: list[Tensor | None], merge: str = "") -> Tensor:
        x = self.layers_up[0](x)
        for k in (1, 2, 3):
            stage = self.layers_up[k]
            x = self.join(k, x, skips[3 - k])
            cuts = stage.cuts(x, False)
            for j, block in enumerate(stage.blocks):
                if merge and j % 2:
                    x, _ = _with_maps(block, x, cuts[1], kept[3 - k], merge)
                else:
                    x = block(x, cuts[j % 2])
            if hasattr(stage, "upsample"):
                x = stage.upsample(x)
        return self.output(self.up(self.norm_up(x)).permute(0, 3, 1, 2))


def _from_swin(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A Swin classifier's tensors: the encoder's, and a copy of each stage's blocks for the decoder's stage of its width."""
    out = {f"encoder.{name}": value for name, value in state.items()}
    own = model.state_dict()
    for name, value in state.items():
        kind, _, rest = name.partition(".")
        stage, _, inside = rest.partition(".")
        if kind == "layers" and inside.startswith("blocks.") and stage in ("0", "1", "2"):
            twin = f"decoder.layers_up.{3 - int(stage)}.{inside}"
            if twin in own:
                out[twin] = value
    return out


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_SWIN = {
    "ignore": r"^head\.|(relative_position_index|relative_coords_table|attn_mask)$",
    "reshape": _from_swin,
    "part": r"^encoder\.|^decoder\.layers_up\.\d\.blocks\.",
}


class AttSwinUNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes, H, W); one channel is repeated to three.

    Args:
        img_size: side, or (height, width), that the windows are laid out for. Other images whose sides are multiples of ``size_multiple``
            work too (224 with windows of 7).
        num_classes: output channels. The released code always has 9; a binary mask takes 2 with a softmax, or 1 with
            ``binary_cross_entropy_with_logits``: the outputs are logits.
        in_chans: channels of the first layer.
        embed_dim, depths, num_heads: of the encoder's stages; the decoder mirrors the first three.
        window_size: M.
        drop_path_rate: stochastic depth of the encoder's last block, rising from 0; decoder stages have the rates of their twins.
        mode: ``cross_contextual_attention``, or ``swin`` for plain concatenation (Swin-Unet).
        skip_num: how many skips are cross attended, the deepest first: 0 to 3, as a number or its text.
        spatial_attention: ``False``; ``True`` as released (see above: nothing, and in mode ``swin`` a second projection); ``"add"`` or
            ``"mul"`` as the paper has it.

    Raises:
        OffprintError: a size into which the windows do not fit; the message says which would do.
    """

    native = "offprint"
    classifier = "decoder.output"
    input_layers = ("encoder.patch_embed.proj",)
    undecayed = r"relative_position_bias_table"
    dialects = (
        Dialect(
            "authors", ((r"\.Crossvit_layer\.", ".cross."), *_AUTHORS),
            ignore=r"^patch_embed\.|^decoder\.norm\.|(relative_position_index|attn_mask)$",
        ),
        Dialect("swin", **_SWIN),  # type: ignore[arg-type]
        Dialect("timm", TIMM, **_SWIN),  # type: ignore[arg-type]
    )  # fmt: skip

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        num_classes: int = 9,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.1,
        mode: str = "cross_contextual_attention",
        skip_num: int | str = 3,
        spatial_attention: bool | str = False,
    ):
        super().__init__()
        if mode not in MODES:
            raise unknown("mode of the skips", mode, MODES)
        if str(skip_num) not in ("0", "1", "2", "3"):
            raise OffprintError(f"skip_num={skip_num!r}; give how many skips are cross attended, 0 to 3")
        if spatial_attention not in (False, True, *MERGES):
            raise unknown("spatial attention", spatial_attention, ("False", "True", *MERGES))
        if len(depths) != 4 or len(num_heads) != 4:
            raise OffprintError(f"depths {tuple(depths)} and num_heads {tuple(num_heads)}: there are four stages")
        self.img_size, self.window_size = sides_of(img_size), window_size
        self.num_classes, self.in_chans, self.mode = num_classes, in_chans, mode
        self.merge = spatial_attention if isinstance(spatial_attention, str) else ""
        self._fits_windows(self.img_size, window_size)
        dims = [embed_dim * 2**i for i in range(4)]
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise OffprintError(f"{dim} channels do not divide into {heads} heads; change embed_dim or num_heads")
        maps = [(self.img_size[0] // s, self.img_size[1] // s) for s in (4, 8, 16, 32)]
        self.size_multiple = math.lcm(*(s * min(window_size, *m) for s, m in zip((4, 8, 16, 32), maps, strict=True)))
        rates = drop_path_rates(drop_path_rate, sum(depths))

        def stage(i: int, merging: nn.Module | None) -> Stage:
            own = rates[sum(depths[:i]) : sum(depths[: i + 1])]
            window = min(window_size, *maps[i])
            blocks = [Block(dims[i], WindowAttention(dims[i], window, num_heads[i]), rate) for rate in own]
            return Stage(blocks, merging, window_size, maps[i])

        self.encoder = Encoder(in_chans, dims, [stage(i, PatchMerging(dims[i]) if i < 3 else None) for i in range(4)])
        crossed = int(skip_num) if mode == MODES[0] else 0
        twice = mode == "swin" and spatial_attention is True
        self.decoder = Decoder(dims, [stage(i, None) for i in (2, 1, 0)], crossed, twice, num_classes)
        # deeper Swin files than these stages: what is beyond is of no use
        beyond = "|".join(rf"^encoder\.layers\.{i}\.blocks\.{j}\." for i, d in enumerate(depths) for j in range(d, 18))
        self.optional_state = f"{BUFFERS}|{beyond}" if beyond else BUFFERS
        self.apply(_init)

    @staticmethod
    def _legal(side: int, window: int) -> bool:
        cells = [side // s for s in (4, 8, 16, 32)]
        return side % 32 == 0 and side > 0 and all(c <= window or c % window == 0 for c in cells)

    @classmethod
    def _fits_windows(cls, sides: tuple[int, int], window: int) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise OffprintError(f"window_size={window}; give the tokens of a window's side")
        if all(cls._legal(side, window) for side in sides):
            return
        wrong = next(side for side in sides if not cls._legal(side, window))
        known = [side for side in range(32, wrong + 32 * window + 1, 32) if cls._legal(side, window)]
        near = sorted(sorted(known, key=lambda s: abs(s - wrong))[:3])
        other = [w for w in (7, 8, 12, 16) if w != window and cls._legal(wrong, w)]
        hint = f", or window_size={other[0]}" if other else ""
        raise OffprintError(
            f"img_size={sides}: windows of {window} do not fit into the maps of {wrong} pixels (strides 4 to 32); nearest that do: "
            f"{', '.join(map(str, near)) or 32 * window}{hint}; predict pads pictures of other sizes"
        )

    def check_input(self, x: Tensor) -> None:
        """Refuse images into which the windows do not fit."""
        if x.ndim != 4 or x.shape[1] not in (1, self.in_chans):
            raise OffprintError(f"expected images (B, {self.in_chans}, H, W), or of one channel, got {tuple(x.shape)}")
        if any(side % self.size_multiple or not side for side in x.shape[-2:]):
            near = tuple(max(1, round(side / self.size_multiple)) * self.size_multiple for side in x.shape[-2:])
            raise OffprintError(
                f"sides must be multiples of {self.size_multiple} (windows of {self.window_size}), got {tuple(x.shape[-2:])}; resize or "
                f"pad to {near}, or build the model for another img_size and window_size"
            )

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tables of other windows are resampled."""
        own = self.state_dict()
        return {
            name: resample_table(value, round(own[name].shape[0] ** 0.5))
            if name.endswith("relative_position_bias_table") and name in own and value.shape != own[name].shape
            and value.shape[1:] == own[name].shape[1:]
            else value
            for name, value in state.items()
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if not torch.compiler.is_compiling():
            self.check_input(x)
        if x.shape[1] == 1 != self.in_chans:
            x = x.expand(-1, self.in_chans, -1, -1)
        return self.decoder(*self.encoder(x, self.merge), self.merge)

    def example_input(self, batch: int = 1) -> Tensor:
        """A random image of the model's size."""
        weight = self.decoder.output.weight
        return torch.randn(batch, self.in_chans, *self.img_size, device=weight.device, dtype=weight.dtype)


# -- skin lesions -------------------------------------------------------------------------------------------------------
def clean_mask(mask: np.ndarray, side: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Binary opening with a square, then holes filled with the same square: (opened, filled), each (H, W) bool."""
    from scipy.ndimage import binary_fill_holes, binary_opening

    square = np.ones((side, side), bool)
    opened = binary_opening(mask, square)
    return opened, binary_fill_holes(opened, square)


def skin_metrics(probabilities: Any, truth: Any, threshold: float = 0.43, side: int = 6) -> dict[str, float | None]:
    """Scores of lesion masks as the paper takes them: threshold, opening, holes filled, the pixels of all images pooled.

    Args:
        probabilities: (N, H, W), after the sigmoid.
        truth: (N, H, W), 0 or 1 (or bool).
        threshold: at or above which a pixel is lesion.
        side: of the square, in pixels.

    Returns:
        ``dice`` (F1), ``accuracy``, ``sensitivity``, ``specificity``, from 0 to 1; ``None`` where the pixels for one are missing.

    Raises:
        OffprintError: other shapes, values outside 0 to 1, or a truth that is not binary.
    """
    p, t = (np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v) for v in (probabilities, truth))
    if p.shape != t.shape or p.ndim != 3:
        raise OffprintError(f"expected probabilities and truth (N, H, W), got {p.shape} and {t.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise OffprintError("probabilities lie from 0 to 1; these do not: take the sigmoid of the logits first")
    if not np.isin(t, (0, 1)).all():
        raise OffprintError(
            f"a truth of 0 and 1 was expected, got values such as {np.unique(t)[:4].tolist()}; divide masks of 255"
        )
    said, true = np.stack([clean_mask(m, side)[1] for m in p >= threshold]), t.astype(bool)
    tp, fp, fn, tn = (int((a & b).sum()) for a, b in ((said, true), (said, ~true), (~said, true), (~said, ~true)))

    def share(a: int, b: int) -> float | None:
        return a / b if b else None

    return {
        "dice": share(2 * tp, 2 * tp + fp + fn),
        "accuracy": share(tp + tn, said.size),
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
    }


_D2222 = {"depths": (2, 2, 2, 2)}
VARIANTS: dict[str, dict[str, Any]] = {
    "att_swin_unet": {},
    "att_swin_unet_d2222": _D2222,
    "swin_unet_plain": {"mode": "swin"},
    "swin_unet_plain_d2222": {"mode": "swin", **_D2222},
}
# every image is stretched to 0 to 255 (the mean and deviation of the split, taken before, cancel out)
PICTURES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "interpolation": "bilinear"}
RECIPE = {
    "optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0, "epochs": 20, "batch_size": 24,
    "flip": True, "data": "ISIC 2017",
}  # fmt: skip
register(paper="att-swin-unet", kind="segmentation", task="segmentation", build=AttSwinUNet, variants=VARIANTS,
         input_size=(3, 224, 224), preprocessing=PICTURES, recipe=RECIPE)  # fmt: skip
