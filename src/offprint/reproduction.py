"""Run the protocols of claims on the user's own copy of the data, and enter what came out in the ledger.

>>> import offprint
>>> for row in offprint.reproduce("cfsr"):          # Set5 is bundled, the weights are fetched
...     print(row.claim.id, row.evidence.level)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offprint import catalog, sources
from offprint.catalog import Claim, Paper
from offprint.catalog import evidence as rules
from offprint.catalog.evidence import Evidence
from offprint.errors import DataError, OffprintError, unknown
from offprint.ledger import Ledger


@dataclass(frozen=True)
class Row:
    """A claim, what was measured of it, and the level that the rules grant.

    ``value`` and ``error`` (one standard error) are ``None`` where the claim could not be measured; ``reason`` says why.
    """

    claim: Claim
    value: float | None
    error: float | None
    evidence: Evidence
    partial: bool = False
    notes: tuple[str, ...] = ()
    reason: str = ""


def claims_of(name: str, claim: str | None = None) -> tuple[Paper, list[Claim]]:
    """The claims with a protocol of a paper (slug) or of one model.

    Raises:
        OffprintError: an unknown name or claim, or nothing that our code could run; the message says what there is.
    """
    from offprint.api import entry, list_models
    from offprint.tasks import protocols

    slugs = [p.slug for p in catalog.papers()]
    model = None
    if name.replace("_", "-") in slugs:
        paper = catalog.paper(name)
    elif name in list_models():
        paper, model = catalog.paper(entry(name).paper), name
    else:
        raise unknown("paper or model", name, [*slugs, *list_models()])
    found = [c for c in paper.claims if c.protocol and c.model and (model is None or c.model == model)]
    if claim is not None:
        if claim not in {c.id for c in paper.claims}:
            raise unknown(f"claim of {paper.slug}", claim, [c.id for c in paper.claims])
        found = [c for c in found if c.id == claim]
        if not found:
            raise OffprintError(
                f"the claim {claim} of {paper.slug} states no protocol that could be run; see offprint show {paper.slug}"
            )
        assert found[0].protocol is not None
        if reason := protocols.why_not(found[0].model, found[0].protocol):
            raise OffprintError(f"the claim {claim} of {paper.slug} cannot be run: {reason}")
    found = [c for c in found if c.protocol and protocols.runnable(c.model, c.protocol)]
    if not found:
        raise OffprintError(f"{name} has no claim whose protocol our code runs; see offprint show {paper.slug}")
    return paper, found


def reproduce(
    name: str, data: str | Path | None = None, *, claim: str | None = None, weights: str | None = None, checkpoint: str | Path | None = None,
    truth: str | Path | None = None, limit: int | None = None, runs: int | None = None, batch_size: int = 64, workers: int = 0,
    device: str | None = None, out: str | Path = "runs/reproduce", ledger: Ledger | None = None,
    progress: Callable[..., None] = lambda **_: None, say: Callable[[str], None] = lambda text: None,
) -> list[Row]:  # fmt: skip
    """Measure the claims of a paper or a model by their own protocols.

    Args:
        name: a paper's slug or a model's name.
        data: the user's copy of the data; default what is bundled or under ``OFFPRINT_DATA``.
        claim: only this claim (with the others that come from the same run).
        weights: tag of the released weights; default those whose publisher states a figure nearest to the claim.
        checkpoint: a weight file instead, for one model.
        truth: ground-truth labels that lie elsewhere.
        limit: so many items (or epochs, where a run trains) only; marked partial, and never counts.
        runs: so many of the protocol's runs only; marked partial as well.
        batch_size, workers, device: of the computation; ``device`` default the accelerator where there is one.
        out: folder of runs that train.
        ledger: where it is entered; default the user's.
        progress: called with ``total=n`` per run and ``text=...`` per step.
        say: called with a line about each run.

    Returns:
        A row per claim, in the catalogue's order.

    Raises:
        OffprintError: nothing to run; DataError, CheckpointError: one run was asked for and its data or weights do not fit.
    """
    import torch

    from offprint.tasks import protocols

    paper, chosen = claims_of(name, claim)
    if limit is not None and limit < 1:
        raise OffprintError(f"limit={limit}; give 1 or more")
    if checkpoint is not None and len({c.model for c in chosen}) > 1:
        raise OffprintError(
            f"a checkpoint is of one model; name it instead of {name}: {', '.join(sorted({c.model for c in chosen}))}"
        )
    book = ledger or Ledger()
    book.check_writable()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    groups: dict[tuple[str, str, str | None], list[Claim]] = {}
    for c in chosen:
        assert c.protocol is not None
        tag = None if checkpoint is not None else weights or _nearest(c)
        groups.setdefault((c.model, c.protocol.key, tag), []).append(c)
    measured: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for (model, key, tag), members in groups.items():
        first = members[0].protocol
        assert first is not None
        job = protocols.Job(
            model, first, None if data is None else str(data), tag, None if checkpoint is None else str(checkpoint),
            None if truth is None else str(truth), limit, runs, batch_size, workers, device, Path(out), progress, say=say,
        )  # fmt: skip
        own = {job.entry.module} if sources.file_of(job.entry.module) else set()  # a model of somebody else's package
        modules = sorted({"offprint.tasks.protocols", *protocols.RUNNERS[first.data].modules} | own)
        source, whose = sources.digest(modules), _whose(job)
        run = hashlib.sha256(f"{model} {whose} {key} {source} {data} {limit}".encode()).hexdigest()[:32]

        def part(name: str, compute: Callable[[], Any], run=run) -> Any:
            kept = book.part(f"reproduce:{run}", name)
            if kept is None:
                book.keep_part(f"reproduce:{run}", name, kept := compute())
            return kept

        say(f"{model} on {first.data} ({whose})")
        started = time.perf_counter()
        try:
            result = protocols.measure(replace(job, part=part))
        except OffprintError as error:
            if len(groups) == 1:
                raise
            reasons |= {c.id: str(error) for c in members}
            say(f"not measured: {error}")
            continue
        row = {
            "slug": paper.slug, "model": model, "weights": whose, "tag": tag or "", "protocol": key,
            "metrics": {k: {"value": v, "error": e} for k, (v, e) in result.metrics.items()}, "items": result.items,
            "seeds": result.seeds, "partial": result.partial or limit is not None, "data_digest": result.data_digest,
            "seconds": round(time.perf_counter() - started, 2), "modules": modules, "source": source,
        }  # fmt: skip
        book.measure(**row)
        book.forget_parts(f"reproduce:{run}")
        measured |= {c.id: row | {"notes": tuple(result.notes)} for c in members}
    if not measured:
        raise DataError("nothing could be measured: " + "; ".join(dict.fromkeys(reasons.values())))
    rows, entered = [], book.measurements(paper.slug)
    for c in chosen:
        found, level = measured.get(c.id), rules.level(c, paper, None, entered)
        if found is None or c.protocol is None:
            rows.append(Row(c, None, None, level, reason=reasons.get(c.id, "")))
            continue
        value = found["metrics"][c.protocol.metric]
        rows.append(Row(c, value["value"], value["error"], level, found["partial"], found["notes"]))
    return rows


def _nearest(claim: Claim) -> str | None:
    """The tag whose publisher states the figure nearest to the claimed one for its protocol; else the first one."""
    from offprint.api import entry
    from offprint.tasks.protocols import stated

    released = entry(claim.model).weights
    best: tuple[float, str] | None = None
    for tag, w in released.items():
        assert claim.protocol is not None and claim.value is not None
        value = stated(w, claim.protocol.data, claim.protocol.metric)
        size = w.input_size[-1] if w.input_size else 0
        if value is None or (claim.protocol.input and size and size != claim.protocol.input):
            continue
        off = abs(value - claim.value)
        if best is None or off < best[0]:
            best = (off, tag)
    return best[1] if best else next(iter(released), None)


def _whose(job) -> str:
    """Whose weights a run is about."""
    if job.checkpoint is not None:
        path = Path(job.checkpoint)
        if not path.is_file():
            raise OffprintError(f"no weight file at {job.checkpoint}")
        with path.open("rb") as stream:
            return f"checkpoint {hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"
    if not job.entry.weights:
        return "trained here"
    tag = job.tag or next(iter(job.entry.weights))
    if tag not in job.entry.weights:
        raise unknown(f"weights of {job.model}", tag, job.entry.weights)
    publisher = job.entry.weights[tag].publisher
    return f"the authors' weights {tag}" if publisher == "authors" else f"{publisher}'s weights {tag}"
