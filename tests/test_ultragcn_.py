"""UltraGCN: weights against the dense formulas, the fused loss against plain autograd, training, folding in, bad input."""

import copy
import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import offprint
from offprint.data.interactions import Interactions, from_pairs
from offprint.errors import DataError, OffprintError
from offprint.models.graphs.ultragcn import RECIPES, UltraGCN, _Terms, _terms, co_occurrence, edge_weights
from offprint.tasks.recommendation import RecommenderRecipe, _Tests, train_recommender, trained_recommender


def matrix(n=30, m=20, share=0.2, seed=0):
    dense = np.random.default_rng(seed).random((n, m)) < share
    return sp.csr_matrix(dense.astype(np.float32))


def blocks(n=60, m=40, seed=0):
    """Users and items of two kinds that keep to themselves; a tenth of the pairs is left out for testing."""
    draw = np.random.default_rng(seed)
    same = np.arange(n)[:, None] % 2 == np.arange(m) % 2
    have = same & (draw.random((n, m)) < 0.5)
    test = have & (draw.random((n, m)) < 0.2)
    train = have & ~test
    ids = list(range(n)), list(range(m))
    return Interactions(*(sp.csr_matrix(part.astype(np.float32)) for part in (train, test)), *ids, name="blocks")


def ready(n=30, m=20, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = UltraGCN(n, m, 8, initial_weight=0.5, num_neighbours=4, **kwargs)
    model.set_interactions(matrix(n, m, seed=seed))
    return model


# -- weights ---------------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([1, 7, 10**6])
)
def test_weights_equal_the_dense_formulas(n, m, seed, k, block):
    """With users and items that have nothing, ties, fewer items than neighbours, any blocks."""
    train = matrix(n, m, 0.3, seed)
    r = train.toarray().astype(np.float64)
    g, d_user, d_item = r.T @ r, r.sum(1), r.sum(0)
    got = edge_weights(train, k, block)
    assert np.array_equal(np.concatenate([b.toarray() for _, b in co_occurrence(train, block)]), g)
    with np.errstate(divide="ignore", invalid="ignore"):
        b = np.sqrt(d_user + 1) / d_user
        omega = np.nan_to_num(g * (np.sqrt(g.sum(1) + 1) / g.sum(1))[:, None] / np.sqrt(g.sum(1) + 1))
    assert np.allclose(got.users, b, rtol=1e-6) and np.allclose(got.items, 1 / np.sqrt(d_item + 1), rtol=1e-6)
    assert got.neighbours.shape == (m, min(k, m))
    for item in range(m):
        strongest = np.sort(omega[item])[::-1][: min(k, m)]
        assert np.allclose(got.similarities[item], strongest, rtol=1e-5)
        named = got.similarities[item] > 0
        near = got.neighbours[item][named].numpy()
        assert len(set(near.tolist())) == len(near) and np.allclose(
            omega[item, near], strongest[: len(near)], rtol=1e-5
        )
        assert got.neighbours[item][~named].eq(item).all()


def test_of_equal_neighbours_the_lower_id_stays():
    train = sp.csr_matrix(np.ones((2, 6), np.float32))
    assert edge_weights(train, 3).neighbours.tolist() == [[0, 1, 2]] * 6
    again = edge_weights(train, 3, block=1)
    assert again.neighbours.tolist() == [[0, 1, 2]] * 6


# -- loss ------------------------------------------------------------------------------------------------------------
def plain(model, users, positives, negatives):
    """The docstring's formulas, one by one."""
    u, items = model.user_embeds.weight, model.item_embeds.weight
    own, beta = u[users], model.beta_user[users]
    up = model.w1 + model.w2 * beta * model.beta_item[positives]
    down = model.w3 + model.w4 * beta[:, None] * model.beta_item[negatives]
    pairs = -(up * F.logsigmoid((own * items[positives]).sum(-1))).sum()
    pushed = -(down * F.logsigmoid(-(own[:, None] * items[negatives]).sum(-1))).mean(1).sum()
    near = model.neighbours[positives].long()
    graph = -(model.similarities[positives] * F.logsigmoid((own[:, None] * items[near]).sum(-1))).sum()
    norm = 0.5 * (u.pow(2).sum() + items.pow(2).sum())
    return pairs + model.negative_weight * pushed + model.gamma * norm + model.lambda_ * graph


