"""Parcellated time series of brain scans: files and arrays in, standardised series and labels out; and simulated scans.

A scan is an array of frames x regions, as nilearn's maskers return it. Nothing here needs nilearn.
"""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offprint.errors import DataError, OffprintError, unknown
from offprint.files import fetched

SUFFIXES = (".npy", ".npz", ".csv", ".tsv")
ID_COLUMNS = ("subject", "participant_id", "subject_id", "id", "sub")
EMPTY = ("", "n/a", "na", "nan", "none", "null")
SIMULATED = "SIMULATED"
_MOST_NOTES = 8  # regions that are told one by one


class SeriesWarning(UserWarning):
    """Something of the series says nothing."""


@dataclass(frozen=True)
class Scans:
    """Series of several subjects.

    Attributes:
        ids: one name per scan.
        series: float32 arrays (T, N), standardised over time per region; T may differ, N does not.
        about: what the source says of itself; simulated data say so here.
        regions: their names, where a table has a line of them.
        notes: what reading found worth saying, one sentence each.
    """

    ids: tuple[str, ...]
    series: tuple[np.ndarray, ...]
    about: str = ""
    regions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.series)

    @property
    def num_regions(self) -> int:
        return self.series[0].shape[1]

    @property
    def shortest(self) -> int:
        """Frames of the shortest scan."""
        return min(len(x) for x in self.series)

    def take(self, index: Sequence[int]) -> Scans:
        """Some of the scans."""
        ids, series = (tuple(values[i] for i in index) for values in (self.ids, self.series))
        return Scans(ids, series, self.about, self.regions)


def open_series(source: Any, *, window: int = 0, standardize: bool = True) -> Scans:
    """Read scans.

    Args:
        source: a folder with one ``.npy``, ``.csv`` or ``.tsv`` file (frames x regions) per subject, whose names are the ids;
            one such file; an ``.npy`` of subjects x frames x regions; an ``.npz`` with ``series`` (and ``ids``), or with
            one array per subject; an array of two or three axes; a list of arrays; a mapping of ids to arrays.
        window: frames a scan must exceed, 0 for no demand.
        standardize: subtract each region's mean over time and divide by its deviation; a constant region becomes 0.

    Warns:
        SeriesWarning: regions that are constant in a scan, which tell nothing; also in ``notes``.

    Raises:
        DataError: no such file, an unreadable one, region counts that differ, a scan that is too short, a value missing.
    """
    about, regions, again = "", (), isinstance(source, Scans)
    if isinstance(source, Scans):
        found, about, regions = dict(zip(source.ids, source.series, strict=True)), source.about, source.regions
    elif isinstance(source, str | Path):
        path = fetched(source, "the series")
        found, about = _read(path)
        regions = _region_names(path)
    elif isinstance(source, Mapping):
        found = {str(k): v for k, v in source.items()}
    elif isinstance(source, Sequence):
        found = {_number(i, len(source)): x for i, x in enumerate(source)}
    else:
        found = _split(_array(source, "the array"), "the array")
    if not found:
        raise DataError("no scans were given")
    scans = {name: _array(x, name) for name, x in found.items()}
    check_series(scans, window, regions)
    notes = source.notes if again else _constant(scans, regions, standardize)
    for note in () if again else notes:
        warnings.warn(note, SeriesWarning, stacklevel=2)
    made = tuple(standardise(x) if standardize else x.astype(np.float32) for x in scans.values())
    return Scans(tuple(scans), made, about, regions, notes)


def _region(number: int, regions: Sequence[str]) -> str:
    """What a region is called: its number from 0, and its name where there is one."""
    return f"region {number}" + (f" ({regions[number]})" if number < len(regions) else "")


def _constant(scans: Mapping[str, np.ndarray], regions: Sequence[str], standardize: bool) -> tuple[str, ...]:
    """A sentence for each region that does not change in some scans."""
    where: dict[int, list[str]] = {}
    for name, x in scans.items():
        for number in np.flatnonzero(x.max(0) == x.min(0)).tolist():
            where.setdefault(number, []).append(name)
    then = "it becomes 0 there and tells nothing" if standardize else "it tells nothing there"
    notes = [
        f"{_region(number, regions)} is constant in {len(names)} of {len(scans)} scans ({', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}); {then}: does the parcellation reach beyond the scan?"
        for number, names in sorted(where.items())
    ]
    rest = len(notes) - _MOST_NOTES
    return (*notes[:_MOST_NOTES], f"{rest} more regions are constant in some scans") if rest > 0 else tuple(notes)


