"""Lanes of roads: CULane's folders, TuSimple's files of labels, and any pictures labelled in TuSimple's form."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from offprint.errors import DataError

TRAINING, VALIDATION = ("label_data_0313.json", "label_data_0601.json"), ("label_data_0531.json",)
TEST = "test_label.json"
CATEGORIES = (
    "normal",
    "crowd",
    "hlight",
    "shadow",
    "noline",
    "arrow",
    "curve",
    "cross",
    "night",
)  # CULane's test0 to test8
PEN = 15  # px of a lane in TuSimple's drawn labels


@dataclass(frozen=True)
class Road:
    """A picture and its lanes.

    Attributes:
        picture: file.
        lanes: each (n, 2) points (x, y) in the picture; of TuSimple's those that are there.
        map: file of drawn lanes (0 background, 1 to 4 from left to right), where the data have one.
        flags: which of the numbered lanes are there, where the data say.
        category: CULane's, of test pictures.
        by_row: TuSimple's (rows, x of each lane at each row, -2 where it is not).
    """

    picture: Path
    lanes: tuple[np.ndarray, ...] = ()
    map: Path | None = None
    flags: tuple[int, ...] | None = None
    category: str = ""
    by_row: tuple[tuple[float, ...], tuple[tuple[float, ...], ...]] | None = None


@dataclass(frozen=True)
class Roads:
    """Pictures to learn from and to be judged by.

    Attributes:
        form: ``culane`` or ``tusimple``: how lanes are judged.
        test: pictures of the benchmark's test, where their labels are there.
        notes: what was left out.
    """

    train: tuple[Road, ...]
    val: tuple[Road, ...]
    form: str
    name: str
    test: tuple[Road, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of the pictures' names and the lanes."""
        whole = hashlib.sha256(self.form.encode())
        for road in (*self.train, *self.val):
            whole.update(road.picture.name.encode())
            for lane in road.lanes:
                whole.update(np.ascontiguousarray(lane).tobytes())
        return whole.hexdigest()[:16]


def open_lanes(source: str | Path, *, val_fraction: float = 0.1, seed: int = 0, on_error: str = "stop") -> Roads:
    """Open CULane's folder, TuSimple's, or one with a file of labels in TuSimple's form.

    Args:
        source: a folder with ``list/train_gt.txt`` (CULane) or with ``*.json`` label files (TuSimple: ``label_data_*.json``, and your own
            pictures as well: a line ``{"raw_file": ..., "lanes": [[x, ...], ...], "h_samples": [y, ...]}`` for each).
        val_fraction: share of the pictures held out where the data have no part of their own for it.
        seed: of that draw.
        on_error: ``skip`` leaves out pictures whose file or labels are missing; ``stop`` names them.

    Raises:
        DataError: no such folder or form; a line that cannot be used.
    """
    root = Path(source)
    if not root.is_dir():
        raise DataError(
            f"no folder at {str(source)!r}; give CULane's (with list/), or one with label files in TuSimple's form"
        )
    if (root / "list").is_dir():
        return _culane(root, on_error)
    files = sorted(root.glob("*.json"))
    if files:
        return _tusimple(root, files, val_fraction, seed, on_error)
    raise DataError(
        f"{root} holds no lanes; expected CULane's folders (list/train_gt.txt, list/val_gt.txt, laneseg_label_w16), or label files of "
        'TuSimple\'s form: {"raw_file": "clips/a.jpg", "lanes": [[x, ...]], "h_samples": [y, ...]}, a line per picture'
    )


