"""One-way convolutions: every layout is its dense kernel, what survives compression, the waves, mistakes that are named."""

import numpy as np
import pytest
import torch
from torch import nn

from offprint.data.waves import WaveSolver, pulse, read_fields, save_fields, solve_wave, wave_fields
from offprint.errors import DataError, OffprintError
from offprint.methods.registry import make
from offprint.methods.training.a_priori_compression import (
    OneWayConv2d,
    OneWayConv3d,
    WavePredictor,
    compress,
    draw_fields,
    macs,
    relative_l2,
)


def dense(layer):
    """torch's own convolution with the layer's kernel."""
    kind = nn.Conv2d if layer.ndim == 2 else nn.Conv3d
    conv = kind(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, [p for p, _ in layer.padding],
                layer.dilation, bias=layer.bias is not None, padding_mode=layer.padding_mode).double()  # fmt: skip
    conv.weight.data.copy_(layer.kernel())
    if layer.bias is not None:
        conv.bias.data.copy_(layer.bias)
    return conv


@pytest.mark.parametrize("layout", ["pair", "chain", "cp"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_every_layout_is_the_convolution_with_its_kernel(layout, mode):
    torch.manual_seed(0)
    two = OneWayConv2d(3, 4, (3, 5), 1 if layout == "chain" else 2, layout, mid=2, stride=(2, 1), padding=(1, 3),
                       dilation=(1, 2), padding_mode=mode).double()  # fmt: skip
    three = OneWayConv3d(
        2, 3, (3, 1, 2), layout=layout, stride=(1, 2, 1), padding=(2, 0, 1), bias=False, padding_mode=mode
    ).double()
    for layer, x in ((two, torch.randn(2, 3, 9, 11)), (three, torch.randn(1, 2, 6, 5, 7))):
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
        x = x.double()
        assert torch.allclose(layer(x), dense(layer)(x), atol=1e-10)
        if layout == "pair":
            layer.sequential = True
            assert torch.allclose(layer(x), dense(layer)(x), atol=1e-10)


@pytest.mark.parametrize("layout", ["pair", "chain", "cp"])
def test_the_kernel_starts_with_the_variance_of_he(layout):
    torch.manual_seed(0)
    for rank in (1,) if layout == "chain" else (1, 2) if layout == "pair" else (64,):
        layer = OneWayConv3d(64, 64, 3, rank, layout)
        assert float(layer.kernel().var()) == pytest.approx(2 / (64 * 27), rel=0.15)


def test_parameters_and_multiply_adds_are_those_of_the_table():
    c, r = 8, 5
    size = lambda layer: sum(p.numel() for p in layer.parameters())  # noqa: E731
    assert (
        size(OneWayConv3d(c, c, 3, bias=False)) == size(OneWayConv3d(c, c, 3, layout="chain", bias=False)) == 9 * c**2
    )
    assert size(OneWayConv3d(c, c, 3, r, "cp", bias=False)) == 2 * c * r + 9 * r
    assert size(OneWayConv2d(c, c, 5, bias=False)) == 10 * c**2 and size(OneWayConv3d(c, c, 7, bias=False)) == 21 * c**2
    shape = (1, c, 4, 4, 4)
    each = {layout: macs(OneWayConv3d(c, c, 3, r if layout == "cp" else 1, layout, padding=1), shape, shape)[0] // 64 for layout in ("pair", "chain", "cp")}  # fmt: skip
    assert each == {"pair": 27 * c**2, "chain": 9 * c**2, "cp": 2 * c * r + 9 * r}


def test_a_trained_kernel_comes_back_from_enough_terms():
    torch.manual_seed(0)
    flat, deep = nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv3d(2, 3, 3, dilation=2)
    made, error = OneWayConv2d.from_dense(flat, rank=3)
    assert error < 1e-5 and torch.allclose(made(torch.ones(1, 3, 8, 8)), flat(torch.ones(1, 3, 8, 8)), atol=1e-5)
    errors = [OneWayConv3d.from_dense(deep, rank=r)[1] for r in (1, 3, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.35
    true = OneWayConv3d(2, 3, 3, 2)  # a kernel of two terms is found again
    deep.weight.data.copy_(true.kernel())
    assert OneWayConv3d.from_dense(deep, rank=2)[1] < 0.05


def test_a_laplacian_needs_two_terms():
    stencil = nn.Conv2d(1, 1, 3, bias=False)
    stencil.weight.data.copy_(torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None])
    one, two = (OneWayConv2d.from_dense(stencil, rank=r)[1] for r in (1, 2))
    assert one > 0.05 and two < 1e-6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, 2, 2, padding_mode="reflect", bias=False)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.point(self.depthwise(self.wide(self.stem(x))))


def test_compress_keeps_every_setting_and_lists_what_it_left():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(1, 3, 20, 22)
    shape = net(x).shape
    report = compress(net, example=x)
    assert [r["layer"] for r in report.rows] == ["stem", "wide"] and set(report.skipped) == {"depthwise", "point"}
    assert "grouped" in report.skipped["depthwise"] and "1x1" in report.skipped["point"]
    stem, wide = net.stem, net.wide
    assert stem.stride == (2, 2) and stem.bias is None and stem.padding_mode == "reflect" and wide.dilation == (2, 2)
    assert (
        net(x).shape == shape
        and report.parameters[1] < report.parameters[0]
        and report.memory[1] == 4 * report.parameters[1]
    )
    assert all(row["macs"] == row["dense_macs"] for row in report.rows) and report.seconds
    assert "convolutions replaced" in str(report)
    again = compress(Net(), "chain", keep=["stem"])
    assert again.skipped["stem"] == "kept" and [r["layer"] for r in again.rows] == ["wide"]
    with pytest.raises(OffprintError, match="stem: rank 9 is above the 5 terms that its kernel can use"):
        compress(Net(), rank=9)
    with pytest.raises(OffprintError, match="wide: its factors would hold 1,152 numbers, its kernel 576"):
        compress(Net(), rank=3, keep=["stem"])
    with pytest.raises(OffprintError, match="nothing to compress"):
        compress(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(OffprintError, match="layer"):
        compress(Net(), keep=["stam"])


def test_ranks_and_layouts_that_cannot_be():
    with pytest.raises(OffprintError, match="rank=4 of a pair layer 2 to 2 .* between 1 and 3"):
        OneWayConv2d(2, 2, 3, rank=4)
    with pytest.raises(OffprintError, match="layout"):
        OneWayConv2d(2, 2, 3, layout="tucker")
    with pytest.raises(OffprintError, match=r"expected \(B, 2, X, Y\), got \(1, 3, 8, 8\)"):
        OneWayConv2d(2, 2, 3)(torch.zeros(1, 3, 8, 8))


def test_the_method_reshapes_a_network_by_name():
    torch.manual_seed(0)
    method = make("a-priori-compression:layout=pair,keep=stem")
    net = method.reshape(Net())
    assert isinstance(net.wide, OneWayConv2d) and isinstance(net.stem, nn.Conv2d)
    with pytest.raises(OffprintError, match="rank=0"):
        make("a-priori-compression:rank=0")


# -- waves
def test_energy_is_kept_and_a_standing_wave_has_its_period():
    wave = solve_wave(20, 20, dt=0.02, steps=50, initial=lambda x, y: np.sin(np.pi * x) * np.sin(np.pi * y))
    assert np.ptp(wave.energy) < 1e-12 * wave.energy[0]
    middle = wave.displacement[:, 10, 10]
    exact = np.cos(np.pi * np.sqrt(2) * 0.02 * np.arange(51))
    assert np.abs(middle - exact).max() < 0.02


def test_the_explicit_scheme_has_a_limit_which_is_told():
    limit = WaveSolver(10, 10, dt=0.01, beta=0, lumped=True).limit()
    assert limit == pytest.approx(0.1, rel=0.1)  # h / c on square elements
    solve_wave(10, 10, dt=0.95 * limit, steps=50, beta=0, lumped=True)
    with pytest.raises(OffprintError, match=f"above the limit {limit:.4g} of elements of 0.1 x 0.1"):
        solve_wave(10, 10, dt=1.05 * limit, steps=5, beta=0, lumped=True)
    with pytest.raises(OffprintError, match="needs the lumped mass"):
        WaveSolver(10, 10, beta=0)
    with pytest.raises(OffprintError, match="the mesh is too coarse for it"):
        WaveSolver(10, 10).check_pulse(0.006)
    with pytest.raises(OffprintError, match="no nodes inside"):
        WaveSolver(1, 10)


def test_a_sub_model_with_the_boundary_of_a_larger_field_gives_its_inside():
    large = WaveSolver(40, 40, 2.0, 2.0, dt=0.02)
    start = pulse(large.x, large.y, (1.0, 0.9), 0.02)
    whole = large.solve(start, 40).displacement
    part = whole[:, 10:31, 10:31]  # one unit a side, in the middle
    small = WaveSolver(20, 20, 1.0, 1.0, dt=0.02)
    inside = small.solve(part[0], 40, boundary=part).displacement
    assert np.abs(inside - part).max() < 0.05 * np.abs(part).max()
    with pytest.raises(OffprintError, match=r"boundary has the shape \(3, 21, 21\)"):
        small.solve(part[0], 40, boundary=part[:3])


def test_fields_are_of_their_seed_and_files_are_checked(tmp_path):
    one, same, other = (wave_fields(2, seed=s, steps=5, zone=6) for s in (0, 0, 1))
    assert one.shape == (2, 1, 6, 6, 6) and np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(read_fields(save_fields(tmp_path / "a.npy", one)), one)
    np.savez(tmp_path / "b.npz", u=one[:, 0], v=one)
    assert np.array_equal(read_fields(tmp_path / "b.npz", "u"), one)
    with pytest.raises(DataError, match="say which one"):
        read_fields(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"has the shape \(3, 3\)"):
        read_fields(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.full((1, 2, 2, 2), np.nan))
    with pytest.raises(DataError, match="8 values that are not finite"):
        read_fields(tmp_path / "d.npy")
    np.save(tmp_path / "e.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_fields(tmp_path / "e.npy")


def test_a_predictor_learns_rolls_out_and_is_drawn(tmp_path):
    torch.manual_seed(0)
    fields = torch.from_numpy(wave_fields(6, steps=15, zone=8)).float()
    model = WavePredictor(4, 3, layout="pair")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.mse_loss(model(fields[..., :8]), fields[..., 8:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    out = model.rollout(fields[..., :8], 3)
    assert out.shape == (6, 1, 8, 8, 24) and torch.allclose(out[..., :8], model(fields[..., :8]).detach())
    assert relative_l2(fields, fields).max() == 0
    assert draw_fields(tmp_path / "a.png", fields[0, 0, ..., 8:], out[0, 0, ..., :8]).stat().st_size > 1000
    assert torch.export.export(model.eval(), (fields[..., :8],)).module()(fields[..., :8]).shape == (6, 1, 8, 8, 8)