@pytest.mark.parametrize(
    "options", [{}, {"lambda_": 0.0}, {"w2": 0.0, "w1": 1.0}, {"w4": 0.0, "w3": 1.0}, {"lambda_": 2.75, "gamma": 0.1}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_and_gradients_equal_the_formulas(options, dtype):
    model = ready(**options).to(dtype)
    draw = torch.Generator().manual_seed(1)
    users = torch.tensor([3, 3, 7, 0, 29])  # one of them twice
    positives, negatives = torch.tensor([1, 1, 5, 19, 0]), torch.randint(20, (5, 9), generator=draw)
    negatives[0, :3] = 4  # and one item three times
    tables = list(model.parameters())
    loss, expected = model.loss(users, positives, negatives), plain(model, users, positives, negatives)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    if dtype == torch.float64:  # the weights are single precision numbers
        tolerance = 1e-6
    assert torch.allclose(loss, expected, rtol=tolerance)
    for scale in (1.0, 0.25):  # a scaled loss, as with accumulated gradients
        got, wanted = torch.autograd.grad(scale * loss, tables, retain_graph=True), torch.autograd.grad(scale * expected, tables, retain_graph=True)  # fmt: skip
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_the_two_ways_to_the_terms_agree():
    model = ready()
    index = torch.randint(20, (5, 12), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    weights, users = torch.rand(5, 12), torch.tensor([0, 1, 1, 2, 3])
    tables = list(model.parameters())
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0])
    results = []
    for terms in (_Terms.apply, _terms):
        out = torch.stack(terms(*tables, users, index, weights, 4))
        results.append((out, *torch.autograd.grad((out * scale).sum(), tables)))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_extreme_scores_stay_finite():
    model = ready()
    with torch.no_grad():
        model.user_embeds.weight.fill_(10.0)
        model.item_embeds.weight.fill_(-10.0)
    loss = model.loss(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 2]]))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_negative_may_come_without_its_axis():
    model = ready()
    users, positives, negatives = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5])
    assert torch.equal(model.loss(users, positives, negatives), model.loss(users, positives, negatives[:, None]))


# -- variants and state ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "count"), [("gowalla", 4_533_696), ("yelp2018", 4_461_824), ("amazon_book", 9_231_488)]
)
def test_variants_have_the_papers_size_and_setting(name, count):
    model = offprint.create_model(f"ultragcn_{name}")
    assert sum(p.numel() for p in model.parameters()) == count
    recipe = RecommenderRecipe.of(f"ultragcn_{name}")
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (2000, model.batch_size, RECIPES[f"ultragcn_{name}"]["lr"])


def test_the_weights_are_no_state_and_travel_with_the_model(tmp_path):
    model = ready()
    assert list(model.state_dict()) == ["user_embeds.weight", "item_embeds.weight"]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        batch = torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 2]])
        assert torch.equal(other.loss(*batch), model.loss(*batch))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    read = offprint.create_model(
        "ultragcn", num_users=30, num_items=20, embedding_dim=8, checkpoint_path=str(tmp_path / "weights.pt")
    )
    assert torch.equal(read(torch.tensor([3])), model(torch.tensor([3])))
    assert model(torch.tensor([3, 4])).shape == (2, 20)


# -- training --------------------------------------------------------------------------------------------------------
def fit(out, epochs, **kwargs):
    options = {"num_negatives": 10, "negative_weight": 10.0, "initial_weight": 0.01, "embedding_dim": 8}
    overrides = {"epochs": epochs, "lr": 0.02, "batch_size": 64, "top": (10,), **kwargs.pop("overrides", {})}
    return train_recommender("ultragcn", blocks(), out, overrides=overrides, model_options=options, logger="none", progress=False, **kwargs)  # fmt: skip


def test_it_learns_stops_and_folds_in(tmp_path):
    summary = fit(tmp_path, 400, overrides={"eval_every": 5, "eval_each_from": 10, "patience": 6})
    history = summary["history"]
    assert [row["epoch"] for row in history][:4] == [5, 10, 11, 12]
    at = max(range(len(history)), key=lambda i: history[i]["recall@10"])
    assert summary["stopped"] and len(history) - 1 - at == 6
    trained = trained_recommender(tmp_path)
    assert summary["best"]["recall@10"] > 0.6
    kinds = {name % 2 for name, _ in trained.recommend(4, top=8)}
    assert kinds == {0}
    assert {name % 2 for name, _ in trained.recommend(items=[1, 3, 5, 7], top=8)} == {1}


