"""VTDNet, rebuilt: partial labels, interaction blocks, tracking, flow, scores, BDD100K's formats, drawn scenes, the task from end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import offprint
from offprint.data.boxes import encode
from offprint.data.drawn_driving import drawn
from offprint.data.driving import JOINTS, bitmask, lane_bytes, lanes_of, open_folder
from offprint.errors import DataError, OffprintError
from offprint.models.detection._vtdnet_blocks import CrossExchange, PixelExchange
from offprint.models.detection.vtdnet import (
    TASKS,
    Tracker,
    cost_volume,
    embedding_losses,
    flow_losses,
    flow_proxy_iou,
    partial_label_loss,
    vtda,
    warp,
)
from offprint.tasks import contract
from offprint.tasks._driving_frames import Pairs, joined, mirror, sized
from offprint.tasks._driving_scores import association_accuracy
from offprint.tasks.driving import Driving, DrivingRecipe

NAME = "vtdnet_tiny_rebuilt"
SMALL = {"width": 32, "task_width": 8, "pixel_width": 16, "hidden": 32, "mask_width": 8, "pose_width": 8, "pose_layers": 1, "embed": 8,
         "proposals": (60, 30, 60, 20), "regions": 16, "tokens": 8}  # fmt: skip


@pytest.fixture(scope="module")
def scenes():
    return drawn(videos=2, held=1, keep=10, size=(64, 96))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return offprint.create_model(NAME, **SMALL)


@pytest.fixture(scope="module")
def batch(scenes):
    torch.manual_seed(0)
    pairs = Pairs(scenes.train, (), (), 0, False)
    return joined([pairs[0], pairs[2]])


# -- losses of partial labels
def test_a_task_is_the_mean_over_its_labelled_images_not_over_all():
    losses = torch.tensor([[2.0, float("nan")], [float("nan"), float("nan")], [4.0, float("nan")]])
    labelled = torch.tensor([[True, False], [False, False], [True, False]])
    found = partial_label_loss(losses, labelled)
    assert found.tasks.tolist() == [3.0, 0.0] and float(found.total) == 3.0
    with pytest.raises(DataError, match="one of each per image and task"):
        partial_label_loss(losses, labelled[:2])


def test_an_image_teaches_only_the_tasks_it_is_labelled_for(model, batch):
    raw, targets, pairs, other, other_targets = batch
    some = [{**targets[0], "known": {"tagging", "lane"}}, {**targets[1], "known": {"mot", "flow"}}]
    model.train()
    losses, known = model.losses(raw, some, other, other_targets, pairs, (raw, other))
    assert [{t for t, k in zip(TASKS, row, strict=True) if k} for row in known.tolist()] == [
        {"tagging", "lane"},
        {"mot", "flow"},
    ]
    assert bool((losses[~known] == 0).all()) and bool((losses[known] > 0).all())
    alone, marks = model.losses(raw, some)  # without the other frame there is nothing to associate
    assert not bool(marks[1].any()) and float(alone[1].sum()) == 0


def test_every_parameter_learns_from_a_fully_labelled_batch(model, batch):
    raw, targets, pairs, other, other_targets = batch
    model.train().zero_grad()
    losses, known = model.losses(raw, targets, other, other_targets, pairs, (raw, other))
    assert bool(known.all()) and bool(torch.isfinite(losses).all())
    partial_label_loss(losses, known).total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


# -- the network
def test_a_fresh_cross_block_changes_nothing_and_a_trained_one_reads_the_other_group():
    torch.manual_seed(0)
    block, x, read = CrossExchange(16, 8), torch.randn(2, 5, 16), torch.randn(2, 3, 8)
    assert torch.equal(block(x, read), x)
    torch.nn.init.normal_(block.proj.weight)
    assert not torch.allclose(block(x, read), block(x, -read))
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.allclose(block(x, read, none), block(x, -read, none)) and bool(
        torch.isfinite(block(x, read, none)).all()
    )


def test_tasks_exchange_inside_a_window_and_shifted_windows_reach_the_next():
    torch.manual_seed(0)
    plain, shifted = PixelExchange(2, 8, 4), PixelExchange(2, 8, 4, True)
    x = torch.randn(1, 8, 8, 16)
    y = x.clone()
    y[0, 0, 3, :8] += 5  # the first task's part of one place
    moved = (plain(x) - plain(y)).abs().amax((0, 3)) > 1e-6
    assert bool(moved[:4, :4].all()) and not bool(moved[4:].any()) and not bool(moved[:, 4:].any())
    assert bool(((plain(x) - plain(y)).abs()[0, 2, 2, 8:] > 1e-6).any())  # the other task learns of it
    assert bool(((shifted(x) - shifted(y)).abs().amax((0, 3)) > 1e-6)[:2, 4:6].any())


def test_one_task_alone_has_no_exchange_and_only_its_parts(model):
    single = offprint.create_model(NAME, tasks=("semantic",), **SMALL).eval()
    assert not hasattr(single, "instances") and len(single.pixels.exchange) == 0
    assert set(single.detect(single.example_input())[0]) == {"semantic"}
    assert set(offprint.create_model(NAME, tasks=("tagging",), **SMALL).detect(torch.rand(1, 3, 64, 96))[0]) == {
        "weather",
        "scene",
    }
    out = model.eval().detect(torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96), score_threshold=0.0)[0]
    assert set(out) == {"weather", "scene", "semantic", "drivable", "lane_category", "lane_direction", "lane_style", "boxes", "scores", "labels",
                        "masks", "keypoints", "embeddings", "flow"}  # fmt: skip
    assert out["flow"].shape == (2, 64, 96) and out["keypoints"].shape[1:] == (18, 3)


def test_wrong_frames_and_tasks_are_refused(model):
    with pytest.raises(OffprintError, match="multiples of 32"):
        model(torch.rand(1, 3, 60, 96))
    with pytest.raises(OffprintError, match="semantics"):
        offprint.create_model(NAME, tasks=("semantics",))


# -- tracking
def test_the_loss_of_shuffled_embeddings_stays_above_that_of_matched_ones():
    torch.manual_seed(0)
    keys = torch.randn(6, 16)
    matched = embedding_losses(keys, keys + 0.1 * torch.randn(6, 16), torch.eye(6, dtype=torch.bool))
    shuffled = embedding_losses(keys, keys.roll(1, 0), torch.eye(6, dtype=torch.bool))
    assert float(matched[0].mean()) < 0.5 < float(shuffled[0].mean()) and float(matched[1]) < float(shuffled[1])
    none = embedding_losses(keys, keys, torch.zeros(6, 6, dtype=torch.bool))
    assert float(none[0].sum()) == 0 and bool(torch.isfinite(none[1]))


def _seen(tracker, frame, *objects):
    """Objects as (x, score, place of the one in their embedding); their tracks."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x, _, _ in objects]).reshape(-1, 4)
    codes = 8 * torch.eye(4)[[k for _, _, k in objects]].reshape(-1, 4)
    scores, labels = torch.tensor([s for _, s, _ in objects]), torch.ones(len(objects), dtype=torch.long)
    keep, tracks = tracker.update(boxes, scores, labels, codes, frame)
    return dict(zip([objects[i][2] for i in keep.tolist()], tracks.tolist(), strict=True))


