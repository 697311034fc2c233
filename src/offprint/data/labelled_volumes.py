"""Volumes with a class for every voxel: NIfTI files in ``images`` and ``labels``, in the Decathlon's layout (BTCV's), and BraTS' folders.

Axes are those of the files, (C, X, Y, Z). A voxel's size (mm) and the orientation of the axes are read from the affine. Volumes that
differ in them are brought to one grid only where that is asked for, and what is predicted goes back to the grid of its file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.errors import DataError, need

ENDINGS = (".nii", ".nii.gz", ".mgz", ".mgh")
MODALITIES = {  # of BraTS, in the order of the published networks: endings of the file names until 2021 and since 2023
    "FLAIR": ("flair", "t2f"), "T1ce": ("t1ce", "t1c"), "T1": ("t1", "t1n"), "T2": ("t2", "t2w"),
}  # fmt: skip
_IMAGES, _LABELS = ("images", "imagesTr", "image"), ("labels", "labelsTr", "masks", "label")
SAME = 0.01  # share by which sizes of voxels may differ and still be called the same


@dataclass(frozen=True)
class VolumeClasses:
    """What the values of masks mean.

    Attributes:
        names: of the values 0, 1, ...; of :attr:`regions` where there are some.
        regions: overlapping regions, each the values that belong to it; empty where every voxel has one class.
        paint: the value that stands for each region in a written mask, in the order in which they are painted.
        alias: value → the value it is read as.
    """

    names: tuple[str, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    paint: tuple[tuple[int, int], ...] = ()
    alias: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def masks(self, labels: Tensor) -> Tensor:
        """Values (...) to one mask of each class or region (K, ...) bool."""
        if self.regions:
            return torch.stack([torch.isin(labels, labels.new_tensor(values)) for values in self.regions])
        return torch.stack([labels == i for i in range(len(self))])

    def decide(self, scores: Tensor) -> Tensor:
        """Scores (K, ...) to values (...) uint8: the largest, or the regions whose score is above 0.5 painted over each other."""
        if not self.regions:
            return scores.argmax(0).to(torch.uint8)
        out = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for region, value in self.paint:
            out[scores[region] > 0.5] = value
        return out


BRATS = VolumeClasses(
    ("tumour core", "whole tumour", "enhancing tumour"), ((1, 4), (1, 2, 4), (4,)), ((1, 2), (0, 1), (2, 4)), ((3, 4),)
)


@dataclass(frozen=True)
class Case:
    """The files of one volume: an image for each modality (or one file of all), and its mask where there is one."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie: sides, size of a voxel (mm), orientation (such as RAS), affine."""

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    orientation: str
    affine: np.ndarray

    def __str__(self) -> str:
        return f"voxels of {_mm(self.spacing)} mm, orientation {self.orientation}"

    def like(self, spacing: Sequence[float], orientation: str) -> bool:
        """Whether voxels have this size and orientation (``()`` and ``""`` are any)."""
        near = not spacing or all(abs(a - b) <= SAME * b for a, b in zip(self.spacing, spacing, strict=True))
        return near and (not orientation or orientation == self.orientation)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{v:.3g}" for v in spacing)


def _opened(path: str | Path) -> Any:
    nibabel = need("nibabel", "medical", "reading medical volumes")
    try:
        return nibabel.load(str(path))
    except (OSError, nibabel.filebasedimages.ImageFileError, EOFError, ValueError) as error:
        raise DataError(f"cannot read the volume {path}: {error}") from error


def grid_of(path: str | Path) -> Grid:
    """The grid of a file, from its header alone."""
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import aff2axcodes

    image = _opened(path)
    spacing = tuple(float(v) for v in voxel_sizes(image.affine))
    if not all(np.isfinite(v) and v > 0 for v in spacing):
        raise DataError(f"{path}: its affine gives voxels of {_mm(spacing)} mm; write it again with a valid one")
    codes = "".join(c or "?" for c in aff2axcodes(image.affine))
    return Grid(tuple(image.shape), spacing, codes, np.asarray(image.affine, float))  # type: ignore[arg-type]


