"""Soft labels on disk: made by a teacher, one file for each picture, read back with the crops that they belong to.

``ROOT/soft_labels.json`` says what they are: data, teacher, crops, format, seed, and a fingerprint of all that. ``ROOT/train/CLASS/NAME.safetensors``
holds where the crops of a picture were (top, left, height and width as shares of the picture's), whether each was flipped, and the
teacher's answers; and the fingerprint, so that a file of other data, another seed or another teacher among them is found. FKD's own
files, ``ROOT/train/CLASS/NAME.tar``, are torch files of NumPy arrays; they hold no fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from offprint.data.images import Seeded
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write

INDEX, SUFFIX, RELEASED = "soft_labels.json", ".safetensors", ".tar"
SCALE, RATIO = (0.08, 0.936), (3 / 4, 4 / 3)  # FKD's
FORMATS = ("hard", "smoothing", "marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm_k5", "ori")
KINDS = ("discard", "hard", "soft")  # of crops, where something adapts their labels
Adapt = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


# -- short answers --------------------------------------------------------------------------------------------------------
def kept(form: str, num_classes: int) -> int:
    """How many classes a format keeps of each answer: 0 for ``ori``, which keeps all of them without their names.

    Raises:
        OffprintError: no such format, or one that keeps more classes than there are.
    """
    if form in ("hard", "smoothing"):
        return 1
    if form in ("ori", "full"):
        return 0
    found = re.fullmatch(r"marginal_(?:smoothing_k(\d+)|renorm(?:_k(\d+))?)", form)
    if found is None:
        raise unknown("format of soft labels", form, FORMATS)
    k = int(found[1] or found[2] or 5)
    if not 1 <= k < num_classes:
        raise OffprintError(
            f"{form} keeps {k} of {num_classes} classes; give a format that keeps fewer, or ori for all"
        )
    return k


def quantize_soft_labels(probabilities: Tensor, form: str) -> Tensor:
    """Answers (M, C) as FKD stores them.

    Returns:
        ``hard`` (M,) classes; ``smoothing`` (M, 2) class and probability; ``marginal_*`` (M, 2, k) classes, as numbers with a point, and
        probabilities, largest first; ``ori`` (M, C).
    """
    k = kept(form, probabilities.shape[1])
    if form == "hard":
        return probabilities.argmax(1)
    if not k:
        return probabilities
    values, classes = probabilities.topk(k, dim=1)
    both = torch.stack([classes.to(values), values], 1)
    return both[:, :, 0] if form == "smoothing" else both


def recover_soft_labels(labels: Tensor, form: str, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distributions (M, C) from what :func:`quantize_soft_labels` kept; ``dtype`` is of those from ``hard`` labels, which are whole numbers.

    Raises:
        OffprintError: labels of another format, or of more classes.
    """
    k = kept(form, num_classes)
    if not k:
        if labels.ndim != 2 or labels.shape[1] != num_classes:
            raise OffprintError(f"labels of shape {tuple(labels.shape)} are not {form} of {num_classes} classes")
        return labels
    shape = {"hard": (), "smoothing": (2,)}.get(form, (2, k))
    if tuple(labels.shape[1:]) != shape:
        raise OffprintError(
            f"labels of shape {tuple(labels.shape)} are not {form}; expected (M{''.join(f', {n}' for n in shape)})"
        )
    if form == "hard":
        classes, values = labels.view(-1, 1).long(), torch.ones(len(labels), 1, device=labels.device, dtype=dtype)
    else:
        classes, values = (labels[:, i].reshape(len(labels), -1) for i in (0, 1))
        classes = classes.long()
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise OffprintError(
            f"the labels name class {int(classes.max())}, and there are {num_classes}; they are of another data set"
        )
    if form.startswith("marginal_renorm"):
        values, rest = values / values.sum(1, keepdim=True), torch.zeros_like(values[:, :1])
    else:
        rest = (1 - values.sum(1, keepdim=True)) / (num_classes - k)
        rest = torch.zeros_like(rest) if form == "hard" else rest
    return rest.expand(-1, num_classes).scatter(1, classes, values)


