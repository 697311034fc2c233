"""Methods of training: one way in, every allowed pair trains, excluded ones are refused with the reason, runs restore theirs."""

import json
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint import api
from offprint.cli.main import app
from offprint.data.images import ArrayImages, ImageSplits
from offprint.errors import OffprintError
from offprint.methods import registry
from offprint.methods.registry import Method, excluded, make, register_method
from offprint.tasks.hooks import around_step

TINY = {"width": 0.35, "settings": ((1, 16, 1, 1), (6, 24, 1, 2))}
FAST = {
    "epochs": 1,
    "batch_size": 4,
    "lr": 1e-3,
    "reference_batch": 0,
    "input_size": 32,
    "warmup_epochs": 0,
    "crop_scale": (),
}
QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}
# How a method that cannot run on its defaults alone is tried: name → function(folder for its files, data) → what to give.
TRIALS: dict = {
    "knowledge-concentration": lambda folder, data: specialists(folder, data),
    "guidance": lambda folder, data: "guidance:guide=torchvision/squeezenet1_1",
    "ferkd": lambda folder, data: soft_labels(folder, data),
}


def soft_labels(folder, data):
    """Answers of a random teacher, written once."""
    from offprint.methods.training._soft_labels import generate_soft_labels

    torch.manual_seed(0)
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, len(data.classes)))
    if not (folder / "labels").exists():
        generate_soft_labels(teacher, data.train, folder / "labels", classes=data.classes, crops=4, form="ori", size=32)
    return {"name": "ferkd", "labels": str(folder / "labels"), "crops": 2, "low": 0.0}


def specialists(folder, data):
    """Two specialists, each of half the classes, trained once."""
    runs = []
    for half in (data.classes[:2], data.classes[2:]):
        mine = [[i for i, t in enumerate(p.targets) if data.classes[t] in half] for p in data[:2]]
        parts = [
            ArrayImages(p.images[i], [half.index(data.classes[p.targets[k]]) for k in i])
            for p, i in zip(data[:2], mine, strict=True)
        ]
        runs.append(folder / "-".join(half))
        if not runs[-1].exists():
            train(ImageSplits(*parts, half, "half"), runs[-1])
    return {"name": "knowledge-concentration", "teachers": [str(r) for r in runs], "head": "fc8-sc4"}


def given(name, folder, data):
    return TRIALS[name](folder, data) if name in TRIALS else name


@pytest.fixture(scope="module")
def data():
    draw = np.random.default_rng(0)
    labels = np.arange(12) % 4
    images = draw.integers(0, 100, (12, 32, 32, 3), dtype=np.uint8) + (labels * 50)[:, None, None, None].astype(
        np.uint8
    )
    part = ArrayImages(images, labels)
    return ImageSplits(part, ArrayImages(images[:4], labels[:4]), ["black", "dark", "grey", "light"], "twelve")


def train(data, out, methods=None, **kwargs):
    recipe = {**FAST, **kwargs.pop("recipe", {})}
    return offprint.train(
        "mobilenetv2_100", data, out, recipe=recipe, model_options=dict(TINY), methods=methods, **{**QUIET, **kwargs}
    )


def weights(run):
    from safetensors.torch import load_file

    return load_file(run.weights)


def settings(run):
    return json.loads((run.folder / "settings.json").read_text())


def test_every_allowed_pair_trains_and_every_other_is_refused(data, tmp_path):
    known = registry.methods()
    pairs = list(combinations(known, 2)) or [(name,) for name in known]
    for names in pairs:
        chosen = [given(name, tmp_path, data) for name in names]
        why = excluded(*(known[name] for name in names)) if len(names) == 2 else ""
        if why:
            with pytest.raises(OffprintError) as refused:
                train(data, tmp_path / "refused", chosen)
            assert why in str(refused.value) and all(name in str(refused.value) for name in names)
            assert not (tmp_path / "refused").exists()
            continue
        run = train(data, tmp_path / "-".join(names), chosen, recipe={"epochs": 1})
        assert [m["name"] for m in settings(run)["methods"]] == list(names)
        assert all(torch.isfinite(v).all() for v in weights(run).values())
        assert run.load().model is not None


def test_gradient_noise_by_name_is_the_callback(data, tmp_path):
    from offprint.methods.training.gradient_noise import GradientNoiseCallback

    named = train(data, tmp_path / "named", ["gradient-noise:eta=0.3,seed=1,clip_norm=2"], recipe={"clip_grad": 5.0})
    by_hand = train(data, tmp_path / "by_hand", callbacks=[GradientNoiseCallback(eta=0.3, seed=1, clip_norm=2)])
    plain = train(data, tmp_path / "plain")
    a, b, c = weights(named), weights(by_hand), weights(plain)
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)
    kept = settings(named)
    assert kept["methods"] == [
        {"name": "gradient-noise", "eta": 0.3, "gamma": 0.55, "seed": 1, "clip_norm": 2.0, "fixed_std": None}
    ]
    assert kept["recipe"]["clip_grad"] == 0 and settings(plain)["methods"] == []
    with pytest.raises(OffprintError, match="as a method and as a callback"):
        train(data, tmp_path / "twice", ["gradient-noise"], callbacks=[GradientNoiseCallback()])


