"""Networks that methods are given by name."""

from __future__ import annotations

from typing import Any

from torch import nn


def named_network(name: str, pretrained: bool = False, checkpoint: str | None = None, **kwargs: Any) -> nn.Module:
    """A network of ours by name, or one of torchvision's as ``torchvision/NAME``.

    Args:
        pretrained: released weights.
        checkpoint: a weight file.
    """
    from offprint.models.checkpoint import load_weights
    from offprint.models.factory import create_model

    library, slash, rest = name.partition("/")
    if library != "torchvision" or not slash:
        return create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **kwargs)
    from torchvision.models import get_model

    model = get_model(rest, weights="DEFAULT" if pretrained else None, **kwargs)
    if checkpoint:
        load_weights(model, checkpoint)
    return model
