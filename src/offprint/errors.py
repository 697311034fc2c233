"""The library's errors: each says what was given, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OffprintError(ValueError):
    """Something the caller gave cannot be used; the message says what would work."""


class CheckpointError(OffprintError):
    """A weight file is damaged, unsafe, or belongs to another model."""


class DataError(OffprintError):
    """A data set, table or file holds something that cannot be used."""


class LedgerError(OffprintError):
    """The ledger cannot be reached or written."""


class MissingExtra(OffprintError, ImportError):
    """An optional dependency is not installed."""


def unknown(kind: str, given: object, known: Iterable[str]) -> OffprintError:
    """An error for a name that is not known, offering the nearest ones that are.

    Args:
        kind: what the name should have been (``"model"``, ``"paper"``).
        given: the name as given.
        known: every name that would have worked.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=5, cutoff=0.5)
    hint = (
        f"nearest: {', '.join(near)}" if near else f"known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    )
    return OffprintError(f"unknown {kind} {str(given)!r}; {hint}")


def need(module: str, extra: str, use: str):
    """Import an optional dependency, or say which extra to install.

    Args:
        module: dotted name to import.
        extra: the extra of this package that brings it.
        use: what it is needed for, as it should read in the message.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{use} needs the package {module.split('.')[0]!r}, which cannot be imported ({error}); "
            f"install it with: pip install 'offprint[{extra}]'"
        ) from error
