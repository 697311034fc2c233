"""Super-resolution as a task: training on random patches of photographs, PSNR and SSIM, pictures of any size and kind."""

from __future__ import annotations

import hashlib
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from offprint.data.images import EpochSampler, Seeded
from offprint.data.photos import photographs, set5
from offprint.data.reading import Picture, open_picture, read_picture
from offprint.data.resize import bicubic
from offprint.data.writing import encode, format_of
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.enlarging import enlarge_picture
from offprint.tasks.pictures import left_out, pictures_in
from offprint.tasks.restoration import enlarge, psnr, ssim, to_multiple, to_tensor
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask


@dataclass
class Photographs:
    """Photographs to learn from and to be judged by: names, and how each is read as (3, H, W) in [0, 1]."""

    train: dict[str, Callable[[], Tensor]]
    val: dict[str, Callable[[], Tensor]]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join([*self.train, "", *self.val]).encode()).hexdigest()[:16]


class Patches(Dataset):
    """Random patches of photographs, reduced bicubically, turned and mirrored at random.

    Args:
        pictures: how each is read.
        scale: of the reduction.
        patch: side of a low-resolution patch.
        each: patches of a photograph per epoch.
    """

    margin = 4  # low-resolution pixels around a patch that the bicubic kernel may reach into

    def __init__(self, pictures: Sequence[Callable[[], Tensor]], scale: int, patch: int, each: int):
        self.pictures, self.scale, self.patch, self.each = pictures, scale, patch, each

    def __len__(self) -> int:
        return len(self.pictures) * self.each

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        s, p, m = self.scale, self.patch, self.margin
        high = to_multiple(self.pictures[index % len(self.pictures)](), s)
        rows, columns = high.shape[-2] // s, high.shape[-1] // s
        if min(rows, columns) < p:
            raise DataError(
                f"a photograph is {high.shape[-1]} x {high.shape[-2]} pixels, smaller than a patch of {p * s}; give --patch "
                f"{min(rows, columns)} or less, or larger photographs"
            )
        top, left = (int(torch.randint(n - p + 1, ())) for n in (rows, columns))
        y0, x0, y1, x1 = max(0, top - m), max(0, left - m), min(rows, top + p + m), min(columns, left + p + m)
        around = high[:, y0 * s : y1 * s, x0 * s : x1 * s]
        low = bicubic(around, 1 / s).clamp(0, 1)[:, top - y0 : top - y0 + p, left - x0 : left - x0 + p]
        truth = high[:, top * s : (top + p) * s, left * s : (left + p) * s]
        turn, mirror = int(torch.randint(4, ())), int(torch.randint(2, ()))
        pair = (torch.rot90(v, turn, (-2, -1)) for v in (low, truth))
        low, truth = (v.flip(-1) if mirror else v for v in pair)
        return low.contiguous(), truth.contiguous()


class _Whole(Dataset):
    """(low, high) of the middle of held-out photographs."""

    def __init__(self, pictures: Sequence[Callable[[], Tensor]], scale: int, side: int = 384):
        self.pictures, self.scale, self.side = pictures, scale, side

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        high = self.pictures[index]()
        h, w = (min(n, self.side) for n in high.shape[-2:])
        top, left = (high.shape[-2] - h) // 2, (high.shape[-1] - w) // 2
        high = to_multiple(high[:, top : top + h, left : left + w], self.scale)
        return bicubic(high, 1 / self.scale).clamp(0, 1), high