def top_values(labels: Tensor, form: str) -> Tensor:
    """The teacher's largest probability (M,) as it was stored.

    Raises:
        OffprintError: of ``hard`` labels, which do not hold it.
    """
    if form == "hard":
        raise OffprintError("hard labels do not say how sure the teacher was; calibrate=false, or store another format")
    if form == "smoothing":
        return labels[:, 1]
    return labels[:, 1, 0] if labels.ndim == 3 else labels.amax(1)


# -- names and fingerprints ----------------------------------------------------------------------------------------------
def names_of(images: Any, classes: Sequence[str], split: str = "train") -> list[str]:
    """``SPLIT/CLASS/NAME`` of each picture; a file's name up to its first point, or a number where pictures are in memory.

    Raises:
        DataError: two pictures that would have one name.
    """
    from offprint.tasks.pictures import files_of

    files = files_of(images)
    stems = (
        [Path(f).name.split(".")[0] for f in files]
        if len(files) == len(images)
        else [f"{i:08}" for i in range(len(images))]
    )
    names = [f"{split}/{classes[int(t)]}/{stem}" for t, stem in zip(images.targets, stems, strict=True)]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise DataError(
            f"two pictures would have the label file {twice}: names count up to the first point; rename one"
        )
    return names


def digest_of(images: Any, names: Sequence[str], classes: Sequence[str]) -> str:
    """16 digits of a data set: its names and classes, and the sizes of its files or the pictures in memory."""
    from offprint.tasks.pictures import files_of

    whole = hashlib.sha256(json.dumps([list(map(str, classes)), list(names)]).encode())
    files = files_of(images)
    if len(files) == len(images):
        whole.update(json.dumps([Path(f).stat().st_size for f in files]).encode())
    else:
        for i in range(len(images)):
            whole.update(np.asarray(images[i][0]).tobytes())
    return whole.hexdigest()[:16]


def _fingerprint(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


# -- one file ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SoftLabels:
    """The labels of one picture.

    Attributes:
        coords: (M, 4), top, left, height and width of each crop as shares of the picture's height and width.
        flips: (M,), whether a crop was flipped.
        labels: as :func:`quantize_soft_labels` gives them.
    """

    coords: Tensor
    flips: Tensor
    labels: Tensor


def encode(found: SoftLabels, form: str, num_classes: int, half: bool, mark: Mapping[str, str]) -> bytes:
    """A file of ours; classes are whole numbers, so that they are exact in any precision of the probabilities."""
    kind = torch.float16 if half else torch.float32
    tensors = {"coords": found.coords.to(kind), "flips": found.flips.to(torch.bool)}
    whole = torch.int16 if num_classes <= 2**15 else torch.int32
    if form == "hard":
        tensors["classes"] = found.labels.to(whole)
    elif kept(form, num_classes):
        tensors |= {"classes": found.labels[:, 0].to(whole), "values": found.labels[:, 1].to(kind)}
    else:
        tensors["values"] = found.labels.to(kind)
    return save({k: v.contiguous() for k, v in tensors.items()}, dict(mark))


def read_labels(file: str | Path, fingerprint: str = "", name: str = "") -> SoftLabels:
    """One of our files.

    Args:
        file: the file.
        fingerprint, name: what it must say of itself; ``""``: anything.

    Raises:
        DataError: damaged, or of another data set, crop seed, teacher or picture.
    """
    try:
        with safe_open(str(file), "pt") as held:
            mark = held.metadata() or {}
            tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{file} is no whole file of soft labels ({error}); delete it and run the same command that made it"
        ) from error
    if fingerprint and mark.get("fingerprint") != fingerprint:
        raise DataError(
            f"{file} has the fingerprint {mark.get('fingerprint')}, its folder {fingerprint}: it was made for other data, with another crop "
            "seed, teacher or format; delete it and run offprint label again"
        )
    if name and mark.get("name") != name:
        raise DataError(f"{file} holds the labels of {mark.get('name')}, not of {name}; it was moved or renamed")
    if not {"coords", "flips"} <= set(tensors):
        raise DataError(
            f"{file} holds {', '.join(sorted(tensors))}, not coords and flips; it is no file of soft labels"
        )
    if "classes" not in tensors:
        labels = tensors["values"].float()
    elif "values" not in tensors:
        labels = tensors["classes"].long()
    else:
        labels = torch.stack([tensors["classes"].float(), tensors["values"].float()], 1)
    return SoftLabels(tensors["coords"].float(), tensors["flips"], labels)


