"""Claims' own protocols on miniature data in every layout; what makes accuracies near 1 % elsewhere is found or named."""

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from offprint import catalog, reproduction
from offprint.catalog import Basis, Claim, Protocol
from offprint.cli.main import app
from offprint.data import imagenet, photos
from offprint.data.imagenet import open_imagenet, synsets
from offprint.errors import DataError, OffprintError
from offprint.ledger import Ledger
from offprint.models import registry
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import save_weights
from offprint.tasks import _imagenet, protocols

CLASSES = (0, 7, 123, 500, 640, 999)
EACH = 3  # pictures of a class


def colour(k: int) -> tuple[int, int, int]:
    """A colour of its own for each of the thousand classes."""
    return tuple(25 * (k // 10**place % 10) + 10 for place in range(3))


class Colours(Backbone):
    """Takes a picture for the class whose colour it has."""

    minimum = 1
    native = "authors"

    def __init__(self, in_chans: int = 3, num_classes: int = 1000):
        super().__init__()
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, 3
        self.palette = torch.nn.Parameter(torch.tensor([colour(k) for k in range(num_classes)]).float() / 255)

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        return -100 * torch.cdist(x.mean((2, 3)), self.palette) ** 2


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    """A model that is right, a claim about it, and sets that are whole with few pictures; nothing of it stays."""
    monkeypatch.setenv("OFFPRINT_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setattr(
        imagenet,
        "PICTURES",
        {"imagenet-1k": len(CLASSES) * EACH, "imagenet-real": len(CLASSES) * EACH, "imagenet-v2": len(CLASSES) * EACH},
    )
    monkeypatch.setitem(photos.PICTURES, "set14", 2)
    registry.entries()
    released = registry.Weights(
        "https://example.org/colours.safetensors", "authors", "authors", "MIT", metrics={"imagenet-1k": {"top1": 100.0}}
    )
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register(paper="swin", kind="backbone", build=Colours, variants={"colours": {}}, input_size=(3, 32, 32),
                      preprocessing={"mean": (0,) * 3, "std": (1,) * 3, "interpolation": "bilinear", "crop_pct": 0.875}, weights={"colours": {"in1k": released}})  # fmt: skip
    save_weights(Colours(), tmp_path / "weights" / "colours" / "colours.safetensors")
    monkeypatch.setenv("OFFPRINT_WEIGHTS", str(tmp_path / "weights"))
    claims = [
        Claim(f"c-{metric}{tail}", "ImageNet-1K", metric, value=value, digits=1, unit="%", model="colours", protocol=Protocol(data, metric, input=32, steps=steps))
        for data, tail, metric, steps, value in (
            ("imagenet-1k", "", "top1", "", 100.0), ("imagenet-1k", "", "top5", "", 100.0), ("imagenet-1k", "-crops", "top1", "144-crop", 100.0),
            ("imagenet-v2", "-v2", "top1", "", 100.0), ("imagenet-real", "-real", "top1", "", 100.0),
        )
    ]  # fmt: skip
    claims.append(
        Claim(
            "unrunnable",
            "COCO",
            "AP",
            value=1.0,
            model="colours",
            protocol=Protocol("coco", "box_ap"),
            evidence=Basis(),
        )
    )
    paper = dataclasses.replace(catalog.paper("swin"), claims=tuple(claims))
    monkeypatch.setattr(catalog, "paper", lambda slug, known=catalog.paper: paper if slug == "swin" else known(slug))


def _jpeg(k: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (44, 40), colour(k)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _names() -> list[tuple[str, int]]:
    """Validation pictures' names and classes, classes mixed."""
    order = [k for _ in range(EACH) for k in CLASSES]
    return [(f"ILSVRC2012_val_{i:08d}.JPEG", k) for i, k in enumerate(order, 1)]


def _write(path, k):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_jpeg(k))


def _synset_folders(root):
    for name, k in _names():
        _write(root / synsets()[k] / name, k)
    return root


def _flat(root):
    for name, k in _names():
        _write(root / name, k)
    return root


def _truth_numbers(root):
    (root / "val.txt").write_text("".join(f"{n} {k}\n" for n, k in _names()))


def _truth_synsets(root):
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{synsets()[k]}\n" for _, k in _names()))


def _truth_kaggle(root):
    rows = "".join(f"{n.removesuffix('.JPEG')},{synsets()[k]} 1 2 3 4\n" for n, k in _names())
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)


def _truth_devkit(root, meta=True):
    """The kit's own numbers: here the reverse of the sorted order."""
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{1000 - k}\n" for _, k in _names()))
    if meta:
        rows = np.zeros(1000, dtype=[("ILSVRC2012_ID", "f8"), ("WNID", "O")])
        for k, name in enumerate(synsets()):
            rows[k] = (1000 - k, name)
        savemat(root / "meta.mat", {"synsets": rows})


def _parquet(root):
    root.mkdir(parents=True)
    for shard in range(2):
        rows = _names()[shard::2]
        images = [{"bytes": _jpeg(k), "path": n} for n, k in rows]
        table = pa.table(
            {
                "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "label": [k for _, k in rows],
            }
        )
        pq.write_table(table, root / f"validation-{shard:05d}-of-00002.parquet", row_group_size=4)
    return root


def _with(truth):
    def make(root):
        truth(_flat(root))
        return root

    make.__name__ = truth.__name__
    return make


def _beside(root):
    _flat(root / "val")
    _truth_numbers(root)
    return root / "val"


def _root_above(root):
    _synset_folders(root / "val")
    _write(root / "train" / synsets()[0] / "n01440764_1.JPEG", 0)
    return root


def _kaggle_root(root):
    _flat(root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    _truth_kaggle(root)
    return root


LAYOUTS = [_synset_folders, _with(_truth_numbers), _with(_truth_synsets), _with(_truth_kaggle), _with(_truth_devkit), _parquet, _beside, _root_above, _kaggle_root]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__.strip("_"))
def test_every_layout_of_imagenet_is_reproduced(layout, tmp_path):
    rows = reproduction.reproduce("colours", layout(tmp_path / "data"), claim="c-top1")
    assert [(r.claim.id, r.value, r.evidence.level) for r in rows] == [("c-top1", 100.0, "reproduced")]
    assert Ledger().measurements("swin")[0]["weights"] == "the authors' weights in1k"


def test_the_same_data_has_one_digest_in_all_layouts(tmp_path):
    digests = {open_imagenet(layout(tmp_path / layout.__name__ / "x")).digest for layout in LAYOUTS}
    assert len(digests) == 1


def test_v2_and_real(tmp_path):
    for i, (_, k) in enumerate(_names()):
        _write(tmp_path / "v2" / "imagenetv2" / str(k) / f"{i:x}.jpeg", k)
    assert reproduction.reproduce("colours", tmp_path / "v2", claim="c-top1-v2")[0].evidence.level == "reproduced"
    root = _flat(tmp_path / "val")
    labels = [[k] for _, k in _names()]
    labels[0], labels[1] = [], [5, 7]  # not judged; either is right
    (tmp_path / "real.json").write_text(json.dumps(labels))
    row = reproduction.reproduce("colours", root, claim="c-top1-real")[0]
    assert row.evidence.level == "reproduced" and Ledger().measurements("swin")[0]["items"] == len(labels) - 1


def test_all_metrics_and_views_of_a_model(tmp_path):
    root = _synset_folders(tmp_path / "val")
    rows = reproduction.reproduce("colours", root, batch_size=300)
    levels = {r.claim.id: (r.evidence.level, r.reason) for r in rows}
    assert levels["c-top1"][0] == levels["c-top5"][0] == levels["c-top1-crops"][0] == "reproduced"
    assert "ImageNet-V2" in levels["c-top1-v2"][1] or "ILSVRC" in levels["c-top1-v2"][1]
    assert "real.json" in levels["c-top1-real"][1] and "unrunnable" not in levels


@pytest.mark.parametrize(("steps", "count"), [("flip", 2), ("10-crop", 10), ("144-crop", 144)])
@pytest.mark.parametrize("shape", [(44, 60), (60, 44), (50, 50)])
def test_views(steps, count, shape):
    views = _imagenet.transform_of({"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.875}, 28, 0, steps)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8))
    found = views(picture)
    assert found.shape == (count, 3, 28, 28)
    mirrored = {tuple(v.flip(-1).flatten().tolist()) for v in found}
    assert all(tuple(v.flatten().tolist()) in mirrored for v in found), "every view has its mirror image among them"


def test_outside_is_contradicted_and_exits_with_1(tmp_path):
    root = _synset_folders(tmp_path / "val")
    for path in sorted(root.rglob("*.JPEG"))[:6]:
        path.write_bytes(_jpeg(300))  # pictures of something else
    done = CliRunner().invoke(app, ["reproduce", "colours", "--data", str(root), "--claim", "c-top1"])
    assert done.exit_code == 1 and "contradicted" in done.output


def test_a_part_never_counts(tmp_path):
    root = _synset_folders(tmp_path / "val")
    done = CliRunner().invoke(
        app, ["reproduce", "colours", "--data", str(root), "--claim", "c-top1", "--limit", "7", "--json"]
    )
    row = json.loads(done.stdout[done.stdout.index("[") :])[0]
    assert done.exit_code == 0 and row["partial"] and row["level"] == "open" and row["measured"] == 100.0


def test_missing_pictures_are_listed_and_the_run_is_partial(tmp_path):
    root = _synset_folders(tmp_path / "val")
    gone = sorted(root.rglob("*.JPEG"))[3]
    gone.unlink()
    row = reproduction.reproduce("colours", root, claim="c-top1")[0]
    assert row.partial and gone.stem in " ".join(row.notes) and row.evidence.level == "open"


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    root = _synset_folders(tmp_path / "val")
    bad = sorted(root.rglob("*.JPEG"))[3]
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=bad.name):
        reproduction.reproduce("colours", root, claim="c-top1")


def test_an_error_is_what_an_accuracy_leaves():
    released = registry.Weights("u", "authors", "authors", "MIT", metrics={"imagenet-1k": {"top1": 77.46}})
    assert protocols.stated(released, "imagenet-1k", "top1_error") == 22.54
    assert protocols.stated(released, "imagenet-1k", "top1") == 77.46
    assert protocols.stated(released, "imagenet-1k", "top5_error") is None
    assert protocols.stated(released, "imagenet-v2", "top1") is None


def test_another_order_of_classes_is_named_before_the_run(tmp_path):
    """Numbers in an order of their own that look like the models': what makes 0 % elsewhere."""
    other = dict(zip(CLASSES, (5, 9, 300, 444, 640, 20), strict=True)) | {640: 71}
    for name, k in _names():
        _write(tmp_path / "val" / str(other[k]) / name, k)
    with pytest.raises(DataError, match=r"another order than the model's"):
        reproduction.reproduce("colours", tmp_path / "val", claim="c-top1")
    assert Ledger().measurements("swin") == []


def test_a_bad_model_is_not_taken_for_a_permutation():
    labels = [k for k in range(8) for _ in range(8)]
    rng = np.random.default_rng(0)
    assert _imagenet.permutation(labels, rng.integers(0, 1000, 64).tolist()) < 0.5, "guesses at random"
    assert _imagenet.permutation(labels, [17] * 64) < 0.5, "everything is one class"
    assert _imagenet.permutation(labels, [(k + 1) % 8 for k in labels]) == 1.0
    assert _imagenet.permutation(labels, labels) == 0.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: _flat(root), "not sorted into classes, and no ground-truth file"),
        (lambda root: (_flat(root), _truth_devkit(root, meta=False)), "development kit's own order"),
        (
            lambda root: [_write(root / str(k + 1) / f"{k}.JPEG", k) for k in range(1000)],
            "development kit's own class numbers",
        ),
        (
            lambda root: [_write(root / "cats" / "a.jpg", 0), _write(root / "dogs" / "a.jpg", 0)],
            "no synsets of ImageNet-1K: cats, dogs",
        ),
        (
            lambda root: [_write(root / synsets()[0] / f"n01440764_{i}.JPEG", 0) for i in range(120)],
            "training pictures",
        ),
        (lambda root: _write(root / "a.jpg", 0), "their names .a.jpg. are not ImageNet's"),
        (lambda root: root.mkdir(), "neither pictures nor folders"),
        (lambda root: None, "no folder at"),
        (
            lambda root: (_flat(root), (root / "val.txt").write_text("".join(f"{n} {k + 1}\n" for n, k in _names()))),
            "up to 1000",
        ),
        (
            lambda root: (_flat(root), (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\n")),
            "says nothing of 17 pictures",
        ),
        (lambda root: (_flat(root), (root / "val.txt").write_text("hello\n")), "not a ground-truth file"),
    ],
)
def test_what_is_no_validation_set_is_named_before_anything_runs(make, says, tmp_path):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=says):
        reproduction.reproduce("colours", tmp_path / "data", claim="c-top1")
    assert Ledger().measurements("swin") == []


