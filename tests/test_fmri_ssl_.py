"""fmri-ssl: dynamic graphs, what is hidden stays hidden, scans from files, training that resumes, the verbs, bad input."""

import copy
import csv
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.brain_series import (
    make_labels,
    open_series,
    read_labels,
    simulate_scans,
    split_scans,
    standardise,
    write_simulated,
)
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.models.graphs.fmri_ssl import (
    STAGIN,
    BrainEncoder,
    SpatioTemporalMAE,
    adjacency,
    dynamic_fc,
    node_loss,
    orthogonality,
    threshold,
    window_correlations,
    window_starts,
)
from offprint.tasks import brain, brain_use
from offprint.tasks.running import NonFiniteLoss

SMALL = {"num_regions": 8, "hidden_dim": 8, "num_layers": 2, "window": 12, "stride": 4, "length": 40}


def series(batch=2, frames=50, regions=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, frames, regions, generator=draw)
    return x + 0.7 * x[:, :, :1]


# dynamic graphs


def test_windows_are_counted_strictly():
    assert window_starts(70, 30, 5, 60) == [0, 5, 10, 15, 20, 25]
    assert window_starts(60, 30, 5) == [0, 5, 10, 15, 20, 25]
    assert window_starts(70, 30, 5, 60, 9)[0] == 9
    with pytest.raises(OffprintError, match="must end before the last of 60 frames"):
        window_starts(60, 30, 5, 60)
    with pytest.raises(OffprintError, match="at least 31 are needed.*transposed"):
        window_starts(30, 30, 5)


def test_correlations_equal_numpy_and_a_constant_region_is_zero():
    x = series(regions=5)
    x[0, :20, 2] = 3.3
    fc = dynamic_fc(x, 12, 4)
    for b in range(2):
        for w, s in enumerate(window_starts(50, 12, 4)):
            with np.errstate(invalid="ignore"):
                expected = np.nan_to_num(np.corrcoef(x[b, s : s + 12].double().numpy().T))
            if b == 0 and s + 12 <= 20:
                expected[2] = expected[:, 2] = 0
                assert (fc[b, w, 2] == 0).all() and (fc[b, w, :, 2] == 0).all()
            np.testing.assert_allclose(fc[b, w].numpy(), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 99), st.integers(0, 10_000), st.booleans())
