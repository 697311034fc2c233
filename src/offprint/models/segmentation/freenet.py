r"""FPGA: Fast Patch-Free Global Learning Framework for Hyperspectral Image Classification (Zheng, Zhong, Ma, Zhang; IEEE TGRS 2020;
arXiv 2011.05670).

A hyperspectral scene is one image with hundreds of bands and a class for some of its pixels. Instead of cutting a patch around every
labelled pixel, the whole scene passes through one fully convolutional network, and each step's loss looks at a few pixels of it,

.. math:: L = \frac{\sum_p m_p\, \mathrm{CE}(f(x)_p, y_p)}{\sum_p m_p},

where the mask :math:`m` is one of a random sequence of mini-batches with the same number of pixels of every class (global stochastic
stratified sampling, Sec. III-B): the gradients of one full image differ from step to step, and no class is forgotten.

FreeNet (Sec. III-C) is an encoder of four resolutions whose blocks weigh channels (squeeze and excitation) before each 3x3 convolution,
joined from the top by sums of reduced maps. GroupNorms have eps 1e-5; parameter names are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import DataError, OffprintError
from offprint.models.registry import register

SEED = 2333  # of the authors' split, seeds, and order


class SEGate(nn.Module):
    """Channels times a gate from their means, over ``dim / reduction`` channels."""

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        self.seq = nn.Sequential(
            nn.Linear(dim, dim // reduction), nn.ReLU(), nn.Linear(dim // reduction, dim), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to the same shape."""
        return x * self.seq(x.mean((2, 3)))[:, :, None, None]


def _conv(cin: int, cout: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.GroupNorm(groups, cout), nn.ReLU())


def _block(dim: int, groups: int) -> nn.Sequential:
    return nn.Sequential(SEGate(dim, groups), _conv(dim, dim, groups))


class FreeNet(nn.Module):
    """Class probabilities of every pixel of a scene.

    Args:
        in_chans: bands.
        num_classes: classes, the background not among them.
        block_channels: widths of the four resolutions before the reduction.
        num_blocks: blocks of each.
        inner_dim: width of the decoder before the reduction.
        reduction_ratio: factor on all widths (0.5 is the slim form).

    Scenes (B, in_chans, H, W) of any size are padded with zeros below and to the right to a multiple of 16, as in the paper.
    :meth:`forward` gives probabilities (B, num_classes, H, W) in evaluation and logits in training; :meth:`logits` always these.
    """

    size_multiple = 16

    def __init__(
        self,
        in_chans: int = 103,
        num_classes: int = 9,
        block_channels: Sequence[int] = (96, 128, 192, 256),
        num_blocks: Sequence[int] = (1, 1, 1, 1),
        inner_dim: int = 128,
        reduction_ratio: float = 1.0,
    ):
        super().__init__()
        groups = int(16 * reduction_ratio)
        if groups < 1:
            raise OffprintError(f"reduction_ratio={reduction_ratio}; 16 times it must be at least 1")
        if len(block_channels) != len(num_blocks):
            raise OffprintError(
                f"block_channels {tuple(block_channels)} and num_blocks {tuple(num_blocks)} must name the same resolutions"
            )
        self.in_chans, self.num_classes = in_chans, num_classes
        widths = [int(c * reduction_ratio / groups) * groups for c in block_channels]
        inner = int(inner_dim * reduction_ratio)
        layers: list[nn.Module] = [_conv(in_chans, widths[0], groups)]
        self.taps: list[int] = []
        for k, (width, count) in enumerate(zip(widths, num_blocks, strict=True)):
            layers += [nn.Sequential(*(_block(width, groups) for _ in range(count))), nn.Identity()]
            self.taps.append(len(layers) - 1)
            if k + 1 < len(widths):
                layers.append(nn.Sequential(nn.Conv2d(width, widths[k + 1], 3, 2, 1), nn.ReLU()))
        self.feature_ops = nn.ModuleList(layers)
        self.reduce_1x1convs = nn.ModuleList(nn.Conv2d(width, inner, 1) for width in widths)
        self.fuse_3x3convs = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in widths)
        self.cls_pred_conv = nn.Conv2d(inner, num_classes, 1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of scenes (B, in_chans, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise OffprintError(
                f"expected scenes (B, {self.in_chans}, H, W), got {tuple(x.shape)}; bands come before rows and columns, and the model is "
                f"built with in_chans= their number"
            )
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.size_multiple, 0, -height % self.size_multiple))
        maps = []
        for i, layer in enumerate(self.feature_ops):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        maps = [reduce(y) for reduce, y in zip(self.reduce_1x1convs, maps, strict=True)][::-1]
        out = self.fuse_3x3convs[0](maps[0])
        for fuse, lateral in zip(list(self.fuse_3x3convs)[1:], maps[1:], strict=True):
            out = fuse(F.interpolate(out, scale_factor=2.0, mode="nearest") + lateral)
        return self.cls_pred_conv(out)[..., :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        y = self.logits(x)
        return y if self.training else y.softmax(1)


def masked_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of a mini-batch (Eq. 4).

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W), 1 to K, 0 for pixels without a class; in the mask such a pixel costs nothing and is counted.
        mask: (B, H, W), the pixels of the mini-batch, or their weights.
    """
    each = F.cross_entropy(logits, labels.long() - 1, ignore_index=-1, reduction="none")
    mask = mask.to(each.dtype)
    return (each * mask).sum() / mask.sum()


# -- global stochastic stratified sampling ------------------------------------------------------------------------------
def fixed_num_sample(
    labels: np.ndarray, per_class: int, classes: int, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Split labelled pixels: so many of each class to learn from, the others to test on (all of a class that has fewer are learnt from).

    Args:
        labels: (H, W), 0 for none.
        per_class: pixels of each class.
        classes: number of classes.
        seed: of numpy's legacy generator, which is part of the split's definition.

    Returns:
        Two masks (H, W) of booleans.
    """
    flat, state = labels.ravel(), np.random.RandomState(seed)
    train, test = (np.zeros(flat.shape, bool) for _ in range(2))
    for c in range(1, classes + 1):
        where = np.where(flat == c)[0]
        state.shuffle(where)
        train[where[:per_class]], test[where[per_class:]] = True, True
    return train.reshape(labels.shape), test.reshape(labels.shape)


