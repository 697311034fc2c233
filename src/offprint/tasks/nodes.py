"""Node classification on one graph, full batch: the protocol of DAGNN's experiments, for any graph model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        masks: (train, val, test) instead of the graph's own.
        progress: called with no arguments after each epoch.

    Raises:
        DataError: no masks, an empty part, or labels outside the model's classes.
    """
    if masks is None:
        if not all(hasattr(graph, f"{m}_mask") and graph[f"{m}_mask"] is not None for m in ("train", "val", "test")):
            raise DataError(
                "the graph has no train, val and test masks; pass masks= (see offprint.data.graphs.random_split)"
            )
        masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    if graph.y is None:
        raise DataError("the graph has no labels (y)")
    train, val, test = (m.nonzero().flatten() for m in masks)
    for name, part in (("train", train), ("val", val), ("test", test)):
        if len(part) == 0:
            raise DataError(f"the {name} part of the split is empty")
    classes = getattr(model, "num_classes", None)
    if classes is not None and not 0 <= int(graph.y[train].min()) <= int(graph.y.max()) < classes:
        raise DataError(
            f"labels run from {int(graph.y.min())} to {int(graph.y.max())}, the model has {classes} classes"
        )
    x, y, edges = (graph.x.to_sparse_csr() if sparse else graph.x), graph.y, graph.edge_index
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    best, history = NodeResult(0.0, 0.0, float("inf"), 0), []
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss = F.nll_loss(model(x, edges)[train], y[train])
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
