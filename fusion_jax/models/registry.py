"""The one table of recipe names: what can be compared, predicted with and exported by name and JSON arguments."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from fusion_jax.data.cohort import Cohort
from fusion_jax.models.recipe import Recipe, open_recipe
from fusion_jax.records.arguments import as_json, close_to, from_json

__all__ = [
    "RECIPES",
    "Described",
    "Entry",
    "arguments_of",
    "defaults_of",
    "describe",
    "load_recipe",
    "make_recipe",
    "resolved",
    "single",
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
      kind: "deep" for networks, "classical" for tables, "searched" for searched cells, "tuned" for a choice among them.
      text: what it is, in a line.
      defaults: arguments that the name stands for.
    """

    kind: Literal["deep", "classical", "searched", "tuned"]
    text: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments that it takes."""
        return tuple(field.name for field in dataclasses.fields(_made(self.kind)) if field.name not in FIXED)


FIXED = ("name", "family")
"""Fields that follow from the name."""

SINGLE_SUFFIX = "-only"

_DEEP = {
    "image-only": "a network of all images, without clinical data",
    "clinical-only": "a network of the clinical data alone",
    "concatenate": "features of every source side by side",
    "add": "features of every source added",
    "multiply": "features of every source multiplied",
    "average": "features of every source averaged",
    "gated": "features weighed by gates that look at all of them",
    "film": "image features scaled and shifted by the clinical ones",
    "bilinear": "low-rank products of the features of the sources",
    "cross-attention": "sources that attend to each other",
    "feature-fusion": "image features beside clinical values as they are",
    "positional": "image features beside positional encodings of clinical values",
    "probability": "a network a source, and a layer over their probabilities",
    "averaging": "a network a source, and the mean of their probabilities",
    "published": "a published network, named by the argument `model`",
    "genotype": "a network of cells that a search has found; `genotype:PATH` takes its file",
}

_CLASSICAL = {
    "logistic-regression": "ridge-penalised logistic regression",
    "elastic-net": "logistic regression with an elastic-net penalty",
    "random-forest": "random forest",
    "gradient-boosting": "boosted trees",
    "cox": "ridge-penalised Cox regression, for survival",
}

_FEATURES = {"": "clinical", "+measurements": "all"}
_READS = {"clinical": "of clinical data", "all": "of clinical data and measurements inside the mask"}

RECIPES: Mapping[str, Entry] = MappingProxyType(
    {name: Entry("deep", text) for name, text in _DEEP.items()}
    | {
        f"{family}{suffix}": Entry("classical", f"{text} {_READS[features]}", {"features": features})
        for suffix, features in _FEATURES.items()
        for family, text in _CLASSICAL.items()
    }
    | {"mm-nas": Entry("searched", "a network of cells that are searched among the training patients")}
    | {"tuned": Entry("tuned", "the best of several recipes, chosen by cross-validation of the training patients")}
)
"""Name to entry; beside these, `<source>-only` is a network of one source of the cohort."""


class Described(NamedTuple):
    """A recipe in words.

    Attributes:
      name, kind, text: as in the table.
      arguments: with their defaults, as JSON holds them.
    """

    name: str
    kind: str
    text: str
    arguments: Mapping[str, Any]


def make_recipe(name: str, arguments: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a name.

    Args:
      name: in `RECIPES`, `<source>-only`, or `genotype:PATH`.
      arguments: as JSON holds them; the others have their defaults.

    Raises:
      ValueError: no such name, argument or choice; the message names the close ones.
      TypeError: an argument of another type.

    Example:
      >>> make_recipe("logistic-regression", {"strength": 0.1}).arguments()
      {'strength': 0.1}
    """
    name, arguments = resolved(name, arguments)
    entry = _entry(name)
    given = {**entry.defaults, **arguments}
    fixed = {"name": name, "family": name.split("+")[0]} if entry.kind == "classical" else {"name": name}
    return _named(name, entry.kind, given, fixed)


