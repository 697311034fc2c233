"""The contract of tasks: one run, one declaration of options, folders that stand for models, and a paper added by one file."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import offprint
from offprint import api
from offprint.cli.main import app
from offprint.errors import OffprintError
from offprint.models import registry
from offprint.models.registry import entries, entry
from offprint.tasks import contract
from offprint.tasks.folder import read_about
from offprint.tasks.forecasting import SeriesRecipe
from offprint.tasks.recipe import Recipe, build_optimizer
from offprint.tasks.settings import Run

QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "drop_path_rate": 0.0}
FAST = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "input_size": 32, "warmup_epochs": 0, "mixup": 0.0, "cutmix": 0.0, "ema_decay": 0.0,
        "drop_path_rate": None, "label_smoothing": 0.0, "auto_augment": "", "random_erasing": 0.0}  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command line, in a folder of its own: (exit code, what it printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        found = CliRunner().invoke(app, [str(w) for w in words])
        error = found.exception
        text = found.output + (str(error) if error is not None and not isinstance(error, SystemExit) else "")
        return (2 if isinstance(error, OffprintError) else found.exit_code), " ".join(text.split())

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, base in (("bright", 170), ("dark", 40)):
        (root / label).mkdir()
        for i in range(16):
            image = np.clip(base + draw.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / label / f"{i:02}.png")
    return root


# -- the contract ----------------------------------------------------------------------------------------------------


def test_every_task_says_what_the_contract_asks():
    known = api.tasks()
    assert {"classification", "pretraining", "restoration", "recommendation", "nodes", "forward-learning", "connectivity",
            "connectivity-pretraining"} <= set(known)  # fmt: skip
    for task in known.values():
        able = api.models_of(task.name)
        assert task.does and able
        recipe = task.recipe(entry(able[0]))
        assert dataclasses.is_dataclass(recipe) and recipe.epochs >= 1
        offered = [*task.offers().values(), *api.choices(task.evaluate).values(), *api.choices(task.predict).values()]
        assert all(c.help for c in offered), (task.name, [c.name for c in offered if not c.help])


def test_no_verb_knows_a_task_or_a_paper_by_name():
    names = {*api.tasks(), *(e.paper for e in entries().values())} - {"nodes"}
    for verb in ("train", "evaluate", "predict", "export", "tasks", "models", "info"):
        text = Path(inspect.getfile(offprint)).parent.joinpath("cli", f"{verb}.py").read_text()
        assert not [n for n in names if f'"{n}"' in text], verb


def test_the_options_of_a_run_are_declared_once():
    from offprint.cli.train import train

    declared = inspect.signature(train).parameters
    assert {f.name for f in dataclasses.fields(Run)} - {"progress"} <= set(declared)
    here = Path(inspect.getfile(offprint)).parent
    texts = [
        p for p in (*(here / "cli").glob("*.py"), *(here / "tasks").glob("*.py")) if "accumulate: int" in p.read_text()
    ]
    assert [p.name for p in texts] == ["settings.py"]


def test_a_model_says_what_it_can_do(run):
    code, said = run("train", "-m", "swin_unetr_tiny", "-d", "x")
    assert code == 2 and "no folder at 'x'; give one with images/ and labels/" in said
    code, said = run("train", "-m", "swin_unetr_tiny", "-d", "x", "--task", "segmentation")
    assert code == 2 and "swin_unetr_tiny segments volumes (--task volumes)" in said
    code, said = run("predict", "x.png", "-m", "lightgcn", "--pretrained")
    assert code == 2 and "lightgcn is used with the interactions it knows" in said
    code, said = run("train", "-m", "cfsr_x2", "-d", "x", "--task", "classification")
    assert (
        code == 2
        and "cfsr_x2 enlarges pictures (--task restoration); --task classification is for models such as" in said
    )
    code, said = run("train", "-m", "convnext_tiny", "-d", "x", "--task", "classifcation")
    assert code == 2 and "nearest: classification" in said
    code, said = run("explain", "x.png", "-m", "dagnn_cora")
    assert code == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--accelerator", "tpu"], "accelerator='tpu' is not on this machine"),
        (["--accelerator", "quantum"], "unknown accelerator 'quantum'"),
        (["--precision", "12-bit"], "unknown precision '12-bit'"),
        (["--devices", "0"], "devices=0"),
        (["--logger", "paper"], "logger='paper'"),
        (["--accumulate", "0"], "accumulate=0"),
        (["--val-fractoin", "0.2"], "unknown option of train for the task classification '--val-fractoin'; nearest: --val-fraction"),
        (["--val-fraction", "much"], "--val-fraction much: expected a number"),
        (["--val-fraction"], "needs a value"),
        (["--set", "epocks=3"], "nearest: epochs"),
        (["--stage", "fintuning"], "unknown stage of the recipe of convnext_tiny 'fintuning'; nearest: "),
    ],
)  # fmt: skip
def test_everyday_mistakes_are_one_line_and_exit_code_two(run, pictures, tmp_path, words, says):
    code, said = run("train", "-m", "convnext_tiny", "-d", pictures, "--out", "r", *words)
    assert code == 2 and says in said and not (tmp_path / "r").exists(), said


# -- one run ---------------------------------------------------------------------------------------------------------


def fit(pictures, out, model="convnext_tiny", **kwargs):
    kwargs = {"recipe": FAST, "model_options": SMALL, **kwargs}
    return offprint.train(model, pictures, out, **{**QUIET, **kwargs})


def test_a_folder_says_what_it_is_and_stands_for_a_model(run, pictures, tmp_path):
    done = fit(pictures, tmp_path / "r")
    about = read_about(tmp_path / "r")
    assert {"task", "model", "classes", "preprocessing", "recipe", "versions", "seed", "source"} <= set(about)
    assert torch.__version__.startswith(about["versions"]["torch"]) and done.task == about["task"] == "classification"
    assert "epoch" in done["weights_are"] and json.loads((tmp_path / "r" / "summary.json").read_text()) == dict(done)
    ready = offprint.load_run(tmp_path / "r")
    found = offprint.evaluate(ready)  # on its own data
    assert found["images"] == 6 and 100 * 0 <= found["top1"] <= 100
    assert offprint.evaluate(tmp_path / "r", pictures) == found
    rows = offprint.predict(tmp_path / "r", [pictures / "dark", pictures / "bright" / "00.png"], top_k=1)
    assert len(rows) == 17 and rows[0]["predictions"][0]["class"] in ("bright", "dark")
    for name in ("p.json", "p.csv", "p.png"):
        assert rows.save(tmp_path / name).stat().st_size > 100
    assert json.loads((tmp_path / "p.json").read_text()) == rows.plain()
    for words in (("evaluate", "r", "--json"), ("predict", pictures / "dark", "-m", "r", "-k", "1", "--out", "q.csv"),
                  ("export", "r", "--out", "m.pt2", "--format", "torch-export"),
                  ("explain", pictures / "dark" / "00.png", "-m", "r", "--out", "e.png")):  # fmt: skip
        code, said = run(*words)
        assert code == 0, said
    again = fit(pictures, tmp_path / "s", model=str(tmp_path / "r"), model_options={}, recipe={**FAST, "epochs": 1})
    assert read_about(again.folder)["started_from"] == str(tmp_path / "r" / "model.safetensors")
    with pytest.raises(OffprintError, match="has no weights|which has weights"):
        offprint.evaluate(tmp_path / "r", pictures, pretrained=True)


def test_a_finished_run_goes_on_with_more_epochs(pictures, tmp_path):
    constant = {**FAST, "schedule": "constant"}
    whole = fit(pictures, tmp_path / "a", recipe={**constant, "epochs": 3})
    fit(pictures, tmp_path / "b", recipe={**constant, "epochs": 2})
    more = fit(pictures, tmp_path / "b", recipe={**constant, "epochs": 3})
    assert more["epochs"] == 3 and more["accuracy"] == whole["accuracy"]
    a, b = (torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(OffprintError, match="more than the 2 asked for"):
        fit(pictures, tmp_path / "a", recipe={**constant, "epochs": 2})


def test_a_picture_that_goes_moves_no_other(pictures, tmp_path):
    import shutil

    data = tmp_path / "d"
    shutil.copytree(pictures, data)
    fit(data, tmp_path / "r", recipe={**FAST, "epochs": 1})
    held = (tmp_path / "r" / "validation.txt").read_text().splitlines()
    first = next(p for p in sorted(data.rglob("*.png")) if str(p) not in held)
    before = offprint.evaluate(tmp_path / "r")
    first.unlink()
    assert offprint.evaluate(tmp_path / "r") == before  # the same pictures are held out
    Path(held[0]).write_bytes(b"broken")
    with pytest.raises(OffprintError, match="cannot read the picture"):
        offprint.evaluate(tmp_path / "r")
    found = offprint.evaluate(tmp_path / "r", on_error="skip")
    assert found["images"] == before["images"] - 1 and found.notes[0] == "1 left out" and held[0] in found.notes[1]
    rows = offprint.predict(tmp_path / "r", data, on_error="skip")
    assert len(rows) == 30 and rows.notes[0] == "1 left out"
    with pytest.raises(OffprintError, match="on_error='leave'"):
        offprint.evaluate(tmp_path / "r", on_error="leave")


def test_two_processes_give_the_weights_of_one(pictures, tmp_path):
    """gloo, on the processor: twice a batch of four is one of eight."""
    words = ["train", "-m", "convnext_tiny", "-d", str(pictures), "--accelerator", "cpu", "--logger", "none", "--epochs", "2",
             "--size", "32", "--set", "warmup_epochs=0", "--set", "mixup=0", "--set", "cutmix=0", "--set", "random_erasing=0",
             "--set", "label_smoothing=0", "--set", "ema_decay=0", "--set", "auto_augment=", "--lr", "1e-3", "--set", "eps=1e-3",
             "--set", "drop_path_rate=0.0", "-o", "depths=(1,1,1,1)", "-o", "dims=(8,8,16,16)"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, more in (
        ("one", ["--batch-size", "8"]),
        ("two", ["--batch-size", "4", "--devices", "2", "--strategy", "ddp"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "offprint.cli.main", *words, *more, "--out", str(tmp_path / name)],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("weights:") == 1
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True)["state_dict"] for n in ("one", "two"))
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


class Die(Callback):
    """Ends the process, as kill -9 does, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch:
            os._exit(9)


