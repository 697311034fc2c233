"""How fmri-ssl's records are called through the public interface."""

import torch
from reading import array, said

from offprint.models.graphs.fmri_ssl import (
    adjacency,
    edge_loss,
    node_loss,
    threshold,
    window_correlations,
    window_starts,
)


def _details(model, record, series):
    return model.details(series, said(record, "starting at #"))


CALLS = {
    "custom: model(series), windows from frame 0; logits, latent per layer, orthogonality term, time attention, "
    "node attention": _details
}


def dynamic_fc(record):
    given, expected = record["inputs"], record["expected"]
    series = array(record, given["array"])
    series = series + said(record, "array + # * (its first region") * series[:, :, :1]
    starts = window_starts(series.shape[1], given["window"], given["stride"], given["length"])
    yield "starts", starts, expected["starts"], 0
    fc = window_correlations(series, torch.tensor(starts).expand(len(series), -1), given["window"])
    yield "first row", fc[:, :, said(record, "fc_first_row: row #")], expected["fc_first_row"], 1e-5
    yield "threshold", threshold(fc, given["sparsity"]), expected["threshold"], 1e-5
    graphs = adjacency(fc, given["sparsity"])
    yield "edges", graphs.sum((-2, -1)), expected["edges"], 0
    row, sample = said(record, "row0: row # of the 0/1 matrix of sample #")
    yield "row 0", graphs[sample, :, row], expected["row0"], 0


def reconstruction_losses(record):
    given, expected = record["inputs"], record["expected"]
    names = ("features", "reconstruction", "latent", "adjacency")
    features, rebuilt, latent, draw = (array(record, given[name]) for name in names)
    rows = given["masked"]
    yield "mse", node_loss(rebuilt[rows], features[rows]), expected["mse"], 1e-6
    yield "sce", node_loss(rebuilt[rows], features[rows], "sce", given["alpha"]), expected["sce"], 1e-6
    edges = draw > said(record, "(array > #)")
    graph = (edges | edges.T | torch.eye(len(edges), dtype=torch.bool)).to(latent)
    yield "edges", graph.sum(), expected["edges"], 0
    yield (
        "edge cross entropy",
        edge_loss(latent / said(record, "latent = array / #"), graph),
        expected["edge_bce"],
        1e-6,
    )


CASES = {"dynamic_fc": dynamic_fc, "reconstruction_losses": reconstruction_losses}
WORDS = {
    "dynamic_fc": {
        "percentile (100 - sparsity)": "the rule of the library",
        "the 0/1 matrix": "what an edge is",
        "Sparsity 28": "in the inputs",
    },
    "reconstruction_losses": {"(1 - cosine)": "the rule of the library", "** alpha": "in the inputs"},
    "stagin_garo_n20": {
        "windows of 20, stride 4": "in the arguments",
        "over length 45": "in the arguments",
    },
    "stagin_sero_n32": {
        "windows of 30, stride 5": "in the arguments",
        "over length 60": "in the arguments",
        "Sparsity 31, not STAGIN's 30: with 1024 entries the 70th percentile": "in the arguments",
        "Gain 0.7 keeps the attentions off 0 and 1": "in the record",
    },
}
