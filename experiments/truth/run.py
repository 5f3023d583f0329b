"""Runs the truth tests and writes their table."""

import logging
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.command_line import run_from_command_line
from experiments.truth.config import FUSED, SCENARIOS, Config
from experiments.truth.study import (
    Limit,
    Tally,
    at_large_n,
    largest_chance_rate,
    smallest_chance_rate,
    tally,
)
from fusion_jax.data.synthetic import Signal, bayes_auc
from fusion_jax.records import run_record, write_csv, write_json

SMALL = 2_000
"""Cases of the smaller of the two large cohorts: half of them train."""


def run(config: Config) -> Path:
    """Run all scenarios; returns the folder of the results."""
    console, start = Console(), time.monotonic()
    tallies: list[Tally] = []
    limits: list[tuple[int, Limit]] = []
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for scenario in SCENARIOS:
            cohorts = config.helped_cohorts if scenario.helps else config.cohorts
            bar = progress.add_task(scenario.name, total=cohorts)
            tallies.append(
                tally(
                    scenario,
                    cohorts,
                    folds=config.folds,
                    seed=config.seed,
                    bootstrapped=config.bootstrapped,
                    advance=lambda bar=bar: progress.advance(bar),
                )
            )
        helpful = [scenario for scenario in SCENARIOS if scenario.helps]
        bar = progress.add_task("many cases", total=2 * len(helpful))
        for scenario in helpful:
            for n in (SMALL, config.large):
                limits += [(n, limit) for limit in at_large_n(scenario, n, seed=config.seed)]
                progress.advance(bar)
    rates, areas = [_row(one) for one in tallies], [_limit_row(n, limit) for n, limit in limits]
    write_csv(config.out / "rates.csv", rates)
    write_csv(config.out / "limits.csv", areas)
    write_json(
        config.out / "results.json",
        {
            "config": {**asdict(config), "out": str(config.out)},
            "record": run_record(),
            "seconds": time.monotonic() - start,
            "rates": rates,
            "limits": areas,
        },
    )
    shown = ("signal", "n", "best_single", "best_fused", "gain", "helped_any", "limit", "as_it_should")
    for table in (_screen([{name: row[name] for name in shown} for row in rates]), _screen(areas)):
        console.print(table)
    console.print(f"{time.monotonic() - start:.0f} s; results in {config.out}")
    return config.out


def _row(found: Tally) -> dict[str, object]:
    scenario = found.scenario
    signal = Signal(**scenario.signal)
    singles = max(bayes_auc(signal, (source,), n=200_000).value for source in signal.unique)
    limit = smallest_chance_rate(found.cohorts) if scenario.helps else largest_chance_rate(found.cohorts)
    rate = found.helped[scenario.model] if scenario.helps else found.helped["any"]
    return {
        "signal": scenario.name,
        "n": scenario.n,
        "cohorts": found.cohorts,
        "best_single": round(singles, 3),
        "best_fused": round(bayes_auc(signal, n=200_000).value, 3),
        **{f"auc_{name}": round(value, 3) for name, value in found.auc.items()},
        "gain": round(found.gain, 3),
        **{f"helped_{name}": round(found.helped[name], 4) for name in (*FUSED, "any")},
        "helped_careless": round(found.careless, 4),
        "limit": round(limit, 4),
        "as_it_should": rate >= limit if scenario.helps else rate <= limit,
        "bootstrap_agrees": round(found.agreed, 3) if found.bootstrapped else None,
    }


def _limit_row(n: int, limit: Limit) -> dict[str, object]:
    return {
        "signal": limit.scenario.name,
        "training cases": n // 2,
        "model": limit.model,
        "auc": round(limit.auc, 3),
        "se": round(limit.standard_error, 4),
        "best possible": round(limit.best, 3),
    }


def _screen(rows: list[dict[str, object]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__, logged=logging.WARNING)
