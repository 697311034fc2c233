"""ImageNet's validation pictures in every layout that people keep them in, ImageNet-V2, and the ReaL labels.

Which class a picture belongs to is where evaluations go wrong without a word: the root given instead of ``val``, a flat ``val``
without labels, the development kit's own class numbers taken for the models', ``0`` to ``999`` sorted as text. Each of these is
either read rightly or named before anything runs. The order of classes is that of the sorted WordNet identifiers throughout.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from offprint.data import samples
from offprint.data.reading import EXTENSIONS, read_picture
from offprint.errors import DataError, need

PICTURES = {"imagenet-1k": 50_000, "imagenet-real": 50_000, "imagenet-v2": 10_000}  # of the whole sets
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})", re.I)
_TRAIN = re.compile(r"(n\d{8})_\d+", re.I)
_TRUTH = (
    "ILSVRC2012_validation_ground_truth.txt", "val.txt", "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt",
    "val_labels.txt", "validation_ground_truth.txt", "labels.txt",
)  # fmt: skip


@cache
def synsets() -> tuple[str, ...]:
    """The 1,000 WordNet identifiers, in the order of the classes."""
    return tuple(samples.path("imagenet_synsets.txt").read_text().split())


@cache
def _number() -> dict[str, int]:
    return {name: i for i, name in enumerate(synsets())}


@dataclass
class Labelled(Dataset):
    """Pictures with their classes.

    Args:
        names: of the pictures, as they are told in messages.
        labels: the class of each; several where any of them counts as right (ReaL), none where a picture is not judged.
        load: the bytes or the path of picture ``i``.
        how: how the labels were found, in words.
        whole: whether this is the whole set.
        missing: names of pictures that the whole set has and that are not here, and of those that cannot be read.
        transform: applied to each RGB picture.
    """

    names: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    load: Callable[[int], bytes | Path]
    how: str
    whole: bool = True
    missing: list[str] = field(default_factory=list)
    transform: Callable | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int):
        found = self.load(index)
        try:
            image = read_picture(found, name=self.names[index], as_stored=True)
        except DataError as error:
            raise DataError(f"{error}; fetch it again") from error
        return (self.transform(image) if self.transform else image), index

    def chosen(self, at: Sequence[int]) -> Labelled:
        """These pictures only, in this order."""
        load = self.load
        return replace(
            self, names=[self.names[i] for i in at], labels=[self.labels[i] for i in at], load=lambda k: load(at[k])
        )

    def some(self, count: int) -> Labelled:
        """``count`` pictures spread evenly over the set; not whole."""
        at = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)).tolist()
        return self if len(at) == len(self) else replace(self.chosen(at), whole=False)

    @property
    def digest(self) -> str:
        """Over names and labels, whatever the layout: the pictures themselves are not read for it."""
        rows = sorted(
            f"{Path(n).stem}:{','.join(map(str, sorted(lab)))}" for n, lab in zip(self.names, self.labels, strict=True)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _find_val(root: Path) -> Path:
    """The folder of the validation pictures under what was given."""
    for inner in ("val", "validation", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "ILSVRC2012_img_val", "data"):
        if (root / inner).is_dir():
            return _find_val(root / inner)
    inside = _folders(root)
    if len(inside) == 1 and not _pictures(root) and not _known_class(inside[0].name):
        return _find_val(inside[0])
    return root


def _known_class(name: str) -> bool:
    return name in _number() or (name.isdigit() and int(name) < 1000)


def open_imagenet(source: str | Path, which: str = "imagenet-1k", *, truth: str | Path | None = None) -> Labelled:
    """Open the validation pictures of ImageNet-1K, or ImageNet-V2, or the former with the ReaL labels.

    Args:
        source: a folder: of 1,000 synset folders; of the pictures themselves with a ground-truth file in it or beside it; of
            Parquet files (columns ``image`` and ``label``, as on the Hugging Face hub); for V2, of folders ``0`` to ``999``. The
            root above ``val`` serves as well.
        which: ``imagenet-1k``, ``imagenet-v2`` or ``imagenet-real``.
        truth: the ground-truth file where it lies elsewhere; for ReaL, ``real.json`` (or ``.json.gz``).

    Raises:
        DataError: what was given is not that set, or its labels cannot be told; the message says why.
    """
    root = Path(source).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder at {str(source)!r}; give the folder of ImageNet's validation pictures")
    if which == "imagenet-real":
        return _real(root, truth)
    tables = (
        sorted(root.rglob("validation*.parquet"))
        or sorted(root.rglob("val*.parquet"))
        or sorted(root.glob("*.parquet"))
    )
    found = _parquet(tables) if tables else _in_folders(_find_val(root), root, truth, which)
    if which == "imagenet-1k":
        found = _complete(found)
    elif len(found) != PICTURES[which]:
        found.whole = False
    if not len(found):
        raise DataError(f"no pictures under {root}")
    return found


def _in_folders(folder: Path, root: Path, truth, which: str) -> Labelled:
    inside = _folders(folder)
    if not inside or (_pictures(folder) and not all(_known_class(f.name) for f in inside)):
        return _flat(folder, root, truth)
    names = [f.name for f in inside]
    if all(n in _number() for n in names):
        index, how = _number(), "synset folders"
    elif all(n.isdigit() for n in names) and max(map(int, names)) < 1000:
        index, how = {n: int(n) for n in names}, "folders named 0 to 999, as numbers"
        if which == "imagenet-1k":
            how += " (the models' class numbers)"
    elif all(n.isdigit() for n in names) and min(map(int, names)) == 1 and max(map(int, names)) == 1000:
        raise DataError(
            f"{folder} has folders 1 to 1000: those are the development kit's own class numbers, in another order than the models'. "
            "Sort the pictures into synset folders, or give the flat folder with ILSVRC2012_validation_ground_truth.txt and meta.mat"
        )
    else:
        odd = [n for n in names if n not in _number()]
        raise DataError(
            f"{folder} has {len(names)} folders, and these are no synsets of ImageNet-1K: {', '.join(odd[:5])}"
            f"{', ...' if len(odd) > 5 else ''}; give a folder of synset folders (n01440764, ...), a flat folder with a ground-truth "
            "file, or Parquet files"
        )
    paths, labels = [], []
    for inner in inside:
        for path in _pictures(inner):
            paths.append(path)
            labels.append((index[inner.name],))
    train = sum(bool(_TRAIN.match(p.stem)) for p in paths[:200])
    if which == "imagenet-1k" and train > 100:
        raise DataError(
            f"{folder} holds training pictures ({paths[0].name}); the claim is about the validation part, whose pictures are called "
            "ILSVRC2012_val_00000001.JPEG and so on"
        )
    if which == "imagenet-v2" and any(_VAL.match(p.stem) for p in paths[:50]):
        raise DataError(f"{folder} holds ImageNet-1K's validation pictures ({paths[0].name}), not ImageNet-V2's")
    return Labelled([str(p.relative_to(folder)) for p in paths], labels, lambda i: paths[i], how)


def _flat(folder: Path, root: Path, truth) -> Labelled:
    paths = _pictures(folder)
    if not paths:
        raise DataError(
            f"{folder} holds neither pictures nor folders of classes; give the folder of ImageNet's validation pictures"
        )
    if not any(_VAL.match(p.stem) for p in paths):
        raise DataError(
            f"{folder} holds pictures without folders of classes, and their names ({paths[0].name}) are not ImageNet's "
            "(ILSVRC2012_val_00000001.JPEG), so nothing tells their classes"
        )
    file = Path(truth) if truth else _truth_file(folder, root)
    if file is None:
        raise DataError(
            f"{folder} holds {len(paths)} pictures that are not sorted into classes, and no ground-truth file is in it or beside it; put "
            f"one of {', '.join(_TRUTH[:4])} there, or sort the pictures into synset folders"
        )
    label_of, how = _truth(file)
    labels, unknown = [], []
    for path in paths:
        match = _VAL.match(path.stem)
        label = label_of.get(int(match[1])) if match else None
        if label is None:
            unknown.append(path.name)
        labels.append(() if label is None else (label,))
    if unknown:
        raise DataError(f"{file} says nothing of {len(unknown)} pictures of {folder}: {', '.join(unknown[:5])}")
    return Labelled([p.name for p in paths], labels, lambda i: paths[i], how)


def _truth_file(folder: Path, root: Path) -> Path | None:
    for place in (
        folder,
        folder.parent,
        root,
        root / "data",
        root / "ILSVRC2012_devkit_t12" / "data",
        folder.parent / "devkit" / "data",
    ):
        for name in _TRUTH:
            if (place / name).is_file():
                return place / name
    return None


def _truth(file: Path) -> tuple[dict[int, int], str]:
    """Number of the validation picture → class, of any of the ground-truth files in use."""
    if not file.is_file():
        raise DataError(f"no ground-truth file at {file}")
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if file.suffix == ".csv":
        rows = {r["ImageId"]: r["PredictionString"].split()[0] for r in csv.DictReader(lines)}
        return _by_name(file, rows, "Kaggle's table")
    first = lines[0].split()
    if len(first) == 2 and _VAL.match(Path(first[0]).stem):
        rows = dict(line.split()[:2] for line in lines)
        if all(v.isdigit() for v in rows.values()):
            return _numbers(file, {k: int(v) for k, v in rows.items()})
        return _by_name(file, rows, "a list of names and synsets")
    if first[0] in _number():
        return {i: _number()[name] for i, name in enumerate(lines, 1)}, f"{file.name}, a synset a line"
    if all(line.isdigit() for line in lines):
        return _devkit(file, [int(line) for line in lines])
    raise DataError(f"{file} is not a ground-truth file that is known here; its first line is {lines[0][:60]!r}")


def _by_name(file: Path, rows: dict[str, str], what: str) -> tuple[dict[int, int], str]:
    wrong = [v for v in rows.values() if v not in _number()]
    if wrong:
        raise DataError(f"{file} names classes that are not of ImageNet-1K: {', '.join(sorted(set(wrong))[:5])}")
    numbered = {Path(k).stem: v for k, v in rows.items()}
    return {int(m[1]): _number()[v] for k, v in numbered.items() if (m := _VAL.match(k))}, f"{file.name}, {what}"


def _numbers(file: Path, rows: dict[str, int]) -> tuple[dict[int, int], str]:
    if max(rows.values()) > 999:
        raise DataError(
            f"{file} numbers the classes up to {max(rows.values())}: counted from 1 they may be the development kit's own numbers, which "
            "are in another order than the models'; give ILSVRC2012_validation_ground_truth.txt with meta.mat, or a file of synsets"
        )
    return {
        int(m[1]): v for k, v in rows.items() if (m := _VAL.match(Path(k).stem))
    }, f"{file.name}, class numbers from 0"


def _devkit(file: Path, numbers: list[int]) -> tuple[dict[int, int], str]:
    """The development kit's ground truth: its numbers are its own and mean synsets only together with ``meta.mat``."""
    if min(numbers) < 1 or max(numbers) > 1000:
        return {i: n for i, n in enumerate(numbers, 1)}, f"{file.name}, class numbers from 0"
    meta = next((p for p in (file.with_name("meta.mat"), file.parent / "data" / "meta.mat") if p.is_file()), None)
    if meta is None:
        raise DataError(
            f"{file} numbers the classes from 1 in the development kit's own order, which is not the models'. Put the kit's meta.mat "
            "beside it (it says which number is which synset), or use a file of synsets"
        )
    from scipy.io import loadmat

    rows = loadmat(meta, squeeze_me=True)["synsets"]
    name_of = {int(r["ILSVRC2012_ID"]): str(r["WNID"]) for r in rows if str(r["WNID"]) in _number()}
    absent = sorted(set(numbers) - set(name_of))
    if absent:
        raise DataError(
            f"{meta} has no synset for the class numbers {absent[:5]} of {file.name}; they belong to different releases"
        )
    return {i: _number()[name_of[n]] for i, n in enumerate(numbers, 1)}, f"{file.name} through {meta.name}"