def _kept(roads: Sequence[Road], on_error: str, notes: list[str]) -> tuple[Road, ...]:
    """The roads whose files are there; the others named."""
    missing = [r for r in roads if not r.picture.is_file() or (r.map is not None and not r.map.is_file())]
    if not missing:
        return tuple(roads)
    first = missing[0]
    lost = first.map if first.map is not None and first.picture.is_file() else first.picture
    said = f"{len(missing)} of {len(roads)} pictures lack a file: {lost} is not there"
    if on_error != "skip" or len(missing) == len(roads):
        raise DataError(f"{said}; unpack it, or pass on_error='skip' (--on-error skip)")
    notes.append(said)
    left = set(map(id, missing))
    return tuple(r for r in roads if id(r) not in left)


# -- CULane -----------------------------------------------------------------------------------------------------------
def _under(root: Path, name: str) -> Path:
    path = root / name.lstrip("/")
    if ".." in Path(name).parts:
        raise DataError(f"{name!r} leads out of {root}; paths in lists are below the data's folder")
    return path


def read_lines(file: Path) -> tuple[np.ndarray, ...]:
    """The lanes of a CULane ``.lines.txt``: x y x y ... , a line per lane; none where the file is missing.

    Raises:
        DataError: an odd count, or something that is no number.
    """
    if not file.is_file():
        return ()
    lanes = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = [float(v) for v in line.split()]
        except ValueError as error:
            raise DataError(f"{file}, line {number}: expected numbers x y x y ..., got {line[:60]!r}") from error
        if len(values) % 2 or not all(map(math.isfinite, values)):
            raise DataError(f"{file}, line {number}: expected pairs of finite numbers x y, got {len(values)} values")
        if values:
            lanes.append(np.array(values).reshape(-1, 2))
    return tuple(lanes)


def _culane(root: Path, on_error: str) -> Roads:
    notes: list[str] = []

    def listed(name: str, category: str = "") -> tuple[Road, ...]:
        file, roads = root / "list" / name, []
        if not file.is_file():
            return ()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            picture = _under(root, words[0])
            drawn, flags = None, None
            if len(words) > 1:
                try:
                    drawn, flags = _under(root, words[1]), tuple(int(v) for v in words[2:])
                except ValueError as error:
                    raise DataError(
                        f"{file}, line {number}: expected PICTURE MAP 0|1 ..., got {line[:80]!r}"
                    ) from error
            lanes = read_lines(picture.with_suffix(".lines.txt"))
            roads.append(Road(picture, lanes, drawn, flags or None, category))
        return _kept(roads, on_error, notes) if roads else ()

    train, val = listed("train_gt.txt"), listed("val_gt.txt")
    if not train or not val:
        raise DataError(
            f"{root / 'list'} lacks train_gt.txt or val_gt.txt, or one is empty; unpack CULane's list.tar.gz there"
        )
    test: list[Road] = []
    for i, name in enumerate(CATEGORIES):
        test += listed(f"test_split/test{i}_{name}.txt", name)
    return Roads(train, val, "culane", root.name, tuple(test), tuple(notes))


# -- TuSimple ---------------------------------------------------------------------------------------------------------
def read_labels(file: Path) -> list[Road]:
    """The pictures of a label file in TuSimple's form, beside it.

    Raises:
        DataError: a line that is not such a label.
    """
    roads = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label = json.loads(line)
            rows = tuple(float(y) for y in label["h_samples"])
            columns = tuple(tuple(float(x) for x in lane) for lane in label["lanes"])
            name = str(label["raw_file"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}, line {number}: expected {{'raw_file': ..., 'lanes': [[x, ...]], 'h_samples': [y, ...]}}, got {line[:60]!r}"
            ) from error
        if any(len(lane) != len(rows) for lane in columns):
            raise DataError(
                f"{file}, line {number}: every lane has an x for each of the {len(rows)} h_samples, -2 where it is not"
            )
        picture = _under(file.parent, name)
        lanes = (
            np.array([(x, y) for x, y in zip(lane, rows, strict=True) if x >= 0]).reshape(-1, 2) for lane in columns
        )
        roads.append(Road(picture, tuple(v for v in lanes if len(v)), by_row=(rows, columns)))
    if not roads:
        raise DataError(f"{file} holds no labels")
    return roads


