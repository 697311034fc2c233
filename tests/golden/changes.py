"""Copies of a record in which one number is another: an adapter that takes its numbers from the record gives something else."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

NUMBER = re.compile(r"(?<![A-Za-z_\d.])\d+(?:\.\d+)?(?:e-?\d+)?")
MANY = 6  # of a longer list of numbers the first, the middle and the last stand for all


def others(number: bool | int | float) -> list:
    """Values to put in the place of this one."""
    if isinstance(number, bool):
        return [not number]
    if isinstance(number, int):
        # less first: that is never beyond the end of an array
        return [number - 1, number // 8, 1, number + 1] if number > 0 else [number + 1]
    return [1.5 * number + 0.01, 0.5 * number, number + 0.4]


def leaves(value, path: tuple = (), group: tuple = ()) -> Iterator[tuple[tuple, tuple]]:
    """Paths to the numbers inside dicts and lists, each with the group of numbers that have its meaning.

    Numbers of a list are one group, but a short list, or a row of a table, may be arguments in their order: each is its own.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key), (*group, key))
    elif isinstance(value, list):
        chosen = range(len(value)) if len(value) <= MANY else (0, len(value) // 2, len(value) - 1)
        table = all(isinstance(row, list) for row in value) and len({len(row) for row in value}) != 1
        for i in chosen:
            numbers = not isinstance(value[i], dict | list)
            ordered = numbers and len(value) <= MANY and group[-1:] != ("ragged",)
            yield from leaves(value[i], (*path, i), (*group, i if ordered else "ragged" if table else "*"))
    elif isinstance(value, bool | int | float):
        yield path, group


def _get(record, path):
    for key in path:
        record = record[key]
    return record


def changes(record: dict, fields: Iterable[str], words: dict[str, str]) -> Iterator[tuple[str, Callable[[], Iterator]]]:
    """What is changed, in words, and a function that gives the changed copies, one for each other value.

    Args:
        fields: of the record, whose numbers are changed.
        words: of the notes, whose numbers are left as they are; a path such as ``inputs.theta`` leaves that number.
    """
    groups: dict[tuple, list[tuple]] = {}
    for field in fields:
        for path, group in leaves(record.get(field), (field,), (field,)):
            if not any(".".join(map(str, path[: i + 1])) in words for i in range(len(path))):
                groups.setdefault(group, []).append(path)
    for group, paths in groups.items():

        def copies(paths=paths) -> Iterator:
            for path in paths:
                for value in others(_get(record, path)):
                    changed = copy.deepcopy(record)
                    _get(changed, path[:-1])[path[-1]] = value
                    yield changed

        yield ".".join(map(str, group)), copies
    notes = record["notes"]
    phrases = [phrase for phrase in words if not phrase.startswith(tuple(f"{field}." for field in fields))]
    for phrase in phrases:
        if phrase not in notes:
            raise ValueError(f"WORDS names {phrase!r}, which the notes do not say")
    kept = [m.span() for phrase in phrases for m in re.finditer(re.escape(phrase), notes)]
    for found in NUMBER.finditer(notes):
        start, end = found.span()
        if any(a <= start and end <= b for a, b in kept):
            continue

        def rewritten(start=start, end=end, text=found.group()) -> Iterator:
            for value in others(float(text) if re.search(r"[.e]", text) else int(text)):
                yield {**record, "notes": f"{notes[:start]}{value:.10g}{notes[end:]}"}

        yield f"notes: {notes[max(0, start - 25) : start]}[{found.group()}]{notes[end : end + 10]}", rewritten


def plain(value):
    """A value that can be compared."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def same(a, b) -> bool:
    """Whether two values of :func:`plain` are equal, missing ones included."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    try:
        return bool(np.array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64), equal_nan=True))
    except (TypeError, ValueError):
        return a == b


class Rows:
    """The rows of a generator, made when they are asked for and kept."""

    def __init__(self, rows: Iterable):
        self.rows, self.kept = iter(rows), []

    def __iter__(self) -> Iterator:
        i = 0
        while True:
            while i >= len(self.kept):
                try:
                    self.kept.append(plain(list(next(self.rows))))
                except StopIteration:
                    return
            yield self.kept[i]
            i += 1


def differs(base: Rows, function: Callable[[dict], Iterable], changed: dict) -> bool:
    """Whether a changed record gives other rows, or an error; both are made only as far as they agree."""
    try:
        with np.errstate(all="ignore"):
            rows, ours = iter(function(changed)), iter(base)
            while True:
                got, was = next(rows, None), next(ours, None)
                if got is None or was is None:
                    return got is not was
                if not same(plain(list(got)), was):
                    return True
    except Exception:  # noqa: BLE001  whatever went wrong, it went wrong because of the number
        return True
