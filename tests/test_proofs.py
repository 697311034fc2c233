"""Every paper's quick proof runs and lies where it was declared to; the machinery judges, keeps and resumes."""

import html
import math
from types import SimpleNamespace

import pytest
import torch

from offprint import catalog, proofs
from offprint.errors import OffprintError
from offprint.ledger import Ledger
from offprint.proofs import Band, Proof, judge, kit
from offprint.report import plot_png, write_report

BUILT = [p.slug for p in catalog.papers() if p.built]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'l.sqlite'}")


@pytest.mark.parametrize("slug", proofs.available())
def test_quick(slug, book):
    state = torch.get_rng_state()
    seen = {"total": None, "steps": 0}

    def progress(total=None, text=""):
        seen["total"] = total or seen["total"]
        seen["steps"] += bool(text)

    verdict = proofs.prove(slug, quick=True, ledger=book, progress=progress)
    assert [b for b in verdict.bands if not b["ok"]] == []
    assert seen["steps"] == seen["total"] > 0
    assert torch.equal(state, torch.get_rng_state())
    assert plot_png(slug, verdict.figures)[:4] == b"\x89PNG"
    assert book.latest("quick")[slug].figures == verdict.figures


def test_every_built_paper_has_one():
    assert proofs.available() == sorted(BUILT)
    for slug in BUILT:
        proof = proofs.load(slug)
        assert proof.slug == slug and proof.question.endswith("?") and proof.data and proof.baseline
        linked = {
            (c.evidence.proof.mode, c.evidence.proof.figure) for c in catalog.paper(slug).claims if c.evidence.proof
        }
        declared = {(mode, b.figure) for mode, bands in proof.bands.items() for b in bands}
        assert linked <= declared, f"{slug}: claims rest on figures that no band judges: {linked - declared}"


def test_report_is_one_self_contained_page(book, tmp_path):
    book.record(SimpleNamespace(slug="dagnn", mode="quick", date="2026-01-01T00:00:00", ok=False, seconds=1.0, figures={"arms": {"DAGNN Cora": [1.0]}, "sweep": {}},
                                bands=[{"figure": "cora_accuracy_mean", "low": 80, "high": None, "value": 1.0, "ok": False, "unit": "%", "text": "at least 80 %"}],
                                question="Is <b>this</b> escaped?", data="d", source="", versions={}, machine={}))  # fmt: skip
    page = write_report(tmp_path / "r.html", book).read_text()
    text = html.unescape(page)
    assert [p.title for p in catalog.papers() if p.title not in text] == []
    assert 'src="data:image/png;base64,' in page and 'src="http' not in page and 'href="http' not in page
    assert "at least 80 %" in page and "outside" in page and "Is &lt;b&gt;this" in page


def _proof(run, **kwargs):
    return Proof(
        "dagnn",
        "Is it?",
        "d",
        "b",
        {m: (Band("f", 1, 2, "%"),) for m in proofs.MODES},
        run,
        lambda f, g: None,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("value", "ok"),
    [(1, True), (2.0, True), (2.01, False), (math.nan, False), (None, False), (True, False), ("1", False)],
)
def test_judging(value, ok):
    row = judge(_proof(lambda c: {}), "quick", {"f": value} if value is not None else {})[0]
    assert row["ok"] is ok and row["text"] == "1 to 2 %"


def test_bands():
    assert str(Band("f", 3)) == "at least 3" and str(Band("f", high=3, unit="s")) == "at most 3 s"
    with pytest.raises(OffprintError, match="quick and full"):
        Proof("x", "q?", "d", "b", {"quick": (Band("f", 0),)}, lambda c: {}, lambda f, g: None)


def test_an_interrupted_proof_goes_on(book, monkeypatch):
    calls = []

    def run(ctx):
        ctx.total(3)
        for i in range(3):
            ctx.step(str(i))

            def work(i=i):
                if i == 2 and len(calls) < 3:
                    calls.append("interrupted")
                    raise KeyboardInterrupt
                calls.append(i)
                return i

            ctx.part(str(i), work)
        return {"f": 1.5}

    monkeypatch.setattr(proofs, "load", lambda slug: _proof(run))
    with pytest.raises(KeyboardInterrupt):
        proofs.prove("dagnn", ledger=book)
    assert proofs.prove("dagnn", ledger=book).ok
    assert calls == [0, 1, "interrupted", 2]
    proofs.prove("dagnn", ledger=book)
    assert calls[-3:] == [0, 1, 2]


def test_runs_may_return_more_than_a_score():
    ctx = SimpleNamespace(step=lambda text: None, part=lambda key, compute: compute())
    plain = kit.Arm("plain", lambda seed, rate, part: {"score": seed + rate, "ndcg": -seed})
    ours = kit.Arm("ours", lambda seed, rate, part: {"score": seed + 2 * rate, "ndcg": 1.0 - seed})
    found = kit.compare(ctx, [plain, ours], seeds=(0, 1, 2), rates=(0.5, 1.0))
    assert found.scores == {"plain": [1.0, 2.0, 3.0], "ours": [2.0, 3.0, 4.0]} and found.rates["ours"] == 1.0
    assert found.effect("ours")["mean"] == found.effect("ours", metric="ndcg")["mean"] == 1.0
    assert found.metrics["ndcg"] == {"plain": [0, -1, -2], "ours": [1.0, 0.0, -1.0]}


def test_unknown_names_offer_the_nearest():
    with pytest.raises(OffprintError, match="dagnn"):
        proofs.load("dagn")
    with pytest.raises(OffprintError, match="convnext"):
        proofs.names(["dagnn", "convnet"])


def test_a_layout_change_is_not_a_change(tmp_path, monkeypatch):
    before = proofs.source_hash("dagnn")
    text = (proofs.Path(proofs.__file__).parent / "dagnn.py").read_text()
    monkeypatch.setattr(proofs, "Path", lambda *_: tmp_path / "__init__.py")
    (tmp_path / "dagnn.py").write_text(text.replace("\n", "\n\n"))
    assert proofs.source_hash("dagnn") == before
    (tmp_path / "dagnn.py").write_text(text.replace("82.5", "82.6"))
    assert proofs.source_hash("dagnn") != before
