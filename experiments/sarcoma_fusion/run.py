"""Compares models of the bundled sarcoma cohort, and writes one report."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as ScreenTable

from experiments.command_line import run_from_command_line
from experiments.sarcoma_fusion import report
from experiments.sarcoma_fusion.cohort import ADDRESS
from experiments.sarcoma_fusion.config import SINGLES, SURVIVAL_SINGLES, Config, label_models, survival_models
from experiments.sarcoma_fusion.single_numbers import single_numbers
from fusion_jax.commands._compare.screen import print_plan, training_bar
from fusion_jax.commands._shared.screen import progress_bar
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.analysis import Analysis, analyse
from fusion_jax.models.comparison import PREDICTIONS, Comparison, carry_out, plan
from fusion_jax.records import write_json
from fusion_jax.reporting.comparison import comparison_additions, write_comparison
from fusion_jax.reporting.evaluation.results import write_evaluation
from fusion_jax.reporting.evaluation.words import primary_estimates
from fusion_jax.reporting.figures import save_figure
from fusion_jax.reporting.html import Section
from fusion_jax.reporting.tables import format_interval
from fusion_jax.training.executors import spawned

TITLE = "Did fusion help? PET-CT and clinical data of 48 patients with sarcoma"
MARGIN = 0.05


def run(config: Config) -> Path:
    """Compare, judge and write everything; returns the path of the report."""
    clock = [time.perf_counter()]
    label = compared(config, "label", config.out)
    clock.append(time.perf_counter())
    survival = compared(config, "survival", config.out / "time_to_metastasis") if config.survival else None
    clock.append(time.perf_counter())
    with progress_bar("asking the models") as bar:
        analysis = analyse(
            label,
            importance=config.importance,
            null=config.null,
            null_minutes=config.null_minutes,
            explained=config.explained,
            seed=config.seed,
            report=bar,
        )
        bar(1, 1, "writing the report")
        if survival is not None:
            write_comparison(survival, analyse(survival, importance=0, null=0, explained=0, seed=config.seed))
        page = write_results(config, label, analysis, survival)
    clock.append(time.perf_counter())
    parts = ("distant metastasis", "time to metastasis", "analyses and report")
    write_json(config.out / "seconds.json", dict(zip(parts, np.diff(clock).round(1).tolist(), strict=True)))
    console = Console()
    console.print(_screen_table(label))
    console.print(report.separable(label.evaluation))
    console.print(f"Report: {page}", soft_wrap=True)
    return page


def compared(config: Config, task: Any, out: Path) -> Comparison:
    """One comparison, of the label or of the time to metastasis; both have the same folds."""
    models, singles = (label_models(), SINGLES) if task == "label" else (survival_models(), SURVIVAL_SINGLES)
    if config.epochs is not None:
        for one in models.values():
            if "epochs" in one["arguments"]:
                one["arguments"]["epochs"] = config.epochs
    made = plan(
        ADDRESS,
        models,
        out=out,
        folds=config.folds,
        repeats=config.repeats,
        split_seed=config.seed,
        seeds=(config.seed,),
        task=task,
        protocol=Protocol(
            singles=tuple(name for name in singles if name in models),
            margin=MARGIN if task == "label" else None,
            resamples=config.resamples,
            seed=config.seed,
            least_cell=10,
        ),
    )
    print_plan(made)
    with training_bar() as bar:
        return carry_out(made, executor_factory=spawned(config.workers) if config.workers > 1 else None, report=bar)


def write_results(config: Config, label: Comparison, analysis: Analysis, survival: Comparison | None) -> Path:
    """The report of the comparison, with what else is known of these patients."""
    found = label.evaluation
    additions = comparison_additions(label, analysis)
    numbers = report.numbers_section(single_numbers(label.plan.cohort, folds=config.folds), config.folds)
    figure = report.auc_figure(found, SINGLES)
    limits = report.limits(label)
    last = [*additions.last]
    if survival is not None:
        last.append(report.survival_section(survival, "time_to_metastasis/report.html"))
    save_figure(figure, config.out / "figures" / "auc.svg")
    overview = Section("All models", [report.separable(found), *limits], [figure])
    return write_evaluation(
        config.out,
        [found],
        paths=[str(config.out / PREDICTIONS)],
        config={name: str(value) if name == "out" else value for name, value in asdict(config).items()},
        additions=additions._replace(
            title=TITLE,
            summary=[report.separable(found), limits[0], *additions.summary],
            first=[overview, numbers, *additions.first],
            last=last,
            tables={**additions.tables, "single_numbers": numbers.items[0]},
        ),
    )


def _screen_table(label: Comparison) -> ScreenTable:
    table = ScreenTable(title="Distant metastasis, 48 patients", title_justify="left")
    for column in ("model", "AUC [95 % interval]", "gain over the hardest single", "helped?"):
        table.add_column(column)
    benefits = {one.model: one for one in label.evaluation.benefits}
    for model, row in primary_estimates(label.evaluation).items():
        one = benefits.get(model)
        table.add_row(
            model,
            format_interval(row.value, row.low, row.high),
            "" if one is None else format_interval(one.gain, one.low, one.high, signed=True),
            "" if one is None else ("yes" if one.helped else "not shown"),
        )
    return table


if __name__ == "__main__":
    run_from_command_line(Config, run, Config.__doc__)
