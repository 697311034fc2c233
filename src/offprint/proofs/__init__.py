"""Proofs: one honest experiment per paper, on real data, whose setting and bands are declared before it runs.

A proof file defines ``PROOF = Proof(...)``. Its ``run(ctx)`` returns named figures. What it says of them beforehand is a list of

- :class:`Effect`: a difference between two arms that the paper says has a sign, judged by its interval over paired seeds, and
- :class:`Band`: a figure of the paper measured by the paper's own protocol, judged by where it lies.

The verdict can be "no" or "undecided", and is then reported as such. Three modes: ``quick`` shows in seconds that the machinery
works and judges no effect, ``full`` takes minutes on two cores, ``gpu`` has a larger setting of its own.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from offprint import sources
from offprint.errors import OffprintError, unknown

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

MODES = ("quick", "full", "gpu")
SEEDS = 5  # paired seeds that an effect rests on at the least


@dataclass(frozen=True)
class Effect:
    """A difference that the paper says lies on one side of zero; its figure is what :func:`offprint.proofs.kit.paired` gives.

    ``holds`` where the whole 95 % interval lies on that side, ``contradicted`` where it lies on the other, else ``undecided``;
    also undecided with fewer than five paired seeds, or where the arms' costs differ by more than 5 %.

    Args:
        figure: its name in what ``run`` returns.
        side: ``above`` or ``below`` zero.
        unit: shown after the number.
        why: what in the paper says so.
        optional: the figure needs data that not every machine has; where it is absent, nothing is judged.
    """

    figure: str
    side: str = "above"
    unit: str = ""
    why: str = ""
    optional: bool = False

    def __post_init__(self):
        if self.side not in ("above", "below"):
            raise OffprintError(f"effect {self.figure}: side={self.side!r}; it must be above or below")

    def judge(self, value: Any) -> tuple[str, float, float, float] | None:
        """(verdict, mean, low, high), or ``None`` where the figure is no interval over pairs."""
        if not isinstance(value, Mapping) or not {"mean", "low", "high", "n"} <= set(value):
            return None
        mean, low, high = (float(value[k]) for k in ("mean", "low", "high"))
        if not all(map(math.isfinite, (mean, low, high))):
            return None
        claimed, other = (low > 0, high < 0) if self.side == "above" else (high < 0, low > 0)
        ratio = value.get("cost_ratio")
        fair = value["n"] >= SEEDS and (ratio is None or abs(ratio - 1) <= 0.05 + 1e-9)
        return (
            ("undecided" if not fair else "holds" if claimed else "contradicted" if other else "undecided"),
            mean,
            low,
            high,
        )

    def __str__(self) -> str:
        return f"{self.side} 0 {self.unit}".strip()


@dataclass(frozen=True)
class Band:
    """Where a figure of the paper's own protocol must lie, ends included.

    The figure is a number, or ``{"mean", "low", "high", "n"}`` over runs: inside where the mean lies inside, undecided where
    only its interval reaches in, else outside.

    Args:
        figure: its name in what ``run`` returns.
        low, high: bounds; ``math.inf`` for an open end.
        unit: shown after the number (``"%"``, ``"dB"``, ``""``).
        why: where the bounds come from.
        optional: the figure needs data that not every machine has; where the figure is absent, the band is not judged.
    """

    figure: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    why: str = ""
    optional: bool = False

    def judge(self, value: Any) -> tuple[str, float, float | None, float | None] | None:
        """(verdict, value, low, high), or ``None`` where the figure is not a number."""
        low = high = None
        if isinstance(value, Mapping):
            low, high, value = value.get("low"), value.get("high"), value.get("mean")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return None
        if self.low <= value <= self.high:
            return "holds", float(value), low, high
        reaches = low is not None and high is not None and low <= self.high and high >= self.low
        return ("undecided" if reaches else "contradicted"), float(value), low, high

    def __str__(self) -> str:
        low = "" if math.isinf(self.low) else f"{self.low:g}"
        high = "" if math.isinf(self.high) else f"{self.high:g}"
        text = f"{low} to {high}" if low and high else (f"at least {low}" if low else f"at most {high}")
        return f"{text} {self.unit}".strip()


class Context(Protocol):
    """What a running proof is given."""

    mode: str

    @property
    def quick(self) -> bool:
        """Whether seconds are meant, not minutes."""

    @property
    def device(self) -> torch.device:
        """Where to compute: the accelerator in the mode ``gpu``, else the processor."""

    def total(self, steps: int) -> None:
        """Declare how many calls of :meth:`step` will follow."""

    def step(self, text: str = "") -> None:
        """Advance the progress bar by one."""

    def part(self, key: str, compute: Callable[[], Any]) -> Any:
        """The result (JSON values) of one unit of work; kept, so that an interrupted proof goes on from here."""


@dataclass(frozen=True)
class Proof:
    """One paper's experiment.

    Args:
        slug: the paper.
        question: what is asked, in one sentence.
        data: what it is measured on, said honestly.
        baseline: what it is compared with in the same run.
        bands: mode → what is judged; ``gpu`` without an entry of its own has that of ``full``. In ``quick`` an effect is shown
            and not judged.
        run: computes the figures; scalars are judged and stored, lists of numbers are kept for the plot.
        plot: draws the figures onto a matplotlib figure.
    """

    slug: str
    question: str
    data: str
    baseline: str
    bands: Mapping[str, tuple[Effect | Band, ...]]
    run: Callable[[Context], dict[str, Any]]
    plot: Callable[[dict[str, Any], Figure], None]

    def __post_init__(self):
        if not {"quick", "full"} <= set(self.bands) <= set(MODES) or not all(self.bands.values()):
            raise OffprintError(f"proof {self.slug}: bands must be declared for quick and full (and may be for gpu)")


@dataclass
class Verdict:
    """What a proof measured, and whether each band held."""

    slug: str
    mode: str
    figures: dict[str, Any]
    bands: list[dict[str, Any]]
    seconds: float
    date: str
    question: str = ""
    data: str = ""
    source: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every band holds."""
        return all(b["ok"] for b in self.bands)

    @property
    def text(self) -> str:
        """``"2 of 3 bands hold; contradicted: gain_of_higher_orders"``."""
        return summary(self.bands, self.mode)


