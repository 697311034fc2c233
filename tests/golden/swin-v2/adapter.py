"""How swin-v2's parts and case are computed through the public interface, and how its model is made small."""

import golden
import numpy as np
import torch

from offprint.models.backbones.swin_v2 import SimMIM, WindowAttention, log_coordinates, normalize_targets

# torchvision's qkv bias has a part for the keys that is set to zero in every forward; ours has no such part
PARAMETERS = {"swinv2_tiny_torchvision": 28_347_154}


def simmim(model: SimMIM, record, image):
    """Image, and the mask the record's notes describe."""
    rows, columns = (s // 32 for s in image.shape[2:])
    units = rows * columns
    mask = torch.zeros(len(image), units)
    for b in range(len(image)):
        order = np.argsort(golden.array((units,), 77 + b), kind="stable")
        mask[b, order[: -(-6 * units // 10)].copy()] = 1
    mask = mask.view(-1, rows, columns).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return list(model(image, mask))


def _sample(value):
    flat = value.detach().flatten()
    return flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 64).astype(int))]


def cosine_attention(record):
    given, expected = record["inputs"], record["expected"]
    attention = WindowAttention(given["dim"], given["window"], given["heads"], given["pretrained_window"]).eval()
    state = {n: torch.from_numpy(golden.tensor(f"attn.{n}", p.shape, 1.3)) for n, p in attention.named_parameters()}
    state["logit_scale"] = 2 * state["logit_scale"] + 3.5
    attention.load_state_dict(state)
    x = torch.from_numpy(golden.array(given["x"]["shape"], given["x"]["seed"]))
    target = torch.from_numpy(golden.array(given["target"]["shape"], given["target"]["seed"]))
    scale = attention.logit_scale.clamp(max=np.log(100)).exp().flatten()
    for mode in ("with gradients", "without"):
        with torch.set_grad_enabled(mode == "with gradients"):
            yield f"attention {mode}", _sample(attention(x)), expected["attention"], 1e-5
    yield "coordinates", _sample(log_coordinates(given["window"])), expected["coordinates"], 1e-5
    yield "bias_table", _sample(attention.table()), expected["bias_table"], 1e-5
    yield "logit_scale", scale, expected["logit_scale_after_clamp"], 1e-5
    yield "normalised", _sample(normalize_targets(target, given["neighbourhood"])), expected["normalised"], 1e-4


CALLS = {
    "custom: model(image, mask) with the mask built as the notes say; encoder map, reconstruction and loss, "
    "in that order": simmim
}
CASES = {"case_cosine_attention": cosine_attention}
SMALL = {
    "swinv2_tiny": {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
}
