r"""Eigen-CAM: class activation map using principal components (Bany Muhammad, Yeasin; IJCNN 2020; arXiv 2008.00299).

Where does a network look? Take one image's activations of a late layer, one row per pixel,
:math:`O \in \mathbb{R}^{hw \times C}`, and project each pixel on their first principal direction:

.. math:: O = U \Sigma V^\top, \qquad \mathrm{map} = O\, v_1 .

No class, no gradient, no extra training, so the map stays on the object even when the class is wrong. The map is rectified,
scaled to [0, 1] and resized to the image; over several layers the maps are averaged.

Two choices decide what the map looks like, and are made explicit here:

- *Centring.* The paper's formula takes O as it is (``center=False``). The implementation in general use (pytorch-grad-cam)
  subtracts each channel's mean first, which makes the map the first component of an ordinary PCA (``center=True``, default).
- *Sign.* A singular vector is fixed only up to its sign, and the wrong one lights up the background. ``"max"`` (default)
  makes the entry of largest magnitude positive, ``"mean"`` makes the map correlate with the mean activation, ``"sum"`` makes
  its sum positive (default without centring, where post-ReLU features give a map of one sign), ``"lapack"`` keeps what the
  SVD returned.

The singular vectors are those of the smaller Gram matrix (hw x hw or C x C) in float64. :meth:`CAM.explain` also reports the
share of the variance the map explains, and the ratio of the first two singular values: near 1 the direction is not stable.

Under the same call: EigenGradCAM (projects gradient x activation), SegEigenCAM (abs gradient x activation; Chung and Ying,
Appl. Sci. 2025, 15(13), 7562), KPCACAM (kernel PCA), and for comparison GradCAM (Selvaraju et al. 2017) and GradCAMPlusPlus
(Chattopadhay et al. 2018). Eigen-CAM is not class-discriminative: of two objects it shows the dominant one.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.errors import OffprintError, unknown
from offprint.methods.understanding._cam import CAM, Explanation, scale_maps
from offprint.methods.understanding._localisation import (
    box_from_map,
    box_iou,
    energy,
    localisation,
    overlay,
    pointing,
)
from offprint.nn.precision import wide_dtype

SIGNS = ("max", "mean", "sum", "lapack")
KERNELS = ("linear", "poly", "rbf", "sigmoid", "cosine")


def _pixels(activations: Tensor, center: bool) -> Tensor:
    """(N, C, *grid) to (N, pixels, C) in float64 on a device that has it; missing values become 0."""
    if activations.ndim < 3:
        raise OffprintError(
            f"activations (N, C, *grid) expected, a tensor of shape {tuple(activations.shape)} was given"
        )
    host = activations.cpu() if activations.device.type == "mps" else activations
    rows = torch.where(torch.isnan(host), 0, host).double().flatten(2).transpose(1, 2)
    if not torch.isfinite(rows).all():
        raise OffprintError(
            "the activations hold infinite values, so they have no principal direction; check the input"
        )
    return rows - rows.mean(1, keepdim=True) if center else rows


def _leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest eigenvalues (N, 2), largest first, and the first eigenvector (N, n), of symmetric (N, n, n)."""
    n = gram.shape[-1]
    if gram.device.type != "cpu" or n <= 32:
        values, vectors = torch.linalg.eigh(gram)
        return F.pad(values, (1, 0))[:, -2:].flip(-1), vectors[:, :, -1]
    both = [scipy.linalg.eigh(g, subset_by_index=(n - 2, n - 1)) for g in gram.numpy()]
    return torch.from_numpy(np.stack([v[::-1] for v, _ in both])), torch.from_numpy(
        np.stack([e[:, 1] for _, e in both])
    )


def _oriented(score: Tensor, rows: Tensor, sign: str) -> Tensor:
    """Flip each image's scores (N, pixels) by the rule."""
    if sign == "max":
        flip = score.amin(1).abs() > score.amax(1).abs()
    elif sign == "mean":
        flip = (score * rows.mean(2)).sum(1) < 0
    else:
        flip = score.sum(1) < 0
    return torch.where(flip[:, None], -score, score)


