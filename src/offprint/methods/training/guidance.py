r"""Training the Untrainable: Introducing Inductive Bias via Representational Alignment (Subramaniam et al., NeurIPS 2025; arXiv 2410.20035).

A target learns its task while its layers are pulled towards those of a frozen guide on the same mini-batch. With flattened activations :math:`X` (n, p) of
a target layer and :math:`Y` (n, q) of a guide layer, :math:`K = XX^\top`, :math:`L = YY^\top`, and :math:`H = I - 11^\top/n`,

.. math:: \mathrm{CKA} = \frac{\langle HKH, HLH \rangle}{\lVert HKH \rVert\,\lVert HLH \rVert}, \qquad
          \mathcal L = \mathcal L_\text{task} + \alpha \sum_{\text{pairs}} (1 - \mathrm{CKA}).

A trained guide passes on what it knows and how it is built; an untrained one only the latter, which often is enough. Guide layer i of g goes
with target layer :math:`\min(\mathrm{round}(i\,(t-1)/(g-1)), t-1)` of t; where several go with one, the authors' code keeps the last.

The layers are the outputs of convolutions, linear layers, adaptive average pools, recurrences, decoder layers, layer norms and attentions, in the order in
which they finish, without the last (the logits). Only Gram matrices (n, n) are kept, never maps' products (p, p); the biased estimator
calls unrelated features alike where n is small beside p, so batches are of 256 in the paper.

The target's maps are taken from the forward pass that the task makes. The authors run a second one (``second_forward=True``), which moves BatchNorms'
statistics twice and draws other dropout masks. Their guide stays in training mode in the language experiments; here it is in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from offprint.errors import OffprintError, unknown
from offprint.methods.registry import Method, register_method
from offprint.methods.training._networks import named_network
from offprint.tasks.hooks import around_step

LAYERS = (
    nn.Conv2d,
    nn.Linear,
    nn.AdaptiveAvgPool2d,
    nn.LSTM,
    nn.RNN,
    nn.TransformerDecoderLayer,
    nn.LayerNorm,
    nn.MultiheadAttention,
)
EPS = 1e-12  # in the denominator: constant activations are like nothing


# -- likeness of two sets of activations -------------------------------------------------------------------------------
def _flat(x: Tensor) -> Tensor:
    x = x.flatten(1)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gram(x: Tensor) -> Tensor:
    """The centred Gram matrix HKH (n, n) of activations (n, ...)."""
    x = _flat(x)
    x = x - x.mean(0)  # the same as centring XX', and one matrix fewer
    return x @ x.mT


def _aligned(k: Tensor, other: Tensor) -> Tensor:
    return (k * other).sum() / (k.norm() * other.norm() + EPS)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of activations (n, ...) and (n, ...) of the same n examples; 1 for equal up to rotation and scale."""
    _same_batch(len(x), len(y))
    return _aligned(_gram(x), _gram(y))


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """The alignment with the unbiased estimator, in [0, 1]: for logs; its root may not exist, so it is no loss. At least 4 examples."""
    _same_batch(len(x), len(y))
    n = len(x)
    if n < 4:
        raise OffprintError(f"{n} examples were given; the debiased alignment needs 4")

    def product(k: Tensor, other: Tensor) -> Tensor:
        sums = k.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) * other.sum(0)).sum() / (n - 2)
        return (k * other).sum() + sums

    k, other = (_flat(v) @ _flat(v).mT for v in (x, y))
    k, other = (m - torch.diag(m.diagonal()) for m in (k, other))
    below = product(k, k).clamp_min(0).sqrt() * product(other, other).clamp_min(0).sqrt()
    return (product(k, other) / (below + EPS)).clamp(0, 1)


def _cosines(x: Tensor) -> Tensor:
    """The centred matrix of cosine similarities (n, n), the diagonal included."""
    x = nn.functional.normalize(_flat(x), dim=1)
    matrix = x @ x.mT
    return matrix - matrix.mean()


