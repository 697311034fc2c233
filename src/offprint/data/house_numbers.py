"""Pictures of whole numbers and the boxes of their digits: SVHN's full-numbers format, tables, and strings of real digits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offprint.data.reading import read_picture
from offprint.data.tables import FILE_COLUMNS, KINDS, Table
from offprint.errors import DataError, need

Box = tuple[float, float, float, float]  # left, top, width, height in pixels
NUMBER_COLUMNS = ("number", "label", "text", "digits", "string")
BOX_COLUMNS = ("left", "top", "width", "height")
CROP, SHOWN = 64, 54  # sides: of the crop, and of what a network sees of it
MARGIN = 0.3


@dataclass
class HouseNumber:
    """A picture of one number.

    Attributes:
        name: of the picture.
        read: gives it, upright RGB.
        digits: from the left; label 10 of SVHN is digit 0.
        box: around all digits; ``None`` where the picture is the crop.
    """

    name: str
    read: Callable[[], Image.Image]
    digits: tuple[int, ...]
    box: Box | None = None


@dataclass
class HouseNumbers:
    """Pictures to learn from and to be judged by."""

    train: list[HouseNumber]
    val: list[HouseNumber]
    name: str
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        lines = [f"{n.name}\t{n.digits}\t{n.box}" for n in (*self.train, HouseNumber("", Image.new, ()), *self.val)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def union(boxes: Sequence[Box]) -> Box:
    """The box around boxes."""
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    return left, top, right - left, bottom - top


def crop(picture: Image.Image, box: Box | None = None, side: int = CROP, margin: float = MARGIN) -> Image.Image:
    """The number as networks see it: a square about the centre of its box with the longer side, wider by ``margin``, at ``side`` pixels.

    Black outside the picture. Without a box the whole picture is taken, and nothing added.

    Raises:
        DataError: a box without an area, or one that lies wholly outside.
    """
    picture = picture.convert("RGB")
    if box is None:
        return picture.resize((side, side), Image.Resampling.BICUBIC)
    left, top, width, height = box
    inside = left < picture.width and top < picture.height and left + width > 0 and top + height > 0
    if width <= 0 or height <= 0 or not inside:
        raise DataError(f"box {tuple(box)} has no area in a picture of {picture.width} x {picture.height} pixels")
    reach = max(width, height) * (1 + margin)
    corner = round(left + width / 2 - reach / 2), round(top + height / 2 - reach / 2)
    size = max(1, round(reach))
    square = picture.crop((*corner, corner[0] + size, corner[1] + size))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def _digits(text: Any, where: str) -> tuple[int, ...]:
    said = str(text).strip()
    if said and not (said.isascii() and said.isdigit()):
        raise DataError(f"{where}: {said!r} is no number; labels hold the digits 0 to 9 alone")
    return tuple(int(c) for c in said)


# -- strings of real digits ------------------------------------------------------------------------------------------
def composed(seed: int, train: bool, most: int = 5, spread: bool = True) -> HouseNumber:
    """A string of one to ``most`` real digits (MNIST) on a dark ground with noise, the same for the same seed.

    Args:
        seed: everything follows from it.
        train: digits of MNIST's training part, or of its test part.
        spread: anywhere in the picture; otherwise from the left.
    """
    from offprint.data.digits import mnist

    images, labels = mnist(train)
    draw = np.random.default_rng(seed)
    length = int(draw.integers(1, most + 1))
    chosen = draw.integers(0, len(labels), length)
    pitch, height = 22, 48
    width = pitch * most + 20
    canvas = np.zeros((height, width), np.float32)
    start = int(draw.integers(0, width - pitch * length - 8 + 1)) if spread else int(draw.integers(0, 6))
    top = int(draw.integers(4, height - 28 - 4 + 1))
    for i, which in enumerate(chosen):
        left = start + i * pitch
        part = canvas[top : top + 28, left : left + 28]
        np.maximum(part, images[which][:, : part.shape[1]], out=part)
    canvas = canvas * draw.uniform(0.6, 1.0) + draw.normal(0, 18, canvas.shape) + 20
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).convert("RGB")
    box = (float(start), float(top), float(pitch * (length - 1) + 28), 28.0)
    part_name = "train" if train else "test"
    return HouseNumber(f"{part_name} {seed}", lambda: picture, tuple(int(labels[c]) for c in chosen), box)


def strings(count: int, held_out: int, most: int = 5, spread: bool = True) -> HouseNumbers:
    """Strings of MNIST's digits; held-out ones are of its test part."""
    parts = (
        [composed(10_000 * (not t) + i, t, most, spread) for i in range(n)]
        for t, n in ((True, count), (False, held_out))
    )
    return HouseNumbers(*parts, "strings of MNIST digits")


