"""DeepLabv3 (Chen, Papandreou, Schroff, Adam; arXiv 1706.05587) as CVNets builds it, and on the networks of AFFNet.

Over the last map of an encoder, at output stride 16 or 8, stand side by side a 1x1 convolution, 3x3 convolutions of several dilations,
and a 1x1 convolution of the map's mean, spread over the map again; a 1x1 convolution over all of them and the classifier follow.
Parameter names are CVNets' without ``aspp.aspp_layer``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.models.backbones.affnet import VARIANTS as AFFNETS
from offprint.models.backbones.affnet import ConvNormAct
from offprint.models.checkpoint import Dialect
from offprint.models.compose import Composed, compose
from offprint.models.parts import Maps, last, register_part
from offprint.models.registry import register


class DeepLabV3Head(nn.Module):
    """DeepLabv3's head as CVNets builds it: a 1x1 convolution, three dilated 3x3 ones and the map's mean, side by side, and over all
    of them a 1x1 convolution and the classifier.

    Args:
        before: the maps that come in; the last is used.
        num_classes: classes, the background among them.
        width: channels of the head.
        rates: dilations of the three.
        drop_rate: of whole channels before the classifier.
        activation: of all layers.
    """

    classifier = "logits"
    prefixes = ("seg_head.",)
    dialects = (
        Dialect(
            "authors",
            (
                (r"^aspp\.aspp_layer\.", ""),
                (r"\.aspp_pool\.conv_1x1\.", "."),
                (r"^classifier\.block\.conv\.", "logits."),
            ),
        ),
    )
    native = "offprint"

    def __init__(
        self,
        before: Maps,
        num_classes: int = 21,
        width: int = 256,
        rates: tuple[int, int, int] = (6, 12, 18),
        drop_rate: float = 0.1,
        activation: str = "silu",
    ):
        super().__init__()
        self.num_classes, channels = num_classes, before.channels[-1]
        dilated = (ConvNormAct(channels, width, 3, dilation=rate, activation=activation) for rate in rates)
        plain, mean = (ConvNormAct(channels, width, activation=activation) for _ in range(2))
        self.convs = nn.ModuleList([plain, *dilated, mean])
        self.project = ConvNormAct((len(rates) + 2) * width, width, activation=activation)
        self.dropout = nn.Dropout2d(drop_rate)
        self.logits = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Scores (B, num_classes, h, w) at the last map's size, or enlarged to ``size``."""
        x = maps[-1]
        *local, mean = self.convs
        whole = mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        scores = self.logits(self.dropout(self.project(torch.cat([*(conv(x) for conv in local), whole], 1))))
        return scores if size is None else F.interpolate(scores, size, mode="bilinear", align_corners=False)


def deeplabv3(
    backbone: str = "affnet",
    num_classes: int = 21,
    in_chans: int = 3,
    output_stride: int = 16,
    drop_rate: float = 0.1,
    **backbone_kwargs,
) -> Composed:
    """DeepLabv3 on one of the networks of AFFNet; other backbones are put under the head by :func:`offprint.compose`.

    Args:
        backbone: name of the network.
        num_classes: classes, the background among them (21 for PASCAL VOC, 150 for ADE20K).
        in_chans: image channels.
        output_stride: 16 or 8.
        drop_rate: of whole channels before the classifier.
        **backbone_kwargs: the network's own arguments.
    """
    head = {"name": "deeplabv3", "drop_rate": drop_rate}
    return compose(
        backbone, head=head, num_classes=num_classes, in_chans=in_chans, output_stride=output_stride, **backbone_kwargs
    )


register_part("deeplabv3", "head", DeepLabV3Head, paper="affnet", task="segmentation", takes=last(1),
              prefers={"output_stride": 16})  # fmt: skip
register(
    paper="affnet",
    kind="segmentation",
    task="segmentation",
    build=deeplabv3,
    variants={f"{name}_deeplabv3": {"backbone": name} for name in AFFNETS},
    input_size=(3, 512, 512),
    preprocessing={"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "crop_pct": 1.0},
)
