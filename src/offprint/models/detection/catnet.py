r"""CATNet (Liu et al., TNNLS 2024): context gathered at three places of a detector, over levels, over positions, and over regions.

**DenseFPN.** A pyramid of n levels :math:`L_0 \dots L_{n-1}`, fine to coarse, passes through five stages. Each sends what every coarser level held
down, then what every finer level has become up, and a bottleneck (1x1, 3x3, 1x1, each with its norm and no activation inside) ends both ways:

.. math::
    T_i &= B_i(\mathrm{ReLU}(L_i + \textstyle\sum_{j > i} a_{ij} \uparrow L_j)), \\
    L'_i &= B_{n+i}(\mathrm{ReLU}(L_i + T_i + \textstyle\sum_{j < i} b_{ij} \downarrow T_j)),

with a and b softmaxes over j of vectors that all stages share, :math:`\uparrow` bilinear and :math:`\downarrow` an adaptive max pooling.

**SCP.** Each level gets one vector of the whole image, pooled by attention, back where a gate wants it:
:math:`x + m(\sum_p v_p k_p) \otimes \sigma(a)`, k a softmax over the positions p, m zero at the start.

**HRoIE.** A region is pooled from all levels, not from the one of its size: :math:`s \leftarrow s + R_i \otimes \sigma(w_i [s, R_i])`, from the finest
level up for boxes, from the coarsest down for masks.

CAT Mask R-CNN and CAT R-CNN are two-stage detectors (:mod:`offprint.models.detection.two_stage`) of all three, with L1 losses for boxes and soft-NMS;
"CATNet" is the first two under RetinaNet's head. Source: yeliudev/CATNet@64775d0.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align

from offprint.errors import OffprintError, unknown
from offprint.models.backbones.ibn_net import ResNet
from offprint.models.checkpoint import Dialect
from offprint.models.compose import Detector
from offprint.models.detection.one_stage import RetinaHead
from offprint.models.detection.two_stage import TwoStage
from offprint.models.parts import Maps, each_stride, maps_of, part, register_part
from offprint.models.registry import Weights, register
from offprint.models.released import hashed

LEAST = 1e-3  # a box whose score soft-NMS has brought below this is left out
SLICE = 64  # regions whose masks are cropped or drawn at a time


class Conv(nn.Module):
    """A convolution with its norm, or with a bias; Xavier's uniform weights after their inputs, as Caffe2 has them."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=not norm)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        if not norm:
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.bn(x)


