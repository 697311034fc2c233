"""The checkpoint reader: a file of weights, whoever wrote it, into one of our models.

A model's class lists its dialects as data. The reader opens the file without executing anything from it, unwraps the
usual containers and prefixes, tries each dialect, and takes the one under which the names fit. A file that fits none is
refused with the first names that did not.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from offprint.errors import CheckpointError
from offprint.files import fetched

CONTAINERS = ("state_dict", "model_state_dict", "model", "params_ema", "params", "net", "teacher", "student", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "model.module.")
Reshape = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


@dataclass(frozen=True)
class Dialect:
    """How one library's or author's tensor names map onto ours.

    Args:
        name: whose names (``"timm"``, ``"torchvision"``, ``"monai"``, ``"authors"``).
        renames: (regular expression, replacement) pairs, applied in order to each name with :func:`re.sub`.
        ignore: regular expression; names of the file that match are of no use to us and are left out.
        reshape: for what renaming cannot say; gets the renamed tensors and the model, returns tensors in our layout.
        part: regular expression, where files of this dialect hold a part of the model only: the names of ours that they give.
    """

    name: str
    renames: tuple[tuple[str, str], ...] = ()
    ignore: str = ""
    reshape: Reshape | None = None
    part: str = ""

    def apply(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        rules = [(re.compile(a), b) for a, b in self.renames]
        out: dict[str, Tensor] = {}
        for name, value in state.items():
            if self.ignore and re.search(self.ignore, name):
                continue
            for pattern, replacement in rules:
                name = pattern.sub(replacement, name)
            out[name] = value
        return self.reshape(out, model) if self.reshape else out


@dataclass
class LoadReport:
    """What a load did: the dialect, and the names loaded, adapted, dropped and left as they were."""

    dialect: str
    source: str
    loaded: int = 0
    adapted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors from {self.source} ({self.dialect} names)"]
        for label, names in (("adapted", self.adapted), ("dropped", self.dropped), ("left as initialised", self.fresh)):
            if names:
                parts.append(f"{label}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}")
        return "; ".join(parts)


def _harmless() -> list:
    """Plain values that training scripts leave beside the tensors: options, and numbers of NumPy. None of them runs anything."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # the function that rebuilds a NumPy number
    kinds = [type(np.dtype(k)) for k in ("bool", "int32", "int64", "float32", "float64")]
    return [argparse.Namespace, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *kinds]


def _unpacked(path: Path) -> Path | io.BytesIO:
    """The path itself, or the one weight file inside of a zip archive (a torch file is an archive with a ``data.pkl``)."""
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(n.rsplit("/", 1)[-1] == "data.pkl" for n in names):
            return path
        inside = [n for n in names if n.endswith((".pt", ".pth", ".bin")) and not n.startswith("__MACOSX")]
        if len(inside) != 1:
            raise CheckpointError(
                f"{path} is an archive of {len(names)} files, {len(inside)} of them weight files ({', '.join(inside[:4]) or '-'}); "
                "unpack it and give the file you mean"
            )
        return io.BytesIO(archive.read(inside[0]))


