"""Nobody is offered what they have, and a catalogue may be as small as it likes."""

import numpy as np
import pytest
import torch

from offprint.data.interactions import from_pairs
from offprint.nn.sampled import sampled_products
from offprint.tasks.recommendation import train_recommender, trained_recommender


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """20 users of 12 items, half of each user's held out; user 19 has all items."""
    draw = np.random.default_rng(0)
    pairs = [(u, i) for u in range(19) for i in draw.permutation(12)[:6].tolist()] + [(19, i) for i in range(12)]
    data = from_pairs(*zip(*pairs, strict=True), fraction=0.5)
    folder = tmp_path_factory.mktemp("shop")
    train_recommender("lightgcn", data, folder, overrides={"epochs": 1, "eval_every": 0}, progress=False)
    return trained_recommender(folder), pairs, folder


def test_what_was_held_out_is_not_recommended(shop, tmp_path):
    trained, pairs, _ = shop
    assert trained.data.test.nnz > 50
    for user in range(19):
        mine = {i for u, i in pairs if u == user}
        assert {i for i, _ in trained.recommend(user, top=12)} == set(range(12)) - mine
    assert trained.recommend_all(tmp_path / "all.csv", 12) == (20, 0) and trained.complete == 1
    written = {
        (int(u), int(i)) for u, _, i, _ in (x.split(",") for x in (tmp_path / "all.csv").read_text().split("\n")[1:-1])
    }
    assert not written & set(pairs) and len(written) == 19 * 6


def test_whoever_has_everything_gets_an_empty_list_and_a_word(shop):
    from typer.testing import CliRunner

    from offprint.cli.main import app

    trained, _, folder = shop
    assert trained.recommend(19) == [] and trained.recommend(items=range(12)) == []
    shown = CliRunner().invoke(app, ["recommend", "query", str(folder), "--user", "19"]).output
    assert "19: has all 12 items; nothing is left to recommend" in shown


@pytest.mark.parametrize(("users", "items"), [(60, 40), (60, 8), (3, 1), (2, 2)])
def test_ultragcn_fits_a_catalogue_of_any_size(tmp_path, users, items):
    """With 200 negatives a row of the batch names more items than there are."""
    draw = np.random.default_rng(1)
    pairs = np.argwhere(draw.random((users, items)) < 0.4).tolist() + [[0, 0]]
    data = from_pairs(*zip(*pairs, strict=True), split="none")
    summary = train_recommender("ultragcn", data, tmp_path, overrides={"epochs": 2}, progress=False)
    assert summary["epochs"] == 2 and np.isfinite(summary["loss"])
    trained = trained_recommender(tmp_path)
    assert len(trained.recommend(data.user_ids[0], top=99)) == data.num_items - data.train[0].nnz


@pytest.mark.parametrize("n", [3, 7, 8, 9, 30])
def test_products_of_pairs_that_repeat(n):
    generator = torch.Generator().manual_seed(n)
    rows, table = torch.randn(5, 4, generator=generator), torch.randn(8, 4, generator=generator)
    index = torch.randint(8, (5, n), generator=generator, dtype=torch.int32)
    expected = (rows[:, None] * table[index.long()]).sum(-1)
    torch.testing.assert_close(sampled_products(rows, table, index), expected)
