"""Speech enhancement as a task: clean speech and noise mixed on the fly, the paper's losses, SI-SNR, STOI and PESQ."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from offprint.data.images import EpochSampler, Seeded
from offprint.data.sounds import header, noisy_speech, read, resample, sounds_in
from offprint.errors import DataError, OffprintError, need
from offprint.models.signals.frcrn import N_FFT, FRCRNLoss
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.denoising import denoise_file, enhance, gain_to_level
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result, canvas, finish
from offprint.tasks.running import Fitted, RecipeTask

Reader = Callable[[int], Tensor]  # a rate in Hz → (N,)
SAMPLE = "sample:noisy-speech"


@dataclass(frozen=True)
class EnhancementRecipe(Recipe):
    """A recipe with the paper's rule for the rate.

    After ``halve_after`` epochs without improvement the best weights are taken again and the rate is halved; after ``patience`` training
    stops. ``seconds`` is the length of a random cut; mixtures have signal-to-noise ratios from ``snr[0]`` to ``snr[1]`` dB.
    """

    halve_after: int = 5
    patience: int = 10
    seconds: float = 1.0
    snr: tuple[float, ...] = (-5.0, 20.0)


@lru_cache(maxsize=512)
def _load(path: str, rate: int) -> Tensor:
    wave, _ = read(path, rate)
    return torch.from_numpy(wave.mean(0))


def _file(path: Path) -> Reader:
    header(path)
    return lambda rate: _load(str(path), rate)


def _array(wave: np.ndarray, own: int = 16_000) -> Reader:
    return lambda rate: torch.from_numpy(resample(wave[None], own, rate)[0])


@dataclass
class Speech:
    """Clean speech and noise, to learn from and to be judged by: name → reader."""

    clean: dict[str, Reader]
    noise: dict[str, Reader]
    val_clean: dict[str, Reader]
    val_noise: dict[str, Reader]

    @property
    def digest(self) -> str:
        names = "\n\n".join("\n".join(part) for part in (self.clean, self.noise, self.val_clean, self.val_noise))
        return hashlib.sha256(names.encode()).hexdigest()[:16]


def mixture(clean: Tensor, noise: Tensor, snr: float) -> Tensor:
    """Clean speech (N,) with noise (N,) that is ``snr`` dB weaker; silence on either side leaves it out."""
    ratio = clean.square().mean() / noise.square().mean().clamp(min=1e-12)
    return clean + noise * (ratio * 10 ** (-snr / 10)).sqrt()


def _cut(wave: Tensor, n: int, start: int) -> Tensor:
    """``n`` samples from ``start`` on; a shorter wave is repeated."""
    if len(wave) < n:
        wave = wave.repeat(-(-n // len(wave)))
    return wave[start : start + n]


class Mixtures(Dataset):
    """(noisy, clean), (N,) each: random cuts of speech with random cuts of noise, each of the two brought to -25 dB by itself.

    Args:
        clean, noise: what is mixed.
        rate: in Hz. length: samples of a cut.
        snr: smallest and largest, in dB.
        each: cuts of an utterance per epoch.
    """

    def __init__(
        self, clean: Sequence[Reader], noise: Sequence[Reader], rate: int, length: int, snr: Sequence[float], each: int
    ):
        self.clean, self.noise, self.rate, self.length, self.snr, self.each = clean, noise, rate, length, snr, each

    def __len__(self) -> int:
        return len(self.clean) * self.each

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        parts = []
        for reader in (self.clean[index % len(self.clean)], self.noise[int(torch.randint(len(self.noise), ()))]):
            wave = reader(self.rate)
            parts.append(_cut(wave, self.length, int(torch.randint(max(1, len(wave) - self.length + 1), ()))))
        snr = self.snr[0] + (self.snr[1] - self.snr[0]) * float(torch.rand(()))
        clean, noisy = parts[0], mixture(*parts, snr)
        return noisy * gain_to_level(noisy), clean * gain_to_level(clean)


def fixed_mixtures(
    data: Speech, rate: int, snrs: Sequence[float], longest: float = 4.0
) -> dict[str, tuple[Tensor, Tensor]]:
    """The held-out utterances with the held-out noise in turn: name → (noisy, clean), each at every ratio."""
    noise, found = list(data.val_noise.items()), {}
    for i, (name, reader) in enumerate(data.val_clean.items()):
        clean = reader(rate)[: int(longest * rate)]
        for j, snr in enumerate(snrs):
            other, hiss = noise[(i + j) % len(noise)]
            label = f"{Path(name).stem} + {Path(other).stem} at {snr:g} dB"
            found[label] = mixture(clean, _cut(hiss(rate), len(clean), 0), snr), clean
    return found


def library_si_snr(estimate: Tensor, clean: Tensor) -> float:
    """Scale-invariant signal-to-noise ratio in dB of waves (N,)."""
    from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio

    return float(scale_invariant_signal_noise_ratio(estimate.double(), clean.double()))


def measures(estimate: Tensor, clean: Tensor, rate: int, pesq: bool = False) -> dict[str, float]:
    """SI-SNR (dB), STOI (0 to 1) and, where asked for, wide-band PESQ of waves (N,)."""
    need("pystoi", "audio", "STOI")
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    found = {
        "si_snr": library_si_snr(estimate, clean),
        "stoi": float(short_time_objective_intelligibility(estimate.double(), clean.double(), rate)),
    }
    if pesq:
        need("pesq", "speech-metrics", "PESQ")
        from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality

        if rate != 16_000:  # wide-band PESQ is defined at this rate
            pair = (torch.from_numpy(resample(v.float().numpy()[None], rate, 16_000)[0]) for v in (estimate, clean))
            estimate, clean = pair
        found["pesq"] = float(perceptual_evaluation_speech_quality(estimate, clean, 16_000, "wb"))
    return found


class SpeechData(L.LightningDataModule):
    """Mixtures that depend on (seed, epoch) alone; fixed ones to validate with."""

    def __init__(self, train: Mixtures, val: Sequence[tuple[Tensor, Tensor]], batch_size: int, workers: int, seed: int):
        super().__init__()
        self.train, self.val = Seeded(train, seed), val
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        t = self.trainer
        sampler = EpochSampler(len(self.train), t.current_epoch, self.seed, t.global_rank, t.world_size)
        return DataLoader(self.train, self.batch_size, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        mine = range(self.trainer.global_rank, len(self.val), self.trainer.world_size)
        return DataLoader(torch.utils.data.Subset(self.val, mine), 1)  # type: ignore[arg-type]


class SpeechTraining(RecipeTask):
    """The paper's loss on cuts; SI-SNR of held-out mixtures."""

    def __init__(self, model: nn.Module, recipe: Recipe, seed: int = 0):
        super().__init__(model, recipe, seed)
        self.losses = FRCRNLoss(model.hop_length)

    def training_step(self, batch, batch_idx) -> Tensor:
        noisy, clean = batch
        found = self.model(noisy)
        loss = self.losses(found.wave, found.mask, clean, noisy)
        self.check_loss(loss.loss)
        self.log("train_loss", loss.loss, prog_bar=True)
        self.log("mask_loss", loss.mask)
        return loss.loss

    def validation_step(self, batch, batch_idx) -> None:
        noisy, clean = batch
        done = enhance(self.model, noisy)
        self.log("val_si_snr", library_si_snr(done[0], clean[0]), prog_bar=True, sync_dist=True, batch_size=1)


