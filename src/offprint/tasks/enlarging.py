"""Enlarging picture files: a whole picture with its transparency, depth and profile; one file or a folder of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from offprint.data.reading import EXTENSIONS, Picture, open_picture
from offprint.data.writing import encode, format_of
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write, local_path, scheme
from offprint.tasks.restoration import enlarge


class Enlarged(NamedTuple):
    """A file that was written: where it came from, where it lies, (width, height) before and after, and what it lacks, in words."""

    source: Path
    file: Path
    before: tuple[int, int]
    after: tuple[int, int]
    notes: list[str]


def enlarge_picture(model: nn.Module, picture: Picture, **kwargs) -> Picture:
    """Enlarge a picture with all that belongs to it.

    Transparency is enlarged apart, as a grey picture. Before that the colour of wholly transparent pixels, which nobody has seen,
    gives way to that of the nearest visible pixel, so that it does not bleed into the edge.

    Args:
        model: one with a ``scale``, (B, 3, H, W) in [0, 1] to (B, 3, sH, sW).
        kwargs: as in :func:`~offprint.tasks.restoration.enlarge`.
    """
    colour, alpha = picture.colour, picture.alpha
    if alpha is not None:
        colour = _uncovered(colour, alpha)
    larger = _run(model, colour, **kwargs)
    opacity = None if alpha is None else _run(model, alpha[..., None], **{**kwargs, "progress": None})[..., 0]
    return picture.but(colour=larger, alpha=opacity)


def _run(model: nn.Module, values: np.ndarray, **kwargs) -> np.ndarray:
    """(H, W, 1 or 3) in [0, 1] to (sH, sW, 1 or 3); grey goes in as three equal channels, and their mean comes out."""
    grey = values.shape[2] == 1
    image = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)
    out = enlarge(model.eval(), image.expand(3, -1, -1), **kwargs)
    return (out.mean(0, keepdim=True) if grey else out).permute(1, 2, 0).numpy()


def _uncovered(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return colour[rows, columns]


def planned(source: str | Path, output: str | Path | None, scale: int) -> list[tuple[Path, Path]]:
    """Which files are read and which are written: a picture, or every picture under a folder.

    Args:
        source: a picture or a folder.
        output: the picture, or the folder, to write; default ``NAME_xN.png`` beside the picture, ``FOLDER_xN`` beside the folder.
        scale: N.

    Raises:
        DataError: nothing there, an ending that is not written, or a picture that would overwrite its input.
    """
    if scheme(source) not in ("", "file") and output is None:
        raise DataError(f"{source} is not on this machine; say where the larger picture goes with --out")
    source = Path(source) if scheme(source) not in ("", "file") else local_path(source)
    output = None if output is None else local_path(output, "a picture that is written")
    if not source.is_dir():
        target = output if output else source.with_name(f"{source.stem}_x{scale}.png")
        if target.is_dir():
            target = target / f"{source.stem}_x{scale}.png"
        format_of(target)
        pairs = [(source, target)]
    else:
        root = output if output else source.with_name(f"{source.resolve().name}_x{scale}")
        if root.is_file() or root.resolve() == source.resolve():
            raise DataError(f"--out {root}: give a folder of its own for the pictures of {source}")
        files = [p for p in sorted(source.rglob("*")) if p.suffix.lower() in EXTENSIONS and p.is_file()]
        files = [p for p in files if not p.resolve().is_relative_to(root.resolve()) and not _hidden(p, source)]
        if not files:
            raise DataError(f"{source} holds no pictures (extensions looked for: {' '.join(EXTENSIONS)})")
        stems = [str(p.with_suffix("")) for p in files]
        named = lambda p: p.name.replace(".", "_") if stems.count(str(p.with_suffix(""))) > 1 else p.stem  # noqa: E731
        pairs = [(p, root / p.relative_to(source).with_name(f"{named(p)}_x{scale}.png")) for p in files]
    read = {p.resolve() for p, _ in pairs}
    for _, target in pairs:
        if target.resolve() in read or any(target.exists() and target.samefile(p) for p in read if p.exists()):
            raise DataError(f"{target} would be written over the picture that is read; give another --out")
    return pairs


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def enlarge_files(
    model: nn.Module,
    pairs: list[tuple[Path, Path]],
    *,
    failed: Callable[[OffprintError], None] | None = None,
    **kwargs,
) -> Iterator[Enlarged]:
    """Enlarge files one after the other.

    Args:
        pairs: as :func:`planned` gives them.
        failed: told of a picture that cannot be read, and the others go on; without it, the first one ends all.
        kwargs: as in :func:`~offprint.tasks.restoration.enlarge`.
    """
    for source, target in pairs:
        try:
            picture = open_picture(source)
        except OffprintError as error:
            if failed is None:
                raise
            failed(error)
            continue
        larger = enlarge_picture(model, picture, **kwargs)
        data, lost = encode(larger, format_of(target))
        yield Enlarged(source, atomic_write(target, data), picture.size, larger.size, [*picture.notes, *lost])
