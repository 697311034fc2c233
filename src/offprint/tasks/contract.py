"""The contract of tasks, and the verbs that run any of them: :func:`train`, :func:`evaluate`, :func:`predict`, :func:`load_run`.

A task says once, for every model it fits: how a source is opened, its recipe, its training module, what is known of a trained model,
what evaluating gives, and what predicting gives for one input. It is one object of one file (in this package, or in a room added with
:func:`add_room`), made with a name; a model names its own with ``register(task=...)``. The choices that a task offers are the keyword
arguments of its ``open``, ``evaluate`` and ``predict``: verbs read them there, so that none is declared twice.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offprint.errors import OffprintError, unknown
from offprint.models.registry import Entry, entry
from offprint.tasks.folder import SETTINGS, WEIGHTS, RunFolder, is_run, read_about
from offprint.tasks.hooks import Hooks, distinct, reshaped
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result
from offprint.tasks.settings import Run

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from torch import Tensor, nn

    from offprint.tasks.running import Fitted, RecipeTask


@dataclass
class Job:
    """One training: what was asked for, and what came of it on the way.

    Attributes:
        model: name of the model.
        source: where the data are, or the data.
        out: folder of the run.
        stage: of the recipe.
        recipe: fields of it, as overridden; the task turns them into ``how``.
        options: what :meth:`Task.open` is told of the data.
        model_options: arguments of the model.
        pretrained, checkpoint: where the weights come from.
        methods: what acts on this training (see :mod:`offprint.tasks.hooks`).
        say: told what was found, before the work begins.
        how: the recipe in use.
        settled: what the task has decided for this run.
        data, network, folder: as they are made.
    """

    model: str
    source: Any
    out: Path
    run: Run
    stage: str = "training"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool | str = False
    checkpoint: str | None = None
    callbacks: Sequence[Callback] = ()
    say: Callable[[str], None] = lambda text: None
    methods: Sequence[Hooks] = ()
    how: Any = None
    settled: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    network: Any = None
    folder: Any = None

    @property
    def entry(self) -> Entry:
        return entry(self.model)


@dataclass
class Ready:
    """A model ready for use.

    Attributes:
        task: what it is used for.
        model: in evaluation mode.
        name: of the model.
        about: what is known of it (classes, preprocessing, data).
        folder: of its run, where it comes from one.
    """

    task: Task
    model: Any
    name: str
    about: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def evaluate(self, data: Any = None, **options: Any) -> Figures:
        """See :func:`evaluate`."""
        return evaluate(self, data, **options)

    def predict(self, inputs: Any, **options: Any) -> Result:
        """See :func:`predict`."""
        return predict(self, inputs, **options)


@dataclass
class Trained(Mapping):
    """A finished run: a mapping of its figures, and a model.

    Attributes:
        folder, model, task: where it lies, and what it is.
        figures: of the run.
        lines: what to say of it.
        leader: whether this process is the one that writes, of several.
    """

    folder: Path
    model: str
    task: str
    figures: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    leader: bool = True

    def __getitem__(self, name: str) -> Any:
        return self.figures[name]

    def __iter__(self):
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def load(self) -> Ready:
        """The trained model."""
        return load_run(self.folder)


class Task:
    """A kind of task. Subclasses set the attributes, and define what is not given here.

    Attributes:
        name: as ``register(task=...)`` and ``--task`` say it.
        does: completes "MODEL ...": ``"classifies pictures"``.
        goal, mode: the logged value that says which epoch is kept, and whether more (``max``) or less (``min``) is better.
        made: files that a run of this task leaves besides those of every run.
        own_loop: it trains by a loop of its own, on which methods cannot act.
    """

    name = ""
    does = ""
    goal = ""
    mode = "max"
    made: tuple[str, ...] = ()
    own_loop = False

    # --- which models, and how they are trained

    def fits(self, spec: Entry) -> bool:
        """Whether a model can serve this task."""
        return spec.task == self.name

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> Any:
        """The model's own recipe of a stage, with fields overridden: a dataclass with ``epochs``."""
        return Recipe.of(spec.name, stage, **(overrides or {}))

    def inherit(self, about: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The model, and its arguments, that go on from a run that says this of itself."""
        return about["model"], {k: tuple(v) if isinstance(v, list) else v for k, v in about.get("options", {}).items()}

    # --- data

    def open(self, source: Any, *, seed: int = 0) -> Any:
        """Open a source of data; further keyword arguments are the choices that the task offers."""
        raise NotImplementedError

    def digest(self, data: Any) -> str:
        """Of the data, so that a run is not gone on with on other data; ``""`` where it cannot be told."""
        return str(getattr(data, "digest", "") or "")

    def offers(self) -> dict[str, Choice]:
        """The choices that training offers, about the data and about the training itself."""
        return {k: v for k, v in (choices(self.open) | choices(self.prepare)).items() if k != "seed"}

    # --- training

    def prepare(self, job: Job) -> None:
        """After the data are opened, before the model is built; keyword arguments are choices about the training itself."""

    def build(self, job: Job) -> nn.Module:
        """The model to train, with the weights it starts from."""
        from offprint.models.checkpoint import load_weights
        from offprint.models.factory import create_model

        network = create_model(job.model, pretrained=job.pretrained, **job.model_options)
        if job.checkpoint:
            load_weights(network, job.checkpoint)
        return network

    def greeting(self, job: Job) -> Sequence[str]:
        """What to say of the data before the work begins."""
        return ()

    def about(self, job: Job) -> dict[str, Any]:
        """What decides the result of the run, and what :meth:`ready` needs, beyond what every run says."""
        return {}

    def module(self, job: Job) -> RecipeTask:
        """The Lightning module."""
        raise NotImplementedError

    def loaders(self, job: Job) -> L.LightningDataModule:
        raise NotImplementedError

    def callbacks(self, job: Job) -> Sequence[Callback]:
        return ()

    def every(self, job: Job) -> int:
        """Epochs between two checkpoints."""
        return 1

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        """Figures of the run; the network holds the weights that count."""
        return {}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        """What to say of a finished run."""
        return [f"weights: {folder / WEIGHTS}"]

    def save(self, job: Job) -> None:
        """Write what use needs: the weights."""
        from offprint.models.checkpoint import save_weights

        save_weights(job.network, job.folder / WEIGHTS)

    def train(self, job: Job) -> Trained:
        """Run a job from beginning to end; most tasks leave this as it is."""
        import torch

        job.how = self.recipe(job.entry, job.stage, job.recipe)
        if hasattr(job.how, "patience"):  # a stop rule of the paper's own
            job.how = job.how if job.run.patience is None else dataclasses.replace(job.how, patience=job.run.patience)
            job.run = job.run.but(patience=int(job.how.patience))
        for method in job.methods:
            method.settle(job)
        about_data = choices(self.open)
        job.data = self.open(job.source, seed=job.run.seed, **{k: v for k, v in job.options.items() if k in about_data})
        self.prepare(job, **{k: v for k, v in job.options.items() if k not in about_data})
        for method in job.methods:
            method.data(job)
        for line in (*_stage_words(job), *self.greeting(job)):
            job.say(line)
        torch.manual_seed(job.run.seed)
        named, job.model = job.model, reshaped(job.entry, job.methods)
        try:
            job.network = self.build(job)
        finally:
            job.model = named
        about = {"task": self.name, "model": job.model, "stage": job.stage,
                 "methods": [method.record() for method in job.methods],
                 "options": job.model_options, "recipe": dataclasses.asdict(job.how), "seed": job.run.seed,
                 "started_from": str(job.pretrained or job.checkpoint or ""), **self.about(job)}  # fmt: skip
        told = {"source": str(job.source)[:300], "data_options": _plain(job.options)}
        job.folder = RunFolder(job.out, {**about, "data_digest": self.digest(job.data)}, job.run.resume, told=told,
                               made=self.made)  # fmt: skip
        before = job.folder.summary()
        if before is not None and (done := self.done(job, before)):
            return Trained(job.folder.path, job.model, self.name, done, self.lines(done, Path(job.out)))
        from offprint.tasks.running import fit

        for method in job.methods:
            method.network(job)
        module, loaders, callbacks = self.module(job), self.loaders(job), [*self.callbacks(job)]
        for method in job.methods:
            module, loaders = method.module(job, module), method.loaders(job, loaders)
            callbacks += method.callbacks(job)
        fitted = fit(
            module, loaders, job.folder, job.run, [*callbacks, *job.callbacks], goal=self.goal, mode=self.mode, every=self.every(job)
        )  # fmt: skip
        leader = fitted.trainer.is_global_zero
        job.network.load_state_dict(fitted.state)
        told_by_methods = {m.name: dict(found) for m in reversed(job.methods) if (found := m.finish(job))}
        job.network.to("cpu").eval()
        figures = self.finish(job, fitted)
        figures |= {"methods": told_by_methods} if told_by_methods else {}
        figures |= {
            "epochs": fitted.trainer.current_epoch,
            "weights": str(job.folder / WEIGHTS),
            "weights_are": fitted.which,
        }
        if leader:
            self.save(job)
            job.folder.write_summary(figures)
        return Trained(job.folder.path, job.model, self.name, figures, self.lines(figures, Path(job.out)), leader)

    def done(self, job: Job, before: dict[str, Any]) -> dict[str, Any] | None:
        """The figures of a run that is finished already, ``None`` where it goes on.

        Raises:
            OffprintError: more epochs were trained than are asked for.
        """
        if before.get("epochs", 0) > job.how.epochs:
            raise OffprintError(
                f"{job.folder.path} holds a run of {before['epochs']} epochs, more than the {job.how.epochs} asked for; choose "
                "another --out, or pass --no-resume to start over"
            )
        whole = before.get("epochs") == job.how.epochs and (job.folder / WEIGHTS).is_file()
        return before if whole else None

    # --- use

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        """The model of a finished run."""
        return self.restored(folder, about)

    def restored(self, folder: Path, about: dict[str, Any], **arguments: Any) -> Ready:
        """The model that a run's folder describes, with its weights; ``arguments`` come on top of those it was trained with."""
        from offprint.models.factory import create_model

        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], checkpoint_path=str(folder / WEIGHTS), **{**options, **arguments})
        return Ready(self, model.eval(), about["model"], about, folder)

    def own_source(self, ready: Ready) -> Any:
        """Where the data of a run are.

        Raises:
            OffprintError: there is no run, or its data came from Python.
        """
        source = ready.about.get("source")
        if ready.folder is None or not source:
            raise OffprintError(f"{ready.name} comes from no run, so it has no data of its own; give --data")
        return source

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        """A model by name, with released weights or those of a file."""
        from offprint.models.factory import create_model

        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        return Ready(self, model, name, {"options": dict(options), "pretrained": str(pretrained or "")})

    def evaluate(self, ready: Ready, data: Any = None, *, progress: Callable[..., None] | None = None) -> Figures:
        """Figures on data (``None``: those of the run); further keyword arguments are the choices that the task offers."""
        raise OffprintError(f"{self.name} has no evaluation of its own")

    def predict(self, ready: Ready, inputs: Any, *, progress: Callable[..., None] | None = None) -> Result:
        """What the model says of inputs; further keyword arguments are the choices that the task offers."""
        raise OffprintError(f"{self.name} has no prediction of its own")

    def predict_to(self, ready: Ready, inputs: Any, path: Path | None = None, **options: Any) -> Result:
        """:meth:`predict`, written to a file or folder where one is given."""
        found = self.predict(ready, inputs, **options)
        if path is not None:
            found.save(path)
        return found

    def sample(self, ready: Ready) -> Tensor | None:
        """An example input for export; ``None`` for the model's own."""
        return None


