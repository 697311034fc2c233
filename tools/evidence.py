"""Check the golden records, count the models, run the proofs, and write the evidence snapshot.

    python tools/evidence.py            proofs whose file has changed since they were measured are run; the others are taken from
                                        the ledger, or from the last snapshot with their own date and machine
    python tools/evidence.py --again    every proof is run
    python tools/evidence.py --no-run   nothing is run: what has not been measured by the present file is left out

Exit code 1 when a golden record disagrees. A proof outside its band is written down as such.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import track

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import harness  # noqa: E402

from offprint import catalog, ledger, proofs  # noqa: E402
from offprint.catalog import evidence  # noqa: E402
from offprint.files import atomic_write  # noqa: E402
from offprint.models.info import model_info  # noqa: E402


def main() -> int:
    golden = _golden()
    snapshot = {
        "date": ledger.now(),
        "versions": ledger.versions(),
        "machine": ledger.machine(),
        "catalog_sha256": evidence.fingerprint(),
        "golden": golden,
        "models": _counts(),
        "proofs": _proofs(),
    }
    atomic_write(evidence.FILE, json.dumps(snapshot, indent=1, sort_keys=True) + "\n")
    failed = [f"{s}/{n}" for s, rows in golden.items() for n, row in rows.items() if not row["ok"]]
    print(f"{evidence.FILE}: {len(harness.RECORDS) - len(failed)} of {len(harness.RECORDS)} records agree")
    return 1 if failed else 0


def _golden() -> dict[str, dict]:
    found: dict[str, dict] = {}
    for path in track(harness.RECORDS, "golden records"):
        errors, worst = harness.check(path)
        row = {"sha256": harness.sha256(path), "ok": not errors, "worst": float(f"{worst:.1e}")}
        found.setdefault(path.parent.name, {})[path.stem] = row
        for error in errors:
            print(f"{harness.name(path)}: {error}", file=sys.stderr)
    return found


def _counts() -> dict[str, dict]:
    import torch

    import offprint

    found: dict[str, dict] = {}
    known = set(offprint.list_models())
    wanted = {c.evidence.structural for p in catalog.papers() for c in p.claims if c.evidence.structural}
    for count in track(sorted(wanted, key=lambda c: (c.model, c.macs or 0)), "counts"):
        if count.model not in known:
            continue
        if count.parameters is not None:
            with torch.device("meta"):
                row: dict = {"parameters": sum(p.numel() for p in offprint.create_model(count.model).parameters())}
        else:
            info = model_info(count.model, count.input or None)
            row = {"macs": info["macs"], "input": info["input"][1:], "parameters": info["parameters"]}
        found.setdefault(count.model, {}).update(row)
    return found


def _proofs() -> dict[str, dict]:
    book, before = ledger.Ledger(), evidence.snapshot().get("proofs", {})
    newest = {mode: book.latest(mode) for mode in proofs.MODES}
    found: dict[str, dict] = {}
    for slug in track(proofs.available(), "proofs"):
        for mode in proofs.MODES:
            source = proofs.source_hash(slug)
            row: Any = newest[mode].get(slug)
            kept = before.get(slug, {}).get(mode)
            if "--again" in sys.argv or (
                "--no-run" not in sys.argv
                and not (row and row.source == source)
                and not (kept and kept.get("source") == source)
            ):
                row = proofs.prove(slug, mode == "quick", ledger=book)
            if (
                row
                and row.source == source
                and not (kept and kept.get("source") == source and kept["date"] >= row.date)
            ):
                kept = {
                    "date": row.date, "ok": row.ok, "seconds": row.seconds, "figures": _short(row.figures),
                    "bands": _short(row.bands), "question": row.question, "data": row.data, "source": source,
                    "versions": row.versions, "machine": row.machine,
                }  # fmt: skip
            if kept and kept.get("source") == source:
                found.setdefault(slug, {})[mode] = kept
    return found


def _short(value):
    """Numbers to six digits, throughout."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
