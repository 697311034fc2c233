"""What tasks on pictures share: files of a folder, a validation part that stays what it was, and a count of what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from offprint.data.images import EXTENSIONS, ImageSplits, Subset
from offprint.errors import DataError


def pictures_in(inputs: Any) -> list[Path]:
    """Picture files, and those of folders at any depth, in the order of their names.

    Raises:
        DataError: a path that is not there, or a folder without pictures.
    """
    files: list[Path] = []
    for given in [inputs] if isinstance(inputs, str | Path) else inputs:
        path = Path(given)
        if path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and p.name[0] != "."
            )
            if not found:
                raise DataError(f"{path} holds no pictures (extensions looked for: {' '.join(EXTENSIONS)})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(
                f"cannot read the picture {path}: there is no such file; give pictures, or a folder of them"
            )
    if not files:
        raise DataError("no pictures were given")
    return files


def files_of(part: Any) -> list[Path]:
    """The files of a part of a folder of pictures; nothing for data in memory."""
    if isinstance(part, Subset):
        samples = getattr(part.base, "samples", None)
        return [Path(samples[i][0]).absolute() for i in part.indices] if samples else []
    return [Path(p).absolute() for p, _ in getattr(part, "samples", [])]


def with_validation(splits: ImageSplits, held: Iterable[str]) -> ImageSplits:
    """The same pictures with this validation part: a picture that came or went moves no other from one part to the other."""
    base = splits.train.base if isinstance(splits.train, Subset) else None
    if (
        base is None
        or not isinstance(splits.val, Subset)
        or splits.val.base is not base
        or not hasattr(base, "samples")
    ):
        return splits  # the data have a split of their own
    wanted = set(held)
    inside = [str(Path(p).absolute()) in wanted for p, _ in base.samples]
    if not any(inside):
        return splits
    train, val = ([i for i, held_out in enumerate(inside) if held_out is part] for part in (False, True))
    return ImageSplits(Subset(base, train), Subset(base, val), splits.classes, splits.name)


class Readable(Dataset):
    """The items of a data set that can be read; for the others ``None``, which :func:`present` leaves out of a batch.

    Args:
        base: the data set.
        on_error: ``stop`` raises, ``skip`` gives ``None``.
    """

    def __init__(self, base: Dataset, on_error: str = "stop"):
        if on_error not in ("stop", "skip"):
            raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
        self.base, self.on_error = base, on_error

    def __len__(self) -> int:
        return len(self.base)  # type: ignore[arg-type]

    def __getitem__(self, index: int):
        try:
            return self.base[index]
        except DataError as error:
            if self.on_error == "stop":
                raise
            return str(error)


def present(items: Sequence[Any]) -> tuple[Any, list[str]]:
    """(batch of what could be read, or ``None``; why the others could not)."""
    good = [item for item in items if not isinstance(item, str)]
    return (default_collate(good) if good else None), [item for item in items if isinstance(item, str)]


def left_out(reasons: Sequence[str], shown: int = 5) -> list[str]:
    """How many were left out, and the first reasons."""
    if not reasons:
        return []
    more = len(reasons) - shown
    return [f"{len(reasons)} left out", *reasons[:shown], *([f"and {more} more"] if more > 0 else [])]


def normaliser(preprocessing: Mapping[str, Any], channels: int) -> Callable[[Tensor], Tensor]:
    """(3, H, W) uint8 to the normalised image that the network takes."""
    mean, std = (
        torch.tensor(preprocessing.get(k, d))[:, None, None] for k, d in (("mean", (0.0,) * 3), ("std", (1.0,) * 3))
    )
    if channels not in (1, 3):
        raise DataError(f"pictures have 1 or 3 channels, the model takes {channels}")

    def apply(picture: Tensor) -> Tensor:
        x = (picture.float() / 255 - mean) / std
        return x if channels == 3 else x.mean(0, keepdim=True)

    return apply
