"""Weight files as they lie about: averaged weights, leftovers of training, names without a place, and what is no weight file."""

import argparse
import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models import checkpoint, hub, registry
from offprint.models.weight_files import Leftover, read_file

TINY = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8), "num_classes": 3}


def convnext(**options):
    return offprint.create_model("convnext_tiny", **{**TINY, **options})


def filled(value, model=None):
    return {k: torch.full_like(v, value) for k, v in (model or convnext()).state_dict().items()}


def taken(model):
    """The one value that all weights have."""
    (value,) = {float(v) for p in model.parameters() for v in p.detach().flatten()}
    return value


def saved(tmp_path, held, legacy=False):
    file = tmp_path / "file.pth"
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    return file


# -- averaged weights ------------------------------------------------------------------------------------------------
def prefixed(prefix, state):
    return {prefix + k: v for k, v in state.items()}


BOTH = {
    "timm": lambda r, e: {"epoch": 3, "state_dict": r, "state_dict_ema": e},
    "convnext": lambda r, e: {"model": r, "model_ema": e, "optimizer": {"state": {}}},
    "basicsr": lambda r, e: {"params": r, "params_ema": e},
    "mmengine": lambda r, e: {"state_dict": r, "ema_state_dict": {**prefixed("module.", e), "steps": torch.tensor(9)}},
    "ema.module": lambda r, e: {"model": r, "ema": {"module": e, "decay": 0.999}},
    "lightning": lambda r, e: {"state_dict": {**prefixed("model.", r), **prefixed("model_ema.module.", e)}},
    "container beside": lambda r, e: {**r, "ema": e},
    "ema-pytorch": lambda r, e: {**prefixed("online_model.", r), **prefixed("ema_model.", e)},
    "tensorflow": lambda r, e: {**r, **{k + "/ExponentialMovingAverage": v for k, v in e.items()}},
}


@pytest.mark.parametrize("form", BOTH)
def test_of_two_sets_the_average_is_taken_unless_told_otherwise(form):
    held = BOTH[form](filled(1.0), filled(2.0))
    for average, value, which in (("", 2.0, "ema"), ("ema", 2.0, "ema"), ("raw", 1.0, "raw")):
        model = convnext()
        strict = form != "mmengine"  # whose counter of steps is a tensor without a place
        report = offprint.load_weights(model, held, average=average, strict=strict or which == "raw")
        assert taken(model) == value and report.average == which, average
        assert {"ema": "averaged weights", "raw": "raw weights"}[which] in str(report)


def test_the_report_says_where_they_lay_and_what_lay_beside():
    report = offprint.load_weights(convnext(), BOTH["convnext"](filled(1.0), filled(2.0)))
    assert report.container == "model_ema" and report.skipped == ["model", "optimizer"]
    assert "averaged weights from 'model_ema'" in str(report) and "beside them: model, optimizer" in str(report)
    plain = offprint.load_weights(convnext(), {"model": filled(1.0)})
    assert plain.average == "" and "averaged" not in str(plain)


def test_an_average_without_statistics_has_those_of_the_raw_weights():
    source = offprint.create_model("mobilenetv2_035", num_classes=2)
    names = {n for n, _ in source.named_parameters()}
    raw, ema = filled(1.0, source), {k: v for k, v in filled(2.0, source).items() if k in names}
    for held in ({"model": raw, "model_ema": ema}, {**raw, **prefixed("ema.", ema)}):
        model = offprint.create_model("mobilenetv2_035", num_classes=2)
        assert offprint.load_weights(model, held).average == "ema"
        assert taken(model) == 2.0 and float(model.features[0][1].running_mean[0]) == 1.0


def test_a_file_of_averages_alone():
    averaged = torch.optim.swa_utils.AveragedModel(convnext())
    averaged.module.load_state_dict(filled(2.0))
    for held in (averaged.state_dict(), {"model_ema": filled(2.0)}, prefixed("ema.", filled(2.0))):
        model = convnext()
        assert offprint.load_weights(model, held).average == "ema" and taken(model) == 2.0
        with pytest.raises(CheckpointError, match="averaged weights only"):
            offprint.load_weights(convnext(), held, average="raw")


