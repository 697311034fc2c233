"""Volumes as a task: a class (or overlapping regions) for every voxel of a scan, from crops, window by window in bounded memory."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from offprint.data import labelled_volumes as files
from offprint.data.labelled_volumes import BRATS, Case, Grid, VolumeClasses, VolumeSplits, open_volumes
from offprint.data.masks import colour_of
from offprint.errors import DataError, OffprintError, need, unknown
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.nn.sliding import sliding_window
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out
from offprint.tasks.recipe import Recipe, stated
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask

LOSSES = ("own", "dice", "dice+ce", "ce")
NORMS = ("nonzero", "zscore", "window", "offset")


@dataclass(frozen=True)
class VolumeRecipe(Recipe):
    """How a network for volumes is trained.

    ``crop`` are the sides of a sample and of a window; ``foreground`` is the share of samples whose centre is no background. ``normalize``:
    ``nonzero`` and ``zscore`` give each channel the mean 0 and the deviation 1, over its voxels that are not zero or over all;
    ``window`` cuts ``intensity`` and scales it to 0 to 1, ``offset`` cuts it and subtracts ``offset``. ``spacing`` (mm) and ``orientation`` are
    what volumes are brought to, where the paper does. ``scale_intensity`` and ``shift_intensity`` are ranges of a random factor and
    summand; ``turn`` adds quarter turns in the plane of the first two axes to the flips. ``loss`` is one of MONAI's (``dice``, ``dice+ce``,
    ``ce``) or the model's ``own``. Overlapping regions are always sigmoids.
    """

    crop: tuple[int, ...] = ()
    foreground: float = 0.5
    normalize: str = "zscore"
    intensity: tuple[float, ...] = ()
    offset: float = 0.0
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    scale_intensity: float = 0.1
    shift_intensity: float = 0.1
    turn: bool = False
    loss: str = "dice+ce"

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("loss", LOSSES), ("normalize", NORMS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if len(self.crop) not in (0, 3) or len(self.spacing) not in (0, 3) or min((*self.crop, *self.spacing, 1)) <= 0:
            raise OffprintError(f"recipe: crop={self.crop}, spacing={self.spacing}; give three sides above 0")
        if self.normalize in ("window", "offset") and (
            len(self.intensity) != 2 or self.intensity[0] >= self.intensity[1]
        ):
            raise OffprintError(f"recipe: intensity={self.intensity}; give the least and the greatest value")
        if not 0 <= self.foreground <= 1:
            raise OffprintError(f"recipe: foreground={self.foreground}; it is a share from 0 to 1")


def normalized(image: Tensor, how: Mapping[str, Any]) -> Tensor:
    """(C, X, Y, Z) in place as a recipe's ``normalize`` says."""
    kind = how["normalize"]
    if kind in ("window", "offset"):
        low, high = how["intensity"]
        image.clamp_(low, high)
        return image.sub_(low).div_(high - low) if kind == "window" else image.sub_(how["offset"])
    for channel in image:
        if kind == "nonzero":
            inside = channel != 0
            values = channel[inside]
            if len(values):
                std = float(values.std(correction=0))
                channel[inside] = (values - values.mean()) / (std or 1.0)
        else:
            std = float(channel.std(correction=0))
            channel.sub_(channel.mean()).div_(std or 1.0)
    return image


