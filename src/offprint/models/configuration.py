"""A model's weights and input in timm's words (``pretrained_cfg``), made from the release that it was built with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offprint.models.registry import IMAGENET, entry

if TYPE_CHECKING:
    from offprint.models.backbone import Backbone


def configuration(model: Backbone) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of a backbone.

    The input, its preprocessing, the licence and the address are those of the loaded weights, or of the first released ones;
    ``num_classes`` is the classifier's in that file. A model without released weights has its paper's input and no address, one
    that was not made by name the usual input of ImageNet.
    """
    spec = model.__dict__.get("spec")
    made = entry(spec["name"]) if spec else None
    release = made.release(spec["weights"] or True) if made is not None and made.weights else None
    preprocessing = dict(
        IMAGENET if made is None else (release.preprocessing if release else None) or made.preprocessing
    )
    size = (release.input_size if release else None) or (made.input_size if made else None) or (3, 224, 224)
    url = release.url if release else ""
    owner, _, file = url.removeprefix("hf:").rpartition("/") if url.startswith("hf:") else ("", "", "")
    layers = dict(model.named_modules())
    first = next(name for name in model.input_layers if name in layers)
    classes = release.num_classes if release else made.kwargs.get("num_classes") if made else None
    return {
        "architecture": made.name if made else type(model).__name__,
        "tag": made.tag(spec["weights"] or True) if release else "",
        "url": "" if owner else url,
        **({"hf_hub_id": owner, "hf_hub_filename": file} if owner else {}),
        "source": "" if not url else "hf-hub" if owner else "url",
        "custom_load": True,  # read by offprint.load_weights, which knows the tensor names
        "input_size": tuple(size),
        "min_input_size": (size[0], model.minimum, model.minimum),
        "fixed_input_size": False,
        "interpolation": preprocessing.get("interpolation", "bicubic"),
        "crop_pct": preprocessing.get("crop_pct", 0.875),
        "crop_mode": preprocessing.get(
            "crop_mode", "squash" if preprocessing.get("crop_pct", 0.875) >= 1 else "center"
        ),
        "mean": tuple(preprocessing["mean"]),
        "std": tuple(preprocessing["std"]),
        "num_classes": (model.num_classes if classes is None else classes),
        "pool_size": model.map_size(*size[1:]),
        "first_conv": first,
        "classifier": model.classifier,
        "license": release.licence.lower() if release else "",
    }
