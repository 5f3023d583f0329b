"""Trained models on new cases: one training, or the ensemble of all trainings of a comparison."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.data.cohort import Cohort
from fusion_jax.models.comparison import RECORD as COMPARISON
from fusion_jax.models.comparison import TASKS
from fusion_jax.models.recipe import RECORD, open_recipe
from fusion_jax.models.registry import make_recipe
from fusion_jax.models.schema import Schema, check_schema
from fusion_jax.models.target import Target
from fusion_jax.models.task import prediction_rows
from fusion_jax.training.cross_validation import PREDICTIONS, Task
from fusion_jax.wording import listed

__all__ = ["Predicted", "find_runs", "predict_cohort"]


class Predicted(NamedTuple):
    """Predictions for a cohort.

    Attributes:
      rows: of a predictions table, one a case.
      model: its name in the table.
      runs: trainings whose scores were averaged.
      target: what was predicted.
      known: cases of the cohort that some of these trainings has seen; their scores say nothing about new patients.
    """

    rows: list[dict[str, Any]]
    model: str
    runs: tuple[Path, ...]
    target: Target
    known: tuple[str, ...]


def find_runs(run: str | Path, model: str | None = None) -> list[Path]:
    """Folders of trainings: the folder itself, or all of one model in the folder of a comparison.

    Args:
      run: folder of a training (with recipe.json) or of a comparison (with comparison.json).
      model: of the comparison; needed where it has several.

    Raises:
      FileNotFoundError: neither.
      ValueError: a model that the comparison does not have, or none was named; the message lists them.
    """
    run = Path(run)
    if (run / RECORD).is_file():
        return [run]
    if not (run / COMPARISON).is_file():
        raise FileNotFoundError(
            f"{run}: no {RECORD} and no {COMPARISON}; expected the folder of a training, such as "
            "OUT/tasks/gated/r0_f0_s0, or OUT of `fusion-jax compare`."
        )
    names = list(json.loads((run / COMPARISON).read_text(encoding="utf-8"))["models"])
    if model is None and len(names) > 1:
        raise ValueError(f"{run}: a comparison of {listed(names, 20)}; say which with --model.")
    chosen = model or names[0]
    if chosen not in names:
        raise ValueError(f"{run}: no model {chosen!r}; the comparison has {listed(names, 20)}.")
    place = Task(chosen, 0, 0, 0).folder(run / TASKS).parent
    found = sorted(path.parent for path in place.glob(f"r*_f*_s*/{PREDICTIONS}"))
    if not found:
        raise FileNotFoundError(f"{place}: no finished training of {chosen!r}. Let the comparison run to its end.")
    return found


def predict_cohort(
    runs: Sequence[Path],
    cohort: Cohort,
    *,
    report: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Apply trainings of one model to a cohort, and average their probabilities (log risks of survival).

    Args:
      runs: folders of trainings, from `find_runs`.
      cohort: of the schema that they were trained on; label, time and event are not needed, and written where known.
      report: told how many of how many trainings have been asked.

    Raises:
      ValueError: a source, column, shape, spacing, unit or class that does not fit; the message names it. Runs that
        are not of one model.
    """
    records = [open_recipe(run) for run in runs]
    first = records[0]
    target = Target.from_json(first["target"])
    for run, record in zip(runs, records, strict=True):
        if (record["name"], record["arguments"], record["target"]) != (
            first["name"],
            first["arguments"],
            first["target"],
        ):
            raise ValueError(f"{run}: another model than {runs[0]}; trainings of one model make an ensemble.")
        check_schema(Schema.from_json(record["schema"]), cohort, classes=target.classes)
    recipe = make_recipe(first["name"], first["arguments"])
    rows = np.arange(len(cohort))
    total: Any = 0.0
    known: set[str] = set()
    for number, run in enumerate(runs):
        if report is not None:
            report(number, len(runs))
        total = total + np.asarray(recipe.predict(run, cohort, rows), float)
        known |= _training_cases(run)
    model = runs[0].parent.name if (runs[0] / PREDICTIONS).exists() else first["name"]
    table = prediction_rows(cohort, rows, total / len(runs), target, model=model, split="test")
    return Predicted(table, model, tuple(runs), target, tuple(case for case in cohort.case_id if case in known))


def _training_cases(run: Path) -> set[str]:
    path = run / "division.json"
    if not path.exists():
        return set()
    division: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {*division["train"], *division["validation"]}
