"""``offprint train``: a model, by its paper's recipe, on a folder, a named data set or a bundled sample."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import out, parse_overrides, quiet_lightning


def train(
    model: str = typer.Option(..., "--model", "-m", help="A name from 'offprint models'."),
    data: str = typer.Option(
        ..., "--data", "-d", help="A folder of class folders, mnist, cifar10, ..., or sample:cifar10."
    ),
    output: Path = typer.Option(Path("runs/train"), "--out", help="Folder of the run."),
    set_: list[str] = typer.Option(
        [], "--set", "-s", help="A field of the recipe, e.g. --set lr=1e-3; may be repeated."
    ),
    option: list[str] = typer.Option([], "--option", "-o", help="Argument of the model, name=value; may be repeated."),
    epochs: int = typer.Option(None, help="Short for --set epochs=N."),
    batch_size: int = typer.Option(None, help="Short for --set batch_size=N."),
    lr: float = typer.Option(None, help="Short for --set lr=X --set reference_batch=0 (the rate as given)."),
    size: int = typer.Option(None, help="Short for --set input_size=N (pixels)."),
    pretrained: bool = typer.Option(False, help="Start from the released weights."),
    checkpoint: str = typer.Option(None, help="Start from this weight file."),
    resume: bool = typer.Option(True, help="Go on from the run in --out if there is one."),
    patience: int = typer.Option(0, help="Stop after this many epochs without a better validation accuracy."),
    precision: str = typer.Option("32-true", help="32-true, bf16-mixed, 16-mixed, ..."),
    devices: str = typer.Option("1", help="Number of devices, or 'auto'."),
    accelerator: str = typer.Option("auto", help="cpu, gpu, ... or auto."),
    accumulate: int = typer.Option(1, help="Batches per step."),
    workers: int = typer.Option(0, help="Loader processes."),
    seed: int = typer.Option(0, help="Of everything random."),
    logger: str = typer.Option("csv", help="csv, tensorboard, both or none."),
    on_error: str = typer.Option("stop", help="A picture that cannot be read: stop or skip."),
    show_recipe: bool = typer.Option(False, help="Print the recipe as it would be used, and stop."),
) -> None:
    """Train a classifier; the paper's recipe is the default and every field can be overridden."""
    overrides = parse_overrides(set_)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr), ("input_size", size)):
        if value is not None:
            overrides[name] = value
    if lr is not None:
        overrides.setdefault("reference_batch", 0)
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
        devices=int(devices) if devices.isdigit() else devices, accelerator=accelerator, accumulate=accumulate,
        workers=workers, seed=seed, logger=logger, on_error=on_error,
    )  # fmt: skip
    out.print(f"validation accuracy {summary['accuracy']:.2f} % after {summary['epochs']} epochs; weights: {summary['weights']}",
              highlight=False, soft_wrap=True)  # fmt: skip
