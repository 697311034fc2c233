"""``offprint predict``: what a trained or released model says of inputs, whatever its task."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.table import Table

from offprint.cli import _options as cli
from offprint.cli.console import bar, out, say

SHOWN = 40  # rows of a table on the screen


def predict(
    words: list[str] = typer.Argument(
        metavar="INPUT... [OPTIONS OF THE TASK]",
        help="What the task takes: pictures or folders of them, a graph, scans, users.",
    ),
    model: str = typer.Option(..., "--model", "-m", help="The folder of a run, or a model name."),
    task: cli.Task = None,
    checkpoint: cli.Checkpoint = None,
    pretrained: cli.Pretrained = False,
    output: Path = typer.Option(
        None, "--out", help="File or folder to write; its ending says how (.csv, .json, .png, ...)."
    ),
    as_json: cli.Json = False,
) -> None:
    """Predict; 'offprint tasks NAME' lists what else can be chosen."""
    from offprint.api import find
    from offprint.tasks.contract import choices

    ready = find(model, pretrained, checkpoint, task=task)
    inputs, options, _ = cli.split_words(words, choices(ready.task.predict), "predict", ready.task.name)
    if not inputs:
        raise typer.BadParameter("nothing to predict; give inputs")
    with bar() as progress:
        found = ready.task.predict_to(ready, inputs, output, progress=cli.advancing(progress, "predicting"), **options)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
        return
    columns, rows = found.table()
    if output is None:
        table = Table(header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows[:SHOWN]:
            table.add_row(*row)
        out.print(table)
        if len(rows) > SHOWN:
            say(f"and {len(rows) - SHOWN:,} more rows; write them with --out FILE.csv", style="dim")
    else:
        say(f"{output}: {len(found):,} predictions")
    for note in found.notes:
        say(note, style="dim")


predict.settings = cli.LOOSE  # type: ignore[attr-defined]
