"""TOPIQ: scores that depend on the picture alone, every kind of input, a loss, training that resumes, the verb, mistakes that are named."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.opinions import DISTORTIONS, open_opinions, picture_tensor
from offprint.data.photos import set5
from offprint.errors import DataError, OffprintError
from offprint.models.signals.topiq import CFANet, emd_loss, nin_loss, plcc_loss, rank_loss, uniform_crops
from offprint.tasks.quality import agreement, logistic_fit, ssim_of
from offprint.tasks.restoration import ssim

SMALL = {"backbone": "resnet18", "inter_dim": 16, "num_heads": 2}


def small(**kwargs):
    torch.manual_seed(0)
    return CFANet(**{**SMALL, **kwargs}).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photographs, each with two copies, and a table of scores."""
    root = tmp_path_factory.mktemp("rated")
    lines = ["image,reference,mos"]
    for name, picture in list(set5().items())[:4]:
        clean = picture[:, 60:124, 60:130].float() / 255
        for kind, image, score in ((name, clean, 90), (f"{name}_a", DISTORTIONS["blur"](clean, 3), 50), (f"{name}_b", DISTORTIONS["noise"](clean, 5), 10)):  # fmt: skip
            Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(root / f"{kind}.png")
            lines.append(f"{kind}.png,{name}.png,{score}")
    (root / "scores.csv").write_text("\n".join(lines) + "\n")
    return root


# -- the network
def test_a_score_is_of_its_picture_alone():
    for options in ({}, {"use_ref": True}):
        model = small(**options).double()
        x, y = torch.rand(3, 3, 64, 80).double(), torch.rand(3, 3, 64, 80).double()
        given = (x, y) if options else (x,)
        together = model(*given)
        assert together.shape == (3, 1)
        alone = torch.cat([model(*(v[i : i + 1] for v in given)) for i in range(3)])
        assert torch.allclose(together, alone, rtol=0, atol=1e-6)


def test_training_mode_leaves_the_norms_alone_and_a_reference_has_finite_gradients():
    model = small(use_ref=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    model(x, x.detach().clone()).sum().backward()  # equal pictures: the root's epsilon
    assert torch.isfinite(x.grad).all() and before
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any("bn" in n or "downsample.1" in n for n in trained)
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_order_of_picture_and_reference_counts_and_bytes_are_scaled():
    model = small(use_ref=True)
    x, y = (torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8) for _ in range(2))
    assert torch.allclose(model(x, y), model(x / 255, y / 255))
    assert not torch.allclose(model(x, y), model(y, x))


def test_crops_are_the_mean_of_their_scores_with_and_without_reference():
    for options in ({}, {"use_ref": True}):
        whole, cut = small(**options), small(**options, num_crop=5, crop_size=48)
        cut.load_state_dict(whole.state_dict())
        pair = [torch.rand(2, 3, 64, 80) for _ in range(2 if options else 1)]
        crops = [uniform_crops(p, 48, 5) for p in pair]
        assert crops[0].shape == (10, 3, 48, 48)
        expected = torch.stack([whole(*(c[2 * i : 2 * i + 2] for c in crops)) for i in range(5)]).mean(0)
        assert torch.allclose(cut(*pair), expected, atol=1e-5)
        assert not torch.allclose(cut(*pair), whole(*(c[:2] for c in crops)), atol=1e-7)  # not the first crop alone
    assert uniform_crops(torch.rand(1, 3, 40, 60), 48, 4).shape == (4, 3, 48, 48)


def test_the_reference_is_resized_with_the_picture():
    model = small(use_ref=True, test_img_size=64)
    x, y = torch.rand(1, 3, 100, 120), torch.rand(1, 3, 100, 120)
    resize = lambda v: torch.nn.functional.interpolate(v, (64, 76), mode="bilinear", antialias=True)  # noqa: E731
    assert torch.allclose(model(x, y), small(use_ref=True)(resize(x), resize(y)), atol=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenetv2_050", "swin_tiny"])
def test_any_backbone_gives_the_maps(backbone):
    model = small(backbone=backbone)
    side = (384, 384) if backbone == "swin_tiny" else (64, 96)
    assert model.test_img_size == (side if backbone == "swin_tiny" else None)
    model.test_img_size = (64, 64) if backbone == "swin_tiny" else None
    assert torch.isfinite(model(torch.rand(2, 3, 64, 96))).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(OffprintError, match=r"sides of 32 pixels or more, got \(1, 3, 16, 64\)"):
        small()(torch.rand(1, 3, 16, 64))
    with pytest.raises(OffprintError, match=r"\(1, 1, 64, 64\)"):
        small()(torch.rand(1, 1, 64, 64))
    with pytest.raises(OffprintError, match="give one of shape .* got none"):
        small(use_ref=True)(torch.rand(1, 3, 64, 64))
    with pytest.raises(OffprintError, match=r"got \(1, 3, 64, 96\)"):
        small(use_ref=True)(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 96))
    with pytest.raises(OffprintError, match="backbone"):
        CFANet(backbone="resnet51")


