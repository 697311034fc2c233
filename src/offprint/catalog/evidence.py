"""How well a claim is supported here: computed by rules from what was measured, never typed.

From best to worst:

- ``reproduced``: measured here on the claim's own data by its own protocol, all metrics of that run within the paper's printed
  spread, or within half the last printed digit plus the sampling error;
- ``equal``: the releasing party's weights are registered with their own metric for this very model and protocol, that metric is
  the claimed one, our code runs the protocol, and a golden record of that party's code passes;
- ``structural``: our count rounds to the printed value at its printed digits;
- ``indicated``: a statement without a number whose effect an interval over at least five paired seeds puts on the claimed side;
- ``undecided``: measured, and the interval holds zero; ``contradicted``: measured, and on the other side or outside;
- ``open``: nothing yet, with what is missing.

What was measured lies in one JSON file per paper, ``evidence/SLUG.json``, written by ``make evidence``. Every entry keeps the
modules it rests on and the digest of all sources they import; where those have changed since, the evidence is stale and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from offprint import sources
from offprint.catalog import SCALES, Claim, Paper, Protocol

LEVELS = ("reproduced", "equal", "structural", "indicated", "undecided", "contradicted", "open")
SUPPORT = LEVELS[:4]  # the levels that speak for a claim
FOLDER = Path(__file__).parent / "evidence"
SEEDS = 5
COST = 0.05


@dataclass(frozen=True)
class Evidence:
    """A level, what it rests on (or, for ``open``, what is missing), and whether the sources have changed since."""

    level: str
    basis: str = ""
    stale: bool = False


@cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def snapshot(slug: str) -> dict[str, Any]:
    """What ``make evidence`` last wrote for a paper (empty when nothing has been measured).

    Keys: ``golden`` (record → ok, worst, dialect, model), ``counts`` (model → parameters, macs), ``weights`` (model → tag →
    publisher, dialect, metrics, input, crop), ``runnable`` (ids of claims whose protocol our code runs), ``proofs`` (mode → run)
    and ``runs`` (measurements by ``offprint reproduce``).
    """
    return _read(FOLDER / f"{slug}.json")


def stale(entry: Mapping[str, Any]) -> bool:
    """Whether the sources that an entry was computed by have changed since, or are gone."""
    try:
        return sources.digest(entry["modules"]) != entry["source"]
    except (KeyError, ValueError):
        return True


def tolerance(claim: Claim, error: float) -> float:
    """How far a measurement may lie from a claim's value: the printed spread, or half the last digit plus the sampling error."""
    return claim.spread if claim.spread is not None else 0.5 * 10.0**-claim.digits + error


def _within(claim: Claim, value: float, error: float) -> bool:
    assert claim.value is not None
    return abs(value - claim.value) <= tolerance(claim, error) + 1e-9


def _rounds(claim: Claim, value: float) -> bool:
    """Whether a number, written with the claim's digits, is the claimed one (a half may go either way)."""
    assert claim.value is not None
    return abs(value - claim.value) <= 0.5 * 10.0**-claim.digits + 1e-9


def level(
    claim: Claim, paper: Paper, taken: Mapping[str, Any] | None = None, runs: Iterable[Mapping[str, Any]] = ()
) -> Evidence:
    """The level that the rules grant a claim.

    Args:
        claim: of ``paper``.
        paper: for the other metrics of the same run.
        taken: the paper's evidence; default what ``make evidence`` wrote.
        runs: measurements of a ledger (:meth:`offprint.ledger.Ledger.measurements`), beside those of ``taken``.
    """
    taken = snapshot(paper.slug) if taken is None else taken
    missing: list[str] = []
    if claim.value is None:
        return _statement(claim, taken)
    if claim.protocol is not None:
        found = _measured(claim, paper, taken, [*runs, *taken.get("runs", ())]) or _own_protocol(
            claim, paper, taken, missing
        )
        found = found or _equal(claim, claim.protocol, taken, missing)
        if found:
            return found
    if claim.evidence.structural is not None and (found := _counted(claim, taken)):
        return found
    return Evidence("open", "; ".join(missing))


def _together(claim: Claim, paper: Paper) -> list[Claim]:
    """The claims that stand or fall with one: its model and protocol, printed at the same place.

    The place keeps a repository's own figures apart from its paper's.
    """
    assert claim.protocol is not None
    mine = set(claim.place.split(", "))
    return [
        c
        for c in paper.claims
        if c.protocol and c.value is not None and c.model == claim.model and c.protocol.key == claim.protocol.key
        and mine & set(c.place.split(", "))
    ]  # fmt: skip