def test_threshold_equals_numpys_percentile(n, sparsity, seed, ties):
    fc = torch.rand(2, 3, n, n, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    fc = (fc * 3).round() / 3 if ties else fc
    expected = np.percentile(fc.flatten(-2).double().numpy(), 100 - sparsity, axis=-1)
    np.testing.assert_allclose(threshold(fc, sparsity).numpy(), expected, atol=1e-6)


def test_both_ways_of_selecting_agree(monkeypatch):
    """NumPy's, and the one that runs on other devices and when compiled."""
    fc = dynamic_fc(series(), 12, 4)
    fc[0, 0] = fc[0, 0].round()
    eager = [adjacency(fc, s) for s in (5, 30, 95)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(a, adjacency(fc, s)) for a, s in zip(eager, (5, 30, 95), strict=True))


def test_edges_are_the_strongest_positive_correlations():
    fc = dynamic_fc(series(), 12, 4)
    graphs = adjacency(fc, 30)
    assert set(graphs.unique().tolist()) == {0.0, 1.0} and (graphs.diagonal(dim1=-2, dim2=-1) == 1).all()
    assert ((graphs == 1) <= (fc > 0)).all() and 0.2 < float(graphs.mean()) <= 0.3


# the encoder and STAGIN


def test_the_split_input_layer_is_the_written_out_one():
    model, x = BrainEncoder(**SMALL).eval(), series()
    x, starts = model.place(x)
    states, _ = model.timestamp_encoder.rnn(x.transpose(0, 1))
    got = model.node_input(x, starts)
    for w, s in enumerate(starts[0].tolist()):
        row = torch.cat([torch.eye(8), states[s + 11, 1].expand(8, -1)], 1)
        assert torch.allclose(got[1, w], model.initial_linear(row), atol=1e-5)


def test_gin_adds_neighbours_and_epsilon_times_itself():
    model = BrainEncoder(**SMALL).eval()
    layer = model.gnn_layers[0]
    torch.nn.init.constant_(layer.epsilon, 0.3)
    h, graphs = torch.randn(3, 8, 8), (torch.rand(3, 8, 8) > 0.5).float()
    slow = torch.stack([layer.mlp(graphs[g] @ h[g] + 0.3 * h[g]) for g in range(3)])
    assert torch.allclose(layer(h, graphs), slow, atol=1e-5)


@pytest.mark.parametrize("readout", ["mean", "sero", "garo"])
@pytest.mark.parametrize("pool", ["sum", "mean", "param"])
def test_details_agree_with_forward(readout, pool):
    torch.manual_seed(0)
    model = STAGIN(**SMALL, readout=readout, cls_token=pool, num_heads=2).eval()
    x = series()
    with torch.no_grad():
        out, windows = model.details(x), len(window_starts(50, 12, 4, 40))
        assert torch.allclose(out.logit, model(x), atol=1e-5)
    assert out.latent.shape == (2, 2, 8) and out.node_attention.shape == (2, 2, windows, 8)
    tokens = windows + (pool == "param")
    assert out.time_attention.shape == (2, 2, tokens, tokens)
    assert torch.allclose(out.time_attention.sum(-1), torch.ones(2, 2, tokens), atol=1e-5)
    assert torch.isfinite(out.orthogonality)


def test_the_learnt_token_is_appended_last_and_read_back_last():
    torch.manual_seed(0)
    model = STAGIN(**SMALL, readout="mean", cls_token="param").eval()
    h = torch.randn(2, 7, 8, 8)
    latent, _, _ = model._read([h, h], False)
    x = torch.cat([h.mean(2).transpose(0, 1), model.token_parameter[1].expand(1, 2, 8)])
    assert torch.allclose(latent[:, 1], model.transformer_modules[1](x, False)[0][7], atol=1e-5)


def test_one_start_per_scan_equals_one_scan_at_a_time():
    model, x = STAGIN(**SMALL).eval(), series()
    with torch.no_grad():
        together = model(x, torch.tensor([0, 7]))
        alone = torch.cat([model(x[:1], 0), model(x[1:], 7)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_frames_after_the_last_window_do_not_matter():
    model, x = STAGIN(**SMALL).eval(), series()
    y = x.clone()
    y[:, window_starts(50, 12, 4, 40)[-1] + 12 :] = 9.0
    with torch.no_grad():
        assert torch.equal(model(x), model(y))


def test_orthogonality_survives_a_dead_region():
    h = torch.rand(1, 2, 4, 3)
    h[:, :, 1] = 0
    assert torch.isfinite(orthogonality(h))
    perfect = torch.eye(4).expand(1, 2, 4, 4)
    assert float(orthogonality(perfect)) == pytest.approx(0, abs=1e-6)


def test_copies_export_and_no_classifier():
    torch.manual_seed(0)
    model, x = STAGIN(**SMALL).eval(), series(frames=60)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x), expected, atol=1e-4)
    headless = offprint.create_model("stagin", num_classes=0, **SMALL).eval()
    assert headless(x).shape == (2, 16)


def test_costs_are_counted_without_computing():
    counted = offprint.model_info("stagin", **SMALL)
    assert counted["input"] == [1, 41, 8] and counted["outputs"] == [1, 2]
    assert counted["parameters"] == sum(p.numel() for p in STAGIN(**SMALL).parameters())


def test_edges_do_not_hang_on_the_precision():
    model, x = STAGIN(**SMALL).eval(), series()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fc, graphs = model.graphs(*model.place(x))
        logits = model(x)
    expected = model.graphs(*model.place(x))
    assert torch.equal(fc, expected[0]) and torch.equal(graphs, expected[1])
    assert torch.allclose(logits.float(), model(x), rtol=0.1, atol=0.3)


def test_what_a_model_refuses():
    model = STAGIN(**SMALL)
    with pytest.raises(OffprintError, match="too little for SERO's batch norm"):
        STAGIN(**{**SMALL, "length": 13}).train()(series(1))
    with pytest.raises(OffprintError, match=r"\(batch, frames, 8\), got \(2, 50, 7\).*num_regions"):
        model(series(regions=7))
    bad = series()
    bad[1, 3, 2] = float("nan")
    with pytest.raises(OffprintError, match="not finite"):
        model(bad)
    with pytest.raises(OffprintError, match="nearest: sero|garo"):
        STAGIN(**SMALL, readout="serro")
    with pytest.raises(OffprintError, match="sparsity=0"):
        STAGIN(**{**SMALL, "sparsity": 0})


# pre-training


def test_what_is_hidden_and_dropped():
    model = SpatioTemporalMAE(**SMALL, mask_ratio=0.25, drop_ratio=0.5)
    graphs = torch.ones(4, 30, 8, 8)
    hidden, kept = model.hide(graphs, torch.Generator().manual_seed(0))
    assert (hidden.sum(-1) == 2).all()
    assert torch.equal(kept, kept.mT) and (kept.diagonal(dim1=-2, dim2=-1) == 1).all()
    off = kept.masked_select(~torch.eye(8, dtype=torch.bool))
    assert 0.47 < float(off.mean()) < 0.53
    assert (graphs == 1).all()


def test_nothing_of_a_hidden_region_is_left_in_its_input():
    """Its row is the token whatever the scan; no identity, no time, and no gradient reaches them through it."""
    model, x = SpatioTemporalMAE(**SMALL), series().requires_grad_()
    hidden = torch.zeros(2, 7, 8, dtype=torch.bool)
    hidden[..., 3] = True
    rows, starts = model.encoder.place(x)
    h = model.hidden_input(rows, starts, hidden)
    assert (h[..., 3, :] == model.mask_token).all()
    assert not (h[..., 2, :] == model.mask_token).any()
    h[..., 3, :].sum().backward()
    assert x.grad is None or (x.grad == 0).all()
    assert (model.encoder.initial_linear.weight.grad == 0).all() and (model.mask_token.grad != 0).all()


def test_correlations_reach_the_encoder_through_edges_only():
    """With its edges dropped a hidden region is rebuilt alike whatever its correlations were; with them it is not."""
    torch.manual_seed(0)
    model = SpatioTemporalMAE(**SMALL, drop_ratio=1.0).eval()
    rebuilt = []
    for seed in (0, 1):
        x, starts = model.encoder.place(series(seed=seed))
        fc, graphs = model.encoder.graphs(x, starts)
        hidden, kept = model.hide(graphs, torch.Generator().manual_seed(0))
        assert (kept == torch.eye(8)).all() and (fc != 0).any()
        h = model.encoder.propagate(model.hidden_input(x, starts, hidden), kept)[-1]
        rebuilt.append(model.node_decoder(h[hidden]))
        seen = model.encoder.propagate(model.hidden_input(x, starts, hidden), graphs)[-1]
        assert not torch.allclose(model.node_decoder(seen[hidden]), rebuilt[-1], atol=1e-4)
    assert torch.allclose(*rebuilt, atol=1e-5)


def test_targets_come_from_the_whole_graph():
    """A node decoder that answers with the rows of the unmasked correlations has no loss, whatever was hidden and dropped."""
    model = SpatioTemporalMAE(**SMALL, drop_ratio=1.0, mask_ratio=1.0).eval()
    x = series(1)
    fc, graphs = model.encoder.graphs(*model.encoder.place(x))
    count = fc.shape[1]
    answers = iter([fc.flatten(0, 2), fc[:, 1:-1]])
    model.node_decoder.forward = lambda h: next(answers)
    out = model(x)
    assert float(out.spatial_node) == 0 and float(out.temporal_node) == 0
    assert count == len(window_starts(50, 12, 4, 40))


def test_a_window_is_rebuilt_from_an_earlier_and_a_later_one():
    model = SpatioTemporalMAE(**SMALL).eval()
    x, pairs = series(), []
    model.encoder.propagate = lambda h, graphs: [torch.arange(7.0)[None, :, None, None].expand(2, 7, 8, 8)]
    model.temporal.forward = lambda pair: (pairs.append(pair), torch.zeros(*pair.shape[:-1], 8))[1]
    for _ in range(20):
        model(x)
    t = torch.arange(1.0, 6.0)[None, :, None]
    for pair in pairs:
        a, b = pair[..., 0], pair[..., 8]
        assert (a < t).all() and (b > t).all()
    assert len({float(p[0, 4, 0, 0]) for p in pairs}) > 2


def test_windows_are_drawn_in_order_and_the_same_for_the_same_generator():
    model, x = SpatioTemporalMAE(**SMALL, num_windows=4).eval(), series()
    starts = model.encoder.place(x)[1]
    drawn = model._draw_windows(starts, torch.Generator().manual_seed(0))
    assert (
        drawn.shape == (2, 4)
        and (drawn.diff(dim=1) > 0).all()
        and set(drawn.flatten().tolist()) <= set(starts[0].tolist())
    )
    same = [float(model(x, generator=torch.Generator().manual_seed(3)).loss) for _ in range(2)]
    assert same[0] == same[1] != float(model(x, generator=torch.Generator().manual_seed(4)).loss)


def test_balance_weights_space_against_time():
    x = series()
    torch.manual_seed(0)
    model = SpatioTemporalMAE(**SMALL, balance=0.25, loss="sce").eval()
    out = model(x)
    expected = 0.25 * (out.spatial_node + out.spatial_edge) + 0.75 * (out.temporal_node + out.temporal_edge)
    assert torch.allclose(out.loss, expected)
    same = torch.rand(4, 6)
    assert float(node_loss(3 * same, same, "sce")) == pytest.approx(0, abs=1e-6)


def test_pre_training_rebuilds_scans_it_never_saw():
    made = simulate_scans(48, 8, 60, coupling=(0.1, 0.7), stay=0.97, variability=0.3)
    scans = torch.from_numpy(np.stack(open_series(made.series).series))
    torch.manual_seed(0)
    model = SpatioTemporalMAE(**{**SMALL, "length": None}, num_windows=8).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def unseen():
        with torch.no_grad():
            return float(model(scans[32:], generator=torch.Generator().manual_seed(1)).loss)

    before = unseen()
    for _ in range(25):
        optimizer.zero_grad()
        model(scans[:32]).loss.backward()
        optimizer.step()
    assert unseen() < 0.9 * before


def test_what_pre_training_refuses():
    with pytest.raises(OffprintError, match="mask_ratio=1.5; it is a share"):
        SpatioTemporalMAE(**SMALL, mask_ratio=1.5)
    with pytest.raises(OffprintError, match="num_windows=2.*at least 3"):
        SpatioTemporalMAE(**SMALL, num_windows=2)
    with pytest.raises(OffprintError, match="unknown node loss 'mes'"):
        SpatioTemporalMAE(**SMALL, loss="mes")
    with pytest.raises(OffprintError, match="2 windows of 12 frames.*at least 3"):
        SpatioTemporalMAE(**{**SMALL, "length": 17})(series())


# scans


def test_every_source_gives_the_same_scans(tmp_path):
    x = series(3, 20, 4).numpy().astype(np.float64)
    np.save(tmp_path / "all.npy", x)
    np.savez(tmp_path / "series.npz", series=x, ids=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "each.npz", a=x[0], b=x[1], c=x[2])
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "a.npy", x[0])
    np.savetxt(folder / "b.csv", x[1], delimiter=",", header="V1,V2,V3,DMN", comments="")
    np.savetxt(folder / "c.tsv", x[2], delimiter="\t")
    (folder / "participants.tsv").write_text("participant_id\tsex\na\tF\n")
    archive = {"a": x[0], "b": x[1], "c": x[2]}
    named = [tmp_path / "series.npz", str(tmp_path / "each.npz"), folder, archive]
    plain = [tmp_path / "all.npy", x, torch.from_numpy(x), list(x), [torch.from_numpy(s) for s in x]]
    for source in named + plain:
        scans = open_series(source)
        assert scans.ids == (("a", "b", "c") if any(source is s for s in named) else ("0", "1", "2"))
        assert scans.num_regions == 4 and scans.shortest == 20
        for got, given_ in zip(scans.series, x, strict=True):
            np.testing.assert_allclose(got, standardise(given_), atol=1e-5)
    assert open_series(x[0]).ids == ("0",) and len(open_series(open_series(x))) == 3


