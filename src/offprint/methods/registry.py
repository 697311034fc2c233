"""Methods that act on a training, by name: one way in for all of them.

``offprint train --method NAME``, ``--method NAME:KEY=VALUE,KEY=VALUE``, ``offprint.train(..., methods=[...])`` and ``offprint methods [NAME]``.

**To add one**, put into its paper's file in ``methods/training/``::

    @register_method
    @dataclass(kw_only=True)
    class GradientNoiseMethod(Method):
        \"\"\"Adds decaying Gaussian noise to the gradients.

        Args:
            eta: variance of the first update's noise.
        \"\"\"

        name = "gradient-noise"
        paper = "gradient-noise"
        kind = "callback"
        changes = "the gradients, before the optimizer sees them"
        excludes = {"other-method": "why the two cannot act on one training"}

        eta: float = 0.01

        def callbacks(self, job):
            return [GradientNoiseCallback(eta=self.eta)]

- The fields are the options, each with a default (``None`` where it must be given: refuse it in ``settle``), plain data (numbers, text,
  true or false, tuples of them), with a line each under ``Args:`` of the class docstring; ``offprint methods NAME`` shows them, the
  command line reads them by their types, and the run's folder keeps them, so that a resume makes the same object again.
  Check values in ``__post_init__``. Keep what is of one run in attributes that are no fields, made in ``network``, ``module`` or ``data``.
- ``kind`` is one of ``callback`` (acts through Lightning's hooks), ``module`` (changes the network or the training step), ``data`` (changes
  the data or the labels) and ``task`` (a pre-training task: ``task`` is the name of a registered :class:`~offprint.tasks.contract.Task`, and
  ``choices()`` are passed to it).
- What it does, it does in the hooks of :class:`offprint.tasks.hooks.Hooks`, which says when each is called; define those you need.
  A loss is added, or replaced, by :func:`offprint.tasks.hooks.around_step` in ``module``; another architecture is ``reshape`` with
  ``reshapes = True``, which is asked again when the run is loaded.
- ``excludes`` names methods and why; one side says it for both. ``replaces`` names what only one method can put its own in the place of
  (``"labels"``, ``"loss"``, ``"task"``, ...): two that replace the same exclude each other without naming one another.
- Everything not excluded must train together: ``tests/test_methods.py`` trains each allowed pair. A method that needs an option to run
  (a guide, a file of labels) says how to be tried there in ``TRIALS`` of that test.

Packages from outside add their own through the entry point group ``offprint.rooms`` (see :mod:`offprint.api`).
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, TypeVar

from offprint.errors import OffprintError, unknown
from offprint.tasks.contract import Choice, choices
from offprint.tasks.hooks import Hooks, distinct

KINDS = {
    "callback": "acts through the training's hooks",
    "module": "changes the network or the training step",
    "data": "changes the data or the labels",
    "task": "a pre-training task",
}


class Method(Hooks):
    """Base of the methods; see the module for how one is made.

    Attributes:
        paper: slug in the catalogue.
        kind: one of ``KINDS``.
        changes: what it changes, completing "changes ...".
        excludes: name of another method → why the two cannot act on one training.
        replaces: what it puts its own in the place of.
    """

    paper: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    changes: ClassVar[str] = ""
    excludes: ClassVar[Mapping[str, str]] = {}
    replaces: ClassVar[tuple[str, ...]] = ()

    def options(self) -> dict[str, Any]:
        """The options with their values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def record(self) -> dict[str, Any]:
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options().items()}
        return {"name": self.name, **plain}


_methods: dict[str, type[Method]] = {}
_rooms: list[str] = ["offprint.methods.training"]
_seen: set[str] = set()
M = TypeVar("M", bound=type[Method])


def register_method(method: M) -> M:
    """Enter a method under its name (a class decorator).

    Raises:
        OffprintError: it does not say what the registry must know, or its name is taken.
    """
    for attribute in ("name", "paper", "kind", "changes"):
        if not getattr(method, attribute):
            raise OffprintError(f"the method {method.__name__} lacks {attribute!r}")
    if method.kind not in KINDS:
        raise unknown("kind of method", method.kind, KINDS)
    if not dataclasses.is_dataclass(method):
        raise OffprintError(f"the method {method.__name__} is no dataclass; its fields are its options")
    held = _methods.get(method.name)
    if held is not None and held.__qualname__ != method.__qualname__:
        raise OffprintError(f"two methods have the name {method.name!r}: {held.__name__} and {method.__name__}")
    _methods[method.name] = method
    return method


