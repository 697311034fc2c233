r"""Forward Learning of Graph Neural Networks (ForwardGNN; ICLR 2024; arXiv 2403.11004).

Every layer learns from a loss of its own, and no gradient crosses layers. With :math:`\nu(x) = x / (\lVert x \rVert + 10^{-8})`
per row and a graph operator f (GCN, SAGE or GAT, then ReLU), a layer is :math:`h_l = f_l(\nu(h_{l-1}))`. What tells it the
labels, and how a prediction is read off its outputs, makes the forms:

* ``ff_la``: forward-forward. The class is appended to the features, and a layer learns to make
  :math:`\sum_j h_j^2 - \theta` large for right classes and small for wrong ones. Prediction: the candidate class of largest
  goodness, :math:`\sum_l (\overline{h_l^2} - \theta)` (the mean here, the sum in training).
* ``ff_vn``: the same, but the class is told by edges to one of C virtual nodes.
* ``sf``: single forward. A node must match the virtual node of its class: logits :math:`h_v \cdot h_c / \tau`, no negative pass.
* ``sf_top2loss``, ``sf_top2input``: single forward in which a layer also sees the states above it, in its loss (averaged with
  its output) or in its input (side by side). All layers learn together.
* ``link_fl``, ``link_ff``: link prediction on products of end-node outputs, by their sum or by their goodness.
* ``link_fl_topdown``: ``link_fl`` with the states above in the input.
* ``backprop``, ``link_backprop``: the same stack for ordinary training, the baseline.

Each layer gives a prediction, and predictions add up from the first, so that accuracy per depth comes for free. Training is
:mod:`offprint.methods.training.forward_gnn`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import DataError, OffprintError, unknown
from offprint.models.registry import register
from offprint.nn.graph import Adjacency
from offprint.nn.message_flow import Block, Features, compact, operator, project

TEST_STEPS = (2, 10)  # of the alternating update at prediction, those that count


@dataclass(frozen=True)
class Method:
    """What a form of the paper needs.

    Attributes:
        task: ``node`` or ``link``.
        norms: the layer list of the authors holds the normalisations too, and the trained layers have odd numbers.
        virtual: the graph gets one virtual node per class.
        above: a layer's input holds the state above it.
        layerwise: layers learn one after the other, and every depth is read off one model.
    """

    task: str
    norms: bool = False
    virtual: bool = False
    above: bool = False
    layerwise: bool = True


METHODS = {
    "ff_la": Method("node", norms=True),
    "ff_vn": Method("node", norms=True, virtual=True),
    "sf": Method("node", virtual=True),
    "sf_top2loss": Method("node", virtual=True, layerwise=False),
    "sf_top2input": Method("node", virtual=True, above=True, layerwise=False),
    "link_fl": Method("link", norms=True),
    "link_ff": Method("link", norms=True),
    "link_fl_topdown": Method("link", above=True, layerwise=False),
    "backprop": Method("node", layerwise=False),
    "link_backprop": Method("link", layerwise=False),
}


def unit_rows(x: Features) -> Features:
    """Each row divided by (its length + 1e-8); dense (n, F) or sparse."""
    if isinstance(x, Tensor):
        return x / (x.norm(dim=1, keepdim=True) + 1e-8)
    made = []
    square = x.matrix.values().square()
    rows = torch.repeat_interleave(x.matrix.crow_indices().diff())
    length = square.new_zeros(x.matrix.shape[0]).index_add_(0, rows, square).sqrt() + 1e-8
    for matrix, owner in ((x.matrix, rows), (x.transposed, x.transposed.col_indices())):
        value = matrix.values() / length[owner]
        parts = matrix.crow_indices(), matrix.col_indices(), value
        made.append(torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=False))
    return Adjacency(*made)


def link_classes(edge_index: Tensor, n: int, nodes: Tensor, classes: Tensor) -> Tensor:
    """The edges, then both directions between each given node and the virtual node n + class of its class."""
    virtual = classes + n
    return torch.cat([edge_index, torch.stack([nodes, virtual]), torch.stack([virtual, nodes])], 1)


def class_columns(
    n: int, num_classes: int, nodes: Tensor, classes: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(n, C): the one-hot class of the given nodes, 1/C for the others."""
    columns = torch.full((n, num_classes), 1.0 / num_classes, dtype=dtype, device=nodes.device)
    columns[nodes] = F.one_hot(classes, num_classes).to(dtype)
    return columns


