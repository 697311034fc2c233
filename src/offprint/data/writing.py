"""Pictures into files, with all that a format can keep of them: depth, transparency, colour profile, resolution, EXIF."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from offprint.data.reading import BACKGROUND, Picture
from offprint.errors import DataError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_SIZES = {0x0100: 0, 0x0101: 1}  # EXIF tags of width and height, in the main directory
_PIXELS = {0xA002: 0, 0xA003: 1}  # and in the camera's
_CAMERA = 0x8769


def format_of(path: str | Path) -> str:
    """Pillow's name of the format that a file's ending asks for.

    Raises:
        DataError: an ending that is not written here.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise DataError(f"cannot write a picture {str(path)!r}; give a name that ends in {', '.join(FORMATS)}")
    return FORMATS[ending]


def encode(picture: Picture, kind: str = "PNG") -> tuple[bytes, list[str]]:
    """The bytes of a file, and what of the picture this format cannot keep, in words.

    Args:
        picture: as :func:`~offprint.data.reading.open_picture` gives it.
        kind: ``"PNG"``, ``"JPEG"``, ``"WEBP"`` or ``"TIFF"``.
    """
    notes = []
    width, height = picture.size
    colour, alpha = picture.colour, picture.alpha
    grey = colour.shape[2] == 1
    keep: dict[str, Any] = {}
    if picture.icc:
        keep["icc_profile"] = picture.icc
    if picture.dpi and kind != "WEBP":
        keep["dpi"] = picture.dpi
    if picture.exif is not None:
        keep["exif"] = _sized(picture.exif, (width, height))
    if kind == "PNG" and picture.depth == 16:
        values = colour if alpha is None else np.concatenate([colour, alpha[..., None]], 2)
        return _deep_png((values.clip(0, 1) * 65535).round().astype(np.uint16), keep), notes
    if picture.depth == 16 and kind == "TIFF" and grey and alpha is None:
        image = Image.fromarray((colour[..., 0].clip(0, 1) * 65535).round().astype(np.uint16))
    else:
        if picture.depth == 16:
            notes.append(f"16 bits per channel became 8: {kind} cannot hold them here; PNG can")
        levels = lambda a: (a.clip(0, 1) * 255).round().astype(np.uint8)  # noqa: E731
        if alpha is not None and kind == "JPEG":
            ground = np.array(BACKGROUND, np.float32)[: colour.shape[2]] / 255
            colour, alpha = colour * alpha[..., None] + ground * (1 - alpha[..., None]), None
            notes.append("transparent parts became white: JPEG has no transparency; PNG, WebP and TIFF have")
        image = Image.fromarray(levels(colour[..., 0] if grey else colour))
        if alpha is not None:
            image.putalpha(Image.fromarray(levels(alpha)))
    buffer = io.BytesIO()
    best = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    if (
        kind == "TIFF" and "exif" not in keep
    ):  # libtiff cannot write the camera's directory of EXIF, which Pillow's own writer can
        best = {"compression": "tiff_deflate"}
    image.save(buffer, format=kind, **best, **keep)
    return buffer.getvalue(), notes


def _sized(exif: Image.Exif, size: tuple[int, int]) -> bytes:
    """EXIF data whose width and height, where it states them, are those of the new picture."""
    copy = Image.Exif()
    copy.load(exif.tobytes())
    for tag, axis in _SIZES.items():
        if tag in copy:
            copy[tag] = size[axis]
    camera = copy.get_ifd(_CAMERA) if _CAMERA in copy else {}  # get_ifd would make an empty one
    for tag, axis in _PIXELS.items():
        if tag in camera:
            camera[tag] = size[axis]
    return copy.tobytes()


def _deep_png(values: np.ndarray, keep: dict[str, Any]) -> bytes:
    """A PNG of sixteen bits per channel, (H, W, C) uint16 with C = 1 to 4; Pillow writes such grey only."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = np.ascontiguousarray(values.reshape(height, -1)).astype(">u2")
    left = np.zeros_like(rows)  # filter 1 of the PNG specification: bytewise difference to the pixel on the left
    left[:, channels:] = rows[:, :-channels]
    lines = rows.view(np.uint8) - left.view(np.uint8)
    lines = np.concatenate([np.ones((height, 1), np.uint8), lines.reshape(height, -1)], 1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if "icc_profile" in keep:
        parts.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(keep["icc_profile"])))
    if "dpi" in keep:
        parts.append((b"pHYs", struct.pack(">IIB", *(round(v / 0.0254) for v in keep["dpi"]), 1)))
    if "exif" in keep:
        parts.append((b"eXIf", keep["exif"].removeprefix(b"Exif\0\0")))
    parts += [(b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body
