"""Names and layouts of TensorFlow's slim checkpoints of Inception-v4 and Inception-ResNet-v2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

_AUX = {"Conv2d_1b_1x1": "aux.conv0", "Conv2d_2a": "aux.conv1", "Conv2d_2a_5x5": "aux.conv1", "Aux_logits": "aux.fc",
        "Logits": "aux.fc"}  # fmt: skip
_C = {
    "Branch_0/Conv2d_0a_1x1": "branch0", "Branch_1/Conv2d_0a_1x1": "branch1_0", "Branch_1/Conv2d_0b_1x3": "branch1_1a",
    "Branch_1/Conv2d_0c_3x1": "branch1_1b", "Branch_2/Conv2d_0a_1x1": "branch2_0", "Branch_2/Conv2d_0b_3x1": "branch2_1",
    "Branch_2/Conv2d_0c_1x3": "branch2_2", "Branch_2/Conv2d_0d_1x3": "branch2_3a", "Branch_2/Conv2d_0e_3x1": "branch2_3b",
    "Branch_3/Conv2d_0b_1x1": "branch3.1",
}  # fmt: skip


def _kernel(unit: tuple) -> str:
    k = unit[1]
    return f"{k}x{k}" if isinstance(k, int) else f"{k[0]}x{k[1]}"


def _mixed(theirs: str, ours: str, branches: tuple, bare: bool = False) -> Iterator[tuple[str, str]]:
    """Pairs for one block: ``0a``, ``0b``, ... along a branch, ``1a`` where nothing is padded; ``bare``: a lone 1x1 has no letter."""
    for i, units in enumerate(branches):
        for position, unit in enumerate(units):
            if isinstance(unit, str):
                continue
            letter = "1a" if len(unit) == 3 else f"0{chr(97 + position)}"
            letter = "" if bare and len(units) == 1 and len(unit) == 2 else letter + "_"
            where = f"{ours}.branch{i}" + (f".{position}" if len(units) > 1 else "")
            yield f"{theirs}/Branch_{i}/Conv2d_{letter}{_kernel(unit)}", where


def names(stem_v4: tuple, blocks_v4: tuple, form_v2: tuple) -> dict[str, dict[str, str]]:
    """Scope of the network → {slim's layer: ours}.

    Args:
        stem_v4, blocks_v4: Inception-v4's stem, and its A blocks, reduction, B blocks and reduction.
        form_v2: stem, kinds of block and reductions of Inception-ResNet-v2.
    """
    a, reduction_a, b, reduction_b = blocks_v4
    v4 = {"Conv2d_1a_3x3": "features.0", "Conv2d_2a_3x3": "features.1", "Conv2d_2b_3x3": "features.2"}
    v4 |= {"Mixed_3a/Branch_1/Conv2d_0a_3x3": "features.3.conv", "Mixed_5a/Branch_0/Conv2d_1a_3x3": "features.5.conv"}
    v4 |= dict(_mixed("Mixed_4a", "features.4", stem_v4[4]))
    rows = [
        ("5", "bcde", a),
        ("6", "a", reduction_a),
        ("6", "bcdefgh", b),
        ("7", "a", reduction_b),
    ]
    index = 6
    for digit, letters, branches in rows:
        for letter in letters:
            v4 |= dict(_mixed(f"Mixed_{digit}{letter}", f"features.{index}", branches))
            index += 1
    for letter in "bcd":
        v4 |= {f"Mixed_7{letter}/{theirs}": f"features.{index}.{ours}" for theirs, ours in _C.items()}
        index += 1
    stem, blocks, reductions, *_ = form_v2
    v2 = {f"Conv2d_{n.removeprefix('conv2d_')}_{_kernel(u)}": n for n, u in stem if n.startswith("conv2d")}
    v2 |= {"Conv2d_7b_1x1": "conv2d_7b", **dict(_mixed("Mixed_5b", "mixed_5b", stem[-1][1], bare=True))}
    v2 |= dict(_mixed("Mixed_6a", "mixed_6a", reductions[0])) | dict(_mixed("Mixed_7a", "mixed_7a", reductions[1]))
    places = [(f"Repeat{'' if i == 0 else f'_{i}'}/block{s}_{j + 1}", f"repeat_{i + 1}.{j}", i)
              for i, (s, depth) in enumerate(((35, 10), (17, 20), (8, 9))) for j in range(depth)]  # fmt: skip
    for theirs, ours, kind in [*places, ("Block8", "block8", 2)]:
        v2 |= dict(_mixed(theirs, ours, blocks[kind], bare=True)) | {f"{theirs}/Conv2d_1x1": f"{ours}.conv2d"}
    return {
        scope: {**rows, "Logits/Logits": "last_linear", **{f"AuxLogits/{a}": b for a, b in _AUX.items()}}
        for scope, rows in (("InceptionV4", v4), ("InceptionResnetV2", v2))
    }


_NORM = {"beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var", "gamma": "weight"}


def convert(state: dict[str, Tensor], model: nn.Module, layers: Mapping[str, Mapping[str, str]]) -> dict[str, Tensor]:
    """slim's tensors as ours: (h, w, in, out) kernels turned, gammas of one added, the background class left out.

    Args:
        state, model: the file's tensors, and where they go.
        layers: what :func:`names` gives.

    Raises:
        KeyError: not slim's names.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        scope, _, rest = name.partition("/")
        layer, _, leaf = rest.rpartition("/")
        norm = layer.endswith("/BatchNorm")
        ours = layers[scope][layer.removesuffix("/BatchNorm")]
        if ours in ("last_linear", "aux.fc"):
            value = value.t() if value.ndim == 2 else value
            value = value[1:] if value.shape[0] == getattr(model, "num_classes", 0) + 1 else value
        elif value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
        if norm:
            out[f"{ours}.bn.{_NORM[leaf]}"] = value
            if leaf == "beta":
                out.setdefault(f"{ours}.bn.weight", torch.ones_like(value))
        else:
            plain = ours.endswith(("conv2d", "last_linear", "fc"))
            out[f"{ours}{'' if plain else '.conv'}.{'bias' if leaf == 'biases' else 'weight'}"] = value.contiguous()
    return out
