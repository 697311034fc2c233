"""What is wrong with numbers is told: constant regions by name, values that are not finite by count; and no array is handed on that
cannot be written."""

import gzip
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from offprint.data.brain_series import SeriesWarning, open_series
from offprint.data.graphs import check_graph
from offprint.data.images import read_idx
from offprint.data.own_graphs import open_graph
from offprint.errors import DataError
from offprint.tasks.restoration import to_tensor

NAMES = ["Precuneus", "Amygdala", "Insula"]


def folder_of(tmp_path, count=4, constant=((1, 1), (3, 1), (3, 2)), bad=()):
    """Tables of 6 frames with a line of region names; (subject, region) pairs are constant."""
    draw = np.random.default_rng(0)
    for s in range(count):
        x = draw.normal(size=(6, 3)).round(3).astype(object)
        for subject, region in constant:
            if subject == s:
                x[:, region] = 2.5
        for subject, frame, region in bad:
            if subject == s:
                x[frame, region] = "nan"
        rows = [",".join(NAMES), *(",".join(map(str, row)) for row in x)]
        (tmp_path / f"sub-{s}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_constant_regions_are_told_by_name(tmp_path):
    with pytest.warns(SeriesWarning) as told:
        scans = open_series(folder_of(tmp_path))
    assert scans.regions == tuple(NAMES) and [str(w.message) for w in told] == list(scans.notes)
    assert scans.notes[0].startswith(
        "region 1 (Amygdala) is constant in 2 of 4 scans (sub-1, sub-3); it becomes 0 there"
    )
    assert scans.notes[1].startswith("region 2 (Insula) is constant in 1 of 4 scans (sub-3)") and len(scans.notes) == 2
    assert not scans.series[1][:, 1].any() and scans.series[0][:, 1].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = open_series(scans)  # told once
        assert again.notes == scans.notes and again.regions == scans.regions
        assert open_series(folder_of(tmp_path, constant=())).notes == ()


def test_constant_regions_without_names_and_many_of_them():
    x = np.random.default_rng(0).normal(size=(2, 9, 20))
    x[1, :, 5] = 7
    with pytest.warns(SeriesWarning, match=r"region 5 is constant in 1 of 2 scans \(1\); it tells nothing there"):
        open_series(x, standardize=False)
    x[0, :, :15] = 7
    with pytest.warns(SeriesWarning):
        notes = open_series(x).notes
    assert len(notes) == 9 and notes[-1] == "7 more regions are constant in some scans"


def test_values_that_are_not_finite_are_counted(tmp_path):
    bad = [(2, 3, 0), (2, 4, 0), (2, 4, 2)]
    said = r"sub-2: frame 3, region 0 \(Precuneus\) is nan; 3 of its 18 values are not finite \(3 NaN\), in 2 of 6 frames and 2 of 3 regions"
    with pytest.raises(DataError, match=said):
        open_series(folder_of(tmp_path, constant=(), bad=bad))


@pytest.mark.parametrize("normalize", [False, True])
def test_features_that_are_not_finite_are_counted(tmp_path, normalize):
    x = np.ones((5, 2), np.float32)
    x[1, 0], x[3] = np.nan, (np.nan, np.inf)
    np.savez(tmp_path / "g.npz", x=x, edge_index=np.array([[0], [1]]))
    said = r"node 1 has features that are not finite, and 1 of the other 4 nodes have \(2 values are NaN, 1 infinite\)"
    with pytest.raises(DataError, match=said):
        open_graph(tmp_path / "g.npz", normalize=normalize)


def test_arrays_that_become_tensors_can_be_written(tmp_path):
    """PyTorch warns of others, and what is written into them is undefined."""
    head = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2])
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(range(8))))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 0]))
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    frozen = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in read_idx(tmp_path, "t10k"):
            torch.from_numpy(array)
        tensor = to_tensor(picture)
        to_tensor(np.asarray(picture))
        for standardize in (False, True):
            torch.from_numpy(open_series(frozen, standardize=standardize).series[0])
    assert (tensor * 255).round().permute(1, 2, 0).flatten().tolist() == list(range(12))


def test_a_good_graph_passes():
    check_graph(open_graph("Cora"))
