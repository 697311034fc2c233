"""Quality of pictures as a task: scores learnt from opinions, correlation with them, ratings of pictures of any size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from offprint.data.opinions import Opinion, Opinions, open_opinions, picture_tensor
from offprint.errors import DataError, OffprintError
from offprint.models.checkpoint import load_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry
from offprint.models.signals.topiq import emd_loss, nin_loss, opinion_score
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out, pictures_in
from offprint.tasks.recipe import Recipe
from offprint.tasks.restoration import psnr, ssim
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask

WHOLE = 2048 * 2048  # pixels of the largest picture that is rated in one piece
PIECE = 1024  # side of the pieces of larger ones


@dataclass(frozen=True)
class QualityRecipe(Recipe):
    """A recipe with the weights of its two losses: ``mse`` of scores in 0 to 1, and ``nin`` of norm-in-norm."""

    mse: float = 1.0
    nin: float = 1.0


# -- agreement with opinions -----------------------------------------------------------------------------------------
def correlations(said: Tensor | Sequence[float], truth: Tensor | Sequence[float]) -> dict[str, float]:
    """Pearson's (plcc), Spearman's (srcc) and Kendall's (krcc) correlation; 0 where one of them does not vary."""
    from scipy import stats

    a, b = (np.asarray(v, np.float64).ravel() for v in (said, truth))
    if len(a) != len(b) or len(a) < 2:
        raise OffprintError(f"correlations need two or more pairs, got {len(a)} and {len(b)} scores")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"plcc": 0.0, "srcc": 0.0, "krcc": 0.0}
    kinds = {"plcc": stats.pearsonr, "srcc": stats.spearmanr, "krcc": stats.kendalltau}
    return {name: float(kind(a, b)[0]) for name, kind in kinds.items()}


def logistic_fit(said: Sequence[float], truth: Sequence[float]) -> np.ndarray:
    """Scores brought to the scale of opinions by the logistic curve of VQEG, fitted by least squares:

    b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)). A straight line where the curve cannot be fitted.
    """
    from scipy.optimize import OptimizeWarning, curve_fit
    from scipy.special import expit

    x, y = (np.asarray(v, np.float64).ravel() for v in (said, truth))
    if np.ptp(x) == 0:
        return np.full_like(y, y.mean())
    spread = float(x.std())
    unit = (x - x.mean()) / spread
    curve = lambda v, b1, b2, b3, b4: b2 + (b1 - b2) * expit((v - b3) / (abs(b4) + 1e-9))  # noqa: E731
    rising = np.ptp(y) == 0 or np.corrcoef(x, y)[0, 1] >= 0
    ends = (y.max(), y.min()) if rising else (y.min(), y.max())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            found, _ = curve_fit(curve, unit, y, p0=[*ends, 0.0, 1.0], maxfev=20_000)
        fitted = curve(unit, *found)
    except (RuntimeError, TypeError):  # it does not converge, or there are fewer points than parameters
        fitted = np.full_like(y, np.nan)
    line = np.polyval(np.polyfit(unit, y, 1), unit)
    better = np.isfinite(fitted).all() and ((fitted - y) ** 2).sum() <= ((line - y) ** 2).sum()
    return fitted if better else line


def agreement(said: Sequence[float], truth: Sequence[float]) -> dict[str, float]:
    """srcc and krcc of scores with opinions, plcc and rmse after the logistic fit, and plcc_raw before it."""
    raw = correlations(said, truth)
    fitted = logistic_fit(said, truth)
    error = float(np.sqrt(np.mean((fitted - np.asarray(truth, np.float64)) ** 2)))
    return {
        "srcc": raw["srcc"], "krcc": raw["krcc"], "plcc": correlations(fitted, truth)["plcc"], "plcc_raw": raw["plcc"],
        "rmse": error,
    }  # fmt: skip


def ssim_of(a: Tensor, b: Tensor, rows: int = 512) -> float:
    """SSIM on luma of (3, H, W) in [0, 255], a strip of rows at a time, so that memory does not grow with the picture."""
    total, places = 0.0, 0
    for top in range(0, max(1, a.shape[1] - 10), rows):
        x, y = (v[:, top : top + rows + 10] for v in (a, b))
        count = x.shape[1] - 10
        total, places = total + ssim(x, y) * count, places + count
    return total / places


