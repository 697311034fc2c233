"""How h-denseunet's records are called and its cases computed through the public interface."""

import numpy as np
import torch
from reading import array, said
from scipy.ndimage import gaussian_filter

from offprint.models.segmentation import h_denseunet as paper

_ALL = "custom: model(50 * input); the hybrid logits, then the stacked 2D logits, then the 3D branch's logits"


def _everything(model, record, x):
    return dict(
        zip(("hybrid", "slices", "volume"), model.forward_all(said(record, "model(# * input)") * x), strict=True)
    )


CALLS = {_ALL: _everything}


def cross_entropy(record):
    given, expected = record["inputs"], record["expected"]
    logits = said(record, "logits = # * logits_half") * array(record, given["logits_half"])
    noise = array(record, given["noise"])
    target = sum((noise > bound).long() for bound in said(record, "target = (noise > #) + (noise > #)"))
    yield "volume", paper.weighted_cross_entropy(logits, target), expected["volume_loss"], 1e-5
    yield "slice", paper.weighted_cross_entropy(logits[..., 0], target[..., 0]), expected["slice_loss"], 1e-5
    yield "counts", torch.bincount(target.flatten(), minlength=logits.shape[1]), expected["class_counts"], 0


def triplets(record):
    yield "triplets", paper.slice_triplets(record["inputs"]["depth"]), record["expected"]["triplets"], 0
    yield "scale", paper.LOGIT_SCALE, record["expected"]["scale"], 0


def windows(record):
    given, expected = record["inputs"], record["expected"]
    starts, counts = paper.z_windows(given["z"], given["lo"], given["hi"], given["window"])
    yield "starts", starts, expected["starts"], 0
    yield "counts", counts, expected["counts"], 0


def post(record):
    sigma = said(record, "gaussian_filter sigma # of")
    one, two, three = (
        gaussian_filter(array(record, record["inputs"][f"noise{i}"]).double().numpy(), sigma) for i in (1, 2, 3)
    )
    factor, shift = said(record, "liver score = sigmoid(#*blur(noise1)/std + #)")
    liver = 1 / (1 + np.exp(-(factor * one / one.std() + shift)))
    tumour = 1 / (1 + np.exp(-said(record, "tumour score = sigmoid(#*blur(noise2)/std)") * two / two.std()))
    prior = three > said(record, "prior liver mask = blur(noise3) > #")
    found = paper.postprocess(liver, tumour, prior, said(record, "liver >= #,"), said(record, "tumour >= #,"))
    expected = record["expected"]
    yield "counts", np.bincount(found.ravel(), minlength=3), expected["counts"], 0
    yield "slice", found[8, :, 5], expected["slice_z5_row8"], 0
    yield "other", found[:, 3, 2], expected["slice_z2_col3"], 0
    yield "kept", int(paper.liver_region(prior).sum()), expected["mask_kept"], 0


def lits(record):
    said_bounds = said(record, "prediction i = noise_(2i) > (#, #, #)[i]")
    true_bounds = said(record, "truth i = noise_(2i+1) > (#, #, #)[i]")
    noise = [array(record, record["inputs"][f"noise_{i}"]) for i in range(2 * len(said_bounds))]
    found = paper.lits_dice(
        [noise[2 * i] > bound for i, bound in enumerate(said_bounds)],
        [noise[2 * i + 1] > bound for i, bound in enumerate(true_bounds)],
    )
    for name, value in record["expected"].items():
        yield name, found[name], value, 1e-6


CASES = {
    "weighted_crossentropy": cross_entropy,
    "slices_to_volume": triplets,
    "z_windows": windows,
    "postprocess": post,
    "lits_dice": lits,
}
WORDS = {
    "h_denseunet_released": {
        "Input (1,1,H,W,D)": "the size of the array",
        "stacked 2D logits": "what it is called",
        "3D branch logits, all (1,3,H,W,D)": "the size of the outputs",
        "macs is at 1x1x224x224x8": "not taken here",
    },
    "weighted_crossentropy": {
        "logits_half (1,3,H=4,W=5,D=8)": "the size of the array",
        "as a 2D image": "what it is called",
    },
    "slices_to_volume": {
        "a volume of depth 8": "in the inputs",
        "its 3-channel input": "the rule of the paper",
        "The 2D network": "what it is called",
        "The 2D logits": "what they are called",
        "multiplied by 250": "expected of the library's constant",
        "(4 channels) as input of the 3D branch": "follows from the classes",
    },
    "z_windows": {
        "window depth 8, step 2": "the depth is in the inputs, the step is a quarter of it",
        "(count + 1e-4)": "the rule of the paper",
    },
    "postprocess": {
        "(full connectivity, 26)": "the rule of the paper",
        "(6-neighbour cross)": "the rule of the paper",
        "tumour painted 2": "the rule of the paper",
    },
    "lits_dice": {
        "inputs.noise_5.seed": "its mask is empty whatever the seed",
        "9.0)[i]; noise_k": "its mask is empty at any bound above 8",
        "noise_k is (6,6,6) with seed 560+k": "in the inputs",
        "(both empty counts 1)": "the rule of the challenge",
    },
}
