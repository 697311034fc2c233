"""``offprint explain IMAGE``: a heat map of where a model looks, as a picture."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import out


def explain(
    image: Path,
    model: str = typer.Option(..., "--model", "-m", help="The folder of a training run, or a model name."),
    method: str = typer.Option(
        "eigen-cam", help="eigen-cam, eigen-grad-cam, seg-eigen-cam, kpca-cam, grad-cam, grad-cam-plus-plus."
    ),
    layer: list[str] = typer.Option(
        [], help="Dotted name of a layer; may be repeated; default the family's usual one."
    ),
    target: str = typer.Option(
        None, help="Class (name or number) to explain; default the predicted one. Methods without gradients ignore it."
    ),
    aug_smooth: bool = typer.Option(False, help="Average over mirrored and brighter versions of the picture."),
    eigen_smooth: bool = typer.Option(False, help="grad-cam*: principal component in place of the weighted sum."),
    checkpoint: str = typer.Option(None, help="Weight file, with a model name."),
    pretrained: bool = typer.Option(False, help="Released weights, with a model name."),
    output: Path = typer.Option(None, "--out", help="Picture to write; default IMAGE_METHOD.png."),
) -> None:
    """Write the part of the picture the model saw, with the heat map over it, and print the box around the hottest part."""
    import io

    import numpy as np
    import torch.nn.functional as F
    from PIL import Image

    from offprint.data.reading import read_picture
    from offprint.errors import unknown
    from offprint.files import atomic_write
    from offprint.methods.understanding import eigen_cam
    from offprint.tasks.classification import trained_model

    if method not in eigen_cam.METHODS:
        raise unknown("method", method, eigen_cam.METHODS)
    picture = read_picture(image)
    network, transform, classes = trained_model(model, checkpoint, pretrained)
    wanted = None if target is None else _class(target, classes)
    cam = eigen_cam.METHODS[method](network, layer or None)
    heat = cam(transform(picture)[None], wanted, aug_smooth=aug_smooth, eigen_smooth=eigen_smooth)
    left, top, right, bottom = part = _seen(transform, picture.width, picture.height)
    heat = F.interpolate(heat[None], (bottom - top, right - left), mode="bilinear")[0, 0]
    base = np.asarray(picture.crop(part), dtype=np.float32) / 255
    buffer = io.BytesIO()
    Image.fromarray(eigen_cam.overlay(base, heat)).save(buffer, format="PNG")
    file = atomic_write(output or image.with_name(f"{image.stem}_{method}.png"), buffer.getvalue())
    box = eigen_cam.box_from_map(heat)
    where = "no part stands out" if box is None else (
        f"hottest part x {left + box[0]}-{left + box[2]}, y {top + box[1]}-{top + box[3]}"
    )  # fmt: skip
    out.print(f"{file}: {where}", highlight=False, soft_wrap=True)


def _class(given: str, classes: list[str] | None) -> int:
    """A class by its number or its name; the method refuses numbers that are out of range."""
    from offprint.errors import OffprintError, unknown

    if classes and given in classes:
        return classes.index(given)
    try:
        return int(given)
    except ValueError:
        if classes:
            raise unknown("class", given, classes) from None
        raise OffprintError(f"this model's classes have no names; give --target a number, not {given!r}") from None


def _seen(transform, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of the picture (left, top, right, bottom) that the evaluation transform's centre crop leaves."""
    from torchvision.transforms import v2

    crop = next((t for t in transform.transforms if isinstance(t, v2.CenterCrop)), None)
    if crop is None:
        return 0, 0, width, height
    resize = next(t for t in transform.transforms if isinstance(t, v2.Resize))
    side = round(min(width, height) * crop.size[0] / resize.size[0])
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