GRAPH = {"epochs": 30, "patience": 0}
KILLED = {
    "restoration": ("cfsr_x2", "sample:photographs", {"epochs": 2, "batch_size": 2},
                    {"options": {"patch": 8, "patches": 2}, "model_options": {"embed_dim": 8, "depths": (1,), "mlp_ratio": 2}}),
    "nodes": ("dagnn_cora", "cora", GRAPH, {}),
}  # fmt: skip


@pytest.mark.parametrize("task", KILLED)
def test_a_killed_run_goes_on_to_the_same_bytes(task, tmp_path):
    model, data, recipe, more = KILLED[task]
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_tasks import KILLED, QUIET, Die
import offprint
model, data, recipe, more = KILLED[{task!r}]
offprint.train(model, data, {str(tmp_path / "cut")!r}, recipe=recipe, callbacks=(Die({1 if task == "restoration" else 20}),), **more, **QUIET)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    again = offprint.train(model, data, tmp_path / "cut", recipe=recipe, **more, **QUIET)
    whole = offprint.train(model, data, tmp_path / "whole", recipe=recipe, **more, **QUIET)
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    a, b = (dict(r) | {"weights": ""} for r in (again, whole))
    assert a == b
    assert offprint.load_run(tmp_path / "cut").model.training is False


