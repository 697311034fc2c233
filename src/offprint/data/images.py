"""Image classification data: a folder, torchvision's named sets, and the bundled samples, all through :func:`open_images`."""

from __future__ import annotations

import gzip
import tarfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from offprint.data.home import data_dir
from offprint.data.hub import HubImages, load_hub
from offprint.data.pixels import cifar10, digits
from offprint.data.reading import EXTENSIONS, read_picture
from offprint.data.shards import ShardImages, is_shards
from offprint.data.tables import KINDS as TABLES
from offprint.data.tables import Table, TableImages
from offprint.errors import DataError, unknown
from offprint.files import local_path, scheme


class ImageSplits(NamedTuple):
    """Training and validation images, and the names of the classes."""

    train: Dataset
    val: Dataset
    classes: list[str]
    name: str


class ArrayImages(Dataset):
    """Images in memory: (N, H, W, C) or (N, H, W) uint8, labels (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform=None):
        self.images, self.targets, self.transform = images, [int(v) for v in labels], transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images[index]).convert("RGB")
        return (self.transform(image) if self.transform else image), self.targets[index]


class ImageFolder(Dataset):
    """A folder with one sub-folder per class.

    Args:
        root: the folder.
        transform: applied to each RGB picture.
        on_error: what a picture that cannot be read does: ``"stop"`` raises naming the file; ``"skip"`` warns, naming it,
            and gives the next picture in its place.

    Raises:
        DataError: no such folder, no pictures, or fewer than two classes.
    """

    def __init__(self, root: str | Path, transform=None, on_error: str = "stop"):
        root = Path(root)
        if on_error not in ("stop", "skip"):
            raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
        if not root.is_dir():
            raise DataError(f"no folder at {str(root)!r}; give a folder with one sub-folder of pictures per class")
        folders = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
        files = {
            d.name: sorted(p for p in d.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()) for d in folders
        }
        filled = {name: found for name, found in files.items() if found}
        if not filled:
            raise DataError(
                f"{root} holds no pictures in sub-folders ({len(folders)} sub-folders, extensions looked for: {' '.join(EXTENSIONS)}); "
                "expected ROOT/CLASS/picture.jpg"
            )
        if len(filled) < 2:
            raise DataError(
                f"{root} holds pictures of one class only ({next(iter(filled))!r}); a classifier needs at least two"
            )
        if len(filled) < len(files):
            empty = [n for n in files if n not in filled]
            raise DataError(f"{root}: no pictures for {', '.join(empty[:5])}; remove the empty folders or fill them")
        self.root, self.transform, self.on_error = root, transform, on_error
        self.classes = list(filled)
        self.samples = [(p, i) for i, name in enumerate(self.classes) for p in filled[name]]
        self.targets = [i for _, i in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Image.Image:
        file = self.samples[index][0]
        try:
            return read_picture(file)
        except DataError as error:
            raise DataError(f"{error}; mend or remove it, or pass on_error='skip' (--on-error skip)") from error

    def __getitem__(self, index: int):
        for step in range(len(self.samples)):
            at = (index + step) % len(self.samples)
            try:
                image = self.read(at)
            except DataError as error:
                if self.on_error == "stop":
                    raise
                warnings.warn(f"skipped: {error}", stacklevel=2)
                continue
            return (self.transform(image) if self.transform else image), self.targets[at]
        raise DataError(f"{self.root}: not one of its {len(self.samples)} pictures could be read")


class Skipping(Dataset):
    """A data set in whose place of a picture that cannot be read stands the next one that can, with a warning that names it."""

    def __init__(self, base: Dataset):
        self.base, self.targets, self.classes = base, base.targets, base.classes

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int):
        for step in range(len(self)):
            try:
                return self.base[(index + step) % len(self)]
            except DataError as error:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise DataError(f"not one of the {len(self)} pictures could be read")


class Subset(Dataset):
    """Some indices of a data set, with a transform of its own."""

    def __init__(self, base: Dataset, indices, transform=None):
        self.base, self.indices, self.transform = base, [int(i) for i in indices], transform
        self.targets = [int(base.targets[i]) for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        image, label = self.base[self.indices[index]]
        return (self.transform(image) if self.transform else image), label


class Seeded(Dataset):
    """Makes each epoch's random augmentation a function of (seed, epoch, index) alone.

    An item is asked for by ``epoch * len + index`` (see :class:`EpochSampler`), so the picture that comes back does not
    depend on the worker, on what was drawn before, or on whether the run was interrupted.
    """

    def __init__(self, base: Dataset, seed: int = 0):
        self.base, self.seed = base, seed

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, key: int):
        epoch, index = divmod(key, len(self.base))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + epoch) * 2_147_483_629 + index & 0x7FFFFFFFFFFFFFFF)
            return self.base[index]


class EpochSampler(Sampler[int]):
    """A shuffle that depends on (seed, epoch) alone, dealt out to ``world`` processes.

    Args:
        length: items in the data set.
        epoch: number of the epoch, from 0.
        seed: of the whole run.
        rank, world: this process among all; the tail is filled up so that all get the same number.
    """

    def __init__(self, length: int, epoch: int, seed: int = 0, rank: int = 0, world: int = 1):
        self.length, self.epoch, self.seed, self.rank, self.world = length, epoch, seed, rank, world

    def __len__(self) -> int:
        return -(-self.length // self.world)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        order += order[: len(self) * self.world - self.length]
        return iter([self.epoch * self.length + i for i in order[self.rank :: self.world]])


def _named() -> dict[str, tuple[str, dict, dict]]:
    """Name → (torchvision class, arguments for training, arguments for test)."""
    both = ({"train": True}, {"train": False})
    split = ({"split": "train"}, {"split": "test"})
    return {
        "mnist": ("MNIST", *both),
        "fashionmnist": ("FashionMNIST", *both),
        "kmnist": ("KMNIST", *both),
        "cifar10": ("CIFAR10", *both),
        "cifar100": ("CIFAR100", *both),
        "svhn": ("SVHN", *split),
        "stl10": ("STL10", *split),
        "food101": ("Food101", *split),
        "flowers102": ("Flowers102", *split),
        "dtd": ("DTD", *split),
        "eurosat": ("EuroSAT", {}, {}),
        "pets": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
        "aircraft": ("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    }


def _open_named(name: str) -> tuple[Dataset, Dataset, list[str]]:
    import torchvision

    cls, train, test = _named()[name]
    make = getattr(torchvision.datasets, cls)
    packed = [d / "MNIST" / "raw" for d in (data_dir() / "mnist", data_dir())]
    found = next((d for d in packed if (d / "train-images-idx3-ubyte.gz").is_file()), None)
    if name == "mnist" and found is not None:
        return *(ArrayImages(*read_idx(found, part)) for part in ("train", "t10k")), [str(i) for i in range(10)]
    tar = data_dir() / "cifar10-jpeg" / "cifar10-jpeg.tar.xz"
    if name == "cifar10" and tar.is_file():
        return _open_cifar_tar(tar)
    roots = [data_dir() / name, data_dir()]
    sets = []
    for arguments in (train, test):
        for root in roots:
            try:
                sets.append(make(str(root), download=False, **arguments))
                break
            except (RuntimeError, FileNotFoundError, OSError):
                continue
        else:
            try:
                sets.append(make(str(roots[0]), download=True, **arguments))
            except Exception as error:
                raise DataError(
                    f"{name} is not under {roots[0]} and could not be fetched ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
                    f"set OFFPRINT_DATA to a folder that holds it, or try the bundled sample: --data sample:mnist or sample:cifar10"
                ) from error
    for data in sets:
        data.targets = [int(t) for t in getattr(data, "targets", getattr(data, "labels", getattr(data, "_labels", [])))]
    classes = list(getattr(sets[0], "classes", [])) or [str(c) for c in sorted(set(sets[0].targets))]
    if name == "eurosat":
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(sets[0]), generator=generator).tolist()
        cut = int(0.8 * len(order))
        return Subset(sets[0], order[:cut]), Subset(sets[0], order[cut:]), classes
    return sets[0], sets[1], classes


def read_idx(folder: str | Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W) uint8 and labels of ``PART-images-idx3-ubyte`` and ``PART-labels-idx1-ubyte``, gzipped or not."""
    arrays = []
    for stem in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = Path(folder) / stem
        zipped = path.with_name(f"{stem}.gz")
        try:
            raw = path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())
            axes = raw[3]
            shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i]) for i in range(axes)]
            # a copy, since memory of bytes cannot be written
            arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise DataError(f"{path} (or .gz) cannot be read as IDX: {error}") from error
    return arrays[0], arrays[1]