# -- folders ---------------------------------------------------------------------------------------------------------
def read_svhn(folder: str | Path) -> list[HouseNumber]:
    """One part of SVHN in its full-numbers format: pictures and ``digitStruct.mat``.

    Raises:
        DataError: no such file, or a file of another structure.
        MissingExtra: h5py is not installed.
    """
    folder = Path(folder)
    path = folder / "digitStruct.mat"
    if not path.is_file():
        raise DataError(
            f"there is no digitStruct.mat in {folder}; give a folder of SVHN's full numbers (train, test, extra)"
        )
    h5py = need("h5py", "detection", "reading SVHN's digitStruct.mat")
    found = []
    try:
        with h5py.File(path, "r") as file:
            names, boxes = file["digitStruct/name"], file["digitStruct/bbox"]
            for i in range(len(names)):
                name = "".join(chr(int(c)) for c in np.asarray(file[names[i][0]]).ravel())
                group = file[boxes[i][0]]

                def values(key: str, group=group, file=file) -> list[float]:
                    held = group[key]
                    if held.shape[0] == 1:
                        return [float(held[0][0])]
                    return [float(np.asarray(file[r[0]]).ravel()[0]) for r in held]

                labels = [int(v) % 10 for v in values("label")]
                each = list(zip(*(values(k) for k in BOX_COLUMNS), strict=True))
                found.append(HouseNumber(name, lambda p=folder / name: read_picture(p), tuple(labels), union(each)))  # type: ignore[misc]
    except (KeyError, OSError, ValueError) as error:
        raise DataError(f"{path} is not SVHN's digitStruct.mat: {error}") from error
    return found


def _of_table(path: Path) -> list[HouseNumber]:
    table = Table(path)
    lower = {c.lower(): c for c in table.columns}
    picture = next((lower[c] for c in FILE_COLUMNS if c in lower), None)
    number = next((lower[c] for c in NUMBER_COLUMNS if c in lower), None)
    if picture is None or number is None:
        raise DataError(
            f"{path} needs a column of pictures ({', '.join(FILE_COLUMNS)}) and one of numbers ({', '.join(NUMBER_COLUMNS)})"
        )
    boxed = all(c in lower for c in BOX_COLUMNS)
    found, absent = [], []
    for i in range(len(table)):
        row = table[i]
        file = path.parent / str(row[picture])
        if not file.is_file():
            absent.append(str(file))
            continue
        digits = _digits(row[number], f"{path}, row {i + 1}")
        box = tuple(float(row[lower[c]]) for c in BOX_COLUMNS) if boxed else None
        found.append(HouseNumber(str(row[picture]), lambda f=file: read_picture(f), digits, box))  # type: ignore[arg-type,misc]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise DataError(f"{path} names pictures that are not there: {', '.join(absent[:5])}{more}")
    return found


def open_numbers(source: str | Path, *, val_fraction: float = 0.1, seed: int = 0) -> HouseNumbers:
    """Open pictures of numbers.

    Args:
        source: SVHN's full numbers (a folder with ``train`` and ``test``, perhaps ``extra``, or one part), a table with the columns image and
            number (perhaps left, top, width, height), a folder with one, or ``sample:numbers``.
        val_fraction: share held out, where the data have no part for it.
        seed: of that split.

    Raises:
        DataError: nothing of the kind there; a label that is no number, or a picture that is not there (named).
    """
    if str(source) == "sample:numbers":
        return strings(2000, 400)
    if str(source).startswith("sample:"):
        raise DataError(f"{source}: the bundled numbers are sample:numbers")
    path = Path(source)
    if (path / "train" / "digitStruct.mat").is_file():
        train = read_svhn(path / "train")
        train += read_svhn(path / "extra") if (path / "extra" / "digitStruct.mat").is_file() else []
        if (path / "test" / "digitStruct.mat").is_file():
            return HouseNumbers(train, read_svhn(path / "test"), str(path))
        rows = train
    elif (path / "digitStruct.mat").is_file():
        rows = read_svhn(path)
    else:
        tables = (
            [path]
            if path.is_file()
            else sorted(p for p in path.glob("*") if p.suffix.lower() in KINDS)
            if path.is_dir()
            else []
        )
        if len(tables) != 1:
            raise DataError(
                f"{path} holds no numbers: expected SVHN's digitStruct.mat, or one table ({', '.join(KINDS)}) of pictures and numbers"
            )
        rows = _of_table(tables[0])
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
    if len(rows) < 2:
        raise DataError(f"{path} holds {len(rows)} picture; at least two are needed to hold one out")
    order = np.random.default_rng(seed).permutation(len(rows))
    held = set(order[: max(1, round(val_fraction * len(rows)))].tolist())
    train, val = ([r for i, r in enumerate(rows) if (i in held) is part] for part in (False, True))
    return HouseNumbers(train, val, str(path))
