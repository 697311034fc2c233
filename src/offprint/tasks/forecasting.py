"""Forecasting as a task: series in a table, windows of context and horizon, the last value repeated as the baseline beside.

A model of this task is built with ``variables=M, context=L, horizon=H`` and maps (B, M, L) to (B, M, H): all variables of L steps to
those of the next H. One whose own arguments have other names says so in a class attribute, such as
``series_arguments = {"variables": "nvars", "context": "seq_len", "horizon": "target_window"}``. Its recipe is a
:class:`SeriesRecipe`. Series reach it normalised by the mean and spread of each variable in the training part.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from offprint.data.images import EpochSampler, Seeded
from offprint.data.series import SUFFIXES, Series, read_series
from offprint.errors import DataError, OffprintError, unknown
from offprint.models.registry import Entry, entry
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.folder import WEIGHTS
from offprint.tasks.results import Figures, Result, canvas, finish
from offprint.tasks.running import Fitted, RecipeTask

ARGUMENTS = ("variables", "context", "horizon")
LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}
PANELS = 12  # of a drawing


@dataclass(frozen=True)
class SeriesRecipe:
    """How a forecaster is trained: Adam or AdamW, and a rate that stays, or is multiplied by ``decay_rate`` each epoch.

    ``decay_from`` is the first epoch (from 1) with a smaller rate; ``schedule`` ``cosine`` falls to 0 instead. ``patience`` is epochs
    without a better validation error before the end (0: none); ``clip_grad`` 0 clips nothing; ``data`` is what it is stated for.
    """

    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epochs: int = 10
    batch_size: int = 32
    loss: str = "mse"
    schedule: str = "step"
    decay_rate: float = 1.0
    decay_from: int = 2
    clip_grad: float = 0.0
    patience: int = 3
    data: str = ""

    def __post_init__(self):
        for name, known in (("optimizer", ("adam", "adamw")), ("schedule", ("step", "cosine")), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for name in ("lr", "epochs", "batch_size", "decay_rate"):
            if not getattr(self, name) > 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must be above 0")
        for name in ("weight_decay", "clip_grad", "patience"):
            if not getattr(self, name) >= 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must not be negative")

    @classmethod
    def of(cls, model: str, stage: str = "training", **overrides: Any) -> SeriesRecipe:
        """The recipe of a model with fields overridden.

        Raises:
            OffprintError: an override names no field, or the model has no such stage.
        """
        from offprint.tasks.recipe import stated

        known = {f.name for f in dataclasses.fields(cls)}
        fields = {**stated(model, stage), **overrides}
        for name in fields:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    def rate(self, progress: float) -> float:
        """The factor on ``lr`` after so many epochs."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress / self.epochs)))
        return self.decay_rate ** max(0, int(progress) + 2 - self.decay_from)


