"""What is s-kan's own: families at and beyond their grids, other conventions, memory, selection, pruning, fitting."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones import s_kan
from offprint.models.backbones.s_kan import KAN, SKAN, SConvKAN, SKANLayer, fit_function
from offprint.nn import kan
from offprint.nn.kan import DENSE, PATCHES


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def dense(name, inputs=3, outputs=4, **options):
    return DENSE[name](in_features=inputs, out_features=outputs, **options)


# -- families --------------------------------------------------------------------------------------------------------
FAR = torch.tensor([-1e30, -50.0, -2.2, -1.0, -0.6, 0.0, 1.0, 2.2, 50.0, 1e30])


@pytest.mark.parametrize("name", DENSE)
def test_inputs_beyond_the_grid_never_give_nan(name):
    layer = dense(name, 2, 3).eval()
    x = torch.stack([FAR, FAR.flip(0)], 1).clamp(-1e4, 1e4).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_splines_are_zero_outside_and_sum_to_one_inside():
    grid = kan.knots(5, 3)
    basis = kan.bsplines(FAR, grid, 3)
    outside = (FAR <= grid[0]) | (FAR >= grid[-1])
    assert basis.isfinite().all() and (basis[outside] == 0).all() and (basis[~outside].sum(-1) > 0).all()
    inside = torch.linspace(-1, 0.999, 50)
    assert torch.allclose(kan.bsplines(inside, grid, 3).sum(-1), torch.ones(50))
    layer = dense("bspline")
    far = torch.full((2, 3), 40.0)
    assert torch.allclose(layer(far), F.linear(F.silu(far), layer.base_weight))


def test_splines_are_scipys():
    from scipy.interpolate import BSpline

    grid = kan.knots(4, 3).double()
    x = torch.linspace(-2.4, 2.4, 41, dtype=torch.float64)
    for i in range(7):
        expected = BSpline.basis_element(grid[i : i + 5].numpy(), extrapolate=False)(x.numpy())
        assert torch.allclose(kan.bsplines(x, grid, 3)[:, i], torch.from_numpy(expected).nan_to_num(), atol=1e-12)


def test_equal_knots_give_zero():
    basis = kan.bsplines(torch.linspace(-1, 1, 9), torch.tensor([-1.0, -1, -1, -1, 0, 1, 1, 1, 1]), 3)
    assert basis.isfinite().all() and torch.allclose(basis[:-1].sum(-1), torch.ones(8))


def test_chebyshev_equals_arccos_with_finite_gradients():
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    expected = torch.cos(torch.arange(7) * torch.arccos(x)[:, None])
    assert torch.allclose(kan.chebyshev(x, 6), expected, atol=1e-12)
    edge = torch.tensor([-3.0, -1.0, 1.0, 3.0], requires_grad=True)
    kan.chebyshev(edge, 6).sum().backward()
    assert edge.grad.isfinite().all() and float(edge.grad[0]) == 0
    assert kan.chebyshev(x, 0).shape == (21, 1)


def test_wavelets():
    z = torch.tensor([-0.7, 0.0, 0.3, 0.75, 2.0], dtype=torch.float64)
    bell = torch.exp(-z * z / 2)
    t = 2 * 0.7 - 1
    nu = t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3)
    assert torch.allclose(kan.wavelet(z, "mexican_hat"), 2 / (3**0.5 * math.pi**0.25) * (z * z - 1) * bell)
    assert torch.allclose(kan.wavelet(z, "morlet"), torch.cos(5 * z) * bell)
    assert torch.allclose(kan.wavelet(z, "dog"), -z * bell)
    meyer = kan.wavelet(z, "meyer")
    assert float(meyer[0]) == pytest.approx(math.sin(0.7 * math.pi) * math.cos(math.pi / 2 * nu))
    assert float(meyer[2]) == pytest.approx(math.sin(0.3 * math.pi)) and float(meyer[4]) == 0
    shannon = dense("wavelet", 5, 1, wavelet_type="shannon").double().eval()
    x = torch.randn(2, 5, dtype=torch.float64)
    window = torch.hamming_window(5, periodic=False, dtype=torch.float64)
    expected = (torch.sin(x) / x * window * shannon.wavelet_weights).sum(-1, keepdim=True)
    assert torch.allclose(shannon.edges(x), expected + F.linear(F.silu(x), shannon.weight1))


def test_jacobi_polynomials_are_scipys():
    from scipy.special import eval_jacobi

    x = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    for a, b in ((1, 1), (0.5, 2)):
        found = kan.jacobi(x, 4, a, b)
        expected = torch.stack([torch.from_numpy(eval_jacobi(n, a, b, x.numpy())) for n in range(5)], -1)
        assert torch.allclose(found, expected)


def test_relu_kan_reshapes_and_does_not_transpose():
    layer, x = dense("relu", 6, 4), torch.rand(3, 6)
    bumps = (F.relu(x[..., None] - layer.phase_low) * F.relu(layer.phase_height - x[..., None]) * layer.r) ** 2
    assert torch.allclose(layer(x), layer.equal_size_conv(bumps.reshape(3, 1, 8, 6)).flatten(1), atol=1e-6)
    assert not torch.allclose(layer(x), layer.equal_size_conv(bumps.mT[:, None]).flatten(1), atol=1e-3)


def test_faster_kan_offers_both_gradients():
    true, half = (dense("rswaf", half_gradient=h) for h in (False, True))
    half.load_state_dict(true.state_dict())
    x = torch.randn(5, 3, requires_grad=True)
    a, b = (torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in (true, half))
    assert torch.equal(true(x), half(x)) and torch.allclose(b, 0.5 * a)


def test_fast_kan_of_one_feature_is_refused():
    for name in ("fast", "rswaf"):
        with pytest.raises(OffprintError, match="one feature nothing but 0.*norm=False"):
            dense(name, 1)
        x = torch.linspace(-1, 1, 5)[:, None]
        assert dense(name, 1, norm=False)(x).std(0).min() > 0


def test_gram_keeps_nothing_of_past_inputs():
    layer = dense("gram")
    before = {k: v for k, v in layer.__dict__.items()}
    layer(torch.randn(4, 3))
    assert layer.__dict__ == before and not hasattr(type(layer).edges, "cache_info")


@pytest.mark.parametrize("name", DENSE)
def test_any_leading_shape_chunks_and_recomputation(name):
    layer, x = dense(name, 3, 4), torch.rand(2, 5, 3)
    rows = layer(x.reshape(10, 3))
    assert torch.allclose(layer(x).reshape(10, 4), rows, atol=1e-6)
    layer.zero_grad()
    layer(x).square().sum().backward()
    grads = [p.grad.clone() for p in layer.parameters()]
    layer.set_chunks(4, recompute=True)
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    assert torch.allclose(y.reshape(10, 4), rows, atol=1e-6)
    assert all(torch.allclose(p.grad, g, rtol=1e-4, atol=1e-5) for p, g in zip(layer.parameters(), grads, strict=True))
    with pytest.raises(OffprintError, match="3 features on the last axis"):
        layer(torch.rand(2, 4))


@pytest.mark.parametrize("name", DENSE)
def test_precision_follows_the_input(name):
    layer = dense(name).eval()
    x = torch.rand(6, 3)
    expected = layer(x)
    assert layer.double()(x.double()).dtype == torch.float64
    got = layer.bfloat16()(x.bfloat16())
    assert got.dtype == torch.bfloat16 and (got.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.05


def test_chunks_bound_the_memory():
    from offprint.models.info import peak_memory

    layer, x = kan.KANConv2d(8, 8, 3, padding=1), torch.randn(2, 8, 32, 32)
    with torch.no_grad():
        whole = peak_memory(lambda: layer(x))
        layer.set_chunks(128)
        assert peak_memory(lambda: layer(x)) < whole / 3


@pytest.mark.parametrize(
    ("name", "count"),
    [("bspline", 240), ("cheby", 120), ("fast", 232), ("rbf", 220), ("rswaf", 204), ("gram", 132), ("wavelet", 104),
     ("jacobi", 152), ("relu", 292)],
)  # fmt: skip
def test_counts_of_dense_layers(name, count):
    assert sum(p.numel() for p in dense(name, 6, 4).parameters()) == count


def test_counts_of_maps():
    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert count(kan.KANConv2d(3, 8, 3)) == 2160 and count(kan.FastKANConv2d(3, 8, 3)) == 2006
    assert count(kan.ChebyKANConv2d(2, 5, 5)) == 1250 and count(offprint.create_model("kan_cnn_28")) == 69_060


@pytest.mark.parametrize("name", PATCHES)
def test_maps_are_dense_layers_over_patches(name):
    layer, x = PATCHES[name](2, 3, 3, stride=2, padding=1).eval(), torch.rand(2, 2, 7, 6)
    padded = F.pad(x, (1, 1, 1, 1))
    found = layer(x)
    assert found.shape == (2, 3, 4, 3)
    for row, column in ((0, 0), (3, 2), (1, 2)):
        patch = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].flatten(1)
        assert torch.allclose(found[:, :, row, column], layer.kanlayer(patch), atol=1e-5)


def test_maps_refuse_what_they_cannot_do():
    for wrong in ({"kernel_size": (3, 3)}, {"kernel_size": 3, "stride": 0}, {"kernel_size": 3, "padding": "same"}):
        with pytest.raises(OffprintError, match="whole number"):
            kan.KANConv2d(2, 3, **wrong)
    layer = kan.KANConv2d(2, 3, 3)
    with pytest.raises(OffprintError, match=r"maps \(B, 2, H, W\)"):
        layer(torch.rand(1, 3, 8, 8))
    with pytest.raises(OffprintError, match="smaller than the kernel"):
        layer(torch.rand(1, 2, 2, 8))
    with pytest.raises(OffprintError, match="two or more"):
        dense("wavelet").train()(torch.rand(1, 3))
    for make in (lambda: dense("cheby", degree=-1), lambda: dense("bspline", grid_size=0), lambda: dense("bspline", 0)):
        with pytest.raises(OffprintError):
            make()


# -- other conventions -----------------------------------------------------------------------------------------------
def test_one_row_of_knots_is_held_and_one_for_each_input_is_written():
    layer = dense("bspline")
    state = layer.state_dict()
    assert layer.grid.shape == (12,) and state["grid"].shape == (3, 12) and state["grid"].is_contiguous()
    other = dense("bspline")
    other.load_state_dict(state)
    assert other.grid.shape == (12,)
    x = torch.rand(40, 3) * torch.tensor([1.0, 2.0, 0.5])
    before = layer(x)
    layer.update_grid(x)
    assert layer.grid.shape == (3, 12) and (layer(x) - before).abs().max() < 0.05 * before.abs().max() + 1e-3
    offprint.load_weights(other, layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_updating_a_grid_needs_samples():
    layer = dense("bspline")
    with pytest.raises(OffprintError, match="more samples"):
        layer.update_grid(torch.rand(7, 3))
    with pytest.raises(OffprintError, match="more samples"):
        layer.update_grid(torch.full((20, 3), float("nan")))
    layer.update_grid(torch.zeros(20, 3))  # one value only: equal knots
    assert layer(torch.rand(5, 3)).isfinite().all() and layer.spline_weight.isfinite().all()


def test_pykan_layer_with_a_mask():
    mask = (torch.rand(3, 4) > 0.5).float()
    state = {
        "coef": torch.randn(3, 4, 8), "scale_base": torch.randn(3, 4), "scale_sp": torch.randn(3, 4), "mask": mask,
        "grid": kan.knots(5, 3).expand(3, -1),
    }  # fmt: skip
    layer = dense("bspline")
    assert offprint.load_weights(layer, state).dialect == "pykan"
    x = torch.rand(6, 3) * 2 - 1
    basis = kan.bsplines(x, kan.knots(5, 3), 3)
    edges = state["scale_base"] * F.silu(x)[..., None] + state["scale_sp"] * torch.einsum(
        "nic,ioc->nio", basis, state["coef"]
    )
    assert torch.allclose(layer(x), (mask * edges).sum(1), atol=1e-5)


def test_one_layer_per_pair_of_channels():
    pairs = [kan.KANLinear(9, 1) for _ in range(3 * 2)]
    state = {f"convs.{i}.conv.{k}": v for i, m in enumerate(pairs) for k, v in m.state_dict().items()}
    layer = kan.KANConv2d(2, 3, 3, padding=1)
    assert offprint.load_weights(layer, state).dialect == "convolutional_kans"
    x = torch.rand(1, 2, 5, 5)
    patches = F.unfold(x, 3, padding=1).transpose(1, 2)
    for out in range(3):
        expected = sum(pairs[2 * out + i](patches[..., 9 * i : 9 * i + 9]) for i in range(2))
        assert torch.allclose(layer(x)[:, out].flatten(), expected.flatten(), atol=1e-5)


def test_networks_of_efficient_kan_and_fast_kan():
    """Names as their files have them, frozen grids among them."""
    for name, needs in (("bspline", "layers.1.spline_scaler"), ("fast", "layers.1.rbf.grid")):
        one, two = (KAN([2, 5, 1], name, **({"norm": True} if name == "fast" else {})) for _ in range(2))
        state = one.state_dict()
        assert needs in state
        offprint.load_weights(two, state)
        x = torch.rand(4, 2)
        assert torch.equal(one(x), two(x))


def test_tables_of_degrees_in_others_files_are_dropped():
    layer, net = dense("cheby"), offprint.create_model("kan_cnn_28_cheby")
    assert offprint.load_weights(layer, {**layer.state_dict(), "arange": torch.arange(5)}).dropped == ["arange"]
    extra = {"conv1.kanlayer.arange": torch.arange(5), "conv2.kanlayer.arange": torch.arange(5)}
    assert len(offprint.load_weights(net, {**net.state_dict(), **extra}).dropped) == 2
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(layer, dense("cheby", 3, 5).state_dict())


# -- selection -------------------------------------------------------------------------------------------------------
def chooser(inputs=6, outputs=3, **options):
    layer = SKANLayer(inputs, outputs, **options)
    torch.nn.init.normal_(layer.selection)
    return layer


def test_a_fresh_layer_mixes_evenly():
    layer, x = SKANLayer(3, 2), torch.rand(5, 3)
    assert torch.allclose(layer.weights(), torch.full((3, 4), 0.25))
    assert torch.allclose(layer(x), sum(m(x) for m in layer.members.values()) / 4, atol=1e-6)


@pytest.mark.parametrize("share", [1, 2])
def test_pruning_changes_nothing_but_the_count(share):
    layer, x = chooser(share=share), torch.rand(5, 6)
    whole = sum(p.numel() for p in layer.parameters())
    chosen = layer.select()
    expected = torch.stack([_edge(layer, x, i, k) for i, k in enumerate(chosen.repeat_interleave(share).tolist())]).sum(
        0
    )
    assert torch.allclose(layer(x), expected, atol=1e-6)
    before, grids = layer(x), {k: v.clone() for k, v in layer.named_buffers() if k.endswith("grid")}
    left = layer.prune()
    assert torch.equal(layer(x), before) and left < whole and layer.prune() == left
    assert all(torch.equal(v, grids[k]) for k, v in layer.named_buffers() if k in grids)
    sizes = {"bspline": 9, "cheby": 5, "rbf": 8, "wavelet": 3}
    assert left == sum(3 * sizes[layer.pool[k]] for k in chosen.repeat_interleave(share))


def _edge(layer, x, i, k):
    """What input ``i`` adds through member ``k``."""
    gate = torch.zeros(x.shape[1])
    gate[i] = 1
    return layer.members[layer.pool[k]](x, gate)


def test_only_chosen_members_learn_after_selection():
    layer = chooser(pool=("bspline", "cheby"))
    layer.select([0, 0, 0, 1, 1, 1])
    layer(torch.rand(5, 6)).square().sum().backward()
    assert layer.selection.grad is None
    assert not layer.members["bspline"].coef.grad[:, 3:].any() and layer.members["bspline"].coef.grad[:, :3].any()
    assert not layer.members["cheby"].coef.grad[:3].any() and layer.members["cheby"].coef.grad[3:].any()


def test_a_pruned_network_is_rebuilt_from_its_choices():
    net, x = SKAN([3, 4, 2]), torch.rand(5, 3)
    for layer in net.layers:
        torch.nn.init.normal_(layer.selection)
    choices = s_kan.select(net)
    count = s_kan.prune(net)
    again = SKAN([3, 4, 2], chosen=choices)
    assert sum(p.numel() for p in again.parameters()) == count
    offprint.load_weights(again, net.state_dict())
    assert torch.equal(again(x), net(x)) and torch.equal(copy.deepcopy(net)(x), net(x))
    for before in (net.state_dict(), SKAN([3, 4, 2]).state_dict()):
        with pytest.raises(CheckpointError):
            offprint.load_weights(SKAN([3, 4, 2], chosen=[[0, 0, 0], [1, 1, 1, 1]]), before)


def test_training_after_pruning_stays_finite():
    net, x = SKAN([2, 4, 1]), torch.rand(30, 2) * 6 - 3
    s_kan.select(net)
    s_kan.prune(net)
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


def test_selection_refusals():
    with pytest.raises(OffprintError, match="unknown member of the pool 'spline'"):
        SKANLayer(3, 2, ("spline",))
    with pytest.raises(OffprintError, match="each once"):
        SKANLayer(3, 2, ("cheby", "cheby"))
    with pytest.raises(OffprintError, match="share=2 does not divide 3"):
        SKANLayer(3, 2, share=2)
    layer = SKANLayer(3, 2)
    with pytest.raises(OffprintError, match="select\\(\\) before prune"):
        layer.prune()
    with pytest.raises(OffprintError, match="give 3, each from 0 to 3"):
        layer.select([0, 1, 4])
    layer.select([0, 1, 2])
    layer.prune()
    with pytest.raises(OffprintError, match="is pruned"):
        layer.select()
    with pytest.raises(OffprintError, match="inputs and outputs"):
        SKAN([3])
    with pytest.raises(OffprintError, match="names 1 layers"):
        SKAN([3, 2, 1], chosen=[[0, 0, 0]])


@pytest.mark.parametrize(("per", "nodes"), [("channel", 2), ("entry", 18)])
def test_patches_choose_by_channel_or_entry(per, nodes):
    layer, x = SConvKAN(2, 3, 3, padding=1, per=per), torch.rand(2, 2, 6, 6)
    assert layer.kanlayer.nodes == nodes and layer(x).shape == (2, 3, 6, 6)
    torch.nn.init.normal_(layer.kanlayer.selection)
    s_kan.select(layer)
    before = layer(x)
    s_kan.prune(layer)
    assert torch.equal(layer(x), before)
    layer.set_chunks(7)
    assert torch.allclose(layer(x), before, atol=1e-6)
    with pytest.raises(OffprintError, match="unknown node 'pixel'"):
        SConvKAN(2, 3, 3, per="pixel")


# -- networks and fitting --------------------------------------------------------------------------------------------
def test_images(tmp_path):
    from offprint.models.export import export_model

    for name in ("kan_cnn_28", "s_conv_kan_28", "kan_cnn_28_rbf"):
        model, x = offprint.create_model(name, channels=(2, 3), num_classes=4).eval(), torch.rand(2, 1, 28, 28)
        assert model(x).shape == (2, 4)
        assert export_model(model, tmp_path / f"{name}.onnx", sample=x[:1]) < 1e-4
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x).float() - model(x.clone()).float()).abs().max() < 1e-5
    with pytest.raises(OffprintError, match="28x28, got .*img_size="):
        model(torch.rand(1, 1, 32, 32))
    with pytest.raises(OffprintError, match="unknown family 'splines'"):
        offprint.create_model("kan_cnn_28", layer="splines")
    with pytest.raises(OffprintError, match="img_size=12"):
        offprint.create_model("kan_cnn_28", img_size=12)
    maps = offprint.create_model("kan_cnn_28", channels=(2, 3), features_only=True, in_chans=3)(
        torch.rand(1, 3, 40, 52)
    )
    assert [m.shape[1] for m in maps] == [2, 3]


def test_fitting_selects_prunes_and_fits():
    x = torch.rand(200, 2) * 4 + 1
    y = 100 + 30 * torch.sin(x[:, 0]) * x[:, 1]
    fit = fit_function(x, y, steps=150, lr=3e-2)
    assert fit.rmse < 0.35 * float(y.std()) and fit.losses[-1] < 0.2 * fit.losses[0]
    assert [len(c) for c in fit.choices] == [2, 5] and {n for c in fit.choices for n in c} <= set(s_kan.POOL)
    assert fit(x).shape == (200, 1)
    assert float((fit(x)[:, 0] - y).square().mean().sqrt()) == pytest.approx(fit.rmse, rel=1e-3)
    assert fit.parameters < sum(p.numel() for p in SKAN([2, 5, 1]).parameters())
    assert fit(torch.full((1, 2), 1e4)).isfinite().all()
    plain = fit_function(x, y, KAN([2, 5, 1]), steps=30)
    assert plain.choices == [] and len(plain.losses) == 30


def test_fitting_refuses_bad_rows():
    x, y = torch.rand(10, 2), torch.rand(10)
    with pytest.raises(OffprintError, match="y holds values that are not finite, first in row 3"):
        fit_function(x, torch.where(torch.arange(10) == 3, torch.nan, y))
    with pytest.raises(OffprintError, match="column 1 of x has one value only"):
        fit_function(torch.stack([x[:, 0], torch.ones(10)], 1), y)
    with pytest.raises(OffprintError, match="give \\(N, in\\)"):
        fit_function(x, y[:5])
    with pytest.raises(OffprintError, match="shares that add to 1"):
        fit_function(x, y, split=(0.5, 0.5, 0.5))
