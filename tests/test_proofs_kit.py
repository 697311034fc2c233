"""The kit of the proofs: intervals, matched costs, rates chosen per arm, one loop that shows all arms the same pictures."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from offprint.errors import OffprintError
from offprint.proofs import Effect, kit


class Book:
    """A proof's context that keeps parts and counts steps."""

    mode, device = "full", torch.device("cpu")

    def __init__(self):
        self.parts, self.declared, self.steps = {}, 0, 0

    def total(self, steps):
        self.declared = steps

    def step(self, text=""):
        self.steps += 1

    def part(self, key, compute):
        assert key not in self.parts, f"{key} twice"
        self.parts[key] = compute()
        return self.parts[key]


def images(count=40):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (2 * count,), generator=generator)
    x = torch.randn(2 * count, 3, 8, 8, generator=generator) + y[:, None, None, None] - 0.5
    return kit.Images((x[:count], y[:count]), (x[count:], y[count:]), (x[count:], y[count:]))


def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2))


def test_a_paired_interval_is_the_t_test():
    one, two = [3.0, 4.5, 2.0, 5.0, 4.0], [2.5, 3.0, 2.5, 3.5, 3.0]
    found = kit.paired(one, two, 1.02)
    theirs = stats.ttest_rel(one, two).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high))
    assert found["n"] == 5 and found["cost_ratio"] == 1.02
    with pytest.raises(OffprintError, match="got 5 and 4 values"):
        kit.paired(one, two[:4])


@pytest.mark.parametrize(
    ("differences", "cost", "side", "verdict"),
    [
        ([1, 2, 1, 2, 1], 1.0, "above", "holds"),
        ([1, 2, 1, 2, 1], 1.0, "below", "contradicted"),
        ([-1, -2, -1, -2, -1], None, "above", "contradicted"),
        ([3, -2, 1, -1, 0], 1.0, "above", "undecided"),
        ([1, 2, 1, 2], 1.0, "above", "undecided"),  # four seeds
        ([1, 2, 1, 2, 1], 1.06, "above", "undecided"),  # dearer than the baseline
    ],
)
def test_effects_are_judged_by_their_interval(differences, cost, side, verdict):
    assert Effect("f", side).judge(kit.paired(differences, [0] * len(differences), cost))[0] == verdict


def test_each_arm_gets_its_own_rate():
    seen = []

    def arm(name, best):
        def run(seed, rate, part):
            seen.append((name, seed, rate, part))
            return -abs(math.log(rate / best)) + (seed if part == "test" else 0)

        return kit.Arm(name, run, 100.0)

    book, rates = Book(), (1e-3, 1e-2)
    found = kit.compare(book, [arm("a", 1e-3), arm("b", 1e-2)], seeds=(0, 1), rates=rates, pilots=2)
    assert found.rates == {"a": 1e-3, "b": 1e-2} and book.steps == kit.steps(2, (0, 1), rates, 2)
    assert found.scores == {"a": [0.0, 1.0], "b": [0.0, 1.0]}
    assert {s for _, s, _, part in seen if part == "val"}.isdisjoint({0, 1})
    worst = kit.compare(Book(), [arm("a", 1e-3), arm("b", 1e-2)], seeds=(0,), rates=rates, lower_is_better=True)
    assert worst.rates == {"a": 1e-2, "b": 1e-3}


def test_several_metrics_of_one_training():
    def arm(name, gain):
        return kit.Arm(name, lambda seed, rate, part: {"accuracy": seed + gain, "loss": -2.0 * gain})

    found = kit.compare(Book(), [arm("a", 0.0), arm("b", 0.5)], seeds=(0, 1, 2), rates=(1.0, 2.0))
    assert found.effect("b")["mean"] == 0.5 and found.effect("b", metric="loss")["mean"] == -1.0
    assert found.effect("a", "b", "loss")["mean"] == 1.0
    figures = found.figures("accuracy", prefix="first_")
    assert figures["accuracy_a"]["mean"] == 1.0 and figures["first_arms"]["b"] == [0.5, 1.5, 2.5]


def test_unequal_arms_are_refused():
    def run(seed, rate, part):
        raise AssertionError("nothing is trained before the costs are compared")

    with pytest.raises(OffprintError, match=r"more than 5%: a 100 \(1.000\), b 106 \(1.060\)"):
        kit.compare(Book(), [kit.Arm("a", run, 100.0), kit.Arm("b", run, 106.0)], seeds=(0,), rates=(1.0,))
    with pytest.raises(OffprintError, match="give every arm a cost, or none"):
        kit.compare(Book(), [kit.Arm("a", run, 100.0), kit.Arm("b", run)], seeds=(0,), rates=(1.0,))
    with pytest.raises(OffprintError, match="two arms of different names"):
        kit.compare(Book(), [kit.Arm("a", run), kit.Arm("a", run)], seeds=(0,), rates=(1.0,))


def test_arms_see_the_same_pictures_and_a_seed_repeats():
    def seen(draws):
        pictures = []

        class Draws(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net()

            def forward(self, x):
                torch.rand(draws)  # whatever an arm draws for itself
                if self.training:
                    pictures.append(x.clone())
                return self.net(x)

        score = kit.fit(Draws, images(), kit.Setting(2, 10), seed=3, rate=1e-2)
        return score, torch.stack(pictures)

    (first, one), (_, two), (again, _) = seen(0), seen(5), seen(0)
    assert one.shape == (8, 10, 3, 8, 8) and torch.equal(one, two) and first == again


def test_losses_are_watched_and_replaced():
    losses, trained = [], []
    score = kit.fit(
        net, images(), kit.Setting(20, 10, shift=0, flip=False, smoothing=0.0), seed=0, rate=1e-2, watch=losses.append,
        after=trained.append,
    )  # fmt: skip
    assert len(losses) == 80 and losses[-1] < 0.5 * losses[0] and score > 90 and not trained[0].training
    other = kit.fit(
        net, images(), kit.Setting(1, 10), seed=0, rate=1e-2, part="val", watch=losses.append,
        loss_of=lambda module, x, y: module(x).sum() * 0 + 7, score=lambda module, part: float(len(part[1])),
    )  # fmt: skip
    assert other == 40 and losses[80:] == [7.0] * 4


@pytest.mark.parametrize("data", [kit.cifar, kit.digits])
def test_parts_do_not_overlap_and_stay(data):
    some = data(50, 30, 20)
    assert [len(part[1]) for part in (some.train, some.val, some.test)] == [50, 30, 20]
    rows = torch.cat([some.train[0], some.val[0]]).flatten(1)
    assert len(rows.unique(dim=0)) == 80
    assert some.digest == data.__wrapped__(50, 30, 20).digest != data(50, 30, 10).digest
    assert abs(float(data(1000).train[0].mean())) < 0.2


def test_more_images_than_there_are_is_refused():
    x, y = torch.zeros(10, 3, 8, 8), torch.zeros(10).long()
    with pytest.raises(OffprintError, match="11 images are needed, there are 10"):
        kit._split([(x, y), (x, y)], ((8, 3), (2,)))


def test_the_start_follows_the_fan_in():
    torch.manual_seed(0)
    layers = kit.fan_in_(nn.Sequential(nn.Linear(400, 300), nn.Conv2d(64, 64, 3, groups=64), nn.BatchNorm2d(4)))
    assert float(layers[0].weight.std()) == pytest.approx(0.88 / 20, rel=0.02)  # of a normal cut at two deviations
    assert float(layers[1].weight.std()) == pytest.approx(0.88 / 3, rel=0.1)
    assert not layers[0].bias.any() and (layers[2].weight == 1).all()
