"""What folds, trainings and parts of the cohort do to the figures."""

import math

import numpy as np

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.estimates import MetricKey, title
from fusion_jax.evaluation.operating import READ_OFF
from fusion_jax.evaluation.subgroups import Cell
from fusion_jax.reporting.evaluation.words import (
    named,
    people,
)
from fusion_jax.reporting.forest_figures import Subgroup, subgroup_forest_figure
from fusion_jax.reporting.html import Figure, Section, Table
from fusion_jax.reporting.strip_figures import fold_strip_figure
from fusion_jax.reporting.tables import Shown, format_interval

__all__ = ["stability", "subgroups"]


def stability(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Spread over folds, partitions and seeds; None where there is one training without folds."""
    if not found.folds and not found.trainings:
        return None
    items: list[Figure | Table] = []
    text = [
        (
            "Intervals elsewhere in this report are over patients, with the trained models as they are. Here is what "
            "another partition or another seed does to the same figures."
        )
    ]
    if found.trainings:
        tables["trainings"] = Table(
            ("model", "metric", "trainings", "mean", "sd", "least", "most", "of their mean score"),
            [
                [one.model, title(MetricKey(one.metric), found.protocol), one.trainings, one.mean, one.sd, one.least,
                 one.most, one.of_ensemble]
                for one in found.trainings
            ],
            f"Over repeats and seeds, each on all {people(found)}. The mean score of several trainings is an ensemble: "
            "another model, usually the better one.",
        )  # fmt: skip
        items.append(tables["trainings"])
    if found.folds:
        metrics = list(dict.fromkeys(row.metric for row in found.folds))
        values: dict[str, np.ndarray] = {}
        rows: list[list[str | int]] = []
        for model in dict.fromkeys(row.model for row in found.folds):
            grids = {metric: _grid(found, model, metric) for metric in metrics}
            values[model] = grids[metrics[0]]
            rows.append([model, grids[metrics[0]].size, *(_mean_sd(grids[metric]) for metric in metrics)])
        name = title(MetricKey(metrics[0]), found.protocol)
        sizes = [row.rows for row in found.folds]
        span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        cut = found.protocol.threshold if found.protocol.threshold is not None else 0.5
        tables["folds"] = Table(
            ("model", "folds", *(title(MetricKey(metric), found.protocol) for metric in metrics)),
            rows,
            f"Mean ± sd over folds of {span} rows, of every training; sd of a sample (ddof 1), a spread and no "
            f"standard error. Decisions at the threshold {cut:g}.",
        )
        items += [
            tables["folds"],
            fold_strip_figure(
                values,
                xlabel=name,
                replicate="training",
                caption=f"{name} in folds of {span} rows, mean ± sd. The spread is no interval: folds share their "
                "training cases.",
            ),
        ]
    return Section("Folds, partitions and seeds", text, items)


def _grid(found: Evaluation, model: str, metric: str) -> np.ndarray:
    """A metric of a model, trainings in rows and folds in columns; NaN where there is none."""
    mine = [row for row in found.folds if (row.model, row.metric) == (model, metric)]
    trainings = list(dict.fromkeys(row.training for row in mine)) or [""]
    folds = list(dict.fromkeys(row.fold for row in mine)) or [""]
    grid = np.full((len(trainings), len(folds)), np.nan)
    for row in mine:
        grid[trainings.index(row.training), folds.index(row.fold)] = row.value
    return grid


def _mean_sd(grid: np.ndarray) -> str:
    known = grid[~np.isnan(grid)]
    if not known.size:
        return "–"
    return f"{known.mean():.3f} ± {known.std(ddof=1):.3f}" if known.size > 1 else f"{known[0]:.3f}"


def subgroups(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Figures in parts of the cohort; None where none were asked for."""
    if not found.cells:
        return None
    least = found.protocol.least_cell
    whom = "rows" if found.panel.patients is None else "patients"
    items: list[Figure | Table] = []
    areas = [cell for cell in found.cells if cell.metric == "auc"]
    overall = found.judged.values[MetricKey("auc")] if found.judged is not None else None
    for number, model in enumerate(found.view.models):
        mine = [cell for cell in areas if cell.model == model]
        items.append(
            subgroup_forest_figure(
                [
                    Subgroup(
                        cell.column,
                        cell.value,
                        cell.rows,
                        cell.events,
                        cell.estimate,
                        cell.low,
                        cell.high,
                        cell.withheld,
                    )
                    for cell in mine
                ],
                minimum=least,
                xlabel="AUC",
                overall=None if overall is None else float(overall[number]),
                text=format_interval,
                caption=f"AUC of {model} in parts of the cohort, DeLong's interval (logit scale)"
                f"{' over patients' if found.panel.clustered else ''}; line: all rows. Parts of fewer than {least} "
                f"{whom}, or fewer than five of a class, are withheld.",
            )
        )
    tables["subgroups"] = _subgroup_table(found)
    items.append(tables["subgroups"])
    text = ["Covariates were joined by case."]
    withheld = {(cell.column, cell.value) for cell in areas if cell.withheld}
    if any(sum(column == one for one, _ in withheld) == 1 for column, _ in withheld):
        text.append("Where one part alone is withheld, its size follows from the total: do not print both.")
    return Section("Subgroups", text, items)


def _subgroup_table(found: Evaluation) -> Table:
    """A row for each part and figure, models side by side, and below areas their differences from the first."""
    models = found.view.models
    cells = {(cell.column, cell.value, cell.metric, cell.rule, cell.model): cell for cell in found.cells}
    rows: list[list[str | int | float]] = []
    for column, value, metric, rule in dict.fromkeys(key[:4] for key in cells if key[3] != READ_OFF):
        mine = [cells.get((column, value, metric, rule, model)) for model in models]
        known = next(cell for cell in mine if cell is not None)
        part = [column, value, "–" if known.withheld else known.rows, "–" if known.withheld else known.events]
        rows.append([*part, named(MetricKey(metric, rule), found), *map(_subgroup_value, mine)])
        if any(cell is not None and not math.isnan(cell.difference) for cell in mine):
            rows.append([*part, f"AUC less that of {models[0]}", *map(_subgroup_difference, mine)])
    return Table(
        ("column", "part", "rows", "events", "figure", *models),
        rows,
        "Subgroups. No interaction was tested and nothing was adjusted for their number; that an interval contains a "
        "value in one part and not in another is no evidence that the parts differ.",
    )


def _subgroup_value(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"withheld: {cell.withheld}" if cell.withheld else format_interval(cell.estimate, cell.low, cell.high)


def _subgroup_difference(cell: Cell | None) -> str:
    if cell is None or math.isnan(cell.difference):
        return Shown("–", {"": math.nan})
    return format_interval(cell.difference, cell.difference_low, cell.difference_high, signed=True)