def _array(path: Path, kind: Any) -> np.ndarray:
    image = _opened(path)
    try:
        return np.asanyarray(image.dataobj, dtype=kind)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot read the volume {path}: {error}") from error


def read_image(case: Case, channels: int) -> tuple[Tensor, Grid]:
    """The modalities (C, X, Y, Z) float32 of a case, and their grid.

    Raises:
        DataError: a file of four dimensions where one volume is meant, modalities of other grids or of another number, voxels that
            are not finite.
    """
    first = grid_of(case.images[0])
    parts = []
    for file in case.images:
        grid = grid_of(file)
        shape = grid.shape[:3]
        if len(grid.shape) == 4 and grid.shape[3] == 1:
            grid = replace(grid, shape=shape)
        if len(grid.shape) not in (3, 4) or (
            len(grid.shape) == 4 and (len(case.images) > 1 or grid.shape[3] != channels)
        ):
            raise DataError(
                f"{file} has the sides {grid.shape}, and a volume of three dimensions"
                + (f" (or {channels} modalities in a fourth)" if channels > 1 else "")
                + " was meant; take one volume out of it, or name its modalities in dataset.json"
            )
        if shape != first.shape[:3] or not np.allclose(grid.affine, first.affine, atol=1e-3):
            raise DataError(
                f"{file} has the sides {shape}, {grid}, and {case.images[0]} {first.shape[:3]}, {first}; modalities of one case lie on one grid"
            )
        array = _array(file, np.float32)
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise DataError(
                f"{file} holds {bad} voxels that are not finite (NaN or infinite); repair it, for example set them to 0"
            )
        array = array[..., 0] if len(grid.shape) == 3 and array.ndim == 4 else array
        parts.append(np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None])
    image = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(image) != channels:
        raise DataError(f"{case.name} ({case.images[0]}) has {len(image)} modalities, and {channels} are expected")
    return torch.from_numpy(np.ascontiguousarray(image)), replace(first, shape=first.shape[:3])


def read_label(case: Case, classes: VolumeClasses | None, grid: Grid | None = None) -> Tensor:
    """The values (X, Y, Z) uint8 of a case's mask; with ``classes`` and ``grid`` they are checked.

    Raises:
        DataError: of another size or grid than its image, or values that are no class.
    """
    assert case.label is not None
    own = grid_of(case.label)
    if grid is not None and own.shape[:3] != grid.shape:
        raise DataError(
            f"the mask {case.label} has the sides {own.shape} and its image {case.images[0]} {grid.shape}; a mask has its image's size"
        )
    if grid is not None and not np.allclose(own.affine, grid.affine, atol=1e-2 * max(grid.spacing)):
        raise DataError(
            f"the mask {case.label} lies elsewhere ({own}) than its image {case.images[0]} ({grid}); bring both to one affine"
        )
    array = _array(case.label, np.float32)
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    if array.ndim != 3 or not np.isfinite(array).all() or (array != np.round(array)).any() or array.min(initial=0) < 0:
        raise DataError(f"{case.label} is no mask: whole numbers from 0 in three dimensions were expected")
    if array.max(initial=0) > 255:
        raise DataError(f"{case.label} has the value {int(array.max())}; masks have values up to 255")
    labels = torch.from_numpy(array.astype(np.uint8))
    if classes is None:
        return labels
    for value, stands in classes.alias:
        labels[labels == value] = stands
    known = {0, *(v for r in classes.regions for v in r)} if classes.regions else set(range(len(classes)))
    wrong = sorted(set(labels.unique().tolist()) - known)
    if wrong:
        raise DataError(
            f"{case.label} has the value{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong[:6]))}, and the classes are {sorted(known)}; "
            "correct the mask, or name all classes"
        )
    return labels


