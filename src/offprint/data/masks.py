"""Pictures with a class for every pixel: folders of pictures and masks, Pascal VOC's layout, Cityscapes'.

A mask is a picture of class numbers (grey or palette), or of colours, one per class. What its numbers or colours mean is read from
``classes.txt`` beside the pictures, a line per class: its name, and where masks are coloured three numbers from 0 to 255.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from offprint.data.reading import EXTENSIONS, read_picture
from offprint.errors import DataError

MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif")
IGNORE = 255
_IMAGES, _LABELS = (
    ("images", "image", "imgs", "JPEGImages"),
    ("masks", "mask", "labels", "annotations", "SegmentationClass"),
)
_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa "
    "train tvmonitor"
).split()
CITYSCAPES = {  # name: (id in *_labelIds, colour)
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)), "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)), "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)), "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)), "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)), "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
Colour = tuple[int, int, int]


def colour_of(index: int) -> Colour:
    """Pascal VOC's colour of a class: the bits of its number, spread over three channels."""
    r = g = b = 0
    for shift in range(8):
        r |= (index & 1) << (7 - shift)
        g |= (index >> 1 & 1) << (7 - shift)
        b |= (index >> 2 & 1) << (7 - shift)
        index >>= 3
    return r, g, b


@dataclass(frozen=True)
class Classes:
    """What the values of masks mean.

    Attributes:
        names: of the classes, by number.
        colours: of the classes: those of coloured masks, else Pascal VOC's.
        ignore: value of pixels that count for nothing.
        values: value in the files → class, where they differ (``None``: they are the same).
        coloured: whether masks are pictures of the colours.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    ignore: int = IGNORE
    values: tuple[tuple[int, int], ...] | None = None
    coloured: bool = False

    def __len__(self) -> int:
        return len(self.names)


def read_mask(file: str | Path, classes: Classes | None = None) -> np.ndarray:
    """Class numbers (H, W) of a mask, as stored; with ``classes`` they are translated and checked.

    Raises:
        DataError: not a mask, or it holds a value that is no class.
    """
    try:
        with Image.open(file) as image:
            image.load()
            coloured = image.mode in ("RGB", "RGBA", "CMYK")
            array = np.array(image.convert("RGB") if coloured else image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot read the mask {file}: {error}") from error
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if coloured and (array == array[..., :1]).all() and not (classes is not None and classes.coloured):
        array, coloured = array[..., 0], False  # grey, stored in three equal channels
    if array.ndim == 3 and not coloured:
        array = array[..., 0]  # grey with alpha
    if classes is None:
        return array
    if classes.coloured:
        return _by_colour(array, classes, file)
    if array.ndim == 3:
        raise DataError(
            f"{file} is a coloured mask, and the classes have no colours; write them into classes.txt beside the pictures: NAME R G B, a "
            "line per class"
        )
    array = array.astype(np.int64)
    if classes.values is not None:
        table = np.full(max(int(array.max()), *(v for v, _ in classes.values), classes.ignore) + 1, classes.ignore)
        for value, index in classes.values:
            table[value] = index
        return table[array]
    wrong = np.unique(array[(array >= len(classes)) & (array != classes.ignore)])
    if len(wrong):
        raise DataError(
            f"{file} has the value{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong[:6]))}, and there are {len(classes)} classes "
            f"(0 to {len(classes) - 1}; {classes.ignore} is ignored); correct the mask, name all classes in classes.txt, or give --ignore-index"
        )
    return array


def _by_colour(array: np.ndarray, classes: Classes, file: str | Path) -> np.ndarray:
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    code = (array.astype(np.int64) << np.array([16, 8, 0])).sum(-1)
    known = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in enumerate(classes.colours)}
    out = np.full(code.shape, classes.ignore, np.int64)
    for value in np.unique(code).tolist():
        if value in known:
            out[code == value] = known[value]
        elif value not in (
            0,
            0xFFFFFF,
            0xE0E0C0,
        ):  # black, white and VOC's border stand for nothing where no class has them
            raise DataError(
                f"{file} has the colour ({value >> 16}, {value >> 8 & 255}, {value & 255}), which is none of the {len(classes)} classes; add "
                "it to classes.txt (NAME R G B), or correct the mask (was it saved as JPEG, or resized with interpolation?)"
            )
    return out


class MaskedPictures(Dataset):
    """Pictures and their masks.

    Args:
        pairs: (picture, mask) files.
        classes: what the masks mean.
        transform: called with ``tv_tensors`` of the picture (3, H, W) uint8 and the mask (H, W) int64.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], classes: Classes, transform: Any = None):
        self.pairs, self.classes, self.transform = list(pairs), classes, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture (3, H, W) uint8 and the mask (H, W) int64.

        Raises:
            DataError: one of them cannot be read, or their sizes differ.
        """
        file, labels = self.pairs[index]
        picture, mask = np.array(read_picture(file)), read_mask(labels, self.classes)
        if picture.shape[:2] != mask.shape:
            raise DataError(
                f"{labels} is {mask.shape[1]} x {mask.shape[0]} pixels and its picture {file} {picture.shape[1]} x {picture.shape[0]}; a mask has "
                "the size of its picture"
            )
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)

    def __getitem__(self, index: int):
        from torchvision import tv_tensors

        picture, mask = self.read(index)
        if self.transform is None:
            return picture, mask
        return self.transform(tv_tensors.Image(picture), tv_tensors.Mask(mask))

    def part(self, indices: Sequence[int], transform: Any = None) -> MaskedPictures:
        """Some of them, with another transform."""
        return MaskedPictures([self.pairs[i] for i in indices], self.classes, transform)


@dataclass(frozen=True)
class MaskSplits:
    """Pictures with masks to learn from and to be judged by.

    Attributes:
        own: whether the data have a split of their own (otherwise the validation part was drawn).
        notes: what was found out about the data.
    """

    train: MaskedPictures
    val: MaskedPictures
    name: str
    own: bool = False
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> Classes:
        return self.train.classes

    @property
    def digest(self) -> str:
        """Of the classes and of the files' names and sizes."""
        told = [
            *map(str, self.classes.names),
            *(f"{p.name} {m.stat().st_size}" for d in (self.train, self.val) for p, m in d.pairs),
        ]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]

    def with_validation(self, held: Sequence[str]) -> MaskSplits:
        """The same pictures with these (paths) held out; unchanged where the data have a split of their own."""
        if self.own:
            return self
        wanted, pairs = set(held), sorted({*self.train.pairs, *self.val.pairs})
        inside = [str(p.absolute()) in wanted for p, _ in pairs]
        if not any(inside) or all(inside):
            return self
        parts = (
            [pair for pair, held_out in zip(pairs, inside, strict=True) if held_out is side] for side in (False, True)
        )
        train, val = (MaskedPictures(part, self.classes) for part in parts)
        return replace(self, train=train, val=val)


