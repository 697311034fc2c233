"""The bundled parts of CIFAR-10 and MNIST, as arrays."""

from __future__ import annotations

import tarfile
from functools import cache

import numpy as np

from offprint.data import samples
from offprint.data.reading import read_picture


@cache
def cifar10(train: bool = True) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The bundled CIFAR-10 sample (JPEG copies): images (N, 32, 32, 3) uint8, labels (N,) int64, class names.

    5,000 training and 1,000 test images, balanced.
    """
    split = "train" if train else "test"
    images, names = [], []
    with tarfile.open(samples.path("cifar10.tar.xz")) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(split):
                images.append(np.asarray(read_picture(archive.extractfile(member).read(), name=member.name)))
                names.append(member.name.split("/")[1])
    classes = sorted(set(names))
    return np.stack(images), np.array([classes.index(n) for n in names]), classes


@cache
def _mnist() -> dict[str, np.ndarray]:
    with np.load(samples.path("mnist.npz"), allow_pickle=False) as f:
        return dict(f)


def digits(train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The bundled MNIST sample: images (N, 28, 28) uint8 and labels (N,) int64; 600 or 200 per class."""
    part = "train" if train else "test"
    kept = _mnist()
    return kept[f"{part}_images"].copy(), kept[f"{part}_labels"].astype(np.int64)