def test_tracks_go_on_by_appearance_and_are_forgotten_after_memory_frames():
    tracker = Tracker(memory_frames=3)
    assert _seen(tracker, 0, (0, 0.9, 0), (50, 0.8, 1)) == {0: 0, 1: 1}
    assert _seen(tracker, 1, (70, 0.9, 0), (20, 0.8, 1)) == {0: 0, 1: 1}  # they changed places
    assert _seen(tracker, 3, (0, 0.9, 0)) == {0: 0}
    assert _seen(tracker, 4, (0, 0.9, 0)) == {0: 0}
    assert _seen(tracker, 5, (0, 0.9, 0), (50, 0.9, 1)) == {0: 0, 1: 2}  # unseen for three frames
    assert _seen(tracker, 6, (50, 0.9, 1)) == {1: 2}
    assert _seen(tracker, 7, (0, 0.9, 0)) == {0: 0}  # for two
    with pytest.raises(OffprintError, match="memory_frames=0"):
        Tracker(memory_frames=0)


def test_low_scores_begin_nothing_and_backdrops_hold_back():
    tracker = Tracker()
    assert _seen(tracker, 0, (0, 0.5, 0)) == {0: -1}
    assert len(tracker.backdrops) == 1
    assert _seen(tracker, 1, (0, 0.9, 0)) == {0: -1}  # it is alike to a backdrop
    assert _seen(tracker, 2, (0, 0.9, 0)) == {0: 0}  # which is kept for one frame
    assert _seen(tracker, 3, (0, 0.2, 0)) == {}  # a doubtful repetition of a track
    assert _seen(tracker, 4, (0, 0.9, 0), (2, 0.5, 1)) == {0: 0, 1: -1}
    assert _seen(tracker, 5, (0, 0.9, 0), (1, 0.8, 1)) == {0: 0}  # overlaps the better one by more than 0.7