def test_a_distribution_has_a_mean_and_an_empty_head_is_not_renamed(tmp_path):
    model = small(num_classes=10)
    score, shares = model.distribution(torch.rand(2, 3, 64, 64))
    assert torch.allclose(shares.sum(1), torch.ones(2)) and torch.allclose(
        score, (shares * torch.arange(1.0, 11)).sum(1, keepdim=True)
    )
    torch.save({"params": model.state_dict()}, tmp_path / "a.pth")  # as the authors' files
    again = offprint.load_weights(small(num_classes=10), tmp_path / "a.pth")
    assert not again.fresh


# -- losses and figures
def test_losses_at_their_ends():
    a = torch.randn(8, 1)
    for loss in (nin_loss, plcc_loss):
        assert float(loss(a, 3 * a + 2)) == pytest.approx(0, abs=1e-6) and float(loss(a, -a)) > 0.7
    assert float(rank_loss(a, a)) == 0 and float(rank_loss(a, -a)) > 0
    shares = torch.rand(4, 10).softmax(-1)
    assert float(emd_loss(shares, shares)) == 0
    flat = torch.zeros(4, 1, requires_grad=True)
    nin_loss(flat, a[:4]).backward()
    assert torch.isfinite(flat.grad).all()


def test_the_logistic_fit_straightens_a_curve():
    x = np.linspace(-3, 3, 40)
    y = 5 + 90 / (1 + np.exp(-2 * x))
    found = agreement(x, y)
    assert found["plcc"] > 0.9999 > found["plcc_raw"] and found["rmse"] < 0.1 and found["srcc"] == pytest.approx(1)
    assert agreement(-x, y)["plcc"] > 0.9999  # a falling metric too
    assert np.isfinite(logistic_fit([1, 1, 1], [1, 2, 3])).all()
    assert agreement([1, 1, 1], [1, 2, 3])["srcc"] == 0


def test_ssim_in_strips_is_ssim():
    a, b = (torch.rand(3, 150, 40) * 255 for _ in range(2))
    assert ssim_of(a, b, rows=32) == pytest.approx(ssim(a, b), abs=1e-12)


# -- pictures and tables
def test_every_kind_of_picture_is_the_same_picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    given = (tmp_path / "a.png", Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1), torch.from_numpy(array).permute(2, 0, 1) / 255)  # fmt: skip
    assert all(torch.allclose(picture_tensor(g), picture_tensor(array)) for g in given)
    grey = Image.fromarray(array[..., 0])
    assert picture_tensor(grey).shape == (3, 40, 50)
    with pytest.raises(DataError, match="divide by 255"):
        picture_tensor(torch.rand(3, 40, 40) * 255)
    with pytest.raises(DataError, match="expected a picture"):
        picture_tensor(torch.rand(4, 40, 40))
    with pytest.raises(DataError):
        picture_tensor(torch.full((3, 40, 40), float("nan")))


def test_tables_and_their_faults(folder, tmp_path):
    data = open_opinions(folder, val_fraction=0.25)
    assert (len(data.train), len(data.val), data.low, data.high) == (9, 3, 10, 90)
    assert {o.group for o in data.train}.isdisjoint({o.group for o in data.val})
    turned = open_opinions(folder, lower_is_better=True)
    assert {o.score for o in turned.train} == {-10.0, -50.0, -90.0}
    text = (folder / "scores.csv").read_text()
    for change, words in (
        (("90", "high"), "row 1: mos is 'high'"),
        (("mos", "said"), "no column of scores"),
        (("_a.png", "_z.png"), "not there"),
    ):
        (tmp_path / "t.csv").write_text(text.replace(*change))
        for p in folder.glob("*.png"):
            (tmp_path / p.name).write_bytes(p.read_bytes())
        with pytest.raises(DataError, match=words):
            open_opinions(tmp_path / "t.csv")
    kept = open_opinions(tmp_path / "t.csv", on_error="skip")
    assert len(kept.train) + len(kept.val) == 8 and "4 pictures" in kept.notes[0]
    with pytest.raises(DataError, match="must hold one table"):
        open_opinions(tmp_path / "none" if (tmp_path / "none").mkdir() else tmp_path / "none")


# -- the task
FAST = {"recipe": {"batch_size": 4, "input_size": 48}, "model_options": SMALL, "progress": False}


