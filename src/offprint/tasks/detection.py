"""Detection as a task: objects with their boxes, masks and names; trained on annotated pictures, judged by COCO's average precision.

Any detector serves: one of a paper, or ``BACKBONE+NECK+HEAD`` of parts that keep to :mod:`offprint.models.detection.contract`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from offprint.data.aerial import open_objects
from offprint.data.boxes import BoxedPictures, BoxSplits, as_stored, encode, orientation_of
from offprint.data.reading import read_picture
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights
from offprint.models.compose import Detector
from offprint.models.detection.contract import neck_options, object_classes, paste
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.tasks._average_precision import AveragePrecision, coco_box, target_of
from offprint.tasks._detecting import Sizes, batch, detected, detected_in_tiles
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out, normaliser, pictures_in
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask

FRAMES = ("upright", "stored")
FLIPS = {
    "horizontal": (v2.functional.horizontal_flip,),
    "vertical": (v2.functional.vertical_flip,),
    "diagonal": (v2.functional.horizontal_flip, v2.functional.vertical_flip),
}
COMPOSED = {  # a detector of parts on some hundred pictures
    "optimizer": "adamw", "lr": 5e-4, "reference_batch": 8, "weight_decay": 0.05, "epochs": 40, "batch_size": 8, "warmup_steps": 100,
    "color_jitter": 0.2, "clip_grad": 10.0, "flip": True,
}  # fmt: skip


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """A training recipe of detectors.

    ``milestones`` are the epochs after which ``schedule="step"`` multiplies the rate by ``decay_rate``; ``warmup_steps`` steps rise from
    ``warmup_ratio`` times the rate. ``short_sides`` are the sizes of a picture's short side one of which is drawn for each (one: always
    that), ``side_range`` two ends to draw it from; ``input_size`` is the same for one side, and ``longest_side`` bounds the other. Where none is given
    pictures keep their size up to 800 by 1333. A picture is mirrored with probability ``flip_share``, in one of ``flips`` (``diagonal`` is both
    ways at once). ``freeze_norms`` and ``freeze_stages`` hold a backbone's norms and first stages; they count
    for a backbone that brings weights.
    """

    milestones: tuple[int, ...] = ()
    warmup_steps: int = 0
    warmup_ratio: float = 0.001
    short_sides: tuple[int, ...] = ()
    side_range: tuple[int, ...] = ()
    longest_side: int = 0
    flip_share: float = 0.5
    flips: tuple[str, ...] = ("horizontal",)
    freeze_norms: bool = False
    freeze_stages: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.side_range and not (len(self.side_range) == 2 and 0 < self.side_range[0] <= self.side_range[1]):
            raise OffprintError(f"recipe: side_range={self.side_range}; give its two ends, the smaller first")
        if not self.flips or not set(self.flips) <= set(FLIPS) or not 0 <= self.flip_share <= 1:
            raise OffprintError(
                f"recipe: flips={self.flips}, flip_share={self.flip_share}; choose of {', '.join(FLIPS)}, and a share from 0 to 1"
            )
        if any(s < 1 for s in self.short_sides) or self.longest_side < 0:
            raise OffprintError(
                f"recipe: short_sides={self.short_sides}, longest_side={self.longest_side}; sides are pixels"
            )

    def _smooth_rates(self, steps_per_epoch: int, batch: int) -> list[float]:
        top = self.scaled(batch)[0]
        if self.milestones:
            rates = [
                top * self.decay_rate ** sum(step // steps_per_epoch >= m for m in self.milestones)
                for step in range(max(1, self.epochs * steps_per_epoch))
            ]
        else:
            rates = super()._smooth_rates(steps_per_epoch, batch)
        warm = min(self.warmup_steps, len(rates) // 4)
        for step in range(warm):
            rates[step] *= self.warmup_ratio + (1 - self.warmup_ratio) * step / warm
        return rates

    def sides(self) -> tuple[float, ...]:
        """The short sides that are drawn from, or the two ends of their range."""
        return tuple(self.side_range or self.short_sides)


# -- samples ----------------------------------------------------------------------------------------------------------
class _Training:
    """From a picture and its objects to a training sample: mirrored, coloured, at a size that is drawn, without crowds."""

    def __init__(self, normalise: Callable, sizes: Sizes, recipe: DetectionRecipe):
        self.normalise, self.sizes = normalise, sizes
        self.flips, self.flip_share = recipe.flips, recipe.flip_share if recipe.flip else 0.0
        self.sides, self.ranged = recipe.sides(), bool(recipe.side_range)
        self.colour = v2.ColorJitter(*[recipe.color_jitter] * 3) if recipe.color_jitter else None

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if not self.sides:
            return self.sizes.of(height, width)
        if self.ranged:
            short = int(torch.randint(int(self.sides[0]), int(self.sides[1]) + 1, ()))
        else:
            short = int(self.sides[int(torch.randint(len(self.sides), ()))])
        return Sizes(short, self.sizes.longest, self.sizes.squash).of(height, width)

    def __call__(self, picture, target) -> tuple[Tensor, dict[str, Tensor]]:
        learnt = ~target.pop("crowd")
        target = {
            k: tv_tensors.wrap(v[learnt], like=v) if isinstance(v, tv_tensors.TVTensor) else v[learnt]
            for k, v in target.items()
        }
        if self.flip_share and torch.rand(()) < self.flip_share:
            which = self.flips[int(torch.randint(len(self.flips), ()))] if len(self.flips) > 1 else self.flips[0]
            for turn in FLIPS[which]:
                picture = turn(picture)
                target = {k: turn(v) if k != "labels" else v for k, v in target.items()}
        size = list(self._size(*picture.shape[-2:]))
        picture = v2.functional.resize(picture, size, antialias=True)
        target = {k: v2.functional.resize(v, size) if k != "labels" else v for k, v in target.items()}
        if self.colour is not None:
            picture = self.colour(picture)
        target = {k: v.as_subclass(Tensor) for k, v in target.items()}
        boxes = target["boxes"] = target["boxes"].float()
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        return self.normalise(picture.as_subclass(Tensor)), {k: v[whole] for k, v in target.items()}


class _Held(torch.utils.data.Dataset):
    """Held-out pictures with their objects, untouched, by number."""

    def __init__(self, data: BoxedPictures):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return index, *self.data.read(index)


class _Loaders(SeededLoaders):
    """Batches of pictures of several sizes: padded to one, with a list of their objects."""

    def __init__(self, *args, multiple: int):
        super().__init__(*args)
        self.multiple = multiple

    def train_dataloader(self) -> DataLoader:
        loader = super().train_dataloader()
        loader.collate_fn = self._joined
        return loader

    def val_dataloader(self) -> DataLoader:
        loader = super().val_dataloader()
        loader.collate_fn = _single
        return loader

    def _joined(self, samples: Sequence[tuple[Tensor, dict[str, Tensor]]]):
        images = batch([s[0] for s in samples], self.multiple)
        targets = []
        for _, target in samples:
            if "masks" in target:
                masks = target["masks"]
                full = masks.new_zeros(len(masks), *images.shape[-2:])
                full[:, : masks.shape[1], : masks.shape[2]] = masks
                target = {**target, "masks": full}
            targets.append(target)
        return images, targets


def _single(samples):
    return samples[0]


class Detection(RecipeTask):
    """The head's losses on batches; average precision on whole held-out pictures."""

    def __init__(
        self,
        model: nn.Module,
        recipe: DetectionRecipe,
        seed: int,
        data: BoxedPictures,
        normalise: Callable,
        sizes: Sizes,
        hold: bool,
    ):
        super().__init__(model, recipe, seed)
        self.data, self.normalise, self.sizes, self.hold = data, normalise, sizes, hold
        self.precision_ = AveragePrecision(data, data.with_masks)

    def on_train_epoch_start(self) -> None:
        if self.hold and self.recipe.freeze_norms:  # type: ignore[attr-defined]
            for module in self.model.backbone.modules():  # type: ignore[union-attr]
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def training_step(self, batch, batch_idx) -> Tensor:
        images, targets = batch
        terms = self.model.losses(images, targets)  # type: ignore[operator]
        loss = torch.stack([v.float() for v in terms.values()]).sum()
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(images))
        for name, value in terms.items():
            self.log(f"train_{name}", value, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.precision_ = AveragePrecision(self.data, self.data.with_masks)

    def validation_step(self, batch, batch_idx) -> None:
        index, picture, target = batch
        found = detected(self.model, picture.cpu(), self.normalise, self.sizes)
        _judge(self.precision_, self.data, index, target, found, picture.shape[-2:])

    def on_validation_epoch_end(self) -> None:
        self.precision_.gather()
        for name, value in self.precision_.figures()[0].items():
            self.log(f"val_{name}", value, prog_bar=name == "ap50", rank_zero_only=False)


def _judge(judge: AveragePrecision, data: BoxedPictures, index: int, target, found, size) -> None:
    """Add one picture to the average precision."""
    size = (int(size[0]), int(size[1]))
    if "masks" in found and judge.masks:
        found = {**found, "masks": paste(found["masks"], found["boxes"], size)}
    judge.update(index, {k: v.cpu() for k, v in target_of(data, index, target).items() if k != "areas"}
                 | {"areas": data.scenes[index].areas}, found, size)  # fmt: skip


# -- results ----------------------------------------------------------------------------------------------------------
_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#ffb000",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#d62ad0",
    "#7a5c00",
    "#0aa5c9",
)


