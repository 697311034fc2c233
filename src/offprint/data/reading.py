"""The one reader of pictures: what every verb, task and data set here sees of a file.

A file holds more than pixels, and a reader that leaves the rest aside sees another picture, without a word: a telephone's photograph
lies on its side (EXIF orientation), sixteen-bit grey is clipped to white, hidden pixels show through where the picture is transparent,
the colours of a wide-gamut camera turn pale (ICC profile). Each of these is either applied, or named.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from offprint.errors import DataError
from offprint.files import fetched, scheme

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
BACKGROUND = (255, 255, 255)  # what shows through where a picture is transparent, unless the caller says otherwise
_ORIENTATION = 0x0112
_LAYOUT = {
    *range(254, 260),
    262,
    266,
    273,
    *range(277, 285),
    296,
    317,
    320,
    *range(322, 326),
    338,
    339,
    347,
    34675,
}  # TIFF 6.0
_DAMAGE = (
    OSError,
    UnidentifiedImageError,
    ValueError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
    MemoryError,
)


class PictureWarning(UserWarning):
    """Something of a picture file is not in what was read."""


def read_picture(
    source: str | Path | bytes,
    *,
    name: str = "",
    background: tuple[int, int, int] = BACKGROUND,
    as_stored: bool = False,
) -> Image.Image:
    """A picture file as it is meant to be seen: eight-bit sRGB, upright, opaque.

    Args:
        source: a path, or the bytes of a file.
        name: what the picture is called in messages; default its path.
        background: sRGB colour, 0 to 255, that shows where the picture is transparent.
        as_stored: the stored pixels and nothing else, as ``Image.open(...).convert("RGB")`` gives them. Published figures were
            measured on those, so that their protocols, and only these, ask for it.

    Raises:
        DataError: the file cannot be read; the message names it and says why.
    """
    with _opened(source, name) as image:
        if as_stored:
            return image.convert("RGB")
        picture, notes = rgb(image, background)
    for note in notes:
        warnings.warn(f"{_called(source, name)}: {note}", PictureWarning, stacklevel=2)
    return picture


def rgb(image: Image.Image, background: tuple[int, int, int] = BACKGROUND) -> tuple[Image.Image, list[str]]:
    """A picture that Pillow opened, as eight-bit sRGB, upright and opaque; and what was left aside, in words."""
    image, notes = _upright(image)
    colour, alpha = _parts(image)
    profile = image.info.get("icc_profile")
    if profile:
        colour, note = _to_srgb(colour, profile)
        notes += [note] if note else []
    colour = colour.convert("RGB")
    if alpha is not None:
        ground = Image.new("RGB", colour.size, tuple(background))
        ground.paste(colour, mask=alpha)
        colour = ground
    return colour, notes


@dataclass
class Picture:
    """All that a picture file holds and a new file can keep.

    Args:
        colour: (H, W, 3) or (H, W, 1) float32 in [0, 1], upright, in the picture's own colour space.
        alpha: (H, W) float32 in [0, 1], or ``None`` where the picture is opaque.
        depth: bits per channel, 8 or 16.
        icc: the ICC profile that says what ``colour`` means; ``None`` is sRGB.
        dpi: dots per inch, horizontal and vertical.
        exif: EXIF data without the orientation, which is applied.
        notes: what of the file is not in here, in words.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    depth: int = 8
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: Image.Exif | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.colour.shape[1], self.colour.shape[0]

    def but(self, **changes: Any) -> Picture:
        """The same with other parts."""
        return replace(self, **changes)


def open_picture(source: str | Path | bytes | Image.Image, *, name: str = "") -> Picture:
    """Read a picture with all that a new file can keep of it: depth, transparency, profile, resolution, EXIF.

    Args:
        source: a path, the bytes of a file, or a picture that Pillow opened.
        name: what the picture is called in messages; default its path.

    Raises:
        DataError: the file cannot be read; the message names it and says why.
    """
    if isinstance(source, Image.Image):
        return _picture(source, None)
    data = source if isinstance(source, bytes) else None
    with _opened(source, name) as image:
        if image.format == "PNG" and image.mode in ("RGB", "RGBA"):
            data = data or fetched(source).read_bytes()  # type: ignore[arg-type]
        return _picture(image, data)


def _called(source: str | Path | bytes, name: str) -> str:
    return name or ("(bytes)" if isinstance(source, bytes) else str(source))


class _opened:
    """A file that Pillow opened, its pixels decoded; everything that goes wrong becomes an error that names it."""

    def __init__(self, source: str | Path | bytes, name: str):
        self.source, self.name = source, _called(source, name)

    def __enter__(self) -> Image.Image:
        if not isinstance(self.source, bytes) and scheme(self.source):
            self.source = fetched(self.source, "the picture")
        try:
            self.image = Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source)
            self.image.load()
        except _DAMAGE as error:
            raise DataError(f"cannot read the picture {self.name}: {self._why(error)}") from error
        return self.image

    def __exit__(self, kind, error, trace) -> None:
        self.image.close()
        if isinstance(error, _DAMAGE):  # DataError, which is a ValueError, too: it does not know the file
            raise DataError(f"cannot read the picture {self.name}: {error}") from error

    def _why(self, error: BaseException) -> str:
        if isinstance(error, Image.DecompressionBombError):
            return f"{error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        if not isinstance(self.source, bytes):
            path = Path(self.source)
            if path.is_dir():
                return "it is a folder"
            if not path.is_file():
                return "no such file"
        if not isinstance(error, UnidentifiedImageError):
            return str(error)
        head = self.source[:16] if isinstance(self.source, bytes) else Path(self.source).open("rb").read(16)
        if not head:
            return "the file is empty"
        if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
            return "HEIC is not read here; save it as JPEG or PNG"
        return f"no format that is known here (it begins with {head!r})"


