r"""Heads of one stage: RetinaNet (Lin et al., 2017), ATSS (Zhang et al., CVPR 2020) and GFL (Li et al., NeurIPS 2020).

Two towers of four 3x3 convolutions, shared by all levels, end in the scores of the classes and in a box for every anchor.

- **RetinaNet**: nine anchors a place (three scales from 4 strides on, three ratios). An anchor is an object's where they overlap by 0.5, or where it
  is the object's best; background below 0.4. With :math:`p` the probability of the true answer, the focal loss is
  :math:`-\alpha (1 - p)^2 \ln p`, :math:`\alpha` = 0.25 for objects and 0.75 else; boxes are codes under an L1 loss.
- **ATSS**: one anchor of 8 strides. Of the nine nearest anchors of every level those are an object's whose overlap is at least the mean plus the
  standard deviation of all of them, and whose centre lies inside. GIoU loss; a third output says how central a place is.
- **GFL**: anchors and matching of ATSS. The score of a class is the overlap its box will have (quality focal loss,
  :math:`|y - \sigma|^2` before the cross-entropy), and each side of a box is the mean of a distribution over 0 to 16 strides (distribution focal loss).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from offprint.errors import OffprintError
from offprint.models.checkpoint import Dialect
from offprint.models.detection.contract import Targets, anchors, check_targets
from offprint.models.parts import Maps, each_stride, register_part
from offprint.nn.precision import wide, wide_dtype

PRIOR = 0.01  # of an object at the start


class ConvGroup(nn.Module):
    """A 3x3 convolution, perhaps GroupNorm, and ReLU."""

    def __init__(self, channels_in: int, channels: int, norm: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=not norm)
        self.gn = nn.GroupNorm(math.gcd(32, max(1, channels // 2)), channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x if self.gn is None else self.gn(x), inplace=True)


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised overlap (N,) of boxes (N, 4), pair by pair."""
    low, high = torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])
    cut = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - cut
    hull = (high - low).prod(1)
    eps = torch.finfo(a.dtype).eps
    return cut / union.clamp(min=eps) - (hull - union) / hull.clamp(min=eps)


def focal_loss(logits: Tensor, rows: Tensor, classes: Tensor, skip: Tensor, alpha: float = 0.25) -> Tensor:
    """The sum of the sigmoid focal loss (gamma 2) over anchors.

    Everything is background but a few entries, so that the loss of a background is taken of all and put right at these.

    Args:
        logits: (N, K).
        rows, classes: of the entries that are objects.
        skip: rows that count for nothing.
    """
    base = (1 - alpha) * (logits.sigmoid() ** 2 * F.softplus(logits)).sum()
    x = logits[rows, classes]
    p = x.sigmoid()
    put = alpha * (1 - p) ** 2 * F.softplus(-x) - (1 - alpha) * p**2 * F.softplus(x)
    loss = base + put.sum()
    if len(skip):
        left = logits[skip]
        loss = loss - (1 - alpha) * (left.sigmoid() ** 2 * F.softplus(left)).sum()
    return loss


