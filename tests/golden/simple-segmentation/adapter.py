"""How simple-segmentation's classifiers are called, and how one is made small."""

from __future__ import annotations

import re


def scaled(model, record, x):
    """The call in words, ``model(20 * input)``: the factor is the record's."""
    (call,) = record["api"]["calls"]
    return model(float(re.search(r"model\((\d+(?:\.\d+)?) \* input\)", call).group(1)) * x)


class _Calls(dict):
    """The calls whose words are a factor of the input, whatever the factor."""

    def get(self, call, default=None):
        return scaled if re.fullmatch(r"custom: model\(\d+(?:\.\d+)? \* input\)", call) else default


CALLS = _Calls({"custom: model(20 * input)": scaled})
WORDS = {
    "cls_ffnet40S_BBX_mobile": {
        "model(20 * input)": "also in the call",
        "Batch 2": "the size of the input",
        "a batch of 1": "why",
    },
}
SMALL = {"ffnet_cls_40s_bbx_mobile": {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16)}}
