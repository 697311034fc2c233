"""What is NASNet's own: cells as data, TensorFlow's paddings, ScheduledDropPath, dialects, and the search."""

import copy
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint.errors import OffprintError
from offprint.methods.search.nasnet_search import Controller, SearchSpace, search
from offprint.models.backbones.nasnet import (
    COMBINATIONS,
    GENOTYPES,
    OPERATIONS,
    Cell,
    FactorizedReduction,
    Genotype,
    Norms,
    Pool,
    SameConv2d,
)

SMALL = {"num_cells": 1, "filters": 4, "stem_filters": 6}
NORMS = Norms(1e-3, 0.1)


def small(name="nasnet_a_cifar", **kwargs):
    torch.manual_seed(0)
    return offprint.create_model(name, **{**SMALL, **kwargs}).eval()


def cells(normal=None, reduce=None):
    """A genotype in JSON form, one block a cell unless given."""
    block = [[0, "sep_conv_3x3", 1, "identity", "add"]]
    return {"normal": {"blocks": normal or block}, "reduce": {"blocks": reduce or block}}


def shuffle_norms(model):
    """Running statistics and scales that are not the trivial ones."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return model


# -- cells as data ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("genotype", "says"),
    [
        (cells([[0, "sep_conv_4x4", 1, "identity"]]), "unknown operation in the normal cell, block 0.*sep_conv_3x3"),
        (cells([[0, "identity", 2, "identity"]]), "block 0 reads hidden state 2, which does not exist yet.*acyclic"),
        (cells(reduce=[[0, "identity", 1, "identity"], [3, "identity", 0, "identity"]]), "reduce cell, block 1 .* state 3"),
        (cells([[-1, "identity", 1, "identity"]]), "hidden state -1"),
        (cells([[True, "identity", 1, "identity"]]), "hidden state True"),
        (cells([[0, "identity", 1, "identity", "multiply"]]), "unknown combination.*'multiply'"),
        (cells([[0, "identity", 1]]), "expected \\[state, operation"),
        (cells(["block"]), "expected \\[state, operation"),
        ({"normal": {"blocks": []}, "reduce": cells()["reduce"]}, "normal cell has no blocks"),
        ({"normal": {"blocks": cells()["normal"]["blocks"], "concat": [1, 1]}, "reduce": cells()["reduce"]}, "concat \\[1, 1\\]"),
        ({"normal": {"blocks": cells()["normal"]["blocks"], "concat": [7]}, "reduce": cells()["reduce"]}, "0 to 2"),
        ({"normal": {"blocks": cells()["normal"]["blocks"], "concat": [0]}, "reduce": cells()["reduce"]}, "nothing reads block 0"),
        ({"normal": cells()["normal"]}, "'normal' and 'reduce'"),
        ({"normal": {"block": []}, "reduce": {}}, "expected {'blocks'"),
        ([1, 2], "'normal' and 'reduce'"),
        ("nasnet_b", "unknown genotype.*nasnet_a"),
        ("none.json", "no genotype at 'none.json'"),
    ],
)  # fmt: skip
def test_refused_genotypes(genotype, says):
    with pytest.raises(OffprintError, match=says):
        small(genotype=genotype)


def test_a_damaged_genotype_file_is_refused(tmp_path):
    (tmp_path / "g.json").write_text("{")
    with pytest.raises(OffprintError, match="not JSON"):
        Genotype.of(tmp_path / "g.json")


def test_unread_states_are_the_output_by_default():
    found = Genotype.of(cells([[0, "identity", 0, "identity"], [2, "identity", 0, "identity"]])).normal
    assert found.concat == (1, 3)
    given = GENOTYPES["nasnet_a"]
    assert Genotype.of(given) == given == Genotype.of(json.loads(json.dumps(given.to_dict())))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_in_both_cells(operation):
    """Builds, keeps or halves odd and even sizes, and deploys to the same output."""
    one = [[0, operation, 1, "identity", "concat"], [2, operation, 2, "max_pool_3x3", "add"]]
    model = shuffle_norms(small(genotype=cells(one, one), filters=2, num_classes=3))
    for size in (20, 23):
        x = torch.randn(1, 3, size, size)
        maps = model.forward_pyramid(x)
        assert [m.shape[2] for m in maps] == [size, -(-size // 2), -(-size // 4)]
        merged = offprint.deploy(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())


def test_another_genotype_is_another_network(tmp_path):
    other = cells([[0, "conv_3x3", 1, "max_pool_5x5", "concat"], [2, "dil_conv_3x3", 1, "conv_1x7_7x1", "add"]])
    (tmp_path / "g.json").write_text(json.dumps({"genotype": other, "reward": 0.5}))
    x = torch.randn(2, 3, 32, 32)
    a, b, c = small(), small(genotype=other), small(genotype=str(tmp_path / "g.json"))
    assert a.num_features == 24 * 4 and b.num_features == 4 * 4 and not torch.allclose(a(x), b(x))
    assert torch.equal(b(x), c(x))
    assert json.loads(json.dumps(c.spec))["kwargs"]["genotype"] == Genotype.of(other).to_dict()
    with pytest.raises(OffprintError, match="at least 1"):
        small(num_cells=0)
    with pytest.raises(AttributeError, match="spec|by name"):
        type(a)(filters=4).spec  # noqa: B018


def test_unread_inputs_of_a_reduction_are_halved_into_its_output():
    """A state that no block reads is part of the output; in a Reduction cell, at its size and width."""
    only_input = [[0, "sep_conv_3x3", 0, "max_pool_3x3", "add"]]
    model = small(genotype=cells(only_input, only_input))
    assert Genotype.of(cells(only_input)).normal.concat == (1, 2)
    maps = model.forward_pyramid(torch.randn(1, 3, 18, 18))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 18, 18), (16, 9, 9), (32, 5, 5)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nasnet_a_mobile", 5_289_978),
        ("nasnet_a_large", 88_753_150),
        ("nasnet_a_cifar", 3_346_538),
        ("nasnet_a_cifar_large", 32_590_954),
        ("nasnet_a_5_1538", 12_263_416),
        ("nasnet_a_7_1920", 24_613_292),
    ],
)
def test_parameters(name, count):
    with torch.device("meta"):
        model = offprint.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_what_a_cell_after_a_reduction_sees():
    """Large: what the Reduction cell saw as previous; mobile and CIFAR: the Reduction cell's input (the same size or twice)."""
    torch.manual_seed(0)
    seen = {}
    for skip in (False, True):
        model = small(num_cells=2, skip_reduction=skip)
        outputs = {}
        for name in model.steps:
            getattr(model, name).register_forward_hook(
                lambda m, i, o, n=name, kept=outputs: kept.update({n: (i[1].clone(), o.clone())})
            )
        model(torch.randn(1, 3, 16, 16))
        for name, (_, output) in outputs.items():
            if torch.equal(F.relu(output), F.relu(outputs["cell_2"][0])):
                seen[skip] = name
        assert torch.equal(F.relu(outputs["cell_3"][0]), F.relu(outputs["reduction_cell_0"][1]))
    assert seen == {False: "cell_1", True: "cell_0"}