def _tusimple(root: Path, files: Sequence[Path], val_fraction: float, seed: int, on_error: str) -> Roads:
    notes: list[str] = []
    named = {f.name: f for f in files}
    own = all(n in named for n in (*TRAINING, *VALIDATION))
    test = _kept(read_labels(named[TEST]), on_error, notes) if TEST in named else ()

    def of(names: Sequence[str]) -> tuple[Road, ...]:
        return _kept([road for n in names for road in read_labels(named[n])], on_error, notes)

    if own:
        return Roads(of(TRAINING), of(VALIDATION), "tusimple", root.name, test, tuple(notes))
    roads = of([n for n in named if n != TEST]) or test
    if len(roads) < 2 or not 0 < val_fraction < 1:
        raise DataError(
            f"{root} holds {len(roads)} labelled pictures and val_fraction is {val_fraction}; give two or more, and a share between 0 and 1"
        )
    order = np.random.default_rng(seed).permutation(len(roads))
    count = min(len(roads) - 1, max(1, round(val_fraction * len(roads))))
    held = set(order[:count].tolist())
    parts = ([r for i, r in enumerate(roads) if (i in held) is side] for side in (False, True))
    train, val = (tuple(p) for p in parts)
    return Roads(train, val, "tusimple", root.name, test, tuple(notes))


# -- maps of lanes ----------------------------------------------------------------------------------------------------
def numbered(lanes: Sequence[np.ndarray], count: int = 4) -> dict[int, np.ndarray]:
    """Lanes by number (1 to ``count``, from left to right), as TuSimple's are numbered.

    Their order is that of the angle of their ends against the picture's left; the last of those at 90 degrees or less is the one left of
    the car, ``count / 2``, the first beyond it the one to its right. Further ones to either side take the next numbers while there are any.
    Lanes of fewer than four points are absent.
    """
    usable = [lane[np.argsort(lane[:, 1])] for lane in lanes if len(lane) >= 4]
    angles = [math.degrees(math.atan2(v[-1, 1] - v[0, 1], -(v[-1, 0] - v[0, 0]))) for v in usable]
    order = sorted(range(len(usable)), key=lambda i: angles[i])
    left = sum(angles[i] <= 90 for i in order)
    first = count // 2 - left + 1
    return {first + at: usable[i] for at, i in enumerate(order) if 1 <= first + at <= count}


def lane_map(road: Road, size: tuple[int, int], count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The lanes of a picture drawn, (H, W) uint8 of its own size, and which of them there are (count,).

    Args:
        road: whose map is read where it has one, and drawn from its points otherwise.
        size: (height, width) of the picture.
        count: lanes that are told apart.

    Raises:
        DataError: the map cannot be read, or holds a lane beyond ``count``.
    """
    if road.map is not None:
        try:
            with Image.open(road.map) as image:
                drawn = np.array(image)
        except OSError as error:
            raise DataError(f"cannot read the map of lanes {road.map}: {error}") from error
        if drawn.ndim != 2:
            drawn = drawn[..., 0]
        if int(drawn.max(initial=0)) > count:
            raise DataError(
                f"{road.map} holds lane {int(drawn.max())}, and {count} are told apart; build the model with num_lanes={int(drawn.max())}"
            )
        if road.flags is not None and len(road.flags) == count:
            return drawn, np.array(road.flags, np.float32)
        return drawn, np.array([(drawn == i + 1).any() for i in range(count)], np.float32)
    canvas = Image.new("L", (size[1], size[0]))
    pen, flags = ImageDraw.Draw(canvas), np.zeros(count, np.float32)
    width = max(1, round(PEN * size[1] / 1280))
    for number, lane in numbered(road.lanes, count).items():
        pen.line([tuple(p) for p in lane.tolist()], fill=number, width=width, joint="curve")
        flags[number - 1] = 1
    return np.array(canvas), flags
