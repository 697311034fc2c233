"""Layer-wise learning rates for fine-tuning: what lies nearer to the input moves less."""

from __future__ import annotations

from typing import Any

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone


def layer_decay_groups(model: Backbone, lr: float, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer, one for each layer and for what is decayed in it or not.

    A parameter of layer ``l`` (:meth:`~offprint.models.backbone.Backbone.layer_index`; the stem is 0, the head
    ``num_layers + 1``) learns at ``lr * decay ** (num_layers + 1 - l)``. Vectors, biases and the model's
    :meth:`~offprint.models.backbone.Backbone.no_weight_decay` are not decayed.

    Args:
        model: a backbone; parameters that need no gradient are left out.
        lr: rate of the head.
        weight_decay: of what is decayed.
        decay: factor between neighbouring layers, above 0 and up to 1 (1: one rate).

    Returns:
        ``[{"params", "lr", "weight_decay", "layer", "lr_scale"}, ...]`` from stem to head, decayed before not.
    """
    if not 0 < decay <= 1:
        raise OffprintError(f"layer decay {decay}; the factor between neighbouring layers is above 0 and at most 1")
    if not isinstance(model, Backbone):
        raise OffprintError(f"{type(model).__name__} has no layers to count; layer decay works with backbones")
    free, last, found = model.no_weight_decay(), model.num_layers + 1, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(".bias") or name in free
            found.setdefault((model.layer_index(name), plain), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * decay ** (last - layer),
            "weight_decay": 0.0 if plain else weight_decay,
            "layer": layer,
            "lr_scale": decay ** (last - layer),
        }
        for (layer, plain), parameters in sorted(found.items(), key=lambda item: item[0])
    ]