# -- training --------------------------------------------------------------------------------------------------------
class RatedCrops(Dataset):
    """(crop, reference's crop, target) of rated pictures: a random square of ``size`` pixels, mirrored at random.

    A picture whose shorter side is below ``size`` is enlarged to it. The target is the score in 0 to 1, (1,), or the shares of the
    scores (K,) where the model tells a distribution; the reference's crop is empty where the model takes none.
    """

    def __init__(
        self, rated: Sequence[Opinion], size: int, ends: tuple[float, float], with_reference: bool, shares: bool
    ):
        self.rated, self.size, self.ends, self.with_reference, self.shares = (
            list(rated),
            size,
            ends,
            with_reference,
            shares,
        )

    def __len__(self) -> int:
        return len(self.rated)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        one = self.rated[index]
        pair = [one.read()]
        if self.with_reference:
            pair.append(_reference(one))
        side = min(pair[0].shape[-2:])
        if side < self.size:
            sides = [max(self.size, round(n * self.size / side)) for n in pair[0].shape[-2:]]
            pair = [
                F.interpolate(p[None], sides, mode="bilinear", antialias=True, align_corners=False)[0] for p in pair
            ]
        top, left = (int(torch.randint(n - self.size + 1, ())) for n in pair[0].shape[-2:])
        pair = [p[:, top : top + self.size, left : left + self.size] for p in pair]
        if int(torch.randint(2, ())):
            pair = [p.flip(-1) for p in pair]
        return pair[0].contiguous(), pair[1].contiguous() if self.with_reference else torch.empty(0), self._target(one)

    def _target(self, one: Opinion) -> Tensor:
        if self.shares:
            counts = torch.tensor(one.counts)
            return counts / counts.sum()
        low, high = self.ends
        return torch.tensor([(one.score - low) / (high - low)])


class RatedPictures(Dataset):
    """(picture, reference or nothing, score) of rated pictures, whole."""

    def __init__(self, rated: Sequence[Opinion], with_reference: bool):
        self.rated, self.with_reference = list(rated), with_reference

    def __len__(self) -> int:
        return len(self.rated)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, float]:
        one = self.rated[index]
        return one.read(), _reference(one) if self.with_reference else torch.empty(0), one.score


def _reference(one: Opinion) -> Tensor:
    if one.reference is None:
        raise DataError(
            f"{one.name} has no reference; this model compares a picture with one: name its column with --reference"
        )
    return one.reference()


class QualityTraining(RecipeTask):
    """Squared error and norm-in-norm of scores, or the earth mover's distance of their distribution; SRCC on held-out pictures."""

    def __init__(self, model: nn.Module, recipe: QualityRecipe, seed: int):
        super().__init__(model, recipe, seed)
        self.held: list[Tensor] = []

    def training_step(self, batch, batch_idx) -> Tensor:
        x, reference, target = batch
        score, shares = self.model.distribution(x, reference if reference.numel() else None)
        if target.shape[1] > 1:
            loss = emd_loss(shares, target)
        else:
            loss = self.recipe.mse * F.mse_loss(score, target) + self.recipe.nin * nin_loss(score, target)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.held = []

    def validation_step(self, batch, batch_idx) -> None:
        x, reference, truth = batch
        said = self.model(x, reference if reference.numel() else None)
        self.held.append(torch.stack([said.flatten().double(), truth.double()]))

    def on_validation_epoch_end(self) -> None:
        mine = torch.cat(self.held, 1)
        pairs = mine if self.trainer.world_size == 1 else self.all_gather(mine).transpose(0, 1).flatten(1)
        found = correlations(*pairs.cpu()) if pairs.shape[1] > 1 else {"plcc": 0.0, "srcc": 0.0}
        self.log("val_srcc", found["srcc"], prog_bar=True)
        self.log("val_plcc", found["plcc"])


# -- use -------------------------------------------------------------------------------------------------------------
@dataclass
class Ratings(Result):
    """Scores of pictures. Each row: ``image``, ``score``, and with a reference ``psnr`` (dB) and ``ssim`` on luma."""

    thumbnails: list[Any] = field(default_factory=list)

    def draw(self, path: str | Path) -> Path:
        """The worst four and the best four, with their scores."""
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i]["score"])
        chosen = order if len(order) <= 8 else [*order[:4], *order[-4:]]
        return sheet(
            path,
            [(self.thumbnails[i], f"{self.rows[i]['score']:.3f}  {Path(self.rows[i]['image']).name}") for i in chosen],
        )


