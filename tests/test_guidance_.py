"""guidance: likenesses that stay numbers, layers that pair as the paper says, and a term that teaches the target alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import offprint
from offprint.data.images import ArrayImages, ImageSplits
from offprint.errors import OffprintError
from offprint.methods.training.guidance import Guidance, Recorder, debiased_cka, linear_cka, map_layers, rsa

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, 6, 6, generator=DRAW)


def flat(depth=4, width=8):
    torch.manual_seed(1)
    layers = [nn.Flatten(), nn.Linear(108, width)]
    for _ in range(depth - 1):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 3))


def maps():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def test_a_network_is_like_itself_and_constants_are_like_nothing():
    net = maps().eval()
    guided = Guidance(net, maps().eval())
    for _ in range(3):  # for any number of batches
        net(X)
        guided(X)
        assert (
            all(value == pytest.approx(1, abs=1e-5) for value in guided.similarity.values())
            and len(guided.similarity) == 3
        )
    constant = torch.ones(5, 4, requires_grad=True)
    for likeness in (linear_cka, rsa):
        value = likeness(constant, torch.randn(5, 3, generator=DRAW))
        value.backward()
        assert abs(float(value)) < 1e-3 and torch.isfinite(constant.grad).all()


def test_the_likeness_is_that_of_rotated_and_scaled_features_and_its_unbiased_form_is_for_logs():
    x, y = torch.randn(30, 5, generator=DRAW).double(), torch.randn(30, 400, generator=DRAW).double()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=DRAW).double())[0]
    assert linear_cka(x, 3 * x @ turn + 2) == pytest.approx(1, abs=1e-9) == debiased_cka(x, x)
    unrelated = torch.randn(30, 400, generator=DRAW).double()
    assert linear_cka(y, unrelated) > 0.8 and debiased_cka(y, unrelated) < 0.3  # the bias at n << p
    assert 0 <= debiased_cka(x[:4], unrelated[:4]) <= 1
    with pytest.raises(OffprintError, match="needs 4"):
        debiased_cka(x[:3], x[:3])
    with pytest.raises(
        OffprintError, match="the target saw 30 examples and the guide 29; both must see the same batch"
    ):
        linear_cka(x, y[:29])
    half = torch.randn(6, 3, generator=DRAW).bfloat16()
    assert linear_cka(half, half).dtype == torch.float32


def test_only_the_target_learns_and_it_comes_closer():
    target, guide = flat(), maps()
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    guided = Guidance(target, guide)
    optimizer, terms = torch.optim.Adam(target.parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        logits = target(X)
        term = guided(X)
        (F.cross_entropy(logits, torch.arange(12) % 3) + term).backward()
        optimizer.step()
        terms.append(float(term.detach()))
    assert (
        terms[-1] < 0.5 * terms[0]
        and not guide.training
        and all(torch.equal(v, before[k]) for k, v in guide.state_dict().items())
    )
    assert not list(guided.parameters()) and all(p.grad is None for p in guide.parameters())
    with torch.no_grad():  # validation leaves nothing behind
        target(X[:5])
    assert not guided.of_target.found
    guided.close()
    assert not target[1]._forward_hooks and not guide[0]._forward_hooks


def test_several_guide_layers_of_one_target_layer():
    def terms(**kwargs):
        target = flat(2)
        guided = Guidance(target, maps(), **kwargs)
        target(X)
        return float(guided(X)), guided.similarity

    assert map_layers(3, 2) == [0, 0, 1]  # halves go to the even one
    last, found = terms()
    assert last == pytest.approx(2 - sum(found.values()), abs=1e-5) and len(found) == 2
    every, _ = terms(keep="all")
    assert every > last
    named, found = terms(layers={"1": "3"})
    assert list(found) == ["1"] and named == pytest.approx(1 - found["1"], abs=1e-5)
    assert terms(alpha=0.5)[0] == pytest.approx(last / 2, rel=1e-5)


def test_options_of_the_paper():
    target, guide = flat(), maps()
    guided = Guidance(target, guide, until=2, second_forward=True)
    values = [float(guided(X)) for _ in range(4)]
    assert values[0] > 0 and values[1] > 0 and values[2:] == [0, 0]
    seen = []
    guide.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    Guidance(target, guide, noise=True, second_forward=True)(X)
    assert not torch.equal(seen[0], X) and 0 <= float(seen[0].min()) and float(seen[0].max()) <= 1
    small = Guidance(target, guide, second_forward=True)
    assert float(small(X[:3])) == 0 and small.skipped == 1


def test_language_pairs_and_their_axes():
    torch.manual_seed(0)
    ids = torch.randint(0, 29, (6, 6), generator=DRAW)
    rnn = offprint.create_model("rnn_lm", vocab_size=29, embedding_dim=8, hidden_dim=8, num_layers=2)
    transformer = offprint.create_model(
        "transformer_lm", vocab_size=29, d_model=8, nhead=2, num_layers=2, seq_len=6, dim_feedforward=8
    )
    held = Recorder(rnn, lambda x: x)
    rnn(ids)
    assert list(held.found) == ["RNN_0", "RNN_1", "Linear_2"] and held.found["RNN_0"].shape == (6, 6, 8)
    # the maps are sequence first; as long as the batch is large, only the user knows which axis is which
    axis = Recorder(transformer, lambda x: x, batch_axis=1)
    guided = Guidance(rnn, transformer, batch_axes=(0, 1), distance="tokens")
    rnn(ids)
    assert 0 < float(guided(ids)) and set(guided.similarity) == {"RNN_0", "RNN_1"}
    assert torch.equal(
        axis.found["LayerNorm_0"].transpose(0, 1), transformer.layer_norms_1[0](_embedded(transformer, ids))
    )
    with pytest.raises(OffprintError, match="vocabulary="):
        Guidance(rnn, transformer, noise=True, second_forward=True)(ids)
    bits = torch.tensor([[1, 0, 2, 2], [1, 1, 0, 2], [0, 1, 1, 1], [1, 2, 2, 2]])
    for name in ("trans_enc", "parity_rnn"):
        net = offprint.create_model(name).eval()
        padded = torch.cat([bits, torch.full((4, 3), 2)], 1)
        assert torch.allclose(net(bits), net(padded), atol=1e-5), name  # padding says nothing
    pair = Guidance(offprint.create_model("trans_enc"), offprint.create_model("parity_rnn"), second_forward=True)
    assert float(pair(bits)) > 0
    with pytest.raises(OffprintError, match="7 tokens were given; this model has positions for 6"):
        transformer(torch.zeros(1, 7, dtype=torch.long))


def _embedded(net, ids):
    return net.dropout.eval()(net.tokens_embeddings(ids) + net.position_embeddings.weight[: ids.shape[1]]).transpose(
        0, 1
    )


def test_vision_guides_give_as_many_maps_as_the_paper_counts():
    def count(net, size):
        record = Recorder(net, lambda x: x.new_zeros(()))
        with torch.no_grad():
            net.eval()(torch.zeros(2, 3, size, size))
        return len(record.maps())

    assert count(torchvision.models.resnet18(), 32) == 21 and count(torchvision.models.resnet50(), 32) == 54
    assert count(offprint.create_model("noresnet50", width=4), 32) == 50
    assert count(torchvision.models.VisionTransformer(32, 8, 12, 2, 8, 8, num_classes=3), 32) == 25
    for name, maps_, size in (("deep_fcn", 48, {"width": 8, "narrow": 4}), ("wide_fcn", 3, {"width": 4})):
        assert count(offprint.create_model(name, image_size=8, **size), 8) == maps_
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in offprint.create_model(name).parameters())
            for name in ("deep_fcn", "wide_fcn", "plain_fcn", "noresnet50")
        }
    assert sizes == {
        "deep_fcn": 359_788_520,
        "wide_fcn": 1_375_609_832,
        "plain_fcn": 754_914_280,
        "noresnet50": 22_780_456,
    }


def test_bad_input_is_told():
    target, guide = flat(), maps()
    for kwargs, message in [
        ({"distance": "cak"}, "unknown distance 'cak'; nearest: cka"), ({"keep": "first"}, "unknown choice of guide layers"),
        ({"alpha": -1}, "alpha=-1; it must not be negative"), ({"layers": {"99": "0"}}, "unknown layer '99'"),
    ]:  # fmt: skip
        with pytest.raises(OffprintError, match=message):
            Guidance(target, guide, **kwargs)
    with pytest.raises(OffprintError, match=r"call target\(x\) before guided\(x\)"):
        Guidance(target, guide)(X)
    unused = maps()
    unused.add_module("spare", nn.Identity())
    unused.forward = lambda x: nn.Sequential(*list(unused)[:-1])(x)
    with pytest.raises(OffprintError, match="the layer spare gave no map of the batch"):
        Guidance(target, unused, layers={"1": "spare"}, second_forward=True)(X)
    with pytest.raises(OffprintError, match="guidance needs a guide"):
        offprint.train("mobilenetv2_100", "sample:cifar10", methods=["guidance"])
    guided = Guidance(target, guide)
    target(X)
    with pytest.raises(OffprintError, match="the target saw 12 examples and the guide 5"):
        guided(X[:5])


def test_a_run_by_name(tmp_path):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), np.arange(8) % 2
    data = ImageSplits(ArrayImages(images, labels), ArrayImages(images, labels), ["a", "b"], "eight")
    recipe = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "input_size": 32, "mixup": 0.5}
    run = offprint.train(
        "deep_fcn", data, tmp_path / "run", recipe=recipe, model_options={"image_size": 32, "width": 16, "narrow": 8, "depth": 3},
        methods=["guidance:guide=torchvision/squeezenet1_1,until=3"], progress=False, accelerator="cpu",
    )  # fmt: skip
    assert run["methods"]["guidance"]["skipped"] == 0
    assert (
        "similarity/Linear_0" in (run.folder / "logs" / "metrics.csv").read_text()
        or run["methods"]["guidance"]["similarity"]
    )
    assert not any("guide" in name for name in run.load().model.state_dict())
