r"""Multi-digit Number Recognition from Street View Imagery using Deep CNNs (Goodfellow et al.; ICLR 2014; arXiv 1312.6082).

One network reads a whole number from a crop. Its features H feed a softmax for the length L (0 to 5, and "more") and one for each digit,

.. math:: P(S = s \mid X) = P(L = n \mid H) \prod_{i=1}^{n} P(S_i = s_i \mid H).

Given H the digits are independent, so the most probable number is found exactly: for each length the best digits, then the best length with
them (:func:`read_sequences`). Neither the length alone nor the first blank decides. Its probability is a confidence: sorted by it, the
largest part of the pictures that is right often enough is what can be transcribed without a person (:func:`coverage_at_accuracy`).
Digits beyond the length are not trained (:func:`sequence_loss`).

No code was released. ``svhn_port`` is a public port with its own habits (an eleventh class for absent digits, pooling that pads), whose
names its files hold; ``svhn_paper`` follows the paper's description as far as it goes. :class:`SequenceHead` reads any backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.checkpoint import Dialect
from offprint.models.parts import Maps, last, register_part
from offprint.models.registry import register

HIDDEN = (48, 64, 128, 160, 192, 192, 192, 192)
SIDE = 54  # of the crop that the networks of the paper and the port read
DIGITS, MOST = 10, 5


# -- the rule --------------------------------------------------------------------------------------------------------
class SequenceLogits(NamedTuple):
    """``length`` (B, most + 2): lengths 0 to most, and more; ``digits`` (B, most, 10), or 11 with a class for absent ones; left-aligned."""

    length: Tensor
    digits: Tensor


@dataclass(frozen=True)
class Reading:
    """A number that was read.

    Attributes:
        digits: from the left.
        log_probability: of the whole number.
        more: log probability that there are more digits than the head has.
    """

    digits: tuple[int, ...]
    log_probability: float
    more: float

    @property
    def text(self) -> str:
        return "".join(map(str, self.digits))

    @property
    def confidence(self) -> float:
        return math.exp(self.log_probability)

    @property
    def refused(self) -> bool:
        """Whether "more digits than the head has" is more probable than any number."""
        return self.more > self.log_probability


def as_logits(output: Sequence[Tensor]) -> SequenceLogits:
    """What a network gives as :class:`SequenceLogits`: it may be the length and each digit one after the other."""
    if len(output) == 2 and output[1].ndim == 3:
        return SequenceLogits(output[0], output[1])
    return SequenceLogits(output[0], torch.stack(list(output[1:]), 1))


def read_sequences(logits: SequenceLogits) -> list[Reading]:
    """The most probable number of each picture, exactly, in time linear in the digits."""
    length, digits = (v.log_softmax(-1) for v in logits)
    best, which = digits[..., :DIGITS].max(-1)
    scores = length[:, :-1] + F.pad(best.cumsum(1), (1, 0))
    score, n = scores.max(1)
    rows = zip(n.tolist(), which.tolist(), score.tolist(), length[:, -1].tolist(), strict=True)
    return [Reading(tuple(d[:k]), s, m) for k, d, s, m in rows]


def targets_of(numbers: Sequence[Sequence[int]], most: int = MOST) -> tuple[Tensor, Tensor]:
    """Lengths (B,) and digits (B, most), -1 where there is none; a longer number is of length ``most + 1``, "more"."""
    lengths = torch.tensor([min(len(n), most + 1) for n in numbers])
    digits = torch.full((len(numbers), most), -1)
    for row, number in enumerate(numbers):
        if any(not 0 <= d < DIGITS for d in number):
            raise OffprintError(f"number {list(number)}: digits lie between 0 and 9")
        if len(number) <= most:
            digits[row, : len(number)] = torch.tensor(list(number), dtype=torch.long)
    return lengths, digits


def sequence_loss(logits: SequenceLogits, lengths: Tensor, digits: Tensor, reduction: str = "mean") -> Tensor:
    """-log P(L = n) - sum of -log P(S_i = s_i) over the digits that are there: the mean, or with ``"none"`` one for each item.

    Args:
        lengths, digits: as :func:`targets_of` gives them.
    """
    absent = digits < 0
    parts = F.cross_entropy(logits.digits.transpose(1, 2), digits.clamp_min(0), reduction="none")
    each = F.cross_entropy(logits.length, lengths, reduction="none") + parts.masked_fill(absent, 0.0).sum(1)
    return each.mean() if reduction == "mean" else each


def blank_loss(logits: SequenceLogits, lengths: Tensor, digits: Tensor) -> Tensor:
    """The port's loss: six cross-entropies, absent digits being of the eleventh class."""
    blank = torch.where(digits < 0, torch.full_like(digits, DIGITS), digits)
    parts = [F.cross_entropy(logits.digits[:, i], blank[:, i]) for i in range(digits.shape[1])]
    return F.cross_entropy(logits.length, lengths) + torch.stack(parts).sum()


class Coverage(NamedTuple):
    """How many are kept, their share, and the confidence of the last of them (infinite where none is kept)."""

    kept: int
    coverage: float
    threshold: float


