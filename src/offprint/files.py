"""Files that are never half written, and addresses: what may be a path may be ``file://``, ``s3://``, ``gs://``, ``hf://``, ``https://``."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

from offprint.errors import DataError, MissingExtra, OffprintError

# one slash is enough: pathlib makes s3:/bucket of s3://bucket. Two letters at least: C:/ is a drive
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+")


def scheme(address: str | Path) -> str:
    """``s3``, ``https``, ``file``, ... of an address, and nothing of a plain path."""
    found = _ADDRESS.match(str(address))
    return found.group(1).lower() if found else ""


def local_path(address: str | Path, what: str = "this file") -> Path:
    """A path on this machine, of a plain path or a ``file://`` address; a ``~`` at its front is the home folder.

    Args:
        address: as it was given.
        what: what lies there, as it should read in the message.

    Raises:
        OffprintError: an address elsewhere. Nothing was made or written.
    """
    kind = scheme(address)
    if not kind:
        return Path(address).expanduser()
    if kind != "file":
        raise OffprintError(
            f"{what} cannot be at {_full(address)}: it is written on this machine. Give a path here, and copy it to {kind}:// when done"
        )
    host, slash, path = str(address)[5:].removeprefix("//").partition("/")
    if not slash or host not in ("", "localhost"):
        raise OffprintError(f"{str(address)!r} names the machine {host!r}; a file of this one is file:///folder/name")
    return Path("/" + unquote(path).lstrip("/"))


def fetched(address: str | Path, what: str = "the file") -> Path:
    """A file to be read, on this machine: a plain path and ``file://`` as they are, any other address fetched once and kept.

    It is fetched by fsspec (``s3://`` needs s3fs, ``gs://`` gcsfs, ``hf://`` huggingface_hub) into the cache, whole or not at all,
    and again when the store says that what lies there has changed.

    Raises:
        DataError: nothing there, or no way to it. MissingExtra: the package for such addresses is not installed.
    """
    if scheme(address) in ("", "file"):
        return local_path(address, what)
    import platformdirs

    system, path = filesystem(address, what)
    full = _full(address)
    try:
        state = system.ukey(path)
    except FileNotFoundError:
        raise DataError(f"there is nothing at {full}; {what} was looked for there") from None
    except Exception as error:  # whatever the package for these addresses raises: no network, no right, no such bucket
        raise _unreachable(full, what, error) from error
    root = Path(os.environ.get("OFFPRINT_CACHE") or platformdirs.user_cache_dir("offprint")) / "addresses"
    target = (
        root
        / hashlib.sha256(f"{full} {state}".encode()).hexdigest()[:16]
        / (path.rstrip("/").rsplit("/", 1)[-1] or "file")
    )
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        system.get_file(path, str(part))
        os.replace(part, target)
    except FileNotFoundError:
        raise DataError(f"there is nothing at {full}; {what} was looked for there") from None
    except Exception as error:
        raise _unreachable(full, what, error) from error
    finally:
        part.unlink(missing_ok=True)
        if not target.exists():
            target.parent.rmdir()
    return target


def filesystem(address: str | Path, what: str = "the file"):
    """The fsspec file system of an address, and the path in it; nothing is read yet.

    Raises:
        OffprintError: no such kind of address. MissingExtra: the package for it is not installed.
    """
    import fsspec

    full = _full(address)
    try:
        return fsspec.core.url_to_fs(full)
    except ImportError as error:
        raise MissingExtra(f"{what} at {full}: {error}") from error
    except ValueError as error:
        raise OffprintError(
            f"{what} at {full}: no such kind of address; give a path, or file://, s3://, gs://, hf:// or https://"
        ) from error
    except Exception as error:
        raise _unreachable(full, what, error) from error


def _full(address: str | Path) -> str:
    """The address with both slashes, one of which pathlib takes away."""
    return _ADDRESS.sub(lambda found: f"{found.group(1).lower()}://", str(address), count=1)


def _unreachable(full: str, what: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return DataError(
        f"{what} at {full} cannot be reached ({type(error).__name__}: {reason}); fetch it and give the path of your copy"
    )


def atomic_write(path: str | Path, data: bytes | str) -> Path:
    """Write a file whole or not at all: to a neighbour first, then renamed over the old one.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was at ``path`` before is still there.
        OffprintError: an address that is not on this machine.
    """
    path = local_path(path, "what is written")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
