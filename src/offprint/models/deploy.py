"""From the form a model trains in to the form it runs in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from offprint.errors import OffprintError
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


def deploy(
    model: nn.Module, sample: Tensor | tuple | None = None, *, tolerance: float = 1e-4, inplace: bool = False
) -> nn.Module:
    """The form for inference: re-parameterised branches merged, BatchNorms folded, outputs checked.

    Args:
        model: in evaluation mode.
        sample: input (or tuple of inputs) to compare outputs on; by default a random one of the model's own shape.
        tolerance: largest allowed difference, relative to the largest output.
        inplace: change the model itself; otherwise a copy is changed and the model stays trainable.

    Returns:
        The deployed model. Deploying it again changes nothing.

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
    if inplace:
        model.__dict__.update(merged.__dict__)
        merged = model
    merged.__dict__["deployed"] = True
    return merged
