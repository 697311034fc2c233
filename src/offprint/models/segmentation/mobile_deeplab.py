"""Mobile DeepLabv3 (Sandler et al., MobileNetV2, CVPR 2018, Sec. 6.3): DeepLabv3's head without its atrous branches.

On the last map of an encoder, at output stride 16, two 1x1 convolutions of 256 channels stand side by side: one on the map, one on
its mean, spread over the map again. They are concatenated and projected to 256, classified, and enlarged to the image. The paper
finds the 3x3 atrous branches too dear for what they bring, and drops the 1280-channel layer of MobileNetV2 as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.models.checkpoint import Dialect
from offprint.models.compose import Composed, compose
from offprint.models.parts import Maps, last, maps_of, register_part
from offprint.models.registry import entry, register


def _conv(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class DeepLabHead(nn.Module):
    """The head: the last map (B, C, h, w) to scores (B, num_classes, H, W).

    Args:
        before: the maps that come in; the last is used.
        num_classes: classes, the background among them (21 for PASCAL VOC).
        width: channels of the head.
        drop_rate: dropout before the last layer.
    """

    classifier = "logits"
    whole_dialects = (
        Dialect("offprint 0.1", ((r"^encoder\.", "backbone."), (r"^(image_pooling|aspp0|projection|logits)\.", r"head.\1."))),
        Dialect("torchvision", ((r"^features\.", "backbone.features."), (r"^(?!backbone\.)", "head."))),
    )  # fmt: skip

    def __init__(self, before: Maps, num_classes: int = 21, width: int = 256, drop_rate: float = 0.1):
        super().__init__()
        self.num_classes = num_classes
        channels = before.channels[-1]
        self.image_pooling = _conv(channels, width)
        self.aspp0 = _conv(channels, width)
        self.projection = _conv(2 * width, width)
        self.dropout = nn.Dropout(drop_rate)
        self.logits = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Scores before the softmax, at the map's size, or enlarged to ``size``."""
        feature = maps[-1]
        pooled = self.image_pooling(feature.mean((2, 3), keepdim=True)).expand(-1, -1, *feature.shape[-2:])
        scores = self.logits(self.dropout(self.projection(torch.cat([pooled, self.aspp0(feature)], 1))))
        return scores if size is None else F.interpolate(scores, size, mode="bilinear", align_corners=True)


class MobileDeepLabV3(Composed):
    """An encoder and the head; (B, C, H, W) to scores (B, num_classes, H, W).

    Args:
        encoder: any ``features_only`` model with ``feature_info``; its last map is used.
        in_chans: image channels of the encoder.
        num_classes, width, drop_rate: as in :class:`DeepLabHead`.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int = 21, in_chans: int = 3, width: int = 256, drop_rate: float = 0.1
    ):
        super().__init__(encoder, None, DeepLabHead(maps_of(encoder), num_classes, width, drop_rate))
        self.in_chans = in_chans


def mobile_deeplab(
    backbone: str = "mobilenetv2_100",
    num_classes: int = 21,
    in_chans: int = 3,
    output_stride: int = 16,
    drop_rate: float = 0.1,
    **backbone_kwargs,
) -> Composed:
    """Mobile DeepLabv3 on a backbone of the registry.

    Args:
        backbone: name of any backbone.
        num_classes, drop_rate: as in :class:`DeepLabHead`.
        in_chans: image channels.
        output_stride: 16 or 8; only for backbones that can trade stride for dilation, others keep their own.
        **backbone_kwargs: the backbone's own arguments.
    """
    if "output_stride" in inspect.signature(entry(backbone).build).parameters:
        backbone_kwargs["output_stride"] = output_stride
    head = {"name": "mobile_deeplab", "drop_rate": drop_rate}
    return compose(backbone, head=head, num_classes=num_classes, in_chans=in_chans, **backbone_kwargs)


register_part("mobile_deeplab", "head", DeepLabHead, paper="mobilenet-v2", task="segmentation", takes=last(1),
              prefers={"output_stride": 16})  # fmt: skip
VARIANTS = {f"mobile_deeplabv3_os{stride}": {"output_stride": stride} for stride in (16, 8)}
register(
    paper="mobilenet-v2",
    kind="segmentation",
    task="segmentation",
    build=mobile_deeplab,
    variants=VARIANTS,
    input_size=(3, 513, 513),
    preprocessing={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "crop_pct": 1.0},
)
