"""VTDNet's instance tasks over one set of proposals: boxes, masks, joints, embeddings; losses image by image, as labels are partial."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import (
    fastrcnn_loss,
    keypointrcnn_inference,
    keypointrcnn_loss,
    maskrcnn_loss,
)
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou

from offprint.models.detection._vtdnet_blocks import InstanceExchange, InstancePool
from offprint.models.detection._vtdnet_tracking import EmbedHead, embedding_losses
from offprint.models.detection.contract import named
from offprint.models.detection.two_stage import TwoStage
from offprint.models.parts import Maps

PERSON = 1  # label of pedestrians
REGIONS = 128  # of an image that masks, joints and embeddings learn from
POOLED = {"detection": 7, "instance": 14, "pose": 14, "mot": 7}


class Proposals:
    """What the first stage says: boxes of each image, and what its losses need."""

    def __init__(self, boxes: list[Tensor], objectness: Tensor, codes: Tensor, anchors: list[Tensor]):
        self.boxes, self.objectness, self.codes, self.anchors = boxes, objectness, codes, anchors


class Instances(TwoStage):
    """Faster R-CNN with the heads that the tasks need.

    Args:
        before: maps from stride 4 on, of one width.
        num_classes, joints: classes of objects, joints of a person.
        tasks: of ``detection``, ``instance``, ``pose``, ``mot``, ``mots``.
        width: c of the interaction block, 0 for none.
        grid: channels of the pixel features that it reads, 0 for none.
        hidden, mask_width, pose_width, pose_layers, embed: widths of the heads.
        proposals, regions: as in :class:`~offprint.models.detection.two_stage.TwoStage`.
    """

    def __init__(
        self, before: Maps, num_classes: int, joints: int, tasks: Sequence[str], *, width: int, grid: int, hidden: int,
        mask_width: int, pose_width: int, pose_layers: int, embed: int, proposals: tuple[int, int, int, int], regions: int,
    ):  # fmt: skip
        channels = before.channels[0]
        used = ["detection"]
        used += ["instance"] if {"instance", "mots"} & set(tasks) else []
        used += ["pose"] if "pose" in tasks else []
        used += ["mot"] if {"mot", "mots"} & set(tasks) else []
        exchange = InstanceExchange(channels, len(used), width, grid) if width and len(used) > 1 else None
        pools = {t: InstancePool(POOLED[t], channels, exchange, i) for i, t in enumerate(used)}
        super().__init__(
            before, num_classes, with_masks="instance" in used, box_pool=pools["detection"], mask_pool=pools.get("instance"),
            hidden=hidden, mask_width=mask_width, proposals=proposals, regions=regions,
        )  # fmt: skip
        self.exchange, self.joints = exchange, joints
        if "pose" in used:
            self.pose_pool, self.pose_head = pools["pose"], KeypointRCNNHeads(channels, (pose_width,) * pose_layers)
            self.pose_predictor = KeypointRCNNPredictor(pose_width, joints)
        if "mot" in used:
            self.embed_pool, self.embed_head = pools["mot"], EmbedHead(channels, embed, min(32, channels // 4))

    # -- first stage
    def propose(self, maps: Sequence[Tensor], size: tuple[int, int], training: bool) -> Proposals:
        """Boxes that may hold something, (N, 4) of each image."""
        self.rpn.training = training
        shapes = [size] * len(maps[0])
        images = ImageList(torch.empty(len(shapes), 3, *size, device="meta"), shapes)
        objectness, codes = self.rpn.head(list(maps))
        anchors = self.rpn.anchor_generator(images, maps)
        counts = [o[0].numel() for o in objectness]
        flat, deltas = concat_box_prediction_layers(objectness, codes)
        with torch.no_grad():
            boxes = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(shapes), -1, 4)
            kept, _ = self.rpn.filter_proposals(boxes, flat.detach(), shapes, counts)
        return Proposals(kept, flat.view(len(shapes), -1), deltas.view(len(shapes), -1, 4), anchors)

    # -- losses of one image
    def _first_loss(self, found: Proposals, i: int, target: dict[str, Tensor]) -> Tensor:
        labels, matched = self.rpn.assign_targets_to_anchors(found.anchors[i : i + 1], [target])
        wanted = self.rpn.box_coder.encode(matched, found.anchors[i : i + 1])
        return sum(self.rpn.compute_loss(found.objectness[i][:, None], found.codes[i], labels, wanted))

    def losses_of(
        self,
        maps: OrderedDict[str, Tensor],
        size: tuple[int, int],
        found: Proposals,
        i: int,
        target: dict[str, Any],
        tasks: set[str],
    ) -> dict[str, Tensor]:
        """Losses of image ``i`` for ``detection``, ``instance`` and ``pose``, as far as they are among ``tasks``."""
        one, out = _one(maps, i), {}
        if "detection" in tasks:
            self.roi_heads.training = True
            boxes, _, labels, codes = self.roi_heads.select_training_samples([found.boxes[i]], [target])
            logits, moves = self.roi_heads.box_predictor(
                self.roi_heads.box_head(self.roi_heads.box_roi_pool(one, boxes, [size]))
            )
            out["detection"] = self._first_loss(found, i, target) + sum(fastrcnn_loss(logits, moves, labels, codes))
        if "instance" in tasks:
            out["instance"] = self.mask_loss(one, size, found.boxes[i], target)
        if "pose" in tasks:
            boxes, index = _near(found.boxes[i], target["pose_boxes"], 0.5)
            if len(boxes) and bool((target["keypoints"][..., 2] > 0).any()):
                heat = self.pose_predictor(self.pose_head(self.pose_pool(one, [boxes], [size])))
                out["pose"] = keypointrcnn_loss(heat, [boxes], [target["keypoints"]], [index])
            else:
                out["pose"] = maps["0"].sum() * 0
        return out

    def mask_loss(
        self, one: OrderedDict[str, Tensor], size: tuple[int, int], proposals: Tensor, target: dict[str, Any]
    ) -> Tensor:
        """Of the masks of regions near an object; 0 without objects."""
        boxes, index = _near(proposals, target["boxes"], 0.5)
        if not len(boxes):
            return one["0"].sum() * 0
        roi = self.roi_heads
        logits = roi.mask_predictor(roi.mask_head(roi.mask_roi_pool(one, [boxes], [size])))
        return maskrcnn_loss(logits, [boxes], [target["masks"]], [target["labels"]], [index])

    def track_loss(
        self, maps: OrderedDict[str, Tensor], others: OrderedDict[str, Tensor], size: tuple[int, int], found: tuple[Tensor, Tensor],
        targets: tuple[dict[str, Any], dict[str, Any]],
    ) -> Tensor:  # fmt: skip
        """QDTrack's losses of a frame's regions against the reference frame's: 0.25 and 1 are its weights.

        Args:
            maps, others: of the one image and its reference.
            found: proposals of both.
            targets: ``boxes`` and ``tracks`` of both.
        """
        keys, index = _near(found[0], targets[0]["boxes"], 0.7)
        near, other = _near(found[1], targets[1]["boxes"], 0.7)
        far = _far(found[1], targets[1]["boxes"], 0.3)[: max(16, len(near))]
        key_tracks = targets[0]["tracks"][index]
        tracks = torch.cat([targets[1]["tracks"][other], other.new_full((len(far),), -1)])
        keys, key_tracks = keys[key_tracks >= 0], key_tracks[key_tracks >= 0]
        if not len(keys) or not len(tracks):
            return maps["0"].sum() * 0
        positive = key_tracks[:, None] == tracks
        a = self.embed(maps, [keys], [size])
        b = self.embed(others, [torch.cat([near, far])], [size])
        each, auxiliary = embedding_losses(a.float(), b.float(), positive)
        return 0.25 * each.mean() + auxiliary

    def embed(self, maps: OrderedDict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Embeddings of boxes."""
        return self.embed_head(self.embed_pool(maps, boxes, sizes))

    # -- use
    def objects(
        self, maps: OrderedDict[str, Tensor], size: tuple[int, int], found: Proposals, **limits: float
    ) -> list[dict[str, Tensor]]:
        """Of each image ``boxes``, ``scores``, ``labels``; ``masks``, ``keypoints`` (N, J, 3; 0 but for people), ``embeddings`` as the tasks go."""
        roi, shapes = self.roi_heads, [size] * len(found.boxes)
        kept = roi.score_thresh, roi.nms_thresh, roi.detections_per_img
        roi.training = False
        try:
            for name, value in limits.items():
                setattr(
                    roi,
                    {"score_threshold": "score_thresh", "iou_threshold": "nms_thresh", "limit": "detections_per_img"}[
                        name
                    ],
                    value,
                )
            out, _ = roi(maps, found.boxes, shapes)
        finally:
            roi.score_thresh, roi.nms_thresh, roi.detections_per_img = kept
        boxes = [o["boxes"] for o in out]
        for o in out:
            if "masks" in o:
                o["masks"] = o["masks"][:, 0]
        counts = [len(b) for b in boxes]
        if hasattr(self, "embed_head"):
            for o, e in zip(out, self.embed(maps, boxes, shapes).split(counts), strict=True):
                o["embeddings"] = e
        if hasattr(self, "pose_head"):
            people = [o["boxes"][o["labels"] == PERSON] for o in out]
            for o in out:
                o["keypoints"] = o["boxes"].new_zeros(len(o["boxes"]), self.joints, 3)
            if sum(map(len, people)):
                heat = self.pose_predictor(self.pose_head(self.pose_pool(maps, people, shapes)))
                points, scores = keypointrcnn_inference(heat, people)
                for o, p, s in zip(out, points, scores, strict=True):
                    if len(p):
                        o["keypoints"][o["labels"] == PERSON] = torch.cat([p[..., :2], s[..., None]], -1).to(o["boxes"])
        return out


