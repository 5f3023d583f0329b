"""The trained models of a comparison as one: every case is scored by the model of the fold in which it was tested."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from fusion_jax.data.cohort import Cohort, Source
from fusion_jax.evaluation.classification import auc as binary_auc
from fusion_jax.evaluation.shuffling import auc
from fusion_jax.evaluation.survival import harrell_c
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.target import survival_of
from fusion_jax.models.variants import Donors, variants
from fusion_jax.training.cross_validation import Task

__all__ = ["FoldModels", "Gap", "answers", "measure", "source_groups", "train_test_gaps"]

ROWS_AT_ONCE = 8192
"""Variants that are handed to `predict` in one call; more only take memory."""


class FoldModels:
    """The first training of a model in every fold of the first repeat, as a function of cases.

    Attributes:
      cohort: of the comparison.
      model: name in the tables.
      fold_of: index into `folders` of every row; -1 for rows that are never tested, shape `(n,)`.
      folders: of the trainings.
    """

    def __init__(self, comparison: Comparison, model: str) -> None:
        """Find the trainings of a model.

        Args:
          comparison: that was carried out.
          model: one of `comparison.models`.
        """
        made = comparison.plan
        self.cohort: Cohort = made.cohort
        self.model, self.target = model, made.target
        self.recipe = made.recipes[model]
        self.sources = made.sources[model]
        self.splits = [split for split in made.splits.splits if split.repeat == made.splits.splits[0].repeat]
        self.folders: list[Path] = []
        self.fold_of = np.full(len(self.cohort), -1)
        for number, split in enumerate(self.splits):
            self.folders.append(made.task_folder(Task(model, split.repeat, split.fold, made.seeds[0])))
            self.fold_of[split.rows(self.cohort).test] = number

    @property
    def tested(self) -> Int[np.ndarray, "m"]:
        """Rows that are tested in some fold."""
        return np.flatnonzero(self.fold_of >= 0)

    def scores(
        self,
        rows: Int[np.ndarray, "n"],
        *,
        columns: Donors | None = None,
        sources: Donors | None = None,
        absent: Mapping[str, Bool[np.ndarray, "n"]] | None = None,
        replaced: Mapping[str, Source] | None = None,
    ) -> Float[np.ndarray, "n *k"]:
        """Scores of tested rows, or of variants of them, each by the model that has not seen the case.

        Args:
          rows: tested rows of the cohort, any number of times.
          columns, sources, absent, replaced: see `variants`.

        Returns:
          Probability of the second of two classes or log risk, shape `(n,)`; probabilities of more classes `(n, k)`.
        """
        found: Any = None
        for number, folder in enumerate(self.folders):
            members = np.flatnonzero(self.fold_of[rows] == number)
            for start in range(0, len(members), ROWS_AT_ONCE):
                chosen = members[start : start + ROWS_AT_ONCE]
                changed = variants(
                    self.cohort,
                    rows[chosen],
                    columns={name: donors[chosen] for name, donors in (columns or {}).items()},
                    sources={name: donors[chosen] for name, donors in (sources or {}).items()},
                    absent={name: gone[chosen] for name, gone in (absent or {}).items()},
                    replaced={name: source.take(chosen) for name, source in (replaced or {}).items()},
                )
                scores = self.predicted(folder, changed)
                if found is None:
                    found = np.full((len(rows), *scores.shape[1:]), np.nan)
                found[chosen] = scores
        return found

    def predicted(self, folder: Path, cohort: Cohort) -> Float[np.ndarray, "n *k"]:
        """Scores of all rows of a cohort by one training."""
        scores = np.asarray(self.recipe.predict(folder, cohort, np.arange(len(cohort))), float)
        if self.target.kind == "survival":
            return scores[:, 0]
        return scores[:, 1] if scores.shape[1] == 2 else scores


def source_groups(cohort: Cohort, sources: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Sources that can only be exchanged together: images with the masks that lie on their grid.

    Example:
      >>> cohort = Cohort.from_arrays({"image": np.zeros((2, 4, 4, 1)), "clinical": np.zeros((2, 3))})
      >>> source_groups(cohort, ("image", "clinical"))
      {'image': ('image',), 'clinical': ('clinical',)}
    """
    kinds = {name: cohort.sources[name].kind for name in sources}
    pictures = tuple(name for name, kind in kinds.items() if kind in ("image", "mask"))
    if "mask" not in kinds.values():
        return {name: (name,) for name in sources}
    together = {" + ".join(pictures): pictures}
    return together | {name: (name,) for name in sources if name not in pictures}


def answers(comparison: Comparison, rows: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n ..."]:
    """What the rows are judged by: the class, or time and event in two columns."""
    made = comparison.plan
    if made.target.kind == "survival":
        found = survival_of(made.cohort, rows)
        return np.stack([found.time, found.event.astype(float)], axis=1)
    return made.cohort.label[rows].astype(int)


def measure(labels: np.ndarray, scores: np.ndarray) -> float:
    """The AUC, for time and event Harrell's C; more is better.

    Example:
      >>> measure(np.array([0, 1]), np.array([0.1, 0.7])), measure(np.array([[2.0, 1.0], [3.0, 0.0]]), np.array([1, 0]))
      (1.0, 1.0)
    """
    if labels.ndim == 2:
        return float(harrell_c(scores, labels[:, 0], labels[:, 1] > 0).c)
    return binary_auc(labels, scores) if scores.ndim == 1 else auc(labels, scores)


class Gap(NamedTuple):
    """How much better a model is on the patients it was trained on.

    Attributes:
      model: name in the tables.
      train, test: the metric of every fold, on its training and on its test cases, shape `(folds,)`; NaN where a fold
        lacks a class.
    """

    model: str
    train: Float[np.ndarray, "folds"]
    test: Float[np.ndarray, "folds"]


def train_test_gaps(comparison: Comparison, model: str) -> Gap:
    """The metric on training cases, those of the inner validation among them, and on test cases, fold by fold."""
    models = FoldModels(comparison, model)
    found: dict[str, list[float]] = {"train": [], "test": []}
    for split, folder in zip(models.splits, models.folders, strict=True):
        rows = split.rows(models.cohort)
        for part in found:
            chosen = getattr(rows, part)
            labels = answers(comparison, chosen)
            try:
                value = measure(labels, models.predicted(folder, variants(models.cohort, chosen)))
            except ValueError:  # a small fold may lack a class, or two patients to compare
                value = float("nan")
            found[part].append(value)
    return Gap(model, np.array(found["train"]), np.array(found["test"]))
