"""One door to data: :func:`open_data` takes a name, a folder, a table, shards or a set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offprint.data.datasets import Dataset, dataset
from offprint.data.hub import load_hub
from offprint.data.images import ImageSplits, open_images
from offprint.data.pictures import Pictures
from offprint.data.shards import Shards, is_shards
from offprint.data.tables import KINDS as TABLES
from offprint.data.tables import Table, lists_pictures
from offprint.errors import DataError, OffprintError
from offprint.files import local_path, scheme

FORMS = (
    "a name of `offprint data`; a folder of pictures, with one folder a class or without; a .csv, .tsv or .parquet table; shards such as "
    "train-{000..127}.tar; hf://owner/name"
)


@dataclass(frozen=True)
class Opened:
    """What lies at a source.

    Attributes:
        kind: ``images`` (pictures with classes), ``pictures`` (without), ``table``, ``shards``, ``graph``, ``interactions``, ``pairs``,
            ``photographs``, ``text``, ``volume``, ``hub``.
        value: in the kind's own type: :class:`~offprint.data.images.ImageSplits`, :class:`~offprint.data.tables.Table`, ...
        splits: name of each split to its samples, where there are splits of samples.
        classes: their names, where there are classes.
        declared: the entry of the register, for a set that has one.
    """

    kind: str
    value: Any
    splits: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    declared: Dataset | None = None


def open_data(source: str | Path, *, seed: int = 0, on_error: str = "stop") -> Opened:
    """Open whatever lies at a source.

    Args:
        source: a name of the register (``sample:cifar10``, ``cora``, ``gowalla``, ``set5``, ``cifar10``); a folder of pictures; a table
            (CSV, TSV, Parquet), also at an address; tar shards, with braces for several; ``hf://owner/name`` for a data set of the
            Hugging Face hub.
        seed: of the split of pictures that have none of their own.
        on_error: ``"stop"`` or ``"skip"`` for pictures that cannot be read.

    Raises:
        DataError: nothing there that can be opened; the message says what can.
        MissingExtra: a hub's data set without the package ``datasets``.
    """
    text = str(source)
    if scheme(text) == "hf" and not text.endswith((*TABLES, ".tar")):
        return Opened("hub", splits := load_hub(text), splits)
    if is_shards(text):
        return Opened("shards", shards := Shards(text), {"all": shards})
    if text.lower().endswith(TABLES):
        table = Table(source)
        return (
            _images(open_images(source, seed=seed)) if lists_pictures(table) else Opened("table", table, {"all": table})
        )
    path = local_path(source, "a data set")
    if path.is_dir():
        try:
            return _images(open_images(path, seed=seed, on_error=on_error))
        except DataError as error:
            try:
                pictures = Pictures(path, on_error=on_error)
            except DataError:
                raise error from None
            return Opened("pictures", pictures, {"all": pictures})
    try:
        declared = dataset(text)
    except OffprintError as error:
        raise DataError(f"there is no data at {text!r} ({error}); give {FORMS}") from error
    return _declared(declared)


def _images(splits: ImageSplits, declared: Dataset | None = None) -> Opened:
    return Opened("images", splits, {"train": splits.train, "val": splits.val}, tuple(splits.classes), declared)


def _declared(found: Dataset) -> Opened:
    """A set of the register in the type of its kind."""
    if found.kind == "images":
        return _images(open_images(found.id), found)
    if found.kind == "graph":
        from offprint.data.graphs import load_graph

        return Opened("graph", load_graph(found.id), {}, declared=found)
    if found.kind == "interactions":
        from offprint.data.interactions import load_interactions

        data = load_interactions(found.id)
        return Opened("interactions", data, {"train": data.train, "test": data.test}, declared=found)
    if found.kind == "pairs":
        from offprint.data.photos import open_pairs

        return Opened("pairs", pairs := open_pairs(None, found.id, 2), {"test": pairs}, declared=found)
    if found.kind == "photographs":
        from offprint.data.photos import photographs

        return Opened("photographs", pictures := photographs(), {"all": pictures}, declared=found)
    if found.kind == "characters":
        from offprint.data.characters import omniglot
        from offprint.data.images import ArrayImages

        images, labels, *_ = omniglot()
        return Opened("characters", drawings := ArrayImages(images, labels), {"all": drawings}, declared=found)
    if found.kind == "text":
        from offprint.data.text_polygons import open_text

        words = open_text(found.id)
        return Opened("text", words, {"all": [*words.train, *words.val]}, declared=found)
    if found.kind == "volume":
        from offprint.data.volumes import brain_labels

        return Opened("volume", brain_labels(), {}, declared=found)
    if found.kind == "labelled":
        from offprint.data.home import data_dir
        from offprint.data.imagenet import open_imagenet

        return Opened(
            "labelled", labelled := open_imagenet(data_dir() / found.id, found.id), {"val": labelled}, declared=found
        )
    raise DataError(f"{found.title} is not opened here by its name; fetch it from {found.home}, and give its folder")
