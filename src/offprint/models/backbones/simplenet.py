r"""SimpleNet: Lets Keep It Simple, Using Simple Architectures to Outperform Deeper and More Complex Architectures (Hasanpour,
Rouhani, Fayyaz, Sabokrou; arXiv 1608.06037).

Thirteen convolutions in a row and nothing else: no shortcut, no branch, no depth-wise layer. Each is followed by a BatchNorm
(:math:`\epsilon` 1e-5, momentum 0.05), a ReLU and, nearly always, a channel dropout,

.. math:: x_{l+1} = \mathrm{drop}_{p_l}\big(\max(0, \mathrm{BN}(W_l * x_l + b_l))\big),

and the map is made smaller by 2x2 max pooling, as late as the cost allows. The paper's rules: widths grow gradually, kernels are
3x3 so that neighbours stay together (two 1x1 layers near the end, for width), pooling is by the maximum. What it calls SAF
pooling, pooling followed by dropout so that many features have to stand for one thing, is the ``P`` of :data:`NETWORKS`. The
classifier reads the maximum of every channel over the whole last map.

Parameter names are those of the authors' code (github.com/Coderx7/SimpleNet_Pytorch, MIT) but for the last layer (``head``, there
``classifier``): the place in ``features`` counts every layer, so that a network with other dropouts has other names. Files of any
such layout, the authors' CIFAR files of 2018 among them, are mapped by the order of their convolutions; the gaps between these say
where a file's network pools, and one that pools elsewhere is refused, since all its shapes would fit.

The paper's CIFAR figures of 95.51 and 78.37 % are of the network with one pool more (``simplenet_cifar_5m_extra_pool``), by code
that dropped channels at random in the test as well; ours does so in training only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register
from offprint.models.released import top

LAST = 15  # the entry of ``drop_rates`` that means "after the global pool"

# a convolution: its channels, "d" with a dropout behind it, "k1" with a 1x1 kernel; "P": 2x2 max pooling and a dropout
NETWORKS = (
    "64d 128d 128d 128d 128d 128d P 256d 256d 256d 512d P 2048dk1 256dk1 256d",  # ImageNet, 5 M
    "128d 192d 192d 192d 192d 192d P 320d 320d 320d 640d P 2560dk1 320dk1 320d",  # ImageNet, 9 M
    "64d 32d 32d 32 P 32d 32d 64 P 64d 64 P 128d 256dk1 64k1 P 64",  # CIFAR, 310 k
    "32d 32d 32d 64 P 64d 64d 64 P 64d 64 P 96d 96dk1 96k1 P 100",  # CIFAR, 460 k (its PyTorch list)
    "64d 128d 128d 128 P 128d 128d 256 P 256d 256 P 512d 2048dk1 256k1 P 256",  # CIFAR, 5 M
    "64d 128d 128d 128 P 128d 128d 256 P 256d 256 P 512d P 2048dk1 256k1 P 256",  # CIFAR, 5 M, one pool more
)
# entries with a convolution of stride 2: a larger mode makes the map small later, which costs more and is more accurate
STRIDED = ((), (0, 1, 2), (0, 1, 3), (0, 1, 4), (0, 2, 4))


def _chain(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _unit(entry: str, scale: float) -> tuple[int, bool, int]:
    """Width, whether a dropout follows, and kernel of a convolution of :data:`NETWORKS`."""
    channels, dropout, point = re.fullmatch(r"(\d+)(d?)(k1)?", entry).groups()  # type: ignore[union-attr]
    width = round(int(channels) * scale)
    if width < 1:
        raise OffprintError(f"scale={scale} leaves no channel of {channels}; give a larger one")
    return width, bool(dropout), 1 if point else 3


def _rates(given: Mapping[int | str, float], entries: int) -> dict[int, float]:
    """Dropout rates by entry; the keys may be strings, as a JSON file has them."""
    places = {*range(entries), LAST}
    for key, rate in given.items():
        if not str(key).isdecimal() or int(key) not in places:
            raise OffprintError(
                f"drop_rates has an entry {key!r}; the network has the entries 0 to {entries - 1}, pools counted, and {LAST} "
                "is the dropout behind the global pool"
            )
        if not 0 <= rate < 1:
            raise OffprintError(f"drop_rates[{key!r}]={rate}; give a probability from 0 to below 1")
    return {int(key): float(rate) for key, rate in given.items()}


def _smallest(entries: list[str], mode: int) -> int:
    """The smallest image side that leaves a map behind the last pool."""
    side = 1
    for i, entry in reversed(list(enumerate(entries))):
        if entry == "P":
            side = 2 * side
        elif i in STRIDED[mode]:
            side = 2 * side - 1
    return side


def _convolutions(state: Mapping[str, Tensor]) -> list[int]:
    """The numbers of the convolutions in ``features``."""
    names = (re.fullmatch(r"features\.(\d+)\.weight", name) for name, value in state.items() if value.ndim == 4)
    return sorted(int(found[1]) for found in names if found)


def _pools(places: list[int]) -> list[int]:
    """Behind which convolutions (from 1) there is a pool.

    From one convolution to the next the numbers grow by 3, by one more for a dropout, and by two more for a pool and its dropout.
    """
    return [i + 1 for i, (a, b) in enumerate(pairwise(places)) if b - a > 4]


def _by_order(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a layout with other dropouts, by the order of their convolutions."""
    files, ours = _convolutions(state), _convolutions(model.state_dict())
    if len(files) != len(ours) or _pools(files) != _pools(ours):
        raise KeyError("another network")
    place = {str(a + k): str(b + k) for a, b in zip(files, ours, strict=True) for k in (0, 1)}
    return {re.sub(r"(?<=^features\.)\d+", lambda m: place[m[0]], name): value for name, value in state.items()}


