"""NASNet's cells as data (Sec. 3, Fig. 3): the thirteen operations, blocks, cells, and the check that they form a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from offprint.errors import OffprintError, unknown

OPERATIONS: dict[str, tuple] = {  # the thirteen of Sec. 3: kind, kernels, dilation
    "identity": ("identity",),
    "conv_1x3_3x1": ("conv", ((1, 3), (3, 1)), 1),
    "conv_1x7_7x1": ("conv", ((1, 7), (7, 1)), 1),
    "dil_conv_3x3": ("conv", ((3, 3),), 2),
    "avg_pool_3x3": ("avg", 3),
    "max_pool_3x3": ("max", 3),
    "max_pool_5x5": ("max", 5),
    "max_pool_7x7": ("max", 7),
    "conv_1x1": ("conv", ((1, 1),), 1),
    "conv_3x3": ("conv", ((3, 3),), 1),
    "sep_conv_3x3": ("sep", 3),
    "sep_conv_5x5": ("sep", 5),
    "sep_conv_7x7": ("sep", 7),
}
COMBINATIONS = ("add", "concat")


class Block(NamedTuple):
    """Two operands (hidden state, operation) and how their results combine."""

    left: int
    left_op: str
    right: int
    right_op: str
    combine: str = "add"


class CellTable(NamedTuple):
    """One cell: its blocks, and the hidden states whose concatenation is its output.

    State 0 is the cell's input, 1 the output of the cell before it, 2 and on the blocks in order.
    """

    blocks: tuple[Block, ...]
    concat: tuple[int, ...]


class Genotype(NamedTuple):
    """A Normal and a Reduction cell."""

    normal: CellTable
    reduce: CellTable

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: ``{"normal": {"blocks": [[0, "sep_conv_5x5", 1, "sep_conv_3x3", "add"], ...], "concat": [...]}, ...}``."""
        return {
            name: {"blocks": [list(b) for b in cell.blocks], "concat": list(cell.concat)}
            for name, cell in zip(self._fields, self, strict=True)
        }

    @classmethod
    def of(cls, given: Genotype | Mapping | str | Path) -> Genotype:
        """A genotype from one of its forms: itself, a mapping as of :meth:`to_dict`, a name of :data:`GENOTYPES`, or a ``.json`` file.

        Without ``concat`` a cell's output is every state that no block reads.

        Raises:
            OffprintError: not a directed acyclic graph of known operations; the message names the cell and the block.
        """
        if isinstance(given, str | Path):
            if str(given) in GENOTYPES:
                return GENOTYPES[str(given)]
            if not str(given).endswith(".json"):
                raise unknown("genotype (a name, a mapping, or the path of a .json file)", given, GENOTYPES)
            if not Path(given).is_file():
                raise OffprintError(
                    f"no genotype at {str(given)!r}; 'offprint search nasnet --out FILE.json' writes one"
                )
            try:
                given = json.loads(Path(given).read_text(encoding="utf-8"))
            except ValueError as error:
                raise OffprintError(
                    f"{given} is not JSON ({error}); a genotype is written by 'offprint search nasnet'"
                ) from error
        if isinstance(given, Genotype):
            given = given.to_dict()
        if isinstance(given, Mapping) and isinstance(given.get("genotype"), Mapping):
            given = given["genotype"]  # the file of a search, which says more than the genotype
        if not isinstance(given, Mapping) or set(given) != set(cls._fields):
            keys = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise OffprintError(f"a genotype has the two cells 'normal' and 'reduce'; got {keys or 'nothing'}")
        return cls(*(_cell_table(name, given[name]) for name in cls._fields))


def _cell_table(cell: str, given: Any) -> CellTable:
    """Check one cell of a genotype."""
    if not isinstance(given, Mapping) or "blocks" not in given or set(given) - {"blocks", "concat"}:
        raise OffprintError(
            f"{cell} cell: expected {{'blocks': [...], 'concat': [...]}} (concat may be left out), got {given!r}"
        )
    blocks = []
    for b, row in enumerate(given["blocks"]):
        where = f"{cell} cell, block {b}"
        if isinstance(row, str) or not hasattr(row, "__len__") or len(row) not in (4, 5):
            raise OffprintError(
                f"{where}: expected [state, operation, state, operation, 'add' or 'concat'], got {row!r}"
            )
        block = Block(*row)
        for state, op in ((block.left, block.left_op), (block.right, block.right_op)):
            if isinstance(state, bool) or not isinstance(state, int) or not 0 <= state < b + 2:
                raise OffprintError(
                    f"{where} reads hidden state {state!r}, which does not exist yet; a cell is a directed acyclic graph, "
                    f"so block {b} may read states 0 (the cell's input), 1 (the previous cell's output)"
                    + (f" and 2 to {b + 1} (the blocks before it)" if b else "")
                )
            if op not in OPERATIONS:
                raise unknown(f"operation in the {where}", op, OPERATIONS)
        if block.combine not in COMBINATIONS:
            raise unknown(f"combination in the {where}", block.combine, COMBINATIONS)
        blocks.append(block)
    if not blocks:
        raise OffprintError(f"{cell} cell has no blocks; give at least one")
    states = len(blocks) + 2
    read = {s for block in blocks for s in (block.left, block.right)}
    concat = given.get("concat")
    concat = tuple(s for s in range(states) if s not in read) if concat is None else tuple(concat)
    if not concat or len(set(concat)) < len(concat) or not set(concat) <= set(range(states)):
        raise OffprintError(
            f"{cell} cell: concat {list(concat)} must name different hidden states among 0 to {states - 1}"
        )
    lost = [s - 2 for s in range(2, states) if s not in read and s not in concat]
    if lost:
        raise OffprintError(f"{cell} cell: nothing reads block {lost[0]}; add its state {lost[0] + 2} to concat")
    return CellTable(tuple(blocks), concat)


def _table(concat: tuple[int, ...], *rows: tuple) -> CellTable:
    return CellTable(tuple(Block(*row) for row in rows), concat)


_S3, _S5, _S7, _AVG, _MAX, _ID = (
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "avg_pool_3x3",
    "max_pool_3x3",
    "identity",
)
GENOTYPES = {
    "nasnet_a": Genotype(  # Fig. 4; the released Normal cell also passes on state 1, though blocks read it
        _table((1, 2, 3, 4, 5, 6), (0, _S5, 1, _S3), (1, _S5, 1, _S3), (0, _AVG, 1, _ID), (1, _AVG, 1, _AVG), (0, _S3, 0, _ID)),
        _table((3, 4, 5, 6), (0, _S5, 1, _S7), (0, _MAX, 1, _S7), (0, _AVG, 1, _S5), (3, _ID, 2, _AVG), (2, _S3, 0, _MAX)),
    )
}  # fmt: skip