# -- paddings --------------------------------------------------------------------------------------------------------
def _same_by_hand(x, kernel, stride, value=0.0):
    """SAME padding written out: enough for ceil(n / s) windows, the smaller half first."""
    pads = []
    for n in reversed(x.shape[2:]):
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 11), (2, 3)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding(size, kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size) - 3  # negative: a zero of padding would win a maximum
    conv = SameConv2d(4, 4, (kernel, kernel), (stride, stride), groups=4)
    expected = F.conv2d(_same_by_hand(x, kernel, stride), conv.weight, stride=stride, groups=4)
    assert torch.allclose(conv(x), expected, atol=1e-5)
    expected = F.max_pool2d(_same_by_hand(x, kernel, stride, -torch.inf), kernel, stride)
    assert torch.equal(Pool(4, 4, NORMS, "max", kernel, stride)(x), expected)
    ones = F.avg_pool2d(_same_by_hand(torch.ones_like(x), kernel, stride), kernel, stride)
    expected = F.avg_pool2d(_same_by_hand(x, kernel, stride), kernel, stride) / ones
    assert torch.allclose(Pool(4, 4, NORMS, "avg", kernel, stride)(x), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 11)])
def test_factorized_reduction(size):
    """The second path starts at (1, 1) and runs into a zero row and column past the end."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size)
    module = shuffle_norms(FactorizedReduction(4, 7, NORMS)).eval()
    shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
    paths = [F.conv2d(m[:, :, ::2, ::2], p.conv.weight) for m, p in ((x, module.path_1), (shifted, module.path_2))]
    expected = module.final_path_bn(torch.cat(paths, 1))
    assert torch.allclose(module(x), expected, atol=1e-5)
    module.merge()
    assert torch.allclose(module(x), expected, atol=1e-5)


# -- ScheduledDropPath and the side classifier -----------------------------------------------------------------------
def test_scheduled_drop_path_rises_and_resumes():
    torch.manual_seed(0)
    model = small(drop_path_rate=0.6, drop_path_steps=4).train()
    plain = small().train()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(3, 3, 16, 16)
    assert torch.allclose(model(x), plain(x), atol=1e-5)  # nothing is dropped in the first step
    assert [float(model._progress(torch.float32)) for _ in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert model.eval()._progress(torch.float32) is None
    again = small(drop_path_rate=0.6, drop_path_steps=4).train()
    again.load_state_dict(model.state_dict())
    assert int(again.drop_path_step) == 6 and float(again._progress(torch.float32)) == 1
    offprint.load_weights(small(), model.state_dict())  # a file with the counter fits a model without
    drops = [getattr(model, name).drop for name in model.steps]
    assert drops == pytest.approx([0.6 * (c + 1) / 5 for c in range(5)])
    with pytest.raises(OffprintError, match="drop_path_rate=1"):
        small(drop_path_rate=1.0)


def test_operations_are_dropped_per_sample_and_identities_never():
    torch.manual_seed(0)
    table = Genotype.of(cells([[0, "max_pool_3x3", 1, "identity", "concat"]])).normal
    cell = Cell(table, 4, 4, 4, NORMS, prev="first", drop=0.5)
    cell.conv_1x1 = nn.Identity()
    x = torch.rand(4000, 4, 2, 2) + 0.5
    pooled, identity = cell(x, x, torch.tensor(1.0)).split(4, 1)
    assert torch.equal(identity, x)
    ratio = (pooled / F.max_pool2d(x, 3, 1, 1)).flatten(1)
    assert torch.allclose(
        ratio, ratio[:, :1].expand_as(ratio), atol=1e-5
    )  # a sample's path is kept or dropped as a whole
    assert ratio.unique().round(decimals=4).unique().tolist() == [0, 2]
    assert float(ratio.mean()) == pytest.approx(1, abs=0.07)


def test_side_classifier():
    model = small(aux=True, num_classes=7)
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    logits, side = model.train()(x)
    assert logits.shape == side.shape == (2, 7) and model.aux_weight == 0.4
    side.sum().backward()
    assert model.cell_1.conv_1x1.conv.weight.grad is not None and model.cell_2.conv_1x1.conv.weight.grad is None
    model.reset_classifier(3)
    assert [o.shape for o in model(x)] == [(2, 3), (2, 3)]
    without = small(num_classes=7)
    report = offprint.load_weights(small(aux=True, num_classes=7), without.state_dict())
    assert all(name.startswith("aux.") for name in report.fresh) and report.fresh
    with pytest.raises(OffprintError, match="num_classes above 0"):
        small(aux=True, num_classes=0)


def test_the_training_task_tells_the_model_its_steps(tmp_path):
    from offprint.tasks.classification import train_classifier

    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "data" / label / f"{i}.png"
            )
    told = []

    class Watch(Callback):
        def on_train_end(self, trainer, module):
            told.append((module.model.drop_path_steps, int(module.model.drop_path_step), module.model.drop_path_rate))

    train_classifier(
        "nasnet_a_cifar", str(tmp_path / "data"), tmp_path / "run", progress=False, logger="none", callbacks=(Watch(),),
        overrides={"epochs": 2, "batch_size": 6, "input_size": 16}, model_options={**SMALL, "filters": 2, "aux": True},
    )  # fmt: skip
    assert told == [(4, 4, 0.4)]  # two epochs of two batches, at the recipe's rate


# -- dialects --------------------------------------------------------------------------------------------------------
def test_equals_timm_once_its_strided_averages_leave_the_padding_out():
    from timm.models.nasnet import NASNetALarge

    torch.manual_seed(0)
    theirs = shuffle_norms(NASNetALarge(num_classes=5, stem_size=16, channel_multiplier=2, num_features=192)).eval()
    for cell in (theirs.cell_stem_0, theirs.cell_stem_1, theirs.reduction_cell_1):
        cell.comb_iter_2_left = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    theirs.reduction_cell_0.comb_iter_2_left = nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)
    ours = offprint.create_model("nasnet_a_large", num_classes=5, filters=8, stem_filters=16).eval()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "cadene"
    x = torch.randn(1, 3, 75, 75)
    a, b = ours(x), theirs(x)
    assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_files_with_a_background_class():
    model = small("nasnet_a_mobile", num_classes=1000)
    state = dict(model.state_dict())
    for name in ("last_linear.weight", "last_linear.bias"):
        state[name] = torch.cat([torch.full_like(state[name][:1], 9.0), state[name]])
    again = small("nasnet_a_mobile", num_classes=1000)
    offprint.load_weights(again, state)
    assert torch.equal(again.last_linear.weight, model.last_linear.weight)


def _tensorflow(name, value):
    """The authors' variable for one of our tensors, written from the scopes of their builder."""
    kinds = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    *path, leaf = name.split(".")
    norm = "bn" in path[-1]
    leaf = (
        kinds.get(leaf)
        or ({"weight": "gamma", "bias": "beta"} if norm else {"weight": "weights", "bias": "biases"})[leaf]
    )
    if value.ndim == 4:
        depthwise = path[-1] == "depthwise_conv2d"
        leaf = "depthwise_weights" if depthwise else "pointwise_weights" if path[-1] == "pointwise_conv2d" else leaf
        value = value.permute(2, 3, 0, 1) if depthwise else value.permute(2, 3, 1, 0)
    value = value.t() if value.ndim == 2 else value
    scope = "/".join(path)
    for ours, theirs in (
        ("conv0/conv", "conv0"), ("conv0/bn", "conv0_bn"), ("last_linear", "final_layer/FC"),
        ("aux/fc", "aux_1/aux_logits/FC"), ("aux/conv", "aux_1/aux_logits/Conv"), ("aux/", "aux_1/aux_logits/"),
        ("conv_1x1/conv", "1x1"), ("conv_1x1/bn", "beginning_bn"),
        ("conv_prev_1x1/conv", "prev_1x1"), ("conv_prev_1x1/bn", "prev_bn"),
        ("conv_prev_1x1/path_1/conv", "path1_conv"), ("conv_prev_1x1/path_2/conv", "path2_conv"),
        ("conv_prev_1x1/final_path_bn", "final_path_bn"),
        ("cell_output_1/conv", "cell_output/reduction_1/path_conv"), ("cell_output_1/bn", "cell_output/reduction_1/path_bn"),
    ):  # fmt: skip
        scope = scope.replace(ours, theirs)
    scope = re.sub(r"(comb_iter_\d)_(left|right)", r"\1/\2", scope)
    scope = re.sub(r"(right|left)/(?:project/)?conv$", r"\1/1x1", scope)
    scope = re.sub(r"(right|left)/(?:project/)?bn$", r"\1/bn_1", scope)
    if "separable" in scope or "bn_sep" in scope:
        scope = re.sub(r"separable_(\d)/\w+$", r"separable_3x3_\1", scope)
        scope = re.sub(r"bn_sep_(\d)$", r"bn_sep_3x3_\1", scope)
    return f"{scope}/{leaf}", value.contiguous()


