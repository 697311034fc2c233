"""How unireplknet's cases are computed through the public interface, and how its backbone is made small."""

import golden
import torch
from reading import precision

from offprint.models.backbones.unireplknet import DilatedReparamBlock


def merge(record):
    given = record["inputs"]
    branches = tuple(zip(given["branch_kernel_sizes"], given["branch_dilations"], strict=True))
    block = DilatedReparamBlock(given["channels"], given["kernel_size"], branches=branches)
    state = {n: torch.from_numpy(golden.tensor(n, shape)) for n, shape in given["state"]}
    block.load_state_dict(state | {k: v for k, v in block.state_dict().items() if k.endswith("num_batches_tracked")})
    weight, bias = block.eval().to(precision(record)).kernel()
    yield "weight", weight, record["expected"]["weight"], 1e-5
    yield "bias", bias, record["expected"]["bias"], 1e-5


CASES = {"dilated_reparam_merge_k7": merge, "dilated_reparam_merge_k13": merge}
SMALL = {
    "unireplknet_t": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "kernel_sizes": (3, 7, (13, 3), 13),
                      "layer_scale_init_value": 0.5},
}  # fmt: skip
