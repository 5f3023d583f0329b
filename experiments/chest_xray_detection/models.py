"""The detectors of the experiment, as names in its tables and recipes with their arguments."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from experiments.chest_xray_detection.cohort import COLUMNS, COVID_COLUMNS, JSRT_COLUMNS
from experiments.chest_xray_detection.config import Config, Settings
from experiments.chest_xray_detection.features import FEATURE_SETS
from experiments.command_line import pretrained
from fusion_jax.data.tabular import Column, Number, columns_to_json
from fusion_jax.detection.config import PUBLISHED_DETECTORS, DetectorConfig

__all__ = [
    "BASELINE",
    "CHOICES",
    "DUAL",
    "FUSION",
    "NAMES",
    "PUBLISHED",
    "feature_models",
    "fusion_models",
    "model",
    "real_model",
]

Choice = dict[str, Any]

PUBLISHED = ("mask-rcnn", "msf-net-3d", "msf-net-1d", "mdf-net")

BASELINE, DUAL = "mask-rcnn", "mdf-net"

NAMES: Mapping[str, str] = {
    "mask-rcnn": "Mask R-CNN",
    "msf-net-3d": "MSF-Net (3D)",
    "msf-net-1d": "MSF-Net (1D)",
    "mdf-net": "MDF-Net",
    "concatenate": "MDF-Net, maps concatenated",
    "gate": "MDF-Net, maps gated",
    "film": "MDF-Net, maps modulated (FiLM)",
    "blocks": "MDF-Net, vector made an image by deconvolutions",
    "repeat": "MDF-Net, vector repeated over the map",
    "depth": "MDF-Net, f_fused of one convolution, residual",
    "retinanet": "one stage, image alone",
    "retinanet-dual": "one stage, dual fusion",
}

FUSION: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "concatenate": ("mdf-net", {"fuse": "concatenate"}),
    "gate": ("mdf-net", {"fuse": "gate"}),
    "film": ("mdf-net", {"fuse": "film"}),
    "blocks": ("mdf-net", {"spatialise": "blocks"}),
    "repeat": ("mdf-net", {"spatialise": "repeat"}),
    "depth": ("mdf-net", {"fuse_depth": 1, "fuse_residual": True}),
    "retinanet": ("retinanet", {}),
    "retinanet-dual": ("retinanet-dual", {}),
}
"""Ways of fusing beside the published one: name to recipe and changes of the detector."""

CHOICES: Mapping[str, tuple[str, Mapping[str, Any]]] = {name: (name, {}) for name in PUBLISHED} | dict(FUSION)


def model(config: Config, settings: Settings, name: str) -> Choice:
    """A detector for images with the ten clinical features."""
    recipe, changes = CHOICES[name]
    return _choice(config, settings, recipe, COLUMNS, {**settings.detector, **changes}, dict(settings.training))


def real_model(config: Config, settings: Settings, name: str, *, lungs: bool = False) -> Choice:
    """A detector for JSRT's nodules or for lungs, with age and sex."""
    columns = COVID_COLUMNS if lungs else JSRT_COLUMNS
    training = {**settings.training, **(settings.lungs if lungs else settings.nodules)}
    return _choice(config, settings, name, columns, dict(settings.detector), training)


def fusion_models(config: Config, settings: Settings) -> dict[str, Choice]:
    """Ways of fusing, without the one that the preset's MDF-Net is."""
    as_it_is = DetectorConfig(classes=("any",)).to_json() | dict(settings.detector)
    varied = {
        name: changes
        for name, (recipe, changes) in FUSION.items()
        if recipe != DUAL or any(as_it_is[field] != value for field, value in changes.items())
    }
    return {name: model(config, settings, name) for name in varied}


def feature_models(config: Config, settings: Settings) -> dict[str, Choice]:
    """MDF-Net with each of the published sets of features; that with all of them is `mdf-net`."""
    made = {}
    for name, features in FEATURE_SETS.items():
        if name == "all":
            continue
        made[name] = model(config, settings, DUAL)
        made[name]["arguments"] |= {"columns": _declared([one for one in COLUMNS if one.name in features], settings)}
    return made


def _choice(
    config: Config,
    settings: Settings,
    recipe: str,
    columns: tuple[Column, ...],
    detector: Mapping[str, Any],
    training: dict[str, Any],
) -> Choice:
    trunk = pretrained(config, "mobilenet_v3_small of torchvision or timm")
    arguments = {"image_size": [settings.size, settings.size], "columns": _declared(columns, settings), **training}
    if detector:
        arguments["config"] = dict(detector)
    if trunk is not None:
        arguments["weights"] = {
            "image": trunk,
            **({"clinical": trunk} if _has_clinical_trunk(recipe, detector) else {}),
        }
    return {"recipe": recipe, "arguments": arguments}


def _has_clinical_trunk(recipe: str, detector: Mapping[str, Any]) -> bool:
    return bool(PUBLISHED_DETECTORS[recipe].get("maps_fusion")) and detector.get("spatialise", "blocks") == "blocks"


def _declared(columns: Iterable[Column], settings: Settings) -> list[dict[str, Any]]:
    """Declarations, scaled by the training cases unless the preset wants raw values as published."""
    raw = settings.training.get("clinical_values") == "native"
    return list(
        columns_to_json(
            [replace(one, scale="none" if raw else "standard") if isinstance(one, Number) else one for one in columns]
        )
    )
