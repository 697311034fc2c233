"""The tables that README and documentation share, made from the catalogue, the registry, the snapshot and the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import geometric_mean

import torch

import offprint
from offprint import catalog, proofs
from offprint.api import entry
from offprint.catalog import evidence

ROOT = Path(__file__).parents[1]
LEGEND = (
    "`reproduced`: measured here on the claim's own data by its own protocol, inside the printed spread or half the last digit plus "
    "the sampling error. `equal`: the releasing party states this figure for its own weights, we run the protocol, and a record of "
    "that party's code passes. `structural`: our count rounds to the printed value. `indicated`: the effect's 95 % interval over at "
    "least five paired seeds lies on the claimed side. `undecided`: it holds zero. `contradicted`: measured, and outside or on the "
    "other side. `open`: nothing yet. The level is computed by rules, and marked stale where the code has changed since."
)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(c) for c in row) + " |" for row in rows)])


def measured(slug: str) -> str:
    """How many bands of a paper's newest proof hold, full before quick, and which do not."""
    runs = evidence.snapshot(slug).get("proofs", {})
    mode = next((m for m in ("gpu", "full") if m in runs), None)
    if mode is None:
        return "not run in full"
    run = runs[mode]
    old = ", stale" if evidence.stale(run) else ""
    failed = [f"{b['figure'].replace('_', ' ')} {proofs.shown(b)} {b['verdict']}" for b in run["bands"] if not b["ok"]]
    return f"{sum(b['ok'] for b in run['bands'])} of {len(run['bands'])} bands hold ({mode}{old})" + "".join(
        f"; {f}" for f in failed
    )


def papers(link: str = "") -> str:
    """All papers: what is built, the evidence for its claims, what its proof measured."""
    rows = []
    for paper in catalog.papers():
        counts = ", ".join(f"{n} {name}" for name, n in evidence.counts(paper).items() if name != "open")
        known = f"{counts or 'none'} of {len(paper.claims)}" if paper.built else f"{len(paper.claims)} claims"
        title = f"[{paper.title}]({link.format(slug=paper.slug)})" if link and paper.built else paper.title
        rows.append([f"`{paper.slug}`", title, paper.venue, paper.kind, "built" if paper.built else "planned", known,
                     measured(paper.slug) if paper.built else ""])  # fmt: skip
    return table(["paper", "title", "venue", "kind", "state", "claims with evidence", "proof"], rows)


def kinds() -> str:
    """The papers by kind: how many are built, and which."""
    rows = []
    for kind in catalog.KINDS:
        papers = catalog.papers(kind)
        built = [p.slug for p in papers if p.built]
        rows.append([kind, f"{len(built)} of {len(papers)}", ", ".join(built) or "planned"])
    return table(["kind", "built", "papers"], rows)


def levels() -> str:
    """How many claims of the built papers have each level."""
    built = [p for p in catalog.papers() if p.built]
    counts = [evidence.counts(p) for p in built]
    rows = [[name, sum(c.get(name, 0) for c in counts)] for name in evidence.LEVELS]
    return table(["level", f"claims of the {len(built)} built papers"], rows)


def claims(paper: catalog.Paper) -> str:
    """A paper's claims beside their evidence."""
    rows = []
    for claim in paper.claims:
        found = evidence.level(claim, paper)
        place = claim.place + (" (from memory)" if claim.from_memory else "")
        told = f'<span class="level-{found.level}">{found.level}</span>' + (" (stale)" if found.stale else "")
        rows.append([claim.data, claim.metric, claim.said, claim.setting, place, told, found.basis])
    return table(["data", "metric", "claimed", "setting", "place", "evidence", "rests on, or what is missing"], rows)


def proof(run: dict) -> str:
    """What a proof asked and measured."""
    rows = [
        [b["figure"], proofs.shown(b), b["text"], f'<span class="{b["verdict"]}">{b["verdict"]}</span>']
        for b in run["bands"]
    ]
    where = f"{run['machine'].get('processor', '')}, {run['machine'].get('cores', '?')} cores"
    words = (
        f"{run['question']}\n\nData: {run['data']}. Measured {run['date'][:10]} in {run['seconds']:.0f} s on {where}."
    )
    return words + "\n\n" + table(["figure", "measured", "declared", "verdict"], rows)


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
            rows.append([f"`{slug}`", r["what"], r["form"], r["peer"], f"{r['ours']:.4g}", f"{r['theirs']:.4g}",
                         f"{r['ratio']:.2f}", memory, r["note"]])  # fmt: skip
    head = ["paper", "work", "form", "peer", "ours (s)", "theirs (s)", "ratio", "peak MB ours / theirs", ""]
    return f"Measured {', '.join(sorted(dates))} on {'; '.join(sorted(machines))}.\n\n" + table(head, rows)


EARLIER = "ours deployed, the peer as built"  # rows measured before the forms were told apart
FORMS = {
    "same form": "both eager in fp32, each in the memory format that is better for it",
    "best against best": "ours through `deploy`, the peer fused where it can be and in its best format, the same precision",
    EARLIER: "ours in channels-last memory, the peer eager: not like with like, to be measured again with `make bench`",
    "": "other work, the same on both sides",
}


def speed(file: Path = ROOT / "benchmarks" / "results.json") -> str:
    """The benchmarks in a few lines: by form how many rows, the geometric mean of their ratios, and the worst; then by paper."""
    if not file.is_file():
        return "Not measured yet: `make bench`."
    kept = json.loads(file.read_text())
    rows = [(slug, r) for slug in sorted(kept) for r in kept[slug]["rows"] if not r["growth"]]  # those are about memory
    lines = [f"{len(rows)} rows of {len(kept)} papers, each their time over ours; above 1 we are faster."]
    for form, words in FORMS.items():
        own = [(r["ratio"], f"{slug}, {r['what']}, against {r['peer']}") for slug, r in rows if r["form"] == form]
        if own:
            worst, behind = min(own), sum(ratio < 1 for ratio, _ in own)
            lines.append(f"{f'*{form}*: ' if form else ''}{words}. {len(own)} rows, geometric mean "
                         f"{geometric_mean([ratio for ratio, _ in own]):.2f}, {behind} below 1, worst {worst[0]:.2f} ({worst[1]}).")  # fmt: skip
    means = {slug: geometric_mean([r["ratio"] for of, r in rows if of == slug]) for slug, _ in rows}
    lines.append("By paper: " + ", ".join(f"{slug} {mean:.2f}" for slug, mean in means.items()) + ".")
    return "\n".join(f"- {line}" for line in lines)


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


def tasks() -> str:
    """The page of tasks: what each does, for which models, and what it lets one choose."""
    from offprint import api

    parts = [
        "# Tasks",
        "`offprint train | evaluate | predict | export | reproduce` run any of these; `offprint tasks NAME` prints the same.",
    ]
    for task in api.tasks().values():
        able = api.models_of(task.name)
        listed = ", ".join(f"`{n}`" for n in able[:12]) + (f" and {len(able) - 12} more" if len(able) > 12 else "")
        parts += [f"## {task.name}", f"A model {task.does}. Models: {listed}."]
        rows = [
            [verb, f"`--{c.name.replace('_', '-')}`", "" if c.default is None else f"`{c.default}`", c.help]
            for verb, found in (
                ("train", task.offers()),
                ("evaluate", api.choices(task.evaluate)),
                ("predict", api.choices(task.predict)),
            )
            for c in found.values()
        ]
        if rows:
            parts.append(table(["verb", "option", "default", ""], rows))
    return "\n\n".join(parts) + "\n"
