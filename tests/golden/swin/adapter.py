"""How swin's case is computed through the public interface, and how its models are made small."""

import golden
import torch

from offprint.nn.positions import resample_table
from offprint.nn.windows import relative_position_index, windows


def window_mask_and_table(record):
    given, expected = record["inputs"], record["expected"]
    m, s, side = given["window"], given["shift"], given["side"]
    mask = windows((side, side), (m, m), (s, s)).mask
    table = torch.from_numpy(golden.array(given["table"]["shape"], given["table"]["seed"]))
    index = relative_position_index((m, m)).flatten()
    yield "relative_position_index", index, expected["relative_position_index"], 0
    yield "masked_pairs", (mask == -100).sum((1, 2)), expected["masked_pairs"], 0
    yield "last_window_mask", (mask[-1] == -100).long().flatten(), expected["last_window_mask"], 0
    resampled = resample_table(table, given["new_side"]).flatten()
    yield "table", resampled, expected["table"], 1e-5


CASES = {"case_window_mask_and_table": window_mask_and_table}
SMALL = {
    "swin_tiny": {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
    "swin_mlp_tiny_c24": {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
}
