"""How s-kan's selection layer is computed."""

import torch
from reading import array, precision, said

from offprint.models.backbones.s_kan import SKANLayer

PLACES = {  # the record's array: member, parameter
    "bspline_base": ("bspline", "base_weight"),
    "bspline_coef": ("bspline", "coef"),
    "cheby_coef": ("cheby", "coef"),
    "rbf_coef": ("rbf", "coef"),
    "wavelet_weight": ("wavelet", "weight"),
    "wavelet_translation": ("wavelet", "translation"),
}


def selection_layer(record):
    given, expected = {k: array(record, spec) for k, spec in record["inputs"].items()}, record["expected"]
    size, order = said(record, "(grid #, order #,")
    options = {
        "bspline": {"grid_size": size, "spline_order": order},
        "cheby": {"degree": said(record, "Chebyshev degree #")},
        "rbf": {"num_grids": said(record, "(# centres")},
    }
    inputs, outputs = given["rbf_coef"].shape[0], given["rbf_coef"].shape[2]
    layer = SKANLayer(inputs, outputs, options=options).to(precision(record))
    scale, shift = said(record, "(scale #, translation #*given)")
    with torch.no_grad():
        for name, (member, parameter) in PLACES.items():
            factor = shift if parameter == "translation" else 1
            getattr(layer.members[member], parameter).copy_(factor * given[name])
        layer.members["wavelet"].scale.fill_(scale)
        layer.selection.copy_(given["selection"])
        x = said(record, "x = # * array") * given["x"]
        yield "node_weights", layer.weights(), expected["node_weights"], 1e-6
        yield "full", layer(x), expected["full"], 1e-6
        first = [member(x[:1])[0] for member in layer.members.values()]
        yield "members_for_first_sample", torch.stack(first), expected["members_for_first_sample"], 1e-6
        yield "chosen", layer.select(), expected["chosen"], 0
        yield "selected", layer(x), expected["selected"], 1e-6
        layer.prune()
        yield "selected", layer(x), expected["selected"], 1e-6


CASES = {"selection_layer": selection_layer}
WORDS = {
    "selection_layer": {
        "range -1..1": "the range of the library",
        "8 centres -2..2": "the range of the library",
        "weight 1 (stages 2 and 3)": "the rule of the library",
        "(stage 1)": "a name",
    }
}