# -- what a network says of a volume ----------------------------------------------------------------------------------
def steps_of(model: nn.Module) -> tuple[int, int, int]:
    """What the sides of a window must be multiples of: the network's ``size_multiple``, else 32; slices are free in number."""
    given = getattr(model, "size_multiple", 32)
    if isinstance(given, int):
        return (given, given, 1) if getattr(model, "takes_slices", False) else (given,) * 3
    a, b, c = given
    return a, b, c


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K, X, Y, Z) of volumes (B, C, X, Y, Z); a 2-D network sees each slice of the last axis between its neighbours."""
    if not (getattr(model, "takes_slices", False) and getattr(model, "ndim", 2) == 2):
        return model(x)
    b, _, _, _, depth = x.shape
    at = (torch.arange(depth)[:, None] + torch.tensor([-1, 0, 1])).clamp(0, depth - 1).to(x.device)
    return model(x.movedim(-1, 1)[:, at].flatten(2, 3).flatten(0, 1)).unflatten(0, (b, depth)).movedim(1, -1)


def scores_of(model: nn.Module, x: Tensor, regions: bool) -> Tensor:
    """Sigmoids of overlapping regions, else a softmax over the classes."""
    logits = logits_of(model, x)
    return logits.sigmoid() if regions else logits.softmax(1)


def _starts(side: int, window: int, step: int) -> list[int]:
    last = max(side - window, 0)
    return [*range(0, last, step), last]


def slabs(
    predict: Callable[[Tensor], Tensor], volume: Tensor, window: Sequence[int], overlap: float
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    """Scores of a volume slab by slab, windows averaged where they overlap; no more than one slab is held.

    The result is that of :func:`~offprint.nn.sliding.sliding_window` (MONAI's). Slabs are cut along the axis on which they are least.

    Args:
        predict: (1, C, *window) to scores (1, K, *window).
        volume: (C, X, Y, Z).
        window: sides of a window; shorter axes are padded with zeros.
        overlap: share of a window that the next one covers again.

    Yields:
        (place of a finished part, scores (K, ...) of it).
    """
    sides = tuple(volume.shape[1:])
    if not 0 <= overlap < 1:
        raise OffprintError(f"overlap={overlap}; windows overlap by a share from 0 to below 1")
    axis = min(range(3), key=lambda a: window[a] / max(sides[a], window[a]))
    side, thick = sides[axis], min(window[axis], sides[axis])
    starts = _starts(side, thick, max(1, int(window[axis] * (1 - overlap))))
    held: Tensor | None = None
    for i, start in enumerate(starts):
        strip = volume.narrow(axis + 1, start, thick)[None]
        found = sliding_window(predict, strip, window, overlap)[0]
        count = torch.ones(thick)
        if held is not None:
            found.narrow(axis + 1, 0, held.shape[axis + 1]).add_(held)
        # how many slabs have covered each layer so far
        for before in starts[:i]:
            reach = before + thick - start
            if reach > 0:
                count[:reach] += 1
        done = (starts[i + 1] if i + 1 < len(starts) else side) - start
        shape = [1, 1, 1, 1]
        shape[axis + 1] = done
        place = [slice(None)] * 3
        place[axis] = slice(start, start + done)
        yield (
            (place[0], place[1], place[2]),
            found.narrow(axis + 1, 0, done) / count[:done].view(shape).to(found.device),
        )
        held = found.narrow(axis + 1, done, thick - done).clone() if done < thick else None


@torch.no_grad()
def segmented(
    model: nn.Module, image: Tensor, classes: VolumeClasses, window: Sequence[int], overlap: float = 0.5
) -> Tensor:
    """Values (X, Y, Z) uint8 of one normalised volume (C, X, Y, Z) of any size; memory for scores follows the window."""
    window = fitting(model, window)
    device = next(model.parameters()).device
    out = torch.zeros(image.shape[1:], dtype=torch.uint8)
    run = lambda x: scores_of(model, x.to(device), bool(classes.regions))  # noqa: E731
    for place, scores in slabs(run, image, window, overlap):
        out[place] = classes.decide(scores).cpu()
    return out


def fitting(model: nn.Module, window: Sequence[int]) -> tuple[int, ...]:
    """The window, each side enlarged to what the network takes."""
    return tuple(-(-w // s) * s for w, s in zip(window, steps_of(model), strict=True))


# -- measures ---------------------------------------------------------------------------------------------------------
def case_scores(
    said: Tensor, truth: Tensor, classes: VolumeClasses, spacing: Sequence[float], distance: bool
) -> list[dict[str, float]]:
    """Dice (%) and HD95 (mm) of each class but the background, by MONAI.

    Nothing is undefined: where a class is in neither, Dice is 100 and the distance 0; where it is in one alone, Dice is 0 and the
    distance the diagonal of the volume.
    """
    metrics = need("monai.metrics", "medical", "Dice and HD95")
    rows, diagonal = [], float(sum((n * s) ** 2 for n, s in zip(truth.shape, spacing, strict=True)) ** 0.5)
    first = 0 if classes.regions else 1
    for a, b in zip(classes.masks(said)[first:], classes.masks(truth)[first:], strict=True):
        here, there = bool(a.any()), bool(b.any())
        row = {"dice": 100.0 * (here == there), "hd95": 0.0 if here == there else diagonal}
        if here and there:
            row["dice"] = 100 * float(metrics.compute_dice(a[None, None].float(), b[None, None].float()))
            if distance:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    row["hd95"] = float(
                        metrics.compute_hausdorff_distance(
                            a[None, None],
                            b[None, None],
                            include_background=True,
                            percentile=95,
                            spacing=[float(v) for v in spacing],
                        )
                    )
        rows.append(row if distance else {"dice": row["dice"]})
    return rows


# -- training ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reader:
    """Reads cases onto the grid of a run, normalised."""

    classes: VolumeClasses
    channels: int
    how: Mapping[str, Any]

    def image(self, case: Case) -> tuple[Tensor, Grid]:
        image, grid = files.read_image(case, self.channels)
        image = files.to_grid(image, grid, self.how["spacing"], self.how["orientation"])
        return normalized(image, self.how), grid

    def pair(self, case: Case) -> tuple[Tensor, Tensor, Grid]:
        image, grid = self.image(case)
        label = files.read_label(case, self.classes, grid)
        return (
            image,
            files.to_grid(label[None], grid, self.how["spacing"], self.how["orientation"], labels=True)[0],
            grid,
        )


class Crops(Dataset):
    """A random crop of a case, by MONAI's transforms; the last cases that were read are held."""

    def __init__(self, cases: Sequence[Case], reader: Reader, recipe: VolumeRecipe, crop: Sequence[int], held: int):
        self.cases, self.reader, self.held = list(cases), reader, held
        self.kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        monai = need("monai.transforms", "medical", "training on volumes")
        keys, both = ("image", "label"), (0, 1, 2)
        chosen: list[Any] = [
            monai.SpatialPadd(keys, spatial_size=crop),
            monai.RandCropByPosNegLabeld(
                keys,
                "label",
                crop,
                pos=recipe.foreground,
                neg=1 - recipe.foreground,
                num_samples=1,
                allow_smaller=False,
            ),
        ]
        if recipe.flip:
            chosen += [monai.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in both]
        if recipe.turn:
            chosen.append(monai.RandRotate90d(keys, prob=0.75, max_k=3))
        if recipe.scale_intensity:
            chosen.append(monai.RandScaleIntensityd("image", factors=recipe.scale_intensity, prob=1.0))
        if recipe.shift_intensity:
            chosen.append(monai.RandShiftIntensityd("image", offsets=recipe.shift_intensity, prob=1.0))
        self.transform = monai.Compose(chosen)

    def __len__(self) -> int:
        return len(self.cases)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        if index not in self.kept:
            self.kept[index] = self.reader.pair(self.cases[index])[:2]
            while len(self.kept) > self.held:
                self.kept.popitem(last=False)
        return self.kept[index]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.read(index) if self.held else self.reader.pair(self.cases[index])[:2]
        self.transform.set_random_state(seed=int(torch.randint(2**31 - 1, ())))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a case without foreground is cropped anywhere
            (found,) = self.transform({"image": image, "label": label[None]})
        image, label = (torch.as_tensor(found[k]).as_subclass(Tensor).contiguous() for k in ("image", "label"))  # type: ignore[arg-type]
        return image, label[0].long()


class Wholes(Dataset):
    """Whole cases: image (C, X, Y, Z) and values (X, Y, Z)."""

    def __init__(self, cases: Sequence[Case], reader: Reader):
        self.cases, self.reader = list(cases), reader

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.reader.pair(self.cases[index])[:2]


def volume_loss(kind: str, model: nn.Module, classes: VolumeClasses) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss of logits (B, K, X, Y, Z) and values (B, X, Y, Z), by MONAI or the model's own."""
    own = getattr(model, "volume_loss", None)
    if kind == "own":
        if own is None or classes.regions:
            raise OffprintError(
                f"{type(model).__name__} has no loss of its own for these classes; choose dice, dice+ce or ce"
            )
        return own
    losses = need("monai.losses", "medical", "the loss")
    several = bool(classes.regions)
    common: dict[str, Any] = {"sigmoid": several, "softmax": not several, "to_onehot_y": not several}
    if kind == "ce":
        plain = nn.BCEWithLogitsLoss() if several else nn.CrossEntropyLoss()
        return lambda y, t: plain(y, torch.stack([classes.masks(v) for v in t]).to(y.dtype) if several else t)
    made = losses.DiceLoss(**common) if kind == "dice" else losses.DiceCELoss(**common)
    return lambda y, t: made(y, torch.stack([classes.masks(v) for v in t]).to(y.dtype) if several else t[:, None])


class VolumeSegmentation(RecipeTask):
    """The loss on crops; Dice on whole held-out volumes."""

    def __init__(
        self, model: nn.Module, recipe: VolumeRecipe, seed: int, classes: VolumeClasses, settled: Mapping[str, Any]
    ):
        super().__init__(model, recipe, seed)
        self.classes, self.settled = classes, settled
        self.loss_of = volume_loss(settled["loss"], model, classes)
        self.sums: list[float] = []

    def training_step(self, batch, batch_idx) -> Tensor:
        images, labels = batch
        loss = self.loss_of(logits_of(self.model, images), labels)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.sums = []

    def validation_step(self, batch, batch_idx) -> None:
        image, label = batch
        said = segmented(self.model, image[0].cpu(), self.classes, self.settled["window"])
        rows = case_scores(said, label[0].cpu(), self.classes, (1, 1, 1), distance=False)
        self.sums.append(sum(r["dice"] for r in rows) / len(rows))

    def on_validation_epoch_end(self) -> None:
        pair = self.all_gather(torch.tensor([sum(self.sums), float(len(self.sums))], device=self.device))
        total, count = (pair.sum(0) if pair.ndim == 2 else pair).tolist()
        self.log("val_dice", total / max(count, 1.0), prog_bar=True, rank_zero_only=False)


# -- results ----------------------------------------------------------------------------------------------------------
@dataclass
class VolumeMasks(Result):
    """Masks of volumes. Each row: ``volume``, ``sides``, ``spacing``, millilitres of each class that occurs, and ``file`` where written.

    Attributes:
        masks: values (X, Y, Z) uint8 in the voxels of the files, in the rows' order.
        sources: the files.
    """

    masks: list[np.ndarray] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)

    def flat(self) -> list[dict[str, Any]]:
        return [{"volume": r["volume"], "class": n, "ml": v} for r in self.rows for n, v in r["ml"].items()]

    def save(self, path: str | Path) -> Path:
        """Write the masks with the geometry of their volumes: one to a ``.nii.gz``, several to a folder, as ``NAME_mask.nii.gz`` with
        ``NAME_overlay.png`` beside them; ``.json``, ``.csv`` and ``.tsv`` for the volumes of the classes."""
        path = Path(path)
        if path.suffix.lower() in (".json", ".csv", ".tsv"):
            return super().save(path)
        one = path.name.lower().endswith((".nii", ".nii.gz")) and len(self.masks) == 1
        if path.suffix and not one:
            raise OffprintError(
                f"{path}: masks are written to a folder, one mask to a .nii.gz, volumes of classes to .json, .csv or .tsv"
            )
        for row, mask, source in zip(self.rows, self.masks, self.sources, strict=True):
            target = path if one else path / f"{row['name']}_mask.nii.gz"
            if target.exists() and target.resolve() == source.resolve():
                raise OffprintError(f"{target} is the volume itself; choose another --out")
            row["file"] = str(_write_mask(target, mask, source))
            picture = io.BytesIO()
            self.overlay(mask, source).save(picture, "PNG")
            atomic_write(
                target.with_name(f"{files.stem(target).removesuffix('_mask')}_overlay.png"), picture.getvalue()
            )
        return path

    def overlay(self, mask: np.ndarray, source: Path) -> Image.Image:
        """The three middle planes through what was found, the classes' colours over them."""
        import nibabel

        volume = nibabel.load(str(source)).dataobj
        there = np.argwhere(mask[::4, ::4, ::4]) * 4
        centre = (there.mean(0) if len(there) else np.array(mask.shape) / 2).astype(int)
        table = np.array([colour_of(i) for i in range(256)], np.float32)
        planes = []
        for axis in range(3):
            at: list[Any] = [slice(None)] * 3
            at[axis] = int(centre[axis])
            flat = np.asarray(volume[(*at, *(0,) * (len(volume.shape) - 3))], np.float32)
            low, high = np.percentile(flat, (1, 99))
            grey = ((flat - low) / max(high - low, 1e-6)).clip(0, 1)[..., None].repeat(3, -1) * 255
            cut = mask[tuple(at)]
            plane = np.where(cut[..., None] > 0, 0.5 * grey + 0.5 * table[cut], grey)
            planes.append(np.flipud(plane.swapaxes(0, 1)))
        height = max(p.shape[0] for p in planes)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), (0, 0))) for p in planes]
        return Image.fromarray(np.concatenate(padded, 1).round().astype(np.uint8))

    def draw(self, path: str | Path) -> Path:
        """A sheet of the volumes' middle planes with their masks."""
        shown = [(self.overlay(m, s), r["name"]) for r, m, s in zip(self.rows, self.masks, self.sources, strict=True)]
        return sheet(path, shown[:24], columns=2)


