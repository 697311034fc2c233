r"""Adding Gradient Noise Improves Learning for Very Deep Networks (Neelakantan et al. 2015; arXiv 1511.06807).

At update :math:`t` (0 at the first) every entry of every gradient gets independent Gaussian noise (Eq. 1):

.. math:: g_t \leftarrow g_t + \mathcal N(0, \sigma_t^2), \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^{\gamma}},

with :math:`\gamma = 0.55` and :math:`\eta \in \{0.01, 0.3, 1\}`. :math:`\sigma_t^2` is the variance: the draw is scaled by its
square root. Clipping comes first and noise after it, so that clipping does not rescale the noise away; the optimizer's own
statistics then see the noisy gradient. Networks that start badly, or that are very deep, escape plateaus this way.

Besides the method, this file holds the networks of the paper's experiments: the 20-layer perceptron (Sec. 4.1), the end-to-end
memory network (Sec. 4.2) and the Neural GPU (Sec. 4.5). No code was published for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.methods.registry import Method, register_method
from offprint.models.registry import register


def noise_std(t: int, eta: float = 0.01, gamma: float = 0.55) -> float:
    """Standard deviation of the noise of update ``t`` (0 at the first): the square root of eta / (1 + t)^gamma."""
    return math.sqrt(eta / (1 + t) ** gamma)


def check_noise(eta: float, gamma: float, clip_norm: float | None, fixed_std: float | None) -> None:
    """Refuse settings of the noise that cannot be."""
    for name, value in (("eta", eta), ("gamma", gamma), ("fixed_std", fixed_std)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise OffprintError(f"{name}={value!r}; it must be a finite number, not negative")
    if clip_norm is not None and not clip_norm > 0:
        raise OffprintError(f"clip_norm={clip_norm!r}; it must be above 0, or None for no clipping")


class GradientNoise:
    """An optimizer with clipping and decaying gradient noise in front of its step.

    Args:
        optimizer: any torch optimizer.
        eta: variance of the first update's noise: 0.01 for plain SGD, 1.0 with clipping for recurrent and memory models.
        gamma: how fast the variance decays.
        seed: the noise is a function of (seed, update, parameter), so all ranks of a data-parallel run draw the same.
        clip_norm: clip the global norm of the gradients to this before the noise; ``None`` for no clipping.
        fixed_std: a constant standard deviation instead of the schedule.

    ``step``, ``zero_grad``, ``state_dict``, ``param_groups`` and the rest are the optimizer's. With gradient accumulation
    call ``step`` once per update, as always; with a gradient scaler unscale first. Parameters without a gradient are left out.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.01,
        gamma: float = 0.55,
        seed: int = 0,
        clip_norm: float | None = None,
        fixed_std: float | None = None,
    ):
        check_noise(eta, gamma, clip_norm, fixed_std)
        self.optimizer, self.eta, self.gamma, self.seed = optimizer, eta, gamma, seed
        self.clip_norm, self.fixed_std, self.t = clip_norm, fixed_std, 0

    def __getattr__(self, name: str):
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    @property
    def std(self) -> float:
        """Standard deviation of the next update's noise."""
        return self.fixed_std if self.fixed_std is not None else noise_std(self.t, self.eta, self.gamma)

    def draw(self, parameters: list[Tensor]) -> list[Tensor]:
        """Standard normal draws for these parameters at the present update."""
        generators: dict[torch.device, torch.Generator] = {}
        drawn = []
        for parameter in parameters:
            device = parameter.device
            if device not in generators:
                key = (self.seed * 1_000_003 + self.t) * 2_654_435_761 % (2**63)
                generators[device] = torch.Generator(device).manual_seed(key)
            drawn.append(
                torch.randn(parameter.shape, generator=generators[device], device=device, dtype=parameter.dtype)
            )
        return drawn

    @torch.no_grad()
    def add_noise(self, draw: list[Tensor] | None = None) -> None:
        """Clip, then add the present update's noise to the gradients in place."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm, foreach=True)
        noise = self.draw(parameters) if draw is None else draw
        torch._foreach_add_([p.grad for p in parameters], noise, alpha=self.std)

    def step(self, closure: Callable | None = None):
        """One update: clip, add noise, step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.add_noise()
        self.t += 1
        self.optimizer.step()
        return loss

    def state_dict(self) -> dict:
        """The optimizer's state and the number of updates done; enough to go on with the very same noise."""
        return {"optimizer": self.optimizer.state_dict(), "t": self.t, "seed": self.seed}

    def load_state_dict(self, state: dict) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.t, self.seed = state["t"], state["seed"]


