"""Do two models differ? A permutation test that exchanges them patient by patient.

If the models are equally good, it does not matter which of them gave which result for a patient. Scores of different
models have different scales, so ranks within each model are exchanged and never scores; decisions and losses are
exchanged as they are. All rows of a patient are exchanged together.

Both models are merged into 2n items and sorted once. A permuted model is a choice of n of them, that is, weights 0 and
1, so that the weighted metrics of `fusion_jax.evaluation.ranked` apply and no permutation sorts anything.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int, Num

from fusion_jax.arrays import map_in_batches
from fusion_jax.evaluation.ranked import ClassificationData, FoldPairs, make_fold_pairs, make_ranked, stack_ranked
from fusion_jax.evaluation.resampling import Design, Statistic, batch_size

__all__ = ["PermutationTest", "merge_models", "permutation_test"]

ROUNDING = 1e-6
"""Differences of metrics that are closer than this are the same in single precision, and count as extreme."""


class PermutationTest(NamedTuple):
    """A two-sided permutation test of a paired difference; arrays where the statistic is an array.

    Attributes:
      difference: first model minus second, as they are.
      p_value: two-sided.
      p_error: Monte-Carlo standard error of the p-value, 0 where all permutations were enumerated.
      permutations: how many were looked at.
      exact: whether those were all there are.
      undefined: permutations in which the difference was NaN, and which were left out.
    """

    difference: Any
    p_value: Any
    p_error: Any
    permutations: int
    exact: bool
    undefined: Any


def merge_models(
    positive: Num[np.ndarray, "n"] | Bool[np.ndarray, "n"],
    first: Float[np.ndarray, "n"],
    second: Float[np.ndarray, "n"],
    *,
    fold: Int[np.ndarray, "n"] | None = None,
    sensitivities: Int[np.ndarray, "t 2"] | None = None,
    specificities: Int[np.ndarray, "t 2"] | None = None,
    decisions: Mapping[str, tuple[Any, Any]] = {},
    losses: Mapping[str, tuple[Any, Any]] = {},
) -> ClassificationData:
    """Two models of the same n rows as one of 2n items: the first model's, then the second's.

    Args:
      positive: 1 for a positive row, shape `(n,)`.
      first, second: scores, on any scale each.
      fold: code of the fold of each row, for the AUC within folds; ranks are then taken within folds as well.
      sensitivities, specificities: targets, `exact_ratio` each.
      decisions: name of a rule to the decisions of both models, 0 or 1, shape `(n,)` each.
      losses: name to the loss of every row under both models.

    Returns:
      Data for `permutation_test(classification_statistics, ...)`.

    Raises:
      ValueError: a score is NaN, or a label neither 0 nor 1.

    Example:
      >>> merged = merge_models(np.array([0, 1]), np.array([0.1, 0.2]), np.array([70.0, 30.0]))
      >>> merged.ranked.positives.tolist(), merged.positive.tolist()
      ([[3, 1]], [0, 1, 0, 1])
    """
    both = np.concatenate([positive, positive])
    ranked = make_ranked(both, np.concatenate([_ranks(first, positive), _ranks(second, positive)]))
    pairs = None
    if fold is not None:
        within = [np.empty(len(first)), np.empty(len(first))]
        for one in np.unique(fold):
            rows = fold == one
            for ranks, scores in zip(within, (first, second), strict=True):
                ranks[rows] = _ranks(scores[rows], positive[rows])
        flat = make_fold_pairs(both, np.concatenate(within), np.concatenate([fold, fold]))
        pairs = FoldPairs(*(part[None] for part in flat))
    return ClassificationData(
        ranked=stack_ranked([ranked], rows=len(both)),
        positive=both,
        pairs=pairs,
        sensitivities=sensitivities,
        specificities=specificities,
        decisions={name: np.concatenate(models)[None] for name, models in decisions.items()},
        losses={name: np.concatenate(models)[None] for name, models in losses.items()},
    )


def _ranks(scores: Float[np.ndarray, "n"], positive: Num[np.ndarray, "n"] | Bool[np.ndarray, "n"]) -> np.ndarray:
    from scipy.stats import rankdata

    unknown = np.isnan(scores)
    if unknown.any():
        raise ValueError(f"scores: NaN in row {np.flatnonzero(unknown)[0]}; expected a number in every row.")
    if scores.shape != positive.shape:
        raise ValueError(f"{len(positive)} labels and {len(scores)} scores; expected the same rows for both models.")
    return rankdata(scores)


NOBODY = -1
"""Number of the permutation that exchanges nobody."""


@partial(jax.jit, static_argnames=("statistic", "exact", "batch"))
def _differences(
    statistic: Statistic,
    data: Any,
    cluster: Array,
    patients: Array,
    key: Array,
    numbers: Array,
    *,
    exact: bool,
    batch: int,
) -> Any:
    def difference(number: Array) -> Any:
        if exact:
            swapped = (number >> patients) & 1
        else:
            words = jax.random.key_data(jax.random.fold_in(key, number))
            swapped = (threefry_2x32(words, patients.astype(words.dtype)) >> 31).astype(patients.dtype)
        exchanged = jnp.where(number == NOBODY, 0, swapped)[cluster]
        one = statistic(data, jnp.concatenate([1 - exchanged, exchanged]))
        other = statistic(data, jnp.concatenate([exchanged, 1 - exchanged]))
        return jax.tree.map(jnp.subtract, one, other)

    return map_in_batches(difference, numbers, batch)


def permutation_test(statistic: Statistic, data: Any, design: Design, *, resamples: int = 5000, seed: int = 0) -> Any:
    r"""Two-sided permutation test of the difference between two merged models.

    .. math:: p = \frac{1 + \#\{|T^*| \ge |T|\}}{1 + r}

    over r random exchanges, or the plain fraction over all of the :math:`2^u` where these are no more than r.

    Args:
      statistic: `statistic(data, weights) -> pytree`, a pure function of module level such as
        `classification_statistics`; with weights 0 and 1 over the 2n items of `data`.
      data: the models, from `merge_models`.
      design: patients of the n rows; strata do not matter, as everybody is in every permutation.
      resamples: r.
      seed: of the exchanges.

    Returns:
      The pytree of the statistic with a `PermutationTest` for each array.

    Raises:
      ValueError: fewer than one permutation.

    Example:
      >>> from fusion_jax.evaluation.ranked import classification_statistics
      >>> from fusion_jax.evaluation.resampling import make_design
      >>> label = np.array([0, 0, 0, 1, 1, 1])
      >>> merged = merge_models(label, np.array([1.0, 2, 3, 4, 5, 6]), np.array([6.0, 5, 4, 3, 2, 1]))
      >>> test = permutation_test(classification_statistics, merged, make_design(label)).auc
      >>> float(test.difference[0]), float(test.p_value[0]), test.permutations
      (1.0, 0.03125, 64)

    References:
      Bandos, Rockette & Gur 2005, "A permutation test sensitive to differences in areas for comparing ROC curves from a
      paired design"; Phipson & Smyth 2010 (the 1 in numerator and denominator).
    """
    if resamples < 1:
        raise ValueError(f"resamples: {resamples}; expected at least 1, and some thousands for a p-value.")
    u = len(design.stratum)
    exact = u < 31 and 2**u <= resamples
    permutations = 2**u if exact else resamples
    numbers = np.concatenate([[NOBODY], np.arange(permutations)]).astype(np.int32)
    batch = batch_size(data, len(design.cluster))
    patients, key = np.arange(u, dtype=np.int32), jax.random.key(seed)
    found = _differences(statistic, data, design.cluster, patients, key, numbers, exact=exact, batch=batch)
    return jax.tree.map(partial(_judge, exact=exact), found)


def _judge(differences: Any, *, exact: bool) -> PermutationTest:
    found, draws = np.split(np.asarray(differences, float), [1])
    found = found[0]
    known = ~np.isnan(draws)
    count = known.sum(axis=0)
    extreme = (np.abs(np.where(known, draws, -np.inf)) >= np.abs(found) - ROUNDING) & known
    hits = extreme.sum(axis=0)
    p_value = hits / np.maximum(count, 1) if exact else (1 + hits) / (1 + count)
    p_value = np.where(np.isnan(found) | (count == 0), np.nan, p_value)
    p_error = np.zeros_like(p_value) if exact else np.sqrt(p_value * (1 - p_value) / np.maximum(count, 1))
    undefined = len(draws) - count
    return PermutationTest(found[()], p_value[()], p_error[()], len(draws), exact, undefined[()])
