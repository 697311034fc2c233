"""Models given away and taken back: a folder, or a repository of the Hugging Face hub, from which a model is rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

from offprint.errors import CheckpointError
from offprint.files import atomic_write
from offprint.models.checkpoint import load_weights, save_weights
from offprint.models.factory import create_model


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
    from huggingface_hub import ModelHubMixin, hf_hub_download

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