def _stage_words(job: Job) -> list[str]:
    """What the paper says of a stage: the data it is stated for, and the weights it starts from."""
    said = []
    if stated_for := getattr(job.how, "data", ""):
        said.append(f"the recipe is the paper's for {stated_for}")
    start = getattr(job.how, "start", "")
    if start and not (job.pretrained or job.checkpoint):
        said.append(
            f"the stage {job.stage} starts from the weights of the stage {start}; here it starts from random ones: "
            "give --pretrained, --checkpoint FILE, or the folder of a run as --model"
        )
    return said


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: v if isinstance(v, str | int | float | bool | list | tuple | None) else type(v).__name__
        for k, v in options.items()
    }


# --- the registry of tasks

_tasks: dict[str, Task] = {}
_rooms: list[tuple[str, str]] = [("offprint.tasks", "")]
_seen: set[str] = set()


def register_task(task: Task) -> Task:
    """Enter a task under its name."""
    if not task.name or not task.does:
        raise OffprintError(f"a task needs a name and what it does; {type(task).__name__} lacks one")
    held = _tasks.get(task.name)
    if held is not None and type(held).__qualname__ != type(task).__qualname__:
        raise OffprintError(f"two tasks have the name {task.name!r}: {type(held).__name__} and {type(task).__name__}")
    _tasks[task.name] = task
    return task


