"""One's own graph, in the forms that people have: arrays, tables, networkx, torch_geometric's files; and the one door, :func:`open_graph`.

What is looked for in each is said by :data:`WAYS`, which the errors quote.
"""

from __future__ import annotations

import csv
import pickle
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprint.data.graphs import NPZ, PLANETOID, check_graph, load_graph, normalize_features, read_npz
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import fetched, scheme

WAYS = {
    ".npz": "edge_index (2, E) or edges (E, 2); x or features (n, F); y or labels (n,); train_mask, val_mask, test_mask (n,), or "
    "train, val, test as node numbers; or the arrays of Shchur et al. (adj_indices, attr_data, labels, ...)",
    ".pt": "a mapping of tensors with the names of .npz, or torch_geometric's Data, saved by torch.save",
    "tables": "a folder (or its edges.csv) with edges.csv of two columns of node names; features.csv of a node and its numbers; "
    "labels.csv of a node, its label and, if there is one, a column 'split' of train, val or test",
    "networkx": "a networkx graph whose nodes have the attributes x (numbers), y or label, and split",
    "name": "Cora, CiteSeer (bundled), PubMed, Amazon_Photo, ..., or Class/name of torch_geometric.datasets",
}
_X, _Y, _PARTS = ("x", "features", "feat"), ("y", "labels", "label"), ("train", "val", "test")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


def open_graph(
    source: Any,
    *,
    root: str | Path | None = None,
    normalize: bool = False,
    undirected: bool = False,
    directed: bool = False,
):
    """A graph from wherever it is.

    Args:
        source: a name that :func:`~offprint.data.graphs.load_graph` knows; a path or an address in one of the :data:`WAYS`; a networkx graph;
            or a ``torch_geometric.data.Data``, which is checked and copied.
        root: where named graphs lie; default ``OFFPRINT_DATA``.
        normalize: make each row of features sum to one.
        undirected: add the opposite of every edge of an archive or a ``Data``.
        directed: keep the edges of a table as they point; otherwise they are taken both ways, as models here expect. A networkx
            ``DiGraph`` is kept as it is.

    Returns:
        ``torch_geometric.data.Data`` with ``x``, ``edge_index``, and where the source has them ``y``, ``train_mask``, ``val_mask``,
        ``test_mask``; of tables and networkx also ``nodes`` (the names, in order) and ``classes`` (what each label is called).

    Raises:
        DataError: nothing there, or arrays, columns or nodes that are missing or do not fit; the message says what is looked for.
    """
    graph = _opened(source, root, directed)
    check_graph(graph)
    if normalize:
        graph.x = normalize_features(graph.x)
    if undirected:
        from torch_geometric.transforms import ToUndirected

        graph = ToUndirected()(graph)
    return graph


def _opened(source: Any, root, directed: bool):
    if not isinstance(source, str | Path):
        if hasattr(source, "edge_index"):
            return source.clone()
        if hasattr(source, "adj") and hasattr(source, "nodes"):
            return from_networkx(source)
        raise DataError(
            f"a graph was expected, a {type(source).__name__} was given; give a path, a name, a networkx graph or a Data"
        )
    text = str(source)
    suffix = Path(text).suffix.lower()
    if scheme(text) or suffix in (".npz", ".pt", ".pth", ".csv", ".tsv") or Path(text).is_dir() and not _named(text):
        path = fetched(source, "the graph")
        if not path.exists():
            raise DataError(f"there is no graph at {str(path)!r}")
        if path.is_dir() or path.suffix.lower() in (".csv", ".tsv"):
            return read_tables(path, directed=directed)
        if path.suffix.lower() == ".npz":
            return read_arrays(path)
        if path.suffix.lower() in (".pt", ".pth"):
            return read_pt(path)
        raise DataError(f"{path} is in no form that is read here; these are: {', '.join(list(WAYS)[:3])}")
    try:
        return load_graph(text, root)
    except DataError:
        raise
    except OffprintError as error:
        raise DataError(
            f"{error}. Or one's own graph: {'; '.join(f'{k}: {v}' for k, v in list(WAYS.items())[:3])}"
        ) from error


def _named(text: str) -> bool:
    """Whether a word is a graph's name although a folder is called so, too."""
    return text.lower().replace("-", "_") in (*PLANETOID, *NPZ)