def read_released(file: str | Path) -> SoftLabels:
    """One of FKD's files: a torch file of [coords, flips, labels], whose arrays are rebuilt and nothing else is.

    Raises:
        DataError: another kind of file, or one that would run code.
    """
    rebuild = np.zeros(1).__reduce__()[0]
    kinds = [type(np.dtype(k)) for k in ("bool", "float16", "float32", "float64", "int64", "int32", "uint8")]
    allowed = [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, *kinds]
    try:
        with torch.serialization.safe_globals(allowed):
            held = torch.load(file, map_location="cpu", weights_only=True)
        coords, flips, labels = (torch.as_tensor(np.asarray(v)) if not isinstance(v, Tensor) else v for v in held)
    except Exception as error:  # whatever a file of another kind raises in torch's reader
        reason = (str(error).splitlines() or [""])[0][:160]
        raise DataError(
            f"{file} is no file of FKD ([coords, flips, labels] by torch.save): {type(error).__name__}: {reason}"
        ) from error
    if coords.ndim != 2 or coords.shape[1] != 4 or not len(coords) == len(flips) == len(labels):
        raise DataError(
            f"{file}: coords {tuple(coords.shape)}, flips {tuple(flips.shape)}, labels {tuple(labels.shape)} are not of the same crops"
        )
    labels = labels.float() if labels.is_floating_point() else labels
    return SoftLabels(coords.float(), flips.bool(), labels)