class Told:
    """Features (n, F) with k sets of class columns (n, C) beside them, rows of unit length: stands for (k * n, F + C).

    The features' part of a product is made once for all sets.
    """

    def __init__(self, x: Tensor, columns: Sequence[Tensor], kept: Features | None = None):
        self.x, self.columns, self.k = compact(x) if kept is None else kept, torch.cat(list(columns)), len(columns)
        square = x.square().sum(1).repeat(self.k) + self.columns.square().sum(1)
        self.scale = (1.0 / (square.sqrt() + 1e-8))[:, None]

    def project(self, weight: Tensor) -> Tensor:
        c = self.columns.shape[1]
        told = F.linear(self.columns, weight[:, -c:])
        return self.scale * (project(self.x, weight[:, :-c]).repeat(self.k, 1) + told)


def check_graph(x: Tensor, edge_index: Tensor, in_channels: int | None = None) -> None:
    """Refuse features or edges that no layer can read, naming the first that is wrong."""
    if x is None or x.ndim != 2 or (in_channels is not None and x.shape[1] != in_channels):
        given = None if x is None else tuple(x.shape)
        raise DataError(f"expected node features of shape (n, {in_channels or 'F'}), got {given}")
    if edge_index is None or edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.is_floating_point():
        given = None if edge_index is None else (tuple(edge_index.shape), edge_index.dtype)
        raise DataError(f"expected edge_index of shape (2, E), whole numbers, got {given}")
    bad = (~torch.isfinite(x)).any(1).nonzero()
    if len(bad):
        raise DataError(
            f"node {int(bad[0])} has features that are not finite; mend or remove it ({len(bad)} such nodes)"
        )
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(x):
        raise DataError(
            f"edges join nodes {int(edge_index.min())} to {int(edge_index.max())}; the {len(x)} nodes are 0 to {len(x) - 1}"
        )


class UnitRows(nn.Module):
    """:func:`unit_rows` as an entry of the layer list."""

    def forward(self, x: Tensor) -> Features:
        return unit_rows(x)


class _Named(nn.Module):
    def __init__(self, gnn: nn.Module):
        super().__init__()
        self.gnn = gnn


class ForwardLayer(nn.Module):
    """Operator, then ReLU; the last layer of the baseline has no ReLU, and one attention head."""

    def __init__(self, in_channels: int, out_channels: int, name: str, last: bool = False):
        super().__init__()
        heads = {"heads": 1} if last and name == "gat" else {}
        self.gnn_layer = _Named(operator(name)(in_channels, out_channels, **heads))
        self.relu = not last

    def forward(self, x: Features, block: Block) -> Tensor:
        y = self.gnn_layer.gnn(x, block)
        return F.relu(y) if self.relu else y

    def frozen(self, x: Features, block: Block):
        """The layer as a function of its weights alone, on an input that stays as it is while the layer learns."""
        call = self.gnn_layer.gnn.frozen(x, block)
        return (lambda: F.relu(call())) if self.relu else call


