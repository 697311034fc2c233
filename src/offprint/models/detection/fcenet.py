r"""Fourier Contour Embedding for Arbitrary-Shaped Text Detection (Zhu et al.; CVPR 2021; arXiv 2104.10442).

A word's outline is a closed curve f(t) = x(t) + i y(t), t in [0, 1). Its coefficients of low degree say where it is and what it looks like:

.. math:: c_j = \frac1N \sum_n f(n/N)\, e^{-2\pi i j n/N}, \qquad f(t) \approx \sum_{j=-k}^{k} c_j\, e^{2\pi i j t}.

:func:`fourier_signature` encodes a polygon, :func:`contours` decodes. At each place of three maps (strides 8, 16, 32) the network says
whether it is text, whether it lies along the middle of a word, and the 2k + 1 coefficients of that word's outline, c_0 relative to the place.
A word belongs to the levels whose range holds its longer side over the height of the image; the ranges overlap. Training compares outlines,
not coefficients (:class:`FCELoss`); a picture is decoded by taking the outlines of all likely places and keeping the best of those that
overlap (:func:`decode_polygons`).

The authors' code (mmocr, Apache-2.0) differs from its own intent in one place: the centre's loss takes probabilities for logits. Released
weights were trained so; ``FCELoss(form="intended")`` does without. What is truncated to whole numbers there is truncated here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import deform_conv2d

from offprint.errors import DataError, OffprintError, unknown
from offprint.models.checkpoint import Dialect
from offprint.models.parts import Maps, register_part
from offprint.models.registry import Weights, register
from offprint.nn.polygons import fill, least_overlap, overlaps, regions_and_simple, smallest_box, without_repeats

STRIDES = (8, 16, 32)
RANGES = {  # of the longer side over the image's height, by level
    "icdar2015": ((0.0, 0.4), (0.3, 0.7), (0.6, 1.0)),
    "ctw1500": ((0.0, 0.25), (0.2, 0.65), (0.55, 1.0)),
}
STEP, SHRINK, TURNED = (
    4.0,
    0.3,
    2.0,
)  # along the centre line, of its width, and how tall a quadrilateral is read downwards
Ranges = Sequence[Sequence[float]]
Levels = Sequence[Mapping[str, Tensor]]


# -- signatures: Sec. 3.2 --------------------------------------------------------------------------------------------
def resample(polygon: np.ndarray, n: int = 400) -> np.ndarray:
    """At most ``n`` points of the outline (m, 2): of each edge its share rounded down, evenly from its start on, the end left out.

    An outline of so many short edges that most would get none is walked evenly instead.
    """
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    edges = np.roll(points, -1, 0) - points
    lengths = np.hypot(*edges.T)
    total = lengths.sum()
    if not total > 0:
        raise OffprintError(
            f"a polygon of {len(points)} points in one place has no outline; give at least three places"
        )
    counts = (lengths / (total + 1e-8) * n).astype(np.int64)
    if counts.sum() < n // 2:
        along = np.arange(n) * total / n
        ends, closed = np.concatenate([[0], lengths.cumsum()]), np.vstack([points, points[:1]])
        return np.stack([np.interp(along, ends, closed[:, i]) for i in (0, 1)], 1)
    which = np.repeat(np.arange(len(points)), counts)
    nth = np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
    return points[which] + edges[which] / counts[which, None] * nth[:, None]


def fourier_signature(polygon: np.ndarray, fourier_degree: int = 5, points: int = 400) -> np.ndarray:
    """The coefficients c_-k, ..., c_k of an outline: (2k + 1, 2), real and imaginary parts.

    The curve begins at the topmost of the eight points nearest to the vertical through the centre, and runs so that :math:`|c_1| > |c_{-1}|`.
    That rule jumps where points tie, as on rectangles along the axes: the shape stays, the phases do not.

    Args:
        polygon: (n, 2) or x, y, x, y, ...
        fourier_degree: k.
        points: at which the outline is sampled.

    Raises:
        OffprintError: fewer than three points, or all in one place.
    """
    given, k = np.asarray(polygon, np.float64).reshape(-1, 2), fourier_degree
    if len(given) < 3:
        raise OffprintError(f"a polygon has {len(given)} points; an outline needs three or more")
    if not 1 <= k < points // 2:
        raise OffprintError(f"fourier_degree={k}; with {points} points it lies between 1 and {points // 2 - 1}")
    outline = resample(given, points)
    centred = outline - outline.mean(0)
    near = np.argsort(np.abs(centred[:, 0]))
    outline = np.roll(outline, -int(near[centred[near[:8], 1].argmin()]), 0)
    c = np.fft.fft(outline[:, 0] + 1j * outline[:, 1]) / len(outline)
    c = np.concatenate([c[-k:], c[: k + 1]])
    size = np.abs(c)
    back = size[k + 1] < size[k - 1] or (size[k + 1] == size[k - 1] and (k < 2 or size[k + 2] <= size[k - 2]))
    c = c[::-1] if back else c
    return np.stack([c.real, c.imag], 1)


def contours(coefficients: np.ndarray, points: int = 50) -> np.ndarray:
    """Outlines (..., points, 2) of coefficients (..., 2k + 1, 2), or complex (..., 2k + 1)."""
    c = np.asarray(coefficients)
    c = c if np.iscomplexobj(c) else c[..., 0] + 1j * c[..., 1]
    k = (c.shape[-1] - 1) // 2
    if points < c.shape[-1]:
        raise OffprintError(f"points={points}; an outline of degree {k} needs at least {2 * k + 1}")
    spectrum = np.zeros((*c.shape[:-1], points), c.dtype)
    spectrum[..., : k + 1], spectrum[..., points - k :] = c[..., k:], c[..., :k]
    z = np.fft.ifft(spectrum, axis=-1) * points
    return np.stack([z.real, z.imag], -1)


# -- targets: Sec. 3.3 -----------------------------------------------------------------------------------------------
def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-8) for v in (a, b))
    return np.arccos(np.clip((a * b).sum(1), -1, 1))


def _ends(points: np.ndarray) -> tuple[int, int]:
    """Indices of the first points of a word's head and tail edges."""
    n = len(points)
    edges = np.roll(points, -1, 0) - points
    lengths = np.linalg.norm(edges, axis=1)
    if n == 4:
        slopes = np.abs(edges[:, 1] / (edges[:, 0] + 1e-8))
        flat = slopes[0] + slopes[2] < slopes[1] + slopes[3]
        across, along = (
            (lengths[[3, 1]].sum(), lengths[[0, 2]].sum()) if flat else (lengths[[0, 2]].sum(), lengths[[3, 1]].sum())
        )
        return (3, 1) if flat != (across > TURNED * along) else (0, 2)
    before, after = np.roll(edges, 1, 0), np.roll(edges, -1, 0)
    far = np.linalg.norm(points - points.mean(0), axis=1)
    far = np.maximum(far, np.roll(far, -1))
    score = 0.5 * (_angle(edges, before) + _angle(edges, after)) / np.pi + 0.15 * _angle(before, after) / np.pi
    score = score + 0.35 * far / (far.max() + 1e-8)
    if n % 2 == 0:
        score[[n // 2 - 1, -1]] += 0.1
    bell = np.exp(-(((np.arange(n - 3) / (n - 4) - 0.5) / 0.5) ** 2) / 2)
    partner = score[(np.arange(n)[:, None] + 2 + np.arange(n - 3)) % n]
    head, gap = np.unravel_index((score[:, None] + partner * (bell / bell.max()) * 0.3).argmax(), partner.shape)
    head, tail = int(head), int(head + gap + 2) % n
    return (tail, head) if (head + 1) % n > (tail + 1) % n else (head, tail)


def _even(line: np.ndarray, n: int) -> np.ndarray:
    """``n`` points (n, 2) at equal distances along a line, its ends among them."""
    lengths = np.hypot(*(line[1:] - line[:-1]).T)
    ends = np.concatenate([[0], lengths.cumsum()])
    t = np.arange(1, n - 1) * (lengths.sum() / (n - 1))
    edge = np.searchsorted(ends[1:-1], t)
    # corners are truncated later on: numerators are rounded as the authors' are
    back, on = ((v.astype(np.float32) / (lengths[edge] + 1e-8))[:, None] for v in (ends[edge + 1] - t, t - ends[edge]))
    return np.vstack([line[:1], back * line[edge] + on * line[edge + 1], line[-1:]])


def centre_boxes(polygon: np.ndarray) -> np.ndarray:
    """Quadrilaterals (m, 4, 2) int along the middle of a word, 0.3 of the way to its top and bottom sides; its ends are left out."""
    n, (head, tail) = len(polygon), _ends(polygon)
    twice, head, tail = np.vstack([polygon, polygon]), (head + 1) % n, (tail + 1) % n
    one, other = twice[head:tail], twice[tail : head + n]
    top, bottom = (other, one) if one[:, 1].mean() > other[:, 1].mean() else (one, other)
    length = sum(np.hypot(*(s[1:] - s[:-1]).T).sum() for s in (top, bottom)) / 2
    count = max(int(length / STEP) + 1, 3)
    top, bottom = _even(top, count), _even(bottom, count)[::-1]
    first, last = (int(np.linalg.norm(top[i] - bottom[i]) / 4 // STEP) for i in (0, -1))
    if count > first + last + 2:
        top, bottom = top[first : count - last], bottom[first : count - last]
    middle = (top + bottom) / 2
    up, down = middle + (top - middle) * SHRINK, middle + (bottom - middle) * SHRINK
    return np.stack([up[:-1], up[1:], down[1:], down[:-1]], 1).astype(np.int32)


def fourier_targets(
    size: tuple[int, int],
    polygons: Sequence[Any],
    ignored: Sequence[bool] | None = None,
    *,
    fourier_degree: int = 5,
    ranges: Ranges = RANGES["icdar2015"],
    strides: Sequence[int] = STRIDES,
) -> list[np.ndarray]:
    """What each level should say of an image: (3 + 2 (2k + 1), H // stride, W // stride) float64.

    Channels: text, centre region, where the level is judged (0 in ignored words), real parts, imaginary parts. Later words lie over earlier
    ones. Polygons with fewer than four different whole points are ignored, never refused.

    Args:
        size: (H, W) of the image.
        polygons: (n, 2) or x, y, x, y, ... in pixels.
        ignored: of each polygon.
        ranges: (above, below) of the longer side over H, for each level.
    """
    k, height = fourier_degree, size[0]
    words: list[list[np.ndarray]] = [[] for _ in strides]
    left: list[list[np.ndarray]] = [[] for _ in strides]
    for i, given in enumerate(polygons):
        whole = np.asarray(given, np.float64).reshape(-1, 2).astype(np.int64)
        if not len(whole):
            continue
        share = (np.ptp(whole, 0).max() + 1) / (height + 1e-8)
        kept = without_repeats(whole)
        unusable = len(np.unique(kept, axis=0)) < 4 or bool(ignored is not None and ignored[i])
        for level, (low, high) in enumerate(ranges):
            if low < share < high:
                (left if unusable else words)[level].append((whole if unusable else kept) / strides[level])
    out = []
    for mine, others, stride in zip(words, left, strides, strict=True):
        shape = size[0] // stride, size[1] // stride
        maps = np.zeros((3 + 2 * (2 * k + 1), *shape))
        maps[2] = 1
        for polygon in others:
            maps[2][fill([polygon.astype(np.int32)], shape)] = 0
        for polygon in mine:
            y, x = np.nonzero(fill([polygon.astype(np.int32)], shape))
            maps[0, y, x] = 1
            maps[3:, y, x] = fourier_signature(polygon, k).T.reshape(-1, 1)
            maps[3 + k, y, x] -= x
            maps[3 + 3 * k + 1, y, x] -= y
        boxes = [box for polygon in mine for box in centre_boxes(polygon)]
        maps[1] = fill(boxes, shape)  # in one figure: where two overlap the even-odd rule leaves the inside empty
        out.append(maps)
    return out


# -- loss: Sec. 3.4 --------------------------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def _waves(k: int, n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (2k + 1, n) of 2 pi j t / n."""
    angle = torch.arange(-k, k + 1).double()[:, None] * torch.arange(n).double() * (2 * np.pi / n)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


class FCELoss(nn.Module):
    """Text, centre region, and outlines compared point by point, summed over the levels.

    Args:
        fourier_degree: k.
        num_sample: points of the outlines that are compared.
        negative_ratio: the hardest negatives, so many per positive, count for the text.
        ranges: as in :func:`fourier_targets`.
        form: ``"released"``: the centre's loss takes the probability for a logit, as the authors' code does; ``"intended"``: it does not.
    """

    def __init__(
        self, fourier_degree: int = 5, num_sample: int = 50, negative_ratio: float = 3.0,
        ranges: Ranges = RANGES["icdar2015"], form: str = "released",
    ):  # fmt: skip
        super().__init__()
        if form not in ("released", "intended"):
            raise unknown("form of the loss", form, ("released", "intended"))
        if not num_sample > 2 * fourier_degree:
            raise OffprintError(
                f"num_sample={num_sample}; degree {fourier_degree} needs {2 * fourier_degree + 1} or more"
            )
        self.fourier_degree, self.num_sample, self.negative_ratio = fourier_degree, num_sample, negative_ratio
        self.ranges, self.form = tuple(map(tuple, ranges)), form

    def targets(
        self, size: tuple[int, int], polygons: Sequence[Any], ignored: Sequence[bool] | None = None
    ) -> list[np.ndarray]:
        """Of one image; see :func:`fourier_targets`."""
        return fourier_targets(size, polygons, ignored, fourier_degree=self.fourier_degree, ranges=self.ranges)

    def forward(self, levels: Levels, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """The four terms; what is minimised is their sum.

        Args:
            levels: of each level ``cls_res`` (B, 4, h, w) and ``reg_res`` (B, 2 (2k + 1), h, w).
            targets: of each level (B, 3 + 2 (2k + 1), h, w).
        """
        terms = [self._level(said, target.to(said["cls_res"])) for said, target in zip(levels, targets, strict=True)]
        return {n: torch.stack(v).sum() for n, v in zip(("loss_text", "loss_center", "loss_reg_x", "loss_reg_y"), zip(*terms, strict=True), strict=True)}  # fmt: skip

    def _level(self, said: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = said["cls_res"].permute(0, 2, 3, 1).flatten(0, 2)
        fitting = target.permute(0, 2, 3, 1).flatten(0, 2)
        text, centre, judged = fitting[:, :3].unbind(1)
        inside = judged * text
        return (
            self._text(logits[:, :2].softmax(-1)[:, 1], text, judged),
            self._centre(logits[:, 2:].softmax(-1)[:, 1], centre, inside),
            *self._outlines(said["reg_res"].permute(0, 2, 3, 1).flatten(0, 2)[inside > 0], fitting[inside > 0]),
        )

    def _text(self, p: Tensor, text: Tensor, judged: Tensor) -> Tensor:
        positive, negative = text * judged, (1 - text) * judged
        count = int(positive.sum())
        hard = min(int(negative.sum()), int(count * self.negative_ratio))
        loss = F.binary_cross_entropy(p, text, reduction="none")
        return ((loss * positive).sum() + (loss * negative).topk(hard)[0].sum()) / (count + hard + 1e-6)

    def _centre(self, p: Tensor, centre: Tensor, inside: Tensor) -> Tensor:
        measure = F.binary_cross_entropy_with_logits if self.form == "released" else F.binary_cross_entropy
        loss = measure(p, centre, reduction="none")
        one, other = ((loss * m).sum() / (m.sum() + 1e-6) for m in (inside, 1 - inside))
        return one + 0.5 * other

    def _outlines(self, said: Tensor, fitting: Tensor) -> tuple[Tensor, Tensor]:
        if not len(said):
            return said.sum(), said.sum()
        cos, sin = _waves(self.fourier_degree, self.num_sample, said.device, said.dtype)
        weight = fitting[:, :2].mean(1, keepdim=True)
        (u, v), (u0, v0) = said.chunk(2, 1), fitting[:, 3:].chunk(2, 1)
        # outlines are linear in the coefficients: of the differences the smooth L1 is taken
        du, dv = u - u0, v - v0
        parts = (du @ cos - dv @ sin, du @ sin + dv @ cos)
        x, y = ((weight * F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none")).mean() for d in parts)
        return x, y


# -- decoding: Sec. 3.3 ----------------------------------------------------------------------------------------------
class Found(NamedTuple):
    """A word that was found: ``polygon`` (n, 2) int32 and its ``score``."""

    polygon: np.ndarray
    score: float


@dataclass(frozen=True)
class Decoding:
    """How maps become polygons.

    Args:
        alpha, beta: exponents of the two probabilities in a place's score.
        score_threshold: of places.
        iou_threshold: of two polygons the one of less score is left out above it.
        points: of an outline.
        text_repr: ``"poly"``, or ``"quad"`` for the smallest box around each.
    """

    alpha: float = 1.0
    beta: float = 2.0
    score_threshold: float = 0.3
    iou_threshold: float = 0.1
    points: int = 50
    text_repr: str = "poly"

    def __post_init__(self):
        if self.text_repr not in ("poly", "quad"):
            raise unknown("representation of text", self.text_repr, ("poly", "quad"))


SETTINGS = {"icdar2015": Decoding(alpha=1.2, beta=1.0, text_repr="quad"), "ctw1500": Decoding()}


def polygon_nms(polygons: np.ndarray, scores: np.ndarray, iou_threshold: float = 0.1) -> np.ndarray:
    """Indices of the polygons (N, n, 2) that are kept, best first: the best one, then the best of those that overlap none kept.

    Only polygons whose boxes meet, and of which no bound says already that they overlap, are cut with one another. Among equal scores the later
    is the better. Those without area are left out.
    """
    if not len(polygons):
        return np.zeros(0, int)
    order = np.argsort(scores, kind="stable")[::-1]
    low, high = polygons.min(1), polygons.max(1)
    shapes: np.ndarray = np.full(len(polygons), None, object)
    simple = np.zeros(len(polygons), bool)

    def prepare(which: np.ndarray) -> None:
        new = which[np.equal(shapes[which], None)]
        shapes[new], simple[new] = regions_and_simple(polygons[new])

    kept = []
    while len(order):
        best, order = order[0], order[1:]
        prepare(np.array([best]))
        if shapes[best].area == 0:
            continue
        kept.append(best)
        meets = ((low[order] <= high[best]) & (high[order] >= low[best])).all(1)
        near = order[meets]
        if not len(near):
            continue
        prepare(near)
        over = np.zeros(len(near), bool)
        if simple[best]:
            over = simple[near] & (least_overlap(polygons[best], polygons[near]) > iou_threshold + 1e-9)
        over[~over] = overlaps(shapes[best], shapes[near[~over]]) > iou_threshold
        gone = np.zeros(len(order), bool)
        gone[meets] = over
        order = order[~gone]
    return np.array(kept, int)


def _decode_level(logits: np.ndarray, c: np.ndarray, stride: int, how: Decoding) -> tuple[np.ndarray, np.ndarray]:
    """Polygons (N, n, 2) and scores of one level: probabilities (2, h, w), coefficients (2k + 1, h, w) complex."""
    score = logits[0] ** how.alpha * logits[1] ** how.beta
    blobs, count = ndimage.label(ndimage.binary_fill_holes(score > how.score_threshold), np.ones((3, 3)))
    y, x = np.nonzero((blobs > 0) & (score > 0))
    if not count or not len(y):
        return np.zeros((0, 4 if how.text_repr == "quad" else how.points, 2), np.int32), np.zeros(0)
    mine = c[:, y, x].T.astype(np.complex128)
    mine[:, c.shape[0] // 2] += x + 1j * y
    polygons, scores, blob = contours(mine * stride, how.points).astype(np.int32), score[y, x], blobs[y, x]
    kept = []
    for one in range(1, count + 1):
        where = np.nonzero(blob == one)[0]
        kept.append(where[polygon_nms(polygons[where], scores[where], how.iou_threshold)])
    best = np.concatenate(kept)
    best = best[polygon_nms(polygons[best], scores[best], how.iou_threshold)]
    polygons, scores = polygons[best], scores[best]
    if how.text_repr == "quad":
        polygons = np.array([smallest_box(p) for p in polygons]).reshape(-1, 4, 2).astype(np.int32)
    return polygons, scores


def decode_polygons(levels: Levels, how: Decoding | None = None, strides: Sequence[int] = STRIDES) -> list[Found]:
    """The words of one image, best first, in pixels of what the network saw.

    Args:
        levels: of each level ``cls_res`` (4, h, w) and ``reg_res`` (2 (2k + 1), h, w), as the network gives them (a batch of one as well).
        how: see :class:`Decoding`.

    Raises:
        OffprintError: a batch of several images, or maps of another number of levels.
    """
    how = how or Decoding()
    if len(levels) != len(strides):
        raise OffprintError(f"{len(levels)} levels were given for {len(strides)} strides")
    found = []
    for said, stride in zip(levels, strides, strict=True):
        logits, coefficients = (said[k].detach() for k in ("cls_res", "reg_res"))
        if logits.ndim == 4:
            if len(logits) != 1:
                raise OffprintError(f"a batch of {len(logits)} images; decode one at a time")
            logits, coefficients = logits[0], coefficients[0]
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits, coefficients = logits.float(), coefficients.float()
        if not torch.isfinite(coefficients).all():
            raise DataError(f"the maps of stride {stride} hold values that are not finite; the weights are damaged")
        p = torch.stack([logits[:2].softmax(0)[1], logits[2:].softmax(0)[1]]).cpu().numpy()
        u, v = coefficients.chunk(2, 0)
        found.append(_decode_level(p, torch.complex(u.double(), v.double()).cpu().numpy(), stride, how))
    polygons, scores = (np.concatenate(v) for v in zip(*found, strict=True))
    return [Found(polygons[i], float(scores[i])) for i in polygon_nms(polygons, scores, how.iou_threshold)]


# -- network: Sec. 3.3 -----------------------------------------------------------------------------------------------
class DeformableConv2d(nn.Module):
    """A 3 x 3 convolution whose taps move and are weighed (DCN v2), both told by a convolution that begins at zero.

    Args:
        conv: whose place it takes.
        groups: channels that move together.
    """

    def __init__(self, conv: nn.Conv2d, groups: int = 2):
        super().__init__()
        self.stride, self.padding, self.groups, taps = conv.stride, conv.padding, groups, 9
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.conv_offset = nn.Conv2d(conv.in_channels, 3 * taps * groups, 3, conv.stride, conv.padding)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.conv_offset(x).split([18 * self.groups, 9 * self.groups], 1)
        return deform_conv2d(x, offset, self.weight, stride=self.stride, padding=self.padding, mask=mask.sigmoid())


_DEPTHS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


class _Backbone(ResNet):
    """torchvision's ResNet, its maps at strides 8, 16 and 32."""

    def __init__(self, depth: int, in_chans: int, deformable: bool):
        if depth not in _DEPTHS:
            raise unknown("depth of the ResNet", depth, map(str, _DEPTHS))
        block, blocks = _DEPTHS[depth]
        super().__init__(block, list(blocks), num_classes=1)
        del self.fc, self.avgpool
        self.widths = tuple(w * block.expansion for w in (128, 256, 512))
        if in_chans != 3:
            self.conv1 = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        if deformable:
            for layer in (*self.layer2, *self.layer3, *self.layer4):
                layer.conv2 = DeformableConv2d(layer.conv2)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        fine = self.layer2(x)
        middle = self.layer3(fine)
        return [fine, middle, self.layer4(middle)]


def _conv(*args: int) -> nn.Sequential:
    conv = nn.Conv2d(*args)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(conv=conv))


class Pyramid(nn.Module):
    """Three maps to three of one width: 1 x 1, sums from the coarsest down, 3 x 3; no norm, no activation."""

    def __init__(self, in_channels: Sequence[int], width: int = 256):
        super().__init__()
        self.lateral_convs = nn.ModuleList(_conv(c, width, 1) for c in in_channels)
        self.fpn_convs = nn.ModuleList(_conv(width, width, 3, 1, 1) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sums = [lateral(m) for lateral, m in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], sums[i - 1].shape[-2:])
        return [conv(s) for conv, s in zip(self.fpn_convs, sums, strict=True)]


class Head(nn.Module):
    """One convolution for four logits, one for the coefficients; shared by the levels."""

    def __init__(self, width: int = 256, fourier_degree: int = 5):
        super().__init__()
        self.out_conv_cls = nn.Conv2d(width, 4, 3, padding=1)
        self.out_conv_reg = nn.Conv2d(width, 2 * (2 * fourier_degree + 1), 3, padding=1)
        for conv in (self.out_conv_cls, self.out_conv_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return [{"cls_res": self.out_conv_cls(m), "reg_res": self.out_conv_reg(m)} for m in maps]


class FourierText(nn.Module):
    """The head of any backbone, or of a neck of one width: maps of strides 8, 16 and 32 to the three levels' maps.

    Args:
        before: the maps that come in; where they are of several widths, :class:`Pyramid` comes first.
        num_classes: text is one; 1.
        fourier_degree: k.
        width: of the pyramid.
        setting: ``"icdar2015"`` or ``"ctw1500"``: the ranges of the levels, and how pictures are decoded.
    """

    frozen = False

    def __init__(
        self, before: Maps, num_classes: int = 1, fourier_degree: int = 5, width: int = 256, setting: str = "icdar2015"
    ):
        super().__init__()
        if num_classes != 1:
            raise OffprintError(f"num_classes={num_classes}; text is one class")
        if before.reductions != STRIDES:
            raise OffprintError(f"maps of strides {before.reductions}; text is found on maps of strides {STRIDES}")
        self.num_classes, self.fourier_degree, self.setting = 1, fourier_degree, _setting(setting)
        one = len(set(before.channels)) == 1
        self.pyramid = nn.Identity() if one else Pyramid(before.channels, width)
        self.head = Head(before.channels[0] if one else width, fourier_degree)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[dict[str, Tensor]]:
        return self.head(self.pyramid(maps))


class FCENet(nn.Module):
    """ResNet, pyramid and head: images (B, in_chans, H, W), H and W from 32 on, to ``cls_res`` and ``reg_res`` of three levels.

    Args:
        in_chans: image channels.
        depth: of the ResNet: 50, or 18 (ours, for small machines).
        deformable: deformable convolutions in its last three stages; its norms then stay in evaluation mode.
        fourier_degree: k.
        setting: as in :class:`FourierText`.
    """

    native = "authors"
    dialects: ClassVar[tuple[Dialect, ...]] = (
        Dialect("openmmlab", ignore=r"^data_preprocessor\."),
        Dialect(
            "torchvision", renames=((r"^(conv1|bn1|layer\d)\.", r"backbone.\1."),), ignore=r"^fc\.", part=r"^backbone\."
        ),
    )
    input_layers = ("backbone.conv1",)

    def __init__(
        self, in_chans: int = 3, depth: int = 50, deformable: bool = False, fourier_degree: int = 5,
        setting: str = "icdar2015",
    ):  # fmt: skip
        super().__init__()
        self.in_chans, self.deformable = in_chans, deformable
        self.fourier_degree, self.setting = fourier_degree, _setting(setting)
        self.backbone = _Backbone(depth, in_chans, deformable)
        self.neck = Pyramid(self.backbone.widths)
        self.det_head = Head(256, fourier_degree)

    def train(self, mode: bool = True) -> FCENet:
        """Training mode; beside deformable convolutions the backbone's norms stay as they are."""
        super().train(mode)
        if self.deformable:
            for layer in self.backbone.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        if not torch.compiler.is_compiling() and (x.ndim != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < 32):
            raise OffprintError(
                f"expected images (B, {self.in_chans}, H, W) of 32 pixels a side or more, got {tuple(x.shape)}"
            )
        return self.det_head(self.neck(self.backbone(x)))

    def example_input(self, batch: int = 1) -> Tensor:
        """A random picture."""
        like = next(self.parameters())
        return torch.rand(batch, self.in_chans, 224, 224, device=like.device, dtype=like.dtype)


def _setting(name: str) -> str:
    if name not in SETTINGS:
        raise unknown("setting", name, SETTINGS)
    return name


def _takes(reductions: Sequence[int]) -> tuple[int, ...]:
    where = {stride: i for i, stride in enumerate(reductions)}
    absent = [s for s in STRIDES if s not in where]
    if absent:
        raise OffprintError(f"text is found on maps of strides {STRIDES}; these have {tuple(reductions)}")
    return tuple(where[s] for s in STRIDES)


register_part("fce", "head", FourierText, paper="fcenet", task="text", takes=_takes)


def _released(
    name: str, digest: str, data: str, precision: float, recall: float, hmean: float, stamp: str = ""
) -> Weights:
    page = "configs/textdet/fcenet"
    return Weights(
        url=f"https://download.openmmlab.com/mmocr/textdet/fcenet/{name}/{name}{stamp}-{digest}.pth",
        publisher="authors", dialect="authors", licence="Apache-2.0", sha256=digest,
        metrics={data: {"precision": precision, "recall": recall, "hmean": hmean}},
        metrics_source=f"github.com/open-mmlab/mmocr {page}/README.md, as shares of 1",
    )  # fmt: skip


# Sec. 4.2 and configs/textdet/fcenet
_RECIPE = {
    "optimizer": "sgd", "lr": 1e-3, "reference_batch": 8, "momentum": 0.9, "weight_decay": 5e-4, "decay_vectors": True, "epochs": 1500,
    "batch_size": 8, "schedule": "constant", "power": 0.9, "warmup_epochs": 0, "min_lr": 1e-7, "clip_grad": 10.0, "color_jitter": 0.32, "data": "icdar2015",
}  # fmt: skip
_TOTALTEXT = {**_RECIPE, "batch_size": 16, "reference_batch": 16, "schedule": "step", "power": 0.0, "decay_rate": 0.8, "decay_epochs": 200, "min_lr": 0.0,
              "data": "totaltext"}  # fmt: skip
register(
    paper="fcenet",
    kind="detection",
    task="text",
    build=FCENet,
    variants={
        "fcenet_resnet50_fpn": {},
        "fcenet_resnet50_dcnv2_fpn": {"deformable": True, "setting": "ctw1500"},
        "fcenet_resnet18_fpn": {"depth": 18},
    },
    input_size=(3, 800, 800),
    preprocessing={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"},
    weights={
        "fcenet_resnet50_fpn": {
            "icdar2015": _released(
                "fcenet_resnet50_fpn_1500e_icdar2015", "167d9042", "icdar2015", 82.43, 88.34, 85.28, "_20220826_140941"
            ),
            "totaltext": _released("fcenet_resnet50_fpn_1500e_totaltext", "91bd37af", "totaltext", 84.85, 78.10, 81.34),
        },
        "fcenet_resnet50_dcnv2_fpn": {
            "ctw1500": _released(
                "fcenet_resnet50-dcnv2_fpn_1500e_ctw1500",
                "4d705392",
                "ctw1500",
                86.89,
                82.96,
                84.88,
                "_20220825_221510",
            ),
        },
    },
    recipes={"training": _RECIPE, "totaltext": _TOTALTEXT},
    exceptions={"training": {"fcenet_resnet50_dcnv2_fpn": {"data": "ctw1500"}}},
)
