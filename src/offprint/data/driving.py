"""Driving frames with the labels of up to ten tasks: BDD100K's folder, and scenes that are drawn here (``sample:driving``).

BDD100K's label files are lists of frames (``name``, ``attributes``, ``labels`` with ``category``, ``box2d``, ``id``, ``rle``, ``graph``), one file for a split or for a
video; masks are PNGs beside them: semantic and drivable hold class numbers, lanes one byte of bits (0-2 category, 3 background, 4 style, 5 direction),
instance and segmentation-tracking bitmasks four channels (category, bits of attributes, identity in two bytes). Each set of pictures carries labels of some tasks only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from offprint.data.boxes import raster
from offprint.data.reading import read_picture
from offprint.errors import DataError, unknown

LABELS = ("tagging", "detection", "pose", "drivable", "lane", "semantic", "instance", "flow", "mot", "mots")
CLASSES = (
    "pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign",
)  # fmt: skip
OLD_NAMES = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}  # of the release of 2018
NOT_LEARNT = ("other person", "other vehicle", "trailer")  # of the tracking sets, and of no task
WEATHERS = ("rainy", "snowy", "clear", "overcast", "undefined", "partly cloudy", "foggy")
SCENES = ("tunnel", "residential", "parking lot", "undefined", "city street", "gas stations", "highway")
SEMANTIC = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider",
    "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
DRIVABLE = ("direct", "alternative", "background")
JOINTS = (
    "head", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee",
    "right_ankle", "left_hip", "left_knee", "left_ankle", "right_hand", "left_hand", "right_foot", "left_foot",
)  # fmt: skip
SIGMAS = (  # of the joints, for their similarity (OKS)
    0.079, 0.079, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089, 0.062, 0.062, 0.062, 0.062,
)  # fmt: skip
CROWD, IGNORED = 2, 1  # bits of a bitmask's second channel
LAYOUT = (
    "images/{100k,10k}/{train,val}/NAME.jpg, images/{track,seg_track_20}/{train,val}/VIDEO/NAME.jpg; labels/det_20/det_{split}.json, pose_21/pose_{split}.json, "
    "drivable/masks, lane/masks, sem_seg/masks, ins_seg/{rles,bitmasks}, box_track_20/{split}/VIDEO.json, seg_track_20/{rles,bitmasks}"
)


@dataclass(frozen=True)
class Frame:
    """A picture and what is labelled in it.

    Attributes:
        file: the picture, or (H, W, 3) uint8 in memory.
        name: of the picture.
        labels: task → what its file says: attributes, rows of objects, the path or array of a mask. ``flow`` needs none: its presence says that a video has
            frames beside this one.
        video, index: of a tracking set.
    """

    file: Path | np.ndarray
    name: str
    labels: Mapping[str, Any]
    video: str = ""
    index: int = 0

    def only(self, tasks: Sequence[str]) -> Frame:
        """The same with the labels of these tasks."""
        return replace(self, labels={k: v for k, v in self.labels.items() if k in tasks})

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.array(read_picture(self.file)) if isinstance(self.file, Path) else self.file

    def read(self) -> tuple[Tensor, dict[str, Any]]:
        """The picture (3, H, W) uint8, and its target: ``known``, and what each known task needs.

        Raises:
            DataError: a file that cannot be read, or a mask of another size than the picture.
        """
        array = self.picture()
        size = array.shape[:2]
        target: dict[str, Any] = {"known": set(self.labels)}
        for task, said in self.labels.items():
            if task == "tagging":
                target["weather"], target["scene"] = (
                    _place(said.get(k), names) for k, names in (("weather", WEATHERS), ("scene", SCENES))
                )
            elif task in ("semantic", "drivable"):
                target[task] = torch.from_numpy(_mask(said, size, task).astype(np.int64))
            elif task == "lane":
                target |= lanes_of(_mask(said, size, task))
            elif task == "pose":
                target |= _pose(said, size, self.name)
        for task in ("mots", "instance", "mot", "detection"):  # one file has objects of one of them, or the same of all
            if task in self.labels:
                target |= _objects(self.labels[task], size, self.name)
                break
        if {"instance", "mots"} & set(self.labels) and "masks" not in target:
            raise DataError(f"{self.name} is labelled for masks, and its objects have none")
        return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).contiguous(), target


@dataclass(frozen=True)
class DrivingFrames:
    """Frames to learn from and to be judged by.

    Attributes:
        drawn: whether they are drawn here, and no photographs.
        notes: what was found out about the data.
    """

    train: tuple[Frame, ...]
    val: tuple[Frame, ...]
    name: str
    drawn: bool = False
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        told = hashlib.sha256()
        for frame in (*self.train, Frame(Path(), "", {}), *self.val):
            told.update(f"{frame.video}/{frame.name}\t{sorted(frame.labels)}".encode())
            if isinstance(frame.file, np.ndarray):
                told.update(frame.file.tobytes())
        return told.hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Training frames with labels of each task."""
        return {task: sum(task in f.labels for f in self.train) for task in LABELS}


