"""Do the probabilities mean what they say? Reliability in bins and as a curve, and the numbers that sum it up.

Four questions, from coarse to fine. *In the large*: are as many cases positive as predicted (observed minus expected,
observed over expected, the intercept with the logit as offset)? *Spread*: are the predictions too extreme or too
timid (the slope)? *Everywhere*: how far is the smooth curve from the diagonal (integrated calibration index)? *In
bins*: the expected calibration error, which is above 0 for a perfect model too. It is therefore shown beside what a
perfectly calibrated model with these very predictions would get.

Patients are resampled without strata. The number of events is itself uncertain here, and strata of labels would hold
it fixed: an interval for observed minus expected would then leave out most of its width.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float, Int

from fusion_jax.arrays import map_in_batches
from fusion_jax.evaluation.proportions import clustered_proportion
from fusion_jax.evaluation.recalibration import (
    CLIP,
    STEPS,
    as_logits,
    check_probabilities,
    column_products,
    logistic_fit,
    newton_step,
    separated,
)
from fusion_jax.evaluation.resampling import Interval, bootstrap, make_design, percentile_interval
from fusion_jax.evaluation.rows import Labels, Patients, patient_codes

__all__ = [
    "Binning",
    "Calibration",
    "CalibrationRows",
    "Distance",
    "Histogram",
    "ReliabilityBins",
    "ReliabilityCurve",
    "WithInterval",
    "calibration",
    "calibration_rows",
    "calibration_statistics",
    "prediction_histogram",
    "reliability_bins",
]

Binning = Literal["quantile", "width"]

RIDGE = 0.01
"""Penalty of the smooth curve, on columns of mean square 1: it matters only where the classes are separated."""

KNOTS = {5: (0.05, 0.275, 0.5, 0.725, 0.95), 4: (0.05, 0.35, 0.65, 0.95), 3: (0.1, 0.5, 0.9)}
"""Quantiles of the logits at which the curve bends (Harrell 2015, Table 2.3)."""

BATCH_ELEMENTS = 2**18


class WithInterval(NamedTuple):
    """A number, or an array of numbers, with its interval.

    Attributes:
      value: from the rows as they are, in double precision; NaN where it is undefined.
      interval: its ends, their Monte-Carlo errors, and how many resamples were left out as undefined.
    """

    value: Any
    interval: Interval


class Distance(NamedTuple):
    """A distance from perfect calibration, which chance alone keeps above 0.

    Attributes:
      value: as computed; biased upward, the more so the fewer the rows.
      expected: mean for a perfectly calibrated model with the same predictions.
      upper: the 95 % quantile for such a model; a value below it is no evidence of miscalibration.
      p_value: chance that such a model comes out at least as far.
      debiased: the value less an estimate of its bias; below 0 where nothing but chance is left. NaN for the index of
        the smooth curve.
      bins: number of bins that hold rows; 0 for the smooth curve.
    """

    value: float
    expected: float
    upper: float
    p_value: float
    debiased: float
    bins: int


class ReliabilityBins(NamedTuple):
    """Predicted and observed in bins of the predictions, shape `(b,)` each; bins without rows are left out.

    Attributes:
      low_edge, high_edge: of the bins; a prediction on an edge is in the lower bin.
      predicted: mean prediction.
      observed: fraction of rows of label 1.
      low, high: interval of the observed fraction.
      n, events, patients: rows, rows of label 1, and patients.
    """

    low_edge: Float[np.ndarray, "b"]
    high_edge: Float[np.ndarray, "b"]
    predicted: Float[np.ndarray, "b"]
    observed: Float[np.ndarray, "b"]
    low: Float[np.ndarray, "b"]
    high: Float[np.ndarray, "b"]
    n: Int[np.ndarray, "b"]
    events: Int[np.ndarray, "b"]
    patients: Int[np.ndarray, "b"]


class ReliabilityCurve(NamedTuple):
    """The observed fraction as a smooth function of the prediction.

    Attributes:
      predicted: from the smallest to the largest prediction, shape `(g,)`.
      observed: shape `(g,)`, with a pointwise interval.
      knots: number of points at which it bends; 2 is a straight line on the logit.
    """

    predicted: Float[np.ndarray, "g"]
    observed: WithInterval
    knots: int


class Histogram(NamedTuple):
    """How the predictions of each class are distributed.

    Attributes:
      edges: shape `(b + 1,)`.
      positives, negatives: rows of each class, shape `(b,)`.
    """

    edges: Float[np.ndarray, "e"]
    positives: Int[np.ndarray, "b"]
    negatives: Int[np.ndarray, "b"]


class Calibration(NamedTuple):
    """Calibration of one model.

    Attributes:
      n, events, patients: rows, rows of label 1, patients.
      clipped: rows whose probability is closer to 0 or 1 than 1e-6; their logits, and with them the slope and the
        intercept, depend on that limit.
      brier: mean squared error of the probabilities.
      scaled_brier: 1 less the Brier score over that of the prevalence for everybody; 1 is perfect, 0 useless.
      observed_minus_expected: fraction of events less mean probability; below 0 where risk is overestimated.
      observed_over_expected: their ratio.
      intercept: of the logit with the logit of the prediction as offset; 0 is perfect.
      slope: of the logit on the logit of the prediction; below 1 where predictions are too extreme.
      ici: integrated calibration index, the mean distance of prediction and curve.
      quantile_error, width_error: expected calibration error in bins of equal size and of equal width.
      curve: the smooth curve.
      unit: "patients" if rows were resampled by patient; "rows" if each counted as a patient of its own.
    """

    n: int
    events: int
    patients: int
    clipped: int
    brier: WithInterval
    scaled_brier: WithInterval
    observed_minus_expected: WithInterval
    observed_over_expected: WithInterval
    intercept: WithInterval
    slope: WithInterval
    ici: Distance
    quantile_error: Distance
    width_error: Distance
    curve: ReliabilityCurve
    unit: str


class CalibrationRows(NamedTuple):
    """What the statistics of a resample are computed from.

    Attributes:
      label, probability, logit: shape `(n,)`.
      scaled: logit of mean 0 and standard deviation 1, shape `(n,)`, and that deviation `scale`, shape `()`.
      basis: columns of the smooth curve, orthogonal and of mean square 1, shape `(n, k)`.
      grid: the same columns at the points of the curve, shape `(g, k)`.
      intercept, line, curve: coefficients of all rows, at which the fits of a resample start; shapes `(1,)`, `(2,)`
        and `(k,)`.
    """

    label: Any
    probability: Any
    logit: Any
    scaled: Any
    scale: Any
    basis: Any
    grid: Any
    intercept: Any
    line: Any
    curve: Any


def calibration(
    labels: Labels,
    probabilities: Float[np.ndarray, "n"],
    *,
    patients: Patients | None = None,
    bins: int = 10,
    points: int = 101,
    resamples: int = 5000,
    simulations: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Calibration:
    r"""Calibration of one model, with intervals over patients and with what chance does to a perfect model.

    The intercept :math:`\alpha` and the slope :math:`\beta` are those of

    .. math:: \operatorname{logit} P(y = 1) = \alpha + \operatorname{logit} p, \qquad
              \operatorname{logit} P(y = 1) = \alpha' + \beta \operatorname{logit} p

    The curve is a logistic regression on a natural cubic spline of the logit. A perfect model is simulated by labels
    drawn with the predicted probabilities; where no patient has rows of both labels, the rows of a patient share one
    draw, since slices of a tumour are all of a tumour.

    Args:
      labels: 0 or 1.
      probabilities: of label 1.
      patients: id of the patient of each row; None where every row is a patient of its own.
      bins: of the expected calibration errors.
      points: of the curve.
      resamples: of the patients, without strata.
      simulations: of a perfectly calibrated model.
      level: of the intervals.
      seed: of resamples and simulations.

    Returns:
      The calibration. Slope and intercept are NaN where they are infinite or undefined: classes separated by a
      threshold, or one prediction for everybody.

    Raises:
      ValueError: scores that are no probabilities, one class only, or fewer than two bins or points.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> logit = rng.normal(size=400)
      >>> labels = (rng.random(400) < 1 / (1 + np.exp(-logit))).astype(int)
      >>> twice_too_sure = 1 / (1 + np.exp(-2 * logit))
      >>> slope = calibration(labels, twice_too_sure, resamples=400, simulations=400).slope
      >>> bool(slope.interval.low < 0.5 < slope.interval.high < 1)
      True

    References:
      Cox 1958 (slope); Van Calster et al. 2019, "Calibration: the Achilles heel of predictive analytics"; Austin &
      Steyerberg 2019 (integrated calibration index, there with loess); Naeini et al. 2015 (expected calibration
      error); Vaicenavicius et al. 2019 (labels drawn from the predictions).
    """
    label, probability = check_probabilities(labels, probabilities)
    _check_counts(bins=bins, points=points)
    cluster = patient_codes(patients, len(label))
    rows, predicted = calibration_rows(label, probability, points=points)
    draws = bootstrap(calibration_statistics, rows, make_design(None, cluster), resamples=resamples, seed=seed)
    exact = _exact_statistics(rows)
    estimates = {name: WithInterval(exact[name], percentile_interval(draws[name], level)) for name in draws}
    ici, quantile_error, width_error = _distances(rows, cluster, bins=bins, simulations=simulations, seed=seed)
    return Calibration(
        n=len(label),
        events=int(label.sum()),
        patients=int(cluster.max()) + 1,
        clipped=int(((probability < CLIP) | (probability > 1 - CLIP)).sum()),
        curve=ReliabilityCurve(predicted, estimates.pop("curve"), rows.basis.shape[1]),
        ici=ici,
        quantile_error=quantile_error,
        width_error=width_error,
        unit="rows" if patients is None else "patients",
        **estimates,
    )


def calibration_rows(
    label: Float[np.ndarray, "n"], probability: Float[np.ndarray, "n"], *, points: int = 101
) -> tuple[CalibrationRows, Float[np.ndarray, "g"]]:
    """What `calibration_statistics` reads, and the predictions at which it gives the curve.

    Example:
      >>> rows, predicted = calibration_rows(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.1, 0.3, 0.6, 0.8]), points=3)
      >>> predicted.tolist(), rows.basis.shape
      ([0.1, 0.45, 0.8], (4, 3))
    """
    logit = as_logits(probability)
    predicted = np.linspace(probability.min(), probability.max(), points)
    fewer = int(min(label.sum(), (1 - label).sum()))
    basis, grid = _spline(logit, as_logits(predicted), 5 if fewer >= 100 else 4 if fewer >= 50 else 3)
    scale = logit.std()
    scaled = (logit - logit.mean()) / (scale if scale > 0 else 1.0)
    ones = np.ones_like(logit)
    intercept = logistic_fit(label, ones[:, None], offset=logit).coefficients
    line = np.full(2, np.nan)
    if not separated(label, logit):
        line = logistic_fit(label, np.stack([ones, scaled], axis=1)).coefficients
    curve = logistic_fit(label, basis, ridge=RIDGE).coefficients
    return CalibrationRows(
        label, probability, logit, scaled, scale, basis, grid, *(np.nan_to_num(fit) for fit in (intercept, line, curve))
    ), predicted


def _spline(
    logit: Float[np.ndarray, "n"], grid: Float[np.ndarray, "g"], knots: int
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "g k"]]:
    """Columns of a natural cubic spline at the rows and on the grid, orthogonal over the rows."""
    places = np.unique(np.quantile(logit, KNOTS[knots]))
    # As many columns as distinct predictions can tell apart; fewer than three knots leave the straight line.
    columns = min(max(len(places), 2), len(np.unique(logit)))
    at_rows, at_grid = (_natural_cubic(x, places)[:, :columns] for x in (logit, grid))
    orthogonal, triangle = np.linalg.qr(at_rows)
    root = np.sqrt(len(logit))
    return orthogonal * root, np.linalg.solve(triangle.T, at_grid.T).T * root


def _natural_cubic(x: Float[np.ndarray, "n"], knots: Float[np.ndarray, "q"]) -> Float[np.ndarray, "n k"]:
    """1, x, and a cubic for each knot but the last two that is straight beyond the outermost (Harrell 2015, 2.25)."""
    columns = [np.ones_like(x), x]
    for knot in knots[:-2]:
        last, before = knots[-1], knots[-2]
        cubes = [np.maximum(x - place, 0.0) ** 3 for place in (knot, before, last)]
        bend = cubes[0] - cubes[1] * (last - knot) / (last - before) + cubes[2] * (before - knot) / (last - before)
        columns.append(bend / (last - knots[0]) ** 2)
    return np.stack(columns, axis=1)


# The statistics of a resample.


def calibration_statistics(rows: CalibrationRows, weights: Array) -> dict[str, Array]:
    """Everything in `Calibration` that has an interval, for rows that count `weights` times.

    Args:
      rows: from `calibration_rows`.
      weights: how often each row counts, shape `(n,)`.

    Returns:
      Name to value; NaN where it is undefined. `curve` has shape `(g,)`.

    Example:
      >>> rows, _ = calibration_rows(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.1, 0.3, 0.6, 0.8]))
      >>> found = jax.jit(calibration_statistics)(rows, jnp.ones(4))
      >>> round(float(found["observed_minus_expected"]), 3)
      0.05
    """
    label, probability = rows.label, rows.probability
    weights = weights.astype(label.dtype)
    total, events = jnp.sum(weights), jnp.sum(weights * label)
    expected = jnp.sum(weights * probability)
    brier = jnp.sum(weights * jnp.square(probability - label)) / total
    variance = events / total * (1 - events / total)
    both = variance > 0
    ones = jnp.ones_like(label)
    zeros = jnp.zeros_like(label)
    intercept = _fit(rows.intercept, ones[:, None], label, weights, rows.logit, 0.0)
    line = _fit(rows.line, jnp.stack([ones, rows.scaled], axis=1), label, weights, zeros, 0.0)
    curve = _fit(rows.curve, rows.basis, label, weights, zeros, RIDGE)
    defined = both & ~_separated(label, rows.logit, weights)
    return {
        "brier": brier,
        "scaled_brier": jnp.where(both, 1 - brier / jnp.where(both, variance, 1.0), jnp.nan),
        "observed_minus_expected": (events - expected) / total,
        "observed_over_expected": events / expected,
        "intercept": jnp.where(both, intercept[0], jnp.nan),
        "slope": jnp.where(defined, line[1] / rows.scale, jnp.nan),
        "curve": jax.nn.sigmoid(rows.grid @ curve),
    }


def _fit(start: Array, design: Array, label: Array, weights: Array, offset: Array, ridge: float) -> Array:
    products = column_products(design)
    # A step of this reach is followed by an error of its square, which is the rounding.
    tolerance = float(jnp.finfo(label.dtype).eps) ** 0.5

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, reach, steps = state
        return (reach > tolerance) & (steps < STEPS)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        coefficients, _, steps = state
        return *newton_step(coefficients, design, products, label, weights, offset, ridge, _solve, jnp), steps + 1

    begin = (start, jnp.asarray(jnp.inf, label.dtype), jnp.asarray(0))
    coefficients, reach, _ = jax.lax.while_loop(unfinished, step, begin)
    return jnp.where(reach <= tolerance, coefficients, jnp.nan)


def _solve(matrix: Array, vector: Array) -> Array:
    # Cholesky: NaN, which ends the fit, where the matrix is singular; half the compile time of a general solver.
    return cho_solve(cho_factor(matrix), vector)


def _separated(label: Array, logit: Array, weights: Array) -> Array:
    ends = []
    for own in (label == 0, label == 1):
        drawn = own & (weights > 0)
        ends.append((jnp.min(jnp.where(drawn, logit, jnp.inf)), jnp.max(jnp.where(drawn, logit, -jnp.inf))))
    (low_negative, high_negative), (low_positive, high_positive) = ends
    return (high_negative <= low_positive) | (high_positive <= low_negative)


def _exact_statistics(rows: CalibrationRows) -> dict[str, Any]:
    """The same numbers for all rows, in double precision on the host."""
    from scipy.special import expit

    label, probability = rows.label, rows.probability
    brier = float(np.mean(np.square(probability - label)))
    undefined = separated(label, rows.logit) or rows.scale == 0
    return {
        "brier": brier,
        "scaled_brier": 1 - brier / float(label.var()),
        "observed_minus_expected": float(label.mean() - probability.mean()),
        "observed_over_expected": float(label.sum() / probability.sum()) if probability.any() else np.inf,
        "intercept": float(rows.intercept[0]),
        "slope": np.nan if undefined else float(rows.line[1] / rows.scale),
        "curve": expit(rows.grid @ rows.curve),
    }


# Bins.


def reliability_bins(
    labels: Labels,
    probabilities: Float[np.ndarray, "n"],
    *,
    bins: int = 10,
    by: Binning = "quantile",
    patients: Patients | None = None,
    level: float = 0.95,
) -> ReliabilityBins:
    r"""Observed fractions in bins of the predictions, with intervals.

    The intervals are Wilson's, at the effective number of rows where patients have several (`clustered_proportion`).

    Args:
      labels: 0 or 1.
      probabilities: of label 1.
      bins: number of bins; fewer come back where they hold no rows, as when many predictions are equal.
      by: "quantile" for bins of equally many rows, "width" for bins of equal width.
      patients: id of the patient of each row; None where every row is a patient of its own.
      level: of the intervals.

    Raises:
      ValueError: scores that are no probabilities, one class only, or fewer than two bins.

    Example:
      >>> found = reliability_bins(np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8]), bins=2)
      >>> found.predicted.round(2).tolist(), found.observed.tolist(), found.high.round(2).tolist()
      ([0.2, 0.7], [0.0, 1.0], [0.66, 1.0])

    References:
      Niculescu-Mizil & Caruana 2005 (reliability diagrams); scikit-learn's `calibration_curve` has the same bins.
    """
    label, probability = check_probabilities(labels, probabilities)
    _check_counts(bins=bins)
    edges, codes = _bin(probability, bins, by)
    cluster = patient_codes(patients, len(label))
    filled = np.unique(codes)
    shares = [clustered_proportion(label[codes == one].astype(int), cluster[codes == one], level) for one in filled]
    low, high, events, rows, units = (
        np.array([getattr(share, name) for share in shares])
        for name in ("low", "high", "successes", "rows", "patients")
    )
    predicted = np.bincount(codes, probability)[filled] / rows
    return ReliabilityBins(edges[filled], edges[filled + 1], predicted, events / rows, low, high, rows, events, units)


def prediction_histogram(labels: Labels, probabilities: Float[np.ndarray, "n"], *, bins: int = 50) -> Histogram:
    """How often each class got which prediction: the strip under a reliability curve.

    Example:
      >>> prediction_histogram(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.9]), bins=2).negatives.tolist()
      [2, 0]
    """
    label, probability = check_probabilities(labels, probabilities, one_class=True)
    edges = np.linspace(0, 1, bins + 1)
    return Histogram(edges, *(np.histogram(probability[label == own], edges)[0] for own in (1, 0)))


class _Bins(NamedTuple):
    """Means of bins that hold rows, their numbers of rows, and the variance of the observed mean over patients."""

    predicted: Float[np.ndarray, "b"]
    observed: Float[np.ndarray, "b"]
    n: Int[np.ndarray, "b"]
    variance: Float[np.ndarray, "b"]


def _bin(
    probability: Float[np.ndarray, "n"], bins: int, by: Binning
) -> tuple[Float[np.ndarray, "e"], Int[np.ndarray, "n"]]:
    """Edges, and the bin of each row; scikit-learn's `calibration_curve` bins the same way."""
    if by not in ("quantile", "width"):
        raise ValueError(f"by: {by!r}; expected 'quantile' (equally many rows) or 'width' (equal width).")
    fractions = np.linspace(0, 1, bins + 1)
    edges = np.quantile(probability, fractions) if by == "quantile" else fractions
    return edges, np.searchsorted(edges[1:-1], probability)


