"""Released weights: every entry is complete and loads in its dialect; files are found by model, checked, and refused by name."""

import argparse
import io
import json
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import golden

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models import checkpoint, hub, registry
from offprint.models.registry import Weights, entry

RELEASES = [(name, tag) for name in offprint.list_models(pretrained=True) for tag in entry(name).weights]
PERCENT = {"top1", "top5", "accuracy", "dice", "dice_overlap_0.7", "miou", "f1_normal", "f1_crowded", "f1_night"}
RANGES = {"psnr_y": (20, 45), "ssim_y": (0.5, 1), "plcc": (0.5, 1), "srcc": (0.5, 1), "krcc": (0.5, 1)}
RANGES |= dict.fromkeys(
    ("ap", "ap50", "mask_ap", "precision", "recall", "hmean"), (30, 100)
)  # of objects and words, in %
RANGES |= {"pesq": (1, 4.65), "stoi": (0, 1), "si_sdr": (0, 40)}  # of speech


def released(name, tag):
    return entry(name).weights[tag]


def dialects(name):
    cls = entry(name).build
    known = getattr(cls, "dialects", ())
    if isinstance(known, property):  # of a composed model: those of its head
        with torch.device("meta"):
            known = offprint.create_model(name).dialects
    return {getattr(cls, "native", "authors"), *(d.name for d in known)}


# -- the table -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", offprint.list_models(pretrained=True))
def test_entries_are_complete(name):
    for tag, w in entry(name).weights.items():
        assert w.publisher and w.licence and re.fullmatch(r"hf:[\w.-]+/[\w.-]+/[\w./-]+|https?://\S+", w.url), tag
        assert w.dialect in dialects(name), tag
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}|", w.sha256), tag
        stated = re.search(r"-([0-9a-f]{8})\.pth$", w.url)
        assert stated is None or w.sha256 == stated[1], tag
        assert bool(w.metrics) == bool(w.metrics_source), tag
        for row in w.metrics.values():
            for metric, value in row.items():
                low, high = (60, 100) if metric in PERCENT else RANGES[metric]
                assert low < value < high, (tag, metric)
            assert row.get("top5", 100) > row.get("top1", 0), tag
        assert w.average in ("", "ema", "raw"), tag
        usual = w.num_classes in (None, 0, 1000) and "btcv" not in tag and "brats" not in tag
        assert usual == (not w.class_map), tag
        full = entry(name).release(tag)
        assert full.num_classes is not None or entry(name).task in ("restoration", "lanes", "enhancement", "text")
        assert full.preprocessing is not None and (full.input_size or entry(name).input_size is None)
        if "crop_pct" in full.preprocessing:
            mean, std, crop = (full.preprocessing[k] for k in ("mean", "std", "crop_pct"))
            assert len(mean) == len(std) == full.input_size[0] and 0.8 < crop <= 1, tag
            assert full.preprocessing.get("crop_mode", "center") in ("center", "squash"), tag
            assert full.preprocessing["interpolation"] in ("bicubic", "bilinear"), tag
    first, *_ = entry(name).weights.values()
    publishers = {w.publisher for w in entry(name).weights.values()}
    assert first.publisher == "authors" or "authors" not in publishers


def test_one_address_is_one_file():
    """Two models share an address only if they are the same network under two names."""
    owners: dict[str, list] = {}
    for name, tag in RELEASES:
        owners.setdefault(released(name, tag).url, []).append((name, tag))
    for url, rows in owners.items():
        forms = {
            json.dumps({k: v for k, v in entry(n).kwargs.items() if k not in ("num_classes", "pre_down")})
            for n, _ in rows
        }
        assert len(forms) == 1 and len({n for n, _ in rows}) == len(rows), url