def add_room(package: str, ending: str = "") -> None:
    """Let tasks be found in another package too, in those of its modules whose names end so."""
    if package not in [name for name, _ in _rooms]:
        _rooms.append((package, ending))


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    for room, ending in _rooms:
        if room in _seen:
            continue
        _seen.add(room)
        root = importlib.import_module(room)
        for info in pkgutil.walk_packages(root.__path__, room + "."):
            if info.name.endswith(ending):
                importlib.import_module(info.name)
    return dict(sorted(_tasks.items()))


def by_name(name: str) -> Task:
    """The task of this name; an unknown one is refused with the nearest."""
    found = tasks()
    if name not in found:
        raise unknown("task", name, found)
    return found[name]


def tasks_of(model: str) -> list[str]:
    """Names of the tasks that a model can serve, its own first."""
    spec = entry(model)
    names = [name for name, t in tasks().items() if t.fits(spec)]
    return sorted(names, key=lambda name: name != spec.task)


def choose(model: str, wanted: str | None = None) -> Task:
    """The task that a model serves: its own, or the one that is wanted.

    Raises:
        OffprintError: it does not serve that one, or none here; the message says what it can do.
    """
    spec = entry(model)
    able = tasks_of(model)
    if wanted is None:
        if able and able[0] == spec.task:
            return by_name(spec.task)
        raise OffprintError(f"{model} {what_it_does(spec)}")
    found = by_name(wanted)
    if not found.fits(spec):
        raise OffprintError(f"{model} {what_it_does(spec)}; --task {wanted} is for models such as {_examples(found)}")
    return found


