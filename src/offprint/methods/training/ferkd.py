r"""FerKD: Surgical Label Adaptation for Efficient Distillation (Shen; ICCV 2023; arXiv 2312.17473), with FKD, on whose files it rests.

A teacher's answers :math:`p` to :math:`M` crops of each image are written down once, with where the crops were (FKD, Fast Knowledge
Distillation, Shen and Xing 2022). A student then learns from the files; the teacher is not there any more:

.. math:: L = -\frac1{|B|} \sum_{x \in B} \sum_c q_c(x) \log \mathrm{softmax}_c\big(f(x)\big).

A file keeps the answer short: the most probable class (``hard``), also its probability (``smoothing``), the ``k`` largest
(``marginal_smoothing_k5``, ``marginal_renorm_k5``), or all (``ori``). Of what is not kept, smoothing gives each other class the same
share :math:`(1 - \sum_k p_k) / (C - k)`; re-normalisation gives it none and divides by :math:`\sum_k p_k`.

FerKD adapts the labels to how sure the teacher was, :math:`s` being its largest probability (or that of the ground truth):

* :math:`s < T_L` or :math:`s > T_T`: nothing to learn from; the crop is not drawn. Where no crop is left, the surest is.
* :math:`T_L \le s < T_M`: a hard region: :math:`1 - \epsilon` for the ground truth, :math:`\epsilon / (C - 1)` for each other class.
* else: the teacher's answer.

**SelfMix** mixes a crop (Mixup or CutMix) with another crop of the same image, for which a batch lies crop by crop: row :math:`j B + i` is
crop j of image i.

The code of FKD is public (github.com/szq0214/FKD), that of FerKD's training is not: the thresholds and :math:`\epsilon` are choices of
ours. Our files are safetensors, with a fingerprint of data, crops and teacher; those of FKD (torch files of NumPy arrays) are read too,
without running anything they hold. Released students are plain files of torchvision and timm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.errors import OffprintError, unknown
from offprint.methods.registry import Method, register_method
from offprint.methods.training._soft_labels import (
    FORMATS,
    KINDS,
    Replay,
    generate_soft_labels,
    open_labels,
    quantize_soft_labels,
    read_released,
    recover_soft_labels,
    top_values,
)
from offprint.tasks.hooks import around_step

LOW, MIDDLE, TOP, EPSILON = 0.1, 0.3, 0.95, 0.1
SCORES = ("top1", "groundtruth")
MIXES = ("none", "selfmix", "batch")

__all__ = [
    "FORMATS",
    "KINDS",
    "FerKD",
    "Regions",
    "calibrate_regions",
    "crop_major",
    "cut_box",
    "generate_soft_labels",
    "mix",
    "open_labels",
    "partners",
    "quantize_soft_labels",
    "random_mix",
    "read_released",
    "recover_soft_labels",
    "regions",
    "selfmix",
    "soft_cross_entropy",
    "softened",
    "top_values",
]


# -- the loss ------------------------------------------------------------------------------------------------------------
def soft_cross_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over the batch of the cross-entropy of logits (B, C) to distributions (B, C)."""
    return F.cross_entropy(logits / temperature, labels)


# -- regions -------------------------------------------------------------------------------------------------------------
def check_thresholds(low: float, middle: float, top: float, epsilon: float) -> None:
    """Refuse thresholds that are not in order, and an epsilon that is no share."""
    if not 0 <= low <= middle <= top <= 1:
        raise OffprintError(
            f"thresholds low={low}, middle={middle}, top={top}; expected 0 <= low <= middle <= top <= 1"
        )
    if not 0 <= epsilon < 1:
        raise OffprintError(f"epsilon={epsilon}; expected a share from 0 to below 1")


def regions(scores: Tensor, low: float = LOW, middle: float = MIDDLE, top: float = TOP) -> Tensor:
    """Kinds (M,) of crops with these scores, as places in :data:`KINDS`."""
    kinds = torch.full_like(scores, 2, dtype=torch.long)
    kinds[scores < middle] = 1
    kinds[(scores < low) | (scores > top)] = 0
    return kinds


def softened(target: Tensor, num_classes: int, epsilon: float = EPSILON, dtype: torch.dtype = torch.float32) -> Tensor:
    """Softened hard labels (M, C) of classes (M,)."""
    rest = torch.full((len(target), num_classes), epsilon / (num_classes - 1), device=target.device, dtype=dtype)
    return rest.scatter(1, target[:, None], 1 - epsilon)


