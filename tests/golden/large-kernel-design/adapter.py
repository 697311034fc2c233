"""How large-kernel-design's cases are computed through the public interface, and how its backbone is made small."""

import golden
import torch
from reading import array, precision, said

import offprint
from offprint.methods.understanding.large_kernel_design import (
    SIXTEEN,
    effective_receptive_field,
    erf_area_ratio,
    shape_bias,
    sixteen_class_decision,
)


def _areas(found, expected):
    yield "thresholds", sorted(f"{t:g}" for t in found), sorted(expected), 0
    for t, area in found.items():
        listed = expected.get(f"{t:g}")
        if listed is None or area is None:
            yield f"area {t:g}", area is None, listed is None, 0
        else:
            yield f"side {t:g}", area.side, listed[0], 0
            yield f"area {t:g}", area.ratio, listed[1], 1e-5


def area_ratio(record):
    given = record["inputs"]
    factor, spread = said(record, "map = # *"), said(record, "(j-n//2)^2)/#)")
    draw = array({**record, "precision": "float64"}, given["map"])
    away = [(torch.arange(n, dtype=torch.float64) - n // 2).square() for n in draw.shape]
    field = factor * draw.abs() * torch.exp(-(away[0][:, None] + away[1]) / spread)
    found = erf_area_ratio(field, given["thresholds"])
    yield from _areas(found, record["expected"]["side_and_area_ratio"])
    scores, (y, x) = (field + 1).log10(), (n // 2 for n in field.shape)
    for t, area in found.items():
        i = area.side // 2
        inside = scores[y - i : y + i + 1, x - i : x + i + 1].sum() / scores.sum()
        yield f"holds {t:g}", area.holds, inside, 1e-9


def receptive_field(record):
    given, expected, kind = record["inputs"], record["expected"], precision(record)
    model = offprint.create_model(given["model"])
    state = {n: torch.from_numpy(golden.tensor(n, v.shape, given["gain"])) for n, v in model.state_dict().items()
             if not n.endswith("num_batches_tracked")}  # fmt: skip
    offprint.load_weights(model, state)
    images = [array(record, spec) for spec in given["images"]]
    found = effective_receptive_field(model.eval().to(kind), images, thresholds=given["thresholds"])
    at = torch.linspace(0, found.map.numel() - 1, said(record, "linspace(0, size-1, #)"), dtype=torch.float64).long()
    yield "shape", list(found.map.shape), expected["shape"], 0
    yield "max", found.map.max(), expected["max"], 2e-4
    yield "sum", found.map.sum(), expected["sum"], 2e-4
    yield "values", found.map.flatten()[at], expected["values"], 2e-4
    yield from _areas(found.areas, expected["side_and_area_ratio"])


def sixteen(record):
    given, expected = record["inputs"], record["expected"]
    logits = given["logits"]["factor"] * array({**record, "precision": "float64"}, given["logits"])
    groups = {name: given["imagenet_indices"][name] for name in given["categories"]}
    found = sixteen_class_decision(logits, groups)
    for key, value in expected.items():
        if key == "decisions":
            yield key, found.names, value, 0
        else:
            yield key, found.scores, value, 1e-5
    yield "the table", {k: list(v) for k, v in SIXTEEN.items()}, groups, 0


def bias(record):
    found = shape_bias(record["inputs"]["rows"])
    for key, value in record["expected"].items():
        yield key, getattr(found, key), value, 1e-6


CASES = {
    "erf_area_ratio": area_ratio,
    "erf_unireplknet_a": receptive_field,
    "sixteen_classes": sixteen,
    "shape_bias": bias,
}
WORDS = {
    "erf_area_ratio": {"((i-n//2)^2+(j-n//2)^2)": "the middle of the map"},
    "erf_unireplknet_a": {"gain 1.3": "in the inputs", "size-1": "the last place"},
    "sixteen_classes": {
        "over 1000 classes": "the size of the array",
        "of 3 * array": "in the inputs",
        "best of the 16": "the number of categories",
    },
}
SMALL = {
    "replknet_31b": {"kernel_sizes": (15, 13, 9, 7), "depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
}
