"""Checks one golden record, or one case, against the public interface.

A model or part record is rebuilt from its `api` field: built, filled from a file in the reference names through the
checkpoint reader, called, compared. What words in the record describe (`custom: ...` calls, cases) stands beside the record
in `SLUG/adapter.py`:

    CALLS = {"custom: ...": function(model, record, *inputs) -> outputs}   # or {record stem: ...} for one record's custom calls
    BUILD = {record stem: function(record) -> module}                      # for what the kwargs of a part cannot say
    CASES = {record stem: function(record) -> list of (label, got, expected, tolerance)}
    PARAMETERS = {record stem: count}      # where the reference holds parameters that it never uses, and ours does not
    SMALL = {model name: kwargs}           # backbones: one variant per class, small, for the properties in test_models.py
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE)) if str(HERE) not in sys.path else None
import golden  # noqa: E402

RECORDS = sorted(p for p in HERE.glob("*/*.json"))
CALLS = {
    "forward": lambda model, record, *x: model(*x),
    "forward_features": lambda model, record, *x: model.forward_features(*x),
    "features": lambda model, record, *x: model(*x),
}


@contextmanager
def one_thread():
    """As the records were taken. Another number of threads sums in another order, and with weights as random as a record's some
    networks (saturated gates, close singular values, fifty layers) turn the last bit of a sum into another answer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def build(record: dict, stem: str, beside) -> torch.nn.Module:
    api = record["api"]
    own = getattr(beside, "BUILD", {})
    if stem in own:
        return own[stem](record)
    if "part" in api:
        module, _, attribute = api["part"].rpartition(".")
        return getattr(importlib.import_module(module), attribute)(**api["kwargs"])
    import offprint

    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in api["kwargs"].items()}
    return offprint.create_model(api["model"], **kwargs)


def check_model(path: Path) -> tuple[list[str], float]:
    """What disagrees, in words, and the largest relative difference."""
    import safetensors.numpy

    import offprint

    record, beside = golden.load(path), adapter(path.parent.name)
    own = getattr(beside, "CALLS", {})
    tensors = [torch.from_numpy(x) for x in golden.inputs(record)]
    model = build(record, path.stem, beside)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        safetensors.numpy.save_file(golden.state_dict(record), file)
        report = offprint.load_weights(model, file)
    errors = []
    fresh = [n for n in report.fresh if n not in record["kept_as_built"]]
    if fresh:
        errors.append(f"left as initialised: {', '.join(fresh[:5])}")
    expected = getattr(beside, "PARAMETERS", {}).get(path.stem, record.get("parameters"))
    if expected:
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if expected != count:
            errors.append(f"{count} parameters, the reference has {expected}")
    model.eval()
    results = []
    with torch.no_grad():
        for call in record["api"]["calls"]:
            function = own.get(call) or own.get(path.stem) or CALLS.get(call)
            if function is None:
                raise KeyError(f"{path.parent.name}/adapter.py must say how to do {call!r}")
            results.append(function(model, record, *tensors))
    results = results[0] if len(results) == 1 else results
    worst = 0.0
    for (label, value), expected in zip(golden.flatten(results), record["outputs"], strict=False):
        if list(value.shape) == expected["shape"]:
            got = golden.summary(label, value)["values"]
            scale = max(expected["absmax"], 1e-12)
            worst = max(worst, max(abs(a - b) for a, b in zip(got, expected["values"], strict=True)) / scale)
    return errors + golden.compare(record, results), worst


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


def check_case(path: Path) -> tuple[list[str], float]:
    """What disagrees in a case, in words, and the largest relative difference."""
    record, beside = golden.load(path), adapter(path.parent.name)
    rows = list(beside.CASES[path.stem](record))
    if not rows:
        return ["the adapter compared nothing"], float("inf")
    errors, worst = [], 0.0
    for label, got, expected, tolerance in rows:
        off = _difference(got, expected)
        worst = max(worst, off)
        if not off <= tolerance:
            errors.append(f"{label}: off by {off:.2e} ({tolerance:.0e} allowed)")
    return errors, worst


def check(path: Path) -> tuple[list[str], float]:
    """What disagrees in a record or a case, in words, and the largest relative difference."""
    with one_thread():
        return (check_model if "state" in golden.load(path) else check_case)(path)
