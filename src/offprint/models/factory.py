"""A model by its name, with its weights: timm's signature and meaning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import nn

from offprint.errors import CheckpointError, OffprintError, unknown
from offprint.models import checkpoint, hub
from offprint.models.registry import Entry, entry


def _of_another(spec: Entry, tag: str, found: str, path: object) -> str:
    """What to say of a file whose names are not those of the release that was asked for."""
    chosen = spec.weights[tag]
    others = [t for t, w in spec.weights.items() if w.dialect == found]
    use = f"use pretrained={' or '.join(map(repr, others))}" if others else f"pass it as checkpoint_path={str(path)!r}"
    return (
        f"{path} holds weights in {found} names, but {tag!r} of {spec.name} is the release of {chosen.publisher}, in "
        f"{chosen.dialect} names; {use}, or put the file from {chosen.url} in its place"
    )


def _form(value):
    """An argument as it is needed to build the model again: weights are not loaded a second time."""
    if not isinstance(value, Mapping):
        return value
    return {k: _form(v) for k, v in value.items() if k not in ("pretrained", "checkpoint_path")}


def create_model(
    name: str,
    pretrained: bool | str = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: tuple[int, ...] | list[int] | None = None,
    checkpoint_path: str | None = None,
    average: str = "",
    **kwargs,
) -> nn.Module:
    """Build a model by name; the signature and its meaning are timm's.

    Args:
        name: a name from :func:`list_models`, or ``BACKBONE+HEAD`` or ``BACKBONE+NECK+HEAD`` of :func:`offprint.parts`.
        pretrained: load the released weights (``True``: the first, or the tag of one). Which they are stands in the model's
            ``spec["weights"]``, what their publisher says of them in ``entry(name).release(tag)``.
        num_classes: outputs of the classifier; ``None`` keeps the number of the released weights or the model's own, ``0``
            drops the classifier. A released classifier of another size is dropped, since asking for the size is asking for that.
        in_chans: input channels; ``None`` is the number of the released weights or the model's own, 3 for a model of
            photographs. Weights of a checkpoint with another number are adapted.
        features_only: return a list of feature maps instead of logits (backbones).
        out_indices: which maps (0 is the finest); default all. Only with ``features_only``.
        checkpoint_path: weight file in any dialect the model knows.
        average: ``"ema"`` or ``"raw"`` where the file holds averaged weights beside those that were trained; default what its
            publisher evaluates, else the averaged ones.
        **kwargs: the model's own arguments; for a backbone also ``drop_rate`` (before the classifier) and ``global_pool``
            (``"avg"``, or ``""`` with ``num_classes=0`` for a map).

    What was loaded stands in the model's ``load_report``.

    Raises:
        OffprintError: unknown name or argument, or an argument the model does not take.
        CheckpointError: a file that cannot be loaded.
    """
    spec = entry(name)
    tag, chosen = "", None
    if pretrained:
        if checkpoint_path is not None:
            raise OffprintError("pretrained and checkpoint_path were both given; choose one source of weights")
        tag = spec.tag(pretrained)
        chosen = spec.weights[tag]
    arguments = {**spec.kwargs, **kwargs}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    elif chosen is not None and chosen.num_classes is not None:
        arguments["num_classes"] = chosen.num_classes
    takes = inspect.signature(spec.build).parameters
    # what every backbone can do, whether its constructor says so or not
    common = {k: arguments.pop(k) for k in getattr(spec.build, "common", ()) if k in arguments and k not in takes}
    if in_chans is None and chosen is not None and chosen.input_size is not None and "in_chans" in takes:
        arguments.setdefault("in_chans", chosen.input_size[0])
    if in_chans is not None and "in_chans" in takes:
        arguments["in_chans"] = in_chans
    elif in_chans not in (None, 3):
        raise OffprintError(f"{name} has no image channels to choose; in_chans={in_chans} was given")
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    for key in arguments:
        if key not in takes and not open_ended:
            raise unknown(f"argument of {name}", key, takes)
    if features_only:
        if not hasattr(spec.build, "as_features"):
            raise OffprintError(f"{name} ({spec.kind}) has no feature pyramid; features_only works with backbones")
        if num_classes:
            raise OffprintError("features_only returns maps, not logits; leave num_classes out")
    elif out_indices is not None:
        raise OffprintError("out_indices chooses among feature maps; pass features_only=True with it")
    model = spec.build(**arguments)
    if common:
        getattr(model, "set_common")(**common)  # noqa: B009
    if features_only:
        getattr(model, "as_features")(out_indices)  # noqa: B009
    model.__dict__["spec"] = {
        "name": name,
        "features_only": features_only,
        "out_indices": tuple(out_indices) if out_indices is not None else None,
        "kwargs": {k: _form(v) for k, v in (*arguments.items(), *common.items()) if spec.kwargs.get(k, ...) != v},
        "weights": tag,
    }
    if chosen is not None:
        path = hub.fetch(name, tag)
        report = checkpoint.load_weights(
            model, path, drop_head=num_classes is not None, dialect=chosen.dialect, average=average or chosen.average
        )
        if report.dialect != chosen.dialect:
            raise CheckpointError(_of_another(spec, tag, report.dialect, path))
    elif checkpoint_path is not None:
        report = checkpoint.load_weights(model, checkpoint_path, average=average)
    elif average:
        raise OffprintError(f"average={average!r} chooses among weights; pass pretrained or checkpoint_path with it")
    else:
        return model
    model.__dict__["load_report"] = report
    return model
