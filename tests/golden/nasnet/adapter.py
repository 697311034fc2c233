"""How nasnet's case is computed, and how its network is made small: one cell a resolution, in both forms."""

from offprint.models.backbones.nasnet import reduction_positions, scheduled_keep_probability


def scheduled_drop_path(record):
    given, expected = record["inputs"], record["expected"]
    keep = [scheduled_keep_probability(*row) for row in given["rows"]]
    yield "keep", keep, expected["keep"], 1e-8
    for (cells, reductions), positions in zip(given["cells"], expected["reduction_before"], strict=True):
        yield f"reduction_before {cells}", reduction_positions(cells, reductions), positions, 0


CASES = {"case_scheduled_drop_path": scheduled_drop_path}
WORDS = {"case_scheduled_drop_path": {"cell number from 0": "how cells count"}}
SMALL = {
    "nasnet_a_mobile": {"num_cells": 1, "filters": 8, "stem_filters": 8},
    "nasnet_a_cifar": {"num_cells": 1, "filters": 4, "stem_filters": 6},
}
