"""Every golden record: what the authors' code computes on rebuildable weights is what ours computes."""

import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import changes
import golden
import harness

CASES = [p for p in harness.RECORDS if "expected" in golden.load(p)]


def _custom() -> list[Path]:
    """For every call that is described in words the smallest record that has it: an adapter does it alike for all of them."""
    found, seen = [], set()
    for path in sorted(harness.RECORDS, key=lambda p: golden.load(p).get("parameters") or 0):
        calls = {
            (path.parent.name, c) for c in golden.load(path).get("api", {}).get("calls", ()) if c.startswith("custom")
        }
        if calls - seen:
            found.append(path)
            seen |= calls
    return found


CUSTOM = _custom()
LONG = {
    "lightgcn/gowalla_epoch": "lastfm_epochs"
}  # takes minutes; the other is computed by the same function in seconds


@pytest.mark.parametrize("path", harness.RECORDS, ids=harness.name)
def test_golden(path):
    errors, _ = harness.check(path)
    assert errors == []


def test_every_record_is_consumed():
    """A record that no test consumes makes the suite fail."""
    present = {p for p in (Path(__file__).parent / "golden").rglob("*.json")}
    assert present == set(harness.RECORDS)
    for path in present:
        record = golden.load(path)
        assert ("state" in record) or path.stem in harness.adapter(path.parent.name).CASES, path


def test_every_adapter_is_of_records():
    for file in sorted((Path(__file__).parent / "golden").glob("*/adapter.py")):
        beside, stems = harness.adapter(file.parent.name), {p.stem for p in file.parent.glob("*.json")}
        calls = {c for p in file.parent.glob("*.json") for c in golden.load(p).get("api", {}).get("calls", ())}
        for table in ("CASES", "PARAMETERS", "WORDS"):
            assert set(getattr(beside, table, {})) <= stems, (file, table)
        assert set(getattr(beside, "CALLS", {})) <= calls, file


@pytest.mark.parametrize("path", harness.RECORDS, ids=harness.name)
def test_what_a_record_names_is_there(path):
    api = golden.load(path).get("api", {})
    for kind in ("function", "part"):
        if kind in api:
            assert callable(harness.named(api[kind]))


@pytest.mark.parametrize(
    "path", [p for p in CASES if "epoch" not in p.stem], ids=harness.name
)  # steps stand for epochs
def test_case_in_double(path):
    """What is computed on arrays in double stays in double, and agrees as closely as in the precision of the record."""
    record, function = golden.load(path), harness.adapter(path.parent.name).CASES[path.stem]
    with harness.Precision() as seen:
        errors, _ = harness.compare_case({**record, "precision": "float64"}, function, own=record.get("tolerance"))
    assert errors == []
    assert seen.narrow == {}


# the harness itself


@pytest.mark.parametrize("path", [p for p in CASES if harness.name(p) not in LONG], ids=harness.name)
def test_every_number_of_a_case_is_used(path):
    """In a copy of the record any number of the inputs or of the words is another: the adapter gives something else."""
    record, beside = golden.load(path), harness.adapter(path.parent.name)
    function, words = beside.CASES[path.stem], getattr(beside, "WORDS", {}).get(path.stem, {})
    base, unused = changes.Rows(function(record)), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, copies in changes.changes(record, ("inputs",), words):
            if not any(changes.differs(base, function, changed) for changed in copies()):
                unused.append(what)
    assert unused == []


@pytest.mark.parametrize("path", CUSTOM, ids=harness.name)
def test_every_number_of_a_custom_call_is_used(path):
    """The same of records whose call is described in words: inputs, graph, and the notes (arguments are the harness's)."""
    record, beside = golden.load(path), harness.adapter(path.parent.name)
    record.pop("precision", None)  # whether a number is used shows in single precision too, several times as fast
    words = getattr(beside, "WORDS", {}).get(path.stem, {})
    model, _ = harness.loaded(record)

    def rows(changed):
        yield from golden.flatten(harness.results(changed, beside, model))

    base, unused = changes.Rows(rows(record)), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, copies in changes.changes(record, ("inputs", "edge_index", "interactions"), words):
            if not any(changes.differs(base, rows, changed) for changed in copies()):
                unused.append(what)
    assert unused == []


def test_a_long_case_is_computed_as_its_short_one():
    for name, other in LONG.items():
        slug, stem = name.split("/")
        folder, cases = Path(__file__).parent / "golden" / slug, harness.adapter(slug).CASES
        assert cases[stem] is cases[other]
        assert set(golden.load(folder / f"{stem}.json")["inputs"]) == set(
            golden.load(folder / f"{other}.json")["inputs"]
        )


def test_a_case_that_touches_nothing_of_ours_fails():
    record = {"notes": "", "inputs": {}, "expected": {"x": 1.0}}
    errors, _ = harness.compare_case(record, lambda r: [("x", torch.ones(()), 1.0, 0)])
    assert errors == ["the adapter called nothing of the library"]

    def ours(r):
        from offprint.nn.schedule import cosine_schedule

        yield "x", cosine_schedule(1.0, 0.0, 4, 0)[0], 1.0, 1e-6

    assert harness.compare_case(record, ours)[0] == []


def test_a_number_that_is_not_used_is_found():
    from offprint.nn.schedule import cosine_schedule

    record = {"notes": "base 0.5, floor 0", "inputs": {"epochs": 8, "warmup": 2, "base": 0.5}}

    def careless(r):
        yield "rates", cosine_schedule(0.5, 0.0, r["inputs"]["epochs"], r["inputs"]["warmup"]), None, 0

    base = changes.Rows(careless(record))
    unused = [
        what
        for what, copies in changes.changes(record, ("inputs",), {"floor 0": "described"})
        if not any(changes.differs(base, careless, c) for c in copies())
    ]
    assert unused == ["inputs.base", "notes: base [0.5], floor 0"]


def test_float32_inside_double_is_found():
    from offprint.nn.graph import gcn_norm

    edges, weight = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, dtype=torch.float64)
    with harness.Precision() as seen:
        gcn_norm(edges, 2, weight, torch.float64)
    assert seen.narrow == {}
    with harness.Precision() as seen:
        gcn_norm(edges, 2, weight, torch.float32)
    assert set(seen.narrow.values()) == {torch.float32}


def test_double_tolerance_holds_where_a_case_was_taken_in_double():
    from offprint.nn.schedule import cosine_schedule

    def rows(r):
        yield "x", cosine_schedule(1.0, 0.0, 4, 0)[0] + 1e-5, 1.0, 1e-4

    record = {"notes": "", "inputs": {}}
    assert harness.compare_case(record, rows)[0] == []
    assert harness.compare_case({**record, "precision": "float64"}, rows)[0] != []
    assert harness.compare_case({**record, "precision": "float64", "tolerance": 1e-4}, rows)[0] == []


def test_a_changed_record_is_a_copy():
    record = golden.load(CASES[0])
    before = copy.deepcopy(record)
    for _, copies in changes.changes(record, ("inputs",), {}):
        list(copies())
    assert record == before
