"""How unireplknet's cases are computed through the public interface, and how its backbone is made small."""

import golden
import torch
from reading import array, precision, said

from offprint.models.backbones._unireplknet_inputs import euler_rotation
from offprint.models.backbones.unireplknet import (
    DilatedReparamBlock,
    audio_fbank,
    audio_to_map,
    point_views,
    video_to_map,
)


def merge(record):
    given = record["inputs"]
    branches = tuple(zip(given["branch_kernel_sizes"], given["branch_dilations"], strict=True))
    block = DilatedReparamBlock(given["channels"], given["kernel_size"], branches=branches)
    state = {n: torch.from_numpy(golden.tensor(n, shape)) for n, shape in given["state"]}
    block.load_state_dict(state | {k: v for k, v in block.state_dict().items() if k.endswith("num_batches_tracked")})
    weight, bias = block.eval().to(precision(record)).kernel()
    yield "weight", weight, record["expected"]["weight"], 1e-5
    yield "bias", bias, record["expected"]["bias"], 1e-5


def fbank(record):
    waveform, bins = array(record, record["inputs"]["waveform"]), record["inputs"]["num_mel_bins"]
    got = audio_fbank(waveform, bins, said(record, "sample_frequency=#"))
    yield "fbank", got[0], record["expected"]["fbank"], 1e-4


def spectrogram(record):
    got = audio_to_map(array(record, record["inputs"]["spectrogram"]))
    yield "map", got, record["expected"]["map"], 1e-6


def clip(record):
    got = video_to_map(array(record, record["inputs"]["video"]))
    yield "map", got, record["expected"]["map"], 1e-6


def views(record):
    given, expected = record["inputs"], record["expected"]
    angles = torch.tensor(given["angles"], dtype=precision(record))
    turned = euler_rotation(angles).transpose(1, 2)
    yield "rotation_transposed", turned, expected["rotation_transposed"], 1e-5
    got = point_views(array(record, given["points"]), angles, given["translation"])
    yield "points", got.reshape(torch.tensor(expected["points"]).shape), expected["points"], 1e-5


CASES = {
    "audio_fbank": fbank, "audio_to_map": spectrogram, "video_to_map": clip, "point_views": views,
    "dilated_reparam_merge_k7": merge, "dilated_reparam_merge_k13": merge,
}  # fmt: skip
WORDS = {
    "dilated_reparam_merge_k7": {"(gain 1.3)": "golden.tensor's own", "eps 1e-5": "the library's"},
    "dilated_reparam_merge_k13": {"(gain 1.3)": "golden.tensor's own", "eps 1e-5": "the library's"},
    "audio_fbank": {
        "num_mel_bins=128": "the number in the inputs", "dither=0": "the library's", "frame_shift=10": "the library's",
    },
    "audio_to_map": {"(B, 1, mel, time)": "the shape of the output"},
    "video_to_map": {"(B, C, 16, H, W)": "the size of the input", "(B, C, 4H, 4W)": "its square root"},
    "point_views": {"(1,5,3)": "the size of the input"},
}  # fmt: skip
SMALL = {
    "unireplknet_t": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "kernel_sizes": (3, 7, (13, 3), 13),
                      "layer_scale_init_value": 0.5},
}  # fmt: skip
