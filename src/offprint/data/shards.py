"""Samples in tar files, as WebDataset lays them out, read by the standard library.

The files of one sample stand beside each other in a tar and share their name up to its first dot: ``0001.jpg``, ``0001.cls``. Shards are named
by a pattern with braces, ``train-{000..127}.tar``. :class:`Shards` streams them, from addresses too; :class:`ShardImages` finds any picture of
local shards at once, as training that can be gone on with needs it.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from offprint.data.reading import EXTENSIONS, read_picture
from offprint.errors import DataError
from offprint.files import fetched, filesystem, scheme

_PICTURES = tuple(e[1:] for e in EXTENSIONS)
_LABELS = ("cls", "label", "txt")
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand(pattern: str | Path) -> list[str]:
    """The names that a pattern with braces stands for: ``a-{00..02}.tar``, ``{train,val}.tar``; numbers keep their leading zeros.

    Raises:
        DataError: braces that hold neither a range nor a list.
    """
    parts, at, text = [], 0, str(pattern)
    for found in _BRACES.finditer(text):
        parts += [[text[at : found.start()]], _choices(found.group(1), text)]
        at = found.end()
    return ["".join(choice) for choice in itertools.product(*parts, [text[at:]])]


def _choices(inside: str, text: str) -> list[str]:
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = bounds.groups()
        if int(first) > int(last):
            raise DataError(f"{text!r}: the range {{{inside}}} is empty; the first number is the larger one")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        return [str(n).zfill(width) for n in range(int(first), int(last) + 1)]
    if "," in inside:
        return [choice.strip() for choice in inside.split(",")]
    raise DataError(f"{text!r}: {{{inside}}} is neither a range such as {{000..127}} nor a list such as {{train,val}}")


def is_shards(source: str | Path) -> bool:
    """Whether a source names tar files."""
    return str(source).endswith((".tar", ".tar.gz", ".tgz"))


def decode(name: str, data: bytes, where: str) -> Any:
    """The value of one file of a sample, by its ending: pictures, numbers (``cls``), text, JSON, ``.npy`` arrays; else the bytes."""
    ending = name.rsplit(".", 1)[-1].lower()
    try:
        if ending in _PICTURES:
            return read_picture(data, name=f"{name} in {where}")
        if ending == "cls":
            return int(data.decode().strip())
        if ending in ("txt", "text", "label"):
            return data.decode()
        if ending == "json":
            return json.loads(data)
        if ending == "npy":
            return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} in {where} cannot be read as {ending}: {error}") from error
    return data


def _split_name(name: str) -> tuple[str, str]:
    """(what samples are told apart by, the field): the name up to the first dot of its last part, and the rest."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


