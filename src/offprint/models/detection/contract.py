r"""What the parts of a detector agree on: any backbone, any neck and any head that keep to it work together.

>>> import offprint
>>> model = offprint.create_model("convnext_tiny+fpn+retinanet", num_classes=3)
>>> model.losses(images, targets)     # {"classification": ..., "box_regression": ...}
>>> model.detect(images)              # [{"boxes": ..., "scores": ..., "labels": ...}, ...]

**A neck** is a class with ``on(before: Maps, **options)``, entered by ``register_part(NAME, "neck", CLASS.on, paper=SLUG)``. It is called
with the list of maps, fine to coarse, gives a list of maps, and says in ``neck.maps`` (:class:`~offprint.models.parts.Maps`) which. A
neck that can begin at another level has the option ``finest``: the stride of its finest output, 8 by default (levels 3 to 7, for heads of one
stage); two-stage heads read from 4 on (levels 2 to 6), and :func:`neck_options` asks for that where a model is built by its name.

**A head** is a class with ``on(before: Maps, *, num_classes, **options)``, entered by
``register_part(NAME, "head", CLASS.on, paper=SLUG, task="detection", takes=each_stride(CLASS.finest))``, and has

=================  ============================================================================================================
``num_classes``    classes of objects; the background is not counted, unless ``background`` is true
``background``     ``False``; a head without this attribute counts the background as class 0 (SSDLite does, as torchvision's)
``masks``          whether it reads masks from the targets, and gives them
``finest``         stride of the finest map that it is made for: 8, or 4 for two stages
``forward``        ``(maps, size) ->`` raw outputs, of the head's own kind; ``size`` is (H, W) of the image
``losses``         ``(maps, size, targets) -> {name: scalar}``; their sum is what is minimised. Names are its own
``detect``         ``(maps, size, *, score_threshold, iou_threshold, limit) -> [objects of each image]``
=================  ============================================================================================================

**Targets** are per image ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of the batch, ``labels`` (N,) int64, and for heads with ``masks`` also
``masks`` (N, H, W) uint8 of the batch's size. Labels run from 1 at every head; 0 stands for the background. N may be 0: such an image holds
negatives only. Crowds are no targets; whoever calls leaves them out. :func:`check_targets` refuses all else.

**Objects** are per image ``boxes`` (N, 4) clipped to the image, ``scores`` (N,) falling, ``labels`` (N,) from 1, and where ``masks`` is true
``masks`` (N, m, m): for each object how likely the pixels *of its box* are its own, in [0, 1]. :func:`paste` puts them into a picture of any
size, so that boxes may be scaled first.

Images of a batch are padded to one size at the right and below; ``size`` is that of the batch. What lies in the padding is cut off by who
padded.

Two-stage heads (:mod:`offprint.models.detection.two_stage`) take the pooling of regions as a part as well: ``box_pool`` and ``mask_pool``
are modules called as torchvision's :class:`~torchvision.ops.MultiScaleRoIAlign`: ``pool(OrderedDict of maps "0", "1", ..., boxes of each
image, [(H, W)] of each image) -> (regions, C, s, s)``. Another detector sub-classes :class:`~offprint.models.detection.two_stage.TwoStage`
and registers itself from its own file.

The parts serve torchvision's own detectors too: :class:`Pyramid` is a backbone as those take one.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from offprint.errors import DataError, OffprintError
from offprint.models.parts import maps_of, part

Targets = Sequence[dict[str, Tensor]]


def object_classes(head: nn.Module) -> int:
    """How many classes of objects a head tells apart, without the background."""
    return int(head.num_classes) - int(getattr(head, "background", True))  # type: ignore[arg-type]


def check_targets(targets: Targets, count: int, num_classes: int, masks: bool = False) -> None:
    """Refuse targets that a head cannot learn from.

    Args:
        targets: per image, as this module's text says.
        count: images of the batch.
        num_classes: classes of objects.
        masks: whether masks are needed.

    Raises:
        DataError: another number of targets than images, boxes without area, labels out of range, masks that are not there.
    """
    if len(targets) != count:
        raise DataError(f"{len(targets)} targets were given for {count} images; give one per image")
    wanted = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    for index, target in enumerate(targets):
        missing = [k for k in wanted if k not in target]
        if missing:
            raise DataError(f"target {index} has no {' and no '.join(missing)}; this head reads {', '.join(wanted)}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
            raise DataError(
                f"target {index} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; expected (N, 4) and (N,)"
            )
        if masks and (target["masks"].ndim != 3 or len(target["masks"]) != len(boxes)):
            raise DataError(f"target {index} has masks {tuple(target['masks'].shape)}; expected ({len(boxes)}, H, W)")
        if len(boxes) and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            raise DataError(f"target {index} has a box without area; boxes are x1, y1, x2, y2 with x2 > x1 and y2 > y1")
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= num_classes:
            raise DataError(
                f"target {index} has labels {int(labels.min())} to {int(labels.max())}; expected 1 to {num_classes} "
                "(0 is the background)"
            )


@lru_cache(maxsize=32)
def anchors(
    sizes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    scales: tuple[float, ...],
    ratios: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Anchors of each map, (H·W·A, 4) as x1, y1, x2, y2 in pixels; by row, column, ratio, scale.

    The anchors of a place (column, row) are centred at ``stride * (column, row)``; one of scale s and ratio r (height by width) has the
    area ``(s * stride)²``. Corners are not rounded to whole pixels, as torchvision's are.

    Args:
        sizes: (H, W) of each map.
        strides: of each map.
        scales: sides of square anchors, in strides.
        ratios: of height to width.
    """
    out = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        sides = torch.tensor(
            [(s * stride / r**0.5, s * stride * r**0.5) for r in ratios for s in scales], dtype=torch.float64
        )
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centres = torch.stack([x, y], -1).double()[:, :, None]
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], -1).flatten(0, 2)
        out.append(boxes.to(device, dtype))
    return tuple(out)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], at_once: int = 32) -> Tensor:
    """Masks (N, m, m) of boxes (N, 4) into a picture of ``size`` (H, W): (N, H, W) bool.

    So many of them ``at_once`` have every pixel as a number; a thousand masks of a large picture would not fit.
    """
    out = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    for start in range(0, len(masks), at_once):
        rows = slice(start, start + at_once)
        out[rows] = paste_masks_in_image(masks[rows, None].float(), boxes[rows].float(), size)[:, 0] >= 0.5
    return out


