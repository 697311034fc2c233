"""Where full data sets live on this machine, and how a file comes there."""

from __future__ import annotations

import os
from pathlib import Path

from offprint.errors import DataError
from offprint.files import atomic_write


def data_dir() -> Path:
    """Where full data sets are kept: ``OFFPRINT_DATA``, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("OFFPRINT_DATA") or Path(platformdirs.user_cache_dir("offprint")) / "data")


def fetch_file(url: str, target: Path) -> Path:
    """Fetch a file once, whole or not at all.

    Raises:
        DataError: the network is not there; the message says where to put the file by hand.
    """
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=60) as answer:
            return atomic_write(target, answer.read())
    except (URLError, OSError) as error:
        raise DataError(
            f"could not fetch {url} ({error}); put {target.name} into {target.parent}, or set OFFPRINT_DATA to a folder that holds it"
        ) from error