def rsa(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of the two matrices of cosine similarities between the examples."""
    _same_batch(len(x), len(y))
    return _aligned(_cosines(x), _cosines(y))


def _positions(x: Tensor) -> Tensor:
    """A centred Gram matrix for each position (axis 1) of (n, positions, width)."""
    if x.ndim < 3:
        raise OffprintError(
            f"the distance 'tokens' compares position by position; a map of shape {tuple(x.shape)} has none"
        )
    return torch.stack([_gram(x[:, i]) for i in range(x.shape[1])])


def _by_position(k: Tensor, other: Tensor) -> Tensor:
    if len(k) != len(other):
        raise OffprintError(
            f"the guide has {len(other)} positions and the target {len(k)}; 'tokens' compares them one by one"
        )
    return 1 - sum(1 - _aligned(a, b) for a, b in zip(k, other, strict=True))  # type: ignore[return-value]


# distance: what is kept of a map, and the likeness of what is kept of two; 1 minus it is the term of the loss
DISTANCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "cka": (_gram, _aligned), "rsa": (_cosines, _aligned), "tokens": (_positions, _by_position),
}  # fmt: skip


def _same_batch(n: int, m: int) -> None:
    if n != m:
        raise OffprintError(f"the target saw {n} examples and the guide {m}; both must see the same batch")


# -- layers ------------------------------------------------------------------------------------------------------------
def map_layers(guide: int, target: int) -> list[int]:
    """The target layer of each guide layer, spread evenly (halves go to the even one)."""
    step = (target - 1) / (guide - 1) if guide > 1 else 1
    return [min(round(i * step), target - 1) for i in range(guide)]


def kept_pairs(guide: int, target: int) -> dict[int, int]:
    """Target layer → the last guide layer that goes with it."""
    return {t: g for g, t in enumerate(map_layers(guide, target))}


def _kind(module: nn.Module) -> type:
    """The exact type; of this library's own layers the one of PyTorch's that they stand for."""
    kind = type(module)
    return next(c for c in kind.__mro__ if not c.__module__.startswith("offprint."))


def _tensors(module: nn.Module, output: Any) -> list[tuple[str, Tensor]]:
    """Suffix and tensor of each map that a module gives; of a recurrence the sequence only."""
    if isinstance(module, nn.LSTM | nn.RNN):
        output = output[0]
    if isinstance(output, PackedSequence):
        output = pad_packed_sequence(output, batch_first=True)[0]
    if isinstance(output, Tensor):
        return [("", output)]
    values = output if isinstance(output, tuple | list) else ()
    return [(f"-{i}", value) for i, value in enumerate(values, 1) if isinstance(value, Tensor)]


class Recorder:
    """What is kept of a network's maps during a forward pass; hooks stand until :meth:`close`.

    Args:
        net: the network.
        keep: of each map (n, ...), such as its Gram matrix.
        names: modules whose output is wanted; default those of ``LAYERS``, by exact type and in the order in which they finish, the last left out
            (of torchvision's vision transformers each block's attention and MLP, and the class token, all of them).
        batch_axis: of the maps; ``None`` looks for the axis of the batch's size, and leaves a map out that has none or several.
    """

    def __init__(
        self, net: nn.Module, keep: Callable[[Tensor], Tensor], names: Sequence[str] = (), batch_axis: int | None = None
    ):
        self.keep, self.names, self.batch_axis, self.n = keep, tuple(names), batch_axis, 0
        self.on: Callable[[], bool] = lambda: True
        self.found: dict[str, Tensor] = {}
        self.count, self.drops = 0, not names
        self.hooks = [net.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, module in self._wanted(net):
            self.hooks.append(module.register_forward_hook(lambda m, _, out, name=name: self._take(m, out, name)))

    def _wanted(self, net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        modules = dict(net.named_modules())
        if self.names:
            for name in self.names:
                if name not in modules:
                    raise unknown("layer", name, modules)
                yield name, modules[name]
            return
        if type(net).__name__ == "VisionTransformer" and hasattr(net, "encoder") and hasattr(net.encoder, "layers"):
            self.drops = False
            for i, block in enumerate(net.encoder.layers):  # type: ignore[arg-type]
                yield f"encoder.layers.{i}.attention", block.self_attention
                yield f"encoder.layers.{i}.mlp", block.mlp
            yield "class_token", net.encoder.ln  # type: ignore[misc]
            return
        for module in modules.values():
            if _kind(module) in LAYERS:
                yield "", module

    def _begin(self, net: nn.Module, args: tuple, kwargs: dict) -> None:
        self.found, self.count = {}, 0
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        self.n = 0 if first is None else len(first)

    def _take(self, module: nn.Module, output: Any, name: str) -> None:
        if not self.on():
            return
        if name == "class_token":
            output = output[:, 0]
        maps = _tensors(module, output)
        if name:
            maps = maps[:1]
        for suffix, value in maps:
            label = name or f"{_kind(module).__name__}_{self.count}{suffix}"
            if (first := self._batch_first(value)) is not None:
                self.found[label] = self.keep(first)
        self.count += 1

    def _batch_first(self, x: Tensor) -> Tensor | None:
        if self.batch_axis is not None:
            return x.transpose(0, self.batch_axis)
        if x.ndim and x.shape[0] == self.n:
            return x
        axes = [i for i, size in enumerate(x.shape) if size == self.n]
        return x.transpose(0, axes[0]) if len(axes) == 1 else None

    def maps(self) -> dict[str, Tensor]:
        """Name → what was kept, of the last forward pass; forgotten here.

        Raises:
            OffprintError: a layer that was asked for gave nothing.
        """
        found, self.found = self.found, {}
        for name in self.names:
            if name not in found:
                raise OffprintError(
                    f"the layer {name} gave no map of the batch; it was not called, or none of its axes is the batch's"
                )
        if self.drops and found:
            found.popitem()
        return found

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


# -- the term of the loss ----------------------------------------------------------------------------------------------
class Guidance(nn.Module):
    """Pulls a target towards a guide: ``loss = task_loss(target(x)) + guided(x)``.

    Args:
        target, guide: networks that take the same batch. The guide is frozen and in evaluation mode; it is no submodule, so that neither
            optimizer nor checkpoint sees it.
        alpha: weight of the term.
        distance: ``cka``, ``rsa``, or ``tokens`` (CKA position by position, summed).
        layers: target layer → guide layer, by their names in the networks; default all, spread evenly.
        keep: of several guide layers that go with one target layer the ``last`` (the authors') or ``all``.
        until: steps of guidance, 0 for all: guidance as initialisation.
        second_forward: take the target's maps from a forward pass of their own, as the authors do.
        noise: give the guide noise instead of the batch.
        vocabulary: number of token ids, for noise where inputs are whole numbers.
        batch_axes: of the target's and of the guide's maps, where it cannot be told from their sizes (sequence first, as long as the batch).
        smallest: batches of fewer examples are left out, and counted in ``skipped``.

    After each call ``similarity`` holds layer → likeness.

    Raises:
        OffprintError: no layers to compare, a layer that is not there or gives nothing, or batches that disagree.
    """

    def __init__(
        self, target: nn.Module, guide: nn.Module, alpha: float = 1.0, distance: str = "cka", layers: Mapping[str, str] | None = None, keep: str = "last",
        until: int = 0, second_forward: bool = False, noise: bool = False, vocabulary: int = 0,
        batch_axes: tuple[int | None, int | None] = (None, None), smallest: int = 4,
    ):  # fmt: skip
        super().__init__()
        if distance not in DISTANCES:
            raise unknown("distance", distance, DISTANCES)
        if keep not in ("last", "all"):
            raise unknown("choice of guide layers", keep, ("last", "all"))
        for name, value in (("alpha", alpha), ("until", until)):
            if value < 0:
                raise OffprintError(f"{name}={value!r}; it must not be negative")
        self.alpha, self.until, self.keep, self.layers = alpha, until, keep, dict(layers or {})
        self.second_forward, self.noise, self.vocabulary, self.smallest = second_forward, noise, vocabulary, smallest
        self.steps, self.skipped, self.similarity = 0, 0, {}
        held, self.likeness = DISTANCES[distance]
        self.__dict__["target"], self.__dict__["guide"] = target, guide.requires_grad_(False).eval()
        self.__dict__["of_target"] = Recorder(target, held, tuple(self.layers), batch_axes[0])
        self.__dict__["of_guide"] = Recorder(guide, held, tuple(dict.fromkeys(self.layers.values())), batch_axes[1])
        self.taking = not second_forward
        self.of_target.on = lambda: self.taking and torch.is_grad_enabled()  # validation is nobody's business

    def _noise(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return (torch.randn_like(x) + 0.1 * torch.randn_like(x)).clamp(0, 1)
        if self.vocabulary < 1:
            raise OffprintError("noise=True for inputs of whole numbers needs vocabulary=, the number of token ids")
        return torch.randint_like(x, self.vocabulary)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The term for a batch: give what the target was given, whose forward pass with it came just before."""
        first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        nothing = next(self.target.parameters()).new_zeros(())
        if self.until and self.steps >= self.until:
            return nothing
        self.steps += 1
        if len(first) < self.smallest:
            self.skipped += 1
            return nothing
        if self.second_forward:
            self.taking = True
            self.target(*args, **kwargs)
            self.taking = False
        ours = self.of_target.maps()
        if not ours:
            raise OffprintError(
                f"{type(self.target).__name__} gave no maps to compare; call target(x) before guided(x), or name layers= of it"
            )
        changed = (self._noise(v) if self.noise and isinstance(v, Tensor) else v for v in args)
        with torch.no_grad():
            self.guide.eval()(*changed, **kwargs)
        theirs = self.of_guide.maps()
        if not theirs:
            raise OffprintError(f"{type(self.guide).__name__} gave no maps to compare; name layers= of it")
        _same_batch(self.of_target.n, self.of_guide.n)
        terms: list[Tensor] = []
        self.similarity = {}
        for name, other in self._pairs(list(ours), list(theirs)):
            alike = self.likeness(ours[name], theirs[other].to(ours[name].dtype))
            self.similarity[name] = float(alike.detach())
            terms.append(1 - alike)
        return self.alpha * torch.stack(terms).sum()

    def _pairs(self, ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
        if self.layers:
            return list(self.layers.items())
        if self.keep == "all":
            return [(ours[t], theirs[g]) for g, t in enumerate(map_layers(len(theirs), len(ours)))]
        return [(ours[t], theirs[g]) for t, g in kept_pairs(len(theirs), len(ours)).items()]

    def close(self) -> None:
        """Take the hooks away."""
        self.of_target.close(), self.of_guide.close()


# -- in any training ---------------------------------------------------------------------------------------------------
@register_method
@dataclass(kw_only=True)
class GuidanceMethod(Method):
    """Aligns the layers of the model, by centred kernel alignment, with those of a frozen guide while it learns its task.

    Args:
        guide: name of a model of ours, torchvision/NAME, or the folder of a run.
        pretrained: give the guide its released weights; without them and a file it is an untrained one, whose architecture alone guides.
        checkpoint: weight file of the guide.
        alpha: weight of the alignment beside the task's loss.
        distance: cka, rsa or tokens.
        keep: of several guide layers that go with one layer, last or all.
        until: steps of guidance, 0 for all.
        noise: give the guide noise instead of the pictures.
        seed: of an untrained guide's weights.
    """

    name = "guidance"
    paper = "guidance"
    kind = "module"
    changes = "the loss: adds the distance of the model's layers to those of a frozen guide"
    excludes = {
        "tune-mode": "guidance compares what convolutions put out, and tune mode puts the norms after them into it"
    }

    guide: str = ""
    pretrained: bool = False
    checkpoint: str | None = None
    alpha: float = 1.0
    distance: str = "cka"
    keep: str = "last"
    until: int = 0
    noise: bool = False
    seed: int = 0

    def settle(self, job) -> None:
        if not self.guide:
            raise OffprintError(
                "guidance needs a guide: --method guidance:guide=NAME, with pretrained=true or checkpoint=FILE for a trained one"
            )

    def module(self, job, module):
        from offprint.tasks.contract import load_run
        from offprint.tasks.folder import is_run

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = (
                load_run(self.guide).model
                if is_run(self.guide)
                else named_network(self.guide, self.pretrained, self.checkpoint)
            )
        guided = Guidance(
            module.model, net, self.alpha, self.distance, keep=self.keep, until=self.until, noise=self.noise
        )
        self.guided, self.seen = guided, (seen := _Seen(module.model))

        def around(step, batch, index):
            loss = step(batch, index)
            guided.steps = module.global_step  # so that a resume goes on counting
            net.to(loss.device)
            term = guided(seen.last)
            module.log("guidance_loss", term.detach())
            for name, value in guided.similarity.items():
                module.log(f"similarity/{name}", value)
            return loss + term

        around_step(module, around)
        return module

    def finish(self, job) -> dict[str, Any]:
        self.guided.close(), self.seen.close()
        return {"similarity": dict(self.guided.similarity), "skipped": self.guided.skipped}


class _Seen:
    """What the model was given last: pictures as they were mixed, say, rather than as the loader gave them."""

    def __init__(self, model: nn.Module):
        self.last = torch.empty(0)
        self.hook = model.register_forward_pre_hook(self._look)

    def _look(self, model: nn.Module, args: tuple) -> None:
        self.last = args[0].detach()

    def close(self) -> None:
        self.hook.remove()
        self.last = torch.empty(0)