def principal_component(
    activations: Tensor, *, center: bool = True, sign: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first principal component of each image's pixels, how much it explains, and how well it is determined.

    Args:
        activations: (N, C, h, w) or (N, C, d, h, w); missing values count as 0.
        center: subtract each channel's mean over the pixels first.
        sign: ``"max"``, ``"mean"``, ``"sum"`` or ``"lapack"``; default ``"max"``, without centring ``"sum"``.

    Returns:
        Projection (N, *grid) in the activations' precision, float32 at least; share (N,) of the summed squares that it
        explains, 0 for a constant map; the two largest singular values (N, 2).
    """
    sign = sign or ("max" if center else "sum")
    if sign not in SIGNS:
        raise unknown("sign rule", sign, SIGNS)
    rows, kind = _pixels(activations, center), wide_dtype(activations.dtype)
    shape, (_, pixels, channels) = activations.shape, rows.shape
    total = rows.square().sum((1, 2))
    if sign == "lapack":
        parts = [np.linalg.svd(r, full_matrices=False) for r in rows.to(kind).cpu().numpy()]
        direction = torch.from_numpy(np.stack([vt[0] for _, _, vt in parts])).to(rows)
        singular = torch.from_numpy(np.stack([np.pad(s, (0, 1))[:2] for _, s, _ in parts])).to(rows)
        score = torch.einsum("npc,nc->np", rows, direction)
    else:
        if pixels <= channels:
            values, vector = _leading(rows @ rows.mT)
            score = vector * values[:, :1].clamp(min=0).sqrt()
        else:
            values, vector = _leading(rows.mT @ rows)
            score = torch.einsum("npc,nc->np", rows, vector)
        singular = values.clamp(min=0).sqrt()
        score = _oriented(score, rows, sign)
    explained = torch.where(total > 0, singular[:, 0].square() / total.clamp(min=1e-300), 0)
    projection = score.to(kind).to(activations.device).unflatten(1, shape[2:])
    return projection, explained.to(kind).clamp(max=1), singular.to(kind)


def eigen_projection(activations: Tensor, *, center: bool = True, sign: str | None = None) -> Tensor:
    """Each image's pixels projected on their first principal direction: (N, C, *grid) to (N, *grid).

    Arguments as in :func:`principal_component`.
    """
    return principal_component(activations, center=center, sign=sign)[0]


def kernel_projection(
    activations: Tensor, *, kernel: str = "sigmoid", gamma: float | None = None, sign: str = "max"
) -> tuple[Tensor, Tensor]:
    r"""First component of kernel PCA (KPCA-CAM): (N, C, *grid) to scores (N, *grid) and the share (N,) they explain.

    Args:
        kernel: on centred rows x, y: ``linear`` :math:`x^\top y`, ``poly`` :math:`(\gamma x^\top y + 1)^3`, ``rbf``
            :math:`e^{-\gamma |x-y|^2}`, ``sigmoid`` :math:`\tanh(\gamma x^\top y + 1)`, ``cosine``. The kernel matrix is centred.
        gamma: default 1 / C.
        sign: ``"max"``, ``"mean"`` or ``"sum"``.
    """
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if sign not in SIGNS[:3]:
        raise unknown("sign rule of kernel PCA", sign, SIGNS[:3])
    rows = _pixels(activations, True)
    gamma = 1 / rows.shape[2] if gamma is None else gamma
    inner = rows @ rows.mT
    if kernel == "poly":
        inner = (gamma * inner + 1) ** 3
    elif kernel == "rbf":
        square = inner.diagonal(dim1=1, dim2=2)
        inner = torch.exp(-gamma * (square[:, :, None] + square[:, None] - 2 * inner).clamp(min=0))
    elif kernel == "sigmoid":
        inner = torch.tanh(gamma * inner + 1)
    elif kernel == "cosine":
        unit = F.normalize(rows, dim=2)
        inner = unit @ unit.mT
    centred = inner - inner.mean(1, keepdim=True) - inner.mean(2, keepdim=True) + inner.mean((1, 2), keepdim=True)
    values, vector = _leading(centred)
    score = _oriented(vector * values[:, :1].clamp(min=0).sqrt(), rows, sign)
    total = centred.diagonal(dim1=1, dim2=2).sum(1)
    explained = torch.where(total > 0, values[:, 0] / total.clamp(min=1e-300), 0)
    grid, kind = activations.shape[2:], wide_dtype(activations.dtype)
    return score.to(kind).to(activations.device).unflatten(1, grid), explained.to(kind).clamp(0, 1)


class EigenCAM(CAM):
    """First principal component of the activations; no class, no gradients.

    Args:
        model, layers, reshape_transform: see :class:`CAM`.
        sign: ``"max"``, ``"mean"``, ``"sum"`` or ``"lapack"``; default ``"max"``, without centring ``"sum"``.
        center: subtract each channel's mean (the implementation in general use); ``False``: the paper's formula.
    """

    def __init__(self, model, layers=None, sign: str | None = None, center: bool = True, *, reshape_transform=None):
        super().__init__(model, layers, reshape_transform=reshape_transform)
        if sign is not None and sign not in SIGNS:
            raise unknown("sign rule", sign, SIGNS)
        self.sign, self.center = sign, center

    def features(self, activations: Tensor, gradients: Tensor | None) -> Tensor:
        """What is projected."""
        return activations

    def project(self, activations, gradients, eigen_smooth):
        return principal_component(self.features(activations, gradients), center=self.center, sign=self.sign)


class EigenGradCAM(EigenCAM):
    """First principal component of gradient x activation: class-specific. Arguments as :class:`EigenCAM`."""

    uses_gradients = True

    def features(self, activations, gradients):
        return gradients * activations


class SegEigenCAM(EigenCAM):
    """First principal component of |gradient| x activation, sign rule "max"; made for segmentation networks.

    Arguments as :class:`EigenCAM`.
    """

    uses_gradients = True

    def features(self, activations, gradients):
        return gradients.abs() * activations


class KPCACAM(CAM):
    """First component of kernel PCA of the activations; no class, no gradients.

    Args:
        model, layers, reshape_transform: see :class:`CAM`.
        kernel, gamma, sign: see :func:`kernel_projection`.
    """

    def __init__(
        self, model, layers=None, kernel: str = "sigmoid", gamma: float | None = None, sign: str = "max",
        *, reshape_transform=None,
    ):  # fmt: skip
        super().__init__(model, layers, reshape_transform=reshape_transform)
        if kernel not in KERNELS:
            raise unknown("kernel", kernel, KERNELS)
        self.kernel, self.gamma, self.sign = kernel, gamma, sign

    def project(self, activations, gradients, eigen_smooth):
        maps, explained = kernel_projection(activations, kernel=self.kernel, gamma=self.gamma, sign=self.sign)
        return maps, explained, None


class GradCAM(CAM):
    """Activations summed with each channel's mean gradient as its weight (Selvaraju et al. 2017); class-specific."""

    uses_gradients = True

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """One weight per channel, (N, C, 1, ...)."""
        return gradients.mean(tuple(range(2, gradients.ndim)), keepdim=True)

    def project(self, activations, gradients, eigen_smooth):
        weighted = self.weights(activations, gradients) * activations
        return principal_component(weighted) if eigen_smooth else (weighted.sum(1), None, None)


class GradCAMPlusPlus(GradCAM):
    """GradCAM whose weights count positive gradients, each pixel weighted by (their eq. 19) g^2 / (2 g^2 + g^3 sum A)."""

    def weights(self, activations, gradients):
        axes = tuple(range(2, gradients.ndim))
        square, total = gradients.square(), activations.sum(axes, keepdim=True)
        share = square / (2 * square + total * square * gradients + 1e-6)
        return (gradients.clamp(min=0) * torch.where(gradients != 0, share, 0)).sum(axes, keepdim=True)


METHODS: dict[str, type[CAM]] = {
    "eigen-cam": EigenCAM,
    "eigen-grad-cam": EigenGradCAM,
    "seg-eigen-cam": SegEigenCAM,
    "kpca-cam": KPCACAM,
    "grad-cam": GradCAM,
    "grad-cam-plus-plus": GradCAMPlusPlus,
}

__all__ = [
    "CAM",
    "EigenCAM",
    "EigenGradCAM",
    "Explanation",
    "GradCAM",
    "GradCAMPlusPlus",
    "KPCACAM",
    "METHODS",
    "SegEigenCAM",
    "box_from_map",
    "box_iou",
    "eigen_projection",
    "energy",
    "kernel_projection",
    "localisation",
    "overlay",
    "pointing",
    "principal_component",
    "scale_maps",
]