def add_room(package: str) -> None:
    """Let methods be found in another package too."""
    if package not in _rooms:
        _rooms.append(package)


def methods() -> dict[str, type[Method]]:
    """All methods by name."""
    for room in _rooms:
        if room not in _seen:
            _seen.add(room)
            root = importlib.import_module(room)
            for info in pkgutil.walk_packages(getattr(root, "__path__", ()), room + "."):
                importlib.import_module(info.name)
    return dict(sorted(_methods.items()))


def method(name: str) -> type[Method]:
    """The method of this name; an unknown one is refused with the nearest."""
    found = methods()
    if name not in found:
        raise unknown("method", name, found)
    return found[name]


def offers(of: type[Method]) -> dict[str, Choice]:
    """The options of a method by name, with types, defaults and a line each."""
    return choices(of)


def excluded(a: type[Method], b: type[Method]) -> str:
    """Why two methods cannot act on one training; ``""`` where they can."""
    for one, other in ((a, b), (b, a)):
        if other.name in one.excludes:
            return one.excludes[other.name]
    if shared := [what for what in a.replaces if what in b.replaces]:
        return f"both replace the {' and the '.join(shared)}"
    if a.task and b.task:
        return "each brings a task of its own"
    return ""


def make(given: Any) -> Method:
    """A method from ``"NAME"``, ``"NAME:KEY=VALUE,..."``, a mapping with ``name``, or an object of one.

    In text, an item without ``=`` goes on with the list before it: ``parts=backbone,neck``.

    Raises:
        OffprintError: no such method, no such option, or a value of another kind.
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, str):
        name, _, words = given.partition(":")
        found = method(name.strip())
        return found(**_read(found, words))
    if isinstance(given, Mapping) and "name" in given:
        found = method(given["name"])
        known, rest = offers(found), {k: v for k, v in given.items() if k != "name"}
        for key in rest:
            if key not in known:
                raise _no_option(found, key)
        return found(**{k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()})
    raise OffprintError(
        f"{given!r} is no method; give a name (offprint methods), 'NAME:KEY=VALUE,...', a mapping with 'name', or an object of a method"
    )


def _no_option(of: type[Method], key: str) -> OffprintError:
    known = offers(of)
    if not known:
        return OffprintError(f"the method {of.name} has no options; {key!r} was given")
    return unknown(f"option of the method {of.name}", key, known)


def _read(of: type[Method], words: str) -> dict[str, Any]:
    known, texts, key = offers(of), {}, ""
    for item in filter(None, (part.strip() for part in words.split(","))):
        name, sign, value = item.partition("=")
        if sign:
            key = name.strip().replace("-", "_")
            if key not in known:
                raise _no_option(of, key)
            texts.setdefault(key, []).append(value.strip())
        elif key:
            texts[key].append(item)
        else:
            raise OffprintError(f"--method {of.name}:{words}: {item!r} is not of the form KEY=VALUE")
    read: dict[str, Any] = {}
    for key, values in texts.items():
        choice = known[key]
        if len(values) > 1 and not choice.many:
            raise OffprintError(f"the method {of.name} takes one {key}; {','.join(values)} was given")
        none = choice.default is None and values[0].lower() == "none"
        made = [None if none else _value(of, choice, text) for text in values]
        read[key] = tuple(made) if choice.many and not none else made[0]
    return read


def _value(of: type[Method], choice: Choice, text: str) -> Any:
    try:
        return choice.read(text)
    except OffprintError as error:
        expected = str(error).rpartition("expected ")[2]
        raise OffprintError(f"the method {of.name}: {choice.name}={text}; expected {expected}") from error


def resolve(given: Sequence[Any]) -> list[Hooks]:
    """Methods as objects, in the order given.

    Raises:
        OffprintError: as for :func:`make`; two that exclude each other, with the reason.
    """
    found: list[Hooks] = [make(item) for item in given]
    distinct(found)
    for a, b in combinations([type(m) for m in found if isinstance(m, Method)], 2):
        if why := excluded(a, b):
            raise OffprintError(f"the methods {a.name} and {b.name} exclude each other: {why}; leave one out")
    return found
