"""Ranking against its obvious form, training that resumes exactly, recommendations, the command line."""

import csv
import json
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from test_cli import offprint, words  # noqa: F401  (a fixture)

from offprint.data.interactions import from_pairs, load_interactions
from offprint.errors import DataError, OffprintError
from offprint.tasks import ranking
from offprint.tasks.ranking import evaluate_ranking, ranking_metrics, top_items, top_of
from offprint.tasks.recommendation import popularity, train_recommender, trained_recommender
from offprint.tasks.running import NonFiniteLoss


# -- ranking ---------------------------------------------------------------------------------------------------------
def obvious(scores, train, test, k, all_users):
    """Recall, precision, NDCG and hit rate, one user and one item at a time."""
    rows = []
    for user in range(len(scores)):
        wanted = {i for i in range(scores.shape[1]) if test[user, i]}
        if not wanted:
            rows += [(0.0, 0.0, 0.0, 0.0)] if all_users else []
            continue
        left = [i for i in range(scores.shape[1]) if not train[user, i]]
        best = sorted(left, key=lambda i: (-scores[user, i], i))[:k]
        hits = [i in wanted for i in best]
        gain = sum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits) if hit)
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
        rows.append((sum(hits) / len(wanted), sum(hits) / k, gain / ideal, float(any(hits))))
    return np.mean(rows, 0)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 25), st.integers(1, 30), st.booleans(), st.booleans()
)
def test_ranking_equals_the_obvious_implementation(seed, users, items, k, tied, all_users):
    draw = np.random.default_rng(seed)
    train, test = (draw.random((users, items)) < p for p in (0.3, 0.25))
    test[draw.random(users) < 0.3] = False  # some users are not tested; train and test may overlap
    u, i = draw.integers(-2, 3, (users, 3)), draw.integers(-2, 3, (items, 3))  # small whole numbers: many ties
    if not tied:
        u, i = draw.standard_normal((users, 3)), draw.standard_normal((items, 3))
    u, i = u.astype(np.float32), i.astype(np.float32)
    sparse = [sp.csr_matrix(m.astype(np.float32)) for m in (train, test)]
    if not test.any():
        with pytest.raises(DataError, match="test part is empty"):
            evaluate_ranking(torch.from_numpy(u), torch.from_numpy(i), *sparse, (k,))
        return
    scores = u @ i.T
    expected = obvious(scores, train, test, k, all_users)
    for found in (
        ranking_metrics(scores, *sparse, k, all_users=all_users),
        evaluate_ranking(torch.from_numpy(u), torch.from_numpy(i), *sparse, (k,), all_users=all_users),
    ):
        got = [found[f"{m}@{k}"] for m in ("recall", "precision", "ndcg", "hit_rate")]
        assert got == pytest.approx(expected, abs=1e-6)
        assert found["users"] == (users if all_users else int(test.any(1).sum()))


def test_ties_go_to_the_first_and_masked_items_to_nobody():
    inf = math.inf
    scores = torch.tensor([[1.0, 2, 2, 2, 0], [-inf, -inf, 3, -inf, 3], [0, 0, 0, 0, 0], [5, -inf, 1, 5, 1]])
    values, items = top_of(scores, 3)
    assert items.tolist() == [[1, 2, 3], [2, 4, -1], [0, 1, 2], [0, 3, 2]] and values[0].tolist() == [2, 2, 2]
    assert top_of(scores, 9)[1].tolist()[0] == [1, 2, 3, 0, 4]


def test_batches_of_users_change_nothing(monkeypatch):
    draw = np.random.default_rng(0)
    users, items = (torch.from_numpy(draw.integers(-2, 3, (n, 4)).astype(np.float32)) for n in (50, 40))
    train, test = (sp.random(50, 40, 0.2, "csr", np.float32, random_state=s) for s in (1, 2))
    one = evaluate_ranking(users, items, train, test, (1, 5, 20))
    monkeypatch.setattr(ranking, "_SCORES_AT_ONCE", 7 * 40)
    steps = []
    several = evaluate_ranking(users, items, train, test, (1, 5, 20), progress=lambda a, b: steps.append((a, b)))
    assert one == pytest.approx(several) and len(steps) > 5 and steps[-1][0] == steps[-1][1] == one["users"]
    assert max(len(rows) for rows, _, _ in top_items(users, items, train, 3)) == 7