def _one(maps: OrderedDict[str, Tensor], i: int) -> OrderedDict[str, Tensor]:
    return OrderedDict((k, m[i : i + 1]) for k, m in maps.items())


def maps_with(maps: Sequence[Tensor], grid: Tensor | None) -> OrderedDict[str, Tensor]:
    """Maps by name, and the grid beside them."""
    out = named(maps)
    if grid is not None:
        out["grid"] = grid
    return out


def _near(proposals: Tensor, boxes: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """The objects' own boxes and the proposals that overlap one by ``iou``, and the object of each; some of them where they are many."""
    if not len(boxes):
        return proposals[:0], torch.zeros(0, dtype=torch.long, device=proposals.device)
    best, index = box_iou(proposals, boxes).max(1)
    close = best >= iou
    regions = torch.cat([boxes.to(proposals), proposals[close]])
    index = torch.cat([torch.arange(len(boxes), device=index.device), index[close]])
    if len(regions) > REGIONS:
        chosen = torch.randperm(len(regions))[:REGIONS].to(index.device)
        regions, index = regions[chosen], index[chosen]
    return regions, index


def _far(proposals: Tensor, boxes: Tensor, iou: float) -> Tensor:
    """Proposals that overlap no object by ``iou``."""
    return proposals if not len(boxes) else proposals[box_iou(proposals, boxes).max(1).values < iou]


def pooled_tokens(
    heads: Instances, maps: OrderedDict[str, Tensor], found: Proposals, size: tuple[int, int], most: int
) -> tuple[Tensor, Tensor]:
    """Means of the windows of the best proposals, (B, most, C), and which of them are there (B, most)."""
    boxes = [b[:most] for b in found.boxes]
    pooled = heads.roi_heads.box_roi_pool.align(maps, boxes, [size] * len(boxes)).mean((2, 3))
    tokens = torch.stack([F.pad(p, (0, 0, 0, most - len(p))) for p in pooled.split([len(b) for b in boxes])])
    there = torch.tensor([len(b) for b in boxes], device=tokens.device)[:, None] > torch.arange(
        most, device=tokens.device
    )
    return tokens, there
