r"""Knowledge Concentration: Learning 100K Object Classifiers in a Single CNN (Gao et al.; 2017; arXiv 1711.07607).

A large vocabulary is cut into M verticals (birds, cars, dishes). A specialist learns each, and one student learns all of them from the
specialists' outputs. Three parts:

* **One teacher per sample**: the target of a sample is its own teacher's probabilities, the K largest of them; 0 for the teacher's other
  classes and for those of all other verticals. The loss is the sigmoid cross-entropy, summed over classes, averaged over the batch.
* **Structurally connected layers**: of two hidden layers, one or both are separate for each vertical, whose classes read only their own
  units, so that capacity grows without a layer over everything. ``x`` of the units may be shared.
* **Self-paced scaling**: :math:`y = \gamma\, x / \lVert x \rVert` over the logits of a vertical, with a learnt scale per vertical that starts at
  :math:`\sqrt{N_v}`; verticals learn at their own pace.

At 10^5 classes a batch of logits is as large as the network. :meth:`StructurallyConnectedHead.loss` computes them a vertical at a time,
and again in the backward pass, so that they never stand in memory together; targets are K numbers a sample, never a row of zeros.

No code was released. Activations between layers (ReLU), biases on every layer, and a norm over the vertical's own logits are choices of ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write
from offprint.methods.registry import Method, register_method
from offprint.tasks.hooks import around_step

TOP_K = 100
LEVELS = ("vertical", "class", "none")
OUTPUTS = ("sigmoid", "softmax")


# -- targets and losses ----------------------------------------------------------------------------------------------
def teacher_probabilities(logits: Tensor, k: int = TOP_K, outputs: str = "sigmoid") -> tuple[Tensor, Tensor]:
    """The ``k`` largest probabilities of a teacher: classes (B, K) and values (B, K); all where it has fewer.

    Args:
        logits: (B, N_v).
        outputs: ``sigmoid`` of teachers trained as in the paper, ``softmax`` of those trained by cross-entropy over one class.
    """
    if outputs not in OUTPUTS:
        raise unknown("outputs", outputs, OUTPUTS)
    found = logits.sigmoid() if outputs == "sigmoid" else logits.softmax(-1)
    values, classes = found.topk(min(k, logits.shape[1]), dim=1)
    return classes, values


def multi_teacher_targets(
    teacher_logits: Sequence[Tensor], vertical: Tensor, k: int = TOP_K, outputs: str = "sigmoid"
) -> Tensor:
    """Targets (B, N) over the classes of all verticals, in their order.

    Args:
        teacher_logits: of each vertical's teacher, (B, N_v).
        vertical: (B,) of each sample, or (B, M) true for each vertical it has a label in: then the union of their targets.
        k: probabilities kept of a teacher.
        outputs: as for :func:`teacher_probabilities`.
    """
    vertical = torch.as_tensor(vertical)
    member = vertical if vertical.ndim == 2 else F.one_hot(vertical.long(), len(teacher_logits)).bool()
    if member.shape[1] != len(teacher_logits):
        raise OffprintError(
            f"{len(teacher_logits)} teachers, and samples of {member.shape[1]} verticals; they must agree"
        )
    rows = []
    for v, logits in enumerate(teacher_logits):
        classes, values = teacher_probabilities(logits, k, outputs)
        dense = torch.zeros_like(logits).scatter(1, classes, values)
        rows.append(dense * member[:, v, None].to(dense))
    return torch.cat(rows, 1)


def summed_sigmoid_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid cross-entropy of (B, N) against targets in [0, 1], summed over classes, averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="sum") / len(logits)


def ancestor_targets(labels: Tensor, parents: Mapping[int, int], classes: int) -> Tensor:
    """Targets (B, classes) with 1 for the label and each of its ancestors (a black bird is a bird).

    Args:
        labels: (B,).
        parents: class → its parent; classes at the top are left out.

    Raises:
        OffprintError: the parents run in a circle.
    """
    lines: dict[int, list[int]] = {}
    for c in range(classes):
        line = [c]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            if len(line) > classes:
                raise OffprintError(f"the parents of class {c} run in a circle: {line[:6]}")
        lines[c] = line
    out = torch.zeros(len(labels), classes)
    for row, label in enumerate(labels.tolist()):
        out[row, lines[label]] = 1
    return out


def _sparse_loss(logits: Tensor, classes: Tensor, values: Tensor) -> Tensor:
    """The summed loss (not averaged) of logits (B, N) whose targets are ``values`` (B, K) at ``classes`` (B, K), elsewhere 0."""
    return F.softplus(logits).sum() - (values.to(logits) * logits.gather(1, classes)).sum()


# -- layers ----------------------------------------------------------------------------------------------------------
def _bounds(sizes: Sequence[int]) -> list[tuple[int, int]]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return list(zip(ends[:-1], ends[1:], strict=True))


class SelfPacedScaling(nn.Module):
    """y = gamma * x / norm of x, with a learnt gamma.

    Args:
        verticals: classes of each, in the order of the logits.
        level: one gamma per ``vertical`` or per ``class``.
        start: of gamma; ``None`` is the root of the vertical's number of classes (the paper's best).
        noise: deviation of the start.
        norm_over: the norm runs over the logits of the ``vertical``, or of ``all``.
        learn: let gamma change.
    """

    def __init__(
        self, verticals: Sequence[int], level: str = "vertical", start: float | None = None, noise: float = 1e-3,
        norm_over: str = "vertical", learn: bool = True, eps: float = 1e-12,
    ):  # fmt: skip
        super().__init__()
        if level not in LEVELS[:2]:
            raise unknown("level", level, LEVELS[:2])
        if norm_over not in ("vertical", "all"):
            raise unknown("norm_over", norm_over, ("vertical", "all"))
        self.verticals, self.level, self.norm_over, self.eps = tuple(verticals), level, norm_over, eps
        sizes = torch.tensor(self.verticals)
        each = sizes if level == "vertical" else sizes.repeat_interleave(sizes)
        first = each.to(torch.get_default_dtype()).sqrt() if start is None else torch.full((len(each),), float(start))
        self.gamma = nn.Parameter(first + noise * torch.randn(len(each)), requires_grad=learn)

    def scale(self, logits: Tensor, vertical: int, norm: Tensor | None = None) -> Tensor:
        """The scaled logits (B, N_v) of one vertical; ``norm`` (B, 1) where it runs over all."""
        a, b = _bounds(self.verticals)[vertical]
        gamma = self.gamma[vertical] if self.level == "vertical" else self.gamma[a:b]
        return gamma * logits / (logits.norm(dim=1, keepdim=True) if norm is None else norm).clamp_min(self.eps)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, N) to the same."""
        norm = logits.norm(dim=1, keepdim=True) if self.norm_over == "all" else None
        return torch.cat([self.scale(x, v, norm) for v, x in enumerate(logits.split(list(self.verticals), 1))], 1)


