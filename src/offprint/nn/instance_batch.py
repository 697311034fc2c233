"""Instance and batch normalisation side by side (IBN-Net, Pan et al., ECCV 2018), and any network converted to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from offprint.errors import OffprintError, unknown


class _Dense(torch.autograd.Function):
    """The identity; its gradient is handed on in channels-last memory, which is what the native kernels are fast on."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor) -> Tensor:
    return _Dense.apply(x) if torch.is_grad_enabled() else x


def _instance_norm_last(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Instance normalisation of (B, H, W, C): as the batch normalisation of one image with B C channels."""
    b, h, w, c = x.shape
    y = x.permute(1, 2, 0, 3).reshape(1, h, w, b * c).permute(0, 3, 1, 2)
    y = _dense(torch.batch_norm(y, weight.repeat(b), bias.repeat(b), None, None, True, 0.0, eps, False))
    return y.permute(0, 2, 3, 1).reshape(h, w, b, c).permute(2, 0, 1, 3)


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalisation with a learnt scale and shift per channel; statistics are always the image's own.

    Computes what :class:`torch.nn.InstanceNorm2d` does, without leaving channels-last memory, and gives the shift where the
    map is a single pixel.

    Args:
        num_features: channels.
        eps: added to the (biased) variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps=eps, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.stride(1) == 1 and x.shape[1] > 1:
            y = _instance_norm_last(x.permute(0, 2, 3, 1), self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
            return y.clone(memory_format=torch.channels_last)
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, False)


class IBN(nn.Module):
    """Part of the channels instance-, the others batch-normalised (variant a, Fig. 3).

    Args:
        num_features: channels.
        ratio: part that is instance-normalised.
        bn_first: the batch-normalised channels come first (DenseNet's form; the others have them last).
    """

    def __init__(self, num_features: int, ratio: float = 0.5, bn_first: bool = False):
        super().__init__()
        if not 0 < ratio < 1:
            raise OffprintError(f"ratio={ratio}; the part that is instance-normalised lies between 0 and 1")
        first = int(num_features * (1 - ratio)) if bn_first else int(num_features * ratio)
        if not 0 < first < num_features:
            raise OffprintError(f"{num_features} channels cannot be divided at ratio {ratio}; at least 2 are needed")
        self.bn_first, self.split = bn_first, (first, num_features - first)
        instance, batch = reversed(self.split) if bn_first else self.split
        self.IN = InstanceNorm2d(instance)
        self.BN: nn.Module = nn.BatchNorm2d(batch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if x.stride(1) == 1:  # channels last: divide and join there, so that the gradients stay so too
            parts = list(x.permute(0, 2, 3, 1).split(self.split, 3))
            at = int(self.bn_first)
            batch = parts[1 - at]
            if not isinstance(self.BN, nn.Identity):
                batch = _dense(self.BN(batch.contiguous().permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
            parts[at] = _instance_norm_last(parts[at], self.IN.weight, self.IN.bias, self.IN.eps)
            parts[1 - at] = batch
            return torch.cat(parts, 3).permute(0, 3, 1, 2)
        first, second = x.split(self.split, 1)
        if self.bn_first:
            return torch.cat([self.BN(first), self.IN(second)], 1)
        return torch.cat([self.IN(first), self.BN(second)], 1)

    def fold_into(self, conv: nn.Conv2d) -> None:
        """Move the batch-normalised part, which is affine in evaluation mode, into the convolution before this layer."""
        norm = self.BN
        if not isinstance(norm, nn.BatchNorm2d):
            return
        first = self.split[0]
        part = slice(0, first) if self.bn_first else slice(first, None)
        with torch.no_grad():
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            conv.weight[part] *= scale[:, None, None, None]
            conv.bias[part] = (conv.bias[part] - norm.running_mean) * scale + norm.bias
        self.BN = nn.Identity()

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, ratio: float = 0.5, bn_first: bool = False) -> IBN:
        """From a BatchNorm, with its scale and shift; the statistics of the instance-normalised part are dropped."""
        made = cls(norm.num_features, ratio, bn_first).to(next(norm.parameters()))
        first = made.split[0]
        batch, instance = (slice(0, first), slice(first, None))[:: 1 if bn_first else -1]
        made.IN.eps = made.BN.eps = norm.eps
        made.BN.momentum = norm.momentum
        with torch.no_grad():
            for target, part in ((made.IN, instance), (made.BN, batch)):
                target.weight.copy_(norm.weight[part])
                target.bias.copy_(norm.bias[part])
            made.BN.running_mean.copy_(norm.running_mean[batch])
            made.BN.running_var.copy_(norm.running_var[batch])
        return made.train(norm.training)


# -- any network -----------------------------------------------------------------------------------------------------
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.Mish)
_ACTIVATION_CALLS = {
    F.relu,
    F.relu6,
    F.silu,
    F.gelu,
    F.hardswish,
    F.leaky_relu,
    F.elu,
    torch.relu,
    torch.relu_,
    "relu",
    "relu_",
}
_SHORTCUTS = ("downsample", "shortcut", "skip")


def _norms_below(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def _blocks(model: nn.Module) -> set[str]:
    """Names of the modules that are blocks: not containers, two norms or more, and no such module inside."""
    having = {
        name
        for name, m in model.named_modules()
        if name and not isinstance(m, _CONTAINERS + (nn.BatchNorm2d,)) and _norms_below(m) > 1
    }
    return {n for n in having if not any(o.startswith(n + ".") for o in having)}


def _watch(model: nn.Module, names: set[str], sample: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape of the output) of the named modules in the order in which they finish."""
    seen: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        model.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: seen.append((n, tuple(o.shape))))
        for n in names
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(sample)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return list(dict(reversed(seen)).items())[::-1]  # a module that is used twice counts where it is used first


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _to_ibn(model: nn.Module, name: str, ratio: float, bn_first: bool) -> None:
    old = model.get_submodule(name)
    new: nn.Module = IBN.of(old, ratio, bn_first)
    if isinstance(getattr(old, "act", None), nn.Module):  # timm joins norm and activation
        new = nn.Sequential(new, old.act)
    _replace(model, name, new)


class _Shallow(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _with_instance_norm(block: nn.Module, channels: int) -> nn.Module:
    """The block with an instance normalisation ``IN`` after its sum and before its last activation, if it ends in one."""
    try:
        graph = _Shallow().trace(block)
    except Exception as error:
        raise OffprintError(
            f"cannot see where {type(block).__name__} adds its shortcut ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "convert with kind='a', which only replaces norms"
        ) from error
    output = next(n for n in graph.nodes if n.op == "output")
    last = output.args[0]
    if not isinstance(last, fx.Node):
        raise OffprintError(f"{type(block).__name__} gives more than one map; convert with kind='a'")
    activation = last.op in ("call_function", "call_method") and last.target in _ACTIVATION_CALLS
    activation |= last.op == "call_module" and isinstance(block.get_submodule(str(last.target)), _ACTIVATIONS)
    reference = next(block.parameters())
    block.IN = InstanceNorm2d(channels).to(reference)
    user, source = (last, last.args[0]) if activation else (output, last)
    with graph.inserting_before(user):
        user.replace_input_with(source, graph.call_module("IN", (source,)))
    return fx.GraphModule(block, graph, type(block).__name__).train(block.training)


def ibn(model: nn.Module, kind: str = "a", *, sample: Tensor | None = None, ratio: float = 0.5) -> nn.Module:
    """Convert a network with BatchNorms to IBN-Net, in place, keeping its weights.

    ``a``: in every block of every resolution but the deepest, the first norm (never the shortcut's) becomes :class:`IBN`; of
    DenseNet's layers only every third, with the batch-normalised channels first and ratio 0.4 (as the authors do). Without blocks
    (VGG) the first norm of each resolution. ``b``: the stem's norm becomes an instance normalisation, and the last block of
    the first two resolutions gets one after its sum, before its last activation.

    Blocks and resolutions are found by running the network once. A pre-trained network then needs training again: what the
    instance-normalised channels had as running statistics is gone.

    Args:
        model: of torchvision, timm, or any other with :class:`torch.nn.BatchNorm2d`.
        kind: ``"a"`` (accuracy) or ``"b"`` (strong shift of appearance).
        sample: an input; default one image of 224x224.
        ratio: part of the channels that is instance-normalised in ``a``.

    Raises:
        OffprintError: no BatchNorm, nothing to convert, or a block that cannot be traced.
    """
    if kind not in ("a", "b"):
        raise unknown("kind of IBN", kind, ("a", "b"))
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    if not norms:
        raise OffprintError(
            f"{type(model).__name__} has no BatchNorm2d to convert (instance normalisation takes the place of part of one)"
        )
    if sample is None:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        sample = torch.zeros(1, first.in_channels, 224, 224).to(first.weight)
    blocks = _blocks(model)
    order = _watch(model, norms | blocks, sample)
    norm_order = [(n, s) for n, s in order if n in norms]
    block_order = [(n, s) for n, s in order if n in blocks]
    places = list(dict.fromkeys(s[-2:] for _, s in (block_order or norm_order)))
    if kind == "a":
        if not places[:-1]:
            raise OffprintError(f"{type(model).__name__} works at one resolution only, so no part of it is shallow")
        shallow = set(places[:-1])
        if block_order:
            for name in (n for n, s in block_order if s[-2:] in shallow):
                own = [n for n, _ in norm_order if n.startswith(name + ".")]
                own = [n for n in own if not any(s in n.removeprefix(name) for s in _SHORTCUTS)]
                leaf = name.rpartition(".")[2]
                number = int(leaf.removeprefix("denselayer")) - 1 if leaf.startswith("denselayer") else -1
                if own and number % 3 == 0:
                    _to_ibn(model, own[0], 0.4, True)
                elif own and number < 0 and model.get_submodule(own[0]).num_features > 1:
                    _to_ibn(model, own[0], ratio, False)
        else:
            for place in places[:-1]:
                _to_ibn(model, next(n for n, s in norm_order if s[-2:] == place), ratio, False)
        return model
    if not block_order:
        raise OffprintError(f"{type(model).__name__} has no residual blocks for kind='b'; convert with kind='a'")
    stem = next((n for n, _ in norm_order if not any(n.startswith(b + ".") for b in blocks)), None)
    if stem is not None and order.index(next(r for r in order if r[0] == stem)) < order.index(block_order[0]):
        old = model.get_submodule(stem)
        new = InstanceNorm2d(old.num_features, old.eps).to(old.weight)
        new.load_state_dict({"weight": old.weight, "bias": old.bias})
        act = getattr(old, "act", None)
        _replace(model, stem, nn.Sequential(new, act) if isinstance(act, nn.Module) else new)
    for place in places[:2]:
        name, shape = [(n, s) for n, s in block_order if s[-2:] == place][-1]
        _replace(model, name, _with_instance_norm(model.get_submodule(name), shape[1]))
    return model
