"""``offprint pretrain``: a model on pictures without labels, for ``offprint train --checkpoint`` to go on from."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli import _training as cli
from offprint.cli.console import out, parse_overrides, quiet_lightning


def pretrain(
    model: str = typer.Option(
        ..., "--model", "-m", help="A model whose patches can be hidden: swin, swinv2, convnext."
    ),
    data: str = typer.Option(
        ..., "--data", "-d", help="A folder of pictures at any depth, mnist, ..., or sample:cifar10."
    ),
    method: str = typer.Option("simmim", help="simmim: predict the pixels of hidden squares."),
    output: cli.Out = Path("runs/pretrain"),
    set_: cli.Set = [],  # noqa: B006 (Typer reads the default, nobody changes it)
    option: cli.ModelOption = [],  # noqa: B006
    epochs: cli.Epochs = None,
    batch_size: cli.BatchSize = None,
    lr: cli.Rate = None,
    size: cli.Size = None,
    mask_unit: int = typer.Option(32, help="Side of a hidden square in pixels."),
    mask_ratio: float = typer.Option(0.6, help="Share of the squares that is hidden."),
    norm_target: int = typer.Option(None, help="Neighbourhood that normalises the target, 0 for none; 47 for SwinV2."),
    pretrained: cli.Pretrained = False,
    checkpoint: cli.Checkpoint = None,
    resume: cli.Resume = True,
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
    """Pre-train a model without labels; SimMIM's recipe is the default and every field can be overridden."""
    overrides = cli.recipe_overrides(set_, epochs, batch_size, lr, size)
    from offprint.tasks import pretraining

    if show_recipe:
        import dataclasses

        out.print(dataclasses.asdict(pretraining.pretraining_recipe(model, overrides)))
        return
    quiet_lightning()
    summary = pretraining.pretrain(
        model, data, output, method=method, pretrained=pretrained, checkpoint=checkpoint, overrides=overrides,
        model_options=parse_overrides(option), mask_unit=mask_unit, mask_ratio=mask_ratio, norm_target=norm_target,
        resume=resume, precision=precision, devices=cli.device_count(devices),
        accelerator=accelerator, accumulate=accumulate, workers=workers, seed=seed, logger=logger, on_error=on_error,
    )  # fmt: skip
    out.print(f"hidden pixels off by {summary['loss']:.4f} after {summary['epochs']} epochs; weights: {summary['weights']}\n"
              f"next: offprint train --model {model} --data ... --checkpoint {summary['weights']}",
              highlight=False, soft_wrap=True)  # fmt: skip