# -- what the files say ------------------------------------------------------------------------------------------------
def _place(name: Any, names: Sequence[str]) -> int:
    return names.index(name) if name in names else -1


def _mask(said: Path | np.ndarray, size: tuple[int, int], task: str) -> np.ndarray:
    if isinstance(said, np.ndarray):
        found, where = said, f"a mask for {task}"
    else:
        found, where = _png(said), str(said)
    if found.ndim != 2 or found.shape != tuple(size):
        raise DataError(
            f"{where} has the shape {found.shape}; its picture has {size[0]} x {size[1]} (height x width), one channel"
        )
    top = {"semantic": len(SEMANTIC), "drivable": len(DRIVABLE)}.get(task)
    if top is not None and bool(((found >= top) & (found != 255)).any()):
        raise DataError(
            f"{where} holds {int(found[found != 255].max())}; {task} has the classes 0 to {top - 1}, and 255 for unknown"
        )
    return found


def _png(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.array(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot read the mask {file}: {error}") from error


def lanes_of(byte: np.ndarray) -> dict[str, Tensor]:
    """A lane mask's bytes (H, W) as ``lane_category`` (1 to 8), ``lane_direction`` and ``lane_style`` (1, 2), 0 for the background."""
    byte = byte.astype(np.int64)
    background = (byte >> 3) & 1 == 1
    parts = {"lane_category": byte & 7, "lane_direction": (byte >> 5) & 1, "lane_style": (byte >> 4) & 1}
    return {k: torch.from_numpy(np.where(background, 0, v + 1)) for k, v in parts.items()}


def lane_bytes(category: np.ndarray, direction: np.ndarray, style: np.ndarray) -> np.ndarray:
    """The way back: three maps of :func:`lanes_of` as bytes (H, W); what is no lane by its category is background."""
    byte = (category - 1) | (np.maximum(style, 1) - 1) << 4 | (np.maximum(direction, 1) - 1) << 5
    return np.where(category == 0, 8, byte).astype(np.uint8)


def category(name: str, where: str) -> int | None:
    """The label (from 1) of a class by its name; ``None`` for what is not learnt.

    Raises:
        DataError: another name.
    """
    name = OLD_NAMES.get(name, name)
    if name in CLASSES:
        return CLASSES.index(name) + 1
    if name in NOT_LEARNT:
        return None
    raise DataError(f"{where}: {unknown('category', name, (*CLASSES, *NOT_LEARNT))}")


def _box(row: Mapping[str, Any], size: tuple[int, int]) -> list[float] | None:
    b, (height, width) = row["box2d"], size
    x1, x2 = (min(max(float(b[k]), 0), width) for k in ("x1", "x2"))
    y1, y2 = (min(max(float(b[k]), 0), height) for k in ("y1", "y2"))
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


def _left_out(row: Mapping[str, Any]) -> bool:
    told = row.get("attributes") or {}
    return bool(told.get("crowd") or told.get("ignored") or row.get("ignored"))


def _objects(said: Any, size: tuple[int, int], name: str) -> dict[str, Tensor]:
    """Boxes, labels, tracks, and masks where the rows have shapes, of rows or of a bitmask's file."""
    if isinstance(said, Path):
        return bitmask(_png(said), size, str(said))
    boxes, labels, tracks, masks, ids = [], [], [], [], {}
    for row in said:
        label = category(row["category"], name)
        shape = row.get("rle")
        if label is None or _left_out(row) or (row.get("box2d") is None and shape is None):
            continue
        mask = None if shape is None else raster(shape, (0, 0, 1, 1), size[::-1])
        box = _around(mask) if mask is not None and row.get("box2d") is None else _box(row, size)
        if box is None:
            continue
        boxes.append(box)
        labels.append(label)
        tracks.append(_identity(row.get("id"), ids))
        if mask is not None:
            masks.append(mask)
    out = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long),
        "tracks": torch.tensor(tracks, dtype=torch.long),
    }  # fmt: skip
    if len(masks) == len(boxes):
        out["masks"] = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8))
    return out


