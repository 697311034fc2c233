"""How fmri-ssl's records are called through the public interface."""

import golden
import torch

from offprint.models.graphs.fmri_ssl import (
    adjacency,
    edge_loss,
    node_loss,
    threshold,
    window_correlations,
    window_starts,
)


def _details(model, record, series):
    return model.details(series)


CALLS = {
    "custom: model(series), windows from frame 0; logits, latent per layer, orthogonality term, time attention, "
    "node attention": _details
}


def dynamic_fc(record):
    given, expected = record["inputs"], record["expected"]
    series = torch.from_numpy(golden.array(given["array"]["shape"], given["array"]["seed"]))
    series = series + 0.8 * series[:, :, :1]
    starts = window_starts(series.shape[1], given["window"], given["stride"], given["length"])
    yield "starts", starts, expected["starts"], 0
    fc = window_correlations(series, torch.tensor(starts).expand(len(series), -1), given["window"])
    yield "first row", fc[:, :, 0], expected["fc_first_row"], 1e-5
    yield "threshold", threshold(fc, given["sparsity"]), expected["threshold"], 1e-5
    graphs = adjacency(fc, given["sparsity"])
    yield "edges", graphs.sum((-2, -1)), expected["edges"], 0
    yield "row 0", graphs[0, :, 0], expected["row0"], 0


def reconstruction_losses(record):
    given, expected = record["inputs"], record["expected"]
    features, rebuilt, latent, draw = (
        torch.from_numpy(golden.array(given[k]["shape"], given[k]["seed"]))
        for k in ("features", "reconstruction", "latent", "adjacency")
    )
    rows = given["masked"]
    yield "mse", node_loss(rebuilt[rows], features[rows]), expected["mse"], 1e-6
    yield "sce", node_loss(rebuilt[rows], features[rows], "sce", given["alpha"]), expected["sce"], 1e-6
    edges = draw > 0.6
    graph = (edges | edges.T | torch.eye(len(edges), dtype=torch.bool)).float()
    yield "edges", graph.sum(), expected["edges"], 0
    yield "edge cross entropy", edge_loss(latent / 2, graph), expected["edge_bce"], 1e-6


CASES = {"dynamic_fc": dynamic_fc, "reconstruction_losses": reconstruction_losses}
