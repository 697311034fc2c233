"""The ledger and the catalogue as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment

from offprint.files import atomic_write

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Offprint: what was claimed, what was measured</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1d2733}
table{border-collapse:collapse;width:100%;margin:.6rem 0 1.4rem}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #dde3ea;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;background:#f3f6f9}h2{margin-top:2.4rem;border-top:2px solid #1d2733;padding-top:.6rem}.dim{color:#5b6672}
.holds,.reproduced,.equal,.structural,.indicated{color:#11703c;font-weight:600}.contradicted,.missing{color:#b3261e;font-weight:600}
.undecided,.planned{color:#7a5c00}
img{max-width:100%}code{background:#f3f6f9;padding:0 .25rem}
.bar{display:flex;height:.8rem;min-width:6rem;border-radius:2px;overflow:hidden;background:#e7ecf1}.bar span{display:block}
{% for name, colour in colours.items() %}.b-{{ name }}{background:{{ colour }}}{% endfor %}
.key span{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin:0 .3rem 0 .9rem;vertical-align:-1px}
@media(max-width:40rem){thead,tr:first-child:has(th){display:none}table,tbody,tr,td{display:block;border:0;padding:.1rem 0}tr{border-bottom:1px solid #dde3ea;padding:.5rem 0}
td[data-l]:not(:empty)::before{content:attr(data-l) ": ";color:#5b6672;font-weight:400}}
</style>
<h1>Offprint: what was claimed, what was measured</h1>
<p class="dim">Written {{ date }} · {{ versions }} · {{ machine }}</p>
<p class="key">claims by evidence:{% for name in colours %}<span class="b-{{ name }}"></span>{{ name }} {{ totals[name] }}{% endfor %}</p>
{% for kind, group in kinds %}<h3>{{ kind }}</h3><table><tr><th>paper<th>claims<th>newest proof<th>verdict</tr>
{% for r in group %}<tr><td data-l="paper">{% if r.built %}<a href="#{{ r.slug }}">{{ r.title }}</a>{% else %}{{ r.title }} <span class="planned">planned</span>{% endif %}
<td data-l="claims">{% if r.built %}<div class="bar" role="img" aria-label="{% for n, c in r.counts.items() %}{{ c }} {{ n }} {% endfor %}" title="{% for n, c in r.counts.items() %}{{ c }} {{ n }} {% endfor %}">{% for n, c in r.counts.items() %}<span class="b-{{ n }}" style="flex:{{ c }}"></span>{% endfor %}</div>{% endif %}
<td data-l="newest proof">{{ r.when }}<td data-l="verdict">{{ r.verdict }}</tr>{% endfor %}</table>{% endfor %}
{% for r in rows if r.built %}<h2 id="{{ r.slug }}">{{ r.title }} <small class="dim">{{ r.venue }}</small></h2><p>{{ r.summary }}</p>
<table><tr><th>data<th>metric<th>claimed<th>setting<th>evidence<th>rests on, or what is missing</tr>
{% for c in r.claims %}<tr><td data-l="data">{{ c.data }}<td data-l="metric">{{ c.metric }}<td data-l="claimed">{{ c.value }}<td data-l="setting">{{ c.setting }}<td data-l="evidence" class="{{ c.level }}">{{ c.level }}{% if c.stale %} <span class="dim">(stale)</span>{% endif %}<td data-l="rests on" class="dim">{{ c.basis }}</tr>{% endfor %}</table>
{% for p in r.proofs %}<h3>Proof ({{ p.mode }}, {{ p.date }}, {{ p.seconds }} s)</h3><p>{{ p.question }}<br><span class="dim">Data: {{ p.data }}</span></p>
<table><tr><th>figure<th>measured<th>declared<th>verdict</tr>
{% for b in p.bands %}<tr><td data-l="figure">{{ b.figure }}<td data-l="measured">{{ b.shown }}<td data-l="declared">{{ b.text }}<td data-l="verdict" class="{{ b.verdict }}">{{ b.verdict }}</tr>{% endfor %}</table>
{% if p.image %}<img alt="plot of the proof of {{ r.title }}" src="data:image/png;base64,{{ p.image }}">{% endif %}{% endfor %}
{% if not r.proofs %}<p class="dim">No proof in this ledger yet: <code>offprint prove {{ r.slug }}</code></p>{% endif %}{% endfor %}
</html>"""
COLOURS = {"reproduced": "#0b5d31", "equal": "#2e8b57", "structural": "#7fbf9a", "indicated": "#b5d99c", "undecided": "#e3c565",
           "contradicted": "#c8483f", "open": "#c9d2db"}  # fmt: skip


def plot_png(slug: str, figures: dict, dpi: int = 110) -> bytes:
    """A proof's plot of stored figures, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from offprint.proofs import load

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    load(slug).plot(figures, figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_report(path: str | Path, ledger=None) -> Path:
    """Write the page; the old one stays if this fails.

    Args:
        path: the HTML file.
        ledger: an open :class:`offprint.ledger.Ledger`; default the user's.

    Returns:
        The absolute path.
    """
    from offprint import catalog, proofs
    from offprint import ledger as room
    from offprint.catalog import evidence

    book = ledger or room.Ledger()
    newest = {mode: book.latest(mode) for mode in proofs.MODES}
    having = set(proofs.available())
    rows: list[dict[str, Any]] = []
    for paper in catalog.papers():
        claims, measured, taken = [], book.measurements(paper.slug), evidence.snapshot(paper.slug)
        for claim in paper.claims:
            found = evidence.level(claim, paper, taken, measured)
            claims.append({"data": claim.data, "metric": claim.metric, "value": claim.said, "setting": claim.setting,
                           "level": found.level, "basis": found.basis, "stale": found.stale})  # fmt: skip
        runs = [newest[mode][paper.slug] for mode in reversed(proofs.MODES) if paper.slug in newest[mode]]
        shown = []
        for run in runs if paper.slug in having else []:
            bands = [{**b, "shown": proofs.shown(b)} for b in run.bands if "verdict" in b]
            image = base64.b64encode(plot_png(paper.slug, run.figures)).decode()
            shown.append({"mode": run.mode, "date": run.date[:16].replace("T", " "), "seconds": round(run.seconds),
                          "question": run.question, "data": run.data, "bands": bands, "image": image})  # fmt: skip
        last = max(runs, key=lambda r: r.id, default=None)
        rows.append({
            "slug": paper.slug, "title": paper.title, "kind": paper.kind, "venue": paper.venue, "summary": paper.summary,
            "built": paper.built, "claims": claims, "proofs": shown, "when": f"{last.mode}, {last.date[:10]}" if last else "",
            "verdict": proofs.summary(last.bands, last.mode) if last else ("" if paper.built else "planned"),
            "counts": {n: k for n in COLOURS if (k := sum(c["level"] == n for c in claims))} if paper.built else {},
        })  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in room.versions().items())
    machine = room.machine()
    page = Environment(autoescape=True).from_string(PAGE).render(
        rows=rows, kinds=[(k, sorted((r for r in rows if r["kind"] == k), key=lambda r: not r["built"])) for k in catalog.KINDS],
        colours=COLOURS, totals={n: sum(r["counts"].get(n, 0) for r in rows) for n in COLOURS},
        date=room.now()[:16].replace("T", " ") + " UTC", versions=versions,
        machine=f"{machine['processor']}, {machine['cores']} cores",
    )  # fmt: skip
    return atomic_write(Path(path).absolute(), page)
