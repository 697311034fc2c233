"""Offprint: sixty papers, each one a working part.

>>> import offprint
>>> model = offprint.create_model("convnext_tiny", num_classes=10)
>>> offprint.paper("dagnn").claims[0].value
84.4

Everything below is imported when first used, so that ``import offprint`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "create_model": "offprint.api",
    "list_models": "offprint.api",
    "train": "offprint.api",
    "evaluate": "offprint.api",
    "predict": "offprint.api",
    "load_run": "offprint.api",
    "compose": "offprint.models.compose",
    "parts": "offprint.models.parts",
    "model_info": "offprint.models.info",
    "load_weights": "offprint.models.checkpoint",
    "save_weights": "offprint.models.checkpoint",
    "deploy": "offprint.models.deploy",
    "from_pretrained": "offprint.models.sharing",
    "push_to_hub": "offprint.models.sharing",
    "paper": "offprint.catalog",
    "papers": "offprint.catalog",
    "prove": "offprint.proofs",
    "reproduce": "offprint.reproduction",
    "OffprintError": "offprint.errors",
    "CheckpointError": "offprint.errors",
    "DataError": "offprint.errors",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from offprint.api import create_model as create_model
    from offprint.api import evaluate as evaluate
    from offprint.api import list_models as list_models
    from offprint.api import load_run as load_run
    from offprint.api import predict as predict
    from offprint.api import train as train
    from offprint.catalog import paper as paper
    from offprint.catalog import papers as papers
    from offprint.errors import CheckpointError as CheckpointError
    from offprint.errors import DataError as DataError
    from offprint.errors import OffprintError as OffprintError
    from offprint.models.checkpoint import load_weights as load_weights
    from offprint.models.checkpoint import save_weights as save_weights
    from offprint.models.compose import compose as compose
    from offprint.models.deploy import deploy as deploy
    from offprint.models.info import model_info as model_info
    from offprint.models.parts import parts as parts
    from offprint.models.sharing import from_pretrained as from_pretrained
    from offprint.models.sharing import push_to_hub as push_to_hub
    from offprint.proofs import prove as prove
    from offprint.reproduction import reproduce as reproduce


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in {"catalog", "nn", "models", "methods", "data", "tasks", "proofs", "ledger", "web", "cli"}:
        return importlib.import_module(f"offprint.{name}")
    raise AttributeError(f"module 'offprint' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
