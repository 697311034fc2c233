"""COCO's average precision of detections, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from offprint.data.boxes import BoxedPictures, encode
from offprint.errors import DataError, need

STATS = {  # name: its place among pycocotools' twelve figures
    "ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar100": 8,
}  # fmt: skip


def coco_box(box: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 as COCO's x, y, width, height."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


class AveragePrecision:
    """Detections of pictures against the objects in them.

    Args:
        data: the pictures and their objects.
        masks: whether masks are compared besides boxes.
    """

    def __init__(self, data: BoxedPictures, masks: bool = False):
        self.classes, self.masks = data.classes, masks
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.seen: dict[int, tuple[int, int]] = {}

    def update(self, index: int, target: Mapping[str, Any], found: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Add one picture.

        Args:
            index: of the picture, from 0.
            target: its ``boxes``, ``labels``, ``crowd``, ``areas``, and ``masks`` where they are compared.
            found: ``boxes`` (N, 4), ``scores``, ``labels``, and ``masks`` (N, H, W) bool; all in the picture's own pixels.
            size: (height, width) of the picture.
        """
        self.seen[index] = size
        for i, (box, label) in enumerate(zip(_rows(target["boxes"]), _rows(target["labels"]), strict=True)):
            row = {"image_id": index, "category_id": int(label), "bbox": coco_box(box), "area": float(target["areas"][i]),
                   "iscrowd": int(target["crowd"][i])}  # fmt: skip
            if self.masks:
                row["segmentation"] = encode(np.asarray(target["masks"][i]))
            self.truth.append(row)
        scores = _rows(found["scores"])
        for i, (box, label) in enumerate(zip(_rows(found["boxes"]), _rows(found["labels"]), strict=True)):
            row = {
                "image_id": index,
                "category_id": int(label),
                "bbox": coco_box(box),
                "score": float(scores[i]),
            }
            if self.masks:
                row["segmentation"] = encode(np.asarray(found["masks"][i].cpu()))
            self.found.append(row)

    def gather(self) -> None:
        """Bring together what several processes have seen."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self.truth, self.found, self.seen))
        self.truth, self.found, self.seen = [], [], {}
        for truth, found, seen in parts:
            new = set(seen) - set(self.seen)
            self.truth += [r for r in truth if r["image_id"] in new]
            self.found += [r for r in found if r["image_id"] in new]
            self.seen |= seen

    def _evaluated(self, kind: str):
        coco = need("pycocotools.coco", "detection", "average precision")
        cocoeval = need("pycocotools.cocoeval", "detection", "average precision")
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco.COCO()
            truth.dataset = {
                "images": [{"id": i, "height": h, "width": w} for i, (h, w) in sorted(self.seen.items())],
                "categories": [{"id": i + 1, "name": n} for i, n in enumerate(self.classes)],
                "annotations": [{**r, "id": i + 1} for i, r in enumerate(self.truth)],
            }
            truth.createIndex()
            found = coco.COCO()
            found.dataset = {**truth.dataset, "annotations": [
                {**r, "id": i + 1, "iscrowd": 0, "area": r["bbox"][2] * r["bbox"][3]} for i, r in enumerate(self.found)]}  # fmt: skip
            if kind == "segm":
                mask = need("pycocotools.mask", "detection", "average precision of masks")
                for r in found.dataset["annotations"]:
                    r["area"] = float(mask.area(r["segmentation"]))
            found.createIndex()
            judge = cocoeval.COCOeval(truth, found, kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return judge

    def figures(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures of all classes (%), and a row for each class; what has no object of its kind has no figure.

        Raises:
            DataError: no object at all.
        """
        if not any(not r["iscrowd"] for r in self.truth):
            raise DataError("the pictures to measure on hold not one object, so there is no average precision")
        figures: dict[str, float] = {}
        rows: list[dict[str, Any]] = [{"class": name} for name in self.classes]
        for kind in ("bbox", "segm") if self.masks else ("bbox",):
            prefix = "mask_" if kind == "segm" else ""
            judge = self._evaluated(kind)
            stats = {name: float(judge.stats[place]) for name, place in STATS.items()}
            figures |= {prefix + name: 100 * v for name, v in stats.items() if v >= 0}
            precision = judge.eval["precision"]  # (IoU, recall, class, area, limit)
            for i, row in enumerate(rows):
                for name, part in (("ap", precision[:, :, i, 0, 2]), ("ap50", precision[0, :, i, 0, 2])):
                    known = part[part > -1]
                    row[prefix + name] = 100 * float(known.mean()) if known.size else None
        for i, row in enumerate(rows):
            row["objects"] = sum(r["category_id"] == i + 1 and not r["iscrowd"] for r in self.truth)
        return figures, rows


def _rows(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def target_of(data: BoxedPictures, index: int, target: Mapping[str, Any]) -> dict[str, Any]:
    """What :meth:`AveragePrecision.update` needs of a picture's objects, in its own pixels."""
    return {**target, "areas": data.scenes[index].areas}