class ForwardGNN(nn.Module):
    """A stack of graph layers, each able to predict by itself.

    Args:
        in_channels: F, features per node.
        hidden_channels: width of every layer.
        num_layers: L.
        num_classes: C (node forms).
        operator: ``gcn``, ``sage`` or ``gat``.
        method: a key of :data:`METHODS`.
        theta: threshold of the goodness (forward-forward forms).
        temperature: τ of the logits, in training and in prediction (single-forward forms).

    The virtual nodes' features (C, F) are a buffer, drawn once and saved with the weights; files of the authors lack it.
    """

    native = "authors"

    def __init__(
        self,
        in_channels: int = 1433,
        hidden_channels: int = 128,
        num_layers: int = 4,
        num_classes: int = 7,
        operator: str = "gcn",
        method: str = "sf",
        theta: float = 2.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        for label, given in (
            ("in_channels", in_channels),
            ("hidden_channels", hidden_channels),
            ("num_layers", num_layers),
        ):
            if int(given) < 1:
                raise OffprintError(f"{label}={given}; at least 1 is needed")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise OffprintError(f"temperature={temperature}; a positive number is needed")
        self.settings = {"in_channels": in_channels, "hidden_channels": hidden_channels, "num_layers": num_layers,
                         "num_classes": num_classes, "operator": operator, "method": method, "theta": theta,
                         "temperature": temperature}  # fmt: skip
        self.form, self.method, self.theta, self.temperature = METHODS[method], method, theta, temperature
        self.in_channels, self.num_classes, self.num_layers = in_channels, num_classes, num_layers
        if self.form.task == "node" and num_classes < 2:
            raise OffprintError(f"num_classes={num_classes}; a node classifier needs at least 2")
        first = in_channels + (num_classes if method == "ff_la" else 0)
        out = [hidden_channels] * num_layers
        if method == "backprop":
            out[-1] = num_classes
        into = [first, *out[:-1]]
        if self.form.above:
            top = [num_classes] if self.form.task == "node" else [0]
            into = [a + b for a, b in zip(into, [*out[1:], *top], strict=True)]
        entries: list[nn.Module] = []
        for i in range(num_layers):
            entries += [UnitRows()] if self.form.norms else []
            last = i == num_layers - 1 and method in ("backprop", "link_backprop")
            entries.append(ForwardLayer(into[i], out[i], operator, last))
        self.layers = nn.ModuleList(entries)
        self.widths = [first, *out]
        if self.form.virtual:
            self.register_buffer("virtual", torch.randn(num_classes, in_channels))

    @property
    def trained(self) -> list[ForwardLayer]:
        """The layers that hold weights, from the bottom."""
        return [layer for layer in self.layers if isinstance(layer, ForwardLayer)]

    def forward(self, x: Tensor, edge_index: Tensor) -> list[Tensor]:
        """The output (n, H) of every layer on the graph as it is, without labels.

        Virtual nodes are left out, appended classes are 1/C, and states above are zero.
        """
        n = len(x)
        if self.method == "ff_la" and x.shape[1] == self.in_channels:
            x = torch.cat([x, x.new_full((n, self.num_classes), 1.0 / self.num_classes)], 1)
        check_graph(x, edge_index, self.widths[0])
        block = Block([edge_index], n)
        if self.form.above:
            return self.start(x, block, [x.new_zeros(n, w) for w in self.tops])[1 : self.num_layers + 1]
        outputs = []
        for layer in self.trained:
            x = layer(unit_rows(x), block)
            outputs.append(x)
        return outputs

    # what the forms share: the graph with its classes, and states that reach down

    @property
    def tops(self) -> list[int]:
        """Width of the state above each layer (0: none)."""
        return [*self.widths[2:], self.num_classes if self.form.task == "node" else 0]

    def augment(self, x: Tensor, edge_index: Tensor, nodes: Tensor, classes: Tensor) -> tuple[Features, Tensor, int]:
        """Features and edges with what the form adds for the labelled nodes, and the number of rows."""
        n = len(x)
        if not self.form.virtual:
            return x, edge_index, n
        return torch.cat([x, self.virtual]), link_classes(edge_index, n, nodes, classes), n + self.num_classes

    def start(self, x: Features, block: Block, above: Sequence[Tensor]) -> list:
        """States s_0 .. s_L (and, in ``sf_top2input``, the classes above) after one pass from the bottom."""
        states: list = [unit_rows(x)]
        h = x
        for i, layer in enumerate(self.trained):
            if self.form.above:
                h = layer(self._joined(states[i], above[i]), block)
                states.append(h)
            else:  # layers are handed raw features and outputs here, only what is stored is normalised
                h = layer(h, block)
                states.append(unit_rows(h))
        return states

    def _joined(self, below: Features, above: Tensor | None) -> Features:
        """Normalised states below and above, side by side; nothing above leaves the part below alone."""
        below = unit_rows(below)
        return below if above is None or above.shape[1] == 0 else (below, unit_rows(above))

    def input_of(self, i: int, states: list) -> Features:
        """What layer i reads in the forms whose input holds the state above."""
        return self._joined(states[i], states[i + 2] if i + 2 < len(states) else None)

    @property
    def alternation(self) -> list[int]:
        """Even layers, then odd ones: the latter read what the former have just made."""
        return [*range(0, self.num_layers, 2), *range(1, self.num_layers, 2)]

    def top_down_start(self, x: Features, block: Block, classes: Tensor | None) -> list:
        """Bottom-up states with zeros above; then the class vectors of ``sf_top2input`` on top, which stay."""
        rows = block.shape[0]
        like = next(self.parameters())
        states = self.start(x, block, [like.new_zeros(rows, w) for w in self.tops])
        return states if classes is None else [*states, classes]

    def mixed(self, i: int, h: Tensor, states: list) -> Tensor:
        """Mean of layer i's output and all stored states above it (``sf_top2loss``)."""
        return torch.stack([h, *(s.detach() for s in states[i + 2 :])]).mean(0)

    # predictions, layer by layer

    @torch.no_grad()
    def contributions(
        self,
        x: Tensor,
        edge_index: Tensor,
        wanted: Tensor,
        nodes: Tensor | None = None,
        classes: Tensor | None = None,
        *,
        kept: tuple[Features, Block] | None = None,
    ) -> Tensor:
        """What each layer adds to a prediction.

        Args:
            x, edge_index: the graph.
            wanted: (m,) nodes to classify, or (2, m) pairs to score.
            nodes, classes: the labelled nodes and their classes (node forms).
            kept: features and block of the same graph with the same labels, from a call before (not forward-forward).

        Returns:
            (L, m, C) or (L, m); (1, ...) for the baselines. The prediction at depth d is the sum (links: the mean) over the
            first d rows.
        """
        if kept is None:
            check_graph(x, edge_index, self.in_channels)
        if self.form.task == "node" and (nodes is None or classes is None):
            nodes = classes = torch.zeros(0, dtype=torch.long, device=x.device)
        if self.method in ("ff_la", "ff_vn"):
            return torch.stack([g for g in self._goodness(x, edge_index, wanted, nodes, classes)], -1)
        if kept is None:
            added, edges, rows = self.augment(x, edge_index, nodes, classes)  # type: ignore[arg-type]
            kept = compact(added), Block([edges], rows)  # type: ignore[arg-type]
        full, block = kept
        if self.form.task == "link":
            if self.form.above:
                steps = TEST_STEPS[1] - TEST_STEPS[0]
                return self.top_down(full, block, None, lambda h: self.link_probability(h, wanted)) / steps
            each = torch.stack([self.link_probability(h, wanted) for h in self._outputs(full, block)])
            if self.method == "link_backprop":
                return each[-1:]
            return each / 2  # the authors average over the normalisations too, which score 0
        if self.method == "backprop":
            return F.softmax(list(self._outputs(full, block))[-1][wanted], -1)[None]
        n = len(x)
        if self.method == "sf_top2input":
            return self.top_down(full, block, self.class_vectors(n, nodes, classes), lambda h: self.match(h, n, wanted))
        return torch.stack([self.match(h, n, wanted) for h in self._outputs(full, block)])

    def class_vectors(self, n: int, nodes: Tensor, classes: Tensor) -> Tensor:
        """(n + C, C): what stands above the top layer of ``sf_top2input``."""
        virtual = torch.arange(self.num_classes, device=nodes.device)
        return class_columns(n + self.num_classes, self.num_classes, torch.cat([nodes, n + virtual]),
                             torch.cat([classes, virtual]), next(self.parameters()).dtype)  # fmt: skip

    def logits(self, nodes: Tensor, virtual: Tensor) -> Tensor:
        """(m, C): how well the outputs of nodes (m, H) match those of the virtual nodes (C, H)."""
        return nodes @ virtual.t() / self.temperature

    def match(self, h: Tensor, n: int, wanted: Tensor) -> Tensor:
        """(m, C): softmax over the virtual nodes n .. n + C - 1."""
        return F.softmax(self.logits(h[wanted], h[n:]), -1)

    def pair_scores(self, h: Tensor, pairs: Tensor) -> Tensor:
        """(m,): sum of the product of end-node outputs, or its goodness."""
        product = h[pairs[0]] * h[pairs[1]]
        return product.square().sum(1) - self.theta if self.method == "link_ff" else product.sum(1)

    def link_probability(self, h: Tensor, pairs: Tensor) -> Tensor:
        return torch.sigmoid(self.pair_scores(h, pairs))

    def top_down(self, x: Features, block: Block, classes: Tensor | None, read) -> Tensor:
        """Run the alternation; sum ``read`` of each layer's output over the steps that count, (L, ...)."""
        states = self.top_down_start(x, block, classes)
        total: list = [0.0] * self.num_layers
        for step in range(TEST_STEPS[1]):
            for i in self.alternation:
                states[i + 1] = self.trained[i](self.input_of(i, states), block)
            if step >= TEST_STEPS[0]:
                total = [t + read(h) for t, h in zip(total, states[1:], strict=False)]
        return torch.stack(total)

    def _outputs(self, x: Features, block: Block) -> Iterator[Tensor]:
        """What each layer is judged by, from the bottom."""
        if self.method == "sf_top2loss":
            states = self.start(x, block, ())
            for i, layer in enumerate(self.trained):
                yield self.mixed(i, layer(states[i], block), states)
            return
        for layer in self.trained:
            x = layer(unit_rows(x), block)
            yield x

    def _goodness(self, x, edge_index, wanted, nodes, classes) -> Iterator[Tensor]:
        """(L, m) per candidate class: mean square of the outputs minus theta when all wanted nodes are told that class."""
        free = ~torch.isin(nodes, wanted)
        nodes, classes = nodes[free], classes[free]
        kept = compact(x)
        for c in range(self.num_classes):
            told = torch.cat([nodes, wanted]), torch.cat([classes, torch.full_like(wanted, c)])
            if self.method == "ff_la":
                h, edges, rows = (
                    Told(x, [class_columns(len(x), self.num_classes, *told, x.dtype)], kept),
                    edge_index,
                    len(x),
                )
            else:
                h, edges, rows = self.augment(x, edge_index, *told)
                h = unit_rows(compact(h))
            block, found = Block([edges], rows), []
            for i, layer in enumerate(self.trained):
                h = layer(unit_rows(h) if i else h, block)
                found.append(h[wanted].square().mean(1) - self.theta)
            yield torch.stack(found)


VARIANTS: dict[str, dict] = {f"forward_{name}": {"method": name} for name in METHODS} | {
    f"forward_{name}_h128_l3": {"method": "sf", "operator": name, "in_channels": 100, "num_layers": 3}
    for name in ("gcn", "sage", "gat")
}
RECIPE = {"lr": 1e-3, "weight_decay": 5e-4, "epochs": 1000, "patience": 100}
RECIPES = {"forward_link_fl_topdown": {"weight_decay": 0.0}}
register(
    paper="forward-gnn",
    kind="graph",
    task="forward-learning",
    build=ForwardGNN,
    variants=VARIANTS,
    input_size=None,
    recipe=RECIPE,
    exceptions={"training": RECIPES},
)
