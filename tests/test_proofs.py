"""Every paper's quick proof runs and lies where it was declared to; the machinery judges, keeps and resumes."""

import html
import math
from types import SimpleNamespace

import pytest
import torch

from offprint import catalog, proofs, sources
from offprint.errors import OffprintError
from offprint.ledger import Ledger
from offprint.proofs import Band, Effect, Proof, judge, kit
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
        effects = {b.figure for bands in proof.bands.values() for b in bands if isinstance(b, Effect)}
        values = {b.figure for bands in proof.bands.values() for b in bands if isinstance(b, Band)}
        for claim in catalog.paper(slug).claims:
            if (link := claim.evidence.proof) is not None:
                assert link.figure in (values if link.protocol == "same" else effects), (
                    f"{slug}: {claim.id} rests on {link.figure}"
                )
        rests = proof.bands["full"]
        assert all(b.why for b in rests) and len({b.figure for b in rests}) == len(rests), slug


def test_report_is_one_self_contained_page(book, tmp_path):
    book.record(SimpleNamespace(slug="dagnn", mode="quick", date="2026-01-01T00:00:00", ok=False, seconds=1.0, figures={"arms": {"DAGNN Cora": [1.0]}, "sweep": {}},
                                bands=[{"figure": "cora_accuracy", "kind": "value", "value": 1.0, "interval": None, "n": None, "verdict": "contradicted",
                                        "ok": False, "unit": "%", "text": "at least 80 %"}],
                                question="Is <b>this</b> escaped?", data="d", source="", versions={}, machine={}))  # fmt: skip
    page = write_report(tmp_path / "r.html", book).read_text()
    text = html.unescape(page)
    assert [p.title for p in catalog.papers() if p.title not in text] == []
    assert 'src="data:image/png;base64,' in page and 'src="http' not in page and 'href="http' not in page
    assert (
        "at least 80 %" in page
        and "0 of 1 bands hold; contradicted: cora_accuracy" in page
        and "Is &lt;b&gt;this" in page
    )


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


def test_what_counts_as_a_change_of_a_source():
    text = (sources.ROOT / "proofs" / "dagnn.py").read_text()
    before = sources.plain(text)
    assert sources.plain(text.replace("\n\n", "\n\n# a word\n\n")) == before
    assert sources.plain(text.replace('"""', '"""Otherwise. ', 1)) == before, "a docstring"
    assert sources.plain(text.replace("slug=", "slug =")) == before, "layout"
    assert sources.plain(text.replace('slug="dagnn"', 'slug="dagn"')) != before


def test_sources_reach_what_a_proof_imports():
    found = sources.closure(["offprint.proofs.dagnn"])
    assert {"offprint.proofs.kit", "offprint.models.graphs.dagnn", "offprint.nn.graph", "offprint.tasks.nodes"} <= set(
        found
    )
    assert not set(found) & sources.FRAME
    assert sources.digest(["offprint.proofs.dagnn"]) != sources.digest(["offprint.proofs.cfsr"])
    with pytest.raises(ValueError, match="not a module"):
        sources.closure(["offprint.proofs.none"])


EFFECT = {"mean": 1.0, "low": 0.2, "high": 1.8, "n": 5}


@pytest.mark.parametrize(
    ("side", "figure", "verdict"),
    [
        ("above", EFFECT, "holds"),
        ("below", EFFECT, "contradicted"),
        ("above", {**EFFECT, "low": -0.1}, "undecided"),
        ("below", {"mean": -1.0, "low": -1.5, "high": -0.5, "n": 5}, "holds"),
        ("above", {**EFFECT, "n": 4}, "undecided"),
        ("above", {**EFFECT, "cost_ratio": 1.051}, "undecided"),
        ("above", {**EFFECT, "cost_ratio": 0.95}, "holds"),
        ("above", {**EFFECT, "low": math.nan}, "missing"),
        ("above", 1.0, "missing"),
        ("above", None, "missing"),
    ],
)
def test_effects_are_judged_by_their_intervals(side, figure, verdict):
    proof = Proof(
        "dagnn",
        "Is it?",
        "d",
        "b",
        {"quick": (Effect("f", side),), "full": (Effect("f", side),)},
        lambda c: {},
        lambda f, g: None,
    )
    row = judge(proof, "full", {} if figure is None else {"f": figure})[0]
    assert row["verdict"] == verdict and row["ok"] is (verdict == "holds")
    quick = judge(proof, "quick", {} if figure is None else {"f": figure})[0]
    assert quick["verdict"] == ("missing" if verdict == "missing" else "shown"), "quick judges no effect"


def test_the_summary_counts_bands_and_names_those_that_fail():
    proof = Proof("dagnn", "Is it?", "d", "b", {m: (Effect("a"), Effect("b"), Band("c", 1, 2)) for m in ("quick", "full")}, lambda c: {}, lambda f, g: None)  # fmt: skip
    rows = judge(proof, "full", {"a": EFFECT, "b": {**EFFECT, "low": -1.0}, "c": 3})
    assert proofs.summary(rows) == "1 of 3 bands hold; undecided: b; contradicted: c"
    assert proofs.shown(rows[0]) == "+1 (0.2 to 1.8, n 5)"


def test_the_gpu_mode_needs_an_accelerator():
    if torch.cuda.is_available():
        assert proofs.accelerator().type == "cuda"
    else:
        with pytest.raises(OffprintError, match="no accelerator"):
            proofs.prove("dagnn", mode="gpu", ledger=False)
    with pytest.raises(OffprintError, match="unknown mode"):
        proofs.prove("dagnn", mode="fast", ledger=False)
