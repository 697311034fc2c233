"""Handwritten digits: a bundled part of MNIST, and the whole through torchvision."""

from __future__ import annotations

import numpy as np

from offprint.data.pixels import digits


def mnist(train: bool = True, full: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """MNIST digits: images (N, 28, 28) uint8 and labels (N,) int64.

    Args:
        train: the training part, otherwise the test part.
        full: all 60,000 or 10,000 (from ``OFFPRINT_DATA`` or fetched once); otherwise 600 or 200 per class, bundled.

    Raises:
        DataError: the full set is neither there nor to be had.
    """
    if full:
        from offprint.data.images import open_images

        splits = open_images("mnist")
        data = splits.train if train else splits.val
        images = data.images if hasattr(data, "images") else data.data.numpy()
        return np.asarray(images), np.asarray(data.targets, dtype=np.int64)
    return digits(train)
