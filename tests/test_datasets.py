"""The register of data sets, and the one door to data: names, folders, tables, shards, the hub."""

import io
import json
import sys
import tarfile
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from offprint import catalog
from offprint.data import samples
from offprint.data.datasets import SETS, dataset, datasets, present, verify
from offprint.data.images import open_images
from offprint.data.opening import open_data
from offprint.data.shards import ShardImages, Shards, expand
from offprint.data.tables import Table
from offprint.errors import DataError, MissingExtra, OffprintError


# -- the register ------------------------------------------------------------------------------------------------------
def test_every_set_that_a_claim_or_a_reader_names_is_declared():
    from offprint.data.graphs import NPZ, PLANETOID
    from offprint.data.imagenet import PICTURES as LABELLED
    from offprint.data.images import _named
    from offprint.data.interactions import SETS as RATED
    from offprint.data.photos import PICTURES

    asked = {c.protocol.data for p in catalog.papers() for c in p.claims if c.protocol is not None}
    assert len(asked) > 30
    for name in {*asked, *NPZ, *PLANETOID, *LABELLED, *_named(), *RATED, *PICTURES}:
        assert dataset(name).title
    assert {d.id: d.splits["test"] for d in SETS if d.kind == "pairs"} == PICTURES
    assert {d.id: d.splits["val"] for d in SETS if d.kind == "labelled"} == LABELLED


def test_ids_are_unique_and_every_field_is_said():
    names = [n for d in SETS for n in (d.id, *d.aliases)]
    assert len(names) == len(set(names))
    for d in SETS:
        assert d.title and d.home and d.licence and d.task and d.sample
        assert bool(d.digest) == bool(d.bundled) and (d.bundled or d.places or not d.kind)


def test_what_is_bundled_is_what_was_declared(monkeypatch, tmp_path):
    bundled = [d for d in SETS if d.bundled]
    assert len(bundled) >= 9
    for d in bundled:
        assert verify(d.id) == d.digest and present(d.id).where == "bundled"
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    (tmp_path / "cora.npz").write_bytes(b"other")
    with pytest.raises(DataError, match="the bundled files of cora have the digest"):
        verify("cora")
    with pytest.raises(DataError, match="nothing of set14 is bundled"):
        verify("set14")


@pytest.mark.parametrize("name", [d.id for d in SETS if d.bundled and d.kind not in ("volume", "photographs")])
def test_the_declared_numbers_are_those_of_the_data(name):
    found, opened = dataset(name), open_data(name)
    if found.kind == "graph":
        counts = {part: int(opened.value[f"{part}_mask"].sum()) for part in found.splits}
    else:
        counts = {part: getattr(value, "nnz", None) or len(value) for part, value in opened.splits.items()}
    assert counts == found.splits and opened.kind == found.kind and opened.declared is found


def test_where_a_set_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path / "data"))
    assert present("pubmed") == ("absent", tmp_path / "data" / "graphs" / "PubMed" / "raw" / "ind.pubmed.x")
    assert present("coco") == ("absent", None)
    for place in (
        "recommendation/yelp2018/train.txt",
        "cifar100/cifar-100-python/meta",
        "npz/photo.npz",
        "set14/x.png",
    ):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / place).touch()
    found = {name: present(name) for name in ("yelp2018", "cifar100", "amazon_photo", "Set14", "mnist")}
    assert [f.where for f in found.values()] == ["local"] * 4 + ["absent"]
    assert found["cifar100"].path == tmp_path / "data" / "cifar100" / "cifar-100-python"


def test_finding_and_listing():
    assert dataset("Amazon-Photo") is dataset("amazon_photo") and dataset("amazon-cds").id == "amazoncds"
    assert {d.id for d in datasets(task="restoration")} >= {"set5", "manga109"} and len(datasets()) == len(SETS)
    assert all(d.kind == "graph" for d in datasets(kind="graph"))
    with pytest.raises(OffprintError, match="unknown data set 'cifra10'; nearest: cifar10"):
        dataset("cifra10")
    with pytest.raises(OffprintError, match="unknown task of data sets 'classify'; nearest: classification"):
        datasets("classify")


def test_the_verb(monkeypatch):
    from offprint.cli import console
    from offprint.cli.main import app

    monkeypatch.setattr(console.out, "_width", 80)
    shown = CliRunner().invoke(app, ["data"]).output
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    for d in SETS:
        assert f"│ {d.id} " in shown
    rows = json.loads(CliRunner().invoke(app, ["data", "--json"]).output)
    assert [r["id"] for r in rows] == [d.id for d in SETS] and {r["present"] for r in rows} <= {
        "bundled",
        "local",
        "absent",
    }
    one = json.loads(CliRunner().invoke(app, ["data", "cora", "--json"]).output)
    assert one["splits"] == {"train": 140, "val": 500, "test": 1000} and one["present"] == "bundled"
    shown = CliRunner().invoke(app, ["data", "manga109"]).output
    assert "by application" in shown and "OFFPRINT_DATA" in shown
    assert "imagenet" not in CliRunner().invoke(app, ["data", "--task", "recommendation"]).output


