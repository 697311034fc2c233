"""Pictures and the outlines of their words: ICDAR 2015, Total-Text, CTW1500, mmocr's json, and the bundled toy set.

Whatever a file's format, a word is a polygon (n, 2) in pixels of the upright picture, and a flag that says whether it is to be ignored (in
their own words ``###`` or ``#``). What cannot serve is said, not refused: an outline without area becomes ignored, one that crosses itself is
repaired, a picture without words stays as a picture without words.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from offprint.data import samples
from offprint.data.reading import EXTENSIONS, read_picture
from offprint.errors import DataError, need

SAMPLE = "sample:icdar2015-toy"
LAYOUTS = (  # pictures and labels to train on, pictures and labels to be judged by
    (
        "ch4_training_images",
        "ch4_training_localization_transcription_gt",
        "ch4_test_images",
        "Challenge4_Test_Task1_GT",
    ),
    ("Images/Train", "Groundtruth/Polygon/Train", "Images/Test", "Groundtruth/Polygon/Test"),
    ("train_images", "ctw1500_train_labels", "test_images", "gt_ctw1500"),
    ("imgs/training", "annotations/training", "imgs/test", "annotations/test"),
    ("train/images", "train/labels", "val/images", "val/labels"),
)
LABELS = (".txt", ".xml", ".mat")
_IGNORED = ("###", "#")
Word = tuple[np.ndarray, bool]


@dataclass
class TextPicture:
    """A picture and its words.

    Attributes:
        name: of the picture.
        read: gives it, upright RGB.
        polygons: (n, 2) in its pixels.
        ignored: of each polygon.
    """

    name: str
    read: Callable[[], Image.Image]
    polygons: list[np.ndarray]
    ignored: list[bool]


@dataclass
class TextPictures:
    """Pictures to learn from and to be judged by."""

    train: list[TextPicture]
    val: list[TextPicture]
    name: str
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        whole = hashlib.sha256()
        for part in (self.train, self.val):
            for one in part:
                whole.update(f"{one.name}\t{one.ignored}\n".encode())
                whole.update(b"".join(np.ascontiguousarray(p, np.float64).tobytes() for p in one.polygons))
            whole.update(b"\n")
        return whole.hexdigest()[:16]


# -- formats -----------------------------------------------------------------------------------------------------------
def _polygon(numbers: Sequence[Any], where: str) -> np.ndarray:
    try:
        values = np.array([float(v) for v in numbers])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a polygon is made of numbers ({error})") from error
    if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
        raise DataError(
            f"{where}: a polygon of {len(values)} numbers; expected x, y of three points or more, all finite"
        )
    return values.reshape(-1, 2)


def _line(line: str, where: str) -> Word | None:
    """A word of a text file: ICDAR's eight numbers, CTW1500's 28 and ``####``, Total-Text's lists after ``x:`` and ``y:``."""
    if not line.strip():
        return None
    lists = [re.findall(r"-?\d+(?:\.\d+)?", m) for m in re.findall(r"[xy]: *\[\[(.*?)\]\]", line)]
    if len(lists) == 2:
        if len(lists[0]) != len(lists[1]):
            raise DataError(f"{where}: {len(lists[0])} values of x and {len(lists[1])} of y")
        said = re.search(r"transcriptions: *\[u?['\"](.*)['\"]\]", line)
        return _polygon([v for xy in zip(*lists, strict=True) for v in xy], where), said is not None and said[
            1
        ] in _IGNORED
    numbers, mark, text = line.partition(",####")
    if mark:
        return _polygon(numbers.split(","), where), text.strip() in _IGNORED
    cells = line.strip().split(",")
    found = [c for c in cells[:8] if re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", c)]
    if len(found) < 8:
        raise DataError(f"{where}: {line.strip()[:60]!r} is no word; expected x1,y1,x2,y2,x3,y3,x4,y4,text")
    return _polygon(found, where), ",".join(cells[8:]).strip().strip('"') in _IGNORED


def read_labels(file: str | Path) -> list[Word]:
    """The words of one picture, of a ``.txt`` (ICDAR 2015, CTW1500, Total-Text), ``.xml`` (CTW1500) or ``.mat`` (Total-Text) file.

    Raises:
        DataError: a file of another structure; the message names the file and the line.
    """
    file = Path(file)
    kind = file.suffix.lower()
    try:
        if kind == ".txt":
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            return [w for i, line in enumerate(lines, 1) if (w := _line(line, f"{file}, line {i}")) is not None]
        if kind == ".xml":
            boxes = ElementTree.fromstring(file.read_text(encoding="utf-8-sig").replace("&", "&amp;")).iter("box")
            return [
                (
                    _polygon((b.findtext("segs") or "").split(","), f"{file}, box {i}"),
                    (b.findtext("label") or "") in _IGNORED,
                )
                for i, b in enumerate(boxes, 1)
            ]
        if kind == ".mat":
            from scipy.io import loadmat

            rows = next(v for k, v in loadmat(file).items() if k.lower() in ("polygt", "gt"))
            out = []
            for i, row in enumerate(rows, 1):
                x, y = (np.asarray(row[j]).ravel() for j in (1, 3))
                if len(x) != len(y):
                    raise DataError(f"{file}, word {i}: {len(x)} values of x and {len(y)} of y")
                said = "".join(map(str, np.asarray(row[4]).ravel())) if len(row) > 4 else ""
                out.append((_polygon(np.stack([x, y], 1).ravel(), f"{file}, word {i}"), said in _IGNORED))
            return out
    except (
        OSError,
        UnicodeDecodeError,
        ElementTree.ParseError,
        StopIteration,
        IndexError,
        NotImplementedError,
    ) as error:
        raise DataError(f"cannot read the words of {file}: {error or 'it holds no polygons'}") from error
    raise DataError(f"{file}: words are read from {', '.join(LABELS)} files")


def _key(stem: str) -> str:
    """What a picture's name and its label's have in common."""
    bare = re.sub(r"^(poly_gt_|gt_)", "", stem)
    return str(int(bare)) if bare.isdigit() else bare


def _of_folders(pictures: Path, labels: Path) -> list[tuple[str, Callable[[], Image.Image], list[Word]]]:
    files = {_key(p.stem): p for p in sorted(pictures.iterdir()) if p.suffix.lower() in EXTENSIONS}
    said = {_key(p.stem): p for p in sorted(labels.iterdir()) if p.suffix.lower() in LABELS}
    _absent([f"{pictures / k} (of {p.name})" for k, p in said.items() if k not in files], labels)
    _absent([f"words of {p.name}" for k, p in files.items() if k not in said], labels)
    return [(p.name, partial(read_picture, p), read_labels(said[k])) for k, p in files.items()]


def _absent(names: Sequence[str], of: Path) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise DataError(f"{of} names what is not there: {', '.join(names[:5])}{more}")


def _of_json(text: str, where: str, open_one: Callable[[str], Callable[[], Image.Image] | None]) -> list[tuple[str, Callable[[], Image.Image], list[Word]]]:  # fmt: skip
    """mmocr's json: ``data_list`` of ``img_path`` and ``instances`` (``polygon``, ``ignore``)."""
    try:
        rows = json.loads(text)["data_list"]
        found, absent = [], []
        for row in rows:
            name = row["img_path"]
            read = open_one(name)
            if read is None:
                absent.append(name)
                continue
            words = [
                (_polygon(w["polygon"], f"{where}, {name}, word {i}"), bool(w.get("ignore", False)))
                for i, w in enumerate(row.get("instances", []), 1)
            ]
            found.append((name, read, words))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{where} is not mmocr's json: {type(error).__name__} {error}; expected data_list of img_path and instances") from error  # fmt: skip
    _absent(absent, Path(where))
    return found


def _file(path: Path, name: str) -> Callable[[], Image.Image] | None:
    file = path.parent / name
    return partial(read_picture, file) if file.is_file() else None


def _bundled() -> list[tuple[str, Callable[[], Image.Image], list[Word]]]:
    with zipfile.ZipFile(samples.path("icdar2015_toy.zip")) as z:
        text = z.read("textdet_test.json").decode()
        held = {n: z.read(n) for n in z.namelist() if n.endswith(".jpg")}
    return _of_json(text, SAMPLE, lambda n: partial(read_picture, held[n], name=n) if n in held else None)


# -- what serves -------------------------------------------------------------------------------------------------------
def usable(words: Sequence[Word]) -> tuple[list[np.ndarray], list[bool], int, int]:
    """Polygons and their flags, and how many were without area (now ignored) and how many crossed themselves (now repaired)."""
    polygons, flags, flat, crossed = [], [], 0, 0
    for given, ignored in words:
        points = given[(given != np.roll(given, 1, 0)).any(1)]
        degenerate = len(np.unique(points, axis=0)) < 3 or np.linalg.matrix_rank(points - points[0]) < 2
        if degenerate:
            flat += 1
            polygons.append(given)
            flags.append(True)
            continue
        if _crosses(points):
            crossed += 1
            points = _mended(points)
        polygons.append(points)
        flags.append(ignored)
    return polygons, flags, flat, crossed


def _mended(points: np.ndarray) -> np.ndarray:
    """The outline of what a buffer of zero makes of a polygon, of its convex hull where that falls into pieces."""
    shapely = need("shapely", "detection", "repairing outlines that cross themselves")
    shape = shapely.buffer(shapely.polygons(points), 0)
    if shape.geom_type != "Polygon" or shape.is_empty:
        shape = shapely.convex_hull(shapely.multipoints(points) if shape.is_empty else shape)
    return shapely.get_coordinates(shape.exterior)[:-1]


def _crosses(points: np.ndarray) -> bool:
    """Whether two edges that are no neighbours meet."""
    a, b = points, np.roll(points, -1, 0)
    n = len(points)

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.sign(
            (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])
        )

    i, j = np.triu_indices(n, 2)
    apart = (j - i) % n != n - 1
    i, j = i[apart], j[apart]
    if not len(i):
        return False
    one = side(a[i], b[i], a[j]) * side(a[i], b[i], b[j])
    other = side(a[j], b[j], a[i]) * side(a[j], b[j], b[i])
    return bool(((one < 0) & (other < 0)).any())


