"""The public face of the registry: models of the `models` room, and those that belong to a method."""

from __future__ import annotations

from offprint.models import registry
from offprint.models.factory import create_model
from offprint.models.registry import entry, list_models

registry.add_room("offprint.methods")

__all__ = ["create_model", "entry", "list_models"]
