"""The catalogue: all sixty papers, errors that name file and field, and computed evidence."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from offprint import catalog, proofs, sources
from offprint.catalog import Basis, CatalogError, Claim, ProofLink, Protocol, Structural, evidence
from offprint.errors import OffprintError

GOOD = """title = "T"
year = 2020
venue = "V"
kind = "graph"
task = "t"
summary = "One sentence. Two sentences."
[[claims]]
id = "a"
data = "d"
metric = "m"
value = 1.0
"""


def test_all_sixty_load():
    assert len(catalog.papers()) == 60
    assert sum(len(p.claims) for p in catalog.papers()) > 400
    assert catalog.paper("swin_v2").slug == "swin-v2"
    assert [p.slug for p in catalog.papers(search="house numbers")] == ["multi-digit"]
    assert {p.kind for p in catalog.papers()} == set(catalog.KINDS)
    assert all(p.kind == "federated" for p in catalog.papers(kind="federated"))


def test_unknown_names_offer_the_nearest():
    with pytest.raises(OffprintError, match="convnext"):
        catalog.paper("convnxt")
    with pytest.raises(OffprintError, match="graph"):
        catalog.papers(kind="graphs")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('title = "T"', "", "'title' is missing"),
        ("year = 2020", 'year = "2020"', "year should be int"),
        ("year = 2020", "year = 20", "year: 20 is not"),
        ('kind = "graph"', 'kind = "graphs"', "kind: 'graphs'"),
        ('task = "t"', 'task = "t"\ncolour = 1', "unknown field 'colour'"),
        ("Two sentences.", "Two. Three.", "summary: should be two"),
        ('task = "t"', 'task = "t"\narxiv = "x"', "arxiv"),
        ('id = "a"', 'id = "A b"', r"claims\[0\] \(A b\).id"),
        ("value = 1.0", "", "either a value or a statement"),
        ("value = 1.0", 'value = "1"', r"claims\[0\]: value should be"),
        (
            "value = 1.0",
            "value = 1.0\nevidence = {proof = {figure = 'x', protocol = 'like'}}",
            "proof.protocol",
        ),
        (
            "value = 1.0",
            "value = 1.0\nevidence = {structural = {model = 'x', count = 'layers'}}",
            "parameters_without_norms",
        ),
        ('title = "T"', "title = ", "not valid TOML"),
        ('title = "T"', 'title = "T"\nslug = "x"', "slug"),
    ],
)
def test_errors_name_file_and_field(tmp_path, old, new, says):
    file = tmp_path / "bad-one.toml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(CatalogError, match=says) as caught:
        catalog.load_file(file)
    assert "bad-one.toml" in str(caught.value)


def test_duplicate_claims_are_refused(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(GOOD + '[[claims]]\nid = "a"\ndata = "d"\nmetric = "m"\nvalue = 2.0\n')
    with pytest.raises(CatalogError, match="stands twice"):
        catalog.load_file(file)


def test_printed_digits_and_protocol_are_read(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(
        GOOD.replace(
            "value = 1.0",
            "value = 82.10\nspread = 0.3\nmodel = 'm'\nprotocol = {data = 'd', metric = 'top1', input = 224}",
        )
    )
    claim = catalog.load_file(file).claims[0]
    assert (claim.value, claim.digits, claim.spread, claim.said) == (82.1, 2, 0.3, "82.10 ± 0.3")
    assert claim.protocol.key == "data=d input=224"
    file.write_text(GOOD.replace("value = 1.0", "value = 43857"))
    assert (catalog.load_file(file).claims[0].said, catalog.load_file(file).claims[0].digits) == ("43,857", 0)
    file.write_text(GOOD.replace("value = 1.0", "value = 1.50e-3"))
    assert catalog.load_file(file).claims[0].digits == 5


# -- the rules of evidence: for each, a case in which it must grant and those in which it must refuse --------------------
MODULES = ["offprint.nn.norm"]
ROW = {"modules": MODULES, "source": sources.digest(MODULES)}


def _paper(*claims):
    return dataclasses.replace(catalog.paper("dagnn"), claims=claims)


def _level(claim, taken=None, runs=(), others=()):
    return evidence.level(claim, _paper(claim, *others), taken or {}, runs)


def _claim(value=82.1, digits=1, **kwargs):
    kwargs.setdefault("protocol", Protocol("imagenet-1k", "top1", input=224))
    return Claim("c", "d", "m", value=value, digits=digits, model="net", unit="%", **kwargs)


def _run(value=82.08, error=0.0, metric="top1", **changes):
    run = {"model": "net", "protocol": "data=imagenet-1k input=224", "metrics": {metric: {"value": value, "error": error}},
           "partial": False, "seeds": 1, "date": "2026-01-01T00:00:00", "weights": "w", "data_digest": "0123456789", **ROW}  # fmt: skip
    return {**run, **changes}


def test_reproduced_is_granted():
    assert _level(_claim(), runs=[_run()]).level == "reproduced"
    assert _level(_claim(), runs=[_run(81.9, error=0.17)]).level == "reproduced", "half a digit and the sampling error"
    assert _level(_claim(spread=0.5), runs=[_run(81.7)]).level == "reproduced", "the printed spread"
    assert _level(_claim(), {"runs": [_run()]}).level == "reproduced", "measured where the evidence was written"
    newer = _run(82.1, date="2026-02-01T00:00:00")
    assert _level(_claim(), runs=[_run(70.0), newer]).level == "reproduced", "the newest counts"


@pytest.mark.parametrize(
    "changes",
    [
        {"partial": True},
        {"model": "another"},
        {"protocol": "data=imagenet-v2 input=224"},
        {"protocol": "data=imagenet-1k input=384"},
        {"metrics": {"top5": {"value": 82.1, "error": 0}}},
    ],
)
def test_reproduced_is_refused(changes):
    assert _level(_claim(), runs=[_run(**changes)]).level == "open"


def test_outside_is_contradicted_and_metrics_stand_or_fall_together():
    assert _level(_claim(), runs=[_run(81.9)]).level == "contradicted"
    assert _level(_claim(spread=0.1), runs=[_run(81.9, error=1.0)]).level == "contradicted", (
        "the printed spread is the measure"
    )
    second = Claim(
        "e", "d", "m5", value=95.9, digits=1, model="net", protocol=Protocol("imagenet-1k", "top5", input=224)
    )
    both = _run(metrics={"top1": {"value": 82.1, "error": 0}, "top5": {"value": 95.0, "error": 0}})
    found = _level(_claim(), runs=[both], others=(second,))
    assert found.level == "contradicted" and "top5 95.000, claimed 95.9" in found.basis
    few = _claim(protocol=Protocol("imagenet-1k", "top1", input=224, seeds=10))
    assert _level(few, runs=[_run(protocol=few.protocol.key)]).level == "open", "one of ten runs"


def test_a_repositorys_figure_stands_apart_from_its_papers():
    mine, theirs = _claim(81.3, place="Table 1"), dataclasses.replace(_claim(81.0, place="repository"), id="e")
    run = _run(81.28)
    assert _level(mine, runs=[run], others=(theirs,)).level == "reproduced"
    assert evidence.level(theirs, _paper(mine, theirs), {}, [run]).level == "contradicted"
    both = dataclasses.replace(theirs, place="Table 1, repository")
    assert _level(mine, runs=[run], others=(both,)).level == "contradicted"


def test_a_run_counts_for_the_claims_about_its_weights():
    """1K and 22K weights of one model at one size: each claim has its own."""
    taken = {"weights": {"net": {tag: {"publisher": "authors", "dialect": "authors", "metrics": {"imagenet-1k": {"top1": v}}, "input": 224, "crop": 0.875}
                                 for tag, v in (("in1k", 82.1), ("in22k", 82.9))}}}  # fmt: skip
    one, two = _claim(82.1, place="Table 1"), dataclasses.replace(_claim(82.9, place="Table 1"), id="e")
    run = _run(82.08, tag="in1k")
    assert _level(one, taken, [run], (two,)).level == "reproduced"
    assert evidence.level(two, _paper(one, two), taken, [run]).level == "open"
    assert evidence.level(two, _paper(one, two), taken, [_run(82.88, tag="in22k"), run]).level == "reproduced"


def test_stale_says_so():
    assert not _level(_claim(), runs=[_run()]).stale
    assert _level(_claim(), runs=[_run(source="another")]).stale
    assert _level(_claim(), runs=[_run(modules=["offprint.gone"])]).stale


def _proof(value_of_f, mode="full", **band):
    row = {"figure": "f", "kind": "effect", "value": 1.0, "interval": [0.2, 1.8], "n": 5, "cost_ratio": 1.01, "unit": "points",
           "text": "above 0 points", "ok": True, **band}  # fmt: skip
    return {"proofs": {mode: {"date": "2026-01-01T00:00:00", "figures": {"f": value_of_f}, "bands": [row], **ROW}}}


def test_a_proof_by_the_papers_own_protocol():
    claim = _claim(84.4, protocol=Protocol("cora", "accuracy", seeds=5), evidence=Basis(proof=ProofLink("f", "same")))
    inside, outside = ({"mean": m, "std": 0.5, "n": 5, "low": 0, "high": 0} for m in (84.6, 83.9))
    assert _level(claim, _proof(inside)).level == "reproduced"
    assert _level(claim, _proof(outside)).level == "contradicted"
    assert _level(claim, _proof({**inside, "n": 2})).level == "open", "two of five runs"
    assert "2 of the protocol's 5 runs" in _level(claim, _proof({**inside, "n": 2})).basis
    assert _level(claim, _proof(inside, mode="quick")).level == "open", "quick promises nothing"
    small = dataclasses.replace(claim, evidence=Basis())
    assert _level(small, _proof(inside)).level == "open"


def _released(**changes):
    weights = {
        "publisher": "authors",
        "dialect": "authors",
        "metrics": {"imagenet-1k": {"top1": 82.1}},
        "input": 224,
        "crop": 0.875,
    }
    record = {"ok": True, "dialect": "authors", "model": "net", "worst": 1e-9, **ROW}
    return {"weights": {"net": {"in1k": {**weights, **changes.pop("weights", {})}}}, "golden": {"r": {**record, **changes.pop("record", {})}},
            "runnable": ["c"], **changes}  # fmt: skip


def test_equal_is_granted():
    claim = _claim(evidence=Basis(golden=("r",)))
    assert _level(claim, _released()).level == "equal"
    assert _level(claim, _released(weights={"metrics": {"imagenet-1k": {"top1": 82.14}}})).level == "equal", (
        "rounds to it"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"weights": {"metrics": {"imagenet-1k": {"top1": 81.2}}}}, "state 81.2"),
        ({"weights": {"metrics": {"imagenet-v2": {"top1": 82.1}}}}, "no registered weights state"),
        ({"weights": {"metrics": {}}}, "no registered weights state"),
        ({"weights": {"input": 384}}, "no registered weights state"),
        ({"weights": {"publisher": "timm", "dialect": "timm"}}, "no record of the releasing party"),
        ({"record": {"ok": False}}, "no record of the releasing party"),
        ({"record": {"model": ""}}, "no record of the releasing party"),
        ({"golden": {}}, "no record of the releasing party"),
        ({"runnable": []}, "does not run this protocol"),
        ({"weights": {"publisher": "timm", "dialect": "cadene"}}, "no record of the releasing party"),
        ({"weights": {}, "runnable": ["c"], "golden": {}}, "no record"),
    ],
)
def test_equal_is_refused(changes, why):
    found = _level(_claim(evidence=Basis(golden=("r",))), _released(**changes))
    assert found.level == "open" and why in found.basis


def test_equal_needs_weights_of_this_model_and_one_plain_view():
    taken = _released()
    taken["weights"] = {"other": taken["weights"]["net"]}
    assert _level(_claim(evidence=Basis(golden=("r",))), taken).level == "open"
    crops = Protocol("imagenet-1k", "top1", input=224, steps="144-crop")
    assert _level(_claim(evidence=Basis(golden=("r",)), protocol=crops), _released()).level == "open"
    assert _level(_claim(evidence=Basis(golden=("r",)), protocol=None), _released()).level == "open"


@pytest.mark.parametrize(
    ("value", "digits", "unit", "count", "level"),
    [
        (28.6, 1, "M", 28_589_128, "structural"),
        (29, 0, "M", 28_589_128, "structural"),
        (28, 0, "M", 28_589_128, "contradicted"),
        (28.5, 1, "M", 28_589_128, "contradicted"),
        (43857, 0, "", 43857, "structural"),
        (43857, 0, "", 43858, "contradicted"),
    ],
)
def test_structural_rounds_to_the_printed_value(value, digits, unit, count, level):
    claim = Claim("c", "d", "parameters", value=value, digits=digits, unit=unit,
                  evidence=Basis(structural=Structural("net", "parameters")))  # fmt: skip
    assert _level(claim, {"counts": {"net": {"parameters": count, "macs": {}, **ROW}}}).level == level
    assert _level(claim).level == "open"


def test_structural_counts_multiply_adds_at_the_claims_input():
    taken = {"counts": {"net": {"parameters": 1, "macs": {"3x8x8": 4_460_000_000}, **ROW}}}
    claim = Claim(
        "c", "d", "macs", value=4.5, digits=1, unit="G", evidence=Basis(structural=Structural("net", "macs", (3, 8, 8)))
    )
    assert _level(claim, taken).level == "structural"
    other = dataclasses.replace(claim, evidence=Basis(structural=Structural("net", "macs", (3, 9, 9))))
    assert _level(other, taken).level == "open"


STATED = Claim("c", "d", "m", statement="It helps", evidence=Basis(proof=ProofLink("f")))


@pytest.mark.parametrize(
    ("band", "level"),
    [
        ({}, "indicated"),
        ({"interval": [-0.2, 2.2]}, "undecided"),
        ({"interval": [-2.0, -0.5], "value": -1.2}, "contradicted"),
        ({"interval": [-2.0, -0.5], "value": -1.2, "text": "below 0 points"}, "indicated"),
        ({"n": 4}, "undecided"),
        ({"cost_ratio": 1.06}, "undecided"),
        ({"cost_ratio": None}, "indicated"),
        ({"interval": None}, "open"),
        ({"kind": "value"}, "open"),
        ({"value": None}, "open"),
        ({"figure": "another"}, "open"),
    ],
)
def test_indicated_needs_an_interval_on_the_claimed_side(band, level):
    assert _level(STATED, _proof(None, **band)).level == level
    assert _level(STATED, _proof(None, mode="quick", **band)).level == "open", "quick promises nothing"


def test_the_larger_setting_counts():
    taken = _proof(None)
    taken["proofs"]["gpu"] = _proof(None, interval=[-1, 2])["proofs"]["full"]
    assert _level(STATED, taken).level == "undecided"


def test_claims_and_evidence_name_what_exists():
    """What a claim rests on is there: records, models, figures that a proof judges."""
    from offprint.api import list_models

    records = {(p.parent.name, p.stem) for p in (Path(__file__).parent / "golden").glob("*/*.json")}
    known, wrong = set(list_models()), []
    for paper in catalog.papers():
        if not paper.built:
            continue
        judged = {b.figure for bands in proofs.load(paper.slug).bands.values() for b in bands}
        for claim in paper.claims:
            basis, where = claim.evidence, f"{paper.slug}: {claim.id}"
            wrong += [f"{where}: record {stem}" for stem in basis.golden if (paper.slug, stem) not in records]
            wrong += [
                f"{where}: model {name}"
                for name in {claim.model, basis.structural and basis.structural.model} - known - {"", None}
            ]
            wrong += [
                f"{where}: figure {basis.proof.figure}"
                for _ in range(1)
                if basis.proof and basis.proof.figure not in judged
            ]
            if claim.protocol and not claim.model:
                wrong.append(f"{where}: a protocol without a model")
    assert wrong == []


def test_every_built_paper_has_evidence_of_its_present_records():
    folder = Path(__file__).parent / "golden"
    for paper in catalog.papers():
        if paper.built:
            taken = evidence.snapshot(paper.slug)
            assert {
                p.stem: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / paper.slug).glob("*.json")
            } == {stem: row["sha256"] for stem, row in taken["golden"].items()}, f"run: make evidence ({paper.slug})"
            assert all(row["ok"] for row in taken["golden"].values())
            for claim in paper.claims:
                assert evidence.level(claim, paper, taken).level in evidence.LEVELS
