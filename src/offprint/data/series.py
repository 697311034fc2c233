"""Series of numbers in time order: columns of a CSV, TSV or Parquet file, a NumPy file, or an array."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offprint.data.tables import KINDS, Table
from offprint.errors import DataError, unknown
from offprint.files import fetched

SUFFIXES = (*KINDS, ".npy")
TIME_COLUMNS = ("date", "time", "datetime", "timestamp", "ds")
_MISSING = ("", "na", "n/a", "nan", "null", "none", "-")


@dataclass
class Series:
    """Series of one set of times.

    Attributes:
        values: (steps, columns), finite, in double.
        columns: their names.
        times: of the steps: dates or numbers, rising; empty where none are known.
        name: what they were read from.
        notes: what was left out or filled.
    """

    values: np.ndarray
    columns: list[str]
    times: list[Any] = field(default_factory=list)
    name: str = "the array"
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def digest(self) -> str:
        whole = hashlib.sha256("\n".join(self.columns).encode() + np.ascontiguousarray(self.values).tobytes())
        return whole.hexdigest()[:16]

    def after(self, steps: int) -> list[Any]:
        """The times of the next steps; empty where the known ones are not spaced evenly, or there are none."""
        if len(self.times) < 2:
            return []
        last = self.times[-1]
        if isinstance(last, dt.datetime):
            months = [12 * t.year + t.month for t in self.times]
            span = months[-1] - months[-2]
            monthly = span > 0 and all(b - a == span for a, b in zip(months[:-1], months[1:], strict=True))
            if monthly and len({(t.day, t.time()) for t in self.times}) == 1 and last.day < 29:
                ahead = [months[-1] - 1 + span * (i + 1) for i in range(steps)]
                return [last.replace(year=m // 12, month=m % 12 + 1) for m in ahead]
        step = last - self.times[-2]
        for a, b in zip(self.times[:-1], self.times[1:], strict=True):
            even = b - a == step if isinstance(last, dt.datetime) else math.isclose(b - a, step, rel_tol=1e-6)
            if not even:
                return []
        return [last + step * (i + 1) for i in range(steps)]


def read_series(
    source: Any, columns: Sequence[str] = (), time: str = "", missing: str = "stop", name: str = ""
) -> Series:
    """Read series.

    Args:
        source: a ``.csv``, ``.tsv`` or ``.parquet`` file with a row per step, a ``.npy`` file or an array (steps, columns).
        columns: which; default all that hold numbers.
        time: name of the column of times; default the one called date, time, datetime, timestamp or ds, or a first column of dates.
        missing: a cell without a number in a column of numbers: ``stop``, or ``previous`` (the value before it stands for it).

    Raises:
        DataError: no such file or column, no numbers, a missing value, times that do not rise.
    """
    if missing not in ("stop", "previous"):
        raise DataError(f"missing={missing!r}; choose stop, or previous")
    if isinstance(source, Series):
        return source
    if not isinstance(source, str | Path):
        return _of_array(np.asarray(source), columns, missing, name or "the array")
    path = fetched(source, "the series")
    if path.is_dir():
        raise DataError(f"{source} is a folder; give a file of series: {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".npy":
        if not path.is_file():
            raise DataError(f"there is no file at {str(source)!r}")
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{source} cannot be read as an array of numbers: {error}") from error
        return _of_array(array, columns, missing, str(source))
    if path.suffix.lower() not in KINDS:
        raise DataError(f"{source}: expected a file of series that ends in {', '.join(SUFFIXES)}")
    return _of_table(Table(path), columns, time, missing, str(source))


def _of_array(array: np.ndarray, columns: Sequence[str], missing: str, name: str) -> Series:
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.size:
        raise DataError(f"{name}: expected numbers of shape (steps, columns), got {array.dtype} of {array.shape}")
    names = [str(i) for i in range(array.shape[1])]
    for wanted in columns:
        if wanted not in names:
            raise unknown(f"column of {name}", wanted, names)
    chosen = list(columns) or names
    values = np.array(array[:, [int(c) for c in chosen]], np.float64)
    notes = [_filled(values, names[int(c)], j, missing, name) for j, c in enumerate(chosen)]
    return Series(values, chosen, name=name, notes=[n for n in notes if n])


def _of_table(table: Table, columns: Sequence[str], time: str, missing: str, name: str) -> Series:
    lower = {c.lower(): c for c in table.columns}
    if time and time not in table.columns:
        raise unknown(f"column of {name}", time, table.columns)
    found = time or next((lower[n] for n in TIME_COLUMNS if n in lower), "")
    if not found and table.columns and table.columns[0] not in columns and _dates(table.column(table.columns[0])):
        found = table.columns[0]
    for wanted in columns:
        if wanted not in table.columns:
            raise unknown(f"column of {name}", wanted, table.columns)
    chosen, left, values, notes = [], [], [], []
    for column in columns or [c for c in table.columns if c != found]:
        cells = [_number(cell) for cell in table.column(column)]
        if all(cell is None for cell in cells):
            if columns:
                raise DataError(
                    f"{name}: the column {column} holds no numbers (its first cell: {table.column(column)[0]!r})"
                )
            left.append(column)
            continue
        for row, cell in enumerate(cells):
            if cell is None and str(table.column(column)[row]).strip().lower() not in _MISSING:
                raise DataError(f"{name}, row {row + 1}, column {column}: {table.column(column)[row]!r} is no number")
        chosen.append(column)
        values.append([math.nan if cell is None else cell for cell in cells])
    if not chosen:
        raise DataError(f"{name} holds no column of numbers; its columns: {', '.join(table.columns)}")
    array = np.array(values, np.float64).T.copy()
    notes = [_filled(array, column, j, missing, name) for j, column in enumerate(chosen)]
    if left:
        notes.append(f"columns without numbers are left out: {', '.join(left)}")
    times = _times(table.column(found), found, name) if found else []
    if found and not times:
        notes.append(f"the times in {found} are not understood; the rows are taken in their order")
    return Series(array, chosen, times, name, [n for n in notes if n])


def _number(cell: Any) -> float | None:
    if cell is None or isinstance(cell, bool):
        return None if cell is None else float(cell)
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(value) else value


def _filled(values: np.ndarray, column: str, j: int, missing: str, name: str) -> str:
    """Fill what is missing in column ``j`` in place; what to say of it."""
    holes = ~np.isfinite(values[:, j])
    if not holes.any():
        return ""
    first = int(np.flatnonzero(holes)[0])
    if missing == "stop" or first == 0:
        hint = "; its first row must have one" if missing == "previous" else "; fill it, or give missing=previous"
        raise DataError(
            f"{name}, row {first + 1}, column {column}: there is no finite number here ({int(holes.sum())} such rows){hint}"
        )
    source = np.maximum.accumulate(np.where(holes, 0, np.arange(len(holes))))
    values[:, j] = values[source, j]
    return f"{int(holes.sum())} missing values of {column} are those before them"


def _instant(cell: Any) -> Any:
    """A time as a date or a number; ``None`` where it is neither."""
    if isinstance(cell, dt.datetime):
        return cell
    if isinstance(cell, dt.date):
        return dt.datetime(cell.year, cell.month, cell.day)
    number = _number(cell)
    if number is not None and math.isfinite(number):
        return number
    try:
        return dt.datetime.fromisoformat(str(cell).strip())
    except ValueError:
        return None


def _dates(cells: Sequence[Any]) -> bool:
    return all(isinstance(_instant(cell), dt.datetime) for cell in cells)


def _times(cells: Sequence[Any], column: str, name: str) -> list[Any]:
    found = [_instant(cell) for cell in cells]
    if any(t is None for t in found) or len({isinstance(t, dt.datetime) for t in found}) != 1:
        return []
    if len({isinstance(t, dt.datetime) and t.tzinfo is not None for t in found}) != 1:
        raise DataError(f"{name}: some times in {column} have a time zone and some have none; give all of them one")
    for row, (a, b) in enumerate(zip(found[:-1], found[1:], strict=True)):
        if not b > a:
            raise DataError(
                f"{name}, row {row + 2}: the time {cells[row + 1]} in {column} is not after {cells[row]}; sort the rows by time, "
                "one row per time"
            )
    return found