def read_file(path: str | Path) -> dict:
    """Open a weight file (safetensors, or a torch file read with ``weights_only=True``) without executing code.

    A zip archive with one torch file inside is opened as that file.

    Raises:
        CheckpointError: no such file, a truncated or damaged one, or one that would run code when opened.
    """
    path = fetched(path, "the weight file")
    if not path.is_file():
        raise CheckpointError(
            f"no weight file at {str(path)!r}; give the path of a .safetensors, .pt, .pth or .bin file"
        )
    with path.open("rb") as stream:
        head = stream.read(16)
    size = path.stat().st_size
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged or truncated ({size:,} bytes): {error}; fetch it again"
            ) from error
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(_unpacked(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) or "Unsupported" in str(error):
            reason = str(error).replace("\n", " ")
            hit = re.search(r"(?:GLOBAL|global|Unsupported (?:global|class|operand|function)[^\w]*)\s*([\w.]+)", reason)
            raise CheckpointError(
                f"{path} holds more than tensors and would run code when opened"
                f"{f' ({hit.group(1)})' if hit else ''}; it was not loaded. "
                "Save its state dict alone, or convert it to safetensors in an environment you trust"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a weight file: {error}; fetch it again") from error
    except CheckpointError:
        raise
    except (
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        UnicodeDecodeError,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged, truncated or not a weight file ({size:,} bytes): {str(error).splitlines()[0]}; fetch it again"
        ) from error


def unwrap(raw: Mapping, source: str) -> dict[str, Tensor]:
    """The flat {name: tensor} inside a checkpoint: containers such as ``"model"`` or ``"state_dict"`` are opened."""
    seen = raw
    for _ in range(4):
        if not isinstance(seen, Mapping):
            break
        tensors = {k: v for k, v in seen.items() if isinstance(v, Tensor)}
        inner = [k for k in CONTAINERS if isinstance(seen.get(k), Mapping)]
        if tensors or not inner:
            break
        seen = seen[inner[0]]
    if not isinstance(seen, Mapping):
        raise CheckpointError(f"{source} holds a {type(seen).__name__}, not a mapping of tensors")
    flat = {str(k): v for k, v in seen.items() if isinstance(v, Tensor)}
    if not flat:
        keys = ", ".join(map(str, list(seen)[:8])) or "nothing"
        raise CheckpointError(f"{source} holds no tensors (its keys: {keys}); looked under {', '.join(CONTAINERS)}")
    return flat


def _stripped(state: dict[str, Tensor], wanted: set[str], dialects, model) -> list[dict[str, Tensor]]:
    """The state as it is, and without each prefix that nearly all names carry."""
    forms = [state]
    current = state
    for _ in range(3):
        for prefix in PREFIXES:
            carrying = [k for k in current if k.startswith(prefix)]
            if carrying and len(carrying) >= 0.5 * len(current):
                current = {k.removeprefix(prefix): v for k, v in current.items() if k.startswith(prefix)}
                forms.append(current)
                break
        else:
            break
    return forms


def _adapt_input(value: Tensor, target: torch.Size) -> Tensor | None:
    """A first layer's weight for another number of input channels: summed to one, or repeated and rescaled to several."""
    if value.ndim != len(target) or value.shape[0] != target[0] or value.shape[2:] != target[2:]:
        return None
    have, want = value.shape[1], target[1]
    if want == 1:
        return value.sum(1, keepdim=True)
    repeats = -(-want // have)
    return value.repeat(1, repeats, *[1] * (value.ndim - 2))[:, :want] * (have / want)


def _wanted(model: nn.Module) -> tuple[dict[str, Tensor], set[str], set[str]]:
    """A model's state, its parameters' names, and the names a file must give."""
    own = model.state_dict()
    parameters = {n for n, _ in model.named_parameters()}
    return (
        own,
        parameters,
        {n for n in own if n in parameters or n.rsplit(".", 1)[-1] in ("running_mean", "running_var")},
    )


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    drop_head: bool = False,
    strict: bool = True,
    dialect: str = "",
) -> LoadReport:
    """Load a checkpoint in any dialect the model knows.

    Args:
        model: one of ours (its class may declare ``dialects``, ``native``, ``input_layers``, ``classifier``,
            ``optional_state`` and ``adapt_state``).
        source: a weight file, or a mapping of names to tensors.
        drop_head: when the file's classifier has another number of classes, leave it out (the model keeps its own, freshly
            initialised).
        strict: refuse a file that leaves parameters of the model unset or holds tensors the model has no place for.
        dialect: the one to take where several fit equally well.

    Returns:
        A report of what was mapped, adapted and dropped.

    Raises:
        CheckpointError: the file is damaged or unsafe, fits no dialect, or holds another size of this model.
    """
    label = "the mapping" if isinstance(source, Mapping) else str(source)
    raw = source if isinstance(source, Mapping) else read_file(source)
    state = unwrap(raw, label)
    own, parameters, needed = _wanted(model)
    optional = re.compile(getattr(model, "optional_state", "") or r"(?!)")
    dialects = [Dialect(getattr(model, "native", "authors")), *getattr(model, "dialects", ())]
    dialects.sort(key=lambda d: d.name != dialect)

    best = None
    for form in _stripped(state, needed, dialects, model):
        for candidate in dialects:
            try:
                mapped = candidate.apply(form, model)
            except (KeyError, ValueError, IndexError, RuntimeError, AttributeError):
                continue  # its reshaping met names or shapes that are not of this dialect
            names = set(mapped)
            score = len(needed & names) - 0.5 * len(names - set(own)) - 0.25 * len(needed - names)
            if best is None or score > best[0]:
                best = (score, candidate, mapped)
    if best is None or not (needed & set(best[2])):
        some = ", ".join(list(state)[:4])
        raise CheckpointError(
            f"{label} fits no dialect of {type(model).__name__} ({', '.join(d.name for d in dialects)}); "
            f"its first names: {some}; ours: {', '.join(sorted(needed)[:4])}"
        )
    _, found, mapped = best
    report = LoadReport(found.name, label)
    adapt = getattr(model, "adapt_state", None)
    if callable(adapt):
        before = dict(mapped)
        mapped = adapt(mapped)
        own, parameters, needed = _wanted(model)  # adapting may have changed the model's form
        report.adapted += [k for k in mapped if k not in before or before[k].shape != mapped[k].shape]

    heads = tuple(getattr(model, "head_modules", ())) if getattr(model, "out_indices", None) is not None else ()
    classifier = getattr(model, "classifier", "")
    without_classifier = bool(classifier) and getattr(model, "num_classes", None) == 0
    first = tuple(f"{n}.weight" for n in getattr(model, "input_layers", ()))
    ready, unexpected, wrong = {}, [], []
    for name, value in mapped.items():
        if name not in own:
            of_head = name.split(".")[0] in heads or (without_classifier and name.startswith(classifier + "."))
            if of_head:
                report.dropped.append(name)
            elif name.rsplit(".", 1)[-1] != "num_batches_tracked" and not optional.search(name):
                unexpected.append(name)
            continue
        want = own[name].shape
        if value.shape == want:
            ready[name] = value
        elif name in first and (adapted := _adapt_input(value, want)) is not None:
            ready[name] = adapted
            report.adapted.append(name)
        elif value.numel() == own[name].numel() and name not in parameters and name not in needed:
            ready[name] = value.reshape(want)
        elif name not in needed:
            report.dropped.append(name)
        elif classifier and name.startswith(classifier + ".") and value.shape[1:] == want[1:]:
            if not drop_head:
                raise CheckpointError(
                    f"{label} has a classifier of {value.shape[0]} classes, the model one of {want[0]} ({name}); "
                    f"pass drop_head=True to load the rest and train a new classifier, or num_classes={value.shape[0]}"
                )
            report.dropped.append(name)
        else:
            wrong.append(f"{name}: file {tuple(value.shape)}, model {tuple(want)}")
    if wrong:
        raise CheckpointError(
            f"{label} is of another size of {type(model).__name__} ({len(wrong)} tensors differ): {'; '.join(wrong[:3])}; "
            "choose the variant the file was made with"
        )
    missing = sorted(needed - set(ready))
    tolerated = {
        n
        for n in missing
        if optional.search(n)
        or (drop_head and classifier and n.startswith(classifier + "."))
        or (found.part and not re.search(found.part, n))
    }
    report.fresh = sorted(tolerated)
    missing = [n for n in missing if n not in tolerated]
    if strict and (missing or unexpected):
        raise CheckpointError(
            f"{label} does not fit {type(model).__name__} (closest: {found.name} names): "
            f"{len(missing)} tensors missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(unexpected)} without a place ({', '.join(unexpected[:3]) or '-'})"
        )
    report.fresh = sorted({*report.fresh, *missing})
    report.dropped += unexpected
    for name, value in ready.items():
        if own[name].is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{label}: {name} holds values that are not finite; the file is damaged")
    with torch.no_grad():
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in ready.items()}, strict=False)
    report.loaded = len(ready)
    return report


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """Write a model's tensors to a safetensors file, whole or not at all (a failed write leaves the old file)."""
    from safetensors.torch import save

    from offprint.files import atomic_write

    path = Path(path)
    atomic_write(path, save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}))
    return path
