"""What evaluating and predicting give: typed results that are plain data, and that save and draw themselves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offprint.errors import OffprintError
from offprint.files import atomic_write


@dataclass
class Result:
    """Rows of plain data, one per thing that was asked about.

    Attributes:
        rows: mappings of names to plain values.
        notes: what the reader should know besides (what was left out, and why).
    """

    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def plain(self) -> Any:
        """As lists, dictionaries, text and numbers."""
        return self.rows

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and cells for people: what a console shows and a CSV file holds."""
        columns = list(dict.fromkeys(name for row in self.flat() for name in row))
        return columns, [[_cell(row.get(name, "")) for name in columns] for row in self.flat()]

    def flat(self) -> list[dict[str, Any]]:
        """The rows without lists in them."""
        return self.rows

    def save(self, path: str | Path) -> Path:
        """Write as ``.json``, ``.csv`` or ``.tsv``, or as a picture (``.png``, ``.svg``, ``.pdf``); whole or not at all."""
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".json":
            return atomic_write(path, json.dumps(self.plain(), indent=1) + "\n")
        if kind in (".csv", ".tsv"):
            text = io.StringIO()
            writer = csv.writer(text, delimiter="," if kind == ".csv" else "\t", lineterminator="\n")
            flat = self.flat()
            columns = list(dict.fromkeys(name for row in flat for name in row))
            writer.writerow(columns)
            writer.writerows([row.get(name, "") for name in columns] for row in flat)
            return atomic_write(path, text.getvalue())
        if kind in (".png", ".svg", ".pdf"):
            return self.draw(path)
        raise OffprintError(
            f"{path}: results are saved as .json, .csv, .tsv, .png, .svg or .pdf; choose one by its ending"
        )

    def draw(self, path: str | Path) -> Path:
        """A picture of the result: bars of its numbers, unless its kind has a better one."""
        numbers = {k: float(v) for row in self.flat() for k, v in row.items() if isinstance(v, int | float)}
        return bars(path, numbers)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class Figures(Result, Mapping):  # type: ignore[misc]
    """Figures of an evaluation: a mapping of names to numbers.

    Attributes:
        figures: name → value; accuracies in percent.
        units: name → unit, for the console.
        beside: label → figures of what it is compared with.
    """

    figures: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, figures: Mapping[str, Any], **more: Any) -> Figures:
        return cls([dict(figures)], figures=dict(figures), **more)

    def __getitem__(self, name):  # type: ignore[override]
        return self.figures[name]

    def __iter__(self):
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def plain(self) -> Any:
        return {"model": self.figures, **self.beside} if self.beside else self.figures

    def flat(self) -> list[dict[str, Any]]:
        return (
            [{"": "model", **self.figures}, *({"": k, **v} for k, v in self.beside.items())]
            if self.beside
            else self.rows
        )

    def line(self) -> str:
        """In one line."""
        return "   ".join(f"{name} {_number(value)}{self.units.get(name, '')}" for name, value in self.figures.items())

    def draw(self, path: str | Path) -> Path:
        shown = {k: float(v) for k, v in self.figures.items() if isinstance(v, float)}
        return bars(path, shown)


def _number(value: Any) -> str:
    return (
        f"{value:.4f}"
        if isinstance(value, float) and abs(value) < 10
        else f"{value:.2f}"
        if isinstance(value, float)
        else str(value)
    )


def bars(path: str | Path, numbers: Mapping[str, float], title: str = "") -> Path:
    """Horizontal bars of named numbers."""
    figure, axes = canvas(7, 1 + 0.35 * max(1, len(numbers)))
    names = list(numbers)[::-1]
    axes.barh(names, [numbers[n] for n in names], color="#3b6ea5")
    axes.bar_label(axes.containers[0], fmt="%.4g", padding=3)
    axes.margins(x=0.15)
    axes.set_title(title)
    return finish(figure, path)


def canvas(width: float, height: float, rows: int = 1, columns: int = 1):
    """A Matplotlib figure and its axes, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def finish(figure, path: str | Path) -> Path:
    """Write a figure, whole or not at all."""
    path = Path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lstrip(".").lower() or "png", dpi=120)
    return atomic_write(path, buffer.getvalue())


def sheet(path: str | Path, pictures: Sequence[tuple[Any, str]], columns: int = 4) -> Path:
    """A contact sheet of pictures with a caption each."""
    columns = min(columns, max(1, len(pictures)))
    rows = -(-max(1, len(pictures)) // columns)
    figure, axes = canvas(2.6 * columns, 2.9 * rows, rows, columns)
    flat = [axes] if rows * columns == 1 else list(axes.flat)
    for place in flat:
        place.axis("off")
    for place, (picture, caption) in zip(flat, pictures, strict=False):
        place.imshow(picture)
        place.set_title(caption, fontsize=8)
    return finish(figure, path)
