r"""How well do risks or survival probabilities foretell when an event happens? Point estimates in float64.

A risk is any number that is larger the earlier the event is expected. Concordances and AUC read its order only; a Brier
score reads probabilities of being free of the event.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from fusion_jax.evaluation.survival_follow_up import (
    FollowUp,
    censoring_weights_at,
    check_follow_up,
    check_horizons,
    check_risk,
    event_survival,
)
from fusion_jax.evaluation.survival_pairs import pair_plan, time_ranks
from fusion_jax.wording import counted, listed

__all__ = [
    "Concordance",
    "SurvivalMetrics",
    "TimeDependentAUC",
    "brier_scores",
    "harrell_c",
    "integrated_brier_score",
    "survival_metrics",
    "time_dependent_auc",
    "uno_c",
]


class Concordance(NamedTuple):
    """Harrell's concordance index and the pairs it counts.

    Attributes:
      c: `(concordant + tied_risk / 2) / (concordant + discordant + tied_risk)`.
      concordant, discordant, tied_risk: comparable pairs in which the earlier event has the higher, the lower or the
        same risk.
      tied_time: pairs of events at the same time, which are not compared.
    """

    c: float
    concordant: int
    discordant: int
    tied_risk: int
    tied_time: int


class TimeDependentAUC(NamedTuple):
    """Cumulative/dynamic AUC.

    Attributes:
      horizons: times, shape `(h,)`.
      auc: AUC of those with the event by a horizon against those free of it after the horizon, shape `(h,)`.
      mean: over the horizons, each weighted by the fall of the Kaplan–Meier curve since the horizon before.
    """

    horizons: Float[np.ndarray, "h"]
    auc: Float[np.ndarray, "h"]
    mean: float


class SurvivalMetrics(NamedTuple):
    """What is reported of one model.

    Attributes:
      n, events: rows and events.
      harrell: Harrell's C with its pairs.
      uno: Uno's C up to `tau`.
      tau: truncation of Uno's C; infinite where it is not truncated.
      auc: time-dependent AUC at the horizons.
      brier: IPCW Brier score at the horizons, shape `(h,)`; None where no survival probabilities were given.
      integrated_brier: its mean over time from the first to the last horizon; None without probabilities, or with one
        horizon.
      censoring: from which rows the censoring was estimated, in words.
    """

    n: int
    events: int
    harrell: Concordance
    uno: float
    tau: float
    auc: TimeDependentAUC
    brier: Float[np.ndarray, "h"] | None
    integrated_brier: float | None
    censoring: str


def harrell_c(
    risk: Shaped[np.ndarray, "n"], time: Shaped[np.ndarray, "n"], event: Shaped[np.ndarray, "n"]
) -> Concordance:
    r"""Harrell's concordance index: how often the case with the earlier event has the higher risk.

    .. math:: C = \frac{\sum_{ij} \delta_i\, [t_i < t_j] \left([r_i > r_j] + \tfrac12 [r_i = r_j]\right)}
                       {\sum_{ij} \delta_i\, [t_i < t_j]}

    A pair is comparable when the earlier time is an event. Two events at one time are not; an event and a censoring at
    one time are, the censored case being taken as free of the event for longer. Risks tie where they are equal
    exactly. The value depends on how the cohort was censored: `uno_c` does not. O(n log n).

    Args:
      risk: larger = earlier event, shape `(n,)`.
      time: to the event or to the end of observation, shape `(n,)`.
      event: whether it was the event, shape `(n,)`.

    Returns:
      `Concordance`.

    Raises:
      ValueError: see `check_follow_up` and `check_risk`; or no comparable pair.

    Example:
      >>> risk, time = np.array([4.0, 3.0, 2.0, 3.5]), np.array([1.0, 2.0, 3.0, 4.0])
      >>> harrell_c(risk, time, np.array([1, 1, 0, 0]))
      Concordance(c=0.8, concordant=4, discordant=1, tied_risk=0, tied_time=0)

    References:
      Harrell, Lee & Mark 1996, doi:10.1002/(SICI)1097-0258(19960229)15:4<361::AID-SIM168>3.0.CO;2-4.
    """
    times, events = check_follow_up(time, event)
    risks = check_risk(risk, times.size)
    lower, same, later = _partners(risks, times, events)
    comparable = int(later.sum())
    _check_comparable(comparable, times, events)
    concordant, tied = int(lower.sum()), int(same.sum())
    together = np.unique(times[events], return_counts=True)[1]
    return Concordance(
        float((concordant + tied / 2) / comparable),
        concordant,
        comparable - concordant - tied,
        tied,
        int((together * (together - 1) // 2).sum()),
    )


def uno_c(
    risk: Shaped[np.ndarray, "n"],
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    *,
    tau: float = float("inf"),
    training: FollowUp | None = None,
) -> float:
    r"""Uno's concordance index: Harrell's pairs, each weighted so that censoring no longer matters.

    .. math:: C_\tau = \frac{\sum_{ij} \delta_i\, \hat G(t_i)^{-2} [t_i < t_j, t_i < \tau]
                             \left([r_i > r_j] + \tfrac12 [r_i = r_j]\right)}
                            {\sum_{ij} \delta_i\, \hat G(t_i)^{-2} [t_i < t_j, t_i < \tau]}

    with the Kaplan–Meier estimate of being uncensored after :math:`t_i`. It assumes that censoring depends neither on
    the risk nor on the time of the event.

    Args:
      risk, time, event: see `harrell_c`.
      tau: only events before it count. Untruncated, a few late events in a small rest may carry most of the weight.
      training: from which censoring is estimated; by default from the rows that are judged.

    Raises:
      ValueError: see `harrell_c`; or a weight that cannot be estimated (see `censoring_weights_at`).

    Example:
      >>> risk, time = np.array([4.0, 3.0, 2.0, 3.5]), np.array([1.0, 2.0, 3.0, 4.0])
      >>> uno_c(risk, time, np.array([1, 0, 1, 1]), tau=3.5)
      0.6

    References:
      Uno et al. 2011, doi:10.1002/sim.4154.
    """
    times, events = check_follow_up(time, event)
    risks = check_risk(risk, times.size)
    chosen = _check_tau(tau)
    lower, same, later = _partners(risks, times, events)
    used = events & (times < chosen) & (later > 0)
    _check_comparable(int(used.sum()), times, events, chosen)
    weights = np.zeros_like(times)
    weights[used] = censoring_weights_at(_censored_like(training, times, events), times[used]) ** 2
    return float(weights @ (lower + same / 2) / (weights @ later))


def time_dependent_auc(
    risk: Shaped[np.ndarray, "n"],
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    horizons: Shaped[np.ndarray, "h"] | Sequence[float],
    *,
    training: FollowUp | None = None,
) -> TimeDependentAUC:
    r"""Cumulative/dynamic AUC: those with the event by a time against those free of it after that time.

    .. math:: \mathrm{AUC}(t) = \frac{\sum_{ij} \delta_i\, \hat G(t_i)^{-1} [t_i \le t < t_j]
                                      \left([r_i > r_j] + \tfrac12 [r_i = r_j]\right)}
                                     {\sum_i \delta_i\, \hat G(t_i)^{-1} [t_i \le t]\; \sum_j [t_j > t]}

    Cases censored before the horizon have no known status there; the inverse probability of being uncensored lets the
    others stand for them.

    Args:
      risk, time, event: see `harrell_c`.
      horizons: times, increasing, in the unit of `time`.
      training: from which censoring is estimated; by default from the rows that are judged.

    Returns:
      `TimeDependentAUC`.

    Raises:
      ValueError: see `harrell_c`, `check_horizons` and `censoring_weights_at`.

    Example:
      >>> risk, time = np.array([4.0, 3.0, 2.0, 3.5]), np.array([1.0, 2.0, 3.0, 4.0])
      >>> time_dependent_auc(risk, time, np.array([1, 1, 1, 0]), [1, 2]).auc.tolist()
      [1.0, 0.75]

    References:
      Uno et al. 2007, doi:10.1198/016214507000000149; Hung & Chiang 2010; mean as in Lambert & Chevret 2016,
      doi:10.1177/0962280213515571, with the survival at the origin as 1.
    """
    times, events = check_follow_up(time, event)
    risks = check_risk(risk, times.size)
    chosen = check_horizons(horizons, times, events)
    cases = events & (times <= chosen[-1])
    weights = np.zeros_like(times)
    weights[cases] = censoring_weights_at(_censored_like(training, times, events), times[cases])
    order = np.argsort(risks, kind="stable")
    low, high = (np.searchsorted(risks[order], risks, side) for side in ("left", "right"))
    areas = np.zeros(chosen.size)
    for number, horizon in enumerate(chosen):
        free = np.append(0, np.cumsum((times > horizon)[order]))
        weight = np.where(times <= horizon, weights, 0.0)
        areas[number] = weight @ (free[low] + free[high]) / (2 * weight.sum() * free[-1])
    falls = -np.diff(np.append(1.0, event_survival(times, events, chosen)))
    return TimeDependentAUC(chosen, areas, float(areas @ falls / falls.sum()))


def brier_scores(
    survival_at: Shaped[np.ndarray, "n h"],
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    horizons: Shaped[np.ndarray, "h"] | Sequence[float],
    *,
    training: FollowUp | None = None,
) -> Float[np.ndarray, "h"]:
    r"""Brier score of predicted survival at horizons, weighted for censoring; lower is better.

    .. math:: \mathrm{BS}(t) = \frac1n \sum_i \frac{\delta_i [t_i \le t]}{\hat G(t_i)}\, \hat S_i(t)^2
                               + \frac{[t_i > t]}{\hat G(t)} \left(1 - \hat S_i(t)\right)^2

    Args:
      survival_at: predicted probability of being free of the event after each horizon, shape `(n, h)`.
      time, event: see `harrell_c`.
      horizons: times, increasing, shape `(h,)`.
      training: from which censoring is estimated; by default from the rows that are judged.

    Raises:
      ValueError: no probabilities (a risk has no scale), or probabilities that rise with time; see also
        `check_horizons` and `censoring_weights_at`.

    Example:
      >>> survival_at = np.array([[0.1], [0.8], [0.9]])
      >>> brier_scores(survival_at, np.array([1.0, 3.0, 4.0]), np.array([1, 1, 0]), [2]).round(4).tolist()
      [0.02]

    References:
      Graf et al. 1999, doi:10.1002/(SICI)1097-0258(19990915/30)18:17/18<2529::AID-SIM274>3.0.CO;2-5.
    """
    times, events = check_follow_up(time, event)
    chosen = check_horizons(horizons, times, events)
    predicted = _check_survival(survival_at, times.size, chosen)
    by_row, at_horizon = _graf_weights(times, events, chosen, training)
    had_it = times[:, None] <= chosen
    terms = np.where(had_it, by_row[:, None] * predicted**2, at_horizon * (1 - predicted) ** 2)
    return terms.mean(axis=0)


def integrated_brier_score(
    scores: Float[np.ndarray, "h"], horizons: Shaped[np.ndarray, "h"] | Sequence[float]
) -> float:
    r"""Mean of the Brier score over time, by the trapezoidal rule between the first and the last horizon.

    .. math:: \mathrm{IBS} = \frac{1}{t_h - t_1} \int_{t_1}^{t_h} \mathrm{BS}(t)\, dt

    Args:
      scores: `brier_scores(...)`, shape `(h,)`.
      horizons: their times, increasing; many and evenly spread ones make the rule exact.

    Raises:
      ValueError: fewer than two horizons, or another number of scores.

    Example:
      >>> integrated_brier_score(np.array([0.1, 0.3]), [1, 3])
      0.2
    """
    times = np.asarray(horizons, float)
    if times.size < 2 or times.shape != np.shape(scores):
        raise ValueError(
            f"{counted(np.size(scores), 'Brier score')} at {counted(times.size, 'horizon')}; expected as many, and at "
            "least two: an integral over time needs a start and an end."
        )
    return float(np.trapezoid(scores, times) / (times[-1] - times[0]))


def survival_metrics(
    risk: Shaped[np.ndarray, "n"],
    time: Shaped[np.ndarray, "n"],
    event: Shaped[np.ndarray, "n"],
    horizons: Shaped[np.ndarray, "h"] | Sequence[float],
    *,
    tau: float | None = None,
    survival_at: Shaped[np.ndarray, "n h"] | None = None,
    training: FollowUp | None = None,
) -> SurvivalMetrics:
    """Everything that is reported of one model, on the rows as they are.

    Args:
      risk, time, event: see `harrell_c`.
      horizons: times, increasing; `default_horizons` where the study named none.
      tau: truncation of Uno's C; by default the last horizon.
      survival_at: predicted survival at the horizons, shape `(n, h)`; without it there is no Brier score.
      training: from which censoring is estimated; by default from the rows that are judged.

    Returns:
      `SurvivalMetrics`.

    Raises:
      ValueError: see the single functions.

    Example:
      >>> time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 1, 0])
      >>> found = survival_metrics(np.array([4.0, 3.0, 2.0, 3.5]), time, event, [2, 3], tau=4)
      >>> found.events, round(found.harrell.c, 3), round(found.uno, 3), found.brier
      (3, 0.667, 0.667, None)
    """
    times, events = check_follow_up(time, event)
    chosen = check_horizons(horizons, times, events)
    limit = float(chosen[-1]) if tau is None else _check_tau(tau)
    brier = None if survival_at is None else brier_scores(survival_at, times, events, chosen, training=training)
    return SurvivalMetrics(
        n=times.size,
        events=int(events.sum()),
        harrell=harrell_c(risk, times, events),
        uno=uno_c(risk, times, events, tau=limit, training=training),
        tau=limit,
        auc=time_dependent_auc(risk, times, events, chosen, training=training),
        brier=brier,
        integrated_brier=None if brier is None or chosen.size < 2 else integrated_brier_score(brier, chosen),
        censoring="estimated from the rows that are judged"
        if training is None
        else f"estimated from {counted(len(training.time), 'training row')}",
    )


def _partners(risks, times, events):
    """Of each row with an event: partners with a lower risk, with the same risk, and all partners."""
    plan = pair_plan(risks, times, events)
    lower = np.bincount(plan.earlier, plan.low - plan.start, times.size)
    same = np.bincount(plan.earlier, plan.high - plan.low, times.size)
    ranks = time_ranks(times, events)
    later = times.size - np.searchsorted(np.sort(ranks), ranks, "right")
    return lower, same, np.where(events, later, 0)


def _censored_like(training: FollowUp | None, times, events) -> tuple[Float[np.ndarray, "u"], Bool[np.ndarray, "u"]]:
    return (times, events) if training is None else check_follow_up(*training, name="training ")


def _graf_weights(times, events, horizons, training: FollowUp | None):
    """Weight of each event up to the last horizon, (n,), and of everybody still free at each horizon, (h,)."""
    follow_up = _censored_like(training, times, events)
    by_row = np.zeros_like(times)
    cases = events & (times <= horizons[-1])
    by_row[cases] = censoring_weights_at(follow_up, times[cases])
    return by_row, censoring_weights_at(follow_up, horizons)


def _check_tau(tau: float) -> float:
    if not tau > 0:
        raise ValueError(f"tau is {tau}; expected a time after the origin, in the unit of `time`.")
    return float(tau)


def _check_comparable(pairs: int, times, events, tau: float = float("inf")) -> None:
    if pairs == 0:
        first = times[events].min()
        limit = f" before tau = {tau:g}" if np.isfinite(tau) else ""
        raise ValueError(
            f"no comparable pair among {counted(times.size, 'row')} with {counted(int(events.sum()), 'event')}: nobody "
            f"was followed for longer than a case with an event{limit} (first event at {first:g}, follow-up ends at "
            f"{times.max():g}). A concordance needs such pairs; add cases{' or raise tau' if limit else ''}."
        )


def _check_survival(survival_at, rows: int, horizons) -> Float[np.ndarray, "n h"]:
    predicted = np.asarray(survival_at, float)
    if predicted.shape != (rows, horizons.size):
        raise ValueError(
            f"survival_at has shape {predicted.shape}; expected the predicted probability of being free of the event "
            f"for {counted(rows, 'row')} at {counted(horizons.size, 'horizon')}, {(rows, horizons.size)}. A risk score "
            "has no scale, so a Brier score cannot be read off it: give survival probabilities, or leave it out."
        )
    wrong = np.flatnonzero(~((predicted >= 0) & (predicted <= 1)).all(axis=1))
    if wrong.size:
        raise ValueError(
            f"survival_at of {counted(wrong.size, 'row')} is no probability (row {listed(wrong)}: "
            f"{predicted[wrong[0]].tolist()}); expected values from 0 to 1. A risk score has no scale, so a Brier "
            "score cannot be read off it: give survival probabilities, or leave it out."
        )
    # Single precision of a model leaves rises of about 1e-7.
    wrong = np.flatnonzero((np.diff(predicted, axis=1) > 1e-6).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"survival_at of {counted(wrong.size, 'row')} rises from one horizon to the next (row {listed(wrong)}); "
            "expected the probability of being free of the event, which falls. If these are probabilities of the "
            "event, give 1 minus them."
        )
    return predicted
