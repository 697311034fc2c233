"""Image restoration: metrics as the papers take them, enlarging pictures of any size, and training on photographs."""

from __future__ import annotations

import hashlib
import statistics
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
from offprint.data.photos import photographs, set5
from offprint.data.resize import bicubic
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights
from offprint.models.registry import create_model
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.pictures import left_out, pictures_in, read_picture
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, RecipeTask


def luma(image: Tensor) -> Tensor:
    """BT.601 luma (offset 16, range 16 to 235) of RGB images (..., 3, H, W) in [0, 255], not rounded."""
    r, g, b = image.double().unbind(-3)
    return 16.0 + (65.481 * r + 128.553 * g + 24.966 * b) / 255.0


def _pair(a: Tensor, b: Tensor, crop: int, y: bool) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 3:
        raise OffprintError(f"expected two pictures (3, H, W) of one size, got {tuple(a.shape)} and {tuple(b.shape)}")
    if crop:
        a, b = (v[..., crop:-crop, crop:-crop] for v in (a, b))
    return (luma(a)[None], luma(b)[None]) if y else (a.double(), b.double())


def psnr(a: Tensor, b: Tensor, crop: int = 0, y: bool = True) -> float:
    """Peak signal-to-noise ratio in dB of pictures (3, H, W) in [0, 255].

    Args:
        crop: pixels left out at each border (papers use the scale).
        y: on luma; otherwise on all channels.
    """
    a, b = _pair(a, b, crop, y)
    error = float(((a - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def ssim(a: Tensor, b: Tensor, crop: int = 0, y: bool = True) -> float:
    """Structural similarity with an 11x11 Gaussian window (sigma 1.5), no padding; arguments as in :func:`psnr`."""
    a, b = _pair(a, b, crop, y)
    axis = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    blur = lambda v: F.conv2d(v[:, None], window[None, None])[:, 0]  # noqa: E731
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def to_tensor(image) -> Tensor:
    """A PIL picture or (H, W, 3) uint8 array as (3, H, W) in [0, 1]."""
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def enlarge(model: nn.Module, image: Tensor, *, tile: int = 256, overlap: int = 64, progress=None) -> Tensor:
    """Enlarge a picture (C, H, W) in [0, 1] by the model's ``scale``, in tiles when it is larger than one.

    Args:
        tile: side of a tile in input pixels; memory depends on this, not on the picture.
        overlap: pixels around a tile that are computed and thrown away. What a pixel sees beyond that is lost; with the default
            the seams of CFSR lie below a grey level.
        progress: called with ``total=n`` once and ``text=...`` per tile.

    Returns:
        (C, sH, sW) in [0, 1].
    """
    scale = model.scale
    _, h, w = image.shape
    device = next(model.parameters()).device
    starts = [(t, left) for t in range(0, h, tile) for left in range(0, w, tile)]
    if progress:
        progress(total=len(starts))
    out = torch.empty(image.shape[0], h * scale, w * scale)
    for top, left in starts:
        y0, x0 = max(0, top - overlap), max(0, left - overlap)
        y1, x1 = min(h, top + tile + overlap), min(w, left + tile + overlap)
        done = model(image[None, :, y0:y1, x0:x1].to(device))[0].cpu()
        bottom, right = min(h, top + tile), min(w, left + tile)
        part = done[:, (top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
        out[:, top * scale : bottom * scale, left * scale : right * scale] = part
        if progress:
            progress(text=f"tile {top}, {left}")
    return out.clamp_(0, 1)


def upscale(model: nn.Module, image, **kwargs):
    """Enlarge a PIL picture (or (H, W, 3) uint8 array); returns a PIL picture. Keywords as in :func:`enlarge`."""
    from PIL import Image

    out = enlarge(model.eval(), to_tensor(image), **kwargs)
    return Image.fromarray((out * 255).round().byte().permute(1, 2, 0).numpy())


def train_restoration(
    model: nn.Module,
    photographs: list[Tensor],
    *,
    steps: int,
    patch: int = 48,
    batch: int = 8,
    lr: float = 5e-4,
    min_lr: float = 1e-6,
    seed: int = 0,
    progress=None,
) -> list[float]:
    """Train on random patches of photographs (3, H, W) in [0, 1], shrunk bicubically: L1, Adam, cosine rate.

    Args:
        patch: side of a low-resolution patch.
        progress: called with no arguments after each step.

    Returns:
        The loss of every step.
    """
    scale = model.scale
    low = [bicubic(p, 1 / scale).clamp(0, 1) for p in (_multiple(p, scale) for p in photographs)]
    high = [_multiple(p, scale) for p in photographs]
    if min(min(v.shape[-2:]) for v in low) < patch:
        raise OffprintError(f"a photograph is smaller than a patch of {patch * scale} pixels")
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (1,), generator=generator))  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, min_lr)
    losses = []
    model.train()
    for _ in range(steps):
        xs, ys = [], []
        for _ in range(batch):
            i = draw(len(low))
            top, left = draw(low[i].shape[-2] - patch + 1), draw(low[i].shape[-1] - patch + 1)
            x = low[i][:, top : top + patch, left : left + patch]
            y = high[i][:, top * scale : (top + patch) * scale, left * scale : (left + patch) * scale]
            turn, flip = draw(4), draw(2)
            x, y = (torch.rot90(v, turn, (-2, -1)) for v in (x, y))
            xs.append(x.flip(-1) if flip else x)
            ys.append(y.flip(-1) if flip else y)
        loss = F.l1_loss(model(torch.stack(xs)), torch.stack(ys))
        if not torch.isfinite(loss):
            raise OffprintError(f"the loss became {float(loss)} after {len(losses)} steps; lower lr={lr:g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress:
            progress()
    model.eval()
    return losses


def _multiple(image: Tensor, scale: int) -> Tensor:
    """Cut at the bottom and right to a multiple of the scale."""
    h, w = (n - n % scale for n in image.shape[-2:])
    return image[..., :h, :w]


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
        high = _multiple(self.pictures[index % len(self.pictures)](), s)
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
        high = _multiple(high[:, top : top + h, left : left + w], self.scale)
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
class Enlarged(Result):
    """Enlarged pictures. Each row: ``image``, its size before and after, and ``file`` where it was written.

    Attributes:
        pictures: the enlarged ones, in the rows' order.
    """

    pictures: list[Any] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write them: one picture to a file, or several to a folder (``NAME_xN.png``); ``.json`` and ``.csv`` for the rows."""
        path = Path(path)
        if path.suffix.lower() in (".json", ".csv", ".tsv"):
            return super().save(path)
        one = bool(path.suffix) and len(self.pictures) == 1
        for row, picture in zip(self.rows, self.pictures, strict=True):
            target = path if one else path / f"{Path(row['image']).stem}_x{row['scale']}.png"
            if target.exists() and target.resolve() == Path(row["image"]).resolve():
                raise OffprintError(f"{target} is the picture itself; choose another --out")
            import io

            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            row["file"] = str(atomic_write(target, buffer.getvalue()))
        return path

    def draw(self, path: str | Path) -> Path:
        """A sheet of the pictures."""
        return sheet(path, [(p, Path(r["image"]).name) for r, p in zip(self.rows, self.pictures, strict=True)])


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

    def build(self, job: Job) -> nn.Module:
        network = create_model(job.model, pretrained=job.pretrained, **job.model_options)
        if job.checkpoint:
            load_weights(network, job.checkpoint)
        return network

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

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], checkpoint_path=str(folder / "model.safetensors"), **options)
        return Ready(self, model.eval(), about["model"], about, folder)

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
            high = _multiple(truth(), scale)
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
    ) -> Enlarged:
        """Enlarge pictures.

        Args:
            inputs: picture files, and folders of them.
            tile: side of a tile in input pixels; memory depends on it.
            on_error: a picture that cannot be read: stop or skip.
        """
        if tile < 32:
            raise OffprintError(f"tile={tile} is too small; give 32 or more")
        found, reasons = Enlarged([]), []
        for file in pictures_in(inputs):
            try:
                picture = read_picture(file)
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            larger = upscale(ready.model, picture, tile=tile, progress=progress)
            found.rows.append({"image": str(file), "width": picture.width, "height": picture.height,
                               "larger_width": larger.width, "larger_height": larger.height, "scale": ready.model.scale})  # fmt: skip
            found.pictures.append(larger)
        found.notes = left_out(reasons)
        return found


def _readers(root: Path | None, on_error: str = "stop") -> dict[str, Callable[[], Tensor]]:
    """Name → reader of every picture of a folder; those that cannot be read stop here, or are left out with a warning."""
    import warnings

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