_KINDS = {
    "segmentation": "segments",
    "detection": "detects objects in",
    "signal": "works on",
    "graph": "works on graphs of",
}


def what_it_does(spec: Entry) -> str:
    """What a model can do, in words that complete "MODEL ..."."""
    able = tasks_of(spec.name)
    if able:
        told = " and ".join(f"{tasks()[n].does} (--task {n})" for n in able)
        return told
    shape = spec.input_size
    what = {4: "volumes", 3: "pictures"}.get(len(shape) if shape else 0, "tensors of its own")
    return (
        f"{_KINDS.get(spec.kind, 'works on')} {what}; no task here trains or runs it yet, so use it in Python: "
        f"model = offprint.create_model({spec.name!r}), and see offprint show {spec.paper}"
    )


def _examples(found: Task) -> str:
    from offprint.models.registry import entries

    names = [n for n, e in entries().items() if found.fits(e)]
    return ", ".join(names[:4]) or "none that is registered"


# --- the verbs


def train(
    model: str | Path,
    data: Any,
    out: str | Path = "runs/train",
    *,
    task: str | None = None,
    stage: str = "training",
    recipe: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    neck: str | None = None,
    head: str | None = None,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    callbacks: Sequence[Callback] = (),
    methods: Sequence[Any] | None = None,
    say: Callable[[str], None] | None = None,
    run: Run | None = None,
    **settings: Any,
) -> Trained:
    """Train a model on data by its paper's recipe.

    Args:
        model: name of a model (also ``BACKBONE+HEAD``), or the folder of a run, whose weights are started from.
        data: what the task opens (``offprint tasks NAME`` says what): a folder, a table, a name, ``sample:...``.
        out: folder of the run: checkpoints, logs, ``model.safetensors``, ``settings.json``, ``summary.json``.
        task: where the model serves several.
        stage: ``pretraining``, ``training`` or ``finetuning``, where the paper has a recipe of its own for it.
        recipe: fields of the recipe that differ from the paper's.
        options: the task's choices about the data.
        model_options: arguments of the model.
        neck, head: parts to set on a backbone (see :func:`offprint.models.parts.parts`): short for ``BACKBONE+NECK+HEAD``.
        pretrained, checkpoint: weights to start from: released ones, or a file.
        callbacks: Lightning's, besides those of every run.
        methods: what acts on the training (``offprint methods``): ``"gradient-noise"``, ``"gradient-noise:eta=0.3,seed=1"``,
            ``{"name": "gradient-noise", "eta": 0.3}``, or objects of them. ``None`` is none, and on resume those of the run.
        say: called with lines about what was found in the data.
        run, **settings: see :class:`~offprint.tasks.settings.Run`.

    Returns:
        A mapping of the run's figures, with its folder and ``load()``.

    Raises:
        OffprintError: something given cannot be used; said before any work.
        NonFiniteLoss: the loss was lost; the last good checkpoint stays.
    """
    start, how = str(model), (run or Run()).but(**settings)
    model_options = dict(model_options or {})
    restored = methods is None and how.resume and is_run(out)
    acting = list(methods_of(read_about(out)) if restored else resolve_methods(methods or ()))
    if is_run(start):
        about = read_about(start)
        given = {method.name for method in acting}
        acting = [*(m for m in methods_of(about) if m.reshapes and m.name not in given), *acting]
        if not (Path(model) / WEIGHTS).is_file():
            raise OffprintError(f"{model} holds a run that has not finished, so there are no weights to start from")
        start, inherited = by_name(task or about["task"]).inherit(about)
        task, model_options = task or about["task"], {**inherited, **model_options}
        checkpoint = checkpoint or str(Path(model) / WEIGHTS)
    start = "+".join(filter(None, (start, neck, head)))
    chosen = choose(start, task_with(task, acting))
    if pretrained and checkpoint:
        raise OffprintError("pretrained and checkpoint were both given; choose one source of weights")
    if acting and chosen.own_loop:
        raise OffprintError(
            f"the task {chosen.name} trains by a loop of its own, on which methods cannot act; leave "
            f"{', '.join(method.name for method in acting)} out"
        )
    for method in acting:
        options = {**method.choices(), **(options or {})}
    known = chosen.offers()
    for name in options or {}:
        if name not in known:
            raise unknown(f"option of the task {chosen.name}", name, known)
    told = say or (lambda text: None)
    if restored and acting:
        told(f"methods of the run: {', '.join(method.name for method in acting)}")
    job = Job(
        start, data, Path(out), how, stage, dict(recipe or {}), dict(options or {}), model_options,
        pretrained, checkpoint, tuple(callbacks), told, tuple(acting),
    )  # fmt: skip
    return chosen.train(job)