@pytest.mark.parametrize("name", ["nasnet_a_mobile", "nasnet_a_cifar"])
def test_the_authors_tensorflow_variables(name):
    source = shuffle_norms(small(name, num_classes=4, aux=True, filters=8))
    state = dict(_tensorflow(k, v) for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked"))
    assert (
        "cell_1/comb_iter_0/left/separable_3x3_1/depthwise_weights" in state
        and "aux_1/aux_logits/proj/weights" in state
    )
    averaged = {f"{k}/ExponentialMovingAverage": v for k, v in state.items()}
    file = {**{k: torch.zeros_like(v) for k, v in state.items()}, **averaged, "conv0/weights/RMSProp": torch.ones(3)}
    for given in (state, file):
        again = small(name, num_classes=4, aux=True, filters=8)
        assert offprint.load_weights(again, given).dialect == "tensorflow"
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(again(x), source(x))


# -- search ----------------------------------------------------------------------------------------------------------
SPACE = SearchSpace(2, ("identity", "max_pool_3x3", "sep_conv_3x3"), ("add",))


def separable(genotype):
    """A reward known exactly: the share of separable convolutions."""
    ops = [op for cell in genotype for b in cell.blocks for op in (b.left_op, b.right_op)]
    return sum(op == "sep_conv_3x3" for op in ops) / len(ops)


def test_the_space():
    space = SearchSpace()
    assert len(space.choices()) == 50 and space.operations == tuple(OPERATIONS) and space.combinations == COMBINATIONS
    rows = space.sample(300, torch.Generator().manual_seed(0))
    for column, (_, options) in zip(rows.T, space.choices(), strict=True):
        assert sorted(column.unique().tolist()) == list(range(options))
    for row in rows[:20]:
        space.genotype(row)
    assert SPACE.size == (2 * 2 * 3 * 3 * 3 * 3 * 3 * 3) ** 2
    with pytest.raises(OffprintError, match="sep_conv_3x3"):
        SearchSpace(operations=("sep_conv_3",))
    with pytest.raises(OffprintError, match="at least one"):
        SearchSpace(blocks=0)


def test_the_controller_is_a_distribution_over_cells():
    """Log-probabilities of all choices of a tiny space sum to one, and are those it samples by."""
    space = SearchSpace(1, ("identity", "max_pool_3x3"), ("add",))
    torch.manual_seed(0)
    controller = Controller(space)
    every = torch.cartesian_prod(*(torch.arange(n) for _, n in space.choices()))
    logp, entropy = controller(every)
    p = logp.sum(1).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4) and len(every) == space.size == 256
    assert float((p * entropy.sum(1)).sum()) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-3)
    with torch.no_grad():
        controller.heads["operation"].bias += torch.tensor([2.0, 0.0])
    rows = controller.sample(4000, torch.Generator().manual_seed(0))
    expected = (controller(every)[0].sum(1).exp()[:, None] * every).sum(0)
    assert torch.allclose(rows.float().mean(0), expected, atol=0.04)
    start = [p.detach() for p in Controller(SearchSpace()).parameters()]
    assert max(float(p.abs().max()) for p in start) <= 0.1


