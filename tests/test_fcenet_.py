"""FCENet: signatures, filling, targets, losses, decoding; formats of text; the task, its frames and its bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import offprint
from offprint.data.text_polygons import SAMPLE, open_text, read_labels, usable
from offprint.errors import DataError, OffprintError
from offprint.models.detection.fcenet import (
    Decoding,
    DeformableConv2d,
    FCELoss,
    FCENet,
    FourierText,
    centre_boxes,
    contours,
    decode_polygons,
    fourier_signature,
    fourier_targets,
    polygon_nms,
)
from offprint.models.info import model_info
from offprint.models.parts import Maps
from offprint.nn.polygons import areas, fill, least_overlap, overlaps, regions, smallest_box
from offprint.tasks.contract import Ready, by_name
from offprint.tasks.text import Matches, TextRecipe, Texts, find_text, turned

BENT = np.array([[139, 90], [161, 74], [185, 65], [210, 63], [235, 67], [261, 78], [289, 95], [283, 130], [260, 112], [236, 101], [211, 97], [186, 99], [160, 107], [133, 123]])  # fmt: skip
WORD = np.array([[20, 30], [120, 25], [122, 55], [21, 61]])


def _levels(targets):
    out = []
    for t in targets:
        maps = torch.from_numpy(t)
        text, centre = 10 * (2 * maps[0] - 1), 10 * (2 * maps[1] - 1)
        out.append({"cls_res": torch.stack([-text, text, -centre, centre]), "reg_res": maps[3:]})
    return out


# -- outlines
def test_a_signature_gives_its_outline_back_whatever_the_direction_and_the_first_point():
    one = contours(fourier_signature(BENT))
    assert float(overlaps(regions([BENT])[0], regions([one])[0])) > 0.9
    for other in (BENT[::-1], np.roll(BENT, 5, 0)):
        assert np.abs(contours(fourier_signature(other)) - one).max() < 2.5
    shift = fourier_signature(BENT + [100, 50]) - fourier_signature(BENT)
    assert shift[5] == pytest.approx([100, 50]) and np.abs(np.delete(shift, 5, 0)).max() < 1e-9
    many = np.array(
        [[60 + 40 * np.cos(t), 50 + 20 * np.sin(t)] for t in np.linspace(0, 2 * np.pi, 900, endpoint=False)]
    )
    assert np.abs(fourier_signature(many)).max() < 61  # of edges so short that each would get no point


def test_outlines_that_cannot_be_encoded_are_refused():
    for given, words in (([[1, 2], [3, 4]], "2 points"), ([[5, 5]] * 4, "4 points in one place")):
        with pytest.raises(OffprintError, match=words):
            fourier_signature(given)
    with pytest.raises(OffprintError, match="fourier_degree=0"):
        fourier_signature(WORD, 0)
    with pytest.raises(OffprintError, match="needs at least 11"):
        contours(fourier_signature(WORD), 8)


def test_filling_is_opencv_s():
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(0)
    for _ in range(200):
        polygons = [draw.integers(0, 30, (draw.integers(1, 8), 2)).astype(np.int32) for _ in range(draw.integers(1, 4))]
        wanted = np.zeros((30, 30), np.uint8)
        cv2.fillPoly(wanted, polygons, 1)
        assert (fill(polygons, (30, 30)) == wanted.astype(bool)).all()


def test_of_two_overlapping_boxes_filled_at_once_the_shared_inside_is_empty():
    a = np.array([[2, 2], [20, 2], [20, 20], [2, 20]])
    both = fill([a, a + 8], (32, 32))
    assert not both[15, 15] and both[5, 5] and both[25, 25]
    one_by_one = fill([a], (32, 32)) | fill([a + 8], (32, 32))
    assert one_by_one[15, 15] and both.sum() < one_by_one.sum()


def test_the_bound_on_overlap_is_below_it_and_suppression_is_that_of_every_pair():
    draw = np.random.default_rng(1)
    c = np.concatenate(
        [draw.normal(size=(60, 5)), draw.uniform(30, 70, (60, 1)), draw.normal(size=(60, 5)) + [18, 4, 0, 0, 0]], 1
    )
    c[:, 5] *= draw.uniform(0.5, 6, 60)
    polygons = contours(c + 1j * np.roll(c, 7, 0)).astype(np.int32)
    shapes = regions(polygons)
    import shapely

    simple = shapely.is_valid(shapely.polygons(polygons))
    i = int(np.flatnonzero(simple)[0])
    assert (least_overlap(polygons[i], polygons)[simple] <= overlaps(shapes[i], shapes)[simple] + 1e-9).all()
    scores, left, kept = draw.random(60), [], []
    left = list(np.argsort(scores, kind="stable"))
    while left:
        best = left.pop()
        kept.append(best)
        left = [j for j in left if float(overlaps(shapes[best], shapes[j])) <= 0.1]
    assert polygon_nms(polygons, scores).tolist() == kept and 2 < len(kept) < 60
    assert areas(WORD) > 0 > areas(WORD[::-1])


def test_the_smallest_box_begins_at_the_left():
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    corners = np.array([[0, 0], [40, 0], [40, 10], [0, 10]]) @ turn + 50
    inside = np.vstack([corners, corners.mean(0)[None], (corners[:1] + corners[1:2]) / 2])
    box = smallest_box(inside)
    assert np.abs(areas(box)) == pytest.approx(400) and box[0, 0] == box[:, 0].min() and box[1, 1] == box[:, 1].min()


# -- targets and loss
def test_words_go_to_every_level_that_holds_their_share_of_the_height():
    where = lambda w, size=(320, 320), **o: [bool(t[0].any()) for t in fourier_targets(size, [w], **o)]  # noqa: E731
    assert where(WORD) == [True, True, False]
    assert where(WORD, ranges=((0, 0.25), (0.2, 0.65), (0.55, 1.0))) == [False, True, False]
    assert where(WORD * [10, 1], (320, 1300)) == [False, False, False]  # longer than the picture is high: no level
    ignored = fourier_targets((320, 320), [WORD], [True])
    assert not ignored[0][0].any() and not ignored[0][2].all() and ignored[2][2].all()


@pytest.mark.parametrize("broken", ([[5, 5]] * 4, [[5, 5], [50, 6], [50, 6], [50, 6]], [[5, 5], [60, 5], [5, 5]], [[5, 5], [60, 40], [60, 5], [5, 40]], []))  # fmt: skip
def test_targets_never_raise(broken):
    for t in fourier_targets((64, 64), [np.array(broken, float).reshape(-1, 2)]):
        assert np.isfinite(t).all()
    words, flags, flat, crossed = usable([(np.array(broken, float).reshape(-1, 2), False)] if broken else [])
    assert flat + crossed == bool(broken) and (not flat or flags == [True])
    assert len(centre_boxes(np.vstack([WORD[:2], WORD[1:] + [0, 1]]))) > 0


def test_a_level_without_words_has_a_finite_loss_and_the_two_forms_differ_in_the_centre_alone():
    maps = [torch.from_numpy(t)[None].float() for t in fourier_targets((64, 64), [])]
    levels = [{"cls_res": torch.randn(1, 4, *m.shape[2:], requires_grad=True), "reg_res": torch.randn(1, 22, *m.shape[2:], requires_grad=True)} for m in maps]  # fmt: skip
    none = FCELoss()(levels, maps)
    torch.stack(list(none.values())).sum().backward()
    assert none["loss_text"] == none["loss_reg_x"] == 0 and all(
        torch.isfinite(v.grad).all() for said in levels for v in said.values()
    )
    maps = [torch.from_numpy(t)[None].float() for t in fourier_targets((64, 64), [WORD / 2.5])]
    released, intended = FCELoss()(levels, maps), FCELoss(form="intended")(levels, maps)
    assert {k for k in released if released[k] != intended[k]} == {"loss_center"}
    said = [{"cls_res": v["cls_res"], "reg_res": m[:, 3:]} for v, m in zip(levels, maps, strict=True)]
    assert FCELoss()(said, maps)["loss_reg_x"] == 0 < released["loss_reg_x"]
    with pytest.raises(OffprintError, match="unknown form of the loss"):
        FCELoss(form="clean")


def test_the_words_of_the_toy_set_are_found_in_their_own_targets():
    data = open_text(SAMPLE)
    words = hits = 0
    for one in [*data.train, *data.val][:4]:
        found = decode_polygons(_levels(fourier_targets((720, 1280), one.polygons, one.ignored)))
        counted = Matches()
        hits += counted.add(found, one.polygons, one.ignored)
        words += counted.words
    assert hits == words > 5
    quads = decode_polygons(_levels(fourier_targets((320, 320), [WORD, BENT])), Decoding(text_repr="quad"))
    assert [f.polygon.shape for f in quads] == [(4, 2)] * 2
    empty = _levels(fourier_targets((320, 320), []))
    assert decode_polygons(empty) == [] == decode_polygons(empty, Decoding(text_repr="quad"))
    with pytest.raises(OffprintError, match="2 levels were given for 3"):
        decode_polygons(empty[:2])
    empty[0]["reg_res"] = empty[0]["reg_res"] * float("nan")
    with pytest.raises(DataError, match="not finite"):
        decode_polygons(empty)


# -- network
def test_deformable_convolutions_begin_as_plain_ones_and_their_norms_stay():
    conv = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
    x = torch.randn(1, 4, 9, 9)
    assert torch.allclose(DeformableConv2d(conv)(x), 0.5 * conv(x), atol=1e-5)  # every tap weighs sigmoid(0)
    with torch.device("meta"):
        net, plain = FCENet(deformable=True).train(), FCENet(depth=18).train()
    norms = [m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms) and all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in plain.modules())
    with pytest.raises(OffprintError, match="32 pixels a side or more"):
        plain(torch.zeros(1, 3, 16, 64, device="meta"))


def test_the_count_is_the_authors():
    with torch.device("meta"):
        info = model_info(FCENet(), (3, 736, 736))
    assert info["macs"] == pytest.approx(53_283_656_192, rel=2e-4) and info["parameters"] == 26_256_474


def test_files_of_openmmlab_and_of_torchvision_s_backbone_are_read(tmp_path):
    net, other = FCENet(depth=18), FCENet(depth=18)
    extra = {"data_preprocessor.mean": torch.zeros(3)}
    torch.save({"state_dict": {**net.state_dict(), **extra}, "meta": {}}, tmp_path / "whole.pth")
    report = offprint.load_weights(other, tmp_path / "whole.pth")
    assert not report.fresh and torch.equal(other.det_head.out_conv_reg.weight, net.det_head.out_conv_reg.weight)
    own = {k: v for k, v in net.backbone.state_dict().items()} | {
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }
    torch.save(own, tmp_path / "resnet18.pth")
    torch.nn.init.zeros_(other.backbone.layer4[1].conv2.weight)
    offprint.load_weights(other, tmp_path / "resnet18.pth", drop_head=True)
    assert torch.equal(other.backbone.layer4[1].conv2.weight, net.backbone.layer4[1].conv2.weight)


def test_the_head_stands_on_any_backbone():
    head = FourierText(Maps((8, 16, 32), (8, 16, 32)), width=12)
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 8), (16, 4), (32, 2))]
    assert [v["reg_res"].shape[1:] for v in head(maps, (64, 64))] == [(22, 8, 8), (22, 4, 4), (22, 2, 2)]
    assert isinstance(FourierText(Maps((8, 8, 8), (8, 16, 32))).pyramid, nn.Identity)  # a neck came before
    with pytest.raises(OffprintError, match="strides"):
        FourierText(Maps((8, 8, 8), (4, 8, 16)))


# -- formats
def _picture(path, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def test_the_layouts_of_icdar_total_text_and_ctw1500(tmp_path):
    icdar = tmp_path / "icdar"
    for part, labels in (
        ("ch4_training_images", "ch4_training_localization_transcription_gt"),
        ("ch4_test_images", "Challenge4_Test_Task1_GT"),
    ):
        _picture(icdar / part / "img_1.jpg")
        (icdar / labels).mkdir()
        (icdar / labels / "gt_img_1.txt").write_text(
            "1,2,30,2,30,12,1,12,a, b\n3,20,9,20,9,25,3,25,###\n", encoding="utf-8-sig"
        )
    data = open_text(icdar)
    assert (
        len(data.train) == len(data.val) == 1
        and data.train[0].ignored == [False, True]
        and data.train[0].polygons[0].shape == (4, 2)
    )
    total = tmp_path / "total"
    _picture(total / "Images/Train/img7.jpg")
    (total / "Groundtruth/Polygon/Train").mkdir(parents=True)
    line = "x: [[ 1 30 30  1 0]], y: [[ 2  2 12 12 7]], ornt: [u'c'], transcriptions: [u'{}']\n"
    (total / "Groundtruth/Polygon/Train/poly_gt_img7.txt").write_text(line.format("AB") + line.format("#"))
    _picture(total / "Images/Train/img8.jpg")
    import scipy.io

    row = np.empty((1, 6), object)
    row[0] = ["x:", np.array([[1, 30, 30, 1]]), "y:", np.array([[2, 2, 12, 12]]), np.array(["AB"]), np.array(["h"])]
    scipy.io.savemat(total / "Groundtruth/Polygon/Train/poly_gt_img8.mat", {"polygt": row})
    found = open_text(total, val_fraction=0.5)
    assert sorted(len(p.polygons) for p in (*found.train, *found.val)) == [1, 2]
    ctw = tmp_path / "ctw"
    _picture(ctw / "train_images/0001.jpg")
    _picture(ctw / "test_images/1001.jpg")
    (ctw / "ctw1500_train_labels").mkdir()
    (ctw / "gt_ctw1500").mkdir()
    points = ",".join(f"{x},{y}" for x, y in BENT)
    xml = f"<Annotations><image file='0001.jpg'><box height='1'><label>A & B</label><segs>{points}</segs></box></image></Annotations>"
    (ctw / "ctw1500_train_labels/0001.xml").write_text(xml)
    (ctw / "gt_ctw1500/0001001.txt").write_text(f"{points},####A\n{points},#######\n")
    data = open_text(ctw)
    assert len(data.train[0].polygons[0]) == 14 and data.val[0].ignored == [False, True]


def test_faults_of_labels_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no pictures with words"):
        open_text(tmp_path)
    with pytest.raises(DataError, match="sample:icdar2015-toy"):
        open_text("sample:words")
    file = tmp_path / "gt_a.txt"
    for text, words in (("1,2,3,x,5,6,7,8,a\n", "line 1: .* is no word"), ("1,2,3,nan,####a\n", "line 1: a polygon"), ("x: [[1 2 3]], y: [[1 2]]\n", "3 values of x and 2 of y")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_labels(file)
    with pytest.raises(DataError, match="a.jpg|gt_a"):
        file.write_text("")
        open_text(tmp_path)
    listed = {"data_list": [{"img_path": "no.jpg", "instances": []}]}
    (tmp_path / "textdet_train.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match="not there: no.jpg"):
        open_text(tmp_path)
    (tmp_path / "textdet_train.json").write_text("{}")
    with pytest.raises(DataError, match="is not mmocr's json"):
        open_text(tmp_path)
    _picture(tmp_path / "b.jpg")
    rows = [{"img_path": "b.jpg", "instances": [{"polygon": p} for p in ([1, 1, 1, 1, 1, 1, 9, 9], [1, 1, 30, 20, 30, 1, 1, 20])]}, {"img_path": "b.jpg"}]  # fmt: skip
    (tmp_path / "textdet_train.json").write_text(json.dumps({"data_list": rows}))
    notes = open_text(tmp_path, val_fraction=0.5).notes
    assert notes == ["1 polygons without area are ignored", "1 polygons that cross themselves were repaired", "1 pictures without words serve as negatives"]  # fmt: skip


# -- frames
class _Seer(nn.Module):
    """Finds the one bright rectangle of a picture: what a perfect network would say."""

    in_chans, setting = 3, "ctw1500"

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        bright = (x[0].mean(0) > 0.75).numpy()
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        size = tuple(x.shape[2:])
        if not len(rows):
            return _levels(fourier_targets(size, []))
        (x0, x1), (y0, y1) = (columns[0], columns[-1] + 1), (rows[0], rows[-1] + 1)
        word = np.array([[x0, y0], [x1, y0 + 1], [x1 - 1, y1], [x0 + 1, y1 - 1]], float)
        return _levels(fourier_targets(size, [word], ranges=((0, 1.5), (9, 10), (9, 10))))


RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _ready():
    return Ready(
        by_name("text"), _Seer().eval(), "seer", {"preprocessing": RAW, "setting": "ctw1500", "test_size": 320}
    )


def _box(words):
    points = np.reshape(words[0]["polygon"], (-1, 2))
    return [*points.min(0), *points.max(0)]


def test_words_lie_in_the_pixels_of_the_upright_picture(tmp_path):
    array = np.zeros((480, 640), np.uint8)
    array[120:200, 200:400] = 255
    grey = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    grey.convert("RGB").rotate(90, expand=True).save(tmp_path / "exif.png", exif=exif)
    grey.save(tmp_path / "grey.png")
    Image.fromarray(array.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    clear = np.zeros(
        (480, 640, 4), np.uint8
    )  # transparent everywhere but for a dark frame around the white ground's word
    clear[..., 3] = np.where(array > 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for name in ("exif", "grey", "deep", "clear"):
        found = _ready().predict(tmp_path / f"{name}.png")
        assert (found[0]["width"], found[0]["height"]) == (640, 480), name
        assert np.abs(np.array(_box(found[0]["words"])) - [200, 120, 400, 200]).max() < 10, (
            name,
            _box(found[0]["words"]),
        )
    found = _ready().predict(tmp_path / "exif.png")
    assert found.save(tmp_path / "drawn.png").is_file() and Image.open(tmp_path / "drawn.png").size == (640, 480)
    found.save(tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/text.json").read_text())[0]["words"][0]["score"] > 0.9
        and (tmp_path / "out/exif_text.png").is_file()
    )


def test_very_wide_pictures_are_read_in_windows(tmp_path):
    array = np.zeros((120, 2400, 3), np.uint8)
    array[40:80, 1700:1850] = 255
    Image.fromarray(array).save(tmp_path / "wide.png")
    found = _ready().predict(tmp_path / "wide.png")
    assert len(found[0]["words"]) == 1 and np.abs(np.array(_box(found[0]["words"])) - [1700, 40, 1850, 80]).max() < 8
    assert find_text(_Seer(), Image.new("RGB", (500, 40)), RAW, 320, Decoding()) == []


def test_a_picture_without_text_says_so(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "dark.png")
    found = _ready().predict(tmp_path / "dark.png")
    assert found[0]["words"] == [] and "no text was found" in found.notes[0]
    assert found.save(tmp_path / "none.csv").is_file() and isinstance(found, Texts)
    with pytest.raises(OffprintError, match="no such file"):
        _ready().predict(tmp_path / "none.png")
    with pytest.raises(OffprintError, match="unknown representation of text"):
        _ready().predict(tmp_path / "dark.png", text_repr="box")


def test_crops_carry_their_words_with_them():
    array = np.zeros((200, 300), np.uint8)
    word = np.array([[100, 80], [200, 80], [200, 120], [100, 120]], float)
    array[80:120, 100:200] = 255
    recipe = TextRecipe(scales=(0.8, 1.2))
    for seed in range(12):
        torch.manual_seed(seed)
        crop, kept, flags = turned(Image.fromarray(array).convert("RGB"), [word], [False], 160, recipe)
        if flags == [False]:
            seen = np.asarray(crop)[..., 0] > 128
            shown = fill([kept[0].round().astype(int)], (160, 160))
            assert (seen & shown).sum() > 0.85 * (seen | shown).sum(), seed


# -- measures and the task
def test_precision_and_recall_by_overlap():
    from offprint.models.detection.fcenet import Found

    away, again = WORD + [0, 100], WORD + [1, 1]
    counted = Matches()
    assert counted.add([Found(again, 0.9), Found(WORD, 0.8), Found(away, 0.7), Found(away + [0, 60], 0.5)], [WORD, BENT, away], [False, False, True]) == 1  # fmt: skip
    figures = counted.figures()  # 1 of 2 words; of 4 found one is in an ignored word, two are wrong
    assert (
        figures["recall"] == 50
        and figures["precision"] == pytest.approx(100 / 3)
        and figures["hmean"] == pytest.approx(40)
    )
    assert counted.figures(0.85) == {"precision": 100.0, "recall": 50.0, "hmean": pytest.approx(200 / 3)}
    none = Matches()
    none.add([], [WORD], [False])
    assert none.figures() == {"precision": 0.0, "recall": 0.0, "hmean": 0.0}


FAST = {"epochs": 2, "batch_size": 4, "input_size": 64, "lr": 1e-3, "scales": (0.5, 0.6)}


def test_a_run_is_trained_stopped_resumed_to_equal_weights_and_used(tmp_path):
    from lightning.pytorch.callbacks import Callback

    data = open_text(SAMPLE)
    data.train, data.val = data.train[:4], data.val[:1]

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    def go(out, **more):
        return offprint.train(
            "mobilenetv2_100", data, tmp_path / out, head="fce", task="text", recipe=FAST, options={"test_size": 96}, progress=False,
            model_options={"backbone": {"name": "mobilenetv2_100", "width": 0.35}, "head": {"name": "fce", "width": 16}}, **more,
        )  # fmt: skip

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", callbacks=[Stop()])
    cut = go("cut")
    a, b = (offprint.load_run(r.folder) for r in (whole, cut))
    assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
    figures = a.evaluate(data)
    assert {"precision", "recall", "hmean", "best_hmean", "words"} <= set(figures) and figures["pictures"] == 1
    data.train[0].ignored = [True] * len(data.train[0].ignored)
    data.train = data.train[:1]
    with pytest.raises(DataError, match="has no word to learn from"):
        go("none")
    with pytest.raises(OffprintError, match="multiple of 32"):
        offprint.train(
            "fcenet_resnet18_fpn", SAMPLE, tmp_path / "odd", recipe={**FAST, "input_size": 50}, progress=False
        )


def test_the_rate_falls_as_a_power_each_epoch():
    rates = TextRecipe(lr=1e-3, power=0.9, epochs=10, warmup_epochs=0, min_lr=1e-7, schedule="constant").learning_rates(
        2, 8
    )
    assert (
        rates[0] == rates[1] == pytest.approx(1e-3)
        and rates[10] == pytest.approx(1e-3 * 0.5**0.9, rel=1e-3)
        and len(rates) == 20
    )
