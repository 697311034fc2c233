"""How scse's cases are computed through the public interface."""

import re

import torch
from reading import NUMBER, array, precision, said

from offprint.models.segmentation.scse import AGGREGATIONS, SCSE, CombinedLoss, DiceLoss


def aggregation(record):
    given, expected = record["inputs"], record["expected"]
    x, share = array(record, given["x"]), said(record, "b1 and b2 are # times the drawn arrays")
    hidden, channels = given["w1"]["shape"]
    state = {
        "cSE.fc1.weight": array(record, given["w1"]), "cSE.fc1.bias": share * array(record, given["b1_raw"]),
        "cSE.fc2.weight": array(record, given["w2"]), "cSE.fc2.bias": share * array(record, given["b2_raw"]),
        "sSE.conv.weight": array(record, given["ws"]).view(1, -1, 1, 1), "sSE.conv.bias": x.new_zeros(1),
    }  # fmt: skip
    image, row = said(record, "Expected values: [#, :, #, :]")
    for name in expected:
        join = name.removesuffix("_shape")
        block = SCSE(channels, channels // hidden, x.ndim - 2, join if join in AGGREGATIONS else "max")
        block.to(precision(record)).load_state_dict(state)
        call = {"cse": block.cSE, "sse": block.sSE}.get(name, block)
        with torch.no_grad():
            found = call(x)
        if name != join:
            yield name, list(found.shape), expected[name], 0
        elif name == "concat":
            image, row, column = said(record, "(concat: [#, :, #, #]")
            yield name, found[image, :, row, column], expected[name], 1e-5
        else:
            yield name, found[image, :, row, :], expected[name], 1e-5


def combined_loss(record):
    given, expected = record["inputs"], record["expected"]
    logits = said(record, "logits = # * logits_half") * array(record, given["logits_half"])
    noise, weight = array(record, given["target_noise"]), array(record, given["weight_noise"]).abs()
    listed = re.search(r"number of thresholds \(([^)]*)\)", record["notes"]).group(1)
    thresholds = [float(n) for n in re.findall(NUMBER, listed)]
    target = sum((noise > t).long() for t in thresholds)
    yield "target_counts", torch.bincount(target.flatten(), minlength=logits.shape[1]), expected["target_counts"], 0
    yield "dice_released", DiceLoss(double_softmax=True)(logits, target), expected["dice_released"], 1e-5
    yield "dice_single_softmax", DiceLoss()(logits, target), expected["dice_single_softmax"], 1e-5
    whole = CombinedLoss(double_softmax=True)
    yield "combined_unweighted", whole(logits, target), expected["combined_unweighted"], 1e-5
    yield "combined_weighted", whole(logits, target, weight), expected["combined_weighted"], 1e-5


CASES = {"aggregation": aggregation, "combined_loss": combined_loss}
WORDS = {
    "aggregation": {"x (2,C,4,5)": "the size of the array"},
    "combined_loss": {"logits_half (2,4,6,5)": "the size of the array"},
}
