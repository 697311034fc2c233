"""Exported files: sizes that stay free, and names."""

import numpy as np
import pytest
import torch

import offprint
from offprint.errors import OffprintError
from offprint.models.export import export_model

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3}


def test_height_and_width_stay_free_and_names_are_given(tmp_path):
    import onnxruntime

    model = offprint.create_model("convnext_tiny", **SMALL).eval()
    sample = torch.randn(1, 3, 64, 96)
    export_model(model, tmp_path / "m.onnx", sample=sample, dynamic=("batch", "height", "width"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"] and [o.name for o in session.get_outputs()] == ["output"]
    for shape in ((1, 3, 96, 64), (3, 3, 128, 160)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x).numpy()
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected, atol=1e-4)


def test_sizes_that_are_not_free_are_refused(tmp_path):
    model = offprint.create_model("convnext_tiny", **SMALL).eval()
    with pytest.raises(OffprintError, match="unknown size that may stay free 'heigth'; nearest: height"):
        export_model(model, tmp_path / "m.pt2", "torch-export", sample=torch.randn(1, 3, 64, 64), dynamic=("heigth",))
    assert not (tmp_path / "m.pt2").exists()
