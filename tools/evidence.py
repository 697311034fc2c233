"""Measure what claims rest on, and write it to one file per paper (``src/offprint/catalog/evidence/SLUG.json``).

    python tools/evidence.py               every built paper: what is stale is measured again, the rest is kept
    python tools/evidence.py SLUG ...      these papers
    python tools/evidence.py --no-run      no proof is run: those of the ledger and of the last file are kept, stale or not
    python tools/evidence.py --again       everything is measured again

A paper's file is written as soon as the paper is done, and a proof goes on from its last finished part, so that an interrupted run
is continued by the same command. Exit code 1 when a golden record disagrees; a proof against its paper is written down as such.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress, track

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import harness  # noqa: E402

from offprint import catalog, ledger, proofs, sources  # noqa: E402
from offprint.api import entry, list_models  # noqa: E402
from offprint.catalog import evidence  # noqa: E402
from offprint.files import atomic_write  # noqa: E402


def main(arguments: list[str]) -> int:
    flags = {a for a in arguments if a.startswith("--")}
    if flags - {"--no-run", "--again"}:
        raise SystemExit(f"unknown option: {', '.join(flags - {'--no-run', '--again'})}\n\n{__doc__}")
    chosen = [catalog.paper(a) for a in arguments if not a.startswith("--")] or [p for p in catalog.papers() if p.built]
    failed = []
    for paper in chosen:
        before = {} if "--again" in flags else evidence.snapshot(paper.slug)
        taken = {
            "golden": _golden(paper, before),
            "counts": _counts(paper, before),
            "weights": _weights(paper),
            "runnable": _runnable(paper),
            "proofs": _proofs(paper, before, run="--no-run" not in flags, again="--again" in flags),
            "runs": _runs(paper, before),
        }
        file = evidence.FOLDER / f"{paper.slug}.json"
        atomic_write(file, json.dumps(_short(taken), indent=1, sort_keys=True) + "\n")
        evidence._read.cache_clear()
        failed += [f"{paper.slug}/{stem}" for stem, row in taken["golden"].items() if not row["ok"]]
        print(f"{paper.slug}: {len(taken['golden'])} records; claims: {_told(paper)}")
    for name in failed:
        print(f"golden record {name} disagrees", file=sys.stderr)
    return 1 if failed else 0


def _told(paper: catalog.Paper) -> str:
    return ", ".join(f"{n} {name}" for name, n in evidence.counts(paper).items())


def _kept(before: dict, section: str, name: str) -> dict | None:
    """An entry of the last file that the present sources would give again."""
    row = before.get(section, {}).get(name)
    return row if row and not evidence.stale(row) else None


def _modules(paper: catalog.Paper) -> list[str]:
    """What a paper's golden records run: its file, and what of ours its adapter imports."""
    found, adapter = {paper.module}, ROOT / "tests" / "golden" / paper.slug / "adapter.py"
    for node in ast.walk(ast.parse(adapter.read_text())) if adapter.is_file() else ():
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {n for n in (node.module, *(f"{node.module}.{a.name}" for a in node.names)) if sources.file_of(n)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if sources.file_of(a.name)}
    return sorted(found - {"offprint"})


def _golden(paper: catalog.Paper, before: dict) -> dict[str, dict]:
    modules, found = _modules(paper), {}
    paths = [p for p in harness.RECORDS if p.parent.name == paper.slug]
    for path in track(paths, f"{paper.slug}: golden records", transient=True):
        kept, digest = _kept(before, "golden", path.stem), harness.sha256(path)
        if kept and kept["ok"] and kept["sha256"] == digest and kept["modules"] == modules:
            found[path.stem] = kept
            continue
        errors, worst = harness.check(path)
        api = harness.golden.load(path).get("api", {})
        found[path.stem] = {
            "sha256": digest, "ok": not errors, "worst": float(f"{worst:.1e}"), "dialect": api.get("dialect", ""),
            "model": api.get("model", ""), "modules": modules, "source": sources.digest(modules),
        }  # fmt: skip
        for error in errors:
            print(f"{harness.name(path)}: {error}", file=sys.stderr)
    return found


