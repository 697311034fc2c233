"""Where on Earth a raster lies: the georeference of a GeoTIFF, carried over to the maps that are made from it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

# scale, tie points, transformation, and the keys of the projection with their numbers and words (OGC 19-008r4, 7.1)
_DOUBLES, _SHORTS, _WORDS = (33550, 33922, 34264, 34736), (34735,), (34737,)


def georeference(path: str | Path) -> dict[int, Any]:
    """The tags of a TIFF that say where it lies; empty of other files, and where there are none."""
    if Path(path).suffix.lower() not in (".tif", ".tiff") or not Path(path).is_file():
        return {}
    with Image.open(path) as image:
        held = getattr(image, "tag_v2", {})
        return {tag: held[tag] for tag in (*_DOUBLES, *_SHORTS, *_WORDS) if tag in held}


def map_tiff(classes: np.ndarray, place: Mapping[int, Any], palette: list[int] | None = None) -> bytes:
    """A map of class numbers (H, W) as a TIFF file of 8, or where it takes them 16, bits, with the georeference ``place``.

    Args:
        palette: 768 numbers of a colour table, for 8 bits.
    """
    small = int(classes.max(initial=0)) < 256
    image = Image.fromarray(classes.astype(np.uint8 if small else np.uint16))
    if palette is not None and small:
        image = image.convert("P") if image.mode != "P" else image
        image.putpalette(palette)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in place.items():
        kinds = ((_DOUBLES, 12), (_SHORTS, 3), (_WORDS, 2))  # double, short, ASCII
        directory.tagtype[tag] = next(kind for tags, kind in kinds if tag in tags)
        directory[tag] = value
    stream = io.BytesIO()
    image.save(stream, "TIFF", tiffinfo=directory, compression="tiff_deflate")
    return stream.getvalue()
