"""``offprint info MODEL``: what a model costs."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from offprint.cli.console import out, parse_overrides


def info(
    model: str,
    size: list[int] = typer.Option(
        None, help="Input size without the batch axis, e.g. --size 3 --size 224 --size 224."
    ),
    option: list[str] = typer.Option([], "--option", "-o", help="Argument of the model, name=value; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Count parameters, multiply-adds and activations of a model."""
    from offprint.api import entry
    from offprint.models.info import model_info

    entry(model)
    counted = model_info(model, tuple(size) if size else None, **parse_overrides(option))
    if as_json:
        print(json.dumps(counted, indent=1))
        return
    table = Table(title=model, title_justify="left", show_header=False)
    for key, value in counted.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    if released := entry(model).weights:
        table.add_row("weights", ", ".join(f"{tag} ({w.publisher})" for tag, w in released.items()))
    out.print(table)
