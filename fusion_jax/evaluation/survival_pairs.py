r"""Which pairs of cases a concordance counts, laid out once so that every resample is gathers and one running sum.

Case `i` had the event, case `j` was known to be free of it for longer. Give every case the rank of its time. The ranks
of such a pair first differ in one binary digit: 0 in `i`, 1 in `j`. So the pairs split into disjoint groups, one for
each digit and common prefix, and inside a group time no longer matters: sort by risk once, and the weight of all `j`
with a lower risk is a difference of two running sums. That is :math:`O(n \log n)` for any weights, without sorting
again.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["PairPlan", "pair_plan", "time_ranks"]


class PairPlan(NamedTuple):
    """Layout of the comparable pairs of one model.

    The running sum is that of `weights[later]` with a zero before it; for entry `q`, the weight of the partners with a
    lower risk is `sum[low[q]] - sum[start[q]]`, and of those with the same risk `sum[high[q]] - sum[low[q]]`.

    Attributes:
      earlier: rows with an event, once for each group they belong to, shape `(q,)`.
      later: rows that come later, group by group and by risk within a group, shape `(p,)`.
      start, low, high: positions in the running sum, shape `(q,)`.
    """

    earlier: Int[np.ndarray, "q"]
    later: Int[np.ndarray, "p"]
    start: Int[np.ndarray, "q"]
    low: Int[np.ndarray, "q"]
    high: Int[np.ndarray, "q"]


def time_ranks(time: Float[np.ndarray, "n"], event: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Rank of every time from 0; events of one time share a rank, and cases censored then have the next one.

    Example:
      >>> time_ranks(np.array([2.0, 1.0, 2.0, 2.0]), np.array([False, True, True, True])).tolist()
      [2, 0, 1, 1]
    """
    distinct = np.unique(time, return_inverse=True)[1]
    return np.unique(2 * distinct + ~event, return_inverse=True)[1]


def pair_plan(risk: Float[np.ndarray, "n"], time: Float[np.ndarray, "n"], event: Bool[np.ndarray, "n"]) -> PairPlan:
    """Layout of the pairs of an event and a case that was free of it for longer.

    Two events at the same time are no pair; an event and a censoring at the same time are one. Its arrays hold about
    `n log2(n) / 2` rows. `earlier` and `start` do not depend on the risk, nor do any of the shapes.

    Args:
      risk, time, event: checked, shape `(n,)`.

    Example:
      >>> plan = pair_plan(np.array([2.0, 1.0]), np.array([1.0, 2.0]), np.array([True, False]))
      >>> plan.earlier.tolist(), plan.later.tolist(), (plan.low - plan.start).tolist()
      ([0], [1], [1])
    """
    ranks = time_ranks(time, event)
    risks = np.unique(risk, return_inverse=True)[1]
    distinct = int(risks.max()) + 1
    parts: list[list[np.ndarray]] = [[], [], [], [], []]
    offset = 0
    for digit in range(int(ranks.max()).bit_length()):
        is_later = (ranks >> digit) & 1 == 1
        group = (ranks >> (digit + 1)) * distinct
        later = np.flatnonzero(is_later)
        keys = group[later] + risks[later]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        earlier = np.flatnonzero(~is_later & event)
        own = group[earlier]
        parts[0].append(earlier)
        parts[1].append(later[order])
        parts[2].append(offset + np.searchsorted(keys, own))
        parts[3].append(offset + np.searchsorted(keys, own + risks[earlier]))
        parts[4].append(offset + np.searchsorted(keys, own + risks[earlier], "right"))
        offset += later.size
    return PairPlan(*(np.concatenate(part or [np.zeros(0)]).astype(np.int32) for part in parts))
