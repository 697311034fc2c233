"""How swin's case is computed through the public interface, and how its models are made small."""

from reading import array, precision, said

from offprint.nn.positions import resample_table
from offprint.nn.windows import relative_position_index, windows


def window_mask_and_table(record):
    given, expected = record["inputs"], record["expected"]
    m, s, side = given["window"], given["shift"], given["side"]
    mask = windows((side, side), (m, m), (s, s), dtype=precision(record)).mask
    hidden = mask == said(record, "masked logits get # added")
    index = relative_position_index((m, m)).flatten()
    yield "relative_position_index", index, expected["relative_position_index"], 0
    yield "masked_pairs", hidden.sum((1, 2)), expected["masked_pairs"], 0
    yield "last_window_mask", hidden[-1].long().flatten(), expected["last_window_mask"], 0
    yield "nothing else", (mask[~hidden] == 0).all(), True, 0
    resampled = resample_table(array(record, given["table"]), given["new_side"]).flatten()
    yield "table", resampled, expected["table"], 1e-5


CASES = {"case_window_mask_and_table": window_mask_and_table}
WORDS = {
    "case_window_mask_and_table": {
        "as 0/1": "what a mask is",
        "old^2 rows and 3 heads": "the size of the array",
        "new^2 rows": "in the inputs",
        "over the (2w-1) square": "the rule of the library",
    }
}
SMALL = {
    "swin_tiny": {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
    "swin_mlp_tiny_c24": {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
}