@cache
def _callback():
    from lightning.pytorch.callbacks import Callback

    class GradientNoiseCallback(Callback):
        """Adds the noise in a Lightning run: ``Trainer(callbacks=[GradientNoiseCallback(eta=0.01)])``.

        Lightning clips after this hook, so clip here with ``clip_norm`` and leave ``gradient_clip_val`` unset.
        """

        def __init__(self, eta: float = 0.01, gamma: float = 0.55, seed: int = 0, clip_norm: float | None = None,
                     fixed_std: float | None = None):  # fmt: skip
            self.options = {"eta": eta, "gamma": gamma, "seed": seed, "clip_norm": clip_norm, "fixed_std": fixed_std}
            self.t = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            if trainer.gradient_clip_val:
                raise OffprintError(
                    "gradient_clip_val would clip after the noise; pass clip_norm= to GradientNoiseCallback instead"
                )
            noise = GradientNoise(optimizer, **self.options)
            noise.t = self.t
            noise.add_noise()
            self.t += 1

        def state_dict(self) -> dict:
            return {"t": self.t}

        def load_state_dict(self, state: dict) -> None:
            self.t = state["t"]

    return GradientNoiseCallback


def __getattr__(name: str):
    if name == "GradientNoiseCallback":  # built when first asked for: Lightning is not imported before
        globals()[name] = _callback()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@register_method
@dataclass(kw_only=True)
class GradientNoiseMethod(Method):
    """Gradient noise in any training: ``offprint train --method gradient-noise:eta=0.3``.

    Where the recipe clips gradients, the method clips instead of it, before the noise.

    Args:
        eta: variance of the first update's noise: 0.01 for plain SGD, 1.0 with clipping for recurrent and memory models.
        gamma: how fast the variance decays.
        seed: the noise is a function of it, the update and the parameter; default that of the run.
        clip_norm: clip the global norm of the gradients to this before the noise; default as the recipe clips.
        fixed_std: a constant standard deviation instead of the schedule.
    """

    name = "gradient-noise"
    paper = "gradient-noise"
    kind = "callback"
    changes = "the gradients: clips them, then adds decaying Gaussian noise, before the optimizer sees them"

    eta: float = 0.01
    gamma: float = 0.55
    seed: int | None = None
    clip_norm: float | None = None
    fixed_std: float | None = None

    def __post_init__(self):
        check_noise(self.eta, self.gamma, self.clip_norm, self.fixed_std)

    def settle(self, job) -> None:
        if any(type(c).__name__ == "GradientNoiseCallback" for c in job.callbacks):
            raise OffprintError("gradient-noise was given as a method and as a callback; give it once")
        clip = getattr(job.how, "clip_grad", 0.0)
        if clip:
            self.clip_norm = clip if self.clip_norm is None else self.clip_norm
            job.how = replace(job.how, clip_grad=0.0)
        self.seed = job.run.seed if self.seed is None else self.seed

    def callbacks(self, job):
        return [_callback()(**self.options())]


# -- the networks of the experiments ---------------------------------------------------------------------------------
INITS = ("default", "simple", "he", "sussillo", "zero")


