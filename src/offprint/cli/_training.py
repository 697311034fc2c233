"""The options that all verbs which train by a recipe share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offprint.cli.console import parse_overrides

Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
Set = Annotated[
    list[str], typer.Option("--set", "-s", help="A field of the recipe, e.g. --set lr=1e-3; may be repeated.")
]
ModelOption = Annotated[
    list[str], typer.Option("--option", "-o", help="Argument of the model, name=value; may be repeated.")
]
Epochs = Annotated[int | None, typer.Option(help="Short for --set epochs=N.")]
BatchSize = Annotated[int | None, typer.Option(help="Short for --set batch_size=N.")]
Rate = Annotated[float | None, typer.Option(help="Short for --set lr=X --set reference_batch=0 (the rate as given).")]
Size = Annotated[int | None, typer.Option(help="Short for --set input_size=N (pixels).")]
Pretrained = Annotated[bool, typer.Option(help="Start from the released weights.")]
Checkpoint = Annotated[str | None, typer.Option(help="Start from this weight file.")]
Resume = Annotated[bool, typer.Option(help="Go on from the run in --out if there is one.")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed, ...")]
Devices = Annotated[str, typer.Option(help="Number of devices, or 'auto'.")]
Accelerator = Annotated[str, typer.Option(help="cpu, gpu, ... or auto.")]
Accumulate = Annotated[int, typer.Option(help="Batches per step.")]
Workers = Annotated[int, typer.Option(help="Loader processes.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Logger = Annotated[str, typer.Option(help="csv, tensorboard, both or none.")]
OnError = Annotated[str, typer.Option(help="A picture that cannot be read: stop or skip.")]
ShowRecipe = Annotated[bool, typer.Option(help="Print the recipe as it would be used, and stop.")]


def recipe_overrides(
    pairs: list[str], epochs: int | None, batch_size: int | None, lr: float | None, size: int | None
) -> dict:
    """Fields of the recipe from ``--set`` and its short forms, which win."""
    overrides = parse_overrides(pairs)
    short = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "input_size": size}
    overrides.update({name: value for name, value in short.items() if value is not None})
    if lr is not None:
        overrides.setdefault("reference_batch", 0)
    return overrides


def device_count(devices: str) -> int | str:
    """``--devices`` as Lightning takes it."""
    return int(devices) if devices.isdigit() else devices
