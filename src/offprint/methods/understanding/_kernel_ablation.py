"""The guidelines as an ablation on one's own data: one small network, trained alike but for its kernels, branches and shortcuts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from offprint.errors import OffprintError
from offprint.files import atomic_write
from offprint.methods.understanding._receptive_field import effective_receptive_field

MODEL = "replknet_13"
TRUNK: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192)}
SMALL = 5  # side of the kernel beside the large one
RECIPE: dict[str, Any] = {  # that of a small network on small data, in place of the paper's 300 epochs on ImageNet
    "lr": 2e-3, "reference_batch": 0, "batch_size": 64, "warmup_epochs": 1, "mixup": 0.0, "cutmix": 0.0, "auto_augment": "",
    "random_erasing": 0.0, "ema_decay": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip


def _arms(kernels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Name → arguments of the network: each kernel size by the guidelines, and the largest without the one and the other of them."""
    rows: dict[str, dict[str, Any]] = {}
    for k in kernels:
        rows[f"{k}x{k}"] = {"kernel_sizes": (k,) * 4, "small_kernel": SMALL if k > SMALL else None}
    last = max(kernels)
    wide = {"kernel_sizes": (last,) * 4}
    if last > SMALL:
        rows[f"{last}x{last}, no small kernel beside"] = {**wide, "small_kernel": None}
    rows[f"{last}x{last}, no shortcut"] = {**rows[f"{last}x{last}"], "shortcut": False}
    return rows


ABLATION = _arms((3, 7, 13))


def ablate(
    data: Any,
    out: str | Path,
    *,
    kernels: Sequence[int] = (3, 7, 13),
    seeds: Sequence[int] = (0,),
    epochs: int = 10,
    size: int = 64,
    trunk: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a small RepLKNet with each kernel size, and the largest without the small kernel beside it and without the shortcut.

    Every arm is an ordinary run in a folder of its own below ``out``, so that an interrupted ablation goes on where it was, and
    each trained network can be used. ``out/ablation.json`` holds the figures.

    Args:
        data: pictures with classes, as :func:`offprint.train` takes them.
        out: folder of the runs.
        kernels: odd sides.
        seeds: runs of each arm.
        epochs, size: of each run; the pictures' side in pixels.
        trunk: ``depths`` and ``dims`` of the network.
        recipe: fields of the recipe that differ.
        options: choices about the data.
        say: called with what begins.
        **settings: see :class:`~offprint.tasks.settings.Run`.

    Returns:
        ``rows``: for each arm its mean validation ``accuracy`` (%), each seed's, the share of the picture that half of the effective
        receptive field takes (``erf``, of the first seed, ``None`` where no square holds half), ``parameters`` and multiply-adds.

    Raises:
        OffprintError: a kernel that has no middle, or an arm that cannot be trained on these data.
    """
    from offprint.models.info import model_info
    from offprint.tasks.contract import load_run, train

    kernels = list(dict.fromkeys(int(k) for k in kernels))
    if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
        raise OffprintError(f"kernels {kernels}: give odd sides, such as 3, 7, 13, so that each kernel has a middle")
    if not seeds:
        raise OffprintError("seeds is empty; give at least one")
    out, rows = Path(out), []
    for name, form in _arms(kernels).items():
        scores, erf, last = [], None, None
        for seed in seeds:
            if say:
                say(f"{name}, seed {seed}")
            folder = out / name.replace(", ", "_").replace(" ", "-") / f"seed-{seed}"
            done = train(
                MODEL, data, folder, recipe={**RECIPE, "epochs": epochs, "input_size": size, **(recipe or {})}, options=options,
                model_options={**TRUNK, **(trunk or {}), **form}, seed=seed, **settings,
            )  # fmt: skip
            scores.append(float(done["accuracy"]))
            if last is None:
                last = load_run(folder)
                erf = _area(last, data, size, options)
        model = last.model  # type: ignore[union-attr]
        cost = model_info(model, (model.in_chans, size, size))
        rows.append(
            {"arm": name, "accuracy": statistics.fmean(scores), "scores": scores, "erf": erf,
             "parameters": cost["parameters"], "macs": cost["macs"]}
        )  # fmt: skip
    result = {"data": str(data), "epochs": epochs, "input_size": size, "seeds": list(seeds), "rows": rows}
    atomic_write(out / "ablation.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def _area(ready, data: Any, size: int, options: Mapping[str, Any] | None, count: int = 8) -> float | None:
    """Share of the picture that half of a trained network's effective receptive field takes, on the first validation pictures."""
    splits, transform = ready.task.open(data, **(options or {})), ready.task.transform(ready)
    images = []
    for i in range(min(count, len(splits.val))):
        image = splits.val[i][0]
        images.append(image if isinstance(image, torch.Tensor) else transform(image))
    found = effective_receptive_field(ready.model, images, thresholds=(0.5,))
    return found.areas[0.5].ratio if found.areas[0.5] else None  # type: ignore[union-attr]