def test_a_run_that_was_cut_gives_the_same(tmp_path):
    whole = fit(tmp_path / "a", 6)
    fit(tmp_path / "b", 3)
    rest = fit(tmp_path / "b", 6)
    assert rest["history"][-1] == whole["history"][-1] and rest["loss"] == whole["loss"]
    models = [trained_recommender(tmp_path / name).model for name in "ab"]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_the_authors_schedule_of_tests():
    data = from_pairs([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], fraction=0.34)
    tests = _Tests(data, RecommenderRecipe.of("ultragcn_gowalla"), None)
    due = [epoch for epoch in range(1, 55) if tests.due(epoch)]
    assert due == [*range(5, 50, 5), *range(50, 55)]


def test_folding_in_minimises_the_users_own_loss():
    data = blocks()
    torch.manual_seed(0)
    model = UltraGCN(60, 40, 8, num_negatives=10, initial_weight=0.5, lambda_=0.3, gamma=0.01, batch_size=64)
    model.set_interactions(data.train)
    new = sp.csr_matrix(data.train[:3].toarray())
    users = model.fold_in(new)
    table = model.item_embeds.weight.detach()

    def own(row, e):
        items = torch.from_numpy(new[row].indices).long()
        degree = len(items)
        beta = (degree + 1) ** 0.5 / degree * model.beta_item
        scores = table @ e
        pull = ((model.w1 + model.w2 * beta[items]) * F.softplus(-scores[items])).sum()
        near = model.neighbours[items].long()
        graph = (model.similarities[items] * F.softplus(-scores[near])).sum()
        push = degree * model.negative_weight * ((model.w3 + model.w4 * beta) * F.softplus(scores)).mean()
        return pull + push + 0.3 * graph + 0.5 * 0.01 * data.train.nnz / 64 * e.pow(2).sum()

    for row in range(3):
        e = users[row].clone().requires_grad_()
        (grad,) = torch.autograd.grad(own(row, e), e)
        assert float(grad.abs().max()) < 1e-3
        assert float(own(row, e)) < float(own(row, torch.zeros_like(e)))
    assert not model.fold_in(sp.csr_matrix((2, 40), dtype=np.float32)).any()


# -- bad input -------------------------------------------------------------------------------------------------------
def test_refusals():
    with pytest.raises(OffprintError, match="num_users=0.*at least 1"):
        UltraGCN(0, 5)
    model = UltraGCN(30, 20, 8)
    batch = torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 2]])
    with pytest.raises(OffprintError, match="set_interactions"):
        model.loss(*batch)
    with pytest.raises(OffprintError, match="set_interactions"):
        model.fold_in(sp.csr_matrix((1, 20), dtype=np.float32))
    with pytest.raises(DataError, match="29 x 20, the model has 30 users"):
        model.set_interactions(matrix(29, 20))
    with pytest.raises(DataError, match="no training interactions"):
        model.set_interactions(sp.csr_matrix((30, 20), dtype=np.float32))
    model.set_interactions(matrix())
    with pytest.raises(DataError, match="items are 0 to 19; 20 was given"):
        model.loss(torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 20]]))
    with pytest.raises(DataError, match="users are 0 to 29; -1 was given"):
        model.loss(torch.tensor([-1]), torch.tensor([0]), torch.tensor([[1, 2]]))


def test_users_and_items_without_anything_do_no_harm():
    train = matrix()
    dense = train.toarray()
    dense[5], dense[:, 7] = 0, 0
    model = ready()
    model.set_interactions(sp.csr_matrix(dense))
    assert torch.isfinite(model.beta_user).all() and model.beta_user[5] == 0 and model.beta_item[7] == 1
    loss = model.loss(torch.tensor([0, 5]), torch.tensor([7, 7]), torch.tensor([[1, 7], [7, 7]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(model.item_embeds.weight.grad).all()
    assert json.dumps(model.sampling) == '{"by": "pair", "negatives": 200, "reject": false}'
