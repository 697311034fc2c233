"""Checks one golden record, or one case, against the public interface, in the precision in which it was taken.

A model or part record is rebuilt from its `api` field: built, filled from a file in the reference names through the
checkpoint reader, moved to the record's precision, called, compared. What words in the record describe (`custom: ...` calls,
cases) stands beside the record in `SLUG/adapter.py`, which takes every number from the record it is given (`reading.py`):

    CALLS = {"custom: ...": function(model, record, *inputs) -> outputs}
    CASES = {record stem: function(record) -> list of (label, got, expected, tolerance)}
    PARAMETERS = {record stem: function(record) -> count}   # where the reference holds parameters that ours does not
    WORDS = {record stem: {words of the notes, or "inputs.NAME": why their numbers are no setting of the adapter}}
    SMALL = {model name: kwargs}           # backbones: one variant per class, small, for the properties in test_models.py

The tolerance of a row is for a case in float32; where the case was taken in double, or states its own tolerance, that holds.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE)) if str(HERE) not in sys.path else None
import golden  # noqa: E402
from reading import precision  # noqa: E402

LIBRARY = f"{HERE.parents[1] / 'src' / 'offprint'}{os.sep}"
NARROW = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)

RECORDS = sorted(p for p in HERE.glob("*/*.json"))
CALLS = {
    "forward": lambda model, record, *x: model(*x),
    "forward_features": lambda model, record, *x: model.forward_features(*x),
    "features": lambda model, record, *x: model(*x),
}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def adapter(slug: str):
    file = HERE / slug / "adapter.py"
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"golden_adapter_{slug.replace('-', '_')}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(record: dict) -> torch.nn.Module:
    import offprint

    api = record["api"]
    if "part" in api:
        return named(api["part"])(**api["kwargs"])
    return offprint.create_model(
        api["model"], **{k: tuple(v) if isinstance(v, list) else v for k, v in api["kwargs"].items()}
    )


def named(path: str):
    """The object of this dotted name."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def loaded(record: dict):
    """The model or part of a record with the record's weights, in its precision; and what the checkpoint reader reports."""
    import safetensors.numpy

    import offprint

    model = build(record)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        safetensors.numpy.save_file(golden.state_dict(record), file)
        report = offprint.load_weights(model, file)
    return model.eval().to(precision(record)), report


def results(record: dict, beside, model: torch.nn.Module):
    """What the calls of a record give."""
    tensors = [torch.from_numpy(x.astype(golden.dtype(record))) for x in golden.inputs(record)]
    own, found = getattr(beside, "CALLS", {}), []
    with torch.no_grad():
        for call in record["api"]["calls"]:
            function = own.get(call) or CALLS.get(call)
            if function is None:
                raise KeyError(f"{record['paper']}/adapter.py must say how to do {call!r}")
            found.append(function(model, record, *tensors))
    return found[0] if len(found) == 1 else found


def check_model(path: Path) -> tuple[list[str], float]:
    """What disagrees, in words, and the largest relative difference."""
    record, beside = golden.load(path), adapter(path.parent.name)
    model, report = loaded(record)
    errors = []
    fresh = [n for n in report.fresh if n not in record["kept_as_built"]]
    if fresh:
        errors.append(f"left as initialised: {', '.join(fresh[:5])}")
    count = getattr(beside, "PARAMETERS", {}).get(path.stem)
    expected = count(record) if count else record.get("parameters")
    if expected:
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if expected != count:
            errors.append(f"{count} parameters, the reference has {expected}")
    with Precision() as seen:
        found = results(record, beside, model)
    if precision(record) == torch.float64 and seen.narrow:
        errors += [f"computed in {kind}: {where}" for where, kind in list(seen.narrow.items())[:5]]
    worst = 0.0
    for (label, value), expected in zip(golden.flatten(found), record["outputs"], strict=False):
        if list(value.shape) == expected["shape"]:
            got = golden.summary(label, value, digits=13)["values"]
            scale = max(expected["absmax"], 1e-12)
            worst = max(worst, max(abs(a - b) for a, b in zip(got, expected["values"], strict=True)) / scale)
    return errors + golden.compare(record, found), worst


def _difference(got, expected) -> float:
    """Largest difference relative to the largest expected value; infinite where shapes or missing values differ."""
    if expected is None:
        return 0.0 if got is None or (isinstance(got, float) and np.isnan(got)) else float("inf")
    if isinstance(expected, str):
        return 0.0 if got == expected else float("inf")
    try:
        a = np.asarray(got.detach().cpu() if hasattr(got, "detach") else got, dtype=np.float64)
        b = np.asarray(expected, dtype=np.float64)
    except (TypeError, ValueError):
        return 0.0 if got == expected else float("inf")
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    if a.size == 0:
        return 0.0
    return float(np.nanmax(np.abs(a - b)) / max(float(np.nanmax(np.abs(b))), 1e-12))


class Precision(TorchDispatchMode):
    """While it is open: which operations of the library gave values in less than double, by the line that asked for them.

    Left out is what float32 there is by right: a network built and loaded before it is moved, data as its files hold it, and the
    counters of steps in torch's optimizers.
    """

    def __init__(self):
        super().__init__()
        self.narrow: dict[str, torch.dtype] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor) and value.dtype in NARROW and value.numel() and (line := _line(value)):
                self.narrow.setdefault(f"{function} at {line}", value.dtype)
        return out


def _line(value: torch.Tensor) -> str | None:
    """The innermost line of the library that is running; ``None`` for what is left out."""
    frame, found = sys._getframe(2), None
    while frame is not None:
        code = frame.f_code
        if not value.ndim and f"{os.sep}torch{os.sep}optim{os.sep}" in code.co_filename:
            return None
        if code.co_filename.startswith(LIBRARY):
            if code.co_name.startswith("load_"):
                return None
            if code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), torch.nn.Module):
                return None
            found = found or f"{Path(code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return found


class Touched:
    """While it is open: which functions of the library were called. A case that calls none compares others with others."""

    def __init__(self):
        self.seen = set()

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(LIBRARY):
            self.seen.add(code)  # bodies of modules and classes, which an import runs, are not optimised

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)


def check_case(path: Path) -> tuple[list[str], float]:
    """What disagrees in a case, in words, and the largest relative difference."""
    record, beside = golden.load(path), adapter(path.parent.name)
    return compare_case(record, beside.CASES[path.stem])


def compare_case(record: dict, function, own: float | None = ...) -> tuple[list[str], float]:
    """The same of a record and the function that computes it; ``own`` is the record's tolerance, ``None`` for that of each row."""
    if own is ...:
        own = record.get("tolerance") or (golden.TOLERANCE_64 if golden.dtype(record) == "float64" else None)
    with Touched() as touched:
        rows = list(function(record))
    if not rows:
        return ["the adapter compared nothing"], float("inf")
    if not touched.seen:
        return ["the adapter called nothing of the library"], float("inf")
    errors, worst = [], 0.0
    for label, got, expected, tolerance in rows:
        allowed = own if own and tolerance else tolerance  # where a row allows nothing, nothing is allowed
        off = _difference(got, expected)
        worst = max(worst, off)
        if not off <= allowed:
            errors.append(f"{label}: off by {off:.2e} ({allowed:.0e} allowed)")
    return errors, worst


def check(path: Path) -> tuple[list[str], float]:
    """What disagrees in a record or a case, in words, and the largest relative difference."""
    return (check_model if "state" in golden.load(path) else check_case)(path)
