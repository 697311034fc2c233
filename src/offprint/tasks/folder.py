"""The folder of a run: what it is, the state of an unfinished run, the model and the figures of a finished one."""

from __future__ import annotations

import io
import json
import os
import platform
import time
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from offprint.errors import OffprintError
from offprint.files import atomic_write, local_path

SETTINGS, SUMMARY, WEIGHTS, LAST = "settings.json", "summary.json", "model.safetensors", "last.ckpt"
_OLDER = ("pretraining.json", "brain.json")  # names that SETTINGS had for some tasks in version 0.1
SAVE_EVERY = 10.0  # seconds between two states of a run that has no epochs to count by


def versions() -> dict[str, str]:
    """Of what a run rests on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("offprint", "torch", "torchvision", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_run(where: str | Path) -> bool:
    """Whether this is the folder of a run, finished or not."""
    return any((Path(where) / name).is_file() for name in (SETTINGS, *_OLDER))


def read_about(where: str | Path) -> dict[str, Any]:
    """What a run says of itself.

    Raises:
        OffprintError: no folder of a run, or a damaged one.
    """
    folder = Path(where)
    for name in (SETTINGS, *_OLDER):
        if (folder / name).is_file():
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise OffprintError(f"{folder / name} is damaged ({error}); train again with --no-resume") from error
            if not isinstance(found, dict):
                raise OffprintError(f"{folder / name} holds no settings; train again with --no-resume")
            if "task" not in found:
                found["task"] = _task_of_older(name, found)
            return found
    raise OffprintError(f"{folder} is not the folder of a run (no {SETTINGS}); give one, or the name of a model")


def _task_of_older(name: str, found: Mapping[str, Any]) -> str:
    """The task of a folder that was written before folders said it."""
    if name == "pretraining.json":
        return "pretraining"
    if name == "brain.json":
        return "connectivity" if "target" in found else "connectivity-pretraining"
    if "classes" in found:
        return "classification"
    return "recommendation" if "data_digest" in found else "forward-learning"


class RunFolder:
    """A folder that an interrupted run goes on from.

    Args:
        path: the folder; it is made. ``None`` keeps nothing.
        about: what the run is: everything that decides its result. A run with another value is not gone on with.
        resume: go on from what lies there; else start over.
        told: what is written down beside it and may differ (versions).
        free: names, in ``about`` or in its mappings, that may differ (a finished run goes on with more ``epochs``).
        made: files of a run, removed when it starts over.

    Raises:
        OffprintError: the folder holds a run with other settings.
    """

    def __init__(
        self,
        path: str | Path | None,
        about: Mapping[str, Any],
        resume: bool = True,
        *,
        told: Mapping[str, Any] | None = None,
        free: Iterable[str] = ("epochs",),
        made: Iterable[str] = (),
    ):
        self.path = None if path is None else local_path(path, "the folder of a run").absolute()
        self._saved = time.monotonic()
        if self.path is None:
            return
        self.writes = os.environ.get("LOCAL_RANK", "0") == "0"  # of several processes on a machine the first one writes
        self.path.mkdir(parents=True, exist_ok=True)
        about, free = json.loads(json.dumps(about)), set(free)
        begun = any((self.path / name).exists() for name in (LAST, "state.pt", WEIGHTS))
        if resume and begun and is_run(self.path):
            before = read_about(self.path)
            differing = changed(before, about, free)
            if differing:
                raise OffprintError(
                    f"{self.path} holds a run with another {', '.join(differing)}; resume it with the same settings, "
                    "choose another --out, or pass --no-resume to start over"
                )
        elif self.writes:
            for name in (LAST, "state.pt", "best.ckpt", WEIGHTS, SUMMARY, *_OLDER, *made):
                (self.path / name).unlink(missing_ok=True)
        if self.writes:
            atomic_write(self.path / SETTINGS, json.dumps({**about, **(told or {}), "versions": versions()}, indent=1))

    def __truediv__(self, name: str) -> Path:
        if self.path is None:
            raise OffprintError("this run has no folder; give out=")
        return self.path / name

    @property
    def last(self) -> Path:
        """The newest checkpoint; it is there when the run goes on."""
        return self / LAST

    def due(self) -> bool:
        """Whether a state should be written now."""
        return self.path is not None and time.monotonic() - self._saved >= SAVE_EVERY

    def write_state(self, **state: Any) -> None:
        """Keep the state of an unfinished run, whole or not at all."""
        if self.path is not None:
            import torch

            buffer = io.BytesIO()
            torch.save(state, buffer)
            atomic_write(self.path / "state.pt", buffer.getvalue())
            self._saved = time.monotonic()

    def read_state(self) -> dict[str, Any] | None:
        """What :meth:`write_state` kept, or nothing."""
        from offprint.models.checkpoint import read_file

        file = None if self.path is None else self.path / "state.pt"
        return read_file(file) if file is not None and file.is_file() else None

    def drop_state(self) -> None:
        """The run is finished: its state is not needed any more."""
        if self.path is not None:
            (self.path / "state.pt").unlink(missing_ok=True)

    def summary(self) -> dict[str, Any] | None:
        """The figures of a finished run, or nothing."""
        file = None if self.path is None else self.path / SUMMARY
        return json.loads(file.read_text()) if file is not None and file.is_file() else None

    def write_summary(self, figures: Mapping[str, Any]) -> None:
        if self.path is not None:
            atomic_write(self.path / SUMMARY, json.dumps(figures, indent=1))


def changed(before: Mapping[str, Any], about: Mapping[str, Any], free: Container[str] = ()) -> list[str]:
    """Names that differ; within a mapping, the names in it."""
    found = []
    for name, value in about.items():
        if name in free:
            continue
        old = before.get(name, [] if name == "methods" else None)  # runs of version 0.2 say nothing of methods
        if isinstance(value, dict) and isinstance(old, dict):
            inner = [k for k in {**old, **value} if k not in free and old.get(k) != value.get(k)]
            found += [f"{name} ({', '.join(sorted(inner))})"] if inner else []
        elif value != old and not (name == "task" and old is None):
            found.append(name)
    return found