def test_library_figures_are_what_the_library_says():
    """Addresses, sizes and figures of torchvision's and timm's releases against the installed libraries."""
    import timm
    import torchvision

    known = {
        w.url: w
        for m in torchvision.models.list_models(torchvision.models)
        for w in torchvision.models.get_model_weights(m)
    }
    checked = {"torchvision": 0, "timm": 0}
    for name, tag in RELEASES:
        w = released(name, tag)
        if w.publisher == "torchvision":
            theirs, way = known[w.url], known[w.url].transforms()
            figures = theirs.meta["_metrics"]["ImageNet-1K"]
            assert w.metrics == {"imagenet-1k": {"top1": figures["acc@1"], "top5": figures["acc@5"]}}
            size = way.crop_size[0]
            assert w.input_size == (3, size, size) and int(size / w.preprocessing["crop_pct"]) == way.resize_size[0]
            assert w.preprocessing["interpolation"] == way.interpolation.value
        elif w.publisher == "timm":
            cfg = timm.models.get_pretrained_cfg(w.url.split("/")[1])
            assert f"hf:{cfg.hf_hub_id}/model.safetensors" == w.url and cfg.license == w.licence.lower()
            assert w.input_size == (cfg.test_input_size or cfg.input_size)
            p = w.preprocessing
            assert (p["mean"], p["std"], p["interpolation"]) == (cfg.mean, cfg.std, cfg.interpolation)
            assert p["crop_pct"] == (cfg.test_crop_pct or cfg.crop_pct) and p["crop_mode"] == cfg.crop_mode
            assert (w.num_classes or 1000) == cfg.num_classes
        else:
            continue
        checked[w.publisher] += 1
    assert min(checked.values()) > 5


# -- every dialect loads ---------------------------------------------------------------------------------------------
def _shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def _renamed(shapes, *rules):
    for pattern, to in rules:
        shapes = {re.sub(pattern, to, k): v for k, v in shapes.items()}
    return shapes


def _own(name, tag, **options):
    """The names that our class gives its tensors, with the classifier of the file."""
    w = released(name, tag)
    options = {**({} if w.num_classes is None else {"num_classes": w.num_classes}), **options}
    return _shapes(offprint.create_model(name, **options))


def _peer(name, tag):
    import timm
    import torchvision

    w = released(name, tag)
    if w.publisher == "torchvision":
        return _shapes(torchvision.models.get_model(w.url.rsplit("/", 1)[1].split("-")[0]))
    return _shapes(timm.create_model(w.url.split("/")[1].split(".")[0], num_classes=w.num_classes or 1000))


def _monai(name, tag):
    return _own(name, tag, in_chans=entry(name).release(tag).input_size[0])


def _ssl(name, tag):
    """Encoder alone, under ``module.``, its MLP in the older names, with heads of the pre-training."""
    shapes = {k: v for k, v in _monai(name, tag).items() if k.startswith("swinViT.")}
    heads = {"rotation_head.weight": (4, 768), "contrastive_head.weight": (512, 768)}
    return _renamed({**shapes, **heads}, (r"^swinViT\.", ""), (r"linear([12])\.", r"fc\1."), ("^", "module."))


def _simmim(name, tag):
    """The encoder under its prefix, with mask token and decoder; a tuned file is a plain classifier."""
    if tag.endswith("ft_in1k"):
        return _own(name, tag)
    extra = {"mask_token": (1, 1, entry(name).kwargs["embed_dim"])}
    decoder = {"decoder.0.weight": (3072, 1024, 1, 1), "decoder.0.bias": (3072,)}
    return {**_renamed({**_own(name, tag), **extra}, ("^", "encoder.")), **decoder}


def _cadene(name, tag):
    if released(name, tag).publisher == "timm":
        return _peer(name, tag)
    if name == "nasnet_a_mobile":
        return {k: tuple(v) for k, v in golden.load(Path(golden.__file__).parent / "nasnet" / f"{name}.json")["state"]}
    if name == "nasnet_a_large":  # the file has a background class, first
        widened = {k: v for k, v in _peer(name, "timm_tf_in1k").items()}
        return {k: (1001, *v[1:]) if k.startswith("last_linear") else v for k, v in widened.items()}
    import timm

    return _renamed(_shapes(timm.create_model(name, num_classes=1001)), (r"^classif\.", "last_linear."))


def _authors_names(name, tag):
    if name.startswith(("densenet", "ghostnet")):
        return _renamed(_own(name, tag), (r"^head\.", "classifier."))
    if name.startswith("hornet_large"):  # a classifier of unstated width, which is left out
        return _own(name, tag, num_classes=10459)
    return _own(name, tag, **({"deploy": True} if name.startswith("cfsr") else {}))


