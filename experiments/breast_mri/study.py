"""What is compared: the cohort by its address, its features, and the models as recipes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.breast_mri.config import Config, Settings
from experiments.breast_mri.encoding import ACQUISITION, COLUMNS, feature_groups
from experiments.breast_mri.folder import folder_cohort
from fusion_jax.data.tabular import Category, Column, Number, columns_to_json
from fusion_jax.models.published import PUBLISHED

__all__ = ["LEARNED", "TABULAR", "Study", "open_study", "side_models", "table_models"]

TABULAR, LEARNED = "Non-Image-Only", "Learned Feature Fusion [L,L]"

SKIN: tuple[Column, ...] = (
    Number(name="age", unit="years", impute="median"),
    Category(name="sex", impute="mode"),
    Category(name="localization", impute="mode"),
)

VARIANTS = {
    "multiloss": ("[L,L] multiloss", "multiloss"),
    "multiopt": ("[L,L] multiopt", "multiopt"),
    # The heads of the first stage are those of the encoders.
    "stage-wise": ("[L,L] multiloss", "staged"),
}
"""Variant to the published model and the objective that trains it."""

ALONE, WITHOUT = "acquisition features alone", "without acquisition features"


class Study(NamedTuple):
    """A cohort as the experiment sees it.

    Attributes:
      name: of the cohort, for folders.
      what: it is, in words.
      address: of it, see `fusion_jax.models.comparison.compare`.
      columns: declarations of all features, as recipes take them.
      acquisition: features that say how the image was taken; none where the cohort has none.
      covariates: columns of subgroups.
      best: AUC that no model can exceed, of image, features and both; none where the truth is not known.
    """

    name: str
    what: str
    address: Mapping[str, Any]
    columns: tuple[Mapping[str, Any], ...]
    acquisition: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    best: tuple[float, ...] = ()


def open_study(config: Config, settings: Settings) -> Study:
    """The cohort that the config names.

    Raises:
      ValueError: a folder that does not have the layout; the message names the file.
    """
    seeded = {"size": settings.size, "seed": config.seed}
    if config.cohort == "synthetic":
        return Study(
            "synthetic",
            "synthetic breasts",
            {
                "function": "experiments.breast_mri.cohort:make_cohort",
                "arguments": {"n": settings.breasts, **seeded},
            },
            tuple(columns_to_json(COLUMNS)),
            ACQUISITION,
            ("indication", "breast_density", "background_enhancement"),
            # 0.821 of the features as drawn; the redrawn indication takes a part of it.
            (0.850, 0.821, 0.917),
        )
    if config.cohort == "skin":
        return Study(
            "skin",
            "skin lesions, melanoma against the rest",
            {
                "function": "experiments.breast_mri.cohort:skin_lesions",
                "arguments": {"n": settings.lesions, **seeded},
            },
            tuple(columns_to_json(SKIN)),
            covariates=("sex",),
        )
    folder = Path(config.cohort).resolve()
    cohort = folder_cohort(str(folder))
    names = cohort.columns("input")
    columns = tuple(Number(name=name, scale="none") for name in names)
    features = feature_groups(names)
    return Study(
        folder.name,
        f"cases of {folder.name}",
        {"function": "experiments.breast_mri.folder:folder_cohort", "arguments": {"folder": str(folder)}},
        tuple(columns_to_json(columns)),
        tuple(name for name in ACQUISITION if name in features),
    )


def table_models(study: Study, settings: Settings) -> dict[str, dict[str, Any]]:
    """Recipes of the paper's table, by their names there."""
    return {model: _recipe(model, study.columns, settings) for model in settings.models}


def side_models(study: Study, settings: Settings) -> dict[str, dict[str, Any]]:
    """Variants of training and the confounder audit, with the models that they are compared with.

    The audit trains again without acquisition features, and on them alone: a model that loses little without them does
    not live on which scanner an image comes from, and one that does well on them alone says that a model could.
    """
    found = {}
    for variant in settings.variants:
        model, objective = VARIANTS[variant]
        found[f"[L,L] {variant}"] = _recipe(model, study.columns, settings, objective=objective)
    if settings.audit and study.acquisition:
        rest, technical = (
            tuple(one for one in study.columns if (_feature(one) in study.acquisition) == wanted)
            for wanted in (False, True)
        )
        found[f"{TABULAR}, {WITHOUT}"] = _recipe(TABULAR, rest, settings)
        found[f"{LEARNED}, {WITHOUT}"] = _recipe(LEARNED, rest, settings)
        found[f"{TABULAR}, {ALONE}"] = _recipe(TABULAR, technical, settings)
    if not found:
        return {}
    base = [model for model in (TABULAR, LEARNED) if model in settings.models]
    return {model: _recipe(model, study.columns, settings) for model in base} | found


def _feature(column: Mapping[str, Any]) -> str:
    return str(column["name"]).partition("=")[0]


def _recipe(
    model: str, columns: tuple[Mapping[str, Any], ...], settings: Settings, *, objective: str = "default"
) -> dict[str, Any]:
    arguments: dict[str, Any] = {**settings.training, "model": model, "columns": list(columns)}
    module: Any = PUBLISHED[model]()
    if "clinical" not in module.sources:
        del arguments["columns"]
    if "image" in module.sources:
        if settings.encoder is not None:
            arguments["encoder"] = dict(settings.encoder)
    else:
        # What is done to images does not concern a model without any.
        arguments |= {"augment": "none", "test_augment": None, "test_copies": 0}
    if objective != "default":
        arguments["objective"] = objective
    return {"recipe": "published", "arguments": arguments}
