"""From the form a model trains in to the form it runs in."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from offprint.errors import OffprintError, unknown
from offprint.nn import DepthwiseConv2d, Pointwise


def example_input(model: nn.Module, batch: int = 1, seed: int = 0) -> Tensor:
    """A normal random batch of the shape a registry model expects (its own ``example_input`` where it has one).

    Raises:
        OffprintError: the model was not made by name, or takes something else than one image or volume.
    """
    from offprint.models.registry import entry

    own = getattr(model, "example_input", None)
    if callable(own):
        return own(batch)
    spec: dict | None = getattr(model, "spec", None)
    size = entry(spec["name"]).input_size if spec else None
    if size is None:
        raise OffprintError(
            f"no example input is known for {type(model).__name__}; pass sample= (a tensor the model takes)"
        )
    channels = getattr(model, "in_chans", size[0])
    generator = torch.Generator().manual_seed(seed)
    reference = next(model.parameters())
    sample = torch.randn(batch, channels, *size[1:], generator=generator)
    return sample.to(reference.device, reference.dtype)


def _tensors(output) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return [t for v in output.values() for t in _tensors(v)]
    return [t for v in output for t in _tensors(v)] if isinstance(output, list | tuple) else []


def _fold(parent: nn.Module, first: str, second: str) -> bool:
    """Fold a BatchNorm into the convolution or linear layer before it; exact in evaluation mode."""
    layer: Any = getattr(parent, first, None)
    norm: Any = getattr(parent, second, None)
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Pointwise, DepthwiseConv2d)
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or norm.running_var is None:
        return False
    if type(layer) in convolutions and layer.out_channels == norm.num_features:
        fused = fuse_conv_bn_eval(layer, norm)
    elif type(layer) is nn.Linear and isinstance(norm, nn.BatchNorm1d) and layer.out_features == norm.num_features:
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        return False
    setattr(parent, first, fused)
    setattr(parent, second, nn.Identity())
    return True


def fold_batch_norms(model: nn.Module) -> int:
    """Fold, in place, every BatchNorm that directly follows a convolution; returns how many.

    Neighbours in a plain :class:`~torch.nn.Sequential` are found by themselves; other modules name theirs in a class
    attribute ``fold_pairs = (("conv1", "bn1"), ...)``.
    """
    count = 0
    for module in list(model.modules()):
        for first, second in getattr(module, "fold_pairs", ()):
            count += _fold(module, first, second)
        if type(module) is nn.Sequential:
            names = list(module._modules)
            for first, second in zip(names[:-1], names[1:], strict=True):
                count += _fold(module, first, second)
    return count


# -- forms ------------------------------------------------------------------------------------------------------------
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


class Form(NamedTuple):
    """How a deployed model runs: branches ``merged`` or as built, its precision, and the memory format of its maps."""

    merged: bool
    precision: str
    memory_format: str


def _ready(module: nn.Module, inputs: tuple) -> tuple:
    """Forward pre-hook: images in the precision and memory format of the model's form."""
    form: Form = module.form  # type: ignore[assignment]
    return tuple(_as(x, form) if isinstance(x, Tensor) else x for x in inputs)


def _as(x: Tensor, form: Form) -> Tensor:
    x = x.to(PRECISIONS[form.precision]) if x.is_floating_point() else x
    dims = {"channels_last": 4, "channels_last_3d": 5}.get(form.memory_format, x.ndim)
    return x.contiguous(memory_format=FORMATS[form.memory_format]) if x.ndim == dims else x


def _in_form(model: nn.Module, form: Form) -> nn.Module:
    """The model in this form; it takes images in any."""
    model = copy.deepcopy(model).to(PRECISIONS[form.precision]).to(memory_format=FORMATS[form.memory_format])
    model.__dict__["form"] = form
    model.register_forward_pre_hook(_ready)
    return model


def _race(models: dict[Form, nn.Module], inputs: tuple, rounds: int = 5) -> dict[Form, float]:
    """Best seconds of each, in turns."""
    best = dict.fromkeys(models, float("inf"))
    with torch.inference_mode():
        for model in models.values():
            model(*inputs)
        for _ in range(rounds):
            for form, model in models.items():
                began = time.perf_counter()
                _tensors(model(*inputs))[0].flatten()[0].item()  # waits for a GPU
                best[form] = min(best[form], time.perf_counter() - began)
    return best


