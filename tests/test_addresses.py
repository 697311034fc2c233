"""Addresses: read through fsspec, or refused by name before any folder is made."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import offprint
from offprint.data.reading import read_picture
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write, fetched, local_path, scheme
from offprint.ledger import Ledger
from offprint.models.checkpoint import read_file
from offprint.models.export import export_model
from offprint.tasks.folder import RunFolder


@pytest.fixture
def store(tmp_path, monkeypatch):
    """fsspec's store in memory, at memory://, in place of one on the network; fetched files go to a fresh cache."""
    monkeypatch.setenv("OFFPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    return memory


def test_which_are_addresses():
    shown = {
        a: scheme(a)
        for a in (
            "s3://b/k",
            Path("s3://b/k"),
            "gs://b",
            "https://x.org/f",
            "file:///a",
            "a/b",
            "C:/a",
            "sample:mnist",
            "./a:/b",
        )
    }
    assert list(shown.values()) == ["s3", "s3", "gs", "https", "file", "", "", "", ""]


def test_paths_of_this_machine(tmp_path):
    file = tmp_path / "a b.txt"
    assert local_path(file) == local_path(file.as_uri()) == local_path(Path(file.as_uri())) == file
    assert local_path(f"file://localhost{tmp_path}") == tmp_path and local_path("~") == Path.home()
    with pytest.raises(OffprintError, match="names the machine 'folder'; a file of this one is file:///"):
        local_path("file://folder/name")


def test_files_are_fetched_once_and_again_when_they_change(store, tmp_path):
    store.pipe("/a/w.bin", b"one")
    first = fetched("memory://a/w.bin")
    assert first.read_bytes() == b"one" and first.is_relative_to(tmp_path / "cache") and first.name == "w.bin"
    written = first.stat().st_mtime_ns
    assert fetched(Path("memory://a/w.bin")).stat().st_mtime_ns == written
    store.pipe("/a/w.bin", b"other")
    assert fetched("memory://a/w.bin").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("address", "said"),
    [("memory://a/none", "nothing at memory://a/none"), ("nosuch://a/b", "no such kind of address"),
     ("http://127.0.0.1:9/x.csv", r"http://127\.0\.0\.1:9/x\.csv cannot be reached.*give the path of your copy")],
)  # fmt: skip
def test_what_cannot_be_fetched(store, tmp_path, address, said):
    with pytest.raises(OffprintError, match=said):
        fetched(address)
    assert not list((tmp_path / "cache").glob("addresses/*"))


def test_weights_and_pictures_are_read_from_addresses(store, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    store.pipe("/w.pt", (tmp_path / "w.pt").read_bytes())
    for address in ("memory://w.pt", (tmp_path / "w.pt").as_uri()):
        assert read_file(address)["a"].tolist() == [1, 1]
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "p.png")
    store.pipe("/p.png", (tmp_path / "p.png").read_bytes())
    for address in ("memory://p.png", (tmp_path / "p.png").as_uri()):
        assert read_picture(address).size == (3, 2)
    with pytest.raises(DataError, match="nothing at memory://q.png"):
        read_picture("memory://q.png")


def test_tables_are_read_from_addresses(store, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    from offprint.methods.curation.parquet import prune_parquet

    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 4)})
    for part, piece in enumerate((table.slice(0, 25), table.slice(25))):
        pq.write_table(piece, tmp_path / "t.parquet")
        store.pipe(f"/set/{part}.parquet", (tmp_path / "t.parquet").read_bytes())
    pq.write_table(table, tmp_path / "t.parquet")
    results = [prune_parquet(source, tmp_path / f"{i}.parquet", 10, k=2)
               for i, source in enumerate(("memory://set", tmp_path / "t.parquet", (tmp_path / "t.parquet").as_uri()))]  # fmt: skip
    kept = [pq.read_table(r.out)["row"].to_pylist() for r in results]
    assert kept[0] == kept[1] == kept[2] and len(kept[0]) == 10
    with pytest.raises(DataError, match="no .parquet files at memory://empty"):
        prune_parquet("memory://empty", tmp_path / "x.parquet", 10)


@pytest.mark.parametrize("address", ["s3://bucket/run", Path("gs://bucket/run"), "hf://org/run", "https://x.org/run"])
def test_outputs_elsewhere_are_refused_and_leave_nothing(store, tmp_path, address):
    from offprint.methods.curation.parquet import prune_parquet
    from offprint.tasks.enlarging import planned

    model = offprint.create_model("cfsr_x2")
    kind = scheme(address)
    for write in (
        lambda: atomic_write(address, b""),
        lambda: RunFolder(address, {}, False),
        lambda: planned("p.png", address, 2),
        lambda: prune_parquet("none.parquet", address, 3),
        lambda: export_model(model.eval(), address),
    ):
        with pytest.raises(OffprintError, match=rf"cannot be at {kind}://.*written on this machine"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_address_is_a_good_output(store, tmp_path):
    assert atomic_write((tmp_path / "x y" / "f.txt").as_uri(), "text") == tmp_path / "x y" / "f.txt"
    last = RunFolder(Path((tmp_path / "run").as_uri()), {}, False).last
    assert last.parent == tmp_path / "run" and sorted(p.name for p in tmp_path.iterdir()) == ["run", "x y"]


def test_pictures_elsewhere_are_enlarged_to_a_place_here(store, tmp_path):
    from offprint.tasks.enlarging import planned

    Image.new("RGB", (3, 2)).save(tmp_path / "p.png")
    here = (tmp_path / "p.png").as_uri()
    assert planned(here, None, 2) == [(tmp_path / "p.png", tmp_path / "p_x2.png")]
    assert planned("https://x.org/p.png", tmp_path / "o.png", 2)[0][1] == tmp_path / "o.png"
    with pytest.raises(DataError, match="say where the larger picture goes with --out"):
        planned("https://x.org/p.png", None, 2)


def test_the_verbs_refuse_before_they_make_anything(store, tmp_path):
    from offprint.cli.main import app

    for arguments in (
        ["samples", "mnist", "s3://bucket/mnist"],
        ["train", "-m", "convnext_tiny", "-d", "sample:cifar10", "--out", "s3://bucket/run", "--epochs", "1"],
        ["recommend", "fit", "lastfm", "--out", "s3://bucket/run"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert "s3://bucket" in str(result.exception) and "written on this machine" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_sqlites_own_addresses_make_no_folder(store, tmp_path):
    Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}")
    Ledger(f"sqlite:///file:{tmp_path / 'l.sqlite'}?mode=ro&uri=true")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
