"""The ledger: what is written stays, several write at once, and what cannot be written is said before the work."""

import os
import sqlite3
import subprocess
import sys

import pytest

from offprint.errors import LedgerError
from offprint.ledger import Ledger, default_url, machine, versions
from offprint.proofs import Verdict


def verdict(slug="dagnn", mode="quick", value=84.0, **kwargs):
    band = {"figure": "f", "low": 80.0, "high": None, "value": value, "ok": True, "unit": "%", "text": "at least 80 %"}
    return Verdict(slug, mode, {"f": value, "list": [1, 2]}, [band], 1.5, "2026-01-01T00:00:00+00:00", "q", "d", "s", {"torch": "2"}, {"cores": 2}, **kwargs)  # fmt: skip


@pytest.fixture
def book(tmp_path):
    return Ledger(f"sqlite:///{tmp_path / 'a' / 'ledger.sqlite'}")


def test_rows_come_back(book):
    first, second = book.record(verdict()), book.record(verdict(value=85.0))
    assert second > first
    book.record(verdict("cfsr", "full"))
    assert [r.figures["f"] for r in book.runs("dagnn")] == [85.0, 84.0]
    assert book.latest("quick")["dagnn"].id == second and "cfsr" not in book.latest("quick")
    row = book.runs("cfsr")[0]
    assert (row.mode, row.source, row.figures["list"], row.versions, row.machine) == (
        "full",
        "s",
        [1, 2],
        {"torch": "2"},
        {"cores": 2},
    )


def test_parts_are_kept_until_forgotten(book):
    assert book.part("r", "k") is None
    book.keep_part("r", "k", {"a": [1.5]})
    book.keep_part("r", "k", {"a": [2.5]})
    assert Ledger(book.url).part("r", "k") == {"a": [2.5]}
    book.forget_parts("r")
    assert book.part("r", "k") is None


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_ledger import Ledger, verdict
book = Ledger(sys.argv[1])
for i in range(20):
    book.record(verdict(value=80.0 + i))
    if i == int(sys.argv[3]):
        import os; os._exit(9)
"""


def test_several_writers_and_a_killed_one(book):
    def start(die):
        return subprocess.Popen([sys.executable, "-c", WRITER, book.url, os.path.dirname(__file__), str(die)])

    ends = [p.wait() for p in [start(-1), start(-1), start(7)]]
    assert ends == [0, 0, 9]
    rows = book.runs()
    assert len(rows) == 20 + 20 + 8 and len({r.id for r in rows}) == 48
    assert all(r.figures["list"] == [1, 2] for r in rows)


def test_a_ledger_of_an_older_version_gains_the_new_column(tmp_path):
    book = Ledger(f"sqlite:///{tmp_path / 'old.sqlite'}")
    book.record(verdict())
    book.engine.dispose()
    with sqlite3.connect(tmp_path / "old.sqlite") as connection:
        connection.execute("ALTER TABLE runs DROP COLUMN source")
    again = Ledger(book.url)
    assert again.runs()[0].source == ""
    again.record(verdict())
    assert again.runs()[0].source == "s"


def test_unreachable_and_read_only(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="cannot be opened.*OFFPRINT_LEDGER"):
        Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.sqlite'}")
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger("nonsense://x")
    book = Ledger(f"sqlite:///{tmp_path / 'ro.sqlite'}")
    book.record(verdict())
    book.engine.dispose()
    readonly = Ledger(f"sqlite:///file:{tmp_path / 'ro.sqlite'}?mode=ro&uri=true")
    assert len(readonly.runs()) == 1
    with pytest.raises(LedgerError, match="cannot be written.*OFFPRINT_LEDGER"):
        readonly.check_writable()
    (tmp_path / "bad.sqlite").write_bytes(b"not a database, and long enough to be read as one" * 40)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path / 'bad.sqlite'}")


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFPRINT_LEDGER", str(tmp_path / "x.sqlite"))
    assert default_url() == f"sqlite:///{tmp_path / 'x.sqlite'}"
    monkeypatch.setenv("OFFPRINT_LEDGER", "postgresql://host/db")
    assert default_url() == "postgresql://host/db"
    monkeypatch.delenv("OFFPRINT_LEDGER")
    assert default_url().endswith("ledger.sqlite")
    assert versions()["torch"] and machine()["cores"] >= 1


def test_a_ledger_of_an_older_version_gains_its_columns(tmp_path):
    """Every column that came later is added, whichever table it belongs to."""
    import sqlite3

    file = tmp_path / "old.sqlite"
    Ledger(f"sqlite:///{file}")
    with sqlite3.connect(file) as old:
        for table, column in (("measurements", "tag"), ("runs", "source")):
            old.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    again = Ledger(f"sqlite:///{file}")
    assert again.latest() == {}
    number = again.measure(slug="x", model="m", weights="", protocol="p", metrics={}, items=1, seeds=1, partial=False, data_digest="",
                           seconds=0.0, modules=[], source="")  # fmt: skip
    assert number == 1
    with sqlite3.connect(file) as now:
        assert "tag" in [row[1] for row in now.execute("PRAGMA table_info(measurements)")]
