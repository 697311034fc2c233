"""Brain scans as tasks: pre-training without labels, and classes or values from few of them, with runs, figures and predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprint.data.brain_series import (
    Labels,
    Scans,
    check_series,
    make_labels,
    open_series,
    read_labels,
    split_scans,
)
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.models.checkpoint import save_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry
from offprint.tasks.brain import (
    BrainFineTuning,
    BrainPretraining,
    BrainRecipe,
    ScanData,
    held_out_draw,
    over_folds,
    part_length,
    score,
)
from offprint.tasks.brain_use import (
    SHARED,
    batches,
    csv_text,
    describe,
    digest,
    each,
    fitting,
    head_of,
    load_encoder,
    load_run,
    mark_of,
    rows_of,
    stack,
    write_table,
)
from offprint.tasks.contract import Job, Ready, Task, Trained, register_task
from offprint.tasks.folder import WEIGHTS
from offprint.tasks.results import Figures, Result, canvas, finish
from offprint.tasks.running import Fitted


def _length(options: Mapping[str, Any]) -> int | None:
    """Frames of each scan that a model reads in a step, as its arguments or their default say."""
    return options.get("length", 600)


class _Scans(Task):
    """What both stages share: scans, the arguments of a model that follow from them, STAGIN's recipe."""

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> BrainRecipe:
        return BrainRecipe.of(spec.name, **(overrides or {}))

    def settle(self, job: Job, scans: Scans, before: Mapping[str, Any]) -> None:
        """The model's arguments: its own, those of the weights it starts from, those of the scans, and what was asked for."""
        options = {**job.entry.kwargs, **{k: v for k, v in before.get("options", {}).items() if k in SHARED}}
        options |= job.model_options
        check_series(dict(zip(scans.ids, scans.series, strict=True)), options.get("window", 50))
        if before and before["options"]["num_regions"] != scans.num_regions:
            raise DataError(
                f"{job.checkpoint} was trained on {before['options']['num_regions']} regions, the scans have {scans.num_regions}; "
                "use scans of the same parcellation"
            )
        options["num_regions"] = scans.num_regions
        options["length"] = part_length(scans, _length(options))
        job.model_options = options