def _identity(said: Any, seen: dict[str, int]) -> int:
    """A number for an identity, the same in every frame of a video: itself, or a digest of its text."""
    if said is None:
        return -1
    text = str(said)
    return int(text) if text.isdigit() else int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _around(mask: np.ndarray) -> list[float] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)] if len(rows) else None


def bitmask(pixels: np.ndarray, size: tuple[int, int], where: str) -> dict[str, Tensor]:
    """Objects of a bitmask (H, W, 4): category from 1, attributes, identity in two bytes, the higher first.

    Raises:
        DataError: another shape, or a category beyond the classes.
    """
    if pixels.shape != (*size, 4):
        raise DataError(
            f"{where} has the shape {pixels.shape}; a bitmask has four channels and the size of its picture, {(*size, 4)}"
        )
    code = pixels.astype(np.int64)
    identity = (code[..., 2] << 8) + code[..., 3]
    boxes, labels, tracks, masks = [], [], [], []
    for key in np.unique(identity[code[..., 0] > 0]):
        mask = (identity == key) & (code[..., 0] > 0)
        kind, bits = (int(np.bincount(code[..., k][mask]).argmax()) for k in (0, 1))
        if kind > len(CLASSES):
            raise DataError(f"{where} holds the category {kind}; they run from 1 to {len(CLASSES)}")
        if bits & (CROWD | IGNORED):
            continue
        boxes.append(_around(mask))
        labels.append(kind)
        tracks.append(int(key))
        masks.append(mask.astype(np.uint8))
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long),
        "tracks": torch.tensor(tracks, dtype=torch.long),
        "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8)),
    }  # fmt: skip


def _pose(said: Sequence[Mapping[str, Any]], size: tuple[int, int], name: str) -> dict[str, Tensor]:
    boxes, points = [], []
    for row in said:
        graph, box = row.get("graph"), _box(row, size) if row.get("box2d") else None
        if not graph or box is None or _left_out(row):
            continue
        body = np.zeros((len(JOINTS), 3), np.float32)
        for node in graph["nodes"]:
            if node["category"] not in JOINTS:
                raise DataError(f"{name}: {unknown('joint', node['category'], JOINTS)}")
            body[JOINTS.index(node["category"])] = (*node["location"], 2 if node.get("visibility", "V") == "V" else 1)
        boxes.append(box)
        points.append(body)
    return {
        "pose_boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "keypoints": torch.from_numpy(np.stack(points) if points else np.zeros((0, len(JOINTS), 3), np.float32)),
    }


def read_labels(file: Path) -> list[dict[str, Any]]:
    """The frames of a label file: a list, or ``{"frames": [...]}``.

    Raises:
        DataError: no json of that form.
    """
    try:
        held = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the labels {file}: {error}") from error
    frames = held.get("frames") if isinstance(held, dict) else held
    if not isinstance(frames, list) or any(not isinstance(f, dict) or "name" not in f for f in frames):
        raise DataError(f"{file} is no label file: expected a list of frames with 'name' and 'labels'")
    return frames