def test_nothing_leaks_from_one_video_to_the_next():
    tracker = Tracker()
    _seen(tracker, 0, (0, 0.9, 0))
    _seen(tracker, 1, (0, 0.9, 0))
    assert _seen(tracker, 0, (0, 0.9, 0), (50, 0.9, 1)) == {0: 0, 1: 1} and len(tracker.tracks) == 2
    tracker.reset()
    assert _seen(tracker, 7, (0, 0.9, 1)) == {1: 0}
    with pytest.raises(DataError, match="frame 7 comes after frame 7"):
        _seen(tracker, 7, (0, 0.9, 1))
    assert _seen(tracker, 8) == {}


# -- flow
def test_warping_by_the_true_flow_brings_the_next_frame_back_and_lowers_the_loss():
    torch.manual_seed(0)
    first = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 12), size=(32, 48), mode="bilinear")
    second, flow = first.roll((1, 3), (2, 3)), torch.zeros(1, 2, 32, 48)
    flow[:, 0], flow[:, 1] = 3, 1
    assert torch.allclose(warp(second, flow)[..., :-1, :-3], first[..., :-1, :-3], atol=1e-5)
    assert float(flow_losses(first, second, flow)) < 0.5 * float(flow_losses(first, second, 0 * flow))
    rough = flow + torch.randn_like(flow)
    assert float(flow_losses(first, second, flow)) < float(flow_losses(first, second, rough))


def test_the_cost_volume_is_the_direct_formula():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 6, 7)
    found, plain = cost_volume(a, b, 2), torch.zeros(2, 25, 6, 7)
    for k in range(25):
        dy, dx = k // 5 - 2, k % 5 - 2
        for y in range(max(0, -dy), min(6, 6 - dy)):
            for x in range(max(0, -dx), min(7, 7 - dx)):
                plain[:, k, y, x] = (a[:, :, y, x] * b[:, :, y + dy, x + dx]).mean(1)
    assert torch.allclose(found, plain, atol=1e-6)


def test_the_flow_proxy_is_one_for_the_true_flow_and_nothing_comes_from_outside():
    mask = torch.zeros(1, 8, 10)
    mask[0, 2:5, 1:4] = 1
    flow = torch.zeros(2, 8, 10)
    flow[0] = 2
    assert float(flow_proxy_iou(mask, mask.roll(2, 2), flow)) == 1
    assert float(flow_proxy_iou(mask, torch.ones_like(mask), flow - 20)) == 0
    with pytest.raises(DataError, match="expected"):
        flow_proxy_iou(mask, mask[:, :4], flow)


# -- scores
def test_vtda_with_equal_baselines_divides_by_one_and_names_what_lacks():
    scores = {"a": 40.0, "b": 60.0}
    found = vtda(scores, {"a": [50, 50], "b": [50, 54]}, {"g": ("a", "b")})
    assert found.scale == {"a": 1.0, "b": 0.25} and found.total == pytest.approx((40 + 15) / 1.25)
    for wrong, words in (({"a": 40.0}, "score 'b'"), ({**scores, "a": 140.0}, "between 0 and 100")):
        with pytest.raises(OffprintError, match=words):
            vtda(wrong, {"a": [50], "b": [50]}, {"g": ("a", "b")})
    with pytest.raises(OffprintError, match="no baselines"):
        vtda(scores, {"a": [50]}, {"g": ("a", "b")})