def test_the_node_task_learns_what_the_protocol_learns(tmp_path):
    done = offprint.train("dagnn_cora", "cora", tmp_path / "r", recipe={"epochs": 100}, **QUIET)
    assert done["test_accuracy"] > 75
    found = offprint.evaluate(tmp_path / "r")
    assert found["test_accuracy"] == pytest.approx(done["test_accuracy"], abs=1e-4)
    rows = offprint.predict(tmp_path / "r", "cora", nodes="0,5")
    assert [r["node"] for r in rows] == [0, 5] and all(0 < r["probability"] <= 1 for r in rows)
    with pytest.raises(OffprintError, match="node 99999 is not in the graph, which has nodes 0 to 2707"):
        offprint.predict(tmp_path / "r", "cora", nodes="99999")


def test_restoration_trains_evaluates_and_enlarges(run, tmp_path):
    model, data, recipe, more = KILLED["restoration"]
    done = offprint.train(model, data, tmp_path / "r", recipe={**recipe, "epochs": 1}, **more, **QUIET)
    assert done["held_out"] == 1 and done["psnr_y"] > 5
    found = offprint.evaluate(tmp_path / "r", "sample:set5")
    assert found["pictures"] == 5 and found.beside["bicubic"]["psnr_y"] == pytest.approx(33.7, abs=0.3)
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "x.png")
    code, said = run("predict", "x.png", "-m", "r", "--out", "y.png")
    assert code == 0 and Image.open(tmp_path / "y.png").size == (48, 40), said
    code, said = run("upscale", "x.png", "--model", "r", "--out", "z.png")
    assert code == 0 and Image.open(tmp_path / "z.png").size == (48, 40), said
    code, said = run("predict", "x.png", "-m", "r", "--out", "x.png")
    assert code == 2 and "is the picture itself" in said


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_every_field_of_every_registered_recipe_is_read():
    """What a model file states reaches the optimizer, the schedule, the pictures, the loss or the run: it is read as an attribute."""
    import ast

    here = Path(inspect.getfile(offprint)).parent
    read = {
        "lr",
        "min_lr",
        "warmup_lr",
        "drop_path_rate",
        "drop_rate",
    }  # by getattr in a loop: the tests below and of models
    for file in (*(here / "tasks").glob("*.py"), here / "data" / "transforms.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in ("recipe", "how", "self"):
                read.add(node.attr)
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "getattr"
                and isinstance(node.args[1], ast.Constant)
            ):
                read.add(node.args[1].value)
    fields = {f.name for f in dataclasses.fields(Recipe)}
    series = {f.name for f in dataclasses.fields(SeriesRecipe)}
    for e in entries().values():
        if e.kind in ("backbone", "signal"):
            stated = {k for stage in e.recipes.values() for k in stage}
            assert stated <= (series if e.task == "forecasting" else fields), e.name
    assert fields | series <= read, (fields | series) - read


