r"""The search of NASNet (Zoph, Vasudevan, Shlens, Le; CVPR 2018; arXiv 1707.07012, Sec. 3 and appendix A).

A controller, an LSTM of one layer, writes a Normal and a Reduction cell choice by choice: for each of the B blocks two hidden
states, two operations, one combination, so :math:`2 \cdot 5B` softmaxes, each fed the embedding of the choice before. The reward
:math:`R` of the written cells is the validation accuracy of a small child network; the controller is trained by PPO to raise it:

.. math:: \max_\theta\ \mathbb{E}\Big[\min\big(r A,\ \mathrm{clip}(r, 1 \pm \epsilon) A\big)\Big] + \beta H(\pi_\theta), \qquad
          r = \frac{\pi_\theta(a_t)}{\pi_{\mathrm{old}}(a_t)},\quad A = R - b,

with one ratio per choice and :math:`b` a moving average of rewards. Random search in the same space is the paper's own baseline.

No code of the search was released; learning rate, entropy bonus, baseline and batch are the paper's, the PPO clip and its epochs
per batch are not stated there.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.backbones.nasnet import COMBINATIONS, OPERATIONS, Genotype
from offprint.models.checkpoint import read_file
from offprint.tasks.folder import changed

STRATEGIES = ("ppo", "random")
WRITE_EVERY = 5.0  # seconds between two writes of the state


@dataclass(frozen=True)
class SearchSpace:
    """Which cells can be written.

    Args:
        blocks: B, blocks per cell.
        operations: names of :data:`~offprint.models.backbones.nasnet.OPERATIONS`.
        combinations: ``"add"``, ``"concat"`` or both.
    """

    blocks: int = 5
    operations: tuple[str, ...] = tuple(OPERATIONS)
    combinations: tuple[str, ...] = COMBINATIONS

    def __post_init__(self):
        if self.blocks < 1 or not self.operations or not self.combinations:
            raise OffprintError("a search space needs at least one block, one operation and one combination")
        for what, given, known in (
            ("operation", self.operations, OPERATIONS),
            ("combination", self.combinations, COMBINATIONS),
        ):
            for name in given:
                if name not in known:
                    raise unknown(what, name, known)

    def choices(self) -> list[tuple[str, int]]:
        """The softmaxes in order: (kind, how many options)."""
        one = [
            choice
            for b in range(self.blocks)
            for choice in (
                *[("state", b + 2)] * 2,
                *[("operation", len(self.operations))] * 2,
                ("combination", len(self.combinations)),
            )
        ]
        return one * 2

    @property
    def size(self) -> int:
        """How many different sequences of choices there are."""
        return math.prod(options for _, options in self.choices())

    def genotype(self, row: Iterable[int]) -> Genotype:
        """The cells that a sequence of choices writes."""
        row = [int(v) for v in row]
        cells = {}
        for c, name in enumerate(Genotype._fields):
            part = row[c * 5 * self.blocks :]
            fives = [part[5 * b : 5 * b + 5] for b in range(self.blocks)]
            cells[name] = {
                "blocks": [
                    [i, self.operations[a], j, self.operations[b], self.combinations[k]] for i, j, a, b, k in fives
                ]
            }
        return Genotype.of(cells)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform random choices, (count, 10 B)."""
        columns = [torch.randint(n, (count,), generator=generator) for _, n in self.choices()]
        return torch.stack(columns, 1)


