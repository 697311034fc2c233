"""How att-swin-unet's records are called and its cases computed through the public interface."""

import math

import torch
import torch.nn.functional as F
from reading import array, said

from offprint.models.segmentation import att_swin_unet as paper


def _cropped(model, record, x):
    return model(x)[:, :, : said(record, "[:, :, :#, :#]")[0], : said(record, "[:, :, :#, :#]")[1]]


CALLS = {"custom: the same logits cropped to [:, :, :28, :28]": _cropped}


def _without_the_unused(record):
    """The reference counts tensors that nothing reads."""
    unused = sum(math.prod(s) for n, s in record["state"] if n.startswith(("patch_embed.", "decoder.norm.")))
    return record["parameters"] - unused


PARAMETERS = {"att_swin_unet": _without_the_unused, "swin_unet_plain": _without_the_unused}


def transfer(record):
    given, expected = {k: array(record, v) for k, v in record["inputs"].items()}, record["expected"]
    maps = paper.attention_maps(given["q"], given["k"], given["bias"])
    kept = paper.attention_maps(given["q_enc"], given["k_enc"], given["bias"])
    first = said(record, "Expected: [#, :, :, :]")
    yield "plain", paper.attention_transfer(maps, given["v"])[first], expected["plain"], 1e-5
    for merge in ("add", "mul"):
        yield merge, paper.attention_transfer(maps, given["v"], kept, merge)[first], expected[merge], 1e-5


def skin(record):
    noise, expected = array(record, record["inputs"]["noise"]), record["expected"]
    factor, side, again = said(record, "sigmoid(# * mean filter #x# of")
    assert side == again
    p = torch.sigmoid(factor * F.avg_pool2d(noise, side, 1, side // 2, count_include_pad=True))[:, 0]
    top, bottom, left, right, least = said(record, "then rows #..#, columns #..# are raised to at least #")
    p[:, top : bottom + 1, left : right + 1] = p[:, top : bottom + 1, left : right + 1].clamp(min=least)
    top, bottom, left, right, value = said(record, "then rows #..#, columns #..# set to #")
    p[:, top : bottom + 1, left : right + 1] = value
    y, down, x, across, radius = said(record, "((row-#)/#)^2 + ((col-#)/#)^2 < #")
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in p.shape[1:]), indexing="ij")
    truth = ((((rows - y) / down) ** 2 + ((columns - x) / across) ** 2) < radius)[None].expand_as(p)
    threshold, size = said(record, "prediction: >= #,"), said(record, "opening with a #x")
    raw = (p >= threshold).numpy()
    opened, filled = paper.clean_mask(raw[0], size)
    yield "raw", int(raw.sum()), expected["mask_sum_raw"], 0
    yield "opened", int(opened.sum()), expected["mask_sum_opened"], 0
    yield "filled", int(filled.sum()), expected["mask_sum_filled"], 0
    yield "row", filled[20].astype(int), expected["mask_row_20"], 0
    scores = paper.skin_metrics(p, truth, threshold, size)
    for name, key in (("dice", "dice_f1"), ("accuracy",) * 2, ("sensitivity",) * 2, ("specificity",) * 2):
        yield name, scores[name], expected[key], 1e-5


CASES = {"attention_transfer": transfer, "skin_metrics": skin}
WORDS = {
    "att_swin_unet": {
        'isxvit set to "1"': "of the reference's code",
        "(4 input channels)": "of tensors that nothing reads",
        'spatial_attention "0"': "held in test_att_swin_unet_.py",
    },
    "attention_transfer": {"sqrt(5)": "follows from the inputs"},
    "skin_metrics": {
        "divisor always 25": "follows from the filter's size",
        "with a 6x6 square": "one number, said twice",
    },
}