class QualityAssessment(Task):
    """Rating pictures, alone or against a reference."""

    name = "quality"
    does = "rates pictures"
    goal = "val_srcc"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> QualityRecipe:
        return QualityRecipe.of(spec.name, stage, **(overrides or {}))  # type: ignore[return-value]

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        table: str = "",
        image: str = "",
        score: str = "",
        reference: str = "",
        references: str = "",
        low: float | None = None,
        high: float | None = None,
        lower_is_better: bool = False,
        val_fraction: float = 0.2,
        on_error: str = "stop",
    ) -> Opinions:
        """Open rated pictures.

        Args:
            source: a folder of pictures with a table of scores in it, such a table, or sample:distortions.
            table: the table, where the folder holds several or none.
            image: column of the pictures' files; default one called image, file, path, name, ...
            score: column of the scores; default one called mos, score, dmos, ...; columns 1 to K are counts of each score.
            reference: column of the references' files; default one called reference, ref, ...
            references: folder of the references; default that of the pictures.
            low: score that stands for 0; default the lowest.
            high: score that stands for 1; default the highest.
            lower_is_better: the scores say how far a picture is from its reference (DMOS).
            val_fraction: share held out where the table has no column split; copies of one reference stay together.
            on_error: a picture that is not there: stop or skip.
        """
        if isinstance(source, Opinions):
            return source
        return open_opinions(
            source, table=table, image=image, score=score, reference=reference, references=references, low=low, high=high,
            lower_is_better=lower_is_better, val_fraction=val_fraction, seed=seed, on_error=on_error,
        )  # fmt: skip

    def build(self, job: Job) -> nn.Module:
        counts = {len(o.counts) for o in job.data.train}
        network = create_model(job.model, pretrained=job.pretrained, **job.model_options)
        if network.num_classes > 1 and counts != {network.num_classes}:
            raise DataError(
                f"{job.model} tells how many people give each of {network.num_classes} scores; {job.data.name} needs columns 1 to "
                f"{network.num_classes} with those counts, or choose a model of one score (-o num_classes=1)"
            )
        if network.use_ref and any(o.reference is None for o in (*job.data.train, *job.data.val)):
            raise DataError(
                f"{job.model} compares a picture with its reference; {job.data.name} names none for some pictures"
            )
        if job.checkpoint:
            load_weights(network, job.checkpoint)
        return network

    def greeting(self, job: Job) -> Sequence[str]:
        data = job.data
        return [
            f"{len(data.train)} rated pictures to train on, {len(data.val)} held out; scores {data.low:g} to {data.high:g} stand for 0 to 1",
            *data.notes,
        ]

    def about(self, job: Job) -> dict[str, Any]:
        return {"low": job.data.low, "high": job.data.high}

    def module(self, job: Job) -> QualityTraining:
        return QualityTraining(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> SeededLoaders:
        net, size = job.network, job.how.input_size or 384
        ends = (job.data.low, job.data.high)
        train = RatedCrops(job.data.train, size, ends, net.use_ref, net.num_classes > 1)
        val = RatedPictures(job.data.val, net.use_ref)
        return SeededLoaders(train, val, min(job.how.batch_size, len(train)), job.run.workers, job.run.seed)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"srcc": fitted.best, "pictures": len(job.data.train), "held_out": len(job.data.val)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"SRCC {figures['srcc']:.4f} on {figures['held_out']} held-out pictures after {figures['epochs']} epochs "
            f"({figures['weights_are']}); weights: {folder / 'model.safetensors'}",
            f"next: offprint rate PICTURES --model {folder}",
        ]

    @torch.no_grad()
    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        part: str = "",
        table: str = "",
        image: str = "",
        score: str = "",
        reference: str = "",
        references: str = "",
        lower_is_better: bool = False,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """SRCC and KRCC with opinions, PLCC and RMSE after the logistic fit, PLCC before it; PSNR and SSIM beside, with references.

        Args:
            part: train, val or all; default val of the run's own data, all of others.
            table: as for training.
            image: as for training.
            score: as for training.
            reference: as for training.
            references: as for training.
            lower_is_better: as for training.
            on_error: a picture that is not there: stop or skip.
        """
        own = data is None
        data = self.own_source(ready) if own else data
        seed = int(ready.about.get("seed", 0))
        given = dict(ready.about.get("data_options", {})) if own else {}
        given |= {k: v for k, v in {"table": table, "image": image, "score": score, "reference": reference, "references": references}.items() if v}  # fmt: skip
        held = self.open(data, seed=seed, **{**given, "lower_is_better": lower_is_better or given.get("lower_is_better", False), "on_error": on_error})  # fmt: skip
        parts = {"train": held.train, "val": held.val, "all": [*held.train, *held.val]}
        chosen = parts.get(part or ("val" if own else "all"))
        if chosen is None:
            raise OffprintError(f"part={part!r}; choose train, val or all")
        if progress:
            progress(total=len(chosen))
        rows = []
        for one in chosen:
            x = one.read()
            other = one.reference() if one.reference is not None else None
            row = {"image": one.name, "opinion": one.score, "score": self._rate(ready.model, x, _reference(one) if ready.model.use_ref else None)[0]}  # fmt: skip
            if other is not None and other.shape == x.shape:
                row |= _fidelity(x, other)
            rows.append(row)
            if progress:
                progress(text=one.name)
        truth = [r["opinion"] for r in rows]
        figures = agreement([r["score"] for r in rows], truth) | {"pictures": len(rows)}
        beside = {
            name: agreement([min(r[name], 100.0) for r in rows], truth)
            for name in ("psnr", "ssim")
            if all(name in r for r in rows)
        }
        return Figures(rows, figures=figures, beside=beside, notes=list(held.notes))

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        reference: str | None = None,
        crops: int = 0,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Ratings:
        """Rate pictures of any size; one beyond four megapixels in pieces, of which it is the mean.

        Args:
            inputs: picture files, and folders of them.
            reference: the picture they are copies of, or a folder with one of the same name for each.
            crops: the mean score of so many crops on an even grid instead of the whole picture.
            on_error: a picture that cannot be read, or whose reference does not fit: stop or skip.
        """
        net = ready.model
        if net.use_ref and reference is None:
            raise OffprintError(f"{ready.name} compares pictures with a reference; give --reference PICTURE or FOLDER")
        files, found, reasons = pictures_in(inputs), Ratings([]), []
        if progress:
            progress(total=len(files))
        for file in files:
            try:
                x = picture_tensor(file)
                other = None if reference is None else picture_tensor(_beside(file, reference))
                if other is not None and other.shape != x.shape:
                    sizes = [f"{p.shape[2]} x {p.shape[1]}" for p in (x, other)]
                    raise DataError(
                        f"{file} is {sizes[0]} pixels and its reference {sizes[1]}; they must be of one size"
                    )
                if min(x.shape[1:]) < 32:
                    raise DataError(f"{file} is {x.shape[2]} x {x.shape[1]} pixels; at least 32 a side are needed")
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            score, pieces = self._rate(net, x, other if net.use_ref else None, crops)
            row: dict[str, Any] = {"image": str(file), "score": score}
            if other is not None:
                row |= _fidelity(x, other)
            if pieces > 1 and not crops:
                found.notes.append(f"{file}: {x.shape[2]} x {x.shape[1]} pixels, the mean of {pieces} pieces")
            found.rows.append(row)
            found.thumbnails.append(_thumbnail(x))
            if progress:
                progress(text=file.name)
        found.notes += left_out(reasons)
        return found

    @torch.no_grad()
    def _rate(self, model: nn.Module, x: Tensor, reference: Tensor | None, crops: int = 0) -> tuple[float, int]:
        """(score, pieces it is the mean of); one piece at a time, so that memory does not grow with the picture."""
        like = next(model.parameters())
        resized = model.test_img_size is not None
        if crops > 1:
            from offprint.models.signals.topiq import uniform_crops

            cut = lambda p: uniform_crops(p[None], model.crop_size, crops)  # noqa: E731
            pieces = [(v[None], None) for v in cut(x)]
            if reference is not None:
                pieces = list(zip((v for v, _ in pieces), (v[None] for v in cut(reference)), strict=True))
        elif x[0].numel() > WHOLE and not resized:
            places = [
                (slice(t, t + PIECE), slice(s, s + PIECE)) for t in _starts(x.shape[1]) for s in _starts(x.shape[2])
            ]
            pieces = [(x[None, :, r, c], None if reference is None else reference[None, :, r, c]) for r, c in places]
        else:
            pieces = [(x[None], None if reference is None else reference[None])]
        found = [model.distribution(a.to(like), None if b is None else b.to(like))[1] for a, b in pieces]
        shares = torch.stack(found).mean(0)
        return float(opinion_score(shares)), len(pieces)

    def sample(self, ready: Ready) -> Any:
        return ready.model.example_input()


