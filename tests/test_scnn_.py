"""SCNN: messages against the plain loop, files of other sizes, measures and their edges, both formats, a run from data to lanes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import offprint
from offprint.data.lanes import numbered, open_lanes, read_lines
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.models.segmentation.scnn import (
    CULANE,
    PASSES,
    SCNN,
    TUSIMPLE,
    CulaneCounts,
    MessagePassing,
    SCNNLoss,
    culane_f1,
    culane_total,
    maps_to_lanes,
    spline,
    tusimple_accuracy,
    tusimple_total,
)

SLIM = {"img_size": (32, 64), "widths": (4, 4, 8, 8, 8), "hidden": (8, 8), "kernel_size": 5}


def plain(layer: MessagePassing, x: torch.Tensor) -> torch.Tensor:
    """The passes as a loop over slices."""
    for name, (axis, reverse) in PASSES.items():
        slices = list(x.split(1, 2 + axis))[:: -1 if reverse else 1]
        for i in range(1, len(slices) - (layer.stop_short and reverse)):
            conv = getattr(layer, name)
            slices[i] = slices[i] + F.relu(F.conv2d(slices[i - 1], conv.weight, padding=conv.padding))
        x = torch.cat(slices[:: -1 if reverse else 1], 2 + axis)
    return x


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 6, 1, 3), (1, 6, 8, 1), (3, 6, 2, 2)])
def test_messages_and_their_gradients_are_those_of_the_plain_loop(shape, short):
    torch.manual_seed(0)
    layer = MessagePassing(6, 5, stop_short=short).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, expected = layer(x), plain(layer, x)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((found * weight).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, *layer.parameters()], allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_a_message_reaches_the_other_end_in_one_pass_and_never_touches_its_input():
    layer = MessagePassing(2, 3)
    for p in layer.parameters():
        torch.nn.init.constant_(p, 0.5)
    x = torch.zeros(1, 2, 9, 9)
    x[0, :, 0, 4] = 1
    before = x.clone()
    with torch.no_grad():
        down = layer.steps(x)[0]
    assert float(down[0, :, 8, 4].min()) > 0 and torch.equal(x, before)


def test_lanedets_form_leaves_the_last_slice_of_two_passes():
    torch.manual_seed(0)
    whole, short = MessagePassing(4, 3), MessagePassing(4, 3, stop_short=True)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.3)
    short.load_state_dict(whole.state_dict())
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        a, b = whole.steps(x), short.steps(x)
    assert torch.equal(a[0], b[0]) and torch.equal(b[1][:, :, 0], b[0][:, :, 0])
    assert not torch.equal(a[1][:, :, 0], b[1][:, :, 0]) and torch.equal(a[1][:, :, 1:], b[1][:, :, 1:])


def test_the_layer_exports_and_runs_in_half_precision():
    torch.manual_seed(0)
    layer = MessagePassing(4, 3).eval()
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x.requires_grad_()).float().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_counts_of_the_sheet():
    with torch.device("meta"):
        count = {name: sum(p.numel() for p in offprint.create_model(name).parameters()) for name in
                 ("scnn_vgg16_culane", "scnn_vgg16_tusimple")}  # fmt: skip
        assert tuple(offprint.create_model("scnn_vgg16_culane").existence.fc[0].weight.shape) == (128, 4500)
        assert tuple(offprint.create_model("scnn_vgg16_tusimple").existence.fc[0].weight.shape) == (128, 2880)
    assert count == {"scnn_vgg16_culane": 20_742_217, "scnn_vgg16_tusimple": 20_534_857}
    assert sum(p.numel() for p in MessagePassing().parameters()) == 589_824


def test_multiply_adds_of_the_sheet_are_counted_without_computing():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = offprint.create_model("scnn_vgg16_tusimple").eval()
        x = model.example_input()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert round(counter.get_total_flops() / 2e9, 1) == 69.8


def test_the_existence_head_reads_probabilities_and_the_network_says_its_size():
    model = SCNN(**SLIM).eval()
    x = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        maps, flags = model(x)
        low = model.maps(x)
        expected = model.existence.fc(F.avg_pool2d(low.softmax(1), 2).flatten(1)).sigmoid()
        logits = model.logits(x)[1]
    assert maps.shape == (2, 5, 32, 64) and torch.equal(flags, expected) and torch.equal(logits.sigmoid(), flags)
    with pytest.raises(OffprintError, match=r"\(B, 3, 32, 64\), got \(1, 3, 48, 64\).*img_size=\(48, 64\)"):
        model(torch.randn(1, 3, 48, 64))
    with pytest.raises(OffprintError, match=r"multiples of 16.*\(288, 800\)"):
        SCNN(img_size=(290, 800))
    with pytest.raises(OffprintError, match="odd"):
        MessagePassing(4, 4)
    with pytest.raises(OffprintError, match=r"\(B, 4, H, W\), got \(1, 3, 2, 2\)"):
        MessagePassing(4, 3)(torch.zeros(1, 3, 2, 2))


def test_one_number_of_lanes_sets_maps_flags_and_loss():
    model = SCNN(**SLIM, num_lanes=6)
    maps, flags = model.logits(torch.randn(2, 3, 32, 64))
    assert maps.shape[1] == 7 and flags.shape == (2, 6)
    target = torch.randint(0, 7, (2, 32, 64))
    *_, loss = SCNNLoss()(maps, flags, target, torch.ones(2, 6))
    assert torch.isfinite(loss)


def test_the_loss_of_sure_and_wrong_flags_is_finite():
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    *_, loss = SCNNLoss()(torch.zeros(1, 5, 4, 4), torch.full((1, 4), 1e4), target, torch.zeros(1, 4))
    assert torch.isfinite(loss)  # a sigmoid before the logarithm would give infinity


def test_a_file_of_another_size_of_image(tmp_path):
    wide = SCNN(**{**SLIM, "img_size": (32, 96)})
    file = {("fc." + k[13:] if k.startswith("existence.fc.") else k): v for k, v in wide.state_dict().items()}
    torch.save({"net": {"module." + k: v for k, v in file.items()}}, tmp_path / "wide.pth")
    with pytest.raises(
        CheckpointError, match=r"existence head .*\(128, 60\).* 12 cells of 16 x 16.*fresh_existence=True"
    ):
        offprint.load_weights(SCNN(**SLIM), tmp_path / "wide.pth")
    model = SCNN(**SLIM, fresh_existence=True)
    head = model.existence.fc[0].weight.clone()
    report = offprint.load_weights(model, tmp_path / "wide.pth")
    assert report.dialect == "scnn_pytorch" and all(n.startswith("existence.") for n in report.fresh) and report.fresh
    assert torch.equal(model.layer1[0].weight, wide.layer1[0].weight) and torch.equal(
        model.existence.fc[0].weight, head
    )
    with torch.device("meta"):
        culane, tusimple = offprint.create_model("scnn_vgg16_culane"), offprint.create_model("scnn_vgg16_tusimple")
    with pytest.raises(CheckpointError, match=r"belongs to images of \(288, 512\).*build with img_size=\(288, 512\)"):
        culane.adapt_state(tusimple.state_dict())


def test_a_start_from_vgg_leaves_the_rest_fresh():
    from torchvision.models import vgg16_bn

    with torch.device("meta"):
        model, vgg = SCNN(), vgg16_bn()
    own, theirs = model.state_dict(), {k.replace("features", "backbone"): v for k, v in vgg.state_dict().items()}
    assert {k for k in own if k.startswith("backbone.")} == {k for k in theirs if k.startswith("backbone.")}
    assert all(own[k].shape == v.shape for k, v in theirs.items() if k.startswith("backbone."))
    small = SCNN(**SLIM)
    state = {
        k.replace("backbone.", "features."): v + 1 for k, v in small.state_dict().items() if k.startswith("backbone.")
    }
    report = offprint.load_weights(small, {**state, "classifier.0.weight": torch.zeros(2, 2)})
    assert (
        report.dialect == "torchvision" and report.loaded and all(not n.startswith("backbone.") for n in report.fresh)
    )


def test_the_layer_is_a_neck_for_any_network():
    model = offprint.create_model("mobilenetv2_050+message_passing+mobile_deeplab", num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).shape[1] == 3
    assert any(isinstance(m, MessagePassing) for m in model.modules())


# -- lanes and measures


def test_maps_without_lanes_and_what_is_no_probability():
    maps = torch.zeros(5, 36, 100)
    maps[0] = 1
    assert maps_to_lanes(maps, [0, 0, 0, 0]) == [] and maps_to_lanes(maps, [1, 1, 1, 1], TUSIMPLE) == []
    with pytest.raises(OffprintError, match="softmax"):
        maps_to_lanes(torch.randn(5, 36, 100) * 5, [1, 1, 1, 1])
    with pytest.raises(OffprintError, match="flag per lane"):
        maps_to_lanes(maps, [1, 1])
    maps[1, -2:, 50] = 1  # smoothed over nine columns it stays below the threshold
    assert maps_to_lanes(maps, [1, 0, 0, 0]) == []
    maps[1, :, 40:60] = 1
    (lane,) = maps_to_lanes(maps, [1, 0, 0, 0])
    assert lane.shape == (18, 2) and lane[:, 1].tolist() == [589 - 20 * i for i in range(18)]
    assert len(maps_to_lanes(maps, [0.5, 0, 0, 0])) == 0  # a flag counts above one half
    half = CULANE.of((295, 820))
    assert maps_to_lanes(maps, [1, 0, 0, 0], half)[0][:, 0].max() <= 820 and half.gap == 10


LANE = [(400 + 10 * i, 580 - 20 * i) for i in range(12)]


def _moved(by):
    return [(x + by, y) for x, y in LANE]


def test_culane_counts_and_pools():
    same = culane_f1([LANE, _moved(300)], [_moved(300), LANE])
    assert (same.tp, same.fp, same.fn, same.f1) == (2, 0, 0, 1.0) and same.iou.diagonal().max() == 0
    crossroad = culane_f1([], [LANE, _moved(300)])
    assert (crossroad.fp, crossroad.precision, crossroad.recall, crossroad.f1) == (2, 0.0, None, 0.0)
    missing = culane_f1([LANE], [])
    assert (missing.fn, missing.precision, missing.recall, missing.f1) == (1, None, 0.0, 0.0)
    assert culane_f1([], []).f1 == 0.0
    point = culane_f1([LANE], [[(1, 1)], LANE])
    assert (point.tp, point.fp, point.fn) == (1, 1, 0)
    near = culane_f1([LANE], [_moved(12)])
    assert near.tp == 0 and culane_f1([LANE], [_moved(12)], threshold=0.3).tp == 1
    pictures = {"normal": [([LANE], [LANE])] * 3, "cross": [([], [LANE])] * 2}
    found = culane_total(pictures)
    assert found["total"] == CulaneCounts(3, 2, 0) and found["total"].f1 == pytest.approx(6 / 8)
    assert found["total"].f1 != pytest.approx((found["normal"].f1 + found["cross"].f1) / 2)
    assert culane_total(pictures, workers=2) == found
    with pytest.raises(OffprintError, match="finite points"):
        culane_f1([[1, 2, 3]], [])


def test_pairs_are_chosen_for_the_largest_total():
    truth, said = [LANE, _moved(8)], [_moved(8), _moved(-3)]
    found = culane_f1(truth, said)
    assert found.tp == 2  # taking the best pair of each lane alone would pair both with the first


def test_curves():
    assert len(spline([(0, 0)])) == 0 and len(spline([])) == 0 and len(spline([(3, 3), (3, 3)])) == 0
    straight = spline([(0, 0), (10, 20)])
    assert len(straight) == 51 and np.allclose(straight[:, 1], 2 * straight[:, 0])
    assert len(spline(LANE)) == 50 * (len(LANE) - 1) + 1
    assert np.isfinite(spline([*LANE, LANE[-1]])).all()


def test_tusimple_edges():
    rows = list(range(240, 720, 10))
    lanes = [[200 + 100 * k + i for i in range(len(rows))] for k in range(6)]
    absent = [-2] * len(rows)
    assert tusimple_accuracy(rows, lanes[:4], lanes[:4]).accuracy == 1
    none = tusimple_accuracy(rows, lanes[:2], [])
    assert (none.accuracy, none.fp, none.fn) == (0, 0, 1)
    nothing = tusimple_accuracy(rows, [], [])
    assert (nothing.accuracy, nothing.fp, nothing.fn) == (0, 0, 0)
    five = tusimple_accuracy(rows, lanes[:5], lanes[:4])
    assert (five.accuracy, five.fp, five.fn) == (1, 0, 0)  # the worst is left out, one miss forgiven
    for late in (
        {"prediction": lanes[:6], "truth": lanes[:3]},
        {"prediction": lanes[:3], "truth": lanes[:3], "run_time": 201},
    ):
        assert (s := tusimple_accuracy(rows, **late)) == type(s)(0.0, 0.0, 1.0)
    other = [-100 if x < 0 else x for x in absent]
    assert tusimple_accuracy(rows, [absent], [other]).accuracy == 1  # any negative number is absent
    assert tusimple_total([five, none]).accuracy == 0.5
    with pytest.raises(OffprintError, match=r"predicted lane 0 has 2 values and there are 48"):
        tusimple_accuracy(rows, lanes[:1], [[1, 2]])
    with pytest.raises(OffprintError, match="not one"):
        tusimple_total([])


# -- data


def road(seed: int, size=(72, 128)):
    """A grey road with up to four bright lanes, and x of each at every fourth row (-2 above the horizon)."""
    rng, (h, w) = np.random.default_rng(seed), size
    rows = list(range(h // 4, h, 4))
    lanes = []
    for k in range(4):
        bottom, top = w * (0.05 + 0.3 * k) + rng.normal() * 2, w * (0.4 + 0.07 * k)
        lanes.append([round(top + (bottom - top) * (y - rows[0]) / (h - rows[0]), 1) for y in rows])
    image = Image.new("RGB", (w, h), (90, 90, 95))
    pen = ImageDraw.Draw(image)
    for lane in lanes:
        pen.line(list(zip(lane, rows, strict=True)), fill=(250, 250, 240), width=3)
    return image, lanes, rows


@pytest.fixture(scope="module")
def tusimple(tmp_path_factory):
    root = tmp_path_factory.mktemp("tusimple")
    (root / "clips").mkdir()
    for name, seeds in (("label_data_0313", range(4)), ("label_data_0601", range(4, 8)), ("label_data_0531", (8, 9)),
                        ("test_label", (10,))):  # fmt: skip
        lines = []
        for seed in seeds:
            image, lanes, rows = road(seed)
            image.save(root / "clips" / f"{seed}.jpg")
            lines.append(
                json.dumps({"raw_file": f"clips/{seed}.jpg", "lanes": [*lanes, [-2] * len(rows)], "h_samples": rows})
            )
        (root / f"{name}.json").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def culane(tmp_path_factory):
    root = tmp_path_factory.mktemp("culane")
    for folder in ("list/test_split", "driver", "laneseg_label_w16"):
        (root / folder).mkdir(parents=True)
    lists = {
        "train_gt.txt": range(12),
        "val_gt.txt": (12, 13),
        "test_split/test0_normal.txt": (14,),
        "test_split/test7_cross.txt": (15,),
    }
    for name, seeds in lists.items():
        lines = []
        for seed in seeds:
            image, lanes, rows = road(seed)
            image.save(root / "driver" / f"{seed}.jpg")
            label = Image.new("L", image.size)
            for k, lane in enumerate(lanes):
                ImageDraw.Draw(label).line(list(zip(lane, rows, strict=True)), fill=k + 1, width=12)
            label.save(root / "laneseg_label_w16" / f"{seed}.png")
            text = (
                ""
                if "cross" in name
                else "".join(" ".join(f"{x} {y}" for x, y in zip(lane, rows, strict=True)) + "\n" for lane in lanes)
            )
            (root / "driver" / f"{seed}.lines.txt").write_text(text)
            lines.append(f"/driver/{seed}.jpg" + (f" /laneseg_label_w16/{seed}.png 1 1 1 1" if "gt" in name else ""))
        (root / "list" / name).write_text("\n".join(lines) + "\n")
    return root


def test_both_formats_open(tusimple, culane):
    t, c = open_lanes(tusimple), open_lanes(culane)
    assert (len(t.train), len(t.val), len(t.test), t.form) == (8, 2, 1, "tusimple")
    assert (len(c.train), len(c.val), len(c.test), c.form) == (12, 2, 2, "culane")
    assert [r.category for r in c.test] == ["normal", "cross"] and c.test[1].lanes == () and len(c.train[0].lanes) == 4
    assert len(t.train[0].lanes) == 4  # the absent one is none


def test_lanes_are_numbered_by_their_angle():
    _, lanes, rows = road(0)
    points = [np.array(list(zip(lane, rows, strict=True))) for lane in lanes]
    found = numbered([points[i] for i in (2, 0, 3, 1)])
    assert sorted(found) == [1, 2, 3, 4] and all(np.allclose(found[i + 1][:, 0], lanes[i]) for i in range(4))
    assert sorted(numbered(points[1:3])) == [2, 3] and sorted(numbered(points[2:])) == [3, 4]
    assert numbered([points[0][:3]]) == {} and numbered([]) == {}


def test_bad_data_is_named(tmp_path, tusimple, culane):
    import shutil

    with pytest.raises(DataError, match="no folder"):
        open_lanes(tmp_path / "nowhere")
    with pytest.raises(DataError, match="raw_file"):
        open_lanes(tmp_path)
    for line, says in (
        ("{]", "label_data_0313.json, line 1: expected"),
        (json.dumps({"raw_file": "a.jpg", "lanes": [[1, 2]], "h_samples": [1]}), "for each of the 1 h_samples"),
        (json.dumps({"raw_file": "../a.jpg", "lanes": [], "h_samples": [1]}), "leads out"),
        ("", "holds no labels"),
    ):
        root = tmp_path / "t"
        shutil.copytree(tusimple, root, dirs_exist_ok=True)
        (root / "label_data_0313.json").write_text(line + "\n")
        with pytest.raises(DataError, match=says):
            open_lanes(root)
    shutil.copytree(tusimple, root, dirs_exist_ok=True)
    (root / "clips" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 8 pictures lack a file: .*3.jpg"):
        open_lanes(root)
    assert len(open_lanes(root, on_error="skip").train) == 7 and "3.jpg" in open_lanes(root, on_error="skip").notes[0]
    root = tmp_path / "c"
    shutil.copytree(culane, root)
    (root / "driver" / "1.lines.txt").write_text("1 2 3\n")
    with pytest.raises(DataError, match=r"1.lines.txt, line 1: expected pairs"):
        open_lanes(root)
    (root / "driver" / "1.lines.txt").write_text("")
    assert read_lines(root / "driver" / "1.lines.txt") == read_lines(root / "driver" / "none.lines.txt") == ()
    (root / "list" / "val_gt.txt").write_text("")
    with pytest.raises(DataError, match="val_gt.txt"):
        open_lanes(root)


# -- the task


@pytest.fixture(scope="module")
def run(culane, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    recipe = {"epochs": 30, "batch_size": 4, "reference_batch": 0, "lr": 0.01, "warmup_epochs": 1, "optimizer": "adamw"}
    options = {**SLIM, "widths": (8, 16, 16, 24, 24), "hidden": (32, 16), "drop_rate": 0.0}
    return offprint.train("scnn_vgg16_culane", culane, out, recipe=recipe, model_options=options, progress=False)


def test_a_run_finds_the_lanes_of_its_roads(run, tusimple, tmp_path):
    assert run["lane_iou"] > 25  # all lanes drawn at random places of their width would give a few percent
    figures = offprint.evaluate(run.folder, tusimple)
    assert set(figures) == {"accuracy", "fp", "fn", "pictures"} and figures["pictures"] == 2
    found = offprint.predict(run.folder, tusimple / "clips" / "9.jpg")
    assert found[0]["width"] == 128 and all(
        set(lane) == {"number", "confidence", "points"} for lane in found[0]["lanes"]
    )
    ys = [y for lane in found[0]["lanes"] for _, y in lane["points"]]
    assert len(found[0]["lanes"]) >= 2 and 0 <= min(ys) and max(ys) < 72
    found.save(tmp_path / "out")
    assert (tmp_path / "out" / "9_lanes.png").is_file() and len(read_lines(tmp_path / "out" / "9.lines.txt")) == len(
        found[0]["lanes"]
    )
    for name in ("a.json", "a.csv", "a.png"):
        assert found.save(tmp_path / name).stat().st_size > 100


def test_a_road_without_lanes_has_an_empty_list(run, tmp_path):
    Image.new("RGB", (128, 72), (90, 90, 95)).save(tmp_path / "bare.png")
    task_model = run.load()
    with torch.no_grad():
        task_model.model.existence.fc[2].bias.fill_(-100.0)  # no lane is there
    found = offprint.predict(task_model, tmp_path / "bare.png")
    assert found[0]["lanes"] == [] and found.flat() == []
    found.save(tmp_path / "o")
    assert (tmp_path / "o" / "bare.lines.txt").read_text() == "" and json.loads(
        (tmp_path / "o" / "lanes.json").read_text()
    )
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.png"):
        offprint.predict(task_model, tmp_path / "broken.png")
    kept = offprint.predict(task_model, [tmp_path / "bare.png", tmp_path / "broken.png"], on_error="skip")
    assert len(kept) == 1 and "broken.png" in " ".join(kept.notes)


def test_culane_is_judged_by_category(run, culane):
    figures = offprint.evaluate(run.folder, culane, part="test")
    rows = {row["category"]: row for row in figures.rows}
    assert set(rows) == {"normal", "cross"} and rows["cross"]["tp"] == rows["cross"]["fn"] == 0
    assert figures["fp"] == sum(r["fp"] for r in rows.values()) and np.isfinite(figures["f1"])
    with pytest.raises(OffprintError, match="val or test"):
        offprint.evaluate(run.folder, culane, part="train")


def test_the_rate_rises_and_falls_as_a_power():
    from offprint.tasks.lanes import LaneRecipe

    rates = LaneRecipe.of("scnn_vgg16_culane", epochs=10, reference_batch=0, lr=1.0, warmup_epochs=1).learning_rates(
        10, 8
    )
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[55] == pytest.approx(0.5**0.9)
