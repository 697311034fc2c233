"""Layer-wise learning rates for fine-tuning: what lies nearer to the input moves less."""

from __future__ import annotations

from typing import Any

from torch import nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone


def layer_decay_groups(model: nn.Module, lr: float, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer, one for each layer and for what is decayed in it or not.

    The model is a backbone, or holds one: all that is behind it (necks, heads, decoders) then learns as its head does.

    A parameter of layer ``l`` (:meth:`~offprint.models.backbone.Backbone.layer_index`; the stem is 0, the head
    ``num_layers + 1``) learns at ``lr * decay ** (num_layers + 1 - l)``. Vectors, biases and the model's
    :meth:`~offprint.models.backbone.Backbone.no_weight_decay` are not decayed.

    Args:
        model: a backbone or a model with one; parameters that need no gradient are left out.
        lr: rate of the head.
        weight_decay: of what is decayed.
        decay: factor between neighbouring layers, above 0 and up to 1 (1: one rate).

    Returns:
        ``[{"params", "lr", "weight_decay", "layer", "lr_scale"}, ...]`` from stem to head, decayed before not.
    """
    if not 0 < decay <= 1:
        raise OffprintError(f"layer decay {decay}; the factor between neighbouring layers is above 0 and at most 1")
    inside = [(name, module) for name, module in model.named_modules() if isinstance(module, Backbone)]
    if not inside:
        raise OffprintError(
            f"{type(model).__name__} holds no backbone, so it has no layers to count; give one rate to all of it"
        )
    where, backbone = inside[0]
    prefix = f"{where}." if where else ""
    free, last = {prefix + name for name in backbone.no_weight_decay()}, backbone.num_layers + 1
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(".bias") or name in free
            layer = backbone.layer_index(name.removeprefix(prefix)) if name.startswith(prefix) else last
            found.setdefault((layer, plain), []).append(parameter)
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
