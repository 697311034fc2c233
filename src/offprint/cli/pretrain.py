"""``offprint pretrain``: a model on pictures without labels, for ``offprint train --checkpoint`` to go on from."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import out, parse_overrides


def pretrain(
    model: str = typer.Option(
        ..., "--model", "-m", help="A model whose patches can be hidden: swin, swinv2, convnext."
    ),
    data: str = typer.Option(
        ..., "--data", "-d", help="A folder of pictures at any depth, mnist, ..., or sample:cifar10."
    ),
    method: str = typer.Option("simmim", help="simmim: predict the pixels of hidden squares."),
    output: Path = typer.Option(Path("runs/pretrain"), "--out", help="Folder of the run."),
    set_: list[str] = typer.Option(
        [], "--set", "-s", help="A field of the recipe, e.g. --set lr=1e-3; may be repeated."
    ),
    option: list[str] = typer.Option([], "--option", "-o", help="Argument of the model, name=value; may be repeated."),
    epochs: int = typer.Option(None, help="Short for --set epochs=N."),
    batch_size: int = typer.Option(None, help="Short for --set batch_size=N."),
    lr: float = typer.Option(None, help="Short for --set lr=X --set reference_batch=0 (the rate as given)."),
    size: int = typer.Option(None, help="Short for --set input_size=N (pixels)."),
    mask_unit: int = typer.Option(32, help="Side of a hidden square in pixels."),
    mask_ratio: float = typer.Option(0.6, help="Share of the squares that is hidden."),
    norm_target: int = typer.Option(None, help="Neighbourhood that normalises the target, 0 for none; 47 for SwinV2."),
    pretrained: bool = typer.Option(False, help="Start from the released weights."),
    checkpoint: str = typer.Option(None, help="Start from this weight file."),
    resume: bool = typer.Option(True, help="Go on from the run in --out if there is one."),
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
    """Pre-train a model without labels; SimMIM's recipe is the default and every field can be overridden."""
    overrides = parse_overrides(set_)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr), ("input_size", size)):
        if value is not None:
            overrides[name] = value
    if lr is not None:
        overrides.setdefault("reference_batch", 0)
    from offprint.tasks import pretraining

    if show_recipe:
        import dataclasses

        out.print(dataclasses.asdict(pretraining.pretraining_recipe(model, overrides)))
        return
    summary = pretraining.pretrain(
        model, data, output, method=method, pretrained=pretrained, checkpoint=checkpoint, overrides=overrides,
        model_options=parse_overrides(option), mask_unit=mask_unit, mask_ratio=mask_ratio, norm_target=norm_target,
        resume=resume, precision=precision, devices=int(devices) if devices.isdigit() else devices,
        accelerator=accelerator, accumulate=accumulate, workers=workers, seed=seed, logger=logger, on_error=on_error,
    )  # fmt: skip
    out.print(f"hidden pixels off by {summary['loss']:.4f} after {summary['epochs']} epochs; weights: {summary['weights']}\n"
              f"next: offprint train --model {model} --data ... --checkpoint {summary['weights']}",
              highlight=False, soft_wrap=True)  # fmt: skip