def test_a_module_that_is_called_ema_is_no_average():
    """Names that average nothing of the file are names like any other."""
    state = {**filled(1.0), "ema.gate": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"1 without a place \(ema.gate\)"):
        offprint.load_weights(convnext(), state)


def test_the_choice_goes_through_create_model(tmp_path, monkeypatch):
    file = saved(tmp_path, BOTH["convnext"](filled(1.0), filled(2.0)))
    assert taken(convnext(checkpoint_path=str(file))) == 2.0
    model = convnext(checkpoint_path=str(file), average="raw")
    assert taken(model) == 1.0 and model.load_report.average == "raw"
    with pytest.raises(OffprintError, match="unknown kind of weights .*'mean'"):
        convnext(checkpoint_path=str(file), average="mean")
    with pytest.raises(OffprintError, match="chooses among weights"):
        convnext(average="ema")
    # a release says which of the two its publisher evaluates
    monkeypatch.setattr(hub, "fetch", lambda *_: file)
    spec = registry.entry("convnext_tiny")
    first = next(iter(spec.weights))
    from dataclasses import replace

    for stated, value in (("raw", 1.0), ("ema", 2.0), ("", 2.0)):
        released = {first: replace(spec.weights[first], average=stated, num_classes=3)}
        monkeypatch.setitem(registry._entries, "convnext_tiny", replace(spec, weights=released))
        options = {k: v for k, v in TINY.items() if k != "num_classes"}
        assert taken(offprint.create_model("convnext_tiny", pretrained=True, **options)) == value


# -- nothing is dropped in silence -----------------------------------------------------------------------------------
def test_names_outside_a_prefix_are_told():
    """Half of the names and more under a prefix: the others are neither lost nor unreported."""
    state = {**prefixed("backbone.", filled(1.0)), "neck.weight": torch.ones(2), "bbox_head.bias": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"2 without a place \(neck.weight, bbox_head.bias\)"):
        offprint.load_weights(convnext(), state)
    model = convnext()
    with pytest.warns(UserWarning, match=r"2 without a place \(neck.weight, bbox_head.bias\)"):
        report = offprint.load_weights(model, state, strict=False)
    assert taken(model) == 1.0 and set(report.dropped) == {"neck.weight", "bbox_head.bias"}


def test_the_backbone_may_be_the_smaller_half():
    rest = {f"seg_head.{i}.weight": torch.ones(1) for i in range(200)}
    assert len(rest) > 2 * len(filled(1.0))
    model = convnext()
    with pytest.warns(UserWarning, match="200 without a place .* and 197 more"):
        report = offprint.load_weights(model, {**rest, **prefixed("backbone.", filled(1.0))}, strict=False)
    assert taken(model) == 1.0 and len(report.dropped) == 200


def test_two_names_that_would_be_one():
    state = {**prefixed("backbone.", filled(1.0)), "norm.weight": torch.full((8,), 5.0)}
    model = convnext()
    with pytest.raises(CheckpointError, match=r"1 without a place \(norm.weight\)"):
        offprint.load_weights(model, state)
    with pytest.warns(UserWarning):
        assert "norm.weight" in offprint.load_weights(model, state, strict=False).dropped
    assert taken(model) == 1.0
    rename = checkpoint.Dialect("theirs", (("^b$", "a"),))
    assert rename.apply({"a": torch.ones(1), "b": torch.zeros(1)}, model) == {"a": torch.ones(1), "b": torch.zeros(1)}


def test_what_a_dialect_leaves_out_is_listed():
    from test_mobilenet_v2 import slim_state

    model = offprint.create_model("mobilenetv2_035", num_classes=2)
    slots = {"MobilenetV2/Conv/weights/RMSProp": torch.ones(1), "global_step": torch.ones(())}
    report = offprint.load_weights(model, {**slim_state(model), **slots})
    assert report.dialect == "tensorflow" and set(report.dropped) == set(slots)


