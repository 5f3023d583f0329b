"""A recipe that chooses among settings inside the training patients, by nested cross-validation."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Key
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split
from fusion_jax.models.recipe import Recipe, Report, open_recipe, show_chosen, write_recipe
from fusion_jax.models.target import Target, target_of
from fusion_jax.models.target import Task as TargetKind
from fusion_jax.records import write_json
from fusion_jax.training.cross_validation import Task
from fusion_jax.training.inner import inner_split
from fusion_jax.training.scalars import DivergedError
from fusion_jax.training.tuning import nested_choice, write_choice
from fusion_jax.wording import listed

__all__ = ["CHOSEN", "TunedRecipe"]

CHOSEN, CHOICE, TRIALS, SCORE = "chosen", "choice.json", "trials", "score.json"

logger = logging.getLogger("fusion_jax.models.tuned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedRecipe:
    """The best of several recipes, chosen anew in every fold by cross-validation of its training patients.

    Every candidate is trained on the same inner folds and judged on the patients they leave out; the winner is then
    trained on all training patients. The tested patients have no part in the choice, so the result is that of the whole
    procedure. A network of an inner fold sets a part of its own training patients aside for stopping, or trains for all
    its epochs where they are too few.

    Attributes:
      name: "tuned".
      candidates: name to `{"recipe": name, "arguments": {...}}`; of equal ones the first wins, so name the simplest
        first.
      folds: inner ones.
      choose_by: "auc" (the concordance for survival) or "loss".
      seed: of the inner folds; the same for all models that are compared.
      task: what is predicted, where the cohort has a label and times.
    """

    name: str
    candidates: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    folds: int = 3
    choose_by: Literal["auc", "loss"] = "auc"
    seed: int = 0
    task: TargetKind = "auto"

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError(
                f"recipe {self.name!r}: no candidates; expected names with a recipe each, such as "
                '{"wide": {"recipe": "concatenate", "arguments": {"features": 64}}}.'
            )
        if self.folds < 2:
            raise ValueError(f"recipe {self.name!r}: folds is {self.folds}; expected at least 2.")
        self.recipes()

    def recipes(self) -> dict[str, Recipe]:
        """The candidates.

        Raises:
          ValueError: a candidate that is no recipe, or is tuned itself.
        """
        from fusion_jax.models.registry import make_recipe

        made: dict[str, Recipe] = {}
        for name, choice in self.candidates.items():
            if "recipe" not in choice or not set(choice) <= {"recipe", "arguments"}:
                raise ValueError(
                    f"recipe {self.name!r}: candidate {name!r} has the keys {listed(choice) or 'none'}; expected "
                    "'recipe' and perhaps 'arguments'."
                )
            if choice["recipe"] == self.name:
                raise ValueError(f"recipe {self.name!r}: candidate {name!r} is tuned itself; list its candidates here.")
            arguments = dict(choice.get("arguments") or {})
            if self.task != "auto":
                arguments.setdefault("task", self.task)
            made[name] = make_recipe(choice["recipe"], arguments)
        return made

    def arguments(self) -> dict[str, Any]:
        """What differs from the defaults."""
        from fusion_jax.models.registry import arguments_of

        return arguments_of(self)

    def sources(self, cohort: Cohort) -> tuple[str, ...]:
        """Sources that any of the candidates reads."""
        return tuple(dict.fromkeys(name for recipe in self.recipes().values() for name in recipe.sources(cohort)))

    def target(self, cohort: Cohort) -> Target:
        """What it predicts of a cohort.

        Raises:
          ValueError: a candidate predicts something else, so that the candidates cannot be told apart by one number.
        """
        wanted = target_of(cohort, self.task)
        for name, recipe in self.recipes().items():
            predicts: Any = getattr(recipe, "target", None)
            found = wanted if predicts is None else predicts(cohort)
            if found != wanted:
                raise ValueError(
                    f"recipe {self.name!r} on {cohort.name}: candidate {name!r} predicts the {found.kind}, the others "
                    f"the {wanted.kind}; expected one task. Name it as `task`, or take the candidate out."
                )
        return wanted

    def fit(self, cohort: Cohort, split: Split, key: Key, folder: Path, *, report: Report | None = None) -> None:
        """Choose, and train what was chosen; see `Recipe.fit`. Inner trainings that ended are not repeated."""
        folder = Path(folder)
        recipes, target = self.recipes(), self.target(cohort)

        def score(candidate: tuple[str, Recipe], inner: Split) -> float:
            name, recipe = candidate
            # Names of candidates are anybody's, also those that no file system takes.
            place = Task(name, split.repeat, inner.fold, 0).folder(folder / TRIALS)
            if (place / SCORE).exists():
                stored = json.loads((place / SCORE).read_text(encoding="utf-8"))
                return float("nan") if stored is None else float(stored)
            # The inner fold's own patients are judged, so those for stopping come out of its training patients.
            rows = inner.rows(cohort)
            seen = cohort.take(np.sort(rows.train))
            found = inner_split(seen, inner._replace(validation=(), test=()), seed=self.seed)
            train, validation = (tuple(seen.case_id[int(row)] for row in part) for part in found[:2])
            division = Split(split.repeat, split.fold, train, validation, (), inner.name)
            try:
                recipe.fit(seen, division, jax.random.fold_in(key, inner.fold), place, report=report)
            except DivergedError as error:  # such a candidate cannot win; the others still can
                logger.warning("candidate %s: %s", name, error)
                value = float("nan")
            else:
                value = self._judged(recipe, place, cohort, rows.validation, target)
            write_json(place / SCORE, value if np.isfinite(value) else None)
            return value

        choice = nested_choice(
            cohort,
            split._replace(test=()),
            {name: (name, recipe) for name, recipe in recipes.items()},
            score,
            model=self.name,
            folds=self.folds,
            seed=self.seed,
            mode="max" if self.choose_by == "auc" else "min",
        )
        logger.info("repeat %d, fold %d: %s was chosen", split.repeat, split.fold, choice.winner)
        write_choice(folder / CHOICE, choice)
        chosen = folder / CHOSEN
        recipes[choice.winner].fit(cohort, split, key, chosen, report=report)
        show_chosen(chosen, folder)
        facts = open_recipe(chosen)["facts"]
        tried = {"winner": choice.winner, "scores": {name: list(values) for name, values in choice.scores.items()}}
        write_recipe(folder, self, cohort, target=target, facts={**facts, "choice": tried})

    def predict(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
        """Predictions of what was chosen; see `Recipe.predict`."""
        from fusion_jax.models.registry import load_recipe

        return load_recipe(Path(folder) / CHOSEN).predict(Path(folder) / CHOSEN, cohort, rows)

    def measure(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> dict[str, Any] | None:
        """Fusion quality of what was chosen, where that is a network that fuses."""
        from fusion_jax.models.registry import load_recipe

        chosen = Path(folder) / CHOSEN
        measure: Any = getattr(load_recipe(chosen), "measure", None)
        found = measure(chosen, cohort, rows) if measure is not None else None
        show_chosen(chosen, Path(folder))
        return found

    def _judged(
        self, recipe: Recipe, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"], target: Target
    ) -> float:
        from fusion_jax.models.training_run import validation_metrics

        return validation_metrics(recipe.predict(folder, cohort, rows), cohort, rows, target)[self.choose_by]
