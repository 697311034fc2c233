"""The tables that README and documentation share, made from the catalogue, the registry, the snapshot and the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import offprint
from offprint import catalog
from offprint.api import entry
from offprint.catalog import evidence

ROOT = Path(__file__).parents[1]
LEGEND = (
    "`reproduced`: same data, same protocol, measured here. `equal`: our model computes what the authors' code computes on the "
    "same weights. `structural`: the counts agree. `indicated`: the effect shows in a small experiment. `open`: nothing yet. "
    "The level is computed from golden records and proofs."
)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(c) for c in row) + " |" for row in rows)])


def measured(slug: str, taken: dict) -> str:
    """The first figure of a paper's newest proof, full before quick, and its verdict."""
    runs = taken.get("proofs", {}).get(slug, {})
    run = runs.get("full") or runs.get("quick")
    if run is None:
        return ""
    band = run["bands"][0]
    value = "missing" if band["value"] is None else f"{band['value']:.4g} {band['unit']}".strip()
    name = band["figure"].replace("_", " ")
    return f"{name} {value}, {'inside' if run['ok'] else '**outside**'} ({band['text']})"


def papers(taken: dict, link: str = "") -> str:
    """All papers: what is built, the evidence for its claims, what its proof measured."""
    rows = []
    for paper in catalog.papers():
        levels = [evidence.level(c, paper, taken).level for c in paper.claims]
        counts = ", ".join(f"{levels.count(name)} {name}" for name in evidence.LEVELS[:-1] if name in levels)
        known = f"{counts or 'none'} of {len(levels)}" if paper.built else f"{len(levels)} claims"
        title = f"[{paper.title}]({link.format(slug=paper.slug)})" if link and paper.built else paper.title
        rows.append([f"`{paper.slug}`", title, paper.venue, paper.kind, "built" if paper.built else "planned", known,
                     measured(paper.slug, taken) if paper.built else ""])  # fmt: skip
    return table(["paper", "title", "venue", "kind", "state", "claims with evidence", "proof"], rows)


def claims(paper: catalog.Paper, taken: dict) -> str:
    """A paper's claims beside their evidence."""
    rows = []
    for claim in paper.claims:
        found = evidence.level(claim, paper, taken)
        value = claim.statement if claim.value is None else f"{claim.value:,g} {claim.unit}".strip()
        place = claim.place + (" (from memory)" if claim.from_memory else "")
        rows.append([claim.data, claim.metric, value, claim.setting, place,
                     f'<span class="level-{found.level}">{found.level}</span>', found.basis])  # fmt: skip
    return table(["data", "metric", "claimed", "setting", "place", "evidence", "rests on"], rows)


def proof(run: dict) -> str:
    """What a proof asked and measured."""
    rows = []
    for band in run["bands"]:
        value = "missing" if band["value"] is None else f"{band['value']:.4g} {band['unit']}".strip()
        verdict = "inside" if band["ok"] else "outside"
        rows.append([band["figure"], value, band["text"], f'<span class="{verdict}">{verdict}</span>'])
    where = f"{run['machine'].get('processor', '')}, {run['machine'].get('cores', '?')} cores"
    words = (
        f"{run['question']}\n\nData: {run['data']}. Measured {run['date'][:10]} in {run['seconds']:.0f} s on {where}."
    )
    return words + "\n\n" + table(["figure", "measured", "declared band", "verdict"], rows)


def models(names: list[str]) -> str:
    """Models with their parameter counts, input shapes and released weights."""
    rows = []
    for name in names:
        with torch.device("meta"):
            count = sum(p.numel() for p in offprint.create_model(name).parameters())
        spec = entry(name)
        shape = " x ".join(map(str, spec.input_size)) if spec.input_size else ""
        rows.append([f"`{name}`", f"{count:,}", shape, ", ".join(spec.weights)])
    return table(["model", "parameters", "input", "released weights"], rows)


def benchmarks(file: Path = ROOT / "benchmarks" / "results.json") -> str:
    """What ``make bench`` last measured."""
    if not file.is_file():
        return "Not measured yet: `make bench`."
    rows, dates, machines = [], set(), set()
    for slug, kept in sorted(json.loads(file.read_text()).items()):
        dates.add(kept["date"][:10])
        machines.add(f"{kept['machine']['processor']}, {kept['machine']['threads']} threads")
        for r in kept["rows"]:
            memory = f"{r['memory'][0] / 1e6:,.0f} / {r['memory'][1] / 1e6:,.0f}" if r["memory"] else ""
            rows.append([f"`{slug}`", r["what"], r["peer"], f"{r['ours']:.4g}", f"{r['theirs']:.4g}", f"{r['ratio']:.2f}",
                         memory, r["note"]])  # fmt: skip
    head = ["paper", "work", "peer", "ours (s)", "theirs (s)", "ratio", "peak MB ours / theirs", ""]
    return f"Measured {', '.join(sorted(dates))} on {'; '.join(sorted(machines))}.\n\n" + table(head, rows)


def commands() -> str:
    """Every verb with its help text, as the command line prints it."""
    from typer.main import get_command

    from offprint.cli.main import app

    def page(command, path: list[str]) -> list[str]:
        import click

        inner = getattr(command, "commands", None)
        if inner:
            return [line for name in sorted(inner) for line in page(inner[name], [*path, name])]
        context = click.Context(command, info_name=path[-1])
        rows = [[f"`{' '.join(o.opts) if o.param_type_name == 'option' else o.name}`", getattr(o, "help", "") or "",
                 "" if o.default in (None, [], ()) or callable(o.default) else f"`{o.default}`"]
                for o in command.get_params(context) if o.name != "help"]  # fmt: skip
        text = (command.help or "").strip()
        return [f"## `{' '.join(path)}`", text, table(["option", "", "default"], rows)]

    return "# The command line\n\n" + "\n\n".join(page(get_command(app), ["offprint"])) + "\n"
