"""Photographs for restoration: Set5 and three free ones, bundled."""

from __future__ import annotations

import io
import zipfile
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from offprint.data import samples


def _pictures(archive: str, folder: str = "") -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(samples.path(archive)) as z:
        for name in sorted(z.namelist()):
            if name.startswith(folder) and name.endswith(".png"):
                array = np.asarray(Image.open(io.BytesIO(z.read(name))).convert("RGB"))
                found[name.rsplit("/", 1)[-1].removesuffix(".png")] = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return found


@cache
def set5(scale: int = 1) -> dict[str, Tensor]:
    """Set5: name → (3, H, W) uint8; ``scale`` 2, 3 or 4 gives the bicubic reductions the papers use."""
    if scale == 1:
        return _pictures("set5.zip", "HR/")
    names = _pictures("set5.zip", f"LR_bicubic/X{scale}/")
    return {name.removesuffix(f"x{scale}"): picture for name, picture in names.items()}


@cache
def photographs() -> dict[str, Tensor]:
    """Three free photographs: name → (3, H, W) uint8."""
    return _pictures("photographs.zip")
