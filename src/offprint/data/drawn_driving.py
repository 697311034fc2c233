"""Drawn driving scenes: no photographs, and no sample of BDD100K. A road, two lane lines, coloured cars that move, a figure of five joints.

All labels exist by construction, in BDD100K's classes; of every training video only some are kept, as in a data set of partial labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from offprint.data.driving import JOINTS, LABELS, SCENES, SEMANTIC, WEATHERS, DrivingFrames, Frame, lane_bytes
from offprint.errors import DataError

SKIES = {"clear": (120, 180, 235), "overcast": (170, 170, 175), "rainy": (85, 90, 105)}
GROUNDS = {
    "highway": ("vegetation", (70, 130, 60)),
    "city street": ("building", (150, 110, 95)),
    "residential": ("fence", (190, 165, 120)),
}
CARS = ((200, 40, 40), (40, 60, 190), (235, 200, 60), (235, 235, 235))
FIVE = ("head", "right_hand", "left_hand", "right_foot", "left_foot")
YELLOW, WHITE = 8, 7  # categories of the lane lines from 1: single yellow, single white


def drawn(
    videos: int = 120, held: int = 24, frames: int = 2, keep: int = 3, size: tuple[int, int] = (96, 160), seed: int = 0
) -> DrivingFrames:
    """Short videos of drawn scenes.

    Args:
        videos, held: to learn from, and to be judged by.
        frames: of each.
        keep: tasks whose labels a training video keeps, of ten; held-out frames keep all.
        size: (height, width), 64 by 96 at least.
        seed: everything follows from it.
    """
    if min(size[0] - 63, size[1] - 95, frames, videos, held, keep) < 1 or keep > len(LABELS):
        raise DataError(
            f"videos={videos}, held={held}, frames={frames}, keep={keep}, size={size}; give 1 or more, 10 tasks and 64 x 96 pixels"
        )
    draw = np.random.default_rng(seed)
    parts = []
    for part, count in (("train", videos), ("val", held)):
        rows = []
        for i in range(count):
            scene = video(draw, frames, size, f"{part}-{i:04d}")
            kept = draw.choice(len(LABELS), keep, replace=False) if part == "train" else range(len(LABELS))
            rows += [frame.only([LABELS[k] for k in kept]) for frame in scene]
        parts.append(tuple(rows))
    note = f"the scenes are drawn here, not photographed; a training video keeps the labels of {keep} of {len(LABELS)} tasks"
    return DrivingFrames(*parts, "sample:driving", True, (note,))


def video(draw: np.random.Generator, frames: int, size: tuple[int, int], name: str) -> list[Frame]:
    """The frames of one scene, fully labelled."""
    height, width = size
    weather, scene = (str(draw.choice(list(k))) for k in (SKIES, GROUNDS))
    horizon, centre = int(height * draw.uniform(0.3, 0.4)), width * draw.uniform(0.45, 0.55)
    objects: list[dict[str, Any]] = []
    for key in range(int(draw.integers(2, 4))):
        tall = int(draw.integers(height // 7, height // 4))
        objects.append({
            "id": key, "kind": "car", "colour": CARS[int(draw.integers(len(CARS)))], "size": (int(tall * 1.5), tall),
            "at": (int(draw.uniform(0.1, 0.8) * width), int(draw.uniform(horizon + 2, height - tall - 2))),
            "shift": (int(draw.integers(-4, 5)), int(draw.integers(-1, 2))),
        })  # fmt: skip
    tall = int(draw.integers(height // 4, height // 3))
    objects.append({
        "id": 9, "kind": "pedestrian", "colour": (30, 25, 30), "size": (tall // 2, tall), "spread": draw.uniform(0.2, 0.5, 4).tolist(),
        "at": (int(draw.uniform(0.05, 0.85) * width), int(draw.uniform(horizon - 4, height - tall - 2))), "shift": (int(draw.integers(-2, 3)), 0),
    })  # fmt: skip
    noise = draw.normal(0, 6, (height, width, 3))
    return [_frame(objects, t, size, horizon, centre, weather, scene, noise, name) for t in range(frames)]


def _frame(objects, t, size, horizon, centre, weather, scene, noise, name) -> Frame:
    height, width = size
    ground, colour = GROUNDS[scene]
    picture = Image.new("RGB", (width, height), SKIES[weather])
    semantic = Image.new("L", (width, height), SEMANTIC.index("sky"))
    drivable, category, style = (Image.new("L", (width, height), v) for v in (2, 0, 0))
    pen, marks, area, lane, dash = (ImageDraw.Draw(i) for i in (picture, semantic, drivable, category, style))
    for d, c in ((pen, colour), (marks, SEMANTIC.index(ground))):
        d.rectangle((0, horizon, width, height), fill=c)

    def reach(side: float, y: float) -> float:
        return centre + side * width * (0.04 + 0.42 * (y - horizon) / (height - horizon))

    def shape(a: float, b: float) -> list[tuple[float, float]]:
        return [(reach(s, y), y) for s, y in ((a, horizon), (b, horizon), (b, height), (a, height))]

    pen.polygon(shape(-1, 1), fill=(95, 95, 100))
    marks.polygon(shape(-1, 1), fill=SEMANTIC.index("road"))
    area.polygon(shape(-0.4, 0.4), fill=0)
    area.polygon(shape(0.4, 1), fill=1)
    for s, kind, tint, dashed in ((-0.4, YELLOW, (240, 200, 40), False), (0.4, WHITE, (245, 245, 245), True)):
        ends = np.linspace(horizon + 2, height, 9)
        for a, b in list(zip(ends[:-1], ends[1:], strict=True))[:: 2 if dashed else 1]:
            line = [(reach(s, a), a), (reach(s, b), b)]
            pen.line(line, fill=tint, width=3)
            lane.line(line, fill=kind, width=3)
            dash.line(line, fill=2 if dashed else 1, width=3)
    if weather == "rainy":
        for x in range(0, width, 9):
            pen.line([(x, 0), (x - 4, horizon)], fill=(120, 125, 140))
    rows = []
    held = np.full((height, width), -1, np.int64)
    for o in sorted(objects, key=lambda o: o["at"][1] + o["size"][1]):  # the nearer hides the farther
        x, y = (a + t * s for a, s in zip(o["at"], o["shift"], strict=True))
        own = Image.new("L", (width, height), 0)
        nodes = _draw(o, x, y, pen, ImageDraw.Draw(own))
        mask = np.array(own) > 0
        held[mask] = o["id"]
        rows.append((o, nodes))
    plain = np.array(semantic)
    labels, poses = [], []
    for o, nodes in rows:
        mask = held == o["id"]
        if mask.sum() < 12:
            continue
        plain[mask] = SEMANTIC.index("car" if o["kind"] == "car" else "person")
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = {"x1": float(xs[0]), "y1": float(ys[0]), "x2": float(xs[-1] + 1), "y2": float(ys[-1] + 1)}
        counts = np.diff(np.flatnonzero(np.diff(np.concatenate([[-1], mask.T.ravel().astype(int), [-1]])))).tolist()
        counts = counts if not mask.T.ravel()[0] else [0, *counts]
        labels.append(
            {
                "id": str(o["id"] + 1),
                "category": o["kind"],
                "box2d": box,
                "rle": {"size": [height, width], "counts": counts},
            }
        )
        if nodes:
            poses.append({"category": o["kind"], "box2d": box, "graph": {"nodes": nodes}})
    found = {
        "tagging": {"weather": weather, "scene": scene}, "detection": labels, "instance": labels, "mot": labels, "mots": labels, "flow": True,
        "pose": poses, "semantic": plain, "drivable": np.where(held >= 0, 2, np.array(drivable)).astype(np.uint8),
        "lane": lane_bytes(*(np.where(held >= 0, 0, np.array(m)).astype(np.int64) for m in (category, category.point(bool), style))),
    }  # fmt: skip
    pixels = (np.array(picture) + noise).clip(0, 255).astype(np.uint8)
    assert scene in SCENES and weather in WEATHERS and set(found) == set(LABELS)
    return Frame(pixels, f"{name}-{t:02d}", found, name, t)


def _draw(
    o: dict[str, Any], x: int, y: int, pen: ImageDraw.ImageDraw, own: ImageDraw.ImageDraw
) -> list[dict[str, Any]]:
    """A car (a box with a window), or a figure, whose joints are told."""
    w, h = o["size"]
    if o["kind"] == "car":
        for d, c in ((pen, o["colour"]), (own, 255)):
            d.rectangle((x, y, x + w, y + h), fill=c)
        pen.rectangle((x + w // 5, y + h // 6, x + w - w // 5, y + h // 2), fill=(25, 35, 45))
        return []
    middle, hips = x + w / 2, y + 0.6 * h
    ends = {
        "head": (middle, y + 0.12 * h), "right_hand": (middle - o["spread"][0] * w, y + 0.5 * h), "left_hand": (middle + o["spread"][1] * w, y + 0.5 * h),
        "right_foot": (middle - o["spread"][2] * w, y + h - 1), "left_foot": (middle + o["spread"][3] * w, y + h - 1),
    }  # fmt: skip
    for d, c, skin in ((pen, o["colour"], (225, 180, 150)), (own, 255, 255)):
        d.line([(middle, y + 0.2 * h), (middle, hips)], fill=c, width=4)
        for hand in ("right_hand", "left_hand"):
            d.line([(middle, y + 0.28 * h), ends[hand]], fill=c, width=2)
        for foot in ("right_foot", "left_foot"):
            d.line([(middle, hips), ends[foot]], fill=c, width=3)
        r = 0.13 * h
        d.ellipse((middle - r, y, middle + r, y + 2 * r), fill=skin)
    assert set(ends) == set(FIVE) <= set(JOINTS)
    return [{"category": k, "location": list(v), "visibility": "V"} for k, v in ends.items()]