def _mmpretrain(name, tag):
    rules = ((r"\.pws\.", ".projs."), (r"\.(gamma[12])$", r".\1.weight"), (r"^norm\.", "norm3."))
    shapes = _renamed(_own(name, tag), *rules, (r"^(?!head)", "backbone."), (r"^head\.", "head.fc."))
    return shapes


FILES = {"timm": _peer, "torchvision": _peer, "monai": _monai, "monai-ssl": _ssl, "simmim": _simmim, "cadene": _cadene,
         "authors": _authors_names, "scnn_pytorch": lambda name, tag: _own(name, tag), "mmpretrain": _mmpretrain,
         "facenet": lambda name, tag: _own(name, tag, num_classes=8631)}  # fmt: skip


def _some():
    """Of each class and dialect: the first release of each publisher, with each kind of classifier."""
    seen = {}
    for name, tag in sorted(RELEASES, key=lambda release: "tiny" not in release[0]):  # the small ones stand for all
        w = released(name, tag)
        seen.setdefault((entry(name).build, w.dialect, w.publisher, w.num_classes), (name, tag))
    return list(seen.values())


@pytest.mark.parametrize(("name", "tag"), _some(), ids=lambda v: v)
def test_pretrained_loads(name, tag, monkeypatch):
    """A file of that form, all its tensors of the right shape, is read in its dialect, and nothing of the model is left out."""
    w, reports = released(name, tag), []
    load = checkpoint.load_weights
    with torch.device("meta"):
        shapes = FILES[w.dialect](name, tag)
    state = {k: torch.zeros(()).expand(v) for k, v in shapes.items()}
    monkeypatch.setattr(hub, "fetch", lambda model, asked: reports.append((model, asked)) or Path("file.pth"))
    monkeypatch.setattr(checkpoint, "read_file", lambda path: {"state_dict": state})
    monkeypatch.setattr(checkpoint, "load_weights", lambda *a, **k: reports.append(load(*a, **k)) or reports[-1])
    with torch.device("meta"):
        model = offprint.create_model(name, pretrained=tag)
    assert reports[0] == (name, tag) and model.spec["weights"] == tag
    report, full = reports[1], entry(name).release(tag)
    assert report.dialect == w.dialect and report.loaded > 0
    optional = re.compile(getattr(model, "optional_state", "") or "(?!)")
    fresh = [n for n in report.fresh if not optional.search(n)]
    assert all(not n.startswith("swinViT") for n in fresh) if w.dialect == "monai-ssl" else fresh == []
    assert getattr(model, "num_classes", None) == full.num_classes
    if full.input_size:
        assert model.in_chans == full.input_size[0]
        with torch.device("meta"):
            for reader in (model, getattr(model, "backbone", None)):  # where one of them refuses sizes, not this one
                if hasattr(reader, "check_input"):
                    reader.eval().check_input(torch.zeros(1, *full.input_size))


def test_counting_a_model_leaves_nothing_behind():
    """What a model on the meta device keeps for its kind of window is not what one with numbers gets."""
    from offprint.nn.windows import relative_position_index, windows

    window, shift = (3, 5, 2), (1, 2, 0)  # a shape that nothing else has kept
    with torch.device("meta"):
        relative_position_index(window)
        windows((6, 10, 4), window, shift)
    index, cut = relative_position_index(window), windows((6, 10, 4), window, shift)
    assert index.device.type == "cpu" and index.max() == 5 * 9 * 3 - 1
    assert cut.order.sort().values.tolist() == list(range(240))


def test_a_user_may_ask_for_other_classes(tmp_path, monkeypatch):
    """The released classifier is dropped when another number is asked for; the model's form is the user's."""
    small = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}
    (tmp_path / "convnext_tiny").mkdir()
    torch.save(
        {"model": offprint.create_model("convnext_tiny", num_classes=21841, **small).state_dict()},
        tmp_path / "convnext_tiny" / "convnext_tiny_22k_224.pth",
    )
    monkeypatch.setenv("OFFPRINT_WEIGHTS", str(tmp_path))
    assert offprint.create_model("convnext_tiny", pretrained="in22k", **small).num_classes == 21841
    model = offprint.create_model("convnext_tiny", pretrained="in22k", num_classes=3, in_chans=1, **small)
    assert model.num_classes == 3 and model.in_chans == 1
    pyramid = offprint.create_model("convnext_tiny", pretrained="in22k", features_only=True, **small)
    assert [m.shape[1] for m in pyramid(torch.zeros(1, 3, 64, 64))] == [4, 8, 8, 8]


