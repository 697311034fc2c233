"""Files of interactions as they are found: tables with and without a header, RecBole's, MovieLens' and the authors' of LightGCN."""

from __future__ import annotations

import csv
import lzma
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from offprint.errors import DataError, need, unknown

KINDS = ("csv", "tsv", "txt", "inter", "dat", "parquet")
_ROLES = {  # what columns are called in the wild, without capitals and signs
    "user": ("user", "userid", "uid", "visitorid", "customerid"),
    "item": ("item", "itemid", "iid", "movieid", "productid", "artistid", "asin"),
    "time": ("time", "timestamp", "date", "datetime", "unixreviewtime"),
    "weight": ("weight", "rating", "count", "plays", "value", "overall"),
}
_PLAIN = ("token", "float")  # RecBole's kinds of columns that hold one value; the others hold sequences
_EPOCH = (
    100_000_000  # seconds: a column of larger numbers tells the time (from 1973 on), not how much something was liked
)


class Pairs:
    """Grows while files are read; ids become numbers in the order in which they come, and are put in order at the end."""

    def __init__(self):
        self.users: dict = {}
        self.items: dict = {}
        self.rows: list[np.ndarray] = []  # of (2, n) codes
        self.times: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.notes: list[str] = []
        self.numbered = False  # ids number the rows of the authors' tables

    def add(self, users: Sequence, items: Sequence, times: Sequence | None, weights: Sequence | None) -> None:
        code, column = self.users, self.items
        self.rows.append(
            np.array([[code.setdefault(u, len(code)) for u in users], [column.setdefault(i, len(column)) for i in items]],
                     dtype=np.int64).reshape(2, -1)
        )  # fmt: skip
        if times is not None:
            self.times.append(np.asarray(times, dtype=np.float64))
        if weights is not None:
            self.weights.append(np.asarray(weights, dtype=np.float64))

    @property
    def count(self) -> int:
        return sum(r.shape[1] for r in self.rows)


def _open(path: Path):
    """A text stream of a file, unpacked where its name says so."""
    import gzip

    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _kind(path: Path) -> str:
    """One of ``KINDS``: the suffix under any compression."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in (".xz", ".gz"):
        suffixes.pop()
    kind = suffixes[-1].lstrip(".") if suffixes else ""
    return {"pq": "parquet", "data": "tsv", "tab": "tsv"}.get(kind, kind)


def read_interactions(path: Path, pairs: Pairs, columns: Mapping[str, str] | None) -> None:
    """One file into ``pairs``, by its suffix and first line.

    Args:
        path: ``.csv``, ``.tsv``, ``.txt``, ``.inter`` (RecBole), ``.dat`` and ``.data`` (MovieLens), also packed as ``.xz`` or
            ``.gz``; or ``.parquet``.
        columns: role (user, item, time, weight) to the name of its column, or, of a file without a header, to its number from 1.

    Raises:
        DataError: a file or a line that cannot be read, named.
    """
    if not path.is_file():
        raise DataError(f"no file of interactions at {path}")
    kind = _kind(path)
    if kind not in KINDS:
        raise DataError(
            f"{path}: expected a .csv, .tsv, .txt, .inter, .dat or .data file (also .xz, .gz), a .parquet file, or a folder of "
            "train.txt and test.txt"
        )
    for role in columns or {}:
        if role not in _ROLES:
            raise unknown("role of a column", role, _ROLES)
    before = pairs.count
    try:
        if kind == "parquet":
            _read_parquet(path, pairs, columns)
        else:
            with _open(path) as stream:
                first = next((line for line in stream if line.strip()), "")
            if not first:
                raise DataError(f"{path} holds no interactions")
            if "\0" in first:
                raise DataError(f"{path} is not a text file")
            with _open(path) as stream:
                if kind == "txt" and not any(mark in first for mark in ("\t", ",", ";", "::")):
                    _read_lists(path, stream, pairs)
                else:
                    _read_table(path, stream, first, pairs, columns)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error}); convert it, for example: iconv -f latin1 -t utf-8"
        ) from error
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if pairs.count == before:
        raise DataError(f"{path} holds no interactions")


def _numbers(tokens: Sequence[str], where: str) -> list[int]:
    try:
        found = [int(t) for t in tokens]
    except ValueError:
        wrong = next(t for t in tokens if not t.strip().lstrip("-").isdigit())
        raise DataError(
            f"{where}: {wrong!r} is not a number, as in the lines before; users and items of a file without a header are all "
            "numbers, or all names"
        ) from None
    if min(found) < 0:
        raise DataError(f"{where}: {min(found)} is negative; users and items are numbered from 0")
    return found


def _read_lists(path: Path, stream, pairs: Pairs) -> None:
    """The authors' format: a line is a user and that user's items, all numbers of rows."""
    pairs.numbered = True
    empty = 0
    for number, line in enumerate(stream, 1):
        tokens = line.split()
        if not tokens:
            continue
        user, *items = _numbers(tokens, f"{path}, line {number}")
        empty += not items
        pairs.users.setdefault(user, len(pairs.users))
        pairs.add([user] * len(items), items, None, None)
    if empty:
        pairs.notes.append(f"{path.name}: {empty:,} users have no items")


def _roles(path: Path, having: Sequence[str], columns: Mapping[str, str] | None) -> dict[str, int]:
    """Where user, item, time and weight are among the named columns of a table; RecBole's names carry a kind after a colon."""
    names, kinds = zip(*((name.partition(":")[0], name.partition(":")[2]) for name in having), strict=True)
    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in names]
    found: dict[str, int] = {}
    for role, known in _ROLES.items():
        wanted = (columns or {}).get(role)
        if wanted is not None:
            if wanted not in having and wanted not in names:
                raise unknown(f"column of {path}", wanted, having)
            found[role] = (having if wanted in having else names).index(wanted)  # type: ignore[attr-defined]
        else:
            at = next((plain.index(n) for n in known if n in plain), None)
            if at is not None and at not in found.values():
                found[role] = at
    if missing := [r for r in ("user", "item") if r not in found]:
        raise DataError(
            f"{path} has no column named {' and '.join(missing)}; its columns: {', '.join(having)}. Rename them, or pass "
            'columns={"user": ..., "item": ...} (--columns user=...,item=...): names of columns, or, where that line is no header '
            "but the first interaction, their numbers, as in --columns user=1,item=2"
        )
    for role, at in found.items():
        if kinds[at] and kinds[at] not in _PLAIN:
            raise DataError(
                f"{path}: the {role} is in {having[at]!r}, a column of sequences; give RecBole's file of single interactions"
            )
    return found