class SimpleNet(Backbone):
    """A stack of convolutions and pools, global max pooling, and one linear layer.

    Args:
        num_classes: outputs of the classifier; 0 returns the pooled features.
        in_chans: image channels.
        scale: factor on all widths, each rounded to the nearest whole number.
        network_idx: row of :data:`NETWORKS`.
        mode: row of :data:`STRIDED`, 0 for images of 32 pixels, 1 to 4 for large ones.
        drop_rates: entry of the network (pools count) → rate of its channel dropout, 0 where none is given; an entry without a
            dropout gets one. Entry 15 is also the dropout behind the global pool.
        drop_rate: of the dropout behind the global pool, where ``drop_rates`` has no entry 15.

    The pooling before the classifier is the maximum whatever ``global_pool`` calls it (``""``: none).
    """

    head_modules = ("head",)
    input_layers = ("features.0",)
    native = "offprint"
    dialects = (
        Dialect("authors", ((r"^classifier\.", "head."),)),
        Dialect("authors_2018", ((r"^classifier\.", "head."),), reshape=_by_order),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        scale: float = 1.0,
        network_idx: int = 0,
        mode: int = 2,
        drop_rates: Mapping[int | str, float] | None = None,
        drop_rate: float = 0.0,
    ):
        if not 0 <= network_idx < len(NETWORKS):
            raise OffprintError(f"network_idx={network_idx}; choose one of 0 to {len(NETWORKS) - 1}")
        if not 0 <= mode < len(STRIDED):
            raise OffprintError(f"mode={mode}; choose one of 0 to {len(STRIDED) - 1}")
        entries = NETWORKS[network_idx].split()
        rates = _rates(drop_rates or {}, len(entries))
        super().__init__(rates.get(LAST, drop_rate))
        self.num_classes, self.in_chans = num_classes, in_chans
        layers: list[nn.Module] = []
        self.stages: list[list[tuple[int, int]]] = [
            []
        ]  # by stride: from which layer to which, the pool with what follows
        self.pyramid_channels, self.pyramid_reductions = [in_chans], [1]
        channels, start = in_chans, 0

        def coarser() -> None:
            if self.stages[-1]:
                self.stages.append([])
                self.pyramid_channels.append(0)
                self.pyramid_reductions.append(self.pyramid_reductions[-1])
            self.pyramid_reductions[-1] *= 2

        for i, entry in enumerate(entries):
            if entry == "P":
                layers += [nn.MaxPool2d(2), nn.Dropout2d(rates.get(i, 0.0))]
                coarser()
                continue
            width, dropout, kernel = _unit(entry, scale)
            stride = 2 if i in STRIDED[mode] else 1
            if stride == 2:
                coarser()
            conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
            layers += [conv, nn.BatchNorm2d(width, momentum=0.05), nn.ReLU(inplace=True)]
            if dropout or i in rates:
                layers.append(nn.Dropout2d(rates.get(i, 0.0)))
            channels = self.pyramid_channels[-1] = width
            self.stages[-1].append((start, len(layers)))
            start = len(layers)
        self.features = nn.Sequential(*layers)
        self.pyramid_modules = [f"features.{stage[-1][1] - 1}" for stage in self.stages]
        self.minimum = _smallest(entries, mode)
        self.num_features = channels
        self.head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, gain=2**0.5)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state as it is.

        Raises:
            CheckpointError: it is of a network that pools elsewhere.
        """
        files, ours = _convolutions(state), _convolutions(self.state_dict())
        if len(files) == len(ours) and _pools(files) != _pools(ours):
            theirs, own = (", ".join(map(str, _pools(places))) for places in (files, ours))
            raise CheckpointError(
                f"the file's network pools behind the convolutions {theirs}, this one behind {own}: every shape fits, and the "
                "outputs would be wrong; choose the model the file was made with (the authors' CIFAR files of 2018 are of "
                "simplenet_cifar_5m_extra_pool)"
            )
        return state

    def depth_groups(self) -> list[list[str]]:
        """The convolutions, each with its norm and what pools before it."""
        return [[f"features.{i}" for i in range(*unit)] for stage in self.stages for unit in stage]

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The last map of each stride."""
        layers = list(self.features)
        for stage in self.stages[: len(self.pyramid_channels)]:
            for start, stop in stage:
                x = self.run((partial(_chain, layers[start:stop]),), x)
            yield x

    def pool(self, x: Tensor) -> Tensor:
        """Maximum over the map, or the map itself where ``global_pool`` is ``""``."""
        return x.amax((2, 3)) if self.global_pool else x