# -- tables ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def album(tmp_path):
    """Twelve pictures of two classes in one folder: the grey level is the number, the class its parity."""
    (tmp_path / "p").mkdir()
    for i in range(12):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "p" / f"{i}.png")
    return tmp_path


def level(item):
    return np.asarray(item[0])[0, 0, 0] // 10, item[1]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "bytes"])
def test_pictures_that_a_table_lists(album, kind):
    files = [f"p/{i}.png" for i in range(12)]
    labels, parts = ["even" if i % 2 == 0 else "odd" for i in range(12)], ["train"] * 8 + ["val"] * 4
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        rows = [mark.join(r) for r in zip(["path", *files], ["label", *labels], ["split", *parts], strict=True)]
        (album / f"t.{kind}").write_text("\n".join(rows) + "\n")
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        held = files if kind == "parquet" else [{"bytes": (album / f).read_bytes(), "path": None} for f in files]
        kind = "parquet"
        pq.write_table(pa.table({"image": held, "label": labels, "split": parts}), album / "t.parquet")
    splits = open_images(album / f"t.{kind}")
    assert splits.classes == ["even", "odd"]
    assert [level(splits.train[i]) for i in range(8)] == [(i, i % 2) for i in range(8)]
    assert [level(splits.val[i]) for i in range(4)] == [(i, i % 2) for i in range(8, 12)]
    assert open_data(album / f"t.{kind}").kind == "images"