def _open_cifar_tar(path: Path) -> tuple[Dataset, Dataset, list[str]]:
    arrays: dict[str, list] = {"train": [], "test": []}
    labels: dict[str, list] = {"train": [], "test": []}
    with tarfile.open(path) as archive:
        for member in archive:
            parts = member.name.split("/")[-3:]
            if member.isfile() and parts[0] in arrays:
                arrays[parts[0]].append(np.asarray(read_picture(archive.extractfile(member).read(), name=member.name)))
                labels[parts[0]].append(parts[1])
    classes = sorted(set(labels["train"]))
    sets = [
        ArrayImages(np.stack(arrays[s]), np.array([classes.index(n) for n in labels[s]])) for s in ("train", "test")
    ]
    return sets[0], sets[1], classes


def open_images(source: str | Path, *, val_fraction: float = 0.2, seed: int = 0, on_error: str = "stop") -> ImageSplits:
    """Open image classification data.

    Args:
        source: ``sample:mnist`` or ``sample:cifar10`` (bundled); a name of torchvision (``mnist``, ``cifar10``, ...,
            fetched once into ``OFFPRINT_DATA`` or the cache); a folder: ``ROOT/CLASS/*.jpg``, or
            ``ROOT/train/CLASS`` with ``ROOT/val/CLASS`` (or ``test``); a CSV or Parquet table with a column of files (``image``, ``path``)
            and one of classes (``label``), and if there is one ``split``; tar shards, ``train-{000..127}.tar``; or ``hf://owner/name``, a
            data set of the Hugging Face hub.
        val_fraction: share held out per class, where the data has no split of its own.
        seed: of that split.
        on_error: ``"stop"`` or ``"skip"`` for pictures that cannot be read.

    Raises:
        DataError: nothing usable at ``source``.
    """
    name = str(source)
    if name.startswith("sample:"):
        which = name.removeprefix("sample:")
        if which == "cifar10":
            return ImageSplits(
                ArrayImages(*cifar10(True)[:2]), ArrayImages(*cifar10(False)[:2]), cifar10(True)[2], name
            )
        if which == "mnist":
            names = [str(i) for i in range(10)]
            return ImageSplits(ArrayImages(*digits(True)), ArrayImages(*digits(False)), names, name)
        raise unknown("bundled image sample", which, ["mnist", "cifar10"])
    if name.lower() in _named() and not Path(name).is_dir():
        train, val, classes = _open_named(name.lower())
        return ImageSplits(train, val, classes, name.lower())
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
    listed = is_shards(name) or name.lower().endswith(TABLES)
    if scheme(name) == "hf" and not listed:
        return _of_hub(name, val_fraction, seed, on_error)
    if listed:
        data, split = _listed(source)
        data = Skipping(data) if on_error == "skip" else data
        parts = [
            [i for i, part in enumerate(split) if part in names]
            for names in (("train",), ("val", "valid", "validation", "test"))
        ]
        if all(parts):
            return ImageSplits(Subset(data, parts[0]), Subset(data, parts[1]), data.classes, name)
        return _held_out(data, data.classes, name, val_fraction, seed)
    root = local_path(source, "a data set")
    if not root.is_dir():
        known = [*_named(), "sample:mnist", "sample:cifar10"]
        raise DataError(
            f"no folder at {name!r}, and not a known data set; give a folder of class folders, or one of: {', '.join(known)}"
        )
    if (root / "train").is_dir():
        other = next((root / n for n in ("val", "valid", "validation", "test") if (root / n).is_dir()), None)
        train = ImageFolder(root / "train", on_error=on_error)
        if other is not None:
            val = ImageFolder(other, on_error=on_error)
            if val.classes != train.classes:
                extra = sorted(set(val.classes) ^ set(train.classes))
                raise DataError(f"{root}/train and {other} have different classes: {', '.join(extra[:8])}")
            return ImageSplits(train, val, train.classes, name)
    else:
        train = ImageFolder(root, on_error=on_error)
    return _held_out(train, train.classes, name, val_fraction, seed)