def test_uneven_classes_are_not_the_validation_part(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "PICTURES", {"imagenet-1k": 1000})
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 1001)]
    found = imagenet.Labelled(names, [(0,)] * 1000, lambda i: b"", "a test")
    with pytest.raises(DataError, match="not those of the validation part"):
        imagenet._complete(found)


def test_unknown_names_offer_what_there_is(tmp_path):
    with pytest.raises(OffprintError, match="colours"):
        reproduction.reproduce("colour")
    with pytest.raises(OffprintError, match="c-top1"):
        reproduction.reproduce("colours", claim="c-top")
    with pytest.raises(OffprintError, match="cannot be run: nothing here evaluates on coco"):
        reproduction.reproduce("colours", claim="unrunnable")
    with pytest.raises(OffprintError, match="in1k"):
        reproduction.reproduce("colours", _synset_folders(tmp_path / "val"), claim="c-top1", weights="in1")


def test_a_checkpoint_of_ones_own(tmp_path):
    root = _synset_folders(tmp_path / "val")
    file = save_weights(Colours(), tmp_path / "mine.safetensors")
    assert reproduction.reproduce("colours", root, claim="c-top1", checkpoint=file)[0].evidence.level == "reproduced"
    assert Ledger().measurements("swin")[0]["weights"].startswith("checkpoint ")
    with pytest.raises(OffprintError, match="no weight file"):
        reproduction.reproduce("colours", root, claim="c-top1", checkpoint=tmp_path / "none.pth")


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    root, seen = _synset_folders(tmp_path / "val"), []
    monkeypatch.setattr(_imagenet, "CHUNK", 6)
    guesses = _imagenet._guesses

    def counted(model, data, job, classes, batch):
        seen.append(len(data))
        if len(seen) == 4:  # the pilot, two parts, and then
            raise KeyboardInterrupt
        return guesses(model, data, job, classes, batch)

    monkeypatch.setattr(_imagenet, "_guesses", counted)
    with pytest.raises(KeyboardInterrupt):
        reproduction.reproduce("colours", root, claim="c-top1")
    row = reproduction.reproduce("colours", root, claim="c-top1")[0]
    assert row.evidence.level == "reproduced" and seen[4:] == [seen[0], 6], "the pilot again, and the last part alone"


