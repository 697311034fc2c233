"""``offprint predict``: classes of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.table import Table

from offprint.cli.console import out


def predict(
    images: list[Path],
    model: str = typer.Option(..., "--model", "-m", help="The folder of a training run, or a model name."),
    checkpoint: str = typer.Option(None, help="Weight file, with a model name."),
    pretrained: bool = typer.Option(False, help="Released weights, with a model name."),
    top_k: int = typer.Option(5, "--top-k", "-k"),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Print the most probable classes of each picture."""
    from offprint.tasks.classification import predict_images, trained_model

    network, transform, classes = trained_model(model, checkpoint, pretrained)
    rows = predict_images(network, transform, images, classes, top_k)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(header_style="bold")
    for column in ("image", "class", "probability"):
        table.add_column(column)
    for row in rows:
        for i, guess in enumerate(row["predictions"]):
            table.add_row(row["image"] if i == 0 else "", guess["class"], f"{guess['probability']:.3f}")
    out.print(table)