# -- a folder of them ----------------------------------------------------------------------------------------------------
@dataclass
class LabelStore:
    """The soft labels of a data set, in the order of its pictures.

    Attributes:
        files, names: of each picture.
        form: format.
        num_classes: of the data.
        fingerprint: of our files, ``""`` for FKD's own.
        crops: of each picture; 0 where it is not known.
    """

    files: list[Path]
    names: list[str]
    form: str
    num_classes: int
    fingerprint: str = ""
    crops: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> SoftLabels:
        """Of one picture, checked."""
        if self.fingerprint:
            return read_labels(self.files[index], self.fingerprint, self.names[index])
        return read_released(self.files[index])

    @property
    def bytes(self) -> int:
        return sum(f.stat().st_size for f in self.files)

    def told(self) -> str:
        """In one line."""
        return f"{len(self):,} files of soft labels ({self.form}), {self.bytes / 2**20:,.1f} MiB"

    def recovered(self, found: SoftLabels) -> Tensor:
        """(M, C)."""
        return recover_soft_labels(found.labels, self.form, self.num_classes)

    def adapted(self, found: SoftLabels, target: int, adapt: Adapt) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (M, C), kinds (M,) as places in :data:`KINDS`, and scores (M,) of the crops of a picture of this class."""
        whole, stored = self.recovered(found), top_values(found.labels, self.form)
        return adapt(whole, stored, torch.full((len(whole),), target, dtype=torch.long))

    def shares(self, targets: Sequence[int], adapt: Adapt, most: int = 2000) -> dict[str, float]:
        """Shares of crops that are dropped, hard and soft, over at most so many pictures at even steps."""
        step, counts = -(-len(self) // most), torch.zeros(3)
        for i in range(0, len(self), step):
            found = self.read(i)
            kinds = self.adapted(found, int(targets[i]), adapt)[1]
            counts += torch.bincount(kinds, minlength=3)
        return dict(zip(KINDS, (counts / counts.sum()).tolist(), strict=True))


def read_index(root: str | Path) -> dict[str, Any]:
    """What a folder of our soft labels says of itself.

    Raises:
        DataError: there is none.
    """
    file = Path(root) / INDEX
    if not file.is_file():
        raise DataError(
            f"{root} holds no soft labels (no {INDEX}); make them with offprint label, or say released=FORMAT for files of FKD"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def open_labels(
    root: str | Path, images: Any, classes: Sequence[str], *, released: str = "", split: str = "train"
) -> LabelStore:
    """The soft labels of these pictures.

    Args:
        root: folder.
        images: the training part.
        classes: names of the data's classes, in their order.
        released: format of FKD's own files.
        split: of the pictures.

    Raises:
        DataError: labels of another data set, or pictures without a file, which are named.
    """
    root, names = Path(root), names_of(images, classes, split)
    if released:
        kept(released, len(classes))
        store = LabelStore([root / f"{n}{RELEASED}" for n in names], names, released, len(classes))
    else:
        about = read_index(root)
        if list(map(str, classes)) != about["about"]["classes"]:
            raise DataError(
                f"{root} holds soft labels of {len(about['about']['classes'])} classes ({', '.join(about['about']['classes'][:4])}, ...), and the "
                f"data have {len(classes)} ({', '.join(map(str, classes[:4]))}, ...)"
            )
        digest = digest_of(images, names, classes)
        if digest != about["about"]["data"]:
            raise DataError(
                f"{root} holds soft labels of other pictures (data {about['about']['data']}, these are {digest}): {about['told']['source']}; "
                "give that data, or make labels for these"
            )
        files = [root / f"{n}{SUFFIX}" for n in names]
        store = LabelStore(
            files, names, about["about"]["format"], len(classes), about["fingerprint"], about["about"]["crops"]
        )
    missing = [n for n, f in zip(names, store.files, strict=True) if not f.is_file()]
    if missing:
        what = (
            "the labels of FKD cover a training part whose folders have their names"
            if released
            else "run offprint label again: it goes on"
        )
        raise DataError(
            f"{len(missing):,} of {len(names):,} pictures have no file in {root} ({', '.join(missing[:4])}); {what}"
        )
    return store


# -- making them ---------------------------------------------------------------------------------------------------------
def draw_crops(
    seed: int, name: str, count: int, size: tuple[int, int], scale: Sequence[float] = SCALE
) -> tuple[Tensor, Tensor]:
    """Crops of a picture as torchvision's RandomResizedCrop draws them, and flips by even chance; from seed and name alone.

    Args:
        size: (height, width) of the picture in pixels.
        scale: of the area.

    Returns:
        (count, 4) top, left, height and width as shares, and (count,).
    """
    words = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    draw = np.random.default_rng(int.from_bytes(words, "big"))
    height, width = size
    areas = draw.uniform(*scale, (count, 10)) * height * width
    ratios = np.exp(draw.uniform(*np.log(RATIO), (count, 10)))
    w, h = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)
    w, h = (v[np.arange(count), first] for v in (w, h))
    near = min(
        max(width / height, RATIO[0]), RATIO[1]
    )  # none of ten tries fits: the largest crop in the middle of a bearable shape
    widest = (min(width, round(height * near)), min(height, round(width / near)))
    none = ~fits.any(1)
    w, h = np.where(none, widest[0], w), np.where(none, widest[1], h)
    top, left = (np.floor(draw.random(count) * (side - part + 1)) for side, part in ((height, h), (width, w)))
    top, left = np.where(none, (height - h) // 2, top), np.where(none, (width - w) // 2, left)
    coords = np.stack([top / height, left / width, h / height, w / width], 1).astype(np.float32)
    return torch.from_numpy(coords), torch.from_numpy(draw.random(count) < 0.5)


def box_of(coords: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, upper, right and lower pixel of a crop in a picture of (height, width): each corner is rounded by itself, as FKD does."""
    height, width = size
    top, left, tall, wide = coords
    i, j = top * height, left * width
    box = round(j), round(i), round(j + wide * width), round(i + tall * height)
    left_, upper = min(max(box[0], 0), width - 1), min(max(box[1], 0), height - 1)
    return left_, upper, min(max(box[2], left_ + 1), width), min(max(box[3], upper + 1), height)


