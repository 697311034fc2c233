"""How eigen-cam's records are called and its case computed through the public interface."""

import torch
from reading import array

from offprint.methods.understanding.eigen_cam import eigen_projection, principal_component, scale_maps


def _logits(cam, record, x):
    return cam.model(x)


def _projections(cam, record, x):
    return [p.abs() for p in cam.explain(x).projections]


def _maps(cam, record, x):
    return cam(x)


CALLS = {
    "custom: logits of the wrapped network": _logits,
    "custom: absolute value of the centred projection of each target layer": _projections,
    "custom: absolute value of the centred projection of each target layer, tokens without the class token put back on the 14x14 grid": _projections,
    "custom: EigenCAM(model, layers)(images), sign flipped when |min| > |max|": _maps,
}


def projection(record):
    given, expected = record["inputs"], record["expected"]
    a = array(record, given["activations"]).clamp(min=0)
    width, height = given["target_size"]
    centred, explained, singular = principal_component(a)
    listed = torch.tensor(expected["singular_values_centred"], dtype=a.dtype)
    total = (a - a.mean((2, 3), keepdim=True)).square().sum((1, 2, 3))
    yield "projection_centred", centred, expected["projection_centred"], 1e-5
    yield "singular_values_centred", singular, listed[:, : singular.shape[1]], 1e-5
    yield "explained", explained, listed[:, 0] ** 2 / total, 1e-5
    yield "projection_uncentred", eigen_projection(a, center=False), expected["projection_uncentred"], 1e-5
    yield "cam_plus", scale_maps(centred.clamp(min=0), (height, width)), expected["cam_plus"], 1e-5
    yield "cam_minus", scale_maps((-centred).clamp(min=0), (height, width)), expected["cam_minus"], 1e-5
    yield "cam_sign_rule", scale_maps(centred.clamp(min=0)), expected["cam_sign_rule"], 1e-5


CASES = {"projection": projection}
_RULE = {
    "(x-min)/(1e-7+max)": "the rule of the library",
}
WORDS = {
    "projection": {
        "maximum(golden.array, 0)": "no activation is below zero",
        "maximum(+-projection_centred, 0)": "the rule of the library",
        "(1e-7 + max)": "the rule of the library",
        "Compare to 1e-4": "looser than what is asked of ours",
    },
    "resnet18_layer4": {"layer4[-1]": "in the arguments", **_RULE},
    "mobilenet_v2_two_layers": {"features[13], features[18]": "in the arguments", **_RULE},
    "deit_tiny_norm1": {"blocks[-1].norm1": "in the arguments", "14x14 grid": "follows from the image", **_RULE},
}
