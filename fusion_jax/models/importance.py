"""What the trained models of a comparison lean on: columns and sources exchanged between patients, sources left out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.cohort import Cohort, Columns
from fusion_jax.evaluation.importance import Importance, permutation_importance
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.fold_models import FoldModels, answers, measure, source_groups

__all__ = ["Dropped", "comparison_importance", "drop_sources"]

CASE, CELLS = "row of the case", "cells of the table"
"""Arrays of row numbers that stand for the data, beside those of the sources."""


def comparison_importance(comparison: Comparison, model: str, *, repeats: int = 10, seed: int = 0) -> Importance:
    """Permutation importance of every clinical column and of every source to the trained models.

    Every test case is scored by the model of its fold; a column or source is exchanged between all tested patients, and
    the loss is that of the metric over all of them. Images and the masks on their grid move together.

    Args:
      comparison: that was carried out.
      model: one of its models.
      repeats: permutations of each column and source.
      seed: of the permutations; models share them.

    Returns:
      `Importance`, as differences of the AUC, or of Harrell's C.

    Raises:
      ValueError: patients who cannot exchange with anybody.
    """
    models = FoldModels(comparison, model)
    cohort, rows = models.cohort, models.tested
    owner, columns = _table(cohort, models.sources)
    groups = source_groups(cohort, models.sources)
    # Row numbers stand for the data: an exchange then says whose cells and images a case gets, and nothing is copied.
    inputs = {CASE: rows[:, None]}
    inputs |= {name: _alike(cohort, rows, columns if name == owner else ())[:, None] for name in groups}
    if columns:
        inputs[CELLS] = np.stack([_alike(cohort, rows, (column,)) for column in columns], axis=1)

    def apply(changed: Mapping[str, np.ndarray]) -> np.ndarray:
        # Most of what is asked for at once is asked for again.
        asked, inverse = np.unique(
            np.concatenate([changed[name] for name in inputs], axis=1), axis=0, return_inverse=True
        )
        case, given, cells = asked[:, 0], dict(zip(groups, asked[:, 1:].T, strict=False)), asked[:, 1 + len(groups) :]
        moved = {}
        for place, column in enumerate(columns):
            # A source that moves as a whole takes its columns along, unless the column itself has moved.
            own = inputs[CELLS][np.searchsorted(rows, case), place]
            moved[column] = np.where(cells[:, place] != own, cells[:, place], given[owner])
        donors = {member: given[name] for name, members in groups.items() for member in members}
        return models.scores(case, columns=moved, sources=donors)[inverse.ravel()]

    return permutation_importance(
        apply,
        inputs,
        answers(comparison, rows),
        source=CELLS if columns else CASE,
        groups={column: [place] for place, column in enumerate(columns)} if columns else None,
        whole=tuple(groups),
        metric=measure,
        unit="difference",
        repeats=repeats,
        seed=seed,
        patients=cohort.patient_id[rows],
        batched=True,
        # Of row numbers no relation can be told.
        threshold=1.0,
    )


class Dropped(NamedTuple):
    """Scores of tested cases with a source taken away.

    Attributes:
      rows: of the cohort, shape `(n,)`.
      whole: scores with all that the cases have, shape `(n,)` or `(n, k)`.
      without: source to scores without it.
      metric: of the whole, and by source of the rest.
    """

    rows: Int[np.ndarray, "n"]
    whole: Float[np.ndarray, "n *k"]
    without: Mapping[str, Float[np.ndarray, "n *k"]]
    metric: Mapping[str, float]


def drop_sources(comparison: Comparison, model: str) -> Dropped:
    """What the trained models say of their test cases when one source is missing; for models that allow for that.

    Args:
      comparison: that was carried out.
      model: that reads several sources.

    Returns:
      `Dropped`; the metric of the whole is that of the first training of every fold, by the name "".
    """
    models = FoldModels(comparison, model)
    rows = models.tested
    labels = answers(comparison, rows)
    groups = source_groups(models.cohort, models.sources)
    # All in one call, so that every model is read and asked once.
    number = np.repeat(np.arange(1 + len(groups)), len(rows))
    absent = {member: number == place for place, members in enumerate(groups.values(), 1) for member in members}
    whole, *without = np.split(models.scores(np.tile(rows, 1 + len(groups)), absent=absent), 1 + len(groups))
    found = dict(zip(groups, without, strict=True))
    metric = {"": measure(labels, whole)} | {name: measure(labels, scores) for name, scores in found.items()}
    return Dropped(rows, whole, found, metric)


def _table(cohort: Cohort, sources: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The source of columns among some sources, and its columns; nothing where there is none."""
    for name in sources:
        source = cohort.sources[name]
        if isinstance(source, Columns):
            return name, source.names
    return "", ()


def _alike(cohort: Cohort, rows: Int[np.ndarray, "n"], columns: tuple[str, ...]) -> Int[np.ndarray, "n"]:
    """For every row the first row of its patient with the same cells, so that a patient's rows agree where they do.

    Without columns, as for images, every row stands for itself.
    """
    if not columns:
        return rows.copy()
    table = cohort.table[list(columns)].iloc[rows].astype(str).to_numpy()
    first: dict[tuple[str, ...], int] = {}
    found = [
        first.setdefault((str(cohort.patient_id[row]), *cells), int(row))
        for row, cells in zip(rows, table.tolist(), strict=True)
    ]
    return np.array(found)
