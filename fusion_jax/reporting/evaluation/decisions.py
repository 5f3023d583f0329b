"""Decisions at thresholds, and the probabilities that decisions are weighed with."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.classification import METRICS, confusion_counts
from fusion_jax.evaluation.estimates import MetricKey
from fusion_jax.evaluation.operating import READ_OFF
from fusion_jax.reporting.calibration_figures import Reliability, calibration_figure, decision_curve_figure
from fusion_jax.reporting.evaluation.words import (
    CONDITION,
    first_estimates,
    people,
    shown,
)
from fusion_jax.reporting.figure_parts import Curve
from fusion_jax.reporting.html import Figure, Section, Table, format_number
from fusion_jax.reporting.matrix_figures import (
    Reclassification,
    confusion_figure,
    reclassification_figure,
)
from fusion_jax.reporting.tables import format_interval, format_percent

__all__ = ["decisions", "probabilities"]


def decisions(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Figures at every operating point, confusion matrices, and which cases change sides; None without any."""
    if found.judged is None or not found.rules:
        return None
    labels: Any = found.panel.labels
    first = first_estimates(found.judged.estimates)
    metrics = list(dict.fromkeys(key.metric for _, key in first if key.rule))
    rows, thresholds = [], []
    for rule in found.rules:
        for model in found.view.models:
            cells: list[Any] = [model, rule.name]
            for metric in metrics:
                row = first.get((model, MetricKey(metric, rule.name)))
                if row is None or math.isnan(row.value):
                    cells.append("–")
                elif math.isnan(row.low):
                    cells.append(f"{row.value:.3f}")
                else:
                    cells.append(format_interval(row.value, row.low, row.high))
            rows.append(cells)
            values = list(rule.operating[model].thresholds.values())
            at = f"{values[0]:.4g}" if len(set(values)) == 1 else f"{min(values):.4g} to {max(values):.4g}"
            thresholds.append([model, rule.name, at, rule.origin])
    tables["thresholds"] = Table(
        ("model", "rule", "threshold", "where it comes from"),
        thresholds,
        "A row is positive at or above its threshold.",
    )
    tables["decisions"] = Table(
        ("model", "threshold", *(METRICS[metric].title() for metric in metrics)),
        rows,
        f"Decisions, {people(found)}. Proportions: Wilson's interval"
        + (" over patients" if found.panel.clustered else "")
        + f"; others: stratified bootstrap. {CONDITION.capitalize()}. Figures at a threshold from the test ROC "
        "have no interval: these rows chose it.",
    )
    fixed = found.rules[0]
    matrices = {}
    for model, decisions in zip(found.view.models, fixed.decisions, strict=True):
        counts = confusion_counts(labels, decisions)
        matrices[model] = np.array([[counts.tn, counts.fp], [counts.fn, counts.tp]])
    items: list[Figure | Table] = [
        tables["thresholds"],
        tables["decisions"],
        confusion_figure(
            matrices,
            classes=found.panel.classes,
            caption=f"Confusion matrices, {people(found)}; threshold {fixed.origin}.",
        ),
    ]
    if found.changes:
        held = f"{format_percent(found.protocol.sensitivity, 0)} sensitivity of each model on these rows"
        read_off = [row for row in found.changes if row.rule == READ_OFF]
        items.append(
            reclassification_figure(
                [
                    Reclassification(
                        f"{row.second} against {row.first}",
                        found.panel.classes[row.of_class],
                        row.gained,
                        row.lost,
                        row.rows,
                    )
                    for row in read_off
                ],
                caption=f"Decisions that change sides at {held}, {people(found)}.",
            )
        )
        tables["reclassification"] = Table(
            ("threshold", "from", "to", "class", "rows", "right before", "right after", "gained", "lost", "net"),
            [
                [row.rule, row.first, row.second, found.panel.classes[row.of_class], row.rows, row.first_right,
                 row.second_right, row.gained, row.lost, row.net]
                for row in found.changes
            ],
            f"Cases that change sides, by class. Counts, no index: {people(found)}.",
        )  # fmt: skip
        items.append(tables["reclassification"])
    text = [*found.rule_notes, *(warning for rule in found.rules for warning in rule.warnings)]
    return Section("Decisions at a threshold", text, items)


