"""Attention of large windows, made a block of logits at a time, against the formula; and recomputation in Swin UNETR."""

from __future__ import annotations

import pytest
import torch

import offprint
from benchmarks.compare import peak_memory
from offprint.nn import windows
from offprint.nn.windows import attend

HEADS, TOKENS, DIM, WINDOWS, IMAGES = 2, 20, 3, 6, 2


def inputs(mask: bool):
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, IMAGES * WINDOWS, HEADS, TOKENS, DIM, dtype=torch.float64, generator=draw)
    bias = torch.randn(HEADS, TOKENS, TOKENS, dtype=torch.float64, generator=draw)
    apart = torch.rand(WINDOWS, TOKENS, TOKENS, dtype=torch.float64, generator=draw) < 0.3
    return [*(x.requires_grad_() for x in (*qkv.unbind(0), bias)), apart * -100.0 if mask else None]


def formula(q, k, v, bias, mask):
    logits = q @ k.transpose(-1, -2) * DIM**-0.5 + bias
    if mask is not None:
        logits = logits + mask[:, None].repeat(IMAGES, 1, 1, 1)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.fixture(params=[1, 2**9 * 5, 2**20], ids=["one window", "three of six", "all"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(windows, "_LARGE", 1)
    monkeypatch.setattr(windows, "_BLOCK", request.param)


@pytest.mark.parametrize("mask", [False, True])
def test_blocks_give_the_formulas_values_and_gradients(blocks, mask):
    *learnt, far = inputs(mask)
    ours, plain = attend(*learnt, far), formula(*learnt, far)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(ours, learnt, grad), torch.autograd.grad(plain, learnt, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(attend(*learnt, far), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", [False, True])
def test_blocks_have_second_derivatives(blocks, mask):
    *learnt, far = inputs(mask)

    def twice(f):
        first = torch.autograd.grad(f(*learnt, far).sin().sum(), learnt, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), learnt)

    for a, b in zip(twice(attend), twice(formula), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_blocks_serve_functional_gradients(blocks):
    q, k, v, bias, far = inputs(True)
    ours = torch.func.grad(lambda b: attend(q, k, v, b, far).square().sum())(bias)
    torch.testing.assert_close(ours, torch.func.grad(lambda b: formula(q, k, v, b, far).square().sum())(bias))


def test_logits_of_large_windows_never_lie_in_memory_together():
    count = 64
    q, k, v = torch.randn(3, count, 1, 343, 8).unbind(0)
    bias = torch.zeros(1, 343, 343, requires_grad=True)
    used = peak_memory(lambda: attend(q, k, v, bias).sum().backward())
    assert used < 4 * count * 343 * 343  # one float for each logit; the plain way holds several


def test_swin_unetr_recomputes_its_blocks():
    torch.manual_seed(0)
    model = offprint.create_model("swin_unetr_tiny", in_chans=1, num_classes=2).train()
    x = torch.randn(1, 1, 64, 64, 64)
    found, used = [], []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.zero_grad()
        used.append(peak_memory(lambda: model.swinViT(x)[-1].square().mean().backward()))
        found.append([p.grad.clone() for p in model.swinViT.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert used[1] < 0.8 * used[0]