# -- arrays --------------------------------------------------------------------------------------------------------------
def read_arrays(path: str | Path):
    """A graph of an ``.npz`` archive (:data:`WAYS` says which arrays), as it is stored; Shchur's archives as ``read_npz`` reads them."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            if any(n.startswith("adj") for n in names):
                return read_npz(path)
            arrays = {name: archive[name] for name in names}
    except FileNotFoundError:
        raise DataError(f"there is no graph at {str(path)!r}") from None
    except DataError:
        raise
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{path} is not a graph archive that can be read: {error}") from error
    return _assembled(arrays, str(path), ".npz")


def read_pt(path: str | Path):
    """A graph that ``torch.save`` wrote: tensors under the names in :data:`WAYS`, or a ``Data``. Nothing in the file is executed."""
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    try:
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors and would run code when opened; it was not read. Save a mapping of tensors: {WAYS['.pt']}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged or no file of torch.save: {str(error).splitlines()[0]}") from error
    if isinstance(found, tuple | list) and found:  # torch_geometric's processed sets: (data, slices)
        slices = found[1] if len(found) > 1 and isinstance(found[1], Mapping) else {}
        if any(len(cut) > 2 for cut in slices.values() if hasattr(cut, "__len__")):
            raise DataError(f"{path} holds several graphs; save the one you mean")
        found = found[0]
    if isinstance(found, Data):
        found = found.to_dict()
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}; looked for: {WAYS['.pt']}")
    arrays = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    return _assembled(arrays, str(path), ".pt")


def _assembled(arrays: Mapping[str, Any], where: str, way: str):
    """A ``Data`` of arrays or tensors under the known names."""
    from torch_geometric.data import Data

    def first(*names: str) -> Tensor | None:
        name = next((n for n in names if n in arrays), None)
        return None if name is None else torch.as_tensor(arrays[name])

    def lacks(what: str) -> DataError:
        return DataError(
            f"{where} has no {what}; it holds {', '.join(list(arrays)[:8]) or 'nothing'}. Looked for: {WAYS[way]}"
        )

    edges, x, y = first("edge_index"), first(*_X), first(*_Y)
    if edges is None and (pairs := first("edges")) is not None:
        edges = pairs.t() if pairs.ndim == 2 else pairs
    if edges is None:
        raise lacks("edges")
    if x is None:
        raise lacks("features")
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.is_floating_point() or edges.dtype == torch.bool:
        raise DataError(f"{where}: edges are whole numbers (2, E), {tuple(edges.shape)} of {edges.dtype} were given")
    if x.ndim != 2:
        raise DataError(f"{where}: features are (n, F), {tuple(x.shape)} was given")
    graph = Data(x=x.float(), edge_index=edges.long().contiguous())
    if y is not None:
        y = y.flatten() if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim != 1 or y.is_floating_point() and bool((y != y.round()).any()):
            raise DataError(f"{where}: labels are whole numbers (n,), {tuple(y.shape)} of {y.dtype} was given")
        graph.y = y.long()
    for part in _PARTS:
        mask = first(f"{part}_mask", part)
        if mask is None:
            continue
        if mask.dtype != torch.bool and mask.shape[:1] == x.shape[:1] and bool(((mask == 0) | (mask == 1)).all()):
            mask = mask.bool()
        if mask.dtype != torch.bool:
            index = mask.long()
            if len(index) and not (0 <= int(index.min()) and int(index.max()) < len(x)):
                raise DataError(
                    f"{where}: {part} names node {int(index.max())}, and there are {len(x)}, numbered from 0"
                )
            mask = torch.zeros(len(x), dtype=torch.bool).index_fill_(0, index, True)
        if len(mask) != len(x):
            raise DataError(f"{where}: {part}_mask is of {len(mask)} nodes, and there are {len(x)}")
        graph[f"{part}_mask"] = mask
    return graph


# -- tables --------------------------------------------------------------------------------------------------------------
def read_tables(path: str | Path, *, directed: bool = False):
    """A graph of CSV (or TSV) files: ``edges``, ``features``, and where there are labels ``labels``, in one folder.

    Args:
        path: the folder, or its table of edges, beside which the others lie.
        directed: keep the edges as they point.
    """
    path = Path(path)
    folder, edges = (path, _table_of(path, "edges")) if path.is_dir() else (path.parent, path)
    features, labels = _table_of(folder, "features"), _table_of(folder, "labels")
    if edges is None or features is None:
        missing = " and ".join(f"{n}.csv" for n, p in (("edges", edges), ("features", features)) if p is None)
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise DataError(f"{folder} has no {missing}; it holds {held}. Looked for: {WAYS['tables']}")
    rows = _read(features)
    header = not all(_is_number(v) for v in rows[0][1][1:])
    nodes, values = _features(features, rows[header:])
    number = {name: i for i, name in enumerate(nodes)}
    pairs = _edges(edges, number)
    names, split = ({}, {}) if labels is None else _labels(labels, number)
    return _built(nodes, values, pairs, names, split, both=not directed)


def _table_of(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{end}" for end in (".csv", ".tsv") if (folder / f"{name}{end}").is_file()), None)


def _read(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of a table, empty lines left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows = [(reader.line_num, [v.strip() for v in row]) for row in reader if any(v.strip() for v in row)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _features(path: Path, rows) -> tuple[list[str], np.ndarray]:
    if not rows or len(rows[0][1]) < 2:
        raise DataError(f"{path}: a line is a node's name and its features, separated by commas")
    width, names, values = len(rows[0][1]), [], []
    for line, row in rows:
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} fields, expected {width}")
        try:
            values.append([float(v) for v in row[1:]])
        except ValueError:
            wrong = next(v for v in row[1:] if not _is_number(v))
            raise DataError(f"{path}, line {line}: the feature {wrong!r} is not a number") from None
        names.append(row[0])
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in set(names[:i]))
        raise DataError(f"{path}: node {twice!r} is there twice")
    return names, np.array(values, dtype=np.float32)


def _edges(path: Path, number: Mapping[str, int]) -> np.ndarray:
    rows = _read(path)
    heads = {"source", "target", "from", "to", "src", "dst", "u", "v", "node1", "node2"}
    if len(rows[0][1]) >= 2 and all(v.lower() in heads for v in rows[0][1][:2]):
        rows = rows[1:]
    found = []
    for at, (line, row) in enumerate(rows):
        if len(row) < 2:
            raise DataError(f"{path}, line {line}: an edge is two nodes, got {row[0]!r}")
        lost = [v for v in row[:2] if v not in number]
        if lost and at == 0 and len(lost) == 2:
            continue  # a header in words of one's own
        if lost:
            raise DataError(f"{path}, line {line}: node {lost[0]!r} has no line in the table of features")
        found.append((number[row[0]], number[row[1]]))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _labels(path: Path, number: Mapping[str, int]) -> tuple[dict[int, str], dict[int, str]]:
    rows = _read(path)
    names, split = {}, {}
    head = [v.lower() for v in rows[0][1]]
    column = head.index("split") if "split" in head else None
    if column is not None or rows[0][1][0] not in number:
        rows = rows[1:]
    for line, row in rows:
        if len(row) < 2 or column is not None and len(row) <= column:
            raise DataError(f"{path}, line {line}: a line is a node, its label and, if there is one, its split")
        if row[0] not in number:
            raise DataError(f"{path}, line {line}: node {row[0]!r} has no line in the table of features")
        if row[1]:
            names[number[row[0]]] = row[1]
        if column is not None and row[column]:
            split[number[row[0]]] = _part(row[column], f"{path}, line {line}")
    return names, split


def _part(text: str, where: str) -> str:
    if text.lower() not in _SPLITS:
        raise DataError(f"{where}: {unknown('split', text, _SPLITS)}")
    return _SPLITS[text.lower()]


def _built(
    nodes: Sequence[Hashable],
    values: np.ndarray,
    pairs: np.ndarray,
    labels: Mapping[int, Any],
    split: Mapping[int, str],
    *,
    both: bool,
):
    """A ``Data`` of what tables and networkx say; a node without a label gets -1 and is in no part."""
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    edges = torch.from_numpy(pairs).t().contiguous()
    graph = Data(x=torch.from_numpy(values), edge_index=to_undirected(edges, num_nodes=len(nodes)) if both else edges)
    graph.nodes = [n if isinstance(n, str | int) else str(n) for n in nodes]
    if labels:
        whole = all(_is_whole(v) for v in labels.values())
        classes = sorted({int(v) if whole else str(v) for v in labels.values()})  # type: ignore[type-var]
        place = {c: i for i, c in enumerate(classes)}
        y = torch.full((len(nodes),), -1)
        for node, label in labels.items():
            y[node] = place[int(label) if whole else str(label)]
        graph.y, graph.classes = y, [str(c) for c in classes]
    if split:
        for part in _PARTS:
            mask = torch.zeros(len(nodes), dtype=torch.bool)
            mask[[node for node, its in split.items() if its == part]] = True
            graph[f"{part}_mask"] = mask
    return graph


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) or isinstance(value, str) and value.lstrip("-").isdigit()


def from_networkx(graph: Any):
    """A networkx graph as a ``Data``: attributes ``x`` (or ``features``), ``y`` (or ``label``) and ``split`` of its nodes.

    Edges of an undirected graph go both ways; those of a ``DiGraph`` as they point. Parallel edges count once.
    """
    nodes = list(graph.nodes)
    if not nodes:
        raise DataError("the networkx graph has no nodes")
    number = {n: i for i, n in enumerate(nodes)}
    values, labels, split = [], {}, {}
    for name, had in graph.nodes(data=True):
        given = next((had[k] for k in _X if k in had), None)
        if given is None:
            raise DataError(
                f"node {name!r} has no attribute x; it has {', '.join(map(str, had)) or 'none'}. Looked for: {WAYS['networkx']}"
            )
        values.append(np.atleast_1d(np.asarray(given, dtype=np.float32)))
        if len(values[-1]) != len(values[0]):
            raise DataError(f"node {name!r} has {len(values[-1])} features, the first node {len(values[0])}")
        if (label := next((had[k] for k in _Y if k in had), None)) is not None:
            labels[number[name]] = label
        if had.get("split"):
            split[number[name]] = _part(str(had["split"]), f"node {name!r}")
    pairs = np.array([(number[a], number[b]) for a, b in graph.edges()], dtype=np.int64).reshape(-1, 2)
    pairs = np.unique(pairs, axis=0) if len(pairs) else pairs
    return _built(nodes, np.stack(values), pairs, labels, split, both=not graph.is_directed())
