r"""SSDLite (Sandler et al., MobileNetV2, CVPR 2018, Sec. 6.2): SSD whose predictors are separable convolutions.

Six maps of falling resolution each predict, for every anchor, the scores of the classes and four box codes; every regular 3x3
convolution of SSD's predictors and extra layers is replaced by a depth-wise 3x3 and a 1x1. With MobileNetV2 the first map
is the expanded layer (576 channels) of the first block of 160 channels, before its stride, at stride 16; the second is the 1280-channel map
at stride 32. Four extra blocks follow. The anchors, the matching, the loss and the filtering are those of the released configuration
(``ssdlite_mobilenet_v2_coco.config``): with an anchor of centre :math:`(x_a, y_a)` and size :math:`(w_a, h_a)`, a box is coded as

.. math:: \big(10 \tfrac{x - x_a}{w_a},\ 10 \tfrac{y - y_a}{h_a},\ 5 \ln\tfrac{w}{w_a},\ 5 \ln\tfrac{h}{h_a}\big).

The scores are independent (sigmoid); class 0 is the background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms

from offprint.errors import DataError, OffprintError
from offprint.models.backbones.mobilenet_v2 import ConvNormAct
from offprint.models.checkpoint import Dialect
from offprint.models.compose import Composed, Detector, compose
from offprint.models.parts import Maps, last, maps_of, register_part
from offprint.models.registry import register
from offprint.nn.precision import wide, wide_dtype

EXTRAS = (512, 256, 256, 128)
MAPS = 2 + len(EXTRAS)
SCALES = (*(0.2 + (0.95 - 0.2) * i / (MAPS - 1) for i in range(MAPS)), 1.0)
RATIOS = (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
EPS = 1e-3  # of the BatchNorms, as in the released configuration


def anchor_shapes(level: int) -> list[tuple[float, float]]:
    """Width and height of the anchors of map ``level``, as parts of the image's: three on the first map, six on the others."""
    scale = SCALES[level]
    pairs = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
    if level:
        pairs = [(scale, r) for r in RATIOS] + [(math.sqrt(scale * SCALES[level + 1]), 1.0)]
    return [(s * math.sqrt(r), s / math.sqrt(r)) for s, r in pairs]


