"""How dagnn's records are called through the public interface."""

import golden
import torch
from reading import precision

from offprint.data.graphs import load_graph
from offprint.models.graphs.dagnn import DAGNN


def _call(model, record, x):
    return model(x, torch.tensor(record["edge_index"]))


CALLS = {"custom: model(x, edge_index) with the record's edge_index; log-softmax per node": _call}


def cora_full_batch_steps(record):
    given, expected = record["inputs"], record["expected"]
    graph = load_graph(given["dataset"], normalize=True)
    masks = [graph.train_mask, graph.val_mask, graph.test_mask]
    yield "num_nodes", graph.num_nodes, expected["num_nodes"], 0
    yield "num_directed_edges", graph.num_edges, expected["num_directed_edges"], 0
    yield "num_features", graph.num_features, expected["num_features"], 0
    yield "split_sizes", [int(m.sum()) for m in masks], expected["split_sizes"], 0
    classes, kind = int(graph.y.max()) + 1, precision(record)
    for x in (graph.x.to(kind), graph.x.to(kind).to_sparse_csr()):
        model = DAGNN(graph.num_features, classes, given["hidden"], given["K"]).eval().to(kind)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.from_numpy(golden.tensor(name, p.shape, given["gain"])))
        optimizer = torch.optim.Adam(model.parameters(), given["learning_rate"], weight_decay=given["weight_decay"])
        losses, norms, first = [], {}, None
        for step in range(given["steps"]):
            out = model(x, graph.edge_index)
            loss = torch.nn.functional.nll_loss(out[graph.train_mask], graph.y[graph.train_mask])
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                first = out.detach()[given["nodes"]]
                norms = {n: float(p.grad.norm()) for n, p in model.named_parameters()}
            optimizer.step()
        yield "log_probs", first, expected["log_probs"], 1e-5
        yield "losses", losses, expected["losses"], 1e-5
        for name, norm in expected["gradient_norms"].items():
            yield f"gradient norm of {name}", norms[name], norm, 1e-4
        with torch.no_grad():
            hit = model(x, graph.edge_index).argmax(1) == graph.y
        got = [int(hit[m].sum()) for m in masks]
        yield "correct", got, [expected["correct"][k] for k in ("train", "val", "test")], 0


CASES = {"cora_full_batch_steps": cora_full_batch_steps}
WORDS = {
    "cora_full_batch_steps": {
        "gain=1.0": "in the inputs",
        "learning rate 0.01": "in the inputs",
        "L2 weight decay": "a name",
    },
    "dagnn_cora_k10": {"(60 nodes": "the size of the input"},
    "dagnn_pubmed_k20": {"(60 nodes": "the size of the input"},
}
