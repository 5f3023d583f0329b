r"""What is known of every case in time: its follow-up, checked, and how likely it was to be still under observation.

Time counts from one origin in one unit, whichever the caller uses. An event at :math:`t` precedes a censoring at
:math:`t`: whoever left at :math:`t` was still at risk then.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from fusion_jax.wording import counted, listed

__all__ = [
    "FollowUp",
    "censoring_survival",
    "censoring_weights_at",
    "check_follow_up",
    "check_horizons",
    "check_risk",
    "default_horizons",
    "event_survival",
]


class FollowUp(NamedTuple):
    """Follow-up of some cases.

    Attributes:
      time: to the event or to the end of observation, shape `(n,)`.
      event: whether it was the event, shape `(n,)`.
    """

    time: Shaped[np.ndarray, "n"]
    event: Shaped[np.ndarray, "n"]


def check_follow_up(
    time: Shaped[np.ndarray, "n"], event: Shaped[np.ndarray, "n"], *, name: str = "", events_needed: bool = True
) -> tuple[Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Follow-up as float64 times and bool events.

    Args:
      time: shape `(n,)`.
      event: False and True, or 0 and 1, shape `(n,)`.
      name: put before `time` and `event` in messages, such as "training ".
      events_needed: whether follow-up without any event is an error.

    Raises:
      ValueError: no rows, shapes that differ, a time that is negative or not finite, an event that is neither 0 nor 1,
        or no event at all where one is needed.

    Example:
      >>> time, event = check_follow_up(np.array([3, 5]), np.array([1, 0]))
      >>> time.dtype.name, event.tolist()
      ('float64', [True, False])
    """
    times, events = _numbers(time, f"{name}time"), _numbers(event, f"{name}event")
    if times.ndim != 1 or times.shape != events.shape or not times.size:
        raise ValueError(
            f"{name}time and {name}event have shapes {times.shape} and {events.shape}; expected (rows,) twice, with at "
            "least one row."
        )
    wrong = np.flatnonzero(~(np.isfinite(times) & (times >= 0)))
    if wrong.size:
        raise ValueError(
            f"{name}time of {counted(wrong.size, 'row')} is negative or not finite (row {listed(wrong)}: "
            f"{listed(times[wrong])}); expected the time from the origin to the event or to the last contact. Leave "
            "out cases without follow-up, or correct their dates."
        )
    wrong = np.flatnonzero(~np.isin(events, (0, 1)))
    if wrong.size:
        raise ValueError(
            f"{name}event of {counted(wrong.size, 'row')} is neither 0 nor 1 (row {listed(wrong)}: "
            f"{listed(events[wrong])}); expected 1 for an event and 0 for a case that was censored. Map the codes of "
            "the status column first."
        )
    if events_needed and not events.any():
        raise ValueError(
            f"{name}event: all {counted(events.size, 'row')} are censored; survival is judged on events. Check which "
            "code of the status column means an event."
        )
    return times, events.astype(bool)


def check_risk(risk: Shaped[np.ndarray, "n"], rows: int) -> Float[np.ndarray, "n"]:
    """Risks as float64.

    Raises:
      ValueError: not one finite number a row.

    Example:
      >>> check_risk(np.array([1, 2]), 2).dtype.name
      'float64'
    """
    risks = _numbers(risk, "risk")
    if risks.shape != (rows,):
        raise ValueError(f"risk has shape {risks.shape}; expected one number for each of {counted(rows, 'row')}.")
    wrong = np.flatnonzero(~np.isfinite(risks))
    if wrong.size:
        raise ValueError(
            f"risk of {counted(wrong.size, 'row')} is not finite (row {listed(wrong)}); expected a number that is "
            "larger the earlier the event is expected. Leave these cases out of every model that is compared."
        )
    return risks


def check_horizons(
    horizons: Shaped[np.ndarray, "h"] | Sequence[float],
    time: Float[np.ndarray, "n"],
    event: Bool[np.ndarray, "n"],
) -> Float[np.ndarray, "h"]:
    """Horizons as float64: increasing, with an event at or before each and somebody still followed after each.

    Raises:
      ValueError: none, not increasing, before the first event, or at or after the end of follow-up.

    Example:
      >>> check_horizons([2], np.array([1.0, 3.0]), np.array([True, False])).tolist()
      [2.0]
    """
    chosen = _numbers(horizons, "horizons")
    if chosen.ndim != 1 or not chosen.size or not np.isfinite(chosen).all() or np.any(np.diff(chosen) <= 0):
        raise ValueError(f"horizons are {horizons}; expected at least one finite time, each later than the one before.")
    first, last, last_event = time[event].min(), time.max(), time[event].max()
    if chosen[0] < first:
        raise ValueError(
            f"horizon {chosen[0]:g} lies before the first event at {first:g}: nobody had the event by then. Choose "
            f"horizons from {first:g} on, in the unit of `time`."
        )
    if chosen[-1] >= last:
        raise ValueError(
            f"horizon {chosen[-1]:g} is not before the end of follow-up at {last:g} (last event at {last_event:g}): "
            f"nobody is known to be free of the event after it. Choose horizons below {last:g}, in the unit of `time`."
        )
    return chosen