_resolvers: list[Callable[[Sequence[Any]], list[Hooks]]] = []


def methods_are(resolve: Callable[[Sequence[Any]], list[Hooks]]) -> None:
    """Let ``resolve`` say what methods given by name, text or mapping are, and refuse those that exclude each other."""
    _resolvers[:] = [resolve]


def resolve_methods(given: Sequence[Any]) -> list[Hooks]:
    """Methods as objects, in the order given."""
    if isinstance(given, str):
        given = [given]
    found = _resolvers[0](given) if _resolvers else list(given)
    distinct(found)
    return found


def methods_of(about: Mapping[str, Any]) -> list[Hooks]:
    """The methods of a run, from what its folder says."""
    return resolve_methods(about.get("methods", ()))


def task_with(task: str | None, methods: Sequence[Hooks]) -> str | None:
    """The task of a run: the one that is wanted, or the one that a method brings.

    Raises:
        OffprintError: they are two.
    """
    for method in methods:
        if method.task and task not in (None, method.task):
            raise OffprintError(f"{method.name} brings the task {method.task}, but {task} was asked for; leave one out")
        task = method.task or task
    return task


def load_run(folder: str | Path) -> Ready:
    """The model of a finished run, with what it needs to be used.

    Raises:
        OffprintError: no run, or one that has not finished.
    """
    folder = Path(folder)
    about = read_about(folder)
    if not (folder / WEIGHTS).is_file():
        raise OffprintError(
            f"{folder} holds a run that has not finished; resume it with the command that began it (offprint train --out {folder})"
        )
    task, methods = by_name(about["task"]), methods_of(about)
    if not any(method.reshapes for method in methods):
        return task.ready(folder, about)
    ready = task.ready(folder, {**about, "model": reshaped(entry(about["model"]), methods)})
    ready.name, ready.about = about["model"], about
    return ready