@dataclass
class TimeSplit:
    """Series and their parts in time: what is trained on, then what is validated on, then what is tested on."""

    series: Series
    train_fraction: float
    val_fraction: float

    def __post_init__(self):
        if not (
            0 < self.train_fraction < 1 and 0 < self.val_fraction < 1 and self.train_fraction + self.val_fraction < 1
        ):
            raise OffprintError(
                f"train_fraction={self.train_fraction}, val_fraction={self.val_fraction}; each must lie between 0 and 1, and "
                "they must leave a part to test on"
            )

    @property
    def digest(self) -> str:
        return self.series.digest

    def bounds(self, part: str) -> tuple[int, int]:
        """First row and the row after the last one of ``train``, ``val``, ``test`` or ``all``."""
        n = len(self.series)
        train = math.floor(n * self.train_fraction + 1e-9)
        test = math.floor(n * (1 - self.train_fraction - self.val_fraction) + 1e-9)
        found = {"train": (0, train), "val": (train, n - test), "test": (n - test, n), "all": (0, n)}
        if part not in found:
            raise unknown("part of the series", part, found)
        return found[part]

    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each column in the training part; 1 where it does not vary."""
        values = self.series.values[slice(*self.bounds("train"))]
        std = values.std(0)
        return values.mean(0), np.where(std > 0, std, 1.0)

    def windows(self, part: str, context: int, horizon: int, scale: tuple[np.ndarray, np.ndarray]) -> Windows:
        """Windows whose horizon lies in a part; the context of the first may reach back into the part before.

        Raises:
            DataError: none fits.
        """
        first, end = self.bounds(part)
        start = max(0, first - context)
        count = end - start - context - horizon + 1
        if count < 1:
            raise DataError(
                f"{self.series.name}: the part {part!r} has {end - first} of {len(self.series)} steps"
                + (f" and {first} before it" if first else "")
                + f", too few for a window of {context} steps and a horizon of {horizon}; give a longer series, or a smaller "
                "context or horizon"
            )
        mean, std = scale
        values = torch.from_numpy(((self.series.values[start:end] - mean) / std).T.copy()).float()
        return Windows(values, context, horizon)


class Windows(Dataset):
    """All windows of normalised series (variables, steps): pairs of (variables, context) and (variables, horizon)."""

    def __init__(self, values: Tensor, context: int, horizon: int):
        self.values, self.context, self.horizon = values, context, horizon

    def __len__(self) -> int:
        return self.values.shape[1] - self.context - self.horizon + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        middle = index + self.context
        return self.values[:, index:middle], self.values[:, middle : middle + self.horizon]


class Forecaster(RecipeTask):
    """A network trained on windows; the best epoch is the one with the least squared error on the validation part."""

    def training_step(self, batch, batch_idx) -> Tensor:
        x, y = batch
        loss = LOSSES[self.recipe.loss](self.model(x), y)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(x))
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        x, y = batch
        guess = self.model(x)
        size = {"batch_size": len(x), "sync_dist": True}
        self.log("val_mse", F.mse_loss(guess, y), prog_bar=True, **size)
        self.log("val_mae", F.l1_loss(guess, y), **size)

    def configure_optimizers(self):
        how = self.recipe
        kind = torch.optim.AdamW if how.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(self.model.parameters(), lr=how.lr, betas=how.betas, weight_decay=how.weight_decay)
        steps = max(1, int(self.trainer.estimated_stepping_batches) // how.epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: how.rate(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WindowData(L.LightningDataModule):
    """Loaders over windows whose order depends on (seed, epoch) alone."""

    def __init__(self, train: Windows, val: Windows, batch_size: int, workers: int, seed: int):
        super().__init__()
        self.train, self.val = Seeded(train, seed), val
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        order = EpochSampler(len(self.train), trainer.current_epoch, self.seed, trainer.global_rank, trainer.world_size)
        full = len(order) >= self.batch_size
        return DataLoader(self.train, self.batch_size, sampler=order, num_workers=self.workers, drop_last=full)

    def val_dataloader(self) -> DataLoader:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        val = self.val if world == 1 else torch.utils.data.Subset(self.val, range(rank, len(self.val), world))
        return DataLoader(val, self.batch_size, num_workers=self.workers)


@dataclass
class Forecast(Result):
    """Forecasts in the units of the data. Each row: the series, the step (1 is the next), its time where it is known, and for
    each column the forecast and, as ``COLUMN (repeat last)``, the last known value.

    ``history`` has for each series its name and the steps that the model read, (context, columns).
    """

    columns: list[str] = field(default_factory=list)
    history: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def draw(self, path: str | Path) -> Path:
        """What was read, the forecast, and the last value repeated, a panel a column."""
        panels = [(name, past, j) for name, past in self.history for j in range(len(self.columns))][:PANELS]
        width = min(3, len(panels))
        high = -(-len(panels) // width)
        figure, axes = canvas(4.2 * width, 2.6 * high, high, width)
        flat = [axes] if width * high == 1 else list(axes.flat)
        for place in flat[len(panels) :]:
            place.axis("off")
        for place, (name, past, j) in zip(flat, panels, strict=False):
            column = self.columns[j]
            rows = [r for r in self.rows if r["series"] == name]
            after = [r["step"] for r in rows]
            place.plot(range(1 - len(past), 1), past[:, j], color="#555555", label="known")
            place.plot(after, [r[column] for r in rows], color="#3b6ea5", label="forecast")
            place.plot(
                after, [r[f"{column} (repeat last)"] for r in rows], color="#b5651d", ls="--", label="repeat last"
            )
            place.set_title(column if len(self.history) == 1 else f"{Path(name).name}: {column}", fontsize=9)
        flat[0].legend(fontsize=7)
        return finish(figure, path)


class Forecasting(Task):
    """Forecasts of the next steps of series."""

    name = "forecasting"
    does = "forecasts series"
    goal = "val_mse"
    mode = "min"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> SeriesRecipe:
        return SeriesRecipe.of(spec.name, stage, **(overrides or {}))

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        columns: tuple[str, ...] = (),
        time: str = "",
        missing: str = "stop",
        train_fraction: float = 0.7,
        val_fraction: float = 0.1,
    ) -> TimeSplit:
        """Open series.

        Args:
            source: a CSV, TSV or Parquet file with a row per step in time order, a .npy file or an array (steps, columns).
            columns: a column to forecast, may be repeated; default all that hold numbers.
            time: column of times; default one called date, time, datetime, timestamp or ds.
            missing: a cell without a number: stop, or previous (the value before it stands for it).
            train_fraction: share of the steps, the first ones, that is trained on and that normalises.
            val_fraction: share of the steps after them that says which epoch is kept; the rest is tested on.
        """
        if isinstance(source, TimeSplit):
            return source
        return TimeSplit(read_series(source, columns, time, missing), train_fraction, val_fraction)

    def prepare(self, job: Job, *, context: int | None = None, horizon: int | None = None) -> None:
        """Settle the windows.

        Args:
            context: steps that the model reads; default the model's own.
            horizon: steps that it forecasts; default the model's own.
        """
        names = argument_names(job.entry)
        data: TimeSplit = job.data
        given = {"variables": len(data.series.columns), "context": context, "horizon": horizon}
        options = {**job.entry.kwargs, **job.model_options, **{names[k]: v for k, v in given.items() if v is not None}}
        for key in ("context", "horizon"):
            value = options.get(names[key], defaults(job.entry).get(names[key]))
            if not isinstance(value, int) or value < 1:
                raise OffprintError(f"{key}={value!r}; give a whole number of steps, 1 or more")
            options[names[key]] = value
        job.model_options |= {names[k]: options[names[k]] for k in ARGUMENTS}
        context, horizon = (options[names[k]] for k in ("context", "horizon"))
        scale = data.scale()
        job.settled = {
            "context": context, "horizon": horizon, "scale": scale,
            "train": data.windows("train", context, horizon, scale), "val": data.windows("val", context, horizon, scale),
        }  # fmt: skip

    def greeting(self, job: Job) -> Sequence[str]:
        series, settled = job.data.series, job.settled
        return [
            f"{len(series)} steps of {', '.join(series.columns[:8])}{', ...' if len(series.columns) > 8 else ''}: "
            f"{len(settled['train'])} windows to train on, {len(settled['val'])} to validate on; {settled['context']} steps give "
            f"the next {settled['horizon']}",
            *series.notes,
        ]

    def about(self, job: Job) -> dict[str, Any]:
        data, (mean, std) = job.data, job.settled["scale"]
        return {
            "columns": data.series.columns, "context": job.settled["context"], "horizon": job.settled["horizon"],
            "mean": mean.tolist(), "std": std.tolist(), "train_fraction": data.train_fraction, "val_fraction": data.val_fraction,
        }  # fmt: skip

    def module(self, job: Job) -> Forecaster:
        return Forecaster(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> WindowData:
        train, val = job.settled["train"], job.settled["val"]
        return WindowData(train, val, min(job.how.batch_size, len(train)), job.run.workers, job.run.seed)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        context, horizon, scale = (job.settled[k] for k in ("context", "horizon", "scale"))
        figures: dict[str, Any] = {"val_mse": fitted.best}
        try:
            test = job.data.windows("test", context, horizon, scale)
        except DataError:
            return figures
        ours, plain = _errors(job.network, test, job.how.batch_size)
        return figures | ours | {f"{k}_repeat_last": v for k, v in plain.items()}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        if "mse" in figures:
            said = (
                f"MSE {figures['mse']:.4f}, MAE {figures['mae']:.4f} on the test part (the last value repeated: "
                f"{figures['mse_repeat_last']:.4f}, {figures['mae_repeat_last']:.4f}), in units of the training part's spread; "
            )
        else:
            said = "the test part is too short for a window; "
        return [
            f"{said}{figures['epochs']} epochs ({figures['weights_are']}); weights: {folder / WEIGHTS}",
            f"next: offprint predict SERIES --model {folder} --out forecast.csv",
        ]

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        found = super().released(name, pretrained, checkpoint, options)
        spec, names = entry(name), argument_names(entry(name))
        sizes = {**defaults(spec), **spec.kwargs, **options}
        found.about |= {k: sizes.get(names[k]) for k in ("context", "horizon")}
        return found

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        part: str = "test",
        time: str = "",
        missing: str = "stop",
        batch_size: int = 256,
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Squared and absolute error over all windows of a part, in units of the training part's spread, the last value repeated beside.

        Args:
            part: train, val, test or all.
            time: column of times, where the data are given anew.
            missing: a cell without a number: stop, or previous.
            batch_size: windows at a time; memory depends on it.
        """
        about = ready.about
        if data is None:
            told = about.get("data_options", {})
            data, time, missing = about.get("source"), time or told.get("time", ""), told.get("missing", missing)
            if Path(str(data)).suffix.lower() not in SUFFIXES:
                raise OffprintError(f"no series to evaluate on; give --data FILE ({', '.join(SUFFIXES)})")
        split = self.open(
            data, columns=tuple(about.get("columns", ())) if isinstance(data, str | Path) else (), time=time, missing=missing,
            train_fraction=about.get("train_fraction", 0.7), val_fraction=about.get("val_fraction", 0.1),
        )  # fmt: skip
        scale = (np.array(about["mean"]), np.array(about["std"])) if "mean" in about else split.scale()
        self._check_columns(ready, split.series)
        windows = split.windows(part, about["context"], about["horizon"], scale)
        ours, plain = _errors(ready.model, windows, batch_size, progress)
        return Figures(
            [ours], split.series.notes, figures={**ours, "windows": len(windows)}, beside={"repeat last": plain}
        )

    @staticmethod
    def _check_columns(ready: Ready, series: Series) -> None:
        known = ready.about.get("columns")
        if known is not None and len(known) != len(series.columns):
            raise DataError(
                f"{series.name} has {len(series.columns)} columns of numbers, the model was trained on {len(known)}: {', '.join(known)}"
            )

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        time: str = "",
        missing: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Forecast:
        """Forecast what comes after the last row of each file.

        Args:
            inputs: files of series with the columns that the model was trained on, or arrays (steps, columns).
            time: column of times; default as in the training.
            missing: a cell without a number: stop, or previous.
        """
        about, context = ready.about, ready.about["context"]
        time = time or about.get("data_options", {}).get("time", "")
        items = [inputs] if isinstance(inputs, np.ndarray | Tensor | Series) else list(inputs)
        found = Forecast([], columns=list(about.get("columns", [])))
        if progress:
            progress(total=len(items))
        for i, item in enumerate(items):
            columns = tuple(about.get("columns", ())) if isinstance(item, str | Path) else ()
            series = read_series(item, columns, time, missing, f"series {i + 1}")
            self._check_columns(ready, series)
            found.columns = found.columns or series.columns
            if len(series) < context:
                raise DataError(
                    f"{series.name} has {len(series)} steps, the model reads the last {context}; give at least that many"
                )
            past = series.values[-context:]
            if "mean" in about:
                mean, std = np.array(about["mean"]), np.array(about["std"])
            else:
                mean, std = past.mean(0), np.where(past.std(0) > 0, past.std(0), 1.0)
                found.notes.append(
                    f"{series.name}: normalised by the steps that were read, since the model comes without a scale"
                )
            ahead = _forecast(ready.model, ((past - mean) / std).T) * std[:, None] + mean[:, None]
            times = series.after(ahead.shape[1])
            if series.times and not times:
                found.notes.append(
                    f"{series.name}: its times are not spaced evenly, so that the forecast has step numbers alone"
                )
            for step in range(ahead.shape[1]):
                row: dict[str, Any] = {"series": series.name, "step": step + 1}
                if times:
                    row["time"] = _told(times[step])
                row |= {c: float(ahead[j, step]) for j, c in enumerate(found.columns)}
                row |= {f"{c} (repeat last)": float(past[-1, j]) for j, c in enumerate(found.columns)}
                found.rows.append(row)
            found.history.append((series.name, past))
            found.notes += [f"{series.name}: {note}" for note in series.notes]
            if progress:
                progress(text=series.name)
        return found

    def sample(self, ready: Ready) -> Tensor | None:
        variables = len(ready.about["columns"]) if "columns" in ready.about else None
        if variables is None:
            return None
        return torch.randn(1, variables, ready.about["context"], generator=torch.Generator().manual_seed(0))


