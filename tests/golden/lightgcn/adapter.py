"""How lightgcn's records are called through the public interface."""

import re
from itertools import chain

import numpy as np
import scipy.sparse as sp
import torch
from reading import array, listed, said

from offprint.data.draws import Triples
from offprint.data.interactions import load_interactions
from offprint.models.graphs.lightgcn import LightGCN
from offprint.tasks.ranking import evaluate_ranking, ranking_metrics


def _matrix(lists, width):
    starts = np.cumsum([0, *map(len, lists)])
    matrix = sp.csr_matrix((np.ones(starts[-1], np.float32), list(chain(*lists)), starts), shape=(len(lists), width))
    matrix.check_format()
    matrix.sort_indices()
    return matrix


def _embeddings(model, record):
    model.set_interactions(_matrix(record["interactions"], model.num_items))
    return model.final_embeddings()


def _joint(model, record):
    return torch.cat(_embeddings(model, record))


def _ratings(model, record):
    users, items = _embeddings(model, record)
    return torch.sigmoid(users[listed(record, "of users")] @ items.T)


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


def _started(record, tables):
    """A model that starts from these tables, and its optimizer."""
    given, (users, items) = record["inputs"], tables
    model = LightGCN(len(users), len(items), users.shape[1], given["layers"], given["decay"]).train().to(users.dtype)
    with torch.no_grad():
        for own, table in zip((model.embedding_user, model.embedding_item), tables, strict=True):
            own.weight.copy_(table)
    return model, torch.optim.Adam(model.parameters(), given["learning_rate"], fused=True)


def bpr_steps(record):
    given, expected = record["inputs"], record["expected"]
    tables = [said(record, f"embedding_{k} = #*array({k})") * array(record, given[k]) for k in ("user", "item")]
    model, optimizer = _started(record, tables)
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
    *rows, columns = said(record, "rows # and # of the propagated embeddings after the last step, first # columns")
    for got, name in zip(model.final_embeddings(), ("final_users", "final_items"), strict=True):
        yield name, got[rows, :columns], expected[name], 2e-4


def metrics(record):
    given, expected = record["inputs"], record["expected"]
    scores = array(record, given["scores"])
    train, test = (_matrix(given[k], scores.shape[1]) for k in ("train", "test"))
    found = ranking_metrics(scores, train, test, given["k"])
    for name in ("recall", "precision", "ndcg"):
        yield name, found[f"{name}@{given['k']}"], expected[name], 1e-6
    yield "top_of_user_0", found["top"][0], expected["top_of_user_0"], 0


def protocol(record):
    """Protocol P on real files, whose tables start from 0.1 * array."""
    given, expected = record["inputs"], record["expected"]
    on_losses, on_metrics = said(record, "# relative on losses"), said(record, "# absolute on metrics")
    data = load_interactions(re.search(r"shared/data/recommendation/(\w+)", record["notes"]).group(1))
    sizes = zip((data.num_users, data.num_items), (given["user_seed"], given["item_seed"]), strict=True)
    tables = [0.1 * array(record, {"shape": (size, given["columns"]), "seed": seed}) for size, seed in sizes]
    model, optimizer = _started(record, tables)
    model.set_interactions(data.train)
    sampler, means, first = Triples(data.train, given["batch"], **model.sampling), [], []
    wanted = {row["epoch"]: row for row in expected["metrics"]}
    for epoch in range(given["epochs"] + 1):
        if epoch in wanted:
            found = evaluate_ranking(
                *model.final_embeddings(), data.train, data.test, ranking="sigmoid"
            )  # the authors'
            for key, value in wanted[epoch].items():
                if key != "epoch":  # the absolute tolerance, as a relative one
                    yield f"{key} after epoch {epoch}", found[key], value, on_metrics / value
        if epoch == given["epochs"]:
            break
        losses, batches = [], list(sampler.epoch(given["base"], epoch)[1])
        if epoch == 0:
            users, positives, negatives = (np.concatenate(c) for c in zip(*batches, strict=True))
            yield "draws_kept", len(users), expected["draws_kept"], 0
            got = [int(c[at]) for at in (0, 1, -1) for c in (users, positives, negatives)]
            yield "first_triples", got, expected["first_triples"], 0
        for number, batch in enumerate(batches):
            loss = model.loss(*map(torch.from_numpy, batch))
            losses.append(float(loss.detach()))
            if epoch == 0 and number == 2:
                yield "first_three_losses", list(losses), expected["first_three_losses"], on_losses
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means.append(float(np.mean(losses)))
        first = first or losses
    yield "mean_loss", means if isinstance(expected["mean_loss"], list) else means[0], expected["mean_loss"], on_losses
    for number, value in expected.get("loss_of_batch", {}).items():
        yield f"loss of batch {number}", first[int(number)], value, on_losses
    if "last_loss" in expected:
        yield "last_loss", first[-1], expected["last_loss"], on_losses


CASES = {
    "bpr_steps": bpr_steps,
    "ranking_metrics": metrics,
    "lastfm_epochs": protocol,
    "gowalla_epoch": protocol,
}
_PROTOCOL = {
    "3 layers, 64 columns, decay 1e-4, Adam 1e-3": "in the inputs",
    "batches of 2048": "in the inputs",
}
WORDS = {
    "lastfm_epochs": {**_PROTOCOL, "of epoch 0": "the first"},
    "gowalla_epoch": {
        **_PROTOCOL,
        "in order (396)": "follows from the data",
        "(numbered from 0)": "how the keys count",
    },
    "lightgcn_d64_l3": {"mean over layers 0..3": "in the arguments"},
    "lightgcn_pyg_d64_l3": {"alpha is 1/(L+1)": "the rule of the library"},
}
