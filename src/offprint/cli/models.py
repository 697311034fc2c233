"""``offprint models``: the registry as a table."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from offprint.cli.console import out


def models(
    pattern: str = typer.Argument("*", help="Shell-style pattern, e.g. 'convnext*'."),
    paper: str = typer.Option(None, help="Only models of this paper."),
    kind: str = typer.Option(None, help="Only models of this kind."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """List the models that create_model knows."""
    from offprint.api import entry, list_models

    names = list_models(pattern, paper=paper, kind=kind)
    rows = [
        {"name": n, "paper": entry(n).paper, "kind": entry(n).kind, "weights": list(entry(n).weights)} for n in names
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title=f"{len(rows)} models", title_justify="left", header_style="bold")
    for column in ("name", "paper", "kind", "released weights"):
        table.add_column(column, overflow="fold")
    for row in rows:
        released = entry(row["name"]).weights.values()
        table.add_row(row["name"], row["paper"], row["kind"], ", ".join(dict.fromkeys(w.publisher for w in released)))
    out.print(table)
