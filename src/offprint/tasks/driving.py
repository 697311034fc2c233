"""Driving as a task: up to ten tasks of one network on frames whose labels are partial; BDD100K's folder, or scenes that are drawn here.

>>> run = offprint.train("vtdnet_tiny_rebuilt", "sample:driving", "runs/drive", recipe={"epochs": 30})
>>> offprint.evaluate("runs/drive")
>>> offprint.predict("runs/drive", "frames/", video=True).save("out/")     # frames of one video, in the order of their names
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.drawn_driving import drawn
from offprint.data.driving import SCENES, WEATHERS, DrivingFrames, Frame, open_folder
from offprint.data.reading import read_picture
from offprint.errors import DataError, OffprintError
from offprint.models.checkpoint import load_weights
from offprint.models.detection.contract import paste
from offprint.models.detection.vtdnet import GROUPS, TASKS, Tracker, VTDNet, label_table, partial_label_loss, vtda
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.tasks._detecting import Sizes, pad_to, resized
from offprint.tasks._driving_frames import MULTIPLE, PairLoaders, Pairs
from offprint.tasks._driving_results import Drives, objects_of
from offprint.tasks._driving_scores import DrivingScores
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.detection import DetectionRecipe
from offprint.tasks.pictures import left_out, pictures_in
from offprint.tasks.results import Figures
from offprint.tasks.running import Fitted, RecipeTask

MAPS = ("semantic", "drivable", "lane_category", "lane_direction", "lane_style")
PSEUDO = ("semantic", "pose")  # what a network of the stage before can label


@dataclass(frozen=True)
class DrivingRecipe(DetectionRecipe):
    """A recipe of a driving network.

    ``tasks`` are those whose labels count (none named: all), ``task_weights`` their weights in the order of the ten. ``pseudo`` names tasks that the weights at the
    start label where a frame has no label (``semantic``, ``pose``), where they are surer than ``pseudo_threshold``. ``decoders_only`` holds the shared part fast: each decoder
    then learns from its own task alone.
    """

    tasks: tuple[str, ...] = ()
    task_weights: tuple[float, ...] = ()
    pseudo: tuple[str, ...] = ()
    pseudo_threshold: float = 0.6
    decoders_only: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name, given, known in (("tasks", self.tasks, TASKS), ("pseudo", self.pseudo, PSEUDO)):
            if wrong := [t for t in given if t not in known]:
                raise OffprintError(f"recipe: {name} has {', '.join(wrong)}; choose of {', '.join(known)}")
        if self.task_weights and len(self.task_weights) != len(TASKS):
            raise OffprintError(f"recipe: {len(self.task_weights)} task_weights; give ten, of {', '.join(TASKS)}")


class _Normalise(nn.Module):
    """Pictures in [0, 1] to what the network takes."""

    def __init__(self, preprocessing: Mapping[str, Any]):
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocessing[name])[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Driving(RecipeTask):
    """The mean loss of each task over the frames that are labelled for it, summed."""

    def __init__(self, model: VTDNet, recipe: DrivingRecipe, seed: int, preprocessing: Mapping[str, Any]):
        super().__init__(model, recipe, seed)
        self.normalise = _Normalise(preprocessing)
        self.weights = torch.tensor(recipe.task_weights) if recipe.task_weights else None
        self._labeller: tuple[VTDNet, ...] = ()
        self.pseudo = tuple(t for t in recipe.pseudo if t in model.tasks)
        if self.pseudo:  # in a tuple: no part of what is trained or kept
            self._labeller = (copy.deepcopy(model).eval().requires_grad_(False),)
        self.tuned = [m for d in model.decoders().values() for m in d] if recipe.decoders_only else []
        if self.tuned:
            model.requires_grad_(False)
            for part in self.tuned:
                part.requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        if self.tuned:
            self.model.eval()
            for part in self.tuned:
                part.train()

    def losses(self, batch) -> tuple[Tensor, Tensor, Tensor]:
        """(total, of each task, how many frames count for each) of a batch."""
        raw, targets, pairs, other, other_targets = batch
        x = self.normalise(raw)
        targets, pseudo = self._labelled(x, targets)
        reference = self.normalise(other) if pairs else None
        frames = (raw[pairs], other) if pairs else None
        each, known = self.model.losses(x, targets, reference, other_targets, pairs, frames)  # type: ignore[operator]
        made = known & label_table(pseudo, known.device)
        weights = None if self.weights is None else self.weights.to(each)
        found = partial_label_loss(each, known & ~made, made, weights)
        return found.total, found.tasks, known.sum(0)

    def training_step(self, batch, batch_idx) -> Tensor:
        loss, each, counts = self.losses(batch)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch[0]))
        for task, value, count in zip(TASKS, each, counts.tolist(), strict=True):
            if count:
                self.log(f"train_{task}", value.detach(), batch_size=count, on_step=False, on_epoch=True)
        return (
            loss if loss.requires_grad else loss + 0 * next(p for p in self.model.parameters() if p.requires_grad).sum()
        )

    def _labelled(self, x: Tensor, targets: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[set[str]]]:
        """Targets with pseudo-labels where labels lack, and which tasks these are of."""
        made: list[set[str]] = [set() for _ in targets]
        if not self._labeller:
            return list(targets), made
        labeller, level = self._labeller[0].to(x.device), self.recipe.pseudo_threshold  # type: ignore[attr-defined]
        out = [dict(t) for t in targets]
        with torch.no_grad():
            seen = labeller.see(x)
            objects = (
                labeller.instances.objects(seen.named, tuple(x.shape[-2:]), seen.proposals)
                if "pose" in self.pseudo
                else None
            )  # type: ignore[attr-defined]
        for i, target in enumerate(out):
            lacking = set(self.pseudo) - set(target["known"])  # type: ignore[attr-defined]
            if "semantic" in lacking:
                sure, kind = seen.logits["semantic"][i].softmax(0).max(0)
                target["semantic"] = torch.where(sure >= level, kind, torch.full_like(kind, 255))
                made[i].add("semantic")
            if "pose" in lacking and objects is not None:
                people = (objects[i]["labels"] == 1) & (objects[i]["scores"] >= level)
                if bool(people.any()):
                    points = objects[i]["keypoints"][people].clone()
                    points[..., 2] = 2
                    target |= {"pose_boxes": objects[i]["boxes"][people], "keypoints": points}
                    made[i].add("pose")
            target["known"] = set(target["known"]) | made[i]
        return out, made


# -- use --------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def outputs(
    model: VTDNet,
    picture: Tensor,
    preprocessing: Mapping[str, Any],
    sizes: Sizes,
    after: Tensor | None = None,
    **limits: float,
) -> dict[str, Tensor]:
    """Everything about one frame (3, H, W) uint8, in its own pixels; with the frame ``after`` it the flow as well."""
    like = next(model.parameters())
    normalise, (height, width) = _Normalise(preprocessing), picture.shape[-2:]
    tall, wide = sizes.of(height, width)
    padded = tuple(-(-v // MULTIPLE) * MULTIPLE for v in (tall, wide))
    shown = lambda p: normalise(pad_to(resized(p, (tall, wide)).float() / 255, *padded))[None].to(like)  # noqa: E731
    found = model.detect(shown(picture), None if after is None else shown(after), **limits)[0]
    found = {k: v.cpu() for k, v in found.items()}
    scale = torch.tensor([width / wide, height / tall])
    for name in MAPS:
        if name in found:
            part = found[name][None, None, :tall, :wide].to(torch.uint8)
            found[name] = F.interpolate(part, size=(height, width), mode="nearest-exact")[0, 0].long()
    if "boxes" in found:
        boxes = (found["boxes"] * scale.repeat(2)).clamp(min=0).minimum(torch.tensor([width, height] * 2))
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        found["boxes"] = boxes
        for name in ("boxes", "scores", "labels", "masks", "keypoints", "embeddings"):
            if name in found:
                found[name] = found[name][whole]
        if "masks" in found:
            found["masks"] = paste(found["masks"], found["boxes"], (height, width))
        if "keypoints" in found:
            found["keypoints"] = found["keypoints"] * torch.cat([scale, torch.ones(1)])
    if "flow" in found:
        part = F.interpolate(
            found["flow"][None, :, :tall, :wide], size=(height, width), mode="bilinear", align_corners=False
        )[0]
        found["flow"] = part * scale[:, None, None]
    return found


def followed(found: dict[str, Tensor], tracker: Tracker, frame: int) -> dict[str, Tensor]:
    """The outputs of a frame with ``tracks`` (-1 none), the boxes that the tracker dropped left out."""
    if "embeddings" not in found:
        return found
    keep, tracks = tracker.update(found["boxes"], found["scores"], found["labels"], found["embeddings"], frame)
    rows = ("boxes", "scores", "labels", "masks", "keypoints", "embeddings")
    return {**{k: v[keep] if k in rows else v for k, v in found.items()}, "tracks": tracks}


class DrivingTask(Task):
    """Ten driving tasks by one network."""

    name = "driving"
    does = "reads driving frames (ten tasks)"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> DrivingRecipe:
        return DrivingRecipe.of(spec.name, stage, **(overrides or {}))  # type: ignore[return-value]

    def open(self, source: Any, *, seed: int = 0, missing: str = "stop") -> DrivingFrames:
        """Open driving frames.

        Args:
            source: BDD100K's folder (with images and labels), or sample:driving: scenes that are drawn, no photographs.
            missing: pictures that a label file names and that are not there: stop or skip.
        """
        if isinstance(source, DrivingFrames):
            return source
        if str(source) == "sample:driving":
            return drawn(seed=0)
        if str(source).startswith("sample:"):
            raise DataError(f"{source}: the driving scenes that are drawn here are sample:driving")
        return open_folder(source, missing)

    def prepare(self, job: Job) -> None:
        model = set(dict(job.model_options).get("tasks", TASKS))
        wanted = set(job.how.tasks or TASKS) & model
        counts = job.data.counts()
        if not any(counts[t] for t in wanted):
            raise DataError(
                f"no training frame of {job.data.name} has a label of {', '.join(sorted(wanted))}; choose other tasks or data"
            )

    def build(self, job: Job) -> nn.Module:
        network = create_model(job.model, pretrained=job.pretrained, **job.model_options)
        if job.checkpoint:
            load_weights(network, job.checkpoint)
        return network

    def greeting(self, job: Job) -> Sequence[str]:
        counts = ", ".join(f"{t} {n}" for t, n in job.data.counts().items() if n)
        return [
            f"{len(job.data.train)} frames to train on, {len(job.data.val)} held out",
            f"training frames with labels of: {counts}", *job.data.notes,
        ]  # fmt: skip

    def about(self, job: Job) -> dict[str, Any]:
        short = job.how.input_size or (max(job.how.sides()) if job.how.sides() else 0)
        return {
            "preprocessing": dict(job.entry.preprocessing),
            "short": int(short),
            "longest": job.how.longest_side,
            "drawn": job.data.drawn,
        }

    def module(self, job: Job) -> Driving:
        return Driving(job.network, job.how, job.run.seed, job.entry.preprocessing)

    def loaders(self, job: Job) -> PairLoaders:
        how, some = job.how, set(job.how.tasks or TASKS)
        frames = [f for f in job.data.train if some & set(f.labels) or how.pseudo]
        sides = (how.input_size,) if how.input_size else tuple(int(s) for s in how.sides())
        train = Pairs(frames, tuple(some), sides, how.longest_side, how.flip)
        return PairLoaders(train, job.data.val, min(how.batch_size, len(train)), job.run.workers, job.run.seed)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        logged = {k.removeprefix("train_"): v for k, v in fitted.logged.items() if k.startswith("train_")}
        return {"losses": logged, "frames": len(job.data.train), "held_out": len(job.data.val), "drawn": job.data.drawn}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        on = " drawn" if figures.get("drawn") else ""
        return [
            f"loss {figures['losses'].get('loss', float('nan')):.3f} on {figures['frames']}{on} frames after {figures['epochs']} epochs; weights: "
            f"{folder / 'model.safetensors'}",
            f"next: offprint evaluate {folder}; offprint predict FRAME --model {folder}",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], checkpoint_path=str(folder / "model.safetensors"), **options)
        return Ready(self, model.eval(), about["model"], about, folder)

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        return Ready(
            self,
            model,
            name,
            {"options": dict(options), "preprocessing": dict(entry(name).preprocessing), "short": 0, "longest": 0},
        )

    @torch.no_grad()
    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        part: str = "val",
        most: int = 0,
        memory_frames: int = 10,
        init_score: float = 0.7,
        object_score: float = 0.3,
        baselines: str = "",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Scores of the tasks that the frames are labelled for (%), and the VTDA where baselines are given.

        Args:
            part: train or val.
            most: frames at most, 0 for all.
            memory_frames: after so many frames unseen a track is forgotten.
            init_score: score from which a box begins a track.
            object_score: score from which a box goes on with one.
            baselines: a json of score names and their values of single-task networks, lists; see offprint.models.detection.vtdnet.vtda.
        """
        data = self.own_source(ready) if data is None else data
        if part not in ("train", "val"):
            raise OffprintError(f"part={part!r}; choose train or val")
        frames = self.open(
            data, **({"missing": "skip"} if ready.about.get("data_options", {}).get("missing") == "skip" else {})
        )
        chosen = sorted(getattr(frames, part), key=lambda f: (f.video, f.index, f.name))[: most or None]
        if progress:
            progress(total=len(chosen))
        figures = scored(ready, chosen, Tracker(init_score, object_score, memory_frames=memory_frames), progress)
        if not figures:
            raise DataError(f"no frame of {frames.name} is labelled for a task of {ready.name}")
        if baselines:
            given = json.loads(Path(baselines).read_text())
            groups = {g: [n for n in names if n in figures and n in given] for g, names in GROUPS.items()}
            total = vtda(figures, given, {g: n for g, n in groups.items() if n})
            figures |= {f"vtda_{g}": v for g, v in total.groups.items()} | {"vtda": total.total}
        notes = list(frames.notes) if frames.drawn else []
        return Figures(
            [dict(figures)], notes, figures=figures, units={k: " %" for k in figures if not k.startswith("vtda")}
        )

    @torch.no_grad()
    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        video: bool = False,
        memory_frames: int = 10,
        score: float = 0.05,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Drives:
        """All that the network says of frames: tags, areas, lanes, objects with masks and joints; of a video tracks and flow.

        Args:
            inputs: picture files, and folders of them.
            video: the pictures are frames of one video, in the order of their names.
            memory_frames: after so many frames unseen a track is forgotten.
            score: lowest score of a box.
            on_error: a picture that cannot be read: stop or skip.
        """
        if on_error not in ("stop", "skip"):
            raise OffprintError(f"on_error={on_error!r}; choose stop or skip")
        files, reasons, read = pictures_in(inputs), [], []
        for file in files:
            try:
                read.append((file, np.array(read_picture(file))))
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
        if progress:
            progress(total=len(read))
        found, tracker = Drives([], left_out(reasons)), Tracker(memory_frames=memory_frames)
        tensors = [torch.from_numpy(a).permute(2, 0, 1) for _, a in read]
        for i, (file, array) in enumerate(read):
            after = tensors[i + 1] if video and i + 1 < len(read) and tensors[i + 1].shape == tensors[i].shape else None
            said = outputs(
                ready.model, tensors[i], ready.about["preprocessing"], _sizes(ready), after, score_threshold=score
            )
            said = followed(said, tracker, i) if video else said
            row: dict[str, Any] = {"image": str(file)}
            for name, kinds in (("weather", WEATHERS), ("scene", SCENES)):
                if name in said:
                    row |= {name: kinds[int(said[name].argmax())], f"{name}_probability": float(said[name].max())}
            if "boxes" in said:
                row["objects"] = objects_of(said)
            found.rows.append(row)
            found.pictures.append(array)
            found.maps.append({k: said[k].numpy() for k in (*MAPS, "masks", "flow") if k in said})
            if progress:
                progress(text=file.name)
        return found

    def sample(self, ready: Ready) -> Tensor | None:
        return ready.model.example_input()


