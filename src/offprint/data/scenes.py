"""Hyperspectral scenes: a cube of bands and a map of labels, from ``.mat``, ``.npy``, ``.npz`` and ``.tif`` files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from offprint.errors import DataError

KINDS = (".mat", ".npy", ".npz", ".tif", ".tiff")


@dataclass
class Scene:
    """A scene.

    Attributes:
        cube: (H, W, bands), as stored; of a ``.npy`` file mapped, not read.
        labels: (H, W) int, 0 for pixels without a class; ``None`` where none are known.
        train, test: (H, W) masks, where the data have a split of their own.
        name: of the file.
    """

    cube: np.ndarray
    labels: np.ndarray | None = None
    train: np.ndarray | None = None
    test: np.ndarray | None = None
    name: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max())

    @property
    def digest(self) -> str:
        """Of every sixteenth row, and of the labels."""
        found = hashlib.sha256(np.ascontiguousarray(self.cube[::16]).tobytes())
        if self.labels is not None:
            found.update(self.labels.astype(np.int64).tobytes())
        return found.hexdigest()[:16]

    def normalised(self) -> np.ndarray:
        """(bands, H, W) float32: each band by its mean and (population) deviation over the whole scene; constant bands become 0.

        Raises:
            DataError: values that are not finite, named by band and place.
        """
        out = np.empty((self.cube.shape[2], *self.cube.shape[:2]), np.float32)
        for band in range(len(out)):
            values = np.asarray(self.cube[..., band], np.float64)
            if not np.isfinite(values).all():
                y, x = (int(v[0]) for v in np.where(~np.isfinite(values)))
                raise DataError(
                    f"{self.name}: band {band} holds values that are not finite (first at row {y}, column {x}); fill or mask them first"
                )
            spread = values.std()
            out[band] = (values - values.mean()) / (spread if spread > 0 else 1.0)
        return out


def read_array(file: str | Path, key: str = "", ndim: int = 3, what: str = "cube") -> np.ndarray:
    """The array of a file.

    Args:
        key: its name in a ``.mat`` or ``.npz`` file; by default the only one with ``ndim`` axes.
        ndim: 3 for cubes (H, W, bands), 2 for maps.
        what: for messages.

    Raises:
        DataError: no such file, another format, no array of that many axes, or several of them.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"there is no {what} at {file}")
    kind = file.suffix.lower()
    try:
        if kind == ".mat":
            from scipy.io import loadmat

            held = {k: v for k, v in loadmat(file).items() if not k.startswith("__") and isinstance(v, np.ndarray)}
        elif kind == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                held = {k: archive[k] for k in archive.files}
        elif kind == ".npy":
            held = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False)}
        elif kind in (".tif", ".tiff"):
            held = {file.stem: _tiff(file, ndim)}
        else:
            raise DataError(
                f"{file}: a {what} is read from {', '.join(KINDS)} files; convert it, or save it with numpy.save"
            )
    except NotImplementedError as error:  # MATLAB 7.3 files are HDF5
        raise DataError(
            f"{file} is a MATLAB 7.3 file, which SciPy does not read; save it with '-v7', or turn it into .npy (h5py reads it)"
        ) from error
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"cannot read the {what} {file}: {error}") from error
    if key:
        if key not in held:
            raise DataError(f"{file} has no array {key!r}; it holds {', '.join(held)}")
        chosen = held[key]
        if chosen.ndim != ndim:
            raise DataError(f"{key} in {file} has the shape {chosen.shape}; a {what} has {ndim} axes")
        return chosen
    fitting = {k: v for k, v in held.items() if v.ndim == ndim and v.dtype.kind in "iufb" and min(v.shape) > 1}
    if len(fitting) != 1:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in held.items())
        raise DataError(
            f"{file} holds {len(fitting)} arrays that could be the {what} ({shapes}); name one with --{'key' if ndim == 3 else 'labels-key'}"
        )
    return next(iter(fitting.values()))


def _tiff(file: Path, ndim: int) -> np.ndarray:
    """All bands of a TIFF, bands last."""
    from PIL import Image, ImageSequence

    try:
        from tifffile import imread
    except ImportError:
        with Image.open(file) as image:
            pages = [np.array(page) for page in ImageSequence.Iterator(image)]
        array = pages[0] if len(pages) == 1 else np.stack(pages, -1)
    else:
        array = np.asarray(imread(file))
    if array.ndim == 3 and ndim == 3 and array.shape[0] < min(array.shape[1:]):
        array = np.moveaxis(array, 0, -1)  # bands stored first
    return array