def probabilities(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Calibration and net benefit; None where no scores are probabilities."""
    if not found.calibrations:
        return None
    level = format_percent(found.protocol.level, 0)
    panels, rows = {}, []
    for model, one in found.calibrations.items():
        for name, raw in ((model, one.raw), (f"{model}, recalibrated", one.recalibrated)):
            if raw is None:
                continue
            rows.append(
                [name, *(shown(part) for part in (raw.slope, raw.intercept, raw.observed_over_expected)),
                 f"{raw.quantile_error.value:.3f}",
                 f"{raw.quantile_error.expected:.3f} (≤ {raw.quantile_error.upper:.3f})",
                 f"{raw.ici.value:.3f}", shown(raw.brier), shown(raw.scaled_brier)]
            )  # fmt: skip
        curve = one.raw.curve
        panels[model] = Reliability(
            one.bins.predicted, one.bins.observed, one.bins.low, one.bins.high, one.bins.n, one.histogram.edges,
            one.histogram.negatives, one.histogram.positives,
            Curve(curve.predicted, curve.observed.value, curve.observed.interval.low, curve.observed.interval.high),
            f"slope {format_number(float(one.raw.slope.value))}, "
            f"intercept {format_number(float(one.raw.intercept.value))}",
        )  # fmt: skip
    tables["calibration"] = Table(
        ("model", "slope", "intercept", "observed / expected", "ECE", "ECE by chance alone", "ICI", "Brier score",
         "scaled Brier score"),
        rows,
        f"Calibration, {people(found)}; {level} intervals: bootstrap of "
        f"{next(iter(found.calibrations.values())).raw.unit}, without strata, as the "
        f"number of events is part of it; {CONDITION}. ECE (expected calibration error, "
        "ten bins of equal size) is biased upward: beside it what a perfectly calibrated model with these predictions "
        "would show, mean and 95 % limit. ICI (integrated calibration index): mean distance of the smooth curve from "
        "the diagonal.",
    )  # fmt: skip
    items: list[Figure | Table] = [
        tables["calibration"],
        calibration_figure(
            panels,
            classes=(found.panel.classes[0], found.panel.classes[1]),
            caption=f"Observed over predicted, {people(found)}: ten bins of equal size with Wilson's intervals, smooth "
            "curve with a pointwise bootstrap band.",
        ),
    ]
    if found.decision is not None:
        curve = found.decision
        usable = list(found.calibrations)

        def band(part: Any, *index: Any) -> Curve:
            at = index or (slice(None),)
            return Curve(curve.thresholds, part.value[at], part.interval.low[at], part.interval.high[at])

        of = "given" if curve.given else "that of these rows"
        items.append(
            decision_curve_figure(
                {model: band(curve.net_benefit, number) for number, model in enumerate(usable)},
                treat_all=band(curve.treat_all),
                caption=f"Net benefit per case at a prevalence of {format_percent(curve.prevalence)} ({of}), "
                f"{people(found)}; {level} bands: bootstrap of {curve.unit}, without strata.",
            )
        )
    text = [
        (
            "Probabilities can rank cases well and still be wrong as probabilities: slope 1 and intercept 0 are right; "
            "a slope below 1 means predictions too extreme, an intercept below 0 risks too high."
        ),
        "Which threshold probabilities matter is a clinical question, to be answered before looking at the curve.",
    ]
    text += _of_models(found.calibration_notes, found.view.models)
    if found.prevalence and found.protocol.prevalence is not None:
        tables["prevalence"] = Table(
            ("threshold", "figure", *found.calibrations),
            [
                [rule, name.replace("_", " "),
                 *(shown(estimate, number=number) for number in range(len(found.calibrations)))]
                for rule, figures in found.prevalence.items()
                for name, estimate in figures.items()
            ],
            f"Figures that depend on the prevalence, for one of {format_percent(found.protocol.prevalence)}: cases and "
            "controls are those of these rows, their shares those of the population.",
        )  # fmt: skip
        items.append(tables["prevalence"])
    return Section("Calibration and clinical use", text, items)


def _of_models(notes: Sequence[str], models: Sequence[str]) -> list[str]:
    """Notes "model: text" with the models of one text together; other notes as they are."""
    found: dict[str, list[str]] = {}
    for note in notes:
        model = next((name for name in models if note.startswith(f"{name}: ")), None)
        found.setdefault(note if model is None else note.removeprefix(f"{model}: "), []).extend(
            [model] if model else []
        )
    return [f"{', '.join(names)}: {text}" if names else text for text, names in found.items()]
