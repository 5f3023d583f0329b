"""What a recipe is: from a cohort and a split to a folder, and from the folder to predictions.

`compare`, cross-validation, `predict` and `export` run recipes and know nothing else of a model. A recipe is addressed
by the name and the JSON arguments that `recipe.json` in its folder holds, beside the schema of the cohort it was fitted
to.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Key
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split
from fusion_jax.models.schema import schema_of
from fusion_jax.models.target import Target
from fusion_jax.records import run_record, write_json

__all__ = ["RECORD", "Recipe", "Report", "open_recipe", "show_chosen", "write_recipe"]

RECORD = "recipe.json"

FORMAT = 1

LEFT_BEHIND = (
    "division.json", "metrics.jsonl", "quality.jsonl", "quality.json", "quality_cases.csv", "quality_densities.npz",
)  # fmt: skip
"""What reports and predictions read of a training: shown in the folder of the whole recipe, too."""

Report = Callable[[Any], None]
"""Told how a training is getting on; see `fusion_jax.training.fit`."""


@runtime_checkable
class Recipe(Protocol):
    """A way to predict, with its settings."""

    @property
    def name(self) -> str:
        """In the table of recipes."""
        ...

    def arguments(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON holds it; with `name` it makes this recipe again."""
        ...

    def sources(self, cohort: Cohort) -> tuple[str, ...]:
        """Sources of the cohort that it reads.

        Raises:
          ValueError: the recipe does not suit the cohort; the message says what it lacks.
        """
        ...

    def fit(self, cohort: Cohort, split: Split, key: Key, folder: Path, *, report: Report | None = None) -> None:
        """Train on a split, and leave all that predictions need in a folder.

        Args:
          cohort: with the training and validation cases of the split. No other case of it is read, and it need not
            have the test cases: then hand over `split._replace(test=())`.
          split: `train` is fitted; `validation` decides when to stop and what to choose. Where it is empty nothing is
            set aside: a network trains for all its epochs, others choose by cross-validation inside `train`.
          key: of everything random.
          folder: of this training alone.
          report: told how it is getting on.
        """
        ...

    def predict(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
        """Predictions for rows of any cohort of the same schema; labels and times are not needed.

        Returns:
          Probabilities of the k classes, rows of sum 1; for survival the logarithm of the relative risk, shape
          `(n, 1)`.
        """
        ...


def write_recipe(folder: Path, recipe: Recipe, cohort: Cohort, *, target: Target, facts: Mapping[str, Any]) -> None:
    """Write `recipe.json`: name, arguments, schema of the cohort, and what the training came to.

    Args:
      folder: of the training.
      recipe: that was fitted.
      cohort: that it was fitted to.
      target: what is predicted.
      facts: of the training, for tables and reports, such as its initialisation and number of epochs.
    """
    content = {
        "format": FORMAT,
        "name": recipe.name,
        "arguments": recipe.arguments(),
        "schema": schema_of(cohort, recipe.sources(cohort)).to_json(),
        "target": target.to_json(),
        "facts": dict(facts),
        "run": run_record(),
    }
    write_json(folder / RECORD, content)


def open_recipe(folder: str | Path) -> dict[str, Any]:
    """What `recipe.json` of a folder says, its format checked.

    Raises:
      FileNotFoundError: the folder holds no fitted recipe.
      ValueError: the file is damaged or of another format.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; expected a folder in which a recipe was fitted.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no record of a recipe ({error}). Train it again.") from None
    return content


def show_chosen(chosen: Path, folder: Path) -> None:
    """Copy what reports read of a training into the folder of the recipe that chose it.

    Args:
      chosen: folder of the training.
      folder: of the whole recipe.
    """
    for name in LEFT_BEHIND:
        if (chosen / name).exists():
            shutil.copyfile(chosen / name, folder / name)