def coverage_at_accuracy(
    confidence: Sequence[float] | Tensor, correct: Sequence[bool] | Tensor, accuracy: float = 0.98
) -> Coverage:
    """The largest k such that the k most confident are right with at least this accuracy (0 to 1)."""
    score = np.asarray(confidence, np.float64).ravel()
    right = np.asarray(correct).ravel().astype(bool)
    if len(score) != len(right) or not len(score):
        raise OffprintError(f"{len(score)} confidences and {len(right)} answers; give one of each for every picture")
    if not 0 < accuracy <= 1:
        raise OffprintError(f"accuracy={accuracy}; it must lie above 0, and not above 1")
    order = np.argsort(-score, kind="stable")
    good = right[order].cumsum() >= accuracy * np.arange(1, len(order) + 1) - 1e-12
    kept = int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0
    return Coverage(kept, kept / len(order), float(score[order[kept - 1]]) if kept else math.inf)


# -- heads -----------------------------------------------------------------------------------------------------------
class SequenceHead(nn.Module):
    """Features (B, in_features) to :class:`SequenceLogits`.

    Args:
        in_features: width of H.
        max_digits: the most digits of a number; there is a class for more.
        blank: an eleventh class for absent digits, as the port has.
    """

    def __init__(self, in_features: int, max_digits: int = MOST, blank: bool = False):
        super().__init__()
        if max_digits < 1:
            raise OffprintError(f"max_digits={max_digits}; give 1 or more")
        self.max_digits, self.classes = max_digits, DIGITS + blank
        self.length = nn.Linear(in_features, max_digits + 2)
        self.digits = nn.Linear(in_features, max_digits * self.classes)

    def forward(self, x: Tensor) -> SequenceLogits:
        return SequenceLogits(self.length(x), self.digits(x).unflatten(1, (self.max_digits, self.classes)))


class SequenceReader(nn.Module):
    """The head of any backbone: the coarsest map in a grid of 2 by ``max_digits + 1`` cells, a dense layer, the sequence head.

    Args:
        before: the map that comes in.
        num_classes: of a digit; 10.
        max_digits: the most digits of a number.
        width: of the dense layer.
        drop_rate: before and behind it.
    """

    frozen = False

    def __init__(
        self, before: Maps, num_classes: int = DIGITS, max_digits: int = MOST, width: int = 512, drop_rate: float = 0.2
    ):
        super().__init__()
        if num_classes != DIGITS:
            raise OffprintError(f"num_classes={num_classes}; digits have 10")
        self.num_classes, self.max_digits, self.grid = num_classes, max_digits, (2, max_digits + 1)
        self.hidden = nn.Linear(before.channels[-1] * self.grid[0] * self.grid[1], width)
        self.drop = nn.Dropout(drop_rate)
        self.head = SequenceHead(width, max_digits)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> SequenceLogits:
        x = F.adaptive_avg_pool2d(maps[-1], self.grid).flatten(1)
        return self.head(self.drop(F.relu(self.hidden(self.drop(x)))))


