"""Intervals and paired tests of survival metrics: all models and all metrics from the same resamples, in one program.

Everything that needs sorting is sorted once on the host; a resample is then gathers and running sums, O(n log n).
Running sums are of whole numbers, which single precision keeps exactly to about a million rows; the final sums round
by about 1e-6. Measured for two models on two busy cores: 5,000 resamples of 1,000 rows in 1.7 s plus compilation,
100 resamples of 100,000 rows in 20 s with compilation, at a peak of 0.6 GB.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from fusion_jax.evaluation.resampling import (
    Design,
    bootstrap,
    make_design,
    patients_alone,
    percentile_interval,
    z_test,
)
from fusion_jax.evaluation.survival import SurvivalMetrics, survival_metrics
from fusion_jax.evaluation.survival_follow_up import (
    FollowUp,
    censoring_survival,
    check_follow_up,
    check_horizons,
    check_risk,
)
from fusion_jax.evaluation.survival_pairs import PairPlan, pair_plan, time_ranks
from fusion_jax.wording import counted

__all__ = [
    "Censoring",
    "SurvivalComparison",
    "SurvivalData",
    "SurvivalStatistics",
    "compare_survival",
    "survival_data",
    "survival_design",
    "survival_statistics",
]


class Censoring(NamedTuple):
    """Probability of being still under observation, estimated from other rows and therefore not resampled.

    Attributes:
      by_row: after the time of each row, in the order of time, shape `(n,)`.
      at_horizon: after each horizon, shape `(h,)`.
    """

    by_row: Any
    at_horizon: Any


class SurvivalData(NamedTuple):
    """Rows in the order of time (events before censorings), and what was sorted beforehand. Make it by `survival_data`.

    Attributes:
      rows: row of the input at each place, shape `(n,)`.
      event: shape `(n,)`.
      rank_end, time_end: number of rows up to the end of the ranks, or of the times, that tie with a row, shape `(n,)`.
      tau_end: number of rows before tau, shape `()`.
      horizon_end: number of rows up to each horizon, shape `(h,)`.
      horizons: shape `(h,)`.
      pairs: of each model, with leading axis m in every array.
      risk_order: places in the order of risk, shape `(m, n)`.
      risk_low, risk_high: number of rows with a lower risk, or a risk as high at most, in that order, shape `(m, n)`.
      survival_at: predicted survival, in the order of time, shape `(m, n, h)`; None without.
      censoring: None where censoring is estimated from the rows themselves, and again in every resample.
    """

    rows: Any
    event: Any
    rank_end: Any
    time_end: Any
    tau_end: Any
    horizon_end: Any
    horizons: Any
    pairs: PairPlan
    risk_order: Any
    risk_low: Any
    risk_high: Any
    survival_at: Any
    censoring: Censoring | None


class SurvivalStatistics(NamedTuple):
    """One value, draw, interval or test for each metric; `m` models, `h` horizons.

    Attributes:
      harrell, uno: concordances, shape `(m,)`.
      auc: time-dependent AUC, shape `(m, h)`.
      mean_auc: shape `(m,)`.
      brier: shape `(m, h)`, None without predicted survival.
      integrated_brier: shape `(m,)`, None without predicted survival or with one horizon.
    """

    harrell: Any
    uno: Any
    auc: Any
    mean_auc: Any
    brier: Any
    integrated_brier: Any


class SurvivalComparison(NamedTuple):
    """Models on the same cases.

    Attributes:
      metrics: of each model, on the rows as they are.
      estimates: the same numbers stacked over models.
      intervals: an `Interval` for each of them.
      pairs: models compared, first and second.
      differences: a `ZTest` of first minus second for each metric, with leading axis p, the pairs; None for one model.
      difference_intervals: percentile intervals of these differences; None for one model.
      patients: number of patients.
      notes: what a reader has to know of the intervals.
    """

    metrics: tuple[SurvivalMetrics, ...]
    estimates: SurvivalStatistics
    intervals: SurvivalStatistics
    pairs: tuple[tuple[int, int], ...]
    differences: SurvivalStatistics | None
    difference_intervals: SurvivalStatistics | None
    patients: int
    notes: tuple[str, ...]


def survival_data(
    risk: Shaped[np.ndarray, "n m"],
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    horizons: Shaped[np.ndarray, "h"] | Sequence[float],
    *,
    tau: float | None = None,
    survival_at: Shaped[np.ndarray, "m n h"] | None = None,
    training: FollowUp | None = None,
) -> SurvivalData:
    """Sort once what every resample reads.

    Args:
      risk: of every model, larger = earlier event, shape `(n, m)`.
      time, event: follow-up, shape `(n,)`.
      horizons, tau, training: see `survival_metrics`.
      survival_at: predicted survival of every model, shape `(m, n, h)`.

    Returns:
      `SurvivalData`, about 16 bytes times n log2(n) for each model.

    Raises:
      ValueError: see `check_follow_up`, `check_risk` and `check_horizons`.

    Example:
      >>> data = survival_data(np.array([[2.0], [1.0], [0.0]]), np.array([3, 1, 2]), np.array([0, 1, 1]), [1])
      >>> data.rows.tolist(), data.horizon_end.tolist()
      ([1, 2, 0], [1])
    """
    times, events = check_follow_up(time, event)
    chosen = check_horizons(horizons, times, events)
    order = np.lexsort((~events, times))
    risks = [check_risk(column, times.size)[order] for column in np.asarray(risk).T]
    times, events = times[order], events[order]
    ranks = time_ranks(times, events)
    plans = [pair_plan(column, times, events) for column in risks]
    places = [np.argsort(column, kind="stable") for column in risks]
    in_order = [column[place] for column, place in zip(risks, places, strict=True)]
    follow_up = None if training is None else check_follow_up(*training, name="training ")
    return SurvivalData(
        rows=order.astype(np.int32),
        event=events,
        rank_end=_ends(ranks, ranks),
        time_end=_ends(times, times),
        tau_end=np.int32(np.searchsorted(times, chosen[-1] if tau is None else tau)),
        horizon_end=_ends(times, chosen),
        horizons=chosen,
        pairs=PairPlan(*(np.stack(arrays) for arrays in zip(*plans, strict=True))),
        risk_order=np.stack(places).astype(np.int32),
        risk_low=np.stack([np.searchsorted(column, column) for column in in_order]).astype(np.int32),
        risk_high=np.stack([_ends(column, column) for column in in_order]),
        survival_at=None if survival_at is None else np.asarray(survival_at, float)[:, order],
        censoring=None
        if follow_up is None
        else Censoring(censoring_survival(*follow_up, times), censoring_survival(*follow_up, chosen)),
    )


def survival_statistics(data: SurvivalData, weights: Float[Array, "n"]) -> SurvivalStatistics:
    """Metrics of all models when row `i` counts `weights[i]` times; the statistic that `bootstrap` resamples.

    With weights of 1 it equals `survival_metrics`, with whole numbers `survival_metrics` of the repeated rows.
    Censoring is estimated from the weighted rows unless the data hold it. NaN where a draw leaves a metric undefined.

    Args:
      data: `survival_data(...)`.
      weights: how often each row counts, in the order of the input, shape `(n,)`.

    Returns:
      `SurvivalStatistics` of arrays of the dtype of the weights.

    Example:
      >>> time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 1, 0])
      >>> data = survival_data(np.array([[4.0], [3.0], [2.0], [3.5]]), time, event, [2, 3])
      >>> jax.jit(survival_statistics)(data, jnp.ones(4)).harrell.tolist()
      [0.666...]
    """
    data = jax.tree.map(jnp.asarray, data)
    weights = weights[data.rows]
    so_far = _running_sum(weights)
    left = so_far[-1] - so_far
    if data.censoring is None:
        observed = _product_limit(left, ~data.event)
        by_row, at_horizon = observed[data.time_end], observed[data.horizon_end]
    else:
        by_row, at_horizon = (values.astype(weights.dtype) for values in data.censoring)
    place = jnp.arange(weights.size, dtype=data.tau_end.dtype)
    case = jnp.where(data.event, weights, 0)
    # Rows that were not drawn weigh 0, whatever the probability after them.
    probability = jnp.where(case > 0, by_row, 1)
    inverse = case / probability
    squared = jnp.where(place < data.tau_end, inverse / probability, 0)
    later = left[data.rank_end]
    free = left[data.horizon_end]
    survival = _product_limit(left, data.event)[data.horizon_end]
    falls = jnp.concatenate([jnp.ones_like(survival[:1]), survival[:-1]]) - survival

    def of_model(pairs, order, low, high, predicted):
        # Twice the weight of the lower risks, ties half: whole numbers.
        partners = _running_sum(weights[pairs.later])
        start = partners[pairs.start]
        below = (partners[pairs.low] - start) + (partners[pairs.high] - start)
        harrell, uno = (values[pairs.earlier] @ below / (2 * (values @ later)) for values in (case, squared))

        def of_horizon(end, controls, probability, predicted):
            had_it = place < end
            cases, others = jnp.where(had_it, inverse, 0), jnp.where(had_it, 0, weights)
            below = _running_sum(others[order])
            area = cases[order] @ (below[low] + below[high]) / (2 * cases.sum() * controls)
            if predicted is None:
                return area, None
            return area, (cases @ predicted**2 + others @ (1 - predicted) ** 2 / probability) / so_far[-1]

        columns = None if predicted is None else predicted.astype(weights.dtype).T
        areas, brier = jax.vmap(of_horizon)(data.horizon_end, free, at_horizon, columns)
        integrated = None
        if brier is not None and brier.size > 1:
            times = data.horizons.astype(weights.dtype)
            integrated = jnp.trapezoid(brier, times) / (times[-1] - times[0])
        return SurvivalStatistics(harrell, uno, areas, areas @ falls / falls.sum(), brier, integrated)

    return jax.vmap(of_model)(data.pairs, data.risk_order, data.risk_low, data.risk_high, data.survival_at)


def survival_design(event: Shaped[np.ndarray, "n"], patients: Any = None) -> Design:
    """Patients as clusters; as many with and without an event in every resample as in the data.

    Args:
      event: shape `(n,)`.
      patients: id of the patient of each row, shape `(n,)`; None where every row is a patient of its own.

    Raises:
      ValueError: fewer than two patients with an event.

    Example:
      >>> survival_design(np.array([1, 1, 0, 1]), ["a", "a", "b", "c"]).stratum.tolist()
      [1, 0, 1]
    """
    events = np.asarray(event).astype(np.int32)
    design = make_design(events, patients)
    found = np.unique(design.cluster[events > 0]).size
    if found < 2:
        raise ValueError(
            f"event: {counted(found, 'patient')} of {design.stratum.size} with an event; an interval needs at least "
            "two, for the same events would be drawn every time. Report the counts without an interval."
        )
    return design


def compare_survival(
    risk: Shaped[np.ndarray, "n m"],
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    horizons: Shaped[np.ndarray, "h"] | Sequence[float],
    *,
    patients: Any = None,
    tau: float | None = None,
    survival_at: Shaped[np.ndarray, "m n h"] | None = None,
    training: FollowUp | None = None,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> SurvivalComparison:
    """Survival metrics of one or several models with percentile intervals, and every pair of models tested.

    Patients are drawn with replacement, those with an event apart from those without, and both models of a pair are
    judged on the same draws. Censoring is estimated again in every resample, unless training rows are given. Fitting
    the models is not repeated: intervals are conditional on the trained models. P-values are not adjusted.

    Args:
      risk: of every model on the same rows, larger = earlier event, shape `(n, m)`.
      time, event, horizons, tau, training: see `survival_metrics`.
      patients: id of the patient of each row, shape `(n,)`; without it every row counts as a patient of its own.
      survival_at: predicted survival of every model at the horizons, shape `(m, n, h)`.
      resamples, seed: of the bootstrap.
      level: of confidence.

    Returns:
      `SurvivalComparison`.

    Raises:
      ValueError: see `survival_metrics` and `survival_design`.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> frailty, time = rng.normal(size=80), rng.exponential(size=80)
      >>> risk = np.stack([frailty, rng.normal(size=80)], axis=1)
      >>> found = compare_survival(risk, time * np.exp(-frailty), rng.random(80) < 0.7, [1.0], resamples=500)
      >>> bool(found.differences.harrell.p_value[0] < 0.01)
      True
    """
    risks = np.asarray(risk)
    if risks.ndim != 2 or not risks.shape[1]:
        raise ValueError(f"risk has shape {risks.shape}; expected (rows, models), with at least one model.")
    predicted = None if survival_at is None else np.asarray(survival_at)
    if predicted is not None and (predicted.ndim != 3 or len(predicted) != risks.shape[1]):
        raise ValueError(
            f"survival_at has shape {predicted.shape}; expected (models, rows, horizons), with "
            f"{counted(risks.shape[1], 'model')} as in risk."
        )
    metrics = tuple(
        survival_metrics(
            column,
            time,
            event,
            horizons,
            tau=tau,
            survival_at=None if predicted is None else predicted[model],
            training=training,
        )
        for model, column in enumerate(risks.T)
    )
    design = survival_design(event, patients)
    data = survival_data(risks, time, event, horizons, tau=tau, survival_at=predicted, training=training)
    draws = bootstrap(survival_statistics, data, design, resamples=resamples, seed=seed)
    estimates = _stacked(metrics)
    intervals = _over_metrics(lambda values: percentile_interval(values, level), draws)
    first, second = np.triu_indices(risks.shape[1], 1)
    differences = difference_intervals = None
    if first.size:
        apart = _over_metrics(lambda values: values[:, first] - values[:, second], draws)
        found = _over_metrics(lambda values: values[first] - values[second], estimates)
        differences = SurvivalStatistics(
            *(None if value is None else z_test(value, draw) for value, draw in zip(found, apart, strict=True))
        )
        difference_intervals = _over_metrics(lambda values: percentile_interval(values, level), apart)
    return SurvivalComparison(
        metrics=metrics,
        estimates=estimates,
        intervals=intervals,
        pairs=tuple(zip(first.tolist(), second.tolist(), strict=True)),
        differences=differences,
        difference_intervals=difference_intervals,
        patients=design.stratum.size,
        notes=_notes(
            metrics[0],
            intervals,
            design,
            resamples,
            level,
            clustered=patients is not None,
            trained=training is not None,
        ),
    )


def _over_metrics(function: Callable[[Any], Any], values: SurvivalStatistics) -> SurvivalStatistics:
    return SurvivalStatistics(*(None if value is None else function(value) for value in values))


def _stacked(metrics: Sequence[SurvivalMetrics]) -> SurvivalStatistics:
    first = metrics[0]
    return SurvivalStatistics(
        harrell=np.array([one.harrell.c for one in metrics]),
        uno=np.array([one.uno for one in metrics]),
        auc=np.stack([one.auc.auc for one in metrics]),
        mean_auc=np.array([one.auc.mean for one in metrics]),
        brier=None if first.brier is None else np.stack([one.brier for one in metrics if one.brier is not None]),
        integrated_brier=None
        if first.integrated_brier is None
        else np.array([one.integrated_brier for one in metrics], float),
    )


def _notes(
    metrics: SurvivalMetrics,
    intervals: SurvivalStatistics,
    design: Design,
    resamples: int,
    level: float,
    *,
    clustered: bool,
    trained: bool,
) -> tuple[str, ...]:
    drawn = counted(design.stratum.size, "patient")
    again = "and not resampled" if trained else "again in every resample"
    notes = [
        f"{100 * level:g}% percentile intervals from {resamples:,} resamples of {drawn}, stratified by the event.",
        "The intervals are conditional on the trained models.",
        f"The censoring distribution was {metrics.censoring}, {again}.",
    ]
    if not clustered:
        notes.append(
            "No patient ids were given: the intervals assume independent rows and are too narrow where a patient has "
            "several."
        )
    alone = patients_alone(design)
    if alone:
        notes.append(
            f"{counted(alone, 'patient')} alone in a stratum of events, and in every resample once: the intervals do "
            "not hold their share of the uncertainty."
        )
    undefined = max(int(np.max(value.undefined)) for value in intervals if value is not None)
    if undefined:
        notes.append(
            f"A metric was undefined in up to {undefined:,} of {resamples:,} resamples, which were left out: nobody "
            "was at risk after a horizon, or still under observation."
        )
    return tuple(notes)


def _running_sum(values: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(values[:1]), jnp.cumsum(values)])


def _product_limit(left: Array, falls: Array) -> Array:
    """Kaplan–Meier estimate after each number of rows, (n + 1,), from the weight that is left after it."""
    before, after = left[:-1], left[1:]
    factors = jnp.where(falls & (before > after), after / jnp.where(before > 0, before, 1), 1)
    return jnp.concatenate([jnp.ones_like(factors[:1]), jnp.cumprod(factors)])


def _ends(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.searchsorted(values, wanted, "right").astype(np.int32)
