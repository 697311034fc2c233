"""What a method may do to the one training run: the places where :meth:`offprint.tasks.contract.Task.train` asks it.

Tasks know no method; they know this protocol. An object of it is good for one run at a time. In the order in which they are asked:

1. ``settle(job)``: before the data are opened. Refuse what cannot work; change ``job.how`` (the recipe), ``job.options``, ``job.model_options``.
2. ``data(job)``: ``job.data`` is open and prepared; replace it, or what is in it.
3. ``reshape(model)``: only where ``reshapes`` is true: another architecture of the same model. It is asked wherever the model is built:
   before training, before weights are loaded, and when the finished run is loaded. So it depends on nothing but the model and the
   method's options, and is the same each time.
4. ``network(job)``: ``job.network`` has the weights that training starts from; the run is known to be new or to go on. Change it in place,
   and leave the names and the meaning of its parameters: the run's weight file must load without the method. ``job.say`` tells the user.
5. ``module(job, module)``: the Lightning module; return it or another. :func:`around_step` puts something round its training step, such
   as a term of the loss, and several of them nest.
6. ``loaders(job, loaders)``: the Lightning data module; return it or another.
7. ``callbacks(job)``: Lightning's callbacks. What they keep in ``state_dict`` is restored on resume.
8. ``finish(job)``: ``job.network`` holds the weights that count; take back what ``network`` did, and return figures for the summary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from offprint.errors import OffprintError
from offprint.models.registry import Entry, entries, register

if TYPE_CHECKING:
    import inspect

    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from torch import Tensor, nn

    from offprint.tasks.contract import Job
    from offprint.tasks.running import RecipeTask


class Hooks(Protocol):
    """A method as the training run sees it (see the module); what is not defined does nothing.

    Attributes:
        name: unique among the methods of a run.
        reshapes: whether :meth:`reshape` gives another architecture.
        task: name of the task that it brings (a pre-training task); ``""`` for those that act on whatever task the run has.
    """

    name: ClassVar[str] = ""
    reshapes: ClassVar[bool] = False
    task: ClassVar[str] = ""

    def record(self) -> dict[str, Any]:
        """Name and options as plain data: what the run's folder keeps, and what makes the same object again."""
        ...

    def choices(self) -> Mapping[str, Any]:
        """What is passed on to the task that it brings, as that task's choices."""
        return {}

    def settle(self, job: Job) -> None:
        return None

    def data(self, job: Job) -> None:
        return None

    def reshape(self, model: nn.Module) -> nn.Module:
        return model

    def network(self, job: Job) -> None:
        return None

    def module(self, job: Job, module: RecipeTask) -> RecipeTask:
        return module

    def loaders(self, job: Job, loaders: L.LightningDataModule) -> L.LightningDataModule:
        return loaders

    def callbacks(self, job: Job) -> Sequence[Callback]:
        return ()

    def finish(self, job: Job) -> Mapping[str, Any]:
        return {}


def around_step(module: RecipeTask, around: Callable[[Callable, Any, int], Tensor]) -> None:
    """Put ``around(step, batch, batch_idx) -> loss`` round the training step of a Lightning module.

    Args:
        step: what was there before, called as ``step(batch, batch_idx)``; once, several times or not at all.
    """
    step = module.training_step

    @functools.wraps(step)
    def changed(batch, batch_idx):
        return around(step, batch, batch_idx)

    module.training_step = changed  # type: ignore[method-assign]


class _Reshaped:
    """The builder of a model whose architecture methods change; it answers for everything else as the model's own builder."""

    def __init__(self, build: Callable[..., nn.Module], methods: Sequence[Hooks]):
        import inspect

        self.build, self.methods = build, methods
        self.__signature__: inspect.Signature = inspect.signature(build)
        self.__module__ = getattr(build, "__module__", __name__)

    def __call__(self, **arguments: Any) -> nn.Module:
        model = self.build(**arguments)
        for method in self.methods:
            model = method.reshape(model)
        return model

    def __getattr__(self, name: str):
        if name in ("build", "methods"):
            raise AttributeError(name)
        return getattr(self.build, name)


def reshaped(spec: Entry, methods: Sequence[Hooks]) -> str:
    """The name under which a model is found with its architecture changed by those of the methods that change it; its own if none does.

    Released weights are those of the model as it was, so the changed one has none.
    """
    import json

    changing = [method for method in methods if method.reshapes]
    if not changing:
        return spec.name
    words = "~".join(json.dumps(method.record(), sort_keys=True) for method in changing)
    name = f"{spec.name}~{words}".replace("+", "|")  # a plus sign would be read as one between parts
    known = entries(everywhere=False)
    if name in known:
        known[name].build.methods = changing  # type: ignore[attr-defined]  # these objects, not those of an earlier run
    else:
        stages = {stage: dict(fields) for stage, fields in spec.recipes.items()}
        register(
            paper=spec.paper, kind=spec.kind, build=_Reshaped(spec.build, changing), variants={name: spec.kwargs},
            input_size=spec.input_size, preprocessing=spec.preprocessing, recipes=stages, task=spec.task,
        )  # fmt: skip
    return name


def distinct(methods: Sequence[Hooks]) -> None:
    """Refuse a method that is named twice, and two that bring a task.

    Raises:
        OffprintError: naming them.
    """
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise OffprintError(f"the method {name} was given twice; give it once, with all its options")
    bringing = [method.name for method in methods if method.task]
    if len(bringing) > 1:
        raise OffprintError(f"{' and '.join(bringing)} each bring a task of their own, and a run has one; choose one")
