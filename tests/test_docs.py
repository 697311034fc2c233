"""The documentation's examples run, and README's generated parts are what the generators give now."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "together.md").read_text()
BLOCKS = {
    title: code for title, code in re.findall(r"^## ([^\n:]+)[^\n]*\n.*?```python\n(.*?)```", TEXT, flags=re.S | re.M)
}


@pytest.mark.parametrize("title", BLOCKS)
def test_together(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[title], f"docs/together.md: {title}", "exec"), {"__name__": "example"})


def test_every_block_is_run():
    assert len(BLOCKS) == TEXT.count("```python") >= 6


def test_readme_is_current():
    shown = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_every_model_has_its_row():
    """A page lists its paper's models, each made by its name alone."""
    sys.path.insert(0, str(ROOT / "tools"))
    import tables

    import offprint

    names = offprint.list_models()
    assert tables.models(names).count("\n") >= len(names)
