r"""UltraGCN: Ultra Simplification of Graph Convolutional Networks for Recommendation (Mao et al.; CIKM 2021; arXiv 2110.15114).

Nothing is passed along the graph. What infinitely many LightGCN layers would converge to is written into the loss of two plain
tables. With :math:`d_u, d_i` the degrees, a user-item pair weighs

.. math:: \beta_{ui} = b_u c_i = \frac{\sqrt{d_u + 1}}{d_u} \cdot \frac{1}{\sqrt{d_i + 1}},

and two items, through their co-occurrence :math:`G = R^\top R` (its diagonal stays) with row sums :math:`g`,

.. math:: \omega_{ij} = \frac{G_{ij}}{g_i} \sqrt{\frac{g_i + 1}{g_j + 1}}.

Only each item's K strongest neighbours S(i) are kept. A batch of pairs (u, i), each with m negatives j, has the loss

.. math:: L = \sum_{(u,i)} (w_1 + w_2\beta_{ui})\,\mathrm{sp}(-s_{ui}) + \frac{\nu}{m}\sum_j (w_3 + w_4\beta_{uj})\,\mathrm{sp}(s_{uj}),
   \qquad I = \sum_{(u,i)}\sum_{k \in S(i)} \omega_{ik}\,\mathrm{sp}(-s_{uk}),

where s is the inner product and sp the softplus; in all :math:`L + \lambda I + \gamma \cdot \frac12(\|U\|^2 + \|V\|^2)`, over both
whole tables in every batch. Sums are over the batch: the strength of the penalty depends on the batch size.

Every term is a weighted softplus of an inner product, so a batch is one sparse pattern of pairs (:mod:`offprint.nn.sampled`)
whose gradient is known with its value (:class:`_Terms`); G is made a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import DataError, OffprintError
from offprint.models.registry import register
from offprint.nn.precision import ExactTables
from offprint.nn.sampled import sampled_gradients, sampled_products

BLOCK = 4_000_000  # entries of G at once, at most (but never less than one row)


class EdgeWeights(NamedTuple):
    """Both kinds of weights of a graph.

    Attributes:
        users: b (N,); infinite for a user without items, who is never drawn.
        items: c (M,); 1 for an item that nobody has.
        neighbours: S (M, K), strongest first; of equal ones the lower id. Where an item has fewer than K, the item itself
            with weight 0 fills up.
        similarities: their ω (M, K).

    All but S in double.
    """

    users: Tensor
    items: Tensor
    neighbours: Tensor
    similarities: Tensor


def co_occurrence(matrix: sp.csr_matrix, block: int = BLOCK) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Rows of G = RᵀR, diagonal included, as (first item, block of rows); a block holds about ``block`` entries at most."""
    items = matrix.T.tocsr()
    bound = np.cumsum(items @ np.ravel(matrix.sum(1)).astype(np.float64))  # g_i is at least the entries of row i
    first = 0
    while first < items.shape[0]:
        before = bound[first - 1] if first else 0.0
        last = max(first + 1, int(np.searchsorted(bound, before + block, side="right")))
        yield first, items[first:last] @ matrix
        first = last


def edge_weights(train: sp.csr_matrix, num_neighbours: int = 10, block: int = BLOCK) -> EdgeWeights:
    """The weights β and ω of a graph (Sec. 3), in memory that grows with M·K and ``block`` only.

    Args:
        train: R (N, M), CSR of ones.
        num_neighbours: K; at most M are kept.
        block: entries of G held at once.
    """
    matrix, num_items = train, train.shape[1]
    d_user = np.ravel(matrix.sum(1)).astype(np.float64)
    d_item = np.ravel(matrix.sum(0)).astype(np.float64)
    g = matrix.T @ d_user  # row sums of G without G
    with np.errstate(divide="ignore"):
        b = np.where(d_user > 0, np.sqrt(d_user + 1) / d_user, np.inf)
        left = np.where(g > 0, np.sqrt(g + 1) / g, 0.0)
    right = 1 / np.sqrt(g + 1)
    k = min(num_neighbours, num_items)
    near = np.repeat(np.arange(num_items)[:, None], k, 1)
    omega = np.zeros((num_items, k))
    for first, rows in co_occurrence(matrix, block):
        values = rows.data * right[rows.indices]
        for row in range(rows.shape[0]):
            start, stop = rows.indptr[row], rows.indptr[row + 1]
            value, column = values[start:stop], rows.indices[start:stop]
            if len(value) > k:  # what reaches the k-th largest, ties with it included
                kept = value >= np.partition(value, len(value) - k)[len(value) - k]
                value, column = value[kept], column[kept]
            best = np.lexsort((column, -value))[:k]
            near[first + row, : len(best)] = column[best]
            omega[first + row, : len(best)] = value[best] * left[first + row]
    c = 1 / np.sqrt(d_item + 1)
    return EdgeWeights(*(torch.from_numpy(x) for x in (b, c, near, omega)))