def test_the_controller_learns_and_random_search_does_not():
    ppo = search(separable, evaluations=400, space=SPACE)
    random = search(separable, evaluations=400, space=SPACE, strategy="random")
    assert sum(ppo.rewards[-40:]) / 40 > sum(random.rewards[-40:]) / 40 + 0.25
    assert ppo.entropy[-1] < ppo.entropy[0] and not random.entropy
    rewards = [reward for reward, _ in ppo.top(10)]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] == ppo.reward == separable(ppo.best)
    assert len({g for _, g in ppo.top(10)}) == 10


class Flaky:
    """A noisy evaluator that is interrupted at its n-th call."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, genotype):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return separable(genotype) + 0.1 * float(torch.rand(()))


@pytest.mark.parametrize("strategy", ["ppo", "random"])
def test_an_interrupted_search_ends_like_an_uninterrupted_one(tmp_path, strategy):
    options = {"space": SPACE, "batch": 8, "strategy": strategy, "seed": 3}
    whole = search(Flaky(0), evaluations=60, **options)
    file = tmp_path / "s.state"
    for at in (3, 9, 14):  # within a batch, at a batch's first cells, and later
        with pytest.raises(KeyboardInterrupt):
            search(Flaky(at), evaluations=60, state=file, **options)
        assert file.exists() and not list(tmp_path.glob(".*"))
    search(Flaky(0), evaluations=44, state=file, **options)  # and extended
    evaluator = Flaky(0)
    again = search(evaluator, evaluations=60, state=file, **options)
    assert again.rewards == whole.rewards and torch.equal(again.choices, whole.choices)
    assert again.entropy == whole.entropy and evaluator.calls <= 16
    done = Flaky(1)
    assert search(done, evaluations=60, state=file, **options).rewards == whole.rewards and done.calls == 0
    assert search(Flaky(0), evaluations=60, **{**options, "seed": 4}).rewards != whole.rewards


def test_an_interrupted_update_leaves_no_half_of_it(tmp_path, monkeypatch):
    options = {"space": SPACE, "batch": 8}
    whole = search(separable, evaluations=40, **options)
    step, calls = torch.optim.Adam.step, []

    def stop(self, *args):
        calls.append(1)
        if len(calls) == 10:  # in the third of four steps of the third update
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        search(separable, evaluations=40, state=tmp_path / "s", **options)
    again = search(separable, evaluations=40, state=tmp_path / "s", **options)
    assert again.rewards == whole.rewards and again.entropy == whole.entropy


def test_cells_met_again_are_not_evaluated_again():
    calls = []
    space = SearchSpace(1, ("identity", "max_pool_3x3"), ("add",))
    result = search(lambda g: calls.append(g) or len(calls), evaluations=300, space=space, strategy="random")
    assert len(calls) == len(set(calls)) == len({tuple(r) for r in result.choices.tolist()}) < 256
    parallel = search(separable, evaluations=40, space=SPACE, mapper=lambda f, jobs: [f(j) for j in jobs])
    assert parallel.rewards == search(separable, evaluations=40, space=SPACE).rewards


def test_refused_searches(tmp_path):
    with pytest.raises(OffprintError, match="unknown strategy 'evolution'"):
        search(separable, strategy="evolution")
    with pytest.raises(OffprintError, match="evaluations=0"):
        search(separable, evaluations=0)
    with pytest.raises(OffprintError, match="reward nan.*normal"):
        search(lambda g: float("nan"), evaluations=2, space=SPACE)
    search(separable, evaluations=4, space=SPACE, state=tmp_path / "s")
    with pytest.raises(OffprintError, match="another lr.*lr=0.00035"):
        search(separable, evaluations=8, space=SPACE, state=tmp_path / "s", lr=0.1)
    with pytest.raises(OffprintError, match="another about"):
        search(separable, evaluations=8, space=SPACE, state=tmp_path / "s", about={"data": "other"})
    torch.save({"model": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(OffprintError, match="not the state of a search"):
        search(separable, evaluations=4, space=SPACE, state=tmp_path / "w.pth")
    (tmp_path / "cut").write_bytes((tmp_path / "s").read_bytes()[:1000])
    with pytest.raises(OffprintError, match="damaged"):
        search(separable, evaluations=4, space=SPACE, state=tmp_path / "cut")


PROXY = {"num_cells": 1, "filters": 2, "epochs": 1, "batch_size": 20, "size": 16, "images": 60}


def test_the_proxy_trains_a_child():
    from offprint.tasks.proxy import ProxyAccuracy

    proxy = ProxyAccuracy(**PROXY)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(proxy(Genotype.of(cells())))
    assert found[0] == found[1] and 6 * found[0] == pytest.approx(round(6 * found[0]))  # six images are held out
    x, y, classes = proxy.tensors
    assert x.shape == (60, 3, 16, 16) and len(y) == 60 and classes == 10
    assert proxy.about["images"] == 60 and "tensors" not in proxy.about
    with pytest.raises(OffprintError, match="images=5"):
        ProxyAccuracy(images=5)


def test_the_verb(tmp_path, monkeypatch):
    from offprint.cli.main import app

    monkeypatch.chdir(tmp_path)
    words = ["search", "nasnet", "--batch", "2", "--cells", "1", "--filters", "2", "--epochs", "1", "--size", "16",
             "--images", "40", "--blocks", "1", "--out", "best.json"]  # fmt: skip
    first = CliRunner().invoke(app, [*words, "-n", "2"])
    assert first.exit_code == 0 and "after 2 evaluations" in first.output, first.output
    second = CliRunner().invoke(app, [*words, "-n", "3"])
    assert second.exit_code == 0 and "after 3 evaluations" in second.output
    found = json.loads((tmp_path / "best.json").read_text())
    assert found["evaluations"] == 3 and found["strategy"] == "ppo" and 0 <= found["reward"] <= 1
    model = small(genotype="best.json")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert copy.deepcopy(model).genotype == Genotype.of(found["genotype"])
    refused = CliRunner().invoke(app, [*words, "-n", "3", "--strategy", "random"])
    assert isinstance(refused.exception, OffprintError) and "another strategy" in str(refused.exception)
    again = CliRunner().invoke(app, [*words, "-n", "1", "--strategy", "random", "--no-resume"])
    assert again.exit_code == 0 and json.loads((tmp_path / "best.json").read_text())["strategy"] == "random"


def test_paths_are_dropped_in_the_precision_of_the_input():
    model = offprint.create_model("nasnet_a_cifar", num_cells=1, filters=4, stem_filters=6, drop_path_rate=0.4).double()
    model.set_training_steps(3)
    assert model._progress(torch.float64) is not None and float(model._progress(torch.float64)) == 1 / 3
    assert model._progress(torch.bfloat16).dtype == torch.float32
    model.train()
    assert model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