def find(
    model: Any,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    *,
    task: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Ready:
    """A model for use: the folder of a run, a model by name with weights, or one that is ready.

    Raises:
        OffprintError: nothing of these; a model without weights.
    """
    if isinstance(model, Ready):
        return model
    where = os.fspath(model)
    if is_run(where):
        if pretrained or checkpoint:
            raise OffprintError(
                f"{where} is the folder of a run, which has weights; leave pretrained and checkpoint out"
            )
        return load_run(where)
    if os.sep in where or Path(where).is_dir():
        raise OffprintError(f"{where} is not the folder of a training run (no {SETTINGS}); give one, or a model name")
    chosen = choose(where, task)
    if not pretrained and not checkpoint:
        released = "--pretrained or " if entry(where).weights else ""
        raise OffprintError(
            f"{where} has random weights; add {released}--checkpoint FILE, or give the folder of a run "
            f"(offprint train --model {where} --data ...)"
        )
    return chosen.released(where, pretrained, checkpoint, options or {})


def evaluate(
    model: Any,
    data: Any = None,
    *,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    task: str | None = None,
    progress: Callable[..., None] | None = None,
    **options: Any,
) -> Figures:
    """Measure a trained or released model.

    Args:
        model: the folder of a run, the name of a model, or what :func:`load_run` gives.
        data: as for :func:`train`; default those of the run.
        pretrained, checkpoint: weights, with a name.
        task: where the model serves several.
        progress: called with ``total=n`` once and ``text=...`` per step.
        **options: the task's choices.
    """
    ready = find(model, pretrained, checkpoint, task=task)
    _check(ready.task, ready.task.evaluate, options)
    return ready.task.evaluate(ready, data, progress=progress, **options)


def predict(
    model: Any,
    inputs: Any,
    *,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    task: str | None = None,
    progress: Callable[..., None] | None = None,
    **options: Any,
) -> Result:
    """What a trained or released model says of inputs; arguments as in :func:`evaluate`.

    Args:
        inputs: what the task takes: pictures, a graph, users, scans; one or several.
    """
    ready = find(model, pretrained, checkpoint, task=task)
    _check(ready.task, ready.task.predict, options)
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    return ready.task.predict(ready, inputs, progress=progress, **options)


def _check(owner: Task, function: Callable, options: Iterable[str]) -> None:
    known = choices(function)
    for name in options:
        if name not in known:
            raise unknown(f"option of {function.__name__} for the task {owner.name}", name, known)


# --- the choices that a task offers, as its functions declare them


@dataclass(frozen=True)
class Choice:
    """A keyword argument that a task offers.

    Attributes:
        name, default: as declared.
        kind: its type: ``int``, ``float``, ``bool``, ``str``, or a tuple of one of them.
        many: whether it may be given several times.
        help: its line in the docstring.
    """

    name: str
    default: Any
    kind: type
    many: bool
    help: str

    def read(self, text: str) -> Any:
        """From the words of a command line.

        Raises:
            OffprintError: it is of another kind.
        """
        try:
            if self.kind is bool:
                if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
                    raise ValueError
                return text.lower() in ("true", "1", "yes")
            return self.kind(text)
        except ValueError as error:
            raise OffprintError(
                f"--{self.name.replace('_', '-')} {text}: expected {_KIND_NAMES.get(self.kind, 'text')}"
            ) from error


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


def choices(function: Callable, leave: Sequence[str] = ("progress",)) -> dict[str, Choice]:
    """The keyword-only arguments of a task's function, by name, without those in ``leave``."""
    hints = typing.get_type_hints(inspect.unwrap(function))
    told = _argument_lines(inspect.getdoc(function) or "")
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in leave:
            kind, many = _kind(hints.get(name, str))
            found[name] = Choice(name, parameter.default, kind, many, told.get(name, ""))
    return found


def _kind(hint: Any) -> tuple[type, bool]:
    origin, arguments = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not type(None)]
    if origin in (typing.Union, types.UnionType):
        return _kind(arguments[0])
    if origin in (tuple, list, Sequence):
        return _kind(arguments[0])[0], True
    return (hint if hint in (int, float, bool, str, Path) else str), False


def _argument_lines(doc: str) -> dict[str, str]:
    """Name → what the ``Args:`` of a docstring say of it, in one line."""
    found: dict[str, str] = {}
    inside, names = False, []
    for line in doc.splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and line and not line.startswith(" "):
            break
        elif inside and line.startswith("    ") and not line.startswith("     "):
            head, _, text = line.strip().partition(":")
            names = [n.strip() for n in head.split(",")]
            found |= dict.fromkeys(names, text.strip())
        elif inside and line.strip():
            found |= {n: f"{found.get(n, '')} {line.strip()}".strip() for n in names}
    return found
