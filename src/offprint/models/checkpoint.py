"""The checkpoint reader: a file of weights, whoever wrote it, into one of our models.

A model's class lists its dialects as data. The reader opens the file (:mod:`offprint.models.weight_files`), unwraps the usual
containers and prefixes, tries each dialect, and takes the one under which the names fit; of raw and averaged weights in one file it
takes the averaged ones, unless told otherwise. A model that is assembled from parts is read part by part, each in its own dialect.
Nothing is dropped in silence: what was not taken, and what was not given, stands in the report, and a strict load refuses it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from offprint.errors import CheckpointError, unknown
from offprint.models.weight_files import Leftover, holds_tensors, read_file

__all__ = ["Dialect", "Leftover", "LoadReport", "load_weights", "read_file", "save_weights", "unwrap"]

CONTAINERS = ("state_dict", "model_state_dict", "model", "params", "net", "teacher", "student", "module")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema_model", "ema")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "online_model.")
PREFIXES = (*WRAPPERS, "backbone.", "encoder.")
AVERAGED_PREFIXES = (
    "model_ema.module.",
    "model_ema.",
    "ema_model.module.",
    "ema_model.",
    "module_ema.",
    "ema.module.",
    "ema.",
)
AVERAGED_SUFFIX = "/ExponentialMovingAverage"  # TensorFlow's
AVERAGES = ("ema", "raw")
Reshape = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


@dataclass(frozen=True)
class Dialect:
    """How one library's or author's tensor names map onto ours.

    Args:
        name: whose names (``"timm"``, ``"torchvision"``, ``"monai"``, ``"authors"``).
        renames: (regular expression, replacement) pairs, applied in order to each name with :func:`re.sub`.
        ignore: regular expression; names of the file that match are of no use to us and are left out (the report lists them).
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
            ours = name
            for pattern, replacement in rules:
                ours = pattern.sub(replacement, ours)
            out[name if ours in out else ours] = (
                value  # of two that would be one, the second is left under its own name
            )
        return self.reshape(out, model) if self.reshape else out


@dataclass
class LoadReport:
    """What a load did.

    ``dialect`` is whose names the file holds, for a model of parts by part; ``average`` says which weights were taken: ``"ema"``,
    ``"raw"``, or nothing where the file does not tell; ``container`` is where in the file they lay. ``adapted`` and ``fresh`` are names
    of the model: tensors that were fitted to another size, and those that the file did not give. ``dropped`` are tensors of the
    file that were not taken, ``skipped`` what else lay in it.
    """

    dialect: str
    source: str
    loaded: int = 0
    adapted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    average: str = ""
    container: str = ""
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        which = {"ema": "averaged weights", "raw": "raw weights", "": ""}[self.average]
        where = f"from {self.container!r}" if self.container else ""
        details = ", ".join(filter(None, [f"{self.dialect} names", " ".join(filter(None, [which, where]))]))
        parts = [f"{self.loaded} tensors from {self.source} ({details})"]
        for label, names in (("adapted", self.adapted), ("dropped", self.dropped), ("left as initialised", self.fresh),
                             ("beside them", self.skipped)):  # fmt: skip
            if names:
                parts.append(f"{label}: {_some(names, 6)}")
        return "; ".join(parts)


