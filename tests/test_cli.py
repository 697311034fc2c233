"""The command line: every verb as a person would call it, and what it says when it cannot."""

import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

from offprint import catalog
from offprint.cli import main as cli


@pytest.fixture
def offprint(monkeypatch, capsys, tmp_path):
    """Call ``offprint`` in-process, in a folder of its own with a ledger of its own: (exit code, stdout, stderr)."""
    monkeypatch.setenv("OFFPRINT_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["offprint", *map(str, words)])
        from offprint.cli import console

        for stream, file in (("out", "stdout"), ("errors", "stderr")):
            monkeypatch.setattr(getattr(console, stream), "_file", getattr(sys, file), raising=False)
            getattr(console, stream).width = 200
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def words(text):
    return " ".join(re.sub(r"[│┃━┏┓┡┩└┘─╇┳┻╷╵├┤┼]", " ", text).split())


def test_papers(offprint):
    code, shown, _ = offprint("papers", "--json")
    rows = json.loads(shown)
    assert code == 0 and len(rows) == 60
    assert {r["slug"] for r in rows if r["built"]} == {p.slug for p in catalog.papers() if p.built}
    shown = offprint("papers", "--kind", "graph")[1]
    assert "dagnn" in shown and "open" in shown and "convnext" not in shown
    assert "60 papers" in offprint("papers")[1]
    assert "multi-digit" in offprint("papers", "--search", "house numbers")[1]
    code, _, error = offprint("papers", "--kind", "graphs")
    assert code == 2 and "nearest: graph" in words(error)


def test_planned_papers_say_so(offprint):
    planned = [p.slug for p in catalog.papers() if not p.built]
    for slug in planned[:2]:
        shown = offprint("show", slug)[1]
        assert "planned" in shown and "create_model" not in shown and "proof:" not in shown


def test_show(offprint):
    shown = words(offprint("show", "dagnn")[1])
    assert (
        "Cora, public split" in shown and "84.4" in shown and "dagnn_cora" in shown and "offprint prove dagnn" in shown
    )
    row = json.loads(offprint("show", "dagnn", "--json")[1])
    assert {c["level"] for c in row["claims"]} <= {"reproduced", "equal", "structural", "indicated", "open"}
    code, _, error = offprint("show", "convnxt")
    assert code == 2 and "convnext" in error


def test_models_and_info(offprint):
    names = [r["name"] for r in json.loads(offprint("models", "convnext_*", "--json")[1])]
    assert len(names) == 8
    assert "convnext_tiny" in offprint("models", "--paper", "convnext")[1]
    row = json.loads(offprint("info", "convnext_tiny", "--json")[1])
    assert row["parameters"] == 28_589_128
    assert "28,589,128" in offprint("info", "convnext_tiny", "--size", 3, "--size", 64, "--size", 64)[1]
    code, _, error = offprint("info", "convnext_tny")
    assert code == 2 and "convnext_tiny" in error


def test_train_evaluate_predict_explain_export(offprint, tmp_path):
    tiny = ["-o", "depths=(1,1,1,1)", "-o", "dims=(8,8,8,8)"]
    data = tmp_path / "d"
    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        (data / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(data / label / f"{i}.png")
    run = ["train", "-m", "convnext_tiny", "-d", data, "--out", "run", "--epochs", 1, "--batch-size", 4, "--size", 32, "--lr", 1e-3,
           "--set", "mixup=0", "--set", "cutmix=0", *tiny]  # fmt: skip
    code, shown, error = offprint(*run)
    assert code == 0, error
    assert "validation accuracy" in shown and (tmp_path / "run" / "model.safetensors").is_file()
    found = json.loads(offprint("evaluate", "run", "-d", data, "--json")[1])
    assert set(found) == {"top1", "top5", "loss", "images"}
    rows = json.loads(offprint("predict", data / "a" / "0.png", data / "b" / "1.png", "-m", "run", "--json")[1])
    assert len(rows) == 2 and {p["class"] for p in rows[0]["predictions"]} == {"a", "b"}
    assert offprint("predict", data / "a" / "0.png", "-m", "run", "-k", 1)[0] == 0
    code, shown, error = offprint("explain", data / "a" / "0.png", "-m", "run", "--out", "heat.png")
    assert code == 0, error
    assert Image.open(tmp_path / "heat.png").size == (40, 40)
    code, shown, error = offprint("export", "run", "--format", "torch-export", "--size", 3, "--size", 32, "--size", 32)
    assert code == 0 and (tmp_path / "run.pt2").is_file(), error
    code, _, error = offprint(*run, "--set", "colour=1")
    assert code == 2 and "field of the recipe" in error
    code, _, error = offprint(*run, "--set", "lr")
    assert code == 2 and "name=value" in error
    code, _, error = offprint("predict", data / "a" / "0.png", "-m", "convnext_tiny")
    assert code == 2 and "random weights" in error
    code, _, error = offprint("export", "convnext_tiny", "--format", "tflite")
    assert code == 2 and "onnx" in error
    assert "4e-05" in offprint("train", "-m", "convnext_tiny", "-d", data, "--lr", 4e-5, "--show-recipe")[1]


def test_upscale(offprint, tmp_path):
    import offprint as library

    library.save_weights(library.create_model("cfsr_x2"), tmp_path / "w.safetensors")
    Image.new("RGB", (40, 36), (200, 30, 30)).save(tmp_path / "p.png")
    code, shown, error = offprint("upscale", "p.png", "-m", "cfsr_x2", "--checkpoint", "w.safetensors")
    assert code == 0 and "40x36 to 80x72" in words(shown), error
    assert Image.open(tmp_path / "p_x2.png").size == (80, 72)
    code, _, error = offprint("upscale", "p.png", "-m", "convnext_tiny", "--checkpoint", "w.safetensors")
    assert code == 2 and "cfsr_x4" in error
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, _, error = offprint("upscale", "bad.png", "--checkpoint", "w.safetensors")
    assert code == 2 and "cannot read the picture bad.png" in words(error)
    code, _, error = offprint("upscale", "p.png", "--checkpoint", "none.safetensors")
    assert code == 2 and "no weight file" in error
    code, _, error = offprint("upscale", "p.png", "--checkpoint", "w.safetensors", "--tile", 8)
    assert code == 2 and "32 or more" in error


def test_prove_and_report(offprint, tmp_path, monkeypatch):
    from offprint import proofs
    from offprint.proofs import Band, Proof

    figures = {"arms": {"DAGNN Cora": [84.0]}, "sweep": {}, "f": 1.0}
    real = proofs.load("dagnn")

    def fake(low, run=None):
        bands = {m: (Band("f", low, 2, "%"),) for m in proofs.MODES}
        return lambda slug: Proof("dagnn", "Is it?", "d", "b", bands, run or (lambda ctx: figures), real.plot)

    monkeypatch.setattr(proofs, "load", fake(0))
    code, shown, _ = offprint("prove", "dagnn", "--report", "r.html")
    assert code == 0 and "holds" in shown and str(tmp_path / "r.html") in shown
    monkeypatch.setattr(proofs, "load", fake(1.5))
    code, shown, error = offprint("prove", "dagnn", "--full")
    assert code == 1 and "contradicted" in shown and "dagnn" in error

    def stopped(ctx):
        raise KeyboardInterrupt

    monkeypatch.setattr(proofs, "load", fake(0, stopped))
    code, _, error = offprint("prove", "dagnn")
    assert code == 130 and "interrupted" in error
    monkeypatch.setattr(proofs, "load", lambda slug: real)
    assert offprint("report", "--out", "again.html")[0] == 0 and (tmp_path / "again.html").stat().st_size > 10_000
    code, _, error = offprint("prove")
    assert code == 2 and "--all" in error


def test_an_unwritable_ledger_is_said_before_the_work(offprint, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("OFFPRINT_LEDGER", str(tmp_path / "file" / "l.sqlite"))
    code, _, error = offprint("prove", "dagnn")
    assert code == 2 and "OFFPRINT_LEDGER" in error


def test_samples(offprint, tmp_path):
    assert "photographs" in offprint("samples")[1]
    assert offprint("samples", "photographs", "p")[0] == 0
    assert sorted(os.listdir(tmp_path / "p")) == ["astronaut.png", "chelsea.png", "coffee.png"]
    assert offprint("samples", "embeddings", "e")[0] == 0
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "e" / "digits.parquet")
    assert table.num_rows == 6000 and set(table.column_names) == {"id", "label", "embedding"}
    code, _, error = offprint("samples", "photograph")
    assert code == 2 and "photographs" in error


def test_every_verb_is_documented(offprint):
    code, shown, _ = offprint("--help")
    assert code == 0
    for verb in cli._verbs():
        assert verb in shown
        assert offprint(verb, "--help")[0] == 0
    assert offprint("--version")[1].startswith("offprint 0.")
    assert offprint("no-such-verb")[0] == 2


def test_extras_that_are_missing_are_named(monkeypatch):
    from offprint.errors import MissingExtra, need

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"pip install 'offprint\[export\]'"):
        need("onnxscript", "export", "exporting")