def check_series(scans: Mapping[str, np.ndarray], window: int = 0, names: Sequence[str] = ()) -> None:
    """Refuse scans that cannot be used together, naming the subject and what is wrong with it; ``names`` are those of the regions."""
    first, regions = "", 0
    for name, x in scans.items():
        if x.ndim != 2 or 0 in x.shape:
            raise DataError(f"{name}: expected frames x regions, got an array of shape {x.shape}")
        if not first:
            first, regions = name, x.shape[1]
        if x.shape[1] != regions:
            raise DataError(
                f"{name} has {x.shape[1]} regions, {first} has {regions}; all scans must come from one parcellation"
                + (" (it looks transposed: a scan is frames x regions)" if x.shape[0] == regions else "")
            )
        if not np.isfinite(x).all():
            wrong = ~np.isfinite(x)
            frame, region = np.argwhere(wrong)[0]
            raise DataError(
                f"{name}: frame {frame}, {_region(int(region), names)} is {x[frame, region]}; {wrong.sum():,} of its {wrong.size:,} values are "
                f"not finite ({np.isnan(x).sum():,} NaN), in {wrong.any(1).sum():,} of {len(x):,} frames and {wrong.any(0).sum():,} of "
                f"{x.shape[1]:,} regions; interpolate or drop such frames first"
            )
        if window and len(x) <= window:
            raise DataError(
                f"{name} has {len(x)} frames, a window of {window} needs at least {window + 1}; "
                "leave it out or choose a smaller window (a scan is frames x regions: is it transposed?)"
            )


def standardise(series: np.ndarray) -> np.ndarray:
    """Each region (column) to mean 0 and deviation 1 over time, float32; a constant region to 0."""
    x = np.asarray(series, dtype=np.float64)
    std = x.std(0)
    std[(x.max(0) == x.min(0)) | (std == 0)] = np.inf
    return ((x - x.mean(0)) / std).astype(np.float32)


def _number(i: int, count: int) -> str:
    return f"{i:0{len(str(max(count - 1, 1)))}d}"


def _array(x: Any, name: str) -> np.ndarray:
    x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if x.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected numbers, got an array of {x.dtype}")
    return x


def _split(x: np.ndarray, name: str) -> dict[str, np.ndarray]:
    if x.ndim == 2:
        return {"0": x}
    if x.ndim != 3:
        raise DataError(f"{name}: expected subjects x frames x regions, or frames x regions; got shape {x.shape}")
    return {_number(i, len(x)): x[i] for i in range(len(x))}


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects, which could run code when read; save plain arrays, "
                "one per subject, in an .npz"
            ) from error
        raise DataError(f"{path} is damaged or not a NumPy file: {error}") from error