def argument_names(spec: Entry) -> dict[str, str]:
    """What a model calls its variables, context and horizon."""
    return {**{k: k for k in ARGUMENTS}, **getattr(spec.build, "series_arguments", {})}


def defaults(spec: Entry) -> dict[str, Any]:
    """Default values of a model's arguments."""
    found = inspect.signature(spec.build).parameters
    return {k: p.default for k, p in found.items() if p.default is not inspect.Parameter.empty}


def _told(time: Any) -> Any:
    return time.isoformat(sep=" ") if isinstance(time, dt.datetime) else time


@torch.no_grad()
def _forecast(model: nn.Module, past: np.ndarray) -> np.ndarray:
    """(variables, context) to (variables, horizon)."""
    like = next(model.parameters())
    return model(torch.from_numpy(past).to(like)[None])[0].double().cpu().numpy()


@torch.no_grad()
def _errors(
    model: nn.Module, windows: Windows, batch_size: int, progress: Callable[..., None] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean squared and absolute error over all windows, of the model and of the last value repeated."""
    model.eval()
    like = next(model.parameters())
    sums = {"ours": [0.0, 0.0], "plain": [0.0, 0.0]}
    loader = DataLoader(windows, batch_size)
    if progress:
        progress(total=len(loader))
    for x, y in loader:
        for name, guess in (("ours", model(x.to(like)).cpu()), ("plain", x[..., -1:])):
            off = guess.double() - y.double()
            sums[name][0] += float(off.square().sum())
            sums[name][1] += float(off.abs().sum())
        if progress:
            progress(text="windows")
    count = len(windows) * windows.values.shape[0] * windows.horizon
    ours, plain = ({"mse": s / count, "mae": a / count} for s, a in (sums["ours"], sums["plain"]))
    return ours, plain


register_task(Forecasting())
