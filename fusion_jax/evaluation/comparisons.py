"""Every pair of models on the same rows: how far apart, how sure, and by which test."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.evaluation.delong import delong, delong_test
from fusion_jax.evaluation.estimates import Judged, MetricKey
from fusion_jax.evaluation.operating import READ_OFF, Rule
from fusion_jax.evaluation.paired import benjamini_hochberg, clustered_mcnemar, holm, mcnemar
from fusion_jax.evaluation.panel import Panel, View
from fusion_jax.evaluation.permutation import merge_models, permutation_test
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.ranked import classification_statistics, exact_ratio
from fusion_jax.evaluation.resampling import percentile_interval, z_test
from fusion_jax.evaluation.survival_resampled import SurvivalComparison

__all__ = ["Comparison", "compare_pairs", "survival_pairs"]

BOOTSTRAP, DELONG, PERMUTATION, MCNEMAR = "bootstrap z", "DeLong", "rank permutation", "McNemar mid-p"
CLUSTERED_DELONG, CLUSTERED_MCNEMAR = "clustered DeLong (Obuchowski)", "clustered McNemar (Obuchowski)"


class Comparison(NamedTuple):
    """A paired test of one metric of two models.

    Attributes:
      metric, rule, of_class: what is compared, as in `MetricKey`.
      first, second: models; the difference is that of the first less that of the second.
      difference, low, high: with its interval; NaN ends where the test has none.
      sd: standard error of the difference; NaN where the test has none.
      test: by name.
      p_value: two-sided, not adjusted; NaN where the resamples cannot tell: a class of a single patient, or a
        difference that is the same in all of them.
      p_error: Monte-Carlo standard error of the p-value; None where nothing was resampled.
      p_holm, p_benjamini_hochberg: adjusted over all pairs of models for this metric and test.
    """

    metric: str
    rule: str
    of_class: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    sd: float
    test: str
    p_value: float
    p_error: float | None
    p_holm: float
    p_benjamini_hochberg: float

    @property
    def key(self) -> MetricKey:
        """What is compared."""
        return MetricKey(self.metric, self.rule, self.of_class)


def compare_pairs(
    panel: Panel,
    view: View,
    judged: Judged,
    rules: tuple[Rule, ...],
    protocol: Protocol,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Comparison, ...]:
    """All tests of all pairs of models.

    Every metric by the z-test on the differences of the same resamples (Holste et al. 2021); the AUC by DeLong's test
    as well; metrics of ranking by the exchange of ranks within patients; accuracy, sensitivity and specificity by
    McNemar's. Where patients have several rows, all of them go over patients.

    Args:
      panel: with labels.
      view: one score for each model and row.
      judged: of `judge`, on the same view.
      rules: operating points.
      protocol: level, seed, numbers of permutations.
      advance: called after every pair.

    Returns:
      Comparisons by metric, then by test, then by pair; each is adjusted within its metric and test.
    """
    pairs = list(itertools.combinations(range(len(view.models)), 2))
    found: dict[tuple[MetricKey, str], list[Comparison]] = {}

    def add(key: MetricKey, one: int, other: int, test: str, **numbers: Any) -> None:
        blank: dict[str, Any] = {"low": np.nan, "high": np.nan, "sd": np.nan, "p_error": None}
        row = Comparison(
            *key, view.models[one], view.models[other], test=test, p_holm=np.nan, p_benjamini_hochberg=np.nan,
            **(blank | numbers),
        )  # fmt: skip
        found.setdefault((key, test), []).append(row)

    two = len(panel.classes) == 2
    for one, other in pairs:
        for key, values in judged.values.items():
            difference = float(values[one] - values[other])
            if np.isnan(difference):
                continue
            draws = judged.draws[key][:, one] - judged.draws[key][:, other]
            if judged.alone:
                add(key, one, other, BOOTSTRAP, difference=difference, p_value=np.nan)
                continue
            test = z_test(difference, draws)
            ends = percentile_interval(draws, protocol.level)
            if difference and not test.sd > 0:
                add(key, one, other, BOOTSTRAP, difference=difference, p_value=np.nan)
                continue
            add(
                key, one, other, BOOTSTRAP, difference=difference, low=float(ends.low), high=float(ends.high),
                sd=float(test.sd), p_value=float(test.p_value), p_error=float(test.p_error),
            )  # fmt: skip
        if two:
            _areas(panel, view, one, other, protocol, add)
            _ranks(panel, view, judged, one, other, protocol, add)
            _decisions(panel, rules, one, other, add)
        advance()
    return tuple(row for rows in found.values() for row in _adjusted(rows))


def survival_pairs(models: tuple[str, ...], survival: SurvivalComparison) -> tuple[Comparison, ...]:
    """Concordances of all pairs of models, by the z-test on the differences of the same resamples.

    Args:
      models: in the order of the comparison.
      survival: of all models on the same rows.
    """
    tests, ends = survival.differences, survival.difference_intervals
    if tests is None or ends is None:
        return ()
    found = []
    for metric, part in (("harrell_c", "harrell"), ("uno_c", "uno")):
        test, interval = getattr(tests, part), getattr(ends, part)
        rows = [
            Comparison(
                *MetricKey(metric), models[one], models[other], float(test.difference[pair]),
                float(interval.low[pair]), float(interval.high[pair]), float(test.sd[pair]), BOOTSTRAP,
                float(test.p_value[pair]), float(test.p_error[pair]), np.nan, np.nan,
            )
            for pair, (one, other) in enumerate(survival.pairs)
        ]  # fmt: skip
        found += _adjusted(rows)
    return tuple(found)


def _areas(panel: Panel, view: View, one: int, other: int, protocol: Protocol, add: Callable[..., None]) -> None:
    labels: Any = panel.labels
    found = delong(labels, view.scores[[one, other]].T, panel.patients)
    test = delong_test(found, protocol.level)
    add(
        MetricKey("auc"), one, other, CLUSTERED_DELONG if found.clustered else DELONG,
        difference=float(test.difference[0, 1]), low=float(test.low[0, 1]), high=float(test.high[0, 1]),
        sd=float(test.standard_error[0, 1]), p_value=float(test.p_value[0, 1]),
    )  # fmt: skip


def _ranks(
    panel: Panel, view: View, judged: Judged, one: int, other: int, protocol: Protocol, add: Callable[..., None]
) -> None:
    labels: Any = panel.labels
    merged = merge_models(
        labels,
        view.scores[one],
        view.scores[other],
        fold=view.folds,
        sensitivities=exact_ratio(protocol.sensitivity)[None],
        specificities=exact_ratio(protocol.specificity)[None],
    )
    tests = permutation_test(
        classification_statistics, merged, judged.design, resamples=protocol.permutations, seed=protocol.seed
    )
    for metric in (
        "auc",
        "average_precision",
        "within_fold_auc",
        "specificity_at_sensitivity",
        "sensitivity_at_specificity",
    ):
        test = getattr(tests, metric)
        key = MetricKey(metric)
        if test is None or key not in judged.values:
            continue
        add(
            key, one, other, PERMUTATION,
            difference=float(judged.values[key][one] - judged.values[key][other]),
            p_value=float(np.ravel(test.p_value)[0]), p_error=float(np.ravel(test.p_error)[0]),
        )  # fmt: skip


def _decisions(panel: Panel, rules: tuple[Rule, ...], one: int, other: int, add: Callable[..., None]) -> None:
    labels: Any = panel.labels
    for rule in rules:
        if rule.name == READ_OFF:
            continue
        right = (rule.decisions == labels).astype(int)
        for metric, rows in (
            ("accuracy", np.ones(len(labels), bool)),
            ("sensitivity", labels == 1),
            ("specificity", labels == 0),
        ):
            first, second = right[one][rows], right[other][rows]
            if panel.clustered and panel.patients is not None:
                test = clustered_mcnemar(first, second, panel.patients[rows])
                name, numbers = CLUSTERED_MCNEMAR, {"sd": test.standard_error, "p_value": test.p_value}
            else:
                test = mcnemar(first, second)
                name, numbers = MCNEMAR, {"p_value": test.mid_p}
            add(MetricKey(metric, rule.name), one, other, name, difference=test.difference, **numbers)


def _adjusted(rows: list[Comparison]) -> list[Comparison]:
    p_values = np.array([row.p_value for row in rows])
    family: Mapping[str, np.ndarray] = {
        "p_holm": holm(p_values),
        "p_benjamini_hochberg": benjamini_hochberg(p_values),
    }
    return [
        row._replace(**{name: float(values[number]) for name, values in family.items()})
        for number, row in enumerate(rows)
    ]
