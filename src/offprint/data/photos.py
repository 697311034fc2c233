"""Photographs for restoration: Set5 and three free ones, bundled, and the test sets of super-resolution wherever they lie."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprint.data import samples
from offprint.data.reading import read_picture
from offprint.errors import DataError


def _pictures(archive: str, folder: str = "") -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(samples.path(archive)) as z:
        for name in sorted(z.namelist()):
            if name.startswith(folder) and name.endswith(".png"):
                array = np.asarray(read_picture(z.read(name), name=name, as_stored=True))
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


PICTURES = {"set5": 5, "set14": 14, "b100": 100, "urban100": 100, "manga109": 109}  # of the sets that papers measure on
_NAMES = {"b100": ("b100", "bsd100", "bsds100"), **{name: (name,) for name in PICTURES if name != "b100"}}
_KINDS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")


class Pairs:
    """High- and low-resolution pictures of a test set.

    Args:
        which: id of the set.
        high: name → (3, H, W) uint8, or how to read it.
        low: the same of the low resolution; empty where it is to be made.
        scale: factor between them.
    """

    def __init__(
        self, which: str, high: Mapping[str, Callable[[], Tensor]], low: Mapping[str, Callable[[], Tensor]], scale: int
    ):
        self.which, self.scale, self._high, self._low = which, scale, high, low
        self.names, self.expected = sorted(high), PICTURES[which]
        self.how = f"as given (x{scale})" if low else "made here, bicubic as in MATLAB"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        """(truth cut to a multiple of the scale, low resolution), (3, H, W) uint8 each."""
        truth = self._high[name]()
        truth = truth[:, : truth.shape[1] // self.scale * self.scale, : truth.shape[2] // self.scale * self.scale]
        if not self._low:
            from offprint.data.resize import bicubic

            return truth, (bicubic(truth.double() / 255, 1 / self.scale).clamp(0, 1) * 255).round().byte()
        small = self._low[name]()
        if (small.shape[1] * self.scale, small.shape[2] * self.scale) != tuple(truth.shape[1:]):
            raise DataError(
                f"{name}: the low resolution is {small.shape[2]} x {small.shape[1]}, the high one {truth.shape[2]} x {truth.shape[1]}; "
                f"that is not a factor of {self.scale}"
            )
        return truth, small

    @property
    def digest(self) -> str:
        """Over the pixels of the high-resolution pictures, in the order of their names."""
        whole = hashlib.sha256()
        for name in self.names:
            picture = self._high[name]()
            whole.update(f"{name.lower()}{tuple(picture.shape)}".encode() + picture.numpy().tobytes())
        return whole.hexdigest()[:16]


def _bundled(scale: int) -> Pairs:
    high, low = set5(), set5(scale)
    return Pairs("set5", {n: lambda p=p: p for n, p in high.items()}, {n: lambda p=p: p for n, p in low.items()}, scale)


def _files(root: Path) -> dict[str, Callable[[], bytes]]:
    """Path within → how to read it, of a folder, and of the archives (tar, zip) that lie in it."""
    found: dict[str, Callable[[], bytes]] = {}
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in paths:
        name = str(path.relative_to(root)) if path != root else path.name
        if path.suffix.lower() in _KINDS:
            found[name] = path.read_bytes
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as z:
                inside = [n for n in z.namelist() if n.lower().endswith(_KINDS)]
            found.update({f"{path.stem}/{n}": lambda p=path, n=n: zipfile.ZipFile(p).read(n) for n in inside})
        elif path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz")):
            with tarfile.open(path) as t:
                held = {m.name: t.extractfile(m).read() for m in t if m.isfile() and m.name.lower().endswith(_KINDS)}  # type: ignore[union-attr]
            found.update({f"{path.name.split('.')[0]}/{n}": lambda b=b: b for n, b in held.items()})
    return found


def open_pairs(source: str | Path | None, which: str, scale: int) -> Pairs:
    """A super-resolution test set.

    Args:
        source: a folder (or a tar or zip archive) of the set or of several sets: high resolution in ``HR``, ``GTmod12``,
            ``original`` or at the top; low resolution, where it is given, in ``LR_bicubic/X2`` and so on. ``None``: what is bundled
            (Set5) or under ``OFFPRINT_DATA``.
        which: ``set5``, ``set14``, ``b100``, ``urban100`` or ``manga109``.
        scale: 2, 3, 4, ...

    Raises:
        DataError: no such pictures there, another set (Set5 is known by its digest), or sizes that do not fit.
    """
    from offprint.data.home import data_dir

    if source is None and which == "set5" and not (data_dir() / "set5").is_dir():
        return _bundled(scale)
    root = Path(source).expanduser() if source is not None else data_dir() / which
    if not root.exists():
        raise DataError(f"no folder at {str(root)!r}; give the folder that holds {which}'s pictures")
    files = _files(root)
    names = _NAMES[which]
    mine = {k: v for k, v in files.items() if any(part.lower().split(".")[0] in names for part in Path(k).parts[:-1])}
    others = {part.lower() for k in files for part in Path(k).parts[:-1]} & {n for v in _NAMES.values() for n in v}
    if not mine and (others or root.name.lower() not in names and not _plain(files)):
        raise DataError(
            f"{root} holds no pictures of {which}" + (f"; it has {', '.join(sorted(others))}" if others else "")
        )
    files = mine or files

    def under(*folders: str) -> dict[str, Callable[[], bytes]]:
        return {Path(k).stem: v for k, v in files.items() if any(p.lower() in folders for p in Path(k).parts[:-1])}

    small = {
        k: v
        for k, v in files.items()
        if any(p.lower().startswith(("lr", "x2", "x3", "x4", "x8")) for p in Path(k).parts[:-1])
    }
    high = under("hr", "gtmod12", "original", "gt") or {Path(k).stem: v for k, v in files.items() if k not in small}
    low = {
        re.sub(rf"x{scale}$", "", Path(k).stem): v
        for k, v in small.items()
        if any(p.lower() == f"x{scale}" for p in Path(k).parts)
    }
    if not high:
        raise DataError(
            f"{root} holds no high-resolution pictures of {which} (folders HR, GTmod12, original, or pictures at the top)"
        )
    if low and (absent := sorted(set(high) - set(low))):
        raise DataError(f"{root}: no low resolution (x{scale}) of {', '.join(absent[:5])}")

    def read(name: str, data: Callable[[], bytes]) -> Callable[[], Tensor]:
        stored = lambda: np.asarray(read_picture(data(), name=name, as_stored=True)).copy()  # noqa: E731
        return lambda: torch.from_numpy(stored()).permute(2, 0, 1)

    pairs = Pairs(which, {k: read(k, v) for k, v in high.items()}, {k: read(k, v) for k, v in low.items()}, scale)
    if len(pairs) > pairs.expected:
        raise DataError(
            f"{root} holds {len(pairs)} pictures, {which} has {pairs.expected}; give the folder of that set alone"
        )
    if which == "set5" and len(pairs) == 5 and pairs.digest != (known := _bundled(scale).digest):
        raise DataError(f"{root} is not Set5: the digest of its pictures is {pairs.digest}, that of Set5 {known}")
    return pairs


def _plain(files: Mapping[str, Any]) -> bool:
    """Whether pictures lie at the top or in the folders of one set, so that they may be taken for the set asked for."""
    tops = {Path(k).parts[0].lower() for k in files if len(Path(k).parts) > 1}
    return bool(files) and tops <= {"hr", "gtmod12", "original", "gt", "lr_bicubic", "lr"}
