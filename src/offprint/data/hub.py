"""Data sets of the Hugging Face hub, through the package ``datasets`` where it is installed: ``hf://owner/name[/configuration]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from offprint.data.reading import read_picture, rgb
from offprint.data.tables import CLASS_COLUMNS, FILE_COLUMNS
from offprint.errors import DataError, need


def load_hub(address: str) -> Mapping[str, Any]:
    """The splits of a data set of the hub, by name.

    Raises:
        DataError: no such address, or the package cannot load it. MissingExtra: ``datasets`` is not installed.
    """
    name = address.partition(":")[2].lstrip("/").removeprefix("datasets/").strip("/")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{address!r} is no data set of the hub; give hf://owner/name, or hf://owner/name/configuration"
        )
    package = need("datasets", "hub", f"reading {address} from the Hugging Face hub")
    try:
        found = package.load_dataset("/".join(parts[:2]), *parts[2:])
    except Exception as error:  # the package raises what its back ends raise
        raise DataError(
            f"{address} could not be loaded ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}); fetch its "
            "Parquet files elsewhere and give their path"
        ) from error
    return dict(found)


class HubImages(Dataset):
    """Pictures and classes of one split of a hub's data set.

    Args:
        rows: the split: ``rows[i]`` is a mapping of columns, ``rows.features`` says what they are.
        where: how it is called in messages.

    Raises:
        DataError: no column of pictures, or none of classes.
    """

    def __init__(self, rows: Any, where: str, transform=None):
        self.rows, self.where, self.transform = rows, where, transform
        self.image, label = (_column(rows, known, where) for known in (FILE_COLUMNS, CLASS_COLUMNS))
        given = list(rows[label])
        named: Sequence[str] | None = getattr(rows.features[label], "names", None)
        self.classes = [str(n) for n in named] if named else [str(v) for v in sorted(set(given))]
        self.targets = [int(v) for v in given] if named else [self.classes.index(str(v)) for v in given]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        value = self.rows[index][self.image]
        if isinstance(value, Mapping):  # undecoded: {"bytes": ..., "path": ...}
            value = value.get("bytes") or value.get("path")
        name = f"{self.where}, row {index + 1}"
        image = read_picture(value, name=name) if isinstance(value, bytes | str) else rgb(value)[0]
        return (self.transform(image) if self.transform else image), self.targets[index]


def _column(rows: Any, known: Sequence[str], where: str) -> str:
    lower = {name.lower(): name for name in rows.features}
    found = next((lower[name] for name in known if name in lower), None)
    if found is None:
        raise DataError(
            f"{where} has no column called {', '.join(known[:-1])} or {known[-1]}; its columns: {', '.join(rows.features)}"
        )
    return found
