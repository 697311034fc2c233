"""How fcenet's cases are computed through the public interface."""

import dataclasses
import re

import golden
import numpy as np
import torch
from reading import array, precision, said

from offprint.models.detection.fcenet import SETTINGS, FCELoss, contours, decode_polygons, fourier_signature, resample

CALLS = {
    "custom: raw head outputs of the three levels (strides 8, 16, 32): cls_res, then reg_res, level by level": (
        lambda model, record, x: model(x)
    )
}


def _points(record):
    return [np.asarray(p, float).reshape(-1, 2) for p in record["inputs"]["polygons"]]


def signature(record):
    k, expected = record["inputs"]["fourier_degree"], record["expected"]
    first, step, last, samples = said(record, "t = #, #, ..., # of # samples")[:4]
    # "about 400 points": how many are asked for; what comes is counted
    wanted = said(record, "resampling to about # points")
    for i, polygon in enumerate(_points(record)):
        found = fourier_signature(polygon, k, wanted)
        outline = contours(found, samples)[first : last + 1 : step]
        yield f"signature {i}", found, expected["signature"][i], 1e-5
        yield f"reconstruction {i}", outline, expected["loss_reconstruction"][i], 1e-5
        slack = said(record, "(# pixel of slack is fair)")
        whole = outline.astype(np.int32)
        off = np.abs(whole - np.array(expected["reconstruction_int"][i])).max()
        yield f"whole pixels {i}", max(0, int(off) - slack), 0, 0
        yield f"points {i}", len(resample(polygon, wanted)), expected["resampled_points"][i], 0


def _setting(record, pattern):
    found = re.search(pattern, record["source"])
    return [float(v) if "." in v else int(v) for v in found.groups()]


def targets_and_losses(record):
    given, expected = record["inputs"], record["expected"]
    degree, samples = _setting(record, r"fourier_degree=(\d+), num_sample=(\d+)")
    measure = FCELoss(degree, samples, ranges=given["level_proportion_range"])
    maps = measure.targets(tuple(given["image_size"]), _points(record), given["ignored"])
    for level, (found, wanted) in enumerate(zip(maps, expected["levels"], strict=True)):
        text, centre, judged = found[:3]
        yield f"{level} shape", list(found.shape), wanted["shape"], 0
        for name, value in (("text_region_sum", text.sum()), ("center_region_sum", centre.sum()), ("effective_sum", judged.sum()),
                            ("text_rows", text.sum(1)), ("center_rows", centre.sum(1))):  # fmt: skip
            yield f"{level} {name}", value, wanted[name], 0
        yield f"{level} channel_abs_sum", np.abs(found[3:]).sum((1, 2)), wanted["channel_abs_sum"], 1e-5
        rows, columns = np.array(wanted["points_yx"]).T
        yield f"{level} values", found[:, rows, columns].T, wanted["values"], 1e-5
    kind = precision(record)
    levels = [{k: array(record, spec) for k, spec in level.items()} for level in given["predictions"]]
    losses = measure(levels, [torch.from_numpy(m)[None].to(kind) for m in maps])
    for name, value in expected["losses"].items():
        yield name, losses[name], value, 1e-5


def postprocess(record):
    given, expected = record["inputs"], record["expected"]
    degree, points, threshold, overlap = _setting(
        record, r"FCEPostprocessor\((\d+), (\d+), score_thr=([\d.]+), nms_thr=([\d.]+)\)"
    )
    how = dataclasses.replace(
        SETTINGS["ctw1500"], alpha=given["alpha"], beta=given["beta"], score_threshold=threshold, iou_threshold=overlap,
        points=points, text_repr=given["text_repr_type"],
    )  # fmt: skip
    maps = FCELoss(degree).targets(tuple(given["image_size"]), _points(record), given["ignored"])
    rules = (said(record, "tr = #(#·text-#)+n/#"), said(record, "tc = #(#·centre-#)+n/#"))
    divisors = said(record, "[-tr/#, tr/#, -tc/#, tc/#]")
    levels = []
    for target, seed in zip(maps, given["noise_seeds"], strict=True):
        noise = torch.from_numpy(golden.array(target.shape[1:], seed).astype(golden.dtype(record)))
        text, centre = (
            slope * (times * torch.from_numpy(target[i]).to(noise) - less) + noise / part
            for i, (slope, times, less, part) in enumerate(rules)
        )
        logits = torch.stack([v / d for v, d in zip((-text, text, -centre, centre), divisors, strict=True)])
        levels.append({"cls_res": logits, "reg_res": torch.from_numpy(target[3:]).to(noise)})
    found = decode_polygons(levels, how)
    yield "count", len(found), expected["count"], 0
    yield "scores", [f.score for f in found], expected["scores"], 1e-5
    allowed, every = said(record, "Allow # pixels"), {"fifth": 5}[re.search(r"every (\w+) of", record["notes"])[1]]
    for i, (polygon, _) in enumerate(found):
        box = [polygon.min(0), polygon.max(0)]
        shown = polygon if how.text_repr == "quad" else polygon[::every]
        for name, value, wanted in (("box", box, expected["boxes"][i]), ("polygon", shown, expected["polygons"][i])):
            yield f"{name} {i}", max(0.0, float(np.abs(np.array(value) - np.array(wanted)).max()) - allowed), 0, 0
        x, y = polygon.T.astype(float)
        area = abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2
        yield f"area {i}", area, expected["areas"][i], 0.02


CASES = {"fourier_signature": signature, "targets_and_losses": targets_and_losses, "postprocess": postprocess}
_SHAPE, _SLACK = "the shape of what is compared", "how much slack the comparison has"
WORDS = {
    "fcenet_resnet50_fpn": {
        "levels of stride 8, 16, 32": "the strides of the architecture, held by the shapes of the outputs",
        "cls_res (4) and reg_res (22)": _SHAPE,
        "macs at 736x736": "held in test_fcenet_.py",
    },
    "fourier_signature": {"signature: (2k+1, 2)": _SHAPE, "(1 pixel of slack": _SLACK},
    "postprocess": {
        "the 22 target maps": _SHAPE,
        "of the 50 points": "in the arguments that the source states",
        "Allow 2 pixels": _SLACK,
    },
    "targets_and_losses": {
        "11 real parts, 11 imaginary parts": _SHAPE,
        "all 25 channels": _SHAPE,
        "cls_res 4 channels, reg_res 22": _SHAPE,
        "(strides 8, 16, 32)": "the strides of the architecture, held by the shapes of the maps",
    },
}