def _positions(path: Path, width: int, columns: Mapping[str, str]) -> dict[str, int]:
    """Where the columns are that were given by their numbers from 1."""
    found = {role: int(number) - 1 for role, number in columns.items()}
    for role, at in found.items():
        if not 0 <= at < width:
            raise DataError(f"{path} has {width} columns, numbered from 1; {role}={at + 1} is none of them")
    for role, at in (("user", 0), ("item", 1)):
        found.setdefault(role, at)
    if len(set(found.values())) < len(found):
        raise DataError(
            f"{path}: one column cannot be two things; given: {', '.join(f'{r}={a + 1}' for r, a in found.items())}"
        )
    return found


def _guessed(tokens: Sequence[str], notes: list[str]) -> dict[str, int]:
    """Roles of a file without a header: user, item, and MovieLens' rating and time where the fourth column tells the time."""
    found = {"user": 0, "item": 1}
    if len(tokens) == 4 and _is_time(tokens[3]) and _is_float(tokens[2]):
        notes.append("no header: the columns are user, item, weight and time, as in MovieLens")
        return found | {"weight": 2, "time": 3}
    if len(tokens) == 3 and _is_time(tokens[2]):
        notes.append("no header: the columns are user, item and time")
        return found | {"time": 2}
    if len(tokens) > 2:
        notes.append(
            "no header: the first two columns are user and item, the others are not used "
            "(columns={'weight': '3'}, --columns weight=3, uses the third)"
        )
    return found


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    """Whether a field tells the time: a date of ISO 8601 with dashes, or seconds (or milliseconds) since 1970."""
    try:
        return _moment(text) >= _EPOCH if _is_float(text) else "-" in text and math.isfinite(_moment(text))
    except ValueError:
        return False


def _moment(text: str) -> float:
    """Seconds: a number, or a date as ISO 8601 writes it."""
    from datetime import datetime

    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()


def check_weight(value: float, where: str) -> float:
    """The weight, or an error that says where a negative one, or none, is."""
    if not math.isfinite(value):
        raise DataError(f"{where}: the weight {value} is not a number; mend or remove the line")
    if value < 0:
        raise DataError(f"{where}: the weight {value:g} is negative; weights say how much an item was used, 0 or more")
    return value


