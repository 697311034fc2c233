"""Multi-digit: exact reading, masked digits, coverage, crops, SVHN's format, training, mistakes that are named."""

import numpy as np
import pytest
import torch
from PIL import Image

import offprint
from offprint.data.house_numbers import crop, open_numbers, read_svhn, strings, union
from offprint.errors import DataError, OffprintError
from offprint.models.detection.multi_digit import (
    SequenceHead,
    SequenceLogits,
    SVHNPaper,
    SVHNPort,
    as_logits,
    coverage_at_accuracy,
    read_sequences,
    sequence_loss,
    targets_of,
)
from offprint.tasks.numbers import read_number

TINY = {"hidden": (4, 4, 4, 4, 4, 4, 4, 4), "width": 16}


# -- the rule
def test_the_length_is_chosen_together_with_the_digits():
    length = torch.tensor([[-9.0, 1.0, 0.9, -9, -9, -9, -9]])
    digits = torch.zeros(1, 5, 10)
    digits[0, 0, 3], digits[0, 1, 7] = 2.0, 30.0  # the first digit is unsure, the second is not
    assert read_sequences(SequenceLogits(length, digits))[0].text == "3"
    digits[0, 0, 3] = 30.0
    both = read_sequences(SequenceLogits(torch.tensor([[-9.0, 1.0, 1.1, -9, -9, -9, -9]]), digits))[0]
    assert both.text == "37" and both.confidence == pytest.approx(np.exp(1.1) / (np.exp(1.1) + np.exp(1)), abs=1e-4)


def test_no_digits_is_a_number_and_more_than_the_head_has_is_refused():
    digits = torch.zeros(1, 5, 10)
    empty = read_sequences(SequenceLogits(torch.tensor([[9.0, 0, 0, 0, 0, 0, 0]]), digits))[0]
    assert empty.text == "" and not empty.refused
    assert read_sequences(SequenceLogits(torch.tensor([[0.0, 0, 0, 0, 0, 0, 9]]), digits))[0].refused


def test_absent_digits_have_no_gradient_and_stand_right_of_the_others():
    head = SequenceHead(8)
    lengths, digits = targets_of([(4, 2), (1, 2, 3, 4, 5, 6)])
    assert lengths.tolist() == [2, 6] and digits.tolist() == [[4, 2, -1, -1, -1], [-1] * 5]
    logits = head(torch.randn(2, 8))
    logits.digits.retain_grad()
    sequence_loss(logits, lengths, digits).backward()
    moved = logits.digits.grad.abs().sum(-1) > 0
    assert moved.tolist() == [[True, True, False, False, False], [False] * 5]
    with pytest.raises(OffprintError, match="between 0 and 9"):
        targets_of([(11,)])


def test_coverage_takes_the_largest_part_though_accuracy_is_not_monotone():
    confidence = [0.9, 0.8, 0.7, 0.6]
    assert coverage_at_accuracy(confidence, [False, True, True, True], 0.75) == (4, 1.0, 0.6)
    assert coverage_at_accuracy(confidence, [False, False, False, False], 0.5) == (0, 0.0, float("inf"))
    with pytest.raises(OffprintError, match="accuracy=98"):
        coverage_at_accuracy(confidence, [True] * 4, 98)


# -- networks
def test_the_networks_read_their_crop_alone():
    for net in (SVHNPort(**TINY), SVHNPaper(**TINY, drop_rate=(0.0, 0.0))):
        out = as_logits(net.eval()(torch.rand(2, 3, 54, 54)))
        assert out.length.shape == (2, 7) and out.digits.shape[:2] == (2, 5)
        with pytest.raises(OffprintError, match=r"\(B, 3, 54, 54\), got \(1, 3, 64, 64\)"):
            net(torch.rand(1, 3, 64, 64))
        exported = torch.export.export(net, (net.example_input(2),)).module()
        assert torch.allclose(exported(torch.ones(2, 3, 54, 54))[0], net(torch.ones(2, 3, 54, 54))[0], atol=1e-5)
    assert offprint.create_model("svhn_port")._hidden9[0].in_features == 9408
    paper = SVHNPaper(**TINY).eval()
    x = torch.rand(1, 3, 54, 54)
    assert torch.allclose(paper(x).length, paper(x + 0.3).length, atol=1e-4)  # the picture's mean is taken off


# -- crops and files
def test_the_crop_is_a_square_about_the_number_and_black_outside():
    array = np.zeros((40, 100, 3), np.uint8)
    array[10:30, 40:60] = 255
    square = np.asarray(crop(Image.fromarray(array), (40, 10, 20, 20)))
    assert square.shape == (64, 64, 3) and square[32, 32, 0] > 250 and square[2, 2, 0] < 5
    assert 0.55 < (square[..., 0] > 128).mean() < 0.63  # 20 of 26 pixels a side
    corner = np.asarray(crop(Image.fromarray(np.full((40, 40, 3), 200, np.uint8)), (-10, -10, 30, 30)))
    assert corner[0, 0, 0] == 0 and corner[-10, -10, 0] > 150
    assert union([(1, 2, 3, 4), (5, 1, 2, 2)]) == (1, 1, 6, 5)
    for box in ((0, 0, 0, 5), (200, 0, 5, 5)):
        with pytest.raises(DataError, match="has no area in a picture of 100 x 40 pixels"):
            crop(Image.fromarray(array), box)