def open_masks(
    source: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    classes: str = "",
    ignore_index: int = IGNORE,
    on_error: str = "stop",
) -> MaskSplits:
    """Open pictures with masks.

    Args:
        source: a folder with ``images/`` and ``masks/`` (files of like names), whole or in ``train`` and ``val``; Pascal VOC's
            (``JPEGImages``, ``SegmentationClass``, ``ImageSets``); Cityscapes' (``leftImg8bit``, ``gtFine``).
        val_fraction: share held out where the data have no split of their own.
        seed: of that draw.
        classes: names of the classes, with commas between them, or a file of them; by default ``classes.txt`` in the folder, else they are
            numbered.
        ignore_index: value of pixels that count for nothing.
        on_error: ``skip`` leaves out pictures without a mask, masks that cannot be read and those of another size; ``stop`` names them.

    Raises:
        DataError: no such folder or layout, pictures without masks, masks of other sizes, values that are no class.
    """
    root = Path(source)
    if not root.is_dir():
        raise DataError(f"no folder at {str(source)!r}; give one with images/ and masks/")
    found = _voc(root) or _cityscapes(root) or _plain(root)
    if found is None:
        raise DataError(
            f"{root} holds no pictures with masks; expected {root.name}/images/NAME.jpg with {root.name}/masks/NAME.png (or both inside train/ "
            "and val/), Pascal VOC's folders, or Cityscapes'"
        )
    parts, known = found
    pairs, notes = {}, []
    for part, (images, masks) in parts.items():
        pairs[part], left = _matched(images, masks, on_error)
        notes += left
    meaning = (
        known
        if known is not None and not classes
        else _meaning(root, classes, ignore_index, [m for p in pairs.values() for _, m in p])
    )
    whole = {part: MaskedPictures(files, meaning) for part, files in pairs.items()}
    for part, data in whole.items():
        whole[part], left = _checked(data, on_error)
        notes += left
    if "val" in whole:
        return MaskSplits(whole["train"], whole["val"], root.name, True, tuple(notes))
    data = whole["train"]
    if len(data) < 2 or not 0 < val_fraction < 1:
        raise DataError(
            f"{root} holds {len(data)} pictures and val_fraction is {val_fraction}; give two or more, and a share between 0 and 1"
        )
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    count = min(len(data) - 1, max(1, round(val_fraction * len(data))))
    held = set(order[:count])
    return MaskSplits(
        data.part([i for i in range(len(data)) if i not in held]),
        data.part(sorted(held)),
        root.name,
        False,
        tuple(notes),
    )