class RestorationData(L.LightningDataModule):
    """Patches whose order and place depend on (seed, epoch) alone; held-out photographs one by one."""

    def __init__(self, train: Patches, val: _Whole, batch_size: int, workers: int, seed: int):
        super().__init__()
        self.train, self.val = Seeded(train, seed), val
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        t = self.trainer
        sampler = EpochSampler(len(self.train), t.current_epoch, self.seed, t.global_rank, t.world_size)
        return DataLoader(self.train, self.batch_size, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        mine = torch.utils.data.Subset(
            self.val, range(self.trainer.global_rank, len(self.val), self.trainer.world_size)
        )
        return DataLoader(mine, 1)


class Restoration(RecipeTask):
    """L1 between what the model makes of a reduced patch and the patch; PSNR on luma of held-out photographs."""

    def training_step(self, batch, batch_idx) -> Tensor:
        low, high = batch
        loss = F.l1_loss(self.model(low), high)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        low, high = batch
        got = _eight_bit(self.model(low)[0].clamp(0, 1))
        value = psnr(got.cpu(), (high[0] * 255).round().cpu(), self.model.scale)
        self.log("val_psnr", value, prog_bar=True, sync_dist=True, batch_size=1)


def _eight_bit(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round()


@dataclass
class EnlargedPictures(Result):
    """Enlarged pictures. Each row: ``image``, its size before and after, and ``file`` where it was written.

    Attributes:
        pictures: the enlarged ones with all that belongs to them, in the rows' order; none of those that were written at once.
    """

    pictures: list[Picture] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write the pictures: one to a file, or several to a folder (``NAME_xN.png``); ``.json``, ``.csv`` and ``.tsv`` for the rows."""
        path = Path(path)
        if path.suffix.lower() in (".json", ".csv", ".tsv"):
            return super().save(path)
        one = bool(path.suffix) and len(self.pictures) == 1
        for row, picture in zip(self.rows, self.pictures, strict=True):
            target = path if one else path / f"{Path(row['image']).stem}_x{row['scale']}.png"
            if target.exists() and target.resolve() == Path(row["image"]).resolve():
                raise OffprintError(f"{target} is the picture itself; choose another --out")
            data, lost = encode(picture, format_of(target))
            self.notes += [f"{target}: {note}" for note in lost]
            row["file"] = str(atomic_write(target, data))
        return path

    def draw(self, path: str | Path) -> Path:
        """A sheet of the pictures."""
        return sheet(path, [(p.colour, Path(r["image"]).name) for r, p in zip(self.rows, self.pictures, strict=True)])


class ImageRestoration(Task):
    """Enlarging photographs: training on random patches, PSNR and SSIM on luma, pictures of any size."""

    name = "restoration"
    does = "enlarges pictures"
    goal = "val_psnr"

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.1, on_error: str = "stop") -> Photographs:
        """Open photographs.

        Args:
            source: a folder of pictures (with ``train`` and ``val``, or without), ``sample:photographs`` or ``sample:set5``, or tensors
                (3, H, W) in [0, 1] by name.
            val_fraction: share held out, where the data have no split of their own.
            on_error: a picture that cannot be read: stop or skip.
        """
        if isinstance(source, Photographs):
            return source
        held: dict[str, Callable[[], Tensor]] = {}
        if isinstance(source, Mapping):
            found = {name: (lambda x=x: x) for name, x in source.items()}
        elif str(source) in ("sample:photographs", "sample:set5"):
            given = photographs() if str(source) == "sample:photographs" else set5()
            found = {name: (lambda x=x: x.float() / 255) for name, x in given.items()}
        elif str(source).startswith("sample:"):
            raise DataError(f"{source}: the bundled photographs are sample:photographs and sample:set5")
        else:
            root = Path(source)
            if not root.is_dir():
                raise DataError(f"no folder at {str(source)!r}; give a folder of photographs, or sample:photographs")
            other = next((root / n for n in ("val", "valid", "validation", "test") if (root / n).is_dir()), None)
            whole = (root / "train").is_dir() and other is not None
            found = _readers(root / "train" if whole else root, on_error)
            held = _readers(other, on_error) if whole else {}
        if held:
            return Photographs(found, held)
        if len(found) < 2:
            raise DataError(f"{source} holds {len(found)} photograph; at least two are needed to hold one out")
        if not 0 < val_fraction < 1:
            raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
        names = sorted(found)
        order = np.random.default_rng(seed).permutation(len(names)).tolist()
        kept = set(order[: max(1, round(val_fraction * len(names)))])
        parts = ({n: found[n] for i, n in enumerate(names) if (i in kept) is part} for part in (False, True))
        return Photographs(*parts)

    def prepare(self, job: Job, *, patch: int = 64, patches: int = 16) -> None:
        """Settle the patches.

        Args:
            patch: side of a low-resolution patch.
            patches: random patches of a photograph per epoch.
        """
        if patch < 8 or patches < 1:
            raise OffprintError(f"patch={patch}, patches={patches}; give 8 or more pixels and 1 or more patches")
        job.settled = {"patch": patch, "patches": patches}

    def about(self, job: Job) -> dict[str, Any]:
        return {"scale": job.network.scale, **job.settled}

    def module(self, job: Job) -> Restoration:
        return Restoration(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> RestorationData:
        scale = job.network.scale
        train = Patches(list(job.data.train.values()), scale, job.settled["patch"], job.settled["patches"])
        val = _Whole(list(job.data.val.values()), scale)
        return RestorationData(train, val, min(job.how.batch_size, len(train)), job.run.workers, job.run.seed)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"psnr_y": fitted.best, "photographs": len(job.data.train), "held_out": len(job.data.val)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"PSNR {figures['psnr_y']:.2f} dB on {figures['held_out']} held-out photographs after {figures['epochs']} epochs"
            f" ({figures['weights_are']}); weights: {folder / 'model.safetensors'}",
            f"next: offprint upscale PICTURE --model {folder}",
        ]

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        tile: int = 10_000,
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """PSNR (dB) and SSIM on luma, the scale cropped off every border: means over the pictures of a folder.

        Args:
            tile: side of a tile in input pixels; memory depends on it.
        """
        scale = ready.model.scale
        pairs = _pairs(ready.about.get("source") if data is None else data, scale)
        rows = []
        if progress:
            progress(total=len(pairs))
        for name, (truth, low) in pairs.items():
            high = to_multiple(truth(), scale)
            small = bicubic(high, 1 / scale).clamp(0, 1) if low is None else low()
            small = (small * 255).round() / 255
            ours, truth8 = _eight_bit(enlarge(ready.model, small, tile=tile)), (high * 255).round()
            if ours.shape != truth8.shape:
                raise DataError(
                    f"{name}: {tuple(small.shape[1:])} enlarged {scale} times is not {tuple(truth8.shape[1:])}"
                )
            plain = _eight_bit(F.interpolate(small[None], scale_factor=scale, mode="bicubic", antialias=False)[0])
            values = {"psnr_y": psnr(ours, truth8, scale), "ssim_y": ssim(ours, truth8, scale)}
            rows.append({"image": name, **values, "psnr_y_bicubic": psnr(plain, truth8, scale)})
            if progress:
                progress(text=name)
        mean = {k: statistics.fmean(r[k] for r in rows) for k in ("psnr_y", "ssim_y")} | {"pictures": len(rows)}
        beside = {"bicubic": {"psnr_y": statistics.fmean(r["psnr_y_bicubic"] for r in rows)}}
        return Figures(rows, figures=mean, units={"psnr_y": " dB"}, beside=beside)

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        tile: int = 256,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> EnlargedPictures:
        """Enlarge pictures.

        Args:
            inputs: picture files, and folders of them.
            tile: side of a tile in input pixels; memory depends on it.
            on_error: a picture that cannot be read: stop or skip.
        """
        if tile < 32:
            raise OffprintError(f"tile={tile} is too small; give 32 or more")
        found, reasons = EnlargedPictures([]), []
        for file in pictures_in(inputs):
            try:
                picture = open_picture(file)
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            larger = enlarge_picture(ready.model, picture, tile=tile, progress=progress)
            (width, height), (wide, high) = picture.size, larger.size
            found.rows.append({"image": str(file), "width": width, "height": height, "larger_width": wide, "larger_height": high,
                               "scale": ready.model.scale})  # fmt: skip
            found.pictures.append(larger)
            found.notes += [f"{file}: {note}" for note in picture.notes]
        found.notes += left_out(reasons)
        return found

    def predict_to(self, ready: Ready, inputs: Any, path: Path | None = None, **options: Any) -> Result:
        if path is not None and Path(path).suffix.lower() in (".json", ".csv", ".tsv"):
            raise OffprintError(
                f"--out {path}: enlarged pictures are written as pictures; give a picture's name, or a folder"
            )
        return super().predict_to(ready, inputs, path, **options)


def _readers(root: Path | None, on_error: str = "stop") -> dict[str, Callable[[], Tensor]]:
    """Name → reader of every picture of a folder; those that cannot be read stop here, or are left out with a warning."""
    found: dict[str, Callable[[], Tensor]] = {}
    for file in pictures_in(root):
        try:
            with read_picture(file):
                pass
        except DataError as error:
            if on_error != "skip":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            continue
        found[str(file)] = lambda file=file: to_tensor(read_picture(file))
    return found


def _pairs(source: Any, scale: int) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor] | None]]:
    """Name → (high resolution, low resolution or nothing where it is to be made)."""
    if source is None:
        raise OffprintError(
            "no pictures to evaluate on; give --data: a folder of high-resolution pictures, or sample:set5"
        )
    if str(source) == "sample:set5":
        low = set5(scale)
        return {n: ((lambda x=x: x.float() / 255), (lambda y=low[n]: y.float() / 255)) for n, x in set5().items()}
    if str(source) == "sample:photographs":
        return {n: ((lambda x=x: x.float() / 255), None) for n, x in photographs().items()}
    root = Path(source)
    high = next((d for d in (root / n for n in ("HR", "hr", "GTmod12", "gt", "GT")) if d.is_dir()), root)
    names = ("LR", "lr", f"X{scale}", f"x{scale}", f"LR_bicubic/X{scale}", f"LRbicx{scale}", f"LR/X{scale}")
    low_root = next((root / n for n in reversed(names) if (root / n).is_dir()), None)
    low_files = {p.stem: p for p in pictures_in(low_root)} if low_root is not None and high != root else {}
    found: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor] | None]] = {}
    for file in pictures_in(high):
        matching = next((low_files[n] for n in (file.stem, f"{file.stem}x{scale}") if n in low_files), None)
        if low_files and matching is None:
            raise DataError(
                f"{low_root} has no low resolution of {file.name}; expected {file.stem}.png or {file.stem}x{scale}.png"
            )
        reader = None if matching is None else (lambda p=matching: to_tensor(read_picture(p)))
        found[file.name] = ((lambda p=file: to_tensor(read_picture(p))), reader)
    return found


register_task(ImageRestoration())
