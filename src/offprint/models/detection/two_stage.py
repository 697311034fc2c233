r"""Heads of two stages on torchvision's operations: Faster R-CNN (Ren et al., 2015) and Mask R-CNN (He et al., 2017).

A region proposal network says on every map where something is; of each proposal a 7x7 window is pooled from the map of its size,
classified, and moved; for a mask a 14x14 window is pooled from the moved box. Names of the tensors below ``head.`` are torchvision's
(``rpn.head...``, ``roi_heads.box_head...``). :class:`TwoStage` takes the pooling, the losses and the filtering from its parts, so that a
paper replaces one of them and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from offprint.errors import OffprintError
from offprint.models.checkpoint import Dialect
from offprint.models.detection.contract import Targets, anchors, check_targets, named
from offprint.models.parts import Maps, each_stride, register_part

SCALE, RATIOS = 8.0, (0.5, 1.0, 2.0)  # of the proposal network's anchors


class Anchors(nn.Module):
    """:func:`~offprint.models.detection.contract.anchors` as torchvision's proposal network asks for them."""

    def __init__(self, strides: Sequence[int]):
        super().__init__()
        self.strides = tuple(strides)

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """All anchors of a picture, for each picture."""
        sizes = tuple((int(m.shape[-2]), int(m.shape[-1])) for m in maps)
        boxes = torch.cat(anchors(sizes, self.strides, (SCALE,), RATIOS, maps[0].device, maps[0].dtype))
        return [boxes] * len(images.image_sizes)


class TwoStage(nn.Module):
    """Proposals, then boxes, then masks.

    Args:
        before: the maps that come in, of one width; all serve the proposals, the finest four the pooling.
        num_classes: classes of objects, without the background.
        with_masks: whether a mask is predicted for each box.
        box_pool, mask_pool: how 7x7 and 14x14 windows are pooled; default :class:`~torchvision.ops.MultiScaleRoIAlign`.
        hidden: width of the two layers that classify a window.
        mask_width: channels of the four convolutions that draw a mask.
        proposals: kept of the proposals (before the suppression in training and in use, after it in training and in use).
        regions: of an image that the second stage learns from; a quarter of them objects.
    """

    background = False
    finest = 4
    masks = False
    whole_dialects = (Dialect("torchvision", (
        (r"^backbone\.body\.", "backbone."), (r"^backbone\.fpn\.", "neck.fpn."), (r"^(rpn|roi_heads)\.", r"head.\1."),
    )),)  # fmt: skip

    def __init__(
        self,
        before: Maps,
        num_classes: int = 80,
        *,
        with_masks: bool = False,
        box_pool: nn.Module | None = None,
        mask_pool: nn.Module | None = None,
        hidden: int = 1024,
        mask_width: int = 256,
        proposals: tuple[int, int, int, int] = (2000, 1000, 2000, 1000),
        regions: int = 512,
    ):
        super().__init__()
        if len(set(before.channels)) != 1:
            raise OffprintError(
                f"a two-stage head reads maps of one width, and these have {sorted(set(before.channels))}; add a neck: "
                "BACKBONE+fpn+faster_rcnn"
            )
        if num_classes < 1:
            raise OffprintError(f"num_classes={num_classes}; give the number of classes of objects, at least 1")
        width = before.channels[0]
        self.num_classes, self.masks = num_classes, with_masks
        pooled = [str(i) for i in range(min(4, len(before.channels)))]
        train, use, train_after, use_after = proposals
        self.rpn = self.first_stage(
            Anchors(before.reductions), RPNHead(width, len(RATIOS)), 0.7, 0.3, 256, 0.5,
            {"training": train, "testing": use}, {"training": train_after, "testing": use_after}, 0.7,
        )  # fmt: skip
        box_pool = box_pool or MultiScaleRoIAlign(pooled, 7, 2)
        mask = {}
        if with_masks:
            mask = {
                "mask_roi_pool": mask_pool or MultiScaleRoIAlign(pooled, 14, 2),
                "mask_head": MaskRCNNHeads(width, (mask_width,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(mask_width, mask_width, num_classes + 1),
            }
        self.roi_heads = self.second_stage(
            box_roi_pool=box_pool, box_head=TwoMLPHead(width * 49, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_classes + 1), fg_iou_thresh=0.5, bg_iou_thresh=0.5,
            batch_size_per_image=regions, positive_fraction=0.25, bbox_reg_weights=None, score_thresh=0.05, nms_thresh=0.5,
            detections_per_img=100, **mask,
        )  # fmt: skip

    first_stage: Any = RegionProposalNetwork  # a sub-class's own losses or filtering go here
    second_stage: Any = RoIHeads

    @classmethod
    def on(cls, before: Maps, num_classes: int = 80, **options) -> TwoStage:
        """The head over these maps."""
        return cls(before, num_classes, **options)

    @classmethod
    def with_mask(cls, before: Maps, num_classes: int = 80, **options) -> TwoStage:
        """The head over these maps, with masks."""
        return cls(before, num_classes, with_masks=True, **options)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The first stage's raw maps: objectness (B, 3, H, W) and codes (B, 12, H, W) of every level. The second has none without proposals."""
        return self.rpn.head(list(maps))

    def _run(self, maps: Sequence[Tensor], size: tuple[int, int], targets: Targets | None):
        """Both stages; with targets the losses are computed, whatever mode the norms are in."""
        stages = (self.rpn, self.roi_heads)
        before = [s.training for s in stages]
        for s in stages:
            s.training = targets is not None
        try:
            features, (height, width) = named(maps), size
            shapes = [(int(height), int(width))] * len(maps[0])
            images = ImageList(torch.empty(len(shapes), 3, height, width, device="meta"), shapes)
            proposals, first = self.rpn(images, features, targets)
            found, second = self.roi_heads(features, proposals, shapes, targets)
        finally:
            for s, mode in zip(stages, before, strict=True):
                s.training = mode
        return found, {k.removeprefix("loss_"): v for k, v in (first | second).items()}

    def losses(self, maps: Sequence[Tensor], size: tuple[int, int], targets: Targets) -> dict[str, Tensor]:
        """``objectness``, ``rpn_box_reg``, ``classifier``, ``box_reg``, and ``mask`` where there are masks."""
        check_targets(targets, len(maps[0]), self.num_classes, self.masks)
        keys = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        targets = [{k: t[k].to(maps[0].device) for k in keys} for t in targets]
        for t in targets:
            t["boxes"] = t["boxes"].to(torch.promote_types(maps[0].dtype, torch.float32))
        return self._run(maps, size, targets)[1]

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        limit: int = 100,
    ) -> list[dict[str, Tensor]]:
        """Objects in each image, as the contract says.

        Args:
            maps: the maps that come in.
            size: (height, width) of the images.
            score_threshold: lowest score kept.
            iou_threshold: of two boxes of one class that overlap more than this, the better stays.
            limit: most objects per image.
        """
        roi = self.roi_heads
        kept = roi.score_thresh, roi.nms_thresh, roi.detections_per_img
        roi.score_thresh, roi.nms_thresh, roi.detections_per_img = score_threshold, iou_threshold, limit
        try:
            found, _ = self._run(maps, size, None)
        finally:
            roi.score_thresh, roi.nms_thresh, roi.detections_per_img = kept
        return [{k: v[:, 0] if k == "masks" else v for k, v in f.items()} for f in found]


register_part("faster_rcnn", "head", TwoStage.on, task="detection", takes=each_stride(TwoStage.finest))
register_part("mask_rcnn", "head", TwoStage.with_mask, task="detection", takes=each_stride(TwoStage.finest))