def test_standardising_keeps_a_constant_region_at_zero():
    x = series(1, 30, 3)[0].numpy() * 5 + 100
    x[:, 1] = 0.1
    y = standardise(x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), [1, 0, 1], atol=1e-5)
    raw = open_series(x, standardize=False).series[0]
    np.testing.assert_array_equal(raw, x)


def test_bad_scans_are_named(tmp_path):
    x = series(3, 20, 4).numpy()
    with pytest.raises(DataError, match="b has 3 regions, a has 4; all scans must come from one parcellation"):
        open_series({"a": x[0], "b": x[1, :, :3]})
    with pytest.raises(DataError, match="b has 20 regions, a has 4.*transposed"):
        open_series({"a": x[0, :5], "b": x[1, :4].T[:, :].repeat(5, 1)[:4]})
    with pytest.raises(DataError, match="a has 20 frames, a window of 20 needs at least 21"):
        open_series({"a": x[0]}, window=20)
    bad = x.copy()
    bad[1, 7, 2] = np.nan
    with pytest.raises(DataError, match="1: frame 7, region 2 is nan"):
        open_series(bad)
    with pytest.raises(DataError, match="expected frames x regions, got an array of shape"):
        open_series([x, x])
    with pytest.raises(DataError, match="expected numbers"):
        open_series(np.array([["a", "b"]]))
    with pytest.raises(DataError, match="no scans"):
        open_series([])
    with pytest.raises(DataError, match="no file or folder"):
        open_series(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .npy"):
        open_series(tmp_path / "empty")
    np.save(tmp_path / "objects.npy", np.array([x[0], x[1, :5]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="could run code"):
        open_series(tmp_path / "objects.npy")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(DataError, match="damaged"):
        open_series(tmp_path / "broken.npy")
    np.savez(tmp_path / "ids.npz", series=x, ids=np.array(["a", "a", "b"]))
    with pytest.raises(DataError, match="3 scans, 2 different ids"):
        open_series(tmp_path / "ids.npz")
    for text, says in (
        ("r1,r2\n1,2\n3\n", "line 3: 1 columns, the first line of numbers has 2"),
        ("1,2\n3,n/a\n", "line 2, column 2: expected a number, got 'n/a'"),
        ("r1,r2\n", "is empty"),
    ):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(DataError, match=says):
            open_series(tmp_path / "s.csv")


def test_labels_by_subject(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("participant_id,sex,age,site\nsub-02,F,31.5,A\nsub-01,M,22,A\nsub-03,n/a,40,A\n")
    ids = ["sub-01_task-rest_bold", "sub-02", "sub-03"]
    made, having = read_labels(file, "sex", ids, missing="skip")
    assert made.classes == ("F", "M") and made.values.tolist() == [1, 0] and having == [0, 1]
    made, having = read_labels(file, "age", ids)
    assert made.classes == () and made.values.tolist() == [22, 31.5, 40] and having == [0, 1, 2]
    made, _ = read_labels(file, "age", ids, kind="classification")
    assert made.classes == ("22", "31.5", "40")
    with pytest.raises(DataError, match="1 of 3 scans have no sex.*sub-03"):
        read_labels(file, "sex", ids)
    with pytest.raises(DataError, match="site is 'A' for every scan.*two classes"):
        read_labels(file, "site", ids)
    with pytest.raises(DataError, match="unknown column.*'sax'; nearest: sex"):
        read_labels(file, "sax", ids)
    with pytest.raises(DataError, match="is to be a number, but 'M'"):
        read_labels(file, "sex", ids[:2], kind="regression")
    with pytest.raises(DataError, match="no table of labels"):
        read_labels(tmp_path / "none.csv", "sex", ids)
    file.write_text("subject,sex\na,F\na,M\n")
    with pytest.raises(DataError, match="line 3: subject a has sex 'M', before that 'F'"):
        read_labels(file, "sex", ["a"])
    file.write_text("subject,sex\na\n")
    with pytest.raises(DataError, match="line 2: 1 columns, the first line names 2"):
        read_labels(file, "sex", ["a"])


def test_kinds_of_labels():
    assert make_labels([0, 1, 0]).classes == ("0", "1")
    assert make_labels([10, 9, 9]).classes == ("9", "10")
    assert make_labels(range(30)).classes == ()
    assert make_labels([0.5, 1.0]).classes == ()
    with pytest.raises(DataError, match="nothing to learn"):
        make_labels([2.5, 2.5])


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 40), st.integers(2, 4), st.integers(0, 100))
def test_folds_are_a_partition_with_every_class_spread(count, folds, seed):
    made = make_labels([i % 2 for i in range(count)])
    tests = [split_scans(made, count, folds, k, seed)[1] for k in range(folds)]
    assert sorted(sum(tests, [])) == list(range(count))
    shares = [[sum(made.values[i] == c for i in part) for part in tests] for c in (0, 1)]
    assert all(max(s) - min(s) <= 1 for s in shares)
    assert all(set(a) & set(b) == set() for a, b in [split_scans(made, count, folds, 0, seed)])


def test_a_class_held_out_whole_is_refused():
    with pytest.raises(DataError, match="'b' has 1 scan, which is held out"):
        for fold in range(3):
            split_scans(make_labels(["a", "a", "a", "a", "b"]), 5, 3, fold)
    with pytest.raises(DataError, match="cannot be split into 9 folds"):
        split_scans(None, 5, 9)


def test_simulated_scans_are_deterministic_and_hold_what_is_stated(tmp_path):
    made = simulate_scans(40, 16, 400, seed=3, noise=0.3, variability=0.0, coupling=(0.0, 0.8), spread=0.0)
    again = simulate_scans(10, 16, 400, seed=3, noise=0.3, variability=0.0, coupling=(0.0, 0.8), spread=0.0)
    np.testing.assert_array_equal(made.series[:10], again.series)
    assert not np.array_equal(simulate_scans(1, 16, 400, seed=4).series[0], made.series[0])
    first, second = np.arange(16) % 4 == 0, np.arange(16) % 4 == 1
    for c, coupling in ((0, 0.0), (1, 0.8)):
        active = np.concatenate([x[s == 1] for x, s in zip(made.series[c::2], made.states[c::2], strict=True)])
        means = np.corrcoef(active[:, first].mean(1), active[:, second].mean(1))[0, 1]
        assert means == pytest.approx(coupling, abs=0.08)
    assert made.about.startswith("SIMULATED")
    archive, table = write_simulated(made, tmp_path)
    scans = open_series(tmp_path)
    assert scans.about.startswith("SIMULATED") and scans.take([1]).about == scans.about and archive.exists()
    rows = list(csv.DictReader(table.open()))
    assert {r["source"] for r in rows} == {"simulated"} and [r["subject"] for r in rows] == list(scans.ids)
    with pytest.raises(OffprintError, match="2 regions per network"):
        simulate_scans(2, 4, 50, networks=4)


# tasks

OPTIONS = {"hidden_dim": 8, "num_layers": 2, "window": 12, "stride": 6}
FAST = {"epochs": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def made():
    return simulate_scans(16, 8, 40, noise=0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, made):
    """Simulated scans in files, a pre-training run and a fine-tuning run on them."""
    root = tmp_path_factory.mktemp("brain")
    write_simulated(made, root / "scans")
    pre = pretrain(root / "scans", root / "pre")
    fine = finetune(
        root / "scans", root / "scans" / "simulated_labels.csv", root / "fine", target="class", weights=root / "pre"
    )
    return root, pre, fine


QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}


def pretrain(source, out, **kwargs):
    overrides = {**FAST, **kwargs.pop("overrides", {})}
    return brain.pretrain(
        source, out, overrides=overrides, model_options=kwargs.pop("options", OPTIONS), **QUIET, **kwargs
    )


def finetune(source, labels, out, **kwargs):
    overrides = {**FAST, **kwargs.pop("overrides", {})}
    return brain.finetune(
        source, labels, out, overrides=overrides, model_options=kwargs.pop("options", OPTIONS), **QUIET, **kwargs
    )


class StopAfter(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1 and index == 1:
            raise KeyboardInterrupt


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_recipe():
    recipe = brain.BrainRecipe.of("stagin")
    optimizer, cycle = recipe.optimizer(torch.nn.Linear(2, 2), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    assert rates[0] == pytest.approx(5e-4) and max(rates) == pytest.approx(1e-3) and rates[-1] == pytest.approx(5e-7)
    assert rates.index(max(rates)) == 19
    assert brain.BrainRecipe.of("stagin", lr=1e-4).max_lr == pytest.approx(2e-4)
    for bad, says in (({"lrr": 1}, "nearest: lr"), ({"max_lr": 1e-5}, "lies below"), ({"rise": 1.0}, "share"),
                      ({"epochs": 0}, "above 0"), ({"clip_grad": -1}, "negative")):  # fmt: skip
        with pytest.raises(OffprintError, match=says):
            brain.BrainRecipe.of("stagin", **bad)


def test_pre_training_resumes_exactly(made, runs, tmp_path):
    root, summary, _ = runs
    with pytest.raises(KeyboardInterrupt):
        pretrain(root / "scans", tmp_path / "cut", callbacks=(StopAfter(),))
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    again = pretrain(root / "scans", tmp_path / "cut")
    assert same(tmp_path / "cut", root / "pre") and again["loss"] == summary["loss"]
    assert pretrain(root / "scans", tmp_path / "cut")["loss"] == summary["loss"]  # a finished run is read, not run
    with pytest.raises(OffprintError, match="another recipe.*--no-resume"):
        pretrain(root / "scans", tmp_path / "cut", overrides={"lr": 1e-4})
    assert summary["data"].startswith("SIMULATED") and summary["scans"] == 16


def test_fine_tuning_resumes_exactly_and_starts_from_the_weights(runs, tmp_path):
    root, _, summary = runs
    labels = root / "scans" / "simulated_labels.csv"
    with pytest.raises(KeyboardInterrupt):
        finetune(
            root / "scans", labels, tmp_path / "cut", target="class", weights=root / "pre", callbacks=(StopAfter(),)
        )
    again = finetune(root / "scans", labels, tmp_path / "cut", target="class", weights=root / "pre")
    assert same(tmp_path / "cut", root / "fine") and again["metrics"] == summary["metrics"]
    assert set(summary["metrics"]) == {"accuracy", "balanced_accuracy", "auroc"}
    model = STAGIN(8, 8, 2, window=12, stride=6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    brain_use.load_encoder(model, root / "pre")
    pre = tensors(root / "pre")
    for name, value in model.state_dict().items():
        assert torch.equal(value, pre[name] if name in pre else before[name])
    assert {n.split(".")[0] for n in pre} == {"timestamp_encoder", "initial_linear", "gnn_layers"}
    held = list(csv.DictReader((root / "fine" / "held_out.csv").open()))
    hits = [r["class"] == r["truth"] for r in held]
    assert 100 * sum(hits) / len(hits) == pytest.approx(summary["metrics"]["accuracy"])
    assert {r["source"] for r in held} == {"SIMULATED, not measured"}


def test_regression_over_all_folds(made, tmp_path):
    target = 50 + 10 * made.coupling
    summary = finetune(made.series, target, tmp_path, target="age", fold=None, folds=2, overrides={"epochs": 1})
    assert set(summary["metrics"]) == {"mae", "r", "r2"} == set(summary["spread"])
    assert len(summary["folds"]) == 2 and (tmp_path / "fold-1" / "model.safetensors").exists()
    spec = json.loads((tmp_path / "fold-0" / "settings.json").read_text())
    assert spec["scale"][0] == pytest.approx(50, abs=10)
    ids, vectors = brain_use.embed(made.series, tmp_path / "fold-0")
    assert vectors.shape == (16, 16) and ids[0] == "00"


def test_scores():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    figures = brain.score(logits, np.array([0, 0, 0, 1]), ("a", "b"), (0, 1))
    assert figures == {"accuracy": 75.0, "balanced_accuracy": pytest.approx(100 * (2 / 3 + 1) / 2), "auroc": 100.0}
    figures = brain.score(torch.tensor([[0.0], [1.0]]), np.array([10.0, 14.0]), (), (10.0, 2.0))
    assert figures == {"mae": 1.0, "r": pytest.approx(1.0), "r2": pytest.approx(0.5)}
    assert brain.score(torch.zeros(3, 1), np.array([1.0, 2.0, 3.0]), (), (2.0, 1.0))["r"] == 0.0


def test_scans_of_different_length(tmp_path):
    draw = np.random.default_rng(0)
    scans = [draw.standard_normal((frames, 8)) for frames in (40, 33, 50, 40, 33, 61)]
    assert brain.part_length(open_series(scans), 600) == 32
    assert brain.part_length(open_series(scans[:1]), 600) is None and brain.part_length(open_series(scans), 20) == 20
    summary = finetune(scans, [0, 1, 0, 1, 0, 1], tmp_path, folds=2, overrides={"epochs": 1})
    assert summary["scans"] == 6
    together = brain_use.embed(scans, tmp_path)[1]
    alone = np.concatenate([brain_use.embed([x], tmp_path)[1] for x in scans])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_training_on_all_scans_tests_nothing(made, tmp_path):
    summary = finetune(
        made.series, made.classes, tmp_path, folds=1, fold=None, overrides={"epochs": 1, "orthogonality": 0}
    )
    assert summary["metrics"] == {} and summary["folds"][0]["trained_on"] == 16


def test_a_lost_loss_stops_the_run(made, tmp_path):
    with pytest.raises(NonFiniteLoss, match="nothing was kept"):
        pretrain(made.series, tmp_path, overrides={"lr": 1e30, "epochs": 3})


def test_files_in_stagins_names_are_read_by_their_shapes(tmp_path, made):
    torch.manual_seed(0)
    model = STAGIN(8, 8, 2, num_heads=2, num_classes=3, readout="garo", window=12, stride=6).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "stagin.pth")
    ids, vectors = brain_use.embed(made.series, tmp_path / "stagin.pth", num_heads=2, window=12, stride=6)
    scans = torch.from_numpy(np.stack(open_series(made.series).series))
    with torch.no_grad():
        expected = model.details(scans, whole=True).latent.flatten(1)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    summary = finetune(
        made.series, made.classes, tmp_path / "run", weights=tmp_path / "stagin.pth", overrides={"epochs": 1}
    )
    assert summary["scans"] == 16
    with pytest.raises(CheckpointError, match="lacks initial_linear.weight"):
        torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
        brain_use.embed(made.series, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no run and no weight file"):
        brain_use.embed(made.series, tmp_path / "none")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        brain_use.embed(made.series, tmp_path / "unfinished")


def test_what_the_tasks_refuse(runs, made, tmp_path):
    root, _, _ = runs
    other = simulate_scans(4, 10, 40).series
    with pytest.raises(DataError, match="trained on 8 regions, the scans have 10"):
        finetune(other, [0, 1, 0, 1], tmp_path / "a", weights=root / "pre", folds=2)
    with pytest.raises(DataError, match="the scans have 10 regions"):
        brain_use.embed(other, root / "pre")
    with pytest.raises(DataError, match="3 labels were given for 16 scans"):
        finetune(made.series, [0, 1, 0], tmp_path / "b")
    with pytest.raises(DataError, match="a window of 50 needs at least 51"):
        pretrain(made.series, tmp_path / "c", options={})
    with pytest.raises(OffprintError, match="has no attention"):
        brain_use.attention(made.series, root / "pre")
    with pytest.raises(OffprintError, match="leaves none of 16"):
        pretrain(made.series, tmp_path / "d", val_fraction=1.0)
    with pytest.raises(OffprintError, match="stagin predicts from brain scans"):
        brain.pretrain(made.series, tmp_path / "e", model="stagin", model_options=OPTIONS, **QUIET)
    with pytest.raises(OffprintError, match="not the folder of a fine-tuning"):
        brain_use.write_table(made.series, root / "pre", tmp_path / "p.csv", what="predictions")


def test_a_table_goes_on_after_an_interruption(runs, tmp_path):
    root, _, _ = runs
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    brain_use.write_table(root / "scans", root / "fine", whole, batch_size=3)

    def stop(done, total):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        brain_use.write_table(root / "scans", root / "fine", cut, batch_size=3, progress=stop)
    part = tmp_path / ".cut.csv.part"
    assert not cut.exists() and part.exists()
    part.write_text(part.read_text() + "sim-09,0.1,0.")  # a line cut short
    counts = []
    brain_use.write_table(
        root / "scans", root / "fine", cut, batch_size=3, progress=lambda done, total: counts.append(done)
    )
    assert cut.read_text() == whole.read_text() and counts[0] == 9 and not part.exists()


# the verbs


def test_the_verbs_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    here = tmp_path / "s"
    run = CliRunner()

    def call(*words):
        result = run.invoke(app, ["brain", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    said = call("simulate", "--out", here, "--subjects", 12, "--regions", 8, "--frames", 40)
    assert "SIMULATED, not measured" in said
    small = ["-o", "hidden_dim=8", "-o", "num_layers=1", "--epochs", 1, "--logger", "none", "--accelerator", "cpu"]
    said = call("pretrain", here, "--out", tmp_path / "pre", "--window", 12, "--stride", 6, *small)
    assert "SIMULATED" in said and "held-out" in said
    labels = here / "simulated_labels.csv"
    said = call("finetune", here, "--labels", labels, "--target", "class", "--weights", tmp_path / "pre", "--out",
                tmp_path / "fine", "--epochs", 1, "--logger", "none", "--accelerator", "cpu", "--folds", 3,
                "--cross-validate")  # fmt: skip
    assert "accuracy" in said and "±" in said and "SIMULATED" in said
    said = call("embed", here, "--weights", tmp_path / "pre", "--out", tmp_path / "e.csv")
    assert "12 scans, 8 columns" in said and "SIMULATED" in said
    call("predict", here, "--weights", tmp_path / "fine" / "fold-0", "--out", tmp_path / "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 12 and set(rows[0]) == {"subject", "class", "p_a", "p_b", "source"}
    said = call("attention", here, "--weights", tmp_path / "fine" / "fold-0", "--out", tmp_path / "a.npz", "--top", 3)
    assert "SIMULATED" in said and "regions that count most" in said
    with np.load(tmp_path / "a.npz") as file:
        assert file["sim-00/regions"].shape == (1, 5, 8) and file["sim-00/time"].shape == (1, 5, 5)
    assert "'max_lr': 0.002" in call(
        "finetune", here, "--labels", labels, "--target", "class", "--lr", "1e-3", "--show-recipe"
    )
    with pytest.raises(DataError, match="unknown column"):
        run.invoke(
            app,
            [
                "brain",
                "finetune",
                str(here),
                "--labels",
                str(labels),
                "--target",
                "sex",
                "--weights",
                str(tmp_path / "pre"),
            ],
            catch_exceptions=False,
        )


def test_correlations_take_starts_of_their_own():
    x = series()
    fc = window_correlations(x, torch.tensor([[0, 4], [3, 9]]), 12)
    for b, w, s in ((0, 1, 4), (1, 0, 3)):
        np.testing.assert_allclose(fc[b, w].numpy(), np.corrcoef(x[b, s : s + 12].numpy().T), atol=1e-5)
