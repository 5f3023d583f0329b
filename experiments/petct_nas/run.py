"""Searches, trains and judges every row of the paper's tables, and writes one report."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.command_line import run_from_command_line
from experiments.petct_nas.cohort import address
from experiments.petct_nas.config import PRESETS, Config, Settings
from experiments.petct_nas.models import CHOICE, SANITY, SINGLES, rows_of, variants_of
from experiments.petct_nas.report import Study, screen, write_results
from fusion_jax.commands._compare.screen import training_bar
from fusion_jax.commands._shared.screen import progress_bar
from fusion_jax.evaluation.classification import auc
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.analysis import analyse
from fusion_jax.models.comparison import Comparison, compare
from fusion_jax.models.registry import RECIPES
from fusion_jax.records import write_json
from fusion_jax.training.executors import spawned

__all__ = ["run"]

SECONDS = "seconds.json"


def run(config: Config, settings: Settings | None = None) -> Path:
    """Run what the config names; returns the path of the report.

    Args:
      config: of the run.
      settings: other settings than those of the preset, for tests.
    """
    clock = [time.perf_counter()]
    settings = settings or PRESETS[config.preset]
    out = config.out / f"{config.preset}-{config.order}"
    console = Console()
    rows, variants = rows_of(settings, config.order), variants_of(settings, config.order)
    main = _compared(config, settings, out, {name: row.choice for name, row in rows.items()}, SINGLES)
    clock.append(time.perf_counter())
    choice = None
    if config.choice:
        tuned = {"recipe": "tuned", "arguments": {"candidates": variants, "folds": settings.inner_folds}}
        beside = {name: rows[name].choice for name in SANITY}
        choice = _compared(config, settings, out / "choice", {CHOICE: tuned, **beside}, SANITY)
    clock.append(time.perf_counter())
    permuted = _permuted(config, settings, out / "permuted", variants) if config.permuted else {}
    clock.append(time.perf_counter())
    with progress_bar("asking the models") as bar:
        analysis = analyse(main, importance=0, null=0, explained=0, seed=config.seed, report=bar)
    seconds: dict[str, float] = dict(
        zip(("rows", "choice", "permuted labels"), np.diff(clock).round(1).tolist(), strict=True)
    )
    # A call that only writes the report again must not pass for the run.
    before = json.loads((out / SECONDS).read_text(encoding="utf-8")) if (out / SECONDS).exists() else {}
    seconds = {part: max(value, before.get(part, 0.0)) for part, value in seconds.items()}
    write_json(out / SECONDS, seconds)
    study = Study(main, choice, permuted, analysis, rows, variants, dataclasses.asdict(config), seconds)
    path = write_results(study, out)
    console.print(screen(study))
    for one in (*main.failed, *(choice.failed if choice is not None else ())):
        console.print(f"Failed: {one.task.model}, fold {one.task.fold}: {one.message}", markup=False)
    console.print(f"{sum(seconds.values()):.0f} s. Report: {path}")
    return path


def _compared(
    config: Config, settings: Settings, out: Path, models: Mapping[str, Any], singles: tuple[str, ...]
) -> Comparison:
    with training_bar() as bar:
        return compare(
            address(spacing=settings.spacing, size=settings.size),
            models,
            out=out,
            folds=settings.folds,
            seeds=config.seeds,
            split_seed=config.seed,
            protocol=Protocol(
                singles=tuple(name for name in singles if name in models),
                resamples=settings.resamples,
                seed=config.seed,
                least_cell=10,
            ),
            executor_factory=spawned(config.workers) if config.workers > 1 else None,
            report=bar,
        )


def _permuted(
    config: Config, settings: Settings, out: Path, variants: Mapping[str, Any]
) -> dict[int, dict[str, float]]:
    """Pooled AUC of every variant where labels say nothing, by the seed of the permutation."""
    networks = {name for name, one in variants.items() if _is_network(one["recipe"])}
    found: dict[int, dict[str, float]] = {}
    for number in range(settings.permuted_tables):
        whole = number < settings.permuted_networks
        asked = {name: one for name, one in variants.items() if whole or name not in networks}
        with training_bar() as bar:
            comparison = compare(
                address(config.seed + number, spacing=settings.spacing, size=settings.size),
                asked,
                out=out / f"seed{config.seed + number}",
                folds=settings.folds,
                split_seed=config.seed,
                protocol=Protocol(resamples=100, seed=config.seed, least_cell=10),
                executor_factory=spawned(config.workers) if config.workers > 1 and whole else None,
                copies=False,
                report=bar,
            )
        view, labels = comparison.evaluation.view, np.asarray(comparison.panel.labels)
        found[config.seed + number] = {
            model: float(auc(labels, view.scores[place])) for place, model in enumerate(view.models)
        }
    return found


def _is_network(recipe: str) -> bool:
    return RECIPES[recipe].kind in ("deep", "searched")


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__)
