"""How well a claim is supported here: computed from a snapshot of golden records and proofs, never typed.

From best to worst: ``reproduced`` (same data and protocol, measured here, inside the band, and the band holds the claimed
value), ``equal`` (our model computes what the authors' code computes on the same weights), ``structural`` (the counts
agree), ``indicated`` (the effect shows in a small experiment), ``open``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from offprint.catalog import FOLDER, Claim, Paper

LEVELS = ("reproduced", "equal", "structural", "indicated", "open")
FILE = Path(__file__).parent / "evidence.json"


@dataclass(frozen=True)
class Evidence:
    """A level, and what it rests on."""

    level: str
    basis: str = ""


@cache
def snapshot() -> dict[str, Any]:
    """The snapshot that ``make evidence`` wrote (empty when there is none)."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def _proof(claim: Claim, paper: Paper, taken: dict) -> tuple[dict, dict] | None:
    """The run and the band that a claim's proof link points to, when the figure lies inside its band."""
    link = claim.evidence.proof
    run = taken.get("proofs", {}).get(paper.slug, {}).get(link.mode) if link else None
    if link is None or run is None:
        return None
    band = next((b for b in run["bands"] if b["figure"] == link.figure), None)
    return (run, band) if band and band["ok"] else None


def level(claim: Claim, paper: Paper, taken: dict[str, Any] | None = None) -> Evidence:
    """The best level that the snapshot supports for a claim, and what it rests on."""
    taken = snapshot() if taken is None else taken
    found = _proof(claim, paper, taken)
    link = claim.evidence.proof
    if found and link and link.protocol == "same" and claim.value is not None:
        run, band = found
        low = -math.inf if band["low"] is None else band["low"]
        high = math.inf if band["high"] is None else band["high"]
        if low <= claim.value <= high:
            unit = claim.unit or band.get("unit", "")
            return Evidence(
                "reproduced", f"{link.mode} proof of {run['date'][:10]}: {band['value']:.4g} {unit}".strip()
            )
    records = claim.evidence.golden
    if records:
        having = taken.get("golden", {}).get(paper.slug, {})
        if all(having.get(r, {}).get("ok") for r in records):
            worst = max(having[r]["worst"] for r in records)
            return Evidence("equal", f"golden record {', '.join(records)} (largest difference {worst:.0e})")
    count = claim.evidence.structural
    if count is not None:
        seen = taken.get("models", {}).get(count.model, {})
        name = "parameters" if count.parameters is not None else "macs"
        if seen.get(name) == getattr(count, name) and (
            name == "parameters" or tuple(seen.get("input", ())) == count.input
        ):
            return Evidence("structural", f"{count.model}: {seen[name]:,} {name}")
    if found and link and link.protocol == "small":
        run, band = found
        return Evidence(
            "indicated",
            f"{link.mode} proof of {run['date'][:10]}: {link.figure} {band['value']:.4g} {band.get('unit', '')}".strip(),
        )
    return Evidence("open")


def fingerprint(folder: Path = FOLDER) -> str:
    """SHA-256 over the catalogue's files."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.toml")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def stale(
    taken: dict[str, Any], golden_dir: str | Path, folder: Path = FOLDER, sources: Mapping[str, str] | None = None
) -> list[str]:
    """What in a snapshot no longer matches the catalogue, the golden records and the proofs, in words; empty when all does.

    Args:
        taken: the snapshot.
        golden_dir: folder of the golden records.
        folder: the catalogue's.
        sources: slug → digest of its proof's file as it is now.
    """
    found = []
    if taken.get("catalog_sha256") != fingerprint(folder):
        found.append("the catalogue has changed since the snapshot was taken")
    present = {
        (p.parent.name, p.stem): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(golden_dir).glob("*/*.json")
    }
    noted = {
        (slug, stem): row["sha256"] for slug, rows in taken.get("golden", {}).items() for stem, row in rows.items()
    }
    for key in sorted(present.keys() | noted.keys()):
        name = "/".join(key)
        if key not in noted:
            found.append(f"golden record {name} is not in the snapshot")
        elif key not in present:
            found.append(f"golden record {name} is in the snapshot but not in {golden_dir}")
        elif present[key] != noted[key]:
            found.append(f"golden record {name} has changed")
    for slug, source in (sources or {}).items():
        for mode in ("quick", "full"):
            run = taken.get("proofs", {}).get(slug, {}).get(mode)
            if run is None:
                found.append(f"the {mode} proof of {slug} is not in the snapshot")
            elif run.get("source") != source:
                found.append(f"the {mode} proof of {slug} has changed since it was measured")
    return found
