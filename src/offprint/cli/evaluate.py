"""``offprint evaluate``: accuracy of a trained or released model."""

from __future__ import annotations

import json

import typer

from offprint.cli.console import bar, out


def evaluate(
    model: str = typer.Argument(help="The folder of a training run, or a model name."),
    data: str = typer.Option(..., "--data", "-d", help="As for train; its validation part is used."),
    checkpoint: str = typer.Option(None, help="Weight file, with a model name."),
    pretrained: bool = typer.Option(False, help="Released weights, with a model name."),
    batch_size: int = typer.Option(64),
    workers: int = typer.Option(0),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Measure top-1, top-5 and loss."""
    from offprint.data.images import open_images
    from offprint.tasks.classification import evaluate_classifier, trained_model

    network, transform, _ = trained_model(model, checkpoint, pretrained)
    splits = open_images(data)
    with bar() as progress:
        task = progress.add_task("evaluating", total=None)

        def advance(total=None, text="") -> None:
            progress.update(task, total=total) if total else progress.update(task, advance=1, description=text)

        found = evaluate_classifier(
            network, splits, transform, batch_size=batch_size, workers=workers, progress=advance
        )
    if as_json:
        print(json.dumps(found))
        return
    out.print(
        f"top-1 {found['top1']:.2f} %   top-5 {found['top5']:.2f} %   loss {found['loss']:.4f}   ({found['images']} images)"
    )
