"""Computation follows the precision of its features: tables are exact in it, made once for each, and float32 pays nothing."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric

import offprint
from offprint.errors import OffprintError
from offprint.models.graphs.lightgcn import LightGCN
from offprint.models.graphs.ultragcn import UltraGCN
from offprint.nn.connectivity import adjacency, dynamic_fc
from offprint.nn.dice import dice_loss, dice_scores, mean_dice
from offprint.nn.graph import NormalizedAdjacency
from offprint.nn.message_flow import Block
from offprint.nn.precision import ExactTables, wide, wide_dtype
from offprint.nn.sliding import sliding_window

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])


def interactions(users=9, items=11, seed=0):
    dense = np.random.default_rng(seed).random((users, items)) < 0.4
    dense[:, 0] = dense[0] = True
    return sp.csr_matrix(dense.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "wider"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.int64, torch.float32),
     (torch.float32, torch.float32), (torch.float64, torch.float64)],
)  # fmt: skip
def test_wide_is_float32_at_least(kind, wider):
    assert wide_dtype(kind) == wider and wide(torch.ones(2).to(kind)).dtype == wider
    x = torch.ones(2, dtype=wider)
    assert wide(x) is x


# tables that a module holds


class Third(ExactTables):
    def __init__(self, like=None):
        super().__init__()
        self.keep_table("third", torch.tensor([1 / 3], dtype=torch.float64), like)


def test_a_table_is_exact_in_every_precision():
    model = torch.nn.Sequential(Third())
    assert model[0].third.dtype == torch.float32
    for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float64):
        model.to(kind)
        assert torch.equal(model[0].third, torch.tensor([1 / 3], dtype=torch.float64).to(kind))
    assert Third(torch.ones(1, dtype=torch.float64)).third.dtype == torch.float64
    assert model.state_dict() == {} and len(list(model.buffers())) == 1


def test_a_table_is_copied_and_pickled_with_its_exact_values():
    for twin in (copy.deepcopy(Third()), pickle.loads(pickle.dumps(Third()))):
        assert float(twin.double().third) == 1 / 3


@pytest.mark.parametrize("order", ["graph first", "double first"])
def test_lightgcn_in_double_whenever_it_is_moved(order):
    train = interactions()
    model = LightGCN(9, 11, 8, 3)
    if order == "graph first":
        model.set_interactions(train)
        model.double()
    else:
        model.double().set_interactions(train)
    r = torch.from_numpy(train.toarray()).double()
    a = torch.zeros(20, 20, dtype=torch.float64)
    a[:9, 9:], a[9:, :9] = r, r.t()
    scale = a.sum(1).clamp(min=1) ** -0.5
    a = scale[:, None] * a * scale
    layers = [torch.cat([model.embedding_user.weight, model.embedding_item.weight]).detach()]
    for _ in range(3):
        layers.append(a @ layers[-1])
    assert torch.allclose(torch.cat(model.final_embeddings()), torch.stack(layers).mean(0), rtol=1e-14, atol=1e-15)
    users, items = torch.tensor([0, 3, 3]), torch.tensor([1, 2, 10])
    loss = model.loss(users, items, torch.tensor([4, 5, 6]))
    loss.backward()
    assert loss.dtype == torch.float64 and torch.isfinite(model.embedding_user.weight.grad).all()
    assert model.fold_in(train[:2]).dtype == torch.float64


def test_ultragcn_in_double():
    train, model = interactions(), UltraGCN(9, 11, 8, num_neighbours=3, num_negatives=2)
    model.set_interactions(train)
    single = model.beta_user.clone()
    model.double()
    degree = torch.from_numpy(train.toarray()).double().sum(1)
    exact = (degree + 1).sqrt() / degree
    assert torch.allclose(model.beta_user, exact, rtol=1e-15, atol=0)
    assert torch.equal(single, exact.float())
    assert model.fold_in(train[:2]).dtype == torch.float64
    assert model.loss(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([[1, 2], [3, 4]])).dtype == torch.float64


# tables that follow from a graph


def test_a_graph_is_normalised_once_for_each_precision():
    layer = NormalizedAdjacency()
    single, double = layer(EDGES, 4), layer(EDGES, 4, dtype=torch.float64)
    assert layer(EDGES, 4) is single and layer(EDGES, 4, dtype=torch.float64) is double
    assert layer(EDGES, 4, dtype=torch.bfloat16) is single
    assert double.matrix.values().tolist() == pytest.approx([1 / 3] * 12, rel=1e-15)
    x = torch.randn(4, 2)
    assert single.matmul(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(double.matmul(x.double()).float(), single.matmul(x), atol=1e-6)


def test_a_block_is_made_once_for_each_precision():
    block = Block([EDGES], 4)
    for make in (block.normalized, block.mean):
        assert make() is make(torch.float32) is make(torch.float16)
        assert make(torch.float64) is make(torch.float64)
        assert make(torch.float64).matrix.dtype == torch.float64


@pytest.mark.parametrize("operator", ["gcn", "sage", "gat"])
@pytest.mark.parametrize(
    "method", ["sf", "sf_top2loss", "sf_top2input", "ff_la", "ff_vn", "link_fl", "link_fl_topdown"]
)
def test_forward_gnn_in_double(operator, method):
    torch.manual_seed(0)
    model = offprint.create_model(
        f"forward_{method}", in_channels=5, hidden_channels=8, num_layers=2, num_classes=3, operator=operator
    )
    x, pairs = torch.randn(4, 5), torch.tensor([[0, 1], [2, 3]])
    told = () if method.startswith("link") else (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    wanted = pairs if method.startswith("link") else torch.tensor([3])
    single = model.contributions(x, EDGES, wanted, *told)
    got = model.double().contributions(x.double(), EDGES, wanted, *told)
    assert got.dtype == torch.float64 and torch.allclose(got.float(), single, atol=1e-5)


# correlations


def test_correlations_are_symmetric_and_those_of_numpy():
    series = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 60, 9)))
    fc = dynamic_fc(series, 20, 10)
    assert torch.equal(fc, fc.mT) and torch.equal(adjacency(fc), adjacency(fc).mT)
    for w, start in enumerate(range(0, 40, 10)):
        assert np.allclose(fc[1, w], np.corrcoef(series[1, start : start + 20].T), atol=1e-14)
    assert dynamic_fc(series.float(), 20, 10).dtype == torch.float32
    still = series.clone()
    still[:, :, 4] = 3.0
    assert (dynamic_fc(still, 20, 10)[:, :, 4] == 0).all()


# Dice, and windows over a volume


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_dice_is_monais(kind):
    torch.manual_seed(0)
    logits, target = torch.randn(3, 2, 5, 4, 6, dtype=kind), (torch.rand(3, 2, 5, 4, 6) > 0.7).to(kind)
    assert torch.allclose(dice_loss(logits, target), DiceLoss(sigmoid=True)(logits, target))
    other = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
    ours = dice_loss(logits, target, squared=True, smooth_numerator=0, smooth_denominator=1e-6)
    assert torch.allclose(ours, other(logits, target))
    target[1, 0] = 0
    metric = DiceMetric(reduction="mean_batch", get_not_nans=True)
    metric((logits > 0).to(kind), target)
    expected, counted = metric.aggregate()
    mean, count = mean_dice(logits > 0, target)
    assert torch.allclose(mean.float(), expected.float()) and count.tolist() == counted.tolist() == [2, 3]
    assert mean.dtype == kind and dice_scores(logits > 0, target)[1, 0].isnan()


def test_dice_of_images_and_of_nothing():
    target = torch.zeros(1, 1, 4, 4)
    assert dice_scores(target, target).isnan().all()
    assert float(dice_loss(torch.full_like(target, -40.0), target)) == pytest.approx(0, abs=1e-6)
    target[..., :2] = 1
    assert float(dice_scores(target, target)) == 1 and float(dice_scores(1 - target, target)) == 0


def blurred(x):
    return torch.cat([F.avg_pool3d(x, 3, 1, 1), x - x.mean((2, 3, 4), keepdim=True)], 1)


@pytest.mark.parametrize("sides", [(12, 9, 14), (6, 10, 6), (5, 7, 30)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("sigma", [None, 0.125])
def test_sliding_windows_are_monais(sides, overlap, sigma):
    volume, roi = torch.randn(2, 1, *sides, dtype=torch.float64), (6, 10, 6)
    mode = {} if sigma is None else {"mode": "gaussian", "sigma_scale": sigma}
    expected = sliding_window_inference(volume, roi, 1, blurred, overlap=overlap, **mode)
    got = sliding_window(blurred, volume, roi, overlap, sigma=sigma)
    assert got.shape == (2, 2, *sides) and torch.allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_one_window_is_the_plain_call():
    model = offprint.create_model("swin_unetr_tiny", in_chans=1, num_classes=2).eval()
    x = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        assert torch.allclose(model.segment(x, (32, 32, 64)), model(x), atol=1e-6)
    assert model.segment(torch.randn(1, 1, 40, 20, 64), (32, 32, 64)).shape == (1, 2, 40, 20, 64)


@pytest.mark.parametrize(
    ("roi", "overlap", "says"),
    [((6, 6), 0.5, r"a window of \(6, 6\).*one length for each side"), ((6, 6, 0), 0.5, "does not fit"),
     ((6, 6, 6), 1.0, "overlap=1.0; windows overlap by a share"), ((6, 6, 6), -0.1, "overlap=-0.1")],
)  # fmt: skip
def test_windows_that_cannot_slide(roi, overlap, says):
    with pytest.raises(OffprintError, match=says):
        sliding_window(blurred, torch.randn(1, 1, 8, 8, 8), roi, overlap)


@pytest.mark.parametrize(
    "name", ["cfsr_x2", "swinv2_tiny", "hornet_tiny_gf", "swin_unetr_tiny", "lightgcn", "ghostnetv2_100"]
)
def test_a_model_built_in_double_holds_nothing_else(name):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = offprint.create_model(name)
    finally:
        torch.set_default_dtype(before)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {v.dtype for v in tensors.values() if v.is_floating_point()} == {torch.float64}
