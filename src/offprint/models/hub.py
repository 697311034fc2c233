"""Released weights: found locally, fetched once, checked, kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.error import URLError

from offprint.errors import CheckpointError
from offprint.files import atomic_write
from offprint.models.registry import Weights


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
            f"{path} has SHA-256 {got[:16]}..., expected {sha256[:16]}...; delete it and fetch it again"
        )


def local_copy(filename: str) -> Path | None:
    """A file of this name under ``OFFPRINT_WEIGHTS`` (searched through) or in the cache, if there is one."""
    root = os.environ.get("OFFPRINT_WEIGHTS")
    if root:
        if not Path(root).is_dir():
            raise CheckpointError(
                f"OFFPRINT_WEIGHTS={root!r} is not a folder; point it at the folder that holds the weight files"
            )
        found = sorted(Path(root).rglob(filename))
        if found:
            return found[0]
    cached = cache_dir() / filename
    return cached if cached.is_file() else None


def fetch(weights: Weights, progress: bool = True) -> Path:
    """The local path of released weights: ``OFFPRINT_WEIGHTS``, then the cache, then the network.

    Args:
        weights: what to fetch.
        progress: show a progress bar.

    Raises:
        CheckpointError: the network is not there (the message says where to put the file by hand), or the digest differs.
    """
    filename = weights.url.rsplit("/", 1)[-1]
    found = local_copy(filename)
    if found is not None:
        verify(found, weights.sha256)
        return found
    target = cache_dir() / filename
    by_hand = (
        f"put the file {filename} into a folder and set OFFPRINT_WEIGHTS to it, or into {target.parent}, "
        "or pass checkpoint_path="
    )
    if weights.url.startswith("hf:"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        owner, repository, file = weights.url[3:].split("/", 2)
        try:
            path = Path(hf_hub_download(f"{owner}/{repository}", file))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise CheckpointError(
                f"could not fetch {file} of {owner}/{repository} from the Hugging Face hub ({type(error).__name__}); {by_hand}"
            ) from error
        verify(path, weights.sha256)
        return path
    import torch

    part = target.with_name(f".{filename}.{os.getpid()}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(weights.url, str(part), progress=progress)
        verify(part, weights.sha256)
        os.replace(part, target)
    except (URLError, OSError, RuntimeError) as error:
        raise CheckpointError(f"could not fetch {weights.url} ({error}); {by_hand}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def push_to_hub(
    model, repo_id: str, *, private: bool = False, token: str | None = None, message: str = "Upload model"
) -> str:
    """Upload a registry model (safetensors, and a config that rebuilds it) to the Hugging Face hub.

    Args:
        model: a model made by :func:`offprint.create_model`.
        repo_id: ``"owner/name"``; made if it is not there.
        private, token: as in huggingface_hub.
        message: commit message.

    Returns:
        The address of the commit.
    """
    return _mixin().wrap(model).push_to_hub(repo_id, private=private, token=token, commit_message=message)


def from_pretrained(repo_id: str, **kwargs):
    """Rebuild a model from a hub repository, or a local folder, that :func:`push_to_hub` or :func:`save_pretrained` wrote."""
    return _mixin().from_pretrained(repo_id, **kwargs).model


def save_pretrained(model, folder: str | Path) -> Path:
    """Write a registry model to a folder: ``model.safetensors`` and ``config.json``."""
    _mixin().wrap(model).save_pretrained(folder)
    return Path(folder)


def _mixin():
    """A model in huggingface_hub's own mixin; made here so that importing the package does not import the hub."""
    import json

    from huggingface_hub import ModelHubMixin, hf_hub_download

    from offprint.models.checkpoint import load_weights, save_weights
    from offprint.models.registry import create_model

    class HubModel(ModelHubMixin, library_name="offprint", tags=["offprint"]):
        def __init__(self, model=None):
            self.model = model

        @classmethod
        def wrap(cls, model):
            if not hasattr(model, "spec"):
                raise CheckpointError(
                    f"{type(model).__name__} was not made by offprint.create_model, so it cannot be rebuilt by name"
                )
            return cls(model)

        def _save_pretrained(self, save_directory: Path) -> None:
            save_weights(self.model, save_directory / "model.safetensors")
            atomic_write(save_directory / "config.json", json.dumps(self.model.spec, indent=1))

        @classmethod
        def _from_pretrained(
            cls, *, model_id, revision=None, cache_dir=None, force_download=False, token=None, **kwargs
        ):
            def file(name: str) -> Path:
                local = Path(model_id) / name
                if local.is_file():
                    return local
                return Path(hf_hub_download(model_id, name, revision=revision, cache_dir=cache_dir,
                                            force_download=force_download, token=token))  # fmt: skip

            spec = json.loads(file("config.json").read_text())
            if not {"name", "kwargs"} <= set(spec):
                raise CheckpointError(
                    f"{model_id} has a config.json of another library (keys: {', '.join(list(spec)[:6])})"
                )
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["kwargs"].items()}
            model = create_model(spec["name"], features_only=spec.get("features_only", False), out_indices=spec.get("out_indices"),
                                 **options)  # fmt: skip
            load_weights(model, file("model.safetensors"))
            return cls(model)

    return HubModel
