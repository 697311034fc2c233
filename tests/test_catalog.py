"""The catalogue: all sixty papers, errors that name file and field, and computed evidence."""

import json
from pathlib import Path

import pytest

from offprint import catalog, proofs
from offprint.catalog import Basis, CatalogError, Claim, ProofLink, Structural, evidence
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
            "value = 1.0\nevidence = {proof = {mode = 'slow', figure = 'x', protocol = 'same'}}",
            "proof.mode",
        ),
        ("value = 1.0", "value = 1.0\nevidence = {structural = {model = 'x'}}", "parameters or macs"),
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


PAPER = catalog.paper("dagnn")


def _taken(**changes):
    band = {"figure": "f", "low": 80.0, "high": 90.0, "value": 84.0, "ok": True, "unit": "%"}
    taken = {
        "golden": {"dagnn": {"r": {"sha256": "0", "ok": True, "worst": 1e-6}}},
        "models": {"m": {"parameters": 10, "macs": 20, "input": [3, 8, 8]}},
        "proofs": {"dagnn": {"full": {"date": "2026-01-01T00:00:00", "ok": True, "bands": [band]}}},
    }
    for key, value in changes.items():
        taken[key] = value
    return taken, band


def _claim(value=84.4, **basis):
    return Claim("c", "d", "m", value=value, evidence=Basis(**basis))


SAME, SMALL = ProofLink("full", "f", "same"), ProofLink("full", "f", "small")


def test_levels_are_computed():
    taken, _ = _taken()
    everything = {"golden": ("r",), "structural": Structural("m", parameters=10), "proof": SAME}
    assert evidence.level(_claim(**everything), PAPER, taken).level == "reproduced"
    assert (
        evidence.level(_claim(golden=("r",), structural=Structural("m", parameters=10)), PAPER, taken).level == "equal"
    )
    assert evidence.level(_claim(structural=Structural("m", parameters=10)), PAPER, taken).level == "structural"
    assert (
        evidence.level(_claim(structural=Structural("m", macs=20, input=(3, 8, 8))), PAPER, taken).level == "structural"
    )
    assert evidence.level(_claim(proof=SMALL), PAPER, taken).level == "indicated"
    assert evidence.level(_claim(), PAPER, taken).level == "open"


def test_a_better_level_is_never_given():
    taken, band = _taken()
    assert (
        evidence.level(_claim(value=95.0, proof=SAME), PAPER, taken).level == "open"
    )  # the band does not hold the claim
    assert evidence.level(_claim(structural=Structural("m", parameters=11)), PAPER, taken).level == "open"
    assert evidence.level(_claim(structural=Structural("m", macs=20, input=(3, 9, 9))), PAPER, taken).level == "open"
    assert evidence.level(_claim(golden=("r", "missing")), PAPER, taken).level == "open"
    band["ok"] = False
    assert evidence.level(_claim(proof=SAME, golden=("r",)), PAPER, taken).level == "equal"
    assert evidence.level(_claim(proof=SMALL), PAPER, taken).level == "open"
    taken["golden"]["dagnn"]["r"]["ok"] = False
    assert evidence.level(_claim(golden=("r",)), PAPER, taken).level == "open"
    assert evidence.level(_claim(golden=("r",), proof=SAME), PAPER, {}).level == "open"


def test_stale_says_what_changed(tmp_path):
    folder = tmp_path / "golden" / "dagnn"
    folder.mkdir(parents=True)
    (folder / "r.json").write_text("{}")
    import hashlib

    digest = hashlib.sha256(b"{}").hexdigest()
    taken = {
        "catalog_sha256": evidence.fingerprint(),
        "golden": {"dagnn": {"r": {"sha256": digest, "ok": True, "worst": 0}}},
    }
    assert evidence.stale(taken, tmp_path / "golden") == []
    (folder / "r.json").write_text("{ }")
    (folder / "s.json").write_text("{}")
    found = evidence.stale({**taken, "catalog_sha256": "x"}, tmp_path / "golden")
    assert len(found) == 3 and "catalogue" in found[0]
    runs = {"dagnn": {"quick": {"source": "new"}, "full": {"source": "old"}}}
    found = evidence.stale({**taken, "proofs": runs}, tmp_path / "golden", sources={"dagnn": "new", "cfsr": "x"})
    assert [f for f in found if "proof" in f] == [
        "the full proof of dagnn has changed since it was measured",
        "the quick proof of cfsr is not in the snapshot",
        "the full proof of cfsr is not in the snapshot",
    ]


def test_the_snapshot_matches_catalogue_and_records():
    taken = evidence.snapshot()
    sources = {slug: proofs.source_hash(slug) for slug in proofs.available()}
    assert evidence.stale(taken, Path(__file__).parent / "golden", sources=sources) == [], "run: make evidence"
    assert json.dumps(taken)
    assert all(row["ok"] for rows in taken["golden"].values() for row in rows.values())
