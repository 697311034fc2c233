"""Scores of the ten driving tasks: accuracy, mIoU, AP of boxes, masks and joints, AssA of tracks, overlap by the flow."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from offprint.data.boxes import BoxedPictures
from offprint.data.driving import CLASSES, SIGMAS
from offprint.errors import need
from offprint.models.detection.vtdnet import flow_proxy_iou
from offprint.tasks._average_precision import AveragePrecision

COUNTED = {
    "semantic": range(19),
    "drivable": (0, 1),
    "lane_category": range(1, 9),
    "lane_direction": (1, 2),
    "lane_style": (1, 2),
}
TRACKED = 8  # of the classes, the first
LEVELS = np.arange(1, 20) / 20


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) overlap of masks (N, H, W) and (M, H, W)."""
    a, b = a.flatten(1).float(), b.flatten(1).float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


def association_accuracy(frames: Sequence[tuple[Sequence[int], Sequence[int], np.ndarray]]) -> float:
    """AssA of HOTA (Luiten et al., IJCV 2021), 0 to 1: how well tracks hold together where boxes are found, mean over 19 levels of overlap.

    Args:
        frames: of each (true tracks, found tracks, overlaps (true, found)); overlap 0 for pairs that cannot be one object. Identities are of one set.
    """
    optimize = need("scipy.optimize", "detection", "matching tracks")
    true_ids = {t: i for i, t in enumerate(dict.fromkeys(t for f in frames for t in f[0]))}
    found_ids = {t: i for i, t in enumerate(dict.fromkeys(t for f in frames for t in f[1]))}
    if not true_ids or not found_ids:
        return 0.0
    together = np.zeros((len(true_ids), len(found_ids)))
    true_count, found_count = np.zeros(len(true_ids)), np.zeros(len(found_ids))
    rows = []
    for true, found, overlap in frames:
        t, f = np.array([true_ids[k] for k in true], int), np.array([found_ids[k] for k in found], int)
        true_count[t] += 1
        found_count[f] += 1
        rows.append((t, f, overlap))
        if len(t) and len(f):
            either = overlap.sum(0)[None] + overlap.sum(1)[:, None] - overlap
            together[np.ix_(t, f)] += np.divide(overlap, either, out=np.zeros_like(overlap), where=either > 1e-12)
    alignment = together / np.maximum(true_count[:, None] + found_count[None] - together, 1e-12)
    matched = np.zeros((len(LEVELS), *together.shape))
    for t, f, overlap in rows:
        if len(t) and len(f):
            i, j = optimize.linear_sum_assignment(-(alignment[np.ix_(t, f)] * overlap))
            for level, alpha in enumerate(LEVELS):
                good = overlap[i, j] >= alpha - 1e-12
                matched[level][t[i[good]], f[j[good]]] += 1
    each = matched / np.maximum(true_count[:, None] + found_count[None] - matched, 1)
    pairs = matched.sum((1, 2))
    return float(np.mean(np.where(pairs > 0, (matched * each).sum((1, 2)) / np.maximum(pairs, 1), 0)))


