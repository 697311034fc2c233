"""``offprint rate PICTURES``: how good pictures look, alone or against a reference."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from offprint.cli import _options as cli
from offprint.cli.console import bar, out, say

SHOWN = 3  # of the worst and of the best


def rate(
    images: list[Path] = typer.Argument(help="Pictures, and folders of them."),
    reference: str = typer.Option(
        None, "--reference", "-r", help="The picture they are copies of, or a folder with one of the same name for each."
    ),
    model: str = typer.Option(
        None, "--model", "-m",
        help="topiq_nr_resnet50 (default), topiq_fr_resnet50 (default with --reference), topiq_iaa_resnet50 (aesthetics), ..., or the folder of a run.",
    ),
    checkpoint: cli.Checkpoint = None,
    crops: int = typer.Option(0, help="The mean of so many crops instead of the whole picture."),
    output: Path = typer.Option(None, "--out", help="File to write: .csv, .json, or a picture of the worst and best."),
) -> None:  # fmt: skip
    """Rate pictures: the higher, the better; PSNR and SSIM stand beside where there is a reference.

    A file that cannot be read, or whose reference is of another size, is named and the others are rated.
    """
    from offprint.api import find
    from offprint.errors import OffprintError
    from offprint.tasks.folder import is_run

    name = model or ("topiq_fr_resnet50" if reference else "topiq_nr_resnet50")
    ready = find(name, checkpoint is None and not is_run(name), checkpoint, task=None if is_run(name) else "quality")
    if ready.task.name != "quality":
        raise OffprintError(
            f"{name} {ready.task.does}; rate takes a model that rates pictures, such as topiq_nr_resnet50"
        )
    several = len(images) > 1 or images[0].is_dir()
    with bar() as progress:
        found = ready.task.predict_to(
            ready, images, output, reference=reference, crops=crops, on_error="skip" if several else "stop",
            progress=cli.advancing(progress, "rating"),
        )  # fmt: skip
    columns, rows = found.table()
    order = sorted(range(len(found)), key=lambda i: found[i]["score"])
    shown = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
    table = Table(*columns, header_style="bold", title="worst first" if shown == order else "the worst and the best")
    for i in shown:
        table.add_row(*rows[i])
    if rows:
        out.print(table)
        say(f"{len(rows)} pictures, mean score {sum(r['score'] for r in found) / len(rows):.4f}")
    if output is not None:
        say(f"written to {output}")
    for note in found.notes:
        say(note, style="dim")
    if not rows:
        raise typer.Exit(2)