def _write_mask(target: Path, mask: np.ndarray, source: Path) -> Path:
    """A NIfTI of the source's affine (both of its forms) and units."""
    import nibabel

    image = nibabel.load(str(source))
    made = nibabel.Nifti1Image(mask, image.affine)
    if isinstance(image.header, nibabel.Nifti1Header):
        for form in ("qform", "sform"):
            affine, code = getattr(image, f"get_{form}")(coded=True)
            if code:
                getattr(made, f"set_{form}")(affine, int(code))
        made.header.set_xyzt_units(*image.header.get_xyzt_units())
    data = made.to_bytes()
    if target.name.lower().endswith(".gz"):
        import gzip

        data = gzip.compress(data, 3, mtime=0)
    return atomic_write(target, data)


# -- the task ---------------------------------------------------------------------------------------------------------
class VolumeTask(Task):
    """Volumes and masks: crops for training, windows for measuring and for use."""

    name = "volumes"
    does = "segments volumes"
    goal = "val_dice"
    made = ("validation.txt",)

    def fits(self, spec: Entry) -> bool:
        return spec.task == self.name or bool(getattr(spec.build, "takes_slices", False))

    def open(
        self, source: Any, *, seed: int = 0, val_fraction: float = 0.2, classes: str = "", on_error: str = "stop"
    ) -> VolumeSplits:
        """Open volumes with masks.

        Args:
            source: a folder with images/ and labels/, with imagesTr, labelsTr and dataset.json (BTCV), or with a folder for each
                case (BraTS).
            val_fraction: share held out, where the data have no split of their own.
            classes: names with commas between them, or a file of them; default dataset.json or classes.txt in the folder.
            on_error: a case without its mask or a modality: stop or skip.
        """
        if isinstance(source, VolumeSplits):
            return source
        return open_volumes(source, val_fraction=val_fraction, seed=seed, classes=classes, on_error=on_error)

    def digest(self, data: VolumeSplits) -> str:
        return ""  # volumes come and go: what belongs to which part is fixed in the folder instead

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> VolumeRecipe:
        """The model's own; a 2-D network's batch of slices is given as samples of eight slices."""
        own = {**_normalizing(spec.preprocessing), **stated(spec.name, stage)}
        if spec.task != self.name:
            own["batch_size"] = max(1, own.get("batch_size", 8) // 8)
            own["loss"] = "own" if hasattr(spec.build, "volume_loss") else "dice+ce"
        return VolumeRecipe.make({**own, **(overrides or {})})

    def prepare(self, job: Job, *, spacing: str = "", orientation: str = "", foreground: float = -1.0, loss: str = "", normalize: str = "",
                crop: str = "", window: str = "", held: int = 4) -> None:  # fmt: skip
        """Settle the grid, the loss and the validation part.

        Args:
            spacing: size of voxels in mm that all volumes are resampled to, such as 1.5,1.5,2; default the recipe's, or that of the data.
            orientation: of the axes, such as RAS, that all volumes are turned to; default the recipe's, or that of the data.
            foreground: share of samples about a voxel that is no background; default the recipe's.
            loss: own (the paper's, where the model has one), dice, dice+ce or ce; default the recipe's.
            normalize: nonzero or zscore, where the recipe's window of intensities does not fit the data.
            crop: sides of a sample, such as 96,96,96; default the recipe's.
            window: sides of a window in use; default the crop.
            held: volumes that are kept in memory while training (0: none).
        """
        changed: dict[str, Any] = {
            "spacing": _three(spacing, "spacing", float), "orientation": orientation.upper(), "crop": _three(crop, "crop", int), "loss": loss,
            "normalize": normalize,
        }  # fmt: skip
        if foreground >= 0:
            changed["foreground"] = foreground
        recipe = job.how = dataclasses.replace(job.how, **{k: v for k, v in changed.items() if v or k == "foreground"})
        kept = Path(job.out) / "validation.txt"
        if job.run.resume and kept.is_file() and (Path(job.out) / "settings.json").is_file():
            job.data = job.data.with_validation(kept.read_text(encoding="utf-8").splitlines())
        cases = (*job.data.train, *job.data.val)
        if recipe.spacing and recipe.orientation:
            grid = (recipe.spacing, recipe.orientation)
        else:
            if recipe.spacing or recipe.orientation:  # the other one is that of the first case
                first = files.grid_of(cases[0].images[0])
                grid = (recipe.spacing or first.spacing, recipe.orientation or first.orientation)
            else:
                grid = files.agreed(cases)
        asked = bool(recipe.spacing or recipe.orientation)
        sides = recipe.crop or _crop(job.entry)
        job.settled = {
            "loss": recipe.loss,
            "crop": list(sides),
            "window": list(_three(window, "window", int) or sides),
            "grid": {"spacing": list(grid[0]), "orientation": grid[1], "resampled": asked},
            "reading": {"normalize": recipe.normalize, "intensity": list(recipe.intensity), "offset": recipe.offset},
            "held": held,
        }

    def greeting(self, job: Job) -> Sequence[str]:
        d, grid = job.data, job.settled["grid"]
        return [
            f"{len(d.train)} volumes to learn from, {len(d.val)} held out, {len(d.modalities)} modalities, {len(d.classes)} classes: "
            f"{', '.join(d.classes.names[:8])}",
            f"voxels of {' x '.join(f'{v:.3g}' for v in grid['spacing'])} mm, {grid['orientation']}"
            + (" (resampled)" if grid["resampled"] else ""),
            *left_out(d.notes),
        ]

    def build(self, job: Job) -> nn.Module:
        options = {"in_chans": self._channels(job), **job.model_options}
        network = create_model(job.model, pretrained=job.pretrained, num_classes=len(job.data.classes), **options)
        job.model_options = options
        if job.checkpoint:
            load_weights(network, job.checkpoint, drop_head=True)
        staged = getattr(network, "set_stage", None)
        if staged is not None:
            if job.pretrained or job.checkpoint:
                staged(job.stage)
            else:
                job.say("without weights to start from nothing is held still: the whole network is trained")
        return network

    def _channels(self, job: Job) -> int:
        return len(job.data.modalities) * (1 if job.entry.task == self.name else 3)

    def about(self, job: Job) -> dict[str, Any]:
        settled = {k: v for k, v in job.settled.items() if k != "held"}
        return {"classes": dataclasses.asdict(job.data.classes), "modalities": list(job.data.modalities), **settled}

    def _reader(self, classes: VolumeClasses, channels: int, about: Mapping[str, Any]) -> Reader:
        grid = about["grid"]
        where = (
            {"spacing": grid["spacing"], "orientation": grid["orientation"]}
            if grid["resampled"]
            else {"spacing": (), "orientation": ""}
        )
        return Reader(classes, channels, {**about["reading"], **where})

    def module(self, job: Job) -> VolumeSegmentation:
        if job.folder.writes:
            atomic_write(job.folder / "validation.txt", "\n".join(c.name for c in job.data.val) + "\n")
        return VolumeSegmentation(job.network, job.how, job.run.seed, job.data.classes, job.settled)

    def loaders(self, job: Job) -> SeededLoaders:
        d = job.data
        reader, crop = (
            self._reader(d.classes, len(d.modalities), job.settled),
            fitting(job.network, job.settled["crop"]),
        )
        return SeededLoaders(
            Crops(d.train, reader, job.how, crop, job.settled["held"]), Wholes(d.val, reader), min(job.how.batch_size, len(d.train)),
            job.run.workers, job.run.seed,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"dice": fitted.best, "classes": list(job.data.classes.names)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"mean Dice {figures['dice']:.2f} % on held-out volumes after {figures['epochs']} epochs ({figures['weights_are']}); "
            f"weights: {folder / 'model.safetensors'}",
            f"next: offprint predict VOLUME.nii.gz --model {folder} --out masks",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        return self.restored(folder, about, num_classes=len(about["classes"]["names"]))

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        spec = entry(name)
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        weights = spec.release(pretrained) if pretrained else None
        told = dict(weights.preprocessing or {}) if weights else dict(spec.preprocessing)
        count = int(getattr(model, "num_classes", 0))
        brats = weights.class_map == "brats" if weights else spec.paper == "swin-unetr" and count == len(BRATS)
        classes = BRATS if brats else VolumeClasses(("background", *(f"class {i}" for i in range(1, count))))
        how = VolumeRecipe.make({**stated(name), **_normalizing(told)})
        size = weights.input_size if weights and weights.input_size else None
        crop = tuple(size[1:]) if size else _crop(spec)
        channels = int(getattr(model, "in_chans", 1)) // (1 if spec.task == self.name else 3)
        about = {
            "classes": dataclasses.asdict(classes),
            "modalities": [f"channel {i}" for i in range(channels)],
            "grid": {"spacing": list(how.spacing), "orientation": how.orientation, "resampled": bool(how.spacing)},
            "reading": {"normalize": how.normalize, "intensity": list(how.intensity), "offset": how.offset},
            "window": list(crop),
            "options": dict(options),
        }
        return Ready(self, model, name, about)

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        overlap: float = 0.5,
        window: str = "",
        classes: str = "",
        resample: bool = False,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Mean Dice (%) and HD95 (mm) on the validation part, and those of each class, in the voxels of the files.

        A class that is in neither mask counts 100 % and 0 mm; one that is in one of them alone 0 % and the volume's diagonal.

        Args:
            overlap: share of a window that the next one covers again.
            window: sides of a window, such as 128,128,128; default the run's.
            classes: names or a file of them, where the data do not say; default those of the run.
            resample: bring volumes of other voxels or another orientation to the run's grid; otherwise they are refused.
            on_error: a case without its mask or a modality: stop or skip.
        """
        data = self.own_source(ready) if data is None else data
        mine = known_classes(ready)
        names = classes or ("" if mine.regions else ",".join(mine.names))
        splits = self.open(data, classes=names, on_error=on_error)
        kept = None if ready.folder is None else ready.folder / "validation.txt"
        if kept is not None and kept.is_file() and str(data) == ready.about.get("source"):
            splits = splits.with_validation(kept.read_text(encoding="utf-8").splitlines())
        if len(splits.classes) != len(mine) or bool(splits.classes.regions) != bool(mine.regions):
            raise OffprintError(
                f"the model has {len(mine)} classes ({', '.join(mine.names[:5])}), the data {len(splits.classes)} ({', '.join(splits.classes.names[:5])})"
            )
        rows = []
        if progress:
            progress(total=len(splits.val))
        for case in splits.val:
            said, grid = self._mask(ready, case, _three(window, "window", int), overlap, resample)
            rows.append(case_scores(said, files.read_label(case, mine, grid), mine, grid.spacing, distance=True))
            if progress:
                progress(text=case.name)
        shown = mine.names if mine.regions else mine.names[1:]
        table = [
            {"class": name, **{k: sum(r[i][k] for r in rows) / len(rows) for k in ("dice", "hd95")}}
            for i, name in enumerate(shown)
        ]
        figures = {**{k: sum(r[k] for r in table) / len(table) for k in ("dice", "hd95")}, "volumes": len(rows)}
        return Figures(table, figures=figures, units={"dice": " %", "hd95": " mm"}, notes=left_out(splits.notes))

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        overlap: float = 0.5,
        window: str = "",
        resample: bool = False,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> VolumeMasks:
        """A class for every voxel of volumes of any size, in the voxels of the file.

        Args:
            inputs: NIfTI or MGZ files, folders of them, and folders of BraTS cases.
            overlap: share of a window that the next one covers again.
            window: sides of a window, such as 128,128,128; default the run's. Memory follows it.
            resample: bring volumes of other voxels or another orientation to the run's grid, and the mask back; otherwise they are refused.
            on_error: a volume that cannot be used: stop or skip.
        """
        found, reasons, classes = VolumeMasks([]), [], known_classes(ready)
        cases = _cases(inputs, len(ready.about["modalities"]))
        if progress:
            progress(total=len(cases))
        for case in cases:
            try:
                mask, grid = self._mask(ready, case, _three(window, "window", int), overlap, resample)
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            ml = float(np.prod(grid.spacing)) / 1000
            every = classes.masks(mask) if classes.regions else None
            counts = (
                [int(m.sum()) for m in every]
                if every is not None
                else torch.bincount(mask.flatten(), minlength=len(classes)).tolist()
            )
            first = 0 if classes.regions else 1
            volumes = {n: round(c * ml, 3) for n, c in zip(classes.names[first:], counts[first:], strict=True) if c}
            found.rows.append({"volume": str(case.images[0]), "name": case.name, "sides": list(grid.shape), "spacing": list(grid.spacing), "ml": volumes})  # fmt: skip
            found.masks.append(mask.numpy())
            found.sources.append(case.images[0])
            if progress:
                progress(text=case.name)
        found.notes += left_out(reasons)
        return found

    def _mask(
        self, ready: Ready, case: Case, window: Sequence[int], overlap: float, resample: bool
    ) -> tuple[Tensor, Grid]:
        """Values in the voxels of the file."""
        about, grid = ready.about, files.grid_of(case.images[0])
        wanted = about["grid"]
        there = wanted["spacing"], wanted["orientation"]
        same = grid.like(*there)
        if not (same or resample or wanted["resampled"]):
            raise DataError(
                f"{case.images[0]} has {grid}, and the model was trained on voxels of {' x '.join(f'{v:.3g}' for v in there[0])} mm, orientation "
                f"{there[1]}; give --resample true to bring it there (the mask comes back in its own voxels)"
            )
        reading = {**about["reading"], "spacing": () if same else there[0], "orientation": "" if same else there[1]}
        reader = Reader(known_classes(ready), len(about["modalities"]), reading)
        image, grid = reader.image(case)
        labels = segmented(ready.model, image, reader.classes, window or about["window"], overlap)
        return (labels if same else files.from_grid(labels, grid, there[1])), grid


def known_classes(ready: Ready) -> VolumeClasses:
    """The classes that a run was trained on."""
    c = ready.about["classes"]
    pairs = {k: tuple(tuple(int(v) for v in row) for row in c[k]) for k in ("regions", "paint", "alias")}
    return VolumeClasses(tuple(c["names"]), **pairs)  # type: ignore[arg-type]


def _cases(inputs: Any, channels: int) -> list[Case]:
    cases: list[Case] = []
    for given in [inputs] if isinstance(inputs, str | Path) else inputs:
        path = Path(given)
        if not path.exists():
            raise DataError(f"no volume at {path}; give NIfTI files, or folders of them")
        if path.is_file():
            cases.append(Case(files.stem(path), (path,)))
            continue
        inside = [f for f in sorted(path.iterdir()) if files.is_volume(f)]
        if channels == len(files.MODALITIES):
            folders = [path] if inside else [p for p in sorted(path.iterdir()) if p.is_dir()]
            for folder in folders:
                case = files.brats_case(folder, label=False)
                if isinstance(case, str):
                    raise DataError(f"{case}; the model takes {channels} modalities")
                cases.append(case)
        else:
            cases += [Case(files.stem(f), (f,)) for f in inside]
    if not cases:
        raise DataError("no volumes were given (files that end in " + ", ".join(files.ENDINGS) + ")")
    return cases


def _three(text: str, name: str, kind: type) -> tuple[Any, ...]:
    if not text:
        return ()
    try:
        values = tuple(kind(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or min(values) <= 0:
        raise OffprintError(f"{name}={text!r}; give three numbers above 0 with commas between them, such as 96,96,96")
    return values


def _crop(spec: Entry) -> tuple[int, ...]:
    """Sides of a sample: those of the model's input, and eight slices of a 2-D network's."""
    size = spec.input_size or (1, 96, 96, 96)
    return tuple(size[1:]) if len(size) == 4 else (*size[1:], 8)


def _normalizing(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the recipe that a model's preprocessing says."""
    found = {k: preprocessing[k] for k in ("spacing", "orientation", "intensity", "offset") if k in preprocessing}
    if "intensity" in found:
        found["normalize"] = "offset" if "offset" in found else "window"
    elif "normalize" in preprocessing:
        found["normalize"] = "nonzero"
    return found


register_task(VolumeTask())
