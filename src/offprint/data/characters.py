"""Handwritten characters of many alphabets: a bundled part of Omniglot."""

from __future__ import annotations

import re
import zipfile
from functools import cache

import numpy as np
from PIL import Image

from offprint.data import samples
from offprint.data.reading import read_picture

DRAWERS = 20  # drawings of each character, each by another person


@cache
def omniglot(side: int = 28) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Five alphabets of Omniglot, ink bright on dark.

    Args:
        side: pixels; the drawings have 105.

    Returns:
        Images (2720, side, side) uint8; the character of each, 0 to 135, grouped by alphabet; who drew it, 0 to 19; the alphabet of each
        character, by name.
    """
    rows = []
    with zipfile.ZipFile(samples.path("omniglot_small1.zip")) as z:
        for name in sorted(z.namelist()):
            found = re.search(r"/([^/]+)/(character\d+)/\d+_(\d+)\.png$", name)
            if found:
                grey = read_picture(z.read(name), name=name).convert("L").resize((side, side), Image.Resampling.BOX)
                rows.append((found[1], found[2], int(found[3]) - 1, 255 - np.asarray(grey)))
    names = sorted({(a, c) for a, c, _, _ in rows})
    place = {name: i for i, name in enumerate(names)}
    images = np.stack([r[3] for r in rows])
    return images, np.array([place[r[0], r[1]] for r in rows]), np.array([r[2] for r in rows]), [a for a, _ in names]
