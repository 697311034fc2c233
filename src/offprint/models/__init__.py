"""Architectures, one file per paper, and how they are found, built, loaded, assembled and deployed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offprint.models.factory import create_model as create_model

_HOMES = {"create_model": "offprint.models.factory"}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