class Shards(IterableDataset):
    """Samples streamed from tar files, each a mapping of its fields and ``__key__``.

    Args:
        pattern: paths or addresses, with braces for several.
        raw: give the bytes of every field, not what :func:`decode` makes of them.
        keep: called with a raw sample; those it says no to are passed over (:class:`~offprint.methods.curation._tables.KeptIds` is one).
        rank, world: this process among all: shards are dealt out to processes, and to the workers of a loader, so that each sample comes once.

    Raises:
        DataError: a shard that is not there, is damaged, or holds a field that cannot be read.
    """

    def __init__(
        self,
        pattern: str | Path | Sequence[str | Path],
        *,
        raw: bool = False,
        keep: Callable[[dict], bool] | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        patterns = [pattern] if isinstance(pattern, str | Path) else list(pattern)
        self.urls = [url for one in patterns for url in expand(one)]
        self.raw, self.keep, self.rank, self.world = raw, keep, rank, world
        for url in self.urls:
            if scheme(url) in ("", "file") and not fetched(url).is_file():
                raise DataError(f"there is no shard at {url!r}, the {self.urls.index(url) + 1}. of {len(self.urls)}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        for url in self.urls[self.rank * workers + number :: self.world * workers]:
            for sample in _samples(url):
                if self.keep is None or self.keep(sample):
                    yield (
                        sample
                        if self.raw
                        else {
                            k: v if k == "__key__" else decode(f"{sample['__key__']}.{k}", v, url)
                            for k, v in sample.items()
                        }
                    )


def _samples(url: str) -> Iterator[dict[str, Any]]:
    sample: dict[str, Any] = {}
    try:
        with _stream(url) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, field = _split_name(member.name)
                if sample and key != sample["__key__"]:
                    yield sample
                    sample = {}
                data = archive.extractfile(member)
                sample |= {"__key__": key, field: b"" if data is None else data.read()}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"the shard {url} is damaged or no tar file: {error}") from error
    if sample:
        yield sample


def _stream(url: str):
    if scheme(url) in ("", "file"):
        return fetched(url).open("rb")
    system, path = filesystem(url, "the shard")
    return system.open(path, "rb")


class ShardImages(Dataset):
    """Pictures and classes of tar files by number: the headers are read once, a picture when it is asked for.

    Args:
        pattern: as for :class:`Shards`, uncompressed; addresses are fetched.
        transform: applied to each RGB picture.
        classes: names of the classes; default those found (numbers in order, or names sorted).

    A sample's class is its field ``cls``, ``label`` or ``txt``, or ``label`` in its ``json``; where there is none, the folder its name lies in.

    Raises:
        DataError: no pictures, or one without a class.
    """

    def __init__(self, pattern: str | Path, transform=None, classes: Sequence[str] | None = None):
        self.transform, self.files = transform, [fetched(url, "the shard") for url in expand(pattern)]
        self.places: list[tuple[int, int, int, str]] = []  # shard, first byte, bytes, name
        labels: list[str] = []
        for number, file in enumerate(self.files):
            for key, fields, read in _headers(file):
                picture = next((f for f in fields if f.rsplit(".", 1)[-1] in _PICTURES), None)
                if picture is None:
                    continue
                labels.append(_label(key, fields, read, file))
                self.places.append((number, *fields[picture], f"{key}.{picture}"))
        if not labels:
            raise DataError(f"{pattern} holds no pictures (endings looked for: {' '.join(_PICTURES)})")
        whole = all(label.isdigit() for label in labels)
        if classes is None:
            classes = [str(n) for n in range(max(map(int, labels)) + 1)] if whole else sorted(set(labels))
        self.classes = list(classes)
        place = {name: at for at, name in enumerate(self.classes)}
        if lost := [label for label in labels if label not in place and not (whole and int(label) < len(self.classes))]:
            raise DataError(f"{pattern} has the class {lost[0]!r}, which is none of {', '.join(self.classes[:8])}")
        self.targets = [place[label] if label in place else int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int):
        number, start, size, name = self.places[index]
        with self.files[number].open("rb") as stream:
            stream.seek(start)
            image = read_picture(stream.read(size), name=f"{name} in {self.files[number]}")
        return (self.transform(image) if self.transform else image), self.targets[index]


def _headers(file: Path):
    """(key, {field: (first byte, bytes)}, reader of a field) of each sample of an uncompressed tar, without reading the pictures."""
    try:
        with tarfile.open(file, "r:") as archive:
            members = [(*_split_name(m.name), m.offset_data, m.size) for m in archive if m.isfile()]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"the shard {file} is damaged or no plain tar file ({error}); packed ones (.tar.gz) can only be streamed"
        ) from error

    def read(place: tuple[int, int]) -> bytes:
        with file.open("rb") as stream:
            stream.seek(place[0])
            return stream.read(place[1])

    for key, group in itertools.groupby(members, key=lambda m: m[0]):
        yield key, {field: (start, size) for _, field, start, size in group}, read


def _label(key: str, fields: dict[str, tuple[int, int]], read, file: Path) -> str:
    for name in _LABELS:
        if name in fields:
            return read(fields[name]).decode().strip()
    if "json" in fields:
        found = decode(f"{key}.json", read(fields["json"]), str(file))
        for name in ("label", "cls", "class"):
            if isinstance(found, dict) and name in found:
                return str(found[name])
    folder = key.rpartition("/")[0].rpartition("/")[2]
    if folder:
        return folder
    raise DataError(
        f"{key} in {file} has no class: give it a file {key}.cls, a 'label' in {key}.json, or a folder of its class's name"
    )
