"""The training procedures of ForwardGNN: what one step of one layer does, and how it is validated on the way.

A procedure is opened at a stage (a layer, or all layers where they learn together), stepped, validated, and closed. An input
that is frozen while its layer learns is normalised and passed along the graph once, when the stage opens, and only for the rows
that the loss reads; the mathematics is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.models.graphs.forward_gnn import ForwardGNN, Told, class_columns, link_classes, unit_rows
from offprint.nn.message_flow import Block, compact


def forward_forward_loss(outputs: Tensor, theta: float, target: Tensor | float) -> Tensor:
    r"""Binary cross entropy of the goodness :math:`\sum_j y_j^2 - \theta` of each row (m, H), mean over rows.

    Args:
        outputs: (m, H).
        theta: the threshold.
        target: 1 for positive rows and 0 for negative ones; one number or (m,).
    """
    return goodness_loss(outputs.square().sum(1) - theta, target)


def goodness_loss(goodness: Tensor, target: Tensor | float) -> Tensor:
    """Binary cross entropy with logits (m,) against one target or (m,), mean over rows."""
    target = torch.as_tensor(target, dtype=goodness.dtype, device=goodness.device)
    return F.binary_cross_entropy_with_logits(goodness, target.expand_as(goodness))


class Step(NamedTuple):
    """One update of one layer: its number, the loss before it, and the logits the loss was made of.

    ``logits``: (positive, negative) goodness or scores; or (m, C) of the training nodes.
    """

    layer: int
    loss: float
    logits: Tensor | tuple[Tensor, Tensor]


@dataclass
class Nodes:
    """A node classification problem: the graph, its training and validation nodes, and the wrong classes that
    forward-forward trains on, (K, training nodes)."""

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    wrong: Tensor | None = None


@dataclass
class Links:
    """A link prediction problem: messages go along ``edge_index``; pairs are (2, m)."""

    x: Tensor
    edge_index: Tensor
    positive: Tensor
    negative: Tensor
    val: Tensor
    val_label: Tensor


def draw_wrong_classes(y: Tensor, num_classes: int, number: int, generator: torch.Generator) -> Tensor:
    """(K, m): for each node all wrong classes in a random order, cut to ``number``."""
    keys = torch.rand(len(y), num_classes, generator=generator)
    keys[torch.arange(len(y)), y] = 2.0
    return keys.argsort(1)[:, : min(number, num_classes - 1)].t().contiguous()


def roc_auc(score: Tensor, label: Tensor) -> float:
    """Area under the ROC curve; ties count half."""
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    ranks = (count.cumsum(0).double() - (count - 1).double() / 2)[place]
    positive = label.bool()
    p, q = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * q))


class Procedure:
    """What all forms share; ``stages`` of them follow each other."""

    def __init__(self, model: ForwardGNN, problem, *, lr: float = 1e-3, weight_decay: float = 5e-4):
        self.model, self.problem, self.lr, self.decay = model, problem, lr, weight_decay
        self.stages = model.num_layers if model.form.layerwise else 1
        self.states: list = []
        self.optimizers: list[torch.optim.Optimizer] = []

    def layers(self, stage: int) -> list:
        """The layers that learn in a stage."""
        return [self.model.trained[stage]] if self.model.form.layerwise else self.model.trained

    def open(self, stage: int) -> None:
        self.optimizers = [
            torch.optim.Adam(layer.parameters(), self.lr, weight_decay=self.decay) for layer in self.layers(stage)
        ]
        with torch.no_grad():
            self.prepare(stage)

    def update(self, loss: Tensor, which: int = 0, clip: float = 0.0) -> float:
        optimizer = self.optimizers[which]
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
        optimizer.step()
        return float(loss.detach())

    def prepare(self, stage: int) -> None:
        """Make what stays the same during the stage."""

    def step(self, stage: int) -> list[Step]:
        """One epoch of the stage."""
        raise NotImplementedError

    def validate(self, stage: int) -> float:
        """Accuracy or area under the ROC curve on the validation part, by the layers so far."""
        raise NotImplementedError

    def close(self, stage: int) -> None:
        """Hand the outputs of a finished stage to the next."""


class _Layerwise(Procedure):
    """Layers one after another; what earlier ones add to the validation scores is kept."""

    earlier: Tensor | float = 0.0

    def contribution(self) -> Tensor:
        """Of the open layer, on the validation part."""
        raise NotImplementedError

    @torch.no_grad()
    def validate(self, stage: int) -> float:
        scores = self.earlier + self.contribution()
        if isinstance(self.problem, Links):
            return roc_auc(scores, self.problem.val_label)
        return float((scores.argmax(1) == self.problem.y[self.problem.val]).double().mean())

    @torch.no_grad()
    def close(self, stage: int) -> None:
        if stage + 1 < self.stages:
            self.earlier = self.earlier + self.contribution()
            self.advance(self.model.trained[stage])

    def advance(self, layer) -> None:
        raise NotImplementedError


class ForwardForward(_Layerwise):
    """Forms ``ff_la`` and ``ff_vn``: a pass with the right classes, passes with wrong ones.

    ``x`` and ``val_x`` are the normalised inputs of the open layer, of all passes."""

    def __init__(self, model: ForwardGNN, problem: Nodes, **options):
        super().__init__(model, problem, **options)
        p, n, c = problem, len(problem.x), model.num_classes
        told = [p.y[p.train], *p.wrong]  # type: ignore[misc]
        nodes = torch.cat([p.train, p.val])
        asked = [torch.cat([p.y[p.train], torch.full_like(p.val, k)]) for k in range(c)]
        self.columns = model.method == "ff_la"
        if self.columns:
            self.n = n
            self.graphs, self.val_graphs = [p.edge_index] * len(told), [p.edge_index] * len(asked)
            self.x = Told(p.x, [class_columns(n, c, p.train, k, p.x.dtype) for k in told])
            self.val_x = Told(p.x, [class_columns(n, c, nodes, k, p.x.dtype) for k in asked], self.x.x)
        else:
            self.n = n + c
            self.graphs = [link_classes(p.edge_index, n, p.train, k) for k in told]
            self.val_graphs = [link_classes(p.edge_index, n, nodes, k) for k in asked]
            self.x = self.val_x = unit_rows(compact(torch.cat([p.x, model.virtual])))

    def prepare(self, stage: int) -> None:
        layer, p = self.model.trained[stage], self.problem
        self.block = Block(self.graphs, self.n, p.train, self.columns)
        self.output = layer.frozen(self.x, self.block)
        # the candidate classes share their input only before the first layer of ff_vn
        self.val_apart = self.columns or stage > 0
        block = Block(self.val_graphs, self.n, p.val, self.val_apart)
        self.val_output = layer.frozen(self.val_x, block)

    def step(self, stage: int) -> list[Step]:
        goodness, m = self.output().square().sum(1) - self.model.theta, len(self.problem.train)
        loss = goodness_loss(goodness[:m], 1.0) + goodness_loss(goodness[m:], 0.0)
        return [Step(stage, self.update(loss), (goodness[:m].detach(), goodness[m:].detach()))]

    def contribution(self) -> Tensor:
        goodness = self.val_output().square().mean(1) - self.model.theta
        return goodness.view(self.model.num_classes, -1).t()

    def advance(self, layer) -> None:
        graphs = self.graphs if self.columns else self.graphs[:1]  # ff_vn: the positive outputs serve all
        self.x = unit_rows(layer(self.x, Block(graphs, self.n, disjoint=self.columns)))
        self.val_x = unit_rows(layer(self.val_x, Block(self.val_graphs, self.n, disjoint=self.val_apart)))


class SingleForward(_Layerwise):
    """Form ``sf``: a node must match the virtual node of its class."""

    def __init__(self, model: ForwardGNN, problem: Nodes, **options):
        super().__init__(model, problem, **options)
        p = problem
        x, edges, self.n = model.augment(p.x, p.edge_index, p.train, p.y[p.train])
        self.x = compact(x)  # type: ignore[arg-type]
        virtual = torch.arange(len(p.x), self.n, device=p.x.device)
        self.full = Block([edges], self.n)
        self.blocks = [Block([edges], self.n, torch.cat([part, virtual])) for part in (p.train, p.val)]

    def prepare(self, stage: int) -> None:
        layer, x = self.model.trained[stage], unit_rows(self.x)
        self.output = layer.frozen(x, self.blocks[0])
        self.val_output = layer.frozen(x, self.blocks[1])

    def step(self, stage: int) -> list[Step]:
        m, p = len(self.problem.train), self.problem
        h = self.output()
        logits = self.model.logits(h[:m], h[m:])
        loss = F.cross_entropy(logits, p.y[p.train])
        return [Step(stage, self.update(loss), logits.detach())]

    def contribution(self) -> Tensor:
        h, m = self.val_output(), len(self.problem.val)
        return F.softmax(self.model.logits(h[:m], h[m:]), -1)

    def advance(self, layer) -> None:
        self.x = layer(unit_rows(self.x), self.full)


class LinkForward(_Layerwise):
    """Forms ``link_fl`` and ``link_ff``: products of end-node outputs."""

    def __init__(self, model: ForwardGNN, problem: Links, **options):
        super().__init__(model, problem, **options)
        self.x = compact(problem.x)
        self.block = Block([problem.edge_index], len(problem.x))

    def prepare(self, stage: int) -> None:
        self.output = self.model.trained[stage].frozen(unit_rows(self.x), self.block)

    def step(self, stage: int) -> list[Step]:
        loss, logits = link_loss(self.model, self.output(), self.problem)
        return [Step(stage, self.update(loss), logits)]

    def contribution(self) -> Tensor:
        return self.model.link_probability(self.output(), self.problem.val)

    def advance(self, layer) -> None:
        self.x = self.output()


def link_loss(model: ForwardGNN, h: Tensor, p: Links) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Binary cross entropy of pairs: mean over all of them, or (``link_ff``) the sum of the means of both kinds."""
    scores = [model.pair_scores(h, pairs) for pairs in (p.positive, p.negative)]
    each = [F.softplus(-scores[0]), F.softplus(scores[1])]
    loss = each[0].mean() + each[1].mean() if model.method == "link_ff" else torch.cat(each).mean()
    return loss, (scores[0].detach(), scores[1].detach())