def _summarise(
    label: Float[np.ndarray, "n"],
    probability: Float[np.ndarray, "n"],
    codes: Int[np.ndarray, "n"],
    cluster: Int[np.ndarray, "n"],
) -> _Bins:
    codes = np.unique(codes, return_inverse=True)[1]
    count = np.bincount(codes)
    predicted, observed = (np.bincount(codes, values) / count for values in (probability, label))
    # Rows of one patient in one bin vary together: their residuals are added before they are squared.
    pair, member = np.unique(np.stack([codes, cluster]), axis=1, return_inverse=True)
    sums = np.bincount(member.reshape(-1), label - observed[codes])
    patients = np.bincount(pair[0])
    spread = np.bincount(pair[0], np.square(sums)) / count**2
    # A bin with one patient says nothing about the spread over patients; that of one row is the most there can be.
    alone = observed * (1 - observed)
    variance = np.where(patients > 1, spread * patients / np.maximum(patients - 1, 1), alone)
    return _Bins(predicted, observed, count, variance)


# Distances, and what a perfectly calibrated model gets.


class _Perfect(NamedTuple):
    """What labels of a perfectly calibrated model are drawn from, and measured with.

    Attributes:
      probability: shape `(n,)`.
      unit: rows of the same unit share one uniform number, shape `(n,)`.
      members: for each binning, which bin a row is in, shape `(n, b)`, divided by n.
      basis, identity: columns of the curve, and the coefficients with which it is the diagonal.
    """

    probability: Any
    unit: Any
    members: tuple[Any, ...]
    basis: Any
    identity: Any


