"""How swin-unetr's cases are computed through the public interface."""

import re

import torch
from reading import array, said

from offprint.models.segmentation import swin_unetr
from offprint.nn.dice import dice_loss, mean_dice
from offprint.nn.sliding import sliding_window as slide


def regions(record):
    given, expected = record["inputs"], record["expected"]
    yield "regions", swin_unetr.brats_regions(torch.tensor(given["labels"])).long(), expected["regions"], 0
    yield "written_labels", swin_unetr.brats_labels(array(record, given["logits"])), expected["written_labels"], 0
    noise = array(record, given["image_noise"])
    image = torch.where(noise.abs() < said(record, "|value| < # set to 0"), 0.0, noise)
    yield "normalised", swin_unetr.normalize_nonzero(image), expected["normalised"], 1e-5


def dice(record):
    given, expected = record["inputs"], record["expected"]
    logits = array(record, given["logits"])
    target = (array(record, given["target_noise"]) > said(record, "target_noise > #")).to(logits)
    yield "loss_default", dice_loss(logits, target), expected["loss_default"], 1e-5
    for name in expected:
        if smooth := re.fullmatch(r"loss_squared_smooth_nr(.+)_dr(.+)", name):
            numerator, denominator = map(float, smooth.groups())
            got = dice_loss(logits, target, squared=True, smooth_numerator=numerator, smooth_denominator=denominator)
            yield name, got, expected[name], 1e-5
    sample, channel = said(record, "sample # channel # emptied")
    target[sample, channel] = 0
    mean, count = mean_dice(torch.sigmoid(logits) > said(record, "sigmoid(logits) > #"), target)
    yield "metric", mean, expected["metric_per_channel"], 1e-5
    yield "not_nans", count, expected["not_nans_per_channel"], 0


def schedule(record):
    yield "lr", swin_unetr.warmup_cosine(**record["inputs"]), record["expected"]["lr"], 1e-6


def sliding_window(record):
    given, expected = record["inputs"], record["expected"]
    volume, factor = array(record, given["volume"]), said(record, "and #*window - max(window)")

    def predictor(window):
        axes = tuple(range(1, window.ndim))
        mean = window.mean(dim=axes, keepdim=True).expand_as(window)
        return torch.cat([mean, factor * window - window.amax(dim=axes, keepdim=True)], 1)

    even = slide(predictor, volume, given["roi"], said(record, "constant: overlap #"))
    overlap, sigma = said(record, "gaussian: overlap #, mode gaussian (sigma_scale #)")
    bell = slide(predictor, volume, given["roi"], overlap, sigma=sigma)
    sample, *every = said(record, "output[#,:, ::#, ::#, ::#]")
    chosen = (sample, slice(None), *(slice(None, None, step) for step in every))
    yield "constant", even[chosen], expected["constant"], 1e-5
    yield "gaussian", bell[chosen], expected["gaussian"], 1e-5


CASES = {
    "brats_regions": regions,
    "dice_loss_and_metric": dice,
    "warmup_cosine": schedule,
    "sliding_window": sliding_window,
}
WORDS = {
    "brats_regions": {
        "channel 0 TC, 1 WT, 2 ET": "the order of the library",
        "(3,2,2,4)": "the size of the array",
        "sigmoid > 0.5, painted in the order WT->2, TC->1, ET->4": "the rule of the library",
        "set to 0; zeros stay 0": "what zero is",
    },
    "warmup_cosine": {
        "in epoch 0,1,2": "how epochs count",
        "starts at 0, end value 0": "the rule of the library",
    },
    "sliding_window": {"roi (6,10,6), volume (1,1,11,9,13)": "in the inputs"},
}