def open_text(source: str | Path, *, val_fraction: float = 0.2, seed: int = 0) -> TextPictures:
    """Open pictures with the outlines of their words.

    Args:
        source: ICDAR 2015's, Total-Text's or CTW1500's folder; a folder with ``textdet_train.json`` and ``textdet_test.json`` of mmocr (or one
            of them, or such a file); a folder of pictures with a label beside each; ``sample:icdar2015-toy``.
        val_fraction: share held out, where the data have no part for it.
        seed: of that split.

    Raises:
        DataError: nothing of the kind there, a label of another structure, or a picture or label that is not there (named).
    """
    path, parts = Path(source), {}
    if str(source) == SAMPLE:
        parts["train"] = _bundled()
    elif str(source).startswith("sample:"):
        raise DataError(f"{source}: the bundled words are {SAMPLE}")
    elif path.suffix.lower() == ".json" and path.is_file():
        parts["train"] = _of_json(path.read_text(encoding="utf-8"), str(path), partial(_file, path))
    elif path.is_dir():
        for files in (
            sorted(path.glob("*train*.json")),
            sorted(path.glob("*test*.json")) or sorted(path.glob("*val*.json")),
        ):
            if files:
                file = files[0]
                parts["val" if parts or "train" not in file.name else "train"] = _of_json(file.read_text(encoding="utf-8"), str(file), partial(_file, file))  # fmt: skip
        layout = next((x for x in LAYOUTS if (path / x[0]).is_dir() or (path / x[2]).is_dir()), None)
        if not parts and layout is not None:
            for part, (pictures, labels) in (("train", layout[:2]), ("val", layout[2:])):
                if (path / pictures).is_dir():
                    if not (path / labels).is_dir():
                        raise DataError(f"{path / pictures} has no words: there is no folder {path / labels}")
                    parts[part] = _of_folders(path / pictures, path / labels)
        if not parts and any(p.suffix.lower() in LABELS for p in path.iterdir()):
            parts["train"] = _of_folders(path, path)
    if not any(parts.values()):
        raise DataError(
            f"{path} holds no pictures with words: expected the folders of ICDAR 2015, Total-Text or CTW1500, mmocr's textdet_*.json, or "
            "pictures with .txt labels beside them"
        )
    flat = crossed = 0
    made: dict[str, list[TextPicture]] = {}
    for part, rows in parts.items():
        made[part] = []
        for name, read, words in rows:
            polygons, ignored, *counts = usable(words)
            flat, crossed = flat + counts[0], crossed + counts[1]
            made[part].append(TextPicture(name, read, polygons, ignored))
    notes = [f"{flat} polygons without area are ignored"] if flat else []
    notes += [f"{crossed} polygons that cross themselves were repaired"] if crossed else []
    empty = sum(not one.polygons for rows in made.values() for one in rows)
    notes += [f"{empty} pictures without words serve as negatives"] if empty else []
    if len(made) == 2:
        return TextPictures(made["train"], made["val"], str(source), notes)
    rows = next(iter(made.values()))
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
    if len(rows) < 2:
        raise DataError(f"{path} holds {len(rows)} picture; at least two are needed to hold one out")
    held = set(np.random.default_rng(seed).permutation(len(rows))[: max(1, round(val_fraction * len(rows)))].tolist())
    train, val = ([r for i, r in enumerate(rows) if (i in held) is part] for part in (False, True))
    return TextPictures(train, val, str(source), notes)
