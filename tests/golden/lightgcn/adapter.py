"""How lightgcn's records are called through the public interface."""

from itertools import chain

import golden
import numpy as np
import scipy.sparse as sp
import torch

from offprint.data.interactions import Triples, load_interactions
from offprint.models.graphs.lightgcn import LightGCN
from offprint.tasks.ranking import evaluate_ranking, ranking_metrics


def _matrix(lists, width):
    starts = np.cumsum([0, *map(len, lists)])
    matrix = sp.csr_matrix((np.ones(starts[-1], np.float32), list(chain(*lists)), starts), shape=(len(lists), width))
    matrix.sort_indices()
    return matrix


def _embeddings(model, record):
    model.set_interactions(_matrix(record["interactions"], model.num_items))
    return model.final_embeddings()


def _joint(model, record):
    return torch.cat(_embeddings(model, record))


def _ratings(model, record):
    users, items = _embeddings(model, record)
    return torch.sigmoid(users[[0, 1, 20, 39]] @ items.T)


def _pairs(model, record):
    model.set_interactions(_matrix(record["interactions"], model.num_items))
    users = torch.tensor([u for u, row in enumerate(record["interactions"]) for _ in row])
    return model(users, torch.tensor(list(chain(*record["interactions"]))))


CALLS = {
    "custom: final user embeddings, then final item embeddings, on the graph of the record's interactions": _embeddings,
    "custom: ratings (sigmoid of the inner products) of the users in the notes for all items": _ratings,
    "custom: final embeddings, users first, then items, on the graph of the record's interactions": _joint,
    "custom: inner products of the pairs of the record's interactions, in the order of the lists": _pairs,
}


def _started(shapes, layers, decay, lr):
    """A model whose tables are 0.1 * array(shape, seed), and its optimizer."""
    (n, d), (m, _) = (shape for shape, _ in shapes)
    model = LightGCN(n, m, d, layers, decay).train()
    with torch.no_grad():
        for table, (shape, seed) in zip((model.embedding_user, model.embedding_item), shapes, strict=True):
            table.weight.copy_(torch.from_numpy(0.1 * golden.array(shape, seed)))
    return model, torch.optim.Adam(model.parameters(), lr, fused=True)


def bpr_steps(record):
    given, expected = record["inputs"], record["expected"]
    shapes = [(given[k]["shape"], given[k]["seed"]) for k in ("user", "item")]
    decay = given["decay"]
    model, optimizer = _started(shapes, given["layers"], decay, given["learning_rate"])
    model.set_interactions(_matrix(given["interactions"], model.num_items))
    for number, (batch, step) in enumerate(zip(given["batches"], expected["steps"], strict=True)):
        columns = torch.tensor(batch).T
        bpr, penalty = model.parts_of_loss(*columns)
        total = model.loss(*columns)
        for name, value in (("bpr", bpr), ("l2", penalty), ("total", total)):
            yield f"{name} of step {number}", value, step[name], 1e-5
        optimizer.zero_grad()
        total.backward()
        yield f"gradients of step {number}", [float(p.grad.norm()) for p in model.parameters()], step["gradient_norms"], 1e-4  # fmt: skip
        optimizer.step()
    for got, name in zip(model.final_embeddings(), ("final_users", "final_items"), strict=True):
        yield name, got[:2, :8], expected[name], 2e-4


def metrics(record):
    given, expected = record["inputs"], record["expected"]
    scores = golden.array(given["scores"]["shape"], given["scores"]["seed"])
    train, test = (_matrix(given[k], scores.shape[1]) for k in ("train", "test"))
    found = ranking_metrics(scores, train, test, given["k"])
    for name in ("recall", "precision", "ndcg"):
        yield name, found[f"{name}@{given['k']}"], expected[name], 1e-6
    yield "top_of_user_0", found["top"][0], expected["top_of_user_0"], 0


def _protocol(record, name, off):
    """Protocol P on real files: losses, and metrics of absolute tolerance ``off``."""
    given, expected = record["inputs"], record["expected"]
    data = load_interactions(name)
    shapes = [
        ((data.num_users, given["columns"]), given["user_seed"]),
        ((data.num_items, given["columns"]), given["item_seed"]),
    ]
    model, optimizer = _started(shapes, given["layers"], given["decay"], given["learning_rate"])
    model.set_interactions(data.train)
    sampler, means, first = Triples(data.train, given["batch"], **model.sampling), [], None
    wanted = {row["epoch"]: row for row in expected["metrics"]}
    for epoch in range(given["epochs"] + 1):
        if epoch in wanted:
            found = evaluate_ranking(*model.final_embeddings(), data.train, data.test)
            for key, value in wanted[epoch].items():
                if key != "epoch":  # the absolute tolerance, as a relative one
                    yield f"{key} after epoch {epoch}", found[key], value, off / value
        if epoch == given["epochs"]:
            break
        losses, batches = [], list(sampler.epoch(given["base"], epoch)[1])
        for batch in batches:
            loss = model.loss(*map(torch.from_numpy, batch))
            losses.append(float(loss))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means.append(float(np.mean(losses)))
        if epoch == 0:
            first = losses
            users, positives, negatives = (np.concatenate(c) for c in zip(*batches, strict=True))
            yield "draws_kept", len(users), expected["draws_kept"], 0
            got = [int(c[at]) for at in (0, 1, -1) for c in (users, positives, negatives)]
            yield "first_triples", got, expected["first_triples"], 0
    yield "first_three_losses", first[:3], expected["first_three_losses"], 2e-4
    yield "mean_loss", means if isinstance(expected["mean_loss"], list) else means[0], expected["mean_loss"], 2e-4
    for number, value in expected.get("loss_of_batch", {}).items():
        yield f"loss of batch {number}", first[int(number)], value, 2e-4
    if "last_loss" in expected:
        yield "last_loss", first[-1], expected["last_loss"], 2e-4


CASES = {
    "bpr_steps": bpr_steps,
    "ranking_metrics": metrics,
    "lastfm_epochs": lambda record: _protocol(record, "lastfm", 2e-3),
    "gowalla_epoch": lambda record: _protocol(record, "gowalla", 1e-3),
}
