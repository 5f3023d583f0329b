"""Clinical models on real tables of liver cancer: survival of one year, progression and overall survival.

python -m experiments.hcc_recurrence.tables                     # survival of one year; the others where data is at hand
python -m experiments.hcc_recurrence.tables --outcomes death

No real table has the paper's label, recurrence after resection. `year` is bundled (132 patients of Coimbra, a label);
`progression` and `death` (84 patients before chemoembolisation, with times) are read from $FUSION_JAX_DATA.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from experiments.command_line import run_from_command_line
from fusion_jax.commands._compare.screen import training_bar
from fusion_jax.commands._shared.screen import progress_bar
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.analysis import analyse
from fusion_jax.models.comparison import Comparison, compare
from fusion_jax.reporting.comparison import write_comparison
from fusion_jax.reporting.evaluation.words import primary_estimates
from fusion_jax.reporting.tables import format_interval

__all__ = ["OUTCOMES", "Config", "compare_outcome", "figures", "run"]

Outcome = Literal["year", "progression", "death"]

TABLE = "experiments.hcc_recurrence.cohort:chemoembolisation"

OUTCOMES: Mapping[str, tuple[Mapping[str, Any], str]] = MappingProxyType(
    {
        "year": ({"load": "hcc_survival"}, "Coimbra: survival of one year"),
        "progression": ({"function": TABLE, "arguments": {"outcome": "progression"}}, "chemoembolisation: progression"),
        "death": ({"function": TABLE, "arguments": {"outcome": "death"}}, "chemoembolisation: overall survival"),
    }
)
"""Outcome to the address of its cohort, and what it is."""

LABELLED = ("clinical-only", "logistic-regression", "random-forest", "gradient-boosting")
SURVIVAL = ("clinical-only", "cox")


@dataclass(frozen=True)
class Config:
    """Clinical models on real tables of liver cancer.

    Attributes:
      outcomes: which; by default all whose data is at hand.
      folds, repeats: of the cross-validation over patients.
      epochs: of the network; the last one is taken, for the tables are too small to set patients aside.
      seed: of the folds.
      resamples: of the patients.
      out: folder of the results.
    """

    outcomes: tuple[Outcome, ...] = ()
    folds: int = 5
    repeats: int = 1
    epochs: int = 30
    seed: int = 0
    resamples: int = 2000
    out: Path = field(default=Path("results/hcc_recurrence/tables"))


def run(config: Config) -> None:
    started = time.perf_counter()
    console = Console()
    shown = Table(title="Real tables, patients pooled over folds")
    for column in ("outcome", "model", "metric", "[95 %]", "patients", "events"):
        shown.add_column(column)
    for outcome in config.outcomes or tuple(OUTCOMES):
        try:
            found = compare_outcome(outcome, config)
        except FileNotFoundError as error:
            if config.outcomes:
                raise
            console.print(f"{OUTCOMES[outcome][1]} left out: {error}", markup=False)
            continue
        for row in figures(found):
            shown.add_row(OUTCOMES[outcome][1], *map(str, row))
        console.print(f"Report: {found.folder / 'report.html'}")
    console.print(shown)
    console.print(f"{time.perf_counter() - started:.0f} s.")


def compare_outcome(outcome: str, config: Config) -> Comparison:
    """Train, judge and report the clinical models of an outcome.

    Raises:
      FileNotFoundError: its table is not at hand.
    """
    address, _ = OUTCOMES[outcome]
    with training_bar() as report:
        found = compare(
            address,
            LABELLED if outcome == "year" else SURVIVAL,
            out=config.out / outcome,
            folds=config.folds,
            repeats=config.repeats,
            split_seed=config.seed,
            settings={"epochs": config.epochs, "features": 16, "head": [16], "learning_rate": 3e-3},
            protocol=Protocol(resamples=config.resamples, permutations=config.resamples, seed=config.seed),
            copies=False,
            report=report,
        )
    with progress_bar("asking the models") as bar:
        write_comparison(found, analyse(found, importance=3, null=0, explained=0, seed=config.seed, report=bar))
    return found


def figures(found: Comparison) -> list[tuple[str, str, str, int, int]]:
    """Model, metric, its interval, patients and events: the AUC, or Harrell's and Uno's C."""
    evaluation, panel = found.evaluation, found.evaluation.panel
    patients = panel.patient_count or len(panel)
    rows = []
    if evaluation.survival is None:
        events = int(panel.labels.sum()) if panel.labels is not None else 0
        for model, row in primary_estimates(evaluation).items():
            rows.append((model, "AUC", format_interval(row.value, row.low, row.high), patients, events))
        return rows
    events = int(panel.event.sum()) if panel.event is not None else 0
    judged = evaluation.survival.comparison
    for number, model in enumerate(evaluation.view.models):
        for metric, name in (("harrell", "Harrell's C"), ("uno", "Uno's C")):
            value, ends = getattr(judged.estimates, metric)[number], getattr(judged.intervals, metric)
            interval = format_interval(float(value), float(ends.low[number]), float(ends.high[number]))
            rows.append((model, name, interval, patients, events))
    return rows


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__)