_IMAGENET = {
    "small_m1_05": (0, 0.5, 1, "be804903", 61.122, 82.988),
    "small_m2_05": (0, 0.5, 2, "ca4b3e2b", 61.67, 83.488),
    "small_m1_075": (0, 0.75, 1, "098acbff", 67.784, 87.718),
    "small_m2_075": (0, 0.75, 2, "609ff4da", 68.506, 88.15),
    "5m_m1": (0, 1.0, 1, "36c4ca4d", 71.548, 89.94),
    "5m_m2": (0, 1.0, 2, "9bd6bb36", 72.03, 90.324),
    "9m_m1": (1, 1.0, 1, "524f9972", 73.792, 91.486),
    "9m_m2": (1, 1.0, 2, "59e8733b", 74.23, 91.748),
}  # network, scale, mode; digits of the file's digest; top-1 and top-5 as the authors state them
VARIANTS = {
    **{f"simplenetv1_{name}": {"network_idx": n, "scale": s, "mode": m} for name, (n, s, m, *_) in _IMAGENET.items()},
    "simplenet_cifar_310k": {"network_idx": 2, "mode": 0, "num_classes": 10},
    "simplenet_cifar_460k": {"network_idx": 3, "mode": 0, "num_classes": 10},
    "simplenet_cifar_5m": {"network_idx": 4, "mode": 0, "num_classes": 10},
    "simplenet_cifar_5m_extra_pool": {"network_idx": 5, "mode": 0, "num_classes": 10},
}
_RELEASE = "https://github.com/Coderx7/SimpleNet_Pytorch/releases/download/v1.0.0/simplenetv1_"
WEIGHTS = {
    f"simplenetv1_{name}": {
        "in1k": Weights(
            f"{_RELEASE}{name}-{digits}.pth", "authors", "authors", "MIT", digits,
            metrics=top(one, five), metrics_source="Coderx7/SimpleNet_Pytorch@4334c57 README",
        )
    }
    for name, (_, _, _, digits, one, five) in _IMAGENET.items()
}  # fmt: skip
RECIPE = {  # one GPU; late in training they resume with dropouts 0.02, 0.05, 0.05 (entries 11 to 13) and no smoothing
    "optimizer": "rmsprop_tf",
    "lr": 0.0195,
    "reference_batch": 256,
    "batch_size": 256,
    "momentum": 0.9,
    "eps": 1e-3,
    "weight_decay": 3e-5,
    "epochs": 900,
    "schedule": "step",
    "decay_rate": 0.981,
    "decay_epochs": 1,
    "warmup_lr": 1e-3,
    "warmup_epochs": 3,  # the default of the timm that they ran
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
_SMALL = {name: {"weight_decay": 1e-5} for name, kwargs in VARIANTS.items() if kwargs.get("scale") == 0.5}
CIFAR = tuple(name for name, kwargs in VARIANTS.items() if kwargs["mode"] == 0)
_CIFAR = {  # of the Caffe solver for small networks; the CIFAR logs of 2018 are of Adadelta, 0.1, dropping tenfold six times
    "optimizer": "nesterov",
    "lr": 0.01,
    "reference_batch": 0,
    "batch_size": 100,
    "weight_decay": 0.005,
    "epochs": 540,
    "decay_rate": 0.1,
    "decay_epochs": 100,
    "warmup_epochs": 0,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "crop_scale": (0.8, 1.0),
    "data": "cifar10",
}
_CIFAR10 = {
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
    "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
_COMMON = {"paper": "simplenet", "kind": "backbone", "build": SimpleNet}
register(
    **_COMMON,
    variants={name: kwargs for name, kwargs in VARIANTS.items() if name not in CIFAR},
    weights=WEIGHTS,
    recipe=RECIPE,
    exceptions={"training": _SMALL},
)
register(
    **_COMMON,
    variants={name: VARIANTS[name] for name in CIFAR},
    input_size=(3, 32, 32),
    preprocessing=_CIFAR10,
    recipe={**RECIPE, **_CIFAR},
)
