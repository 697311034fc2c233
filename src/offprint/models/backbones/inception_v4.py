r"""Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning (Szegedy, Ioffe, Vanhoucke, Alemi; AAAI 2017;
arXiv 1602.07261).

Inception-v4 is a deeper and more uniform Inception: a stem, then 4, 7 and 3 blocks of one kind each, with a reduction between
them (Fig. 9). The Inception-ResNets end each block in a 1x1 convolution without activation, back to the block's width, and add it
to the input (Fig. 15):

.. math:: x \leftarrow \mathrm{ReLU}\big(x + s\, W\,[\,b_0(x), b_1(x), \ldots\,]\big).

Residuals make training much faster and the final accuracy little better. Beyond about a thousand filters an unscaled residual
network dies early in training; a scale :math:`s` between 0.1 and 0.3 prevents it where lower rates and more BatchNorm do not
(Sec. 3.3).

Every convolution but the ones before a sum is without bias and followed by BatchNorm (eps 1e-3) and ReLU. Names are those of
Cadene's ports, those of facenet-pytorch for the residual stages. ``inception_resnet_v2`` is the network that was released, which
has another stem, more blocks and one more layer than the paper's (``inception_resnet_v2_paper``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbone import Backbone
from offprint.models.backbones import _slim
from offprint.models.backbones._inception_blocks import Auxiliary, ConvNorm, InceptionC, Kernel, Mixed, Residual, pool
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register
from offprint.models.released import cadene, timm


class _Inception(Backbone):
    """What the networks here share: a list of named steps, maps taken after some of them, and the head."""

    head_modules = ("last_linear", "aux")
    classifier = "last_linear"
    native = "cadene"
    minimum = 75
    optional_state = r"^aux\."  # many releases hold no side classifier
    aux_weight = 0.4  # of the side classifier's loss

    _steps: tuple[str, ...]
    _taps: tuple[str, ...]  # steps that end a stride
    _aux_at: str
    _stem: int  # steps before the first block

    def _start(self, in_chans: int, num_classes: int) -> None:
        self.in_chans, self.num_classes = in_chans, num_classes
        self.pyramid_reductions = [2, 4, 8, 16, 32]

    def _finish(self, aux: bool, align_feature_maps: bool, channels: int) -> None:
        self.pyramid_modules = list(self._taps)
        if aux and not self.num_classes:
            raise OffprintError("aux=True adds a side classifier and needs num_classes above 0")
        self.aux = Auxiliary(channels, self.num_classes) if aux else None
        if align_feature_maps:
            self.align_feature_maps()

    def align_feature_maps(self) -> None:
        """Pad the convolutions and poolings that have no padding, so that maps line up with the image (the authors' detection form)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.padding = (1, 1)
            elif isinstance(module, nn.MaxPool2d):
                module.padding = 1
        self.minimum = 32

    def as_features(self, out_indices=None):
        """Maps at strides 2 to 32, aligned with the image (see :meth:`align_feature_maps`)."""
        self.align_feature_maps()
        return super().as_features(out_indices)

    def _behead(self) -> None:
        super()._behead()
        self.aux = None
        self._steps = self._steps[: self._steps.index(self.pyramid_modules[-1]) + 1]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the side classifier's last layer with it."""
        super().reset_classifier(num_classes, global_pool)
        if self.aux is not None:
            new = nn.Linear(768, num_classes) if num_classes else None
            self.aux = None if new is None else self.aux
            if new is not None:
                self.aux.fc = new.to(next(self.parameters()))

    def _step(self, name: str, x: Tensor) -> Tensor:
        module = self.get_submodule(name)
        return self.run(module, x) if isinstance(module, nn.Sequential) else self.run((module,), x)

    def _forward(self, x: Tensor):
        """Logits (B, num_classes), or maps; in training with ``aux`` the logits and the side classifier's."""
        if self.aux is None or not self.training:
            return super()._forward(x)
        side = None
        for name in self._steps:
            x = self._step(name, x)
            if name == self._aux_at:
                side = self.aux(x)
        return self.forward_head(x), side

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block or reduction; the layer behind the last block goes with it."""
        groups: list[list[str]] = [[]]
        for name in self._steps:
            module = self.get_submodule(name)
            if name.startswith("repeat"):
                groups += [[f"{name}.{i}"] for i in range(len(module))]
            elif name == "conv2d_7b" or self._steps.index(name) < self._stem:
                groups[-1].append(name)
            else:
                groups.append([name])
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The last map of each stride, finest first; the last is (B, C, 8, 8) for images of 299 pixels."""
        for name in self._steps:
            x = self._step(name, x)
            if name in self.pyramid_modules:
                yield x


@cache
def slim_names() -> dict[str, dict[str, str]]:
    """Scope of the network in slim's checkpoints → {slim's layer: ours}."""
    return _slim.names(STEM_V4, (V4_A, V4_REDUCTION_A, V4_B, V4_REDUCTION_B), FORMS["v2"])


def _from_slim(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return _slim.convert(state, model, slim_names())


SLIM = Dialect("tensorflow", ignore=r"RMSProp|Momentum|global_step", reshape=_from_slim)


# -- Inception-v4 ----------------------------------------------------------------------------------------------------
STEM_V4 = (
    (32, 3, 2), (32, 3, 1), (64, 3),
    (("maxpool", ("max",)), ("conv", ((96, 3, 2),))),
    (((64, 1), (96, 3, 1)), ((64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1))),
    (("conv", ((192, 3, 2),)), ("maxpool", ("max",))),
)  # fmt: skip
V4_A = (((96, 1),), ((64, 1), (96, 3)), ((64, 1), (96, 3), (96, 3)), ("avg", (96, 1)))
V4_REDUCTION_A = (((384, 3, 2),), ((192, 1), (224, 3), (256, 3, 2)), ("max",))
V4_B = (
    ((384, 1),), ((192, 1), (224, (1, 7)), (256, (7, 1))),
    ((192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))), ("avg", (128, 1)),
)  # fmt: skip
V4_REDUCTION_B = (((192, 1), (192, 3, 2)), ((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)), ("max",))


def _stem_v4(in_chans: int) -> list[nn.Module]:
    """Fig. 3: 299 pixels to 35, 384 channels."""
    layers: list[nn.Module] = []
    channels = in_chans
    for row in STEM_V4:
        if isinstance(row[0], int):
            layers.append(ConvNorm(channels, *row))
            channels = row[0]
            continue
        named = isinstance(row[0][0], str)
        layers.append(
            Mixed(channels, tuple(b[1] for b in row), tuple(b[0] for b in row)) if named else Mixed(channels, row)
        )
        channels = layers[-1].out_channels
    return layers


class InceptionV4(_Inception):
    """Fig. 9.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        depths: blocks of kind A, B and C.
        drop_rate: dropout before the classifier (0.2 in the paper's training).
        aux: a side classifier after the last B block; in training the model then returns (logits, side logits).
        align_feature_maps: pad everything, see :meth:`align_feature_maps`; an encoder is always so.

    Images of 75 pixels and more work (32 when aligned).
    """

    input_layers = ("features.0.conv",)
    dialects = (SLIM,)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: tuple[int, int, int] = (4, 7, 3),
        drop_rate: float = 0.0,
        aux: bool = False,
        align_feature_maps: bool = False,
    ):
        super().__init__(drop_rate)
        self._start(in_chans, num_classes)
        a, b, c = depths
        layers = _stem_v4(in_chans)
        layers += [Mixed(384, V4_A) for _ in range(a)] + [Mixed(384, V4_REDUCTION_A)]
        layers += [Mixed(1024, V4_B) for _ in range(b)] + [Mixed(1024, V4_REDUCTION_B)]
        layers += [InceptionC() for _ in range(c)]
        self.features = nn.Sequential(*layers)
        self._steps = tuple(f"features.{i}" for i in range(len(layers)))
        ends = (2, 4, 5 + a, 6 + a + b, len(layers) - 1)
        self._taps, self._aux_at = tuple(f"features.{i}" for i in ends), f"features.{6 + a + b}"
        self._stem = len(STEM_V4)
        self.pyramid_channels = [64, 192, 384, 1024, 1536]
        self.num_features = 1536
        self.last_linear = nn.Linear(1536, num_classes) if num_classes else nn.Identity()
        self._finish(aux, align_feature_maps, 1024)