def _counts(paper: catalog.Paper, before: dict) -> dict[str, dict]:
    import torch

    import offprint
    from offprint.models.info import model_info

    wanted: dict[str, set] = {}
    for claim in paper.claims:
        if (link := claim.evidence.structural) and link.model in list_models():
            wanted.setdefault(link.model, set()).add((link.count, link.input))
    found = {}
    for name, inputs in track(
        sorted(wanted.items(), key=lambda item: item[0]), f"{paper.slug}: counts", transient=True
    ):
        modules = sorted({entry(name).module, paper.module, "offprint.models.info"})
        shapes, small = (
            {i: "x".join(map(str, i)) or "own" for count, i in sorted(inputs) if count == what}
            for what in ("macs", "macs_deployed")
        )
        merged = any(count == "parameters_deployed" for count, _ in inputs)
        kept = _kept(before, "counts", name)
        if (
            kept
            and kept["modules"] == modules
            and set(shapes.values()) <= set(kept["macs"])
            and set(small.values()) <= set(kept.get("macs_deployed", ()))
            and merged <= ("parameters_deployed" in kept)
        ):
            found[name] = kept
            continue
        with torch.device("meta"):
            model = offprint.create_model(name)
            parameters = sum(p.numel() for p in model.parameters())
            norms = [m for m in model.modules() if "norm" in type(m).__name__.lower() and not list(m.children())]
            norm = sum(p.numel() for m in norms for p in m.parameters())
        macs = {key: model_info(name, shape or None)["macs"] for shape, key in shapes.items()}
        found[name] = {
            "parameters": parameters,
            "parameters_without_norms": parameters - norm,
            "macs": macs,
            "modules": modules,
            "source": sources.digest(modules),
        }
        if small:
            found[name]["macs_deployed"] = {
                key: model_info(_deployed(name, light=True), shape or None)["macs"] for shape, key in small.items()
            }
        if merged:
            found[name]["parameters_deployed"] = sum(p.numel() for p in _deployed(name).parameters())
    return found


def _deployed(name: str, light: bool = False):
    """A model in its form for inference; ``light`` without weights, where its builder makes that form by itself."""
    import inspect

    import torch

    import offprint

    if light and "deploy" in inspect.signature(entry(name).build).parameters:
        with torch.device("meta"):
            return offprint.create_model(name, deploy=True)
    return offprint.deploy(offprint.create_model(name).eval())


def _weights(paper: catalog.Paper) -> dict[str, dict]:
    """What the registry says of the released weights of the models that claims are about."""
    from offprint.tasks.protocols import stated

    found: dict[str, dict] = {}
    asked = {(c.protocol.data, c.protocol.metric) for c in paper.claims if c.protocol}
    for name in sorted({c.model for c in paper.claims if c.model} & set(list_models())):
        spec = entry(name)
        for tag, w in spec.weights.items():
            size = w.input_size or spec.input_size
            metrics: dict[str, dict[str, float]] = {}
            for data, metric in sorted(asked):
                if (value := stated(w, data, metric)) is not None:
                    metrics.setdefault(data, {})[metric] = value
            found.setdefault(name, {})[tag] = {
                "publisher": w.publisher, "dialect": w.dialect, "metrics": metrics,
                "input": size[-1] if size else 0, "crop": dict(w.preprocessing or spec.preprocessing or {}).get("crop_pct", 0.0),
            }  # fmt: skip
    return found


def _runnable(paper: catalog.Paper) -> list[str]:
    from offprint.tasks import protocols

    return [c.id for c in paper.claims if c.protocol and c.model and protocols.runnable(c.model, c.protocol)]


def _proofs(paper: catalog.Paper, before: dict, *, run: bool, again: bool) -> dict[str, dict]:
    book, found = ledger.Ledger(), {}
    if paper.slug not in proofs.available():
        return found
    source = proofs.source_hash(paper.slug)
    modules = [f"offprint.proofs.{paper.slug.replace('-', '_')}", paper.module]
    for mode in proofs.MODES:
        row: Any = book.latest(mode).get(paper.slug)
        kept = before.get("proofs", {}).get(mode)
        fresh = [r for r in (row and row.source, kept and kept.get("source")) if r == source]
        if run and mode != "gpu" and (again or not fresh):
            with Progress(transient=True) as progress:
                task = progress.add_task(f"{paper.slug}: {mode} proof", total=None)

                def advance(total=None, text="", progress=progress, task=task):
                    progress.update(task, **({"total": total} if total else {"advance": 1}))

                row = proofs.prove(paper.slug, mode=mode, ledger=book, progress=advance)
        newer = row and not (kept and kept["date"] >= row.date)
        if newer and (row.source == source or not (kept and kept.get("source") == source)):
            kept = {
                "date": row.date, "ok": row.ok, "seconds": row.seconds, "figures": row.figures, "bands": row.bands,
                "question": row.question, "data": row.data, "source": source, "modules": modules,
                "versions": row.versions, "machine": row.machine,
            }  # fmt: skip
        if kept:
            found[mode] = kept
    return found


def _runs(paper: catalog.Paper, before: dict) -> list[dict]:
    """Whole measurements of ``offprint reproduce``: the newest of each model and protocol, from the ledger or the last file."""
    newest: dict[tuple, dict] = {}
    for row in [*before.get("runs", []), *ledger.Ledger().measurements(paper.slug)]:
        key = (row["model"], row["protocol"])
        if not row["partial"] and (key not in newest or row["date"] > newest[key]["date"]):
            newest[key] = {k: v for k, v in row.items() if k != "id"}
    return [newest[key] for key in sorted(newest)]


def _short(value):
    """Numbers to eight digits, throughout."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
