"""How well scores tell cases apart, and whether models differ in that."""

from typing import Any

import numpy as np

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.classification import METRICS, confusion_counts
from fusion_jax.evaluation.comparisons import Comparison
from fusion_jax.evaluation.estimates import MetricKey, title
from fusion_jax.evaluation.operating import Rule
from fusion_jax.reporting.curve_figures import OperatingPoint, precision_recall_figure, roc_figure
from fusion_jax.reporting.evaluation.words import (
    CONDITION,
    cell,
    first_estimates,
    named,
    people,
    primary_estimates,
    verdict,
)
from fusion_jax.reporting.figure_parts import Curve
from fusion_jax.reporting.forest_figures import ForestRow, forest_figure
from fusion_jax.reporting.html import Figure, Section, Table
from fusion_jax.reporting.matrix_figures import (
    difference_matrix_figure,
)
from fusion_jax.reporting.strip_figures import score_figure
from fusion_jax.reporting.tables import format_interval, format_p, format_percent
from fusion_jax.wording import counted, listed

__all__ = ["differences", "discrimination"]

FOREST_METRICS = (
    "auc", "within_fold_auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity", "brier",
    "log_loss",
)  # fmt: skip
DETAILED_MODELS = 2  # of more, decisions at thresholds would make the table of pairs a book


