"""The retraining null of a comparison: would a model have done as well with the source of other patients?

Only here has the model the chance to do without the source, so that only here a small p-value is evidence that the
source helped; see `fusion_jax.evaluation.shuffling`. A model is trained anew for every permutation, so that this is for
models which train in a moment.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusion_jax.arrays import Key
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split
from fusion_jax.evaluation.shuffling import BenefitNull, benefit_null
from fusion_jax.models.classical import ClassicalRecipe
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.fold_models import FoldModels, answers, measure, source_groups
from fusion_jax.models.task import INNER_SEED, united
from fusion_jax.models.variants import variants
from fusion_jax.training.inner import inner_split
from fusion_jax.training.keys import run_key
from fusion_jax.wording import counted

__all__ = ["Retrained", "retraining_null"]


class Retrained(NamedTuple):
    """What the retraining null of one model and source came to.

    Attributes:
      model: name in the tables.
      source: that was permuted, or several that move together.
      null: None where it was too expensive.
      reason: the time that it would have taken; "" where it was run.
    """

    model: str
    source: str
    null: BenefitNull | None
    reason: str


def retraining_null(
    comparison: Comparison,
    model: str,
    *,
    permutations: int = 99,
    minutes: float = 2.0,
    seed: int = 0,
) -> tuple[Retrained, ...]:
    """Train a model in every fold of the first repeat with one source of other patients, again and again.

    Args:
      comparison: that was carried out.
      model: one of its models.
      permutations: of each source; the smallest p-value is 1 / (1 + permutations).
      minutes: that the permutations of one source may take; a model that takes longer is left out, with the reason.
      seed: of the permutations.

    Returns:
      One result for every source that the model reads; images and the masks on their grid are one.
    """
    models = FoldModels(comparison, model)
    cohort, rows = models.cohort, np.arange(len(models.cohort))
    groups = source_groups(cohort, models.sources)
    labels = answers(comparison, rows)
    # The quickest fold, since the first has compiled for the others.
    seconds = min(_seconds(folder) for folder in models.folders) * len(models.folders) * permutations
    if seconds > 60 * minutes:
        reason = f"about {_duration(seconds)}"
        return tuple(Retrained(model, name, None, reason) for name in groups)

    def retrain(inputs: Mapping[str, np.ndarray], key: Key) -> np.ndarray:
        del key  # the trainings of a comparison have keys of their own
        donors = {member: inputs[name] for name, members in groups.items() for member in members}
        return _out_of_fold(comparison, models, donors)

    # Row numbers stand for the data; a source moves as a whole.
    inputs = {name: rows.copy() for name in groups}
    return tuple(
        Retrained(
            model,
            name,
            benefit_null(
                retrain,
                inputs,
                labels,
                name,
                metric=measure,
                permutations=permutations,
                seed=seed,
                patients=cohort.patient_id,
            ),
            "",
        )
        for name in groups
    )


def _out_of_fold(comparison: Comparison, models: FoldModels, donors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores of all tested cases after training with the sources of the donors; NaN for the others."""
    cohort, seed = models.cohort, comparison.plan.seeds[0]
    scores: np.ndarray | None = None
    for split in models.splits:
        part = split.rows(cohort)
        seen, tested = np.concatenate([part.train, part.validation]), part.test
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            training = variants(cohort, seen, sources={source: rows[seen] for source, rows in donors.items()})
            division = _divided(comparison, models, training, split)
            models.recipe.fit(training, division, run_key(seed, split.repeat, split.fold), folder)
            testing = variants(cohort, tested, sources={source: rows[tested] for source, rows in donors.items()})
            found = models.predicted(folder, testing)
        if scores is None:
            scores = np.full((len(cohort), *found.shape[1:]), np.nan)
        scores[tested] = found
    if scores is None:
        raise ValueError("a comparison without splits; expected at least one.")
    return scores


def _seconds(folder: Path) -> float:
    return float(json.loads((folder / "run.json").read_text(encoding="utf-8"))["task_seconds"])


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else counted(max(1, round(seconds / 60)), "minute")


def _divided(comparison: Comparison, models: FoldModels, training: Cohort, split: Split) -> Split:
    """The split as a training of the comparison had it; tables learn from all training cases anyway."""
    if isinstance(models.recipe, ClassicalRecipe):
        return split._replace(test=())
    found = inner_split(united(training, comparison.plan.copies), split, seed=INNER_SEED, **comparison.plan.inner)
    train, validation = (tuple(training.case_id[int(row)] for row in part) for part in found[:2])
    return split._replace(train=train, validation=validation, test=(), inner=())