def test_a_table_without_splits_is_split_by_class(album):
    (album / "t.csv").write_text("file,class\n" + "".join(f"p/{i}.png,{9 + i % 2}\n" for i in range(12)))
    splits = open_images(album / "t.csv", val_fraction=0.5, seed=1)
    assert splits.classes == ["9", "10"]  # as numbers, not as text
    assert len(splits.train) == len(splits.val) == 6 and sorted(splits.val.targets) == [0, 0, 0, 1, 1, 1]
    seen = [level(s[i])[0] for s in (splits.train, splits.val) for i in range(6)]
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,what\np/0.png,a\n", "has no column called label, .* or y; its columns: path, what"),
        ("path,label\np/0.png,a\np/1.png,\n", "row 2: the class is missing"),
        ("path,label\np/0.png,a,b\n", "line 2: 3 fields, expected 2.*double quotes"),
        ("path,label\n", "holds no rows"),
    ],
)
def test_tables_that_do_not_fit(album, text, said):
    (album / "t.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        open_images(album / "t.csv")


def test_plain_tables(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,"x, y"\n2,z\n')
    opened = open_data(tmp_path / "t.csv")
    assert (
        opened.kind == "table" and opened.value[0] == {"a": "1", "b": "x, y"} and opened.value.column("a") == ["1", "2"]
    )
    with pytest.raises(OffprintError, match="unknown column of"):
        opened.value.column("c")
    with pytest.raises(DataError, match="there is no table at"):
        Table(tmp_path / "none.csv")


# -- shards ------------------------------------------------------------------------------------------------------------
def shard(path, items, gz=False):
    with tarfile.open(path, "w:gz" if gz else "w") as archive:
        for name, data in items:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def picture(i):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10 * i,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Three shards of four pictures each."""
    for s in range(3):
        items = [
            item
            for i in range(4 * s, 4 * s + 4)
            for item in ((f"d/{i:03}.png", picture(i)), (f"d/{i:03}.cls", f"{i % 2}\n".encode()))
        ]
        shard(tmp_path / f"t-{s:02}.tar", items)
    return str(tmp_path / "t-{00..02}.tar")


def test_braces():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{a,b}-{8..10}") == ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"] and expand("plain.tar") == [
        "plain.tar"
    ]
    with pytest.raises(DataError, match=r"\{3..1\} is empty"):
        expand("{3..1}.tar")
    with pytest.raises(DataError, match="neither a range"):
        expand("{abc}.tar")


def test_streaming(shards):
    found = list(Shards(shards))
    assert [s["__key__"] for s in found] == [f"d/{i:03}" for i in range(12)]
    assert [(np.asarray(s["png"])[0, 0, 0] // 10, s["cls"]) for s in found] == [(i, i % 2) for i in range(12)]
    assert next(iter(Shards(shards, raw=True)))["cls"] == b"0\n"
    assert [s["cls"] for s in Shards(shards, keep=lambda s: s["cls"] == b"1\n")] == [1] * 6
    assert open_data(shards).kind == "shards" and len(list(open_data(shards).splits["all"])) == 12


def test_every_sample_comes_once_to_processes_and_workers(shards):
    keys = [s["__key__"] for rank in range(2) for s in Shards(shards, rank=rank, world=2)]
    assert sorted(keys) == [f"d/{i:03}" for i in range(12)]
    loader = DataLoader(Shards(shards), batch_size=None, num_workers=2)
    assert sorted(s["__key__"] for s in loader) == [f"d/{i:03}" for i in range(12)]


def test_shards_at_addresses_and_packed(shards, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/s/t.tar", (tmp_path / "t-01.tar").read_bytes())
    assert [s["__key__"] for s in Shards("memory://s/t.tar")] == [f"d/{i:03}" for i in range(4, 8)]
    shard(tmp_path / "p.tar.gz", [("a.txt", b"hi"), ("a.json", b'{"b": 1}'), ("b.x.bin", b"\0")], gz=True)
    assert list(Shards(tmp_path / "p.tar.gz")) == [
        {"__key__": "a", "txt": "hi", "json": {"b": 1}},
        {"__key__": "b", "x.bin": b"\0"},
    ]
    with pytest.raises(DataError, match="can only be streamed"):
        ShardImages(tmp_path / "p.tar.gz")


def test_pictures_of_shards_by_number(shards, tmp_path):
    data = ShardImages(shards)
    assert (
        [level(data[i]) for i in (11, 0, 5)] == [(11, 1), (0, 0), (5, 1)]
        and data.classes == ["0", "1"]
        and len(data) == 12
    )
    splits = open_images(shards, val_fraction=0.5)
    assert len(splits.train) == len(splits.val) == 6 and splits.classes == ["0", "1"]
    shard(
        tmp_path / "f.tar",
        [
            ("cat/1.png", picture(1)),
            ("dog/2.png", picture(2)),
            ("x/3.png", picture(3)),
            ("x/3.json", b'{"label": "cat"}'),
        ],
    )
    data = ShardImages(tmp_path / "f.tar")
    assert data.classes == ["cat", "dog"] and data.targets == [0, 1, 0]


def test_shards_that_do_not_fit(shards, tmp_path):
    with pytest.raises(DataError, match=r"no shard at '.*t-03.tar', the 4. of 5"):
        Shards(shards.replace("02", "04"))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "t-00.tar").read_bytes()[:700])
    with pytest.raises(DataError, match="cut.tar is damaged"):
        list(Shards(tmp_path / "cut.tar"))
    shard(tmp_path / "x.tar", [("1.png", picture(1)), ("1.cls", b"cat")])
    with pytest.raises(DataError, match=r"1\.cls in .*x\.tar cannot be read as cls"):
        list(Shards(tmp_path / "x.tar"))
    shard(tmp_path / "y.tar", [("1.png", b"no picture"), ("1.cls", b"0")])
    with pytest.raises(DataError, match=r"cannot read the picture 1\.png in .*y\.tar"):
        ShardImages(tmp_path / "y.tar")[0]
    shard(tmp_path / "z.tar", [("1.png", picture(1))])
    with pytest.raises(DataError, match=r"1 in .*z\.tar has no class: give it a file 1\.cls"):
        ShardImages(tmp_path / "z.tar")


# -- folders, names, the hub -------------------------------------------------------------------------------------------
def test_folders_and_names(album):
    opened = open_data(album / "p")
    assert opened.kind == "pictures" and len(opened.value) == 12
    for name in ("even", "odd"):
        (album / "c" / name).mkdir(parents=True)
    for i in range(12):
        (album / "p" / f"{i}.png").rename(album / "c" / ("even", "odd")[i % 2] / f"{i}.png")
    opened = open_data((album / "c").as_uri())
    assert opened.kind == "images" and opened.classes == ("even", "odd") and set(opened.splits) == {"train", "val"}
    assert (
        open_data("sample:brain_labels").value.dtype == torch.uint8 and len(open_data("sample:photographs").value) == 3
    )
    with pytest.raises(DataError, match="no data at 'nowhere'.*give a name of `offprint data`"):
        open_data("nowhere")
    with pytest.raises(DataError, match="COCO 2017 is not opened here by its name; fetch it from cocodataset.org"):
        open_data("coco")


def test_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingExtra, match=r"hf://org/name from the Hugging Face hub needs the package 'datasets'.*offprint\[hub\]"
    ):
        open_data("hf://org/name")
    asked = []

    def load_dataset(*words):
        asked.append(words)
        if words[0] == "org/none":
            raise ConnectionError("no network")
        return {"train": [1, 2]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert (
        open_data("hf://org/name").splits == {"train": [1, 2]}
        and open_data("hf://datasets/org/name/small").kind == "hub"
    )
    assert asked == [("org/name",), ("org/name", "small")]
    with pytest.raises(DataError, match="could not be loaded .ConnectionError: no network.; fetch its Parquet files"):
        open_data("hf://org/none")
    with pytest.raises(DataError, match="give hf://owner/name"):
        open_data("hf://name")