def minibatch_sample(labels: np.ndarray, train: np.ndarray, minibatch: int, seed: int) -> list[np.ndarray]:
    """One epoch's mini-batches: ``minibatch`` pixels of every class in each, drawn without replacement, until none is left.

    Args:
        labels: (H, W).
        train: (H, W), the pixels to learn from.
        minibatch: pixels of a class in a mini-batch; the last piece of a class may be shorter, and a class that is used up is left out.
        seed: of the shuffles.

    Returns:
        Flat indices (row-major), sorted, of each mini-batch.
    """
    state, flat = np.random.RandomState(seed), labels.ravel()
    shuffled = []
    for c in np.unique(flat):
        where = np.where((flat == c) & train.ravel())[0]
        state.shuffle(where)
        shuffled.append(where)
    batches = []
    while True:
        at = len(batches) * minibatch
        chosen = np.concatenate([where[at : at + minibatch] for where in shuffled])
        if not len(chosen):
            return batches
        batches.append(np.sort(chosen))


class StratifiedSampler:
    """The mini-batches of every epoch, as the authors draw them.

    Args:
        labels: (H, W), 0 for pixels without a class.
        train: (H, W), the pixels to learn from.
        minibatch: pixels of each class in a mini-batch.
        seed: of the list of seeds and of the order.

    An epoch's mini-batches follow from its number alone, so that a run can go on anywhere.
    """

    SEEDS = 9999

    def __init__(self, labels: np.ndarray, train: np.ndarray, minibatch: int = 20, seed: int = SEED):
        if minibatch < 1:
            raise OffprintError(f"minibatch={minibatch}; give the pixels of a class in a mini-batch, 1 or more")
        if not train.any():
            raise OffprintError("there is not one pixel to learn from")
        self.labels, self.train, self.minibatch, self.seed = labels, train, minibatch, seed
        self.seeds = np.random.RandomState(seed).randint(2**31, size=self.SEEDS)
        self.count = len(minibatch_sample(labels, train, minibatch, int(self.seeds[-1])))

    def order(self, epoch: int) -> list[int]:
        """In which the mini-batches of an epoch (from 0) are taken."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.count, generator=generator)
        return torch.randperm(self.count, generator=generator).tolist()

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Mini-batches of an epoch (from 0) in their order: flat indices of pixels."""
        # the last seed is used when the authors' data set is made, those before it one an epoch
        seed = int(self.seeds[-2 - epoch % (self.SEEDS - 1)])
        batches = minibatch_sample(self.labels, self.train, self.minibatch, seed)
        return [batches[i] for i in self.order(epoch)]


def scores(predicted: Tensor, labels: Tensor, classes: int, added: float = 1e-6) -> dict[str, Any]:
    """Overall and average accuracy and Cohen's kappa over the pixels that have a class.

    Args:
        predicted, labels: classes from 1; pixels labelled 0 do not count.
        classes: number of classes.
        added: to the number of pixels of each class, as in the authors' code.

    Returns:
        ``oa``, ``aa``, ``kappa`` and ``per_class`` as shares; ``aa_tested`` is the mean over the classes that have pixels at all.
    """
    keep = labels > 0
    truth, said = labels[keep].long() - 1, predicted[keep].long() - 1
    if not len(truth):
        raise DataError("not one pixel has a class to be judged by")
    counts = torch.bincount(truth * classes + said, minlength=classes * classes).view(classes, classes).double()
    total, hit, of = counts.sum(), counts.diag(), counts.sum(1)
    agreed, chance = hit.sum() / total, (counts.sum(0) * of).sum() / total**2
    each = hit / (of + added)
    return {
        "oa": float(agreed),
        "aa": float(each.mean()),
        "kappa": float((agreed - chance) / (1 - chance)) if chance < 1 else 1.0,
        "per_class": each.tolist(),
        "aa_tested": float((hit / of.clamp(min=1))[of > 0].mean()),
    }


def poly_rate(step: int, total: int, lr: float = 1e-3, power: float = 0.9) -> float:
    """The rate of a step (from 0): ``lr * (1 - step / total) ** power``."""
    return lr * (1 - step / total) ** power


VARIANTS = {
    "freenet_pavia": {"in_chans": 103, "num_classes": 9},
    "freenet_salinas": {"in_chans": 204, "num_classes": 16},
    "freenet_houston": {"in_chans": 144, "num_classes": 15},
    "freenet": {},
    "freenet_slim": {"reduction_ratio": 0.5},
}
register(
    paper="freenet",
    kind="segmentation",
    task="scenes",
    build=FreeNet,
    variants=VARIANTS,
    input_size=None,
)