def default_horizons(time: Shaped[np.ndarray, "n"], event: Shaped[np.ndarray, "n"]) -> Float[np.ndarray, "h"]:
    """Horizons where nobody named any: the quartiles of the event times, as far as they lie in the follow-up.

    They are read off the rows that are judged, so a report says so; a study names its horizons beforehand.

    Args:
      time: shape `(n,)`.
      event: shape `(n,)`.

    Returns:
      One to three times of events, increasing.

    Raises:
      ValueError: see `check_follow_up`; or all events at the end of follow-up.

    Example:
      >>> default_horizons(np.arange(1.0, 10.0), np.arange(1, 10) < 9).tolist()
      [2.0, 4.0, 6.0]
    """
    times, events = check_follow_up(time, event)
    quartiles = np.quantile(times[events], [0.25, 0.5, 0.75], method="inverted_cdf")
    chosen = np.unique(quartiles[quartiles < times.max()])
    if not chosen.size:
        raise ValueError(
            f"time: the quartiles of the event times lie at the end of follow-up, {times.max():g}; no horizon leaves "
            "anybody free of the event. Report the concordance alone."
        )
    return chosen


def event_survival(
    time: Float[np.ndarray, "n"], event: Bool[np.ndarray, "n"], at: Float[np.ndarray, "h"]
) -> Float[np.ndarray, "h"]:
    r"""Kaplan–Meier estimate of being free of the event after a time.

    .. math:: \hat S(t) = \prod_{t_i \le t} \left(1 - \frac{d_i}{n_i}\right)

    Args:
      time, event: checked follow-up, shape `(n,)`.
      at: times, shape `(h,)`.

    Example:
      >>> event_survival(np.array([1.0, 2.0, 3.0]), np.array([True, False, True]), np.array([0.5, 1.0])).tolist()
      [1.0, 0.666...]
    """
    return _product_limit(time, event, at, of_events=True)


def censoring_survival(
    time: Float[np.ndarray, "n"], event: Bool[np.ndarray, "n"], at: Float[np.ndarray, "h"]
) -> Float[np.ndarray, "h"]:
    r"""Kaplan–Meier estimate :math:`\hat G(t)` of being still under observation after a time.

    Those with an event at the time of a censoring are not at risk of being censored then.

    Args:
      time, event: checked follow-up, shape `(n,)`.
      at: times, shape `(h,)`.

    Example:
      >>> censoring_survival(np.array([1.0, 1.0, 3.0]), np.array([True, False, True]), np.array([1.0])).tolist()
      [0.5]
    """
    return _product_limit(time, event, at, of_events=False)


def censoring_weights_at(
    training: tuple[Float[np.ndarray, "u"], Bool[np.ndarray, "u"]], at: Float[np.ndarray, "h"]
) -> Float[np.ndarray, "h"]:
    r"""Inverse probability of being still under observation, :math:`1 / \hat G(t)`.

    Args:
      training: checked follow-up from which the censoring is estimated.
      at: times at which a weight is needed, shape `(h,)`.

    Raises:
      ValueError: a time after the end of that follow-up, or one at which nobody is left under observation.

    Example:
      >>> follow_up = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
      >>> censoring_weights_at(follow_up, np.array([1.0, 2.0])).tolist()
      [1.0, 2.0]
    """
    time, event = training
    if at.size and at.max() > time.max():
        raise ValueError(
            f"time {at.max():g} needs a censoring weight, but the follow-up that censoring is estimated from ends at "
            f"{time.max():g}. Choose tau and horizons within it, or estimate censoring from these rows."
        )
    observed = censoring_survival(time, event, at)
    if np.any(observed == 0):
        raise ValueError(
            f"the estimated probability of being still under observation is 0 at {at[observed == 0].min():g}, so a "
            "case there would weigh infinitely. Choose tau and horizons before it."
        )
    return 1 / observed


def _product_limit(time, event, at, *, of_events: bool):
    # One factor a row: within a tie, (n-1)/n · (n-2)/(n-1) telescopes to 1 - d/n.
    order = np.lexsort((~event, time))
    at_risk = np.arange(time.size, 0, -1)
    factors = np.where(event[order] == of_events, (at_risk - 1) / at_risk, 1.0)
    return np.append(1.0, np.cumprod(factors))[np.searchsorted(time[order], at, "right")]


def _numbers(values: Shaped[np.ndarray, "..."] | Sequence[float], name: str) -> Float[np.ndarray, "..."]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} holds values that are no numbers ({np.asarray(values).dtype}); expected numbers."
        ) from None
