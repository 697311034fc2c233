"""Segmentation as a task: a class for every pixel, trained on pictures and masks, judged by overlap, predicted for pictures of any size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from offprint.data.georeference import georeference, map_tiff
from offprint.data.masks import IGNORE, Classes, MaskedPictures, MaskSplits, colour_of, open_masks
from offprint.data.reading import read_picture
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.nn.region_losses import LOSSES, region_loss
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out, normaliser, pictures_in
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask

BALANCES = ("none", "inverse", "median")
COMPOSED = {  # a pretrained backbone under a fresh head, on some hundred pictures
    "optimizer": "adamw", "lr": 1e-4, "reference_batch": 16, "weight_decay": 0.05, "epochs": 50, "batch_size": 8, "warmup_epochs": 2,
    "color_jitter": 0.3,
}  # fmt: skip


# -- what a network says of a picture ---------------------------------------------------------------------------------
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Main logits (B, K, H, W) of images (B, C, H, W): of several outputs the first, enlarged to the image where they are smaller."""
    return _enlarged(_outputs(model(x))[0], x)


def _outputs(found: Any) -> list[Tensor]:
    """The main output of a network, and those of its side classifiers."""
    if isinstance(found, Mapping):
        return [found["out"], *(v for k, v in found.items() if k != "out" and isinstance(v, Tensor))]
    return [v for v in found if isinstance(v, Tensor)] if isinstance(found, list | tuple) else [found]


def _enlarged(y: Tensor, x: Tensor) -> Tensor:
    return y if y.shape[2:] == x.shape[2:] else F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)


def _padded(model: nn.Module, x: Tensor) -> Tensor:
    """Zeros below and to the right, up to the multiple of pixels that the network needs (its ``size_multiple``, else 32)."""
    step = int(getattr(model, "size_multiple", 32))
    return F.pad(x, (0, -x.shape[-1] % step, 0, -x.shape[-2] % step))


def probabilities(model: nn.Module, x: Tensor, flips: bool = False) -> Tensor:
    """Softmax (B, K, H, W) of images (B, C, H, W) of any size; with ``flips`` the mean with that of the mirrored image."""
    sides = x.shape[-2:]
    padded = _padded(model, x)
    p = logits_of(model, padded).softmax(1)
    if flips:
        p = (p + logits_of(model, padded.flip(-1)).softmax(1).flip(-1)) / 2
    return p[..., : sides[0], : sides[1]]


def _starts(side: int, window: int, step: int) -> list[int]:
    return [min(step * i, side - window) for i in range(math.ceil(max(side - window, 0) / step) + 1)]


def bands(
    predict: Callable[[Tensor], Tensor],
    image: Callable[[int, int], Tensor],
    height: int,
    width: int,
    window: int,
    overlap: float,
) -> Iterator[tuple[int, Tensor]]:
    """Classes of a large image band by band, from overlapping windows; memory follows the window and the width, not the height.

    Args:
        predict: (1, C, h, w) to probabilities (1, K, h, w).
        image: rows ``a`` to ``b`` as (1, C, b - a, width).
        window: side of a window; the image's own side where that is less.
        overlap: share of a window that the next one covers again.

    Yields:
        (first row, classes (rows, width) int64).
    """
    rows, columns = min(window, height), min(window, width)
    tops, lefts = (_starts(side, w, max(1, round(w * (1 - overlap)))) for side, w in ((height, rows), (width, columns)))
    total: Tensor | None = None
    for at, top in enumerate(tops):
        strip = image(top, top + rows)
        band: Tensor | None = None
        for left in lefts:
            p = predict(strip[..., left : left + columns])[0]
            if band is None:
                band = p.new_zeros(len(p) + 1, rows, width)
            band[:-1, :, left : left + columns] += p
            band[-1, :, left : left + columns] += 1
        assert band is not None
        if total is not None:
            band[:, : total.shape[1]] += total  # rows that the windows above saw too
        done = (tops[at + 1] if at + 1 < len(tops) else top + rows) - top
        yield top, (band[:-1, :done] / band[-1:, :done]).argmax(0)
        total = band[:, done:]


