"""One's own graph: every documented way in gives the same graph, and what is wrong is named with what is looked for."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from typer.testing import CliRunner

from offprint.data.own_graphs import open_graph
from offprint.errors import DataError, OffprintError

X = np.array([[1, 0], [0, 2], [3, 1], [0, 0.5]], np.float32)
PAIRS = [(0, 1), (1, 2), (2, 3)]
BOTH = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
Y = np.array([1, 0, 1, 0])
MASKS = {"train": [0, 1], "val": [2], "test": [3]}
NAMES = ["ann", "bob", "cy,d", "eve"]


def sorted_edges(graph):
    return sorted(zip(*graph.edge_index.tolist(), strict=True))


def arrays(masks="index"):
    found = {"x": X, "y": Y, "edge_index": BOTH.numpy()}
    for part, nodes in MASKS.items():
        found |= {part: np.array(nodes)} if masks == "index" else {f"{part}_mask": np.isin(np.arange(4), nodes)}
    return found


def npz(tmp_path):
    np.savez(tmp_path / "g.npz", **arrays())
    return tmp_path / "g.npz"


def npz_by_other_names(tmp_path):
    np.savez(
        tmp_path / "g.npz",
        features=X,
        labels=Y[:, None],
        edges=BOTH.numpy().T,
        **{k: v for k, v in arrays("mask").items() if "mask" in k},
    )
    return str(tmp_path / "g.npz")


def tensors(tmp_path):
    torch.save({k: torch.from_numpy(v) for k, v in arrays("mask").items()}, tmp_path / "g.pt")
    return tmp_path / "g.pt"


def pyg_file(tmp_path):
    torch.save(pyg(tmp_path), tmp_path / "g.pt")
    return tmp_path / "g.pt"


def processed(tmp_path):
    torch.save((pyg(tmp_path).to_dict(), None), tmp_path / "data.pt")
    return tmp_path / "data.pt"


def pyg(_):
    return Data(**{k: torch.from_numpy(v) for k, v in arrays("mask").items()})


def tables(tmp_path, header=True):
    quoted = [f'"{n}"' if "," in n else n for n in NAMES]
    heads = ("source,target\n", "node,a,b\n", "node,label,split\n") if header else ("", "", "")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "edges.csv").write_text(heads[0] + "".join(f"{quoted[a]},{quoted[b]}\n" for a, b in PAIRS))
    (folder / "features.csv").write_text(
        heads[1] + "".join(f"{n},{a},{b}\n" for n, (a, b) in zip(quoted, X, strict=True))
    )
    part = {node: name for name, nodes in MASKS.items() for node in nodes}
    rows = (f"{n},{'xy'[Y[i]]}{',' + part[i] if header else ''}\n" for i, n in enumerate(quoted))
    (folder / "labels.csv").write_text(heads[2] + "".join(rows))
    return folder


def edge_table(tmp_path):
    return tables(tmp_path) / "edges.csv"


def network(_, kind=nx.Graph):
    graph = kind()
    part = {node: name for name, nodes in MASKS.items() for node in nodes}
    for i, name in enumerate(NAMES):
        graph.add_node(name, x=X[i].tolist(), label="xy"[Y[i]], split=part[i])
    graph.add_edges_from((NAMES[a], NAMES[b]) for a, b in PAIRS)
    return graph


WAYS = [npz, npz_by_other_names, tensors, pyg_file, processed, pyg, tables, edge_table, network]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_graph(tmp_path, way):
    graph = open_graph(way(tmp_path))
    assert torch.equal(graph.x, torch.from_numpy(X)) and graph.y.tolist() == Y.tolist()
    assert sorted_edges(graph) == sorted(zip(*BOTH.tolist(), strict=True))
    for part, nodes in MASKS.items():
        assert graph[f"{part}_mask"].nonzero().flatten().tolist() == nodes
    if way in (tables, edge_table, network):
        assert graph.nodes == NAMES and graph.classes == ["x", "y"]
    normal = open_graph(graph, normalize=True)
    assert torch.allclose(normal.x.sum(1)[:3], torch.ones(3)) and torch.equal(graph.x, torch.from_numpy(X))


def test_addresses_and_names(tmp_path):
    assert open_graph(npz(tmp_path).as_uri()).num_nodes == 4
    assert open_graph("Cora").num_nodes == 2708
    with pytest.raises(OffprintError, match=r"unknown graph 'Coraa'.*one's own graph: \.npz: edge_index"):
        open_graph("Coraa")
    with pytest.raises(DataError, match="no graph at 'none.npz'"):
        open_graph("none.npz")
    with pytest.raises(DataError, match="a graph was expected, a list was given"):
        open_graph([1, 2])


def test_direction(tmp_path):
    folder = tables(tmp_path)
    assert sorted_edges(open_graph(folder, directed=True)) == PAIRS
    assert sorted_edges(open_graph(network(None, nx.DiGraph))) == PAIRS
    np.savez(tmp_path / "g.npz", x=X, edges=np.array(PAIRS))
    assert sorted_edges(open_graph(tmp_path / "g.npz")) == PAIRS
    assert torch.equal(open_graph(tmp_path / "g.npz", undirected=True).edge_index, BOTH)


def test_tables_without_headers_splits_or_all_labels(tmp_path):
    folder = tables(tmp_path, header=False)
    graph = open_graph(folder)
    assert graph.y.tolist() == Y.tolist() and "train_mask" not in graph
    (folder / "labels.csv").write_text("node,label\nbob,10\neve,9\n")
    graph = open_graph(folder)
    assert graph.y.tolist() == [-1, 1, -1, 0] and graph.classes == ["9", "10"]
    (folder / "labels.csv").unlink()
    assert "y" not in open_graph(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("edge_index"), r"has no edges; it holds x, y.*Looked for: edge_index \(2, E\) or edges"),
        (lambda a: a.pop("x"), r"has no features; it holds y.*x or features"),
        (lambda a: a.update(edge_index=BOTH.numpy().T), r"whole numbers \(2, E\), \(6, 2\)"),
        (lambda a: a.update(edge_index=BOTH.numpy() * 1.0), r"whole numbers \(2, E\).*float64"),
        (lambda a: a.update(edge_index=BOTH.numpy() + 3), "an edge points outside the 4 nodes"),
        (lambda a: a.update(y=Y + 0.5), r"labels are whole numbers"),
        (lambda a: a.update(y=Y[:3]), "3 labels for 4 nodes"),
        (lambda a: a.update(train=np.array([9])), "train names node 9, and there are 4"),
        (lambda a: a.update(train=np.array([True, False])), "train_mask is of 2 nodes, and there are 4"),
        (lambda a: a.update(x=X * np.nan), "features that are not finite"),
    ],
)
def test_archives_that_do_not_fit(tmp_path, change, said):
    given = arrays()
    change(given)
    np.savez(tmp_path / "g.npz", **given)
    with pytest.raises(DataError, match=said):
        open_graph(tmp_path / "g.npz")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "edges.csv",
            "source,target\nann,zed\n",
            r"edges.csv, line 2: node 'zed' has no line in the table of features",
        ),
        ("edges.csv", "source,target\nann\n", "line 2: an edge is two nodes, got 'ann'"),
        ("features.csv", "node,a,b\nann,1,2\nann,1,2\n", "node 'ann' is there twice"),
        ("features.csv", "node,a,b\nann,1,2\nbob,1\n", "line 3: 2 fields, expected 3"),
        ("features.csv", "node,a,b\nann,1,2\nbob,1,much\n", "line 3: the feature 'much' is not a number"),
        ("labels.csv", "node,label,split\nann,x,tain\n", "line 2: unknown split 'tain'; nearest: train"),
        ("labels.csv", "node,label\nzed,x\n", "line 2: node 'zed' has no line"),
        ("features.csv", "", "features.csv is empty"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, file, text, said):
    folder = tables(tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=said):
        open_graph(folder)


def test_folders_and_files_that_are_none(tmp_path):
    (tmp_path / "edges.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"has no features\.csv; it holds edges\.csv\. Looked for: a folder"):
        open_graph(tmp_path)
    (tmp_path / "g.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a graph archive"):
        open_graph(tmp_path / "g.npz")
    (tmp_path / "g.pt").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"g\.pt"):
        open_graph(tmp_path / "g.pt")
    torch.save([Data(), Data()], tmp_path / "g.pt")
    with pytest.raises(DataError, match="has no edges"):
        open_graph(tmp_path / "g.pt")
    torch.save((pyg(None), {"x": torch.tensor([0, 2, 4])}), tmp_path / "g.pt")
    with pytest.raises(DataError, match="holds several graphs"):
        open_graph(tmp_path / "g.pt")


class Runs:
    ran = False

    def __reduce__(self):
        return setattr, (Runs, "ran", True)


def test_nothing_in_a_file_is_run(tmp_path):
    torch.save({"x": Runs()}, tmp_path / "g.pt")
    with pytest.raises(DataError, match="would run code when opened; it was not read"):
        open_graph(tmp_path / "g.pt")
    assert not Runs.ran


def test_networks_that_do_not_fit():
    graph = network(None)
    del graph.nodes["bob"]["x"]
    with pytest.raises(DataError, match="node 'bob' has no attribute x; it has label, split. Looked for"):
        open_graph(graph)
    graph.nodes["bob"]["x"] = [1.0]
    with pytest.raises(DataError, match="node 'bob' has 1 features, the first node 2"):
        open_graph(graph)
    with pytest.raises(DataError, match="has no nodes"):
        open_graph(nx.Graph())


def test_the_verbs_take_ones_own_graph(tmp_path, monkeypatch):
    from offprint.cli.main import app

    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    y = np.arange(60) % 2
    pairs = np.array([(a, b) for a in range(60) for b in draw.choice(np.flatnonzero(y == y[a]), 3) if a != b]).T
    order = draw.permutation(60)
    np.savez("g.npz", x=np.eye(2)[y] + draw.normal(0, 0.1, (60, 2)), y=y, edge_index=np.concatenate([pairs, pairs[::-1]], 1),
             train=order[:20], val=order[20:40], test=order[40:])  # fmt: skip
    run = ["graph", "fit", "-d", "g.npz", "--split", "public", "--epochs", "20", "--out", "run"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.exception
    run = ["measure", "smoothing", "-m", "gcn", "-d", "g.npz", "--depths", "2", "--epochs", "5"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "smoothing_g.json").is_file()