class Stop(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1 and index == 1:
            raise KeyboardInterrupt


def test_resume_restores_the_methods(data, tmp_path):
    recipe, noise = {"epochs": 2, "clip_grad": 1.0}, ["gradient-noise:eta=0.3"]
    whole = train(data, tmp_path / "whole", noise, recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", noise, recipe=recipe, callbacks=[Stop()])
    with pytest.raises(OffprintError, match="another methods"):
        train(data, tmp_path / "cut", ["gradient-noise:eta=0.2"], recipe=recipe)
    with pytest.raises(OffprintError, match="another methods"):
        train(data, tmp_path / "cut", [], recipe=recipe)
    said = []
    gone_on = train(data, tmp_path / "cut", recipe=recipe, say=said.append)
    assert "methods of the run: gradient-noise" in said
    a, b = weights(whole), weights(gone_on)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def mine():
    """Methods of this test, forgotten after it."""
    before = dict(registry._methods)

    def add(cls):
        return register_method(dataclass(kw_only=True)(cls))

    yield add
    registry._methods.clear()
    registry._methods.update(before)


def test_a_changed_architecture_is_there_again_when_the_run_is_loaded(data, tmp_path, mine):
    @mine
    class Narrow(Method):
        """Puts a bottleneck before the classifier.

        Args:
            width: of it.
        """

        name, paper, kind, changes = "narrow", "test", "module", "the classifier"
        reshapes: ClassVar[bool] = True
        width: int = 2

        def reshape(self, model):
            self.seen = True
            head = model.get_classifier()
            narrow = nn.Sequential(nn.Linear(head.in_features, self.width), nn.Linear(self.width, head.out_features))
            setattr(model, model.classifier, narrow)
            return model

    for attempt in ("first", "run"):  # each run asks its own object
        run = train(data, tmp_path / attempt, [method := Narrow(width=3)])
        assert method.seen
    assert weights(run)["head.0.weight"].shape[0] == 3
    ready = offprint.load_run(run.folder)
    assert ready.name == "mobilenetv2_100" and ready.model.head[0].out_features == 3
    again = offprint.train(run.folder, data, tmp_path / "again", recipe=FAST, **QUIET)  # starts from its weights
    assert weights(again)["head.0.weight"].shape[0] == 3
    assert settings(again)["methods"] == [{"name": "narrow", "width": 3}]
    with pytest.raises(OffprintError, match="no released weights"):
        train(data, tmp_path / "released", ["narrow"], pretrained=True)


def test_terms_of_the_loss_nest_and_figures_are_kept(data, tmp_path, mine):
    class Adding(Method):
        paper, kind, changes = "test", "module", "the loss"
        steps = 0

        def module(self, job, module):
            def around(step, batch, index):
                self.steps += 1
                return step(batch, index) + 1.0

            around_step(module, around)
            return module

        def finish(self, job):
            return {"steps": self.steps}

    @mine
    class One(Adding):
        name = "one"

    @mine
    class Two(Adding):
        name = "two"

    plain, run = train(data, tmp_path / "plain"), train(data, tmp_path / "run", ["one", Two()])
    assert run["methods"] == {"one": {"steps": 3}, "two": {"steps": 3}}
    a, b = weights(plain), weights(run)
    assert all(torch.equal(a[k], b[k]) for k in a)  # a constant has no gradient: everything else was as it is without


def test_who_excludes_whom(mine):
    @mine
    class A(Method):
        name, paper, kind, changes = "a", "test", "data", "the labels"
        excludes: ClassVar = {"b": "b reads the labels that a has thrown away"}
        replaces: ClassVar = ("labels",)

    @mine
    class B(Method):
        name, paper, kind, changes = "b", "test", "task", "the task"
        task = "classification"

    @mine
    class C(Method):
        name, paper, kind, changes = "c", "test", "data", "the labels"
        replaces: ClassVar = ("labels",)

    @mine
    class D(Method):
        name, paper, kind, changes = "d", "test", "task", "the task"
        task = "pretraining"

    assert excluded(A, B) == excluded(B, A) == "b reads the labels that a has thrown away"
    assert excluded(A, C) == "both replace the labels" and excluded(B, D) == "each brings a task of its own"
    assert excluded(A, D) == ""
    for pair in (["a", "b"], ["b", "a"]):
        with pytest.raises(OffprintError, match="b reads the labels that a has thrown away; leave one out"):
            registry.resolve(pair)
    with pytest.raises(OffprintError, match="given twice"):
        registry.resolve(["a", A()])
    with pytest.raises(OffprintError, match="d brings the task pretraining, but classification was asked for"):
        offprint.train("mobilenetv2_100", "nowhere", task="classification", methods=["d"])
    shown = CliRunner().invoke(app, ["methods", "a"]).output
    assert "not with b: b reads the labels" in shown and "not with c: both replace the labels" in shown


def test_how_methods_are_given(mine):
    @mine
    class Many(Method):
        """Options of every kind.

        Args:
            parts: names.
        """

        name, paper, kind, changes = "many", "test", "module", "nothing"
        parts: tuple[str, ...] = ()
        count: int = 1
        rate: float | None = None
        sure: bool = False

    said = make("many:parts=backbone,neck,count=3,rate=1e-3,sure=true")
    assert said == Many(parts=("backbone", "neck"), count=3, rate=1e-3, sure=True)
    assert make(said.record()) == said == make(json.loads(json.dumps(said.record())))
    assert make("many:rate=none") == make("many") == Many() == make({"name": "many"})
    for wrong, message in [
        ("manny", "unknown method 'manny'; nearest: many"), ("many:cout=3", "unknown option of the method many 'cout'; nearest: count"),
        ("many:count=few", "the method many: count=few; expected a whole number"), ("many:backbone", "'backbone' is not of the form KEY=VALUE"),
        ("many:count=1,2", "takes one count; 1,2 was given"), (7, "7 is no method; give a name"), ({"name": "many", "x": 1}, "unknown option"),
        ("gradient-noise:eta=-1", "eta=-1.0; it must be a finite number"),
    ]:  # fmt: skip
        with pytest.raises(OffprintError, match=message.replace("(", r"\(")):
            make(wrong)


def test_what_a_method_must_say():
    with pytest.raises(OffprintError, match="lacks 'changes'"):
        register_method(type("Nameless", (Method,), {"name": "x", "paper": "x", "kind": "module"}))
    with pytest.raises(OffprintError, match="unknown kind of method 'modul'; nearest: module"):
        register_method(type("Odd", (Method,), {"name": "x", "paper": "x", "kind": "modul", "changes": "x"}))
    for name, method in registry.methods().items():
        assert method.__doc__, name
        assert all(choice.help for choice in registry.offers(method).values()), (
            f"an option of {name} has no line in its docstring"
        )


def test_pretrain_runs_the_task_that_a_method_brings(mine, monkeypatch):
    from offprint.cli import pretrain

    @mine
    class Pretext(Method):
        name, paper, kind, changes = "pretext", "test", "task", "the task"
        task = "pretraining"

    given = []
    monkeypatch.setattr(pretrain, "run", given.append)
    for words in (["--method", "pretext:"], ["--method=pretext"], ["--method", "simmim"], []):
        CliRunner().invoke(app, ["pretrain", "--model", "swin_tiny", "--data", "sample:cifar10", *words])
    own = [
        "train",
        "--stage",
        "pretraining",
        "--out",
        "runs/pretrain",
        "--model",
        "swin_tiny",
        "--data",
        "sample:cifar10",
    ]
    usual = ["train", "--task", "pretraining", *own[1:]]
    assert given == [[*own, "--method", "pretext:"], [*own, "--method=pretext"], [*usual, "--method", "simmim"], usual]


def test_tasks_with_a_loop_of_their_own_refuse_methods():
    with pytest.raises(
        OffprintError, match="trains by a loop of its own, on which methods cannot act; leave gradient-noise out"
    ):
        offprint.train("forward_sf", "nowhere", methods=["gradient-noise"])


def test_the_command_line(tmp_path):
    shown = CliRunner().invoke(app, ["methods"]).output
    assert "gradient-noise" in shown and "callback" in shown
    assert "clip_norm" in CliRunner().invoke(app, ["methods", "gradient-noise"]).output
    words = ["train", "--model", "mobilenetv2_100", "--data", "sample:cifar10", "--show-recipe"]
    assert CliRunner().invoke(app, [*words, "--method", "gradient-noise:eta=0.3"]).exit_code == 0
    refused = CliRunner().invoke(app, [*words, "--method", "gradient-noise:eat=0.3"])
    assert isinstance(refused.exception, OffprintError) and "nearest: eta" in str(refused.exception)
    # the choice of the task pretraining that has this name answers as before
    own = ["train", "--model", "swin_tiny", "--data", "sample:cifar10", "--task", "pretraining", "--show-recipe"]
    assert CliRunner().invoke(app, [*own, "--method", "simmim"]).exit_code == 0
    unknown = CliRunner().invoke(app, [*own[:-1], "--method", "simmin", "--out", str(tmp_path / "x")])
    assert "unknown pre-training method 'simmin'; nearest: simmim" in str(unknown.exception)
    assert api.by_name("pretraining").offers()["method"].default == "simmim"