# -- measures ---------------------------------------------------------------------------------------------------------
class Overlap:
    """Counts of (truth, prediction) pairs of classes, and the measures that follow from them; one count for all of them.

    A class that neither occurs nor is predicted is left out of means, so that no measure is NaN.
    """

    def __init__(self, classes: int, ignore: int = IGNORE):
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.ignore = ignore

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count classes (...) against true ones of the same shape."""
        n = len(self.counts)
        keep = target != self.ignore
        pairs = target[keep].to(torch.int64) * n + predicted[keep].to(torch.int64)
        self.counts += torch.bincount(pairs.flatten().cpu(), minlength=n * n).view(n, n)

    def per_class(self) -> dict[str, list[float | None]]:
        """IoU, Dice and recall (%) of each class; ``None`` where the class neither occurs nor is predicted."""
        hit, truth, said = (v.double() for v in (self.counts.diag(), self.counts.sum(1), self.counts.sum(0)))

        def rate(a: Tensor, b: Tensor, there: Tensor) -> list[float | None]:
            return [100 * float(x / y) if ok else None for x, y, ok in zip(a, b, there & (b > 0), strict=True)]

        there = truth + said > 0
        return {
            "iou": rate(hit, truth + said - hit, there),
            "dice": rate(2 * hit, truth + said, there),
            "recall": rate(hit, truth, truth > 0),
        }

    def figures(self) -> dict[str, float]:
        """Mean IoU, mean Dice, overall and mean accuracy (%), and Cohen's kappa."""
        rows, n = self.per_class(), float(self.counts.sum())
        if not n:
            raise DataError("not one pixel counts: every mask holds the ignored value only")

        def mean(values: Sequence[float | None]) -> float:
            known = [v for v in values if v is not None]
            return sum(known) / len(known)

        agreed = float(self.counts.diag().sum()) / n
        chance = float((self.counts.sum(0).double() * self.counts.sum(1).double()).sum()) / n**2
        kappa = (agreed - chance) / (1 - chance) if chance < 1 else 1.0
        return {
            "miou": mean(rows["iou"]),
            "dice": mean(rows["dice"]),
            "accuracy": 100 * agreed,
            "mean_accuracy": mean(rows["recall"]),
            "kappa": kappa,
        }


# -- training ---------------------------------------------------------------------------------------------------------
class _Prepared:
    """From a picture and its mask to a training sample: resized and cropped together, mirrored, coloured, normalised."""

    def __init__(
        self,
        size: int,
        preprocessing: Mapping[str, Any],
        recipe: Any,
        ignore: int,
        channels: int,
        scale: tuple[float, float],
    ):
        self.scale = scale
        self.mode = InterpolationMode(preprocessing.get("interpolation", "bilinear"))
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: ignore}
        self.crop = v2.RandomCrop((size, size), pad_if_needed=True, fill=fill)  # type: ignore[arg-type]
        self.flip = v2.RandomHorizontalFlip() if recipe.flip else None
        self.colour = v2.ColorJitter(*[recipe.color_jitter] * 3) if recipe.color_jitter else None
        self.last = normaliser(preprocessing, channels)

    def __call__(self, picture, mask) -> tuple[Tensor, Tensor]:
        factor = float(torch.empty(()).uniform_(*self.scale))
        sides = [max(1, round(s * factor)) for s in picture.shape[-2:]]
        picture, mask = v2.functional.resize(picture, sides, self.mode), v2.functional.resize(mask, sides)
        picture, mask = self.crop(picture, mask)
        if self.flip is not None:
            picture, mask = self.flip(picture, mask)
        if self.colour is not None:
            picture = self.colour(picture)
        return self.last(picture.as_subclass(torch.Tensor)), mask.as_subclass(torch.Tensor).long()


class _Evaluated:
    """A whole picture, normalised, and its mask."""

    def __init__(self, preprocessing: Mapping[str, Any], channels: int):
        self.last = normaliser(preprocessing, channels)

    def __call__(self, picture, mask) -> tuple[Tensor, Tensor]:
        return self.last(picture.as_subclass(torch.Tensor)), mask.as_subclass(torch.Tensor).long()


