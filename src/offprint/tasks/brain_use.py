"""Trained models of brain scans in use: reading a run or a weight file, embeddings, predictions, attention."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offprint.data.brain_series import Labels, Scans, open_series
from offprint.errors import CheckpointError, DataError, OffprintError, unknown
from offprint.files import atomic_write, local_path
from offprint.models.checkpoint import load_weights, read_file, unwrap
from offprint.models.factory import create_model
from offprint.models.graphs.fmri_ssl import STAGIN, BrainEncoder
from offprint.tasks.folder import WEIGHTS, is_run, read_about

SHARED = ("num_regions", "hidden_dim", "num_layers", "sparsity", "window", "stride")  # what fine-tuning takes over


def digest(scans: Scans, labels: Labels | None = None) -> str:
    seen = hashlib.sha256("\n".join(scans.ids).encode())
    for x in scans.series:
        seen.update(np.ascontiguousarray(x))
    if labels is not None:
        seen.update(labels.values.tobytes() + "\n".join(labels.classes).encode())
    return seen.hexdigest()[:16]


def batches(scans: Scans, size: int) -> list[list[int]]:
    """Indices in batches of scans of one length each."""
    by_length: dict[int, list[int]] = {}
    for i, x in enumerate(scans.series):
        by_length.setdefault(len(x), []).append(i)
    return [group[j : j + size] for group in by_length.values() for j in range(0, len(group), size)]


def stack(scans: Scans, index: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.stack([scans.series[i] for i in index]))


@torch.no_grad()
def each(
    model: nn.Module, scans: Scans, size: int, call: Callable, skip: Container[str] = ()
) -> Iterator[tuple[list[int], Any]]:
    """(indices, result) of whole scans, batch by batch; batches whose scans are all in ``skip`` are left out."""
    device = next(model.parameters()).device
    for group in batches(scans, size):
        if skip and all(scans.ids[i] in skip for i in group):
            continue
        result = call(stack(scans, group).to(device), whole=True)
        yield group, result.cpu() if isinstance(result, Tensor) else result


def find_weights(weights: str | Path) -> Path:
    path = Path(weights)
    if not path.exists():
        raise CheckpointError(
            f"no run and no weight file at {str(path)!r}; give the folder of a finished run, or a weight file"
        )
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise CheckpointError(
                f"{path.parent} holds no model.safetensors; give the folder of a finished run, or a weight file"
            )
    return path


def describe(weights: str | Path, **options: Any) -> dict[str, Any]:
    """What a weight file is: from what its run says of itself, else from the shapes of its tensors."""
    path = find_weights(weights)
    if path.name == WEIGHTS and is_run(path.parent):
        spec = read_about(path.parent)
        if not spec["task"].startswith("connectivity"):
            raise CheckpointError(f"{path.parent} is a run of the task {spec['task']}; expected one on brain scans")
        if spec["task"] == "connectivity-pretraining":
            spec["model"] = "encoder"
    else:
        state = unwrap(read_file(path), str(path))
        found = next((k for k in state if re.search(r"(^|\.)initial_linear\.weight$", k)), None)
        if found is None:
            raise CheckpointError(
                f"{path} is no encoder of scans: it lacks initial_linear.weight; its first names: {', '.join(list(state)[:3])}"
            )
        prefix = found.removesuffix("initial_linear.weight")
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        hidden, width = state["initial_linear.weight"].shape
        layers = len({k.split(".")[1] for k in state if k.startswith("gnn_layers.")})
        spec = {
            "model": "encoder",
            "options": {"num_regions": width - hidden, "hidden_dim": hidden, "num_layers": layers},
        }
        if "linear_layers.0.weight" in state:
            garo, sero = (f"readout_modules.0.{n}.weight" in state for n in ("embed_key", "attend"))
            spec["model"] = "stagin"
            spec["options"] |= {
                "num_classes": state["linear_layers.0.weight"].shape[0],
                "readout": "garo" if garo else "sero" if sero else "mean",
                "cls_token": "param" if "token_parameter" in state else "sum",
            }
    spec["options"] |= options
    spec["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return spec


def load_encoder(model: BrainEncoder, weights: str | Path) -> None:
    """Put the pre-trained GRU, input layer and GIN layers into a model; what else it has keeps its values."""
    path = find_weights(weights)
    m = model
    encoder = BrainEncoder(m.num_regions, m.hidden_dim, m.num_layers, m.sparsity, m.window, m.stride, m.length)
    load_weights(encoder, path)
    model.load_state_dict({**model.state_dict(), **encoder.state_dict()})


def load_run(weights: str | Path, **options: Any) -> tuple[BrainEncoder, dict[str, Any]]:
    """A model in eval mode, from the folder of a run or a weight file, and what is known of it.

    Args:
        weights: folder of a pre-training or fine-tuning run, or a file in STAGIN's names.
        options: arguments of the model that its tensors do not show (``num_heads``, ``window``, ``stride``, ``cls_token``).
    """
    spec = describe(weights, **options)
    if spec["model"] == "encoder":
        kept = {k: v for k, v in spec["options"].items() if k in (*SHARED, "length")}
        model: BrainEncoder = BrainEncoder(**kept)
    else:
        model = create_model(spec["model"], **spec["options"])
    load_weights(model, find_weights(weights))
    return model.eval(), spec


def _vectors(model: BrainEncoder) -> Callable:
    """Scans to one vector each: the latent vectors of a fine-tuned model, the mean embedding of a pre-trained encoder."""
    if isinstance(model, STAGIN):
        return lambda series, whole: model.details(series, whole=whole).latent.flatten(1)
    return model.__call__


def fitting(source: Any, model: BrainEncoder, weights: Any) -> Scans:
    """Scans that this model reads; others are refused."""
    scans = open_series(source, window=model.window)
    if scans.num_regions != model.num_regions:
        raise DataError(
            f"the scans have {scans.num_regions} regions, {weights} was trained on {model.num_regions}; "
            "use scans of the same parcellation"
        )
    return scans


def embed(
    source: Any, weights: str | Path, *, batch_size: int = 4, **options: Any
) -> tuple[tuple[str, ...], np.ndarray]:
    """One vector per scan (S, layers * H), in eval mode and over the whole scan.

    Args:
        source: what :func:`offprint.data.brain_series.open_series` takes.
        weights: see :func:`load_run`, also for ``options``.
    """
    model, _ = load_run(weights, **options)
    scans = fitting(source, model, weights)
    out = np.empty((len(scans), model.num_layers * model.hidden_dim), np.float32)
    for group, vectors in each(model, scans, batch_size, _vectors(model)):
        out[group] = vectors
    return scans.ids, out


def attention(source: Any, weights: str | Path, **options: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a fine-tuned model looks at: id → (over regions (layers, W, N), over time (layers, W, W)).

    Over time, row w says how much window w takes from each window; over regions, how much each counts in a window's readout.
    """
    model, _ = load_run(weights, **options)
    if not isinstance(model, STAGIN):
        raise OffprintError(
            f"{weights} is a pre-trained encoder, which has no attention; give the folder of a fine-tuning"
        )
    scans = fitting(source, model, weights)
    found = {}
    for group, out in each(model, scans, 1, model.details):
        found[scans.ids[group[0]]] = (out.node_attention[0].numpy(), out.time_attention[0].numpy())
    return {i: found[i] for i in scans.ids}


