"""How ultragcn's records are called through the public interface."""

import re

import numpy as np
import scipy.sparse as sp
import torch
from reading import array, listed, precision, said

from offprint.data.draws import Triples
from offprint.data.interactions import load_interactions
from offprint.models.graphs.ultragcn import UltraGCN, co_occurrence, edge_weights
from offprint.tasks.ranking import evaluate_ranking


def _scores(model, record):
    return model(torch.tensor(listed(record, "users")))


CALLS = {"custom: scores (inner products) of the users in the notes for all items": _scores}


def _matrix(interactions, items):
    rows = np.repeat(np.arange(len(interactions)), [len(row) for row in interactions])
    columns = np.concatenate([np.array(row, dtype=int) for row in interactions])
    return sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(interactions), items))


def edge_weights_case(record):
    given, expected = record["inputs"], record["expected"]
    train = _matrix(given["interactions"], given["items"])
    for block in (4_000_000, 1):  # all of G at once, and one row at a time
        got = edge_weights(train, given["K"], block)
        yield "beta_user", got.users, expected["beta_user"], 1e-6
        yield "beta_item", got.items, expected["beta_item"], 1e-6
        yield "similarities", got.similarities, expected["similarities"], 1e-6
        wanted = torch.tensor(expected["neighbours"])
        weight = torch.tensor(expected["similarities"], dtype=torch.float64)
        other = (weight[:, :, None] - weight[:, None]).abs() <= 1e-6 * weight.max()
        alone = other.sum(-1) == 1
        alone[:, -1] &= weight[:, -1] > 0  # the last may tie with one that was left out
        yield "neighbours", got.neighbours[alone], wanted[alone].tolist(), 0
    first = next(co_occurrence(train))[1].toarray()[0]
    yield "co_occurrence_row_0", first, expected["co_occurrence_row_0"], 0


def _model(record, users, items):
    given = record["inputs"]
    same = ("w1", "w2", "w3", "w4", "negative_weight", "gamma")
    model = UltraGCN(
        len(users), len(items), users.shape[1], **{k: given[k] for k in same}, lambda_=given["lambda"],
        num_neighbours=given["K"], num_negatives=given.get("negatives", 1), batch_size=given.get("batch", 1),
    ).to(precision(record))  # fmt: skip
    with torch.no_grad():
        model.user_embeds.weight.copy_(users)
        model.item_embeds.weight.copy_(items)
    return model


def loss_steps(record):
    given, expected = record["inputs"], record["expected"]
    tables = [said(record, f"{k} table = #*array({k})") * array(record, given[k]) for k in ("user", "item")]
    model, items = _model(record, *tables), tables[1]
    train = _matrix(given["interactions"], len(items))
    model.set_interactions(train)
    # where two weights tie for the last place the record may have the other one: same weight, so its choice is taken
    everything = edge_weights(train, len(items))
    full = (
        torch.zeros(len(items), len(items))
        .to(everything.similarities)
        .scatter_add_(1, everything.neighbours, everything.similarities)
    )
    chosen = torch.tensor(given["neighbours"])
    yield "weights of its neighbours", model.similarities, full.gather(1, chosen).tolist(), 1e-6
    model.neighbours = chosen.int()
    optimizer = torch.optim.Adam(model.parameters(), given["learning_rate"])
    for i, (batch, step) in enumerate(zip(given["batches"], expected["steps"], strict=True)):
        u, p, n = (torch.tensor(batch[k]) for k in ("users", "positives", "negatives"))
        losses = model.losses(u, p, n)
        optimizer.zero_grad()
        losses.total.backward()
        for name, part in (("loss_L", "pairs"), ("norm", "norm"), ("loss_I", "neighbours"), ("total", "total")):
            yield f"{name} {i}", getattr(losses, part), step[name], 1e-5
        norms = [model.user_embeds.weight.grad.norm(), model.item_embeds.weight.grad.norm()]
        yield f"gradient norms {i}", torch.stack(norms), step["gradient_norms"], 1e-5
        weight = model.beta_user[u][:, None] * model.beta_item[torch.cat([p[:, None], n], 1)]
        yield f"omega_positive {i}", model.w1 + model.w2 * weight[:, 0], step["omega_positive"], 1e-5
        yield f"omega_negative {i}", model.w3 + model.w4 * weight[0, 1:], step["omega_negative_of_first"], 1e-5
        optimizer.step()
    *rows, columns = said(record, "rows # and # of each table after the last step, first # columns")
    yield "final users", model.user_embeds.weight[rows, :columns], expected["final_users"], 2e-4
    yield "final items", model.item_embeds.weight[rows, :columns], expected["final_items"], 2e-4


def protocol(record):
    """Protocol Q on real files, whose tables start from 1e-3 * array."""
    given, expected = record["inputs"], record["expected"]
    on_losses, on_metrics = said(record, "# relative on losses"), said(record, "# absolute on metrics")
    data = load_interactions(re.search(r"shared/data/recommendation/(\w+)", record["notes"]).group(1))
    sizes = zip((data.num_users, data.num_items), (given["user_seed"], given["item_seed"]), strict=True)
    tables = [1e-3 * array(record, {"shape": (size, given["columns"]), "seed": seed}) for size, seed in sizes]
    model = _model(record, *tables)
    model.set_interactions(data.train)
    optimizer = torch.optim.Adam(model.parameters(), given["learning_rate"], fused=True)
    sampler = Triples(data.train, given["batch"], **model.sampling)
    metrics = {row["epoch"]: row for row in expected["metrics"]}
    means, last = [], []
    for epoch in range(given["epochs"] + 1):
        if epoch in metrics:
            row = metrics[epoch]
            for all_users, names in ((True, ("recall", "precision", "ndcg")), (False, ("recall",))):
                got = evaluate_ranking(*model.final_embeddings(), data.train, data.test, (20,), all_users=all_users)
                for name in names:
                    wanted = row[f"{name}@20" if all_users else f"{name}_test_users@20"]
                    # absolutely, and closer than the record asks
                    yield f"{name}@20 after {epoch}", 1 + got[f"{name}@20"], 1 + wanted, on_metrics / 2
        if epoch == given["epochs"]:
            break
        last = []
        for batch in sampler.epoch(given["base"], epoch)[1]:
            loss = model.loss(*map(torch.from_numpy, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last.append(loss.detach())
            if epoch == 0 and len(last) == 1:
                yield "first loss of the first epoch", last[0], expected["first_loss"], on_losses
        if epoch == 0:
            yield "last loss of the first epoch", last[-1], expected["last_loss"], on_losses
        means.append(float(torch.stack(last).mean()))
    for epoch, (got, wanted) in enumerate(zip(means, expected["mean_loss"], strict=True), 1):
        yield f"mean loss of epoch {epoch}", got, wanted, on_losses


CASES = {"lastfm_epochs": protocol, "edge_weights": edge_weights_case, "loss_steps": loss_steps}
WORDS = {
    "edge_weights": {"co_occurrence_row_0 is row 0": "the row that is read"},
    "lastfm_epochs": {
        "numbered from 0": "how the library numbers",
        "all 1892 users": "follows from the data",
        "the 1858 users": "follows from the data",
        "Top-10 neighbours": "in the inputs",
    },
}