class _Row(nn.ModuleList):
    """A linear layer for each vertical."""

    def __init__(self, sizes: Sequence[tuple[int, int]]):
        super().__init__(nn.Linear(a, b) for a, b in sizes)


class StructurallyConnectedHead(nn.Module):
    """Two hidden layers and the classes, with ReLU between: (B, in_features) to logits (B, N) in the order of the verticals.

    Args:
        in_features: width of the backbone's output.
        verticals: classes of each.
        head: ``"fc4096-sc512"``: kind and width of both hidden layers, ``fc`` for one over all, ``sc`` for one per vertical.
        shared: units of a separate second layer over a common first one that all verticals share; they come first.
        scaling: a :class:`SelfPacedScaling` of the same verticals, or ``None``.

    Raises:
        OffprintError: a head that is none of fc-fc, fc-sc and sc-sc, or shared units where none can be.
    """

    def __init__(
        self, in_features: int, verticals: Sequence[int], head: str = "fc4096-sc512", shared: int = 0,
        scaling: SelfPacedScaling | None = None,
    ):  # fmt: skip
        super().__init__()
        found = re.fullmatch(r"(fc|sc)(\d+)-(fc|sc)(\d+)", head)
        kinds = (found[1], found[3]) if found else ()
        if found is None or kinds == ("sc", "fc"):
            raise OffprintError(
                f"head={head!r}; expected fcA-fcB, fcA-scB or scA-scB with two widths, such as fc4096-sc512"
            )
        if not verticals or min(verticals) < 1:
            raise OffprintError(f"verticals={list(verticals)}; each needs one class or more")
        one, two = int(found[2]), int(found[4])
        if not 0 <= shared <= two or (shared and kinds != ("fc", "sc")):
            raise OffprintError(
                f"shared={shared} with head={head!r}; 0 to {two} units of an sc layer over an fc layer can be shared"
            )
        self.in_features, self.verticals, self.shared, self.kinds = in_features, tuple(verticals), shared, kinds
        self.out_features = sum(verticals)
        m, private = len(verticals), two - shared
        self.fc1: nn.Module = nn.Linear(in_features, one) if kinds[0] == "fc" else _Row([(in_features, one)] * m)
        self.fc2: nn.Module = nn.Linear(one, two) if kinds[1] == "fc" else _Row([(one, private)] * m)
        if shared:
            self.fc2_shared = nn.Linear(one, shared)
        self.out: nn.Module = (
            nn.Linear(two, sum(verticals)) if kinds[1] == "fc" else _Row([(two, n) for n in verticals])
        )
        if scaling is not None and scaling.verticals != self.verticals:
            raise OffprintError(f"the scaling is of verticals {list(scaling.verticals)}, the head of {list(verticals)}")
        self.scaling = scaling

    def start_at_prior(self) -> None:
        """Biases of the classes at the log odds of one in N_v, so that the first loss is not that of N even guesses.

        Without scaling only: a scaled logit has no such offset.
        """
        for layer, n in zip(self.out if isinstance(self.out, _Row) else [self.out], self.verticals, strict=False):
            size = n if isinstance(self.out, _Row) else self.out_features
            nn.init.constant_(layer.bias, -math.log(max(1.0, size - 1.0)))

    def _hidden(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What all verticals have in common: the first layer or the input, and the second layer or its shared units."""
        first = F.relu(self.fc1(x)) if self.kinds[0] == "fc" else x
        if self.kinds[1] == "fc":
            return first, F.relu(self.fc2(first))
        return first, F.relu(self.fc2_shared(first)) if self.shared else None

    def _vertical(self, first: Tensor, second: Tensor | None, v: int) -> Tensor:
        """The logits (B, N_v) of one vertical, not scaled."""
        if self.kinds[1] == "fc":
            a, b = _bounds(self.verticals)[v]
            return F.linear(second, self.out.weight[a:b], self.out.bias[a:b])  # type: ignore[arg-type,index]
        if self.kinds[0] == "sc":
            first = F.relu(self.fc1[v](first))  # type: ignore[index]
        own = F.relu(self.fc2[v](first))  # type: ignore[index]
        return self.out[v](own if second is None else torch.cat([second, own], 1))  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) to (B, N)."""
        first, second = self._hidden(x)
        if self.kinds[1] == "fc":
            logits = self.out(second)
        else:
            logits = torch.cat([self._vertical(first, second, v) for v in range(len(self.verticals))], 1)
        return logits if self.scaling is None else self.scaling(logits)

    def loss(self, x: Tensor, classes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The summed sigmoid cross-entropy, a vertical at a time: its mean over the batch, and the part (M,) of each vertical.

        Equal to ``summed_sigmoid_loss(self(x), targets)``; the logits of one vertical are in memory at a time, in both passes.

        Args:
            x: (B, in_features).
            classes: (B, K), indices among all N of the targets that are not 0; repeated ones count once, with the largest value.
            values: (B, K), targets.
        """
        values = _once(classes, values)
        first, second = self._hidden(x)
        norm = None
        if self.scaling is not None and self.scaling.norm_over == "all":
            squares = [
                checkpoint(
                    lambda a, b, v=v: self._vertical(a, b, v).square().sum(1, keepdim=True),
                    first,
                    second,
                    use_reentrant=False,
                )
                for v in range(len(self.verticals))
            ]
            norm = torch.stack(squares).sum(0).sqrt()
        parts = []
        for v, (a, b) in enumerate(_bounds(self.verticals)):
            inside = (classes >= a) & (classes < b)
            at, target = (classes - a).clamp(0, b - a - 1), torch.where(inside, values, torch.zeros_like(values))
            parts.append(checkpoint(self._part, first, second, norm, v, at, target, use_reentrant=False))
        each = torch.stack(parts) / len(x)
        return each.sum(), each.detach()

    def _part(self, first, second, norm, v: int, at: Tensor, target: Tensor) -> Tensor:
        logits = self._vertical(first, second, v)
        if self.scaling is not None:
            logits = self.scaling.scale(logits, v, norm)
        return _sparse_loss(logits, at, target)

    def memory(self, batch: int) -> dict[str, int]:
        """Weights of the head, bytes of a batch of all logits, and of the largest vertical's (single precision)."""
        weights = sum(p.numel() for p in self.parameters())
        return {"weights": weights, "logits": 4 * batch * self.out_features, "largest": 4 * batch * max(self.verticals)}


def _once(classes: Tensor, values: Tensor) -> Tensor:
    """Values with 0 for all but the largest of repeated classes in a row."""
    order = values.argsort(dim=1, descending=True, stable=True)
    ranked = classes.gather(1, order)
    sorted_classes, place = ranked.sort(dim=1, stable=True)
    again = torch.zeros_like(sorted_classes, dtype=torch.bool)
    again[:, 1:] = sorted_classes[:, 1:] == sorted_classes[:, :-1]
    repeated = torch.zeros_like(again).scatter(1, order, torch.zeros_like(again).scatter(1, place, again))
    return torch.where(repeated, torch.zeros_like(values), values)


class Concentrated(nn.Module):
    """A head whose outputs are in the order of the data's classes instead of that of the verticals.

    Args:
        head: the head.
        order: for each class of the data its place among the head's logits.
    """

    def __init__(self, head: StructurallyConnectedHead, order: Sequence[int]):
        super().__init__()
        if sorted(order) != list(range(head.out_features)):
            raise OffprintError(f"order must name each of {head.out_features} logits once")
        self.head, self.in_features, self.out_features = head, head.in_features, head.out_features
        self.register_buffer("order", torch.tensor(list(order)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)[:, self.order]


# -- evaluation ------------------------------------------------------------------------------------------------------
def vertical_average_precision(scores: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """Average precision (%) within a vertical: only its samples, ranked by the scores of its classes alone; mean over classes.

    Args:
        scores: (B, N).
        labels: (B,).
        classes: of the vertical, indices among the N.
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    place = {c: i for i, c in enumerate(classes)}
    mine = [i for i, label in enumerate(labels.tolist()) if label in place]
    if not mine:
        raise OffprintError("no sample is of this vertical")
    target = F.one_hot(torch.tensor([place[int(labels[i])] for i in mine]), len(place))
    chosen = scores[mine][:, list(classes)].softmax(1)
    there = target.sum(0) > 0
    found = multilabel_average_precision(chosen[:, there], target[:, there], int(there.sum()), average="macro")
    return 100 * float(found)


# -- the method ------------------------------------------------------------------------------------------------------
@register_method
@dataclass(kw_only=True)
class KnowledgeConcentration(Method):
    """Trains one network on the classes of many specialists, from their outputs.

    Args:
        teachers: folders of the specialists' runs, or model names with released weights; each has a vertical of the data's classes.
        head: kinds and widths of the hidden layers: fc4096-fc512, fc4096-sc512 (the paper's best), sc512-sc512, ...
        shared: units of the second layer that all verticals share.
        scale: self-paced scaling per vertical, per class, or none.
        top_k: probabilities kept of a teacher.
        outputs: of the teachers: sigmoid (trained with the method specialist), or softmax (trained as usual).
        hard_weight: weight of the labels' own loss beside.
        overlap: a class of two teachers: stop, or max (the larger of their probabilities).
        sizes: classes of each vertical; found from the teachers.
        order: place of each class among the logits; found from the teachers.
    """

    name = "knowledge-concentration"
    paper = "knowledge-concentration"
    kind = "module"
    changes = "the classifier (layers per vertical) and the loss (the outputs of one teacher per sample)"
    replaces = ("labels", "loss", "classifier")
    reshapes = True

    teachers: tuple[str, ...] = ()
    head: str = "fc4096-sc512"
    shared: int = 0
    scale: str = "vertical"
    top_k: int = TOP_K
    outputs: str = "sigmoid"
    hard_weight: float = 0.0
    overlap: str = "stop"
    sizes: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def __post_init__(self):
        for name, known in (("scale", LEVELS), ("outputs", OUTPUTS), ("overlap", ("stop", "max"))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.top_k < 1 or self.hard_weight < 0:
            raise OffprintError(f"top_k={self.top_k}, hard_weight={self.hard_weight}; give 1 or more, and 0 or more")

    def settle(self, job: Any) -> None:
        from offprint.tasks.classification import ImageClassification
        from offprint.tasks.contract import find

        if len(self.teachers) < 2:
            raise OffprintError(
                f"knowledge-concentration takes two teachers or more, got {len(self.teachers)}: teachers=RUN_A,RUN_B"
            )
        self.ready = []
        for where in self.teachers:
            found = find(where, pretrained=not Path(where).exists())
            if not isinstance(found.task, ImageClassification) or not found.about.get("classes"):
                raise OffprintError(
                    f"{where} {found.task.does}; teachers are classifiers that know the names of their classes"
                )
            self.ready.append(found)

    def data(self, job: Any) -> None:
        if not hasattr(job.data, "classes"):
            raise OffprintError("knowledge-concentration trains classifiers of pictures")
        owned = [list(map(str, r.about["classes"])) for r in self.ready]
        sizes, order, self.places = join_verticals(owned, list(map(str, job.data.classes)), self.teachers, self.overlap)
        if self.sizes and (tuple(sizes), tuple(order)) != (tuple(self.sizes), tuple(self.order)):
            raise DataError("the teachers have other classes than when this run began; choose another --out")
        self.sizes, self.order = tuple(sizes), tuple(order)

    def reshape(self, model: nn.Module) -> nn.Module:
        name = getattr(model, "classifier", "")
        old = model.get_submodule(name) if name else None
        if not isinstance(old, nn.Linear) or old.out_features != sum(self.sizes):
            raise OffprintError(
                f"{type(model).__name__} has no linear classifier of {sum(self.sizes)} classes to put the head in place of"
            )
        scaling = None if self.scale == "none" else SelfPacedScaling(self.sizes, self.scale)
        head = StructurallyConnectedHead(old.in_features, self.sizes, self.head, self.shared, scaling)
        if scaling is None:
            head.start_at_prior()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, leaf, Concentrated(head, self.order))
        return model

    def network(self, job: Any) -> None:
        size = job.network.get_submodule(job.network.classifier).head.memory(job.how.batch_size)
        job.say(
            f"{len(self.sizes)} verticals, {sum(self.sizes):,} classes: the head has {size['weights']:,} weights; logits of a batch would be "
            f"{size['logits'] / 2**20:.1f} MiB, {size['largest'] / 2**20:.1f} MiB are held at a time"
        )

    def module(self, job: Any, module: Any) -> Any:
        net = job.network
        # outside the module's tree, so that teachers are neither trained nor saved
        teachers = [_Teacher(r, job.entry.preprocessing) for r in self.ready]

        def step(_: Callable, batch: Any, batch_idx: int) -> Tensor:
            images, labels = batch
            classes, values = self.targets(teachers, images, labels)
            if self.hard_weight:
                own = torch.tensor(self.order, device=labels.device)[labels][:, None]
            features = net.forward_head(net.forward_features(images), pre_logits=True)
            if net.drop_rate:
                features = F.dropout(features, net.drop_rate, net.training)
            head = net.get_submodule(net.classifier).head
            loss, each = head.loss(features, classes, values)
            if self.hard_weight:
                loss = loss + self.hard_weight * head.loss(features, own, torch.ones_like(own, dtype=features.dtype))[0]
            module.check_loss(loss)
            module.log("train_loss", loss, prog_bar=True)
            for v, part in enumerate(each):
                module.log(f"train_loss_vertical_{v}", part)
            return loss

        around_step(module, step)
        return module

    @torch.no_grad()
    def targets(self, teachers: Sequence[_Teacher], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(places among the logits (B, K), probabilities (B, K)) of a batch, each from the teachers that know the sample's class."""
        width = max(min(self.top_k, len(t)) for t in self.places) * len(teachers)
        classes = torch.zeros(len(images), width, dtype=torch.long, device=images.device)
        values = torch.zeros(len(images), width, device=images.device, dtype=images.dtype)
        where = torch.tensor(self.order, device=labels.device)[labels]
        column = 0
        for teacher, places in zip(teachers, self.places, strict=True):
            own = torch.tensor(places, device=labels.device)
            mine = torch.isin(where, own).nonzero()[:, 0]
            count = min(self.top_k, len(places))
            if len(mine):
                found, probability = teacher_probabilities(teacher(images[mine]), self.top_k, self.outputs)
                classes[mine, column : column + count] = own[found]
                values[mine, column : column + count] = probability.to(values)
            column += count
        return classes[:, :column], values[:, :column]

    def finish(self, job: Any) -> dict[str, Any]:
        return {"verticals": [len(p) for p in self.places]}


class _Teacher:
    """A specialist that sees pictures as it is used to: its own normalisation, and its own size where it has one."""

    def __init__(self, ready: Any, student: Mapping[str, Any]):
        self.model = ready.model.eval().requires_grad_(False)
        size = ready.about.get("input_size")
        self.size = (size, size) if isinstance(size, int) else tuple(size[-2:]) if size else None
        ends = lambda p: [torch.tensor(p.get(k, d)).view(-1, 1, 1) for k, d in (("mean", (0.0,)), ("std", (1.0,)))]  # noqa: E731
        self.ours, self.theirs = ends(student), ends(ready.about.get("preprocessing") or student)

    def __call__(self, images: Tensor) -> Tensor:
        (m, s), (tm, ts) = ([v.to(images) for v in pair] for pair in (self.ours, self.theirs))
        if not (torch.equal(m, tm) and torch.equal(s, ts)) and len(m) == len(tm) == images.shape[1]:
            images = (images * s + m - tm) / ts
        if self.size and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.model.to(images.device)(images)


def join_verticals(
    owned: Sequence[Sequence[str]], classes: Sequence[str], names: Sequence[str], overlap: str = "stop"
) -> tuple[list[int], list[int], list[list[int]]]:
    """How the classes of teachers make up those of the data.

    Args:
        owned: names of each teacher's classes.
        classes: names of the data's.
        names: of the teachers, for messages.
        overlap: a class of two teachers: ``stop``, or ``max``, where it belongs to the first one's vertical.

    Returns:
        Classes of each vertical; for each class of the data its place among the logits; for each teacher the places of its classes.

    Raises:
        DataError: classes of no teacher, classes without pictures, or classes of two teachers (named).
    """
    place: dict[str, int] = {}
    sizes, twice = [], []
    for teacher in owned:
        new = [c for c in teacher if c not in place]
        twice += [c for c in teacher if c in place]
        for c in new:
            place[c] = len(place)
        sizes.append(len(new))
    if twice and overlap == "stop":
        raise DataError(
            f"{len(twice)} classes belong to more than one teacher ({', '.join(twice[:5])}); leave one teacher out, rename the classes, or "
            "pass overlap=max to take the larger of their probabilities"
        )
    if min(sizes) == 0:
        empty = names[sizes.index(0)]
        raise DataError(f"{empty} has no class that an earlier teacher has not; leave it out")
    without = [c for c in classes if c not in place]
    if without:
        raise DataError(
            f"no teacher knows {len(without)} of the data's {len(classes)} classes: {', '.join(without[:5])}"
        )
    unseen = [c for c in place if c not in set(classes)]
    if unseen:
        raise DataError(f"the data have no pictures of {len(unseen)} classes of the teachers: {', '.join(unseen[:5])}")
    return sizes, [place[c] for c in classes], [[place[c] for c in teacher] for teacher in owned]


@register_method
@dataclass(kw_only=True)
class Specialist(Method):
    """Trains a specialist as the paper does: sigmoid cross-entropy over its classes, summed, instead of one class among all."""

    name = "specialist"
    paper = "knowledge-concentration"
    kind = "module"
    changes = "the loss: sigmoid cross-entropy, summed over classes"
    replaces = ("labels", "loss")

    def module(self, job: Any, module: Any) -> Any:
        def step(_: Callable, batch: Any, batch_idx: int) -> Tensor:
            images, labels = batch
            logits = job.network(images)
            logits = logits[0] if isinstance(logits, tuple) else logits
            loss = summed_sigmoid_loss(logits, F.one_hot(labels, logits.shape[1]))
            module.check_loss(loss)
            module.log("train_loss", loss, prog_bar=True)
            return loss

        around_step(module, step)
        return module


# -- from runs to one run --------------------------------------------------------------------------------------------
class _Union(torch.utils.data.Dataset):
    """The pictures of several data sets, under the names of all their classes."""

    def __init__(self, parts: Sequence[tuple[Any, Sequence[int]]]):
        self.parts = [part for part, _ in parts]
        self.where = [(p, i) for p, (part, _) in enumerate(parts) for i in range(len(part))]
        self.targets = [names[int(t)] for part, names in parts for t in part.targets]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int):
        part, i = self.where[index]
        return self.parts[part][i][0], self.targets[index]


def union_of(teachers: Sequence[str], seed: int = 0) -> Any:
    """The pictures that the teachers of these runs were trained on, as one data set; what each held out stays held out."""
    from offprint.data.images import ImageSplits
    from offprint.tasks.classification import own_source
    from offprint.tasks.contract import find

    opened = []
    for where in teachers:
        ready = find(where)
        splits = ready.task.open(own_source(ready), seed=int(ready.about.get("seed", seed)))
        if [str(c) for c in splits.classes] != [str(c) for c in ready.about["classes"]]:
            raise DataError(f"the data of {where} have other classes now than when it was trained; give --data")
        opened.append(splits)
    classes = list(dict.fromkeys(str(c) for s in opened for c in s.classes))
    place = {c: i for i, c in enumerate(classes)}
    maps = [[place[str(c)] for c in s.classes] for s in opened]
    train, val = (_Union([(getattr(s, k), m) for s, m in zip(opened, maps, strict=True)]) for k in ("train", "val"))
    return ImageSplits(train, val, classes, " + ".join(str(t) for t in teachers))


def concentrate(
    teachers: Sequence[str | Path],
    student: str,
    data: Any = None,
    out: str | Path = "runs/concentrate",
    *,
    say: Callable[[str], None] = lambda text: None,
    method: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, list[dict[str, Any]]]:
    """Train one student on the classes of several specialists.

    Args:
        teachers: folders of runs, each a vertical.
        student: name of a backbone, or the folder of a run to start from.
        data: pictures of all classes; default those that the teachers were trained on.
        out: folder of the run.
        say: told what is found.
        method: options of :class:`KnowledgeConcentration`.
        kwargs: as of :func:`offprint.train`.

    Returns:
        The run, and a row for each vertical: its classes, the student's and the teacher's accuracy and average precision (%) within it
        on the held-out pictures.
    """
    from offprint.tasks.contract import train

    names = [str(t) for t in teachers]
    source = union_of(names) if data is None else data
    options = {"name": "knowledge-concentration", "teachers": names, **(method or {})}
    done = train(student, source, out, methods=[options], say=say, **kwargs)
    rows = list(_by_vertical(done, names, source)) if done.leader else []
    if done.leader:
        atomic_write(done.folder / "verticals.json", json.dumps(rows, indent=1) + "\n")
    return done, rows


@torch.no_grad()
def _by_vertical(done: Any, teachers: Sequence[str], source: Any) -> Iterator[dict[str, Any]]:
    from torch.utils.data import DataLoader

    from offprint.data.images import Subset
    from offprint.tasks.contract import find

    student = done.load()
    splits = student.task.open(source, seed=int(student.about.get("seed", 0)))
    held = Subset(splits.val, range(len(splits.val)), student.task.transform(student))
    scores = torch.cat([student.model(x) for x, _ in DataLoader(held, 64)])
    labels, place = torch.tensor(held.targets), {str(c): i for i, c in enumerate(splits.classes)}
    for where in teachers:
        teacher = find(where)
        classes = [place[str(c)] for c in teacher.about["classes"]]
        mine = [i for i, t in enumerate(held.targets) if t in set(classes)]
        if not mine:
            continue
        seen = Subset(splits.val, mine, teacher.task.transform(teacher))
        said = torch.cat([teacher.model(x) for x, _ in DataLoader(seen, 64)])
        whole = torch.full((len(mine), len(place)), -1e9)
        whole[:, classes] = said
        truth = labels[mine]
        within = torch.tensor(classes)
        row: dict[str, Any] = {"vertical": str(where), "classes": len(classes), "pictures": len(mine)}
        for name, found in (("student", scores[mine]), ("teacher", whole)):
            best = within[found[:, classes].argmax(1)]
            row[f"{name}_accuracy"] = 100 * float((best == truth).float().mean())
            row[f"{name}_ap"] = vertical_average_precision(found, truth, classes)
        yield row
