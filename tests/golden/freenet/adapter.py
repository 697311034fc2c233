"""How freenet's networks, sampler, loss and measures are computed."""

import re

import golden
import numpy as np
import torch
from reading import array, said

from offprint.models.segmentation.freenet import (
    StratifiedSampler,
    fixed_num_sample,
    masked_loss,
    minibatch_sample,
    poly_rate,
)
from offprint.tasks.scenes import scores


def _thresholds(record, words):
    found = re.search(re.escape(words) + r" \(([-\d., ]+)\)", record["notes"])
    return [float(v) for v in found[1].split(",")]


def sampler(record):
    given, expected = record["inputs"], record["expected"]
    noise = golden.array(given["noise"]["shape"], given["noise"]["seed"])
    low, high = said(record, "numpy.linspace(#, #, classes)")
    labels = sum((noise > t).astype(int) for t in np.linspace(low, high, given["classes"]))
    classes = given["classes"]
    train, test = fixed_num_sample(labels, given["per_class"], classes, given["seed_split"])
    yield "counts", np.bincount(labels.ravel()), expected["class_counts"], 0
    yield "train", np.where(train.ravel())[0], expected["train_indices"], 0
    yield "test", int(test.sum()), expected["test_count"], 0
    for i, batch in enumerate(minibatch_sample(labels, train, given["sub_minibatch"], given["seed_batches"])):
        yield f"mini-batch {i}", batch, expected["minibatches"][i], 0
    seed, size = said(record, "RandomState(#).randint(2**31, size=#)")
    drawn = StratifiedSampler(labels, train, given["sub_minibatch"], seed)
    used = len(expected["seeds_first_used"])
    yield "seeds", len(drawn.seeds), expected["seed_count"], 0
    yield "their number", size, expected["seed_count"], 0
    yield "seeds in use", drawn.seeds[::-1][:used], expected["seeds_first_used"], 0
    count, seed = said(record, "torch.randperm(#) of a CPU generator seeded #")
    wide = np.ones((1, count), int)
    ten = StratifiedSampler(wide, wide.astype(bool), 1, seed)
    for i, order in enumerate(expected["order_of_10_batches"]):
        yield f"order {i}", ten.order(i), order, 0


def loss_and_metrics(record):
    given, expected = record["inputs"], record["expected"]
    logits, noise, weight = (array(record, given[n]) for n in ("logits", "label_noise", "weight_noise"))
    labels = sum((noise > t).long() for t in _thresholds(record, "label = number of thresholds"))
    mask = (weight > said(record, "weight = weight_noise > #")).to(logits.dtype)
    yield "loss", masked_loss(logits, labels, mask), expected["loss"], 1e-6
    found = scores(logits.argmax(1) + 1, labels, logits.shape[1], added=said(record, "AA adds # to each"))
    for ours, theirs in (("oa", "OA"), ("aa", "AA"), ("kappa", "kappa"), ("per_class", "per_class")):
        yield theirs, torch.as_tensor(found[ours]), expected[theirs], 1e-5
    yield "rates", [poly_rate(i, 1000) for i in (0, 1, 500, 999)], expected["poly_lr_at_0_1_500_999"], 1e-6


CALLS = {"custom: the logits before the softmax of forward": lambda model, record, x: model.logits(x)}
CASES = {"stratified_sampler": sampler, "loss_and_metrics": loss_and_metrics}
_MACS = {"macs is at (1, 103, 624, 352), the image padded to a multiple of 16": "the library pads"}
WORDS = {
    "freenet_pavia": _MACS,
    "freenet_salinas": {"macs is at (1, 204, 512, 224), the image padded to a multiple of 16": "the library pads"},
    "stratified_sampler": {
        "0 is background": "what a label is",
        "the list of 9999 seeds": "read where the list is made",
        "values below 2**31": "the range of the library's seeds",
        "randint(2**31": "the same",
    },
    "loss_and_metrics": {
        "0 = background": "what a label is",
        "label-1": "what a label is",
        "with loss 0": "the rule",
        "(label > 0)": "what a label is",
        "argmax + 1": "what a label is",
        "weight = weight_noise > 0": "read, and any other bound near it gives the same mask or another loss",
    },
}