# -- grids ------------------------------------------------------------------------------------------------------------
def to_grid(volume: Tensor, grid: Grid, spacing: Sequence[float], orientation: str, labels: bool = False) -> Tensor:
    """A volume (C, X, Y, Z) turned to an orientation and resampled to a size of voxels; ``()`` and ``""`` leave it as it is."""
    if orientation and orientation != grid.orientation:
        volume = _turned(volume, grid.orientation, orientation)
    if spacing:
        own = _spacing_in(grid, orientation)
        sides = tuple(max(1, round(n * a / b)) for n, a, b in zip(volume.shape[1:], own, spacing, strict=True))
        volume = resized(volume, sides, labels)
    return volume


def from_grid(labels: Tensor, grid: Grid, orientation: str) -> Tensor:
    """Values (X, Y, Z) on the grid of :func:`to_grid` back in the voxels of the file."""
    order = _order(grid.orientation, orientation or grid.orientation)
    sides = tuple(grid.shape[axis] for axis, _ in order)
    labels = resized(labels[None], sides, True)
    return (_turned(labels, orientation, grid.orientation) if orientation else labels)[0].contiguous()


def resized(volume: Tensor, sides: Sequence[int], labels: bool) -> Tensor:
    """(C, ...) to other sides: linear for images, the nearest voxel for labels; channel by channel."""
    if tuple(volume.shape[1:]) == tuple(sides):
        return volume
    if labels:
        for axis, side in enumerate(sides, 1):
            at = ((torch.arange(side) + 0.5) * volume.shape[axis] / side).long().clamp(max=volume.shape[axis] - 1)
            volume = volume.index_select(axis, at.to(volume.device))
        return volume
    return torch.cat(
        [F.interpolate(c[None, None], tuple(sides), mode="trilinear", align_corners=False)[0] for c in volume]
    )


def _order(have: str, want: str) -> list[tuple[int, bool]]:
    """For each wanted axis the axis that holds it, and whether it is turned round."""
    pairs = ("LR", "PA", "IS")
    kind = {c: i for i, pair in enumerate(pairs) for c in pair}
    if sorted(kind.get(c, -1) for c in want) != [0, 1, 2]:
        raise DataError(f"orientation {want!r}; give one letter of each of L/R, P/A and I/S, such as RAS")
    if sorted(kind.get(c, -1) for c in have) != [0, 1, 2]:
        raise DataError(f"axes of orientation {have!r} cannot be turned; write the file again with a valid affine")
    at = {kind[c]: i for i, c in enumerate(have)}
    return [(at[kind[c]], have[at[kind[c]]] != c) for c in want]


def _turned(volume: Tensor, have: str, want: str) -> Tensor:
    order = _order(have, want)
    flips = [i + 1 for i, (_, turned) in enumerate(order) if turned]
    return volume.permute(0, *(axis + 1 for axis, _ in order)).flip(flips).contiguous()


def _spacing_in(grid: Grid, orientation: str) -> tuple[float, ...]:
    return tuple(grid.spacing[axis] for axis, _ in _order(grid.orientation, orientation or grid.orientation))


def agreed(cases: Sequence[Case]) -> tuple[tuple[float, ...], str]:
    """The size of voxels and the orientation that all cases share.

    Raises:
        DataError: two differ; the message says both.
    """
    first = grid_of(cases[0].images[0])
    for case in cases[1:]:
        own = grid_of(case.images[0])
        if not own.like(first.spacing, first.orientation):
            raise DataError(
                f"{case.images[0]} has {own}, and {cases[0].images[0]} {first}; give --spacing (such as "
                f"{','.join(f'{v:.3g}' for v in first.spacing)}) and --orientation (such as {first.orientation}) to resample all to one grid"
            )
    return first.spacing, first.orientation


