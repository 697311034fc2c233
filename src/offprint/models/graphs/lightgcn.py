r"""LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation (He et al.; SIGIR 2020; arXiv 2002.02126).

Of a graph network for collaborative filtering, the weights and the nonlinearities help nothing, and what is left is
smoothing. Users and items have a table of embeddings each, :math:`E^0`; they are passed along the graph of the training
interactions R without parameters and without self loops (Eq. 3, 8),

.. math:: E^{l+1} = \hat A E^l, \qquad \hat A = D^{-1/2} A D^{-1/2}, \qquad A = \begin{pmatrix} 0 & R \\ R^\top & 0 \end{pmatrix},

and the mean over the layers is what is used (Eq. 4, :math:`\alpha_l = 1/(L+1)`),

.. math:: E = \frac{1}{L+1} \sum_{l=0}^{L} E^l, \qquad \hat y_{ui} = E_u^\top E_i.

Training compares pairs (BPR, Eq. 15): of a user u, an item i it has and an item j it has not,

.. math:: \frac1B \sum \mathrm{softplus}(\hat y_{uj} - \hat y_{ui}) + \frac{\lambda}{2B} \sum \left(\|E^0_u\|^2 + \|E^0_i\|^2 + \|E^0_j\|^2\right).

The penalty is on the tables' rows, not on what is propagated. The graph is kept as R and its transpose, each a matrix of rows,
so that no product touches a zero block (:mod:`offprint.nn.bipartite`).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.nn.bipartite import BipartiteGraph, batch_means, rows_matmul


def bpr_loss(positive: Tensor, negative: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the loss.

    Args:
        positive, negative: scores (B,) of the items a user has and has not.
        rows: (B, d) each, rows of the tables that are penalised.

    Returns:
        mean softplus(negative - positive), and half the rows' summed squares over B.
    """
    return F.softplus(negative - positive).mean(), sum(r.square().sum() for r in rows) / (2 * len(positive))


