"""``offprint probe RUN --layers conv1,conv2``: what the layers of a trained backbone know, as a table and a plot."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from offprint.cli import _options as cli
from offprint.cli.console import out, parse_overrides, quiet_lightning, say
from offprint.tasks.settings import Run


def _probe(
    model: str = typer.Argument(..., help="The folder of a run, or a model name with --pretrained or --checkpoint."),
    data: str = typer.Option(None, "--data", "-d", help="Labelled pictures; default those the run was trained on."),
    layers: str = typer.Option("", help="Names separated by commas; default all."),
    kind: str = typer.Option("linear", help="linear, conv, mlp, or nonlinear (the rest of AlexNet)."),
    labels: int = typer.Option(0, help="Use the first so many of each class; 0 for all."),
    draws: int = typer.Option(0, help="Pictures of an epoch; 0 for one pass over the labelled ones."),
    finetune: bool = typer.Option(False, help="Let the network learn too, up to one layer."),
    scratch: bool = typer.Option(False, help="Also from random weights, on the same pictures (one layer)."),
    output: cli.Out = Path("runs/probe"),
    set_: cli.Set = [],  # noqa: B006
    epochs: int = typer.Option(None, help="Short for --set epochs=N."),
    batch_size: int = typer.Option(None, help="Short for --set batch_size=N."),
    lr: float = typer.Option(None, help="Short for --set lr=X."),
    pretrained: cli.Pretrained = False,
    checkpoint: cli.Checkpoint = None,
    *,
    run: Run,
) -> None:
    """Train small classifiers on the layers of a network that stays as it is, and set the layers side by side."""
    from offprint.methods.training._probing import PLOT, TABLE, probe

    quiet_lightning()
    short = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    recipe = {**parse_overrides(set_), **{k: v for k, v in short.items() if v is not None}}
    found = probe(
        model, data, output, layers=[n.strip() for n in layers.split(",") if n.strip()], kind=kind, labels=labels, draws=draws,
        finetune=finetune, scratch=scratch, recipe=recipe, pretrained=pretrained, checkpoint=checkpoint, say=say, run=run,
    )  # fmt: skip
    table = Table("layer", "map", "accuracy %", "loss", *(["from scratch %"] if scratch else []), header_style="bold")
    for row in found.rows:
        cells = [f"{row['channels']} x {row['side']}²", f"{row['accuracy']:.2f}", f"{row['loss']:.3f}"]
        table.add_row(row["layer"], *cells, *([f"{row['scratch']:.2f}"] if scratch else []))
    out.print(table)
    say(f"{output / TABLE}, {output / PLOT}")


probe = cli.with_run(_probe)
