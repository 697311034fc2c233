"""``offprint train``: a model, by its paper's recipe, on a folder, a named data set or a bundled sample."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli import _training as cli
from offprint.cli.console import out, parse_overrides, quiet_lightning


def train(
    model: str = typer.Option(..., "--model", "-m", help="A name from 'offprint models'."),
    data: str = typer.Option(
        ..., "--data", "-d", help="A folder of class folders, mnist, cifar10, ..., or sample:cifar10."
    ),
    output: cli.Out = Path("runs/train"),
    set_: cli.Set = [],  # noqa: B006 (Typer reads the default, nobody changes it)
    option: cli.ModelOption = [],  # noqa: B006
    epochs: cli.Epochs = None,
    batch_size: cli.BatchSize = None,
    lr: cli.Rate = None,
    size: cli.Size = None,
    pretrained: cli.Pretrained = False,
    checkpoint: cli.Checkpoint = None,
    resume: cli.Resume = True,
    patience: int = typer.Option(0, help="Stop after this many epochs without a better validation accuracy."),
    precision: cli.Precision = "32-true",
    devices: cli.Devices = "1",
    accelerator: cli.Accelerator = "auto",
    accumulate: cli.Accumulate = 1,
    workers: cli.Workers = 0,
    seed: cli.Seed = 0,
    logger: cli.Logger = "csv",
    on_error: cli.OnError = "stop",
    show_recipe: cli.ShowRecipe = False,
) -> None:
    """Train a classifier; the paper's recipe is the default and every field can be overridden."""
    overrides = cli.recipe_overrides(set_, epochs, batch_size, lr, size)
    if show_recipe:
        import dataclasses

        from offprint.tasks.recipe import Recipe

        out.print(dataclasses.asdict(Recipe.of(model, **overrides)))
        return
    from offprint.tasks.classification import train_classifier

    quiet_lightning()
    summary = train_classifier(
        model, data, output, pretrained=pretrained, checkpoint=checkpoint, overrides=overrides,
        model_options=parse_overrides(option), resume=resume, patience=patience, precision=precision,
        devices=cli.device_count(devices), accelerator=accelerator, accumulate=accumulate,
        workers=workers, seed=seed, logger=logger, on_error=on_error,
    )  # fmt: skip
    out.print(f"validation accuracy {summary['accuracy']:.2f} % after {summary['epochs']} epochs; weights: {summary['weights']}",
              highlight=False, soft_wrap=True)  # fmt: skip