def _distances(
    rows: CalibrationRows, cluster: Int[np.ndarray, "n"], *, bins: int, simulations: int, seed: int
) -> tuple[Distance, Distance, Distance]:
    from scipy.special import expit

    n = len(rows.label)
    unit, found, members = _shared_units(rows.label, cluster), [], []
    for by in ("quantile", "width"):
        codes = _bin(rows.probability, bins, by)[1]
        found.append(_summarise(rows.label, rows.probability, codes, cluster))
        members.append((codes[:, None] == np.arange(bins)) / n)
    identity = np.linalg.lstsq(rows.basis, rows.logit)[0]
    perfect = _Perfect(rows.probability, unit.astype(np.int32), tuple(members), rows.basis, identity)
    batch = max(1, min(64, BATCH_ELEMENTS // rows.basis.size))
    simulated = _simulate(
        perfect, jax.random.key(seed), np.arange(simulations, dtype=np.int32), units=int(unit.max()) + 1, batch=batch
    )
    values = [float(np.mean(np.abs(expit(rows.basis @ rows.curve) - rows.probability)))]
    values += [float(np.sum(one.n * np.abs(one.observed - one.predicted)) / n) for one in found]
    debiased = [np.nan, *(_debiased(one) for one in found)]
    counts = [0, *(len(one.n) for one in found)]
    distances = []
    for value, draws, less, count in zip(values, simulated, debiased, counts, strict=True):
        draws = np.asarray(draws, float)
        # Both sides sum the same rows in another precision: equal is equal within rounding.
        beyond = float((draws >= value * (1 - 1e-5)).sum())
        distances.append(
            Distance(
                value,
                float(draws.mean()),
                float(np.quantile(draws, 0.95)),
                (1 + beyond) / (1 + len(draws)),
                float(less),
                count,
            )
        )
    return distances[0], distances[1], distances[2]


def _shared_units(label: Float[np.ndarray, "n"], cluster: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    events, count = np.bincount(cluster, label), np.bincount(cluster)
    mixed = ((events > 0) & (events < count)).any()
    return np.arange(len(label)) if mixed else cluster


def _debiased(bins: _Bins) -> float:
    r"""Expected calibration error less the bias that a normal error of each bin's mean gives its absolute value.

    The mean of :math:`|d + \epsilon|` with :math:`\epsilon \sim N(0, v)` is taken at the observed :math:`d`.
    """
    from scipy.special import ndtr

    share = bins.n / bins.n.sum()
    gap, sd = np.abs(bins.observed - bins.predicted), np.sqrt(bins.variance)
    ratio = gap / np.where(sd > 0, sd, 1.0)
    folded = sd * np.sqrt(2 / np.pi) * np.exp(-np.square(ratio) / 2) + gap * (1 - 2 * ndtr(-ratio))
    return float(np.sum(share * np.where(sd > 0, 2 * gap - folded, gap)))


@partial(jax.jit, static_argnames=("units", "batch"))
def _simulate(perfect: _Perfect, key: Array, numbers: Array, *, units: int, batch: int) -> tuple[Array, ...]:
    """Index of the curve and errors of the binnings, for labels drawn with the predicted probabilities."""
    probability = perfect.probability

    def distances(number: Array) -> tuple[Array, ...]:
        uniform = jax.random.uniform(jax.random.fold_in(key, number), (units,), probability.dtype)
        label = (uniform[perfect.unit] < probability).astype(probability.dtype)
        ones = jnp.ones_like(probability)
        curve = _fit(perfect.identity, perfect.basis, label, ones, 0 * ones, RIDGE)
        index = jnp.mean(jnp.abs(jax.nn.sigmoid(perfect.basis @ curve) - probability))
        return index, *(jnp.sum(jnp.abs((label - probability) @ member)) for member in perfect.members)

    return map_in_batches(distances, numbers, batch)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 2:
            raise ValueError(f"{name}: {count}; expected at least 2.")
