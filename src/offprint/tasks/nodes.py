"""Node classification, full batch: the protocol of DAGNN's experiments, for any graph model, on one graph or across graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.graphs import check_graph
from offprint.errors import DataError, OffprintError


@dataclass(frozen=True)
class NodeResult:
    """What a run kept: figures in percent at the epoch with the lowest validation loss."""

    test_accuracy: float
    val_accuracy: float
    val_loss: float
    epochs: int


def fit_node_classifier(
    model: nn.Module,
    graph,
    *,
    lr: float = 0.01,
    weight_decay: float = 0.005,
    epochs: int = 1000,
    patience: int = 100,
    sparse: bool = True,
    masks: tuple[Tensor, Tensor, Tensor] | None = None,
    train_graph=None,
    progress=None,
) -> NodeResult:
    """Train with Adam on the whole graph and keep the test accuracy of the best epoch.

    The best epoch is the one with the strictly lowest validation loss so far. From the second half of the epochs on,
    training stops when the validation loss exceeds the mean of the ``patience`` losses before it (0: never).

    Args:
        model: ``model(x, edge_index)`` gives log-probabilities (n, C).
        graph: ``torch_geometric.data.Data`` with ``x``, ``y``, ``edge_index`` and masks.
        lr, weight_decay: Adam's; the decay acts on all parameters.
        epochs, patience: the stop rule's.
        sparse: hand the features over as CSR.
        masks: (train, val, test) instead of the graphs' own.
        train_graph: learn on this graph instead (inductive): on one without the nodes to be judged (:func:`without`), or on
            another. The train mask is then over its nodes, and its own where it has one.
        progress: called with no arguments after each epoch.

    Raises:
        DataError: no masks, an empty part, nodes without a label in one, labels outside the model's classes, features that are
            not finite.
    """
    learn = graph if train_graph is None else train_graph
    if masks is None:
        places = ((learn, "train_mask"), (graph, "val_mask"), (graph, "test_mask"))
        if any(place.get(mask) is None for place, mask in places):
            raise DataError(
                "the graph has no train, val and test masks; pass masks= (see offprint.data.graphs.split_of and random_split)"
            )
        masks = (learn.train_mask, graph.val_mask, graph.test_mask)
    classes = getattr(model, "num_classes", None)
    train = part_of("train", learn, masks[0], classes)
    val, test = part_of("val", graph, masks[1], classes), part_of("test", graph, masks[2], classes)
    for given in (graph,) if learn is graph else (learn, graph):
        check_graph(given)
    x, y, edges = (graph.x.to_sparse_csr() if sparse else graph.x), graph.y, graph.edge_index
    if learn is graph:
        x_learn, y_learn, edges_learn = x, y, edges
    else:
        x_learn, y_learn, edges_learn = (learn.x.to_sparse_csr() if sparse else learn.x), learn.y, learn.edge_index
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    best, history = NodeResult(0.0, 0.0, float("inf"), 0), []
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss = F.nll_loss(model(x_learn, edges_learn)[train], y_learn[train])
        if not torch.isfinite(loss):
            raise OffprintError(f"the loss became {float(loss)} in epoch {epoch}; lower lr={lr:g}")
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            out = model(x, edges)
            val_loss = float(F.nll_loss(out[val], y[val]))
            if val_loss < best.val_loss:
                hit = out.argmax(1) == y
                best = NodeResult(
                    100 * float(hit[test].float().mean()), 100 * float(hit[val].float().mean()), val_loss, epoch
                )
        history.append(val_loss)
        if progress:
            progress()
        if patience and epoch > epochs // 2 and len(history) > patience:
            if val_loss > sum(history[-patience - 1 : -1]) / patience:
                break
    return NodeResult(best.test_accuracy, best.val_accuracy, best.val_loss, len(history))


def part_of(name: str, graph, mask: Tensor, classes: int | None) -> Tensor:
    """The numbers of a part's nodes, after all that could be wrong with their labels."""
    if graph.y is None:
        raise DataError("the graph has no labels (y)")
    if graph.y.ndim != 1 or graph.y.is_floating_point() or graph.y.is_complex():
        raise DataError(
            f"expected one whole number per node as label, got {tuple(graph.y.shape)} of {graph.y.dtype}; "
            "give y of shape (n,) and type int64"
        )
    if mask.ndim != 1 or len(mask) != graph.num_nodes:
        raise DataError(
            f"the {name} mask has shape {tuple(mask.shape)} for {graph.num_nodes} nodes; of several splits choose one column"
        )
    nodes = mask.nonzero().flatten()
    if len(nodes) == 0:
        raise DataError(f"the {name} part of the split is empty")
    labels = graph.y[nodes]
    if int(labels.min()) < 0:
        node = int(nodes[labels.argmin()])
        raise DataError(f"node {node} of the {name} part has no label ({int(labels.min())}); leave it out of the mask")
    if classes is not None and int(labels.max()) >= classes:
        raise DataError(f"labels of the {name} part run up to {int(labels.max())}, the model has {classes} classes")
    return nodes


def without(graph, nodes: Tensor):
    """The graph without these nodes (mask (n,)) and their edges: what an inductive run may learn from.

    Returns:
        ``Data`` with the other nodes in their order; masks and labels follow.
    """
    return graph.subgraph(~nodes)


@torch.no_grad()
def predict_nodes(model: nn.Module, graph) -> Tensor:
    """Log-probabilities (n, C) of a graph's nodes, which the model need not have seen.

    Raises:
        DataError: features that are not finite, or edges that point outside.
    """
    check_graph(graph)
    before = model.training
    try:
        return model.eval()(graph.x, graph.edge_index)
    finally:
        model.train(before)