# -- where files are found -------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``OFFPRINT_WEIGHTS`` and an empty cache; returns a function that puts a file there."""
    root = tmp_path / "weights"
    root.mkdir()
    monkeypatch.setenv("OFFPRINT_WEIGHTS", str(root))
    monkeypatch.setenv("OFFPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)

    def put(where, data=b"weights"):
        path = root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return put


@pytest.mark.parametrize(
    ("place", "model", "tag"),
    [
        ("convnext_tiny/in1k/convnext_tiny_1k_224_ema.pth", "convnext_tiny", "in1k"),
        ("convnext_tiny/convnext_tiny_1k_224_ema.pth", "convnext_tiny", "in1k"),
        ("convnext/convnext_tiny_1k_224_ema.pth", "convnext_tiny", "in1k"),
        ("convnext_tiny_1k_224_ema.pth", "convnext_tiny", "in1k"),
        ("swin_tiny_patch4_window7_224.pth", "swin_tiny", "in1k"),
        ("convnext_tiny/timm_fb_in1k/model.safetensors", "convnext_tiny", "timm_fb_in1k"),
        ("halonet26t/model.safetensors", "halonet26t", "timm_a1h_in1k"),
        ("hornet_tiny_7x7/in1k/hornet_tiny_7x7.pth", "hornet_tiny_7x7", "in1k"),
    ],
)
def test_found_by_model(folder, place, model, tag):
    assert hub.find(model, tag) is None
    path = folder(place)
    assert hub.find(model, tag) == path == hub.fetch(model, tag)


def test_files_of_one_name_are_not_confused(folder):
    """``model.safetensors`` says nothing of whose it is: only a place that names model and tag does."""
    for place in ("model.safetensors", "convnext/model.safetensors", "convnext_tiny/model.safetensors"):
        folder(place)
    assert hub.find("convnext_tiny", "timm_fb_in1k") is None and hub.find("convnext_tiny", "timm_in12k") is None
    own = folder("convnext_tiny/timm_in12k/model.safetensors")
    assert hub.find("convnext_tiny", "timm_in12k") == own and hub.find("convnext_tiny", "timm_fb_in1k") is None


def test_cache_and_hub_cache(folder, tmp_path, monkeypatch):
    kept = hub.places("convnext_tiny", "torchvision_v1")[-1]
    assert kept.relative_to(hub.cache_dir()).parts[:3] == ("torchvision", "convnext_tiny", "torchvision_v1")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    assert hub.find("convnext_tiny", "torchvision_v1") == kept
    asked = []
    theirs = tmp_path / "blob"
    theirs.write_bytes(b"x")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: asked.append(a) or str(theirs))
    assert hub.fetch("halonet26t") == theirs
    assert asked == [("timm/halonet26t.a1h_in1k", "model.safetensors")]


# -- bad input -------------------------------------------------------------------------------------------------------
def test_wrong_digest_tells_both(folder):
    path = folder("cfsr/CFSR_x4.pth")
    ours = "59c779a61c72238aed87683a908248d6e9e3cdb78a29a71da196d20092b6f2f6"
    with pytest.raises(CheckpointError) as told:
        offprint.create_model("cfsr_x4", pretrained=True)
    import hashlib

    assert all(w in str(told.value) for w in (str(path), ours, hashlib.sha256(b"weights").hexdigest(), "move it"))


def test_weights_of_another_publisher(folder):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    dims = (4, 8, 16, 16)
    blocks = [CNBlockConfig(c, n, 1) for c, n in zip(dims, (*dims[1:], None), strict=True)]
    path = folder("convnext_tiny/in1k/convnext_tiny_1k_224_ema.pth", b"")
    torch.save(ConvNeXt(blocks).state_dict(), path)
    with pytest.raises(CheckpointError) as told:
        offprint.create_model("convnext_tiny", pretrained="in1k", depths=(1, 1, 1, 1), dims=dims)
    said = str(told.value)
    assert "torchvision names" in said and "release of authors" in said and "pretrained='torchvision_v1'" in said
    assert released("convnext_tiny", "in1k").url in said


