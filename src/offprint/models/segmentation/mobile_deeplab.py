"""Mobile DeepLabv3 (Sandler et al., MobileNetV2, CVPR 2018, Sec. 6.3): DeepLabv3's head without its atrous branches.

On the last map of an encoder, at output stride 16, two 1x1 convolutions of 256 channels stand side by side: one on the map, one on
its mean, spread over the map again. They are concatenated and projected to 256, classified, and enlarged to the image. The paper
finds the 3x3 atrous branches too dear for what they bring, and drops the 1280-channel layer of MobileNetV2 as well.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.checkpoint import Dialect
from offprint.models.factory import create_model
from offprint.models.registry import entry, register


def _conv(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class MobileDeepLabV3(nn.Module):
    """An encoder and the head; (B, C, H, W) to scores (B, num_classes, H, W).

    Args:
        encoder: any ``features_only`` model with ``feature_info``; its last map is used.
        num_classes: classes, the background among them (21 for PASCAL VOC).
        in_chans: image channels of the encoder.
        width: channels of the head.
        drop_rate: dropout before the last layer.
    """

    dialects = (Dialect("torchvision", ((r"^features\.", "encoder.features."),)),)
    input_layers = ("encoder.features.0.0",)
    classifier = "logits"

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int = 21,
        in_chans: int = 3,
        width: int = 256,
        drop_rate: float = 0.1,
    ):
        super().__init__()
        if not hasattr(encoder, "feature_info"):
            raise OffprintError(
                f"{type(encoder).__name__} gives no feature maps; build the encoder with features_only=True"
            )
        self.encoder, self.num_classes, self.in_chans = encoder, num_classes, in_chans
        channels = encoder.feature_info.channels()[-1]
        self.image_pooling = _conv(channels, width)
        self.aspp0 = _conv(channels, width)
        self.projection = _conv(2 * width, width)
        self.dropout = nn.Dropout(drop_rate)
        self.logits = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each pixel, before the softmax."""
        feature = self.encoder(x)[-1]
        pooled = self.image_pooling(feature.mean((2, 3), keepdim=True)).expand(-1, -1, *feature.shape[-2:])
        y = self.projection(torch.cat([pooled, self.aspp0(feature)], 1))
        return F.interpolate(self.logits(self.dropout(y)), x.shape[-2:], mode="bilinear", align_corners=True)


def mobile_deeplab(
    backbone: str = "mobilenetv2_100",
    num_classes: int = 21,
    in_chans: int = 3,
    output_stride: int = 16,
    drop_rate: float = 0.1,
    **backbone_kwargs,
) -> MobileDeepLabV3:
    """Mobile DeepLabv3 on a backbone of the registry.

    Args:
        backbone: name of any backbone.
        num_classes, in_chans, drop_rate: as in :class:`MobileDeepLabV3`.
        output_stride: 16 or 8; only for backbones that can trade stride for dilation, others keep their own.
        **backbone_kwargs: the backbone's own arguments.
    """
    if "output_stride" in inspect.signature(entry(backbone).build).parameters:
        backbone_kwargs["output_stride"] = output_stride
    encoder = create_model(backbone, in_chans=in_chans, features_only=True, out_indices=(-1,), **backbone_kwargs)
    return MobileDeepLabV3(encoder, num_classes, in_chans, drop_rate=drop_rate)


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
