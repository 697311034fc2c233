"""What a driving network says of frames: drawn on them all at once, written in BDD100K's formats."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from offprint.data.boxes import encode
from offprint.data.driving import CLASSES, JOINTS, lane_bytes
from offprint.errors import OffprintError
from offprint.files import atomic_write
from offprint.tasks.results import Result

COLOURS = np.array([
    (128, 64, 128), (244, 35, 232), (120, 80, 60), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0), (60, 150, 60),
    (152, 251, 152), (70, 130, 220), (220, 20, 60), (255, 0, 0), (0, 0, 200), (0, 0, 110), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
], np.float32)  # of the semantic classes  # fmt: skip
AREA = {0: (60, 220, 90), 1: (70, 160, 255)}
LINE, JOINT, ARROW = (255, 235, 60), (255, 90, 200), (255, 255, 255)
SHOWN = 0.3  # score from which on an object is drawn


def painted(picture: np.ndarray, said: Mapping[str, Any]) -> Image.Image:
    """A frame (H, W, 3) uint8 with everything that is said of it: areas tinted, lanes, masks, boxes with names and tracks, joints, arrows of the flow, tags."""
    canvas = picture.astype(np.float32)
    if "semantic" in said:
        canvas = 0.7 * canvas + 0.3 * COLOURS[np.minimum(said["semantic"], 18)]
    if "drivable" in said:
        for kind, colour in AREA.items():
            canvas[said["drivable"] == kind] = 0.6 * canvas[said["drivable"] == kind] + 0.4 * np.array(colour)
    if "lane_category" in said:
        canvas[said["lane_category"] > 0] = LINE
    shown = [i for i, o in enumerate(said.get("objects", ())) if o["score"] >= SHOWN]
    colours = {
        i: tuple(int(v) for v in COLOURS[(7 * (o["track"] if o.get("track", -1) >= 0 else i) + 11) % 19])
        for i, o in enumerate(said.get("objects", ()))
    }
    for i in shown if "masks" in said else ():
        inside = said["masks"][i]
        canvas[inside] = 0.5 * canvas[inside] + 0.5 * np.array(colours[i])
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for i in shown:
        o = said["objects"][i]
        pen.rectangle(o["box"], outline=colours[i], width=max(1, image.height // 360))
        track = f" #{o['track']}" if o.get("track", -1) >= 0 else ""
        pen.text((o["box"][0] + 1, max(0, o["box"][1] - 11)), f"{o['class']}{track} {o['score']:.2f}", fill=colours[i])
        r = max(1, image.height // 200)
        for x, y, _ in o.get("joints", {}).values():
            pen.ellipse((x - r, y - r, x + r, y + r), fill=JOINT)
    if "flow" in said:
        step = max(8, image.height // 12)
        for y in range(step // 2, image.height, step):
            for x in range(step // 2, image.width, step):
                dx, dy = (float(v) for v in said["flow"][:, y, x])
                if dx * dx + dy * dy > 0.25:
                    pen.line((x, y, x + dx, y + dy), fill=ARROW)
    tags = ", ".join(said[k] for k in ("weather", "scene") if k in said)
    if tags:
        pen.text((3, 2), tags, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return image


@dataclass
class Drives(Result):
    """Frames and all that was found in them. Each row: ``image``, ``weather``, ``scene`` with their probabilities, ``objects`` (``class``, ``score``, ``box``,
    ``track``, ``joints``).

    Attributes:
        pictures: the frames (H, W, 3) uint8.
        maps: of each ``semantic``, ``drivable``, lanes (H, W), ``masks`` (N, H, W), ``flow`` (2, H, W), as the model has them.
    """

    pictures: list[np.ndarray] = field(default_factory=list)
    maps: list[dict[str, np.ndarray]] = field(default_factory=list)

    def flat(self) -> list[dict[str, Any]]:
        return [
            {**{k: v for k, v in r.items() if k != "objects"}, "objects": len(r.get("objects", ()))} for r in self.rows
        ]

    def labels(self) -> list[dict[str, Any]]:
        """The frames as BDD100K's label files hold them, with scores."""
        out = []
        for place, (row, maps) in enumerate(zip(self.rows, self.maps, strict=True)):
            found = []
            for i, o in enumerate(row.get("objects", ())):
                one = {"id": str(o.get("track", i)), "category": o["class"], "score": o["score"],
                       "box2d": dict(zip(("x1", "y1", "x2", "y2"), o["box"], strict=True))}  # fmt: skip
                if "masks" in maps:
                    one["rle"] = encode(maps["masks"][i])
                if "joints" in o:
                    one["graph"] = {
                        "nodes": [
                            {"category": k, "location": [x, y], "score": s} for k, (x, y, s) in o["joints"].items()
                        ]
                    }
                found.append(one)
            tags = {k: row[k] for k in ("weather", "scene") if k in row}
            out.append({"name": Path(row["image"]).name, "frameIndex": place, "attributes": tags, "labels": found})
        return out

    def save(self, path: str | Path) -> Path:
        """Write ``.json`` (BDD100K's labels), ``.csv``, ``.tsv``; to a folder ``frames.json`` and of each frame ``NAME_drawn.png`` and its masks
        (``NAME_semantic.png``, ``_drivable``, ``_lane`` in BDD100K's codes); one frame to a ``.png``."""
        path, kind = Path(path), Path(path).suffix.lower()
        if kind == ".json":
            return atomic_write(path, json.dumps(self.labels(), indent=1) + "\n")
        if kind in (".csv", ".tsv"):
            return super().save(path)
        if kind == ".png" and len(self.rows) == 1:
            return _write(path, self.drawn(0))
        if kind:
            raise OffprintError(
                f"{path}: frames are written to a folder, one frame to a .png, lists to .json (BDD100K), .csv or .tsv"
            )
        names: dict[str, int] = {}
        for i, (row, maps) in enumerate(zip(self.rows, self.maps, strict=True)):
            stem = Path(row["image"]).stem
            names[stem] = names.get(stem, 0) + 1
            name = stem if names[stem] == 1 else f"{stem}_{names[stem]}"
            row["file"] = str(_write(path / f"{name}_drawn.png", self.drawn(i)))
            for kind in ("semantic", "drivable"):
                if kind in maps:
                    _write(path / f"{name}_{kind}.png", Image.fromarray(maps[kind].astype(np.uint8)))
            if "lane_category" in maps:
                lanes = lane_bytes(*(maps[f"lane_{k}"].astype(np.int64) for k in ("category", "direction", "style")))
                _write(path / f"{name}_lane.png", Image.fromarray(lanes))
        atomic_write(path / "frames.json", json.dumps(self.labels(), indent=1) + "\n")
        return path

    def drawn(self, index: int) -> Image.Image:
        """One frame with everything on it."""
        return painted(self.pictures[index], {**self.rows[index], **self.maps[index]})

    def draw(self, path: str | Path) -> Path:
        """The first frames below one another."""
        shown = [self.drawn(i) for i in range(min(6, len(self.rows)))]
        sheet = Image.new("RGB", (max(i.width for i in shown), sum(i.height for i in shown)))
        top = 0
        for image in shown:
            sheet.paste(image, (0, top))
            top += image.height
        return _write(Path(path), sheet)


def _write(path: Path, image: Image.Image) -> Path:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return atomic_write(path, buffer.getvalue())


def objects_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Boxes, scores, labels, tracks and joints as rows."""
    rows = []
    for i, (box, score, label) in enumerate(
        zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    ):
        row: dict[str, Any] = {"class": CLASSES[label - 1], "score": score, "box": box}
        if "tracks" in found:
            row["track"] = int(found["tracks"][i])
        if "keypoints" in found and label == 1:
            row["joints"] = {name: tuple(p) for name, p in zip(JOINTS, found["keypoints"][i].tolist(), strict=True)}
        rows.append(row)
    return rows
