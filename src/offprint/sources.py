"""Which of our files a figure was computed by, and their digest: evidence measured by other sources is stale.

The files are found by reading import statements (those inside functions too), starting from the module of a proof, a model or a
task. What carries figures and does not compute them (ledger, catalogue, registers, the contracts of proofs and tasks, folders, errors,
files) does not count.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
FRAME = frozenset(
    "offprint offprint.api offprint.errors offprint.files offprint.sources offprint.report offprint.reproduction offprint.proofs offprint.ledger "
    "offprint.catalog offprint.catalog.evidence offprint.models.hub offprint.models.sharing offprint.models.registry "
    "offprint.methods.registry offprint.tasks.hooks offprint.tasks.contract offprint.tasks.folder offprint.tasks.settings offprint.tasks.results offprint.data.home "
    "offprint.data.datasets".split()
)


def file_of(module: str) -> Path | None:
    """The file of one of our modules, or ``None`` where there is none of that name."""
    if module != "offprint" and not module.startswith("offprint."):
        return None
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@cache
def _imports(module: str) -> frozenset[str]:
    """Our modules that this one imports anywhere in its text."""
    path = file_of(module)
    assert path is not None
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if file_of(name))


def closure(modules: Iterable[str]) -> list[str]:
    """These modules of ours and all that they import, sorted; the frame (see above) is left out.

    Raises:
        ValueError: a module that is not ours or does not exist.
    """
    left, seen = list(modules), set()
    for name in left:
        if file_of(name) is None:
            raise ValueError(f"{name!r} is not a module of this library")
    while left:
        name = left.pop()
        if name in seen or name in FRAME:
            continue
        seen.add(name)
        left += _imports(name)
    return sorted(seen)


def plain(text: str) -> str:
    """A source without comments, docstrings and layout: what is left changes only when the program does."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    spans: list[tuple[int, int]] = []
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            word = body[0].value
            if isinstance(word.value, str) and word.end_lineno is not None and word.end_col_offset is not None:
                first = starts[word.lineno - 1] + len(lines[word.lineno - 1].encode()[: word.col_offset].decode())
                last = starts[word.end_lineno - 1] + len(
                    lines[word.end_lineno - 1].encode()[: word.end_col_offset].decode()
                )
                spans.append((first, last))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            spans.append((starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]))
    kept, at = [], 0
    for first, last in sorted(spans):
        if first >= at:
            kept.append(text[at:first])
            at = last
    return re.sub(r"[\s\"'(),]", "", "".join([*kept, text[at:]]))


@cache
def _digest_of(module: str) -> str:
    path = file_of(module)
    assert path is not None
    return hashlib.sha256(plain(path.read_text(encoding="utf-8")).encode()).hexdigest()


def digest(modules: Iterable[str]) -> str:
    """16 hexadecimal digits over the program text of these modules and all that they import.

    Layout, comments and docstrings do not count, so that a sentence mended leaves what was measured standing.
    """
    whole = hashlib.sha256()
    for name in closure(modules):
        whole.update(f"{name}\0{_digest_of(name)}\0".encode())
    return whole.hexdigest()[:16]