def _sizes(ready: Ready) -> Sizes:
    return Sizes(int(ready.about.get("short", 0)), int(ready.about.get("longest", 0)))


def scored(
    ready: Ready, frames: Sequence[Frame], tracker: Tracker, progress: Callable[..., None] | None = None
) -> dict[str, float]:
    """Scores (%) of a network on frames in the order of their videos."""
    scores, video, number = DrivingScores(), None, 0
    for i, frame in enumerate(frames):
        picture, target = frame.read()
        following = (
            frames[i + 1] if i + 1 < len(frames) and frame.video and frames[i + 1].video == frame.video else None
        )
        after = following.read() if following is not None and "mots" in target["known"] else None
        said = outputs(
            ready.model, picture, ready.about["preprocessing"], _sizes(ready), None if after is None else after[0]
        )
        size = (int(picture.shape[-2]), int(picture.shape[-1]))
        tags = {k: int(said[k].argmax()) for k in ("weather", "scene") if k in said}
        scores.update(target, {**said, **tags}, size)
        if frame.video and "embeddings" in said:
            number = number + 1 if frame.video == video else 0
            video = frame.video
            scores.associate(target, followed(said, tracker, number), frame.video)
        if after is not None and "flow" in said and "mots" in after[1]["known"]:
            scores.moved(target, after[1], said["flow"])
        if progress:
            progress(text=frame.name)
    return scores.figures()


register_task(DrivingTask())
