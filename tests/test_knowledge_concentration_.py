"""Knowledge concentration: losses in parts, heads and scales, teachers that do not fit, from runs to one run."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.errors import DataError, OffprintError
from offprint.methods.training.knowledge_concentration import (
    Concentrated,
    KnowledgeConcentration,
    SelfPacedScaling,
    StructurallyConnectedHead,
    ancestor_targets,
    concentrate,
    join_verticals,
    multi_teacher_targets,
    summed_sigmoid_loss,
    vertical_average_precision,
)

SIZES = (5, 3, 7)
TINY = {"width": 0.35, "settings": ((1, 16, 1, 1), (6, 24, 1, 2))}
FAST = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "reference_batch": 0, "input_size": 32, "warmup_epochs": 0}
QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}


# -- losses and heads
@pytest.mark.parametrize(
    "head,shared", [("fc12-fc6", 0), ("fc12-sc6", 0), ("fc12-sc6", 2), ("sc12-sc6", 0), ("fc12-sc6", 6)]
)
@pytest.mark.parametrize("scale", ["none", "vertical", "all"])
def test_the_loss_in_parts_is_the_loss_over_all(head, shared, scale):
    torch.manual_seed(0)
    scaling = None if scale == "none" else SelfPacedScaling(SIZES, norm_over="all" if scale == "all" else "vertical")
    net = StructurallyConnectedHead(8, SIZES, head, shared, scaling).double()
    x = torch.randn(4, 8, dtype=torch.double, requires_grad=True)
    places, values = torch.randint(15, (4, 3)), torch.rand(4, 3).double()
    dense = torch.zeros(4, 15).double().scatter_reduce(1, places, values, "amax")
    whole, (parts, each) = summed_sigmoid_loss(net(x), dense), net.loss(x, places, values)
    assert torch.allclose(whole, parts, atol=1e-10) and torch.allclose(each.sum(), parts)
    wanted = [p for p in net.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(whole, [x, *wanted]), torch.autograd.grad(parts, [x, *wanted]), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_weights_of_the_paper_s_heads():
    def weights(head, shared=0):
        with torch.device("meta"):
            net = StructurallyConnectedHead(1024, [5000] * 20, head, shared)
        return round(sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight")) / 1e6, 1)

    assert [weights("fc4096-fc512"), weights("sc512-sc512"), weights("fc4096-sc512"), weights("fc4096-sc512", 256)] == [
        57.5,
        66.9,
        97.3,
        77.4,
    ]


def test_without_a_scale_probabilities_cannot_leave_the_middle():
    logits = torch.randn(4, 15)
    flat = SelfPacedScaling(SIZES, start=1.0, noise=0.0, learn=False)
    assert 0.26 < float(flat(logits).sigmoid().min()) and not any(p.requires_grad for p in flat.parameters())
    paced = SelfPacedScaling(SIZES, noise=0.0)
    squares = torch.stack([v.square().mean() for v in paced(logits).split(list(SIZES), 1)])
    assert torch.allclose(squares, torch.ones(3), atol=1e-5)
    assert SelfPacedScaling(SIZES, "class").gamma.shape == (15,)
    assert torch.isfinite(paced(torch.zeros(1, 15))).all()


def test_class_biases_start_at_the_prior():
    net = StructurallyConnectedHead(8, SIZES, "fc4-sc4")
    net.start_at_prior()
    assert torch.allclose(net.out[2].bias.sigmoid(), torch.full((7,), 1 / 7), atol=1e-6)


def test_targets_keep_the_largest_and_unite_where_a_sample_has_two_verticals():
    logits = [torch.randn(2, n) for n in SIZES]
    one = multi_teacher_targets(logits, torch.tensor([0, 2]), 2)
    assert (one > 0).sum(1).tolist() == [2, 2] and (one[0, 5:] == 0).all() and (one[1, :8] == 0).all()
    assert (multi_teacher_targets(logits, torch.tensor([1, 1]), 100) > 0).sum(1).tolist() == [3, 3]
    both = multi_teacher_targets(logits, torch.tensor([[True, False, True], [False, True, False]]), 2)
    assert (both > 0).sum(1).tolist() == [4, 2]
    with pytest.raises(OffprintError, match="must agree"):
        multi_teacher_targets(logits, torch.ones(2, 2).bool())


def test_ancestors_are_labels_too():
    assert ancestor_targets(torch.tensor([2, 0]), {2: 1, 1: 0}, 4).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    with pytest.raises(OffprintError, match="circle"):
        ancestor_targets(torch.tensor([0]), {0: 1, 1: 0}, 2)


def test_average_precision_ranks_the_vertical_s_own_classes():
    scores = torch.tensor([[9.0, 0, 1, 2], [9, 0, 2, 1], [0, 9, 9, 9]])
    labels = torch.tensor([3, 2, 0])
    assert vertical_average_precision(scores, labels, [2, 3]) == pytest.approx(100)
    with pytest.raises(OffprintError, match="no sample"):
        vertical_average_precision(scores, labels, [1])


def test_heads_that_cannot_be_are_refused():
    for head, shared, words in (("sc4-fc4", 0, "expected fcA-fcB"), ("fc4", 0, "expected"), ("sc4-sc4", 1, "shared=1"), ("fc4-sc4", 5, "0 to 4 units")):  # fmt: skip
        with pytest.raises(OffprintError, match=words):
            StructurallyConnectedHead(8, SIZES, head, shared)
    net = StructurallyConnectedHead(8, SIZES, "fc4-sc4")
    order = [14, *range(14)]
    x = torch.randn(2, 8)
    assert torch.equal(Concentrated(net, order)(x)[:, 0], net(x)[:, 14])
    with pytest.raises(OffprintError, match="once"):
        Concentrated(net, [0] * 15)
    assert net.memory(64)["logits"] == 4 * 64 * 15


# -- teachers
def test_teachers_that_do_not_make_up_the_data_are_named():
    sizes, order, places = join_verticals([["b", "a"], ["c"]], ["a", "b", "c"], ["A", "B"])
    assert (sizes, order, places) == ([2, 1], [1, 0, 2], [[0, 1], [2]])
    with pytest.raises(DataError, match="1 classes belong to more than one teacher .b."):
        join_verticals([["a", "b"], ["b", "c"]], ["a", "b", "c"], ["A", "B"])
    assert join_verticals([["a", "b"], ["b", "c"]], ["a", "b", "c"], ["A", "B"], "max")[2] == [[0, 1], [1, 2]]
    with pytest.raises(DataError, match="no teacher knows 1 of the data's 3 classes: d"):
        join_verticals([["a"], ["b"]], ["a", "b", "d"], ["A", "B"])
    with pytest.raises(DataError, match="no pictures of 1 classes of the teachers: c"):
        join_verticals([["a"], ["b", "c"]], ["a", "b"], ["A", "B"])
    with pytest.raises(DataError, match="B has no class that an earlier teacher has not"):
        join_verticals([["a", "b"], ["b"]], ["a", "b"], ["A", "B"], "max")
    with pytest.raises(OffprintError, match="two teachers or more"):
        KnowledgeConcentration(teachers=("a",)).settle(None)


def test_a_class_of_two_teachers_takes_the_larger_probability():
    method = KnowledgeConcentration(teachers=("a", "b"), overlap="max")
    method.sizes, method.order, method.places = (2, 1), (0, 1, 2), [[0, 1], [1, 2]]
    fixed = lambda *row: lambda images: torch.tensor([row]).logit().expand(len(images), -1)  # noqa: E731
    classes, values = method.targets([fixed(0.2, 0.6), fixed(0.9, 0.3)], torch.zeros(2, 1, 4, 4), torch.tensor([1, 0]))
    assert sorted(zip(classes[0].tolist(), values[0].round(decimals=4).tolist(), strict=True)) == [(0, pytest.approx(0.2)), (1, pytest.approx(0.6)), (1, pytest.approx(0.9)), (2, pytest.approx(0.3))]  # fmt: skip
    assert values[1, 2:].tolist() == [0, 0]  # the second sample is of the first teacher alone
    head = StructurallyConnectedHead(3, (2, 1), "fc4-sc4")
    x = torch.randn(2, 3)
    dense = torch.tensor([[0.2, 0.9, 0.3], [0.2, 0.6, 0.0]])
    assert torch.allclose(head.loss(x, classes, values)[0], summed_sigmoid_loss(head(x), dense), atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two specialists of two classes each."""
    root = tmp_path_factory.mktemp("verticals")
    draw = np.random.default_rng(0)
    found = []
    for v, names in enumerate((("wren", "owl"), ("oak", "elm"))):
        for c, name in enumerate(names):
            folder = root / f"data{v}" / name
            folder.mkdir(parents=True)
            for i in range(5):
                array = draw.integers(0, 60, (32, 32, 3)) + np.array([60 * c + 90 * v, 40 * c, 120 * v])
                Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        offprint.train(
            "mobilenetv2_100",
            root / f"data{v}",
            root / f"run{v}",
            recipe=FAST,
            model_options=dict(TINY),
            methods=["specialist"],
            **QUIET,
        )
        found.append(root / f"run{v}")
    return found


