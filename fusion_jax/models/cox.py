"""Penalised Cox regression for small tables: Newton steps on the Efron likelihood, in double precision."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["PartialLikelihood", "fit_cox", "partial_likelihood"]

MOST_STEPS = 100
TOLERANCE = 1e-9

ROUNDING = 1e-12
"""By which an objective may seem to rise: near the minimum a full step changes it by less than double precision holds,
and halved steps would creep."""


class PartialLikelihood(NamedTuple):
    """Logarithm of the partial likelihood with its derivatives.

    Attributes:
      value: shape `()`.
      gradient: shape `(t,)`.
      information: the negative second derivative, shape `(t, t)`.
    """

    value: float
    gradient: Float[np.ndarray, "t"]
    information: Float[np.ndarray, "t t"]


def partial_likelihood(
    coefficients: Float[np.ndarray, "t"],
    values: Float[np.ndarray, "n t"],
    time: Float[np.ndarray, "n"],
    event: Bool[np.ndarray, "n"],
) -> PartialLikelihood:
    r"""Efron's partial likelihood of a Cox model.

    .. math:: \ell(\beta) = \sum_j \Big[ \sum_{i \in D_j} \beta^\top x_i - \sum_{l=0}^{m_j-1}
              \log\Big(\sum_{i \in R_j} e^{\beta^\top x_i}
              - \tfrac{l}{m_j} \sum_{i \in D_j} e^{\beta^\top x_i}\Big)\Big]

    with :math:`D_j` the :math:`m_j` cases that have the event at the j-th time and :math:`R_j` those still at risk.

    Args:
      coefficients: :math:`\beta`, shape `(t,)`.
      values: covariates, shape `(n, t)`.
      time, event: follow-up, shape `(n,)`.

    Returns:
      Value, gradient and information.

    Example:
      >>> x, time, event = np.array([[1.0], [0.0]]), np.array([1.0, 2.0]), np.array([True, True])
      >>> round(partial_likelihood(np.zeros(1), x, time, event).value, 4)
      -0.6931

    References:
      Efron 1977, J. Am. Stat. Assoc. 72: 557-565.
    """
    order = np.argsort(-time, kind="stable")
    x, when, died = values[order], time[order], event[order]
    score = x @ coefficients
    shift = score.max(initial=0.0)
    weight = np.exp(score - shift)
    size = x.shape[1]
    value, gradient, information = 0.0, np.zeros(size), np.zeros((size, size))
    mass, first, second = 0.0, np.zeros(size), np.zeros((size, size))
    start = 0
    while start < len(when):
        stop = start + int(np.searchsorted(-when[start:], -when[start], side="right"))
        block = slice(start, stop)
        mass += weight[block].sum()
        first += weight[block] @ x[block]
        second += (x[block] * weight[block, None]).T @ x[block]
        dying = np.arange(start, stop)[died[block]]
        if len(dying):
            own = weight[dying]
            own_first, own_second = own @ x[dying], (x[dying] * own[:, None]).T @ x[dying]
            value += score[dying].sum()
            gradient += x[dying].sum(axis=0)
            for tied in range(len(dying)):
                part = tied / len(dying)
                total = mass - part * own.sum()
                mean = (first - part * own_first) / total
                value -= np.log(total) + shift
                gradient -= mean
                information += (second - part * own_second) / total - np.outer(mean, mean)
        start = stop
    return PartialLikelihood(float(value), gradient, information)


def fit_cox(
    values: Float[np.ndarray, "n t"],
    time: Float[np.ndarray, "n"],
    event: Bool[np.ndarray, "n"],
    *,
    penalty: float,
) -> Float[np.ndarray, "t"]:
    r"""Coefficients of a Cox model with a ridge penalty.

    .. math:: \hat\beta = \arg\min_\beta \; -\ell(\beta) / n + \tfrac{\alpha}{2} \lVert\beta\rVert^2

    Newton steps, halved until the objective falls; unique for a positive penalty.

    Args:
      values: standardised covariates, shape `(n, t)`.
      time, event: follow-up, shape `(n,)`.
      penalty: :math:`\alpha`.

    Raises:
      ValueError: no event, a penalty that is not positive, or no convergence.

    Example:
      >>> x = np.array([[1.0], [0.5], [-0.5], [-1.0]])
      >>> bool(fit_cox(x, np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4, bool), penalty=0.1)[0] > 0)
      True
    """
    if not event.any():
        raise ValueError("no training case has the event; expected at least one to fit a Cox model to.")
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty!r}; expected a positive number, without which a fit may not exist.")
    cases = len(time)

    def objective(beta: np.ndarray, likelihood: PartialLikelihood) -> float:
        return -likelihood.value / cases + penalty / 2 * float(beta @ beta)

    beta = np.zeros(values.shape[1])
    now = partial_likelihood(beta, values, time, event)
    for _ in range(MOST_STEPS):
        slope = -now.gradient / cases + penalty * beta
        if np.abs(slope).max(initial=0.0) < TOLERANCE:
            return beta
        step = np.linalg.solve(now.information / cases + penalty * np.eye(len(beta)), slope)
        before, size = objective(beta, now), 1.0
        while True:
            moved = beta - size * step
            found = partial_likelihood(moved, values, time, event)
            # Near the optimum a whole step gains less than rounding takes; halving it would never arrive.
            if objective(moved, found) <= before + ROUNDING * max(1.0, abs(before)) or size < TOLERANCE:
                break
            size /= 2
        if size < TOLERANCE:
            return beta  # rounding: no step lowers the objective any more
        beta, now = moved, found
    raise ValueError(f"no convergence of the Cox model in {MOST_STEPS} steps; look for covariates that are not finite.")