def test_association_is_whole_for_perfect_tracks_and_falls_where_identities_change():
    same = [([1, 2], [7, 8], np.eye(2))] * 4
    assert association_accuracy(same) == pytest.approx(1)
    switched = [*same[:2], *[([1, 2], [8, 7], np.eye(2))] * 2]
    assert association_accuracy(switched) == pytest.approx(1 / 3)  # half of a track's frames: 2 / (4 + 4 - 2)
    assert association_accuracy([([1], [], np.zeros((1, 0)))]) == 0


# -- frames
def test_mirroring_exchanges_left_and_right_of_all_labels():
    points = torch.zeros(1, len(JOINTS), 3)
    points[0, JOINTS.index("left_hand")] = torch.tensor([10.0, 5, 2])
    target = {
        "known": set(),
        "boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "keypoints": points,
        "semantic": torch.arange(40).repeat(20, 1),
    }
    _, found = mirror(torch.rand(3, 20, 40), target)
    assert found["boxes"].tolist() == [[30, 0, 40, 10]] and int(found["semantic"][0, 0]) == 39
    assert found["keypoints"][0, JOINTS.index("right_hand")].tolist() == [30, 5, 2]
    assert float(found["keypoints"][0, JOINTS.index("left_hand")].abs().sum()) == 0


def test_frames_of_two_sizes_are_padded_and_the_padding_is_unknown(scenes):
    a, b = (sized(*scenes.train[i].read(), size) for i, size in ((0, (64, 96)), (1, (48, 72))))
    images, targets, pairs, *_ = joined([(a, None), (b, None)])
    assert images.shape == (2, 3, 64, 96) and pairs == []
    assert bool((targets[1]["semantic"][48:] == 255).all()) and bool((targets[1]["lane_style"][:, 72:] == 255).all())
    assert not bool(targets[1]["masks"][:, 48:].any()) and float(targets[1]["boxes"][:, 2].max()) <= 72


def test_drawn_scenes_say_so_and_keep_some_labels():
    data = drawn(videos=4, held=1, keep=3, size=(64, 96))
    assert data.drawn and "not photographed" in data.notes[0]
    assert {len(f.labels) for f in data.train} == {3} and {len(f.labels) for f in data.val} == {10}
    assert (
        data.digest
        == drawn(videos=4, held=1, keep=3, size=(64, 96)).digest
        != drawn(videos=4, held=1, keep=3, size=(64, 96), seed=1).digest
    )
    _, target = data.val[0].read()
    for box, mask in zip(target["boxes"].long().tolist(), target["masks"], strict=True):
        assert bool(mask[box[1] : box[3], box[0] : box[2]].any()) and not bool(mask[:, : box[0]].any())
    with pytest.raises(DataError, match="64 x 96"):
        drawn(size=(20, 20))


# -- BDD100K's formats
def test_lane_bytes_and_bitmasks():
    byte = np.array(
        [[8, 0b110111, 0b000110]], np.uint8
    )  # background; vertical dashed single yellow; parallel solid single white
    found = lanes_of(byte)
    assert [found[f"lane_{k}"].tolist() for k in ("category", "direction", "style")] == [
        [[0, 8, 7]],
        [[0, 2, 1]],
        [[0, 2, 1]],
    ]
    assert (
        lane_bytes(*(found[f"lane_{k}"].numpy() for k in ("category", "direction", "style"))).tolist() == byte.tolist()
    )
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[1:3, 1:4], pixels[3, 5] = (3, 0, 1, 44), (1, 2, 0, 9)  # a car of identity 300; a crowd
    found = bitmask(pixels, (4, 6), "here")
    assert (
        found["labels"].tolist() == [3]
        and found["tracks"].tolist() == [300]
        and found["boxes"].tolist() == [[1, 1, 4, 3]]
    )
    with pytest.raises(DataError, match="four channels"):
        bitmask(pixels[..., :3], (4, 6), "here")