# -- super-resolution ---------------------------------------------------------------------------------------------------
def _picture(seed, side=24):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side + 6, 3), np.uint8))


def test_pairs_in_every_layout(tmp_path):
    import tarfile
    import zipfile

    for layout in ("HR", "GTmod12", "original", "."):
        folder = tmp_path / layout.strip(".") / "Set14" / layout
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(2):
            _picture(i).save(folder / f"p{i}.png")
        pairs = photos.open_pairs(folder.parent if layout != "." else folder, "set14", 2)
        assert len(pairs) == 2 and pairs["p0"][1].shape == (3, 12, 15) and "made here" in pairs.how
    both = tmp_path / "both" / "Set14"
    for name, picture in (("HR/p0.png", _picture(0)), ("HR/p1.png", _picture(1)), ("LR_bicubic/X2/p0x2.png", _picture(2, 12).resize((15, 12))),
                          ("LR_bicubic/X2/p1x2.png", _picture(3, 12).resize((15, 12)))):  # fmt: skip
        (both / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(both / name)
    plain = photos.open_pairs(both, "set14", 2)
    assert plain.how == "as given (x2)"
    with tarfile.open(tmp_path / "set14.tar.gz", "w:gz") as archive:
        archive.add(both, "Set14")
    with zipfile.ZipFile(tmp_path / "set14.zip", "w") as archive:
        for path in both.rglob("*.png"):
            archive.write(path, f"Set14/{path.relative_to(both)}")
    for file in ("set14.tar.gz", "set14.zip"):
        assert photos.open_pairs(tmp_path / file, "set14", 2).digest == plain.digest
    with pytest.raises(DataError, match="no pictures of urban100"):
        photos.open_pairs(both.parent, "urban100", 2)
    (both / "LR_bicubic/X2/p1x2.png").unlink()
    with pytest.raises(DataError, match="no low resolution .x2. of p1"):
        photos.open_pairs(both, "set14", 2)
    _picture(3, 12).save(both / "LR_bicubic/X2/p1x2.png")
    with pytest.raises(DataError, match="not a factor of 2"):
        photos.open_pairs(both, "set14", 2)["p1"]


def test_another_set5_is_refused_with_both_digests(tmp_path):
    for i, name in enumerate(photos.set5()):
        folder = tmp_path / "Set5" / "HR"
        folder.mkdir(parents=True, exist_ok=True)
        _picture(i).save(folder / f"{name}.png")
    known = photos.open_pairs(None, "set5", 2).digest
    with pytest.raises(DataError, match=rf"is not Set5: the digest of its pictures is \w{{16}}, that of Set5 {known}"):
        photos.open_pairs(tmp_path, "set5", 2)


# -- graphs and interactions --------------------------------------------------------------------------------------------
def test_runs_on_a_graph_and_a_part_of_them():
    job = protocols.Job("dagnn_cora", Protocol("cora", "accuracy", split="public", seeds=100), runs=1)
    found = protocols.measure(job)
    assert found.partial and found.seeds == 1 and 75 < found.metrics["accuracy"][0] < 90


def test_ranking_with_a_checkpoint_and_with_other_data(tmp_path):
    from offprint.models.factory import create_model

    torch.manual_seed(0)
    model = create_model("lightgcn_lastfm_l3")
    file = save_weights(model, tmp_path / "m.safetensors")
    asked = Protocol("lastfm", "recall@20")
    found = protocols.measure(protocols.Job("lightgcn_lastfm_l3", asked, checkpoint=str(file)))
    assert set(found.metrics) == {"recall@20", "ndcg@20", "precision@20"} and not found.partial
    with pytest.raises(DataError, match="another data set, or another release"):
        protocols.measure(protocols.Job("lightgcn_lastfm_l3", asked, source="gowalla", checkpoint=str(file)))
