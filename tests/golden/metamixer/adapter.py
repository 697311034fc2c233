"""How metamixer's backbones are made small, and what of the authors' forecasting network no forward pass uses."""

import math
import re

UNUSED = re.compile(r"^(te_patch|lat_layer|smooth_layer|up_sample_conv|downsample_layers\.[1-9])\b")
BUFFERS = ("running_mean", "running_var")


def used(record: dict) -> int:
    """Parameters of a record without those of the parts that the authors build and never call."""
    idle = sum(math.prod(shape) for name, shape in record["state"] if UNUSED.match(name) and not name.endswith(BUFFERS))
    return (record.get("parameters") or 0) - idle


class Every(dict):
    """The same for every record."""

    def get(self, stem, default=None):
        return used


PARAMETERS = Every()
SMALL = {
    "ffnet_2": {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64), "stem_width": 16},
    "ffnet_seg": {"depths": (1, 1, 2, 1), "dims": (16, 16, 24, 32)},
}
