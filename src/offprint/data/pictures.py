"""Pictures without labels, for pre-training: any folder, or what :func:`~offprint.data.images.open_images` opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offprint.data.images import ImageFolder, ImageSplits, Subset, open_images
from offprint.data.reading import EXTENSIONS
from offprint.errors import DataError


class Pictures(ImageFolder):
    """Every picture under a folder, at any depth, all of one class.

    Args:
        root, transform, on_error: as for :class:`~offprint.data.images.ImageFolder`.

    Raises:
        DataError: no such folder, or no pictures.
    """

    def __init__(self, root: str | Path, transform=None, on_error: str = "stop"):
        root = Path(root)
        if on_error not in ("stop", "skip"):
            raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
        if not root.is_dir():
            raise DataError(f"no folder at {str(root)!r}; give a folder of pictures")
        hidden = lambda p: any(part.startswith(".") for part in p.relative_to(root).parts)  # noqa: E731
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and not hidden(p))
        if not files:
            raise DataError(f"{root} holds no pictures (extensions looked for: {' '.join(EXTENSIONS)})")
        self.root, self.transform, self.on_error, self.classes = root, transform, on_error, ["picture"]
        self.samples = [(p, 0) for p in files]
        self.targets = [0] * len(files)


def open_pictures(
    source: str | Path, *, val_fraction: float = 0.05, seed: int = 0, on_error: str = "stop"
) -> ImageSplits:
    """Open pictures for training without labels.

    Args:
        source: a folder of pictures at any depth (with ``train`` and ``val`` in it, these two are kept apart), or a name that
            :func:`~offprint.data.images.open_images` knows.
        val_fraction: share held out of a folder that has no ``val``.
        seed: of that split.
        on_error: ``"stop"`` or ``"skip"`` for pictures that cannot be read.
    """
    root = Path(source)
    if not root.is_dir():
        return open_images(source, seed=seed, on_error=on_error)
    other = next((root / n for n in ("val", "valid", "validation", "test") if (root / n).is_dir()), None)
    if (root / "train").is_dir() and other is not None:
        return ImageSplits(
            Pictures(root / "train", on_error=on_error), Pictures(other, on_error=on_error), ["picture"], str(source)
        )
    pictures = Pictures(root, on_error=on_error)
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
    if len(pictures) < 2:
        raise DataError(f"{root} holds one picture; at least two are needed to hold one out")
    order = np.random.default_rng(seed).permutation(len(pictures))
    held = max(1, round(val_fraction * len(pictures)))
    train, val = (Subset(pictures, sorted(part.tolist())) for part in (order[held:], order[:held]))
    return ImageSplits(train, val, ["picture"], str(source))