def _some(names: list[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "") if names else "-"


# -- from a file to one flat mapping ---------------------------------------------------------------------------------
@dataclass
class _Opened:
    """The flat weights of a file, which of two sets they are, where they lay, and what lay beside them."""

    state: dict[str, Tensor]
    average: str
    container: str
    skipped: list[str]


def _about(key: object, value: object) -> str:
    return f"{key} ({value.origin})" if isinstance(value, Leftover) else str(key)


def _averages(flat: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(averaged, raw) of a flat mapping, under the names of the raw weights; the first is empty where nothing is marked.

    An average that does not hold all names (moving statistics are not averaged) has the others from the raw weights.
    """
    if "n_averaged" in flat:  # torch.optim.swa_utils.AveragedModel
        return {k: v for k, v in flat.items() if k != "n_averaged"}, {}
    marked = {k: k.removesuffix(AVERAGED_SUFFIX) for k in flat if k.endswith(AVERAGED_SUFFIX)}
    prefix = next((p for p in AVERAGED_PREFIXES if any(k.startswith(p) for k in flat)), None)
    if not marked and prefix is not None:
        marked = {k: k.removeprefix(prefix) for k in flat if k.startswith(prefix)}
    raw = {k: v for k, v in flat.items() if k not in marked}
    for other in ("", *WRAPPERS):  # the raw weights may have a prefix of their own
        names = {k: other + name for k, name in marked.items()}
        if marked and 2 * sum(name in raw for name in names.values()) >= len(names):
            return {**raw, **{name: flat[k] for k, name in names.items()}}, raw
    if marked and not raw:
        return {name: flat[k] for k, name in marked.items()}, {}
    return {}, flat


def _open(raw: object, source: str, average: str = "") -> _Opened:
    """Find the weights in what a file holds.

    Raises:
        CheckpointError: there are none, or not those that were asked for.
    """
    if average and average not in AVERAGES:
        raise unknown("kind of weights (average=)", average, AVERAGES)
    seen, path, skipped, found = raw, [], [], ""
    for _ in range(4):
        if not isinstance(seen, Mapping):
            break
        inner = {
            kind: key
            for kind, keys in (("raw", CONTAINERS), ("ema", AVERAGED))
            for key in keys[::-1]
            if isinstance(seen.get(key), Mapping) and holds_tensors(seen[key])
        }
        if not inner:
            break
        if average == "raw" and "raw" not in inner and any(isinstance(v, Tensor) for v in seen.values()):
            found = "raw"  # the tensors are here, and their average is in a container beside them
            break
        kind = average if average in inner else "ema" if "ema" in inner else "raw"
        if kind == "ema" or len(inner) == 2:
            found = kind
        if average == "raw" and kind == "ema":
            raise CheckpointError(
                f"{source} holds averaged weights only, under {inner['ema']!r}; leave out average='raw', or give another file"
            )
        key, before = inner[kind], seen
        skipped += [_about(k, v) for k, v in before.items() if k != key]
        seen = before[key]
        if len(inner) == 2 and kind == "ema" and isinstance(before[inner["raw"]], Mapping):
            # an average of the parameters alone has the rest from the raw weights
            plain = before[inner["raw"]]
            seen = {**plain, **seen} if set(seen) < set(plain) else seen
        path.append(key)
    if not isinstance(seen, Mapping):
        raise CheckpointError(f"{source} holds a {type(seen).__name__}, not a mapping of tensors")
    flat = {str(k): v for k, v in seen.items() if isinstance(v, Tensor)}
    if not flat:
        keys = ", ".join(map(str, list(seen)[:8])) or "nothing"
        raise CheckpointError(
            f"{source} holds no tensors (its keys: {keys}); looked under {', '.join((*AVERAGED, *CONTAINERS))}"
        )
    skipped += [_about(k, v) for k, v in seen.items() if not isinstance(v, Tensor)]
    averaged, plain = _averages(flat)
    if averaged:
        if average == "raw" and not plain:
            raise CheckpointError(
                f"{source} holds averaged weights only; leave out average='raw', or give another file"
            )
        found = "raw" if average == "raw" else "ema"
        flat = plain if found == "raw" else averaged
    return _Opened(flat, found, ".".join(path), skipped)


def unwrap(raw: Mapping, source: str) -> dict[str, Tensor]:
    """The flat {name: tensor} inside a checkpoint: containers such as ``"model"`` or ``"state_dict"`` are opened."""
    return _open(raw, source).state


# -- from names to a dialect -----------------------------------------------------------------------------------------
@dataclass
class _Reading:
    """One way to read a file's names as a model's: the fuller, the higher the score.

    ``left`` are tensors for which there is no way to go: outside a prefix, ignored by the dialect, or of no part.
    """

    score: float
    dialect: Dialect
    mapped: dict[str, Tensor] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    parts: dict[str, _Reading | None] = field(default_factory=dict)

    @property
    def whose(self) -> str:
        """Whose names, by part where the parts differ."""
        if self.dialect.name:
            return self.dialect.name
        known = {name: part.whose for name, part in self.parts.items() if part is not None}
        same = set(known.values())
        return same.pop() if len(same) == 1 else ", ".join(f"{name}: {whose}" for name, whose in known.items())


def _forms(state: dict[str, Tensor], prefixes: Iterable[str]) -> list[tuple[dict[str, Tensor], list[str]]]:
    """The state as it is, and with a prefix taken off the names that carry it, up to three times.

    Names without the prefix stay; one whose name is taken then goes into the list beside.
    """
    forms: list[tuple[dict[str, Tensor], list[str]]] = [(state, [])]
    for _ in range(3):
        for form, left in list(forms):
            for prefix in prefixes:
                if not any(k.startswith(prefix) for k in form):
                    continue
                bare = {k.removeprefix(prefix): v for k, v in form.items() if k.startswith(prefix)}
                rest = {k: v for k, v in form.items() if not k.startswith(prefix)}
                taken = [k for k in rest if k in bare]
                new = {**bare, **{k: v for k, v in rest.items() if k not in bare}}
                if all(set(new) != set(other) for other, _ in forms):
                    forms.append((new, [*left, *taken]))
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


def _read_whole(model: nn.Module, state: dict[str, Tensor], preferred: str) -> _Reading | None:
    """The best reading in one of the model's own dialects; ``None`` where no name fits."""
    own, _, needed = _wanted(model)
    dialects = [Dialect(getattr(model, "native", "authors")), *getattr(model, "dialects", ())]
    dialects.sort(key=lambda d: d.name != preferred)
    best = None
    for form, left in _forms(state, PREFIXES):
        for candidate in dialects:
            try:
                mapped = candidate.apply(form, model)
            except (KeyError, ValueError, IndexError, RuntimeError, AttributeError):
                continue  # its reshaping met names or shapes that are not of this dialect
            names = set(mapped)
            if not needed & names:
                continue
            score = len(needed & names) - 0.5 * (len(names - set(own)) + len(left)) - 0.25 * len(needed - names)
            if best is None or score > best.score:
                ignored = [k for k in form if candidate.ignore and re.search(candidate.ignore, k)]
                best = _Reading(score, candidate, mapped, ignored, left)
    return best


def _split(model: nn.Module, state: dict[str, Tensor], preferred: str) -> tuple[float, list[str], dict]:
    """(score, names of no part, the reading of each part): each takes the names under its prefix, or under one its class knows.

    Names under no prefix may be a bare first part, such as a file of the backbone alone.
    """
    parts: dict[str, nn.Module] = {name: getattr(model, name) for name in getattr(model, "parts", ())}
    prefixes = {p: name for name, part in parts.items() for p in (f"{name}.", *getattr(part, "prefixes", ()))}
    own: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
    outside: dict[str, Tensor] = {}
    beside = []
    for key, value in state.items():
        prefix = max((p for p in prefixes if key.startswith(p)), key=len, default="")
        where = own[prefixes[prefix]] if prefix else outside
        short = key.removeprefix(prefix)
        if short in where:
            beside.append(key)
        else:
            where[short] = value
    first = next(iter(parts))
    if not own[first] and outside and _read(parts[first], outside, preferred):
        own[first], outside = outside, {}
    beside += outside
    found, score = {}, 0.0
    for name, part in parts.items():
        found[name] = reading = _read(part, own[name], preferred) if own[name] else None
        if reading is None:
            beside += [f"{name}.{k}" for k in own[name]]
        score += -0.25 * len(_wanted(part)[2]) if reading is None else reading.score
    return score - 0.5 * len(beside), beside, found


def _read_parts(model: nn.Module, state: dict[str, Tensor], preferred: str) -> _Reading | None:
    """The best reading part by part, of the names as they are, or as one of the whole model's dialects has them."""
    best = None
    for form, left in _forms(state, WRAPPERS):
        for candidate in (Dialect(""), *getattr(model, "dialects", ())):
            score, beside, found = _split(model, candidate.apply(form, model), preferred)
            score -= 0.5 * len(left)
            if any(found.values()) and (best is None or score > best.score):
                best = _Reading(score, candidate, left=[*left, *beside], parts=found)
    return best


def _read(model: nn.Module, state: dict[str, Tensor], preferred: str) -> _Reading | None:
    return (_read_parts if getattr(model, "parts", ()) else _read_whole)(model, state, preferred)


# -- from a dialect to tensors that fit ------------------------------------------------------------------------------
@dataclass
class _Fitted:
    """What a reading comes to: tensors ready to be loaded, and every name that is not among them."""

    ready: dict[str, Tensor] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # of the file, and known to be of no use here
    unexpected: list[str] = field(default_factory=list)  # of the file, without a place
    fresh: list[str] = field(default_factory=list)  # of the model, and allowed to be missing
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, part: str, other: _Fitted) -> None:
        self.ready |= {f"{part}.{k}": v for k, v in other.ready.items()}
        for kind in ("adapted", "dropped", "unexpected", "fresh", "missing", "wrong"):
            getattr(self, kind).extend(f"{part}.{name}" for name in getattr(other, kind))


def _fit(model: nn.Module, reading: _Reading | None, drop_head: bool, label: str) -> _Fitted:
    """Sort what was read into what fits and what does not."""
    out = _Fitted()
    if reading is None:
        out.missing = sorted(_wanted(model)[2])
        return out
    if reading.parts:
        for name, part in reading.parts.items():
            out.add(name, _fit(getattr(model, name), part, drop_head, label))
        out.unexpected += reading.left
        return out
    mapped = reading.mapped
    out.dropped += reading.ignored
    adapt = getattr(model, "adapt_state", None)
    if callable(adapt):
        before = dict(mapped)
        mapped = adapt(mapped)
        out.adapted += [k for k in mapped if k not in before or before[k].shape != mapped[k].shape]
    own, parameters, needed = _wanted(model)  # adapting may have changed the model's form
    optional = re.compile(getattr(model, "optional_state", "") or r"(?!)")
    heads = tuple(getattr(model, "head_modules", ())) if getattr(model, "out_indices", None) is not None else ()
    classifier = getattr(model, "classifier", "")
    without_classifier = bool(classifier) and getattr(model, "num_classes", None) == 0
    first = tuple(f"{n}.weight" for n in getattr(model, "input_layers", ()))

    def of_no_use(name: str) -> bool:
        of_head = name.split(".")[0] in heads or (without_classifier and name.startswith(classifier + "."))
        return of_head or name.rsplit(".", 1)[-1] == "num_batches_tracked" or bool(optional.search(name))

    for name in reading.left:
        (out.dropped if of_no_use(name) else out.unexpected).append(name)
    for name, value in mapped.items():
        if name not in own:
            (out.dropped if of_no_use(name) else out.unexpected).append(name)
            continue
        want = own[name].shape
        if value.shape == want:
            out.ready[name] = value
        elif name in first and (adapted := _adapt_input(value, want)) is not None:
            out.ready[name] = adapted
            out.adapted.append(name)
        elif value.numel() == own[name].numel() and name not in parameters and name not in needed:
            out.ready[name] = value.reshape(want)
        elif name not in needed:
            out.dropped.append(name)
        elif classifier and name.startswith(classifier + ".") and value.shape[1:] == want[1:]:
            if not drop_head:
                raise CheckpointError(
                    f"{label} has a classifier of {value.shape[0]} classes, the model one of {want[0]} ({name}); "
                    f"pass drop_head=True to load the rest and train a new classifier, or num_classes={value.shape[0]}"
                )
            out.dropped.append(name)
        else:
            out.wrong.append(f"{name}: file {tuple(value.shape)}, model {tuple(want)}")
    for name in sorted(needed - set(out.ready)):
        allowed = (
            optional.search(name)
            or (drop_head and classifier and name.startswith(classifier + "."))
            or (reading.dialect.part and not re.search(reading.dialect.part, name))
        )
        (out.fresh if allowed else out.missing).append(name)
    return out


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    drop_head: bool = False,
    strict: bool = True,
    dialect: str = "",
    average: str = "",
) -> LoadReport:
    """Load a checkpoint in any dialect the model knows.

    Args:
        model: one of ours (its class may declare ``dialects``, ``native``, ``input_layers``, ``classifier``,
            ``optional_state``, ``adapt_state``, and ``parts``, the names of the modules that are read each in its own dialect).
        source: a weight file, or a mapping of names to tensors.
        drop_head: when the file's classifier has another number of classes, leave it out (the model keeps its own, freshly
            initialised).
        strict: refuse a file that leaves parameters of the model unset or holds tensors the model has no place for; otherwise
            warn of them.
        dialect: the one to take where several fit equally well.
        average: ``"ema"`` or ``"raw"`` where the file holds averaged weights beside those that were trained; default the
            averaged ones, which are those that publishers evaluate.

    Returns:
        A report of what was mapped, adapted and dropped, and which weights were taken.

    Raises:
        CheckpointError: the file is damaged or holds no weights, fits no dialect, or holds another size of this model.
    """
    label = "the mapping" if isinstance(source, Mapping) else str(source)
    opened = _open(source if isinstance(source, Mapping) else read_file(source), label, average)
    reading = _read(model, opened.state, dialect)
    if reading is None:
        parts = [(f"{name}.", getattr(model, name)) for name in getattr(model, "parts", ())]
        known = [
            f"{prefix}{d}" for prefix, m in [("", model), *parts]
            for d in dict.fromkeys([getattr(m, "native", "authors"), *(d.name for d in getattr(m, "dialects", ()))])
        ]  # fmt: skip
        raise CheckpointError(
            f"{label} fits no dialect of {type(model).__name__} ({', '.join(known)}); "
            f"its first names: {', '.join(list(opened.state)[:4])}; ours: {', '.join(sorted(_wanted(model)[2])[:4])}"
        )
    fitted = _fit(model, reading, drop_head, label)
    if fitted.wrong:
        raise CheckpointError(
            f"{label} is of another size of {type(model).__name__} ({len(fitted.wrong)} tensors differ): "
            f"{'; '.join(fitted.wrong[:3])}; choose the variant the file was made with"
        )
    if fitted.missing or fitted.unexpected:
        said = (
            f"{len(fitted.missing)} tensors missing ({_some(fitted.missing)}), "
            f"{len(fitted.unexpected)} without a place ({_some(fitted.unexpected)})"
        )
        if strict:
            raise CheckpointError(
                f"{label} does not fit {type(model).__name__} (closest: {reading.whose} names): {said}; "
                "load_weights(..., strict=False) takes what fits"
            )
        warnings.warn(f"{label}, read in {reading.whose} names: {said}", stacklevel=2)
    own = model.state_dict()
    for name, value in fitted.ready.items():
        if own[name].is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{label}: {name} holds values that are not finite; the file is damaged")
    with torch.no_grad():
        model.load_state_dict({k: v.to(own[k].dtype) for k, v in fitted.ready.items()}, strict=False)
    return LoadReport(
        reading.whose, label, len(fitted.ready), fitted.adapted, [*fitted.dropped, *fitted.unexpected],
        sorted([*fitted.fresh, *fitted.missing]), opened.average, opened.container, opened.skipped,
    )  # fmt: skip


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """Write a model's tensors to a safetensors file, whole or not at all (a failed write leaves the old file)."""
    from safetensors.torch import save

    from offprint.files import atomic_write

    path = Path(path)
    atomic_write(path, save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}))
    return path