class HalveRate(Callback):
    """After some epochs without improvement: the best weights again, and half the rate.

    Args:
        after: epochs.
        goal: the logged value, the more the better.
    """

    def __init__(self, after: int, goal: str):
        self.after, self.goal = after, goal
        self.best, self.waited, self.weights = float("-inf"), 0, {}

    def on_validation_end(self, trainer, module) -> None:
        value = float(trainer.callback_metrics[self.goal])
        if value > self.best:
            self.best, self.waited = value, 0
            self.weights = {k: v.detach().cpu().clone() for k, v in module.model.state_dict().items()}
            return
        self.waited += 1
        if self.waited % self.after == 0:
            module.model.load_state_dict(self.weights)
            for config in trainer.lr_scheduler_configs:
                config.scheduler.base_lrs = [0.5 * rate for rate in config.scheduler.base_lrs]

    def state_dict(self) -> dict:
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.waited, self.weights = state["best"], state["waited"], state["weights"]


@dataclass
class Sounds(Result):
    """Enhanced sounds. Each row: ``sound``, seconds, channels, rate, real-time factor, and the ``file`` that was written.

    Attributes:
        waves: (channels, N) and rate before and after, in the rows' order; none of those that were written at once.
    """

    waves: list[tuple[np.ndarray, np.ndarray, int]] = field(default_factory=list)

    def draw(self, path: str | Path) -> Path:
        """Spectrograms, before and after."""
        if not self.waves:
            raise OffprintError("nothing to draw: the sounds were written to files at once")
        figure, axes = canvas(9, 2.4 * len(self.waves), len(self.waves), 2)
        for row, wave, pair in zip(self.rows, self.waves, np.asarray(axes).reshape(-1, 2), strict=True):
            for sound, axis, word in zip(wave[:2], pair, ("before", "after"), strict=True):
                spectrogram(axis, sound[0], wave[2], f"{Path(row['sound']).name}, {word}")
        return finish(figure, path)