def test_sigmoids_rank_as_scores_do_until_they_tie_at_one():
    users, items = torch.ones(1, 1), torch.tensor([[0.5], [30.0], [-2.0], [40.0], [3.0], [20.0], [-200.0]])
    nothing = sp.csr_matrix((1, 7), dtype=np.float32)

    def order(ranking, count=7):
        return next(top_items(users, items[:count], nothing, 7, ranking=ranking))[2][0].tolist()

    assert order("scores") == [3, 1, 5, 4, 0, 2, 6]
    assert order("sigmoid") == [1, 3, 5, 4, 0, 2, 6]  # 20, 30 and 40 are all 1 in float32: by ascending item
    one = sp.csr_matrix((np.ones(1, np.float32), ([0], [3])), shape=(1, 7))  # the best by score, second by sigmoid
    found = {name: evaluate_ranking(users, items, nothing, one, (1, 2), ranking=name) for name in ranking.RANKINGS}
    assert [found["scores"]["recall@1"], found["sigmoid"]["recall@1"]] == [1.0, 0.0]
    assert found["sigmoid"]["recall@2"] == 1.0
    seen = sp.csr_matrix((np.ones(1, np.float32), ([0], [1])), shape=(1, 7))  # a training item stays out either way
    assert [next(top_items(users, items, seen, 7, ranking=r))[2][0, -1].item() for r in ranking.RANKINGS] == [-1, -1]
    with pytest.raises(OffprintError, match="sigmoid"):
        order("sigmoids")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_both_rankings_agree_where_nothing_saturates(seed):
    draw = np.random.default_rng(seed)
    users, items = (torch.from_numpy(draw.integers(-2, 3, (n, 3)).astype(np.float32)) for n in (9, 14))
    train, test = (sp.csr_matrix((draw.random((9, 14)) < p).astype(np.float32)) for p in (0.3, 0.4))
    if test.nnz:
        one, other = (evaluate_ranking(users, items, train, test, (1, 5), ranking=r) for r in ranking.RANKINGS)
        assert one == other


def test_rankings_that_cannot_be():
    eye = sp.eye(3, 3, format="csr", dtype=np.float32)
    with pytest.raises(OffprintError, match="not all finite"):
        evaluate_ranking(torch.full((3, 1), torch.nan), torch.ones(3, 1), eye, eye)
    with pytest.raises(OffprintError, match=r"top=\[0\]"):
        evaluate_ranking(torch.ones(3, 1), torch.ones(3, 1), eye, eye, [0])


# -- training --------------------------------------------------------------------------------------------------------
def groups(seed=0, users=60, items=40, split="random"):
    """Two kinds of people, who like the items of their kind."""
    draw = np.random.default_rng(seed)
    rows = [(f"u{u}", i) for u in range(users) for i in draw.permutation(items)[:25] if (i % 2) == (u % 2)]
    return from_pairs(*zip(*rows, strict=True), split=split, name="groups")


QUICK = {"epochs": 4, "batch_size": 128, "lr": 0.01, "eval_every": 1}


def fit(data, out, model="lightgcn", **kwargs):
    kwargs["overrides"] = {**QUICK, **kwargs.pop("overrides", {})}
    return train_recommender(
        model, data, out, **{"model_options": {"embedding_dim": 8}, "progress": False, "logger": "none", **kwargs}
    )


