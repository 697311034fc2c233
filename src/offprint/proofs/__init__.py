"""Proofs: one small honest experiment per paper, on real data, whose expected band is declared before it runs.

A proof file defines ``PROOF = Proof(...)``. Its ``run(ctx)`` returns named figures; each declared :class:`Band` says where one
of them must lie. The verdict can be "no", and is then reported as such.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from offprint.errors import OffprintError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("quick", "full")


@dataclass(frozen=True)
class Band:
    """Where a figure must lie, ends included, declared beforehand.

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

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        low = "" if math.isinf(self.low) else f"{self.low:g}"
        high = "" if math.isinf(self.high) else f"{self.high:g}"
        text = f"{low} to {high}" if low and high else (f"at least {low}" if low else f"at most {high}")
        return f"{text} {self.unit}".strip()


class Context(Protocol):
    """What a running proof is given."""

    quick: bool

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
        bands: mode → bands.
        run: computes the figures; scalars are judged and stored, lists of numbers are kept for the plot.
        plot: draws the figures onto a matplotlib figure.
    """

    slug: str
    question: str
    data: str
    baseline: str
    bands: Mapping[str, tuple[Band, ...]]
    run: Callable[[Context], dict[str, Any]]
    plot: Callable[[dict[str, Any], Figure], None]

    def __post_init__(self):
        if set(self.bands) != set(MODES) or not all(self.bands[m] for m in MODES):
            raise OffprintError(f"proof {self.slug}: bands must be declared for {' and '.join(MODES)}")


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
        return all(b["ok"] for b in self.bands)


def available() -> list[str]:
    """Slugs of the papers that have a proof, sorted."""
    import pkgutil

    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(slug: str) -> Proof:
    """The proof of a paper; an unknown one is refused with the nearest names."""
    slug = slug.replace("_", "-")
    if slug not in available():
        raise unknown("proof", slug, available())
    return importlib.import_module(f"{__name__}.{slug.replace('-', '_')}").PROOF


def source_hash(slug: str) -> str:
    """A short digest of a proof's file, the same however it is laid out; a figure measured by another file is stale."""
    import re

    path = Path(__file__).with_name(slug.replace("-", "_") + ".py")
    return hashlib.sha256(re.sub(r"[\s\"'(),]", "", path.read_text(encoding="utf-8")).encode()).hexdigest()[:16]


class _Run:
    """The context of one run: forwards progress, keeps parts in the ledger when there is one."""

    def __init__(self, proof: Proof, quick: bool, ledger=None, progress=None):
        self.quick, self._proof, self._ledger, self._progress = quick, proof, ledger, progress
        self.key = f"{proof.slug}:{'quick' if quick else 'full'}:{source_hash(proof.slug)}"

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
    """Each declared band beside its figure; one that is missing (and not optional) or not a number misses its band."""
    rows = []
    for band in proof.bands[mode]:
        if band.optional and band.figure not in figures:
            continue
        value: Any = figures.get(band.figure)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        rows.append(
            {
                "figure": band.figure,
                "low": None if math.isinf(band.low) else band.low,
                "high": None if math.isinf(band.high) else band.high,
                "unit": band.unit,
                "value": value if number else None,
                "ok": bool(number and band.holds(float(value))),
                "text": str(band),
            }
        )
    return rows


def prove(slug: str, quick: bool = True, *, ledger=None, progress=None) -> Verdict:
    """Run a paper's proof on this machine and enter the result in the ledger.

    Args:
        slug: the paper.
        quick: seconds (True) or minutes (False).
        ledger: an :class:`offprint.ledger.Ledger`; ``None`` opens the default one, ``False`` keeps nothing.
        progress: called with ``total=n`` once and ``text=...`` per step.

    Returns:
        The figures and the bands they were judged by.
    """
    from offprint import ledger as room

    proof = load(slug)
    book = room.Ledger() if ledger is None else (ledger or None)
    mode = "quick" if quick else "full"
    context = _Run(proof, quick, book, progress)
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
