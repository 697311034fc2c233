"""Volumes: a bundled brain anatomy, files in medical formats, and intensities simulated from labels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offprint.data import samples
from offprint.errors import DataError, need

TISSUES = {  # QuickNAT's labels of both hemispheres, as one class each
    "white matter": (1, 19),
    "cortex": (2, 20),
    "deep grey matter": (7, 8, 9, 10, 14, 15, 17, 18, 25, 26, 27, 28, 29, 30, 31, 32),
    "cerebellum": (5, 6, 23, 24),
}
INTENSITY = {0: 0.0, 1: 1.0, 2: 0.6, 3: 0.15, 4: 0.15, 5: 1.0, 6: 0.6, 11: 0.15, 12: 0.15, 13: 0.9, 16: 0.15}


@cache
def brain_labels() -> Tensor:
    """The bundled anatomy: (73, 76, 85) uint8 labels 0 to 32 at 2 mm."""
    with np.load(samples.path("brain_labels.npz"), allow_pickle=False) as f:
        return torch.from_numpy(f["labels"].copy())


def tissue_classes(labels: Tensor) -> Tensor:
    """Labels (...) to masks (4, ...) of white matter, cortex, deep grey matter and cerebellum."""
    return torch.stack([torch.isin(labels, torch.tensor(ids, dtype=labels.dtype)) for ids in TISSUES.values()])


def simulate_t1(labels: Tensor, generator: torch.Generator, noise: float = 0.08) -> Tensor:
    """A T1-like image made from labels: a mean per tissue, a smooth bias field and Gaussian noise. SIMULATED, not measured.

    Grey matter of cortex, deep nuclei and cerebellum gets nearly one intensity, so that telling them apart takes context.
    """
    lookup = torch.full((256,), 0.62)
    for label, value in INTENSITY.items():
        lookup[label] = value
    for right, left in ((19, 1), (20, 2), (21, 3), (22, 4), (23, 5), (24, 6)):
        lookup[right] = lookup[left]
    image = lookup[labels.long()]
    field = torch.randn(1, 1, 3, 3, 3, generator=generator) * 0.15
    field = torch.nn.functional.interpolate(field, size=tuple(labels.shape), mode="trilinear", align_corners=True)[0, 0]
    return image * (1 + field) + noise * torch.randn(image.shape, generator=generator)


def read_volume(path: str | Path) -> tuple[Tensor, Tensor]:
    """A NIfTI or MGZ file: (D, H, W) or (C, D, H, W) float32, and its (4, 4) affine.

    Raises:
        DataError: the file cannot be read.
        MissingExtra: nibabel is not installed (extra ``medical``).
    """
    nibabel = need("nibabel", "medical", "reading medical volumes")
    try:
        image = nibabel.load(str(path))
        array = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, nibabel.filebasedimages.ImageFileError, EOFError, ValueError) as error:
        raise DataError(f"cannot read the volume {path}: {error}") from error
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return (tensor.movedim(-1, 0) if tensor.ndim == 4 else tensor), torch.from_numpy(image.affine).float()
