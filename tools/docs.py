"""Write the generated pages of the documentation: one per paper, one per public module, the table of papers, the navigation.

    python tools/docs.py        (``make docs`` runs it, then mkdocs)

Everything comes from the papers' files, the catalogue and the evidence snapshot; plots are drawn from the snapshot's figures.
"""

from __future__ import annotations

import ast
import inspect
import sys
from importlib import import_module
from pathlib import Path

import yaml
from rich.progress import track

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import rst  # noqa: E402
import tables  # noqa: E402

from offprint import catalog, proofs  # noqa: E402
from offprint.api import entry, list_models  # noqa: E402
from offprint.catalog import evidence  # noqa: E402
from offprint.report import plot_png  # noqa: E402

DOCS = ROOT / "docs"
API = {
    "Models": ["offprint.models.registry", "offprint.models.factory", "offprint.models.parts", "offprint.models.compose", "offprint.models.backbone", "offprint.models.checkpoint",
               "offprint.models.weight_files",
               "offprint.models.hub", "offprint.models.sharing", "offprint.models.deploy", "offprint.models.info", "offprint.models.export"],
    "Proofs, ledger, catalogue": ["offprint.proofs", "offprint.ledger", "offprint.report", "offprint.catalog", "offprint.catalog.evidence"],
    "Errors and files": ["offprint.errors", "offprint.files"],
}  # fmt: skip
ROOMS = ("nn", "tasks", "data")
PAGES = {
    "Home": "index.md",
    "Use with other libraries": "together.md",
    "The command line": "commands.md",
    "Tasks": "tasks.md",
}


def usage(paper: catalog.Paper) -> str:
    """The example of a paper's module docstring where there is one, otherwise the registry's calls."""
    names = list_models(paper=paper.slug)
    lines = ["import offprint", ""]
    if names:
        name = names[0]
        lines += [f'model = offprint.create_model("{name}")']
        if entry(name).kind == "backbone":
            lines += [f'pyramid = offprint.create_model("{name}", features_only=True)']
        if entry(name).weights:
            lines += [f'model = offprint.create_model("{name}", pretrained=True)   # {", ".join(entry(name).weights)}']
        lines += [f'model = offprint.create_model("{name}", checkpoint_path="weights.pth")   # {dialects(name)} names']
    else:
        module = import_module(paper.module)
        public = [n for n in vars(module) if not n.startswith("_") and inspect.getmodule(vars(module)[n]) is module
                  and callable(vars(module)[n])]  # fmt: skip
        lines = [f"from {paper.module} import {', '.join(public[:6])}"]
    lines += ["", f'offprint.prove("{paper.slug}")'] if paper.slug in proofs.available() else []
    return "```python\n" + "\n".join(lines) + "\n```"


def dialects(name: str) -> str:
    """Whose tensor names a model's files may carry."""
    cls = entry(name).build
    return ", ".join(dict.fromkeys([getattr(cls, "native", "our"), *(d.name for d in getattr(cls, "dialects", ()))]))


def paper_page(paper: catalog.Paper) -> str:
    docstring = ast.get_docstring(ast.parse(Path(import_module(paper.module).__file__).read_text())) or ""
    title, _, rest = docstring.partition("\n")
    arxiv = f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv}) · " if paper.arxiv else ""
    parts = [
        f"# {paper.title}",
        f"{', '.join(paper.authors)}{' · ' if paper.authors else ''}{paper.venue} · {arxiv}`{paper.slug}`",
    ]
    parts += [paper.summary, "## Idea", rst.markdown(rest.strip() or title), "## Use", usage(paper)]
    names = list_models(paper=paper.slug)
    if names:
        parts += ["## Models", tables.models(names)]
    parts += ["## Claims and evidence", tables.claims(paper), tables.LEGEND]
    for mode, run in sorted(evidence.snapshot(paper.slug).get("proofs", {}).items()):
        parts += [f"## Proof ({mode})", tables.proof(run)]
        picture = DOCS / "papers" / f"{paper.slug}-{mode}.png"
        picture.write_bytes(plot_png(paper.slug, run["figures"], dpi=100))
        parts += [f"![{run['question']}]({picture.name})"]
    parts += ["## In the code", f"::: {paper.module}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false"
              "\n      show_docstring_description: true"]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def module_page(title: str, modules: list[str]) -> str:
    return f"# {title}\n\n" + "\n\n".join(f"## `{m}`\n\n::: {m}" for m in modules) + "\n"


def main() -> None:
    for folder in ("papers", "api"):
        (DOCS / folder).mkdir(parents=True, exist_ok=True)
        for old in (DOCS / folder).iterdir():
            old.unlink()
    built = [p for p in catalog.papers() if p.built]
    nav_papers: dict[str, list] = {}
    for paper in track(built, "papers"):
        (DOCS / "papers" / f"{paper.slug}.md").write_text(paper_page(paper))
        nav_papers.setdefault(paper.kind, []).append({paper.title.split(":")[0]: f"papers/{paper.slug}.md"})
    (DOCS / "papers" / "index.md").write_text(f"# Papers\n\n{tables.papers(link='{slug}.md')}\n\n{tables.LEGEND}\n")
    nav_api = []
    api = dict(API)
    for room in ROOMS:
        files = sorted(p for p in (ROOT / "src" / "offprint" / room).glob("*.py") if not p.name.startswith("_"))
        api[room] = [f"offprint.{room}.{p.stem}" for p in files]
    for title, modules in api.items():
        file = title.lower().replace(",", "").replace(" ", "-") + ".md"
        (DOCS / "api" / file).write_text(module_page(title, modules))
        nav_api.append({title: f"api/{file}"})
    readme = (ROOT / "README.md").read_text()
    (DOCS / "index.md").write_text(
        readme.replace("(CONTRIBUTING.md)", "(contributing.md)").replace("(CHANGELOG.md)", "(changelog.md)")
    )
    for name in ("CONTRIBUTING", "CHANGELOG"):
        (DOCS / f"{name.lower()}.md").write_text((ROOT / f"{name}.md").read_text())
    (DOCS / "commands.md").write_text(tables.commands())
    (DOCS / "tasks.md").write_text(tables.tasks())
    (DOCS / "benchmarks.md").write_text(f"# Benchmarks\n\n{tables.speed()}\n\n{tables.benchmarks()}\n")
    nav = [{k: v} for k, v in PAGES.items()]
    nav += [{"Papers": [{"All": "papers/index.md"}, *({kind: pages} for kind, pages in nav_papers.items())]}]
    nav += [{"API": nav_api}, {"Adding a paper": "contributing.md"}, {"Changes": "changelog.md"}]
    settings = (ROOT / "mkdocs.yml").read_text()
    (ROOT / "build").mkdir(exist_ok=True)
    head = settings.replace("docs_dir: docs", f"docs_dir: {DOCS}").replace(
        "site_dir: site", f"site_dir: {ROOT / 'site'}"
    )
    head = head.replace("paths: [src]", f"paths: [{ROOT / 'src'}]").replace(
        "tools/rst.py", str(ROOT / "tools" / "rst.py")
    )
    (ROOT / "build" / "mkdocs.yml").write_text(head + yaml.safe_dump({"nav": nav}, sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    main()
