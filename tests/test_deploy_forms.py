"""The form deploy chooses: precision, memory format, merged or as built."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch

import offprint
from offprint.errors import OffprintError
from offprint.models import deploy as module
from offprint.models.deploy import Form, deploy

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def model():
    torch.manual_seed(0)
    return offprint.create_model("mobilenetv2_100", num_classes=5).eval()


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_the_format_that_is_asked_for(memory_format):
    net = model()
    fast = deploy(net, X, memory_format=memory_format)
    assert fast.form[1:] == ("fp32", memory_format)
    with torch.no_grad():
        torch.testing.assert_close(fast(X), net(X), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fast(X.contiguous(memory_format=torch.channels_last)), fast(X))


@pytest.mark.parametrize(
    "quickest", [Form(m, "fp32", f) for m in (True, False) for f in ("contiguous", "channels_last")]
)
def test_the_fastest_form_is_taken(monkeypatch, quickest):
    monkeypatch.setattr(module, "_race", lambda models, inputs: {form: 1.0 + (form != quickest) for form in models})
    fast = deploy(model(), X, precision="fp32")
    assert fast.form == quickest and fast.deployed
    norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    assert norms is not quickest.merged


def test_bf16_takes_float_images_and_says_when_it_is_slow(monkeypatch):
    slow = {"fp32": 1.0, "bf16": 2.0}
    monkeypatch.setattr(module, "_race", lambda models, inputs: {form: slow[form.precision] for form in models})
    with pytest.warns(UserWarning, match="bf16 is slower than fp32 on this machine"):
        fast = deploy(model(), X, precision="bf16")
    with torch.no_grad():
        assert fast(X).dtype == torch.bfloat16
    slow["bf16"] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deploy(model(), X, precision="bf16")


def test_a_form_travels():
    fast = deploy(model(), X, memory_format="channels_last")
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    with torch.no_grad():
        for other in (again, copy.deepcopy(fast)):
            assert other.form == fast.form
            torch.testing.assert_close(other(X), fast(X))


def test_in_place():
    net = model()
    deploy(net, X, memory_format="channels_last", inplace=True)
    assert net.form.memory_format == "channels_last" and net.deployed
    assert net(X).shape == (2, 5)


@pytest.mark.parametrize("wrong", [{"precision": "fp8"}, {"memory_format": "blocked"}])
def test_unknown_forms_are_refused(wrong):
    with pytest.raises(OffprintError, match=next(iter(wrong.values()))):
        deploy(model(), X, **wrong)
