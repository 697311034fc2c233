"""Top items of users, and how good a ranking is: all items ranked, training items masked, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from offprint.data.draws import Seen
from offprint.errors import DataError, OffprintError, unknown

RANKINGS = ("scores", "sigmoid")  # by the inner products; by their float32 sigmoid, of which all above 17 tie at 1
_SCORES_AT_ONCE = 1 << 24  # float32 scores of one batch of users: 64 MiB


def top_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (B, M), equal ones by ascending column: values and columns, (B, min(k, M)) each.

    Columns of minus infinity are never chosen: their places, the last ones of a row, get column -1.
    """
    width = scores.shape[1]
    k = min(k, width)
    values, columns = scores.topk(min(k + 1, width), 1)
    tied = values[:, k - 1] == values[:, k] if k < width else None
    values, columns = values[:, :k], columns[:, :k]
    columns, order = columns.sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if tied is not None:  # a tie across the border, of which topk takes whichever: the lowest columns are in
        border = values[:, -1]
        for row in (tied & (border > -torch.inf)).nonzero().flatten().tolist():
            above = int((values[row] > border[row]).sum())
            columns[row, above:] = (scores[row] == border[row]).nonzero().flatten()[: k - above]
    return values, columns.masked_fill_(values == -torch.inf, -1)


def top_items(
    users: Tensor,
    items: Tensor,
    seen: sp.csr_matrix | None,
    k: int,
    *,
    rows: np.ndarray | None = None,
    ranking: str = "scores",
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """The k best unseen items of users by inner product, a batch of users at a time.

    Args:
        users: (N, d). items: (M, d).
        seen: (N, M) CSR, what is never proposed.
        rows: which users, default all.
        ranking: ``"scores"`` ranks by the inner products. ``"sigmoid"`` ranks by their sigmoid in float32, as the authors of
            LightGCN do: it is the same order but for scores above 17 or so, which all become 1 and are then as good as each
            other. Take it to compare with their figures, not to recommend.

    Yields:
        users' rows (B,), scores (or their sigmoids) and items (B, k), best first, equal ones by ascending item; item -1 where a
        user has fewer than k unseen ones.
    """
    if ranking not in RANKINGS:
        raise unknown("ranking", ranking, RANKINGS)
    rows = np.arange(len(users)) if rows is None else rows
    size = max(1, _SCORES_AT_ONCE // max(1, len(items)))
    across = items.t().contiguous()
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        scores = users[torch.from_numpy(chosen).to(users.device)] @ across
        if ranking == "sigmoid":
            scores.sigmoid_()
        if seen is not None:
            part = seen[chosen]
            at = np.repeat(np.arange(len(chosen), dtype=np.int64), np.diff(part.indptr)) * len(items) + part.indices
            scores.view(-1)[torch.from_numpy(at).to(scores.device)] = -torch.inf
        yield chosen, *top_of(scores, k)


class RankingSums:
    """Recall, precision, NDCG and hit rate at several cut-offs, gathered batch by batch.

    Args:
        test: (N, M) CSR with sorted indices.
        top: cut-offs, e.g. ``(20,)``.
        all_users: divide by all N users (those without test items count 0) and not by those with test items.
    """

    def __init__(self, test: sp.csr_matrix, top: Sequence[int] = (20,), *, all_users: bool = False):
        self.top = tuple(sorted(set(top)))
        if not self.top or self.top[0] < 1:
            raise OffprintError(f"top={list(top)}: cut-offs are whole numbers of 1 or more")
        self.relevant, self.size = Seen(test), np.diff(test.indptr)
        if not self.size.any():
            raise DataError("the test part is empty; split the interactions, or give a test file")
        self.users = np.nonzero(self.size)[0]
        self.count = len(self.size) if all_users else len(self.users)
        self.gains = 1 / np.log2(np.arange(self.top[-1]) + 2)
        self.ideal = np.concatenate([[0.0], np.cumsum(self.gains)])
        self.sums = {f"{m}@{k}": 0.0 for k in self.top for m in ("recall", "precision", "ndcg", "hit_rate")}

    def add(self, users: np.ndarray, items: np.ndarray) -> None:
        """Users (B,) and their items (B, k'), best first, -1 for none; users without test items are passed over."""
        items, users = items[self.size[users] > 0], users[self.size[users] > 0]
        hits = (items >= 0) & self.relevant(users[:, None], items)
        for k in self.top:
            hit, size = hits[:, :k], self.size[users]
            found = hit.sum(1)
            self.sums[f"recall@{k}"] += (found / size).sum()
            self.sums[f"precision@{k}"] += (found / k).sum()
            self.sums[f"ndcg@{k}"] += (
                (hit * self.gains[: hit.shape[1]]).sum(1) / self.ideal[np.minimum(size, k)]
            ).sum()
            self.sums[f"hit_rate@{k}"] += (found > 0).sum()

    def means(self) -> dict[str, float]:
        """``recall@20`` and so on, and ``users``, the number divided by."""
        return {name: float(value) / self.count for name, value in self.sums.items()} | {"users": self.count}


def evaluate_ranking(
    users: Tensor,
    items: Tensor,
    train: sp.csr_matrix,
    test: sp.csr_matrix,
    top: Sequence[int] = (20,),
    *,
    all_users: bool = False,
    ranking: str = "scores",
    progress=None,
) -> dict[str, float]:
    """Full ranking: each user with test items ranks all items but its training items; means over users.

    Recall is hits over test items, precision hits over k, NDCG has binary gains 1 / log2(rank + 1) and an ideal of
    min(k, test items) hits, hit rate is the share of users with a hit.

    Args:
        users: (N, d) final embeddings. items: (M, d).
        all_users: see :class:`RankingSums`; False is LightGCN's definition, True is UltraGCN's.
        ranking: see :func:`top_items`; ``"sigmoid"`` is LightGCN's, ``"scores"`` UltraGCN's.
        progress: called with (users done, users in all).

    Raises:
        DataError: an empty test part. OffprintError: embeddings that are not finite.
    """
    if not (torch.isfinite(users).all() and torch.isfinite(items).all()):
        raise OffprintError("the embeddings are not all finite, so they rank nothing")
    sums, done = RankingSums(test, top, all_users=all_users), 0
    for rows, _, best in top_items(users, items, train, sums.top[-1], rows=sums.users, ranking=ranking):
        sums.add(rows, best.cpu().numpy())
        done += len(rows)
        if progress:
            progress(done, len(sums.users))
    return sums.means()


def ranking_metrics(scores, train: sp.csr_matrix, test: sp.csr_matrix, k: int = 20, *, all_users: bool = False) -> dict:
    """The same of scores (N, M) at hand; also ``top``, the k items of each user."""
    scores = torch.as_tensor(np.asarray(scores)).clone()
    scores[torch.from_numpy(train.toarray() > 0)] = -torch.inf
    best = top_of(scores, k)[1].numpy()
    sums = RankingSums(test, (k,), all_users=all_users)
    sums.add(np.arange(len(best)), best)
    return sums.means() | {"top": best}


def popularity(train: sp.csr_matrix) -> tuple[Tensor, Tensor]:
    """The baseline that recommends what most users have, as embeddings (N, 1) and (M, 1)."""
    counts = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
    return torch.ones(train.shape[0], 1), torch.from_numpy(counts)[:, None]