class Controller(nn.Module):
    """The LSTM that writes cells.

    Args:
        space: what it may write.
        hidden: units, also of the embeddings; all weights start uniform within 0.1.
    """

    def __init__(self, space: SearchSpace, hidden: int = 100):
        super().__init__()
        self.kinds = space.choices()
        most = {"state": space.blocks + 1, "operation": len(space.operations), "combination": len(space.combinations)}
        self.start = nn.Parameter(torch.empty(hidden))
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.embed = nn.ModuleDict({kind: nn.Embedding(n, hidden) for kind, n in most.items()})
        self.heads = nn.ModuleDict({kind: nn.Linear(hidden, n) for kind, n in most.items()})
        self.places = {kind: [i for i, (k, _) in enumerate(self.kinds) if k == kind] for kind in most}
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Choices (count, 10 B), drawn one after the other."""
        x, state, row = self.start.expand(count, 1, -1), None, []
        for kind, options in self.kinds:
            y, state = self.lstm(x, state)
            logits = self.heads[kind](y[:, 0])[:, :options]  # states not yet built have no share
            row.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            x = self.embed[kind](row[-1])
        return torch.cat(row, 1)

    def forward(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each choice of (n, 10 B), and the entropy (nats) of each softmax; both (n, 10 B)."""
        n = len(choices)
        fed = torch.empty(n, len(self.kinds), self.start.numel())
        for kind, places in self.places.items():
            fed[:, places] = self.embed[kind](choices[:, places])
        y, _ = self.lstm(torch.cat([self.start.expand(n, 1, -1), fed[:, :-1]], 1))
        found = torch.empty(n, len(self.kinds))
        entropy = torch.empty(n, len(self.kinds))
        for kind, places in self.places.items():
            logits = self.heads[kind](y[:, places])
            built = torch.tensor([self.kinds[i][1] for i in places])
            logits = logits.masked_fill(torch.arange(logits.shape[-1]) >= built[:, None], -1e9)
            logp = logits.log_softmax(-1)
            found[:, places] = logp.gather(-1, choices[:, places, None])[..., 0]
            entropy[:, places] = -(logp.exp() * logp).sum(-1)
        return found, entropy


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        space: searched.
        choices: of every sampled pair of cells, in order, (n, 10 B).
        rewards: theirs.
        entropy: of the controller, nats summed over all choices, after each update (none for random search).
    """

    space: SearchSpace
    choices: Tensor
    rewards: list[float]
    entropy: list[float] = field(default_factory=list)

    def top(self, count: int) -> list[tuple[float, Genotype]]:
        """The best different cells, best first (the paper retrains its best 250)."""
        seen: dict[tuple, float] = {}
        for row, reward in zip(self.choices.tolist(), self.rewards, strict=True):
            seen.setdefault(tuple(row), reward)
        ranked = sorted(seen.items(), key=lambda item: -item[1])[:count]
        return [(reward, self.space.genotype(row)) for row, reward in ranked]

    @property
    def best(self) -> Genotype:
        return self.top(1)[0][1]

    @property
    def reward(self) -> float:
        """Of the best."""
        return max(self.rewards)

    def save(self, path: str | Path, **about: Any) -> Path:
        """Write the best cells as JSON, which ``create_model("nasnet_a_cifar", genotype=path)`` takes."""
        found = {"genotype": self.best.to_dict(), "reward": self.reward, "evaluations": len(self.rewards), **about}
        return atomic_write(path, json.dumps(found, indent=1))


def _reward(evaluate: Callable[[Genotype], float], job: tuple[Genotype, int]) -> float:
    """One evaluation, with random numbers of its own."""
    genotype, seed = job
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = float(evaluate(genotype))
    if not math.isfinite(value):
        raise OffprintError(
            f"the evaluator gave the reward {value} for {json.dumps(genotype.to_dict())}; a reward must be a finite number"
        )
    return value


def _of(settings: dict[str, Any], name: str) -> Any:
    """The value of a setting; of some within one, that one whole."""
    return settings.get(name.partition(" ")[0])


class _State:
    """All that a search must remember, in one file that is written whole or not at all."""

    def __init__(self, path: str | Path | None, settings: dict[str, Any], width: int):
        self.path, self.settings, self.written = Path(path) if path else None, settings, time.monotonic()
        self.choices, self.rewards = torch.empty(0, width, dtype=torch.int16), []
        self.learnt: dict[str, Any] = {"entropy": []}  # replaced as a whole after each update, so never half of one
        if self.path is not None and self.path.exists():
            kept = read_file(self.path)
            if not isinstance(kept, dict) or "settings" not in kept:
                raise OffprintError(f"{self.path} is not the state of a search; choose another file")
            before = json.loads(kept["settings"])
            differing = changed(before, settings)
            if differing:
                raise OffprintError(
                    f"{self.path} holds a search with another {', '.join(differing)} "
                    f"({', '.join(f'{k}={_of(before, k)}' for k in differing)}); go on with the same settings, or choose another file"
                )
            self.choices, self.rewards, self.learnt = kept["choices"], kept["rewards"].tolist(), kept["learnt"]

    def write(self, force: bool = False) -> None:
        if self.path is None or not (force or time.monotonic() - self.written >= WRITE_EVERY):
            return
        stream = io.BytesIO()
        torch.save(
            {
                "settings": json.dumps(self.settings), "choices": self.choices[: len(self.rewards)], "learnt": self.learnt,
                "rewards": torch.tensor(self.rewards, dtype=torch.float64),
            },
            stream,
        )  # fmt: skip
        atomic_write(self.path, stream.getvalue())
        self.written = time.monotonic()


def search(
    evaluate: Callable[[Genotype], float],
    *,
    evaluations: int = 1000,
    strategy: str = "ppo",
    space: SearchSpace | None = None,
    batch: int = 20,
    lr: float = 3.5e-4,
    entropy_bonus: float = 1e-5,
    baseline: float = 0.95,
    clip: float = 0.2,
    epochs: int = 4,
    seed: int = 0,
    state: str | Path | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[int, int, float, float], None] | None = None,
    mapper: Callable[..., Iterable[float]] = map,
) -> SearchResult:
    """Search cells.

    Args:
        evaluate: cells → reward, higher is better (the paper: validation accuracy of a child). Its random numbers are seeded by
            ``seed`` and the evaluation's number. Cells met again keep their first reward.
        evaluations: samples to draw.
        strategy: ``"ppo"``, or ``"random"`` for the baseline.
        space: default the paper's: five blocks, thirteen operations.
        batch: samples per update of the controller.
        lr: of Adam.
        entropy_bonus, clip: beta and epsilon of the objective.
        baseline: share of the old average kept at each update.
        epochs: steps of Adam per batch.
        state: file to go on from when it exists; written every few seconds and at the end. An interrupted search then ends as an
            uninterrupted one would; asking for more evaluations extends it.
        about: what else the rewards depend on (JSON values); a state with another ``about`` is refused.
        progress: called with (samples so far, samples in all, best reward, mean reward of the last batch).
        mapper: evaluates the cells of a batch: the built-in ``map``, or for example ``multiprocessing.Pool().imap``.

    Raises:
        OffprintError: an unknown strategy, a reward that is not finite, or a state of another search.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    for name, value in (("evaluations", evaluations), ("batch", batch), ("epochs", epochs), ("lr", lr)):
        if not value > 0:
            raise OffprintError(f"{name}={value}; it must be above 0")
    space = space or SearchSpace()
    settings = {
        "strategy": strategy, "space": dataclasses.asdict(space), "batch": batch, "lr": lr, "entropy_bonus": entropy_bonus,
        "baseline": baseline, "clip": clip, "epochs": epochs, "seed": seed, "about": about or {},
    }  # fmt: skip
    kept = _State(state, json.loads(json.dumps(settings)), len(space.choices()))
    controller = optimizer = None
    if strategy == "ppo":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            controller = Controller(space)
        optimizer = torch.optim.Adam(controller.parameters(), lr=lr)
        if kept.learnt["entropy"]:
            controller.load_state_dict(kept.learnt["controller"])
            optimizer.load_state_dict(kept.learnt["optimizer"])
    known = {
        tuple(row): reward for row, reward in reversed(list(zip(kept.choices.tolist(), kept.rewards, strict=True)))
    }
    try:
        while len(kept.rewards) < evaluations:
            # the samples of a batch depend on the seed, its number and the controller alone: also after an interruption
            number, done = divmod(len(kept.rewards), batch)
            if controller is not None and len(kept.learnt["entropy"]) < number:
                kept.learnt = _update(controller, optimizer, kept, batch, baseline, clip, entropy_bonus, epochs)
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) & 0x7FFFFFFFFFFF)
            rows = space.sample(batch, generator) if controller is None else controller.sample(batch, generator)
            wanted = [tuple(row) for row in rows.tolist()][done : done + evaluations - len(kept.rewards)]
            fresh = list(dict.fromkeys(row for row in wanted if row not in known))
            first = {row: len(kept.rewards) + wanted.index(row) for row in fresh}
            jobs = [(space.genotype(row), seed * 1_000_003 + first[row]) for row in fresh]
            found = iter(mapper(partial(_reward, evaluate), jobs))
            for row in wanted:
                if row not in known:
                    known[row] = next(found)
                kept.choices = torch.cat([kept.choices, torch.tensor([row], dtype=torch.int16)])
                kept.rewards.append(known[row])
                kept.write()
                if progress is not None:
                    last = kept.rewards[-batch:]
                    progress(len(kept.rewards), evaluations, max(kept.rewards), sum(last) / len(last))
    finally:
        kept.write(force=True)
    return SearchResult(space, kept.choices[:evaluations].long(), kept.rewards[:evaluations], kept.learnt["entropy"])


def _update(
    controller: nn.Module, optimizer, kept: _State, batch: int, baseline: float, clip: float, bonus: float, epochs: int
) -> dict[str, Any]:
    """PPO on the last batch; returns what to remember."""
    rows, rewards = kept.choices[-batch:].long(), torch.tensor(kept.rewards[-batch:])
    average = kept.learnt.get("baseline", float(rewards.mean()))
    advantage = (rewards - average)[:, None]
    with torch.no_grad():
        old, _ = controller(rows)
    for _ in range(epochs):
        logp, entropy = controller(rows)
        ratio = (logp - old).exp()
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).sum(1).mean()
        total = entropy.sum(1).mean()
        optimizer.zero_grad()
        (-objective - bonus * total).backward()
        optimizer.step()
    return {
        "controller": copy.deepcopy(controller.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "baseline": baseline * average + (1 - baseline) * float(rewards.mean()),
        "entropy": [*kept.learnt["entropy"], float(total.detach())],
    }