def test_layer_decay_noise_and_scaling_reach_the_run():
    model = offprint.create_model("convnext_tiny", depths=(1, 1, 3, 1), dims=(8, 8, 16, 16), num_classes=3)
    recipe = Recipe.of("convnext_tiny", "finetuning_384" if "finetuning_384" in entry("convnext_tiny").recipes else "training",
                       layer_decay=0.7)  # fmt: skip
    rates = sorted({g["lr"] for g in build_optimizer(model, recipe, 512).param_groups})
    assert (
        len(rates) > 3
        and rates[-1] == pytest.approx(recipe.scaled(512)[0])
        and rates[0] == pytest.approx(rates[-1] * 0.7 ** (model.num_layers + 1))
    )
    quiet = dataclasses.replace(Recipe.of("ghostnetv2_100"), lr_noise=(), epochs=10)
    noisy = dataclasses.replace(quiet, lr_noise=(0.42, 0.9))
    ratio = np.array(noisy.learning_rates(2, 1024)) / np.array(quiet.learning_rates(2, 1024))
    assert (
        (ratio[:8] == 1).all()
        and (ratio[18:] == 1).all()
        and (ratio[8:18] != 1).all()
        and (abs(ratio - 1) < 0.67).all()
    )
    assert (ratio[8::2] == ratio[9::2]).all()


def test_a_stage_says_what_it_starts_from(pictures, tmp_path):
    said: list[str] = []
    fit(pictures, tmp_path / "r", model="swin_tiny", stage="finetuning", say=said.append,
        recipe={**FAST, "epochs": 1}, model_options={"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "embed_dim": 8, "img_size": 32,
                                                     "window_size": 2})  # fmt: skip
    assert any("starts from the weights of the stage" in line for line in said), said


# -- older names -----------------------------------------------------------------------------------------------------


def test_older_verbs_answer_and_say_the_new_name(run, tmp_path):
    code, said = run(
        "recommend", "fit", "lastfm", "--epochs", "1", "--out", "m", "-o", "embedding_dim=4", "--logger", "none"
    )
    assert code == 0 and "'offprint recommend fit' is now: offprint train --model lightgcn --data lastfm" in said, said
    code, said = run("recommend", "evaluate", "m", "-k", "3")
    assert code == 0 and "is now: offprint evaluate m -k 3" in said and "popularity" in said, said
    code, said = run("predict", "1", "2", "-m", "m", "--top", "2", "--json")
    assert code == 0 and said.count('"item"') == 4
    code, said = run("export", "m", "--format", "torch-export", "--out", "m.pt2")
    assert code == 2 and "no example input is known for LightGCN" in said and not (tmp_path / "m.pt2").exists()
    code, said = run("graph", "fit", "-d", "cora", "-m", "link_fl", "--epochs", "2", "-o", "g", "-l", "1")
    assert code == 0 and "offprint train --model forward_link_fl" in said, said
    assert run("evaluate", "g")[0] == 0


