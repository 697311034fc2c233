"""``offprint papers``: the catalogue as a table."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.table import Table

from offprint.cli.console import out


def papers(
    kind: str = typer.Option(None, help="Only this kind (backbone, segmentation, graph, training, ...)."),
    search: str = typer.Option(None, help="Only papers whose title, summary, task or slug holds these words."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """List the papers: what each is, and whether it is built."""
    from offprint import catalog

    found = catalog.papers(kind=kind, search=search)
    if as_json:
        print(json.dumps([{**asdict(p), "built": p.built} for p in found], indent=1))
        return
    table = Table(title=f"{len(found)} papers", title_justify="left", header_style="bold")
    for column in ("slug", "title", "year", "kind", "task", "state"):
        table.add_column(column, overflow="fold")
    for p in found:
        table.add_row(p.slug, p.title, str(p.year), p.kind, p.task, "[green]built[/]" if p.built else "[dim]planned[/]")
    out.print(table)
