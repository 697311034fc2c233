"""STAGIN's forward on whole scans against the plain formulation: window by window, graph by graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.compare import Row, peak_memory, race
from offprint.errors import OffprintError
from offprint.models.factory import create_model
from offprint.models.graphs.fmri_ssl import STAGIN


def _correlation(x: Tensor) -> Tensor:
    """Of the rows of x (N, window)."""
    x = x - x.mean(1, keepdim=True)
    c = x @ x.T / (x.shape[1] - 1)
    std = c.diagonal().sqrt()
    return (c / std[None] / std[:, None]).clamp(-1, 1)


def _percentile(values: Tensor, percent: float) -> Tensor:
    ranked = values.flatten().sort().values
    position = percent * (len(ranked) - 1) / 100
    below = int(position)
    share = position - below
    return (ranked[below].double() * (1 - share) + ranked[min(below + 1, len(ranked) - 1)].double() * share).float()


def plain(model: STAGIN, series: Tensor, sparse: bool) -> Tensor:
    """The same logits: correlations and thresholds in loops, one-hot input written out, one sparse product per graph (or dense)."""
    n, window, length = model.num_regions, model.window, model.length or series.shape[1]
    starts = range(0, length - window, model.stride)
    states, _ = model.timestamp_encoder.rnn(series[:, : starts[-1] + window].transpose(0, 1))
    identity, inputs, graphs = torch.eye(n), [], []
    for b, scan in enumerate(series):
        for s in starts:
            fc = _correlation(scan[s : s + window].T)
            edges = (fc > _percentile(fc, 100 - model.sparsity)).float()
            graphs.append(edges.to_sparse() if sparse else edges)
            inputs.append(torch.cat([identity, states[s + window - 1, b].expand(n, -1)], 1))
    h = model.initial_linear(torch.stack(inputs))
    logit = torch.zeros(len(series), model.num_classes)
    for gin, readout, transformer, linear in zip(
        model.gnn_layers, model.readout_modules, model.transformer_modules, model.linear_layers, strict=True
    ):
        passed = torch.stack([g @ x for g, x in zip(graphs, h, strict=True)]) + gin.epsilon * h
        h = gin.mlp(passed.flatten(0, 1)).view_as(h)
        x, _ = readout(h.view(len(series), len(starts), n, -1))
        x, _ = transformer(x.transpose(0, 1), True)
        logit = logit + linear(x.sum(0))
    return logit


def rows(scans: int = 1, seconds: float = 20.0) -> Iterator[Row]:
    for name, options, frames in (
        ("stagin", {}, 601),  # Schaefer's 400 regions
        ("stagin", {"num_regions": 116}, 601),  # AAL
        ("stagin_sero_n32", {}, 601),
    ):
        torch.manual_seed(0)
        model = create_model(name, **options).eval()
        series = torch.randn(scans, frames, model.num_regions)
        series = series + 0.5 * series[:, :, :1]
        with torch.inference_mode():
            mine = model(series)
            for sparse, peer in (
                (True, "loop over windows, sparse products"),
                (False, "loop over windows, dense products"),
            ):
                off = float((mine - plain(model, series, sparse)).abs().max() / mine.abs().max())
                if not off <= 1e-4:
                    raise OffprintError(f"the two formulations of {name} differ by {off:.1e}")
                ours, theirs = lambda m=model, x=series: m(x), lambda m=model, x=series, s=sparse: plain(m, x, s)
                a, b = race(ours, theirs, seconds)
                used = (peak_memory(ours), peak_memory(theirs))
                yield Row(
                    "fmri-ssl",
                    f"{name} forward, {scans} x {frames} frames x {model.num_regions} regions",
                    peer,
                    a,
                    b,
                    used,
                )