# -- layouts ----------------------------------------------------------------------------------------------------------
def _folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / n for n in names if (root / n).is_dir()), None)


def _files(folder: Path, kinds: Sequence[str]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in kinds and p.is_file() and p.name[0] != ".")


def _plain(root: Path):
    """images/ and masks/, whole, with train/ and val/ inside, or inside train/ and val/."""
    parts = {}
    for part, names in _PARTS.items():
        inside = _folder(root, names)
        images, masks = (_folder(inside, n) if inside else None for n in (_IMAGES, _LABELS))
        if images is None or masks is None:
            images, masks = (
                _folder(outer, names) if (outer := _folder(root, n)) is not None else None for n in (_IMAGES, _LABELS)
            )
        if images is not None and masks is not None:
            parts[part] = (_files(images, EXTENSIONS), _files(masks, MASKS))
    if "train" in parts:
        return parts, None
    images, masks = _folder(root, _IMAGES), _folder(root, _LABELS)
    if images is None or masks is None:
        return None
    return {"train": (_files(images, EXTENSIONS), _files(masks, MASKS))}, None


def _voc(root: Path):
    """Pascal VOC, or the folder above it (VOCdevkit/VOC2012)."""
    inner = next(
        (
            p
            for p in (root, *sorted(root.glob("VOC*")))
            if (p / "SegmentationClass").is_dir() and (p / "JPEGImages").is_dir()
        ),
        None,
    )
    if inner is None:
        return None
    parts = {}
    for part in ("train", "val"):
        listed = inner / "ImageSets" / "Segmentation" / f"{part}.txt"
        if listed.is_file():
            names = listed.read_text(encoding="utf-8").split()
            parts[part] = (
                [inner / "JPEGImages" / f"{n}.jpg" for n in names],
                [inner / "SegmentationClass" / f"{n}.png" for n in names],
            )
    known = Classes(tuple(VOC), tuple(colour_of(i) for i in range(len(VOC))))
    if "train" not in parts:
        masks = _files(inner / "SegmentationClass", MASKS)
        parts = {"train": ([inner / "JPEGImages" / f"{m.stem}.jpg" for m in masks], masks)}
    return parts, None if (root / "classes.txt").is_file() else known


def _cityscapes(root: Path):
    """Fine annotations as class ids, of which the nineteen classes of the benchmark count."""
    images, masks = root / "leftImg8bit", root / "gtFine"
    if not images.is_dir() or not masks.is_dir():
        return None
    parts = {}
    for part in ("train", "val"):
        files = sorted((images / part).glob("*/*_leftImg8bit.*"))
        if files:
            labels = [
                masks / part / f.parent.name / f"{f.stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png"
                for f in files
            ]
            parts[part] = (files, labels)
    if "train" not in parts:
        raise DataError(
            f"{root} has Cityscapes' folders, and no pictures in leftImg8bit/train; unpack leftImg8bit_trainvaltest.zip there"
        )
    values = tuple((value, i) for i, (value, _) in enumerate(CITYSCAPES.values()))
    return parts, Classes(tuple(CITYSCAPES), tuple(c for _, c in CITYSCAPES.values()), IGNORE, values)


