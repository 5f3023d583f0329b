"""`fusion-jax quality`: how balanced is a fusion of the sources in a user's own files?"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fusion_jax.commands._shared.screen import checked_folder

if TYPE_CHECKING:
    from fusion_jax.commands._quality.measure import Results

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Measure how balanced a fusion of two or more data sources is, before and after encoding one of them.

    Writes report.html, quality.json, cases.csv, gamma.csv and figures/ to the folder OUT; earlier results of this
    command are replaced, nothing else is touched.

    Example: fusion-jax quality image.csv clinical.csv --encode clinical --bandwidth 1 --out results/mine

    Attributes:
      features: one .npz file with an array per source, or one .csv file per source. Rows are cases, columns are
        features. A source has the name of its array or file. Files with a column case_id are joined by it, others
        by row order.
      bandwidth: standard deviation of the kernel in units of the scaled features (1 suits zscore), or a rule, whose
        median over sources and cases is taken.
      out: folder of the results.
      scale: scaling of every source by the whole cohort, never by case: none; mean and standard deviation; median
        and interquartile range; range from 0 to 1. Values enter an encoding unscaled, and their encoding is scaled.
      per_column: sources whose columns are different quantities, such as age and grade: each column is scaled by
        itself. All other sources, and encodings, are scaled as a whole. Default: the source to encode, and sources
        of at most 16 columns.
      encode: source to encode; the report compares before and after.
      encoding: how to encode it.
      encoding_size: number of coordinates of the encoding. Default: the size that balances its energy with that of
        the largest other source (positional), or the size of the largest other source (any other encoding).
      kernel: kernels of integral 1, or of height 1 as in the paper. Only energies and their gaps depend on it.
      outcome: CSV with case_id and a label of two classes, or the label alone: is the bias of a source related to it?
      missing: what to do about empty cells and NaN: stop, or give missing values weight 0.
      permutations: permutations of every test.
      seed: of permutations and random encodings.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    features: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES...", help_behavior_hint="(required)")
    ]
    bandwidth: Annotated[float | Literal["scott", "silverman"], tyro.conf.arg(metavar="{FLOAT,scott,silverman}")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results/quality")
    scale: Literal["none", "zscore", "robust", "minmax"] = "zscore"
    per_column: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="SOURCE...", help_behavior_hint="")] = None
    encode: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    encoding: Literal["positional", "linear", "pca", "fourier", "repetition"] = "positional"
    encoding_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    kernel: Literal["normalised", "peak"] = "normalised"
    outcome: Annotated[Path | None, tyro.conf.arg(metavar="CSV", help_behavior_hint="")] = None
    missing: Literal["error", "weight"] = "error"
    permutations: int = 999
    seed: int = 0
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Measure, write the results and print a short table.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fusion_jax.commands._quality.features import check_features, read_features, read_outcome

    _check_options(config)
    features = read_features(config.features)
    check_features(features, config)
    outcome = None if config.outcome is None else read_outcome(config.outcome, features)
    checked_folder(config.out).mkdir(parents=True, exist_ok=True)  # before the work, not after it

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading", total=5 if config.encode is None else 8)

        def advance(doing: str) -> None:
            progress.update(task, description=doing, advance=1)

        from fusion_jax.commands._quality.measure import measure
        from fusion_jax.commands._quality.report import write_results

        results = measure(features, outcome, config, advance)
        advance("writing the report")
        report = write_results(results)
    _print_table(results)
    print(f"\nReport: {report}")
    return 0


def _check_options(config: Config) -> None:
    if not isinstance(config.bandwidth, str) and not (math.isfinite(config.bandwidth) and config.bandwidth > 0):
        raise ValueError(
            f"--bandwidth is {config.bandwidth:g}; expected a positive number, 'scott' or 'silverman'. 1 suits "
            "features scaled by zscore."
        )
    for option, value, least in (
        ("--permutations", config.permutations, 1),
        ("--seed", config.seed, 0),
        ("--encoding-size", 1 if config.encoding_size is None else config.encoding_size, 1),
    ):
        if value < least:
            raise ValueError(f"{option} is {value}; expected {least} or more.")
    if config.encoding_size is not None and config.encode is None:
        raise ValueError("--encoding-size is given, but no source to encode. Name it with --encode SOURCE.")


def _print_table(results: "Results") -> None:
    from rich.console import Console
    from rich.table import Table

    from fusion_jax.commands._quality.numbers import source_names
    from fusion_jax.commands._quality.report import dominance, medians

    table = Table(title=f"Medians, n = {len(results.features.case_ids)}", title_justify="left")
    table.add_column("source")
    for stage in results.stages:
        for heading in ("size", "energy", "bias"):
            table.add_column(f"{heading}\n{stage.name}", justify="right")
    for name in source_names(results.pairs):
        cells = [medians(stage.quality, name) for stage in results.stages]
        table.add_row(
            name, *(text for size, share, bias in cells for text in (f"{size:g}", f"{share:.1%}", f"{bias:.3f}"))
        )
    table.caption = "energy: share of the fused layer's; bias: TV(fused, source)"
    console = Console()
    console.print(table)
    for stage in results.stages:
        console.print(dominance(stage, results.pairs), highlight=False)
