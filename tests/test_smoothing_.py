"""The over-smoothing tool, inductive use, and graphs that are odd but usable, or cannot be used."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.graphs import largest_component, load_graph, random_split, split_of
from offprint.errors import DataError, OffprintError
from offprint.nn.graph import smoothness
from offprint.tasks.nodes import fit_node_classifier, predict_nodes, without
from offprint.tasks.smoothing import KINDS, kind, measure, sweep


def graph(n=60, classes=3, seed=0):
    """Nodes of a class are linked among themselves; the features tell the class."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    edges = torch.randint(n, (2, 8 * n), generator=draw)
    edges = edges[:, y[edges[0]] == y[edges[1]]]
    x = F.one_hot(y, 6).float() + 0.1 * torch.rand(n, 6, generator=draw)
    masks = {f"{m}_mask": torch.arange(n) // 3 % 4 == i for i, m in enumerate(("train", "val", "test"))}
    return Data(x=x, y=y, edge_index=torch.cat([edges, edges.flip(0)], 1), **masks)


def dagnn(**kwargs):
    return offprint.create_model("dagnn_cora", in_features=6, num_classes=3, hops=3, dropout=0.2, **kwargs)


def test_smoothness_is_the_mean_distance_of_all_pairs():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    unit = x / x.norm(dim=1, keepdim=True)
    slow = [0.5 * float((unit[i] - unit[j]).norm()) for i in range(7) for j in range(7) if i != j]
    for block in (1, 3, 100):
        assert smoothness(x, block) == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    assert smoothness(torch.ones(5, 3)) == pytest.approx(0, abs=1e-7)
    assert smoothness(torch.tensor([[1.0], [-1.0]])) == pytest.approx(1)
    with pytest.raises(OffprintError, match="1 was given"):
        smoothness(torch.ones(1, 3))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_measured(name):
    found = measure(kind(name), graph(), 2, epochs=8)
    assert 0 <= found["accuracy"] <= 100 and 0 <= found["smoothness"] <= 1
    assert found == measure(kind(name), graph(), 2, epochs=8)


def test_a_sweep_goes_on_from_its_file(tmp_path):
    file = tmp_path / "s.json"
    whole = sweep(["dagnn", "gcn"], graph(), [1, 4], epochs=5)
    sweep(["dagnn"], graph(), [1], epochs=5, file=file)
    seen = []
    assert sweep(["dagnn", "gcn"], graph(), [1, 4], epochs=5, file=file, progress=seen.append) == whole
    assert seen[0] == "dagnn, 1 hops, seed 0" and len(json.loads(file.read_text())["rows"]) == 4
    with pytest.raises(OffprintError, match="another epochs"):
        sweep(["dagnn"], graph(), [1], epochs=6, file=file)
    file.write_text("{}")
    with pytest.raises(OffprintError, match="not a record"):
        sweep(["dagnn"], graph(), [1], epochs=5, file=file)


def test_command_line(tmp_path):
    file = tmp_path / "cora.json"
    command = ["measure", "smoothing", "-m", "gcn", "--depths", "2", "--epochs", "2", "--out", str(file)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0 and "gcn" in shown.output and file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    for wrong, says in ((["-m", "gnc"], "unknown graph model"), (["-m", "no.such:thing"], "module:function"),
                        (["--depths", "a"], "whole numbers"), (["--depths", "0"], "at least 1")):  # fmt: skip
        failed = CliRunner().invoke(app, [*command, *wrong, "--no-resume"])
        assert failed.exit_code and says in str(failed.exception)


def test_your_own_model():
    found = measure(kind("offprint.nn.graph:GCN"), graph(), 2, epochs=3)
    assert found["epochs"] == 3


# -- inductive -------------------------------------------------------------------------------------------------------
def test_nodes_and_graphs_that_were_not_seen():
    whole = graph(120)
    seen = without(whole, whole.val_mask | whole.test_mask)
    assert seen.num_nodes == 120 - int((whole.val_mask | whole.test_mask).sum())
    torch.manual_seed(0)
    model = dagnn()
    run = fit_node_classifier(model, whole, weight_decay=0.0, epochs=60, train_graph=seen)
    assert run.test_accuracy > 90
    other = graph(90, seed=5)
    model.train()
    predicted = predict_nodes(model, other)
    assert model.training and float((predicted.argmax(1) == other.y).float().mean()) > 0.9


def test_training_looks_at_nothing_of_the_hidden_nodes():
    whole = graph(120)
    hidden = whole.val_mask | whole.test_mask
    changed = whole.clone()
    changed.x = whole.x.clone()
    changed.x[whole.test_mask] = 7.0
    weights = []
    for given in (whole, changed):
        torch.manual_seed(0)
        model = dagnn()
        fit_node_classifier(model, given, epochs=5, train_graph=without(given, hidden))
        weights.append(model.lin1.weight.detach().clone())
    assert torch.equal(*weights)


# -- odd graphs ------------------------------------------------------------------------------------------------------
def test_isolated_nodes_and_separate_parts():
    data = graph()
    lone = (data.edge_index != 5).all(0)
    data.edge_index = data.edge_index[:, lone]
    model = dagnn().eval()
    out = predict_nodes(model, data)
    alone = predict_nodes(model, Data(x=data.x[5:6], edge_index=torch.zeros(2, 0, dtype=torch.long)))
    assert torch.isfinite(out).all() and torch.allclose(out[5:6], alone, atol=1e-5)
    other = data.clone()
    other.x = data.x.clone()
    other.x[data.y == 0] += 1.0  # classes are parts of their own
    moved = (predict_nodes(model, other) - out).abs().amax(1) > 1e-6
    assert moved[data.y == 0].all() and not moved[data.y != 0].any()
    assert int(largest_component(data.edge_index, 60).sum()) == 20
    none = data.clone()
    none.edge_index = torch.zeros(2, 0, dtype=torch.long)
    assert torch.isfinite(predict_nodes(model, none)).all()


def test_in_a_directed_graph_nodes_hear_from_their_sources():
    x = torch.rand(3, 6)
    model = dagnn().eval()
    data = Data(x=x, edge_index=torch.tensor([[0, 1], [1, 2]]))
    before = predict_nodes(model, data)
    data.x = x.clone()
    data.x[2] += 1
    after = predict_nodes(model, data)
    assert torch.allclose(before[:2], after[:2]) and not torch.allclose(before[2], after[2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g.x.__setitem__((7, 1), float("nan")), "node 7 has features that are not finite"),
        (lambda g: g.y.__setitem__(0, -1), "node 0 of the train part has no label"),
        (lambda g: g.y.__setitem__(3, -1), "node 3 of the val part has no label"),
        (lambda g: setattr(g, "y", g.y.float()), "whole number per node"),
        (lambda g: setattr(g, "y", F.one_hot(g.y)), "whole number per node"),
        (lambda g: setattr(g, "train_mask", g.train_mask[:, None]), "of several splits choose one"),
        (lambda g: setattr(g, "val_mask", None), "no train, val and test masks"),
        (lambda g: g.edge_index.__setitem__((0, 0), 99), "outside the 60 nodes"),
    ],
)
def test_graphs_that_cannot_be_learnt_from(change, says):
    data = graph()
    change(data)
    with pytest.raises(DataError, match=says):
        fit_node_classifier(dagnn(), data, epochs=1)


def test_nodes_without_a_label_may_be_there():
    data = graph()
    data.y[9:12] = -1  # in no mask
    assert fit_node_classifier(dagnn(), data, epochs=2).epochs == 2
    assert not (random_split(data.y, 0, train=5, val=5, test=None)[2] & (data.y < 0)).any()


# -- graphs by name --------------------------------------------------------------------------------------------------
def test_any_set_of_torch_geometric(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    club = load_graph("KarateClub")
    masks, words = split_of(club)
    assert club.num_nodes == 34 and "60, 20 and 20 %" in words and sum(int(m.sum()) for m in masks) == 34
    for name, says in (
        ("WebKB", "needs name; ask for 'WebKB/NAME'"),
        ("KarateClub/x", "no parts to choose"),
        ("WebKB/nowhere", "does not know 'nowhere'"),
        ("SuiteSparseMatrixCollection/a", "make it yourself"),
    ):
        with pytest.raises(DataError, match=says):
            load_graph(name)
    with pytest.raises(DataError, match="is a|one edge_index"):
        load_graph("FakeHeteroDataset")


def test_no_network_is_said_clearly(tmp_path, monkeypatch):
    import torch_geometric.datasets as sets

    def fail(self):
        raise OSError("no route")

    monkeypatch.setattr(sets.Actor, "download", fail)
    with pytest.raises(DataError, match=r"could not be made \(OSError: no route\).*put its raw files into"):
        load_graph("Actor", tmp_path)


def test_splits():
    many = graph(60)
    many.train_mask = torch.stack([many.train_mask, ~many.train_mask], 1)
    masks, words = split_of(many, 1)
    assert torch.equal(masks[0], many.train_mask[:, 1]) and words == "split 1 of the graph's own 2"
    big = graph(300)
    del big.train_mask, big.val_mask, big.test_mask
    (train, val, test), words = split_of(big)
    inside = largest_component(big.edge_index, 300)
    assert "60, 20" in words if int(inside.sum()) < 300 else "20 and 30" in words
    assert int((train | val | test).sum()) == int(train.sum() + val.sum() + test.sum())
