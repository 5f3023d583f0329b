"""Survival metrics and curves."""

from typing import Any

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.estimates import title
from fusion_jax.reporting.evaluation.words import CONDITION, people, verdict
from fusion_jax.reporting.html import Figure, Section, Table
from fusion_jax.reporting.survival_figures import SurvivalCurve, kaplan_meier_figure
from fusion_jax.reporting.tables import format_interval, format_p, format_percent, p_text
from fusion_jax.wording import counted

__all__ = ["survival_section", "survival_summary"]


def survival_summary(found: Evaluation) -> tuple[str, ...]:
    """Harrell's C of every model; nothing without times."""
    if found.survival is None:
        return ()
    comparison = found.survival.comparison
    values = [f"{model} {_survival_cell(comparison, 'harrell', i)}" for i, model in enumerate(found.view.models)]
    return (f"Harrell's C: {'; '.join(values)}.",)


def survival_section(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Survival metrics, differences and curves; None without times."""
    survival = found.survival
    if survival is None or found.panel.time is None or found.panel.event is None:
        return None
    comparison = survival.comparison
    names = ["Harrell's C", f"Uno's C to {survival.horizons[-1]:g}"]
    names += [f"AUC at {horizon:g}" for horizon in survival.horizons] + ["mean AUC"]
    rows = []
    for number, model in enumerate(found.view.models):
        cells: list[Any] = [model]
        cells += [_survival_cell(comparison, part, number) for part in ("harrell", "uno")]
        cells += [_survival_cell(comparison, "auc", number, at) for at in range(len(survival.horizons))]
        cells.append(_survival_cell(comparison, "mean_auc", number))
        rows.append(cells)
    level = format_percent(found.protocol.level, 0)
    tables["survival"] = Table(
        ("model", *names),
        rows,
        f"Survival, {people(found)}, {counted(int(found.panel.event.sum()), 'event')}; {level} percentile intervals "
        f"over {counted(comparison.patients, 'patient' if found.panel.patients is not None else 'row')}, "
        f"{found.protocol.resamples:,} resamples, {CONDITION}. Censoring: {comparison.metrics[0].censoring}.",
    )
    items: list[Figure | Table] = [tables["survival"]]
    pairs = [row for row in found.comparisons if row.metric in ("harrell_c", "uno_c")]
    if pairs:
        tables["survival_differences"] = Table(
            ("models", "metric", "difference [interval]", "p", "p, Holm"),
            [
                [f"{row.first} – {row.second}", title(row.key, found.protocol),
                 format_interval(row.difference, row.low, row.high, signed=True), format_p(row.p_value),
                 format_p(row.p_holm)]
                for row in pairs
            ],
            "Paired differences from the same resamples (bootstrap z-test); Holm over pairs of models for each metric.",
        )  # fmt: skip
        items.append(tables["survival_differences"])
    for model, groups in survival.groups.items():
        curves = {}
        for number, curve in enumerate(groups.curves):
            rows_of = groups.groups.group == number
            curves[groups.groups.names[number]] = SurvivalCurve(
                curve.times, curve.survival, curve.low, curve.high, found.panel.time[rows_of],
                found.panel.event[rows_of],
            )  # fmt: skip
        items.append(
            kaplan_meier_figure(
                curves,
                xlabel="time (unit of the table)",
                ylabel="free of the event",
                caption=f"Groups of risk of {model}: {groups.groups.origin}. Log-rank p "
                f"{p_text(groups.log_rank.p_value)}, of groups that the same rows made where cut-offs were read off "
                "them.",
            )
        )
    told = verdict(found) if found.protocol.primary in ("harrell_c", "uno_c") else ()
    return Section("Survival", [*told, *survival.notes], items)


def _survival_cell(comparison: Any, part: str, *index: int) -> str:
    value, ends = getattr(comparison.estimates, part), getattr(comparison.intervals, part)
    return format_interval(float(value[index]), float(ends.low[index]), float(ends.high[index]))
