"""A training step of UltraGCN on Gowalla and LastFM against the same loss in plain PyTorch, from equal tables and draws."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compare import Row, peak_memory, race
from offprint.data.draws import Triples
from offprint.data.interactions import load_interactions
from offprint.errors import OffprintError
from offprint.models.factory import create_model
from offprint.models.graphs.ultragcn import RECIPES, UltraGCN


class _Plain(nn.Module):
    """The loss as the formulas are usually written: rows gathered, scored, and left to autograd."""

    def __init__(self, ours: UltraGCN):
        super().__init__()
        self.user, self.item = copy.deepcopy(ours.user_embeds), copy.deepcopy(ours.item_embeds)
        self.given = ours

    def forward(self, users, positives, negatives):
        given, own = self.given, self.user(users)
        up = given.w1 + given.w2 * given.beta_user[users] * given.beta_item[positives]
        down = given.w3 + given.w4 * given.beta_user[users][:, None] * given.beta_item[negatives]
        good = (own * self.item(positives)).sum(-1)
        bad = (own[:, None] * self.item(negatives)).sum(-1)
        near = (own[:, None] * self.item(given.neighbours[positives].long())).sum(-1)
        pairs = F.binary_cross_entropy_with_logits(good, torch.ones_like(good), up, reduction="none")
        pushed = F.binary_cross_entropy_with_logits(bad, torch.zeros_like(bad), down, reduction="none")
        graph = -(given.similarities[positives] * F.logsigmoid(near)).sum()
        norm = 0.5 * sum(table.weight.pow(2).sum() for table in (self.user, self.item))
        pairs = (pairs + given.negative_weight * pushed.mean(-1)).sum()
        return pairs + given.gamma * norm + given.lambda_ * graph


def _step(model, loss, optimizer, batches):
    state = {"at": 0}

    def run() -> float:
        batch = batches[state["at"] % len(batches)]
        state["at"] += 1
        optimizer.zero_grad()
        value = loss(*batch)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return run


def rows(sets: tuple[str, ...] = ("lastfm", "gowalla"), seconds: float = 15.0) -> Iterator[Row]:
    for name in sets:
        data = load_interactions(name)
        torch.manual_seed(0)
        if name == "gowalla":
            ours, recipe = create_model("ultragcn_gowalla"), RECIPES["ultragcn_gowalla"]
        else:
            ours, recipe = UltraGCN(data.num_users, data.num_items), {"lr": 1e-3, "batch_size": 1024}
        ours.set_interactions(data.train)
        theirs = _Plain(ours)
        drawn = Triples(data.train, recipe["batch_size"], **ours.sampling).epoch(0, 0)[1]
        batches = [tuple(map(torch.from_numpy, batch)) for batch, _ in zip(drawn, range(8), strict=False)]
        mine = _step(ours, ours.loss, torch.optim.Adam(ours.parameters(), recipe["lr"], fused=True), batches)
        plain = _step(
            theirs,
            theirs,
            torch.optim.Adam([*theirs.user.parameters(), *theirs.item.parameters()], recipe["lr"]),
            batches,
        )
        for number in range(5):
            a, b = mine(), plain()
            if not abs(a - b) <= 1e-5 * abs(b):
                raise OffprintError(f"the two formulations differ on {name}, step {number}: {a} and {b}")
        a, b = race(mine, plain, seconds)
        memory = (peak_memory(mine), peak_memory(plain))
        note = f"losses of 5 steps equal; {-(-data.train.nnz // recipe['batch_size'])} steps an epoch"
        what = f"step on {name}, {recipe['batch_size']} pairs x {ours.sampling['negatives']} negatives"
        yield Row("ultragcn", what, "plain PyTorch", a, b, memory, 1.5, note)
