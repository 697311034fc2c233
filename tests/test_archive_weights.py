"""A released file inside a zip archive: one file is taken out, nothing else."""

import zipfile

import pytest

from offprint.errors import CheckpointError
from offprint.models import hub


def test_one_file_of_an_archive(tmp_path):
    file = tmp_path / ".weights.part"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ffnet/a.pth", b"first")
        archive.writestr("../outside.pth", b"second")
    hub._unpack(file, "ffnet/a.pth")
    assert file.read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == [file.name]


def test_what_is_not_there_is_named(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.pth", b"first")
    with pytest.raises(CheckpointError, match=r"no 'b.pth'; it holds a.pth"):
        hub._unpack(file, "b.pth")
    file.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="no zip archive"):
        hub._unpack(file, "a.pth")
