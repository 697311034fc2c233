"""How swin-v2's parts and case are computed through the public interface, and how its model is made small."""

import math

import golden
import numpy as np
import torch
from reading import array, precision, said

from offprint.models.backbones.swin_v2 import SimMIM, WindowAttention, log_coordinates, normalize_targets


def without_key_bias(record):
    """torchvision's qkv bias has a part for the keys that is set to zero in every forward; ours has no such part."""
    return record["parameters"] - sum(shape[0] // 3 for name, shape in record["state"] if name.endswith("qkv.bias"))


PARAMETERS = {"swinv2_tiny_torchvision": without_key_bias}


def simmim(model: SimMIM, record, image):
    """Image, and the mask the record's notes describe."""
    unit, seed = said(record, "made of #-pixel units"), said(record, "golden.array((units,), # + b)")
    share, repeats = said(record, "first ceil(# units)"), said(record, "every unit # times")
    rows, columns = (s // unit for s in image.shape[2:])
    units = rows * columns
    mask = image.new_zeros(len(image), units)
    for b in range(len(image)):
        order = np.argsort(golden.array((units,), seed + b), kind="stable")
        mask[b, order[: math.ceil(round(share * units, 9))].copy()] = 1
    mask = mask.view(-1, rows, columns).repeat_interleave(repeats, 1).repeat_interleave(repeats, 2)
    return list(model(image, mask))


def _sample(value, count):
    flat = value.detach().flatten()
    return flat[torch.from_numpy(np.linspace(0, len(flat) - 1, count).astype(int))]


def cosine_attention(record):
    given, expected, kind = record["inputs"], record["expected"], precision(record)
    attention = WindowAttention(given["dim"], given["window"], given["heads"], given["pretrained_window"]).eval()
    gain, count = said(record, "shape, #)"), said(record, "samples # values")
    state = {n: torch.from_numpy(golden.tensor(f"attn.{n}", p.shape, gain)) for n, p in attention.named_parameters()}
    state["logit_scale"] = 2 * state["logit_scale"] + said(record, "doubled and raised by #")
    attention.load_state_dict(state)
    attention.to(kind)
    x, target = array(record, given["x"]), array(record, given["target"])
    for mode in ("with gradients", "without"):
        with torch.set_grad_enabled(mode == "with gradients"):
            yield f"attention {mode}", _sample(attention(x), count), expected["attention"], 1e-5
    at = log_coordinates(given["window"], given["pretrained_window"], dtype=kind)
    yield "coordinates", _sample(at, count), expected["coordinates"], 1e-5
    yield "bias_table", _sample(attention.table(), count), expected["bias_table"], 1e-5
    yield "logit_scale", attention.scale().flatten(), expected["logit_scale_after_clamp"], 1e-5
    normalised = normalize_targets(target, given["neighbourhood"])
    yield "normalised", _sample(normalised, count), expected["normalised"], 1e-4


CALLS = {
    "custom: model(image, mask) with the mask built as the notes say; encoder map, reconstruction and loss, "
    "in that order": simmim
}
CASES = {"case_cosine_attention": cosine_attention}
_MASK = {
    "mask of 0/1": "what a mask is",
    "per 4x4 patch (1 = hidden)": "the patch of the library",
}
WORDS = {
    "simmim_swin_tiny": _MASK,
    "simmim_swinv2_tiny": {**_MASK, "over a 47x47 neighbourhood": "in the arguments"},
    "case_cosine_attention": {
        "logit_scale (heads,1,1)": "the library's shapes",
        "cpb_mlp.0.weight (512,2), cpb_mlp.0.bias (512), cpb_mlp.2.weight (heads,512), qkv.weight (3 dim, dim)": "the library's shapes",
        "int(linspace(0, n-1, 64))": "the count is said before",
        "after 16 sigmoid": "the rule of the library",
        "with a 5x5 neighbourhood": "in the inputs",
    },
}
SMALL = {
    "swinv2_tiny": {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
}
