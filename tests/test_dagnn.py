"""DAGNN: equal to PyG's formulation, sparse equals dense, the protocol's stop rule, graphs that cannot be used."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm as pyg_norm

import offprint
from offprint.data import graphs
from offprint.data.graphs import check_graph, load_graph, normalize_features, random_split, read_npz, read_planetoid
from offprint.errors import DataError, OffprintError
from offprint.nn.graph import NormalizedAdjacency, gcn_norm, sparse_dropout
from offprint.tasks.nodes import fit_node_classifier


def graph(n=40, f=6, classes=3, seed=0):
    torch.manual_seed(seed)
    edges = torch.randint(n, (2, 4 * n))
    edges = torch.cat([edges, edges.flip(0)], 1)
    y = torch.arange(n) % classes
    x = F.one_hot(y, f).float() + 0.1 * torch.rand(n, f)
    masks = {m: torch.arange(n) % 4 == i for i, m in enumerate(("train", "val", "test"))}
    return Data(x=x, y=y, edge_index=edges, **{f"{k}_mask": v for k, v in masks.items()})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 10_000), st.booleans())
def test_normalisation_equals_pyg(n, m, seed, weighted):
    """With self loops, duplicate edges, isolated nodes and edge weights."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(n, (2, m), generator=generator)
    weight = torch.rand(m, generator=generator) + 0.1 if weighted else None
    if weighted:  # which of two loops at one node PyG keeps is not defined
        keep = edges[0] != edges[1]
        edges, weight = edges[:, keep], weight[keep]
    else:
        loops = edges[0] == edges[1]
        edges = torch.cat([edges[:, ~loops], edges[:, loops].unique(dim=1)], 1)
    x = torch.rand(n, 3, generator=generator)
    index, value = pyg_norm(edges, weight, n)
    expected = torch.zeros(n, n).index_put_((index[1], index[0]), value, accumulate=True) @ x
    assert torch.allclose(NormalizedAdjacency()(edges, n, weight).matmul(x), expected, atol=1e-5)


def test_gradients_through_a_directed_graph():
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    x = torch.rand(3, 2, dtype=torch.double).float().requires_grad_()
    index, value = gcn_norm(edges, 3)
    dense = torch.zeros(3, 3).index_put_((index[1], index[0]), value, accumulate=True)
    w = torch.rand(3, 2)
    (got,) = torch.autograd.grad((NormalizedAdjacency()(edges, 3).matmul(x) * w).sum(), x)
    (expected,) = torch.autograd.grad(((dense @ x) * w).sum(), x)
    assert torch.allclose(got, expected, atol=1e-6)


def test_the_adjacency_is_made_once_and_follows_the_graph():
    layer, data = NormalizedAdjacency(), graph()
    first = layer(data.edge_index, 40)
    assert layer(data.edge_index, 40) is first
    other = data.edge_index.clone()
    assert layer(other, 40) is not first
    other[0, 0] = (other[0, 0] + 1) % 40
    changed = layer(other, 40)
    assert layer(other, 40) is changed
    other[0, 0] = (other[0, 0] + 1) % 40
    assert layer(other, 40) is not changed
    assert copy.deepcopy(layer)._kept is None and pickle.loads(pickle.dumps(layer))._kept is None


def test_sparse_features_give_the_same():
    data = graph()
    model = offprint.create_model("dagnn_cora", in_features=6, num_classes=3).eval()
    sparse = data.x.to_sparse_csr()
    assert torch.allclose(model(sparse, data.edge_index), model(data.x, data.edge_index), atol=1e-6)
    grads = []
    for x in (data.x, sparse):
        model.zero_grad()
        model(x, data.edge_index)[0, 0].backward()
        grads.append(model.lin1.weight.grad.clone())
    assert torch.allclose(*grads, atol=1e-6)
    dropped = sparse_dropout(sparse, 0.5, True)
    assert dropped.layout == torch.sparse_csr and (dropped.values() == 0).any()
    assert sparse_dropout(sparse, 0.5, False) is sparse


def test_gates_and_one_node():
    data = graph()
    model = offprint.create_model("dagnn_cora", in_features=6, num_classes=3, hops=4).eval()
    gates = model.gates(data.x, data.edge_index)
    assert gates.shape == (40, 5) and 0 < gates.min() and gates.max() < 1
    alone = model(data.x[:1], torch.zeros(2, 0, dtype=torch.long))
    assert alone.shape == (1, 3) and torch.isfinite(alone).all()


def test_it_learns_and_keeps_the_epoch_of_the_lowest_validation_loss():
    data = graph(80)
    torch.manual_seed(0)
    model = offprint.create_model("dagnn_cora", in_features=6, num_classes=3, dropout=0.2)
    run = fit_node_classifier(model, data, weight_decay=0.0, epochs=60, patience=10)
    assert run.test_accuracy > 90 and run.epochs <= 60
    data.y = data.y[
        torch.randperm(80)
    ]  # labels without a pattern: the validation loss rises, and the rule stops after the half
    again = offprint.create_model("dagnn_cora", in_features=6, num_classes=3, dropout=0.0)
    stopped = fit_node_classifier(again, data, lr=0.05, weight_decay=0.0, epochs=120, patience=5)
    assert 60 < stopped.epochs < 120


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g.x.__setitem__((7, 1), float("nan")), "node 7 has features that are not finite"),
        (lambda g: g.edge_index.__setitem__((0, 3), 99), "outside the 40 nodes"),
        (lambda g: setattr(g, "y", g.y[:5]), "5 labels for 40 nodes"),
        (lambda g: setattr(g, "x", None), "no node features"),
    ],
)
def test_graphs_that_cannot_be_used(change, says):
    data = graph()
    change(data)
    with pytest.raises(DataError, match=says):
        check_graph(data)