def _joint(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """One table of users, then items (torch_geometric's, if the caller numbered them so), as two."""
    table = state.pop("embedding.weight")
    first = model.num_users
    return {"embedding_user.weight": table[:first], "embedding_item.weight": table[first:], **state}


class LightGCN(nn.Module):
    """Recommender.

    Args:
        num_users, num_items: N, M.
        embedding_dim: d.
        num_layers: L; 0 is matrix factorisation.
        decay: lambda.
        init_std: of the normal distribution that tables start from (0.1 in the authors' PyTorch code, 0.01 in their TensorFlow code).
        edge_keep: in training, keep each direction of each edge with this probability (edge dropout).

    Before all else :meth:`set_interactions` makes the graph.
    """

    native = "authors"
    dialects = (
        Dialect("pyg", reshape=_joint),
        Dialect(
            "tensorflow", renames=((r"^(?:.*/)?(user|item)_embedding(?:\.weight)?(?::0)?$", r"embedding_\1.weight"),)
        ),
    )
    sampling = {"by": "user", "negatives": 1, "reject": True}

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 3,
        decay: float = 1e-4,
        init_std: float = 0.1,
        edge_keep: float = 1.0,
    ):
        super().__init__()
        if num_users < 1 or num_items < 1:
            raise OffprintError(f"num_users={num_users}, num_items={num_items}: give the numbers of users and of items")
        if num_layers < 0 or embedding_dim < 1 or not 0 < edge_keep <= 1:
            raise OffprintError(
                "expected num_layers of 0 or more, embedding_dim of 1 or more, and edge_keep above 0, at most 1"
            )
        self.num_users, self.num_items = num_users, num_items
        self.num_layers, self.decay, self.init_std, self.edge_keep = num_layers, decay, init_std, edge_keep
        self.embedding_user = nn.Embedding(num_users, embedding_dim)
        self.embedding_item = nn.Embedding(num_items, embedding_dim)
        self.graph: BipartiteGraph | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables anew."""
        nn.init.normal_(self.embedding_user.weight, std=self.init_std)
        nn.init.normal_(self.embedding_item.weight, std=self.init_std)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Check the layer weights that torch_geometric keeps beside its table."""
        alpha = state.pop("alpha", None)
        if alpha is not None and (
            len(alpha) != self.num_layers + 1 or not torch.allclose(alpha, 1 / alpha.new_tensor(len(alpha)))
        ):
            raise CheckpointError(
                f"the file weighs its layers by {[round(a, 4) for a in alpha.tolist()]}; this model takes the mean of "
                f"{self.num_layers + 1}: build it with num_layers={len(alpha) - 1}, or with equal weights"
            )
        return state

    def set_interactions(self, train: sp.csr_matrix) -> None:
        """Make the graph of the training interactions (N, M), a SciPy matrix of zeros and ones."""
        if train.shape != (self.num_users, self.num_items):
            raise OffprintError(
                f"expected interactions of {self.num_users} users and {self.num_items} items, got a matrix of {tuple(train.shape)}"
            )
        train = sp.csr_matrix(train)
        if train.nnz and not (np.isfinite(train.data).all() and train.data.min() >= 0):
            raise OffprintError("interactions must be finite and not negative")
        self.graph = BipartiteGraph(train).to(self.embedding_user.weight)

    def set_edges(self, edge_index: Tensor) -> None:
        """The same from torch_geometric's ``edge_index`` (2, E): users are nodes 0 .. N-1, items N .. N+M-1; one direction or both."""
        a, b = edge_index.cpu().numpy()
        lower, upper = np.minimum(a, b), np.maximum(a, b) - self.num_users
        if len(a) and not (
            0 <= lower.min() and lower.max() < self.num_users and 0 <= upper.min() and upper.max() < self.num_items
        ):
            raise OffprintError(
                f"every edge must join a user (0 to {self.num_users - 1}) and an item ({self.num_users} to "
                f"{self.num_users + self.num_items - 1})"
            )
        train = sp.csr_matrix((np.ones(len(a)), (lower, upper)), shape=(self.num_users, self.num_items))
        train.data[:] = 1
        self.set_interactions(train)

    def _graph(self) -> BipartiteGraph:
        if self.graph is None:
            raise OffprintError("the model has no graph yet; call set_interactions(train) first")
        return self.graph

    @torch.no_grad()
    def final_embeddings(self) -> tuple[Tensor, Tensor]:
        """E of users (N, d) and of items (M, d): one propagation."""
        return self._graph().layer_means(self.embedding_user.weight, self.embedding_item.weight, self.num_layers)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores (B,) of pairs of rows (B,)."""
        return self.scores(users, items)[0][0]

    def scores(self, users: Tensor, *items: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Differentiable scores (B,) of users with each list of items (B,), and the tables' rows of all of them."""
        graph = self._graph()
        drop = self.training and self.edge_keep < 1
        edges = graph.dropped(self.edge_keep) if drop else graph.edges
        rows, user_at = users.unique(return_inverse=True)
        columns, item_at = torch.cat(items).unique(return_inverse=True)
        tables = self.embedding_user.weight, self.embedding_item.weight
        means_u, means_i, ego_u, ego_i = batch_means(*tables, rows, columns, self.num_layers, edges)
        parts = item_at.split(len(users))
        mean = means_u[user_at]
        return [(mean * means_i[p]).sum(1) for p in parts], [ego_u[user_at], *(ego_i[p] for p in parts)]

    def parts_of_loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """BPR and penalty (before lambda) of a batch of rows (B,) each."""
        (positive, negative), rows = self.scores(users, positives, negatives)
        return bpr_loss(positive, negative, *rows)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR + lambda * penalty of a batch of rows (B,) each."""
        bpr, penalty = self.parts_of_loss(users, positives, negatives)
        return bpr + self.decay * penalty

    @torch.no_grad()
    def fold_in(self, items: sp.csr_matrix) -> Tensor:
        """(B, d): new users who have these items (B, M), as one more row of the trained graph.

        A new user has no row in the table, so its layer 0 is zero; the layers above are those of its items, which are not
        moved by it.
        """
        graph = self._graph()
        users, below = self.embedding_user.weight, self.embedding_item.weight
        layers = []  # sum over layers 0 .. L-1 of the items' embeddings
        for layer in range(self.num_layers):
            layers.append(below)
            if layer < self.num_layers - 1:
                users, below = graph.to_users(below), graph.to_items(users)
        if not layers:  # matrix factorisation: the mean of its items
            layers, scale = [below], torch.ones_like(graph.item_scale)
        else:
            scale = graph.item_scale
        table = sum(layers) * scale[:, None] / (self.num_layers + 1)
        items = sp.csr_matrix(items)
        own = torch.from_numpy(np.maximum(np.diff(items.indptr), 1) ** -0.5).to(table)
        starts, columns = (torch.from_numpy(x.astype(np.int32)).to(table.device) for x in (items.indptr, items.indices))
        summed = rows_matmul(starts, columns, table.new_ones(items.nnz), table)
        return summed * own[:, None]


_SIZES = {"gowalla": (29858, 40981), "yelp2018": (31668, 38048), "amazon_book": (52643, 91599), "lastfm": (1892, 4489)}
_LAYERS = {"gowalla": (1, 2, 3, 4), "yelp2018": (1, 2, 3, 4), "amazon_book": (3,), "lastfm": (3,)}
VARIANTS: dict[str, dict] = {  # the first is for any data, whose sizes are passed; as it stands it has LastFM's
    "lightgcn": {"num_users": 1892, "num_items": 4489}
} | {
    f"lightgcn_{name}_l{layers}": {"num_users": n, "num_items": m, "num_layers": layers}
    for name, (n, m) in _SIZES.items()
    for layers in _LAYERS[name]
}
RECIPE = {"epochs": 1000, "lr": 1e-3, "batch_size": 2048, "eval_every": 10}
RECIPES = {"lightgcn_amazon_book_l3": {"batch_size": 8192}}
register(
    paper="lightgcn",
    kind="graph",
    task="recommendation",
    build=LightGCN,
    variants=VARIANTS,
    input_size=None,
    recipe=RECIPE,
    exceptions={"training": RECIPES},
)
