"""``offprint label --teacher RUN --data ... --out DIR``: a teacher's answers to crops of each picture, written down for students."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli import _options as cli
from offprint.cli.console import bar, say


def label(
    teacher: str = typer.Option(
        ..., "--teacher", "-t", help="The folder of a classifier's run, or a model name with --pretrained."
    ),
    data: str = typer.Option(..., "--data", "-d", help="Labelled pictures; labels are made of the training part."),
    output: Path = typer.Option(Path("runs/labels"), "--out", help="Folder of the soft labels."),
    crops: int = typer.Option(500, help="Of each picture."),
    form: str = typer.Option(
        "marginal_smoothing_k5",
        "--format",
        help="hard, smoothing, marginal_smoothing_k5 (any k), marginal_renorm_k5, or ori (all classes).",
    ),
    half: bool = typer.Option(False, help="Half precision for places and probabilities."),
    seed: int = typer.Option(0, help="Of the crops."),
    min_scale: float = typer.Option(0.08, help="Least share of the picture's area that a crop has."),
    max_scale: float = typer.Option(0.936, help="Largest share."),
    size: int = typer.Option(None, help="Side of a crop as the teacher sees it; default the teacher's own."),
    reference: str = typer.Option(None, help="Folder of soft labels whose crops are used again."),
    released: str = typer.Option("", help="Format of the files in --reference where they are FKD's own."),
    val_fraction: float = typer.Option(
        0.2, help="Share held out where the data have no part of their own for it, as the student will be trained."
    ),
    data_seed: int = typer.Option(0, help="Of that part: the --seed that the student will be trained with."),
    batch_size: int = typer.Option(50, help="Crops at once."),
    workers: int = typer.Option(1, help="Threads that cut and resize."),
    device: str = typer.Option("cpu", help="cpu, cuda, ..."),
    pretrained: cli.Pretrained = False,
    checkpoint: cli.Checkpoint = None,
) -> None:
    """Write soft labels: a student then learns from them by 'offprint train --method ferkd:labels=DIR', without the teacher."""
    from offprint.methods.training._soft_labels import label as make

    with bar() as progress:
        made = make(
            teacher, data, output, pretrained=pretrained, checkpoint=checkpoint, val_fraction=val_fraction, data_seed=data_seed, crops=crops,
            form=form, half=half, seed=seed, scale=(min_scale, max_scale), size=size, reference=reference, released=released, batch=batch_size,
            workers=workers, device=device, say=say, progress=cli.advancing(progress, "labels"),
        )  # fmt: skip
    say(
        f"{made.folder}: {made.files:,} files, {made.bytes / 2**20:,.2f} MiB; {made.made:,} made in {made.seconds:.1f} s, {made.per_second:,.0f} labels per second"
    )
    say(f"next: offprint train --model ... --data {data} --method ferkd:labels={made.folder}")