@dataclass
class Objects(Result):
    """Objects in pictures. Each row: ``image``, ``width``, ``height`` and ``objects``: of each ``class``, ``score``, ``box`` (x1, y1, x2, y2 in the
    picture's own pixels), and where there are masks ``area``.

    Attributes:
        masks: of each row (N, H, W) bool, or ``None``.
        names, ids: of the classes, and their ids in the data.
    """

    masks: list[np.ndarray | None] = field(default_factory=list)
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()

    def flat(self) -> list[dict[str, Any]]:
        return [
            {"image": r["image"], "class": o["class"], "score": o["score"],
             **dict(zip(("x1", "y1", "x2", "y2"), o["box"], strict=True))}
            for r in self.rows for o in r["objects"]
        ]  # fmt: skip

    def coco(self) -> dict[str, Any]:
        """As COCO writes it: ``images``, ``categories`` and ``annotations`` with scores; the last is what its ``loadRes`` reads."""
        found: list[dict[str, Any]] = []
        for key, (row, masks) in enumerate(zip(self.rows, self.masks, strict=True), 1):
            for i, o in enumerate(row["objects"]):
                box = [round(v, 3) for v in coco_box(o["box"])]
                one = {"id": len(found) + 1, "image_id": key, "category_id": self.ids[self.names.index(o["class"])], "bbox": box,
                       "area": o.get("area", box[2] * box[3]), "iscrowd": 0, "score": o["score"]}  # fmt: skip
                if masks is not None:
                    one["segmentation"] = encode(masks[i])
                found.append(one)
        return {
            "images": [{"id": i, "file_name": Path(r["image"]).name, "width": r["width"], "height": r["height"]}
                       for i, r in enumerate(self.rows, 1)],
            "categories": [{"id": i, "name": n} for i, n in zip(self.ids, self.names, strict=True)],
            "annotations": found,
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the objects: COCO's ``.json``, ``.csv`` and ``.tsv``; to a folder ``objects.json``, and each picture as ``NAME_objects.png`` with
        boxes, masks and names; one picture to a ``.png``."""
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".json":
            return atomic_write(path, json.dumps(self.coco(), indent=1) + "\n")
        if kind in (".csv", ".tsv"):
            return super().save(path)
        if kind == ".png" and len(self.rows) == 1:
            return self._write(path, 0)
        if kind:
            raise OffprintError(
                f"{path}: objects are written to a folder, one picture to a .png, lists to .json (COCO), .csv or .tsv"
            )
        taken: set[str] = set()
        for i, row in enumerate(self.rows):
            stem = name = Path(row["image"]).stem
            count = 1
            while name in taken:
                count += 1
                name = f"{stem}_{count}"
            taken.add(name)
            row["file"] = str(self._write(path / f"{name}_objects.png", i))
        atomic_write(path / "objects.json", json.dumps(self.coco(), indent=1) + "\n")
        return path

    def _write(self, target: Path, index: int) -> Path:
        if target.exists() and target.resolve() == Path(self.rows[index]["image"]).resolve():
            raise OffprintError(f"{target} is the picture itself; choose another --out")
        buffer = io.BytesIO()
        self.drawn(index).save(buffer, "PNG", compress_level=4)
        return atomic_write(target, buffer.getvalue())

    def drawn(self, index: int) -> Image.Image:
        """A picture with its boxes, masks and names over it, upright."""
        from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

        row, masks = self.rows[index], self.masks[index]
        picture = torch.from_numpy(np.array(read_picture(row["image"]))).permute(2, 0, 1)
        if not row["objects"]:
            return Image.fromarray(picture.permute(1, 2, 0).numpy())
        colours = [_COLOURS[self.names.index(o["class"]) % len(_COLOURS)] for o in row["objects"]]
        if masks is not None:
            drawn = masks if row.get("turn", 1) == 1 else np.stack([_upright(m, row["turn"]) for m in masks])
            picture = draw_segmentation_masks(picture, torch.from_numpy(np.ascontiguousarray(drawn)), 0.45, colours)
        boxes = torch.tensor([o.get("seen", o["box"]) for o in row["objects"]])
        words = [f"{o['class']} {o['score']:.2f}" for o in row["objects"]]
        width = max(1, round(min(picture.shape[-2:]) / 250))
        picture = draw_bounding_boxes(picture, boxes, words, colours, width=width)
        return Image.fromarray(picture.permute(1, 2, 0).numpy())

    def draw(self, path: str | Path) -> Path:
        """A sheet of the pictures with their objects."""
        shown = [(self.drawn(i), Path(self.rows[i]["image"]).name) for i in range(min(24, len(self.rows)))]
        return sheet(path, shown)


def _upright(mask: np.ndarray, orientation: int) -> np.ndarray:
    from offprint.data.boxes import turned_mask

    return turned_mask(mask, orientation)


# -- the task ---------------------------------------------------------------------------------------------------------
class ObjectDetection(Task):
    """Pictures and the objects in them."""

    name = "detection"
    does = "detects objects in pictures"
    goal = "val_ap"
    made = ("validation.txt",)

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        val_fraction: float = 0.2,
        classes: str = "",
        max_instances: int = 0,
        on_error: str = "stop",
    ) -> BoxSplits:
        """Open pictures with objects.

        Args:
            source: a COCO json, a folder in the layout of COCO, Pascal VOC (xml) or YOLO (txt), or of iSAID, DIOR, NWPU VHR-10 or HRSID
                as published, sample:digit-scenes, or :class:`~offprint.data.boxes.BoxSplits`.
            val_fraction: share held out, where the data have no split of their own.
            classes: names with commas between them, or a file of them, for layouts that do not name their classes.
            max_instances: most objects of a picture to learn from; those with more are left out, 0 keeps all.
            on_error: pictures that are missing: stop or skip.
        """
        if isinstance(source, BoxSplits):
            return source
        how = {"val_fraction": val_fraction, "seed": seed, "classes": classes, "on_error": on_error}
        return open_objects(source, max_instances=max_instances, **how)

    def digest(self, data: BoxSplits) -> str:
        return data.digest

    def recipe(
        self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None
    ) -> DetectionRecipe:
        """The paper's own for its detectors; for a backbone with a head, and where a paper states none, :data:`COMPOSED`."""
        if "+" in spec.name or not spec.recipes:
            return DetectionRecipe.make({**COMPOSED, **(overrides or {})})  # type: ignore[return-value]
        return DetectionRecipe.of(spec.name, stage, **(overrides or {}))  # type: ignore[return-value]

    def prepare(self, job: Job) -> None:
        """Settle the validation part and the size at which pictures are shown."""
        kept = Path(job.out) / "validation.txt"
        if job.run.resume and kept.is_file() and (Path(job.out) / "settings.json").is_file():
            job.data = job.data.with_validation(kept.read_text(encoding="utf-8").splitlines())
        how = job.how
        sides = how.sides()
        short = how.input_size or (int(max(sides)) if sides else min(800, _usual_side(job.data.train)))
        longest = how.longest_side or max(round(short * 1333 / 800), 1)
        if not how.input_size and not sides:
            longest = 1333
        job.settled = {"short": int(short), "longest": int(longest)}

    def greeting(self, job: Job) -> Sequence[str]:
        d = job.data
        count = sum(len(s.labels) for s in d.train.scenes)
        words = [
            f"{len(d.train)} pictures with {count} objects to learn from, {len(d.val)} held out, {len(d.classes)} classes: "
            f"{', '.join(d.classes[:8])}" + (", ..." if len(d.classes) > 8 else ""),
            *d.notes,
        ]
        how = job.how
        if (how.freeze_norms or how.freeze_stages) and not _starts_from_weights(job):
            words.append(
                "the backbone starts from random weights, so none of its norms and stages are held, as the recipe would"
            )
        return words

    def build(self, job: Job) -> nn.Module:
        options, pretrained, count = (
            {**neck_options(job.model), **job.model_options},
            job.pretrained,
            len(job.data.classes),
        )
        backbone, plus, _ = job.model.partition("+")
        if plus and pretrained:
            options["backbone"], pretrained = {"name": backbone, "pretrained": pretrained}, False
        network = _with_classes(job.model, count, pretrained=pretrained, **options)
        if job.checkpoint:
            load_weights(network, job.checkpoint, drop_head=True)
        head: Any = network.head
        if getattr(head, "masks", False):
            for part in (job.data.train, job.data.val):
                if not part.has_masks:
                    raise DataError(
                        f"{job.model} learns masks, and {job.data.name} has objects without one; give polygons or run-length codes, or "
                        "choose a head without masks (faster_rcnn)"
                    )
        if job.how.freeze_stages and _starts_from_weights(job):
            _freeze(network.backbone, job.how.freeze_stages)
        job.model_options = options
        return network

    def about(self, job: Job) -> dict[str, Any]:
        return {
            "classes": list(job.data.classes),
            "ids": list(job.data.train.ids),
            "preprocessing": dict(job.entry.preprocessing),
            **job.settled,
        }

    def _parts(self, job: Job) -> tuple[Callable, Sizes]:
        network: Any = job.network
        normalise = normaliser(job.how.pictures(job.entry.preprocessing), getattr(network, "in_chans", 3))
        return normalise, _sizes(network, job.settled)

    def module(self, job: Job) -> Detection:
        if job.folder.writes:
            held = [str(s.file.absolute()) for s in job.data.val.scenes if isinstance(s.file, Path)]
            atomic_write(job.folder / "validation.txt", "\n".join(held) + "\n")
        normalise, sizes = self._parts(job)
        data = job.data.val.but(with_masks=_gives_masks(job.network))
        return Detection(job.network, job.how, job.run.seed, data, normalise, sizes, _starts_from_weights(job))

    def loaders(self, job: Job) -> SeededLoaders:
        normalise, sizes = self._parts(job)
        masks = _gives_masks(job.network)
        train = job.data.train.but(with_masks=masks, transform=_Training(normalise, sizes, job.how))
        return _Loaders(
            train, _Held(job.data.val.but(with_masks=masks)), min(job.how.batch_size, len(train)), job.run.workers, job.run.seed,
            multiple=sizes.multiple,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        logged = {k.removeprefix("val_"): v for k, v in fitted.logged.items() if k.startswith("val_")}
        return {"ap": fitted.best, "last_epoch": logged, "classes": list(job.data.classes)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"AP {figures['ap']:.1f} % on held-out pictures after {figures['epochs']} epochs ({figures['weights_are']}); "
            f"weights: {folder / 'model.safetensors'}",
            f"next: offprint predict PICTURE --model {folder} --out objects",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = _with_classes(
            about["model"], len(about["classes"]), checkpoint_path=str(folder / "model.safetensors"), **options
        )
        return Ready(self, model.eval(), about["model"], about, folder)

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        spec = entry(name)
        model: Any = create_model(
            name, pretrained=pretrained, checkpoint_path=checkpoint, **{**neck_options(name), **options}
        ).eval()
        count = object_classes(model.head)
        names = list(getattr(model, "class_names", ()) or (f"class {i}" for i in range(1, count + 1)))
        side = min((spec.input_size or (3, 800, 1333))[-2:]) if "+" not in name else 800
        about = {"classes": names, "ids": list(range(1, count + 1)), "short": side, "longest": round(side * 1333 / 800),
                 "preprocessing": dict(spec.preprocessing), "options": dict(options)}  # fmt: skip
        return Ready(self, model, name, about)

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        tile: int = 0,
        overlap: float = 0.2,
        score: float = 0.05,
        limit: int = 100,
        side: int = 0,
        classes: str = "",
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """COCO's average precision (%) on the validation part, at IoU 0.5, 0.75 and by size of the objects, and of each class.

        Args:
            tile: side of the tiles, in pixels, in which large pictures are read; 0 reads them whole.
            overlap: share of a tile that the next one covers again.
            score: lowest score of a detection.
            limit: most detections in a picture.
            side: pixels of the short side at which pictures are shown; 0 is the run's.
            classes: names or a file of them, for data that do not name their classes.
            on_error: pictures that are missing: stop or skip.
        """
        data = self.own_source(ready) if data is None else data
        splits = self.open(data, classes=classes, on_error=on_error)
        kept = None if ready.folder is None else ready.folder / "validation.txt"
        if kept is not None and kept.is_file() and str(data) == ready.about.get("source"):
            splits = splits.with_validation(kept.read_text(encoding="utf-8").splitlines())
        mine = ready.about["classes"]
        if len(splits.classes) != len(mine):
            raise OffprintError(
                f"the model has {len(mine)} classes ({', '.join(mine[:5])}), the data {len(splits.classes)} ({', '.join(splits.classes[:5])})"
            )
        part = splits.val.but(with_masks=_gives_masks(ready.model) and splits.val.has_masks)
        judge, find = AveragePrecision(part, part.with_masks), self._finder(ready, tile, overlap, score, limit, side)
        if progress:
            progress(total=len(part))
        for i in range(len(part)):
            picture, target = part.read(i)
            _judge(judge, part, i, target, find(picture), picture.shape[-2:])
            if progress:
                progress(text=part.scenes[i].name)
        figures, rows = judge.figures()
        told = {**figures, "pictures": len(part)}
        return Figures(rows, figures=told, units=dict.fromkeys(figures, " %"), notes=list(splits.notes))

    def _finder(self, ready: Ready, tile: int, overlap: float, score: float, limit: int, side: int):
        """Objects in a picture (3, H, W) uint8, in its own pixels."""
        if not 0 <= score < 1 or limit < 1 or tile < 0 or side < 0:
            raise OffprintError(
                f"score={score}, limit={limit}, tile={tile}, side={side}; scores lie from 0 to below 1, the others are counts"
            )
        model: Any = ready.model
        settled = ready.about if not side else {"short": side, "longest": round(side * 1333 / 800)}
        normalise, sizes = (
            normaliser(ready.about["preprocessing"], getattr(model, "in_chans", 3)),
            _sizes(model, settled),
        )

        def find(picture: Tensor) -> dict[str, Tensor]:
            if tile:
                return detected_in_tiles(model, picture, normalise, sizes, tile, overlap, limit, score_threshold=score)
            return detected(model, picture, normalise, sizes, score_threshold=score, limit=limit)

        return find

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        tile: int = 0,
        overlap: float = 0.2,
        score: float = 0.5,
        limit: int = 100,
        side: int = 0,
        frame: str = "upright",
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Objects:
        """Objects in pictures of any size, in the picture's own pixels.

        Args:
            inputs: picture files, and folders of them.
            tile: side of the tiles, in pixels, in which large pictures are read; 0 reads them whole. Memory follows it.
            overlap: share of a tile that the next one covers again.
            score: lowest score of a detection.
            limit: most detections in a picture.
            side: pixels of the short side at which pictures are shown; 0 is the run's.
            frame: upright: boxes as the picture is seen; stored: in the pixels of the file, where a photograph lies on its side (EXIF).
            on_error: a picture that cannot be read: stop or skip.
        """
        if frame not in FRAMES:
            raise OffprintError(
                f"frame={frame!r}; choose upright (as the picture is seen) or stored (the pixels of the file)"
            )
        files, reasons = pictures_in(inputs), []
        names = tuple(ready.about["classes"])
        found = Objects([], names=names, ids=tuple(ready.about["ids"]))
        find = self._finder(ready, tile, overlap, score, limit, side)
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
            row, masks = _row(file, find(picture), picture.shape[-2:], names, frame)
            found.rows.append(row)
            found.masks.append(masks)
            if progress:
                progress(text=file.name)
        found.notes += left_out(reasons)
        return found


def _row(file: Path, found: Mapping[str, Tensor], size, names: Sequence[str], frame: str):
    """A row of :class:`Objects`, and its masks."""
    height, width = int(size[0]), int(size[1])
    boxes = found["boxes"].cpu().float()
    masks = None
    if "masks" in found:
        masks = paste(found["masks"], found["boxes"], (height, width)).cpu().numpy()
    turn = orientation_of(file) if frame == "stored" else 1
    seen = boxes.tolist()
    if turn != 1:
        boxes = torch.from_numpy(as_stored(boxes.numpy(), turn, (width, height)))
        if masks is not None:
            back = {6: 8, 8: 6}.get(turn, turn)
            masks = np.stack([_upright(m, back) for m in masks]) if len(masks) else masks
        if turn in (5, 6, 7, 8):
            height, width = width, height
    objects = []
    for i, (box, score, label) in enumerate(
        zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    ):
        one: dict[str, Any] = {"class": names[label - 1], "score": round(score, 4), "box": [round(v, 2) for v in box]}
        if masks is not None:
            one["area"] = int(masks[i].sum())
        if turn != 1:
            one["seen"] = [round(v, 2) for v in seen[i]]
        objects.append(one)
    row = {"image": str(file), "width": width, "height": height, "objects": objects}
    return (row | {"turn": turn} if turn != 1 else row), masks


def _with_classes(name: str, count: int, **options: Any) -> Detector:
    """A detector of so many classes of objects, whether or not its head counts the background among them."""
    model: Any = create_model(name, num_classes=count + 1, **options) if _counts_background(name) else create_model(
        name, num_classes=count, **options)  # fmt: skip
    return model


def _counts_background(name: str) -> bool:
    """Whether ``num_classes`` of a detector holds the background."""
    from offprint.models.parts import part

    head = name.rpartition("+")[2] if "+" in name else ""
    if head:
        build = part(head).build
        return bool(getattr(getattr(build, "__self__", build), "background", True))
    return bool(getattr(entry(name).build, "background", True))


def _gives_masks(model: nn.Module) -> bool:
    return bool(getattr(model.head, "masks", False))


def _sizes(model: Any, settled: Mapping[str, Any]) -> Sizes:
    """Heads whose anchors are parts of the image (SSD's) see a square."""
    squash = not hasattr(model.head, "finest")
    multiple = max(32, *(int(getattr(m, "size_multiple", 32)) for m in (model, model.backbone)))
    return Sizes(int(settled["short"]), int(settled["longest"]), squash, multiple)


def _usual_side(data: BoxedPictures, looked_at: int = 200) -> int:
    """The median short side of pictures."""
    from offprint.data.boxes import upright_size

    sides = []
    for scene in data.scenes[:: max(1, len(data) // looked_at)]:
        sides.append(min(upright_size(scene.file) if isinstance(scene.file, Path) else scene.file.shape[:2]))
    return int(np.median(sides))


def _starts_from_weights(job: Job) -> bool:
    options = job.model_options.get("backbone", {})
    return bool(job.pretrained or job.checkpoint or (isinstance(options, dict) and options.get("pretrained")))


def _freeze(backbone: Any, stages: int) -> None:
    """Hold the stem and the first stages; ``stages`` counts from the stem's end."""
    names = list(backbone.pyramid_modules[: stages + 1])
    for name, parameter in backbone.named_parameters():
        first = name.split(".")[0]
        if first in ("conv1", "bn1", "stem", "patch_embed") or any(name.startswith(f"{n}.") for n in names):
            parameter.requires_grad_(False)


register_task(ObjectDetection())
