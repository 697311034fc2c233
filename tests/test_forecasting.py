"""Forecasting: series in files, windows, one run through every verb, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.series import read_series
from offprint.errors import DataError, OffprintError
from offprint.tasks import contract
from offprint.tasks.forecasting import SeriesRecipe, TimeSplit

QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "kernel_sizes": (3, 7, 7, 7), "layer_scale_init_value": 1.0}
FAST = {"epochs": 2, "batch_size": 16, "lr": 2e-3}


def wave(steps=200, columns=2):
    t = np.arange(steps)
    draw = np.random.default_rng(0)
    waves = [np.sin(2 * math.pi * t / 12 + j) * (j + 1) + 10 * j for j in range(columns)]
    return np.stack(waves, 1) + 0.05 * draw.normal(size=(steps, columns))


def write_csv(path, values, names=("load", "heat"), first="2020-01-01", hours=1):
    when = np.datetime64(first) + np.arange(len(values)) * np.timedelta64(hours, "h")
    lines = [",".join(("date", *names))]
    lines += [
        f"{str(t).replace('T', ' ')}:00:00,{','.join(f'{v:.6f}' for v in row)}"
        for t, row in zip(when, values, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("series") / "power.csv", wave())


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    options = {"context": 24, "horizon": 6}
    return offprint.train("unireplknet_a_series", table, out, options=options, recipe=FAST, model_options={**SMALL, "rows": 2},
                          **QUIET)  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        found = CliRunner().invoke(app, [str(w) for w in words])
        error = found.exception
        text = found.output + (str(error) if error is not None and not isinstance(error, SystemExit) else "")
        return (2 if isinstance(error, OffprintError) else found.exit_code), " ".join(text.split())

    return call


# -- series -----------------------------------------------------------------------------------------------------------


def test_columns_and_times_of_a_table(table, tmp_path):
    series = read_series(table)
    assert series.columns == ["load", "heat"] and series.values.shape == (200, 2) and len(series.times) == 200
    assert str(series.after(2)[1]) == "2020-01-09 09:00:00"
    assert read_series(table, ["heat"]).columns == ["heat"]
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"ds": series.times, "load": series.values[:, 0]}), file)
    again = read_series(file)
    assert again.columns == ["load"] and again.times == series.times
    np.save(tmp_path / "x.npy", series.values)
    assert np.array_equal(read_series(tmp_path / "x.npy").values, series.values)


def test_times_go_on_by_months_and_not_where_they_are_uneven(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("when,x\n2020-10-01,1\n2020-11-01,2\n2020-12-01,3\n")
    assert [str(t.date()) for t in read_series(file).after(2)] == ["2021-01-01", "2021-02-01"]
    file.write_text("when,x\n2020-10-01,1\n2020-10-02,2\n2020-10-05,3\n")
    assert read_series(file).after(2) == []
    file.write_text("time,x\n0.5,1\n1.0,2\n1.5,3\n")
    assert read_series(file).after(1) == [2.0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("date,x\n2020-01-02,1\n2020-01-01,2\n", "row 2: the time 2020-01-01 in date is not after"),
        ("date,x\n2020-01-01,1\n2020-01-01,2\n", "one row per time"),
        ("date,x\n2020-01-01,1\n2020-01-02,\n", "row 2, column x: there is no finite number here"),
        ("x,y\n1,2\n3,four\n", "row 2, column y: 'four' is no number"),
        ("x\ninf\n1\n", "row 1, column x: there is no finite number"),
        ("a,b\nx,y\nz,w\n", "holds no column of numbers"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, says):
    file = tmp_path / "x.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        read_series(file)


def test_missing_values_are_the_ones_before_them(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("x,word\n1,a\n,b\nnan,c\n4,d\n")
    series = read_series(file, missing="previous")
    assert series.values[:, 0].tolist() == [1, 1, 1, 4]
    assert any("2 missing values of x" in n for n in series.notes) and any("word" in n for n in series.notes)
    file.write_text("x\nnan\n2\n")
    with pytest.raises(DataError, match="its first row must have one"):
        read_series(file, missing="previous")


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"columns": ["wind"]}, "unknown column"),
        ({"time": "day"}, "unknown column"),
        ({"missing": "guess"}, "stop, or previous"),
    ],
)
def test_choices_that_are_refused(table, kwargs, says):
    with pytest.raises(OffprintError, match=says):
        read_series(table, **kwargs)


def test_nothing_in_an_array_file_is_executed(tmp_path):
    np.save(tmp_path / "x.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as an array of numbers"):
        read_series(tmp_path / "x.npy")


# -- windows ----------------------------------------------------------------------------------------------------------


def test_parts_in_time_and_windows_that_reach_back():
    split = TimeSplit(read_series(wave(100)), 0.7, 0.1)
    assert [split.bounds(p) for p in ("train", "val", "test")] == [(0, 70), (70, 80), (80, 100)]
    scale = split.scale()
    assert np.allclose(scale[0], split.series.values[:70].mean(0))  # of the training part alone
    train, val, test = (split.windows(p, 12, 4, scale) for p in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (70 - 15, 10 - 3, 20 - 3)
    normal = (split.series.values - scale[0]) / scale[1]
    assert np.allclose(
        val[0][1].numpy(), normal[70:74].T, atol=1e-6
    )  # the first step forecast is the first of the part
    assert np.allclose(test[len(test) - 1][1].numpy(), normal[96:].T, atol=1e-6)
    with pytest.raises(DataError, match="'val' has 10 of 100 steps and 70 before it, too few"):
        split.windows("val", 12, 11, scale)
    with pytest.raises(OffprintError, match="part to test on"):
        TimeSplit(split.series, 0.8, 0.2)


def test_a_column_that_does_not_vary_is_kept():
    values = wave(50)
    values[:, 0] = 3
    split = TimeSplit(read_series(values), 0.7, 0.1)
    assert split.scale()[1][0] == 1 and torch.isfinite(split.windows("train", 8, 2, split.scale()).values).all()


# -- the task ---------------------------------------------------------------------------------------------------------


def test_a_run_describes_itself_and_forecasts(trained, table, tmp_path):
    assert {"mse", "mae", "mse_repeat_last", "mae_repeat_last", "val_mse"} <= set(trained)
    ready = trained.load()
    found = offprint.evaluate(ready)
    assert found["mse"] == pytest.approx(trained["mse"], rel=1e-4)
    assert found.beside["repeat last"]["mse"] == pytest.approx(trained["mse_repeat_last"], rel=1e-6)
    assert offprint.evaluate(ready, batch_size=7)["mse"] == pytest.approx(found["mse"], rel=1e-4)
    forecast = offprint.predict(ready, table)
    assert len(forecast) == 6 and forecast.columns == ["load", "heat"]
    series = read_series(table)
    assert forecast[0]["heat (repeat last)"] == pytest.approx(series.values[-1, 1])
    assert forecast[0]["time"] == "2020-01-09 08:00:00"
    assert offprint.predict(ready, series.values)[2]["load"] == pytest.approx(forecast[2]["load"], rel=1e-5)
    for ending in ("csv", "json", "png"):
        assert forecast.save(tmp_path / f"f.{ending}").stat().st_size > 0
    assert json.loads((tmp_path / "f.json").read_text())[5]["step"] == 6


def test_the_baseline_repeats_the_last_value(trained, table):
    """Mean errors over all windows of the test part, counted by hand."""
    values = read_series(table).values
    mean, std = values[:140].mean(0), values[:140].std(0)
    normal, errors = (values - mean) / std, []
    for first in range(160, 200 - 6 + 1):
        errors.append(normal[first : first + 6] - normal[first - 1])
    assert trained["mse_repeat_last"] == pytest.approx(float(np.square(errors).mean()), rel=1e-5)


def test_it_learns_more_than_the_last_value(table, tmp_path):
    done = offprint.train("unireplknet_a_series", table, tmp_path / "r", options={"context": 24, "horizon": 6},
                          recipe={**FAST, "epochs": 12, "patience": 0}, model_options={**SMALL, "rows": 2}, **QUIET)  # fmt: skip
    assert done["mse"] < 0.5 * done["mse_repeat_last"]


def test_every_verb_of_the_command_line(run, table, tmp_path):
    words = ["-o", "depths=(1,1,1,1)", "-o", "dims=(8,8,16,16)", "-o", "kernel_sizes=(3,7,7,7)", "-o", "rows=2"]
    code, said = run("train", "-m", "unireplknet_a_series", "-d", table, "--out", "r", "--context", "24", "--horizon", "6",
                     "--columns", "load", "--epochs", "1", "--accelerator", "cpu", *words)  # fmt: skip
    assert code == 0 and "the last value repeated" in said, said
    code, said = run("evaluate", "r")
    assert code == 0 and "repeat last" in said, said
    code, said = run("predict", table, "--model", "r", "--out", "f.csv")
    assert code == 0, said
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert lines[0] == "series,step,time,load,load (repeat last)" and len(lines) == 7
    code, said = run("export", "r", "--out", "m.onnx")
    assert code == 0, said


def test_what_is_refused(trained, run, table, tmp_path):
    ready = trained.load()
    short = write_csv(tmp_path / "short.csv", wave(20))
    with pytest.raises(DataError, match="has 20 steps, the model reads the last 24"):
        offprint.predict(ready, short)
    other = write_csv(tmp_path / "other.csv", wave(), names=("load", "wind"))
    with pytest.raises(OffprintError, match="unknown column of .*'heat'"):
        offprint.predict(ready, other)
    with pytest.raises(DataError, match="has 3 columns of numbers, the model was trained on 2: load, heat"):
        offprint.predict(ready, wave(40, 3))
    with pytest.raises(OffprintError, match="unknown part of the series 'tset'"):
        offprint.evaluate(ready, part="tset")
    for options, says in (
        ({"context": 0}, "context=0"),
        ({"context": 150}, "the part 'train' has 140 of 200 steps"),
        ({"horizon": 30}, "the part 'val' has 20 of 200 steps"),
    ):
        with pytest.raises(OffprintError, match=says):
            offprint.train("unireplknet_a_series", table, tmp_path / "x", options={"context": 24, "horizon": 6, **options},
                           recipe=FAST, model_options=SMALL, **QUIET)  # fmt: skip
    assert not (tmp_path / "x").exists()
    code, said = run("predict", tmp_path / "none.csv", "--model", trained.folder)
    assert code == 2 and "there is no table" in said


def test_a_model_may_name_its_arguments_otherwise(table, tmp_path, monkeypatch):
    from offprint.models import registry

    class Last(nn.Module):
        series_arguments = {"variables": "nvars", "context": "seq_len", "horizon": "target_window"}

        def __init__(self, nvars: int = 7, seq_len: int = 96, target_window: int = 96):
            super().__init__()
            self.weight, self.steps = nn.Parameter(torch.ones(nvars, 1)), target_window

        def forward(self, x):
            return (x[..., -1:] * self.weight).expand(-1, -1, self.steps)

    monkeypatch.setattr(registry, "_entries", dict(registry.entries()))
    registry.register(
        paper="metamixer", kind="signal", task="forecasting", build=Last, variants={"last_value": {}}, input_size=None
    )
    assert "last_value" in offprint.list_models(kind="signal") and contract.choose("last_value").name == "forecasting"
    done = offprint.train("last_value", table, tmp_path / "r", options={"horizon": 8}, model_options={"seq_len": 16},
                          recipe={"epochs": 1, "lr": 1e-9}, **QUIET)  # fmt: skip
    assert done["mse"] == pytest.approx(done["mse_repeat_last"], rel=1e-3)
    assert len(offprint.predict(done.load(), table)) == 8
    # by name with a file: no columns and no scale are known
    file, given = tmp_path / "r" / "model.safetensors", read_series(table).values
    monkeypatch.setattr(Last.__init__, "__defaults__", (2, 16, 8))
    found = offprint.predict("last_value", given, checkpoint=str(file))
    assert found.columns == ["0", "1"] and "without a scale" in found.notes[0]
    assert found[7]["1"] == pytest.approx(given[-1, 1], rel=1e-5)
    assert offprint.evaluate("last_value", table, checkpoint=str(file))["mse"] == pytest.approx(done["mse"], rel=1e-5)


def test_the_column_of_times_is_remembered(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("a,stamp\n" + "".join(f"{math.sin(i)},{100 + 5 * i}\n" for i in range(120)))
    done = offprint.train("unireplknet_a_series", file, tmp_path / "r", options={"context": 16, "horizon": 2, "time": "stamp"},
                          recipe={**FAST, "epochs": 1}, model_options={**SMALL, "rows": 2}, **QUIET)  # fmt: skip
    assert [row["time"] for row in offprint.predict(done.load(), file)] == [700.0, 705.0]
    assert offprint.evaluate(done.load())["mse"] == pytest.approx(done["mse"], rel=1e-4)
    series = read_series(file, time="stamp")
    kept = offprint.train("unireplknet_a_series", series.values, tmp_path / "s", options={"context": 16, "horizon": 2},
                          recipe={**FAST, "epochs": 1}, model_options={**SMALL, "rows": 2}, **QUIET)  # fmt: skip
    with pytest.raises(OffprintError, match="no series to evaluate on"):
        offprint.evaluate(kept.load())


def test_every_field_of_the_recipe_is_read_and_every_model_states_known_ones():
    import ast
    import dataclasses
    from pathlib import Path

    from offprint.models.registry import entries
    from offprint.tasks import forecasting

    tree = ast.parse(Path(forecasting.__file__).read_text()).body
    nodes = [n for top in tree if getattr(top, "name", "") != "SeriesRecipe" for n in ast.walk(top)]
    read = {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {
        "decay_rate",
        "decay_from",
        "schedule",
        "patience",
    }
    fields = {f.name for f in dataclasses.fields(SeriesRecipe)}
    assert fields - read == {"clip_grad"}  # which the one training run reads of any recipe
    models = [e for e in entries().values() if e.task == "forecasting"]
    assert models and all(set(stage) <= fields for e in models for stage in e.recipes.values())


def test_rates():
    assert [SeriesRecipe(decay_rate=0.5).rate(e) for e in (0, 0.9, 1, 3)] == [1, 1, 0.5, 0.125]
    later = SeriesRecipe(decay_rate=0.85, decay_from=5)
    assert later.rate(3.99) == 1 and later.rate(4) == 0.85 and later.rate(5) == pytest.approx(0.85**2)
    assert SeriesRecipe(schedule="cosine", epochs=4).rate(2) == pytest.approx(0.5)
    for fields, says in (({"lr": 0}, "lr=0"), ({"loss": "msle"}, "unknown loss"), ({"patience": -1}, "patience=-1")):
        with pytest.raises(OffprintError, match=says):
            SeriesRecipe(**fields)
    with pytest.raises(OffprintError, match="nearest: batch_size"):
        SeriesRecipe.of("unireplknet_a_series", batch=3)