def available() -> list[str]:
    """Slugs of the papers that have a proof, sorted."""
    import pkgutil

    names = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(n.replace("_", "-") for n in names if n != "kit" and not n.startswith("_"))


def load(slug: str) -> Proof:
    """The proof of a paper; an unknown one is refused with the nearest names."""
    slug = slug.replace("_", "-")
    if slug not in available():
        raise unknown("proof", slug, available())
    return importlib.import_module(f"{__name__}.{slug.replace('-', '_')}").PROOF


def source_hash(slug: str) -> str:
    """A digest of all of ours that a proof runs: its file, its paper's file and what they import."""
    from offprint import catalog

    slug = load(slug).slug
    return sources.digest([f"{__name__}.{slug.replace('-', '_')}", catalog.paper(slug).module])


def accelerator() -> torch.device:
    """The accelerator of this machine; refused where there is none."""
    import torch

    for kind in ("cuda", "mps", "xpu"):
        if getattr(torch, kind, None) is not None and getattr(torch, kind).is_available():
            return torch.device(kind)
    raise OffprintError("no accelerator was found on this machine; run the proof with --full instead of --device gpu")


class _Run:
    """The context of one run: forwards progress, keeps parts in the ledger when there is one."""

    def __init__(self, proof: Proof, mode: str, ledger=None, progress=None):
        self.mode, self._proof, self._ledger, self._progress = mode, proof, ledger, progress
        self.key = f"{proof.slug}:{mode}:{source_hash(proof.slug)}"

    @property
    def quick(self) -> bool:
        return self.mode == "quick"

    @property
    def device(self) -> torch.device:
        import torch

        return accelerator() if self.mode == "gpu" else torch.device("cpu")

    def total(self, steps: int) -> None:
        if self._progress is not None:
            self._progress(total=steps)

    def step(self, text: str = "") -> None:
        if self._progress is not None:
            self._progress(text=text)

    def part(self, key: str, compute: Callable[[], Any]) -> Any:
        if self._ledger is not None and (kept := self._ledger.part(self.key, key)) is not None:
            return kept
        value = compute()
        if self._ledger is not None:
            self._ledger.keep_part(self.key, key, value)
        return value