class Segmentation(RecipeTask):
    """The loss on crops; overlap on whole held-out pictures."""

    def __init__(self, model: nn.Module, recipe: Any, seed: int, classes: Classes, settled: Mapping[str, Any]):
        super().__init__(model, recipe, seed)
        self.classes, self.settled = classes, settled
        weight = settled.get("class_weights")
        self.register_buffer("weight", torch.tensor(weight) if weight else None, persistent=False)
        self.overlap = Overlap(len(classes), classes.ignore)

    def training_step(self, batch, batch_idx) -> Tensor:
        images, masks = batch
        main, *sides = _outputs(self.model(images))
        kind, ignore = self.settled["loss"], self.classes.ignore
        loss = region_loss(kind, _enlarged(main, images), masks, ignore, self.weight)
        share = self.recipe.aux_weight
        for side in sides:
            loss = loss + (0.4 if share is None else share) * region_loss(
                kind, _enlarged(side, images), masks, ignore, self.weight
            )
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.overlap = Overlap(len(self.classes), self.classes.ignore)

    def validation_step(self, batch, batch_idx) -> None:
        images, masks = batch
        self.overlap.update(segmented(self.model, images, self.settled["window"]), masks[0])

    def on_validation_epoch_end(self) -> None:
        counts = self.all_gather(self.overlap.counts.to(self.device))
        self.overlap.counts = (counts.sum(0) if counts.ndim == 3 else counts).cpu()
        for name, value in self.overlap.figures().items():
            self.log(f"val_{name}", value, prog_bar=name == "miou", rank_zero_only=False)


@torch.no_grad()
def segmented(model: nn.Module, image: Tensor, window: int, overlap: float = 0.25, flips: bool = False) -> Tensor:
    """Classes (H, W) of one normalised image (1, C, H, W): whole where both sides fit twice the window, else window by window."""
    height, width = image.shape[-2:]
    if max(height, width) <= 2 * window:
        return probabilities(model, image, flips)[0].argmax(0).cpu()
    parts = bands(
        lambda x: probabilities(model, x, flips), lambda a, b: image[:, :, a:b], height, width, window, overlap
    )
    return torch.cat([part.cpu() for _, part in parts])


# -- results ----------------------------------------------------------------------------------------------------------
@dataclass
class Masks(Result):
    """Masks of pictures. Each row: ``image``, ``width``, ``height``, the share (%) of each class that occurs, and ``file`` where written.

    Attributes:
        masks: class numbers (H, W) uint8 or int32, in the rows' order.
        classes: names and colours.
    """

    masks: list[np.ndarray] = field(default_factory=list)
    classes: Classes | None = None

    def flat(self) -> list[dict[str, Any]]:
        return [
            {"image": r["image"], "class": name, "share": share}
            for r in self.rows
            for name, share in r["shares"].items()
        ]

    def save(self, path: str | Path) -> Path:
        """Write the masks: one to a ``.png`` or ``.tif``, several to a folder, as ``NAME_mask.png`` in the classes' colours (``.tif`` with the
        georeference of a picture that has one), with ``NAME_overlay.png`` beside them; ``.json``, ``.csv`` and ``.tsv`` for the shares."""
        path = Path(path)
        if path.suffix.lower() in (".json", ".csv", ".tsv"):
            return super().save(path)
        one = path.suffix.lower() in (".png", ".tif", ".tiff") and len(self.masks) == 1
        if path.suffix and not one:
            raise OffprintError(
                f"{path}: masks are written to a folder, one mask to a .png or .tif, shares to .json, .csv or .tsv"
            )
        for row, mask in zip(self.rows, self.masks, strict=True):
            stem = Path(row["image"]).stem
            place = georeference(row["image"])
            target = path if one else path / f"{stem}_mask{'.tif' if place else '.png'}"
            if target.exists() and target.resolve() == Path(row["image"]).resolve():
                raise OffprintError(f"{target} is the picture itself; choose another --out")
            raster = self._png(mask) if target.suffix.lower() == ".png" else map_tiff(mask, place, self._palette())
            row["file"] = str(atomic_write(target, raster))
            over = target.with_name(f"{target.stem}_overlay.png" if one else f"{stem}_overlay.png")
            atomic_write(over, _bytes(self.overlay(row, mask)))
        return path

    def _png(self, mask: np.ndarray) -> bytes:
        image = (
            Image.fromarray(mask.astype(np.uint8), "P")
            if mask.max(initial=0) < 256
            else Image.fromarray(mask.astype(np.int32))
        )
        if image.mode == "P":
            image.putpalette(self._palette())
        return _bytes(image)

    def _palette(self) -> list[int]:
        return [v for i in range(256) for v in self._colour(i)]

    def _colour(self, index: int) -> tuple[int, int, int]:
        colours = self.classes.colours if self.classes else ()
        return colours[index] if index < len(colours) else colour_of(index)

    def overlay(self, row: Mapping[str, Any], mask: np.ndarray, share: float = 0.5) -> Image.Image:
        """The picture with the classes' colours over it; class 0 is left clear where it is called background."""
        picture = np.asarray(read_picture(row["image"]), np.float32)
        colours = np.array([self._colour(i) for i in range(int(mask.max(initial=0)) + 1)], np.float32)[mask]
        clear = self.classes is not None and self.classes.names[0] in ("background", "class 0")
        alpha = np.where((mask == 0) & clear, 0.0, share)[..., None]
        return Image.fromarray((picture * (1 - alpha) + colours * alpha).round().astype(np.uint8))

    def draw(self, path: str | Path) -> Path:
        """A sheet of the pictures with their masks over them."""
        shown = [(self.overlay(r, m), Path(r["image"]).name) for r, m in zip(self.rows[:24], self.masks, strict=False)]
        return sheet(path, shown)


