"""Every golden record: what the authors' code computes on rebuildable weights is what ours computes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import harness


@pytest.mark.parametrize("path", harness.RECORDS, ids=harness.name)
def test_golden(path):
    errors, _ = harness.check(path)
    assert errors == []


def test_every_record_is_consumed():
    """A record that no test consumes makes the suite fail."""
    present = {p for p in (Path(__file__).parent / "golden").rglob("*.json")}
    assert present == set(harness.RECORDS)
    for path in present:
        record = harness.golden.load(path)
        assert ("state" in record) or path.stem in harness.adapter(path.parent.name).CASES, path