# -- networks --------------------------------------------------------------------------------------------------------
class SVHNPort(nn.Module):
    """The port: eight blocks of convolution, norm, ReLU, pooling (stride 2, 1, 2, 1, ...) and dropout; two dense layers; six heads.

    Pictures (B, in_chans, 54, 54), scaled to [-1, 1], to the length (B, 7) and five digits (B, 11), the eleventh class being "none".

    Args:
        in_chans: image channels.
        hidden: channels of the blocks.
        width: of the dense layers.
        drop_rate: behind each block.

    Raises:
        OffprintError: a picture of another size: the dense layers are of 54 x 54.
    """

    native = "potterhsu"
    dialects: ClassVar[tuple[Dialect, ...]] = ()
    input_layers = ("_hidden1.0",)
    blank, max_digits, num_classes = True, MOST, DIGITS

    def __init__(self, in_chans: int = 3, hidden: tuple[int, ...] = HIDDEN, width: int = 3072, drop_rate: float = 0.2):
        super().__init__()
        self.in_chans, self.blocks = in_chans, len(hidden)
        side, before = SIDE, in_chans
        for i, channels in enumerate(hidden):
            stride = 2 if i % 2 == 0 else 1
            block = nn.Sequential(
                nn.Conv2d(before, channels, 5, padding=2), nn.BatchNorm2d(channels), nn.ReLU(),
                nn.MaxPool2d(2, stride, padding=1), nn.Dropout(drop_rate),
            )  # fmt: skip
            self.add_module(f"_hidden{i + 1}", block)
            side, before = side // stride + 1, channels
        self._hidden9 = nn.Sequential(nn.Linear(before * side**2, width), nn.ReLU())
        self._hidden10 = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self._digit_length = nn.Sequential(nn.Linear(width, MOST + 2))
        for i in range(1, MOST + 1):
            self.add_module(f"_digit{i}", nn.Sequential(nn.Linear(width, DIGITS + 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        _check(x, self.in_chans)
        for i in range(self.blocks):
            x = self.get_submodule(f"_hidden{i + 1}")(x)
        x = self._hidden10(self._hidden9(x.flatten(1)))
        return self._digit_length(x), *(self.get_submodule(f"_digit{i}")(x) for i in range(1, MOST + 1))

    def example_input(self, batch: int = 1) -> Tensor:
        """A random picture."""
        return _example(self, batch)


class SubtractiveNorm(nn.Module):
    """Each channel less its mean over the 3 x 3 places around (those inside the map)."""

    def forward(self, x: Tensor) -> Tensor:
        return x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class LocallyConnected(nn.Module):
    """A convolution whose weights differ from place to place: (B, C, h, w) to (B, out, h, w)."""

    def __init__(self, channels: int, out: int, side: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(side * side, out, channels * kernel**2))
        self.bias = nn.Parameter(torch.zeros(side * side, out))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (channels * kernel**2)))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel, padding=self.kernel // 2)  # (B, C k k, places)
        out = torch.baddbmm(self.bias[:, None], patches.permute(2, 0, 1), self.weight.transpose(1, 2))
        return out.permute(1, 2, 0).unflatten(2, x.shape[-2:])


class SVHNPaper(nn.Module):
    """Eleven hidden layers as the paper describes them: eight convolutional, one locally connected, two dense.

    Pictures (B, in_chans, 54, 54), the mean of each taken off by the network, to :class:`SequenceLogits`. The first layer is a maxout of three
    filters; every convolution is followed by 2 x 2 pooling with stride 2, 1, 2, 1, ... (the size is kept at stride 1) and a subtractive norm.
    Where the paper is silent: dropout 0.2 in convolutions and 0.5 in dense layers, a 5 x 5 kernel of the locally connected layer.

    Args:
        in_chans: image channels.
        hidden: units of the convolutions.
        width: of the dense layers.
        max_digits: the most digits of a number.
        drop_rate: (convolutions, dense layers).
    """

    native = "offprint"
    input_layers = ("layers.0",)
    blank, num_classes = False, DIGITS

    def __init__(
        self, in_chans: int = 3, hidden: tuple[int, ...] = HIDDEN, width: int = 3072, max_digits: int = MOST,
        drop_rate: tuple[float, float] = (0.2, 0.5),
    ):  # fmt: skip
        super().__init__()
        self.in_chans, self.max_digits = in_chans, max_digits
        widths = [in_chans, *hidden]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b * (3 if i == 0 else 1), 5, padding=2)
            for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        side = SIDE
        for _ in hidden[::2]:
            side = -(-side // 2)
        self.norm, self.drop = SubtractiveNorm(), nn.Dropout(drop_rate[0])
        self.local = LocallyConnected(hidden[-1], hidden[-1], side, 5)
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Linear(hidden[-1] * side**2, width), nn.ReLU(), nn.Dropout(drop_rate[1]),
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(drop_rate[1]),
        )  # fmt: skip
        self.head = SequenceHead(width, max_digits)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> SequenceLogits:
        _check(x, self.in_chans)
        x = x - x.mean((1, 2, 3), keepdim=True)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = x.unflatten(1, (-1, 3)).amax(2) if i == 0 else F.relu(x)
            x = (
                F.max_pool2d(x, 2, 2, ceil_mode=True)
                if i % 2 == 0
                else F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, 1)
            )
            x = self.drop(self.norm(x))
        return self.head(self.dense(self.drop(F.relu(self.local(x)))))

    def example_input(self, batch: int = 1) -> Tensor:
        """A random picture."""
        return _example(self, batch)


def _check(x: Tensor, channels: int) -> None:
    if not torch.compiler.is_compiling() and (x.ndim != 4 or tuple(x.shape[1:]) != (channels, SIDE, SIDE)):
        raise OffprintError(
            f"expected pictures of shape (B, {channels}, {SIDE}, {SIDE}), got {tuple(x.shape)}; resize the crop"
        )


def _example(model: nn.Module, batch: int) -> Tensor:
    like = next(model.parameters())
    return torch.rand(batch, model.in_chans, SIDE, SIDE, device=like.device, dtype=like.dtype)  # type: ignore[arg-type]


register_part("sequence", "head", SequenceReader, paper="multi-digit", task="numbers", takes=last(1))
# the port's README and options; the paper's own are not stated but for momentum
_PORT = {
    "optimizer": "sgd", "momentum": 0.9, "lr": 1e-2, "weight_decay": 5e-4, "schedule": "step", "decay_rate": 0.9, "warmup_epochs": 0,
    "min_lr": 0.0, "batch_size": 32, "data": "svhn-full",
}  # fmt: skip
register(
    paper="multi-digit",
    kind="detection",
    task="numbers",
    build=SVHNPort,
    variants={"svhn_port": {}},
    input_size=(3, SIDE, SIDE),
    preprocessing={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"},
    recipe=_PORT,
)
register(
    paper="multi-digit",
    kind="detection",
    task="numbers",
    build=SVHNPaper,
    variants={"svhn_paper": {}},
    input_size=(3, SIDE, SIDE),
    preprocessing={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bicubic"},
    recipe=_PORT,
)
