"""Small samples of real data that come with the package; each ``*.SOURCE.md`` beside a file says whence and under what licence."""

from __future__ import annotations

from pathlib import Path

from offprint.errors import DataError

FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """The path of a bundled file."""
    found = FOLDER / name
    if not found.is_file():
        having = sorted(p.name for p in FOLDER.iterdir() if p.suffix not in (".py", ".md") and p.is_file())
        raise DataError(f"no bundled sample {name!r}; there are: {', '.join(having)}")
    return found
