"""Did fusion help? Only a model that beats every single source has shown that it did."""

import math
from typing import NamedTuple

import numpy as np

from fusion_jax.evaluation.comparisons import (
    BOOTSTRAP,
    CLUSTERED_DELONG,
    DELONG,
    PERMUTATION,
    Comparison,
)
from fusion_jax.evaluation.delong import smallest_detectable_difference
from fusion_jax.evaluation.estimates import MetricKey, larger_is_better
from fusion_jax.evaluation.paired import holm
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.wording import listed

__all__ = ["Benefit", "fusion_benefit"]


class Benefit(NamedTuple):
    """What the predictions say about one fused model.

    Attributes:
      model: the fused one.
      hardest: the single source against which the evidence is weakest.
      gain, low, high: how much better the model is than that source, in the primary metric, larger being better, and
        the interval, of the bootstrap where the test has none; NaN ends where there is none at all.
      p_value: the largest over the single sources of the two-sided p-values; 1 where the model is not better than
        one, NaN where the test of one has none.
      p_holm: adjusted over the fused models.
      test: by which it was tested.
      helped: whether `p_holm` is below 1 - level.
      excludes_margin: whether the interval excludes a gain of the margin that was given; None without one.
      smallest_detectable: the difference that a study with these patients and events would find with 80 % power.
      singles: all single sources it was compared with.
    """

    model: str
    hardest: str
    gain: float
    low: float
    high: float
    p_value: float
    p_holm: float
    test: str
    helped: bool
    excludes_margin: bool | None
    smallest_detectable: float
    singles: tuple[str, ...]


TESTS = {"bootstrap": (BOOTSTRAP,), "delong": (DELONG, CLUSTERED_DELONG), "permutation": (PERMUTATION,)}


def fusion_benefit(
    models: tuple[str, ...], comparisons: tuple[Comparison, ...], protocol: Protocol
) -> tuple[Benefit, ...]:
    r"""Whether each fused model beats every single source on the same rows.

    The claim "better than all single sources" is tested by the largest of its p-values (intersection-union test), so
    the search for the best single source costs nothing; the number of fused models that were tried is paid for by
    Holm's adjustment.

    Args:
      models: of the table.
      comparisons: of all pairs of them, from `compare_pairs`.
      protocol: single sources, primary metric, test and margin.

    Returns:
      One verdict for each model that is no single source; none where no single source was named.

    Raises:
      ValueError: a single source that is no model of the table, or every model is one; a source that was not compared.

    References:
      Berger 1982, Technometrics 24: 295-300 (intersection-union); Holm 1979.
    """
    if not protocol.singles:
        return ()
    unknown = [model for model in protocol.singles if model not in models]
    if unknown:
        raise ValueError(f"single source {unknown[0]!r} is no model of the table; it has {listed(models, 8)}.")
    fused = [model for model in models if model not in protocol.singles]
    if not fused:
        raise ValueError("every model was named as a single source, so none is fused; name only those of one source.")
    found = [_against(model, comparisons, protocol) for model in fused]
    p_values = np.array([one.p_value for one in found])
    untested = np.isnan(p_values)
    # A model that could not be tested was tried all the same.
    adjusted = np.where(untested, np.nan, holm(np.where(untested, 1.0, p_values)))
    return tuple(
        one._replace(p_holm=float(p), helped=bool(p < 1 - protocol.level))
        for one, p in zip(found, adjusted, strict=True)
    )


def _against(model: str, comparisons: tuple[Comparison, ...], protocol: Protocol) -> Benefit:
    sign = 1.0 if larger_is_better(protocol.primary) else -1.0
    key, tests = MetricKey(protocol.primary), TESTS[protocol.test]
    weakest: Benefit | None = None
    compared: set[str] = set()
    for row in comparisons:
        if row.key != key or row.test not in tests or {row.first, row.second} & {model} == set():
            continue
        single = row.second if row.first == model else row.first
        if single not in protocol.singles:
            continue
        compared.add(single)
        turned = sign if row.first == model else -sign
        gain = turned * row.difference
        # The exchange of ranks has no interval of its own.
        measured = row if not math.isnan(row.sd) else _bootstrap_row(row, comparisons)
        ends = sorted((turned * measured.low, turned * measured.high))
        p_value = row.p_value if gain > 0 else 1.0
        excludes = None
        if protocol.margin is not None and not math.isnan(ends[1]):
            excludes = bool(ends[1] < protocol.margin)
        candidate = Benefit(
            model=model,
            hardest=single,
            gain=gain,
            low=ends[0],
            high=ends[1],
            p_value=p_value,
            p_holm=math.nan,
            test=row.test,
            helped=False,
            excludes_margin=excludes,
            smallest_detectable=float(smallest_detectable_difference(measured.sd, level=1 - protocol.level)),
            singles=protocol.singles,
        )
        # Of several sources that the model does not beat, the one that beats it most is shown.
        if weakest is None or _evidence(candidate) > _evidence(weakest):
            weakest = candidate
    missing = [single for single in protocol.singles if single not in compared]
    if weakest is None or missing:
        raise ValueError(
            f"{model}: no comparison of {protocol.primary} with a single source ({listed(missing)}) by the test "
            f"{protocol.test!r}, so nothing is known of every source. Losses need probabilities from every model; "
            "DeLong's test and the exchange of ranks need two classes. Choose another --primary or --test."
        )
    return weakest


def _evidence(one: Benefit) -> tuple[float, float]:
    """Larger where there is less evidence; none where there is no p-value."""
    return (1.0 if math.isnan(one.p_value) else one.p_value, -one.gain)


def _bootstrap_row(row: Comparison, comparisons: tuple[Comparison, ...]) -> Comparison:
    """The same difference by the bootstrap, which has an interval and a standard error."""
    for other in comparisons:
        if (other.key, other.first, other.second, other.test) == (row.key, row.first, row.second, BOOTSTRAP):
            return other
    return row
