"""Released weights: found locally, fetched once, checked, kept."""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

from offprint.errors import CheckpointError
from offprint.models.registry import Weights, entries, entry


def cache_dir() -> Path:
    """Where fetched weights are kept: ``OFFPRINT_CACHE``, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("OFFPRINT_CACHE") or platformdirs.user_cache_dir("offprint")) / "weights"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, sha256: str) -> None:
    """Refuse a file whose SHA-256 does not start with ``sha256`` (nothing is checked when that is empty)."""
    if sha256 and not (got := _digest(path)).startswith(sha256):
        raise CheckpointError(
            f"{path} has SHA-256 {got}, the released file {sha256}{'' if len(sha256) == 64 else '...'}: it is another file, or "
            "damaged; delete it, or move it elsewhere, and fetch it again"
        )


def filename(model: str, weights: Weights) -> str:
    """The file's name: the last part of its address, or ``MODEL.pth`` where the address has none."""
    last = urlsplit(weights.url).path.rsplit("/", 1)[-1]
    return last if "." in last else f"{model}.pth"


def _alone(model: str, weights: Weights, *, paper: str = "", own: bool = False) -> bool:
    """Whether this file's name means one file only: in the whole registry, among a paper's files, or among a model's own."""
    name = filename(model, weights)
    scope = [entry(model)] if own else [e for e in entries().values() if not paper or e.paper == paper]
    return {w.url for e in scope for w in e.weights.values() if filename(e.name, w) == name} == {weights.url}


def places(model: str, tag: str) -> list[Path]:
    """Where the file of a release is looked for, the most particular place first.

    Under ``OFFPRINT_WEIGHTS``: ``MODEL/TAG/FILE``; ``MODEL/FILE``, ``PAPER/FILE`` and ``FILE`` where no other release of that
    model, of that paper, or at all has a file of this name. In the cache: ``PUBLISHER/MODEL/TAG/FILE``.
    """
    spec = entry(model)
    weights = spec.weights[spec.tag(tag)]
    name = filename(model, weights)
    found = []
    if given := os.environ.get("OFFPRINT_WEIGHTS"):
        root = Path(given)
        if not root.is_dir():
            raise CheckpointError(
                f"OFFPRINT_WEIGHTS={given!r} is not a folder; point it at the folder that holds the weight files"
            )
        found.append(root / model / tag / name)
        found += [root / model / name] if _alone(model, weights, own=True) else []
        found += [root / spec.paper / name] if _alone(model, weights, paper=spec.paper) else []
        found += [root / name] if _alone(model, weights) else []
    return [*found, cache_dir() / weights.publisher / model / tag / name]


def find(model: str, tag: bool | str = True) -> Path | None:
    """The file of a release on this machine, unchecked: in its :func:`places`, or in the hub's own cache."""
    tag = entry(model).tag(tag)
    for path in places(model, tag):
        if path.is_file():
            return path
    url = entry(model).weights[tag].url
    if url.startswith("hf:"):
        from huggingface_hub import try_to_load_from_cache

        owner, repository, file = url[3:].split("/", 2)
        cached = try_to_load_from_cache(f"{owner}/{repository}", file)
        return Path(cached) if isinstance(cached, str) else None
    return None


def fetch(model: str, tag: bool | str = True, progress: bool = True) -> Path:
    """The local path of a model's released weights: found (:func:`find`), or fetched into the cache; checked.

    Args:
        model, tag: as in :func:`offprint.create_model`.
        progress: show a progress bar.

    Raises:
        CheckpointError: the network is not there (the message says where to put the file by hand), or the digest differs.
    """
    tag = entry(model).tag(tag)
    weights = entry(model).weights[tag]
    found = find(model, tag)
    if found is not None:
        verify(found, weights.sha256)
        return found
    target = places(model, tag)[-1]
    by_hand = (
        f"fetch it elsewhere and put it at {target}, or at {model}/{tag}/{target.name} in a folder that OFFPRINT_WEIGHTS names, "
        "or pass checkpoint_path="
    )
    if weights.url.startswith("hf:"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        owner, repository, file = weights.url[3:].split("/", 2)
        try:
            path = Path(hf_hub_download(f"{owner}/{repository}", file))
        except (HfHubHTTPError, OSError) as error:
            raise CheckpointError(
                f"could not fetch {file} of {owner}/{repository} from the Hugging Face hub ({type(error).__name__}); {by_hand}"
            ) from error
        verify(path, weights.sha256)
        return path
    import torch

    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    address, _, member = weights.url.partition("#")  # ARCHIVE.zip#FILE: one file of an archive
    try:
        torch.hub.download_url_to_file(address, str(part), progress=progress)
        verify(part, weights.sha256)
        if member:
            _unpack(part, member)
        os.replace(part, target)
    except (URLError, OSError, RuntimeError) as error:
        raise CheckpointError(f"could not fetch {weights.url} ({error}); {by_hand}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _unpack(file: Path, member: str) -> None:
    """Put one file of a zip archive in the archive's place.

    Raises:
        CheckpointError: no archive, or it lacks that file.
    """
    import shutil
    import zipfile

    taken = file.with_name(f"{file.name}.taken")
    try:
        with zipfile.ZipFile(file) as archive:
            if member not in archive.namelist():
                raise CheckpointError(f"the archive holds no {member!r}; it holds {', '.join(archive.namelist()[:8])}")
            with archive.open(member) as inside, taken.open("wb") as out:
                shutil.copyfileobj(inside, out)
        os.replace(taken, file)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"what was fetched is no zip archive ({error})") from error
    finally:
        taken.unlink(missing_ok=True)


def __getattr__(name: str):
    if name in ("push_to_hub", "from_pretrained", "save_pretrained"):  # their home until 0.1
        warnings.warn(f"offprint.models.hub.{name} is offprint.models.sharing.{name} now", DeprecationWarning, 2)
        return getattr(importlib.import_module("offprint.models.sharing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