# -- Inception-ResNet ------------------------------------------------------------------------------------------------
def _residual(widths: tuple[int, int, int, int], kernels: tuple[Kernel, ...]) -> tuple:
    """A 1x1 branch, and a 1x1 followed by the kernels."""
    first, *chain = widths
    return ((first, 1),), ((chain[0], 1), *zip(chain[1:], kernels, strict=True))


def _block_a(*last: int) -> tuple:
    """35x35: three branches, the last with two 3x3."""
    return ((32, 1),), ((32, 1), (32, 3)), ((32, 1), *((c, 3) for c in last))


def _reduction_a(k: int, m: int, n: int, out: int) -> tuple:
    """Fig. 7: a 3x3 of ``n``, and 1x1 ``k``, 3x3 ``m``, 3x3 ``out``; the 3x3 at the ends are strided."""
    return ((n, 3, 2),), ((k, 1), (m, 3), (out, 3, 2)), ("max",)


def _reduction_b(*widths: int) -> tuple:
    a, b, c, d = widths
    return ((256, 1), (a, 3, 2)), ((256, 1), (b, 3, 2)), ((256, 1), (c, 3), (d, 3, 2)), ("max",)


_FIRST = (("conv2d_1a", (32, 3, 2)), ("conv2d_2a", (32, 3, 1)), ("conv2d_2b", (64, 3)), ("maxpool_3a", "max"),
          ("conv2d_3b", (80, 1)), ("conv2d_4a", (192, 3, 1)))  # fmt: skip
