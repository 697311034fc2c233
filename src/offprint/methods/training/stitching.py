"""Stitching two trained transformers into one network of many costs (SN-Net v2, arXiv 2307.00154): join, train, measure every way.

:func:`stitch` goes from two models and data to a run that describes itself and a table of accuracy against cost; the network itself is
:mod:`offprint.models.backbones.sn_net_v2`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offprint.errors import OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.backbones.deit3 import DeiT3
from offprint.models.backbones.sn_net_v2 import SNNet, SNNetV2, _Stitched
from offprint.models.checkpoint import save_weights
from offprint.tasks import contract
from offprint.tasks.classification import ImageClassification, evaluate_classifier
from offprint.tasks.folder import is_run
from offprint.tasks.pictures import with_validation
from offprint.tasks.results import Result, canvas, finish
from offprint.tasks.settings import Run

VERSIONS = {1: "snnetv1", 2: "snnetv2"}
START, TABLE, CURVE = "start.safetensors", "stitches.json", "stitches.png"
_COLOURS = {"anchors": "#222222", "sl": "#3b6ea5", "ls": "#b5532a", "lsl": "#5a8f5a", "sls": "#8a5aa5"}
_WORDS = {
    "anchors": "anchors alone",
    "sl": "small → large",
    "ls": "large → small",
    "lsl": "large → small → large",
    "sls": "small → large → small",
}


@dataclass
class StitchCurve(Result):
    """Accuracy and cost of stitches: rows of ``stitch``, ``kind``, ``gmacs``, ``top1`` (%), and the way; cheapest first."""

    def best(self, gmacs: float) -> dict[str, Any]:
        """The most accurate stitch of at most so many billion multiply-adds."""
        fitting = [row for row in self.rows if row["gmacs"] <= gmacs]
        if not fitting:
            raise OffprintError(
                f"no stitch costs at most {gmacs} billion multiply-adds; the cheapest has {self.rows[0]['gmacs']:.4g}"
            )
        return max(fitting, key=lambda row: row["top1"])

    def front(self) -> list[dict[str, Any]]:
        """The stitches that no cheaper one equals in accuracy."""
        out: list[dict[str, Any]] = []
        for row in sorted(self.rows, key=lambda r: (r["gmacs"], -r["top1"])):
            if not out or row["top1"] > out[-1]["top1"]:
                out.append(row)
        return out

    def draw(self, path: str | Path) -> Path:
        """Accuracy over cost, a colour for each kind of way, a line through the best of each cost."""
        figure, axes = canvas(7, 4.5)
        for kind, colour in _COLOURS.items():
            rows = [r for r in self.rows if r["kind"] == kind]
            if rows:
                size = 70 if kind == "anchors" else 18
                axes.scatter(
                    [r["gmacs"] for r in rows], [r["top1"] for r in rows], size, colour, label=_WORDS[kind], zorder=3
                )
        front = self.front()
        axes.plot([r["gmacs"] for r in front], [r["top1"] for r in front], color="#999999", lw=1)
        axes.set(xlabel="multiply-adds (10⁹)", ylabel="top-1 accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        return finish(figure, path)


def measure(
    model: _Stitched,
    splits: Any,
    transform: Any,
    *,
    stitches: list[int] | None = None,
    batch_size: int = 64,
    progress: Callable[..., None] | None = None,
) -> StitchCurve:
    """Top-1 accuracy of stitches on the validation part.

    Args:
        model: in any mode; it comes back with the stitch it had.
        splits, transform: pictures, and how they are evaluated.
        stitches: ids; by default all that are in use.
    """
    held, rows = model.stitch, []
    wanted = set(model.stitches.used if stitches is None else stitches)
    model.eval()
    table = [row for row in model.table() if row["stitch"] in wanted]
    if progress:
        progress(total=len(table))
    for row in table:
        model.set_stitch(row["stitch"])
        found = evaluate_classifier(model, splits, transform, batch_size=batch_size)
        rows.append({**row, "top1": found["top1"]})
        if progress:
            progress(text=f"stitch {row['stitch']}: {found['top1']:.1f} % at {row['gmacs']:.3g} G")
    model.set_stitch(held)
    return StitchCurve(rows)


def stitch(
    small: Any,
    large: Any,
    data: Any,
    out: str | Path = "runs/stitch",
    *,
    pretrained: bool | str = False,
    version: int = 2,
    lora_r: int = 64,
    images: int = 100,
    recipe: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    evaluate: str = "all",
    say: Callable[[str], None] | None = None,
    progress: Callable[..., None] | None = None,
    run: Run | None = None,
) -> tuple[contract.Trained, StitchCurve]:
    """Join two trained transformers, train all stitches together, and measure each.

    Args:
        small, large: folders of runs, or names of models with ``pretrained``; the smaller one first.
        data: what classification opens: a folder of class folders, a name, ``sample:...``.
        out: folder of the run; ``stitches.json`` and ``stitches.png`` are written beside the weights. The same call goes on where an
            interrupted one ended.
        pretrained: released weights for models that are given by name.
        version: 2 (both ways, low-rank stitches), or 1 (small to large, whole weights).
        lora_r: rank of the change of a stitch that is trained (version 2); it is lowered to the smaller width where that is less.
        images: training pictures on which the stitches start by least squares.
        recipe: fields that differ from the paper's.
        options: the choices of classification about the data.
        evaluate: ``"all"`` stitches in use, or ``"front"``: one of each group of like cost.
        run: see :class:`~offprint.tasks.settings.Run`. On several devices give ``strategy="ddp_find_unused_parameters_true"``: a step
            trains one way only.

    Returns:
        The finished run, and the curve of accuracy against cost.

    Raises:
        OffprintError: models that do not fit together; said before any training.
    """
    if version not in VERSIONS:
        raise unknown("version", str(version), [str(v) for v in VERSIONS])
    if evaluate not in ("all", "front"):
        raise unknown("evaluate", evaluate, ("all", "front"))
    out, run, say = Path(out), run or Run(), say or (lambda text: None)
    ready = [_anchor(where, pretrained) for where in (small, large)]
    task = ready[0].task
    assert isinstance(task, ImageClassification)
    splits = task.open(data, seed=run.seed, **dict(options or {}))
    for r, where in zip(ready, (small, large), strict=True):
        held = r.about.get("classes")
        if r.folder is not None and held is not None and list(held) != list(splits.classes):
            raise OffprintError(
                f"{where} was trained on {len(held)} classes ({', '.join(map(str, held[:4]))}, ...), the data have {len(splits.classes)} "
                f"({', '.join(map(str, splits.classes[:4]))}, ...); stitch models of the same data"
            )
    anchors = [r.model for r in ready]
    rank = min(lora_r, *(a.num_features for a in anchors))
    arguments: dict[str, Any] = {"lora_r": rank} if version == 2 else {}
    build = SNNetV2 if version == 2 else SNNet
    model = build(anchors, num_classes=len(splits.classes), in_chans=anchors[0].in_chans, **arguments)
    spec = model.spec_of_anchors()
    start = out / START
    if not (run.resume and start.is_file()):
        batch = _pictures(splits, task.transform(ready[1]), images)
        count = model.fit_stitches(batch, progress)
        save_weights(model, start)
        say(f"{count} stitches start by least squares on {len(batch)} pictures")
    side = spec[0]["img_size"][0]
    fields = {"input_size": side, **dict(recipe or {})}
    done = contract.train(
        VERSIONS[version], data, out, task="classification", recipe=fields, options=dict(options or {}),
        model_options={"anchors": spec, "in_chans": model.in_chans, **arguments}, checkpoint=str(start), say=say, run=run,
    )  # fmt: skip
    trained = done.load()
    model = trained.model
    wanted = list(model.stitches.used) if evaluate == "all" else [group[len(group) // 2] for group in model.groups()]
    if (curve := _measured(out / TABLE, wanted, done.figures)) is None:
        task = trained.task
        assert isinstance(task, ImageClassification)
        curve = measure(
            model, _as_in_run(task, splits, trained), task.transform(trained), stitches=wanted, progress=progress
        )
        if done.leader:
            told = {
                "weights_are": done.figures.get("weights_are"),
                "epochs": done.figures.get("epochs"),
                "stitches": curve.rows,
            }
            atomic_write(out / TABLE, json.dumps(told, indent=1) + "\n")
            curve.draw(out / CURVE)
    return done, curve


def _anchor(where: Any, pretrained: bool | str) -> contract.Ready:
    """A transformer with weights, and what is known of it."""
    ready = contract.find(where, False if is_run(str(where)) else pretrained)
    if not isinstance(ready.model, DeiT3):
        from offprint.models.backbones.deit3 import VARIANTS

        raise OffprintError(
            f"{where} is a {type(ready.model).__name__}; plain transformers can be stitched: {', '.join(VARIANTS)}, and runs of them"
        )
    return ready


def _pictures(splits: Any, transform: Any, images: int) -> torch.Tensor:
    """Training pictures at even steps through the set."""
    from offprint.data.images import Subset

    count = min(images, len(splits.train))
    chosen = [i * len(splits.train) // count for i in range(count)]
    part = Subset(splits.train, chosen, transform)
    return torch.stack([part[i][0] for i in range(count)])


def _as_in_run(task: ImageClassification, splits: Any, ready: contract.Ready) -> Any:
    assert ready.folder is not None
    kept = ready.folder / "validation.txt"
    return with_validation(splits, kept.read_text(encoding="utf-8").splitlines()) if kept.is_file() else splits


def _measured(file: Path, wanted: list[int], figures: Mapping[str, Any]) -> StitchCurve | None:
    """The curve of an earlier call on these very weights, if it holds all that is wanted."""
    if not file.is_file():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    if told.get("epochs") != figures.get("epochs") or told.get("weights_are") != figures.get("weights_are"):
        return None
    rows = [row for row in told["stitches"] if row["stitch"] in set(wanted)]
    return StitchCurve(rows) if len(rows) == len(set(wanted)) else None
