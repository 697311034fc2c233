"""ForwardGNN: operators equal to PyG's, caches that change nothing, runs that resume, graphs and settings that cannot be used."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import offprint as offprint_cli  # noqa: F401  (a fixture)
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

import offprint
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.methods.training import forward_gnn as fg
from offprint.methods.training.forward_gnn import METHODS, PROCEDURES, TrainedGNN, fit, link_split, node_split, roc_auc
from offprint.models.graphs.forward_gnn import VARIANTS, ForwardGNN, unit_rows
from offprint.models.info import peak_memory
from offprint.nn.graph import Adjacency
from offprint.nn.message_flow import GAT, GCN, SAGE, Block, compact

PEERS = {GCN: lambda: GCNConv(6, 8), SAGE: lambda: SAGEConv(6, 8), GAT: lambda: GATConv(6, 2, 4)}
NODE = [name for name, form in METHODS.items() if form.task == "node"]
LINK = [name for name, form in METHODS.items() if form.task == "link"]


def graph(n=45, f=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    edges = torch.randint(n, (2, 5 * n), generator=generator)
    edges = edges[:, (y[edges[0]] == y[edges[1]]) & (edges[0] != edges[1])]
    edges = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    x = F.one_hot(y, f).float() + 0.3 * torch.rand(n, f, generator=generator)
    masks = {m: (torch.arange(n) // classes) % 3 == i for i, m in enumerate(("train", "val", "test"))}
    return Data(x=x, y=y, edge_index=edges, **{f"{k}_mask": v for k, v in masks.items()})


def quick(data, method="sf", operator="gcn", layers=2, **options):
    return fit(data, method, operator, layers, **{"hidden": 8, "epochs": 6, "lr": 0.01, **options})


def test_a_step_of_single_forward_needs_the_same_memory_at_any_depth():
    data = graph(n=400, f=8)

    def needed(method, depth):
        torch.manual_seed(0)
        model = ForwardGNN(8, 32, depth, 3, method=method)
        masks = (data[m].nonzero().flatten() for m in ("train_mask", "val_mask"))
        procedure = PROCEDURES[method](model, fg.Nodes(data.x, data.edge_index, data.y, *masks))
        for stage in range(procedure.stages - 1):
            procedure.open(stage)
            procedure.close(stage)
        last = procedure.stages - 1

        def steps():
            procedure.open(last)
            procedure.step(last)
            procedure.step(last)

        steps()  # the graph's matrices are made outside of what is counted
        return peak_memory(steps)

    assert needed("sf", 8) == pytest.approx(needed("sf", 2), rel=0.02)
    assert needed("backprop", 8) > 2 * needed("backprop", 2)


# operators


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([GCN, SAGE, GAT]))
def test_operators_equal_pyg(n, m, seed, kind):
    """Whole and for chosen rows, with isolated nodes and duplicate edges; gradients too; one and several graphs."""
    torch.manual_seed(seed)
    edges, others = torch.randint(n, (2, m)), torch.randint(n, (2, m))
    edges, others = (e[:, e[0] != e[1]] for e in (edges, others))
    x, ours, peer = torch.rand(n, 6), kind(6, 8), PEERS[kind]()
    peer.load_state_dict(ours.state_dict())
    expected, rows = peer(x, edges), torch.randperm(n)[: n // 2 + 1]
    assert torch.allclose(ours(x, Block([edges], n)), expected, atol=1e-5)
    part = Block([edges, others], n, rows)
    both = torch.cat([expected[rows], peer(x, others)[rows]])
    assert torch.allclose(ours(x, part), both, atol=1e-5)
    assert torch.allclose(ours.frozen(x, part)(), both, atol=1e-5)
    assert torch.allclose(ours(torch.cat([x, x]), Block([edges, others], n, rows, disjoint=True)), both, atol=1e-5)
    weight = torch.rand_like(both)
    got = torch.autograd.grad((ours(x, part) * weight).sum(), list(ours.parameters()))
    named = dict(peer.named_parameters())
    wanted = torch.autograd.grad((both * weight).sum(), [named[k] for k, _ in ours.named_parameters()])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("kind", [GCN, SAGE, GAT])
def test_self_loops_of_the_graph(kind):
    x, edges = torch.rand(5, 6), torch.tensor([[0, 1, 2, 2], [0, 0, 2, 3]])
    ours, peer = kind(6, 8), PEERS[kind]()
    peer.load_state_dict(ours.state_dict())
    assert torch.allclose(ours(x, Block([edges], 5)), peer(x, edges), atol=1e-6)


@pytest.mark.parametrize("kind", [GCN, SAGE, GAT])
def test_sparse_and_side_by_side_features_give_the_same(kind):
    torch.manual_seed(0)
    x = torch.rand(20, 70) * (torch.rand(20, 70) < 0.1)
    edges = torch.randint(20, (2, 60))
    sparse, layer, block = compact(x), kind(70, 8), Block([edges], 20, torch.arange(0, 20, 3))
    assert isinstance(sparse, Adjacency) and isinstance(compact(x + 1), torch.Tensor)
    expected = layer(unit_rows(x), block)
    for form in (unit_rows(sparse), (unit_rows(x)[:, :30], unit_rows(x)[:, 30:])):
        assert torch.allclose(layer(form, block), expected, atol=1e-6)
        assert torch.allclose(layer.frozen(form, block)(), expected, atol=1e-6)
    assert torch.allclose(unit_rows(sparse).transposed.to_dense(), unit_rows(x).t(), atol=1e-7)
    assert unit_rows(torch.zeros(2, 3)).eq(0).all()


# the model


def test_parameter_counts_follow_the_formulas():
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    for name, wanted in (("gcn", 45_952), ("sage", 91_520), ("gat", 46_720)):
        assert count(offprint.create_model(f"forward_{name}_h128_l3")) == wanted
    for name in VARIANTS:
        model = offprint.create_model(name, in_channels=12, hidden_channels=16, num_classes=3, num_layers=3)
        first = 15 if "ff_la" in name else 12
        above = {"forward_sf_top2input": (16, 16, 3), "forward_link_fl_topdown": (16, 16, 0)}.get(name, (0, 0, 0))
        widths = [(a + b, 16) for a, b in zip((first, 16, 16), above, strict=True)]
        if name == "forward_backprop":
            widths[-1] = (16, 3)
        per = {"sage": lambda a, h: 2 * a * h + h, "gat": lambda a, h: a * h + 3 * h}.get(
            name.split("_")[1], lambda a, h: a * h + h
        )
        assert count(model) == sum(per(a, h) for a, h in widths), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operator", ["gcn", "sage", "gat"])
def test_every_form_forwards_trains_and_predicts(method, operator):
    """With a loss that falls in each stage, and figures per depth."""
    data = graph()
    kwargs = {"in_channels": 8, "hidden_channels": 8, "num_classes": 3, "num_layers": 2, "operator": operator}
    outputs = offprint.create_model(f"forward_{method}", **kwargs)(data.x, data.edge_index)
    assert [len(h) for h in outputs] == [45, 45] and all(torch.isfinite(h).all() for h in outputs)
    run = quick(data, method, operator, epochs=30)
    depths = 1 if "backprop" in method else 2
    assert len(run.report["test"]) == len(run.report["val"]) == depths
    assert [s["epochs"] for s in run.report["stages"]] == [30] * (2 if METHODS[method].layerwise else 1)
    if METHODS[method].task == "link":
        pairs = torch.tensor([[0, 1], [3, 5]])
        assert run.predict(data, pairs).shape == (2,) and 0 < run.predict(data, pairs, depth=1).min() < 1
    else:
        assert run.predict(data).shape == (45,) and run.scores(data, torch.tensor([4, 9])).shape == (2, 3)


@pytest.mark.parametrize("method", ["ff_la", "ff_vn", "sf", "link_fl", "link_ff"])
def test_validation_by_frozen_inputs_equals_prediction(method):
    """What is cached between epochs and layers gives what a fresh pass over all layers so far gives."""
    data = graph()
    problem, *_ = fg._problem(data, method, None, None, 0, 100, "cpu")
    torch.manual_seed(0)
    model = offprint.create_model(f"forward_{method}", in_channels=8, hidden_channels=8, num_classes=3, num_layers=3)
    procedure = PROCEDURES[method](model, problem, lr=0.01)
    told = () if METHODS[method].task == "link" else (problem.train, problem.y[problem.train])
    for stage in range(3):
        procedure.open(stage)
        for _ in range(3):
            procedure.step(stage)
        seen = procedure.earlier + procedure.contribution()
        fresh = model.contributions(problem.x, problem.edge_index, problem.val, *told)[: stage + 1].sum(0)
        fresh = 2 * fresh if method.startswith("link") else fresh  # the halves of the authors' mean change no order
        assert torch.allclose(seen, fresh, atol=1e-5), stage
        procedure.close(stage)


def test_no_gradient_crosses_layers():
    """A step of one layer leaves the weights and gradients of all others alone."""
    problem, *_ = fg._problem(graph(), "sf", None, None, 0, 100, "cpu")
    model = offprint.create_model("forward_sf", in_channels=8, hidden_channels=8, num_classes=3, num_layers=3)
    procedure = PROCEDURES["sf"](model, problem)
    procedure.open(0)
    procedure.close(0)
    procedure.open(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    procedure.step(1)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"layers.1.gnn_layer.gnn.lin.weight", "layers.1.gnn_layer.gnn.bias"}
    assert all(p.grad is None for i in (0, 2) for p in model.trained[i].parameters())


def test_wrong_classes_are_wrong_all_different_and_drawn_by_the_seed():
    y = torch.arange(50) % 5
    drawn = fg.draw_wrong_classes(y, 5, 100, torch.Generator().manual_seed(1))
    assert drawn.shape == (4, 50)
    assert [sorted(column) for column in drawn.t().tolist()] == [[c for c in range(5) if c != k] for k in y.tolist()]
    assert torch.equal(drawn, fg.draw_wrong_classes(y, 5, 100, torch.Generator().manual_seed(1)))
    assert torch.equal(fg.draw_wrong_classes(y, 5, 2, torch.Generator().manual_seed(1)), drawn[:2])


def test_forward_forward_reads_validation_labels_when_testing_and_single_forward_does_not():
    data = graph()
    assert len(quick(data, "ff_la").nodes) == 30 and len(quick(data, "sf").nodes) == 15
    run = quick(data, "ff_vn")
    labelled = run.nodes[:3]
    mixed = torch.cat([labelled, torch.tensor([6])])  # the others' labels are still told
    assert torch.equal(run.scores(data, mixed)[3], run.scores(data, torch.tensor([6]))[0])


# splits and measures


def test_the_splits_are_scikit_learns():
    model_selection = pytest.importorskip("sklearn.model_selection")
    n = 203
    for split, (rest, fold) in enumerate(model_selection.KFold(5, shuffle=True, random_state=101).split(np.arange(n))):
        train, val = model_selection.train_test_split(rest, test_size=0.2, random_state=127 * split)
        for mask, part in zip(node_split(n, split), (train, val, fold), strict=True):
            assert mask.nonzero().flatten().tolist() == sorted(part.tolist())


def test_link_split_is_repeatable_and_leaves_random_states_alone():
    data = graph()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a = link_split(data, 2)
    assert torch.equal(torch.rand(1), expected)
    b, c = link_split(data, 2), link_split(data, 3)
    assert torch.equal(a[0].edge_label_index, b[0].edge_label_index)
    assert a[0].edge_label_index.shape != c[0].edge_label_index.shape or not torch.equal(
        a[0].edge_label_index, c[0].edge_label_index
    )
    assert all(int(part.edge_label.sum()) * 2 == len(part.edge_label) for part in a)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_area_under_the_curve_counts_pairs(rows):
    score, label = torch.tensor([float(a) for a, _ in rows]), torch.tensor([b for _, b in rows])
    if 0 < int(label.sum()) < len(rows):
        p, q = score[label], score[~label]
        wins = sum(float(a > b) + 0.5 * float(a == b) for a in p for b in q)
        assert roc_auc(score, label) == pytest.approx(wins / (len(p) * len(q)))


# runs


def test_it_learns_and_stops_early():
    data = graph(90)
    run = quick(data, epochs=200, patience=5, hidden=32)
    assert run.report["test"][-1] > 90 and all(s["epochs"] < 200 for s in run.report["stages"])
    assert run.report["stages"][0]["best_val"] == pytest.approx(run.report["val"][0])


@pytest.mark.parametrize(
    "method", ["ff_la", "ff_vn", "sf", "sf_top2loss", "sf_top2input", "link_fl_topdown", "backprop"]
)
@pytest.mark.parametrize("stop", [3, 11])
def test_an_interrupted_run_gives_the_same_result(tmp_path, monkeypatch, method, stop):
    data, options = graph(), {"epochs": 8, "patience": 3}
    expected = quick(data, method, **options)
    monkeypatch.setattr("offprint.tasks.folder.SAVE_EVERY", 0.0)
    real, calls = PROCEDURES[method].step, [0]

    def step(self, stage):
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return real(self, stage)

    monkeypatch.setattr(PROCEDURES[method], "step", step)
    interrupted = False
    try:
        quick(data, method, out=tmp_path, **options)
    except KeyboardInterrupt:
        interrupted = True
        assert (tmp_path / "state.pt").is_file() and not (tmp_path / "model.safetensors").exists()
    assert interrupted == (stop <= 8 or METHODS[method].layerwise)
    run = quick(data, method, out=tmp_path, **options)
    for key in ("val", "test", "stages"):
        assert run.report[key] == expected.report[key]
    assert all(torch.equal(v, run.model.state_dict()[k]) for k, v in expected.model.state_dict().items())
    assert not (tmp_path / "state.pt").exists()
    done = calls[0]
    again = quick(data, method, out=tmp_path, **options)  # finished: read, not trained
    assert calls[0] == done and again.report == run.report


def test_a_folder_of_another_run_is_refused(tmp_path):
    quick(graph(), out=tmp_path)
    with pytest.raises(OffprintError, match="another lr"):
        quick(graph(), out=tmp_path, lr=0.02)
    with pytest.raises(OffprintError, match="another data"):
        quick(graph(seed=5), out=tmp_path)
    assert quick(graph(), out=tmp_path, lr=0.02, resume=False).report["settings"]["lr"] == 0.02


@pytest.mark.parametrize("method", ["ff_vn", "sf_top2input", "link_ff"])
def test_saved_models_predict_the_same(tmp_path, method):
    data = graph()
    run = quick(data, method)
    wanted = torch.tensor([[0, 1, 2], [3, 4, 5]]) if run.task == "link" else None
    again = TrainedGNN.load(run.save(tmp_path / "m.safetensors"))
    assert torch.equal(again.scores(data, wanted), run.scores(data, wanted)) and again.report == run.report
    plain = offprint.create_model(f"forward_{method}", **{k: v for k, v in run.model.settings.items() if k != "method"})
    offprint.save_weights(run.model, tmp_path / "weights.safetensors")
    offprint.load_weights(plain, tmp_path / "weights.safetensors")
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in run.model.state_dict().items())
    with pytest.raises(CheckpointError, match="not a model saved by"):
        TrainedGNN.load(tmp_path / "weights.safetensors")
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        TrainedGNN.load(tmp_path / "m.safetensors")


def test_a_file_of_the_authors_lacks_the_virtual_features_and_loads():
    model = offprint.create_model("forward_sf", in_channels=8, num_classes=3, hidden_channels=8)
    state = {k: torch.ones_like(v) for k, v in model.state_dict().items() if k != "virtual"}
    kept = model.virtual.clone()
    report = offprint.load_weights(model, state)
    assert report.dialect == "authors" and torch.equal(model.virtual, kept)


def test_new_nodes_may_be_added_after_the_graph():
    data = graph()
    run = quick(data, epochs=40)
    x = torch.cat([data.x, data.x[:1]])
    edges = torch.cat([data.edge_index, torch.tensor([[45, 0, 3], [0, 45, 45]])], 1)
    assert int(run.predict(Data(x=x, edge_index=edges), torch.tensor([45]))) == 0
    with pytest.raises(OffprintError, match="this one has 10 nodes"):
        run.predict(Data(x=data.x[:10], edge_index=torch.zeros(2, 0, dtype=torch.long)))


# what cannot be used


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "sff"}, "unknown method 'sff'; nearest: sf"),
        ({"operator": "gin"}, "unknown graph operator 'gin'"),
        ({"layers": 0}, "num_layers=0; at least 1"),
        ({"hidden": 0}, "hidden_channels=0; at least 1"),
        ({"operator": "gat", "hidden": 10}, "10 channels cannot be shared"),
        ({"epochs": 0}, "epochs=0"),
        ({"patience": 0}, "patience=0"),
        ({"lr": float("nan")}, "lr=nan; a positive number"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"split": 5}, "split=5; the paper has five"),
        ({"lr": 1e30}, "the loss became"),
    ],
)
def test_settings_that_cannot_be_used(options, says):
    with pytest.raises(OffprintError, match=says):
        quick(graph(), **options)


def _set(name, value):
    return lambda g: setattr(g, name, value(g))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g.x.__setitem__((7, 1), float("nan")), "node 7 has features that are not finite"),
        (lambda g: g.edge_index.__setitem__((0, 3), 99), "the 45 nodes are 0 to 44"),
        (_set("edge_index", lambda g: g.edge_index.t()), r"shape \(2, E\)"),
        (_set("y", lambda g: None), "no labels"),
        (_set("y", lambda g: g.y.float()), "whole-number class per node"),
        (_set("y", lambda g: g.y[:5]), "whole-number class per node"),
        (_set("y", lambda g: g.y.clone().masked_fill_(g.train_mask & (g.y == 1), 2)), "class 1 of 3 has no node in the training"),
        (_set("y", lambda g: g.y.clone().masked_fill_(torch.arange(45) == 1, -1)), "node 1 of the train part has no class"),
        (_set("val_mask", lambda g: torch.zeros(45, dtype=torch.bool)), "the val part of the split is empty"),
        (_set("test_mask", lambda g: g.train_mask), "15 nodes are in both the train and the test part"),
        (_set("val_mask", lambda g: g.val_mask.long()), "masks are boolean"),
    ],
)  # fmt: skip
def test_graphs_that_cannot_be_learned_from(change, says):
    data = graph()
    change(data)
    with pytest.raises(DataError, match=says):
        quick(data)


def test_links_that_cannot_be_learned_from():
    data = graph()
    with pytest.raises(DataError, match="0 edges; link prediction needs edges"):
        quick(Data(x=data.x, edge_index=torch.zeros(2, 0, dtype=torch.long)), "link_fl")
    parts = link_split(data)
    with pytest.raises(OffprintError, match="got 2 parts"):
        quick(parts[:2], "link_fl")
    with pytest.raises(DataError, match="train part has no edge_label_index"):
        quick((data, *parts[1:]), "link_fl")
    parts[1].edge_label = torch.ones_like(parts[1].edge_label)
    with pytest.raises(DataError, match="val part has no negative pairs"):
        quick(parts, "link_fl")


@pytest.mark.parametrize("operator", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("method", ["ff_la", "sf", "sf_top2loss", "sf_top2input", "backprop"])
def test_isolated_and_disconnected_nodes(method, operator):
    data = graph()
    data.edge_index = data.edge_index[:, (data.edge_index >= 12).all(0)]
    data.x[:3] = 0
    run = quick(data, method, operator)
    assert torch.isfinite(run.scores(data)).all()


def test_a_directed_graph_is_used_as_it_is_with_a_warning():
    data = graph()
    data.edge_index = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    with pytest.warns(UserWarning, match="have no opposite"):
        run = quick(data)
    assert torch.isfinite(run.scores(data)).all()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no opposite.*")
        quick(graph())


def test_questions_a_trained_model_cannot_answer():
    data = graph()
    run, link = quick(data), quick(data, "link_fl")
    with pytest.raises(OffprintError, match="depth=3; .* depth 1 to 2"):
        run.predict(data, depth=3)
    with pytest.raises(OffprintError, match="nodes 0 to 44"):
        run.predict(data, torch.tensor([45]))
    with pytest.raises(OffprintError, match="scores pairs"):
        link.predict(data)
    with pytest.raises(OffprintError, match=r"shape \(2, m\)"):
        link.predict(data, torch.tensor([1, 2]))
    with pytest.raises(DataError, match=r"shape \(n, 8\), got \(45, 7\)"):
        run.predict(Data(x=data.x[:, :7], edge_index=data.edge_index))


# the command line


@pytest.fixture
def verb(offprint_cli):  # noqa: F811
    """Call ``offprint graph`` in-process in a folder of its own: (exit code, stdout, stderr)."""
    return lambda *words: offprint_cli("graph", *words)


def test_the_verb_trains_predicts_and_evaluates(verb, tmp_path):
    fitted = ("fit", "-d", "cora", "--epochs", "60", "--layers", "1", "--hidden", "32", "--out", "run")
    code, shown, error = verb(*fitted)
    assert code == 0 and (tmp_path / "run" / "report.json").is_file(), error
    figure = shown.splitlines()[0]
    assert figure.startswith("test accuracy: ")
    code, shown, error = verb("evaluate", "run", "-d", "cora")
    assert code == 0 and shown.strip() == figure, error
    code, _, error = verb("predict", "run", "-d", "cora", "--nodes", "3,9", "-o", "p.csv")
    assert code == 0, error
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert rows[0] == "node,class," + ",".join(f"score_{c}" for c in range(7))
    assert [row.split(",")[0] for row in rows[1:]] == ["3", "9"]
    code, _, error = verb("fit", "-d", "cora", "--method", "ssf", "--out", "other")
    assert (
        code == 2 and "unknown model 'forward_ssf'; nearest: forward_sf" in error and not (tmp_path / "other").exists()
    )
    code, _, error = verb("fit", "-d", "cora", "--split", "9")
    assert code == 2 and "--split 9: give 0, 1, 2, 3 or 4" in error
    code, _, error = verb("predict", "run", "-d", "cora", "--nodes", "3;9")
    assert code == 2 and "whole numbers separated by commas" in error


def test_the_verb_on_pairs(verb, tmp_path):
    code, shown, error = verb("fit", "-d", "cora", "-m", "link_fl", "--epochs", "4", "--hidden", "16", "--out", "run")
    assert code == 0 and "ROC-AUC" in shown, error
    (tmp_path / "pairs.csv").write_text("a,b\n0,1\n5,9\n")
    code, _, error = verb("predict", "run", "-d", "cora", "--pairs", "pairs.csv", "-o", "p.csv")
    assert code == 0 and len((tmp_path / "p.csv").read_text().splitlines()) == 3, error
    (tmp_path / "pairs.csv").write_text("0,1\n5,x\n")
    code, _, error = verb("predict", "run", "-d", "cora", "--pairs", "pairs.csv", "-o", "q.csv")
    assert code == 2 and "line 2" in error and not (tmp_path / "q.csv").exists()
    code, _, error = verb("predict", "run", "-d", "cora")
    assert code == 2 and "--pairs FILE.csv" in error
    code, _, error = verb("fit", "-d", "cora", "-m", "link_fl", "--split", "public")
    assert code == 2 and "no public split" in error


# the temperature


@pytest.mark.parametrize("method", ["sf", "sf_top2loss", "sf_top2input"])
def test_the_temperature_belongs_to_the_model(method, tmp_path):
    data = graph()
    cold, warm = (quick(data, method, layers=1, epochs=1, temperature=t) for t in (0.5, 1.0))
    nodes, n = data.test_mask.nonzero().flatten(), data.num_nodes
    assert cold.model.temperature == 0.5 and cold.report["settings"]["temperature"] == 0.5
    again = TrainedGNN.load(cold.save(tmp_path / "cold.safetensors"))
    assert torch.equal(again.scores(data, nodes), cold.scores(data, nodes))
    warm.model.load_state_dict(cold.model.state_dict())
    assert not torch.allclose(warm.scores(data, nodes), cold.scores(data, nodes), atol=1e-3)
    h = torch.randn(n + 3, 8)
    wanted = (h[nodes] @ h[n:].t() / 0.5).softmax(-1)
    assert torch.allclose(cold.model.match(h, n, nodes), wanted, atol=1e-6)


def test_a_graph_in_double_is_learnt_in_double(tmp_path):
    data = graph()
    data.x = data.x.double()
    run = quick(data)
    assert {p.dtype for p in run.model.parameters()} == {torch.float64}
    again = TrainedGNN.load(run.save(tmp_path / "double.safetensors"))
    assert torch.equal(again.scores(data), run.scores(data)) and again.scores(data).dtype == torch.float64
