"""``offprint data``: the data sets that are known, and which of them lie on this machine."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.table import Table

from offprint.cli.console import out


def data(
    id: str = typer.Argument(None, metavar="[ID]", help="A data set; without it they are listed."),
    task: str = typer.Option(None, help="Only those of this task, such as classification."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """List the data sets, or say all of one: whose it is, under what licence, and where it is looked for."""
    from offprint.data.datasets import dataset, datasets

    found = datasets(task) if id is None else [dataset(id)]
    if as_json:
        rows = [_plain(d) for d in found]
        print(json.dumps(rows if id is None else rows[0], indent=1))
    elif id is None:
        out.print(_table(found))
        out.print("offprint data ID says where a set comes from and where it is looked for", highlight=False)
    else:
        _one(found[0])


def _plain(found) -> dict:
    from offprint.data.datasets import present

    here = present(found.id)
    row = dataclasses.asdict(found) | {"splits": dict(found.splits)}
    return row | {"present": here.where, "path": None if here.path is None else str(here.path)}


def _splits(found) -> str:
    return " + ".join(f"{n:,}" for n in found.splits.values() if n is not None) or "-"


def _table(found) -> Table:
    from offprint.data.datasets import present

    table = Table(title=f"{len(found)} data sets", title_justify="left", header_style="bold")
    for column in ("id", "task", "samples", "here"):
        table.add_column(column, overflow="fold", justify="right" if column == "samples" else "left")
    for one in found:
        where = present(one.id).where
        table.add_row(one.id, one.task, _splits(one), "" if where == "absent" else where)
    return table


def _one(found) -> None:
    from offprint.data.datasets import present

    here = present(found.id)
    counts = ", ".join(f"{name} {'?' if n is None else format(n, ',')}" for name, n in found.splits.items())
    rows = {
        "task": found.task,
        "a sample": found.sample,
        "samples": counts,
        "home": found.home,
        "licence": found.licence,
    }
    if here.where == "absent":
        rows["here"] = (
            f"no; put it at {here.path}, or set OFFPRINT_DATA"
            if here.path
            else "no, and nothing here opens it by its name"
        )
    else:
        rows["here"] = f"{here.where}, {here.path}"
    rows["digest"] = found.digest
    out.print(found.title, style="bold", highlight=False)
    for name, value in rows.items():
        if value:
            out.print(f"{name:>10}: {value}", highlight=False, markup=False, soft_wrap=True)