# -- folders ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class VolumeSplits:
    """Volumes to learn from and to be judged by.

    Attributes:
        modalities: names of the channels.
        own: whether the data have a split of their own (otherwise the validation part was drawn).
    """

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    classes: VolumeClasses
    modalities: tuple[str, ...]
    name: str
    own: bool = False
    notes: tuple[str, ...] = ()

    def with_validation(self, held: Sequence[str]) -> VolumeSplits:
        """The same volumes with these (names) held out; unchanged where the data have a split of their own."""
        every = sorted({*self.train, *self.val}, key=lambda c: c.name)
        inside = [c.name in set(held) for c in every]
        if self.own or not any(inside) or all(inside):
            return self
        train, val = (tuple(c for c, i in zip(every, inside, strict=True) if i is side) for side in (False, True))
        return replace(self, train=train, val=val)


def is_volume(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) and path.name[0] != "."


def stem(path: Path) -> str:
    """A file's name without its ending, of which ``.nii.gz`` is one."""
    name = path.name
    return next(
        (name[: -len(e)] for e in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(e)), path.stem
    )


def open_volumes(
    source: str | Path, *, val_fraction: float = 0.2, seed: int = 0, classes: str = "", on_error: str = "stop"
) -> VolumeSplits:
    """Open volumes with masks.

    Args:
        source: a folder with ``images/`` and ``labels/`` (files of like names); with ``imagesTr``, ``labelsTr`` and ``dataset.json``; or
            with a folder for each case that holds BraTS' modalities and ``seg``.
        val_fraction: share held out where the data have no split of their own.
        seed: of that draw.
        classes: names with commas between them, or a file of them, a line each; by default those of ``dataset.json`` or ``classes.txt``, else
            values are numbered.
        on_error: ``skip`` leaves out cases without a mask or a modality; ``stop`` names them.

    Raises:
        DataError: no such folder or layout, a missing mask or modality.
    """
    root = Path(source)
    if not root.is_dir():
        raise DataError(
            f"no folder at {str(source)!r}; give one with images/ and labels/, with dataset.json, or with BraTS' cases"
        )
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
    notes: list[str] = []
    named: VolumeClasses | None = None
    val: tuple[Case, ...] | None = None
    modalities: tuple[str, ...] = ("image",)
    if (root / "dataset.json").is_file():
        train, val, named, modalities = _decathlon(root, notes, on_error)
    elif (images := _folder(root, _IMAGES)) is not None and (labels := _folder(root, _LABELS)) is not None:
        train = _pairs(images, labels, notes, on_error)
    else:
        train, modalities, named = _brats(root, notes, on_error), tuple(MODALITIES), BRATS
    if not train:
        raise DataError(f"{root} holds no volumes with masks" + (f": {notes[0]}" if notes else ""))
    meaning = named if named is not None and not classes else _meaning(root, classes, (*train, *(val or ())))
    if val is None:
        if len(train) < 2 or not 0 < val_fraction < 1:
            raise DataError(
                f"{root} holds {len(train)} cases and val_fraction is {val_fraction}; give two or more, and a share between 0 and 1"
            )
        order = np.random.default_rng(seed).permutation(len(train)).tolist()
        held = set(order[: min(len(train) - 1, max(1, round(val_fraction * len(train))))])
        parts = (tuple(c for i, c in enumerate(train) if (i in held) is side) for side in (False, True))
        return VolumeSplits(*parts, meaning, modalities, root.name, False, tuple(notes))
    return VolumeSplits(train, val, meaning, modalities, root.name, True, tuple(notes))


def _folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / n for n in names if (root / n).is_dir()), None)


def _left(text: str, notes: list[str], on_error: str) -> None:
    if on_error == "stop":
        raise DataError(text + "; add it, or give --on-error skip")
    notes.append(text)


def _pairs(images: Path, labels: Path, notes: list[str], on_error: str) -> tuple[Case, ...]:
    masks = {_bare(stem(f)): f for f in sorted(labels.iterdir()) if is_volume(f)}
    cases = []
    for file in sorted(f for f in images.iterdir() if is_volume(f)):
        mask = masks.get(_bare(stem(file)))
        if mask is None:
            _left(f"{file} has no mask of its name in {labels}", notes, on_error)
        else:
            cases.append(Case(stem(file), (file,), mask))
    return tuple(cases)