@pytest.fixture(scope="module")
def bdd(tmp_path_factory, scenes):
    """Drawn frames in BDD100K's layout."""
    root = tmp_path_factory.mktemp("bdd100k")

    def picture(folder, name, frame):
        path = root / "images" / folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.file).save(path)

    def write(path, value):
        path = root / "labels" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(path) if isinstance(value, np.ndarray) else path.write_text(json.dumps(value))

    for split, frames in (("train", scenes.train[:2]), ("val", scenes.val)):
        frame, said = frames[0], frames[0].labels
        crowd = {"category": "person", "box2d": {"x1": 0, "y1": 0, "x2": 9, "y2": 9}, "attributes": {"crowd": True}}
        plain = [{k: v for k, v in row.items() if k != "rle"} for row in said["detection"]]
        picture(f"100k/{split}", "a", frame)
        write(f"det_20/det_{split}.json", [{"name": "a.jpg", "attributes": said["tagging"], "labels": [*plain, crowd]}])
        write(f"pose_21/pose_{split}.json", {"frames": [{"name": "a.jpg", "labels": said["pose"]}]})
        write(f"drivable/masks/{split}/a.png", said["drivable"])
        write(f"lane/masks/{split}/a.png", said["lane"])
        picture(f"10k/{split}", "b", frame)
        write(f"sem_seg/masks/{split}/b.png", said["semantic"])
        rows = [
            {**row, "rle": encode(mask)}
            for row, mask in zip(said["instance"], frame.read()[1]["masks"].numpy(), strict=True)
        ]
        write(f"ins_seg/rles/ins_seg_{split}.json", [{"name": "b.jpg", "labels": rows}])
        video = []
        for i, one in enumerate(frames[:2]):
            for folder in ("track", "seg_track_20"):
                picture(f"{folder}/{split}/v", f"v-{i}", one)
            video.append({"name": f"v-{i}.jpg", "videoName": "v", "frameIndex": i, "labels": one.labels["mot"]})
            _, target = one.read()
            code = np.zeros((64, 96, 4), np.uint8)
            for mask, label, track in zip(target["masks"].numpy(), target["labels"], target["tracks"], strict=True):
                code[mask > 0] = (int(label), 0, 0, int(track))
            write(f"seg_track_20/bitmasks/{split}/v/v-{i}.png", code)
        write(f"box_track_20/{split}/v.json", video)
    return root


def test_bdd100k_is_read_with_the_labels_of_each_set(bdd, scenes):
    data = open_folder(bdd)
    assert data.counts() == {
        "tagging": 1,
        "detection": 1,
        "pose": 1,
        "drivable": 1,
        "lane": 1,
        "semantic": 1,
        "instance": 1,
        "flow": 4,
        "mot": 2,
        "mots": 2,
    }
    _, truth = scenes.train[0].read()
    by = {tuple(sorted(f.labels)): f.read()[1] for f in reversed(data.train)}
    whole = by["detection", "drivable", "lane", "pose", "tagging"]
    assert torch.equal(whole["boxes"], truth["boxes"]) and torch.equal(
        whole["keypoints"], truth["keypoints"]
    )  # the crowd is left out
    assert torch.equal(whole["lane_category"], truth["lane_category"]) and whole["weather"] == truth["weather"]
    assert torch.equal(by["instance", "semantic"]["masks"], truth["masks"]) and torch.equal(
        by["instance", "semantic"]["semantic"], truth["semantic"]
    )
    assert torch.equal(by["flow", "mot"]["tracks"], truth["tracks"])
    assert sorted(by["flow", "mots"]["tracks"].tolist()) == sorted(truth["tracks"].tolist())
    near = Pairs(data.train, (), (), 0, False)
    assert [bool(near.near(i)) for i in range(len(near))] == [bool(f.video) for f in data.train]