class DeepMLP(nn.Module):
    """The perceptron of Sec. 4.1: ``depth`` hidden layers of ``width`` with ReLU.

    Args:
        in_features: inputs after flattening.
        depth, width, num_classes: shape of the network.
        init: ``simple`` (weights N(0, 0.1²)), ``he``, ``sussillo`` (random walk initialisation), ``zero`` or torch's ``default``;
            biases are zero except by default.
    """

    def __init__(
        self, in_features: int = 784, depth: int = 20, width: int = 50, num_classes: int = 10, init: str = "default"
    ):
        super().__init__()
        widths = [in_features, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.head = nn.Linear(widths[-1], num_classes)
        if init not in INITS:
            raise unknown("init", init, INITS)
        for layer in (*self.layers, self.head) if init != "default" else ():
            fan = layer.in_features
            # random walk initialisation: the gain for ReLU of Sussillo and Abbott (2014)
            std = {"simple": 0.1, "he": math.sqrt(2 / fan), "zero": 0.0,
                   "sussillo": math.sqrt(2) * math.exp(1.2 / (max(fan, 6) - 2.4)) / math.sqrt(fan)}[init]  # fmt: skip
            nn.init.normal_(layer.weight, std=std) if std else nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images or vectors (B, ...)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class MemN2N(nn.Module):
    """End-to-end memory network with position encoding and adjacent tying (Sukhbaatar et al. 2015), as Sec. 4.2 trains it.

    Args:
        vocab_size: words, 0 being the empty one.
        memory_size: most sentences kept; each age is a time word of its own.
        embedding_dim: d.
        hops: K.
        linear_start: leave the softmax of the attention out (the first stage of two-stage training).

    Input: story (B, sentences, words) oldest first, query (B, words). Output: logits (B, vocab_size + memory_size).
    """

    def __init__(
        self,
        vocab_size: int = 20,
        memory_size: int = 50,
        embedding_dim: int = 20,
        hops: int = 3,
        linear_start: bool = False,
    ):
        super().__init__()
        self.vocab_size, self.memory_size, self.linear_start, self.hops = vocab_size, memory_size, linear_start, hops
        words = vocab_size + memory_size
        self.embedding = nn.ModuleList(nn.Embedding(words, embedding_dim) for _ in range(hops + 1))
        for table in self.embedding:
            nn.init.normal_(table.weight, std=0.1)

    def _sentence(self, table: nn.Embedding, words: Tensor, weight: Tensor) -> Tensor:
        vectors = F.embedding(words, table.weight) * (words != 0).unsqueeze(-1)
        return (vectors * weight).sum(-2)

    def _positions(self, slots: int, like: Tensor) -> Tensor:
        d = like.shape[1]
        j = torch.arange(1, slots + 1, device=like.device, dtype=like.dtype)[:, None]
        i = torch.arange(1, d + 1, device=like.device, dtype=like.dtype)[None]
        return 1 + 4 * (i - (d + 1) / 2) * (j - (slots + 1) / 2) / (d * slots)

    def forward(self, story: Tensor, query: Tensor) -> Tensor:
        story = story[:, -self.memory_size :]
        batch, sentences, _ = story.shape
        ages = torch.arange(sentences - 1, -1, -1, device=story.device) + self.vocab_size
        story = torch.cat([story, ages[None, :, None].expand(batch, -1, 1)], -1)
        weight = self._positions(story.shape[-1], self.embedding[0].weight)
        u = self._sentence(self.embedding[0], query, weight[: query.shape[-1]])
        memory = [self._sentence(table, story, weight) for table in self.embedding]
        for k in range(self.hops):
            p = (memory[k] @ u[:, :, None]).squeeze(-1)
            p = p if self.linear_start else p.softmax(-1)
            u = u + (p[:, :, None] * memory[k + 1]).sum(1)
        return u @ self.embedding[-1].weight.t()


class CGRU(nn.Module):
    """Convolutional gated recurrent unit (Kaiser and Sutskever 2015)."""

    def __init__(self, maps: int):
        super().__init__()
        self.u, self.r, self.c = (nn.Conv2d(maps, maps, 3, padding=1) for _ in range(3))

    def forward(self, s: Tensor) -> Tensor:
        u, r = torch.sigmoid(self.u(s)), torch.sigmoid(self.r(s))
        return u * s + (1 - u) * torch.tanh(self.c(r * s))


class NeuralGPU(nn.Module):
    """The Neural GPU of Sec. 4.5: symbols (B, n) → logits (B, n, num_symbols) after n steps of the CGRU layers.

    Args:
        maps: channels of the state.
        num_symbols: alphabet.
        width: rows of the state; the symbols stand in row 0.
        layers: CGRU layers per step.
    """

    def __init__(self, maps: int = 24, num_symbols: int = 4, width: int = 4, layers: int = 2):
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(num_symbols, maps)
        self.cells = nn.ModuleList(CGRU(maps) for _ in range(layers))
        self.out = nn.Linear(maps, num_symbols, bias=False)

    def forward(self, symbols: Tensor) -> Tensor:
        first = self.embed(symbols).transpose(1, 2)[:, :, None]
        s = F.pad(first, (0, 0, 0, self.width - 1))
        for _ in range(symbols.shape[1]):
            for cell in self.cells:
                s = cell(s)
        return self.out(s[:, :, 0].transpose(1, 2))


register(
    paper="gradient-noise", kind="training", build=DeepMLP, variants={"deep_mlp_20x50": {}}, input_size=(1, 28, 28)
)
register(
    paper="gradient-noise", kind="training", build=MemN2N, variants={"memn2n_3hop_pe": {"hops": 3}}, input_size=None
)
register(paper="gradient-noise", kind="training", build=NeuralGPU, variants={"neural_gpu": {}}, input_size=None)
