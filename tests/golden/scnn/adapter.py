"""How scnn's records are called and its cases computed through the public interface."""

import dataclasses

import numpy as np
import torch
from reading import array, said

from offprint.models.segmentation import scnn


def _passes(model, record, x):
    return dict(zip(("down", "up", "right", "left"), model.steps(x), strict=True))


def _scaled(words):
    return lambda model, record, x: model(said(record, words) * x)


CALLS = {
    "custom: the tensor after each of the four passes, in the order down, up, right, left": _passes,
    "custom: head(5 * input)": _scaled("head(# * input)"),
    "custom: model(300 * input); segmentation logits at the input size, then the existence probabilities": _scaled(
        "model(# * input)"
    ),
}


def loss(record):
    given, expected = record["inputs"], record["expected"]
    logits, flags = array(record, given["logits"]), array(record, given["exist_logits"])
    thresholds = said(record, "thresholds (#, #, #, #)")
    noise = array(record, given["target_noise"])
    target = torch.stack([noise > t for t in thresholds]).sum(0)
    exists = array(record, given["exist_noise"]) > said(record, "exist_noise > #")
    background, *ones = said(record, "weights (#,#,#,#,#)")
    assert set(ones) == {1}
    measure = scnn.SCNNLoss(background, said(record, "total = seg + # * exist"))
    for name, value in zip(("seg", "exist", "total"), measure(logits, flags, target, exists), strict=True):
        yield name, value, expected[name], 1e-5


def _maps(record):
    """The five maps of the notes."""
    n = array(record, record["inputs"]["noise"]).double()
    height, width = said(record, "maps of # x #")
    at, step, jitter = said(record, "#*(#+0.22 i)")[1], said(record, "(0.15+# i)"), said(record, "+ # n[i,0]")
    left, slope = said(record, "(#-# i)*(1+")
    sway = said(record, "*(1+# n[i,1])")
    peak, spread = said(record, "= # exp(-((x-centre)/#)^2)")
    top, rise = said(record, "*(#+# n[i,2])")
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()[None]
    maps = []
    for i, row in enumerate(n):
        centre = said(record, "centre = #*(") * (at + step * i) + jitter * row[0]
        centre = centre + (y - said(record, "(y-#)*")) * (left - slope * i) * (1 + sway * row[1])
        lane = peak * (-(((x - centre) / spread) ** 2)).exp()
        maps.append(torch.where(y > said(record, "where y > #*") * (top + rise * row[2]), lane, 0.0))
    return torch.stack([1 - torch.stack(maps).amax(0), *maps])


def maps_to_lanes(record):
    maps, exists, expected = _maps(record), record["inputs"]["exist"], record["expected"]
    height, width, gap, points, threshold = said(record, "CULane: resize (#,#), gap #, # points, threshold #")
    culane = dataclasses.replace(scnn.CULANE, size=(height, width), gap=gap, points=points, threshold=threshold)
    height, width, gap, points = said(record, "TuSimple: resize (#,#), gap #, # points")
    tusimple = dataclasses.replace(scnn.TUSIMPLE, size=(height, width), gap=gap, points=points, threshold=threshold)
    for name, rows in (("culane", culane), ("tusimple", tusimple)):
        found = scnn.maps_to_lanes(maps, exists, rows)
        yield f"{name} lanes", len(found), len(expected[name]), 0
        for i, (lane, wanted) in enumerate(zip(found, expected[name], strict=False)):
            yield f"{name} lane {i}", lane, wanted, 0


def tusimple_metric(record):
    given, expected = record["inputs"], record["expected"]
    score = scnn.tusimple_accuracy(given["h_samples"], given["truth"], given["prediction"], given.get("run_time", 0))
    for name in ("accuracy", "fp", "fn", "thresholds", "line_accuracy"):
        yield name, getattr(score, name), expected[name], 1e-6


def culane_metric(record):
    given, expected = record["inputs"], record["expected"]
    width, height, across = said(record, "drawn # px wide on # x #")
    found = scnn.culane_f1(given["truth"], given["prediction"], said(record, "IoU > #"), width, (height, across))
    yield "iou", found.iou, expected["iou"], said(record, "moves an IoU by about #")
    for name in ("tp", "fp", "fn"):
        yield name, getattr(found, name), expected[name], 0
    for name in ("precision", "recall", "f1"):
        yield name, getattr(found, name), expected[name], 1e-6
    points = scnn.spline(given["truth"][0])
    yield "spline_count", len(points), expected["spline_count_of_truth_0"], 0
    listed = np.asarray(expected["spline_points_of_truth_0"])
    near = [points[np.hypot(*(points - p).T).argmin()] for p in listed]
    yield "spline_points", np.array(near), listed, 1e-5


CASES = {
    "loss": loss,
    "maps_to_lanes": maps_to_lanes,
    "tusimple_metric": tusimple_metric,
    "culane_metric": culane_metric,
}
_RULE = "the rule of the benchmark, which the library states"
WORDS = {
    "culane_metric": {"with 50 samples per segment": _RULE},
    "maps_to_lanes": {
        "n = noise (4,3)": "the size of the array",
        "lane i (0..3)": "the number of the lane",
        "map i+1 =": "map 0 is the background's",
        "n[i,2]), else 0": "no probability",
        "map 0 = 1 - max": "the background is the rest",
        "a 9x9 mean": _RULE,
    },
    "tusimple_metric": {
        "-2 where absent": "any negative number is",
        "lane is 20 px": _RULE,
        "accuracy >= 0.85": _RULE,
        "more than 4 true": _RULE,
        "over 200 ms": _RULE,
        "(true lanes + 2)": _RULE,
        "gives (0, 0, 1)": _RULE,
    },
    "existence_head": {
        "at 1/8 of a 160x96 image": "in the arguments",
        "2x2 mean pooling": "the rule of the library",
    },
    "scnn_vgg16_culane": {
        "default size (288, 800) fc.0 is (128, 4500), the model has 20742217 parameters": "held in test_scnn_.py",
        "at 1x3x288x800": "held in test_scnn_.py",
    },
}
