"""Run the golden records, count the models, collect the ledger's newest proofs, and write the evidence snapshot.

    python tools/evidence.py            golden records and counts; proofs as the ledger holds them
    python tools/evidence.py --prove    run every full and quick proof first

Figures of proofs that this ledger does not hold are kept from the last snapshot, with their own date and machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import harness  # noqa: E402

from offprint import catalog, ledger, proofs  # noqa: E402
from offprint.catalog import evidence  # noqa: E402
from offprint.files import atomic_write  # noqa: E402
from offprint.models.info import model_info  # noqa: E402


def main() -> int:
    book = ledger.Ledger()
    if "--prove" in sys.argv:
        for slug in track(proofs.available(), "proofs"):
            for quick in (True, False):
                proofs.prove(slug, quick, ledger=book)
    golden: dict = {}
    for path in track(harness.RECORDS, "golden records"):
        errors, worst = harness.check(path)
        golden.setdefault(path.parent.name, {})[path.stem] = {
            "sha256": harness.sha256(path),
            "ok": not errors,
            "worst": float(f"{worst:.1e}"),
        }
        for error in errors:
            print(f"{harness.name(path)}: {error}", file=sys.stderr)
    from offprint.api import list_models

    models: dict = {}
    counted = {c.evidence.structural for p in catalog.papers() for c in p.claims if c.evidence.structural}
    known = set(list_models())
    for count in track(sorted(counted, key=lambda c: (c.model, c.macs or 0)), "counts"):
        if count.model in known:
            models.setdefault(count.model, {}).update(_count(count))
    taken: dict = {slug: dict(modes) for slug, modes in evidence.snapshot().get("proofs", {}).items()}
    for mode in proofs.MODES:
        for slug, row in book.latest(mode).items():
            if slug in proofs.available():
                scalars = {k: v for k, v in row.figures.items() if isinstance(v, int | float)}
                taken.setdefault(slug, {})[mode] = {
                    "date": row.date, "ok": row.ok, "seconds": row.seconds, "figures": scalars, "bands": row.bands,
                    "question": row.question, "data": row.data, "versions": row.versions, "machine": row.machine,
                }  # fmt: skip
    snapshot = {
        "date": ledger.now(),
        "versions": ledger.versions(),
        "machine": ledger.machine(),
        "catalog_sha256": evidence.fingerprint(),
        "golden": golden,
        "models": models,
        "proofs": {k: taken[k] for k in sorted(taken)},
    }
    atomic_write(evidence.FILE, json.dumps(snapshot, indent=1, sort_keys=True) + "\n")
    failed = [f"{s}/{n}" for s, rows in golden.items() for n, row in rows.items() if not row["ok"]]
    print(f"{evidence.FILE}: {len(harness.RECORDS) - len(failed)} of {len(harness.RECORDS)} records agree")
    return 1 if failed else 0


def _count(count) -> dict:
    import torch

    import offprint

    if count.parameters is not None:
        with torch.device("meta"):
            return {"parameters": sum(p.numel() for p in offprint.create_model(count.model).parameters())}
    info = model_info(count.model, count.input or None)
    return {"macs": info["macs"], "input": info["input"][1:], "parameters": info["parameters"]}


if __name__ == "__main__":
    sys.exit(main())
