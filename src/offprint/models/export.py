"""Models as files for other runtimes, checked against the model they came from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError, need, unknown
from offprint.files import local_path
from offprint.models.deploy import _tensors, deploy, example_input

FORMATS = ("onnx", "torch-export")


def export_model(
    model: nn.Module,
    path: str | Path,
    format: str = "onnx",
    *,
    sample: Tensor | None = None,
    merge: bool = True,
    dynamic: Sequence[str] = ("batch",),
    tolerance: float = 1e-3,
) -> float:
    """Write a model for another runtime; the input is called ``input``, the outputs ``output``, or ``output_0``, ``output_1``, ...

    Args:
        model: in evaluation mode.
        path: file to write; written whole or not at all.
        format: ``"onnx"`` (opset 18 or newer, checked with onnxruntime) or ``"torch-export"`` (a ``.pt2`` program).
        sample: example input; default the model's own shape.
        merge: deploy the model first.
        dynamic: which sizes stay free: ``batch``, ``height``, ``width`` (and ``depth`` of a volume).
        tolerance: largest allowed difference, relative to the largest output.

    Returns:
        The largest relative difference that was seen.

    Raises:
        OffprintError: unknown format, or the exported model computes something else (then nothing is written).
    """
    if format not in FORMATS:
        raise unknown("export format", format, FORMATS)
    if model.training:
        raise OffprintError("the model is in training mode; call model.eval() first")
    sample = example_input(model) if sample is None else sample
    axes = _axes(sample, dynamic)
    model = deploy(model, sample) if merge else model
    path = local_path(path, "an exported model")
    path.parent.mkdir(parents=True, exist_ok=True)
    two = torch.cat([sample, sample.flip(-1)])
    with torch.no_grad():
        expected = _tensors(model(two))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        part = Path(folder) / path.name
        free = ({axis: torch.export.Dim.DYNAMIC for axis in axes},)
        with torch.no_grad():
            try:
                program = torch.export.export(model, (two,), dynamic_shapes=free, strict=False)
            except (
                torch.fx.experimental.symbolic_shapes.ConstraintViolationError,
                torch._dynamo.exc.UserError,
            ) as error:
                raise OffprintError(
                    f"{type(model).__name__} cannot be exported with free {', '.join(dynamic)}: it settles a size when it is traced "
                    f"({str(error).splitlines()[0]}); leave it out of dynamic (--dynamic batch), and export one file per size"
                ) from error
        if format == "onnx":
            need("onnxscript", "export", "exporting to ONNX")
            runtime = need("onnxruntime", "export", "checking an ONNX file")
            names = ["output"] if len(expected) == 1 else [f"output_{i}" for i in range(len(expected))]
            torch.onnx.export(
                program, (two,), str(part), dynamo=True, verbose=False, external_data=False, input_names=["input"],
                output_names=names,
            )  # fmt: skip
            session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
            got = [torch.from_numpy(v) for v in session.run(None, {session.get_inputs()[0].name: two.numpy()})]
        else:
            torch.export.save(program, part)
            with torch.no_grad():
                got = _tensors(torch.export.load(part).module()(two))
        moved = 0.0
        for a, b in zip(expected, got, strict=True):
            moved = max(moved, float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
        if not moved <= tolerance:
            raise OffprintError(
                f"the exported model differs from the eager one by {moved:.1e} ({tolerance:.0e} allowed); not written"
            )
        os.replace(part, path)
    return moved


def _axes(sample: Tensor, dynamic: Sequence[str]) -> list[int]:
    """The axes of an input that stay free."""
    names = (
        ["batch", "channels", *["depth", "height", "width"][5 - sample.ndim :]] if sample.ndim in (4, 5) else ["batch"]
    )
    for name in dynamic:
        if name not in names or name == "channels":
            raise unknown("size that may stay free", name, [n for n in names if n != "channels"])
    return [names.index(name) for name in dynamic]