def test_what_the_file_does_not_give_is_told():
    state = filled(1.0)
    del state["head.bias"], state["norm.weight"]
    with pytest.raises(CheckpointError, match=r"2 tensors missing \(head.bias, norm.weight\)"):
        offprint.load_weights(convnext(), state)
    with pytest.warns(UserWarning, match=r"2 tensors missing \(head.bias, norm.weight\)"):
        assert offprint.load_weights(convnext(), state, strict=False).fresh == ["head.bias", "norm.weight"]


# -- leftovers of training -------------------------------------------------------------------------------------------
class Recorder:
    """Something of the training script; reading it would call :func:`print`."""

    def __init__(self):
        self.history = [1.0, 2.0]


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def beside(tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    counts = collections.defaultdict(int)
    counts["seen"] += 3
    return {
        "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "array": np.arange(3), "optimizer": optimizer.state_dict(),
        "recorder": Recorder(), "counts": counts, "path": tmp_path, "bomb": Bomb(tmp_path / "ran"), "kind": nn.Linear, "epoch": 7,
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_are_taken_and_nothing_beside_them_runs(tmp_path, legacy):
    file = saved(tmp_path, {**beside(tmp_path), "model": filled(2.0), "bomb2": Bomb(tmp_path / "ran")}, legacy)
    model = convnext()
    report = offprint.load_weights(model, file)
    assert taken(model) == 2.0
    assert not (tmp_path / "ran").exists()
    assert {"bomb (posix.system)", "args (argparse.Namespace)", "optimizer", "epoch"} <= set(report.skipped)
    assert any(n.startswith("recorder (") and "Recorder" in n for n in report.skipped)
    read = read_file(file)
    assert read["epoch"] == 7 and read["counts"] == {"seen": 3} and read["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert isinstance(read["kind"], type) is False and repr(read["args"]) == "<argparse.Namespace, not built>"
    with pytest.raises(pickle.UnpicklingError):  # what torch by itself does with this file
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_all_program_is_refused(tmp_path, legacy):
    file = saved(tmp_path, {"model": Bomb(tmp_path / "ran")}, legacy)
    with pytest.raises(CheckpointError, match=r"would run code when opened \(posix.system\)"):
        offprint.load_weights(convnext(), file)
    file.write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "ran")}))
    with pytest.raises(CheckpointError, match="not one of torch's"):
        offprint.load_weights(convnext(), file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_kind_are_read_as_torch_reads_them(tmp_path, legacy):
    base = torch.arange(24.0)
    tensors = {
        "view": base[4:16].view(3, 4).t(), "shared": base, "half": torch.randn(3).half(), "bf16": torch.randn(3).bfloat16(),
        "long": torch.tensor(5), "bool": torch.tensor([True, False]), "complex": torch.randn(2, dtype=torch.complex64),
        "empty": torch.empty(0, 3), "parameter": nn.Parameter(torch.randn(2, 2)), "double": torch.randn(2).double(),
    }  # fmt: skip
    file = saved(tmp_path, {"state_dict": collections.OrderedDict(tensors), "bomb": Bomb(tmp_path / "ran")}, legacy)
    read = read_file(file)["state_dict"]
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape and torch.equal(read[name], value), (
            name
        )
    assert not (tmp_path / "ran").exists()


def test_a_module_that_was_pickled_whole(tmp_path):
    model = convnext()
    model.load_state_dict(filled(3.0))
    file = saved(tmp_path, {"model": model, "epoch": 1})
    target = convnext()
    assert offprint.load_weights(target, file).container == "model" and taken(target) == 3.0


class Reach:
    """Pickles to any (function, arguments, state)."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (lambda: Reach(torch._utils._rebuild_tensor_v2, (None, 0, (2,), (1,), False, {})), "without storage"),
        (lambda: Reach(torch._utils._rebuild_tensor_v2, (torch.ones(2).storage()._untyped_storage, 0, (9,), (1,), False, {})), "beyond its storage"),
        (lambda: Reach(torch._utils._rebuild_tensor_v2, (torch.ones(2).storage()._untyped_storage, -1, (1,), (1,), False, {})), "impossible shape"),
        (lambda: Reach(torch._tensor._rebuild_from_type_v2, (eval, int, ("1",), None)), "unknown function"),
    ],
)  # fmt: skip
def test_forged_tensors_are_refused(tmp_path, held, said):
    file = saved(tmp_path, {"bomb": Bomb(tmp_path / "ran"), "model": {"w": torch.ones(1), "x": held()}})
    with pytest.raises(CheckpointError, match=said):
        read_file(file)
    assert not (tmp_path / "ran").exists()


def test_a_file_changes_nothing_of_the_reader(tmp_path):
    """A state that is set on a class or a function of the reader, which would outlive the file."""
    for target in (torch._utils._rebuild_tensor_v2, argparse.Namespace):
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, 2)
        pickler.dump(target)
        evil = buffer.getvalue()[:-1] + b"N}X\x04\x00\x00\x00evilK\x01s\x86b."  # (None, {"evil": 1}) as its state
        whole = saved(tmp_path, {"model": filled(1.0)})
        with zipfile.ZipFile(whole) as archive:
            names = {n: archive.read(n) for n in archive.namelist()}
        with zipfile.ZipFile(whole, "w") as archive:
            for name, data in names.items():
                archive.writestr(name, evil if name.endswith("data.pkl") else data)
        with pytest.raises(CheckpointError, match="has no state|missing 1 required positional argument"):
            read_file(whole)
        assert not hasattr(Leftover, "evil")


def test_circles_and_depth_end(tmp_path):
    loop = [torch.ones(1)]
    loop.append(loop)
    deep: list = []
    for _ in range(400):
        deep = [deep]
    file = saved(tmp_path, {"model": filled(1.0), "loop": loop, "deep": deep, "bomb": Bomb(tmp_path / "ran")})
    read = read_file(file)
    assert read["loop"][1] is read["loop"] and taken_from(read) == 1.0
    assert not (tmp_path / "ran").exists()


def taken_from(read):
    return float(read["model"]["norm.weight"][0])


# -- what is no weight file ------------------------------------------------------------------------------------------
def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 114374272\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"is empty \(0 bytes\).*fetch it again"),
        (LFS, "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "web page.*download the file itself"),
        (b"\xef\xbb\xbf<HTML lang='en'>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML.*error of the server"),
        (b"Too many requests\nTry again later\n", "is a text.*'Too many requests'"),
        ("la première époque\n".encode() * 60, "is a text"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "compressed archive; .*|compressed archive .*unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        (zipped(a="x" * 999)[:300], "truncated or damaged zip archive.*fetch it again"),
        (zipped(**{"m/constants.pkl": "", "m/data.pkl": ""}), "TorchScript program"),
        (os.urandom(3) + b"\x00\x01" * 300, "damaged, truncated or not a weight file"),
    ],
    ids=["empty", "lfs", "html", "html-bom", "xml", "text", "utf8", "gzip", "hdf5", "cut-zip", "torchscript", "junk"],
)
def test_what_it_is_and_what_to_do(tmp_path, data, said):
    file = tmp_path / "weights.pth"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=said) as told:
        offprint.load_weights(convnext(), file)
    assert str(file) in str(told.value)


def test_a_pointer_or_a_page_under_a_safetensors_name(tmp_path):
    file = tmp_path / "model.safetensors"
    for data, said in (
        (LFS, "Git LFS pointer"),
        (b"", "is empty"),
        (b"<html>", "web page"),
        (b"\x00" * 40, "damaged or truncated"),
    ):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=said):
            offprint.load_weights(convnext(), file)