class Joints:
    """AP of joints by their similarity (OKS), computed by pycocotools."""

    def __init__(self):
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.images = 0

    def update(self, target: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
        self.images += 1
        for box, points in zip(target["pose_boxes"].tolist(), target["keypoints"].tolist(), strict=True):
            x1, y1, x2, y2 = box
            seen = sum(p[2] > 0 for p in points)
            self.truth.append({"image_id": self.images, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 0.53 * (x2 - x1) * (y2 - y1),
                               "iscrowd": 0, "num_keypoints": seen, "keypoints": sum(points, [])})  # fmt: skip
        people = found["labels"] == 1
        for box, points, score in zip(
            found["boxes"][people].tolist(),
            found["keypoints"][people].tolist(),
            found["scores"][people].tolist(),
            strict=True,
        ):
            x1, y1, x2, y2 = box
            self.found.append({"image_id": self.images, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                               "score": score, "keypoints": sum(points, [])})  # fmt: skip

    def ap(self) -> float | None:
        """In percent; ``None`` without a person whose joints are labelled."""
        if not any(r["num_keypoints"] for r in self.truth):
            return None
        coco, judge = (
            need("pycocotools.coco", "detection", "AP of joints"),
            need("pycocotools.cocoeval", "detection", "AP of joints"),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            sets = []
            for rows in (self.truth, self.found):
                one = coco.COCO()
                one.dataset = {"images": [{"id": i + 1} for i in range(self.images)], "categories": [{"id": 1, "name": "pedestrian"}],
                               "annotations": [{"iscrowd": 0, **r, "id": i + 1} for i, r in enumerate(rows)]}  # fmt: skip
                one.createIndex()
                sets.append(one)
            run = judge.COCOeval(*sets, "keypoints")
            run.params.kpt_oks_sigmas = np.array(SIGMAS)
            run.evaluate()
            run.accumulate()
            run.summarize()
        return 100 * max(0.0, float(run.stats[0]))


class DrivingScores:
    """Adds up frames; :meth:`figures` gives the scores of the tasks that were labelled, in percent."""

    def __init__(self):
        self.right: dict[str, list[bool]] = {"tagging_weather": [], "tagging_scene": []}
        self.cells = {name: np.zeros((3, max(classes) + 1)) for name, classes in COUNTED.items()}
        empty = BoxedPictures((), CLASSES)
        self.ap = {
            k: AveragePrecision(empty, masks)
            for k, masks in (("detection", False), ("instance", True), ("mot", False), ("mots", True))
        }
        self.joints, self.overlaps = Joints(), []
        self.tracks: dict[str, list[tuple[list[Any], list[Any], np.ndarray]]] = {"mot": [], "mots": []}
        self.frames = 0

    def update(self, target: Mapping[str, Any], found: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Add a frame, without its tracks.

        Args:
            target: as :meth:`~offprint.data.driving.Frame.read` gives it.
            found: in the picture's own pixels: ``weather``, ``scene`` (numbers), maps (H, W), ``boxes``, ``scores``, ``labels``, ``masks`` (N, H, W) bool,
                ``keypoints``.
            size: (height, width).
        """
        self.frames += 1
        known = target["known"]
        if "tagging" in known:
            for name in ("weather", "scene"):
                if name in found and target[name] >= 0:
                    self.right[f"tagging_{name}"].append(int(found[name]) == target[name])
        for name, cells in self.cells.items():
            if name in target and name in found:
                a, b = target[name].numpy().ravel(), found[name].numpy().ravel()
                a, b = a[a != 255], b[a != 255]
                for row, values in zip(cells, (a[a == b], a, b), strict=True):
                    row += np.bincount(values, minlength=len(row))[: len(row)]
        if "boxes" not in found:
            return
        if "pose" in known and "keypoints" in found:
            self.joints.update(target, found)
        for task in {"detection", "instance", "mot", "mots"} & set(known):
            if task in ("instance", "mots") and "masks" not in found:
                continue
            some = found["labels"] <= (TRACKED if task in ("mot", "mots") else len(CLASSES))
            kept = {k: found[k][some] for k in ("boxes", "scores", "labels", "masks") if k in found}
            wanted = target["labels"] <= (TRACKED if task in ("mot", "mots") else len(CLASSES))
            truth = {k: target[k][wanted] for k in ("boxes", "labels", "masks") if k in target}
            area = (truth["boxes"][:, 2:] - truth["boxes"][:, :2]).prod(1)
            self.ap[task].update(self.frames, {**truth, "areas": area, "crowd": torch.zeros(len(area))}, kept, size)

    def associate(self, target: Mapping[str, Any], found: Mapping[str, Any], video: str) -> None:
        """Add the ``tracks`` (-1 none) of a frame of a video, whose boxes may be fewer than those that were found."""
        for task in {"mot", "mots"} & set(target["known"]):
            if task == "mots" and "masks" not in found:
                continue
            a, b = target["tracks"] >= 0, found["tracks"] >= 0
            one, overlap_of = ("masks", mask_iou) if task == "mots" else ("boxes", box_iou)
            overlap = overlap_of(target[one][a], found[one][b]) * (target["labels"][a][:, None] == found["labels"][b])
            named = lambda ids: [(video, t) for t in ids.tolist()]  # noqa: E731
            self.tracks[task].append((named(target["tracks"][a]), named(found["tracks"][b]), overlap.double().numpy()))

    def moved(self, target: Mapping[str, Any], after: Mapping[str, Any], flow: Tensor) -> None:
        """Add the flow (2, H, W) from a frame to the next, both labelled for MOTS."""
        both = [
            (i, j)
            for i, t in enumerate(target["tracks"].tolist())
            for j, u in enumerate(after["tracks"].tolist())
            if t == u >= 0
        ]
        if both:
            i, j = (list(k) for k in zip(*both, strict=True))
            self.overlaps += flow_proxy_iou(target["masks"][i], after["masks"][j], flow).tolist()

    def figures(self) -> dict[str, float]:
        """Score → percent."""
        out = {k: 100 * sum(v) / len(v) for k, v in self.right.items() if v}
        iou = {}
        for name, (both, true, found) in self.cells.items():
            some = [c for c in COUNTED[name] if true[c]]
            if some:
                iou[name] = 100 * float(np.mean([both[c] / (true[c] + found[c] - both[c]) for c in some]))
        out |= {k: iou[k] for k in ("semantic", "drivable") if k in iou}
        lanes = [v for k, v in iou.items() if k.startswith("lane")]
        out |= {"lane": sum(lanes) / len(lanes)} if lanes else {}
        for task, name, key in (
            ("detection", "detection", "ap"),
            ("instance", "instance", "mask_ap"),
            ("mot", "mot_ap", "ap"),
            ("mots", "mots_ap", "mask_ap"),
        ):
            if self.ap[task].truth:
                figures = self.ap[task].figures()[0]
                out[name] = figures[key]
                if task == "detection":
                    out["detection_ap50"] = figures["ap50"]
        if (pose := self.joints.ap()) is not None:
            out["pose"] = pose
        for task, rows in self.tracks.items():
            if any(len(r[0]) for r in rows):
                out[f"{task}_assa"] = 100 * association_accuracy(rows)
        if self.overlaps:
            out["flow"] = 100 * sum(self.overlaps) / len(self.overlaps)
        return out
