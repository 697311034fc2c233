"""How eigen-cam's records are called and its case computed through the public interface.

The projection of close singular values amplifies the order of summing: with another number of threads than the records' one it is off
by 2e-4 of its largest value (in float64 the record itself is off by 3e-4).
"""

import golden
import torch

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
    a = torch.from_numpy(golden.array(given["activations"]["shape"], given["activations"]["seed"])).clamp(min=0)
    width, height = given["target_size"]
    centred, explained, singular = principal_component(a)
    listed = torch.tensor(expected["singular_values_centred"])
    total = (a - a.mean((2, 3), keepdim=True)).square().sum((1, 2, 3))
    yield "projection_centred", centred, expected["projection_centred"], 1e-5
    yield "singular_values_centred", singular, listed[:, : singular.shape[1]], 1e-5
    yield "explained", explained, listed[:, 0] ** 2 / total, 1e-5
    yield "projection_uncentred", eigen_projection(a, center=False), expected["projection_uncentred"], 1e-5
    yield "cam_plus", scale_maps(centred.clamp(min=0), (height, width)), expected["cam_plus"], 1e-5
    yield "cam_minus", scale_maps((-centred).clamp(min=0), (height, width)), expected["cam_minus"], 1e-5
    yield "cam_sign_rule", scale_maps(centred.clamp(min=0)), expected["cam_sign_rule"], 1e-5


CASES = {"projection": projection}