def _read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Scans by id, and what the source says of itself."""
    if path.is_dir():
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1 and not any(path.glob("*.npy")):
            return _read(archives[0])
        files = sorted(f for f in path.iterdir() if f.suffix in (".npy", ".csv", ".tsv") and not _is_labels(f))
        if not files:
            raise DataError(f"{path} holds no .npy, .csv or .tsv file; expected one (frames x regions) per subject")
        stems = [f.stem for f in files]
        twice = sorted({s for s in stems if stems.count(s) > 1})
        if twice:
            raise DataError(f"{path} holds several files of subject {twice[0]}; keep one per subject")
        return {f.stem: _table(f) if f.suffix != ".npy" else _load(f) for f in files}, ""
    if not path.is_file():
        raise DataError(
            f"no file or folder at {str(path)!r}; give time series as {', '.join(SUFFIXES)}, or a folder of them"
        )
    if path.suffix == ".npy":
        x = _load(path)
        return ({path.stem: x} if x.ndim == 2 else _split(x, str(path))), ""
    if path.suffix == ".npz":
        return _archive(path)
    if path.suffix in (".csv", ".tsv"):
        return {path.stem: _table(path)}, ""
    raise DataError(f"{path}: expected {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r}")


def _archive(path: Path) -> tuple[dict[str, np.ndarray], str]:
    with _load(path) as file:
        try:
            held = {name: file[name] for name in file.files}
        except ValueError as error:
            raise DataError(
                f"{path} holds Python objects, which could run code when read; save plain arrays"
            ) from error
    about = str(held.pop("about", ""))
    if "series" not in held:
        return held, about
    series, ids = held["series"], held.get("ids")
    scans = _split(series, str(path))
    if ids is not None:
        if len(set(ids.tolist())) != len(scans):
            raise DataError(f"{path}: {len(scans)} scans, {len(set(ids.tolist()))} different ids; expected one each")
        scans = {str(i): x for i, x in zip(ids.tolist(), scans.values(), strict=True)}
    return scans, about


def _region_names(path: Path) -> tuple[str, ...]:
    """The line of region names of a text table, or of the first of a folder; nothing where there is none."""
    if path.is_dir():
        path = next((f for f in sorted(path.iterdir()) if f.suffix in (".csv", ".tsv") and not _is_labels(f)), path)
    if not path.is_file() or path.suffix not in (".csv", ".tsv"):
        return ()
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        first = next((row for row in csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",") if row), [])
    return () if any(_is_number(cell) for cell in first) else tuple(cell.strip() for cell in first)


def _is_labels(path: Path) -> bool:
    return path.name.startswith(".") or re.search(r"(^|_)(participants|labels)$", path.stem) is not None


def _table(path: Path) -> np.ndarray:
    """A text table of frames x regions, with or without a line of region names."""
    sign = "\t" if path.suffix == ".tsv" else ","
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}") from error
    rows = [(i, line.split(sign)) for i, line in enumerate(lines, 1) if line.strip()]
    if rows and not any(_is_number(c) for c in rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path} is empty; expected one line per frame, one column per region")
    width = len(rows[0][1])
    for number, cells in rows:
        if len(cells) != width:
            raise DataError(f"{path}, line {number}: {len(cells)} columns, the first line of numbers has {width}")
        for column, cell in enumerate(cells, 1):
            if not _is_number(cell):
                raise DataError(
                    f"{path}, line {number}, column {column}: expected a number, got {cell.strip()!r} "
                    "(a table of labels is called labels.csv, participants.tsv or ..._labels.csv, or lies elsewhere)"
                )
    return np.array([[float(c) for c in cells] for _, cells in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Labels:
    """What is to be predicted, one value per scan.

    Attributes:
        values: class indices (int64) or numbers (float64).
        classes: the labels as written, in order of their index; empty for numbers.
        name: the column.
    """

    values: np.ndarray
    classes: tuple[str, ...]
    name: str


KINDS = ("auto", "classification", "regression")


def read_labels(
    path: str | Path, target: str, ids: Sequence[str], *, kind: str = "auto", missing: str = "stop"
) -> tuple[Labels, list[int]]:
    """Labels of scans from a CSV or TSV table.

    The column of ids is ``subject``, ``participant_id``, ``subject_id``, ``id`` or ``sub``, else the first. A scan is found
    by its id, or by the ``sub-...`` part that a BIDS file name starts with.

    Args:
        path: the table, with a line of column names.
        target: the column to predict.
        ids: of the scans.
        kind: ``classification``, ``regression``, or ``auto``: words, and whole numbers of at most ten values, are classes.
        missing: scans without a label: ``stop``, or ``skip`` them.

    Returns:
        The labels, and the indices of the scans that have one.

    Raises:
        DataError: no such column, a subject twice with different values, scans without a label, one class only, not a number.
    """  # fmt: skip
    for name, value, known in (
        ("kind of target", kind, KINDS),
        ("choice for missing labels", missing, ("stop", "skip")),
    ):
        if value not in known:
            raise unknown(name, value, known)
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"no table of labels at {str(path)!r}; give a CSV with a column of subjects and one of {target!r}"
        )
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))
    if not rows:
        raise DataError(f"{path} is empty; expected a line of column names and a line per subject")
    head = [c.strip() for c in rows[0]]
    if target not in head:
        raise DataError(str(unknown(f"column of {path}", target, head)))
    key = next((head.index(c) for c in ID_COLUMNS if c in head), 0)
    given: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(c.strip() for c in row):
            continue
        if len(row) != len(head):
            raise DataError(f"{path}, line {number}: {len(row)} columns, the first line names {len(head)}")
        name, value = row[key].strip(), row[head.index(target)].strip()
        if given.setdefault(name, value) != value:
            raise DataError(
                f"{path}, line {number}: subject {name} has {target} {value!r}, before that {given[name]!r}"
            )
    found = [given.get(i, given.get(_bids(i), "")) for i in ids]
    having = [i for i, value in enumerate(found) if value.lower() not in EMPTY]
    if len(having) < len(ids) and (missing == "stop" or not having):
        without = [ids[i] for i in range(len(ids)) if i not in set(having)]
        raise DataError(
            f"{path}: {len(without)} of {len(ids)} scans have no {target} (first: {', '.join(without[:3])}; "
            f"subjects there: {', '.join(list(given)[:3])}); add them, or skip those scans"
        )
    return make_labels([found[i] for i in having], target, kind), having


def make_labels(values: Sequence[Any], name: str = "label", kind: str = "auto") -> Labels:
    """Values as written, one per scan, to :class:`Labels`; see :func:`read_labels`."""
    words = [str(v).strip() for v in values]
    wrong = next((w for w in words if not _is_number(w) or not math.isfinite(float(w))), None)
    distinct = set(words)
    if kind == "auto":
        whole = wrong is None and all(float(w).is_integer() for w in distinct) and len(distinct) <= 10
        kind = "classification" if wrong is not None or whole else "regression"
    if kind == "regression":
        if wrong is not None:
            raise DataError(f"{name} is to be a number, but {wrong!r} is there; for classes choose classification")
        numbers = np.array([float(w) for w in words])
        if len(set(numbers)) < 2:
            raise DataError(f"{name} is {words[0]} for every scan; there is nothing to learn")
        return Labels(numbers, (), name)
    if len(distinct) < 2:
        raise DataError(f"{name} is {words[0]!r} for every scan; classification needs at least two classes")
    classes = tuple(sorted(distinct, key=float) if wrong is None else sorted(distinct))
    return Labels(np.array([classes.index(w) for w in words]), classes, name)


def _bids(name: str) -> str:
    hit = re.match(r"sub-[A-Za-z0-9]+", name)
    return hit.group(0) if hit else name


def split_scans(
    labels: Labels | None, count: int, folds: int = 5, fold: int = 0, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Indices for training and for testing: fold ``fold`` of ``folds``, with every class spread evenly over the folds.

    Raises:
        DataError: fewer scans than folds, or a class that the training part would lack.
    """  # fmt: skip
    if not 2 <= folds <= count or not 0 <= fold < folds:
        raise DataError(f"{count} scans cannot be split into {folds} folds (fold {fold}); give 2 to {count}")
    draw = np.random.default_rng(seed)
    groups = [np.arange(count)] if labels is None or not labels.classes else [
        np.flatnonzero(labels.values == c) for c in range(len(labels.classes))
    ]  # fmt: skip
    order = np.concatenate([draw.permutation(g) for g in groups])  # class after class, dealt out like cards
    test = sorted(order[fold::folds].tolist())
    train = sorted(set(range(count)) - set(test))
    if labels is not None and labels.classes:
        for c, name in enumerate(labels.classes):
            if not (labels.values[train] == c).any():
                raise DataError(
                    f"{labels.name} {name!r} has {int((labels.values == c).sum())} scan, which is held out for testing; "
                    "every class needs at least two scans"
                )
    return train, test