def test_training_refusals():
    data = graph()
    model = offprint.create_model("dagnn_cora", in_features=6, num_classes=3)
    with pytest.raises(OffprintError, match=r"\(n, 6\), got \(40, 5\)"):
        model(data.x[:, :5], data.edge_index)
    with pytest.raises(OffprintError, match=r"shape \(2, E\)"):
        model(data.x, data.edge_index.T)
    nothing = torch.zeros(40, dtype=torch.bool)
    with pytest.raises(DataError, match="val part.*empty"):
        fit_node_classifier(model, data, masks=(data.train_mask, nothing, data.test_mask))
    with pytest.raises(DataError, match="has 2 classes"):
        fit_node_classifier(offprint.create_model("dagnn_cora", in_features=6, num_classes=2), data)
    bare = Data(x=data.x, y=data.y, edge_index=data.edge_index)
    with pytest.raises(DataError, match="random_split"):
        fit_node_classifier(model, bare)
    bare.y = None
    with pytest.raises(DataError, match="no labels"):
        fit_node_classifier(model, bare, masks=(data.train_mask, data.val_mask, data.test_mask))


# -- data ------------------------------------------------------------------------------------------------------------
def test_bundled_graphs():
    cora, citeseer = load_graph("cora"), load_graph("CiteSeer", normalize=True)
    assert (cora.num_nodes, cora.num_edges, cora.num_features) == (2708, 10556, 1433)
    assert (citeseer.num_nodes, citeseer.num_edges, citeseer.num_features) == (3327, 9104, 3703)
    assert int(cora.train_mask.sum()) == 140 and int(citeseer.test_mask.sum()) == 1000
    assert citeseer.x.sum(1).max() == pytest.approx(1)
    assert normalize_features(torch.tensor([[1.0, 3.0], [1.0, 1.0]])).tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_random_splits():
    y = torch.arange(3).repeat(100)
    train, val, test = random_split(y, 0, val=50, test=60)
    assert [int(m.sum()) for m in (train, val, test)] == [60, 50, 60] and not (
        train & val | val & test | train & test
    ).any()
    train, val, test = random_split(y, 0, val=30, per_class_val=True)
    assert [int(m.sum()) for m in (train, val, test)] == [60, 90, 150]
    assert not torch.equal(random_split(y, 1)[0], random_split(y, 2)[0])
    with pytest.raises(DataError, match="class 0 has 5 nodes"):
        random_split(torch.zeros(5, dtype=torch.long), 0)


def test_planetoid_files_from_a_folder(tmp_path, monkeypatch):
    x = sp.csr_matrix(np.eye(6, 4, dtype=np.float32))
    y = np.eye(6, 3)[:, :3]
    parts = {"x": x[:2], "y": y[:2], "allx": x[:4], "ally": y[:4], "tx": x[4:], "ty": y[4:],
             "graph": {0: [1, 1], 1: [0, 2], 2: [1], 3: [], 4: [5], 5: [4]}}  # fmt: skip
    raw = tmp_path / "graphs" / "PubMed" / "raw"
    raw.mkdir(parents=True)
    for name, value in parts.items():
        (raw / f"ind.pubmed.{name}").write_bytes(pickle.dumps(value, protocol=4))
    (raw / "ind.pubmed.test.index").write_text("5\n4\n")
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    data = load_graph("PubMed")
    assert data.num_nodes == 6 and data.num_edges == 6 and data.test_mask.nonzero().flatten().tolist() == [4, 5]
    assert data.x[5].tolist() == x[4].toarray()[0].tolist()
    (raw / "ind.pubmed.x").write_bytes(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    with pytest.raises(DataError, match="system"):
        read_planetoid(raw, "pubmed")
    (raw / "ind.pubmed.x").write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match="damaged"):
        read_planetoid(raw, "pubmed")
    (raw / "ind.pubmed.x").unlink()
    with pytest.raises(DataError, match="lacks ind.pubmed.x"):
        read_planetoid(raw, "pubmed")


def test_amazon_and_coauthor_files(tmp_path, monkeypatch):
    adjacency = sp.csr_matrix(np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0]]))
    features = sp.csr_matrix(np.eye(3, 4))
    arrays = {f"adj_matrix_{k}": getattr(adjacency, k) for k in ("data", "indices", "indptr", "shape")}
    arrays |= {f"node_attr_{k}": getattr(features, k) for k in ("data", "indices", "indptr", "shape")}
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "amazon_photo.npz", node_label=np.array([0, 1, 0]), **arrays)
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    data = load_graph("Amazon_Photo")
    assert sorted(map(tuple, data.edge_index.T.tolist())) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    with pytest.raises(DataError, match="not a graph archive"):
        read_npz(tmp_path / "x.npz")


def test_unknown_and_unreachable_graphs(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    monkeypatch.setattr(graphs, "NPZ_HOME", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="could not fetch.*OFFPRINT_DATA"):
        load_graph("Coauthor_CS")
    with pytest.raises(OffprintError, match="nearest: .*CiteSeer"):
        load_graph("CiteSer")
