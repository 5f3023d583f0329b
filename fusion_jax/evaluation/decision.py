r"""What a model is worth in use: net benefit over thresholds, and figures for a population of another prevalence.

A patient who would accept treatment from a risk of `t` onwards weighs a false positive at :math:`t / (1 - t)` of a
true positive. Net benefit counts true positives at that exchange rate:

.. math:: \mathrm{NB}(t) = \frac{\mathrm{TP}(t)}{n} - \frac{\mathrm{FP}(t)}{n} \cdot \frac{t}{1 - t}

A model is of use at a threshold only where it beats treating all, treating none, and what is there already.

Patients are resampled without strata, as the number of events is part of what is uncertain; a given prevalence is
taken as known.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fusion_jax.evaluation.calibration import WithInterval
from fusion_jax.evaluation.recalibration import check_prevalence, check_probabilities
from fusion_jax.evaluation.resampling import bootstrap, make_design, percentile_interval
from fusion_jax.evaluation.rows import Labels, Patients, both_classes, patient_codes, positives
from fusion_jax.wording import counted

__all__ = [
    "DecisionCurve",
    "DecisionRows",
    "PrevalenceRows",
    "decision_curve",
    "decision_statistics",
    "default_thresholds",
    "metrics_at_prevalence",
    "prevalence_statistics",
    "reweight",
]

FEWEST_CALLED = 10
"""Thresholds end where no model calls this many rows positive any more."""


class DecisionCurve(NamedTuple):
    """Net benefit of m models at t thresholds, with intervals; per patient, in true positives.

    Attributes:
      thresholds: probabilities from which a row is called positive, shape `(t,)`.
      net_benefit: of each model, shape `(m, t)`. Treating none is 0 everywhere.
      treat_all: net benefit of calling everybody positive, shape `(t,)`.
      advantage: net benefit less that of the best alternative: treating all, treating none, or a single source,
        whichever is best in the resample itself, shape `(m, t)`.
      interventions_avoided: per 100 rows, in comparison with treating all and without missing more cases on balance,
        shape `(m, t)`.
      prevalence: of the population that the figures are for; `given` says whether it was, or is that of the rows.
      n, events, patients: rows, rows of label 1, patients.
      unit: "patients" if rows were resampled by patient; "rows" if each counted as a patient of its own.
    """

    thresholds: Float[np.ndarray, "t"]
    net_benefit: WithInterval
    treat_all: WithInterval
    advantage: WithInterval
    interventions_avoided: WithInterval
    prevalence: float
    given: bool
    n: int
    events: int
    patients: int
    unit: str


class DecisionRows(NamedTuple):
    """What the net benefits of a resample are computed from.

    Attributes:
      label: shape `(n,)`.
      reached: how many thresholds each prediction reaches, shape `(m, n)`.
      odds: of the thresholds, shape `(t,)`.
      rival: whether model j is an alternative to model i, shape `(m, m)`.
      prevalence: of the population, shape `()`; None for that of the rows.
    """

    label: Any
    reached: Any
    odds: Any
    rival: Any
    prevalence: Any


def decision_curve(
    labels: Labels,
    probabilities: Float[np.ndarray, "m n"],
    *,
    thresholds: Float[np.ndarray, "t"] | None = None,
    single_sources: Sequence[int] = (),
    prevalence: float | None = None,
    patients: Patients | None = None,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> DecisionCurve:
    r"""Decision curves of several models on the same rows, with intervals over patients.

    With a prevalence :math:`\pi`, sensitivity and specificity are those of the rows and

    .. math:: \mathrm{NB}(t) = \pi \cdot \mathrm{sens}(t) - (1 - \pi) (1 - \mathrm{spec}(t)) \frac{t}{1 - t}

    The probabilities are compared with `t` as they are: where they hold for another prevalence, put them right first
    (`prior_shift`). Which thresholds matter is a clinical question, to be answered before looking at the curve.

    Args:
      labels: 0 or 1.
      probabilities: of label 1, by each model.
      thresholds: rising, between 0 and 1; by default every percent from 1 % (`default_thresholds`).
      single_sources: numbers of the models that use one source; a model is compared with the best of the others.
      prevalence: of the population in which the model would be used; None for that of the rows.
      patients: id of the patient of each row; None where every row is a patient of its own.
      resamples: of the patients, without strata.
      level: of the pointwise intervals.
      seed: of the resamples.

    Raises:
      ValueError: scores that are no probabilities, one class only, thresholds that are not rising or not between 0 and
        1, a prevalence outside (0, 1), or a single source that is no model.

    Example:
      >>> labels, model = np.array([1, 1, 0, 0, 0]), np.array([[0.9, 0.3, 0.4, 0.1, 0.1]])
      >>> curve = decision_curve(labels, model, thresholds=np.array([0.2, 0.5]), resamples=100)
      >>> curve.net_benefit.value.round(3).tolist(), curve.treat_all.value.round(3).tolist()
      ([[0.35, 0.2]], [0.25, -0.2])

    References:
      Vickers & Elkin 2006, "Decision curve analysis", Eq. 1; Vickers, Van Calster & Steyerberg 2016, BMJ 352:i6
      (interventions avoided); Vickers et al. 2008 (resampling, prevalence).
    """
    if np.ndim(probabilities) != 2:
        raise ValueError(
            f"probabilities: shape {np.shape(probabilities)}; expected a row for each model, shape (m, n)."
        )
    label, probability = check_probabilities(labels, probabilities, purpose="a decision curve")
    points = default_thresholds(probability) if thresholds is None else np.asarray(thresholds, float)
    _check_thresholds(points)
    if prevalence is not None:
        check_prevalence(prevalence)
    models = len(probability)
    strange = [number for number in single_sources if not 0 <= number < models]
    if strange:
        raise ValueError(f"single_sources: {strange[0]} among {counted(models, 'model')}; they are numbered from 0.")
    rival = np.zeros((models, models), bool)
    rival[:, list(single_sources)] = True
    np.fill_diagonal(rival, False)
    cluster = patient_codes(patients, len(label))
    # Compared here, in double precision: 0.1 reaches 0.1.
    reached = np.searchsorted(points, probability.ravel(), side="right").reshape(probability.shape)
    odds = points / (1 - points)
    rows = DecisionRows(label, reached.astype(np.int32), odds, rival, prevalence)
    draws = bootstrap(decision_statistics, rows, make_design(None, cluster), resamples=resamples, seed=seed)
    exact = _exact_statistics(rows)
    estimates = {name: WithInterval(exact[name], percentile_interval(draws[name], level)) for name in exact}
    return DecisionCurve(
        thresholds=points,
        prevalence=float(label.mean()) if prevalence is None else prevalence,
        given=prevalence is not None,
        n=len(label),
        events=int(label.sum()),
        patients=int(cluster.max()) + 1,
        unit="rows" if patients is None else "patients",
        **estimates,
    )


def default_thresholds(probabilities: Float[np.ndarray, "*m n"]) -> Float[np.ndarray, "t"]:
    """Every percent from 1 % to where no model calls ten rows, or one in a hundred, positive any more.

    Example:
      >>> default_thresholds(np.linspace(0, 0.305, 1001))[[0, -1]].tolist()
      [0.01, 0.3]
    """
    ordered = np.sort(np.atleast_2d(probabilities), axis=1)
    rows = ordered.shape[1]
    called = min(rows, max(FEWEST_CALLED, -(-rows // 100)))
    last = int(np.clip(np.floor(ordered[:, -called].max() * 100 + 1e-9), 2, 99))
    return np.arange(1, last + 1) / 100


def decision_statistics(rows: DecisionRows, weights: Array) -> dict[str, Array]:
    """Everything in `DecisionCurve` that has an interval, for rows that count `weights` times.

    Returns:
      `net_benefit`, `advantage` and `interventions_avoided` (m, t), `treat_all` (t,).
    """
    weights = weights.astype(rows.label.dtype)
    called = []
    for own in (weights * rows.label, weights * (1 - rows.label)):
        # Whole numbers, exact in single precision up to 16 million rows.
        binned = jnp.zeros((rows.reached.shape[0], rows.odds.shape[0] + 1), own.dtype)
        binned = binned.at[jnp.arange(rows.reached.shape[0])[:, None], rows.reached].add(own[None, :])
        called.append(jnp.cumsum(binned[:, ::-1], axis=1)[:, ::-1])
    return _benefits(called[0], called[1], rows, jnp)


def _exact_statistics(rows: DecisionRows) -> dict[str, Any]:
    """The same for all rows, in double precision on the host."""
    called = []
    for own in (rows.label, 1 - rows.label):
        binned = np.stack([np.bincount(each, own, len(rows.odds) + 1) for each in rows.reached])
        called.append(np.cumsum(binned[:, ::-1], axis=1)[:, ::-1])
    return _benefits(called[0], called[1], rows, np)


def _benefits(positive: Any, negative: Any, rows: DecisionRows, xp: Any) -> dict[str, Any]:
    """From how many of each class reach at least 0, 1, ... t thresholds, shape `(m, t + 1)`."""
    events, others = positive[0, 0], negative[0, 0]
    if rows.prevalence is None:
        each_event = each_other = 1 / (events + others)
    else:
        each_event, each_other = rows.prevalence / events, (1 - rows.prevalence) / others

    def benefit(true: Any, false: Any) -> Any:
        return true * each_event - false * each_other * xp.expand_dims(
            rows.odds, tuple(range(max(np.ndim(true) - 1, 0)))
        )

    # Differences are taken between counts: models that call the same rows differ by exactly 0.
    positive, negative = positive[:, 1:], negative[:, 1:]
    over_none, over_all = benefit(positive, negative), benefit(positive - events, negative - others)
    over_models = benefit(positive[:, None] - positive[None, :], negative[:, None] - negative[None, :])
    over_rivals = xp.min(xp.where(rows.rival[:, :, None], over_models, xp.inf), axis=1)
    return {
        "net_benefit": over_none,
        "treat_all": benefit(events, others),
        "advantage": xp.minimum(over_rivals, xp.minimum(over_none, over_all)),
        "interventions_avoided": 100 * over_all / rows.odds[None],
    }


def _check_thresholds(thresholds: Float[np.ndarray, "*t"]) -> None:
    if thresholds.ndim != 1 or not len(thresholds) or (np.diff(thresholds) <= 0).any():
        raise ValueError("thresholds: expected a list of rising probabilities, each once.")
    outside = thresholds[~((thresholds > 0) & (thresholds < 1))]
    if len(outside):
        raise ValueError(
            f"thresholds: {outside[0]:g}; expected probabilities between 0 and 1. At 1 a false positive would weigh "
            "infinitely much."
        )


# Another prevalence.


class PrevalenceRows(NamedTuple):
    """What figures at another prevalence are computed from.

    Attributes:
      label: shape `(n,)`.
      decision: of each model, 0 or 1, shape `(m, n)`.
      square: squared error of the probabilities, shape `(m, n)`; None without probabilities.
      prevalence: shape `()`.
    """

    label: Any
    decision: Any
    square: Any
    prevalence: Any


def reweight(labels: Labels, prevalence: float) -> Float[np.ndarray, "n"]:
    """Weights of the rows with which their prevalence is the given one; they sum to the number of rows.

    Example:
      >>> reweight(np.array([1, 1, 0, 0]), 0.25).tolist()
      [0.5, 0.5, 1.5, 1.5]

    Raises:
      ValueError: one class only, or a prevalence outside (0, 1).
    """
    check_prevalence(prevalence)
    label = both_classes(labels, "another prevalence")
    share = label.mean()
    return np.where(label, prevalence / share, (1 - prevalence) / (1 - share))


def metrics_at_prevalence(
    labels: Labels,
    decisions: Int[np.ndarray, "m n"] | Bool[np.ndarray, "m n"],
    *,
    prevalence: float,
    probabilities: Float[np.ndarray, "m n"] | None = None,
    patients: Patients | None = None,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, WithInterval]:
    r"""Figures that depend on the prevalence, for a population in which it is another.

    .. math:: \mathrm{PPV} = \frac{\pi\, \mathrm{sens}}{\pi\, \mathrm{sens} + (1 - \pi)(1 - \mathrm{spec})}

    and so on: cases and controls are those of the rows, their shares those of the population. Where that is not so
    (milder cases in screening) the figures do not carry over.

    Args:
      labels: 0 or 1.
      decisions: of each model, 1 for called positive.
      prevalence: of the population, taken as known.
      probabilities: for the Brier score, as they are; `prior_shift` puts them right for the population first.
      patients: id of the patient of each row; None where every row is a patient of its own.
      resamples: of the patients, without strata; each is weighted to the prevalence.
      level: of the intervals.
      seed: of the resamples.

    Returns:
      `precision` (positive predictive value), `negative_predictive_value`, `f1`, `accuracy`, and `brier` where there
      are probabilities, each of shape `(m,)`; NaN where nobody is called so.

    Raises:
      ValueError: decisions other than 0 and 1, one class only, a prevalence outside (0, 1), or scores that are no
        probabilities.

    Example:
      >>> labels, calls = np.repeat([1, 1, 0, 0], [45, 5, 5, 45]), np.repeat([1, 0, 1, 0], [45, 5, 5, 45])
      >>> found = metrics_at_prevalence(labels, calls[None], prevalence=0.01, resamples=100)
      >>> found["precision"].value.round(3).tolist()  # 0.9 in the rows
      [0.083]

    References:
      Altman & Bland 1994, "Diagnostic tests 2: predictive values".
    """
    check_prevalence(prevalence)
    label = both_classes(labels, "another prevalence").astype(float)
    found = np.asarray(decisions)
    if found.ndim != 2 or found.shape[1] != len(label):
        raise ValueError(
            f"decisions: shape {found.shape} beside {counted(len(label), 'label')}; expected a row for each model."
        )
    decision = np.stack([positives(each) for each in found]).astype(float)
    square = None
    if probabilities is not None:
        square = np.square(check_probabilities(labels, probabilities, purpose="the Brier score")[1] - label)
    rows = PrevalenceRows(label, decision, square, prevalence)
    design = make_design(None, patient_codes(patients, len(label)))
    draws = bootstrap(prevalence_statistics, rows, design, resamples=resamples, seed=seed)
    exact = _at_prevalence(rows, np.ones_like(label), np)
    return {name: WithInterval(exact[name], percentile_interval(draws[name], level)) for name in exact}


def prevalence_statistics(rows: PrevalenceRows, weights: Array) -> dict[str, Array]:
    """The figures of `metrics_at_prevalence`, shape `(m,)` each, for rows that count `weights` times."""
    return _at_prevalence(rows, weights.astype(rows.label.dtype), jnp)


def _at_prevalence(rows: PrevalenceRows, weights: Any, xp: Any) -> dict[str, Any]:
    shares, squares = [], []
    for own, population in ((rows.label, rows.prevalence), (1 - rows.label, 1 - rows.prevalence)):
        mass = population * weights * own / xp.sum(weights * own)
        shares.append((rows.decision @ mass, (1 - rows.decision) @ mass))
        squares.append(None if rows.square is None else rows.square @ mass)
    (tp, fn), (fp, tn) = shares
    figures = {
        "precision": _ratio(tp, tp + fp, xp),
        "negative_predictive_value": _ratio(tn, tn + fn, xp),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "accuracy": tp + tn,
    }
    return figures if rows.square is None else figures | {"brier": squares[0] + squares[1]}


def _ratio(numerator: Any, denominator: Any, xp: Any) -> Any:
    some = denominator > 0
    return xp.where(some, numerator / xp.where(some, denominator, 1.0), xp.nan)