def test_older_folders_are_still_read(pictures, tmp_path):
    fit(pictures, tmp_path / "r", recipe={**FAST, "epochs": 1})
    settings = tmp_path / "r" / "settings.json"
    older = {
        k: v
        for k, v in json.loads(settings.read_text()).items()
        if k not in ("task", "versions", "stage", "data_options")
    }
    settings.write_text(json.dumps(older))
    assert offprint.load_run(tmp_path / "r").task.name == "classification"
    settings.write_text("{")
    with pytest.raises(OffprintError, match="is damaged"):
        offprint.load_run(tmp_path / "r")


# -- a paper added by one file ---------------------------------------------------------------------------------------


@pytest.fixture
def throwaway(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "rooms"))
    kept = (
        dict(registry._entries),
        list(registry._rooms),
        set(registry._seen),
        dict(contract._tasks),
        list(contract._rooms),
    )
    api.tasks()
    registry.add_room("throwaway")
    contract.add_room("throwaway")
    yield
    registry._entries.clear()
    registry._entries.update(kept[0])
    registry._rooms[:], contract._rooms[:] = kept[1], kept[4]
    registry._seen.discard("throwaway")
    contract._seen.discard("throwaway")
    contract._tasks.clear()
    contract._tasks.update(kept[3])
    for name in [m for m in sys.modules if m.startswith("throwaway")]:
        del sys.modules[name]


def test_a_model_of_a_new_kind_is_one_file_and_every_verb_knows_it(throwaway, run, tmp_path):
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "d" / folder).mkdir(parents=True)
    for i in range(6):
        mask = (draw.random((16, 16)) < 0.5).astype(np.uint8)
        Image.fromarray(np.repeat(mask[..., None] * 200, 3, 2)).save(tmp_path / "d" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "d" / "masks" / f"{i}.png")
    code, said = run("train", "-m", "tiny_segmenter", "-d", "d", "--out", "r", "--epochs", "20", "--border", "1", "--logger", "none",
                     "--accelerator", "cpu")  # fmt: skip
    assert code == 0 and "weights: r/model.safetensors" in said, said
    code, said = run("evaluate", "r", "--json")
    assert code == 0 and json.loads(said)["accuracy"] > 0.9, said
    code, said = run("predict", "d/images/0.png", "-m", "r", "--out", "p.png")
    assert code == 0 and (tmp_path / "p.png").stat().st_size > 100, said
    code, said = run("export", "r", "--format", "torch-export", "--out", "r.pt2")
    assert code == 0 and (tmp_path / "r.pt2").is_file(), said
    assert "tiny_segmenter" in run("models", "tiny*")[1] and "parameters" in run("info", "tiny_segmenter")[1]
    assert "throwaway-masks" in run("tasks")[1]
    code, said = run("tasks", "throwaway-masks")
    assert code == 0 and "--border" in said and "pixels left out at each side" in said
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    try:
        import tables

        page = tables.tasks()
    finally:
        sys.path.pop(0)
    assert "throwaway-masks" in page and "tiny_segmenter" in page and "--border" in page
    assert load_file(tmp_path / "r" / "model.safetensors")


def test_a_head_by_name_trains_and_is_rebuilt(run, pictures, tmp_path):
    code, said = run("train", "-m", "convnext_tiny", "--head", "linear_probe", "-d", pictures, "--out", "r", "--epochs", "1", "--size", "32",
                     "--set", "mixup=0", "--set", "cutmix=0", "-o", "depths=(1,1,1,1)", "-o", "dims=(8,8,16,16)", "--logger", "none",
                     "--accelerator", "cpu")  # fmt: skip
    assert code == 0, said
    assert read_about(tmp_path / "r")["model"] == "convnext_tiny+linear_probe"
    assert run("evaluate", "r")[0] == 0
    code, said = run("train", "-m", "convnext_tiny", "--head", "ssdlite", "-d", pictures)
    assert code == 2 and "holds no pictures with boxes" in said  # a head of detectors brings its task


def test_data_sets_name_tasks_that_exist():
    from offprint.data.datasets import datasets

    known = {
        *api.tasks(),
        *(e.task for e in entries().values()),
        "re-identification",
        "verification",
    }  # claims of planned heads
    assert {d.task for d in datasets()} <= known