def open_scene(
    source: str | Path,
    labels: str | Path = "",
    *,
    key: str = "",
    labels_key: str = "",
    crop: str = "",
    split: tuple[str, str] = ("", ""),
) -> Scene:
    """Open a scene.

    Args:
        source: file of the cube (H, W, bands).
        labels: file of its classes (H, W), 0 for none; default none.
        key, labels_key: names of the arrays inside the files.
        crop: ``top:bottom,left:right`` in pixels.
        split: files of maps whose pixels above 0 are learnt from, and tested on.

    Raises:
        DataError: files that cannot be read, or maps of another size than the cube.
    """
    cube = read_array(source, key)
    maps = [
        None if not f else read_array(f, labels_key if i == 0 else "", 2, "map") for i, f in enumerate((labels, *split))
    ]
    for file, found in zip((labels, *split), maps, strict=True):
        if found is not None and found.shape != cube.shape[:2]:
            turned = (
                "; the cube's bands come first, and belong last: numpy.moveaxis(cube, 0, -1)"
                if found.shape == cube.shape[1:]
                else "; it is turned by 90 degrees"
                if found.shape == cube.shape[1::-1]
                else ""
            )
            raise DataError(
                f"{file} is {found.shape[0]} x {found.shape[1]} pixels, the scene {cube.shape[0]} x {cube.shape[1]}{turned}"
            )
    known = None if maps[0] is None else np.asarray(maps[0]).astype(np.int64)
    if known is not None and (known.min() < 0 or known.max() < 1):
        raise DataError(
            f"{labels} holds the values {known.min()} to {known.max()}; classes are numbered from 1, and 0 stands for none"
        )
    train, test = (None if m is None else np.asarray(m) > 0 for m in maps[1:])
    found = Scene(cube, known, train, test, str(source))
    return _cropped(found, crop) if crop else found


def _cropped(scene: Scene, crop: str) -> Scene:
    try:
        rows, columns = ((int(a), int(b)) for a, b in (part.split(":") for part in crop.split(",")))
    except ValueError as error:
        raise DataError(f"crop={crop!r}; give top:bottom,left:right in pixels, such as 0:160,0:160") from error
    height, width = scene.cube.shape[:2]
    if not (0 <= rows[0] < rows[1] <= height and 0 <= columns[0] < columns[1] <= width):
        raise DataError(f"crop={crop!r} does not lie inside the scene of {height} x {width} pixels")
    part = (slice(*rows), slice(*columns))
    labels, train, test = (None if m is None else m[part] for m in (scene.labels, scene.train, scene.test))
    return Scene(scene.cube[part], labels, train, test, scene.name)


def simulated_scene(side: int = 96, bands: int = 40, classes: int = 5, seed: int = 0, noise: float = 0.6) -> Scene:
    """A scene that is made up, for trying things out: fields of classes with smooth spectra, mixed at their borders, under noise.

    Args:
        side: of the square scene in pixels.
        bands, classes: numbers of them; about a tenth of the pixels has no class.
        seed: of everything.
        noise: deviation of what is added to each band, in deviations of the spectra.
    """
    from scipy.ndimage import gaussian_filter

    state = np.random.default_rng(seed)
    fields = gaussian_filter(state.normal(size=(classes, side, side)), (0, side / 16, side / 16))
    fields /= fields.std((1, 2), keepdims=True)
    spectra = gaussian_filter(state.normal(size=(classes, bands)), (0, bands / 12))
    spectra = (spectra - spectra.mean()) / spectra.std()
    share = np.exp(6 * fields)
    share /= share.sum(0)
    cube = np.einsum("khw,kb->hwb", share, spectra)
    light = 1 + 0.2 * gaussian_filter(state.normal(size=(side, side)), side / 8)[..., None]
    cube = (cube * light + noise * state.normal(size=cube.shape)).astype(np.float32)
    labels = fields.argmax(0) + 1
    labels[share.max(0) < np.quantile(share.max(0), 0.1)] = 0
    return Scene(cube, labels, name=f"simulated scene {seed}")