def fastest(built: nn.Module, merged: nn.Module, inputs: tuple, precision: str, memory_format: str) -> nn.Module:
    """The form with the least seconds on these inputs, on this machine: ``built`` or ``merged``, in the memory format given or
    (``"fastest"``) in either."""
    last = "channels_last_3d" if inputs[0].ndim == 5 else "channels_last"
    formats = ("contiguous", last) if memory_format == "fastest" else (memory_format,)
    forms = [Form(m, precision, f) for m in (True, False) for f in formats]
    models = {form: _in_form(merged if form.merged else built, form) for form in forms}
    seconds = _race(models, inputs)
    chosen = min(seconds, key=lambda form: seconds[form])
    if precision != "fp32":
        plain = Form(chosen.merged, "fp32", chosen.memory_format)
        (full,) = _race({plain: _in_form(merged if plain.merged else built, plain)}, inputs).values()
        if full < seconds[chosen]:
            warnings.warn(
                f"{precision} is slower than fp32 on this machine ({seconds[chosen]:.3g} s against {full:.3g} s); "
                'deploy with precision="fp32" here',
                stacklevel=3,
            )
    return models[chosen]


def deploy(
    model: nn.Module,
    sample: Tensor | tuple | None = None,
    *,
    precision: str | None = None,
    memory_format: str | None = None,
    tolerance: float = 1e-4,
    inplace: bool = False,
) -> nn.Module:
    """The form for inference: re-parameterised branches merged, BatchNorms folded, outputs checked.

    Args:
        model: in evaluation mode.
        sample: input (or tuple of inputs) to compare outputs on; by default a random one of the model's own shape.
        precision: ``"fp32"`` or ``"bf16"`` of weights and images; by default they stay as they are.
        memory_format: ``"contiguous"``, ``"channels_last"``, ``"channels_last_3d"``, or ``"fastest"``: measured on the sample,
            on this machine, merged and as built. With ``precision`` alone it is ``"fastest"``.
        tolerance: largest allowed difference, relative to the largest output (of merging; bf16 rounds by more).
        inplace: change the model itself; otherwise a copy is changed and the model stays trainable.

    Returns:
        The deployed model. Deploying it again changes nothing. With ``precision`` or ``memory_format`` its attribute ``form``
        says what was chosen, and it takes images in any form; that bf16 is slower than fp32 here is told by a warning.

    Raises:
        OffprintError: the model is in training mode, or the outputs moved by more than the tolerance (then the model that
            was given is unchanged).
    """
    if model.training:
        raise OffprintError(
            f"{type(model).__name__} is in training mode; finish training, call model.eval(), and deploy then "
            "(branches and batch statistics cannot be trained once merged)"
        )
    if getattr(model, "deployed", False):
        return model
    if precision not in (None, *PRECISIONS):
        raise unknown("precision", precision, PRECISIONS)
    if memory_format not in (None, "fastest", *FORMATS):
        raise unknown("memory format", memory_format, ("fastest", *FORMATS))
    inputs = (example_input(model),) if sample is None else sample if isinstance(sample, tuple) else (sample,)
    merged = copy.deepcopy(model)
    with torch.no_grad():
        before = _tensors(model(*inputs))
        for module in list(merged.modules()):
            merge = getattr(module, "merge", None)
            if callable(merge):
                merge()
        fold_batch_norms(merged)
        after = _tensors(merged(*inputs))
    for a, b in zip(before, after, strict=True):
        moved = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
        if not moved <= tolerance:
            raise OffprintError(
                f"deploying {type(model).__name__} moved its output by {moved:.2e} of the largest value "
                f"({tolerance:.0e} allowed); the model is unchanged"
            )
    if precision or memory_format:
        merged = fastest(model, merged, inputs, precision or "fp32", memory_format or "fastest")
    if inplace:
        model.__dict__.update(merged.__dict__)
        merged = model
    merged.__dict__["deployed"] = True
    return merged