def neck_options(model: str) -> dict[str, Any]:
    """What the parts of ``BACKBONE+NECK+HEAD`` want of one another: ``{"neck": {...}}``, or nothing.

    A two-stage head reads maps from stride 4 on; a neck with the option ``finest`` is told so.
    """
    names = model.split("+")
    if len(names) != 3:
        return {}
    neck, head = part(names[1]), part(names[2])
    finest = getattr(getattr(head.build, "__self__", head.build), "finest", None)
    if finest is None or "finest" not in inspect.signature(neck.build).parameters:
        return {}
    return {"neck": {"name": names[1], "finest": finest}}


class Pyramid(nn.Module):
    """A backbone with a neck as torchvision's detectors take one: images to an ``OrderedDict`` of maps, and ``out_channels``.

    >>> from torchvision.models.detection import FasterRCNN
    >>> detector = FasterRCNN(Pyramid(backbone, part("fpn")(maps_of(backbone), finest=4)), num_classes=3)

    Args:
        backbone: gives a list of maps, all of which the neck reads.
        neck: of maps of one width.

    Raises:
        OffprintError: the maps are of several widths.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None):
        super().__init__()
        self.body, self.neck = backbone, neck
        widths = set(maps_of(backbone if neck is None else neck).channels)
        if len(widths) != 1:
            raise OffprintError(
                f"torchvision's detectors read maps of one width, and these have {sorted(widths)}; add a neck"
            )
        self.out_channels = widths.pop()

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(x)
        return named(maps if self.neck is None else self.neck(maps))


def named(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps under the names that torchvision's operations know them by: "0", "1", ..."""
    return OrderedDict((str(i), m) for i, m in enumerate(maps))
