r"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler, Howard, Zhu, Zhmoginov, Chen; CVPR 2018; arXiv 1801.04381).

What a layer has to say fits into few channels, and a ReLU in few channels destroys it (Sec. 3.2). So the maps between blocks are
thin and pass no activation, and all filtering happens in a wide map inside the block (Table 1): for an input of :math:`k`
channels, expansion :math:`t` and stride :math:`s`,

.. math:: y = W_2\,\mathrm{ReLU6}\big(\mathrm{DW}^{s}_{3\times3}(\mathrm{ReLU6}(W_1 x))\big),
          \qquad W_1 \in \mathbb{R}^{tk \times k},\ W_2 \in \mathbb{R}^{k' \times tk},

each layer followed by a BatchNorm, and the input is added where :math:`s = 1` and :math:`k = k'`: the shortcut joins the thin ends.
A width multiplier scales every channel count (rounded to multiples of 8), except that the last 1280 are never made fewer.

Two heads of the paper stand in their own files: SSDLite (:mod:`offprint.models.detection.ssdlite`) and Mobile DeepLabv3
(:mod:`offprint.models.segmentation.mobile_deeplab`). Parameter names are torchvision's, but for
the last layer (``head``, there ``classifier.1``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import IMAGENET, register
from offprint.models.released import timm, torchvision
from offprint.nn import make_divisible

# expansion t, channels c, repeats n, stride s of the first (Table 2)
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class ConvNormAct(nn.Sequential):
    """Convolution without bias that keeps the size (at stride 1), BatchNorm, ReLU6.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, dilation: of the convolution.
        eps: of the BatchNorm.
        same: pad as TensorFlow does; at stride 2 an even side then gets its extra row and column after the last, not before
            the first.
    """

    fold_pairs = (("0", "1"),)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        eps: float = 1e-5,
        same: bool = False,
    ):
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=eps),
            nn.ReLU6(inplace=True),
        )
        self.same = False
        if same:
            self.pad_as_tensorflow()

    def pad_as_tensorflow(self) -> None:
        """Switch to TensorFlow's padding, which differs at stride 2 only."""
        if self[0].stride[0] > 1 and not self.same:
            self.same, self[0].padding = True, (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = F.pad(x, [p for side in (x.shape[-1], x.shape[-2]) for p in (side % 2, 1)])  # kernel 3, stride 2
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly; the input is added where the shapes agree (Fig. 3b, Table 1).

    Args:
        in_channels, out_channels: of the thin ends.
        stride: of the depth-wise convolution.
        expand_ratio: t; at 1 there is no expanding layer.
        dilation: of the depth-wise convolution.
        eps, same: as in :class:`ConvNormAct`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: int,
        dilation: int = 1,
        eps: float = 1e-5,
        same: bool = False,
    ):
        super().__init__()
        hidden = round(in_channels * expand_ratio)
        self.add = stride == 1 and in_channels == out_channels
        expand = [ConvNormAct(in_channels, hidden, eps=eps)] if expand_ratio != 1 else []
        self.conv = nn.Sequential(
            *expand,
            ConvNormAct(hidden, hidden, 3, stride, hidden, dilation, eps, same),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, eps=eps),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H/stride, W/stride)."""
        return x + self.conv(x) if self.add else self.conv(x)


def _timm_block(m) -> str:
    first = (1, 2, 4, 7, 11, 14, 17)[int(m[1])] + int(m[2])
    if m[1] == "0":
        place = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
    else:
        place = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
    return f"features.{first}.conv.{place[m[3]]}."


def _slim_block(m) -> str:
    index = int(m[1] or 0)
    layers = ("depthwise", "project") if index == 0 else ("expand", "depthwise", "project")
    at, norm = layers.index(m[2]), m[3] == "BatchNorm"
    place = str(at + norm) if m[2] == "project" else f"{at}.{int(norm)}"
    return f"features.{index + 1}.conv.{place}."


def _from_slim(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """TensorFlow's layouts: (h, w, in, out), depth-wise (h, w, channels, 1), and 1001 classes with the background first."""
    out = {}
    for name, value in state.items():
        if name.endswith("depthwise_weights"):
            name, value = name.removesuffix("depthwise_weights") + "weight", value.permute(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
        if name.startswith("head."):
            value = value.flatten(1) if value.ndim == 4 else value
            if value.shape[0] == getattr(model, "num_classes", 0) + 1:
                value = value[1:]
        out[name] = value.contiguous()
    out["padding.same"] = torch.ones(1)  # read by adapt_state
    return out


_SLIM = (
    (r"^MobilenetV2/", ""),
    (r"^Conv/(BatchNorm)?", lambda m: f"features.0.{int(bool(m[1]))}."),
    (r"^Conv_1/(BatchNorm)?", lambda m: f"features.18.{int(bool(m[1]))}."),
    (r"^Logits/Conv2d_1c_1x1/", "head."),
    (r"^expanded_conv(?:_(\d+))?/(expand|depthwise|project)/(BatchNorm)?", _slim_block),
    (r"\./", "."),
    (r"gamma$|(?<!depthwise_)weights$", "weight"),
    (r"beta$|biases$", "bias"),
    (r"moving_mean$", "running_mean"),
    (r"moving_variance$", "running_var"),
)


class MobileNetV2(Backbone):
    """The classifier of Table 2, and its trunk as an encoder.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        width: multiplier on every channel count; the last layer keeps at least 1280.
        drop_rate: dropout before the classifier (0.2 in the paper's training).
        output_stride: 32, 16 or 8: where the strides end. A stride that is left out becomes a dilation of the depth-wise
            convolutions behind it (Sec. 6.3).
        settings: rows (t, c, n, s) of Table 2.
        eps: of the BatchNorms; 1e-5 as in PyTorch's releases, 1e-3 as in TensorFlow's.
        same_padding: TensorFlow's padding. A TensorFlow checkpoint switches both on by itself.

    Any image of 32 pixels and more works. As an encoder the maps are the last of each stride and the 1280-channel layer is left
    out.
    """

    head_modules = ("head",)
    input_layers = ("features.0.0",)
    native = "offprint"
    dialects = (
        Dialect("torchvision", ((r"^classifier\.1\.", "head."),)),
        Dialect(
            "timm",
            (
                (r"^conv_stem\.", "features.0.0."),
                (r"^bn1\.", "features.0.1."),
                (r"^conv_head\.", "features.18.0."),
                (r"^bn2\.", "features.18.1."),
                (r"^classifier\.", "head."),
                (r"^blocks\.(\d)\.(\d)\.(conv_pwl|conv_pw|conv_dw|bn\d)\.", _timm_block),
            ),
        ),
        Dialect("tensorflow", _SLIM, r"RMSProp|Momentum|global_step", _from_slim),
    )

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        width: float = 1.0,
        drop_rate: float = 0.0,
        output_stride: int = 32,
        settings: tuple[tuple[int, int, int, int], ...] = SETTINGS,
        eps: float = 1e-5,
        same_padding: bool = False,
    ):
        super().__init__(drop_rate)
        if not width > 0:
            raise OffprintError(f"width={width}; the width multiplier must be above 0 (the paper's: 0.35 to 1.4)")
        if output_stride not in (8, 16, 32):
            raise OffprintError(f"output_stride={output_stride}; choose 32, 16 or 8")
        self.in_chans, self.num_classes = in_chans, num_classes
        channels = make_divisible(32 * width)
        layers: list[nn.Module] = [ConvNormAct(in_chans, channels, 3, 2, eps=eps, same=same_padding)]
        stride, dilation = 2, 1
        self.pyramid_channels, self.pyramid_reductions, self._ends = [channels], [2], [0]
        # the block that ends each stride: its expanded map is the last of the stride before
        self._strided: list[int] = []
        self._tap = 0  # the block whose expanded map SSDLite reads, in that form
        for t, c, n, s in settings:
            out = make_divisible(c * width)
            for i in range(n):
                step, rate = s if i == 0 else 1, dilation
                if step > 1 and stride * step > output_stride:
                    step, dilation = 1, dilation * step  # this block still sees the old rate, those behind it the new
                if step > 1:
                    stride *= step
                    self._strided.append(len(layers))
                    self.pyramid_channels.append(out)
                    self.pyramid_reductions.append(stride)
                    self._ends.append(0)
                self.pyramid_channels[-1], self._ends[-1] = out, len(layers)
                layers.append(InvertedResidual(channels, out, step, t, rate, eps, same_padding))
                channels = out
        self.num_features = make_divisible(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, ConvNormAct(channels, self.num_features, eps=eps))
        self.pyramid_modules = [f"features.{i}" for i in self._ends]
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_init)

    def as_features(self, out_indices=None) -> MobileNetV2:
        """Maps at strides 2 to 32 (or to ``output_stride``); the last 1x1 convolution goes with the classifier."""
        super().as_features(out_indices)
        last = len(self.features) - 1
        self.features = self.features[:last]
        self.optional_state = rf"^features\.{last}\."
        return self

    def as_ssd_features(self) -> MobileNetV2:
        """The two maps that SSDLite reads: an expanded layer at stride 16, and the 1280 channels at stride 32 (Sec. 6.2)."""
        self._tap = self._strided[-1]
        self.pyramid_channels = [self.features[self._tap].conv[0][0].out_channels, self.num_features]
        self.pyramid_reductions = [16, 32]
        self.pyramid_modules = [f"features.{self._tap}", f"features.{len(self.features) - 1}"]
        self.out_indices = (0, 1)
        self._behead()
        return self

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A TensorFlow checkpoint brings its BatchNorm epsilon and its padding with it."""
        if state.pop("padding.same", None) is None:
            return state
        if any(m.dilation[0] > 1 for m in self.modules() if isinstance(m, nn.Conv2d)):
            raise CheckpointError(
                "TensorFlow weights of the classifier are for output_stride=32; load them there, or train the dilated form"
            )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
            elif isinstance(module, ConvNormAct):
                module.pad_as_tensorflow()
        if "spec" in self.__dict__:  # so that a saved model is rebuilt in the same form
            self.spec["kwargs"] |= {"eps": 1e-3, "same_padding": True}
        return state

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block; the last 1x1 convolution goes with the last of them."""
        groups = [[f"features.{i}"] for i in range(len(self.features))]
        return [*groups[:-2], [*groups[-2], *groups[-1]]] if self.whole else groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The last map of each stride, finest first; all are linear bottlenecks (:meth:`as_ssd_features` gives others)."""
        if self._tap:
            x = self.run(self.features[: self._tap], x)
            expand, *rest = self.features[self._tap].conv  # its stride is above 1, so nothing is added
            x = expand(x)
            yield x
            for layer in rest:
                x = layer(x)
            yield self.run(self.features[self._tap + 1 :], x)
            return
        for i, block in enumerate(self.features):
            if i > self._ends[-1]:
                break
            x = self.run((block,), x)
            if i in self._ends:
                yield x

    def finish(self, x: Tensor) -> Tensor:
        """The last 1x1 convolution: (B, 1280, H/32, W/32)."""
        return self.run((self.features[-1],), x)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


VARIANTS = {f"mobilenetv2_{round(100 * width):03d}": {"width": width} for width in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)}
RECIPE = {  # Sec. 6.1: 16 asynchronous workers of 96 images; here 0.045 belongs to one worker's batch
    "optimizer": "rmsprop_tf",
    "lr": 0.045,
    "reference_batch": 96,
    "momentum": 0.9,
    "eps": 1.0,
    "weight_decay": 4e-5,
    "epochs": 300,
    "batch_size": 96,
    "schedule": "step",
    "decay_rate": 0.98,
    "decay_epochs": 1.0,
    "warmup_epochs": 0,
    "label_smoothing": 0.1,
    "drop_rate": 0.2,
    "ema_decay": 0.9999,
    "data": "imagenet-1k",
}
WEIGHTS = {  # the authors' own are TensorFlow's; these are trained anew
    "mobilenetv2_050": {"timm_lamb_in1k": timm("mobilenetv2_050.lamb_in1k", 224, 65.950, 86.088)},
    "mobilenetv2_100": {
        "torchvision_v2": torchvision("mobilenet_v2-7ebf99e0", 224, 232, 72.154, 90.822, "bilinear"),
        "torchvision_v1": torchvision("mobilenet_v2-b0353104", 224, 256, 71.878, 90.286, "bilinear"),
        "timm_ra_in1k": timm("mobilenetv2_100.ra_in1k", 224, 72.976, 91.010),
    },
    "mobilenetv2_140": {"timm_ra_in1k": timm("mobilenetv2_140.ra_in1k", 224, 76.520, 92.986)},
}
register(
    paper="mobilenet-v2",
    kind="backbone",
    build=MobileNetV2,
    variants=VARIANTS,
    preprocessing={**IMAGENET, "interpolation": "bilinear"},
    weights=WEIGHTS,
    recipe=RECIPE,
)