def _parquet(files: list[Path]) -> Labelled:
    need("pyarrow", "curation", "reading Parquet files")
    import pyarrow.parquet as pq

    names: list[str] = []
    labels: list[tuple[int, ...]] = []
    places: list[tuple[Path, int, int]] = []
    for file in files:
        handle = pq.ParquetFile(file)
        columns = handle.schema_arrow.names
        label = next((c for c in ("label", "labels", "cls") if c in columns), None)
        image = next((c for c in ("image", "img", "jpg") if c in columns), None)
        if label is None or image is None:
            raise DataError(f"{file} has the columns {', '.join(columns)}; an image and a label column are needed")
        for group in range(handle.num_row_groups):
            values = handle.read_row_group(group, columns=[label])[label].to_pylist()
            places += [(file, group, row) for row in range(len(values))]
            labels += [(int(v),) for v in values]
            pathed = handle.schema_arrow.field(image).type
            inner = [pathed.field(i).name for i in range(pathed.num_fields)] if hasattr(pathed, "num_fields") else []
            if "path" in inner:
                paths = handle.read_row_group(group, columns=[f"{image}.path"])[image].to_pylist()
                names += [(p or {}).get("path") or f"{file.name}#{len(names) + k}" for k, p in enumerate(paths)]
            else:
                names += [f"{file.name}#{group}.{k}" for k in range(len(values))]
    if labels and (max(lab[0] for lab in labels) > 999 or min(lab[0] for lab in labels) < 0):
        raise DataError(
            f"{files[0].parent}: labels run from {min(labels)[0]} to {max(labels)[0]}; ImageNet-1K's are 0 to 999"
        )

    @lru_cache(maxsize=1)
    def column(file: Path, group: int):
        return pq.ParquetFile(file).read_row_group(group, columns=[image])[image]

    def load(i: int) -> bytes:
        file, group, row = places[i]
        cell = column(file, group)[row].as_py()
        return cell["bytes"] if isinstance(cell, dict) else cell

    return Labelled(names, labels, load, "the label column of Parquet files")


