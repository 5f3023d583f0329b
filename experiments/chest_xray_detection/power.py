"""Fixes size and effect of the synthetic arms before they are run: how sure would MDF-Net's gain be seen?

python -m experiments.chest_xray_detection.power

Cohorts and trainings have seeds of their own, so that the experiment sees neither. Every cell of the table is a number
of cases and a strength of the vitals; its power is that of a two-sided test at 5 % with the standard error that
patients and seeds give, widened for how few seeds there are.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from experiments.chest_xray_detection.config import CPU, Config
from experiments.chest_xray_detection.measures import measure_study
from experiments.chest_xray_detection.models import BASELINE, DUAL, model
from experiments.chest_xray_detection.study import INFORMATIVE, arm_address
from experiments.command_line import of_trainings, progress_bars, run_from_command_line
from fusion_jax.detection.study import compare_detectors
from fusion_jax.records import write_csv
from fusion_jax.training.executors import spawned

__all__ = ["PowerConfig", "run"]


@dataclass(frozen=True)
class PowerConfig:
    """What is tried.

    Attributes:
      out: folder of the results.
      cases: of a cohort, three in ten of them tested.
      strengths: of the vitals.
      seeds: of the trainings.
      cohort_seed: of the cohorts and of their splits.
      workers: processes that train side by side.
    """

    out: Path = field(default=Path("results/chest_xray_detection/power"))
    cases: tuple[int, ...] = (200, 400)
    strengths: tuple[float, ...] = (2.0, 3.0)
    seeds: tuple[int, ...] = (100, 101)
    cohort_seed: int = 1000
    workers: int = 2


def run(config: PowerConfig) -> Path:
    """Train and judge every cell; returns the path of the table."""
    console, rows = Console(), []
    with progress_bars(console) as told:
        for cases in config.cases:
            for strength in config.strengths:
                settings = replace(CPU, cases=cases, strength=strength)
                asked = Config(seed=config.cohort_seed)
                name = f"{cases} cases, strength {strength:g}"
                study = compare_detectors(
                    arm_address(asked, settings, INFORMATIVE),
                    {one: model(asked, settings, one) for one in (BASELINE, DUAL)},
                    out=config.out / f"n{cases}_s{strength:g}",
                    seeds=config.seeds,
                    split_seed=config.cohort_seed,
                    fractions=settings.fractions,
                    executor_factory=spawned(config.workers) if config.workers > 1 else None,
                    report=of_trainings(told, name),
                )
                gains = measure_study([study], resamples=1000).gains["iobb"]
                low, high = (float(end[1, -1]) for end in (gains.gain_interval.low, gains.gain_interval.high))
                quantile = float(norm.ppf(0.975))
                error, gain = (high - low) / (2 * quantile), float(gains.gain[1, -1])
                # Resamples of S seeds show (S - 1) / S of their variance; the whole is taken to be due to them.
                error *= (gains.seeds / max(gains.seeds - 1, 1)) ** 0.5
                rows.append(
                    {
                        "cases": cases,
                        "tested": len(set(study.truth["case_id"])),
                        "strength": strength,
                        "baseline AP": round(float(gains.value[0, -1]), 3),
                        "gain": round(gain, 3),
                        "standard error": round(error, 3),
                        "power": round(float(norm.sf(quantile - gain / max(error, 1e-9))), 3),
                    }
                )
    write_csv(config.out / "power.csv", rows)
    shown = Table(*rows[0], title="MDF-Net over Mask R-CNN, AP at IoBB 0.5", title_justify="left")
    for row in rows:
        shown.add_row(*map(str, row.values()))
    console.print(shown)
    return config.out / "power.csv"


if __name__ == "__main__":
    run_from_command_line(PowerConfig, run, __doc__)
