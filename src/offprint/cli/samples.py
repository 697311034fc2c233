"""``offprint samples``: the bundled real data as files, to try the other verbs on."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from offprint.cli.console import bar, out

KINDS = {
    "photographs": "three photographs as PNG",
    "set5": "Set5 and its bicubic reductions as PNG",
    "cifar10": "CIFAR-10 pictures (JPEG copies) in train/CLASS and test/CLASS",
    "mnist": "MNIST digits as PNG in train/DIGIT and test/DIGIT",
    "embeddings": "a Parquet table of the MNIST digits: id, label, and 32 principal components as embedding",
}


def samples(
    name: str = typer.Argument(None, help=f"One of {', '.join(KINDS)}; without it they are listed."),
    folder: Path = typer.Argument(None, help="Where to write; default ./NAME."),
) -> None:
    """List the bundled samples, or write one out as files."""
    from offprint.data.samples import FOLDER
    from offprint.errors import unknown
    from offprint.files import local_path

    if name is None:
        table = Table(header_style="bold")
        for column in ("sample", "what it gives"):
            table.add_column(column)
        for key, text in KINDS.items():
            table.add_row(key, text)
        out.print(table)
        out.print(f"sources and licences: {FOLDER}/*.SOURCE.md", highlight=False, soft_wrap=True)
        return
    if name not in KINDS:
        raise unknown("sample", name, KINDS)
    target = local_path(folder, "a sample") if folder else Path(name)
    count = _embeddings(target) if name == "embeddings" else _pictures(name, target)
    out.print(f"{target}: {count}", highlight=False, soft_wrap=True)


def _pictures(name: str, target: Path) -> str:
    from PIL import Image

    from offprint.data import digits, images, photos

    files: list[tuple[str, object]] = []
    if name == "photographs":
        files = [(f"{k}.png", v.permute(1, 2, 0).numpy()) for k, v in photos.photographs().items()]
    elif name == "set5":
        for scale in (1, 2, 3, 4):
            files += [(f"x{scale}/{k}.png", v.permute(1, 2, 0).numpy()) for k, v in photos.set5(scale).items()]
    else:
        for part in ("train", "test"):
            if name == "mnist":
                pictures, labels = digits.mnist(part == "train")
                classes = [str(i) for i in range(10)]
            else:
                pictures, labels, classes = images.cifar10(part == "train")
            files += [
                (f"{part}/{classes[k]}/{i:05d}.png", p) for i, (p, k) in enumerate(zip(pictures, labels, strict=True))
            ]
    with bar() as progress:
        task = progress.add_task(f"writing {name}", total=len(files))
        for file, array in files:
            path = target / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            progress.advance(task)
    return f"{len(files)} pictures"


def _embeddings(target: Path) -> str:
    import io

    import numpy as np

    from offprint.data.digits import mnist
    from offprint.errors import need
    from offprint.files import atomic_write

    need("pyarrow", "curation", "writing Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures, labels = mnist(True)
    rows = pictures.reshape(len(pictures), -1).astype(np.float64) / 255
    rows -= rows.mean(0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    values = (rows @ vectors[:, -32:]).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 32)
    table = pa.table({"id": pa.array(range(len(rows))), "label": pa.array(labels), "embedding": column})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    file = target / "digits.parquet" if target.suffix != ".parquet" else target
    atomic_write(file, buffer.getvalue())
    return f"{len(rows):,} rows in {file.name}"