def _bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


# -- the task ---------------------------------------------------------------------------------------------------------
class ImageSegmentation(Task):
    """Pictures and masks: crops for training, whole pictures for measuring, windows for large ones."""

    name = "segmentation"
    does = "segments pictures"
    goal = "val_miou"
    made = ("validation.txt",)

    def fits(self, spec: Entry) -> bool:
        return spec.task == self.name and (spec.input_size is None or len(spec.input_size) == 3)

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        val_fraction: float = 0.2,
        classes: str = "",
        ignore_index: int = IGNORE,
        on_error: str = "stop",
    ) -> MaskSplits:
        """Open pictures with masks.

        Args:
            source: a folder with images/ and masks/ (whole, or in train and val), Pascal VOC's, Cityscapes', or
                :class:`~offprint.data.masks.MaskSplits`.
            val_fraction: share held out, where the data have no split of their own.
            classes: names with commas between them, or a file of NAME or NAME R G B lines; default classes.txt in the folder.
            ignore_index: value of pixels that count for nothing.
            on_error: a picture without a mask, or a mask that cannot be used: stop or skip.
        """
        if isinstance(source, MaskSplits):
            return source
        return open_masks(
            source, val_fraction=val_fraction, seed=seed, classes=classes, ignore_index=ignore_index, on_error=on_error
        )

    def digest(self, data: MaskSplits) -> str:
        return ""  # pictures come and go: what belongs to which part is fixed in the folder instead

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The model's own; for a backbone with a head, whose papers train on data of their own, :data:`COMPOSED`."""
        if "+" in spec.name and stage == "training":
            return Recipe.make({**COMPOSED, **(overrides or {})})
        return Recipe.of(spec.name, stage, **(overrides or {}))

    def prepare(
        self,
        job: Job,
        *,
        loss: str = "ce",
        balance: str = "none",
        window: int = 0,
        scale_min: float = 0.5,
        scale_max: float = 2.0,
    ) -> None:
        """Settle the loss and the validation part.

        Args:
            loss: ce, dice, ce+dice, focal, lovasz or ce+lovasz.
            balance: weight classes alike (none), by one over their share (inverse), or by the median share over theirs (median).
            window: side of the windows in which large pictures are read; 0 is twice the crop.
            scale_min: training pictures are enlarged by a random factor from this one ...
            scale_max: ... to this one before they are cropped.
        """
        if not 0 < scale_min <= scale_max:
            raise OffprintError(
                f"scale_min={scale_min}, scale_max={scale_max}; give factors above 0, the smaller first"
            )
        for name, value, known in (("loss", loss, LOSSES), ("balance", balance, BALANCES)):
            if value not in known:
                raise unknown(name, value, known)
        kept = Path(job.out) / "validation.txt"
        if job.run.resume and kept.is_file() and (Path(job.out) / "settings.json").is_file():
            job.data = job.data.with_validation(kept.read_text(encoding="utf-8").splitlines())
        weights = None if balance == "none" else _class_weights(job.data.train, balance)
        job.settled = {
            "loss": loss,
            "balance": balance,
            "window": window or 2 * _side(job),
            "class_weights": weights,
            "scale": [scale_min, scale_max],
        }

    def greeting(self, job: Job) -> Sequence[str]:
        d = job.data
        return [
            f"{len(d.train)} pictures to learn from, {len(d.val)} held out, {len(d.classes)} classes: {', '.join(d.classes.names[:8])}"
            + (", ..." if len(d.classes) > 8 else ""),
            *left_out(d.notes),
        ]

    def build(self, job: Job) -> nn.Module:
        options, pretrained = dict(job.model_options), job.pretrained
        backbone, plus, _ = job.model.partition("+")
        if plus and pretrained:
            options["backbone"], pretrained = {"name": backbone, "pretrained": pretrained}, False
        network = create_model(job.model, pretrained=pretrained, num_classes=len(job.data.classes), **options)
        if job.checkpoint:
            load_weights(network, job.checkpoint, drop_head=True)
        return network

    def about(self, job: Job) -> dict[str, Any]:
        c = job.data.classes
        told = {"names": list(c.names), "colours": [list(v) for v in c.colours], "ignore": c.ignore, "coloured": c.coloured,
                "values": None if c.values is None else [list(v) for v in c.values]}  # fmt: skip
        return {
            "classes": told,
            "input_size": _side(job),
            "preprocessing": dict(job.entry.preprocessing),
            **job.settled,
        }

    def module(self, job: Job) -> Segmentation:
        if job.folder.writes:
            atomic_write(
                job.folder / "validation.txt", "\n".join(str(p.absolute()) for p, _ in job.data.val.pairs) + "\n"
            )
        return Segmentation(job.network, job.how, job.run.seed, job.data.classes, job.settled)

    def loaders(self, job: Job) -> SeededLoaders:
        preprocessing, channels = job.how.pictures(job.entry.preprocessing), getattr(job.network, "in_chans", 3)
        classes, train, val = job.data.classes, job.data.train, job.data.val
        prepared = _Prepared(_side(job), preprocessing, job.how, classes.ignore, channels, tuple(job.settled["scale"]))
        return SeededLoaders(
            MaskedPictures(train.pairs, classes, prepared), MaskedPictures(val.pairs, classes, _Evaluated(preprocessing, channels)),
            min(job.how.batch_size, len(train)), job.run.workers, job.run.seed,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        logged = {k.removeprefix("val_"): v for k, v in fitted.logged.items() if k.startswith("val_")}
        return {"miou": fitted.best, "last_epoch": logged, "classes": list(job.data.classes.names)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"mean IoU {figures['miou']:.2f} % on held-out pictures after {figures['epochs']} epochs ({figures['weights_are']}); "
            f"weights: {folder / 'model.safetensors'}",
            f"next: offprint predict PICTURE --model {folder} --out masks",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        return self.restored(folder, about, num_classes=len(about["classes"]["names"]))

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        spec = entry(name)
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        count = int(getattr(model, "num_classes", None) or 0)
        if not count:
            raise OffprintError(f"{name} does not say how many classes it has; build it with num_classes")
        side = (spec.input_size or (3, 512, 512))[-1]
        names = list(getattr(model, "class_names", ()) or (f"class {i}" for i in range(count)))
        told = {
            "names": names,
            "colours": [list(colour_of(i)) for i in range(count)],
            "ignore": IGNORE,
            "values": None,
            "coloured": False,
        }
        about = {
            "classes": told,
            "input_size": side,
            "window": 2 * side,
            "preprocessing": dict(spec.preprocessing),
            "options": dict(options),
        }
        return Ready(self, model, name, about)

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        overlap: float = 0.25,
        flips: bool = False,
        window: int = 0,
        classes: str = "",
        ignore_index: int = IGNORE,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Mean IoU, mean Dice, accuracies (%) and kappa on the validation part, and IoU, Dice and recall of each class.

        Args:
            overlap: share of a window that the next one covers again.
            flips: average with the mirrored picture.
            window: side of the windows in which large pictures are read; 0 is the run's.
            classes: names or a file of them, where the data do not say; default those of the run.
            ignore_index: value of pixels that count for nothing.
            on_error: a picture or a mask that cannot be used: stop or skip.
        """
        data = self.own_source(ready) if data is None else data
        mine = known_classes(ready)
        splits = self.open(data, classes=classes, ignore_index=ignore_index, on_error=on_error)
        kept = None if ready.folder is None else ready.folder / "validation.txt"
        if kept is not None and kept.is_file() and str(data) == ready.about.get("source"):
            splits = splits.with_validation(kept.read_text(encoding="utf-8").splitlines())
        if len(splits.classes) != len(mine):
            raise OffprintError(
                f"the model has {len(mine)} classes ({', '.join(mine.names[:5])}), the data {len(splits.classes)} "
                f"({', '.join(splits.classes.names[:5])})"
            )
        found, apply = (
            Overlap(len(mine), splits.classes.ignore),
            _Evaluated(ready.about["preprocessing"], _channels(ready)),
        )
        part = MaskedPictures(splits.val.pairs, splits.classes, apply)
        device = next(ready.model.parameters()).device
        if progress:
            progress(total=len(part))
        for i in range(len(part)):
            image, mask = part[i]
            side = window or ready.about["window"]
            found.update(segmented(ready.model, image[None].to(device), side, overlap, flips), mask)
            if progress:
                progress(text=part.pairs[i][0].name)
        rows = [
            {"class": name, **{k: v[i] for k, v in found.per_class().items()}}
            for i, name in enumerate(splits.classes.names)
        ]
        figures = {**found.figures(), "pictures": len(part)}
        units = dict.fromkeys(("miou", "dice", "accuracy", "mean_accuracy"), " %")
        return Figures(rows, figures=figures, units=units, notes=left_out(splits.notes))

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        overlap: float = 0.25,
        flips: bool = False,
        window: int = 0,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Masks:
        """A class for every pixel of pictures of any size, in the picture's own pixels.

        Args:
            inputs: picture files, and folders of them.
            overlap: share of a window that the next one covers again.
            flips: average with the mirrored picture.
            window: side of the windows in which large pictures are read; 0 is the run's. Memory follows it.
            on_error: a picture that cannot be read: stop or skip.
        """
        files, reasons, classes = pictures_in(inputs), [], known_classes(ready)
        apply, device = (
            normaliser(ready.about["preprocessing"], _channels(ready)),
            next(ready.model.parameters()).device,
        )
        if not 0 <= overlap < 1:
            raise OffprintError(f"overlap={overlap}; windows overlap by a share from 0 to below 1")
        found = Masks([], classes=classes)
        if progress:
            progress(total=len(files))
        for file in files:
            try:
                picture = torch.from_numpy(np.array(read_picture(file))).permute(2, 0, 1)
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            mask = self._classes_of(
                ready.model, picture, apply, device, window or ready.about["window"], overlap, flips
            )
            count = np.bincount(mask.flatten(), minlength=len(classes))
            shares = {n: round(100 * int(c) / mask.size, 3) for n, c in zip(classes.names, count, strict=False) if c}
            found.rows.append({"image": str(file), "width": mask.shape[1], "height": mask.shape[0], "shares": shares})
            found.masks.append(mask)
            if progress:
                progress(text=file.name)
        found.notes += left_out(reasons)
        return found

    @torch.no_grad()
    def _classes_of(
        self, model, picture: Tensor, apply, device, window: int, overlap: float, flips: bool
    ) -> np.ndarray:
        """Only strips of the picture are ever in floating point."""
        height, width = picture.shape[-2:]
        kind = np.uint8 if getattr(model, "num_classes", 0) <= 256 else np.int32
        if max(height, width) <= 2 * window:
            return segmented(model, apply(picture)[None].to(device), window, overlap, flips).numpy().astype(kind)
        out = np.empty((height, width), kind)
        rows = bands(
            lambda x: probabilities(model, x, flips),
            lambda a, b: apply(picture[:, a:b])[None].to(device),
            height,
            width,
            window,
            overlap,
        )
        for top, part in rows:
            out[top : top + len(part)] = part.cpu().numpy().astype(kind)
        return out


def _side(job: Job) -> int:
    return job.how.input_size or (job.entry.input_size or (3, 512, 512))[-1]


def _channels(ready: Ready) -> int:
    return int(getattr(ready.model, "in_chans", 3))


def known_classes(ready: Ready) -> Classes:
    """The classes that a run was trained on."""
    c = ready.about["classes"]
    values = None if c["values"] is None else tuple((int(a), int(b)) for a, b in c["values"])
    return Classes(
        tuple(c["names"]),
        tuple((int(r), int(g), int(b)) for r, g, b in c["colours"]),
        c["ignore"],
        values,
        c["coloured"],
    )


def _class_weights(data: MaskedPictures, balance: str) -> list[float]:
    """Weights of the classes from their shares of the training masks; they have the mean 1 over the classes that occur.

    Raises:
        DataError: a class has no pixel to learn from.
    """
    from offprint.data.masks import read_mask

    counts = np.zeros(len(data.classes))
    for _, file in data.pairs:
        mask = read_mask(file, data.classes)
        counts += np.bincount(
            mask[(mask != data.classes.ignore) & (mask >= 0)].astype(np.int64), minlength=len(counts)
        )[: len(counts)]
    absent = [n for n, c in zip(data.classes.names, counts, strict=True) if not c]
    if absent:
        raise DataError(
            f"{', '.join(absent)}: no pixel of the training masks has this class, so it cannot be weighted; leave --balance out, or the class"
        )
    share = counts / counts.sum()
    weights = 1 / share if balance == "inverse" else np.median(share) / share
    return [float(w) for w in weights / weights.mean()]


register_task(ImageSegmentation())