def spectrogram(axis, wave: np.ndarray, rate: int, title: str) -> None:
    """Draw the spectrogram of (N,) in dB."""
    axis.specgram(
        wave + 1e-9 * np.random.default_rng(0).standard_normal(len(wave)), 512, rate, noverlap=384, vmin=-140, vmax=-30
    )
    axis.set_title(title, fontsize=8)


class SpeechEnhancement(Task):
    """Voices without the noise around them."""

    name = "enhancement"
    does = "takes the noise out of speech"
    goal = "val_si_snr"
    snrs = (0.0, 5.0, 10.0)  # of the mixtures that are held out

    def recipe(self, spec, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> EnhancementRecipe:
        return EnhancementRecipe.of(spec.name, stage, **(overrides or {}))  # type: ignore[return-value]

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.15) -> Speech:
        """Open clean speech and noise.

        Args:
            source: a folder with ``clean`` and ``noise`` (each may hold ``train`` and ``val``), or ``sample:noisy-speech``.
            val_fraction: share of both held out, where there is no ``val``.
        """
        if isinstance(source, Speech):
            return source
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
        if str(source) == SAMPLE:
            held = {
                kind: {n: _array(w) for n, w in noisy_speech().items() if n.startswith(kind)}
                for kind in ("clean", "noise")
            }
            parts = [_split(held[kind], val_fraction, seed, SAMPLE) for kind in ("clean", "noise")]
        elif str(source).startswith("sample:"):
            raise DataError(f"{source}: the bundled speech is {SAMPLE}")
        else:
            parts = [_part(Path(source) / kind, val_fraction, seed) for kind in ("clean", "noise")]
        (clean, val_clean), (noise, val_noise) = parts
        return Speech(clean, noise, val_clean, val_noise)

    def prepare(self, job: Job, *, cuts: int = 8) -> None:
        """Settle the cuts.

        Args:
            cuts: random cuts of an utterance per epoch.
        """
        if cuts < 1:
            raise OffprintError(f"cuts={cuts}; give 1 or more")
        job.settled = {"cuts": cuts}

    def greeting(self, job: Job) -> Sequence[str]:
        d = job.data
        return [
            f"{len(d.clean)} utterances and {len(d.noise)} noises; held out {len(d.val_clean)} and {len(d.val_noise)}"
        ]

    def about(self, job: Job) -> dict[str, Any]:
        return dict(job.settled)

    def module(self, job: Job) -> SpeechTraining:
        return SpeechTraining(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> SpeechData:
        net, how, data = job.network, job.how, job.data
        hops = max(0, round((how.seconds * net.sample_rate - N_FFT) / net.hop_length))
        length = N_FFT + hops * net.hop_length  # a whole number of frames, so that the network returns every sample
        clean, noise = list(data.clean.values()), list(data.noise.values())
        train = Mixtures(clean, noise, net.sample_rate, length, how.snr, job.settled["cuts"])
        val = list(fixed_mixtures(data, net.sample_rate, self.snrs).values())
        return SpeechData(train, val, min(how.batch_size, len(train)), job.run.workers, job.run.seed)

    def callbacks(self, job: Job) -> Sequence[Callback]:
        return [HalveRate(job.how.halve_after, self.goal)]

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"si_snr": fitted.best, "utterances": len(job.data.clean), "held_out": len(job.data.val_clean)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"SI-SNR {figures['si_snr']:.2f} dB on mixtures of {figures['held_out']} held-out utterances after {figures['epochs']} epochs "
            f"({figures['weights_are']}); weights: {folder / 'model.safetensors'}",
            f"next: offprint denoise SOUND --model {folder} --out CLEAN.wav",
        ]

    def evaluate(
        self, ready: Ready, data: Any = None, *, pesq: bool = False, progress: Callable[..., None] | None = None
    ) -> Figures:
        """SI-SNR (dB), STOI and, where asked for, PESQ: means over noisy sounds, beside those of the noisy sounds themselves.

        Args:
            pesq: wide-band PESQ too (the extra speech-metrics).
        """
        rate = ready.model.sample_rate
        pairs = self._pairs(ready, data, rate)
        if progress:
            progress(total=len(pairs))
        rows, before = [], []
        for name, (noisy, clean) in pairs.items():
            rows.append({"sound": name, **measures(enhance(ready.model, noisy), clean, rate, pesq)})
            before.append(measures(noisy, clean, rate, pesq))
            if progress:
                progress(text=name)
        mean = lambda rows: {k: statistics.fmean(r[k] for r in rows) for k in before[0]}  # noqa: E731
        return Figures(
            rows, figures=mean(rows) | {"sounds": len(rows)}, units={"si_snr": " dB"}, beside={"noisy": mean(before)}
        )

    def _pairs(self, ready: Ready, data: Any, rate: int) -> dict[str, tuple[Tensor, Tensor]]:
        source = ready.about.get("source") if data is None else data
        if source is None:
            raise OffprintError(
                "no sounds to evaluate on; give --data: a folder with clean and noisy (or noise), or sample:noisy-speech"
            )
        root = Path(str(source))
        if isinstance(source, Speech) or not (root / "noisy").is_dir():
            return fixed_mixtures(self._held_out(ready.about, source), rate, self.snrs)
        clean = {p.stem: p for p in sounds_in(root / "clean")}
        found = {}
        for path in sounds_in(root / "noisy"):
            if path.stem not in clean:
                raise DataError(f"{path} has no clean sound of its name in {root / 'clean'}")
            a, b = (torch.from_numpy(read(p, rate)[0].mean(0)) for p in (path, clean[path.stem]))
            if len(a) != len(b):
                raise DataError(
                    f"{path.name}: {len(a)} samples noisy and {len(b)} clean at {rate} Hz; a pair has one length"
                )
            found[path.stem] = a, b
        return found

    def _held_out(self, about: Mapping[str, Any], source: Any) -> Speech:
        """Of the run's own data the part that it was not trained on, of other data all."""
        share = about.get("data_options", {}).get("val_fraction", 0.15)
        data = self.open(source, seed=about.get("seed", 0), val_fraction=share)
        if str(source) == about.get("source") or isinstance(source, Speech) or str(source) == SAMPLE:
            return data
        return Speech({}, {}, data.clean | data.val_clean, data.noise | data.val_noise)

    def predict(self, ready: Ready, inputs: Any, *, progress: Callable[..., None] | None = None) -> Sounds:
        """Enhance sounds in memory (``offprint denoise`` does files of any length).

        Args:
            inputs: sound files, and folders of them.
        """
        found = Sounds([])
        for path in _sounds(inputs):
            wave, rate = read(path)
            done = enhance(ready.model, wave, rate)
            found.waves.append((wave, done, rate))
            found.rows.append(
                {"sound": str(path), "seconds": wave.shape[1] / rate, "channels": len(wave), "rate": rate}
            )
            if progress:
                progress(text=path.name)
        return found

    def predict_to(self, ready: Ready, inputs: Any, path: Path | None = None, **options: Any) -> Result:
        """Sound files are written as they are done; other endings hold rows or spectrograms."""
        if path is None or Path(path).suffix.lower() in (".json", ".csv", ".tsv", ".png", ".svg", ".pdf"):
            return super().predict_to(ready, inputs, path, **options)
        found, files = Sounds([]), _sounds(inputs)
        for file in files:
            target = Path(path) if Path(path).suffix and len(files) == 1 else Path(path) / file.name
            if target.resolve() == file.resolve():
                raise OffprintError(f"{target} is the sound itself; choose another --out")
            done = denoise_file(ready.model, file, target)
            found.notes += [f"{file}: {note}" for note in done.notes]
            found.rows.append({"sound": str(file), "seconds": done.seconds, "channels": done.channels, "rate": done.rate,
                               "real_time_factor": done.real_time_factor, "file": str(done.file)})  # fmt: skip
        return found


def _sounds(inputs: Any) -> list[Path]:
    files: list[Path] = []
    for given in [inputs] if isinstance(inputs, str | Path) else inputs:
        files += sounds_in(given) if Path(given).is_dir() else [header(given).path]
    return files


def _split(
    found: dict[str, Reader], share: float, seed: int, where: Any
) -> tuple[dict[str, Reader], dict[str, Reader]]:
    if len(found) < 2:
        raise DataError(f"{where} holds {len(found)} sound; at least two are needed to hold one out")
    names = sorted(found)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    kept = set(order[: max(1, round(share * len(names)))])
    train, val = ({n: found[n] for i, n in enumerate(names) if (i in kept) is part} for part in (False, True))
    return train, val


def _part(folder: Path, share: float, seed: int) -> tuple[dict[str, Reader], dict[str, Reader]]:
    if not folder.is_dir():
        raise DataError(f"no folder at {str(folder)!r}; training takes a folder with clean (speech) and noise in it")
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        train, val = ({str(p): _file(p) for p in sounds_in(folder / n)} for n in ("train", "val"))
        return train, val
    return _split({str(p): _file(p) for p in sounds_in(folder)}, share, seed, folder)


register_task(SpeechEnhancement())