def test_svhn_s_own_format_is_read(tmp_path):
    import h5py

    rows = [("1.png", [(1, 5, 4, 8, 10), (10, 14, 4, 8, 10)]), ("2.png", [(7, 3, 3, 9, 12)])]
    with h5py.File(tmp_path / "digitStruct.mat", "w") as f:
        root = f.create_group("digitStruct")
        names, boxes = [], []
        for i, (name, each) in enumerate(rows):
            Image.new("RGB", (30, 20), (40 * i, 0, 0)).save(tmp_path / name)
            names.append(f.create_dataset(f"n{i}", data=np.array([[ord(c)] for c in name], np.uint16)).ref)
            group = f.create_group(f"b{i}")
            for k, key in enumerate(("label", "left", "top", "width", "height")):
                if len(each) == 1:
                    group.create_dataset(key, data=[[float(each[0][k])]])
                else:
                    refs = [f.create_dataset(f"v{i}{key}{j}", data=[[float(row[k])]]).ref for j, row in enumerate(each)]
                    group.create_dataset(key, data=np.array([[r] for r in refs], dtype=h5py.ref_dtype))
            boxes.append(group.ref)
        root.create_dataset("name", data=np.array([[r] for r in names], dtype=h5py.ref_dtype))
        root.create_dataset("bbox", data=np.array([[r] for r in boxes], dtype=h5py.ref_dtype))
    found = read_svhn(tmp_path)
    assert [n.digits for n in found] == [(1, 0), (7,)] and found[0].box == (5, 4, 17, 10)
    assert found[1].read().size == (30, 20) and len(open_numbers(tmp_path, val_fraction=0.5).val) == 1
    with pytest.raises(DataError, match="no digitStruct.mat"):
        read_svhn(tmp_path / "none")
    (tmp_path / "digitStruct.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(DataError, match="is not SVHN's digitStruct.mat"):
        read_svhn(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbers")
    lines = ["image,number,left,top,width,height"]
    for i, one in enumerate(strings(10, 2).train):
        one.read().save(root / f"{i}.png")
        lines.append(f"{i}.png,{''.join(map(str, one.digits))},{','.join(map(str, one.box))}")
    (root / "numbers.csv").write_text("\n".join(lines) + "\n")
    return root


def test_tables_and_their_faults(folder, tmp_path):
    data = open_numbers(folder, val_fraction=0.2)
    assert (len(data.train), len(data.val)) == (8, 2) and data.train[0].box is not None
    text = (folder / "numbers.csv").read_text()
    for change, words in (((",number", ",said"), "one of numbers"), (("0.png", "no.png"), "not there"), (("9.png,", "9.png,x"), "row 10: 'x.*is no number")):  # fmt: skip
        broken = folder / "broken.csv"
        broken.write_text(text.replace(*change))
        with pytest.raises(DataError, match=words):
            open_numbers(broken)
        broken.unlink()
    with pytest.raises(DataError, match="holds no numbers"):
        open_numbers(tmp_path)


# -- the task
FAST = {"recipe": {"epochs": 1, "batch_size": 4, "lr": 1e-3}, "progress": False}


def test_a_run_is_trained_judged_drawn_and_reads(folder, tmp_path):
    run = offprint.train("svhn_port", folder, tmp_path / "a", model_options=TINY, **FAST)
    ready = offprint.load_run(run.folder)
    figures = ready.evaluate(part="all")
    assert figures["numbers"] == 10 and {"accuracy", "digit_accuracy", "coverage", "threshold"} <= set(figures)
    assert figures.save(tmp_path / "curve.png").stat().st_size > 1000
    found = ready.predict(folder / "0.png", box=(10.0, 5.0, 60.0, 28.0))
    assert set(found[0]) == {"image", "number", "confidence", "refused"} and 0 <= found[0]["confidence"] <= 1
    rgba = Image.open(folder / "0.png").convert("RGBA")
    assert 0 <= read_number(ready.model, rgba).confidence <= 1
    with pytest.raises(OffprintError, match="give left, top, width and height"):
        ready.predict(folder / "0.png", box=(1.0,))


def test_any_backbone_reads_numbers(folder, tmp_path):
    run = offprint.train(
        "mobilenetv2_100", folder, tmp_path / "a", task="numbers", head="sequence", progress=False,
        recipe={**FAST["recipe"], "input_size": 54}, model_options={"backbone": {"name": "mobilenetv2_100", "width": 0.35}},
    )  # fmt: skip
    assert len(offprint.load_run(run.folder).predict(folder / "1.png")) == 1


def test_numbers_longer_than_the_head_are_told_left_out_or_a_class(folder, tmp_path):
    long = folder / "long.csv"
    long.write_text((folder / "numbers.csv").read_text() + "0.png,123456,0,0,9,9\n")

    def train(out, **options):
        return offprint.train("svhn_port", long, tmp_path / out, model_options=TINY, options=options, **FAST)

    with pytest.raises(DataError, match="1 numbers have more than 5 digits, the first is 0.png with 6"):
        train("a")
    assert train("b", longer="leave")["numbers"] + train("c", longer="more")["numbers"] in (18, 19, 20)
    long.unlink()
