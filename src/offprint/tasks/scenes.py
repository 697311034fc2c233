"""Classes of every pixel of one hyperspectral scene, learnt from some of its pixels (Zheng et al. 2020): the whole scene at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from offprint.data.georeference import georeference, map_tiff
from offprint.data.masks import colour_of
from offprint.data.scenes import Scene, open_scene, simulated_scene
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry
from offprint.models.segmentation.freenet import (
    SEED,
    StratifiedSampler,
    fixed_num_sample,
    masked_loss,
    poly_rate,
    scores,
)
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.folder import WEIGHTS
from offprint.tasks.results import Figures, Result, canvas, finish
from offprint.tasks.running import Fitted, RecipeTask


@dataclass(frozen=True)
class SceneRecipe:
    """How a scene is learnt: SGD, a rate that falls as a power of what is left, one full image a step (the paper's values).

    ``per_class`` pixels of each class are learnt from, ``minibatch`` of each in a step; an epoch takes all of them once.
    """

    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-3
    power: float = 0.9
    clip_grad: float = 35.0
    epochs: int = 100
    per_class: int = 200
    minibatch: int = 20

    def __post_init__(self):
        for name in ("lr", "epochs", "per_class", "minibatch"):
            if not getattr(self, name) > 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must be above 0")


def memory_of(model: nn.Module, height: int, width: int) -> float:
    """Gigabytes that one training step's maps take, from a run on a small scene: they grow with the pixels."""
    sizes: list[int] = []

    def note(module, inputs, output) -> None:
        if isinstance(output, Tensor) and not list(module.children()):
            sizes.append(output.numel())

    handles = [m.register_forward_hook(note) for m in model.modules()]
    with torch.no_grad():
        model.logits(torch.zeros(1, model.in_chans, 32, 32))  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return 2 * 4 * sum(sizes) / 32**2 * height * width / 1e9


class _Steps(IterableDataset):
    """One mini-batch's mask a step."""

    def __init__(self, sampler: StratifiedSampler, epoch: int):
        self.sampler, self.epoch = sampler, epoch

    def __len__(self) -> int:
        return self.sampler.count

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.sampler.epoch(self.epoch):
            mask = np.zeros(self.sampler.labels.size, np.float32)
            mask[batch] = 1
            yield torch.from_numpy(mask.reshape(self.sampler.labels.shape))


class SceneData(L.LightningDataModule):
    """The masks of an epoch; the scene itself lies with the module."""

    batch_size = 1

    def __init__(self, sampler: StratifiedSampler):
        super().__init__()
        self.sampler = sampler

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Steps(self.sampler, self.trainer.current_epoch), None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([torch.zeros(())], None)  # type: ignore[arg-type]


class SceneTraining(RecipeTask):
    """The masked loss on the whole scene; accuracies on the pixels that are not learnt from."""

    def __init__(self, model: nn.Module, recipe: SceneRecipe, seed: int, image: Tensor, labels: Tensor, test: Tensor):
        super().__init__(model, recipe, seed)  # type: ignore[arg-type]
        for name, value in (("image", image), ("labels", labels), ("test", test)):
            self.register_buffer(name, value, persistent=False)

    def training_step(self, batch, batch_idx) -> Tensor:
        loss = masked_loss(self.model(self.image), self.labels[None], batch[None])
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        found = scores(self.model(self.image)[0].argmax(0) + 1, self.labels * self.test, self.model.num_classes)  # type: ignore[operator, arg-type]
        for name in ("oa", "aa", "kappa"):
            self.log(
                f"val_{name}",
                100 * found[name] if name != "kappa" else found[name],
                prog_bar=name == "oa",
                batch_size=1,
            )

    def configure_optimizers(self):
        r: Any = self.recipe
        optimizer = torch.optim.SGD(self.model.parameters(), r.lr, r.momentum, weight_decay=r.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: poly_rate(min(step, total - 1), total, 1.0, r.power)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass
class ClassMaps(Result):
    """Class maps of scenes. Each row: ``scene``, ``height``, ``width``, and the share (%) of each class.

    Attributes:
        maps: (H, W) uint16 each, classes from 1.
    """

    maps: list[np.ndarray] = field(default_factory=list)

    def flat(self) -> list[dict[str, Any]]:
        return [{"scene": r["scene"], "class": c, "share": s} for r in self.rows for c, s in r["shares"].items()]

    def save(self, path: str | Path) -> Path:
        """Write the maps: one to ``.png`` (colours), ``.npy`` or ``.tif`` (numbers), several to a folder as the first two; ``.json`` and ``.csv``
        for the shares. A scene from a GeoTIFF gives a ``.tif`` with its georeference in the folder too."""
        path, kind = Path(path), Path(path).suffix.lower()
        if kind in (".json", ".csv", ".tsv"):
            return super().save(path)
        if kind and (len(self.maps) != 1 or kind not in (".png", ".npy", ".tif", ".tiff")):
            raise OffprintError(f"{path}: one map is written to a .png, a .npy or a .tif, several to a folder")
        for row, found in zip(self.rows, self.maps, strict=True):
            stem = Path(row["scene"]).stem
            place = georeference(row["scene"])
            endings = [".png", ".npy", *([".tif"] if place else [])]
            for target in [path] if kind else [path / f"{stem}_classes{ending}" for ending in endings]:
                writers = {".png": _png, ".npy": _npy}
                write = writers.get(target.suffix.lower(), lambda found, place=place: map_tiff(found, place))
                atomic_write(target, write(found))
        return path

    def draw(self, path: str | Path) -> Path:
        """The maps side by side."""
        figure, axes = canvas(4 * len(self.maps), 4, 1, len(self.maps))
        for place, row, found in zip(np.atleast_1d(axes), self.rows, self.maps, strict=True):
            place.imshow(_coloured(found))
            place.set_title(Path(row["scene"]).name, fontsize=8)
            place.axis("off")
        return finish(figure, path)


def _coloured(found: np.ndarray) -> np.ndarray:
    return np.array([colour_of(i) for i in range(int(found.max()) + 1)], np.uint8)[found]


def _png(found: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(_coloured(found)).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(found: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, found)
    return buffer.getvalue()


class SceneSegmentation(Task):
    """One hyperspectral scene, learnt from some of its labelled pixels and judged on the others."""

    name = "scenes"
    does = "classifies the pixels of hyperspectral scenes"
    goal = "val_oa"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> SceneRecipe:
        fields = {**spec.recipes.get(stage, {}), **(overrides or {})}
        known = {f.name for f in dataclasses.fields(SceneRecipe)}
        if stage != "training":
            raise unknown(f"stage of the recipe of {spec.name}", stage, ("training",))
        for name in fields:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        return SceneRecipe(**fields)

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        labels: str = "",
        key: str = "",
        labels_key: str = "",
        crop: str = "",
        train_map: str = "",
        test_map: str = "",
    ) -> Scene:
        """Open a scene.

        Args:
            source: a cube (height, width, bands) in a .mat, .npy, .npz or .tif file, a :class:`~offprint.data.scenes.Scene`, or
                ``simulated:N`` for a made-up scene.
            labels: file of the classes (height, width), 0 for none.
            key: name of the cube inside its file.
            labels_key: name of the map inside its file.
            crop: top:bottom,left:right in pixels.
            train_map: file of the pixels to learn from (above 0), instead of a random choice.
            test_map: file of the pixels to be judged by.
        """
        if isinstance(source, Scene):
            return source
        if str(source).startswith("simulated:"):
            return simulated_scene(seed=int(str(source).partition(":")[2] or 0))
        return open_scene(source, labels, key=key, labels_key=labels_key, crop=crop, split=(train_map, test_map))

    def prepare(self, job: Job, *, split_seed: int = SEED) -> None:
        """Settle the split.

        Args:
            split_seed: of the choice of pixels, and of the order of mini-batches; the default is the authors'.
        """
        job.settled = {"split_seed": split_seed, **split_of(job.data, job.how, split_seed)}

    def greeting(self, job: Job) -> Sequence[str]:
        s, split = job.data, job.settled
        lines = [f"scene of {s.cube.shape[0]} x {s.cube.shape[1]} pixels, {s.cube.shape[2]} bands, {s.classes} classes",
                 "pixels learnt from: " + ", ".join(map(str, split["train_counts"])),
                 "pixels judged by:   " + ", ".join(map(str, split["test_counts"]))]  # fmt: skip
        if s.test is None:
            lines.append("pixels to judge by were drawn at random and lie beside those learnt from, so that scores are optimistic; --train-map and "
                         "--test-map give a split of your own")  # fmt: skip
        few = [str(i + 1) for i, n in enumerate(split["test_counts"]) if not n]
        if few:
            lines.append(
                f"classes {', '.join(few)} have no pixel left to judge by; the average accuracy over the others is given beside"
            )
        return lines

    def build(self, job: Job) -> nn.Module:
        options = {**job.model_options, "in_chans": job.data.cube.shape[2], "num_classes": job.data.classes}
        network = create_model(job.model, pretrained=job.pretrained, **options)
        if job.checkpoint:
            load_weights(network, job.checkpoint, drop_head=True)
        job.say(
            f"a step's maps take about {memory_of(network, *job.data.cube.shape[:2]):.2g} GB; --crop and reduction_ratio make it less"
        )
        return network

    def about(self, job: Job) -> dict[str, Any]:
        return {
            "bands": int(job.data.cube.shape[2]),
            "classes": job.data.classes,
            **{k: v for k, v in job.settled.items() if k not in ("train", "test")},
        }

    def module(self, job: Job) -> SceneTraining:
        image, labels = torch.from_numpy(job.data.normalised())[None], torch.from_numpy(job.data.labels)
        return SceneTraining(
            job.network, job.how, job.run.seed, image, labels, torch.from_numpy(job.settled["test"]).long()
        )

    def loaders(self, job: Job) -> SceneData:
        return SceneData(
            StratifiedSampler(job.data.labels, job.settled["train"], job.how.minibatch, job.settled["split_seed"])
        )

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {
            "oa": fitted.best,
            "last_epoch": {k.removeprefix("val_"): v for k, v in fitted.logged.items() if k.startswith("val_")},
        }

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [f"overall accuracy {figures['oa']:.2f} % after {figures['epochs']} epochs ({figures['weights_are']}); weights: {folder / WEIGHTS}",
                f"next: offprint predict SCENE --model {folder} --out map.png"]  # fmt: skip

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        return self.restored(folder, about, in_chans=about["bands"], num_classes=about["classes"])

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        labels: str = "",
        key: str = "",
        labels_key: str = "",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Overall and average accuracy (%) and kappa: on the pixels of the run that were not learnt from, of another scene on all.

        Args:
            labels: file of the classes.
            key: name of the cube inside its file.
            labels_key: name of the map inside its file.
        """
        own = data is None or str(data) == ready.about.get("source")
        if own:
            told = {**ready.about.get("data_options", {})}
            told.pop("split_seed", None)
            data = ready.about.get("source") if data is None else data
            scene = self.open(data, seed=ready.about.get("seed", 0), **told)
        else:
            scene = self.open(data, labels=labels, key=key, labels_key=labels_key)
        if scene.labels is None:
            raise DataError(f"{scene.name} has no labels to be judged by; give --labels")
        judged = scene.labels
        if own and ready.folder is not None:
            split = split_of(scene, SceneRecipe(**ready.about["recipe"]), ready.about["split_seed"])
            judged = scene.labels * split["test"]
        found = scores(
            torch.from_numpy(self._map(ready, scene).astype(np.int64)),
            torch.from_numpy(judged),
            ready.model.num_classes,
        )
        rows = [
            {"class": i + 1, "accuracy": 100 * v, "pixels": int((judged == i + 1).sum())}
            for i, v in enumerate(found["per_class"])
        ]
        figures = {"oa": 100 * found["oa"], "aa": 100 * found["aa"], "kappa": found["kappa"], "aa_tested": 100 * found["aa_tested"],
                   "pixels": int((judged > 0).sum())}  # fmt: skip
        return Figures(rows, figures=figures, units=dict.fromkeys(("oa", "aa", "aa_tested"), " %"))

    def predict(
        self, ready: Ready, inputs: Any, *, key: str = "", progress: Callable[..., None] | None = None
    ) -> ClassMaps:
        """The class of every pixel of scenes.

        Args:
            inputs: files of cubes.
            key: name of the cube inside its file.
        """
        given = [inputs] if isinstance(inputs, str | Path | Scene) else list(inputs)
        found = ClassMaps([])
        if progress:
            progress(total=len(given))
        for each in given:
            scene = self.open(each, key=key)
            classes = self._map(ready, scene)
            count = np.bincount(classes.ravel(), minlength=ready.model.num_classes + 1)
            shares = {str(c): round(100 * int(n) / classes.size, 3) for c, n in enumerate(count) if n}
            found.rows.append(
                {"scene": scene.name, "height": classes.shape[0], "width": classes.shape[1], "shares": shares}
            )
            found.maps.append(classes)
            if progress:
                progress(text=Path(scene.name).name)
        return found

    @torch.no_grad()
    def _map(self, ready: Ready, scene: Scene) -> np.ndarray:
        if scene.cube.shape[2] != ready.model.in_chans:
            raise DataError(
                f"{scene.name} has {scene.cube.shape[2]} bands, the model was trained on {ready.model.in_chans}"
            )
        device = next(ready.model.parameters()).device
        image = torch.from_numpy(scene.normalised())[None].to(device)
        return (ready.model(image)[0].argmax(0) + 1).cpu().numpy().astype(np.uint16)


def split_of(scene: Scene, recipe: SceneRecipe, seed: int) -> dict[str, Any]:
    """Masks of the pixels to learn from and to be judged by, and how many of each class they have.

    Raises:
        DataError: no labels, or a class without a pixel to learn from.
    """
    if scene.labels is None:
        raise DataError(f"{scene.name} has no labels to learn from; give --labels")
    if scene.train is not None:
        train = scene.train & (scene.labels > 0)
        test = (scene.test if scene.test is not None else ~train) & (scene.labels > 0)
    else:
        train, test = fixed_num_sample(scene.labels, recipe.per_class, scene.classes, seed)
    counts = [[int((scene.labels[mask] == c).sum()) for c in range(1, scene.classes + 1)] for mask in (train, test)]
    absent = [str(i + 1) for i, n in enumerate(counts[0]) if not n]
    if absent:
        raise DataError(f"{scene.name}: class{'es' if len(absent) > 1 else ''} {', '.join(absent)} of {scene.classes} have no pixel to learn from; "
                        "renumber the classes without gaps, or give them pixels")  # fmt: skip
    if not sum(counts[1]):
        raise DataError(
            f"{scene.name}: per_class={recipe.per_class} takes every labelled pixel, and none is left to judge by; give --per-class less"
        )
    return {"train": train, "test": test, "train_counts": counts[0], "test_counts": counts[1]}


register_task(SceneSegmentation())
