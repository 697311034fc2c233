r"""TOPIQ: A Top-down Approach from Semantics to Distortions for Image Quality Assessment (IEEE TIP 2024; arXiv 2308.03060).

What is in a picture decides which of its faults are seen. The maps of a backbone, shallow to deep, become tokens of one width; the
deepest ones query each shallower level in turn, and their mean gives the score (Fig. 2). Each level passes through

* a gate, which weighs its places (Sec. III-B): without a reference :math:`\mathrm{GELU}(x_1) \odot w(x_2)` of two halves of one 1x1
  convolution, with one :math:`[f_d; f_r; d] \odot w(d)`, where :math:`d = \sqrt{(f_d - f_r)^2 + 10^{-12}}`;
* a mean over cells, to the size of the deepest map; a 1x1 convolution to D channels; a learnt position; one layer of self-attention.

.. math:: q \leftarrow q + \mathrm{MHA}\big(\mathrm{LN}_1(q), \mathrm{LN}_2(t_{j})\big), \qquad
          q \leftarrow q + \mathrm{MLP}\big(\mathrm{LN}_3(q)\big), \qquad j = 4, 3, 2, 1

is the cross-scale attention (Eq. 5), after which the tokens attend to themselves once more. Scores in K classes are a distribution over
1..K, whose mean is the opinion score. The code calls the pooling of a level weighted; it is a plain mean.

The backbone's batch norms keep their statistics and scales for good (also in ``.train()``), so that a score never depends on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# -- backbones -------------------------------------------------------------------------------------------------------
class ResNetMaps(nn.Module):
    """torchvision's ResNet as five maps at strides 2, 4, 8, 16, 32: the first after the stem's ReLU, the others of the stages."""

    def __init__(self, name: str, pretrained: bool = False):
        super().__init__()
        import torchvision

        net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        width = net.fc.in_features
        self.channels = [64, width // 8, width // 4, width // 2, width]
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to maps (B, C, h, w)."""
        maps = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(maps[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def swin_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The maps of a Swin Transformer after each merging, and the last one: strides 8, 16, 32 and 32, not normalised."""
    maps, x = [], model.embed(x)
    for stage in model.layers:
        cuts = stage.cuts(x, model.dense)
        for j, block in enumerate(stage.blocks):
            x = model.run((block,), x, cuts[j % 2])
        x = stage.downsample(x) if hasattr(stage, "downsample") else x
        maps.append(x.permute(0, 3, 1, 2))
    return maps


# -- blocks ----------------------------------------------------------------------------------------------------------
class Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values (the names of torch's own)."""

    def __init__(self, dim: int, heads: int, drop_rate: float):
        super().__init__()
        self.heads, self.drop_rate = heads, drop_rate
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor | None = None) -> Tensor:
        """(B, N, D) attends to ``memory`` (B, M, D), or to itself."""
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, query.shape[-1]
        if memory is None:
            parts = F.linear(query, weight, bias).chunk(3, -1)
        else:
            kv = F.linear(memory, weight[dim:], bias[dim:]).chunk(2, -1)
            parts = (F.linear(query, weight[:dim], bias[:dim]), *kv)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop_rate if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each normalised before and added to its input."""

    def __init__(self, dim: int, heads: int, drop_rate: float):
        super().__init__()
        hidden = min(4 * dim, 2048)
        self.self_attn = Attention(dim, heads, drop_rate)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(drop_rate)

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward part."""
        return self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        x = x + self.dropout(self.self_attn(self.norm1(x)))
        return x + self.feed(self.norm2(x))


class DecoderLayer(EncoderLayer):
    """Attention to another level (Eq. 5). Its own self-attention is in the released files, and used by nobody."""

    def __init__(self, dim: int, heads: int, drop_rate: float):
        super().__init__(dim, heads, drop_rate)
        self.multihead_attn = Attention(dim, heads, drop_rate)
        self.norm3 = nn.LayerNorm(dim)
        self.self_attn.requires_grad_(False)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        """(B, N, D) and ``memory`` (B, M, D) to (B, N, D)."""
        x = x + self.dropout(self.multihead_attn(self.norm1(x), self.norm2(memory)))
        return x + self.feed(self.norm3(x))


class Layers(nn.Module):
    """Layers one after the other, under the name the released files use."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *memory: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *memory)
        return x


def _weigher(dim: int) -> nn.Sequential:
    """(B, C, H, W) to one weight for each place, in (0, 1)."""
    return nn.Sequential(
        nn.Conv2d(dim, 64, 1), nn.GELU(), nn.Conv2d(64, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 1, 3, padding=1), nn.Sigmoid()
    )  # fmt: skip


class GatedConv(nn.Module):
    """The gate of a level without a reference."""

    def __init__(self, dim: int):
        super().__init__()
        self.splitconv = nn.Conv2d(dim, 2 * dim, 1)
        self.weight_blk = _weigher(dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.splitconv(x).chunk(2, 1)
        return F.gelu(a) * self.weight_blk(b)


# -- the model -------------------------------------------------------------------------------------------------------
def uniform_crops(x: Tensor, size: int, number: int) -> Tensor:
    """Crops on an even grid: (B, C, H, W) to (number * B, C, size, size), all images of a crop together.

    A picture whose shorter side is not above ``size`` is enlarged to one pixel more.
    """
    if min(x.shape[-2:]) <= size:
        x = F.interpolate(x, scale_factor=(size + 1) / min(x.shape[-2:]), mode="bilinear")
    h, w = x.shape[-2:]
    side = math.ceil(math.sqrt(number))
    down, right = ((n - size) // math.floor(math.sqrt(number)) for n in (h, w))
    corners = [(i * down, j * right) for i in range(side) for j in range(side)][:number]
    return torch.cat([x[..., top : top + size, left : left + size] for top, left in corners])


class CFANet(nn.Module):
    """Coarse-to-fine attention network: pictures (B, 3, H, W) in [0, 1], or uint8, to scores (B, 1); higher is better.

    Args:
        backbone: ``"resnet18"`` to ``"resnet152"``, or any backbone of :func:`offprint.list_models`.
        use_ref: full reference: called as ``model(distorted, reference)``, and the order counts.
        num_classes: 1, or K classes whose distribution over 1..K :meth:`distribution` gives.
        inter_dim, num_heads, num_attn_layers: D, heads of every attention, layers of every attention block.
        drop_rate: dropout in attention and feed-forward parts.
        test_img_size: in evaluation pictures are resized to this shorter side, or to these two sides; default their own size. The
            reference is resized alike.
        num_crop, crop_size: in evaluation the mean score of so many crops; 1 takes the whole picture.
        out_act: make the score of one class positive (softplus).
        backbone_pretrained: start from the backbone's released classification weights.

    Raises:
        OffprintError: a channel count other than 3, a side under 32 pixels, a missing reference, or one of another size.
    """

    native = "authors"
    dialects: ClassVar[tuple[Dialect, ...]] = ()
    optional_state = r"(relative_position_index|attn_mask)$"

    def __init__(
        self,
        backbone: str = "resnet50",
        use_ref: bool = False,
        num_classes: int = 1,
        inter_dim: int = 256,
        num_heads: int = 4,
        num_attn_layers: int = 1,
        drop_rate: float = 0.1,
        test_img_size: int | tuple[int, int] | None = None,
        num_crop: int = 1,
        crop_size: int = 256,
        out_act: bool = False,
        backbone_pretrained: bool = False,
    ):
        super().__init__()
        if inter_dim % num_heads or inter_dim % 2:
            raise OffprintError(f"inter_dim={inter_dim} must be even and divide into num_heads={num_heads}")
        if num_classes < 1 or num_crop < 1:
            raise OffprintError(f"num_classes={num_classes}, num_crop={num_crop}; give 1 or more")
        self.use_ref, self.num_classes, self.in_chans, self.num_features = use_ref, num_classes, 3, inter_dim
        self.num_crop, self.crop_size = num_crop, crop_size
        self.semantic_model, channels, self.kind = _backbone(backbone, backbone_pretrained)
        squash = (384, 384) if self.kind == "swin" else None
        self.test_img_size = squash if test_img_size is None else test_img_size
        layer = (inter_dim, num_heads, drop_rate)
        wide = 3 if use_ref else 1
        self.weight_pool = nn.ModuleList(_weigher(c) if use_ref else GatedConv(c) for c in channels)
        self.dim_reduce = nn.ModuleList(nn.Sequential(nn.Conv2d(wide * c, inter_dim, 1), nn.GELU()) for c in channels)
        self.sa_attn_blks = nn.ModuleList(
            Layers([EncoderLayer(*layer) for _ in range(num_attn_layers)]) for _ in channels
        )
        self.attn_blks = nn.ModuleList(
            Layers([DecoderLayer(*layer) for _ in range(num_attn_layers)]) for _ in channels[1:]
        )
        self.attn_pool = EncoderLayer(*layer)
        last: list[nn.Module] = [nn.Softmax(-1)] if num_classes > 1 else [nn.Softplus()] if out_act else []
        half = lambda: (nn.LayerNorm(inter_dim), nn.Linear(inter_dim, inter_dim), nn.GELU())  # noqa: E731
        self.score_linear = nn.Sequential(*half(), *half(), nn.Linear(inter_dim, num_classes), *last)
        self.h_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, inter_dim // 2, 32, 1), std=0.02))
        self.w_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, inter_dim // 2, 1, 32), std=0.02))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        for part in (self.sa_attn_blks, self.attn_blks, self.attn_pool):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight)
                    nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> CFANet:
        """The backbone's norms, dropout and stochastic depth stay as in evaluation."""
        super().train(mode)
        self.semantic_model.eval()
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """The backbone's maps of normalised pictures, shallow to deep."""
        return swin_maps(self.semantic_model, x) if self.kind == "swin" else self.semantic_model(x)

    def _tokens(self, x: Tensor, reference: Tensor | None) -> list[Tensor]:
        """The tokens (B, N, D) of every level, shallow to deep, with their positions."""
        if reference is None:
            levels = [gate(f) for gate, f in zip(self.weight_pool, self.maps(x), strict=True)]
        else:
            levels = []
            for gate, both in zip(self.weight_pool, self.maps(torch.cat([x, reference])), strict=True):
                f, r = both.chunk(2)
                d = torch.sqrt((f - r) ** 2 + 1e-12)
                levels.append(torch.cat([f, r, d], 1) * gate(d))
        th, tw = levels[-1].shape[-2:]
        positions: dict[tuple[int, int], Tensor] = {}
        tokens = []
        for y, reduce, attend in zip(levels, self.dim_reduce, self.sa_attn_blks, strict=True):
            if y.shape[-2] > th and y.shape[-1] > tw:
                y = F.adaptive_avg_pool2d(y, (th, tw))
            sides = (y.shape[-2], y.shape[-1])
            if sides not in positions:
                table = torch.cat([self.h_emb.expand(-1, -1, -1, 32), self.w_emb.expand(-1, -1, 32, -1)], 1)
                resized = F.interpolate(table, sides, mode="bicubic", align_corners=False)
                positions[sides] = resized.flatten(2).transpose(1, 2)
            tokens.append(attend(reduce(y).flatten(2).transpose(1, 2) + positions[sides]))
        return tokens

    def _ready(self, x: Tensor) -> Tensor:
        """Floats, cut into crops, at the size that evaluation asks for, normalised."""
        x = x / 255 if x.dtype == torch.uint8 else x
        if not self.training:
            if self.num_crop > 1:
                x = uniform_crops(x, self.crop_size, self.num_crop)
            if self.test_img_size is not None:
                x = _resize(x, self.test_img_size)
        return (x - self.mean.to(x)) / self.std.to(x)

    def distribution(self, x: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Opinion scores (B, 1), and the K outputs (B, K) they are the mean of: probabilities of 1..K, or the score itself."""
        self._check(x, reference)
        batch = len(x)
        given = reference if self.use_ref else None
        tokens = self._tokens(self._ready(x), None if given is None else self._ready(given))
        query = tokens[-1]
        for attend, level in zip(self.attn_blks, tokens[-2::-1], strict=True):
            query = attend(query, level)
        found = self.score_linear(self.attn_pool(query).mean(1))
        if not self.training and self.num_crop > 1:
            found = found.view(self.num_crop, batch, -1).mean(0)
        return opinion_score(found), found

    def forward(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Scores (B, 1) of pictures (B, 3, H, W) in [0, 1]; with a reference, of ``x`` as a copy of it."""
        return self.distribution(x, reference)[0]

    def _check(self, x: Tensor, reference: Tensor | None) -> None:
        if torch.compiler.is_compiling():
            return
        for name, picture in (("pictures", x), ("references", reference)):
            if picture is not None and (picture.ndim != 4 or picture.shape[1] != 3 or min(picture.shape[-2:]) < 32):
                raise OffprintError(
                    f"expected {name} of shape (B, 3, H, W) with sides of 32 pixels or more, got {tuple(picture.shape)}"
                )
        if self.use_ref and (reference is None or reference.shape != x.shape):
            given = "none" if reference is None else str(tuple(reference.shape))
            raise OffprintError(
                f"this model compares a picture with its reference: give one of shape {tuple(x.shape)}, got {given}"
            )

    def example_input(self, batch: int = 1) -> Tensor | tuple[Tensor, Tensor]:
        """A random picture, and a reference where the model takes one."""
        like = self.h_emb
        x = torch.rand(batch, 3, 96, 128, device=like.device, dtype=like.dtype)
        return (x, x.flip(-1)) if self.use_ref else x


def _resize(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """To a shorter side, or to both sides; bilinear, antialiased."""
    h, w = x.shape[-2:]
    if isinstance(size, int):
        sides = (size, int(size * w / h)) if h <= w else (int(size * h / w), size)
    else:
        sides = (size[0], size[1])
    return x if sides == (h, w) else F.interpolate(x, sides, mode="bilinear", align_corners=False, antialias=True)


def _backbone(name: str, pretrained: bool) -> tuple[nn.Module, list[int], str]:
    """(network, channels of its maps shallow to deep, its kind)."""
    if name in RESNETS:
        net = ResNetMaps(name, pretrained)
        return net, net.channels, "resnet"
    from offprint.models.backbones.swin import SwinTransformer
    from offprint.models.factory import create_model
    from offprint.models.registry import entry, list_models

    if name not in list_models(kind="backbone"):
        raise unknown("backbone", name, [*RESNETS, *list_models(kind="backbone")])
    if entry(name).build is SwinTransformer:
        swin = create_model(name, pretrained)
        for unused in (swin.norm, swin.head):  # in the released files
            unused.requires_grad_(False)
        dims = swin.pyramid_channels
        return swin, [*dims[1:], dims[-1]], "swin"
    model = create_model(name, pretrained, features_only=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return model, model.feature_info.channels(), "pyramid"


# -- losses ----------------------------------------------------------------------------------------------------------
def nin_loss(score: Tensor, target: Tensor, p: float = 1, q: float = 2) -> Tensor:
    """Norm-in-norm: both centred and divided by their q-norm, the p-norm of the difference; in [0, 1]. L1 for one sample.

    Args:
        score, target: (B, 1).
    """
    if len(score) < 2:
        return F.l1_loss(score, target)
    a, b = score - score.mean(), target - target.mean()
    a, b = (v / v.norm(q).clamp_min(1e-8) for v in (a, b))
    scale = 2**p * len(score) ** max(0.0, 1 - p / q)
    return ((a - b).abs() ** p).sum() / scale


def plcc_loss(score: Tensor, target: Tensor) -> Tensor:
    """Half of one minus Pearson's correlation, (B, 1) each; 0 where they are proportional. L1 for one sample."""
    if len(score) < 2:
        return F.l1_loss(score, target)
    a, b = score - score.mean(), target - target.mean()
    return (1 - F.cosine_similarity(a.flatten(), b.flatten(), 0)) / 2


def rank_loss(score: Tensor, target: Tensor) -> Tensor:
    """Mean of how far pairs are in the wrong order, over one more than the worst; 0 for one sample. (B, 1) each."""
    wrong = F.relu((score - score.T) * torch.sign(target.T - target))
    return wrong.mean() / (1 + wrong.max())


def emd_loss(probabilities: Tensor, target: Tensor, r: float = 2) -> Tensor:
    """Earth mover's distance of distributions (B, K) over ordered classes, as a mean over the batch."""
    gap = (probabilities.cumsum(-1) - target.cumsum(-1)).abs()
    return ((gap**r).mean(-1) ** (1 / r)).mean()


def opinion_score(probabilities: Tensor) -> Tensor:
    """The mean (B, 1) of distributions (B, K) over the scores 1..K."""
    return (probabilities * torch.arange(1, probabilities.shape[-1] + 1).to(probabilities)).sum(-1, keepdim=True)


# -- the family ------------------------------------------------------------------------------------------------------
_AESTHETICS = {"inter_dim": 512, "num_heads": 8, "num_classes": 10}
_SWIN = {**_AESTHETICS, "backbone": "swin_base_patch4_window12_384"}
VARIANTS = {
    "topiq_nr_resnet50": {},
    "topiq_fr_resnet50": {"use_ref": True},
    "topiq_iaa_resnet50": {**_AESTHETICS, "test_img_size": 384},
    "topiq_iaa_swin_b": _SWIN,
    "topiq_nr_flive_resnet50": {"test_img_size": 384},
    "topiq_nr_face_resnet50": {"test_img_size": 512},
    "topiq_nr_face_swin_b": {"backbone": "swin_base_patch4_window12_384"},
}
_SOURCE = "chaofengc/IQA-PyTorch tests/*_benchmark_results.csv"
_LICENCE = "PolyForm-Noncommercial-1.0.0"


def _file(name: str, data: str = "", plcc: float = 0.0, srcc: float = 0.0, krcc: float = 0.0) -> Weights:
    """A file of the authors' collection; its name ends with the first digits of its digest."""
    stated = {data: {"plcc": plcc, "srcc": srcc, "krcc": krcc}} if data else {}
    digest = name.rsplit("-", 1)[1].removesuffix(".pth")
    return Weights(
        f"hf:chaofengc/IQA-PyTorch-Weights/{name}", "authors", "authors", _LICENCE, digest, metrics=stated,
        metrics_source=_SOURCE if data else "",
    )  # fmt: skip


WEIGHTS = {
    "topiq_nr_resnet50": {
        "koniq": _file("cfanet_nr_koniq_res50-9a73138b.pth", "koniq10k", 0.9436, 0.9299, 0.7727),
        "spaq": _file("cfanet_nr_spaq_res50-a7f799ac.pth"),
    },
    "topiq_nr_flive_resnet50": {"flive": _file("cfanet_nr_flive_res50-ded1c74e.pth")},
    "topiq_fr_resnet50": {
        "kadid": _file("cfanet_fr_kadid_res50-2c4cc61d.pth", "csiq", 0.9589, 0.9674, 0.8378),
        "pipal": _file("cfanet_fr_pipal_res50-69bbe5ba.pth"),
    },
    "topiq_iaa_resnet50": {"ava": _file("cfanet_iaa_ava_res50-3cd62bb3.pth", "ava", 0.7370, 0.7359, 0.5423)},
    "topiq_iaa_swin_b": {"ava": _file("cfanet_iaa_ava_swin-393b41b4.pth", "ava", 0.7902, 0.7910, 0.5969)},
    "topiq_nr_face_resnet50": {
        "cgfiqa": _file("topiq_nr_cgfiqa_res50-0a8b8e4f.pth"),
        "gfiqa": _file("topiq_nr_gfiqa_res50-d76bf1ae.pth"),
    },
    "topiq_nr_face_swin_b": {"cgfiqa": _file("topiq_nr_gfiqa_swin-7bb80a60.pth")},
}
# the option files of the authors' repository; the rate of full reference is from memory
RECIPE = {
    "optimizer": "adamw", "lr": 3e-5, "weight_decay": 1e-5, "schedule": "cosine", "min_lr": 0.0, "warmup_epochs": 0, "batch_size": 16,
    "epochs": 200, "input_size": 384, "data": "koniq10k",
}  # fmt: skip
register(
    paper="topiq", kind="signal", task="quality", build=CFANet, variants=VARIANTS, input_size=None, preprocessing={}, weights=WEIGHTS,
    recipe=RECIPE, exceptions={"training": {
        "topiq_fr_resnet50": {"lr": 1e-4, "data": "kadid10k"},
        "topiq_iaa_resnet50": {"epochs": 10, "data": "ava"},
        "topiq_iaa_swin_b": {"epochs": 10, "data": "ava"},
    }},
)  # fmt: skip