class _Terms(torch.autograd.Function):
    """Weighted softplus sums over pairs, and half the squared norm of both tables, with the gradients in closed form.

    Inputs: tables (N, d) and (M, d); users (B,); index (B, 1 + K + m) int32, a positive, its neighbours, negatives; weights
    like index; K. Outputs: four scalars (positives, neighbours, negatives, norm).
    """

    @staticmethod
    def forward(ctx, user_table: Tensor, item_table: Tensor, users: Tensor, index: Tensor, weights: Tensor, k: int):
        rows = user_table[users]
        scores = sampled_products(rows, item_table, index)
        scores[:, : 1 + k].neg_()  # now every term is weight * softplus(score)
        terms = F.softplus(scores).mul_(weights).split([1, k, index.shape[1] - 1 - k], 1)
        slope = scores.sigmoid_().mul_(weights)
        slope[:, : 1 + k].neg_()
        ctx.k = k
        ctx.save_for_backward(user_table, item_table, users, index, rows, slope)
        norm = sum(0.5 * torch.dot(table.view(-1), table.view(-1)) for table in (user_table, item_table))
        return *(term.sum() for term in terms), norm

    @staticmethod
    def backward(ctx, positive: Tensor, neighbour: Tensor, negative: Tensor, norm: Tensor):
        user_table, item_table, users, index, rows, slope = ctx.saved_tensors
        scale = torch.stack([positive, neighbour, negative])
        if (scale != 1).any():
            width = torch.tensor([1, ctx.k, index.shape[1] - 1 - ctx.k])
            slope = slope * scale.repeat_interleave(width)
        for_rows, for_items = sampled_gradients(slope, rows, item_table, index)
        for_users = (user_table * norm).index_add_(0, users, for_rows)
        return for_users, for_items.add_(item_table, alpha=float(norm)), None, None, None, None


def _terms(user_table: Tensor, item_table: Tensor, users: Tensor, index: Tensor, weights: Tensor, k: int):
    """What :class:`_Terms` computes, by plain operations: for other devices and precisions."""
    scores = torch.einsum("bd,bnd->bn", user_table[users], item_table[index.long()])
    scores = torch.cat([-scores[:, : 1 + k], scores[:, 1 + k :]], 1)
    terms = (weights * F.softplus(scores)).split([1, k, index.shape[1] - 1 - k], 1)
    norm = sum(0.5 * table.pow(2).sum() for table in (user_table, item_table))
    return *(term.sum() for term in terms), norm


class Losses(NamedTuple):
    """A batch's loss, and its parts L, I and the norm."""

    total: Tensor
    pairs: Tensor
    neighbours: Tensor
    norm: Tensor


