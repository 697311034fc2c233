"""The instruments of the benchmarks: what they count, and that they compare like with like."""

from __future__ import annotations

import pytest
import torch

from benchmarks import compare
from benchmarks.compare import classifiers, peak_memory, race
from offprint.errors import OffprintError

MEGABYTE = 250_000  # float32 values


def chain():
    x = torch.zeros(MEGABYTE)
    for _ in range(10):
        x = x + 1


def keep():
    return [torch.zeros(MEGABYTE) for _ in range(10)]


def views():
    x = torch.zeros(MEGABYTE)
    y = x.view(500, 500).t()
    del x
    torch.zeros(MEGABYTE)
    del y
    torch.zeros(MEGABYTE)


@pytest.mark.parametrize(("call", "megabytes"), [(chain, 2), (keep, 10), (views, 2)])
def test_peak_memory_counts_what_is_alive_at_once(call, megabytes):
    assert peak_memory(call) == megabytes * 1_000_000


def test_peak_memory_counts_what_autograd_keeps():
    x = torch.zeros(MEGABYTE, requires_grad=True)

    def step(depth: int):
        y = x
        for _ in range(depth):
            y = y.sin()
        y.sum().backward()
        x.grad = None

    assert peak_memory(lambda: step(8)) - peak_memory(lambda: step(4)) == 4_000_000


def test_race_takes_turns_and_keeps_the_best():
    calls: list[str] = []
    a, b = race(lambda: calls.append("ours"), lambda: calls.append("theirs"), seconds=0, rounds=4)
    assert calls == ["ours", "theirs"] * 2 + ["theirs", "ours"] + ["ours", "theirs"] + ["theirs", "ours"]
    assert 0 < a < 1 and 0 < b < 1


def test_models_that_compute_something_else_are_not_compared():
    import timm

    peer = timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3)

    def change(state):
        return {k: 2 * v if k == "head.fc.weight" else v for k, v in state.items()}

    with pytest.raises(OffprintError, match="differ by"):
        next(
            classifiers(
                "convnext",
                "convnext_tiny",
                "timm",
                peer,
                size=64,
                batch=1,
                map_state=change,
                depths=(1, 1, 1, 1),
                dims=(8,) * 4,
            )
        )


def small(**changes):
    import timm

    peer = timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3)
    sizes = {"depths": (1, 1, 1, 1), "dims": (8,) * 4}
    options = {"size": 64, "batch": 1, "seconds": 0, "train_seconds": 0, **sizes, **changes}
    return list(classifiers("convnext", "convnext_tiny", "timm", peer, **options))


def test_models_are_compared_in_the_same_form_and_at_their_best(monkeypatch):
    monkeypatch.setattr(compare, "precisions", lambda: ["fp32", "bf16"])
    rows = [(r.form, r.what.rpartition(", ")[2], r.required) for r in small()]
    assert rows == [
        ("same form", "fp32", 1.0),
        ("best against best", "fp32", 1.05),
        ("best against best", "bf16", 1.05),
        ("same form", "1 x 64 px", 1.0),
    ]


def test_peers_are_fused_where_they_can_be():
    import timm

    x = torch.randn(1, 3, 64, 64)
    plain = timm.create_model("mobilenetv2_050", num_classes=3).eval()
    merged = compare.fused(plain, x)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in merged.modules())
    with torch.no_grad():
        torch.testing.assert_close(merged(x), plain(x), rtol=1e-3, atol=1e-4)


def test_a_peer_that_cannot_be_traced_stays_as_it_is():
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    x = torch.ones(1, 3)
    assert torch.equal(compare.fused(Branching(), x)(x), x + 1)