def _stating(claim: Claim, taken: Mapping[str, Any]) -> dict[str, float]:
    """Tag → figure of the registered weights that state one for a claim's protocol."""
    protocol, found = claim.protocol, {}
    assert protocol is not None
    for tag, row in taken.get("weights", {}).get(claim.model, {}).items():
        value = row["metrics"].get(protocol.data, {}).get(protocol.metric)
        size = not protocol.input or not row["input"] or protocol.input == row["input"]
        crop = not protocol.crop or not row["crop"] or abs(protocol.crop - row["crop"]) <= 1e-3
        if value is not None and size and crop:
            found[tag] = value
    return found


def _fits(run: Mapping[str, Any], claim: Claim, taken: Mapping[str, Any]) -> bool:
    """Whether a run's weights are those a claim is about: the ones that state its figure, where any do."""
    tags = {tag for tag, value in _stating(claim, taken).items() if _rounds(claim, value)}
    return not run.get("tag") or not tags or run["tag"] in tags


def _measured(
    claim: Claim, paper: Paper, taken: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> Evidence | None:
    """By ``offprint reproduce``: the newest whole run of this model by this protocol."""
    protocol = claim.protocol
    assert protocol is not None
    fitting = [
        r
        for r in runs
        if r["model"] == claim.model and r["protocol"] == protocol.key and protocol.metric in r["metrics"]
        and not r["partial"] and r["seeds"] >= protocol.seeds and _fits(r, claim, taken)
    ]  # fmt: skip
    if not fitting:
        return None
    run = max(fitting, key=lambda r: r["date"])
    off = []
    for other in _together(claim, paper):
        if other.protocol is None or other.protocol.metric not in run["metrics"] or not _fits(run, other, taken):
            continue
        found = run["metrics"][other.protocol.metric]
        if not _within(other, found["value"], found["error"]):
            off.append(f"{other.protocol.metric} {found['value']:.{other.digits + 2}f}, claimed {other.said}")
    mine = run["metrics"][protocol.metric]
    error = f" ± {mine['error']:.2g}" if mine["error"] else ""
    text = f"measured {run['date'][:10]}: {mine['value']:.{claim.digits + 2}f}{error} {claim.unit}".strip()
    text += f" ({run['weights']}; data {run['data_digest'][:8]})"
    if off:
        text += "; outside: " + ", ".join(off)
    return Evidence("contradicted" if off else "reproduced", text, stale(run))


def _run_of(taken: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The proof that counts: the larger setting where it was run."""
    proofs = taken.get("proofs", {})
    return next(((mode, proofs[mode]) for mode in ("gpu", "full") if mode in proofs), None)


def _own_protocol(claim: Claim, paper: Paper, taken: Mapping[str, Any], missing: list[str]) -> Evidence | None:
    """By a proof whose figure is the claim's own number, measured by the claim's own protocol."""
    link, found, protocol = claim.evidence.proof, _run_of(taken), claim.protocol
    if link is None or link.protocol != "same" or found is None or protocol is None:
        return None
    mode, run = found

    def reading(figure: str) -> tuple[float, float, int] | None:
        value = run["figures"].get(figure)
        if isinstance(value, Mapping):
            return value["mean"], value.get("std", 0.0) / max(1, value["n"]) ** 0.5, value["n"]
        return None if value is None else (float(value), 0.0, 1)

    mine = reading(link.figure)
    if mine is None:
        return None
    value, error, n = mine
    if n < protocol.seeds:
        missing.append(
            f"the {mode} proof made {n} of the protocol's {protocol.seeds} runs ({value:.{claim.digits + 2}f})"
        )
        return None
    off = []
    for other in _together(claim, paper):
        linked = other.evidence.proof
        if linked and linked.protocol == "same" and (theirs := reading(linked.figure)):
            if not _within(other, theirs[0], theirs[1]):
                off.append(f"{linked.figure} {theirs[0]:.{other.digits + 2}f}, claimed {other.said}")
    spread = f" ± {error:.2g}" if error else ""
    text = f"{mode} proof of {run['date'][:10]}: {value:.{claim.digits + 2}f}{spread} {claim.unit}".strip()
    text += f" ({n} runs)" if n > 1 else ""
    if off:
        text += "; outside: " + ", ".join(off)
    return Evidence("contradicted" if off else "reproduced", text, stale(run))


def _equal(claim: Claim, protocol: Protocol, taken: Mapping[str, Any], missing: list[str]) -> Evidence | None:
    """By the releasing party's weights, their own metric, a record of their code, and our runner of the protocol."""
    registered = taken.get("weights", {}).get(claim.model, {})
    if not claim.model or not registered:
        missing.append(f"no released weights of {claim.model} are registered" if claim.model else "names no model")
        return None
    stated = _stating(claim, taken)
    if not stated or protocol.steps or protocol.split or protocol.seeds > 1:
        missing.append("no registered weights state a figure for this protocol")
        return None
    tags = [tag for tag, value in stated.items() if _rounds(claim, value)]
    if not tags:
        missing.append("the registered weights state " + ", ".join(f"{v:g} ({tag})" for tag, v in stated.items()))
        return None
    if claim.id not in taken.get("runnable", ()):
        missing.append("our code does not run this protocol")
        return None
    for tag in tags:
        row = registered[tag]
        for stem in claim.evidence.golden:
            record = taken.get("golden", {}).get(stem)
            if (
                record
                and record["ok"]
                and record.get("dialect") in (row["dialect"], row["publisher"])
                and record.get("model")
            ):
                whose = "the authors'" if row["publisher"] == "authors" else f"{row['publisher']}'s"
                text = f"{whose} weights {tag} state {stated[tag]:g}; their code's record {stem} passes"
                return Evidence("equal", text + f" (largest difference {record['worst']:.0e})", stale(record))
    missing.append(
        "no record of the releasing party's code passes among " + (", ".join(claim.evidence.golden) or "none")
    )
    return None


def _counted(claim: Claim, taken: Mapping[str, Any]) -> Evidence | None:
    """By counting our model."""
    link = claim.evidence.structural
    assert link is not None
    row = taken.get("counts", {}).get(link.model)
    value = None if row is None else row.get(link.count)
    if link.count.startswith("macs") and value is not None:
        value = value.get("x".join(map(str, link.input)) or "own")
    if row is None or value is None:
        return None
    words = {
        "parameters": "parameters",
        "parameters_without_norms": "parameters outside of norms",
        "parameters_deployed": "parameters deployed",
        "macs": "multiply-adds",
        "macs_deployed": "multiply-adds deployed",
    }
    text = f"{link.model}: {value:,} {words[link.count]}"
    fits = _rounds(claim, value / SCALES[claim.unit])
    return Evidence("structural" if fits else "contradicted", text, stale(row))


def _statement(claim: Claim, taken: Mapping[str, Any]) -> Evidence:
    """By the effect of a proof, judged by its interval over paired seeds at matched cost."""
    link, found = claim.evidence.proof, _run_of(taken)
    if link is None:
        return Evidence("open", "no experiment of ours is about this statement")
    row = None if found is None else next((b for b in found[1]["bands"] if b["figure"] == link.figure), None)
    if found is None or row is None or row["value"] is None:
        return Evidence("open", f"{link.figure} has not been measured")
    mode, run = found
    if row.get("kind") != "effect" or not row.get("interval"):
        return Evidence("open", f"{link.figure} has no interval over paired seeds")
    (low, high), n, cost = row["interval"], row["n"], row.get("cost_ratio")
    text = f"{mode} proof of {run['date'][:10]}: {link.figure} {row['value']:+.3g}, 95 % {low:.3g} to {high:.3g} {row['unit']}"
    text = f"{text.strip()}, {n} paired seeds"
    if n < SEEDS:
        return Evidence("undecided", f"{text}; at least {SEEDS} are needed", stale(run))
    if cost is not None and abs(cost - 1) > COST + 1e-9:
        return Evidence("undecided", f"{text}; the costs differ by a factor of {cost:.2f}", stale(run))
    below = row["text"].startswith("below")
    claimed, other = (high < 0, low > 0) if below else (low > 0, high < 0)
    return Evidence("indicated" if claimed else "contradicted" if other else "undecided", text, stale(run))


def counts(paper: Paper, runs: Iterable[Mapping[str, Any]] = ()) -> dict[str, int]:
    """Level → how many of a paper's claims have it, in the order of the levels, those that occur."""
    rows = list(runs)
    found = [level(c, paper, None, rows).level for c in paper.claims]
    return {name: found.count(name) for name in LEVELS if name in found}
