"""Our backbones as encoders of segmentation_models_pytorch.

>>> import segmentation_models_pytorch as smp
>>> from offprint.models.encoders import register_with_smp
>>> register_with_smp()
>>> model = smp.Unet("offprint-convnext_tiny", encoder_weights=None, classes=4)

Any decoder of that library works; a level that a backbone does not have (stride 2 under a patch stem) is given as a map without
channels, as the library does for its own transformers.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from offprint.errors import OffprintError, need
from offprint.models.factory import create_model
from offprint.models.registry import list_models


class Encoder(nn.Module):
    """A feature pyramid in the form segmentation_models_pytorch expects: maps at strides 1, 2, 4, ... 2**depth.

    Args:
        name: a backbone of :func:`offprint.list_models`.
        depth: halvings, 1 to 5.
        output_stride: 32; other strides are refused, since they change a backbone's layers.
        in_channels: of the image.
        pretrained: as for :func:`offprint.create_model`.

    Input (B, in_channels, H, W); output ``depth + 1`` maps, the first of them the image itself.
    """

    def __init__(
        self, name: str, depth: int = 5, output_stride: int = 32, in_channels: int = 3, pretrained: bool | str = False
    ):
        super().__init__()
        if output_stride != 32:
            raise OffprintError(f"output_stride={output_stride}; encoders of this library have an output stride of 32")
        if not 1 <= depth <= 5:
            raise OffprintError(f"depth={depth}; give 1 to 5")
        self.name, self.depth, self.pretrained = name, depth, pretrained
        self.set_in_channels(in_channels)

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Build the backbone for this many channels (released weights are adapted)."""
        model = create_model(self.name, self.pretrained, in_chans=in_channels, features_only=True)
        info = model.feature_info
        where = {stride: i for i, stride in enumerate(info.reduction())}  # the last map of each stride
        picks = [where.get(2**level) for level in range(1, self.depth + 1)]
        if all(i is None for i in picks):
            raise OffprintError(
                f"{self.name} has maps at strides {info.reduction()} only; a decoder of depth {self.depth} needs some of "
                f"{[2**level for level in range(1, self.depth + 1)]}"
            )
        self.model, self.picks = model, picks
        self.out_channels = [in_channels, *(0 if i is None else info.channels()[i] for i in picks)]
        self.output_stride = 2**self.depth

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model(x)
        found = [x]
        for level, i in enumerate(self.picks, 1):
            empty = x.new_empty(x.shape[0], 0, x.shape[2] >> level, x.shape[3] >> level) if i is None else None
            found.append(maps[i] if empty is None else empty)
        return found


def register_with_smp() -> list[str]:
    """Let ``smp.Unet("offprint-NAME", encoder_weights=None)`` and its siblings find every backbone; returns the names.

    Raises:
        MissingExtra: segmentation_models_pytorch is not installed.
    """
    known = need("segmentation_models_pytorch.encoders", "bench", "registering encoders").encoders
    names = []
    for name in list_models(kind="backbone"):
        known[f"offprint-{name}"] = {"encoder": partial(Encoder, name), "params": {}, "pretrained_settings": {}}
        names.append(f"offprint-{name}")
    return names
