"""Handwritten digits: a bundled part of MNIST, and the whole through torchvision."""

from __future__ import annotations

from functools import cache

import numpy as np

from offprint.data import samples


@cache
def _sample() -> dict[str, np.ndarray]:
    with np.load(samples.path("mnist.npz"), allow_pickle=False) as f:
        return dict(f)


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
    part = "train" if train else "test"
    kept = _sample()
    return kept[f"{part}_images"].copy(), kept[f"{part}_labels"].astype(np.int64)
