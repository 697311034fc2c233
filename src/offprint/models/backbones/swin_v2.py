r"""Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al.; CVPR 2022; arXiv 2111.09883), and SimMIM.

Three changes let Swin grow deep and change resolution (Fig. 1). The norm of a block moves behind each sub-layer
("res-post-norm"), so that what a block adds to the main branch stays of one size at any depth:

.. math:: z \leftarrow z + \mathrm{LN}(\mathrm{(S)W\text{-}MSA}(z)), \qquad z \leftarrow z + \mathrm{LN}(\mathrm{MLP}(z)).

Attention compares directions, with a learnt temperature (Eq. 2), and the position bias is a small network of log-spaced
offsets (Eqs. 3, 4), which says something about windows larger than those of the training:

.. math:: \mathrm{Sim}(q_i, k_j) = \cos(q_i, k_j) / \tau + B_{ij}, \qquad
          B = 16\,\sigma\big(G(\widehat{\Delta x}, \widehat{\Delta y})\big), \qquad
          \widehat{\Delta} = \mathrm{sign}(t) \log_8(1 + |t|), \quad t = 8 \Delta / (P - 1),

with P the window of the pre-training. That 8, the 16 sigmoid and the bound of 100 on :math:`1/\tau` are in the authors' code
only. SimMIM (Xie et al. 2022, arXiv 2111.09886) pre-trains an encoder without labels: random squares are replaced by a learnt
token, and a linear decoder predicts their pixels.

Every LayerNorm has eps 1e-5. Parameter names are those of the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbones._swin_tables import (
    AT_384,
    FINETUNING,
    IN22K,
    PRETRAINING,
    RECIPE,
    SIMMIM,
    SIMMIM_AS_STATED,
    SIMMIM_FINETUNING,
    SIZES,
    drop_paths,
    input_sizes,
    released,
    with_short_names,
)
from offprint.models.backbones.swin import BUFFERS, TIMM, TORCHVISION, Block, PatchMerging, SwinTransformer
from offprint.models.checkpoint import Dialect
from offprint.models.factory import create_model
from offprint.models.registry import Weights, register
from offprint.models.released import timm, top, torchvision
from offprint.nn import MaskedTokens
from offprint.nn.positions import log_coordinates
from offprint.nn.precision import wide_dtype
from offprint.nn.relative_bias import RelativeBias
from offprint.nn.windows import Windows, attend, keep


class WindowAttention(RelativeBias):
    """Scaled cosine attention inside windows with a continuous position bias (Secs. 3.3 and 3.4).

    Args:
        dim: channels C.
        window: M.
        heads: attention heads.
        pretrained_window: P, the window the position network was trained with; 0 for M itself.
    """

    def __init__(self, dim: int, window: int, heads: int, pretrained_window: int = 0):
        super().__init__(window, heads)
        if pretrained_window == 1 and window > 1:
            raise OffprintError(f"a pre-training window of 1 has no offsets to measure a window of {window} by; give 0")
        self.pretrained_window = pretrained_window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def set_window(self, window: int) -> None:
        """Change M; the position network needs nothing new."""
        self.window, self._bias = window, None

    def scale(self) -> Tensor:
        """The inverse temperature (heads, 1), at most 100."""
        return self.logit_scale.clamp(max=math.log(100)).exp().view(self.heads, 1)

    def table(self) -> Tensor:
        """The bias ((2M - 1)², heads) of every offset."""
        weight = self.cpb_mlp[0].weight
        place = self.window, self.pretrained_window, weight.device, wide_dtype(weight.dtype)
        at = keep(("log", *place), lambda: log_coordinates(*place))
        return 16 * torch.sigmoid(self.cpb_mlp(at.to(weight.dtype)))

    def sources(self) -> tuple[nn.Parameter, ...]:
        """The network's weights."""
        return tuple(self.cpb_mlp.parameters())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B * windows, M², C) to the same; ``mask`` (windows, M², M²) is added to the logits."""
        n, t, _ = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).view(n, t, 3, self.heads, -1).unbind(2)
        # directions; the temperature's inverse is put on the queries
        scale = self.scale()
        q = q * (scale / torch.linalg.vector_norm(q, dim=-1, keepdim=True).clamp_min(1e-12))
        k = k * torch.linalg.vector_norm(k, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()
        q, k, v = q.to(v.dtype).transpose(1, 2), k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)
        return self.proj(attend(q, k, v, self.bias(), mask, scale=1.0))


class PostNormBlock(Block):
    """Window attention and MLP, each normalised behind and added to the main branch. It starts as the identity."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float):
        super().__init__(dim, mixer, drop_path)
        for norm in (self.norm1, self.norm2):
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor, cut: Windows) -> Tensor:
        """(B, H, W, C) to the same."""
        x = x + self.drop_path(self.norm1(self.mix(x, cut)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PostNormMerging(PatchMerging):
    """2x2 tokens side by side, linear to twice the channels, norm."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(self.cells(x)))


def _split_bias(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """torchvision keeps one bias for q, k and v, and reads the keys' part as zeros."""
    out = {}
    for name, value in state.items():
        if name.endswith("attn.qkv.bias"):
            stem = name.removesuffix("qkv.bias")
            out[f"{stem}q_bias"], _, out[f"{stem}v_bias"] = value.chunk(3)
        else:
            out[name] = value
    return out


class SwinTransformerV2(SwinTransformer):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        pretrained_window_sizes: per stage the window of the pre-training, when that was another: a model trained at 192 pixels
            with windows of 12 goes on at 256 with ``window_size=16, pretrained_window_sizes=(12, 12, 12, 6)``. 0: the same.
        img_size, patch_size, in_chans, num_classes, embed_dim, depths, num_heads, window_size, drop_path_rate, ape, patch_norm:
            as in :class:`~offprint.models.backbones.swin.SwinTransformer`.

    ``features_only`` gives the dense form of Swin (the authors released none of V2's own).
    """

    undecayed = r"absolute_pos_embed|mask_token|logit_scale|cpb_mlp"
    dialects = (
        Dialect("timm", TIMM),
        Dialect("torchvision", TORCHVISION, reshape=_split_bias),
        Dialect("simmim", ((r"\.rpe_mlp\.", ".cpb_mlp."),)),
    )
    merging = PostNormMerging

    norm_target = 47  # side of the neighbourhood that normalises SimMIM's target for it (Sec. 4.1)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 8,
        pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0),
        drop_path_rate: float = 0.0,
        ape: bool = False,
        patch_norm: bool = True,
    ):
        self._pretrained = tuple(pretrained_window_sizes)
        if any(self._pretrained) and len(self._pretrained) != len(depths):
            raise OffprintError(
                f"pretrained_window_sizes {self._pretrained} must name one window for each of the {len(depths)} stages"
            )
        super().__init__(
            img_size, patch_size, in_chans, num_classes, embed_dim, depths, num_heads, window_size,
            drop_path_rate, ape, patch_norm,
        )  # fmt: skip

    def block(self, stage: int, dim: int, window: int, heads: int, drop_path: float) -> Block:
        before = self._pretrained[stage] if any(self._pretrained) else 0
        return PostNormBlock(dim, WindowAttention(dim, window, heads, before), drop_path)


# -- SimMIM ----------------------------------------------------------------------------------------------------------
def simmim_mask(
    batch: int, size: tuple[int, int], *, unit: int = 32, patch: int = 4, ratio: float = 0.6, generator=None
) -> Tensor:
    """Random squares to hide, each image its own.

    Args:
        size: height and width of the images, multiples of ``unit``.
        unit: side of a square in pixels, a multiple of ``patch``.
        ratio: share of the squares that is hidden, rounded up to whole ones.

    Returns:
        (batch, height / patch, width / patch), 1 where hidden.
    """
    if unit % patch or any(s % unit or not s for s in size):
        raise OffprintError(
            f"squares of {unit} pixels must divide the image {tuple(size)} and be made of patches of {patch}; "
            "change the mask unit or the image size"
        )
    if not 0 < ratio < 1:
        raise OffprintError(f"the share to hide is {ratio}; it must lie between 0 and 1")
    rows, columns = (s // unit for s in size)
    order = torch.rand(batch, rows * columns, generator=generator).argsort(1)
    hidden = (order.argsort(1) < math.ceil(ratio * rows * columns)).float().view(batch, rows, columns)
    return hidden.repeat_interleave(unit // patch, 1).repeat_interleave(unit // patch, 2)


def normalize_targets(image: Tensor, size: int) -> Tensor:
    """Each pixel less the mean of its size x size neighbourhood, over its deviation; real pixels only at the border."""
    padding = size // 2
    average = lambda x: F.avg_pool2d(x, size, 1, padding, count_include_pad=False)  # noqa: E731
    n = F.avg_pool2d(torch.ones_like(image[:1, :1]), size, 1, padding, count_include_pad=True) * size**2
    mean = average(image)
    variance = ((average(image**2) - mean**2) * n / (n - 1)).clamp_min(0)
    return (image - mean) / (variance + 1e-6).sqrt()


class SimMIMOutput(NamedTuple):
    """The encoder's map, the predicted pixels and the loss."""

    encoded: Tensor
    reconstruction: Tensor
    loss: Tensor


class SimMIM(nn.Module):
    """Masked-image pre-training of any backbone whose tokens can be hidden (:class:`~offprint.nn.MaskedTokens`).

    Args:
        encoder: a model, or the name of one.
        norm_target: side of the neighbourhood over which target pixels are normalised (47 for SwinV2); ``None`` for raw pixels.
        **kwargs: of the encoder, when a name is given.

    The loss is the mean absolute error over hidden pixels.
    """

    optional_state = BUFFERS
    dialects = (Dialect("simmim", ((r"\.rpe_mlp\.", ".cpb_mlp."),)),)

    def __init__(self, encoder: nn.Module | str, norm_target: int | None = None, **kwargs):
        super().__init__()
        if isinstance(encoder, str):
            encoder = create_model(encoder, num_classes=0, **kwargs)
        if not isinstance(encoder, MaskedTokens):
            raise OffprintError(
                f"{type(encoder).__name__} cannot hide tokens, so SimMIM cannot train it; choose a model that can "
                f"(offprint models --paper swin, swin-v2 or convnext)"
            )
        if norm_target is not None and (norm_target < 3 or norm_target % 2 == 0):
            raise OffprintError(f"norm_target={norm_target}; give an odd number of pixels of at least 3, or None")
        if encoder.mask_token is None:
            encoder.add_mask_token()
        self.encoder, self.norm_target, self.undecayed = encoder, norm_target, getattr(encoder, "undecayed", "")
        self.stride = encoder.pyramid_reductions[-1]
        self.decoder = nn.Sequential(
            nn.Conv2d(encoder.num_features, self.stride**2 * encoder.in_chans, 1), nn.PixelShuffle(self.stride)
        )

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's own adaptation, under its prefix."""
        adapt = getattr(self.encoder, "adapt_state", None)
        if adapt is None:
            return state
        inner = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        rest = {k: v for k, v in state.items() if not k.startswith("encoder.")}
        return {**{f"encoder.{k}": v for k, v in adapt(inner).items()}, **rest}

    def forward(self, image: Tensor, mask: Tensor) -> SimMIMOutput:
        """Images (B, C, H, W) and a mask (B, H/p, W/p) of their patches, 1 = hidden."""
        if any(s % self.stride for s in image.shape[-2:]):
            raise OffprintError(f"image sides {tuple(image.shape[-2:])} must be multiples of {self.stride}")
        encoded = self.encoder.forward_features(image, mask)
        reconstruction = self.decoder(encoded)
        p = self.encoder.patch_size
        hidden = mask.to(image.dtype).repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
        with torch.no_grad():
            target = image if self.norm_target is None else normalize_targets(image, self.norm_target)
        error = (target - reconstruction).abs() * hidden
        return SimMIMOutput(encoded, reconstruction, error.sum() / (hidden.sum() + 1e-5) / image.shape[1])


def _row(size: str, window: int, img_size: int, before: tuple[int, ...] = (), classes: int = 0) -> dict:
    row = {**SIZES[size], "window_size": window, "img_size": img_size}
    return row | ({"pretrained_window_sizes": before} if before else {}) | ({"num_classes": classes} if classes else {})


VARIANTS = {f"swinv2_{size}": _row(size, 8, 256) for size in ("tiny", "small", "base")}
VARIANTS["swinv2_large"] = _row("large", 12, 192)
for _size in ("tiny", "small", "base"):
    for _window in (8, 16):
        VARIANTS[f"swinv2_{_size}_patch4_window{_window}_256"] = _row(_size, _window, 256)
for _size in ("base", "large"):
    _name = f"swinv2_{_size}_patch4_window12"
    VARIANTS[f"{_name}_192_22k"] = _row(_size, 12, 192, classes=21841)
    VARIANTS[f"{_name}to16_192to256"] = _row(_size, 16, 256, (12, 12, 12, 6))
    VARIANTS[f"{_name}to24_192to384"] = _row(_size, 24, 384, (12, 12, 12, 6))
for _size in ("small", "base", "large"):  # of SimMIM's pre-training, and as its authors fine-tune them
    VARIANTS[f"swinv2_{_size}_patch4_window12_192"] = _row(_size, 12, 192)
    VARIANTS[f"swinv2_{_size}_patch4_window12to14_192to224"] = _row(_size, 14, 224, (12, 12, 12, 6))
# top-1 and top-5 by the authors and by timm, timm's crop; after "to", tuned from ImageNet-22K
_RELEASED = {
    ("tiny", "window8", 256): (81.8, 95.9, 81.820, 95.994),
    ("small", "window8", 256): (83.7, 96.6, 83.854, 96.644),
    ("base", "window8", 256): (84.2, 96.9, 84.250, 96.924),
    ("tiny", "window16", 256): (82.8, 96.2, 82.804, 96.236),
    ("small", "window16", 256): (84.1, 96.8, 84.224, 96.868),
    ("base", "window16", 256): (84.6, 97.0, 84.600, 97.090),
    ("base", "window12to16_192to", 256): (86.2, 97.9, 86.268, 97.882),
    ("base", "window12to24_192to", 384): (87.1, 98.2, 87.096, 98.234),
    ("large", "window12to16_192to", 256): (86.9, 98.0, 86.952, 98.106),
    ("large", "window12to24_192to", 384): (87.6, 98.3, 87.464, 98.250),
}
_IMAGENET_V2 = {"base": 78.08, "large": 78.31}  # top-1 at 384, in the notes of the authors' table
_TORCHVISION = {
    "tiny": ("swin_v2_t-b137f0e2", 260, 82.072, 96.132),
    "small": ("swin_v2_s-637d8ceb", 260, 83.712, 96.816),
    "base": ("swin_v2_b-781e5279", 272, 84.112, 96.864),
}


def _all(size: str, window: str, side: int) -> tuple[str, dict[str, Weights]]:
    """A model's name and its releases."""
    one, five, timm_one, timm_five = _RELEASED[size, window, side]
    tuned = "to" in window
    name = f"swinv2_{size}_patch4_{window}{'' if tuned else '_'}{side}"
    theirs, tag = name.replace("_patch4", ""), "ms_in22k_ft_in1k" if tuned else "ms_in1k"
    own = released(name + ("_22kto1k_ft" if tuned else ""), "v2.0.0", side, one, five)
    if side == 384:
        own = replace(own, metrics={**own.metrics, **top(_IMAGENET_V2[size], data="imagenet-v2")})
    found = {
        tag.removeprefix("ms_"): own,
        f"timm_{tag}": timm(
            f"{theirs}.{tag}", side, timm_one, timm_five, crop=1.0 if side == 384 else 0.9, licence="MIT"
        ),
    }
    if window == "window8":
        file, *figures = _TORCHVISION[size]
        found["torchvision_v1"] = torchvision(file, side, *figures)
    return name, found


# SimMIM's longest runs of 500k steps: pictures; signatures of the read-only links in the authors' MODELHUB.md (valid until the
# end of 2049) to the pre-trained and to the fine-tuned file; top-1 of the latter
_SIMMIM = {
    ("small", "1k"): ("5qfMTWvxbFSAJ59aq8mzfoKOukj4AguuVTy7sjzYa8I%3D",
                      "nFEi4B3XqEjsyXt9g%2BK2Eo7L8ANbQ1MJrkiJgM8%2B2ug%3D", 84.08),
    ("base", "1k"): ("HfaAkOBzD2yun0lAHD4XrOOV3JNXImG28986WvEaMws%3D",
                     "DDEqtZTT0RYIZMm5rC2XvgSaw6OkdBoBQqGmqWzA5MQ%3D", 85.04),
    ("base", "22k"): ("BmJvfC4vGYLTZAy85hI5oNh4GEeQpc2pDaqSLR0VwEE%3D",
                      "cq20xc%2FX7QvwR8n9KjrZSDVJN1Vm0BVSjKKgmsqZ7P4%3D", 85.11),
    ("large", "1k"): ("jso8LU1ydHmReR2uU8N0qJDleioZO%2FxFjXMtECQaubc%3D",
                      "fAzEtGJeAQD8msQ3fPUywLdx%2F94lmw2%2BeSP0IDwTuds%3D", 85.91),
    ("large", "22k"): ("x2vW5tECmw1D3zZDZry%2FY9x6IXUAZ8jaw8dvU6O67VE%3D",
                       "GVZjtcQsXQc5tfFEtMa%2BmN9B8gz3K4U4mP2b9Y3%2BUzs%3D", 85.81),
}  # fmt: skip


def _simmim(kind: str, size: str, data: str, signature: str, side: int, one: float | None = None) -> Weights:
    prefix = "finetune_" if kind == "finetune" else ""
    return Weights(
        f"https://msravcghub.blob.core.windows.net/simmim-release/swinv2/{kind}/{prefix}swinv2_{size}_{data}_500k.pth"
        f"?se=2049-12-31&sp=r&sv=2022-11-02&sr=b&sig={signature}",
        "authors", "simmim", "MIT", input_size=(3, side, side), num_classes=None if one else 0, metrics=top(one),
        metrics_source="microsoft/Swin-Transformer@2cb103f MODELHUB.md" if one else "",
    )  # fmt: skip


WEIGHTS = dict(_all(*key) for key in _RELEASED)
for _size in ("base", "large"):
    WEIGHTS[f"swinv2_{_size}_patch4_window12_192_22k"] = {
        "in22k": released(f"swinv2_{_size}_patch4_window12_192_22k", "v2.0.0", 192, **IN22K),
        "timm_ms_in22k": timm(f"swinv2_{_size}_window12_192.ms_in22k", 192, crop=0.9, licence="MIT", **IN22K),
    }
for (_size, _data), (_before, _after, _one) in _SIMMIM.items():
    _tag, _name = f"simmim_in{_data}", f"swinv2_{_size}_patch4_window12"
    WEIGHTS.setdefault(f"{_name}_192", {})[_tag] = _simmim("pretrain", _size, _data, _before, 192)
    WEIGHTS.setdefault(f"{_name}to14_192to224", {})[f"{_tag}_ft_in1k"] = _simmim(
        "finetune", _size, _data, _after, 224, _one
    )
WEIGHTS = with_short_names(
    WEIGHTS,
    {f"swinv2_{size}": f"swinv2_{size}_patch4_window8_256" for size in ("tiny", "small", "base")}
    | {"swinv2_large": "swinv2_large_patch4_window12_192_22k"},
)
_FROM_192 = {name: row for name, row in VARIANTS.items() if "12to16" in name or "12to24" in name}
_AT_192 = [name for name in VARIANTS if name.endswith(("window12_192_22k", "swinv2_large"))]
_SIMMIM_192 = [name for name in VARIANTS if name.endswith("window12_192")]
SIMMIM_RECIPE = {**SIMMIM, "drop_path_rate": 0.1}
register(
    paper="swin-v2", kind="backbone", build=SwinTransformerV2, variants=VARIANTS, input_sizes=input_sizes(VARIANTS),
    weights=WEIGHTS, recipe=RECIPE, exceptions={
        "training": drop_paths(VARIANTS),
        "pretraining": {name: {**PRETRAINING, "weight_decay": 0.1, "input_size": 192} for name in _AT_192},
        "finetuning": {
            name: {**FINETUNING, "input_size": row["img_size"], **(AT_384 if row["img_size"] == 384 else {})}
            for name, row in _FROM_192.items()
        },
        "simmim": {name: {**SIMMIM_RECIPE, **SIMMIM_AS_STATED} for name in _SIMMIM_192},
        "simmim_finetuning": {
            name: {**SIMMIM_FINETUNING, "layer_decay": 0.75} for name in VARIANTS if "12to14" in name
        },
    },
)  # fmt: skip