def test_a_run_learns_resumes_rates_and_is_judged(folder, tmp_path):
    one = offprint.train(
        "topiq_fr_resnet50", folder, tmp_path / "a", **{**FAST, "recipe": {**FAST["recipe"], "epochs": 2}}
    )
    half = {**FAST["recipe"], "epochs": 2}

    class Stop(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class AfterOne(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise Stop

    with pytest.raises(Stop):
        offprint.train(
            "topiq_fr_resnet50", folder, tmp_path / "b", **{**FAST, "recipe": half, "callbacks": [AfterOne()]}
        )
    two = offprint.train("topiq_fr_resnet50", folder, tmp_path / "b", **{**FAST, "recipe": half})
    assert one.weights.read_bytes() == two.weights.read_bytes()
    ready = offprint.load_run(tmp_path / "a")
    figures = ready.evaluate()
    assert figures["pictures"] == 3 and set(figures.beside) == {"psnr", "ssim"} and -1 <= figures["srcc"] <= 1
    names = sorted(p for p in folder.glob("*_a.png"))
    found = ready.predict(names, reference=str(names[0].parent / names[0].name.replace("_a", "")))
    assert set(found[0]) == {"image", "score", "psnr", "ssim"}
    assert found.save(tmp_path / "sheet.png").stat().st_size > 1000
    cli = CliRunner().invoke(app, ["rate", str(names[0]), "-r", str(folder / names[0].name.replace("_a", "")), "-m", str(tmp_path / "a"), "--out", str(tmp_path / "r.csv")])  # fmt: skip
    assert cli.exit_code == 0 and "mean score" in cli.output
    assert (tmp_path / "r.csv").read_text().startswith("image,score,psnr,ssim")


def test_folders_with_faults_are_rated_but_for_those(folder, tmp_path):
    model = small(use_ref=True)
    from offprint.tasks.contract import Ready, by_name

    ready = Ready(by_name("quality"), model, "small")
    for p in sorted(folder.glob("*_a.png"))[:2]:
        (tmp_path / p.name).write_bytes(p.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    Image.new("RGB", (90, 64)).save(tmp_path / "wide.png")
    references = tmp_path / "references"
    references.mkdir()
    for p in sorted(folder.glob("*_a.png"))[:2]:
        (references / p.name).write_bytes(p.read_bytes())
    Image.new("RGB", (64, 64)).save(references / "wide.png")
    (references / "broken.png").write_bytes(b"")
    files = sorted(tmp_path.glob("*.png"))
    found = ready.predict(files, reference=str(references), on_error="skip")
    assert len(found) == 2 and found[0]["psnr"] == float("inf")
    assert found.notes[0] == "2 left out" and any("90 x 64 pixels and its reference 64 x 64" in n for n in found.notes)
    with pytest.raises(DataError, match="must be of one size"):
        ready.predict(tmp_path / "wide.png", reference=str(references))
    with pytest.raises(OffprintError, match="give --reference"):
        ready.predict(files)


def test_a_picture_too_large_for_one_piece_is_rated_in_several(tmp_path, monkeypatch):
    from offprint.tasks import quality
    from offprint.tasks.contract import Ready, by_name

    monkeypatch.setattr(quality, "WHOLE", 10_000)
    monkeypatch.setattr(quality, "PIECE", 64)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 250, 3), np.uint8)).save(tmp_path / "wide.png")
    found = Ready(by_name("quality"), small(), "small").predict(tmp_path / "wide.png")
    assert "the mean of 8 pieces" in found.notes[0] and np.isfinite(found[0]["score"])


def test_what_a_model_cannot_learn_from_is_said_before_training(folder, tmp_path):
    with pytest.raises(DataError, match="columns 1 to 10"):
        offprint.train("topiq_iaa_resnet50", folder, tmp_path / "a", **{**FAST, "model_options": SMALL})
    text = (folder / "scores.csv").read_text().splitlines()
    lines = [f"{row.rsplit(',', 2)[0]},1,2,{3 + i}" for i, row in enumerate(text[1:])]
    (folder / "counts.csv").write_text("\n".join(["image,1,2,3", *lines]))
    data = open_opinions(folder / "counts.csv")
    first = next(o for o in (*data.train, *data.val) if o.counts[2] == 3)
    assert first.counts == (1.0, 2.0, 3.0) and first.score == pytest.approx(14 / 6)
    (folder / "counts.csv").unlink()


def test_no_weights_at_hand_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFPRINT_WEIGHTS", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    found = CliRunner().invoke(app, ["rate", str(tmp_path / "a.png")])
    assert found.exit_code != 0 and "cfanet_nr_koniq_res50-9a73138b.pth" in str(found.exception)