def head_of(target: str, classes: Sequence[str]) -> list[str]:
    return ["subject", target, *(f"p_{c}" for c in classes)]


def rows_of(
    ids: Sequence[str], logits: Tensor, classes: Sequence[str], scale: tuple[float, float]
) -> Iterator[list[str]]:
    if classes:
        for name, p in zip(ids, logits.softmax(1), strict=True):
            yield [name, classes[int(p.argmax())], *(f"{v:.6f}" for v in p.tolist())]
    else:
        for name, value in zip(ids, logits.squeeze(-1).tolist(), strict=True):
            yield [name, f"{value * scale[1] + scale[0]:.6g}"]


def mark_of(scans: Scans) -> list[str]:
    """A last column for tables made from data that are not measurements: "SIMULATED, not measured"."""
    return [scans.about.partition(":")[0]] if scans.about else []


def csv_text(rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_table(
    source: Any,
    weights: str | Path,
    out: str | Path,
    *,
    what: str = "embeddings",
    batch_size: int = 4,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Embeddings or predictions of scans as a CSV, a line per scan.

    Lines are kept in ``OUT.part`` while they are made; the same call goes on from there after an interruption.

    Args:
        source, weights, options: see :func:`embed`.
        out: the CSV; with simulated scans its last column says so.
        what: ``embeddings``, or ``predictions`` of a fine-tuned model.
        resume: use the lines of an interrupted call.
        progress: called with (done, total).

    Returns:
        ``rows``, ``columns`` (both without the ids), ``data`` and ``trained_on`` (what the scans' source, and that of the
        weights, says of itself).
    """
    model, spec = load_run(weights, **options)
    classes = spec.get("classes", [])
    if what not in ("embeddings", "predictions"):
        raise unknown("table", what, ("embeddings", "predictions"))
    if what == "predictions" and "scale" not in spec:
        raise OffprintError(
            f"{weights} is not the folder of a fine-tuning, so its outputs have no names; use embeddings"
        )
    scans, out = fitting(source, model, weights), Path(out)
    if what == "predictions":
        head, call = head_of(spec["target"], classes), model.__call__
    else:
        head, call = ["subject", *(f"e{i}" for i in range(model.num_layers * model.hidden_dim))], _vectors(model)
    mark = mark_of(scans)
    key = json.dumps([what, spec["sha256"], spec["options"], digest(scans), head + mark], sort_keys=True)
    out = local_path(out, "a table")
    part = out.with_name(f".{out.name}.part")
    done = _kept(part, key) if resume else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(part, csv_text([[key], *done.values()]))
    with part.open("a", encoding="utf-8", newline="") as stream:
        for group, result in each(model, scans, batch_size, call, done):
            ids = [scans.ids[i] for i in group]
            if what == "predictions":
                rows = list(rows_of(ids, result, classes, spec["scale"]))
            else:
                rows = [[name, *(f"{v:.7g}" for v in row)] for name, row in zip(ids, result.tolist(), strict=True)]
            stream.write(csv_text([*row, *mark] for row in rows))
            stream.flush()
            done |= {row[0]: [*row, *mark] for row in rows}
            if progress:
                progress(len(done), len(scans))
    atomic_write(out, csv_text([head + ["source"] * bool(mark), *(done[i] for i in scans.ids)]))
    part.unlink(missing_ok=True)
    return {"rows": len(scans), "columns": len(head) - 1, "data": scans.about, "trained_on": spec.get("data", "")}


def _kept(part: Path, key: str) -> dict[str, list[str]]:
    """Finished lines of an interrupted call by id, if it was the same call; a line cut short is left out."""
    if not part.is_file():
        return {}
    text = part.read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    return {row[0]: row for row in rows[1:]} if rows and rows[0] == [key] else {}
