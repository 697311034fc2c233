r"""The feature pyramid network (Lin et al., CVPR 2017), on torchvision's: the neck that the papers here are measured against.

Each map goes through a 1x1 convolution; from the coarsest on, the sum so far is doubled in size and added to the next; a 3x3 convolution ends
each level. Levels beyond the backbone's are strided 3x3 convolutions of its last map (RetinaNet's levels 6 and 7), or in the two-stage form the last
output with every second place taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from offprint.errors import OffprintError
from offprint.models.detection.contract import named
from offprint.models.parts import Maps, each_stride, register_part


class FPN(nn.Module):
    """Five levels for a backbone with maps at strides 4 to 32; names of tensors are torchvision's.

    Args:
        in_channels: of the maps, fine to coarse.
        out_channels: of every output.
        extra: ``"convs"``: two more levels by strided convolutions of the last map; ``"pool"``: one more, a pooled output; ``""``: none.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, extra: str = "convs"):
        super().__init__()
        beyond = {
            "convs": lambda: LastLevelP6P7(in_channels[-1], out_channels),
            "pool": LastLevelMaxPool,
            "": lambda: None,
        }
        if extra not in beyond:
            raise OffprintError(f"extra={extra!r}; choose 'convs', 'pool' or ''")
        self.in_channels, self.out_channels = list(in_channels), out_channels
        self.more = {"convs": 2, "pool": 1, "": 0}[extra]
        self.fpn = FeaturePyramidNetwork(self.in_channels, out_channels, beyond[extra]())
        if extra == "convs":
            self.fpn.extra_blocks.use_P5 = False

    @classmethod
    def on(cls, before: Maps, *, finest: int = 8, out_channels: int = 256, extra: str | None = None) -> FPN:
        """The neck over these maps.

        Args:
            before: maps that come in; those finer than ``finest`` are left out.
            finest: stride of the first output: 8 for heads of one stage, 4 for two stages.
            out_channels: of every output.
            extra: as above; default ``"convs"``, and ``"pool"`` where the pyramid begins at stride 4.
        """
        taken = each_stride(finest)(before.reductions)
        used = before.pick(taken)
        neck = cls(used.channels, out_channels, ("pool" if finest <= 4 else "convs") if extra is None else extra)
        neck.taken = taken
        strides = (*used.reductions, *(used.reductions[-1] * 2 ** (i + 1) for i in range(neck.more)))
        neck.maps = Maps((out_channels,) * len(strides), strides)
        return neck

    taken: tuple[int, ...] | None = None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels[i], H_i, W_i), fine to coarse, to maps of ``out_channels``."""
        used = list(maps) if self.taken is None else [maps[i] for i in self.taken]
        return list(self.fpn(named(used)).values())


register_part("fpn", "neck", FPN.on)
