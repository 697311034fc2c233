"""How fmvit's cases of merging are computed, and how its backbone is made small."""

import re

import golden
import torch
from reading import precision, said

from offprint.models.backbones.fmvit import merge_branches


class Norm(torch.nn.BatchNorm2d):
    """A BatchNorm filled from the names under a prefix."""

    def __init__(self, record, prefix, channels):
        super().__init__(channels, eps=said(record, "BN eps #"))
        kind = precision(record)
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = torch.from_numpy(golden.tensor(f"{prefix}.{name}", [channels])).to(kind)
            if name in self._parameters:
                setattr(self, name, torch.nn.Parameter(value))
            else:
                setattr(self, name, value)
        self.eval()


def merge(record):
    given, expected = record["inputs"], record["expected"]
    inputs, outputs = given["in"], given["out"]
    rows = []
    for i, (kernel, groups) in enumerate(given["branches"]):
        shape = [outputs, inputs // groups, kernel, kernel]
        weight = torch.from_numpy(golden.tensor(f"branches.{i}.conv.weight", shape)).to(precision(record))
        rows.append((weight, Norm(record, f"branches.{i}.bn", outputs), groups))
    with torch.no_grad():
        weight, bias, groups = merge_branches(rows, Norm(record, "identity", inputs) if inputs == outputs else None)
    yield "groups", groups, expected["groups"], 0
    yield "weight_shape", list(weight.shape), expected["weight_shape"], 0
    yield "bias", bias, expected["bias"], 1e-6
    yield "weight_first_row", weight[0], expected["weight_first_row"], 1e-6
    yield "weight_last_row", weight[-1], expected["weight_last_row"], 1e-6


class Every(dict):
    """Cases of merging, whatever their sizes."""

    def __contains__(self, stem):
        return bool(re.match("merge_", stem))

    def __missing__(self, stem):
        if re.match("merge_", stem):
            return merge
        raise KeyError(stem)


CASES = Every({"merge_1x1": merge, "merge_3x3": merge})
SMALL = {"fmvit_tiny_rebuilt": {"blocks": ("c", "f", "cf", "f"), "dims": (32, 64, 64, 64)}}
