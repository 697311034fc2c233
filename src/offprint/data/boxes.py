"""Pictures with objects: COCO's json, Pascal VOC's xml, YOLO's txt folders, and scenes that are made here.

Boxes are kept as x1, y1, x2, y2 in pixels of the upright picture (what a viewer shows, :func:`~offprint.data.reading.read_picture`), from 0 at its
left and upper edge; labels run from 1 in the order of ``classes``, whatever ids a file uses. Boxes that reach out of their picture are
clipped, boxes without area left out, both counted and told; a picture without objects stays, as one that holds background only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from offprint.data.reading import EXTENSIONS, read_picture
from offprint.errors import DataError, need

FORMS = (
    "COCO's json (a file with its pictures beside it, or a folder with annotations/*.json), Pascal VOC's xml (Annotations/ and JPEGImages/, or "
    "xml beside the pictures), YOLO's txt (images/ and labels/, data.yaml)"
)
_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_ORIENTATION = 0x0112
Shape = Any  # polygons as lists of x, y, x, y, ..., or a run-length code {"size": [h, w], "counts": ...}


@dataclass(frozen=True)
class Scene:
    """A picture and the objects in it.

    Attributes:
        file: the picture, or (H, W, 3) uint8 in memory.
        boxes: (N, 4) float32.
        labels: (N,) int64, from 1.
        crowd: (N,) bool: regions of many objects, or difficult ones, that are not learnt from, and that no detection is wrong in.
        shapes: of each object polygons, a run-length code, or ``None`` where there is a box only.
        areas: (N,) float32, as the file states them; else the boxes'.
        size: (width, height) that the boxes were written for, ``None`` where the file did not say.
        key: the picture's id in its file.
    """

    file: Path | np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    shapes: tuple[Shape, ...]
    areas: np.ndarray
    size: tuple[int, int] | None = None
    key: int = 0

    @property
    def name(self) -> str:
        return self.file.name if isinstance(self.file, Path) else f"scene {self.key}"

    @property
    def has_masks(self) -> bool:
        """Whether every object has a shape."""
        return all(s is not None for s in self.shapes)


# -- pixels that are stored lying on their side ------------------------------------------------------------------------
def orientation_of(file: str | Path) -> int:
    """The EXIF orientation of a picture, 1 (upright) to 8."""
    with Image.open(file) as image:
        found = image.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def upright_size(file: str | Path) -> tuple[int, int]:
    """(width, height) as the picture is seen.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot read the picture {file}: {error}") from error
    return (height, width) if turned else (width, height)


