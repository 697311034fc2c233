"""What a model costs: parameters, multiply-adds, activations, output shapes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offprint.models.factory import create_model


def _shapes(output) -> Any:
    if isinstance(output, Tensor):
        return list(output.shape)
    if isinstance(output, dict):
        return {k: _shapes(v) for k, v in output.items()}
    return [_shapes(v) for v in output] if isinstance(output, list | tuple) else None


def model_info(model: str | nn.Module, input_size: tuple[int, ...] | None = None, **kwargs) -> dict[str, Any]:
    """Cost of one forward of one example, without computing it.

    Args:
        model: a name, or a model.
        input_size: shape without the batch axis, (C, H, W); default the model's own.
        **kwargs: for :func:`offprint.create_model` when a name is given.

    Returns:
        ``parameters``, ``trainable``, ``macs`` (multiply-adds of convolutions and matrix products: half of what
        torch.utils.flop_counter counts), ``activations`` (elements that convolutions and linear layers put out, as in the
        papers that count them), ``input`` and ``outputs`` (shapes).
    """
    from torch.utils.flop_counter import FlopCounterMode

    from offprint.models.deploy import _tensors, example_input

    if isinstance(model, str):
        with torch.device("meta"):
            model = create_model(model, **kwargs)
    parameters = {id(p): p for p in model.parameters()}.values()
    was_training = model.training
    counts = {"activations": 0}

    def count(_module, _inputs, output):
        counts["activations"] += sum(t.numel() for t in _tensors(output))

    hooks = [
        m.register_forward_hook(count)
        for m in model.modules()
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    ]
    reference = next(model.parameters())
    if input_size is None:
        sample = example_input(model)
    else:
        sample = torch.zeros(1, *input_size, device=reference.device, dtype=reference.dtype)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = model.eval()(sample)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "macs": counter.get_total_flops() // 2,
        "activations": counts["activations"],
        "input": list(sample.shape),
        "outputs": _shapes(output),
    }


class _Peak(TorchDispatchMode):
    """Bytes of all tensor storages made while it is on and alive at once, at the worst moment."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, list | tuple) else (out,):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    self.known.add(key)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key, storage.nbytes())
        return out


def peak_memory(call: Callable[[], object]) -> int:
    """Peak bytes of the tensors that a call makes."""
    with _Peak() as counter:
        call()
    return counter.peak
