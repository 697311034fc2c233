"""What ForwardGNN's training asks of a graph, and the paper's splits."""

from __future__ import annotations

import random
import warnings
import zlib

import numpy as np
import torch
from torch import Tensor

from offprint.errors import DataError, OffprintError
from offprint.models.graphs.forward_gnn import check_graph

SPLITS = range(5)


def node_split(n: int, split: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's split of n nodes: five folds, one of them for testing; a fifth of the rest for validation (64/16/20 %).

    The folds are those of scikit-learn's ``KFold(5, shuffle=True, random_state=101)``, the validation part that of its
    ``train_test_split(test_size=0.2, random_state=127 * split)``.

    Returns:
        Three boolean masks (n,).
    """
    if split not in SPLITS:
        raise OffprintError(f"split={split}; the paper has five, 0 to 4")
    if n < 10:
        raise DataError(f"{n} nodes are too few for five folds with a validation part; give masks of your own")
    order = np.arange(n)
    np.random.RandomState(101).shuffle(order)
    fold = np.array_split(order, 5)[split]
    rest = np.setdiff1d(np.arange(n), fold)
    mixed = np.random.RandomState(127 * split).permutation(len(rest))
    cut = -(-len(rest) // 5)
    masks = []
    for part in (rest[mixed[cut:]], rest[mixed[:cut]], fold):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.from_numpy(part)] = True
        masks.append(mask)
    return masks[0], masks[1], masks[2]


def link_split(graph, split: int = 0) -> tuple:
    """The paper's split of the edges: 16 % validation, 20 % test, one negative pair per positive (``RandomLinkSplit``).

    Returns:
        Three ``Data`` with ``edge_index`` (messages), ``edge_label_index`` (2, m) and ``edge_label`` (m,).
    """
    from torch_geometric.transforms import RandomLinkSplit

    check_graph(graph.x, graph.edge_index)
    if split not in SPLITS:
        raise OffprintError(f"split={split}; the paper has five, 0 to 4")
    pairs = graph.num_edges // 2
    if pairs < 10:
        raise DataError(
            f"the graph has {graph.num_edges} edges; link prediction needs edges to learn from (20 at least)"
        )
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            for seed in (random.seed, np.random.seed, torch.manual_seed):
                seed(101 * split)
            cut = RandomLinkSplit(0.16, 0.2, is_undirected=graph.is_undirected(), add_negative_train_samples=True)
            return cut(graph)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def warn_directed(edge_index: Tensor, n: int) -> None:
    """Say that messages follow the edges where many of them have no opposite."""
    forward, back = (a * n + b for a, b in (edge_index, edge_index.flip(0)))
    alone = int((~torch.isin(forward, back)).sum())
    if alone:
        warnings.warn(
            f"{alone} of {edge_index.shape[1]} edges have no opposite: messages pass from source to target only. The paper's "
            "graphs are undirected; torch_geometric.transforms.ToUndirected() makes this one so",
            stacklevel=3,
        )


def node_parts(graph, masks, split: int | None) -> tuple[Tensor, list[Tensor], int]:
    """Labels, the node numbers of the three parts, and the number of classes; what cannot be learned from is refused."""
    y = getattr(graph, "y", None)
    n = graph.num_nodes
    if y is None:
        raise DataError("the graph has no labels (y)")
    y = y.squeeze(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (n,) or y.is_floating_point():
        raise DataError(f"expected one whole-number class per node, {n} of them; got y of {tuple(y.shape)}, {y.dtype}")
    if masks is None and split is None:
        own = [getattr(graph, f"{part}_mask", None) for part in ("train", "val", "test")]
        masks = own if all(m is not None and m.ndim == 1 for m in own) else None
    masks = node_split(n, split or 0) if masks is None else masks
    if any(m.shape != (n,) or m.dtype != torch.bool for m in masks):
        raise DataError(f"masks are boolean, one value per node ({n}); got {[tuple(m.shape) for m in masks]}")
    for (i, a), (j, b) in ((p, q) for p in enumerate(masks) for q in enumerate(masks) if p[0] < q[0]):
        if both := int((a & b).sum()):
            names = ("train", "val", "test")
            raise DataError(f"{both} nodes are in both the {names[i]} and the {names[j]} part of the split")
    parts = [m.nonzero().flatten() for m in masks]
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        if len(part) == 0:
            raise DataError(f"the {name} part of the split is empty")
        if int(y[part].min()) < 0:
            where = int(part[y[part].argmin()])
            raise DataError(
                f"node {where} of the {name} part has no class (y = {int(y[where])}); leave it out of the split"
            )
    classes = int(y.max()) + 1
    without = [c for c in range(classes) if not (y[parts[0]] == c).any()]
    if without:
        raise DataError(
            f"class {', '.join(map(str, without[:5]))} of {classes} has no node in the training part: nothing could learn it; "
            "renumber the classes or choose another split"
        )
    return y, parts, classes


def link_parts(parts) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(messages, pairs, labels) of the three parts that ``RandomLinkSplit`` gives."""
    found = []
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        pairs, label = getattr(part, "edge_label_index", None), getattr(part, "edge_label", None)
        if pairs is None or label is None:
            raise DataError(
                f"the {name} part has no edge_label_index and edge_label; make the parts with link_split(graph)"
            )
        for kind, count in (("positive", int((label > 0).sum())), ("negative", int((label <= 0).sum()))):
            if count == 0:
                raise DataError(
                    f"the {name} part has no {kind} pairs; the split is too small, or lacks negative samples"
                )
        check_graph(part.x, part.edge_index)
        check_graph(part.x, pairs)
        found.append((part.edge_index, pairs, (label > 0).long()))
    return found


def fingerprint(*tensors: Tensor) -> str:
    """A short digest of tensors, for refusing to go on with other data."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(
            tensor.detach().cpu().contiguous().numpy().tobytes(), zlib.crc32(str(tuple(tensor.shape)).encode(), value)
        )
    return f"{value:08x}"