def resolved(name: str, arguments: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and arguments that need no file: `genotype:PATH` becomes `genotype` with what the file holds.

    Args:
      name: of a recipe, or `genotype:PATH`.
      arguments: of it; they go before those of the file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no genotype.

    Example:
      >>> resolved("gated", {"features": 8})
      ('gated', {'features': 8})
    """
    kind, _, path = name.partition(":")
    if kind != "genotype" or not path:
        return name, dict(arguments or {})
    from fusion_jax.models.architecture import of_genotype_file

    stored, given = of_genotype_file(path), dict(arguments or {})
    settings = {**stored.get("settings", {}), **given.get("settings", {})}
    return kind, {**stored, **given, **({"settings": settings} if settings else {})}


def arguments_of(recipe: Any) -> dict[str, Any]:
    """Arguments of a recipe that differ from those its name stands for."""
    defaults = defaults_of(recipe.name)
    found = {name: as_json(getattr(recipe, name)) for name in defaults}
    return {name: value for name, value in found.items() if value != defaults[name]}


def defaults_of(name: str) -> dict[str, Any]:
    """Arguments of a recipe with their defaults, as JSON holds them.

    Raises:
      ValueError: no such recipe.

    Example:
      >>> defaults_of("random-forest")["trees"]
      500
    """
    entry = _entry(name)
    fields = [field for field in dataclasses.fields(_made(entry.kind)) if field.name not in FIXED]
    found = {}
    for field in fields:
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        found[field.name] = as_json(made)
    return found | {key: as_json(value) for key, value in entry.defaults.items()}


def describe() -> tuple[Described, ...]:
    """All recipes with their arguments and defaults.

    Example:
      >>> next(entry.text for entry in describe() if entry.name == "random-forest")
      'random forest of clinical data'
    """
    return tuple(Described(name, entry.kind, entry.text, defaults_of(name)) for name, entry in RECIPES.items())


def load_recipe(folder: Any) -> Recipe:
    """The recipe that was fitted in a folder, by the name and arguments recorded there.

    Raises:
      FileNotFoundError: the folder holds no fitted recipe.
      ValueError: its record is damaged.
    """
    content = open_recipe(folder)
    return make_recipe(content["name"], content["arguments"])


def single(cohort: Cohort, recipe: Recipe) -> bool:
    """Whether a recipe reads one source of the cohort, masks aside, so that a fused model has to beat it.

    Example:
      >>> import numpy as np
      >>> cohort = Cohort.from_arrays({"clinical": np.zeros((4, 3))}, label=[0, 1, 0, 1])
      >>> single(cohort, make_recipe("logistic-regression"))
      True
    """
    return len([name for name in recipe.sources(cohort) if cohort.sources[name].kind != "mask"]) == 1


def _entry(name: str) -> Entry:
    if name in RECIPES:
        return RECIPES[name]
    source = name.removesuffix(SINGLE_SUFFIX)
    if name.endswith(SINGLE_SUFFIX) and source:
        return Entry("deep", f"a network of the source {source} alone")
    raise ValueError(
        f"no recipe {name!r}; {close_to(name, RECIPES)} `<source>-only` is a network of one source of the cohort."
    )


def _made(kind: str) -> Any:
    # Imported here: names and help need neither Flax nor scikit-learn.
    if kind == "deep":
        from fusion_jax.models.deep import DeepRecipe

        return DeepRecipe
    if kind == "searched":
        from fusion_jax.models.searched import SearchedRecipe

        return SearchedRecipe
    if kind == "tuned":
        from fusion_jax.models.tuned import TunedRecipe

        return TunedRecipe
    from fusion_jax.models.classical import ClassicalRecipe

    return ClassicalRecipe


def _named(name: str, kind: str, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> Recipe:
    made = _made(kind)
    return from_json(made, given, where=f"recipe {name!r}", fixed=fixed)