class _Joint(Procedure):
    """Layers that learn together; ``states`` are what they read of each other."""

    def __init__(self, model: ForwardGNN, problem, **options):
        super().__init__(model, problem, **options)
        p, self.link = problem, isinstance(problem, Links)
        labelled = () if self.link else (p.train, p.y[p.train])
        x, edges, rows = model.augment(p.x, p.edge_index, *(labelled or (None, None)))
        self.x, self.block = compact(x), Block([edges], rows)  # type: ignore[arg-type]

    def validate(self, stage: int) -> float:
        p = self.problem
        told = () if self.link else (p.train, p.y[p.train])
        added = self.model.contributions(p.x, p.edge_index, p.val, *told, kept=(self.x, self.block)).sum(0)
        return roc_auc(added, p.val_label) if self.link else float((added.argmax(1) == p.y[p.val]).double().mean())

    def match_loss(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of the training nodes against the virtual nodes."""
        p = self.problem
        logits = self.model.logits(h[p.train], h[len(p.x) :])
        return F.cross_entropy(logits, p.y[p.train]), logits.detach()


class TopToLoss(_Joint):
    """Form ``sf_top2loss``: the states above, of the previous epoch, are averaged into what a layer is judged by."""

    def prepare(self, stage: int) -> None:
        self.states = self.model.start(self.x, self.block, ())
        self.first = self.model.trained[0].frozen(self.states[0], self.block)

    def step(self, stage: int) -> list[Step]:
        made, steps = [self.states[0]], []
        for i, layer in enumerate(self.model.trained):
            h = self.first() if i == 0 else layer(self.states[i], self.block)
            loss, logits = self.match_loss(self.model.mixed(i, h, self.states))
            steps.append(Step(i, self.update(loss, i, clip=1.0), logits))
            made.append(unit_rows(h.detach()))
        self.states = made
        return steps


class TopToInput(_Joint):
    """Forms ``sf_top2input`` and ``link_fl_topdown``: the state above is part of a layer's input."""

    def prepare(self, stage: int) -> None:
        p = self.problem
        classes = None if self.link else self.model.class_vectors(len(p.x), p.train, p.y[p.train])
        self.states = self.model.top_down_start(self.x, self.block, classes)

    def step(self, stage: int) -> list[Step]:
        steps = []
        for i in self.model.alternation:
            h = self.model.trained[i](self.model.input_of(i, self.states), self.block)
            loss, logits = link_loss(self.model, h, self.problem) if self.link else self.match_loss(h)  # type: ignore
            steps.append(Step(i, self.update(loss, i), logits))
            self.states[i + 1] = h.detach()
        return steps


class Backpropagation(_Joint):
    """The baseline: one loss at the top, gradients through all layers, one Adam."""

    def layers(self, stage: int) -> list:
        return [self.model.layers]

    def prepare(self, stage: int) -> None:
        rows = None if self.link else self.problem.train
        self.last = Block(self.block.graphs, self.block.n, rows)
        one = self.model.num_layers == 1
        self.first = self.model.trained[0].frozen(unit_rows(self.x), self.last if one else self.block)

    def step(self, stage: int) -> list[Step]:
        layers, p, h = self.model.trained, self.problem, self.first()
        for i, layer in enumerate(layers[1:], 1):
            h = layer(unit_rows(h), self.last if i == len(layers) - 1 else self.block)
        if self.link:
            loss, logits = link_loss(self.model, h, p)
        else:
            loss, logits = F.cross_entropy(h, p.y[p.train]), h.detach()  # type: ignore[assignment]
        return [Step(len(layers) - 1, self.update(loss), logits)]


PROCEDURES: dict[str, type[Procedure]] = {
    "ff_la": ForwardForward,
    "ff_vn": ForwardForward,
    "sf": SingleForward,
    "sf_top2loss": TopToLoss,
    "sf_top2input": TopToInput,
    "link_fl": LinkForward,
    "link_ff": LinkForward,
    "link_fl_topdown": TopToInput,
    "backprop": Backpropagation,
    "link_backprop": Backpropagation,
}
