"""How figures vary over folds, partitions and seeds: what intervals over patients do not contain.

An interval over patients is conditional on the trained models. Another partition or another seed trains other models;
how far those differ is shown here, beside the intervals and never inside them.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.evaluation.classification import METRICS, metric_value
from fusion_jax.evaluation.folds import per_fold, pooled_and_within
from fusion_jax.evaluation.multiclass import one_versus_rest
from fusion_jax.evaluation.paired import CorrectedTTest, corrected_t_test
from fusion_jax.evaluation.panel import Panel, Run, View
from fusion_jax.evaluation.protocol import Protocol

__all__ = ["FoldTest", "FoldValue", "TrainingSpread", "fold_tests", "fold_values", "fold_warnings", "training_spread"]

PROBABILITY = ("brier", "log_loss")
AT_THRESHOLD = ("accuracy", "sensitivity", "specificity", "f1")
RANKING = ("auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity")


class FoldValue(NamedTuple):
    """A metric in one fold of one training.

    Attributes:
      model, training, fold, metric: what it is of.
      value: NaN where the fold holds one class only.
      rows, events: of the fold.
    """

    model: str
    training: str
    fold: str
    metric: str
    value: float
    rows: int
    events: int


class FoldTest(NamedTuple):
    """The corrected resampled t-test of the primary metric of two models over folds.

    Attributes:
      first, second: models.
      test: with n_test / n_train, which has to be printed beside it.
    """

    first: str
    second: str
    test: CorrectedTTest


class TrainingSpread(NamedTuple):
    """A metric over the trainings of a model, each judged on all rows.

    Attributes:
      model, metric: what it is of.
      trainings: their number.
      mean, sd, least, most: over trainings; the sd is that of a sample.
      of_ensemble: the metric of their mean score, which is another model and usually the better one.
    """

    model: str
    metric: str
    trainings: int
    mean: float
    sd: float
    least: float
    most: float
    of_ensemble: float


def fold_values(panel: Panel, protocol: Protocol) -> tuple[FoldValue, ...]:
    """Metrics of every model in every fold of every training, the primary one first; none without folds.

    Metrics of ranking and, for probabilities, the Brier score and decisions at the threshold that was given or at 0.5.
    """
    found: list[FoldValue] = []
    if panel.labels is None or len(panel.classes) != 2:
        return ()
    for model, run in _runs(panel):
        if run.folds is None:
            continue
        threshold = 0.5 if protocol.threshold is None else protocol.threshold
        wanted = (protocol.primary, *RANKING, *PROBABILITY, *AT_THRESHOLD)
        probable = panel.kinds[model] == "probability"
        for metric in dict.fromkeys(wanted):
            unknown = metric not in METRICS or (metric in PROBABILITY and not probable)
            if unknown or (metric in AT_THRESHOLD and not probable and protocol.threshold is None):
                continue
            values = per_fold(_metric(metric, protocol, threshold), panel.labels, run.scores, run.folds)
            found += [
                FoldValue(model, run.name, panel.fold_names[int(fold)], metric, float(value), int(rows), int(events))
                for fold, value, rows, events in zip(
                    np.asarray(values.folds, int), values.values, values.rows, values.events, strict=True
                )
            ]
    return tuple(found)


def fold_tests(panel: Panel, values: tuple[FoldValue, ...], protocol: Protocol) -> tuple[FoldTest, ...]:
    """Nadeau and Bengio's test of the primary metric for every pair of models with the same folds.

    Folds in which the metric of a model is undefined make a pair untestable, and so do folds of the same name that hold
    other rows. Training sizes are those of cross-validation: all patients but those tested in the fold and those of
    its validation rows.
    """
    found = []
    by_model = {
        model: {(row.training, row.fold): row for row in values if (row.model, row.metric) == (model, protocol.primary)}
        for model in panel.models
    }
    everybody = panel.patient_count or len(panel)
    for first, second in itertools.combinations(panel.models, 2):
        one, other = by_model[first], by_model[second]
        if (
            len(one) < 2
            or set(one) != set(other)
            or any(math.isnan(row.value) for row in (*one.values(), *other.values()))
        ):
            continue
        if not all(_same_rows(panel, first, second, *key) for key in one):
            continue
        tested = np.array([_patients_in(panel, first, *key) for key in one])
        held = np.array([max(_validating(panel, model, *key) for model in (first, second)) for key in one])
        if (tested + held >= everybody).any():
            continue
        found.append(
            FoldTest(
                first,
                second,
                corrected_t_test(
                    np.array([one[key].value for key in one]),
                    np.array([other[key].value for key in one]),
                    n_test=tested,
                    n_train=everybody - tested - held,
                    level=protocol.level,
                ),
            )
        )
    return tuple(found)


def fold_warnings(panel: Panel, view: View) -> tuple[str, ...]:
    """What to think of pooled areas whose folds have different scales of scores."""
    if view.folds is None or panel.labels is None or len(panel.classes) != 2:
        return ()
    found = []
    for model, scores in zip(view.models, view.scores, strict=True):
        warning = pooled_and_within(panel.labels, scores, view.folds, panel.patients).warning
        if warning:
            found.append(f"{model}: {warning}")
    return tuple(found)


def training_spread(panel: Panel, view: View, protocol: Protocol) -> tuple[TrainingSpread, ...]:
    """Metrics of ranking over the trainings of each model that was trained more than once."""
    if panel.labels is None:
        return ()
    found = []
    for model, scores in zip(view.models, view.scores, strict=True):
        runs = panel.runs[model]
        if len(runs) < 2:
            continue
        for metric in RANKING:
            each = np.array([_value(panel, metric, run.scores, protocol) for run in runs])
            found.append(
                TrainingSpread(
                    model,
                    metric,
                    len(runs),
                    float(each.mean()),
                    float(each.std(ddof=1)),
                    float(each.min()),
                    float(each.max()),
                    _value(panel, metric, scores, protocol),
                )
            )
    return tuple(found)


def _value(panel: Panel, metric: str, scores: np.ndarray, protocol: Protocol) -> float:
    labels: Any = panel.labels
    if len(panel.classes) > 2:
        return one_versus_rest(labels, scores, metric, target=protocol.target(metric)).macro
    return metric_value(metric, labels, scores, target=protocol.target(metric))


def _metric(metric: str, protocol: Protocol, threshold: float) -> Any:
    def value(labels: Any, scores: Any) -> float:
        return metric_value(metric, labels, scores, threshold=threshold, target=protocol.target(metric))

    return value


def _runs(panel: Panel) -> list[tuple[str, Run]]:
    return [(model, run) for model, runs in panel.runs.items() for run in runs]


def _tested(panel: Panel, model: str, training: str, fold: str) -> np.ndarray:
    run = _run(panel, model, training)
    return run.folds == panel.fold_names.index(fold)


def _run(panel: Panel, model: str, training: str) -> Run:
    return next(run for run in panel.runs[model] if run.name == training)


def _same_rows(panel: Panel, first: str, second: str, training: str, fold: str) -> bool:
    return np.array_equal(_tested(panel, first, training, fold), _tested(panel, second, training, fold))


def _patients_in(panel: Panel, model: str, training: str, fold: str) -> int:
    rows = _tested(panel, model, training, fold)
    return int(rows.sum()) if panel.patients is None else len(np.unique(panel.patients[rows]))


def _validating(panel: Panel, model: str, training: str, fold: str) -> int:
    """Patients of the panel who validated this training, and so did not train it."""
    validation = _run(panel, model, training).validation
    if validation is None or validation.folds is None:
        return 0
    names, everybody = validation.units, panel.units
    if panel.patients is not None and validation.patients is not None:
        names, everybody = validation.patients, panel.patients
    return len(set(names[validation.folds == panel.fold_names.index(fold)]) & set(everybody))