def test_from_specialists_to_one_network(runs, tmp_path):
    told = []
    done, rows = concentrate(
        runs, "mobilenetv2_100", out=tmp_path / "one", say=told.append, method={"head": "fc16-sc8"}, recipe=FAST,
        model_options=dict(TINY), **QUIET,
    )  # fmt: skip
    assert any("2 verticals, 4 classes: the head has" in line for line in told)
    assert [r["classes"] for r in rows] == [2, 2] and all(0 <= r["student_ap"] <= 100 for r in rows)
    ready = offprint.load_run(tmp_path / "one")  # the teachers are not needed
    assert sorted(ready.about["classes"]) == ["elm", "oak", "owl", "wren"]
    picture = next((runs[0].parent / "data0" / "owl").glob("*.png"))
    assert len(ready.predict(picture)) == 1
    head = ready.model.get_submodule(ready.model.classifier)
    assert isinstance(head, Concentrated) and isinstance(head.head.fc2, nn.ModuleList)


def test_the_verb_says_what_does_not_fit(runs, tmp_path):
    cli = CliRunner().invoke(
        app, ["concentrate", "-t", str(runs[0]), "-m", "mobilenetv2_100", "--out", str(tmp_path / "a")]
    )
    assert cli.exit_code != 0 and "two teachers or more" in str(cli.exception)
    cli = CliRunner().invoke(app, ["concentrate", "-t", str(runs[0]), "-t", str(runs[0]), "-m", "mobilenetv2_100", "--out", str(tmp_path / "a")])  # fmt: skip
    assert cli.exit_code != 0 and "more than one teacher" in str(cli.exception)
