"""The Cox objective: log risks ranked by who had the event first among those still at risk."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fusion_jax.arrays import Array, ArrayLike, Batch, Bool, Float, Num, Outputs
from fusion_jax.training.state import Objective

__all__ = ["cox", "cox_partial_likelihood"]

Ties = Literal["efron", "breslow"]


def cox_partial_likelihood(
    log_risk: Float[ArrayLike, "b"],
    time: Num[ArrayLike, "b"],
    event: Bool[ArrayLike, "b"],
    valid: Bool[ArrayLike, "b"] | None = None,
    *,
    ties: Ties = "efron",
) -> Float[Array, ""]:
    r"""Logarithm of Cox's partial likelihood of a batch.

    .. math:: \log L = \sum_t \Bigl[\sum_{i \in D_t} r_i
              - \sum_{l=0}^{d_t - 1} \log\Bigl(\sum_{j: t_j \ge t} e^{r_j} - \frac{l}{d_t}\sum_{i \in D_t} e^{r_i}
              \Bigr)\Bigr]

    over the event times :math:`t` with the :math:`d_t` cases :math:`D_t` that had the event then; Breslow's
    approximation leaves the term with :math:`l` out. A case that leaves at the time of an event was still at risk.
    Costs a sort, and is computed in logarithms throughout.

    Args:
      log_risk: :math:`r`, shape `(b,)`.
      time: of the event or of the last follow-up, any unit, shape `(b,)`.
      event: whether it was the event, shape `(b,)`.
      valid: which rows are cases; all unless given.
      ties: what several events at one time mean: "efron" or "breslow".

    Returns:
      The log likelihood, shape `()`; 0 without an event.

    Raises:
      ValueError: an unknown `ties`.

    Example:
      >>> risk = jnp.zeros(3)
      >>> round(float(cox_partial_likelihood(risk, jnp.array([1.0, 2.0, 3.0]), jnp.array([True, True, False]))), 4)
      -1.7918

    References:
      Cox 1972; Efron 1977, Eq. 6.1; Breslow 1974.
    """
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties is {ties!r}; expected 'efron' or 'breslow'.")
    log_risk = jnp.asarray(log_risk)
    rows = jnp.ones(log_risk.shape, bool) if valid is None else jnp.asarray(valid)
    event = jnp.asarray(event) & rows
    # Latest first: everybody up to the last row of a time is at risk then, and padding, put last, is never.
    late = jnp.where(rows, -jnp.asarray(time).astype(log_risk.dtype), jnp.inf)
    order = jnp.argsort(late)
    late, event, counted = late[order], event[order], rows[order]
    risk = jnp.where(counted, log_risk[order], 0.0)
    last = jnp.searchsorted(late, late, side="right") - 1
    first = jnp.searchsorted(late, late, side="left")
    at_risk = jax.lax.cumlogsumexp(risk)[last]
    if ties == "efron":
        seen = jnp.cumsum(event)
        before = jnp.where(first > 0, seen[jnp.maximum(first - 1, 0)], 0)
        deaths = jnp.maximum(seen[last] - before, 1).astype(risk.dtype)
        rank = (seen - before - 1).astype(risk.dtype)
        dying = _group_logsumexp(risk, event, first)
        # At most (d - 1) / d of the risk is taken away, so the logarithm stays finite.
        share = jnp.where(event, rank / deaths, 0.0) * jnp.exp(jnp.where(event, dying - at_risk, 0.0))
        at_risk = at_risk + jnp.log1p(-share)
    return jnp.sum(jnp.where(event, risk - at_risk, 0.0))


def cox(*, ties: Ties = "efron") -> Objective:
    r"""Negative Cox partial log likelihood of the batch, divided by its number of events.

    The risk sets are those of the batch, so small batches rank fewer pairs: take all cases as one batch where memory
    allows, and batches of a few dozen with several events in each elsewhere. A batch without an event is worth 0. The
    last layer's bias cancels.

    Args:
      ties: see `cox_partial_likelihood`.

    Returns:
      The objective, for logits `(b, 1)`, the log risks, and the targets `time` and `event`.

    Raises:
      ValueError: an unknown `ties`; at the first batch, logits of several columns, or no time or event.

    Example:
      >>> target = {"time": jnp.array([1.0, 2.0]), "event": jnp.array([True, False])}
      >>> batch = Batch({}, target, jnp.ones(2, bool), {}, jnp.arange(2))
      >>> round(float(cox().loss({}, Outputs(jnp.zeros((2, 1)), {}, {}), batch)[0]), 4)
      0.6931

    References:
      Cox 1972; Katzman et al. 2018, Eq. 4 (divided by the events).
    """
    if ties not in ("efron", "breslow"):
        raise ValueError(f"ties is {ties!r}; expected 'efron' or 'breslow'.")

    def loss(parameters: Any, outputs: Outputs, batch: Batch) -> tuple[Array, dict[str, Array]]:
        if outputs.logits.shape[-1] != 1:
            raise ValueError(f"cox: logits have shape {outputs.logits.shape}; expected (b, 1), a model with classes=1.")
        lacking = [name for name in ("time", "event") if name not in batch.target]
        if lacking:
            raise ValueError(
                f"cox: the batch has no {' and no '.join(lacking)}; expected both. Name the columns under time and "
                "event of the cohort."
            )
        event, valid = jnp.asarray(batch.target["event"]).astype(bool), jnp.asarray(batch.valid)
        log_likelihood = cox_partial_likelihood(outputs.logits[:, 0], batch.target["time"], event, valid, ties=ties)
        events = jnp.maximum(jnp.sum(event & valid), 1).astype(log_likelihood.dtype)
        return -log_likelihood / events, {}

    return Objective(dict, loss)


def _group_logsumexp(values: Array, mask: Array, group: Array) -> Array:
    """Logarithm of the sum of exponentials over the marked rows of a row's group; the peak where none is marked."""
    size = values.shape[0]
    floor = jnp.finfo(values.dtype).min
    peak = jax.lax.stop_gradient(jax.ops.segment_max(jnp.where(mask, values, floor), group, num_segments=size))
    peak = jnp.where(peak > floor, peak, 0.0)[group]
    # Masked before and after: an infinity that is left out still turns a gradient into NaN.
    parts = jnp.where(mask, jnp.exp(jnp.where(mask, values - peak, 0.0)), 0.0)
    total = jax.ops.segment_sum(parts, group, num_segments=size)[group]
    return peak + jnp.log(jnp.where(total > 0, total, 1.0))
