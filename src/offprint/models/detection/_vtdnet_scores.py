"""VTDNet's tasks as a table, the loss of partly labelled batches, and the score of a whole network (VTDA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from offprint.errors import DataError, OffprintError, unknown

TASKS = ("tagging", "detection", "pose", "drivable", "lane", "semantic", "instance", "flow", "mot", "mots")
PIXEL_TASKS = ("semantic", "drivable", "lane")
INSTANCE_TASKS = ("detection", "instance", "pose", "mot", "mots")
FULL_TASKS = ("tagging", "detection", "instance", "drivable", "lane")  # the curriculum begins with these
GROUPS: dict[str, tuple[str, ...]] = {  # of scores; tracking counts in two of them
    "classification": ("tagging_weather", "tagging_scene"),
    "segmentation": ("semantic", "drivable", "lane"),
    "localization": ("detection", "instance", "pose", "mot_ap", "mots_ap"),
    "association": ("mot_assa", "mots_assa", "flow"),
}


class TaskLoss(NamedTuple):
    """``total`` (), and ``tasks`` (T,) before their weights."""

    total: Tensor
    tasks: Tensor


def partial_label_loss(
    losses: Tensor, labelled: Tensor, pseudo: Tensor | None = None, weights: Tensor | None = None
) -> TaskLoss:
    """Of each task the mean over the images that carry a label or a pseudo-label of it, 0 where none does; their weighted sum.

    The mean over all images instead would weigh a task by how rarely it is labelled.

    Args:
        losses: (B, T) of each image and task; what stands at an image without a label counts nothing, whatever it is.
        labelled, pseudo: (B, T) bool.
        weights: (T,), default ones.

    Raises:
        DataError: shapes that differ.
    """
    known = labelled if pseudo is None else labelled | pseudo
    if losses.shape != known.shape:
        raise DataError(
            f"losses {tuple(losses.shape)} and labels {tuple(known.shape)}; give one of each per image and task"
        )
    each = losses.masked_fill(~known, 0).sum(0) / known.sum(0).clamp(min=1)
    return TaskLoss((each if weights is None else each * weights).sum(), each)


class Score(NamedTuple):
    """``total`` is the VTDA; ``groups`` its parts; ``sigma`` and ``scale`` of each score."""

    total: float
    groups: dict[str, float]
    sigma: dict[str, float]
    scale: dict[str, float]


def vtda(
    scores: Mapping[str, float],
    baselines: Mapping[str, Sequence[float]],
    groups: Mapping[str, Sequence[str]] = GROUPS,
) -> Score:
    r"""Video task decathlon accuracy: group means weighted by how far single-task networks differ, summed over the groups.

    .. math:: s_t = 1 / \lceil 2 \sigma_t \rceil, \qquad VTDA = \sum_g \frac{\sum_{t \in g} s_t m_t}{\sum_{t \in g} s_t}

    :math:`\sigma_t` is the population standard deviation of a score over single-task networks of several backbones; where it is zero the
    ceiling counts as 1.

    Args:
        scores: name → 0 to 100.
        baselines: the same names → that score of each single-task network.
        groups: group → names.

    Raises:
        OffprintError: a score that is not there, lies outside 0 to 100, or has no baselines.
    """
    sigma, scale, found = {}, {}, {}
    for group, names in groups.items():
        if not names:
            raise OffprintError(f"the group {group} has no scores; leave it out")
        for name in names:
            if name not in scores:
                raise unknown("score", name, scores)
            if name not in baselines or not len(baselines[name]):
                raise OffprintError(f"{name} has no baselines; give its score for one single-task network or more")
            if not 0 <= float(scores[name]) <= 100:
                raise OffprintError(f"{name}={scores[name]}; scores lie between 0 and 100")
            values = [float(v) for v in baselines[name]]
            mean = math.fsum(values) / len(values)
            sigma[name] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
            scale[name] = 1 / max(1, math.ceil(2 * sigma[name]))
        found[group] = math.fsum(scale[n] * float(scores[n]) for n in names) / math.fsum(scale[n] for n in names)
    return Score(math.fsum(found.values()), found, sigma, scale)


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Tasks in their usual order.

    Raises:
        OffprintError: one that is not among the ten, or none.
    """
    for name in tasks:
        if name not in TASKS:
            raise unknown("driving task", name, TASKS)
    if not tasks:
        raise OffprintError(f"no task was given; choose of {', '.join(TASKS)}")
    return tuple(t for t in TASKS if t in tasks)


def label_table(rows: Sequence[set[str]], device: torch.device | str = "cpu") -> Tensor:
    """(B, 10) bool: which tasks the labels of each image are of."""
    return torch.tensor([[t in row for t in TASKS] for row in rows], device=device).reshape(-1, len(TASKS))