def cut(image: Image.Image, coords: Sequence[float], flip: bool, side: int, mode: Image.Resampling) -> np.ndarray:
    """A crop (side, side, C) as bytes."""
    box = box_of(coords, (image.height, image.width))
    part = np.asarray(
        image.crop(box).resize((side, side), mode)
    )  # not resize(box=), which looks at pixels beyond the box
    return part[:, ::-1] if flip else part


def _normalised(parts: Sequence[np.ndarray], mean: Tensor, std: Tensor, grey: bool = False) -> Tensor:
    """Bytes (H, W, 3) of several crops to (N, C, H, W)."""
    x = torch.from_numpy(np.ascontiguousarray(np.stack(parts))).permute(0, 3, 1, 2).float().div_(255)
    if grey:
        x = (x * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return x.sub_(mean).div_(std)


def _ends(preprocessing: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(preprocessing.get(k, d), dtype=torch.float32)
        for k, d in (("mean", (0.0,) * 3), ("std", (1.0,) * 3))
    )
    if channels == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def file_bytes(form: str, num_classes: int, crops: int, half: bool) -> int:
    """Size of a file of ours, about."""
    k = kept(form, num_classes)
    number, whole = (2 if half else 4), (2 if num_classes <= 2**15 else 4)
    label = whole if form == "hard" else k * (number + whole) if k else num_classes * number
    return crops * (4 * number + 1 + label) + 400


@dataclass
class Generated:
    """What a call of :func:`generate_soft_labels` did."""

    folder: Path
    files: int
    made: int
    bytes: int
    seconds: float
    per_second: float


@torch.inference_mode()
def generate_soft_labels(
    teacher: Any,
    images: Any,
    out: str | Path,
    *,
    classes: Sequence[str],
    crops: int = 500,
    form: str = "marginal_smoothing_k5",
    half: bool = False,
    seed: int = 0,
    scale: Sequence[float] = SCALE,
    size: int = 224,
    preprocessing: Mapping[str, Any] | None = None,
    columns: Sequence[int] | None = None,
    reference: str | Path | None = None,
    released: str = "",
    batch: int = 50,
    workers: int = 1,
    name: str = "",
    source: str = "",
    device: str | torch.device = "cpu",
    split: str = "train",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[..., None] | None = None,
) -> Generated:
    """Write the answers of a teacher to crops of pictures, one file a picture; what is there already is kept.

    Args:
        teacher: images (B, C, size, size) to logits (B, classes).
        images: a data set of (picture, class) with ``targets``.
        out: folder.
        classes: names of the data's classes.
        crops: of each picture.
        form: what is kept of an answer, one of :data:`FORMATS`.
        half: half precision for places and probabilities.
        seed: of the crops.
        scale: share of the area of a crop.
        size, preprocessing: as the teacher sees pictures: side in pixels, ``mean``, ``std``, ``interpolation``.
        columns: for each class its place among the teacher's outputs; default the same.
        reference: folder of soft labels whose crops are used again (with ``released``, of FKD's files).
        batch: crops at once; those of several pictures go together.
        workers: threads that cut and resize.
        name, source: of teacher and data, as they should read.
        split: of the pictures.
        say, progress: told what is made.

    Raises:
        DataError: the folder holds labels made in another way; what differs is named.
        OffprintError: a teacher with other outputs, or crops that cannot be.
    """
    if crops < 1 or batch < 1 or not 0 < scale[0] <= scale[1] <= 1:
        raise OffprintError(
            f"crops={crops}, batch={batch}, scale={tuple(scale)}; give 1 or more, and shares of the area in order"
        )
    kept(form, len(classes))
    if not len(images):
        raise DataError("there are no pictures to make labels of")
    out, began = Path(out), time.perf_counter()
    names = names_of(images, classes, split)
    old = None if reference is None else open_labels(reference, images, classes, released=released, split=split)
    about = {"data": digest_of(images, names, classes), "classes": list(map(str, classes)), "split": split, "teacher": name, "weights": weights_digest(teacher),
             "format": form, "crops": crops, "half": half, "seed": seed, "scale": list(scale), "size": size,
             "reference": "" if old is None else old.fingerprint or str(reference)}  # fmt: skip
    fingerprint = _fingerprint(about)
    if (out / INDEX).is_file():
        before = read_index(out)["about"]
        if differing := [k for k in about if before.get(k) != about[k]]:
            raise DataError(
                f"{out} holds soft labels with another {', '.join(differing)}; choose another --out, or delete the folder"
            )
    else:
        atomic_write(
            out / INDEX,
            json.dumps({"fingerprint": fingerprint, "about": about, "told": {"source": source}}, indent=1) + "\n",
        )
    expected = len(names) * file_bytes(form, len(classes), crops, half)
    say(f"{len(names):,} pictures x {crops} crops, {form}: about {expected / 2**20:,.1f} MiB in {out}")
    todo = [i for i, n in enumerate(names) if not _whole(out / f"{n}{SUFFIX}", fingerprint, n)]
    if len(todo) < len(names):
        say(f"{len(names) - len(todo):,} files are there already; {len(todo):,} to make")
    if progress:
        progress(total=len(todo))
    seen = dict(preprocessing or {})
    mode = Image.Resampling[str(seen.get("interpolation", "bicubic")).upper()]
    mean, std = _ends(seen, 3)
    teacher = teacher.to(device).eval()
    order = None if columns is None else torch.tensor(list(columns))
    waiting: list[tuple[int, Tensor, Tensor]] = []  # pictures whose crops are cut, and not all answered
    queue: list[np.ndarray] = []
    answers: list[Tensor] = []

    def answer(parts: list[np.ndarray]) -> None:
        logits = teacher(_normalised(parts, mean, std).to(device))
        logits = (logits[0] if isinstance(logits, tuple) else logits).float().cpu()
        if order is None and logits.shape[1] != len(classes):
            raise OffprintError(
                f"the teacher has {logits.shape[1]} outputs, the data {len(classes)} classes; they must be the same classes"
            )
        answers.append((logits if order is None else logits[:, order]).softmax(1))

    def write() -> None:
        done = torch.cat(answers)
        while waiting and len(done) >= len(waiting[0][1]):
            i, coords, flips = waiting.pop(0)
            mine, done = done[: len(coords)], done[len(coords) :]
            found = SoftLabels(coords, flips, quantize_soft_labels(mine, form))
            data = encode(found, form, len(classes), half, {"fingerprint": fingerprint, "name": names[i]})
            atomic_write(out / f"{names[i]}{SUFFIX}", data)
            if progress:
                progress(text=names[i])
        answers[:] = [done]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for i in todo:
            picture = images[i][0].convert("RGB")
            if old is None:
                coords, flips = draw_crops(seed, names[i], crops, (picture.height, picture.width), scale)
            else:
                held = old.read(i)
                coords, flips = held.coords[:crops], held.flips[:crops]
            pairs = list(zip(coords.tolist(), flips.tolist(), strict=True))
            one = lambda pair, p=picture: cut(p, *pair, size, mode)  # noqa: E731
            waiting.append((i, coords, flips))
            for start in range(0, len(pairs), batch):
                some = pairs[start : start + batch]
                queue += pool.map(one, some) if workers > 1 else map(one, some)
                while len(queue) >= batch:
                    answer(queue[:batch])
                    del queue[:batch]
            if answers:
                write()
        if queue:
            answer(queue)
            write()
    took = time.perf_counter() - began
    size_ = sum((out / f"{n}{SUFFIX}").stat().st_size for n in names)
    return Generated(out, len(names), len(todo), size_, took, len(todo) * crops / max(took, 1e-9))


def _whole(file: Path, fingerprint: str, name: str) -> bool:
    if not file.is_file():
        return False
    try:
        read_labels(file, fingerprint, name)
    except DataError:
        return False
    return True


def weights_digest(model: torch.nn.Module) -> str:
    """16 digits of a network's tensors."""
    whole = hashlib.sha256()
    for key, value in model.state_dict().items():
        whole.update(
            key.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else key.encode()
        )
    return whole.hexdigest()[:16]


def label(
    teacher: Any,
    data: Any,
    out: str | Path = "runs/labels",
    *,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    val_fraction: float = 0.2,
    data_seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Generated:
    """:func:`generate_soft_labels` of the training part of a data set, by a teacher that is a run or a model with weights.

    Args:
        teacher: the folder of a classifier's run, or a model name with ``pretrained`` or ``checkpoint``.
        data: labelled pictures.
        out: folder.
        val_fraction, data_seed: of the part held out, where the data have none of their own; as the student will be trained.
        options: as there.

    Raises:
        OffprintError: the teacher is no classifier, or its classes are not those of the data.
    """
    from offprint.tasks.classification import ImageClassification
    from offprint.tasks.contract import find

    ready = find(teacher, pretrained, checkpoint)
    if not isinstance(ready.task, ImageClassification):
        raise OffprintError(f"{teacher} {ready.task.does}; a teacher classifies pictures")
    splits = ready.task.open(data, seed=data_seed, val_fraction=val_fraction)
    columns, classes = None, list(map(str, splits.classes))
    known = list(map(str, ready.about.get("classes") or ()))
    if set(classes) <= set(known):
        columns = None if known == classes else [known.index(c) for c in classes]
    elif set(known) & set(classes) or len(known) != len(classes):
        lacking = [c for c in classes if c not in known]
        raise OffprintError(
            f"{teacher} knows {len(known)} classes, and not {', '.join(lacking[:4])} of the data's {len(classes)}; train a teacher on these classes"
        )
    else:
        say("the teacher's classes have other names than the data's; they are taken in the same order")
    settings: dict[str, Any] = {
        "size": ready.about["input_size"],
        "preprocessing": ready.about["preprocessing"],
        "name": str(ready.name),
    }
    settings |= {k: v for k, v in options.items() if v is not None}
    return generate_soft_labels(
        ready.model, splits.train, out, classes=classes, columns=columns, source=str(data), say=say, **settings
    )


def average(
    folders: Sequence[str | Path],
    images: Any,
    classes: Sequence[str],
    out: str | Path,
    form: str = "marginal_smoothing_k5",
) -> LabelStore:
    """The mean of several teachers' answers to the same crops, as soft labels of their own.

    Args:
        folders: of soft labels with the same crops (made with ``reference``).

    Raises:
        DataError: crops that differ.
    """
    stores = [open_labels(f, images, classes) for f in folders]
    about = {
        **read_index(folders[0])["about"],
        "format": form,
        "teacher": "mean",
        "weights": [s.fingerprint for s in stores],
    }
    fingerprint = _fingerprint(about)
    for i, name in enumerate(stores[0].names):
        found = [s.read(i) for s in stores]
        if any(
            not torch.equal(f.coords, found[0].coords) or not torch.equal(f.flips, found[0].flips) for f in found[1:]
        ):
            raise DataError(
                f"{name}: the crops differ between {' and '.join(map(str, folders))}; make the later ones with reference="
            )
        mean = torch.stack([s.recovered(f) for s, f in zip(stores, found, strict=True)]).mean(0)
        labels = SoftLabels(found[0].coords, found[0].flips, quantize_soft_labels(mean, form))
        data = encode(labels, form, len(classes), about["half"], {"fingerprint": fingerprint, "name": name})
        atomic_write(Path(out) / f"{name}{SUFFIX}", data)
    index = {"fingerprint": fingerprint, "about": about, "told": {"source": read_index(folders[0])["told"]["source"]}}
    atomic_write(Path(out) / INDEX, json.dumps(index, indent=1) + "\n")
    return open_labels(out, images, classes)


# -- learning from them --------------------------------------------------------------------------------------------------
class Replay(Dataset):
    """Crops of pictures with their labels: item ``(index, n)`` is (n, C, S, S) and (n, classes).

    Args:
        images: the pictures.
        store: their labels.
        side: of a crop, in pixels; it is made by bilinear resizing.
        preprocessing: ``mean`` and ``std`` of the student.
        channels: 3 or 1.
        adapt: ``adapt(distributions, largest stored probabilities, classes)`` to labels, kinds and scores; ``None``: as they are.
    """

    def __init__(
        self, images: Any, store: LabelStore, side: int, preprocessing: Mapping[str, Any], channels: int = 3,
        adapt: Adapt | None = None,
    ):  # fmt: skip
        self.images, self.store, self.side, self.adapt = images, store, side, adapt
        self.mean, self.std = _ends(preprocessing, channels)
        self.grey = channels == 1

    def __len__(self) -> int:
        return len(self.store)

    def choose(self, index: int, n: int) -> tuple[SoftLabels, Tensor, Tensor]:
        """The labels of a picture, ``n`` of its crops that have something to teach, and their distributions (n, classes)."""
        found = self.store.read(index)
        if self.adapt is None:
            valid = torch.arange(len(found.coords))
            whole = None
        else:
            whole, kinds, scores = self.store.adapted(found, int(self.images.targets[index]), self.adapt)
            valid = (kinds > 0).nonzero()[:, 0]
            valid = valid if len(valid) else scores.argmax()[None]
        order = valid[torch.randperm(len(valid))]
        chosen = order.repeat(-(-n // len(order)))[:n]  # without replacement, as long as there are enough
        if whole is None:
            part = SoftLabels(found.coords, found.flips, found.labels[chosen])
            return found, chosen, self.store.recovered(part)
        return found, chosen, whole[chosen]

    def cut_all(self, index: int, found: SoftLabels, chosen: Sequence[int] | None = None) -> Tensor:
        """Crops of a picture, those of ``chosen`` or all: (n, C, S, S)."""
        picture = self.images[index][0].convert("RGB")
        coords, flips = found.coords.tolist(), found.flips.tolist()
        which = range(len(coords)) if chosen is None else chosen
        parts = [cut(picture, coords[c], flips[c], self.side, Image.Resampling.BILINEAR) for c in which]
        return _normalised(parts, self.mean, self.std, self.grey)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, n = key
        found, chosen, labels = self.choose(index, n)
        return self.cut_all(index, found, chosen.tolist()), labels


class Visits(Dataset):
    """:class:`Replay` asked by (epoch, index, n): what is drawn depends on seed, epoch and index alone."""

    def __init__(self, base: Replay, seed: int):
        self.base, self.seeded = base, Seeded(base, seed)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, key: tuple[int, int, int]):
        epoch, index, n = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seeded.seed * 1_000_003 + epoch) * 2_147_483_629 + index & 0x7FFFFFFFFFFFFFFF)
            return self.base[index, n]


class CropSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of one epoch, which is as many crops as there are pictures.

    With n crops a picture a pass over the pictures lasts n epochs; in the last n epochs each picture comes with one crop.
    """

    def __init__(
        self, length: int, epoch: int, epochs: int, crops: int, batch: int, seed: int = 0, rank: int = 0, world: int = 1
    ):
        n = 1 if epoch >= epochs - crops else min(crops, length)
        whole, part = (epoch // n, epoch % n)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + (epoch if n == 1 else whole))
        order = torch.randperm(length, generator=generator).tolist()[part::n][rank::world]
        size = max(1, -(-batch // n))
        keys = [(epoch, i, n) for i in order]
        self.batches = [keys[k : k + size] for k in range(0, len(keys), size)]
        if len(self.batches) > 1 and len(self.batches[-1]) < size:
            self.batches.pop()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return iter(self.batches)
