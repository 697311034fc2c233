"""Aerial pictures with objects as their makers publish them: iSAID, DIOR, NWPU VHR-10 and HRSID.

============  =====================================================================================================================
iSAID         ``PART/instancesonly_filtered_PART.json`` beside ``PART/images`` (patches, as the devkit cuts them), or whole pictures with
              ``PART/Annotations/iSAID_PART.json``; parts ``train`` and ``val``
DIOR          ``Annotations/Horizontal Bounding Boxes/*.xml``, ``ImageSets/Main``, ``JPEGImages-trainval`` and ``JPEGImages-test``; learnt from
              are ``train`` and ``val``, held out is ``test``. The plain VOC form is taken too where the folder is called dior
NWPU VHR-10   ``ground truth/*.txt``, ``positive image set``, and ``negative image set``, whose pictures hold background only
HRSID         ``annotations/train2017.json`` and ``test2017.json`` with ``images`` or ``JPEGImages``; other lists beside them (inshore, offshore,
              all) repeat the same pictures and are not read
============  =====================================================================================================================

Classes stand in the order of the sets' own lists, which the released weights of CATNet follow, whatever ids a file uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from offprint.data.boxes import (
    BoxSplits,
    Scene,
    _coco_scenes,
    _Counts,
    _scene,
    _voc_scene,
    open_boxes,
    split,
    tidy,
    upright_size,
)
from offprint.data.reading import EXTENSIONS
from offprint.errors import DataError

ISAID = (
    "ship", "storage tank", "baseball diamond", "tennis court", "basketball court", "ground track field", "bridge", "large vehicle",
    "small vehicle", "helicopter", "swimming pool", "roundabout", "soccer ball field", "plane", "harbor",
)  # fmt: skip
DIOR = (
    "airplane", "airport", "baseballfield", "basketballcourt", "bridge", "chimney", "dam", "Expressway-Service-area",
    "Expressway-toll-station", "golffield", "groundtrackfield", "harbor", "overpass", "ship", "stadium", "storagetank", "tenniscourt",
    "trainstation", "vehicle", "windmill",
)  # fmt: skip
VHR10 = (
    "airplane", "ship", "storage tank", "baseball diamond", "tennis court", "basketball court", "ground track field", "harbor", "bridge",
    "vehicle",
)  # fmt: skip
HRSID = ("ship",)
_LINE = re.compile(r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*,\s*\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)\s*,\s*(\d+)\s*")
Found = tuple[dict[str, list[Scene]], Sequence[str], Sequence[int]]


def open_objects(
    source: str | Path,
    *,
    max_instances: int = 0,
    val_fraction: float = 0.2,
    seed: int = 0,
    classes: str = "",
    on_error: str = "stop",
) -> BoxSplits:
    """Open pictures with objects: a set of this module in its published layout, or what :func:`~offprint.data.boxes.open_boxes` opens.

    Args:
        source: a folder, or what that function takes.
        max_instances: most objects of a picture to learn from; those with more are left out and counted. 0 keeps all. Patches of iSAID hold
            up to two thousand, whose masks are as many arrays of the patch's size.
        val_fraction, seed, classes, on_error: as that function has them.

    Raises:
        DataError: as that function; a class that the set does not have; a negative ``max_instances``.
    """
    if max_instances < 0:
        raise DataError(f"max_instances={max_instances}; give the most objects of a picture, or 0 for all")
    root = Path(source)
    read = layout(root)
    if read is None or classes:
        splits = open_boxes(source, val_fraction=val_fraction, seed=seed, classes=classes, on_error=on_error)
    else:
        if on_error not in ("stop", "skip"):
            raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
        counts = _Counts()
        splits = split(read(root, counts), root, counts, val_fraction, seed, on_error)
    return splits if not max_instances else _thinned(splits, max_instances)


def _thinned(splits: BoxSplits, most: int) -> BoxSplits:
    kept = [s for s in splits.train.scenes if len(s.labels) <= most]
    lost = len(splits.train) - len(kept)
    if not any(len(s.labels) for s in kept):
        raise DataError(f"max_instances={most} leaves no picture with objects of the {len(splits.train)}; give more")
    if not lost:
        return splits
    note = f"{lost} pictures of more than {most} objects are not learnt from"
    return replace(splits, train=splits.train.but(scenes=kept), notes=(*splits.notes, note))


def layout(root: Path) -> Callable[[Path, _Counts], Found] | None:
    """The reader of the set whose layout this folder has; ``None`` where it has none of them."""
    if not root.is_dir():
        return None
    if _isaid_file(root, "train") is not None:
        return _isaid
    if (root / "ground truth").is_dir() and (root / "positive image set").is_dir():
        return _vhr10
    if all((root / "annotations" / f"{part}2017.json").is_file() for part in ("train", "test")):
        return _hrsid
    voc = (root / "Annotations").is_dir() and (root / "ImageSets" / "Main").is_dir()
    own = (root / "Annotations" / "Horizontal Bounding Boxes").is_dir() or (root / "JPEGImages-trainval").is_dir()
    if voc and (own or "dior" in root.name.lower()):
        return _dior
    return None


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not json: {error}") from error
    if not isinstance(content, dict) or "images" not in content or "categories" not in content:
        raise DataError(f"{file} is not COCO's: it has no 'images' and 'categories'")
    return content


def _plain(name: str) -> str:
    """A name without what its spellings differ in."""
    return "".join(c for c in name.lower() if c.isalnum())


def _by_name(file: Path, content: dict, classes: Sequence[str]) -> dict[int, int]:
    """Category id to label, by the names of the classes."""
    order = {_plain(name): i + 1 for i, name in enumerate(classes)}
    order["storetank"] = order.get("storagetank", 0)  # as some of iSAID's own files have it
    label = {}
    for category in content["categories"]:
        found = order.get(_plain(str(category["name"])), 0)
        if not found:
            raise DataError(f"{file} names the class {category['name']!r}; the set has {', '.join(classes)}")
        label[int(category["id"])] = found
    return label


def _ids(label: dict[int, int], count: int) -> list[int]:
    """Ids of the classes in their order; a class that no file names has the next free one."""
    by_label = {v: k for k, v in label.items()}
    free = max(label, default=0)
    out = []
    for i in range(1, count + 1):
        if i not in by_label:
            free += 1
        out.append(by_label.get(i, free))
    return out


# -- iSAID ------------------------------------------------------------------------------------------------------------
def _isaid_file(root: Path, part: str) -> Path | None:
    tries = (root / part / f"instancesonly_filtered_{part}.json", root / part / "Annotations" / f"iSAID_{part}.json")
    return next((f for f in tries if f.is_file()), None)


def _isaid(root: Path, counts: _Counts) -> Found:
    parts: dict[str, list[Scene]] = {}
    every: dict[int, int] = {}
    for part in ("train", "val"):
        file = _isaid_file(root, part)
        if file is None:
            continue
        content = _json(file)
        label = _by_name(file, content, ISAID)
        every |= label
        inner = root / part / "images"
        parts[part] = list(
            _coco_scenes(file, content, inner if (inner / "images").is_dir() else root / part, label, counts)
        )
    return parts, ISAID, _ids(every, len(ISAID))


# -- HRSID ------------------------------------------------------------------------------------------------------------
def _hrsid(root: Path, counts: _Counts) -> Found:
    parts: dict[str, list[Scene]] = {}
    ids: list[int] = []
    for part in ("train", "test"):
        file = root / "annotations" / f"{part}2017.json"
        content = _json(file)
        label = _by_name(file, content, HRSID)
        ids = _ids(label, 1)
        parts[part] = list(_coco_scenes(file, content, root, label, counts))
    return parts, HRSID, ids


# -- NWPU VHR-10 ------------------------------------------------------------------------------------------------------
def _vhr10(root: Path, counts: _Counts) -> Found:
    scenes = []
    for file in sorted((root / "ground truth").glob("*.txt")):
        places = [root / "positive image set" / f"{file.stem}{e}" for e in (".jpg", *EXTENSIONS)]
        picture = next((p for p in places if p.is_file()), places[0])
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None or not 1 <= int(found[5]) <= len(VHR10):
                raise DataError(
                    f"{file}, line {number}: {line!r} is not (x1,y1),(x2,y2),CLASS with a class of 1 to {len(VHR10)}"
                )
            x1, y1, x2, y2 = (float(found[i]) for i in range(1, 5))
            rows.append(((x1, y1, x2, y2), int(found[5]), False, None))
        size = upright_size(picture) if picture.is_file() else None
        scenes.append(tidy(_scene(picture, rows, None, len(scenes) + 1), size, counts))
    if not scenes:
        raise DataError(
            f"{root / 'ground truth'} holds no .txt files; expected one for each picture of 'positive image set'"
        )
    empty = root / "negative image set"
    for picture in sorted(empty.iterdir()) if empty.is_dir() else ():
        if picture.suffix.lower() in EXTENSIONS:
            scenes.append(tidy(_scene(picture, (), None, len(scenes) + 1), None, counts))
    return {"train": scenes}, VHR10, range(1, len(VHR10) + 1)


# -- DIOR -------------------------------------------------------------------------------------------------------------
def _dior(root: Path, counts: _Counts) -> Found:
    boxes = root / "Annotations" / "Horizontal Bounding Boxes"
    boxes = boxes if boxes.is_dir() else root / "Annotations"
    folders = [root / n for n in ("JPEGImages", "JPEGImages-trainval", "JPEGImages-test") if (root / n).is_dir()]
    label = {_plain(name): i + 1 for i, name in enumerate(DIOR)}
    parts: dict[str, list[Scene]] = {}
    for listed, part in (("train", "train"), ("val", "train"), ("test", "test")):
        names = root / "ImageSets" / "Main" / f"{listed}.txt"
        if not names.is_file():
            raise DataError(f"{names} is missing; DIOR's lists are train.txt, val.txt and test.txt in {names.parent}")
        scenes = parts.setdefault(part, [])
        for stem in (line.split()[0] for line in names.read_text(encoding="utf-8").splitlines() if line.strip()):
            file = boxes / f"{stem}.xml"
            if not file.is_file():
                raise DataError(f"{file} is missing, and {names.name} lists {stem}")
            picture, objects, size = _voc_scene(file, folders)
            for name, *_ in objects:
                if _plain(name) not in label:
                    raise DataError(f"{file} names the class {name!r}; DIOR has {', '.join(DIOR)}")
            rows = [(box, label[_plain(name)], hard, None) for name, box, hard in objects]
            scenes.append(tidy(_scene(picture, rows, size, len(scenes) + 1), size, counts))
    return parts, DIOR, range(1, len(DIOR) + 1)