def _complete(found: Labelled) -> Labelled:
    """Whether all validation pictures are there; those that are not are listed."""
    expected, numbers = PICTURES["imagenet-1k"], [m for n in found.names if (m := _VAL.search(n))]
    if len(numbers) == len(found):
        there = {int(m[1]) for m in numbers}
        found.missing = [f"ILSVRC2012_val_{i:08d}" for i in range(1, expected + 1) if i not in there]
        found.whole = not found.missing and len(found) == expected
    else:
        found.whole = len(found) == expected
    if found.whole:
        uneven = [c for c, n in Counter(lab[0] for lab in found.labels).items() if n != expected // 1000]
        if uneven and expected >= 1000:
            raise DataError(
                f"{len(uneven)} classes do not have {expected // 1000} pictures each (class {uneven[0]}, say): the labels "
                f"({found.how}) are not those of the validation part"
            )
    return found


def _real(root: Path, truth) -> Labelled:
    """The validation pictures under the ReaL labels: any of a picture's classes is right, pictures without one are not judged."""
    places = [Path(truth)] if truth else [d / n for d in (root, root.parent) for n in ("real.json", "real.json.gz")]
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise DataError(
            f"no real.json in {root} or beside it; it comes with github.com/google-research/reassessed-imagenet"
        )
    raw = file.read_bytes()
    labels = json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)
    tables = sorted(root.rglob("validation*.parquet")) or sorted(root.glob("*.parquet"))
    if tables:
        found = _parquet(tables)
    else:
        folder = _find_val(root)
        paths = sorted(
            (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and _VAL.match(p.stem)),
            key=lambda p: p.name,
        )
        if not paths:
            raise DataError(
                f"{folder} holds no pictures of the names ILSVRC2012_val_00000001.JPEG, by which ReaL labels them"
            )
        found = Labelled([p.name for p in paths], [()] * len(paths), lambda i: paths[i], "")
    numbers = [_VAL.search(n) for n in found.names]
    if not all(numbers):
        raise DataError(
            "the pictures' names do not tell their numbers, by which ReaL labels them; use the original files"
        )
    chosen = [int(m[1]) - 1 for m in numbers if m]
    if chosen and max(chosen) >= len(labels):
        raise DataError(f"{file} has {len(labels)} rows, and there is a picture number {max(chosen) + 1}")
    found.labels, found.how = [tuple(labels[i]) for i in chosen], f"{file.name}"
    there = {i + 1 for i in chosen}
    found.missing = [f"ILSVRC2012_val_{i:08d}" for i in range(1, PICTURES["imagenet-real"] + 1) if i not in there]
    found.whole = not found.missing and len(found) == PICTURES["imagenet-real"]
    return found
