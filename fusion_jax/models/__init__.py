"""Models by name: the published ones, and the recipes that fit and predict.

The names are imported on first use, since a recipe of scikit-learn needs no Flax.
"""

from typing import TYPE_CHECKING

from fusion_jax.lazy import homes_of, lazy_attributes

if TYPE_CHECKING:
    from fusion_jax.models.deep import features
    from fusion_jax.models.published import PUBLISHED, STAND_INS
    from fusion_jax.models.radiomics import RadiomicSettings, radiomic_features
    from fusion_jax.models.recipe import Recipe, open_recipe
    from fusion_jax.models.registry import RECIPES, describe, load_recipe, make_recipe, single
    from fusion_jax.models.schema import Schema, check_schema
    from fusion_jax.models.target import Target, target_of
    from fusion_jax.models.task import prediction_rows, run_split, run_task

_HOMES = {
    "deep": ("features",),
    "published": ("PUBLISHED", "STAND_INS"),
    "radiomics": ("RadiomicSettings", "radiomic_features"),
    "recipe": ("Recipe", "open_recipe"),
    "registry": ("RECIPES", "describe", "load_recipe", "make_recipe", "single"),
    "schema": ("Schema", "check_schema"),
    "target": ("Target", "target_of"),
    "task": ("prediction_rows", "run_split", "run_task"),
}

__all__ = [
    "PUBLISHED",
    "RECIPES",
    "STAND_INS",
    "RadiomicSettings",
    "Recipe",
    "Schema",
    "Target",
    "check_schema",
    "describe",
    "features",
    "load_recipe",
    "make_recipe",
    "open_recipe",
    "prediction_rows",
    "radiomic_features",
    "run_split",
    "run_task",
    "single",
    "target_of",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here
    __getattr__ = lazy_attributes(__name__, homes_of(__name__, _HOMES))


def __dir__() -> list[str]:
    return sorted(__all__)
