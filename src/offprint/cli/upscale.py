"""``offprint upscale IMAGE``: a larger picture."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import bar, out


def upscale(
    image: Path,
    model: str = typer.Option(
        "cfsr_x2", "--model", "-m", help="A super-resolution model, e.g. cfsr_x2, cfsr_x3, cfsr_x4."
    ),
    checkpoint: str = typer.Option(None, help="Weight file; default the released weights."),
    output: Path = typer.Option(None, "--out", help="Picture to write; default IMAGE_xN.png."),
    tile: int = typer.Option(256, help="Side of a tile in input pixels; memory depends on it."),
) -> None:
    """Enlarge a picture with the released weights, or with weights of your own."""
    import io

    from PIL import Image, UnidentifiedImageError

    from offprint.api import create_model, entry, list_models
    from offprint.errors import DataError, OffprintError
    from offprint.files import atomic_write
    from offprint.models.deploy import deploy
    from offprint.tasks.restoration import upscale as enlarge_picture

    if entry(model).kind != "signal" or "scale" not in entry(model).kwargs:
        known = [n for n in list_models(kind="signal") if "scale" in entry(n).kwargs]
        raise OffprintError(f"{model} does not enlarge pictures; models that do: {', '.join(known)}")
    if tile < 32:
        raise OffprintError(f"tile={tile} is too small; give 32 or more")
    try:
        with Image.open(image) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"cannot read the picture {image}: {error}") from error
    network = create_model(model, pretrained=checkpoint is None, checkpoint_path=checkpoint).eval()
    network = deploy(network)
    with bar() as progress:
        task = progress.add_task("enlarging", total=None)

        def advance(total: int | None = None, text: str = "") -> None:
            progress.update(task, total=total) if total else progress.update(task, advance=1)

        larger = enlarge_picture(network, picture, tile=tile, progress=advance)
    buffer = io.BytesIO()
    larger.save(buffer, format="PNG")
    file = output or image.with_name(f"{image.stem}_x{network.scale}.png")
    out.print(f"{atomic_write(file, buffer.getvalue())}: {picture.width}x{picture.height} to {larger.width}x{larger.height}",
              highlight=False, soft_wrap=True)  # fmt: skip