def _matched(images: Sequence[Path], masks: Sequence[Path], on_error: str) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pictures with the masks of their names; endings such as _mask and _gt are looked through."""
    if len(images) == len(masks) and all(
        i.stem.split("_leftImg8bit")[0] == m.stem.split("_gtFine")[0] for i, m in zip(images, masks, strict=True)
    ):
        by_stem = dict(zip(images, masks, strict=True))
    else:
        ends = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation")
        table = {m.stem: m for m in masks}
        by_stem = {
            i: m
            for i in images
            if (m := next((table[i.stem + e] for e in ends if i.stem + e in table), None)) is not None
        }
    pairs = [(i, m) for i, m in by_stem.items() if i.is_file() and m.is_file()]
    alone = [i for i in images if i not in dict(pairs)]
    if not pairs:
        raise DataError(
            f"none of {len(images)} pictures has a mask of its name (of {len(masks)} masks); {_some(alone)} should have a mask of the same name "
            f"with the ending {', '.join(MASKS)}"
        )
    if alone and on_error != "skip":
        raise DataError(
            f"{len(alone)} pictures have no mask: {_some(alone)}; add them, or pass on_error='skip' (--on-error skip)"
        )
    return pairs, [f"{len(alone)} pictures without a mask left out: {_some(alone)}"] if alone else []


def _some(files: Sequence[Path], most: int = 4) -> str:
    return ", ".join(str(f) for f in files[:most]) + (", ..." if len(files) > most else "")


def _meaning(root: Path, given: str, ignore: int, masks: Sequence[Path]) -> Classes:
    """Names, colours and values of the classes, from what the user says or the masks hold."""
    file = Path(given) if given and Path(given).is_file() else root / "classes.txt"
    if given and not Path(given).is_file():
        rows: list[list[str]] = [[name.strip()] for name in given.split(",") if name.strip()]
    elif file.is_file():
        rows = [
            line.replace(",", " ").split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    else:
        rows = []
    if rows and all(len(r) >= 4 and all(v.isdigit() and int(v) < 256 for v in r[-3:]) for r in rows):
        names, colours = [" ".join(r[:-3]) for r in rows], [(int(r[-3]), int(r[-2]), int(r[-1])) for r in rows]
        coloured = any(read_mask(m).ndim == 3 for m in masks[:20])
        return Classes(tuple(names), tuple(colours), ignore, None, coloured)
    values, colours_seen = _values(masks)
    if colours_seen and values.size == 0 and not rows:
        if len(colours_seen) > 256:
            raise DataError(
                f"the masks have more than {len(colours_seen) - 1} colours; masks are pictures of class numbers or of one colour per class, "
                "without compression or smoothing (PNG, nearest neighbour)"
            )
        found = sorted(colours_seen)
        return Classes(tuple(f"class {i}" for i in range(len(found))), tuple(found), ignore, None, True)
    if colours_seen and rows:
        raise DataError(
            f"the masks are coloured, and {file.name if not given else 'the class names'} give no colours; write NAME R G B, a line per class"
        )
    kept = values[values != ignore] if values.size else values
    binary = values.size and set(values.tolist()) <= {0, 255} and 255 in values.tolist() and len(rows) in (0, 2)
    if binary and ignore in (255,):
        names = [" ".join(r) for r in rows] or ["background", "foreground"]
        return Classes(tuple(names), tuple(colour_of(i) for i in range(2)), -100, ((0, 0), (255, 1)))
    count = len(rows) or int(kept.max(initial=0)) + 1
    if count < 2:
        raise DataError(f"the masks of {root} hold one class only; a segmenter needs at least two")
    names = [" ".join(r) for r in rows] or [f"class {i}" for i in range(count)]
    return Classes(tuple(names), tuple(colour_of(i) for i in range(count)), ignore)


def _values(masks: Sequence[Path]) -> tuple[np.ndarray, set[Colour]]:
    """Numbers and colours that the masks hold (colours: as soon as there are too many to be classes, no more)."""
    numbers: set[int] = set()
    colours: set[Colour] = set()
    for mask in masks:
        array = read_mask(mask)
        if array.ndim == 3:
            colours |= {(int(r), int(g), int(b)) for r, g, b in np.unique(array.reshape(-1, 3), axis=0)}
            if len(colours) > 256:
                break
        else:
            numbers |= set(np.unique(array).tolist())
    return np.array(sorted(numbers)), colours


def _checked(data: MaskedPictures, on_error: str) -> tuple[MaskedPictures, list[str]]:
    """Pictures and masks of one size, all values classes; the others named."""
    wrong: dict[int, str] = {}
    for i, (picture, mask) in enumerate(data.pairs):
        try:
            read_mask(mask, data.classes)
            with Image.open(picture) as a, Image.open(mask) as b:
                turned = a.getexif().get(0x0112, 1) >= 5
                size = a.size[::-1] if turned else a.size
                if size != b.size:
                    raise DataError(
                        f"{mask} is {b.size[0]} x {b.size[1]} pixels and its picture {picture} {size[0]} x {size[1]}; a mask has the size of its picture"
                    )
        except DataError as error:
            wrong[i] = str(error)
        except OSError as error:
            wrong[i] = f"cannot read the picture {picture}: {error}"
    if wrong and on_error != "skip":
        more = (
            f" (and {len(wrong) - 1} more; pass on_error='skip', --on-error skip, to leave them out)"
            if len(wrong) > 1
            else ""
        )
        raise DataError(next(iter(wrong.values())) + more)
    if len(wrong) == len(data):
        raise DataError("not one picture with its mask can be used: " + next(iter(wrong.values())))
    return data.part([i for i in range(len(data)) if i not in wrong]), list(wrong.values())
