"""Tables: rows of a CSV, TSV or Parquet file, and pictures that a table lists with their classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from offprint.data.reading import EXTENSIONS, read_picture
from offprint.errors import DataError, need, unknown
from offprint.files import fetched

KINDS = (".csv", ".tsv", ".parquet", ".pq")
FILE_COLUMNS = ("image", "img", "file", "path", "filename", "file_name", "picture")
CLASS_COLUMNS = ("label", "labels", "class", "target", "category", "fine_label", "y")


class Table(Dataset):
    """The rows of a file in memory, each a mapping of its columns; CSV gives text, Parquet the types it holds.

    Args:
        path: a path or an address, ``.csv``, ``.tsv`` or ``.parquet``.

    Raises:
        DataError: no such file, another kind of file, a line of another width (named), no rows.
    """

    def __init__(self, path: str | Path):
        self.path = fetched(path, "the table")
        kind = self.path.suffix.lower()
        if kind not in KINDS:
            raise DataError(f"{path}: expected a table that ends in {', '.join(KINDS)}")
        if not self.path.is_file():
            raise DataError(f"there is no table at {str(path)!r}")
        self.columns, self.rows = (
            self._parquet() if kind in (".parquet", ".pq") else self._text("\t" if kind == ".tsv" else ",")
        )
        if not self.rows:
            raise DataError(f"{path} holds no rows")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(zip(self.columns, self.rows[index], strict=True))

    def column(self, name: str) -> list:
        """The values of one column, row by row."""
        if name not in self.columns:
            raise unknown(f"column of {self.path}", name, self.columns)
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def _text(self, mark: str) -> tuple[list[str], list[list]]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, delimiter=mark)
                columns = [name.strip() for name in next(reader, [])]
                rows = []
                for row in reader:
                    if not row:
                        continue
                    if len(row) != len(columns):
                        raise DataError(
                            f"{self.path}, line {reader.line_num}: {len(row)} fields, expected {len(columns)}; a field that holds "
                            "the separator stands in double quotes"
                        )
                    rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read as a table: {error}") from error
        return columns, rows

    def _parquet(self) -> tuple[list[str], list[list]]:
        pq = need("pyarrow.parquet", "curation", "reading Parquet files")
        import pyarrow as pa

        try:
            table = pq.read_table(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        return table.column_names, [list(row) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]


class TableImages(Dataset):
    """Pictures that a table lists: a column of files (from the table's folder on; or of pictures' bytes, as Parquet files of hubs hold them) and
    one of classes.

    Args:
        table: the rows.
        rows: which of them; default all.
        image, label: names of the two columns; default the first known name (image, file, path, ...; label, class, ...).
        classes: names of the classes; default those found, sorted.

    Raises:
        DataError: no such column, or a row without a class.
    """

    def __init__(
        self, table: Table, rows: Sequence[int] | None = None, *, image: str = "", label: str = "", classes: Sequence[str] | None = None,
        transform=None,
    ):  # fmt: skip
        self.transform = transform
        self.rows = list(range(len(table))) if rows is None else [int(r) for r in rows]
        files, labels = (
            table.column(name or _named(table, known))
            for name, known in ((image, FILE_COLUMNS), (label, CLASS_COLUMNS))
        )
        for row in self.rows:
            if labels[row] is None or str(labels[row]).strip() == "":
                raise DataError(f"{table.path}, row {row + 1}: the class is missing")
        names = [str(v).strip() for v in labels]
        if classes is None:
            found = {names[r] for r in range(len(table)) if names[r]}
            classes = sorted(found, key=lambda n: (0, int(n), n) if n.isdigit() else (1, 0, n))
        self.classes, self.folder = list(classes), table.path.parent
        place = {name: at for at, name in enumerate(self.classes)}
        self.files, self.targets = [files[r] for r in self.rows], [place[names[r]] for r in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        given = self.files[index]
        if isinstance(given, dict):  # the hub's own column of pictures
            given = given.get("bytes") or given.get("path")
        if isinstance(given, bytes):
            image = read_picture(given, name=f"row {self.rows[index] + 1}")
        else:
            image = read_picture(self.folder / str(given))
        return (self.transform(image) if self.transform else image), self.targets[index]


def _named(table: Table, known: Sequence[str]) -> str:
    lower = {name.lower(): name for name in table.columns}
    found = next((lower[name] for name in known if name in lower), None)
    if found is None:
        raise DataError(
            f"{table.path} has no column called {', '.join(known[:-1])} or {known[-1]}; its columns: {', '.join(table.columns)}"
        )
    return found


def lists_pictures(table: Table) -> bool:
    """Whether a table has a column of pictures: bytes, or names of files with a picture's ending."""
    lower = {name.lower(): name for name in table.columns}
    name = next((lower[n] for n in FILE_COLUMNS if n in lower), None)
    if name is None:
        return False
    value = table.column(name)[0]
    return isinstance(value, bytes | dict) or str(value).lower().endswith(EXTENSIONS)
