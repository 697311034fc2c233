"""Several depth-wise kernels by hand are the library's own, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offprint.nn.large_kernel import LargeKernelConv2d, grid_side, spectral_depthwise
from offprint.nn.parallel_depthwise import by_hand, large_depthwise


@pytest.mark.parametrize("size", [(15, 12), (4, 31), (1, 1), (40, 7)])
@pytest.mark.parametrize("kernels", [(13,), (31,), (3, 7, 13), (5, 1)])
def test_values_and_gradients(size, kernels):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(5, 1, k, k, dtype=torch.float64, requires_grad=True) for k in kernels]
    ours = large_depthwise(x, weights)
    plain = [F.conv2d(x, w, padding=w.shape[-1] // 2, groups=5) for w in weights]
    grads = [torch.randn_like(y) for y in plain]
    expected = torch.autograd.grad(plain, [x, *weights], grads)
    got = torch.autograd.grad(ours, [x, *weights], grads)
    for a, b in zip((*ours, *got), (*plain, *expected), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_the_gradients_that_are_needed(frozen):
    x, w = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 7, 7)
    needed = w if frozen == "x" else x
    needed.requires_grad_()
    (y,) = large_depthwise(x, [w])
    y.sum().backward()
    assert needed.grad is not None and (x if frozen == "x" else w).grad is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_layer_is_a_convolution(bias, memory_format):
    torch.manual_seed(0)
    layer, plain = LargeKernelConv2d(6, 13, bias), nn.Conv2d(6, 6, 13, padding=6, groups=6, bias=bias)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 10, 11).contiguous(memory_format=memory_format)
    for training in (True, False):
        layer.train(training)
        out, expected = layer(x), plain(x)
        assert torch.allclose(out, expected, atol=1e-6)
        layer.zero_grad()
        plain.zero_grad()
        out.square().sum().backward()
        expected.square().sum().backward()
        for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_where_it_is_left_to_the_library():
    x = torch.randn(2, 4, 8, 8)
    assert by_hand(x, True) and not by_hand(x, False) and not by_hand(x.bfloat16(), True)
    with torch.no_grad():
        assert not by_hand(x, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_hand(x, True)


def test_lengths_of_transforms():
    assert [grid_side(n) for n in (1, 7, 20, 31, 62)] == [2, 8, 20, 32, 64]


@pytest.mark.parametrize("size", [(3, 3), (20, 9)])
def test_the_same_is_computed_while_operations_are_watched(size):
    """Under a dispatch mode (counters of operations, tracers) an operator of one's own does not see lazy conjugation."""
    from torch.utils.flop_counter import FlopCounterMode

    x, w = torch.randn(1, 8, *size, dtype=torch.float64), torch.randn(8, 1, 13, 13, dtype=torch.float64)
    with FlopCounterMode(display=False):
        watched = spectral_depthwise(x, w)
    torch.testing.assert_close(watched, F.conv2d(x, w, padding=6, groups=8))