_MIXED_5B = (((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)), ("avg", (64, 1)))
_CHAIN_B, _CHAIN_C = ((1, 7), (7, 1)), ((1, 3), (3, 1))
# stem; the three kinds of block; the two reductions; whether a last block without scale and activation follows; the last layer
FORMS = {
    "v1": (
        (*_FIRST, ("conv2d_4b", (256, 3, 2))),
        (_block_a(32, 32), _residual((128, 128, 128, 128), _CHAIN_B), _residual((192, 192, 192, 192), _CHAIN_C)),
        (_reduction_a(192, 192, 384, 256), _reduction_b(384, 256, 256, 256)),
        False, 0,
    ),
    "v2": (
        (*_FIRST, ("maxpool_5a", "max"), ("mixed_5b", _MIXED_5B)),
        (_block_a(48, 64), _residual((192, 128, 160, 192), _CHAIN_B), _residual((192, 192, 224, 256), _CHAIN_C)),
        (_reduction_a(256, 256, 384, 384), _reduction_b(384, 288, 288, 320)),
        True, 1536,
    ),
}  # fmt: skip
FORMS["facenet"] = (*FORMS["v1"][:3], True, 0)
FORMS["v2_paper"] = ("v4", *FORMS["v2"][1:3], False, 0)


class InceptionResNet(_Inception):
    """Inception-ResNet v1 and v2 (Fig. 15).

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the features before it.
        form: ``v1``, ``v2`` (as released), ``v2_paper`` (as printed) or ``facenet`` (v1 with a sixth C block).
        depths: blocks of kind A, B and C.
        scales: factor on the residual of each kind; 1 is the unscaled network that dies in training when it is wide.
        drop_rate: dropout before the classifier (0.2 in the paper's training; 0.6 in facenet's).
        embedding: width of facenet's head: linear without bias and BatchNorm; its output of unit length is what the
            model returns without a classifier. 0 for none.
        aux: a side classifier after the last B block; in training the model then returns (logits, side logits).
        align_feature_maps: pad everything, see :meth:`align_feature_maps`; an encoder is always so.

    Images of 75 pixels and more work (32 when aligned).
    """

    head_modules = ("last_linear", "last_bn", "logits", "aux")
    input_layers = ("conv2d_1a.conv", "stem.0.conv")
    native = "facenet"
    dialects = (
        Dialect(
            "cadene",
            ((r"^repeat_2\.", "repeat_3."), (r"^repeat_1\.", "repeat_2."), (r"^repeat\.", "repeat_1.")),
        ),
        Dialect(
            "timm",
            (
                (r"^classif\.", "last_linear."),
                (r"^repeat_2\.", "repeat_3."),
                (r"^repeat_1\.", "repeat_2."),
                (r"^repeat\.", "repeat_1."),
            ),
        ),
        SLIM,
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        form: str = "v2",
        depths: tuple[int, int, int] = (10, 20, 9),
        scales: tuple[float, float, float] = (0.17, 0.10, 0.20),
        drop_rate: float = 0.0,
        embedding: int = 0,
        aux: bool = False,
        align_feature_maps: bool = False,
    ):
        super().__init__(drop_rate)
        if form not in FORMS:
            raise unknown("form of Inception-ResNet", form, FORMS)
        if len(scales) != 3 or not all(0 < s <= 1 for s in scales):
            raise OffprintError(
                f"scales={scales}; give three factors above 0 and up to 1 (the paper's lie from 0.1 to 0.3)"
            )
        self._start(in_chans, num_classes)
        stem, blocks, reductions, last_block, last_layer = FORMS[form]
        steps, channels = [], in_chans
        if stem == "v4":
            self.stem = nn.Sequential(*_stem_v4(in_chans))
            steps, channels = [f"stem.{i}" for i in range(len(self.stem))], 384
            early, widths = ["stem.2", "stem.4"], [64, 192]
        else:
            for name, unit in stem:
                if unit == "max":
                    module: nn.Module = pool(unit)
                elif isinstance(unit[0], int):
                    module, channels = ConvNorm(channels, *unit), unit[0]
                else:
                    module = Mixed(channels, unit)
                    channels = module.out_channels
                setattr(self, name, module)
                steps.append(name)
            early, widths = ["conv2d_2b", "conv2d_4a"], [64, 192]
        self._stem = len(steps)
        ends = []
        for i, (branches, depth, scale) in enumerate(zip(blocks, depths, scales, strict=True)):
            if i:
                name = ("mixed_6a", "mixed_7a")[i - 1]
                reduction = Mixed(channels, reductions[i - 1])
                setattr(self, name, reduction)
                channels = reduction.out_channels
                steps.append(name)
            setattr(
                self, f"repeat_{i + 1}", nn.Sequential(*(Residual(channels, branches, scale) for _ in range(depth)))
            )
            steps.append(f"repeat_{i + 1}")
            ends.append(steps[-1])
            widths.append(channels)
        if last_block:
            self.block8 = Residual(channels, blocks[2], 1.0, relu=False)
            steps.append("block8")
        if last_layer:
            self.conv2d_7b, channels = ConvNorm(channels, last_layer), last_layer
            steps.append("conv2d_7b")
        widths[-1], ends[-1] = channels, steps[-1]
        self._steps, self._taps, self._aux_at = tuple(steps), (*early, *ends), "repeat_2"
        self.pyramid_channels, self.num_features = widths, channels
        self.embedding = self.hidden = embedding
        if embedding:
            self.classifier = "logits"
            self.last_linear = nn.Linear(channels, embedding, bias=False)
            self.last_bn = nn.BatchNorm1d(embedding, eps=1e-3)
            self.logits = nn.Linear(embedding, num_classes) if num_classes else nn.Identity()
        else:
            self.last_linear = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self._finish(aux, align_feature_maps, widths[3])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the map, dropout, classifier; facenet's: embedding, normalised to unit length or classified."""
        if not (self.embedding and self.whole and self.global_pool):
            return super().forward_head(x, pre_logits)
        x = self.last_bn(self.last_linear(F.dropout(self.pool(x), self.drop_rate, self.training)))
        return self.logits(x) if self.num_classes and not pre_logits else F.normalize(x)


