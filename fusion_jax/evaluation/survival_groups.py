r"""Do groups of different risk live differently? Kaplan–Meier curves, restricted means and the log-rank test.

These treat rows as independent, so a patient has one row. An event at :math:`t` precedes a censoring at :math:`t`.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from fusion_jax.evaluation.survival_follow_up import check_follow_up, check_risk
from fusion_jax.wording import counted, listed

__all__ = [
    "GroupSurvival",
    "KaplanMeier",
    "LogRank",
    "RestrictedMean",
    "RiskGroups",
    "SurvivalAt",
    "kaplan_meier",
    "log_rank",
    "median_survival",
    "number_at_risk",
    "restricted_mean",
    "risk_groups",
    "survival_at",
    "survival_by_group",
]

NAMES = {2: ("low risk", "high risk"), 3: ("low risk", "medium risk", "high risk")}
CUT = {2: "median", 3: "tertiles", 4: "quartiles", 5: "quintiles"}


class RiskGroups(NamedTuple):
    """Rows by risk.

    Attributes:
      group: 0 for the lowest risk, shape `(n,)`.
      names: of the groups.
      cutoffs: a row belongs to group g when its risk reaches g of them, shape `(g - 1,)`.
      origin: where the cut-offs came from, in words.
    """

    group: Int[np.ndarray, "n"]
    names: tuple[str, ...]
    cutoffs: Float[np.ndarray, "g-1"]
    origin: str


class KaplanMeier(NamedTuple):
    """A curve: `survival[i]` from `times[i]` until the next of them.

    Attributes:
      times: the origin, 0, and every distinct time of follow-up after it, shape `(t,)`.
      survival: probability of being free of the event after it.
      low, high: pointwise interval; 1 before the first event, NaN where the curve is 0.
      at_risk: rows followed up to each time or longer.
      events, censored: at each time.
      level: of confidence.
    """

    times: Float[np.ndarray, "t"]
    survival: Float[np.ndarray, "t"]
    low: Float[np.ndarray, "t"]
    high: Float[np.ndarray, "t"]
    at_risk: Int[np.ndarray, "t"]
    events: Int[np.ndarray, "t"]
    censored: Int[np.ndarray, "t"]
    level: float


class SurvivalAt(NamedTuple):
    """A curve at some times, NaN after the end of its follow-up.

    Attributes:
      survival, low, high: shape `(h,)`.
    """

    survival: Float[np.ndarray, "h"]
    low: Float[np.ndarray, "h"]
    high: Float[np.ndarray, "h"]


class RestrictedMean(NamedTuple):
    """Mean time free of the event until a time limit.

    Attributes:
      mean: in the unit of time.
      standard_error: by Greenwood's formula.
      low, high: normal interval.
      until: the limit.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    until: float


class LogRank(NamedTuple):
    """Log-rank test.

    Attributes:
      chi_squared, degrees, p_value: of the hypothesis that all groups have one hazard; two-sided.
      observed, expected: events in each group, and those expected under that hypothesis, shape `(g,)`.
    """

    chi_squared: float
    degrees: int
    p_value: float
    observed: Int[np.ndarray, "g"]
    expected: Float[np.ndarray, "g"]


class GroupSurvival(NamedTuple):
    """Everything that is shown of groups of risk; sequences have one entry a group.

    Attributes:
      groups: who is in which.
      n, events: rows and events.
      curves: Kaplan–Meier curves.
      medians: times at which half have had the event, with intervals; NaN where not reached.
      restricted_means: all until the same time.
      at: times of the table below, shape `(h,)`.
      at_risk: rows followed up to each of them or longer, shape `(g, h)`.
      log_rank: of all groups.
    """

    groups: RiskGroups
    n: tuple[int, ...]
    events: tuple[int, ...]
    curves: tuple[KaplanMeier, ...]
    medians: tuple[tuple[float, float, float], ...]
    restricted_means: tuple[RestrictedMean, ...]
    at: Float[np.ndarray, "h"]
    at_risk: Int[np.ndarray, "g h"]
    log_rank: LogRank


