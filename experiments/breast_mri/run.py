"""Trains the seven models, the variants and the audit on a cohort, and writes one report."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as ScreenTable

from experiments.breast_mri.config import PRESETS, Config, Settings
from experiments.breast_mri.importance import FOUR, feature_importance
from experiments.breast_mri.results import (
    AUC,
    PAPER,
    SPECIFICITY,
    Best,
    best_runs,
    figure,
    importance_ranks_of,
    importance_section,
    side_section,
    table_section,
    tests_section,
)
from experiments.breast_mri.study import Study, open_study, side_models, table_models
from experiments.command_line import Told, of_trainings, progress_bars, run_from_command_line
from fusion_jax.data import Cohort, given
from fusion_jax.data.splits import Splits
from fusion_jax.evaluation.importance import Importance
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.analysis import Analysis, read_trainings
from fusion_jax.models.comparison import PREDICTIONS, Comparison, compare
from fusion_jax.records import run_record, write_json
from fusion_jax.reporting.comparison.report import comparison_additions
from fusion_jax.reporting.evaluation.results import write_evaluation
from fusion_jax.reporting.html import Section, Table
from fusion_jax.training.cross_validation import Task
from fusion_jax.training.executors import spawned

__all__ = ["run"]


def run(config: Config, settings: Settings | None = None) -> Path:
    """Run what the config names; returns the path of the report.

    Args:
      config: of the run.
      settings: other settings than those of the preset, for tests.
    """
    started = time.perf_counter()
    settings = settings or PRESETS[config.preset]
    study = open_study(config, settings)
    out = config.out / f"{study.name}-{config.preset}"
    console = Console()
    with progress_bars(console) as told:
        side, comparison = compared(config, settings, study, out, told)
        told("judging the best runs", 0, 1)
        best = best_runs(comparison)
        told("judging the best runs", 1, 1)
        importances = importances_of(comparison, best, settings, config.seed, told)
        seconds = time.perf_counter() - started
        report = write_results(config, study, comparison, best, side, importances, seconds)
    console.print(screen(comparison, best, study))
    console.print(f"{seconds:.0f} s. Report: {report}")
    return report


def compared(
    config: Config, settings: Settings, study: Study, out: Path, told: Told
) -> tuple[Comparison | None, Comparison]:
    """Variants and audit with what they are compared with, and the models of the paper's table; in one folder.

    The seven models come last, so that the folder is theirs; what both have in common is trained once.
    """
    shared: dict[str, Any] = {
        "out": out,
        "draw": parts,
        "protocol": Protocol(resamples=settings.resamples, seed=config.seed),
        "executor_factory": spawned(config.workers) if config.workers > 1 else None,
    }

    beside = side_models(study, settings)
    side = None
    if beside:
        seeds = range(settings.side_seeds)
        side = compare(study.address, beside, seeds=seeds, report=of_trainings(told, "variants and audit"), **shared)
    models = table_models(study, settings)
    covariates = study.covariates
    seeds = range(settings.seeds)
    main = of_trainings(told, "models of the table")
    return side, compare(study.address, models, seeds=seeds, covariates=covariates, report=main, **shared)


def parts(cohort: Cohort) -> Splits:
    """The training, validation and test part that come with the cohort."""
    return given(cohort, "split")


def importances_of(
    comparison: Comparison, best: Best, settings: Settings, seed: int, told: Told
) -> dict[str, Importance]:
    """Permutation importance of every feature in the best run of the four models."""
    made = comparison.plan
    [split] = made.splits.splits
    asked = [model for model in FOUR if model in comparison.models]
    found = {}
    for number, model in enumerate(asked):
        told("permutation importance", number, len(asked))
        folder = made.task_folder(Task(model, split.repeat, split.fold, best.seeds[model]))
        found[model] = feature_importance(
            folder,
            made.cohort,
            split,
            permutations=settings.permutations,
            seed=seed,
            resamples=settings.resamples // 10,
        )
    told("permutation importance", len(asked), len(asked))
    return found


def write_results(
    config: Config,
    study: Study,
    comparison: Comparison,
    best: Best,
    side: Comparison | None,
    importances: Mapping[str, Importance],
    seconds: float,
) -> Path:
    """The report of the comparison, with the paper's tables before everything else."""
    tables: dict[str, Table] = {}
    sections: list[Section | None] = [
        table_section(comparison, best, study, tables),
        tests_section(comparison, best, study, tables),
        *side_section(side, study, tables),
        importance_section(importances, comparison.evaluation, study, tables),
    ]
    usual = comparison_additions(comparison, Analysis(read_trainings(comparison)))
    summary = list(usual.summary)
    if side is not None and side.failed:
        failed = sorted({one.task.model for one in side.failed})
        summary.append(f"Variants that could not be trained and are left out: {', '.join(failed)}.")
    additions = usual._replace(
        title=f"Breast MRI with clinical and technical features: {study.what}",
        summary=summary,
        first=[*(section for section in sections if section is not None), *usual.first],
        tables={**usual.tables, **tables},
    )
    report = write_evaluation(
        comparison.folder,
        [comparison.evaluation],
        paths=[str(comparison.folder / PREDICTIONS)],
        config={"experiment": {**dataclasses.asdict(config), "out": str(config.out)}, "cohort": dict(study.address)},
        additions=additions,
    )
    order = importance_ranks_of(importances).order if importances else np.zeros(0, int)
    names = next(iter(importances.values())).names if importances else ()
    write_json(
        comparison.folder / "results.json",
        {
            "seconds": seconds,
            "record": run_record(),
            "best_seeds": dict(best.seeds),
            "validation_auc": dict(best.validation_auc),
            "importance": {
                model: dict(zip(one.names, one.median.tolist(), strict=True)) for model, one in importances.items()
            },
            "importance_order": [names[place] for place in order],
            "tables": {
                name: {"columns": list(one.columns), "rows": [list(row) for row in one.rows]}
                for name, one in tables.items()
            },
        },
    )
    return report


def screen(comparison: Comparison, best: Best, study: Study) -> ScreenTable:
    """The paper's table in short."""
    shown = ScreenTable(title=f"{study.what}: AUC [95 %] and specificity at 95 % sensitivity")
    for column in ("model", "best run", "ensemble", "specificity, %", "paper: ensemble"):
        shown.add_column(column)
    for model in comparison.models:
        shown.add_row(
            model.replace("[", r"\["),
            figure(best.evaluation, model, AUC),
            figure(comparison.evaluation, model, AUC),
            figure(comparison.evaluation, model, SPECIFICITY),
            PAPER[model][2] if model in PAPER else "–",
        )
    return shown


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__)