def _rows(stream, mark: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields); the csv module knows separators of one character only."""
    if mark == "::":
        yield from ((number, line.rstrip("\r\n").split(mark)) for number, line in enumerate(stream, 1))
        return
    reader = csv.reader(stream, delimiter=mark, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    yield from ((reader.line_num, row) for row in reader)


def _mark(path: Path, first: str) -> str:
    """What stands between the fields."""
    kind = _kind(path)
    if kind in ("tsv", "inter") and "\t" in first:
        return "\t"
    return "::" if "::" in first and kind in ("dat", "txt", "csv") else max("\t,;", key=first.count)


def _read_table(path: Path, stream, first: str, pairs: Pairs, columns: Mapping[str, str] | None) -> None:
    """A table with a header, or without one: then user, item and what :func:`_guessed` or the caller says of the others."""
    mark = _mark(path, first)
    quoted = not (_kind(path) == "inter" or mark == "::")
    tokens = [t.strip() for t in next(_rows([first], mark, quoted))[1]]
    by_number = bool(columns) and all(str(n).isdigit() for n in columns.values()) and not _known(tokens)  # type: ignore[union-attr]
    bare = by_number or (len(tokens) >= 2 and not _is_header(tokens, columns))
    strict = False
    if by_number:
        found = _positions(path, len(tokens), columns)  # type: ignore[arg-type]
    elif bare:
        if columns:
            raise DataError(
                f"{path} has no header, so its columns have no names; give their numbers, as in --columns user=1,item=2"
            )
        found = _guessed(tokens, pairs.notes)
        strict = pairs.numbered = all(t.lstrip("-").isdigit() for t in tokens[:2])
    else:
        found = _roles(path, tokens, columns)
    block: dict[str, list] = {role: [] for role in found}

    def flush() -> None:
        pairs.add(block["user"], block["item"], block.get("time"), block.get("weight"))
        for values in block.values():
            values.clear()

    header = not bare
    try:
        for number, row in _rows(stream, mark, quoted):
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if header:
                header = False
                continue
            where = f"{path}, line {number}"
            if len(row) != len(tokens):
                raise DataError(
                    f"{where}: {len(row)} fields, expected {len(tokens)} ({mark!r} between them): {mark.join(row)[:80]!r}"
                    + ("; a field that holds the separator stands in double quotes" if len(row) > len(tokens) else "")
                )
            ids: list = [row[found["user"]].strip(), row[found["item"]].strip()]
            if not all(ids):
                raise DataError(f"{where}: the {'user' if not ids[0] else 'item'} is empty")
            if strict:
                ids = _numbers(ids, where)
            block["user"].append(ids[0])
            block["item"].append(ids[1])
            for role, read in (("time", _moment), ("weight", float)):
                if role in found:
                    text = row[found[role]]
                    try:
                        value = read(text)
                    except ValueError:
                        what = "a number" if role == "weight" else "a number or an ISO 8601 date"
                        raise DataError(f"{where}: the {role} {text!r} is not {what}") from None
                    block[role].append(check_weight(value, where) if role == "weight" else value)
            if len(block["user"]) >= 100_000:
                flush()
    except csv.Error as error:
        raise DataError(f"{path} is no table that can be read: {error}") from error
    flush()


def _known(tokens: Sequence[str]) -> bool:
    """Whether a first line has a name of users or items in it."""
    names = {"".join(c for c in t.partition(":")[0].lower() if c.isalnum()) for t in tokens}
    return any(name in names for role in ("user", "item") for name in _ROLES[role])


def _is_header(tokens: Sequence[str], columns: Mapping[str, str] | None) -> bool:
    """Whether a first line names columns: a known or a given name is in it, or nothing in it is a number or a date."""
    given = any(str(name) in tokens for name in (columns or {}).values())
    return _known(tokens) or given or not any(_is_float(t) or _is_time(t) for t in tokens)


def _read_parquet(path: Path, pairs: Pairs, columns: Mapping[str, str] | None) -> None:
    pq = need("pyarrow.parquet", "curation", "reading Parquet files")
    import pyarrow as pa

    try:
        file = pq.ParquetFile(path)
        found = _roles(path, file.schema_arrow.names, columns)
        names = {role: file.schema_arrow.names[at] for role, at in found.items()}
        row = 0
        for batch in file.iter_batches(columns=list(names.values())):
            values = {}
            for role, name in names.items():
                column = batch.column(name)
                if column.null_count:
                    at = next(i for i, v in enumerate(column.is_null().to_pylist()) if v)
                    raise DataError(f"{path}, row {row + at + 1}: the {role} is missing")
                if role == "time" and not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
                    column = column.cast(pa.timestamp("us")).cast(pa.int64())
                values[role] = column.to_pylist()
            for at, value in enumerate(values.get("weight", ())):
                check_weight(float(value), f"{path}, row {row + at + 1}")
            pairs.add(values["user"], values["item"], values.get("time"), values.get("weight"))
            row += batch.num_rows
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