def risk_groups(
    risk: Shaped[np.ndarray, "n"],
    *,
    cutoffs: Sequence[float] | None = None,
    training_risk: Shaped[np.ndarray, "u"] | None = None,
    groups: int = 2,
) -> RiskGroups:
    """Divide rows by risk, at cut-offs from elsewhere where there are any.

    Args:
      risk: larger = earlier event, shape `(n,)`.
      cutoffs: given beforehand, increasing; a risk equal to one belongs above it.
      training_risk: risks of the training rows of the same model, whose quantiles are the cut-offs.
      groups: how many, where cut-offs are read off: 2 by the median, 3 by tertiles.

    Returns:
      `RiskGroups`. Without cut-offs and training risks they are quantiles of `risk` itself, and `origin` says that they
      were read off the test rows: such groups are of equal size by construction, and no new patient has one.

    Raises:
      ValueError: cut-offs that do not increase, both kinds of them, or an empty group.

    Example:
      >>> risk_groups(np.array([0.1, 0.4, 0.6]), cutoffs=[0.5]).group.tolist()
      [0, 0, 1]
      >>> risk_groups(np.array([0.1, 0.4, 0.6])).origin
      'median, read off the test rows'
    """
    risks = check_risk(risk, np.size(risk))
    if cutoffs is not None and training_risk is not None:
        raise ValueError("both cutoffs and training_risk are given; expected one origin of the cut-offs.")
    if cutoffs is not None:
        limits = np.asarray(cutoffs, float)
        if limits.ndim != 1 or not limits.size or not np.isfinite(limits).all() or np.any(np.diff(limits) <= 0):
            raise ValueError(f"cutoffs are {cutoffs}; expected at least one finite risk, each above the one before.")
        origin = "given"
    else:
        if groups < 2:
            raise ValueError(f"groups is {groups}; expected at least 2.")
        source = risks if training_risk is None else check_risk(training_risk, np.size(training_risk))
        limits = np.quantile(source, np.arange(1, groups) / groups)
        place = "read off the test rows" if training_risk is None else "of the training risks"
        origin = f"{CUT.get(groups, f'{groups} quantile groups')}, {place}"
    found = np.searchsorted(limits, risks, "right")
    sizes = np.bincount(found, minlength=limits.size + 1)
    if not sizes.all():
        raise ValueError(
            f"cut-offs {listed(f'{limit:g}' for limit in limits)} ({origin}) leave groups of {listed(sizes)} rows; "
            "expected rows in every one. Choose fewer groups or other cut-offs; risks of another scale than the "
            "training risks need calibration first."
        )
    names = NAMES.get(sizes.size, tuple(f"risk group {number + 1}" for number in range(sizes.size)))
    return RiskGroups(found, names, limits, origin)


def kaplan_meier(time: Shaped[np.ndarray, "n"], event: Shaped[np.ndarray, "n"], *, level: float = 0.95) -> KaplanMeier:
    r"""Kaplan–Meier curve with a pointwise interval on the scale of :math:`\log(-\log S)`, which stays within 0 and 1.

    .. math:: \hat S(t) = \prod_{t_i \le t} \left(1 - \frac{d_i}{n_i}\right)

    Args:
      time: to the event or to the end of observation, shape `(n,)`.
      event: whether it was the event, shape `(n,)`; a group without events has a curve of 1.
      level: of confidence.

    Raises:
      ValueError: see `check_follow_up`.

    Example:
      >>> kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1])).survival.round(3).tolist()
      [1.0, 0.667, 0.667, 0.0]

    References:
      Kaplan & Meier 1958; Kalbfleisch & Prentice 2002, section 1.4 (interval). Computed by `scipy.stats.ecdf`.
    """
    from scipy.stats import CensoredData, ecdf

    times, events = check_follow_up(time, event, events_needed=False)
    function = ecdf(CensoredData(times[events], right=times[~events])).sf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The confidence interval is undefined at some observations", RuntimeWarning)
        interval = function.confidence_interval(level, method="log-log")
    # Times at the origin change the curve there; otherwise it starts at 1.
    shown = np.unique(np.append(0.0, times))
    survival, low, high = (
        np.append(1.0, curve.probabilities)[np.searchsorted(curve.quantiles, shown, "right")]
        for curve in (function, interval.low, interval.high)
    )
    certain = survival == 1
    ordered = np.sort(times)
    return KaplanMeier(
        shown,
        survival,
        np.where(certain, 1.0, low),
        np.where(certain, 1.0, high),
        times.size - np.searchsorted(ordered, shown),
        _count(times[events], shown),
        _count(times[~events], shown),
        level,
    )


def survival_at(curve: KaplanMeier, at: Shaped[np.ndarray, "h"] | Sequence[float]) -> SurvivalAt:
    """The curve and its interval after some times.

    Example:
      >>> curve = kaplan_meier(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 0, 0]))
      >>> survival_at(curve, [2, 5]).survival.tolist()
      [0.5, nan]
    """
    times = np.asarray(at, float)
    if np.any(times < 0) or np.isnan(times).any():
        raise ValueError(f"at is {at}; expected times from the origin on.")
    index = np.searchsorted(curve.times, times, "right") - 1
    # A curve that reached 0 stays there; any other is unknown after its last row.
    unknown = (times > curve.times[-1]) & (curve.survival[-1] > 0)
    return SurvivalAt(*(np.where(unknown, np.nan, values[index]) for values in curve[1:4]))