def judge(proof: Proof, mode: str, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each declared band beside its figure; one that is missing (and not optional) or not a number misses its band.

    A row's ``verdict`` is ``holds``, ``undecided``, ``contradicted``, ``missing``, or in quick mode ``shown`` for an effect.
    """
    rows = []
    for band in proof.bands.get(mode) or proof.bands["full"]:
        if band.optional and band.figure not in figures:
            continue
        found = band.judge(figures.get(band.figure))
        verdict, value, low, high = found if found else ("missing", None, None, None)
        if found and mode == "quick" and isinstance(band, Effect):
            verdict = "shown"
        about: Any = figures.get(band.figure)
        about = about if isinstance(about, Mapping) else {}
        rows.append(
            {
                "figure": band.figure,
                "kind": "effect" if isinstance(band, Effect) else "value",
                "unit": band.unit,
                "value": value,
                "interval": None if low is None else [low, high],
                "n": about.get("n"),
                "cost_ratio": about.get("cost_ratio"),
                "verdict": verdict,
                "ok": verdict in ("holds", "shown"),
                "text": str(band),
            }
        )
    return rows


def shown(row: Mapping[str, Any]) -> str:
    """A judged row's figure as text: ``"+1.10 (0.42 to 1.78, n 5) points"``."""
    if row["value"] is None:
        return "missing"
    if row["interval"] is None:
        return f"{row['value']:.4g} {row['unit']}".strip()
    low, high = row["interval"]
    sign = "+" if row["kind"] == "effect" else ""
    return f"{row['value']:{sign}.4g} ({low:.4g} to {high:.4g}, n {row['n']}) {row['unit']}".strip()


def summary(bands: Iterable[Mapping[str, Any]], mode: str = "full") -> str:
    """How many bands hold, and the names of those that do not, with why."""
    rows = list(bands)
    if mode == "quick" and all(r["ok"] for r in rows):
        judged = [r for r in rows if r["verdict"] == "holds"]
        return f"runs; {len(judged)} of {len(judged)} bands hold" if judged else "runs; nothing judged"
    text = f"{sum(r['ok'] for r in rows)} of {len(rows)} bands hold"
    for verdict in ("undecided", "contradicted", "missing"):
        if names := [r["figure"] for r in rows if r["verdict"] == verdict]:
            text += f"; {verdict}: {', '.join(names)}"
    return text


def prove(slug: str, quick: bool = True, *, mode: str | None = None, ledger=None, progress=None) -> Verdict:
    """Run a paper's proof on this machine and enter the result in the ledger.

    Args:
        slug: the paper.
        quick: seconds (True) or minutes (False).
        mode: ``quick``, ``full`` or ``gpu``; wins over ``quick``.
        ledger: an :class:`offprint.ledger.Ledger`; ``None`` opens the default one, ``False`` keeps nothing.
        progress: called with ``total=n`` once and ``text=...`` per step.

    Returns:
        The figures and the bands they were judged by.

    Raises:
        OffprintError: an unknown paper or mode, or ``gpu`` without an accelerator.
    """
    from offprint import ledger as room

    proof = load(slug)
    mode = mode or ("quick" if quick else "full")
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "gpu":
        accelerator()
    book = room.Ledger() if ledger is None else (ledger or None)
    context = _Run(proof, mode, book, progress)
    started = time.perf_counter()
    with _quiet_threads():
        figures = json.loads(json.dumps(proof.run(context)))
    verdict = Verdict(
        proof.slug, mode, figures, judge(proof, mode, figures), round(time.perf_counter() - started, 2), room.now(),
        proof.question, proof.data, source_hash(slug), room.versions(), room.machine(),
    )  # fmt: skip
    if book is not None:
        book.record(verdict)
        book.forget_parts(context.key)
    return verdict


def _quiet_threads():
    """Leave the global random state of the caller as it was."""
    import torch

    return torch.random.fork_rng(devices=[])


def names(slugs: Iterable[str]) -> list[str]:
    """Check slugs before any work starts."""
    return [load(s).slug for s in slugs]
