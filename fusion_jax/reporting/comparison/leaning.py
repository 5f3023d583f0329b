"""What trained models lean on: columns, sources, and parts of an image."""

from typing import Any

import numpy as np

from fusion_jax.models.analysis import Analysis
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.explanations import Occlusion
from fusion_jax.reporting.comparison.figures import Heat, heat_figure
from fusion_jax.reporting.comparison.training import metric_name
from fusion_jax.reporting.contact_sheet import picture_of
from fusion_jax.reporting.html import Figure, Section, Table, format_number
from fusion_jax.reporting.strip_figures import importance_figure
from fusion_jax.wording import counted

__all__ = ["case_section", "leaning_section"]

MOST_MODELS = 6
"""Models of a figure; more can no longer be told apart."""


def leaning_section(comparison: Comparison, analysis: Analysis, tables: dict[str, Table]) -> Section | None:
    """Permutation importance and dropped sources; None where neither was asked for."""
    if not analysis.importance and not analysis.dropped:
        return None
    metric = metric_name(comparison)
    items: list[Figure | Table] = []
    if analysis.importance:
        rows: list[list[Any]] = []
        for model, one in analysis.importance.items():
            for place, name in enumerate(one.names):
                rows.append(
                    [model, name, _signed(float(one.median[place])), format_number(float(one.median_error[place]), 2),
                     f"{one.rank[place]:g}"]
                )  # fmt: skip
        count = next(iter(analysis.importance.values())).draws.shape[1]
        people = f"{len(comparison.panel):,} test cases, each scored by the model of its fold"
        tables["importance"] = Table(
            ("model", "column or source", f"loss of {metric}", "Monte-Carlo error", "rank"),
            rows,
            f"Median loss over {counted(count, 'permutation')}; {people}. A source moves as a whole.",
        )
        columns, draws = _shared_columns(comparison, analysis)
        if draws:
            figure = importance_figure(
                draws,
                columns,
                xlabel=f"loss of {metric} when exchanged between patients",
                caption=f"Clinical columns, {counted(count, 'permutation')} each; {people}.",
            )
            items.append(figure)
        items.append(tables["importance"])
    if analysis.dropped:
        rows = []
        for model, one in analysis.dropped.items():
            for name, scores in one.without.items():
                change = np.abs(one.whole - scores)
                rows.append(
                    [model, name, format_number(one.metric[""]), format_number(one.metric[name]),
                     format_number(float(np.median(change)), 2), format_number(float(change.max()), 2)]
                )  # fmt: skip
        tables["dropped_sources"] = Table(
            (
                "model",
                "source left out",
                f"{metric} with all",
                f"{metric} without",
                "median change of a score",
                "largest",
            ),
            rows,
            "The same trained networks when a source is missing for everybody, as they treat a missing source; no row "
            "says how a network trained without it would do.",
        )
        items.append(tables["dropped_sources"])
    text = [
        (
            "Importance is of a column to a trained model, not to the disease: columns that say the same share it, and "
            "a model may lean on a source that another could replace. Whether a source helped is a question for the "
            "paired tests and for the retraining."
        )
    ]
    return Section("What the models lean on", text, items)


def _shared_columns(comparison: Comparison, analysis: Analysis) -> tuple[list[str], dict[str, np.ndarray]]:
    """Columns that are not whole sources, and the draws of the models that read them: fused ones first."""
    whole = {name for model in analysis.importance for name in _wholes(comparison, model)}
    order = [model for model in comparison.fused if model in analysis.importance]
    order += [model for model in analysis.importance if model not in order]
    draws: dict[str, np.ndarray] = {}
    columns: list[str] = []
    for model in order:
        one = analysis.importance[model]
        places = [place for place, name in enumerate(one.names) if name not in whole]
        names = [one.names[place] for place in places]
        if places and (not columns or names == columns) and len(draws) < MOST_MODELS:
            columns = names
            draws[model] = one.draws[places]
    return columns, draws


def _wholes(comparison: Comparison, model: str) -> tuple[str, ...]:
    from fusion_jax.models.fold_models import source_groups

    return tuple(source_groups(comparison.plan.cohort, comparison.plan.sources[model]))


def case_section(comparison: Comparison, analysis: Analysis) -> Section | None:
    """Occlusion maps of a few cases; None where there are none."""
    if not any(analysis.occlusions.values()):
        return None
    figures = []
    for model, maps in analysis.occlusions.items():
        if maps:
            caption = (
                f"{model}: {counted(len({one.row for one in maps}), 'case')} drawn at random; right of each image it "
                "stands under its map. Red: covering the patch takes away from the score; blue: it adds. Every map has "
                "its own scale."
            )
            figures.append(heat_figure([_heat(comparison, one) for one in maps], caption=caption))
    text = [
        (
            "Qualitative. A patch of the image is covered with the image's mean, and the case is scored again by the "
            "model of the fold in which it was tested. A map shows what this score of this model hangs on; it is no "
            "evidence of where the disease is, and nothing was tested."
        )
    ]
    return Section("Single cases", text, figures)


def _heat(comparison: Comparison, one: Occlusion) -> Heat:
    cohort = comparison.plan.cohort
    picture, _, aspect = picture_of(one.image)
    known = f", label {cohort.classes[cohort.label[one.row]]}" if comparison.plan.target.kind == "label" else ""
    line = f"score {one.score:.2f}{known}\nscale ±{np.abs(one.loss).max():.1g}"
    return Heat(f"{cohort.case_id[one.row]}, {one.source}", line, picture, _flat(one), aspect)


def _flat(one: Occlusion) -> np.ndarray:
    """The map on the plane that `picture_of` shows: a projection for SUV, otherwise the middle slab."""
    loss = one.loss
    if loss.ndim == 2:
        return loss
    if one.image.unit == "SUV":
        place = np.abs(loss).argmax(axis=1)
        return np.take_along_axis(loss, place[:, None], axis=1)[:, 0][::-1]
    return loss[loss.shape[0] // 2]


def _signed(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