def number_at_risk(curve: KaplanMeier, at: Shaped[np.ndarray, "h"] | Sequence[float]) -> Int[np.ndarray, "h"]:
    """Rows followed up to each time or longer, as printed below a Kaplan–Meier figure.

    Example:
      >>> number_at_risk(kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1])), [0, 2, 4]).tolist()
      [3, 2, 0]
    """
    return np.append(curve.at_risk, 0)[np.searchsorted(curve.times, np.asarray(at, float))]


def median_survival(curve: KaplanMeier) -> tuple[float, float, float]:
    """First time at which the curve is at most one half, and the same of the two ends of its interval.

    Returns:
      Median, lower and upper end; NaN where not reached.

    Example:
      >>> median_survival(kaplan_meier(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 1, 1])))[0]
      2.0

    References:
      Brookmeyer & Crowley 1982 (inverted pointwise interval).
    """

    def reached(values: Float[np.ndarray, "t"]) -> float:
        found = np.flatnonzero(values <= 0.5 + 1e-12)  # a product of fractions misses one half by rounding
        return float(curve.times[found[0]]) if found.size else float("nan")

    return reached(curve.survival), reached(curve.low), reached(curve.high)


def restricted_mean(curve: KaplanMeier, until: float) -> RestrictedMean:
    r"""Mean time free of the event until a limit: the area under the curve.

    .. math:: \hat\mu(\tau) = \int_0^\tau \hat S(t)\, dt, \qquad
              \widehat{\mathrm{var}} = \sum_{t_i \le \tau} \left(\int_{t_i}^\tau \hat S\right)^2
              \frac{d_i}{n_i (n_i - d_i)}

    Args:
      curve: of a group.
      until: the limit, the same for all groups that are compared, in the unit of time.

    Raises:
      ValueError: a limit after the end of follow-up, or not after the origin.

    Example:
      >>> restricted_mean(kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1])), 3).mean
      2.0

    References:
      Royston & Parmar 2013, doi:10.1186/1471-2288-13-152.
    """
    from scipy.stats import norm

    last = curve.times[-1]
    if not 0 < until < np.inf or (until > last and curve.survival[-1] > 0):
        raise ValueError(
            f"until is {until:g}, and follow-up of this group ends at {last:g}; expected a time after the origin "
            "within the follow-up of every group."
        )
    inside = curve.times < until
    ends = np.append(curve.times[inside][1:], until)
    areas = (curve.survival[inside] * (ends - curve.times[inside]))[::-1].cumsum()[::-1]
    at_risk, events = curve.at_risk[inside], curve.events[inside]
    left = at_risk - events
    # Where nobody is left, no area is left either.
    hazard = np.divide(events, at_risk * left, out=np.zeros(left.size), where=left > 0)
    error = float(np.sqrt(np.sum(areas**2 * hazard)))
    mean, reach = float(areas[0]), float(norm.ppf((1 + curve.level) / 2)) * error
    return RestrictedMean(mean, error, max(mean - reach, 0.0), min(mean + reach, float(until)), float(until))


def log_rank(time: Shaped[np.ndarray, "n"], event: Shaped[np.ndarray, "n"], group: Int[np.ndarray, "n"]) -> LogRank:
    r"""Log-rank test of two or more groups.

    .. math:: \chi^2 = (O - E)^\top V^{-} (O - E), \qquad E_g = \sum_i d_i \frac{n_{gi}}{n_i}

    with the hypergeometric covariance of the events in each group at each time. Two groups give the square of
    `scipy.stats.logrank`, which has no form for more.

    Args:
      time, event: see `kaplan_meier`.
      group: number of the group of each row, from 0, shape `(n,)`.

    Raises:
      ValueError: see `check_follow_up`; fewer than two groups, or no two that are ever at risk together.

    Example:
      >>> test = log_rank(np.arange(1.0, 9.0), np.ones(8), np.array([1, 1, 1, 1, 0, 0, 0, 0]))
      >>> round(test.chi_squared, 3), test.degrees, round(test.p_value, 4)
      (7.344, 1, 0.0067)

    References:
      Mantel 1966; Peto & Peto 1972; Kalbfleisch & Prentice 2002, section 1.5.
    """
    from scipy.stats import chi2

    times, events = check_follow_up(time, event)
    codes = np.asarray(group)
    sizes = np.bincount(codes)
    if codes.shape != times.shape or np.count_nonzero(sizes) < 2:
        raise ValueError(
            f"group has shape {codes.shape} and {np.count_nonzero(sizes)} group(s) with rows; expected one number for "
            f"each of {counted(times.size, 'row')}, and at least two groups."
        )
    moments = np.unique(times[events])
    members = codes == np.arange(sizes.size)[:, None]
    at_risk = np.stack([own.sum() - np.searchsorted(np.sort(times[own]), moments) for own in members])
    happened = np.stack([_count(times[events & own], moments) for own in members])
    total, fallen = at_risk.sum(axis=0), happened.sum(axis=0)
    share = at_risk / total
    observed, expected = happened.sum(axis=1), share @ fallen
    # With one row left the variance is zero over zero.
    spread = fallen * (total - fallen) / np.maximum(total - 1, 1)
    covariance = np.diag(share @ spread) - (share * spread) @ share.T
    rank = int(np.linalg.matrix_rank(covariance, hermitian=True))
    if rank == 0:
        raise ValueError(
            f"no two groups were at risk at the time of any of {counted(int(fallen.sum()), 'event')}; there is nothing "
            "to compare. Use groups whose follow-up overlaps."
        )
    apart = observed - expected
    statistic = float(apart @ np.linalg.pinv(covariance, hermitian=True) @ apart)
    return LogRank(statistic, rank, float(chi2.sf(statistic, rank)), observed, expected)


