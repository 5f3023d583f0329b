"""How the trainings went, whether models learnt by heart, and what training without a source would have given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.evaluation.estimates import MetricKey, title
from fusion_jax.models.analysis import Analysis, Training
from fusion_jax.models.comparison import Comparison
from fusion_jax.reporting.comparison.figures import Course, training_figure
from fusion_jax.reporting.html import Section, Table, format_number
from fusion_jax.reporting.tables import format_p
from fusion_jax.wording import counted

__all__ = ["gap_section", "metric_name", "null_section", "training_section"]

MONITORED = ("validation_auc", "validation_c", "validation_harrell_c")


def metric_name(comparison: Comparison) -> str:
    """What trained models are asked about: the AUC, or Harrell's C for survival."""
    name = "harrell_c" if comparison.plan.target.kind == "survival" else "auc"
    return title(MetricKey(name), comparison.evaluation.protocol)


def gap_section(comparison: Comparison, analysis: Analysis, tables: dict[str, Table]) -> Section | None:
    """The metric on training and on test cases; None where it was not measured."""
    if not analysis.gaps:
        return None
    metric = metric_name(comparison)
    rows: list[list[Any]] = [
        [one.model, _mean_sd(one.train), _mean_sd(one.test), _signed(float(np.nanmean(one.train - one.test)))]
        for one in analysis.gaps
    ]
    folds = len(analysis.gaps[0].test)
    tables["train_test_gap"] = Table(
        ("model", f"{metric}, training cases", f"{metric}, test cases", "gap"),
        rows,
        f"Mean ± sd over the {counted(folds, 'fold')} of the first repeat, each judged within the fold, and so not the "
        "pooled figures above. Training cases include those of the inner validation.",
    )
    text = [
        (
            "A model that is far better on its own training cases has learnt them by heart. A large gap is usual where "
            "there are more parameters than patients, and by itself says nothing against the test figures."
        )
    ]
    return Section("Training and test cases", text, [tables["train_test_gap"]])


def null_section(analysis: Analysis, tables: dict[str, Table]) -> Section | None:
    """The retraining null of every model and source, or why there is none; None where it was not asked for."""
    if not analysis.nulls:
        return None
    done = [one for one in analysis.nulls if one.null is not None]
    rows: list[list[Any]] = [
        [
            one.model,
            one.source,
            format_number(one.null.observed),
            f"{format_number(float(one.null.null.mean()))} ± {format_number(float(one.null.null.std(ddof=1)), 2)}",
            _signed(one.null.gain),
            format_p(one.null.p_value),
        ]
        for one in analysis.nulls
        if one.null is not None
    ]
    text = [
        (
            "A source is exchanged between all patients before training, and the model is trained anew: what it then "
            "reaches, it reaches without the source. Only here has the model had the chance to do without it, so that "
            "a small p-value is evidence that the source helped this model; a large one is no proof that it is "
            "useless. Of a model with one source this tests whether it has learnt anything at all."
        )
    ]
    slow = {one.model: one.reason for one in analysis.nulls if one.null is None}
    if slow:
        text.append(
            "Not run where the retrainings of a source would take longer than was allowed (--null-minutes): "
            + ", ".join(f"{model} ({reason})" for model, reason in slow.items())
            + "."
        )
    items = []
    if done:
        first = done[0].null
        count = 0 if first is None else len(first.null)
        tables["retraining_null"] = Table(
            ("model", "source", "as trained", "without the source", "gain", "p, one-sided"),
            rows,
            f"Out-of-fold figures of the first repeat against {counted(count, 'retraining')} with the source of other "
            "patients (mean ± sd); not adjusted for the number of rows.",
        )
        items.append(tables["retraining_null"])
    return Section("Would a model have done without the source?", text, items)


def training_section(analysis: Analysis) -> Section | None:
    """Curves of everything that was trained in epochs; None where nothing was."""
    courses = {model: _course(some) for model, some in analysis.trainings.items() if any(one.history for one in some)}
    if not courses:
        return None
    count = sum(len(course.loss) for course in courses.values())
    trainings = counted(count, "training")
    if any(course.metric for course in courses.values()):
        caption = (
            f"Loss on training cases (solid) and metric on inner validation cases (dashed) of {trainings}; the dot is "
            "the epoch that was kept."
        )
    else:
        caption = f"Loss on training cases of {trainings}; without inner validation cases the last epoch was kept."
    return Section("Training curves", (), [training_figure(courses, metric="metric", caption=caption)])


def _course(trainings: Sequence[Training]) -> Course:
    shown = [one for one in trainings if one.history]
    metrics, best = [], []
    for one in shown:
        values = _values(one.history)
        if values is not None:
            metrics.append(values)
            best.append(int(one.facts.get("best_epoch", -1)))
    return Course([np.array([line["loss"] for line in one.history], float) for one in shown], metrics, best)


def _values(history: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    for name in MONITORED:
        if any(line.get(name) is not None for line in history):
            return np.array([np.nan if line.get(name) is None else line[name] for line in history], float)
    return None


def _mean_sd(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "–"
    spread = f" ± {finite.std(ddof=1):.3f}" if finite.size > 1 else ""
    return f"{finite.mean():.3f}{spread}"


def _signed(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