class UltraGCN(ExactTables):
    """Recommender of two tables.

    Args:
        num_users, num_items: N and M.
        embedding_dim: d.
        w1, w2, w3, w4: constants and factors of β in the weights of positives and of negatives.
        negative_weight: ν.
        num_negatives: m.
        sift_positives: draw negatives among the items that the user does not have.
        lambda_: of the item-item term; 0 is UltraGCN_base.
        gamma: of the norm of both tables.
        num_neighbours: K.
        initial_weight: standard deviation of the first tables.
        batch_size: pairs per batch in training; only folding in needs it, to weigh the penalty as an epoch does.

    ``set_interactions`` must come before a loss; the weights follow from the training pairs and are not in the state.
    """

    native = "authors"
    averages_all_users = True  # the authors' metrics divide by all users, not only by those with test items

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        w1: float = 1e-7,
        w2: float = 1.0,
        w3: float = 1e-7,
        w4: float = 1.0,
        negative_weight: float = 200.0,
        num_negatives: int = 200,
        sift_positives: bool = False,
        lambda_: float = 1e-3,
        gamma: float = 1e-4,
        num_neighbours: int = 10,
        initial_weight: float = 1e-4,
        batch_size: int = 1024,
    ):
        super().__init__()
        if min(num_users, num_items, embedding_dim, num_negatives, num_neighbours) < 1:
            raise OffprintError(
                f"num_users={num_users}, num_items={num_items}, embedding_dim={embedding_dim}, num_negatives={num_negatives} "
                f"and num_neighbours={num_neighbours} must all be at least 1"
            )
        self.num_users, self.num_items, self.embedding_dim = num_users, num_items, embedding_dim
        self.w1, self.w2, self.w3, self.w4 = w1, w2, w3, w4
        self.negative_weight, self.batch_size = negative_weight, batch_size
        self.sampling = {"by": "pair", "negatives": num_negatives, "reject": sift_positives}
        self.lambda_, self.gamma, self.num_neighbours = lambda_, gamma, num_neighbours
        self.initial_weight = initial_weight
        self.user_embeds = nn.Embedding(num_users, embedding_dim)
        self.item_embeds = nn.Embedding(num_items, embedding_dim)
        for name in ("beta_user", "beta_item", "neighbours", "similarities"):
            self.register_buffer(name, None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables anew."""
        for table in (self.user_embeds, self.item_embeds):
            nn.init.normal_(table.weight, std=self.initial_weight)

    def set_interactions(self, train: sp.csr_matrix) -> None:
        """Compute the weights of the training matrix (N, M)."""
        if train.shape != (self.num_users, self.num_items):
            raise DataError(
                f"the training matrix is {train.shape[0]} x {train.shape[1]}, the model has {self.num_users} users and "
                f"{self.num_items} items"
            )
        if train.nnz == 0:
            raise DataError("there are no training interactions; nothing can be learnt")
        weights = edge_weights(train, self.num_neighbours if self.lambda_ else 1)
        self.num_pairs = train.nnz
        like = self.user_embeds.weight
        self.keep_table("beta_user", weights.users.masked_fill(weights.users.isinf(), 0.0), like)
        self.keep_table("beta_item", weights.items, like)
        self.keep_table("similarities", weights.similarities, like)
        self.neighbours = weights.neighbours.int().to(like.device)

    def forward(self, users: Tensor) -> Tensor:
        """Scores (B, M) of all items for these users (B,)."""
        return self.user_embeds(users) @ self.item_embeds.weight.t()

    @torch.no_grad()
    def final_embeddings(self) -> tuple[Tensor, Tensor]:
        """The tables (N, d) and (M, d) whose inner products are the scores."""
        return self.user_embeds.weight.detach(), self.item_embeds.weight.detach()

    def losses(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Losses:
        """The parts of a batch's loss.

        Args:
            users, positives: (B,) pairs.
            negatives: (B, m).
        """
        self._ready()
        negatives = negatives[:, None] if negatives.ndim == 1 else negatives
        for name, ids, count in (("users", users, self.num_users), ("items", positives, self.num_items),
                                 ("items", negatives, self.num_items)):  # fmt: skip
            low, high = (int(x) for x in ids.aminmax())
            if low < 0 or high >= count:
                raise DataError(f"{name} are 0 to {count - 1}; {low if low < 0 else high} was given")
        k = self.neighbours.shape[1] if self.lambda_ else 0
        index = torch.empty(len(users), 1 + k + negatives.shape[1], dtype=torch.int32, device=users.device)
        index[:, 0], index[:, 1 + k :] = positives, negatives
        if k:
            index[:, 1 : 1 + k] = self.neighbours[positives]
        weights = self.beta_item.index_select(0, index.view(-1)).view(index.shape).mul_(self.beta_user[users][:, None])
        weights[:, 0].mul_(self.w2).add_(self.w1)
        weights[:, 1 + k :].mul_(self.w4).add_(self.w3).mul_(self.negative_weight / negatives.shape[1])
        if k:
            weights[:, 1 : 1 + k] = self.similarities[positives] * self.lambda_
        tables = (self.user_embeds.weight, self.item_embeds.weight)
        fast = tables[0].device.type == "cpu" and tables[0].dtype in (torch.float32, torch.float64)
        terms = _Terms.apply if fast else _terms
        positive, neighbour, negative, norm = terms(*tables, users, index, weights.to(tables[0].dtype), k)
        pairs = positive + negative
        return Losses(pairs + self.gamma * norm + neighbour, pairs, neighbour / (self.lambda_ or 1.0), norm)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The batch's loss; arguments as in :meth:`losses`."""
        return self.losses(users, positives, negatives).total

    def fold_in(self, items: sp.csr_matrix) -> Tensor:
        """Embeddings (B, d) of new users with these items (B, M), by minimising their own part of an epoch's loss.

        With the item table fixed that part is convex, and the mean over all items takes the place of drawn negatives. A user
        none of whose items was trained on gets zeros.
        """
        self._ready()
        table = self.item_embeds.weight.detach()
        trained = self.beta_item < 1
        near = self.neighbours.long()
        out = table.new_zeros(items.shape[0], self.embedding_dim)
        for start in range(0, items.shape[0], 256):
            have = torch.from_numpy(items[start : start + 256].toarray()).to(table) * trained
            degree = have.sum(1, keepdim=True)
            beta = torch.where(degree > 0, (degree + 1).sqrt() / degree.clamp(min=1), 0) * self.beta_item
            pull = have * (self.w1 + self.w2 * beta)
            if self.lambda_:
                users, chosen = have.nonzero(as_tuple=True)
                at = users[:, None].expand(-1, near.shape[1]), near[chosen]
                pull = pull.index_put(at, self.lambda_ * self.similarities[chosen], accumulate=True)
            push = degree * self.negative_weight / self.num_items * (self.w3 + self.w4 * beta)
            ridge = self.gamma * self.num_pairs / self.batch_size
            out[start : start + 256] = _fit(table, pull, push, ridge) * (degree > 0)
        return out

    def _ready(self) -> None:
        if self.beta_user is None:
            raise OffprintError("the graph's weights are not there; call set_interactions(users, items) first")


def _fit(table: Tensor, pull: Tensor, push: Tensor, ridge: float) -> Tensor:
    """Rows e that minimise Σ_j pull_j sp(-e·v_j) + push_j sp(e·v_j) + ridge/2 ‖e‖², one for each row of the weights (B, M)."""
    kind, table = table.dtype, table.double()
    users = torch.zeros(len(pull), table.shape[1], dtype=table.dtype, device=table.device, requires_grad=True)
    solver = torch.optim.LBFGS([users], max_iter=60, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        scores = users @ table.t()
        value = (pull * F.softplus(-scores) + push * F.softplus(scores)).sum() + 0.5 * ridge * users.pow(2).sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(closure)
    return users.detach().to(kind)


_COLUMNS = ("num_users", "num_items", "lr", "batch_size", "num_negatives", "negative_weight", "w1", "w3", "w4", "lambda_", "patience")  # fmt: skip
_ROWS = {
    "gowalla": (29858, 40981, 1e-4, 512, 1500, 300.0, 1e-6, 1e-6, 1.0, 5e-4, 150),
    "yelp2018": (31668, 38048, 1e-3, 1024, 800, 300.0, 1e-8, 1e-8, 1.0, 5e-4, 15),
    "amazon_book": (52643, 91599, 1e-3, 1024, 500, 500.0, 1e-8, 1.0, 1e-8, 2.75, 15),
    "ml_1m": (6022, 3043, 1e-3, 1024, 200, 200.0, 1e-7, 1e-7, 1.0, 1e-3, 50),
    "amazon_cds": (43169, 35648, 1e-3, 1024, 1000, 1000.0, 1e-7, 1e-7, 1.0, 1.0, 15),
    "electronics": (1435, 1522, 1e-3, 2048, 75, 75.0, 1e-7, 1e-7, 1.0, 1e-7, 250),
}
_OWN = {
    "ml_1m": {"embedding_dim": 128, "initial_weight": 1e-3},
    "electronics": {"gamma": 5e-5, "initial_weight": 1e-3, "sift_positives": True},
}
_TRAINING = ("lr", "batch_size", "patience")
_ARGUMENTS = tuple(key for key in _COLUMNS if key not in ("lr", "patience"))
VARIANTS: dict[str, dict] = {  # the first is for any data, whose sizes are passed; as it stands it has LastFM's
    "ultragcn": {"num_users": 1892, "num_items": 4489}
} | {
    f"ultragcn_{name}": {
        **{key: value for key, value in zip(_COLUMNS, row, strict=True) if key in _ARGUMENTS},
        **_OWN.get(name, {}),
    }
    for name, row in _ROWS.items()
}
# tests come every 5 epochs up to the 50th, then after each; `patience` of them without a better Recall@20 end the run
RECIPE = {"lr": 1e-3, "batch_size": 1024, "epochs": 2000, "eval_every": 5, "eval_each_from": 50, "patience": 15}
RECIPES = {
    f"ultragcn_{name}": {key: value for key, value in zip(_COLUMNS, row, strict=True) if key in _TRAINING}
    for name, row in _ROWS.items()
}
register(
    paper="ultragcn",
    kind="graph",
    task="recommendation",
    build=UltraGCN,
    variants=VARIANTS,
    input_size=None,
    recipe=RECIPE,
    exceptions={"training": RECIPES},
)
