"""How stitched networks and the cases of their ways, groups and first weights are computed, and how an anchor is made small."""

import re

from reading import array, said

from offprint.models.backbones.sn_net_v2 import (
    group_by_flops,
    group_probabilities,
    least_squares_stitch,
    stitch_configs,
)


def _logits(stitch):
    def call(model, record, image):
        model.set_stitch(stitch)
        return model(image)

    return call


def _ways(record):
    """A last segment runs to the end; the records write that as the depth, or, of an anchor alone, as a word."""
    depths, expected = record["inputs"]["depths"], record["expected"]
    found = stitch_configs(depths)
    paths = [[[*part] for part in path] for path in found.paths]
    for path in paths:
        end = path[-1]
        assert end[2] == depths[end[0]] - 1
        end[2] = "end" if len(path) == 1 else depths[end[0]]
    yield "count", len(paths), expected["count"], 0
    yield "paths", paths, expected["paths"], 0
    layers = expected["stitch_layers"]
    yield "layers", list(found.layers), [layers["small_to_large"], layers["large_to_small"]], 0
    for kind, ids in expected["groups"].items():
        yield kind, list(found.kinds[kind]), ids, 0
    yield "evaluated", len(found.used), expected["evaluated"], 0


def _groups(record):
    given, expected = record["inputs"], record["expected"]
    groups = group_by_flops(given["flops"], given["flops_gap"])
    for i, group in enumerate(expected["groups"]):
        yield f"group {i}", groups[i], group, 0
    yield "number", len(groups), len(expected["groups"]), 0
    k = said(record, "flops_sampling_k=#")
    yield "drawn alike", group_probabilities(len(groups)), expected["probs_default"], 1e-6
    yield f"drawn with k={k}", group_probabilities(len(groups), k), expected[f"probs_k{k}"], 1e-6


def _first_weights(record):
    front, back = (array(record, record["inputs"][n]) for n in ("front", "back"))
    weight, bias = least_squares_stitch(front, back)
    yield "weight", weight, record["expected"]["weight"], 1e-5
    yield "bias", bias, record["expected"]["bias"], 1e-5


def _trained(record):
    """Of a low-rank stitch the weight is frozen."""
    frozen = (shape for name, shape in record["state"] if re.search(r"stitch_layers.*\.weight$", name))
    return record["parameters"] - sum(rows * columns for rows, columns in frozen)


CALLS = {f"custom: logits with stitch id {i} set": _logits(i) for i in (0, 1, 5, 6, 7, 12, 19, 45, 100)}
CASES = {
    "stitch_configs_12_12": _ways,
    "stitch_configs_12_24": _ways,
    "flops_groups_gap1": _groups,
    "least_squares_6_9": _first_weights,
}
PARAMETERS = {"snnetv2_deit3_s_b": _trained, "snnetv2_mini_12_24": _trained}
_WAYS = {
    "leaves after small block 11": "the last block of the small anchor, whatever its depth",
    "or -1]": "the library's word for no layer",
}
_LOW_RANK = "the rank is in the arguments"
WORDS = {
    "stitch_configs_12_12": _WAYS,
    "stitch_configs_12_24": _WAYS,
    "flops_groups_gap1": {
        "inputs.flops": "neighbouring costs lie 4.7 billion apart or closer than 0.1: no such change moves one to another group",
        "inputs.flops_gap": "for the same reason; tests/test_sn_net_v2_.py changes it",
    },
    "snnetv1_mini_12_24": {
        "logits of stitch ids 0 (large anchor alone), 1, 6, 12 of version 1": "the ids are in the words of the calls",
    },
    "snnetv2_mini_12_24": {"y = W x + b + (B A x)/r": _LOW_RANK},
    "snnetv2_deit3_s_b": {"y = W x + b + (B A x)/r": _LOW_RANK},
}
SMALL = {"deit3_small_patch16_224": {"embed_dim": 24, "depth": 4, "num_heads": 2, "img_size": 64}}