def _starts(side: int) -> list[int]:
    """Where pieces begin so that they cover a side evenly."""
    if side <= PIECE:
        return [0]
    count = -(-side // PIECE)
    return [round(i * (side - PIECE) / (count - 1)) for i in range(count)]


def _beside(file: Path, reference: str) -> Path:
    """The reference of a picture: the one given, or the file of the same name, or the same stem, in a folder."""
    home = Path(reference)
    if not home.is_dir():
        return home
    if (home / file.name).is_file():
        return home / file.name
    same = [p for p in sorted(home.iterdir()) if p.stem == file.stem and p.is_file()]
    if len(same) != 1:
        raise DataError(f"{home} holds {len(same)} pictures called {file.stem}; one reference is needed for {file}")
    return same[0]


def _fidelity(x: Tensor, reference: Tensor) -> dict[str, float]:
    """PSNR (dB) and SSIM on luma."""
    a, b = ((v * 255).round() for v in (x, reference))
    return {"psnr": psnr(a, b), "ssim": ssim_of(a, b)}


def _thumbnail(x: Tensor, side: int = 256) -> np.ndarray:
    scale = side / max(x.shape[1:])
    small = F.interpolate(x[None].float(), [max(1, round(n * scale)) for n in x.shape[1:]], mode="area")[0]
    return (small.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()


register_task(QualityAssessment())
