"""The arrows between the rooms, what importing costs, and what the package does not bring along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import offprint

ROOT = Path(offprint.__file__).parent
EVERYWHERE = {"errors", "files", "sources"}
MAY_USE = {
    "catalog": set(),
    "nn": set(),
    "models": {"nn"},
    "methods": {"models", "nn", "data", "tasks"},
    "data": set(),
    "tasks": {"models", "nn", "data"},
    "proofs": {"catalog", "models", "nn", "methods", "data", "tasks", "ledger"},
    "ledger": {"catalog"},
}
EXTRAS = {"monai", "nibabel", "pyarrow", "ray", "flwr", "fastapi", "uvicorn", "onnx", "onnxruntime", "onnxscript", "timm",
          "pytorch_grad_cam", "sklearn", "skimage", "segmentation_models_pytorch", "tensorboard"}  # fmt: skip


def _imports(path: Path, top_only: bool = False):
    """(line, dotted module) of every import of a file, or of those that run when the file is imported."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree)
    if top_only:
        inner = {
            id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
        }
        guarded = {
            id(n)
            for f in ast.walk(tree)
            if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.unparse(f.test)
            for n in ast.walk(f)
        }
        nodes = [n for n in nodes if id(n) not in inner | guarded]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "offprint":
                yield from ((node.lineno, f"offprint.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


FILES = sorted(ROOT.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("room", MAY_USE)
def test_arrows(room):
    """A room imports only what the house allows it; ``offprint.proofs`` may be told from which ledger to read by its caller."""
    allowed = MAY_USE[room] | EVERYWHERE | {room}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FILES
        if _room(path) == room
        for line, name in _imports(path)
        if name.startswith("offprint.") and name.split(".")[1] not in allowed
    ]
    assert wrong == []


def test_the_arrow_test_sees_an_arrow(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from offprint import tasks\ndef f():\n    import offprint.data.images\n")
    assert list(_imports(file)) == [(1, "offprint.tasks"), (3, "offprint.data.images")]
    assert list(_imports(file, top_only=True)) == [(1, "offprint.tasks")]


def test_no_circle_between_rooms():
    arrows = {(_room(p), n.split(".")[1]) for p in FILES for _, n in _imports(p) if n.startswith("offprint.")}
    arrows = {(a, b) for a, b in arrows if a in MAY_USE and b in MAY_USE and a != b}
    left = set(MAY_USE)
    while left:
        free = {r for r in left if not any(a == r and b in left for a, b in arrows)}
        assert free, f"a circle among {sorted(left)}"
        left -= free


def _guarded(tree: ast.AST) -> set[int]:
    """Ids of the nodes that only a type checker reads."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {id(inner) for block in blocks for statement in block.body for inner in ast.walk(statement)}


def _arrows(root: Path, package: str) -> dict[str, set[str]]:
    """File → files of the same package that it imports, also inside functions; names are dotted."""
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join((package, *parts)).removesuffix(".__init__")] = path
    arrows = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        skipped, found = _guarded(tree), set()
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(n if n in files else node.module for n in whole)
        arrows[name] = found & set(files)
    return arrows


def _circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one file, and files that import themselves (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            at = stack.index(name)
            component = sorted(stack[at:])
            del stack[at:]
            if len(component) > 1 or name in arrows[name]:
                found.append(component)

    for name in sorted(arrows):
        if name not in number:
            visit(name)
    return sorted(found)


def test_no_circle_between_files():
    assert _circles(_arrows(ROOT, "offprint")) == []


def test_the_circle_test_sees_circles(tmp_path):
    (tmp_path / "room").mkdir()
    for name, text in {
        "__init__.py": "from p.room import a as a",
        "room/__init__.py": "",
        "room/a.py": "def f():\n    from p.room import b",
        "room/b.py": "from p.room.c import x",
        "room/c.py": "import p.room.a",
        "d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.e\nelse:\n    import p.room.c",
        "e.py": "import p.d, p.e",
    }.items():
        (tmp_path / name).write_text(text)
    arrows = _arrows(tmp_path, "p")
    assert arrows["p"] == {"p.room.a"} and arrows["p.d"] == {"p.room.c"}
    assert _circles(arrows) == [["p.e"], ["p.room.a", "p.room.b", "p.room.c"]]


def test_old_homes_answer_with_a_warning():
    from offprint.models import hub, registry, sharing

    with pytest.warns(DeprecationWarning, match="offprint.models.factory.create_model"):
        assert registry.create_model is offprint.create_model is offprint.models.create_model
    with pytest.warns(DeprecationWarning, match="offprint.models.sharing.from_pretrained"):
        assert hub.from_pretrained is sharing.from_pretrained is offprint.from_pretrained
    for module in (hub, registry, offprint.models):
        with pytest.raises(AttributeError, match="nothing_of_this_name"):
            _ = module.nothing_of_this_name


def test_extras_are_imported_where_they_are_used():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FILES
        for line, name in _imports(path, top_only=True)
        if name.split(".")[0] in EXTRAS
    ]
    assert wrong == []


def test_import_is_quick_and_lean():
    code = (
        "import sys, time; t = time.perf_counter(); import offprint; seconds = time.perf_counter() - t; "
        "offprint.papers(); heavy = [m for m in ('lightning', 'matplotlib', 'monai', 'ray', 'timm', 'pyarrow') if m in sys.modules]; "
        "print(seconds, heavy)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
        maxsplit=1
    )
    assert shown[1].strip() == "[]"
    code = "import sys, offprint; offprint.create_model; print([m for m in ('lightning', 'matplotlib', 'monai', 'ray', 'timm', 'pyarrow', 'torch_geometric') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_public_names_exist():
    for name in offprint.__all__:
        assert getattr(offprint, name) is not None
    with pytest.raises(AttributeError):
        _ = offprint.nothing_of_this_name
