"""How rotnet's records are computed through the public interface."""

import re

from reading import array

from offprint.methods.training.rotnet import rotate_four


class _Calls(dict):
    """``custom: ... the features named A, B, ...`` for whatever names the record has."""

    def get(self, call, default=None):
        found = re.fullmatch(r"custom: one forward, the features named ([\w, ]+), in that order", call)
        if found is None:
            return super().get(call, default)
        names = [name.strip() for name in found[1].split(",")]
        return lambda model, record, x: model.features(x, names if len(names) > 1 else names[0])


def rotations(record):
    views, labels = rotate_four(array(record, record["inputs"]["image"]).permute(2, 0, 1)[None])
    for label, view in zip(labels.tolist(), views, strict=True):
        yield f"label_{label}", view[0], record["expected"][f"label_{label}"], 1e-6


CALLS = _Calls()
CASES = {"case_rotations": rotations}
WORDS = {
    "case_rotations": {
        "label r rotates by 90*r degrees": "what a quarter turn is",
        "channel 0 of the four copies": "what the record shows of each copy",
        "label order 0..3": "the labels",
        "label 1 (90) = counter-clockwise as numpy.rot90(k=1)": "the sense of the turns",
    },
    "rotnet_nin4": {"8x8 input": "the shape of the input"},
    "nin3_supervised": {"16x16 input": "the shape of the input"},
}
