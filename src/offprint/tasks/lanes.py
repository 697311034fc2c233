"""Lane detection as a task: maps of lanes and flags learnt from CULane's or TuSimple's labels, lanes as lists of points."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from offprint.data.lanes import Road, Roads, lane_map, open_lanes
from offprint.data.masks import colour_of
from offprint.data.reading import read_picture
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.models.segmentation._lane_curves import lanes_by_number
from offprint.models.segmentation.scnn import (
    CULANE,
    TUSIMPLE,
    LaneRows,
    SCNNLoss,
    culane_f1,
    culane_total,
    tusimple_accuracy,
    tusimple_total,
)
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out, pictures_in
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask

FORMS = {"culane": CULANE, "tusimple": TUSIMPLE}


@dataclass(frozen=True)
class LaneRecipe(Recipe):
    """A recipe whose rate falls as a power of what is left, after the warm-up.

    ``power`` is of that fall, ``rotation`` the largest turn of a training picture in degrees, ``background`` and ``existence`` the loss's
    weights of the background and of the flags.
    """

    power: float = 0.9
    rotation: float = 2.0
    background: float = 0.4
    existence: float = 0.1

    def _smooth_rates(self, steps_per_epoch: int, batch: int) -> list[float]:
        top, low, start = self.scaled(batch)
        total = max(1, self.epochs * steps_per_epoch)
        warm = min(round(self.warmup_epochs * steps_per_epoch), total // 2)
        rise = [start + (top - start) * (i + 1) / max(1, warm) for i in range(warm)]
        return rise + [low + (top - low) * (1 - i / (total - warm)) ** self.power for i in range(total - warm)]


# -- training ---------------------------------------------------------------------------------------------------------
def _normalised(picture: Tensor, size: tuple[int, int], preprocessing: Mapping[str, Any]) -> Tensor:
    """(3, H, W) uint8 to the image (3, *size) that the network takes."""
    mode = InterpolationMode(preprocessing.get("interpolation", "bilinear"))
    x = v2.functional.resize(picture, list(size), mode, antialias=True).float() / 255
    mean, std = (torch.tensor(preprocessing[k])[:, None, None] for k in ("mean", "std"))
    return (x - mean) / std


def _picture(file: Path) -> Tensor:
    return torch.from_numpy(np.array(read_picture(file))).permute(2, 0, 1)


class RoadPictures(Dataset):
    """(image (3, H, W), lane of each pixel (H, W), flags (lanes,)) of roads, turned a little where ``rotation`` is above 0."""

    def __init__(
        self,
        roads: Sequence[Road],
        size: tuple[int, int],
        lanes: int,
        preprocessing: Mapping[str, Any],
        rotation: float = 0.0,
    ):
        self.roads, self.size, self.lanes = list(roads), size, lanes
        self.preprocessing, self.rotation = preprocessing, rotation

    def __len__(self) -> int:
        return len(self.roads)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        road = self.roads[index]
        picture = _picture(road.picture)
        drawn, flags = lane_map(road, (picture.shape[1], picture.shape[2]), self.lanes)
        target = F.interpolate(torch.from_numpy(drawn)[None, None], self.size, mode="nearest")[0, 0].long()
        image = _normalised(picture, self.size, self.preprocessing)
        if self.rotation:
            angle = float(torch.empty(()).uniform_(-self.rotation, self.rotation))
            image = v2.functional.rotate(image, angle, InterpolationMode.BILINEAR)
            target = v2.functional.rotate(target[None], angle, InterpolationMode.NEAREST)[0]
        return image, target, torch.from_numpy(flags)


class LaneTraining(RecipeTask):
    """The loss of maps and flags; on held-out pictures the share of lane pixels that are told, and the IoU of all lanes together."""

    def __init__(self, model: nn.Module, recipe: LaneRecipe, seed: int):
        super().__init__(model, recipe, seed)
        self.loss = SCNNLoss(recipe.background, recipe.existence)
        self.counts = torch.zeros(3)

    def training_step(self, batch, batch_idx) -> Tensor:
        images, target, flags = batch
        maps, exists = self.model.logits(images)
        *_, loss = self.loss(maps, exists, target, flags)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(3)

    def validation_step(self, batch, batch_idx) -> None:
        images, target, _ = batch
        said = self.model(images)[0].argmax(1)
        right = ((said == target) & (target > 0)).sum()
        self.counts += torch.stack([right, (target > 0).sum(), (said > 0).sum()]).float().cpu()

    def on_validation_epoch_end(self) -> None:
        counts = self.all_gather(self.counts.to(self.device))
        hit, truth, said = (counts.sum(0) if counts.ndim == 2 else counts).tolist()
        whole = truth + said - hit
        self.log("val_lane_iou", 100 * hit / whole if whole else 100.0, prog_bar=True, rank_zero_only=False)
        self.log("val_lane_recall", 100 * hit / truth if truth else 100.0, rank_zero_only=False)


# -- results ----------------------------------------------------------------------------------------------------------
@dataclass
class Lanes(Result):
    """Lanes of pictures. Each row: ``image``, ``width``, ``height`` and ``lanes``: ``number`` from the left, ``confidence``, ``points`` (x, y).

    A picture without lanes has an empty list.
    """

    milliseconds: list[float] = field(default_factory=list)

    def flat(self) -> list[dict[str, Any]]:
        return [
            {"image": row["image"], "lane": lane["number"], "confidence": lane["confidence"], "x": x, "y": y}
            for row in self.rows
            for lane in row["lanes"]
            for x, y in lane["points"]
        ]

    def overlay(self, row: Mapping[str, Any]) -> Image.Image:
        """The picture with its lanes drawn over it."""
        picture = read_picture(row["image"]).convert("RGB")
        pen = ImageDraw.Draw(picture)
        for lane in row["lanes"]:
            width = max(2, picture.width // 200)
            pen.line([tuple(p) for p in lane["points"]], fill=colour_of(lane["number"] + 1), width=width, joint="curve")
        return picture

    def save(self, path: str | Path) -> Path:
        """Write the points (``.json``, ``.csv``, ``.tsv``), one drawn picture or a sheet of them (``.png``), or a folder: for every picture
        ``NAME.lines.txt`` in CULane's form and ``NAME_lanes.png``, and ``lanes.json``."""
        path = Path(path)
        if path.suffix.lower() == ".png" and len(self.rows) == 1:
            return atomic_write(path, _png(self.overlay(self.rows[0])))
        if path.suffix:
            return super().save(path)
        stems = [Path(row["image"]).stem for row in self.rows]
        names = [f"{stem}_{i}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]
        for name, row in zip(names, self.rows, strict=True):
            lines = (" ".join(f"{x:g} {y:g}" for x, y in lane["points"]) + " \n" for lane in row["lanes"])
            atomic_write(path / f"{name}.lines.txt", "".join(lines))
            atomic_write(path / f"{name}_lanes.png", _png(self.overlay(row)))
        atomic_write(path / "lanes.json", json.dumps(self.plain(), indent=1) + "\n")
        return path

    def draw(self, path: str | Path) -> Path:
        """A sheet of the pictures with their lanes."""
        return sheet(
            path, [(self.overlay(r), f"{Path(r['image']).name}: {len(r['lanes'])}") for r in self.rows[:24]], 2
        )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


# -- the task ---------------------------------------------------------------------------------------------------------
class LaneDetection(Task):
    """Road pictures and lanes."""

    name = "lanes"
    does = "finds lanes"
    goal = "val_lane_iou"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> LaneRecipe:
        return LaneRecipe.of(spec.name, stage, **(overrides or {}))

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.1, on_error: str = "stop") -> Roads:
        """Open road pictures with lanes.

        Args:
            source: CULane's folder, TuSimple's, one with label files in TuSimple's form, or :class:`~offprint.data.lanes.Roads`.
            val_fraction: share held out, where the data have no part of their own for it.
            on_error: a picture whose file or map is missing: stop or skip.
        """
        if isinstance(source, Roads):
            return source
        return open_lanes(source, val_fraction=val_fraction, seed=seed, on_error=on_error)

    def prepare(self, job: Job) -> None:
        if job.how.input_size:
            raise OffprintError(
                "the size of image is the model's: give img_size (--set img_size=HEIGHT,WIDTH) in place of input_size"
            )
        job.settled = {"form": job.data.form}

    def greeting(self, job: Job) -> Sequence[str]:
        d = job.data
        return [f"{len(d.train)} roads to learn from, {len(d.val)} held out, judged as {d.form}", *left_out(d.notes)]

    def about(self, job: Job) -> dict[str, Any]:
        return {"preprocessing": dict(job.entry.preprocessing), **job.settled}

    def module(self, job: Job) -> LaneTraining:
        return LaneTraining(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> SeededLoaders:
        n, d = job.network, job.data
        pictures = job.how.pictures(job.entry.preprocessing)
        train = RoadPictures(d.train, n.img_size, n.num_lanes, pictures, job.how.rotation)
        val = RoadPictures(d.val, n.img_size, n.num_lanes, pictures)
        size = min(job.how.batch_size, len(train))
        return SeededLoaders(train, val, size, job.run.workers, job.run.seed, val_batch_size=size)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"lane_iou": fitted.best}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"IoU of lane pixels {figures['lane_iou']:.2f} % on held-out roads after {figures['epochs']} epochs; "
            f"weights: {folder / 'model.safetensors'}",
            f"next: offprint predict PICTURE --model {folder} --out lanes",
        ]

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        spec = entry(name)
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        preprocessing = spec.release(pretrained).preprocessing if pretrained else spec.preprocessing
        form = "tusimple" if name.endswith("tusimple") else "culane"
        return Ready(self, model, name, {"options": dict(options), "preprocessing": dict(preprocessing), "form": form})

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        part: str = "val",
        iou: float = 0.5,
        workers: int = 1,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """CULane's F1 (%) with its counts, of all pictures and of each category, or TuSimple's accuracy, FP and FN (%).

        Args:
            part: val, or test where its labels are there.
            iou: that a predicted lane must exceed (CULane): 0.5, and 0.3 is reported too.
            workers: processes that compare drawn lanes (CULane).
            on_error: a picture whose file is missing: stop or skip.
        """
        data = self.own_source(ready) if data is None else data
        roads = self.open(data, on_error=on_error)
        if part not in ("val", "test"):
            raise OffprintError(f"part={part!r}; choose val or test")
        chosen = roads.val if part == "val" else roads.test
        if not chosen:
            raise DataError(f"{roads.name} has no labelled {part} pictures; choose the other part")
        if progress:
            progress(total=len(chosen))
        pairs: dict[str, list[tuple]] = {}
        scores = []
        for road in chosen:
            found, size, _ = self._lanes_of(ready, road.picture, road.by_row[0] if road.by_row else None)
            said = [lane["points"] for lane in found]
            if roads.form == "tusimple" and road.by_row is not None:
                rows, truth = road.by_row
                scores.append(tusimple_accuracy(rows, truth, [_at_rows(p, rows) for p in said]))
            else:
                pairs.setdefault(road.category or "pictures", []).append((road.lanes, said, size))
            if progress:
                progress(text=road.picture.name)
        if scores:
            whole = tusimple_total(scores)
            figures = {
                "accuracy": 100 * whole.accuracy,
                "fp": 100 * whole.fp,
                "fn": 100 * whole.fn,
                "pictures": len(scores),
            }
            return Figures.of(figures, units=dict.fromkeys(("accuracy", "fp", "fn"), " %"), notes=left_out(roads.notes))
        return self._culane(pairs, iou, workers, roads)

    def _culane(self, pairs: Mapping[str, list[tuple]], iou: float, workers: int, roads: Roads) -> Figures:
        sizes = {size for rows in pairs.values() for *_, size in rows}
        if len(sizes) == 1:
            size = sizes.pop()
            plain = {name: [(a, b) for a, b, _ in rows] for name, rows in pairs.items()}
            counts = culane_total(plain, workers, threshold=iou, size=size, width=_pen(size))
        else:  # pictures of several sizes
            counts = {
                name: _sum(culane_f1(a, b, iou, _pen(size), size) for a, b, size in rows)
                for name, rows in pairs.items()
            }
            counts["total"] = _sum(counts.values())
        total = counts.pop("total")
        rows = [{"category": name, "f1": 100 * c.f1, "tp": c.tp, "fp": c.fp, "fn": c.fn} for name, c in counts.items()]
        figures = {
            "f1": 100 * total.f1,
            "precision": 100 * (total.precision or 0.0),
            "recall": 100 * (total.recall or 0.0),
            "tp": total.tp, "fp": total.fp, "fn": total.fn,
        }  # fmt: skip
        return Figures(
            rows, figures=figures, units=dict.fromkeys(("f1", "precision", "recall"), " %"), notes=left_out(roads.notes)
        )

    def predict(
        self, ready: Ready, inputs: Any, *, threshold: float = 0.3, on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Lanes:  # fmt: skip
        """Lanes of road pictures of any size, as points in their own pixels.

        Args:
            inputs: picture files, and folders of them.
            threshold: probability above which a point is there.
            on_error: a picture that cannot be read: stop or skip.
        """
        if not 0 < threshold < 1:
            raise OffprintError(f"threshold={threshold}; give a probability between 0 and 1")
        files, reasons, found = pictures_in(inputs), [], Lanes([])
        if progress:
            progress(total=len(files))
        for file in files:
            try:
                lanes, (height, width), spent = self._lanes_of(ready, file, None, threshold)
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            found.rows.append({"image": str(file), "width": width, "height": height, "lanes": lanes})
            found.milliseconds.append(spent)
            if progress:
                progress(text=file.name)
        found.notes += left_out(reasons)
        return found

    @torch.no_grad()
    def _lanes_of(
        self, ready: Ready, file: Path, at: Sequence[float] | None, threshold: float = 0.3
    ) -> tuple[list[dict[str, Any]], tuple[int, int], float]:
        """(lanes, (height, width) of the picture, milliseconds of the network)."""
        picture, model = _picture(file), ready.model
        size = (picture.shape[1], picture.shape[2])
        x = _normalised(picture, model.img_size, ready.about["preprocessing"])[None].to(next(model.parameters()).device)
        began = time.perf_counter()
        maps, flags = model(x)
        probabilities, exists = maps.softmax(1)[0].cpu(), flags[0].cpu()
        spent = 1000 * (time.perf_counter() - began)
        rows = FORMS[ready.about.get("form", "culane")].of(size)
        rows = LaneRows(rows.size, rows.gap, rows.points, rows.from_bottom, threshold)
        found = lanes_by_number(probabilities, exists, rows)
        lanes = [
            {
                "number": i,
                "confidence": round(float(exists[i]), 4),
                "points": [[float(x), float(y)] for x, y in lane.tolist()],
            }
            for i, lane in found.items()
        ]
        return lanes, size, spent

    def sample(self, ready: Ready) -> Tensor | None:
        return ready.model.example_input()


def _sum(counts):
    from offprint.models.segmentation.scnn import CulaneCounts

    return sum(counts, CulaneCounts())


def _pen(size: tuple[int, int]) -> int:
    """CULane's 30 px of a picture 1640 px wide, in one of this size."""
    return max(1, round(30 * size[1] / 1640))


def _at_rows(points: Sequence[Sequence[float]], rows: Sequence[float]) -> list[float]:
    """A lane's x at rows, between its points in a straight line, -2 beyond its ends."""
    y = np.array([p[1] for p in points])
    x = np.array([p[0] for p in points])
    order = np.argsort(y)
    found = np.interp(rows, y[order], x[order], left=-2.0, right=-2.0)
    return [v if math.isfinite(v) else -2.0 for v in found.tolist()]


register_task(LaneDetection())
