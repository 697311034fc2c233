"""The consoles and progress bars the verbs share."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

out = Console()
errors = Console(stderr=True)


@contextmanager
def bar():
    """A progress bar on standard error that disappears when done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        yield progress


def say(text: str, style: str = "") -> None:
    """One line as it is, however long."""
    out.print(text, style=style or None, highlight=False, markup=False, soft_wrap=True)


def quiet_lightning() -> None:
    """Leave the progress bar and the result on the screen, and not what Lightning says of itself."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")


_usual = warnings.formatwarning


def _short(message, category, filename, lineno, line=None) -> str:
    ours = category.__module__.startswith("offprint.")
    return f"note: {message}\n" if ours else _usual(message, category, filename, lineno, line)


def plain_notes() -> None:
    """Warnings that are ours as one line, without the line of our source that raised them."""
    warnings.formatwarning = _short


def parse_overrides(pairs: list[str]) -> dict:
    """``["lr=0.1", "mixup=0"]`` as a dictionary; values are read as Python literals where they are ones."""
    import ast

    from offprint.errors import OffprintError

    found = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise OffprintError(f"{pair!r} is not of the form name=value")
        try:
            found[key.strip().replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key.strip().replace("-", "_")] = value
    return found
