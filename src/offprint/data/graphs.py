"""Graphs by name, as torch_geometric ``Data``: bundled Cora and CiteSeer, local copies, and the canonical homes.

Planetoid's raw files are pickles. They are read here by an unpickler that knows NumPy arrays, SciPy matrices and plain
containers, and refuses everything else.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from offprint.data import samples
from offprint.data.home import data_dir, fetch_file
from offprint.errors import DataError, unknown

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
NPZ = {
    "amazon_computers": ("amazon_electronics_computers", "amazon_cs", "computers"),
    "amazon_photo": ("amazon_electronics_photo", "photo"),
    "coauthor_cs": ("ms_academic_cs", "cs"),
    "coauthor_physics": ("ms_academic_phy", "coauthor_phy", "physics"),
}
PLANETOID_HOME = "https://github.com/kimiyoung/planetoid/raw/master/data"
NPZ_HOME = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz"
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


class _Safe(pickle.Unpickler):
    """Builds arrays, sparse matrices and containers; anything else is refused before it is made."""

    ALLOWED = {
        ("collections", "defaultdict"): defaultdict,
        ("__builtin__", "list"): list,
        ("builtins", "list"): list,
        ("__builtin__", "object"): object,
        ("builtins", "object"): object,
        ("copy_reg", "_reconstructor"): None,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(0).__reduce__()[0]
        if module.startswith("scipy.sparse") and name == "csr_matrix":
            return sp.csr_matrix
        if (module, name) == ("copy_reg", "_reconstructor"):
            import copyreg

            return copyreg._reconstructor  # type: ignore[attr-defined]
        found = self.ALLOWED.get((module, name))
        if found is None:
            raise DataError(
                f"the file asks for {module}.{name}, which a Planetoid file has no use for; it was not read"
            )
        return found


def _unpickle(path: Path):
    try:
        with path.open("rb") as stream:
            return _Safe(stream, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{path}: {error}") from error
        raise DataError(f"{path} is damaged: {error}; fetch it again") from error


def _data(x: sp.csr_matrix, y: np.ndarray, edges: np.ndarray, masks: dict[str, np.ndarray] | None = None):
    from torch_geometric.data import Data

    graph = Data(
        x=torch.from_numpy(np.asarray(x.todense(), dtype=np.float32)),
        y=torch.from_numpy(y.astype(np.int64)),
        edge_index=torch.from_numpy(np.ascontiguousarray(edges, dtype=np.int64)),
    )
    for name, index in (masks or {}).items():
        mask = torch.zeros(len(y), dtype=torch.bool)
        mask[torch.from_numpy(index.astype(np.int64))] = True
        graph[f"{name}_mask"] = mask
    return graph


def read_planetoid(folder: str | Path, name: str):
    """Read the eight raw files ``ind.NAME.*`` of a folder: isolated test nodes become rows of zeros, duplicate edges one."""
    folder, low = Path(folder), name.lower()
    part = {p: folder / f"ind.{low}.{p}" for p in PARTS}
    missing = [p.name for p in part.values() if not p.is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}")
    x, tx, allx, y, ty, ally = (_unpickle(part[p]) for p in PARTS[:6])
    test = np.loadtxt(part["test.index"], dtype=np.int64)
    lowest, span = int(test.min()), int(test.max() - test.min() + 1)
    wide_x = sp.lil_matrix((span, tx.shape[1]), dtype=np.float32)
    wide_y = np.zeros((span, ty.shape[1]), dtype=ty.dtype)
    wide_x[test - lowest], wide_y[test - lowest] = tx, ty
    features = sp.vstack([sp.csr_matrix(allx)[:lowest], wide_x]).tocsr()
    labels = np.concatenate([ally[:lowest], wide_y]).argmax(1)
    nodes = len(labels)
    pairs = np.array([(a, b) for a, near in _unpickle(part["graph"]).items() for b in near], dtype=np.int64)
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    edges = np.unique(pairs[:, 0] * nodes + pairs[:, 1])
    edges = np.stack([edges % nodes, edges // nodes])
    masks = {"train": np.arange(len(y)), "val": np.arange(len(y), min(len(y) + 500, lowest)), "test": np.sort(test)}
    return _data(features, labels, edges, masks)


def _first(archive, *names: str) -> np.ndarray:
    """The first of these arrays that an archive holds."""
    for name in names:
        if name in archive:
            return archive[name]
    raise KeyError(f"no array {' or '.join(names)}; it holds {', '.join(archive.files[:6])}")


def read_npz(path: str | Path):
    """Read Amazon or Coauthor as Shchur et al. (2018) publish them; edges are made undirected, self loops left out."""
    try:
        with np.load(path, allow_pickle=False) as f:
            rows = {
                k: _first(f, f"adj_matrix_{k}", f"adj_matrix.{k}", f"adj_{k}") for k in ("indices", "indptr", "shape")
            }
            fields = ("data", "indices", "indptr", "shape")
            attr = {k: _first(f, f"node_attr_{k}", f"attr_matrix.{k}", f"attr_{k}") for k in fields}
            labels = _first(f, "node_label", "labels")
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{path} is not a graph archive: {error}") from error
    features = sp.csr_matrix((attr["data"], attr["indices"], attr["indptr"]), shape=attr["shape"])
    adjacency = sp.csr_matrix((np.ones(len(rows["indices"])), rows["indices"], rows["indptr"]), shape=rows["shape"])
    adjacency = (adjacency + adjacency.T).tocsr()
    adjacency.setdiag(0)
    adjacency.eliminate_zeros()
    coo = adjacency.tocoo()
    return _data(features, labels, np.stack([coo.row, coo.col]))


def _from_torch_geometric(name: str, base: Path):
    """A graph of ``torch_geometric.datasets``: ``Class``, ``Class/name``, ``Class/name#number``."""
    import inspect

    import torch_geometric.datasets as sets

    path, _, number = name.partition("#")
    cls, _, inner = path.partition("/")
    if cls not in sets.__all__:
        raise unknown("graph", name, [*PLANETOID.values(), *(k.title() for k in NPZ), *sets.__all__])
    maker = getattr(sets, cls)
    takes = inspect.signature(maker).parameters
    given = {"root": str(base / cls)} if "root" in takes else {}
    open_ones = [p.name for p in takes.values() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    open_ones = [p for p in open_ones if p not in given]
    if inner:
        field = next((f for f in (*open_ones, "name", "split") if f in takes), None)
        if field is None:
            raise DataError(f"torch_geometric.datasets.{cls} has no parts to choose from; ask for {cls!r}")
        given[field] = inner
    lacking = [p for p in open_ones if p not in given]
    if lacking:
        how = (
            f"ask for '{cls}/{lacking[0].upper()}'"
            if len(lacking) == 1 and not inner
            else "make it yourself and pass the Data"
        )
        raise DataError(f"torch_geometric.datasets.{cls} needs {', '.join(lacking)}; {how}")
    try:
        made = maker(**given)
    except (AssertionError, KeyError) as error:
        raise DataError(f"torch_geometric.datasets.{cls} does not know {inner!r} {error}".rstrip()) from error
    except Exception as error:
        raise DataError(
            f"torch_geometric.datasets.{cls} could not be made ({type(error).__name__}: {error}); without a network, "
            f"put its raw files into {base / cls}, or set OFFPRINT_DATA to a folder that holds {cls}/"
        ) from error
    if not number and len(made) != 1:
        raise DataError(f"{path} holds {len(made)} graphs; choose one, for example '{path}#0'")
    if number and not (number.isdigit() and int(number) < len(made)):
        raise DataError(f"{path} has no graph {number!r}; they are numbered from 0 to {len(made) - 1}")
    graph = made[int(number or 0)]
    if not hasattr(graph, "edge_index") or hasattr(graph, "node_types"):
        raise DataError(
            f"{name} is a {type(graph).__name__} without one edge_index; node models read homogeneous graphs"
        )
    return graph


def local(name: str, root: str | Path | None = None) -> Path | None:
    """The archive of an Amazon or Coauthor graph on this machine, or none."""
    key = name.lower()
    base = Path(root) if root else data_dir()
    for folder in (base / "graphs" / "npz", base / "npz", base):
        for file in sorted(folder.glob("*.npz")) if folder.is_dir() else ():
            if file.stem.lower() in (key, *NPZ[key]):
                return file
    return None


def load_graph(name: str, root: str | Path | None = None, *, normalize: bool = False):
    """A graph by name.

    Args:
        name: ``Cora``, ``CiteSeer`` (bundled), ``PubMed``, ``Amazon_Computers``, ``Amazon_Photo``, ``Coauthor_CS``,
            ``Coauthor_Physics``, or any class of ``torch_geometric.datasets`` as ``Class`` or ``Class/name``; of a set of
            several graphs, ``Class/name#3`` is the fourth.
        root: where local copies are; default ``OFFPRINT_DATA`` or the user's cache, which fetched files are kept in.
        normalize: make each row of features sum to one (:func:`normalize_features`).

    Returns:
        ``torch_geometric.data.Data`` with ``x``, ``y``, ``edge_index`` (both directions) and, for Planetoid, the public masks.
    """
    key = name.lower().replace("-", "_").replace(" ", "_")
    base = Path(root) if root else data_dir()
    if key in ("cora", "citeseer") and root is None:
        with np.load(samples.path(f"{key}.npz"), allow_pickle=False) as f:
            x = sp.csr_matrix((f["data"], f["indices"].astype(np.int32), f["indptr"]), shape=tuple(f["shape"]))
            graph = _data(x, f["y"], f["edge_index"], {k: f[k] for k in ("train", "val", "test")})
    elif key in PLANETOID:
        real = PLANETOID[key]
        folders = [base / "graphs" / real / "raw", base / real / "raw", base]
        folder = next((d for d in folders if (d / f"ind.{key}.x").is_file()), folders[0])
        for part in PARTS:
            if not (folder / f"ind.{key}.{part}").is_file():
                fetch_file(f"{PLANETOID_HOME}/ind.{key}.{part}", folder / f"ind.{key}.{part}")
        graph = read_planetoid(folder, key)
    elif key in NPZ:
        found = local(key, root)
        if found is None:
            found = base / "graphs" / "npz" / f"{NPZ[key][0]}.npz"
            fetch_file(f"{NPZ_HOME}/{NPZ[key][0]}.npz", found)
        graph = read_npz(found)
    else:
        graph = _from_torch_geometric(name, base)
    check_graph(graph)
    if normalize:
        graph.x = normalize_features(graph.x)
    return graph


def normalize_features(x: Tensor) -> Tensor:
    """Subtract the global minimum, divide each row by its sum (at least 1): rows sum to one."""
    x = x - x.min()
    return x / x.sum(-1, keepdim=True).clamp(min=1.0)


def check_graph(graph) -> None:
    """Refuse a graph no model can learn from, naming the first node or edge that is wrong."""
    n = graph.num_nodes
    if graph.x is None:
        raise DataError("the graph has no node features (x)")
    wrong = ~torch.isfinite(graph.x)
    if wrong.any():
        bad = wrong.any(1).nonzero()
        nan = int(graph.x.isnan().sum())
        raise DataError(
            f"node {int(bad[0])} has features that are not finite, and {len(bad) - 1:,} of the other {n - 1:,} nodes have ({nan:,} values "
            f"are NaN, {int(wrong.sum()) - nan:,} infinite); mend or remove them: to normalise would spread them over whole rows"
        )
    if graph.edge_index.numel() and not (0 <= int(graph.edge_index.min()) and int(graph.edge_index.max()) < n):
        raise DataError(f"an edge points outside the {n} nodes (largest index {int(graph.edge_index.max())})")
    if graph.y is not None and len(graph.y) != n:
        raise DataError(f"{len(graph.y)} labels for {n} nodes")


def largest_component(edge_index: Tensor, n: int) -> Tensor:
    """(n,) true for the nodes of the largest connected part, edges taken both ways."""
    row, col = edge_index.cpu().numpy()
    matrix = sp.coo_matrix((np.ones(len(row), dtype=np.int8), (row, col)), shape=(n, n))
    _, part = connected_components(matrix, directed=False)
    return torch.from_numpy(part == np.bincount(part).argmax())


def random_split(
    y: Tensor,
    seed: int,
    *,
    train: int = 20,
    val: int = 500,
    test: int | None = 1000,
    per_class_val: bool = False,
    within: Tensor | None = None,
):
    """Masks of a random split: ``train`` nodes per class, then ``val`` and ``test`` of the rest; nodes without a label (y
    below 0) are in none.

    Args:
        per_class_val: ``val`` counts per class too and all the rest is test (the protocol of Amazon and Coauthor).
        within: (n,) only these nodes take part, such as :func:`largest_component`'s.

    Returns:
        Three boolean masks.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.zeros(len(y), dtype=torch.bool) for _ in range(3)]
    usable = y >= 0 if within is None else (y >= 0) & within
    for label in range(int(y.max()) + 1):
        members = ((y == label) & usable).nonzero().flatten()
        if len(members) <= train:
            raise DataError(f"class {label} has {len(members)} nodes; a split with {train} per class needs more")
        members = members[torch.randperm(len(members), generator=generator)]
        masks[0][members[:train]] = True
        if per_class_val:
            masks[1][members[train : train + val]] = True
    rest = (usable & ~(masks[0] | masks[1])).nonzero().flatten()
    rest = rest[torch.randperm(len(rest), generator=generator)]
    if not per_class_val:
        masks[1][rest[:val]] = True
        rest = rest[val:]
    masks[2][rest if test is None or per_class_val else rest[:test]] = True
    return tuple(masks)


def split_of(graph, seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor], str]:
    """Masks to judge a model by, and what they are in words.

    The graph's own where it has them (of several, number ``seed``); else 20 nodes per class to learn from, 30 per class to
    choose by and the rest to test on, inside the largest connected part; else, with classes too small for that, 60, 20 and 20 %
    of the nodes.
    """
    own = [graph.get(f"{part}_mask") for part in ("train", "val", "test")]
    if all(mask is not None for mask in own):
        if own[0].ndim == 1:
            return tuple(own), "the graph's own split"
        which = seed % own[0].shape[1]
        own = [mask[:, which] if mask.ndim == 2 else mask for mask in own]
        return tuple(own), f"split {which} of the graph's own {graph.train_mask.shape[1]}"
    if graph.y is None:
        raise DataError("the graph has no labels (y)")
    y = graph.y.flatten()
    inside = largest_component(graph.edge_index, graph.num_nodes)
    counts = torch.bincount(y[inside & (y >= 0)], minlength=int(y.max()) + 1)
    if int(counts.min()) > 50:
        masks = random_split(y, seed, val=30, per_class_val=True, within=inside)
        return masks, f"20 and 30 nodes per class, the rest for testing, drawn with seed {seed}"
    order = (y >= 0).nonzero().flatten()
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    cut = (int(0.6 * len(order)), int(0.8 * len(order)))
    masks = tuple(torch.zeros(len(y), dtype=torch.bool) for _ in range(3))
    for mask, part in zip(masks, (order[: cut[0]], order[cut[0] : cut[1]], order[cut[1] :]), strict=True):
        mask[part] = True
    return masks, f"60, 20 and 20 % of the nodes, drawn with seed {seed}"
