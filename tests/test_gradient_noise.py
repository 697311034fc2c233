"""Gradient noise: the schedule, exact resume, clipping before noise, any optimizer, Lightning."""

import math

import lightning as L
import pytest
import torch
from torch import nn

from offprint.errors import OffprintError
from offprint.methods.training.gradient_noise import DeepMLP, GradientNoise, GradientNoiseCallback, noise_std


def test_the_schedule_is_a_variance():
    assert noise_std(0, 1.0) == 1 and noise_std(9, 1.0) == pytest.approx(10**-0.275)
    assert noise_std(0, 0.01) == pytest.approx(0.1)


def _net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def _train(net, wrapped, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        wrapped.zero_grad()
        net(x).square().mean().backward()
        wrapped.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_noise_is_a_function_of_seed_and_update():
    runs = [
        _train(n, GradientNoise(torch.optim.Adam(n.parameters(), 0.01), seed=s), 5) for s in (1, 1, 2) for n in [_net()]
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    state = torch.get_rng_state()
    net = _net()
    state = torch.get_rng_state()
    _train(net, GradientNoise(torch.optim.SGD(net.parameters(), 0.1)), 2)
    assert torch.equal(state, torch.get_rng_state())


def test_resume_is_exact():
    net = _net()
    whole = _train(net, GradientNoise(torch.optim.Adam(net.parameters(), 0.01), seed=3), 6)
    net = _net()
    first = GradientNoise(torch.optim.Adam(net.parameters(), 0.01), seed=3)
    _train(net, first, 3)
    second = GradientNoise(torch.optim.Adam(net.parameters(), 0.01))
    second.load_state_dict(first.state_dict())
    assert second.t == 3 and torch.equal(_train(net, second, 3, start=3), whole)


def test_zero_noise_is_the_optimizer_itself():
    a, b = _net(), _net()
    plain = _train(a, torch.optim.SGD(a.parameters(), 0.1), 4)
    assert torch.equal(plain, _train(b, GradientNoise(torch.optim.SGD(b.parameters(), 0.1), eta=0.0), 4))


def test_clipping_comes_first_and_missing_gradients_are_left():
    p, frozen = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.ones(2))
    wrapped = GradientNoise(torch.optim.SGD([p, frozen], 1.0), eta=1.0, clip_norm=1.0)
    p.grad = torch.full((1000,), 100.0)
    wrapped.add_noise()
    assert p.grad.norm() == pytest.approx(math.sqrt(1000), rel=0.1)  # 1 of gradient, the rest is noise
    assert frozen.grad is None
    wrapped.optimizer.step()
    assert frozen.tolist() == [1, 1]


def test_fixed_std_closure_and_passing_through():
    net = _net()
    wrapped = GradientNoise(torch.optim.SGD(net.parameters(), 0.5), fixed_std=0.001)
    assert wrapped.std == 0.001 and wrapped.param_groups[0]["lr"] == 0.5

    def closure():
        wrapped.zero_grad()
        loss = net(torch.ones(1, 6)).square().mean()
        loss.backward()
        return loss

    assert float(wrapped.step(closure)) > 0 and wrapped.t == 1


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"eta": -1}, "eta=-1"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"clip_norm": 0}, "above 0"),
        ({"fixed_std": -0.1}, "fixed_std"),
    ],
)
def test_refusals(kwargs, says):
    with pytest.raises(OffprintError, match=says):
        GradientNoise(torch.optim.SGD(_net().parameters(), 0.1), **kwargs)


class _Task(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = _net()

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(**kwargs):
    task = _Task()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.linspace(-1, 1, 48).reshape(8, 6)), 2)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **kwargs)  # fmt: skip
    trainer.fit(task, loader)
    return torch.cat([p.detach().flatten() for p in task.net.parameters()])


def test_the_callback_counts_updates():
    noise = GradientNoiseCallback(eta=0.01, seed=1)
    with_noise = _fit(callbacks=[noise])
    assert noise.t == 4 and noise.state_dict() == {"t": 4}
    assert not torch.equal(with_noise, _fit())
    assert torch.equal(with_noise, _fit(callbacks=[GradientNoiseCallback(eta=0.01, seed=1)]))
    accumulated = GradientNoiseCallback(eta=0.01)
    _fit(callbacks=[accumulated], accumulate_grad_batches=2)
    assert accumulated.t == 2
    with pytest.raises(OffprintError, match="clip_norm= to GradientNoiseCallback"):
        _fit(callbacks=[GradientNoiseCallback()], gradient_clip_val=1.0)


def test_the_deep_networks_starts():
    zero = DeepMLP(784, 20, 50, 10, "zero")
    assert all(not p.any() for p in zero.parameters())
    assert sum(p.numel() for p in zero.parameters()) == 88_210
    simple = DeepMLP(784, 20, 50, 10, "simple")
    assert float(simple.layers[0].weight.std()) == pytest.approx(0.1, rel=0.05)
    with pytest.raises(OffprintError, match="simple"):
        DeepMLP(784, 20, 50, 10, "simpel")
