"""LightGCN on Gowalla against torch_geometric's (the same tables, batches and losses), full ranking, and growth with the data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp
import torch
from torch_geometric.nn import LightGCN as Theirs

from benchmarks.compare import Row, peak_memory, race
from offprint.data.draws import Triples
from offprint.data.interactions import load_interactions
from offprint.errors import OffprintError
from offprint.models.graphs.lightgcn import RECIPE, LightGCN
from offprint.tasks.ranking import evaluate_ranking

DATA = "gowalla"
STEPS = 3  # whose losses must agree before anything is timed
SIZES = (10**5, 10**6, 10**7)  # interactions of the synthetic graphs


def _stepper(parameters, loss: Callable, batches: list, **adam) -> Callable[[], float]:
    """Each call is one training step on the next batch; returns the loss before it."""
    optimizer, turn = torch.optim.Adam(parameters, RECIPE["lr"], **adam), iter(())

    def step() -> float:
        nonlocal turn
        batch = next(turn, None)
        if batch is None:
            turn = iter(batches)
            batch = next(turn)
        value = loss(*batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def _batches(train: sp.csr_matrix, sampling: dict, count: int) -> tuple[int, list, float]:
    """Batches in an epoch, the first few of them, and the seconds that drawing the epoch took."""
    start = time.perf_counter()
    total, batches = Triples(train, RECIPE["batch_size"], **sampling).epoch(0, 0)
    spent = time.perf_counter() - start
    return total, [tuple(map(torch.from_numpy, b)) for b, _ in zip(batches, range(count), strict=False)], spent


def _peers(model: LightGCN) -> Iterator[tuple[str, float, Callable, Theirs]]:
    """torch_geometric's class on the same tables: with edges and weights, and with a CSR adjacency, both normalised beforehand."""
    graph = model.graph
    users = torch.repeat_interleave(torch.arange(model.num_users), graph.user_starts.diff())
    items = graph.user_columns.long() + model.num_users
    edges, weights = torch.stack([torch.cat([users, items]), torch.cat([items, users])]), graph.user_values.repeat(2)
    size = model.num_users + model.num_items
    csr = torch.sparse_coo_tensor(edges, weights, (size, size)).coalesce().to_sparse_csr()
    table = torch.cat([model.embedding_user.weight, model.embedding_item.weight]).detach()
    for label, required, given in (("edge_index", 3.0, (edges, weights)), ("CSR adjacency", 1.0, (csr, None))):
        theirs = Theirs(size, table.shape[1], model.num_layers, normalize=False)
        theirs.load_state_dict({**theirs.state_dict(), "embedding.weight": table.clone()})

        def loss(u, i, j, theirs=theirs, given=given):
            i, j = i + model.num_users, j + model.num_users
            final = theirs.get_embedding(*given)
            positive, negative = ((final[u] * final[x]).sum(1) for x in (i, j))
            return theirs.recommendation_loss(positive, negative, torch.cat([u, i, j]), lambda_reg=model.decay / 2)

        yield label, required, loss, theirs


def _epochs(data) -> Iterator[Row]:
    torch.manual_seed(0)
    first = LightGCN(data.num_users, data.num_items)
    first.set_interactions(data.train)
    total, batches, drawing = _batches(data.train, first.sampling, 8)
    for label, required, loss, theirs in _peers(first):
        ours = LightGCN(data.num_users, data.num_items)
        ours.load_state_dict(first.state_dict())
        ours.set_interactions(data.train)
        a = _stepper(ours.parameters(), ours.loss, batches, fused=True)
        b = _stepper(theirs.parameters(), loss, batches, foreach=True)
        for step in range(STEPS):
            mine, peers = a(), b()
            if not abs(mine - peers) <= 2e-5 * abs(peers):
                raise OffprintError(f"step {step}: our loss is {mine:.7f}, torch_geometric's ({label}) {peers:.7f}")
        seconds = race(a, b, seconds=15, rounds=3)
        memory = peak_memory(a), peak_memory(b)
        yield Row(
            "lightgcn",
            f"{DATA} epoch, {total} batches",
            f"torch_geometric LightGCN, {label}",
            seconds[0] * total + drawing,
            seconds[1] * total + drawing,
            memory,
            required,
            f"a batch timed, {STEPS} losses equal; our time of drawing ({drawing:.2f} s) in both",
        )


def _evaluation(data) -> Row:
    torch.manual_seed(0)
    model = LightGCN(data.num_users, data.num_items)
    model.set_interactions(data.train)

    def evaluate():
        return evaluate_ranking(*model.final_embeddings(), data.train, data.test)

    start = time.perf_counter()
    users = evaluate()["users"]
    seconds = time.perf_counter() - start
    memory = peak_memory(evaluate), 4 * data.num_users * data.num_items
    what = f"full ranking of {users:,} users by {data.num_items:,} items, propagation included"
    return Row("lightgcn", what, "60 s; all scores at once", seconds, 60.0, memory)


def power_law(count: int, seed: int = 0) -> sp.csr_matrix:
    """About ``count`` interactions; activity and popularity fall off with rank as in the real sets, sizes in Gowalla's proportion."""
    draw, shape = np.random.default_rng(seed), (max(2, count // 27), max(2, count // 20))
    ends = []
    for size, exponent in zip(shape, (0.6, 0.8), strict=True):
        cumulative = np.cumsum(np.arange(1, size + 1) ** -exponent)
        ends.append(np.searchsorted(cumulative, draw.random(count) * cumulative[-1]))
    matrix = sp.csr_matrix((np.ones(count, np.float32), tuple(ends)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _growth() -> Iterator[Row]:
    steps, epochs, counts = [], [], []
    for count in SIZES:
        train = power_law(count)
        model = LightGCN(*train.shape)
        model.set_interactions(train)
        total, batches, drawing = _batches(train, model.sampling, 4)
        step = _stepper(model.parameters(), model.loss, batches, fused=True)
        step()
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            step()
            best = min(best, time.perf_counter() - start)
        steps.append(best)
        epochs.append(best * total + drawing)
        counts.append(train.nnz)
    slopes = [float(np.polyfit(np.log(counts), np.log(values), 1)[0]) for values in (steps, epochs)]
    for n, at in enumerate(counts):
        linear = [values[0] * at / counts[0] for values in (steps, epochs)]
        tail = f" (slope {slopes[0]:.2f})" if n + 1 == len(counts) else ""
        yield Row(
            "lightgcn",
            f"step, {at:,} interactions{tail}",
            "linear growth",
            steps[n],
            linear[0],
            required=0.0,
            growth=True,
        )
        tail = f" (slope {slopes[1]:.2f})" if n + 1 == len(counts) else ""
        yield Row(
            "lightgcn",
            f"epoch in batches of {RECIPE['batch_size']}, {at:,} interactions{tail}",
            "linear growth",
            epochs[n],
            linear[1],
            required=0.0,
            growth=True,
            note="a step passes over the whole graph, and an epoch has as many steps as interactions allow: the square",
        )


def rows() -> Iterator[Row]:
    data = load_interactions(DATA)
    yield from _epochs(data)
    yield _evaluation(data)
    yield from _growth()