def test_unknown_tag_and_model_without(folder, tmp_path, monkeypatch):
    with pytest.raises(OffprintError, match="nearest: .*torchvision_v1"):
        offprint.create_model("convnext_tiny", pretrained="torchvision_v2")
    with pytest.raises(OffprintError, match="dagnn_cora has no released weights.*offprint weights"):
        offprint.create_model("dagnn_cora", pretrained=True)
    monkeypatch.setenv("OFFPRINT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="not a folder"):
        hub.fetch("cfsr_x2")
    with pytest.raises(OffprintError, match="unknown model of cfsr with weights 'cfsr_x9'"):
        registry.register(
            paper="cfsr", kind="signal", build=torch.nn.Identity, variants={"x": {}}, weights={"cfsr_x9": {}}
        )


def test_no_network_says_what_to_do(folder, tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    spec = entry("cfsr_x2")
    away = replace(spec, weights={"released": Weights("http://127.0.0.1:9/w.pth", "authors", "authors", "MIT")})
    monkeypatch.setitem(registry._entries, "cfsr_x2", away)
    with pytest.raises(
        CheckpointError, match=r"cache.*authors/cfsr_x2/released/w.pth.*OFFPRINT_WEIGHTS.*checkpoint_path="
    ):
        hub.fetch("cfsr_x2", progress=False)
    assert list(tmp_path.rglob("*.p*")) == []

    def gone(*_):
        raise LocalEntryNotFoundError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
    with pytest.raises(
        CheckpointError, match=r"timm/halonet26t.a1h_in1k .*LocalEntryNotFoundError.*halonet26t/timm_a1h_in1k"
    ):
        hub.fetch("halonet26t")


# -- files as they are released --------------------------------------------------------------------------------------
def test_archives_and_options_beside_the_tensors(tmp_path):
    """A zip with one checkpoint inside; options of the run and NumPy's numbers beside the tensors."""
    held = {"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=0.1), "best_acc": np.float64(0.9)}
    buffer = io.BytesIO()
    torch.save(held, buffer)
    for names in (("fold/model.pt",), ("a.pt", "b.pt")):
        with zipfile.ZipFile(tmp_path / f"{len(names)}.zip", "w") as archive:
            for name in (*names, "__MACOSX/model.pt"):
                archive.writestr(name, buffer.getvalue())
    read = checkpoint.read_file(tmp_path / "1.zip")
    assert read["args"].lr == 0.1 and read["best_acc"] == 0.9
    assert checkpoint.unwrap(read, "zip")["w"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match=r"2 of them weight files \(a.pt, b.pt\)"):
        checkpoint.read_file(tmp_path / "2.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "1.zip").read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read_file(tmp_path / "cut.zip")


# -- the command -----------------------------------------------------------------------------------------------------
def test_the_table(folder, monkeypatch):
    from typer.testing import CliRunner

    from offprint.cli import console
    from offprint.cli.main import app

    folder("cfsr/CFSR_x4.pth")
    monkeypatch.setattr(console.out, "width", 80)

    def call(*words):
        done = CliRunner().invoke(app, ["weights", *words])
        assert done.exit_code == 0, done.output
        return done.output

    listed = call()
    assert max(map(len, listed.splitlines())) <= 80
    assert f"{len(RELEASES)} releases" in listed and "1 on this machine" in listed
    assert re.search(r"^in1k +authors +top1 82.1 +1000 +3x224x224 MIT +no", listed, re.M)
    one = call("cfsr_x4")
    assert "psnr_y 32.33, ssim_y 0.8964" in one and "none" in one and re.search(r"SHA-256 +59c779a61c", one)
    (row,) = json.loads(call("cfsr_x4", "--json"))
    assert row["here"].endswith("cfsr/CFSR_x4.pth") and row["publisher"] == "authors"
    assert CliRunner().invoke(app, ["weights", "dagnn_cora"]).exit_code