def _bare(name: str) -> str:
    """BTCV calls img0001 and label0001 what belongs together; others add _mask, _seg or _label."""
    for before in ("img", "image", "label", "mask", "seg"):
        if name.startswith(before) and name[len(before) :].lstrip("_-").isdigit():
            return name[len(before) :].lstrip("_-")
    for after in ("_mask", "_seg", "_label", "_labels", "_segmentation"):
        name = name.removesuffix(after)
    return name


def _decathlon(root: Path, notes: list[str], on_error: str):
    file = root / "dataset.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        rows = {part: told.get(part, []) for part in ("training", "validation")}
        labels = {int(k): str(v) for k, v in told["labels"].items()}
        modalities = tuple(str(v) for v in told.get("modality", {"0": "image"}).values())
        files = {part: [(root / r["image"], root / r["label"]) for r in listed] for part, listed in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{file} cannot be used ({error!r}); expected "labels" (number: name) and "training" (a list of image and label)'
        ) from error
    if sorted(labels) != list(range(len(labels))):
        raise DataError(f"{file} numbers its labels {sorted(labels)}; they go from 0 up without a gap")
    parts: dict[str, tuple[Case, ...]] = {}
    for part, pairs in files.items():
        cases = []
        for image, label in pairs:
            gone = next((f for f in (image, label) if not f.is_file()), None)
            if gone is not None:
                _left(f"{gone}, which {file} names, is not there", notes, on_error)
            else:
                cases.append(Case(stem(image), (image,), label))
        parts[part] = tuple(cases)
    names = tuple(labels[i] for i in range(len(labels)))
    return parts["training"], parts["validation"] or None, VolumeClasses(names), modalities


def brats_case(folder: Path, label: bool = True) -> Case | str:
    """The files of a folder of BraTS; in words what is missing."""
    files = [f for f in sorted(folder.iterdir()) if is_volume(f)]

    def ending(names: Sequence[str]) -> Path | None:
        return next((f for f in files if stem(f).lower().replace("-", "_").rsplit("_", 1)[-1] in names), None)

    images = {name: ending(endings) for name, endings in MODALITIES.items()}
    gone = [name for name, file in images.items() if file is None]
    mask = ending(("seg",))
    if gone:
        return f"{folder} has no modality {', '.join(gone)} (files ending in {', '.join('_' + MODALITIES[g][0] for g in gone)})"
    if label and mask is None:
        return f"{folder} has no mask (a file ending in _seg)"
    return Case(folder.name, tuple(f for f in images.values() if f is not None), mask)


def _brats(root: Path, notes: list[str], on_error: str) -> tuple[Case, ...]:
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and any(is_volume(f) for f in p.iterdir())]
    if not folders:
        raise DataError(
            f"{root} holds no volumes with masks; expected images/ and labels/, imagesTr/ and labelsTr/ with dataset.json, or a folder for "
            "each case with BraTS' modalities"
        )
    cases = []
    for folder in folders:
        found = brats_case(folder)
        if isinstance(found, str):
            _left(found, notes, on_error)
        else:
            cases.append(found)
    return tuple(cases)


def _meaning(root: Path, classes: str, cases: Sequence[Case]) -> VolumeClasses:
    listed = Path(classes) if classes else root / "classes.txt"
    if listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        names = [n.strip() for n in classes.split(",") if n.strip()]
    if not names:
        most = max(int(read_label(c, None).max()) for c in cases)
        names = ["background", *(f"class {i}" for i in range(1, max(most, 1) + 1))]
    if len(names) < 2:
        raise DataError(f"{len(names)} class was named ({', '.join(names)}); name the background too")
    return VolumeClasses(tuple(names))
