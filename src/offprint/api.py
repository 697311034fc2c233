"""The public face of models and tasks: those of their own rooms, and those that belong to a method."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from offprint.methods import registry as methods_registry
from offprint.methods.registry import method, methods
from offprint.models import registry
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry, list_models
from offprint.tasks import contract
from offprint.tasks.contract import (
    Task,
    by_name,
    choices,
    choose,
    evaluate,
    find,
    load_run,
    predict,
    tasks,
    tasks_of,
    train,
    what_it_does,
)
from offprint.tasks.folder import is_run, read_about

registry.add_room("offprint.methods")
contract.add_room("offprint.methods", ending="_task")
contract.methods_are(methods_registry.resolve)
for _found in entry_points(group="offprint.rooms"):  # packages of models, tasks and methods from outside
    registry.add_room(_found.value)
    contract.add_room(_found.value)
    methods_registry.add_room(_found.value)

__all__ = [
    "choices",
    "choose_for_training",
    "create_model",
    "entry",
    "evaluate",
    "find",
    "list_models",
    "load_run",
    "method",
    "methods",
    "models_of",
    "predict",
    "tasks",
    "tasks_of",
    "train",
    "what_it_does",
]


def models_of(task: str) -> list[str]:
    """Names of the models that serve a task."""
    found = by_name(task)
    return [name for name in list_models() if found.fits(entry(name))]


def choose_for_training(
    model: str,
    task: str | None = None,
    neck: str | None = None,
    head: str | None = None,
    methods: Sequence[Any] = (),
) -> tuple[Task, Entry]:
    """The task that ``train`` would run for a model, or for the folder of a run, and the model that would be trained."""
    task = contract.task_with(task, contract.resolve_methods(methods))
    if is_run(model):
        about = read_about(model)
        task = task or about["task"]
        model = by_name(task).inherit(about)[0]
    name = "+".join(filter(None, (model, neck, head)))
    return choose(name, task), entry(name)