def calibrate_regions(
    probabilities: Tensor, target: Tensor, low: float = LOW, middle: float = MIDDLE, top: float = TOP, epsilon: float = EPSILON,
    score: str = "top1", stored_top: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """FerKD's labels of crops.

    Args:
        probabilities: (M, C), recovered.
        target: (M,), the images' classes.
        low, middle, top, epsilon: see the module.
        score: ``top1``, the teacher's largest probability, or ``groundtruth``, that of the image's class.
        stored_top: (M,), the largest probability as it was stored, where recovering changed it.

    Returns:
        Labels (M, C), kinds (M,) as places in :data:`KINDS`, and scores (M,). Labels of discarded crops are the teacher's.
    """
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    check_thresholds(low, middle, top, epsilon)
    if score == "groundtruth":
        scores = probabilities.gather(1, target[:, None])[:, 0]
    else:
        scores = probabilities.amax(1) if stored_top is None else stored_top
    kinds = regions(scores, low, middle, top)
    hard = softened(target, probabilities.shape[1], epsilon, probabilities.dtype)
    return torch.where((kinds == 1)[:, None], hard, probabilities), kinds, scores


@dataclass(frozen=True)
class Regions:
    """The arguments of :func:`calibrate_regions`, to be applied to each picture's labels as they are read."""

    low: float = LOW
    middle: float = MIDDLE
    top: float = TOP
    epsilon: float = EPSILON
    score: str = "top1"

    def __call__(self, probabilities: Tensor, stored_top: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return calibrate_regions(
            probabilities, target, self.low, self.middle, self.top, self.epsilon, self.score, stored_top
        )


# -- mixing --------------------------------------------------------------------------------------------------------------
def crop_major(batch: Tensor) -> Tensor:
    """(B, n, ...) to (n * B, ...): all first crops, then all second ones."""
    return batch.transpose(0, 1).flatten(0, 1)


def partners(permutation: Sequence[int] | Tensor, images: int) -> Tensor:
    """Row that each row of a crop-major batch is mixed with: of the same image, crop ``permutation[j]`` for crop j."""
    slots = torch.as_tensor(permutation)
    return (slots[:, None] * images + torch.arange(images, device=slots.device)).flatten()


def mix(
    images: Tensor, labels: Tensor, rows: Tensor, lam: float, box: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, float]:
    """Mixup, or CutMix where a box is given, with the images and labels of other rows of the batch.

    Args:
        images, labels: (N, C, H, W) and (N, classes).
        rows: (N,).
        lam: share of the image itself; with a box what is left outside of it.
        box: (first row, end row, first column, end column).

    Returns:
        Images, labels, and the share that counts.
    """
    if box is None:
        mixed = lam * images + (1 - lam) * images[rows]
    else:
        top, bottom, left, right = box
        height, width = images.shape[-2:]
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[rows][..., top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, lam * labels + (1 - lam) * labels[rows], lam


def selfmix(
    images: Tensor, labels: Tensor, permutation: Sequence[int] | Tensor, lam: float, box: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, float]:
    """:func:`mix` with another crop of the same image.

    Args:
        images, labels: crop-major, (n * B, ...).
        permutation: of the n crops.
        lam, box: as there.

    Raises:
        OffprintError: rows that are no whole number of images.
    """
    if len(images) % len(permutation):
        raise OffprintError(
            f"{len(images)} rows are no {len(permutation)} crops of each image; give a crop-major batch"
        )
    rows = partners(permutation, len(images) // len(permutation)).to(images.device)
    return mix(images, labels, rows, lam, box)


def cut_box(height: int, width: int, lam: float) -> tuple[int, int, int, int]:
    """A box of about a share ``1 - lam`` of the area around a place drawn evenly, clipped: (first row, end row, first column, end column)."""
    tall, wide = (int(side * math.sqrt(1 - lam)) // 2 for side in (height, width))
    y, x = (int(torch.randint(side, ())) for side in (height, width))
    return max(0, y - tall), min(height, y + tall), max(0, x - wide), min(width, x + wide)


def random_mix(images: Tensor, labels: Tensor, crops: int, which: str = "selfmix") -> tuple[Tensor, Tensor]:
    """A batch mixed as FKD does: Mixup with Beta(0.8, 0.8) or CutMix with Beta(1, 1), one or the other by even chance, one share for all.

    Args:
        images, labels: crop-major.
        crops: of each image.
        which: ``selfmix``: with another crop of the same image; ``batch``: with any row; ``none``.
    """
    if which not in MIXES:
        raise unknown("mix", which, MIXES)
    if which == "none" or (which == "selfmix" and crops < 2):
        return images, labels
    cut = bool(torch.rand(()) < 0.5)
    alpha = torch.tensor(1.0 if cut else 0.8)
    lam = float(torch.distributions.Beta(alpha, alpha).sample())
    box = cut_box(*images.shape[-2:], lam) if cut else None
    if which == "selfmix":
        turn = int(torch.randint(1, crops, ()))  # a crop is never its own partner
        rows = partners((torch.arange(crops) + turn) % crops, len(images) // crops)
    else:
        rows = torch.randperm(len(images))
    return mix(images, labels, rows.to(images.device), lam, box)[:2]


# -- the method ----------------------------------------------------------------------------------------------------------
@register_method
@dataclass(kw_only=True)
class FerKD(Method):
    """Trains a classifier from a teacher's stored answers to crops; the teacher is not needed.

    Args:
        labels: folder of soft labels (offprint label), or of FKD's files with released.
        crops: of an image in a batch; in the last so many epochs one.
        calibrate: adapt the labels to the regions (FerKD); without, all are taken as they are (FKD).
        low: below this score a crop is not drawn.
        middle: below this score the label is the softened ground truth.
        top: above this score a crop is not drawn.
        epsilon: share of the softened label that the other classes have.
        score: top1, the teacher's largest probability, or groundtruth, that of the image's class.
        mix: none, selfmix (Mixup and CutMix among the crops of an image), or batch (among all).
        released: format of FKD's own files, such as marginal_smoothing_k5, where labels are those.
    """

    name = "ferkd"
    paper = "ferkd"
    kind = "data"
    changes = "the training pictures and their labels: stored crops with stored answers of a teacher"
    replaces = ("labels", "loss")

    labels: str | None = None
    crops: int = 4
    calibrate: bool = True
    low: float = LOW
    middle: float = MIDDLE
    top: float = TOP
    epsilon: float = EPSILON
    score: str = "top1"
    mix: str = "none"
    released: str = ""

    def __post_init__(self):
        check_thresholds(self.low, self.middle, self.top, self.epsilon)
        for name, known in (("score", SCORES), ("mix", MIXES)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.crops < 1:
            raise OffprintError(f"crops={self.crops}; give 1 or more")
        if self.mix == "selfmix" and self.crops < 2:
            raise OffprintError("selfmix mixes crops of one image; give crops=2 or more")

    def _regions(self) -> Regions:
        return Regions(self.low, self.middle, self.top, self.epsilon, self.score)

    def settle(self, job: Any) -> None:
        if not self.labels:
            raise OffprintError(
                "ferkd learns from stored labels: labels=DIR, made by offprint label --teacher RUN --data ... --out DIR"
            )
        if not hasattr(job.how, "label_smoothing"):
            raise OffprintError(
                f"ferkd trains classifiers of pictures, and {job.model} is trained by another kind of recipe"
            )
        unused = {
            "mixup": 0.0,
            "cutmix": 0.0,
            "label_smoothing": 0.0,
            "color_jitter": 0.0,
            "auto_augment": "",
            "random_erasing": 0.0,
        }
        left = [name for name, none in unused.items() if getattr(job.how, name) != none]
        if left:
            job.say(f"stored crops take the place of the recipe's {', '.join(left)}")
            job.how = replace(job.how, **{name: unused[name] for name in left})

    def data(self, job: Any) -> None:
        if not hasattr(job.data, "classes"):
            raise OffprintError("ferkd trains classifiers of pictures")
        self.store = open_labels(self.labels, job.data.train, job.data.classes, released=self.released)
        if self.calibrate:
            top_values(self.store.read(0).labels, self.store.form)  # hard labels are refused before any work
            shares = self.store.shares(job.data.train.targets, self._regions())
            self.found = {k: round(100 * v, 2) for k, v in shares.items()}
            job.say(
                "crops: "
                + ", ".join(
                    f"{100 * shares[k]:.1f} % {w}" for k, w in zip(KINDS, ("dropped", "hard", "soft"), strict=True)
                )
            )
        job.say(self.store.told())

    def loaders(self, job: Any, loaders: Any) -> Any:
        from offprint.methods.training._replay import ReplayData
        from offprint.tasks.classification import side_of

        preprocessing, channels = job.how.pictures(job.entry.preprocessing), getattr(job.network, "in_chans", 3)
        adapt = self._regions() if self.calibrate else None
        self.replay = Replay(job.data.train, self.store, side_of(job), preprocessing, channels, adapt)
        return ReplayData(self.replay, loaders, self.crops, job.how.epochs)

    def module(self, job: Any, module: Any) -> Any:
        def step(_: Callable, batch: Any, batch_idx: int) -> Tensor:
            images, labels = (crop_major(t) for t in batch)
            images, labels = random_mix(images, labels, batch[0].shape[1], self.mix)
            output = job.network(images)
            first, *side = output if isinstance(output, tuple) else (output,)
            loss = soft_cross_entropy(first, labels)
            if side:  # a side classifier's logits
                own = job.how.aux_weight
                loss = loss + (job.network.aux_weight if own is None else own) * soft_cross_entropy(side[0], labels)
            module.check_loss(loss)
            module.log("train_loss", loss, prog_bar=True)
            return loss

        around_step(module, step)
        return module

    def finish(self, job: Any) -> Mapping[str, Any]:
        return {"bytes": self.store.bytes, **({"crops_percent": self.found} if self.calibrate else {})}
