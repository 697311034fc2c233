"""How convnext's case is computed through the public interface."""

import offprint
from offprint.models.backbones.convnext import layer_decay_groups
from offprint.nn import cosine_schedule


def layer_decay_and_schedule(record):
    given, expected = record["inputs"], record["expected"]
    model = offprint.create_model(given["model"])
    depths = tuple(len(stage) for stage in model.stages)
    rows = layer_decay_groups(
        given["names"], layer_decay=given["layer_decay"], weight_decay=given["weight_decay"], depths=depths
    )
    every = [name for name, _ in model.named_parameters()]
    groups = {(r["layer"], r["weight_decay"]) for r in layer_decay_groups(every, depths=depths)}
    s = given["schedule"]
    per = s["iterations_per_epoch"]
    rates = cosine_schedule(s["base"], s["floor"], s["epochs"] * per, s["warmup_epochs"] * per)
    yield "layer", [r["layer"] for r in rows], expected["layer"], 0
    yield "lr_scale", [r["lr_scale"] for r in rows], expected["lr_scale"], 1e-6
    yield "weight_decay", [r["weight_decay"] for r in rows], expected["weight_decay"], 0
    yield "groups", len(groups), expected["groups"], 0
    yield "learning_rates", rates, expected["learning_rates"], 1e-6


CASES = {"case_layer_decay_and_schedule": layer_decay_and_schedule}
WORDS = {
    "case_layer_decay_and_schedule": {
        "layer_decay 0.8, weight decay 0.05": "in the inputs",
        "10 epochs of 7 iterations with 2 warm-up epochs, base 4e-3, floor 1e-6": "in the inputs",
    }
}
SMALL = {
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "convnext_isotropic_small": {"depth": 2, "dim": 16},
}
