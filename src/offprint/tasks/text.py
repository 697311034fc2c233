"""Finding text as a task: training on pictures and outlines of words, precision and recall by overlap, polygons in the picture's own pixels."""

from __future__ import annotations

import dataclasses
import math
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
from torchvision.transforms import v2

from offprint.data.reading import read_picture
from offprint.data.text_polygons import TextPicture, TextPictures, open_text
from offprint.errors import DataError, OffprintError, need
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights
from offprint.models.detection.fcenet import RANGES, SETTINGS, Decoding, FCELoss, Found, decode_polygons, polygon_nms
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.nn.polygons import overlaps, regions
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out, pictures_in
from offprint.tasks.recipe import Recipe, stated
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask

TEST_SIDES = {"icdar2015": 2260, "ctw1500": 1080}  # the longer side at which the papers measure
THRESHOLDS = tuple(round(0.3 + 0.1 * i, 1) for i in range(7))  # of mmocr's measure, which reports the best
LATER = 1e-5  # added per epoch to what decides which weights are kept: of equals (early on, all find nothing) the later
WIDE = 3.0  # pictures longer than this many times their shorter side are read in windows: words longer than a picture is high have no level


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """A recipe whose rate may fall as a power of what is left, and how pictures are turned.

    ``power`` 0 leaves the schedule as it is. ``scales``: a crop shows the picture at from ... to ... times the crop's side (its longer side).
    ``rotation``: of at most so many degrees, in half of the crops. ``saturation`` beside ``color_jitter``, which is brightness and contrast.
    """

    power: float = 0.0
    scales: tuple[float, float] = (0.75, 2.5)
    rotation: float = 30.0
    saturation: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.scales[0] <= self.scales[1]:
            raise OffprintError(f"recipe: scales={self.scales}; give two factors above 0, the smaller first")

    def _smooth_rates(self, steps_per_epoch: int, batch: int) -> list[float]:
        if not self.power:
            return super()._smooth_rates(steps_per_epoch, batch)
        top, low, start = self.scaled(batch)
        warm = round(self.warmup_epochs * steps_per_epoch)
        fall = [
            max((top - low) * (1 - (i // steps_per_epoch) / self.epochs) ** self.power + low, low)
            for i in range(self.epochs * steps_per_epoch)
        ]
        return [start + (r - start) * min(1.0, (i + 1) / (warm + 1)) for i, r in enumerate(fall)]


COMPOSED = {  # a backbone under a fresh head
    "optimizer": "adamw", "lr": 3e-4, "reference_batch": 8, "weight_decay": 0.05, "epochs": 200, "batch_size": 8, "warmup_epochs": 5, "clip_grad": 10.0,
    "color_jitter": 0.3, "input_size": 640,
}  # fmt: skip


# -- pictures ----------------------------------------------------------------------------------------------------------
def _tensor(picture: Image.Image, preprocessing: Mapping[str, Any], channels: int) -> Tensor:
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(preprocessing[k]).view(-1, 1, 1) for k in ("mean", "std"))
    x = (x - mean) / std
    if channels not in (1, 3):
        raise OffprintError(f"pictures have 1 or 3 channels, the model takes {channels}")
    return x if channels == 3 else x.mean(0, keepdim=True)


def turned(
    picture: Image.Image, polygons: Sequence[np.ndarray], ignored: Sequence[bool], side: int, recipe: TextRecipe
) -> tuple[Image.Image, list[np.ndarray], list[bool]]:
    """A random square crop of a picture, and its words: scaled, shifted towards a word, rotated, mirrored.

    A word of which more than a tenth is outside becomes ignored. The authors crop, pad with the picture's own content, and stretch; here the crop
    is one affine map, black outside.
    """
    draw = lambda low, high: float(torch.empty(()).uniform_(low, high))  # noqa: E731
    factor = side * draw(*recipe.scales) / max(picture.size)
    small = picture.resize([max(1, round(v * factor)) for v in picture.size], Image.Resampling.BICUBIC)  # type: ignore[arg-type]
    ratio = np.array(small.size) / np.array(picture.size)
    words = [np.asarray(p, float) * ratio for p in polygons]
    middle = np.array(small.size) / 2
    seen = [w for w, flag in zip(words, ignored, strict=True) if not flag]
    if max(small.size) > side:
        room = np.maximum(np.array(small.size) - side, 0) / 2
        if seen and draw(0, 1) < 0.8:
            word = seen[int(torch.randint(len(seen), ()))]
            middle = np.clip(
                word.mean(0) + np.array([draw(-0.3, 0.3), draw(-0.3, 0.3)]) * side, middle - room, middle + room
            )
        else:
            middle = middle + room * np.array([draw(-1, 1), draw(-1, 1)])
    angle = math.radians(draw(-recipe.rotation, recipe.rotation)) if draw(0, 1) < 0.5 else 0.0
    mirror = -1.0 if recipe.flip and draw(0, 1) < 0.5 else 1.0
    # from the crop to the picture: p = R diag(mirror, 1) (q - side / 2) + middle
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ np.diag([mirror, 1.0])
    shift = middle - turn @ np.full(2, side / 2)
    crop = small.transform(
        (side, side), Image.Transform.AFFINE, (*turn[0], shift[0], *turn[1], shift[1]), Image.Resampling.BILINEAR
    )
    kept, flags = [], []
    shapely = need("shapely", "detection", "cutting words at the edge of a crop")
    frame = shapely.box(0, 0, side, side)
    for word, flag in zip(words, ignored, strict=True):
        moved = (word - shift) @ turn  # turn is orthogonal
        if (moved.max(0) <= 0).any() or (moved.min(0) >= side).any():
            continue
        if (moved.min(0) < 0).any() or (moved.max(0) > side).any():
            shape = regions([moved])[0]
            flag = flag or shape.intersection(frame).area < 0.9 * shape.area
            moved = moved.clip(0, side - 1)
        kept.append(moved)
        flags.append(bool(flag))
    return crop, kept, flags


class TextCrops(Dataset):
    """(picture (3, side, side), the targets of three levels) of training pictures."""

    def __init__(self, pictures: Sequence[TextPicture], side: int, recipe: TextRecipe, preprocessing: Mapping[str, Any], channels: int, loss: FCELoss):  # fmt: skip
        self.pictures, self.side, self.recipe = list(pictures), side, recipe
        self.preprocessing, self.channels, self.loss = preprocessing, channels, loss
        jitter = recipe.color_jitter
        self.colour = v2.ColorJitter(jitter, jitter, recipe.saturation) if jitter else None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, list[Tensor]]:
        one = self.pictures[index]
        crop, polygons, ignored = turned(one.read(), one.polygons, one.ignored, self.side, self.recipe)
        crop = self.colour(crop) if self.colour is not None else crop
        targets = self.loss.targets((self.side, self.side), polygons, ignored)
        return _tensor(crop, self.preprocessing, self.channels), [torch.from_numpy(t).float() for t in targets]


class _Whole(Dataset):
    """The numbers of held-out pictures, which are read one by one."""

    def __init__(self, pictures: Sequence[TextPicture]):
        self.pictures = list(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> int:
        return index


def _windows(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the parts in which a picture is read: itself, or squares of twice its shorter side, half covered again."""
    short, long = min(width, height), max(width, height)
    if long <= WIDE * short:
        return [(0, 0, width, height)]
    side, count = 2 * short, math.ceil((long - 2 * short) / short) + 1
    starts = [round(i * (long - side) / (count - 1)) for i in range(count)]
    return [(s, 0, s + side, height) if width > height else (0, s, width, s + side) for s in starts]


@torch.no_grad()
def find_text(
    model: nn.Module, picture: Image.Image, preprocessing: Mapping[str, Any], side: int, how: Decoding
) -> list[Found]:
    """Words of an upright RGB picture, best first; polygons are float, in its own pixels, inside its frame.

    Args:
        side: to which the longer side is brought.
        preprocessing: mean and std.
    """
    like, width, height = next(model.parameters()), *picture.size
    whole: list[Found] = []
    cut: list[Found] = []
    for left, top, right, bottom in _windows(width, height):
        part = picture.crop((left, top, right, bottom))
        factor = side / max(part.size)
        size = tuple(max(1, round(v * factor)) for v in part.size)
        x = _tensor(part.resize(size, Image.Resampling.BILINEAR), preprocessing, int(getattr(model, "in_chans", 3)))  # type: ignore[arg-type]
        x = F.pad(x, (0, -x.shape[2] % 32, 0, -x.shape[1] % 32))
        ratio = np.array(part.size) / np.array(size)
        near = 0.02 * min(part.size)  # of an inner edge: the next window may see all of such a word
        for polygon, score in decode_polygons(model(x[None].to(like)), how):
            moved = (polygon * ratio + (left, top)).clip(0, (width, height))
            low, high = moved.min(0), moved.max(0)
            at_edge = any(
                (a > 0 and low[i] < a + near) or (b < n and high[i] > b - near)
                for i, (a, b, n) in enumerate(((left, right, width), (top, bottom, height)))
            )
            (cut if at_edge else whole).append(Found(moved, score))
    found = _best(whole, how.iou_threshold)
    if cut:
        shapely, shapes = need("shapely", "detection", "overlap of polygons"), regions([f.polygon for f in found])
        for one in _best(cut, how.iou_threshold):
            piece = regions([one.polygon])[0]
            if (
                not len(shapes)
                or shapely.area(shapely.intersection(piece, shapes)).max() <= how.iou_threshold * piece.area
            ):
                found.append(one)
    return sorted(found, key=lambda f: -f.score)


def _best(found: Sequence[Found], iou_threshold: float) -> list[Found]:
    if not found:
        return []
    kept = polygon_nms(np.stack([f.polygon for f in found]), np.array([f.score for f in found]), iou_threshold)
    return [found[i] for i in kept]


# -- measures ----------------------------------------------------------------------------------------------------------
@dataclass
class Matches:
    """What was found, picture by picture, against what is there (ICDAR's rule at an overlap of 0.5).

    A word found counts where it overlaps one that is there by more than half of their union, one with one. What lies by more than half in an
    ignored word counts for nothing.
    """

    words: int = 0
    found: list[tuple[float, bool]] = field(default_factory=list)  # score, whether a word

    def add(self, found: Sequence[Found], polygons: Sequence[np.ndarray], ignored: Sequence[bool]) -> int:
        """Count one picture; gives how many of its words were found."""
        shapely = need("shapely", "detection", "overlap of polygons")
        flags = np.array(ignored, bool)
        shapes = regions([p for p, f in zip(polygons, flags, strict=True) if not f])
        vague = regions([p for p, f in zip(polygons, flags, strict=True) if f and len(np.unique(p, axis=0)) > 2])
        said = regions([f.polygon for f in found])
        if len(vague) and len(said):
            inside = (
                shapely.area(shapely.intersection(said[:, None], vague[None]))
                / np.maximum(shapely.area(said), 1e-9)[:, None]
            )
            out = (inside > 0.5).any(1)
        else:
            out = np.zeros(len(said), bool)
        free, hits = np.ones(len(shapes), bool), 0
        for i in np.argsort([-f.score for f in found], kind="stable"):
            if out[i]:
                continue
            iou = np.where(free, overlaps(said[i], shapes), 0.0) if len(shapes) else np.zeros(0)
            hit = bool(len(iou) and iou.max() > 0.5)
            if hit:
                free[iou.argmax()] = False
            hits += hit
            self.found.append((found[i].score, hit))
        self.words += len(shapes)
        return hits

    def figures(self, score: float = 0.0) -> dict[str, float]:
        """Precision, recall and hmean (%) of what was found with at least this score."""
        said = [hit for s, hit in self.found if s >= score]
        precision, recall = (sum(said) / n if n else 0.0 for n in (len(said), self.words))
        both = precision + recall
        return {
            "precision": 100 * precision,
            "recall": 100 * recall,
            "hmean": 200 * precision * recall / both if both else 0.0,
        }


# -- training ----------------------------------------------------------------------------------------------------------
class TextTraining(RecipeTask):
    """The four terms of the loss on crops; hmean on whole held-out pictures."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Any,
        seed: int,
        loss: FCELoss,
        held: Sequence[TextPicture],
        about: Mapping[str, Any],
    ):
        super().__init__(model, recipe, seed)
        self.loss, self.held, self.about = loss, held, about
        self.matches = Matches()

    def training_step(self, batch, batch_idx) -> Tensor:
        images, targets = batch
        terms = self.loss(self.model(images), targets)
        loss = torch.stack(list(terms.values())).sum()
        self.check_loss(loss)
        self.log_dict({f"train_{k}": v.detach() for k, v in terms.items()})
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.matches = Matches()

    def validation_step(self, batch, batch_idx) -> None:
        one, about = self.held[int(batch[0])], self.about
        found = find_text(
            self.model, one.read(), about["preprocessing"], about["test_size"], SETTINGS[about["setting"]]
        )
        self.matches.add(found, one.polygons, one.ignored)

    def on_validation_epoch_end(self) -> None:
        hits = sum(hit for _, hit in self.matches.found)
        counts = torch.tensor(
            [hits, len(self.matches.found), self.matches.words], dtype=torch.float64, device=self.device
        )
        hits, said, words = self.all_gather(counts).reshape(-1, 3).sum(0).tolist()
        hmean = 200 * hits / (said + words) if said + words else 0.0
        self.log("val_hmean", hmean, prog_bar=True, rank_zero_only=False)
        self.log("val_goal", hmean + LATER * self.current_epoch, rank_zero_only=False)


# -- results -----------------------------------------------------------------------------------------------------------
@dataclass
class Texts(Result):
    """Words of pictures. Each row: ``image``, ``width``, ``height``, and ``words``: ``polygon`` (x, y, x, y, ... in the pixels of the upright
    picture) and ``score``, best first."""

    def flat(self) -> list[dict[str, Any]]:
        return [
            {"image": r["image"], "score": w["score"], "polygon": " ".join(f"{v:g}" for v in w["polygon"])}
            for r in self.rows
            for w in r["words"]
        ]

    def overlay(self, row: Mapping[str, Any]) -> Image.Image:
        """The picture with its words outlined."""
        picture = read_picture(row["image"])
        pen, width = ImageDraw.Draw(picture), max(2, round(min(picture.size) / 300))
        for word in row["words"]:
            points = [tuple(p) for p in np.reshape(word["polygon"], (-1, 2)).tolist()]
            pen.line([*points, points[0]], fill=(230, 60, 30), width=width)
        return picture

    def save(self, path: str | Path) -> Path:
        """Write ``.json``, ``.csv`` or ``.tsv``; one picture with its outlines to ``.png``; into a folder ``text.json`` and ``NAME_text.png`` each."""
        path = Path(path)
        if path.suffix:
            return super().save(path)
        super().save(path / "text.json")
        for row in self.rows:
            target = path / f"{Path(row['image']).stem}_text.png"
            if target.exists() and target.resolve() == Path(row["image"]).resolve():
                raise OffprintError(f"{target} is the picture itself; choose another --out")
            _png(self.overlay(row), target)
        return path

    def draw(self, path: str | Path) -> Path:
        """The picture with its outlines at its own size, or a sheet of several."""
        if len(self.rows) == 1 and Path(path).suffix.lower() == ".png":
            return _png(self.overlay(self.rows[0]), Path(path))
        return sheet(path, [(self.overlay(r), Path(r["image"]).name) for r in self.rows[:24]])


def _png(picture: Image.Image, path: Path) -> Path:
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return atomic_write(path, buffer.getvalue())


# -- the task ----------------------------------------------------------------------------------------------------------
class TextDetection(Task):
    """Outlines of words: crops for training, whole pictures for measuring, windows for very wide ones."""

    name = "text"
    does = "finds text in pictures"
    goal = "val_goal"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> TextRecipe:
        """The model's own; for a backbone with a head, whose papers train on data of their own, :data:`COMPOSED`."""
        own = COMPOSED if "+" in spec.name and stage == "training" else stated(spec.name, stage)
        return TextRecipe.make({**own, **(overrides or {})})  # type: ignore[return-value]

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.2) -> TextPictures:
        """Open pictures with the outlines of their words.

        Args:
            source: the folder of ICDAR 2015, Total-Text or CTW1500, mmocr's textdet_*.json, pictures with labels, or sample:icdar2015-toy.
            val_fraction: share held out, where the data have no part for it.
        """
        if isinstance(source, TextPictures):
            return source
        return open_text(source, val_fraction=val_fraction, seed=seed)

    def prepare(self, job: Job, *, loss: str = "released", test_size: int = 0) -> None:
        """Settle the loss and the size at which whole pictures are read.

        Args:
            loss: released (the centre's term as in the authors' code, which takes probabilities for logits), or intended.
            test_size: longer side of whole pictures in pixels; 0 is 2260 (1080 for the CTW1500 setting), less where crops are smaller.
        """
        FCELoss(form=loss)
        rows = [*job.data.train]
        if not any(not flag for one in rows for flag in one.ignored):
            raise DataError(
                f"{job.data.name} has no word to learn from: {len(rows)} pictures, every word of which is ignored"
            )
        if test_size < 0 or 0 < test_size < 32:
            raise OffprintError(f"test_size={test_size}; give 32 pixels or more, or 0")
        job.settled = {"loss": loss, "test_size": test_size}

    def build(self, job: Job) -> nn.Module:
        options, pretrained = dict(job.model_options), job.pretrained
        backbone, plus, _ = job.model.partition("+")
        if plus and pretrained:
            options["backbone"], pretrained = {"name": backbone, "pretrained": pretrained}, False
        network = create_model(job.model, pretrained=pretrained, **options)
        if job.checkpoint:
            load_weights(network, job.checkpoint, drop_head=True)
        side, setting = _side(job), _part(network).setting
        job.settled["setting"] = setting
        job.settled["test_size"] = (
            job.settled["test_size"] or round(TEST_SIDES[setting] * min(1.0, side / 800) / 32) * 32
        )
        return network

    def greeting(self, job: Job) -> Sequence[str]:
        words = sum(not flag for one in job.data.train for flag in one.ignored)
        return [
            f"{len(job.data.train)} pictures with {words} words to train on, {len(job.data.val)} held out",
            *job.data.notes,
        ]

    def about(self, job: Job) -> dict[str, Any]:
        return {"side": _side(job), "preprocessing": dict(job.entry.preprocessing), **job.settled}

    def _loss(self, job: Job) -> FCELoss:
        part = _part(job.network)
        return FCELoss(
            part.fourier_degree,
            max(50, 2 * part.fourier_degree + 1),
            ranges=RANGES[part.setting],
            form=job.settled["loss"],
        )

    def module(self, job: Job) -> TextTraining:
        return TextTraining(job.network, job.how, job.run.seed, self._loss(job), job.data.val, self.about(job))

    def loaders(self, job: Job) -> SeededLoaders:
        pre, channels = dict(job.entry.preprocessing), int(getattr(job.network, "in_chans", 3))
        train = TextCrops(job.data.train, _side(job), job.how, pre, channels, self._loss(job))
        return SeededLoaders(
            train, _Whole(job.data.val), min(job.how.batch_size, len(train)), job.run.workers, job.run.seed
        )

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        hmean = (fitted.best or 0.0) - LATER * (fitted.epoch - 1)
        return {"hmean": max(0.0, round(hmean, 4)), "pictures": len(job.data.train), "held_out": len(job.data.val)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"hmean {figures['hmean']:.2f} % on {figures['held_out']} held-out pictures after {figures['epochs']} epochs "
            f"({figures['weights_are']}); weights: {folder / 'model.safetensors'}",
            f"next: offprint predict PICTURE --model {folder} --out found",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], checkpoint_path=str(folder / "model.safetensors"), **options)
        return Ready(self, model.eval(), about["model"], about, folder)

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        setting = _part(model).setting
        about = {
            "options": dict(options),
            "preprocessing": dict(entry(name).preprocessing),
            "setting": setting,
            "test_size": TEST_SIDES[setting],
        }
        return Ready(self, model, name, about)

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        part: str = "val",
        score: float = 0.3,
        test_size: int = 0,
        text_repr: str = "",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Precision, recall and hmean (%) at an overlap of 0.5, and the best hmean over thresholds of the score, which mmocr reports.

        Args:
            part: train, val or all.
            score: words of less do not count.
            test_size: longer side of the pictures in pixels; 0 is the run's.
            text_repr: poly or quad; default the model's setting.
        """
        data = self.own_source(ready) if data is None else data
        pictures = self.open(data, seed=int(ready.about.get("seed", 0)), **_held(ready, data))
        parts = {"train": pictures.train, "val": pictures.val, "all": [*pictures.train, *pictures.val]}
        if part not in parts:
            raise OffprintError(f"part={part!r}; choose train, val or all")
        how, matches, rows = _how(ready, text_repr), Matches(), []
        if progress:
            progress(total=len(parts[part]))
        for one in parts[part]:
            found = find_text(
                ready.model, one.read(), ready.about["preprocessing"], test_size or ready.about["test_size"], how
            )
            hits = matches.add(found, one.polygons, one.ignored)
            rows.append(
                {"image": one.name, "words": sum(not f for f in one.ignored), "found": len(found), "right": hits}
            )
            if progress:
                progress(text=one.name)
        best = max(THRESHOLDS, key=lambda t: matches.figures(t)["hmean"])
        figures = {**matches.figures(score), "best_hmean": matches.figures(best)["hmean"], "best_score": best, "words": matches.words, "pictures": len(rows)}  # fmt: skip
        notes = [*pictures.notes, *([] if matches.found else ["not one word was found"])]
        units = dict.fromkeys(("precision", "recall", "hmean", "best_hmean"), " %")
        return Figures(rows, figures=figures, units=units, notes=notes)

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        score: float = 0.3,
        test_size: int = 0,
        text_repr: str = "",
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Texts:
        """Outlines of the words in pictures of any size and shape, in the pixels of the upright picture.

        Args:
            inputs: picture files, and folders of them.
            score: words of less are left out.
            test_size: longer side of the pictures in pixels; 0 is the run's.
            text_repr: poly or quad; default the model's setting.
            on_error: a picture that cannot be read: stop or skip.
        """
        if on_error not in ("stop", "skip"):
            raise OffprintError(f"on_error={on_error!r}; choose stop or skip")
        files, how, result, reasons = pictures_in(inputs), _how(ready, text_repr), Texts([]), []
        if progress:
            progress(total=len(files))
        for file in files:
            try:
                picture = read_picture(file)
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            found = find_text(
                ready.model, picture, ready.about["preprocessing"], test_size or ready.about["test_size"], how
            )
            words = [
                {"polygon": [round(float(v), 2) for v in f.polygon.ravel()], "score": round(f.score, 4)}
                for f in found
                if f.score >= score
            ]
            result.rows.append({"image": str(file), "width": picture.width, "height": picture.height, "words": words})
            if not words:
                result.notes.append(f"no text was found in {file}")
            if progress:
                progress(text=file.name)
        result.notes += left_out(reasons)
        return result

    def sample(self, ready: Ready) -> Tensor | None:
        side = int(ready.about.get("side", 640))
        return torch.rand(1, int(getattr(ready.model, "in_chans", 3)), side, side)


def _side(job: Job) -> int:
    side = job.how.input_size or (job.entry.input_size or (3, 800, 800))[-1]
    if side % 32:
        raise OffprintError(f"input_size={side}; crops have sides of a multiple of 32 pixels")
    return side


def _part(model: nn.Module) -> Any:
    """What holds the degree and the setting: the network, or its head."""
    return model if hasattr(model, "setting") else model.head


def _how(ready: Ready, text_repr: str) -> Decoding:
    how = SETTINGS[ready.about["setting"]]
    return dataclasses.replace(how, text_repr=text_repr) if text_repr else how


def _held(ready: Ready, data: Any) -> dict[str, Any]:
    """The share held out of the run's own data."""
    told = ready.about.get("data_options") or {}
    return {k: told[k] for k in ("val_fraction",) if k in told and str(data) == ready.about.get("source")}


register_task(TextDetection())