@dataclass(frozen=True)
class Simulated:
    """Simulated scans: ``series`` (S, T, N) float32, ``classes`` (S,) 0 or 1, ``coupling`` (S,), ``states`` (S, T) 0 or 1."""

    series: np.ndarray
    classes: np.ndarray
    coupling: np.ndarray
    states: np.ndarray
    about: str


def simulate_scans(
    subjects: int = 200,
    regions: int = 24,
    frames: int = 200,
    *,
    networks: int = 4,
    coupling: tuple[float, float] = (0.2, 0.6),
    spread: float = 0.1,
    stay: float = 0.96,
    noise: float = 1.0,
    variability: float = 0.4,
    seed: int = 0,
) -> Simulated:
    r"""SIMULATED scans from a stated model, no measurement: a covariance that switches between two states.

    Regions belong to ``networks`` networks in state 0, in order, and to as many others in state 1, interleaved. A hidden
    Markov chain stays in its state with probability ``stay``. Frame t of a scan in state k is

    .. math:: x_t = \sum_j w_{k} z_{jt} + \text{noise} \cdot e_t, \quad z_t \sim N(0, R_k), \; e_t \sim N(0, I),

    with a subject's own loadings w (1 + ``variability`` times a standard normal) and R_0 = I. In R_1 networks 0 and 1 correlate
    by the subject's coupling, drawn around ``coupling[class]`` with deviation ``spread``: that, seen in one state only, is all
    that tells the classes apart. Classes alternate. A scan depends on ``seed`` and its number alone.

    Raises:
        OffprintError: a size or a share that makes no scan.
    """
    if subjects < 1 or frames < 2 or not 2 <= networks <= regions // 2:
        raise OffprintError(
            f"subjects={subjects}, frames={frames}, networks={networks}, regions={regions}: expected at least one subject, "
            "2 frames, 2 networks, and 2 regions per network"
        )
    if not 0 <= stay <= 1 or spread < 0 or noise < 0 or not all(-1 < c < 1 for c in coupling):
        raise OffprintError(
            f"stay={stay}, spread={spread}, noise={noise}, coupling={coupling}: a share and a deviation out of range"
        )
    member = np.stack([np.arange(regions) * networks // regions, np.arange(regions) % networks])
    series = np.empty((subjects, frames, regions), np.float32)
    classes = np.arange(subjects) % 2
    strength, states = np.empty(subjects), np.empty((subjects, frames), np.int64)
    for s in range(subjects):
        draw = np.random.default_rng((seed, s))
        strength[s] = np.clip(coupling[classes[s]] + spread * draw.standard_normal(), -0.95, 0.95)
        states[s] = (draw.integers(2) + np.cumsum(draw.random(frames) > stay)) % 2
        loading = 1 + variability * draw.standard_normal((2, regions))
        z = draw.standard_normal((frames, networks))
        mixed = z.copy()
        mixed[:, 1] = strength[s] * z[:, 0] + np.sqrt(1 - strength[s] ** 2) * z[:, 1]
        state = states[s][:, None]
        shared = np.where(state == 0, z[:, member[0]] * loading[0], mixed[:, member[1]] * loading[1])
        series[s] = shared + noise * draw.standard_normal((frames, regions))
    about = (
        f"{SIMULATED}, not measured: two-state switching covariance, networks 0 and 1 of state 1 couple by {coupling[0]:g} or "
        f"{coupling[1]:g} according to the class (seed {seed})"
    )
    return Simulated(series, classes, strength, states, about)


def write_simulated(made: Simulated, folder: str | Path) -> tuple[Path, Path]:
    """Write ``simulated_scans.npz`` and ``simulated_labels.csv`` (subject, class, coupling, source); both say what they are."""
    import io

    from offprint.files import atomic_write

    folder, count = Path(folder), len(made.series)
    ids = [f"sim-{_number(i, count)}" for i in range(count)]
    archive, table = io.BytesIO(), io.StringIO()
    np.savez(archive, series=made.series, ids=np.array(ids), about=np.array(made.about))
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["subject", "class", "coupling", "source"])
    for i, name in enumerate(ids):
        writer.writerow([name, "ab"[made.classes[i]], f"{made.coupling[i]:.6f}", "simulated"])
    return (
        atomic_write(folder / "simulated_scans.npz", archive.getvalue()),
        atomic_write(folder / "simulated_labels.csv", table.getvalue()),
    )
