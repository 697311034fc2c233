"""How cfsr's cases are computed through the public interface."""

import golden
import numpy as np
import torch
from reading import array, said

from offprint.data.resize import bicubic
from offprint.models.signals.cfsr import MASKS, merge_edge_branches
from offprint.tasks.restoration import psnr, ssim


def efn_merge(record):
    v = {k: array(record, a) for k, a in record["inputs"].items()}
    scales, biases = {b: v[f"scale_{b}"] for b in MASKS}, {b: v[f"{b}_bias"] for b in MASKS}
    weight, bias = merge_edge_branches(v["pos.weight"], v["pos.bias"], scales, biases)
    expected = record["expected"]
    yield "merged_weight", weight, expected["merged_weight"], 1e-5
    yield "merged_bias", bias, expected["merged_bias"], 1e-5
    out = torch.nn.functional.conv2d(v["x"], weight, bias, padding=said(record, "zero padding #"), groups=len(weight))
    yield "before_activation", out.reshape(np.shape(expected["before_activation"])), expected["before_activation"], 1e-5


def psnr_and_bicubic(record):
    given, expected = record["inputs"], record["expected"]
    middle, spread, low, high = said(record, "a = clip(round(#+#*A),#,#)")
    change, floor, ceiling = said(record, "b = clip(round(a+#*B),#,#)")
    crop = said(record, "cropping # pixels")
    arrays = {k: golden.array(given[k]["shape"], given[k]["seed"]).astype(np.float64) for k in "AB"}
    a = np.clip(np.round(middle + spread * arrays["A"]), low, high)
    b = np.clip(np.round(a + change * arrays["B"]), floor, ceiling)
    ta, tb = (torch.from_numpy(v).permute(2, 0, 1) for v in (a, b))
    yield "psnr_y", psnr(ta, tb, crop), expected["psnr_y"], 1e-5
    yield "ssim_y", ssim(ta, tb, crop), expected["ssim_y"], 1e-5
    yield "psnr_rgb", psnr(ta, tb, crop, y=False), expected["psnr_rgb"], 1e-5
    down = bicubic(ta / said(record, "on a/#"), 1 / given["scale"])
    rows, columns = said(record, "the first # rows, the first # columns")
    middle, every = said(record, "row H//#, every #th column")
    yield "bicubic_down_shape", list(down.shape), expected["bicubic_down_shape"], 0
    yield "bicubic_down_first_rows", down[:, :rows, :columns], expected["bicubic_down_first_rows"], 1e-5
    up = bicubic(down, given["scale"])
    yield "bicubic_up_shape", list(up.shape), expected["bicubic_up_shape"], 0
    yield "bicubic_up_centre", up[:, up.shape[1] // middle, ::every], expected["bicubic_up_centre"], 1e-5


CASES = {"efn_merge": efn_merge, "psnr_and_bicubic": psnr_and_bicubic}
WORDS = {
    "efn_merge": {"depthwise 3x3": "the size of the array pos.weight"},
    "psnr_and_bicubic": {"BT.601 (16..235 form": "the definition of luma, which the library holds"},
}
