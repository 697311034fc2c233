"""Runs the benchmarks, prints the table, and keeps it in ``benchmarks/results.json`` (rows of other papers stay)."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import sys
from pathlib import Path

from rich.progress import track
from rich.table import Table

from benchmarks import __path__ as folder
from offprint import ledger
from offprint.cli.console import out
from offprint.errors import unknown
from offprint.files import atomic_write

FILE = Path(__file__).with_name("results.json")
NOT_PAPERS = {"__main__", "compare"}


def main(wanted: list[str]) -> int:
    known = {m.name.replace("_", "-"): m.name for m in pkgutil.iter_modules(folder) if m.name not in NOT_PAPERS}
    for slug in wanted:
        if slug not in known:
            raise unknown("benchmark", slug, known)
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    table = Table(title="theirs / ours, in seconds of one run", title_justify="left", header_style="bold")
    for column in ("paper", "work", "form", "peer", "ours (s)", "theirs (s)", "ratio", "peak MB ours/theirs"):
        table.add_column(column, overflow="fold")
    slow = []
    for slug in track(wanted or sorted(known), "benchmarks"):
        rows = list(importlib.import_module(f"benchmarks.{known[slug]}").rows())
        kept[slug] = {
            "date": ledger.now(), "versions": ledger.versions(), "machine": ledger.machine(),
            "rows": [{**dataclasses.asdict(r), "ratio": r.ratio} for r in rows],
        }  # fmt: skip
        atomic_write(FILE, json.dumps(kept, indent=1, sort_keys=True) + "\n")
        for r in rows:
            memory = f"{r.memory[0] / 1e6:.0f} / {r.memory[1] / 1e6:.0f}" if r.memory else ""
            good = r.ratio >= r.required
            table.add_row(slug, r.what, r.form, r.peer, f"{r.ours:.4f}", f"{r.theirs:.4f}",
                          f"[{'green' if good else 'red'}]{r.ratio:.2f}[/]", memory)  # fmt: skip
            slow += [] if good else [f"{r.what} ({r.ratio:.2f}, {r.required:g} wanted)"]
    out.print(table)
    if slow:
        out.print(f"[red]below what is wanted:[/] {'; '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
