r"""Which columns does a trained model use? Permutation importance of columns, groups of columns and whole sources.

Importance is of a column *to a model*, not to the disease: a column that another one can replace has little of it, and
correlated columns share theirs (`related_columns` names them, `merge_related` permutes them together).
How `apply` is called, and how an image encoder is run only once, stands in `fusion_jax.evaluation.shuffling`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from fusion_jax.arrays import ArrayLike, Sources
from fusion_jax.evaluation.ranked import Ranked, make_ranked, weighted_auc
from fusion_jax.evaluation.resampling import Interval, bootstrap, make_design, percentile_interval
from fusion_jax.evaluation.rows import Patients
from fusion_jax.evaluation.shuffling import (
    Apply,
    Exchange,
    Metric,
    agree_in_patients,
    auc,
    checked_inputs,
    generator,
    row_exchange,
    shuffled_scores,
    source_names,
)
from fusion_jax.wording import counted, listed

__all__ = [
    "Groups",
    "Importance",
    "RankProduct",
    "Relation",
    "importance_ranks",
    "merge_related",
    "permutation_importance",
    "rank_product",
    "related_columns",
]

logger = logging.getLogger(__name__)

Groups = Mapping[str, Sequence[int]]
"""Name of a feature to its columns: one, or the dummies of its levels."""


class Relation(NamedTuple):
    """Two features that say much the same.

    Attributes:
      first, second: names, in the order of the groups.
      association: 0 to 1; see `related_columns`.
    """

    first: str
    second: str
    association: float


class Importance(NamedTuple):
    """Permutation importance of t features.

    Attributes:
      names: of the features, shape `(t,)`.
      median: of each feature's draws, in percent of the baseline or in units of the metric, shape `(t,)`.
      median_error: Monte-Carlo standard error of the median; more repeats make it smaller, shape `(t,)`.
      rank: 1 for the largest absolute median; ties share the mean rank, shape `(t,)`.
      draws: importance in every permutation, shape `(t, r)`.
      interval: of the medians with other test patients, each end of shape `(t,)`; None unless asked for.
      baseline: metric of the data.
      fixed: patients whose values nobody could exchange, per feature, shape `(t,)`.
      related: pairs of features that share their importance.
      unit: of `median` and `draws`.
    """

    names: tuple[str, ...]
    median: Float[np.ndarray, "t"]
    median_error: Float[np.ndarray, "t"]
    rank: Float[np.ndarray, "t"]
    draws: Float[np.ndarray, "t r"]
    interval: Interval | None
    baseline: float
    fixed: tuple[int, ...]
    related: tuple[Relation, ...]
    unit: Literal["percent", "difference"]


class RankProduct(NamedTuple):
    """Features in the order of several models' agreement.

    Attributes:
      rank: of every feature in every model, shape `(m, t)`.
      mean: geometric mean of a feature's ranks, shape `(t,)`.
      order: indices of the features from most to least important, shape `(t,)`.
    """

    rank: Float[np.ndarray, "m t"]
    mean: Float[np.ndarray, "t"]
    order: Shaped[np.ndarray, "t"]


def permutation_importance(
    apply: Apply,
    inputs: Sources,
    labels: Shaped[ArrayLike, "n ..."],
    *,
    source: str = "clinical",
    groups: Groups | None = None,
    whole: Sequence[str] = (),
    metric: Metric | None = None,
    unit: Literal["percent", "difference"] = "percent",
    repeats: int = 30,
    seed: int = 0,
    patients: Patients | None = None,
    batched: bool = False,
    legacy: bool = False,
    threshold: float = 0.7,
    resamples: int = 0,
) -> Importance:
    r"""Loss of a trained model when one feature at a time is exchanged between patients.

    .. math:: I_j = 100 \cdot \frac{M_0 - M_j}{M_0} \quad \text{or} \quad M_0 - M_j

    A feature's columns move together, as rows of their block: dummies of one feature stay a level that exists, and the
    dropped reference level (all zeros) stays as frequent as it is. Medians may be negative for a feature of no use.

    The optional interval is a bootstrap of the test patients with the trained model and the permutations held fixed. It
    leaves out how the model would differ with other training patients. Donors of values are not drawn again, which
    matters little: of 300 simulated cohorts of 200 patients, its 95 % interval held the true importance in 93 %.

    Args:
      apply: inputs by source to scores `(n,)` or `(n, k)`; see `fusion_jax.evaluation.shuffling`.
      inputs: source to array, first axis the n cases; `inputs[source]` has shape `(n, t)`.
      labels: class of each case, shape `(n,)`, or what `metric` takes.
      source: whose columns are permuted.
      groups: name to column indices of `source`; the others are left alone. By default every column by itself, named
        "column 0" and so on.
      whole: sources that are permuted as a whole, beside the columns.
      metric: `metric(labels, scores)`, more is better; by default the AUC (macro one-vs-rest for scores `(n, k)`).
      unit: "percent" of the metric of the data, or "difference".
      repeats: permutations r of each feature.
      seed: of the permutations, drawn by the feature's name: models that are compared share them.
      patients: patient of each case; patients exchange their rows as blocks. By default every case is one.
      batched: whether `apply` takes stacked cases, in which case many permutations go into one call.
      legacy: the reading of Holste 2021's code for groups of several columns: the first largest column is taken as the
        level, which merges the reference level with the first kept one; levels are permuted and written as dummies, so
        that the reference level disappears. For comparison with published figures only.
      threshold: association from which two features are reported as sharing their importance.
      resamples: of the patients, for an interval of the medians; 0 for none. Needs the default metric and scores
        `(n,)`; costs `resamples * (repeats + 1)` AUCs a feature.

    Returns:
      `Importance`.

    Raises:
      ValueError: a source, column or class that is not there, a metric that has no percentage, dummies that are not 0
        and 1 in legacy mode, scores that are not finite or differ between calls, or nothing to exchange.

    Example:
      >>> labels = np.arange(60) % 2
      >>> columns = np.stack([labels, np.sin(np.arange(60.0))], axis=1)
      >>> found = permutation_importance(lambda inputs: inputs["clinical"][:, 0], {"clinical": columns}, labels,
      ...                                groups={"copy": [0], "unused": [1]})
      >>> found.rank.tolist(), bool(abs(found.median[0] - 50) < 5), float(found.median[1])
      ([1.0, 2.0], True, 0.0)

    References:
      Breiman 2001, section 10; Holste et al. 2021; specs/breast_mri_fusion.md, section 6 and reading B1.
    """
    arrays, answers = checked_inputs(inputs, labels)
    features = _features(arrays, source, groups, whole)
    _check_options(unit, repeats, resamples, metric)
    changes = [
        _Change(name, where, columns, _exchange(arrays[where], columns, patients), legacy and len(columns or ()) > 1)
        for name, (where, columns) in features.items()
    ]
    for change in changes:
        if change.as_levels:
            _check_dummies(change.name, arrays[change.source], change.columns)
    unchanged, scores = shuffled_scores(
        apply, arrays, _all_changes(arrays, changes, repeats, seed), len(changes) * repeats, batched=batched
    )
    if resamples and unchanged.ndim != 1:
        raise ValueError(f"resamples: {resamples}, with scores {unchanged.shape}; an interval needs scores (n,).")
    measure = metric or auc
    baseline = float(measure(answers, unchanged))
    if unit == "percent" and not baseline > 0:
        raise ValueError(
            f"the metric is {baseline:.4g} on the data; no percentage of it exists. Use unit='difference'."
        )
    design = make_design(answers, patients) if resamples else None
    draws, intervals = np.zeros((len(changes), repeats)), []
    for row in range(len(changes)):
        permuted = [next(scores) for _ in range(repeats)]
        draws[row] = [_loss(baseline, float(measure(answers, one)), unit) for one in permuted]
        if design is not None:
            ranked = make_ranked(answers == 1, np.stack([unchanged, *permuted]))
            statistic = _median_percent if unit == "percent" else _median_difference
            values = bootstrap(statistic, ranked, design, resamples=resamples, seed=seed)
            intervals.append(percentile_interval(values))
    median = np.median(draws, axis=1)
    return Importance(
        names=tuple(features),
        median=median,
        median_error=_median_error(draws),
        rank=importance_ranks(median),
        draws=draws,
        interval=Interval(*(np.array(ends) for ends in zip(*intervals, strict=True))) if intervals else None,
        baseline=baseline,
        fixed=tuple(change.exchange.fixed for change in changes),
        related=_related(arrays[source], features, source, threshold),
        unit=unit,
    )


def importance_ranks(medians: Float[np.ndarray, "*m t"]) -> Float[np.ndarray, "*m t"]:
    """Rank of each feature by absolute median, 1 for the largest; ties share the mean rank.

    A feature whose permutation helps ranks by the size of the change too, as in Holste 2021; a rank among the last is
    chance whatever its sign.

    Example:
      >>> importance_ranks(np.array([0.2, -0.3, 7.0, 0.2])).tolist()
      [3.5, 2.0, 1.0, 3.5]
    """
    from scipy.stats import rankdata

    return rankdata(-np.abs(medians), axis=-1)


def rank_product(medians: Float[np.ndarray, "m t"]) -> RankProduct:
    r"""Order of features over several models: geometric mean of their ranks.

    .. math:: \bar R_j = \Big(\prod_{i=1}^m R_{ij}\Big)^{1/m}

    Args:
      medians: median importance of every feature in every model, in one order of features, shape `(m, t)`. Units may
        differ between models, as only ranks enter.

    Returns:
      `RankProduct`; features of equal mean keep their order.

    Raises:
      ValueError: medians that are not finite.

    Example:
      >>> rank_product(np.array([[0.1, 5.0, 2.0], [0.3, 9.0, 0.4]])).order.tolist()
      [1, 2, 0]

    References:
      Breitling et al. 2004; Holste et al. 2021; specs/breast_mri_fusion.md, section 6.1.
    """
    if not np.isfinite(medians).all():
        raise ValueError(f"{counted(int((~np.isfinite(medians)).sum()), 'median')} not finite; ranks need numbers.")
    rank = importance_ranks(medians)
    mean = np.exp(np.log(rank).mean(axis=0))
    return RankProduct(rank, mean, np.argsort(mean.round(12), kind="stable"))


def related_columns(
    columns: Num[ArrayLike, "n t"], groups: Groups | None = None, *, threshold: float = 0.7
) -> tuple[Relation, ...]:
    r"""Pairs of features that say much the same, and therefore share their permutation importance.

    .. math:: V = \sqrt{\frac{\sum_i \rho_i^2}{\min(\mathrm{rank}\, X, \mathrm{rank}\, Y)}}

    with the canonical correlations of the two blocks of columns. For two single columns that is :math:`|r|`; for two
    groups of dummies it is Cramér's V; for a number and a group the correlation ratio :math:`\eta`. Only linear
    relations of numbers are seen, and groups of many levels look related in small samples.

    Args:
      columns: shape `(n, t)`.
      groups: name to column indices; by default every column by itself.
      threshold: smallest association that is reported, exclusive.

    Returns:
      The pairs, most related first.

    Raises:
      ValueError: values that are not finite, or an index that is not a column.

    Example:
      >>> x = np.arange(20.0)
      >>> related_columns(np.stack([x, -2 * x, np.cos(9 * x)], axis=1), {"a": [0], "b": [1], "c": [2]})
      (Relation(first='a', second='b', association=1.0),)

    References:
      Cramér 1946, chapter 21; Strobl et al. 2008 (correlated columns and permutation importance).
    """
    values = np.asarray(columns, float)
    named = _checked_groups(groups, values.shape, "columns")
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ValueError(f"columns: row {where[0]}, column {where[1]} is not finite; expected encoded columns.")
    bases = {name: _basis(values[:, list(indices)]) for name, indices in named.items()}
    names = list(bases)
    found = [
        Relation(first, second, association)
        for number, first in enumerate(names)
        for second in names[number + 1 :]
        if (association := _association(bases[first], bases[second])) > threshold
    ]
    return tuple(sorted(found, key=lambda relation: -relation.association))


def merge_related(groups: Groups, related: Sequence[Relation]) -> dict[str, tuple[int, ...]]:
    """Groups in which features that are related, directly or through others, are one: permuted together.

    Args:
      groups: name to column indices.
      related: from `related_columns`.

    Returns:
      Groups in the order of their first features, named "a + b".

    Raises:
      ValueError: a relation of a feature that is not among the groups.

    Example:
      >>> merge_related({"a": [0], "b": [1], "c": [2, 3]}, [Relation("a", "c", 0.9)])
      {'a + c': (0, 2, 3), 'b': (1,)}
    """
    leader = {name: name for name in groups}

    def head(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    order = {name: number for number, name in enumerate(groups)}
    for relation in related:
        for name in relation[:2]:
            if name not in groups:
                raise ValueError(f"related: {name!r} is not among the groups; they hold {listed(groups)}.")
        first, second = sorted((head(relation.first), head(relation.second)), key=order.__getitem__)
        leader[second] = first
    members: dict[str, list[str]] = {}
    for name in groups:
        members.setdefault(head(name), []).append(name)
    return {" + ".join(names): tuple(i for name in names for i in groups[name]) for names in members.values()}


# Permuting.


class _Change(NamedTuple):
    """One feature: its source, its columns (None for all of the source), and who exchanges with whom."""

    name: str
    source: str
    columns: list[int] | None
    exchange: Exchange
    as_levels: bool


def _features(arrays, source, groups, whole) -> dict[str, tuple[str, list[int] | None]]:
    features: dict[str, tuple[str, list[int] | None]] = {}
    if groups is not None or not whole:
        source_names(source, arrays)
        if arrays[source].ndim != 2:
            raise ValueError(
                f"inputs[{source!r}] has shape {arrays[source].shape}; expected (cases, columns). "
                "Name it under `whole` to permute it as a whole."
            )
        named = _checked_groups(groups, arrays[source].shape, f"inputs[{source!r}]")
        features = {name: (source, list(columns)) for name, columns in named.items()}
    for name in source_names(tuple(whole), arrays):
        if name in features:
            raise ValueError(f"{name!r} is both a source under `whole` and a feature; give the feature another name.")
        features[name] = (name, None)
    return features


def _checked_groups(groups: Groups | None, shape: tuple[int, ...], what: str) -> Groups:
    if groups is None:
        return {f"column {column}": [column] for column in range(shape[1])}
    if not groups:
        raise ValueError("groups is empty; expected a mapping from name to column indices.")
    for name, columns in groups.items():
        found = list(columns)
        if not found or len(set(found)) != len(found) or not set(found) <= set(range(shape[1])):
            raise ValueError(f"groups[{name!r}] is {found}; expected different columns of {what}, 0 to {shape[1] - 1}.")
    return groups


def _check_options(unit: str, repeats: int, resamples: int, metric: Metric | None) -> None:
    if unit not in ("percent", "difference"):
        raise ValueError(f"unit is {unit!r}; expected 'percent' or 'difference'.")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1, and 30 for a median.")
    if resamples and metric is not None:
        raise ValueError("resamples: an interval is offered for the default metric, the AUC; leave `metric` out.")


def _check_dummies(name: str, array: np.ndarray, columns: list[int] | None) -> None:
    block = array[:, columns]
    if not np.isin(block, (0, 1)).all() or (block.sum(axis=1) > 1).any():
        raise ValueError(
            f"groups[{name!r}]: legacy=True needs dummies, 0 or 1 with at most one 1 a row. "
            "Permute it with legacy=False."
        )


def _exchange(array: np.ndarray, columns: list[int] | None, patients: Patients | None) -> Exchange:
    values = array if columns is None else array[:, columns]
    return row_exchange(len(array), patients=patients, agreeing=agree_in_patients([values], patients))


def _all_changes(arrays, changes, repeats, seed) -> Iterator[dict[str, np.ndarray]]:
    for change in changes:
        array = arrays[change.source]
        for repeat in range(repeats):
            rows = change.exchange.draw(generator(seed, (change.source, change.name), repeat))
            if change.columns is None:
                yield {change.source: array[rows]}
                continue
            block = array[:, change.columns]
            if change.as_levels:
                block = np.eye(block.shape[1], dtype=array.dtype)[block.argmax(axis=1)]
            permuted = array.copy()
            permuted[:, change.columns] = block[rows]
            yield {change.source: permuted}


def _loss(baseline: Any, value: Any, unit: str) -> Any:
    return 100 * (baseline - value) / baseline if unit == "percent" else baseline - value


def _median_error(draws: np.ndarray) -> np.ndarray:
    """Half the distance of the quantiles one standard error of the fraction below and above a half."""
    spread = 0.5 / np.sqrt(draws.shape[1])
    low, high = np.quantile(draws, [max(0.0, 0.5 - spread), min(1.0, 0.5 + spread)], axis=1)
    return (high - low) / 2


# Intervals.


def _areas(data: Ranked, weights: Array) -> Array:
    return jax.vmap(lambda one: weighted_auc(one, weights))(data)


def _median_percent(data: Ranked, weights: Array) -> Array:
    areas = _areas(data, weights)
    return _median(_loss(areas[0], areas[1:], "percent"))


def _median_difference(data: Ranked, weights: Array) -> Array:
    areas = _areas(data, weights)
    return _median(_loss(areas[0], areas[1:], "difference"))


def _median(values: Array) -> Array:
    ordered, middle = jnp.sort(values), (values.shape[0] - 1) // 2
    return (ordered[middle] + ordered[values.shape[0] // 2]) / 2


# Relations.


def _related(array, features, source, threshold) -> tuple[Relation, ...]:
    groups = {name: columns for name, (_, columns) in features.items() if columns is not None}
    if len(groups) < 2:
        return ()
    related = related_columns(array, groups, threshold=threshold)
    if related:
        logger.warning(
            "source %s: %s of features related by more than %g share their importance: %s. Permute them together "
            "(merge_related).",
            source,
            counted(len(related), "pair"),
            threshold,
            listed(f"{one.first} and {one.second} ({one.association:.2f})" for one in related),
        )
    return related


def _basis(block: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the centred block; none where it is constant."""
    centred = block - block.mean(axis=0)
    size = np.linalg.norm(centred, axis=0)
    varying = size > 1e-12 * np.maximum(np.abs(block).max(axis=0), 1.0) * np.sqrt(len(block))
    if not varying.any():
        return np.zeros((len(block), 0))
    left, singular, _ = np.linalg.svd(centred[:, varying] / size[varying], full_matrices=False)
    return left[:, singular > 1e-9 * singular[0]]


def _association(first: np.ndarray, second: np.ndarray) -> float:
    rank = min(first.shape[1], second.shape[1])
    if rank == 0:
        return 0.0
    squares = float(np.square(first.T @ second).sum())
    return round(min(1.0, float(np.sqrt(squares / rank))), 12)
