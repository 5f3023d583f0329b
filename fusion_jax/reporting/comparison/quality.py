"""How balanced the fused layers of the trained networks were, beside how well the networks did."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.models.analysis import Analysis, Training
from fusion_jax.models.comparison import Comparison
from fusion_jax.reporting.comparison.figures import Balance, quality_figure
from fusion_jax.reporting.comparison.training import metric_name
from fusion_jax.reporting.evaluation.words import primary_estimates
from fusion_jax.reporting.figures import density_figure
from fusion_jax.reporting.html import Figure, Section, Table, format_number
from fusion_jax.reporting.tables import format_interval
from fusion_jax.wording import counted

__all__ = ["quality_section"]

CASES, RECORD, DENSITIES = "quality_cases.csv", "quality.json", "quality_densities.npz"

GAP = "scale_free_gap"


def quality_section(comparison: Comparison, analysis: Analysis, tables: dict[str, Table]) -> Section | None:
    """Gaps, sizes and overlaps beside the metric; None where no network fuses features of two sources."""
    found = {
        model: {one.task: record for one in some if (record := _means(one.folder))}
        for model, some in analysis.trainings.items()
    }
    found = {model: records for model, records in found.items() if records}
    if not found:
        return None
    metric = metric_name(comparison)
    estimates = primary_estimates(comparison.evaluation)
    rows: list[list[Any]] = []
    for model, records in found.items():
        estimate = estimates.get(model)
        for pair in _pairs(next(iter(records.values()))):
            first, second = pair.split("/")
            rows.append(
                [
                    model,
                    f"{first}, {second}",
                    _mean(records, f"gamma/{pair}"),
                    _mean(records, f"energy_gap/{pair}"),
                    _mean(records, f"{GAP}/{pair}"),
                    _mean(records, f"overlap/{first}"),
                    _mean(records, f"overlap/{second}"),
                    "–" if estimate is None else format_interval(estimate.value, estimate.low, estimate.high),
                ]
            )
    counts = sorted({len(records) for records in found.values()})
    count = counted(counts[0], "training") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} trainings"
    tables["fusion_quality"] = Table(
        ("model", "sources", "γ", "energy gap ΔE", "scale-free gap", "overlap of the first", "overlap of the second",
         comparison.evaluation.protocol.primary.replace("auc", "AUC")),
        rows,
        f"Fusion quality of the fused layer on test cases, mean over {count} of each model; features scaled per "
        "source on training cases, Scott's bandwidth. γ: size of the second source relative to the first; the gap is "
        "positive where the first source dominates, and 0 where both hold the same energy.",
    )  # fmt: skip
    items: list[Figure | Table] = [tables["fusion_quality"]]
    balances = _balances(comparison, analysis, found)
    if balances:
        items.append(
            quality_figure(
                balances,
                xlabel="size of the scale-free energy gap, test cases",
                ylabel=f"{metric} of the fold",
                caption="Balance of the fused layer beside the metric: a small dot a training, a large one the mean of "
                "a model. Of so few trainings no relation can be proved.",
            )
        )
    items += _densities(analysis, found)
    text = [
        (
            "Measured on the features of every source as they enter the fusion. Balance describes a trained network; "
            "that a balanced fusion is a better one is a hypothesis (Wang 2023), which the figure lets you look at and "
            "does not test."
        )
    ]
    return Section("Balance of the fusion", text, items)


def _means(folder: Path) -> dict[str, float]:
    """Means over the test cases of a training; nothing where it has measured none."""
    if not (folder / CASES).exists():
        return {}
    import pandas as pd

    table: Any = pd.read_csv(folder / CASES)
    return {str(name): float(table[name].mean()) for name in table.columns if name != "case_id"}


def _typical(folder: Path) -> str:
    return str(json.loads((folder / RECORD).read_text(encoding="utf-8")).get("typical_case", ""))


def _pairs(record: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix("gamma/") for name in record if name.startswith("gamma/")]


def _mean(records: Mapping[Any, Mapping[str, Any]], name: str) -> str:
    values = [record[name] for record in records.values() if name in record]
    return format_number(float(np.mean(values))) if values else "–"


def _balances(comparison: Comparison, analysis: Analysis, found: Mapping[str, Mapping[Any, Any]]) -> list[Balance]:
    """Gap and metric of the first training of every fold, which the gaps between training and test cases know."""
    made = comparison.plan
    folds = [split.fold for split in made.splits.splits if split.repeat == made.splits.splits[0].repeat]
    balances = []
    for gap in analysis.gaps:
        values, metrics = [], []
        for task, record in found.get(gap.model, {}).items():
            first = task.repeat == made.splits.splits[0].repeat and task.seed == made.seeds[0]
            sizes = [abs(value) for name, value in record.items() if name.startswith(f"{GAP}/")]
            if first and sizes:
                values.append(float(np.mean(sizes)))
                metrics.append(float(gap.test[folds.index(task.fold)]))
        if values:
            balances.append(Balance(gap.model, np.array(values), np.array(metrics)))
    return balances


def _densities(analysis: Analysis, found: Mapping[str, Mapping[Any, Any]]) -> list[Figure]:
    """Densities of a typical case of the first training of every model."""
    figures = []
    for model in found:
        first: Training = analysis.trainings[model][0]
        path = first.folder / DENSITIES
        if not path.exists():
            continue
        with np.load(path, allow_pickle=False) as file:
            densities = {name.removeprefix("source/"): file[name] for name in file.files if name.startswith("source/")}
            grid, fused = file["grid"], file["fused"]
        case = _typical(first.folder)
        figures.append(
            density_figure(
                grid,
                densities,
                fused,
                xlabel="scaled feature",
                caption=f"{model}: densities of the sources in the fused layer, test case {case} whose energy gap is "
                f"the median of fold {first.task.fold}.",
            )
        )
    return figures