# -- DenseFPN ---------------------------------------------------------------------------------------------------------
def shrunk(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """A map adaptively max-pooled to each of these sizes, fine to coarse.

    Where a size divides the one before it the windows nest, and what was pooled already is pooled again: the same maxima for less work.
    """
    out: list[Tensor] = []
    source = x
    for size in sizes:
        if source.shape[-2] % size[0] or source.shape[-1] % size[1]:
            source = x  # windows of unlike sizes do not nest
        if source.shape[-2] % size[0] or source.shape[-1] % size[1]:
            out.append(F.adaptive_max_pool2d(x, size))
        else:
            source = F.max_pool2d(source, (source.shape[-2] // size[0], source.shape[-1] // size[1]))
            out.append(source)
    return out


class DenseFPN(nn.Module):
    """The neck: ``num_outs`` maps of one width, through ``stack_times`` stages.

    Args:
        in_channels: of the maps, fine to coarse.
        out_channels: of every output.
        num_outs: outputs; those beyond the maps come from strided 3x3 convolutions of the last one.
        start_level: first of the maps that is used: 0 for two stages (strides 4 to 64), 1 for RetinaNet (8 to 128).
        stack_times: stages.
        reduction: how much narrower a bottleneck is inside.

    Raises:
        OffprintError: fewer outputs than maps, fewer than two outputs, no map left.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        stack_times: int = 5,
        reduction: int = 2,
    ):
        super().__init__()
        used = list(in_channels)[start_level:]
        if not used or num_outs < max(2, len(used)):
            raise OffprintError(
                f"DenseFPN gives num_outs={num_outs} maps of the {len(used)} from start_level={start_level} on; give at least one "
                "map, and at least as many outputs (two or more)"
            )
        if stack_times < 1 or reduction < 1 or out_channels < reduction:
            raise OffprintError(
                f"stack_times={stack_times}, reduction={reduction}, out_channels={out_channels}; counts from 1 on, and a "
                "reduction that leaves channels"
            )
        self.in_channels, self.out_channels, self.start_level = list(in_channels), out_channels, start_level
        self.lateral_convs = nn.ModuleList(Conv(c, out_channels, norm=True) for c in used)
        self.extra_convs = nn.ModuleList(
            Conv(out_channels, out_channels, 3, 2, norm=True) for _ in range(num_outs - len(used))
        )
        inner = out_channels // reduction

        def bottleneck() -> nn.Sequential:
            return nn.Sequential(
                Conv(out_channels, inner, norm=True), Conv(inner, inner, 3, norm=True), Conv(inner, out_channels, norm=True)
            )  # fmt: skip

        self.stages = nn.ModuleList(
            nn.ModuleList(bottleneck() for _ in range(2 * num_outs)) for _ in range(stack_times)
        )
        # a sum of one term needs no weights
        self.top_down_atts = nn.ParameterList(torch.ones(n) for n in range(num_outs - 1, 1, -1))
        self.bottom_up_atts = nn.ParameterList(torch.ones(n) for n in range(2, num_outs))

    @classmethod
    def on(cls, before: Maps, *, finest: int = 8, num_outs: int = 5, **options) -> DenseFPN:
        """The neck over these maps, those finer than ``finest`` left out: 8 for heads of one stage, 4 for two stages."""
        start = sum(stride < finest for stride in before.reductions)
        neck = cls(before.channels, start_level=start, num_outs=num_outs, **options)
        used = before.reductions[start:]
        strides = (*used, *(used[-1] * 2 ** (i + 1) for i in range(num_outs - len(used))))
        neck.maps = Maps((neck.out_channels,) * num_outs, strides)
        return neck

    def _check(self, maps: Sequence[Tensor]) -> None:
        got = [m.shape[1] for m in maps]
        if got != self.in_channels:
            raise OffprintError(
                f"DenseFPN was built for maps of {self.in_channels} channels, fine to coarse, and got {got}; "
                "build it with in_channels=encoder.feature_info.channels()"
            )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[i], H_i, W_i), fine to coarse, to ``num_outs`` maps of ``out_channels``.

        Raises:
            OffprintError: other maps than it was built for; in training a coarsest map of a single value per channel, which has no variance.
        """
        self._check(maps)
        level = [conv(x) for conv, x in zip(self.lateral_convs, maps[self.start_level :], strict=True)]
        for conv in self.extra_convs:
            last = level[-1]
            if self.training and len(last) * -(-last.shape[-2] // 2) * -(-last.shape[-1] // 2) == 1:
                raise OffprintError(
                    "one image whose coarsest map is a single point has no batch statistics; train on more or larger images, or put the "
                    "neck into evaluation mode"
                )
            level.append(conv(last))
        n, one = len(level), level[0].new_ones(1)
        down = [*(w.softmax(0) for w in self.top_down_atts), one, one[:0]]
        up = [one[:0], one, *(w.softmax(0) for w in self.bottom_up_atts)]
        sizes = [(int(m.shape[-2]), int(m.shape[-1])) for m in level]
        for stage in self.stages:
            inner: list[Tensor] = []
            for i, x in enumerate(level):
                for j, weight in enumerate(down[i]):  # j counts from the coarsest level
                    x = x + F.interpolate(weight * level[n - 1 - j], sizes[i], mode="bilinear", align_corners=False)
                inner.append(stage[i](F.relu(x)))  # type: ignore[index]
            below = [shrunk(t, sizes[j + 1 :]) for j, t in enumerate(inner)]
            after: list[Tensor] = []
            for i, (x, t) in enumerate(zip(level, inner, strict=True)):
                x = x + t
                for j, weight in enumerate(up[i]):
                    x = x + weight * below[j][i - j - 1]
                after.append(stage[n + i](F.relu(x)))  # type: ignore[index]
            level = after
        return level


# -- SCP --------------------------------------------------------------------------------------------------------------
class ContextAggregation(nn.Module):
    """One vector of a map, given back to its positions; the identity at the start.

    Args:
        channels: of the map.
        reduction: how much narrower the vector is.
    """

    def __init__(self, channels: int, reduction: int = 1):
        super().__init__()
        inner = max(1, channels // reduction)
        self.a, self.k = Conv(channels, 1), Conv(channels, 1)
        self.v, self.m = Conv(channels, inner), Conv(inner, channels)
        nn.init.zeros_(self.m.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same. The sum over positions goes before the convolution v: its weights sum to 1."""
        share = self.k(x).flatten(2).softmax(-1)  # (B, 1, H·W)
        pooled = (x.flatten(2) @ share.transpose(1, 2)).unsqueeze(-1)  # (B, C, 1, 1)
        return x + self.m(self.v(pooled)) * self.a(x).sigmoid()


class SCP(nn.Module):
    """Spatial context pyramid: a block of its own on each level.

    Args:
        channels: of every map.
        num_levels: maps.
        reduction: of the blocks.
    """

    def __init__(self, channels: int = 256, num_levels: int = 5, reduction: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(ContextAggregation(channels, reduction) for _ in range(num_levels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if len(maps) != len(self.blocks):
            raise OffprintError(f"SCP was built for {len(self.blocks)} maps, and got {len(maps)}")
        return [block(x) for block, x in zip(self.blocks, maps, strict=True)]


class WithContext(nn.Sequential):
    """A neck and SCP after it."""

    def __init__(self, neck: nn.Module):
        before = maps_of(neck)
        if len(set(before.channels)) != 1:
            raise OffprintError(f"SCP reads maps of one width, and these have {sorted(set(before.channels))}")
        super().__init__(neck, SCP(before.channels[0], len(before.channels)))
        self.maps = before


def with_scp(name: str):
    """The builder of a neck with SCP after it; it has the option ``finest`` where the neck has."""

    def on(before: Maps, **options) -> WithContext:
        return WithContext(part(name)(before, **options))

    def from_level(before: Maps, *, finest: int = 8, **options) -> WithContext:
        return on(before, finest=finest, **options)

    return on if name == "hor_fpn" else from_level


# -- HRoIE ------------------------------------------------------------------------------------------------------------
class RoIExtractor(MultiScaleRoIAlign):
    """Regions from all levels, in the place of torchvision's pooling, whose detectors take nothing but its class.

    Args:
        channels: of the maps.
        strides: of the maps, fine to coarse; maps beyond them are not read.
        size: of a region's window.
        direction: ``bottom_up`` (finest level first) or ``top_down``.
    """

    def __init__(self, channels: int, strides: Sequence[int], size: int, direction: str):
        if direction not in ("bottom_up", "top_down"):
            raise unknown("direction of HRoIE", direction, ("bottom_up", "top_down"))
        super().__init__([str(i) for i in range(len(strides))], size, 0)
        self.strides, self.size, self.direction = tuple(strides), size, direction
        self.atts = nn.ModuleList(Conv(2 * channels, channels) for _ in self.strides)

    def forward(  # type: ignore[override]
        self, maps: OrderedDict[str, Tensor], boxes: list[Tensor], shapes: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        """Windows (regions, C, size, size).

        Args:
            maps: (B, C, H_i, W_i) each, fine to coarse.
            boxes: of each image (N, 4), in its pixels.
            shapes: of the images; the strides are told, so that nothing is read from them.
        """
        levels = list(maps.values())
        if len(levels) < len(self.strides):
            raise OffprintError(f"HRoIE was built for {len(self.strides)} maps, and got {len(levels)}")
        order = range(len(self.strides))
        sum_: Tensor | None = None
        for i in order if self.direction == "bottom_up" else reversed(order):
            level = levels[i]
            window = roi_align(
                level, [b.to(level.dtype) for b in boxes], self.size, 1 / self.strides[i], 0, aligned=True
            )
            conv = self.atts[i].conv
            if sum_ is None:  # nothing gathered yet, so that half of the weights meets zeros
                half = conv.weight[:, conv.in_channels // 2 :]  # type: ignore[index, operator]
                sum_ = window * F.conv2d(window, half, conv.bias).sigmoid()  # type: ignore[arg-type]
            else:
                sum_ = torch.addcmul(sum_, window, conv(torch.cat([sum_, window], 1)).sigmoid())
        assert sum_ is not None
        return sum_


class HRoIE(nn.Module):
    """Both extractors of a detector: ``box``, 7x7 windows from the finest level up, and ``mask``, 14x14 ones from the coarsest down."""

    def __init__(self, channels: int = 256, strides: Sequence[int] = (4, 8, 16, 32)):
        super().__init__()
        self.box = RoIExtractor(channels, strides, 7, "bottom_up")
        self.mask = RoIExtractor(channels, strides, 14, "top_down")


# -- heads ------------------------------------------------------------------------------------------------------------
def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Linear soft-NMS of each class (Bodla et al., ICCV 2017): boxes that overlap a better one by the threshold lose that share of their score.

    Args:
        boxes, scores, labels: (N, 4), (N,), (N,).
        iou_threshold: overlap from which on a score falls.

    Returns:
        The boxes kept, best first, and their scores.
    """
    scores = scores.clone()
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        box, score = boxes[rows], scores[rows]
        left = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(len(rows) - 1):
            best = torch.where(left, score, -1).argmax()
            left[best] = False
            overlap = box_iou(box[best, None], box)[0]
            score = torch.where(left & (overlap >= iou_threshold), score * (1 - overlap), score)
        scores[rows] = score
    kept = (scores >= LEAST).nonzero()[:, 0]
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return kept, scores[kept]


class BoxPredictor(nn.Module):
    """Scores of the classes, background first, and codes of boxes for each class but the background, whose place holds zeros."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(channels, num_classes + 1), nn.Linear(channels, 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), F.pad(self.bbox_pred(x), (4, 0))


class MaskPredictor(nn.Module):
    """Masks of each class, twice the size; the background's place holds zeros."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.mask_fcn_logits(F.relu(self.conv5_mask(x))), (0, 0, 0, 0, 1, 0))


class Proposals(RegionProposalNetwork):
    """torchvision's proposal network with the L1 loss for boxes."""

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        positive, negative = (torch.cat(rows).nonzero()[:, 0] for rows in self.fg_bg_sampler(labels))
        both, label = torch.cat([positive, negative]), torch.cat(labels)
        box = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        seen = F.binary_cross_entropy_with_logits(objectness.flatten()[both], label[both])
        return seen, box / max(1, len(both))


def cropped(masks: Tensor, boxes: Tensor, owner: Tensor, side: int) -> Tensor:
    """Masks of objects (N, H, W) inside boxes (R, 4), at (R, side, side), 0 or 1.

    Only the masks of the objects that are asked for are touched, some at a time: an image of a thousand objects costs no more than one of few.

    Args:
        owner: (R,) the object of each box.
    """
    out = [boxes.new_zeros(0, side, side)]
    for start in range(0, len(boxes), SLICE):
        which, inverse = owner[start : start + SLICE].unique(return_inverse=True)
        regions = torch.cat([inverse[:, None].to(boxes), boxes[start : start + SLICE]], 1)
        full = masks[which.to(masks.device)].to(boxes)[:, None]
        out.append((roi_align(full, regions, side, 1.0, 0, aligned=True)[:, 0] >= 0.5).to(boxes))
    return torch.cat(out)


class SecondStage(RoIHeads):
    """torchvision's second stage with the L1 loss for boxes, soft-NMS, and masks in slices."""

    def postprocess_detections(self, class_logits, box_regression, proposals, image_shapes):
        threshold, limit = self.nms_thresh, self.detections_per_img
        self.nms_thresh, self.detections_per_img = 1.0, sys.maxsize  # nothing overlaps by more: all come through
        try:
            rows = zip(
                *super().postprocess_detections(class_logits, box_regression, proposals, image_shapes), strict=True
            )
            out = []
            for boxes, scores, labels in rows:
                kept, softened = soft_nms(boxes, scores, labels, threshold)
                kept = kept[:limit]
                out.append((boxes[kept], softened[:limit], labels[kept]))
        finally:
            self.nms_thresh, self.detections_per_img = threshold, limit
        return tuple(map(list, zip(*out, strict=True)))

    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            proposals, owners, labels, wanted = self.select_training_samples(proposals, targets)
        windows = self.box_roi_pool(features, proposals, image_shapes)
        scores, codes = self.box_predictor(self.box_head(windows))
        if not self.training:
            found = self.postprocess_detections(scores, codes, proposals, image_shapes)
            found = [dict(zip(("boxes", "scores", "labels"), row, strict=True)) for row in zip(*found, strict=True)]
            if self.has_mask():
                for i, objects in enumerate(found):
                    objects["masks"] = self._masks(features, objects, image_shapes, i)
            return found, {}
        label = torch.cat(labels)
        rows = (label > 0).nonzero()[:, 0]
        own = codes.view(len(label), -1, 4)[rows, label[rows]]
        box = F.l1_loss(own, torch.cat(wanted)[rows], reduction="sum")
        losses = {"loss_classifier": F.cross_entropy(scores, label), "loss_box_reg": box / max(1, len(label))}
        if self.has_mask():
            boxes = [p[k > 0] for p, k in zip(proposals, labels, strict=True)]
            owners = [o[k > 0] for o, k in zip(owners, labels, strict=True)]
            drawn = self._draw(features, boxes, image_shapes)
            with torch.no_grad():
                truth = [
                    cropped(t["masks"], b, o, drawn.shape[-1]) for t, b, o in zip(targets, boxes, owners, strict=True)
                ]
            own = drawn[torch.arange(len(rows), device=drawn.device), label[rows]]
            loss = F.binary_cross_entropy_with_logits(own, torch.cat(truth).to(own)) if len(rows) else drawn.sum() * 0
            losses["loss_mask"] = loss
        return [], losses

    def _draw(self, features, boxes, image_shapes) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def _masks(self, features, objects, image_shapes, image: int) -> Tensor:
        """Of each object of one image (N, 1, m, m): how likely a pixel is its own."""
        alone = OrderedDict((k, v[image : image + 1]) for k, v in features.items())
        out = [objects["boxes"].new_zeros(0, 1, 2 * self.mask_roi_pool.size, 2 * self.mask_roi_pool.size)]
        for start in range(0, len(objects["boxes"]), SLICE):
            boxes, labels = (objects[k][start : start + SLICE] for k in ("boxes", "labels"))
            drawn = self._draw(alone, [boxes], image_shapes[image : image + 1])
            out.append(drawn[torch.arange(len(labels), device=drawn.device), labels][:, None].sigmoid())
        return torch.cat(out)


def _background_first(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """mmdetection's last class is the background; here it is the first."""
    key = "head.roi_heads.box_predictor.cls_score."
    return {k: v.roll(1, 0) if k.startswith(key) else v for k, v in state.items()}


class HRoIEHead(TwoStage):
    """The two-stage head with HRoIE; options as :class:`~offprint.models.detection.two_stage.TwoStage` has them."""

    first_stage, second_stage = Proposals, SecondStage
    whole_dialects = (Dialect("authors", (
        (r"^rpn_head\.rpn_conv\.", "head.rpn.head.conv.0.0."), (r"^rpn_head\.rpn_cls\.", "head.rpn.head.cls_logits."),
        (r"^rpn_head\.rpn_reg\.", "head.rpn.head.bbox_pred."), (r"^roi_head\.", "head.roi_heads."),
        (r"\.bbox_roi_extractor\.", ".box_roi_pool."), (r"\.mask_roi_extractor\.", ".mask_roi_pool."),
        (r"\.bbox_head\.shared_fcs\.0\.", ".box_head.fc6."), (r"\.bbox_head\.shared_fcs\.1\.", ".box_head.fc7."),
        (r"\.bbox_head\.fc_cls\.", ".box_predictor.cls_score."), (r"\.bbox_head\.fc_reg\.", ".box_predictor.bbox_pred."),
        (r"\.mask_head\.convs\.(\d)\.conv\.", r".mask_head.\1.0."), (r"\.mask_head\.upsample\.", ".mask_predictor.conv5_mask."),
        (r"\.mask_head\.conv_logits\.", ".mask_predictor.mask_fcn_logits."),
    ), reshape=_background_first),)  # fmt: skip

    def __init__(
        self,
        before: Maps,
        num_classes: int = 80,
        *,
        with_masks: bool = False,
        hidden: int = 1024,
        mask_width: int = 256,
        proposals: tuple[int, int, int, int] = (2000, 2000, 1000, 2000),
        regions: int = 512,
    ):
        pools = HRoIE(before.channels[0], before.reductions[:4])
        super().__init__(
            before, num_classes, with_masks=with_masks, box_pool=pools.box, mask_pool=pools.mask if with_masks else None,
            hidden=hidden, mask_width=mask_width, proposals=proposals, regions=regions,
        )  # fmt: skip
        self.roi_heads.box_predictor = BoxPredictor(hidden, num_classes)
        if with_masks:
            self.roi_heads.mask_predictor = MaskPredictor(mask_width, num_classes)

    @torch.no_grad()
    def detect(self, maps, size, *, score_threshold=0.05, iou_threshold=0.5, limit=1000):
        """Objects in each image, as the contract says; of two boxes of one class that overlap more, the worse loses score (:func:`soft_nms`)."""
        return super().detect(maps, size, score_threshold=score_threshold, iou_threshold=iou_threshold, limit=limit)


class SoftRetinaHead(RetinaHead):
    """RetinaNet's head with soft-NMS."""

    @torch.no_grad()
    def detect(self, maps, size, *, score_threshold=0.05, iou_threshold=None, limit=1000, candidates=2000):
        """Objects in each image, as the contract says; scores fall by :func:`soft_nms`."""
        every = super().detect(
            maps, size, score_threshold=score_threshold, iou_threshold=1.0, limit=candidates * len(maps), candidates=candidates
        )  # fmt: skip
        threshold = self.iou_threshold if iou_threshold is None else iou_threshold
        found = []
        for objects in every:
            kept, scores = soft_nms(objects["boxes"], objects["scores"], objects["labels"], threshold)
            kept = kept[:limit]
            found.append({"boxes": objects["boxes"][kept], "scores": scores[:limit], "labels": objects["labels"][kept]})
        return found


# -- detectors --------------------------------------------------------------------------------------------------------
HEADS = {"hroie_mask_rcnn": HRoIEHead.with_mask, "hroie_faster_rcnn": HRoIEHead.on, "retinanet": SoftRetinaHead.on}


def detector(
    num_classes: int = 15,
    in_chans: int = 3,
    head: str = "hroie_mask_rcnn",
    depths: tuple[int, ...] = (3, 4, 6, 3),
    stack_times: int = 5,
    out_channels: int = 256,
    reduction: int = 2,
) -> Detector:
    """A detector of the paper.

    Args:
        num_classes: classes of objects, without the background.
        in_chans: image channels.
        head: ``hroie_mask_rcnn``, ``hroie_faster_rcnn`` or ``retinanet``.
        depths: blocks of the ResNet's stages.
        stack_times, out_channels, reduction: of DenseFPN.
    """
    if head not in HEADS:
        raise unknown("head of CATNet", head, HEADS)
    backbone: Any = ResNet(in_chans, 0, "bottleneck", depths, kind="")  # type: ignore[arg-type]
    backbone = backbone.as_features((1, 2, 3, 4))
    finest = 8 if head == "retinanet" else 4
    options = {"stack_times": stack_times, "out_channels": out_channels, "reduction": reduction}
    neck = WithContext(DenseFPN.on(maps_of(backbone), finest=finest, **options))
    model = Detector(backbone, neck, HEADS[head](neck.maps, num_classes))
    model.in_chans = in_chans
    model.size_multiple = neck.maps.reductions[-1]  # to which the authors pad images
    return model


detector.background = False  # type: ignore[attr-defined]
VARIANTS = {
    "cat_mask_rcnn_r50": {},
    "cat_rcnn_r50": {"head": "hroie_faster_rcnn", "num_classes": 20},
    "catnet_r50": {"head": "retinanet", "num_classes": 20},
}
RELEASE, PAGE = "hf:yeliudev/CATNet/checkpoints/", "yeliudev/CATNet README, model zoo"
ZOO = {  # model: tag: (file, classes, data, its figures)
    "cat_mask_rcnn_r50": {
        "isaid": ("cat_mask_rcnn_r50_3x_isaid-384df911", 15, "isaid", {"ap": 45.1, "mask_ap": 37.2}),
        "isaid_aug": ("cat_mask_rcnn_r50_aug_3x_isaid-1e5351dd", 15, "isaid", {"ap": 47.7, "mask_ap": 39.2}),
        "isaid_trainval": ("cat_mask_rcnn_r50_3x_isaid_tv-5771e7f5", 15, "", {}),
        "isaid_trainval_aug": ("cat_mask_rcnn_r50_aug_3x_isaid_tv-9526715d", 15, "", {}),
        "vhr10": ("cat_mask_rcnn_r50_6x_vhr-d38af93b", 10, "nwpu-vhr-10", {"ap": 71.0, "mask_ap": 69.3}),
        "vhr10_aug": ("cat_mask_rcnn_r50_aug_6x_vhr-599b2304", 10, "nwpu-vhr-10", {"ap": 72.4, "mask_ap": 70.7}),
        "hrsid": ("cat_mask_rcnn_r50_6x_hrsid-198d5409", 1, "hrsid", {"ap": 70.9, "mask_ap": 57.6}),
        "hrsid_aug": ("cat_mask_rcnn_r50_aug_6x_hrsid-0da9459c", 1, "hrsid", {"ap": 72.0, "mask_ap": 59.6}),
    },
    "cat_rcnn_r50": {
        "dior": ("cat_rcnn_r50_3x_dior-044be4c7", 20, "dior", {"ap50": 75.8}),
        "dior_aug": ("cat_rcnn_r50_aug_3x_dior-89845304", 20, "dior", {"ap50": 80.6}),
    },
    "catnet_r50": {
        "dior": ("catnet_r50_3x_dior-5cb86542", 20, "dior", {"ap50": 74.0}),
        "dior_aug": ("catnet_r50_aug_3x_dior-6ec5fae1", 20, "dior", {"ap50": 78.2}),
    },
}  # fmt: skip
WEIGHTS = {
    name: {
        tag: Weights(
            f"{RELEASE}{file}.pth", "authors", "authors", "GPL-3.0", hashed(f"{file}.pth"), classes,
            metrics={data: figures} if figures else {}, metrics_source=PAGE if figures else "",
            class_map=tag.partition("_")[0],
        )
        for tag, (file, classes, data, figures) in rows.items()
    }
    for name, rows in ZOO.items()
}  # fmt: skip
RECIPE = {  # 3x on patches of iSAID
    "optimizer": "sgd", "lr": 0.01, "reference_batch": 8, "momentum": 0.9, "weight_decay": 1e-4, "decay_vectors": True, "batch_size": 8,
    "epochs": 36, "schedule": "step", "decay_rate": 0.1, "milestones": (28, 34), "warmup_steps": 500, "warmup_ratio": 0.001,
    "short_sides": (800,), "longest_side": 1400, "freeze_stages": 1, "flip_share": 0.75, "flips": ("horizontal", "vertical", "diagonal"),
    "data": "isaid",
}  # fmt: skip
SCALES = (1200, 1000, 800, 600, 400)
DIOR = {**RECIPE, "longest_side": 1200, "data": "dior"}
VHR = {
    **DIOR,
    "epochs": 72,
    "milestones": (56, 68),
    "data": "nwpu-vhr-10",
}  # each epoch of the authors' shows every picture twice
HRSID = {**VHR, "short_sides": (1000,), "data": "hrsid"}
EXCEPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "training": {"cat_rcnn_r50": DIOR, "catnet_r50": {**DIOR, "lr": 0.005}},
    "multiscale": {
        "cat_mask_rcnn_r50": {**RECIPE, "short_sides": SCALES},
        "cat_rcnn_r50": {**DIOR, "short_sides": SCALES},
        "catnet_r50": {**DIOR, "lr": 0.005, "short_sides": SCALES},
    },
    "vhr10": {"cat_mask_rcnn_r50": VHR},
    "vhr10_multiscale": {"cat_mask_rcnn_r50": {**VHR, "short_sides": SCALES}},
    "hrsid": {"cat_mask_rcnn_r50": HRSID},
    "hrsid_multiscale": {"cat_mask_rcnn_r50": {**HRSID, "short_sides": (1200, 1100, 1000, 900, 800)}},
}
register(
    paper="catnet",
    kind="detection",
    task="detection",
    build=detector,
    variants=VARIANTS,
    input_size=(3, 800, 1400),
    input_sizes={"cat_rcnn_r50": (3, 800, 1200), "catnet_r50": (3, 800, 1200)},
    preprocessing={
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    },
    weights=WEIGHTS,
    recipe=RECIPE,
    exceptions=EXCEPTIONS,
)
register_part("dense_fpn", "neck", DenseFPN.on, paper="catnet", takes=each_stride(4))
for _neck in ("fpn", "dense_fpn", "rcfpn", "hor_fpn"):
    register_part(f"{_neck}_scp", "neck", with_scp(_neck), paper="catnet", takes=each_stride(4))
register_part("hroie_faster_rcnn", "head", HRoIEHead.on, paper="catnet", task="detection", takes=each_stride(4))
register_part("hroie_mask_rcnn", "head", HRoIEHead.with_mask, paper="catnet", task="detection", takes=each_stride(4))
