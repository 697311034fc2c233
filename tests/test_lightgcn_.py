"""LightGCN: equal to the dense formulas and to torch_geometric's, gradients included; its dialects; new users."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.nn import LightGCN as Theirs

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.graphs.lightgcn import VARIANTS, LightGCN
from offprint.nn.bipartite import BipartiteGraph

N, M, D = 17, 23, 8


def interactions(seed=0, density=0.2):
    draw = np.random.default_rng(seed)
    matrix = (draw.random((N, M)) < density).astype(np.float32)
    matrix[3], matrix[:, 5] = 0, 0  # a user and an item with none
    return matrix


def model(layers=3, **kwargs):
    torch.manual_seed(0)
    made = LightGCN(N, M, D, layers, **kwargs)
    made.set_interactions(sp.csr_matrix(interactions()))
    return made


def dense(matrix):
    """The (N+M, N+M) normalised adjacency."""
    whole = torch.zeros(N + M, N + M)
    whole[:N, N:] = torch.from_numpy(matrix)
    whole[N:, :N] = torch.from_numpy(matrix).T
    scale = whole.sum(1).pow(-0.5).nan_to_num(posinf=0.0)
    return scale[:, None] * whole * scale


def means(adjacency, table, layers):
    total, now = table, table
    for _ in range(layers):
        now = adjacency @ now
        total = total + now
    return total / (layers + 1)


def batch(seed=1, size=40):
    draw = np.random.default_rng(seed)
    return [torch.from_numpy(draw.integers(0, n, size)) for n in (N, M, M)]  # with repeats


def plain_loss(net, adjacency, users, positives, negatives):
    table = torch.cat([net.embedding_user.weight, net.embedding_item.weight])
    final = means(adjacency, table, net.num_layers)
    u, i, j = users, N + positives, N + negatives
    bpr = torch.nn.functional.softplus((final[u] * (final[j] - final[i])).sum(1)).mean()
    return bpr + net.decay / (2 * len(u)) * sum(table[x].square().sum() for x in (u, i, j))


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_loss_and_gradients_are_those_of_the_dense_formula(layers):
    net, columns = model(layers, decay=0.1), batch()
    expected = plain_loss(net, dense(interactions()), *columns)
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    got = net.loss(*columns)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(got, list(net.parameters())), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    table = torch.cat([net.embedding_user.weight, net.embedding_item.weight])
    assert torch.allclose(torch.cat(net.final_embeddings()), means(dense(interactions()), table, layers), atol=1e-6)


def test_it_equals_torch_geometric():
    net, columns = model(), batch()
    users, items = (torch.from_numpy(x.astype(np.int64)) for x in interactions().nonzero())
    edges = torch.stack([users, items + N])
    edges = torch.cat([edges, edges.flip(0)], 1)
    theirs = Theirs(N + M, D, 3)
    offprint.load_weights(net, theirs.state_dict())
    assert torch.allclose(torch.cat(net.final_embeddings()), theirs.get_embedding(edges), atol=1e-6)
    u, i, j = columns[0], columns[1] + N, columns[2] + N
    positive, negative = theirs(edges, torch.stack([u, i])), theirs(edges, torch.stack([u, j]))
    loss = theirs.recommendation_loss(positive, negative, torch.cat([u, i, j]), lambda_reg=net.decay / 2)
    assert net.loss(*columns).item() == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(net(columns[0], columns[1]), positive, atol=1e-6)
    before = torch.cat(net.final_embeddings())
    for given in (edges, edges[:, : len(users)]):
        net.set_edges(given)
        assert torch.equal(torch.cat(net.final_embeddings()), before)


def test_edge_dropout_drops_each_direction_by_itself():
    net, columns = model(edge_keep=0.6).train(), batch()
    torch.manual_seed(3)
    loss = net.loss(*columns)
    torch.manual_seed(3)
    edges = net.graph.dropped(0.6)
    assert 0.15 < (edges.to_users == 0).float().mean() < 0.65
    to_users = sp.csr_matrix((edges.to_users, net.graph.user_columns, net.graph.user_starts), shape=(N, M)).toarray()
    to_items = sp.csr_matrix((edges.to_items, net.graph.item_columns, net.graph.item_starts), shape=(M, N)).toarray()
    assert not np.allclose(to_users, to_items.T)
    adjacency = torch.zeros(N + M, N + M)
    adjacency[:N, N:], adjacency[N:, :N] = torch.from_numpy(to_users), torch.from_numpy(to_items)
    expected = plain_loss(net, adjacency, *columns)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    for a, b in zip(torch.autograd.grad(loss, list(net.parameters())), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    net.eval()
    assert net.loss(*columns).item() == model().loss(*columns).item()


def test_users_and_items_with_none_keep_a_share_of_their_own_row():
    net = model()
    users, items = net.final_embeddings()
    assert torch.allclose(users[3], net.embedding_user.weight[3] / 4) and torch.allclose(
        items[5], net.embedding_item.weight[5] / 4
    )
    empty = BipartiteGraph(sp.csr_matrix((N, M), dtype=np.float32))
    assert not empty.to_users(torch.ones(M, D)).any() and not empty.to_items(torch.ones(N, D)).any()


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_new_user_is_one_more_row(layers):
    net = model(layers)
    own = sp.csr_matrix(interactions()[[7, 3]])
    got = net.fold_in(own)
    assert got.shape == (2, D) and not got[1].any()
    if layers == 0:
        assert torch.allclose(got[0], net.embedding_item.weight[own[0].indices].sum(0) / own[0].nnz ** 0.5, atol=1e-6)
        return
    table = torch.cat([net.embedding_user.weight, net.embedding_item.weight]).detach()
    adjacency, total = dense(interactions()), torch.zeros(D)
    for _ in range(layers):  # user 7's row of the propagated items, without its own layer 0
        total += (adjacency @ table)[7]
        table = adjacency @ table
    assert torch.allclose(got[0], total / (layers + 1), atol=1e-6)


def test_copies_and_files(tmp_path):
    net = model()
    assert set(net.state_dict()) == {"embedding_user.weight", "embedding_item.weight"}
    expected = torch.cat(net.final_embeddings())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(torch.cat(other.final_embeddings()), expected)


def test_dialects():
    users, items = torch.randn(N, D), torch.randn(M, D)
    joint = torch.cat([users, items])
    for state in (
        {"embedding_user.weight": users, "embedding_item.weight": items},
        {"embedding.weight": joint, "alpha": torch.full((4,), 0.25)},
        {"user_embedding": users, "item_embedding": items},
        {"weights/user_embedding:0": users, "weights/item_embedding:0": items},
        {"user_embedding.weight": users, "item_embedding.weight": items},
    ):
        net = model()
        offprint.load_weights(net, state)
        assert torch.equal(net.embedding_user.weight, users) and torch.equal(net.embedding_item.weight, items)
    with pytest.raises(CheckpointError, match="num_layers=1"):
        offprint.load_weights(model(), {"embedding.weight": joint, "alpha": torch.full((2,), 0.5)})
    with pytest.raises(CheckpointError, match="takes the mean of 4"):
        offprint.load_weights(model(), {"embedding.weight": joint, "alpha": torch.tensor([0.4, 0.2, 0.2, 0.2])})
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(LightGCN(N + 1, M, D), {"embedding.weight": joint})


def test_variants():
    sizes = {"gowalla": 4533696, "yelp2018": 4461824, "amazon_book": 9231488, "lastfm": 408384}
    for name in VARIANTS:
        with torch.device("meta"):
            built = offprint.create_model(name)
        data, layers = ("lastfm", 3) if name == "lightgcn" else (name.removeprefix("lightgcn_")[:-3], int(name[-1]))
        assert sum(p.numel() for p in built.parameters()) == sizes[data] and built.num_layers == layers


def test_refusals():
    with pytest.raises(OffprintError, match="give the numbers of users and of items"):
        offprint.create_model("lightgcn", num_users=0)
    with pytest.raises(OffprintError, match="edge_keep above 0"):
        LightGCN(N, M, edge_keep=0.0)
    with pytest.raises(OffprintError, match="call set_interactions"):
        LightGCN(N, M).final_embeddings()
    net = model()
    with pytest.raises(OffprintError, match=r"17 users and 23 items, got a matrix of \(23, 17\)"):
        net.set_interactions(sp.csr_matrix(interactions().T))
    with pytest.raises(OffprintError, match="not negative"):
        net.set_interactions(sp.csr_matrix(-interactions()))
    with pytest.raises(OffprintError, match="must join a user"):
        net.set_edges(torch.tensor([[0, 1], [20, 2]]))