# -- the folder --------------------------------------------------------------------------------------------------------
@dataclass
class _Finding:
    """Labels by picture while a folder is read."""

    found: dict[Path, dict[str, Any]] = field(default_factory=dict)
    video: dict[Path, tuple[str, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, picture: Path, task: str, said: Any) -> None:
        if picture.is_file():
            self.found.setdefault(picture, {})[task] = said
        else:
            self.missing.append(str(picture))

    def masks(self, folder: Path, pictures: Path, task: str) -> None:
        for file in sorted(folder.glob("*.png")):
            self.add(pictures / f"{file.stem}.jpg", task, file)

    def rows(self, file: Path, pictures: Path, task: str, tagging: bool = False) -> None:
        for frame in read_labels(file) if file.is_file() else ():
            picture = pictures / frame["name"]
            self.add(picture, task, frame.get("labels") or [])
            if tagging and frame.get("attributes") and picture.is_file():
                self.add(picture, "tagging", frame["attributes"])

    def videos(self, labels: Path, pictures: Path, task: str) -> None:
        for file in sorted(labels.glob("*.json")):
            for place, frame in enumerate(read_labels(file)):
                video = str(frame.get("videoName") or frame.get("video_name") or file.stem)
                index = frame.get("frameIndex", frame.get("index", place))
                self._of_video(pictures / video / frame["name"], task, frame.get("labels") or [], video, int(index))
        for folder in sorted(p for p in labels.glob("*") if p.is_dir()):
            for place, file in enumerate(sorted(folder.glob("*.png"))):
                self._of_video(pictures / folder.name / f"{file.stem}.jpg", task, file, folder.name, place)

    def _of_video(self, picture: Path, task: str, said: Any, video: str, index: int) -> None:
        self.add(picture, task, said)
        if picture.is_file():
            self.video[picture] = (video, index)
            self.add(picture, "flow", True)

    def frames(self) -> tuple[Frame, ...]:
        return tuple(Frame(p, p.name, said, *self.video.get(p, ("", 0))) for p, said in sorted(self.found.items()))


def _split(root: Path, split: str) -> _Finding:
    out, labels = _Finding(), root / "labels"
    whole, small = root / "images/100k" / split, root / "images/10k" / split
    out.rows(labels / "det_20" / f"det_{split}.json", whole, "detection", tagging=True)
    out.rows(labels / "pose_21" / f"pose_{split}.json", whole, "pose")
    out.masks(labels / "drivable/masks" / split, whole, "drivable")
    out.masks(labels / "lane/masks" / split, whole, "lane")
    out.masks(labels / "sem_seg/masks" / split, small, "semantic")
    out.rows(labels / "ins_seg/rles" / f"ins_seg_{split}.json", small, "instance")
    if not (labels / "ins_seg/rles" / f"ins_seg_{split}.json").is_file():
        out.masks(labels / "ins_seg/bitmasks" / split, small, "instance")
    out.videos(labels / "box_track_20" / split, root / "images/track" / split, "mot")
    kind = "rles" if (labels / "seg_track_20/rles" / split).is_dir() else "bitmasks"
    out.videos(labels / "seg_track_20" / kind / split, root / "images/seg_track_20" / split, "mots")
    return out


def open_folder(source: str | Path, missing: str = "stop") -> DrivingFrames:
    """Open BDD100K's folder.

    Args:
        source: the folder that holds ``images`` and ``labels``.
        missing: pictures that a label file names and that are not there: ``stop``, or ``skip`` them.

    Raises:
        DataError: nothing of the kind there; pictures that are not there (named).
    """
    if missing not in ("stop", "skip"):
        raise DataError(f"missing={missing!r}; choose stop or skip")
    root = Path(source)
    root = root / "bdd100k" if (root / "bdd100k" / "labels").is_dir() else root
    if not (root / "images").is_dir() or not (root / "labels").is_dir():
        raise DataError(f"{source} is no folder in BDD100K's layout ({LAYOUT}); give one, or sample:driving")
    parts = {split: _split(root, split) for split in ("train", "val")}
    absent = sorted({m for p in parts.values() for m in p.missing})
    if absent and missing == "stop":
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise DataError(
            f"labels name pictures that are not there: {', '.join(absent[:5])}{more}; pass --missing skip to go without"
        )
    train, val = (parts[s].frames() for s in ("train", "val"))
    for split, frames in (("train", train), ("val", val)):
        if not frames:
            raise DataError(f"{root} holds no labelled frames of the split {split} ({LAYOUT})")
    notes = (
        (f"{len(absent)} pictures that labels name are missing and were left out (first: {absent[0]})",)
        if absent
        else ()
    )
    return DrivingFrames(train, val, str(root), notes=notes)