def atss(boxes: Tensor, levels: Sequence[Tensor], top: int = 9) -> Tensor:
    """The object that each anchor belongs to, -1 for none: (N,).

    Args:
        boxes: of the objects, (M, 4).
        levels: anchors of each level, N in all.
        top: nearest anchors of a level that stand for an object.
    """
    base = torch.cat(list(levels))
    owner = torch.full((len(base),), -1, dtype=torch.int64, device=base.device)
    if not len(boxes):
        return owner
    overlap = box_iou(base, boxes)  # (N, M)
    centres, middle = (base[:, :2] + base[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = torch.cdist(centres, middle)
    chosen, start = [], 0
    for level in levels:
        part = distance[start : start + len(level)]
        chosen.append(part.topk(min(top, len(part)), dim=0, largest=False).indices + start)
        start += len(level)
    near = torch.cat(chosen)  # (candidates, M)
    of = overlap.gather(0, near)
    bound = of.mean(0) + of.std(0, correction=min(1, len(of) - 1))
    c = centres[near]
    sides = torch.cat([c - boxes[None, :, :2], boxes[None, :, 2:] - c], -1)
    good = (of >= bound) & (sides.min(-1).values > 0.01)
    held = torch.full_like(overlap, -1.0)
    held.scatter_(0, near, torch.where(good, of, held.gather(0, near)))
    best, which = held.max(1)
    return torch.where(best >= 0, which, owner)


class OneStage(nn.Module):
    """What the heads of one stage share: the towers, the best candidates of each level, the suppression.

    Args:
        before: the maps that come in, of one width.
        num_classes: classes of objects, without the background.
        width: channels of the towers; default that of the maps.
        depth: convolutions of each tower.
    """

    background = False
    masks = False
    finest = 8
    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (1.0,)
    norm = True
    iou_threshold = 0.6
    names = ("cls", "reg")  # of the last convolutions, after mmdetection's

    def __init__(self, before: Maps, num_classes: int = 80, *, width: int = 0, depth: int = 4):
        super().__init__()
        if len(set(before.channels)) != 1:
            raise OffprintError(
                f"{type(self).__name__} reads maps of one width, and these have {sorted(set(before.channels))}; add a neck: "
                "BACKBONE+fpn+retinanet"
            )
        if num_classes < 1:
            raise OffprintError(f"num_classes={num_classes}; give the number of classes of objects, at least 1")
        came, width = before.channels[0], width or before.channels[0]
        self.num_classes, self.strides = num_classes, before.reductions
        self.per_place = len(self.scales) * len(self.ratios)
        for name in ("cls_convs", "reg_convs"):
            tower = [ConvGroup(came if i == 0 else width, width, self.norm) for i in range(depth)]
            setattr(self, name, nn.ModuleList(tower))
        self.classify = nn.Conv2d(width, self.per_place * num_classes, 3, padding=1)
        self.regress = nn.Conv2d(width, self.per_place * self.codes, 3, padding=1)
        self.build(width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.classify.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    codes = 4

    def build(self, width: int) -> None:
        """Layers of a head's own."""

    @classmethod
    def on(cls, before: Maps, num_classes: int = 80, **options) -> Any:
        """The head over these maps."""
        return cls(before, num_classes, **options)

    def towers(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What both towers give of every map."""
        if len(maps) != len(self.strides):
            raise OffprintError(f"{type(self).__name__} was built for {len(self.strides)} maps, and got {len(maps)}")
        out = []
        for x in maps:
            c, r = x, x
            for layer in self.cls_convs:  # type: ignore[union-attr]
                c = layer(c)
            for layer in self.reg_convs:  # type: ignore[union-attr]
                r = layer(r)
            out.append((c, r))
        return out

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> tuple[list[Tensor], ...]:
        """Raw maps of every level: scores before the sigmoid (B, A·K, H, W), codes of boxes (B, A·4, H, W), and what a head adds."""
        pairs = self.towers(maps)
        return [self.classify(c) for c, _ in pairs], [self.regress(r) for _, r in pairs]

    def anchors(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of every level, (H·W·A, 4)."""
        sizes = tuple((int(m.shape[-2]), int(m.shape[-1])) for m in maps)
        return anchors(sizes, self.strides, self.scales, self.ratios, maps[0].device, wide_dtype(maps[0].dtype))

    @staticmethod
    def rows(x: Tensor, width: int) -> Tensor:
        """(B, A·width, H, W) to (B, H·W·A, width)."""
        return x.permute(0, 2, 3, 1).reshape(len(x), -1, width)

    # -- use ----------------------------------------------------------------------------------------------------------
    def decode(self, codes: Tensor, base: Tensor, stride: int) -> Tensor:
        """Codes (N, ...) at anchors (N, 4) to boxes (N, 4)."""
        raise NotImplementedError

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float | None = None,
        limit: int = 100,
        candidates: int = 1000,
    ) -> list[dict[str, Tensor]]:
        """Objects in each image, as the contract says.

        Args:
            maps: the maps that come in.
            size: (height, width) of the images.
            score_threshold: lowest score kept.
            iou_threshold: of two boxes of one class that overlap more than this, the better stays; default the head's own.
            limit: most objects per image.
            candidates: best of a level that are looked at.
        """
        raw, base = self.forward(maps, size), self.anchors(maps)
        iou = self.iou_threshold if iou_threshold is None else iou_threshold
        low = math.log(score_threshold / (1 - score_threshold)) if 0 < score_threshold < 1 else -math.inf
        found = []
        for image in range(len(maps[0])):
            boxes, scores, labels = [], [], []
            for level, (anchor, stride) in enumerate(zip(base, self.strides, strict=True)):
                scored, codes, *rest = (r[level][image][None] for r in raw)
                flat = self.rows(wide(scored), self.num_classes)[0].flatten()
                where = (flat > low).nonzero()[:, 0]
                value, best = flat[where].topk(min(candidates, len(where)))
                where = where[best]
                row = where // self.num_classes
                score = value.sigmoid()
                if rest:  # the centre of an object counts for more
                    score = score * self.rows(wide(rest[0]), 1)[0, row, 0].sigmoid()
                boxes.append(self.decode(self.rows(wide(codes), self.codes)[0, row], anchor[row], stride))
                scores.append(score)
                labels.append(where % self.num_classes)
            box = clip_boxes_to_image(torch.cat(boxes), size)
            score, label = torch.cat(scores), torch.cat(labels)
            whole = ((box[:, 2:] - box[:, :2]) > 0).all(1)
            box, score, label = box[whole], score[whole], label[whole]
            keep = batched_nms(box, score, label, iou)[:limit]
            found.append({"boxes": box[keep], "scores": score[keep], "labels": label[keep] + 1})
        return found

    # -- training -----------------------------------------------------------------------------------------------------
    def losses(self, maps: Sequence[Tensor], size: tuple[int, int], targets: Targets) -> dict[str, Tensor]:
        """The terms of the loss of a batch: ``classification``, ``box_regression``, and those of a head's own."""
        check_targets(targets, len(maps[0]), self.num_classes)
        levels = self.anchors(maps)
        base = torch.cat(levels)
        owners = [self.owners(t["boxes"].to(base), levels) for t in targets]
        raw = self.forward(maps, size)
        widths = (self.num_classes, self.codes, 1)
        flat = [
            wide(torch.cat([self.rows(x, w) for x in part], 1)).flatten(0, 1)
            for part, w in zip(raw, widths, strict=False)
        ]
        owner = torch.cat(owners)
        rows = (owner >= 0).nonzero()[:, 0]
        image = rows // len(base)
        shift, boxes, labels = 0, [], []
        first = torch.zeros(len(targets), dtype=torch.int64, device=base.device)
        for i, t in enumerate(targets):
            first[i] = shift
            shift += len(t["boxes"])
            boxes.append(t["boxes"].to(base))
            labels.append(t["labels"].to(base.device))
        at = owner[rows] + first[image]
        strides = torch.cat([base.new_full((len(a),), float(s)) for a, s in zip(levels, self.strides, strict=True)])
        return self.compare(
            flat, rows, base[rows % len(base)], strides[rows % len(base)], torch.cat(boxes)[at], torch.cat(labels)[at] - 1,
            (owner == -2).nonzero()[:, 0],
        )  # fmt: skip

    def owners(self, boxes: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """The object that each anchor belongs to: its number, -1 for the background, -2 where an anchor counts for nothing."""
        return atss(boxes, levels)

    def compare(
        self,
        flat: list[Tensor],
        rows: Tensor,
        base: Tensor,
        strides: Tensor,
        boxes: Tensor,
        labels: Tensor,
        skip: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of raw rows (all anchors of all images) against the boxes and labels of those rows that are objects."""
        raise NotImplementedError


class RetinaHead(OneStage):
    """RetinaNet's head."""

    scales = tuple(4 * 2 ** (i / 3) for i in range(3))
    ratios = (0.5, 1.0, 2.0)
    norm = False
    iou_threshold = 0.5
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    prefixes = ("bbox_head.",)
    dialects = (Dialect("authors", ((r"^retina_cls\.", "classify."), (r"^retina_reg\.", "regress."))),)
    whole_dialects = (Dialect("torchvision", (
        (r"^backbone\.body\.", "backbone."), (r"^backbone\.fpn\.", "neck.fpn."),
        (r"^head\.classification_head\.conv\.(\d)\.0\.", r"head.cls_convs.\1.conv."),
        (r"^head\.regression_head\.conv\.(\d)\.0\.", r"head.reg_convs.\1.conv."),
        (r"^head\.classification_head\.cls_logits\.", "head.classify."),
        (r"^head\.regression_head\.bbox_reg\.", "head.regress."),
    )),)  # fmt: skip
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def decode(self, codes: Tensor, base: Tensor, stride: int) -> Tensor:
        return self.coder.decode_single(codes, base)

    def owners(self, boxes: Tensor, levels: Sequence[Tensor]) -> Tensor:
        base = torch.cat(list(levels))
        if not len(boxes):
            return torch.full((len(base),), -1, dtype=torch.int64, device=base.device)
        return self.matcher(box_iou(boxes, base))

    def compare(self, flat, rows, base, strides, boxes, labels, skip):
        scores, codes = flat
        count = max(1, len(rows))
        return {
            "classification": focal_loss(scores, rows, labels, skip) / count,
            "box_regression": F.l1_loss(codes[rows], self.coder.encode_single(boxes, base), reduction="sum") / count,
        }


class ATSSHead(OneStage):
    """ATSS's head."""

    prefixes = ("bbox_head.",)
    dialects = (
        Dialect(
            "authors",
            (
                (r"^atss_cls\.", "classify."),
                (r"^atss_reg\.", "regress."),
                (r"^atss_centerness\.", "centre."),
                (r"^scales\.", "scaled."),
            ),
        ),
    )
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def build(self, width: int) -> None:
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.scaled = nn.ModuleList(Scale() for _ in self.strides)

    def forward(self, maps, size=None):
        """Scores, codes, and how central every place is (B, 1, H, W), before the sigmoid."""
        pairs = self.towers(maps)
        codes = [scale(self.regress(r)) for (_, r), scale in zip(pairs, self.scaled, strict=True)]
        return [self.classify(c) for c, _ in pairs], codes, [self.centre(r) for _, r in pairs]

    def decode(self, codes, base, stride):
        return self.coder.decode_single(codes, base)

    def compare(self, flat, rows, base, strides, boxes, labels, skip):
        scores, codes, central = flat
        count = max(1, len(rows))
        middle = (base[:, :2] + base[:, 2:]) / 2
        a, b = middle - boxes[:, :2], boxes[:, 2:] - middle
        share = torch.minimum(a, b) / torch.maximum(a, b)
        wanted = (share[:, 0] * share[:, 1]).clamp(min=0).sqrt()
        overlap = giou(self.coder.decode_single(codes[rows], base), boxes)
        return {
            "classification": focal_loss(scores, rows, labels, skip) / count,
            "box_regression": 2 * ((1 - overlap) * wanted).sum() / wanted.sum().clamp(min=1e-6),
            "centreness": F.binary_cross_entropy_with_logits(central[rows, 0], wanted, reduction="sum") / count,
        }


class GFLHead(OneStage):
    """GFL's head: ``codes`` are four distributions over 0 to ``reach`` strides."""

    reach = 16
    codes = 4 * (reach + 1)
    prefixes = ("bbox_head.",)
    dialects = (
        Dialect(
            "authors",
            ((r"^gfl_cls\.", "classify."), (r"^gfl_reg\.", "regress."), (r"^scales\.", "scaled.")),
            ignore=r"^integral\.",
        ),
    )

    def build(self, width: int) -> None:
        self.scaled = nn.ModuleList(Scale() for _ in self.strides)

    def forward(self, maps, size=None):
        """Scores, and the distributions of the distances (B, 4·17, H, W)."""
        pairs = self.towers(maps)
        return (
            [self.classify(c) for c, _ in pairs],
            [scale(self.regress(r)) for (_, r), scale in zip(pairs, self.scaled, strict=True)],
        )

    def _mean(self, codes: Tensor) -> Tensor:
        """Distances (N, 4) in strides."""
        steps = torch.arange(self.reach + 1, dtype=codes.dtype, device=codes.device)
        return codes.view(-1, 4, self.reach + 1).softmax(-1) @ steps

    def _boxes(self, codes: Tensor, base: Tensor, strides: Tensor | int) -> Tensor:
        far = self._mean(codes) * (strides[:, None] if isinstance(strides, Tensor) else strides)
        middle = (base[:, :2] + base[:, 2:]) / 2
        return torch.cat([middle - far[:, :2], middle + far[:, 2:]], 1)

    def decode(self, codes, base, stride):
        return self._boxes(codes, base, stride)

    def compare(self, flat, rows, base, strides, boxes, labels, skip):
        scores, codes = flat
        codes = codes[rows]
        found = self._boxes(codes, base, strides)
        overlap = giou(found, boxes)
        with torch.no_grad():
            quality = _iou(found, boxes)
            weight = scores[rows].sigmoid().max(1).values if len(rows) else scores.new_zeros(0)
            middle = (base[:, :2] + base[:, 2:]) / 2
            far = torch.cat([middle - boxes[:, :2], boxes[:, 2:] - middle], 1) / strides[:, None]
            far = far.clamp(0, self.reach - 0.1)
        total = weight.sum().clamp(min=1e-6)
        logs = codes.view(-1, 4, self.reach + 1).log_softmax(-1)
        low = far.floor().long()
        left = (low + 1 - far) * logs.gather(-1, low[..., None])[..., 0]
        right = (far - low) * logs.gather(-1, low[..., None] + 1)[..., 0]
        return {
            "classification": self._quality_focal(scores, rows, labels, quality) / max(1, len(rows)),
            "box_regression": 2 * ((1 - overlap) * weight).sum() / total,
            "distribution": 0.25 * (-(left + right).mean(1) * weight).sum() / total,
        }

    @staticmethod
    def _quality_focal(logits: Tensor, rows: Tensor, classes: Tensor, quality: Tensor) -> Tensor:
        """The sum of :math:`|y - \\sigma|^2` times the cross-entropy; y is 0 but at the objects' classes, where it is their overlap."""
        loss = (logits.sigmoid() ** 2 * F.softplus(logits)).sum()
        x = logits[rows, classes]
        p = x.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(x, quality, reduction="none")
        return loss + ((quality - p).abs() ** 2 * entropy - p**2 * F.softplus(x)).sum()


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlap (N,) of boxes (N, 4), pair by pair."""
    cut = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - cut
    return cut / union.clamp(min=torch.finfo(a.dtype).eps)


for _name, _head in (("retinanet", RetinaHead), ("atss", ATSSHead), ("gfl", GFLHead)):
    register_part(_name, "head", _head.on, task="detection", takes=each_stride(OneStage.finest))
