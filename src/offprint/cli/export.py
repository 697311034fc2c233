"""``offprint export``: a model as an ONNX or torch.export file, its output checked against the eager model."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import out, parse_overrides


def export(
    model: str = typer.Argument(help="The folder of a training run, or a model name."),
    format_: str = typer.Option("onnx", "--format", "-f", help="onnx or torch-export."),
    output: Path = typer.Option(None, "--out", help="File to write; default MODEL.onnx or MODEL.pt2."),
    checkpoint: str = typer.Option(None, help="Weight file, with a model name."),
    pretrained: bool = typer.Option(False, help="Released weights, with a model name."),
    size: list[int] = typer.Option(
        None, help="Input size without the batch axis; repeat, e.g. --size 3 --size 64 --size 64."
    ),
    option: list[str] = typer.Option([], "--option", "-o", help="Argument of the model, name=value; may be repeated."),
    dynamic: str = typer.Option("batch", help="Sizes that stay free, with commas: batch,height,width."),
    merge: bool = typer.Option(True, help="Deploy first: merge branches and fold BatchNorm."),
) -> None:
    """Export for use outside this library."""
    import torch

    from offprint.api import create_model, load_run
    from offprint.models.export import export_model
    from offprint.tasks.folder import is_run

    if is_run(model):
        ready = load_run(model)
        network, name, sample = ready.model, Path(model).name, ready.task.sample(ready)
    else:
        network = create_model(model, pretrained, checkpoint_path=checkpoint, **parse_overrides(option)).eval()
        name, sample = model, None
    if size:
        sample = torch.randn(1, *size)
    file = output or Path(f"{name}.{'onnx' if format_ == 'onnx' else 'pt2'}")
    free = [name.strip() for name in dynamic.split(",") if name.strip()]
    moved = export_model(network, file, format_, sample=sample, merge=merge, dynamic=free)
    out.print(f"{file}: largest difference from the eager model {moved:.1e}", highlight=False, soft_wrap=True)