@lru_cache(maxsize=16)
def anchors(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Anchors of maps of these (height, width): (N, 4) as x1, y1, x2, y2 in parts of the image; by map, row, column, anchor."""
    boxes = []
    for level, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(
            (torch.arange(height, dtype=torch.float64) + 0.5) / height,
            (torch.arange(width, dtype=torch.float64) + 0.5) / width,
            indexing="ij",
        )
        centres = torch.stack([x, y], -1)[:, :, None]
        half = torch.tensor(anchor_shapes(level), dtype=torch.float64)[None, None] / 2
        boxes.append(torch.cat([centres - half, centres + half], -1).flatten(0, 2))
    return torch.cat(boxes).to(dtype)


def _predictor(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(channels, channels, 3, groups=channels, eps=EPS), nn.Conv2d(channels, outputs, 1))


class SSDLiteHead(nn.Module):
    """Four extra blocks, and a separable predictor of scores and of boxes on each of the six maps.

    Args:
        before: the maps that come in; the last two are used.
        num_classes: classes with the background, which is class 0 (91 for COCO).

    :meth:`forward` gives raw scores and box codes; :meth:`detect` gives boxes; :meth:`losses` trains.
    """

    whole_dialects = (
        Dialect("offprint 0.1", ((r"^encoder\.", "backbone."), (r"^(extra|classification|regression)\.", r"head.\1."))),
        Dialect("torchvision", ((r"^features\.", "backbone.features."), (r"^(?!backbone\.)", "head."))),
    )  # fmt: skip

    def __init__(self, before: Maps, num_classes: int = 91):
        super().__init__()
        if len(before.channels) < 2:
            raise OffprintError(
                f"SSDLite reads two maps, and {len(before.channels)} came in; "
                "build the encoder with features_only=True, from a backbone of several strides"
            )
        if num_classes < 2:
            raise OffprintError(f"num_classes={num_classes}; class 0 is the background, so at least 2 are needed")
        self.num_classes = num_classes
        widths = [*before.channels[-2:], *EXTRAS]
        self.extra = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(cin, out // 2, eps=EPS),
                ConvNormAct(out // 2, out // 2, 3, 2, out // 2, eps=EPS),
                ConvNormAct(out // 2, out, eps=EPS),
            )
            for cin, out in zip(widths[1:-1], EXTRAS, strict=True)
        )
        counts = [len(anchor_shapes(level)) for level in range(MAPS)]
        self.classification = nn.ModuleList(_predictor(c, n * num_classes) for c, n in zip(widths, counts, strict=True))
        self.regression = nn.ModuleList(_predictor(c, n * 4) for c, n in zip(widths, counts, strict=True))
        for part in (self.extra, self.classification, self.regression):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.trunc_normal_(layer.weight, std=0.03)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def six(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The two maps that come in, and the four of the extra blocks."""
        maps = list(maps[-2:])
        for block in self.extra:
            maps.append(block(maps[-1]))
        return maps

    def _raw(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        out = []
        for predictors, width in ((self.classification, self.num_classes), (self.regression, 4)):
            rows = [
                p(m).permute(0, 2, 3, 1).reshape(m.shape[0], -1, width) for p, m in zip(predictors, maps, strict=True)
            ]
            out.append(torch.cat(rows, 1))
        return out[0], out[1]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Scores before the sigmoid (B, anchors, num_classes) and box codes (B, anchors, 4); they do not depend on ``size``."""
        return self._raw(self.six(maps))

    def _predict(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.six(maps)
        scores, codes = self._raw(maps)
        sizes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        return scores, codes, anchors(sizes, wide_dtype(codes.dtype)).to(codes.device)

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        *,
        score_threshold: float = 1e-8,
        iou_threshold: float = 0.6,
        limit: int = 100,
    ) -> list[dict[str, Tensor]]:
        """Objects in each image.

        Args:
            maps: the maps that come in.
            size: (height, width) of the images.
            score_threshold: lowest score kept.
            iou_threshold: of two boxes of one class that overlap more than this, the better stays.
            limit: most objects per image.

        Returns:
            Per image ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``scores`` (N,) falling, ``labels`` (N,) from 1.
        """
        scores, codes, base = self._predict(maps)
        height, width = size
        scale = codes.new_tensor([width, height, width, height])
        found = []
        for image_scores, image_codes in zip(wide(scores).sigmoid()[..., 1:], wide(codes), strict=True):
            boxes = clip_boxes_to_image(CODER.decode_single(image_codes, base) * scale, (height, width))
            flat = image_scores.flatten()
            order = flat.sort(descending=True, stable=True).indices[: int((flat > score_threshold).sum())]
            # what is kept among the best n candidates does not depend on the others, so try few first
            few, keep = 10 * limit, order
            while True:
                some = order[:few]
                rows, labels = some // (self.num_classes - 1), some % (self.num_classes - 1)
                keep = some[batched_nms(boxes[rows], flat[some], labels, iou_threshold)[:limit]]
                if len(keep) == limit or few >= len(order):
                    break
                few *= 4
            found.append(
                {
                    "boxes": boxes[keep // (self.num_classes - 1)],
                    "scores": flat[keep],
                    "labels": keep % (self.num_classes - 1) + 1,
                }
            )
        return found

    def losses(
        self, maps: Sequence[Tensor], size: tuple[int, int], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """``classification`` and ``box_regression`` losses of a batch; their sum is what is minimised.

        An anchor is positive where it overlaps an object by 0.5 and more, or is the best of an object. Cross-entropy of the
        sigmoids and smooth L1, both over the number of positives; of the negatives only the hardest count, three for each
        positive and at least three per image, none that overlaps a harder one by 0.99.

        Args:
            maps: the maps that come in.
            size: (height, width) of the images.
            targets: per image ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, and ``labels`` (N,) from 1 to num_classes - 1.

        Raises:
            DataError: targets that do not belong to the batch, boxes without area, labels out of range.
        """
        self._check_targets(len(maps[0]), targets)
        scores, codes, base = self._predict(maps)
        height, width = size
        scale = codes.new_tensor([width, height, width, height])
        matcher = SSDMatcher(0.5)
        class_losses, box_losses, positives = [], [], 0
        for image_scores, image_codes, target in zip(wide(scores), wide(codes), targets, strict=True):
            boxes = target["boxes"].to(base) / scale
            labels = target["labels"].to(base.device)
            matched = torch.full((len(base),), -1, device=base.device)
            if len(boxes):
                matched = matcher(box_iou(boxes, base))
            positive = matched >= 0
            positives += int(positive.sum())
            one_hot = F.one_hot(
                torch.where(positive, labels[matched], 0) if len(boxes) else matched + 1, self.num_classes
            )
            each = F.binary_cross_entropy_with_logits(image_scores, one_hot.to(image_scores), reduction="none").sum(1)
            kept = self._hard(each.detach(), image_codes.detach(), base, positive)
            class_losses.append(each[kept].sum())
            chosen = kept[positive[kept]]
            if len(chosen):
                wanted = CODER.encode_single(boxes[matched[chosen]], base[chosen])
                box_losses.append(F.smooth_l1_loss(image_codes[chosen], wanted, reduction="sum"))
        count = max(1, positives)
        box = torch.stack(box_losses).sum() if box_losses else codes.sum() * 0.0
        return {"classification": torch.stack(class_losses).sum() / count, "box_regression": box / count}

    @staticmethod
    def _hard(loss: Tensor, codes: Tensor, base: Tensor, positive: Tensor, ratio: int = 3, least: int = 3) -> Tensor:
        """Anchors that count: of the 3000 with the highest loss, all positives and the hardest negatives."""
        kept = nms(CODER.decode_single(codes, base), loss, 0.99)[:3000]
        is_positive = positive[kept]
        allowed = max(least, ratio * int(is_positive.sum()))
        return kept[is_positive | ((~is_positive).cumsum(0) <= allowed)]

    def _check_targets(self, count: int, targets: list[dict[str, Tensor]]) -> None:
        if len(targets) != count:
            raise DataError(f"{len(targets)} targets were given for {count} images; give one per image")
        for index, target in enumerate(targets):
            missing = [k for k in ("boxes", "labels") if k not in target]
            if missing:
                raise DataError(
                    f"target {index} has no {' and no '.join(missing)}; expected boxes (N, 4) and labels (N,)"
                )
            boxes, labels = target["boxes"], target["labels"]
            if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
                raise DataError(
                    f"target {index} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; expected (N, 4) and (N,)"
                )
            if len(boxes) and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
                raise DataError(
                    f"target {index} has a box without area; boxes are x1, y1, x2, y2 with x2 > x1 and y2 > y1"
                )
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise DataError(
                    f"target {index} has labels {int(labels.min())} to {int(labels.max())}; expected 1 to {self.num_classes - 1} "
                    "(0 is the background)"
                )


class SSDLite(Detector):
    """An encoder and the head.

    Args:
        encoder: any ``features_only`` model with ``feature_info``; its last two maps are used.
        num_classes: classes with the background, which is class 0 (91 for COCO).
        in_chans: image channels of the encoder.
    """

    def __init__(self, encoder: nn.Module, num_classes: int = 91, in_chans: int = 3):
        super().__init__(encoder, None, SSDLiteHead(maps_of(encoder), num_classes))
        self.in_chans = in_chans


def ssdlite(backbone: str = "mobilenetv2_100", num_classes: int = 91, in_chans: int = 3, **backbone_kwargs) -> Composed:
    """SSDLite on a backbone of the registry.

    Args:
        backbone: name of any backbone with two maps or more.
        num_classes: as in :class:`SSDLiteHead`.
        in_chans: image channels.
        **backbone_kwargs: the backbone's own arguments.
    """
    return compose(backbone, head="ssdlite", num_classes=num_classes, in_chans=in_chans, **backbone_kwargs)


register_part("ssdlite", "head", SSDLiteHead, paper="mobilenet-v2", task="detection", takes=last(2),
              form="as_ssd_features", prefers={"eps": EPS})  # fmt: skip
register(
    paper="mobilenet-v2",
    kind="detection",
    task="detection",
    build=ssdlite,
    variants={"ssdlite_mobilenetv2": {}},
    input_size=(3, 320, 320),
    preprocessing={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "crop_pct": 1.0},
)