def _upright(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The first frame, turned as the EXIF orientation says; and a word on the frames that are left aside."""
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # telephones put previews beside the photograph in an MPO
        notes.append(f"only the first of its {frames} frames or pages is read")
    try:
        turned = ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        notes.append(f"its EXIF data is damaged and was left aside ({error})")
        turned = image
    return turned, notes


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour in eight bits (``L``, ``RGB``, ``CMYK`` or ``LAB``), and alpha (``L``) where the picture is transparent anywhere."""
    if image.mode == "1":
        image = image.convert("L")
    if image.mode.startswith("I") or image.mode == "F":
        grey = Image.fromarray((_grey(image) * 255).round().astype(np.uint8))
        return grey, None if (mask := _keyed(image)) is None else Image.fromarray(mask)
    if image.mode in ("P", "PA") or "transparency" in image.info:
        seen = image.mode != "PA" and "transparency" not in image.info
        image = image.convert("RGB" if seen else "LA" if image.mode == "L" else "RGBA")
    if image.mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if alpha is not None:
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return image, alpha


def _grey(image: Image.Image) -> np.ndarray:
    """Deep grey as (H, W) float64 in [0, 1]: sixteen bits over their whole range, floating point where it lies in [0, 1]."""
    values = np.asarray(image).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    limit = 1.0 if image.mode == "F" else 65535.0
    if not (0 <= low and high <= limit):
        raise DataError(
            f"a picture whose values run from {low:g} to {high:g} (mode {image.mode}) has no stated white; "
            f"bring them into 0 to {limit:g} and save it again"
        )
    return values / limit


def _keyed(image: Image.Image) -> np.ndarray | None:
    """Opacity (H, W) uint8 of deep grey in which one value is declared transparent."""
    key = image.info.get("transparency")
    return None if not isinstance(key, int) else np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; ``None`` where it is sRGB already."""
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = given.profile.xcolor_space.strip()
    if space != {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}[mode]:
        raise ImageCms.PyCMSError(f"it is of {space} colours, the picture of {mode}")
    if ImageCms.getProfileDescription(given).strip().lower().startswith("srgb"):
        return None
    return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")


def _to_srgb(colour: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    try:
        transform = _transform(profile, colour.mode)
        return (colour if transform is None else ImageCms.applyTransform(colour, transform)), ""  # type: ignore[return-value]
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        return colour, f"its colour profile cannot be used and was left aside ({error})"


def _picture(image: Image.Image, data: bytes | None) -> Picture:
    """All of a file; ``data`` are the bytes of a PNG, whose sixteen-bit colours Pillow would cut to eight."""
    info, orientation = dict(image.info), image.getexif().get(_ORIENTATION, 1)
    upright, notes = _upright(image)
    try:
        exif = _exif(image)
    except (*_DAMAGE, TypeError, struct.error) as error:
        exif, notes = None, [*notes, f"its EXIF data is damaged and was left aside ({error})"]
    colour, alpha, depth, icc = *_arrays(upright), info.get("icc_profile")
    deep = _deep_png(data) if data else None
    if deep is not None:
        deep, depth = _turned(deep, orientation), 16
        channels = deep.shape[2]
        colour = deep[..., : channels - (channels in (2, 4))]
        if channels in (2, 4):
            alpha = deep[..., -1] if deep[..., -1].min() < 1 else None
    elif 16 in (bits := _tiff_bits(image)) and depth == 8:
        notes.append(f"its {bits[0]} bits per channel are read as 8")
    if upright.mode in ("CMYK", "LAB"):
        srgb, more = rgb(upright)
        colour, icc, notes = np.asarray(srgb, np.float32) / 255, None, [*notes, *more]
        notes.append(f"its {upright.mode} colours are read as sRGB")
    dpi = info.get("dpi")
    return Picture(
        np.ascontiguousarray(colour, np.float32),
        None if alpha is None else np.ascontiguousarray(alpha, np.float32),
        depth,
        icc,
        (float(dpi[0]), float(dpi[1])) if dpi else None,
        exif,
        notes,
    )


def _exif(image: Image.Image) -> Image.Exif | None:
    """A copy of a file's EXIF data without what is applied (orientation) or holds for the old file alone (how a TIFF lies)."""
    found = image.getexif()
    if not len(found):
        return None
    kept = Image.Exif()
    kept.load(found.tobytes())
    for tag in {_ORIENTATION, *(_LAYOUT if image.format == "TIFF" else ())} & set(kept):
        del kept[tag]
    return kept if len(kept) else None


def _arrays(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Colour (H, W, 1 or 3), alpha (H, W) or ``None``, bits per channel."""
    deep = image.mode.startswith("I") or image.mode == "F"
    colour, alpha = _parts(image)
    if colour.mode not in ("L", "RGB"):
        colour = colour.convert("RGB")
    array = _grey(image) if deep else np.asarray(colour, np.float32) / 255
    opacity = None if alpha is None else np.asarray(alpha, np.float32) / 255
    return (array[..., None] if array.ndim == 2 else array), opacity, 16 if deep else 8


def _deep_png(data: bytes) -> np.ndarray | None:
    """(H, W, C) float32 in [0, 1] of a PNG of sixteen bits per channel, as stored; ``None`` of any other."""
    if data[12:16] != b"IHDR" or data[24] != 16:
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_png

    values = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return values.permute(1, 2, 0).numpy().astype(np.float32) / 65535


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) upright, from the EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _tiff_bits(image: Image.Image) -> tuple[int, ...]:
    bits = getattr(image, "tag_v2", {}).get(258, ()) if image.format == "TIFF" else ()
    return bits if isinstance(bits, tuple) else (bits,)