def test_what_is_wrong_in_a_folder_is_named(bdd, tmp_path):
    with pytest.raises(DataError, match="BDD100K's layout"):
        open_folder(tmp_path)
    file = bdd / "labels/det_20/det_train.json"
    kept = file.read_text()
    try:
        file.write_text(json.dumps([*json.loads(kept), {"name": "gone.jpg", "labels": []}]))
        with pytest.raises(DataError, match=r"gone\.jpg"):
            open_folder(bdd)
        assert "gone.jpg" in open_folder(bdd, "skip").notes[0]
        rows = json.loads(kept)
        rows[0]["labels"][0]["category"] = "cra"
        file.write_text(json.dumps(rows))
        with pytest.raises(DataError, match="cra"):
            next(f for f in open_folder(bdd).train if "detection" in f.labels).read()
        file.write_text("{")
        with pytest.raises(DataError, match="cannot read the labels"):
            open_folder(bdd)
    finally:
        file.write_text(kept)


# -- training
def test_pseudo_labels_come_from_the_weights_at_the_start_and_only_where_labels_lack(model, batch):
    raw, targets, pairs, other, other_targets = batch
    recipe = DrivingRecipe(pseudo=("semantic",), pseudo_threshold=0.0)
    module = Driving(model, recipe, 0, {"mean": (0.5,) * 3, "std": (0.25,) * 3})
    some = [
        {**targets[0], "known": {"semantic"}},
        {k: v for k, v in targets[1].items() if k != "semantic"} | {"known": {"lane"}},
    ]
    found, made = module._labelled(module.normalise(raw), some)
    assert made == [set(), {"semantic"}] and torch.equal(found[0]["semantic"], targets[0]["semantic"])
    assert found[1]["semantic"].shape == (64, 96) and found[1]["known"] == {"lane", "semantic"}
    unsure = Driving(
        model, DrivingRecipe(pseudo=("semantic",), pseudo_threshold=1.0), 0, {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    )
    assert bool((unsure._labelled(unsure.normalise(raw), some)[0][1]["semantic"] == 255).all())
    single = offprint.create_model(NAME, tasks=("semantic",), **SMALL)
    assert Driving(
        single, DrivingRecipe(pseudo=("semantic", "pose")), 0, {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    ).pseudo == ("semantic",)
    assert DrivingRecipe.of(NAME, "training").warmup_epochs == 0
    with pytest.raises(OffprintError, match="choose of semantic, pose"):
        DrivingRecipe(pseudo=("lane",))


def test_trains_by_stages_evaluates_and_draws(tmp_path, scenes):
    first = contract.train(
        NAME,
        scenes,
        tmp_path / "a",
        stage="curriculum",
        recipe={"epochs": 1},
        model_options=SMALL,
        progress=False,
        logger="none",
    )
    assert set(first["losses"]) == {"loss", "tagging", "detection", "instance", "drivable", "lane"}
    before = contract.load_run(tmp_path / "a").model.state_dict()
    contract.train(
        tmp_path / "a", scenes, tmp_path / "b", stage="finetuning", recipe={"epochs": 1}, progress=False, logger="none"
    )
    ready = contract.load_run(tmp_path / "b")
    moved = {n.split(".")[0] for n, v in ready.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"tags", "pixels", "instances", "flow"}  # the backbone and the pyramid stand still, their norms too
    figures = ready.evaluate(scenes)
    assert {"tagging_weather", "semantic", "drivable", "lane", "detection", "mot_assa", "flow"} <= set(figures)
    assert all(0 <= v <= 100 for v in figures.values())
    for i, frame in enumerate(scenes.val):
        Image.fromarray(frame.file).save(tmp_path / f"{i}.png")
    found = ready.predict([tmp_path / "0.png", tmp_path / "1.png"], video=True)
    found.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "0_drawn.png",
        "0_semantic.png",
        "1_lane.png",
        "frames.json",
    }
    rows = json.loads((tmp_path / "out/frames.json").read_text())
    assert rows[0]["name"] == "0.png" and {"weather", "scene"} == set(rows[0]["attributes"])
    assert "flow" in found.maps[0] and "flow" not in found.maps[1]
