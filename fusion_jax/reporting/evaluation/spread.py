"""What folds, trainings and parts of the cohort do to the figures."""

import math

import numpy as np

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.estimates import MetricKey, title
from fusion_jax.evaluation.operating import READ_OFF
from fusion_jax.reporting.evaluation.words import (
    named,
    people,
)
from fusion_jax.reporting.forest_figures import Subgroup, subgroup_forest_figure
from fusion_jax.reporting.html import Figure, Section, Table
from fusion_jax.reporting.strip_figures import fold_strip_figure
from fusion_jax.reporting.tables import format_interval

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
        metric = found.folds[0].metric
        values: dict[str, np.ndarray] = {}
        rows = []
        for model in dict.fromkeys(row.model for row in found.folds):
            mine = [row for row in found.folds if (row.model, row.metric) == (model, metric)]
            trainings = list(dict.fromkeys(row.training for row in mine))
            folds = list(dict.fromkeys(row.fold for row in mine))
            grid = np.full((len(trainings), len(folds)), np.nan)
            for row in mine:
                grid[trainings.index(row.training), folds.index(row.fold)] = row.value
            values[model] = grid
            known = grid[~np.isnan(grid)]
            sd = float(known.std(ddof=1)) if known.size > 1 else math.nan
            rows.append([model, len(trainings), len(folds), float(known.mean()) if known.size else math.nan, sd])
        name = title(MetricKey(metric), found.protocol)
        sizes = [row.rows for row in found.folds]
        span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        tables["folds"] = Table(
            ("model", "trainings", "folds", f"mean {name}", "sd"),
            rows,
            f"{name} over folds of {span} rows; sd of a sample (ddof 1), a spread and no standard error.",
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


def subgroups(found: Evaluation, tables: dict[str, Table]) -> Section | None:
    """Figures in parts of the cohort; None where none were asked for."""
    if not found.cells:
        return None
    least = found.protocol.least_cell
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
                "rows, or fewer than five of a class, are withheld.",
            )
        )
    tables["subgroups"] = Table(
        ("column", "part", "model", "figure", "rows", "events", "value [interval]",
         f"AUC less that of {found.view.models[0]}"),
        [
            [cell.column, cell.value, cell.model, named(MetricKey(cell.metric, cell.rule), found),
             "–" if cell.withheld else cell.rows, "–" if cell.withheld else cell.events,
             f"withheld: {cell.withheld}" if cell.withheld else format_interval(cell.estimate, cell.low, cell.high),
             "–" if math.isnan(cell.difference)
             else format_interval(cell.difference, cell.difference_low, cell.difference_high, signed=True)]
            for cell in found.cells
            if cell.rule != READ_OFF
        ],
        "Subgroups. No interaction was tested and nothing was adjusted for their number; that an interval contains a "
        "value in one part and not in another is no evidence that the parts differ.",
    )  # fmt: skip
    items.append(tables["subgroups"])
    text = ["Covariates were joined by case."]
    withheld = {(cell.column, cell.value) for cell in areas if cell.withheld}
    if any(sum(column == one for one, _ in withheld) == 1 for column, _ in withheld):
        text.append("Where one part alone is withheld, its size follows from the total: do not print both.")
    return Section("Subgroups", text, items)