def discrimination(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Metrics of scores, curves and distributions; None for tables with times alone."""
    judged = found.judged
    if judged is None:
        return None
    keys = [key for key in judged.values if not key.rule and not key.of_class and key.metric in FOREST_METRICS]
    first = first_estimates(judged.estimates)
    rows, forest = [], []
    for key in keys:
        for model in found.view.models:
            row = first.get((model, key))
            if row is None:
                continue
            shown = format_interval(row.value, row.low, row.high)
            forest.append(ForestRow(model, title(key, found.protocol), row.value, row.low, row.high, shown))
    for model in found.view.models:
        cells: list[Any] = [model]
        for key in keys:
            row = first.get((model, key))
            cells.append("–" if row is None else format_interval(row.value, row.low, row.high))
        rows.append(cells)
    level = format_percent(found.protocol.level, 0)
    shown_metric = found.protocol.primary if primary_estimates(found) else "auc"
    method = next(row.method for row in judged.estimates if row.metric == shown_metric)
    error = max(row.low_error or 0.0 for row in judged.estimates if row.metric == shown_metric)
    how = f"{level} intervals: {method}, {CONDITION}; Monte-Carlo error of their ends up to {error:.1g}"
    tables["discrimination"] = Table(
        ("model", *(title(key, found.protocol) for key in keys)), rows, f"Metrics of scores, {people(found)}. {how}."
    )
    items: list[Figure | Table] = [
        tables["discrimination"],
        forest_figure(forest, xlabel="value", heading="value [interval]", caption=f"{people(found)}. {how}."),
    ]
    items += _curves(found, how)
    items.append(_scores(found))
    classes = _class_table(found, tables)
    if classes is not None:
        items.append(classes)
    text = [
        "Areas and precision of ranking need no threshold. Ties count half. Intervals are over patients; another "
        "training of the same model is not in them."
        if found.panel.patients is not None
        else "Areas and precision of ranking need no threshold. Ties count half. Intervals take every row as "
        "independent; another training of the same model is not in them."
    ]
    if MetricKey("within_fold_auc") in judged.values:
        text.append(
            "The AUC within folds compares cases of the same fold only, which were scored by one training; the pooled "
            "AUC compares scores of different trainings with each other."
        )
    return Section("How well do the scores tell cases apart?", text, items)


def _curves(found: Evaluation, how: str) -> list[Figure | Table]:
    judged = found.judged
    if judged is None or judged.curves is None or found.panel.labels is None:
        return []
    point, low, high = judged.curves
    grid = np.linspace(0.0, 1.0, point.sensitivity.shape[1])
    first = first_estimates(judged.estimates)

    def curves(part: str, metric: str) -> dict[str, Curve]:
        made = {}
        for number, model in enumerate(found.view.models):
            row = first[model, MetricKey(metric)]
            made[model] = Curve(
                grid,
                getattr(point, part)[number],
                getattr(low, part)[number],
                getattr(high, part)[number],
                f"{'AUC' if metric == 'auc' else 'AP'} {format_interval(row.value, row.low, row.high)}",
            )
        return made

    points = [
        OperatingPoint(model, 1 - counts["specificity"], counts["sensitivity"], f"threshold {rule.origin}")
        for rule in found.rules
        for model, counts in _rates(found, rule).items()
    ]
    prevalence = float((found.panel.labels == 1).mean())
    caption = f"{people(found)}. Bands: pointwise, from the same resamples. {how}."
    return [
        roc_figure(curves("sensitivity", "auc"), points=points, caption=f"ROC curves. {caption}"),
        precision_recall_figure(
            curves("precision", "average_precision"),
            prevalence=prevalence,
            caption=f"Precision over recall. {caption} Precision depends on the prevalence, here "
            f"{format_percent(prevalence)}.",
        ),
    ]


def _rates(found: Evaluation, rule: Rule) -> dict[str, dict[str, float]]:
    labels: Any = found.panel.labels
    made = {}
    for model, decisions in zip(found.view.models, rule.decisions, strict=True):
        counts = confusion_counts(labels, decisions)
        made[model] = {name: float(METRICS[name].function(counts)) for name in ("sensitivity", "specificity")}
    return made


def _scores(found: Evaluation) -> Figure:
    labels: Any = found.panel.labels
    many = len(found.panel.classes) > 2
    shown = {}
    for model, scores in zip(found.view.models, found.view.scores, strict=True):
        own = scores[np.arange(len(labels)), labels] if many else scores
        shown[model] = {name: own[labels == number] for number, name in enumerate(found.panel.classes)}
    fixed = found.rules[0] if found.rules else None
    thresholds = {}
    if fixed is not None:
        for model, operating in fixed.operating.items():
            if len(set(operating.thresholds.values())) == 1:
                thresholds[model] = float(next(iter(operating.thresholds.values())))
    return score_figure(
        shown,
        xlabel="score of the true class" if many else "score",
        thresholds=thresholds or None,
        caption=f"Scores by class, {people(found)}."
        + (f" Line: threshold, {fixed.origin}." if fixed is not None and thresholds else ""),
    )


def _class_table(found: Evaluation, tables: dict[str, Table]) -> Table | None:
    judged = found.judged
    if judged is None or len(found.panel.classes) < 3:
        return None
    keys = [key for key in judged.values if key.of_class or key.rule]
    first = first_estimates(judged.estimates)
    rows = [
        [title(key, found.protocol), *(cell(first.get((model, key))) for model in found.view.models)] for key in keys
    ]
    tables["classes"] = Table(
        ("metric", *found.view.models),
        rows,
        f"Each class against the rest, and decisions for the class of the highest score; {people(found)}.",
    )
    return tables["classes"]


def differences(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Verdicts on fused models, and every pair of models; None for a single model."""
    if found.judged is None or len(found.view.models) < 2:
        return None
    protocol = found.protocol
    primary = MetricKey(protocol.primary)
    count = len(found.view.models) * (len(found.view.models) - 1) // 2
    text = list(verdict(found))
    if found.benefits:
        text.append(
            f"The primary metric ({title(primary, protocol)}) and the single sources ({listed(protocol.singles)}) were "
            "fixed before the models were judged. A fused model has helped when it beats every single source on the "
            "same cases: the largest p-value of these comparisons counts, adjusted by Holm over the fused models that "
            "were tried."
        )
        sides = len(protocol.singles)
        if sides == 1:
            text.append(
                f"Only one single source ({protocol.singles[0]}) was compared. Whether the fused model also beats the "
                "other source alone was not tested here."
            )
        tables["verdicts"] = Table(
            ("fused model", "hardest single source", "gain [interval]", "test", "p, largest", "p, Holm", "helped",
             "smallest detectable difference"),
            [
                [one.model, one.hardest, format_interval(one.gain, one.low, one.high, signed=True), one.test,
                 format_p(one.p_value), format_p(one.p_holm), one.helped, one.smallest_detectable]
                for one in found.benefits
            ],
            f"Did fusion help? Gain in {title(primary, protocol)} over the single source that is hardest to beat, "
            f"{people(found)}. Smallest detectable difference: 80 % power at this n, number of events and agreement.",
        )  # fmt: skip
    items: list[Figure | Table] = [tables["verdicts"]] if found.benefits else []
    shown = [row for row in found.comparisons if row.key == primary]
    test = shown[0].test if shown else ""
    m = len(found.view.models)
    difference, low, high, p_values = (np.full((m, m), np.nan) for _ in range(4))
    for row in shown:
        if row.test != test:
            continue
        one, other = found.view.models.index(row.first), found.view.models.index(row.second)
        difference[one, other], difference[other, one] = row.difference, -row.difference
        low[one, other], low[other, one] = row.low, -row.high
        high[one, other], high[other, one] = row.high, -row.low
        p_values[one, other] = p_values[other, one] = row.p_holm
    if not np.isnan(difference).all():
        items.append(
            difference_matrix_figure(
                found.view.models, difference, low, high, p_values,
                metric=title(primary, protocol),
                adjusted=f"Holm over {counted(count, 'comparison')}",
                caption=f"Differences in {title(primary, protocol)}, row minus column, {people(found)}; {test}, from "
                f"the same {protocol.resamples:,} resamples, {CONDITION}.",
            )
        )  # fmt: skip
    tables["differences"] = _pairs_table(found)
    items.append(tables["differences"])
    text.append(
        "Permutation exchanges the ranks of the two models within patients, never raw scores; its p-value can be no "
        f"smaller than {1 / (1 + protocol.permutations):.1g} here. Absence of evidence is not evidence of absence: "
        "read the interval."
    )
    if found.fold_tests:
        tables["fold_tests"] = Table(
            ("models", "mean difference [interval]", "t", "p", "folds", "n_test / n_train"),
            [
                [f"{one.first} – {one.second}",
                 format_interval(one.test.difference, one.test.low, one.test.high, signed=True), one.test.t,
                 format_p(one.test.p_value), one.test.folds,
                 f"{one.test.n_test:.0f} / {one.test.n_train:.0f} = {one.test.ratio:.3g}"]
                for one in found.fold_tests
            ],
            f"Corrected resampled t-test (Nadeau and Bengio) of {title(primary, protocol)} per fold; not adjusted over "
            "pairs.",
        )  # fmt: skip
        items.append(tables["fold_tests"])
    return Section("Did fusion help?" if found.benefits else "Do the models differ?", text, items)


def _pairs_table(found: Evaluation) -> Table:
    """One row for each pair and metric, one column for each test."""
    protocol = found.protocol
    keys = {MetricKey(protocol.primary), MetricKey("auc"), MetricKey("specificity_at_sensitivity")}
    if len(found.view.models) <= DETAILED_MODELS:
        keys |= {MetricKey(metric, rule.name) for rule in found.rules for metric in ("sensitivity", "specificity")}
    tests = list(dict.fromkeys(row.test for row in found.comparisons if row.key in keys))
    by_pair: dict[tuple[MetricKey, str, str], dict[str, Comparison]] = {}
    for row in found.comparisons:
        if row.key in keys:
            by_pair.setdefault((row.key, row.first, row.second), {})[row.test] = row
    rows = []
    for (key, one, other), by_test in by_pair.items():
        first = by_test[tests[0]]
        rows.append(
            [f"{one} – {other}", named(key, found),
             format_interval(first.difference, first.low, first.high, signed=True),
             *(format_p(by_test[test].p_value) if test in by_test else "–" for test in tests),
             format_p(first.p_holm), format_p(first.p_benjamini_hochberg)]
        )  # fmt: skip
    error = max((row.p_error or 0.0 for each in by_pair.values() for row in each.values()), default=0.0)
    return Table(
        ("models", "metric", "difference [interval]", *(f"p, {test}" for test in tests),
         f"p, {tests[0]}, Holm", f"p, {tests[0]}, Benjamini–Hochberg"),
        rows,
        f"Paired differences on the same {people(found)}; interval: bootstrap, {CONDITION}. Monte-Carlo error "
        f"of p-values up to {error:.1g}. Adjusted over pairs of models within each metric and test; not over metrics, "
        "tests or subgroups. All metrics are in comparisons.csv.",
    )  # fmt: skip
