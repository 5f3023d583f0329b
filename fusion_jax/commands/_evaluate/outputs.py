"""The results of an evaluation: the folder of the report and its tables, and a short table on the screen."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fusion_jax.commands._evaluate.gallery import gallery
from fusion_jax.commands._evaluate.inputs import Inputs
from fusion_jax.commands.evaluate import Config
from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.estimates import title
from fusion_jax.reporting.evaluation import verdict
from fusion_jax.reporting.evaluation.results import Additions, write_evaluation
from fusion_jax.reporting.evaluation.words import cell, first_estimates
from fusion_jax.reporting.tables import format_interval

__all__ = ["print_table", "write_results"]


def write_results(out: Path, found: Sequence[Evaluation], inputs: Inputs, config: Config) -> Path:
    """Write everything into a folder, and say where the report is.

    Args:
      out: the folder.
      found: one evaluation, or one for every training.
      inputs: what was read.
      config: of the command.
    """
    shown = [gallery(found[0], inputs.cohort, config.gallery)] if config.gallery and inputs.cohort is not None else []
    asked = {**dataclasses.asdict(config), "horizons": list(config.horizons)}
    return write_evaluation(out, found, paths=inputs.paths, config=asked, additions=Additions(last=shown))


def print_table(found: Sequence[Evaluation]) -> None:
    """The primary metric of every model, the verdicts and the warnings."""
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    for one in found:
        first = one.judged
        grid = Grid(title=one.view.name or None, title_justify="left")
        grid.add_column("model")
        if first is not None:
            keys = [key for key in first.values if not key.rule and not key.of_class]
            keys = [key for key in keys if key.metric in ("auc", "specificity_at_sensitivity", one.protocol.primary)]
            for key in keys:
                grid.add_column(title(key, one.protocol), justify="right")
            rows = first_estimates(first.estimates)
            for model in one.view.models:
                grid.add_row(model, *(str(cell(rows.get((model, key)))) for key in keys))
        elif one.survival is not None:
            grid.add_column("Harrell's C", justify="right")
            comparison = one.survival.comparison
            for number, model in enumerate(one.view.models):
                ends = comparison.intervals.harrell
                value = float(comparison.estimates.harrell[number])
                grid.add_row(model, str(format_interval(value, float(ends.low[number]), float(ends.high[number]))))
        console.print(grid)
        for sentence in verdict(one):
            console.print(sentence, highlight=False)
    for warning in found[0].warnings:
        console.print(f"Warning: {warning}", highlight=False)