_V1 = {"form": "v1", "depths": (5, 10, 5)}
VARIANTS = {
    "inception_resnet_v1": _V1,
    "inception_resnet_v1_facenet": {**_V1, "form": "facenet", "embedding": 512, "num_classes": 0},
    "inception_resnet_v2": {},
    "inception_resnet_v2_paper": {"form": "v2_paper", "depths": (5, 10, 5)},
}
RECIPE = {  # Sec. 4: 20 replicas; the rate is one replica's
    "optimizer": "rmsprop_tf",
    "lr": 0.045,
    "reference_batch": 32,
    "momentum": 0.9,
    "eps": 1.0,
    "weight_decay": 4e-5,
    "epochs": 200,
    "batch_size": 32,
    "schedule": "step",
    "decay_rate": 0.94,
    "decay_epochs": 2.0,
    "warmup_epochs": 0,
    "label_smoothing": 0.1,
    "drop_rate": 0.2,
    "ema_decay": 0.9999,
    "aux_weight": 0.4,
    "data": "imagenet-1k",
}
_PREPROCESSING = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
_BACKGROUND = {"num_classes": 1001, "class_map": "background-first"}
_HALF = {**_PREPROCESSING, "crop_mode": "center"}
_FACES = {
    "mean": (0.5,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}  # (x - 127.5) / 128


def _facenet(file: str, accuracy: float) -> Weights:
    return Weights(
        f"https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/{file}.pt", "facenet-pytorch", "facenet", "MIT",
        preprocessing=_FACES, metrics={"lfw": {"accuracy": accuracy}}, metrics_source="timesler/facenet-pytorch README",
    )  # fmt: skip


WEIGHTS = {  # the authors' own are TensorFlow's; timm and pretrained-models.pytorch ported them, facenet-pytorch facenet's
    "inception_v4": {
        "timm_tf_in1k": timm(
            "inception_v4.tf_in1k",
            299,
            80.156,
            94.968,
            dialect="cadene",
            preprocessing=_HALF,  # the same tensor names
        ),
        "cadene_in1k": cadene("inceptionv4-8e4777a0", 299, 341, 80.062, 94.926, **_BACKGROUND),
    },
    "inception_resnet_v2": {
        "timm_tf_in1k": timm("inception_resnet_v2.tf_in1k", 299, 80.462, 95.308, crop=0.8975, preprocessing=_HALF),
        "timm_tf_ens_adv_in1k": timm(
            "inception_resnet_v2.tf_ens_adv_in1k", 299, 79.978, 94.946, crop=0.8975, preprocessing=_HALF
        ),
        "cadene_in1k": cadene("inceptionresnetv2-520b38e4", 299, 341, 80.170, 95.234, **_BACKGROUND),
    },
    "inception_resnet_v1_facenet": {
        "vggface2": _facenet("20180402-114759-vggface2", 99.65),
        "casia_webface": _facenet("20180408-102900-casia-webface", 99.05),
    },
}
for _build, _variants, _crop in ((InceptionV4, {"inception_v4": {}}, 0.875), (InceptionResNet, VARIANTS, 0.8975)):
    register(
        paper="inception-v4",
        kind="backbone",
        build=_build,
        variants=_variants,
        input_size=(3, 299, 299),
        input_sizes={"inception_resnet_v1_facenet": (3, 160, 160)},
        preprocessing={**_PREPROCESSING, "crop_pct": _crop},
        weights={name: released for name, released in WEIGHTS.items() if name in _variants},
        recipe=RECIPE,
        exceptions={"training": {"inception_resnet_v1_facenet": {"drop_rate": 0.6, "aux_weight": None, "data": ""}}}
        if "inception_resnet_v1_facenet" in _variants
        else None,
    )