class Killed(Callback):
    """Stops the process, as it were, in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def test_it_learns_and_resumes_exactly(tmp_path):
    data = groups()
    whole = fit(data, tmp_path / "a")
    plain = evaluate_ranking(*popularity(data.train), data.train, data.test)
    assert [row["epoch"] for row in whole["history"]] == [1, 2, 3, 4] and not whole["stopped"]
    assert whole["history"][-1]["recall@20"] > plain["recall@20"] + 0.1
    with pytest.raises(RuntimeError, match="killed"):
        fit(data, tmp_path / "b", callbacks=[Killed(13)])
    assert not (tmp_path / "b" / "model.safetensors").exists()
    with pytest.raises(OffprintError, match="has not finished"):
        trained_recommender(tmp_path / "b")
    resumed = fit(data, tmp_path / "b")
    fit(data, tmp_path / "c", overrides={"epochs": 2})
    longer = fit(data, tmp_path / "c")
    for other in (resumed, longer):
        assert other["history"] == whole["history"] and other["loss"] == whole["loss"]
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in "abc"]
    assert files[0] == files[1] == files[2]
    assert fit(data, tmp_path / "a") == json.loads(
        (tmp_path / "a" / "summary.json").read_text()
    )  # nothing is done again
    with pytest.raises(OffprintError, match="more than the 2 asked for"):
        fit(data, tmp_path / "a", overrides={"epochs": 2})
    with pytest.raises(OffprintError, match="another seed"):
        fit(data, tmp_path / "a", seed=1)
    with pytest.raises(OffprintError, match="another data_digest"):
        fit(groups(1), tmp_path / "a")
    assert fit(groups(1), tmp_path / "a", resume=False)["epochs"] == 4


def test_patience_keeps_the_best_epoch(tmp_path):
    data = groups()
    kept = fit(data, tmp_path, overrides={"epochs": 60, "patience": 2, "lr": 0.05})
    goal = [row["recall@20"] for row in kept["history"]]
    assert kept["stopped"] and kept["epochs"] == len(goal) < 60 and goal.index(max(goal)) == len(goal) - 3
    again = trained_recommender(tmp_path).evaluate()
    assert again["recall@20"] == pytest.approx(max(goal)) and kept["best"]["epoch"] == len(goal) - 2
    (tmp_path / "summary.json").unlink()  # killed before the end was written: it stays at the end
    assert fit(data, tmp_path, overrides={"epochs": 60, "patience": 2, "lr": 0.05})["epochs"] == len(goal)


def test_runs_that_cannot_be(tmp_path):
    data = groups()
    with pytest.raises(OffprintError, match="not a recommender; choose among .*lightgcn"):
        fit(data, tmp_path, "dagnn_cora")
    with pytest.raises(OffprintError, match="unknown field of the recipe 'epoch'; nearest: epochs"):
        fit(data, tmp_path, overrides={"epoch": 3})
    with pytest.raises(OffprintError, match="lr above 0"):
        fit(data, tmp_path, overrides={"lr": 0.0})
    with pytest.raises(NonFiniteLoss, match="no epoch had ended"):
        fit(data, tmp_path, overrides={"lr": 1e30})
    with pytest.raises(OffprintError, match="is not the folder of a recommender"):
        trained_recommender(tmp_path / "nothing")
    assert not (tmp_path / "model.safetensors").exists()


# -- asking ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = groups()
    lonely = from_pairs(
        [*(data.user_ids[u] for u in data.train.nonzero()[0]), "lonely", "lonely"],
        [*(data.item_ids[i] for i in data.train.nonzero()[1]), 100, 101],
        split="temporal", fraction=0.001, time=[*range(data.train.nnz), 10**6, 10**6],
    )  # fmt: skip
    fit(lonely, folder)
    return trained_recommender(folder)


def test_recommendations_are_unseen_and_of_the_kind(trained):
    rows = trained.recommend("u3", top=5)
    row = trained.data.user_index("u3")
    having = {trained.data.item_ids[i] for i in trained.data.train[row].indices}
    assert len(rows) == 5 and not {i for i, _ in rows} & having and [s for _, s in rows] == sorted((s for _, s in rows), reverse=True)  # fmt: skip
    new = trained.recommend(items=[1, 3, 5, 7], top=8)
    assert sum(i % 2 for i, _ in new) >= 7 and not {1, 3, 5, 7} & {i for i, _ in new}
    assert len(trained.recommend("u3", top=1000)) == trained.data.num_items - len(having)
    for call, says in (
        (lambda: trained.recommend("u99"), "unknown user of interactions 'u99'; nearest"),
        (lambda: trained.recommend(items=[999]), "unknown item"),
        (lambda: trained.recommend("lonely"), "no training interactions"),
        (lambda: trained.recommend(items=[100]), "none of these items has training interactions"),
        (lambda: trained.recommend(), "give a user, or the items"),
        (lambda: trained.recommend("u3", top=0), "one item or more"),
    ):
        with pytest.raises(OffprintError, match=says):
            call()


def test_all_users_to_a_file(trained, tmp_path, monkeypatch):
    file = tmp_path / "deep" / "all.csv"
    assert trained.recommend_all(file, 3) == (60, 1)
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 180 and "lonely" not in {r["user"] for r in rows}
    mine = [(int(r["item"]), float(r["score"])) for r in rows if r["user"] == "u3"]
    assert [i for i, _ in mine] == [i for i, _ in trained.recommend("u3", top=3)]
    before = file.read_text()

    def fails(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(ranking, "_SCORES_AT_ONCE", 200)
    with pytest.raises(KeyboardInterrupt):
        trained.recommend_all(file, 5, fails)
    assert file.read_text() == before and [p.name for p in file.parent.iterdir()] == ["all.csv"]


def test_the_commands(offprint, tmp_path):  # noqa: F811
    lines = [
        f"{u},{i},{t}"
        for t, (u, i) in enumerate((u, i) for u in range(30) for i in range(20) if (u * 7 + i * 3) % 5 < 2)
    ]
    (tmp_path / "x.csv").write_text("\n".join(["user,item,time", *lines, lines[0]]) + "\n")
    start = ("recommend", "fit", "x.csv", "--out", "m", "--epochs", 2, "-o", "embedding_dim=8", "--logger", "none")
    code, shown, error = offprint(*start, "--split", "leave-one-out")
    assert code == 0 and "30 test interactions" in shown and "1 repeated interactions were merged" in shown, error
    assert "last test, epoch 2: recall@20" in words(shown) and "next: offprint recommend query m --user 0" in words(
        shown
    )
    code, shown, _ = offprint("recommend", "query", "m", "--user", 4, "--user", 5, "--top", 3, "--json")
    found = json.loads(shown)
    assert code == 0 and [f["user"] for f in found] == ["4", "5"] and [len(f["items"]) for f in found] == [3, 3]
    assert "new user:" in offprint("recommend", "query", "m", "--items", "1, 2", "-k", 2)[1]
    code, shown, _ = offprint("recommend", "query", "m", "--csv", "all.csv", "--top", 2)
    assert code == 0 and "30 users" in shown and len((tmp_path / "all.csv").read_text().splitlines()) == 61
    both = json.loads(offprint("recommend", "evaluate", "m", "-k", 3, "-k", 5, "--json")[1])
    assert both["model"]["users"] == 30 and set(both["popularity"]) == set(both["model"])
    assert "popularity" in offprint("recommend", "evaluate", "m")[1]
    (tmp_path / "bad.csv").write_text("user,item\na,b\nc\n")
    for call, says in (
        (("fit", "bad.csv", "--out", "n"), "bad.csv, line 3: 1 fields, expected 2"),
        (("query", "m", "--user", 77), "unknown user of x.csv '77'"),
        (("query", "m"), "give one of --user"),
        (("query", "elsewhere", "--user", 1), "not the folder of a recommender"),
        (
            ("fit", "x.csv", "--out", "m", "--epochs", 2, "--split", "random"),
            "another options (embedding_dim), data_digest",
        ),
        (("fit", "x.csv", "--columns", "user=who", "--out", "n"), "unknown column of x.csv 'who'"),
        (("fit", "x.csv", "-o", "num_layers=x", "--out", "n"), "argument of lightgcn is of the wrong kind"),
        (("fit", "x.csv", "--epochs", 1, "-s", "lr=fast", "--out", "n"), "lr='fast' is not a number"),
    ):
        code, _, error = offprint("recommend", *call)
        assert code == 2 and says in words(error), (call, error)
    assert not (tmp_path / "n").exists()


def test_a_split_without_a_test_part_trains_and_is_not_evaluated(tmp_path):
    data = groups(split="none")
    summary = fit(data, tmp_path, overrides={"epochs": 1})
    assert summary["history"] == [] and summary["best"] is None and summary["loss"] > 0
    with pytest.raises(DataError, match="test part is empty"):
        trained_recommender(tmp_path).evaluate()


def test_popularity_on_lastfm():
    data = load_interactions("lastfm")
    found = evaluate_ranking(*popularity(data.train), data.train, data.test, all_users=True)
    assert found["users"] == 1892
    fewer = evaluate_ranking(*popularity(data.train), data.train, data.test)
    assert fewer["users"] == 1858 and found["recall@20"] == pytest.approx(fewer["recall@20"] * 1858 / 1892)
