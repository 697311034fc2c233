"""Pictures with opinion scores: a folder and a table of what people said, with references where there are some; distorted samples."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offprint.data.photos import photographs, set5
from offprint.data.reading import read_picture
from offprint.data.tables import FILE_COLUMNS, KINDS, Table
from offprint.errors import DataError, unknown

SCORE_COLUMNS = ("mos", "score", "dmos", "quality", "mos_zscore", "rating", "opinion", "label")
REFERENCE_COLUMNS = ("reference", "ref", "ref_name", "ref_img", "reference_image", "original")
LEVELS = 5


def picture_tensor(source: Any) -> Tensor:
    """A path, a PIL picture, an (H, W, 3) array or a (3, H, W) tensor as (3, H, W) floats in [0, 1].

    Bytes are divided by 255.

    Raises:
        DataError: another number of channels, or floats that do not lie in [0, 1].
    """
    if isinstance(source, str | Path):
        source = read_picture(source)
    if isinstance(source, Image.Image):
        from offprint.data.reading import rgb

        source = np.array(rgb(source)[0])
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3:
            raise DataError(f"expected a picture (H, W, 3), got an array {source.shape}")
        source = torch.from_numpy(np.ascontiguousarray(source)).permute(2, 0, 1)
    if source.ndim != 3 or source.shape[0] != 3:
        raise DataError(f"expected a picture (3, H, W), got {tuple(source.shape)}")
    if source.dtype == torch.uint8:
        return source.float() / 255
    low, high = float(source.min()), float(source.max())
    if not (math.isfinite(low) and math.isfinite(high)) or low < -0.1 or high > 1.1:
        raise DataError(
            f"a picture of floats lies between {low:.3g} and {high:.3g}; expected 0 to 1: divide by 255, or give uint8"
        )
    return source


@dataclass
class Opinion:
    """One picture that people rated.

    Attributes:
        name: of the picture.
        read: gives it as (3, H, W) in [0, 1].
        score: what they said on average.
        reference: gives the picture it is a copy of, where there is one.
        group: pictures of one group (copies of one reference) stay in one part.
        counts: how many said 1, 2, ... K, where that is known.
    """

    name: str
    read: Callable[[], Tensor]
    score: float
    reference: Callable[[], Tensor] | None = None
    group: str = ""
    counts: tuple[float, ...] = ()


@dataclass
class Opinions:
    """Rated pictures to learn from and to be judged by.

    Attributes:
        train, val: the pictures.
        low, high: scores that stand for 0 and 1.
        name: where they come from.
        notes: what was left out.
    """

    train: list[Opinion]
    val: list[Opinion]
    low: float
    high: float
    name: str
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        lines = [f"{o.name}\t{o.score!r}" for o in (*self.train, Opinion("", Tensor, 0.0), *self.val)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# -- distortions -----------------------------------------------------------------------------------------------------
def blur(image: Tensor, level: int) -> Tensor:
    """Gaussian blur of standard deviation 0.5 * 1.7^(level - 1) pixels."""
    sigma = 0.5 * 1.7 ** (level - 1)
    reach = max(1, math.ceil(3 * sigma))
    line = torch.exp(-(torch.arange(-reach, reach + 1, dtype=image.dtype) ** 2) / (2 * sigma**2))
    line = (line / line.sum()).view(1, 1, -1)
    x = F.pad(image[:, None], (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(x, line[..., None, :]), line[..., None])[:, 0]


def noise(image: Tensor, level: int) -> Tensor:
    """Gaussian noise of standard deviation 0.012 * 1.9^(level - 1), the same for the same picture and level."""
    seed = int(hashlib.sha256(np.ascontiguousarray(image[:, ::7, ::7].numpy()).tobytes()).hexdigest()[:8], 16)
    generator = torch.Generator().manual_seed(seed + level)
    return (image + 0.012 * 1.9 ** (level - 1) * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def jpeg(image: Tensor, level: int) -> Tensor:
    """A JPEG file of quality 60, 30, 16, 9 or 5 and back."""
    stream = io.BytesIO()
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(stream, "JPEG", quality=(60, 30, 16, 9, 5)[level - 1])
    return torch.from_numpy(np.array(Image.open(stream).convert("RGB"))).permute(2, 0, 1).float() / 255


DISTORTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"blur": blur, "noise": noise, "jpeg": jpeg}


def distorted(pictures: Mapping[str, Tensor], held_out: Sequence[str]) -> Opinions:
    """Real photographs, each as it is and with every distortion at five levels; the score is 1 minus a fifth of the level.

    These are no opinions of people: the score says the order of levels and nothing else.

    Args:
        pictures: name → (3, H, W) uint8.
        held_out: names whose copies are kept for validation.
    """
    parts: tuple[list[Opinion], list[Opinion]] = ([], [])
    for name, stored in pictures.items():
        clean = stored.float() / 255
        rows = [Opinion(f"{name} as it is", lambda c=clean: c, 1.0, lambda c=clean: c, name)]
        for kind, change in DISTORTIONS.items():
            for level in range(1, LEVELS + 1):
                made = change(clean, level)
                rows.append(
                    Opinion(f"{name} {kind} {level}", lambda m=made: m, 1 - level / LEVELS, lambda c=clean: c, name)
                )
        parts[name in held_out].extend(rows)
    return Opinions(parts[0], parts[1], 0.0, 1.0, "distorted photographs")


# -- folders ---------------------------------------------------------------------------------------------------------
def _column(table: Table, wanted: str, known: Sequence[str], what: str, needed: bool = True) -> str:
    if wanted:
        if wanted not in table.columns:
            raise unknown(f"column of {table.path}", wanted, table.columns)
        return wanted
    lower = {name.lower(): name for name in table.columns}
    found = next((lower[name] for name in known if name in lower), "")
    if needed and not found:
        raise DataError(
            f"{table.path} has no column of {what} ({', '.join(known)}); it has {', '.join(table.columns)}: name one"
        )
    return found


def _number(table: Table, row: int, column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{table.path}, row {row + 1}: {column} is {value!r}, not a number")
    return number


def open_opinions(
    source: str | Path,
    *,
    table: str = "",
    image: str = "",
    score: str = "",
    reference: str = "",
    references: str = "",
    split: str = "split",
    low: float | None = None,
    high: float | None = None,
    lower_is_better: bool = False,
    val_fraction: float = 0.2,
    seed: int = 0,
    on_error: str = "stop",
) -> Opinions:
    """Open rated pictures.

    Args:
        source: a folder of pictures with one table in it, a table (paths are from its folder on), or ``sample:distortions``.
        table: the table, where the folder has several or none.
        image, score, reference: names of the columns; default the first known name. Columns ``1`` to ``K`` (or ``count_1`` ...) are
            how many people gave each score.
        references: folder of the references; default that of the pictures.
        split: column that says ``train`` or ``val``/``test``; without it a share of the groups is held out.
        low, high: scores that stand for 0 and 1; default the lowest and highest of the table.
        lower_is_better: the scores are differences (DMOS), and are turned round.
        val_fraction: share held out; copies of one reference stay together.
        seed: of that split.
        on_error: a picture that is not there: stop or skip.

    Raises:
        DataError: no table, no such column, a score that is no number (row named), pictures that are not there (named).
    """
    if str(source) == "sample:distortions":
        both = {**set5(), **photographs()}
        return distorted(both, [*list(set5())[:1], *list(photographs())[:1]])
    if str(source).startswith("sample:"):
        raise DataError(f"{source}: the bundled rated pictures are sample:distortions")
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error={on_error!r}; choose 'stop' or 'skip'")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction={val_fraction}; the share held out must lie between 0 and 1")
    path = Path(source)
    if path.is_dir():
        tables = [p for p in sorted(path.iterdir()) if p.suffix.lower() in KINDS] if not table else [Path(table)]
        if len(tables) != 1:
            said = ", ".join(p.name for p in tables) or "none"
            raise DataError(
                f"{path} must hold one table of scores ({', '.join(KINDS)}), it holds {said}; give --table FILE"
            )
        rows, folder = Table(tables[0]), path
    else:
        rows = Table(path)
        folder = rows.path.parent
    return _read(
        rows,
        folder,
        (image, score, reference),
        references,
        split,
        (low, high),
        lower_is_better,
        val_fraction,
        seed,
        on_error,
    )


def _read(table, folder, names, references, split, ends, lower_is_better, val_fraction, seed, on_error) -> Opinions:
    image, reference = (
        _column(table, names[0], FILE_COLUMNS + ("image_name", "dist_img", "name"), "pictures"),
        _column(table, names[2], REFERENCE_COLUMNS, "references", False),
    )
    counts = _count_columns(table)
    score = _column(table, names[1], SCORE_COLUMNS, "scores", not counts)
    parts_column = split if split in table.columns else ""
    home = Path(references) if references else folder
    rated: list[Opinion] = []
    part_of: list[str] = []
    absent: list[str] = []
    for i in range(len(table)):
        row = table[i]
        file = folder / str(row[image])
        other = home / str(row[reference]) if reference and str(row[reference]).strip() else None
        gone = [str(p) for p in (file, other) if p is not None and not p.is_file()]
        if gone:
            absent += gone
            continue
        votes = tuple(_number(table, i, c, row[c]) for c in counts)
        if votes and sum(votes) <= 0:
            raise DataError(f"{table.path}, row {i + 1}: nobody gave any score")
        value = (
            _number(table, i, score, row[score])
            if score
            else sum((k + 1) * v for k, v in enumerate(votes)) / sum(votes)
        )
        rated.append(
            Opinion(
                str(row[image]),
                lambda f=file: picture_tensor(f),
                -value if lower_is_better else value,
                None if other is None else (lambda f=other: picture_tensor(f)),
                str(other or file),
                votes,
            )  # fmt: skip
        )
        part_of.append(str(row[parts_column]).strip().lower() if parts_column else "")
    if absent and on_error == "stop":
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise DataError(
            f"{table.path} names pictures that are not there: {', '.join(absent[:5])}{more}; pass on_error='skip' to leave them out"
        )
    if len({o.group for o in rated}) < 2:
        raise DataError(
            f"{table.path} rates {len(rated)} pictures that are there; at least two of different content are needed"
        )
    if parts_column:
        held = [p in ("val", "valid", "validation", "test") for p in part_of]
    else:
        groups = sorted({o.group for o in rated})
        order = np.random.default_rng(seed).permutation(len(groups))
        out = {groups[i] for i in order[: min(len(groups) - 1, max(1, round(val_fraction * len(groups))))]}
        held = [o.group in out for o in rated]
    train, val = ([o for o, h in zip(rated, held, strict=True) if h is part] for part in (False, True))
    if not train or not val:
        raise DataError(
            f"{table.path}: {len(train)} pictures to train on and {len(val)} to validate on; both are needed"
        )
    sign = -1 if lower_is_better else 1
    given = sorted(sign * e for e in ends if e is not None)
    scores = [o.score for o in train]
    low, high = given if len(given) == 2 else (min(scores), max(scores))
    if not low < high:
        raise DataError(f"{table.path}: all scores are {low}; there is nothing to learn")
    notes = [f"{len(absent)} pictures of the table are not there"] if absent else []
    return Opinions(train, val, low, high, str(table.path), notes)


def _count_columns(table: Table) -> list[str]:
    """The columns ``1`` to ``K`` or ``count_1`` to ``count_K``."""
    for form in ("{}", "count_{}", "score_{}"):
        found = []
        while form.format(len(found) + 1) in table.columns:
            found.append(form.format(len(found) + 1))
        if len(found) > 1:
            return found
    return []
