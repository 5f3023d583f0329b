"""Trains detectors with and without clinical data, judges them, and writes one report."""

import json
from pathlib import Path

from rich.console import Console

from experiments.chest_xray_detection.config import PRESETS, Config, Settings
from experiments.chest_xray_detection.report import write_results
from experiments.chest_xray_detection.study import carry_out
from experiments.command_line import progress_bars, run_from_command_line
from fusion_jax.reporting.tables import format_interval

__all__ = ["run"]


def run(config: Config, settings: Settings | None = None) -> Path:
    """Run what the config names; returns the path of the report.

    Args:
      config: of the run.
      settings: other settings than those of the preset, for tests.
    """
    settings = settings or PRESETS[config.preset]
    console = Console()
    out = config.out / config.preset
    with progress_bars(console) as told:
        studies = carry_out(config, settings, told=told)
        told("writing the report", 0, 1)
        path = write_results(config, settings, studies, out)
        told("writing the report", 1, 1)
    for name, one in json.loads((out / "results.json").read_text(encoding="utf-8"))["answers"].items():
        shown = format_interval(one["gain"], one["low"], one["high"], signed=True)
        console.print(f"{name}: MDF-Net gains {shown} average precision over the image alone", highlight=False)
    for study in studies.found.values():
        for failure in study.failed:
            console.print(f"Failed: {failure.task.model}, fold {failure.task.fold}: {failure.message}", markup=False)
    for name, reason in studies.skipped.items():
        console.print(f"{name}: not run. {reason}", markup=False)
    console.print(f"{sum(studies.seconds.values()):.0f} s. Report: {path}")
    return path


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__)