def _of_hub(address: str, val_fraction: float, seed: int, on_error: str) -> ImageSplits:
    """A hub's data set: its ``train`` split (or its only one) and, where there is one, its validation or test split."""
    found = load_hub(address)
    first = found.get("train", next(iter(found.values())))
    other = next(
        (found[n] for n in ("validation", "valid", "val", "test") if n in found and found[n] is not first), None
    )
    wrap = Skipping if on_error == "skip" else lambda data: data
    train = wrap(HubImages(first, address))
    if other is None:
        return _held_out(train, train.classes, address, val_fraction, seed)
    val = wrap(HubImages(other, address))
    if val.classes != train.classes:
        raise DataError(f"the splits of {address} have different classes")
    return ImageSplits(train, val, train.classes, address)


def _listed(source: str | Path):
    """Pictures that shards hold or a table lists, and the split of each, ``""`` where none is said."""
    if is_shards(source):
        data = ShardImages(source)
        return data, [""] * len(data)
    table = Table(source)
    column = next((c for c in table.columns if c.lower() == "split"), None)
    return TableImages(table), [""] * len(table) if column is None else [str(v).lower() for v in table.column(column)]


def _held_out(train, classes: list[str], name: str, val_fraction: float, seed: int) -> ImageSplits:
    """A share of each class for validation."""
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
    generator = np.random.default_rng(seed)
    held: list[int] = []
    targets = np.array(train.targets)
    for label in range(len(classes)):
        members = generator.permutation(np.flatnonzero(targets == label))
        if len(members) < 2:
            raise DataError(
                f"{name}: class {classes[label]!r} has one picture; at least two are needed to hold one out"
            )
        held += members[: max(1, round(val_fraction * len(members)))].tolist()
    rest = sorted(set(range(len(train))) - set(held))
    return ImageSplits(Subset(train, rest), Subset(train, sorted(held)), classes, name)


def check_labels(targets, num_classes: int) -> None:
    """Refuse labels outside 0 .. num_classes-1, naming the first."""
    for index, label in enumerate(targets):
        if not 0 <= int(label) < num_classes:
            raise DataError(
                f"item {index} has the label {label}, outside 0 to {num_classes - 1}; "
                f"build the model with num_classes={int(max(targets)) + 1} or mend the labels"
            )