def survival_by_group(
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    groups: RiskGroups,
    *,
    patients: Any = None,
    at: Shaped[np.ndarray, "h"] | Sequence[float] | None = None,
    until: float | None = None,
    level: float = 0.95,
) -> GroupSurvival:
    """Curves, medians, restricted means, numbers at risk and the log-rank test of groups of risk.

    Args:
      time, event: see `kaplan_meier`.
      groups: `risk_groups(...)` of the same rows.
      patients: id of the patient of each row; a patient with several rows is an error, for each would count as a life.
      at: times of the numbers at risk; by default about six round ones over the follow-up.
      until: limit of the restricted means; by default the end of the follow-up of the group that ends first.
      level: of confidence.

    Returns:
      `GroupSurvival`.

    Raises:
      ValueError: several rows of a patient; see also the single functions.

    Example:
      >>> groups = risk_groups(np.array([3.0, 4.0, 2.0, 1.0]))
      >>> found = survival_by_group(np.array([1.0, 2.0, 4.0, 5.0]), np.array([1, 1, 0, 1]), groups, at=[0, 2, 4])
      >>> found.at_risk.tolist(), [one.mean for one in found.restricted_means]
      ([[2, 2, 2], [2, 1, 0]], [2.0, 1.5])
    """
    times, events = check_follow_up(time, event)
    if groups.group.shape != times.shape:
        raise ValueError(f"groups are of {groups.group.size} rows, time of {times.size}; expected the same rows.")
    if patients is not None:
        _check_one_row(np.asarray(patients), times.size)
    members = [groups.group == number for number in range(len(groups.names))]
    curves = tuple(kaplan_meier(times[own], events[own], level=level) for own in members)
    shown = _round_times(times.max()) if at is None else np.asarray(at, float)
    limit = min(float(curve.times[-1]) for curve in curves) if until is None else until
    return GroupSurvival(
        groups=groups,
        n=tuple(int(own.sum()) for own in members),
        events=tuple(int(events[own].sum()) for own in members),
        curves=curves,
        medians=tuple(map(median_survival, curves)),
        restricted_means=tuple(restricted_mean(curve, limit) for curve in curves),
        at=shown,
        at_risk=np.stack([number_at_risk(curve, shown) for curve in curves]),
        log_rank=log_rank(times, events, groups.group),
    )


def _check_one_row(patients: Shaped[np.ndarray, "n"], rows: int) -> None:
    if patients.shape != (rows,):
        raise ValueError(f"patients has shape {patients.shape}; expected one id for each of {counted(rows, 'row')}.")
    names, counts = np.unique(patients.astype(str), return_counts=True)
    several = names[counts > 1]
    if several.size:
        raise ValueError(
            f"{counted(several.size, 'patient')} with several rows ({listed(several)}): each row would count as a life "
            "of its own, and the log-rank test and the curves' intervals would claim too much. Give one row a patient, "
            "such as the mean risk of its rows."
        )


def _count(times: Float[np.ndarray, "k"], at: Float[np.ndarray, "t"]) -> Int[np.ndarray, "t"]:
    ordered = np.sort(times)
    return np.searchsorted(ordered, at, "right") - np.searchsorted(ordered, at)


def _round_times(last: float) -> Float[np.ndarray, "h"]:
    """From 0 to the end of follow-up in at most six steps of 1, 2 or 5 times a power of ten."""
    if last == 0:
        return np.zeros(1)
    power = 10.0 ** np.floor(np.log10(last / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if last <= 6 * factor * power)
    return step * np.arange(int(last / step + 1e-9) + 1)
