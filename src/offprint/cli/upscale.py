"""``offprint upscale PICTURE``: a larger picture, or a folder of them."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import bar, errors, out


def upscale(
    image: Path = typer.Argument(help="A picture, or a folder of pictures at any depth."),
    model: str = typer.Option(
        "cfsr_x2", "--model", "-m", help="cfsr_x2, cfsr_x3, cfsr_x4, ..., or the folder of a run."
    ),
    checkpoint: str = typer.Option(None, help="Weight file; default the released weights."),
    output: Path = typer.Option(
        None,
        "--out",
        help="Picture (.png .jpg .webp .tif) or folder to write; default IMAGE_xN.png, or the folder FOLDER_xN. Never the input.",
    ),
    tile: int = typer.Option(256, help="Side of a tile in input pixels; memory depends on it."),
) -> None:
    """Enlarge pictures with the released weights, or with weights of your own.

    Transparency, 16 bits per channel, the colour profile, the resolution in dpi and EXIF data are kept.
    """
    from offprint.api import find
    from offprint.errors import OffprintError
    from offprint.models.deploy import deploy
    from offprint.tasks.enlarging import enlarge_files, planned
    from offprint.tasks.folder import is_run

    if tile < 32:
        raise OffprintError(f"tile={tile} is too small; give 32 or more")
    folder = image.is_dir()
    ready = find(
        model, checkpoint is None and not is_run(model), checkpoint, task=None if is_run(model) else "restoration"
    )
    if ready.task.name != "restoration":
        raise OffprintError(f"{model} {ready.task.does}; upscale takes a model that enlarges pictures, such as cfsr_x2")
    pairs = planned(image, output, ready.model.scale)
    network = deploy(ready.model)
    unread: list[OffprintError] = []
    with bar() as progress:
        task = progress.add_task("enlarging", total=None)

        def advance(total: int | None = None, text: str = "") -> None:
            progress.update(task, total=total, completed=0) if total else progress.update(task, advance=1)

        failed = unread.append if folder else None
        for done in enlarge_files(network, pairs, failed=failed, tile=tile, progress=advance):
            (width, height), (wide, high) = done.before, done.after
            out.print(f"{done.file}: {width}x{height} to {wide}x{high}", highlight=False, soft_wrap=True)
            for note in done.notes:
                errors.print(f"{done.source}: {note}", highlight=False, markup=False, soft_wrap=True)
    for error in unread:
        errors.print(f"left out: {error}", highlight=False, markup=False, soft_wrap=True)
    if unread:
        errors.print(f"{len(unread)} of {len(pairs)} pictures could not be read", highlight=False)
        raise typer.Exit(2)
