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