class ConnectivityPretraining(_Scans):
    """Spatio-temporal masked pre-training on scans without labels."""

    name = "connectivity-pretraining"
    does = "pre-trains on brain scans without labels"

    def open(self, source: Any, *, seed: int = 0) -> Scans:
        """Open scans.

        Args:
            source: a folder of .npy, .csv or .tsv files (frames x regions), one per subject; one .npy or .npz of all; or arrays.
        """
        return source if isinstance(source, Scans) else open_series(source)

    def digest(self, data: Scans) -> str:
        return digest(data)

    def prepare(
        self, job: Job, *, val_fraction: float = 0.1, window: int | None = None, stride: int | None = None
    ) -> None:
        """Hold scans out, and settle the windows.

        Args:
            val_fraction: share of the scans that reconstruction is measured on.
            window: frames per window; default 50.
            stride: frames between windows; default 3.
        """
        scans = job.data
        job.model_options |= {k: v for k, v in (("window", window), ("stride", stride)) if v is not None}
        self.settle(job, scans, {})
        held = round(val_fraction * len(scans))
        if not 0 <= held < len(scans):
            raise OffprintError(f"val_fraction={val_fraction} leaves none of {len(scans)} scans to train on")
        order = np.random.default_rng(job.run.seed).permutation(len(scans)).tolist()
        shown, hidden = scans.take(sorted(order[held:])), scans.take(sorted(order[:held]))
        job.settled = {"val_fraction": val_fraction, "shown": shown, "hidden": hidden}

    def build(self, job: Job) -> nn.Module:
        if job.pretrained or job.checkpoint:
            raise OffprintError(f"{job.model} starts from random weights; leave --pretrained and --checkpoint out")
        return create_model(job.model, **job.model_options)

    def about(self, job: Job) -> dict[str, Any]:
        return {"val_fraction": job.settled["val_fraction"], "scans": len(job.data), "data": job.data.about}

    def module(self, job: Job) -> BrainPretraining:
        return BrainPretraining(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> ScanData:
        shown, hidden = job.settled["shown"], job.settled["hidden"]
        return ScanData(
            (shown, torch.zeros(len(shown))), (hidden, torch.zeros(len(hidden))) if len(hidden) else None,
            job.model_options["length"], min(job.how.batch_size, len(shown)), job.run.workers, job.run.seed,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        losses = _reconstruction(job.network, job.settled["hidden"], job.how.batch_size, job.run.seed)
        return {**losses, "scans": len(job.data), "data": job.data.about}

    def save(self, job: Job) -> None:
        save_weights(job.network.encoder, job.folder / WEIGHTS)

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        said = []
        if figures["loss"] is not None:
            said.append(
                f"{figures['scans']} scans, {figures['epochs']} epochs; on held-out scans the loss is {figures['loss']:.4f} "
                f"(hidden regions {figures['spatial_node']:.4f}, edges {figures['spatial_edge']:.4f}; windows between others "
                f"{figures['temporal_node']:.4f}, {figures['temporal_edge']:.4f})"
            )
        said += [f"the scans are {figures['data']}"] if figures["data"] else []
        next_ = f"next: offprint train --model {folder} --task connectivity --data SERIES --labels labels.csv --target COLUMN"
        return [*said, f"weights: {folder / WEIGHTS}", next_]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        model, spec = load_run(folder)
        return Ready(self, model, about["model"], spec, folder)

    def _no_target(self, ready: Ready) -> OffprintError:
        return OffprintError(
            f"{ready.folder} is a pre-trained encoder, which predicts nothing; fine-tune it: "
            f"offprint train --model {ready.folder} --task connectivity --data SERIES --labels FILE --target COLUMN; "
            "or give its vectors out: offprint brain embed"
        )

    def evaluate(self, ready: Ready, data: Any = None, *, progress: Callable[..., None] | None = None) -> Figures:
        raise self._no_target(ready)

    def predict(self, ready: Ready, inputs: Any, *, progress: Callable[..., None] | None = None) -> Result:
        raise self._no_target(ready)


@torch.no_grad()
def _reconstruction(network: nn.Module, scans: Scans, size: int, seed: int) -> dict[str, float | None]:
    """Losses on whole scans, the mean over scans."""
    sums: dict[str, float | None] = dict.fromkeys(
        ("loss", "spatial_node", "spatial_edge", "temporal_node", "temporal_edge")
    )
    for index, group in enumerate(batches(scans, size) if len(scans) else []):
        out = network(stack(scans, group), whole=True, generator=held_out_draw(seed, index))
        for name, value in out._asdict().items():
            sums[name] = (sums[name] or 0.0) + float(value) * len(group) / len(scans)
    return sums


@dataclass
class Labelled:
    """Labelled scans: those that are shown and those that are held out."""

    scans: Scans
    labels: Labels
    shown: list[int]
    hidden: list[int]
    fold: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and spread of the shown targets, where they are numbers."""
        if self.labels.classes:
            return 0.0, 1.0
        values = self.labels.values[self.shown]
        return float(values.mean()), float(values.std()) or 1.0

    @property
    def goals(self) -> Tensor:
        """What the model learns to say."""
        values, (mean, std) = self.labels.values, self.scale
        return torch.from_numpy(values) if self.labels.classes else torch.from_numpy((values - mean) / std).float()


@dataclass
class ScanPredictions(Result):
    """Predicted classes or values of scans. Each row: ``subject``, the target, and per class a probability."""

    target: str = "label"

    def draw(self, path: str | Path) -> Path:
        """How the predictions are spread."""
        figure, axes = canvas(6, 4)
        values = [row[self.target] for row in self.rows]
        if all(isinstance(v, int | float) for v in values):
            axes.hist(values, bins=20, color="#3b6ea5")
        else:
            names = sorted(set(values))
            axes.bar(names, [values.count(n) for n in names], color="#3b6ea5")
        axes.set_xlabel(self.target)
        axes.set_ylabel("scans")
        return finish(figure, path)


class Connectivity(_Scans):
    """Classes or values of brain scans, by classifiers that start from a pre-trained encoder or from nothing."""

    name = "connectivity"
    does = "predicts from brain scans"
    made = ("held_out.csv",)

    def inherit(self, about: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if about["task"] == self.name:
            return super().inherit(about)
        return "stagin", {}

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        labels: str | None = None,
        target: str = "label",
        kind: str = "auto",
        missing: str = "stop",
        folds: int = 5,
        fold: int = 0,
    ) -> Labelled:
        """Open labelled scans.

        Args:
            source: a folder of .npy, .csv or .tsv files (frames x regions), one per subject; one .npy or .npz of all; or arrays.
            labels: CSV or TSV with a column of subjects and the target's; or one value per scan in their order.
            target: column to predict: words or a few whole numbers are classes, else a number.
            kind: classification, regression or auto.
            missing: a scan without a label: stop or skip.
            folds: one part in so many is held out, classes spread evenly; 1 trains on all and tests nothing.
            fold: which part is held out.
        """
        scans = source if isinstance(source, Scans) else open_series(source)
        if labels is None:
            raise OffprintError(
                "no labels were given; give --labels FILE.csv with a column of subjects and --target COLUMN"
            )
        if isinstance(labels, str | Path):
            made, having = read_labels(labels, target, scans.ids, kind=kind, missing=missing)
            scans = scans.take(having)
        else:
            made = labels if isinstance(labels, Labels) else make_labels(list(labels), target, kind)
            if len(made.values) != len(scans):
                raise DataError(f"{len(made.values)} labels were given for {len(scans)} scans; expected one each")
        parts = (list(range(len(scans))), []) if folds == 1 else split_scans(made, len(scans), folds, fold, seed)
        return Labelled(scans, made, *parts, (folds, fold))

    def digest(self, data: Labelled) -> str:
        return digest(data.scans, data.labels)

    def train(self, job: Job) -> Trained:
        if not job.options.get("cross_validate"):
            return super().train(job)
        runs = []
        for k in range(int(job.options.get("folds", 5))):
            options = {**job.options, "cross_validate": False, "fold": k}
            part = replace(job, out=job.out / f"fold-{k}", options=options, model_options=dict(job.model_options))
            runs.append(super().train(part))
        figures = over_folds(runs)
        if runs[0].leader:
            atomic_write(job.out / "summary.json", json.dumps(figures, indent=1))
        return Trained(
            job.out.absolute(), job.model, self.name, figures, self.lines(figures, Path(job.out)), runs[0].leader
        )

    def prepare(
        self,
        job: Job,
        *,
        readout: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        cross_validate: bool = False,
    ) -> None:
        """Settle the model.

        Args:
            cross_validate: hold out each part in turn.
            readout: over regions: sero, garo or mean.
            window: frames per window; default that of the weights, else 50.
            stride: frames between windows; default that of the weights, else 3.
        """
        given = {"readout": readout, "window": window, "stride": stride}
        job.model_options |= {k: v for k, v in given.items() if v is not None}
        before = describe(job.checkpoint) if job.checkpoint is not None else {}
        self.settle(job, job.data.scans, before)
        job.model_options["num_classes"] = max(1, len(job.data.labels.classes))
        job.settled = {"before": before}

    def build(self, job: Job) -> nn.Module:
        network = create_model(job.model, **job.model_options)
        if job.pretrained:
            raise OffprintError(f"{job.model} has no released weights; start from a run or a file with --checkpoint")
        if job.checkpoint is not None:
            load_encoder(network, job.checkpoint)
        return network

    def about(self, job: Job) -> dict[str, Any]:
        data, before = job.data, job.settled["before"]
        return {
            "target": data.labels.name, "classes": list(data.labels.classes), "scale": list(data.scale), "folds": data.fold[0],
            "fold": data.fold[1], "scans": len(data.scans), "data": data.scans.about,
            "started_from": before.get("sha256", ""), "started_from_data": before.get("data", ""),
        }  # fmt: skip

    def module(self, job: Job) -> BrainFineTuning:
        return BrainFineTuning(job.network, job.how, len(job.data.labels.classes), job.run.seed)

    def loaders(self, job: Job) -> ScanData:
        data, goals = job.data, job.data.goals
        shown, hidden = data.scans.take(data.shown), data.scans.take(data.hidden)
        return ScanData(
            (shown, goals[data.shown]), (hidden, goals[data.hidden]) if data.hidden else None, job.model_options["length"],
            min(job.how.batch_size, len(shown)), job.run.workers, job.run.seed,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        data, size, metrics = job.data, job.how.batch_size, {}
        labels = data.labels
        if data.hidden:
            hidden = data.scans.take(data.hidden)
            logits = torch.cat([x for _, x in each(job.network, hidden, size, job.network.__call__)])
            order = [i for group in batches(hidden, size) for i in group]
            truth = labels.values[data.hidden][order]
            metrics = score(logits, truth, labels.classes, data.scale)
            rows = rows_of([hidden.ids[i] for i in order], logits, labels.classes, data.scale)
            written = [labels.classes[t] if labels.classes else f"{t:g}" for t in truth]
            mark = mark_of(data.scans)
            head = [*head_of(labels.name, labels.classes), "truth", *["source"] * len(mark)]
            table = csv_text([head, *([*row, t, *mark] for row, t in zip(rows, written, strict=True))])
            atomic_write(job.folder / "held_out.csv", table)
        return {"metrics": metrics, "trained_on": len(data.shown), "tested_on": len(data.hidden), "target": labels.name,
                "data": data.scans.about}  # fmt: skip

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        spread, runs = figures.get("spread") or {}, figures.get("folds") or [figures]
        named = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f}" + (f" ± {spread[name]:.2f}" if spread else "")
            for name, value in figures["metrics"].items()
        )
        said = [f"{figures['target']}: {named} on {sum(r['tested_on'] for r in runs)} held-out scans"] if named else []
        said.append(f"{'each fold ' if spread else ''}trained on {', '.join(str(r['trained_on']) for r in runs)} scans")
        said += [f"the scans are {figures['data']}"] if figures["data"] else []
        run = folder / Path(figures["weights"]).parent.name if spread else folder
        return [
            *said,
            f"weights: {run / WEIGHTS}",
            f"next: offprint predict SERIES --model {run} --out predictions.csv",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        model, spec = load_run(folder)
        return Ready(self, model, about["model"], spec, folder)

    def _said(self, ready: Ready, source: Any, size: int, progress) -> tuple[Scans, list[int], Tensor]:
        if "scale" not in ready.about:
            raise OffprintError(f"{ready.folder} is not the folder of a fine-tuning, so its outputs have no names")
        scans = fitting(source, ready.model, ready.folder)
        if progress:
            progress(total=len(scans))
        order, found = [], []
        for group, logits in each(ready.model, scans, size, ready.model.__call__):
            order += group
            found.append(logits)
            for _ in group if progress else ():
                progress(text="scans")
        back = torch.tensor(order).argsort()
        return scans, order, torch.cat(found)[back]

    def predict_to(self, ready: Ready, inputs: Any, path: Path | None = None, **options: Any) -> Result:
        if path is None or Path(path).suffix != ".csv" or ready.folder is None or "scale" not in ready.about:
            return super().predict_to(ready, inputs, path, **options)
        advance, state = options.get("progress"), {"done": 0}

        def told(done: int, total: int) -> None:
            if advance is None:
                return
            if not state["done"]:
                advance(total=total)
            for _ in range(done - state["done"]):
                advance(text="scans")
            state["done"] = done

        source = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs
        size = options.get("batch_size", 4)
        made = write_table(source, ready.folder, path, what="predictions", batch_size=size, progress=told)
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows: list[dict[str, Any]] = list(csv.DictReader(stream))
        notes = [f"the scans are {made['data']}"] if made["data"] else []
        if made["trained_on"] and made["trained_on"] != made["data"]:
            notes.append(f"the weights were trained on data that are {made['trained_on']}")
        return ScanPredictions(rows, notes, ready.about["target"])

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        labels: str | None = None,
        target: str | None = None,
        batch_size: int = 4,
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Figures on labelled scans: accuracies and AUROC in percent; or mean absolute error, r and R².

        Args:
            labels: CSV or TSV with a column of subjects and the target's.
            target: column to predict; default that of the run.
            batch_size: scans at once.
        """
        if data is None or labels is None:
            raise OffprintError("evaluating takes scans and their labels; give --data SERIES and --labels FILE.csv")
        scans, _, logits = self._said(ready, data, batch_size, progress)
        classes = ready.about["classes"]
        made, having = read_labels(
            labels, target or ready.about["target"], scans.ids, kind="classification" if classes else "regression"
        )
        truth = made.values
        if classes:
            odd = sorted(set(made.classes) - set(classes))
            if odd:
                raise DataError(
                    f"{labels} has the classes {', '.join(odd)}, which the model was not trained on ({', '.join(classes)})"
                )
            truth = np.array([classes.index(made.classes[v]) for v in made.values])
        figures = score(logits[having], truth, classes, tuple(ready.about["scale"]))
        return Figures.of({**figures, "scans": len(having)})

    def predict(
        self, ready: Ready, inputs: Any, *, batch_size: int = 4, progress: Callable[..., None] | None = None
    ) -> ScanPredictions:
        """Classes or values of scans.

        Args:
            inputs: scans, as for training.
            batch_size: scans at once.
        """
        source = (
            inputs[0] if isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], str | Path) else inputs
        )
        scans, _, logits = self._said(ready, source, batch_size, progress)
        classes, target = ready.about["classes"], ready.about["target"]
        mean, std = ready.about["scale"]
        rows = []
        for name, row in zip(scans.ids, logits, strict=True):
            if classes:
                p = row.softmax(0)
                rows.append({"subject": name, target: classes[int(p.argmax())],
                             **{f"p_{c}": round(float(v), 6) for c, v in zip(classes, p, strict=True)}})  # fmt: skip
            else:
                rows.append({"subject": name, target: float(row.squeeze(-1)) * std + mean})
        return ScanPredictions(rows, [f"the scans are {scans.about}"] if scans.about else [], target)


register_task(ConnectivityPretraining())
register_task(Connectivity())