def turned(boxes: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) of the stored pixels as boxes of the upright picture.

    Args:
        boxes: x1, y1, x2, y2.
        orientation: EXIF's, 1 to 8.
        size: (width, height) of the stored pixels.
    """
    (x1, y1, x2, y2), (width, height) = np.asarray(boxes, np.float32).reshape(-1, 4).T, size
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    if orientation in (5, 6, 7, 8):
        x1, y1, x2, y2 = y1, x1, y2, x2
    return np.stack([x1, y1, x2, y2], 1)


def as_stored(boxes: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """The way back: boxes (N, 4) of the upright picture, whose (width, height) is ``size``, in the stored pixels."""
    return turned(boxes, {6: 8, 8: 6}.get(orientation, orientation), size)


def turned_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """A mask (H, W) of the stored pixels as one of the upright picture."""
    if orientation in (2, 3, 7, 8):
        mask = mask[:, ::-1]
    if orientation in (3, 4, 6, 7):
        mask = mask[::-1]
    return mask.T if orientation in (5, 6, 7, 8) else mask


# -- shapes -----------------------------------------------------------------------------------------------------------
def raster(shape: Shape, box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) uint8 of an object: of its polygons or its run-length code; of its box where these give no pixel.

    Args:
        shape: polygons, a run-length code, or ``None``.
        box: of the object.
        size: (width, height) of the picture.
    """
    coco = need("pycocotools.mask", "detection", "masks from polygons and run-length codes")
    width, height = size
    found = None
    if isinstance(shape, Mapping):
        if list(shape["size"]) != [height, width]:
            raise DataError(
                f"a run-length code is of a picture of {shape['size'][1]} x {shape['size'][0]}, and its picture has {width} x {height}"
            )
        code = dict(shape)
        if isinstance(code["counts"], list):
            code = coco.frPyObjects(code, height, width)
        found = coco.decode(code)
    elif shape:
        codes = coco.frPyObjects([list(map(float, p)) for p in shape if len(p) >= 6], height, width)
        found = coco.decode(coco.merge(codes)) if codes else None
    if found is None or not found.any():
        x1, y1, x2, y2 = box
        found = np.zeros((height, width), np.uint8)
        found[int(y1) : max(int(y1) + 1, round(y2)), int(x1) : max(int(x1) + 1, round(x2))] = 1
    return found


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run-length code, ready for json."""
    coco = need("pycocotools.mask", "detection", "writing masks as run-length codes")
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in code["size"]], "counts": code["counts"].decode()}


# -- the data set -----------------------------------------------------------------------------------------------------
class BoxedPictures(Dataset):
    """Pictures and their objects.

    Args:
        scenes: as they were found.
        classes: names of the classes; label 1 is the first.
        ids: of the classes in their file.
        with_masks: whether a mask is made for every object.
        transform: called with a ``tv_tensors.Image`` (3, H, W) uint8 and the target.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        classes: Sequence[str],
        ids: Sequence[int] = (),
        with_masks: bool = False,
        transform: Any = None,
    ):
        self.scenes, self.classes = list(scenes), tuple(classes)
        self.ids = tuple(ids) or tuple(range(1, len(self.classes) + 1))
        self.with_masks, self.transform = with_masks, transform

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def has_masks(self) -> bool:
        """Whether every object has a shape, and there is an object."""
        return all(s.has_masks for s in self.scenes) and any(len(s.labels) for s in self.scenes)

    def but(self, **changes: Any) -> BoxedPictures:
        """The same with other parts."""
        held = {"scenes": self.scenes, "classes": self.classes, "ids": self.ids, "with_masks": self.with_masks,
                "transform": self.transform}  # fmt: skip
        return BoxedPictures(**{**held, **changes})

    def read(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The picture (3, H, W) uint8, upright, and its ``boxes``, ``labels``, ``crowd``, and ``masks`` (N, H, W) uint8 where wanted.

        Raises:
            DataError: it cannot be read, or has another size than its objects were written for.
        """
        scene = self.scenes[index]
        array = np.array(read_picture(scene.file)) if isinstance(scene.file, Path) else scene.file
        size = (array.shape[1], array.shape[0])
        boxes, turn = scene.boxes, 1
        if scene.size is not None and scene.size != size:
            assert isinstance(scene.file, Path)
            turn = orientation_of(scene.file)
            if turn not in (5, 6, 7, 8) or scene.size != size[::-1]:
                raise DataError(
                    f"{scene.file} is {size[0]} x {size[1]} pixels, and its objects were written for {scene.size[0]} x {scene.size[1]}; "
                    "give the pictures that were annotated"
                )
            boxes = turned(boxes, turn, scene.size)  # the boxes are those of the stored pixels
        target = {
            "boxes": torch.from_numpy(np.ascontiguousarray(boxes)).reshape(-1, 4),
            "labels": torch.from_numpy(scene.labels),
            "crowd": torch.from_numpy(scene.crowd),
        }
        if self.with_masks:
            masks = [
                turned_mask(raster(s, b, scene.size or size), turn)
                for s, b in zip(scene.shapes, scene.boxes, strict=True)
            ]
            target["masks"] = torch.from_numpy(
                np.ascontiguousarray(np.stack(masks)) if masks else np.zeros((0, *size[::-1]), np.uint8)
            )
        return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).contiguous(), target

    def __getitem__(self, index: int):
        from torchvision import tv_tensors

        picture, target = self.read(index)
        if self.transform is None:
            return picture, target
        size = (picture.shape[-2], picture.shape[-1])
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)  # type: ignore[assignment]
        if "masks" in target:
            target["masks"] = tv_tensors.Mask(target["masks"])
        return self.transform(tv_tensors.Image(picture), target)


@dataclass(frozen=True)
class BoxSplits:
    """Pictures with objects to learn from and to be judged by.

    Attributes:
        own: whether the data have a split of their own (otherwise the validation part was drawn).
        notes: what was found out about the data.
    """

    train: BoxedPictures
    val: BoxedPictures
    name: str
    own: bool = False
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def digest(self) -> str:
        """Of the classes and of all objects."""
        told = hashlib.sha256("\n".join(self.classes).encode())
        for scene in (*self.train.scenes, *self.val.scenes):
            told.update(scene.name.encode())
            told.update(scene.boxes.tobytes() + scene.labels.tobytes() + scene.crowd.tobytes())
        return told.hexdigest()[:16]

    def with_validation(self, held: Iterable[str]) -> BoxSplits:
        """The same pictures with these (paths) held out; unchanged where the data have a split of their own."""
        if self.own:
            return self
        wanted, scenes = set(held), sorted((*self.train.scenes, *self.val.scenes), key=lambda s: str(s.file))
        inside = [isinstance(s.file, Path) and str(s.file.absolute()) in wanted for s in scenes]
        if not any(inside) or all(inside):
            return self
        train, val = ([s for s, out in zip(scenes, inside, strict=True) if out is side] for side in (False, True))
        return replace(self, train=self.train.but(scenes=train), val=self.val.but(scenes=val))


@dataclass
class _Counts:
    """What was mended, and where first."""

    clipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    crowds: int = 0
    missing: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        def told(found: list[str], what: str) -> list[str]:
            return [f"{len(found)} {what} (first: {found[0]})"] if found else []

        return (
            *told(self.clipped, "boxes reached out of their picture and were clipped"),
            *told(self.dropped, "boxes without area, or wholly outside their picture, were left out"),
            *told(self.empty, "pictures hold no objects and serve as background"),
            *([f"{self.crowds} crowds or difficult objects are not learnt from"] if self.crowds else []),
            *told(self.missing, "pictures are missing and were left out"),
        )


def tidy(scene: Scene, size: tuple[int, int] | None, counts: _Counts) -> Scene:
    """A scene with its boxes clipped to the picture, those without area left out; what was done is counted."""
    boxes = scene.boxes.reshape(-1, 4)
    if size is not None and len(boxes):
        limits = np.array([*size, *size], np.float32)
        inside = np.clip(boxes, 0, limits)
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1) & ((inside[:, 2:] - inside[:, :2]) > 0).all(1)
        moved = whole & (np.abs(inside - boxes).max(1) > 0.01)
        counts.clipped += [scene.name] * int(moved.sum())
        boxes = inside
    else:
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    whole &= np.isfinite(boxes).all(1)
    counts.dropped += [scene.name] * int((~whole).sum())
    counts.crowds += int(scene.crowd[whole].sum())
    if not whole.any():
        counts.empty.append(scene.name)
    areas = np.where(np.isnan(scene.areas), (boxes[:, 2:] - boxes[:, :2]).prod(1), scene.areas)
    return replace(
        scene, boxes=np.ascontiguousarray(boxes[whole], np.float32), labels=scene.labels[whole], crowd=scene.crowd[whole],
        shapes=tuple(s for s, keep in zip(scene.shapes, whole, strict=True) if keep), areas=areas[whole],
    )  # fmt: skip


def _scene(
    file: Path, rows: Sequence[tuple], size: tuple[int, int] | None, key: int = 0, areas: Sequence[float] | None = None
) -> Scene:
    """From rows of (box, label, crowd, shape)."""
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    stated = np.full(len(boxes), np.nan) if areas is None else np.asarray(areas)
    return Scene(
        file, boxes, np.array([r[1] for r in rows], np.int64).reshape(-1), np.array([r[2] for r in rows], bool).reshape(-1),
        tuple(r[3] for r in rows), stated.astype(np.float32).reshape(-1), size, key,
    )  # fmt: skip


def open_boxes(
    source: str | Path, *, val_fraction: float = 0.2, seed: int = 0, classes: str = "", on_error: str = "stop"
) -> BoxSplits:
    """Open pictures with objects.

    Args:
        source: ``sample:digit-scenes``, a COCO json, or a folder in COCO's, Pascal VOC's or YOLO's layout.
        val_fraction: share held out where the data have no split of their own.
        seed: of that draw.
        classes: names with commas between them, or a file of them, a line each, for layouts that do not name them.
        on_error: ``skip`` leaves out pictures that are missing; ``stop`` names them.

    Raises:
        DataError: nothing there that can be opened, missing pictures, a file that is not what it should be.
    """
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
    text = str(source)
    if text.startswith("sample:"):
        if text != "sample:digit-scenes":
            raise DataError(f"{text}: the bundled scenes are sample:digit-scenes")
        return digit_scenes()
    root, counts, named = Path(source), _Counts(), _names(classes)
    if not root.exists():
        raise DataError(f"nothing at {text!r}; give {FORMS}, or sample:digit-scenes")
    found = _coco(root, counts) or (None if root.is_file() else _voc(root, counts, named) or _yolo(root, counts, named))
    if found is None:
        raise DataError(f"{root} holds no pictures with boxes; expected {FORMS}")
    return split(found, root, counts, val_fraction, seed, on_error)


def split(
    found: tuple[dict[str, list[Scene]], Sequence[str], Sequence[int]],
    root: Path,
    counts: _Counts,
    val_fraction: float,
    seed: int,
    on_error: str,
) -> BoxSplits:
    """What was read (scenes by part, names and ids of the classes) as a part to learn from and one held out; arguments as :func:`open_boxes`."""
    parts, names, ids = found
    _missing(parts, on_error, counts)
    name = root.stem if root.is_file() else root.name
    train = parts.get("train") or next(iter(parts.values()))
    if not any(len(s.labels) for s in train):
        raise DataError(f"{root}: not one object in {len(train)} pictures; is it the right folder?")
    held = parts.get("val") or (parts.get("test") if "train" in parts else None)
    if held:
        return BoxSplits(BoxedPictures(train, names, ids), BoxedPictures(held, names, ids), name, True, counts.notes())
    if len(train) < 2 or not 0 < val_fraction < 1:
        raise DataError(
            f"{root} holds {len(train)} pictures and val_fraction is {val_fraction}; give two or more, and a share between 0 and 1"
        )
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    out = set(order[: min(len(train) - 1, max(1, round(val_fraction * len(train))))])
    kept, val = ([s for i, s in enumerate(train) if (i in out) is side] for side in (False, True))
    return BoxSplits(BoxedPictures(kept, names, ids), BoxedPictures(val, names, ids), name, False, counts.notes())


def _names(classes: str) -> list[str]:
    if not classes:
        return []
    file = Path(classes)
    words = file.read_text(encoding="utf-8").splitlines() if file.is_file() else classes.split(",")
    return [w.strip() for w in words if w.strip()]


def _missing(parts: dict[str, list[Scene]], on_error: str, counts: _Counts) -> None:
    """Name the pictures that are not there, or leave them out."""
    for part, scenes in parts.items():
        gone = [s for s in scenes if isinstance(s.file, Path) and not s.file.is_file()]
        if gone and on_error == "stop":
            more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
            raise DataError(
                f"{len(gone)} pictures are missing: {', '.join(str(s.file) for s in gone[:3])}{more}; put them there, or pass "
                "on_error='skip' (--on-error skip) to leave them out"
            )
        counts.missing += [s.name for s in gone]
        lost = {id(s) for s in gone}
        parts[part] = [s for s in scenes if id(s) not in lost]
        if not parts[part]:
            raise DataError(f"not one picture of the part {part} is there; the first would be {gone[0].file}")


def _part_of(name: str) -> str:
    """Which part a file or folder name speaks of."""
    lowered = name.lower()
    return next((part for part in ("val", "test", "train") if any(w in lowered for w in _PARTS[part])), "")


# -- COCO -------------------------------------------------------------------------------------------------------------
def _coco(root: Path, counts: _Counts):
    """Scenes by part, names and ids of classes; ``None`` where there is no json of this kind."""
    if root.is_file():
        files = [root] if root.suffix.lower() == ".json" else []
        if not files:
            raise DataError(f"{root} is no json; give {FORMS}")
        root = root.parent
    else:
        inside = [root, root / "annotations", *(d for d in sorted(root.iterdir()) if d.is_dir() and _part_of(d.name))]
        files = [f for d in inside if d.is_dir() for f in sorted(d.glob("*.json"))]
        instances = [f for f in files if f.name.startswith("instances")]
        files = instances or files
    held = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{file} is not json: {error}") from error
        if isinstance(content, dict) and "images" in content and "categories" in content:
            held[file] = content
        elif len(files) == 1:
            raise DataError(f"{file} is not COCO's: it has no 'images' and 'categories'")
    if not held:
        return None
    named = {int(c["id"]): str(c["name"]) for content in held.values() for c in content["categories"]}
    ids = sorted(named)
    label = {category: i + 1 for i, category in enumerate(ids)}
    parts: dict[str, list[Scene]] = {}
    for file, content in held.items():
        # one folder a part, or the part in the file's own name
        part = _part_of(file.stem) or (_part_of(file.parent.name) if file.parent != root else "") or "train"
        parts.setdefault(part, []).extend(_coco_scenes(file, content, root, label, counts))
    return parts, [named[i] for i in ids], ids


def _coco_scenes(file: Path, content: Mapping[str, Any], root: Path, label: Mapping[int, int], counts: _Counts):
    suffix = file.stem.removeprefix("instances_")
    folders = [
        *(d / inner for d in (file.parent, root, root.parent) for inner in ("", "images", suffix, f"images/{suffix}")),
        *(d for d in (root / n for n in (f"{suffix}2017", "JPEGImages", *_PARTS.get(_part_of(suffix) or "train", ())))),
    ]
    by_image: dict[int, list] = {}
    areas: dict[int, list[float]] = {}
    known = {image["id"] for image in content["images"]}
    for number, a in enumerate(content.get("annotations", ())):
        if a.get("image_id") not in known:
            raise DataError(
                f"{file}: annotation {a.get('id', number)} is of the picture {a.get('image_id')}, which is not in 'images'"
            )
        if a.get("category_id") not in label:
            raise DataError(
                f"{file}: annotation {a.get('id', number)} has the category {a.get('category_id')}, which is not in 'categories' "
                f"({', '.join(map(str, list(label)[:8]))})"
            )
        shape = a.get("segmentation") or None
        if isinstance(shape, list) and not any(len(p) >= 6 for p in shape):
            shape = None
        box = a.get("bbox")
        if box is None and isinstance(shape, list):
            points = np.concatenate([np.asarray(p, float).reshape(-1, 2) for p in shape])
            low, high = points.min(0), points.max(0)
            box = [*low, *(high - low)]
        if box is None or len(box) != 4:
            raise DataError(
                f"{file}: annotation {a.get('id', number)} has no bbox of four numbers; COCO's is [x, y, width, height]"
            )
        x, y, w, h = map(float, box)
        by_image.setdefault(a["image_id"], []).append(
            ((x, y, x + w, y + h), label[a["category_id"]], bool(a.get("iscrowd", 0)), shape)
        )
        areas.setdefault(a["image_id"], []).append(float(a.get("area", "nan")))
    first: Path | None = None
    for key, image in enumerate(content["images"]):
        name = Path(str(image["file_name"]))
        order = ([first] if first is not None else []) + folders
        where = next((d for d in order if (d / name).is_file()), None)
        first = where or first
        path = (where or folders[0]) / name
        size = (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None
        number = image["id"] if isinstance(image["id"], int) else key
        known_size = size or (upright_size(path) if where is not None else None)
        rows = by_image.get(image["id"], ())
        yield tidy(_scene(path, rows, size, number, areas.get(image["id"], ())), known_size, counts)


# -- Pascal VOC -------------------------------------------------------------------------------------------------------
def _voc(root: Path, counts: _Counts, named: list[str]):
    """``Annotations`` and ``JPEGImages`` with lists of parts, or xml beside the pictures, whole or in ``train`` and ``val``."""
    inner = next((p for p in (root, *sorted(root.glob("VOC*"))) if (p / "Annotations").is_dir()), None)
    lists: dict[str, list[Path]] = {}
    if inner is not None:
        files = sorted((inner / "Annotations").rglob("*.xml"))
        sets = inner / "ImageSets" / "Main"
        for part in ("train", "val", "test"):
            if (sets / f"{part}.txt").is_file():
                stems = {line.split()[0] for line in (sets / f"{part}.txt").read_text().splitlines() if line.strip()}
                lists[part] = [f for f in files if f.stem in stems]
        lists = {k: v for k, v in lists.items() if v} or {"train": files}
    else:
        for part, names in _PARTS.items():
            inside = [f for n in names if (root / n).is_dir() for f in sorted((root / n).rglob("*.xml"))]
            if inside:
                lists[part] = inside
        lists = lists or (
            {"train": files} if (files := sorted(root.glob("*.xml")) or sorted(root.rglob("*.xml"))) else {}
        )
    if not any(lists.values()):
        return None
    pictures = [p for p in ((inner or root) / n for n in ("JPEGImages", "images")) if p.is_dir()]
    read = {part: [_voc_scene(f, pictures) for f in files] for part, files in lists.items()}
    names = named or sorted({name for rows in read.values() for _, objects, _ in rows for name, *_ in objects})
    label = {name: i + 1 for i, name in enumerate(names)}
    parts = {}
    for part, rows in read.items():
        scenes = parts[part] = []
        for key, (file, objects, size) in enumerate(rows):
            for name, *_ in objects:
                if name not in label:
                    raise DataError(
                        f"{file.stem}.xml names the class {name!r}, which is not among {', '.join(names[:8])}"
                    )
            told = [(box, label[name], hard, None) for name, box, hard in objects]
            scenes.append(tidy(_scene(file, told, size, key + 1), size, counts))
    return parts, names, list(range(1, len(names) + 1))


def _voc_scene(file: Path, folders: Sequence[Path]) -> tuple[Path, list, tuple[int, int] | None]:
    """(picture, (class, box, difficult) of its objects, its size) of an xml file; pixels are counted from 1, both ends inside."""
    text = file.read_text(encoding="utf-8")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{file} declares entities, which an annotation has no use for; it is not read")
    try:
        tree = ElementTree.fromstring(text)
        size = tree.find("size")
        stated = None if size is None else (int(size.findtext("width") or 0), int(size.findtext("height") or 0))
        objects = []
        for thing in tree.iter("object"):
            box = thing.find("bndbox")
            if box is None:
                raise DataError(f"{file}: an object has no bndbox")
            x1, y1, x2, y2 = (float(box.findtext(k) or "nan") for k in ("xmin", "ymin", "xmax", "ymax"))
            if x2 > x1 and y2 > y1:
                x1, y1 = x1 - 1, y1 - 1
            objects.append((
                (thing.findtext("name") or "").strip(), (x1, y1, x2, y2), (thing.findtext("difficult") or "0").strip() == "1",
            ))  # fmt: skip
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file} is not Pascal VOC's xml: {error}") from error
    stem = Path((tree.findtext("filename") or file.stem).replace("\\", "/"))
    tries = [d / n for d in (*folders, file.parent) for n in (stem.name, *(f"{file.stem}{e}" for e in EXTENSIONS))]
    picture = next((p for p in tries if p.is_file()), tries[0])
    if stated is None or 0 in stated:
        stated = upright_size(picture) if picture.is_file() else None
    return picture, objects, stated


# -- YOLO -------------------------------------------------------------------------------------------------------------
def _yolo(root: Path, counts: _Counts, named: list[str]):
    """``images/PART`` with ``labels/PART``, or ``PART/images`` with ``PART/labels``, or ``images`` with ``labels``."""
    pairs: dict[str, tuple[Path, Path]] = {}
    for part, names in _PARTS.items():
        for n in names:
            for images, labels in (
                (root / "images" / n, root / "labels" / n),
                (root / n / "images", root / n / "labels"),
            ):
                if images.is_dir() and labels.is_dir():
                    pairs[part] = (images, labels)
    if not pairs and (root / "images").is_dir() and (root / "labels").is_dir():
        pairs["train"] = (root / "images", root / "labels")
    if not pairs:
        return None
    names, most = named or _yolo_names(root), 0
    raw = {}
    for part, (images, labels) in pairs.items():
        files = sorted(p for p in images.rglob("*") if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
        if not files:
            raise DataError(f"{images} holds no pictures (extensions looked for: {' '.join(EXTENSIONS)})")
        pictures = {p.relative_to(images).with_suffix("") for p in files}
        orphans = sorted(t for t in labels.rglob("*.txt") if t.name != "classes.txt")
        raw[part] = [(f, _yolo_rows(labels / f.relative_to(images).with_suffix(".txt"))) for f in files]
        raw[part] += [
            (images / t.relative_to(labels).with_suffix(".jpg"), _yolo_rows(t))
            for t in orphans if t.relative_to(labels).with_suffix("") not in pictures
        ]  # fmt: skip
        most = max([most, *(r[0] + 1 for _, rows in raw[part] for r in rows)])
    if names and most > len(names):
        raise DataError(
            f"{root}: a label has the class {most - 1}, and there are {len(names)} names (0 to {len(names) - 1})"
        )
    names = names or [f"class {i}" for i in range(most)]
    parts = {}
    for part, rows in raw.items():
        scenes = parts[part] = []
        for key, (file, objects) in enumerate(rows):
            size = upright_size(file) if file.is_file() else (1, 1)
            scale = np.array([*size, *size], np.float32)
            told = []
            for index, numbers in objects:
                if len(numbers) == 4:
                    cx, cy, w, h = numbers
                    told.append(
                        (np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * scale, index + 1, False, None)
                    )
                else:
                    points = np.asarray(numbers).reshape(-1, 2) * scale[:2]
                    told.append(((*points.min(0), *points.max(0)), index + 1, False, [points.flatten().tolist()]))
            scenes.append(tidy(_scene(file, told, None, key + 1), size, counts))
    return parts, names, list(range(len(names)))


def _yolo_names(root: Path) -> list[str]:
    file = next((f for f in (*sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml")))), None)
    if file is not None:
        content = need("yaml", "detection", "reading data.yaml").safe_load(file.read_text(encoding="utf-8")) or {}
        names = content.get("names", [])
        return [str(names[k]) for k in sorted(names)] if isinstance(names, dict) else [str(n) for n in names]
    for listed in (root / "classes.txt", root / "labels" / "classes.txt"):
        if listed.is_file():
            return _names(str(listed))
    return []


def _yolo_rows(file: Path) -> list[tuple[int, list[float]]]:
    """(class, numbers) of each line: a box as centre and size, or a polygon, in parts of the picture; none where there is no file."""
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            index, numbers = int(float(words[0])), [float(w) for w in words[1:]]
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {line!r} is not CLASS X Y WIDTH HEIGHT: {error}") from error
        if index < 0 or (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)):
            raise DataError(
                f"{file}, line {number}: {len(numbers)} numbers after the class; expected 4 (a box) or pairs of a polygon's points"
            )
        found.append((index, numbers))
    return found


# -- scenes made here -------------------------------------------------------------------------------------------------
DIGITS = tuple(str(i) for i in range(10))


@cache
def digit_scenes(count: int = 600, held: int = 120, side: int = 128, seed: int = 0) -> BoxSplits:
    """Scenes that are put together here: real handwritten digits, coloured and of several sizes, on crops of real photographs.

    No camera saw these pictures. The digits are MNIST's (bundled part), those to learn from of its training part, those held out of its
    test part; the photographs are the bundled ones, others for both parts. One to five digits a scene, of 20 to 56 pixels, none covering
    another by more than a little; one scene in twelve holds none. Masks are the digits' own pixels.

    Args:
        count, held: scenes to learn from, and held out.
        side: of a scene, in pixels.
        seed: of everything random.
    """
    from offprint.data.photos import photographs, set5
    from offprint.data.pixels import digits

    grounds = sorted({**set5(), **photographs()}.items())
    parts = []
    for number, (amount, train) in enumerate(((count, True), (held, False))):
        images, labels = digits(train)
        back = [p.permute(1, 2, 0).numpy() for i, (_, p) in enumerate(grounds) if (i % 4 != 3) is train]
        draw = np.random.default_rng([seed, number])
        scenes = [_digit_scene(images, labels, back, side, draw, key + 1) for key in range(amount)]
        parts.append(BoxedPictures(scenes, DIGITS))
    note = "scenes put together from bundled handwritten digits and photographs; no camera saw them"
    return BoxSplits(parts[0], parts[1], "digit-scenes", True, (note,))


def _digit_scene(images, labels, grounds, side: int, draw: np.random.Generator, key: int) -> Scene:
    ground = grounds[draw.integers(len(grounds))]
    top, left = (int(draw.integers(0, s - side + 1)) for s in ground.shape[:2])
    canvas = ground[top : top + side, left : left + side].astype(np.float32)
    rows: list[tuple] = []
    for _ in range(0 if draw.random() < 1 / 12 else int(draw.integers(1, 6))):
        which = int(draw.integers(len(images)))
        tall = int(draw.integers(20, 57))
        inked = np.argwhere(images[which] > 96)
        (y1, x1), (y2, x2) = inked.min(0), inked.max(0) + 1
        glyph = Image.fromarray(images[which][y1:y2, x1:x2])
        wide = max(4, round(tall * (x2 - x1) / (y2 - y1)))
        alpha = np.asarray(glyph.resize((wide, tall), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
        for _ in range(10):  # places tried
            x, y = int(draw.integers(0, side - wide + 1)), int(draw.integers(0, side - tall + 1))
            if all(
                min(x + wide, b[2]) - max(x, b[0]) <= 2 or min(y + tall, b[3]) - max(y, b[1]) <= 2 for b, *_ in rows
            ):
                break
        else:
            continue
        place = canvas[y : y + tall, x : x + wide]
        ink = draw.integers(0, 256, 3).astype(np.float32)
        if abs(float(ink.mean() - place.mean())) < 70:  # a colour that stands out
            ink = np.full(3, 255.0 if place.mean() < 128 else 0.0, np.float32)
        canvas[y : y + tall, x : x + wide] = place * (1 - alpha) + ink * alpha
        mask = np.zeros((side, side), np.uint8)
        mask[y : y + tall, x : x + wide] = alpha[..., 0] > 0.4
        rows.append(((x, y, x + wide, y + tall), int(labels[which]) + 1, False, mask))
    shapes = [(b, label, crowd, _runs(mask)) for b, label, crowd, mask in rows]
    scene = tidy(_scene(Path("-"), shapes, None, key), (side, side), _Counts())
    return replace(scene, file=canvas.round().clip(0, 255).astype(np.uint8))


def _runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's plain run-length code: lengths of zeros and ones in turn, by columns."""
    flat = mask.T.flatten()
    ends = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], ends, [len(flat)]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}
